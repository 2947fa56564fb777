-- For a router (see doc/sharding.md), where items.sql is on each shard: the items are beside the
-- state of their user, so that a page and its report are one transaction, as in a single database.
-- Whatever of yours goes with a report is such a function: on the shards as in items.sql, here by
-- the same name and arguments. A superuser runs this, on whose behalf workers reach the shards.
BEGIN;
CREATE FUNCTION save_page_on_shard(user_id uuid, source syncstate.sync_source, resource text, lease bigint,
    found jsonb, full_sync bigint, done bigint, page_token text,
    sync_token text, history_id text, updated_min timestamptz, is_list boolean, account text)
RETURNS boolean LANGUAGE plproxy AS $$
    CLUSTER 'syncstate';
    RUN ON syncstate.shard_of(user_id);
    TARGET public.save_page;
$$;

CREATE FUNCTION save_page(user_id uuid, source syncstate.sync_source, resource text, lease bigint,
    found jsonb, full_sync bigint, done bigint, page_token text DEFAULT NULL,
    sync_token text DEFAULT NULL, history_id text DEFAULT NULL, updated_min timestamptz DEFAULT NULL,
    is_list boolean DEFAULT false, account text DEFAULT '')
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET datestyle = ISO AS $$   -- a time goes to the shard as text
DECLARE
    is_due boolean;
BEGIN
    PERFORM syncstate.shard_of(user_id);    -- PL/Proxy must not count the shards before they are locked
    is_due = public.save_page_on_shard($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);
    IF is_due THEN      -- the shard tells those who listen there, and workers listen here
        PERFORM pg_notify('syncstate', source::text);
    END IF;
    RETURN is_due;
EXCEPTION WHEN internal_error           -- what PL/Proxy says of a shard that does not answer
    OR admin_shutdown OR crash_shutdown THEN
    RAISE connection_failure USING
        MESSAGE = format('call on shard %s failed', syncstate.shard_of(user_id)), DETAIL = SQLERRM;
END
$$;

-- Then grant save_page() to your workers.
REVOKE EXECUTE ON FUNCTION save_page, save_page_on_shard FROM PUBLIC;
COMMIT;
