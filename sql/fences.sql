--
-- Restrictive policies of a site, and how much of the table a role reads
--
-- A site may narrow by a restrictive policy what a worker reaches.  Functions
-- that only look obey it as well, and a claim leaves alone what it may not
-- have.  A user reads the pages of their own rows and not the whole table.
--
-- Time is moved by hand (syncstate.clock).
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
CREATE ROLE regress_syncstate_fenced;
CREATE ROLE regress_syncstate_free;
CREATE ROLE regress_syncstate_user;
CREATE ROLE regress_syncstate_reporter;
CREATE ROLE regress_syncstate_bypass BYPASSRLS;
RESET client_min_messages;
SET timezone = 'UTC';
\set VERBOSITY terse
\pset format unaligned
\pset null '(null)'

CREATE SCHEMA regress_syncstate_fences;
SET search_path = regress_syncstate_fences, syncstate;
TRUNCATE sync_state, sync_policy;
GRANT USAGE ON SCHEMA regress_syncstate_fences TO PUBLIC;
SELECT grant_worker('regress_syncstate_fenced'), grant_worker('regress_syncstate_free'),
	grant_worker('regress_syncstate_bypass'), grant_user('regress_syncstate_user');
SET syncstate.clock = '2030-01-01 12:00:00+00';

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- Users 1 to 4 are due since 9, 10, 11 o'clock and from 13 o'clock on.
CREATE FUNCTION prepare(status sync_status DEFAULT 'idle') RETURNS void LANGUAGE sql
BEGIN ATOMIC
	DELETE FROM sync_state;
	INSERT INTO sync_state (user_id, source, due_at, status, lease)
	SELECT u(n), 'google_calendar', v.due_at::timestamptz, prepare.status, 7
	FROM (VALUES (1, '2030-01-01 09:00:00+00'), (2, '2030-01-01 10:00:00+00'), (3, '2030-01-01 11:00:00+00'),
				 (4, '2030-01-01 13:00:00+00')) AS v (n, due_at);
END;

-- What a role sees by the three ways to look, and by the table.
CREATE FUNCTION look(OUT looker name, OUT needing text, OUT next time, OUT next_of_any time, OUT in_table text)
LANGUAGE sql
BEGIN ATOMIC
	SELECT replace(CURRENT_USER, 'regress_syncstate_', ''),
		(SELECT string_agg(right(g::text, 1), ' ') FROM get_users_needing_sync('google_calendar') AS g),
		next_sync_due('google_calendar')::time, next_sync_due()::time,
		(SELECT string_agg(right(user_id::text, 1), ' ' ORDER BY user_id) FROM sync_state);
END;

-- ---------------------------------------------------------------------
-- Functions that only look
-- ---------------------------------------------------------------------
SELECT prepare();
CREATE POLICY fence ON sync_state AS RESTRICTIVE TO regress_syncstate_fenced
	USING (user_id <> regress_syncstate_fences.u(1));
SET ROLE regress_syncstate_fenced;
SELECT * FROM look();
SET ROLE regress_syncstate_free;
SELECT * FROM look();
SET ROLE regress_syncstate_bypass;
SELECT * FROM look();
RESET ROLE;
SELECT needing, next, next_of_any, in_table FROM look();
DROP POLICY fence ON sync_state;

-- for SELECT alone
CREATE POLICY fence ON sync_state AS RESTRICTIVE FOR SELECT TO regress_syncstate_fenced
	USING (user_id > regress_syncstate_fences.u(2));
SET ROLE regress_syncstate_fenced;
SELECT * FROM look();
RESET ROLE;
DROP POLICY fence ON sync_state;

-- All that is due is hidden: there is nothing to wait for before 13 o'clock,
-- and a worker that sleeps until then does not ask in a loop.
CREATE POLICY fence ON sync_state AS RESTRICTIVE TO regress_syncstate_fenced
	USING (due_at > '2030-01-01 12:00:00+00');
SET ROLE regress_syncstate_fenced;
SELECT * FROM look();
RESET ROLE;
DROP POLICY fence ON sync_state;

-- all of it, in both lanes
UPDATE sync_state SET requested_at = '2030-01-01 12:00:00+00' WHERE user_id = u(1);
CREATE POLICY fence ON sync_state AS RESTRICTIVE TO regress_syncstate_fenced USING (false);
SET ROLE regress_syncstate_fenced;
SELECT * FROM look();
SET ROLE regress_syncstate_free;
SELECT * FROM look();
RESET ROLE;
DROP POLICY fence ON sync_state;
SELECT prepare();

-- Two policies, of which one asks a setting: it may differ from one call to the
-- next in the same session.
CREATE POLICY fence ON sync_state AS RESTRICTIVE
	USING (user_id >= (SELECT regress_syncstate_fences.u(current_setting('regress.first')::integer)));
CREATE POLICY other_fence ON sync_state AS RESTRICTIVE FOR SELECT
	USING (right(user_id::text, 1) <> '3');
SET ROLE regress_syncstate_fenced;
SET regress.first = 1;
SELECT * FROM look();
SET regress.first = 2;
SELECT * FROM look();
SET regress.first = 3;
SELECT * FROM look();
SET regress.first = 5;
SELECT * FROM look();
RESET ROLE;
DROP POLICY fence ON sync_state;
DROP POLICY other_fence ON sync_state;
SET ROLE regress_syncstate_fenced;
SELECT * FROM look();
RESET ROLE;

-- stale_after and max_rows count what is seen only
CREATE POLICY fence ON sync_state AS RESTRICTIVE TO regress_syncstate_fenced
	USING (user_id <> regress_syncstate_fences.u(1));
SET ROLE regress_syncstate_fenced;
SELECT right(g::text, 1) AS u FROM get_users_needing_sync('google_calendar', max_rows => 1) AS g;
SELECT right(g::text, 1) AS u FROM get_users_needing_sync('google_calendar', stale_after => '1 h') AS g;
RESET ROLE;
DROP POLICY fence ON sync_state;

-- ---------------------------------------------------------------------
-- A claim
-- ---------------------------------------------------------------------

-- Which rows a claim hands out, and how many others it has locked or written:
-- Locking a row sets its xmax.
CREATE FUNCTION claim(max_rows integer DEFAULT 100, OUT claimed text, OUT others_locked bigint, OUT written bigint)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('role', 'regress_syncstate_fenced', true);
	SELECT string_agg(right(user_id::text, 1), ' ' ORDER BY user_id) INTO claimed
	FROM claim_due_syncs('google_calendar', max_rows);
	PERFORM set_config('role', 'none', true);
	SELECT count(*) FILTER (WHERE status <> 'syncing' AND xmax <> '0'), count(*) FILTER (WHERE status = 'syncing')
	INTO others_locked, written FROM sync_state;
END
$$;
CREATE POLICY fence ON sync_state AS RESTRICTIVE TO regress_syncstate_fenced USING (false);
SELECT prepare();
SELECT * FROM claim();
ALTER POLICY fence ON sync_state USING (user_id <> regress_syncstate_fences.u(1));
SELECT prepare();
SELECT * FROM claim(1);
SELECT prepare();
SELECT * FROM claim();
DROP POLICY fence ON sync_state;

-- it may see the rows, and may not change them
CREATE POLICY fence ON sync_state AS RESTRICTIVE FOR UPDATE TO regress_syncstate_fenced
	USING (user_id <> regress_syncstate_fences.u(1));
SELECT prepare();
SELECT * FROM claim();
DROP POLICY fence ON sync_state;

-- it may change them, and may not see them
CREATE POLICY fence ON sync_state AS RESTRICTIVE FOR SELECT TO regress_syncstate_fenced
	USING (user_id <> regress_syncstate_fences.u(1));
SELECT prepare();
SELECT * FROM claim();
DROP POLICY fence ON sync_state;

-- many of them
CREATE POLICY fence ON sync_state AS RESTRICTIVE TO regress_syncstate_fenced USING (user_id = regress_syncstate_fences.u(2));
SELECT prepare();
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', '2030-01-01 10:00:00+00' FROM generate_series(100, 3000) AS n;
SELECT * FROM claim();
SELECT * FROM claim();
DROP POLICY fence ON sync_state;

-- ---------------------------------------------------------------------
-- A worker is a role that may execute claim_due_syncs() as we made it, whatever
-- else has that name.
-- ---------------------------------------------------------------------
GRANT USAGE ON SCHEMA syncstate TO regress_syncstate_reporter;
GRANT SELECT, UPDATE ON sync_state TO regress_syncstate_reporter;
GRANT SELECT ON sync_policy TO regress_syncstate_reporter;
GRANT EXECUTE ON FUNCTION is_legal, current_user_id, mark_sync_completed, get_users_needing_sync, next_sync_due, sync_clock
	TO regress_syncstate_reporter;

CREATE FUNCTION report(n integer) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (syncstate.mark_sync_completed(regress_syncstate_fences.u(n), 'google_calendar', sync_token => 'reported', lease => 7)).sync_token;
EXCEPTION WHEN SQLSTATE 'PT404' THEN
	RETURN SQLSTATE;
END
$$;
SET request.jwt.claims = '{"sub": "00000000-0000-4000-8000-000000000002"}';
SELECT prepare('syncing');
SET ROLE regress_syncstate_reporter;
SELECT n, report(n) FROM generate_series(1, 3) AS n;
RESET ROLE;
SELECT prepare();
SET ROLE regress_syncstate_reporter;
SELECT * FROM look();
RESET ROLE;

-- for everybody: of fewer arguments, of more, of others (ANALYZE has this session
-- look up all names anew)
CREATE FUNCTION syncstate.claim_due_syncs() RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION syncstate.claim_due_syncs(sync_source, integer, interval, integer, integer, integer, integer) RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION syncstate.claim_due_syncs(sync_source, text, interval) RETURNS integer LANGUAGE sql RETURN 1;
ANALYZE sync_state;
SELECT prepare('syncing');
SET ROLE regress_syncstate_reporter;
SELECT n, report(n) FROM generate_series(1, 3) AS n;
RESET ROLE;
SELECT right(user_id::text, 1) AS reported FROM sync_state WHERE sync_token = 'reported' ORDER BY user_id;

-- for nobody: a worker stays one
REVOKE ALL ON FUNCTION syncstate.claim_due_syncs(), syncstate.claim_due_syncs(sync_source, integer, interval, integer, integer, integer, integer),
	syncstate.claim_due_syncs(sync_source, text, interval) FROM PUBLIC;
ANALYZE sync_state;
SELECT prepare();
SET ROLE regress_syncstate_free;
SELECT count(*) FROM claim_due_syncs('google_calendar', 2, '1 min');
RESET ROLE;
SELECT prepare('syncing');
SET ROLE regress_syncstate_free;
SELECT n, report(n) FROM generate_series(1, 3) AS n;
RESET ROLE;
DROP FUNCTION syncstate.claim_due_syncs(), syncstate.claim_due_syncs(sync_source, integer, interval, integer, integer, integer, integer),
	syncstate.claim_due_syncs(sync_source, text, interval);
RESET request.jwt.claims;

-- ---------------------------------------------------------------------
-- A user reads their own rows only
-- ---------------------------------------------------------------------
DELETE FROM sync_state;
INSERT INTO sync_state (user_id, source, due_at)
SELECT md5(n::text)::uuid, 'google_calendar', '2030-01-01 13:00:00+00' FROM generate_series(1, 20000) AS n;
INSERT INTO sync_state (user_id, source)
SELECT u, s FROM unnest(ARRAY['google_calendar', 'google_gmail']::sync_source[]) AS s,
	unnest(ARRAY[u(1), '00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff']) AS u;
ANALYZE sync_state;

-- How many rows a statement gives, how many of the table it looks at besides,
-- and whether it finds them by user_id.
CREATE FUNCTION reads(statement text, OUT given integer, OUT removed integer, OUT by_user boolean) LANGUAGE plpgsql AS $$
DECLARE
	plan jsonb;
BEGIN
	EXECUTE 'EXPLAIN (ANALYZE, BUFFERS OFF, TIMING OFF, FORMAT JSON) ' || statement INTO plan;
	SELECT max((node ->> 'Actual Rows')::numeric * (node ->> 'Actual Loops')::numeric)
			FILTER (WHERE node ->> 'Relation Name' = 'sync_state' AND node ->> 'Node Type' <> 'ModifyTable'),
		coalesce(sum((node ->> 'Rows Removed by Filter')::numeric), 0) + coalesce(sum((node ->> 'Rows Removed by Index Recheck')::numeric), 0),
		bool_or(node ->> 'Index Cond' ~ 'user_id')
	INTO given, removed, by_user
	FROM jsonb_path_query(plan, '$.**') AS node WHERE jsonb_typeof(node) = 'object' AND node ? 'Node Type';
	by_user := coalesce(by_user, false);
END
$$;
PREPARE own AS SELECT user_id, source, status FROM sync_state;
PREPARE own_of_source (sync_source) AS SELECT user_id, source, status FROM sync_state WHERE source = $1;
PREPARE own_due (timestamptz) AS SELECT count(user_id) FROM sync_state WHERE due_at < $1;

SET ROLE regress_syncstate_user;
SET request.jwt.claims = '{"sub": "00000000-0000-4000-8000-000000000001"}';
SELECT * FROM reads('SELECT user_id, source FROM sync_state');
SELECT * FROM reads('SELECT user_id, source FROM sync_state ORDER BY updated_at DESC LIMIT 10');
SELECT * FROM reads('SELECT count(user_id) FROM sync_state');
SELECT * FROM reads('SELECT source FROM my_syncs');
SELECT * FROM reads('UPDATE sync_state SET requested_at = now()');
SET plan_cache_mode = force_generic_plan;
SELECT * FROM reads('EXECUTE own');
SELECT given, removed <= 1 AS few, by_user FROM reads($$EXECUTE own_of_source ('google_gmail')$$);
SELECT given <= 2 AND removed <= 2 AS few, by_user FROM reads($$EXECUTE own_due ('2030-01-01 14:00:00+00')$$);
-- the same plans for somebody else, and for nobody
SET request.jwt.claims = '{"sub": "ffffffff-ffff-ffff-ffff-ffffffffffff"}';
SELECT * FROM reads('EXECUTE own');
EXECUTE own;
SET request.jwt.claims = '{"sub": "00000000-0000-0000-0000-000000000000"}';
EXECUTE own;
SET request.jwt.claims = '{"sub": "99999999-0000-4000-8000-000000000001"}';
SELECT * FROM reads('EXECUTE own');
EXECUTE own;
RESET request.jwt.claims;
SELECT * FROM reads('EXECUTE own');
EXECUTE own;
RESET ROLE;

-- the table's own counters say the same
SET ROLE regress_syncstate_user;
SET request.jwt.claims = '{"sub": "00000000-0000-4000-8000-000000000001"}';
CREATE VIEW pg_temp.read AS SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) AS so_far
FROM pg_stat_xact_user_tables WHERE schemaname = 'syncstate' AND relname = 'sync_state';
BEGIN;
SELECT so_far FROM pg_temp.read \gset
SELECT count(status), count(DISTINCT user_id) AS users FROM sync_state;
SELECT so_far - :so_far AS read FROM pg_temp.read;
COMMIT;
DROP VIEW pg_temp.read;
RESET ROLE;

-- A worker sees all rows, those at both ends of the range too, whatever user the
-- claims name, by the plans that were made for a user.
SET ROLE regress_syncstate_free;
SELECT count(*), count(*) FILTER (WHERE user_id IN ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff')) AS at_ends FROM sync_state;
RESET request.jwt.claims;
SELECT count(*), count(*) FILTER (WHERE user_id IN ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff')) AS at_ends FROM sync_state;
CREATE TEMP TABLE seen AS EXECUTE own;
SELECT count(*) FROM seen;
UPDATE sync_state SET sync_interval = '1 h' WHERE user_id IN ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff');
DELETE FROM sync_state WHERE user_id IN ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff');
INSERT INTO sync_state (user_id, source) VALUES ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'google_tasks');
RESET ROLE;
SELECT count(*) FROM sync_state;
DROP TABLE seen;

DEALLOCATE ALL;
RESET plan_cache_mode;
RESET syncstate.clock;
DELETE FROM sync_state;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_fences CASCADE;
DROP OWNED BY regress_syncstate_fenced, regress_syncstate_free, regress_syncstate_user, regress_syncstate_reporter, regress_syncstate_bypass;
DROP ROLE regress_syncstate_fenced, regress_syncstate_free, regress_syncstate_user, regress_syncstate_reporter, regress_syncstate_bypass;
