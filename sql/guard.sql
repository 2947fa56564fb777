--
-- The row trigger: rows of sync_state written directly
--
-- Clients that keep their sync state by hand write it like
-- upsert({status: 'syncing', ...}).  Whatever they write, the row is legal
-- afterwards; what they say wins over what would follow from it.
--
-- The columns that a write changed are printed, with times relative to the time
-- T of the write, as in the test of the lifecycle.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
DROP SCHEMA IF EXISTS regress_guard CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET intervalstyle = 'postgres';
\pset format unaligned
\pset tuples_only on

------------------------------------------------------------------------
-- Helpers
------------------------------------------------------------------------
CREATE SCHEMA regress_guard;

-- T: the time of every call in the grids.
CREATE FUNCTION regress_guard.t() RETURNS timestamptz
	LANGUAGE sql IMMUTABLE
	AS $$ SELECT timestamptz '2026-01-10 12:00:00+00' $$;

-- The user of every row in the grids.
CREATE FUNCTION regress_guard.u() RETURNS uuid
	LANGUAGE sql IMMUTABLE
	AS $$ SELECT uuid '00000000-0000-4000-8000-000000000001' $$;

-- What a row has in each state; what is not named is as the table's default
-- has it.  Times are relative to T.
CREATE TABLE regress_guard.states (
	n integer GENERATED ALWAYS AS IDENTITY,
	state text PRIMARY KEY,
	times jsonb,
	others jsonb
);
INSERT INTO regress_guard.states (state, times, others)
SELECT state,
	CASE WHEN state = 'missing' THEN NULL ELSE
		'{"created_at": "-30 days", "updated_at": "-1 hour"}' || times END,
	CASE WHEN state = 'missing' THEN NULL ELSE others END
FROM (VALUES
	-- no row at all
	('missing', NULL::jsonb, NULL::jsonb),
	-- a row that was just made, and never synced
	('new', '{"due_at": "-00:00:00.5"}', '{}'),
	-- between two syncs
	('idle', '{"due_at": "5 minutes", "last_sync_at": "-10 minutes"}', '{}'),
	-- the same, and somebody asked for a sync
	('requested', '{"due_at": "5 minutes", "last_sync_at": "-10 minutes", "requested_at": "-1 minute"}', '{}'),
	-- under a live lease; somebody asked for another sync meanwhile
	('running', '{"due_at": "-6 minutes", "last_sync_at": "-6 minutes", "lease_expires_at": "4 minutes", "requested_at": "-1 minute"}', '{"status": "syncing"}'),
	-- under a lease that ran out, and nobody took the row over
	('expired', '{"due_at": "-11 minutes", "last_sync_at": "-11 minutes", "lease_expires_at": "-1 minute"}', '{"status": "syncing"}'),
	-- waiting after a failure
	('failing', '{"due_at": "30 seconds", "last_sync_at": "-1 minute"}', '{"status": "error", "error_message": "boom"}'),
	-- waiting for the end of a rate limit, and somebody asked for a sync
	('limited', '{"due_at": "50 seconds", "last_sync_at": "-1 minute", "requested_at": "-1 minute"}', '{"status": "rate_limited", "error_message": "API rate limit exceeded"}'),
	-- parked
	('parked', '{"last_sync_at": "-1 hour"}', '{"status": "error", "error_message": "boom", "parked_reason": "auth"}'),
	-- parked during a run
	('paused', '{"last_sync_at": "-6 minutes", "lease_expires_at": "4 minutes"}', '{"status": "syncing", "parked_reason": "paused"}'),
	-- running, and handed out by a claim
	('claimed', '{"due_at": "-6 minutes", "last_sync_at": "-6 minutes", "lease_expires_at": "4 minutes"}', '{"status": "syncing", "lease_required": true}'),
	-- the same, going on with a full sync that began under lease 5
	('listing', '{"due_at": "-6 minutes", "last_sync_at": "-6 minutes", "lease_expires_at": "4 minutes", "updated_min": null, "token_issued_at": null}', '{"status": "syncing", "lease_required": true, "sync_token": null, "history_id": null, "full_sync_id": 5}')
) AS v(state, times, others);

-- All but new rows have a history: a cursor, a success, lease 7.
UPDATE regress_guard.states SET
	times = '{"updated_min": "-1 day", "token_issued_at": "-2 days", "last_full_sync_at": "-3 days", "last_successful_sync_at": "-1 hour"}' || times,
	others = '{"sync_token": "tok1", "history_id": "1000", "items_synced": 5, "lease": 7}' || others
WHERE state NOT IN ('missing', 'new');

-- Those that are at it, or failed last, have more.
UPDATE regress_guard.states SET
	times = '{"failing_since": "-2 hours"}' || times,
	others = '{"page_token": "p3", "progress_done": 30, "progress_total": 100, "failures": 2, "token_losses": 1}' || others
WHERE state IN ('running', 'expired', 'failing', 'limited', 'parked', 'paused', 'claimed', 'listing');

-- Puts the one row into a state; "more" changes what the state has.
CREATE FUNCTION regress_guard.set_up(state text, more jsonb DEFAULT '{}')
	RETURNS void
	LANGUAGE plpgsql
	AS $$
DECLARE
	wanted jsonb;
BEGIN
	DELETE FROM syncstate.sync_state;
	PERFORM set_config('syncstate.clock', regress_guard.t()::text, false);
	IF set_up.state = 'missing' THEN
		RETURN;
	END IF;
	SELECT '{"account": "", "resource": "", "status": "idle", "lease": 0, "items_synced": 0, "failures": 0, "token_losses": 0, "syncs_started": 0, "lease_required": false}'
		|| s.others
		|| (SELECT jsonb_object_agg(key, regress_guard.t() + value::interval) FROM jsonb_each_text(s.times))
		|| jsonb_build_object('user_id', regress_guard.u(), 'source', 'google_calendar')
		|| more
		INTO STRICT wanted
		FROM regress_guard.states AS s WHERE s.state = set_up.state;
	INSERT INTO syncstate.sync_state
		SELECT * FROM jsonb_populate_record(NULL::syncstate.sync_state, wanted);
	-- what was asked for is there, and nothing else
	PERFORM FROM syncstate.sync_state AS s
		WHERE jsonb_strip_nulls(to_jsonb(s)) =
			jsonb_strip_nulls(to_jsonb(jsonb_populate_record(NULL::syncstate.sync_state, wanted)));
	IF NOT FOUND THEN
		RAISE 'set-up of state "%" made another row', set_up.state;
	END IF;
END
$$;

-- A time of a row, as a reader wants to see it.
CREATE FUNCTION regress_guard.show_time(col text, x timestamptz, r jsonb)
	RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	t timestamptz := regress_guard.t();
	d interval := x - t;
	start timestamptz := coalesce((r->>'last_sync_at')::timestamptz, t);
	w interval;
BEGIN
	IF col IN ('created_at', 'updated_at') AND x = now() THEN
		RETURN 'now()';
	ELSIF d = '0' THEN
		RETURN 'T';
	ELSIF col = 'due_at' AND d < '0' AND d > '-1 second' THEN
		RETURN '[T - 1 second, T]';
	ELSIF col = 'due_at' AND r->>'status' = 'error' AND d >= '15 seconds' AND d < '30 minutes' THEN
		RETURN format('T + backoff(%s)', floor(log(2, extract(epoch FROM d) / 15)) + 1);
	ELSIF col = 'due_at' AND r->>'status' = 'error' AND d >= '30 minutes' AND d < '1 hour' THEN
		RETURN 'T + longest backoff';
	ELSIF col = 'due_at' AND r->>'status' = 'idle'
		AND x >= start + interval '15 minutes' * 0.9 AND x <= start + interval '15 minutes' * 0.95 THEN
		RETURN CASE WHEN r->>'last_sync_at' IS NULL THEN 'T' ELSE 'last start' END || ' + interval less jitter';
	ELSIF col = 'due_at' AND r->>'status' = 'rate_limited' THEN
		FOREACH w IN ARRAY '{1 second, 10 seconds, 60 seconds, 1 hour, 30 days}'::interval[] LOOP
			IF d > w AND d <= w * 1.1 THEN
				RETURN format('T + %s + spread', w);
			END IF;
		END LOOP;
	END IF;
	RETURN format('T %s %s', CASE WHEN d < '0' THEN '-' ELSE '+' END,
				  CASE WHEN d < '0' THEN -d ELSE d END);
END
$$;

-- The columns that differ between two versions of the row.
CREATE FUNCTION regress_guard.diff(before jsonb, after jsonb) RETURNS text
	LANGUAGE sql
	AS $$
	SELECT string_agg(format('%s: %s', a.attname,
							 CASE WHEN after->>a.attname IS NULL THEN 'null'
								  WHEN a.atttypid = 'timestamptz'::regtype
								  THEN regress_guard.show_time(a.attname, (after->>a.attname)::timestamptz, after)
								  ELSE after->>a.attname END),
					  ', ' ORDER BY a.attnum)
	FROM pg_attribute AS a
	WHERE a.attrelid = 'syncstate.sync_state'::regclass
		AND a.attnum > 0 AND NOT a.attisdropped
		AND (before->>a.attname) IS DISTINCT FROM (after->>a.attname)
		AND (a.attname <> 'updated_at' OR (after->>'updated_at')::timestamptz <> regress_guard.t())
	$$;

-- A moment at which a test stands, relative to T.
CREATE FUNCTION regress_guard.at(since_t interval) RETURNS void
	LANGUAGE sql
	AS $$ SELECT set_config('syncstate.clock', (regress_guard.t() + since_t)::text, false) $$;

-- Puts the row into a state, runs a statement, and tells what became of the
-- row.  updated_at is told only where it is not T.
CREATE FUNCTION regress_guard.effect(state text, statement text, more jsonb DEFAULT '{}') RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	before jsonb;
	after jsonb;
	detail text;
BEGIN
	PERFORM regress_guard.set_up(state, more);
	SELECT to_jsonb(s) INTO before FROM syncstate.sync_state AS s;
	BEGIN
		EXECUTE statement;
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
		RETURN SQLSTATE || ' ' || CASE WHEN SQLSTATE = '23514' THEN detail ELSE SQLERRM END;
	END;
	SELECT to_jsonb(s) INTO after FROM syncstate.sync_state AS s;
	IF before IS NULL THEN
		before := jsonb_build_object('user_id', regress_guard.u(), 'source', 'google_calendar',
									 'account', '', 'resource', '', 'status', 'idle', 'lease', 0,
									 'items_synced', 0, 'failures', 0, 'token_losses', 0,
									 'syncs_started', 0, 'lease_required', false);
	END IF;
	RETURN coalesce(regress_guard.diff(before, after), 'only updated_at');
END
$$;

-- The effect of UPDATE ... SET in each state.
CREATE FUNCTION regress_guard.updated(changes text) RETURNS SETOF text
	LANGUAGE sql
	AS $$
	SELECT string_agg(state, ', ' ORDER BY n) || E':\n    ' || effect
	FROM (SELECT s.n, s.state, regress_guard.effect(s.state, 'UPDATE syncstate.sync_state SET ' || changes) AS effect
		  FROM regress_guard.states AS s WHERE s.state <> 'missing') AS e
	GROUP BY effect
	ORDER BY min(n)
	$$;

-- The effect of INSERT of a row with some columns.
CREATE FUNCTION regress_guard.inserted(columns text, VARIADIC lists text[]) RETURNS SETOF text
	LANGUAGE sql
	AS $$
	SELECT list || E':\n    ' || regress_guard.effect('missing',
		format('INSERT INTO syncstate.sync_state (user_id, source%s) VALUES (%L, %L%s)',
			   ', ' || columns, regress_guard.u(), 'google_calendar', ', ' || list))
	FROM unnest(lists) AS list
	$$;

-- The effect of upsert() with some columns, as PostgREST writes it: the key
-- columns are among those that are set.
CREATE FUNCTION regress_guard.upserted(columns text[], list text) RETURNS SETOF text
	LANGUAGE sql
	AS $$
	SELECT string_agg(state, ', ' ORDER BY n) || E':\n    ' || effect
	FROM (SELECT s.n, s.state, regress_guard.effect(s.state,
			  format('INSERT INTO syncstate.sync_state (user_id, source, %s) VALUES (%L, %L, %s)'
					 ' ON CONFLICT (user_id, account, source, resource) DO UPDATE SET user_id = EXCLUDED.user_id, source = EXCLUDED.source, %s',
					 array_to_string(columns, ', '), regress_guard.u(), 'google_calendar', list,
					 (SELECT string_agg(c || ' = EXCLUDED.' || c, ', ') FROM unnest(columns) AS c))) AS effect
		  FROM regress_guard.states AS s) AS e
	GROUP BY effect
	ORDER BY min(n)
	$$;

------------------------------------------------------------------------
-- INSERT: what is missing is filled in
------------------------------------------------------------------------
-- nothing but the key
SELECT regress_guard.effect('missing', $$INSERT INTO syncstate.sync_state (user_id, source)
	VALUES (regress_guard.u(), 'google_calendar')$$);
-- a start has a lease
SELECT regress_guard.inserted('status', $$'idle'$$, $$'syncing'$$, $$'error'$$, $$'rate_limited'$$);
SELECT regress_guard.inserted('status, lease', $$'syncing', 5$$, $$'idle', 5$$);
SELECT regress_guard.inserted('status, lease_expires_at', $$'syncing', '2026-01-10 12:01+00'$$);
SELECT regress_guard.inserted('status, last_sync_at', $$'syncing', '2026-01-10 11:59+00'$$);
-- a cursor has an age; an empty one is none; a history id has no leading zeros
SELECT regress_guard.inserted('sync_token', $$'tok1'$$, $$''$$);
SELECT regress_guard.inserted('history_id', $$'1000'$$, $$'001000'$$, $$'0'$$, $$'000'$$, $$''$$);
SELECT regress_guard.inserted('updated_min', $$'2026-01-09 12:00+00'$$);
SELECT regress_guard.inserted('sync_token, token_issued_at', $$'tok1', '2026-01-01 12:00+00'$$);
-- a row is due, or parked with a reason
SELECT regress_guard.inserted('due_at', $$'2026-01-10 13:00+00'$$, $$NULL$$);
SELECT regress_guard.inserted('parked_reason', $$'paused'$$, $$'auth'$$, $$NULL$$);
-- failures began some time
SELECT regress_guard.inserted('failures', '0', '3');
SELECT regress_guard.inserted('failures, last_successful_sync_at', $$3, '2026-01-10 10:00+00'$$);
SELECT regress_guard.inserted('failures, failing_since', $$3, '2026-01-10 11:00+00'$$);

-- What is there stays: every row that was dumped comes back as it was, also
-- one whose time has passed, and at another time.
CREATE TABLE regress_guard.dumped (LIKE syncstate.sync_state);
SELECT count(*)
FROM regress_guard.states AS s,
	LATERAL regress_guard.effect(s.state, 'INSERT INTO regress_guard.dumped SELECT * FROM syncstate.sync_state') AS e;
UPDATE regress_guard.dumped SET user_id = md5(ctid::text)::uuid;
SET syncstate.clock = '2031-01-01 00:00:00+00';
DELETE FROM syncstate.sync_state;
INSERT INTO syncstate.sync_state SELECT * FROM regress_guard.dumped;
SELECT count(*), count(*) FILTER (WHERE s = d)
FROM syncstate.sync_state AS s JOIN regress_guard.dumped AS d USING (user_id, source, resource);

------------------------------------------------------------------------
-- UPDATE of the status: a start, and each end
------------------------------------------------------------------------
SELECT regress_guard.updated($$status = 'syncing'$$);
SELECT regress_guard.updated($$status = 'idle'$$);
SELECT regress_guard.updated($$status = 'error', error_message = 'broken'$$);
SELECT regress_guard.updated($$status = 'rate_limited'$$);
-- explicit values win
SELECT regress_guard.effect('requested', 'UPDATE syncstate.sync_state SET ' || changes)
FROM unnest(ARRAY[
	$$status = 'syncing', lease_expires_at = '2026-01-10 12:01+00'$$,
	$$status = 'syncing', lease = 20$$,
	$$status = 'syncing', due_at = '2026-01-10 13:00+00'$$,
	$$status = 'syncing', last_sync_at = '2026-01-10 11:59+00'$$,
	$$status = 'syncing', error_message = 'hm'$$]) AS changes;
SELECT regress_guard.effect('running', 'UPDATE syncstate.sync_state SET ' || changes)
FROM unnest(ARRAY[
	$$status = 'idle', due_at = '2026-01-10 13:00+00'$$,
	$$status = 'idle', last_sync_at = '2026-01-10 12:00+00'$$,
	$$status = 'error', failures = 5$$,
	$$status = 'error', failures = 0, due_at = '2026-01-10 13:00+00'$$,
	$$status = 'rate_limited', due_at = '2026-01-10 13:00+00'$$,
	$$status = 'idle', lease_expires_at = '2026-01-10 13:00+00'$$,
	$$status = 'error', parked_reason = 'auth'$$]) AS changes;
-- a heartbeat, and one that lets the row go
SELECT regress_guard.effect('running', $$UPDATE syncstate.sync_state SET lease_expires_at = '2026-01-10 12:30+00'$$);
SELECT regress_guard.effect('running', $$UPDATE syncstate.sync_state SET lease_expires_at = '2026-01-10 11:00+00'$$);
SELECT regress_guard.effect('running', $$UPDATE syncstate.sync_state SET lease_expires_at = NULL$$);
-- nobody has a lease but while syncing
SELECT regress_guard.effect('idle', $$UPDATE syncstate.sync_state SET lease_expires_at = '2026-01-10 12:30+00'$$);
-- the fencing number never goes down, and going up takes the row over
SELECT regress_guard.updated($$lease = 3$$);
SELECT regress_guard.effect(s.state, $$UPDATE syncstate.sync_state SET lease = 8$$)
FROM regress_guard.states AS s WHERE s.state IN ('idle', 'running') ORDER BY s.n;

------------------------------------------------------------------------
-- UPDATE of something else: no start, no end
------------------------------------------------------------------------
SELECT regress_guard.updated($$sync_interval = '1 hour'$$);
SELECT regress_guard.updated($$items_synced = 6$$);
SELECT regress_guard.updated($$updated_at = '2000-01-01 00:00+00'$$);
SELECT regress_guard.updated($$user_id = user_id, source = source, resource = resource$$);
-- somebody asks for a sync: now, whatever time they say
SELECT regress_guard.updated($$requested_at = '2000-01-01 00:00+00'$$);
SELECT regress_guard.updated($$requested_at = NULL$$);

------------------------------------------------------------------------
-- Due, or parked with a reason
------------------------------------------------------------------------
SELECT regress_guard.updated($$due_at = NULL$$);
SELECT regress_guard.updated($$due_at = '2026-01-10 13:00+00'$$);
SELECT regress_guard.updated($$parked_reason = 'auth'$$);
SELECT regress_guard.updated($$parked_reason = NULL$$);
SELECT regress_guard.updated($$due_at = NULL, parked_reason = 'failures'$$);
SELECT regress_guard.updated($$due_at = '2026-01-10 13:00+00', parked_reason = NULL$$);

------------------------------------------------------------------------
-- Cursors
------------------------------------------------------------------------
SELECT regress_guard.updated($$sync_token = 'tok2'$$);
SELECT regress_guard.updated($$sync_token = 'tok1', history_id = '1000', updated_min = '2026-01-09 12:00+00'$$);
SELECT regress_guard.effect('idle', 'UPDATE syncstate.sync_state SET ' || changes)
FROM unnest(ARRAY[$$history_id = '999'$$, $$history_id = '0999'$$, $$history_id = '01000'$$, $$history_id = ''$$, $$sync_token = ''$$,
	$$sync_token = 'tok2', token_issued_at = '2026-01-01 12:00+00'$$, $$updated_min = '2020-01-01 00:00+00'$$]) AS changes;
-- a cleared cursor: the next sync begins at the first page, and a run in
-- flight, which would bring the old cursor back, is revoked
SELECT regress_guard.updated($$sync_token = NULL, history_id = NULL, updated_min = NULL$$);
SELECT regress_guard.updated($$sync_token = '', history_id = '', updated_min = NULL$$);

------------------------------------------------------------------------
-- Failures
------------------------------------------------------------------------
SELECT regress_guard.updated($$failures = 0$$);
SELECT regress_guard.updated($$failures = 5$$);
SELECT regress_guard.updated($$failing_since = NULL$$);
SELECT regress_guard.updated($$failures = 5, failing_since = '2026-01-01 00:00+00'$$);

------------------------------------------------------------------------
-- upsert()
------------------------------------------------------------------------
SELECT regress_guard.upserted('{status}', $$'syncing'$$);
SELECT regress_guard.upserted('{status,sync_token,last_successful_sync_at}', $$'idle', 'tok2', '2026-01-10 12:00+00'$$);
SELECT regress_guard.upserted('{status,error_message}', $$'error', 'broken'$$);
SELECT regress_guard.upserted('{sync_token,history_id,updated_min}', $$NULL, NULL, NULL$$);
-- of many rows in one statement
INSERT INTO syncstate.sync_state (user_id, source, status)
SELECT md5(i::text)::uuid, 'google_tasks', 'syncing' FROM generate_series(1, 100) AS i;
INSERT INTO syncstate.sync_state (user_id, source, status)
SELECT md5(i::text)::uuid, 'google_tasks', 'idle' FROM generate_series(1, 150) AS i
ON CONFLICT (user_id, account, source, resource) DO UPDATE SET status = EXCLUDED.status;
SELECT lease, last_sync_at IS NULL, count(*), count(DISTINCT due_at) FROM syncstate.sync_state
WHERE source = 'google_tasks' GROUP BY 1, 2 ORDER BY 1;

------------------------------------------------------------------------
-- The whole life by hand is the same as by the functions
------------------------------------------------------------------------
-- update_sync_state() is a direct write: the same changes, the same row
CREATE FUNCTION regress_guard.same(state text, changes jsonb) RETURNS boolean
	LANGUAGE plpgsql
	AS $$
DECLARE
	direct text;
	called text;
BEGIN
	direct := regress_guard.effect(state, (SELECT 'UPDATE syncstate.sync_state SET ' || string_agg(format('%I = %L', key, value), ', ')
		FROM jsonb_each_text(changes)));
	called := regress_guard.effect(state, format('SELECT syncstate.update_sync_state(%L, %L, %L)', regress_guard.u(), 'google_calendar', changes));
	IF direct IS DISTINCT FROM called THEN
		RAISE NOTICE '% %: % / %', state, changes, direct, called;
	END IF;
	RETURN direct IS NOT DISTINCT FROM called;
END
$$;
SELECT changes, bool_and(regress_guard.same(s.state, changes))
FROM unnest(ARRAY['{"status": "syncing"}', '{"status": "idle"}', '{"status": "error"}', '{"status": "rate_limited"}',
	'{"status": "syncing", "due_at": "2026-01-10T13:00:00Z"}', '{"due_at": null}', '{"due_at": "2026-01-10T13:00:00Z"}',
	'{"parked_reason": "auth"}', '{"parked_reason": null}', '{"sync_token": "tok2"}', '{"sync_token": "", "history_id": "", "updated_min": null}',
	'{"history_id": "0042"}', '{"requested_at": "2000-01-01T00:00:00Z"}', '{"failures": 5}', '{"failures": 0}',
	'{"lease_expires_at": "2026-01-10T12:30:00Z"}', '{"lease_expires_at": null}', '{"page_token": "p4", "progress_done": 1}']::jsonb[])
	WITH ORDINALITY AS c(changes, n), regress_guard.states AS s
WHERE s.state <> 'missing'
GROUP BY changes, c.n ORDER BY c.n;
-- a lease that was had by hand is one: the functions take it, and it fences
SELECT regress_guard.set_up('idle');
UPDATE syncstate.sync_state SET status = 'syncing' RETURNING lease;
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar');
SELECT regress_guard.at('11 minutes');
SELECT lease, failures FROM syncstate.claim_due_syncs('google_calendar');
SELECT syncstate.mark_sync_completed(regress_guard.u(), 'google_calendar', lease => 8);	-- ERROR
SELECT status FROM syncstate.mark_sync_completed(regress_guard.u(), 'google_calendar', lease => 9);

------------------------------------------------------------------------
-- What is refused
------------------------------------------------------------------------
-- the key never changes
SELECT changes || ': ' || regress_guard.effect('idle', 'UPDATE syncstate.sync_state SET ' || changes)
FROM unnest(ARRAY[$$user_id = '00000000-0000-4000-8000-000000000002'$$, $$source = 'google_tasks'$$, $$resource = 'a'$$]) AS changes;
-- nulls where there must be a value
SELECT column_name || ': ' || regress_guard.effect('idle', format('UPDATE syncstate.sync_state SET %I = NULL', column_name))
FROM unnest('{user_id,source,resource,status,lease,items_synced,failures,token_losses,created_at,updated_at}'::text[]) AS column_name;
-- what no sync state is
SELECT changes || ': ' || regress_guard.effect('idle', 'UPDATE syncstate.sync_state SET ' || changes)
FROM unnest(ARRAY[$$parked_reason = 'bored'$$, $$sync_interval = '0'$$, $$sync_interval = '-1 hour'$$, $$sync_interval = '1 month'$$,
	$$sync_interval = '36501 days'$$, $$items_synced = -1$$, $$progress_done = -1$$, $$progress_total = -1$$, $$failures = -1$$,
	$$token_losses = -1$$, $$lease = 9223372036854775807$$, $$history_id = 'x'$$, $$history_id = '-1'$$, $$history_id = '18446744073709551616'$$,
	$$history_id = '100000000000000000000'$$, $$history_id = E'1\n'$$, $$sync_token = repeat('x', 65537)$$, $$page_token = repeat('x', 65537)$$,
	$$error_message = repeat('x', 8193)$$]) AS changes;
SELECT regress_guard.inserted('resource', $$repeat('x', 1025)$$, $$repeat(E'\xe2\x82\xac', 342)$$);
SELECT regress_guard.inserted('lease', '-1', '9223372036854775807');
SELECT regress_guard.inserted('due_at, parked_reason', $$'2026-01-10 13:00+00', 'auth'$$);
SELECT regress_guard.inserted('parked_reason', $$'bored'$$);
-- infinite times
SELECT column_name, value, split_part(regress_guard.effect('idle', format('UPDATE syncstate.sync_state SET %I = %L', column_name, value)), ' ', 1),
	split_part((SELECT * FROM regress_guard.inserted(column_name, quote_literal(value))), '    ', 2) ~ '^(23514|22023)'
FROM unnest('{updated_min,token_issued_at,last_full_sync_at,due_at,requested_at,lease_expires_at,last_sync_at,last_successful_sync_at,failing_since}'::text[]) AS column_name,
	unnest('{infinity,-infinity}'::text[]) AS value;
SELECT regress_guard.effect('running', $$UPDATE syncstate.sync_state SET lease_expires_at = 'infinity'$$);
-- and times that no dump could read back, or no sum of which is a time
SELECT regress_guard.effect('idle', format('UPDATE syncstate.sync_state SET due_at = %L', value))
FROM unnest('{10000-01-01 00:00+00,0001-12-31 23:59:59.999999+00 BC}'::text[]) AS value;

-- A client whose clock is far off: what it wrote as the start of the sync does
-- not make the next one come late.
CREATE FUNCTION regress_guard.next_wait(last_sync_at timestamptz, statement text) RETURNS interval
	LANGUAGE plpgsql
	AS $$
BEGIN
	PERFORM regress_guard.effect('running', statement, jsonb_build_object('last_sync_at', last_sync_at));
	RETURN due_at - regress_guard.t() FROM syncstate.sync_state;
END
$$;
SELECT last, how, regress_guard.next_wait(last, statement) BETWEEN '90 seconds' AND '15 minutes'
FROM unnest('{9999-12-31 23:59+00,2026-01-11 12:00+00,2000-01-01 00:00+00,0001-01-01 00:00+00}'::timestamptz[]) AS last,
	(VALUES ('function', $$SELECT syncstate.mark_sync_completed(regress_guard.u(), 'google_calendar', lease => 7)$$),
		('by hand', $$UPDATE syncstate.sync_state SET status = 'idle'$$)) AS w(how, statement)
ORDER BY last, how;

------------------------------------------------------------------------
-- One state machine
------------------------------------------------------------------------
-- A write is the call that it amounts to: the same row becomes the same.
CREATE FUNCTION regress_guard.amounts_to(changes text, call text, VARIADIC states text[]) RETURNS SETOF text
	LANGUAGE plpgsql
	AS $$
DECLARE
	s text;
	direct text;
	called text;
BEGIN
	FOREACH s IN ARRAY states LOOP
		direct := regress_guard.effect(s, 'UPDATE syncstate.sync_state SET ' || changes);
		called := regress_guard.effect(s, format('SELECT syncstate.' || call, format('%L, %L', regress_guard.u(), 'google_calendar')));
		RETURN NEXT s || CASE WHEN direct = called THEN ': the same' ELSE E':\n    ' || direct || E'\n    ' || called END;
	END LOOP;
END
$$;
SELECT w.changes, string_agg(a.told, ', ' ORDER BY a.n)
FROM (VALUES
	(1, $$status = 'syncing'$$, 'mark_sync_started(%s)', '{new,idle,requested,expired,failing,limited,parked}'::text[]),
	(2, $$status = 'idle'$$, 'mark_sync_completed(%s)', '{running,expired,paused}'),
	(3, $$status = 'idle', items_synced = 7, sync_token = 'tok2', history_id = '2000'$$, $$mark_sync_completed(%s, 7, 'tok2', '2000')$$,
		'{running,expired,paused}'),
	(4, $$status = 'error', error_message = 'broken'$$, $$mark_sync_failed(%s, 'broken')$$,
		'{new,idle,requested,running,expired,limited,paused}'),
	(5, $$status = 'rate_limited'$$, 'mark_rate_limited(%s, scope => ''row'')',
		'{new,idle,requested,running,expired,failing,limited,parked,paused}'),
	(6, $$sync_token = NULL, history_id = NULL, updated_min = NULL$$, 'clear_sync_token(%s)',
		'{idle,requested,running,expired,failing,limited,parked,paused}'),
	(7, $$due_at = NULL$$, 'pause_sync(%s)', '{new,idle,requested,running,expired,failing,limited}'),
	(8, $$parked_reason = 'paused'$$, 'pause_sync(%s)', '{new,idle,requested,running,expired,failing,limited}'),
	(9, $$parked_reason = NULL$$, 'resume_sync(%s)', '{parked,paused}'),
	(10, $$due_at = '2026-01-10 12:00+00'$$, 'resume_sync(%s)', '{parked,paused}'),
	(11, $$status = 'idle'$$, 'resume_sync(%s)', '{failing}')) AS w(n, changes, call, states),
	LATERAL regress_guard.amounts_to(w.changes, w.call, VARIADIC w.states) WITH ORDINALITY AS a(told, n)
GROUP BY w.n, w.changes
ORDER BY w.n;
-- A run of errors parks the row at the same error as by the call: neither limit alone is enough.
SELECT max_failures, park_after FROM syncstate.set_sync_policy('google_calendar', '{"max_failures": 3}');
CREATE FUNCTION regress_guard.failed(statement text, VARIADIC times interval[]) RETURNS SETOF text
	LANGUAGE plpgsql
	AS $$
BEGIN
	PERFORM regress_guard.set_up('new');
	FOR i IN 1 .. array_length(times, 1) LOOP
		PERFORM regress_guard.at(times[i]);
		PERFORM syncstate.mark_sync_started(regress_guard.u(), 'google_calendar');
		EXECUTE statement;
		RETURN QUERY SELECT format('T + %s: %s %s', times[i], s.failures, coalesce(s.parked_reason, 'due')) FROM syncstate.sync_state AS s;
	END LOOP;
END
$$;
SELECT call.told, direct.told
FROM (VALUES (1, '{0,1 day,2 days,6 days 23:59:59,7 days}'::interval[]), (2, '{0,8 days,9 days}')) AS t(n, times),
	LATERAL (SELECT string_agg(f, ', ') FROM regress_guard.failed(
		$$SELECT syncstate.mark_sync_failed(regress_guard.u(), 'google_calendar', 'broken')$$, VARIADIC times) AS f) AS call(told),
	LATERAL (SELECT string_agg(f, ', ') FROM regress_guard.failed(
		$$UPDATE syncstate.sync_state SET status = 'error', error_message = 'broken'$$, VARIADIC times) AS f) AS direct(told)
ORDER BY t.n;
SELECT max_failures FROM syncstate.set_sync_policy('google_calendar', '{"max_failures": null}');

-- Successes by hand end a run of failures: a failure in January and one in
-- February, with successes between them, do not park a row whose lease runs out
-- in March.
SELECT max_failures FROM syncstate.set_sync_policy('google_calendar', '{"max_failures": 3}');
SELECT regress_guard.set_up('idle');
CREATE FUNCTION regress_guard.month(error_at timestamptz) RETURNS integer
	LANGUAGE plpgsql
	AS $$
DECLARE
	failed integer;
BEGIN
	PERFORM set_config('syncstate.clock', error_at::text, false);
	UPDATE syncstate.sync_state SET status = 'syncing';
	UPDATE syncstate.sync_state SET status = 'error', error_message = 'broken' RETURNING failures INTO failed;
	FOR i IN 1..8 LOOP
		PERFORM set_config('syncstate.clock', (error_at + i * interval '1 day')::text, false);
		UPDATE syncstate.sync_state SET status = 'syncing';
		UPDATE syncstate.sync_state SET status = 'idle', sync_token = 'token ' || i;
	END LOOP;
	RETURN failed;
END
$$;
SELECT regress_guard.month('2026-01-11 00:00+00') AS january, regress_guard.month('2026-02-01 00:00+00') AS february;
SELECT failures, failing_since, last_successful_sync_at FROM syncstate.sync_state;
SET syncstate.clock = '2026-03-01 00:00+00';
UPDATE syncstate.sync_state SET status = 'syncing';
SET syncstate.clock = '2026-03-01 01:00+00';
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar');
SELECT status, failures, parked_reason FROM syncstate.sync_state;

-- Errors by hand park a row when the call would: both limits are reached.
SELECT regress_guard.effect('idle', $$UPDATE syncstate.sync_state SET status = 'error'$$, '{"failures": 2, "failing_since": "2026-01-03 12:00:00+00"}');
SELECT regress_guard.effect('idle', $$SELECT syncstate.mark_sync_failed(regress_guard.u(), 'google_calendar', 'broken')$$, '{"failures": 2, "failing_since": "2026-01-03 12:00:00+00"}');
SELECT parked_reason FROM syncstate.set_sync_policy('google_calendar', '{"max_failures": null}') AS p, syncstate.sync_state;
-- A limit that is in force is not cut short.
SELECT regress_guard.effect('limited', $$UPDATE syncstate.sync_state SET status = 'rate_limited'$$, '{"due_at": "2026-01-10 15:00:00+00"}');
-- A write that ends a run and brings the row back waits as the end does.
SELECT regress_guard.effect('paused', 'UPDATE syncstate.sync_state SET ' || changes)
FROM unnest(ARRAY[$$status = 'idle', sync_token = 't', parked_reason = NULL$$, $$status = 'rate_limited', parked_reason = NULL$$,
	$$status = 'error', error_message = 'e', parked_reason = NULL$$, $$status = 'error', error_message = 'e', due_at = '2026-01-10 18:00+00'$$]) AS changes;
-- A cursor that is given again is as good as new.
SELECT regress_guard.effect('running', $$UPDATE syncstate.sync_state SET status = 'idle', sync_token = sync_token$$);
-- A null where none may be tells nothing of the row.
DO $$
DECLARE
	detail text;
BEGIN
	UPDATE syncstate.sync_state SET lease = NULL;
EXCEPTION WHEN not_null_violation THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RAISE NOTICE '% %', SQLERRM, quote_literal(detail);
END
$$;

------------------------------------------------------------------------
-- Columns and triggers of others
------------------------------------------------------------------------
BEGIN;
ALTER TABLE syncstate.sync_state ADD COLUMN note text;
SELECT regress_guard.set_up('new');
UPDATE syncstate.sync_state SET note = 'mine';
SELECT status FROM syncstate.mark_sync_started(regress_guard.u(), 'google_calendar');
UPDATE syncstate.sync_state SET status = 'idle';
SELECT note, status, lease FROM syncstate.sync_state;
ROLLBACK;

SET client_min_messages = warning;
RESET syncstate.clock;
DROP SCHEMA regress_guard CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
