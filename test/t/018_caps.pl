# max_in_flight, with real sessions and the real clock: however many claim at
# once, no more syncs of a user, account and source run; nobody waits; and what
# is held back does not keep others from their rows.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $sessions = 16;
my $cap = 3;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "max_connections = 50\nmax_prepared_transactions = 1");
$node->start;
$node->safe_psql('postgres', qq{
	CREATE EXTENSION syncstate;
	SELECT syncstate.set_sync_policy('google_calendar', '{"max_in_flight": $cap}');

	-- some rows of some accounts, and one of each of many users
	INSERT INTO syncstate.sync_state (user_id, account, source, resource)
	SELECT md5(u::text)::uuid, a, 'google_calendar'::syncstate.sync_source, r::text
	FROM generate_series(1, 5) AS u, unnest('{home,work}'::text[]) AS a, generate_series(1, 30) AS r
	UNION ALL
	SELECT md5('user ' || u)::uuid, '', 'google_calendar', '' FROM generate_series(1, 200) AS u});

# What runs, by one snapshot: the most of any domain.
my $most = q{SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM syncstate.sync_state
	WHERE lease_expires_at > clock_timestamp() GROUP BY user_id, account, source) AS d};
$node->safe_psql('postgres', <<"EOSQL");
CREATE TABLE seen (session integer, most bigint, claimed integer);

-- Claims of many sizes, some undone, and what runs then; what was claimed is
-- given back or completed at once, or kept for a while.
CREATE PROCEDURE work(session integer) LANGUAGE plpgsql AS \$\$
DECLARE
	batch syncstate.sync_state[];
	held syncstate.sync_state[] := '{}';
BEGIN
	IF session % 4 = 0 THEN
		PERFORM set_config('default_transaction_isolation', 'repeatable read', false);
		COMMIT;
	END IF;
	FOR i IN 1 .. 60 LOOP
		batch := ARRAY(SELECT c FROM syncstate.claim_due_syncs('google_calendar', 1 + floor(random() * random() * 40)::integer) AS c);
		IF i % 7 = session % 7 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		held := held || batch;
		INSERT INTO seen VALUES (session, ($most), cardinality(batch));
		COMMIT;
		IF random() < 0.7 THEN
			PERFORM syncstate.report_syncs((SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'account', account, 'source', source,
				'resource', resource, 'lease', lease, 'outcome', 'released')) FROM unnest(held)))
				WHERE cardinality(held) > 0;
			held := '{}';
		END IF;
		COMMIT;
	END LOOP;
END
\$\$;
EOSQL

my $script = $node->basedir . '/work.sql';
append_to_file($script, "CALL work(:client_id);\n");
$node->command_ok([ 'pgbench', '-n', '-c', $sessions, '-j', '2', '-t', '1', '-f', $script, 'postgres' ], "$sessions sessions claim in haste");
my ($max, $reached, $claimed) = split /\|/,
  $node->safe_psql('postgres', "SELECT max(most), count(*) FILTER (WHERE most = $cap), sum(claimed) FROM seen");
cmp_ok($max, '<=', $cap, "never do more than $cap of a domain run");
cmp_ok($reached, '>', 0, 'though so many do');
cmp_ok($claimed, '>', 1000, "and much is claimed: $claimed");

### a claim that is not committed

$node->safe_psql('postgres', q{DELETE FROM syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, account, source, resource, due_at)
	SELECT md5('a')::uuid, a, 'google_calendar', r::text, now() - interval '1 hour'
	FROM unnest('{home,work}'::text[]) AS a, generate_series(1, 10) AS r});
$node->safe_psql('postgres', q{BEGIN;
	SELECT FROM syncstate.claim_due_syncs('google_calendar', 1);
	PREPARE TRANSACTION 'claimed'});
my $by_account = q{SELECT account, count(*) FROM syncstate.claim_due_syncs('google_calendar', 100) GROUP BY 1 ORDER BY 1};
my $other = $node->safe_psql('postgres', $by_account);
like($other, qr/^(home|work)\|$cap$/, 'holds its domain, and no other');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'claimed'});
is($node->safe_psql('postgres', $by_account), $other =~ /home/ ? "work|$cap" : "home|$cap", 'until it ends');

### one account with many rows, all due before everybody else's

# Rows that are put into the past may be found a second late, where others have
# just ended a sweep: so many claims can take less.  Let the sweep begin anew.
my ($heavy, $others, $batch) = (20_000, 2_000, 100);
$node->safe_psql('postgres', qq{DELETE FROM syncstate.sync_state;
	UPDATE syncstate.sync_lane SET mark_at = '-infinity', sweep_at = '-infinity', sweep_rests_until = '-infinity';
	INSERT INTO syncstate.sync_state (user_id, source, resource, due_at)
	SELECT md5('heavy')::uuid, 'google_calendar', r::text, now() - interval '2 hours' + r * interval '1 ms' FROM generate_series(1, $heavy) AS r;
	INSERT INTO syncstate.sync_state (user_id, source, due_at)
	SELECT md5('other ' || u)::uuid, 'google_calendar', now() - interval '1 hour' + u * interval '1 ms' FROM generate_series(1, $others) AS u;
	CREATE PROCEDURE serve(INOUT claims integer) LANGUAGE plpgsql AS \$\$
	DECLARE
		left_over integer := $others;
	BEGIN
		FOR i IN 1 .. 1000 LOOP
			left_over := left_over - (SELECT count(*) FILTER (WHERE user_id <> md5('heavy')::uuid) FROM syncstate.claim_due_syncs('google_calendar', $batch));
			COMMIT;
			claims := i;
			EXIT WHEN left_over = 0;
		END LOOP;
	END \$\$});
my $claims = $node->safe_psql('postgres', 'CALL serve(0)');
cmp_ok($claims, '<=', 2 * $others / $batch, "$claims claims of $batch serve $others others");
is($node->safe_psql('postgres', $most), $cap, 'while the many wait for each other');

# who asks is told when to ask again, and not at once
is($node->safe_psql('postgres', q{SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 100)}), '0', 'then there is nothing');
is($node->safe_psql('postgres', q{SELECT count(*) FROM syncstate.get_users_needing_sync('google_calendar')}), '0', 'for nobody');
cmp_ok($node->safe_psql('postgres', q{SELECT extract(epoch FROM syncstate.next_sync_due('google_calendar') - clock_timestamp())}), '>', 0.1, 'and not before long');

# Those who look do not hold back a claim of their session: when one ends, the
# next one starts.
my $next = $node->safe_psql('postgres', q{
	SELECT FROM syncstate.next_sync_due('google_calendar');
	SELECT FROM syncstate.get_users_needing_sync('google_calendar');
	SELECT FROM (SELECT * FROM syncstate.sync_state WHERE user_id = md5('heavy')::uuid AND status = 'syncing' LIMIT 1) AS s,
		syncstate.mark_sync_completed(s.user_id, s.source, lease => s.lease, resource => s.resource);
	SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 100) WHERE user_id = md5('heavy')::uuid});
$next =~ s/\n+//g;
is($next, '1', 'and who has looked gets the place that becomes free');

# A worker alone comes back soon to what was held back, and not with the next
# sweep, a second later.
$node->safe_psql('postgres', q{DELETE FROM syncstate.sync_state;
	SELECT syncstate.set_sync_policy('google_tasks', '{"max_in_flight": 1}');
	INSERT INTO syncstate.sync_state (user_id, source, resource, due_at)
	SELECT md5('a')::uuid, 'google_tasks', r::text, now() - interval '1 minute' FROM generate_series(1, 6) AS r;
	CREATE PROCEDURE one_by_one(INOUT shortest interval) LANGUAGE plpgsql AS $$
	DECLARE
		batch syncstate.sync_state[];
		last timestamptz;
	BEGIN
		FOR i IN 1 .. 6 LOOP
			LOOP
				batch := ARRAY(SELECT c FROM syncstate.claim_due_syncs('google_tasks', 10) AS c);
				COMMIT;
				EXIT WHEN cardinality(batch) > 0;
				PERFORM pg_sleep(0.01);
			END LOOP;
			shortest := least(shortest, clock_timestamp() - last);
			last := clock_timestamp();
			PERFORM syncstate.mark_sync_completed(user_id, source, lease => lease, resource => resource) FROM unnest(batch);
			COMMIT;
		END LOOP;
	END $$});
cmp_ok($node->safe_psql('postgres', 'CALL one_by_one(NULL)') =~ /^00:00:(\d.*)/ ? $1 : 60, '<', 0.8, 'what is held back is claimed soon after what held it back');

# a claim of however many rows fits into the table of locks
$node->safe_psql('postgres', q{DELETE FROM syncstate.sync_state;
	INSERT INTO syncstate.sync_state (user_id, source, due_at) SELECT md5(u::text)::uuid, 'google_calendar', now() - interval '1 second' FROM generate_series(1, 10000) AS u});
is($node->safe_psql('postgres', q{SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 10000)}), '10000', 'a claim of 10,000 users');

$node->stop;
done_testing();
