--
-- Many reports in one call: report_syncs()
--
-- Time is moved by hand (syncstate.clock).
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
RESET client_min_messages;
\pset null '(null)'

CREATE SCHEMA regress_syncstate_report;
SET search_path = regress_syncstate_report, syncstate;
TRUNCATE sync_state, sync_policy;

-- Users are numbered.
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;

CREATE FUNCTION n(u uuid) RETURNS integer LANGUAGE sql IMMUTABLE
RETURN ('x' || right(u::text, 8))::bit(32)::integer;

-- Time is told as the distance from a fixed start.
CREATE FUNCTION t(distance interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN '2030-01-01 00:00:00+00'::timestamptz + distance;

CREATE FUNCTION clock(distance interval) RETURNS void LANGUAGE sql
BEGIN ATOMIC
	SELECT set_config('syncstate.clock', to_char(t(distance) AT TIME ZONE 'UTC',
					  'YYYY-MM-DD HH24:MI:SS.US') || '+00', false);
END;

-- A report of the sync of calendar users by number, with lease 1.
CREATE FUNCTION r(n integer, outcome text, arguments jsonb DEFAULT '{}')
RETURNS jsonb LANGUAGE sql IMMUTABLE
RETURN jsonb_build_object('user_id', u(n), 'source', 'google_calendar', 'lease', 1,
						  'outcome', outcome) || arguments;

-- The users to whose rows reports were applied, in the order returned.
CREATE FUNCTION report(VARIADIC results jsonb[]) RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT coalesce(string_agg(n(s.user_id)::text, ' ' ORDER BY s.place), 'none')
	FROM (SELECT *, row_number() OVER () AS place FROM report_syncs(to_jsonb(results))) AS s;
END;

CREATE FUNCTION sqlstate_of(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

-- All that is stored, to see that nothing has changed.
CREATE VIEW everything AS
SELECT (SELECT md5(string_agg(concat(s.xmin, s.ctid, s), '/' ORDER BY user_id, source, resource)) FROM sync_state AS s)
	|| coalesce((SELECT md5(string_agg(concat(p.xmin, p), '/' ORDER BY source)) FROM sync_policy AS p), '') AS digest;

-- Rows in flight, each under lease 1.
CREATE FUNCTION start(low integer, high integer) RETURNS bigint LANGUAGE sql
BEGIN ATOMIC
	INSERT INTO sync_state (user_id, source, due_at)
	SELECT u(i), 'google_calendar', t('-1 day') + i * interval '1 ms' FROM generate_series(low, high) AS i;
	SELECT count(*) FROM claim_due_syncs('google_calendar', 10000);
END;

-- ---------------------------------------------------------------------
-- Mixed outcomes, returned in the order of the array
-- ---------------------------------------------------------------------
SELECT clock('0 s');
SELECT start(1, 8);
SELECT clock('1 min');
SELECT report(
	r(7, 'released'),
	r(2, 'completed', '{"items_synced": 12, "sync_token": "tok"}'),
	r(5, 'rate_limited', '{"retry_after": "5 min"}'),
	r(3, 'failed', '{"error_message": "no", "kind": "permanent"}'),
	r(1, 'completed'),
	r(6, 'failed', '{"error_message": "invalid_grant", "kind": "auth"}'),
	r(4, 'failed', '{"error_message": "timeout"}'));
SELECT n(user_id) AS u, status, lease, lease_expires_at IS NULL AS free, items_synced AS items, sync_token AS token,
	failures, parked_reason AS parked, error_message, due_at > sync_clock() AS sleeps
FROM sync_state ORDER BY user_id;

-- what is returned is the row as it is now
CREATE TABLE returned AS SELECT * FROM report_syncs(jsonb_build_array(r(8, 'completed', '{"sync_token": "x"}')));
SELECT status, sync_token, (SELECT s FROM sync_state AS s WHERE s.user_id = r.user_id)::text = r::text AS as_stored
FROM returned AS r;
DROP TABLE returned;

-- nothing reported, nothing done
SELECT count(*) AS applied FROM report_syncs('[]');

-- ---------------------------------------------------------------------
-- Twice the same report is applied once
-- ---------------------------------------------------------------------
TRUNCATE sync_state;
SELECT clock('0 s');
SELECT start(1, 5);
CREATE TABLE batch AS SELECT jsonb_build_array(
	r(4, 'failed', '{"error_message": "no"}'), r(1, 'completed'), r(2, 'rate_limited', '{"scope": "source"}'),
	r(3, 'released')) AS results;
SELECT n(user_id) AS u, status, failures FROM batch, report_syncs(results);
SELECT digest FROM everything \gset
SELECT clock('10 min');
SELECT count(*) AS applied FROM batch, report_syncs(results);
SELECT digest = :'digest' AS unchanged FROM everything;

-- also where the row runs again, under another lease
SELECT clock('1 hour');
SELECT count(*) AS claimed FROM claim_due_syncs('google_calendar');
SELECT digest FROM everything \gset
SELECT count(*) AS applied FROM batch, report_syncs(results);
SELECT digest = :'digest' AS unchanged FROM everything;
DROP TABLE batch;

-- also within the array: the first that applies is the one
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
SELECT start(1, 3);
SELECT report(
	r(1, 'completed', '{"sync_token": "first"}'), r(2, 'completed', '{"lease": 9, "sync_token": "stale"}'),
	r(1, 'completed', '{"sync_token": "second"}'), r(2, 'failed', '{"error_message": "no"}'),
	r(1, 'failed', '{"error_message": "third"}'), r(3, 'released'), r(3, 'released'));
SELECT n(user_id) AS u, status, sync_token, failures FROM sync_state ORDER BY user_id;

-- ---------------------------------------------------------------------
-- Reports that lost their lease or their row are left out
-- ---------------------------------------------------------------------
TRUNCATE sync_state;
SELECT clock('0 s');
SELECT start(1, 9);
SELECT disconnect_sync(u(2), 'google_calendar') AS gone;
SELECT status FROM mark_sync_completed(u(3), 'google_calendar', lease => 1);
SELECT status FROM clear_sync_token(u(4), 'google_calendar');
SELECT parked_reason FROM pause_sync(u(5), 'google_calendar');
SELECT clock('11 min');
SELECT n(user_id) AS u, lease FROM mark_sync_started(u(6), 'google_calendar');
SELECT report(
	r(99, 'completed'),								-- never was
	r(9, 'completed'),								-- expired, not taken over
	r(8, 'completed', '{"lease": 0}'),				-- older
	r(7, 'completed', '{"lease": 2}'),				-- newer
	r(7, 'completed', '{"source": "google_tasks"}'),
	r(7, 'completed', '{"resource": "other"}'),
	r(6, 'completed'),								-- taken over
	r(5, 'failed', '{"error_message": "no"}'),		-- paused meanwhile
	r(4, 'completed', '{"sync_token": "old"}'),		-- revoked
	r(3, 'failed', '{"error_message": "no"}'),		-- over
	r(2, 'completed'),								-- gone
	r(1, 'completed'));
SELECT n(user_id) AS u, status, lease, sync_token, failures, parked_reason AS parked FROM sync_state ORDER BY user_id;

-- ---------------------------------------------------------------------
-- What may be written how
-- ---------------------------------------------------------------------
TRUNCATE sync_state;
SELECT clock('0 s');
SELECT start(1, 6);
INSERT INTO sync_state (user_id, source, resource, due_at) VALUES (u(7), 'google_gmail', 'INBOX', t('0 s'));
SELECT count(*) AS claimed FROM claim_due_syncs();

-- numbers as numbers or text, without loss; nulls as if they were not there
SELECT report(
	r(1, 'completed', '{"lease": "1", "items_synced": "7", "resource": "", "sync_token": null, "history_id": null}'),
	r(2, 'completed', '{"items_synced": null, "sync_token": "", "history_id": ""}'),
	r(3, 'completed', '{"updated_min": "2029-12-31T23:00:00+01:00"}'),
	r(4, 'rate_limited', '{"retry_after": "90", "scope": null}'),
	r(5, 'rate_limited', '{"retry_after": 90}'),
	r(6, 'failed', '{"error_message": "404", "kind": null, "resource": null}'),
	r(7, 'completed', '{"source": "google_gmail", "resource": "INBOX", "history_id": 18446744073709551615}'));
SELECT n(user_id) AS u, status, items_synced, sync_token, history_id, t('0 s') - updated_min AS updated_before, error_message,
	CASE WHEN status = 'rate_limited' THEN due_at BETWEEN t('90 s') AND t('99 s') END AS limit_ok
FROM sync_state ORDER BY user_id;

-- a cursor never moves back here either
SELECT clock('1 day');
SELECT count(*) AS claimed FROM claim_due_syncs();
SELECT n(user_id) AS u, history_id, t('0 s') - updated_min AS updated_before
FROM report_syncs(jsonb_build_array(
	r(7, 'completed', '{"source": "google_gmail", "resource": "INBOX", "history_id": 99, "lease": 2}'),
	r(3, 'completed', '{"updated_min": "2020-01-01T00:00:00Z", "lease": 2}')));

-- long messages are cut, tokens are not
SELECT length(error_message) AS bytes, right(error_message, 6) AS ends
FROM report_syncs(jsonb_build_array(r(6, 'failed', jsonb_build_object('lease', 2, 'error_message', repeat('e', 10000)))));
SELECT length(sync_token) AS bytes
FROM report_syncs(jsonb_build_array(r(5, 'completed', jsonb_build_object('lease', 2, 'sync_token', repeat('t', 65536)))));

-- ---------------------------------------------------------------------
-- A malformed array of whatever kind applies nothing
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
SELECT start(1, 4);
SELECT digest FROM everything \gset
CREATE TABLE malformed (i serial, report text);
INSERT INTO malformed (report) VALUES
	('1'), ('"x"'), ('null'), ('true'), ('[]'), ('[{}]'), ('{}');
INSERT INTO malformed (report)
SELECT (r(2, outcome) || arguments::jsonb)::text FROM (VALUES
	('completed', '{"user_id": null}'), ('completed', '{"source": null}'), ('completed', '{"lease": null}'),
	('completed', '{"outcome": null}'), ('completed', '{"user_id": "x"}'), ('completed', '{"user_id": 1}'),
	('completed', '{"user_id": {}}'), ('completed', '{"user_id": true}'), ('completed', '{"source": "elsewhere"}'),
	('completed', '{"source": ""}'), ('completed', '{"lease": "x"}'), ('completed', '{"lease": 1.5}'),
	('completed', '{"lease": 9223372036854775808}'), ('completed', '{"lease": true}'), ('completed', '{"lease": [1]}'),
	('finished', '{}'), ('completed', '{"outcome": 1}'), ('completed', '{"outcome": "COMPLETED"}'),
	('completed', '{"items": 1}'), ('completed', '{"error_message": "x"}'), ('completed', '{"items_synced": -1}'),
	('completed', '{"items_synced": "many"}'), ('completed', '{"items_synced": 1.5}'),
	('completed', '{"items_synced": 99999999999999999999}'), ('completed', '{"sync_token": {"a": 1}}'),
	('completed', '{"sync_token": false}'), ('completed', '{"sync_token": 1}'), ('completed', '{"resource": 1}'), ('completed', '{"history_id": "-1"}'), ('completed', '{"history_id": 1.5}'),
	('completed', '{"history_id": 18446744073709551616}'), ('completed', '{"updated_min": "infinity"}'),
	('completed', '{"updated_min": "-infinity"}'), ('completed', '{"updated_min": "soon"}'),
	('completed', '{"updated_min": "2030-02-31"}'), ('completed', '{"updated_min": 1}'),
	('failed', '{}'), ('failed', '{"error_message": null}'), ('failed', '{"error_message": []}'), ('failed', '{"error_message": 404}'),
	('failed', '{"error_message": "x", "kind": "fatal"}'), ('failed', '{"error_message": "x", "kind": ""}'),
	('failed', '{"error_message": "x", "retry_after": "1 min"}'), ('rate_limited', '{"retry_after": "long"}'),
	('rate_limited', '{"retry_after": true}'), ('rate_limited', '{"retry_after": {"seconds": 90}}'), ('rate_limited', '{"scope": "all"}'),
	('rate_limited', '{"kind": "transient"}'), ('released', '{"items_synced": 1}'), ('released', '{"progress_done": 1}')
) AS v (outcome, arguments);
INSERT INTO malformed (report) VALUES
	(r(2, 'completed', jsonb_build_object('sync_token', repeat('t', 65537)))),
	(r(2, 'completed', jsonb_build_object('history_id', repeat('9', 70000)))),
	(r(2, 'completed', jsonb_build_object('resource', repeat('r', 1025)))),
	(r(2, 'completed') - 'user_id'), (r(2, 'completed') - 'source'), (r(2, 'completed') - 'lease'), (r(2, 'completed') - 'outcome');

-- each between two good ones: what is refused, and by which SQLSTATE
SELECT left(replace(report, '"user_id": "00000000-0000-4000-8000-000000000002"', '"user_id": ...'), 110) AS report,
	sqlstate_of(format('SELECT count(*) FROM report_syncs(jsonb_build_array(r(1, %L), %L::jsonb, r(3, %L)))',
					   'completed', report, 'completed')) AS sqlstate
FROM malformed ORDER BY i;
SELECT digest = :'digest' AS unchanged FROM everything;

-- a user_id is what uuid takes, in all its spellings
SELECT word, sqlstate_of(format('SELECT %L::uuid', word)) AS as_uuid,
	sqlstate_of(format('SELECT report_syncs(jsonb_build_array(r(9, %L, %L)))', 'completed', jsonb_build_object('user_id', word))) AS as_user_id
FROM unnest(ARRAY['0000000a-00bc-4000-8000-0123456789ef', '0000000A-00BC-4000-8000-0123456789EF', '{0000000a-00bc-4000-8000-0123456789ef}',
	'0000000a00bc400080000123456789ef', '0000-000a-00bc-4000-8000-0123-4567-89ef', '0000000a-00bc-4000-8000-0123456789e', '0000000a-00bc-4000-8000-0123456789',
	'0000000a-00bc-4000-8000-0123456789ef0', '0000000a-00bc-4000-8000-0123456789ef ', '0000000a-00bc-4000-8000-0123456789eg',
	'0000000g-00bc-4000-8000-0123456789ef', '0000000a_00bc-4000-8000-0123456789ef', '0000000a-00bc-4000-8000-0123456789e-', '0000000a-', '-', '']) AS word;
SELECT digest = :'digest' AS unchanged FROM everything;

-- what is no array at all
SELECT sqlstate_of('SELECT report_syncs(NULL)') AS sql_null, sqlstate_of($$SELECT report_syncs('null')$$) AS json_null,
	sqlstate_of($$SELECT report_syncs('{}')$$) AS object, sqlstate_of($$SELECT report_syncs(r(1, 'completed'))$$) AS a_report,
	sqlstate_of($$SELECT report_syncs('1')$$) AS number, sqlstate_of($$SELECT report_syncs('"[]"')$$) AS string,
	sqlstate_of($$SELECT report_syncs('[')$$) AS no_json;
SELECT digest = :'digest' AS unchanged FROM everything;

-- the error tells which report it is
\set VERBOSITY terse
SELECT report_syncs(jsonb_build_array(r(1, 'completed'), r(2, 'completed', '{"items_synced": -1}'))); -- ERROR
\set VERBOSITY default
DO $$
DECLARE
	context text;
BEGIN
	PERFORM report_syncs(jsonb_build_array(r(1, 'completed'), r(2, 'completed', '{"items_synced": -1}')));
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
	RAISE NOTICE '%', split_part(context, E'\n', 1);
END
$$;

-- strange values in each place: refused by class 22, or taken; nothing else
CREATE TABLE strange (value jsonb);
INSERT INTO strange VALUES ('null'), ('true'), ('false'), ('0'), ('-1'), ('1e3'), ('1e400'), ('-0.5'), ('[]'), ('{}'), ('[[]]'),
	('{"a": {}}'), ('""'), ('" "'), ('"x"'), ('"1"'), ('"NaN"'), ('"infinity"'), ('"now"'), ('"epoch"'), ('"1 month"'), ('"-1 year"'),
	('"''; DROP TABLE sync_state; --"'), ('"%s%n"'), (to_jsonb(repeat('9', 400))), (to_jsonb(repeat('x', 70000)));
CREATE FUNCTION fuzz(INOUT sqlstates text, OUT calls integer, OUT others integer) LANGUAGE plpgsql AS $$
DECLARE
	f record;
BEGIN
	calls := 0;
	others := 0;
	FOR f IN
		SELECT (r(1, outcome, arguments) || jsonb_build_object(key, value)) AS report
		FROM (VALUES ('completed', '{"sync_token": "x"}'::jsonb, '{items_synced,sync_token,history_id,updated_min}'::text[]),
			('failed', '{"error_message": "x"}', '{error_message,kind,scope}'), ('rate_limited', '{}', '{retry_after,scope}'),
			('released', '{}', '{}')) AS o (outcome, arguments, own),
			unnest(own || '{user_id,account,source,lease,resource,outcome}'::text[]) AS key, strange
	LOOP
		calls := calls + 1;
		BEGIN
			PERFORM report_syncs(jsonb_build_array(f.report));
			RAISE EXCEPTION USING ERRCODE = 'ZZ000';
		EXCEPTION WHEN OTHERS THEN
			IF SQLSTATE !~ '^(22...|ZZ000)$' THEN
				others := others + 1;
				sqlstates := concat_ws(' ', sqlstates, SQLSTATE);
			END IF;
		END;
	END LOOP;
END
$$;
SELECT * FROM fuzz(NULL);
SELECT digest = :'digest' AS unchanged FROM everything;
DROP FUNCTION fuzz;
DROP TABLE strange, malformed;

-- each byte of a user_id, in either case
INSERT INTO sync_state (user_id, source, due_at)
SELECT ('12345678-9abc-4def-8fed-cba9876543' || lpad(to_hex(i), 2, '0'))::uuid, 'google_gmail', t('-1 day') FROM generate_series(0, 255) AS i;
SELECT count(*) AS claimed FROM claim_due_syncs('google_gmail', 1000);
SELECT count(DISTINCT user_id) AS reported
FROM report_syncs((SELECT jsonb_agg(jsonb_build_object('user_id', CASE WHEN user_id::text < '12345678-9abc-4def-8fed-cba987654380' THEN user_id::text ELSE upper(user_id::text) END,
		'source', 'google_gmail', 'lease', 1, 'outcome', 'completed', 'sync_token', user_id)) FROM sync_state WHERE source = 'google_gmail'))
WHERE sync_token = user_id::text;

-- after all that, a good one
SELECT report(r(1, 'completed'), r(2, 'completed'), r(3, 'completed'));

-- ---------------------------------------------------------------------
-- 10,000 in one call, by one command
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
SELECT start(1, 10000);
CREATE TABLE batch AS
SELECT jsonb_agg(r(i, 'completed', jsonb_build_object('sync_token', 'tok ' || i, 'items_synced', i)) ORDER BY i DESC) AS results
FROM generate_series(1, 10000) AS i;
SELECT sqlstate_of($$SELECT report_syncs(results || r(1, 'completed')) FROM batch$$) AS one_too_many;
SELECT count(*) AS still_running FROM sync_state WHERE status = 'syncing';

BEGIN;
SELECT clock('1 min');
SELECT count(*) AS applied, bool_and(n(user_id) = 10001 - place) AS in_order,
	bool_and(sync_token = 'tok ' || n(user_id) AND items_synced = n(user_id) AND status = 'idle') AS each_its_own
FROM (SELECT s.*, row_number() OVER () AS place FROM batch, report_syncs(results) AS s) AS s;
SELECT count(*) AS rows, count(DISTINCT cmin::text) AS commands FROM sync_state WHERE xmin = pg_current_xact_id()::xid;
COMMIT;
SELECT count(*) AS applied_again FROM batch, report_syncs(results);
SELECT status, count(*) FROM sync_state GROUP BY status;
DROP TABLE batch;

-- ---------------------------------------------------------------------
-- A limit of the source is one in a batch, too
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
SELECT start(1, 6);
SELECT report(
	r(1, 'rate_limited', '{"retry_after": "5 min", "scope": "row"}'));
SELECT count(*) AS paused FROM sync_policy;
SELECT report(
	r(2, 'rate_limited', '{"retry_after": "5 min", "scope": "source"}'),
	r(3, 'rate_limited', '{"retry_after": "10 min", "scope": "source"}'),
	r(4, 'rate_limited', '{"scope": "source"}'),
	r(5, 'rate_limited', '{"retry_after": "1 day", "scope": "source", "lease": 7}'));
SELECT source, paused_until - t('0 s') AS pause FROM sync_policy;

-- ---------------------------------------------------------------------
-- As the single calls do it: column by column, for random batches
-- ---------------------------------------------------------------------

-- A number from 0 to less than 1 that is always the same.
CREATE FUNCTION rnd(seed text) RETURNS double precision LANGUAGE sql IMMUTABLE
RETURN ('x' || substr(md5(seed), 1, 8))::bit(32)::bigint / 4294967296.0;

-- One of several, the same each time.
CREATE FUNCTION one(seed text, VARIADIC choices text[]) RETURNS text LANGUAGE sql IMMUTABLE
RETURN choices[1 + floor(rnd(seed) * array_length(choices, 1))::integer];

-- A population in all states; half of it is in flight.
CREATE PROCEDURE populate(seed text) LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE sync_state, sync_policy;
	PERFORM set_sync_policy(source, jsonb_build_object(
		'sync_interval', one(seed || source || 1, '1 min', '15 min', '1 day', '9 days'),
		'max_failures', 1 + floor(5 * rnd(seed || source || 2)), 'park_after', one(seed || source || 3, '1 s', '1 day'),
		'jitter', 0.9 * rnd(seed || source || 4), 'token_ttl', one(seed || source || 5, '1 hour', '7 days'),
		'token_ttl_from', one(seed || source || 6, 'token', 'full'), 'rate_limit_wait', one(seed || source || 7, '1 min', '1 day'),
		'paused_until', CASE WHEN rnd(seed || source || 8) < 0.5 THEN t(rnd(seed || source || 9) * interval '1 h') END))
	FROM unnest(enum_range('google_calendar'::sync_source, 'google_contacts')) AS source;
	INSERT INTO sync_state (user_id, source, resource, status, sync_token, history_id, updated_min, token_issued_at,
		last_full_sync_at, due_at, requested_at, parked_reason, sync_interval, lease, lease_expires_at, last_sync_at,
		last_successful_sync_at, items_synced, page_token, progress_done, progress_total, failures, token_losses,
		error_message, created_at, failing_since)
	SELECT u(1 + i % 50), one(k || 1, 'google_calendar', 'google_tasks', 'google_gmail', 'google_contacts')::sync_source,
		one(k || 2, '', 'A', 'a', '_b'), status,
		one(k || 3, NULL, 'tok'), one(k || 4, NULL, '99', '1000', '18446744073709551615'),
		CASE WHEN rnd(k || 5) < 0.5 THEN t(rnd(k || 6) * interval '-10 days') END, t(rnd(k || 7) * interval '-10 days'),
		CASE WHEN rnd(k || 8) < 0.5 THEN t(rnd(k || 9) * interval '-10 days') END,
		CASE WHEN parked IS NULL THEN t((rnd(k || 11) - 0.5) * interval '2 h') END,
		CASE WHEN rnd(k || 12) < 0.3 THEN t(rnd(k || 13) * interval '-1 h') END, parked,
		one(k || 14, NULL, '2 min', '10 days')::interval, floor(3 * rnd(k || 15)) + 1,
		CASE WHEN status = 'syncing' THEN t((rnd(k || 16) - 0.5) * interval '10 min') END,
		CASE WHEN rnd(k || 17) < 0.9 THEN t(rnd(k || 18) * interval '-1 h') END,
		CASE WHEN rnd(k || 19) < 0.5 THEN t(rnd(k || 20) * interval '-1 day') END, floor(99 * rnd(k || 21)),
		one(k || 22, NULL, 'page'), one(k || 23, NULL, '5')::bigint, one(k || 24, NULL, '9')::bigint, failures,
		floor(4 * rnd(k || 25)), one(k || 26, NULL, 'old message'), t('-20 days'),
		CASE WHEN failures > 0 THEN t(rnd(k || 27) * interval '-3 days') END
	FROM (SELECT i, k, one(k || 28, 'syncing', 'syncing', 'syncing', 'syncing', 'idle', 'error', 'rate_limited')::sync_status AS status,
			one(k || 29, NULL, NULL, NULL, NULL, 'paused', 'auth', 'failures', 'token_loop', 'gone') AS parked,
			floor(7 * rnd(k || 30))::integer AS failures
		FROM (SELECT i, seed || '/' || i || '/' AS k FROM generate_series(1, 120) AS i) AS a) AS b
	ON CONFLICT DO NOTHING;
END
$$;

-- A batch of reports: most fit, some are stale, some are double.
CREATE FUNCTION random_batch(seed text) RETURNS jsonb LANGUAGE sql
BEGIN ATOMIC
	SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object('user_id', user_id, 'source', source,
			'resource', CASE WHEN resource = '' AND rnd(k || 1) < 0.5 THEN NULL ELSE resource END,
			'lease', lease + CASE WHEN rnd(k || 2) < 0.1 THEN 1 WHEN rnd(k || 2) < 0.2 THEN -1 ELSE 0 END,
			'outcome', outcome)
		|| CASE outcome WHEN 'completed' THEN jsonb_build_object('items_synced', one(k || 3, NULL, '0', '77')::integer,
				'sync_token', one(k || 4, NULL, '', 'tok', 'new'), 'history_id', one(k || 5, NULL, '', '98', '0099', '1001'),
				'updated_min', CASE WHEN rnd(k || 6) < 0.5 THEN t(rnd(k || 7) * interval '-10 days') END)
			WHEN 'failed' THEN jsonb_build_object('error_message', 'failed ' || k, 'kind', one(k || 8, NULL, 'transient', 'permanent', 'auth', 'auth'),
				'scope', one(k || 12, NULL, 'row', 'account'))
			WHEN 'rate_limited' THEN jsonb_build_object('retry_after', one(k || 9, NULL, '-1 s', '90 s', '1 h', '2 months'),
				'scope', one(k || 10, NULL, 'row', 'account', 'account', 'account', 'source'))
			ELSE '{}' END)
		ORDER BY rnd(k || 11))
	FROM (SELECT s.*, seed || '/' || n(s.user_id) || source || resource || '/' || copy AS k,
			one(seed || n(s.user_id) || source || resource || '/' || copy || '?', 'completed', 'failed', 'rate_limited', 'released') AS outcome
		FROM sync_state AS s, generate_series(1, 2) AS copy
		WHERE copy = 1 OR rnd(seed || n(s.user_id) || source || resource) < 0.2) AS s;
END;

-- The single call that a report stands for; false where that was refused.
CREATE FUNCTION report_single(r jsonb, OUT s sync_state) LANGUAGE plpgsql AS $$
DECLARE
	k_user uuid := r ->> 'user_id';
	k_source sync_source := r ->> 'source';
	k_resource text := coalesce(r ->> 'resource', '');
	k_lease bigint := r ->> 'lease';
BEGIN
	CASE r ->> 'outcome'
	WHEN 'completed' THEN
		s := mark_sync_completed(k_user, k_source, coalesce((r ->> 'items_synced')::bigint, 0), r ->> 'sync_token',
			r ->> 'history_id', (r ->> 'updated_min')::timestamptz, k_lease, k_resource);
	WHEN 'failed' THEN
		s := mark_sync_failed(k_user, k_source, r ->> 'error_message', coalesce(r ->> 'kind', 'transient'), k_lease, k_resource,
			coalesce(r ->> 'scope', 'account'));
	WHEN 'rate_limited' THEN
		s := mark_rate_limited(k_user, k_source, (r ->> 'retry_after')::interval, coalesce(r ->> 'scope', 'account'), k_lease, k_resource);
	WHEN 'released' THEN
		s := release_sync(k_user, k_source, k_lease, k_resource);
	END CASE;
EXCEPTION WHEN SQLSTATE 'PT409' OR SQLSTATE 'PT404' THEN
	s := NULL;
END
$$;

-- Applies a batch both ways to the same population, and keeps what came of it.
CREATE TYPE effect AS (rows sync_state[], policies sync_policy[], returned sync_state[]);
CREATE FUNCTION effect_of(results jsonb, singly boolean, OUT e effect) LANGUAGE plpgsql AS $$
DECLARE
	r jsonb;
	s sync_state;
BEGIN
	e.returned := '{}';
	IF singly THEN
		FOR r IN SELECT value FROM jsonb_array_elements(results) WITH ORDINALITY ORDER BY ordinality LOOP
			s := report_single(r);
			IF s.user_id IS NOT NULL THEN
				e.returned := e.returned || s;
			END IF;
		END LOOP;
		-- later reports may have told earlier rows of the account something
		e.returned := ARRAY(SELECT x FROM unnest(e.returned) WITH ORDINALITY AS r
			JOIN sync_state AS x USING (user_id, account, source, resource) ORDER BY r.ordinality);
	ELSE
		e.returned := ARRAY(SELECT x FROM report_syncs(results) AS x);
	END IF;
	e.rows := ARRAY(SELECT x FROM sync_state AS x ORDER BY user_id, source, resource);
	e.policies := ARRAY(SELECT x FROM sync_policy AS x ORDER BY source);
	RAISE EXCEPTION USING ERRCODE = 'ZZ000';
EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
	RETURN;
END
$$;

-- Which columns differ.  The wait after a transient failure is random, and has
-- to be within half of it to all of it both times.
CREATE FUNCTION differences(a sync_state[], b sync_state[]) RETURNS SETOF text LANGUAGE sql
BEGIN ATOMIC
	SELECT x.key
	FROM unnest(a) WITH ORDINALITY AS p FULL JOIN unnest(b) WITH ORDINALITY AS q USING (ordinality),
		LATERAL (SELECT least(extract(epoch FROM g.retry_cap), extract(epoch FROM g.retry_base) * 2.0 ^ (p.failures - 1)) * interval '1 s' AS d
				 FROM get_sync_policy(coalesce(p.source, q.source)) AS g) AS backoff,
		LATERAL (SELECT o.key, o.value AS old, n.value AS new
				 FROM jsonb_each(to_jsonb(p) - 'ordinality') AS o FULL JOIN jsonb_each(to_jsonb(q) - 'ordinality') AS n USING (key)) AS x
	WHERE x.old IS DISTINCT FROM x.new
		AND (x.key = 'due_at' AND p.status = 'error' AND p.error_message LIKE 'failed %'
			 AND p.due_at BETWEEN sync_clock() + d / 2 AND sync_clock() + d
			 AND q.due_at BETWEEN sync_clock() + d / 2 AND sync_clock() + d) IS NOT TRUE;
END;

CREATE TABLE seen (outcome text, changed boolean, seed text);
CREATE PROCEDURE compare(seeds integer) LANGUAGE plpgsql AS $$
DECLARE
	results jsonb;
	batch effect;
	singles effect;
	before sync_state[];
	found text;
BEGIN
	FOR seed IN 1 .. seeds LOOP
		PERFORM clock('0 s');
		CALL populate(seed::text);
		before := ARRAY(SELECT s FROM sync_state AS s ORDER BY user_id, source, resource);
		results := random_batch(seed::text);
		batch := effect_of(results, false);
		singles := effect_of(results, true);

		SELECT string_agg(DISTINCT d, ', ') INTO found FROM differences(batch.rows, singles.rows) AS d;
		IF found IS NOT NULL THEN
			RAISE WARNING 'seed %: % differ', seed, found;
		END IF;
		SELECT string_agg(DISTINCT d, ', ') INTO found FROM differences(batch.returned, singles.returned) AS d;
		IF found IS NOT NULL THEN
			RAISE WARNING 'seed %: % differ in what is returned', seed, found;
		END IF;
		IF batch.policies IS DISTINCT FROM singles.policies THEN
			RAISE WARNING 'seed %: policies differ', seed;
		END IF;
		-- so that it is known to have compared something
		INSERT INTO seen SELECT r ->> 'outcome', s.user_id IS NOT NULL, seed
		FROM jsonb_array_elements(results) AS r
			LEFT JOIN unnest(batch.returned) AS s ON s.user_id = (r ->> 'user_id')::uuid AND s.source::text = r ->> 'source'
				AND s.resource = coalesce(r ->> 'resource', '') AND s.lease = (r ->> 'lease')::bigint;
		INSERT INTO seen VALUES ('(pause of a source)',
			batch.policies IS DISTINCT FROM ARRAY(SELECT p FROM sync_policy AS p ORDER BY source), seed);
		ASSERT before = ARRAY(SELECT s FROM sync_state AS s ORDER BY user_id, source, resource), 'not undone';
	END LOOP;
END
$$;
CALL compare(60);
SELECT outcome, count(*) FILTER (WHERE changed) > 40 AS often_applied, count(*) FILTER (WHERE NOT changed) > 0 AS also_not
FROM seen GROUP BY outcome ORDER BY outcome;

-- ---------------------------------------------------------------------
-- Clean up
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
RESET syncstate.clock;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_report CASCADE;
