/*
 * Push channels: what is to be done about them, what becomes of them, and what a
 * push does.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
DELETE FROM syncstate.sync_event;
CREATE SCHEMA regress_push;
RESET client_min_messages;
SET search_path = regress_push, syncstate, public;
\set VERBOSITY terse

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;
CREATE FUNCTION n(u uuid) RETURNS integer LANGUAGE sql IMMUTABLE
RETURN right(u::text, 12)::integer;
CREATE FUNCTION t(distance interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN ('2030-01-01 00:00:00'::timestamp + distance) AT TIME ZONE 'UTC';
CREATE FUNCTION d(moment timestamptz) RETURNS interval LANGUAGE sql IMMUTABLE
RETURN date_trunc('second', justify_hours(moment - t('0')));
CREATE PROCEDURE at(distance interval) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('syncstate.clock', to_char(t(distance) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', false);
END
$$;

-- What is to be done, and the leases, kept by user and action.
CREATE TABLE claimed (n integer, action text, lease bigint, PRIMARY KEY (n, action));
CREATE FUNCTION claim(max_rows integer DEFAULT 10)
RETURNS TABLE (n integer, action text, channel_id text, provider_ref text, lease_end interval, failures integer)
LANGUAGE plpgsql AS $$
DECLARE
	c record;
BEGIN
	FOR c IN SELECT h.* FROM claim_push_channels('google_calendar', claim.max_rows) AS h ORDER BY h.user_id, h.action LOOP
		INSERT INTO claimed VALUES (n(c.user_id), c.action, c.lease)
		ON CONFLICT ON CONSTRAINT claimed_pkey DO UPDATE SET lease = EXCLUDED.lease;
		n := n(c.user_id); action := c.action; channel_id := c.channel_id;
		provider_ref := c.provider_ref; lease_end := d(c.lease_expires_at); failures := c.failures;
		RETURN NEXT;
	END LOOP;
END
$$;
CREATE FUNCTION connected(n integer, source sync_source DEFAULT 'google_calendar', resource text DEFAULT '', account text DEFAULT '')
RETURNS boolean LANGUAGE sql
RETURN connect_sync(u(n), source, resource, account) IS DISTINCT FROM NULL;
CREATE FUNCTION leased(n integer, action text) RETURNS bigint LANGUAGE sql
RETURN (SELECT c.lease FROM claimed AS c WHERE c.n = leased.n AND c.action = leased.action);
CREATE FUNCTION opened(n integer, action text, channel_id text, life interval DEFAULT '7 days', token text DEFAULT 'secret')
RETURNS text LANGUAGE sql
RETURN (mark_channel_opened(u(n), 'google_calendar', leased(n, action), channel_id, sync_clock() + life, token, 'ref of ' || channel_id)).state;
CREATE VIEW channels AS
SELECT n(c.user_id) AS n, c.state, c.channel_id, d(c.expires_at) AS expires, d(c.renew_at) AS renew,
	d(c.lease_expires_at) AS lease_end, c.failures, c.error_message, d(c.opened_at) AS opened, d(c.last_push_at) AS heard, c.message_number AS number
FROM sync_channel AS c ORDER BY c.user_id, c.opened_at, c.channel_id;

/* ------------------------------------------------------ a channel's life */

CALL at('0');
SELECT n, connected(n) FROM generate_series(1, 3) AS n;
-- a source uses push only if its policy says so
SELECT * FROM claim();
SELECT push_renew_before, push_interval, push_silence FROM set_sync_policy('google_calendar', '{"push_renew_before": "1 day"}');
SELECT push_silence FROM set_sync_policy('google_calendar', '{"push_silence": "1 day"}');
SELECT count(*) FROM claim(2);
SELECT action, channel_id, provider_ref, lease_end, failures FROM claim();
SELECT * FROM claim();
SELECT opened(1, 'open', 'a1');
SELECT n, state, channel_id, expires, renew BETWEEN '6 days' AND '6 days 12:00' AS renewed_in_time, lease_end, opened FROM channels;
SELECT token_hash = sha256('secret') AS hashed, provider_ref FROM sync_channel WHERE channel_id = 'a1';
-- the same call again changes nothing
SELECT opened(1, 'open', 'a1');
SELECT n, state, channel_id FROM channels WHERE n = 1;

-- a lease that ran out counts as a failure, and the channel is handed out again
CREATE TABLE stale AS SELECT * FROM claimed;
CALL at('10 minutes');
SELECT * FROM claim();
SELECT opened(2, 'open', 'b2');
-- what the first worker opened all the same is to be stopped, now and when it says so again
SELECT (mark_channel_opened(u(2), 'google_calendar', s.lease, 'late', t('7 days'), 'secret')).state FROM stale AS s WHERE n = 2;
SELECT (mark_channel_opened(u(2), 'google_calendar', s.lease, 'late', t('7 days'), 'secret')).state FROM stale AS s WHERE n = 2;
SELECT n, action, channel_id FROM claim();
SELECT channel_id, state FROM mark_channel_stopped(u(2), 'google_calendar', leased(2, 'stop'));
-- from the second one on, by backoff after the end of the lease
CALL at('20 minutes');
SELECT n, action, failures FROM claim();
CALL at('21 minutes');
SELECT n, action, failures FROM claim();
-- an expired lease that nobody took over is still good
CALL at('40 minutes');
SELECT opened(3, 'open', 'c3');
SELECT n, state, channel_id FROM channels;

-- each is renewed at its own time, between a day and half a day before the end
CALL at('5 days 23 hours 59 minutes');
SELECT * FROM claim();
CALL at('6 days 12 hours 30 minutes');
SELECT n, action, channel_id, provider_ref FROM claim();
SELECT n, opened(n, 'renew', 'second ' || n) FROM generate_series(1, 3) AS n;
SELECT n, state, channel_id FROM channels;
-- both are heard until the old one is stopped, which it is at once
SELECT id, receive_push(id, 'secret') FROM unnest('{a1,second 1}'::text[]) AS id;
SELECT n, action, channel_id, provider_ref FROM claim();
SELECT n, (mark_channel_stopped(u(n), 'google_calendar', leased(n, 'stop'))).channel_id FROM generate_series(1, 3) AS n;
SELECT id, receive_push(id, 'secret') FROM unnest('{a1,second 1}'::text[]) AS id;
SELECT n, state, channel_id FROM channels;

-- a channel that lives for less than push_renew_before is renewed half-way
SELECT connected(4);
SELECT n, action FROM claim();
SELECT opened(4, 'open', 'short', '2 hours');
SELECT n, renew - opened AS after FROM channels WHERE n = 4;
-- one that does not end is never renewed
SELECT state, expires_at, renew_at FROM mark_channel_failed(u(4), 'google_calendar', 0, 'stale lease'); -- ERROR
SELECT connected(5);
SELECT n, action FROM claim();
SELECT state, expires_at, renew_at FROM mark_channel_opened(u(5), 'google_calendar', leased(5, 'open'), 'endless', NULL, 'secret');
CALL at('7 days 12 hours');
SELECT n, action FROM claim() WHERE n IN (4, 5);
SELECT opened(4, 'renew', 'longer', '30 days');

/* ---------------------------------------------------------------- failures */

CALL at('8 days');
SELECT n, connected(n) FROM generate_series(11, 16) AS n;
SELECT n, action FROM claim() WHERE n > 10;
-- transient: by backoff
SELECT state, failures, error_message, renew_at - sync_clock() BETWEEN '15 seconds' AND '30 seconds' AS waits, lease_expires_at
FROM mark_channel_failed(u(11), 'google_calendar', leased(11, 'open'), 'no answer');
SELECT mark_channel_failed(u(11), 'google_calendar', leased(11, 'open'), 'no answer'); -- ERROR
-- unsupported: asked again after a month, and polled as ever
SELECT state, failures, error_message, renew_at - sync_clock() AS after
FROM mark_channel_failed(u(12), 'google_calendar', leased(12, 'open'), 'push is not supported', 'unsupported');
SELECT push_until FROM sync_state WHERE user_id = u(12);
-- auth: the rows of the account are parked, those of other accounts and providers are not
SELECT connected(13, 'google_gmail'), connected(13, 'google_calendar', 'work'), connected(13, 'google_calendar', '', 'other');
SELECT state, failures, error_message, renew_at, lease_expires_at
FROM mark_channel_failed(u(13), 'google_calendar', leased(13, 'open'), 'invalid_grant', 'auth');
SELECT account, source, resource, parked_reason FROM sync_state WHERE user_id = u(13) ORDER BY account, source, resource;
SELECT event, account, source, resource, lease, reason, detail FROM take_sync_events() WHERE event = 'parked';
SELECT n, action FROM claim() WHERE n > 10;
-- it waits until the account is connected again
SELECT count(*) FROM connect_account(u(13));
SELECT resource, action FROM claim_push_channels('google_calendar') ORDER BY resource;
-- the row that the event named recovers
SELECT count(mark_sync_completed(user_id, source, sync_token => 'token', resource => resource, account => account))
FROM sync_state WHERE user_id = u(13);
SELECT event, account, source, resource FROM take_sync_events() WHERE event = 'recovered';
-- where auth_failures is more, it waits for retry_cap first
SELECT auth_failures FROM set_sync_policy('google_calendar', '{"auth_failures": 2}');
SELECT state, failures, renew_at - sync_clock() AS after FROM mark_channel_failed(u(14), 'google_calendar', leased(14, 'open'), 'invalid_grant', 'auth');
SELECT parked_reason FROM sync_state WHERE user_id = u(14);
CALL at('8 days 1 hour');
SELECT n, action, failures FROM claim(100) WHERE n = 14;
SELECT failures, renew_at FROM mark_channel_failed(u(14), 'google_calendar', leased(14, 'open'), 'invalid_grant', 'auth');
SELECT parked_reason FROM sync_state WHERE user_id = u(14);
-- ... and after the account is connected again
BEGIN;
SELECT count(*) FROM connect_account(u(14));
SELECT n, action, failures FROM claim(100) WHERE n = 14;
SELECT failures FROM mark_channel_failed(u(14), 'google_calendar', leased(14, 'open'), 'invalid_grant', 'auth');
SELECT parked_reason FROM sync_state WHERE user_id = u(14);
ROLLBACK;
SELECT auth_failures FROM set_sync_policy('google_calendar', '{"auth_failures": null}');
-- an active channel that cannot be renewed is stopped
SELECT opened(15, 'open', 'fifteen', '2 hours'), opened(16, 'open', 'sixteen', '2 hours');
CALL at('8 days 2 hours');
SELECT n, action FROM claim(100) WHERE n IN (15, 16) ORDER BY n;
SELECT state, channel_id, renew_at - sync_clock() AS after FROM mark_channel_failed(u(15), 'google_calendar', leased(15, 'renew'), 'no longer', 'unsupported');
SELECT n, state, channel_id FROM channels WHERE n = 15 ORDER BY state;
SELECT push_until FROM sync_state WHERE user_id = u(15);
SELECT n, action FROM claim(100) WHERE n = 15;
-- one that cannot be stopped is kept until it ends
SELECT state, renew_at = expires_at AS until_its_end FROM mark_channel_failed(u(15), 'google_calendar', leased(15, 'stop'), 'cannot', 'unsupported');
CALL at('8 days 4 hours');
SELECT n, action FROM claim(100) WHERE n = 15;
SELECT n, state, channel_id FROM channels WHERE n = 15;
CALL at('39 days');
SELECT n, action FROM claim(100) WHERE n IN (12, 15) ORDER BY n;
-- a grant that has ended does not park the account when a channel is to be stopped
SELECT disconnect_sync(u(16), 'google_calendar'), connected(16, 'google_gmail');
SELECT n, opened(n, 'renew', 'sixteen again') FROM unnest('{16}'::integer[]) AS n;
SELECT n, action, channel_id FROM claim(100) WHERE n = 16;
SELECT state, failures, renew_at - sync_clock() AS after FROM mark_channel_failed(u(16), 'google_calendar', leased(16, 'stop'), 'invalid_grant', 'auth');
SELECT parked_reason FROM sync_state WHERE user_id = u(16);

/* ------------------------------------------ rows that go, wait and return */

DELETE FROM sync_state;
CALL at('40 days');
SELECT count(*) > 0 AS stops FROM claim(100) WHERE action = 'stop';
DELETE FROM sync_channel;
SELECT n, connected(n) FROM generate_series(21, 26) AS n;
SELECT n, action FROM claim();
SELECT n, opened(n, 'open', 'channel ' || n) FROM generate_series(21, 24) AS n;
-- deleted: an open channel is stopped, one that was not opened is forgotten
SELECT disconnect_sync(u(n), 'google_calendar') FROM unnest('{21,25}'::integer[]) AS n;
SELECT n, action, channel_id FROM claim();
SELECT n, state, channel_id FROM channels WHERE n IN (21, 25);
-- but what a worker has opened meanwhile is to be stopped
SELECT opened(25, 'open', 'too late');
SELECT n, action, channel_id FROM claim();
-- gone, likewise
SELECT connected(22, resource => 'work');
SELECT lease FROM claim_push_channels() WHERE resource = 'work' \gset
SELECT state FROM mark_channel_opened(u(22), 'google_calendar', :lease, 'work', t('47 days'), 'secret', resource => 'work');
SELECT resource, change FROM set_sync_resources(u(22), 'google_calendar', '{home}');
SELECT resource, action, channel_id FROM claim_push_channels() ORDER BY resource;
-- parked: the channel waits for its row, and is then renewed at once
SELECT (pause_sync(u(n), 'google_calendar')).parked_reason FROM unnest('{23,26}'::integer[]) AS n;
CALL at('46 days 18 hours');
SELECT n, action FROM claim(100) WHERE n IN (23, 24, 26);
SELECT n, renew FROM channels WHERE n IN (23, 26);
SELECT (resume_sync(u(n), 'google_calendar')).parked_reason FROM unnest('{23,26}'::integer[]) AS n;
SELECT n, action FROM claim(100) WHERE n IN (23, 26);
-- a push of a parked or deleted row is known, and requests nothing
UPDATE sync_state SET requested_at = NULL WHERE user_id = u(24);
SELECT count(*) FROM pause_sync(u(24), 'google_calendar');
SELECT receive_push('channel 24', 'secret'), receive_push('channel 21', 'secret');
SELECT requested_at FROM sync_state WHERE user_id = u(24);
-- no push any more: all are stopped
SELECT push_renew_before FROM set_sync_policy('google_calendar', '{"push_renew_before": null}');
CALL at('46 days 20 hours');
SELECT n, action, channel_id FROM claim(100) WHERE n BETWEEN 23 AND 26;
SELECT state, count(*) FROM sync_channel GROUP BY state ORDER BY state;
-- and each row is polled as ever
UPDATE sync_state SET requested_at = NULL, push_until = sync_clock() + '1 day', due_at = sync_clock() + '6 hours' WHERE user_id = u(23);
SELECT channel_id FROM mark_channel_stopped(u(23), 'google_calendar', leased(23, 'stop'));
SELECT push_until, due_at <= sync_clock() + '15 minutes' AS soon FROM sync_state WHERE user_id = u(23);
SELECT opened(23, 'renew', 'after all'), count(*) FILTER (WHERE channel_id = 'after all') FROM claim(100);
-- and forgotten when they have ended
CALL at('60 days');
SELECT count(*) FROM claim(100);
SELECT count(*) FROM sync_channel;

/* ----------------------------------------------------------------- pushes */

DELETE FROM sync_state;
CALL at('100 days');
SELECT push_renew_before FROM set_sync_policy('google_calendar', '{"push_renew_before": "1 day"}');
SELECT n, connected(n) FROM generate_series(31, 33) AS n;
SELECT n, action FROM claim();
SELECT n, opened(n, 'open', 'push ' || n) FROM generate_series(31, 33) AS n;
CREATE FUNCTION sync(n integer, items integer DEFAULT 0) RETURNS TABLE (due interval, push_until interval) LANGUAGE sql AS $$
	SELECT justify_hours(date_trunc('second', s.due_at - sync_clock())), justify_hours(s.push_until - sync_clock())
	FROM mark_sync_started(u(n), 'google_calendar') AS r,
		mark_sync_completed(u(n), 'google_calendar', items, 'token', lease => r.lease) AS s
$$;
SELECT jitter FROM set_sync_policy('google_calendar', '{"jitter": 0}');
-- trusted for a day: polled every six hours
SELECT * FROM sync(31);
CALL at('100 days 1 minute');
-- unknown, wrong, and none
SELECT receive_push('nobody', 'secret'), receive_push('push 31', 'Secret'), receive_push('push 31', ''), receive_push('push 31', NULL), receive_push(NULL, 'secret'), receive_push('push 31', NULL, 5), receive_push(repeat('x', 2000), repeat('x', 100000));
SELECT d(requested_at), d(push_until) FROM sync_state WHERE user_id = u(31);
SELECT receive_push('push 31', 'secret', 5);
SELECT d(requested_at), d(push_until) FROM sync_state WHERE user_id = u(31);
SELECT heard, number FROM channels WHERE n = 31;
SELECT n(user_id) FROM claim_due_syncs('google_calendar');
-- during a sync in flight: one more run
CALL at('100 days 1 minute 5 seconds');
SELECT receive_push('push 31', 'secret', 7);
SELECT heard, number FROM channels WHERE n = 31;
SELECT s.status, d(s.requested_at) FROM sync_state AS r, mark_sync_completed(u(31), 'google_calendar', 1, 'token', lease => r.lease) AS s WHERE r.user_id = u(31);
CALL at('100 days 1 minute 12 seconds');
SELECT n(user_id) FROM claim_due_syncs('google_calendar');
SELECT s.status, d(s.requested_at) FROM sync_state AS r, mark_sync_completed(u(31), 'google_calendar', 1, 'token', lease => r.lease) AS s WHERE r.user_id = u(31);
-- a repeat is dropped, and what is newer is not
SELECT receive_push('push 31', 'secret', 5), receive_push('push 31', 'secret', 4);
SELECT d(requested_at) FROM sync_state WHERE user_id = u(31);
SELECT receive_push('push 31', 'secret', 8);
SELECT d(requested_at) FROM sync_state WHERE user_id = u(31);
SELECT heard, number FROM channels WHERE n = 31;
-- written once in ten seconds
CALL at('100 days 1 minute 20 seconds');
CREATE TABLE before AS SELECT c.id, c.xmin AS x FROM sync_channel AS c;
SELECT count(receive_push('push 31', 'secret', n)) FROM generate_series(10, 20) AS n;
SELECT count(*) FROM sync_channel AS c JOIN before AS b USING (id) WHERE c.xmin <> b.x;
-- a limit of the account holds it back as any request
SELECT s.status FROM sync_state AS r, mark_rate_limited(u(32), 'google_calendar', '1 hour', lease => r.lease) AS s WHERE r.user_id = u(32);
SELECT receive_push('push 32', 'secret');
SELECT n(user_id) FROM claim_due_syncs('google_calendar') WHERE user_id = u(32);

/* ----------------------------------------------------------- how to poll */

-- at the ordinary interval within one after the channel falls silent
CALL at('100 days 20 hours');
SELECT due > '4 hours' AND due <= '4 hours 15 minutes' AS soon_after_the_end, push_until FROM sync(33);
CALL at('101 days 20 hours');
SELECT * FROM sync(33);
-- a push says that it works
SELECT receive_push('push 33', 'secret');
SELECT * FROM sync(33);
-- and no longer than it lives
CALL at('106 days 23 hours');
SELECT receive_push('push 33', 'secret');
SELECT due > '1 hour' AND due <= '1 hour 15 minutes' AS soon_after_the_end, push_until FROM sync(33);
-- an own interval that is longer stays
UPDATE sync_state SET sync_interval = '12 hours' WHERE user_id = u(31);
SELECT receive_push('push 31', 'secret', 100);
SELECT push_silence, push_interval FROM set_sync_policy('google_calendar', '{"push_silence": "30 days", "push_interval": "1 hour"}');
UPDATE sync_channel SET expires_at = NULL;
CALL at('107 days');
SELECT receive_push('push 31', 'secret', 101);
SELECT * FROM sync(31);
UPDATE sync_state SET sync_interval = NULL WHERE user_id = u(31);
SELECT * FROM sync(31);
-- without push in the policy, as ever
SELECT push_renew_before FROM set_sync_policy('google_calendar', '{"push_renew_before": null}');
SELECT * FROM sync(31);
SELECT push_renew_before FROM set_sync_policy('google_calendar', '{"push_renew_before": "1 day", "push_silence": "1 day", "push_interval": null}');

-- a row whose push ends is polled again within its interval, unless it waits for something else
DELETE FROM sync_channel;
DELETE FROM sync_state;
CALL at('110 days');
SELECT n, connected(n) FROM generate_series(41, 43) AS n;
SELECT n, action FROM claim();
SELECT n, opened(n, 'open', 'ends ' || n, '2 hours') FROM generate_series(41, 43) AS n;
SELECT policy.push_silence FROM set_sync_policy('google_calendar', '{"sync_interval": "10 minutes"}') AS policy;
SELECT count(*) FROM generate_series(41, 43) AS n, sync(n);
CALL at('110 days 1 hour 55 minutes');
UPDATE sync_state SET due_at = t('111 days'), push_until = t('111 days');
SELECT count(*) FROM mark_sync_started(u(42), 'google_calendar') AS r, mark_sync_failed(u(42), 'google_calendar', 'no answer', lease => r.lease);
SELECT count(*) FROM pause_sync(u(43), 'google_calendar');
SELECT n, action FROM claim();
SELECT count(*) FROM resume_sync(u(43), 'google_calendar');
UPDATE sync_state SET due_at = t('111 days'), push_until = t('111 days') WHERE user_id = u(43);
SELECT n, (mark_channel_failed(u(n), 'google_calendar', leased(n, 'renew'), 'no longer', 'unsupported')).state FROM generate_series(41, 42) AS n;
SELECT n(user_id), status, d(push_until), due_at <= sync_clock() + '10 minutes' AS soon, due_at < sync_clock() AS now FROM sync_state ORDER BY user_id;

/* ----------------------------------------------------------------- budgets */

-- a row with push costs its rare polls and its changes
DELETE FROM sync_channel;
DELETE FROM sync_state;
SELECT daily_budget FROM set_sync_policy('google_calendar', '{"daily_budget": 1000, "sync_interval": null}');
INSERT INTO sync_state (user_id, source, due_at, changes_seen, seconds_watched, push_until)
SELECT u(n), 'google_calendar', sync_clock() + '1 hour', 8, 86400, CASE WHEN n % 2 = 0 THEN sync_clock() + '1 day' END FROM generate_series(1, 100) AS n;
SELECT rows, budget, planned BETWEEN 950 AND 1050 AS is_spent, multiplier IS NOT NULL AS planned FROM rebalance_syncs('google_calendar');
-- 50 rows with push take 8 changes and 4 polls a day each, and the others the rest
SELECT round((1000 - 50 * (8 + 4)) / 50.0) AS rest_for_each,
	round((86400 / (b.multiplier / sqrt(8 / 86400.0)))::numeric / (1 - p.jitter)::numeric) AS given
FROM sync_budget AS b, get_sync_policy('google_calendar') AS p;
SELECT daily_budget FROM set_sync_policy('google_calendar', '{"daily_budget": null}');
SELECT * FROM rebalance_syncs('google_calendar');

/* ------------------------------------------------------------------ Gmail */

-- the mailbox is the id: it is prolonged in place
DELETE FROM sync_state;
CALL at('200 days');
SELECT push_renew_before FROM set_sync_policy('google_gmail', '{"push_renew_before": "6 days"}');
SELECT connected(51, 'google_gmail'), connected(52, 'google_gmail');
CREATE FUNCTION watch(n integer, action text, mailbox text) RETURNS TABLE (state text, id_stays boolean, expires interval, number bigint) LANGUAGE plpgsql AS $$
DECLARE
	c record;
	before record;
BEGIN
	SELECT * INTO STRICT c FROM claimed AS l WHERE l.n = watch.n AND l.action = watch.action;
	SELECT * INTO before FROM sync_channel AS h WHERE h.channel_id = mailbox;
	RETURN QUERY SELECT h.state, h.id = before.id, d(h.expires_at), h.message_number
	FROM mark_channel_opened(u(n), 'google_gmail', c.lease, mailbox, sync_clock() + '7 days', 'shared secret') AS h;
END
$$;
CREATE FUNCTION claim_gmail() RETURNS TABLE (n integer, action text, channel_id text) LANGUAGE sql AS $$
	WITH c AS MATERIALIZED (SELECT * FROM claim_push_channels('google_gmail')),
	kept AS (INSERT INTO claimed SELECT n(c.user_id), c.action, c.lease FROM c
		ON CONFLICT ON CONSTRAINT claimed_pkey DO UPDATE SET lease = EXCLUDED.lease)
	SELECT n(c.user_id), c.action, c.channel_id FROM c ORDER BY 1, 2
$$;
SELECT * FROM claim_gmail();
SELECT * FROM watch(51, 'open', 'ada@example.com');
SELECT receive_push('ada@example.com', 'shared secret', 1000);
CALL at('204 days 12 hours');
SELECT * FROM claim_gmail();
SELECT * FROM watch(51, 'renew', 'ada@example.com');
SELECT state, channel_id, failures FROM sync_channel WHERE user_id = u(51);
-- that of another row is refused, unless that one is to be stopped
SELECT * FROM watch(52, 'open', 'ada@example.com'); -- ERROR
SELECT disconnect_sync(u(51), 'google_gmail');
CALL at('204 days 13 hours');
SELECT * FROM claim_gmail();
SELECT * FROM watch(52, 'open', 'ada@example.com');
SELECT n(user_id), state, channel_id FROM sync_channel WHERE source = 'google_gmail' ORDER BY 1;
-- connected again before it was stopped: not stopped
SELECT disconnect_sync(u(52), 'google_gmail');
SELECT * FROM claim_gmail();
SELECT count(*) FROM connect_sync(u(52), 'google_gmail');
SELECT * FROM claim_gmail();
SELECT * FROM watch(52, 'open', 'ada@example.com');
SELECT n(user_id), state, channel_id FROM sync_channel WHERE source = 'google_gmail' ORDER BY 1;
SELECT mark_channel_stopped(u(52), 'google_gmail', leased(52, 'stop')); -- ERROR

/* ------------------------------------------- a channel opened during a sync */

-- what changes after the listing and before the channel is told by nobody: one more sync
DELETE FROM sync_state;
DELETE FROM sync_channel;
CALL at('250 days');
SELECT n, connected(n) FROM generate_series(55, 56) AS n;
SELECT n, action FROM claim();
SELECT count(*) FROM claim_due_syncs('google_calendar');
SELECT opened(55, 'open', 'during');
SELECT n(user_id), d(requested_at) FROM sync_state ORDER BY 1;
SELECT d(s.requested_at) FROM sync_state AS r, mark_sync_completed(u(55), 'google_calendar', 1, 'token', lease => r.lease) AS s WHERE r.user_id = u(55);
CALL at('250 days 10 seconds');
SELECT n(user_id) FROM claim_due_syncs('google_calendar');
-- a channel that follows one that is heard needs none; one that follows one that has ended does
UPDATE sync_channel SET renew_at = sync_clock() WHERE state = 'active';
SELECT n, action FROM claim() WHERE action = 'renew';
SELECT opened(55, 'renew', 'second');
SELECT d(requested_at) FROM sync_state WHERE user_id = u(55);
UPDATE sync_channel SET renew_at = sync_clock(), expires_at = sync_clock() WHERE state = 'active';
SELECT n, action FROM claim() WHERE action = 'renew';
SELECT opened(55, 'renew', 'third');
SELECT d(requested_at) FROM sync_state WHERE user_id = u(55);

/* ----------------------------------------------- what is hard to notice */

-- leases as they are, which tell when a row was made
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000)::bigint;
DELETE FROM sync_state;
DELETE FROM sync_channel;
SELECT push_renew_before FROM set_sync_policy('google_gmail', '{"push_renew_before": null}');
CALL at('300 days');
SELECT n, connected(n) FROM generate_series(61, 63) AS n;
SELECT n, action FROM claim();
SELECT n, opened(n, 'open', 'first ' || n) FROM generate_series(61, 62) AS n;
-- disconnected and connected again before anybody looked: the old channel is not the new row's
SELECT disconnect_sync(u(61), 'google_calendar'), connected(61);
SELECT n, action, channel_id FROM claim();
-- a row that returns with what was trusted of a former channel, and is refused another
UPDATE sync_state SET push_until = sync_clock() + '1 day' WHERE user_id = u(61);
SELECT (mark_channel_failed(u(61), 'google_calendar', leased(61, 'open'), 'no longer', 'unsupported')).state;
SELECT push_until FROM sync_state WHERE user_id = u(61);
DELETE FROM sync_channel WHERE user_id = u(61) AND state = 'unsupported';
-- one that returns while its former channel is stopped
UPDATE sync_state SET push_until = sync_clock() + '1 day', due_at = sync_clock() + '6 hours', requested_at = NULL WHERE user_id = u(61);
SELECT (mark_channel_stopped(u(61), 'google_calendar', leased(61, 'stop'))).channel_id;
SELECT push_until, due_at <= sync_clock() + '15 minutes' AS soon FROM sync_state WHERE user_id = u(61);
-- with a lease of the site's own making, no channel is taken for another row's
BEGIN;
UPDATE sync_channel SET lease = 5 WHERE user_id = u(62);
SELECT n, action FROM claim() WHERE n = 62;
ROLLBACK;
-- what is to be stopped comes first, since a mailbox has one channel at a time
SELECT disconnect_sync(u(n), 'google_calendar'), connected(n) FROM unnest('{61,62}'::integer[]) AS n;
SELECT array_agg(action ORDER BY place) FROM claim_push_channels('google_calendar') WITH ORDINALITY AS c
	(user_id, account, source, resource, action, lease, lease_expires_at, channel_id, provider_ref, expires_at, failures, place);
-- also when it is due after others of which one is not handed out, as that of a paused row
BEGIN;
DELETE FROM sync_state;
DELETE FROM sync_channel;
SELECT n, connected(n) FROM generate_series(67, 69) AS n;
SELECT n, action FROM claim();
SELECT n, opened(n, 'open', 'channel ' || n) FROM unnest('{67,69}'::integer[]) AS n;
SELECT parked_reason FROM pause_sync(u(69), 'google_calendar');
SELECT disconnect_sync(u(67), 'google_calendar');
SELECT n, action FROM claim();
UPDATE sync_channel SET renew_at = sync_clock() - (70 - n(user_id)) * interval '1 second' * CASE state WHEN 'retiring' THEN 0 ELSE 1 END;
SAVEPOINT due;
SELECT array_agg(action ORDER BY place) FROM claim_push_channels('google_calendar', 2) WITH ORDINALITY AS c
	(user_id, account, source, resource, action, lease, lease_expires_at, channel_id, provider_ref, expires_at, failures, place);
-- nor is one opened before that of the former row was handed out to be stopped
ROLLBACK TO due;
SELECT connected(67);
DELETE FROM sync_channel WHERE user_id <> u(67);
INSERT INTO sync_channel (user_id, account, source, resource, renew_at) VALUES (u(67), '', 'google_calendar', '', sync_clock() - interval '1 second');
SELECT n, action FROM claim(1);
SELECT n, action FROM claim(1);
ROLLBACK;
-- a channel that was opened before its row was made, or by a worker who set out before that, is not the new row's
BEGIN;
SELECT n, connected(n) FROM generate_series(67, 68) AS n;
SELECT n, action FROM claim() WHERE n >= 67;
SELECT n, opened(n, 'open', 'first of ' || n) FROM generate_series(67, 68) AS n;
UPDATE sync_channel SET renew_at = sync_clock() WHERE channel_id = 'first of 68';
SELECT n, action FROM claim() WHERE n >= 67;
SELECT n, disconnect_sync(u(n), 'google_calendar'), connected(n) FROM generate_series(67, 68) AS n;
SAVEPOINT reconnected;
SELECT opened(68, 'renew', 'late of 68');
SELECT n, action, channel_id FROM claim() WHERE n >= 67 ORDER BY n, action, channel_id;
-- that the provider refused the former row says nothing of the new one
ROLLBACK TO reconnected;
SELECT mark_channel_failed(u(68), 'google_calendar', leased(68, 'renew'), 'refused', 'unsupported'); -- ERROR
ROLLBACK TO reconnected;
SELECT mark_channel_failed(u(68), 'google_calendar', leased(68, 'renew'), 'revoked', 'auth'); -- ERROR
ROLLBACK TO reconnected;
-- what is to be stopped may fail whenever its row was made
SELECT n, action FROM claim() WHERE n >= 67;
SELECT (mark_channel_failed(u(68), 'google_calendar', leased(68, 'stop'), 'not now')).failures;
ROLLBACK;
-- a clock that was wrong: no channel waits longer than a rule makes it
CALL at('1300 days');
SELECT count(*) > 0 AS claimed FROM claim();
CALL at('301 days');
SELECT DISTINCT action FROM claim();
BEGIN;
SELECT connected(66);
SELECT n, action FROM claim(100) WHERE n = 66;
SELECT opened(66, 'open', 'sixty-six', '5 days');
UPDATE sync_channel SET renew_at = sync_clock() + '1 year' WHERE channel_id = 'sixty-six';
SELECT n, action FROM claim(100) WHERE n = 66;
ROLLBACK;
-- what the provider must not be asked now waits: a source that is paused, an account that is limited
BEGIN;
SELECT connected(n) FROM unnest('{64,65}'::integer[]) AS n;
SELECT source FROM pause_sync_source('google_calendar', sync_clock() + '1 hour');
SELECT count(*) FROM claim_push_channels();
CALL at('301 days 1 hour');
SELECT (mark_rate_limited(u(64), 'google_calendar', '2 hours')).limited_until - sync_clock() AS limited;
SELECT (mark_rate_limited(u(65), 'google_calendar', '3 days')).limited_until - sync_clock() AS limited;
SELECT n, action FROM claim();
CALL at('301 days 2 hours 59 minutes');
SELECT n, action FROM claim() WHERE n IN (64, 65);
CALL at('301 days 3 hours 1 minute');
SELECT n, action FROM claim() WHERE n IN (64, 65);
-- looked at each day, since a limit may be lifted
CALL at('302 days 2 hours');
SELECT n, action FROM claim() WHERE n = 65;
UPDATE sync_state SET limited_until = NULL WHERE user_id = u(65);
CALL at('303 days 2 hours');
SELECT n, action FROM claim() WHERE n = 65;
ROLLBACK;
-- columns that somebody adds do no harm, whatever their names
BEGIN;
ALTER TABLE sync_channel ADD COLUMN c integer DEFAULT 7, ADD COLUMN s text DEFAULT 'x';
SELECT n, opened(n, 'open', 'more columns ' || n) FROM unnest('{63}'::integer[]) AS n;
SELECT n, action FROM claim();
SELECT receive_push('more columns 63', 'secret', 1);
SELECT channel_id, c, s FROM sync_channel WHERE channel_id = 'more columns 63';
ROLLBACK;

/* ----------------------------------------------------- what is not allowed */

\set VERBOSITY default
SELECT mark_channel_opened(u(52), 'google_gmail', NULL, 'x', NULL, 'secret'); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, NULL, NULL, 'secret'); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, '', NULL, 'secret'); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, repeat('x', 1025), NULL, 'secret'); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, 'x', sync_clock(), 'secret'); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, 'x', 'infinity', 'secret'); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, 'x', NULL, NULL); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, 'x', NULL, ''); -- ERROR
SELECT mark_channel_opened(u(52), 'google_gmail', 1, 'x', NULL, 'secret', repeat('x', 8193)); -- ERROR
SELECT mark_channel_failed(u(52), 'google_gmail', 1, NULL); -- ERROR
SELECT mark_channel_failed(u(52), 'google_gmail', 1, 'x', 'permanent'); -- ERROR
SELECT mark_channel_failed(u(52), 'google_gmail', 1, 'x'); -- ERROR
SELECT mark_channel_stopped(u(52), 'google_gmail', 1); -- ERROR
SELECT claim_push_channels(max_rows => 0); -- ERROR
SELECT claim_push_channels(lease_time => '2 days'); -- ERROR
SELECT set_sync_policy('google_gmail', '{"push_interval": "0 seconds"}'); -- ERROR
-- only what is handed out to be stopped is reported as stopped
DELETE FROM sync_channel;
SELECT push_renew_before FROM set_sync_policy('google_gmail', '{"push_renew_before": "6 days"}');
SELECT connected(52, 'google_gmail');
SELECT * FROM claim_gmail();
SELECT mark_channel_stopped(u(52), 'google_gmail', leased(52, 'open')); -- ERROR
-- by hand, no less legal
INSERT INTO sync_channel (id, user_id, account, source, resource, lease, state) VALUES (u(1), u(1), '', 'google_gmail', '', 0, 'active'); -- ERROR
INSERT INTO sync_channel (id, user_id, account, source, resource, lease, state) VALUES (u(1), u(1), '', 'google_gmail', '', 0, 'closed'); -- ERROR
BEGIN READ ONLY;
SELECT claim_push_channels(); -- ERROR
ROLLBACK;
\set VERBOSITY terse

SET client_min_messages = warning;
RESET syncstate.clock;
DELETE FROM sync_state;
DELETE FROM sync_channel;
DELETE FROM sync_policy;
DELETE FROM sync_event;
RESET search_path;
DROP SCHEMA regress_push CASCADE;
