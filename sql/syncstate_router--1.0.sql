/* sql/syncstate_router--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION syncstate_router" to load this file. \quit

/*
 * A database with this extension keeps no sync state.  It has the functions of
 * syncstate, by the same names and arguments, and calls them where the state
 * is: on shards, databases with the extension syncstate, of which each has all
 * rows of some users.
 *
 * A call about one user is PL/Proxy's matter: a function of schema
 * syncstate_shard, by the name of the public one.  A call to several shards is
 * syncstate_shard.ask(), over dblink: PL/Proxy's RUN ON ALL loses what all the
 * others answered when one shard fails, after they have committed, and with it
 * leases that nobody would know of.
 *
 * Who may execute a public function may have it done on any shard, as the role
 * of the user mapping, which is a worker there.  So all public functions are
 * SECURITY DEFINER: nobody but the owner can call the functions below them, or
 * use the server and its password.
 *
 * They run with the settings of the caller: no string here has a backslash that
 * standard_conforming_strings could change, and who sends a time or an interval
 * to a shard does so in formats that each reads alike.
 */
CREATE SCHEMA syncstate;
COMMENT ON SCHEMA syncstate IS 'State of the incremental syncs of external APIs, kept on shards';

CREATE SCHEMA syncstate_shard;
COMMENT ON SCHEMA syncstate_shard IS 'How syncstate_router speaks to the shards; for nobody to call';

/* ------------------------------------------------------------------ types */

/* These must be as on the shards: see test/t/100_router.pl. */
CREATE TYPE syncstate.sync_source AS ENUM
	('google_calendar', 'google_tasks', 'google_gmail', 'google_contacts');
COMMENT ON TYPE syncstate.sync_source IS 'Which API a row syncs from; register_sync_source() adds labels';

CREATE TYPE syncstate.sync_status AS ENUM
	('idle', 'syncing', 'error', 'rate_limited');
COMMENT ON TYPE syncstate.sync_status IS 'What happened last to a row; never decides alone whether the row is due';

CREATE TYPE syncstate.sync_state AS (
	user_id uuid,
	account text COLLATE pg_catalog."C",
	source syncstate.sync_source,
	resource text COLLATE pg_catalog."C",
	status syncstate.sync_status,
	sync_token text,
	history_id text,
	updated_min timestamptz,
	token_issued_at timestamptz,
	last_full_sync_at timestamptz,
	due_at timestamptz,
	requested_at timestamptz,
	parked_reason text,
	sync_interval interval,
	lease bigint,
	lease_expires_at timestamptz,
	last_sync_at timestamptz,
	last_successful_sync_at timestamptz,
	items_synced bigint,
	page_token text,
	progress_done bigint,
	progress_total bigint,
	failures integer,
	token_losses integer,
	error_message text,
	created_at timestamptz,
	updated_at timestamptz,
	failing_since timestamptz,
	changes_seen double precision,
	seconds_watched double precision,
	full_sync_id bigint,
	syncs_started integer,
	lease_required boolean,
	limited_until timestamptz,
	run_requested_at timestamptz,
	troubled_at timestamptz,
	push_until timestamptz
);
COMMENT ON TYPE syncstate.sync_state IS 'A row of sync_state on a shard';

CREATE TYPE syncstate.sync_policy AS (
	source syncstate.sync_source,
	sync_interval interval,
	lease_time interval,
	retry_base interval,
	retry_cap interval,
	rate_limit_wait interval,
	max_failures integer,
	park_after interval,
	token_ttl interval,
	token_ttl_from text,
	jitter double precision,
	paused_until timestamptz,
	daily_budget integer,
	min_interval interval,
	max_interval interval,
	rate_per_minute integer,
	request_gap interval,
	auth_failures integer,
	resync_from timestamptz,
	resync_spread interval,
	max_vanished double precision,
	provider text,
	max_in_flight integer,
	keep_runs text,
	keep_runs_for interval,
	push_renew_before interval,
	push_interval interval,
	push_silence interval
);
COMMENT ON TYPE syncstate.sync_policy IS 'The settings of a source on all shards together';

/* Here sync_event, sync_run and sync_channel are views, which have the names of the shards' tables. */
CREATE TYPE syncstate_shard.event AS (
	id uuid,
	at timestamptz,
	event text,
	user_id uuid,
	account text COLLATE pg_catalog."C",
	source syncstate.sync_source,
	resource text COLLATE pg_catalog."C",
	lease bigint,
	reason text,
	detail text
);
COMMENT ON TYPE syncstate_shard.event IS 'A row of sync_event on a shard';

CREATE TYPE syncstate_shard.run AS (
	user_id uuid,
	account text COLLATE pg_catalog."C",
	source syncstate.sync_source,
	resource text COLLATE pg_catalog."C",
	lease bigint,
	started_at timestamptz,
	ended_at timestamptz,
	outcome text,
	was_full boolean,
	was_requested boolean,
	items bigint,
	error_message text
);
COMMENT ON TYPE syncstate_shard.run IS 'A row of sync_run on a shard';

CREATE TYPE syncstate_shard.channel AS (
	id uuid,
	user_id uuid,
	account text COLLATE pg_catalog."C",
	source syncstate.sync_source,
	resource text COLLATE pg_catalog."C",
	state text,
	channel_id text COLLATE pg_catalog."C",
	token_hash bytea,
	provider_ref text,
	expires_at timestamptz,
	renew_at timestamptz,
	lease bigint,
	lease_expires_at timestamptz,
	failures integer,
	error_message text,
	opened_at timestamptz,
	last_push_at timestamptz,
	message_number bigint
);
COMMENT ON TYPE syncstate_shard.channel IS 'A row of sync_channel on a shard';

CREATE TYPE syncstate_shard.channel_claim AS (
	user_id uuid,
	account text,
	source syncstate.sync_source,
	resource text,
	action text,
	lease bigint,
	lease_expires_at timestamptz,
	channel_id text,
	provider_ref text,
	expires_at timestamptz,
	failures integer
);
COMMENT ON TYPE syncstate_shard.channel_claim IS 'A row of what claim_push_channels() returns on a shard';

/* ----------------------------------------------------------------- shards */

/*
 * Every call reads this table first and so holds a lock on it until its
 * transaction ends: who has locked it in ACCESS EXCLUSIVE mode knows that no
 * call is on its way, and that the next one will see what they change.  That
 * is how shards are doubled while workers run: doc/sharding.md.
 */
CREATE TABLE syncstate.shard (
	shard integer NOT NULL,
	connection text NOT NULL,
	CONSTRAINT shard_pkey PRIMARY KEY (shard),
	CONSTRAINT shard_shard_range
		CHECK (shard OPERATOR(pg_catalog.>=) 0 AND shard OPERATOR(pg_catalog.<) 65536)
);
REVOKE ALL ON TABLE syncstate.shard FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.shard', '');
COMMENT ON TABLE syncstate.shard IS 'Where the shards are; their number is a power of two';
COMMENT ON COLUMN syncstate.shard.shard IS 'Number of the shard, from 0';
COMMENT ON COLUMN syncstate.shard.connection IS 'Connection string of libpq; without user and password, which are in the user mapping of server "syncstate"';

/* Who changed the table last, for enter(): a sequence shows that at any isolation level. */
CREATE SEQUENCE syncstate_shard.changed_by;
COMMENT ON SEQUENCE syncstate_shard.changed_by IS 'Number of the transaction that last changed the table of shards';

/*
 * PL/Proxy takes its shards from the options of a foreign server.  The server
 * is no member of the extension: pg_dump dumps the user mappings of those only.
 */
CREATE FUNCTION syncstate_shard.set_server() RETURNS trigger
	LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shards pg_catalog.int4;
	old pg_catalog.text[];
	options pg_catalog.text;
	-- rows are written by the shard as we read them, whatever its settings are
	iso CONSTANT pg_catalog.text = 'options=''-c datestyle=ISO'' ';
BEGIN
	SELECT pg_catalog.count(*) INTO shards FROM syncstate.shard AS s;
	IF shards OPERATOR(pg_catalog.=) 0
		OR shards OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog.<>) 0
		OR (SELECT pg_catalog.max(s.shard) FROM syncstate.shard AS s) OPERATOR(pg_catalog.<>) (shards OPERATOR(pg_catalog.-) 1) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'shards must be numbered from 0, and their number must be a power of two',
			DETAIL = pg_catalog.format('Got %s shards: %s.', shards,
				COALESCE((SELECT pg_catalog.string_agg(s.shard::pg_catalog.text, ', ' ORDER BY s.shard) FROM syncstate.shard AS s), 'none')),
			HINT = 'Write all of them in one statement.';
	END IF;
	PERFORM pg_catalog.setval('syncstate_shard.changed_by', pg_catalog.pg_current_xact_id()::pg_catalog.text::pg_catalog.int8);

	SELECT COALESCE(f.srvoptions, '{}') INTO old FROM pg_catalog.pg_foreign_server AS f
		WHERE f.srvname OPERATOR(pg_catalog.=) 'syncstate';
	IF NOT FOUND THEN
		SELECT pg_catalog.string_agg(pg_catalog.format('p%s %L', s.shard, iso OPERATOR(pg_catalog.||) s.connection), ', ' ORDER BY s.shard) INTO options
			FROM syncstate.shard AS s;
		EXECUTE pg_catalog.format('CREATE SERVER syncstate FOREIGN DATA WRAPPER plproxy OPTIONS (query_timeout ''10'', %s)', options);
		RETURN NULL;
	END IF;

	/* PL/Proxy wants them in order: take all off, and put all on again */
	SELECT pg_catalog.string_agg(o.change, ', ' ORDER BY o.place, o.shard) INTO options
		FROM (SELECT 1 AS place, 0 AS shard, pg_catalog.format('DROP %I', o.option_name) AS change
			  FROM pg_catalog.pg_options_to_table(old) AS o
			  WHERE o.option_name OPERATOR(pg_catalog.~) '^p[0-9]+$'
			  UNION ALL
			  SELECT 2, s.shard, pg_catalog.format('ADD p%s %L', s.shard, iso OPERATOR(pg_catalog.||) s.connection)
			  FROM syncstate.shard AS s) AS o;
	EXECUTE pg_catalog.format('ALTER SERVER syncstate OPTIONS (%s)', options);
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION syncstate_shard.set_server() IS 'Tells PL/Proxy where the shards are';

CREATE TRIGGER shard_set_server AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON syncstate.shard
	FOR EACH STATEMENT EXECUTE FUNCTION syncstate_shard.set_server();
COMMENT ON TRIGGER shard_set_server ON syncstate.shard IS 'Tells PL/Proxy where the shards are';

/*
 * Two bytes of a hash that every version of the server has, and whose result
 * can never change.  A power of two of shards takes its low bits, so that
 * doubling moves half of each shard's users and no others.  It is hashed twice,
 * since without a sub-select the planner puts it in place of a call.
 */
CREATE FUNCTION syncstate_shard.hash(user_id uuid) RETURNS integer
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	RETURN pg_catalog.get_byte(pg_catalog.sha256(pg_catalog.uuid_send(COALESCE(user_id, '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid))), 0)
		OPERATOR(pg_catalog.|) (pg_catalog.get_byte(pg_catalog.sha256(pg_catalog.uuid_send(COALESCE(user_id, '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid))), 1) OPERATOR(pg_catalog.<<) 8);
COMMENT ON FUNCTION syncstate_shard.hash(uuid) IS 'A number of 16 bits whose low bits say which shard has a user; of a null, one where the call can fail as anywhere';

/*
 * The first thing that every call does; see table shard for the lock.  VOLATILE,
 * so that it looks at the table after it has waited for the lock.
 * A transaction that keeps its snapshot cannot, and would ask the wrong shards.
 *
 *	writes	name of a call that writes, which the shards' own transactions would
 *			let it do in a read-only one: what PostgREST makes of a GET
 */
CREATE FUNCTION syncstate_shard.enter(writes text DEFAULT NULL) RETURNS integer
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shards pg_catalog.int4;
	changed_by pg_catalog.xid8;
BEGIN
	LOCK TABLE syncstate.shard IN ACCESS SHARE MODE;
	IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
		SELECT c.last_value::pg_catalog.text::pg_catalog.xid8 INTO changed_by FROM syncstate_shard.changed_by AS c;
		IF pg_catalog.pg_xact_status(changed_by) OPERATOR(pg_catalog.=) 'committed'
			AND NOT pg_catalog.pg_visible_in_snapshot(changed_by, pg_catalog.pg_current_snapshot()) THEN
			RAISE serialization_failure USING
				MESSAGE = 'could not serialize access due to a change of the shards',
				HINT = 'The transaction might succeed if retried.';
		END IF;
	END IF;
	SELECT pg_catalog.count(*) INTO shards FROM syncstate.shard AS s;
	IF shards OPERATOR(pg_catalog.=) 0 THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = 'this router has no shards',
			HINT = 'Insert connection strings into syncstate.shard, and create a user mapping for server "syncstate".';
	END IF;
	IF writes IS NOT NULL AND pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool THEN
		RAISE read_only_sql_transaction USING
			MESSAGE = pg_catalog.format('cannot execute %s() in a read-only transaction', writes);
	END IF;
	RETURN shards;
END
$$;
COMMENT ON FUNCTION syncstate_shard.enter(text) IS 'Locks the table of shards against change, and tells how many there are';

CREATE FUNCTION syncstate.shard_of(user_id uuid) RETURNS integer
	LANGUAGE plpgsql STABLE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN syncstate_shard.hash(user_id) OPERATOR(pg_catalog.&) (syncstate_shard.enter() OPERATOR(pg_catalog.-) 1);
END
$$;
COMMENT ON FUNCTION syncstate.shard_of(uuid) IS 'Which shard has the rows of a user';

/* --------------------------------------------------- asking several shards */

/*
 * dblink's functions under names of our own, which only the owner may execute,
 * and not those of the extension dblink, which everybody may: they all see the
 * same connections.
 */
CREATE FUNCTION syncstate_shard.connect(name text, connection text) RETURNS text
	AS '$libdir/dblink', 'dblink_connect' LANGUAGE C STRICT;
COMMENT ON FUNCTION syncstate_shard.connect(text, text) IS 'dblink_connect()';
CREATE FUNCTION syncstate_shard.disconnect(name text) RETURNS text
	AS '$libdir/dblink', 'dblink_disconnect' LANGUAGE C STRICT;
COMMENT ON FUNCTION syncstate_shard.disconnect(text) IS 'dblink_disconnect()';
CREATE FUNCTION syncstate_shard.get_connections() RETURNS text[]
	AS '$libdir/dblink', 'dblink_get_connections' LANGUAGE C;
COMMENT ON FUNCTION syncstate_shard.get_connections() IS 'dblink_get_connections()';
CREATE FUNCTION syncstate_shard.exec(name text, statement text) RETURNS text
	AS '$libdir/dblink', 'dblink_exec' LANGUAGE C STRICT;
COMMENT ON FUNCTION syncstate_shard.exec(text, text) IS 'dblink_exec()';
CREATE FUNCTION syncstate_shard.send_query(name text, statement text) RETURNS integer
	AS '$libdir/dblink', 'dblink_send_query' LANGUAGE C STRICT;
COMMENT ON FUNCTION syncstate_shard.send_query(text, text) IS 'dblink_send_query()';
CREATE FUNCTION syncstate_shard.is_busy(name text) RETURNS integer
	AS '$libdir/dblink', 'dblink_is_busy' LANGUAGE C STRICT;
COMMENT ON FUNCTION syncstate_shard.is_busy(text) IS 'dblink_is_busy()';
CREATE FUNCTION syncstate_shard.get_result(name text) RETURNS SETOF record
	AS '$libdir/dblink', 'dblink_get_result' LANGUAGE C STRICT;
COMMENT ON FUNCTION syncstate_shard.get_result(text) IS 'dblink_get_result()';

CREATE TYPE syncstate_shard.place AS (
	shard integer,
	name text,
	connection text,
	options text[]
);
COMMENT ON TYPE syncstate_shard.place IS 'A shard, how to come to it and as whom, and the name of the connection, another one where these are others';

CREATE TYPE syncstate_shard.answer AS (
	shard integer,
	rows text[],
	state text,
	message text,
	detail text,
	hint text
);
COMMENT ON TYPE syncstate_shard.answer IS 'What a shard answered: rows, or an error with its SQLSTATE';

CREATE FUNCTION syncstate_shard.places() RETURNS syncstate_shard.place[]
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	options pg_catalog.text[];
BEGIN
	SELECT m.umoptions INTO options FROM pg_catalog.pg_user_mapping AS m
			JOIN pg_catalog.pg_foreign_server AS f ON f.oid OPERATOR(pg_catalog.=) m.umserver
		WHERE f.srvname OPERATOR(pg_catalog.=) 'syncstate'
			AND m.umuser OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER)])
		ORDER BY m.umuser DESC LIMIT 1;
	RETURN ARRAY(SELECT ROW(s.shard,
			pg_catalog.format('syncstate %s %s', s.shard,
				pg_catalog.hashtextextended(pg_catalog.concat(s.connection, options), 0)),
			s.connection, options)::syncstate_shard.place
		FROM syncstate.shard AS s ORDER BY s.shard);
END
$$;
COMMENT ON FUNCTION syncstate_shard.places() IS 'Where the shards are, and as whom we come';

/* The same option by which PL/Proxy gives a shard up. */
CREATE FUNCTION syncstate_shard.timeout() RETURNS interval
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN pg_catalog.make_interval(secs => COALESCE(
		(SELECT NULLIF(o.option_value::pg_catalog.float8, 0)
		 FROM pg_catalog.pg_foreign_server AS f, LATERAL pg_catalog.pg_options_to_table(f.srvoptions) AS o
		 WHERE f.srvname OPERATOR(pg_catalog.=) 'syncstate' AND o.option_name OPERATOR(pg_catalog.=) 'query_timeout'),
		86400));
END
$$;
COMMENT ON FUNCTION syncstate_shard.timeout() IS 'How long a shard may take to answer: option query_timeout of server "syncstate"';

CREATE FUNCTION syncstate_shard.disconnect_all(keep text[] DEFAULT '{}') RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	name pg_catalog.text;
BEGIN
	FOREACH name IN ARRAY COALESCE(syncstate_shard.get_connections(), '{}') LOOP
		IF name OPERATOR(pg_catalog.~) '^syncstate [0-9]+ ' AND name OPERATOR(pg_catalog.<>) ALL (keep) THEN
			PERFORM syncstate_shard.disconnect(name);
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION syncstate_shard.disconnect_all(text[]) IS 'Closes our connections, whose open transactions come to nothing, but for those named';

CREATE FUNCTION syncstate_shard.open(place syncstate_shard.place) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	who pg_catalog.text;
BEGIN
	IF EXISTS (SELECT FROM pg_catalog.pg_proc AS p
			   WHERE p.probin OPERATOR(pg_catalog.=) '$libdir/dblink'
				   AND pg_catalog.has_function_privilege('public', p.oid, 'EXECUTE')) THEN
		RAISE insufficient_privilege USING
			MESSAGE = 'everybody may execute functions of dblink in this database',
			DETAIL = 'They reach the connections of the router, which may do everything on the shards.',
			HINT = 'Drop extension dblink, or revoke EXECUTE on its functions from PUBLIC.';
	END IF;
	-- those of before a change of the shards
	PERFORM syncstate_shard.disconnect_all(ARRAY(SELECT p.name FROM pg_catalog.unnest(syncstate_shard.places()) AS p));
	SELECT pg_catalog.string_agg(pg_catalog.format(' %s=''%s''', o.option_name,
			pg_catalog.replace(pg_catalog.replace(o.option_value, E'\\', E'\\\\'), '''', E'\\''')), '')
		INTO who FROM pg_catalog.pg_options_to_table(place.options) AS o;
	-- a shard's own connect_timeout comes later, and so counts
	PERFORM syncstate_shard.connect(place.name, pg_catalog.format('connect_timeout=%s %s%s',
		pg_catalog.ceil(pg_catalog.date_part('epoch', syncstate_shard.timeout())), place.connection, who));
	-- rows are written by the shard as we read them; what we gave up ends some
	-- time, also where the shard cannot learn that we are gone
	PERFORM syncstate_shard.exec(place.name, pg_catalog.format(
		'SET search_path = pg_catalog; SET datestyle = ISO; SET intervalstyle = postgres; SET extra_float_digits = 3; SET client_min_messages = error; SET statement_timeout = %1$s; SET idle_in_transaction_session_timeout = %1$s',
		pg_catalog.floor(pg_catalog.date_part('epoch', syncstate_shard.timeout()) OPERATOR(pg_catalog.*) 2000)));
END
$$;
COMMENT ON FUNCTION syncstate_shard.open(syncstate_shard.place) IS 'Opens the connection to a shard';

/* XX: damaged files, say.  25006: a standby. */
CREATE FUNCTION syncstate_shard.is_outage(state text) RETURNS boolean
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	RETURN state OPERATOR(pg_catalog.~) '^(08|53|57|58|XX)|^25006$';
COMMENT ON FUNCTION syncstate_shard.is_outage(text) IS 'Whether an SQLSTATE tells that a shard is out of order, and not that a call is';

/*
 * Sends a statement to each shard, all at the same time, and gives what each
 * one answered, within the timeout; no shard's error is an error here.
 *
 *	statements	one for each shard, from shard 0; null = not asked.  A SELECT of
 *				one column of type text, or a command; "BEGIN; " before it opens
 *				a transaction, which commit() ends
 *	begun		shards where such a transaction goes on: it went with its
 *				connection, so a new one is no place for the statement
 *	places		of all shards, from a call that asks several times
 *
 * Whoever does not answer in time, or loses the connection, is disconnected, so
 * that an open transaction comes to nothing; and if that took more than a
 * second it is not asked again for ten times as long, so that at most one call
 * in ten waits for a shard that hangs.
 */
CREATE FUNCTION syncstate_shard.ask(statements text[], begun integer[] DEFAULT '{}',
		places syncstate_shard.place[] DEFAULT NULL)
	RETURNS syncstate_shard.answer[]
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	SET client_min_messages = warning
	SET datestyle = ISO
	AS $$
DECLARE
	started pg_catalog.timestamptz = pg_catalog.clock_timestamp();
	connections pg_catalog.text[] = COALESCE(syncstate_shard.get_connections(), '{}');
	connected pg_catalog.bool;
	asked syncstate_shard.place[] = '{}';
	place syncstate_shard.place;
	answers syncstate_shard.answer[] = '{}';
	answer syncstate_shard.answer;
	busy pg_catalog.int4;
	avoid pg_catalog.text;		-- setting: until when a shard is not asked
	statement pg_catalog.text;
	context pg_catalog.text;
	waited pg_catalog.interval;
BEGIN
	FOREACH place IN ARRAY COALESCE(places, syncstate_shard.places()) LOOP
		statement = statements[place.shard OPERATOR(pg_catalog.+) 1];
		CONTINUE WHEN statement IS NULL;
		avoid = 'syncstate_router.avoid_until_' OPERATOR(pg_catalog.||) place.shard;
		waited = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started;
		BEGIN
			IF NULLIF(pg_catalog.current_setting(avoid, true), '')::pg_catalog.timestamptz OPERATOR(pg_catalog.>) started THEN
				RAISE connection_failure USING MESSAGE = pg_catalog.format('it took too long, and is not asked until %s',
					pg_catalog.current_setting(avoid));
			END IF;
			connected = place.name OPERATOR(pg_catalog.=) ANY (connections);
			IF connected THEN
				-- this notices whether the other end has closed the
				-- connection: first its last words, and then that there
				-- are no more
				busy = syncstate_shard.is_busy(place.name);
				busy = syncstate_shard.is_busy(place.name);
				connected = syncstate_shard.send_query(place.name, statement) OPERATOR(pg_catalog.<>) 0;
				IF NOT connected THEN
					PERFORM syncstate_shard.disconnect(place.name);
				END IF;
			END IF;
			IF NOT connected THEN
				IF place.shard OPERATOR(pg_catalog.=) ANY (begun) THEN
					RAISE connection_failure USING MESSAGE = 'the connection was lost';
				END IF;
				PERFORM syncstate_shard.open(place);
				PERFORM syncstate_shard.send_query(place.name, statement);
			END IF;
			asked = asked OPERATOR(pg_catalog.||) place;
		EXCEPTION WHEN insufficient_privilege THEN
			RAISE;
		WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS context = PG_EXCEPTION_DETAIL;
			answers = answers OPERATOR(pg_catalog.||) ROW(place.shard, NULL, '08001', pg_catalog.concat_ws(': ', SQLERRM, NULLIF(context, '')), NULL, NULL)::syncstate_shard.answer;
			waited = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started OPERATOR(pg_catalog.-) waited;
			IF waited OPERATOR(pg_catalog.>) '1 second'::pg_catalog.interval THEN
				PERFORM pg_catalog.set_config(avoid, (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) (waited OPERATOR(pg_catalog.*) 10))::pg_catalog.text, false);
			END IF;
		END;
	END LOOP;

	-- who is slow to let us in takes no time from those who were asked
	started = pg_catalog.clock_timestamp();
	FOREACH place IN ARRAY asked LOOP
		answer = ROW(place.shard, NULL, NULL, NULL, NULL, NULL);
		BEGIN
			FOR result IN 1 .. CASE WHEN pg_catalog.starts_with(statements[place.shard OPERATOR(pg_catalog.+) 1], 'BEGIN; ') THEN 2 ELSE 1 END LOOP
				WHILE syncstate_shard.is_busy(place.name) OPERATOR(pg_catalog.=) 1 LOOP
					waited = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started;
					-- no timeout is less than a second
					IF waited OPERATOR(pg_catalog.>) '1 second'::pg_catalog.interval AND waited OPERATOR(pg_catalog.>) syncstate_shard.timeout() THEN
						RAISE connection_failure USING MESSAGE = pg_catalog.format('no answer within %s', syncstate_shard.timeout());
					END IF;
					-- a part of the time that has gone by, so that little is added to it
					PERFORM pg_catalog.pg_sleep(LEAST(0.01, pg_catalog.date_part('epoch', waited) OPERATOR(pg_catalog./) 8));
				END LOOP;
				answer.rows = ARRAY(SELECT r.line FROM syncstate_shard.get_result(place.name) AS r (line pg_catalog.text));
				-- no row and no command's name is empty: so comes a result whose connection broke
				IF '' OPERATOR(pg_catalog.=) ANY (answer.rows) THEN
					RAISE connection_failure USING MESSAGE = 'the connection was lost';
				END IF;
			END LOOP;
			-- results end with none at all, which reads as an empty one
			PERFORM FROM syncstate_shard.get_result(place.name) AS r (line pg_catalog.text);
		EXCEPTION WHEN query_canceled OR OTHERS THEN
			GET STACKED DIAGNOSTICS answer.state = RETURNED_SQLSTATE, answer.message = MESSAGE_TEXT,
				answer.detail = PG_EXCEPTION_DETAIL, answer.hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
			-- canceled here, not there
			IF answer.state OPERATOR(pg_catalog.=) '57014' AND pg_catalog.strpos(context, 'on dblink connection') OPERATOR(pg_catalog.=) 0 THEN
				RAISE;
			END IF;
			answer.rows = NULL;
		END;
		answers = answers OPERATOR(pg_catalog.||) answer;
		CONTINUE WHEN answer.state IS NULL;

		IF syncstate_shard.is_outage(answer.state) THEN
			PERFORM syncstate_shard.disconnect(place.name);
			waited = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started;
			IF waited OPERATOR(pg_catalog.>) '1 second'::pg_catalog.interval THEN
				PERFORM pg_catalog.set_config('syncstate_router.avoid_until_' OPERATOR(pg_catalog.||) place.shard,
					(pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) (waited OPERATOR(pg_catalog.*) 10))::pg_catalog.text, false);
			END IF;
		ELSE
			PERFORM FROM syncstate_shard.get_result(place.name) AS r (line pg_catalog.text);
		END IF;
	END LOOP;
	RETURN answers;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	PERFORM syncstate_shard.disconnect_all();
	RAISE;
END
$$;
COMMENT ON FUNCTION syncstate_shard.ask(text[], integer[], syncstate_shard.place[]) IS 'Sends a statement to each shard, and gives what each one answered';

/* --------------------------------------------------------- telling errors */

/* An answer's error as the error of the call: the shard's own words, where there are any. */
CREATE FUNCTION syncstate_shard.fail(answer syncstate_shard.answer) RETURNS void
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF syncstate_shard.is_outage(answer.state) THEN
		RAISE connection_failure USING
			MESSAGE = pg_catalog.format('shard %s does not answer', answer.shard),
			DETAIL = COALESCE(NULLIF(answer.message, ''), answer.state),
			HINT = 'Other shards'' users are not concerned. Repeating a call is safe.';
	ELSIF answer.detail OPERATOR(pg_catalog.<>) '' AND answer.hint OPERATOR(pg_catalog.<>) '' THEN
		RAISE USING ERRCODE = answer.state, MESSAGE = answer.message, DETAIL = answer.detail, HINT = answer.hint;
	ELSIF answer.detail OPERATOR(pg_catalog.<>) '' THEN
		RAISE USING ERRCODE = answer.state, MESSAGE = answer.message, DETAIL = answer.detail;
	ELSIF answer.hint OPERATOR(pg_catalog.<>) '' THEN
		RAISE USING ERRCODE = answer.state, MESSAGE = answer.message, HINT = answer.hint;
	ELSE
		RAISE USING ERRCODE = answer.state, MESSAGE = answer.message;
	END IF;
END
$$;
COMMENT ON FUNCTION syncstate_shard.fail(syncstate_shard.answer) IS 'Raises the error that a shard answered with';

/*
 * The first error that is about the call, if any.  Otherwise shards that are
 * out of order are a warning, or an error where all of them are or all were
 * needed.
 */
CREATE FUNCTION syncstate_shard.check(answers syncstate_shard.answer[], all_needed boolean) RETURNS boolean
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	answer syncstate_shard.answer;
	outage pg_catalog.bool = false;
	good pg_catalog.text;
	bad pg_catalog.text;
	why pg_catalog.text;
BEGIN
	FOREACH answer IN ARRAY answers LOOP
		CONTINUE WHEN answer.state IS NULL;
		outage = true;
		IF NOT syncstate_shard.is_outage(answer.state) THEN
			PERFORM syncstate_shard.fail(answer);
		END IF;
	END LOOP;
	IF NOT outage THEN
		RETURN true;
	END IF;

	SELECT pg_catalog.string_agg(a.shard::pg_catalog.text, ', ' ORDER BY a.shard) FILTER (WHERE a.state IS NULL),
			pg_catalog.string_agg(a.shard::pg_catalog.text, ', ' ORDER BY a.shard) FILTER (WHERE a.state IS NOT NULL),
			pg_catalog.string_agg(pg_catalog.format('Shard %s: %s.', a.shard, pg_catalog.rtrim(a.message, E'.\n')), ' ' ORDER BY a.shard) FILTER (WHERE a.state IS NOT NULL)
		INTO good, bad, why FROM pg_catalog.unnest(answers) AS a;
	IF all_needed OR good IS NULL THEN
		RAISE connection_failure USING
			MESSAGE = pg_catalog.format('not all shards answer: not %s', bad),
			DETAIL = pg_catalog.format('Shards that did what was asked: %s. %s', COALESCE(good, 'none'), why),
			HINT = 'Repeating the call is safe: a shard that has done it does it again without harm.';
	ELSE
		RAISE WARNING USING
			ERRCODE = 'connection_failure',
			MESSAGE = pg_catalog.format('not all shards answer: not %s', bad),
			DETAIL = why;
		RETURN false;
	END IF;
END
$$;
COMMENT ON FUNCTION syncstate_shard.check(syncstate_shard.answer[], boolean) IS 'Raises what shards could not do as an error or a warning; tells whether all of them answered';

/* A statement for all shards. */
CREATE FUNCTION syncstate_shard.ask_all(statement text, all_needed boolean) RETURNS SETOF syncstate_shard.answer
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	answers syncstate_shard.answer[];
BEGIN
	answers = syncstate_shard.ask(pg_catalog.array_fill(statement, ARRAY[syncstate_shard.enter()]));
	PERFORM syncstate_shard.check(answers, all_needed);
	RETURN QUERY SELECT a.* FROM pg_catalog.unnest(answers) AS a WHERE a.state IS NULL ORDER BY a.shard;
END
$$;
COMMENT ON FUNCTION syncstate_shard.ask_all(text, boolean) IS 'Asks all shards the same, and gives the answers of those that gave one';

/* --------------------------------------------------------- who is asking */

CREATE FUNCTION syncstate.current_user_id() RETURNS uuid
	AS 'MODULE_PATHNAME', 'syncstate_current_user_id'
	LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.current_user_id() IS 'The user that the session''s JWT claims name, or null';

CREATE FUNCTION syncstate.user_id_of(subject text) RETURNS uuid
	AS 'MODULE_PATHNAME', 'syncstate_user_id_of'
	LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.user_id_of(text) IS 'The user_id of a user whose id is a text: itself if it is a uuid, else one that is computed from it';

CREATE FUNCTION syncstate.sync_clock() RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'syncstate_sync_clock'
	LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION syncstate.sync_clock() IS 'The time by which the extension decides: the real time, or syncstate.clock where that is set';

/*
 * A SECURITY DEFINER function cannot see whose privileges it was called with,
 * only the role of the session, which is what SET ROLE made it.  claim_due_syncs
 * is made below.
 */
CREATE FUNCTION syncstate_shard.is_worker() RETURNS boolean
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN pg_catalog.has_function_privilege(
		COALESCE(NULLIF(pg_catalog.current_setting('role'), 'none'), SESSION_USER)::pg_catalog.name,
		'syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)', 'EXECUTE');
END
$$;
COMMENT ON FUNCTION syncstate_shard.is_worker() IS 'Whether the session''s role is a worker''s';

/*
 * What row security does on a single database.  A null user_id is for the shard
 * to refuse, and a worker's identity is never asked for.
 */
CREATE FUNCTION syncstate_shard.sees(user_id uuid) RETURNS boolean
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN user_id IS NULL OR syncstate_shard.is_worker()
		OR user_id OPERATOR(pg_catalog.=) syncstate.current_user_id() IS TRUE;
END
$$;
COMMENT ON FUNCTION syncstate_shard.sees(uuid) IS 'Whether the caller is this user or a worker';

/* The same words as on a single database. */
CREATE FUNCTION syncstate_shard.check_user(user_id uuid, account text, source syncstate.sync_source, resource text) RETURNS void
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF NOT syncstate_shard.sees(user_id) THEN
		RAISE SQLSTATE 'PT404' USING MESSAGE = 'sync state does not exist or is not visible',
			DETAIL = pg_catalog.format('Key (user_id, account, source, resource)=(%s, %s, %s, %s).', user_id, account, source, resource);
	END IF;
END
$$;
COMMENT ON FUNCTION syncstate_shard.check_user(uuid, text, syncstate.sync_source, text) IS 'Fails as for a missing row unless the caller is this user or a worker';

/* ---------------------------------------------------------- what is there */

/* The views read functions, which read all that the shards have. */
CREATE FUNCTION syncstate.get_sync_channels() RETURNS SETOF syncstate_shard.channel
	LANGUAGE plpgsql STABLE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN QUERY SELECT c.*
		FROM syncstate_shard.ask_all('SELECT c::text FROM syncstate.sync_channel AS c', true) AS a,
			LATERAL pg_catalog.unnest(a.rows::syncstate_shard.channel[]) AS c;
END
$$;
COMMENT ON FUNCTION syncstate.get_sync_channels() IS 'The push channels of all shards; read it as view sync_channel';

CREATE VIEW syncstate.sync_channel WITH (security_invoker = true) AS
	SELECT c.* FROM syncstate.get_sync_channels() AS c;
REVOKE ALL ON TABLE syncstate.sync_channel FROM PUBLIC;
COMMENT ON VIEW syncstate.sync_channel IS 'Push channels of rows of sync_state: when they end, and what must be done about them';

/* ----------------------------------------------- calls about one user's row */

/*
 * An error of PL/Proxy as the shard's own.  Where the shards are is not for
 * users to know, who get the log, too, unless callers set client_min_messages.
 */
CREATE FUNCTION syncstate_shard.fail_routed(user_id uuid, state text, message text, detail text, hint text) RETURNS void
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shard pg_catalog.int4 = syncstate.shard_of(user_id);
BEGIN
	IF message OPERATOR(pg_catalog.~) '^PL/Proxy function ' THEN
		state = '08006';
	END IF;
	message = pg_catalog.regexp_replace(pg_catalog.rtrim(message, E'\n'), '^(PL/Proxy function )?syncstate_shard[.][a-z_]+[(][0-9]+[)]: ([[][^]]*[]] )?(REMOTE [^ ]+: )?', '');
	IF syncstate_shard.is_outage(state) AND NOT syncstate_shard.is_worker() THEN
		RAISE LOG 'shard % does not answer: %', shard, message;
		message = NULL;
	END IF;
	PERFORM syncstate_shard.fail(ROW(shard, NULL, state, message,
		pg_catalog.regexp_replace(detail, '^Remote detail: ', ''),
		pg_catalog.regexp_replace(hint, '^Remote hint: ', ''))::syncstate_shard.answer);
END
$$;
COMMENT ON FUNCTION syncstate_shard.fail_routed(uuid, text, text, text, text) IS 'Raises an error that PL/Proxy brought from the shard of a user';

/*
 * After a limit of scope 'source' on some shards: the provider counts them all as
 * one.
 */
CREATE FUNCTION syncstate_shard.spread_pause(source syncstate.sync_source, shards integer[]) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	SET datestyle = ISO
	AS $$
DECLARE
	question pg_catalog.text = pg_catalog.format('SELECT (syncstate.get_sync_policy(%L)).paused_until::text', source);
	answers syncstate_shard.answer[];
	until pg_catalog.timestamptz;
BEGIN
	answers = ARRAY(SELECT a FROM syncstate_shard.ask_all(question, false) AS a);
	SELECT pg_catalog.max(a.rows[1]::pg_catalog.timestamptz) INTO until FROM pg_catalog.unnest(answers) AS a
		WHERE a.shard OPERATOR(pg_catalog.=) ANY (shards);
	-- somebody has ended the pause meanwhile
	IF until IS NULL THEN
		RETURN;
	END IF;
	answers = syncstate_shard.ask(
		ARRAY(SELECT CASE WHEN a.shard IS NOT NULL AND a.rows[1]::pg_catalog.timestamptz OPERATOR(pg_catalog.>=) until IS NOT TRUE
				THEN pg_catalog.format('SELECT (syncstate.pause_sync_source(%L, %L)).paused_until::text', source, until) END
			FROM pg_catalog.generate_series(0, syncstate_shard.enter() OPERATOR(pg_catalog.-) 1) AS n
				LEFT JOIN pg_catalog.unnest(answers) AS a ON a.shard OPERATOR(pg_catalog.=) n
			ORDER BY n));
	PERFORM syncstate_shard.check(answers, false);
END
$$;
COMMENT ON FUNCTION syncstate_shard.spread_pause(syncstate.sync_source, integer[]) IS 'Pauses a source on all shards for as long as on these';

/*
 * For each call two functions: the public one, and PL/Proxy's, which goes by
 * the same name on the shard.  Times go there as text, which reads the same
 * everywhere in style ISO only.
 *
 *	before, after	statements around the call, or after each of its rows
 */
DO $install$
DECLARE
	call pg_catalog.record;
	arguments pg_catalog.text;
	columns pg_catalog.text;	-- of RETURNS TABLE
	types pg_catalog.text;
	body pg_catalog.text;
BEGIN
	FOR call IN SELECT * FROM (VALUES
		('mark_sync_started',
		 $$user_id uuid, source syncstate.sync_source, lease_time interval DEFAULT NULL, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Starts the sync of one row, due or not, unless another worker holds it'),
		('mark_sync_completed',
		 $$user_id uuid, source syncstate.sync_source, items_synced bigint DEFAULT 0, sync_token text DEFAULT NULL, history_id text DEFAULT NULL, updated_min timestamptz DEFAULT NULL, lease bigint DEFAULT NULL, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Reports that a sync completed, with its new cursor'),
		('mark_sync_failed',
		 $$user_id uuid, source syncstate.sync_source, error_message text, kind text DEFAULT 'transient', lease bigint DEFAULT NULL, resource text DEFAULT '', scope text DEFAULT 'account', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Reports that a sync failed: the row waits, or is parked if waiting is of no use; an account whose grant has ended is parked as a whole'),
		('mark_rate_limited',
		 $$user_id uuid, source syncstate.sync_source, retry_after interval DEFAULT NULL, scope text DEFAULT 'account', lease bigint DEFAULT NULL, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '',
		 $$IF scope OPERATOR(pg_catalog.=) 'source' THEN PERFORM syncstate_shard.spread_pause(source, ARRAY[syncstate.shard_of(user_id)]); END IF;$$,
		 'Reports that the provider''s rate limit was hit: the rows of the account''s source wait until it ends'),
		('clear_sync_token',
		 $$user_id uuid, source syncstate.sync_source, lease bigint DEFAULT NULL, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Reports that the cursor has expired: a full sync is next'),
		('renew_sync_lease',
		 $$user_id uuid, source syncstate.sync_source, lease bigint, lease_time interval DEFAULT NULL, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Renews the lease of a running sync'),
		('checkpoint_sync',
		 $$user_id uuid, source syncstate.sync_source, lease bigint DEFAULT NULL, page_token text DEFAULT NULL, progress_done bigint DEFAULT NULL, progress_total bigint DEFAULT NULL, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Saves where a long sync stands, and renews its lease'),
		('release_sync',
		 $$user_id uuid, source syncstate.sync_source, lease bigint, resource text DEFAULT '', delay interval DEFAULT '0 seconds', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Returns a claimed row unsynced, due after a delay and after all rows that are due already; counts nothing'),
		('may_sweep',
		 $$user_id uuid, source syncstate.sync_source, lease bigint, vanished bigint, total bigint, force boolean DEFAULT false, resource text DEFAULT '', account text DEFAULT ''$$,
		 'boolean', 'VOLATILE', '', '',
		 'Whether the items that a full sync did not list may be deleted: not if they are suspiciously many'),
		('update_sync_state',
		 $$user_id uuid, source syncstate.sync_source, changes jsonb, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Changes columns of a row as a direct write would: keys present change, null clears, keys absent stay'),
		('connect_sync',
		 $$user_id uuid, source syncstate.sync_source, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '',
		 $$PERFORM pg_catalog.pg_notify('syncstate', source::pg_catalog.text);$$,
		 'Starts or resumes the syncing of a row: creates it if it is missing, un-parks it unless it is paused, resets failures, and requests a sync'),
		('disconnect_sync',
		 $$user_id uuid, source syncstate.sync_source, resource text DEFAULT '', account text DEFAULT ''$$,
		 'boolean', 'VOLATILE', '', '',
		 'Deletes the row; returns false if there was none'),
		('pause_sync',
		 $$user_id uuid, source syncstate.sync_source, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '', '',
		 'Parks a row until it is resumed; a running sync may finish'),
		('resume_sync',
		 $$user_id uuid, source syncstate.sync_source, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'VOLATILE', '',
		 $$PERFORM pg_catalog.pg_notify('syncstate', source::pg_catalog.text);$$,
		 'Un-parks a row, which is due at once, and resets its failures'),
		('request_sync',
		 $$user_id uuid, source syncstate.sync_source, resource text DEFAULT '', account text DEFAULT ''$$,
		 'boolean', 'VOLATILE',
		 'PERFORM syncstate_shard.check_user(user_id, account, source, resource);',
		 $$IF result THEN PERFORM pg_catalog.pg_notify('syncstate', source::pg_catalog.text); END IF;$$,
		 'Requests a sync now; returns whether one will come, which is false for a parked row'),
		('get_sync_state',
		 $$user_id uuid, source syncstate.sync_source, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_state', 'STABLE', '',
		 'IF result.user_id IS NULL THEN RETURN NULL; END IF;',
		 'The row of a user, account, source and resource, or null'),
		('get_sync_states',
		 'user_id uuid',
		 'SETOF syncstate.sync_state', 'STABLE', '', '',
		 'All rows of a user'),
		('connect_account',
		 $$user_id uuid, account text DEFAULT '', provider text DEFAULT NULL$$,
		 'SETOF syncstate.sync_state', 'VOLATILE ROWS 10', '',
		 $$PERFORM pg_catalog.pg_notify('syncstate', result.source::pg_catalog.text);$$,
		 'Starts or resumes the syncing of all rows of an account, as connect_sync() does for one; returns them'),
		('pause_account',
		 $$user_id uuid, account text DEFAULT '', provider text DEFAULT NULL$$,
		 'SETOF syncstate.sync_state', 'VOLATILE ROWS 10', '', '',
		 'Parks all rows of an account until they are resumed; returns them'),
		('resume_account',
		 $$user_id uuid, account text DEFAULT '', provider text DEFAULT NULL$$,
		 'SETOF syncstate.sync_state', 'VOLATILE ROWS 10', '',
		 $$PERFORM pg_catalog.pg_notify('syncstate', result.source::pg_catalog.text);$$,
		 'Un-parks all rows of an account, which are due at once; returns them'),
		('disconnect_account',
		 $$user_id uuid, account text DEFAULT '', provider text DEFAULT NULL$$,
		 'SETOF syncstate.sync_state', 'VOLATILE ROWS 10', '', '',
		 'Deletes all rows of an account; returns them as they were'),
		('request_account',
		 $$user_id uuid, account text DEFAULT '', provider text DEFAULT NULL$$,
		 'TABLE (source syncstate.sync_source, resource text)', 'VOLATILE ROWS 10',
		 'IF NOT syncstate_shard.sees(user_id) THEN RETURN; END IF;',
		 $$PERFORM pg_catalog.pg_notify('syncstate', source::pg_catalog.text);$$,
		 'Requests a sync of each row of an account; returns the rows for which one will come'),
		('set_sync_resources',
		 $$user_id uuid, source syncstate.sync_source, resources text[], account text DEFAULT ''$$,
		 'TABLE (resource text, change text)', 'VOLATILE ROWS 10', '',
		 $$IF change OPERATOR(pg_catalog.=) ANY ('{added,returned}') THEN PERFORM pg_catalog.pg_notify('syncstate', source::pg_catalog.text); END IF;$$,
		 'Makes the resources of an account exactly these: connects new ones, parks those that are gone, brings back those that returned'),
		('mark_channel_opened',
		 $$user_id uuid, source syncstate.sync_source, lease bigint, channel_id text, expires_at timestamptz, token text, provider_ref text DEFAULT NULL, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_channel', 'VOLATILE', '', '',
		 'Reports that a push channel was opened, or that its successor was: the old one is to be stopped'),
		('mark_channel_failed',
		 $$user_id uuid, source syncstate.sync_source, lease bigint, error_message text, kind text DEFAULT 'transient', resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_channel', 'VOLATILE', '', '',
		 'Reports that a push channel could not be opened, renewed or stopped: it waits, or is asked for again after a month'),
		('mark_channel_stopped',
		 $$user_id uuid, source syncstate.sync_source, lease bigint, resource text DEFAULT '', account text DEFAULT ''$$,
		 'syncstate.sync_channel', 'VOLATILE', '', '',
		 'Reports that a push channel was stopped, which forgets it; returns it as it was'))
		AS c (name, signature, result, volatility, before, after, comment)
	LOOP
		-- a row comes as one column: more than 30 of them are a long statement to parse, for each call
		EXECUTE pg_catalog.format(
			$f$CREATE FUNCTION syncstate_shard.%I(%s) RETURNS %s LANGUAGE plproxy VOLATILE
			AS 'CLUSTER ''syncstate''; RUN ON syncstate_shard.hash(user_id); TARGET syncstate.%I;'$f$,
			call.name, call.signature,
			CASE WHEN call.result OPERATOR(pg_catalog.=) ANY ('{syncstate.sync_state,syncstate.sync_channel}') THEN 'text' ELSE call.result END, call.name);

		SELECT pg_catalog.string_agg(a.name, ', ' ORDER BY a.place) FILTER (WHERE a.place OPERATOR(pg_catalog.<=) p.pronargs),
				pg_catalog.string_agg(a.name, ', ' ORDER BY a.place) FILTER (WHERE a.place OPERATOR(pg_catalog.>) p.pronargs),
				pg_catalog.oidvectortypes(p.proargtypes)
			INTO arguments, columns, types
			FROM pg_catalog.pg_proc AS p, pg_catalog.unnest(p.proargnames) WITH ORDINALITY AS a (name, place)
			WHERE p.pronamespace OPERATOR(pg_catalog.=) 'syncstate_shard'::pg_catalog.regnamespace
				AND p.proname OPERATOR(pg_catalog.=) call.name
			GROUP BY p.oid;
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION syncstate_shard.%I(%s) IS %L', call.name, types,
			'syncstate.' OPERATOR(pg_catalog.||) call.name OPERATOR(pg_catalog.||) '() on the shard of the user');

		body = $b$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter(%6$L);
	%7$s
	state pg_catalog.text;
	message pg_catalog.text;
	detail pg_catalog.text;
	hint pg_catalog.text;
BEGIN
	%3$s
$b$ OPERATOR(pg_catalog.||) CASE WHEN call.result OPERATOR(pg_catalog.~) '^(SETOF|TABLE) ' THEN $b$
	FOR %8$s IN SELECT r.* FROM syncstate_shard.%1$I(%2$s) AS r LOOP
		%4$s
		RETURN NEXT %9$s;
	END LOOP;
$b$ ELSE $b$
	result = syncstate_shard.%1$I(%2$s)::%5$s;
	%4$s
	RETURN result;
$b$ END;
		body = pg_catalog.format(body OPERATOR(pg_catalog.||) $b$
EXCEPTION WHEN query_canceled OR OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	-- canceled here, not there
	IF state OPERATOR(pg_catalog.=) '57014' AND pg_catalog.strpos(message, '] REMOTE ') OPERATOR(pg_catalog.=) 0 THEN
		RAISE;
	END IF;
	PERFORM syncstate_shard.fail_routed(user_id, state, message, detail, hint);
END
$b$, call.name, arguments, call.before, call.after, call.result,
			CASE WHEN call.volatility OPERATOR(pg_catalog.~) '^VOLATILE' THEN call.name END,
			CASE WHEN columns IS NULL THEN pg_catalog.format('result %s;', pg_catalog.regexp_replace(call.result, '^SETOF ', '')) END,
			COALESCE(columns, 'result'), CASE WHEN columns IS NULL THEN 'result' END);
		EXECUTE pg_catalog.format(
			'CREATE FUNCTION syncstate.%I(%s) RETURNS %s LANGUAGE plpgsql %s SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET client_min_messages = warning SET datestyle = ISO SET intervalstyle = postgres AS %L',
			call.name, call.signature, call.result, call.volatility, body);
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION syncstate.%I(%s) IS %L', call.name, types, call.comment);
	END LOOP;
END
$install$;

/* --------------------------------------------------- calls to several shards */

CREATE FUNCTION syncstate_shard.refused(answers syncstate_shard.answer[]) RETURNS boolean
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	answer syncstate_shard.answer;
BEGIN
	FOREACH answer IN ARRAY answers LOOP
		IF answer.state IS NOT NULL AND NOT syncstate_shard.is_outage(answer.state) THEN
			RETURN true;
		END IF;
	END LOOP;
	RETURN false;
END
$$;
COMMENT ON FUNCTION syncstate_shard.refused(syncstate_shard.answer[]) IS 'Whether a shard refused the call, and not only was out of order';

/*
 * Ends the transactions of shards that answered within one: commits all of
 * them, or none if one of them refused the call.  Gives the answers again,
 * where a shard did not confirm with an outage instead: whatever a shard fails
 * with by now (a deferred trigger of the site's, say), the others have done it,
 * and what they gave has to reach the caller.
 */
CREATE FUNCTION syncstate_shard.commit(answers syncstate_shard.answer[], places syncstate_shard.place[]) RETURNS syncstate_shard.answer[]
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	statement CONSTANT pg_catalog.text = CASE WHEN syncstate_shard.refused(answers) THEN 'ROLLBACK' ELSE 'COMMIT' END;
	statements pg_catalog.text[] = pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[pg_catalog.cardinality(places)]);
	begun pg_catalog.int4[];
	answer syncstate_shard.answer;
BEGIN
	FOREACH answer IN ARRAY answers LOOP
		IF answer.state IS NULL OR NOT syncstate_shard.is_outage(answer.state) THEN
			statements[answer.shard OPERATOR(pg_catalog.+) 1] = statement;
			begun = begun OPERATOR(pg_catalog.||) answer.shard;
		END IF;
	END LOOP;
	FOREACH answer IN ARRAY syncstate_shard.ask(statements, begun, places) LOOP
		-- what was refused stays so, however its transaction ends
		IF answer.state IS NOT NULL AND statement OPERATOR(pg_catalog.=) 'COMMIT' THEN
			answer.state = '08007';
			answers = ARRAY(SELECT a FROM pg_catalog.unnest(answers) AS a WHERE a.shard OPERATOR(pg_catalog.<>) answer.shard) OPERATOR(pg_catalog.||) answer;
		END IF;
	END LOOP;
	RETURN answers;
END
$$;
COMMENT ON FUNCTION syncstate_shard.commit(syncstate_shard.answer[], syncstate_shard.place[]) IS 'Ends transactions on shards: all of them are committed, or none if a shard refused the call';

/*
 * Takes rows.  A shard is asked for each hundred of them, by turns, since each one
 * more that is asked costs as much as some twenty rows.  What they do not have is
 * asked of all others, until it is enough or none has more.  Their transactions
 * stay open: the caller ends them by commit().
 *
 *	what		what is taken.  A session counts the turns of each apart
 *	head, tail	the SELECT, before and after the number of rows
 *
 * Loops, where a query would be shorter: its plan would be made anew for each
 * call, because the arrays here are shorter than a generic plan expects, and
 * cost more than all else together.
 */
CREATE FUNCTION syncstate_shard.take(what text, head text, max_rows integer, tail text, places syncstate_shard.place[])
	RETURNS syncstate_shard.answer[]
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shards CONSTANT pg_catalog.int4 = pg_catalog.cardinality(places);
	counter CONSTANT pg_catalog.text = 'syncstate_router.turn_' OPERATOR(pg_catalog.||)
		pg_catalog.to_hex(pg_catalog.hashtextextended(what, 0));
	-- without a connection it is a new session, or one whose last call was aborted: what
	-- that counted was rolled back, and the same shard may not answer again
	turn pg_catalog.int4 = COALESCE(
		CASE WHEN syncstate_shard.get_connections() IS NOT NULL THEN NULLIF(pg_catalog.current_setting(counter, true), '')::pg_catalog.int4 END,
		pg_catalog.floor(pg_catalog.random() OPERATOR(pg_catalog.*) shards)::pg_catalog.int4);
	hungry pg_catalog.int4[];		-- shards that may have more, by turns
	asked pg_catalog.int4;			-- how many of them at the same time
	missing pg_catalog.int4 = max_rows;
	parts pg_catalog.int4[];
	begun pg_catalog.int4[];
	statements pg_catalog.text[];
	answers syncstate_shard.answer[] = '{}';
	answer syncstate_shard.answer;
BEGIN
	-- a bad number is for a shard to refuse
	IF max_rows BETWEEN 1 AND 10000 IS NOT TRUE THEN
		RETURN syncstate_shard.ask(ARRAY[pg_catalog.format('%s%L%s', head, max_rows, tail)], places => places);
	END IF;

	FOR n IN 0 .. shards OPERATOR(pg_catalog.-) 1 LOOP
		hungry = hungry OPERATOR(pg_catalog.||) ((turn OPERATOR(pg_catalog.+) n) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1));
	END LOOP;
	asked = LEAST((max_rows OPERATOR(pg_catalog.+) 99) OPERATOR(pg_catalog./) 100, shards);
	PERFORM pg_catalog.set_config(counter,
		((turn OPERATOR(pg_catalog.+) asked) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1))::pg_catalog.text, false);
	WHILE missing OPERATOR(pg_catalog.>) 0 AND hungry OPERATOR(pg_catalog.<>) '{}' LOOP
		parts = pg_catalog.array_fill(0, ARRAY[shards]);
		statements = pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[shards]);
		FOR i IN 1 .. asked LOOP
			parts[hungry[i] OPERATOR(pg_catalog.+) 1] = missing OPERATOR(pg_catalog./) asked
				OPERATOR(pg_catalog.+) (i OPERATOR(pg_catalog.<=) (missing OPERATOR(pg_catalog.%) asked))::pg_catalog.int4;
			statements[hungry[i] OPERATOR(pg_catalog.+) 1] = pg_catalog.format('%s%s%L%s',
				CASE WHEN hungry[i] OPERATOR(pg_catalog.=) ANY (begun) THEN '' ELSE 'BEGIN; ' END,
				head, parts[hungry[i] OPERATOR(pg_catalog.+) 1], tail);
		END LOOP;
		FOREACH answer IN ARRAY syncstate_shard.ask(statements, begun, places) LOOP
			IF answer.state IS NOT NULL THEN
				-- what it gave before went with its transaction
				answers = ARRAY(SELECT a FROM pg_catalog.unnest(answers) AS a WHERE a.shard OPERATOR(pg_catalog.<>) answer.shard);
			END IF;
			answers = answers OPERATOR(pg_catalog.||) answer;
			IF answer.rows IS NULL OR pg_catalog.cardinality(answer.rows) OPERATOR(pg_catalog.<) parts[answer.shard OPERATOR(pg_catalog.+) 1] THEN
				hungry = pg_catalog.array_remove(hungry, answer.shard);
			END IF;
		END LOOP;
		EXIT WHEN syncstate_shard.refused(answers);
		missing = max_rows;
		begun = NULL;
		FOREACH answer IN ARRAY answers LOOP
			missing = missing OPERATOR(pg_catalog.-) COALESCE(pg_catalog.cardinality(answer.rows), 0);
			begun = begun OPERATOR(pg_catalog.||) answer.shard;
		END LOOP;
		asked = LEAST(missing, pg_catalog.cardinality(hungry));
	END LOOP;
	RETURN answers;
END
$$;
COMMENT ON FUNCTION syncstate_shard.take(text, text, integer, text, syncstate_shard.place[]) IS 'Takes rows of as few shards as have them, in transactions that stay open';

/*
 * A session counts the turns of each source and kind apart: otherwise a worker
 * that goes through as many sources as there are shards would always meet the
 * same shard for each, and rows on the others would starve.
 *
 * Errors: as on a shard; 08006 if no shard answers.  Where some do not, that is
 *		   a warning.
 */
CREATE FUNCTION syncstate.claim_due_syncs(source syncstate.sync_source DEFAULT NULL,
										  max_rows integer DEFAULT 10,
										  lease_time interval DEFAULT NULL,
										  kind text DEFAULT 'any')
	RETURNS SETOF syncstate.sync_state
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER ROWS 10
	SET search_path = pg_catalog, pg_temp
	SET intervalstyle = postgres
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter('claim_due_syncs');
	places syncstate_shard.place[] = syncstate_shard.places();
	answers syncstate_shard.answer[];
	syncs syncstate.sync_state[];
	open pg_catalog.bool = true;	-- whether there may be open transactions
BEGIN
	answers = syncstate_shard.take(pg_catalog.concat_ws(' ', source, kind),
		pg_catalog.format('SELECT c::text FROM syncstate.claim_due_syncs(%L, ', source), max_rows,
		pg_catalog.format(', %L, %L) AS c', lease_time, kind), places);
	-- what cannot be read here, as of a source that only shards know, must not be committed
	syncs = ARRAY(SELECT r.line::syncstate.sync_state FROM pg_catalog.unnest(answers) AS a, LATERAL pg_catalog.unnest(a.rows) AS r (line));
	answers = syncstate_shard.commit(answers, places);
	open = false;

	IF NOT syncstate_shard.check(answers, false) THEN
		syncs = ARRAY(SELECT r.line::syncstate.sync_state FROM pg_catalog.unnest(answers) AS a, LATERAL pg_catalog.unnest(a.rows) AS r (line));
	END IF;
	RETURN QUERY SELECT r.* FROM pg_catalog.unnest(syncs) AS r;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	IF open THEN
		PERFORM syncstate_shard.disconnect_all();
	END IF;
	RAISE;
END
$$;
COMMENT ON FUNCTION syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text) IS 'Claims due rows, each with a lease: requested rows first, then the oldest due';

/*
 * As a claim of rows.  Two functions, since in PL/pgSQL a column of the result
 * cannot go by the name of an argument.
 *
 * Errors: as on a shard; 08006 if no shard answers.  Where some do not, that is
 *		   a warning.
 */
CREATE FUNCTION syncstate_shard.claim_push_channels(of syncstate.sync_source, max_rows integer, lease_time interval)
	RETURNS SETOF syncstate_shard.channel_claim
	LANGUAGE plpgsql VOLATILE ROWS 10
	SET search_path = pg_catalog, pg_temp
	SET intervalstyle = postgres
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter('claim_push_channels');
	places syncstate_shard.place[] = syncstate_shard.places();
	answers syncstate_shard.answer[];
	channels syncstate_shard.channel_claim[];
	open pg_catalog.bool = true;	-- whether there may be open transactions
BEGIN
	answers = syncstate_shard.take(pg_catalog.concat_ws(' ', 'channels', of),
		pg_catalog.format('SELECT c::text FROM syncstate.claim_push_channels(%L, ', of), max_rows,
		pg_catalog.format(', %L) AS c', lease_time), places);
	-- what cannot be read here must not be committed
	channels = ARRAY(SELECT r.line::syncstate_shard.channel_claim FROM pg_catalog.unnest(answers) AS a, LATERAL pg_catalog.unnest(a.rows) AS r (line));
	answers = syncstate_shard.commit(answers, places);
	open = false;

	IF NOT syncstate_shard.check(answers, false) THEN
		channels = ARRAY(SELECT r.line::syncstate_shard.channel_claim FROM pg_catalog.unnest(answers) AS a, LATERAL pg_catalog.unnest(a.rows) AS r (line));
	END IF;
	RETURN QUERY SELECT r.* FROM pg_catalog.unnest(channels) AS r;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	IF open THEN
		PERFORM syncstate_shard.disconnect_all();
	END IF;
	RAISE;
END
$$;
COMMENT ON FUNCTION syncstate_shard.claim_push_channels(syncstate.sync_source, integer, interval) IS 'Claims push channels on the shards';

CREATE FUNCTION syncstate.claim_push_channels(source syncstate.sync_source DEFAULT NULL,
											  max_rows integer DEFAULT 10,
											  lease_time interval DEFAULT NULL)
	RETURNS TABLE (user_id uuid, account text, source syncstate.sync_source, resource text,
				   action text, lease bigint, lease_expires_at timestamptz,
				   channel_id text, provider_ref text, expires_at timestamptz,
				   failures integer)
	LANGUAGE sql VOLATILE SECURITY DEFINER ROWS 10
	SET search_path = pg_catalog, pg_temp
	BEGIN ATOMIC
		-- what is to be stopped first, as on each shard: a shard may have been asked twice
		SELECT c.* FROM syncstate_shard.claim_push_channels(source, max_rows, lease_time) AS c
		ORDER BY c.action OPERATOR(pg_catalog.<>) 'stop';
	END;
COMMENT ON FUNCTION syncstate.claim_push_channels(syncstate.sync_source, integer, interval) IS 'Claims push channels that are to be opened, renewed or stopped, each with a lease';

/*
 * A push does not say whose it is: the shards are asked one after the other, each
 * channel's from a place of its own, so that none is always the first.
 *
 * A shard is asked for the channels that it lets the router see: while the shards
 * are doubled, an old one still has those that have moved, and would take their
 * pushes for rows that are no longer its own.  NOTIFY is for a row that nobody had
 * asked for before.
 *
 * Errors: as on a shard; 08006 if no shard that answers knows the channel and not
 *		   all of them do: the provider has to send it again.
 */
CREATE FUNCTION syncstate.receive_push(channel_id text,
									   token text,
									   message_number bigint DEFAULT NULL)
	RETURNS boolean
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	SET client_min_messages = warning
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter('receive_push');
	places syncstate_shard.place[] = syncstate_shard.places();
	question CONSTANT pg_catalog.text = pg_catalog.format(
		'SELECT CASE WHEN NOT syncstate.receive_push(%1$L, %2$L, %3$L) THEN ''-'' WHEN s.due_at IS NOT NULL AND s.requested_at IS NULL THEN s.source::text ELSE ''+'' END FROM syncstate.sync_channel AS c LEFT JOIN syncstate.sync_state AS s ON s.user_id = c.user_id AND s.account = c.account AND s.source = c.source AND s.resource = c.resource WHERE c.channel_id = %1$L',
		channel_id, token, message_number);
	first CONSTANT pg_catalog.int4 = pg_catalog.hashtext(channel_id);
	shard pg_catalog.int4;
	statements pg_catalog.text[];
	answers syncstate_shard.answer[] = '{}';
	answer syncstate_shard.answer;
BEGIN
	IF channel_id IS NULL THEN
		RETURN false;
	END IF;
	FOR n IN 0 .. shards OPERATOR(pg_catalog.-) 1 LOOP
		shard = (first OPERATOR(pg_catalog.#) n) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1);
		statements = pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[shards]);
		statements[shard OPERATOR(pg_catalog.+) 1] = question;
		FOREACH answer IN ARRAY syncstate_shard.ask(statements, places => places) LOOP
			IF answer.rows[1] OPERATOR(pg_catalog.<>) '-' THEN
				IF answer.rows[1] OPERATOR(pg_catalog.<>) '+' THEN
					PERFORM pg_catalog.pg_notify('syncstate', answer.rows[1]);
				END IF;
				RETURN true;
			END IF;
			-- where the shards are is not for the web to know
			IF syncstate_shard.is_outage(answer.state) AND NOT syncstate_shard.is_worker() THEN
				RAISE LOG 'shard % does not answer: %', answer.shard, answer.message;
				answer.message = answer.state;
			END IF;
			answers = answers OPERATOR(pg_catalog.||) answer;
		END LOOP;
	END LOOP;
	PERFORM syncstate_shard.check(answers, true);
	RETURN false;
END
$$;
COMMENT ON FUNCTION syncstate.receive_push(text, text, bigint) IS 'Takes a push: requests a sync of the channel''s row; returns false for an unknown channel or a wrong token';

/*
 * Each shard gets the reports about its users in one call; where that is one
 * shard, no transaction around it is needed.  If a report cannot be read, all go
 * to shard 0, to be refused there; then none is applied anywhere.
 *
 * Errors: as on a shard; 08006 if no shard that was asked answers.  Where some
 *		   do not, that is a warning, and their reports are left out, like
 *		   those whose lease is lost.
 */
CREATE FUNCTION syncstate.report_syncs(results jsonb)
	RETURNS SETOF syncstate.sync_state
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER ROWS 10
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter('report_syncs');
	places syncstate_shard.place[] = syncstate_shard.places();
	statement CONSTANT pg_catalog.text = 'SELECT r::text FROM syncstate.report_syncs(%L) AS r';
	statements pg_catalog.text[] = pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[shards]);
	answers syncstate_shard.answer[];
	shard pg_catalog.int4;			-- the first that has a report, and the last
	last pg_catalog.int4;
	known syncstate.sync_source;	-- one of their sources: all of them can be read here
	reports pg_catalog.jsonb;
	limited syncstate.sync_source;
	limiting pg_catalog.int4[];		-- shards where it was
	syncs syncstate.sync_state[];
	alone pg_catalog.bool = false;	-- whether a shard has them all
	open pg_catalog.bool = true;	-- whether there may be open transactions
BEGIN
	IF results OPERATOR(pg_catalog.=) '[]' THEN
		RETURN;
	ELSIF pg_catalog.jsonb_typeof(results) OPERATOR(pg_catalog.=) 'array' AND pg_catalog.jsonb_array_length(results) OPERATOR(pg_catalog.<=) 10000 THEN
		BEGIN
			-- OFFSET, so that each user is hashed once
			SELECT pg_catalog.min(h.shard), pg_catalog.max(h.shard), pg_catalog.max(h.source) INTO shard, last, known
				FROM (SELECT syncstate_shard.hash((e.report OPERATOR(pg_catalog.->>) 'user_id')::pg_catalog.uuid) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1),
						(e.report OPERATOR(pg_catalog.->>) 'source')::syncstate.sync_source
					FROM pg_catalog.jsonb_array_elements(results) AS e (report) OFFSET 0) AS h (shard, source);
			alone = shard OPERATOR(pg_catalog.=) last;
		EXCEPTION WHEN invalid_text_representation THEN
			shard = NULL;
		END;
	END IF;
	IF alone THEN
		statements[shard OPERATOR(pg_catalog.+) 1] = pg_catalog.format(statement, results);
	ELSIF shard IS NULL THEN
		statements[1] = pg_catalog.format('BEGIN; ' OPERATOR(pg_catalog.||) statement, results);
	ELSE
		FOR shard, reports IN SELECT
				syncstate_shard.hash((e.report OPERATOR(pg_catalog.->>) 'user_id')::pg_catalog.uuid) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1),
				pg_catalog.jsonb_agg(e.report ORDER BY e.position)
			FROM pg_catalog.jsonb_array_elements(results) WITH ORDINALITY AS e (report, position)
			GROUP BY 1
		LOOP
			statements[shard OPERATOR(pg_catalog.+) 1] = pg_catalog.format('BEGIN; ' OPERATOR(pg_catalog.||) statement, reports);
		END LOOP;
	END IF;
	answers = syncstate_shard.ask(statements, places => places);

	-- What cannot be read here must not be committed: a source that only shards
	-- know, or a bad report whose shard is not there to refuse it.  Where a shard
	-- refused one, commit() ends it, in the shard's words.
	IF NOT syncstate_shard.refused(answers) THEN
		IF alone THEN
			syncs = ARRAY(SELECT r.line::syncstate.sync_state FROM pg_catalog.unnest(answers) AS a, LATERAL pg_catalog.unnest(a.rows) AS r (line));
		ELSE
			-- in the order of the reports: of those about a row and its lease the first was applied
			syncs = ARRAY(SELECT r FROM pg_catalog.unnest(answers) AS a
					CROSS JOIN LATERAL pg_catalog.unnest(a.rows::syncstate.sync_state[]) AS r
					LEFT JOIN (SELECT (e.report OPERATOR(pg_catalog.->>) 'user_id')::pg_catalog.uuid AS user_id,
									COALESCE(e.report OPERATOR(pg_catalog.->>) 'account', '') AS account,
									(e.report OPERATOR(pg_catalog.->>) 'source')::syncstate.sync_source AS source,
									COALESCE(e.report OPERATOR(pg_catalog.->>) 'resource', '') AS resource,
									(e.report OPERATOR(pg_catalog.->>) 'lease')::pg_catalog.int8 AS lease,
									pg_catalog.min(e.position) AS position
								FROM pg_catalog.jsonb_array_elements(results) WITH ORDINALITY AS e (report, position)
								GROUP BY 1, 2, 3, 4, 5) AS e
						ON e.user_id OPERATOR(pg_catalog.=) r.user_id AND e.account OPERATOR(pg_catalog.=) r.account
						AND e.source OPERATOR(pg_catalog.=) r.source AND e.resource OPERATOR(pg_catalog.=) r.resource AND e.lease OPERATOR(pg_catalog.=) r.lease
				ORDER BY e.position);
		END IF;
	END IF;
	IF NOT alone THEN
		answers = syncstate_shard.commit(answers, places);
	END IF;
	open = false;
	IF NOT syncstate_shard.check(answers, false) THEN
		syncs = ARRAY(SELECT r FROM pg_catalog.unnest(syncs) AS r
			WHERE syncstate_shard.hash(r.user_id) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1)
				OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT a.shard FROM pg_catalog.unnest(answers) AS a WHERE a.state IS NULL)));
	END IF;

	-- of the limits of whole sources, those that were applied
	FOR limited, limiting IN SELECT s.source, pg_catalog.array_agg(DISTINCT syncstate_shard.hash(s.user_id) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1))
		FROM pg_catalog.jsonb_array_elements(results) AS r (report), LATERAL pg_catalog.unnest(syncs) AS s
		WHERE r.report OPERATOR(pg_catalog.->>) 'outcome' OPERATOR(pg_catalog.=) 'rate_limited'
			AND r.report OPERATOR(pg_catalog.->>) 'scope' OPERATOR(pg_catalog.=) 'source'
			AND s.user_id OPERATOR(pg_catalog.=) (r.report OPERATOR(pg_catalog.->>) 'user_id')::pg_catalog.uuid
			AND s.account OPERATOR(pg_catalog.=) COALESCE(r.report OPERATOR(pg_catalog.->>) 'account', '')
			AND s.source OPERATOR(pg_catalog.=) (r.report OPERATOR(pg_catalog.->>) 'source')::syncstate.sync_source
			AND s.resource OPERATOR(pg_catalog.=) COALESCE(r.report OPERATOR(pg_catalog.->>) 'resource', '')
		GROUP BY s.source ORDER BY s.source
	LOOP
		PERFORM syncstate_shard.spread_pause(limited, limiting);
	END LOOP;
	RETURN QUERY SELECT r.* FROM pg_catalog.unnest(syncs) AS r;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	IF open THEN
		PERFORM syncstate_shard.disconnect_all();
	END IF;
	RAISE;
END
$$;
COMMENT ON FUNCTION syncstate.report_syncs(jsonb) IS 'Reports many syncs in one call';

/*
 * Which of two shards has the older one cannot be told from their answers, so
 * their users are mixed evenly, each shard's in its order.
 */
CREATE FUNCTION syncstate.get_users_needing_sync(source syncstate.sync_source,
												 stale_after interval DEFAULT NULL,
												 max_rows integer DEFAULT NULL)
	RETURNS SETOF uuid
	LANGUAGE plpgsql STABLE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	SET intervalstyle = postgres
	AS $$
BEGIN
	RETURN QUERY SELECT u.user_id::pg_catalog.uuid
		FROM syncstate_shard.ask_all(pg_catalog.format('SELECT u::text FROM syncstate.get_users_needing_sync(%L, %L, %L) AS u',
				source, stale_after, max_rows), false) AS a,
			LATERAL pg_catalog.unnest(a.rows) WITH ORDINALITY AS u (user_id, place)
		ORDER BY u.place, a.shard
		-- a bad number is for the shards to refuse: a LIMIT of none would not even ask them
		LIMIT CASE WHEN max_rows OPERATOR(pg_catalog.>) 0 THEN max_rows END;
END
$$;
COMMENT ON FUNCTION syncstate.get_users_needing_sync(syncstate.sync_source, interval, integer) IS 'Returns the users who have a row that a claim would take now, without claiming it';

CREATE FUNCTION syncstate.next_sync_due(source syncstate.sync_source DEFAULT NULL)
	RETURNS timestamptz
	LANGUAGE plpgsql STABLE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN (SELECT pg_catalog.min(a.rows[1]::pg_catalog.timestamptz)
		FROM syncstate_shard.ask_all(pg_catalog.format('SELECT syncstate.next_sync_due(%L)::text', source), false) AS a);
END
$$;
COMMENT ON FUNCTION syncstate.next_sync_due(syncstate.sync_source) IS 'Returns when a claim will next find a row, so that a worker knows how long to sleep';

/* --------------------------------------------------------------- policies */

/*
 * Shards share a budget and a rate, and have all else alike; but a limit that a
 * worker of a shard met pauses that shard alone.
 */
CREATE FUNCTION syncstate_shard.policy(answers syncstate_shard.answer[]) RETURNS syncstate.sync_policy
	LANGUAGE plpgsql STABLE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	policies syncstate.sync_policy[] = ARRAY(SELECT a.rows[1]::syncstate.sync_policy FROM pg_catalog.unnest(answers) AS a ORDER BY a.shard);
	policy syncstate.sync_policy = policies[1];
BEGIN
	IF EXISTS (SELECT FROM pg_catalog.unnest(policies) AS p
			   WHERE pg_catalog.to_jsonb(p) OPERATOR(pg_catalog.-) '{daily_budget,rate_per_minute,paused_until}'::pg_catalog.text[]
				   OPERATOR(pg_catalog.<>) (pg_catalog.to_jsonb(policy) OPERATOR(pg_catalog.-) '{daily_budget,rate_per_minute,paused_until}'::pg_catalog.text[])) THEN
		RAISE WARNING USING
			MESSAGE = pg_catalog.format('shards have different policies of %s', policy.source),
			DETAIL = 'This is that of the first shard that answers.',
			HINT = 'Repeat the call that did not reach all of them.';
	END IF;
	SELECT pg_catalog.sum(p.daily_budget), pg_catalog.sum(p.rate_per_minute), pg_catalog.max(p.paused_until)
		INTO policy.daily_budget, policy.rate_per_minute, policy.paused_until FROM pg_catalog.unnest(policies) AS p;
	RETURN policy;
END
$$;
COMMENT ON FUNCTION syncstate_shard.policy(syncstate_shard.answer[]) IS 'The policies of all shards as one';

CREATE FUNCTION syncstate.get_sync_policy(source syncstate.sync_source)
	RETURNS syncstate.sync_policy
	LANGUAGE plpgsql STABLE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN syncstate_shard.policy(ARRAY(SELECT a FROM syncstate_shard.ask_all(pg_catalog.format(
		'SELECT p::text FROM syncstate.get_sync_policy(%L) AS p', source), false) AS a));
END
$$;
COMMENT ON FUNCTION syncstate.get_sync_policy(syncstate.sync_source) IS 'The effective settings of a source: what was overridden, and the built-in defaults for the rest';

/*
 * daily_budget and rate_per_minute are divided among the shards; what is no
 * number that can be is for the shards to refuse.
 *
 * Errors: as on a shard; 22023 if there is less to divide than there are
 *		   shards; 08006 if a shard does not answer, where the others have done
 *		   it.
 */
CREATE FUNCTION syncstate.set_sync_policy(source syncstate.sync_source, changes jsonb)
	RETURNS syncstate.sync_policy
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter('set_sync_policy');
	parts pg_catalog.jsonb[] = pg_catalog.array_fill(changes, ARRAY[shards]);
	answers syncstate_shard.answer[];
	key pg_catalog.text;
	whole pg_catalog.int4;
BEGIN
	FOREACH key IN ARRAY ARRAY['daily_budget', 'rate_per_minute'] LOOP
		CONTINUE WHEN pg_catalog.jsonb_typeof(changes) OPERATOR(pg_catalog.=) 'object' IS NOT TRUE;
		-- "100" is a number, too, to the shards, and 100.0 is none
		BEGIN
			whole = (changes OPERATOR(pg_catalog.->>) key)::pg_catalog.int4;
		EXCEPTION WHEN data_exception THEN
			CONTINUE;
		END;
		CONTINUE WHEN whole OPERATOR(pg_catalog.<) 1 IS NOT FALSE;
		IF whole OPERATOR(pg_catalog.<) shards THEN
			RAISE invalid_parameter_value USING
				MESSAGE = pg_catalog.format('%s must be at least the number of shards', key),
				DETAIL = pg_catalog.format('Got %s, for %s shards.', whole, shards);
		END IF;
		FOR i IN 1 .. shards LOOP
			parts[i] = pg_catalog.jsonb_set(parts[i], ARRAY[key], pg_catalog.to_jsonb(
				whole OPERATOR(pg_catalog./) shards OPERATOR(pg_catalog.+) (i OPERATOR(pg_catalog.<=) (whole OPERATOR(pg_catalog.%) shards))::pg_catalog.int4));
		END LOOP;
	END LOOP;
	answers = syncstate_shard.ask(
		ARRAY(SELECT pg_catalog.format('SELECT p::text FROM syncstate.set_sync_policy(%L, %L) AS p', source, p.part)
			FROM pg_catalog.unnest(parts) WITH ORDINALITY AS p (part, place) ORDER BY p.place));
	PERFORM syncstate_shard.check(answers, true);
	RETURN syncstate_shard.policy(answers);
END
$$;
COMMENT ON FUNCTION syncstate.set_sync_policy(syncstate.sync_source, jsonb) IS 'Overrides settings of a source and returns the effective ones: keys present change, null restores the built-in default, keys absent stay';

CREATE FUNCTION syncstate.pause_sync_source(source syncstate.sync_source,
											until timestamptz DEFAULT 'infinity')
	RETURNS syncstate.sync_policy
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	SET datestyle = ISO
	AS $$
BEGIN
	PERFORM syncstate_shard.enter('pause_sync_source');
	RETURN syncstate_shard.policy(ARRAY(SELECT a FROM syncstate_shard.ask_all(pg_catalog.format(
		'SELECT p::text FROM syncstate.pause_sync_source(%L, %L) AS p', source, until), true) AS a));
END
$$;
COMMENT ON FUNCTION syncstate.pause_sync_source(syncstate.sync_source, timestamptz) IS 'Hands out no row of a source until a time; running syncs may finish';

CREATE FUNCTION syncstate.resume_sync_source(source syncstate.sync_source)
	RETURNS syncstate.sync_policy
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	policy syncstate.sync_policy;
BEGIN
	PERFORM syncstate_shard.enter('resume_sync_source');
	policy = syncstate_shard.policy(ARRAY(SELECT a FROM syncstate_shard.ask_all(pg_catalog.format(
		'SELECT p::text FROM syncstate.resume_sync_source(%L) AS p', source), true) AS a));
	PERFORM pg_catalog.pg_notify('syncstate', source::pg_catalog.text);
	RETURN policy;
END
$$;
COMMENT ON FUNCTION syncstate.resume_sync_source(syncstate.sync_source) IS 'Ends the pause of a source; its due rows can be claimed at once';

/* All shards count from the same time, which is ours. */
CREATE FUNCTION syncstate.resync_source(source syncstate.sync_source,
										spread interval DEFAULT '1 day')
	RETURNS syncstate.sync_policy
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	SET intervalstyle = postgres
	AS $$
BEGIN
	PERFORM syncstate_shard.enter('resync_source');
	RETURN syncstate_shard.policy(ARRAY(SELECT a FROM syncstate_shard.ask_all(pg_catalog.format(
		'SELECT p::text FROM syncstate.set_sync_policy(%L, %L) AS p', source,
		pg_catalog.jsonb_build_object('resync_from', syncstate.sync_clock(), 'resync_spread', spread)), true) AS a));
END
$$;
COMMENT ON FUNCTION syncstate.resync_source(syncstate.sync_source, interval) IS 'Plans a full sync of every row of a source, spread over a time';

/* Each shard takes back its part of max_rows, rounded up. */
CREATE FUNCTION syncstate.revive_syncs(source syncstate.sync_source,
									   reason text DEFAULT NULL,
									   spread interval DEFAULT '1 hour',
									   max_rows integer DEFAULT 10000)
	RETURNS integer
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	SET intervalstyle = postgres
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter('revive_syncs');
	revived pg_catalog.int4;
BEGIN
	SELECT pg_catalog.sum(a.rows[1]::pg_catalog.int4) INTO revived
		FROM syncstate_shard.ask_all(pg_catalog.format('SELECT syncstate.revive_syncs(%L, %L, %L, %L)::text', source, reason, spread,
			CASE WHEN max_rows BETWEEN 1 AND 10000
				THEN (max_rows OPERATOR(pg_catalog.+) shards OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) shards
				ELSE max_rows END), true) AS a;
	IF revived OPERATOR(pg_catalog.>) 0 THEN
		PERFORM pg_catalog.pg_notify('syncstate', source::pg_catalog.text);
	END IF;
	RETURN revived;
END
$$;
COMMENT ON FUNCTION syncstate.revive_syncs(syncstate.sync_source, text, interval, integer) IS 'Un-parks rows of a source, spread over a time, and returns how many';

/* Each shard divides its part of the budget among its rows. */
CREATE FUNCTION syncstate.rebalance_syncs(INOUT source syncstate.sync_source DEFAULT NULL,
										  OUT rows bigint,
										  OUT budget integer,
										  OUT planned double precision,
										  OUT observed double precision,
										  OUT multiplier double precision,
										  OUT at_min bigint,
										  OUT at_max bigint,
										  OUT feasible boolean)
	RETURNS SETOF record
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER ROWS 4
	SET search_path = pg_catalog, pg_temp
	AS $$
#variable_conflict use_column
BEGIN
	PERFORM syncstate_shard.enter('rebalance_syncs');
	RETURN QUERY SELECT b.source, pg_catalog.sum(b.rows)::pg_catalog.int8, pg_catalog.sum(b.budget)::pg_catalog.int4,
			pg_catalog.sum(b.planned), pg_catalog.sum(b.observed), pg_catalog.avg(b.multiplier),
			pg_catalog.sum(b.at_min)::pg_catalog.int8, pg_catalog.sum(b.at_max)::pg_catalog.int8, pg_catalog.bool_and(b.feasible)
		FROM syncstate_shard.ask_all(pg_catalog.format('SELECT pg_catalog.to_jsonb(b)::text FROM syncstate.rebalance_syncs(%L) AS b', rebalance_syncs.source), true) AS a,
			LATERAL pg_catalog.unnest(a.rows) AS r (line),
			LATERAL pg_catalog.jsonb_to_record(r.line::pg_catalog.jsonb) AS b (source syncstate.sync_source, rows pg_catalog.int8,
				budget pg_catalog.int4, planned pg_catalog.float8, observed pg_catalog.float8, multiplier pg_catalog.float8,
				at_min pg_catalog.int8, at_max pg_catalog.int8, feasible pg_catalog.bool)
		GROUP BY b.source ORDER BY b.source;
END
$$;
COMMENT ON FUNCTION syncstate.rebalance_syncs(syncstate.sync_source) IS 'Divides the daily budget of a source among its rows, by how often each one changes';

/* ---------------------------------------------------------- custom sources */

/* As on a shard: the label comes with its row, also out of a dump. */
CREATE TABLE syncstate.custom_source (
	label text COLLATE pg_catalog."C" NOT NULL,
	CONSTRAINT custom_source_pkey PRIMARY KEY (label),
	CONSTRAINT custom_source_label_identifier
		CHECK (label OPERATOR(pg_catalog.~) '^[a-z0-9_]{1,58}$')
);
REVOKE ALL ON TABLE syncstate.custom_source FROM PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('syncstate.custom_source', '');
COMMENT ON TABLE syncstate.custom_source IS 'Labels that register_sync_source() added to sync_source';
COMMENT ON COLUMN syncstate.custom_source.label IS 'Label of the source: 1 to 58 characters of a-z, 0-9 and _';

CREATE FUNCTION syncstate_shard.add_source_label() RETURNS trigger
	LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_enum AS e
				   WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
					   AND e.enumlabel OPERATOR(pg_catalog.=) NEW.label::pg_catalog.name) THEN
		EXECUTE pg_catalog.format('ALTER TYPE syncstate.sync_source ADD VALUE IF NOT EXISTS %L', NEW.label);
	END IF;
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION syncstate_shard.add_source_label() IS 'Adds a label to sync_source when its row arrives in custom_source';

CREATE TRIGGER custom_source_add_label AFTER INSERT ON syncstate.custom_source
	FOR EACH ROW EXECUTE FUNCTION syncstate_shard.add_source_label();
COMMENT ON TRIGGER custom_source_add_label ON syncstate.custom_source IS 'Adds the label to sync_source';

/*
 * A label cannot be removed from an enum, and a dump whose labels are missing
 * cannot be restored.  So a row stays as long as its label does: to
 * empty all tables of a database, as tests do, deletes nothing here.  The first
 * four labels are built in.
 *
 * A transaction that keeps its snapshot might not see a label that was committed
 * since; enum_range() does, but refuses labels of its own transaction.
 */
CREATE FUNCTION syncstate_shard.keep_source_labels() RETURNS trigger
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF TG_OP OPERATOR(pg_catalog.=) 'TRUNCATE' THEN
		INSERT INTO syncstate.custom_source AS c (label)
			SELECT l.label FROM pg_catalog.unnest(
				CASE WHEN pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=) 'read committed'
				THEN ARRAY(SELECT e.enumlabel::pg_catalog.text FROM pg_catalog.pg_enum AS e
						   WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
						   ORDER BY e.enumsortorder)
				ELSE pg_catalog.enum_range(NULL::syncstate.sync_source)::pg_catalog.text[] END)
				WITH ORDINALITY AS l (label, place)
			WHERE l.place OPERATOR(pg_catalog.>) 4 ORDER BY l.place;
		RETURN NULL;
	END IF;
	IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
		IF NEW.label OPERATOR(pg_catalog.<>) OLD.label THEN
			RAISE feature_not_supported USING
				MESSAGE = 'the label of a source cannot be changed',
				HINT = 'Add another one with register_sync_source().';
		END IF;
		RETURN NEW;
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_enum AS e
			   WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
				   AND e.enumlabel OPERATOR(pg_catalog.=) OLD.label::pg_catalog.name
				   AND e.enumsortorder OPERATOR(pg_catalog.>) 4::pg_catalog.float4) THEN
		RETURN NULL;
	END IF;
	RETURN OLD;
END
$$;
COMMENT ON FUNCTION syncstate_shard.keep_source_labels() IS 'Keeps each row of custom_source as long as its label exists';

CREATE TRIGGER custom_source_keep_label BEFORE UPDATE OR DELETE ON syncstate.custom_source
	FOR EACH ROW EXECUTE FUNCTION syncstate_shard.keep_source_labels();
COMMENT ON TRIGGER custom_source_keep_label ON syncstate.custom_source IS 'Keeps the row of a label';

CREATE TRIGGER custom_source_keep_labels AFTER TRUNCATE ON syncstate.custom_source
	FOR EACH STATEMENT EXECUTE FUNCTION syncstate_shard.keep_source_labels();
COMMENT ON TRIGGER custom_source_keep_labels ON syncstate.custom_source IS 'Brings the rows of all labels back';

/* also with session_replication_role = replica */
ALTER TABLE syncstate.custom_source ENABLE ALWAYS TRIGGER custom_source_keep_label;
ALTER TABLE syncstate.custom_source ENABLE ALWAYS TRIGGER custom_source_keep_labels;

/* The router knows a label last, when each shard does. */
CREATE FUNCTION syncstate.register_sync_source(label text) RETURNS void
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	PERFORM syncstate_shard.enter('register_sync_source');
	PERFORM FROM syncstate_shard.ask_all(pg_catalog.format('SELECT NULL::text FROM syncstate.register_sync_source(%L)', label), true) AS a;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_enum AS e
				   WHERE e.enumtypid OPERATOR(pg_catalog.=) 'syncstate.sync_source'::pg_catalog.regtype
					   AND e.enumlabel OPERATOR(pg_catalog.=) label::pg_catalog.name
					   AND e.enumsortorder OPERATOR(pg_catalog.<=) 4::pg_catalog.float4) THEN
		INSERT INTO syncstate.custom_source AS c (label) VALUES (register_sync_source.label)
			ON CONFLICT ON CONSTRAINT custom_source_pkey DO NOTHING;
	END IF;
END
$$;
COMMENT ON FUNCTION syncstate.register_sync_source(text) IS 'Adds a label to sync_source, usable once the transaction has committed';

/* ----------------------------------------------------------- deleted users */

/*
 * See syncstate's: the table is the application's, so only a plain uuid of a
 * real transition table is read.  One statement locks the rows and another one
 * deletes them, which sees what the locks waited for.  Rows go from the shards at
 * once, even if the deletion of users is rolled back here: they are then gone,
 * and connected anew.
 */
CREATE FUNCTION syncstate.forget_users() RETURNS trigger
	LANGUAGE plpgsql SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter();
	users pg_catalog.uuid[];
	answers syncstate_shard.answer[];
BEGIN
	IF TG_NARGS OPERATOR(pg_catalog.<>) 1 OR TG_OP OPERATOR(pg_catalog.<>) 'DELETE'
		OR NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t
					   WHERE t.tgrelid OPERATOR(pg_catalog.=) TG_RELID
						   AND t.tgname OPERATOR(pg_catalog.=) TG_NAME
						   AND t.tgoldtable OPERATOR(pg_catalog.=) 'deleted'::pg_catalog.name) THEN
		RAISE trigger_protocol_violated USING
			MESSAGE = 'function "forget_users" must be fired AFTER DELETE STATEMENT with the old table as "deleted" and the name of a column',
			HINT = 'Use watch_users() to make the trigger.';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
				   WHERE a.attrelid OPERATOR(pg_catalog.=) TG_RELID
					   AND a.attname OPERATOR(pg_catalog.=) TG_ARGV[0]::pg_catalog.name
					   AND NOT a.attisdropped
					   AND a.atttypid OPERATOR(pg_catalog.=) ANY ('{uuid,text,varchar,int4,int8}'::pg_catalog.regtype[])) THEN
		RAISE undefined_column USING
			MESSAGE = pg_catalog.format('column "%s" of relation "%s" does not exist, or is not of type uuid, text, integer or bigint', TG_ARGV[0], TG_TABLE_NAME);
	END IF;

	EXECUTE pg_catalog.format('SELECT pg_catalog.array_agg(u) FROM deleted AS d, syncstate.user_id_of(d.%I::pg_catalog.text) AS u WHERE u IS NOT NULL', TG_ARGV[0]) INTO users;
	answers = syncstate_shard.ask(
		ARRAY(SELECT CASE WHEN pg_catalog.count(u.u) OPERATOR(pg_catalog.>) 0 THEN pg_catalog.format(
				'DO $forget$ DECLARE rows tid[]; BEGIN rows = ARRAY(SELECT s.ctid FROM syncstate.sync_state AS s WHERE s.user_id = ANY (%1$L::uuid[]) ORDER BY s.user_id, s.account, s.source, s.resource FOR UPDATE); DELETE FROM syncstate.sync_state WHERE ctid = ANY (rows); DELETE FROM syncstate.sync_event WHERE user_id = ANY (%1$L::uuid[]); DELETE FROM syncstate.sync_run WHERE user_id = ANY (%1$L::uuid[]); END $forget$',
				pg_catalog.array_agg(u.u)) END
			FROM pg_catalog.generate_series(0, shards OPERATOR(pg_catalog.-) 1) AS n
				LEFT JOIN pg_catalog.unnest(users) AS u (u)
				ON syncstate_shard.hash(u.u) OPERATOR(pg_catalog.&) (shards OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog.=) n
			GROUP BY n ORDER BY n));
	PERFORM syncstate_shard.check(answers, true);
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION syncstate.forget_users() IS 'Deletes the rows of deleted users; a trigger made by watch_users()';

CREATE FUNCTION syncstate.watch_users(users regclass, id_column name DEFAULT 'id') RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF users IS NULL OR id_column IS NULL THEN
		RAISE invalid_parameter_value USING
			MESSAGE = CASE WHEN users IS NULL THEN 'users' ELSE 'id_column' END OPERATOR(pg_catalog.||) ' must not be null';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
				   WHERE a.attrelid OPERATOR(pg_catalog.=) users
					   AND a.attname OPERATOR(pg_catalog.=) id_column
					   AND NOT a.attisdropped
					   AND a.atttypid OPERATOR(pg_catalog.=) ANY ('{uuid,text,varchar,int4,int8}'::pg_catalog.regtype[])) THEN
		RAISE invalid_parameter_value USING
			MESSAGE = 'id_column must name a column of type uuid, text, integer or bigint',
			DETAIL = pg_catalog.format('Got "%s" of %s.', id_column, users);
	END IF;
	EXECUTE pg_catalog.format('CREATE OR REPLACE TRIGGER syncstate_forget_users AFTER DELETE ON %s REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users(%L)', users, id_column);
END
$$;
COMMENT ON FUNCTION syncstate.watch_users(regclass, name) IS 'Deletes the rows of users when they are deleted: puts the trigger forget_users() on the application''s table of users';

/* ---------------------------------------------------------- what happened */

CREATE FUNCTION syncstate.get_sync_events() RETURNS SETOF syncstate_shard.event
	LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN QUERY SELECT e.*
		FROM syncstate_shard.ask_all('SELECT e::text FROM syncstate.sync_event AS e', true) AS a,
			LATERAL pg_catalog.unnest(a.rows::syncstate_shard.event[]) AS e;
END
$$;
COMMENT ON FUNCTION syncstate.get_sync_events() IS 'The events of all shards; read it as view sync_event';

CREATE VIEW syncstate.sync_event WITH (security_invoker = true) AS
	SELECT e.* FROM syncstate.get_sync_events() AS e;
REVOKE ALL ON TABLE syncstate.sync_event FROM PUBLIC;
COMMENT ON VIEW syncstate.sync_event IS 'What an application must act on, until take_sync_events() takes it, at most 30 days';

CREATE FUNCTION syncstate.get_sync_runs() RETURNS SETOF syncstate_shard.run
	LANGUAGE plpgsql STABLE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	RETURN QUERY SELECT r.*
		FROM syncstate_shard.ask_all('SELECT r::text FROM syncstate.sync_run AS r', true) AS a,
			LATERAL pg_catalog.unnest(a.rows::syncstate_shard.run[]) AS r;
END
$$;
COMMENT ON FUNCTION syncstate.get_sync_runs() IS 'The runs of all shards; read it as view sync_run';

CREATE VIEW syncstate.sync_run WITH (security_invoker = true) AS
	SELECT r.* FROM syncstate.get_sync_runs() AS r;
REVOKE ALL ON TABLE syncstate.sync_run FROM PUBLIC;
COMMENT ON VIEW syncstate.sync_run IS 'Runs that ended, of sources whose policy keep_runs is not none, for as long as keep_runs_for';

/*
 * As a claim.  But what a shard does not confirm is given all the same: no lease
 * would bring it back, and who gets an event twice knows it by its id.
 *
 * Errors: as on a shard; 08006 if no shard answers.  Where some do not, that is
 *		   a warning.
 */
CREATE FUNCTION syncstate.take_sync_events(max_rows integer DEFAULT 100)
	RETURNS SETOF syncstate.sync_event
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER ROWS 100
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	shards pg_catalog.int4 = syncstate_shard.enter('take_sync_events');
	places syncstate_shard.place[] = syncstate_shard.places();
	answers syncstate_shard.answer[];
	answer syncstate_shard.answer;
	events syncstate.sync_event[];
	unconfirmed syncstate_shard.answer[];
	open pg_catalog.bool = true;	-- whether there may be open transactions
BEGIN
	answers = syncstate_shard.take('events', 'SELECT e::text FROM syncstate.take_sync_events(', max_rows, ') AS e', places);
	-- what cannot be read here must not be committed
	events = ARRAY(SELECT r.line::syncstate.sync_event FROM pg_catalog.unnest(answers) AS a, LATERAL pg_catalog.unnest(a.rows) AS r (line));
	BEGIN
		unconfirmed = syncstate_shard.commit(answers, places);
	EXCEPTION WHEN query_canceled THEN
		-- too late: shards that were told to commit do so, and of the
		-- others the events come again
		unconfirmed = ARRAY(SELECT ROW(a.shard, NULL, '08007', SQLERRM, NULL, NULL)::syncstate_shard.answer
			FROM pg_catalog.unnest(answers) AS a WHERE a.state IS NULL);
	END;
	open = false;

	PERFORM syncstate_shard.check(answers, false);
	FOREACH answer IN ARRAY unconfirmed LOOP
		CONTINUE WHEN answer.state OPERATOR(pg_catalog.=) '08007' IS NOT TRUE;
		RAISE WARNING USING
			ERRCODE = 'transaction_resolution_unknown',
			MESSAGE = pg_catalog.format('shard %s has not confirmed that its events are taken', answer.shard),
			DETAIL = COALESCE(NULLIF(answer.message, ''), answer.state),
			HINT = 'They may come again, each by the same id.';
	END LOOP;
	RETURN QUERY SELECT e.* FROM pg_catalog.unnest(events) AS e ORDER BY e.at, e.id;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	IF open THEN
		PERFORM syncstate_shard.disconnect_all();
	END IF;
	RAISE;
END
$$;
COMMENT ON FUNCTION syncstate.take_sync_events(integer) IS 'Takes the oldest events that nobody else is taking: deletes and returns them';

/* ------------------------------------------------------------------ views */

/*
 * The views read functions, which read the shards.  Shown is what the caller's
 * own identity says.
 */
DO $install$
DECLARE
	mine pg_catalog.record;
	names pg_catalog.text;
	shown pg_catalog.text;
BEGIN
	FOR mine IN SELECT * FROM (VALUES
		('my_syncs', 'sync_state',
		 $$user_id uuid, account text, source syncstate.sync_source, resource text,
			status syncstate.sync_status, due_at timestamptz, requested_at timestamptz,
			parked_reason text, sync_interval interval, last_full_sync_at timestamptz,
			last_sync_at timestamptz, last_successful_sync_at timestamptz,
			items_synced bigint, progress_done bigint, progress_total bigint,
			failures integer, failing_since timestamptz, token_losses integer,
			error_message text, created_at timestamptz, updated_at timestamptz,
			limited_until timestamptz$$,
		 'What a user may see of their own rows', 'no cursor, no page token, no lease'),
		('my_sync_runs', 'sync_run',
		 $$user_id uuid, account text, source syncstate.sync_source, resource text,
			started_at timestamptz, ended_at timestamptz, outcome text, was_full boolean,
			was_requested boolean, items bigint, error_message text$$,
		 'What a user may see of their own runs', 'no lease'))
		AS m (name, of, columns, comment, but)
	LOOP
		SELECT pg_catalog.string_agg(c[1], ', ' ORDER BY n),
				pg_catalog.string_agg(CASE WHEN c[1] OPERATOR(pg_catalog.=) ANY ('{account,resource}')
					THEN pg_catalog.format('m.%1$s COLLATE pg_catalog."C" AS %1$s', c[1])
					ELSE 'm.' OPERATOR(pg_catalog.||) c[1] END, ', ' ORDER BY n)
			INTO names, shown
			FROM pg_catalog.regexp_matches(mine.columns, '([a-z_]+) [a-z_.]+(,|$)', 'g') WITH ORDINALITY AS c (c, n);
		EXECUTE pg_catalog.format($f$CREATE FUNCTION syncstate_shard.%1$I(who uuid)
			RETURNS TABLE (%3$s)
			LANGUAGE plproxy VOLATILE
			AS 'CLUSTER ''syncstate''; RUN ON syncstate_shard.hash(who); SELECT %4$s FROM syncstate.%2$I WHERE user_id = who;'$f$,
			mine.name, mine.of, mine.columns, names);
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION syncstate_shard.%I(uuid) IS %L', mine.name,
			mine.comment OPERATOR(pg_catalog.||) ', from their shard');

		EXECUTE pg_catalog.format($f$CREATE FUNCTION syncstate.%1$I()
			RETURNS TABLE (%2$s)
			LANGUAGE plpgsql STABLE SECURITY DEFINER
			SET search_path = pg_catalog, pg_temp
			SET client_min_messages = warning
			AS %3$L$f$, 'get_' OPERATOR(pg_catalog.||) mine.name, mine.columns,
			pg_catalog.format($body$
DECLARE
	who pg_catalog.uuid = syncstate.current_user_id();
	state pg_catalog.text;
	message pg_catalog.text;
	detail pg_catalog.text;
	hint pg_catalog.text;
BEGIN
	IF who IS NULL THEN
		RETURN;
	END IF;
	PERFORM syncstate_shard.enter();
	RETURN QUERY SELECT m.* FROM syncstate_shard.%I(who) AS m;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	-- canceled here, not there
	IF state OPERATOR(pg_catalog.=) '57014' AND pg_catalog.strpos(message, '] REMOTE ') OPERATOR(pg_catalog.=) 0 THEN
		RAISE;
	END IF;
	PERFORM syncstate_shard.fail_routed(who, state, message, detail, hint);
END
$body$, mine.name));
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION syncstate.%I() IS %L', 'get_' OPERATOR(pg_catalog.||) mine.name,
			mine.comment OPERATOR(pg_catalog.||) '; read it as view ' OPERATOR(pg_catalog.||) mine.name);

		EXECUTE pg_catalog.format('CREATE VIEW syncstate.%I WITH (security_invoker = true, security_barrier = true) AS SELECT %s FROM syncstate.%I() AS m',
			mine.name, shown, 'get_' OPERATOR(pg_catalog.||) mine.name);
		EXECUTE pg_catalog.format('REVOKE ALL ON TABLE syncstate.%I FROM PUBLIC', mine.name);
		EXECUTE pg_catalog.format('COMMENT ON VIEW syncstate.%I IS %L', mine.name,
			pg_catalog.concat_ws(': ', mine.comment, mine.but));
	END LOOP;
END
$install$;

CREATE FUNCTION syncstate.get_sync_overview()
	RETURNS TABLE (source syncstate.sync_source, rows bigint, idle bigint, syncing bigint,
		error bigint, rate_limited bigint, due bigint, oldest_due_age interval,
		requested bigint, live_leases bigint, expired_leases bigint, failing bigint,
		parked_paused bigint, parked_auth bigint, parked_failures bigint,
		parked_token_loop bigint, without_cursor bigint, paused_until timestamptz, ahead bigint,
		parked_gone bigint, limited bigint,
		channels_opening bigint, channels_active bigint, channels_retiring bigint,
		channels_unsupported bigint, channels_ending bigint, channels_silent bigint)
	LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 4
	SET search_path = pg_catalog, pg_temp
	AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY SELECT o.source, pg_catalog.sum(o.rows)::pg_catalog.int8, pg_catalog.sum(o.idle)::pg_catalog.int8,
			pg_catalog.sum(o.syncing)::pg_catalog.int8, pg_catalog.sum(o.error)::pg_catalog.int8,
			pg_catalog.sum(o.rate_limited)::pg_catalog.int8, pg_catalog.sum(o.due)::pg_catalog.int8,
			pg_catalog.max(o.oldest_due_age), pg_catalog.sum(o.requested)::pg_catalog.int8,
			pg_catalog.sum(o.live_leases)::pg_catalog.int8, pg_catalog.sum(o.expired_leases)::pg_catalog.int8,
			pg_catalog.sum(o.failing)::pg_catalog.int8, pg_catalog.sum(o.parked_paused)::pg_catalog.int8,
			pg_catalog.sum(o.parked_auth)::pg_catalog.int8, pg_catalog.sum(o.parked_failures)::pg_catalog.int8,
			pg_catalog.sum(o.parked_token_loop)::pg_catalog.int8, pg_catalog.sum(o.without_cursor)::pg_catalog.int8,
			pg_catalog.max(o.paused_until), pg_catalog.sum(o.ahead)::pg_catalog.int8,
			pg_catalog.sum(o.parked_gone)::pg_catalog.int8, pg_catalog.sum(o.limited)::pg_catalog.int8,
			pg_catalog.sum(o.channels_opening)::pg_catalog.int8, pg_catalog.sum(o.channels_active)::pg_catalog.int8,
			pg_catalog.sum(o.channels_retiring)::pg_catalog.int8, pg_catalog.sum(o.channels_unsupported)::pg_catalog.int8,
			pg_catalog.sum(o.channels_ending)::pg_catalog.int8, pg_catalog.sum(o.channels_silent)::pg_catalog.int8
		FROM syncstate_shard.ask_all('SELECT pg_catalog.to_jsonb(o)::text FROM syncstate.sync_overview AS o', true) AS a,
			LATERAL pg_catalog.unnest(a.rows) AS r (line),
			LATERAL pg_catalog.jsonb_to_record(r.line::pg_catalog.jsonb) AS o (source syncstate.sync_source,
				rows pg_catalog.int8, idle pg_catalog.int8, syncing pg_catalog.int8, error pg_catalog.int8,
				rate_limited pg_catalog.int8, due pg_catalog.int8, oldest_due_age pg_catalog.interval,
				requested pg_catalog.int8, live_leases pg_catalog.int8, expired_leases pg_catalog.int8,
				failing pg_catalog.int8, parked_paused pg_catalog.int8, parked_auth pg_catalog.int8,
				parked_failures pg_catalog.int8, parked_token_loop pg_catalog.int8,
				without_cursor pg_catalog.int8, paused_until pg_catalog.timestamptz, ahead pg_catalog.int8,
				parked_gone pg_catalog.int8, limited pg_catalog.int8,
				channels_opening pg_catalog.int8, channels_active pg_catalog.int8,
				channels_retiring pg_catalog.int8, channels_unsupported pg_catalog.int8,
				channels_ending pg_catalog.int8, channels_silent pg_catalog.int8)
		GROUP BY o.source ORDER BY o.source;
END
$$;
COMMENT ON FUNCTION syncstate.get_sync_overview() IS 'The sums over all shards; read it as view sync_overview';

CREATE VIEW syncstate.sync_overview WITH (security_invoker = true) AS
	SELECT o.* FROM syncstate.get_sync_overview() AS o;
REVOKE ALL ON TABLE syncstate.sync_overview FROM PUBLIC;
COMMENT ON VIEW syncstate.sync_overview IS 'Per source: how many rows are in which state, due, held, failing and parked, and how late the oldest due one is';

/* ----------------------------------------------------------------- grants */

CREATE FUNCTION syncstate.grant_worker(role regrole) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	fn pg_catalog.regprocedure;
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) role) OR role IS NULL THEN
		RAISE invalid_parameter_value USING MESSAGE = 'role must be an existing role',
			DETAIL = pg_catalog.format('Got %s.', COALESCE(role::pg_catalog.text, 'null'));
	END IF;
	EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA syncstate TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT ON syncstate.my_syncs, syncstate.my_sync_runs, syncstate.sync_overview, syncstate.sync_event, syncstate.sync_run, syncstate.sync_channel TO %s', role);
	-- one name is one function
	FOR fn IN SELECT p.oid FROM pg_catalog.pg_proc AS p
		WHERE p.pronamespace OPERATOR(pg_catalog.=) 'syncstate'::pg_catalog.regnamespace
			AND p.proname OPERATOR(pg_catalog.=) ANY (ARRAY[
				'claim_due_syncs', 'mark_sync_started', 'mark_sync_completed',
				'mark_sync_failed', 'mark_rate_limited', 'clear_sync_token',
				'renew_sync_lease', 'checkpoint_sync', 'release_sync', 'may_sweep',
				'report_syncs', 'update_sync_state', 'get_users_needing_sync',
				'next_sync_due', 'take_sync_events', 'claim_push_channels',
				'mark_channel_opened', 'mark_channel_failed', 'mark_channel_stopped',
				'receive_push', 'get_sync_policy', 'set_sync_policy',
				'pause_sync_source', 'resume_sync_source', 'resync_source',
				'revive_syncs', 'rebalance_syncs',
				'get_sync_state', 'get_sync_states', 'connect_sync',
				'disconnect_sync', 'pause_sync', 'resume_sync', 'request_sync',
				'connect_account', 'disconnect_account', 'pause_account',
				'resume_account', 'request_account', 'set_sync_resources',
				'current_user_id', 'user_id_of', 'sync_clock', 'shard_of', 'get_my_syncs',
				'get_my_sync_runs', 'get_sync_overview', 'get_sync_events', 'get_sync_runs',
				'get_sync_channels'])
	LOOP
		EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s', fn, role);
	END LOOP;
END
$$;
COMMENT ON FUNCTION syncstate.grant_worker(regrole) IS 'Grants a role all that a worker needs: to claim and report, for every user';

CREATE FUNCTION syncstate.grant_user(role regrole) RETURNS void
	LANGUAGE plpgsql VOLATILE
	SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) role) OR role IS NULL THEN
		RAISE invalid_parameter_value USING MESSAGE = 'role must be an existing role',
			DETAIL = pg_catalog.format('Got %s.', COALESCE(role::pg_catalog.text, 'null'));
	END IF;
	EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA syncstate TO %s', role);
	EXECUTE pg_catalog.format('GRANT SELECT ON syncstate.my_syncs, syncstate.my_sync_runs TO %s', role);
	EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION syncstate.request_sync(uuid, syncstate.sync_source, text, text), syncstate.request_account(uuid, text, text), syncstate.get_my_syncs(), syncstate.get_my_sync_runs(), syncstate.current_user_id(), syncstate.user_id_of(text), syncstate.sync_clock() TO %s', role);
END
$$;
COMMENT ON FUNCTION syncstate.grant_user(regrole) IS 'Grants a role all that users need: to see their own rows and to request syncs';

DO $$
DECLARE
	fn pg_catalog.regprocedure;
BEGIN
	FOR fn IN SELECT p.oid FROM pg_catalog.pg_proc AS p
		WHERE p.pronamespace OPERATOR(pg_catalog.=) ANY (ARRAY['syncstate'::pg_catalog.regnamespace, 'syncstate_shard'::pg_catalog.regnamespace])
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', fn);
	END LOOP;
	IF EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname OPERATOR(pg_catalog.=) 'service_role') THEN
		PERFORM syncstate.grant_worker('service_role'::pg_catalog.regrole);
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname OPERATOR(pg_catalog.=) 'authenticated') THEN
		PERFORM syncstate.grant_user('authenticated'::pg_catalog.regrole);
	END IF;
END
$$;
