# Load of clients that write down what they were told (client.py), and the
# comparison of what they were told with what the database has.
package Load;

use strict;
use warnings;

use File::Basename;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $here = dirname(__FILE__);

# How long to wait for anything before giving up.
my $patience = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;

sub new
{
	my ($class, $clients) = @_;
	my $seed = $ENV{SYNCSTATE_SEED} || int(rand(2**31));
	note("SYNCSTATE_SEED=$seed");
	srand($seed);
	return bless { clients => $clients, seed => $seed, pids => [], doubts => 0, dir => PostgreSQL::Test::Utils::tempdir() }, $class;
}

# Rows to work on, where time goes fast, and the journal.
sub prepare
{
	my ($self, $node) = @_;
	$node->safe_psql('postgres', q{
		CREATE EXTENSION syncstate;
		SELECT syncstate.register_sync_source('custom_crm')});
	$node->safe_psql('postgres', q{
		CREATE SEQUENCE journal_number;
		CREATE TABLE journal (number bigint PRIMARY KEY DEFAULT nextval('journal_number'), client int, n int, call text,
			user_id uuid, account text, source syncstate.sync_source, resource text, lease bigint, image text);
		SELECT syncstate.set_sync_policy(s, '{"sync_interval": "1 s", "lease_time": "1 s", "retry_base": "1 s",
				"retry_cap": "1 s", "rate_limit_wait": "1 s", "jitter": 0, "keep_runs": "all"}')
			FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s;
		SET TimeZone = 'UTC';
		WITH made AS (
			INSERT INTO syncstate.sync_state AS s (user_id, account, source, resource)
			SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, a, s, r
			FROM generate_series(0, 39) AS n, unnest(ARRAY['', 'work']) AS a, unnest(enum_range(NULL::syncstate.sync_source)) AS s,
				unnest(ARRAY['', 'r']) AS r
			RETURNING s.*)
		INSERT INTO journal (client, n, call, user_id, account, source, resource, lease, image)
		SELECT 0, 0, 'made', user_id, account, source, resource, lease, m::text FROM made AS m});
	return;
}

sub log_of
{
	my ($self, $client) = @_;
	return "$self->{dir}/client_$client";
}

# Lines of the logs that begin with a word.
sub count
{
	my ($self, $word) = @_;
	my $count = 0;
	foreach my $client (1 .. $self->{clients})
	{
		open(my $log, '<', $self->log_of($client)) or next;
		while (<$log>)
		{
			$count++ if /^$word\t/;
		}
	}
	return $count;
}

sub start
{
	my ($self, $node) = @_;
	foreach my $client (1 .. $self->{clients})
	{
		my $pid = fork() // die "fork: $!";
		if (!$pid)
		{
			exec('/usr/bin/python3', "$here/client.py", $node->connstr('postgres'), $client, $self->{seed}, $self->log_of($client));
			die "python3: $!";
		}
		push @{ $self->{pids} }, $pid;
	}
	return;
}

# Until so many more calls are acknowledged, and then any moment.
sub wait_for
{
	my ($self, $calls) = @_;
	my $goal = $self->count('done') + $calls;
	my $deadline = time() + $patience;
	while ($self->count('done') < $goal)
	{
		die "the clients get nowhere; SYNCSTATE_SEED=$self->{seed}" if time() > $deadline;
		usleep(20_000);
	}
	usleep(int(rand(50_000)));
	return;
}

# After the end of their server, or by force.
sub wait_for_end
{
	my ($self, $signal) = @_;
	foreach my $pid (@{ $self->{pids} })
	{
		kill($signal, $pid) if defined $signal;
		waitpid($pid, 0);
	}
	$self->{pids} = [];
	return;
}

# Nobody but us may be connected: the last transactions are over then.
sub wait_for_silence
{
	my ($self, $node) = @_;
	$node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())}) or die 'clients stay connected';
	return;
}

# Compares the logs with the journal, and the journal with the rows.
sub check
{
	my ($self, $node, $when) = @_;
	my (%tried, %outcome, %told, %journal);
	foreach my $client (1 .. $self->{clients})
	{
		open(my $log, '<', $self->log_of($client)) or die "client $client: $!";
		while (my $line = <$log>)
		{
			last unless $line =~ s/\n\z//; # a client that was killed while writing
			my ($word, $n, @rest) = split(/\t/, $line, -1);
			if ($word eq 'try') { $tried{"$client.$n"} = $rest[0]; next }
			$outcome{"$client.$n"} = $word;
			$told{"$client.$n"} = join("\n", sort @rest) if $word eq 'done';
		}
	}
	foreach (split(/\n/, $node->safe_psql('postgres', q{SELECT client || '.' || n,
			concat_ws(' ', user_id, account, source, resource, lease, COALESCE(md5(image), 'gone')) FROM journal WHERE client > 0 ORDER BY 1, 2})))
	{
		my ($call, $row) = split(/\|/, $_, 2);
		push @{ $journal{$call} }, $row;
	}

	my @lost = grep { $outcome{$_} eq 'done' && $told{$_} ne join("\n", sort @{ $journal{$_} // [] }) } keys %outcome;
	my @unwanted = grep { !exists $tried{$_} || ($outcome{$_} // 'done') ne 'done' } keys %journal;
	my @doubtful = grep { !exists $outcome{$_} } keys %tried;
	$self->{doubts} = @doubtful;
	is(join(' ', map { "$_ ($tried{$_})" } sort @lost), '', "$when: every acknowledged call is there, as it was told");
	is(join(' ', sort @unwanted), '', "$when: no call is there that failed or was rolled back");
	is($node->safe_psql('postgres', q{
			SET TimeZone = 'UTC';
			SELECT count(*) FROM (SELECT DISTINCT ON (user_id, account, source, resource) * FROM journal
					ORDER BY user_id, account, source, resource, number DESC) AS j
				FULL JOIN syncstate.sync_state AS s USING (user_id, account, source, resource)
			WHERE j.image IS DISTINCT FROM CASE WHEN s.user_id IS NOT NULL THEN s::text END}),
		'0', "$when: all rows are as the last call left them");
	is($node->safe_psql('postgres', q{
			WITH lives AS ( -- the numbers of a row that is deleted go with it
				SELECT *, count(*) FILTER (WHERE image IS NULL) OVER (PARTITION BY user_id, account, source, resource ORDER BY number) AS life
				FROM journal),
			befores AS (
				SELECT *, max(lease) OVER (PARTITION BY user_id, account, source, resource, life ORDER BY number
					ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
				FROM lives)
			SELECT count(*) FROM befores WHERE lease < before OR call IN ('claim', 'start') AND lease = before}),
		'0', "$when: no fencing number was given twice or went back");
	is($node->safe_psql('postgres', q{
			WITH runs AS (
				SELECT DISTINCT user_id, account, source, resource, lease, true AS started FROM journal
				WHERE call IN ('claim', 'start') OR call = 'by hand' AND image LIKE '%,syncing,%'
				UNION ALL SELECT user_id, account, source, resource, lease, false FROM syncstate.sync_run
				UNION ALL SELECT user_id, account, source, resource, lease, false FROM syncstate.sync_state WHERE status = 'syncing')
			SELECT count(*) FROM (SELECT FROM runs GROUP BY user_id, account, source, resource, lease
				HAVING count(*) FILTER (WHERE started) <> 1 OR count(*) FILTER (WHERE NOT started) <> 1) AS wrong}),
		'0', "$when: each run that was started goes on or is told of, once");
	note("$when: " . keys(%tried) . ' calls, ' . grep({ $_ eq 'done' } values %outcome) . ' acknowledged, ' . @doubtful . ' in doubt, '
		. grep({ exists $journal{$_} } @doubtful) . ' of these there');
	return;
}

# In a year all leases are over: every row that is not parked comes back, once,
# and its holder can complete it.  Says how many there were.
sub check_that_all_come_back
{
	my ($self, $node) = @_;
	my $told = $node->safe_psql('postgres', q{
		SET syncstate.clock = '2099-01-01 00:00:00+00';
		CREATE TEMP TABLE had AS SELECT * FROM syncstate.sync_state;
		CREATE TEMP TABLE taken AS SELECT * FROM syncstate.claim_due_syncs(max_rows => 10000);
		INSERT INTO taken SELECT * FROM syncstate.claim_due_syncs(max_rows => 10000);
		SELECT count(*) > 0, count(*) FILTER (WHERE h.parked_reason IS NULL AND t.user_id IS NULL AND s.parked_reason IS DISTINCT FROM 'failures'),
			count(*) FILTER (WHERE h.parked_reason IS NOT NULL AND t.user_id IS NOT NULL),
			count(*) FILTER (WHERE t.lease <= h.lease),
			(SELECT count(*) FROM (SELECT FROM taken GROUP BY user_id, account, source, resource HAVING count(*) > 1) AS twice)
		FROM had AS h LEFT JOIN taken AS t USING (user_id, account, source, resource)
			LEFT JOIN syncstate.sync_state AS s USING (user_id, account, source, resource);
		SELECT count(*) FROM taken AS t, syncstate.mark_sync_completed(t.user_id, t.source, lease => t.lease, resource => t.resource, account => t.account) AS s
		WHERE s.status <> 'idle';
		SELECT count(*) FROM syncstate.sync_state WHERE lease_expires_at IS NOT NULL AND parked_reason IS NULL});
	is($told, "t|0|0|0|0\n0\n0", 'in the end every row that is not parked comes back, once, under a new number, and completes');
	return;
}

sub seed
{
	my ($self) = @_;
	return $self->{seed};
}

1;
