-- The floor: a table with our columns, our indexes and our fillfactor, and
-- nothing that could cost: no trigger, no check, no search for due rows.
CREATE SCHEMA f;
CREATE TABLE f.sync_state (LIKE syncstate.sync_state INCLUDING DEFAULTS INCLUDING INDEXES) WITH (fillfactor = 50);
ALTER TABLE f.sync_state ALTER lease SET DEFAULT 0;

INSERT INTO f.sync_state (user_id, source, sync_token, due_at)
SELECT user_id, 'google_calendar', cursor, due_at FROM bench.rows;
