INSERT INTO syncstate.sync_state (user_id, source, sync_token, due_at, last_successful_sync_at)
SELECT user_id, 'google_calendar', cursor, due_at, due_at - interval '1 hour' FROM bench.rows;
