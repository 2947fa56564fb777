/*
 * Claims of one kind: incremental syncs, or full ones, so that a worker with a
 * minute to live does not get a sync of an hour.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
CREATE SCHEMA regress_kinds;
RESET client_min_messages;
SET search_path = regress_kinds, syncstate, public;
\set VERBOSITY terse

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;
CREATE FUNCTION n(s sync_state) RETURNS integer LANGUAGE sql IMMUTABLE
RETURN right(s.user_id::text, 12)::integer;
SET syncstate.clock = '2030-01-01 00:00:00+00';

/* ------------------------------------------------------- who is of a kind */

-- Gmail, whose cursors live seven days: a row without one, a row for each kind of
-- cursor, one whose cursor has died, and one whose cursor dies this very moment
INSERT INTO sync_state (user_id, source, due_at, sync_token, history_id, updated_min, token_issued_at) VALUES
	(u(1), 'google_gmail', '2029-12-01', NULL, NULL, NULL, NULL),
	(u(2), 'google_gmail', '2029-12-02', 'token', NULL, NULL, '2029-12-31'),
	(u(3), 'google_gmail', '2029-12-03', NULL, '1', NULL, '2029-12-31'),
	(u(4), 'google_gmail', '2029-12-04', NULL, NULL, '2029-12-31', '2029-12-31'),
	(u(5), 'google_gmail', '2029-12-05', NULL, '1', NULL, '2029-12-24 23:59:59.999999+00'),
	(u(6), 'google_gmail', '2029-12-06', NULL, '1', NULL, '2029-12-25 00:00:00+00');
BEGIN;
SELECT n(s), full_sync_id IS NOT NULL AS is_full, history_id FROM claim_due_syncs('google_gmail', kind => 'incremental') AS s;
SELECT n(s), full_sync_id IS NOT NULL AS is_full, history_id FROM claim_due_syncs('google_gmail', kind => 'full') AS s;
SELECT count(*) AS left_over FROM claim_due_syncs();
ROLLBACK;
BEGIN;
SELECT array_agg(n(s)) FROM claim_due_syncs('google_gmail', kind => 'any') AS s;
ROLLBACK;

-- a kind is also one of requested rows, and of rows whose lease ran out; and rows
-- of the other kind count for nothing, neither a start nor a failure
SELECT count(request_sync(u(n), 'google_gmail')) FROM generate_series(1, 6) AS n;
BEGIN;
SELECT array_agg(n(s)) FROM claim_due_syncs('google_gmail', 1, kind => 'full') AS s;
SELECT array_agg(n(s)) FROM claim_due_syncs('google_gmail', 2, kind => 'incremental') AS s;
SELECT set_config('syncstate.clock', '2030-01-01 01:00:00+00', true);
SELECT n(s), failures FROM claim_due_syncs('google_gmail', kind => 'full') AS s;
SELECT n(s), syncs_started FROM sync_state AS s WHERE syncs_started > 0 AND lease_expires_at <= sync_clock();
SELECT n(s), failures FROM claim_due_syncs('google_gmail', kind => 'incremental') AS s;
ROLLBACK;

-- neither kind takes what nobody may have: a live lease, a limit, a parked row
BEGIN;
SELECT count(mark_sync_started(u(n), 'google_gmail')) FROM generate_series(1, 2) AS n;
SELECT count(mark_rate_limited(u(3), 'google_gmail', '1 day')), count(pause_sync(u(5), 'google_gmail'));
SELECT array_agg(n(s)) FROM claim_due_syncs('google_gmail', kind => 'incremental') AS s;
SELECT array_agg(n(s)) FROM claim_due_syncs('google_gmail', kind => 'full') AS s;
ROLLBACK;

-- a row that is parked because its lease ran out once too often is parked by a
-- claim of its own kind
SELECT max_failures FROM set_sync_policy('google_gmail', '{"max_failures": 1, "park_after": "1 second"}');
BEGIN;
SELECT count(mark_sync_started(u(n), 'google_gmail', '1 second')) FROM generate_series(1, 2) AS n;
UPDATE sync_state SET failures = 1, failing_since = '2029-12-01' WHERE user_id <= u(2);
SELECT set_config('syncstate.clock', '2030-01-01 00:00:02+00', true);
SELECT array_agg(n(s)) FROM claim_due_syncs('google_gmail', kind => 'full') AS s;
SELECT n(s), parked_reason FROM sync_state AS s WHERE user_id <= u(2) ORDER BY 1;
ROLLBACK;
SELECT max_failures FROM set_sync_policy('google_gmail', '{"max_failures": null, "park_after": null}');

-- all sources share a claim of one kind, too
INSERT INTO sync_state (user_id, source, due_at, sync_token) VALUES (u(7), 'google_calendar', '2029-12-01', 'token'), (u(8), 'google_tasks', '2029-12-01', NULL);
BEGIN;
SELECT array_agg(n(s) ORDER BY n(s)) FROM claim_due_syncs(kind => 'incremental') AS s;
SELECT array_agg(n(s) ORDER BY n(s)) FROM claim_due_syncs(kind => 'full') AS s;
ROLLBACK;

/* ---------------------------------------------------------------- errors */

SELECT claim_due_syncs(kind => NULL); -- ERROR
SELECT claim_due_syncs(kind => 'Full'); -- ERROR
\set VERBOSITY default
SELECT claim_due_syncs(kind => ''); -- ERROR
\set VERBOSITY terse
\echo :LAST_ERROR_SQLSTATE

/* ------------------------------- a backlog of the one kind is not the other's */

/*
 * What a session remembers of the lanes, by the real clock: each kind by itself.
 * What claims of one kind pass over is not passed over for the other.
 */
RESET syncstate.clock;
DELETE FROM sync_state;
INSERT INTO sync_state (user_id, source, due_at, sync_token)
SELECT u(n), 'google_tasks', now() - interval '1 hour' + n * interval '1 ms', CASE WHEN n % 3 > 0 THEN 'token' END
FROM generate_series(1, 3000) AS n;
CREATE TABLE taken (turn integer, kind text, n integer, is_full boolean);
CREATE PROCEDURE take(kinds text[], turns integer) LANGUAGE plpgsql AS $$
BEGIN
	FOR turn IN 1 .. turns LOOP
		INSERT INTO taken
		SELECT turn, kinds[1 + turn % cardinality(kinds)], n(s), s.full_sync_id IS NOT NULL
		FROM claim_due_syncs('google_tasks', 30, kind => kinds[1 + turn % cardinality(kinds)]) AS s;
	END LOOP;
END
$$;
CALL take('{incremental,full}', 40);
SELECT kind, count(*), count(DISTINCT n) AS different, bool_and(is_full = (kind = 'full')) AS right_ones,
	max(n) < 1900 AS oldest_first
FROM taken GROUP BY kind ORDER BY kind;
-- a claim of any kind takes the others
TRUNCATE taken;
CALL take('{any}', 100);
SELECT kind, count(*), count(DISTINCT n) AS different FROM taken GROUP BY kind;
SELECT count(*) AS left_over FROM claim_due_syncs();

SET client_min_messages = warning;
DELETE FROM sync_state;
DROP SCHEMA regress_kinds CASCADE;
