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

# The queues from npm are not among the rivals where they are not installed.
my $ok = run_log([ 'python3', '-B', $run, '--size', 'smoke', '--no-install', '--results', $results,
		map { ('--part', $_) } qw(cycles clients buffers idle user held) ],
	'>', \$out, '2>', \$err);
ok($ok, 'it ran') or diag $out, $err;

sub rounds
{
	my ($part, %where) = @_;
	my $all = decode_json(slurp_file("$results/$part.json"))->{rounds};
	return grep { my $round = $_; !grep { $round->{$_} ne $where{$_} } keys %where } @$all;
}

foreach my $rival (qw(a b c f ours))
{
	foreach my $batch (1, 100)
	{
		my @rounds = rounds('cycles', rival => $rival, batch => $batch);
		is(scalar @rounds, 1, "$rival made a round in batches of $batch");
		my $bad = grep { !($_->{cycles} >= 100 && $_->{cpu} > 1 && $_->{wal_bytes} > 100 && $_->{claim_p50} > 0) } @rounds;
		is($bad, 0, 'with cycles that cost something');
	}
}

# A claim without a lock hands rows out twice, and that is seen.
my ($careless) = rounds('clients', rival => 'a', clients => 8);
cmp_ok($careless->{double}, '>', 0, 'rows that are claimed twice are noticed');
is_deeply([ grep { $_->{double} + $_->{lost} > 0 } grep { $_->{rival} ne 'a' } rounds('clients') ],
	[], 'where no rival does that');

# and so is a cycle that nobody counted
$ok = run_log([ 'python3', '-B', $run, '--size', 'smoke', '--no-install', '--results', $results, '--part', 'cycles',
		'--rivals', 'b', '--forget-one' ],
	'>', \$out, '2>', \$err);
ok(!$ok, 'a cycle that is not counted is an error');
like($err, qr/the workers made \d+ claims and hold 0 rows, the table says/, 'which says so');

$ok = run_log([ 'python3', '-B', $run, '--report', '--results', $results ], '>', \$out, '2>', \$err);
ok($ok, 'the report is written') or diag $err;
my $report = slurp_file("$results/RESULTS.md");
like($report, qr/^\| CPU per cycle to b, SKIP LOCKED in PL\/pgSQL, batch 100 +\| 0\.5 +\| \d+\.\d+/m,
	'it has ratios and their targets');
like($report, qr/^!\[[^]]+\]\(held\.svg\)$/m, 'and plots');
like(slurp_file("$results/held.svg"), qr/<polyline .*points="[\d., ]+"\/>.*<\/svg>/s, 'that are drawn');

done_testing();
