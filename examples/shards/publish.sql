-- Growing, 1: on each old shard, as superuser.  Offers the rows of the users
-- who will move, with their events, runs and push channels, and the settings, to
-- the new shard.
--
--	psql -v shards=2 -v new=3 -f publish.sql "host=b dbname=shard1"
--
--	shards	how many there are now
--	new		number of the new shard: this one's plus "shards"
--
-- The condition is bit "shards" of syncstate_shard.hash(), written out because
-- that is all a row filter may have.  Events of sources are of no user: they stay.
--
-- Tables of the site's that live on the shard of their user move along, if they
-- are added before subscribe.sql runs, with the same condition:
--
--	ALTER PUBLICATION syncstate_grow ADD TABLE item WHERE (...);
--
-- They need user_id in their primary key, and to be there on the new shard.
\set ON_ERROR_STOP on
\set slot syncstate_grow_ :new
\set moves '((get_byte(sha256(uuid_send(user_id)), 0) | (get_byte(sha256(uuid_send(user_id)), 1) << 8)) & ' :shards ') <> 0'
SET search_path = pg_catalog;

DO $$
BEGIN
	IF EXISTS (SELECT FROM pg_policies WHERE policyname = 'syncstate_grow') THEN
		RAISE 'rows that moved at an earlier switch are still here' USING HINT = 'Run cleanup.sql.';
	END IF;
END
$$;

-- The key of an event does not have its user, by whom the taken ones are filtered.
-- What waits for the lock keeps others waiting: if it fails, run this again.
BEGIN;
SET LOCAL lock_timeout = '2s';
ALTER TABLE syncstate.sync_event REPLICA IDENTITY FULL;
CREATE PUBLICATION syncstate_grow FOR TABLE
	syncstate.sync_state WHERE (:moves),
	syncstate.sync_event WHERE (:moves),
	syncstate.sync_run WHERE (:moves),
	syncstate.sync_channel WHERE (:moves),
	syncstate.sync_policy, syncstate.sync_budget, syncstate.custom_source;
COMMIT;

-- By hand, since CREATE SUBSCRIPTION would wait for itself where both shards
-- are in one cluster.  From now on this shard keeps all WAL for the new one.
SELECT pg_create_logical_replication_slot(:'slot', 'pgoutput');
