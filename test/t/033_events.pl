# What happened is told once: each event that a committed worker caused is taken
# by one taker that commits, whoever is killed meanwhile.  Nobody waits for
# anybody, and what nobody takes is bounded by its age, without any job.
#
#	SYNCSTATE_EVENT_ROUNDS	how many takers are killed; 2
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $rounds = $ENV{SYNCSTATE_EVENT_ROUNDS} || 2;
my $sessions = 8;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "max_connections = 40\nrestart_after_crash = on\nlog_statement = none");
$node->start;
$node->safe_psql('postgres', 'CREATE DATABASE quiet');

my $setup = <<'EOSQL';
CREATE EXTENSION syncstate;
SELECT syncstate.set_sync_policy('google_tasks', '{"keep_runs": "all", "keep_runs_for": "1 hour"}');
SELECT syncstate.set_sync_policy('google_gmail', '{"keep_runs": "all", "keep_runs_for": "1 hour"}');

-- Causes so many events, a call for each.
CREATE FUNCTION pauses(n integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	u uuid;
BEGIN
	FOR i IN 1 .. n LOOP
		u := gen_random_uuid();
		PERFORM syncstate.connect_sync(u, 'google_tasks'), syncstate.pause_sync(u, 'google_tasks');
	END LOOP;
	RETURN n;
END
$$;

-- So many runs, which cause no event.
CREATE FUNCTION runs(n integer, s syncstate.sync_source DEFAULT 'google_tasks') RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	u uuid;
	number bigint;
BEGIN
	FOR i IN 1 .. n LOOP
		u := gen_random_uuid();
		number := (syncstate.mark_sync_started(u, s)).lease;
		PERFORM syncstate.release_sync(u, s, number);
	END LOOP;
	RETURN n;
END
$$;

-- Sets the clock to a time after the beginning of the test.
CREATE FUNCTION after(passed interval) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('syncstate.clock', ('2030-01-01 00:00+00'::timestamptz + passed)::text, false);
END
$$;
EOSQL
$node->safe_psql('quiet', $setup);

sub quiet
{
	my ($sql) = @_;
	return $node->safe_psql('quiet', $sql);
}

# A session in which whatever waits for a lock fails.
sub session
{
	my $session = $node->background_psql('quiet', on_error_stop => 0);
	$session->query_safe("SET lock_timeout = '1s'");
	$session->set_query_timer_restart;
	return $session;
}

my $take = q{SELECT coalesce(string_agg(id::text, ' '), 'none') FROM syncstate.take_sync_events(%d)};

# ------------------------------------------------------- takers side by side

my $in_order = q{SELECT string_agg(id::text, ' ' ORDER BY at, id) FROM syncstate.sync_event};
quiet('SELECT pauses(8)');
my @ids = split(/ /, quiet($in_order));
is(@ids, 8, 'each pause is an event');

my ($holder, $other) = (session(), session());
$holder->query_safe('BEGIN');
is($holder->query(sprintf($take, 3)), "@ids[0 .. 2]", 'a taker takes the oldest events, in their order');
is($other->query(sprintf($take, 100)), "@ids[3 .. 7]", '... another at once all others');
is($other->query(sprintf($take, 100)), 'none', '... and a third nothing');
$holder->query_safe('ROLLBACK');
is($other->query(sprintf($take, 2)), "@ids[0, 1]", 'after a rollback they are there again');
$holder->query_safe('BEGIN; SAVEPOINT s');
is($holder->query(sprintf($take, 100)), $ids[2], 'the last one is taken');
$holder->query_safe('ROLLBACK TO SAVEPOINT s');
is($other->query(sprintf($take, 100)), $ids[2], '... and after a rollback to a savepoint by another');
$holder->query_safe('COMMIT');
is(quiet('SELECT count(*) FROM syncstate.sync_event'), '0', 'what is taken is gone');

# ------------------------------------------ what is undone was never told of

# What a listener heard up to a mark of ours.
my $listener = session();
$listener->query_safe('LISTEN syncstate_events');

sub heard
{
	quiet(q{NOTIFY syncstate_events, 'the mark'});
	my $heard = '';
	for (my $i = 0; $i < 1000 && $heard !~ /the mark/; $i++)
	{
		$heard .= $listener->query('SELECT 1') . "\n";
	}
	return join(', ', map { $_ // 'empty' } $heard =~ /notification "syncstate_events"(?: with payload "(.*?)")? received/g);
}

quiet('BEGIN; SELECT pauses(3); ROLLBACK');
quiet('BEGIN; SAVEPOINT s; SELECT pauses(3); ROLLBACK TO SAVEPOINT s; COMMIT');
is(quiet('SELECT count(*) FROM syncstate.sync_event'), '0', 'what is rolled back, is no event');
is(heard(), 'the mark', '... and nobody is told');
quiet('BEGIN; SELECT pauses(2); SAVEPOINT s; SELECT pauses(3); ROLLBACK TO SAVEPOINT s; SELECT pauses(4); COMMIT');
is(heard(), 'empty, the mark', 'a transaction tells once of its events');
quiet('SELECT pauses(1)') foreach 1 .. 2;
is(heard(), 'empty, empty, the mark', '... and each by itself');
quiet('SELECT runs(1)');
is(heard(), 'the mark', 'a run that is kept is no event');
is(quiet(q{SELECT count(*) FROM syncstate.take_sync_events()}), '8', 'what was told of is there');

# --------------------------------------------------------- bounded by its age

my %of = (
	events => { cause => 'pauses', table => 'sync_event', kept => '30 days' },
	runs => { cause => 'runs', table => 'sync_run', kept => '1 hour' });

foreach my $what (sort keys %of)
{
	my ($cause, $table, $kept) = @{ $of{$what} }{ 'cause', 'table', 'kept' };
	my $count = "SELECT count(*) FROM syncstate.$table";

	my $begin = sub { quiet("DELETE FROM syncstate.$table; SELECT after('0'); SELECT $cause($_[0])") };

	# how many there are each time that a call causes one more
	my $one_more = sub {
		return quiet(join(';', map { "SELECT FROM after('$_'); SELECT FROM $cause(1); $count" } @_));
	};

	$begin->(50);
	is($one_more->($kept, "$kept 1 us"), "51\n2", "$what that are $kept old are kept, and a moment later none of them");

	$begin->(250);
	is($one_more->("$kept 1 s", "$kept 2 s", "$kept 3 s"), "151\n52\n3", "old $what are deleted a hundred at a time");

	# Somebody looks at the beginning, all the time.
	$begin->(20);
	$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
	is($holder->query($count), '20', 'a snapshot is held');
	my @counts = split(/\n/, quiet(join(';', map { "SELECT FROM after($_ * interval '$kept' / 10); SELECT FROM $cause(20); $count" } 1 .. 40)));
	is("@counts[9 .. 39]", join(' ', (220) x 31), "... and there are no more $what than of $kept");
	is($holder->query($count), '20', '... whatever the snapshot sees');
	$holder->query_safe('COMMIT');

	# Who keeps a snapshot cannot delete what others have deleted meanwhile, and
	# nobody waits for somebody who is deleting.
	foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
	{
		$begin->(20);
		$other->query_safe("SELECT after('$kept 1 s'); BEGIN ISOLATION LEVEL $level");
		is($other->query($count), '20', "a worker, $level");
		is($one_more->("$kept 1 s"), '1', "... another one deletes old $what");
		is($other->query("SELECT $cause(1)"), '1', '... which is no matter to the first');

		$holder->query_safe("SELECT after('$kept 2 s'); BEGIN");
		quiet("SELECT after('0'); SELECT $cause(1)");
		$holder->query_safe("SELECT $cause(1)");
		is($holder->query("$count WHERE " . ($what eq 'runs' ? 'ended_at' : 'at') . " = '2030-01-01 00:00+00'"), '0',
			'... nor, while it is at that');
		is($other->query("SELECT $cause(1)"), '1', '... to what the first does next');
		$other->query_safe('COMMIT');
		$holder->query_safe('COMMIT');
		is(quiet($count), '4', '... and all is committed');
	}
}

# Where no run ends any more, those who write of other sources delete.
quiet(q{DELETE FROM syncstate.sync_run; SELECT after('0'); SELECT runs(50, 'google_gmail')});
is(quiet(q{SELECT FROM after('1 hour 1 s'); SELECT FROM runs(4); SELECT source, count(*) FROM syncstate.sync_run GROUP BY source}),
	'google_tasks|4', 'old runs of other sources go too');
quiet(q{SELECT syncstate.set_sync_policy('google_tasks', '{"keep_runs_for": "1 min"}')});
is(quiet(q{SELECT FROM after('1 hour 1 min 2 s'); SELECT FROM runs(1); SELECT count(*) FROM syncstate.sync_run}),
	'1', 'and a policy that keeps them for less holds for those that there are');
$_->quit foreach $holder, $other, $listener;

# ------------------------------------------------------- workers and crashes

# caused is written by the workers, in the transactions that cause; taken by the
# takers, in those that take.
$node->safe_psql('postgres', $setup . <<'EOSQL');
CREATE ROLE worker LOGIN;
SELECT syncstate.grant_worker('worker');
CREATE TABLE caused (event text, user_id uuid, lease bigint);
CREATE TABLE taken (id uuid, event text, user_id uuid, lease bigint, taker integer);
CREATE TABLE finished (worker integer);
CREATE SEQUENCE held;	-- survives a rollback
GRANT ALL ON caused, taken, finished, held TO worker;
GRANT CREATE ON SCHEMA public TO worker;

CREATE PROCEDURE work(worker integer, cycles integer) LANGUAGE plpgsql AS $$
DECLARE
	u uuid;
	number bigint;
	is_there boolean;
BEGIN
	FOR i IN 1 .. cycles LOOP
		u := gen_random_uuid();
		number := (syncstate.mark_sync_started(u, 'google_tasks')).lease;
		PERFORM syncstate.mark_sync_completed(u, 'google_tasks', sync_token => 't', lease => number);
		INSERT INTO caused VALUES ('first_sync', u, number);
		number := (syncstate.mark_sync_started(u, 'google_tasks')).lease;
		PERFORM syncstate.mark_sync_failed(u, 'google_tasks', 'revoked', 'auth', lease => number);
		INSERT INTO caused VALUES ('parked', u, number);
		is_there := random() < 0.8;
		IF is_there THEN
			COMMIT;
		ELSE
			ROLLBACK;
		END IF;

		PERFORM syncstate.connect_sync(u, 'google_tasks');
		number := (syncstate.mark_sync_started(u, 'google_tasks')).lease;
		BEGIN
			PERFORM syncstate.mark_sync_failed(u, 'google_tasks', 'undone', 'auth', lease => number);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
		PERFORM syncstate.mark_sync_completed(u, 'google_tasks', sync_token => 't', lease => number);
		PERFORM syncstate.clear_sync_token(u, 'google_tasks');
		INSERT INTO caused VALUES (CASE WHEN is_there THEN 'recovered' ELSE 'first_sync' END, u, number), ('cursor_lost', u, NULL);
		IF random() < 0.8 THEN
			COMMIT;
		ELSE
			ROLLBACK;
		END IF;
	END LOOP;
	INSERT INTO finished VALUES (worker);
END
$$;

CREATE PROCEDURE take(taker integer) LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		INSERT INTO taken
		SELECT e.id, e.event, e.user_id, e.lease, taker FROM syncstate.take_sync_events(1 + floor(20 * random())::integer) AS e;
		IF random() < 0.2 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
		EXIT WHEN (SELECT count(*) FROM finished) >= 8 AND NOT EXISTS (SELECT FROM syncstate.sync_event);
	END LOOP;
END
$$;

-- Takes some, and waits to be killed.
CREATE PROCEDURE take_and_hold() LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		PERFORM nextval('held') FROM syncstate.take_sync_events(5);
		EXIT WHEN FOUND;
		COMMIT;
	END LOOP;
	PERFORM pg_advisory_xact_lock(1);
END
$$;
EOSQL

sub start_psql
{
	my ($sql) = @_;
	return IPC::Run::start([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-U', 'worker', '-c', $sql ],
		'<', \undef, '>', \my $out, '2>', \my $err);
}

my $unlike_caused = q{
	SELECT (SELECT count(*) FROM (SELECT * FROM caused EXCEPT ALL SELECT event, user_id, lease FROM taken) AS lost),
		(SELECT count(*) FROM (SELECT event, user_id, lease FROM taken EXCEPT ALL SELECT * FROM caused) AS unwanted),
		(SELECT count(*) - count(DISTINCT id) FROM taken)};

foreach my $round (1 .. $rounds + 1)
{
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM taken');
	my $lock = $node->background_psql('postgres');
	$lock->query_safe('SELECT pg_advisory_lock(1)');
	my @running = map { (start_psql("CALL work($_, 1000000)"), start_psql("CALL take($_)")) } 1 .. $sessions;
	push @running, start_psql('CALL take_and_hold()');

	# while the victim holds some, the others go on
	my $waits = q{FROM pg_stat_activity WHERE query ~ 'hold' AND wait_event = 'advisory'};
	$node->poll_query_until('postgres', "SELECT EXISTS (SELECT $waits)") or die 'nobody holds events';
	$node->poll_query_until('postgres', "SELECT count(*) > $before + 100 FROM taken") or die 'nobody takes events';
	if ($round <= $rounds)
	{
		my $victim = $node->safe_psql('postgres', "SELECT pid $waits");
		kill(9, $victim);
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
	foreach (@running)
	{
		eval { $_->finish };
	}
	eval { $lock->quit };
	$node->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'the server does not come back';
	note("round $round: " . $node->safe_psql('postgres', 'SELECT count(*) FROM taken') . ' events were taken');
}
cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM held'), '>', $rounds, 'events were held by who was killed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM finished'), '0', 'each time all had more to do');

# Once more in peace, until nothing is left.
my @workers = map { start_psql("CALL work($_, 30)") } 1 .. $sessions;
my @takers = map { start_psql("CALL take($_)") } 1 .. $sessions;
is(scalar(grep { $_->finish } @workers), $sessions, 'all workers end');
is(scalar(grep { $_->finish } @takers), $sessions, 'and all takers');

is($node->safe_psql('postgres', $unlike_caused), '0|0|0', 'each event that was caused was taken once, and no other');
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT event, ' ' ORDER BY event) FROM taken}),
	'cursor_lost first_sync parked recovered', 'events of each kind were caused');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT taker) > 1 FROM taken'), 't', 'takers shared them');

$node->stop;
done_testing();
