--
-- What a site's trigger writes while a call of ours writes
--
-- A BEFORE trigger of the site's runs in the middle of our statement.  It may
-- write other rows of sync_state, directly or by our functions.  Each of its
-- writes counts: the trigger of the table keeps these rows legal as always, and
-- the rest of the call works on what has become of them.
--
-- Time is moved by hand (syncstate.clock).
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
CREATE ROLE regress_syncstate_nested;
RESET client_min_messages;
SET timezone = 'UTC';
\set VERBOSITY terse
\pset format unaligned
\pset null '(null)'

CREATE SCHEMA regress_syncstate_nested;
SET search_path = regress_syncstate_nested, syncstate;
TRUNCATE sync_state, sync_policy;
SELECT grant_worker('regress_syncstate_nested');
GRANT USAGE ON SCHEMA regress_syncstate_nested TO regress_syncstate_nested;
SET syncstate.clock = '2030-01-01 12:00:00+00';

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- The row that the calls below write is the calendar of user 2.  When it is
-- written, the site's trigger runs this.
CREATE TABLE intrusion (statement text);
CREATE FUNCTION intrude() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	todo text;
BEGIN
	IF pg_trigger_depth() = 1 THEN
		FOR todo IN SELECT statement FROM regress_syncstate_nested.intrusion LOOP
			EXECUTE todo;
		END LOOP;
	END IF;
	RETURN NEW;
END
$$;
GRANT SELECT ON intrusion TO regress_syncstate_nested;
CREATE TRIGGER a_intrude BEFORE UPDATE ON sync_state FOR EACH ROW
	WHEN (NEW.user_id = u(2) AND NEW.source = 'google_calendar' AND NEW.resource = '')
	EXECUTE FUNCTION intrude();

-- That row and its neighbours, which differ from it in one part of the key.
-- All are held under lease 5, or due, that row first.
CREATE FUNCTION prepare(status sync_status, intrusion text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM regress_syncstate_nested.intrusion;
	DELETE FROM sync_state;
	INSERT INTO sync_state (user_id, source, resource, status, lease, due_at, sync_token, token_issued_at)
	SELECT u, s, r, prepare.status, 5, '2030-01-01 11:00:00+00'::timestamptz - interval '1 h' * first, 'old', '2030-01-01 10:00:00+00'
	FROM (VALUES (u(1), 'google_calendar'::sync_source, '', 0), (u(2), 'google_calendar', '', 1), (u(2), 'google_calendar', 'more', 0),
				 (u(2), 'google_tasks', '', 0), (u(3), 'google_calendar', '', 0)) AS v (u, s, r, first);
	INSERT INTO regress_syncstate_nested.intrusion VALUES (intrusion);
END
$$;

CREATE FUNCTION reports(VARIADIC users integer[]) RETURNS jsonb LANGUAGE sql STABLE
RETURN (SELECT jsonb_agg(jsonb_build_object('user_id', u(n), 'source', 'google_calendar', 'lease', 5, 'outcome', 'completed',
											'sync_token', 'new')) FROM unnest(users) AS n);

-- What became of the calendars of users 1 to 3.
CREATE VIEW calendars AS
SELECT right(user_id::text, 1) AS u, status, lease, sync_token, requested_at::time AS requested, page_token
FROM sync_state WHERE source = 'google_calendar' AND resource = '' ORDER BY user_id;

-- ---------------------------------------------------------------------
-- A batch of reports, one of whose rows the trigger writes
-- ---------------------------------------------------------------------

-- a later row of the batch is written: its report counts all the same
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET requested_at = now() WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(reports(1, 2, 3));
TABLE calendars;

-- by a call of ours
SELECT prepare('syncing', $$SELECT syncstate.request_sync('00000000-0000-4000-8000-000000000003', 'google_calendar')$$);
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(reports(3, 2, 1));
TABLE calendars;

-- several times
SELECT prepare('syncing', $$
	DO 'BEGIN
		FOR i IN 1 .. 3 LOOP
			PERFORM syncstate.checkpoint_sync(''00000000-0000-4000-8000-000000000003'', ''google_calendar'', 5, ''page '' || i);
		END LOOP;
	END'$$);
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(reports(2, 3));
TABLE calendars;

-- an earlier row of the batch, which was written before
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET requested_at = now() WHERE user_id = '00000000-0000-4000-8000-000000000001'$$);
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(reports(1, 2));
TABLE calendars;

-- the same as a worker whom a policy of the site's binds
CREATE POLICY fence ON sync_state AS RESTRICTIVE USING (true);
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET requested_at = now() WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT reports(1, 2, 3) AS batch \gset
SET ROLE regress_syncstate_nested;
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(:'batch');
RESET ROLE;
TABLE calendars;
DROP POLICY fence ON sync_state;

-- The trigger ends the other sync itself, revokes it or deletes the row: a
-- report that comes too late by that is left out.
SELECT prepare('syncing', $$SELECT syncstate.mark_sync_completed('00000000-0000-4000-8000-000000000003', 'google_calendar', sync_token => 'earlier', lease => 5)$$);
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(reports(1, 2, 3));
TABLE calendars;
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET status = 'syncing', lease = 6 WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(reports(1, 2, 3));
TABLE calendars;
SELECT prepare('syncing', $$SELECT syncstate.disconnect_sync('00000000-0000-4000-8000-000000000003', 'google_calendar')$$);
SELECT right(user_id::text, 1) AS u, status, sync_token FROM report_syncs(reports(1, 2, 3));
TABLE calendars;

-- ---------------------------------------------------------------------
-- A claim, one of whose rows the trigger writes
-- ---------------------------------------------------------------------

-- If this claim does not get the row, the next one does; never both.
SELECT prepare('idle', $$UPDATE syncstate.sync_state SET sync_token = 'written meanwhile' WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
CREATE TABLE claimed AS SELECT * FROM claim_due_syncs('google_calendar');
INSERT INTO claimed SELECT * FROM claim_due_syncs('google_calendar');
SELECT right(user_id::text, 1) AS u, resource, lease FROM claimed ORDER BY user_id, resource;
SELECT right(user_id::text, 1) AS u, status, lease, sync_token FROM sync_state WHERE user_id = u(3);

-- A row that the trigger deletes is not handed out; one of another source that
-- it claims itself is its own.
SELECT prepare('idle', $$SELECT syncstate.disconnect_sync('00000000-0000-4000-8000-000000000003', 'google_calendar')$$);
SELECT right(user_id::text, 1) AS u, resource FROM claim_due_syncs('google_calendar') ORDER BY user_id, resource;
SELECT prepare('idle', $$SELECT count(*) FROM syncstate.claim_due_syncs('google_tasks')$$);
SELECT right(user_id::text, 1) AS u, source, resource FROM claim_due_syncs('google_calendar') ORDER BY user_id, resource;
SELECT source, count(*), min(lease), max(lease) FROM sync_state WHERE status = 'syncing' GROUP BY 1 ORDER BY 1;

-- ---------------------------------------------------------------------
-- The neighbours are guarded, whatever call writes the row
-- ---------------------------------------------------------------------

-- How many of the four neighbours keep their fencing number and are requested
-- now, although somebody wrote something else, and have the time of their new
-- cursor.
CREATE FUNCTION guarded(call text, status sync_status DEFAULT 'syncing', as_role name DEFAULT CURRENT_USER)
	RETURNS TABLE (called text, role text, neighbours bigint, fenced bigint, requested bigint, dated bigint) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM prepare(status, $q$UPDATE syncstate.sync_state SET requested_at = '0001-01-02', history_id = '7', lease = 0
		WHERE (user_id, source, resource) <> ('00000000-0000-4000-8000-000000000002', 'google_calendar', '')$q$);
	EXECUTE format('SET LOCAL ROLE %I', as_role);
	EXECUTE 'SELECT ' || call;
	RESET ROLE;
	RETURN QUERY SELECT left(call, strpos(call, '(') - 1), CASE WHEN as_role = CURRENT_USER THEN 'owner' ELSE 'worker' END, count(*),
		count(*) FILTER (WHERE s.lease = 5),
		count(*) FILTER (WHERE s.requested_at = '2030-01-01 12:00:00+00' AND s.updated_at = '2030-01-01 12:00:00+00'),
		count(*) FILTER (WHERE s.history_id = '7' AND s.token_issued_at = '2030-01-01 12:00:00+00')
	FROM sync_state AS s
	WHERE (user_id, source, resource) <> (u(2), 'google_calendar', '');
END
$$;

CREATE TABLE calls (n integer GENERATED ALWAYS AS IDENTITY, call text, status sync_status);
INSERT INTO calls (call, status) VALUES
	($$mark_sync_started('00000000-0000-4000-8000-000000000002', 'google_calendar')$$, 'idle'),
	($$claim_due_syncs('google_calendar', 1)$$, 'idle'),
	($$mark_sync_completed('00000000-0000-4000-8000-000000000002', 'google_calendar', lease => 5)$$, 'syncing'),
	($$mark_sync_failed('00000000-0000-4000-8000-000000000002', 'google_calendar', 'broken', lease => 5)$$, 'syncing'),
	($$mark_rate_limited('00000000-0000-4000-8000-000000000002', 'google_calendar', lease => 5)$$, 'syncing'),
	($$clear_sync_token('00000000-0000-4000-8000-000000000002', 'google_calendar', 5)$$, 'syncing'),
	($$renew_sync_lease('00000000-0000-4000-8000-000000000002', 'google_calendar', 5)$$, 'syncing'),
	($$checkpoint_sync('00000000-0000-4000-8000-000000000002', 'google_calendar', 5, 'page')$$, 'syncing'),
	($$release_sync('00000000-0000-4000-8000-000000000002', 'google_calendar', 5)$$, 'syncing'),
	($$report_syncs('[{"user_id": "00000000-0000-4000-8000-000000000002", "source": "google_calendar", "lease": 5, "outcome": "completed"}]')$$, 'syncing'),
	($$update_sync_state('00000000-0000-4000-8000-000000000002', 'google_calendar', '{"status": "idle"}')$$, 'syncing'),
	($$connect_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$, 'idle'),
	($$pause_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$, 'idle'),
	($$resume_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$, 'idle'),
	($$request_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$, 'idle');
SELECT g.* FROM calls, guarded(call, status) AS g ORDER BY n;
CREATE POLICY fence ON sync_state AS RESTRICTIVE USING (true);
SELECT g.* FROM calls, guarded(call, status, 'regress_syncstate_nested') AS g ORDER BY n;
DROP POLICY fence ON sync_state;

-- ---------------------------------------------------------------------
-- What follows from a nested write is as it is from any other
-- ---------------------------------------------------------------------
CREATE FUNCTION complete() RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT status || ' ' || sync_token FROM mark_sync_completed(u(2), 'google_calendar', sync_token => 'new', lease => 5);
END;

-- an end, a start, a parked row
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET status = 'idle' WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT complete();
SELECT status, lease, lease_expires_at, due_at > '2030-01-01 12:00:00+00' AS later FROM sync_state WHERE user_id = u(3);
SELECT prepare('idle', $$UPDATE syncstate.sync_state SET status = 'syncing' WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT parked_reason FROM pause_sync(u(2), 'google_calendar');
SELECT status, lease, lease_expires_at::time, last_sync_at::time FROM sync_state WHERE user_id = u(3);
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET due_at = NULL WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT complete();
SELECT status, due_at::time, parked_reason FROM sync_state WHERE user_id = u(3);

-- what is refused elsewhere is refused here
\set VERBOSITY sqlstate
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET resource = 'other' WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT complete(); -- ERROR
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET lease = 9223372036854775807 WHERE user_id = '00000000-0000-4000-8000-000000000003'$$);
SELECT complete(); -- ERROR
\set VERBOSITY terse
TABLE calendars;

-- our functions
SELECT prepare('syncing', $$
	DO 'DECLARE
		u uuid = ''00000000-0000-4000-8000-000000000003'';
	BEGIN
		PERFORM syncstate.mark_sync_failed(u, ''google_calendar'', ''broken'', lease => 5);
		PERFORM syncstate.connect_sync(u, ''google_gmail'');
		PERFORM syncstate.mark_sync_started(u, ''google_gmail'');
		PERFORM syncstate.request_sync(u, ''google_calendar'');
		UPDATE syncstate.sync_state SET lease = 0 WHERE user_id = u;
	END'$$);
SELECT complete();
SELECT source, status, lease > 0 AS fenced, failures, requested_at::time FROM sync_state WHERE user_id = u(3) ORDER BY source;

-- ---------------------------------------------------------------------
-- The row itself: PostgreSQL refuses to update a row that a trigger before its
-- update has updated, and so does each call.
-- ---------------------------------------------------------------------
\set VERBOSITY sqlstate
SELECT prepare('syncing', $$UPDATE syncstate.sync_state SET error_message = 'by the trigger'
	WHERE user_id = '00000000-0000-4000-8000-000000000002' AND source = 'google_calendar' AND resource = ''$$);
SELECT complete(); -- ERROR
SELECT count(*) FROM report_syncs(reports(1, 2, 3)); -- ERROR
SELECT request_sync(u(2), 'google_calendar'); -- ERROR
SELECT prepare('syncing', $$SELECT syncstate.request_sync('00000000-0000-4000-8000-000000000002', 'google_calendar')$$);
SELECT complete(); -- ERROR
SELECT checkpoint_sync(u(2), 'google_calendar', 5, 'page'); -- ERROR
TABLE calendars;
\set VERBOSITY terse

-- A trigger that updates the row and has our update skipped: its own is guarded.
CREATE FUNCTION replace_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() = 1 THEN
		UPDATE syncstate.sync_state SET lease = 0, requested_at = '0001-01-02Z' WHERE user_id = NEW.user_id AND source = NEW.source;
		RETURN NULL;
	END IF;
	RETURN NEW;
END
$$;
SELECT prepare('idle', '');
UPDATE sync_state SET due_at = sync_clock() - interval '1 hour';
CREATE TRIGGER a_replace BEFORE UPDATE ON sync_state FOR EACH ROW EXECUTE FUNCTION replace_write();
SELECT count(*) FROM claim_due_syncs('google_calendar');
DROP TRIGGER a_replace ON sync_state;
SELECT bool_and(lease > 0) AS fenced, bool_and(requested_at = sync_clock()) AS requested_now FROM sync_state WHERE source = 'google_calendar';

-- ---------------------------------------------------------------------
-- Errors in between leave nothing behind
-- ---------------------------------------------------------------------

-- one that the trigger handles: the write continues as it began
SELECT prepare('syncing', $$
	DO 'BEGIN
		PERFORM syncstate.mark_sync_completed(''00000000-0000-4000-8000-000000000003'', ''google_calendar'', lease => 4);
	EXCEPTION WHEN SQLSTATE ''PT409'' THEN
		UPDATE syncstate.sync_state SET lease = 0 WHERE user_id = ''00000000-0000-4000-8000-000000000003'';
	END'$$);
SELECT complete();
TABLE calendars;

-- one that ends the call: the row is guarded again
SELECT prepare('syncing', $$SELECT 1 / 0$$);
SELECT complete(); -- ERROR
SELECT request_sync(u(2), 'google_calendar'); -- ERROR
DO $$
BEGIN
	PERFORM syncstate.checkpoint_sync('00000000-0000-4000-8000-000000000002', 'google_calendar', 5, 'page');
EXCEPTION WHEN division_by_zero THEN
	DELETE FROM regress_syncstate_nested.intrusion;
	UPDATE syncstate.sync_state SET lease = 0, requested_at = '0001-01-02'
	WHERE user_id = '00000000-0000-4000-8000-000000000002' AND source = 'google_calendar';
END
$$;
TABLE calendars;

RESET syncstate.clock;
DELETE FROM sync_state;
SET client_min_messages = warning;
DROP TRIGGER a_intrude ON sync_state;
DROP SCHEMA regress_syncstate_nested CASCADE;
DROP OWNED BY regress_syncstate_nested;
DROP ROLE regress_syncstate_nested;
