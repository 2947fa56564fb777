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
SELECT set_config('request.jwt.claim.sub', 'not-a-uuid', false);
SELECT syncstate.current_user_id(); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT set_config('request.jwt.claim.sub', '', false);
SELECT set_config('request.jwt.claims', 'not JSON', false);
SELECT syncstate.current_user_id(); -- ERROR
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
