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

# Entries of a lane's index that were visited so far
sub visited
{
	my $index = shift // 'due';
	return $node->safe_psql('postgres', "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelid = 'syncstate.sync_state_$index'::regclass");
}

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
# chance once more, and by a sweep that begins each second and may draw and visit
# what others have completed.  By themselves, the sessions would visit each row
# as often as there are sessions, and sweep each for itself.
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
	my $bound = 3 + 3 * (time - $started + 1);
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

### what is shared may be wrong, or be gone

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
\set what random(1, 6)
\if :what = 1
VACUUM FULL syncstate.sync_lane;
\elif :what = 2
DELETE FROM syncstate.sync_lane WHERE random() < 0.5;
\elif :what = 3
INSERT INTO syncstate.sync_lane (source, kind, lane) VALUES ('google_calendar', 0, 0), ('google_calendar', 0, 1) ON CONFLICT DO NOTHING;
\elif :what = 4
VACUUM syncstate.sync_lane;
\elif :what = 5
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

$node->safe_psql('postgres', qq{
	INSERT INTO syncstate.sync_state (user_id, source, due_at)
	SELECT $uuid, 'google_calendar', $now - interval '1 h' + n * interval '1 us' FROM generate_series(1, 2000) AS n});
my ($first, $leaver) = map { $node->background_psql('postgres') } 1 .. 2;
my $claim = q{SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', %d)};
is($first->query_safe(sprintf $claim, 300), 300, 'a session takes many rows');
is($leaver->query_safe(sprintf $claim, 10), 10, '... another one some of the next');
my $left = $node->safe_psql('postgres', qq{SELECT count(*) FROM syncstate.sync_state, syncstate.sync_lane AS l
	WHERE lease_expires_at IS NULL AND due_at <= l.sweep_at AND (l.source, l.kind, l.lane) = ('google_calendar', 0, 1)});
cmp_ok($left, '>', 0, "... of which it has drawn more, which others pass: $left");
$leaver->quit;
my $found = 0;
my $deadline = time + 20;
$found += $first->query_safe(sprintf $claim, 100) while $found < 1690 && time < $deadline;
is($found, 1690, '... but when it is gone they are found by the sweep');
$first->quit;

### the sweep

# Many runs are in flight, and many sessions look for what may be among them.
$node->safe_psql('postgres', qq{
	TRUNCATE syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, due_at)
	SELECT $uuid, 'google_calendar', $now - interval '1 h' + n * interval '1 us' FROM generate_series(1, 4000) AS n;
	SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 4000)});
my $before = visited();
my $started = time;
$node->command_ok([ 'pgbench', '-n', '-c', $sessions, '-j', '2', '-t', '1', '-f', script('look', "CALL work('any', '3 s');\n"), 'postgres' ], "$sessions sessions look for 3 s");
my $swept = (visited() - $before) / 4000;
note(sprintf('in 3 s, what is in flight was visited %.1f times', $swept));
# each sweep visits it twice, to draw it and to look; by themselves they would
# sweep it 4 times each
cmp_ok($swept, '<', 3 * (time - $started + 2), '... and together sweep as often as one of them would');
cmp_ok($swept, '>', 2, '... but they do');

$node->stop;
done_testing();
