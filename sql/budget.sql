/*
 * Adaptive intervals under a budget: what a row learns, what interval follows,
 * and how rebalance_syncs() divides a budget.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
RESET client_min_messages;
CREATE SCHEMA regress_budget;
SET search_path = regress_budget, syncstate, public;
SET TimeZone = 'UTC';
TRUNCATE sync_state; -- which other tests may have left full of dead rows
DELETE FROM sync_policy;
DELETE FROM sync_budget;

CREATE FUNCTION u(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
	RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- moves the clock to so many seconds after 2026-01-01
CREATE FUNCTION at(seconds numeric) RETURNS void LANGUAGE sql AS
	$$SELECT set_config('syncstate.clock', ('2026-01-01 00:00+00'::timestamptz + seconds * interval '1 s')::text, false)$$;

-- near enough: to a part in 10^9
CREATE FUNCTION near(a float8, b float8) RETURNS boolean LANGUAGE sql IMMUTABLE
	RETURN a = b OR abs(a - b) <= 1e-9 * abs(b);

-- the half-life, over ln 2
CREATE FUNCTION tau() RETURNS float8 LANGUAGE sql IMMUTABLE RETURN 3 * 86400 / ln(2::float8);

-- a completion at a time, after a start some seconds before; an incremental sync
CREATE FUNCTION complete(n int, seconds numeric, items bigint DEFAULT 0, took numeric DEFAULT 0) RETURNS sync_state
	LANGUAGE plpgsql AS $$
DECLARE
	started sync_state;
	result sync_state;
BEGIN
	PERFORM at(seconds - took);
	started := mark_sync_started(u(n), 'google_tasks');
	PERFORM at(seconds);
	result := mark_sync_completed(u(n), 'google_tasks', items, updated_min => sync_clock(), lease => started.lease);
	RETURN result;
END
$$;

------------------------------------------------------------------------
-- Learning
------------------------------------------------------------------------
-- nobody knows since when a first sync looks back; and a full sync tells what
-- there is
SELECT changes_seen, seconds_watched FROM complete(1, 0, 500);
SELECT changes_seen, seconds_watched FROM update_sync_state(u(1), 'google_tasks', '{"updated_min": null}');
SELECT changes_seen, seconds_watched, last_full_sync_at = sync_clock() AS is_full FROM complete(1, 3600, 500);

-- an hour with two changes, as the formula has it
SELECT near(changes_seen, 2 * (1 - exp(-3600 / tau())) * tau() / 3600) AS changes,
	near(seconds_watched, (1 - exp(-3600 / tau())) * tau()) AS seconds
FROM complete(1, 7200, 2);

-- each hour, so many changes: the same as the sum over all hours, written out
SELECT count(complete(1, 7200 + 3600 * n, CASE WHEN n % 40 = 0 THEN n / 40 ELSE 0 END)) AS hours FROM generate_series(1, 200) AS n;
SELECT near(s.changes_seen, f.a) AS changes, near(s.seconds_watched, f.b) AS seconds
FROM sync_state AS s,
	(SELECT sum(CASE WHEN n = 0 THEN 2 WHEN n % 40 = 0 THEN least(n / 40, 3) ELSE 0 END * (1 - exp(-3600 / tau())) * tau() / 3600 * exp(-3600.0 * (200 - n) / tau())) AS a,
		sum((1 - exp(-3600 / tau())) * tau() * exp(-3600.0 * (200 - n) / tau())) AS b
	 FROM generate_series(0, 200) AS n) AS f;

-- a busy row: the last 12 changes count, and the rate is what it was
SELECT count(complete(8, 3600 * n, 3)) AS hours FROM generate_series(0, 50) AS n;
WITH RECURSIVE f (n, a, b) AS (
	SELECT 1, 0::float8, 0::float8
	UNION ALL
	SELECT n + 1, least(a, 12), b * least(1, 12 / a)
	FROM (SELECT n, f.a * exp(-3600 / tau()) + 3 * (1 - exp(-3600 / tau())) * tau() / 3600 AS a,
			f.b * exp(-3600 / tau()) + (1 - exp(-3600 / tau())) * tau() AS b
		  FROM f WHERE n <= 50) AS g)
SELECT s.changes_seen, near(s.seconds_watched, f.b) AS seconds, near(s.changes_seen / s.seconds_watched, 3 / 3600.0) AS rate
FROM sync_state AS s, f WHERE s.user_id = u(8) AND f.n = 51;
DELETE FROM sync_state WHERE user_id = u(8);

-- quiet time weighs the same however often one looks
SELECT count(complete(n, 1000000)) AS full, count(complete(n, 1000000)) AS incremental FROM generate_series(2, 4) AS n;
SELECT count(complete(2, 1000000 + 86400 * n / 24)) AS hourly FROM generate_series(1, 24) AS n;
SELECT count(complete(3, 1000000 + 86400 * n / 2)) AS twice FROM generate_series(1, 2) AS n;
SELECT count(complete(4, 1000000 + 86400)) AS once;
SELECT bool_and(near(seconds_watched, (1 - exp(-86400 / tau())) * tau())) AS same, bool_and(changes_seen = 0) AS quiet
FROM sync_state WHERE user_id <> u(1);

-- after three days of silence half of the weight is left
SELECT count(complete(5, 2000000 + 3600 * n, n)) FROM generate_series(0, 3) AS n;
SELECT changes_seen AS before FROM sync_state WHERE user_id = u(5) \gset
SELECT near(changes_seen, :before / 2) AS half FROM complete(5, 2000000 + 3600 * 3 + 3 * 86400);

-- extremes: a billion items and all there are; the clock going back; no time at
-- all; a year, a century
SELECT round(changes_seen::numeric, 3) AS changes, round(seconds_watched::numeric, 3) AS seconds
FROM (VALUES (complete(6, 0)), (complete(6, 1)), (complete(6, 2, 1000000000)), (complete(6, 3, 9223372036854775807)),
	(complete(6, 2, 1)), (complete(6, 2, 1)), (complete(6, 2, 0))) AS c(s), LATERAL (SELECT (c.s).*) AS s;
SELECT round(changes_seen::numeric, 6) AS changes, round(seconds_watched::numeric) AS seconds, round(tau()::numeric) AS most
FROM (VALUES (complete(6, 366 * 86400, 3)), (complete(6, 36600 * 86400.0, 3)), (complete(6, 36600 * 86400.0 + 60, 3))) AS c(s),
	LATERAL (SELECT (c.s).*) AS s;

-- reports in a batch learn the same
SELECT at(3000000);
SELECT lease FROM mark_sync_started(u(2), 'google_tasks') \gset
SELECT lease AS lease3 FROM mark_sync_started(u(3), 'google_tasks') \gset
SELECT changes_seen AS before, seconds_watched AS before_seconds, extract(epoch FROM sync_clock() - last_successful_sync_at) AS i
FROM sync_state WHERE user_id = u(2) \gset
SELECT near(changes_seen, :before * exp(-:i / tau()) + (1 - exp(-:i / tau())) * tau() / :i) AS changes,
	near(seconds_watched, :before_seconds * exp(-:i / tau()) + (1 - exp(-:i / tau())) * tau()) AS seconds
FROM report_syncs(jsonb_build_array(
	jsonb_build_object('user_id', u(2), 'source', 'google_tasks', 'lease', :lease, 'outcome', 'completed', 'items_synced', 1)));

-- nothing else teaches or makes forget
SELECT md5(array_agg((changes_seen, seconds_watched) ORDER BY user_id)::text) AS learned FROM sync_state \gset
SELECT count(mark_sync_failed(u(3), 'google_tasks', 'error', lease => :lease3)), count(clear_sync_token(u(2), 'google_tasks')),
	count(pause_sync(u(4), 'google_tasks')), count(connect_sync(u(4), 'google_tasks')), count(request_sync(u(5), 'google_tasks')),
	count(update_sync_state(u(6), 'google_tasks', '{"status": "syncing"}')), count(mark_rate_limited(u(1), 'google_tasks'));
SELECT md5(array_agg((changes_seen, seconds_watched) ORDER BY user_id)::text) = :'learned' AS as_it_was FROM sync_state;
-- a completion by hand is one
SELECT count(update_sync_state(u(6), 'google_tasks', '{"status": "idle", "items_synced": 3}'));
SELECT md5(array_agg((changes_seen, seconds_watched) ORDER BY user_id)::text) = :'learned' AS as_it_was FROM sync_state;

-- both or none, finite, not negative; whichever way it is written
CREATE FUNCTION refused(changes text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	c text;
BEGIN
	EXECUTE 'UPDATE syncstate.sync_state SET ' || changes;
	RETURN 'NOT REFUSED';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS c = CONSTRAINT_NAME;
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
SELECT changes, refused(changes) FROM unnest(ARRAY['changes_seen = NULL', 'seconds_watched = NULL', 'changes_seen = -1, seconds_watched = -1',
	'changes_seen = ''NaN''', 'seconds_watched = ''infinity''', 'changes_seen = -0.5', 'changes_seen = 1.001e12', 'seconds_watched = 1.001e12']) AS changes;
SET session_replication_role = replica;
SELECT changes, refused(changes) FROM unnest(ARRAY['changes_seen = NULL', 'changes_seen = -1, seconds_watched = -1', 'changes_seen = ''NaN''', 'seconds_watched = ''infinity''']) AS changes;
RESET session_replication_role;
UPDATE sync_state SET changes_seen = NULL, seconds_watched = NULL WHERE user_id = u(1);
UPDATE sync_state SET changes_seen = 0, seconds_watched = 1e12 WHERE user_id = u(2);

------------------------------------------------------------------------
-- The interval of a row
------------------------------------------------------------------------
DELETE FROM sync_state;
SELECT jitter FROM set_sync_policy('google_tasks', '{"jitter": 0}');

-- what the interval of a row with this history comes to, in seconds
CREATE FUNCTION interval_of(changes float8, seconds float8, own interval DEFAULT NULL) RETURNS float8
	LANGUAGE plpgsql AS $$
DECLARE
	done sync_state;
BEGIN
	PERFORM at(5000000);
	DELETE FROM syncstate.sync_state WHERE user_id = u(7);
	INSERT INTO syncstate.sync_state (user_id, source, updated_min, changes_seen, seconds_watched, sync_interval, last_successful_sync_at)
		VALUES (u(7), 'google_tasks', sync_clock(), changes, seconds, own, sync_clock());
	PERFORM mark_sync_started(u(7), 'google_tasks');
	done := mark_sync_completed(u(7), 'google_tasks');
	RETURN extract(epoch FROM done.due_at - done.last_sync_at);
END
$$;

-- without a budget the policy's, whatever was learned; with one but never
-- rebalanced too, within the bounds
SELECT interval_of(NULL, NULL), interval_of(100, 1000), interval_of(100, 1000, '2 s') AS own;
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 1000}');
SELECT interval_of(NULL, NULL), interval_of(100, 1000), interval_of(100, 1000, '2 s') AS own;
SELECT min_interval FROM set_sync_policy('google_tasks', '{"min_interval": "20 minutes"}');
SELECT interval_of(100, 1000), interval_of(100, 1000, '2 s') AS own;
SELECT min_interval, max_interval FROM set_sync_policy('google_tasks', '{"min_interval": "1 s", "max_interval": "5 minutes"}');
SELECT interval_of(100, 1000), interval_of(100, 1000, '2 h') AS own;

-- multiplier / sqrt(rate); the rate, by what a row has seen and what the others do
CREATE FUNCTION rate(a float8, b float8, mean float8) RETURNS float8 LANGUAGE sql IMMUTABLE
	RETURN greatest(CASE WHEN a >= 1 AND b >= 1 THEN a / b END, (coalesce(a, 0) + 1) / (coalesce(b, 0) + 1 / mean));
INSERT INTO sync_budget VALUES ('google_tasks', 10, 0.001, 1, 1000, '2026-01-01', 0, 0);
SELECT max_interval FROM set_sync_policy('google_tasks', '{"min_interval": "1 minute", "max_interval": "1 hour"}');
SELECT a, b, abs(interval_of(a, b) - least(greatest(10 / sqrt(rate(least(a, 12), CASE WHEN a > 12 THEN b * 12 / a ELSE b END, 0.001)), 60), 3600)) < 2e-6 AS right,
	round(interval_of(a, b)) AS interval
FROM (VALUES (NULL::float8, NULL::float8), (0, 0), (0, 1000), (1, 1000), (3, 1000), (100, 1000), (0, 200000), (0, 1e12), (1e12, 0), (1e9, 1e9), (0.5, 373953),
	(1, 0.5), (1e12, 0.5), (12, 1), (12, 5000), (0.02, 10), (0.001, 10)) AS v(a, b);

-- an own interval stays what it is, outside of the bounds too
SELECT interval_of(1, 1000, '2 s'), interval_of(1, 1000, '30 days');

-- and back: rows switch between own interval, budget and none
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": null}');
SELECT interval_of(1, 1000), interval_of(1, 1000, '2 s');
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 1000}');
SELECT round(interval_of(1, 1000)), interval_of(1, 1000, '2 s');

-- other sessions know a new multiplier, however it is written; so does this one
UPDATE sync_budget SET multiplier = 20;
SELECT round(interval_of(1, 1000));
DELETE FROM sync_budget;
SELECT round(interval_of(1, 1000));

-- no longer than the life of the cursor allows: 0.8 of it
INSERT INTO sync_budget VALUES ('google_tasks', 1e12, 0.001, 1, 1000, '2026-01-01', 0, 0);
SELECT token_ttl, max_interval FROM set_sync_policy('google_tasks', '{"max_interval": "30 days", "token_ttl": "2 days"}');
SELECT interval_of(1, 1000) / 86400 AS days;
SELECT token_ttl FROM set_sync_policy('google_tasks', '{"token_ttl": null}');
SELECT interval_of(1, 1000) / 86400 AS days, interval_of(0, 1e12) / 86400 AS days;
SELECT max_interval FROM set_sync_policy('google_tasks', '{"max_interval": "36500 days"}');
SELECT interval_of(0, 1e12) / 86400 AS days;
SELECT min_interval, max_interval FROM set_sync_policy('google_tasks', '{"min_interval": "1 second", "max_interval": "1 second"}');
SELECT interval_of(0, 1e12), interval_of(1e12, 0);

-- jitter shortens it, as it does others
SELECT jitter, max_interval FROM set_sync_policy('google_tasks', '{"jitter": 0.4, "min_interval": "1000 s", "max_interval": "1000 s"}');
SELECT interval_of(1, 1000) BETWEEN 600 AND 800 AS shortened;

------------------------------------------------------------------------
-- Dividing a budget
------------------------------------------------------------------------
DELETE FROM sync_state;
DELETE FROM sync_budget;
DELETE FROM sync_policy;

-- no budget, nothing to do; no rows, the policy's interval for the first one
SELECT at(0);
SELECT * FROM rebalance_syncs();
SELECT * FROM rebalance_syncs('google_tasks');
SELECT jitter FROM set_sync_policy('google_tasks', '{"daily_budget": 9600, "jitter": 0}');
SELECT source, rows, budget, planned, observed, at_min, at_max, feasible FROM rebalance_syncs();
SELECT interval_of(NULL, NULL), interval_of(NULL, NULL, '1 h') AS own;
DELETE FROM sync_state;

-- a hundred rows about which nothing is known: all the same
INSERT INTO sync_state (user_id, source) SELECT u(n), 'google_tasks' FROM generate_series(1, 100) AS n;
SELECT source, rows, budget, planned, observed, near(multiplier, 900 * sqrt(1 / 86400.0)) AS multiplier, at_min, at_max, feasible
FROM rebalance_syncs('google_tasks');

-- rates over four orders of magnitude: the plan meets the budget, as a sum over
-- the rows written out finds it, within what a bucket's width makes of the clamps
UPDATE sync_state SET changes_seen = 10 ^ (4.0 * (right(user_id::text, 4)::int - 1) / 99) / 10, seconds_watched = 300000;
CREATE VIEW plan AS
	SELECT sum(86400 / ((1 - 0.75 * p.jitter) * coalesce(extract(epoch FROM s.sync_interval)::float8,
			least(greatest(b.multiplier / sqrt(rate(s.changes_seen, s.seconds_watched, b.mean_rate)),
				extract(epoch FROM p.min_interval)), extract(epoch FROM p.max_interval))))) FILTER (WHERE s.due_at IS NOT NULL) AS syncs
	FROM sync_state AS s, sync_budget AS b, get_sync_policy('google_tasks') AS p;
CREATE FUNCTION rebalanced() RETURNS TABLE (rows bigint, planned numeric, right_sum boolean, at_min bigint, at_max bigint, feasible boolean)
	LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM syncstate.sync_budget;
	SELECT r.rows, round(r.planned::numeric, 3), r.at_min, r.at_max, r.feasible
		INTO rows, planned, at_min, at_max, feasible FROM rebalance_syncs('google_tasks') AS r;
	right_sum := abs((SELECT syncs FROM plan) / planned::float8 - 1) < 0.002;
	RETURN NEXT;
END
$$;
SELECT * FROM rebalanced();
SELECT jitter FROM set_sync_policy('google_tasks', '{"jitter": 0.4}');
SELECT * FROM rebalanced();
-- without clamps, the closed form: multiplier = sum of roots * 86400 / budget
SELECT jitter FROM set_sync_policy('google_tasks', '{"jitter": 0, "min_interval": "1 s", "max_interval": "36500 days"}');
SELECT * FROM rebalanced();
SELECT near(b.multiplier, sum(sqrt(rate(s.changes_seen, s.seconds_watched, b.mean_rate))) * 86400 / 9600) AS closed_form,
	near(b.mean_rate, (sum(s.changes_seen) + 1) / (sum(s.seconds_watched) + 86400)) AS mean_rate
FROM sync_state AS s, sync_budget AS b GROUP BY b.multiplier, b.mean_rate;
-- the slow ones at the longest interval, the fast ones at the shortest
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"min_interval": "10 minutes", "max_interval": "20 minutes"}');
SELECT * FROM rebalanced();
-- bounds that leave no choice
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"min_interval": "15 minutes", "max_interval": "15 minutes"}');
SELECT * FROM rebalanced();
-- more than min_interval can spend; and less than max_interval needs
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"min_interval": "30 minutes", "max_interval": "1 day"}');
SELECT * FROM rebalanced();
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"min_interval": "1 minute", "max_interval": "10 minutes"}');
SELECT * FROM rebalanced();
-- a budget of the extremes
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 1, "max_interval": "1 day"}');
SELECT * FROM rebalanced();
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 2147483647, "min_interval": "1 second"}');
SELECT * FROM rebalanced();

-- own intervals count as they are, parked rows not at all
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 9600, "min_interval": "1 minute"}');
UPDATE sync_state SET sync_interval = '1 hour' WHERE right(user_id::text, 4)::int <= 20;
UPDATE sync_state SET parked_reason = 'paused' WHERE right(user_id::text, 4)::int BETWEEN 11 AND 30;
SELECT * FROM rebalanced();
SELECT round(sum(86400 / extract(epoch FROM sync_interval))) AS fixed FROM sync_state WHERE due_at IS NOT NULL;
-- own intervals alone may be too much
UPDATE sync_state SET sync_interval = '1 second' WHERE right(user_id::text, 4)::int <= 20;
SELECT * FROM rebalanced();

-- extremes of what was learned
UPDATE sync_state SET sync_interval = NULL, parked_reason = NULL,
	changes_seen = (ARRAY[0, 1e12, 0, 1e-12, 1e9])[right(user_id::text, 1)::int % 5 + 1],
	seconds_watched = (ARRAY[1e12, 0, 0, 1e-12, 373953])[right(user_id::text, 1)::int % 5 + 1];
SELECT rows, planned, feasible FROM rebalanced();
SELECT count(*), bool_and(multiplier > 0 AND multiplier < 'infinity') AS finite FROM sync_budget;
-- and where all of it is as much as there can be
UPDATE sync_state SET changes_seen = 1e12, seconds_watched = 0;
SELECT rows, planned, feasible FROM rebalanced();
UPDATE sync_state SET changes_seen = 1e12, seconds_watched = 1;
SELECT rows, planned, feasible FROM rebalanced();
-- next to nothing, after years of silence
UPDATE sync_state SET changes_seen = 1e-321, seconds_watched = 373953;
SELECT rows, planned, feasible FROM rebalanced();
-- nobody ever changes
UPDATE sync_state SET changes_seen = 0, seconds_watched = 373953;
SELECT * FROM rebalanced();
-- the life of a cursor bounds a plan too
SELECT token_ttl FROM set_sync_policy('google_tasks', '{"daily_budget": 100, "max_interval": "100 days", "token_ttl": "5 hours"}');
SELECT rows, planned, at_max, feasible FROM rebalanced();
SELECT token_ttl FROM set_sync_policy('google_tasks', '{"token_ttl": null}');
SELECT rows, planned, at_max, feasible FROM rebalanced();

------------------------------------------------------------------------
-- What was spent corrects the plan
------------------------------------------------------------------------
/*
 * Two weeks in which every row is synced "factor" times as often as its interval
 * says (rounded by carrying the rest on), rebalanced each so many hours.  Keeps
 * what was spent of the budget of each week, in percent.
 */
CREATE TABLE spent (factor float8, hours int, week int, percent float8);
CREATE PROCEDURE spend(factor float8, hours int)
	LANGUAGE plpgsql AS $$
DECLARE
	debt float8 = 0;
	n bigint;
	before bigint;
BEGIN
	DELETE FROM syncstate.sync_budget;
	FOR week IN 1 .. 2 LOOP
		SELECT sum(lease) INTO before FROM syncstate.sync_state;
		FOR hour IN 0 .. 167 BY hours LOOP
			PERFORM at(10000000 + (week * 168 + hour) * 3600);
			PERFORM rebalance_syncs('google_tasks');
			SELECT debt + factor * syncs / 24 * hours INTO debt FROM plan;
			n := floor(debt);
			debt := debt - n;
			UPDATE syncstate.sync_state SET lease = lease + n WHERE user_id = u(1);
			COMMIT;
		END LOOP;
		INSERT INTO spent SELECT factor, hours, week, 100 * (sum(lease) - before) / 7 / 2400 FROM syncstate.sync_state;
	END LOOP;
END
$$;
DELETE FROM sync_state;
INSERT INTO sync_state (user_id, source, due_at) SELECT u(n), 'google_tasks', '2030-01-01' FROM generate_series(1, 100) AS n;
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 2400, "max_interval": "1 day"}');
CALL spend(0.8, 1);
CALL spend(0.8, 24);
CALL spend(1, 3);
CALL spend(1.25, 1);
CALL spend(1.25, 6);
CALL spend(1.25, 24);
SELECT round(correction::numeric, 2) AS correction FROM sync_budget;
CALL spend(2, 3);
SELECT factor, hours, abs(max(percent) FILTER (WHERE week = 1) - 100) < 12 AS first_week, abs(max(percent) FILTER (WHERE week = 2) - 100) < 3 AS second_week
FROM spent GROUP BY factor, hours ORDER BY factor, hours;

-- syncs that workers left undone are not made up for
CREATE FUNCTION correction_after(hours int, starts bigint, change text DEFAULT '') RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
	result numeric;
BEGIN
	DELETE FROM syncstate.sync_budget;
	PERFORM at(20000000);
	PERFORM rebalance_syncs('google_tasks');
	PERFORM at(20000000 + hours * 3600);
	UPDATE syncstate.sync_state SET lease = lease + starts WHERE user_id = u(1);
	IF change <> '' THEN
		EXECUTE change;
	END IF;
	PERFORM rebalance_syncs('google_tasks');
	SELECT round(correction::numeric, 3) INTO result FROM syncstate.sync_budget;
	RETURN result;
END
$$;
SELECT correction_after(24, 1200) AS half, correction_after(24, 2400) AS all_of_it, correction_after(24, 4800) AS twice;
BEGIN;
UPDATE sync_state SET due_at = '2026-01-01';
SELECT correction_after(24, 1200) AS half_and_all_late, correction_after(24, 4800) AS twice_all_the_same;
ROLLBACK;
-- one step changes it by a factor of 4 at most, and it has bounds
SELECT correction_after(24, 1000000) AS down, correction_after(24 * 365, 0) AS up;
-- where the plan cannot follow there is no use
BEGIN;
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 10}');
SELECT correction_after(24, 100) AS all_at_max;
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": 1000000}');
SELECT correction_after(24, 144000) AS all_at_min;
ROLLBACK;

-- what was observed: starts of rows that are gone by now too, as far as known
DELETE FROM sync_state;
INSERT INTO sync_state (user_id, source, due_at) SELECT u(n), 'google_tasks', '2030-01-01' FROM generate_series(1, 100) AS n;
DELETE FROM sync_budget;
SELECT at(30000000);
UPDATE sync_state SET lease = 10;
SELECT round(observed) FROM rebalance_syncs('google_tasks');
SELECT at(30000000 + 43200);
UPDATE sync_state SET lease = 13;
SELECT round(observed) AS observed FROM rebalance_syncs('google_tasks');
SELECT at(30000000 + 86400);
DELETE FROM sync_state WHERE right(user_id::text, 4)::int <= 50;
UPDATE sync_state SET lease = 14;
SELECT rows, round(observed) AS observed FROM rebalance_syncs('google_tasks');
-- at the same time again, and after the clock was set back: not known
SELECT rows, observed FROM rebalance_syncs('google_tasks');
SELECT at(1);
SELECT rows, observed FROM rebalance_syncs('google_tasks');
SELECT rebalanced_at FROM sync_budget;

-- requests, and what workers start by themselves, count
SELECT at(86401);
SELECT request_sync(u(60), 'google_tasks'), request_sync(u(61), 'google_tasks');
SELECT count(*) FROM claim_due_syncs('google_tasks', 10000);
SELECT lease - 14 AS started FROM mark_sync_started(u(62), 'google_tasks');
SELECT round(observed) AS observed FROM rebalance_syncs('google_tasks');

-- without a budget, what was learned about it goes; what rows learned stays
SELECT daily_budget FROM set_sync_policy('google_tasks', '{"daily_budget": null}');
SELECT * FROM rebalance_syncs();
SELECT count(*) FROM sync_budget;

-- several sources, in their order, each by itself
SELECT daily_budget FROM unnest('{google_contacts,google_calendar,google_gmail}'::sync_source[]) AS s, set_sync_policy(s, '{"daily_budget": 42}');
SELECT source, rows, budget, planned, feasible FROM rebalance_syncs();
SELECT source FROM rebalance_syncs('google_gmail');
SELECT source FROM rebalance_syncs('google_tasks');

-- values that no plan has are refused
CREATE FUNCTION refused_by(changes text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	c text;
BEGIN
	EXECUTE 'UPDATE syncstate.sync_budget SET ' || changes;
	RETURN 'NOT REFUSED';
EXCEPTION WHEN check_violation OR not_null_violation THEN
	GET STACKED DIAGNOSTICS c = CONSTRAINT_NAME;
	RETURN SQLSTATE || ' ' || c;
END
$$;
SELECT changes, refused_by(changes) FROM unnest(ARRAY['multiplier = 0', 'multiplier = ''NaN''', 'mean_rate = ''infinity''', 'mean_rate = 0', 'correction = -1',
	'starts = -1', 'rows = -1', 'expected = -1', 'rebalanced_at = ''infinity''', 'rows = NULL',
	-- nor those that its arithmetic would fail by
	'mean_rate = 1e-310', 'correction = 1e-310', 'correction = 3', 'multiplier = 1e41', 'expected = 1e300', 'starts = 1e300']) AS changes;

-- not in a transaction that only reads
BEGIN READ ONLY;
SELECT * FROM rebalance_syncs(); -- ERROR
ROLLBACK;

RESET syncstate.clock;
DELETE FROM sync_state;
DELETE FROM sync_policy;
DELETE FROM sync_budget;
SET client_min_messages = warning;
DROP SCHEMA regress_budget CASCADE;
