/*
 * Who may do what: every function, column, view and table, for every kind of
 * role; and what one user can learn of another: nothing.
 */
\set VERBOSITY terse
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS syncstate;
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
SET syncstate.clock = '2030-01-01 00:00:00+00';

CREATE ROLE regress_syncstate_worker;
CREATE ROLE regress_syncstate_member IN ROLE regress_syncstate_worker;
CREATE ROLE regress_syncstate_user;
CREATE ROLE regress_syncstate_usage;	-- may look into the schema, nothing else
CREATE ROLE regress_syncstate_anon;		-- what PUBLIC may
GRANT USAGE ON SCHEMA syncstate TO regress_syncstate_usage;
SELECT syncstate.grant_worker('regress_syncstate_worker');
SELECT syncstate.grant_user('regress_syncstate_user');
RESET client_min_messages;

\set a '''aaaaaaaa-0000-4000-8000-00000000000a'''
\set b '''bbbbbbbb-0000-4000-8000-00000000000b'''

-- two users; of B there is something in every column
SET syncstate.clock = '2029-12-31 00:00:00+00';
INSERT INTO syncstate.sync_state (user_id, source, resource) VALUES
	(:a, 'google_calendar', ''), (:a, 'google_calendar', 'own calendar'), (:a, 'google_tasks', ''),
	(:b, 'google_calendar', ''), (:b, 'google_calendar', 'B''s secret calendar'), (:b, 'google_gmail', '');
UPDATE syncstate.sync_state
	SET sync_token = 'secret token of ' || left(user_id::text, 1), history_id = '4242',
		updated_min = '2029-01-01 00:00:00+00', sync_interval = '42 minutes',
		failures = 4, error_message = 'secret error of ' || left(user_id::text, 1)
	WHERE resource = '';
UPDATE syncstate.sync_state SET parked_reason = 'paused', due_at = NULL WHERE source = 'google_tasks';
SELECT status, lease FROM syncstate.mark_sync_started(:b, 'google_gmail');
SELECT status, lease FROM syncstate.mark_sync_started(:a, 'google_calendar');
SELECT page_token FROM syncstate.checkpoint_sync(:b, 'google_gmail', 1, 'secret page', 5, 42);
SELECT sync_interval FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": "42 minutes"}');
SELECT daily_budget FROM syncstate.set_sync_policy('google_gmail', '{"daily_budget": 42, "rate_per_minute": 4242, "push_renew_before": "1 day"}');
INSERT INTO syncstate.sync_channel (user_id, account, source, resource, state, channel_id, token_hash, provider_ref, opened_at, expires_at, renew_at, lease, lease_expires_at, error_message) VALUES
	(:a, '', 'google_calendar', '', 'active', 'channel of A', sha256('token of A'), 'ref of A', '2029-12-30Z', '2030-01-06Z', '2030-01-05Z', 1, NULL, NULL),
	(:b, '', 'google_calendar', '', 'active', 'channel of B', sha256('token of B'), 'secret ref', '2029-12-30Z', '2030-01-06Z', '2030-01-05Z', 1, NULL, 'secret error'),
	(:b, '', 'google_gmail', '', 'opening', NULL, NULL, NULL, NULL, NULL, '2030-01-01 00:10Z', 1, '2030-01-01 00:10Z', NULL),
	(:b, '', 'google_gmail', '', 'retiring', 'old channel of B', sha256('token of B'), 'secret ref', '2029-12-25Z', '2030-01-02Z', '2030-01-01 00:10Z', 2, '2030-01-01 00:10Z', NULL);
SET syncstate.clock = '2030-01-01 00:00:00+00';

/* ------------------------------------------------- every function, called */

/*
 * What a call comes to for a role: "yes", or the SQLSTATE.  Whatever it did is
 * rolled back.
 */
CREATE FUNCTION pg_temp.try(role name, call text, claims text DEFAULT '') RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('request.jwt.claims', claims, true);
	PERFORM set_config('role', role, true);
	EXECUTE call;
	RAISE EXCEPTION 'roll back' USING ERRCODE = 'ZZ000';
EXCEPTION
	WHEN SQLSTATE 'ZZ000' THEN
		RETURN 'yes';
	WHEN OTHERS THEN
		RETURN CASE SQLSTATE WHEN '42501' THEN 'no' ELSE SQLSTATE || ' ' || SQLERRM END;
END
$$;

CREATE TABLE pg_temp.users (id uuid);
GRANT ALL ON pg_temp.users TO PUBLIC;

-- a trigger function is "called" by putting it on a table
CREATE TEMP TABLE calls (function text, call text);
INSERT INTO calls VALUES
	('add_source_label',
		$$CREATE TRIGGER t AFTER INSERT ON pg_temp.users FOR EACH ROW EXECUTE FUNCTION syncstate.add_source_label()$$),
	('check_installation',
		$$SELECT * FROM syncstate.check_installation()$$),
	('checkpoint_sync',
		$$SELECT * FROM syncstate.checkpoint_sync('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1, 'page')$$),
	('claim_due_syncs',
		$$SELECT * FROM syncstate.claim_due_syncs()$$),
	('claim_push_channels',
		$$SELECT * FROM syncstate.claim_push_channels()$$),
	('clear_sync_token',
		$$SELECT * FROM syncstate.clear_sync_token('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1)$$),
	('connect_account',
		$$SELECT * FROM syncstate.connect_account('aaaaaaaa-0000-4000-8000-00000000000a')$$),
	('connect_sync',
		$$SELECT * FROM syncstate.connect_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_contacts')$$),
	('current_user_id',
		$$SELECT * FROM syncstate.current_user_id()$$),
	('disconnect_account',
		$$SELECT * FROM syncstate.disconnect_account('aaaaaaaa-0000-4000-8000-00000000000a')$$),
	('disconnect_sync',
		$$SELECT * FROM syncstate.disconnect_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_calendar')$$),
	('due_from',
		$$SELECT syncstate.due_from(NULL)$$),
	('forget_users',
		$$CREATE TRIGGER t AFTER DELETE ON pg_temp.users REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users('id')$$),
	('get_sync_policy',
		$$SELECT * FROM syncstate.get_sync_policy('google_tasks')$$),
	('get_sync_state',
		$$SELECT * FROM syncstate.get_sync_state('aaaaaaaa-0000-4000-8000-00000000000a', 'google_calendar')$$),
	('get_sync_states',
		$$SELECT * FROM syncstate.get_sync_states('aaaaaaaa-0000-4000-8000-00000000000a')$$),
	('get_users_needing_sync',
		$$SELECT * FROM syncstate.get_users_needing_sync('google_calendar')$$),
	('grant_user',
		$$SELECT * FROM syncstate.grant_user('regress_syncstate_anon')$$),
	('grant_worker',
		$$SELECT * FROM syncstate.grant_worker('regress_syncstate_anon')$$),
	('guard',
		$$CREATE TRIGGER t BEFORE INSERT ON pg_temp.users FOR EACH ROW EXECUTE FUNCTION syncstate.guard()$$),
	('installed_objects',
		$$SELECT * FROM syncstate.installed_objects()$$),
	('is_ahead',
		$$SELECT syncstate.is_ahead(NULL)$$),
	('is_legal',
		$$SELECT syncstate.is_legal(NULL)$$),
	('mark_channel_failed',
		$$SELECT * FROM syncstate.mark_channel_failed('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1, 'error')$$),
	('mark_channel_opened',
		$$SELECT * FROM syncstate.mark_channel_opened('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1, 'new channel of B', '2030-01-08Z', 'secret')$$),
	('mark_channel_stopped',
		$$SELECT * FROM syncstate.mark_channel_stopped('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 2)$$),
	('mark_rate_limited',
		$$SELECT * FROM syncstate.mark_rate_limited('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', '1 minute')$$),
	('mark_sync_completed',
		$$SELECT * FROM syncstate.mark_sync_completed('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1, lease => 1)$$),
	('mark_sync_failed',
		$$SELECT * FROM syncstate.mark_sync_failed('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 'error')$$),
	('mark_sync_started',
		$$SELECT * FROM syncstate.mark_sync_started('aaaaaaaa-0000-4000-8000-00000000000a', 'google_contacts')$$),
	('may_sweep',
		$$SELECT * FROM syncstate.may_sweep('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1, 0, 1)$$),
	('next_sync_due',
		$$SELECT * FROM syncstate.next_sync_due()$$),
	('pause_account',
		$$SELECT * FROM syncstate.pause_account('aaaaaaaa-0000-4000-8000-00000000000a')$$),
	('pause_sync',
		$$SELECT * FROM syncstate.pause_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_calendar')$$),
	('pause_sync_source',
		$$SELECT * FROM syncstate.pause_sync_source('google_calendar')$$),
	('policy_changed',
		$$CREATE TRIGGER t AFTER INSERT ON pg_temp.users FOR EACH STATEMENT EXECUTE FUNCTION syncstate.policy_changed()$$),
	('receive_push',
		$$SELECT * FROM syncstate.receive_push('channel of B', 'token of B')$$),
	('record_revoked',
		$$CREATE TRIGGER t AFTER INSERT ON pg_temp.users FOR EACH STATEMENT EXECUTE FUNCTION syncstate.record_revoked()$$),
	('present_objects',
		$$SELECT * FROM syncstate.present_objects()$$),
	('rebalance_syncs',
		$$SELECT * FROM syncstate.rebalance_syncs('google_gmail')$$),
	('register_sync_source',
		$$SELECT * FROM syncstate.register_sync_source('regress_syncstate_source')$$),
	('release_sync',
		$$SELECT * FROM syncstate.release_sync('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1)$$),
	('renew_sync_lease',
		$$SELECT * FROM syncstate.renew_sync_lease('bbbbbbbb-0000-4000-8000-00000000000b', 'google_gmail', 1)$$),
	('report_syncs',
		$$SELECT * FROM syncstate.report_syncs('[{"user_id": "bbbbbbbb-0000-4000-8000-00000000000b", "source": "google_gmail", "lease": 1, "outcome": "released"}]')$$),
	('request_account',
		$$SELECT * FROM syncstate.request_account('aaaaaaaa-0000-4000-8000-00000000000a')$$),
	('request_sync',
		$$SELECT * FROM syncstate.request_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_calendar')$$),
	('resume_account',
		$$SELECT * FROM syncstate.resume_account('aaaaaaaa-0000-4000-8000-00000000000a')$$),
	('resume_sync',
		$$SELECT * FROM syncstate.resume_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_tasks')$$),
	('resume_sync_source',
		$$SELECT * FROM syncstate.resume_sync_source('google_calendar')$$),
	('resync_source',
		$$SELECT * FROM syncstate.resync_source('google_gmail')$$),
	('revive_syncs',
		$$SELECT * FROM syncstate.revive_syncs('google_gmail')$$),
	('set_sync_resources',
		$$SELECT * FROM syncstate.set_sync_resources('aaaaaaaa-0000-4000-8000-00000000000a', 'google_calendar', '{own calendar}')$$),
	('set_sync_policy',
		$$SELECT * FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": null}')$$),
	('keep_source_labels',
		$$CREATE TRIGGER t BEFORE DELETE ON pg_temp.users FOR EACH ROW EXECUTE FUNCTION syncstate.keep_source_labels()$$),
	('skip_known_label',
		$$CREATE TRIGGER t BEFORE INSERT ON pg_temp.users FOR EACH ROW EXECUTE FUNCTION syncstate.skip_known_label()$$),
	('sync_clock',
		$$SELECT * FROM syncstate.sync_clock()$$),
	('take_sync_events',
		$$SELECT * FROM syncstate.take_sync_events()$$),
	('update_sync_state',
		$$SELECT * FROM syncstate.update_sync_state('aaaaaaaa-0000-4000-8000-00000000000a', 'google_calendar', '{"status": "idle"}')$$),
	('user_id_of',
		$$SELECT * FROM syncstate.user_id_of('user_2NNE')$$),
	('watch_users',
		$$SELECT * FROM syncstate.watch_users('pg_temp.users')$$);

-- all of them are there
SELECT proname AS not_tried FROM pg_proc
WHERE pronamespace = 'syncstate'::regnamespace AND proname NOT IN (SELECT function FROM calls)
ORDER BY proname;

-- A's claims, so that identity is not what a role lacks
SELECT function,
	pg_temp.try('regress_syncstate_worker', call, claims) AS worker,
	pg_temp.try('regress_syncstate_member', call, claims) AS member,
	pg_temp.try('regress_syncstate_user', call, claims) AS "user",
	pg_temp.try('regress_syncstate_usage', call, claims) AS usage,
	pg_temp.try('regress_syncstate_anon', call, claims) AS anon
FROM calls, (VALUES ('{"sub": "aaaaaaaa-0000-4000-8000-00000000000a"}')) AS c (claims)
ORDER BY function COLLATE "C";

-- nothing of all that stayed
SELECT user_id, source, resource, status, lease, page_token, failures
FROM syncstate.sync_state ORDER BY user_id, source, resource;

-- what is called with a row made up by hand refuses it, and nothing worse
SELECT f AS function, bool_and(pg_temp.try(role, format('SELECT syncstate.%s(jsonb_populate_record(NULL::syncstate.sync_state, %L))', f, r)) ~ '^(yes|2)') AS refused
FROM (VALUES ('is_legal', 'regress_syncstate_user'), ('due_from', 'regress_syncstate_worker'), ('is_ahead', 'regress_syncstate_worker')) AS f (f, role),
	unnest(ARRAY['{}', '{"user_id": "aaaaaaaa-0000-4000-8000-00000000000a"}', '{"source": "google_tasks", "status": "syncing"}',
	'{"resource": "x", "lease": 1}', '{"due_at": "infinity", "updated_min": "-infinity"}']) AS r
GROUP BY f ORDER BY f;

-- a worker's membership counts where it is inherited
CREATE ROLE regress_syncstate_outsider NOINHERIT;
GRANT regress_syncstate_worker TO regress_syncstate_outsider;
SELECT pg_temp.try('regress_syncstate_outsider', 'SELECT * FROM syncstate.claim_due_syncs()') AS outsider;
DROP ROLE regress_syncstate_outsider;

SELECT syncstate.grant_worker(NULL); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.grant_user(NULL); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.grant_worker('regress_syncstate_no_such_role'); -- ERROR
\echo :LAST_ERROR_SQLSTATE

-- a name that needs quotes, and one that tries to be SQL
CREATE ROLE "regress_syncstate ""quoted""; DROP TABLE x";
SELECT syncstate.grant_worker('"regress_syncstate ""quoted""; DROP TABLE x"');
SELECT syncstate.grant_user('"regress_syncstate ""quoted""; DROP TABLE x"');
SELECT pg_temp.try('regress_syncstate "quoted"; DROP TABLE x', 'SELECT * FROM syncstate.claim_due_syncs()') AS quoted;
DROP OWNED BY "regress_syncstate ""quoted""; DROP TABLE x";
DROP ROLE "regress_syncstate ""quoted""; DROP TABLE x";

-- a site may let its users disconnect, who cannot read all of a row
GRANT DELETE ON syncstate.sync_state TO regress_syncstate_user;
GRANT EXECUTE ON FUNCTION syncstate.disconnect_sync(uuid, syncstate.sync_source, text, text) TO regress_syncstate_user;
SELECT pg_temp.try('regress_syncstate_user', $$SELECT syncstate.disconnect_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_calendar')$$,
	'{"sub": "aaaaaaaa-0000-4000-8000-00000000000a"}') AS disconnects;
REVOKE DELETE ON syncstate.sync_state FROM regress_syncstate_user;
REVOKE EXECUTE ON FUNCTION syncstate.disconnect_sync(uuid, syncstate.sync_source, text, text) FROM regress_syncstate_user;

-- granting twice is granting once
SELECT relacl AS before FROM pg_class WHERE oid = 'syncstate.sync_state'::regclass \gset
SELECT syncstate.grant_worker('regress_syncstate_worker'), syncstate.grant_user('regress_syncstate_user');
SELECT relacl::text = :'before' AS same FROM pg_class WHERE oid = 'syncstate.sync_state'::regclass;

/* --------------------------------------------- every column, every relation */

-- of sync_state: who may read it, and who may write it
SELECT a.attname AS column,
	pg_temp.try('regress_syncstate_worker', format('SELECT %I FROM syncstate.sync_state', a.attname)) AS worker_reads,
	pg_temp.try('regress_syncstate_user', format('SELECT %I FROM syncstate.sync_state', a.attname)) AS user_reads,
	pg_temp.try('regress_syncstate_user', format('UPDATE syncstate.sync_state SET %I = %1$I', a.attname)) AS user_updates,
	pg_temp.try('regress_syncstate_user', format('UPDATE syncstate.sync_state SET %I = DEFAULT', a.attname)) AS user_resets,
	pg_temp.try('regress_syncstate_user', format('INSERT INTO syncstate.sync_state (%I) VALUES (DEFAULT)', a.attname)) AS user_inserts,
	pg_temp.try('regress_syncstate_usage', format('SELECT %I FROM syncstate.sync_state', a.attname)) AS usage_reads,
	pg_temp.try('regress_syncstate_anon', format('SELECT %I FROM syncstate.sync_state', a.attname)) AS anon_reads
FROM pg_attribute AS a
WHERE a.attrelid = 'syncstate.sync_state'::regclass AND a.attnum > 0
ORDER BY a.attnum;

-- of all tables and views
SELECT c.relname AS relation, s.statement,
	pg_temp.try('regress_syncstate_worker', format(s.sql, c.oid::regclass)) AS worker,
	pg_temp.try('regress_syncstate_user', format(s.sql, c.oid::regclass)) AS "user",
	pg_temp.try('regress_syncstate_usage', format(s.sql, c.oid::regclass)) AS usage,
	pg_temp.try('regress_syncstate_anon', format(s.sql, c.oid::regclass)) AS anon
FROM pg_class AS c,
	(VALUES (1, 'select *', 'SELECT * FROM %s'),
		(2, 'select row', 'SELECT r FROM %s AS r'),
		(3, 'lock', 'LOCK TABLE %s IN ACCESS SHARE MODE'),
		(4, 'delete', 'DELETE FROM %s'),
		(5, 'truncate', 'TRUNCATE %s'),
		(6, 'alter', 'ALTER TABLE %s ADD COLUMN planted int')) AS s (n, statement, sql)
WHERE c.relnamespace = 'syncstate'::regnamespace
	AND (c.relkind = 'r' OR c.relkind = 'v' AND s.n = 1)
ORDER BY c.relname, s.n;

/* ------------------------------------------------------------ as user A */

SET ROLE regress_syncstate_user;
SET "request.jwt.claims" = '{"sub": "aaaaaaaa-0000-4000-8000-00000000000a", "role": "authenticated"}';

SELECT source, resource, status, error_message FROM syncstate.my_syncs ORDER BY source, resource;
SELECT * FROM syncstate.my_syncs WHERE user_id <> :a;
SELECT user_id, source, resource, status FROM syncstate.sync_state ORDER BY source, resource;
SELECT count(*) AS rows_seen FROM syncstate.sync_state;
SELECT count(*) AS rows_seen FROM syncstate.sync_state WHERE user_id = :b;
SELECT user_id, source, resource FROM syncstate.sync_state WHERE requested_at IS NULL ORDER BY source, resource FOR UPDATE;
COPY syncstate.sync_state (user_id) TO STDOUT;
COPY syncstate.sync_state TO STDOUT; -- ERROR
\echo :LAST_ERROR_SQLSTATE

-- not even one's own cursor
SELECT sync_token FROM syncstate.my_syncs; -- ERROR
\echo :LAST_ERROR_SQLSTATE
UPDATE syncstate.sync_state SET requested_at = NULL RETURNING sync_token; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM syncstate.sync_state WHERE sync_token > 's'; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM syncstate.sync_state AS s WHERE s::text ~ 'secret'; -- ERROR
\echo :LAST_ERROR_SQLSTATE

-- to request a sync: of one's own, and not of a parked one
BEGIN;
SELECT syncstate.request_sync(:a, 'google_calendar', 'own calendar');
SELECT syncstate.request_sync(:a, 'google_calendar', 'own calendar');
SELECT syncstate.request_sync(:a, 'google_tasks');
SELECT source, resource, requested_at = syncstate.sync_clock() AS requested_now
FROM syncstate.my_syncs ORDER BY source, resource;
ROLLBACK;

-- of B's, the same words as of one that is not there: the detail has what was
-- given
\set VERBOSITY default
SELECT * FROM syncstate.request_account(:a);
SELECT * FROM syncstate.request_account(:b); -- as if there were none
SELECT syncstate.request_sync(:b, 'google_calendar'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.request_sync(:b, 'google_contacts'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.request_sync(:a, 'google_contacts'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.request_sync(:b, 'google_contacts', 'a resource'); -- ERROR
\set VERBOSITY terse

-- what may be written, of one's own
BEGIN;
UPDATE syncstate.sync_state SET requested_at = '2030-01-01 00:00:00+00' WHERE user_id = :b;
UPDATE syncstate.sync_state SET requested_at = '2030-01-01 00:00:00+00';
RESET ROLE;
SELECT user_id, count(*), count(requested_at) AS requested FROM syncstate.sync_state GROUP BY user_id ORDER BY user_id;
ROLLBACK;
SET ROLE regress_syncstate_user;

/*
 * A function that tells what it is shown must be shown A's rows only, whatever
 * the plan; nor does an error tell of B's rows.
 */
RESET ROLE;
CREATE TEMP TABLE shown (what text);
GRANT INSERT ON shown TO PUBLIC;
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
	INSERT INTO pg_temp.shown VALUES ($1);
	RETURN true;
END
$$;
CREATE FUNCTION pg_temp.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY EXECUTE 'EXPLAIN (ANALYZE, VERBOSE, TIMING OFF, SUMMARY OFF, COSTS OFF) ' || query;
END
$$;
ANALYZE syncstate.sync_state;
SELECT count(*) > 0 AS has_statistics FROM pg_stats WHERE schemaname = 'syncstate';
SET ROLE regress_syncstate_user;
SELECT count(*) FROM syncstate.my_syncs WHERE pg_temp.leak(resource);
SELECT count(*) FROM syncstate.sync_state WHERE pg_temp.leak(resource || '.');
SELECT count(*) FROM syncstate.sync_state WHERE pg_temp.leak(user_id::text) AND user_id = :b;
UPDATE syncstate.sync_state SET requested_at = requested_at WHERE pg_temp.leak(resource || '..');
SET enable_seqscan = off;
SELECT count(*) FROM syncstate.my_syncs WHERE pg_temp.leak(resource);
SELECT count(*) FROM syncstate.sync_state WHERE pg_temp.leak(resource || '.');
SELECT count(*) FROM syncstate.sync_state WHERE pg_temp.leak(user_id::text) AND user_id = :b;
SELECT count(*) FROM syncstate.sync_state WHERE 1 / (CASE WHEN user_id = :b THEN 0 ELSE 1 END) = 1;

-- EXPLAIN of what A runs names nothing of B's
SELECT count(*) > 0 AS explained, count(*) FILTER (WHERE line ~ 'bbbbbbbb|secret') AS leaks
FROM pg_temp.plan('SELECT * FROM syncstate.my_syncs') AS line;
SELECT count(*) > 0 AS explained, count(*) FILTER (WHERE line ~ 'bbbbbbbb|secret') AS leaks
FROM pg_temp.plan('SELECT user_id, resource FROM syncstate.sync_state WHERE resource > ''A''') AS line;
RESET enable_seqscan;
RESET ROLE;
SELECT what, count(*) FROM shown GROUP BY what ORDER BY what COLLATE "C";
SET ROLE regress_syncstate_user;

-- nor do the statistics
SELECT count(*) AS statistics FROM pg_stats WHERE schemaname = 'syncstate';

-- switching row security off is an error, not a way in
SET row_security = off;
SELECT count(*) FROM syncstate.sync_state; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM syncstate.my_syncs; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.request_sync(:a, 'google_calendar', 'own calendar'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET row_security;

-- without claims there is nobody, and so nothing
RESET "request.jwt.claims";
SELECT count(*) AS rows_seen FROM syncstate.my_syncs;
SELECT count(*) AS rows_seen FROM syncstate.sync_state;
UPDATE syncstate.sync_state SET requested_at = NULL;
SELECT syncstate.request_sync(:a, 'google_calendar'); -- ERROR
\echo :LAST_ERROR_SQLSTATE

-- malformed ones are an error, not nobody
SET "request.jwt.claims" = '{"sub": ["not a subject"]}';
SELECT count(*) FROM syncstate.my_syncs; -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET "request.jwt.claims";
RESET ROLE;

/* ------------------------------------------------------------ as a worker */

SET ROLE regress_syncstate_worker;
SELECT user_id, count(*), count(sync_token) AS cursors FROM syncstate.sync_state GROUP BY user_id ORDER BY user_id;
SELECT count(*) AS of_nobody FROM syncstate.my_syncs;
SET "request.jwt.claims" = '{"sub": "bbbbbbbb-0000-4000-8000-00000000000b"}';
SELECT count(*) AS rows_seen, count(DISTINCT user_id) AS users FROM syncstate.sync_state;
SELECT source, resource FROM syncstate.my_syncs ORDER BY source, resource;
RESET "request.jwt.claims";
BEGIN;
SELECT user_id, source, resource, lease FROM syncstate.claim_due_syncs() ORDER BY user_id, source, resource;
ROLLBACK;
RESET ROLE;

-- the right to claim is what makes a worker: no longer one, no longer all rows
REVOKE EXECUTE ON FUNCTION syncstate.claim_due_syncs FROM regress_syncstate_worker;
SET ROLE regress_syncstate_worker;
SELECT count(*) AS rows_seen FROM syncstate.sync_state;
SELECT status FROM syncstate.mark_sync_failed(:b, 'google_gmail', 'error', lease => 1); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS overrides FROM syncstate.sync_policy;
RESET ROLE;
GRANT EXECUTE ON FUNCTION syncstate.claim_due_syncs TO regress_syncstate_worker;
SET ROLE regress_syncstate_worker;
SELECT count(*) AS rows_seen FROM syncstate.sync_state;
RESET ROLE;

/* ----------------------------------------------------------- push channels */

-- a role that takes pushes may do nothing else
CREATE ROLE regress_syncstate_webhook;
GRANT USAGE ON SCHEMA syncstate TO regress_syncstate_webhook;
GRANT EXECUTE ON FUNCTION syncstate.receive_push TO regress_syncstate_webhook;
SELECT function, pg_temp.try('regress_syncstate_webhook', call) AS may FROM calls
WHERE pg_temp.try('regress_syncstate_webhook', call) <> 'no';
SELECT c.relname, p AS privilege FROM pg_class AS c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS p
WHERE c.relnamespace = 'syncstate'::regnamespace AND c.relkind IN ('r', 'v')
	AND has_any_column_privilege('regress_syncstate_webhook', c.oid, p);
SELECT c.relname, p AS privilege FROM pg_class AS c, unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER']) AS p
WHERE c.relnamespace = 'syncstate'::regnamespace AND c.relkind IN ('r', 'v')
	AND has_table_privilege('regress_syncstate_webhook', c.oid, p);

-- what a wrong call leaves: no transaction's number, so that no row is written or
-- locked, and no lock but to read; test/specs/push.spec has that nobody is told
SET ROLE regress_syncstate_webhook;
BEGIN;
SELECT syncstate.receive_push(channel_id, token, number)
FROM (VALUES ('channel of nobody', 'token of B', 1), ('channel of B', 'token of A', 1), ('channel of B', '', NULL), ('channel of B', NULL, 1),
	(NULL, 'token of B', 1), ('', '', 0), ('channel of B', repeat('x', 100000), -1), (repeat('x', 2000), 'token of B', NULL)) AS c (channel_id, token, number);
SELECT pg_current_xact_id_if_assigned() AS transaction;
SELECT DISTINCT locktype, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid';
COMMIT;
-- a right one leaves them, with nobody's claims
BEGIN;
SELECT syncstate.receive_push('channel of B', 'token of B', 5);
SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS transaction;
SELECT count(*) > 0 AS locks FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock';
COMMIT;
-- but not when it is repeated
BEGIN;
SELECT syncstate.receive_push('channel of B', 'token of B', 5);
SELECT pg_current_xact_id_if_assigned() AS transaction;
SELECT DISTINCT locktype, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid';
COMMIT;
RESET ROLE;
SELECT channel_id, message_number, last_push_at = syncstate.sync_clock() AS heard_now FROM syncstate.sync_channel ORDER BY channel_id;
SELECT source, resource FROM syncstate.sync_state WHERE user_id = :b AND requested_at = syncstate.sync_clock();
REVOKE ALL ON SCHEMA syncstate FROM regress_syncstate_webhook;
REVOKE ALL ON FUNCTION syncstate.receive_push FROM regress_syncstate_webhook;
DROP ROLE regress_syncstate_webhook;

-- users see theirs, where a site lets them, and change none
GRANT SELECT, INSERT, UPDATE, DELETE ON syncstate.sync_channel TO regress_syncstate_user;
SET ROLE regress_syncstate_user;
SELECT count(*) AS of_nobody FROM syncstate.sync_channel;
SET "request.jwt.claims" = '{"sub": "aaaaaaaa-0000-4000-8000-00000000000a"}';
SELECT user_id, source, state, channel_id, provider_ref FROM syncstate.sync_channel;
SELECT channel_id FROM syncstate.sync_channel WHERE user_id = :b;
UPDATE syncstate.sync_channel SET provider_ref = 'written by A' RETURNING channel_id;
DELETE FROM syncstate.sync_channel RETURNING channel_id;
INSERT INTO syncstate.sync_channel (user_id, account, source, resource) VALUES (:a, '', 'google_tasks', ''); -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET "request.jwt.claims";
SET ROLE regress_syncstate_worker;
SELECT count(*) AS channels_seen, count(DISTINCT user_id) AS users FROM syncstate.sync_channel;
RESET ROLE;
REVOKE ALL ON syncstate.sync_channel FROM regress_syncstate_user;

/* --------------------------------- a site that lets users write their rows */

GRANT INSERT, UPDATE, DELETE ON syncstate.sync_state TO regress_syncstate_user;
SET ROLE regress_syncstate_user;
SET "request.jwt.claims" = '{"sub": "aaaaaaaa-0000-4000-8000-00000000000a"}';
BEGIN;
INSERT INTO syncstate.sync_state (user_id, source) VALUES (:a, 'google_contacts');
UPDATE syncstate.sync_state SET status = 'idle', requested_at = NULL;
DELETE FROM syncstate.sync_state WHERE source = 'google_tasks';
SELECT source, resource, status FROM syncstate.my_syncs ORDER BY source, resource;
ROLLBACK;

-- without a WHERE, so that nothing but the policy of the command holds
BEGIN;
UPDATE syncstate.sync_state SET requested_at = NULL, failures = 42;
RESET ROLE;
SELECT user_id, count(*) FROM syncstate.sync_state WHERE failures = 42 GROUP BY user_id;
SET ROLE regress_syncstate_user;
DELETE FROM syncstate.sync_state;
RESET ROLE;
SELECT user_id, count(*) FROM syncstate.sync_state GROUP BY user_id;
ROLLBACK;
SET ROLE regress_syncstate_user;

-- B's: the same answer for one that is there and one that is not
INSERT INTO syncstate.sync_state (user_id, source) VALUES (:b, 'google_calendar'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
INSERT INTO syncstate.sync_state (user_id, source) VALUES (:b, 'google_contacts'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
INSERT INTO syncstate.sync_state (user_id, source) VALUES (:b, 'google_calendar') ON CONFLICT DO NOTHING; -- ERROR
\echo :LAST_ERROR_SQLSTATE
INSERT INTO syncstate.sync_state (user_id, source) VALUES (:b, 'google_contacts')
	ON CONFLICT (user_id, account, source, resource) DO UPDATE SET requested_at = NULL; -- ERROR
\echo :LAST_ERROR_SQLSTATE
UPDATE syncstate.sync_state SET status = 'idle' WHERE user_id = :b;
DELETE FROM syncstate.sync_state WHERE user_id = :b;

-- nor is a row of one's own made B's
UPDATE syncstate.sync_state SET user_id = :b WHERE source = 'google_tasks'; -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
RESET "request.jwt.claims";
SELECT count(*) AS rows_of_b FROM syncstate.sync_state WHERE user_id = :b;
REVOKE INSERT, UPDATE, DELETE ON syncstate.sync_state FROM regress_syncstate_user;

SET client_min_messages = warning;
DROP EXTENSION syncstate;
DROP TABLE pg_temp.users;
DROP ROLE regress_syncstate_worker, regress_syncstate_member, regress_syncstate_user,
	regress_syncstate_usage, regress_syncstate_anon;
\c -

/* ---------------------------------------------------------- Supabase style */

/*
 * Roles anon, authenticated and service_role that are there before the
 * extension: the script makes the grants.  Roles are the cluster's: those
 * that were there stay.
 */
SET client_min_messages = warning;
SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'anon') AS made_anon,
	NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'authenticated') AS made_authenticated,
	NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'service_role') AS made_service_role \gset
\if :made_anon
CREATE ROLE anon NOLOGIN NOINHERIT;
\endif
\if :made_authenticated
CREATE ROLE authenticated NOLOGIN NOINHERIT;
\endif
\if :made_service_role
CREATE ROLE service_role NOLOGIN NOINHERIT;
\endif
SELECT rolbypassrls AS bypassed_rls FROM pg_roles WHERE rolname = 'service_role' \gset
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
SET syncstate.clock = '2030-01-01 00:00:00+00';
RESET client_min_messages;
INSERT INTO syncstate.sync_state (user_id, source, sync_token) VALUES
	(:a, 'google_calendar', 'secret'), (:b, 'google_calendar', 'secret');

SET ROLE authenticated;
SET "request.jwt.claims" = '{"sub": "aaaaaaaa-0000-4000-8000-00000000000a", "role": "authenticated"}';
SELECT user_id, source, status FROM syncstate.my_syncs;
SELECT syncstate.request_sync(:a, 'google_calendar');
SELECT syncstate.request_sync(:b, 'google_calendar'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT sync_token FROM syncstate.sync_state; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.claim_due_syncs(); -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;

SET ROLE anon;
SELECT * FROM syncstate.my_syncs; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT syncstate.current_user_id(); -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
RESET "request.jwt.claims";

-- the service role bypasses row security there, but does not need to
ALTER ROLE service_role NOBYPASSRLS;
SET ROLE service_role;
BEGIN;
SELECT user_id, lease, sync_token FROM syncstate.claim_due_syncs() ORDER BY user_id;
SELECT status FROM syncstate.mark_sync_completed(:b, 'google_calendar', 1, 'new', lease => 1);
ROLLBACK;
RESET ROLE;
ALTER ROLE service_role BYPASSRLS;
SET ROLE service_role;
BEGIN;
SELECT user_id, lease, sync_token FROM syncstate.claim_due_syncs() ORDER BY user_id;
SELECT status FROM syncstate.mark_sync_completed(:b, 'google_calendar', 1, 'new', lease => 1);
ROLLBACK;
RESET ROLE;

DROP EXTENSION syncstate;
\if :bypassed_rls
\else
ALTER ROLE service_role NOBYPASSRLS;
\endif
\if :made_anon
DROP ROLE anon;
\endif
\if :made_authenticated
DROP ROLE authenticated;
\endif
\if :made_service_role
DROP ROLE service_role;
\endif
