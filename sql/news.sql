-- What each call tells: its events, and the run that it ends, in each state of a
-- row; and that it tells nothing else.
SET syncstate.clock = '2030-01-01 12:00:00+00';
CREATE SCHEMA regress_news;
SET search_path = regress_news;
SET datestyle = iso;
SET timezone = 'UTC';

SELECT keep_runs, keep_runs_for FROM syncstate.set_sync_policy('google_calendar', '{"keep_runs": "all"}');

CREATE FUNCTION regress_news.t() RETURNS timestamptz LANGUAGE sql RETURN '2030-01-01 12:00:00+00'::timestamptz;
CREATE FUNCTION regress_news.u(n integer DEFAULT 1) RETURNS uuid LANGUAGE sql
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- The states; times are counted from the clock.
CREATE TABLE regress_news.states AS
SELECT v.*, row_number() OVER () AS n FROM (VALUES
	('new', '{"due_at": "-1 minute"}'::jsonb, '{"sync_token": null, "lease": 0}'::jsonb),
	('idle', '{"due_at": "-1 minute", "last_successful_sync_at": "-1 hour"}', '{}'),
	-- a claim handed it out, for a request
	('running', '{"due_at": "-6 minutes", "lease_expires_at": "4 minutes", "run_requested_at": "-7 minutes", "last_successful_sync_at": "-1 hour"}',
		'{"status": "syncing", "lease_required": true, "progress_done": 30}'),
	-- began by name, and as the first sync of the row
	('named', '{"due_at": "-6 minutes", "lease_expires_at": "4 minutes"}', '{"status": "syncing", "sync_token": null}'),
	('expired', '{"due_at": "-11 minutes", "lease_expires_at": "-1 minute", "last_successful_sync_at": "-1 hour"}',
		'{"status": "syncing", "lease_required": true}'),
	-- the next failure is half-way to being parked
	('failing', '{"due_at": "-6 minutes", "lease_expires_at": "4 minutes", "failing_since": "-84 hours", "last_successful_sync_at": "-100 hours"}',
		'{"status": "syncing", "lease_required": true, "failures": 14}'),
	-- was told before, and the next one parks
	('hopeless', '{"due_at": "-6 minutes", "lease_expires_at": "4 minutes", "failing_since": "-7 days", "troubled_at": "-3 days", "last_successful_sync_at": "-8 days"}',
		'{"status": "syncing", "lease_required": true, "failures": 29}'),
	-- lost its cursor nine times
	('losing', '{"due_at": "-6 minutes", "lease_expires_at": "4 minutes", "last_successful_sync_at": "-8 days"}',
		'{"status": "syncing", "lease_required": true, "token_losses": 9}'),
	-- was parked, and connected again
	('returned', '{"due_at": "-6 minutes", "lease_expires_at": "4 minutes", "troubled_at": "-1 hour", "last_successful_sync_at": "-8 days"}',
		'{"status": "syncing", "lease_required": true}'),
	('parked', '{"troubled_at": "-1 hour", "last_successful_sync_at": "-8 days"}', '{"parked_reason": "auth"}'),
	('paused', '{"lease_expires_at": "4 minutes", "last_successful_sync_at": "-1 hour"}',
		'{"status": "syncing", "lease_required": true, "parked_reason": "paused"}'),
	('gone', '{"last_successful_sync_at": "-1 hour"}', '{"parked_reason": "gone"}')
) AS v(state, times, others);

-- Makes the one row, a resource of the second account of the user.
CREATE FUNCTION regress_news.set_up(state text) RETURNS void
	LANGUAGE plpgsql
	AS $$
BEGIN
	DELETE FROM syncstate.sync_state;
	INSERT INTO syncstate.sync_state
		SELECT r.* FROM regress_news.states AS s, jsonb_populate_record(NULL::syncstate.sync_state,
			'{"status": "idle", "lease": 7, "items_synced": 0, "failures": 0, "token_losses": 0, "syncs_started": 0, "lease_required": false, "sync_token": "tok"}'
			|| jsonb_build_object('user_id', u(), 'account', 'work', 'source', 'google_calendar', 'resource', 'a',
								  'created_at', t() - '30 days'::interval, 'updated_at', t(), 'last_sync_at', t() - '6 minutes'::interval)
			|| s.others
			|| (SELECT jsonb_object_agg(key, t() + value::interval) FROM jsonb_each_text(s.times))) AS r
		WHERE s.state = set_up.state;
	DELETE FROM syncstate.sync_event;
	DELETE FROM syncstate.sync_run;
END
$$;

-- What was told since.
CREATE FUNCTION regress_news.told() RETURNS text
	LANGUAGE sql
	AS $$
	SELECT concat_ws('; ',
		(SELECT string_agg(concat_ws(' ', e.event, e.reason, e.account, e.resource, 'lease ' || e.lease, '(' || e.detail || ')')
			|| CASE WHEN e.at = t() THEN '' ELSE ' AT ' || e.at END, ', ' ORDER BY e.event)
		 FROM syncstate.sync_event AS e),
		(SELECT string_agg(concat_ws(' ', 'run', r.lease::text, r.outcome, CASE WHEN r.was_full THEN 'full' END,
									 CASE WHEN r.was_requested THEN 'requested' END, r.items || ' items',
									 r.started_at - t() || ' to ' || r.ended_at - t(), '(' || r.error_message || ')'), ', ')
		 FROM syncstate.sync_run AS r))
$$;

-- What a call tells in each state; $1 is the row's lease.
CREATE FUNCTION regress_news.tells(call text) RETURNS SETOF text
	LANGUAGE plpgsql
	AS $$
DECLARE
	s record;
	told text;
	line text;
	lines text[] = '{}';
	answers text[] = '{}';
	i integer;
BEGIN
	FOR s IN SELECT state FROM regress_news.states ORDER BY n LOOP
		PERFORM regress_news.set_up(s.state);
		BEGIN
			EXECUTE replace(replace(call, 'KEY', format('%L, ''google_calendar''', u())), 'ROW', 'resource => ''a'', account => ''work''')
				USING (SELECT lease FROM syncstate.sync_state);
			told = coalesce(nullif(regress_news.told(), ''), 'nothing');
		EXCEPTION WHEN SQLSTATE 'PT409' THEN
			told = 'refused';
			IF regress_news.told() <> '' THEN
				told = told || ', BUT ' || regress_news.told();
			END IF;
		END;
		i = array_position(answers, told);
		IF i IS NULL THEN
			answers = answers || told;
			lines = lines || s.state;
		ELSE
			lines[i] = lines[i] || ', ' || s.state;
		END IF;
	END LOOP;
	FOR i IN 1 .. cardinality(lines) LOOP
		RETURN NEXT lines[i] || ': ' || answers[i];
	END LOOP;
END
$$;

\pset tuples_only
\pset format unaligned

-- the worker's calls
SELECT tells('SELECT syncstate.claim_due_syncs()');
SELECT tells('SELECT syncstate.mark_sync_started(KEY, ROW)');
SELECT tells('SELECT syncstate.mark_sync_completed(KEY, 5, ''tok'', lease => $1, ROW)');
SELECT tells('SELECT syncstate.mark_sync_completed(KEY, 5, ROW)');
SELECT tells('SELECT syncstate.mark_sync_failed(KEY, ''boom'', lease => $1, ROW)');
SELECT tells('SELECT syncstate.mark_sync_failed(KEY, ''boom'', ROW)');
SELECT tells('SELECT syncstate.mark_sync_failed(KEY, ''boom'', ''permanent'', lease => $1, ROW)');
SELECT tells('SELECT syncstate.mark_sync_failed(KEY, ''boom'', ''auth'', lease => $1, ROW)');
SELECT tells('SELECT syncstate.mark_sync_failed(KEY, ''boom'', ''auth'', lease => $1, scope => ''row'', ROW)');
SELECT tells('SELECT syncstate.mark_rate_limited(KEY, lease => $1, ROW)');
SELECT tells('SELECT syncstate.mark_rate_limited(KEY, ROW)');
SELECT tells('SELECT syncstate.release_sync(KEY, $1, ROW)');
SELECT tells('SELECT syncstate.renew_sync_lease(KEY, $1, ROW)');
SELECT tells('SELECT syncstate.checkpoint_sync(KEY, $1, ''page'', ROW)');
SELECT tells('SELECT syncstate.clear_sync_token(KEY, $1, ROW)');
SELECT tells('SELECT syncstate.clear_sync_token(KEY, ROW)');
SELECT tells('SELECT syncstate.may_sweep(KEY, $1, 11, 100, ROW)');
SELECT tells('SELECT syncstate.may_sweep(KEY, $1, 10, 100, ROW)');
SELECT tells('SELECT syncstate.may_sweep(KEY, $1, 100, 100, true, ROW)');

-- batches
CREATE FUNCTION regress_news.batch(report jsonb) RETURNS bigint
	LANGUAGE sql
	AS $$
	SELECT count(*) FROM syncstate.report_syncs((
		SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'account', account, 'source', source, 'resource', resource, 'lease', lease) || report)
		FROM syncstate.sync_state))
$$;
SELECT tells('SELECT batch(''{"outcome": "completed", "items_synced": 5}'')');
SELECT tells('SELECT batch(''{"outcome": "failed", "error_message": "boom"}'')');
SELECT tells('SELECT batch(''{"outcome": "failed", "error_message": "boom", "kind": "auth"}'')');
SELECT tells('SELECT batch(''{"outcome": "rate_limited"}'')');
SELECT tells('SELECT batch(''{"outcome": "released"}'')');

-- the application's calls
SELECT tells('SELECT syncstate.connect_sync(KEY, ROW)');
SELECT tells('SELECT syncstate.pause_sync(KEY, ROW)');
SELECT tells('SELECT syncstate.resume_sync(KEY, ROW)');
SELECT tells('SELECT syncstate.request_sync(KEY, ROW)');
SELECT tells('SELECT syncstate.disconnect_sync(KEY, ROW)');
SELECT tells('SELECT syncstate.connect_account(u(), ''work'')');
SELECT tells('SELECT syncstate.pause_account(u(), ''work'')');
SELECT tells('SELECT syncstate.resume_account(u(), ''work'')');
SELECT tells('SELECT syncstate.request_account(u(), ''work'')');
SELECT tells('SELECT syncstate.disconnect_account(u(), ''work'')');
SELECT tells('SELECT syncstate.set_sync_resources(KEY, ''{a}'', ''work'')');
SELECT tells('SELECT syncstate.set_sync_resources(KEY, ''{}'', ''work'')');
SELECT tells('SELECT syncstate.revive_syncs(''google_calendar'')');

-- direct writes are the calls that they amount to
SELECT tells('UPDATE syncstate.sync_state SET status = ''syncing''');
SELECT tells('UPDATE syncstate.sync_state SET status = ''idle'', items_synced = 5');
SELECT tells('UPDATE syncstate.sync_state SET status = ''error'', error_message = ''boom''');
SELECT tells('UPDATE syncstate.sync_state SET status = ''rate_limited''');
SELECT tells('UPDATE syncstate.sync_state SET sync_token = NULL');
SELECT tells('UPDATE syncstate.sync_state SET due_at = NULL');
SELECT tells('UPDATE syncstate.sync_state SET parked_reason = ''auth''');
SELECT tells('UPDATE syncstate.sync_state SET parked_reason = ''gone''');
SELECT tells('UPDATE syncstate.sync_state SET due_at = regress_news.t()');
SELECT tells('SELECT syncstate.update_sync_state(KEY, ''{"status": "idle", "items_synced": 5}'', ROW)');
SELECT tells('DELETE FROM syncstate.sync_state');
-- what is parked by hand for a failure recovers, too
SELECT set_up('idle');
UPDATE syncstate.sync_state SET parked_reason = 'auth';
SELECT syncstate.connect_sync(u(), 'google_calendar', 'a', 'work') IS NULL,
	syncstate.mark_sync_completed(u(), 'google_calendar', resource => 'a', account => 'work') IS NULL;
SELECT told();

-- An insert tells nothing: it may be part of a restore.
SELECT set_up(state), told() FROM regress_news.states ORDER BY n;
DELETE FROM syncstate.sync_state;

-- A warning comes once per run of failures, and before the row is parked; the
-- recovery once after it.
SELECT syncstate.set_sync_policy('google_calendar', '{"max_failures": 4, "park_after": "4 hours", "retry_base": "1 second", "retry_cap": "1 second", "keep_runs": "none"}') IS NULL;
CREATE FUNCTION regress_news.fail_at(hours numeric) RETURNS text
	LANGUAGE plpgsql
	AS $$
BEGIN
	PERFORM set_config('syncstate.clock', (t() + hours * '1 hour'::interval)::text, false);
	DELETE FROM syncstate.sync_event;
	PERFORM syncstate.mark_sync_failed(u(), 'google_calendar', 'boom at ' || hours);
	RETURN (SELECT string_agg(concat_ws(' ', event, reason, '(' || detail || ')'), ', ' ORDER BY event) FROM syncstate.sync_event);
END
$$;
SELECT h, fail_at(h) FROM unnest(ARRAY[0, 1, 1.9, 2, 3, 3.9, 4, 5]) AS h;
SELECT syncstate.connect_sync(u(), 'google_calendar') IS NULL;
SELECT h, fail_at(h) FROM unnest(ARRAY[6, 8, 9]) AS h;
-- progress ends a run of failures, but the row has not recovered
SELECT syncstate.mark_sync_started(u(), 'google_calendar') IS NULL;
SELECT syncstate.checkpoint_sync(u(), 'google_calendar', page_token => 'p') IS NULL;
SELECT h, fail_at(h) FROM unnest(ARRAY[10, 12, 13]) AS h;
DELETE FROM syncstate.sync_event;
SELECT syncstate.mark_sync_completed(u(), 'google_calendar') IS NULL;
SELECT syncstate.mark_sync_completed(u(), 'google_calendar') IS NULL;
SELECT event FROM syncstate.sync_event ORDER BY event;
SELECT syncstate.set_sync_policy('google_calendar', '{"max_failures": null, "park_after": null, "retry_base": null, "retry_cap": null, "keep_runs": "all"}') IS NULL;
SET syncstate.clock = '2030-01-01 12:00:00+00';
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_event;
DELETE FROM syncstate.sync_run;

-- An account that is parked as a whole is one event, also where several reports of
-- a batch say so; each run is kept, if its source's are.
SELECT syncstate.set_sync_policy('google_tasks', '{"keep_runs": "failures"}') IS NULL;
SELECT count(syncstate.connect_sync(u(n), s, r, a)) FROM unnest(ARRAY[1, 2]) AS n,
	unnest(ARRAY['google_calendar', 'google_gmail', 'google_tasks']::syncstate.sync_source[]) AS s,
	unnest(ARRAY['a', 'b']) AS r, unnest(ARRAY['', 'work']) AS a;
SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 100);
SELECT count(*) FROM syncstate.report_syncs((
	SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'account', account, 'source', source, 'resource', resource, 'lease', lease,
										'outcome', 'failed', 'error_message', 'revoked ' || resource, 'kind', 'auth'))
	FROM syncstate.sync_state WHERE account = 'work' AND source <> 'google_calendar'));
SELECT event, reason, user_id, account, source, resource, lease IS NOT NULL, detail FROM syncstate.sync_event ORDER BY user_id;
SELECT count(*) FROM syncstate.sync_state WHERE parked_reason = 'auth';
SELECT source, outcome, count(*) FROM syncstate.sync_run GROUP BY source, outcome;
DELETE FROM syncstate.sync_event;
-- all of it is parked already
SELECT count(*) FROM syncstate.pause_account(u(1), 'work');
SELECT count(*) FROM syncstate.sync_event;
SELECT count(*) FROM syncstate.pause_account(u(1), '');
SELECT event, reason, user_id, account, source, resource, lease, detail FROM syncstate.sync_event;
DELETE FROM syncstate.sync_event;
SELECT resource, change FROM syncstate.set_sync_resources(u(2), 'google_calendar', '{b,c}');
SELECT event, reason, account, source, resource, lease IS NOT NULL, detail FROM syncstate.sync_event;
DELETE FROM syncstate.sync_event;
-- a row that completes in the batch that parks it tells of its own run
SELECT count(*) FROM syncstate.report_syncs((
	SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'source', source, 'resource', resource, 'lease', lease)
		|| CASE resource WHEN 'a' THEN '{"outcome": "completed"}' ELSE '{"outcome": "failed", "error_message": "revoked", "kind": "auth"}' END::jsonb)
	FROM syncstate.sync_state WHERE user_id = u(2) AND account = '' AND source = 'google_tasks'));
SELECT event, reason, resource, lease IS NOT NULL FROM syncstate.sync_event ORDER BY event;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_event;
-- a run that was lost brings its row half-way, which tells why
SELECT regress_news.set_up('failing');
UPDATE syncstate.sync_state SET lease_expires_at = t() - '1 minute'::interval;
SELECT failures FROM syncstate.mark_sync_started(u(), 'google_calendar', resource => 'a', account => 'work');
SELECT event, detail FROM syncstate.sync_event;
-- a run that loses its cursor for the third time had to list all of it
SELECT regress_news.set_up('running');
UPDATE syncstate.sync_state SET token_losses = 2;
SELECT parked_reason, token_losses FROM syncstate.clear_sync_token(u(), 'google_calendar', 7, 'a', 'work');
SELECT outcome, was_full FROM syncstate.sync_run;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_event;
DELETE FROM syncstate.sync_run;

-- Sources
CREATE FUNCTION regress_news.of_source() RETURNS text
	LANGUAGE sql
	AS $$
	WITH taken AS (DELETE FROM syncstate.sync_event RETURNING *)
	SELECT string_agg(concat_ws(' ', event, source, reason, detail, user_id), ', ') FROM taken
$$;
SELECT syncstate.pause_sync_source('google_gmail', t() + '1 hour'::interval) IS NULL, of_source();
SELECT of_source();
SELECT syncstate.pause_sync_source('google_gmail', t() + '2 hours'::interval) IS NULL;
SELECT of_source();
SELECT syncstate.resume_sync_source('google_gmail') IS NULL;
SELECT of_source();
SELECT syncstate.resume_sync_source('google_gmail') IS NULL;
SELECT of_source();
SELECT syncstate.set_sync_policy('google_gmail', '{"paused_until": "infinity"}') IS NULL;
SELECT of_source();
SELECT syncstate.set_sync_policy('google_gmail', '{"paused_until": null, "jitter": 0}') IS NULL;
SELECT of_source();
SELECT syncstate.set_sync_policy('google_gmail', '{"jitter": null}') IS NULL;
SELECT of_source();
SELECT syncstate.mark_rate_limited(u(), 'google_gmail', '1 hour', 'source') IS NULL;
SELECT of_source();
SELECT syncstate.mark_rate_limited(u(), 'google_gmail', '2 hours', 'source') IS NULL;
SELECT of_source();
SELECT syncstate.resume_sync_source('google_gmail') IS NULL;
SELECT of_source();
DELETE FROM syncstate.sync_state;

-- Which runs are kept
CREATE FUNCTION regress_news.kept(keep text) RETURNS text
	LANGUAGE plpgsql
	AS $$
DECLARE
	report text;
BEGIN
	PERFORM syncstate.set_sync_policy('google_calendar', jsonb_build_object('keep_runs', keep));
	DELETE FROM syncstate.sync_run;
	FOREACH report IN ARRAY ARRAY['{"outcome": "completed"}', '{"outcome": "failed", "error_message": "x"}', '{"outcome": "rate_limited"}', '{"outcome": "released"}'] LOOP
		PERFORM regress_news.set_up('running');
		PERFORM regress_news.batch(report::jsonb);
		INSERT INTO kept_runs SELECT * FROM syncstate.sync_run;
	END LOOP;
	PERFORM regress_news.set_up('expired');
	PERFORM syncstate.claim_due_syncs();
	INSERT INTO kept_runs SELECT * FROM syncstate.sync_run;
	PERFORM regress_news.set_up('running');
	DELETE FROM syncstate.sync_state;
	INSERT INTO kept_runs SELECT * FROM syncstate.sync_run;
	RETURN (SELECT string_agg(outcome, ' ' ORDER BY outcome) FROM kept_runs);
END
$$;
CREATE TEMP TABLE kept_runs (LIKE syncstate.sync_run);
SELECT kept('all');
TRUNCATE kept_runs;
SELECT kept('failures');
TRUNCATE kept_runs;
SELECT kept('none');
-- a lease that its row has for a second time, by hand: the first run stays
SELECT syncstate.set_sync_policy('google_calendar', '{"keep_runs": "all"}') IS NULL;
SELECT set_up('running');
INSERT INTO syncstate.sync_run (user_id, account, source, resource, lease, ended_at, outcome, was_full, was_requested)
	SELECT user_id, account, source, resource, lease, t(), 'failed', false, false FROM syncstate.sync_state;
SELECT batch('{"outcome": "completed"}');
SELECT outcome FROM syncstate.sync_run;
SELECT syncstate.set_sync_policy('google_calendar', '{"keep_runs": "some"}');
SELECT syncstate.set_sync_policy('google_calendar', '{"keep_runs": ""}');
SELECT syncstate.set_sync_policy('google_calendar', '{"keep_runs_for": "0.5 seconds"}');
SELECT syncstate.set_sync_policy('google_calendar', '{"keep_runs_for": "1 month"}');

-- Taking
INSERT INTO syncstate.sync_event (at, event, detail) SELECT t() - n * '1 minute'::interval, 'gone', n FROM generate_series(1, 150) AS n;
SELECT count(*), min(detail::integer), max(detail::integer) FROM syncstate.take_sync_events();
BEGIN;
SELECT string_agg(detail, ' ') FROM syncstate.take_sync_events(5);
SELECT string_agg(detail, ' ') FROM syncstate.take_sync_events(5);
ROLLBACK;
SELECT string_agg(detail, ' ') FROM syncstate.take_sync_events(5);
SELECT count(*) FROM syncstate.take_sync_events(10000);
SELECT count(*) FROM syncstate.take_sync_events();
SELECT * FROM syncstate.take_sync_events(0);
SELECT * FROM syncstate.take_sync_events(10001);
SELECT * FROM syncstate.take_sync_events(NULL);

-- The bounds, without any job: the next event, and the next run of any source,
-- deletes what is too old.
SELECT syncstate.set_sync_policy('google_calendar', '{"keep_runs": "all", "keep_runs_for": "1 day"}') IS NULL;
SELECT syncstate.set_sync_policy('google_tasks', '{"keep_runs": "all"}') IS NULL;
SELECT set_up('running');
INSERT INTO syncstate.sync_event (at, event, detail)
	SELECT t() - d * '1 day'::interval, 'gone', d FROM unnest(ARRAY[29, 30, 30.001, 31]) AS d;
INSERT INTO syncstate.sync_run (user_id, account, source, resource, lease, ended_at, outcome, was_full, was_requested)
	SELECT u(), '', s, '', 1000 * d, t() - d * '1 day'::interval, 'completed', false, false
	FROM unnest(ARRAY['google_calendar', 'google_tasks']::syncstate.sync_source[]) AS s,
		unnest(ARRAY[0.5, 1, 1.001, 7, 7.001, 8]) AS d;
SELECT syncstate.pause_sync(u(), 'google_calendar', 'a', 'work') IS NULL;
SELECT event, detail FROM syncstate.sync_event ORDER BY at;
-- each source has its turn
DO $$
BEGIN
	DELETE FROM syncstate.sync_state;
	FOR i IN 1 .. 4 LOOP
		PERFORM syncstate.mark_sync_started(regress_news.u(), 'google_calendar', account => 'work');
		PERFORM syncstate.mark_sync_completed(regress_news.u(), 'google_calendar', account => 'work');
	END LOOP;
END
$$;
SELECT source, lease / 1000.0 AS days FROM syncstate.sync_run WHERE account = '' ORDER BY source, lease;

-- A user sees their own runs, without the lease, and no events; the bounds of a
-- statement of theirs hold.
CREATE ROLE regress_news_user;
SELECT syncstate.grant_user('regress_news_user');
SET ROLE regress_news_user;
SET request.jwt.claim.sub = '00000000-0000-4000-8000-000000000001';
SELECT DISTINCT user_id, outcome FROM syncstate.my_sync_runs;
SELECT count(*) > 0 FROM syncstate.my_sync_runs;
SET request.jwt.claim.sub = '00000000-0000-4000-8000-000000000002';
SELECT count(*) FROM syncstate.my_sync_runs;
SELECT lease FROM syncstate.sync_run;
SELECT * FROM syncstate.sync_event;
SELECT * FROM syncstate.take_sync_events();
RESET ROLE;
RESET request.jwt.claim.sub;

-- What is told of users goes with them.
CREATE TABLE regress_news.users (id uuid PRIMARY KEY);
INSERT INTO regress_news.users SELECT u(n) FROM generate_series(1, 2) AS n;
SELECT syncstate.watch_users('regress_news.users');
SELECT syncstate.connect_sync(u(2), 'google_calendar') IS NULL, syncstate.mark_sync_started(u(2), 'google_calendar') IS NULL,
	syncstate.pause_sync(u(2), 'google_calendar') IS NULL;
SELECT count(DISTINCT user_id) FROM syncstate.sync_event;
DELETE FROM regress_news.users WHERE id = u(2);
SELECT count(*) FROM syncstate.sync_event WHERE user_id = u(2);
SELECT count(*) FROM syncstate.sync_run WHERE user_id = u(2);
SELECT count(*) > 0 FROM syncstate.sync_event WHERE user_id = u(1);
SELECT count(*) > 0 FROM syncstate.sync_run WHERE user_id = u(1);
DELETE FROM regress_news.users;
SELECT count(*) FROM syncstate.sync_run;
SELECT count(*) FROM syncstate.sync_event WHERE user_id IS NOT NULL;

DELETE FROM syncstate.sync_event;
DELETE FROM syncstate.sync_policy;
\set VERBOSITY terse
DROP OWNED BY regress_news_user;
DROP ROLE regress_news_user;
SET client_min_messages = warning;
DROP SCHEMA regress_news CASCADE;
