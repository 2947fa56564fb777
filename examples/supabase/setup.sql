-- Makes the extension, the worker's role and its table of items.  Run it as supabase_admin, as often
-- as you like, with the worker's password in SYNC_WORKER_PASSWORD:
--
--   psql -X -1 -v ON_ERROR_STOP=1 -f setup.sql
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER EXTENSION syncstate UPDATE;

\getenv password SYNC_WORKER_PASSWORD
SELECT 'CREATE ROLE sync_worker LOGIN' WHERE to_regrole('sync_worker') IS NULL \gexec
ALTER ROLE sync_worker PASSWORD :'password';
SELECT syncstate.grant_worker(role::regrole) FROM unnest('{postgres,sync_worker}'::text[]) AS role;

-- The items are in a schema of their own, because in "public" Supabase grants all to everybody.
SELECT to_regclass('synced.items') IS NULL AS is_new \gset
\if :is_new
CREATE SCHEMA IF NOT EXISTS synced;
SET search_path = synced;
\ir ../items.sql
GRANT USAGE ON SCHEMA synced TO sync_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON items TO sync_worker;
ALTER ROLE sync_worker SET search_path = synced;
\endif
