-- The seed of the idea, as people write it: a status, the time of the last
-- sync, an upsert; the usual indexes, and the usual trigger.
CREATE SCHEMA a;
CREATE TABLE a.sync_state (
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	user_id uuid NOT NULL,
	source text NOT NULL CHECK (source IN ('google_calendar', 'google_tasks', 'google_gmail', 'google_contacts')),
	status text NOT NULL DEFAULT 'idle' CHECK (status IN ('idle', 'syncing', 'error', 'rate_limited')),
	sync_token text,
	last_sync_at timestamptz,
	last_successful_sync_at timestamptz,
	sync_count bigint NOT NULL DEFAULT 0,
	error_message text,
	created_at timestamptz NOT NULL DEFAULT now(),
	updated_at timestamptz NOT NULL DEFAULT now(),
	UNIQUE (user_id, source)
);

INSERT INTO a.sync_state (user_id, source, sync_token, last_sync_at)
SELECT user_id, 'google_calendar', cursor, due_at - interval '1 day' FROM bench.rows;

CREATE INDEX ON a.sync_state (user_id);
CREATE INDEX ON a.sync_state (status, last_sync_at);

CREATE FUNCTION a.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.updated_at := now();
	RETURN NEW;
END
$$;
CREATE TRIGGER touch BEFORE UPDATE ON a.sync_state FOR EACH ROW EXECUTE FUNCTION a.touch();
