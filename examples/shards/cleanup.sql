-- Growing, 4: on each old shard, as superuser, after the switch.  Deletes the
-- rows that have moved, page by page of each table, and takes the fence away.
--
--	psql -f cleanup.sql "host=b dbname=shard1"
--
-- What has moved is what the fence lets nobody see.
\set ON_ERROR_STOP on
SET search_path = pg_catalog;

DO $$
DECLARE
	place regclass;
	stays text;
	pages int;
BEGIN
	-- it would delete them there as well
	IF EXISTS (SELECT FROM pg_publication WHERE pubname = 'syncstate_grow') THEN
		RAISE 'the new shard still follows this one' USING HINT = 'DROP SUBSCRIPTION syncstate_grow there, and DROP PUBLICATION syncstate_grow here.';
	ELSIF NOT EXISTS (SELECT FROM pg_policies WHERE policyname = 'syncstate_grow') THEN
		RAISE 'no switch has been made, or all is done';
	END IF;
	-- runs after rows: a run that ends with its row here has not ended where the row
	-- is.  So channels: one whose row is gone here would be to be stopped.
	FOREACH place IN ARRAY '{syncstate.sync_state,syncstate.sync_event,syncstate.sync_run,syncstate.sync_channel}'::regclass[] LOOP
		stays = (SELECT pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polname = 'syncstate_grow' AND polrelid = place);
		pages = pg_relation_size(place) / current_setting('block_size')::int;
		FOR page IN 0 .. pages BY 1000 LOOP
			EXECUTE format('DELETE FROM %s WHERE ctid >= %L AND ctid < %L AND NOT %s', place,
				format('(%s,0)', page), format('(%s,0)', page + 1000), stays);
			COMMIT;
		END LOOP;
	END LOOP;
	-- A claim that found the row of a channel gone may have rewritten the channel on a
	-- page that was done.  Left here, it would be stopped, but it is the new shard's.
	EXECUTE format('DELETE FROM %s WHERE NOT %s', place, stays);
END
$$;
-- Each by itself: calls lock the tables in more than one order.
DROP POLICY syncstate_grow ON syncstate.sync_state;
DROP POLICY syncstate_grow ON syncstate.sync_event;
DROP POLICY syncstate_grow ON syncstate.sync_run;
DROP POLICY syncstate_grow ON syncstate.sync_channel;
ALTER TABLE syncstate.sync_event REPLICA IDENTITY DEFAULT;
VACUUM (ANALYZE) syncstate.sync_state, syncstate.sync_event, syncstate.sync_run, syncstate.sync_channel;
