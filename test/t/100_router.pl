# The router has the functions of a shard, by the same names, arguments,
# defaults, results and descriptions, and so the types.
use strict;
use warnings;

use Digest::SHA qw(sha256);
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();
my $s = Shards->new(2);

my $functions = q{
	SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.provolatile, p.prorows,
		obj_description(p.oid, 'pg_proc')
	FROM pg_proc p WHERE pronamespace = 'syncstate'::regnamespace
		AND proname NOT IN (%s) ORDER BY 1};
my $internal = q{'is_legal', 'due_from', 'is_ahead', 'guard', 'record_revoked', 'policy_changed', 'add_source_label', 'skip_known_label', 'keep_source_labels',
	'check_installation', 'present_objects', 'installed_objects'};
my $additions = q{'shard_of', 'get_my_syncs', 'get_my_sync_runs', 'get_sync_overview', 'get_sync_events', 'get_sync_runs', 'get_sync_channels'};
is($s->query(sprintf $functions, $additions), $s->shard_query(0, sprintf $functions, $internal),
	'functions are those of a shard');

my $columns = q{
	SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attcollation::regcollation
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
	WHERE c.relname IN ('sync_state', 'sync_policy', 'sync_event', 'sync_run', 'sync_channel', 'my_syncs', 'my_sync_runs', 'sync_overview') AND a.attnum > 0
	ORDER BY 1, a.attnum};
is($s->query($columns), $s->shard_query(0, $columns), 'types and views are those of a shard');

my $labels = q{SELECT enumtypid::regtype, enumlabel FROM pg_enum ORDER BY 1, enumsortorder};
is($s->query($labels), $s->shard_query(0, $labels), 'enums are those of a shard');

# What a shard writes the router reads, whatever the shard's settings are.
$s->shard_query($_, "ALTER DATABASE shard$_ SET datestyle = 'SQL, DMY'") for 0, 1;
my $user = '00000000-0000-4000-8000-000000000001';
$s->query("SELECT syncstate.connect_sync('$user', 'google_calendar');
	SELECT syncstate.update_sync_state('$user', 'google_calendar', '{\"due_at\": \"2020-02-03 04:05:06+00\", \"sync_interval\": \"1 day 02:03\"}')");
my $row = q{SELECT due_at = '2020-02-03 04:05:06+00', sync_interval = '1 day 02:03', lease FROM %s};
is($s->query(sprintf $row, "syncstate.get_sync_state('$user', 'google_calendar')"), 't|t|0', 'a row comes as it is');
is($s->query(sprintf $row, "syncstate.claim_due_syncs()"), 't|t|1', 'also by a claim');

# and so the other way, whatever the settings of the session are.
my $moment = q{SELECT to_char(updated_min AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24') FROM };
is($s->query("SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kolkata';
	$moment syncstate.mark_sync_completed('$user', 'google_tasks', updated_min => '2020-02-03 04:00+00')"),
	'2020-02-03 04', 'a time arrives as it is');
is($s->query("SET datestyle = 'SQL, MDY';
	SELECT to_char(paused_until AT TIME ZONE 'UTC', 'YYYY-MM-DD') FROM syncstate.pause_sync_source('google_tasks', '02/03/2120 00:00+00')"),
	'2120-02-03', 'also the end of a pause');

# A user's shard is the same for ever: the first two bytes of a SHA-256, as
# computed without PostgreSQL.
my @users = map { sprintf '%08x-0000-4000-8000-%012x', $_ * 2654435761 % 2**32, $_ } 1 .. 200;
is($s->query("SELECT syncstate_shard.hash(u) FROM unnest('{@{[ join ',', @users ]}}'::uuid[]) WITH ORDINALITY AS u (u, n) ORDER BY n"),
	join("\n", map { unpack 'v', sha256(pack 'H*', tr/-//dr) } @users), 'the hash of a user');
is($s->query("SELECT count(*) FROM unnest('{@{[ join ',', @users ]}}'::uuid[]) AS u WHERE syncstate.shard_of(u) <> syncstate_shard.hash(u) % 2"),
	'0', 'its low bits are the shard');

# A transaction on a shard is where it began: its connection is not made again.
is($s->query(q{SELECT a.shard, a.rows, a.state, a.message FROM unnest(syncstate_shard.ask(ARRAY['COMMIT', 'COMMIT'], begun => '{0}')) AS a ORDER BY 1}),
	"0||08001|the connection was lost\n1|{COMMIT}||", 'a COMMIT goes to no new connection');

# The extension's owner may have any name.
$s->{router}->safe_psql('postgres', q{CREATE ROLE admin; CREATE ROLE "Admin" SUPERUSER; CREATE ROLE "jane.doe" SUPERUSER});
foreach my $owner ('Admin', 'jane.doe')
{
	$s->{router}->safe_psql('postgres', qq{CREATE DATABASE "of $owner"});
	is($s->{router}->safe_psql("of $owner", qq{SET client_min_messages = warning; SET ROLE "$owner"; CREATE EXTENSION syncstate_router CASCADE;
		INSERT INTO syncstate.shard VALUES (0, '} . $s->connection(0) . qq{');
		CREATE USER MAPPING FOR "$owner" SERVER syncstate OPTIONS (user 'router', password 'none asked');
		SELECT count(*) FROM syncstate.next_sync_due()}), '1', "an owner by the name of $owner");
}

$s->stop;
done_testing();
