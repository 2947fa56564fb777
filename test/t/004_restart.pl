# The server crashes in the middle of a run: what was committed is there, what
# was not never was, nobody is forgotten, and items and cursors agree.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;

# Runs statements at a time of day, as superuser; rows, or the SQLSTATE.
sub at
{
	my ($time, $sql) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "LOAD 'syncstate'; SET syncstate.clock = '2030-01-01 $time+00'; $sql",
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $out if $status == 0;
	return $err =~ /(?:ERROR|FATAL):\s+(\w{5})/ ? $1 : $err;
}

$node->safe_psql('postgres', q{
	CREATE EXTENSION syncstate;
	ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
	CREATE TABLE items (user_id uuid, source syncstate.sync_source, item int);
	CREATE FUNCTION id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE
		RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

	-- what a worker does at the end of a sync: items and cursor in one transaction
	CREATE FUNCTION finish(user_id uuid, lease bigint) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO items SELECT finish.user_id, 'google_calendar', n FROM generate_series(1, 3) AS n;
		RETURN (syncstate.mark_sync_completed(user_id, 'google_calendar', 3, 'cursor ' || lease, lease => lease)).status;
	END $$});

### before

# 30 users in the order of their numbers; a worker takes 10, finishes 4, writes
# down where the 5th stands, and goes on with the rest.
is(at('00:00', q{
		INSERT INTO syncstate.sync_state (user_id, source, due_at)
			SELECT id(n), 'google_calendar', '2029-12-31 23:00:00+00'::timestamptz + n * interval '1 second' FROM generate_series(1, 30) AS n;
		SELECT count(*), min(user_id::text), max(user_id::text) FROM syncstate.claim_due_syncs(max_rows => 10)}),
	'10|00000000-0000-4000-8000-000000000001|00000000-0000-4000-8000-000000000010', 'a worker takes ten');
is(at('00:01', q{SELECT finish(id(n), 1) FROM generate_series(1, 4) AS n;
		SELECT page_token FROM syncstate.checkpoint_sync(id(5), 'google_calendar', 1, 'page 2', 50, 100);
		SELECT sync_interval FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "1 hour"}');
		SELECT syncstate.request_sync(id(30), 'google_calendar')}),
	"idle\nidle\nidle\nidle\npage 2\n01:00:00\nt", 'finishes four, and checkpoints the fifth');

# What is committed, all of it, to be compared.
my $all = q{SET timezone = 'UTC'; SELECT s FROM syncstate.sync_state AS s ORDER BY user_id};
my $committed = $node->safe_psql('postgres', $all);

# A second worker is in the middle of things when the server goes down: it has
# claimed ten more, finished the sixth and failed the seventh of the first's.
my $worker = $node->background_psql('postgres', on_error_stop => 0);
$worker->query_safe(q{
	SET client_min_messages = error;
	SET syncstate.clock = '2030-01-01 00:02:00+00';
	BEGIN;
	SELECT user_id FROM syncstate.claim_due_syncs(max_rows => 10);
	SELECT finish(id(6), 1);
	SELECT syncstate.mark_sync_failed(id(7), 'google_calendar', 'error', lease => 1);
	SELECT syncstate.clear_sync_token(id(1), 'google_calendar');
	SELECT syncstate.disconnect_sync(id(8), 'google_calendar');
	SELECT syncstate.connect_sync(id(31), 'google_calendar');
	SELECT syncstate.set_sync_policy('google_calendar', '{"sync_interval": "2 hours"}')});
isnt($worker->query_safe($all), $committed, 'in the middle of a transaction');

### crash

$node->stop('immediate');
$worker->{run}->finish;
$node->start;

is($node->safe_psql('postgres', $all), $committed, 'what was committed is there, and nothing else');
is($node->safe_psql('postgres', q{SELECT sync_interval FROM syncstate.get_sync_policy('google_calendar')}), '01:00:00', 'policies too');
my $disagree = q{SELECT count(*) FROM syncstate.sync_state AS s
	WHERE (s.sync_token IS NOT NULL) <> (3 = (SELECT count(*) FROM items AS i WHERE i.user_id = s.user_id AND i.source = s.source))
		OR (SELECT count(*) FROM items AS i WHERE i.user_id = s.user_id) NOT IN (0, 3)};
is($node->safe_psql('postgres', $disagree), '0', 'items and cursors agree');

### after

# The first worker has its leases still, and may go on where it was.
is(at('00:03', q{SELECT lease, page_token, progress_done FROM syncstate.get_sync_state(id(5), 'google_calendar');
		SELECT finish(id(5), 1)}), "1|page 2|50\nidle", 'a worker that outlived the crash completes');

# Others get what nobody holds: the one requested first, and those of the
# claim that never was, which count no failure for it.
is(at('00:03', q{SELECT count(*), count(*) FILTER (WHERE user_id IN (SELECT id(n) FROM generate_series(11, 30) AS n)), min(lease), max(lease), max(failures),
			count(*) FILTER (WHERE requested_at IS NOT NULL)
		FROM syncstate.claim_due_syncs(max_rows => 100)}), '20|20|1|1|0|0', 'the claim that was not committed is gone');
is(at('00:03', q{SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 100)}), '0', 'and what is held is not handed out');

# The leases of who did not outlive it run out ten minutes after they began.
is(at('00:09:59', q{SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 100)}), '0', 'not before the lease is over');
is(at('00:10', q{SELECT count(*), min(user_id::text), max(user_id::text), min(lease), max(lease), min(failures), max(failures) FROM syncstate.claim_due_syncs(max_rows => 100)}),
	'5|00000000-0000-4000-8000-000000000006|00000000-0000-4000-8000-000000000010|2|2|1|1', 'then its rows come back, once, a failure counted');
is(at('00:10', q{SELECT finish(id(6), 1)}), 'PT409', 'who comes too late changes nothing');
is(at('00:10', $disagree), '0', 'not even items');
is(at('00:11', q{SELECT finish(id(n), 2) FROM generate_series(6, 10) AS n; SELECT finish(id(n), 1) FROM generate_series(11, 30) AS n;
		SELECT count(*), count(*) FILTER (WHERE status = 'idle' AND failures = 0 AND due_at > syncstate.sync_clock()) FROM syncstate.sync_state}),
	join("\n", ('idle') x 25, '30|30'), 'all is done in the end, once');
is(at('00:11', $disagree), '0', 'with items and cursors that agree');
is(at('00:11', 'SELECT count(*) FROM items'), '90', 'and no item twice');

# An orderly restart loses nothing either, not even a lease.
at('01:30', q{SELECT syncstate.claim_due_syncs(max_rows => 3)});
$committed = $node->safe_psql('postgres', $all);
$node->restart;
is($node->safe_psql('postgres', $all), $committed, 'an orderly restart changes nothing');
is(at('01:31', q{SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 100)}), '27', 'and the leases hold');

$node->stop;
done_testing();
