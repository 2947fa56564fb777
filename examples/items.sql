-- What the example workers write: one row per item of a calendar, task list, mailbox or address
-- book; and where resource is '', one per calendar or task list of an account. Copy it, and give
-- it the columns, indexes and row security of your application.
CREATE TABLE items (
    user_id  uuid NOT NULL,
    account  text NOT NULL DEFAULT '',  -- as in syncstate.sync_state
    source   syncstate.sync_source NOT NULL,
    resource text NOT NULL,             -- as in syncstate.sync_state
    id       text NOT NULL,             -- the provider's
    payload  jsonb NOT NULL,
    seen     bigint,                    -- full_sync_id of the sync that listed it, null if an incremental one wrote it
    is_missing boolean NOT NULL DEFAULT false,  -- a full sync did not list it, and it was kept all the same
    PRIMARY KEY (user_id, account, source, resource, id)
);

-- The end of a full sync: what it did not list, the provider has no more. But a listing that came
-- back short, and was a success all the same, must not delete everything: if many items would go,
-- they are kept and marked, with a warning, once. Call confirm_sweep() if they are really gone; an
-- item that is listed again is missing no more.
CREATE FUNCTION sweep_items(user_id uuid, source syncstate.sync_source, resource text, lease bigint, full_sync bigint,
    account text DEFAULT '')
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    total bigint;
    vanished bigint;
BEGIN
    SELECT count(*), count(*) FILTER (WHERE i.seen IS DISTINCT FROM full_sync) INTO total, vanished
    FROM items AS i WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $6, $2, $3) AND NOT i.is_missing;

    IF syncstate.may_sweep(user_id, source, lease, vanished, total, resource => resource, account => account) THEN
        DELETE FROM items AS i
        WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $6, $2, $3) AND NOT i.is_missing
            AND i.seen IS DISTINCT FROM full_sync;
    ELSE
        UPDATE items AS i SET is_missing = true
        WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $6, $2, $3) AND NOT i.is_missing
            AND i.seen IS DISTINCT FROM full_sync;
        RAISE WARNING 'full sync of % did not list % of % items, which are kept', source, vanished, total
            USING HINT = format('If they are gone, SELECT confirm_sweep(%L, %L, %L%s).', user_id, source, resource,
                ', ' || quote_literal(nullif(account, '')));
    END IF;
END
$$;

-- The end of a sync of an account's list of calendars or task lists: each one that is listed has a
-- row, and no other one is synced. An incremental listing has the changes only, so it is the items
-- that tell. Those of a calendar that is gone stay: when it comes back, its cursor is still good.
-- Returns whether there are new rows, or some came back: these are due.
CREATE FUNCTION follow_list(user_id uuid, source syncstate.sync_source, account text)
RETURNS boolean LANGUAGE sql AS $$
    SELECT coalesce(bool_or(s.change IN ('added', 'returned')), false)
    FROM syncstate.set_sync_resources(user_id, source, ARRAY(
        SELECT i.id FROM items AS i WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $3, $2, '')), account) AS s;
$$;

-- For people: deletes the items that a full sync did not list, and returns how many.
CREATE FUNCTION confirm_sweep(user_id uuid, source syncstate.sync_source, resource text DEFAULT '', account text DEFAULT '')
RETURNS bigint LANGUAGE sql AS $$
    WITH gone AS (
        DELETE FROM items AS i
        WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $4, $2, $3) AND i.is_missing RETURNING 1)
    SELECT count(*) FROM gone;
$$;

-- For the workers that write page by page: a page of a sync, as {"id": item, or null if it was
-- deleted}, and where it ends. All of it is one transaction, so that nothing is written where the
-- lease is lost, also where the call comes from elsewhere: see items_router.sql.
--
--   full_sync   full_sync_id of the row, null in an incremental sync
--   done        how many items the listing has had so far, with these
--   page_token  what leads to the next page; null after the last one, which completes the sync
--   is_list     whether the items are calendars or task lists, which have rows of their own
--
-- Returns what follow_list() does.
CREATE FUNCTION save_page(user_id uuid, source syncstate.sync_source, resource text, lease bigint,
    found jsonb, full_sync bigint, done bigint, page_token text DEFAULT NULL,
    sync_token text DEFAULT NULL, history_id text DEFAULT NULL, updated_min timestamptz DEFAULT NULL,
    is_list boolean DEFAULT false, account text DEFAULT '')
RETURNS boolean LANGUAGE sql AS $$
    -- the lease comes first: it holds the row until the end of the transaction, or ends it here
    SELECT syncstate.checkpoint_sync(user_id, source, lease, page_token, done,
        resource => resource, account => account);

    -- the first page takes off the marks of an earlier try, which could not go on at its page token
    UPDATE items AS i SET seen = NULL
    WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $13, $2, $3) AND i.seen = full_sync
        AND done = (SELECT count(*) FROM jsonb_object_keys(found));

    INSERT INTO items (user_id, account, source, resource, id, payload, seen)
    SELECT $1, $13, $2, $3, f.key, f.value, full_sync FROM jsonb_each(found) AS f WHERE f.value <> 'null'
    ON CONFLICT ON CONSTRAINT items_pkey
    DO UPDATE SET payload = excluded.payload, seen = excluded.seen, is_missing = false;
    DELETE FROM items AS i
    WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $13, $2, $3)
        AND i.id = ANY (ARRAY(SELECT f.key FROM jsonb_each(found) AS f WHERE f.value = 'null'));
    -- what was taken out of a series of events is kept as long as the series
    DELETE FROM items AS i USING jsonb_each(found) AS f
    WHERE source = 'google_calendar' AND f.value = 'null'
        AND (i.user_id, i.account, i.source, i.resource, i.payload ->> 'recurringEventId') = ($1, $13, $2, $3, f.key);

    SELECT sweep_items(user_id, source, resource, lease, full_sync, account)
    WHERE page_token IS NULL AND full_sync IS NOT NULL;
    SELECT syncstate.mark_sync_completed(user_id, source, done, sync_token, history_id, updated_min,
        lease, resource, account)
    WHERE page_token IS NULL;
    SELECT CASE WHEN page_token IS NULL AND is_list THEN follow_list(user_id, source, account) ELSE false END;
$$;

-- For the small workers, before they report: what a sync found, as {"id": item, or null if it was
-- deleted}. A full sync found all there is, so what it did not find must go.
CREATE FUNCTION write_items(user_id uuid, source syncstate.sync_source, resource text, lease bigint,
    found jsonb, is_full boolean, is_list boolean DEFAULT false, account text DEFAULT '')
RETURNS void LANGUAGE sql AS $$
    INSERT INTO items (user_id, account, source, resource, id, payload, seen)
    SELECT $1, $8, $2, $3, f.key, f.value, CASE WHEN is_full THEN lease END
    FROM jsonb_each(found) AS f WHERE f.value <> 'null'
    ON CONFLICT ON CONSTRAINT items_pkey
    DO UPDATE SET payload = excluded.payload, seen = excluded.seen, is_missing = false;
    DELETE FROM items AS i
    WHERE (i.user_id, i.account, i.source, i.resource) = ($1, $8, $2, $3)
        AND (found -> i.id = 'null' OR source = 'google_calendar' AND found -> (i.payload ->> 'recurringEventId') = 'null');
    SELECT sweep_items(user_id, source, resource, lease, lease, account) WHERE is_full;
    SELECT follow_list(user_id, source, account) WHERE is_list;
$$;
