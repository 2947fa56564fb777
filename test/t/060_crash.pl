# Clients call all there is at random, and something is killed: a backend, the
# server at once or process by process, the clients.  Afterwards every call
# that was acknowledged is there, as it was told, none is that failed or was
# rolled back, what is in doubt is there as a whole or not at all, and no
# fencing number went back.  In the end all leases run out and all rows come
# back.
#
#	SYNCSTATE_CRASH_ROUNDS	how many kills (otherwise one of each kind)
#	SYNCSTATE_SEED			the seed that a failure told
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../crash";
use Load;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @kinds = ('a backend', 'the server', 'the postmaster', 'all processes', 'twice', 'the clients');
my $rounds = $ENV{SYNCSTATE_CRASH_ROUNDS} || @kinds;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$node->append_conf('postgresql.conf', 'log_statement = none');
$node->append_conf('postgresql.conf', 'autovacuum_naptime = 1');
$node->start;

my $load = Load->new(4);
$load->prepare($node);

# After the postmaster was killed, its children need a moment to notice, and
# no new one starts until they have.
sub start
{
	foreach (1 .. 300)
	{
		return if $node->start(fail_ok => 1);
		select(undef, undef, undef, 0.1);
		$node->{_pid} = undef; # the old postmaster's, from its file

		# Where nobody reaps it (a container without init), it seems alive.
		my $file = $node->data_dir . '/postmaster.pid';
		my ($pid) = -e $file ? slurp_file($file) =~ /^(\d+)/ : ();
		unlink($file, $node->host . '/.s.PGSQL.' . $node->port . '.lock')
		  if $pid && -e "/proc/$pid/status" && slurp_file("/proc/$pid/status") =~ /^State:\s+Z/m;
	}
	BAIL_OUT('the server does not start');
}

my %kill = (
	'a backend' => sub {
		my $pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1});
		kill(9, $pid) if $pid;
		$load->wait_for_end;
		$node->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
	},
	'the server' => sub {
		$node->stop('immediate');
		$load->wait_for_end;
		start();
	},
	'the postmaster' => sub {
		$node->kill9;
		$load->wait_for_end;
		start();
	},
	'all processes' => sub {
		my @pids = split(/\n/, $node->safe_psql('postgres', 'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()'));
		kill(9, @pids);
		$node->kill9;
		$load->wait_for_end;
		start();
	},
	# again as soon as it is up, with a checkpoint before
	'twice' => sub {
		$node->safe_psql('postgres', 'CHECKPOINT');
		$load->wait_for(20);
		$node->stop('immediate');
		$load->wait_for_end;
		start();
		$load->start($node);
		$load->wait_for(1);
		$node->kill9;
		$load->wait_for_end;
		start();
	},
	'the clients' => sub {
		$load->wait_for_end('KILL');
	});

foreach my $round (1 .. $rounds)
{
	my $kind = $kinds[ ($round - 1) % @kinds ];
	$load->start($node);
	$load->wait_for(100);
	$kill{$kind}->();
	$load->wait_for_silence($node);
	$load->check($node, "round $round, $kind");
}

# The test is no test without these.
my $calls = $node->safe_psql('postgres', q{SELECT string_agg(DISTINCT call, ', ' ORDER BY call) FROM journal});
is($calls, 'checkpoint, claim, clear, clear by hand, complete, connect, connect account, disconnect, disconnect account, fail, limit, made, pause, pause account, release, renew, report, request, request account, resources, resume, resume account, start, update, write',
	'each call was made') if $rounds >= @kinds;
cmp_ok($load->count('refused'), '>', 0, 'some calls were refused');
cmp_ok($load->count('undone'), '>', 0, 'some were rolled back');
$load->check_that_all_come_back($node);

diag('SYNCSTATE_SEED=' . $load->seed) unless Test::More->builder->is_passing;
$node->stop;
done_testing();
