--
-- sync_overview: what an operator needs to know, per source
--
-- Time is moved by hand (syncstate.clock).
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
RESET client_min_messages;
\pset null '(null)'

CREATE SCHEMA regress_syncstate_overview;
SET search_path = regress_syncstate_overview, syncstate;
TRUNCATE sync_state, sync_policy, sync_channel;

-- Users are numbered.
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;

-- Time is told as the distance from a fixed start.
CREATE FUNCTION t(distance interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE
RETURN '2030-01-01 00:00:00+00'::timestamptz + distance;

CREATE FUNCTION clock(distance interval) RETURNS void LANGUAGE sql
BEGIN ATOMIC
	SELECT set_config('syncstate.clock', to_char(t(distance) AT TIME ZONE 'UTC',
					  'YYYY-MM-DD HH24:MI:SS.US') || '+00', false);
END;

-- The built-in sources: other tests may have added some.
CREATE VIEW overview AS
SELECT * FROM sync_overview WHERE source <= 'google_contacts';

-- What one row adds to the overview: the columns that are not 0 or null.
CREATE FUNCTION adds(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	told text;
BEGIN
	TRUNCATE sync_state, sync_policy, sync_channel;
	PERFORM clock('0 s');
	EXECUTE sql;
	SELECT string_agg(CASE WHEN v.value = '1' THEN v.key ELSE v.key || ' ' || (v.value #>> '{}') END, ', ' ORDER BY a.attnum)
	INTO told
	FROM sync_overview AS o, jsonb_each(to_jsonb(o) - 'source') AS v, pg_attribute AS a
	WHERE o.source = 'google_calendar' AND v.value NOT IN ('0', 'null')
		AND a.attrelid = 'sync_overview'::regclass AND a.attname = v.key;
	RETURN told;
END
$$;

-- ---------------------------------------------------------------------
-- A source without rows is there, too
-- ---------------------------------------------------------------------
SELECT clock('0 s');
SELECT * FROM overview;

-- ---------------------------------------------------------------------
-- Where a row of each kind is counted
-- ---------------------------------------------------------------------
CREATE FUNCTION ins(columns text, vals text) RETURNS text LANGUAGE sql IMMUTABLE
RETURN format('INSERT INTO sync_state (user_id, source, %s) VALUES (u(1), ''google_calendar'', %s)', columns, vals);

-- A row and its channel, which is trusted until a time.
CREATE FUNCTION chan(state text, expires interval DEFAULT NULL, trusted interval DEFAULT NULL) RETURNS text LANGUAGE sql IMMUTABLE
RETURN format($$
	INSERT INTO sync_state (user_id, source, due_at, push_until) VALUES (u(1), 'google_calendar', t('1 h'), t(%L));
	INSERT INTO sync_channel (user_id, account, source, resource, state, expires_at, channel_id, token_hash, opened_at)
	SELECT u(1), '', 'google_calendar', '', %L, t(%L), id, sha256(id::bytea), CASE WHEN id <> '' THEN t('-1 h') END FROM (SELECT %L::text AS id) AS c$$,
	trusted, state, expires, CASE WHEN state IN ('active', 'retiring') THEN 'id' END);

SELECT what, adds(sql)
FROM (VALUES
	(1, 'asleep', ins('due_at', $$t('1 h')$$)),
	(2, 'due this moment', ins('due_at', $$t('0 s')$$)),
	(3, 'due for an hour', ins('due_at', $$t('-1 h')$$)),
	(5, 'due for days', ins('due_at', $$t('-3 days -2 hours')$$)),
	(6, 'asleep and requested', ins('due_at, requested_at', $$t('1 h'), t('-1 min')$$)),
	(7, 'due and requested later', ins('due_at, requested_at', $$t('-1 h'), t('-1 min')$$)),
	(8, 'failed, backing off', ins('due_at, status, failures', $$t('1 h'), 'error', 3$$)),
	(9, 'failed, due', ins('due_at, status, failures', $$t('-1 min'), 'error', 3$$)),
	(10, 'failed, requested', ins('due_at, status, failures, requested_at', $$t('1 h'), 'error', 3, t('-1 min')$$)),
	(11, 'limited', ins('due_at, status', $$t('1 h'), 'rate_limited'$$)),
	(12, 'limited, requested', ins('due_at, status, requested_at', $$t('1 h'), 'rate_limited', t('-1 min')$$)),
	(13, 'limited, over', ins('due_at, status', $$t('-1 h'), 'rate_limited'$$)),
	(14, 'running', ins('due_at, status, lease_expires_at', $$t('-1 min'), 'syncing', t('9 min')$$)),
	(15, 'running, requested', ins('due_at, status, lease_expires_at, requested_at', $$t('-1 min'), 'syncing', t('9 min'), t('-1 s')$$)),
	(16, 'running to the last moment', ins('due_at, status, lease_expires_at', $$t('-1 min'), 'syncing', t('0.000001 s')$$)),
	(17, 'lease expired', ins('due_at, status, lease_expires_at', $$t('-10 min'), 'syncing', t('0 s')$$)),
	(18, 'lease expired, to be parked', ins('due_at, status, lease_expires_at, failures, failing_since',
		$$t('-10 min'), 'syncing', t('0 s'), 29, t('-8 days')$$)),
	(19, 'paused', ins('parked_reason', $$'paused'$$)),
	(20, 'paused, requested', ins('parked_reason, requested_at', $$'paused', t('-1 min')$$)),
	(21, 'paused, running', ins('parked_reason, status, lease_expires_at', $$'paused', 'syncing', t('9 min')$$)),
	(22, 'paused, lease expired', ins('parked_reason, status, lease_expires_at', $$'paused', 'syncing', t('-9 min')$$)),
	(23, 'parked: auth', ins('parked_reason, status, failures', $$'auth', 'error', 1$$)),
	(24, 'parked: failures', ins('parked_reason, status, failures', $$'failures', 'error', 40$$)),
	(25, 'parked: token_loop', ins('parked_reason, status, token_losses', $$'token_loop', 'error', 10$$)),
	(26, 'never synced', ins('due_at', $$t('1 h')$$)),
	(27, 'full sync, no cursor', $$SELECT mark_sync_completed(u(1), 'google_calendar')$$),
	(28, 'full sync, cursor', $$SELECT mark_sync_completed(u(1), 'google_calendar', sync_token => 'tok')$$),
	(29, 'full sync, cursor later lost', $$SELECT mark_sync_completed(u(1), 'google_calendar', sync_token => 'tok');
		SELECT clear_sync_token(u(1), 'google_calendar')$$),
	(30, 'twice full, no cursor', $$SELECT mark_sync_completed(u(1), 'google_calendar');
		SELECT clock('1 h'); SELECT start.lease FROM claim_due_syncs() AS start;
		SELECT mark_sync_completed(u(1), 'google_calendar', lease => 1)$$),
	(31, 'source paused', ins('due_at', $$t('-1 h')$$) || $$; SELECT pause_sync_source('google_calendar', 'infinity')$$),
	(33, 'due a day ahead', ins('due_at', $$t('1 day')$$)),
	(34, 'due further ahead', ins('due_at', $$t('1 day 1 us')$$)),
	(35, 'due at its own interval', ins('due_at, sync_interval', $$t('30 days'), '30 days'$$)),
	(36, 'limited for long', ins('due_at, status', $$t('33 days'), 'rate_limited'$$)),
	(37, 'limited for longer', ins('due_at, status', $$t('33 days 1 us'), 'rate_limited'$$)),
	(38, 'requested ahead', ins('due_at, requested_at', $$t('1 h'), t('1 us')$$)),
	(39, 'held for too long', ins('due_at, status, lease_expires_at', $$t('-1 min'), 'syncing', t('1 day 1 us')$$)),
	(40, 'channel to be opened', chan('opening')),
	(41, 'channel', chan('active', '7 days', '1 us')),
	(42, 'channel that is silent', chan('active', '7 days', '0 s')),
	(43, 'channel that was never heard', chan('active', '7 days')),
	(44, 'channel that ends within a day', chan('active', '1 day', '1 h')),
	(45, 'channel that ends later', chan('active', '1 day 1 us', '1 h')),
	(46, 'channel that does not end', chan('active', NULL, '1 h')),
	(47, 'channel that has ended', chan('active', '-1 us')),
	(48, 'channel to be stopped', chan('retiring', '1 h')),
	(49, 'channel that was refused', chan('unsupported')),
	(50, 'channel of a row that is gone', chan('active', '7 days', '1 h') || '; DELETE FROM sync_state'),
	(32, 'others'' rows', $$INSERT INTO sync_state (user_id, source, due_at) VALUES (u(1), 'google_tasks', t('-1 h'))$$)
) AS v (i, what, sql)
ORDER BY i;

-- ---------------------------------------------------------------------
-- All of it together
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy, sync_channel;
SELECT clock('0 s');
INSERT INTO sync_state (user_id, source, status, due_at, parked_reason, requested_at, lease_expires_at, failures, failing_since,
						last_successful_sync_at, last_full_sync_at, sync_token)
SELECT u(i), 'google_calendar'::sync_source, 'idle'::sync_status, t('1 h'), NULL, NULL::timestamptz, NULL::timestamptz, 0, NULL::timestamptz,
	t('-1 h'), t('-1 day'), 'tok' FROM generate_series(1, 100) AS i UNION ALL
SELECT u(i), 'google_calendar', 'idle', t('-1 min') - i * interval '1 s', NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL FROM generate_series(201, 220) AS i UNION ALL
SELECT u(i), 'google_calendar', 'idle', t('1 h'), NULL, t('-1 s'), NULL, 0, NULL, t('-1 h'), t('-1 h'), NULL FROM generate_series(301, 303) AS i UNION ALL
SELECT u(i), 'google_calendar', 'syncing', t('-1 s'), NULL, NULL, t('5 min'), 0, NULL, NULL, NULL, NULL FROM generate_series(401, 407) AS i UNION ALL
SELECT u(i), 'google_calendar', 'syncing', t('-10 s'), NULL, NULL, t('-1 s'), 0, NULL, NULL, NULL, NULL FROM generate_series(501, 502) AS i UNION ALL
SELECT u(i), 'google_calendar', 'error', t('5 min'), NULL, NULL, NULL, 2, t('-1 h'), NULL, NULL, NULL FROM generate_series(601, 611) AS i UNION ALL
SELECT u(i), 'google_gmail', 'rate_limited', t('5 min'), NULL, t('-1 s'), NULL, 0, NULL, NULL, NULL, NULL FROM generate_series(1, 5) AS i UNION ALL
SELECT u(i), 'google_gmail', 'error', NULL, 'auth', NULL, NULL, 1, t('-1 h'), NULL, NULL, NULL FROM generate_series(101, 104) AS i UNION ALL
SELECT u(i), 'google_contacts', 'error', NULL, 'failures', NULL, NULL, 99, t('-1 h'), NULL, NULL, NULL FROM generate_series(1, 3) AS i UNION ALL
SELECT u(i), 'google_contacts', 'error', NULL, 'token_loop', NULL, NULL, 0, NULL, NULL, NULL, NULL FROM generate_series(11, 12) AS i UNION ALL
SELECT u(i), 'google_contacts', 'idle', NULL, 'paused', NULL, NULL, 0, NULL, NULL, NULL, NULL FROM generate_series(21, 26) AS i;
SELECT count(pause_sync_source('google_gmail', 'infinity')) AS paused;
\x
SELECT * FROM overview;
\x

-- ---------------------------------------------------------------------
-- For workers and administrators only
-- ---------------------------------------------------------------------
CREATE ROLE regress_syncstate_operator;
CREATE ROLE regress_syncstate_member;
SELECT grant_worker('regress_syncstate_operator');
SELECT grant_user('regress_syncstate_member');
SET ROLE regress_syncstate_operator;
SELECT source, rows, due FROM syncstate.sync_overview WHERE source <= 'google_contacts';
SET ROLE regress_syncstate_member;
SELECT * FROM syncstate.sync_overview; -- ERROR
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SET client_min_messages = warning;
DROP OWNED BY regress_syncstate_operator, regress_syncstate_member;
RESET client_min_messages;
DROP ROLE regress_syncstate_operator, regress_syncstate_member;

-- ---------------------------------------------------------------------
-- The same as counting by hand, for random populations; and what is due is
-- what claims then hand out
-- ---------------------------------------------------------------------

-- A number from 0 to less than 1 that is always the same.
CREATE FUNCTION rnd(seed text) RETURNS double precision LANGUAGE sql IMMUTABLE
RETURN ('x' || substr(md5(seed), 1, 8))::bit(32)::bigint / 4294967296.0;

CREATE FUNCTION one(seed text, VARIADIC choices text[]) RETURNS text LANGUAGE sql IMMUTABLE
RETURN choices[1 + floor(rnd(seed) * array_length(choices, 1))::integer];

-- Counts row by row.
CREATE FUNCTION count_by_hand(s sync_source) RETURNS sync_overview LANGUAGE plpgsql AS $$
DECLARE
	o sync_overview;
	r sync_state;
	h sync_channel;
	since timestamptz;
	now timestamptz := sync_clock();
BEGIN
	o := (s, 0, 0, 0, 0, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, (get_sync_policy(s)).paused_until, 0, 0, 0, 0, 0, 0, 0, 0, 0);
	FOR r IN SELECT * FROM sync_state WHERE source = s LOOP
		o.rows := o.rows + 1;
		CASE r.status
			WHEN 'idle' THEN o.idle := o.idle + 1;
			WHEN 'syncing' THEN
				o.syncing := o.syncing + 1;
				IF r.lease_expires_at > now THEN o.live_leases := o.live_leases + 1;
				ELSE o.expired_leases := o.expired_leases + 1; END IF;
			WHEN 'error' THEN o.error := o.error + 1;
			WHEN 'rate_limited' THEN o.rate_limited := o.rate_limited + 1;
		END CASE;
		CASE r.parked_reason
			WHEN 'paused' THEN o.parked_paused := o.parked_paused + 1;
			WHEN 'auth' THEN o.parked_auth := o.parked_auth + 1;
			WHEN 'failures' THEN o.parked_failures := o.parked_failures + 1;
			WHEN 'token_loop' THEN o.parked_token_loop := o.parked_token_loop + 1;
			WHEN 'gone' THEN o.parked_gone := o.parked_gone + 1;
			ELSE
				since := due_from(r);
				IF since <= now THEN
					o.due := o.due + 1;
					o.oldest_due_age := greatest(o.oldest_due_age, now - since);
				END IF;
		END CASE;
		IF r.requested_at IS NOT NULL THEN o.requested := o.requested + 1; END IF;
		IF r.failures > 0 THEN o.failing := o.failing + 1; END IF;
		IF r.last_full_sync_at = r.last_successful_sync_at AND r.token_losses = 0
			AND coalesce(r.sync_token, r.history_id, r.updated_min::text) IS NULL THEN
			o.without_cursor := o.without_cursor + 1;
		END IF;
		IF is_ahead(r) THEN o.ahead := o.ahead + 1; END IF;
		IF r.limited_until > now THEN o.limited := o.limited + 1; END IF;
	END LOOP;
	FOR h IN SELECT * FROM sync_channel WHERE source = s LOOP
		CASE h.state
			WHEN 'opening' THEN o.channels_opening := o.channels_opening + 1;
			WHEN 'retiring' THEN o.channels_retiring := o.channels_retiring + 1;
			WHEN 'unsupported' THEN o.channels_unsupported := o.channels_unsupported + 1;
			WHEN 'active' THEN
				o.channels_active := o.channels_active + 1;
				IF h.expires_at - now <= '24 hours' THEN o.channels_ending := o.channels_ending + 1; END IF;
				IF NOT EXISTS (SELECT FROM sync_state AS t WHERE (t.user_id, t.account, t.source, t.resource) = (h.user_id, h.account, h.source, h.resource)
						AND t.push_until > now) THEN
					o.channels_silent := o.channels_silent + 1;
				END IF;
		END CASE;
	END LOOP;
	RETURN o;
END
$$;

CREATE PROCEDURE compare(seeds integer) LANGUAGE plpgsql AS $$
DECLARE
	s sync_source;
	counted sync_overview;
	told sync_overview;
	handed_out bigint;
	total bigint := 0;
BEGIN
	FOR seed IN 1 .. seeds LOOP
		TRUNCATE sync_state, sync_policy, sync_channel;
		PERFORM clock('0 s');
		INSERT INTO sync_state (user_id, source, resource, status, sync_token, history_id, updated_min, due_at, requested_at,
			parked_reason, lease, lease_expires_at, last_successful_sync_at, last_full_sync_at, failures, failing_since, token_losses, limited_until, push_until)
		SELECT u(i / 3), one(k || 1, 'google_calendar', 'google_tasks', 'google_gmail', 'google_contacts')::sync_source,
			one(k || 2, '', 'a', 'b'), status, one(k || 3, NULL, NULL, 'tok'), one(k || 4, NULL, NULL, '99'),
			one(k || 5, NULL, '2029-01-01Z')::timestamptz,
			CASE WHEN parked IS NULL THEN t((rnd(k || 6) - 0.5) * interval '2 h') END,
			CASE WHEN rnd(k || 7) < 0.2 THEN t(rnd(k || 8) * interval '-3 h') END, parked, 1,
			CASE WHEN status = 'syncing' THEN t((rnd(k || 9) - 0.5) * interval '20 min') END,
			one(k || 10, NULL, '2029-12-01Z', '2029-12-02Z')::timestamptz, one(k || 11, NULL, '2029-12-01Z', '2029-12-02Z')::timestamptz,
			failures, CASE WHEN failures > 0 THEN t('-1 day') END, one(k || 12, '0', '0', '1')::integer,
			CASE WHEN rnd(k || 13) < 0.2 THEN t((rnd(k || 14) - 0.5) * interval '1 h') END,
			CASE WHEN rnd(k || 15) < 0.7 THEN t((rnd(k || 16) - 0.5) * interval '2 days') END
		FROM (SELECT i, k, one(k || 20, 'idle', 'syncing', 'error', 'rate_limited')::sync_status AS status,
				one(k || 21, NULL, NULL, NULL, NULL, NULL, 'paused', 'auth', 'failures', 'token_loop', 'gone') AS parked,
				floor(3 * rnd(k || 22))::integer AS failures
			FROM (SELECT i, seed || '/' || i || '/' AS k FROM generate_series(1, 500) AS i) AS a) AS b
		ON CONFLICT DO NOTHING;
		-- a channel of most rows, some that are to be stopped, and some whose rows are gone
		INSERT INTO sync_channel (user_id, account, source, resource, state, channel_id, token_hash, opened_at, expires_at)
		SELECT user_id, account, source, resource, state, id, sha256(id::bytea), CASE WHEN id <> '' THEN t('-1 day') END, one(k || 3, NULL, t(rnd(k || 4) * interval '3 days')::text)::timestamptz
		FROM (SELECT r.*, k, state, CASE WHEN state IN ('active', 'retiring') THEN k END AS id
			FROM (SELECT row_number() OVER (ORDER BY user_id, source, resource) AS i, * FROM sync_state) AS r,
				generate_series(1, 2) AS n, format('channel %s/%s/%s/', seed, i, n) AS k,
				one(k || 1, VARIADIC CASE n WHEN 1 THEN '{opening,active,active,active,unsupported,none}' ELSE '{retiring,none}' END::text[]) AS state) AS c
		WHERE state <> 'none';
		DELETE FROM sync_state WHERE rnd(seed || user_id::text) < 0.1;
		FOREACH s IN ARRAY enum_range('google_calendar'::sync_source, 'google_contacts') LOOP
			counted := count_by_hand(s);
			SELECT * INTO told FROM sync_overview AS o WHERE o.source = s;
			IF told IS DISTINCT FROM counted THEN
				RAISE WARNING E'seed %\ntold    %\ncounted %', seed, told, counted;
			END IF;
			SELECT count(*) INTO handed_out FROM claim_due_syncs(s, 10000);
			IF told.due <> handed_out THEN
				RAISE WARNING 'seed %: % of % due, % handed out', seed, told.due, s, handed_out;
			END IF;
			total := total + handed_out;
		END LOOP;
		ASSERT (SELECT least(sum(o.channels_opening), sum(o.channels_active), sum(o.channels_retiring), sum(o.channels_unsupported),
			sum(o.channels_ending), sum(o.channels_silent), sum(o.channels_active - o.channels_silent)) >= 20 FROM sync_overview AS o), 'there are channels of each kind';
		ASSERT (SELECT sum(o.due) = 0 AND sum(o.live_leases) >= 100 FROM sync_overview AS o), 'all are held now';
	END LOOP;
	RAISE NOTICE 'some were due: %', total BETWEEN 80 * seeds AND 300 * seeds;
END
$$;
CALL compare(10);

-- ---------------------------------------------------------------------
-- In a parallel plan, in a session that knows no settings yet
-- ---------------------------------------------------------------------
\c -
SET search_path = regress_syncstate_overview, syncstate, public;
SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT count(due_from(s)) > 0 AS due, count(*) FILTER (WHERE is_ahead(s)) > 0 AS ahead FROM sync_state AS s;
SELECT sum(rows) = (SELECT count(*) FROM sync_state) AS all_are_counted FROM sync_overview;
-- what it read there, it reads again
SELECT paused_until FROM pause_sync_source('google_tasks', '2029-12-31');
SELECT set_config(name, 'off', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT paused_until FROM get_sync_policy('google_tasks');

-- ---------------------------------------------------------------------
-- Clean up
-- ---------------------------------------------------------------------
TRUNCATE sync_state, sync_policy, sync_channel;
RESET syncstate.clock;
SET client_min_messages = warning;
DROP SCHEMA regress_syncstate_overview CASCADE;
