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

SELECT to_regclass('public.items') IS NULL AS is_new \gset
\if :is_new
SET search_path = public;
SET ROLE postgres;
\ir ../items.sql
\ir items.sql
GRANT SELECT, INSERT, UPDATE, DELETE ON items TO sync_worker;
CREATE POLICY items_of_all ON items TO sync_worker USING (true) WITH CHECK (true);
\endif
