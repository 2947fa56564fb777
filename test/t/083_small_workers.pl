# The small workers of examples/, in Python, Node and shell, do what they say:
# each against the demo's provider, and judged by a comparison of all items.
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
	py => [ 'python3', '-c', 'import psycopg' ],
	mjs => [ 'node', '-e', q{require.resolve('pg', { paths: ['test/node'] })} ],
	sh => [ 'curl', '--version' ]);
my %running;

foreach my $kind (sort keys %needs)
{
	my $lines = () = slurp_file("examples/small_worker.$kind") =~ /\n/g;

	cmp_ok($lines, '<', 120, "small_worker.$kind is small");
	my ($out, $error);
	if (!IPC::Run::run($needs{$kind}, '>', \$out, '2>', \$error))
	{
		fail("small_worker.$kind can run here") or diag $error;
		next;
	}
	my $job = $running{$kind} = {};
	$job->{run} = IPC::Run::start(
		[ 'test/demo/check_small_workers.py', "examples/small_worker.$kind" ],
		'<', \undef, '>', \$job->{out}, '2>', \$job->{error});
}
foreach my $kind (sort keys %running)
{
	my $job = $running{$kind};
	my $finished = $job->{run}->finish;
	my @passed = $job->{out} =~ /^ok \d+ - (.*)$/mg;
	my ($plan) = $job->{out} =~ /^1\.\.(\d+)$/m;

	pass("small_worker.$kind: $_") foreach @passed;
	ok($finished && defined $plan && $plan == @passed, "small_worker.$kind: all of it")
	  or diag "$job->{out}\n$job->{error}";
}

$node->stop;
done_testing();
