# The second lesson of doc/tutorial.md: its commands are run in one shell, and what
# it says of their output is there.

use strict;
use warnings FATAL => 'all';

use Cwd;
use IO::Socket::INET;
use IPC::Run qw(run timeout);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($lesson) = slurp_file('doc/tutorial.md') =~ /^## A provider and a worker in 30 minutes\n(.*)/ms;
my @steps = $lesson =~ /^```sh\n(.*?)^```$/msg;
is(scalar @steps, scalar(() = $lesson =~ /^### Step /mg), 'each step has its commands');

my ($out, $error);
if (!run([ 'node', '-e', q{require.resolve('pg', { paths: ['test/node'] })} ], '>', \$out, '2>', \$error))
{
	fail('node and pg are here') or diag $error;
	done_testing();
	exit;
}

my $node = PostgreSQL::Test::Cluster->new('tutorial');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
$ENV{PGUSER} = getpwuid($>);
delete $ENV{$_} foreach grep { /_proxy$/i } keys %ENV;

# In a directory that looks like the tree: the lesson makes one in it.
my $tree = getcwd;
my $dir = PostgreSQL::Test::Utils::tempdir;
symlink("$tree/$_", "$dir/$_") or die "$_: $!" foreach qw(examples test);

my $socket = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die $!;
my $port = $socket->sockport;
close $socket;

my $script = join "echo '==== step'\n", @steps;
is($script =~ s/npm install pg\b/ln -s $tree\/test\/node\/node_modules ./g, 1, 'the package that it installs');
$script =~ s/8008/$port/g;
$script = "trap 'kill -9 \$(jobs -p) 2>/dev/null' EXIT\ncd $dir\n$script";
run([ 'bash', '-c', $script ], '<', \undef, '>&', \$out, timeout(300));
my (undef, undef, undef, $first, $changes, $cursor, $death, $revoked, $stop) = split /^==== step\n/m, $out;

like($first, qr/full sync, 1 items.*full sync, [1-9]\d* items/s, 'a first sync, of the list and of the calendar');
like($first, qr/example\.com +\| \w+ +\| +\d+ \| t\b/, 'and its row');
like($changes, qr/^ f +\| [tf] +\| completed +\| +4$/m, 'four changes');
like($cursor, qr/cursor_lost \| +1\b/, 'an event of the lost cursor');
like($cursor, qr/full sync, (\d+) items.*^ +\1$/ms, 'what the full sync did not list is gone');
like($death, qr/syncing \| \{"page":.*"done":10\}/, 'a worker in the middle');
like($death, qr/^ t +\| completed +\| +\d+\n t +\| lost +\|/m, 'is lost, and another one completes');
like($revoked, qr/(?:^.* \| auth +\|.*\n){2}/m, 'the account is parked');
is(scalar(() = $revoked =~ /^ parked \| auth$/mg), 1, 'one event tells it');
like($revoked, qr/^ \S*example\.com +\| \w+ +\| +0$/m, 'and it is back');
like($stop, qr/^ idle +\| +2\n\(1 row\)/m, 'no row is left syncing') or diag $out;

$node->stop;
done_testing();
