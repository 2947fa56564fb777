--
-- Steering a fleet of syncs: parking, limits of a source, lost cursors, long
-- syncs, requests
--
-- Time is moved by hand (syncstate.clock).
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
RESET client_min_messages;
\pset null '(null)'

CREATE SCHEMA regress_syncstate_steer;
SET search_path = regress_syncstate_steer, syncstate;
TRUNCATE sync_state, sync_policy;

-- Users are numbered.
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;

CREATE FUNCTION n(u uuid) RETURNS integer LANGUAGE sql IMMUTABLE
RETURN ('x' || right(u::text, 8))::bit(32)::integer;

-- Time is told as the distance from a fixed start.
CREATE FUNCTION t(distance interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN '2030-01-01 00:00:00+00'::timestamptz + distance;

CREATE FUNCTION clock_at(t timestamptz) RETURNS void LANGUAGE sql
BEGIN ATOMIC
	SELECT set_config('syncstate.clock', to_char(t AT TIME ZONE 'UTC',
					  'YYYY-MM-DD HH24:MI:SS.US') || '+00', false);
END;

CREATE FUNCTION clock(distance interval) RETURNS void LANGUAGE sql
BEGIN ATOMIC
	SELECT clock_at(t(distance));
END;

-- Claims, and tells the users in the order in which they came.
CREATE FUNCTION claim(source sync_source DEFAULT 'google_calendar',
					  max_rows integer DEFAULT 10)
RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT coalesce(string_agg(n(c.user_id)::text, ' ' ORDER BY c.place), 'nothing')
	FROM (SELECT *, row_number() OVER () AS place
		  FROM claim_due_syncs(source, max_rows)) AS c;
END;

CREATE FUNCTION sqlstate_of(query text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE query;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

-- Starts a sync, due or not; tells its lease.
CREATE FUNCTION start(n integer, source sync_source DEFAULT 'google_calendar')
RETURNS bigint LANGUAGE sql
RETURN (mark_sync_started(u(n), source)).lease;

-- What has become of a row, without what is random.
CREATE VIEW state AS
SELECT n(user_id) AS u, source, status, due_at <= sync_clock() AS is_due,
	requested_at IS NOT NULL AS requested, parked_reason AS parked,
	sync_token AS token, page_token AS page, failures, token_losses AS losses
FROM sync_state ORDER BY user_id, source;

-- ---------------------------------------------------------------------
-- Parking for failures takes both: their number and their time
-- ---------------------------------------------------------------------

-- Fails again and again, until the row is parked or it was often enough.
CREATE FUNCTION fail_every(n integer, step interval, times integer)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	s sync_state;
BEGIN
	FOR i IN 1 .. times LOOP
		PERFORM clock_at(sync_clock() + step);
		s := mark_sync_failed(u(n), 'google_calendar', 'no', lease => start(n));
		EXIT WHEN s.parked_reason IS NOT NULL;
	END LOOP;
	RETURN format('%s failures in a row over %s: %s', s.failures,
				  justify_hours(sync_clock() - s.failing_since),
				  coalesce('parked "' || s.parked_reason || '"',
						   CASE WHEN s.due_at BETWEEN sync_clock() AND sync_clock() + interval '1 hour'
						   THEN 'due within the hour' ELSE 'lost' END));
END
$$;

-- an outage of an hour after half a year of rest, then one of a week
SELECT clock('-200 days');
SELECT start(1) AS lease;
SELECT status FROM mark_sync_completed(u(1), 'google_calendar', sync_token => 'tok', lease => 1);
SELECT clock('0 s');
SELECT fail_every(1, '2 min', 31);
SELECT fail_every(1, '1 hour', 1000);
SELECT * FROM state;

-- one failure every six hours: it is the number that is waited for
SELECT clock('0 s');
SELECT fail_every(2, '6 hours', 29);
SELECT fail_every(2, '6 hours', 1);

-- a completion in between starts both over; a rate limit counts as nothing
SELECT clock('0 s');
SELECT fail_every(3, '6 hours', 29);
SELECT failures, failing_since FROM mark_sync_completed(u(3), 'google_calendar', lease => start(3));
SELECT fail_every(3, '6 hours', 28);
SELECT failures FROM mark_rate_limited(u(3), 'google_calendar', lease => start(3));
SELECT fail_every(3, '6 hours', 1);
SELECT fail_every(3, '6 hours', 1);

-- leases that run out unreported are failures; the row is not handed out to
-- be parked, it is parked instead of being handed out
CREATE FUNCTION vanish_every(n integer, step interval, times integer)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	handed_out integer := 0;
	s sync_state;
BEGIN
	FOR i IN 1 .. times LOOP
		PERFORM clock_at(sync_clock() + step);
		EXIT WHEN claim() <> n::text;
		handed_out := handed_out + 1;
	END LOOP;
	s := get_sync_state(u(n), 'google_calendar');
	RETURN format('handed out %s times, %s, %s failures over %s, %s: %s', handed_out,
				  s.status, s.failures, justify_hours(sync_clock() - s.failing_since),
				  coalesce('parked "' || s.parked_reason || '"', 'not parked'),
				  coalesce(s.error_message, '(none)'));
END
$$;
TRUNCATE sync_state;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source) VALUES (u(4), 'google_calendar');
SELECT vanish_every(4, '71 min', 40);	-- a lease, and the longest wait
SELECT vanish_every(4, '6 hours', 1000);
SELECT sqlstate_of($$SELECT mark_sync_completed(u(4), 'google_calendar', lease => 1)$$) AS the_first_worker,
	sqlstate_of($$SELECT mark_sync_completed(u(4), 'google_calendar', lease => lease)
				FROM sync_state WHERE user_id = u(4)$$) AS the_last_worker;

-- the limits are the policy's
TRUNCATE sync_state;
SELECT max_failures, park_after
FROM set_sync_policy('google_calendar', '{"max_failures": 3, "park_after": "1 hour"}');
SELECT clock('0 s');
SELECT fail_every(1, '10 min', 6);
SELECT fail_every(1, '10 min', 6);
SELECT fail_every(2, '2 hours', 6);
SELECT FROM set_sync_policy('google_calendar', '{"max_failures": null, "park_after": null}');

-- 'auth' waits for nothing; 'permanent' waits the longest wait
SELECT status, due_at, parked_reason, failures
FROM mark_sync_failed(u(3), 'google_calendar', 'invalid_grant', 'auth', lease => start(3));
SELECT status, due_at - sync_clock() AS wait, parked_reason, failures
FROM mark_sync_failed(u(4), 'google_calendar', 'no such calendar', 'permanent', lease => start(4));

-- ---------------------------------------------------------------------
-- A row paused during a run stays parked, however the run ends
-- ---------------------------------------------------------------------
CREATE FUNCTION end_while_paused(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	s sync_state;
BEGIN
	TRUNCATE sync_state, sync_policy;
	PERFORM clock('0 s');
	INSERT INTO sync_state (user_id, source, sync_token, due_at)
		VALUES (u(1), 'google_calendar', 'tok', t('-1 min'));
	PERFORM claim_due_syncs('google_calendar');
	PERFORM clock('1 s');
	s := pause_sync(u(1), 'google_calendar');
	ASSERT s.status = 'syncing' AND s.lease = 1 AND s.lease_expires_at = t('10 min'),
		'a pause ended the run';
	EXECUTE query;
	s := get_sync_state(u(1), 'google_calendar');

	-- long after, a claim finds nothing, and a request is refused
	PERFORM clock('10 days');
	RETURN format('%s, %s, %s; claimed: %s; requested: %s', s.status,
				  CASE WHEN s.due_at IS NULL THEN 'not due' ELSE 'due' END,
				  coalesce(s.parked_reason, 'not parked'), claim(NULL),
				  request_sync(u(1), 'google_calendar'));
END
$$;

SELECT ends, end_while_paused(query) AS leaves
FROM (VALUES
	('not at all', $$SELECT$$),
	('completed', $$SELECT mark_sync_completed(u(1), 'google_calendar', lease => 1)$$),
	('failed', $$SELECT mark_sync_failed(u(1), 'google_calendar', 'x', lease => 1)$$),
	('failed for good', $$SELECT mark_sync_failed(u(1), 'google_calendar', 'x', 'permanent', lease => 1)$$),
	('failed to log in', $$SELECT mark_sync_failed(u(1), 'google_calendar', 'x', 'auth', lease => 1)$$),
	('limited', $$SELECT mark_rate_limited(u(1), 'google_calendar', lease => 1)$$),
	('limited with the source', $$SELECT mark_rate_limited(u(1), 'google_calendar', scope => 'source', lease => 1)$$),
	('released', $$SELECT release_sync(u(1), 'google_calendar', 1)$$),
	('cursor lost', $$SELECT clear_sync_token(u(1), 'google_calendar', 1)$$),
	('cursor lost and completed', $$SELECT clear_sync_token(u(1), 'google_calendar', 1);
		SELECT mark_sync_completed(u(1), 'google_calendar', lease => 1)$$),
	('cursor lost three times', $$SELECT clear_sync_token(u(1), 'google_calendar', 1) FROM generate_series(1, 3)$$),
	('revoked', $$SELECT clear_sync_token(u(1), 'google_calendar')$$),
	('by hand: idle', $$SELECT update_sync_state(u(1), 'google_calendar', '{"status": "idle"}')$$),
	('by hand: error', $$SELECT update_sync_state(u(1), 'google_calendar', '{"status": "error"}')$$),
	('by hand: rate_limited', $$UPDATE sync_state SET status = 'rate_limited'$$),
	('reported in a batch', $$SELECT report_syncs(jsonb_build_array(jsonb_build_object('user_id', u(1),
		'source', 'google_calendar', 'lease', 1, 'outcome', 'completed')))$$),
	('paused twice', $$SELECT pause_sync(u(1), 'google_calendar')$$)
) AS v (ends, query);

-- resumed during the same run: it goes on, and the row is due after it
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
SELECT start(1) AS lease;
SELECT status, lease, due_at, parked_reason FROM pause_sync(u(1), 'google_calendar');
SELECT clock('1 min');
SELECT status, lease, due_at = t('1 min') AS due_now, parked_reason FROM resume_sync(u(1), 'google_calendar');
SELECT claim() AS while_it_runs;
SELECT status, due_at BETWEEN t('13.5 min') AND t('14.25 min') AS next_in_time
FROM mark_sync_completed(u(1), 'google_calendar', lease => 1);

-- ---------------------------------------------------------------------
-- Taking up again: what is parked comes back with its cursor
-- ---------------------------------------------------------------------
TRUNCATE sync_state;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, sync_token, page_token, parked_reason, status, error_message,
						failures, token_losses, token_issued_at, last_full_sync_at)
SELECT u(i::integer), 'google_calendar', 'tok ' || i, 'page', reason, 'error', 'no', 40, 10, t('-3 days'), t('-5 days')
FROM unnest(ARRAY['paused', 'auth', 'failures', 'token_loop', 'paused', 'auth', 'failures', 'token_loop'])
	WITH ORDINALITY AS v (reason, i);
SELECT u, parked FROM state;
SELECT claim(max_rows => 100), next_sync_due('google_calendar');
SELECT count(connect_sync(u(i), 'google_calendar')) AS connected FROM generate_series(1, 4) AS i;
SELECT count(resume_sync(u(i), 'google_calendar')) AS resumed FROM generate_series(5, 8) AS i;
SELECT * FROM state;
SELECT bool_and(token_issued_at = t('-3 days') AND last_full_sync_at = t('-5 days')
				AND failing_since IS NULL AND error_message IS NULL AND due_at = t('0 s')) AS rest_in_order
FROM sync_state;
SELECT claim(max_rows => 100);

-- other rows of the user are left alone
TRUNCATE sync_state;
INSERT INTO sync_state (user_id, source, resource, parked_reason, failures) VALUES
	(u(1), 'google_calendar', '', 'auth', 1), (u(1), 'google_calendar', 'work', 'auth', 1),
	(u(1), 'google_tasks', '', 'auth', 1);
SELECT count(connect_sync(u(1), 'google_calendar')) AS connected;
SELECT source, resource, parked_reason, failures FROM sync_state ORDER BY source, resource;

-- ---------------------------------------------------------------------
-- A rate limit of a whole source
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(i), 'google_calendar', t('-1 hour') + i * interval '1 s' FROM generate_series(1, 4) AS i;
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(i), 'google_tasks', t('-1 hour') + i * interval '1 s' FROM generate_series(11, 12) AS i;
SELECT claim(max_rows => 2);
SELECT status, failures, due_at >= t('5 min') AND due_at < t('5.5 min') AS row_waits
FROM mark_rate_limited(u(1), 'google_calendar', '5 min', 'source', 1);
SELECT source, paused_until - sync_clock() AS pause FROM sync_policy;

-- nothing of it is handed out, whatever was asked for; others are
SELECT request_sync(u(3), 'google_calendar') AS will_come;
SELECT connect_sync(u(5), 'google_calendar') IS NULL AS failed;
SELECT claim() AS of_the_source, claim(NULL) AS of_all,
	(SELECT count(*) FROM get_users_needing_sync('google_calendar')) AS users_of_the_source;
SELECT next_sync_due('google_calendar') BETWEEN t('5 min') AND t('6 min') AS next_of_the_source,
	next_sync_due() BETWEEN t('5 min') AND t('6 min') AS next_of_all;

-- a sync in flight may finish, and go on meanwhile
SELECT status, page_token FROM checkpoint_sync(u(2), 'google_calendar', 1, 'page 2');
SELECT status FROM mark_sync_completed(u(2), 'google_calendar', sync_token => 'tok', lease => 1);

-- a shorter limit never shortens a longer one
SELECT status FROM mark_rate_limited(u(4), 'google_calendar', '1 s', 'source');
SELECT paused_until - sync_clock() AS pause FROM sync_policy;

-- a longer one lengthens it
SELECT status FROM mark_rate_limited(u(4), 'google_calendar', '10 min', 'source');
SELECT paused_until - sync_clock() AS pause FROM sync_policy;

-- a limit of a row is none of the source; without a time, the policy's wait
SELECT status FROM mark_rate_limited(u(11), 'google_tasks', '1 hour', 'row', 1);
SELECT count(*) AS paused_sources FROM sync_policy;
SELECT status, due_at >= t('60 s') AND due_at < t('66 s') AS row_waits
FROM mark_rate_limited(u(12), 'google_tasks', scope => 'source', lease => 1);
SELECT source, paused_until - sync_clock() AS pause FROM sync_policy ORDER BY source;

-- the row's own limit is not cut short by a shorter one of the source
SELECT due_at >= t('1 hour') AS row_waits_on
FROM mark_rate_limited(u(11), 'google_tasks', '1 min', 'source');

-- it ends by itself: each at its own time, at the latest after rate_limit_wait
SELECT clock('9 min 59.999 s');
SELECT claim();
SELECT clock('11 min');
SELECT claim();

-- what the provider says is taken with a grain of salt
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
SELECT count(mark_rate_limited(u(1), 'google_calendar', '1000 years', 'source')) AS limited;
SELECT count(mark_rate_limited(u(1), 'google_tasks', '-1 day', 'source')) AS limited;
SELECT source, paused_until - sync_clock() AS pause FROM sync_policy ORDER BY source;

-- a call that fails pauses nothing
SELECT sqlstate_of($$SELECT mark_rate_limited(u(2), 'google_gmail', '1 h', 'source', 5)$$) AS no_row,
	sqlstate_of($$SELECT mark_rate_limited(u(1), 'google_gmail', '1 h', 'everything')$$) AS no_scope,
	sqlstate_of($$SELECT mark_rate_limited(u(1), 'google_calendar', '2000 years', 'source', 5)$$) AS no_lease;
SELECT count(*) AS paused_sources FROM sync_policy;

-- ---------------------------------------------------------------------
-- Nothing is written where nothing changes
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
SELECT count(mark_rate_limited(u(1), 'google_calendar', '10 min', 'source')) AS limited;
SELECT xmin AS written_by, ctid AS version FROM sync_policy \gset

-- the same limit, told by more workers, each a moment later
SELECT count(mark_rate_limited(u(i), 'google_calendar', '10 min', 'source')) AS limited FROM generate_series(2, 20) AS i;
SELECT clock('0.5 s');
SELECT count(mark_rate_limited(u(21), 'google_calendar', '10 min', 'source')) AS limited;
SELECT clock('1 min');
SELECT count(mark_rate_limited(u(22), 'google_calendar', '1 min', 'source')) AS limited;
SELECT xmin = :'written_by' AND ctid = :'version' AS unwritten, paused_until - t('0 s') AS pause FROM sync_policy;

-- a new one is written
SELECT count(mark_rate_limited(u(23), 'google_calendar', '10 min', 'source')) AS limited;
SELECT xmin <> :'written_by' AS written, paused_until - t('0 s') AS pause FROM sync_policy;

-- a pause until resumed is longer than any
SELECT paused_until FROM pause_sync_source('google_calendar');
SELECT xmin AS written_by, ctid AS version FROM sync_policy \gset
SELECT count(mark_rate_limited(u(24), 'google_calendar', '30 days', 'source')) AS limited;
SELECT xmin = :'written_by' AND ctid = :'version' AS unwritten, paused_until FROM sync_policy;

-- ---------------------------------------------------------------------
-- After a pause the rows come back spread, not in one instant
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(i), 'google_calendar', t('-1 hour') FROM generate_series(1, 1000) AS i;
SELECT count(mark_rate_limited(u(1001), 'google_calendar', '5 min', 'source')) AS limited;
CREATE FUNCTION claimable_at(distance interval) RETURNS bigint LANGUAGE sql
BEGIN ATOMIC
	SELECT clock(distance);
	SELECT count(*) FROM get_users_needing_sync('google_calendar');
END;
SELECT claimable_at('5 min - 0.000001 s') AS before_the_end,
	claimable_at('5 min 1 s') < 60 AS few_at_the_end,
	claimable_at('5 min 15 s') BETWEEN 150 AND 350 AS a_quarter,
	claimable_at('5 min 30 s') BETWEEN 400 AND 600 AS a_half,
	claimable_at('5 min 45 s') BETWEEN 650 AND 850 AS three_quarters,
	claimable_at('6 min') AS all_rows;

-- what is claimed is what was told, and a row's part is its own
SELECT clock('5 min 15 s');
CREATE TEMP TABLE early AS SELECT user_id FROM claim_due_syncs('google_calendar', 10000);
SELECT count(*) BETWEEN 150 AND 350 AS a_quarter FROM early;
SELECT clock('6 min');
SELECT count(*) + (SELECT count(*) FROM early) AS all_rows,
	count(*) FILTER (WHERE user_id IN (SELECT user_id FROM early)) AS twice
FROM claim_due_syncs('google_calendar', 10000);
SELECT clock('1 hour');
SELECT count(mark_sync_completed(user_id, source, lease => lease)) AS completed
FROM sync_state WHERE status = 'syncing';
SELECT clock('2 hours');
SELECT count(mark_rate_limited(u(1001), 'google_calendar', '5 min', 'source')) AS limited;
SELECT clock('2 hours 5 min 15 s');
SELECT array_agg(user_id ORDER BY user_id) = (SELECT array_agg(user_id ORDER BY user_id) FROM early) AS the_same_rows
FROM get_users_needing_sync('google_calendar') AS g (user_id);
DROP TABLE early;

-- the spread is as long as the policy's wait
SELECT count(set_sync_policy('google_calendar', '{"rate_limit_wait": "1 s"}')) AS set;
SELECT claimable_at('2 hours 5 min - 1 s') AS before_the_end, claimable_at('2 hours 5 min 1 s') >= 1000 AS then_all;

-- ---------------------------------------------------------------------
-- Pausing a source by hand
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_calendar', t('-1 hour'));
SELECT source, paused_until, lease_time FROM pause_sync_source('google_calendar');
SELECT claim(), next_sync_due('google_calendar'), next_sync_due();
SELECT request_sync(u(1), 'google_calendar') AS will_come;
SELECT clock('1000 years');
SELECT claim();
SELECT clock('0 s');
SELECT status AS by_name_it_starts FROM mark_sync_started(u(1), 'google_calendar');
SELECT status FROM release_sync(u(1), 'google_calendar', 1);

-- the latest word counts, also where it is the shorter one
SELECT paused_until - t('0 s') AS pause FROM pause_sync_source('google_calendar', t('1 hour'));
SELECT paused_until - t('0 s') AS pause FROM pause_sync_source('google_calendar', t('1 min'));
SELECT clock('1 min - 0.000001 s');
SELECT claim();
SELECT clock('2 min');
SELECT claim();
SELECT paused_until FROM resume_sync_source('google_calendar');
SELECT count(*) AS overrides FROM sync_policy;

-- the pause goes and other settings stay
SELECT lease_time FROM set_sync_policy('google_tasks', '{"lease_time": "1 min"}');
SELECT lease_time, paused_until FROM pause_sync_source('google_tasks');
SELECT lease_time, paused_until FROM resume_sync_source('google_tasks');
SELECT paused_until FROM resume_sync_source('google_gmail');
SELECT source, lease_time, paused_until FROM sync_policy;
TRUNCATE sync_policy;

-- a pause that is rolled back was none
BEGIN;
SELECT paused_until FROM pause_sync_source('google_calendar');
ROLLBACK;
SELECT paused_until FROM get_sync_policy('google_calendar');
SELECT clock('30 min');
SELECT claim();

SELECT sqlstate_of($$SELECT pause_sync_source(NULL)$$) AS no_source,
	sqlstate_of($$SELECT pause_sync_source('google_calendar', NULL)$$) AS no_time,
	sqlstate_of($$SELECT pause_sync_source('google_calendar', '-infinity')$$) AS endless_past,
	sqlstate_of($$SELECT pause_sync_source('elsewhere')$$) AS unknown,
	sqlstate_of($$SELECT resume_sync_source(NULL)$$) AS resume_no_source;
SELECT count(*) AS overrides FROM sync_policy;

-- ---------------------------------------------------------------------
-- Losing the cursor: the loop guard
-- ---------------------------------------------------------------------
TRUNCATE sync_state;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, sync_token, page_token, progress_done, progress_total, due_at)
VALUES (u(1), 'google_calendar', 'tok', 'page', 3, 9, t('-1 min'));
SELECT claim();

-- with the lease the run goes on, as a full sync; another loss, once more
SELECT status, lease, sync_token, page_token, progress_done, progress_total, token_issued_at, token_losses, failures
FROM clear_sync_token(u(1), 'google_calendar', 1);
SELECT status, lease, lease_expires_at - sync_clock() AS lease_for, token_losses
FROM clear_sync_token(u(1), 'google_calendar', 1);
SELECT sync_token, token_losses, last_full_sync_at - sync_clock() AS full_sync
FROM mark_sync_completed(u(1), 'google_calendar', sync_token => 'tok 2', lease => 1);

-- the count is of losses in a row: the completion has ended it
SELECT clock('1 hour');
SELECT claim();
SELECT status, token_losses FROM clear_sync_token(u(1), 'google_calendar', 2);

-- a provider that takes no cursor it gave: clear, full sync, clear, ...
CREATE FUNCTION lose(n integer, times integer)
RETURNS TABLE (loss integer, status sync_status, parked text, waits text, old_lease text) LANGUAGE plpgsql AS $$
DECLARE
	held sync_state := get_sync_state(u(n), 'google_calendar');
	s sync_state;
	d interval;
BEGIN
	FOR i IN 1 .. times LOOP
		IF held.status <> 'syncing' THEN
			SELECT * INTO held FROM claim_due_syncs('google_calendar');
			ASSERT held.user_id = u(n), 'no row to claim';
		END IF;
		s := clear_sync_token(u(n), 'google_calendar', held.lease);
		loss := s.token_losses;
		status := s.status;
		parked := s.parked_reason;
		d := least(interval '1 hour', interval '30 s' * 2 ^ (s.token_losses - 1));
		waits := CASE WHEN s.due_at BETWEEN sync_clock() + d / 2 AND sync_clock() + d
			THEN 'half of ' || d || ' to all of it' WHEN s.due_at IS NULL THEN 'for ever' ELSE 'not' END;
		old_lease := CASE WHEN s.status = 'syncing' THEN 'held'
			ELSE sqlstate_of(format('SELECT mark_sync_completed(%L, %L, sync_token => %L, lease => %s)',
									u(n), 'google_calendar', 'tok', held.lease)) END;
		RETURN NEXT;
		held := s;
		IF s.due_at IS NOT NULL THEN
			PERFORM clock_at(greatest(s.due_at, sync_clock()));
		END IF;
	END LOOP;
END
$$;
SELECT * FROM lose(1, 9);
SELECT status, parked_reason, sync_token, failures, error_message FROM sync_state;

-- parked, it takes a person; reconnected, it starts from none
SELECT clock('1 year');
SELECT claim();
SELECT status, token_losses, parked_reason, error_message FROM connect_sync(u(1), 'google_calendar');
SELECT claim();
SELECT * FROM lose(1, 1);

-- without the lease the run in flight is revoked and the row due at once
TRUNCATE sync_state;
SELECT clock('0 s');
SELECT count(mark_sync_completed(u(1), 'google_calendar', sync_token => 'tok')) AS completed;
SELECT clock('1 min');
SELECT start(1) AS lease;
SELECT status, lease, lease_expires_at, due_at = t('1 min') AS due_now, sync_token, token_losses
FROM clear_sync_token(u(1), 'google_calendar');
SELECT claim();
SELECT lease, sync_token FROM sync_state;

-- also without a run, but not out of its parking place
SELECT status, due_at - sync_clock() > '10 min' AS sleeps FROM mark_sync_completed(u(1), 'google_calendar', sync_token => 'tok', lease => 2);
SELECT status, due_at = t('1 min') AS due_now, sync_token FROM clear_sync_token(u(1), 'google_calendar');
SELECT parked_reason FROM pause_sync(u(1), 'google_calendar');
SELECT due_at, parked_reason, token_losses FROM clear_sync_token(u(1), 'google_calendar');
SELECT status, due_at, parked_reason, token_losses FROM clear_sync_token(u(1), 'google_calendar');
SELECT count(clear_sync_token(u(1), 'google_calendar')) AS cleared FROM generate_series(4, 9);
SELECT due_at, parked_reason, token_losses FROM clear_sync_token(u(1), 'google_calendar');

-- ---------------------------------------------------------------------
-- A run that began before somebody else cleared the cursor cannot bring the
-- old one back
-- ---------------------------------------------------------------------
CREATE FUNCTION clear_behind_a_run(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	s sync_state;
	late text;
	held bigint;
BEGIN
	TRUNCATE sync_state;
	PERFORM clock('0 s');
	INSERT INTO sync_state (user_id, source, sync_token, due_at)
		VALUES (u(1), 'google_calendar', 'old', t('-1 min'));
	SELECT lease INTO held FROM claim_due_syncs('google_calendar');
	PERFORM checkpoint_sync(u(1), 'google_calendar', held, 'page of the old', 10, 100);
	PERFORM clock('1 s');
	EXECUTE query;

	-- the next run has begun; the late one comes with all that it may say
	SELECT * INTO s FROM claim_due_syncs('google_calendar');
	SELECT string_agg(sqlstate_of(format(call, held)), ' ' ORDER BY i) INTO late
	FROM unnest(ARRAY[
		$q$SELECT mark_sync_completed(u(1), 'google_calendar', sync_token => 'old', lease => %s)$q$,
		$q$SELECT mark_sync_failed(u(1), 'google_calendar', 'x', lease => %s)$q$,
		$q$SELECT mark_rate_limited(u(1), 'google_calendar', lease => %s)$q$,
		$q$SELECT clear_sync_token(u(1), 'google_calendar', lease => %s)$q$,
		$q$SELECT checkpoint_sync(u(1), 'google_calendar', %s, 'page of the old')$q$,
		$q$SELECT renew_sync_lease(u(1), 'google_calendar', %s)$q$,
		$q$SELECT release_sync(u(1), 'google_calendar', %s)$q$
	]) WITH ORDINALITY AS c (call, i);
	PERFORM report_syncs(jsonb_build_array(jsonb_build_object('user_id', u(1), 'source', 'google_calendar',
		'lease', held, 'outcome', 'completed', 'sync_token', 'old')));

	RETURN format('next run: %s, page %s, progress %s; late: %s; then %s, cursor %s',
				  CASE WHEN s.sync_token IS NULL THEN 'full' ELSE 'incremental' END,
				  coalesce(s.page_token, 'none'), coalesce(s.progress_done::text, 'none'), late,
				  (get_sync_state(u(1), 'google_calendar')).status,
				  coalesce((get_sync_state(u(1), 'google_calendar')).sync_token, 'none'));
END
$$;
SELECT cleared_by, clear_behind_a_run(query) AS leaves
FROM (VALUES
	('clear_sync_token', $$SELECT clear_sync_token(u(1), 'google_calendar')$$),
	('update_sync_state', $$SELECT update_sync_state(u(1), 'google_calendar', '{"sync_token": null}')$$),
	('update_sync_state, empty', $$SELECT update_sync_state(u(1), 'google_calendar', '{"sync_token": ""}')$$),
	('UPDATE', $$UPDATE sync_state SET sync_token = NULL$$),
	('upsert', $$INSERT INTO sync_state (user_id, source) VALUES (u(1), 'google_calendar')
		ON CONFLICT ON CONSTRAINT sync_state_pkey DO UPDATE SET sync_token = NULL$$),
	('UPDATE of a paused row', $$SELECT pause_sync(u(1), 'google_calendar');
		UPDATE sync_state SET sync_token = NULL; SELECT resume_sync(u(1), 'google_calendar')$$)
) AS v (cleared_by, query);

-- where no run is in flight, the page of the old cursor goes with it too
CREATE FUNCTION clear_after_a_failure(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	s sync_state;
BEGIN
	TRUNCATE sync_state;
	PERFORM clock('0 s');
	INSERT INTO sync_state (user_id, source, sync_token, due_at)
		VALUES (u(1), 'google_calendar', 'old', t('-1 min'));
	PERFORM claim_due_syncs('google_calendar');
	PERFORM checkpoint_sync(u(1), 'google_calendar', 1, 'page of the old', 10, 100);
	PERFORM mark_sync_failed(u(1), 'google_calendar', 'x', lease => 1);
	EXECUTE query;
	s := get_sync_state(u(1), 'google_calendar');
	RETURN format('cursor %s, page %s, progress %s', coalesce(s.sync_token, 'none'),
				  coalesce(s.page_token, 'none'), coalesce(s.progress_done::text, 'none'));
END
$$;
SELECT cleared_by, clear_after_a_failure(query) AS leaves
FROM (VALUES
	('nobody', $$SELECT$$),
	('clear_sync_token', $$SELECT clear_sync_token(u(1), 'google_calendar')$$),
	('update_sync_state', $$SELECT update_sync_state(u(1), 'google_calendar', '{"sync_token": null}')$$),
	('UPDATE', $$UPDATE sync_state SET sync_token = NULL$$)
) AS v (cleared_by, query);

-- ---------------------------------------------------------------------
-- Contacts: each row has a planned full sync before its cursor dies at seven
-- days, and not all of them in one hour
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;

-- all connected in one hour, with intervals from three hours to a month
INSERT INTO sync_state (user_id, source, sync_interval, due_at)
SELECT u(i), 'google_contacts',
	(ARRAY['3 hours', '12 hours', '2 days 5 hours', '6 days', '30 days'])[1 + i % 5]::interval,
	t(i * interval '3.6 s')
FROM generate_series(1, 1000) AS i;

-- what each claim saw, and when full syncs completed
CREATE TABLE runs (at timestamptz, user_id uuid, is_full boolean, age interval);
CREATE PROCEDURE run_contacts(from_hour integer, to_hour integer) LANGUAGE plpgsql AS $$
DECLARE
	claimed sync_state[];
BEGIN
	FOR hour IN from_hour .. to_hour LOOP
		PERFORM clock(hour * interval '1 hour');
		claimed := ARRAY(SELECT c FROM claim_due_syncs('google_contacts', 10000) AS c);
		INSERT INTO runs SELECT sync_clock(), user_id, sync_token IS NULL, sync_clock() - last_full_sync_at
		FROM unnest(claimed);
		PERFORM report_syncs(jsonb_agg(jsonb_build_object('user_id', user_id, 'source', source, 'lease', lease,
			'outcome', 'completed', 'sync_token', 'tok ' || hour)))
		FROM unnest(claimed) HAVING count(*) > 0;
		COMMIT;
	END LOOP;
END
$$;
CALL run_contacts(0, 24 * 27);

-- who was handed a cursor could use it; who was due a full sync had one
SELECT count(DISTINCT user_id) AS rows,
	max(age) FILTER (WHERE NOT is_full) < '7 days' AS no_dead_cursor,
	max(age) FILTER (WHERE is_full) < '7 days' AS full_in_time,
	min(age) FILTER (WHERE is_full) > '5 days 12 hours' AS and_not_early
FROM runs;
SELECT min(full_syncs) AS least, max(full_syncs) AS most
FROM (SELECT count(*) FILTER (WHERE is_full) AS full_syncs FROM runs GROUP BY user_id) AS r;
SELECT bool_and(last_full_sync_at > t('21 days')) AS all_young, sum(token_losses) AS losses, sum(failures) AS failures
FROM sync_state;

-- planned full syncs are spread: of the first week's, no hour has a quarter
SELECT count(*) > 990 AS all_rows, count(DISTINCT at) >= 8 AS over_hours, max(n) < 250 AS none_has_a_quarter
FROM (SELECT at, count(*) OVER (PARTITION BY at) AS n FROM runs
	  WHERE is_full AND age IS NOT NULL AND at < t('8 days')) AS r;

-- after a week in which nothing ran, the claim itself clears
SELECT clock('36 days');
SELECT count(*) AS claimed, count(sync_token) AS with_cursor, count(token_issued_at) AS with_age,
	count(page_token) AS with_page, max(token_losses) AS losses
FROM claim_due_syncs('google_contacts', 10000);
DROP PROCEDURE run_contacts;
DROP TABLE runs;

-- ---------------------------------------------------------------------
-- Long syncs are taken up at their page
-- ---------------------------------------------------------------------
CREATE ROLE regress_syncstate_member;
SELECT grant_user('regress_syncstate_member');
GRANT USAGE ON SCHEMA regress_syncstate_steer TO regress_syncstate_member;
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, sync_token, due_at) VALUES (u(1), 'google_calendar', 'tok', t('-1 min'));
SELECT claim();
SELECT clock('1 min');
SELECT page_token, progress_done, progress_total, sync_token, lease_expires_at - sync_clock() AS lease_for
FROM checkpoint_sync(u(1), 'google_calendar', 1, 'page 2', 250, 900);

-- the user watches it, but not by what
SET SESSION AUTHORIZATION regress_syncstate_member;
SET request.jwt.claims = '{"sub": "00000000-0000-4000-8000-000000000001"}';
SELECT status, progress_done, progress_total FROM syncstate.my_syncs;
SET request.jwt.claims = '{"sub": "00000000-0000-4000-8000-000000000002"}';
SELECT count(*) AS of_others FROM syncstate.my_syncs;
SELECT sqlstate_of('SELECT page_token FROM syncstate.sync_state') AS page_token,
	sqlstate_of($$SELECT syncstate.checkpoint_sync(u(1), 'google_calendar', 1)$$) AS checkpoint;
RESET SESSION AUTHORIZATION;
RESET request.jwt.claims;

-- a null keeps, and renews the lease all the same
SELECT clock('5 min');
SELECT page_token, progress_done, progress_total, lease_expires_at - sync_clock() AS lease_for
FROM checkpoint_sync(u(1), 'google_calendar', 1, progress_done => 500);
SELECT page_token, progress_done, progress_total FROM checkpoint_sync(u(1), 'google_calendar', 1, 'page 3');

-- the worker is killed: after the lease, the next one has its page
SELECT clock('15 min - 0.000001 s');
SELECT claim();
SELECT clock('15 min');
SELECT user_id = u(1) AS same_row, lease, sync_token, page_token, progress_done, progress_total, failures
FROM claim_due_syncs('google_calendar');
SELECT sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', 1, 'page 9')$$) AS the_killed_one;

-- the second one is rate-limited, the third fails, the fourth is sent home
SELECT page_token, progress_done FROM checkpoint_sync(u(1), 'google_calendar', 2, 'page 4', 750);
SELECT status, page_token, progress_done, progress_total FROM mark_rate_limited(u(1), 'google_calendar', '1 min', lease => 2);
SELECT clock('20 min');
SELECT lease, page_token, progress_done, progress_total FROM claim_due_syncs('google_calendar');
SELECT status, page_token, progress_done, progress_total FROM mark_sync_failed(u(1), 'google_calendar', 'x', lease => 3);
SELECT clock('30 min');
SELECT lease, page_token, progress_done, progress_total FROM claim_due_syncs('google_calendar');
SELECT status, page_token, progress_done, progress_total FROM release_sync(u(1), 'google_calendar', 4);
SELECT lease, page_token, progress_done, progress_total FROM claim_due_syncs('google_calendar');

-- paused and resumed it is still there; completion drops it
SELECT page_token FROM pause_sync(u(1), 'google_calendar');
SELECT page_token FROM resume_sync(u(1), 'google_calendar');
SELECT page_token, progress_done, progress_total, sync_token
FROM mark_sync_completed(u(1), 'google_calendar', 900, 'tok 2', lease => 5);

-- a page is a page of its cursor: what clears that drops it
SELECT clock('1 hour');
SELECT claim();
SELECT page_token, progress_done FROM checkpoint_sync(u(1), 'google_calendar', 6, 'page 2', 1, 2);
SELECT status, page_token, progress_done, progress_total FROM clear_sync_token(u(1), 'google_calendar', 6);
SELECT page_token, progress_done FROM checkpoint_sync(u(1), 'google_calendar', 6, 'page 1 of all', 1, 2);

-- a sync that takes longer than a cursor lives does not start with a dead one
INSERT INTO sync_state (user_id, source, history_id, token_issued_at, page_token, progress_done, due_at)
VALUES (u(2), 'google_gmail', '99', t('-6 days 23 hours'), 'page', 5, t('0 s')),
	(u(3), 'google_gmail', '99', t('-6 days 22 hours'), 'page', 5, t('0 s'));
SELECT clock('1 hour 1 s');
SELECT n(user_id) AS u, history_id, page_token, progress_done, token_losses
FROM claim_due_syncs('google_gmail') ORDER BY 1;

-- who is not running has no checkpoint
SELECT sqlstate_of($$SELECT checkpoint_sync(u(9), 'google_calendar', 1, 'p')$$) AS no_row,
	sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', 5, 'p')$$) AS stale,
	sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', 7, 'p')$$) AS future,
	sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', NULL, 'p')$$) AS null_lease,
	sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', 6, repeat('p', 65537))$$) AS long_page,
	sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', 6, 'p', -1)$$) AS negative_done,
	sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', 6, 'p', 1, -1)$$) AS negative_total;
SELECT length(page_token) AS longest FROM checkpoint_sync(u(1), 'google_calendar', 6, repeat('p', 65536));
SELECT sqlstate_of($$SELECT checkpoint_sync(u(1), 'google_calendar', 6, 'p')$$) AS running;

-- checkpoints and renewals touch no index
BEGIN;
SELECT pg_stat_get_xact_tuples_updated('sync_state'::regclass) AS updated,
	pg_stat_get_xact_tuples_hot_updated('sync_state'::regclass) AS hot \gset
DO $$
BEGIN
	FOR i IN 1 .. 5 LOOP
		PERFORM checkpoint_sync(u(1), 'google_calendar', 6, 'page ' || i, i, 5);
		PERFORM renew_sync_lease(u(1), 'google_calendar', 6);
	END LOOP;
END
$$;
SELECT pg_stat_get_xact_tuples_updated('sync_state'::regclass) - :updated AS updated,
	pg_stat_get_xact_tuples_hot_updated('sync_state'::regclass) - :hot AS hot;
COMMIT;

-- ---------------------------------------------------------------------
-- Requests: however many during a run, one more run
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');

-- Requests a sync so often during a run, ends the run as told, and tells how
-- many runs follow within a minute, and how many within the hour after it.
CREATE FUNCTION runs_after(requests integer, query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	s sync_state;
	runs integer := 0;
	soon integer;
BEGIN
	TRUNCATE sync_state, sync_policy;
	PERFORM clock('0 s');
	INSERT INTO sync_state (user_id, source, sync_interval, due_at)
		VALUES (u(1), 'google_calendar', '1 day', t('-1 min'));
	PERFORM claim_due_syncs('google_calendar');
	FOR i IN 1 .. requests LOOP
		PERFORM clock(i * interval '1 s');
		ASSERT request_sync(u(1), 'google_calendar'), 'no sync will come';
	END LOOP;
	EXECUTE query;
	FOR i IN 1 .. 120 LOOP
		soon := CASE WHEN i = 60 THEN runs ELSE soon END;
		PERFORM clock_at(sync_clock() + CASE WHEN i <= 60 THEN interval '1 s' ELSE interval '1 min' END);
		FOR s IN SELECT * FROM claim_due_syncs('google_calendar') LOOP
			runs := runs + 1;
			PERFORM mark_sync_completed(u(1), 'google_calendar', lease => s.lease);
		END LOOP;
	END LOOP;
	RETURN format('%s at once, %s later', soon, runs - soon);
END
$$;
SELECT requests, end_of_run, runs_after(requests, query) AS runs
FROM (VALUES (0), (1), (7)) AS r (requests), (VALUES
	(1, 'completed', $$SELECT mark_sync_completed(u(1), 'google_calendar', lease => 1)$$),
	(2, 'failed for good', $$SELECT mark_sync_failed(u(1), 'google_calendar', 'x', 'permanent', lease => 1)$$),
	(3, 'limited', $$SELECT mark_rate_limited(u(1), 'google_calendar', '30 min', lease => 1)$$),
	(4, 'failed to log in', $$SELECT mark_sync_failed(u(1), 'google_calendar', 'x', 'auth', lease => 1)$$),
	(5, 'released', $$SELECT release_sync(u(1), 'google_calendar', 1)$$),
	(6, 'killed', $$SELECT clock('10 min')$$)
) AS v (i, end_of_run, query)
ORDER BY i, requests;

-- a repeat writes nothing and leaves the place in the lane
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_calendar', t('1 day'));
SELECT request_sync(u(1), 'google_calendar') AS will_come;
SELECT xmin AS written_by, ctid AS version FROM sync_state \gset
SELECT clock('1 s');
SELECT request_sync(u(1), 'google_calendar') AS will_come FROM generate_series(1, 3);
SELECT xmin = :'written_by' AND ctid = :'version' AS unwritten, requested_at - t('0 s') AS requested FROM sync_state;

-- overrides backoff, not a rate limit, not a paused source, not a parking place
INSERT INTO sync_state (user_id, source, status, due_at, parked_reason, failures) VALUES
	(u(2), 'google_calendar', 'error', t('1 hour'), NULL, 7),
	(u(3), 'google_calendar', 'rate_limited', t('1 hour'), NULL, 0),
	(u(4), 'google_calendar', 'idle', NULL, 'paused', 0),
	(u(5), 'google_tasks', 'idle', t('1 hour'), NULL, 0);
SELECT paused_until - t('0 s') AS pause FROM pause_sync_source('google_tasks', t('2 hours'));
SELECT n(user_id) AS u, request_sync(user_id, source) AS will_come FROM sync_state WHERE user_id > u(1) ORDER BY user_id;
SELECT sqlstate_of($$SELECT request_sync(u(6), 'google_calendar')$$) AS no_row;
SELECT * FROM state;
SELECT claim(NULL);
SELECT next_sync_due('google_calendar') - t('0 s') AS next, next_sync_due('google_tasks') - t('2 hours') < '1 min' AS next_of_paused;
SELECT clock('1 hour');
SELECT count(mark_sync_completed(user_id, source, lease => lease)) AS completed FROM sync_state WHERE status = 'syncing';
SELECT claim(NULL) AS the_limited_one;
SELECT clock('2 hours 1 min');
SELECT claim('google_tasks') AS the_paused_one;

-- ---------------------------------------------------------------------
-- Requests come before a backlog; a flood of them does not stop the others
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(i), 'google_calendar', t('-2 days') + i * interval '1 s' FROM generate_series(1, 100000) AS i;
SELECT status, requested_at = t('0 s') AS requested FROM connect_sync(u(100001), 'google_calendar');
SELECT connect_sync(u(100002), 'google_calendar') IS NULL AS failed;
SELECT request_sync(u(20000), 'google_calendar') AS will_come;
SELECT claim(max_rows => 8);

-- one at a time, it is the second at the latest
SELECT connect_sync(u(100003), 'google_calendar') IS NULL AS failed;
SELECT claim(max_rows => 1) = '100003' OR claim(max_rows => 1) = '100003' AS soon;

-- 10,000 connect at once: one row in four is for those who were due before
SELECT clock('1 s');
SELECT count(connect_sync(u(i), 'google_calendar')) AS connected FROM generate_series(200001, 210000) AS i;
SELECT count(*) AS claimed, count(*) FILTER (WHERE n(user_id) > 200000) AS new, count(*) FILTER (WHERE n(user_id) <= 100000) AS ordinary
FROM claim_due_syncs('google_calendar', 100);
SELECT count(*) AS claimed, count(*) FILTER (WHERE n(user_id) > 200000) AS new, count(*) FILTER (WHERE n(user_id) <= 100000) AS ordinary
FROM claim_due_syncs('google_calendar', 1000);

-- a share also for who claims one row at a time, and of all sources
CREATE FUNCTION claim_one_by_one(source sync_source, times integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	ordinary integer := 0;
BEGIN
	FOR i IN 1 .. times LOOP
		ordinary := ordinary + CASE WHEN claim(source, 1)::integer <= 100000 THEN 1 ELSE 0 END;
	END LOOP;
	RETURN format('%s of %s ordinary', ordinary, times);
END
$$;
SELECT claim_one_by_one('google_calendar', 40), claim_one_by_one(NULL, 40);

-- where one lane has nothing, the other has all
SELECT clock('2 s');
DELETE FROM sync_state WHERE n(user_id) <= 100000;
SELECT count(*) AS claimed FROM claim_due_syncs('google_calendar', 1000);
SELECT count(*) AS claimed FROM claim_due_syncs(NULL, 1000);

-- ---------------------------------------------------------------------
-- When a worker need look again
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
CREATE FUNCTION next_due(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	told timestamptz;
	claimed text;
BEGIN
	TRUNCATE sync_state, sync_policy;
	PERFORM clock('0 s');
	EXECUTE query;
	told := next_sync_due('google_calendar');
	ASSERT told IS NOT DISTINCT FROM next_sync_due(), 'other sources are empty';
	IF told IS NULL THEN
		PERFORM clock('100 years');
		RETURN format('never; in a hundred years: %s', claim());
	END IF;

	-- a moment before there is nothing, and then there is
	IF told > sync_clock() THEN
		PERFORM clock_at(told - interval '0.000001 s');
		claimed := claim();
		ASSERT claimed = 'nothing', format('%s came before %s', claimed, told);
		PERFORM clock_at(told);
	END IF;
	RETURN format('%s: %s', CASE WHEN told <= t('0 s') THEN 'now' ELSE 'in ' || told - t('0 s') END, claim());
END
$$;
SELECT what, next_due(query)
FROM (VALUES
	('nothing', 'SELECT'),
	('due', $$INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_calendar', t('-1 h'))$$),
	('due later', $$INSERT INTO sync_state (user_id, source, due_at)
		VALUES (u(1), 'google_calendar', t('2 h')), (u(2), 'google_calendar', t('1 h'))$$),
	('requested', $$INSERT INTO sync_state (user_id, source, due_at, requested_at) VALUES
		(u(1), 'google_calendar', t('1 h'), t('-1 s'))$$),
	('held', $$SELECT start(1)$$),
	('held and requested', $$SELECT start(1), request_sync(u(1), 'google_calendar')$$),
	('held, another later', $$SELECT start(1); INSERT INTO sync_state (user_id, source, due_at) VALUES
		(u(2), 'google_calendar', t('2 min'))$$),
	('held for long, others later', $$SELECT mark_sync_started(u(i), 'google_calendar', '3 h') FROM generate_series(1, 50) AS i;
		INSERT INTO sync_state (user_id, source, due_at) VALUES (u(51), 'google_calendar', t('1 h'))$$),
	('parked', $$SELECT connect_sync(u(1), 'google_calendar'); SELECT pause_sync(u(1), 'google_calendar')$$),
	('limited', $$INSERT INTO sync_state (user_id, source, status, due_at, requested_at) VALUES
		(u(1), 'google_calendar', 'rate_limited', t('1 h'), t('0 s'))$$),
	('source closed', $$INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_calendar', t('-1 h'));
		SELECT pause_sync_source('google_calendar')$$),
	('source closed and opened', $$INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_calendar', t('-1 h'));
		SELECT pause_sync_source('google_calendar'); SELECT resume_sync_source('google_calendar')$$),
	('source paused, row later', $$INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_calendar', t('1 h'));
		SELECT pause_sync_source('google_calendar', t('1 min'))$$),
	('disconnected', $$SELECT connect_sync(u(1), 'google_calendar'); SELECT disconnect_sync(u(1), 'google_calendar')$$)
) AS v (what, query);

-- under a pause it is the first row to come back that counts
TRUNCATE sync_state, sync_policy;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, due_at)
SELECT u(i), 'google_calendar', t('-1 h') FROM generate_series(1, 100) AS i;
SELECT count(pause_sync_source('google_calendar', t('10 min'))) AS paused;
SELECT next_sync_due() BETWEEN t('10 min') AND t('10 min 10 s') AS soon_after_the_pause;
SELECT clock_at(next_sync_due());
SELECT count(*) AS claimed FROM claim_due_syncs();

-- ---------------------------------------------------------------------
-- Clean up
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy;
RESET syncstate.clock;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_steer CASCADE;
DROP OWNED BY regress_syncstate_member;
DROP ROLE regress_syncstate_member;
