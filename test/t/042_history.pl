# Many sessions call everything at once, by the real clock, at all isolation
# levels, with savepoints and rollbacks, leases that run out and reports that
# come too late.  Every call is logged, and a judge decides over the history:
# test/history.  So for push channels, which workers open, renew and stop at once.
#
#	SYNCSTATE_HISTORY_SECONDS	how long, in rounds of 10 s; default 4
#	SYNCSTATE_HISTORY_SEED		instead of a random one
use strict;
use warnings;

use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{SYNCSTATE_HISTORY_SECONDS} || 4;
my @seed = defined $ENV{SYNCSTATE_HISTORY_SEED} ? ('--seed', $ENV{SYNCSTATE_HISTORY_SEED}) : ();

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<'EOCONF');
deadlock_timeout = 50ms
# so many serializable transactions at a time need room for what they have read
max_connections = 400
max_pred_locks_per_transaction = 1000
log_min_messages = fatal
EOCONF
$node->start;

# Debian's own Python, which has its psycopg
my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';

# a few sessions, and so many that they share out what there is in the lanes
foreach my $workers (8, 30)
{
	my ($out, $err);
	my $ok = run_log([ $python, '-B', dirname(__FILE__) . '/../history/history.py',
			$node->connstr('postgres') . ' user=' . getpwuid($<), '--seconds', $workers == 30 ? $seconds / 2 : $seconds, '--workers', $workers, @seed ],
		'>', \$out, '2>', \$err);
	note $out if $ok;
	diag $out, $err unless $ok;
	ok($ok, "$workers workers: the judge found nothing to object to, and objected to every fault");
	like($out, qr/^seed \d+/, '... the seed was printed');
	like($out, qr/^all rounds are as promised$/m, '... every round was judged');
	cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM syncstate.sync_lane WHERE mark_at > '-infinity'}),
		'>', 0, '... and they drew') if $workers == 30;
}

my ($out, $err);
my $ok = run_log([ $python, '-B', dirname(__FILE__) . '/../history/channels.py',
		$node->connstr('postgres') . ' user=' . getpwuid($<), '--seconds', $seconds / 2, @seed ],
	'>', \$out, '2>', \$err);
note $out if $ok;
diag $out, $err unless $ok;
ok($ok, 'push channels: the judge found nothing to object to, and objected to every fault');
like($out, qr/^all channels are as promised$/m, '... and it was judged');

$node->stop;
done_testing();
