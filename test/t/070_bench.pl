# The benchmark still runs: all of its parts, on tables so small that the
# numbers mean nothing.  It ends with an error itself when a cycle was not
# counted, or a row was had by two workers at a time.
use strict;
use warnings;

use File::Basename;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $run = dirname(__FILE__) . '/../bench/run';
my $results = "$PostgreSQL::Test::Utils::tmp_check/bench";
my ($out, $err);

sub bench
{
	my @args = @_;
	return run_log([ 'python3', '-B', $run, '--results', $results, '--no-install', @args ], '>', \$out, '2>', \$err);
}

sub parts
{
	my ($rivals, @parts) = @_;
	ok(bench('--size', 'smoke', '--rivals', $rivals, map { ('--part', $_) } @parts), "$rivals: @parts")
		or diag $out, $err;
	return;
}

sub rounds
{
	my ($part, %where) = @_;
	my $all = decode_json(slurp_file("$results/$part.json"))->{rounds};
	return grep { my $round = $_; !grep { $round->{$_} ne $where{$_} } keys %where } @$all;
}

# npm's packages only where somebody installed them
SKIP:
{
	skip 'graphile-worker and pg-boss are not installed', 3 unless -d dirname($run) . '/rivals/node_modules';
	parts('d,e,ours', 'cycles');
	is(scalar rounds('cycles', rival => $_), 2, "$_ made its rounds") foreach qw(d e);
}

parts('a,b,c,f,ours,ours-report', qw(cycles idle user));
foreach my $rival (qw(a b c f ours))
{
	foreach my $batch (1, 100)
	{
		my @rounds = rounds('cycles', rival => $rival, batch => $batch);
		is(scalar @rounds, 1, "$rival made a round in batches of $batch");
		my $bad = grep { !($_->{cycles} >= 50 && $_->{cpu} > 1 && $_->{wal_bytes} > 100 && $_->{claim_p50} > 0) } @rounds;
		is($bad, 0, 'with cycles that cost something');
	}
}

parts('ours-report,runs', 'runs');
is(scalar rounds('runs', rival => $_), 2, "$_ made its rounds") foreach qw(ours-report runs);

parts('b,c,f,ours', 'held');

# Many sessions.
parts('b,c,f,ours-report,sources', qw(crowd late paced sources latency));
foreach my $part (qw(crowd late))
{
	foreach my $rival (qw(b c f ours-report))
	{
		my @rounds = map { rounds($part, rival => $rival, clients => $_) } 1, 8;
		is_deeply([ map { $_->{claims} >= 20 * $_->{clients} && $_->{cpu} > 1 } @rounds ],
			[ 1, 1 ], "$part: each session of $rival claimed 20 times");
	}
	my ($one) = rounds($part, rival => 'ours-report', clients => 1);
	my ($floor) = rounds($part, rival => 'f', clients => 1);
	cmp_ok($one->{visits}, '>=', 1, 'a row that is taken was visited');
	cmp_ok($one->{visits}, '<', 3, 'and a session alone visits few others');
	is($floor->{visits}, 0, 'the floor walks by no index');
}
foreach my $backlog (1, 0)
{
	my @rounds = grep { $_->{rival} eq 'ours-report' && $_->{backlog} == $backlog } rounds('paced');
	is_deeply([ map { $_->{clients} } @rounds ], [ 2, 8 ], 'few and many sessions ' . ($backlog ? 'at a backlog' : 'without one'));
	is_deeply([ grep { $_->{seconds} < $_->{pause} / 2 * ($_->{claims} / $_->{clients} - 1) } @rounds ], [], 'pause between claims');
}
is(scalar rounds('sources', rival => 'sources'), 2, 'many sources made their rounds');
my $latency = decode_json(slurp_file("$results/latency.json"));
my %found;
$found{ $_->{what} }++ foreach @{ $latency->{found} };
is_deeply(\%found, { 'a request' => 1, 'an expired lease' => 1, 'a late commit' => 1 }, 'rows were found behind the marks');
is_deeply([ grep { $_->{seconds} <= 0 } @{ $latency->{together} } ], [], 'rows are not claimed before they are due');

# Through the router, where it can be.
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my ($sharedir) = `$pg_config --sharedir` =~ /(.*)/;
if (-e "$sharedir/extension/plproxy.control")
{
	parts('ours,ours-report,router2,router2-report', 'router');
	foreach my $rival (qw(router2 router2-report))
	{
		my @rounds = rounds('router', rival => $rival, batch => 100);
		is(scalar @rounds, 1, "$rival made a round");
		my $bad = grep { !($_->{cpu} > 1 && $_->{shards} > 1 && $_->{wal_bytes} > 100) } @rounds;
		is($bad, 0, 'at the cost of the router and of the shards');
	}
	is_deeply([ map { $_->{shards} } rounds('router', rival => 'ours', batch => 100) ], [0], 'there are no shards without it');
}
else
{
	ok(bench('--size', 'smoke', '--part', 'router'), 'without PL/Proxy there is no router to measure');
	like($out, qr/^left out: PL\/Proxy is not installed/m, 'which is said');
}

# A claim without a lock hands rows out twice, and that is seen.
parts('a,c,ours', 'clients');
my ($careless) = rounds('clients', rival => 'a', clients => 8);
cmp_ok($careless->{double}, '>', 0, 'rows that are claimed twice are noticed');
is_deeply([ grep { $_->{double} + $_->{lost} > 0 } grep { $_->{rival} ne 'a' } rounds('clients') ],
	[], 'where no rival does that');

# and so is a cycle that nobody counted
ok(!bench('--size', 'smoke', '--part', 'sync', '--rivals', 'b', '--forget-one'), 'a cycle that is not counted is an error');
like($err, qr/the workers made \d+ claims and hold 0 rows, the table says/, 'which says so');

ok(bench('--report'), 'the report is written') or diag $err;
my $report = slurp_file("$results/RESULTS.md");
like($report, qr/^\| CPU per cycle to b, SKIP LOCKED in PL\/pgSQL, batch 100 +\| 0\.5 +\| \d+\.\d+/m,
	'it has ratios and their targets');
like($report, qr/^\| CPU per cycle to f, the floor, batch 10, 8 clients +\| 1\.3 +\| \d+\.\d+/m, 'those of many sessions, too');
foreach my $plot (qw(held crowd))
{
	like($report, qr/^!\[[^]]+\]\($plot\.svg\)$/m, "the plot $plot is there");
	like(slurp_file("$results/$plot.svg"), qr/<polyline .*points="[\d., ]+"\/>.*<\/svg>/s, 'and drawn');
}

# --report alone measures nothing
like(scalar(`make -n $_`), qr{test/bench/run (?:(?!--report)[^&])*&&.*--report}s, "make $_ measures before it reports")
	foreach qw(bench bench-full);

done_testing();
