--
-- The table of transitions: the effect of each call on every column of a row
--
-- For each call and each state that a row may be in before it, the columns
-- that the call changed are printed, with times relative to the time T of the
-- call.  What is random or the row's own (backoff, jitter, spread) is printed
-- as the range that it lies in.  States with the same outcome share a line.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
DROP SCHEMA IF EXISTS regress_lifecycle CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET intervalstyle = 'postgres';
\pset format unaligned
\pset tuples_only on
\pset fieldsep ' | '

------------------------------------------------------------------------
-- Helpers
------------------------------------------------------------------------
CREATE SCHEMA regress_lifecycle;

-- T: the time of every call in the grids.
CREATE FUNCTION regress_lifecycle.t() RETURNS timestamptz
	LANGUAGE sql IMMUTABLE
	AS $$ SELECT timestamptz '2026-01-10 12:00:00+00' $$;

-- The user of every row in the grids.
CREATE FUNCTION regress_lifecycle.u() RETURNS uuid
	LANGUAGE sql IMMUTABLE
	AS $$ SELECT uuid '00000000-0000-4000-8000-000000000001' $$;

-- What a row has in each state; what is not named is as the table's default
-- has it.  Times are relative to T.
CREATE TABLE regress_lifecycle.states (
	n integer GENERATED ALWAYS AS IDENTITY,
	state text PRIMARY KEY,
	times jsonb,
	others jsonb
);
INSERT INTO regress_lifecycle.states (state, times, others)
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
UPDATE regress_lifecycle.states SET
	times = '{"updated_min": "-1 day", "token_issued_at": "-2 days", "last_full_sync_at": "-3 days", "last_successful_sync_at": "-1 hour"}' || times,
	others = '{"sync_token": "tok1", "history_id": "1000", "items_synced": 5, "lease": 7}' || others
WHERE state NOT IN ('missing', 'new');

-- Those that are at it, or failed last, have more.
UPDATE regress_lifecycle.states SET
	times = '{"failing_since": "-2 hours"}' || times,
	others = '{"page_token": "p3", "progress_done": 30, "progress_total": 100, "failures": 2, "token_losses": 1}' || others
WHERE state IN ('running', 'expired', 'failing', 'limited', 'parked', 'paused', 'claimed', 'listing');

-- Puts the one row into a state; "more" changes what the state has.
CREATE FUNCTION regress_lifecycle.set_up(state text, more jsonb DEFAULT '{}',
										 source syncstate.sync_source DEFAULT 'google_calendar')
	RETURNS void
	LANGUAGE plpgsql
	AS $$
DECLARE
	wanted jsonb;
BEGIN
	DELETE FROM syncstate.sync_state;
	PERFORM set_config('syncstate.clock', regress_lifecycle.t()::text, false);
	IF set_up.state = 'missing' THEN
		RETURN;
	END IF;
	SELECT '{"account": "", "resource": "", "status": "idle", "lease": 0, "items_synced": 0, "failures": 0, "token_losses": 0, "syncs_started": 0, "lease_required": false}'
		|| s.others
		|| (SELECT jsonb_object_agg(key, regress_lifecycle.t() + value::interval) FROM jsonb_each_text(s.times))
		|| jsonb_build_object('user_id', regress_lifecycle.u(), 'source', set_up.source)
		|| more
		INTO STRICT wanted
		FROM regress_lifecycle.states AS s WHERE s.state = set_up.state;
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
CREATE FUNCTION regress_lifecycle.show_time(col text, x timestamptz, r jsonb)
	RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	t timestamptz := regress_lifecycle.t();
	d interval := x - t;
	start timestamptz := coalesce((r->>'last_sync_at')::timestamptz, t);
	w interval;
BEGIN
	IF col = 'created_at' AND x = now() THEN
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
CREATE FUNCTION regress_lifecycle.diff(before jsonb, after jsonb) RETURNS text
	LANGUAGE sql
	AS $$
	SELECT string_agg(format('%s: %s', a.attname,
							 CASE WHEN after->>a.attname IS NULL THEN 'null'
								  WHEN a.atttypid = 'timestamptz'::regtype
								  THEN regress_lifecycle.show_time(a.attname, (after->>a.attname)::timestamptz, after)
								  WHEN a.atttypid = 'float8'::regtype
								  THEN round((after->>a.attname)::numeric, 3)::text
								  ELSE after->>a.attname END),
					  ', ' ORDER BY a.attnum)
	FROM pg_attribute AS a
	WHERE a.attrelid = 'syncstate.sync_state'::regclass
		AND a.attnum > 0 AND NOT a.attisdropped
		AND (before->>a.attname) IS DISTINCT FROM (after->>a.attname)
		AND (a.attname <> 'updated_at' OR (after->>'updated_at')::timestamptz <> regress_lifecycle.t())
	$$;

-- Puts the row into a state, makes a call ($1 is the lease), and tells what
-- became of the row.  updated_at is told only where it is not T.
CREATE FUNCTION regress_lifecycle.effect(state text, call text,
										 lease bigint DEFAULT NULL,
										 more jsonb DEFAULT '{}',
										 source syncstate.sync_source DEFAULT 'google_calendar')
	RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	before jsonb;
	before_tid tid;
	after jsonb;
	after_tid tid;
	result jsonb;
	failed text;
	told text;
BEGIN
	PERFORM regress_lifecycle.set_up(state, more, source);
	SELECT to_jsonb(s), s.ctid INTO before, before_tid FROM syncstate.sync_state AS s;
	BEGIN
		EXECUTE format('SELECT to_jsonb(r) FROM syncstate.%s AS r',
					   regexp_replace(regexp_replace(call, '\mU\M', quote_literal(regress_lifecycle.u())),
									  '\mS\M', quote_literal(source)))
			INTO result USING lease;
	EXCEPTION WHEN SQLSTATE 'PT404' OR SQLSTATE 'PT409' THEN
		failed := SQLSTATE;
	END;
	SELECT to_jsonb(s), s.ctid INTO after, after_tid FROM syncstate.sync_state AS s;

	IF failed IS NOT NULL THEN
		RETURN failed || CASE WHEN before IS DISTINCT FROM after THEN ' BUT THE ROW CHANGED' ELSE '' END;
	END IF;
	told := CASE WHEN jsonb_typeof(result) = 'boolean' THEN format('returns %s; ', result)
				 WHEN result IS NOT NULL AND result <> after THEN 'RETURNS ANOTHER ROW; '
				 ELSE '' END;
	IF after IS NULL THEN
		RETURN told || 'no row';
	ELSIF before_tid = after_tid THEN
		RETURN told || 'nothing written';
	END IF;
	IF before IS NULL THEN
		before := jsonb_build_object('user_id', regress_lifecycle.u(), 'source', source,
									 'account', '', 'resource', '', 'status', 'idle', 'lease', 0,
									 'items_synced', 0, 'failures', 0, 'token_losses', 0,
									 'syncs_started', 0, 'lease_required', false);
	END IF;
	RETURN told || coalesce(regress_lifecycle.diff(before, after), 'only updated_at');
END
$$;

-- The effect of a call in each state: without a lease, with the row's lease
-- (7, 1 for a row that is made), and with the one before it.
CREATE FUNCTION regress_lifecycle.grid(call text, leases text[] DEFAULT '{none}')
	RETURNS SETOF text
	LANGUAGE sql
	AS $$
	SELECT string_agg(state, ', ' ORDER BY n)
		|| CASE lease WHEN 'none' THEN '' WHEN 'held' THEN ' (its lease)' ELSE ' (a stale lease)' END
		|| E':\n    ' || effect
	FROM (SELECT s.n, s.state, l.lease, l.ord,
			  regress_lifecycle.effect(s.state, call,
									   CASE l.lease WHEN 'held' THEN 7 WHEN 'stale' THEN 6 END) AS effect
		  FROM regress_lifecycle.states AS s, unnest(leases) WITH ORDINALITY AS l(lease, ord)) AS e
	GROUP BY lease, ord, effect
	ORDER BY ord, min(n)
	$$;

-- A moment at which a test stands, relative to T.
CREATE FUNCTION regress_lifecycle.at(since_t interval) RETURNS void
	LANGUAGE sql
	AS $$ SELECT set_config('syncstate.clock', (regress_lifecycle.t() + since_t)::text, false) $$;

-- What a call says, where only that matters.
CREATE FUNCTION regress_lifecycle.lost(call text) RETURNS text
	LANGUAGE plpgsql
	AS $$
BEGIN
	EXECUTE format('SELECT syncstate.%s', regexp_replace(call, '\mU\M', quote_literal(regress_lifecycle.u())));
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

-- The states, so that the effects can be read.
SELECT state || E':\n    ' || coalesce((
		SELECT string_agg(format('%s: %s', key, value), ', ' ORDER BY key)
		FROM (SELECT key, 'T' || CASE WHEN value::interval < '0' THEN ' - ' || -value::interval ELSE ' + ' || value::interval END AS value
			  FROM jsonb_each_text(times)
			  UNION ALL SELECT * FROM jsonb_each_text(others)) AS c), 'no row')
FROM regress_lifecycle.states ORDER BY n;

------------------------------------------------------------------------
-- mark_sync_started
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$mark_sync_started(U, S, NULL)$$);
SELECT regress_lifecycle.effect('idle', $$mark_sync_started(U, S, lease_time => '1 hour')$$);
-- a lease is live until it ends, and not at its end
SELECT regress_lifecycle.effect('running', $$mark_sync_started(U, S, NULL)$$, NULL,
	jsonb_build_object('lease_expires_at', regress_lifecycle.t() + '1 microsecond'));
SELECT regress_lifecycle.effect('running', $$mark_sync_started(U, S, NULL)$$, NULL,
	jsonb_build_object('lease_expires_at', regress_lifecycle.t()));
-- a parked row may be started by hand, and stays parked
SELECT regress_lifecycle.effect('expired', $$mark_sync_started(U, S, NULL)$$, NULL,
	'{"due_at": null, "parked_reason": "paused"}');

------------------------------------------------------------------------
-- claim_due_syncs
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$claim_due_syncs('google_calendar')$$);
SELECT regress_lifecycle.effect('new', $$claim_due_syncs('google_calendar', 1, '1 hour')$$);
-- each status, once it is due: at due_at, and not before
SELECT s.state || ': ' || regress_lifecycle.effect(s.state, $$claim_due_syncs('google_calendar')$$, NULL,
	jsonb_build_object('due_at', regress_lifecycle.t(), 'requested_at', NULL))
FROM regress_lifecycle.states AS s WHERE s.state IN ('idle', 'failing', 'limited') ORDER BY s.n;
SELECT s.state || ': ' || regress_lifecycle.effect(s.state, $$claim_due_syncs('google_calendar')$$, NULL,
	jsonb_build_object('due_at', regress_lifecycle.t() + '1 microsecond', 'requested_at', NULL))
FROM regress_lifecycle.states AS s WHERE s.state IN ('idle', 'failing', 'limited') ORDER BY s.n;
-- a request overrides backoff, but neither a rate limit nor a lease
SELECT s.state || ': ' || regress_lifecycle.effect(s.state, $$claim_due_syncs('google_calendar')$$, NULL,
	jsonb_build_object('requested_at', regress_lifecycle.t()))
FROM regress_lifecycle.states AS s WHERE s.state IN ('running', 'failing', 'limited', 'parked') ORDER BY s.n;
-- a lease that ran out: at once the first time, and later by backoff from its end
SELECT n || ' failures, ' || since || ' after the lease: ' || regress_lifecycle.effect('expired', $$claim_due_syncs('google_calendar')$$, NULL,
	jsonb_build_object('failures', n, 'failing_since', CASE WHEN n > 0 THEN regress_lifecycle.t() - interval '2 hours' END,
		'lease_expires_at', regress_lifecycle.t() - since))
FROM (VALUES (0, interval '0'), (1, '29.999999 s'), (1, '1 minute'), (2, '59.999999 s'), (2, '2 minutes'), (30, '29 minutes 59.999999 s'), (30, '1 hour')) AS v(n, since);
-- the wait is not the same for all rows of a batch, nor for all runs of a row
SELECT count(DISTINCT syncstate.due_from(r)) > 45, count(DISTINCT syncstate.due_from(s)) > 45,
	bool_and(syncstate.due_from(r) >= regress_lifecycle.t() + interval '30 s' AND syncstate.due_from(r) < regress_lifecycle.t() + interval '1 minute')
FROM generate_series(1, 50) AS n,
	jsonb_populate_record(NULL::syncstate.sync_state, jsonb_build_object('user_id', md5(n::text)::uuid, 'account', '', 'source', 'google_calendar', 'resource', '',
		'status', 'syncing', 'due_at', regress_lifecycle.t(), 'lease', 7, 'lease_expires_at', regress_lifecycle.t(), 'items_synced', 0, 'failures', 1,
		'failing_since', regress_lifecycle.t(), 'token_losses', 0, 'created_at', regress_lifecycle.t(), 'updated_at', regress_lifecycle.t(), 'lease_required', true)) AS r,
	jsonb_populate_record(r, jsonb_build_object('user_id', md5('1')::uuid, 'lease', n)) AS s;
-- a request waits for as long as a failing row's must, and a start by name does not
SELECT since || ': ' || regress_lifecycle.effect('expired', $$claim_due_syncs('google_calendar')$$, NULL,
	jsonb_build_object('requested_at', regress_lifecycle.t() - interval '1 minute', 'lease_expires_at', regress_lifecycle.t() - since))
FROM unnest('{29.999999 s,30 s}'::interval[]) AS since;
SELECT regress_lifecycle.effect('expired', $$mark_sync_started(U, S, NULL)$$, NULL,
	jsonb_build_object('lease_expires_at', regress_lifecycle.t()));
-- a lease that ran out on a parked row
SELECT regress_lifecycle.effect('expired', $$claim_due_syncs('google_calendar')$$, NULL,
	'{"due_at": null, "parked_reason": "paused"}');
-- of no other source
SELECT regress_lifecycle.effect('new', $$claim_due_syncs('google_gmail')$$);

------------------------------------------------------------------------
-- mark_sync_completed
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$mark_sync_completed(U, S, 42, sync_token => 'tok2', lease => $1)$$, '{none,held,stale}');
-- without a new cursor, the old one stays, and its age
SELECT regress_lifecycle.effect('running', $$mark_sync_completed(U, S, lease => $1)$$, 7);
-- a full sync: one that began without a cursor
SELECT regress_lifecycle.effect('listing', $$mark_sync_completed(U, S, lease => $1)$$, 7, '{"lease_required": false}');
-- a run that a claim handed out is its worker's alone, until its lease ends
SELECT regress_lifecycle.effect('claimed', call, NULL, jsonb_build_object('lease_expires_at', regress_lifecycle.t() + '1 microsecond')),
	regress_lifecycle.effect('claimed', call, NULL, jsonb_build_object('lease_expires_at', regress_lifecycle.t())) <> 'PT409'
FROM unnest(ARRAY[$$mark_sync_completed(U, S)$$, $$mark_sync_failed(U, S, 'x')$$, $$mark_rate_limited(U, S)$$, $$checkpoint_sync(U, S)$$]) AS call;
SELECT regress_lifecycle.set_up('claimed');
SELECT FROM syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_calendar'); -- ERROR

------------------------------------------------------------------------
-- mark_sync_failed
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$mark_sync_failed(U, S, 'broken', lease => $1)$$, '{none,held,stale}');
SELECT regress_lifecycle.grid($$mark_sync_failed(U, S, 'broken', 'permanent', lease => $1)$$, '{none,held,stale}');
SELECT regress_lifecycle.grid($$mark_sync_failed(U, S, 'broken', 'auth', lease => $1)$$, '{none,held,stale}');
-- how many failures in a row it takes until kind auth parks; before, the row waits retry_cap
SELECT auth_failures FROM syncstate.set_sync_policy('google_calendar', '{"auth_failures": 3, "retry_cap": "20 minutes"}');
SELECT n || ': ' || regress_lifecycle.effect('running', $$mark_sync_failed(U, S, 'broken', 'auth', lease => $1)$$, 7, jsonb_build_object('failures', n - 1,
	'failing_since', CASE WHEN n > 1 THEN regress_lifecycle.t() - interval '2 hours' END))
FROM unnest('{1,2,3,4}'::int[]) AS n;
DELETE FROM syncstate.sync_policy;
-- a message is kept to 8 kB, cut with a mark, and never within a character
SELECT regress_lifecycle.set_up('running');
SELECT octet_length(error_message), right(error_message, 10)
FROM syncstate.mark_sync_failed(regress_lifecycle.u(), 'google_calendar', repeat('x', 8192));
SELECT octet_length(error_message), right(error_message, 10)
FROM syncstate.mark_sync_failed(regress_lifecycle.u(), 'google_calendar', repeat('x', 8193));
SELECT octet_length(error_message) <= 8192 AND octet_length(error_message) > 8180,
	error_message ~ ('^(' || E'\xe2\x82\xac' || ')+ \[cut\]$') OR getdatabaseencoding() <> 'UTF8'
FROM syncstate.mark_sync_failed(regress_lifecycle.u(), 'google_calendar', repeat(E'\xe2\x82\xac', 100000));

------------------------------------------------------------------------
-- mark_rate_limited
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$mark_rate_limited(U, S, lease => $1)$$, '{none,held,stale}');
-- retry_after is clamped to 1 second to 30 days
SELECT w || ': ' || regress_lifecycle.effect('idle', format('mark_rate_limited(U, S, retry_after => %L)', w))
FROM unnest('{1 hour, 0, -1 hour, 31 days, 100 years, -100 years}'::text[]) AS w;
-- a limit that is running is not cut short
SELECT regress_lifecycle.effect('limited', $$mark_rate_limited(U, S, retry_after => '10 seconds')$$);
-- scope 'source': the row's own limit, and the whole source's
SELECT regress_lifecycle.effect('running', $$mark_rate_limited(U, S, '1 hour', 'source', lease => $1)$$, 7);
SELECT source, paused_until - regress_lifecycle.t() FROM syncstate.sync_policy;
-- by max: a shorter one later does not end it
SELECT regress_lifecycle.effect('new', $$mark_rate_limited(U, S, '10 seconds', 'source')$$);
SELECT source, paused_until - regress_lifecycle.t() FROM syncstate.sync_policy;
-- nothing of the source is handed out, requested or not; of others it is
SELECT s.state, regress_lifecycle.effect(s.state, $$claim_due_syncs('google_calendar')$$)
FROM regress_lifecycle.states AS s WHERE s.state IN ('new', 'requested', 'expired') ORDER BY s.n;
SELECT regress_lifecycle.effect('new', $$claim_due_syncs()$$, NULL, '{}', 'google_tasks');
-- a sync in flight may finish
SELECT regress_lifecycle.effect('running', $$mark_sync_completed(U, S, lease => $1)$$, 7);
DELETE FROM syncstate.sync_policy;
-- a report that came too late limits nobody
SELECT regress_lifecycle.effect('running', $$mark_rate_limited(U, S, '1 hour', 'source', lease => $1)$$, 6);
SELECT count(*) FROM syncstate.sync_policy;

------------------------------------------------------------------------
-- clear_sync_token
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$clear_sync_token(U, S, lease => $1)$$, '{none,held,stale}');
-- the second loss, the third, the ninth and the tenth in a row
SELECT n || ', running (its lease): ' || regress_lifecycle.effect('running', $$clear_sync_token(U, S, lease => $1)$$, 7,
	jsonb_build_object('token_losses', n - 1))
FROM unnest('{2, 3, 9, 10}'::int[]) AS n;
SELECT n || ', idle: ' || regress_lifecycle.effect('idle', $$clear_sync_token(U, S)$$, NULL,
	jsonb_build_object('token_losses', n - 1))
FROM unnest('{2, 3, 9, 10}'::int[]) AS n;
-- a completion ends the row of losses
SELECT regress_lifecycle.effect('running', $$mark_sync_completed(U, S, lease => $1)$$, 7, '{"token_losses": 9}');

------------------------------------------------------------------------
-- renew_sync_lease
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$renew_sync_lease(U, S, $1)$$, '{held,stale}');
SELECT regress_lifecycle.effect('running', $$renew_sync_lease(U, S, $1, '1 hour')$$, 7);

------------------------------------------------------------------------
-- checkpoint_sync
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$checkpoint_sync(U, S, $1, 'p4', 40, 110)$$, '{none,held,stale}');
-- a null keeps
SELECT regress_lifecycle.effect('running', $$checkpoint_sync(U, S, $1)$$, 7);
SELECT regress_lifecycle.effect('running', $$checkpoint_sync(U, S, $1, page_token => 'p4')$$, 7);
SELECT regress_lifecycle.effect('running', $$checkpoint_sync(U, S, $1, progress_done => 0)$$, 7);
SELECT regress_lifecycle.effect('running', $$checkpoint_sync(U, S, $1, progress_total => 31)$$, 7);

------------------------------------------------------------------------
-- release_sync
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$release_sync(U, S, $1)$$, '{held,stale}');
-- due at once, also a row that was claimed before its time, upon a request; but
-- behind those that are due already
SELECT regress_lifecycle.set_up('requested');
SELECT lease FROM syncstate.claim_due_syncs('google_calendar');
INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES (regress_lifecycle.u(), 'google_tasks', regress_lifecycle.t());
INSERT INTO syncstate.sync_state (user_id, source, resource, due_at) VALUES (regress_lifecycle.u(), 'google_calendar', 'other', regress_lifecycle.t() - interval '1 us');
SELECT status FROM syncstate.release_sync(regress_lifecycle.u(), 'google_calendar', 8);
SELECT resource, lease, failures FROM syncstate.claim_due_syncs('google_calendar', 1);
SELECT resource, lease, failures FROM syncstate.claim_due_syncs('google_calendar', 1);
-- after a delay, from 0 to a day
SELECT delay || ': ' || regress_lifecycle.effect('claimed', format('release_sync(U, S, $1, delay => %L)', delay), 7)
FROM unnest('{0,1 us,5 minutes,24:00:00,1 day}'::text[]) AS delay;
SELECT regress_lifecycle.effect('claimed', $$release_sync(U, S, $1, delay => NULL)$$, 7);
SELECT delay || ': ' || regress_lifecycle.lost(format('release_sync(U, ''google_calendar'', 7, delay => %L)', delay))
FROM unnest('{-00:00:00.000001,24:00:00.000001,1 month}'::text[]) AS delay;

------------------------------------------------------------------------
-- request_sync
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$request_sync(U, S)$$);
-- where nobody asked before, or somebody by a clock that was wrong
SELECT regress_lifecycle.effect('idle', $$request_sync(U, S)$$, NULL, jsonb_build_object('requested_at', regress_lifecycle.t() + '1 microsecond'));
SELECT regress_lifecycle.effect('idle', $$request_sync(U, S)$$, NULL, '{"requested_at": "2027-01-10 12:00+00", "due_at": "2027-01-10 12:00+00"}');
-- a lease that only a wrong clock can have given is over, also where somebody asked before
SELECT times, regress_lifecycle.effect('running', $$request_sync(U, S)$$, NULL, times)
FROM unnest(ARRAY['{"lease_expires_at": "2026-01-11 12:00+00", "requested_at": null}',
	'{"lease_expires_at": "2026-01-11 12:00:00.000001+00", "requested_at": null}',
	'{"lease_expires_at": "2027-01-11 12:00+00", "updated_at": "2027-01-11 11:00+00"}']::jsonb[]) AS times;
SELECT s.state || ': ' || regress_lifecycle.effect(s.state, $$request_sync(U, S)$$, NULL, '{"requested_at": null}')
FROM regress_lifecycle.states AS s WHERE s.state IN ('running', 'limited') ORDER BY s.n;
-- during a run: the row runs once more afterwards, and only once
SELECT regress_lifecycle.set_up('running', '{"requested_at": null}');
SELECT syncstate.request_sync(regress_lifecycle.u(), 'google_calendar');
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar');
SELECT status FROM syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_calendar', lease => 7);
SELECT lease FROM syncstate.claim_due_syncs('google_calendar');
SELECT status FROM syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_calendar', lease => 8);
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar');
-- not before the gap since the last start has passed, which is retry_base where that is longer and the row fails
CREATE FUNCTION regress_lifecycle.opens_after(state text, since interval, more jsonb DEFAULT '{}') RETURNS interval
	LANGUAGE plpgsql
	AS $$
DECLARE
	row syncstate.sync_state;
BEGIN
	PERFORM regress_lifecycle.set_up(state, jsonb_build_object('due_at', regress_lifecycle.t() + interval '1 hour',
		'last_sync_at', regress_lifecycle.t() - since, 'requested_at', NULL) || more);
	PERFORM syncstate.request_sync(regress_lifecycle.u(), 'google_calendar');
	SELECT * INTO row FROM syncstate.sync_state;
	-- to the microsecond
	PERFORM set_config('syncstate.clock', (syncstate.due_from(row) - interval '1 us')::text, false);
	IF EXISTS (SELECT FROM syncstate.claim_due_syncs('google_calendar')) THEN
		RAISE 'came too early';
	ELSIF EXISTS (SELECT FROM syncstate.get_users_needing_sync('google_calendar')) THEN
		RAISE 'needed too early';
	ELSIF syncstate.next_sync_due('google_calendar') <> syncstate.due_from(row) THEN
		RAISE 'next is %', syncstate.next_sync_due('google_calendar');
	END IF;
	PERFORM set_config('syncstate.clock', syncstate.due_from(row)::text, false);
	IF NOT EXISTS (SELECT FROM syncstate.get_users_needing_sync('google_calendar')) THEN
		RAISE 'not needed';
	ELSIF NOT EXISTS (SELECT FROM syncstate.claim_due_syncs('google_calendar')) THEN
		RAISE 'did not come';
	END IF;
	RETURN syncstate.due_from(row) - regress_lifecycle.t();
END
$$;
SELECT state, since, regress_lifecycle.opens_after(state, since)
FROM unnest('{idle,failing,limited}'::text[]) AS state, unnest('{0,1 second,9 seconds,10 seconds,29 seconds,30 seconds,1 hour}'::interval[]) AS since;
SELECT regress_lifecycle.opens_after('new', NULL), regress_lifecycle.opens_after('idle', '-1 year');
-- the gap is the policy's, and may be none
SELECT gap, regress_lifecycle.opens_after('idle', '0'), regress_lifecycle.opens_after('failing', '0')
FROM unnest('{0,1 minute,1 day}'::interval[]) AS gap, LATERAL syncstate.set_sync_policy('google_calendar', jsonb_build_object('request_gap', gap));
DELETE FROM syncstate.sync_policy;

------------------------------------------------------------------------
-- connect_sync, disconnect_sync, pause_sync, resume_sync
------------------------------------------------------------------------
SELECT regress_lifecycle.grid($$connect_sync(U, S)$$);
SELECT regress_lifecycle.grid($$disconnect_sync(U, S)$$);
SELECT regress_lifecycle.grid($$pause_sync(U, S)$$);
SELECT regress_lifecycle.grid($$resume_sync(U, S)$$);
-- each reason to be parked ends by resume_sync, and all but a pause by connect_sync
SELECT r, regress_lifecycle.effect('parked', $$resume_sync(U, S)$$, NULL, jsonb_build_object('parked_reason', r)) AS resumed,
	regress_lifecycle.effect('parked', $$connect_sync(U, S)$$, NULL, jsonb_build_object('parked_reason', r)) AS connected
FROM unnest('{paused,auth,failures,token_loop}'::text[]) AS r;
-- times that only a wrong clock can have given are over, and others stay
SELECT call, times, regress_lifecycle.effect(state, call, NULL, times)
FROM unnest(ARRAY[$$connect_sync(U, S)$$, $$resume_sync(U, S)$$]) AS call,
	(VALUES ('idle', '{"due_at": "2026-01-11 12:00+00", "requested_at": "2026-01-10 11:00+00"}'::jsonb),
		('idle', '{"due_at": "2026-01-11 12:00:00.000001+00", "requested_at": "2026-01-10 12:00:00.000001+00"}'),
		('idle', '{"due_at": "2026-02-09 12:00+00", "sync_interval": "30 days"}'),
		('idle', '{"due_at": "2026-02-09 12:00:00.000001+00", "sync_interval": "30 days"}'),
		('limited', '{"due_at": "2026-02-12 12:00+00", "requested_at": null}'),
		('limited', '{"due_at": "2026-02-12 12:00:00.000001+00", "requested_at": null}'),
		('running', '{"lease_expires_at": "2026-01-11 12:00+00", "requested_at": null}'),
		('running', '{"lease_expires_at": "2027-01-11 12:00+00", "requested_at": null}')) AS v(state, times);

------------------------------------------------------------------------
-- update_sync_state
------------------------------------------------------------------------
-- a client that keeps its state by hand: a start ...
SELECT regress_lifecycle.grid($$update_sync_state(U, S, '{"status": "syncing"}')$$);
-- ... and each end
SELECT regress_lifecycle.grid($$update_sync_state(U, S, '{"status": "idle"}')$$);
SELECT regress_lifecycle.grid($$update_sync_state(U, S, '{"status": "error", "error_message": "broken"}')$$);
SELECT regress_lifecycle.grid($$update_sync_state(U, S, '{"status": "rate_limited"}')$$);
-- nothing changes what is not named
SELECT regress_lifecycle.grid($$update_sync_state(U, S, '{}')$$);
-- a cursor, set, and cleared
SELECT regress_lifecycle.grid($$update_sync_state(U, S, '{"sync_token": "tok2"}')$$);
SELECT regress_lifecycle.grid($$update_sync_state(U, S, '{"sync_token": null, "history_id": null, "updated_min": null}')$$);
-- null clears each column that may be null, or sets it back to its default
SELECT key || ': ' || regress_lifecycle.effect('failing',
	format('update_sync_state(U, S, jsonb_build_object(%L, NULL))', key), NULL,
	'{"sync_interval": "1 hour", "requested_at": "2026-01-10 11:00+00"}')
FROM unnest('{status,sync_token,history_id,updated_min,token_issued_at,last_full_sync_at,due_at,requested_at,parked_reason,sync_interval,lease_expires_at,last_sync_at,last_successful_sync_at,items_synced,page_token,progress_done,progress_total,failures,token_losses,error_message}'::text[]) AS key;
-- a value sets each
SELECT key || ': ' || regress_lifecycle.effect('idle',
	format('update_sync_state(U, S, %L)', jsonb_build_object(key, value)))
FROM (VALUES ('sync_token', '"tok2"'::jsonb), ('history_id', '"999"'), ('history_id', '18446744073709551615'),
	('updated_min', '"2025-06-01T00:00:00Z"'), ('token_issued_at', '"2026-01-10T11:00:00Z"'),
	('last_full_sync_at', '"2026-01-10T11:00:00Z"'), ('due_at', '"2026-01-10T13:00:00Z"'),
	('requested_at', '"2026-01-10T12:00:00Z"'), ('parked_reason', '"auth"'), ('sync_interval', '"2 hours"'),
	('last_sync_at', '"2026-01-10T11:00:00Z"'), ('last_successful_sync_at', '"2026-01-10T11:30:00Z"'),
	('items_synced', '6'), ('page_token', '"p9"'), ('progress_done', '1'), ('progress_total', '2'),
	('failures', '3'), ('token_losses', '4'), ('error_message', '"hm"')) AS v(key, value);

------------------------------------------------------------------------
-- Leases
------------------------------------------------------------------------
-- Whoever lost the lease changes nothing, by whatever call.
SELECT regress_lifecycle.set_up('expired', '{"lease_expires_at": "2026-01-10 11:50+00"}');
SELECT lease FROM syncstate.claim_due_syncs('google_calendar');
CREATE TABLE regress_lifecycle.seen AS SELECT s.*, s.ctid AS tid FROM syncstate.sync_state AS s;
SELECT call || ': ' || regress_lifecycle.lost(call)
FROM unnest(ARRAY[
	$$mark_sync_completed(U, 'google_calendar', sync_token => 'zombie', lease => 7)$$,
	$$mark_sync_failed(U, 'google_calendar', 'zombie', lease => 7)$$,
	$$mark_rate_limited(U, 'google_calendar', lease => 7)$$,
	$$clear_sync_token(U, 'google_calendar', lease => 7)$$,
	$$renew_sync_lease(U, 'google_calendar', 7)$$,
	$$checkpoint_sync(U, 'google_calendar', 7, 'zombie')$$,
	$$release_sync(U, 'google_calendar', 7)$$,
	$$mark_sync_completed(U, 'google_calendar', lease => 9)$$,
	$$mark_sync_completed(U, 'google_calendar', lease => 0)$$,
	$$mark_sync_completed(U, 'google_calendar', lease => -1)$$,
	$$mark_sync_completed(U, 'google_calendar', lease => 8, resource => 'other')$$]) AS call;
SELECT to_jsonb(s) || '{"tid": null}' = to_jsonb(b) || '{"tid": null}' AND s.ctid = b.tid
FROM syncstate.sync_state AS s, regress_lifecycle.seen AS b;
-- a report is applied once
SELECT regress_lifecycle.lost($$mark_sync_completed(U, 'google_calendar', lease => 8)$$);
SELECT regress_lifecycle.lost($$mark_sync_completed(U, 'google_calendar', lease => 8)$$);
-- rows of one user are apart
SELECT a.resource, b.resource, c.resource
FROM syncstate.connect_sync(regress_lifecycle.u(), 'google_calendar', 'a') AS a,
	syncstate.connect_sync(regress_lifecycle.u(), 'google_calendar', 'b') AS b,
	syncstate.connect_sync(regress_lifecycle.u(), 'google_tasks', 'a') AS c;
SELECT syncstate.disconnect_sync(regress_lifecycle.u(), 'google_calendar', 'a');
SELECT source, resource FROM syncstate.sync_state ORDER BY source, resource;

------------------------------------------------------------------------
-- Cursors
------------------------------------------------------------------------
-- what a completion makes of the cursor; the age of the cursor tells whether
-- it counts as renewed
CREATE FUNCTION regress_lifecycle.cursor_after(args text, had jsonb DEFAULT '{}') RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	r syncstate.sync_state;
BEGIN
	PERFORM regress_lifecycle.set_up('running', had);
	EXECUTE format('SELECT * FROM syncstate.mark_sync_completed(%L, ''google_calendar'', lease => 7, %s)',
				   regress_lifecycle.u(), args) INTO r;
	RETURN format('%s: %s, %s, %s%s', args, coalesce(r.sync_token, 'null'), coalesce(r.history_id, 'null'),
				  CASE WHEN r.updated_min IS NULL THEN 'null' ELSE regress_lifecycle.show_time('updated_min', r.updated_min, NULL) END,
				  CASE WHEN r.token_issued_at = regress_lifecycle.t() THEN '; renewed' ELSE '' END);
END
$$;
SELECT regress_lifecycle.cursor_after(args)
FROM unnest(ARRAY[
	-- null keeps, '' too
	$$items_synced => 0$$,
	$$sync_token => NULL, history_id => NULL, updated_min => NULL$$,
	$$sync_token => ''$$, $$history_id => ''$$,
	-- a value replaces; the same again was confirmed
	$$sync_token => 'tok2'$$, $$sync_token => 'tok1'$$,
	-- a history id moves forward, as a number
	$$history_id => '1001'$$, $$history_id => '1000'$$, $$history_id => '10000'$$,
	$$history_id => '999'$$, $$history_id => '0'$$, $$history_id => '00999'$$, $$history_id => '001001'$$,
	$$history_id => '9223372036854775808'$$, $$history_id => '18446744073709551615'$$,
	-- so does updated_min
	$$updated_min => '2026-01-10 12:00+00'$$, $$updated_min => '2026-01-09 12:00+00'$$,
	$$updated_min => '2026-01-09 11:59:59.999999+00'$$,
	-- one that is refused does not hold up another
	$$history_id => '999', sync_token => 'tok2'$$,
	$$history_id => '1001', updated_min => '2020-01-01 00:00+00'$$]) AS args;
SELECT regress_lifecycle.cursor_after(args, '{"history_id": "999"}')
FROM unnest(ARRAY[$$history_id => '1000'$$, $$history_id => '998'$$]) AS args;
SELECT regress_lifecycle.cursor_after(args, '{"history_id": "18446744073709551615"}')
FROM unnest(ARRAY[$$history_id => '18446744073709551615'$$, $$history_id => '9223372036854775808'$$, $$history_id => '9'$$]) AS args;
SELECT regress_lifecycle.cursor_after(args, '{"history_id": null, "sync_token": null, "updated_min": null, "token_issued_at": null, "full_sync_id": 7}')
FROM unnest(ARRAY[$$items_synced => 0$$, $$history_id => '0'$$, $$history_id => '000'$$, $$sync_token => ''$$]) AS args;
-- the largest token
SELECT regress_lifecycle.set_up('running');
SELECT length(sync_token), length(history_id)
FROM syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_calendar', lease => 7, sync_token => repeat('x', 65536));

-- A cursor is lost by clear_sync_token(), update_sync_state() and a planned
-- full sync, and by nothing else.
SELECT call || ': ' || bool_and(kept)
FROM unnest(ARRAY[
	$$mark_sync_completed(U, S, lease => $1)$$, $$mark_sync_failed(U, S, 'x', 'transient', $1)$$,
	$$mark_sync_failed(U, S, 'x', 'permanent', $1)$$, $$mark_sync_failed(U, S, 'x', 'auth', $1)$$,
	$$mark_rate_limited(U, S, '1 hour', 'row', $1)$$, $$release_sync(U, S, $1)$$,
	$$checkpoint_sync(U, S, $1, 'p4')$$, $$pause_sync(U, S)$$, $$resume_sync(U, S)$$,
	$$connect_sync(U, S)$$, $$mark_sync_started(U, S, NULL)$$,
	$$claim_due_syncs('google_calendar')$$, $$update_sync_state(U, S, '{"status": "idle"}')$$,
	$$clear_sync_token(U, S, $1)$$]) AS call,
	LATERAL (SELECT regress_lifecycle.effect(s.state, call, CASE WHEN call ~ '\$1' THEN 7 END)
				!~ '(sync_token|history_id|updated_min|token_issued_at): null' AS kept
			 FROM regress_lifecycle.states AS s) AS k
GROUP BY call ORDER BY call COLLATE "C";

------------------------------------------------------------------------
-- Due again: the interval
------------------------------------------------------------------------
-- many rows, each with a part of its own
CREATE FUNCTION regress_lifecycle.many(source syncstate.sync_source, n integer, more jsonb DEFAULT '{}') RETURNS void
	LANGUAGE sql
	AS $$
	DELETE FROM syncstate.sync_state;
	SELECT regress_lifecycle.at('0');
	INSERT INTO syncstate.sync_state
	SELECT r.* FROM generate_series(1, n) AS i,
		jsonb_populate_record(NULL::syncstate.sync_state,
			'{"account": "", "resource": "", "status": "idle", "lease": 0, "items_synced": 0, "failures": 0, "token_losses": 0, "syncs_started": 0, "lease_required": false}'
			|| jsonb_build_object('user_id', md5(i::text)::uuid, 'source', source, 'created_at', regress_lifecycle.t(), 'updated_at', regress_lifecycle.t())
			|| more) AS r
	$$;

-- made at once, they are due at once, within the second before, and spread
SELECT regress_lifecycle.many('google_calendar', 200);
SELECT count(DISTINCT due_at) = 200, min(due_at) > regress_lifecycle.t() - interval '1 second',
	max(due_at) <= regress_lifecycle.t(), max(due_at) - min(due_at) > '0.9 seconds'
FROM syncstate.sync_state;
-- from start to start: the sync takes 2 minutes
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 1000);
SELECT regress_lifecycle.at('2 minutes');
SELECT count(syncstate.mark_sync_completed(user_id, source, lease => lease)) FROM syncstate.sync_state;
SELECT min(due_at) >= regress_lifecycle.t() + interval '15 minutes' * 0.9, max(due_at) <= regress_lifecycle.t() + interval '15 minutes' * 0.95,
	max(due_at) - min(due_at) > interval '15 minutes' * 0.045, count(DISTINCT due_at)
FROM syncstate.sync_state;
-- a row has the same part each time, and another in another source
CREATE TABLE regress_lifecycle.parts AS SELECT user_id, due_at - last_sync_at AS wait FROM syncstate.sync_state;
SELECT regress_lifecycle.at('1 hour');
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 1000);
SELECT count(syncstate.mark_sync_completed(user_id, source, lease => lease)) FROM syncstate.sync_state;
SELECT count(*) FROM syncstate.sync_state AS s JOIN regress_lifecycle.parts AS p USING (user_id)
WHERE s.due_at - s.last_sync_at = p.wait;
SELECT count(*) FROM regress_lifecycle.parts AS p,
	LATERAL syncstate.mark_sync_completed(p.user_id, 'google_tasks') AS s
WHERE s.due_at - regress_lifecycle.t() - '1 hour' = p.wait;
-- a sync that took longer than the interval: at the earliest a tenth of it
-- from now
SELECT regress_lifecycle.many('google_calendar', 20);
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 1000);
SELECT regress_lifecycle.at('14 minutes');
SELECT DISTINCT s.due_at - regress_lifecycle.t()
FROM syncstate.sync_state AS r, syncstate.mark_sync_completed(r.user_id, r.source, lease => r.lease) AS s;
-- a row's own interval goes over the policy's, and each over the default
SELECT (syncstate.set_sync_policy('google_calendar', '{"sync_interval": "1 hour"}')).sync_interval;
SELECT regress_lifecycle.many('google_calendar', 20);
UPDATE syncstate.sync_state SET sync_interval = '1 day' WHERE get_byte(uuid_send(user_id), 0) < 128;
SELECT s.sync_interval, min(s.due_at - regress_lifecycle.t()) >= coalesce(s.sync_interval, interval '1 hour') * 0.9,
	max(s.due_at - regress_lifecycle.t()) <= coalesce(s.sync_interval, interval '1 hour') * 0.95
FROM syncstate.sync_state AS r, syncstate.mark_sync_completed(r.user_id, r.source) AS s
GROUP BY s.sync_interval ORDER BY s.sync_interval;
-- no jitter, no shortening; more of it, more
SELECT (syncstate.set_sync_policy('google_calendar', '{"jitter": 0}')).jitter;
SELECT DISTINCT s.due_at - regress_lifecycle.t()
FROM syncstate.sync_state AS r, syncstate.mark_sync_completed(r.user_id, r.source) AS s WHERE r.sync_interval IS NULL;
SELECT (syncstate.set_sync_policy('google_calendar', '{"jitter": 0.9}')).jitter;
SELECT min(s.due_at - regress_lifecycle.t()) >= '6 minutes', max(s.due_at - regress_lifecycle.t()) <= '33 minutes'
FROM syncstate.sync_state AS r, syncstate.mark_sync_completed(r.user_id, r.source) AS s WHERE r.sync_interval IS NULL;
DELETE FROM syncstate.sync_policy;

-- A cron of 15 minutes, which ticks up to 20 seconds early or late, and syncs
-- which take up to 10 minutes: each row is found at each tick.
SELECT regress_lifecycle.many('google_calendar', 50);
DO $$
DECLARE
	start interval;
	n integer;
BEGIN
	FOR tick IN 0 .. 96 LOOP
		-- 20 seconds early, in time, or late
		start := tick * interval '15 minutes' + ((tick * tick / 2) % 3 - 1) * interval '20 seconds';
		PERFORM regress_lifecycle.at(start);
		SELECT count(*) INTO n FROM syncstate.claim_due_syncs('google_calendar', 1000);
		IF n <> 50 AND tick > 0 THEN
			RAISE 'tick % found % rows', tick, n;
		END IF;
		FOR part IN 0 .. 4 LOOP
			PERFORM regress_lifecycle.at(start + part * interval '2.5 minutes');
			PERFORM syncstate.mark_sync_completed(user_id, source, lease => lease)
				FROM syncstate.sync_state
				WHERE status = 'syncing' AND get_byte(uuid_send(user_id), 0) % 5 = part;
		END LOOP;
	END LOOP;
END
$$;
SELECT count(*), bool_and(status = 'idle'), min(lease) >= 96 FROM syncstate.sync_state;

------------------------------------------------------------------------
-- Due again: failures
------------------------------------------------------------------------
-- backoff: half fixed, half random; no overflow for any number of failures
SELECT regress_lifecycle.set_up('failing');
CREATE FUNCTION regress_lifecycle.backoff_is_right(n integer) RETURNS boolean
	LANGUAGE sql
	AS $$
	SELECT regress_lifecycle.set_up('failing', jsonb_build_object('failures', n - 1,
		'failing_since', CASE WHEN n > 1 THEN regress_lifecycle.t() - interval '1 hour' END));
	SELECT s.failures = n AND s.parked_reason IS NULL
		AND extract(epoch FROM s.due_at - regress_lifecycle.t())
			BETWEEN least(3600, 30 * 2::numeric ^ least(n - 1, 1000)) / 2 AND least(3600, 30 * 2::numeric ^ least(n - 1, 1000))
	FROM syncstate.mark_sync_failed(regress_lifecycle.u(), 'google_calendar', 'x') AS s
	$$;
SELECT count(*), bool_and(regress_lifecycle.backoff_is_right(n))
FROM (SELECT generate_series(1, 140) UNION ALL SELECT unnest('{32767, 32768, 65536, 1000000, 2147483646, 2147483647}'::int[])) AS f(n);
-- it is random: no two of many rows wait equally long
SELECT regress_lifecycle.many('google_calendar', 50);
SELECT count(DISTINCT s.due_at) > 45, max(s.due_at) - min(s.due_at) > '8 seconds'
FROM syncstate.sync_state AS r, syncstate.mark_sync_failed(r.user_id, r.source, 'x') AS s;
-- the highest number stays the highest
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL, '{"failures": 2147483647}')
	~ '^due_at: T \+ [0-9:.]+, error_message: x$';
SELECT regress_lifecycle.effect('expired', $$mark_sync_started(U, S, NULL)$$, NULL, '{"failures": 2147483647}');
SELECT regress_lifecycle.effect('expired', $$claim_due_syncs('google_calendar')$$, NULL, '{"failures": 2147483647, "lease_expires_at": "2026-01-10 11:00+00"}');
SELECT regress_lifecycle.effect('idle', $$clear_sync_token(U, S)$$, NULL, '{"token_losses": 2147483647}');
-- the longest settings do not overflow either
SELECT retry_cap FROM syncstate.set_sync_policy('google_calendar',
	'{"retry_base": "36500 days", "retry_cap": "36500 days", "sync_interval": "36500 days", "park_after": "36500 days"}');
SELECT regress_lifecycle.set_up('failing');
SELECT due_at BETWEEN regress_lifecycle.t() + '18250 days' AND regress_lifecycle.t() + '36500 days'
FROM syncstate.mark_sync_failed(regress_lifecycle.u(), 'google_calendar', 'x');
SELECT due_at BETWEEN regress_lifecycle.t() + '32840 days' AND regress_lifecycle.t() + '36500 days'
FROM syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_calendar');
DELETE FROM syncstate.sync_policy;

-- Parked after 30 failures in a row AND 7 days of them, not after one of both
CREATE FUNCTION regress_lifecycle.after(failures integer, lasted interval) RETURNS jsonb
	LANGUAGE sql
	AS $$ SELECT jsonb_build_object('failures', failures, 'failing_since', regress_lifecycle.t() - lasted) $$;
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL, regress_lifecycle.after(28, '365 days')) !~ 'parked';
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL, regress_lifecycle.after(1000, interval '7 days' - interval '1 microsecond')) !~ 'parked';
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL, regress_lifecycle.after(29, '7 days'));
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x', 'permanent')$$, NULL, regress_lifecycle.after(29, '7 days'));
-- 30 failures within an hour, after months without a sync, do not park
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL,
	regress_lifecycle.after(29, '1 hour') || '{"last_successful_sync_at": "2025-06-01 00:00+00"}') !~ 'parked';
-- neither do rate limits, however many
SELECT regress_lifecycle.effect('failing', $$mark_rate_limited(U, S)$$, NULL, regress_lifecycle.after(29, '365 days'));
-- a lease that ran out counts as a failure: the claim parks instead of handing out
SELECT regress_lifecycle.effect('expired', $$claim_due_syncs('google_calendar')$$, NULL, '{"lease_expires_at": "2026-01-10 11:00+00"}' || regress_lifecycle.after(28, '365 days'));
SELECT regress_lifecycle.effect('expired', $$claim_due_syncs('google_calendar')$$, NULL, '{"lease_expires_at": "2026-01-10 11:00+00"}' || regress_lifecycle.after(29, interval '7 days' - interval '1 microsecond'));
SELECT regress_lifecycle.effect('expired', $$claim_due_syncs('google_calendar')$$, NULL, '{"lease_expires_at": "2026-01-10 11:00+00"}' || regress_lifecycle.after(29, '7 days'));
SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar');
-- the worker whose lease it was changes nothing after that
SELECT regress_lifecycle.lost($$mark_sync_completed(U, 'google_calendar', lease => 7)$$);
-- the first failure begins the run, the next do not, a completion ends it
SELECT regress_lifecycle.set_up('idle');
SELECT failures, failing_since - regress_lifecycle.t() FROM syncstate.mark_sync_failed(regress_lifecycle.u(), 'google_calendar', 'x');
SELECT regress_lifecycle.at('1 hour');
SELECT failures, failing_since - regress_lifecycle.t() FROM syncstate.mark_sync_failed(regress_lifecycle.u(), 'google_calendar', 'x');
SELECT failures, failing_since, error_message, status FROM syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_calendar');
-- the limits are the policy's
SELECT max_failures, park_after FROM syncstate.set_sync_policy('google_calendar', '{"max_failures": 3, "park_after": "1 hour"}');
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL, regress_lifecycle.after(1, '1 hour')) !~ 'parked';
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL, regress_lifecycle.after(2, '59 minutes')) !~ 'parked';
SELECT regress_lifecycle.effect('failing', $$mark_sync_failed(U, S, 'x')$$, NULL, regress_lifecycle.after(2, '1 hour'));
DELETE FROM syncstate.sync_policy;

------------------------------------------------------------------------
-- The life of a cursor
------------------------------------------------------------------------
-- Gmail: 7 days from the last time it was set; then the row is handed out
-- without it, as a full sync, and no loss is counted
CREATE FUNCTION regress_lifecycle.aged(token interval, full_sync interval) RETURNS jsonb
	LANGUAGE sql
	AS $$ SELECT jsonb_build_object('token_issued_at', regress_lifecycle.t() - token, 'last_full_sync_at', regress_lifecycle.t() - full_sync,
		'due_at', regress_lifecycle.t(), 'page_token', 'p3', 'token_losses', 1) $$;
SELECT regress_lifecycle.effect('idle', call, NULL, regress_lifecycle.aged(token, '365 days'), 'google_gmail')
FROM unnest('{7 days, 7 days 00:00:00.000001}'::interval[]) AS token,
	unnest(ARRAY[$$claim_due_syncs('google_gmail')$$, $$mark_sync_started(U, S, NULL)$$]) AS call;
-- Calendar: no end
SELECT regress_lifecycle.effect('idle', $$claim_due_syncs('google_calendar')$$, NULL, regress_lifecycle.aged('3650 days', '3650 days'));
-- without a cursor there is nothing to clear
SELECT regress_lifecycle.effect('idle', $$claim_due_syncs('google_gmail')$$, NULL,
	regress_lifecycle.aged('8 days', '8 days') || '{"sync_token": null, "history_id": null, "updated_min": null, "token_issued_at": null}', 'google_gmail');
-- the sync that follows is a full one, and the cursor lives again
SELECT regress_lifecycle.set_up('idle', regress_lifecycle.aged('8 days', '8 days'), 'google_gmail');
SELECT history_id, lease FROM syncstate.claim_due_syncs('google_gmail');
SELECT regress_lifecycle.show_time('', last_full_sync_at, NULL), regress_lifecycle.show_time('', token_issued_at, NULL), history_id
FROM syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_gmail', history_id => '5', lease => 8);

-- Contacts: 7 days from the last full sync, whatever renewed the token; the
-- full sync comes before, at a part of the life between 0.80 and 0.85 that is
-- the row's own
CREATE FUNCTION regress_lifecycle.full_sync_at(part numeric) RETURNS jsonb
	LANGUAGE sql
	AS $$ SELECT jsonb_build_object('sync_token', 'tok1', 'token_issued_at', regress_lifecycle.t(),
		'last_full_sync_at', regress_lifecycle.t() - interval '7 days' * part) $$;
SELECT regress_lifecycle.many('google_contacts', 200, regress_lifecycle.full_sync_at(0.80));
SELECT count(*), count(c.sync_token), max(token_losses) FROM syncstate.claim_due_syncs('google_contacts', 1000) AS c;
SELECT regress_lifecycle.many('google_contacts', 200, regress_lifecycle.full_sync_at(0.825));
SELECT count(*), count(c.sync_token) BETWEEN 60 AND 140, max(token_losses) FROM syncstate.claim_due_syncs('google_contacts', 1000) AS c;
SELECT regress_lifecycle.many('google_contacts', 200, regress_lifecycle.full_sync_at(0.85));
SELECT count(*), count(c.sync_token), max(token_losses) FROM syncstate.claim_due_syncs('google_contacts', 1000) AS c;
SELECT regress_lifecycle.effect('idle', $$mark_sync_started(U, S, NULL)$$, NULL, regress_lifecycle.aged('1 day', '6 days'), 'google_contacts');
SELECT regress_lifecycle.effect('idle', $$mark_sync_started(U, S, NULL)$$, NULL, regress_lifecycle.aged('8 days', '5 days'), 'google_contacts');
-- no interval sleeps past 0.8 of the life
SELECT s.due_at - regress_lifecycle.t()
FROM regress_lifecycle.set_up('idle', '{"sync_interval": "20 days"}', 'google_gmail'),
	LATERAL syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_gmail', history_id => '1001') AS s;
SELECT s.due_at - regress_lifecycle.t()
FROM regress_lifecycle.set_up('idle', '{"sync_interval": "20 days"}', 'google_contacts'),
	LATERAL syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_contacts', sync_token => 'tok2') AS s;
SELECT s.due_at - regress_lifecycle.t() BETWEEN '18 days' AND '19 days'
FROM regress_lifecycle.set_up('idle', '{"sync_interval": "20 days", "last_sync_at": "2026-01-10 12:00+00"}'),
	LATERAL syncstate.mark_sync_completed(regress_lifecycle.u(), 'google_calendar', sync_token => 'tok2') AS s;
-- in eight days, with a claim at each hour, each row has one planned full sync,
-- before the cursor dies
SELECT regress_lifecycle.many('google_contacts', 20);
DO $$
DECLARE
	r record;
BEGIN
	FOR tick IN 0 .. 8 * 24 LOOP
		PERFORM regress_lifecycle.at(tick * interval '1 hour');
		FOR r IN SELECT * FROM syncstate.claim_due_syncs('google_contacts', 1000) LOOP
			IF r.sync_token IS NOT NULL AND sync_clock - r.last_full_sync_at >= '7 days'
				FROM syncstate.sync_clock() THEN
				RAISE 'row handed out with a dead cursor';
			END IF;
			PERFORM syncstate.mark_sync_completed(r.user_id, r.source, lease => r.lease,
				items_synced => CASE WHEN r.sync_token IS NULL THEN 1000 ELSE 1 END,
				sync_token => 'tok' || tick);
		END LOOP;
	END LOOP;
END
$$;
SELECT count(*), bool_and(last_full_sync_at - regress_lifecycle.t() BETWEEN interval '7 days' * 0.79 AND interval '7 days' * 0.86), max(token_losses)
FROM syncstate.sync_state;
-- a policy may say otherwise
SELECT token_ttl, token_ttl_from FROM syncstate.set_sync_policy('google_calendar', '{"token_ttl": "1 day", "token_ttl_from": "token"}');
SELECT regress_lifecycle.effect('idle', $$claim_due_syncs('google_calendar')$$, NULL, regress_lifecycle.aged('24:00:01', '365 days'));
DELETE FROM syncstate.sync_policy;

------------------------------------------------------------------------
-- The clock
------------------------------------------------------------------------
-- without syncstate.clock, the time is that of the call, and not of the
-- transaction
RESET syncstate.clock;
DELETE FROM syncstate.sync_state;
BEGIN;
SELECT count(pg_sleep(0.01));
SELECT last_sync_at > now(), updated_at > now(), lease_expires_at - last_sync_at
FROM syncstate.mark_sync_started(regress_lifecycle.u(), 'google_calendar');
ROLLBACK;

SET client_min_messages = warning;
DROP SCHEMA regress_lifecycle CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
