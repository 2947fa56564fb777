-- What an experienced person writes: FOR UPDATE SKIP LOCKED in PL/pgSQL, an
-- index on the due time, a lease with a number that a report must match, and
-- reports of many rows in one call.
CREATE SCHEMA b;
CREATE TABLE b.sync_state (LIKE syncstate.sync_state INCLUDING DEFAULTS);
ALTER TABLE b.sync_state ALTER lease SET DEFAULT 0;

INSERT INTO b.sync_state (user_id, source, sync_token, due_at)
SELECT user_id, 'google_calendar', cursor, due_at FROM bench.rows;

ALTER TABLE b.sync_state ADD PRIMARY KEY (user_id, source, resource);
CREATE INDEX ON b.sync_state (source, due_at);

CREATE FUNCTION b.claim_syncs(p_source syncstate.sync_source, p_limit integer)
RETURNS TABLE (user_id uuid, lease bigint, sync_token text) LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY
	WITH due AS (
		SELECT s.user_id, s.source, s.resource
		FROM b.sync_state AS s
		WHERE s.source = p_source AND s.due_at <= now()
			AND (s.status <> 'syncing' OR s.lease_expires_at <= now())
		ORDER BY s.due_at
		LIMIT p_limit
		FOR UPDATE SKIP LOCKED)
	UPDATE b.sync_state AS s
	SET status = 'syncing', lease = s.lease + 1,
		lease_expires_at = now() + interval '10 min',
		last_sync_at = now(), error_message = NULL, updated_at = now()
	FROM due
	WHERE s.user_id = due.user_id AND s.source = due.source AND s.resource = due.resource
	RETURNING s.user_id, s.lease, s.sync_token;
END
$$;

CREATE FUNCTION b.complete_sync(p_user_id uuid, p_source syncstate.sync_source, p_lease bigint, p_token text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE b.sync_state AS s
	SET status = 'idle', sync_token = p_token, token_issued_at = now(),
		lease_expires_at = NULL, last_successful_sync_at = now(),
		items_synced = 0, failures = 0, error_message = NULL,
		due_at = now() + interval '15 min', updated_at = now()
	WHERE s.user_id = p_user_id AND s.source = p_source AND s.resource = ''
		AND s.lease = p_lease AND s.status = 'syncing';
	IF NOT FOUND THEN
		RAISE 'lease lost';
	END IF;
END
$$;

-- Those that are left out have lost their lease.
CREATE FUNCTION b.complete_syncs(p_user_ids uuid[], p_source syncstate.sync_source, p_leases bigint[], p_tokens text[])
RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY
	UPDATE b.sync_state AS s
	SET status = 'idle', sync_token = r.token, token_issued_at = now(),
		lease_expires_at = NULL, last_successful_sync_at = now(),
		items_synced = 0, failures = 0, error_message = NULL,
		due_at = now() + interval '15 min', updated_at = now()
	FROM unnest(p_user_ids, p_leases, p_tokens) AS r (user_id, lease, token)
	WHERE s.user_id = r.user_id AND s.source = p_source AND s.resource = ''
		AND s.lease = r.lease AND s.status = 'syncing'
	RETURNING s.user_id;
END
$$;
