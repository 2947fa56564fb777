# What a budget buys, in simulated weeks, against a fixed interval and an oracle
# that is told the rates, and what push channels are good for when messages are
# lost: the short version of "make simulate", with the same checks and a little
# more tolerance.  The clock is set and the seed is fixed, so that nothing is left
# to chance.
#
#	SYNCSTATE_SIMULATE_SEED		another seed; the limits are those of seed 1
use strict;
use warnings;

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{SYNCSTATE_SIMULATE_SEED} // 1;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;

local $ENV{PGHOST} = $node->host;
local $ENV{PGPORT} = $node->port;
local $ENV{PGUSER} = getpwuid($<);

# Debian's own Python, which has its psycopg
my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';
my ($out, $err);
my $ok = run_log([ $python, '-B', dirname(__FILE__) . '/../simulate/simulate.py',
		'--short', '--seed', $seed ], '>', \$out, '2>', \$err);
$ok ? note($err) : diag($err);

my @checks = $err =~ /^(kept|MISSED): (.+)$/mg;
is(@checks / 2, 13, 'everything was checked');
while (my ($kept, $what) = splice(@checks, 0, 2))
{
	is($kept, 'kept', $what);
}

# what lost messages put out of reach is measured, and not promised
my @goals = $err =~ /^goal (?:kept|MISSED): (.+)$/mg;
is(@goals, 1, 'and what is no promise');
note($_) foreach @goals;
ok($ok, 'the simulation went to its end and is content');

$node->stop;
done_testing();
