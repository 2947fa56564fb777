# Many sessions on one backlog: they come to walk different parts of it, so that
# an index entry is visited a few times and not once by each of them.  No row is
# had twice and none is forgotten, whatever becomes of the places that they share.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $sessions = 24;
my $rows = 12_000;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "max_connections = 60\nautovacuum = off");
$node->start;
$node->safe_psql('postgres', <<'EOSQL');
CREATE EXTENSION syncstate;

-- Claims and completes by tens, until nothing is left or for so long.
CREATE PROCEDURE work(kind text, how_long interval DEFAULT '30 s') LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + how_long;
	batch syncstate.sync_state[];
BEGIN
	WHILE clock_timestamp() < deadline LOOP
		batch := ARRAY(SELECT c FROM syncstate.claim_due_syncs('google_calendar', 10, kind => work.kind) AS c);
		COMMIT;
		IF cardinality(batch) > 0 THEN
			PERFORM syncstate.mark_sync_completed(user_id, source, lease => lease) FROM unnest(batch);
			COMMIT;
		ELSE
			EXIT WHEN NOT EXISTS (SELECT FROM syncstate.sync_state WHERE last_successful_sync_at IS NULL);
			PERFORM pg_sleep(0.02);
		END IF;
	END LOOP;
END
$$;

EOSQL

# What was counted so far for a lane's index, by sessions that are gone: a session
# is sure to have counted only when it ends.
sub statistic
{
	my ($what, $index) = @_;
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'})
		or die 'sessions do not end';
	return $node->safe_psql('postgres', "SELECT $what FROM pg_stat_user_indexes WHERE indexrelid = 'syncstate.sync_state_$index'::regclass");
}

# Entries that were visited, and those whose row was seen.
sub visited { return statistic('idx_tup_read', shift // 'due'); }
sub seen { return statistic('idx_tup_fetch', 'due'); }

# Scripts of pgbench
sub script
{
	my ($name, $sql) = @_;
	my $file = $node->basedir . "/$name.sql";
	append_to_file($file, $sql);
	return $file;
}
my $work = script('work', "CALL work('any');\n");

# Makes rows, lets all sessions work, and returns how many index entries were
# visited for each row, and how many may have been: to draw it and to take it, by
# chance once more; by the first claim of each session, which walks by itself past
# 2,000 completed rows at most; and by a sweep that begins each second and may draw
# and visit what others have completed.  By themselves, the sessions would visit
# each row as often as there are sessions, and sweep each for itself.
sub visits
{
	my ($what, $id, $due_at, %option) = @_;
	my $file = $option{file} // $work;

	$node->safe_psql('postgres', qq{
		TRUNCATE syncstate.sync_state;
		INSERT INTO syncstate.sync_state (user_id, source, due_at)
		SELECT $id, 'google_calendar', $due_at FROM generate_series(1, $rows) AS n});
	$node->safe_psql('postgres', 'VACUUM (FREEZE, ANALYZE) syncstate.sync_state');
	$option{before}->() if $option{before};
	my $before = visited($option{lane});
	my $started = time;
	$node->command_ok([ 'pgbench', '-n', '-c', $sessions, '-j', '2', '-t', '1', '-f', $file, 'postgres' ], "$what: $sessions sessions work");
	is($node->safe_psql('postgres', 'SELECT count(*), min(syncs_started), max(syncs_started), count(last_successful_sync_at) FROM syncstate.sync_state'),
		"$rows|1|1|$rows", '... each row was had once');
	my $visits = (visited($option{lane}) - $before) / $rows;
	my $bound = 3 + $sessions * 2000 / $rows + 3 * (time - $started + 1);
	note(sprintf('%s: %.1f visits for each row, of %d', $what, $visits, $bound));
	return ($visits, $bound);
}

my $uuid = 'md5(n::text)::uuid';
my $counted = "('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid";
my $now = q{now() - interval '1 s'};
my $used = 'SELECT count(*) FROM syncstate.sync_lane WHERE (mark_at, sweep_at, sweep_rests_until) <> (\'-infinity\', \'-infinity\', \'-infinity\')';

### alone: nothing is shared

$node->safe_psql('postgres', "INSERT INTO syncstate.sync_state (user_id, source, due_at) SELECT $uuid, 'google_calendar', $now FROM generate_series(1, 10) AS n");
$node->safe_psql('postgres', "CALL work('any'); CALL work('any', '3 s')");
is($node->safe_psql('postgres', $used), 0, 'without a crowd nothing is drawn and nothing written');

# The statistics of an index say for how many of its entries a row was seen: the
# benchmark tells by that what else an entry was visited for.
$node->safe_psql('postgres', qq{TRUNCATE syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, due_at) SELECT $uuid, 'google_calendar', $now FROM generate_series(1, 100) AS n});
my ($read, $fetched) = (visited(), seen());
is($node->safe_psql('postgres', q{SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', max_rows => 100)}), 100, 'a claim takes all rows');
is(visited() - $read, 100, '... by as many entries of the index');
is(seen() - $fetched, 100, '... and sees a row for each of them');

### a backlog

sub walked
{
	my ($visits, $bound) = visits(@_);
	cmp_ok($visits, '<', $bound, '... and they walked different parts');
	return;
}

walked('times that differ', $uuid, "$now + n * interval '1 us'");
is($node->safe_psql('postgres', $used), 1, '... by the places of their lane');
walked('one time', $uuid, $now);
walked('one time, ids that differ in the end', $counted, $now);
walked('a backlog of before', $uuid, "$now - interval '1 h' + n * interval '1 us'");
walked('claims of a kind', $uuid, "$now + n * interval '1 us'", file => script('kind', "CALL work('full');\n"));
$node->safe_psql('postgres', 'TRUNCATE syncstate.sync_state');

# requests, which are in a lane of their own
walked('requests', $uuid, q{now() + interval '1 day'}, lane => 'requested', before => sub {
		$node->safe_psql('postgres', q{SELECT set_config('syncstate.clock', (now() - interval '1 min')::text, false);
			SELECT count(syncstate.request_sync(user_id, source)) FROM syncstate.sync_state});
	});

# Rows of one user with one due time are drawn together.  A session whose claim is
# full before their end continues with them.
$node->safe_psql('postgres', qq{
	TRUNCATE syncstate.sync_state;
	UPDATE syncstate.sync_lane SET mark_at = '-infinity', sweep_at = '-infinity', sweep_rests_until = '-infinity';
	INSERT INTO syncstate.sync_state (user_id, source, due_at) SELECT $uuid, 'google_calendar', now() - interval '1 h' FROM generate_series(1, 100) AS n;
	SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 100);
	INSERT INTO syncstate.sync_state (user_id, source, resource, due_at)
	SELECT md5('u')::uuid, 'google_calendar', n::text, now() - interval '30 min' FROM generate_series(1, 50) AS n;
	CREATE PROCEDURE singly(INOUT claimed integer) LANGUAGE plpgsql AS \$\$
	BEGIN
		FOR i IN 1 .. 50 LOOP
			claimed := claimed + (SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 1));
			COMMIT;
		END LOOP;
	END \$\$});
is($node->safe_psql('postgres', 'CALL singly(0)'), 50, 'a session claims all rows of a user, one after the other');

### what is shared may be wrong, or be gone

walked('an update that was undone', $uuid, "$now + n * interval '1 us'", before => sub {
		$node->safe_psql('postgres', 'BEGIN; UPDATE syncstate.sync_lane SET mark_at = mark_at; ROLLBACK');
	});

my %spoilt = (
	'far ahead' => q{UPDATE syncstate.sync_lane SET mark_at = 'infinity', sweep_at = 'infinity', sweep_rests_until = 'infinity'},
	'ahead' => q{UPDATE syncstate.sync_lane SET mark_at = now() + interval '1 min', sweep_at = now() + interval '1 min', sweep_rests_until = now() + interval '1 min'},
	'behind' => q{UPDATE syncstate.sync_lane SET mark_at = '-infinity', sweep_at = '-infinity', sweep_rests_until = '-infinity'},
	'past all rows' => q{UPDATE syncstate.sync_lane SET mark_at = now(), sweep_at = now(), sweep_rests_until = now() + interval '1 s'},
	'gone' => q{DELETE FROM syncstate.sync_lane},
);
foreach my $how (sort keys %spoilt)
{
	visits("places that are $how", $uuid, "$now + n * interval '1 us'", before => sub { $node->safe_psql('postgres', $spoilt{$how}) });
}
$node->safe_psql('postgres', 'INSERT INTO syncstate.sync_lane (source, kind, lane) VALUES (\'google_calendar\', 0, 0), (\'google_calendar\', 0, 1)');

# rewritten and emptied while they work; nobody waits while somebody has it locked
my $spoil = script('spoil', <<'EOSQL');
\set what random(1, 7)
\if :what = 1
VACUUM FULL syncstate.sync_lane;
\elif :what = 2
DELETE FROM syncstate.sync_lane WHERE random() < 0.5;
\elif :what = 3
INSERT INTO syncstate.sync_lane (source, kind, lane) VALUES ('google_calendar', 0, 0), ('google_calendar', 0, 1) ON CONFLICT DO NOTHING;
\elif :what = 4
VACUUM syncstate.sync_lane;
\elif :what = 5
REINDEX TABLE CONCURRENTLY syncstate.sync_lane;
\elif :what = 6
UPDATE syncstate.sync_lane SET mark_at = now() - random() * interval '2 s', sweep_at = now() - random() * interval '2 s';
\else
BEGIN;
LOCK TABLE syncstate.sync_lane;
SELECT pg_sleep(0.1);
COMMIT;
\endif
EOSQL
foreach my $due_at ("$now + n * interval '1 us'", "$now - interval '1 h' + n * interval '1 us'")
{
	local ($ENV{PGHOST}, $ENV{PGPORT}) = ($node->host, $node->port);
	my $spoiling = IPC::Run::start([ 'pgbench', '-n', '-c', '1', '-T', '3', '-f', $spoil, 'postgres' ], '>', \my $out, '2>', \my $err);
	visits('places that are spoilt meanwhile', $uuid, $due_at);
	ok($spoiling->finish, '... as they were');
	is($err =~ s/^pgbench .*\n//r, '', '... without an error');
}
$node->safe_psql('postgres', 'TRUNCATE syncstate.sync_state, syncstate.sync_lane;
	INSERT INTO syncstate.sync_lane (source, kind, lane) VALUES (\'google_calendar\', 0, 0), (\'google_calendar\', 0, 1)');

### what a session has drawn and leaves

sub begin_anew
{
	my ($in_flight, $due) = @_;
	$node->safe_psql('postgres', qq{
		TRUNCATE syncstate.sync_state;
		UPDATE syncstate.sync_lane SET mark_at = '-infinity', sweep_at = '-infinity', sweep_rests_until = '-infinity';
		INSERT INTO syncstate.sync_state (user_id, source, due_at)
		SELECT $uuid, 'google_calendar', $now - interval '1 h' + n * interval '1 us' FROM generate_series(1, $in_flight + $due) AS n;
		SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', $in_flight)});
	return;
}
sub claims
{
	my ($session, $rows) = @_;
	return $session->query_safe("SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', $rows)");
}

# What it draws is at least as long as what it had to pass, which is more than it
# wants; but the oldest rows do not wait for it.
begin_anew(1000, 200);
my $number = q{SELECT count(*) || ' from ' || min(rank) || ' to ' || max(rank) FROM
	(SELECT user_id, rank() OVER (ORDER BY due_at) AS rank FROM syncstate.sync_state) AS r
	JOIN syncstate.claim_due_syncs('google_calendar', 10) AS c USING (user_id)};
foreach my $first (1001, 1011)
{
	my $leaver = $node->background_psql('postgres');
	is($leaver->query_safe($number), "10 from $first to " . ($first + 9), 'a session takes the oldest rows');
	$leaver->quit;
}

# The index by which the places might be found is replaced.
my $session = $node->background_psql('postgres');
claims($session, 1);
$node->safe_psql('postgres', 'REINDEX TABLE CONCURRENTLY syncstate.sync_lane');
$node->safe_psql('postgres', "SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 100)");
is(claims($session, 1), 1, 'a session draws after REINDEX CONCURRENTLY');
$session->quit;

### who sees other rows than others

$node->safe_psql('postgres', q{
	CREATE ROLE ones LOGIN; CREATE ROLE others LOGIN;
	SELECT syncstate.grant_worker('ones'), syncstate.grant_worker('others');
	CREATE POLICY ones ON syncstate.sync_state AS RESTRICTIVE TO ones USING (user_id <> '00000000-0000-4000-8000-000000000001');
	CREATE POLICY others ON syncstate.sync_state AS RESTRICTIVE TO others USING (user_id = '00000000-0000-4000-8000-000000000001')});
foreach my $how ([ 'ones', '' ], [ 'none', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT;' ])
{
	begin_anew(300, 0);
	my $blind = $node->background_psql('postgres');
	$blind->query_safe("SET ROLE $how->[0]; $how->[1]");
	my $seeing = $node->background_psql('postgres');
	$seeing->query_safe('SET ROLE others');
	claims($_, 10) foreach $blind, $seeing;
	$node->safe_psql('postgres', "INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES ('00000000-0000-4000-8000-000000000001', 'google_calendar', now() - interval '2 h')");
	select(undef, undef, undef, 1.1);	# the next sweep
	claims($blind, 10) foreach 1 .. 5;
	is(claims($seeing, 10), 1, "a row is found that others have swept past and could not see ($how->[0])");
	$_->quit foreach $blind, $seeing;
}
$node->safe_psql('postgres', 'DROP POLICY ones ON syncstate.sync_state; DROP POLICY others ON syncstate.sync_state');

### what is held back by max_in_flight

begin_anew(100, 0);
$node->safe_psql('postgres', q{
	SELECT FROM syncstate.set_sync_policy('google_calendar', '{"max_in_flight": 1}');
	INSERT INTO syncstate.sync_state (user_id, source, resource, due_at)
	SELECT '00000000-0000-4000-8000-000000000001', 'google_calendar', n::text, now() - interval '1 h' FROM generate_series(1, 50) AS n});
my ($one, $other) = map { $node->background_psql('postgres') } 1 .. 2;
is(claims($one, 10), 1, 'one row of many may run');
is(claims($other, 10), 0, '... and others are held back');
$node->safe_psql('postgres', q{SELECT count(syncstate.mark_sync_completed(user_id, source, lease => lease, resource => resource))
	FROM syncstate.sync_state WHERE resource <> '' AND status = 'syncing'});
select(undef, undef, undef, 0.5);
is(claims($other, 10), 1, '... until it ends: not for a second');
$_->quit foreach $one, $other;
$node->safe_psql('postgres', q{SELECT FROM syncstate.set_sync_policy('google_calendar', '{"max_in_flight": null}')});

### the sweep

# Many runs are in flight, and many sessions look for what may be among them; or
# one, whose steps now and then end within the last stretch.
foreach my $case ([ 4000, $sessions ], [ 6000, 1 ])
{
	my ($in_flight, $looking) = @$case;
	begin_anew($in_flight, 0);
	my $before = visited();
	my $started = time;
	$node->command_ok([ 'pgbench', '-n', '-c', $looking, '-j', '2', '-t', '1', '-f',
			script("look$looking", "CALL work('any', '3 s');\n"), 'postgres' ], "sessions look for 3 s: $looking");
	my $swept = (visited() - $before) / $in_flight;
	note(sprintf('in 3 s, what is in flight was visited %.1f times', $swept));
	# each sweep visits it twice, to draw it and to look; by themselves they would
	# sweep it 4 times each
	cmp_ok($swept, '<', 3 * (time - $started + 2), '... and together sweep as often as one of them would');
	cmp_ok($swept, '>', 2, '... but they do');
}

$node->stop;
done_testing();
