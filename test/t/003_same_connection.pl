# One connection that stays open while things change under it: kept plans,
# OIDs and caches must follow.  The extension is dropped and made again, its
# table altered, its indexes made anew, the search path turned hostile, roles
# switched, policies changed elsewhere.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;

my $a = 'aaaaaaaa-0000-4000-8000-00000000000a';
my $b = 'bbbbbbbb-0000-4000-8000-00000000000b';

$node->safe_psql('postgres', q{
	CREATE ROLE regress_syncstate_worker;
	CREATE ROLE regress_syncstate_user;
	CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0});

sub connection
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe(q{
		SET client_min_messages = error;
		SET timezone = 'UTC';
		LOAD 'syncstate';
		SET syncstate.clock = '2030-01-01 00:00:00+00'});
	return $session;
}

# The output of statements, with their errors in it.
sub run_in
{
	my ($session, $sql) = @_;
	$session->{stderr} = '';
	my $out = $session->query($sql);
	my $err = $session->{stderr};
	$session->{stderr} = '';
	$err =~ s/^psql:<stdin>:\d+: //mg;
	return join "\n", grep { $_ ne '' } $out, $err;
}

# Every function once at least, in an order that has it do something; and what
# the trigger, the policies and the views do.  No operator and no function but
# ours, so that nothing of this itself meets a planted one.
my $life = qq{
	DELETE FROM syncstate.sync_state;
	DELETE FROM syncstate.sync_policy;
	DELETE FROM syncstate.sync_event;
	DELETE FROM syncstate.sync_run;
	SELECT keep_runs FROM syncstate.set_sync_policy('google_calendar', '{"keep_runs": "all"}');
	SELECT status, requested_at FROM syncstate.connect_sync('$a', 'google_calendar');
	SELECT status, due_at FROM syncstate.connect_sync('$b', 'google_tasks', 'list');
	SELECT syncstate.request_sync('$b', 'google_tasks', 'list');
	SELECT syncstate.get_users_needing_sync('google_calendar');
	SELECT syncstate.next_sync_due('google_calendar');
	SELECT user_id, lease, lease_expires_at FROM syncstate.claim_due_syncs('google_calendar');
	SELECT lease_expires_at FROM syncstate.renew_sync_lease('$a', 'google_calendar', 1, '1 hour');
	SELECT page_token, progress_done FROM syncstate.checkpoint_sync('$a', 'google_calendar', 1, 'page 2', 50, 100);
	SELECT status, page_token FROM syncstate.release_sync('$a', 'google_calendar', 1);
	SELECT lease FROM syncstate.mark_sync_started('$a', 'google_calendar');
	SELECT status, sync_token, due_at FROM syncstate.mark_sync_completed('$a', 'google_calendar', 7, 'token', lease => 2);
	SELECT sync_token, token_losses FROM syncstate.clear_sync_token('$a', 'google_calendar');
	SELECT status, failures FROM syncstate.mark_sync_failed('$a', 'google_calendar', 'error', 'permanent');
	SELECT status, error_message FROM syncstate.mark_rate_limited('$a', 'google_calendar', '1 minute', 'row');
	SELECT resource, change FROM syncstate.set_sync_resources('$a', 'google_calendar', '{x}', 'work');
	SELECT status, limited_until FROM syncstate.mark_rate_limited('$a', 'google_calendar', '1 hour', resource => 'x', account => 'work');
	SELECT resource, limited_until FROM syncstate.connect_sync('$a', 'google_calendar', 'y', 'work');
	SELECT status, parked_reason FROM syncstate.mark_sync_failed('$a', 'google_calendar', 'no', 'auth', resource => 'y', account => 'work');
	SELECT resource, parked_reason FROM syncstate.connect_account('$a', 'work');
	SELECT resource, parked_reason FROM syncstate.pause_account('$a', 'work');
	SELECT resource, parked_reason FROM syncstate.resume_account('$a', 'work', 'google');
	SELECT source, resource FROM syncstate.request_account('$a', 'work');
	SELECT resource, requested_at FROM syncstate.disconnect_account('$a', 'work');
	SELECT parked_reason FROM syncstate.pause_sync('$a', 'google_calendar');
	SELECT parked_reason, failures FROM syncstate.resume_sync('$a', 'google_calendar');
	SELECT status, history_id FROM syncstate.update_sync_state('$a', 'google_gmail', '{"status": "syncing", "history_id": "42"}');
	SELECT user_id, status FROM syncstate.report_syncs('[{"user_id": "$a", "source": "google_gmail", "lease": 1, "outcome": "completed", "history_id": "43"}]');
	SELECT history_id FROM syncstate.get_sync_state('$a', 'google_gmail');
	SELECT source, resource FROM syncstate.get_sync_states('$a');
	SELECT sync_interval FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": "42 minutes"}');
	SELECT sync_interval FROM syncstate.get_sync_policy('google_tasks');
	SELECT paused_until FROM syncstate.pause_sync_source('google_tasks', '2030-01-02 00:00:00+00');
	SELECT paused_until FROM syncstate.resume_sync_source('google_tasks');
	INSERT INTO syncstate.sync_state (user_id, source, status) VALUES ('$b', 'google_contacts', 'syncing');
	UPDATE syncstate.sync_state SET sync_token = 'mine';
	SELECT user_id, source, status, lease, sync_token, updated_at FROM syncstate.sync_state ORDER BY user_id, source;
	SET "request.jwt.claims" = '{"sub": "$b"}';
	SELECT syncstate.current_user_id(), syncstate.sync_clock();
	SELECT source, resource, status FROM syncstate.my_syncs ORDER BY source;
	RESET "request.jwt.claims";
	SELECT source, rows, syncing FROM syncstate.sync_overview ORDER BY source;
	SELECT user_id, source, lease FROM syncstate.claim_due_syncs() ORDER BY user_id, source;
	SELECT syncstate.disconnect_sync('$b', 'google_contacts');
	SET "request.jwt.claims" = '{"sub": "$a"}';
	SELECT account, resource, outcome, was_full, was_requested, items, error_message FROM syncstate.my_sync_runs ORDER BY account, resource, outcome, was_full;
	RESET "request.jwt.claims";
	SELECT user_id, lease, started_at, ended_at, outcome FROM syncstate.sync_run ORDER BY user_id, account, source, resource, lease;
	SELECT at, event, user_id, account, source, resource, lease, reason, detail FROM syncstate.take_sync_events()
		ORDER BY event, user_id, account, source, resource, lease, reason;
	SELECT event FROM syncstate.take_sync_events();
	SELECT syncstate.grant_worker('regress_syncstate_worker'), syncstate.grant_user('regress_syncstate_user');
};

my $session = connection();
my $other = connection();
my $expected = run_in($session, $life);
unlike($expected, qr/ERROR/, 'a life without errors');
cmp_ok(scalar(split /\n/, $expected), '>', 35, 'and one that tells much');
is(run_in($session, $life), $expected, 'it is the same the second time');

sub same_life
{
	my ($what) = @_;
	is(run_in($session, $life), $expected, $what);
	is(run_in($other, $life), $expected, "$what, in another connection");
}

### dropped and made again

run_in($session, 'DROP EXTENSION syncstate; CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');
same_life('dropped and made again by this connection');
$node->safe_psql('postgres', 'DROP EXTENSION syncstate; CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');
same_life('dropped and made again by another');
run_in($session, 'BEGIN; DROP EXTENSION syncstate; CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');
is(run_in($session, $life), $expected, 'within a transaction');
run_in($session, 'ROLLBACK');
same_life('and rolled back');
$node->safe_psql('postgres', 'DROP EXTENSION syncstate');
like(run_in($session, q{SELECT syncstate.claim_due_syncs()}), qr/^ERROR: +schema "syncstate" does not exist/, 'dropped is dropped');
$node->safe_psql('postgres', 'CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');
same_life('made again later');

### altered

$node->safe_psql('postgres', q{ALTER TABLE syncstate.sync_state ADD COLUMN note text DEFAULT 'default', ADD COLUMN n int});
same_life('a column more');
run_in($session, q{UPDATE syncstate.sync_state SET note = 'mine', n = 42});
is(run_in($session, qq{
		SELECT note, n FROM syncstate.mark_sync_failed('$a', 'google_calendar', 'error',
			lease => (SELECT lease FROM syncstate.sync_state WHERE user_id = '$a' AND source = 'google_calendar'));
		SELECT note, n FROM syncstate.mark_sync_started('$a', 'google_calendar');
		SELECT note, n FROM syncstate.update_sync_state('$a', 'google_calendar', '{"status": "idle"}');
		UPDATE syncstate.sync_state SET status = 'error';
		SELECT DISTINCT note, n FROM syncstate.sync_state}),
	"mine|42\nmine|42\nmine|42\nmine|42", 'whose values stay through all kinds of writes');
$node->safe_psql('postgres', 'ALTER TABLE syncstate.sync_state DROP COLUMN note');
same_life('a column less');
$node->safe_psql('postgres', 'ALTER TABLE syncstate.sync_state DROP COLUMN n');
foreach my $table (qw(sync_event sync_run))
{
	$node->safe_psql('postgres', "ALTER TABLE syncstate.$table ADD COLUMN note text DEFAULT 'default', ADD COLUMN n int");
	same_life("two columns more of $table");
	$node->safe_psql('postgres', "ALTER TABLE syncstate.$table DROP COLUMN note");
	same_life("a column less of $table");
	$node->safe_psql('postgres', "ALTER TABLE syncstate.$table DROP COLUMN n");
}

foreach my $index (qw(sync_state_due sync_state_requested sync_state_pkey sync_event_pkey sync_run_pkey sync_run_ended))
{
	my $oid = $node->safe_psql('postgres', "SELECT 'syncstate.$index'::regclass::oid");
	$node->safe_psql('postgres', "REINDEX INDEX CONCURRENTLY syncstate.$index");
	isnt($node->safe_psql('postgres', "SELECT 'syncstate.$index'::regclass::oid"), $oid, "$index is another");
	same_life("$index made anew");
}
foreach my $table (qw(sync_state sync_event sync_run))
{
	$node->safe_psql('postgres', "VACUUM FULL syncstate.$table");
	$node->safe_psql('postgres', "ANALYZE syncstate.$table");
	same_life("$table rewritten");
}

$node->safe_psql('postgres', q{SELECT syncstate.register_sync_source('custom_crm')});
is(run_in($session, qq{
		SELECT status FROM syncstate.connect_sync('$a', 'custom_crm');
		SELECT user_id, lease FROM syncstate.claim_due_syncs('custom_crm');
		SELECT sync_interval FROM syncstate.get_sync_policy('custom_crm')}),
	"idle\n$a|1\n00:15:00", 'a source registered elsewhere is known');
$node->safe_psql('postgres', 'DROP EXTENSION syncstate; CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');

### a hostile search path

# Better matches for whatever a statement might name without its schema.
$node->safe_psql('postgres', q{
	CREATE SCHEMA planted;
	CREATE TABLE planted.trace (what pg_catalog.text);
	GRANT USAGE ON SCHEMA planted TO PUBLIC;
	GRANT INSERT ON planted.trace TO PUBLIC;
	CREATE FUNCTION planted.trace(what pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO planted.trace VALUES (what); RETURN true; END $$;
	DO $do$
	DECLARE
		type pg_catalog.text;
		op pg_catalog.text;
	BEGIN
		FOREACH type IN ARRAY ARRAY['uuid', 'text', 'int4', 'int8', 'bool', 'tid', 'timestamptz', 'interval', 'float8', 'name', 'oid',
			'syncstate.sync_source', 'syncstate.sync_status']
		LOOP
			EXECUTE format('CREATE FUNCTION planted.compare(%1$s, %1$s) RETURNS pg_catalog.bool LANGUAGE sql AS %2$L', type,
						   format('SELECT planted.trace(%L)', 'comparison of ' || type));
			FOREACH op IN ARRAY ARRAY['=', '<>', '<', '<=', '>', '>=', '~']
			LOOP
				EXECUTE format('CREATE OPERATOR planted.%1$s (FUNCTION = planted.compare, LEFTARG = %2$s, RIGHTARG = %2$s)', op, type);
			END LOOP;
		END LOOP;
		FOREACH type IN ARRAY ARRAY['int4', 'int8', 'float8']
		LOOP
			EXECUTE format('CREATE FUNCTION planted.plus(%1$s, %1$s) RETURNS %1$s LANGUAGE sql AS %2$L', type,
						   'SELECT planted.trace(''+''); SELECT $1');
			EXECUTE format('CREATE OPERATOR planted.+ (FUNCTION = planted.plus, LEFTARG = %1$s, RIGHTARG = %1$s)', type);
		END LOOP;
	END
	$do$;
	CREATE FUNCTION planted.now() RETURNS pg_catalog.timestamptz LANGUAGE sql AS $$SELECT planted.trace('now'); SELECT pg_catalog.now()$$;
	CREATE FUNCTION planted.current_user_id() RETURNS pg_catalog.uuid LANGUAGE sql AS $$SELECT planted.trace('current_user_id'); SELECT NULL::pg_catalog.uuid$$;
	CREATE FUNCTION planted.sync_clock() RETURNS pg_catalog.timestamptz LANGUAGE sql AS $$SELECT planted.trace('sync_clock'); SELECT pg_catalog.now()$$;
	CREATE FUNCTION planted.format(pg_catalog.text, pg_catalog.regrole) RETURNS pg_catalog.text LANGUAGE sql AS $$SELECT planted.trace('format'); SELECT 'SELECT 1'::pg_catalog.text$$;
	CREATE FUNCTION planted.jsonb_populate_record(syncstate.sync_state, pg_catalog.jsonb) RETURNS syncstate.sync_state LANGUAGE sql AS $$SELECT planted.trace('jsonb_populate_record'); SELECT $1$$;
	CREATE FUNCTION planted.jsonb_populate_record(syncstate.sync_policy, pg_catalog.jsonb) RETURNS syncstate.sync_policy LANGUAGE sql AS $$SELECT planted.trace('jsonb_populate_record'); SELECT $1$$;
	CREATE FUNCTION planted.gen_random_uuid() RETURNS pg_catalog.uuid LANGUAGE sql AS $$SELECT planted.trace('gen_random_uuid'); SELECT NULL::pg_catalog.uuid$$;
	CREATE FUNCTION planted.octet_length(pg_catalog.text) RETURNS pg_catalog.int4 LANGUAGE sql AS $$SELECT planted.trace('octet_length'); SELECT 0$$;
	CREATE FUNCTION planted.isfinite(pg_catalog.timestamptz) RETURNS pg_catalog.bool LANGUAGE sql AS $$SELECT planted.trace('isfinite')$$;
	CREATE FUNCTION planted.has_function_privilege(pg_catalog.regprocedure, pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE sql AS $$SELECT planted.trace('has_function_privilege')$$;
	CREATE TYPE planted.sync_source AS ENUM ('planted');
	CREATE TYPE planted.sync_status AS ENUM ('planted');
	CREATE TABLE planted.sync_state (planted pg_catalog.int4);
	CREATE TABLE planted.sync_policy (planted pg_catalog.int4);
	CREATE TABLE planted.sync_event (planted pg_catalog.int4);
	CREATE TABLE planted.sync_run (planted pg_catalog.int4);
	CREATE TYPE planted.text AS (planted pg_catalog.text);
	CREATE TYPE planted.int8 AS (planted pg_catalog.text)});
foreach my $path ('planted, pg_catalog', 'planted, syncstate, pg_catalog', 'pg_temp, planted', q{''})
{
	my $hostile = "CREATE TEMP TABLE IF NOT EXISTS sync_state (planted pg_catalog.int4);
		CREATE TEMP TABLE IF NOT EXISTS sync_policy (planted pg_catalog.int4);
		CREATE TEMP TABLE IF NOT EXISTS sync_event (planted pg_catalog.int4);
		CREATE TEMP TABLE IF NOT EXISTS sync_run (planted pg_catalog.int4);
		SET search_path = $path";
	run_in($_, $hostile) foreach $session, $other;
	same_life("search_path = $path");
	my $new = connection();
	run_in($new, $hostile);
	is(run_in($new, $life), $expected, "search_path = $path, in a new connection");
	$new->quit;
	run_in($_, 'RESET search_path') foreach $session, $other;
}
is($node->safe_psql('postgres', 'SELECT DISTINCT what FROM planted.trace ORDER BY what'), '', 'nothing planted was called');
is($node->safe_psql('postgres', q{SET search_path = planted, pg_catalog;
		SELECT '1'::pg_catalog.int8 = '2'::pg_catalog.int8; SELECT what FROM planted.trace}),
	"t\ncomparison of int8", 'which would have shown');
$node->safe_psql('postgres', 'SET client_min_messages = error; DROP SCHEMA planted CASCADE');

### roles that take turns in one session

run_in($session, qq{DELETE FROM syncstate.sync_state; DELETE FROM syncstate.sync_policy;
	SELECT syncstate.connect_sync('$a', 'google_tasks'), syncstate.connect_sync('$b', 'google_tasks')});
my $as_worker = qq{SET ROLE regress_syncstate_worker; RESET "request.jwt.claims";
	SELECT user_id FROM syncstate.sync_state ORDER BY user_id;
	SELECT syncstate.request_sync('$a', 'google_tasks');
	SELECT syncstate.request_sync('$b', 'google_tasks');
	SELECT status FROM syncstate.mark_sync_failed('$b', 'google_tasks', 'error');
	SELECT status FROM syncstate.mark_sync_completed('$b', 'google_tasks');
	SELECT status FROM syncstate.get_sync_state('$b', 'google_tasks')};
my $as_user = qq{SET ROLE regress_syncstate_user; SET "request.jwt.claims" = '{"sub": "$a"}';
	SELECT user_id FROM syncstate.sync_state ORDER BY user_id;
	SELECT syncstate.request_sync('$a', 'google_tasks')};
my $as_thief = qq{SELECT syncstate.request_sync('$b', 'google_tasks')};
my $as_nobody = qq{RESET "request.jwt.claims"; SELECT count(*) FROM syncstate.sync_state};
foreach my $round (1 .. 3)
{
	is(run_in($session, $as_worker), "$a\n$b\nt\nt\nerror\nidle\nidle", "turn $round: a worker sees and reports all");
	is(run_in($session, $as_user), "$a\nt", "turn $round: a user sees and requests their own");
	like(run_in($session, $as_thief), qr/^ERROR: +sync state does not exist or is not visible\nDETAIL: +Key .*=\($b, , google_tasks, \)\.$/, "turn $round: and no other's");
	like(run_in($session, q{SELECT syncstate.claim_due_syncs()}), qr/^ERROR: +permission denied for function claim_due_syncs$/, "turn $round: and is no worker");
	is(run_in($session, $as_nobody), '0', "turn $round: without claims there is nothing");
}

# A revoked right is gone with the next statement, kept plans or not.
run_in($session, $as_worker);
$node->safe_psql('postgres', 'REVOKE UPDATE ON syncstate.sync_state FROM regress_syncstate_worker');
like(run_in($session, qq{SELECT syncstate.mark_sync_failed('$b', 'google_tasks', 'error')}), qr/^ERROR: +permission denied for table sync_state$/m, 'a right revoked elsewhere is gone');
$node->safe_psql('postgres', q{SELECT syncstate.grant_worker('regress_syncstate_worker')});
is(run_in($session, $as_worker), "$a\n$b\nt\nt\nerror\nidle\nidle", 'and back');
run_in($session, 'RESET ROLE');

### policies changed elsewhere

my $ask = q{SELECT sync_interval FROM syncstate.get_sync_policy('google_tasks')};
sub set_interval { my ($minutes) = @_; return qq{SELECT sync_interval FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": "$minutes minutes"}')}; }

is(run_in($session, $ask), '00:15:00', 'built in');
is(run_in($other, set_interval(20)), '00:20:00', 'changed by another');
is(run_in($session, $ask), '00:20:00', 'known here with the next statement');
run_in($other, 'BEGIN; ' . set_interval(21));
is(run_in($session, $ask), '00:20:00', 'not before it is committed');
is(run_in($other, $ask), '00:21:00', 'but to the other');
run_in($other, 'COMMIT');
is(run_in($session, $ask), '00:21:00', 'and then it is');
run_in($other, 'BEGIN; ' . set_interval(22) . '; ROLLBACK');
is(run_in($session, $ask) . run_in($other, $ask), '00:21:0000:21:00', 'one rolled back is known to nobody');
run_in($other, q{UPDATE syncstate.sync_policy SET sync_interval = '23 minutes'});
is(run_in($session, $ask), '00:23:00', 'written directly');
run_in($other, q{TRUNCATE syncstate.sync_policy});
is(run_in($session, $ask), '00:15:00', 'truncated');

# What a transaction reads under an old snapshot is not kept beyond it: neither
# where the cache was filled within it, nor where the change came before.
run_in($session, 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM syncstate.sync_policy');
run_in($other, set_interval(30));
run_in($session, "LOCK TABLE syncstate.sync_policy IN ACCESS SHARE MODE; $ask; SELECT syncstate.request_sync('$a', 'google_tasks')");
run_in($session, 'COMMIT');
is(run_in($session, $ask), '00:30:00', 'an old snapshot leaves no old policy behind');
run_in($session, "BEGIN ISOLATION LEVEL REPEATABLE READ; $ask");
run_in($other, set_interval(31));
run_in($session, "$ask; ROLLBACK");
is(run_in($session, $ask), '00:31:00', 'nor does one that is rolled back');

# Nor is what was read as a user, who may not see sync_policy.
my $new = connection();
run_in($new, $as_user);
is(run_in($new, "SET ROLE regress_syncstate_worker; $ask"), '00:31:00', 'a cache filled as a user serves a worker');
$new->quit;

# A dropped and new extension has its own.
run_in($other, 'DROP EXTENSION syncstate; CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');
is(run_in($session, $ask), '00:15:00', 'a new extension has no old policy');

$_->quit foreach $session, $other;
$node->stop;
done_testing();
