# Many sessions claim and complete at once, by the real clock: every row is
# handed out exactly once for each of its due times, and none is forgotten.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $sessions = 16;
my $rows = $ENV{SYNCSTATE_TEST_CLAIMS} || 20_000;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'max_connections = 50');
$node->start;

$node->safe_psql('postgres', <<'EOSQL');
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;

-- What each session was given.  No row may be given twice under one lease, and
-- none twice for one due time.
CREATE TABLE handed_out (
	user_id uuid, source syncstate.sync_source, resource text,
	lease bigint, due_at timestamptz, session integer,
	UNIQUE (user_id, source, resource, lease),
	UNIQUE (user_id, source, resource, due_at));

-- Claims that were undone; a sequence, since it must survive that.
CREATE SEQUENCE undone;

-- A worker: batches of many sizes, of one source or all; claims in one
-- transaction and reports in another; each seventh claim is undone.  Ends when
-- nothing is due and nobody holds anything.
CREATE PROCEDURE work(session integer) LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '4 min';
	batch syncstate.sync_state[];
	i integer := 0;
BEGIN
	IF session % 4 = 0 THEN
		PERFORM set_config('default_transaction_isolation', 'repeatable read', false);
		COMMIT;
	END IF;
	LOOP
		i := i + 1;
		batch := ARRAY(SELECT c FROM syncstate.claim_due_syncs(
			CASE WHEN i % 3 = 0 THEN (enum_range(NULL::syncstate.sync_source))[1 + (i / 3 + session) % 4] END,
			1 + floor(random() * random() * 300)::integer) AS c);
		IF i % 7 = session % 7 THEN
			PERFORM nextval('undone') FROM unnest(batch);
			ROLLBACK;
			CONTINUE;
		END IF;
		INSERT INTO handed_out
		SELECT user_id, source, resource, lease, due_at, session FROM unnest(batch);
		COMMIT;

		PERFORM syncstate.mark_sync_completed(user_id, source, 7, sync_token => 'cursor ' || lease,
											  lease => lease, resource => resource)
		FROM unnest(batch);
		COMMIT;

		IF cardinality(batch) = 0 THEN
			EXIT WHEN NOT EXISTS (SELECT FROM syncstate.sync_state
								  WHERE due_at <= clock_timestamp() OR requested_at IS NOT NULL OR status = 'syncing');
			IF clock_timestamp() > deadline THEN
				RAISE 'rows are left over';
			END IF;
			PERFORM pg_sleep(0.05);
		END IF;
	END LOOP;
END
$$;
EOSQL

# One user in a hundred has a hundred resources; a third of the rows share one
# due time, a third are spread over an hour, a third over the last minute.
$node->safe_psql('postgres', <<"EOSQL");
INSERT INTO syncstate.sync_state (user_id, source, resource, due_at)
SELECT md5((CASE WHEN n % 2 = 0 THEN n / 200 ELSE n END)::text)::uuid,
	(ARRAY['google_calendar', 'google_tasks', 'google_gmail', 'google_contacts']::syncstate.sync_source[])[1 + n % 4],
	n, now() - CASE n % 3 WHEN 0 THEN interval '10 min' WHEN 1 THEN n * interval '1 h' / $rows ELSE n * interval '1 min' / $rows END
FROM generate_series(1, $rows) AS n
EOSQL

my $script = $node->basedir . '/work.sql';
append_to_file($script, "CALL work(:client_id);\n");

sub all_work
{
	my ($round, $what) = @_;

	$node->command_ok(
		[ 'pgbench', '-n', '-c', $sessions, '-j', 2, '-t', 1, '-f', $script, 'postgres' ],
		"$what: $sessions sessions end without an error");
	is( $node->safe_psql(
			'postgres', "SELECT count(*), count(DISTINCT (user_id, source, resource)) FROM handed_out WHERE lease = $round"),
		"$rows|$rows",
		"$what: every row was handed out once, under its next lease");
	is( $node->safe_psql(
			'postgres',
			"SELECT count(*) FROM syncstate.sync_state
			 WHERE status = 'idle' AND lease = $round AND failures = 0 AND items_synced = 7
				 AND sync_token = 'cursor $round' AND due_at > now() AND requested_at IS NULL"),
		$rows,
		"$what: every row was completed by who held it");
	return;
}

all_work(1, 'first due time');
cmp_ok(
	$node->safe_psql('postgres', 'SELECT count(DISTINCT session) FROM handed_out'),
	'>', 1, 'sessions shared the work');
cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM undone'),
	'>', 1, 'claims were undone on the way');

# The same rows again: some are due by time, some requested, some both
$node->safe_psql('postgres', <<'EOSQL');
UPDATE syncstate.sync_state SET due_at = due_at - interval '1 h' WHERE hashtext(resource) % 3 <> 0;
UPDATE syncstate.sync_state SET requested_at = now() WHERE hashtext(resource) % 3 IN (0, 1, -1);
EOSQL
all_work(2, 'second due time and requests');

is( $node->safe_psql('postgres', 'SELECT count(*) FROM handed_out'),
	2 * $rows, 'nothing was handed out besides');

# Sessions of one claim each begin with different sources: none waits for another.
$node->safe_psql('postgres', q{DELETE FROM syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, resource, due_at)
	SELECT md5('u')::uuid, s, n::text, now() - interval '1 min'
	FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s, generate_series(1, 20) AS n});
my %met = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', "SELECT source FROM syncstate.claim_due_syncs(max_rows => 1);\n\\connect\n" x 15);
# by chance 15 times the same one: once in 4^14
cmp_ok(scalar(keys %met), '>', 1, 'sessions that claim but once do not all meet the same source');

$node->stop;
done_testing();
