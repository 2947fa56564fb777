-- Growing, 3: on the router, as superuser, when all new shards have caught up.
-- Calls wait for less than a second, and those that come after it go to the
-- new shards.
--
--	psql -v new="(2, 'host=c dbname=shard2'), (3, 'host=d dbname=shard3')" \
--		-v admin="user=postgres" -f switch.sql router
--
--	new		numbers and connection strings of the new shards, as for
--			syncstate.shard
--	admin	what makes the connection strings of all shards a superuser's
--
-- If it fails, run it again.  Before the COMMITs of the old shards everything is
-- as it was; between them and that of the router, users who shall move are
-- reached nowhere until it has been run again; after that, what is left are
-- DROP SUBSCRIPTION on the new shards and DROP PUBLICATION on the old ones.
\set ON_ERROR_STOP on
SET search_path = pg_catalog;
SET statement_timeout = '20s';
SET idle_in_transaction_session_timeout = '20s';

CREATE TEMP TABLE place AS
	SELECT shard, connection, 'grow ' || shard AS name, false AS is_new, NULL::text AS slot FROM syncstate.shard;
INSERT INTO place (shard, connection, name, is_new)
	SELECT n.shard, n.connection, 'grow ' || n.shard, true FROM (VALUES :new) AS n (shard, connection);
UPDATE place SET slot = 'syncstate_grow_' || shard + (SELECT count(*) FROM place WHERE NOT is_new) WHERE NOT is_new;
DO $$
BEGIN
	IF ARRAY(SELECT shard::bigint FROM place WHERE is_new ORDER BY shard)
		<> ARRAY(SELECT shard + count(*) OVER () FROM place WHERE NOT is_new ORDER BY shard) THEN
		RAISE 'the new shards must be %, as many as there are', (
			SELECT string_agg((shard + n)::text, ', ' ORDER BY shard)
			FROM (SELECT shard, count(*) OVER () AS n FROM place WHERE NOT is_new) AS p);
	END IF;
END
$$;
SELECT syncstate_shard.connect(name, connection || ' ' || :'admin') FROM place ORDER BY shard;
SELECT syncstate_shard.connect(name || ' wait', connection || ' ' || :'admin') FROM place WHERE NOT is_new ORDER BY shard;

-- A vacuum that is in the way of a lock gives up after deadlock_timeout.
SELECT syncstate_shard.exec(c, $$
	SET search_path = pg_catalog; SET lock_timeout = '2s'; SET statement_timeout = '5s'; SET synchronous_commit = on;
	SET deadlock_timeout = '10ms'; SET client_min_messages = error$$)
	FROM unnest(syncstate_shard.get_connections()) AS c;

-- Is all copied?
SELECT syncstate_shard.exec(name, $sql$DO $do$
	BEGIN
		IF (SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel) IS NOT TRUE THEN
			RAISE 'the subscription has not copied all tables yet';
		END IF;
	END $do$ $sql$) FROM place WHERE is_new ORDER BY shard;

-- And all that came since?  What is waited for here is not waited for below.
-- The message is a transaction of its own, by a connection of its own, whose end
-- brings to disk whatever came before it: nothing else may do so for long.
\set wait_for_slot '$sql$DO $do$ DECLARE here pg_lsn = pg_logical_emit_message(true, \'syncstate_grow\', \'\'); BEGIN COMMIT; LOOP EXIT WHEN (SELECT confirmed_flush_lsn >= here FROM pg_replication_slots WHERE slot_name = %L); PERFORM pg_sleep(0.005); END LOOP; END $do$ $sql$'
SELECT syncstate_shard.exec(name || ' wait', format(:wait_for_slot, slot)) FROM place WHERE NOT is_new ORDER BY shard;

-- From here on calls wait, when those on their way have ended.
BEGIN;
SET LOCAL lock_timeout = '1s';
LOCK TABLE syncstate.shard IN ACCESS EXCLUSIVE MODE;

-- Also those that a shard is still at while their caller has given them up.
SELECT syncstate_shard.exec(name, $$
	BEGIN;
	LOCK TABLE syncstate.sync_state, syncstate.sync_policy, syncstate.sync_budget, syncstate.sync_event, syncstate.sync_run, syncstate.sync_channel IN SHARE ROW EXCLUSIVE MODE$$)
	FROM place WHERE NOT is_new ORDER BY shard;
SELECT syncstate_shard.exec(name || ' wait', format(:wait_for_slot, slot)) FROM place WHERE NOT is_new ORDER BY shard;

-- The old shards keep the rows that have moved until cleanup.sql, and the fence
-- keeps workers from them: also those of a router that does not know of it.  What
-- is of no user has not moved.
-- Budgets and rates are halved with it, and the new shards take them over.
SELECT syncstate_shard.exec(name, format($sql$DO $do$
	DECLARE
		place regclass;
	BEGIN
		IF NOT EXISTS (SELECT FROM pg_policies WHERE policyname = 'syncstate_grow') THEN
			FOREACH place IN ARRAY '{syncstate.sync_state,syncstate.sync_event,syncstate.sync_run,syncstate.sync_channel}'::regclass[] LOOP
				EXECUTE format('CREATE POLICY syncstate_grow ON %%s AS RESTRICTIVE
					USING ((((get_byte(sha256(uuid_send(user_id)), 0)
						| (get_byte(sha256(uuid_send(user_id)), 1) << 8)) & %%s) <> 0) IS NOT TRUE)', place, %1$s);
			END LOOP;
			UPDATE syncstate.sync_policy SET
				daily_budget = CASE WHEN daily_budget > 1 THEN daily_budget / 2 ELSE daily_budget END,
				rate_per_minute = CASE WHEN rate_per_minute > 1 THEN rate_per_minute / 2 ELSE rate_per_minute END
				WHERE daily_budget > 1 OR rate_per_minute > 1;
		ELSIF EXISTS (SELECT FROM pg_policies WHERE policyname = 'syncstate_grow' AND qual NOT LIKE '%%& %1$s) <> 0%%') THEN
			RAISE 'rows that moved at an earlier switch are still here' USING HINT = 'Run cleanup.sql.';
		END IF;
	END $do$ $sql$, (SELECT count(*) FROM place WHERE NOT is_new))) FROM place WHERE NOT is_new ORDER BY shard;

INSERT INTO syncstate.shard SELECT shard, connection FROM place WHERE is_new;
SELECT syncstate_shard.exec(name, 'COMMIT') FROM place WHERE NOT is_new ORDER BY shard;
COMMIT;

-- The halved budgets are the last that the new shards take over.
SELECT syncstate_shard.exec(name || ' wait', format(:wait_for_slot, slot)) FROM place WHERE NOT is_new ORDER BY shard;
SELECT syncstate_shard.exec(name, 'DROP SUBSCRIPTION syncstate_grow') FROM place WHERE is_new ORDER BY shard;
SELECT syncstate_shard.exec(name, 'DROP PUBLICATION syncstate_grow') FROM place WHERE NOT is_new ORDER BY shard;
