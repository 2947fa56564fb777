-- What the exporter and the dashboard read, and a role that may read this and nothing else:
--
--     CREATE ROLE monitor LOGIN;
--     psql -v role=monitor -f role.sql
--
-- Run it in each database that has the extension, as who ran CREATE EXTENSION. The counts are of
-- all rows, which only workers see. So the function is SECURITY DEFINER, and gives counts only: no
-- user, cursor or message. It reads the whole table once, as sync_overview does.
BEGIN;
CREATE SCHEMA syncstate_metrics;
CREATE FUNCTION syncstate_metrics.overview(
    OUT source text, OUT rows bigint, OUT active bigint,
    OUT idle bigint, OUT syncing bigint, OUT error bigint, OUT rate_limited bigint,
    OUT due bigint, OUT oldest_due_seconds double precision, OUT requested bigint,
    OUT live_leases bigint, OUT expired_leases bigint, OUT failing bigint,
    OUT parked_paused bigint, OUT parked_auth bigint, OUT parked_failures bigint, OUT parked_token_loop bigint,
    OUT parked_gone bigint, OUT limited bigint,
    OUT without_cursor bigint, OUT is_paused boolean, OUT interval_seconds double precision)
    RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT o.source::text, o.rows,
        o.rows - o.parked_paused - o.parked_auth - o.parked_failures - o.parked_token_loop - o.parked_gone,
        o.idle, o.syncing, o.error, o.rate_limited,
        o.due, coalesce(extract(epoch FROM o.oldest_due_age), 0)::float8, o.requested,
        o.live_leases, o.expired_leases, o.failing,
        o.parked_paused, o.parked_auth, o.parked_failures, o.parked_token_loop,
        o.parked_gone, o.limited,
        o.without_cursor, coalesce(o.paused_until > syncstate.sync_clock(), false),
        extract(epoch FROM p.sync_interval)::float8
    FROM syncstate.sync_overview AS o, syncstate.get_sync_policy(o.source) AS p
    $$;
REVOKE ALL ON FUNCTION syncstate_metrics.overview() FROM PUBLIC;
GRANT USAGE ON SCHEMA syncstate_metrics TO :"role";
GRANT EXECUTE ON FUNCTION syncstate_metrics.overview() TO :"role";
COMMIT;
