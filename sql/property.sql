--
-- Properties that hold after any sequence of calls
--
-- A seeded random walk over all calls, with the clock moving, by workers that
-- hold current and stale leases.  After each step, the rows before and after it
-- are compared; any call may fail with PT404 or PT409 where that is its answer,
-- and with nothing else.  At the end, nobody is forgotten.
--
-- A failure names the seed and the step.  Backoff is random in its own way: to
-- replay a failure, run the same seed a few times.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
DROP SCHEMA IF EXISTS regress_property CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
RESET client_min_messages;
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET synchronous_commit = off;
\pset format unaligned
\pset tuples_only on

CREATE SCHEMA regress_property;

-- The right to sync a row, as a worker remembers it.
CREATE TYPE regress_property.handle AS (
	user_id uuid,
	source syncstate.sync_source,
	resource text,
	lease bigint
);

-- What a walk came across, so that we know what was tried.
CREATE TABLE regress_property.seen (what text PRIMARY KEY, times bigint NOT NULL);

------------------------------------------------------------------------
-- What must hold between the rows before a step and the rows after it
------------------------------------------------------------------------
CREATE FUNCTION regress_property.broken(op text, target regress_property.handle,
										t timestamptz, latest timestamptz,
										old syncstate.sync_state[], new syncstate.sync_state[])
	RETURNS text
	LANGUAGE sql
	AS $$
	SELECT string_agg(format('%s of %s %s %L', b.what, user_id, source, resource), '; ')
	FROM unnest(old) AS o FULL JOIN unnest(new) AS n USING (user_id, source, resource),
	LATERAL (SELECT
		-- what the report of another row of the account may change
		'{due_at,parked_reason,limited_until,updated_at}'::text[] AS told,
		-- the provider has forgotten the cursor, or will before the next sync
		CASE source
			WHEN 'google_gmail' THEN t - o.token_issued_at > '7 days'
			WHEN 'google_contacts' THEN t - coalesce(o.last_full_sync_at, o.token_issued_at) > interval '7 days' * 0.8
			ELSE false END AS may_be_dead,
		CASE source
			WHEN 'google_gmail' THEN t - n.token_issued_at > '7 days'
			WHEN 'google_contacts' THEN t - coalesce(n.last_full_sync_at, n.token_issued_at) > interval '7 days' * 0.85
			ELSE false END AND num_nonnulls(n.sync_token, n.history_id, n.updated_min) > 0 AS is_dead,
		o.sync_token IS NOT NULL AND n.sync_token IS NULL
			OR o.history_id IS NOT NULL AND coalesce(n.history_id::numeric, -1) < o.history_id::numeric
			OR o.updated_min IS NOT NULL AND coalesce(n.updated_min, '-infinity') < o.updated_min AS moved_back,
		op IN ('update_sync_state', 'write') AS by_hand,
		op IN ('claim_due_syncs', 'mark_sync_started') AS starts) AS c,
	LATERAL (VALUES
		('gone', n.created_at IS NULL AND op <> 'disconnect_sync'),
		('neither due nor parked, or both', n.created_at IS NOT NULL AND (n.due_at IS NULL) <> (n.parked_reason IS NOT NULL)),
		('not due within 40 days', n.due_at > latest + interval '40 days'),
		('never due', NOT isfinite(n.due_at)),
		('unknown reason', n.parked_reason NOT IN ('paused', 'auth', 'failures', 'token_loop')),
		('fencing number lower', n.lease < o.lease),
		('lease without a run, or the other way round', (n.status = 'syncing') <> (n.lease_expires_at IS NOT NULL)),
		('run without a new number', n.status = 'syncing' AND o.status IS DISTINCT FROM 'syncing' AND n.lease <= coalesce(o.lease, 0)),
		('start without a lease to come', starts AND n.lease > o.lease AND n.lease_expires_at <= t),
		('live lease taken over', starts AND n.lease > o.lease AND o.lease_expires_at > t),
		('parked row claimed', op = 'claim_due_syncs' AND n.lease > o.lease AND o.parked_reason IS NOT NULL),
		('un-parked', o.parked_reason IS NOT NULL AND n.parked_reason IS NULL
			AND op NOT IN ('connect_sync', 'resume_sync', 'disconnect_sync') AND NOT by_hand),
		('cursor lost or moved back', moved_back AND op NOT IN ('clear_sync_token', 'disconnect_sync') AND NOT by_hand
			AND NOT (starts AND n.lease > o.lease AND may_be_dead AND num_nonnulls(n.sync_token, n.history_id, n.updated_min) = 0)),
		('handed out with a dead cursor', starts AND n.lease > o.lease AND is_dead),
		('cursor without an age', n.token_issued_at IS NULL AND num_nonnulls(n.sync_token, n.history_id, n.updated_min) > 0),
		('request forgotten', o.requested_at IS NOT NULL AND n.requested_at IS NULL AND n.lease = o.lease AND NOT by_hand),
		('failures miscounted', n.failures NOT IN (0, o.failures, least(o.failures::bigint + 1, 2147483647)) AND NOT by_hand),
		('failures without a beginning, or the other way round', (n.failures > 0) <> (n.failing_since IS NOT NULL)),
		('loss miscounted', n.token_losses NOT IN (0, o.token_losses) AND op <> 'clear_sync_token' AND NOT by_hand),
		('updated_at not set', n.updated_at <> t AND (o.created_at IS NOT NULL OR op <> 'write')),
		('changed, though it was another row', target IS NOT NULL
			AND (user_id, source, resource) IS DISTINCT FROM (target.user_id, target.source, target.resource)
			AND NOT (op IN ('mark_sync_failed', 'mark_rate_limited') AND user_id = target.user_id
				AND to_jsonb(o) - told = to_jsonb(n) - told))
	) AS b(what, is_so)
	WHERE o IS DISTINCT FROM n AND b.is_so
	$$;

------------------------------------------------------------------------
-- The walk
------------------------------------------------------------------------
CREATE PROCEDURE regress_property.walk(seed integer, steps integer)
	LANGUAGE plpgsql
	AS $$
DECLARE
	sources CONSTANT syncstate.sync_source[] := '{google_calendar,google_tasks,google_gmail,google_contacts}';
	t timestamptz := '2026-01-01 00:00:00+00';
	latest timestamptz := t;		-- of all times so far
	held regress_property.handle[] := '{}';
	target regress_property.handle;	-- the row of a call for one row
	op text;
	l bigint;						-- the lease that a call gives
	alone boolean;					-- whether a call gives none for a run that takes one
	leased boolean;					-- whether it gives one
	good boolean;					-- whether the row is held under it
	failed text;
	returned syncstate.sync_state[];
	old syncstate.sync_state[] := '{}';
	new syncstate.sync_state[];
	broken text;
	reports jsonb;
	n integer;
	x double precision;
BEGIN
	PERFORM setseed(seed / 1000000.0);
	DELETE FROM syncstate.sync_state;
	DELETE FROM syncstate.sync_policy;

	FOR step IN 1 .. steps LOOP
		-- time passes, and now and then the clock is set back a little
		x := random();
		t := t + CASE WHEN x < 0.6 THEN random() * interval '2 minutes'
					  WHEN x < 0.9 THEN random() * interval '1 hour'
					  WHEN x < 0.97 THEN random() * interval '2 days'
					  ELSE random() * interval '-10 seconds' END;
		latest := greatest(latest, t);
		PERFORM set_config('syncstate.clock', t::text, false);

		-- a call
		x := random() * 100;
		op := CASE
			WHEN x < 18 THEN 'claim_due_syncs'
			WHEN x < 22 THEN 'mark_sync_started'
			WHEN x < 38 THEN 'mark_sync_completed'
			WHEN x < 46 THEN 'mark_sync_failed'
			WHEN x < 50 THEN 'mark_rate_limited'
			WHEN x < 56 THEN 'clear_sync_token'
			WHEN x < 60 THEN 'renew_sync_lease'
			WHEN x < 64 THEN 'checkpoint_sync'
			WHEN x < 67 THEN 'release_sync'
			WHEN x < 73 THEN 'request_sync'
			WHEN x < 78 THEN 'connect_sync'
			WHEN x < 79 THEN 'disconnect_sync'
			WHEN x < 81 THEN 'pause_sync'
			WHEN x < 84 THEN 'resume_sync'
			WHEN x < 89 THEN 'update_sync_state'
			WHEN x < 93 THEN 'write'
			WHEN x < 95 THEN 'policy'
			ELSE 'report_syncs' END;

		-- a row; the reports of workers are mostly of rows that they had lately
		target := ROW(md5((random() * 2)::int::text)::uuid, sources[1 + floor(random() * 4)],
					  CASE WHEN random() < 0.2 THEN 'a' ELSE '' END, NULL);
		leased := false;
		IF op IN ('mark_sync_completed', 'mark_sync_failed', 'mark_rate_limited', 'clear_sync_token',
				  'renew_sync_lease', 'checkpoint_sync', 'release_sync') THEN
			leased := op IN ('renew_sync_lease', 'checkpoint_sync', 'release_sync') OR random() < 0.85;
			IF cardinality(held) > 0 AND random() < 0.95 THEN
				target := held[cardinality(held) - floor(random() ^ 2 * cardinality(held))::int];
			END IF;
			IF leased THEN
				target.lease := coalesce(target.lease, 1);
				IF random() < 0.05 THEN
					target.lease := target.lease + floor(random() * 5) - 2;
				END IF;
			END IF;
		END IF;
		l := CASE WHEN leased THEN target.lease END;
		good := EXISTS (SELECT FROM unnest(old) AS o
						WHERE (o.user_id, o.source, o.resource) = (target.user_id, target.source, target.resource)
							AND o.status = 'syncing' AND o.lease = l);

		alone := NOT leased AND op IN ('mark_sync_completed', 'mark_sync_failed', 'mark_rate_limited')
			AND EXISTS (SELECT FROM unnest(old) AS o
						WHERE (o.user_id, o.source, o.resource) = (target.user_id, target.source, target.resource)
							AND o.lease_required AND o.lease_expires_at > t);

		failed := NULL;
		returned := '{}';
		BEGIN
			CASE op
			WHEN 'claim_due_syncs' THEN
				SELECT coalesce(array_agg(c), '{}') INTO returned
				FROM syncstate.claim_due_syncs(CASE WHEN random() < 0.5 THEN target.source END,
											   CASE WHEN random() < 0.2 THEN 100 ELSE 1 + floor(random() * 4)::int END,
											   CASE WHEN random() < 0.3 THEN interval '1 second' + random() * interval '1 hour' END) AS c;
				target := NULL;
			WHEN 'mark_sync_started' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.mark_sync_started(target.user_id, target.source, NULL, target.resource) AS c;
			WHEN 'mark_sync_completed' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.mark_sync_completed(target.user_id, target.source, step,
					CASE WHEN random() < 0.5 THEN 'tok' || step WHEN random() < 0.3 THEN '' END,
					CASE WHEN random() < 0.5 THEN (9.2e18 * random() ^ 4)::numeric(20)::text WHEN random() < 0.3 THEN '' END,
					CASE WHEN random() < 0.5 THEN t - random() * interval '1 day' END,
					l, target.resource) AS c;
			WHEN 'mark_sync_failed' THEN
				x := random();
				SELECT array_agg(c) INTO returned
				FROM syncstate.mark_sync_failed(target.user_id, target.source, 'failed at step ' || step,
					CASE WHEN x < 0.7 THEN 'transient' WHEN x < 0.9 THEN 'permanent' ELSE 'auth' END, l, target.resource) AS c;
			WHEN 'mark_rate_limited' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.mark_rate_limited(target.user_id, target.source,
					CASE WHEN random() < 0.5 THEN (random() ^ 8) * interval '40 days' END,
					CASE WHEN random() < 0.2 THEN 'source' WHEN random() < 0.5 THEN 'row' ELSE 'account' END, l, target.resource) AS c;
			WHEN 'clear_sync_token' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.clear_sync_token(target.user_id, target.source, l, target.resource) AS c;
			WHEN 'renew_sync_lease' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.renew_sync_lease(target.user_id, target.source, l,
					CASE WHEN random() < 0.5 THEN interval '1 second' + random() * interval '1 hour' END, target.resource) AS c;
			WHEN 'checkpoint_sync' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.checkpoint_sync(target.user_id, target.source, l, 'page' || step, step, NULL, target.resource) AS c;
			WHEN 'release_sync' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.release_sync(target.user_id, target.source, l, target.resource) AS c;
			WHEN 'request_sync' THEN
				PERFORM syncstate.request_sync(target.user_id, target.source, target.resource);
			WHEN 'connect_sync' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.connect_sync(target.user_id, target.source, target.resource) AS c;
			WHEN 'disconnect_sync' THEN
				PERFORM syncstate.disconnect_sync(target.user_id, target.source, target.resource);
			WHEN 'pause_sync' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.pause_sync(target.user_id, target.source, target.resource) AS c;
			WHEN 'resume_sync' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.resume_sync(target.user_id, target.source, target.resource) AS c;
			WHEN 'update_sync_state' THEN
				SELECT array_agg(c) INTO returned
				FROM syncstate.update_sync_state(target.user_id, target.source, (ARRAY[
					'{"status": "syncing"}', '{"status": "idle", "sync_token": "by hand"}', '{"status": "error"}', '{"status": "rate_limited"}',
					'{"sync_token": null, "history_id": null, "updated_min": null}', '{"history_id": "5"}', '{"token_issued_at": null}',
					'{"due_at": null}', '{"parked_reason": null}', '{"parked_reason": "auth"}', '{"lease_expires_at": null}',
					jsonb_build_object('due_at', t + interval '2 days'), '{"requested_at": null}',
					'{"failures": 2147483647}', '{"failures": 0}', '{"token_losses": 8}', '{"token_losses": 9}', '{"token_losses": 2147483647}',
					'{"last_sync_at": "2000-01-01T00:00:00Z"}', '{"last_sync_at": null}', jsonb_build_object('last_sync_at', t + interval '400 days'), '{"last_full_sync_at": null}',
					'{"sync_interval": "1 second"}', '{"sync_interval": "3 days"}', '{"sync_interval": null}', '{}']::jsonb[])[1 + floor(random() * 26)],
					target.resource) AS c;
			WHEN 'write' THEN
				CASE floor(random() * 8)::int
				WHEN 0 THEN
					INSERT INTO syncstate.sync_state (user_id, source, resource, status)
					VALUES (target.user_id, target.source, target.resource, 'syncing')
					ON CONFLICT (user_id, account, source, resource) DO UPDATE SET status = EXCLUDED.status;
				WHEN 1 THEN
					INSERT INTO syncstate.sync_state (user_id, source, resource) VALUES (target.user_id, target.source, target.resource)
					ON CONFLICT (user_id, account, source, resource) DO NOTHING;
				WHEN 2 THEN
					UPDATE syncstate.sync_state AS s SET status = (ARRAY['idle', 'error', 'rate_limited']::syncstate.sync_status[])[1 + floor(random() * 3)]
					WHERE (s.user_id, s.source, s.resource) = (target.user_id, target.source, target.resource);
				WHEN 3 THEN
					UPDATE syncstate.sync_state AS s SET due_at = CASE WHEN random() < 0.7 THEN t + random() * interval '1 day' END
					WHERE (s.user_id, s.source, s.resource) = (target.user_id, target.source, target.resource);
				WHEN 4 THEN
					UPDATE syncstate.sync_state AS s SET parked_reason = CASE WHEN random() < 0.3 THEN 'paused' END
					WHERE (s.user_id, s.source, s.resource) = (target.user_id, target.source, target.resource);
				WHEN 5 THEN
					UPDATE syncstate.sync_state AS s SET lease = s.lease + floor(random() * 5)::int - 2
					WHERE (s.user_id, s.source, s.resource) = (target.user_id, target.source, target.resource);
				WHEN 6 THEN
					UPDATE syncstate.sync_state AS s SET sync_token = NULL, history_id = '', updated_min = NULL
					WHERE (s.user_id, s.source, s.resource) = (target.user_id, target.source, target.resource);
				WHEN 7 THEN
					UPDATE syncstate.sync_state AS s SET lease_expires_at = t + (random() - 0.5) * interval '1 hour'
					WHERE (s.user_id, s.source, s.resource) = (target.user_id, target.source, target.resource);
				END CASE;
			WHEN 'policy' THEN
				CASE floor(random() * 4)::int
				WHEN 0 THEN
					PERFORM syncstate.pause_sync_source(target.source,
						CASE WHEN random() < 0.1 THEN 'infinity' ELSE t + random() * interval '6 hours' END);
				WHEN 1 THEN
					PERFORM syncstate.resume_sync_source(target.source);
				ELSE
					PERFORM syncstate.set_sync_policy(target.source, (ARRAY[
						'{"max_failures": 3, "park_after": "2 hours"}', '{"max_failures": 1, "park_after": "1 second"}', '{"max_failures": null, "park_after": null}',
						'{"jitter": 0}', '{"jitter": 0.9}', '{"sync_interval": "1 day"}', '{"sync_interval": "1 second"}', '{"sync_interval": null}',
						'{"retry_base": "1 second", "retry_cap": "5 days"}', '{"retry_base": null, "retry_cap": null}',
						'{"lease_time": "5 hours"}', '{"lease_time": null}', '{"rate_limit_wait": "1 second"}', '{"rate_limit_wait": null}']::jsonb[])[1 + floor(random() * 14)]);
				END CASE;
				target := NULL;
			WHEN 'report_syncs' THEN
				SELECT coalesce(jsonb_agg(to_jsonb(h) - 'i' || jsonb_build_object('outcome', o.outcome)
						|| CASE o.outcome WHEN 'failed' THEN '{"error_message": "failed"}'::jsonb
										  WHEN 'completed' THEN jsonb_build_object('sync_token', 'tok' || step)
										  ELSE '{}' END), '[]')
					INTO reports
				FROM unnest(held) WITH ORDINALITY AS h(user_id, source, resource, lease, i),
					LATERAL (SELECT (ARRAY['completed', 'completed', 'failed', 'rate_limited', 'released'])[1 + floor(random() * 5 + 0 * h.i)] AS outcome) AS o
				WHERE h.i > cardinality(held) - 5;
				-- each report twice: it is applied once
				SELECT coalesce(array_agg(c), '{}') INTO returned FROM syncstate.report_syncs(reports || reports) AS c;
				SELECT count(DISTINCT (o.user_id, o.source, o.resource)) INTO n
				FROM unnest(old) AS o JOIN unnest(held[greatest(cardinality(held) - 4, 1):]) AS h
					ON (o.user_id, o.source, o.resource, o.lease) = (h.user_id, h.source, h.resource, h.lease)
				WHERE o.status = 'syncing';
				IF cardinality(returned) <> n THEN
					RAISE 'seed %, step %: % of % good reports were applied: %', seed, step, cardinality(returned), n, reports;
				END IF;
				target := NULL;
			END CASE;
		EXCEPTION WHEN SQLSTATE 'PT404' OR SQLSTATE 'PT409' THEN
			failed := SQLSTATE;
		END;

		SELECT coalesce(array_agg(s ORDER BY s.user_id, s.source, s.resource), '{}') INTO new FROM syncstate.sync_state AS s;

		-- who may fail, and must
		IF failed IS NOT NULL AND new <> old THEN
			RAISE 'seed %, step %: % failed, and changed something', seed, step, op;
		ELSIF leased AND good <> (failed IS NULL) THEN
			RAISE 'seed %, step %: % with a % lease: %', seed, step, op, CASE WHEN good THEN 'good' ELSE 'stale' END, coalesce(failed, 'done');
		ELSIF alone AND failed IS DISTINCT FROM 'PT409' THEN
			RAISE 'seed %, step %: % ended a run that was claimed', seed, step, op;
		ELSIF failed IS NOT NULL AND NOT leased AND NOT alone
			AND NOT (failed = 'PT404' AND op IN ('request_sync', 'pause_sync', 'resume_sync')
					 AND NOT EXISTS (SELECT FROM unnest(old) AS o WHERE (o.user_id, o.source, o.resource) = (target.user_id, target.source, target.resource))
					 OR failed = 'PT409' AND op = 'mark_sync_started'
					 AND EXISTS (SELECT FROM unnest(old) AS o WHERE (o.user_id, o.source, o.resource) = (target.user_id, target.source, target.resource)
								 AND o.lease_expires_at > t)) THEN
			RAISE 'seed %, step %: % failed with %', seed, step, op, failed;
		END IF;

		-- what was returned is what is there
		IF EXISTS (SELECT r FROM unnest(returned) AS r EXCEPT SELECT s FROM unnest(new) AS s) THEN
			RAISE 'seed %, step %: % returned what is not there', seed, step, op;
		END IF;

		IF new <> old THEN
			broken := regress_property.broken(op, target, t, latest, old, new);
			IF broken IS NOT NULL THEN
				RAISE 'seed %, step %: % at %: %', seed, step, op, t, broken
					USING DETAIL = (SELECT string_agg(format(E'%s\n%s', b, a), E'\n')
									FROM unnest(old) AS b FULL JOIN unnest(new) AS a USING (user_id, source, resource)
									WHERE b IS DISTINCT FROM a);
			END IF;
		END IF;

		-- what a claim took, and only that, is held now
		IF op = 'claim_due_syncs' AND cardinality(returned) <>
			(SELECT count(*) FROM unnest(new) AS s JOIN unnest(old) AS o USING (user_id, source, resource) WHERE s.lease > o.lease) THEN
			RAISE 'seed %, step %: claimed and did not tell', seed, step;
		END IF;
		IF op IN ('claim_due_syncs', 'mark_sync_started') THEN
			SELECT held || coalesce(array_agg(ROW(r.user_id, r.source, r.resource, r.lease)::regress_property.handle), '{}')
				INTO held FROM unnest(returned) AS r;
			held := held[greatest(cardinality(held) - 29, 1):];
		ELSIF op = 'disconnect_sync' THEN
			-- whoever connects again begins anew, leases too
			SELECT coalesce(array_agg(h), '{}') INTO held FROM unnest(held) AS h
			WHERE (h.user_id, h.source, h.resource) <> (target.user_id, target.source, target.resource);
		END IF;

		IF step % 10 = 0 OR failed IS NOT NULL OR op = 'clear_sync_token' THEN
			INSERT INTO regress_property.seen AS s
			SELECT what, 1 FROM (
				SELECT op || coalesce(' ' || failed, '') AS what
				UNION SELECT 'status ' || status FROM unnest(new)
				UNION SELECT 'parked ' || parked_reason FROM unnest(new) WHERE parked_reason IS NOT NULL
				UNION SELECT 'lease ran out' FROM unnest(new) WHERE lease_expires_at <= t
				UNION SELECT 'source paused' FROM syncstate.sync_policy WHERE paused_until > t) AS w
			ON CONFLICT (what) DO UPDATE SET times = s.times + 1;
		END IF;
		IF op IN ('claim_due_syncs', 'mark_sync_started') AND new <> old THEN
			INSERT INTO regress_property.seen AS s
			SELECT what, 1 FROM (
				SELECT CASE WHEN o.status = 'syncing' AND n.lease > o.lease THEN 'taken over'
							WHEN o.status = 'syncing' THEN 'parked by a claim'
							WHEN num_nonnulls(o.sync_token, o.history_id, o.updated_min) > 0
								AND num_nonnulls(n.sync_token, n.history_id, n.updated_min) = 0 THEN 'planned full sync'
							ELSE 'started' END AS what
				FROM unnest(old) AS o JOIN unnest(new) AS n USING (user_id, source, resource)
				WHERE o.status = 'syncing' AND n.lease_expires_at IS DISTINCT FROM o.lease_expires_at OR n.lease > o.lease
				GROUP BY 1) AS w
			ON CONFLICT (what) DO UPDATE SET times = s.times + 1;
		END IF;
		old := new;
		IF step % 50 = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
	COMMIT;

	-- Nobody is forgotten: the sources resumed, and time enough, claims hand
	-- out each row that is not parked, once; and so again after that.
	DELETE FROM syncstate.sync_policy;
	FOR round IN 1 .. 3 LOOP
		t := latest + interval '60 days';
		latest := t;
		PERFORM set_config('syncstate.clock', t::text, false);
		SELECT array_agg(s) INTO old FROM syncstate.sync_state AS s;
		returned := '{}';
		LOOP
			SELECT array_agg(c) INTO new FROM syncstate.claim_due_syncs(NULL, 5) AS c;
			EXIT WHEN new IS NULL;
			returned := returned || new;
		END LOOP;
		SELECT format('seed %s, round %s: %s', seed, round, string_agg(s::text, '; ')) INTO broken
		FROM syncstate.sync_state AS s
		WHERE (s.parked_reason IS NULL)::int <>
			(SELECT count(*) FROM unnest(returned) AS r
			 WHERE (r.user_id, r.source, r.resource) = (s.user_id, s.source, s.resource))
		HAVING count(*) > 0;
		IF broken IS NOT NULL THEN
			RAISE '%', broken;
		END IF;
		IF round = 1 THEN
			PERFORM syncstate.mark_sync_completed(user_id, source, lease => lease, resource => resource) FROM unnest(returned);
		ELSIF cardinality(returned) < 3 THEN
			RAISE 'seed %: only % rows are left', seed, cardinality(returned);
		END IF;
		COMMIT;
	END LOOP;
END
$$;

CALL regress_property.walk(1, 5200);
CALL regress_property.walk(2, 5200);

-- The walks went everywhere: each answer, each state.
SELECT what, times >= often
FROM (VALUES ('status idle', 5), ('status syncing', 5), ('status error', 5), ('status rate_limited', 5),
	('parked paused', 5), ('parked auth', 5), ('parked failures', 5), ('parked token_loop', 1),
	('lease ran out', 5), ('source paused', 5), ('started', 5), ('taken over', 5), ('parked by a claim', 1), ('planned full sync', 5),
	('mark_sync_completed PT409', 5), ('mark_sync_failed PT409', 5), ('mark_rate_limited PT409', 5), ('clear_sync_token PT409', 5),
	('renew_sync_lease PT409', 5), ('checkpoint_sync PT409', 5), ('release_sync PT409', 5), ('mark_sync_started PT409', 5),
	('request_sync PT404', 1), ('report_syncs', 5), ('update_sync_state', 5), ('write', 5), ('policy', 5)) AS wanted(what, often)
	LEFT JOIN regress_property.seen USING (what)
ORDER BY what COLLATE "C";

SET client_min_messages = warning;
RESET syncstate.clock;
DROP SCHEMA regress_property CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
