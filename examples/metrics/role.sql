-- What the exporter and the dashboard read, and a role that may read this and nothing else:
--
--     CREATE ROLE monitor LOGIN;
--     psql -v role=monitor -f role.sql
--
-- Run it in each database that has the extension, as who ran CREATE EXTENSION. The counts are of
-- all rows, which only workers see. So the functions are SECURITY DEFINER, and give counts and times
-- only: no user, cursor or message.
--
-- Where a source keeps all runs, run it as a superuser, or as a role with BYPASSRLS that was given
-- to grant_worker(). To any other owner of runs(), row security denies the index by source and time
-- (comparing two sources is not leakproof), and each call reads all runs that are kept.
BEGIN;
CREATE SCHEMA syncstate_metrics;

-- It reads the whole table once, as sync_overview does, and twice that of push channels. A channel is
-- overdue after half of the time from when it should have been renewed, at the latest, to its end.
CREATE FUNCTION syncstate_metrics.overview(
    OUT source text, OUT rows bigint, OUT active bigint,
    OUT idle bigint, OUT syncing bigint, OUT error bigint, OUT rate_limited bigint,
    OUT due bigint, OUT oldest_due_seconds double precision, OUT requested bigint,
    OUT live_leases bigint, OUT expired_leases bigint, OUT failing bigint,
    OUT parked_paused bigint, OUT parked_auth bigint, OUT parked_failures bigint, OUT parked_token_loop bigint,
    OUT parked_gone bigint, OUT limited bigint,
    OUT without_cursor bigint, OUT is_paused boolean, OUT interval_seconds double precision,
    OUT channels_opening bigint, OUT channels_active bigint, OUT channels_retiring bigint,
    OUT channels_unsupported bigint, OUT channels_ending bigint, OUT channels_silent bigint,
    OUT channels_overdue bigint)
    RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    WITH policy AS MATERIALIZED (
        SELECT p.* FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s (source), syncstate.get_sync_policy(s.source) AS p),
    overdue AS (
        SELECT h.source, count(*) AS channels
        FROM syncstate.sync_channel AS h JOIN policy AS p ON p.source = h.source
        WHERE h.state = 'active' AND p.push_renew_before IS NOT NULL
            AND h.renew_at IS NOT NULL      -- else its row is parked
            AND h.expires_at - least(p.push_renew_before, h.expires_at - h.opened_at) / 4 <= syncstate.sync_clock()
        GROUP BY h.source)
    SELECT o.source::text, o.rows,
        o.rows - o.parked_paused - o.parked_auth - o.parked_failures - o.parked_token_loop - o.parked_gone,
        o.idle, o.syncing, o.error, o.rate_limited,
        o.due, coalesce(extract(epoch FROM o.oldest_due_age), 0)::float8, o.requested,
        o.live_leases, o.expired_leases, o.failing,
        o.parked_paused, o.parked_auth, o.parked_failures, o.parked_token_loop,
        o.parked_gone, o.limited,
        o.without_cursor, coalesce(o.paused_until > syncstate.sync_clock(), false),
        extract(epoch FROM p.sync_interval)::float8,
        o.channels_opening, o.channels_active, o.channels_retiring,
        o.channels_unsupported, o.channels_ending, o.channels_silent, coalesce(h.channels, 0)
    FROM syncstate.sync_overview AS o JOIN policy AS p ON p.source = o.source
        LEFT JOIN overdue AS h ON h.source = o.source
    $$;

-- Runs that ended in the last hour, by each outcome that the source keeps; what it does not keep is
-- no row, rather than zero, and durations of no runs are null. A lost run ends with its lease, but is
-- found by the next claim of its row, which may have to wait for retry_cap: hence a whole hour.
CREATE FUNCTION syncstate_metrics.runs(
    OUT source text, OUT outcome text, OUT ended bigint,
    OUT p50_seconds double precision, OUT p95_seconds double precision, OUT max_seconds double precision)
    RETURNS SETOF record
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    WITH counted AS (
        SELECT r.source, r.outcome, count(*) AS ended,
            percentile_disc(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY r.ended_at - r.started_at) AS took
        FROM syncstate.sync_run AS r
        WHERE r.source = ANY (enum_range(NULL::syncstate.sync_source))   -- it leads the index
            AND r.ended_at > now() - interval '1 hour'      -- sync_clock() is volatile: no index
        GROUP BY r.source, r.outcome)
    SELECT p.source::text, o.outcome, coalesce(c.ended, 0),
        extract(epoch FROM c.took[1])::float8, extract(epoch FROM c.took[2])::float8,
        extract(epoch FROM c.took[3])::float8
    FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s (source)
        CROSS JOIN LATERAL syncstate.get_sync_policy(s.source) AS p
        JOIN (VALUES ('completed', 'all'), ('failed', 'failures'), ('rate_limited', 'failures'),
            ('released', 'all'), ('lost', 'failures'), ('revoked', 'failures')) AS o (outcome, kept_by)
            ON p.keep_runs = 'all' OR p.keep_runs = o.kept_by
        LEFT JOIN counted AS c ON c.source = p.source AND c.outcome = o.outcome
    $$;

-- Events that nobody has taken, counted up to 100,000, and the age of the oldest.
CREATE FUNCTION syncstate_metrics.events(OUT waiting bigint, OUT oldest_seconds double precision)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT (SELECT count(*) FROM (SELECT FROM syncstate.sync_event LIMIT 100000) AS counted),
        coalesce(extract(epoch FROM syncstate.sync_clock()
            - (SELECT e.at FROM syncstate.sync_event AS e ORDER BY e.at LIMIT 1)), 0)::float8
    $$;

REVOKE ALL ON FUNCTION syncstate_metrics.overview(), syncstate_metrics.runs(), syncstate_metrics.events() FROM PUBLIC;
GRANT USAGE ON SCHEMA syncstate_metrics TO :"role";
GRANT EXECUTE ON FUNCTION syncstate_metrics.overview(), syncstate_metrics.runs(), syncstate_metrics.events() TO :"role";
COMMIT;
