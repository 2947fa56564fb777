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
