# The workers of examples/ do what they say: those in Python and Node that run
# several syncs at a time, and the small ones in Node and shell.  Each is set
# against the demo's provider, and judged by a comparison of all items.
# They wait most of the time, so they run at the same time, each in a database
# of its own.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('small_workers');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE authenticated');    # else each would make and drop it
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

my %needs = (
	'worker.py' => [ 'python3', '-c', 'import psycopg' ],
	'small_worker.mjs' => [ 'node', '-e', q{require.resolve('pg', { paths: ['test/node'] })} ],
	'small_worker.sh' => [ 'curl', '--version' ],
	'node_worker.mjs' => [ 'node', '-e', q{require.resolve('pg', { paths: ['test/node'] })} ]);
my %running;

# The README shows the core of one of them.
my ($shown) = slurp_file('README.md') =~ /^```js\n(.*?)^```$/ms;
ok(defined $shown && index(slurp_file('examples/node_worker.mjs'), $shown) >= 0,
	'the worker in the README is in node_worker.mjs');

foreach my $kind (sort keys %needs)
{
	my $lines = () = slurp_file("examples/$kind") =~ /\n/g;

	cmp_ok($lines, '<', $kind eq 'worker.py' ? 150 : 120, "$kind is small");
	my ($out, $error);
	if (!IPC::Run::run($needs{$kind}, '>', \$out, '2>', \$error))
	{
		fail("$kind can run here") or diag $error;
		next;
	}
	my $job = $running{$kind} = {};
	$job->{run} = IPC::Run::start(
		[ 'test/demo/check_small_workers.py', "examples/$kind" ],
		'<', \undef, '>', \$job->{out}, '2>', \$job->{error});
}
foreach my $kind (sort keys %running)
{
	my $job = $running{$kind};
	my $finished = $job->{run}->finish;
	my @passed = $job->{out} =~ /^ok \d+ - (.*)$/mg;
	my ($plan) = $job->{out} =~ /^1\.\.(\d+)$/m;

	pass("$kind: $_") foreach @passed;
	ok($finished && defined $plan && $plan == @passed, "$kind: all of it")
	  or diag "$job->{out}\n$job->{error}";
}

$node->stop;
done_testing();
