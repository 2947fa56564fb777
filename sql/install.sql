/*
 * What CREATE EXTENSION makes: the contract as the catalogs tell it, and
 * nothing that somebody planted before.
 */
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS syncstate;
RESET client_min_messages;
\set SHOW_CONTEXT never

/* ------------------------------------------------------ a planted schema */

-- the script does not move into a house that somebody else built
CREATE SCHEMA syncstate;
CREATE EXTENSION syncstate; -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) AS extensions FROM pg_extension WHERE extname = 'syncstate';
SELECT count(*) AS objects FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace;
DROP SCHEMA syncstate;

-- nor does it go anywhere else
CREATE SCHEMA regress_syncstate_elsewhere;
CREATE EXTENSION syncstate SCHEMA regress_syncstate_elsewhere; -- ERROR
\echo :LAST_ERROR_SQLSTATE
DROP SCHEMA regress_syncstate_elsewhere;

/* ----------------------------------------------------- planted objects */

/*
 * Better matches than the built-in ones for what an install script might say
 * without a schema: types, functions, operators, casts, catalogs.  Whatever of
 * them is called leaves a trace.
 */
CREATE SCHEMA regress_syncstate_planted;
CREATE TABLE regress_syncstate_planted.trace (what text);
SET search_path = regress_syncstate_planted, public, pg_catalog;

CREATE FUNCTION trace(what pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_syncstate_planted.trace VALUES (what);
	RETURN true;
END
$$;
CREATE FUNCTION now() RETURNS pg_catalog.timestamptz LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('now'); SELECT pg_catalog.now()$$;
CREATE FUNCTION octet_length(pg_catalog.text) RETURNS pg_catalog.int4 LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('octet_length'); SELECT 0$$;
CREATE FUNCTION length(pg_catalog.text) RETURNS pg_catalog.int4 LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('length'); SELECT 0$$;
CREATE FUNCTION isfinite(pg_catalog.timestamptz) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('isfinite')$$;
CREATE FUNCTION date_part(pg_catalog.text, pg_catalog.interval) RETURNS pg_catalog.float8 LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('date_part'); SELECT 0::pg_catalog.float8$$;
CREATE FUNCTION has_function_privilege(regprocedure, pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('has_function_privilege')$$;
CREATE FUNCTION format(pg_catalog.text, regrole) RETURNS pg_catalog.text LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('format'); SELECT 'SELECT 1'::pg_catalog.text$$;
CREATE FUNCTION format(pg_catalog.text, regprocedure, regrole) RETURNS pg_catalog.text LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('format'); SELECT 'SELECT 1'::pg_catalog.text$$;
CREATE FUNCTION pg_extension_config_dump(regclass, pg_catalog.text) RETURNS void LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('pg_extension_config_dump'); SELECT$$;
CREATE FUNCTION current_user_id() RETURNS pg_catalog.uuid LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('current_user_id'); SELECT NULL::pg_catalog.uuid$$;

CREATE FUNCTION equal(pg_catalog.uuid, pg_catalog.uuid) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('uuid = uuid')$$;
CREATE FUNCTION equal(pg_catalog.text, pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('text = text')$$;
CREATE FUNCTION equal(name, pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('name = text')$$;
CREATE FUNCTION equal(pg_catalog.bool, pg_catalog.bool) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('bool = bool')$$;
CREATE FUNCTION less(pg_catalog.int4, pg_catalog.int4) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('int4 <= int4')$$;
CREATE FUNCTION less(pg_catalog.interval, pg_catalog.interval) RETURNS pg_catalog.bool LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('interval <= interval')$$;
CREATE OPERATOR = (FUNCTION = equal, LEFTARG = pg_catalog.uuid, RIGHTARG = pg_catalog.uuid);
CREATE OPERATOR = (FUNCTION = equal, LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text);
CREATE OPERATOR = (FUNCTION = equal, LEFTARG = name, RIGHTARG = pg_catalog.text);
CREATE OPERATOR = (FUNCTION = equal, LEFTARG = pg_catalog.bool, RIGHTARG = pg_catalog.bool);
CREATE OPERATOR ~ (FUNCTION = equal, LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text);
CREATE OPERATOR <= (FUNCTION = less, LEFTARG = pg_catalog.int4, RIGHTARG = pg_catalog.int4);
CREATE OPERATOR >= (FUNCTION = less, LEFTARG = pg_catalog.int4, RIGHTARG = pg_catalog.int4);
CREATE OPERATOR <= (FUNCTION = less, LEFTARG = pg_catalog.interval, RIGHTARG = pg_catalog.interval);

CREATE TYPE uuid AS (x pg_catalog.text);
CREATE TYPE text AS (x pg_catalog.text);
CREATE TYPE sync_source AS ENUM ('planted');
CREATE TYPE sync_status AS ENUM ('planted');
CREATE DOMAIN timestamptz AS pg_catalog.timestamptz CHECK (regress_syncstate_planted.trace('timestamptz'));
CREATE DOMAIN "interval" AS pg_catalog.interval CHECK (regress_syncstate_planted.trace('interval'));
CREATE FUNCTION from_text(text) RETURNS pg_catalog.text LANGUAGE sql
	AS $$SELECT regress_syncstate_planted.trace('cast of text'); SELECT $1.x$$;
CREATE CAST (text AS pg_catalog.text) WITH FUNCTION from_text(text) AS IMPLICIT;
CREATE TABLE sync_state (planted pg_catalog.int4);
CREATE VIEW pg_roles AS SELECT 'postgres'::name AS rolname WHERE regress_syncstate_planted.trace('pg_roles');

-- the same where an unqualified name of a type or table is looked for first
CREATE TYPE pg_temp.uuid AS (x pg_catalog.text);
CREATE TYPE pg_temp.text AS (x pg_catalog.text);
CREATE TYPE pg_temp.regrole AS (x pg_catalog.text);
CREATE TEMP TABLE sync_policy (planted pg_catalog.int4);
CREATE TEMP VIEW pg_roles AS SELECT 'postgres'::name AS rolname WHERE regress_syncstate_planted.trace('pg_roles');
SET search_path = pg_temp, regress_syncstate_planted, public, pg_catalog;

CREATE EXTENSION syncstate;

RESET search_path;
SELECT * FROM regress_syncstate_planted.trace;

-- nothing of the extension leans on anything outside of it and the system
SELECT DISTINCT o.type AS dependent_type, o.identity AS dependent, r.type, r.identity
FROM pg_depend AS d,
	pg_identify_object(d.classid, d.objid, d.objsubid) AS o,
	pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid) AS r
WHERE o.identity ~ '\msyncstate\.' AND o.identity !~ 'regress_syncstate_planted'
	AND (r.schema NOT IN ('pg_catalog', 'syncstate') OR r.identity ~ 'regress_syncstate_planted')
ORDER BY 1, 2, 3, 4;

SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_planted CASCADE;
RESET client_min_messages;
\c -

/* ------------------------------------------------- where everything is */

-- in the catalog the extension owns nothing but what is in its own schema
SELECT DISTINCT coalesce(o.schema, o.identity) AS lives_in
FROM pg_depend AS d,
	pg_identify_object(d.classid, d.objid, d.objsubid) AS o
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'syncstate')
	AND o.type <> 'trigger' AND o.type <> 'policy'
ORDER BY 1;

-- and all that is in its schema is its own
SELECT o.type, o.identity
FROM (SELECT 'pg_class'::regclass, oid FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace AND relkind NOT IN ('i', 't')
	UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = 'syncstate'::regnamespace
	UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typnamespace = 'syncstate'::regnamespace AND typtype = 'e') AS c (class, oid),
	pg_identify_object(c.class, c.oid, 0) AS o
WHERE NOT EXISTS (SELECT FROM pg_depend AS d
				  WHERE d.classid = c.class AND d.objid = c.oid AND d.deptype = 'e'
					AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'syncstate'))
ORDER BY 1, 2;

SELECT e.extversion, n.nspname AS schema, e.extrelocatable AS relocatable
FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'syncstate';

SELECT superuser, trusted, relocatable, schema, requires
FROM pg_available_extension_versions
WHERE name = 'syncstate' AND installed;

/* ------------------------------------------------------------ contract */

SELECT t.typname, array_agg(l.enumlabel ORDER BY l.enumsortorder) AS labels
FROM pg_type AS t JOIN pg_enum AS l ON l.enumtypid = t.oid
WHERE t.typnamespace = 'syncstate'::regnamespace
GROUP BY t.typname ORDER BY t.typname;

SELECT a.attnum AS n, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type,
	a.attnotnull AS not_null, pg_get_expr(d.adbin, d.adrelid) AS default
FROM pg_attribute AS a
	LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = 'syncstate.sync_state'::regclass AND a.attnum > 0
ORDER BY a.attnum;

SELECT a.attnum AS n, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type,
	a.attnotnull AS not_null, pg_get_expr(d.adbin, d.adrelid) AS default
FROM pg_attribute AS a
	LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = 'syncstate.sync_policy'::regclass AND a.attnum > 0
ORDER BY a.attnum;

SELECT c.relname AS view, c.reloptions, string_agg(a.attname, ', ' ORDER BY a.attnum) AS columns
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'syncstate'::regnamespace AND c.relkind = 'v'
GROUP BY c.relname, c.reloptions
ORDER BY c.relname;

-- what a user sees is no cursor, no page token, no lease
SELECT count(*) AS secrets
FROM pg_attribute
WHERE attrelid = 'syncstate.my_syncs'::regclass
	AND attname ~ 'sync_token|history_id|updated_min|token_issued|page_token|lease';

-- not-null constraints have names of their own since version 18
SELECT conrelid::regclass AS table, conname, contype
FROM pg_constraint
WHERE connamespace = 'syncstate'::regnamespace AND contype <> 'n'
ORDER BY conrelid::regclass::text, contype DESC, conname;

SELECT indexrelid::regclass AS index, pg_get_indexdef(indexrelid) AS definition
FROM pg_index
WHERE indrelid IN ('syncstate.sync_state'::regclass, 'syncstate.sync_policy'::regclass)
ORDER BY indexrelid::regclass::text;

SELECT tgrelid::regclass AS table, tgname AS trigger, tgenabled AS enabled
FROM pg_trigger
WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace)
	AND NOT tgisinternal
ORDER BY tgrelid::regclass::text, tgname;

SELECT polrelid::regclass AS table, polname AS policy, polcmd AS command,
	polpermissive AS permissive, polroles::regrole[] AS roles
FROM pg_policy
ORDER BY polrelid::regclass::text, array_position('{r,a,w,d,*}', polcmd);

-- each policy asks who it is in a sub-select: once per statement, not per row
SELECT policyname
FROM pg_policies
WHERE schemaname = 'syncstate'
	AND concat(qual, ' ', with_check)
		~ '(?<!SELECT )(syncstate\.current_user_id|has_function_privilege)\(';

SELECT relname, relrowsecurity AS row_security
FROM pg_class
WHERE relnamespace = 'syncstate'::regnamespace AND relkind = 'r'
ORDER BY relname;

-- what pg_dump takes along, and all of it
SELECT t.rel::regclass AS dumped, e.extcondition[t.n] AS condition
FROM pg_extension AS e, unnest(e.extconfig) WITH ORDINALITY AS t (rel, n)
WHERE e.extname = 'syncstate'
ORDER BY t.rel::regclass::text;

-- the functions: names of arguments, defaults, results
\pset format unaligned
\pset tuples_only on
SELECT format('%s(%s) -> %s [%s]', p.proname, pg_get_function_arguments(p.oid),
			  pg_get_function_result(p.oid),
			  CASE p.provolatile WHEN 'v' THEN 'volatile' WHEN 's' THEN 'stable' ELSE 'immutable' END)
FROM pg_proc AS p
WHERE p.pronamespace = 'syncstate'::regnamespace
ORDER BY p.proname;
\pset tuples_only off
\pset format aligned

/* --------------------------------------------------------------- rules */
/* Each of these shows what breaks the rule: nothing. */

-- PostgREST cannot choose between functions of one name
SELECT proname FROM pg_proc WHERE pronamespace = 'syncstate'::regnamespace
GROUP BY proname HAVING count(*) > 1;

-- and calls by the names of arguments
SELECT p.oid::regprocedure AS argument_without_name
FROM pg_proc AS p
WHERE p.pronamespace = 'syncstate'::regnamespace
	AND (cardinality(coalesce(p.proargnames, '{}')) < p.pronargs
		 OR '' = ANY (p.proargnames[:p.pronargs]));

-- a function is in C, or has its body bound to objects, or has a fixed path
SELECT p.oid::regprocedure AS at_the_mercy_of_search_path
FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
WHERE p.pronamespace = 'syncstate'::regnamespace
	AND l.lanname <> 'c' AND p.prosqlbody IS NULL
	AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false);

SELECT p.oid::regprocedure AS definer_without_path
FROM pg_proc AS p
WHERE p.pronamespace = 'syncstate'::regnamespace AND p.prosecdef
	AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false);

-- only a trigger may act above its caller
SELECT p.oid::regprocedure AS definer
FROM pg_proc AS p
WHERE p.pronamespace = 'syncstate'::regnamespace AND p.prosecdef
	AND p.prorettype <> 'trigger'::regtype;

-- a view shows what its reader may see, not what its owner may
SELECT c.oid::regclass AS view_of_its_owner
FROM pg_class AS c
WHERE c.relnamespace = 'syncstate'::regnamespace AND c.relkind = 'v'
	AND NOT coalesce('security_invoker=true' = ANY (c.reloptions), false);

-- PUBLIC may nothing
SELECT p.oid::regprocedure AS executable_by_public
FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
WHERE p.pronamespace = 'syncstate'::regnamespace AND a.grantee = 0;

SELECT c.oid::regclass AS open_to_public, a.privilege_type
FROM pg_class AS c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
WHERE c.relnamespace = 'syncstate'::regnamespace AND a.grantee = 0;

SELECT t.attrelid::regclass AS open_to_public, t.attname
FROM pg_attribute AS t, aclexplode(t.attacl) AS a
WHERE t.attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace)
	AND a.grantee = 0;

SELECT n.nspname AS open_to_public
FROM pg_namespace AS n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
WHERE n.nspname = 'syncstate' AND a.grantee = 0;

-- what writes says so: only these may be anything but VOLATILE
SELECT p.oid::regprocedure AS not_volatile
FROM pg_proc AS p
WHERE p.pronamespace = 'syncstate'::regnamespace AND p.provolatile <> 'v'
	AND p.proname !~ '^(get_|next_sync_due$|due_from$|is_ahead$|current_user_id$|user_id_of$|is_legal$|(check_installation|present_objects|installed_objects)$)';

-- everything has a comment
SELECT o.type, o.identity AS without_comment
FROM (SELECT 'pg_namespace'::regclass, 'syncstate'::regnamespace::oid, 0
	UNION ALL SELECT 'pg_proc'::regclass, oid, 0 FROM pg_proc WHERE pronamespace = 'syncstate'::regnamespace
	UNION ALL SELECT 'pg_type'::regclass, oid, 0 FROM pg_type WHERE typnamespace = 'syncstate'::regnamespace AND typtype = 'e'
	UNION ALL SELECT 'pg_class'::regclass, oid, 0 FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace AND relkind IN ('r', 'v')
	UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum FROM pg_attribute
		WHERE attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace AND relkind = 'r')
	UNION ALL SELECT 'pg_trigger'::regclass, oid, 0 FROM pg_trigger
		WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace)
	UNION ALL SELECT 'pg_policy'::regclass, oid, 0 FROM pg_policy
		WHERE polrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace)) AS c (class, oid, sub),
	pg_identify_object(c.class, c.oid, c.sub) AS o
WHERE NOT EXISTS (SELECT FROM pg_description AS d
				  WHERE d.classoid = c.class AND d.objoid = c.oid AND d.objsubid = c.sub AND d.description <> '')
ORDER BY 1, 2;

-- a function's comment is one that tells it from the others
SELECT d.description AS told_twice
FROM pg_proc AS p JOIN pg_description AS d ON d.classoid = 'pg_proc'::regclass AND d.objoid = p.oid
WHERE p.pronamespace = 'syncstate'::regnamespace
GROUP BY d.description HAVING count(*) > 1;

-- no row is shipped: defaults live in the library, so that they can improve
SELECT (SELECT count(*) FROM syncstate.sync_state) AS states,
	(SELECT count(*) FROM syncstate.sync_policy) AS policies;

/* -------------------------------------------------------------- setting */

-- known once the library is loaded, and no other of its prefix is
SELECT syncstate.sync_clock() IS NOT NULL AS loaded;
SELECT name, context, vartype, boot_val FROM pg_settings WHERE name LIKE 'syncstate.%' ORDER BY name;
SET syncstate.no_such_setting = 1; -- ERROR
\echo :LAST_ERROR_SQLSTATE
