# What a call costs does not depend on the size of the table, nor on what the
# planner believes about it.  Counted in buffers touched, not in time.  And the
# hot path writes no index: claims, renewals and checkpoints are HOT.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $small = 10_000;
my $large = $ENV{SYNCSTATE_TEST_ROWS} || 1_000_000;

# No autovacuum: nobody corrects the statistics, and nobody tidies up.
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<'EOF');
autovacuum = off
max_wal_size = 4GB
EOF
$node->start;

$node->safe_psql('postgres', <<'EOSQL');
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
ANALYZE syncstate.sync_state;	-- it is empty, says the planner from now on
CREATE TABLE held (user_id uuid, source syncstate.sync_source, lease bigint);
EOSQL

# Due times lie in another order than rows and users do, so that each row of a
# batch is on a page of its own.
sub fill
{
	my ($from, $to) = @_;
	$node->safe_psql('postgres', <<"EOSQL");
INSERT INTO syncstate.sync_state (user_id, source, due_at)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'google_calendar', now() - interval '1 h' - hashint4(n) % 1000000 * interval '1 ms'
FROM generate_series($from, $to) AS n
EOSQL
	return;
}

# The buffers that a query touches, or rather its node over a function, where
# there is one.
sub buffers
{
	my ($session, $query) = @_;
	my $plan = decode_json($session->query_safe(
		"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) $query"))->[0]{Plan};
	my $node = $plan;

	$node = $node->{Plans}[0] while $node->{Plans} && !$node->{'Function Name'};
	$node = $plan unless $node->{'Function Name'};
	return $node->{'Shared Hit Blocks'} + $node->{'Shared Read Blocks'};
}

# What a claim costs; what it took is kept.
sub claim
{
	my ($session, $args) = @_;
	return buffers($session,
		"INSERT INTO held SELECT user_id, source, lease FROM syncstate.claim_due_syncs($args)");
}

# Completes all that is held.
sub complete
{
	my $session = shift;
	$session->query_safe(
		'SELECT count(*) FROM held AS h, syncstate.mark_sync_completed(h.user_id, h.source, lease => h.lease)');
	$session->query_safe('TRUNCATE held');
	return;
}

my $compiled;

# What each call costs in a session, the first times left out: then catalogs
# are read and statements planned.
sub costs
{
	my @settings = @_;
	my $session = $node->background_psql('postgres');
	my %costs;

	$session->query_safe("SET $_") foreach @settings;
	for my $time (1 .. 3)
	{
		$costs{'next due'} = buffers($session, 'SELECT syncstate.next_sync_due()');
		$costs{look} = buffers($session,
			"SELECT * FROM syncstate.get_users_needing_sync('google_calendar', max_rows => 10)");
		$costs{claim} = claim($session, "'google_calendar', 100");
		$costs{'claim of one'} = claim($session, 'max_rows => 1');
		complete($session);

		my ($user, $lease) = split /\|/, $session->query_safe(
			"SELECT user_id, lease FROM syncstate.claim_due_syncs('google_calendar', 1)");
		my $row = "'$user', 'google_calendar'";
		my $held = "$row, lease => $lease";
		$costs{renew} = buffers($session, "SELECT syncstate.renew_sync_lease($held)");
		$costs{checkpoint} =
		  buffers($session, "SELECT syncstate.checkpoint_sync($held, page_token => 'x')");
		$costs{complete} = buffers($session, "SELECT syncstate.mark_sync_completed($held)");
		$costs{request} = buffers($session, "SELECT syncstate.request_sync($row)");
		$costs{start} = buffers($session, "SELECT syncstate.mark_sync_started($row)");
		$costs{fail} = buffers($session, "SELECT syncstate.mark_sync_failed($row, 'x')");
	}

	# A plan that looks dear is compiled at each execution, unless it may not be:
	# no buffers, but a thousand times the time.
	$compiled ||= $session->query_safe("SELECT pg_read_file('/proc/self/maps') ~ 'llvmjit'") eq 't'
	  if -e '/proc/self/maps';
	$session->quit;
	return \%costs;
}

# An index grows by a level or two while a table grows a hundredfold; a call
# goes down a few indexes.  The claim of 100 rows goes down once, too.
sub same_costs
{
	my ($costs, $reference, $what) = @_;
	my @dear = grep { $costs->{$_} > $reference->{$_} * 1.3 + 30 } sort keys %$costs;

	ok(!@dear, "$what: no call costs more")
	  or diag(map { "$_: $costs->{$_} buffers, not $reference->{$_}\n" } @dear);
	return;
}

fill(1, $small);
my $reference = costs();
note("$_: $reference->{$_} buffers") foreach sort keys %$reference;
cmp_ok($reference->{claim}, '<', 100 * 15, 'a claimed row costs less than 15 buffers');
cmp_ok($reference->{$_}, '<', 300, "call \"$_\" costs less than 300 buffers")
  foreach grep { $_ ne 'claim' } sort keys %$reference;

fill($small + 1, $large);
is($node->safe_psql('postgres', "SELECT reltuples FROM pg_class WHERE oid = 'syncstate.sync_state'::regclass"),
	0, 'the planner believes that the table is empty');
my $full = costs();
note("$_: $full->{$_} buffers") foreach sort keys %$full;
same_costs($full, $reference, "$large rows");

# Worse: statistics that lie, and settings that forbid
foreach my $lie (
	'reltuples = -1, relpages = 0',
	'reltuples = 1, relpages = 1000000',
	'reltuples = 1e12, relpages = 1')
{
	$node->safe_psql('postgres',
		"UPDATE pg_class SET $lie WHERE oid IN ('syncstate.sync_state'::regclass, 'syncstate.sync_state_pkey'::regclass, 'syncstate.sync_state_due'::regclass, 'syncstate.sync_state_requested'::regclass)");
	same_costs(costs(), $reference, $lie);
}
same_costs(costs(@$_), $reference, join(', ', @$_)) foreach (
	[ 'enable_indexscan = off', 'enable_indexonlyscan = off', 'enable_bitmapscan = off' ],
	[ 'enable_tidscan = off', 'enable_bitmapscan = off' ],
	[ 'random_page_cost = 10000', 'cpu_index_tuple_cost = 10000' ],
	[ 'plan_cache_mode = force_custom_plan' ],
	[ 'plan_cache_mode = force_generic_plan' ]);
$node->safe_psql('postgres', 'ANALYZE syncstate.sync_state');
same_costs(costs(), $reference, 'true statistics');

ok(!$compiled, 'nothing was compiled on the way');

# The first call of a session reads catalogs besides, whatever the size
my $session = $node->background_psql('postgres');
cmp_ok(claim($session, "'google_calendar', 100"),
	'<', $reference->{claim} * 1.3 + 3000, 'the first claim of a session');
complete($session);

# However many syncs are in flight before the rows that are due, a call looks
# at a bounded number of them: a sweep visits 2,000 in a step, and each visit
# touches a page of the table, and now and then one of the index
my $step = 2_000 * 1.2;
claim($session, "'google_calendar', 10000") foreach 1 .. 2;
my $dearest = 0;
foreach (1 .. 30)
{
	my $cost = claim($session, "'google_calendar', 100");
	$dearest = $cost if $cost > $dearest;
}
cmp_ok($dearest, '<', $reference->{claim} * 1.3 + $step, 'a claim among 20,000 syncs in flight');
cmp_ok(buffers($session, 'SELECT syncstate.next_sync_due()'),
	'<', 4 * $step, 'the next due time among 20,000 syncs in flight');
complete($session);
$session->quit;

# ---------------------------------------------------------------- HOT updates

# Updates of the table so far, and how many of them were HOT.
sub updates
{
	my $session = shift;
	$session->query_safe('SELECT pg_stat_force_next_flush()');
	return split /\|/, $node->safe_psql('postgres',
		"SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'syncstate.sync_state'::regclass");
}

$session = $node->background_psql('postgres');
my @before = updates($session);
my ($updated, $hot);
my $requested_size = "SELECT pg_relation_size('syncstate.sync_state_requested')";

sub count_updates
{
	my @now = updates($session);
	($updated, $hot) = ($now[0] - $before[0], $now[1] - $before[1]);
	@before = @now;
	return;
}

# Rows of the same page in one batch, too: the due times of some are in order
$node->safe_psql('postgres', <<'EOSQL');
DELETE FROM syncstate.sync_state;
VACUUM syncstate.sync_state;
INSERT INTO syncstate.sync_state (user_id, source, due_at, sync_token)
SELECT md5(n::text)::uuid, s, now() - interval '1 h' + CASE s WHEN 'google_calendar' THEN n ELSE hashint4(n) % 10000 END * interval '1 ms', repeat('x', 40)
FROM unnest(ARRAY['google_calendar', 'google_tasks']::syncstate.sync_source[]) AS s, generate_series(1, 5000) AS n;
EOSQL
my $size = $node->safe_psql('postgres', $requested_size);

count_updates();
$session->query_safe(
	"INSERT INTO held SELECT user_id, source, lease FROM syncstate.claim_due_syncs(max_rows => 100)")
  foreach 1 .. 20;
count_updates();
is($updated, 2000, 'a claim updates each row once');
cmp_ok($hot, '>=', 0.97 * $updated, 'claims are HOT');

my $rows = $session->query_safe('SELECT count(*) FROM held');
for my $time (1 .. 5)
{
	$session->query_safe(
		'SELECT count(*) FROM held AS h, syncstate.renew_sync_lease(h.user_id, h.source, h.lease)');
	$session->query_safe(
		"SELECT count(*) FROM held AS h, syncstate.checkpoint_sync(h.user_id, h.source, h.lease, 'page $time', $time, 5)");
}
count_updates();
is($updated, 10 * $rows, 'a heartbeat updates the row once');
cmp_ok($hot, '>=', 0.95 * $updated, 'renewals and checkpoints are HOT');

$session->query_safe(
	'SELECT count(*) FROM held AS h, syncstate.mark_sync_completed(h.user_id, h.source, lease => h.lease)');
count_updates();
is($updated, $rows, 'a completion updates the row once');
is($hot, 0, 'a completion moves the row in the due lane');
is($node->safe_psql('postgres', $requested_size), $size, 'and leaves the priority lane alone');

# The second request of a row writes nothing
my $requests = "SELECT count(*) FROM held AS h WHERE syncstate.request_sync(h.user_id, h.source)";
$session->query_safe($requests);
count_updates();
is($updated, $rows, 'a request updates the row once');
$session->query_safe($requests);
count_updates();
is($updated, 0, 'a repeated request writes nothing');

$session->quit;
$node->stop;
done_testing();
