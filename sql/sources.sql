--
-- Sources of one's own: register_sync_source()
--
-- A label cannot be removed from an enum, so this begins and ends with an
-- extension of its own.
--
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS syncstate CASCADE;
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
RESET client_min_messages;
\pset null '(null)'

CREATE SCHEMA regress_syncstate_sources;
SET search_path = regress_syncstate_sources, syncstate;

-- Users are numbered.
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;

CREATE FUNCTION sqlstate_of(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

SET syncstate.clock = '2030-01-01 00:00Z';

-- ---------------------------------------------------------------------
-- What is no label
-- ---------------------------------------------------------------------
SELECT left(label, 20) AS label, length(label) AS bytes,
	sqlstate_of(format('SELECT register_sync_source(%L)', label)) AS registered,
	sqlstate_of(format('INSERT INTO custom_source VALUES (%L)', label)) AS inserted
FROM unnest(ARRAY['', ' ', 'Outlook', 'outlook-mail', 'outlook mail', 'outlook.mail', ' outlook', 'outlook ', E'outlook\n', E'\noutlook',
	E'out\nlook', 'out''look', 'out"look', 'outlook;', 'outlook$', '%s', '%I', E'out\\look', '*', repeat('a', 64), repeat('a', 10000), NULL])
	WITH ORDINALITY AS l (label, i)
ORDER BY i;
\set VERBOSITY terse
SELECT register_sync_source('Outlook'); -- ERROR
\set VERBOSITY default
SELECT enum_range(NULL::sync_source) AS labels, (SELECT count(*) FROM custom_source) AS registered;

-- ---------------------------------------------------------------------
-- A label is usable once the transaction has committed
-- ---------------------------------------------------------------------
SELECT next_sync_due() AS policies_are_kept_now;
BEGIN;
SELECT register_sync_source('outlook_mail');
\set VERBOSITY sqlstate
SELECT connect_sync(u(1), 'outlook_mail'); -- ERROR
\set VERBOSITY default
ROLLBACK;
SELECT sqlstate_of($$SELECT connect_sync(u(1), 'outlook_mail')$$) AS rolled_back,
	(SELECT count(*) FROM custom_source) AS registered;

-- the rest works in that transaction, and so does registering more
BEGIN;
SELECT register_sync_source('outlook_mail');
SELECT register_sync_source('outlook_mail');
SELECT register_sync_source('0');
SELECT register_sync_source('_');
SELECT register_sync_source(repeat('z', 58));
SELECT status FROM connect_sync(u(1), 'google_tasks');
SELECT source, lease FROM claim_due_syncs();
SELECT sqlstate_of($$SELECT count(*) FROM sync_state WHERE source = 'outlook_mail'$$) AS not_yet;
SELECT sqlstate_of($$SELECT * FROM report_syncs('[{"user_id": "00000000-0000-4000-8000-000000000001",
	"source": "outlook_mail", "lease": 1, "outcome": "released"}]')$$) AS not_yet_in_a_batch;
COMMIT;
SELECT enum_range('google_contacts'::sync_source, NULL) AS labels;
SELECT label FROM custom_source ORDER BY label;

-- each has its sequence, which goes with the extension
SELECT c.relname AS sequence, d.deptype, obj_description(c.oid, 'pg_class') AS comment
FROM pg_class AS c JOIN pg_depend AS d ON d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass
WHERE c.relkind = 'S' AND c.relnamespace = 'syncstate'::regnamespace ORDER BY c.relname COLLATE "C";

-- it sets up nothing else
SELECT count(*) AS rows, count(*) FILTER (WHERE source > 'google_contacts') AS of_new_ones FROM sync_state;
SELECT count(*) AS policies FROM sync_policy;

-- again, and for what is built in, it does nothing
SELECT digest FROM (SELECT md5(string_agg(concat(xmin, ctid, label), '/' ORDER BY label)) AS digest FROM custom_source) AS c \gset
SELECT register_sync_source('outlook_mail'), register_sync_source('google_gmail');
SELECT md5(string_agg(concat(xmin, ctid, label), '/' ORDER BY label)) = :'digest' AS unchanged FROM custom_source;
SELECT count(*) AS labels FROM pg_enum WHERE enumtypid = 'sync_source'::regtype;

-- who registers a label need not own the type, but needs to be allowed to
CREATE ROLE regress_syncstate_worker;
CREATE ROLE regress_syncstate_admin;
SELECT grant_worker('regress_syncstate_worker');
GRANT USAGE ON SCHEMA syncstate TO regress_syncstate_admin;
GRANT EXECUTE ON FUNCTION register_sync_source TO regress_syncstate_admin;
GRANT SELECT, INSERT ON custom_source TO regress_syncstate_admin;
SET ROLE regress_syncstate_worker;
SELECT syncstate.register_sync_source('worker_source'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
INSERT INTO syncstate.custom_source VALUES ('worker_source'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SET ROLE regress_syncstate_admin;
SELECT syncstate.register_sync_source('admin_source');
ALTER TYPE syncstate.sync_source ADD VALUE 'by_hand'; -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT 'admin_source'::sync_source AS label;

-- ---------------------------------------------------------------------
-- A row stays as long as its label, which a dump needs
-- ---------------------------------------------------------------------
SELECT array_agg(label ORDER BY c.ctid) AS labels FROM custom_source AS c \gset
CREATE FUNCTION labels() RETURNS text LANGUAGE sql
RETURN (SELECT array_agg(label ORDER BY c.ctid)::text FROM syncstate.custom_source AS c);
-- one by one, all of them, and as one who may delete
DELETE FROM custom_source WHERE label = 'outlook_mail';
DELETE FROM custom_source;
SELECT labels() = :'labels' AS kept;
GRANT DELETE ON custom_source TO regress_syncstate_admin;
SET ROLE regress_syncstate_admin;
WITH deleted AS (DELETE FROM syncstate.custom_source RETURNING label) SELECT count(*) AS deleted FROM deleted;
RESET ROLE;
SELECT labels() = :'labels' AS kept;
-- as cleaners of databases do: all tables in one statement
TRUNCATE custom_source;
SELECT labels() = :'labels' AS kept;
TRUNCATE custom_source, sync_budget, sync_policy, sync_state RESTART IDENTITY CASCADE;
SELECT labels() = :'labels' AS kept, (SELECT count(*) FROM sync_state) AS rows;
CREATE TABLE of_the_site (label text REFERENCES custom_source);
INSERT INTO of_the_site VALUES ('outlook_mail');
TRUNCATE custom_source CASCADE;
SELECT labels() = :'labels' AS kept, (SELECT count(*) FROM of_the_site) AS rows_of_the_site;
DROP TABLE of_the_site;
-- where ordinary triggers do not fire
SET session_replication_role = replica;
DELETE FROM custom_source;
TRUNCATE custom_source, sync_state;
RESET session_replication_role;
SELECT labels() = :'labels' AS kept;
-- in a transaction that keeps its snapshot, and after a savepoint
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM custom_source;
DELETE FROM custom_source;
TRUNCATE custom_source;
COMMIT;
SELECT labels() = :'labels' AS kept;
BEGIN;
SAVEPOINT s;
TRUNCATE custom_source;
ROLLBACK TO s;
DELETE FROM custom_source;
COMMIT;
SELECT labels() = :'labels' AS kept;
-- in the transaction that registered one more, which is rolled back
BEGIN;
SELECT register_sync_source('another');
DELETE FROM custom_source;
TRUNCATE custom_source;
SELECT string_agg(label, ' ' ORDER BY ctid) LIKE '% another' AS with_another FROM custom_source;
ROLLBACK;
SELECT labels() = :'labels' AS kept;
-- none is renamed
UPDATE custom_source SET label = 'hotmail' WHERE label = 'outlook_mail'; -- ERROR
\echo :LAST_ERROR_SQLSTATE
UPDATE custom_source SET label = label;
SELECT count(*) AS labels FROM custom_source;
-- Without the triggers all is possible; registering makes the row that is
-- missing, and adds no label again.
ALTER TABLE custom_source DISABLE TRIGGER ALL;
DELETE FROM custom_source WHERE label = 'outlook_mail';
INSERT INTO custom_source VALUES ('without_label'), ('google_gmail');
ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_skip_known;
ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_add_label;
ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_keep_label;
ALTER TABLE custom_source ENABLE ALWAYS TRIGGER custom_source_keep_labels;
SELECT register_sync_source('outlook_mail'), register_sync_source('google_gmail');
SELECT count(*) AS labels FROM pg_enum WHERE enumtypid = 'sync_source'::regtype;
-- a row that is not needed can be deleted
DELETE FROM custom_source WHERE label IN ('without_label', 'google_gmail');
SELECT ARRAY(SELECT unnest(:'labels'::text[]) ORDER BY 1) = ARRAY(SELECT label FROM custom_source ORDER BY label) AS kept;
DROP FUNCTION labels;

-- ---------------------------------------------------------------------
-- All calls know it
-- ---------------------------------------------------------------------
TRUNCATE sync_state;
SELECT source, sync_interval, lease_time, token_ttl, token_ttl_from, paused_until FROM get_sync_policy('outlook_mail');
SELECT source, sync_interval, lease_time FROM set_sync_policy('outlook_mail', '{"sync_interval": "1 hour", "lease_time": "1 min"}');
SELECT source, status, requested_at IS NOT NULL AS requested FROM connect_sync(u(1), 'outlook_mail');
SELECT request_sync(u(1), 'outlook_mail');
SELECT get_users_needing_sync('outlook_mail') = u(1) AS is_wanted;
SELECT next_sync_due('outlook_mail') <= sync_clock() AS is_due, next_sync_due() <= sync_clock() AS one_is_due;
SELECT source, lease, lease_expires_at - sync_clock() AS lease_for FROM claim_due_syncs('outlook_mail');
SELECT source, page_token FROM checkpoint_sync(u(1), 'outlook_mail', 1, 'page');
SELECT source, status FROM renew_sync_lease(u(1), 'outlook_mail', 1);
SELECT source, status, sync_token, due_at - sync_clock() BETWEEN '54 min' AND '57 min' AS in_an_hour
FROM mark_sync_completed(u(1), 'outlook_mail', sync_token => 'delta', lease => 1);
SELECT source, status, lease FROM mark_sync_started(u(1), 'outlook_mail');
SELECT source, status FROM mark_sync_failed(u(1), 'outlook_mail', 'x', lease => 2);
SELECT source, status, lease FROM mark_sync_started(u(1), 'outlook_mail');
SELECT source, status FROM mark_rate_limited(u(1), 'outlook_mail', '1 min', 'source', 3);
SELECT source, paused_until - sync_clock() AS pause FROM sync_policy;
SELECT source, paused_until FROM resume_sync_source('outlook_mail');
SELECT source, paused_until FROM pause_sync_source('outlook_mail');
SELECT source, paused_until FROM resume_sync_source('outlook_mail');
SELECT source, status, sync_token FROM clear_sync_token(u(1), 'outlook_mail');
SELECT source, status, lease FROM mark_sync_started(u(1), 'outlook_mail');
SELECT source, status FROM release_sync(u(1), 'outlook_mail', 4);
SELECT source, status, lease FROM mark_sync_started(u(1), 'outlook_mail');
SELECT source, status, sync_token FROM report_syncs('[{"user_id": "00000000-0000-4000-8000-000000000001",
	"source": "outlook_mail", "lease": 5, "outcome": "completed", "sync_token": "delta 2"}]');
SELECT source, sync_token FROM update_sync_state(u(1), 'outlook_mail', '{"sync_token": "delta 3"}');
SELECT source, parked_reason FROM pause_sync(u(1), 'outlook_mail');
SELECT source, parked_reason FROM resume_sync(u(1), 'outlook_mail');
SELECT source, sync_token FROM get_sync_state(u(1), 'outlook_mail');
SELECT source, sync_token FROM get_sync_states(u(1));
SELECT source, rows, due, paused_until FROM sync_overview WHERE source >= 'google_contacts' AND source <> repeat('z', 58)::sync_source;
SELECT disconnect_sync(u(1), 'outlook_mail');

-- it has its part of a claim of all sources
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(i), source, '2029-12-31Z' FROM generate_series(1, 100) AS i, unnest(enum_range(NULL::sync_source)) AS source;
SELECT count(*) AS claimed, count(DISTINCT source) AS sources, min(n) AS least, max(n) AS most
FROM (SELECT source, count(*) OVER (PARTITION BY source) AS n FROM claim_due_syncs(max_rows => 90)) AS c;

-- schedules of a user's sources differ in phase, that of each row is its own
SELECT count(DISTINCT due_at) > 90 AS spread
FROM (SELECT (mark_sync_completed(user_id, source, lease => nullif(lease, 0))).due_at FROM sync_state WHERE source = 'outlook_mail') AS c;

-- ---------------------------------------------------------------------
-- With the extension its labels go
-- ---------------------------------------------------------------------
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_sources CASCADE;
DROP OWNED BY regress_syncstate_worker, regress_syncstate_admin;
DROP ROLE regress_syncstate_worker, regress_syncstate_admin;
DROP EXTENSION syncstate CASCADE;
CREATE EXTENSION syncstate;
RESET client_min_messages;
SELECT enum_range(NULL::syncstate.sync_source) AS labels, (SELECT count(*) FROM syncstate.custom_source) AS registered;
DROP EXTENSION syncstate;
