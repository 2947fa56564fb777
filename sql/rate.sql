/*
 * rate_per_minute: how many syncs of a source may start, by the clock.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
RESET client_min_messages;
CREATE SCHEMA regress_rate;
SET search_path = regress_rate, syncstate, public;
SET TimeZone = 'UTC';
TRUNCATE sync_state;
DELETE FROM sync_policy;

CREATE FUNCTION u(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
	RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- moves the clock to so many seconds after 2026-01-01
CREATE FUNCTION at(seconds numeric) RETURNS void LANGUAGE sql AS
	$$SELECT set_config('syncstate.clock', ('2026-01-01 00:00+00'::timestamptz + seconds * interval '1 s')::text, false)$$;

-- claims at a time, and forgets; how many there were
CREATE FUNCTION claimed(seconds numeric, wanted int DEFAULT 1000, source sync_source DEFAULT 'google_tasks') RETURNS bigint
	LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	PERFORM at(seconds);
	SELECT count(*) INTO n FROM claim_due_syncs(source, wanted);
	RETURN n;
END
$$;

INSERT INTO sync_state (user_id, source, due_at)
SELECT u(n), s, '2025-01-01' FROM generate_series(1, 3000) AS n, unnest(ARRAY['google_tasks', 'google_gmail']::sync_source[]) AS s;

------------------------------------------------------------------------
-- The burst of an idle source, and the pace after it
------------------------------------------------------------------------
-- off: everything at once
SELECT claimed(0, 100);
-- 60 a minute: 3 at once, then one each second, however long nobody came
SELECT rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": 60}');
SELECT claimed(3600), claimed(3600) AS again;
SELECT next_sync_due('google_tasks') AS opens, next_sync_due() AS others_are_due;
SELECT claimed(3600.999999) AS not_yet, claimed(3601) AS now, claimed(3601.5) AS not_yet, claimed(3602) AS now;
SELECT claimed(7200) AS after_an_hour, claimed(7203) AS after_three_seconds, claimed(7204) AS after_one;
-- what is not wanted stays
SELECT claimed(10000, 1), claimed(10000, 1), claimed(10000, 1), claimed(10000, 1);
-- slow: 5 % of 7 is less than one
SELECT rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": 7}');
SELECT claimed(20000), claimed(20008.57), claimed(20008.571429), claimed(20008.571429), claimed(99999);
SELECT rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": 1}');
SELECT claimed(200000), claimed(200059.999), claimed(200060), claimed(200119.999), claimed(200120);
-- fast: as much as there is
SELECT rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": 6000}');
SELECT claimed(300000), claimed(300000.01), claimed(300000.02), claimed(300001);

------------------------------------------------------------------------
-- What counts, and what is given back
------------------------------------------------------------------------
SELECT rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": 60}');
-- a claim that found less than it might take gives the rest back
DELETE FROM sync_state WHERE source = 'google_tasks' AND user_id <> ALL (ARRAY[u(1), u(2), u(3), u(4)]);
UPDATE sync_state SET due_at = CASE user_id WHEN u(1) THEN '2025-01-01' ELSE '2030-01-01' END::timestamptz, status = 'idle' WHERE source = 'google_tasks';
SELECT claimed(400000, 3);
UPDATE sync_state SET due_at = '2025-01-01', status = 'idle' WHERE source = 'google_tasks';
SELECT claimed(400000, 10);
-- requested rows count as well
SELECT at(500000);
UPDATE sync_state SET due_at = '2030-01-01', status = 'idle' WHERE source = 'google_tasks';
SELECT count(request_sync(u(n), 'google_tasks')) FROM generate_series(1, 4) AS n;
SELECT claimed(500000), next_sync_due('google_tasks'), claimed(500001);
-- a claim of nothing draws nothing, and a claim that is rolled back has drawn
UPDATE sync_state SET due_at = '2030-01-01', status = 'idle' WHERE source = 'google_tasks';
SELECT last_value AS before FROM rate_google_tasks \gset
SELECT claimed(500100);
SELECT last_value = :before AS untouched FROM rate_google_tasks;
UPDATE sync_state SET due_at = '2025-01-01', status = 'idle' WHERE source = 'google_tasks';
BEGIN;
SELECT claimed(600000);
ROLLBACK;
SELECT claimed(600000);
-- mark_sync_started() counts, and is never refused; its debt is a minute at most
UPDATE sync_state SET due_at = '2025-01-01', status = 'idle' WHERE source = 'google_tasks';
SELECT at(700000);
SELECT count(mark_sync_started(u(n), 'google_tasks')) FROM generate_series(101, 105) AS n;
SELECT claimed(700002) AS in_debt, claimed(700003) AS paid;
SELECT at(800000);
SELECT count(mark_sync_started(u(n), 'google_tasks')) FROM generate_series(201, 400) AS n;
SELECT next_sync_due('google_tasks');
SELECT claimed(800060.999), claimed(800061);

-- a clock that was set back does not close a source
SELECT claimed(1000), next_sync_due('google_tasks'), claimed(1001), claimed(1002);

------------------------------------------------------------------------
-- No other source is concerned
------------------------------------------------------------------------
SELECT claimed(900000, 500, 'google_gmail') AS other;
SELECT claimed(900000, 100, NULL) AS both;
SELECT source, count(*) FROM sync_state WHERE last_sync_at = sync_clock() GROUP BY source ORDER BY source;
SELECT last_value, is_called FROM rate_google_gmail;
SELECT rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": null}');
SELECT claimed(900000) AS off_again;

------------------------------------------------------------------------
-- In any minute, at most 1.1 times the rate starts, whoever claims how
------------------------------------------------------------------------
/*
 * Ten minutes of claims at random times, of random sizes, of one source or of
 * all; what was claimed is due again at once.  Times of starts are kept.
 */
CREATE TABLE starts (source sync_source, at timestamptz);
CREATE PROCEDURE history(seed float8) LANGUAGE plpgsql AS $$
DECLARE
	now numeric = 2000000 + 10000 * seed;
BEGIN
	PERFORM setseed(seed);
	WHILE now < 2000000 + 10000 * seed + 600 LOOP
		-- mostly in haste, sometimes after a pause
		now := now + CASE WHEN random() < 0.02 THEN 100 * random() ELSE 2 * random() END;
		PERFORM at(now);
		INSERT INTO starts SELECT c.source, c.last_sync_at
			FROM claim_due_syncs(CASE WHEN random() < 0.5 THEN NULL ELSE (ARRAY['google_tasks', 'google_gmail'])[1 + floor(2 * random())::int]::sync_source END,
								 1 + floor(random() ^ 4 * 200)::int) AS c;
		UPDATE sync_state SET status = 'idle', due_at = '2025-01-01' WHERE status = 'syncing';
		COMMIT;
	END LOOP;
END
$$;
DELETE FROM sync_state WHERE user_id > u(300);
INSERT INTO sync_state (user_id, source, due_at) SELECT u(n), 'google_tasks', '2025-01-01' FROM generate_series(1, 300) AS n ON CONFLICT DO NOTHING;
UPDATE sync_state SET status = 'idle', due_at = '2025-01-01';
SELECT source, rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": 37}');
SELECT source, rate_per_minute FROM set_sync_policy('google_gmail', '{"rate_per_minute": 200}');
CALL history(0.1);
CALL history(0.2);
CALL history(0.3);
-- the fullest minute that begins with a start
SELECT s.source, p.rate_per_minute, max(s.starts) <= 1.1 * p.rate_per_minute AS never_more, max(s.starts) > 0.9 * p.rate_per_minute AS and_not_much_less,
	max(s.at_once) <= greatest(1, 0.05 * p.rate_per_minute) AS smooth
FROM (SELECT source, count(*) OVER w AS starts, count(*) OVER (PARTITION BY source, at) AS at_once
	  FROM starts WINDOW w AS (PARTITION BY source ORDER BY at RANGE BETWEEN CURRENT ROW AND '59.999999 seconds' FOLLOWING)) AS s,
	get_sync_policy(s.source) AS p
GROUP BY s.source, p.rate_per_minute ORDER BY s.source;

------------------------------------------------------------------------
-- The cell
------------------------------------------------------------------------
-- nobody has a privilege on it, nor needs one
SELECT count(*) AS sequences, bool_and(relacl IS NULL) AS private FROM pg_class WHERE relkind = 'S' AND relnamespace = 'syncstate'::regnamespace
	AND relname IN ('rate_google_calendar', 'rate_google_tasks', 'rate_google_gmail', 'rate_google_contacts');
CREATE ROLE regress_syncstate_rate;
SELECT grant_worker('regress_syncstate_rate');
SELECT at(5000000);
SET ROLE regress_syncstate_rate;
SELECT count(*) FROM syncstate.claim_due_syncs('google_tasks', 10);
SELECT lease > 0 AS started FROM syncstate.mark_sync_started('00000000-0000-4000-8000-000000009999', 'google_tasks');
SELECT syncstate.next_sync_due('google_tasks') > syncstate.sync_clock() AS closed;
SELECT current_user;
SELECT setval('syncstate.rate_google_tasks', 1); -- ERROR
SELECT last_value FROM syncstate.rate_google_tasks; -- ERROR
SELECT nextval('syncstate.rate_google_tasks'); -- ERROR
RESET ROLE;

-- a source whose label did not come by register_sync_source() has none
ALTER EXTENSION syncstate DROP SEQUENCE rate_google_contacts;
ALTER SEQUENCE rate_google_contacts RENAME TO elsewhere;
SELECT status FROM connect_sync(u(1), 'google_contacts');
SELECT count(*) FROM claim_due_syncs('google_contacts') AS not_needed;
SELECT rate_per_minute FROM set_sync_policy('google_contacts', '{"rate_per_minute": 10}');
SELECT request_sync(u(1), 'google_contacts');
SELECT at(6000000);
SELECT count(*) FROM claim_due_syncs('google_contacts'); -- ERROR
ALTER SEQUENCE elsewhere RENAME TO rate_google_contacts;
ALTER EXTENSION syncstate ADD SEQUENCE rate_google_contacts;
SELECT count(*) FROM claim_due_syncs('google_contacts');

------------------------------------------------------------------------
-- Requests leave ordinary rows one start in four, also where the rate lets one
-- row through at a time
------------------------------------------------------------------------
-- Every "step", two rows of each source are requested and one more is due, and a
-- claim takes what it gets.
CREATE FUNCTION ordinary_starts(of sync_source, max_rows integer, step interval, rate integer, steps integer DEFAULT 40,
								OUT starts bigint, OUT ordinary bigint) LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
	m bigint;
BEGIN
	DELETE FROM sync_state;
	PERFORM set_sync_policy(s, jsonb_build_object('rate_per_minute', rate, 'request_gap', 0)) FROM unnest('{google_calendar,google_tasks}'::sync_source[]) AS s;
	PERFORM set_config('syncstate.clock', (greatest(sync_clock(), '2040-01-01 00:00+00') + interval '1 day')::text, false);
	INSERT INTO sync_state (user_id, source, due_at)
	SELECT u(i), s, CASE WHEN i = 3 THEN '2039-12-31 00:00+00' ELSE '2045-01-01 00:00+00' END::timestamptz
	FROM generate_series(1, 3) AS i, unnest('{google_calendar,google_tasks}'::sync_source[]) AS s;
	starts := 0;
	ordinary := 0;
	FOR i IN 1 .. steps LOOP
		PERFORM set_config('syncstate.clock', (sync_clock() + step)::text, false);
		PERFORM request_sync(s.user_id, s.source) FROM sync_state AS s WHERE s.user_id < u(3);
		WITH claimed AS (SELECT * FROM claim_due_syncs(of, max_rows))
		SELECT count(*), count(*) FILTER (WHERE c.user_id = u(3)) INTO n, m
		FROM claimed AS c, LATERAL mark_sync_completed(c.user_id, c.source, lease => c.lease) AS done;
		starts := starts + n;
		ordinary := ordinary + m;
		UPDATE sync_state SET due_at = '2039-12-31 00:00+00' WHERE user_id = u(3);
	END LOOP;
	DELETE FROM sync_state;
	DELETE FROM sync_policy;
END
$$;
-- of one source: one row per step, one per two steps, several, and with one row
-- wanted at a time
SELECT max_rows, step, rate, starts > 10 AS many, ordinary >= (starts - 3) / 4 AS has_its_share
FROM unnest('{1,2,3,10,100}'::int[]) AS max_rows, (VALUES ('6 s'::interval, 10), ('3 s', 10), ('1 s', 60), ('6 s', 20), ('6 s', 1000)) AS v (step, rate),
	LATERAL ordinary_starts('google_tasks', max_rows, step, rate);
-- of all sources
SELECT max_rows, step, rate, starts > 10 AS many, ordinary >= (starts - 6) / 4 AS has_its_share
FROM unnest('{1,2,3,10,100}'::int[]) AS max_rows, (VALUES ('6 s'::interval, 10), ('3 s', 10), ('6 s', 1000)) AS v (step, rate),
	LATERAL ordinary_starts(NULL, max_rows, step, rate);
-- and while there is no ordinary row, all starts are requests'
SELECT count(*) FROM generate_series(1, 2) AS n, connect_sync(u(n), 'google_tasks');
SELECT rate_per_minute FROM set_sync_policy('google_tasks', '{"rate_per_minute": 60}');
UPDATE sync_state SET due_at = '2045-01-01 00:00+00';
SELECT count(*) AS requested FROM claim_due_syncs('google_tasks', 2);
DELETE FROM sync_state;
DELETE FROM sync_policy;

RESET syncstate.clock;
DELETE FROM sync_state;
DELETE FROM sync_policy;
DROP OWNED BY regress_syncstate_rate;
DROP ROLE regress_syncstate_rate;
SET client_min_messages = warning;
DROP SCHEMA regress_rate CASCADE;
