/*
 * The guard for the sweep: a full listing that came back suspiciously short does
 * not delete what it did not list.
 */
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0; -- so that tests can name leases
CREATE SCHEMA regress_sweep;
RESET client_min_messages;
SET search_path = regress_sweep, syncstate, public;
\set user '00000000-0000-4000-8000-000000000001'
SET syncstate.clock = '2030-01-01 00:00:00+00';

SELECT FROM connect_sync(:'user', 'google_calendar', 'work');
SELECT lease FROM claim_due_syncs() \gset

CREATE FUNCTION may(vanished bigint, total bigint, force boolean DEFAULT false) RETURNS boolean LANGUAGE sql
RETURN may_sweep('00000000-0000-4000-8000-000000000001', 'google_calendar', 1, vanished, total, force, resource => 'work');

-- ten items may always go, and beyond that a tenth of all
SELECT vanished, total, may(vanished, total), may(vanished, total, true) AS confirmed
FROM (VALUES (0, 0), (0, 5), (5, 5), (10, 10), (11, 11), (11, 109), (11, 110), (100, 1000), (101, 1000), (1000, 1000),
	  (922337203685477580, 9223372036854775807), (922337203685480000, 9223372036854775807), (9223372036854775807, 9223372036854775807)) AS v (vanished, total);

-- by the policy
SELECT max_vanished FROM set_sync_policy('google_calendar', '{"max_vanished": 0}');
SELECT vanished, total, may(vanished, total) FROM (VALUES (10, 1000), (11, 1000)) AS v (vanished, total);
SELECT max_vanished FROM set_sync_policy('google_calendar', '{"max_vanished": 1}');
SELECT may(1000, 1000);
SELECT max_vanished FROM set_sync_policy('google_calendar', '{"max_vanished": 0.5}');
SELECT may(500, 1000), may(501, 1000);
SELECT max_vanished FROM set_sync_policy('google_calendar', '{"max_vanished": null}');

-- the question changes nothing
SELECT lease, status, syncs_started, updated_at = sync_clock() AS as_it_was FROM get_sync_state(:'user', 'google_calendar', 'work');

-- only who has the lease may ask, as long as nobody took it over
SELECT may_sweep(:'user', 'google_calendar', 2, 0, 5, resource => 'work'); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SELECT may_sweep(:'user', 'google_calendar', 1, 0, 5); -- ERROR
\echo :LAST_ERROR_SQLSTATE
SET syncstate.clock = '2030-01-01 01:00:00+00';
SELECT may(5, 5) AS expired;
SELECT lease FROM claim_due_syncs();
SELECT may(5, 5); -- ERROR
SELECT status FROM mark_sync_completed(:'user', 'google_calendar', 5, 'token', lease => 2, resource => 'work');
SELECT may_sweep(:'user', 'google_calendar', 2, 0, 5, resource => 'work'); -- ERROR

SELECT may_sweep(:'user', 'google_calendar', NULL, 0, 5); -- ERROR
SELECT may_sweep(:'user', 'google_calendar', 1, -1, 5); -- ERROR
SELECT may_sweep(:'user', 'google_calendar', 1, 0, -1); -- ERROR
SELECT may_sweep(:'user', 'google_calendar', 1, 6, 5); -- ERROR
SELECT may_sweep(:'user', 'google_calendar', 1, NULL, 5); -- ERROR
SELECT may_sweep(:'user', 'google_calendar', 1, 0, 5, NULL); -- ERROR
\echo :LAST_ERROR_SQLSTATE

SET client_min_messages = warning;
DELETE FROM sync_state;
DELETE FROM sync_policy;
DROP SCHEMA regress_sweep CASCADE;
