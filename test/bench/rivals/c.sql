-- The best plain SQL: statements only, which the client keeps prepared (see
-- "c" in the runner).  The table is half filled, and a claim changes no indexed
-- column, so that claims are HOT.
CREATE SCHEMA c;
CREATE TABLE c.sync_state (LIKE syncstate.sync_state INCLUDING DEFAULTS) WITH (fillfactor = 50);
ALTER TABLE c.sync_state ALTER lease SET DEFAULT 0;

INSERT INTO c.sync_state (user_id, source, sync_token, due_at)
SELECT user_id, 'google_calendar', cursor, due_at FROM bench.rows;

ALTER TABLE c.sync_state ADD PRIMARY KEY (user_id, source, resource);
CREATE INDEX ON c.sync_state (source, due_at);
