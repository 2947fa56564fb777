-- What examples/worker.py writes: one row per item of a user's calendar, task list, mailbox or
-- address book. Copy it, and give it the columns, indexes and row security of your application.
CREATE TABLE items (
    user_id  uuid NOT NULL,
    source   syncstate.sync_source NOT NULL,
    resource text NOT NULL,             -- as in syncstate.sync_state
    id       text NOT NULL,             -- the provider's
    payload  jsonb NOT NULL,
    seen     text,                      -- the full sync that listed it, null if an incremental one wrote it
    PRIMARY KEY (user_id, source, resource, id)
);

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
