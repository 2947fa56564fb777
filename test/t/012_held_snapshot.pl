# While somebody holds a snapshot open for hours, nothing that dies can be
# removed, and each cycle of claim and completion leaves dead index entries.  The
# cost of a claim, in buffers touched, must not grow with their number, neither
# in a session that has been claiming all along nor in a new one; and what a
# session's mark has passed must be found all the same.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $few = 2_000;
my $many = $ENV{SYNCSTATE_TEST_CYCLES} || 40_000;

# A step of a sweep visits 1,500 dead index entries, and so does the way on from
# the mark, where up to 150 rows are wanted; a visit touches a page of the table,
# and now and then one of the index.  A row that is claimed costs less than 15
# buffers.
my $batch = 100 * 15;
my $step = 1_500 * 1.5;
my $way_on = $step;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'autovacuum_naptime = 1s');
$node->start;

$node->safe_psql('postgres', <<'EOSQL');
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
CREATE TABLE held (user_id uuid, lease bigint);
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;

-- Claims and completes "cycles" rows, a hundred at a time, each half of a cycle
-- in a transaction of its own, and gives up after three minutes.
CREATE PROCEDURE cycle(cycles integer) LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '3 min';
	batch syncstate.sync_state[];
BEGIN
	WHILE cycles > 0 LOOP
		batch := ARRAY(SELECT c FROM syncstate.claim_due_syncs('google_calendar', least(cycles, 100)) AS c);
		COMMIT;
		PERFORM syncstate.mark_sync_completed(user_id, source, lease => lease) FROM unnest(batch);
		COMMIT;
		cycles := cycles - cardinality(batch);
		IF cardinality(batch) = 0 THEN
			PERFORM pg_sleep(0.01);
		END IF;
		IF clock_timestamp() > deadline THEN
			RAISE '% cycles are left', cycles;
		END IF;
	END LOOP;
END
$$;

-- Claims row by row.
CREATE FUNCTION claim_singly(n integer) RETURNS SETOF syncstate.sync_state LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		RETURN QUERY SELECT * FROM syncstate.claim_due_syncs('google_calendar', 1);
	END LOOP;
END
$$;

-- Claims until it finds a row of this user, or for two minutes; puts all others
-- back.
CREATE PROCEDURE find(wanted uuid, INOUT outcome text DEFAULT 'not found') LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '2 min';
	batch syncstate.sync_state[];
BEGIN
	LOOP
		batch := ARRAY(SELECT c FROM syncstate.claim_due_syncs('google_calendar', 50) AS c);
		COMMIT;
		PERFORM syncstate.mark_sync_completed(user_id, source, lease => lease) FROM unnest(batch);
		SELECT 'found under lease ' || lease INTO outcome FROM unnest(batch) WHERE user_id = wanted;
		COMMIT;
		EXIT WHEN outcome IS NOT NULL OR clock_timestamp() > deadline;
		IF cardinality(batch) = 0 THEN
			PERFORM pg_sleep(0.01);
		END IF;
	END LOOP;
	outcome := coalesce(outcome, 'not found');
END
$$;

EOSQL

# More rows than cycles, so that the index keeps what is dead of each but once:
# to look up a row of which many versions died is another matter.  They are due
# ahead of a new session's mark, but for some, in another order than they lie in
# the table.
my $rows = $few + $many + 20_000;
$node->safe_psql('postgres', <<"EOSQL");
INSERT INTO syncstate.sync_state (user_id, source, due_at)
SELECT u(n), 'google_calendar', now() - CASE WHEN n > $few THEN interval '0' ELSE interval '2 min' END - (hashint4(n) & 1048575) * interval '40 s' / 1048575
FROM generate_series(1, $rows) AS n
EOSQL

# The buffers that a claim touches, or what else returns claimed rows.
sub claim
{
	my ($session, $from) = @_;
	$from //= q{syncstate.claim_due_syncs('google_calendar', 100)};
	my $plan = decode_json($session->query_safe(
		"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON)
		 INSERT INTO held SELECT user_id, lease FROM $from"))->[0]{Plan}{Plans}[0];
	$session->query_safe(
		"SELECT count(*) FROM held AS h, syncstate.mark_sync_completed(h.user_id, 'google_calendar', lease => h.lease)");
	$session->query_safe('TRUNCATE held');
	return $plan->{'Shared Hit Blocks'} + $plan->{'Shared Read Blocks'};
}

# The dearest of many claims: some are steps of a sweep, some are not.
sub dearest
{
	my $session = shift;
	my $dearest = 0;
	foreach (1 .. 40)
	{
		my $cost = claim($session);
		$dearest = $cost if $cost > $dearest;
	}
	return $dearest;
}

# The first claim of a new session, which reads catalogs too.
sub first_claim
{
	my $session = $node->background_psql('postgres');
	my $cost = claim($session, q{syncstate.claim_due_syncs('google_calendar', 1)});
	$session->quit;
	return $cost;
}

my $holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$holder->query_safe('SELECT count(*) FROM syncstate.sync_state');

my $warm = $node->background_psql('postgres');
$warm->query_safe("CALL cycle($few)");
my ($warm_few, $new_few) = (dearest($warm), first_claim());
note("after $few cycles: dearest claim $warm_few buffers, first of a new session $new_few");

$warm->query_safe("CALL cycle($many)");
my ($warm_many, $new_many) = (dearest($warm), first_claim());
note("after $many more cycles: dearest claim $warm_many buffers, first of a new session $new_many");

cmp_ok($many, '>', 1.2 * ($batch + $step + $way_on + 3000),
	'more died than the bounds below allow to be read');
cmp_ok($warm_many, '<', $batch + $step, 'a claim in a warm session costs no more than a step of a sweep');
cmp_ok($new_many, '<', (500 + 1_500) * 1.1 + 400,
	'the first claim of a session costs no more than catalogs, a small step and the way on');

# Claims that are full without it leave most of their time to something else
# than the sweep, which would take each of them a step further.
$warm->query_safe('SELECT pg_sleep(1)'); # the next one starts no sooner
my $singles = claim($warm, 'claim_singly(100)');
note("100 claims of one row: $singles buffers");
cmp_ok($singles, '<', $batch + 5 * $step, 'few claims of a busy worker are steps of a sweep');

# The way on from the mark is gone but once, and without waiting in between.  A
# row leaves two dead entries where its claim was not HOT.
my $new = $node->background_psql('postgres');
my $now = "SELECT syncstate.next_sync_due('google_calendar') <= clock_timestamp()";
is($new->query_safe($now), 'f', 'a session that does not claim cannot tell that there is work');
claim($new);
is($new->query_safe($now),
	't', 'a new session that has to go on towards now shall not wait');
my $empty = 0;
$empty++ while $empty < 200 && $new->query_safe(
	"SELECT count(syncstate.mark_sync_completed(user_id, source, lease => lease))
	 FROM syncstate.claim_due_syncs('google_calendar', 100)") == 0;
cmp_ok($empty, '<', 2 * $rows / 1000, '... and comes to the rows that are due');
note("after $empty empty claims");
cmp_ok(dearest($new), '<', $batch + $step, '... and is warm then');

# ------------------------------------------------------------- stragglers
# due an hour ago, so before every mark.  From now on rows come back within a
# second, so that there is always something else to claim.
$node->safe_psql('postgres',
	q[SELECT FROM syncstate.set_sync_policy('google_calendar', '{"sync_interval": "1 s", "jitter": 0.9}')]);

# a lease that runs out
$node->safe_psql('postgres',
	"INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES (u(1000001), 'google_calendar', now() - interval '1 h');
	 SELECT FROM syncstate.mark_sync_started(u(1000001), 'google_calendar', '1 s')");
is($warm->query_safe('CALL find(u(1000001))'), 'found under lease 2', 'an expired lease is found');

# a claim that is undone: another session holds the row while this one passes
my $other = $node->background_psql('postgres');
$node->safe_psql('postgres',
	"INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES (u(1000002), 'google_calendar', now() - interval '1 h')");
$other->query_safe('BEGIN');
$other->query_safe("SELECT FROM syncstate.mark_sync_started(u(1000002), 'google_calendar')");
$warm->query_safe('CALL cycle(1000)');
is($node->safe_psql('postgres', 'SELECT lease FROM syncstate.sync_state WHERE user_id = u(1000002)'),
	0, 'a row that another session is about to claim is passed over');
$other->query_safe('ROLLBACK');
is($warm->query_safe('CALL find(u(1000002))'), 'found under lease 1', 'a claim that was undone is found');

# one that is undone in this session
$node->safe_psql('postgres',
	"INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES (u(1000003), 'google_calendar', now())");
$warm->query_safe('BEGIN');
$warm->query_safe("SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 10000)") foreach 1 .. 3;
$warm->query_safe('ROLLBACK');
is($warm->query_safe('CALL find(u(1000003))'), 'found under lease 1', 'so is one of the session itself');

# a late commit of an older due time
$other->query_safe('BEGIN');
$other->query_safe(
	"INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES (u(1000004), 'google_calendar', now() - interval '1 h')");
$warm->query_safe('CALL cycle(1000)');
$other->query_safe('COMMIT');
is($warm->query_safe('CALL find(u(1000004))'), 'found under lease 1', 'a late commit is found');

# and all of it by a session that is new
$node->safe_psql('postgres',
	"INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES (u(1000005), 'google_calendar', now() - interval '1 h')");
is($node->safe_psql('postgres', 'CALL find(u(1000005))'), 'found under lease 1', 'a new session finds an old row');

# A row that moved to another page when a column was written has a dead entry and
# a live one in the same place.  A first step ends after 500 dead entries, of which
# it reads 17 twice, since they look like a crowd: here between the two.
$node->safe_psql('postgres', q{
	INSERT INTO syncstate.sync_state (user_id, source, due_at)
	SELECT u(2000000 + n), 'google_tasks', now() - interval '2 h' + n * interval '1 ms' FROM generate_series(1, 483) AS n;
	UPDATE syncstate.sync_state SET due_at = now() + interval '1 h' WHERE user_id BETWEEN u(2000001) AND u(2000482);
	DO $$
	BEGIN
		SET LOCAL session_replication_role = replica;
		FOR n IN 1 .. 60 LOOP
			UPDATE syncstate.sync_state SET error_message = n::text WHERE user_id = u(2000483);
		END LOOP;
	END $$;
	CREATE PROCEDURE find_soon(INOUT claims integer DEFAULT 0) LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			claims := claims + 1;
			EXIT WHEN claims = 10 OR EXISTS (SELECT FROM syncstate.claim_due_syncs('google_tasks', 1));
			COMMIT;
		END LOOP;
	END $$});
cmp_ok($node->safe_psql('postgres', 'CALL find_soon()'), '<', 10, 'a row that moved within its place is found by the first sweep');

is($holder->query_safe('SELECT count(*) FROM syncstate.sync_state WHERE lease = 0'),
	$rows, 'the snapshot was held all along');
$holder->query_safe('COMMIT');
$_->quit foreach $holder, $warm, $new, $other;
$node->stop;
done_testing();
