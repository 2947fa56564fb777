# A call needs no more memory for the rows that it visits and passes over: it
# forgets each before it looks at the next.  Long resources are compressed in
# the index, and in the table where the row is wide, so each visit has to
# decompress one.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'no /proc/self/status here, which tells how much memory a process had'
  unless -r '/proc/self/status' && slurp_file('/proc/self/status') =~ /^VmPeak:/m;

my $few = 500;
my $many = 20_000;

# Decompressed resources of many rows are 20 MB; a call may take so much more
# than it took for a few, for whatever grows by blocks.
my $allowed = 4_000;    # kB

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\nautovacuum = off");
$node->start;

# One user has many resources, all of them due long ago and held by a worker
# until tomorrow: a walk passes over each.  Every fourth row is wide.
$node->safe_psql('postgres', <<"EOSQL");
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
CREATE FUNCTION fill(source syncstate.sync_source, rows integer) RETURNS void LANGUAGE sql AS \$\$
	INSERT INTO syncstate.sync_state (user_id, source, resource, status, lease, lease_expires_at, due_at, requested_at, sync_token)
	SELECT '00000000-0000-4000-8000-000000000001', source, lpad(n::text, 965, 'x'), 'syncing', 1, '2030-01-02Z', '2029-12-31Z', '2029-12-31Z',
		CASE WHEN n % 4 = 0 THEN (SELECT string_agg(md5((n * 100 + i)::text), '') FROM generate_series(1, 50) AS i) END
	FROM generate_series(1, rows) AS n
\$\$;
SELECT fill('google_tasks', $few), fill('google_calendar', $many);
-- another user's is due, so that there is an answer
INSERT INTO syncstate.sync_state (user_id, source, due_at)
SELECT '00000000-0000-4000-8000-000000000002', s, '2029-12-31 01:00Z' FROM unnest(ARRAY['google_tasks', 'google_calendar']::syncstate.sync_source[]) AS s;
CREATE POLICY fence ON syncstate.sync_state AS RESTRICTIVE TO PUBLIC USING (length(resource) < 2000);
CREATE ROLE fenced;
SELECT syncstate.grant_worker('fenced');
EOSQL
is( $node->safe_psql('postgres', q{SELECT count(*) > 0, bool_and(pg_column_size(resource) < 100) FROM syncstate.sync_state WHERE sync_token IS NOT NULL}),
	't|t', 'resources of wide rows are compressed in the table');
cmp_ok($node->safe_psql('postgres', q{SELECT pg_relation_size('syncstate.sync_state_due')}),
	'<', 200 * ($many + $few), '... and all in the index');

# The highest that the process' memory has been, in kB; memory that is shared
# is in it from the beginning.
sub peak
{
	my ($pid) = @_;
	my ($peak) = slurp_file("/proc/$pid/status") =~ /^VmPeak:\s+(\d+) kB/m;
	return $peak;
}

# What a call of a new session for many rows takes more than it took for a few;
# $per_row bytes for each row that it returns or writes are no waste.
sub check
{
	my ($name, $role, $call, $answer, $per_row) = @_;
	my $session = $node->background_psql('postgres');
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	chomp $pid;
	my $run = sub {
		my $source = shift;
		my $got = $session->query_safe("SET ROLE none; BEGIN; SET LOCAL syncstate.clock = '2030-01-01Z'; SET LOCAL ROLE $role; "
			  . sprintf($call, $source) . '; ROLLBACK');
		$got =~ s/\n+\z//;
		return $got;
	};
	is($run->('google_tasks'), $answer, "$name visits few rows") for 1 .. 2;
	my $before = peak($pid);
	is($run->('google_calendar'), $answer, "$name visits many");
	my $more = peak($pid) - $before;
	cmp_ok($more, '<', $allowed + ($per_row // 0) * $many / 1024, "$name takes no more memory for them");
	note("$name: $more kB");
	$session->quit;
	return;
}

# by which the measure is measured
check('a plain SELECT', 'none', q{SELECT right(user_id::text, 1) FROM syncstate.sync_state WHERE source = '%s' AND length(resource) = 0}, '2');
foreach my $role ('none', 'fenced')
{
	my $as = $role eq 'none' ? '' : ' within a policy';
	check("get_users_needing_sync()$as", $role, q{SELECT right(g::text, 1) FROM syncstate.get_users_needing_sync('%s') AS g}, '2');
	check("claim_due_syncs()$as", $role, q{SELECT right(user_id::text, 1) FROM syncstate.claim_due_syncs('%s', 5)}, '2');
}

# It looks until it finds what is due
$node->safe_psql('postgres', q{DELETE FROM syncstate.sync_state WHERE resource = ''});
foreach my $role ('none', 'fenced')
{
	my $as = $role eq 'none' ? '' : ' within a policy';
	check("next_sync_due()$as", $role, q{SELECT syncstate.next_sync_due('%s') AT TIME ZONE 'UTC'}, '2030-01-02 00:00:00');
}

# Calls that make or change rows by statements keep nothing of these.
$node->safe_psql('postgres', qq{DELETE FROM syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, resource)
	SELECT md5('google_tasks')::uuid, 'google_contacts'::syncstate.sync_source, n::text FROM generate_series(1, $few) AS n
	UNION ALL SELECT md5('google_calendar')::uuid, 'google_contacts', n::text FROM generate_series(1, $many) AS n});
check('request_account()', 'none', q{SELECT count(*) > 0 FROM syncstate.request_account(md5('%s')::uuid)}, 't', 500);
$many = 10_000;    # a list has no more
check('set_sync_resources()', 'none', qq{SELECT count(*) > 0 FROM syncstate.set_sync_resources(md5('lists')::uuid, '%1\$s',
	ARRAY(SELECT n::text FROM generate_series(1, CASE '%1\$s' WHEN 'google_tasks' THEN $few ELSE $many END) AS n))}, 't', 2000);

$node->stop;
done_testing();
