# One session makes claims and reports for long, and needs no more memory in
# the end than after the warm-up.
#
#	SYNCSTATE_SOAK_CALLS	how many calls; 20000
use strict;
use warnings;
use List::Util qw(max min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $calls = $ENV{SYNCSTATE_SOAK_CALLS} // 20000;
my $calls_per_round = 18;    # at least; see the script
my $rounds = int($calls / $calls_per_round) + 1;

my $node = PostgreSQL::Test::Cluster->new('soak');
$node->init;
$node->append_conf('postgresql.conf', <<'EOC');
fsync = off
synchronous_commit = off
track_functions = all
autovacuum_naptime = 1s
EOC
$node->start;

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION syncstate;
SELECT syncstate.set_sync_policy('google_tasks', '{"sync_interval": "1 s", "retry_base": "1 s", "retry_cap": "2 s"}');
SELECT count(syncstate.connect_sync(('00000000-0000-4000-8000-' || pg_catalog.to_char(n, 'FM000000000000'))::uuid, s))
FROM generate_series(1, 100) AS n,
	unnest(ARRAY['google_calendar', 'google_tasks', 'google_contacts']::syncstate.sync_source[]) AS s;

CREATE TABLE memory (round int PRIMARY KEY, total bigint, used bigint, process bigint);
CREATE FUNCTION sample(round int) RETURNS void LANGUAGE sql AS $$
	INSERT INTO memory
	SELECT round, sum(total_bytes), sum(used_bytes),
		substring(pg_read_file('/proc/self/status') FROM 'RssAnon:\s+(\d+) kB')::bigint * 1024
	FROM pg_backend_memory_contexts
$$;

-- Each kind of error, within a transaction that goes on.
CREATE FUNCTION fails(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE call;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
EOS

my $script = $node->basedir . '/soak.sql';
append_to_file($script, <<'EOS');
\set n :n + 1
\set u random(1, 100)
\set r random(1, 6)
\set sample :n % :every
SELECT ('00000000-0000-4000-8000-' || pg_catalog.to_char(:u::int, 'FM000000000000'))::uuid AS id \gset

-- a batch
SELECT syncstate.request_sync(:id, 'google_calendar');
SELECT coalesce(jsonb_agg(jsonb_build_object('user_id', c.user_id, 'account', c.account, 'source', c.source, 'resource', c.resource, 'lease', c.lease) ||
	CASE c.lease % 4
		WHEN 0 THEN '{"outcome": "released"}'
		WHEN 1 THEN '{"outcome": "failed", "error_message": "no answer"}'
		WHEN 2 THEN '{"outcome": "rate_limited", "retry_after": "1 s"}'
		ELSE '{"outcome": "completed", "sync_token": "a token of some length", "items_synced": 3}' END::jsonb), '[]') AS reports
FROM syncstate.claim_due_syncs(max_rows => 5) AS c \gset
SELECT count(*) FROM syncstate.report_syncs(:reports);
SELECT count(*) FROM syncstate.claim_due_syncs('google_tasks', 2, '1 s');

-- one row, call by call
SELECT lease AS lease FROM syncstate.mark_sync_started(:id, 'google_gmail', resource => 'alone') \gset
SELECT 1 FROM syncstate.checkpoint_sync(:id, 'google_gmail', :lease, 'page', 1, 2, resource => 'alone');
SELECT 1 FROM syncstate.renew_sync_lease(:id, 'google_gmail', :lease, resource => 'alone');
\if :r = 1
SELECT 1 FROM syncstate.mark_sync_failed(:id, 'google_gmail', repeat('no answer ', 2000), lease => :lease, resource => 'alone');
\elif :r = 2
SELECT 1 FROM syncstate.mark_rate_limited(:id, 'google_gmail', '1 s', lease => :lease, resource => 'alone');
\elif :r = 3
SELECT 1 FROM syncstate.release_sync(:id, 'google_gmail', :lease, resource => 'alone');
\else
SELECT 1 FROM syncstate.mark_sync_completed(:id, 'google_gmail', 5, history_id => (:n)::int::text, lease => :lease, resource => 'alone');
\endif
SELECT 1 FROM syncstate.clear_sync_token(:id, 'google_gmail', resource => 'alone');
SELECT 1 FROM syncstate.update_sync_state(:id, 'google_gmail', '{"status": "syncing", "sync_interval": "1 h"}', 'alone');
SELECT 1 FROM syncstate.mark_sync_completed(:id, 'google_gmail', history_id => '9', resource => 'alone');
SELECT syncstate.pause_sync(:id, 'google_gmail', 'alone'), syncstate.resume_sync(:id, 'google_gmail', 'alone');

-- a whole account
\if :r = 4
SELECT count(*) FROM syncstate.set_sync_resources(:id, 'google_gmail', ARRAY['one', 'two', 'one'], 'other');
SELECT 1 FROM syncstate.mark_sync_failed(:id, 'google_gmail', 'revoked', 'auth', resource => 'one', account => 'other');
\elif :r = 5
SELECT count(*) FROM syncstate.set_sync_resources(:id, 'google_gmail', ARRAY['two'], 'other');
SELECT count(*) FROM syncstate.pause_account(:id, 'other');
SELECT count(*) FROM syncstate.resume_account(:id, 'other', 'google');
\else
SELECT 1 FROM syncstate.mark_rate_limited(:id, 'google_gmail', '1 s', resource => 'two', account => 'other');
SELECT count(*) FROM syncstate.connect_account(:id, 'other');
SELECT count(*) FROM syncstate.request_account(:id, 'other');
\endif
SELECT count(*) FROM syncstate.get_sync_states(:id);
SELECT count(*), (SELECT syncstate.next_sync_due()) FROM syncstate.get_users_needing_sync('google_tasks');

-- what fails, and what throws the kept policies and plans away
SELECT fails($$SELECT syncstate.mark_sync_completed('00000000-0000-4000-8000-000000000001', 'google_gmail', lease => 0, resource => 'alone')$$);
\if :r = 1
SELECT fails($$SELECT syncstate.report_syncs('[{"outcome": "done"}]')$$), fails($$SELECT syncstate.claim_due_syncs(max_rows => 0)$$);
SELECT syncstate.set_sync_policy('google_contacts', '{"jitter": 0.2, "max_in_flight": 1}');
\elif :r = 2
SELECT syncstate.disconnect_sync(:id, 'google_gmail', 'alone');
SELECT count(*) FROM syncstate.disconnect_account(:id, 'other');
\elif :r = 3
SELECT syncstate.pause_sync_source('google_gmail'), count(*) FROM syncstate.sync_overview;
\endif
\if :sample = 0
SELECT sample(:n);
\endif
EOS

my $every = max(1, int($rounds / 40));
$node->command_ok(
	[ 'pgbench', '--no-vacuum', '--client=1', "--transactions=$rounds", '--protocol=prepared',
		'-D', 'n=0', '-D', "every=$every", "--file=$script",
		'-h', $node->host, '-p', $node->port, 'postgres' ],
	"$rounds rounds of calls");
$node->poll_query_until('postgres',
	q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'});

my $made = $node->safe_psql('postgres', q{
	SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions
	WHERE schemaname = 'syncstate' AND funcname NOT IN ('guard', 'is_legal', 'policy_changed', 'sync_clock')});
cmp_ok($made, '>=', $calls, "$calls calls were made");
note("calls: $made");

# The first quarter warms up: plans become generic, caches fill.
my @samples = map { [ split /\|/ ] } split /\n/,
	$node->safe_psql('postgres', 'SELECT * FROM memory ORDER BY round');
note(sprintf 'round %d: contexts %d kB, used %d kB, process %d kB', $_->[0], map { $_ / 1024 } @$_[ 1 .. 3 ])
	foreach @samples;
cmp_ok(scalar(@samples), '>=', 20, 'memory was looked at often enough');
my @warm = splice @samples, int(@samples / 4);
foreach ([ 1, 'memory contexts', 64 ], [ 2, 'memory in use', 64 ], [ 3, 'memory of the process', 1024 ])
{
	my ($column, $name, $room) = @$_;
	my @early = map { $_->[$column] } @warm[ 0 .. $#warm / 3 ];
	my @late = map { $_->[$column] } @warm[ $#warm * 2 / 3 .. $#warm ];
	cmp_ok(max(@late) - max(@early), '<=', $room * 1024, "$name: no more than $room kB more");
}

$node->stop;
done_testing();
