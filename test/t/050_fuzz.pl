# Every argument of every function, direct writes and the settings, with
# malformed, extreme and mutated values: test/fuzz/fuzz, which says more.
#
#	SYNCSTATE_FUZZ_CALLS	how many calls; 3000
#	SYNCSTATE_FUZZ_SEED		which ones; chosen and printed
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $calls = $ENV{SYNCSTATE_FUZZ_CALLS} // 3000;
my $seed = $ENV{SYNCSTATE_FUZZ_SEED} // int(rand(2**31));

my $node = PostgreSQL::Test::Cluster->new('fuzz');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\nautovacuum = off");
$node->start;
my $server = $node->safe_psql('postgres',
	q{SELECT pg_postmaster_start_time()});

local $ENV{PGHOST} = $node->host;
local $ENV{PGPORT} = $node->port;
local $ENV{PGDATABASE} = 'postgres';
my ($out, $err) = ('', '');
my $ok = IPC::Run::run(
	[ 'test/fuzz/fuzz', '--calls', $calls, '--seed', $seed ],
	'>', \$out, '2>', \$err);
diag($out . $err) unless $ok;
note($out);
ok($ok, "$calls calls with seed $seed");

my ($judged) = $out =~ /^# (\d+) statements judged/m;
cmp_ok($judged // 0, '>=', $calls, 'all of them were made');

# A crash would also show as a restart, and an assertion in the log.
is($node->safe_psql('postgres', q{SELECT pg_postmaster_start_time()}),
	$server, 'the server is the one that was started');
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC|TRAP:|was terminated by signal|server process .* exited/,
	'no crash in the log');
unlike($log, qr/WARNING:.*(leak|not closed|not owned|still active)/,
	'no leak warned of in the log');

$node->stop;
done_testing();
