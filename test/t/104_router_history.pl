# As 042_history.pl, through a router, while its shards are restarted: many
# sessions call everything at once, every call is logged, and a judge decides
# over the history of each shard: test/history.
#
#	SYNCSTATE_HISTORY_SECONDS	how long, in rounds of 20 s; default 20
#	SYNCSTATE_HISTORY_SEED		instead of a random one
use strict;
use warnings;

use File::Basename;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();
# a call takes longer here, and what is rare has to happen to one user
my $seconds = $ENV{SYNCSTATE_HISTORY_SECONDS} || 20;
my @seed = defined $ENV{SYNCSTATE_HISTORY_SEED} ? ('--seed', $ENV{SYNCSTATE_HISTORY_SEED}) : ();

my $s = Shards->new(4, clusters => 1, real_leases => 1, conf => "log_min_messages = fatal\ndeadlock_timeout = 50ms\nmax_pred_locks_per_transaction = 1000\n");
my $me = getpwuid($<);

# Debian's own Python, which has its psycopg
my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';
my ($out, $err);
my $ok = run_log([ $python, '-B', dirname(__FILE__) . '/../history/history.py',
		$s->{router}->connstr('router') . " user=$me", (map { ('--shard', $s->connection($_) . " user=$me") } 0 .. 3),
		'--seconds', $seconds, '--round-seconds', 20, @seed ],
	'>', \$out, '2>', \$err);
note $out if $ok;
diag $out, $err unless $ok;
ok($ok, 'the judge found nothing to object to, and objected to every fault');
like($out, qr/^seed \d+/, 'the seed was printed');
like($out, qr/^all rounds are as promised$/m, 'every round was judged');
like($out, qr/^shards: restarts [1-9]/m, 'shards were restarted');

# and push channels, which workers open, renew and stop at once
$ok = run_log([ $python, '-B', dirname(__FILE__) . '/../history/channels.py',
		$s->{router}->connstr('router') . " user=$me", (map { ('--shard', $s->connection($_) . " user=$me") } 0 .. 3),
		'--seconds', $seconds / 4, @seed ],
	'>', \$out, '2>', \$err);
note $out if $ok;
diag $out, $err unless $ok;
ok($ok, 'push channels: the judge found nothing to object to, and objected to every fault');
like($out, qr/^all channels are as promised$/m, 'and they were judged');

$s->stop;
done_testing();
