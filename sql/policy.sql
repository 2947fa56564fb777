/*
 * The settings of a source: built-in defaults, overrides, and when a change
 * takes effect.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
RESET client_min_messages;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
SET syncstate.clock = '2030-01-01 00:00:00+00';
SET timezone = 'UTC';
SET intervalstyle = 'postgres';
SET datestyle = 'ISO, YMD';

/* ------------------------------------------------------------ built in */

\x on
SELECT (syncstate.get_sync_policy(s)).* FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s ORDER BY s;
\x off
SELECT count(*) AS overrides FROM syncstate.sync_policy;

/* ------------------------------------------------------------- override */

-- keys present change, keys absent stay; it tells the effective settings
SELECT sync_interval, lease_time, retry_cap FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": "1 hour", "lease_time": "PT5M"}');
SELECT sync_interval, lease_time, retry_cap FROM syncstate.set_sync_policy('google_tasks', '{"retry_cap": "02:00"}');
SELECT sync_interval, lease_time, retry_cap FROM syncstate.get_sync_policy('google_tasks');

-- every setting, there and back
\x on
SELECT * FROM syncstate.set_sync_policy('google_contacts',
	'{"sync_interval": "1 day", "lease_time": "1 second", "retry_base": "2 seconds", "retry_cap": "3 days",
	  "rate_limit_wait": "30 days", "max_failures": 1, "park_after": "36500 days", "token_ttl": "12:00",
	  "token_ttl_from": "token", "jitter": 0.9, "paused_until": "2030-02-01T00:00:00Z"}');
SELECT * FROM syncstate.sync_policy WHERE source = 'google_contacts';
\x off
-- only what was overridden is kept; other sources have theirs
SELECT source, sync_interval, lease_time, retry_base, retry_cap, jitter FROM syncstate.sync_policy WHERE source = 'google_tasks';
SELECT sync_interval, lease_time, jitter FROM syncstate.get_sync_policy('google_calendar');

-- null goes back to the built-in default
SELECT sync_interval, lease_time, retry_cap FROM syncstate.set_sync_policy('google_tasks', '{"lease_time": null}');
SELECT lease_time IS NULL AS gone FROM syncstate.sync_policy WHERE source = 'google_tasks';
-- nothing to change is no change
SELECT sync_interval, lease_time, retry_cap FROM syncstate.set_sync_policy('google_tasks', '{}');
SELECT source FROM syncstate.sync_policy ORDER BY source;

-- where nothing is overridden any more there is no row
SELECT sync_interval, retry_cap FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": null, "retry_cap": null}');
SELECT source FROM syncstate.sync_policy ORDER BY source;
SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{}');
SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{"jitter": null}');
SELECT source FROM syncstate.sync_policy ORDER BY source;
SELECT token_ttl, token_ttl_from, jitter, paused_until FROM syncstate.set_sync_policy('google_contacts',
	'{"sync_interval": null, "lease_time": null, "retry_base": null, "retry_cap": null,
	  "rate_limit_wait": null, "max_failures": null, "park_after": null, "token_ttl": null,
	  "token_ttl_from": null, "jitter": null, "paused_until": null}');
SELECT count(*) AS overrides FROM syncstate.sync_policy;

/* ----------------------------------------------------- effective at once */

/*
 * What a completion at the hour of a run that began at the hour leads to: with
 * jitter 0 the interval itself.
 */
CREATE FUNCTION pg_temp.wait(source syncstate.sync_source DEFAULT 'google_calendar') RETURNS interval LANGUAGE plpgsql AS $$
DECLARE
	user_id uuid := 'aaaaaaaa-0000-4000-8000-000000000001';
BEGIN
	PERFORM syncstate.mark_sync_started(user_id, source);
	RETURN (syncstate.mark_sync_completed(user_id, source)).due_at - syncstate.sync_clock();
END
$$;
SELECT jitter FROM syncstate.set_sync_policy('google_calendar', '{"jitter": 0}');
SELECT pg_temp.wait();
SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "20 minutes"}');
SELECT pg_temp.wait();
SELECT pg_temp.wait('google_tasks') < '15 minutes' AS others_keep_their_jitter;

-- in the very statement that changes it, too
SELECT (syncstate.set_sync_policy('google_calendar', '{"sync_interval": "30 minutes"}')).sync_interval, pg_temp.wait();

-- one that was rolled back is forgotten
BEGIN;
SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "40 minutes"}');
SELECT pg_temp.wait();
ROLLBACK;
SELECT pg_temp.wait(), (syncstate.get_sync_policy('google_calendar')).sync_interval;

-- in a subtransaction too
BEGIN;
SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "50 minutes"}');
SAVEPOINT s;
SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "60 minutes"}');
SELECT pg_temp.wait();
ROLLBACK TO s;
SELECT pg_temp.wait(), (syncstate.get_sync_policy('google_calendar')).sync_interval;
COMMIT;
SELECT pg_temp.wait(), (syncstate.get_sync_policy('google_calendar')).sync_interval;

DO $$
BEGIN
	BEGIN
		PERFORM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "70 minutes"}');
		ASSERT pg_temp.wait() = '70 minutes';
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	ASSERT pg_temp.wait() = '50 minutes';
END
$$;

-- written directly, by whatever command
UPDATE syncstate.sync_policy SET sync_interval = '25 minutes' WHERE source = 'google_calendar';
SELECT pg_temp.wait();
DELETE FROM syncstate.sync_policy;
SELECT pg_temp.wait() < '15 minutes' AS built_in, (syncstate.get_sync_policy('google_calendar')).sync_interval;
INSERT INTO syncstate.sync_policy (source, sync_interval, jitter) VALUES ('google_calendar', '26 minutes', 0);
SELECT pg_temp.wait();
COPY syncstate.sync_policy (source, sync_interval, jitter) FROM STDIN;
google_tasks	00:27:00	0
\.
SELECT pg_temp.wait('google_tasks');
INSERT INTO syncstate.sync_policy (source, sync_interval) VALUES ('google_calendar', '28 minutes')
	ON CONFLICT (source) DO UPDATE SET sync_interval = EXCLUDED.sync_interval;
SELECT pg_temp.wait();
BEGIN;
TRUNCATE syncstate.sync_policy;
SELECT pg_temp.wait() < '15 minutes' AS built_in;
ROLLBACK;
SELECT pg_temp.wait();

-- an old snapshot of this session's does not keep an old policy alive
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) AS overrides FROM syncstate.sync_policy;
SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "29 minutes"}');
SELECT pg_temp.wait();
COMMIT;
SELECT pg_temp.wait();

-- the row's own interval comes first
SELECT sync_interval FROM syncstate.update_sync_state('aaaaaaaa-0000-4000-8000-000000000001', 'google_calendar', '{"sync_interval": "10 minutes"}');
SELECT pg_temp.wait();

/* --------------------------------------------- what each setting is for */

TRUNCATE syncstate.sync_policy, syncstate.sync_state;
SELECT jitter FROM syncstate.set_sync_policy('google_tasks',
	'{"lease_time": "7 minutes", "retry_base": "10 seconds", "retry_cap": "20 minutes", "rate_limit_wait": "100 seconds",
	  "max_failures": 2, "park_after": "1 hour", "jitter": 0}');
\set a '''aaaaaaaa-0000-4000-8000-000000000001'''
SELECT lease_expires_at - syncstate.sync_clock() AS lease_time FROM syncstate.mark_sync_started(:a, 'google_tasks');
SELECT due_at - syncstate.sync_clock() BETWEEN '5 seconds' AND '10 seconds' AS retry_base FROM syncstate.mark_sync_failed(:a, 'google_tasks', 'error');
-- twice in a row, but not for an hour
SELECT parked_reason, due_at - syncstate.sync_clock() BETWEEN '10 seconds' AND '20 seconds' AS doubled FROM syncstate.mark_sync_failed(:a, 'google_tasks', 'error');
SELECT due_at - syncstate.sync_clock() AS retry_cap FROM syncstate.mark_sync_failed(:a, 'google_tasks', 'error', 'permanent');
SET syncstate.clock = '2030-01-01 00:59:59+00';
SELECT parked_reason FROM syncstate.mark_sync_failed(:a, 'google_tasks', 'error');
SET syncstate.clock = '2030-01-01 01:00:00+00';
SELECT parked_reason FROM syncstate.mark_sync_failed(:a, 'google_tasks', 'error');
SELECT due_at - syncstate.sync_clock() BETWEEN '100 seconds' AND '110 seconds' AS rate_limit_wait
FROM syncstate.mark_rate_limited('bbbbbbbb-0000-4000-8000-000000000002', 'google_tasks');

-- backoff(n) = min(retry_cap, retry_base * 2^(n-1)), half of it random; no n overflows
CREATE FUNCTION pg_temp.backoff(n int) RETURNS interval LANGUAGE plpgsql AS $$
BEGIN
	PERFORM syncstate.update_sync_state('cccccccc-0000-4000-8000-000000000003', 'google_tasks',
		jsonb_build_object('failures', n - 1));
	RETURN (syncstate.mark_sync_failed('cccccccc-0000-4000-8000-000000000003', 'google_tasks', 'error')).due_at
		- syncstate.sync_clock();
END
$$;
SELECT max_failures FROM syncstate.set_sync_policy('google_tasks', '{"max_failures": 2147483647}');
SELECT n, most, bool_and(wait BETWEEN most / 2 AND most) AS in_range, count(DISTINCT wait) > 1 AS random
FROM unnest('{1, 2, 3, 7, 8, 9, 31, 32, 33, 62, 63, 64, 65, 1000, 2147483646}'::int[]) AS n,
	LATERAL (SELECT least(interval '20 minutes', interval '10 seconds' * 2 ^ least(n - 1, 20))) AS m (most),
	LATERAL (SELECT pg_temp.backoff(n + i * 0) FROM generate_series(1, 20) AS i) AS w (wait)
GROUP BY n, most ORDER BY n;

/* -------------------------------------------------------------- jitter */

/*
 * 500 rows at once: an interval is shortened by between half and the whole of
 * jitter, never lengthened, by the row's own part; and never sleeps less than
 * a tenth of it.
 */
CREATE FUNCTION pg_temp.waits(jitter float8) RETURNS TABLE (user_id uuid, part float8) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM syncstate.set_sync_policy('google_calendar', jsonb_build_object('sync_interval', '1000 seconds', 'jitter', jitter));
	RETURN QUERY
		SELECT u, extract(epoch FROM (syncstate.mark_sync_completed(u, 'google_calendar')).due_at - syncstate.sync_clock())::float8 / 1000
		FROM (SELECT md5(n::text)::uuid FROM generate_series(1, 500) AS n) AS t (u),
			LATERAL syncstate.mark_sync_started(u, 'google_calendar');
END
$$;
SELECT jitter, count(*), min(part) >= 1 - jitter - 1e-9 AS not_too_short, max(part) <= 1 - jitter / 2 + 1e-9 AS not_too_long,
	min(part) < 1 - jitter * 0.95 OR jitter = 0 AS reaches_down, max(part) > 1 - jitter * 0.55 OR jitter = 0 AS reaches_up,
	count(DISTINCT part) > 490 OR jitter = 0 AS spread
FROM unnest('{0, 0.1, 0.5, 0.9}'::float8[]) AS jitter, pg_temp.waits(jitter) AS w
GROUP BY jitter ORDER BY jitter;

-- a row's part is its own: the same each time
CREATE TEMP TABLE first AS SELECT * FROM pg_temp.waits(0.5);
SELECT count(*) AS moved FROM first AS f JOIN pg_temp.waits(0.5) AS w USING (user_id) WHERE f.part <> w.part;

/* ------------------------------------------------------------- limits */

TRUNCATE syncstate.sync_policy, syncstate.sync_state;
SELECT jitter FROM syncstate.set_sync_policy('google_tasks', '{"jitter": 0.25}');

-- the SQLSTATE and the words with which a change is refused, or "no"
CREATE FUNCTION pg_temp.refused(changes text, source text DEFAULT 'google_tasks') RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM syncstate.set_sync_policy(source::syncstate.sync_source, changes::jsonb);
	RETURN 'no';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

-- every duration, out of its limits and malformed
SELECT key, string_agg(left(pg_temp.refused(jsonb_build_object(key, value)::text), 5), ' ' ORDER BY m) AS refused
FROM unnest('{sync_interval, lease_time, retry_base, retry_cap, rate_limit_wait, park_after, token_ttl}'::text[]) WITH ORDINALITY AS k (key, n),
	unnest('{0, 0.999999 seconds, -1 hour, 1 month, 36500 days 1 second, 2147483647 days, 1 month -30 days, soon}'::text[]) WITH ORDINALITY AS v (value, m)
GROUP BY n, key ORDER BY n;

-- an interval may be infinite since version 17, but not here
SELECT key, pg_temp.refused(jsonb_build_object(key, 'infinity')::text) ~ '^(22007|22023)' AS refused
FROM unnest('{sync_interval, lease_time, retry_base, retry_cap, rate_limit_wait, park_after, token_ttl}'::text[]) WITH ORDINALITY AS k (key, n)
ORDER BY n;

-- and the rest
CREATE TEMP TABLE bad (n serial, changes text);
INSERT INTO bad (changes) VALUES
	('{"sync_interval": "0"}'), ('{"lease_time": "1 day 1 second"}'), ('{"rate_limit_wait": "30 days 1 second"}'),
	('{"max_failures": 0}'), ('{"max_failures": -1}'), ('{"max_failures": 1.5}'), ('{"max_failures": "many"}'),
	('{"jitter": -0.01}'), ('{"jitter": 0.91}'), ('{"jitter": "NaN"}'), ('{"jitter": "Infinity"}'), ('{"jitter": "much"}'),
	('{"token_ttl_from": "start"}'), ('{"token_ttl_from": ""}'), ('{"token_ttl_from": "Full"}'),
	('{"retry_base": "2 hours"}'), ('{"retry_cap": "29 seconds"}'), ('{"retry_base": "2 hours", "retry_cap": "1 hour"}'),
	('{"paused_until": "-infinity"}'), ('{"paused_until": "someday"}'),
	('{"no_such_setting": 1}'), ('{"source": "google_gmail"}'), ('{"": 1}'), ('{"jitter": 0.5, "no_such_setting": null}'),
	('[]'), ('null'), ('42'), ('"jitter"'), (NULL);
SELECT changes, pg_temp.refused(changes) AS refused FROM bad ORDER BY n;
SELECT pg_temp.refused('{}', NULL) AS refused;
SELECT pg_temp.refused('{}', 'google_drive') AS refused;
SELECT syncstate.get_sync_policy(NULL); -- ERROR
\echo :LAST_ERROR_SQLSTATE

-- a call that fails changes nothing
SELECT source, jitter, num_nonnulls(sync_interval, lease_time, retry_base, retry_cap, rate_limit_wait,
	max_failures, park_after, token_ttl, token_ttl_from, paused_until) AS others
FROM syncstate.sync_policy;

-- what is just allowed
SELECT changes, pg_temp.refused(changes) AS refused
FROM unnest(ARRAY['{"sync_interval": "1 second"}', '{"sync_interval": "36500 days"}', '{"lease_time": "1 second"}', '{"lease_time": "24:00:00"}',
	'{"retry_base": "1 hour"}', '{"retry_cap": "1 hour"}', '{"rate_limit_wait": "720:00:00"}', '{"max_failures": 1}', '{"max_failures": 2147483647}',
	'{"jitter": 0}', '{"jitter": 0.9}', '{"token_ttl": "1 second"}', '{"paused_until": "infinity"}', '{"paused_until": "1999-12-31"}']) AS changes;

-- The table takes what the function takes, and refuses what it refuses: the
-- bounds that the table's checks name, what is next to them, and extremes, for
-- each setting of that type.
CREATE FUNCTION pg_temp.answer(statement text) RETURNS text
	LANGUAGE plpgsql
	AS $$
BEGIN
	EXECUTE statement;
	RAISE SQLSTATE 'ZZ000'; -- so that the next one finds the table empty, too
EXCEPTION
	WHEN SQLSTATE 'ZZ000' THEN RETURN 'taken';
	WHEN check_violation OR invalid_parameter_value THEN RETURN 'refused';
END
$$;
TRUNCATE syncstate.sync_policy;
WITH checks AS (
	SELECT string_agg(pg_get_constraintdef(oid), ' ') AS def FROM pg_constraint
	WHERE conrelid = 'syncstate.sync_policy'::regclass AND contype = 'c'
), number AS (
	SELECT trim(m[1], '(''')::float8 + step AS v
	FROM checks, regexp_matches(def, '[<>]=? ([('']*[0-9.]+)', 'g') AS m, unnest('{-1, -1e-15, 0, 1e-15, 1}'::float8[]) AS step
), value (type, v) AS (
	SELECT 'interval', (m[1]::interval + step * interval '1 microsecond')::text
	FROM checks, regexp_matches(def, '''([^'']*)''::interval', 'g') AS m, generate_series(-1, 1) AS step
	UNION
	SELECT 'interval', unnest('{-1 day, 1 month, 1 year, 1 year -1 month, 2147483647 days}'::text[])
	UNION
	SELECT 'timestamp with time zone', (m[1]::timestamptz + step * interval '1 microsecond')::text
	FROM checks, regexp_matches(def, '''([^'']*)''::timestamp', 'g') AS m, generate_series(-1, 1) AS step
	UNION
	SELECT 'timestamp with time zone', '-infinity'
	UNION
	SELECT 'integer', v::text FROM number WHERE v = floor(v)
	UNION
	SELECT 'integer', unnest('{-2147483648, 2147483647}'::text[])
	UNION
	SELECT 'double precision', v::text FROM number
	UNION
	SELECT 'double precision', unnest('{NaN, Infinity}'::text[])
	UNION
	SELECT 'text', m[1] FROM checks, regexp_matches(def, '''([^'']*)''::text', 'g') AS m
	UNION
	SELECT 'text', unnest(ARRAY['', 'Token', E'a\n', 'a b', repeat('a', 58), repeat('a', 59)])
), answered AS (
	SELECT type, attname, v,
		pg_temp.answer(format($$SELECT syncstate.set_sync_policy('google_gmail', %L)$$, changes)) AS called,
		pg_temp.answer(format($$INSERT INTO syncstate.sync_policy SELECT (jsonb_populate_record(NULL::syncstate.sync_policy, %L::jsonb || '{"source": "google_gmail"}')).*$$, changes)) AS written
	FROM pg_attribute JOIN value ON atttypid = type::regtype
		-- of two settings that bound each other, the other one is far away
		LEFT JOIN (VALUES ('retry_base', '{"retry_cap": "36500 days"}'), ('retry_cap', '{"retry_base": "1 s"}'),
			('min_interval', '{"max_interval": "36500 days"}'), ('max_interval', '{"min_interval": "1 s"}')) AS o (attname, other) USING (attname),
		LATERAL (SELECT coalesce(other::jsonb, '{}') || jsonb_build_object(attname, v) AS changes) AS c
	WHERE attrelid = 'syncstate.sync_policy'::regclass AND attnum > 0
)
SELECT type, called, written, count(DISTINCT attname) AS settings,
	CASE WHEN called <> written THEN string_agg(format('%s = %L', attname, v), ', ') END AS different
FROM answered GROUP BY type, called, written ORDER BY type, called, written;

TRUNCATE syncstate.sync_policy, syncstate.sync_state;
