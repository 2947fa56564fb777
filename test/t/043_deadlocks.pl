# No two calls deadlock, batches included: each call takes its locks in an order
# that all calls share, or does not wait.  Many sessions call everything on a
# handful of rows, with a deadlock_timeout that finds every deadlock at once.
#
# Several single calls in one transaction lock in the order in which they are
# made, which is the caller's; that such deadlocks are seen here is the control.
#
#	SYNCSTATE_DEADLOCK_SECONDS	of the longest race, the others are shorter
#	SYNCSTATE_TEST_SEED			of the calls' arguments, instead of a random one
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{SYNCSTATE_DEADLOCK_SECONDS} || 2;
my $seed = $ENV{SYNCSTATE_TEST_SEED} || int(rand(2**31));

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<'EOCONF');
max_connections = 40
deadlock_timeout = 5ms
log_lock_waits = off
log_min_messages = fatal
EOCONF
$node->start;

# Many calls race on few rows, and some hold what they locked a moment longer
# than they need.
$node->safe_psql('postgres', <<'EOSQL');
CREATE EXTENSION syncstate;
CREATE TABLE app_user (id uuid PRIMARY KEY);
SELECT syncstate.watch_users('app_user');
SELECT syncstate.set_sync_policy(s, '{"sync_interval": "1 s", "lease_time": "1 s", "retry_base": "1 s",
	"retry_cap": "1 s", "rate_limit_wait": "1 s"}')
FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s;
SELECT syncstate.set_sync_policy('google_contacts', '{"provider": "people"}');

CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

CREATE FUNCTION source(n integer) RETURNS syncstate.sync_source LANGUAGE sql IMMUTABLE
RETURN (ARRAY['google_calendar', 'google_tasks', 'google_gmail', 'google_contacts']::syncstate.sync_source[])[1 + n % 4];

-- Users and rows lie in the tables in no order of their keys.
INSERT INTO app_user SELECT u(n * 7 % 12) FROM generate_series(0, 11) AS n;
INSERT INTO syncstate.sync_state (user_id, account, source, resource)
SELECT u(n * 5 % 12), a, source(n * 3), r
FROM generate_series(0, 47) AS n, unnest(ARRAY['work', '']) AS a, unnest(ARRAY['b', 'a']) AS r
ON CONFLICT DO NOTHING;

-- Any call, by its text; a lost lease or a missing row is no failure here.
CREATE FUNCTION try(call text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SELECT ' || call;
EXCEPTION WHEN SQLSTATE 'PT404' OR SQLSTATE 'PT409' THEN
	NULL;
END
$$;

-- Reports about many rows, with their leases of this moment; some of them are
-- limits and revoked grants of that scope.
CREATE FUNCTION batch(share double precision, sort integer, scope text, limits double precision DEFAULT 0.1)
RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM syncstate.report_syncs((
		SELECT coalesce(jsonb_agg(r ORDER BY sort * rank), '[]')
		FROM (SELECT rank() OVER (ORDER BY user_id, account, source, resource) AS rank,
				jsonb_build_object('user_id', user_id, 'account', account, 'source', source, 'resource', resource, 'lease', lease)
				|| CASE WHEN random() < limits THEN jsonb_build_object('outcome', 'rate_limited', 'scope', scope)
					WHEN scope <> 'source' AND random() < limits / 2 THEN jsonb_build_object('outcome', 'failed', 'error_message', 'x',
						'kind', 'auth', 'scope', scope)
					ELSE '{"outcome": "released"}' END AS r
			  FROM syncstate.sync_state WHERE random() < share) AS r))
$$;

-- What an account may have, or a part of it.
CREATE FUNCTION resources(sort integer) RETURNS text[] LANGUAGE sql AS $$
	SELECT coalesce(array_agg(r ORDER BY sort * rank), '{}')
	FROM (SELECT r, rank() OVER (ORDER BY r) AS rank FROM unnest(ARRAY['b', 'd', '', 'a', 'c']) AS r WHERE random() < 0.7) AS r
$$;

-- What it claimed, in any order, in the same transaction.
CREATE FUNCTION claim_and_report(max_rows integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	reports jsonb := coalesce(jsonb_agg(jsonb_build_object('user_id', c.user_id, 'account', c.account, 'source', c.source, 'resource', c.resource,
		'lease', c.lease, 'outcome', 'completed') ORDER BY random()), '[]')
		FROM syncstate.claim_due_syncs(max_rows => claim_and_report.max_rows) AS c;
BEGIN
	PERFORM pg_sleep(0.001);
	RETURN count(*) FROM syncstate.report_syncs(reports);
END
$$;
EOSQL

my %scripts = (
	claim => q{
		SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => :r % 50 + 1);
	},
	claim_one_source => q{
		BEGIN;
		SELECT count(*) FROM syncstate.claim_due_syncs(source(:r), :r % 20 + 1);
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	claim_and_report => q{
		SELECT claim_and_report(:r % 30 + 1);
	},
	batch_up => q{SELECT batch(0.7, 1, 'row');
	},
	batch_down => q{SELECT batch(0.7, -1, 'row');
	},
	# limits and revoked grants of whole accounts
	accounts_up => q{SELECT batch(0.5, 1, 'account', 0.3);
	},
	accounts_down => q{SELECT batch(0.5, -1, 'account', 0.3);
	},
	limit_account => q{
		BEGIN;
		SELECT try(format('syncstate.mark_rate_limited(u(%s), source(%s), %L, resource => %L, account => %L)',
			:r % 12, :r / 7 % 4, :r % 5 + 1 || ' s', (ARRAY['b', 'a'])[1 + :r / 3 % 2], (ARRAY['', 'work'])[1 + :r / 5 % 2]));
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	revoke => q{
		BEGIN;
		SELECT try(format('syncstate.mark_sync_failed(u(%s), source(%s), ''x'', ''auth'', resource => %L, account => %L)',
			:r % 12, :r / 7 % 4, (ARRAY['b', 'a'])[1 + :r / 3 % 2], (ARRAY['', 'work'])[1 + :r / 5 % 2]));
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	account => q{
		BEGIN;
		SELECT try(format('count(*) FROM syncstate.%s(u(%s), %L, %L)',
			(ARRAY['connect_account', 'pause_account', 'resume_account', 'disconnect_account', 'request_account'])[1 + :r % 5],
			:r % 12, (ARRAY['', 'work'])[1 + :r / 5 % 2], (ARRAY[NULL, 'google', 'people'])[1 + :r / 3 % 3]));
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	resources_up => q{
		BEGIN;
		SELECT count(*) FROM syncstate.set_sync_resources(u(:r % 12), source(:r / 7), resources(1), (ARRAY['', 'work'])[1 + :r / 5 % 2]);
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	resources_down => q{
		BEGIN;
		SELECT count(*) FROM syncstate.set_sync_resources(u(:r % 12), source(:r / 7), resources(-1), (ARRAY['', 'work'])[1 + :r / 5 % 2]);
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	batch_limits => q{SELECT batch(0.5, :r % 3 - 1, 'source');
	},
	single => q{
		SELECT try(format('syncstate.%s(u(%s), source(%s)%s, resource => %L, account => %L)',
			(ARRAY['mark_sync_completed', 'clear_sync_token', 'connect_sync', 'pause_sync', 'resume_sync', 'request_sync',
				'mark_sync_started', 'mark_rate_limited', 'disconnect_sync', 'mark_sync_failed', 'update_sync_state'])[1 + :r % 11],
			:r % 12, :r / 7 % 4,
			CASE :r % 11 WHEN 9 THEN ', ''x''' WHEN 10 THEN ', ''{"due_at": "now"}''' ELSE '' END,
			(ARRAY['a', 'b'])[1 + :r / 3 % 2], (ARRAY['', 'work'])[1 + :r / 5 % 2]));
	},
	limit_source => q{
		BEGIN;
		SELECT try(format('syncstate.mark_rate_limited(u(%s), source(%s), %L, ''source'', resource => ''a'')',
			:r % 12, :r / 7 % 4, :r % 5 + 1 || ' s'));
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	policy => q{
		BEGIN;
		SELECT count(syncstate.set_sync_policy(source(:r), '{"jitter": 0.1, "paused_until": null, "max_in_flight": 2}'));
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	no_policy => q{
		SELECT count(syncstate.set_sync_policy(source(:r), '{"jitter": null, "sync_interval": null, "lease_time": null,
			"retry_base": null, "retry_cap": null, "rate_limit_wait": null, "paused_until": null, "max_in_flight": null}'));
	},
	pause_source => q{
		SELECT count(syncstate.pause_sync_source(source(:r), now() + interval '1 s'));
		SELECT count(syncstate.resume_sync_source(source(:r)));
	},
	# many users at once, in no order
	forget => q{
		DELETE FROM app_user WHERE (hashtext(id::text) + :r) % 3 = 0;
		INSERT INTO app_user SELECT u(n * 5 % 12) FROM generate_series(0, 11) AS n ON CONFLICT DO NOTHING;
	},
	register => q{
		BEGIN;
		SELECT count(syncstate.register_sync_source('source_' || :r % 9));
		SELECT pg_sleep(0.001 * (:r % 3));
		COMMIT;
	},
	register_undone => q{
		BEGIN;
		SELECT count(syncstate.register_sync_source('never_' || :r % 3));
		ROLLBACK;
	},
	look => q{
		SELECT count(*) FROM syncstate.sync_overview;
		SELECT count(syncstate.next_sync_due()), (SELECT count(*) FROM syncstate.get_users_needing_sync(source(:r)));
	},
	# the control: single calls of one transaction in any order
	careless => q{
		BEGIN;
		SELECT try(format('syncstate.connect_sync(u(%s), ''google_gmail'', ''a'')', :r % 3));
		SELECT try(format('syncstate.connect_sync(u(%s), ''google_gmail'', ''a'')', (:r + 1) % 3));
		COMMIT;
	});
my $dir = $node->basedir;
append_to_file("$dir/$_.sql", "\\set r random(0, 1000000)\n$scripts{$_}") for keys %scripts;

sub deadlocks
{
	# sessions leave their statistics when they end
	$node->poll_query_until('postgres', q{
		SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'});
	return $node->safe_psql('postgres', q{SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'});
}

# Runs scripts, by name, and tells what pgbench counted.
sub race
{
	my ($what, $isolation, $time, @names) = @_;
	local $ENV{PGOPTIONS} = "-c default_transaction_isolation=$isolation";
	my ($out, $err);
	my $ok = run_log([ 'pgbench', '-n', '-c', 12, '-j', 2, '-T', $time, '--failures-detailed', '--random-seed', $seed,
			(map { ('-f', "$dir/$_.sql") } @names), '-h', $node->host, '-p', $node->port, 'postgres' ],
		'>', \$out, '2>', \$err);
	ok($ok && $err !~ /aborted/, "$what: sessions end without an error (seed $seed)") or diag $err;
	my %count = map { $_ => $out =~ /^number of $_: (\d+)/m ? $1 : -1 }
		'transactions actually processed', 'serialization failures', 'deadlock failures';
	note "$what: ", join ', ', map { "$count{$_} $_" } sort keys %count;
	return \%count;
}

my @all = grep { $_ ne 'careless' } sort keys %scripts;
my %share = ('read committed' => 1, 'repeatable read' => 0.5, 'serializable' => 0.5);
foreach my $isolation ('read committed', 'repeatable read', 'serializable')
{
	# few of these succeed on a busy machine, so races go on until some have
	my $happened = 0;
	foreach my $round (1 .. 20)
	{
		my $count = race("all calls, $isolation", $isolation =~ s/ /\\ /r, int($seconds * $share{$isolation}) || 1, @all);
		is($count->{'deadlock failures'}, 0, "$isolation: no call met a deadlock");
		$happened += $count->{'transactions actually processed'};
		last if $happened > 50;
	}
	cmp_ok($happened, '>', 50, "$isolation: something happened");
}

# Those that lock more than one thing, against each other and nothing else
my @pairs = (
	[ 'batch_up', 'batch_down' ],
	[ 'batch_limits', 'limit_source', 'policy', 'no_policy', 'pause_source' ],
	[ 'claim', 'claim_one_source', 'claim_and_report', 'batch_down', 'batch_up' ],
	[ 'forget', 'batch_up', 'batch_down', 'claim', 'single' ],
	[ 'accounts_up', 'accounts_down', 'limit_account', 'revoke' ],
	[ 'resources_up', 'resources_down', 'account', 'accounts_down' ],
	[ 'forget', 'account', 'limit_account', 'revoke', 'resources_down', 'accounts_up', 'claim_and_report', 'single' ],
	[ 'register', 'register_undone', 'claim', 'policy', 'single' ]);
foreach my $pair (@pairs)
{
	my $count = race("@$pair", 'read\ committed', int($seconds * 0.5) || 1, @$pair);
	is($count->{'deadlock failures'}, 0, "@$pair: no call met a deadlock");
}
is(deadlocks(), 0, 'the server saw no deadlock');

my $count = race('control', 'read\ committed', 2, 'careless');
cmp_ok($count->{'deadlock failures'}, '>', 0, 'a deadlock would have been seen by the sessions');
cmp_ok(deadlocks(), '>', 0, '... and by the server');

is( $node->safe_psql('postgres', 'SELECT count(*) FROM syncstate.sync_state AS s WHERE NOT syncstate.is_legal(s)'),
	0, 'all rows are legal');
$node->stop;
done_testing();
