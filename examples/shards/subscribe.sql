-- Growing, 2: on each new shard, as superuser: an empty database with the
-- extension and the grants of any shard.  Copies what publish.sql offers, and
-- goes on following it.
--
--	psql -v new=3 -v old="host=b dbname=shard1 user=mover" -f subscribe.sql "host=d dbname=shard3"
--
--	new		number of this shard
--	old		connection string of the old one, for a role with REPLICATION and
--			BYPASSRLS that may read the tables, or a superuser
\set ON_ERROR_STOP on
\set slot syncstate_grow_ :new

-- With synchronous_commit the old shard hears at once what is safe here, and not
-- some 500 ms later, for which calls would wait at the switch.  If it makes this
-- shard too slow to catch up: ALTER SUBSCRIPTION syncstate_grow SET
-- (synchronous_commit = off), and on again before the switch.
CREATE SUBSCRIPTION syncstate_grow CONNECTION :'old' PUBLICATION syncstate_grow
	WITH (create_slot = false, slot_name = :'slot', synchronous_commit = on);
