# The endpoints for push, in Node and Python, and the worker that opens, renews
# and stops channels do what they say, against the demo's provider.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Not skipped: then nobody would notice that it is never run.
ok(run_log([ 'test/node/setup', '--check' ]), 'the npm packages are there')
  or do { diag 'run test/node/setup'; done_testing(); exit };

my $node = PostgreSQL::Test::Cluster->new('push_examples');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;
local @ENV{qw(PGHOST PGPORT)} = ($node->host, $node->port);

# One of our tests for each of its.
my ($out, $error) = ('', '');
my $ended = IPC::Run::run([ 'test/demo/check_push.py', '-v' ], '<', \undef, '>', \$out, '2>', \$error);
my $tests = 0;
while ($error =~ /^(test_\w+) \(__main__\.(\w+)\S*\) \.\.\. (\w+)$/mg)
{
	is($3, 'ok', "$2: $1");
	$tests++;
}
ok($ended, 'all of them ran') or diag $error;
cmp_ok($tests, '>', 15, 'and they are many');

$node->stop;
done_testing();
