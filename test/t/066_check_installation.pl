# check_installation(), where more is needed than one session: old transactions,
# prepared ones, replication slots, autovacuum, and what a dump brings back.  The
# rest is in sql/check.sql.  Hours pass by syncstate.clock.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(allows_streaming => 1);
# no worker of autovacuum comes in between
$node->append_conf('postgresql.conf', q{
max_prepared_transactions = 2
autovacuum_naptime = 1d
wal_receiver_status_interval = 1s});
$node->start;
$node->safe_psql('postgres', q{
	CREATE ROLE regress_syncstate_owner LOGIN;
	CREATE ROLE regress_syncstate_worker;
	CREATE DATABASE app OWNER regress_syncstate_owner;
	CREATE DATABASE other});
$node->safe_psql('app', q{
	SET ROLE regress_syncstate_owner;
	CREATE EXTENSION syncstate;
	CREATE TABLE mine (id integer)});

my $soon = q{SET syncstate.clock = '} . $node->safe_psql('app', q{SELECT now() + interval '50 minutes'}) . q{'; };
my $later = q{SET syncstate.clock = '} . $node->safe_psql('app', q{SELECT now() + interval '2 hours'}) . q{'; };

# What is found, without numbers that differ.
sub found
{
	my ($sql, $database) = @_;
	return $node->safe_psql($database // 'app', ($sql // '') . 'SELECT object, problem FROM syncstate.check_installation()')
	  =~ s/session \d+/session N/gr;
}

# Does what the advice says.
sub heed
{
	my ($sql) = @_;
	my $advice = $node->safe_psql('app', ($sql // '') . 'SELECT advice FROM syncstate.check_installation()');
	$advice =~ s/^.*?: ((?:SELECT|COMMIT PREPARED) .*?)( or .*)?\.$/$1/;
	$node->safe_psql('app', $_) foreach split /;\s*|\n/, $advice;
	return;
}

is(found(), '', 'nothing on a sound database');

### Transactions

my $old = 'session N|has an old transaction or snapshot: dead rows cannot be removed';
foreach my $case (
	[ 'a snapshot', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM mine', $old ],
	[ 'a write', 'BEGIN; INSERT INTO mine VALUES (1)', $old ],
	[ 'neither', 'BEGIN; SELECT count(*) FROM mine', '' ],
	[ 'a snapshot in another database', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class', '', 'other' ])
{
	my ($what, $sql, $expected, $database) = @$case;
	my $session = $node->background_psql($database // 'app');

	$session->query($sql);
	is(found($soon), '', "a transaction with $what: not old yet");
	is(found($later), $expected, "a transaction with $what: old");
	if ($expected ne '')
	{
		heed($later);
		$node->poll_query_until('app', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'});
		is(found($later), '', 'ended');
		$session->{run}->finish;
	}
	else
	{
		$session->quit;
	}
}

# An administrator who may not see other roles' sessions does not see these.
my $session = $node->background_psql('app');
$session->query('BEGIN; INSERT INTO mine VALUES (1)');
my $as_owner = "$later SET ROLE regress_syncstate_owner; ";
is(found($as_owner), '', 'the owner of the database does not see the sessions of others');
$node->safe_psql('postgres', 'GRANT pg_read_all_stats TO regress_syncstate_owner');
is(found($as_owner), $old, 'unless as pg_read_all_stats');
$session->quit;

$node->safe_psql('app', q{BEGIN; INSERT INTO mine VALUES (1); PREPARE TRANSACTION 'it''s ours'});
is(found($soon), '', 'a prepared transaction: not old yet');
is(found($later), q{prepared transaction 'it''s ours'|is old: dead rows cannot be removed}, 'a prepared transaction: old');
heed($later);
is(found($later), '', 'committed');

### Replication

$node->backup('backup');
$node->safe_psql('app', q{SELECT pg_create_physical_replication_slot('replica')});
my $replica = PostgreSQL::Test::Cluster->new('replica');
$replica->init_from_backup($node, 'backup', has_streaming => 1);
$replica->append_conf('postgresql.conf', q{
primary_slot_name = 'replica'
hot_standby_feedback = on});
$replica->start;
$node->poll_query_until('app', q{SELECT xmin IS NOT NULL FROM pg_replication_slots}) or die 'no feedback';
$replica->stop;
is(found($later), '', 'a replica that has just stopped');
# the first number of a page, which then need not exist
$node->stop;
command_ok([ 'pg_resetwal', '-x', 33 * 32_768, '-D', $node->data_dir ], 'a million transactions pass');
$node->start;
is(found(), 'replication slot replica|has an old xmin: dead rows cannot be removed', 'a replica that has stopped long ago');
heed();
is(found(), '', 'dropped');

### Autovacuum

$node->safe_psql('app', q{
	INSERT INTO syncstate.sync_event (at, event) SELECT now(), 'parked' FROM generate_series(1, 9000);
	DELETE FROM syncstate.sync_event;
	SELECT pg_stat_force_next_flush()});
is(found(), '', 'some dead rows');
$node->safe_psql('app', q{
	INSERT INTO syncstate.sync_event (at, event) SELECT now(), 'parked' FROM generate_series(1, 9000);
	DELETE FROM syncstate.sync_event;
	SELECT pg_stat_force_next_flush()});
is(found(), 'table syncstate.sync_event|has more than 10,000 dead rows, and five times what autovacuum waits for', 'many dead rows');
$node->safe_psql('app', 'ALTER TABLE syncstate.sync_event SET (autovacuum_vacuum_threshold = 10000)');
is(found(), '', 'where that many are wanted');
$node->safe_psql('app', 'ALTER TABLE syncstate.sync_event RESET (autovacuum_vacuum_threshold)');
heed();
is(found(), '', 'vacuumed');

$node->safe_psql('app', q{
	INSERT INTO syncstate.sync_run SELECT gen_random_uuid(), '', 'google_tasks', '', i, NULL, now(), 'completed', false, false FROM generate_series(1, 100001) AS i;
	ALTER TABLE syncstate.sync_run SET (autovacuum_vacuum_threshold = 1000000);
	DELETE FROM syncstate.sync_run;
	SELECT pg_stat_force_next_flush()});
is(found(), 'table syncstate.sync_run|was never vacuumed, after more than 100,000 rows were changed or deleted', 'never vacuumed');
heed();
is(found(), '', 'vacuumed');

$node->safe_psql('app', 'ALTER TABLE syncstate.sync_state SET (autovacuum_enabled = off)');
is(found(), 'table syncstate.sync_state|has autovacuum switched off', 'autovacuum is off for a table');
heed();
$node->append_conf('postgresql.conf', "autovacuum = off\ntrack_counts = off");
$node->reload;
$node->poll_query_until('app', q{SELECT current_setting('autovacuum') = 'off'});
is(found(), "setting autovacuum|is off: nothing removes dead rows\nsetting track_counts|is off: nothing removes dead rows", 'autovacuum is off');
heed();
$node->poll_query_until('app', q{SELECT current_setting('autovacuum') = 'on'});
is(found(), '', 'on again');

### Dump and restore

$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(original restored);
$node->safe_psql('original', $_) foreach q{
	CREATE EXTENSION syncstate;
	SELECT syncstate.grant_worker('regress_syncstate_worker');
	SELECT syncstate.register_sync_source('custom_crm')}, q{
	SELECT syncstate.connect_sync('aaaaaaaa-0000-4000-8000-000000000001', 'custom_crm')};
my $dump = $node->basedir . '/dump';
$node->command_ok([ 'pg_dump', '--no-sync', '-f', $dump, $node->connstr('original') ], 'dump');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restore');
is($node->safe_psql('restored', 'SELECT source FROM syncstate.sync_state'), 'custom_crm', 'rows are restored');
is(found('', 'restored'), '', 'nothing on a restored database');

$node->stop;
done_testing();
