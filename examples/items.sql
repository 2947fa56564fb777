-- What examples/worker.py writes: one row per item of a user's calendar, task list, mailbox or
-- address book. Copy it, and give it the columns, indexes and row security of your application.
CREATE TABLE items (
    user_id  uuid NOT NULL,
    source   syncstate.sync_source NOT NULL,
    resource text NOT NULL,             -- as in syncstate.sync_state
    id       text NOT NULL,             -- the provider's
    payload  jsonb NOT NULL,
    seen     bigint,                    -- full_sync_id of the sync that listed it, null if an incremental one wrote it
    is_missing boolean NOT NULL DEFAULT false,  -- a full sync did not list it, and it was kept all the same
    PRIMARY KEY (user_id, source, resource, id)
);

-- The end of a full sync: what it did not list, the provider has no more. But a listing that came
-- back short, and was a success all the same, must not delete everything: if many items would go,
-- they are kept and marked, with a warning. Call confirm_sweep() if they are really gone. They are
-- also deleted by the next full sync that may, and an item that is listed again is missing no more.
CREATE FUNCTION sweep_items(user_id uuid, source syncstate.sync_source, resource text, lease bigint, full_sync bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    total bigint;
    vanished bigint;
BEGIN
    SELECT count(*), count(*) FILTER (WHERE i.seen IS DISTINCT FROM full_sync) INTO total, vanished
    FROM items AS i WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3);

    IF syncstate.may_sweep(user_id, source, lease, vanished, total, resource => resource) THEN
        DELETE FROM items AS i
        WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3) AND i.seen IS DISTINCT FROM full_sync;
    ELSE
        UPDATE items AS i SET is_missing = true
        WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3) AND i.seen IS DISTINCT FROM full_sync;
        RAISE WARNING 'full sync of % did not list % of % items, which are kept', source, vanished, total
            USING HINT = format('If they are gone, SELECT confirm_sweep(%L, %L, %L).', user_id, source, resource);
    END IF;
END
$$;

-- For people: deletes the items that a full sync did not list, and returns how many.
CREATE FUNCTION confirm_sweep(user_id uuid, source syncstate.sync_source, resource text DEFAULT '')
RETURNS bigint LANGUAGE sql AS $$
    WITH gone AS (
        DELETE FROM items AS i
        WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3) AND i.is_missing RETURNING 1)
    SELECT count(*) FROM gone;
$$;

-- For worker.py: a page of a sync, as {"id": item, or null if it was deleted}, and where it ends.
-- All of it is one transaction, so that nothing is written where the lease is lost, also where the
-- call comes from elsewhere: see items_router.sql.
--
--   full_sync   full_sync_id of the row, null in an incremental sync
--   done        how many items the listing has had so far, with these
--   page_token  what leads to the next page; null after the last one, which completes the sync
CREATE FUNCTION save_page(user_id uuid, source syncstate.sync_source, resource text, lease bigint,
    found jsonb, full_sync bigint, done bigint, page_token text DEFAULT NULL,
    sync_token text DEFAULT NULL, history_id text DEFAULT NULL, updated_min timestamptz DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
    -- the lease comes first: it holds the row until the end of the transaction, or ends it here
    SELECT syncstate.checkpoint_sync(user_id, source, lease, page_token, done, resource => resource);

    -- the first page takes off the marks of an earlier try, which could not go on at its page token
    UPDATE items AS i SET seen = NULL
    WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3) AND i.seen = full_sync
        AND done = (SELECT count(*) FROM jsonb_object_keys(found));

    INSERT INTO items (user_id, source, resource, id, payload, seen)
    SELECT $1, $2, $3, f.key, f.value, full_sync FROM jsonb_each(found) AS f WHERE f.value <> 'null'
    ON CONFLICT ON CONSTRAINT items_pkey
    DO UPDATE SET payload = excluded.payload, seen = excluded.seen, is_missing = false;
    DELETE FROM items AS i
    WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3)
        AND i.id = ANY (ARRAY(SELECT f.key FROM jsonb_each(found) AS f WHERE f.value = 'null'));

    SELECT sweep_items(user_id, source, resource, lease, full_sync)
    WHERE page_token IS NULL AND full_sync IS NOT NULL;
    SELECT syncstate.mark_sync_completed(user_id, source, done, sync_token, history_id, updated_min,
        lease, resource)
    WHERE page_token IS NULL;
$$;

-- For the small workers, before they report: what a sync found, as {"id": item, or null if it was
-- deleted}. A full sync found all there is, so what it did not find must go.
CREATE FUNCTION write_items(user_id uuid, source syncstate.sync_source, resource text, lease bigint,
    found jsonb, is_full boolean)
RETURNS void LANGUAGE sql AS $$
    DELETE FROM items AS i
    WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3) AND found -> i.id = 'null';
    INSERT INTO items (user_id, source, resource, id, payload, seen)
    SELECT $1, $2, $3, f.key, f.value, CASE WHEN is_full THEN lease END
    FROM jsonb_each(found) AS f WHERE f.value <> 'null'
    ON CONFLICT ON CONSTRAINT items_pkey
    DO UPDATE SET payload = excluded.payload, seen = excluded.seen, is_missing = false;
    SELECT sweep_items(user_id, source, resource, lease, lease) WHERE is_full;
$$;
