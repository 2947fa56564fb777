-- Growing, 4: on each old shard, as superuser, after the switch.  Deletes the
-- rows that have moved, page by page of the table, and takes the fence away.
--
--	psql -f cleanup.sql "host=b dbname=shard1"
--
-- What has moved is what the fence lets nobody see.
\set ON_ERROR_STOP on
SET search_path = pg_catalog;

DO $$
DECLARE
	stays text = (SELECT qual FROM pg_policies WHERE policyname = 'syncstate_grow');
	pages int = pg_relation_size('syncstate.sync_state') / current_setting('block_size')::int;
BEGIN
	-- it would delete them there as well
	IF EXISTS (SELECT FROM pg_publication WHERE pubname = 'syncstate_grow') THEN
		RAISE 'the new shard still follows this one' USING HINT = 'DROP SUBSCRIPTION syncstate_grow there, and DROP PUBLICATION syncstate_grow here.';
	ELSIF stays IS NULL THEN
		RAISE 'no switch has been made, or all is done';
	END IF;
	FOR page IN 0 .. pages BY 1000 LOOP
		EXECUTE format('DELETE FROM syncstate.sync_state WHERE ctid >= %L AND ctid < %L AND NOT %s',
			format('(%s,0)', page), format('(%s,0)', page + 1000), stays);
		COMMIT;
	END LOOP;
END
$$;
DROP POLICY syncstate_grow ON syncstate.sync_state;
VACUUM (ANALYZE) syncstate.sync_state;
