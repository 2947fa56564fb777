/*
 * Many rows at once: a full sync of a whole source, spread over a time; and
 * taking parked rows back after an outage.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
CREATE SCHEMA regress_resync;
RESET client_min_messages;
SET search_path = regress_resync, syncstate, public;
\set VERBOSITY terse

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;
CREATE FUNCTION t(distance interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN ('2030-01-01 00:00:00'::timestamp + distance) AT TIME ZONE 'UTC';
CREATE PROCEDURE at(distance interval) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('syncstate.clock', to_char(t(distance) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', false);
END
$$;

-- Starts a row and completes it with a cursor; tells whether that was a full sync.
CREATE FUNCTION sync(u uuid, token text DEFAULT 'token') RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	s sync_state := mark_sync_started(u, 'google_calendar');
BEGIN
	PERFORM mark_sync_completed(u, 'google_calendar', 1, token, lease => s.lease);
	RETURN s.full_sync_id IS NOT NULL;
END
$$;

/* -------------------------------------------------------- a planned resync */

CALL at('0');
INSERT INTO sync_state (user_id, source) SELECT u(n), 'google_calendar' FROM generate_series(1, 200) AS n;
SELECT count(*), count(*) FILTER (WHERE sync(u(n))) AS full FROM generate_series(1, 200) AS n;
CALL at('1 hour');
SELECT count(*), count(*) FILTER (WHERE sync(u(n))) AS full FROM generate_series(1, 200) AS n;
CALL at('2 hours');
CREATE TABLE before AS SELECT s.*, s.xmin AS x FROM sync_state AS s;

SELECT resync_from, resync_spread, sync_interval FROM resync_source('google_calendar', '20 hours');
-- no row was written for it
SELECT count(*) FROM sync_state AS s JOIN before AS b USING (user_id, source, resource) WHERE s.xmin <> b.x;

-- from then on each row's next start is a full sync, once, at the row's own part
-- of the time, and the rows are spread over all of it
CREATE TABLE starts (hour integer, n integer, is_full boolean);
CREATE PROCEDURE day(first integer, last integer) LANGUAGE plpgsql AS $$
BEGIN
	FOR hour IN first .. last LOOP
		CALL at(hour * interval '1 hour');
		INSERT INTO starts SELECT hour, n, sync(u(n)) FROM generate_series(1, 200) AS n;
	END LOOP;
END
$$;
CALL day(2, 30);
SELECT count(*) AS full, count(DISTINCT n) AS rows, min(hour) >= 2 AND max(hour) <= 22 AS in_time
FROM starts WHERE is_full;
SELECT max(c) <= 25 AS spread, count(*) >= 19 AS over_all_of_it
FROM (SELECT hour, count(*) AS c FROM starts WHERE is_full GROUP BY hour) AS h;
-- no loss was counted
SELECT max(token_losses) AS losses, max(failures) AS failures, count(sync_token) AS cursors FROM sync_state;
-- a claim tells of the row as of a full one
SELECT resync_from - t('0') AS resync_from, resync_spread FROM get_sync_policy('google_calendar');
CALL at('40 hours');
SELECT resync_from - t('0') AS resync_from, resync_spread FROM resync_source('google_calendar', '0');
SELECT count(*) FROM claim_due_syncs('google_calendar', 1000, kind => 'incremental');
SELECT count(*), count(sync_token) AS cursors, count(*) FILTER (WHERE full_sync_id = lease) AS full
FROM claim_due_syncs('google_calendar', 1000, kind => 'full');

/* --------------------------------------------------------- runs in flight */

DELETE FROM sync_state;
DELETE FROM sync_policy;
CALL at('100 hours');
INSERT INTO sync_state (user_id, source) SELECT u(n), 'google_calendar' FROM generate_series(1, 4) AS n;
SELECT sync(u(1)), sync(u(2));
CALL at('101 hours');
-- an incremental run, one in slices, and a full one, also one in slices
SELECT lease AS l1, sync_token FROM mark_sync_started(u(1), 'google_calendar') \gset
SELECT lease AS l2 FROM mark_sync_started(u(2), 'google_calendar') \gset
SELECT page_token FROM checkpoint_sync(u(2), 'google_calendar', :l2, 'page 2');
SELECT lease AS l3 FROM mark_sync_started(u(3), 'google_calendar') \gset
SELECT lease AS l4 FROM mark_sync_started(u(4), 'google_calendar') \gset
SELECT page_token, full_sync_id = :l4 AS same FROM checkpoint_sync(u(4), 'google_calendar', :l4, 'page 2');
CALL at('101 hours 1 minute');
SELECT resync_from - t('0') AS resync_from FROM resync_source('google_calendar', '10 hours');
-- nobody's run was revoked, and a lease may be renewed, and a page saved
SELECT status FROM renew_sync_lease(u(1), 'google_calendar', :l1);
SELECT page_token FROM checkpoint_sync(u(4), 'google_calendar', :l4, 'page 3');
SELECT status, sync_token FROM mark_sync_completed(u(1), 'google_calendar', 1, 'token 2', lease => :l1);
SELECT status, sync_token FROM mark_sync_completed(u(3), 'google_calendar', 1, 'token 2', lease => :l3);
SELECT status FROM release_sync(u(2), 'google_calendar', :l2);
SELECT status FROM release_sync(u(4), 'google_calendar', :l4);
CALL at('101 hours 2 minutes');
-- a full sync that had begun before is done anew at its next start, be it ended or not;
-- incremental syncs go on until their own time has come
SELECT right(user_id::text, 1) AS n, sync_token, page_token, full_sync_id = lease AS begins
FROM generate_series(1, 4) AS n, mark_sync_started(u(n), 'google_calendar') ORDER BY 1;
-- and not a second time
SELECT right(s.user_id::text, 1) AS n, c.page_token
FROM sync_state AS s, checkpoint_sync(user_id, source, lease, 'page 9') AS c WHERE s.user_id IN (u(3), u(4)) ORDER BY 1;
SELECT count(release_sync(user_id, source, lease)) FROM sync_state;
CALL at('101 hours 3 minutes');
SELECT right(user_id::text, 1) AS n, page_token, full_sync_id < lease AS goes_on
FROM generate_series(3, 4) AS n, mark_sync_started(u(n), 'google_calendar') ORDER BY 1;
SELECT count(mark_sync_completed(u(n), 'google_calendar', 1, 'token 3')) FROM generate_series(3, 4) AS n;
SELECT count(release_sync(user_id, source, lease)) FROM sync_state WHERE status = 'syncing';
CALL at('111 hours 1 minute');
SELECT n, sync(u(n)) AS is_full FROM generate_series(1, 4) AS n;
CALL at('112 hours');
SELECT n, sync(u(n)) AS is_full FROM generate_series(1, 4) AS n;

-- rows that came with a cursor that nobody here got, and rows that never synced
INSERT INTO sync_state (user_id, source, sync_token) VALUES (u(5), 'google_calendar', 'from elsewhere'), (u(6), 'google_calendar', NULL);
SELECT n, sync(u(n)) AS is_full FROM generate_series(5, 6) AS n;
-- a direct write that starts a sync is one like any other
SELECT resync_from - t('0') AS resync_from FROM resync_source('google_calendar', '0');
UPDATE sync_state SET status = 'syncing' WHERE user_id = u(1);
SELECT sync_token, full_sync_id = lease AS is_full, token_losses FROM sync_state WHERE user_id = u(1);

-- the plan can be dropped
SELECT resync_from, resync_spread FROM set_sync_policy('google_calendar', '{"resync_from": null, "resync_spread": null}');
SELECT n, sync(u(n)) AS is_full FROM generate_series(2, 4) AS n;
SELECT count(*) AS policies FROM sync_policy;

SELECT resync_source(NULL); -- ERROR
SELECT resync_source('google_calendar', '-1 second'); -- ERROR
\set VERBOSITY default
SELECT resync_source('google_calendar', '36501 days'); -- ERROR
\set VERBOSITY terse
SELECT count(*) AS policies FROM sync_policy;
SELECT resync_spread FROM resync_source('google_calendar');
SELECT resync_spread FROM resync_source('google_calendar', NULL);
SELECT resync_spread FROM resync_source('google_calendar', '0');

/* ----------------------------------------------------------- revive_syncs */

DELETE FROM sync_state;
DELETE FROM sync_policy;
CALL at('200 hours');
INSERT INTO sync_state (user_id, source, parked_reason, status, failures, failing_since, token_losses, error_message, sync_token)
SELECT u(n), 'google_calendar', (ARRAY['failures', 'auth', 'token_loop', 'paused'])[1 + n % 4], 'error', 30, '2029-01-01', 10, 'down', 'token'
FROM generate_series(1, 400) AS n;
INSERT INTO sync_state (user_id, source, parked_reason) VALUES (u(1), 'google_tasks', 'failures');
INSERT INTO sync_state (user_id, source, due_at) VALUES (u(401), 'google_calendar', '2030-02-01');
CREATE TABLE parked AS SELECT * FROM sync_state;

SELECT revive_syncs('google_calendar', 'failures');
-- each at its own part of the hour, forgetting what went wrong, keeping the cursor
SELECT count(*), min(due_at) >= t('200 hours') AND max(due_at) < t('201 hours') AS within_the_hour, count(DISTINCT due_at) > 90 AS spread,
	max(failures) AS failures, max(token_losses) AS losses, count(failing_since) AS failing, count(error_message) AS errors,
	count(sync_token) AS cursors, count(requested_at) AS requested, min(status) AS status
FROM sync_state WHERE parked_reason IS NULL AND user_id < u(401);
-- the others are as they were
SELECT s.parked_reason, count(*), count(*) FILTER (WHERE s = p) AS same
FROM sync_state AS s JOIN parked AS p USING (user_id, source, resource) WHERE p.parked_reason IS DISTINCT FROM 'failures' OR s.source <> 'google_calendar'
GROUP BY 1 ORDER BY 1;

-- without a reason: all but what users have paused; some at a time
SELECT revive_syncs('google_calendar', spread => '0', max_rows => 150) AS first, revive_syncs('google_calendar', spread => '0', max_rows => 150) AS then,
	revive_syncs('google_calendar') AS at_last;
SELECT parked_reason, count(*), count(*) FILTER (WHERE due_at = sync_clock()) AS due_now FROM sync_state WHERE source = 'google_calendar' GROUP BY 1 ORDER BY 1;
-- paused ones only where they are named
SELECT revive_syncs('google_calendar', 'paused', '1 day');
SELECT parked_reason, count(*) FROM sync_state GROUP BY 1 ORDER BY 1;
-- a row that was revived is due at its time
CALL at('224 hours');
SELECT count(*) FROM claim_due_syncs('google_calendar', 1000);

SELECT revive_syncs(NULL); -- ERROR
SELECT revive_syncs('google_calendar', 'unpaid'); -- ERROR
SELECT revive_syncs('google_calendar', spread => '-1 second'); -- ERROR
SELECT revive_syncs('google_calendar', spread => '24:00:00.000001'); -- ERROR
SELECT revive_syncs('google_calendar', max_rows => 0); -- ERROR
\set VERBOSITY default
SELECT revive_syncs('google_calendar', max_rows => NULL); -- ERROR
\set VERBOSITY terse

SET client_min_messages = warning;
DELETE FROM sync_state;
DELETE FROM sync_policy;
DROP SCHEMA regress_resync CASCADE;
