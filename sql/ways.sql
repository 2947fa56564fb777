--
-- Rows are locked and written without statements where that makes no
-- difference, and by statements where it would: triggers, constraints, rules
-- and policies that a site adds are obeyed either way.
--
-- Time is moved by hand (syncstate.clock).
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
CREATE ROLE regress_syncstate_ways;
RESET client_min_messages;
\set VERBOSITY terse
\pset null '(null)'

CREATE SCHEMA regress_syncstate_ways;
SET search_path = regress_syncstate_ways, syncstate;
TRUNCATE sync_state, sync_policy;
SELECT grant_worker('regress_syncstate_ways');

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;

CREATE FUNCTION clock(minutes integer) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	PERFORM set_config('syncstate.clock', format('2030-01-01 %s:%s:00+00',
					   lpad((minutes / 60)::text, 2, '0'), lpad((minutes % 60)::text, 2, '0')), false);
END
$$;

-- What the calls returned and left, without what is drawn at random: when user 2
-- is due, who failed.
CREATE TABLE log (way text, step integer, returned text);

CREATE FUNCTION told(s sync_state) RETURNS text LANGUAGE sql STABLE
RETURN to_jsonb(s) - 'created_at' - CASE WHEN s.user_id = u(2) THEN 'due_at' ELSE '' END;

-- Every call that locks or writes a row, in several states of it.
CREATE FUNCTION life(way text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	calls text[] := ARRAY[
		$q$SELECT connect_sync(u(1), 'google_calendar')$q$,
		$q$SELECT s FROM generate_series(2, 9) AS i, connect_sync(u(i), 'google_calendar', 'r' || i) AS s$q$,
		$q$SELECT s FROM claim_due_syncs('google_calendar', max_rows => 5) AS s$q$,
		$q$SELECT mark_sync_completed(u(1), 'google_calendar', 3, 'token', lease => 1)$q$,
		$q$SELECT mark_sync_failed(u(2), 'google_calendar', 'broken', lease => 1, resource => 'r2')$q$,
		$q$SELECT mark_rate_limited(u(3), 'google_calendar', '5 min', lease => 1, resource => 'r3')$q$,
		$q$SELECT checkpoint_sync(u(4), 'google_calendar', 1, 'page', 2, 7, resource => 'r4')$q$,
		$q$SELECT renew_sync_lease(u(4), 'google_calendar', 1, '20 min', resource => 'r4')$q$,
		$q$SELECT clear_sync_token(u(4), 'google_calendar', 1, resource => 'r4')$q$,
		$q$SELECT release_sync(u(5), 'google_calendar', 1, resource => 'r5')$q$,
		$q$SELECT clock(30)$q$,
		$q$SELECT mark_sync_started(u(1), 'google_calendar')$q$,
		$q$SELECT s FROM claim_due_syncs('google_calendar', max_rows => 100, lease_time => '1 min') AS s$q$,
		$q$SELECT s FROM report_syncs(jsonb_build_array(
			jsonb_build_object('user_id', u(9), 'source', 'google_calendar', 'resource', 'r9', 'lease', 1, 'outcome', 'completed', 'history_id', 7),
			jsonb_build_object('user_id', u(8), 'source', 'google_calendar', 'resource', 'r8', 'lease', 99, 'outcome', 'completed'),
			jsonb_build_object('user_id', u(2), 'source', 'google_calendar', 'resource', 'r2', 'lease', 2, 'outcome', 'failed', 'error_message', 'again'),
			jsonb_build_object('user_id', u(77), 'source', 'google_calendar', 'lease', 1, 'outcome', 'released'))) AS s$q$,
		$q$SELECT mark_sync_completed(u(1), 'google_calendar', lease => 1)$q$,
		$q$SELECT mark_sync_completed(u(77), 'google_calendar', lease => 1)$q$,
		$q$SELECT mark_sync_completed(u(78), 'google_calendar')$q$,
		$q$SELECT update_sync_state(u(7), 'google_calendar', '{"status": "idle", "sync_interval": "1 hour"}', 'r7')$q$,
		$q$SELECT pause_sync(u(6), 'google_calendar', 'r6')$q$,
		$q$SELECT resume_sync(u(6), 'google_calendar', 'r6')$q$,
		$q$SELECT connect_sync(u(1), s, '', 'work') FROM unnest('{google_calendar,google_gmail,google_tasks}'::sync_source[]) AS s$q$,
		$q$SELECT s FROM claim_due_syncs('google_gmail') AS s$q$,
		$q$SELECT mark_rate_limited(u(1), 'google_calendar', '1 hour', account => 'work')$q$,
		$q$SELECT connect_sync(u(1), 'google_calendar', 'late', 'work')$q$,
		$q$SELECT s FROM report_syncs(jsonb_build_array(jsonb_build_object('user_id', u(1), 'account', 'work', 'source', 'google_gmail',
			'lease', 1, 'outcome', 'failed', 'error_message', 'invalid_grant', 'kind', 'auth'))) AS s$q$,
		$q$SELECT s FROM connect_account(u(1), 'work') AS s$q$,
		$q$SELECT (c.resource, c.change)::text FROM set_sync_resources(u(1), 'google_calendar', '{new}', 'work') AS c$q$,
		$q$SELECT s FROM pause_account(u(1), 'work', 'google') AS s$q$,
		$q$SELECT s FROM resume_account(u(1), 'work') AS s$q$,
		$q$SELECT (c.source, c.resource)::text FROM request_account(u(1), 'work') AS c$q$,
		$q$SELECT mark_sync_failed(u(1), 'google_tasks', 'no', 'auth', account => 'work')$q$,
		$q$SELECT s FROM disconnect_account(u(2)) AS s$q$,
		$q$SELECT clock(45)$q$,
		$q$SELECT s FROM claim_due_syncs('google_calendar', max_rows => 100) AS s$q$];
	call text;
	answer record;
BEGIN
	TRUNCATE sync_state;
	PERFORM clock(0);
	FOR step IN 1 .. array_length(calls, 1) LOOP
		BEGIN
			IF calls[step] LIKE 'SELECT clock%' THEN
				EXECUTE calls[step];
				CONTINUE;
			END IF;
			call := calls[step];
			FOR answer IN EXECUTE format('SELECT %s AS s FROM (%s) AS _ (s)', CASE WHEN call LIKE '%::text FROM%' THEN 's' ELSE 'told(s)' END, call) LOOP
				INSERT INTO log VALUES (way, step, answer.s);
			END LOOP;
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO log VALUES (way, step, SQLSTATE);
		END;
	END LOOP;
	INSERT INTO log SELECT way, 0, told(s) FROM sync_state AS s;
	RETURN count(*) FROM log WHERE log.way = life.way;
END
$$;

-- ---------------------------------------------------------------------
-- The same by each way
-- ---------------------------------------------------------------------
SELECT life('plain');

CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER pass BEFORE UPDATE ON sync_state FOR EACH ROW EXECUTE FUNCTION pass();
SELECT life('row trigger');
DROP TRIGGER pass ON sync_state;

CREATE TRIGGER pass AFTER UPDATE ON sync_state FOR EACH ROW EXECUTE FUNCTION pass();
SELECT life('row trigger, after');
DROP TRIGGER pass ON sync_state;

ALTER TABLE sync_state ADD CONSTRAINT pass CHECK (failures >= 0);
SELECT life('constraint');
ALTER TABLE sync_state DROP CONSTRAINT pass;

CREATE TRIGGER pass AFTER UPDATE ON sync_state FOR EACH STATEMENT EXECUTE FUNCTION pass();
SELECT life('statement trigger');
DROP TRIGGER pass ON sync_state;

CREATE POLICY pass ON sync_state AS RESTRICTIVE USING (true);
GRANT ALL ON SCHEMA regress_syncstate_ways TO regress_syncstate_ways;
GRANT ALL ON log TO regress_syncstate_ways;
GRANT TRUNCATE ON sync_state TO regress_syncstate_ways;
SET ROLE regress_syncstate_ways;
SELECT life('restrictive policy');
RESET ROLE;
DROP POLICY pass ON sync_state;
SET ROLE regress_syncstate_ways;
SELECT life('worker');
RESET ROLE;

-- the differences between each way and the first
SELECT way, step, returned FROM log AS l
WHERE NOT EXISTS (SELECT FROM log AS p WHERE p.way = 'plain' AND p.step = l.step AND p.returned = l.returned)
UNION ALL
SELECT w.way, p.step, 'missing: ' || p.returned FROM log AS p, (SELECT DISTINCT way FROM log) AS w
WHERE p.way = 'plain' AND NOT EXISTS (SELECT FROM log AS l WHERE l.way = w.way AND l.step = p.step AND l.returned = p.returned)
ORDER BY 1, 2, 3;

-- ---------------------------------------------------------------------
-- What a site adds is obeyed
-- ---------------------------------------------------------------------

-- A trigger that will not have a row written: as if it were not there.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RETURN CASE WHEN NEW.user_id <> regress_syncstate_ways.u(1) THEN NEW END;
END
$$;
CREATE FUNCTION prepare() RETURNS void LANGUAGE sql
BEGIN ATOMIC
	DELETE FROM sync_state;
	SELECT clock(0);
	INSERT INTO sync_state (user_id, source, due_at, status, lease)
	SELECT u(i), 'google_calendar', '2029-12-31 23:00:00+00', CASE WHEN i > 2 THEN 'syncing'::sync_status ELSE 'idle' END, 1
	FROM generate_series(1, 4) AS i;
END;
SELECT prepare();
CREATE TRIGGER refuse BEFORE UPDATE ON sync_state FOR EACH ROW EXECUTE FUNCTION refuse();
SELECT count(*) AS claimed, bool_and(user_id = u(2)) FROM claim_due_syncs('google_calendar');
SELECT mark_sync_completed(u(1), 'google_calendar'); -- ERROR
DROP TRIGGER refuse ON sync_state;

-- A trigger that changes the row: the caller gets what was written.
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.error_message := 'changed';
	RETURN NEW;
END
$$;
SELECT prepare();
CREATE TRIGGER note BEFORE UPDATE ON sync_state FOR EACH ROW EXECUTE FUNCTION note();
SELECT (mark_sync_completed(u(3), 'google_calendar', lease => 1)).error_message;
SELECT DISTINCT error_message FROM claim_due_syncs('google_calendar');
DROP TRIGGER note ON sync_state;

-- Triggers after a row, and for certain columns, fire once for each.
CREATE TABLE seen (user_id uuid, old sync_status, new sync_status);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_syncstate_ways.seen VALUES (NEW.user_id, OLD.status, NEW.status);
	RETURN NULL;
END
$$;
SELECT prepare();
CREATE TRIGGER see AFTER UPDATE OF status ON sync_state FOR EACH ROW
	WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION see();
SELECT count(*) FROM claim_due_syncs('google_calendar');
SELECT count(*) FROM report_syncs(jsonb_build_array(
	jsonb_build_object('user_id', u(3), 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed'),
	jsonb_build_object('user_id', u(4), 'source', 'google_calendar', 'lease', 1, 'outcome', 'released')));
SELECT old, new, count(*), count(DISTINCT user_id) FROM seen GROUP BY 1, 2 ORDER BY 1, 2;
DROP TRIGGER see ON sync_state;

-- A constraint of the site's refuses, and nothing is changed.
SELECT prepare();
ALTER TABLE sync_state ADD CONSTRAINT few_items CHECK (items_synced < 10);
SELECT mark_sync_completed(u(3), 'google_calendar', 10, lease => 1); -- ERROR
SELECT status, lease, items_synced FROM sync_state WHERE user_id = u(3);
ALTER TABLE sync_state DROP CONSTRAINT few_items;

-- Columns of the site's stay, and generated ones follow.
SELECT prepare();
DROP FUNCTION life(text), told(sync_state);
ALTER TABLE sync_state ADD COLUMN note text, ADD COLUMN next bigint GENERATED ALWAYS AS (lease + 1) STORED;
UPDATE sync_state SET note = 'mine' WHERE user_id = u(1);
SELECT count(*) FROM claim_due_syncs('google_calendar');
SELECT note, lease, next FROM sync_state WHERE user_id <= u(2) ORDER BY user_id;
ALTER TABLE sync_state DROP COLUMN next;
SELECT (mark_sync_completed(u(1), 'google_calendar', lease => 2)).status;
SELECT (update_sync_state(u(1), 'google_calendar', '{"failures": 3}')).failures;
SELECT note, lease FROM sync_state WHERE user_id = u(1);

-- A restrictive policy narrows what workers reach.
SELECT prepare();
CREATE POLICY narrow ON sync_state AS RESTRICTIVE USING (user_id IN (regress_syncstate_ways.u(2), regress_syncstate_ways.u(4)));
SET ROLE regress_syncstate_ways;
SELECT user_id = u(2) AS the_second FROM claim_due_syncs('google_calendar');
SELECT user_id = u(4) AS the_fourth FROM report_syncs(jsonb_build_array(
	jsonb_build_object('user_id', u(3), 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed'),
	jsonb_build_object('user_id', u(4), 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed')));
SELECT mark_sync_completed(u(3), 'google_calendar', lease => 1); -- ERROR
RESET ROLE;
DROP POLICY narrow ON sync_state;
SET ROLE regress_syncstate_ways;
SELECT (mark_sync_completed(u(3), 'google_calendar', lease => 1)).status;
RESET ROLE;

-- Whoever lost the privileges on the table hears of it.
REVOKE UPDATE ON sync_state FROM regress_syncstate_ways;
SET ROLE regress_syncstate_ways;
SELECT mark_sync_completed(u(3), 'google_calendar'); -- ERROR
SELECT claim_due_syncs('google_calendar'); -- ERROR
SET row_security = off;
SELECT mark_sync_completed(u(3), 'google_calendar'); -- ERROR
RESET row_security;
RESET ROLE;

-- Nothing is written where nothing may be.
BEGIN TRANSACTION READ ONLY;
SELECT mark_sync_completed(u(3), 'google_calendar'); -- ERROR
ROLLBACK;

-- A session remembers where it put the rows that it claimed.  They may be
-- elsewhere by now: changed by somebody else, written to a smaller table, and
-- other rows where they were.
CREATE FUNCTION remember() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM clock(0);
	TRUNCATE sync_state;
	INSERT INTO sync_state (user_id, source, resource, due_at)
	SELECT u(1), 'google_calendar', i, '2029-12-31 00:00:00+00' FROM generate_series(1, 200) AS i;
	RETURN count(*) || ' claimed' FROM claim_due_syncs('google_calendar', 1000);
END
$$;

CREATE FUNCTION report_all() RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT count(*) || ' reported, ' || count(*) FILTER (WHERE sync_token = resource) || ' as they were'
	FROM report_syncs((SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'source', source, 'resource', resource,
		'lease', lease, 'outcome', 'completed', 'sync_token', resource)) FROM sync_state));
END;
SELECT remember();
UPDATE sync_state SET page_token = 'elsewhere';
SELECT report_all();
SELECT count(*) FROM sync_state WHERE sync_token = resource;
SELECT remember();
ALTER TABLE sync_state SET (fillfactor = 75);
VACUUM FULL sync_state;
SELECT report_all();
ALTER TABLE sync_state SET (fillfactor = 50);
SELECT remember();
DELETE FROM sync_state WHERE resource <> '200';
VACUUM FULL sync_state;
SELECT report_all();
SELECT remember();
TRUNCATE sync_state;
SELECT mark_sync_completed(u(1), 'google_calendar', lease => 1, resource => '100'); -- ERROR

-- columns of the site's, by names that our statements use, where a trigger makes it statements
BEGIN;
ALTER TABLE sync_state ADD COLUMN s integer DEFAULT 1, ADD COLUMN r text DEFAULT 'x';
ALTER TABLE sync_event ADD COLUMN e integer DEFAULT 1, ADD COLUMN t integer;
ALTER TABLE sync_policy ADD COLUMN p integer DEFAULT 1, ADD COLUMN r integer DEFAULT 1, ADD COLUMN policy integer;
CREATE TRIGGER site BEFORE UPDATE ON sync_state FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
SELECT status, s FROM connect_sync(u(1), 'google_tasks');
SELECT status, s, r FROM claim_due_syncs('google_tasks');
SELECT items_synced, s FROM update_sync_state(u(1), 'google_tasks', '{"items_synced": 5}');
SELECT parked_reason, s FROM pause_sync(u(1), 'google_tasks');
SELECT event, e FROM take_sync_events(10000) WHERE source = 'google_tasks';
SELECT jitter FROM set_sync_policy('google_tasks', '{"jitter": 0.2}');
SELECT resource, s FROM disconnect_account(u(1));
ROLLBACK;

-- a trigger whose condition looks something up, each time in a command of its own
BEGIN;
CREATE FUNCTION is_known(u uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN EXISTS (SELECT FROM sync_state WHERE user_id = u); END $$;
CREATE FUNCTION tell_status() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'now %', NEW.status; RETURN NULL; END $$;
CREATE TRIGGER site AFTER UPDATE ON sync_state FOR EACH ROW WHEN (is_known(NEW.user_id)) EXECUTE FUNCTION tell_status();
SELECT count(connect_sync(u(n), 'google_tasks')) FROM generate_series(1, 3) AS n;
SELECT count(*) FROM claim_due_syncs('google_tasks');
ROLLBACK;

-- a column that the site does not allow to be null
BEGIN;
SELECT status FROM connect_sync(u(1), 'google_tasks');
ALTER TABLE sync_state ALTER due_at SET NOT NULL;
SELECT status FROM claim_due_syncs('google_tasks');
SELECT pause_sync(u(1), 'google_tasks'); -- ERROR
ROLLBACK;

-- an index of the right name with other columns, and one that is being built
BEGIN;
DROP INDEX sync_state_due;
CREATE INDEX sync_state_due ON sync_state (source, due_at);
SELECT claim_due_syncs('google_calendar'); -- ERROR
ROLLBACK;
BEGIN;
UPDATE pg_index SET indisready = false WHERE indexrelid = 'sync_state_due'::regclass;
SELECT claim_due_syncs('google_calendar'); -- ERROR
ROLLBACK;

-- something else by the name of the table, which only a superuser can bring about
BEGIN;
ALTER EXTENSION syncstate DROP TABLE sync_state;
ALTER TABLE sync_state RENAME TO once_sync_state;
CREATE TABLE syncstate.sync_state (LIKE once_sync_state INCLUDING DEFAULTS) PARTITION BY HASH (user_id);
SELECT next_sync_due('google_calendar'); -- ERROR
ROLLBACK;

DROP OWNED BY regress_syncstate_ways;
DROP ROLE regress_syncstate_ways;
RESET client_min_messages;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_ways CASCADE;
-- columns that were dropped leave traces: the next test starts afresh
DROP EXTENSION syncstate;
