/*
 * check_installation(): nothing on a sound database, whatever a site does with
 * it; a row that names what was damaged; and advice that heals it.
 */
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS syncstate;
CREATE EXTENSION syncstate;
CREATE ROLE regress_check_worker;
CREATE ROLE regress_check_user;
CREATE SCHEMA regress_check;
RESET client_min_messages;
SET search_path = regress_check, syncstate;
\set VERBOSITY terse

SELECT * FROM check_installation();

-- ---------------------------------------------------------------------
-- What a site does
-- ---------------------------------------------------------------------
SET client_min_messages = warning;
SELECT grant_worker('regress_check_worker'), grant_user('regress_check_user');
GRANT SELECT ON sync_event TO regress_check_user WITH GRANT OPTION;
ALTER ROLE regress_check_user RENAME TO regress_check_people;
SELECT register_sync_source('regress_check_mail');
SELECT set_sync_policy('google_tasks', '{"sync_interval": "1 hour"}') IS NOT NULL AS policy;
CREATE TABLE users (id uuid PRIMARY KEY);
SELECT watch_users('users');
INSERT INTO sync_state (user_id, source) VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks');
SELECT status FROM claim_due_syncs();

-- additions of its own
ALTER TABLE sync_state ADD COLUMN "plan %s" text DEFAULT 'free', ADD COLUMN team bigint NOT NULL DEFAULT 1;
CREATE INDEX regress_check_team ON sync_state (team, user_id) WHERE resource = '';
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER regress_check_note AFTER UPDATE OF status ON sync_state FOR EACH ROW EXECUTE FUNCTION note();
CREATE POLICY regress_check_anybody ON sync_state FOR SELECT TO regress_check_people USING (resource = 'shared');
CREATE TABLE teams (user_id uuid, account text, source sync_source, resource text,
	FOREIGN KEY (user_id, account, source, resource) REFERENCES sync_state ON DELETE CASCADE);
CREATE VIEW syncstate.regress_check_view WITH (security_invoker = true) AS SELECT user_id FROM syncstate.sync_state;
CREATE FUNCTION syncstate.regress_check_one() RETURNS integer LANGUAGE sql RETURN 1;
COMMENT ON TABLE sync_state IS 'Ours';

-- upkeep
ALTER TABLE sync_state SET (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02);
ALTER INDEX sync_state_due SET (fillfactor = 70);
ALTER TABLE sync_state ALTER COLUMN error_message SET STATISTICS 0;
ALTER TABLE sync_state REPLICA IDENTITY FULL;
REINDEX TABLE CONCURRENTLY sync_state;
CLUSTER sync_run USING sync_run_pkey;
VACUUM (FULL, ANALYZE) sync_state;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE regress_check LOCATION '';
ALTER TABLE sync_event SET TABLESPACE regress_check;
ALTER INDEX sync_state_requested SET TABLESPACE regress_check;
SET client_min_messages = error; -- whatever wal_level is
CREATE PUBLICATION regress_check FOR TABLE sync_state, custom_source;
RESET client_min_messages;

SELECT * FROM check_installation();

-- nor do settings of the session matter
SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'; SET timezone = 'Asia/Kolkata';
SET extra_float_digits = -15; SET quote_all_identifiers = on;
DO $$ BEGIN SET standard_conforming_strings = off; EXCEPTION WHEN OTHERS THEN END $$; -- which 19 has no more
SET search_path = syncstate, pg_catalog;
SELECT * FROM check_installation();
RESET datestyle; RESET intervalstyle; RESET timezone; RESET extra_float_digits; RESET quote_all_identifiers;
RESET standard_conforming_strings;
SET search_path = regress_check, syncstate;

-- nor a role that is gone
BEGIN;
DO $$
BEGIN
	EXECUTE replace((SELECT command FROM (SELECT 'CREATE OR REPLACE FUNCTION syncstate.installed_objects() RETURNS TABLE (kind text, name text, problem text, role oid, definition text, command text) LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $f$' || prosrc || '$f$' FROM pg_proc WHERE proname = 'installed_objects') AS f (command)),
		format('%L::pg_catalog.oid', (SELECT nspowner FROM pg_namespace WHERE nspname = 'syncstate')::text), '4000000000::pg_catalog.oid');
END
$$;
SELECT count(*) > 0 AS roles_are_gone FROM installed_objects() WHERE role = 4000000000;
SELECT * FROM check_installation();
ROLLBACK;

-- it is not for workers and users
SET ROLE regress_check_worker;
SELECT * FROM syncstate.check_installation(); -- ERROR
SET ROLE regress_check_people;
SELECT * FROM syncstate.check_installation(); -- ERROR
RESET ROLE;
SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('syncstate')
	AND proname IN ('check_installation', 'present_objects', 'installed_objects')
	AND has_function_privilege('regress_check_worker', oid, 'EXECUTE');

-- ---------------------------------------------------------------------
-- One damage after the other
-- ---------------------------------------------------------------------

/*
 * What is found after some commands, and what is left after the advice, all of
 * which is rolled back.  Advice is run while there is any that is a command.
 */
CREATE FUNCTION damage(VARIADIC commands text[], OUT findings text[], OUT objects text[], OUT left_over text[])
LANGUAGE plpgsql AS $$
DECLARE
	command text;
BEGIN
	FOREACH command IN ARRAY commands LOOP
		EXECUTE command;
	END LOOP;
	SELECT array_agg(object || ': ' || problem), array_agg(object) INTO findings, objects FROM syncstate.check_installation();
	FOR round IN 1..3 LOOP
		FOR command IN SELECT advice FROM syncstate.check_installation() WHERE advice ~ '^[A-Z]{3,} ' LOOP
			BEGIN
				EXECUTE command;
			EXCEPTION WHEN OTHERS THEN
			END;
		END LOOP;
		EXIT WHEN NOT FOUND;
	END LOOP;
	left_over = ARRAY(SELECT object || ': ' || problem FROM syncstate.check_installation());
	RAISE EXCEPTION USING ERRCODE = 'ZZ000';
EXCEPTION WHEN SQLSTATE 'ZZ000' THEN
END
$$;

-- of everything of a kind: what is not found, or not healed
CREATE VIEW things AS
	SELECT 'policy' AS kind, format('policy %I on %s', polname, polrelid::regclass) AS object,
		format('%I ON %s', polname, polrelid::regclass) AS name, polrelid::regclass AS rel, polname AS part
	FROM pg_policy
	UNION ALL
	SELECT 'trigger', format('trigger %I on %s', tgname, tgrelid::regclass), format('%I ON %s', tgname, tgrelid::regclass), tgrelid, tgname
	FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'syncstate_forget_users'
	UNION ALL
	SELECT 'index', 'index ' || indexrelid::regclass, indexrelid::regclass::text, indrelid, ''
	FROM pg_index AS i JOIN pg_class AS c ON c.oid = indrelid WHERE c.relnamespace = to_regnamespace('syncstate')
		AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
	UNION ALL
	SELECT 'constraint', format('table constraint %I on %s', conname, conrelid::regclass), '', conrelid, conname
	FROM pg_constraint WHERE connamespace = to_regnamespace('syncstate') AND contype <> 'n'
	UNION ALL
	SELECT 'function', 'function ' || (pg_identify_object('pg_proc'::regclass, oid, 0)).identity, oid::regprocedure::text, NULL, proname
	FROM pg_proc WHERE pronamespace = to_regnamespace('syncstate')
		AND proname NOT IN ('check_installation', 'present_objects', 'installed_objects') -- see below
	UNION ALL
	SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'sequence' END,
		CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'sequence' END || ' ' || oid::regclass, oid::regclass::text, oid, relname
	FROM pg_class WHERE relnamespace = to_regnamespace('syncstate') AND relkind IN ('r', 'v', 'S')
	UNION ALL
	SELECT 'column', format('table column %s.%I', attrelid::regclass, attname), '', attrelid, attname
	FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = attrelid
	WHERE relnamespace = to_regnamespace('syncstate') AND relkind = 'r' AND attnum > 0 AND NOT attisdropped;

CREATE FUNCTION damage_all(of_kind text, command text, condition text DEFAULT 'true')
RETURNS TABLE (damaged boolean, not_found text[], besides text[], not_healed text[]) LANGUAGE plpgsql
SET search_path = regress_check, pg_temp AS $$
DECLARE
	ours text[];
	commands text[];
	d record;
BEGIN
	EXECUTE format('SELECT array_agg(object), array_agg(%s) FROM things WHERE kind = %L AND object !~ %L AND (%s)', command, of_kind, 'regress_check|team$|plan %s', condition)
		INTO ours, commands;
	d = damage(VARIADIC commands);
	RETURN QUERY SELECT cardinality(ours) > 0,
		ARRAY(SELECT unnest(ours) EXCEPT SELECT unnest(d.objects)),
		ARRAY(SELECT DISTINCT substring(o FROM '^(table constraint|table column|\w+)') FROM unnest(d.objects) AS o WHERE o <> ALL (ours) ORDER BY 1),
		d.left_over;
END
$$;

-- dropped
SET client_min_messages = warning;
SELECT * FROM damage_all('policy', $$format('DROP POLICY %s', name)$$);
SELECT * FROM damage_all('trigger', $$format('DROP TRIGGER %s', name)$$);
SELECT * FROM damage_all('index', $$format('DROP INDEX %s', name)$$);
SELECT * FROM damage_all('constraint', $$format('ALTER TABLE %s DROP CONSTRAINT %I CASCADE', rel, part)$$);
SELECT * FROM damage_all('function', $$format('DO $d$ BEGIN ALTER EXTENSION syncstate DROP FUNCTION %1$s; DROP FUNCTION %1$s CASCADE; END $d$', name)$$,
	$$part !~ '^(current_user_id|sync_clock|due_from|is_ahead)$'$$); -- views need these, and the extension the views
SELECT * FROM damage_all('function', $$format('ALTER FUNCTION %s RENAME TO %I', name, 'regress_check_' || part)$$);
SELECT * FROM damage_all('view', $$format('DO $d$ BEGIN ALTER EXTENSION syncstate DROP VIEW %1$s; DROP VIEW %1$s CASCADE; END $d$', name)$$);
SELECT * FROM damage_all('sequence', $$format('DO $d$ BEGIN ALTER EXTENSION syncstate DROP SEQUENCE %1$s; DROP SEQUENCE %1$s; END $d$', name)$$);

-- changed, or made anew
SELECT * FROM damage_all('policy', $$format('ALTER POLICY %s TO regress_check_worker', name)$$);
SELECT * FROM damage_all('policy', $$format('ALTER POLICY %s USING (true)', name)$$, $$part !~ '_insert$'$$);
SELECT * FROM damage_all('policy', $$format('ALTER POLICY %s WITH CHECK (true)', name)$$, $$part ~ '_(insert|update)$'$$);
SELECT * FROM damage_all('trigger', $$format('ALTER TABLE %s DISABLE TRIGGER %I', rel, part)$$);
SELECT * FROM damage_all('trigger', $$format('DO $d$ BEGIN DROP TRIGGER %2$s; CREATE TRIGGER %1$I AFTER INSERT ON %3$s FOR EACH ROW EXECUTE FUNCTION regress_check.note(); END $d$', part, name, rel)$$);
SELECT * FROM damage_all('index', $$format('DO $d$ BEGIN DROP INDEX %s; CREATE INDEX %s ON %s (source); END $d$', name, split_part(name, '.', 2), rel)$$);
SELECT * FROM damage_all('index', $$format('UPDATE pg_index SET indisvalid = false WHERE indexrelid = %L::regclass', name)$$);
SELECT * FROM damage_all('constraint', $$format('DO $d$ BEGIN ALTER TABLE %1$s DROP CONSTRAINT %2$I; ALTER TABLE %1$s ADD CONSTRAINT %2$I CHECK (true); END $d$', rel, part)$$, $$part !~ '_p?key$'$$);
SELECT * FROM damage_all('function', $$format('ALTER FUNCTION %s SET work_mem = 64', name)$$);
SELECT * FROM damage_all('function', $$format('DO $d$ BEGIN EXECUTE regexp_replace(pg_get_functiondef(%L::regprocedure), %L, %L); END $d$', name, 'BEGIN\n', E'BEGIN\n\tPERFORM 1;\n')$$,
	$$(SELECT prosrc ~ 'BEGIN\n' FROM pg_proc WHERE oid = name::regprocedure)$$);
SELECT * FROM damage_all('view', $$format('ALTER VIEW %s RESET (security_invoker)', name)$$);
SELECT * FROM damage_all('view', $$format('ALTER VIEW %s RENAME COLUMN source TO sources', name)$$);
SELECT * FROM damage_all('view', $$format('DO $d$ BEGIN EXECUTE replace(format(%L, pg_get_viewdef(%L::regclass)), %L, %L); END $d$',
	'CREATE OR REPLACE VIEW ' || name || ' WITH (' || (SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = rel) || ') AS %s', name, 'current_user_id()', 'user_id_of(user_id::text)')$$,
	$$part ~ 'my_'$$);
SELECT * FROM damage_all('table', $$format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', name)$$, $$(SELECT relrowsecurity FROM pg_class WHERE oid = rel)$$);
SELECT * FROM damage_all('table', $$format('ALTER TABLE %s SET UNLOGGED', name)$$, $$name !~ 'sync_state|custom_source'$$);
SELECT * FROM damage_all('column', $$format('ALTER TABLE %s ALTER %I DROP NOT NULL', rel, part)$$, $$(SELECT attnotnull AND NOT EXISTS (SELECT FROM pg_constraint
	WHERE contype = 'p' AND conrelid = rel AND attnum = ANY (conkey)) FROM pg_attribute WHERE attrelid = rel AND attname = part)$$);
SELECT * FROM damage_all('column', $$format('ALTER TABLE %s ALTER %I DROP DEFAULT', rel, part)$$, $$(SELECT atthasdef FROM pg_attribute WHERE attrelid = rel AND attname = part)$$);
SELECT * FROM damage_all('column', $$format('ALTER TABLE %s ALTER %I SET DEFAULT NULL', rel, part)$$, $$(SELECT atthasdef FROM pg_attribute WHERE attrelid = rel AND attname = part)$$);

-- members, owners, privileges
SELECT * FROM damage_all('function', $$format('ALTER EXTENSION syncstate DROP FUNCTION %s', name)$$);
SELECT * FROM damage_all('table', $$format('ALTER EXTENSION syncstate DROP TABLE %s', name)$$);
SELECT * FROM damage_all('view', $$format('ALTER EXTENSION syncstate DROP VIEW %s', name)$$);
SELECT * FROM damage_all('function', $$format('ALTER FUNCTION %s OWNER TO regress_check_worker', name)$$);
SELECT * FROM damage_all('table', $$format('ALTER TABLE %s OWNER TO regress_check_worker', name)$$);
SELECT * FROM damage_all('function', $$format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', name)$$);
SELECT * FROM damage_all('table', $$format('GRANT SELECT ON %s TO PUBLIC', name)$$);
SELECT * FROM damage_all('column', $$format('GRANT SELECT (%I) ON %s TO PUBLIC', part, rel)$$);

RESET client_min_messages;

-- what each says
CREATE FUNCTION say(VARIADIC commands text[]) RETURNS TABLE (finding text) LANGUAGE plpgsql AS $$
DECLARE
	d record;
BEGIN
	d = regress_check.damage(VARIADIC commands);
	RETURN QUERY SELECT unnest(d.findings) UNION ALL SELECT 'left over: ' || l FROM unnest(d.left_over) AS l;
END
$$;
\pset tuples_only on
SELECT * FROM say('DROP POLICY sync_state_select ON sync_state');
SELECT * FROM say('ALTER POLICY sync_state_select ON sync_state USING (true)');
SELECT * FROM say('ALTER TABLE sync_policy ENABLE TRIGGER sync_policy_changed');
SELECT * FROM say('ALTER TABLE sync_run DISABLE ROW LEVEL SECURITY');
SELECT * FROM say('ALTER TABLE sync_run ALTER was_full DROP NOT NULL');
SELECT * FROM say('ALTER TABLE sync_budget ALTER correction TYPE real');
SELECT * FROM say('ALTER TABLE sync_budget DROP mean_rate');
SELECT * FROM say('ALTER TABLE sync_state ALTER lease SET DEFAULT 0');
SELECT * FROM say('ALTER FUNCTION guard() OWNER TO regress_check_worker');
SELECT * FROM say('ALTER EXTENSION syncstate DROP TYPE sync_status');
SELECT * FROM say($$ALTER TYPE sync_status RENAME VALUE 'idle' TO 'lazy'$$);
SELECT * FROM say('CREATE OR REPLACE FUNCTION syncstate.get_sync_states(user_id uuid) RETURNS SETOF sync_state LANGUAGE sql STABLE PARALLEL SAFE
	BEGIN ATOMIC SELECT s FROM sync_state AS s; END');
SELECT * FROM say('GRANT USAGE ON SCHEMA syncstate TO PUBLIC');
SELECT * FROM say('GRANT SELECT (status) ON sync_state TO PUBLIC');

-- sources
SELECT * FROM say('ALTER TABLE custom_source DISABLE TRIGGER ALL', $$INSERT INTO custom_source VALUES ('regress_check_files')$$,
	'ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_skip_known', 'ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_add_label',
	'ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_keep_label', 'ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_keep_labels');
SELECT * FROM say('ALTER TABLE custom_source DISABLE TRIGGER custom_source_keep_label', 'DELETE FROM custom_source',
	'ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_keep_label');
SELECT * FROM say($$ALTER TYPE sync_source ADD VALUE 'regress_check_files'$$);
SELECT * FROM say('ALTER EXTENSION syncstate DROP SEQUENCE rate_regress_check_mail', 'DROP SEQUENCE rate_regress_check_mail');
SELECT * FROM say('TRUNCATE sync_lane');
SELECT * FROM say($$DELETE FROM pg_enum WHERE enumtypid = 'sync_source'::regtype AND enumlabel = 'google_tasks'$$);

-- a rule, under which calls fail
SELECT * FROM say($$CREATE RULE regress_check AS ON UPDATE TO sync_state WHERE OLD.resource = 'none' DO INSTEAD NOTHING$$);
-- what makes writes slow, which the site may want
SELECT * FROM say('CREATE TRIGGER regress_check BEFORE UPDATE ON sync_state FOR EACH ROW EXECUTE FUNCTION note()');
SELECT * FROM say('CREATE TRIGGER regress_check AFTER UPDATE ON sync_state EXECUTE FUNCTION note()');
SELECT * FROM say('CREATE TRIGGER regress_check AFTER UPDATE ON sync_state REFERENCING NEW TABLE AS n FOR EACH ROW EXECUTE FUNCTION note()');
SELECT * FROM say('CREATE TRIGGER regress_check BEFORE INSERT OR DELETE ON sync_state FOR EACH ROW EXECUTE FUNCTION note()');
SELECT * FROM say('ALTER TABLE sync_state ADD COLUMN next bigint GENERATED ALWAYS AS (lease + 1) STORED');
SELECT * FROM say('ALTER TABLE sync_state ADD CONSTRAINT regress_check CHECK (failures < 1000)');
SELECT * FROM say('CREATE POLICY regress_check ON sync_state AS RESTRICTIVE USING (true)');
SELECT * FROM say($$SET LOCAL pgaudit.log = 'write'$$);
SELECT * FROM say($$CREATE INDEX regress_check ON sync_state (resource) WHERE status = 'error'$$);
SELECT * FROM say('CREATE INDEX regress_check ON sync_state (upper(page_token))');
SELECT * FROM say('ALTER TABLE sync_state RESET (fillfactor)');
\pset tuples_only off

-- all that claims, heartbeats and limits change, but for what the lanes are made of, is known there
CREATE TABLE columns AS
	SELECT substring(f FROM 'change column (.*)') AS attname
	FROM (SELECT (damage(VARIADIC array_agg(format('CREATE INDEX ON syncstate.sync_state (%I)', attname)))).findings
		FROM pg_attribute WHERE attrelid = 'sync_state'::regclass AND attnum > 0 AND NOT attisdropped) AS d, unnest(d.findings) AS f;
CREATE FUNCTION changed(command text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	before jsonb = (SELECT jsonb_object_agg(source, to_jsonb(s)) FROM syncstate.sync_state AS s);
BEGIN
	EXECUTE command;
	RETURN QUERY SELECT DISTINCT v.key FROM syncstate.sync_state AS s, jsonb_each(to_jsonb(s)) AS v WHERE v.value <> before -> s.source::text -> v.key;
END
$$;
DELETE FROM sync_state;
INSERT INTO sync_state (user_id, source) VALUES ('aaaaaaaa-0000-4000-8000-000000000001', 'google_tasks'), ('aaaaaaaa-0000-4000-8000-000000000001', 'google_gmail');
UPDATE sync_state SET due_at = '2000-01-01', failures = 2;
CREATE TABLE changes AS
	SELECT changed('SELECT syncstate.claim_due_syncs()') AS attname
	UNION SELECT changed($$SELECT syncstate.renew_sync_lease(user_id, source, lease, '1 hour') FROM syncstate.sync_state$$)
	UNION SELECT changed($$SELECT syncstate.checkpoint_sync(user_id, source, lease, 'page', 1, 2) FROM syncstate.sync_state$$);
SELECT count(*) > 10 AS many, array_agg(attname::text ORDER BY 1) FILTER (WHERE attname NOT IN (SELECT attname FROM columns)) AS not_known FROM changes;

-- a function that is to tell cannot tell that it is gone itself
BEGIN;
ALTER EXTENSION syncstate DROP FUNCTION installed_objects();
DROP FUNCTION installed_objects();
\set VERBOSITY sqlstate
SELECT * FROM check_installation(); -- ERROR
\set VERBOSITY terse
ROLLBACK;

-- ---------------------------------------------------------------------
-- Where the owner of the database has installed it
-- ---------------------------------------------------------------------
SET client_min_messages = warning;
DROP PUBLICATION regress_check;
DROP TABLE users, teams;
DROP EXTENSION syncstate CASCADE;
DROP TABLESPACE regress_check;
CREATE ROLE regress_check_owner;
DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO regress_check_owner', current_database()); END $$;
SET ROLE regress_check_owner;
CREATE EXTENSION syncstate;
SELECT syncstate.grant_worker('regress_check_worker');
RESET client_min_messages;
SELECT * FROM syncstate.check_installation();
RESET ROLE;

SELECT * FROM damage_all('function', $$format('REVOKE ALL ON FUNCTION %s FROM regress_check_owner CASCADE', name)$$,
	$$part !~ '^(guard|record_revoked|policy_changed|add_source_label|skip_known_label|keep_source_labels)$'$$);
SELECT * FROM damage_all('table', $$format('REVOKE ALL ON %s FROM regress_check_owner CASCADE', name)$$);
SET client_min_messages = warning;
SELECT * FROM damage_all('function', $$format('REVOKE GRANT OPTION FOR ALL ON FUNCTION %s FROM regress_check_owner CASCADE', name)$$,
	$$part !~ '^(guard|record_revoked|policy_changed|add_source_label|skip_known_label|keep_source_labels)$'$$);
SELECT * FROM damage_all('function', $$format('DO $d$ BEGIN ALTER EXTENSION syncstate DROP FUNCTION %1$s; DROP FUNCTION %1$s CASCADE; END $d$', name)$$,
	$$part !~ '^(current_user_id|sync_clock|due_from|is_ahead)$'$$);
RESET client_min_messages;
\pset tuples_only on
SELECT * FROM say('REVOKE SELECT, DELETE ON syncstate.sync_event FROM regress_check_owner CASCADE');
SELECT * FROM say('SET ROLE regress_check_owner', 'GRANT EXECUTE ON FUNCTION syncstate.request_sync TO PUBLIC', 'RESET ROLE');
\pset tuples_only off

SET client_min_messages = warning;
DROP EXTENSION syncstate CASCADE;
DROP SCHEMA regress_check CASCADE;
DROP OWNED BY regress_check_owner, regress_check_worker, regress_check_people;
DROP ROLE regress_check_owner, regress_check_worker, regress_check_people;
