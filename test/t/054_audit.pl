# An auditor hears of each call that touches sync_state, by whatever way it does,
# and of whoever takes events or reads runs: pgaudit, which listens where the executor checks permissions, and logs what a
# role of its own could have done.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my ($libdir) = `$pg_config --pkglibdir` =~ /(.*)/;
plan skip_all => 'pgaudit is not installed for this server (in Debian: postgresql-VERSION-pgaudit)'
  unless -e "$libdir/pgaudit.so";

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<'EOC');
fsync = off
shared_preload_libraries = 'pgaudit'
pgaudit.role = 'auditor'
pgaudit.log_catalog = off
EOC
$node->start;
$node->safe_psql('postgres', q{
	CREATE ROLE auditor;
	CREATE ROLE worker LOGIN;
	CREATE ROLE fenced LOGIN;
	CREATE EXTENSION syncstate;
	ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
	SELECT syncstate.grant_worker('worker'), syncstate.grant_worker('fenced');
	GRANT SELECT, INSERT, UPDATE, DELETE ON syncstate.sync_state, syncstate.sync_event, syncstate.sync_run TO auditor;
	CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
	RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;
	CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	-- runs a call that may find that there is nothing to do for it
	CREATE FUNCTION try(call text) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE call;
	EXCEPTION WHEN SQLSTATE 'PT404' OR SQLSTATE 'PT409' THEN
		NULL;
	END
	$$;
	INSERT INTO syncstate.sync_state (user_id, source, status, lease, due_at)
	SELECT u(n), 'google_calendar', CASE WHEN n > 10 THEN 'syncing' ELSE 'idle' END::syncstate.sync_status, 5, now() - interval '1 min'
	FROM generate_series(1, 30) AS n});

# What the auditor notes while a role runs a statement: which commands on a
# table.
sub noted
{
	my ($role, $sql, $table) = @_;
	$table //= 'sync_state';
	my $from = -s $node->logfile;
	$node->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
	my %commands;
	foreach (split /\n/, substr(slurp_file($node->logfile), $from))
	{
		$commands{$1} = 1 if /AUDIT: OBJECT,\d+,\d+,(?:READ|WRITE),(\w+),TABLE,syncstate\.$table,/;
	}
	return join ' ', sort keys %commands;
}

is(noted('worker', 'SELECT 1'), '', 'nothing is noted of what does not touch the table');
is(noted('worker', 'SELECT count(*) FROM syncstate.sync_state'), 'SELECT', 'a plain SELECT is noted');
is(noted('worker', q{UPDATE syncstate.sync_state SET sync_interval = '1 h' WHERE user_id = u(1)}), 'UPDATE', '... and a plain UPDATE');

my $n = 10;
sub next_user { $n++; return "u($n)" }

foreach my $way ([ 'worker', 'plainly', '' ],
	[ 'fenced', 'within a policy', 'CREATE POLICY fence ON syncstate.sync_state AS RESTRICTIVE TO fenced USING (true)' ],
	[ 'worker', 'with a trigger', 'DROP POLICY fence ON syncstate.sync_state;
		CREATE TRIGGER pass BEFORE UPDATE ON syncstate.sync_state FOR EACH ROW EXECUTE FUNCTION pass()' ])
{
	my ($role, $how, $setup) = @$way;
	$node->safe_psql('postgres', $setup) if $setup ne '';

	# what writes
	like(noted($role, q{SELECT FROM syncstate.claim_due_syncs('google_calendar', 1)}), qr/UPDATE/, "a claim is noted, $how");
	my $user = next_user();
	like(noted($role, "SELECT FROM syncstate.renew_sync_lease($user, 'google_calendar', 5)"), qr/UPDATE/, "a renewal is noted, $how");
	like(noted($role, "SELECT FROM syncstate.checkpoint_sync($user, 'google_calendar', 5, 'page')"), qr/UPDATE/, "a checkpoint is noted, $how");
	like(noted($role, "SELECT FROM syncstate.mark_sync_completed($user, 'google_calendar', lease => 5)"), qr/UPDATE/, "a completion is noted, $how");
	$user = next_user();
	like(noted($role, "SELECT FROM syncstate.mark_sync_failed($user, 'google_calendar', 'broken', lease => 5)"), qr/UPDATE/, "a failure is noted, $how");
	$user = next_user();
	like(noted($role, qq{SELECT FROM syncstate.report_syncs(jsonb_build_array(jsonb_build_object('user_id', $user,
			'source', 'google_calendar', 'lease', 5, 'outcome', 'completed')))}), qr/UPDATE/, "a batch is noted, $how");
	like(noted($role, "SELECT FROM syncstate.mark_sync_started($user, 'google_calendar')"), qr/UPDATE/, "a start is noted, $how");
	like(noted($role, "SELECT FROM syncstate.pause_sync($user, 'google_calendar')"), qr/UPDATE/, "a pause is noted, $how");

	# what would have
	like(noted($role, q{SELECT FROM syncstate.claim_due_syncs('google_gmail')}), qr/SELECT|UPDATE/, "a claim of nothing is noted, $how");
	like(noted($role, qq{SELECT try('SELECT FROM syncstate.mark_sync_completed($user, ''google_calendar'', lease => 4)')}), qr/SELECT|UPDATE/,
		"a report that comes too late is noted, $how");

	# what only looks
	is(noted($role, q{SELECT FROM syncstate.get_users_needing_sync('google_calendar')}), 'SELECT', "get_users_needing_sync() is noted, $how");
	is(noted($role, 'SELECT syncstate.next_sync_due()'), 'SELECT', "next_sync_due() is noted, $how");

	# and several in one statement
	like(noted($role, q{SELECT FROM syncstate.next_sync_due('google_gmail'), syncstate.claim_due_syncs('google_calendar', 1)}), qr/UPDATE/,
		"a claim after a look is noted, $how");
}

# What is told of them is written as the owner.  pgaudit passes over what is done
# as a role of which the session's is no member: here it is the owner's.
my $owner = $node->safe_psql('postgres', 'SELECT current_user');
$node->safe_psql('postgres', q{DROP TRIGGER pass ON syncstate.sync_state;
	SELECT syncstate.set_sync_policy('google_tasks', '{"keep_runs": "all"}')});
my $row = q{u(1), 'google_tasks'};
is(noted($owner, "SELECT FROM syncstate.mark_sync_started($row)", 'sync_(?:event|run)'), '', 'a start tells nothing');
like(noted($owner, "SELECT FROM syncstate.mark_sync_completed($row)", 'sync_event'), qr/INSERT/, 'an event is noted');
$node->safe_psql('postgres', "SELECT FROM syncstate.mark_sync_started($row)");
like(noted($owner, "SELECT FROM syncstate.mark_sync_failed($row, 'broken')", 'sync_run'), qr/INSERT/, 'a run is noted');
like(noted('worker', 'SELECT FROM syncstate.take_sync_events()', 'sync_event'), qr/DELETE/, 'events that are taken are noted');
like(noted('worker', 'SELECT FROM syncstate.take_sync_events()', 'sync_event'), qr/DELETE/, 'and those that might have been');
$node->safe_psql('postgres', "SELECT syncstate.grant_user('fenced')");
is(noted('fenced', 'SELECT FROM syncstate.my_sync_runs', 'sync_run'), 'SELECT', 'a user who looks at their runs is noted');

$node->stop;
done_testing();
