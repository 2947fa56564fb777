--
-- max_in_flight: how many syncs of a user, account and source may run at a time
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
RESET client_min_messages;
CREATE SCHEMA regress_syncstate_caps;
SET search_path = regress_syncstate_caps, syncstate, public;
TRUNCATE sync_state, sync_policy;
ALTER TABLE sync_state ALTER COLUMN lease SET DEFAULT 0;

CREATE FUNCTION u(i integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid;
CREATE FUNCTION t(since interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN timestamptz '2030-01-01 00:00:00+00' + since;
CREATE FUNCTION clock(since interval) RETURNS void LANGUAGE sql
BEGIN ATOMIC
	SELECT set_config('syncstate.clock', t(since)::text, false) WHERE true;
END;

-- Domains of ten, of two and of one, due one after the other.
CREATE FUNCTION set_up() RETURNS void LANGUAGE sql
BEGIN ATOMIC
	DELETE FROM sync_state;
	SELECT clock('0');
	INSERT INTO sync_state (user_id, account, source, resource, due_at)
	SELECT u(user_no), a, s, chr(96 + r), t('-1 hour') + user_no * interval '1 minute' + r * interval '1 second'
	FROM (VALUES (1, 'home', 'google_calendar'::sync_source, 10), (1, 'work', 'google_calendar', 2), (1, 'home', 'google_tasks', 2),
		(2, 'home', 'google_calendar', 1)) AS v (user_no, a, s, n), generate_series(1, n) AS r;
END;

-- What runs, by domain.
CREATE VIEW running AS
SELECT user_id, account, source, count(*) FROM sync_state WHERE lease_expires_at > sync_clock() GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- nothing is held back where no source says so
SELECT set_up();
SELECT count(*) FROM claim_due_syncs(NULL, 100);

-- three of a domain, the oldest first, and of its own source alone
SELECT set_up();
SELECT max_in_flight FROM set_sync_policy('google_calendar', '{"max_in_flight": 3}');
SELECT account, resource FROM claim_due_syncs('google_calendar', 100);
SELECT resource FROM claim_due_syncs('google_tasks', 100);
SELECT * FROM running;
-- the domain is full: for claims of one, of all sources, for requests too
SELECT request_sync(u(1), 'google_calendar', 'j', 'home');
SELECT count(*) FROM claim_due_syncs('google_calendar', 1);
SELECT count(*) FROM claim_due_syncs(NULL, 100);
-- and who asks is told so
SELECT * FROM get_users_needing_sync('google_calendar');
SELECT next_sync_due('google_calendar') - sync_clock() AS soon;
-- each end makes room for one; the request goes first
SELECT status FROM mark_sync_completed(u(1), 'google_calendar', lease => 1, resource => 'b', account => 'home');
SELECT next_sync_due('google_calendar') - sync_clock() AS now;
SELECT * FROM get_users_needing_sync('google_calendar');
SELECT resource FROM claim_due_syncs('google_calendar', 100);
SELECT status FROM mark_sync_failed(u(1), 'google_calendar', 'no', lease => 1, resource => 'a', account => 'home');
SELECT resource FROM claim_due_syncs('google_calendar', 100);
SELECT disconnect_sync(u(1), 'google_calendar', 'c', 'home');
SELECT resource FROM claim_due_syncs('google_calendar', 100);
SELECT * FROM running;
-- so does the end of a lease, which is handed out again under the cap
SELECT clock('10 minutes');
SELECT resource FROM claim_due_syncs('google_calendar', 100);
SELECT * FROM running;
-- a start by name is never refused, and counts
SELECT set_up();
SELECT s.status FROM unnest('{g,h,i,j}'::text[]) AS r, mark_sync_started(u(1), 'google_calendar', resource => r, account => 'home') AS s;
SELECT account, resource FROM claim_due_syncs('google_calendar', 100);
-- runs of this transaction count, by whatever they were started
SELECT set_up();
BEGIN;
SELECT resource FROM claim_due_syncs('google_calendar', 2) WHERE account = 'home';
SELECT resource FROM claim_due_syncs('google_calendar', 2) WHERE account = 'home';
SELECT count(*) FROM claim_due_syncs('google_calendar', 1) WHERE account = 'home';
SELECT * FROM running;
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM claim_due_syncs('google_calendar', 2);
SELECT count(*) FROM claim_due_syncs('google_calendar', 100) WHERE account = 'home';
SELECT * FROM running;
COMMIT;
-- a cap that is lowered lets what runs finish
SELECT max_in_flight FROM set_sync_policy('google_calendar', '{"max_in_flight": 1}');
SELECT count(*) FROM claim_due_syncs('google_calendar', 100);
SELECT status FROM mark_sync_completed(u(1), 'google_calendar', lease => 1, resource => 'a', account => 'home');
SELECT count(*) FROM claim_due_syncs('google_calendar', 100);
-- a row whose lease ran out once too often is parked, and takes no room
SELECT set_up();
SELECT max_failures FROM set_sync_policy('google_calendar', '{"max_failures": 1, "park_after": "1 s"}');
UPDATE sync_state SET status = 'syncing', failures = 5, failing_since = t('-1 day'), lease_expires_at = t('-1 s') WHERE resource = 'a' AND account = 'home';
SELECT resource FROM claim_due_syncs('google_calendar', 100) WHERE user_id = u(1) AND account = 'home';
SELECT resource, parked_reason FROM sync_state WHERE parked_reason IS NOT NULL;
-- off again
SELECT max_in_flight FROM set_sync_policy('google_calendar', '{"max_in_flight": null}');
SELECT count(*) FROM claim_due_syncs('google_calendar', 100);
SELECT set_sync_policy('google_calendar', '{"max_in_flight": 0}'); -- ERROR
UPDATE sync_policy SET max_in_flight = 0; -- ERROR

-- Random numbers of domains, caps, batches and ends: never more than the cap,
-- and where nothing more is handed out, each domain is full or has nothing due.
CREATE PROCEDURE walk(seeds integer) LANGUAGE plpgsql AS $$
DECLARE
	cap integer;
	claimed integer;
	total integer := 0;
BEGIN
	FOR seed IN 1 .. seeds LOOP
		PERFORM setseed(seed / 1000.0);
		DELETE FROM sync_state;
		DELETE FROM sync_policy;
		PERFORM clock('0');
		cap := 1 + floor(5 * random());
		PERFORM set_sync_policy('google_gmail', jsonb_build_object('max_in_flight', cap, 'jitter', 0));
		INSERT INTO sync_state (user_id, account, source, resource, due_at, requested_at)
		SELECT u(1 + floor(4 * random())::integer), chr(97 + floor(2 * random())::integer), 'google_gmail', i::text,
			t(interval '-1 hour' * random()), CASE WHEN random() < 0.3 THEN t(interval '-1 hour' * random()) END
		FROM generate_series(1, 60) AS i;
		FOR i IN 1 .. 20 LOOP
			PERFORM clock(i * interval '1 minute');
			SELECT count(*) INTO claimed FROM claim_due_syncs('google_gmail', 1 + floor(random() ^ 2 * 40)::integer, '3 minutes');
			total := total + claimed;
			PERFORM mark_sync_completed(user_id, source, lease => lease, resource => resource, account => account)
				FROM sync_state WHERE status = 'syncing' AND random() < 0.3;
			ASSERT (SELECT coalesce(max(count), 0) <= cap FROM running), format('seed %s, step %s: more than %s', seed, i, cap);
			IF random() < 0.2 THEN
				SELECT count(*) INTO claimed FROM claim_due_syncs('google_gmail', 1000, '3 minutes');
				total := total + claimed;
				ASSERT (SELECT coalesce(max(count), 0) <= cap FROM running), format('seed %s, step %s: more than %s', seed, i, cap);
				ASSERT NOT EXISTS (SELECT FROM sync_state AS s WHERE due_from(s) <= sync_clock() AND cap >
					(SELECT count(*) FROM sync_state AS r WHERE (r.user_id, r.account) = (s.user_id, s.account) AND r.lease_expires_at > sync_clock())),
					format('seed %s, step %s: held back for nothing', seed, i);
				ASSERT NOT EXISTS (SELECT FROM get_users_needing_sync('google_gmail')), 'told of users who are held back';
			END IF;
		END LOOP;
	END LOOP;
	RAISE NOTICE 'some were claimed: %', total BETWEEN 50 * seeds AND 300 * seeds;
END
$$;
CALL walk(10);

-- ---------------------------------------------------------------------
-- Clean up
-- ---------------------------------------------------------------------
DELETE FROM sync_state;
DELETE FROM sync_policy;
ALTER TABLE sync_state ALTER COLUMN lease SET DEFAULT (date_part('epoch', clock_timestamp()) * 1000000)::bigint;
RESET syncstate.clock;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_caps CASCADE;
