# A claim looks at a row under its snapshot, and takes it a moment later.  An
# injection point stops it in between, and meanwhile others come to the row.  The
# claim looks a second time: nobody gets what somebody else has, or what is not
# due any more, and what is due all the same is found by this claim or the next.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my ($version) = `$pg_config --version` =~ /(\d+)/;
my ($include) = `$pg_config --includedir-server` =~ /(.*)/;
my ($sharedir) = `$pg_config --sharedir` =~ /(.*)/;
plan skip_all => 'this server has no injection points; it takes 18 or later, built with --enable-injection-points'
  unless $version >= 18 && slurp_file("$include/pg_config.h") =~ /^#define USE_INJECTION_POINTS 1/m;
plan skip_all => 'the module injection_points of the server is not installed'
  unless -e "$sharedir/extension/injection_points.control";

my $point = 'syncstate-claim-write';

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\nautovacuum = off");
$node->start;
$node->safe_psql('postgres', <<'EOSQL');
CREATE EXTENSION injection_points;
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
ALTER DATABASE postgres SET syncstate.clock = '2030-01-01 00:00:00+00';
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- claims, and tells the users and their leases in the order in which they came
CREATE FUNCTION claim() RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT coalesce(string_agg(right(c.user_id::text, 1) || ':' || c.lease, ' ' ORDER BY c.n), 'nothing')
	FROM (SELECT user_id, lease, row_number() OVER () AS n FROM syncstate.claim_due_syncs('google_calendar', 10)) AS c;
END;

-- what became of user 1
CREATE FUNCTION became() RETURNS text LANGUAGE sql
BEGIN ATOMIC
	SELECT coalesce((SELECT concat_ws(' ', status, lease, parked_reason) FROM syncstate.sync_state WHERE user_id = u(1)), 'gone');
END;

-- Two rows are due.  The first has lease 1 of a run that ended, or of one that
-- ran out.
CREATE PROCEDURE set_up(state text) LANGUAGE sql
BEGIN ATOMIC
	DELETE FROM syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, due_at, lease, status, lease_expires_at, requested_at, failures, failing_since, sync_token)
	SELECT u(1), 'google_calendar', '2029-12-31 23:00Z', 1,
		CASE WHEN state IN ('expired', 'hopeless') THEN 'syncing' ELSE 'idle' END::syncstate.sync_status,
		CASE WHEN state IN ('expired', 'hopeless') THEN timestamptz '2029-12-31 23:10Z' END,
		CASE WHEN state = 'requested' THEN timestamptz '2029-12-31 23:30Z' END,
		CASE WHEN state = 'hopeless' THEN 1000 ELSE 0 END,
		CASE WHEN state = 'hopeless' THEN timestamptz '2029-01-01Z' END,
		'cursor';
	INSERT INTO syncstate.sync_state (user_id, source, due_at, lease) VALUES (u(2), 'google_calendar', '2029-12-31 23:30Z', 1);
END;

-- whether so many sessions come to the injection point
CREATE FUNCTION come(sessions integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 18000 LOOP
		PERFORM pg_stat_clear_snapshot();
		IF (SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'InjectionPoint') = sessions THEN
			RETURN true;
		END IF;
		PERFORM pg_sleep(0.01);
	END LOOP;
	RETURN false;
END
$$;

CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE ROLE fenced;
SELECT syncstate.grant_worker('fenced');
CREATE POLICY fence ON syncstate.sync_state AS RESTRICTIVE TO fenced USING (sync_interval IS DISTINCT FROM '13 min');
EOSQL

# A session; the time for an answer is counted for each query.
sub session
{
	my (@settings) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->set_query_timer_restart;
	$session->query_safe($_) foreach @settings;
	return $session;
}
my $other = session();
my $waker = session();

# What a session answers, to what it is told now or was before, or its SQLSTATE.
sub answer
{
	my ($session, $sql) = @_;
	my $got = $session->query($sql // '');
	$got = $session->query('\echo :LAST_ERROR_SQLSTATE') if $got !~ /\S/;
	$got =~ s/\A\s+|\s+\z//g;
	return $got;
}

# Has a session claim, and returns once it is between its look and its write.
sub claim_and_stop
{
	my ($claimer, $nth) = @_;
	$claimer->query_until(qr/claiming/, "\\echo claiming\nSELECT claim();\n");
	answer($waker, "SELECT come($nth)") eq 't' or die 'a claim does not come to the injection point';
	return;
}

# Lets the session that has waited longest go on, past all other rows.
sub go_on
{
	$waker->query_safe("SELECT injection_points_wakeup('$point')");
	return;
}

# Whoever calls or writes for user 1
my $row = "FROM syncstate.sync_state WHERE user_id = u(1)";
sub call { my ($call, @more) = @_; return "SELECT FROM syncstate.$call(" . join(', ', 'u(1)', q{'google_calendar'}, @more) . ')' }
my $claimed = 'SELECT claim()';
my $completed = call('mark_sync_completed', 'lease => 2');
my $touched = "UPDATE syncstate.sync_state SET sync_interval = '20 min' WHERE user_id = u(1)";
my $postponed = "UPDATE syncstate.sync_state SET due_at = '2030-01-01 01:00Z' WHERE user_id = u(1)";

# What the stopped claim gets if the row is as it was, and if it is not; and what
# the next one gets then.  Changed but due, it is taken at once by the plain way;
# by statements, or in a transaction that keeps its snapshot, it is passed over.
my %both = (got => '1:2 2:2', next => 'nothing', became => 'syncing 2');
my %due = (got => '1:2 2:2', next => 'nothing', passed_over => { got => '2:2', next => '1:2' }, became => 'syncing 2');
my %not_due = (got => '2:2', next => 'nothing');
my %later = (got => '2:2', next => '1:2', became => 'syncing 2');

my @cases = (
	# nobody came, or without a trace
	{ name => 'left alone', %both },
	{ name => 'locked and let go', change => [ 'BEGIN', "SELECT $row FOR UPDATE", 'COMMIT' ], %both },
	{ name => 'locked and rolled back', change => [ 'BEGIN', "SELECT $row FOR UPDATE", 'ROLLBACK' ], %both },
	{ name => 'changed and rolled back', change => [ 'BEGIN', $postponed, 'ROLLBACK' ], %both },
	{ name => 'deleted and rolled back', change => [ 'BEGIN', call('disconnect_sync'), 'ROLLBACK' ], %both },
	{ name => 'claimed and rolled back', change => [ 'BEGIN', $claimed, 'ROLLBACK' ], %both },
	{ name => 'locked from afar by a foreign key', change => [ 'BEGIN', "SELECT $row FOR KEY SHARE" ], end => 'COMMIT', %both },

	# changed, and due
	{ name => 'changed', change => [$touched], %due },
	{ name => 'changed twice', change => [ $touched, $touched ], %due },
	{ name => 'changed within a savepoint', change => [ 'BEGIN', 'SAVEPOINT s', $postponed, 'ROLLBACK TO s', $touched, 'COMMIT' ], %due },
	{ name => 'requested', change => [ call('request_sync') ], %due },
	{ name => 'paused and resumed', change => [ call('pause_sync'), call('resume_sync') ], %due, got => '2:2 1:2' },
	{ name => 'claimed and released', change => [ $claimed, call('release_sync', 2) ],
		got => '1:3', next => 'nothing', passed_over => { got => 'nothing', next => '1:3' }, became => 'syncing 3' },
	{ name => 'requested before, and changed', state => 'requested', change => [$touched], %due },
	{ name => 'expired before, and requested', state => 'expired', change => [ call('request_sync') ], %due },
	{ name => 'hopeless before, and resumed', state => 'hopeless', change => [ call('resume_sync') ], %due },

	# not due any more
	{ name => 'paused', change => [ call('pause_sync') ], %not_due, became => 'idle 1 paused' },
	{ name => 'postponed', change => [$postponed], %not_due, became => 'idle 1' },
	{ name => 'rate limited', change => [ call('mark_rate_limited') ], %not_due, became => 'rate_limited 1' },
	{ name => 'failed', change => [ call('mark_sync_failed', q{'broken'}) ], %not_due, became => 'error 1' },
	{ name => 'started by name', change => [ call('mark_sync_started') ], %not_due, became => 'syncing 2' },
	{ name => 'started and completed', change => [ call('mark_sync_started'), $completed ], %not_due, became => 'idle 2' },
	{ name => 'claimed', change => [$claimed], got => 'nothing', next => 'nothing', became => 'syncing 2' },
	{ name => 'claimed and completed', change => [ $claimed, $completed ], got => 'nothing', next => 'nothing', became => 'idle 2' },
	{ name => 'requested before, and claimed', state => 'requested', change => [$claimed], got => 'nothing', next => 'nothing', became => 'syncing 2' },
	{ name => 'requested before, and completed', state => 'requested', change => [ call('mark_sync_started'), $completed ], %not_due, became => 'idle 2' },
	{ name => 'expired before, and renewed', state => 'expired', change => [ call('renew_sync_lease', 1) ], %not_due, became => 'syncing 1' },
	{ name => 'expired before, and completed', state => 'expired', change => [ call('mark_sync_completed', 'lease => 1') ], %not_due, became => 'idle 1' },
	{ name => 'expired before, and claimed', state => 'expired', change => [$claimed], got => 'nothing', next => 'nothing', became => 'syncing 2' },
	{ name => 'hopeless before, and completed', state => 'hopeless', change => [ call('mark_sync_completed', 'lease => 1') ], %not_due, became => 'idle 1' },
	{ name => 'hopeless before, and parked by another claim', state => 'hopeless', change => [$claimed], got => 'nothing', next => 'nothing',
		became => 'error 1 failures' },
	{ name => 'expired before, and hopeless', state => 'expired',
		change => ["UPDATE syncstate.sync_state SET failures = 1000, failing_since = '2029-01-01Z' WHERE user_id = u(1)"],
		%not_due, became => 'error 1 failures' },
	{ name => 'hopeless before, and left alone', state => 'hopeless', %not_due, became => 'error 1 failures' },

	# gone
	{ name => 'deleted', change => [ call('disconnect_sync') ], %not_due, became => 'gone' },
	{ name => 'deleted and connected again', change => [ call('disconnect_sync'), call('connect_sync') ],
		got => '2:2', next => qr/^1:\d+$/, became => qr/^syncing \d+$/ },

	# somebody is at it
	{ name => 'locked', change => [ 'BEGIN', "SELECT $row FOR UPDATE" ], end => 'COMMIT', %later },
	{ name => 'being changed', change => [ 'BEGIN', $touched ], end => 'COMMIT', %later },
	{ name => 'being postponed', change => [ 'BEGIN', $postponed ], end => 'COMMIT', %not_due, became => 'idle 1' },
	{ name => 'being postponed, which is rolled back', change => [ 'BEGIN', $postponed ], end => 'ROLLBACK', %later },
	{ name => 'being started', change => [ 'BEGIN', call('mark_sync_started') ], end => 'COMMIT', %not_due, became => 'syncing 2' },
	{ name => 'being started, which is rolled back', change => [ 'BEGIN', call('mark_sync_started') ], end => 'ROLLBACK', %later },
	{ name => 'being claimed', change => [ 'BEGIN', $claimed ], end => 'COMMIT', got => 'nothing', next => 'nothing', became => 'syncing 2' },
	{ name => 'being claimed, which is rolled back', change => [ 'BEGIN', $claimed ], end => 'ROLLBACK',
		got => 'nothing', next => '1:2 2:2', became => 'syncing 2' },
	{ name => 'being deleted', change => [ 'BEGIN', call('disconnect_sync') ], end => 'COMMIT', %not_due, became => 'gone' },
	{ name => 'being deleted, which is rolled back', change => [ 'BEGIN', call('disconnect_sync') ], end => 'ROLLBACK', %later },
	{ name => 'expired before, and being completed', state => 'expired', change => [ 'BEGIN', call('mark_sync_completed', 'lease => 1') ], end => 'COMMIT',
		%not_due, became => 'idle 1' },
	{ name => 'expired before, and being completed, which is rolled back', state => 'expired',
		change => [ 'BEGIN', call('mark_sync_completed', 'lease => 1') ], end => 'ROLLBACK', %later },

	# row security
	{ name => 'hidden', change => [ "UPDATE syncstate.sync_state SET sync_interval = '13 min' WHERE user_id = u(1)" ], %due },
);

sub matches
{
	my ($got, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ref $expected ? like($got, $expected, $name) : is($got, $expected, $name);
	return;
}

# Has a claimer stop at the first row until the others have come to it.
sub try_case
{
	my ($claimer, $case, $passes_over, $how) = @_;
	my $name = "$case->{name}, $how";
	my %expected = (%$case, $passes_over && $case->{passed_over} ? %{ $case->{passed_over} } : ());

	$waker->query_safe(sprintf q{CALL set_up('%s')}, $case->{state} // 'idle');
	$claimer->query_safe("SELECT injection_points_attach('$point', 'wait')");
	claim_and_stop($claimer, 1);
	$other->query_safe($_) foreach @{ $case->{change} // [] };
	$waker->query_safe("SELECT injection_points_detach('$point')");
	go_on();
	matches(answer($claimer), $expected{got}, "$name: got");
	$other->query_safe($case->{end}) if $case->{end};
	matches(answer($other, $claimed), $expected{next}, "$name: next");
	matches(answer($other, 'SELECT became()'), $expected{became}, "$name: became");
	return;
}

my $alone = 'SELECT injection_points_set_local()';

my $claimer = session($alone);
try_case($claimer, $_, 0, 'plainly') foreach @cases;
$claimer->query_safe(q{SET default_transaction_isolation = 'repeatable read'});
try_case($claimer, $_, 1, 'plainly in REPEATABLE READ') foreach @cases;
$claimer->quit;

$claimer = session($alone, 'SET ROLE fenced');
try_case($claimer, $_, 1, 'within a policy') foreach @cases;
$claimer->query_safe(q{SET default_transaction_isolation = 'repeatable read'});
try_case($claimer, $_, 1, 'within a policy in REPEATABLE READ') foreach @cases;
$claimer->quit;

my $trigger = 'CREATE TRIGGER pass BEFORE UPDATE ON syncstate.sync_state FOR EACH ROW EXECUTE FUNCTION pass()';
$waker->query_safe($trigger);
$claimer = session($alone);
try_case($claimer, $_, 1, 'with a trigger') foreach @cases;
$claimer->query_safe(q{SET default_transaction_isolation = 'repeatable read'});
try_case($claimer, $_, 1, 'with a trigger in REPEATABLE READ') foreach @cases;
$claimer->quit;
$waker->query_safe('DROP TRIGGER pass ON syncstate.sync_state');

# Two claims at one row: the first gets it, and the second does not, whether the
# first has committed or not.
foreach my $how ('plainly', 'with a trigger')
{
	$waker->query_safe($trigger) if $how eq 'with a trigger';
	foreach my $end ('', 'COMMIT', 'ROLLBACK')
	{
		my $name = "two claims $how" . ($end && ", the first in a transaction that ends with $end");
		my ($first, $second) = (session(), session());
		$waker->query_safe(q{CALL set_up('idle')});
		$waker->query_safe("SELECT injection_points_attach('$point', 'wait')");
		$first->query_safe('BEGIN') if $end;
		claim_and_stop($first, 1);
		claim_and_stop($second, 2);
		$waker->query_safe("SELECT injection_points_detach('$point')");
		go_on();
		is(answer($first), '1:2 2:2', "$name: the first");
		go_on();
		is(answer($second), 'nothing', "$name: the second");
		$first->query_safe($end) if $end;
		is(answer($other, $claimed), $end eq 'ROLLBACK' ? '1:2 2:2' : 'nothing', "$name: next");
		$_->quit foreach $first, $second;
	}
}
$waker->query_safe('DROP TRIGGER pass ON syncstate.sync_state');

# A row that is not had costs no permit of its source: the next row gets it, or
# the next claim.
my $both_postponed = "UPDATE syncstate.sync_state SET due_at = '2030-01-01 01:00Z'";
my $second_due = "UPDATE syncstate.sync_state SET due_at = '2029-12-31 23:30Z' WHERE user_id = u(2)";
$waker->query_safe(q{SELECT syncstate.set_sync_policy('google_calendar', '{"rate_per_minute": 1}')});
$claimer = session($alone);
try_case($claimer, { name => 'postponed', change => [$postponed], got => '2:2', next => 'nothing', became => 'idle 1' }, 0, 'one a minute');
$_->query_safe(q{SET syncstate.clock = '2030-01-01 00:10Z'}) foreach $other, $claimer;
try_case($claimer, { name => 'both postponed', change => [$both_postponed], end => $second_due, got => 'nothing', next => '2:2', became => 'idle 1' },
	0, 'one a minute');
$claimer->quit;

$other->quit;
$waker->quit;
$node->stop;
done_testing();
