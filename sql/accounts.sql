--
-- Accounts: what a provider says about one holds for all of its rows
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
RESET client_min_messages;
CREATE SCHEMA regress_syncstate_accounts;
SET search_path = regress_syncstate_accounts, syncstate, public;
SET timezone = 'UTC';
TRUNCATE sync_state, sync_policy;
ALTER TABLE sync_state ALTER COLUMN lease SET DEFAULT 0;

CREATE FUNCTION u(i integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid;

-- Time is what the test says, from here on.
CREATE FUNCTION t(since interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN timestamptz '2030-01-01 00:00:00+00' + since;
CREATE FUNCTION clock(since interval) RETURNS void LANGUAGE sql
BEGIN ATOMIC
	SELECT set_config('syncstate.clock', t(since)::text, false) WHERE true;
END;

-- A row in a few words.
CREATE FUNCTION show(s sync_state) RETURNS text LANGUAGE sql STABLE
RETURN concat_ws(' ', 'user', ltrim(right(s.user_id::text, 3), '0'), nullif(s.account, ''), s.source, nullif(s.resource, ''),
	s.status, s.parked_reason, 'limited for ' || (s.limited_until - sync_clock()), 'requested ' || (s.requested_at - t('0')));

-- A user with two accounts; the first has the list, three calendars and two
-- other sources.  A second user has the same account.
CREATE FUNCTION set_up() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE sync_state, sync_policy;
	PERFORM clock('0');
	INSERT INTO sync_state (user_id, account, source, resource, due_at)
	SELECT u(user_no), a, s::sync_source, r, t('-1 hour')
	FROM (VALUES (1, 'home', 'google_calendar', ''), (1, 'home', 'google_calendar', 'a'), (1, 'home', 'google_calendar', 'b'),
		(1, 'home', 'google_calendar', 'c'), (1, 'home', 'google_tasks', ''), (1, 'home', 'google_gmail', ''),
		(1, 'work', 'google_calendar', ''), (1, 'work', 'google_gmail', ''), (2, 'home', 'google_calendar', '')) AS v (user_no, a, s, r);
END
$$;

CREATE VIEW rows AS SELECT show(s) FROM sync_state AS s ORDER BY user_id, account, source, resource;

-- ---------------------------------------------------------------------
-- The key
-- ---------------------------------------------------------------------
SELECT set_up();
-- every call finds the row of its account, and no other
SELECT show(mark_sync_started(u(1), 'google_calendar', account => 'work'));
SELECT show(renew_sync_lease(u(1), 'google_calendar', 1, account => 'work'));
SELECT show(checkpoint_sync(u(1), 'google_calendar', 1, account => 'work'));
SELECT may_sweep(u(1), 'google_calendar', 1, 0, 0, account => 'work');
SELECT show(clear_sync_token(u(1), 'google_calendar', 1, account => 'work'));
SELECT show(mark_sync_completed(u(1), 'google_calendar', lease => 1, account => 'work'));
SELECT show(mark_sync_started(u(1), 'google_calendar', account => 'work'));
SELECT show(release_sync(u(1), 'google_calendar', 2, account => 'work'));
SELECT show(update_sync_state(u(1), 'google_calendar', '{"items_synced": 5}', account => 'work'));
SELECT show(pause_sync(u(1), 'google_calendar', account => 'work'));
SELECT show(resume_sync(u(1), 'google_calendar', account => 'work'));
SELECT request_sync(u(1), 'google_calendar', account => 'work');
SELECT show(connect_sync(u(1), 'google_calendar', account => 'work'));
SELECT show(get_sync_state(u(1), 'google_calendar', account => 'work'));
SELECT show(s) FROM get_sync_states(u(1)) AS s;
SELECT disconnect_sync(u(1), 'google_calendar', account => 'work'), disconnect_sync(u(1), 'google_calendar', account => 'work');
SELECT show(mark_sync_failed(u(1), 'google_tasks', 'no', account => 'new'));
SELECT show(mark_rate_limited(u(1), 'google_tasks', account => 'newer'));
-- where there is one account, nobody says which
SELECT show(connect_sync(u(3), 'google_calendar'));
SELECT show(get_sync_state(u(3), 'google_calendar'));
SELECT count(*) FROM claim_due_syncs('google_calendar');
SELECT count(*) FROM report_syncs(jsonb_build_array(
	jsonb_build_object('user_id', u(1), 'account', 'home', 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed'),
	jsonb_build_object('user_id', u(1), 'account', 'work', 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed'),
	jsonb_build_object('user_id', u(3), 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed')));
-- bytewise, at most 255 of them
SELECT show(connect_sync(u(4), 'google_gmail', account => a)) FROM unnest('{b,a,Ä,B}'::text[]) AS a;
SELECT account FROM get_sync_states(u(4));
SELECT octet_length((connect_sync(u(5), 'google_gmail', account => repeat('x', 255))).account);
SELECT connect_sync(u(5), 'google_gmail', account => repeat('x', 256)); -- ERROR
SELECT connect_sync(u(5), 'google_gmail', account => NULL); -- ERROR
INSERT INTO sync_state (user_id, account, source) VALUES (u(5), repeat('x', 256), 'google_gmail'); -- ERROR
UPDATE sync_state SET account = 'other' WHERE user_id = u(5); -- ERROR

-- ---------------------------------------------------------------------
-- A limit of an account
-- ---------------------------------------------------------------------
SELECT set_up();
SELECT count(*) FROM claim_due_syncs('google_calendar', 3);
SELECT show(mark_rate_limited(u(1), 'google_calendar', '30 minutes', lease => 1, resource => 'b', account => 'home'));
SELECT * FROM rows;
-- claims, what looks at them, and requests keep to it
SELECT request_sync(u(1), 'google_calendar', 'c', 'home');
SELECT show(s) FROM claim_due_syncs('google_calendar') AS s;
SELECT get_users_needing_sync('google_calendar');
SELECT next_sync_due('google_calendar') - sync_clock();
SELECT due, limited, rate_limited FROM sync_overview WHERE source = 'google_calendar';
-- a start by name does not
SELECT show(mark_sync_started(u(1), 'google_calendar', resource => 'c', account => 'home'));
-- a limit is not cut short by another one, and not written again
SELECT show(mark_rate_limited(u(1), 'google_calendar', '5 minutes', lease => 1, resource => 'c', account => 'home'));
SELECT count(*), count(DISTINCT limited_until), max(limited_until) - sync_clock() FROM sync_state WHERE user_id = u(1) AND account = 'home' AND source = 'google_calendar';
-- a longer one counts; the own part of the jitter is the reported row's alone
SELECT clock('1 minute');
SELECT show(mark_rate_limited(u(1), 'google_calendar', '1 hour', lease => 1, resource => 'a', account => 'home'));
SELECT * FROM rows;
-- who connects later inherits it, whichever call makes the row
SELECT show(connect_sync(u(1), 'google_calendar', 'd', 'home'));
SELECT show(mark_sync_completed(u(1), 'google_calendar', resource => 'e', account => 'home'));
SELECT resource, change FROM set_sync_resources(u(1), 'google_calendar', '{a,b,c,d,e,f}', 'home');
SELECT bool_and(limited_until = t('61 minutes')), count(*) FROM sync_state WHERE user_id = u(1) AND account = 'home' AND source = 'google_calendar';
-- it ends by itself, and the next start forgets it
SELECT clock('61 minutes');
SELECT count(*), count(limited_until) FROM claim_due_syncs('google_calendar') WHERE account = 'home';
-- the row alone; the source alone
SELECT set_up();
SELECT count(*) FROM claim_due_syncs('google_calendar', 3);
SELECT show(mark_rate_limited(u(1), 'google_calendar', '30 minutes', 'row', 1, 'a', 'home'));
SELECT show(mark_rate_limited(u(1), 'google_calendar', '30 minutes', 'source', 1, 'b', 'home'));
SELECT count(limited_until) FROM sync_state;
-- a lease that is lost says nothing
SELECT mark_rate_limited(u(1), 'google_calendar', '30 minutes', lease => 1, resource => 'a', account => 'home'); -- ERROR
SELECT mark_rate_limited(u(1), 'google_calendar', '30 minutes', lease => 7, resource => 'missing', account => 'home'); -- ERROR
SELECT count(limited_until) FROM sync_state;
-- in a batch
SELECT set_up();
SELECT count(*) FROM claim_due_syncs(NULL, 100);
SELECT show(s) FROM report_syncs(jsonb_build_array(
	jsonb_build_object('user_id', u(1), 'account', 'home', 'source', 'google_gmail', 'lease', 1, 'outcome', 'completed'),
	jsonb_build_object('user_id', u(1), 'account', 'home', 'source', 'google_calendar', 'resource', 'b', 'lease', 1, 'outcome', 'rate_limited', 'retry_after', '10 min'),
	jsonb_build_object('user_id', u(1), 'account', 'home', 'source', 'google_calendar', 'resource', 'a', 'lease', 1, 'outcome', 'rate_limited', 'retry_after', '20 min'),
	jsonb_build_object('user_id', u(1), 'account', 'home', 'source', 'google_calendar', 'resource', 'c', 'lease', 7, 'outcome', 'rate_limited', 'retry_after', '2 hours'),
	jsonb_build_object('user_id', u(1), 'account', 'home', 'source', 'google_tasks', 'lease', 1, 'outcome', 'rate_limited', 'retry_after', '3 hours', 'scope', 'row'),
	jsonb_build_object('user_id', u(1), 'account', 'work', 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed'))) AS s;
SELECT * FROM rows;

-- ---------------------------------------------------------------------
-- A grant that has ended
-- ---------------------------------------------------------------------
SELECT set_up();
SELECT show(pause_sync(u(1), 'google_calendar', 'c', 'home'));
SELECT count(*) FROM claim_due_syncs('google_tasks', 100);
SELECT count(*) FROM claim_due_syncs('google_calendar', 1);
SELECT show(mark_sync_failed(u(1), 'google_tasks', 'invalid_grant', 'auth', 1, account => 'home'));
-- all sources of the provider, but no other account and no other user; what was
-- parked keeps its reason; what runs may finish
SELECT * FROM rows;
SELECT show(mark_sync_completed(u(1), 'google_calendar', lease => 1, account => 'home'));
SELECT show(s) FROM claim_due_syncs(NULL, 100) AS s ORDER BY 1;
-- also where the row that reports it was paused meanwhile
SELECT show(mark_sync_started(u(1), 'google_calendar', resource => 'c', account => 'home'));
SELECT show(mark_sync_failed(u(1), 'google_calendar', 'invalid_grant', 'auth', 1, 'c', account => 'home'));
-- one call takes them back, but for what the user has paused
SELECT show(s) FROM connect_account(u(1), 'home') AS s;
SELECT * FROM rows;
-- the row alone, and a failure of another kind
SELECT show(mark_sync_failed(u(1), 'google_tasks', 'no such list', 'auth', scope => 'row', account => 'home'));
SELECT show(mark_sync_failed(u(1), 'google_calendar', 'no', 'permanent', account => 'home'));
SELECT show(mark_sync_failed(u(1), 'google_calendar', 'no', account => 'home'));
SELECT count(*) FILTER (WHERE parked_reason = 'auth') FROM sync_state;
-- only when the row has failed so many times
SELECT set_up();
SELECT auth_failures FROM set_sync_policy('google_gmail', '{"auth_failures": 3}');
SELECT (mark_sync_failed(u(1), 'google_gmail', 'invalid_grant', 'auth', account => 'home')).failures,
	(SELECT count(*) FROM sync_state WHERE parked_reason = 'auth') AS parked FROM generate_series(1, 3);
SELECT count(*) FROM sync_state WHERE parked_reason = 'auth';
-- in a batch
SELECT set_up();
SELECT count(*) FROM claim_due_syncs(NULL, 4);
SELECT show(s) FROM report_syncs((SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'account', account, 'source', source, 'resource', resource, 'lease', lease)
	|| CASE WHEN resource = 'a' THEN '{"outcome": "failed", "error_message": "invalid_grant", "kind": "auth"}' ELSE '{"outcome": "completed"}' END::jsonb
	ORDER BY resource DESC, source) FROM sync_state WHERE status = 'syncing')) AS s;
SELECT * FROM rows;

-- ---------------------------------------------------------------------
-- Providers
-- ---------------------------------------------------------------------
SELECT register_sync_source('accounts_mail'), register_sync_source('accounts_files');
SELECT s, (get_sync_policy(s)).provider FROM unnest(enum_range(NULL::sync_source)) AS s
WHERE s::text ~ '^(google|accounts)_';
SELECT set_up();
INSERT INTO sync_state (user_id, account, source) VALUES (u(1), 'home', 'accounts_mail'), (u(1), 'home', 'accounts_files');
SELECT status FROM mark_sync_failed(u(1), 'accounts_mail', 'no', 'auth', account => 'home');
SELECT source, resource FROM sync_state WHERE parked_reason = 'auth' ORDER BY 1, 2;
SELECT show(s) FROM connect_account(u(1), 'home', 'accounts_mail') AS s;
-- sources of one's own may share one
SELECT (set_sync_policy(s, '{"provider": "accounts"}')).provider FROM unnest('{accounts_mail,accounts_files}'::sync_source[]) AS s;
SELECT status FROM mark_sync_failed(u(1), 'accounts_mail', 'no', 'auth', account => 'home');
SELECT source, resource FROM sync_state WHERE parked_reason = 'auth' ORDER BY 1, 2;
SELECT show(s) FROM connect_account(u(1), 'home', 'accounts') AS s;
SELECT connect_account(u(1), 'home', 'accounts_mail'); -- ERROR
SELECT set_sync_policy('accounts_mail', jsonb_build_object('provider', p)) FROM unnest(ARRAY['']) AS p; -- ERROR
SELECT set_sync_policy('accounts_mail', jsonb_build_object('provider', p)) FROM unnest(ARRAY['Google']) AS p; -- ERROR
SELECT set_sync_policy('accounts_mail', jsonb_build_object('provider', repeat('x', 59))); -- ERROR
UPDATE sync_policy SET provider = 'a b'; -- ERROR
SELECT (set_sync_policy('accounts_mail', '{"provider": null}')).provider;

-- ---------------------------------------------------------------------
-- Calls about accounts
-- ---------------------------------------------------------------------
SELECT set_up();
SELECT show(s) FROM pause_account(u(1), 'home', 'google') AS s;
SELECT account, source, resource FROM claim_due_syncs(NULL, 100) ORDER BY user_id, account, source;
SELECT show(s) FROM resume_account(u(1), 'home') AS s;
SELECT count(*) FROM claim_due_syncs(NULL, 100);
SELECT set_up();
SELECT show(pause_sync(u(1), 'google_calendar', 'b', 'home'));
SELECT * FROM request_account(u(1), 'home');
SELECT * FROM rows WHERE show ~ 'requested';
-- what has no rows changes nothing
SELECT count(*) FROM connect_account(u(9)), pause_account(u(9)), resume_account(u(9)), disconnect_account(u(9)), request_account(u(9));
-- disconnecting leaves nothing of the account (C3), and all else
SELECT show(s) FROM disconnect_account(u(1), 'home', 'google') AS s;
SELECT * FROM rows;
-- a lease from before is lost, and no number comes again
SELECT mark_sync_completed(u(1), 'google_calendar', lease => 1, account => 'home'); -- ERROR
SELECT connect_account(NULL); -- ERROR
SELECT pause_account(u(1), NULL); -- ERROR
SELECT resume_account(u(1), repeat('x', 256)); -- ERROR
SELECT disconnect_account(u(1), '', 'nobody'); -- ERROR
SELECT request_account(u(1), '', ''); -- ERROR
SELECT connect_account(u(1), '', repeat('x', 59)); -- ERROR

-- ---------------------------------------------------------------------
-- The resources of an account
-- ---------------------------------------------------------------------
SELECT set_up();
SELECT * FROM set_sync_resources(u(1), 'google_calendar', '{a,b,c}', 'home');
SELECT * FROM set_sync_resources(u(1), 'google_calendar', '{c,new,a,c,""}', 'home');
SELECT * FROM rows WHERE show ~ 'calendar';
-- what is gone is not handed out, and comes back
SELECT resource FROM claim_due_syncs('google_calendar') WHERE account = 'home' ORDER BY resource;
SELECT * FROM set_sync_resources(u(1), 'google_calendar', '{a,b,c,new}', 'home');
-- a pause is the user's own; a run may finish; another reason is not kept
SELECT show(pause_sync(u(1), 'google_calendar', 'b', 'home'));
SELECT show(mark_sync_failed(u(1), 'google_calendar', 'no', 'auth', 1, 'c', 'row', 'home'));
SELECT * FROM set_sync_resources(u(1), 'google_calendar', '{}', 'home');
SELECT * FROM set_sync_resources(u(1), 'google_calendar', '{}', 'home');
SELECT * FROM rows WHERE show ~ 'calendar';
SELECT show(mark_sync_completed(u(1), 'google_calendar', lease => 1, resource => 'a', account => 'home'));
-- pausing and resuming the account does not bring it back, connecting does
SELECT count(*) FROM pause_account(u(1), 'home');
SELECT count(*) FROM resume_account(u(1), 'home');
SELECT * FROM rows WHERE show ~ 'calendar';
SELECT count(*) FROM connect_account(u(1), 'home');
SELECT count(*) FROM sync_state WHERE parked_reason IS NOT NULL;
-- nor does reviving, unless it says so
SELECT count(*) FROM set_sync_resources(u(1), 'google_calendar', '{}', 'home');
SELECT revive_syncs('google_calendar'), revive_syncs('google_calendar', 'gone', '0');
-- another account and another source have their own
SELECT * FROM set_sync_resources(u(1), 'google_tasks', '{a}');
SELECT set_sync_resources(u(1), 'google_calendar', NULL); -- ERROR
SELECT set_sync_resources(u(1), 'google_calendar', '{a,NULL}'); -- ERROR
SELECT set_sync_resources(u(1), NULL, '{a}'); -- ERROR
SELECT set_sync_resources(NULL, 'google_calendar', '{a}'); -- ERROR
SELECT set_sync_resources(u(1), 'google_calendar', '{a}', NULL); -- ERROR
SELECT set_sync_resources(u(1), 'google_calendar', ARRAY[repeat('x', 1025)]); -- ERROR
SELECT set_sync_resources(u(1), 'google_calendar', array_fill('x'::text, '{10001}')); -- ERROR
SELECT count(*) FROM sync_state WHERE account = '' AND source = 'google_calendar';

-- ---------------------------------------------------------------------
-- A random set of resources comes out as the set difference says
-- ---------------------------------------------------------------------
CREATE FUNCTION wanted(before sync_state[], listed text[]) RETURNS TABLE (resource text, change text) LANGUAGE sql
BEGIN ATOMIC
	SELECT k.resource, k.change
	FROM (SELECT coalesce(b.resource, l.resource) AS resource,
			CASE WHEN b.resource IS NULL THEN 'added'
				WHEN l.resource IS NOT NULL AND b.parked_reason = 'gone' THEN 'returned'
				WHEN l.resource IS NOT NULL OR b.parked_reason = 'paused' THEN 'kept'
				WHEN b.parked_reason = 'gone' THEN NULL
				ELSE 'gone' END AS change
		FROM unnest(before) AS b
			FULL JOIN (SELECT DISTINCT r AS resource FROM unnest(listed) AS r) AS l ON l.resource = b.resource) AS k
	WHERE k.resource <> '' AND k.change IS NOT NULL
	ORDER BY k.resource COLLATE "C";
END;
DO $$
DECLARE
	before sync_state[];
	listed text[];
	expected text[];
	got text[];
BEGIN
	TRUNCATE sync_state, sync_policy;
	PERFORM setseed(0.5);
	FOR i IN 1 .. 300 LOOP
		PERFORM pause_sync(user_id, source, resource) FROM sync_state WHERE random() < 0.1;
		PERFORM resume_sync(user_id, source, resource) FROM sync_state WHERE random() < 0.1;
		before := ARRAY(SELECT s FROM sync_state AS s);
		listed := ARRAY(SELECT chr(97 + floor(random() * 26)::integer) FROM generate_series(1, floor(random() * 20)::integer));
		expected := ARRAY(SELECT w::text FROM wanted(before, listed) AS w);
		got := ARRAY(SELECT c::text FROM set_sync_resources(u(1), 'google_calendar', listed) AS c);
		ASSERT got = expected, format('%s: got %s, not %s', listed, got, expected);
		ASSERT (SELECT bool_and((s.parked_reason IS NULL) <= (s.resource = ANY (listed))) FROM sync_state AS s), 'not listed, and due';
	END LOOP;
END
$$;

-- ---------------------------------------------------------------------
-- A clock that was wrong
-- ---------------------------------------------------------------------
SELECT set_up();
SELECT clock('100 days');
SELECT show(mark_rate_limited(u(1), 'google_calendar', '1 hour', account => 'home'));
SELECT clock('0');
SELECT ahead, due FROM sync_overview WHERE source = 'google_calendar';
SELECT request_sync(u(1), 'google_calendar', 'a', 'home');
-- a request ends it, also where one waits already
SELECT limited_until FROM get_sync_state(u(1), 'google_calendar', 'a', 'home');
UPDATE sync_state SET limited_until = t('100 days') WHERE resource = 'a';
SELECT clock('1 second');
SELECT request_sync(u(1), 'google_calendar', 'a', 'home');
SELECT limited_until FROM get_sync_state(u(1), 'google_calendar', 'a', 'home');
SELECT show(s) FROM connect_account(u(1), 'home', 'google') AS s WHERE source = 'google_calendar';
SELECT ahead, due FROM sync_overview WHERE source = 'google_calendar';

-- ---------------------------------------------------------------------
-- Clean up: with the extension its labels go
-- ---------------------------------------------------------------------
RESET syncstate.clock;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_accounts CASCADE;
DROP EXTENSION syncstate;
