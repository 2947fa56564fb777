-- What is worth a job of pg_cron, in the database cron.database_name: psql -f housekeeping.sql
-- The owner of the database may run it. Scheduling a name again replaces the job.

-- Autovacuum comes when enough rows are dead, which is when the fleet is busy. This one comes
-- before the day begins.
SELECT cron.schedule('syncstate-vacuum', '11 4 * * *', 'VACUUM (ANALYZE) syncstate.sync_state');

-- Sources with a daily budget divide it among their rows, by how often each one changes.
SELECT cron.schedule('syncstate-rebalance', '7 * * * *', 'SELECT syncstate.rebalance_syncs()')
WHERE to_regproc('syncstate.rebalance_syncs') IS NOT NULL;
