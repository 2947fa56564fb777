INSERT INTO syncstate.sync_state (user_id, source, sync_token, due_at)
SELECT user_id, 'google_calendar', cursor, due_at FROM bench.rows;
