/*
 * Fencing numbers: none is ever given again for a key, however its row was
 * deleted, so that a worker that still has a lease of the old row holds nothing
 * of the new one.
 */
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS syncstate; -- other tests count from 0
CREATE EXTENSION syncstate;
CREATE SCHEMA regress_leases;
RESET client_min_messages;
SET search_path = regress_leases, syncstate, public;
\set VERBOSITY terse

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- the clock stands still: numbers do not come from it
SET syncstate.clock = '2030-01-01 00:00:00+00';

/* ------------------------------------------------------- ways to delete */

CREATE TABLE users (id uuid PRIMARY KEY);
SELECT watch_users('users', 'id');

CREATE TABLE given (way text, lease bigint);

-- starts the row some times, deletes it, and makes it anew
CREATE PROCEDURE delete_by(way text, deletion text, starts integer) LANGUAGE plpgsql AS $$
DECLARE
	s syncstate.sync_state;
BEGIN
	FOR round IN 1 .. 2 LOOP
		INSERT INTO users VALUES (u(1)) ON CONFLICT DO NOTHING;
		PERFORM syncstate.connect_sync(u(1), 'google_tasks');
		FOR i IN 1 .. starts LOOP
			SELECT * INTO STRICT s FROM syncstate.mark_sync_started(u(1), 'google_tasks');
			INSERT INTO given VALUES (way, s.lease);
			PERFORM syncstate.release_sync(u(1), 'google_tasks', s.lease);
		END LOOP;
		EXECUTE deletion;
		IF EXISTS (SELECT FROM syncstate.sync_state) THEN
			RAISE '% deleted nothing', way;
		END IF;
	END LOOP;
END
$$;
CALL delete_by('call', $$SELECT disconnect_sync(u(1), 'google_tasks')$$, 3);
CALL delete_by('DELETE', 'DELETE FROM sync_state', 2);
CALL delete_by('TRUNCATE', 'TRUNCATE sync_state', 1);
CALL delete_by('watched user', 'DELETE FROM users', 5);
CALL delete_by('call', $$SELECT disconnect_sync(u(1), 'google_tasks')$$, 1000);
-- all of it in one transaction, too
BEGIN;
CALL delete_by('in one transaction', 'DELETE FROM sync_state', 100);
COMMIT;
SELECT way, count(*), count(DISTINCT lease) AS different FROM given GROUP BY way ORDER BY min(lease);
SELECT bool_and(lease > before) AS always_greater
FROM (SELECT lease, lag(lease, 1, 0) OVER (ORDER BY ctid) AS before FROM given) AS g;

/* --------------------------------- who has a lease of a row that is gone */

SELECT FROM connect_sync(u(2), 'google_tasks');
SELECT lease FROM claim_due_syncs() \gset old_
SELECT disconnect_sync(u(2), 'google_tasks');
SELECT status FROM mark_sync_completed(u(2), 'google_tasks', 1, lease => :old_lease); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT FROM connect_sync(u(2), 'google_tasks');
SELECT lease FROM claim_due_syncs() \gset new_
CREATE FUNCTION state_of(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SELECT FROM syncstate.' || call;
	RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
SELECT call, state_of(format(call, :old_lease)) AS by_the_old_lease
FROM unnest(ARRAY[
	$$renew_sync_lease(u(2), 'google_tasks', %s)$$,
	$$checkpoint_sync(u(2), 'google_tasks', %s, 'page')$$,
	$$mark_sync_completed(u(2), 'google_tasks', 1, lease => %s)$$,
	$$mark_sync_failed(u(2), 'google_tasks', 'error', lease => %s)$$,
	$$mark_rate_limited(u(2), 'google_tasks', lease => %s)$$,
	$$clear_sync_token(u(2), 'google_tasks', lease => %s)$$,
	$$release_sync(u(2), 'google_tasks', %s)$$]) AS call;
SELECT count(*) AS applied FROM report_syncs(jsonb_build_array(jsonb_build_object('user_id', u(2),
	'source', 'google_tasks', 'lease', :old_lease, 'outcome', 'completed')));
SELECT status, lease = :new_lease AS untouched, items_synced FROM sync_state WHERE user_id = u(2);

/* ------------------------------------------------------- what a number is */

-- exact in JSON, and from the time at which the row was made
SELECT lease < 2 ^ 53 AS exact, to_timestamp(lease / 1e6) BETWEEN clock_timestamp() - interval '1 hour' AND clock_timestamp() AS now,
	to_jsonb(s) ->> 'lease' = lease::text AS same_in_json
FROM sync_state AS s WHERE user_id = u(2);

-- the first start of a new row has the next one
SELECT made.lease + 1 = started.lease AS next
FROM connect_sync(u(3), 'google_tasks') AS made, mark_sync_started(u(3), 'google_tasks') AS started;

-- a restored row keeps its number and its count of starts
CREATE TABLE dumped AS SELECT * FROM sync_state;
TRUNCATE sync_state;
INSERT INTO sync_state SELECT * FROM dumped;
SELECT count(*), count(*) FILTER (WHERE s = d) AS same FROM sync_state AS s JOIN dumped AS d USING (user_id, source, resource);
INSERT INTO sync_state (user_id, source, lease) VALUES (u(4), 'google_tasks', 0), (u(5), 'google_tasks', 7);
SELECT lease, syncs_started FROM sync_state WHERE user_id IN (u(4), u(5)) ORDER BY user_id;
SELECT lease, syncs_started FROM mark_sync_started(u(5), 'google_tasks');

-- a client that counts by itself has started as many
UPDATE sync_state SET lease = 10 WHERE user_id = u(5);
UPDATE sync_state SET status = 'idle' WHERE user_id = u(5);
UPDATE sync_state SET status = 'syncing' WHERE user_id = u(5);
SELECT lease, syncs_started FROM sync_state WHERE user_id = u(5);

SET client_min_messages = warning;
DELETE FROM sync_state;
DROP TABLE users;
DROP SCHEMA regress_leases CASCADE;
