--
-- Errors: each argument of each function, given something wrong
--
-- Each call must fail with its SQLSTATE and a message that names the argument,
-- and leave everything as it was.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
DROP SCHEMA IF EXISTS regress_errors CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET intervalstyle = 'postgres';
SET syncstate.clock = '2026-01-10 12:00:00+00';
\pset format unaligned
\pset tuples_only on

CREATE SCHEMA regress_errors;

-- One row under lease 1, one that is parked, and one policy.
INSERT INTO syncstate.sync_state (user_id, source, status, lease, lease_expires_at, sync_token, history_id,
	updated_min, page_token, failures, error_message, requested_at, sync_interval, created_at, updated_at)
VALUES ('00000000-0000-4000-8000-000000000001', 'google_calendar', 'syncing', 1, '2026-01-10 12:05+00', 'tok1', '1000',
	'2026-01-09 00:00+00', 'p3', 2, NULL, '2026-01-10 11:59+00', '1 hour', '2026-01-01 00:00+00', '2026-01-10 11:00+00');
INSERT INTO syncstate.sync_state (user_id, source, resource, parked_reason, created_at, updated_at)
VALUES ('00000000-0000-4000-8000-000000000001', 'google_calendar', 'parked', 'paused', '2026-01-01 00:00+00', '2026-01-10 11:00+00');
SELECT sync_interval FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": "1 hour"}');

-- Everything that a failed call must leave alone.
CREATE FUNCTION regress_errors.everything() RETURNS text
	LANGUAGE sql
	AS $$
	SELECT (SELECT string_agg(s.ctid || ' ' || s::text, E'\n' ORDER BY s.user_id, s.source, s.resource) FROM syncstate.sync_state AS s)
		|| (SELECT string_agg(p.ctid || ' ' || p::text, E'\n' ORDER BY p.source) FROM syncstate.sync_policy AS p)
	$$;
CREATE TABLE regress_errors.before AS SELECT regress_errors.everything() AS everything;

-- Makes a call and tells how it failed.  In a call, K is the key of the row.
CREATE FUNCTION regress_errors.fails(call text) RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	message text;
	detail text;
	hint text;
BEGIN
	BEGIN
		EXECUTE 'SELECT * FROM syncstate.'
			|| regexp_replace(call, '\mK\M', $k$'00000000-0000-4000-8000-000000000001', 'google_calendar'$k$);
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RETURN format(E'%s\n    %s: %s%s%s', call, SQLSTATE, message,
					  CASE WHEN detail <> '' THEN E'\n    ' || detail ELSE '' END,
					  CASE WHEN hint <> '' THEN E'\n    ' || hint ELSE '' END);
	END;
	RETURN call || E'\n    DID NOT FAIL';
END
$$;

CREATE FUNCTION regress_errors.all_fail(VARIADIC calls text[]) RETURNS SETOF text
	LANGUAGE sql
	AS $$
	SELECT regress_errors.fails(call) FROM unnest(calls) AS call
	UNION ALL
	SELECT CASE WHEN regress_errors.everything() = everything THEN 'all is as it was' ELSE 'SOMETHING CHANGED' END
	FROM regress_errors.before
	$$;

------------------------------------------------------------------------
-- The key, of every function that takes one
------------------------------------------------------------------------
SELECT regress_errors.all_fail(VARIADIC ARRAY(
	SELECT format(f, key)
	FROM unnest(ARRAY[$$mark_sync_started(%s)$$, $$mark_sync_completed(%s)$$, $$mark_sync_failed(%s, error_message => 'x')$$,
		$$mark_rate_limited(%s)$$, $$clear_sync_token(%s)$$, $$renew_sync_lease(%s, lease => 1)$$,
		$$checkpoint_sync(%s, lease => 1)$$, $$release_sync(%s, lease => 1)$$, $$may_sweep(%s, lease => 1, vanished => 0, total => 0)$$,
		$$update_sync_state(%s, changes => '{}')$$,
		$$connect_sync(%s)$$, $$disconnect_sync(%s)$$, $$pause_sync(%s)$$, $$resume_sync(%s)$$, $$request_sync(%s)$$]) AS f,
	unnest(ARRAY[$$NULL, 'google_calendar'$$, $$'00000000-0000-4000-8000-000000000001', NULL$$]) AS key));
SELECT regress_errors.all_fail(VARIADIC ARRAY(
	SELECT format(f, resource)
	FROM unnest(ARRAY[$$mark_sync_started(K, resource => %s)$$, $$mark_sync_completed(K, resource => %s)$$,
		$$mark_sync_failed(K, 'x', resource => %s)$$, $$mark_rate_limited(K, resource => %s)$$,
		$$clear_sync_token(K, resource => %s)$$, $$renew_sync_lease(K, 1, resource => %s)$$,
		$$checkpoint_sync(K, 1, resource => %s)$$, $$release_sync(K, 1, resource => %s)$$,
		$$may_sweep(K, 1, 0, 0, resource => %s)$$,
		$$update_sync_state(K, '{}', resource => %s)$$, $$connect_sync(K, %s)$$, $$disconnect_sync(K, %s)$$,
		$$pause_sync(K, %s)$$, $$resume_sync(K, %s)$$, $$request_sync(K, %s)$$]) AS f,
	unnest(ARRAY[$$NULL$$, $$repeat('x', 1025)$$]) AS resource));
-- bytes count, not characters
SELECT regress_errors.fails($$connect_sync(K, repeat(E'\xe2\x82\xac', 342))$$);
-- malformed
SELECT regress_errors.all_fail(
	$$connect_sync('not-a-uuid', 'google_calendar')$$,
	$$connect_sync('', 'google_calendar')$$,
	$$connect_sync('00000000-0000-4000-8000-000000000001', 'google_maps')$$,
	$$connect_sync('00000000-0000-4000-8000-000000000001', '')$$,
	$$get_sync_state('not-a-uuid', 'google_calendar')$$,
	$$get_sync_states('not-a-uuid')$$,
	$$claim_due_syncs('google_maps')$$);
-- no such row, and no such row to these functions
SELECT regress_errors.all_fail(
	$$request_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$,
	$$pause_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$,
	$$resume_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$,
	$$renew_sync_lease('00000000-0000-4000-8000-000000000002', 'google_calendar', 1)$$,
	$$checkpoint_sync('00000000-0000-4000-8000-000000000002', 'google_calendar', 1)$$,
	$$checkpoint_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$,
	$$release_sync('00000000-0000-4000-8000-000000000002', 'google_calendar', 1)$$,
	$$may_sweep('00000000-0000-4000-8000-000000000002', 'google_calendar', 1, 0, 0)$$,
	$$mark_sync_completed('00000000-0000-4000-8000-000000000002', 'google_calendar', lease => 1)$$,
	$$mark_sync_failed('00000000-0000-4000-8000-000000000002', 'google_calendar', 'x', lease => 1)$$,
	$$mark_rate_limited('00000000-0000-4000-8000-000000000002', 'google_calendar', lease => 1)$$,
	$$clear_sync_token('00000000-0000-4000-8000-000000000002', 'google_calendar', lease => 1)$$);

------------------------------------------------------------------------
-- Leases
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$mark_sync_started(K)$$,
	$$mark_sync_completed(K, lease => 2)$$,
	$$mark_sync_completed(K, lease => 0)$$,
	$$mark_sync_completed(K, lease => 1, resource => 'parked')$$,
	$$mark_sync_failed(K, 'x', lease => 2)$$,
	$$mark_rate_limited(K, lease => 2)$$,
	$$mark_rate_limited(K, scope => 'source', lease => 2)$$,
	$$clear_sync_token(K, lease => 2)$$,
	$$renew_sync_lease(K, 2)$$,
	$$checkpoint_sync(K, 2)$$,
	$$checkpoint_sync(K, resource => 'parked')$$,
	$$release_sync(K, 2)$$,
	$$may_sweep(K, 2, 0, 0)$$,
	-- where it must be given
	$$renew_sync_lease(K, NULL)$$,
	$$release_sync(K, NULL)$$,
	$$may_sweep(K, NULL, 0, 0)$$);

------------------------------------------------------------------------
-- claim_due_syncs, mark_sync_started, renew_sync_lease
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$claim_due_syncs(max_rows => NULL)$$,
	$$claim_due_syncs(max_rows => 0)$$,
	$$claim_due_syncs(max_rows => -1)$$,
	$$claim_due_syncs(max_rows => 10001)$$,
	$$claim_due_syncs(max_rows => 2147483647)$$);
SELECT regress_errors.all_fail(VARIADIC ARRAY(
	SELECT format(f, lease_time)
	FROM unnest(ARRAY[$$claim_due_syncs(lease_time => %L)$$, $$mark_sync_started(K, lease_time => %L, resource => 'parked')$$,
		$$renew_sync_lease(K, 1, lease_time => %L)$$]) AS f,
	unnest('{0, 0.999999 seconds, -1 hour, 1 day 0.000001 seconds, 1 month, -1 month 40 days, 178000000 years, soon}'::text[]) AS lease_time));

------------------------------------------------------------------------
-- mark_sync_completed
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$mark_sync_completed(K, items_synced => NULL)$$,
	$$mark_sync_completed(K, items_synced => -1)$$,
	$$mark_sync_completed(K, sync_token => repeat('x', 65537))$$,
	$$mark_sync_completed(K, sync_token => repeat(E'\xe2\x82\xac', 21846))$$,
	$$mark_sync_completed(K, history_id => 'x')$$,
	$$mark_sync_completed(K, history_id => '-1')$$,
	$$mark_sync_completed(K, history_id => '+1')$$,
	$$mark_sync_completed(K, history_id => '1.0')$$,
	$$mark_sync_completed(K, history_id => '1e3')$$,
	$$mark_sync_completed(K, history_id => '0x10')$$,
	$$mark_sync_completed(K, history_id => ' 1001')$$,
	$$mark_sync_completed(K, history_id => '1001 ')$$,
	$$mark_sync_completed(K, history_id => E'1001\n')$$,
	$$mark_sync_completed(K, history_id => E'\xd9\xa1')$$,
	$$mark_sync_completed(K, history_id => '18446744073709551616')$$,
	$$mark_sync_completed(K, history_id => '99999999999999999999')$$,
	$$mark_sync_completed(K, history_id => '100000000000000000000')$$,
	$$mark_sync_completed(K, history_id => repeat('9', 200))$$,
	$$mark_sync_completed(K, history_id => repeat('9', 65537))$$,
	$$mark_sync_completed(K, updated_min => 'infinity')$$,
	$$mark_sync_completed(K, updated_min => '-infinity')$$,
	$$mark_sync_completed(K, updated_min => '10000-01-01 00:00+00')$$,
	$$mark_sync_completed(K, updated_min => '0001-12-31 23:59:59.999999+00 BC')$$,
	$$mark_sync_completed(K, updated_min => 'yesteryear')$$,
	$$mark_sync_completed(K, lease => '9223372036854775808')$$);

------------------------------------------------------------------------
-- mark_sync_failed, mark_rate_limited
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$mark_sync_failed(K, NULL)$$,
	$$mark_sync_failed(K, 'x', kind => NULL)$$,
	$$mark_sync_failed(K, 'x', kind => '')$$,
	$$mark_sync_failed(K, 'x', kind => 'Transient')$$,
	$$mark_sync_failed(K, 'x', kind => 'transient ')$$,
	$$mark_sync_failed(K, 'x', kind => 'failures')$$,
	$$mark_sync_failed(K, 'x', kind => repeat('x', 200))$$,
	$$mark_sync_failed(K, 'x', kind => repeat('x', 2000))$$,
	$$mark_rate_limited(K, scope => NULL)$$,
	$$mark_rate_limited(K, scope => '')$$,
	$$mark_rate_limited(K, scope => 'all')$$,
	$$mark_rate_limited(K, retry_after => 'Wed, 21 Oct 2026 07:28:00 GMT')$$);

------------------------------------------------------------------------
-- checkpoint_sync
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$checkpoint_sync(K, 1, page_token => repeat('x', 65537))$$,
	$$checkpoint_sync(K, 1, progress_done => -1)$$,
	$$checkpoint_sync(K, 1, progress_total => -1)$$,
	$$checkpoint_sync(K, 1, progress_total => -9223372036854775808)$$);

------------------------------------------------------------------------
-- update_sync_state
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$update_sync_state(K, NULL)$$,
	$$update_sync_state(K, 'null')$$,
	$$update_sync_state(K, '[]')$$,
	$$update_sync_state(K, '"status"')$$,
	$$update_sync_state(K, '1')$$,
	$$update_sync_state(K, '{')$$,
	$$update_sync_state(K, '')$$,
	$$update_sync_state(K, '{"state": "idle"}')$$,
	$$update_sync_state(K, '{"": 1}')$$);
-- columns that are not the client's to change
SELECT regress_errors.all_fail(VARIADIC ARRAY(
	SELECT format('update_sync_state(K, %L)', jsonb_build_object(key, NULL))
	FROM unnest('{user_id,account,source,resource,lease,created_at,updated_at,failing_since,changes_seen,seconds_watched}'::text[]) AS key));
-- values
SELECT regress_errors.all_fail(VARIADIC ARRAY(
	SELECT format('update_sync_state(K, %L)', changes)
	FROM unnest(ARRAY[
		'{"status": "done"}', '{"status": ""}', '{"status": 1}', '{"status": ["idle"]}',
		'{"history_id": "abc"}', '{"history_id": -1}', '{"history_id": 1.5}', '{"history_id": "18446744073709551616"}',
		'{"updated_min": "infinity"}', '{"updated_min": "-infinity"}', '{"updated_min": "soon"}', '{"updated_min": "2026-02-30"}',
		'{"token_issued_at": "infinity"}', '{"token_issued_at": "-infinity"}',
		'{"last_full_sync_at": "infinity"}', '{"last_full_sync_at": "-infinity"}',
		'{"due_at": "infinity"}', '{"due_at": "-infinity"}', '{"due_at": "soon"}', '{"due_at": "999999-01-01"}', '{"due_at": "10000-01-01T00:00:00Z"}',
		'{"requested_at": "infinity"}', '{"requested_at": "-infinity"}',
		'{"lease_expires_at": "infinity"}', '{"lease_expires_at": "-infinity"}',
		'{"last_sync_at": "infinity"}', '{"last_sync_at": "-infinity"}',
		'{"last_successful_sync_at": "infinity"}', '{"last_successful_sync_at": "-infinity"}',
		'{"parked_reason": ""}', '{"parked_reason": "bored"}', '{"parked_reason": "Paused"}',
		'{"sync_interval": "0"}', '{"sync_interval": "0.999999 seconds"}', '{"sync_interval": "-1 hour"}', '{"sync_interval": "1 month"}',
		'{"sync_interval": "36501 days"}', '{"sync_interval": "often"}', '{"sync_interval": {}}',
		'{"items_synced": -1}', '{"items_synced": 1.5}', '{"items_synced": "many"}', '{"items_synced": 9223372036854775808}',
		'{"progress_done": -1}', '{"progress_total": -1}', '{"progress_total": true}',
		'{"failures": -1}', '{"failures": 2147483648}', '{"token_losses": -1}', '{"token_losses": "x"}']) AS changes));
SELECT regress_errors.all_fail(
	$$update_sync_state(K, jsonb_build_object('sync_token', repeat('x', 65537)))$$,
	$$update_sync_state(K, jsonb_build_object('page_token', repeat('x', 65537)))$$,
	$$update_sync_state(K, jsonb_build_object('history_id', repeat('9', 65537)))$$,
	$$update_sync_state(K, jsonb_build_object('parked_reason', repeat('x', 200)))$$,
	$$update_sync_state(K, jsonb_build_object(repeat('x', 200), 1))$$);
-- a message is cut, as that of mark_sync_failed()
BEGIN;
SELECT octet_length(error_message), right(error_message, 6)
FROM syncstate.update_sync_state('00000000-0000-4000-8000-000000000001', 'google_calendar',
	jsonb_build_object('error_message', repeat('x', 100000)));
ROLLBACK;
-- a row that would be made is not made
SELECT regress_errors.fails($$update_sync_state('00000000-0000-4000-8000-000000000002', 'google_calendar', '{"failures": -1}')$$);
SELECT count(*) FROM syncstate.sync_state WHERE user_id = '00000000-0000-4000-8000-000000000002';

------------------------------------------------------------------------
-- report_syncs
------------------------------------------------------------------------
-- R is a report that would be applied: one that follows a wrong one, or goes
-- before it, is not
CREATE FUNCTION regress_errors.report(more jsonb) RETURNS text
	LANGUAGE sql
	AS $$ SELECT format('report_syncs(%L)', jsonb_build_array(
		'{"user_id": "00000000-0000-4000-8000-000000000001", "source": "google_calendar", "lease": 1, "outcome": "completed"}'::jsonb,
		'{"user_id": "00000000-0000-4000-8000-000000000001", "source": "google_calendar", "lease": 1}' || more)) $$;
SELECT regress_errors.all_fail(
	$$report_syncs(NULL)$$,
	$$report_syncs('null')$$,
	$$report_syncs('{}')$$,
	$$report_syncs('1')$$,
	$$report_syncs('[')$$,
	$$report_syncs('[1]')$$,
	$$report_syncs('[null]')$$,
	$$report_syncs('[[]]')$$,
	$$report_syncs('[{}]')$$);
SELECT split_part(f, E'\n', 2), split_part(f, E'\n', 3)
FROM regress_errors.fails($$report_syncs((SELECT jsonb_agg('{}'::jsonb) FROM generate_series(1, 10001)))$$) AS f;
SELECT more || substr(f, strpos(f, E'\n'))
FROM unnest(ARRAY[
	'{}', '{"outcome": null}', '{"outcome": "done"}', '{"outcome": 1}',
	'{"outcome": "released", "user_id": null}', '{"outcome": "released", "user_id": "me"}',
	'{"outcome": "released", "source": null}', '{"outcome": "released", "source": "google_maps"}',
	'{"outcome": "released", "lease": null}', '{"outcome": "released", "lease": "x"}', '{"outcome": "released", "lease": 1.5}',
	'{"outcome": "released", "lease": 9223372036854775808}',
	'{"outcome": "released", "items_synced": 1}', '{"outcome": "completed", "kind": "transient"}',
	'{"outcome": "completed", "items_synced": -1}', '{"outcome": "completed", "items_synced": "x"}',
	'{"outcome": "completed", "history_id": "x"}', '{"outcome": "completed", "updated_min": "infinity"}',
	'{"outcome": "completed", "updated_min": "soon"}',
	'{"outcome": "failed"}', '{"outcome": "failed", "error_message": null}',
	'{"outcome": "failed", "error_message": "x", "kind": "worse"}',
	'{"outcome": "rate_limited", "scope": "all"}', '{"outcome": "failed", "error_message": "x", "scope": "source"}', '{"outcome": "rate_limited", "retry_after": "soon"}']::jsonb[]) AS more,
	regress_errors.fails(regress_errors.report(more)) AS f;
SELECT substr(f, strpos(f, E'\n'))
FROM unnest(ARRAY[
	jsonb_build_object('outcome', 'released', 'resource', repeat('x', 1025)),
	jsonb_build_object('outcome', 'released', 'account', repeat('x', 256)),
	jsonb_build_object('outcome', 'completed', 'sync_token', repeat('x', 65537)),
	jsonb_build_object('outcome', 'completed', 'history_id', repeat('9', 65537))]) AS more,
	regress_errors.fails(regress_errors.report(more)) AS f;
SELECT regress_errors.everything() = everything FROM regress_errors.before;

------------------------------------------------------------------------
-- Kinds of JSON values, of each key of each function that takes JSON
------------------------------------------------------------------------
-- The server's own conversion takes most of these: {"minutes": 15} is 15
-- seconds to it, and any object a text.
SELECT regress_errors.all_fail(
	$$set_sync_policy('google_gmail', '{"sync_interval": {"minutes": 15}, "token_ttl": {"days": 7}}')$$,
	$$set_sync_policy('google_gmail', '{"token_ttl": {"days": 7}}')$$,
	$$set_sync_policy('google_gmail', '{"lease_time": [15]}')$$,
	$$set_sync_policy('google_gmail', '{"retry_cap": true}')$$,
	$$set_sync_policy('google_gmail', '{"max_failures": {"a": 1}}')$$,
	$$set_sync_policy('google_gmail', '{"jitter": true}')$$,
	$$set_sync_policy('google_gmail', '{"paused_until": {"seconds": 1767225600}}')$$,
	$$set_sync_policy('google_gmail', '{"token_ttl_from": ["full"]}')$$,
	$$update_sync_state(K, '{"sync_interval": {"minutes": 15}}')$$,
	$$update_sync_state(K, '{"error_message": {"a": 1}}')$$,
	$$update_sync_state(K, '{"error_message": false}')$$,
	$$update_sync_state(K, '{"sync_token": 17}')$$,
	$$update_sync_state(K, '{"due_at": {"seconds": 1767225600}}')$$,
	$$update_sync_state(K, '{"items_synced": [3]}')$$);
SELECT substr(f, strpos(f, E'\n'))
FROM unnest(ARRAY['{"outcome": "rate_limited", "retry_after": {"minutes": 15}}', '{"outcome": "failed", "error_message": {"a": 1}}',
	'{"outcome": "completed", "sync_token": 17}', '{"outcome": "completed", "updated_min": 1767225600}',
	'{"outcome": "completed", "items_synced": {}}', '{"outcome": "completed", "user_id": 1}']::jsonb[]) AS more,
	regress_errors.fails(regress_errors.report(more)) AS f;
-- which kinds each key refuses, where the function has that key
CREATE FUNCTION regress_errors.refused_kinds(call text, key text) RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	value jsonb;
	refused text = '';
BEGIN
	FOREACH value IN ARRAY '{"\"x\"",1,true,"[1]","{\"minutes\": 15}"}'::jsonb[] LOOP
		BEGIN
			EXECUTE format('SELECT FROM syncstate.' || call, jsonb_build_object(key, value));
			RAISE EXCEPTION USING ERRCODE = 'ZZ000';
		EXCEPTION WHEN OTHERS THEN
			CONTINUE WHEN SQLERRM ~ 'has no key';
			refused := refused || CASE WHEN SQLSTATE = '22023' AND starts_with(SQLERRM, key || ' must be ') AND SQLERRM ~ 'JSON'
				THEN ' ' || jsonb_typeof(value) ELSE '' END;
		END;
	END LOOP;
	RETURN refused;
END
$$;
SELECT f.name || ', ' || coalesce(nullif(refused, ''), ' nothing') || ': ' || string_agg(key, ', ' ORDER BY key)
FROM (VALUES ('set_sync_policy', $$set_sync_policy('google_gmail', %L)$$,
		ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = 'syncstate.sync_policy'::regclass AND attnum > 1)),
	('update_sync_state', $$update_sync_state('00000000-0000-4000-8000-000000000001', 'google_calendar', %L)$$,
		ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = 'syncstate.sync_state'::regclass AND attnum > 4)),
	('report_syncs', $$report_syncs(jsonb_build_array('{"user_id": "00000000-0000-4000-8000-000000000001", "source": "google_calendar",
		"lease": 1, "outcome": "rate_limited"}' || %L::jsonb))$$,
		'{user_id,account,source,resource,lease,outcome,items_synced,sync_token,history_id,updated_min,error_message,kind,retry_after,scope}'))
	AS f (name, call, keys), unnest(keys) AS key, regress_errors.refused_kinds(call, key) AS refused
GROUP BY f.name, refused ORDER BY f.name, refused;
SELECT regress_errors.everything() = everything FROM regress_errors.before;
-- numbers as text, history ids as numbers, and a number of seconds to wait
BEGIN;
SELECT items_synced, history_id FROM syncstate.update_sync_state('00000000-0000-4000-8000-000000000001', 'google_calendar',
	'{"items_synced": "9007199254740993", "history_id": 18446744073709551615}');
SELECT max_failures, jitter FROM syncstate.set_sync_policy('google_gmail', '{"max_failures": "7", "jitter": "0.5"}');
SELECT due_at BETWEEN '2026-01-10 13:00+00' AND '2026-01-10 13:10+00' AS waits
FROM syncstate.report_syncs('[{"user_id": "00000000-0000-4000-8000-000000000001", "source": "google_calendar", "lease": "1",
	"outcome": "rate_limited", "retry_after": 3600}]');
ROLLBACK;

------------------------------------------------------------------------
-- get_users_needing_sync, next_sync_due
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$get_users_needing_sync(NULL)$$,
	$$get_users_needing_sync('google_maps')$$,
	$$get_users_needing_sync('google_calendar', max_rows => 0)$$,
	$$get_users_needing_sync('google_calendar', max_rows => -1)$$,
	$$get_users_needing_sync('google_calendar', max_rows => 10001)$$,
	$$get_users_needing_sync('google_calendar', stale_after => '-1 second')$$,
	$$get_users_needing_sync('google_calendar', stale_after => '1 month')$$,
	$$get_users_needing_sync('google_calendar', stale_after => '36501 days')$$,
	$$get_users_needing_sync('google_calendar', stale_after => 'long ago')$$,
	$$next_sync_due('google_maps')$$);

------------------------------------------------------------------------
-- get_sync_policy, set_sync_policy, pause_sync_source, resume_sync_source
------------------------------------------------------------------------
SELECT regress_errors.all_fail(
	$$get_sync_policy(NULL)$$,
	$$get_sync_policy('google_maps')$$,
	$$set_sync_policy(NULL, '{}')$$,
	$$set_sync_policy('google_calendar', NULL)$$,
	$$set_sync_policy('google_calendar', '[]')$$,
	$$set_sync_policy('google_calendar', '"jitter"')$$,
	$$set_sync_policy('google_calendar', 'null')$$,
	$$set_sync_policy('google_calendar', '{')$$,
	$$set_sync_policy('google_calendar', '{"source": "google_tasks"}')$$,
	$$set_sync_policy('google_calendar', '{"interval": "1 hour"}')$$,
	$$pause_sync_source(NULL, 'infinity')$$,
	$$pause_sync_source('google_calendar', NULL)$$,
	$$pause_sync_source('google_calendar', '-infinity')$$,
	$$pause_sync_source('google_calendar', 'soon')$$,
	$$resume_sync_source(NULL)$$);
-- each duration: its limits, months, what is no duration
SELECT regress_errors.all_fail(VARIADIC ARRAY(
	SELECT format('set_sync_policy(%L, %L)', 'google_calendar', jsonb_build_object(key, value))
	FROM (VALUES ('sync_interval', '36500 days 0.000001 seconds'), ('lease_time', '1 day 0.000001 seconds'),
		('retry_base', '36501 days'), ('retry_cap', '36501 days'), ('rate_limit_wait', '30 days 0.000001 seconds'),
		('park_after', '36501 days'), ('token_ttl', '36501 days'), ('min_interval', '36501 days'), ('max_interval', '36501 days')) AS m(key, longest),
	unnest(ARRAY[longest, '0.999999 seconds', '-1 hour', '1 month', 'soon']) AS value));
SELECT regress_errors.all_fail(VARIADIC ARRAY(
	SELECT format('set_sync_policy(%L, %L)', 'google_calendar', changes)
	FROM unnest(ARRAY['{"max_failures": 0}', '{"max_failures": -1}', '{"max_failures": 2147483648}', '{"max_failures": "x"}',
		'{"jitter": -0.01}', '{"jitter": 0.91}', '{"jitter": 1}', '{"jitter": "NaN"}', '{"jitter": "Infinity"}', '{"jitter": "-Infinity"}',
		'{"jitter": "1e400"}', '{"jitter": "x"}',
		'{"token_ttl_from": "start"}', '{"token_ttl_from": ""}', '{"token_ttl_from": "Full"}',
		'{"retry_base": "2 hours"}', '{"retry_cap": "29 seconds"}', '{"retry_base": "2 minutes", "retry_cap": "1 minute"}',
		'{"paused_until": "-infinity"}', '{"paused_until": "soon"}',
		'{"daily_budget": 0}', '{"daily_budget": -1}', '{"daily_budget": 2147483648}', '{"daily_budget": "x"}', '{"daily_budget": "0.4"}',
		'{"min_interval": "25 hours"}', '{"max_interval": "59 seconds"}', '{"min_interval": "2 hours", "max_interval": "1 hour"}',
		'{"rate_per_minute": 0}', '{"rate_per_minute": -1}', '{"rate_per_minute": 1000001}', '{"rate_per_minute": "x"}',
		'{"request_gap": "-1 us"}', '{"request_gap": "24:00:00.000001"}', '{"request_gap": "1 month"}', '{"auth_failures": 0}', '{"auth_failures": 2147483648}',
		'{"resync_from": "infinity"}', '{"resync_from": "-infinity"}', '{"resync_from": "soon"}', '{"resync_spread": "-1 us"}',
		'{"resync_spread": "36501 days"}', '{"resync_spread": "1 month"}', '{"max_vanished": -0.01}', '{"max_vanished": 1.01}', '{"max_vanished": "NaN"}']) AS changes));
-- together with what was set before
SELECT retry_cap FROM syncstate.set_sync_policy('google_contacts', '{"retry_cap": "1 minute"}');
SELECT regress_errors.fails($$set_sync_policy('google_contacts', '{"retry_base": "2 minutes"}')$$);
SELECT retry_base, retry_cap FROM syncstate.set_sync_policy('google_contacts', '{"retry_cap": null}');
-- the table says the same to who writes it directly
CREATE FUNCTION regress_errors.refused(changes text) RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	c text;
BEGIN
	EXECUTE 'UPDATE syncstate.sync_policy SET ' || changes;
	RETURN changes || ': NOT REFUSED';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS c = CONSTRAINT_NAME;
	RETURN changes || ': ' || SQLSTATE || ' ' || c;
END
$$;
SELECT regress_errors.refused(changes)
FROM unnest(ARRAY['sync_interval = ''0''', 'sync_interval = ''36501 days''', 'lease_time = ''0''', 'lease_time = ''25 hours''',
	'retry_base = ''0''', 'retry_cap = ''-1 s''', 'rate_limit_wait = ''31 days''', 'park_after = ''0''', 'token_ttl = ''0''',
	'max_failures = 0', 'token_ttl_from = ''x''', 'jitter = 0.91', 'jitter = -0.1', 'jitter = ''NaN''', 'jitter = ''infinity''',
	'daily_budget = 0', 'min_interval = ''0''', 'max_interval = ''36501 days''', 'min_interval = ''1 month''',
	'min_interval = ''2 s'', max_interval = ''1 s''', 'rate_per_minute = 0', 'rate_per_minute = 1000001',
	'request_gap = ''-1 us''', 'request_gap = ''24:00:00.000001''', 'request_gap = ''1 month''', 'auth_failures = 0',
	'resync_from = ''infinity''', 'resync_from = ''-infinity''', 'resync_spread = ''-1 us''', 'resync_spread = ''36501 days''', 'resync_spread = ''1 year''',
	'max_vanished = -0.1', 'max_vanished = 1.1', 'max_vanished = ''NaN''', 'source = NULL']) AS changes;

------------------------------------------------------------------------
-- current_user_id, grant_worker, grant_user, register_sync_source,
-- watch_users
------------------------------------------------------------------------
SET request.jwt.claims = '{"sub": ["not a subject"]}';
SELECT regress_errors.fails($$current_user_id()$$);
SET request.jwt.claims = '{"sub": ';
SELECT regress_errors.fails($$current_user_id()$$);
SET request.jwt.claims = '';
CREATE TABLE regress_errors.users (id uuid PRIMARY KEY, name text, born date);
CREATE VIEW regress_errors.people AS SELECT * FROM regress_errors.users;
SELECT regress_errors.all_fail(
	$$grant_worker(NULL)$$,
	$$grant_worker('regress_syncstate_nobody')$$,
	$$grant_user(NULL)$$,
	$$grant_user('regress_syncstate_nobody')$$,
	$$register_sync_source(NULL)$$,
	$$register_sync_source('')$$,
	$$register_sync_source('Outlook')$$,
	$$register_sync_source('two words')$$,
	$$register_sync_source(E'outlook\n')$$,
	$$register_sync_source(repeat('x', 59))$$,
	$$register_sync_source('x''); DROP TABLE syncstate.sync_state; --')$$,
	$$watch_users(NULL)$$,
	$$watch_users('regress_errors.nothing')$$,
	$$watch_users('regress_errors.users', NULL)$$,
	$$watch_users('regress_errors.users', 'user_id')$$,
	$$watch_users('regress_errors.users', 'born')$$,
	$$watch_users('regress_errors.users', 'ctid')$$,
	$$watch_users('regress_errors.people')$$);

------------------------------------------------------------------------
-- Infinite intervals
------------------------------------------------------------------------
-- From 17 on there are such; before, they are no intervals.  Nothing takes
-- one but retry_after, which is clamped.
SELECT call, split_part(split_part(f, E'\n', 2), ':', 1) ~ '^ *(22007|22008|22023)$'
FROM unnest(ARRAY[$$claim_due_syncs(lease_time => 'infinity')$$, $$mark_sync_started(K, lease_time => '-infinity', resource => 'parked')$$,
	$$renew_sync_lease(K, 1, 'infinity')$$, $$update_sync_state(K, '{"sync_interval": "infinity"}')$$,
	$$get_users_needing_sync('google_calendar', '-infinity')$$,
	$$set_sync_policy('google_calendar', '{"retry_cap": "infinity"}')$$]) AS call,
	regress_errors.fails(call) AS f;
SELECT regress_errors.everything() = everything FROM regress_errors.before;

------------------------------------------------------------------------
-- syncstate.clock
------------------------------------------------------------------------
SET syncstate.clock = 'infinity';	-- ERROR
SET syncstate.clock = '-infinity';	-- ERROR
SET syncstate.clock = '10000-01-01 00:00+00';	-- ERROR
SET syncstate.clock = 'soon';		-- ERROR
SET syncstate.clock = '2026-02-30';	-- ERROR
SET syncstate.clock = ' ';			-- ERROR
SHOW syncstate.clock;
SET syncstate.clocks = '';			-- ERROR
CREATE ROLE regress_syncstate_errors;
SET ROLE regress_syncstate_errors;
SET syncstate.clock = '2030-01-01';	-- ERROR
RESET ROLE;
DROP ROLE regress_syncstate_errors;

------------------------------------------------------------------------
-- The triggers, called as they should not be
------------------------------------------------------------------------
CREATE FUNCTION regress_errors.sqlstate(VARIADIC commands text[]) RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	command text;
BEGIN
	FOREACH command IN ARRAY commands LOOP
		EXECUTE command;
	END LOOP;
	RAISE SQLSTATE '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN commands[1] || ': ' || SQLSTATE;
END
$$;
SELECT regress_errors.sqlstate('SELECT syncstate.' || name || '()')
FROM unnest('{guard,policy_changed,add_source_label,keep_source_labels,forget_users}'::text[]) AS name;
-- at another time, of another table, without what they need
SELECT regress_errors.sqlstate('CREATE TRIGGER t ' || how, $$INSERT INTO regress_errors.users VALUES ('00000000-0000-4000-8000-000000000001')$$,
	$$DELETE FROM regress_errors.users$$)
FROM unnest(ARRAY[
	'AFTER INSERT ON regress_errors.users FOR EACH ROW EXECUTE FUNCTION syncstate.guard()',
	'BEFORE INSERT ON regress_errors.users FOR EACH STATEMENT EXECUTE FUNCTION syncstate.guard()',
	'BEFORE DELETE ON regress_errors.users FOR EACH ROW EXECUTE FUNCTION syncstate.guard()',
	'BEFORE INSERT ON regress_errors.users FOR EACH ROW EXECUTE FUNCTION syncstate.guard()',
	'AFTER DELETE ON regress_errors.users FOR EACH ROW EXECUTE FUNCTION syncstate.forget_users(''id'')',
	'AFTER DELETE ON regress_errors.users FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users(''id'')',
	'AFTER INSERT ON regress_errors.users REFERENCING NEW TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users(''id'')',
	'AFTER DELETE ON regress_errors.users REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users()',
	'AFTER DELETE ON regress_errors.users REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users(''born'')',
	'AFTER DELETE ON regress_errors.users REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users(''nobody'')']) AS how;

------------------------------------------------------------------------
-- The limits themselves are accepted
------------------------------------------------------------------------
BEGIN;
SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 1, lease_time => '1 second');
SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 10000, lease_time => '1 day');
SELECT lease_expires_at FROM syncstate.renew_sync_lease('00000000-0000-4000-8000-000000000001', 'google_calendar', 1, '1 second');
SELECT lease_expires_at FROM syncstate.renew_sync_lease('00000000-0000-4000-8000-000000000001', 'google_calendar', 1, '24 hours');
SELECT length(page_token), progress_done FROM syncstate.checkpoint_sync('00000000-0000-4000-8000-000000000001', 'google_calendar', 1,
	repeat('x', 65536), 9223372036854775807);
SELECT length(sync_token), history_id, items_synced FROM syncstate.mark_sync_completed('00000000-0000-4000-8000-000000000001', 'google_calendar',
	9223372036854775807, repeat('x', 65536), '18446744073709551615', '9999-12-31 23:59:59.999999+00', 1);
SELECT length(resource) FROM syncstate.connect_sync('00000000-0000-4000-8000-000000000001', 'google_calendar', repeat('x', 1024));
SELECT sync_interval FROM syncstate.update_sync_state('00000000-0000-4000-8000-000000000001', 'google_calendar', '{"sync_interval": "36500 days"}');
SELECT sync_interval FROM syncstate.update_sync_state('00000000-0000-4000-8000-000000000001', 'google_calendar', '{"sync_interval": "1 second"}');
SELECT count(*) FROM syncstate.get_users_needing_sync('google_calendar', '0', 10000);
SELECT count(*) FROM syncstate.get_users_needing_sync('google_calendar', '36500 days', 1);
SELECT * FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "1 second", "lease_time": "1 second", "retry_base": "1 second",
	"retry_cap": "1 second", "rate_limit_wait": "1 second", "max_failures": 1, "park_after": "1 second", "token_ttl": "1 second", "jitter": 0,
	"daily_budget": 1, "min_interval": "1 second", "max_interval": "1 second", "rate_per_minute": 1, "request_gap": 0, "auth_failures": 1,
	"resync_from": "0001-01-01 00:00:00+00", "resync_spread": 0, "max_vanished": 0}');
SELECT * FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "36500 days", "lease_time": "1 day", "retry_base": "36500 days",
	"retry_cap": "36500 days", "rate_limit_wait": "30 days", "max_failures": 2147483647, "park_after": "36500 days", "token_ttl": "36500 days",
	"token_ttl_from": "full", "jitter": 0.9, "paused_until": "infinity",
	"daily_budget": 2147483647, "min_interval": "36500 days", "max_interval": "36500 days", "rate_per_minute": 1000000,
	"request_gap": "1 day", "auth_failures": 2147483647,
	"resync_from": "9999-12-31 23:59:59.999999+00", "resync_spread": "36500 days", "max_vanished": 1}');
ROLLBACK;

SELECT regress_errors.everything() = everything FROM regress_errors.before;

SET client_min_messages = warning;
RESET syncstate.clock;
RESET request.jwt.claim.sub;
RESET request.jwt.claims;
DROP SCHEMA regress_errors CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
