--
-- Parked rows are in neither lane
--
-- A request for a parked row is kept for the day the row returns.  Until then
-- nobody walks over it: workers sleep as if it were not there.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
RESET client_min_messages;
SET timezone = 'UTC';
\set VERBOSITY terse
\pset format unaligned
\pset null '(null)'

CREATE SCHEMA regress_syncstate_parked;
SET search_path = regress_syncstate_parked, syncstate;
TRUNCATE sync_state, sync_policy;

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- whatever is parked has no entry in either lane
SELECT indexrelid::regclass AS lane, pg_get_expr(indpred, indrelid) AS "where"
FROM pg_index
WHERE indexrelid IN ('syncstate.sync_state_due'::regclass, 'syncstate.sync_state_requested'::regclass)
ORDER BY 1;

-- ---------------------------------------------------------------------
-- By the real clock: more rows are parked with a request than a call that only
-- looks may visit
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, parked_reason, requested_at)
SELECT u(n), 'google_calendar', 'auth', now() - interval '1 min' FROM generate_series(1, 5000) AS n;
SELECT next_sync_due('google_calendar'), next_sync_due();
SELECT count(*) FROM claim_due_syncs('google_calendar', 100);
SELECT count(*) FROM get_users_needing_sync('google_calendar');

-- The same where they were parked after the request, by each way to be parked.
DELETE FROM sync_state;
SELECT FROM set_sync_policy('google_calendar', '{"max_failures": 1, "park_after": "1 s"}');
INSERT INTO sync_state (user_id, source, requested_at, status, lease, failures, failing_since)
SELECT u(n), 'google_calendar', now() - interval '1 min', 'syncing', 1, 1, now() - interval '1 day' FROM generate_series(1, 5000) AS n;
SELECT parked_reason, count(*) FROM generate_series(1, 1000) AS n, pause_sync(u(n), 'google_calendar') GROUP BY 1;
SELECT parked_reason, count(*) FROM generate_series(1, 1000) AS n, mark_sync_completed(u(n), 'google_calendar', lease => 1) GROUP BY 1;
SELECT parked_reason, count(*) FROM generate_series(1001, 2000) AS n,
	mark_sync_failed(u(n), 'google_calendar', 'revoked', kind => 'auth', lease => 1) GROUP BY 1;
SELECT parked_reason, count(*) FROM generate_series(2001, 3000) AS n,
	mark_sync_failed(u(n), 'google_calendar', 'broken', lease => 1) GROUP BY 1;
SELECT parked_reason, count(*) FROM report_syncs((
	SELECT jsonb_agg(jsonb_build_object('user_id', u(n), 'source', 'google_calendar', 'lease', 1, 'outcome', 'failed', 'kind', 'auth', 'error_message', 'revoked'))
	FROM generate_series(3001, 4000) AS n)) GROUP BY 1;
UPDATE sync_state SET due_at = NULL, status = 'idle' WHERE user_id > u(4000);
SELECT count(*) AS parked, count(requested_at) AS requested FROM sync_state WHERE due_at IS NULL;
VACUUM sync_state;
SELECT next_sync_due('google_calendar'), next_sync_due();
SELECT count(*) FROM claim_due_syncs('google_calendar', 100);

-- one of them is resumed: there is work now, and nobody has to look for it
SELECT requested_at < now() AS requested FROM resume_sync(u(1), 'google_calendar');
SELECT next_sync_due('google_calendar') <= clock_timestamp() AS now;
SELECT right(user_id::text, 4) AS u FROM claim_due_syncs('google_calendar', 100);
SELECT next_sync_due('google_calendar') > clock_timestamp() + interval '1 min' AS when_the_lease_ends;

-- ---------------------------------------------------------------------
-- The request is kept, and counts again when the row returns
-- ---------------------------------------------------------------------
DELETE FROM sync_state;
DELETE FROM sync_policy;
SET syncstate.clock = '2030-01-01 12:00:00+00';

-- User 1 is due for an hour; users 2 to 5 are requested and parked.
CREATE FUNCTION prepare() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM sync_state;
	INSERT INTO sync_state (user_id, source, due_at)
	SELECT u(n), 'google_calendar', '2030-01-01 11:00:00+00' FROM generate_series(1, 5) AS n;
	PERFORM request_sync(u(n), 'google_calendar') FROM generate_series(2, 5) AS n;
	PERFORM pause_sync(u(n), 'google_calendar') FROM generate_series(2, 5) AS n;
END
$$;
SELECT prepare();
SELECT right(user_id::text, 1) AS u, parked_reason, requested_at::time FROM sync_state WHERE due_at IS NULL ORDER BY user_id;
SELECT next_sync_due()::time;
SELECT right(g::text, 1) AS u FROM get_users_needing_sync('google_calendar') AS g;
SELECT right(user_id::text, 1) AS u FROM claim_due_syncs();
SELECT next_sync_due()::time AS when_the_lease_ends;

-- by resume_sync() and by hand: before what is merely due
SELECT prepare();
SELECT right(user_id::text, 1) AS u, requested_at::time FROM resume_sync(u(2), 'google_calendar');
UPDATE sync_state SET parked_reason = NULL WHERE user_id = u(3);
UPDATE sync_state SET due_at = '2030-01-01 18:00:00+00' WHERE user_id = u(4);
SELECT next_sync_due()::time;
SELECT right(g::text, 1) AS u FROM get_users_needing_sync('google_calendar') AS g;
SELECT right(user_id::text, 1) AS u FROM claim_due_syncs('google_calendar', 3);
SELECT right(user_id::text, 1) AS u FROM claim_due_syncs('google_calendar', 3);
SELECT right(user_id::text, 1) AS u FROM sync_state WHERE due_at IS NULL AND requested_at IS NOT NULL;

-- a request for a parked row comes to nothing, and one written by hand waits
SELECT prepare();
UPDATE sync_state SET requested_at = NULL;
SELECT request_sync(u(2), 'google_calendar');
UPDATE sync_state SET requested_at = '2000-01-01' WHERE user_id = u(3);
SELECT right(user_id::text, 1) AS u, requested_at::time FROM sync_state WHERE user_id IN (u(2), u(3)) ORDER BY user_id;
SELECT right(user_id::text, 1) AS u FROM claim_due_syncs();
SELECT FROM resume_sync(u(3), 'google_calendar');
SELECT next_sync_due()::time;
SELECT right(user_id::text, 1) AS u FROM claim_due_syncs();

RESET syncstate.clock;
DELETE FROM sync_state;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_parked CASCADE;
