--
-- What a site's trigger sees of the session's settings
--
-- Our statements go by key and ctid, whatever the planner would prefer.  A
-- trigger of the site's that runs meanwhile sees none of that: it has the
-- session's own settings, and what it sets lasts as it would elsewhere.
--
-- Time is moved by hand (syncstate.clock).
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
CREATE ROLE regress_syncstate_settings;
RESET client_min_messages;
\set VERBOSITY terse
\pset format unaligned
\pset null '(null)'

CREATE SCHEMA regress_syncstate_settings;
SET search_path = regress_syncstate_settings, syncstate;
TRUNCATE sync_state, sync_policy, sync_budget;
SELECT grant_worker('regress_syncstate_settings');
SET syncstate.clock = '2030-01-01 12:00:00+00';

-- A row security policy has a worker's calls use statements throughout.
CREATE POLICY fence ON sync_state AS RESTRICTIVE USING (true);

-- All settings as the session has them, and those that a trigger saw otherwise.
CREATE TABLE own AS SELECT name, setting FROM pg_settings WITH NO DATA;
CREATE TABLE seen (fired_by text, name text, own text, seen text);
CREATE TABLE small (id integer PRIMARY KEY);
INSERT INTO small VALUES (1);
ANALYZE small;
CREATE TABLE fired (fired_by text, plan text);

CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = regress_syncstate_settings, pg_catalog AS $$
DECLARE
	plan text;
BEGIN
	INSERT INTO seen SELECT TG_OP || ' ' || TG_TABLE_NAME, s.name, o.setting, s.setting
	FROM pg_settings AS s LEFT JOIN own AS o USING (name)
	WHERE s.setting IS DISTINCT FROM o.setting AND name NOT IN ('search_path', 'role', 'is_superuser');
	-- of a table with one row, which no index makes faster
	EXECUTE 'EXPLAIN (COSTS OFF) SELECT FROM small WHERE id = 1' INTO plan;
	INSERT INTO fired VALUES (TG_OP || ' ' || TG_TABLE_NAME, plan);
	RETURN coalesce(NEW, OLD);
END
$$;
CREATE TRIGGER a_note BEFORE INSERT OR UPDATE OR DELETE ON sync_state FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER a_note BEFORE INSERT OR UPDATE OR DELETE ON sync_policy FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER a_note BEFORE INSERT OR UPDATE OR DELETE ON sync_budget FOR EACH ROW EXECUTE FUNCTION note();

-- Calls that read and write in all ways, as a worker.
CREATE FUNCTION work() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	u uuid := '00000000-0000-4000-8000-000000000001';
	l bigint;
BEGIN
	PERFORM syncstate.connect_sync(u, 'google_calendar');
	PERFORM syncstate.request_sync(u, 'google_calendar');
	SELECT lease INTO STRICT l FROM syncstate.claim_due_syncs('google_calendar');
	PERFORM syncstate.renew_sync_lease(u, 'google_calendar', l);
	PERFORM syncstate.mark_sync_completed(u, 'google_calendar', sync_token => 'token', lease => l);
	PERFORM syncstate.request_sync(u, 'google_calendar');
	PERFORM syncstate.update_sync_state(u, 'google_calendar', '{"sync_interval": "1 hour"}');
	PERFORM syncstate.pause_sync(u, 'google_calendar');
	PERFORM syncstate.resume_sync(u, 'google_calendar');
	PERFORM syncstate.get_users_needing_sync('google_calendar');
	PERFORM syncstate.next_sync_due();
	PERFORM syncstate.disconnect_sync(u, 'google_calendar');
END
$$;
CREATE FUNCTION steer() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM syncstate.connect_sync('00000000-0000-4000-8000-000000000001', 'google_gmail');
	PERFORM syncstate.set_sync_policy('google_gmail', '{"daily_budget": 100}');
	PERFORM syncstate.pause_sync_source('google_gmail');
	PERFORM syncstate.resume_sync_source('google_gmail');
	PERFORM syncstate.rebalance_syncs('google_gmail');
	PERFORM syncstate.set_sync_policy('google_gmail', '{"daily_budget": null}');
	PERFORM syncstate.disconnect_sync('00000000-0000-4000-8000-000000000001', 'google_gmail');
END
$$;
GRANT USAGE ON SCHEMA regress_syncstate_settings TO regress_syncstate_settings;

-- ---------------------------------------------------------------------
-- A trigger sees the session's own settings, and plans by them
-- ---------------------------------------------------------------------
INSERT INTO own SELECT name, setting FROM pg_settings;
SET ROLE regress_syncstate_settings;
SELECT work(), steer();
RESET ROLE;
SELECT DISTINCT fired_by, plan FROM fired WHERE fired_by ~ 'sync_state' ORDER BY 1, 2;
SELECT DISTINCT plan FROM fired;
SELECT DISTINCT name, own, seen, fired_by FROM seen ORDER BY 1, 2, 3, 4;

-- unusual ones as well
TRUNCATE own, seen, fired;
SET enable_nestloop = off;
SET enable_indexscan = off;
SET enable_tidscan = off;
SET enable_seqscan = on;
SET jit = on;
SET plan_cache_mode = force_custom_plan;
INSERT INTO own SELECT name, setting FROM pg_settings;
SET ROLE regress_syncstate_settings;
SELECT work(), steer();
RESET ROLE;
SELECT DISTINCT plan FROM fired;
SELECT DISTINCT name, own, seen, fired_by FROM seen ORDER BY 1, 2, 3, 4;
RESET enable_nestloop;
RESET enable_indexscan;
RESET enable_tidscan;
RESET enable_seqscan;
RESET jit;
RESET plan_cache_mode;

-- A plan that the trigger keeps is made by the session's settings, too.
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql
	SECURITY DEFINER SET search_path = regress_syncstate_settings, pg_catalog AS $$
BEGIN
	PERFORM FROM small WHERE id = 1;
	RETURN coalesce(NEW, OLD);
END
$$;
CREATE TRIGGER b_keep BEFORE INSERT OR UPDATE OR DELETE ON sync_state FOR EACH ROW EXECUTE FUNCTION keep();
CREATE VIEW scans AS SELECT relname, seq_scan, coalesce(idx_scan, 0) AS idx_scan FROM pg_stat_xact_user_tables
WHERE relid IN ('small'::regclass, 'syncstate.sync_state'::regclass);
DROP TRIGGER a_note ON sync_state;
BEGIN;
CREATE TEMP TABLE before AS TABLE scans;
SET LOCAL ROLE regress_syncstate_settings;
SELECT work();
RESET ROLE;
SELECT now.seq_scan - before.seq_scan > 5 AS seq_scans, now.idx_scan - before.idx_scan AS idx_scans
FROM scans AS now JOIN before USING (relname) WHERE relname = 'small';
ROLLBACK;

-- ---------------------------------------------------------------------
-- Our own statements never read a table of few rows from end to end, as the
-- planner would
-- ---------------------------------------------------------------------
INSERT INTO sync_state (user_id, source, due_at) VALUES ('00000000-0000-4000-8000-000000000002', 'google_tasks', '2030-01-01 18:00:00+00');
ANALYZE sync_state;
DO $$
DECLARE
	plan text;
BEGIN
	EXECUTE 'EXPLAIN (COSTS OFF) SELECT status FROM sync_state
		WHERE user_id = ''00000000-0000-4000-8000-000000000002'' AND source = ''google_tasks'' AND resource = ''''' INTO plan;
	RAISE NOTICE '%', plan;
END
$$;
BEGIN;
CREATE TEMP TABLE before AS TABLE scans;
SET LOCAL ROLE regress_syncstate_settings;
SELECT work();
SET LOCAL enable_indexscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_tidscan = off;
SET LOCAL enable_seqscan = on;
SET LOCAL plan_cache_mode = force_custom_plan;
SELECT work();
RESET ROLE;
SELECT work();
SELECT now.seq_scan - before.seq_scan AS seq_scans, now.idx_scan - before.idx_scan > 10 AS idx_scans
FROM scans AS now JOIN before USING (relname) WHERE relname = 'sync_state';
ROLLBACK;
DROP TRIGGER b_keep ON sync_state;

-- ---------------------------------------------------------------------
-- What a trigger sets lasts
-- ---------------------------------------------------------------------
CREATE FUNCTION set_some() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL enable_hashjoin = off;
	SET LOCAL enable_seqscan = off;
	SET LOCAL jit = off;
	PERFORM set_config('enable_mergejoin', 'off', true), set_config('enable_nestloop', 'off', true),
		set_config('enable_indexscan', 'off', true), set_config('enable_tidscan', 'off', true), set_config('work_mem', '1MB', true);
	RETURN coalesce(NEW, OLD);
END
$$;
CREATE TRIGGER a_set BEFORE INSERT OR UPDATE OR DELETE ON sync_state FOR EACH ROW EXECUTE FUNCTION set_some();
CREATE FUNCTION tell(OUT hashjoin text, OUT seqscan text, OUT jit text, OUT mergejoin text, OUT nestloop text, OUT indexscan text, OUT tidscan text, OUT mem text) LANGUAGE sql
RETURN (current_setting('enable_hashjoin'), current_setting('enable_seqscan'), current_setting('jit'), current_setting('enable_mergejoin'),
	current_setting('enable_nestloop'), current_setting('enable_indexscan'), current_setting('enable_tidscan'), current_setting('work_mem'));
SET jit = on;
SET work_mem = '2MB';
SELECT * FROM tell();
BEGIN;
SELECT status FROM connect_sync('00000000-0000-4000-8000-000000000001', 'google_calendar');
SELECT * FROM tell();
SELECT count(*) FROM claim_due_syncs('google_calendar');
SELECT * FROM tell();
COMMIT;
SELECT * FROM tell();
BEGIN;
SELECT request_sync('00000000-0000-4000-8000-000000000001', 'google_calendar');
SELECT * FROM tell();
SAVEPOINT s;
SET LOCAL enable_hashjoin = on;
SELECT disconnect_sync('00000000-0000-4000-8000-000000000001', 'google_calendar');
SELECT * FROM tell();
ROLLBACK TO s;
SELECT * FROM tell();
ROLLBACK;
SELECT * FROM tell();

-- beyond the transaction, where it says so
CREATE OR REPLACE FUNCTION set_some() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	SET enable_hashjoin = off;
	SET enable_seqscan = off;
	RETURN coalesce(NEW, OLD);
END
$$;
SELECT request_sync('00000000-0000-4000-8000-000000000001', 'google_calendar');
SELECT parked_reason FROM pause_sync('00000000-0000-4000-8000-000000000001', 'google_calendar');
SELECT hashjoin, seqscan FROM tell();
RESET enable_hashjoin;
RESET enable_seqscan;

-- a trigger that fails leaves nothing of it
CREATE OR REPLACE FUNCTION set_some() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL enable_hashjoin = off;
	RAISE division_by_zero;
END
$$;
SELECT disconnect_sync('00000000-0000-4000-8000-000000000001', 'google_calendar'); -- ERROR
SELECT * FROM tell();

RESET jit;
RESET work_mem;
RESET syncstate.clock;
SET client_min_messages = warning;
DROP TRIGGER a_set ON sync_state;
DROP TRIGGER a_note ON sync_policy;
DROP TRIGGER a_note ON sync_budget;
DROP POLICY fence ON sync_state;
TRUNCATE sync_state, sync_policy, sync_budget;
DROP SCHEMA regress_syncstate_settings CASCADE;
DROP OWNED BY regress_syncstate_settings;
DROP ROLE regress_syncstate_settings;
