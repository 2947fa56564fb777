# A worker that waits for work is woken by a request, and by nothing that is
# none; and it may sleep until next_sync_due().
#
# psql looks for notifications only after a command of its own.  So the worker
# here speaks the wire protocol and waits at its socket, as clients do.

use strict;
use warnings;

use IO::Select;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;
plan skip_all => 'no raw connections here' unless $node->can('raw_connect_works') && $node->raw_connect_works;

my $timeout = $PostgreSQL::Test::Utils::timeout_default;

# ---------------------------------------------------------------- the worker

my $socket = $node->raw_connect;

# Reads one message; undef if none has come in time.
sub message
{
	my ($seconds) = @_;
	return undef unless IO::Select->new($socket)->can_read($seconds);
	my $bytes = sub {
		my ($length) = @_;
		my $data = '';
		while (length($data) < $length)
		{
			sysread($socket, $data, $length - length($data), length($data)) or die 'connection is closed';
		}
		return $data;
	};
	my ($type, $length) = unpack('aN', $bytes->(5));
	return [ $type, $bytes->($length - 4) ];
}

# What has been heard so far.
my @heard;

# Reads messages until one is of a type.
sub until_type
{
	my ($wanted) = @_;
	while (1)
	{
		my $message = message($timeout);
		return 0 unless defined $message;
		my ($type, $data) = @$message;
		die "the server says: $data" if $type eq 'E';
		push @heard, (unpack('N Z* Z*', $data))[1] . ': ' . (unpack('N Z* Z*', $data))[2] if $type eq 'A';
		return 1 if $type eq $wanted;
	}
}

# Waits until woken; tells by what.
sub woken
{
	@heard = ();
	return until_type('A') ? $heard[0] : 'not woken';
}

sub send_query
{
	my ($sql) = @_;
	syswrite($socket, pack('a N Z*', 'Q', 4 + length($sql) + 1, $sql));
	until_type('Z') or die 'no answer';
}

$node->safe_psql('postgres', q{
	CREATE EXTENSION syncstate;
	ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
	CREATE ROLE worker LOGIN;
	CREATE ROLE member LOGIN;
	SELECT syncstate.grant_worker('worker');
	SELECT syncstate.grant_user('member');
	INSERT INTO syncstate.sync_state (user_id, source, due_at)
	SELECT ('00000000-0000-4000-8000-00000000000' || i)::uuid, s, now() + '1 day'
	FROM generate_series(1, 5) AS i, unnest('{google_calendar,google_tasks}'::syncstate.sync_source[]) AS s;
});

my $startup = pack('N', 196608) . "user\0worker\0database\0postgres\0\0";
syswrite($socket, pack('N', 4 + length($startup)) . $startup);
until_type('Z') or die 'no connection';
send_query('LISTEN syncstate');

# ----------------------------------------------------------------- the user

# As a user whom PostgREST has let in.
sub as_member
{
	my ($user, $sql) = @_;
	return $node->safe_psql('postgres', qq{
		SET request.jwt.claims = '{"sub": "00000000-0000-4000-8000-00000000000$user", "role": "member"}';
		$sql}, extra_params => [ '-U', 'member' ]);
}

my $request = q{SELECT syncstate.request_sync('00000000-0000-4000-8000-00000000000%s', '%s')};
my $claim = q{SELECT right(user_id::text, 1), source FROM syncstate.claim_due_syncs()};

is($node->safe_psql('postgres', $claim), '', 'there is nothing to do');
is($node->safe_psql('postgres', q{SELECT syncstate.next_sync_due() > now() + '1 hour'}), 't', 'for long');

is(as_member(1, sprintf($request, 1, 'google_calendar')), 't', 'a user requests a sync');
is(woken(), 'syncstate: google_calendar', 'the worker is woken, and told the source');
is($node->safe_psql('postgres', q{SELECT syncstate.next_sync_due('google_calendar') <= clock_timestamp()}), 't', 'there is work');
is($node->safe_psql('postgres', $claim), '1|google_calendar', 'it is what was requested');

# --------------------------------------------- what is no work wakes nobody

# Reads what has been heard up to a mark of ours.
sub heard_meanwhile
{
	$node->safe_psql('postgres', q{NOTIFY syncstate, 'the mark'});
	my @all;
	while (1)
	{
		my $by = woken();
		return join(', ', @all) if $by eq 'syncstate: the mark';
		push @all, $by;
		return join(', ', @all) if $by eq 'not woken';
	}
}

$node->safe_psql('postgres', q{
	SELECT syncstate.checkpoint_sync('00000000-0000-4000-8000-000000000001', 'google_calendar', 1, 'page');
	SELECT syncstate.mark_sync_completed('00000000-0000-4000-8000-000000000001', 'google_calendar', lease => 1);
	SELECT syncstate.mark_sync_started('00000000-0000-4000-8000-000000000002', 'google_calendar');
	SELECT syncstate.report_syncs('[{"user_id": "00000000-0000-4000-8000-000000000002", "source": "google_calendar",
		"lease": 1, "outcome": "failed", "error_message": "x"}]');
	SELECT syncstate.claim_due_syncs();
	SELECT syncstate.pause_sync('00000000-0000-4000-8000-000000000003', 'google_calendar');
	SELECT syncstate.set_sync_policy('google_calendar', '{"lease_time": "1 min"}')});
as_member(3, sprintf($request, 3, 'google_calendar'));			# is paused
as_member(1, 'BEGIN; ' . sprintf($request, 1, 'google_tasks') . '; ROLLBACK');
$node->psql('postgres', q{SET request.jwt.claims = '{"sub": "00000000-0000-4000-8000-000000000002"}'; }
	  . sprintf($request, 1, 'google_calendar'), extra_params => [ '-U', 'member' ]);	# is another's
is(heard_meanwhile(), '', 'work of workers, refused requests and rolled back ones wake nobody');

# Requests that are repeated, however often, are told once.
as_member(4, sprintf($request, 4, 'google_calendar')) foreach 1 .. 3;
as_member(4, join('; ', map { sprintf($request, 4, $_) } qw(google_tasks google_tasks google_calendar)));
is(heard_meanwhile(), 'syncstate: google_calendar, syncstate: google_tasks', 'a request that is repeated wakes once');

# 100 users at once, by one transaction: one notification for each source.
$node->safe_psql('postgres', q{
	SELECT syncstate.connect_sync(('00000000-0000-4000-8001-0000000000' || i)::uuid, s)
	FROM generate_series(10, 99) AS i, unnest('{google_gmail,google_contacts}'::syncstate.sync_source[]) AS s});
is(heard_meanwhile(), 'syncstate: google_gmail, syncstate: google_contacts', 'a transaction is told once for each source');

$node->safe_psql('postgres', q{SELECT syncstate.resume_sync('00000000-0000-4000-8000-000000000003', 'google_calendar')});
is(woken(), 'syncstate: google_calendar', 'resuming wakes');
$node->safe_psql('postgres', q{SELECT syncstate.pause_sync_source('google_tasks')});
$node->safe_psql('postgres', q{SELECT syncstate.resume_sync_source('google_tasks')});
is(woken(), 'syncstate: google_tasks', 'resuming a source wakes');

# ---------------------------------------------- sleeping until next_sync_due

# Work that comes by itself notifies nobody: it is slept for.  Two rows, and as
# many queries as there are times to wake up.
$node->safe_psql('postgres', q{
	TRUNCATE syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES
		('00000000-0000-4000-8000-000000000001', 'google_calendar', clock_timestamp() + '0.3 s'),
		('00000000-0000-4000-8000-000000000002', 'google_tasks', clock_timestamp() + '0.6 s')});
my $claims = $node->safe_psql('postgres', q{
	DO $$
	DECLARE
		claimed integer := 0;
		sleeps integer := 0;
		n integer;
	BEGIN
		WHILE claimed < 2 LOOP
			sleeps := sleeps + 1;
			PERFORM pg_sleep(greatest(0, extract(epoch FROM syncstate.next_sync_due() - clock_timestamp())));
			SELECT count(*) INTO n FROM syncstate.claim_due_syncs();
			claimed := claimed + n;
			ASSERT sleeps <= 2, 'slept too short';
		END LOOP;
		PERFORM set_config('test.sleeps', (sleeps <= 2)::text, false);
	END $$;
	SELECT current_setting('test.sleeps')});
is($claims, 'true', 'a worker that sleeps until next_sync_due() finds a row each time');
is(heard_meanwhile(), '', 'and nobody was woken for it');

close($socket);
$node->stop;
done_testing();
