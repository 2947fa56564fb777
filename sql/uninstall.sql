/*
 * DROP EXTENSION leaves nothing behind, and CREATE EXTENSION in the same
 * session works as if it were the first.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
DROP EXTENSION syncstate;
RESET client_min_messages;

-- all objects of the database, by their names
CREATE FUNCTION pg_temp.objects() RETURNS TABLE (class regclass, name text) LANGUAGE sql AS $$
	SELECT 'pg_namespace'::regclass, nspname::text FROM pg_namespace
	UNION ALL SELECT 'pg_class'::regclass, oid::regclass::text FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace
	UNION ALL SELECT 'pg_proc'::regclass, oid::regprocedure::text FROM pg_proc
	UNION ALL SELECT 'pg_type'::regclass, oid::regtype::text FROM pg_type WHERE typnamespace <> 'pg_toast'::regnamespace
	UNION ALL SELECT 'pg_constraint'::regclass, conname || ' on ' || conrelid::regclass FROM pg_constraint
	UNION ALL SELECT 'pg_trigger'::regclass, tgname || ' on ' || tgrelid::regclass FROM pg_trigger
	UNION ALL SELECT 'pg_policy'::regclass, polname || ' on ' || polrelid::regclass FROM pg_policy
	UNION ALL SELECT 'pg_operator'::regclass, oid::regoperator::text FROM pg_operator
	UNION ALL SELECT 'pg_cast'::regclass, castsource::regtype || ' to ' || casttarget::regtype FROM pg_cast
	UNION ALL SELECT 'pg_enum'::regclass, enumtypid::regtype || '.' || enumlabel FROM pg_enum
	UNION ALL SELECT 'pg_event_trigger'::regclass, evtname::text FROM pg_event_trigger
	UNION ALL SELECT 'pg_default_acl'::regclass, defaclrole::regrole || defaclobjtype::text FROM pg_default_acl
	UNION ALL SELECT 'pg_init_privs'::regclass, pg_describe_object(classoid, objoid, objsubid) FROM pg_init_privs
	UNION ALL SELECT 'pg_description'::regclass, pg_describe_object(classoid, objoid, objsubid) FROM pg_description
	UNION ALL SELECT 'pg_extension'::regclass, extname::text FROM pg_extension
$$;
CREATE TEMP TABLE users (id uuid);
CREATE TEMP TABLE before (class regclass, name text);
INSERT INTO before SELECT * FROM pg_temp.objects();

-- one life: everything made, used, granted, and added to
CREATE ROLE regress_syncstate_worker;
CREATE EXTENSION syncstate;
SELECT syncstate.grant_worker('regress_syncstate_worker'), syncstate.grant_user('regress_syncstate_worker');
SELECT count(*) > 100 AS many_objects FROM (SELECT * FROM pg_temp.objects() EXCEPT ALL SELECT * FROM before) AS o;
SELECT syncstate.register_sync_source('regress_syncstate_source');
SET syncstate.clock = '2030-01-01 00:00:00+00';
SET ROLE regress_syncstate_worker;
SELECT status FROM syncstate.connect_sync('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks');
SELECT lease FROM syncstate.claim_due_syncs() \gset
SELECT status FROM syncstate.mark_sync_completed('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks', 1, lease => :lease);
SELECT sync_interval FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": "42 minutes"}');
RESET ROLE;

-- what others built on it is not torn down in passing
CREATE VIEW public.regress_syncstate_view AS SELECT * FROM syncstate.my_syncs;
DROP EXTENSION syncstate; -- ERROR
\echo :LAST_ERROR_SQLSTATE
DROP VIEW public.regress_syncstate_view;
SELECT syncstate.watch_users('users');
DROP EXTENSION syncstate; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS rows FROM syncstate.sync_state;
DROP TRIGGER syncstate_forget_users ON users;

DROP EXTENSION syncstate;
SELECT * FROM pg_temp.objects() EXCEPT ALL SELECT * FROM before;
SELECT * FROM before EXCEPT ALL SELECT * FROM pg_temp.objects();
-- the role is free to go: no grant of it is left
DROP ROLE regress_syncstate_worker;

-- what is not there says so
SELECT syncstate.claim_due_syncs(); -- ERROR
\echo :LAST_ERROR_SQLSTATE

/* -------------------------------------------------- the next, in one session */

CREATE EXTENSION syncstate;
SELECT count(*) AS rows FROM syncstate.sync_state;
SELECT sync_interval FROM syncstate.get_sync_policy('google_tasks');
SELECT enum_range(NULL::syncstate.sync_source);
SELECT status, failures FROM syncstate.connect_sync('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks');
SELECT lease FROM syncstate.claim_due_syncs() \gset
SELECT status FROM syncstate.mark_sync_completed('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks', 1, lease => :lease);
SELECT syncstate.disconnect_sync('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks');

-- and a dropping that was rolled back was none
BEGIN;
DROP EXTENSION syncstate;
ROLLBACK;
SELECT status FROM syncstate.connect_sync('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks');
BEGIN;
DROP EXTENSION syncstate;
CREATE EXTENSION syncstate;
SELECT status FROM syncstate.connect_sync('bbbbbbbb-0000-4000-8000-000000000002', 'google_tasks');
SELECT user_id FROM syncstate.claim_due_syncs();
ROLLBACK;
SELECT user_id FROM syncstate.claim_due_syncs();
DROP EXTENSION syncstate;
SELECT * FROM pg_temp.objects() EXCEPT ALL SELECT * FROM before;
