# rate_per_minute, with real sessions and the real clock: all together start
# no more than it says, at an even pace, without waiting for each other, and
# without anything left behind under a held snapshot.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $rate = 1200;       # per minute: 20 each second, bursts of 60
my $seconds = 6;
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "max_prepared_transactions = 2\nautovacuum = off");
$node->start;
$node->safe_psql('postgres', qq{
	CREATE EXTENSION syncstate;
	SELECT syncstate.set_sync_policy('google_tasks', '{"rate_per_minute": $rate}');
	CREATE TABLE starts (at timestamptz);
	INSERT INTO syncstate.sync_state (user_id, source)
	SELECT gen_random_uuid(), 'google_tasks' FROM generate_series(1, 2000)});

# A prepared transaction holds a snapshot's worth of dead versions all the time.
$node->safe_psql('postgres', q{BEGIN; CREATE TABLE held (); PREPARE TRANSACTION 'held'});
my $size = $node->safe_psql('postgres', q{SELECT pg_relation_size('syncstate.rate_google_tasks')});

# Claims of different sizes, some of which are rolled back; 8 sessions in haste.
my $script = $node->basedir . '/claim.sql';
append_to_file($script, q{
\set n random(1, 30)
WITH c AS (SELECT last_sync_at FROM syncstate.claim_due_syncs('google_tasks', :n)) INSERT INTO starts SELECT last_sync_at FROM c;
\sleep 5 ms
});
$node->command_ok([ 'pgbench', '-n', '-c', '8', '-j', '2', '-T', $seconds, '-f', $script, 'postgres' ], 'eight sessions claim in haste');

my ($all, $lasted) = split /\|/, $node->safe_psql('postgres', q{SELECT count(*), extract(epoch FROM max(at) - min(at)) FROM starts});
note("$all starts in $lasted seconds");
cmp_ok($all, '<=', 1.05 * $rate / 60 * $lasted + 0.05 * $rate + 1, 'no more starts than the rate and a burst allow');
cmp_ok($all, '>=', 0.9 * $rate / 60 * $lasted, 'and not many fewer');

# any second: a burst and a second's worth, and a little for the time between
# the draw of a permit and the start
my $most = $node->safe_psql('postgres', q{SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY at RANGE BETWEEN CURRENT ROW AND '1 second' FOLLOWING) AS n FROM starts) AS w});
cmp_ok($most, '<=', 0.05 * $rate + 1.5 * $rate / 60, 'never in one burst');
my $later = $node->safe_psql('postgres', q{SELECT max(n) FROM (SELECT at, count(*) OVER (ORDER BY at RANGE BETWEEN CURRENT ROW AND '1 second' FOLLOWING) AS n FROM starts) AS w
	WHERE at > (SELECT min(at) + interval '2 seconds' FROM starts)});
cmp_ok($later, '<=', 2 * $rate / 60, 'once the burst is spent, at the pace of the rate');
is($node->safe_psql('postgres', q{SELECT pg_relation_size('syncstate.rate_google_tasks')}), $size, 'the cell does not grow under a held snapshot');

# A claim that found no permit passes over nothing: the session's next one goes
# on with the very row at which it stood.
$node->safe_psql('postgres', q{
	TRUNCATE syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, resource, due_at)
	SELECT gen_random_uuid(), 'google_tasks', lpad(n::text, 4, '0'), now() - interval '30 s' + n * interval '1 ms' FROM generate_series(1, 500) AS n;
	CREATE TABLE taken (n serial, resource text);
	SELECT setval('syncstate.rate_google_tasks', -9223372036854775808, false)});
$node->safe_psql('postgres', q{
	DO $$BEGIN
		FOR i IN 1 .. 100 LOOP
			INSERT INTO taken (resource) SELECT resource FROM syncstate.claim_due_syncs('google_tasks', 7);
			COMMIT;
			PERFORM pg_sleep(0.005);
		END LOOP;
	END$$});
my ($taken, $in_order) = split /\|/, $node->safe_psql('postgres', q{SELECT count(*), bool_and(resource::int = n) FROM taken});
cmp_ok($taken, '>', 62, 'rows were taken after claims that found no permit');
is($in_order, 't', 'each in its turn');

# A claim that is not committed keeps nobody else waiting.
SKIP:
{
	skip 'no PostgreSQL::Test::BackgroundPsql', 2
	  unless eval { require PostgreSQL::Test::BackgroundPsql; 1 };
	my $session = $node->background_psql('postgres');

	$node->safe_psql('postgres', q{SELECT setval('syncstate.rate_google_tasks', -9223372036854775808, false)});
	$session->query_safe('BEGIN');
	is($session->query_safe(q{SELECT count(*) FROM syncstate.claim_due_syncs('google_tasks', 10)}), '10', 'a claim in a transaction');
	is($node->safe_psql('postgres', q{SET lock_timeout = '5 s'; SELECT count(*) FROM syncstate.claim_due_syncs('google_tasks', 10)}), '10', 'another goes on meanwhile');
	$session->query_safe('ROLLBACK');
	$session->quit;
}
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'held'});

done_testing();
