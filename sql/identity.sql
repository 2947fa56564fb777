/*
 * Who is asking: current_user_id(), from the settings that PostgREST makes of
 * a JWT.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
RESET client_min_messages;

-- a session that was never told anything has no identity
\c -
SELECT syncstate.current_user_id() IS NULL AS nobody;

-- nor has one that was told something else
SELECT set_config('request.jwt.claim.role', 'anon', false);
SELECT syncstate.current_user_id() IS NULL AS nobody;

/* ------------------------------------------------------- the two settings */

SELECT set_config('request.jwt.claim.sub', 'aaaaaaaa-0000-4000-8000-000000000001', false);
SELECT syncstate.current_user_id();

-- the one claim wins over all claims
SELECT set_config('request.jwt.claims', '{"sub": "bbbbbbbb-0000-4000-8000-000000000002", "role": "authenticated"}', false);
SELECT syncstate.current_user_id();

-- '' counts as unset
SELECT set_config('request.jwt.claim.sub', '', false);
SELECT syncstate.current_user_id();
SELECT set_config('request.jwt.claims', '', false);
SELECT syncstate.current_user_id() IS NULL AS nobody;
SELECT set_config('request.jwt.claims', '{"sub": ""}', false);
SELECT syncstate.current_user_id() IS NULL AS nobody;

-- a uuid is what the server takes for one
SELECT set_config('request.jwt.claims', '{"sub": "{CCCCCCCC00004000-8000000000000003}"}', false);
SELECT syncstate.current_user_id();

/* ------------------------------------------------------- transaction-local */

-- PostgREST sets them for one transaction; a pooled session goes on without
\c -
BEGIN;
SELECT set_config('request.jwt.claims', '{"sub": "aaaaaaaa-0000-4000-8000-000000000001"}', true);
SELECT syncstate.current_user_id();
COMMIT;
SELECT syncstate.current_user_id() IS NULL AS nobody;

BEGIN;
SELECT set_config('request.jwt.claim.sub', 'bbbbbbbb-0000-4000-8000-000000000002', true);
SELECT syncstate.current_user_id();
COMMIT;
SELECT syncstate.current_user_id() IS NULL AS nobody;

-- '' of an earlier transaction does not hide the claims of this one
BEGIN;
SELECT set_config('request.jwt.claims', '{"sub": "cccccccc-0000-4000-8000-000000000003"}', true);
SELECT syncstate.current_user_id();
SAVEPOINT s;
SELECT set_config('request.jwt.claims', '{"sub": "aaaaaaaa-0000-4000-8000-000000000001"}', true);
SELECT syncstate.current_user_id();
ROLLBACK TO s;
SELECT syncstate.current_user_id();
ROLLBACK;
SELECT syncstate.current_user_id() IS NULL AS nobody;

-- a plan kept over a change of identity answers for the new one
PREPARE who AS SELECT syncstate.current_user_id();
SET plan_cache_mode = force_generic_plan;
SELECT set_config('request.jwt.claim.sub', 'aaaaaaaa-0000-4000-8000-000000000001', false);
EXECUTE who;
SELECT set_config('request.jwt.claim.sub', 'bbbbbbbb-0000-4000-8000-000000000002', false);
EXECUTE who;
SELECT set_config('request.jwt.claim.sub', '', false);
SELECT set_config('request.jwt.claims', '{"sub": "aaaaaaaa-0000-4000-8000-000000000001"}', false);
EXECUTE who;
SELECT set_config('request.jwt.claims', '{"sub": "no uuid"}', false);
EXECUTE who;
SELECT set_config('request.jwt.claims', '{"sub": ["no subject"]}', false);
EXECUTE who; -- ERROR
EXECUTE who; -- ERROR
SELECT set_config('request.jwt.claims', '{"sub": null}', false);
EXECUTE who;
SELECT set_config('request.jwt.claims', '{"sub": "bbbbbbbb-0000-4000-8000-000000000002"}', false);
EXECUTE who;
SELECT set_config('request.jwt.claims', '', false);
RESET plan_cache_mode;
DEALLOCATE who;

/* ------------------------------------------------------------- malformed */

-- the SQLSTATE that a setting leads to, or the answer; changes nothing
CREATE FUNCTION pg_temp.answer(sub text, claims text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('request.jwt.claim.sub', sub, false),
		set_config('request.jwt.claims', claims, false);
	RETURN coalesce(syncstate.current_user_id()::text, 'nobody');
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

-- and what auth.uid() of Supabase would say
CREATE FUNCTION pg_temp.auth_uid(sub text, claims text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('request.jwt.claim.sub', sub, false),
		set_config('request.jwt.claims', claims, false);
	RETURN coalesce(coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
							 nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid::text,
					'nobody');
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;

CREATE TEMP TABLE settings (n serial, sub text, claims text);
INSERT INTO settings (sub, claims) VALUES
	('not-a-uuid', ''),
	('aaaaaaaa-0000-4000-8000-00000000000', ''),
	(' ', ''),
	('aaaaaaaa-0000-4000-8000-000000000001; DROP TABLE', ''),
	('not-a-uuid', '{"sub": "aaaaaaaa-0000-4000-8000-000000000001"}'),
	('aaaaaaaa-0000-4000-8000-000000000001', 'not JSON, and not looked at'),
	('', 'not JSON'),
	('', '{"sub": '),
	('', ' '),
	('', 'null'),
	('', '42'),
	('', '"aaaaaaaa-0000-4000-8000-000000000001"'),
	('', '[]'),
	('', '["sub", "aaaaaaaa-0000-4000-8000-000000000001"]'),
	('', '{}'),
	('', '{"Sub": "aaaaaaaa-0000-4000-8000-000000000001"}'),
	('', '{"a": {"sub": "aaaaaaaa-0000-4000-8000-000000000001"}}'),
	('', '{"sub": null}'),
	('', '{"sub": 42}'),
	('', '{"sub": true}'),
	('', '{"sub": {}}'),
	('', '{"sub": ["aaaaaaaa-0000-4000-8000-000000000001"]}'),
	('', '{"sub": "not-a-uuid"}'),
	('', '{"sub": "aaaaaaaa-0000-4000-8000-000000000001", "sub": "bbbbbbbb-0000-4000-8000-000000000002"}');

SELECT sub, claims, pg_temp.answer(sub, claims) AS answer,
	CASE WHEN pg_temp.answer(sub, claims) <> pg_temp.auth_uid(sub, claims)
		THEN pg_temp.auth_uid(sub, claims) END AS but_auth_uid
FROM settings ORDER BY n;

-- the texts, once each
\set VERBOSITY terse
SELECT set_config('request.jwt.claim.sub', '', false);
SELECT set_config('request.jwt.claims', '{"sub": {}}', false);
SELECT syncstate.current_user_id(); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT set_config('request.jwt.claims', 'not JSON', false);
SELECT syncstate.current_user_id(); -- ERROR
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
SELECT set_config('request.jwt.claims', '', false);

/* ---------------------------------------------- subjects that are no uuids */

-- version 5, of namespace b42cdf9f-20ea-4884-8d71-9f3ebe6bed2a, as libraries compute it
SELECT subject, syncstate.user_id_of(subject)
FROM unnest(ARRAY['user_2NNEqL2nrIRdJ194ndJqAHwEfxC', 'auth0|507f1f77bcf86cd799439011', '42', ' ', '', NULL,
	'aaaaaaaa-0000-4000-8000-000000000001', '{AAAAAAAA00004000-8000000000000001}', 'aaaaaaaa-0000-4000-8000-00000000000',
	'aaaaaaaa-0000-4000-8000-0000000000011', '{aaaaaaaa-0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001}',
	'aaa-aaaaa-0000-4000-8000-000000000001', 'aaaaaaaa--0000-4000-8000-000000000001', 'aaaaaaaa-0000-4000-8000-000000000001-']) AS subject;

-- a uuid exactly where the server takes the text for one, and then that one
CREATE FUNCTION pg_temp.as_uuid(t text) RETURNS uuid LANGUAGE plpgsql AS $$
BEGIN
	RETURN t::uuid;
EXCEPTION WHEN invalid_text_representation THEN
	RETURN NULL;
END
$$;
SELECT count(*) AS texts, count(u) > 100 AS many_uuids, count(*) FILTER (WHERE u IS DISTINCT FROM o AND u IS NOT NULL) AS other_ones,
	count(*) FILTER (WHERE u IS NULL AND (o = pg_temp.as_uuid(translate(t, '-{}', '')) OR substr(o::text, 15, 1) <> '5')) AS wrong
FROM (SELECT t, pg_temp.as_uuid(t) AS u, syncstate.user_id_of(t) AS o
	  FROM (SELECT CASE n % 3 WHEN 0 THEN '{' ELSE '' END
				|| regexp_replace(md5(n::text), '(.{' || (1 + n % 5) * (1 + n % 2 * 3) || '})', '\1' || CASE n % 7 WHEN 0 THEN '-' ELSE '' END, 'g')
				|| CASE n % 3 WHEN 0 THEN '}' ELSE '' END AS t
			FROM generate_series(1, 2000) AS n) AS texts) AS ids;

-- the same for a session: users by text and by number see their own rows
CREATE ROLE regress_syncstate_reader;
SELECT syncstate.grant_user('regress_syncstate_reader');
INSERT INTO syncstate.sync_state (user_id, source) SELECT syncstate.user_id_of(subject), 'google_tasks'
FROM unnest('{user_2NNEqL2nrIRdJ194ndJqAHwEfxC,42}'::text[]) AS subject;
SET ROLE regress_syncstate_reader;
SET request.jwt.claims = '{"sub": "user_2NNEqL2nrIRdJ194ndJqAHwEfxC"}';
SELECT user_id, syncstate.request_sync(user_id, 'google_tasks') AS comes FROM syncstate.my_syncs;
SET request.jwt.claims = '{"sub": 42}';
SELECT user_id, syncstate.request_sync(user_id, 'google_tasks') AS comes FROM syncstate.my_syncs;
SELECT syncstate.request_sync(syncstate.user_id_of('user_2NNEqL2nrIRdJ194ndJqAHwEfxC'), 'google_tasks'); -- ERROR
SET request.jwt.claims = '{"sub": "user_2nneql2nrirdj194ndjqahwefxc"}';
SELECT user_id FROM syncstate.my_syncs;
RESET ROLE;

-- workers never depend on a subject, be it malformed
SELECT syncstate.grant_worker('regress_syncstate_reader');
SET ROLE regress_syncstate_reader;
SELECT claims, (SELECT count(*) FROM syncstate.sync_state WHERE c IS NOT NULL) AS rows,
	(SELECT count(*) FROM syncstate.sync_overview WHERE c IS NOT NULL AND rows > 0) AS sources,
	(syncstate.get_sync_state(syncstate.user_id_of('42'), 'google_tasks')).source,
	(syncstate.connect_sync(syncstate.user_id_of('43'), 'google_tasks')).status,
	syncstate.request_sync(syncstate.user_id_of('43'), 'google_tasks') AS comes,
	syncstate.disconnect_sync(syncstate.user_id_of('43'), 'google_tasks') AS deleted
FROM unnest(ARRAY['{"role": "service_role", "sub": "sync-worker-1"}', '{"sub": {}}', 'not JSON']) AS claims,
	LATERAL set_config('request.jwt.claims', claims, false) AS c;
RESET ROLE;
SELECT set_config('request.jwt.claims', '', false);

SET client_min_messages = warning;
DELETE FROM syncstate.sync_state;
DROP OWNED BY regress_syncstate_reader;
DROP ROLE regress_syncstate_reader;
