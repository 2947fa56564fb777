--
-- Claiming: which rows, in which order, how many, and no row twice
--
-- Time is moved by hand (syncstate.clock), but for the sections near the end
-- that test what claims remember of the lanes, which only the real clock uses.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
RESET client_min_messages;
\pset null '(null)'

CREATE SCHEMA regress_syncstate_claim;
SET search_path = regress_syncstate_claim, syncstate;

-- Users are numbered.
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;

-- Time is told as the distance from a fixed start.
CREATE FUNCTION t(distance interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN ('2030-01-01 00:00:00'::timestamp + distance) AT TIME ZONE 'UTC';

CREATE FUNCTION distance(t timestamptz) RETURNS interval LANGUAGE sql IMMUTABLE
RETURN t AT TIME ZONE 'UTC' - '2030-01-01 00:00:00'::timestamp;

CREATE PROCEDURE clock_at(t timestamptz) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('syncstate.clock', to_char(t AT TIME ZONE 'UTC',
					   'YYYY-MM-DD HH24:MI:SS.US') || '+00', false);
END
$$;

CREATE PROCEDURE clock(distance interval) LANGUAGE plpgsql AS $$
BEGIN
	CALL clock_at(t(distance));
END
$$;

-- A row as text: the user's number, and the resource if there is one.
CREATE FUNCTION name(s sync_state) RETURNS text LANGUAGE sql IMMUTABLE
RETURN (('x' || right(s.user_id::text, 8))::bit(32)::integer)
	|| CASE WHEN s.resource = '' THEN '' ELSE '/' || s.resource END;

-- Claims, and tells the rows in the order in which they came.
CREATE FUNCTION claim(source sync_source, max_rows integer DEFAULT 10,
					  lease_time interval DEFAULT NULL)
RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT coalesce(string_agg(name(c.s), ' ' ORDER BY c.n), 'nothing')
	FROM (SELECT s, row_number() OVER () AS n
		  FROM claim_due_syncs(source, max_rows, lease_time) AS s) AS c;
END;

CREATE FUNCTION sqlstate_of(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

CALL clock('0 s');

-- ---------------------------------------------------------------------
-- Nothing to claim
-- ---------------------------------------------------------------------
SELECT claim('google_calendar') AS of_a_source, claim(NULL) AS of_all,
	next_sync_due('google_calendar') AS next_of_a_source,
	next_sync_due() AS next_of_all,
	(SELECT count(*) FROM get_users_needing_sync('google_calendar')) AS users;

-- ---------------------------------------------------------------------
-- Order: what was requested by the time of the request, then what is due by
-- its due time, and equals by their key; a row that is both comes once
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, resource, due_at, requested_at) VALUES
	(u(1), 'google_calendar', '', t('-1 min'), NULL),
	(u(2), 'google_calendar', '', t('-3 min'), NULL),
	(u(3), 'google_calendar', '', t('-2 min'), NULL),
	(u(4), 'google_calendar', '', t('1 min'), t('-1 s')),	-- requested, not due
	(u(5), 'google_calendar', '', t('-4 min'), t('-2 s')),	-- requested and due
	(u(6), 'google_calendar', '', t('1 us'), NULL),			-- not due
	(u(7), 'google_calendar', '', t('0 s'), NULL),			-- due this moment
	(u(8), 'google_calendar', 'b', t('-2 min'), NULL),		-- equal due times
	(u(8), 'google_calendar', 'a', t('-2 min'), NULL),
	(u(8), 'google_calendar', 'B', t('-2 min'), NULL),
	(u(9), 'google_tasks', '', t('-9 min'), NULL);			-- another source
BEGIN;
SELECT claim('google_calendar', 100);
ROLLBACK;
-- in portions, it is the same order
SELECT claim('google_calendar', 4);
SELECT claim('google_calendar', 1);
SELECT claim('google_calendar', 100);
SELECT claim('google_calendar', 100);
SELECT claim('google_tasks', 100);

-- what a claim does to a row
SELECT name(s), status, distance(due_at) AS due_at, distance(requested_at) AS requested_at, lease,
	distance(lease_expires_at) AS lease_expires_at,
	distance(last_sync_at) AS last_sync_at, failures, failing_since
FROM sync_state AS s WHERE user_id IN (u(2), u(4), u(5), u(6), u(7)) ORDER BY 1;

-- a claim returns the rows as they are now
DELETE FROM sync_state;
INSERT INTO sync_state (user_id, source, due_at, requested_at, sync_token, page_token, status, error_message, failures)
SELECT u(n), 'google_calendar', t('-1 min') + n * '1 s'::interval, NULL, 'cursor', 'page', 'error', 'oops', 1
FROM generate_series(1, 20) AS n;
CREATE TABLE returned AS SELECT * FROM claim_due_syncs('google_calendar', 15);
SELECT count(*) AS returned, count(*) FILTER (WHERE r = s) AS as_they_are
FROM returned AS r JOIN sync_state AS s USING (user_id, source, resource);
-- the cursor, the page and the failures stay, the old error goes
SELECT DISTINCT sync_token, page_token, failures, error_message FROM returned;
DROP TABLE returned;
DELETE FROM sync_state;

-- however it is called
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', t('-1 min') + n * '1 s'::interval
FROM generate_series(1, 12) AS n;
SELECT count(*) FROM (SELECT claim_due_syncs('google_calendar', 2)) AS c;
SELECT count(c) FROM (VALUES (2), (3)) AS v (n), claim_due_syncs('google_calendar', v.n) AS c;
WITH c AS (SELECT * FROM claim_due_syncs(max_rows => 2)) SELECT count(*) FROM c;
PREPARE c (integer) AS SELECT name(c) FROM claim_due_syncs(max_rows => $1) AS c;
EXECUTE c (2);
EXECUTE c (2);
DEALLOCATE c;
-- and not where nothing may be written
BEGIN READ ONLY;
SELECT sqlstate_of('SELECT claim_due_syncs()') AS claim,
	sqlstate_of('SELECT get_users_needing_sync(''google_calendar'')') AS users,
	sqlstate_of('SELECT next_sync_due()') AS next;
ROLLBACK;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- max_rows
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', t('-1 min') FROM generate_series(1, 12000) AS n;
SELECT max_rows, sqlstate_of(format('SELECT claim_due_syncs(max_rows => %L)', max_rows))
FROM (VALUES (NULL), (-1), (0), (10001), (2147483647)) AS v (max_rows);
SELECT count(*) FROM sync_state WHERE lease > 0;
SELECT count(*) AS ten_by_default FROM claim_due_syncs();
SELECT count(*) AS one FROM claim_due_syncs(max_rows => 1);
SELECT count(*) AS ten_thousand FROM claim_due_syncs(max_rows => 10000);
SELECT count(*) AS the_rest FROM claim_due_syncs(max_rows => 10000);
SELECT lease, count(*) FROM sync_state GROUP BY lease;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- lease_time: the argument, else the policy's
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), s, t('-1 min') FROM generate_series(1, 5) AS n,
	unnest(ARRAY['google_calendar', 'google_tasks']::sync_source[]) AS s;
SELECT lease_time, sqlstate_of(format('SELECT claim_due_syncs(lease_time => %L)', lease_time))
FROM (VALUES ('0'), ('-1 s'), ('999999 us'), ('1 day 00:00:00.000001'), ('1 mon')) AS v (lease_time);
SELECT count(*) FROM sync_state WHERE lease > 0;
SELECT lease_time FROM set_sync_policy('google_tasks', '{"lease_time": "90 s"}');
SELECT v.lease_time, source, distance(lease_expires_at) AS ends
FROM (VALUES (NULL), ('1 s'::interval), ('1 day')) AS v (lease_time),
	claim_due_syncs('google_calendar', 1, v.lease_time);
SELECT v.lease_time, source, distance(lease_expires_at) AS ends
FROM (VALUES (NULL), ('1 s'::interval), ('1 day')) AS v (lease_time),
	claim_due_syncs('google_tasks', 1, v.lease_time);
-- each source its own, in one claim
SELECT source, distance(lease_expires_at) AS ends, count(*)
FROM claim_due_syncs(max_rows => 100) GROUP BY 1, 2 ORDER BY 1, 2;
SELECT lease_time FROM set_sync_policy('google_tasks', '{"lease_time": null}');
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- Who is claimable: rows of each status that were or will be due, requested or
-- not, parked or not, with a lease that runs or has run out
-- ---------------------------------------------------------------------
CREATE TABLE kinds AS
SELECT row_number() OVER () AS kind, status, due, requested, parked_reason, lease_end
FROM unnest(enum_range(NULL::sync_status)) AS status,
	unnest(ARRAY['-1 min', '1 min']::interval[]) AS due,
	unnest(ARRAY[NULL, '-2 min']::interval[]) AS requested,
	unnest(ARRAY[NULL, 'paused', 'auth', 'failures', 'token_loop']) AS parked_reason,
	unnest(ARRAY[NULL, '0 s', '1 us', '5 min']::interval[]) AS lease_end
WHERE (lease_end IS NOT NULL) = (status = 'syncing');
INSERT INTO sync_state (user_id, source, resource, status, due_at, requested_at, parked_reason, lease_expires_at, lease)
SELECT u(1), 'google_calendar', kind, status,
	CASE WHEN parked_reason IS NULL THEN t(due) END,
	t(requested), parked_reason, t(lease_end), 7
FROM kinds;
CREATE TABLE claimed AS SELECT * FROM claim_due_syncs('google_calendar', 1000);
SELECT kinds.status, due, requested, kinds.parked_reason, lease_end,
	lease - 7 AS leases, failures
FROM kinds JOIN claimed AS c ON c.resource = kind::text
ORDER BY kinds.status, due, requested, lease_end;
-- the statuses above are those before the claim; what the claim did not return
-- it did not touch
SELECT c.status, count(*), count(*) FILTER (WHERE s.lease = 7) AS untouched
FROM sync_state AS s LEFT JOIN claimed AS c USING (user_id, source, resource)
GROUP BY 1 ORDER BY 1;
-- parked rows are not claimed at any time
CALL clock('1000 years');
SELECT count(*) AS claimed, count(parked_reason) AS parked
FROM claim_due_syncs('google_calendar', 1000);
SELECT count(*) AS parked, count(*) FILTER (WHERE lease = 7) AS untouched
FROM sync_state WHERE parked_reason IS NOT NULL;
CALL clock('0 s');
DROP TABLE kinds, claimed;
DELETE FROM sync_state;

-- the same by the calls of a life: a rate limit is waited out whatever is
-- requested, and a backoff as long as retry_base
SELECT status FROM mark_sync_started(u(1), 'google_calendar');
SELECT status FROM mark_rate_limited(u(1), 'google_calendar', '5 min', lease => 1);
SELECT status FROM mark_sync_started(u(2), 'google_calendar');
SELECT status FROM mark_sync_failed(u(2), 'google_calendar', 'oops', lease => 1);
SELECT n, request_sync(u(n), 'google_calendar') FROM generate_series(1, 2) AS n;
SELECT claim('google_calendar');
CALL clock('29.999999 s');
SELECT claim('google_calendar');
CALL clock('30 s');
SELECT claim('google_calendar');
CALL clock('4 min 59 s');
SELECT claim('google_calendar');
CALL clock('6 min');		-- five minutes, and at most a tenth
SELECT claim('google_calendar');
DELETE FROM sync_state;
CALL clock('0 s');

-- ---------------------------------------------------------------------
-- Leases: one that lives is passed over, one that ran out is a failure
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_calendar', t('-1 h'));
SELECT claim('google_calendar', lease_time => '10 min');
CALL clock('9 min 59.999999 s');
SELECT claim('google_calendar');
CALL clock('10 min');
SELECT distance(due_at) AS due_at, lease, distance(lease_expires_at) AS lease_expires_at,
	distance(last_sync_at) AS last_sync_at, failures, distance(failing_since) AS failing_since
FROM claim_due_syncs('google_calendar', lease_time => '10 min');
-- at once the first time, and then by backoff
CALL clock('20 min 29.999999 s');
SELECT claim('google_calendar');
CALL clock('21 min');
SELECT distance(due_at) AS due_at, lease, distance(lease_expires_at) AS lease_expires_at,
	distance(last_sync_at) AS last_sync_at, failures, distance(failing_since) AS failing_since
FROM claim_due_syncs('google_calendar', lease_time => '10 min');
-- rows that are lost together part, also where they are requested meanwhile
BEGIN;
INSERT INTO sync_state (user_id, source, due_at, last_sync_at, failures, failing_since, status, lease, lease_expires_at)
SELECT u(n), 'google_tasks', t('0 s'), t('20 min'), 1, t('10 min'), 'syncing', 2, t('25 min') FROM generate_series(11, 30) AS n;
SELECT count(request_sync(user_id, source)) FROM sync_state WHERE source = 'google_tasks';
SELECT count(DISTINCT due_from(s)) AS times, min(due_from(s)) >= t('25 min 15 s') AS not_before, max(due_from(s)) <= t('25 min 30 s') AS nor_after
FROM sync_state AS s WHERE source = 'google_tasks';
CALL clock('25 min');
SELECT count(*) FROM claim_due_syncs('google_tasks', 100);
CALL clock('25 min 30 s');
SELECT count(*) FROM claim_due_syncs('google_tasks', 100);
ROLLBACK;
-- a renewed one lives longer
CALL clock('29 min');
SELECT distance(lease_expires_at) FROM renew_sync_lease(u(1), 'google_calendar', 3, '1 h');
CALL clock('1 h 28 min 59.999999 s');
SELECT claim('google_calendar');
CALL clock('1 h 31 min');
SELECT lease, failures FROM claim_due_syncs('google_calendar');
-- a lease that ran out and was reported all the same is no failure
CALL clock('3 h');
SELECT status, failures, distance(due_at) > '3 h' AS due_later
FROM mark_sync_completed(u(1), 'google_calendar', lease => 4);
SELECT claim('google_calendar');
-- nor is one that was given back; the row is due at once
CALL clock('4 h');
SELECT lease FROM claim_due_syncs('google_calendar');
SELECT status FROM release_sync(u(1), 'google_calendar', 5);
SELECT lease, failures FROM claim_due_syncs('google_calendar');
DELETE FROM sync_state;
CALL clock('0 s');

-- at both limits of failures the claim parks the row instead of handing it out
SELECT max_failures, park_after
FROM set_sync_policy('google_calendar', '{"max_failures": 3, "park_after": "1 h"}');
INSERT INTO sync_state (user_id, source, status, lease, due_at, lease_expires_at, failures, failing_since, requested_at) VALUES
	(u(1), 'google_calendar', 'syncing', 7, t('-2 h'), t('0 s'), 2, t('-1 h'), NULL),	-- both
	(u(2), 'google_calendar', 'syncing', 7, t('-2 h'), t('-2 min'), 2, t('-59 min 59.999999 s'), NULL),
	(u(3), 'google_calendar', 'syncing', 7, t('-2 h'), t('-1 min'), 1, t('-1 h'), NULL),
	(u(4), 'google_calendar', 'syncing', 7, t('-2 h'), t('1 us'), 2, t('-1 h'), NULL),	-- still held
	(u(5), 'google_calendar', 'error', 7, t('-2 h'), NULL, 9, t('-9 h'), NULL),			-- its last chance
	(u(6), 'google_calendar', 'syncing', 7, t('-2 h'), t('0 s'), 9, t('-9 h'), t('-1 s')),	-- both, requested
	(u(7), 'google_calendar', 'idle', 7, t('-1 h'), NULL, 0, NULL, NULL);
SELECT string_agg(right(u::text, 1), ' ') AS users FROM get_users_needing_sync('google_calendar') AS u;
SELECT claim('google_calendar', 2);		-- two of those that are left
SELECT claim('google_calendar', 10);
SELECT name(s), status, parked_reason, due_at IS NULL AS never_due, lease, lease_expires_at IS NULL AS not_held,
	failures, distance(failing_since) AS failing_since, error_message, distance(updated_at) AS updated_at
FROM sync_state AS s WHERE parked_reason IS NOT NULL ORDER BY 1;
SELECT failures, parked_reason FROM mark_sync_failed(u(5), 'google_calendar', 'oops', lease => 8);
SELECT max_failures, park_after
FROM set_sync_policy('google_calendar', '{"max_failures": null, "park_after": null}');
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- A cursor that the provider has forgotten is handed out cleared
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, sync_token, history_id, updated_min, token_issued_at, last_full_sync_at,
						page_token, progress_done, progress_total, token_losses, due_at)
SELECT u(n), v.source, v.sync_token, v.history_id, v.updated_min, t(v.issued), t(v.full_sync), 'page', 1, 2, 1, t('-1 min')
FROM (VALUES
	(1, 'google_gmail'::sync_source, NULL, '123', NULL::timestamptz, '-7 days'::interval, '-99 days'::interval),
	(2, 'google_gmail', NULL, '123', NULL, '-7 days -1 us', '-1 day'),
	(3, 'google_contacts', 'token', NULL, NULL, '-1 day', '-5.59 days'),	-- before 0.8 of the life
	(4, 'google_contacts', 'token', NULL, NULL, '-1 day', '-5.951 days'),	-- after 0.85 of it
	(5, 'google_contacts', 'token', NULL, NULL, '-5.951 days', NULL),		-- none known: from the token
	(6, 'google_calendar', 'token', NULL, NULL, '-999 days', '-999 days'),	-- these live for ever
	(7, 'google_tasks', NULL, NULL, '2020-01-01 00:00+00', '-999 days', '-999 days'),
	(8, 'google_gmail', NULL, NULL, NULL, NULL, '-99 days')					-- none to lose
) AS v (n, source, sync_token, history_id, updated_min, issued, full_sync);
SELECT name(c), source, coalesce(sync_token, history_id, updated_min AT TIME ZONE 'UTC' || '') AS cursor,
	distance(token_issued_at) AS issued, distance(last_full_sync_at) AS full_sync, page_token, progress_done, progress_total,
	token_losses, failures, status
FROM claim_due_syncs(max_rows => 100) AS c ORDER BY 1;
SELECT count(*) AS as_returned FROM sync_state WHERE sync_token IS NULL AND user_id = u(4);
-- what follows is a full sync
CALL clock('1 min');
SELECT sync_token, distance(token_issued_at) AS issued, distance(last_full_sync_at) AS full_sync, token_losses
FROM mark_sync_completed(u(4), 'google_contacts', sync_token => 'new', lease => 1);
CALL clock('0 s');
DELETE FROM sync_state;
-- planned full syncs of many rows do not fall on one moment
INSERT INTO sync_state (user_id, source, sync_token, token_issued_at, last_full_sync_at, due_at)
SELECT u(n), 'google_contacts', 'token', t('-1 day'), t('-7 days'::interval * 0.825), t('-1 min')
FROM generate_series(1, 1000) AS n;
SELECT count(*) AS claimed, count(*) FILTER (WHERE sync_token IS NULL) BETWEEN 300 AND 700 AS about_half_cleared
FROM claim_due_syncs(max_rows => 1000);
DELETE FROM sync_state;
-- another life, by policy
SELECT token_ttl FROM set_sync_policy('google_calendar', '{"token_ttl": "1 day", "token_ttl_from": "token"}');
INSERT INTO sync_state (user_id, source, sync_token, token_issued_at, due_at) VALUES
	(u(1), 'google_calendar', 'token', t('-1 day'), t('-1 min')),
	(u(2), 'google_calendar', 'token', t('-1 day -1 us'), t('-1 min'));
SELECT name(c), sync_token FROM claim_due_syncs() AS c ORDER BY 1;
SELECT token_ttl FROM set_sync_policy('google_calendar', '{"token_ttl": null, "token_ttl_from": null}');
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- A paused source is skipped, and its rows come back one by one
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, due_at, requested_at)
SELECT u(n), s, t('-1 min') - n * '1 s'::interval, CASE WHEN n % 2 = 0 THEN t('-1 s') END
FROM generate_series(1, 200) AS n,
	unnest(ARRAY['google_calendar', 'google_tasks']::sync_source[]) AS s;
SELECT distance(paused_until) AS paused_until, rate_limit_wait
FROM set_sync_policy('google_calendar', jsonb_build_object('paused_until', t('1 h')));
CREATE TABLE opened (at interval, user_id uuid UNIQUE);
CREATE PROCEDURE open_at(at interval) LANGUAGE plpgsql AS $$
DECLARE
	seen uuid[];
BEGIN
	CALL clock(at);
	seen := ARRAY(SELECT u FROM get_users_needing_sync('google_calendar') AS u ORDER BY u);
	INSERT INTO opened SELECT at, user_id FROM claim_due_syncs('google_calendar', 10000);
	IF seen IS DISTINCT FROM ARRAY(SELECT user_id FROM opened AS o WHERE o.at = open_at.at ORDER BY 1) THEN
		RAISE 'get_users_needing_sync sees other rows than a claim takes at %', at;
	END IF;
END
$$;
CALL open_at('0 s');
CALL open_at('59 min 59.999999 s');
SELECT count(*) AS while_paused FROM opened;
SELECT source, count(*) FROM claim_due_syncs(max_rows => 10) GROUP BY source;	-- the other one has it all
SELECT distance(next_sync_due('google_calendar')) BETWEEN '1 h' AND '1 h 10 s' AS next_after_the_pause;
CALL open_at('1 h');
CALL open_at('1 h 30 s');
CALL open_at('1 h 59.999 s');
CALL open_at('1 h 1 min');
CALL open_at('1 h 2 min');
SELECT count(*) FILTER (WHERE at = '1 h') < 20 AS none_at_once,
	count(*) FILTER (WHERE at <= '1 h 30 s') BETWEEN 70 AND 130 AS about_half_in_half_the_time,
	count(*) FILTER (WHERE at <= '1 h 1 min') AS all_in_time, count(*)
FROM opened;
-- by a part of the row's own: at the same moment after another pause
CALL clock('2 h');
SELECT count(*) AS completed FROM opened AS o, mark_sync_completed(o.user_id, 'google_calendar');
UPDATE sync_state SET due_at = t('2 h') WHERE source = 'google_calendar';
CREATE TABLE opened_before AS TABLE opened;
TRUNCATE opened;
SELECT distance(paused_until) AS paused_until
FROM set_sync_policy('google_calendar', jsonb_build_object('paused_until', t('3 h')));
CALL open_at('3 h');
CALL open_at('3 h 30 s');
SELECT count(*) > 0 AS some, count(*) FILTER (WHERE b.at = a.at - '2 h'::interval) = count(*) AS the_same
FROM opened AS a LEFT JOIN opened_before AS b USING (user_id);
-- set free before the end
SELECT paused_until FROM set_sync_policy('google_calendar', '{"paused_until": null}');
CALL open_at('3 h 30.000001 s');
SELECT count(*) AS all_at_once FROM opened;
-- without an end
SELECT distance(next_sync_due('google_calendar')) AS next;
SELECT paused_until FROM set_sync_policy('google_calendar', '{"paused_until": "infinity"}');
SELECT next_sync_due('google_calendar') AS next;
CALL clock('1000 years');
SELECT claim('google_calendar'), (SELECT count(*) FROM get_users_needing_sync('google_calendar')) AS users;
-- a direct write of the policy counts at once, too
DELETE FROM sync_policy WHERE source = 'google_calendar';
SELECT count(*) FROM claim_due_syncs('google_calendar', 1000);
CALL clock('0 s');
DROP TABLE opened, opened_before;
DROP PROCEDURE open_at;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- Fair shares of the lanes: a flood of requests slows what is due, but never
-- stops it
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, due_at, requested_at)
SELECT u(n), 'google_calendar', t(CASE WHEN n > 1000 THEN '1 h' ELSE '-1 h' END::interval),
	CASE WHEN n > 1000 THEN t('-1 s') END
FROM generate_series(1, 2000) AS n;
CREATE FUNCTION shares(max_rows integer, OUT requested bigint, OUT due bigint) LANGUAGE sql
BEGIN ATOMIC
	SELECT count(*) FILTER (WHERE user_id > u(1000)), count(*) FILTER (WHERE user_id <= u(1000))
	FROM claim_due_syncs('google_calendar', max_rows);
END;
SELECT * FROM shares(100);
SELECT * FROM shares(4);
-- one by one it is each fourth claim, wherever one begins to count
CREATE TABLE turns (turn integer, requested bigint, due bigint);
DO $$
BEGIN
	FOR turn IN 1 .. 40 LOOP
		INSERT INTO turns SELECT turn, s.* FROM shares(1) AS s;
	END LOOP;
END
$$;
SELECT requested, due, count(*) FROM turns GROUP BY requested, due ORDER BY requested;
SELECT DISTINCT turn - before AS distance
FROM (SELECT turn, lag(turn) OVER (ORDER BY turn) AS before FROM turns WHERE due = 1) AS x
WHERE before IS NOT NULL;
TRUNCATE turns;
-- in small portions of changing size it is a fourth of all, too
DO $$
BEGIN
	FOR turn IN 1 .. 60 LOOP
		INSERT INTO turns SELECT turn, s.* FROM shares(1 + turn % 3) AS s;
	END LOOP;
END
$$;
SELECT sum(requested) AS requested, sum(due) AS due FROM turns;
-- where one lane has too little, the other has the rest
DELETE FROM sync_state WHERE user_id <= u(1000) OR lease > 0;
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', t('-1 h') FROM generate_series(1, 5) AS n;
SELECT * FROM shares(100);
DELETE FROM sync_state;
INSERT INTO sync_state (user_id, source, due_at, requested_at)
SELECT u(n), 'google_calendar', t(CASE WHEN n > 1000 THEN '1 h' ELSE '-1 h' END::interval),
	CASE WHEN n > 1000 THEN t('-1 s') END
FROM generate_series(901, 1005) AS n;
SELECT * FROM shares(50);
DROP TABLE turns;
DROP FUNCTION shares;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- Fair shares of the sources, which other tests may have added to
-- ---------------------------------------------------------------------
SELECT cardinality(enum_range(NULL::sync_source)) AS sources \gset
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), s, t('-1 h')
FROM generate_series(1, 300) AS n,
	unnest(ARRAY['google_calendar', 'google_tasks', 'google_gmail', 'google_contacts']::sync_source[]) AS s;
-- an equal part of what fits, at least
SELECT source, count(*) >= 10 AS fair FROM claim_due_syncs(max_rows => 10 * :sources)
GROUP BY source ORDER BY source;
-- what is too small for parts goes to each in turn
CREATE TABLE turns (turn integer, source sync_source);
DO $$
BEGIN
	FOR turn IN 1 .. 3 * cardinality(enum_range(NULL::sync_source)) LOOP
		INSERT INTO turns SELECT turn, c.source FROM claim_due_syncs(max_rows => 1) AS c;
	END LOOP;
END
$$;
SELECT source, count(*) >= 3 AS fair FROM turns GROUP BY source ORDER BY source;
SELECT count(*) = 3 * :sources AS each_found_one FROM turns;
TRUNCATE turns;
-- two at a time, too
DO $$
BEGIN
	FOR turn IN 1 .. 3 * cardinality(enum_range(NULL::sync_source)) LOOP
		INSERT INTO turns SELECT turn, c.source FROM claim_due_syncs(max_rows => 2) AS c;
	END LOOP;
END
$$;
SELECT source, count(*) >= 3 AS fair FROM turns GROUP BY source ORDER BY source;
SELECT count(*) = 6 * :sources AS each_found_two FROM turns;
-- what some leave over, others have
DELETE FROM sync_state WHERE user_id > u(2) AND source <> 'google_gmail';
UPDATE sync_state SET status = 'idle', due_at = t('-2 h');
SELECT count(*) AS all_wanted, count(*) FILTER (WHERE source <> 'google_gmail') AS of_the_small
FROM claim_due_syncs(max_rows => 100);
-- a source that is named gets nothing of another
SELECT source, count(*) FROM claim_due_syncs('google_gmail', 1000) GROUP BY source;
DROP TABLE turns;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- Looking: get_users_needing_sync takes nothing and locks nothing
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, resource, due_at, requested_at, last_sync_at) VALUES
	(u(1), 'google_calendar', 'a', t('-1 min'), NULL, t('-1 h')),
	(u(1), 'google_calendar', 'b', t('-9 min'), NULL, NULL),
	(u(2), 'google_calendar', 'a', t('-2 min'), NULL, t('-1 h -1 us')),
	(u(2), 'google_calendar', 'b', t('1 min'), NULL, NULL),
	(u(3), 'google_calendar', 'a', t('1 min'), t('-1 s'), t('-2 h')),
	(u(3), 'google_calendar', 'b', t('-99 min'), NULL, t('-1 min')),
	(u(4), 'google_calendar', 'a', t('-3 min'), NULL, t('-1 min')),
	(u(5), 'google_calendar', 'a', t('1 min'), NULL, NULL),
	(u(6), 'google_tasks', 'a', t('-1 min'), NULL, NULL);
CREATE FUNCTION users(source sync_source, stale_after interval DEFAULT NULL, max_rows integer DEFAULT NULL)
RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT coalesce(string_agg(right(c.u::text, 1), ' ' ORDER BY c.n), 'nobody')
	FROM (SELECT u, row_number() OVER () AS n
		  FROM get_users_needing_sync(source, stale_after, max_rows) AS u) AS c;
END;
BEGIN;
SELECT users('google_calendar');
SELECT users('google_calendar', max_rows => 2);
SELECT users('google_calendar', '1 h');		-- longer ago than this, or never
SELECT users('google_calendar', '1 h', 1);
SELECT users('google_calendar', '3650 days');
SELECT users('google_calendar', '0');
SELECT users('google_gmail');
SELECT next_sync_due() IS NOT NULL AS next;
SELECT pg_current_xact_id_if_assigned() IS NULL AS nothing_locked_nor_written;
COMMIT;
SELECT count(*) AS taken FROM sync_state WHERE lease > 0 OR xmax <> 0;
SELECT args, sqlstate_of('SELECT get_users_needing_sync(' || args || ')')
FROM (VALUES ('NULL'), ('''google_tasks'', ''-1 s'''), ('''google_tasks'', NULL, 0'),
	('''google_tasks'', NULL, -1'), ('''google_tasks'', NULL, 10001'), ('''google_tasks'', NULL, 10000')) AS v (args);
DROP FUNCTION users;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- In whatever state, three agree: what a claim takes, what looking promises,
-- and the contract, put into SQL; and next_sync_due names the moment from
-- which on a claim finds something
-- ---------------------------------------------------------------------
CREATE FUNCTION some_time() RETURNS timestamptz LANGUAGE sql VOLATILE
RETURN t((ARRAY['-1 h', '-1 min', '-1 us', '0 s', '1 us', '1 min', '1 h']::interval[])[1 + floor(random() * 7)::integer]
		 + (CASE WHEN random() < 0.5 THEN floor(random() * 1e6) ELSE 0 END) * '1 us'::interval);

-- Rows in random states; few users, so that some have many rows.
CREATE PROCEDURE scramble(nrows integer, pause boolean) LANGUAGE plpgsql AS $$
DECLARE
	chosen sync_source;
BEGIN
	DELETE FROM sync_state;
	DELETE FROM sync_policy;
	INSERT INTO sync_state (user_id, source, resource, status, lease, lease_expires_at, due_at, parked_reason,
							requested_at, failures, failing_since, last_sync_at)
	SELECT u(r.of_user), (ARRAY['google_calendar', 'google_tasks']::sync_source[])[r.of_source], r.i,
		r.status, 5, CASE WHEN r.status = 'syncing' THEN some_time() END,
		CASE WHEN r.parked IS NULL THEN some_time() END, r.parked,
		CASE WHEN r.requested THEN some_time() END,
		r.failures, CASE WHEN r.failures > 0 THEN some_time() END,
		CASE WHEN r.started THEN some_time() END
	FROM (SELECT i, 1 + floor(random() * 5)::integer AS of_user,
			  1 + floor(random() * 2)::integer AS of_source,
			  ('{idle,syncing,syncing,error,rate_limited}'::sync_status[])[1 + floor(random() * 5)::integer] AS status,
			  CASE WHEN random() < 0.2 THEN 'auth' END AS parked,
			  random() < 0.4 AS requested, random() < 0.8 AS started,
			  floor(random() * 4)::integer AS failures
		  FROM generate_series(1, nrows) AS i OFFSET 0) AS r;
	IF random() < 0.8 THEN
		PERFORM set_sync_policy('google_calendar', '{"max_failures": 2, "park_after": "1 min"}');
	END IF;
	IF pause THEN
		FOREACH chosen IN ARRAY ARRAY['google_calendar', 'google_tasks'] LOOP
			IF random() < 0.7 THEN
				PERFORM set_sync_policy(chosen, jsonb_build_object(
					'paused_until', CASE WHEN random() < 0.2 THEN 'infinity' ELSE some_time() END,
					'rate_limit_wait', CASE WHEN random() < 0.5 THEN '1 s' ELSE '1 h' END));
			END IF;
		END LOOP;
	END IF;
END
$$;

-- What a claim would find at a time: the rows and their users in the order in
-- which they come, and how many rows it would park.  All of it is undone.
CREATE FUNCTION trial(at timestamptz, source sync_source, OUT taken text[], OUT users uuid[], OUT parked bigint)
LANGUAGE plpgsql AS $$
BEGIN
	CALL clock_at(at);
	BEGIN
		SELECT coalesce(array_agg(name(c.s) ORDER BY c.n), '{}'), coalesce(array_agg((c.s).user_id ORDER BY c.n), '{}')
		INTO taken, users
		FROM (SELECT s, row_number() OVER () AS n FROM claim_due_syncs(trial.source, 10000) AS s) AS c;
		SELECT count(*) INTO parked FROM sync_state AS s WHERE s.parked_reason = 'failures';
		RAISE SQLSTATE 'UNDO0';
	EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
		NULL;
	END;
END
$$;

-- When a row opens, between these two: the wait after a lease that ran out is
-- the run's own.
CREATE FUNCTION opens(s sync_state, OUT earliest timestamptz, OUT latest timestamptz) LANGUAGE plpgsql AS $$
DECLARE
	p sync_policy := get_sync_policy(s.source);
	asked timestamptz;
	wait interval := '0';
	lost interval;	-- and after a request
BEGIN
	IF s.failures > 0 AND s.status = 'syncing'
		AND (s.failures + 1 < p.max_failures OR s.lease_expires_at - s.failing_since < p.park_after) THEN
		wait := p.retry_base * 2 ^ s.failures;
	END IF;
	IF s.requested_at IS NOT NULL AND s.status <> 'rate_limited' THEN
		asked := greatest(s.requested_at, CASE WHEN s.last_sync_at IS NOT NULL THEN least(s.last_sync_at, s.requested_at)
			+ CASE WHEN s.failures > 0 THEN greatest(p.request_gap, p.retry_base) ELSE p.request_gap END END);
		lost := CASE WHEN s.status = 'syncing' AND s.failures > 0 THEN p.retry_base END;
	END IF;
	earliest := greatest(s.lease_expires_at, least(greatest(s.due_at, s.lease_expires_at + wait / 2), greatest(asked, s.lease_expires_at + lost / 2)));
	latest := greatest(s.lease_expires_at, least(greatest(s.due_at, s.lease_expires_at + wait), greatest(asked, s.lease_expires_at + lost)));
END
$$;

CREATE TABLE rounds (round integer, source sync_source, taken bigint, parked bigint,
					 as_contract boolean, as_promised boolean, in_part boolean);
DO $$
DECLARE
	chosen sync_source;
	found record;
	promised uuid[];
	part uuid[];
	expected text[];
	hopeless bigint;
	policy sync_policy;
BEGIN
	PERFORM setseed(0.4711);
	FOR round IN 1 .. 200 LOOP
		CALL clock('0 s');
		CALL scramble(20, false);
		FOREACH chosen IN ARRAY ARRAY['google_calendar', 'google_tasks'] LOOP
			found := trial(t('0 s'), chosen);

			policy := get_sync_policy(chosen);
			SELECT coalesce(array_agg(name(s)), '{}')
			INTO expected
			FROM sync_state AS s
			WHERE s.source = chosen AND s.parked_reason IS NULL AND due_from(s) <= t('0 s');
			SELECT count(*) INTO hopeless
			FROM sync_state AS s
			WHERE name(s) = ANY (expected) AND s.source = chosen AND s.status = 'syncing'
				AND s.failures + 1 >= policy.max_failures AND s.failing_since <= t('0 s') - policy.park_after;

			promised := ARRAY(SELECT get_users_needing_sync(chosen));
			part := ARRAY(SELECT get_users_needing_sync(chosen, max_rows => 2));
			INSERT INTO rounds VALUES (round, chosen, cardinality(found.taken), found.parked,
				found.taken <@ expected AND found.parked = hopeless
				AND cardinality(found.taken) + hopeless = cardinality(expected)
				AND NOT EXISTS (SELECT FROM sync_state AS s, opens(s) AS o
								WHERE s.parked_reason IS NULL AND due_from(s) NOT BETWEEN o.earliest AND o.latest),
				promised = ARRAY(SELECT u FROM unnest(found.users) WITH ORDINALITY AS x (u, n) GROUP BY u ORDER BY min(n)),
				part = promised[1 : 2]);
		END LOOP;
	END LOOP;
END
$$;
SELECT count(*) AS rounds, bool_and(as_contract) AS as_contract, bool_and(as_promised) AS as_promised,
	bool_and(in_part) AS in_part, sum(taken) > 500 AS many_taken, sum(parked) > 5 AS some_parked
FROM rounds;
SELECT * FROM rounds WHERE NOT (as_contract AND as_promised AND in_part) ORDER BY round, source LIMIT 5;

CREATE TABLE moments (round integer, source sync_source, kind text, ok boolean, next interval);
DO $$
DECLARE
	chosen sync_source;
	next timestamptz;
	before record;
	after record;
BEGIN
	PERFORM setseed(0.0815);
	FOR round IN 1 .. 150 LOOP
		CALL clock('0 s');
		CALL scramble(1 + round % 5, true);
		FOREACH chosen IN ARRAY ARRAY['google_calendar', 'google_tasks', NULL]::sync_source[] LOOP
			CALL clock('0 s');
			next := next_sync_due(chosen);
			IF next IS NULL THEN
				before := trial(t('1000 years'), chosen);
				INSERT INTO moments VALUES (round, chosen, 'never', cardinality(before.taken) + before.parked = 0, NULL);
			ELSIF next <= t('0 s') THEN
				after := trial(t('0 s'), chosen);
				INSERT INTO moments VALUES (round, chosen, 'now', cardinality(after.taken) + after.parked > 0, distance(next));
			ELSE
				before := trial(next - '1 us'::interval, chosen);
				after := trial(next, chosen);
				INSERT INTO moments VALUES (round, chosen, 'later',
					cardinality(before.taken) + before.parked = 0 AND cardinality(after.taken) + after.parked > 0, distance(next));
				CALL clock_at(next - '1 us'::interval);
				INSERT INTO moments VALUES (round, chosen, 'later, again', next_sync_due(chosen) = next, distance(next));
			END IF;
		END LOOP;
	END LOOP;
END
$$;
SELECT kind, count(*) > 20 AS many, bool_and(ok) AS ok FROM moments GROUP BY kind ORDER BY kind;
SELECT * FROM moments WHERE NOT ok ORDER BY round, source LIMIT 5;
CALL clock('0 s');
DROP TABLE rounds, moments;
DROP PROCEDURE scramble;
DROP FUNCTION trial, some_time, opens;
DELETE FROM sync_policy;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- A claim that is undone leaves nothing; one in the same transaction sees what
-- the transaction did
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', t('-1 h') + n * '1 s'::interval FROM generate_series(1, 6) AS n;
CREATE TABLE before AS TABLE sync_state;
BEGIN;
SELECT claim('google_calendar', 4);
SELECT claim('google_calendar', 4);
ROLLBACK;
BEGIN;
SELECT claim('google_calendar', 1);
SAVEPOINT s;
SELECT claim('google_calendar', 2);
SAVEPOINT s2;
SELECT claim('google_calendar', 2);
ROLLBACK TO s;
SELECT claim('google_calendar', 2);
RELEASE s;
SELECT claim('google_calendar', 2);
ROLLBACK;
SELECT count(*) AS unchanged FROM sync_state AS s JOIN before AS b ON b = s;
-- rows that this transaction made, changed, locked or requested
BEGIN;
INSERT INTO sync_state (user_id, source, due_at) VALUES (u(10), 'google_calendar', t('-2 h'));
UPDATE sync_state SET due_at = t('-3 h') WHERE user_id = u(6);
UPDATE sync_state SET due_at = t('1 h') WHERE user_id = u(5);
DELETE FROM sync_state WHERE user_id = u(4);
SELECT name(s) FROM sync_state AS s WHERE user_id = u(2) FOR UPDATE;
SELECT request_sync(u(3), 'google_calendar');
SELECT claim('google_calendar');
SELECT count(*) FROM mark_sync_completed(u(3), 'google_calendar', lease => 1);
SELECT request_sync(u(3), 'google_calendar');
SELECT claim('google_calendar');
CALL clock('10 s');
SELECT claim('google_calendar');
ROLLBACK;
SELECT count(*) AS unchanged FROM sync_state AS s JOIN before AS b ON b = s;
SELECT claim('google_calendar');
DROP TABLE before;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- Many rows of one due time: each comes once
-- ---------------------------------------------------------------------
CREATE TABLE handed_out (user_id uuid, resource text, lease bigint, PRIMARY KEY (user_id, resource, lease));
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', t('-1 h') FROM generate_series(1, 5000) AS n;
INSERT INTO sync_state (user_id, source, resource, due_at)
SELECT u(0), 'google_calendar', n, t('-1 h') FROM generate_series(1, 3000) AS n;
INSERT INTO sync_state (user_id, source, due_at, requested_at)
SELECT u(n), 'google_calendar', t('1 h'), t('-1 h') FROM generate_series(5001, 6000) AS n;
DO $$
DECLARE
	portion integer := 1;
	n integer;
BEGIN
	LOOP
		INSERT INTO handed_out SELECT user_id, resource, lease FROM claim_due_syncs('google_calendar', portion);
		GET DIAGNOSTICS n = ROW_COUNT;
		EXIT WHEN n = 0;
		portion := 1 + portion * 7 % 499;
		COMMIT;
	END LOOP;
END
$$;
SELECT count(*), count(DISTINCT (user_id, resource)), max(lease) FROM handed_out;
TRUNCATE handed_out;
DELETE FROM sync_state;

-- ---------------------------------------------------------------------
-- The same by the real clock, where a claim goes on from where the last one
-- came to, and goes back over what that has passed, step by step.  This session
-- remembers places of another time.
-- ---------------------------------------------------------------------
RESET syncstate.clock;
SELECT request_gap FROM set_sync_policy('google_calendar', '{"request_gap": 0}');

-- Claims until "wanted" rows came, or for two minutes: no claim but for what it
-- finds tells how far the session is.
CREATE PROCEDURE claim_until(wanted bigint, portion integer) LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + '2 min'::interval;
	n bigint;
BEGIN
	LOOP
		INSERT INTO handed_out SELECT user_id, resource, lease FROM claim_due_syncs('google_calendar', portion);
		GET DIAGNOSTICS n = ROW_COUNT;
		COMMIT;
		wanted := wanted - n;
		EXIT WHEN wanted <= 0 OR clock_timestamp() > deadline;
		IF n = 0 THEN
			PERFORM pg_sleep(0.02);
		END IF;
	END LOOP;
END
$$;

INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', now() - '1 h'::interval FROM generate_series(1, 17000) AS n;
INSERT INTO sync_state (user_id, source, resource, due_at)
SELECT u(0), 'google_calendar', n, now() - '1 h'::interval FROM generate_series(1, 3000) AS n;
CALL claim_until(20000, 100);
SELECT count(*), count(DISTINCT (user_id, resource)), max(lease) FROM handed_out;
TRUNCATE handed_out;
DELETE FROM sync_state;

-- a new session, with some of the rows before its mark, some behind it, and
-- some requested
\c -
SET search_path = regress_syncstate_claim, syncstate;
INSERT INTO sync_state (user_id, source, due_at, requested_at)
SELECT u(n), 'google_calendar', now() - CASE n % 4 WHEN 0 THEN '1 h' WHEN 1 THEN '50 s' ELSE '-1 h' END::interval,
	CASE n % 4 WHEN 2 THEN now() WHEN 3 THEN now() - '1 h'::interval END
FROM generate_series(1, 20000) AS n;
CALL claim_until(20000, 99);
SELECT count(*), count(DISTINCT (user_id, resource)), max(lease) FROM handed_out;
TRUNCATE handed_out;
DELETE FROM sync_state;

-- a few at a time, due close together, far apart, and at once: each claim finds
-- the next ones
\c -
SET search_path = regress_syncstate_claim, syncstate;
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', now() - '50 s'::interval + n / 40 * '10 s'::interval + n * n / 160 * '1 ms'::interval
FROM generate_series(1, 199) AS n;
CREATE TABLE in_order (place integer GENERATED ALWAYS AS IDENTITY, user_id uuid);
DO $$
BEGIN
	-- the first claims may get no further than the dead entries of the rows above
	FOR i IN 1 .. 1000 LOOP
		INSERT INTO in_order (user_id) SELECT user_id FROM claim_due_syncs('google_calendar', 1 + i % 3);
		COMMIT;
		EXIT WHEN (SELECT count(*) FROM in_order) = 199;
	END LOOP;
END
$$;
SELECT count(*), bool_and(user_id = u(place)) AS in_order FROM in_order;
DROP TABLE in_order;
DELETE FROM sync_state;

-- what the mark has passed: older due times that appear behind it, a request
-- of long ago, one during a run, a row that is given back, a lease that runs
-- out, a claim that is undone
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', now() FROM generate_series(1, 100) AS n;
CALL claim_until(100, 100);
SELECT count(*) FROM handed_out;
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', now() - n * '1 s'::interval FROM generate_series(101, 200) AS n;
CALL claim_until(100, 10);
SELECT count(*) FROM handed_out;
INSERT INTO sync_state (user_id, source, due_at, requested_at)
SELECT u(n), 'google_calendar', now() + '1 h'::interval, now() - n * '1 s'::interval FROM generate_series(201, 300) AS n;
CALL claim_until(100, 10);
SELECT count(*) FROM handed_out;
SELECT count(*) AS given_back FROM generate_series(1, 100) AS n, release_sync(u(n), 'google_calendar', 1);
CALL claim_until(100, 10);
SELECT count(*), count(*) FILTER (WHERE lease = 2) AS given_back FROM handed_out;
SELECT count(*) AS requested FROM generate_series(201, 300) AS n WHERE request_sync(u(n), 'google_calendar');
SELECT count(*) AS while_they_run FROM claim_due_syncs('google_calendar', 10000);
SELECT count(*) AS completed FROM generate_series(201, 300) AS n, mark_sync_completed(u(n), 'google_calendar', lease => 1);
CALL claim_until(100, 10);
SELECT count(*), count(*) FILTER (WHERE user_id > u(200) AND lease = 2) AS requested FROM handed_out;
UPDATE sync_state SET lease_expires_at = now() WHERE user_id BETWEEN u(101) AND u(200);
CALL claim_until(100, 10);
SELECT count(*), count(*) FILTER (WHERE lease = 2) AS again FROM handed_out;
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', now() FROM generate_series(301, 400) AS n;
DO $$
BEGIN
	LOOP
		IF (SELECT count(*) FROM claim_due_syncs('google_calendar', 10)) = 0 THEN
			ROLLBACK;
			EXIT;
		END IF;
	END LOOP;
END
$$;
SELECT count(*) AS undone FROM sync_state WHERE user_id > u(300) AND lease = 0;
CALL claim_until(100, 10);
SELECT count(*), count(*) FILTER (WHERE user_id > u(300)) AS after_all FROM handed_out;
DROP TABLE handed_out;

-- a name that is longer than the table allows is an error also where the table does not say so
BEGIN;
ALTER TABLE sync_state DROP CONSTRAINT sync_state_is_legal;
INSERT INTO sync_state (user_id, source, resource) SELECT u(500), 'google_tasks', string_agg(md5(n::text), '') FROM generate_series(1, 60) AS n;
SELECT count(*) FROM claim_due_syncs('google_tasks'); -- ERROR
ROLLBACK;
BEGIN;
ALTER TABLE sync_state DROP CONSTRAINT sync_state_is_legal;
INSERT INTO sync_state (user_id, source, account) SELECT u(500), 'google_tasks', string_agg(md5(n::text), '') FROM generate_series(1, 60) AS n;
SELECT count(*) FROM claim_due_syncs('google_tasks'); -- ERROR
ROLLBACK;

DELETE FROM sync_state;
DELETE FROM sync_policy;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_claim CASCADE;
