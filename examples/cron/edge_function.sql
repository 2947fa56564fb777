-- Calls an edge function, such as ../supabase/functions/sync-worker, every 10 seconds, but only if
-- next_sync_due() of the source that it syncs has passed.
--
--     psql -v url=http://kong:8000/functions/v1/sync-worker -f edge_function.sql
--
-- It takes pg_cron 1.5 or newer (an older one knows minutes only: add -v schedule='* * * * *'),
-- pg_net, and the function's key in Supabase Vault: vault.create_secret('...', 'sync_worker_key').
-- The job runs as who schedules it, who must be a worker (grant_worker); on Supabase, postgres.
-- A call that meets one still at work does no harm: no row is handed out twice.
\if :{?schedule}
\else
    \set schedule '10 seconds'
\endif
SELECT cron.schedule('syncstate-worker', :'schedule', format($job$
    SELECT net.http_post(
        url => %L,
        headers => jsonb_build_object('Content-Type', 'application/json', 'Authorization', 'Bearer ' || (
            SELECT decrypted_secret FROM vault.decrypted_secrets WHERE name = 'sync_worker_key')),
        body => jsonb_build_object('due_since', due),
        timeout_milliseconds => 5000)
    FROM syncstate.next_sync_due('google_calendar') AS due
    WHERE due <= clock_timestamp()
$job$, :'url'));

-- pg_cron keeps a row of each run for ever, 8,640 a day of these. Each role sees its own.
SELECT cron.schedule('syncstate-cron-log', '41 3 * * *', $job$
    DELETE FROM cron.job_run_details WHERE end_time < now() - interval '7 days'
$job$);
