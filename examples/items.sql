-- What examples/worker.py writes: one row per item of a user's calendar, task list, mailbox or
-- address book. Copy it, and give it the columns, indexes and row security of your application.
CREATE TABLE items (
    user_id  uuid NOT NULL,
    source   syncstate.sync_source NOT NULL,
    resource text NOT NULL,             -- as in syncstate.sync_state
    id       text NOT NULL,             -- the provider's
    payload  jsonb NOT NULL,
    seen     bigint,                    -- full_sync_id of the sync that listed it, null if an incremental one wrote it
    PRIMARY KEY (user_id, source, resource, id)
);

-- For worker.py: a page of a sync, as {"id": item, or null if it was deleted}, and where it ends.
-- The report is the first statement, so that nothing is written where the lease is lost, and all of
-- it is one transaction, also where the call comes from elsewhere: see items_router.sql.
--
--   full_sync   full_sync_id of the row, null in an incremental sync
--   done        how many items the listing has had so far, with these
--   page_token  what leads to the next page; null after the last one, which completes the sync
CREATE FUNCTION save_page(user_id uuid, source syncstate.sync_source, resource text, lease bigint,
    found jsonb, full_sync bigint, done bigint, page_token text DEFAULT NULL,
    sync_token text DEFAULT NULL, history_id text DEFAULT NULL, updated_min timestamptz DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
    SELECT syncstate.checkpoint_sync(user_id, source, lease, page_token, done, resource => resource)
    WHERE page_token IS NOT NULL;
    SELECT syncstate.mark_sync_completed(user_id, source, done, sync_token, history_id, updated_min,
        lease, resource)
    WHERE page_token IS NULL;

    -- the first page takes off the marks of an earlier try, which could not go on at its page token
    UPDATE items AS i SET seen = NULL
    WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3) AND i.seen = full_sync
        AND done = (SELECT count(*) FROM jsonb_object_keys(found));

    INSERT INTO items (user_id, source, resource, id, payload, seen)
    SELECT $1, $2, $3, f.key, f.value, full_sync FROM jsonb_each(found) AS f WHERE f.value <> 'null'
    ON CONFLICT ON CONSTRAINT items_pkey DO UPDATE SET payload = excluded.payload, seen = excluded.seen;
    DELETE FROM items AS i
    WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3)
        AND i.id = ANY (ARRAY(SELECT f.key FROM jsonb_each(found) AS f WHERE f.value = 'null'));
    -- what a full sync did not list, the provider has no more
    DELETE FROM items AS i
    WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3)
        AND page_token IS NULL AND full_sync IS NOT NULL AND i.seen IS DISTINCT FROM full_sync;
$$;

-- For the small workers: what a sync found, as {"id": item, or null if it was deleted}. A full
-- sync found all there is, so what it did not find must go.
CREATE FUNCTION write_items(user_id uuid, source syncstate.sync_source, resource text, found jsonb, is_full boolean)
RETURNS void LANGUAGE sql AS $$
    DELETE FROM items AS i
    WHERE (i.user_id, i.source, i.resource) = ($1, $2, $3)
        AND CASE WHEN found ? i.id THEN found -> i.id = 'null' ELSE is_full END;
    INSERT INTO items (user_id, source, resource, id, payload)
    SELECT $1, $2, $3, f.key, f.value FROM jsonb_each(found) AS f WHERE f.value <> 'null'
    ON CONFLICT ON CONSTRAINT items_pkey DO UPDATE SET payload = excluded.payload, seen = NULL;
$$;
