/*
 * Fills a database that has the extension and two labels of its own,
 * custom_crm and another_one: rows in every state, events and runs of every
 * kind, push channels, settings, pauses, grants and a watched table of users, for tests that
 * carry these elsewhere.
 *
 * In a time long ago, so that a row that something touched on the way shows.
 * Needs roles regress_syncstate_worker and regress_syncstate_user.
 */
SET syncstate.clock = '2021-02-03 04:05:06.789+00';

CREATE FUNCTION public.id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
	RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- runs are kept for long, since tests go on at other times
SELECT syncstate.set_sync_policy(s, '{"keep_runs": "all", "keep_runs_for": "36500 days"}')
FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s;
SELECT syncstate.set_sync_policy('google_contacts', '{"keep_runs": "failures", "keep_runs_for": "1 day"}');

-- each row says in its resource what it is

-- idle: new, requested, with each kind of cursor, with an interval of its own
SELECT syncstate.connect_sync(id(1), 'google_calendar', 'new and requested');
INSERT INTO syncstate.sync_state (user_id, source, resource) VALUES
	(id(1), 'google_calendar', 'inserted'),
	(id(1), 'google_calendar', repeat('x', 1024));
SELECT syncstate.mark_sync_completed(id(2), 'google_calendar', 3, 'token', resource => 'sync token');
SELECT syncstate.mark_sync_completed(id(2), 'google_gmail', 4, history_id => '18446744073709551615', resource => 'history id');
SELECT syncstate.mark_sync_completed(id(2), 'google_tasks', 5, updated_min => '2021-02-03 04:05:06.789123+00', resource => 'updated min');
SELECT syncstate.mark_sync_completed(id(2), 'google_contacts', 9223372036854775807, repeat('Token ', 10922), resource => 'big token');
SELECT syncstate.mark_sync_completed(id(2), 'custom_crm', 1, E'tab \t, newline \n, return \r, backslash \\, quotes \' ", \\N, \\.', resource => E'\\. \t \\N');
SELECT syncstate.connect_sync(id(2), 'another_one', 'NULL');
SELECT syncstate.update_sync_state(id(2), 'google_calendar', '{"sync_interval": "1 day 02:03:04.567"}', 'own interval');

-- syncing: the lease over, live for long, parked meanwhile, requested meanwhile
SELECT syncstate.mark_sync_started(id(3), 'google_calendar', resource => 'lease over');
SELECT syncstate.checkpoint_sync(id(3), 'google_calendar', (syncstate.get_sync_state(id(3), 'google_calendar', 'lease over')).lease, 'page 2', 50, 100, resource => 'lease over');
SELECT syncstate.mark_sync_started(id(3), 'google_calendar', resource => 'lease live');
SELECT syncstate.request_sync(id(3), 'google_calendar', resource => 'lease live');
UPDATE syncstate.sync_state SET lease_expires_at = '2999-01-01 00:00:00+00' WHERE resource = 'lease live';
SELECT syncstate.mark_sync_started(id(3), 'custom_crm', resource => 'paused while running');
SELECT syncstate.pause_sync(id(3), 'custom_crm', resource => 'paused while running');

-- error and rate_limited
SELECT syncstate.mark_sync_failed(id(4), 'google_tasks', repeat('long ', 4000), resource => 'failed');
SELECT syncstate.mark_sync_failed(id(4), 'google_tasks', 'permanent', 'permanent', resource => 'failed for good');
SELECT syncstate.mark_rate_limited(id(4), 'google_tasks', '30 days', resource => 'rate limited', account => 'work');
SELECT syncstate.connect_sync(id(4), 'google_tasks', 'limited with its account', 'work');
SELECT syncstate.mark_rate_limited(id(4), 'another_one', '30 days', scope => 'source', resource => 'rate limited, all of it');
SELECT syncstate.mark_sync_completed(id(4), 'google_gmail', 1, history_id => '42', resource => 'lost its cursor');
SELECT syncstate.clear_sync_token(id(4), 'google_gmail', resource => 'lost its cursor') FROM generate_series(1, 4);

-- parked, for each reason
SELECT syncstate.connect_sync(id(5), 'google_tasks', 'paused');
SELECT syncstate.pause_sync(id(5), 'google_tasks', 'paused');
SELECT syncstate.mark_sync_failed(id(5), 'google_tasks', 'invalid_grant', 'auth', resource => 'auth', account => 'work');
SELECT syncstate.set_sync_resources(id(5), 'google_tasks', '{gone}', 'home');
SELECT syncstate.set_sync_resources(id(5), 'google_tasks', '{}', 'home');
SELECT syncstate.clear_sync_token(id(5), 'google_tasks', resource => 'token loop') FROM generate_series(1, 10);
SELECT syncstate.mark_sync_failed(id(5), 'google_tasks', 'first of many', resource => 'failures') FROM generate_series(1, 30);
SET syncstate.clock = '2021-02-13 04:05:06.789+00';
SELECT syncstate.mark_sync_failed(id(5), 'google_tasks', 'last of many', resource => 'failures');

-- one whose runs ended in every way, and what else there is to tell
SET syncstate.clock = '2021-02-03 04:05:06.789+00';
SELECT syncstate.mark_sync_completed(id(6), 'google_gmail', 1, history_id => '1');
SELECT syncstate.request_sync(id(6), 'google_gmail');
SELECT syncstate.mark_sync_started(id(6), 'google_gmail');
SELECT syncstate.mark_sync_completed(id(6), 'google_gmail', 9223372036854775807);
SELECT syncstate.mark_sync_started(id(6), 'google_gmail');
SELECT syncstate.mark_rate_limited(id(6), 'google_gmail', '1 minute');
SELECT syncstate.mark_sync_started(id(6), 'google_gmail');
SELECT syncstate.release_sync(id(6), 'google_gmail', (syncstate.get_sync_state(id(6), 'google_gmail')).lease);
SELECT syncstate.mark_sync_started(id(6), 'google_gmail');
SELECT syncstate.clear_sync_token(id(6), 'google_gmail');
SELECT syncstate.mark_sync_started(id(6), 'google_gmail');
SELECT syncstate.checkpoint_sync(id(6), 'google_gmail', (syncstate.get_sync_state(id(6), 'google_gmail')).lease, 'page', 50, 100);
SELECT syncstate.may_sweep(id(6), 'google_gmail', (syncstate.get_sync_state(id(6), 'google_gmail')).lease, 90, 100);
SELECT syncstate.mark_sync_failed(id(6), 'google_gmail', E'tab \t, newline \n, backslash \\, quotes \' ", \\N, \\.');
SELECT syncstate.mark_sync_failed(id(6), 'google_gmail', 'one of many') FROM generate_series(1, 20);
SET syncstate.clock = '2021-02-08 04:05:06.789+00';
SELECT syncstate.mark_sync_failed(id(6), 'google_gmail', 'half-way there');
SELECT syncstate.mark_sync_completed(id(6), 'google_gmail', 2);
SELECT syncstate.resume_sync_source('another_one');
SELECT syncstate.mark_sync_started(id(6), 'google_gmail');
SET syncstate.clock = '2021-02-13 04:05:06.789+00';
SELECT syncstate.mark_sync_started(id(6), 'google_gmail');
SELECT syncstate.mark_sync_failed(id(6), 'google_gmail', 'no');
SELECT syncstate.pause_sync_source('another_one', '2021-03-05 00:00:00+00');

-- push channels of two sources: open and heard, renewed, refused, failing, held, to
-- be stopped, and waiting for its row
SELECT syncstate.set_sync_policy(s, '{"push_renew_before": "1 day", "push_interval": "8 hours", "push_silence": "1 day 12 hours"}')
FROM unnest('{google_gmail,custom_crm}'::syncstate.sync_source[]) AS s;
SELECT syncstate.connect_sync(id(7), 'google_gmail', r, 'work') FROM unnest('{open,renewed,refused,failing,gone,parked}'::text[]) AS r;
CREATE TEMP TABLE claimed AS SELECT * FROM syncstate.claim_push_channels(max_rows => 100);
SELECT syncstate.mark_channel_opened(user_id, source, lease, 'channel ' || resource, '2021-02-20 00:00:00+00', 'secret',
	E'tab \t, newline \n, return \r, backslash \\, quotes \' ", \\N, \\.', resource, account)
FROM claimed WHERE account = 'work' AND resource IN ('open', 'renewed', 'gone', 'parked');
SELECT syncstate.mark_channel_failed(user_id, source, lease, 'no push', 'unsupported', resource, account) FROM claimed WHERE resource = 'refused';
SELECT syncstate.mark_channel_failed(user_id, source, lease, repeat('long ', 1000), resource => resource, account => account) FROM claimed WHERE resource = 'failing';
SELECT syncstate.receive_push('channel open', 'secret', 9223372036854775807);
SELECT syncstate.disconnect_sync(id(7), 'google_gmail', 'gone', 'work');
SELECT syncstate.pause_sync(id(7), 'google_gmail', 'parked', 'work');
SET syncstate.clock = '2021-02-19 18:00:00+00';
SELECT syncstate.mark_channel_opened(user_id, source, lease, E'\\. \t \\N', NULL, 'other secret', NULL, resource, account)
FROM syncstate.claim_push_channels(max_rows => 100) WHERE resource = 'renewed';
SET syncstate.clock = '2021-02-13 04:05:06.789+00';

-- many of no interest, in all sources
INSERT INTO syncstate.sync_state (user_id, source, due_at)
SELECT id(n), s, '2030-01-01 00:00:00+00'::timestamptz + n * interval '1 s'
FROM generate_series(1000, 1100) AS n, unnest(enum_range(NULL::syncstate.sync_source)) AS s;

-- settings and pauses
SELECT syncstate.set_sync_policy('google_tasks', '{"sync_interval": "1 hour", "jitter": 0.3, "token_ttl": "3 days", "token_ttl_from": "full", "retry_base": "10 s", "retry_cap": "2 days", "park_after": "12 hours"}');
SELECT syncstate.set_sync_policy('custom_crm', '{"lease_time": "1 minute", "max_failures": 3, "rate_limit_wait": "5 minutes"}');
SELECT syncstate.pause_sync_source('google_contacts');

-- what was learned: by rows, and about two sources with a budget
SELECT syncstate.mark_sync_completed(id(2), 'google_tasks', 2, updated_min => '2021-02-13 00:00:00+00', resource => 'updated min');
SELECT syncstate.mark_sync_completed(id(2), 'custom_crm', 0, 'next', resource => E'\\. \t \\N');
UPDATE syncstate.sync_state SET changes_seen = 1e-300, seconds_watched = 0.1 + 0.2 WHERE resource = 'own interval';
SELECT syncstate.set_sync_policy('google_calendar', '{"daily_budget": 12345, "min_interval": "90 s", "max_interval": "3 days", "rate_per_minute": 600}');
SELECT syncstate.set_sync_policy('custom_crm', '{"daily_budget": 1}');
SELECT syncstate.rebalance_syncs();
UPDATE syncstate.sync_budget SET correction = 1.0 / 3 WHERE source = 'google_calendar';

-- grants: the two kinds, and what a site makes of them
SELECT syncstate.grant_worker('regress_syncstate_worker');
SELECT syncstate.grant_user('regress_syncstate_user');
GRANT INSERT, UPDATE (sync_interval) ON syncstate.sync_state TO regress_syncstate_user;
GRANT SELECT ON syncstate.sync_overview TO regress_syncstate_user WITH GRANT OPTION;
GRANT EXECUTE ON FUNCTION syncstate.next_sync_due TO PUBLIC;
REVOKE EXECUTE ON FUNCTION syncstate.disconnect_sync FROM regress_syncstate_worker;
REVOKE DELETE ON syncstate.sync_state FROM regress_syncstate_worker;

-- the application's own
CREATE TABLE public.users (id uuid PRIMARY KEY);
INSERT INTO users SELECT DISTINCT user_id FROM syncstate.sync_state;
SELECT syncstate.watch_users('users');
CREATE VIEW public.late AS SELECT source, due, oldest_due_age FROM syncstate.sync_overview WHERE due > 0;
CREATE FUNCTION public.cursor_of(s syncstate.sync_state) RETURNS text LANGUAGE sql STABLE
	BEGIN ATOMIC SELECT COALESCE(s.sync_token, s.history_id, s.updated_min::text); END;
