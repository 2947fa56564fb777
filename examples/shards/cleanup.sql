-- Growing, 4: on each old shard, as superuser, after the switch.  Deletes the
-- rows that have moved, page by page of the table, and takes the fence away.
--
--	psql -v shards=2 -f cleanup.sql "host=b dbname=shard1"
--
--	shards	how many there were before
\set ON_ERROR_STOP on
SET search_path = pg_catalog;
SET syncstate_grow.shards = :'shards';

DO $$
DECLARE
	shards int = current_setting('syncstate_grow.shards');
	pages int = pg_relation_size('syncstate.sync_state') / current_setting('block_size')::int;
BEGIN
	-- it would delete them there as well
	IF EXISTS (SELECT FROM pg_publication WHERE pubname = 'syncstate_grow') THEN
		RAISE 'the new shard still follows this one' USING HINT = 'DROP SUBSCRIPTION syncstate_grow there, and DROP PUBLICATION syncstate_grow here.';
	ELSIF NOT EXISTS (SELECT FROM pg_policies WHERE policyname = 'syncstate_grow') THEN
		RAISE 'no switch has been made, or all is done';
	END IF;
	FOR page IN 0 .. pages BY 1000 LOOP
		DELETE FROM syncstate.sync_state
			WHERE ctid >= format('(%s,0)', page)::tid AND ctid < format('(%s,0)', page + 1000)::tid
				AND ((get_byte(sha256(uuid_send(user_id)), 0)
					| (get_byte(sha256(uuid_send(user_id)), 1) << 8)) & shards) <> 0;
		COMMIT;
	END LOOP;
END
$$;
DROP POLICY syncstate_grow ON syncstate.sync_state;
VACUUM (ANALYZE) syncstate.sync_state;
