# What examples/metrics has works as it is: the function and the role, the
# exporter's queries, the alert rules, the dashboard's queries.
#
# The exporter and promtool come from Debian with services, so test/setup does
# without; what needs them is passed over where they are missing.  There is no
# Grafana in Debian: its queries are run here, by themselves.

use strict;
use warnings FATAL => 'all';

use File::Copy qw(copy);
use HTTP::Tiny;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('metrics');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;
my ($host, $port) = ($node->host, $node->port);
my $connect = "host=$host port=$port dbname=app";

sub program
{
	my ($name) = @_;
	my ($found) = grep { -x } map { "$_/$name" } split(/:/, $ENV{PATH});
	return $found;
}

# Rows of a query, as lists of columns; as the superuser if no one is named.
sub rows
{
	my ($query, $user) = @_;
	return map { [ split /\x1f/, $_, -1 ] } split /\n/, $node->safe_psql('app', $query,
		extra_params => [ '-F', "\x1f", $user ? ('-U', $user) : () ]);
}

# The extension is the database owner's, who is no superuser.
$node->safe_psql('postgres', q{
	CREATE ROLE owner LOGIN;
	CREATE ROLE monitor LOGIN;
	CREATE DATABASE app OWNER owner});
$node->safe_psql('app', 'CREATE EXTENSION syncstate', extra_params => [ '-U', 'owner' ]);
$node->command_ok(
	[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-v', 'role=monitor', '-U', 'owner', '-d', $connect,
		'-f', 'examples/metrics/role.sql' ], 'role.sql runs as the owner of the extension');

# Rows in all states, at a time that stands still, in every session.  It is that
# of now, since runs() goes by the server's clock.
$node->safe_psql('app', q{
	LOAD 'syncstate';
	SELECT format('ALTER DATABASE app SET syncstate.clock = %L', now()) \gexec});
$node->safe_psql('app', q{
	INSERT INTO syncstate.sync_state (user_id, source)
	SELECT ('00000000-0000-4000-8000-' || to_char(n, 'FM000000000000'))::uuid, s
	FROM unnest('{google_gmail,google_tasks}'::syncstate.sync_source[]) AS s, generate_series(1, 30) AS n;
	CREATE VIEW gmail AS SELECT right(user_id::text, 2)::int AS n, * FROM syncstate.sync_state WHERE source = 'google_gmail';
	UPDATE gmail SET due_at = syncstate.sync_clock() - interval '20 minutes';
	SELECT syncstate.mark_sync_failed(user_id, source, 'HTTP 401', 'auth', scope => 'row') FROM gmail WHERE n BETWEEN 1 AND 3;
	SELECT syncstate.mark_sync_failed(user_id, source, 'HTTP 503') FROM gmail WHERE n BETWEEN 4 AND 7;
	SELECT syncstate.mark_rate_limited(user_id, source) FROM gmail WHERE n BETWEEN 8 AND 9;
	SELECT syncstate.mark_sync_completed(user_id, source) FROM gmail WHERE n = 10;
	SELECT syncstate.pause_sync(user_id, source) FROM gmail WHERE n = 11;
	UPDATE gmail SET due_at = NULL, parked_reason = 'failures' WHERE n BETWEEN 12 AND 13;
	UPDATE gmail SET due_at = NULL, parked_reason = 'token_loop' WHERE n = 14;
	UPDATE gmail SET due_at = NULL, parked_reason = 'gone' WHERE n BETWEEN 22 AND 26;
	SELECT syncstate.mark_sync_started(user_id, source) FROM gmail WHERE n BETWEEN 15 AND 21;
	UPDATE gmail SET lease_expires_at = syncstate.sync_clock() - interval '1 s' WHERE n BETWEEN 20 AND 21;
	SELECT syncstate.request_sync(user_id, source) FROM gmail WHERE n = 15;
	SELECT syncstate.set_sync_policy('google_tasks', '{"sync_interval": "1 hour"}');
	SELECT syncstate.pause_sync_source('google_tasks')});

# Push channels of Gmail, which are renewed by half a day before their end or at
# half of their lives; n is the row.
$node->safe_psql('app', q{
	SELECT syncstate.set_sync_policy('google_gmail', '{"push_renew_before": "1 day"}');
	INSERT INTO syncstate.sync_channel (user_id, account, source, resource, state, opened_at, expires_at, renew_at, channel_id, token_hash)
	SELECT user_id, '', 'google_gmail', '', state, now - opened, now + ends, CASE WHEN n <> 10 THEN now END,
		CASE WHEN opened IS NOT NULL THEN 'channel ' || n END, CASE WHEN opened IS NOT NULL THEN sha256('secret') END
	FROM syncstate.sync_clock() AS now, gmail JOIN (VALUES
		(1, 'opening', NULL::interval, NULL::interval), (2, 'opening', NULL, NULL),
		(3, 'active', '3 days', '6 hours 1 s'), (4, 'active', '3 days', '6 hours'),
		(5, 'active', '75 min', '25 min 1 s'), (6, 'active', '75 min', '25 min'),
		(7, 'active', '7 days', '-1 s'), (8, 'active', '7 days', NULL), (9, 'active', '4 days', '3 days'), (10, 'active', '7 days', '1 min'),
		(11, 'retiring', '7 days', '1 min'),
		(12, 'unsupported', NULL, NULL), (13, 'unsupported', NULL, NULL), (14, 'unsupported', NULL, NULL)) AS h (n, state, opened, ends) USING (n);
	UPDATE gmail SET push_until = syncstate.sync_clock() + interval '1 hour' WHERE n BETWEEN 8 AND 9;
	INSERT INTO syncstate.sync_channel (user_id, account, source, resource, state, opened_at, expires_at, renew_at, channel_id, token_hash)
	SELECT user_id, '', 'google_tasks', '', state, opened_at, expires_at, renew_at, 'other ' || channel_id, token_hash FROM syncstate.sync_channel WHERE state = 'active'});

# Runs of two sources, whose rows are gone then: of one all are kept, of the
# other the failures.  One run is too old to be counted.
$node->safe_psql('app', q{
	SELECT set_config('test.now', syncstate.sync_clock()::text, false) \g /dev/null
	CREATE FUNCTION pg_temp.ago(since interval) RETURNS text LANGUAGE sql
	RETURN set_config('syncstate.clock', (current_setting('test.now')::timestamptz - since)::text, false);
	CREATE PROCEDURE pg_temp.run(since interval, took interval, u uuid, s syncstate.sync_source, outcome text)
	LANGUAGE plpgsql AS $$
	DECLARE
		lease bigint;
	BEGIN
		PERFORM pg_temp.ago(since);
		lease = (syncstate.mark_sync_started(u, s)).lease;
		PERFORM pg_temp.ago(since - took);
		IF outcome <> 'lost' THEN
			PERFORM syncstate.report_syncs(jsonb_build_array(
				jsonb_build_object('user_id', u, 'source', s, 'lease', lease, 'outcome', outcome)
				|| CASE outcome WHEN 'failed' THEN '{"error_message": "HTTP 500"}' ELSE '{}' END::jsonb));
		END IF;
	END
	$$;
	SELECT syncstate.set_sync_policy('google_calendar', '{"keep_runs": "all"}');
	SELECT syncstate.set_sync_policy('google_contacts', '{"keep_runs": "failures"}');
	SELECT gen_random_uuid() AS one, gen_random_uuid() AS two \gset
	CALL pg_temp.run('80 min', '15 min', :'one', 'google_calendar', 'completed');
	CALL pg_temp.run('39 min', '10 s', :'one', 'google_calendar', 'completed');
	CALL pg_temp.run('38 min', '60 s', :'one', 'google_calendar', 'completed');
	CALL pg_temp.run('36 min', '20 s', :'one', 'google_calendar', 'completed');
	CALL pg_temp.run('35 min', '1 s', :'one', 'google_calendar', 'lost');
	CALL pg_temp.run('20 min', '5 s', :'one', 'google_calendar', 'failed');
	CALL pg_temp.run('19 min', '5 s', :'two', 'google_contacts', 'completed');
	CALL pg_temp.run('18 min', '7 s', :'two', 'google_contacts', 'rate_limited');
	DELETE FROM syncstate.sync_state WHERE source IN ('google_calendar', 'google_contacts')});
my @runs = (
	[ 'google_calendar', 'completed', 3, 20, 60, 60 ],
	[ 'google_calendar', 'failed', 1, 5, 5, 5 ],
	[ 'google_calendar', 'lost', 1, 600, 600, 600 ],
	(map { [ 'google_calendar', $_, 0, '', '', '' ] } 'rate_limited', 'released', 'revoked'),
	[ 'google_contacts', 'failed', 0, '', '', '' ],
	[ 'google_contacts', 'lost', 0, '', '', '' ],
	[ 'google_contacts', 'rate_limited', 1, 7, 7, 7 ],
	[ 'google_contacts', 'revoked', 0, '', '', '' ]);
my @run_names = qw(ended p50_seconds p95_seconds max_seconds);

# ------------------------------------------------------------ the functions

my $overview = q{SELECT o.source, o.rows, o.rows - parked_paused - parked_auth - parked_failures - parked_token_loop - parked_gone,
		idle, syncing, error, rate_limited, due, coalesce(extract(epoch FROM oldest_due_age), 0)::float8, requested,
		live_leases, expired_leases, failing, parked_paused, parked_auth, parked_failures, parked_token_loop,
		parked_gone, limited, without_cursor, (o.paused_until IS NOT NULL)::int, extract(epoch FROM p.sync_interval)::float8,
		channels_opening, channels_active, channels_retiring, channels_unsupported, channels_ending, channels_silent,
		CASE o.source WHEN 'google_gmail' THEN 3 ELSE 0 END -- the 4th, 6th and 7th row's; Tasks use no push
	FROM syncstate.sync_overview AS o, syncstate.get_sync_policy(o.source) AS p ORDER BY o.source};
my @names = qw(rows active idle syncing error rate_limited due oldest_due_seconds requested live_leases
	expired_leases failing parked_paused parked_auth parked_failures parked_token_loop parked_gone limited without_cursor
	is_paused interval_seconds channels_opening channels_active channels_retiring channels_unsupported channels_ending channels_silent channels_overdue);
my @truth = rows($overview);
is(scalar @truth, 4, 'there are four sources');
my ($gmail) = grep { $_->[0] eq 'google_gmail' } @truth;
foreach my $i (1 .. $#$gmail)
{
	cmp_ok($gmail->[$i], '>', 0, "$names[$i - 1] has something to tell")
	  unless $names[ $i - 1 ] eq 'is_paused';
}
is_deeply(
	[ rows("SELECT source, @{[ join ', ', map { /^is_/ ? qq{$_\::int} : $_ } @names ]} FROM syncstate_metrics.overview()", 'monitor') ],
	\@truth,
	'the role sees in overview() what is in sync_overview');
is_deeply([ rows('SELECT * FROM syncstate_metrics.runs() ORDER BY source, outcome', 'monitor') ], \@runs,
	'it sees the runs of an hour, by what is kept of each source');
my ($events) = rows('SELECT count(*), 3900 FROM syncstate.sync_event');    # the oldest is the first sync, 65 minutes ago
cmp_ok($events->[0], '>', 10, 'events wait');
is_deeply([ rows('SELECT * FROM syncstate_metrics.events()', 'monitor') ], [$events], 'it sees how many, and since when');
is_deeply([ rows('BEGIN; SELECT FROM syncstate.take_sync_events(1000) \g /dev/null
	SELECT * FROM syncstate_metrics.events(); ROLLBACK') ], [ [ 0, 0 ] ], 'or that none do');

foreach my $statement (
	'TABLE syncstate.sync_state', 'TABLE syncstate.sync_overview', 'TABLE syncstate.my_syncs',
	'TABLE syncstate.sync_policy', 'SELECT syncstate.claim_due_syncs()', 'TABLE syncstate.sync_run',
	'TABLE syncstate.my_sync_runs', 'TABLE syncstate.sync_channel', q{SELECT syncstate.receive_push('channel 9', 'secret')}, 'TABLE syncstate.sync_event', 'SELECT syncstate.take_sync_events()')
{
	my ($status, undef, $error) = $node->psql('app', $statement, extra_params => [ '-U', 'monitor' ]);
	like($error, qr/permission denied/, "the role may not: $statement");
}
$node->safe_psql('app', 'CREATE ROLE other LOGIN');
is($node->safe_psql('app', q{
	SELECT has_schema_privilege('other', 'syncstate_metrics', 'USAGE'), count(*)
	FROM pg_proc WHERE pronamespace = 'syncstate_metrics'::regnamespace AND has_function_privilege('other', oid, 'EXECUTE')}),
	'f|0', 'others may call none of the functions');

# An owner whom row security does not concern reads the runs of the hour only.
$node->safe_psql('postgres', 'CREATE DATABASE large');
$node->safe_psql('large', q{
	CREATE EXTENSION syncstate;
	SELECT syncstate.set_sync_policy(s, '{"keep_runs": "all"}') FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s;
	INSERT INTO syncstate.sync_run (user_id, account, source, resource, lease, started_at, ended_at, outcome, was_full, was_requested)
	SELECT gen_random_uuid(), '', s, '', n, t - interval '2 s', t, 'completed', false, false
	FROM generate_series(1, 10000) AS n, unnest(enum_range(NULL::syncstate.sync_source)) AS s,
		LATERAL (SELECT now() - n * interval '1 min' AS t) AS ended;
	VACUUM ANALYZE syncstate.sync_run});
$node->command_ok(
	[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-v', 'role=monitor', '-d', "host=$host port=$port dbname=large",
		'-f', 'examples/metrics/role.sql' ], 'role.sql runs as a superuser');
is($node->safe_psql('large', q{SELECT sum(ended) BETWEEN 200 AND 240 FROM syncstate_metrics.runs()}, extra_params => [ '-U', 'monitor' ]),
	't', 'and runs() finds the runs of the hour');
my ($plan) = @{ JSON::PP->new->decode($node->safe_psql('large', q{
	SELECT FROM syncstate_metrics.runs() \g /dev/null -- the catalogs are read once
	EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) SELECT * FROM syncstate_metrics.runs()},
	extra_params => [ '-U', 'monitor' ])) };
my $pages = $node->safe_psql('large', q{SELECT relpages FROM pg_class WHERE oid = 'syncstate.sync_run'::regclass});
my $read = $plan->{Plan}{'Shared Hit Blocks'} + $plan->{Plan}{'Shared Read Blocks'};
note "$read of $pages pages";
cmp_ok($read, '<', $pages / 3, 'by the index');

# ------------------------------------------------------------ the dashboard

my $dashboard = JSON::PP->new->utf8->decode(slurp_file('examples/metrics/grafana.json'));
my $cells = {};
foreach my $panel (@{ $dashboard->{panels} })
{
	my $title = "panel \"$panel->{title}\"";
	my ($query, @more) = map { $_->{rawSql} } @{ $panel->{targets} };
	my ($columns, @rows) = rows("COPY ($query) TO STDOUT WITH (FORMAT text, HEADER, DELIMITER E'\\x1f')", 'monitor');

	is(scalar @more, 0, "$title has one query");
	cmp_ok(scalar @rows, '>', 0, "$title: it runs as the role, and finds something");
	$cells->{ $panel->{title} } = [ map { my %row; @row{@$columns} = @$_; \%row } @rows ];
	foreach my $named (map({ $_->{matcher}{options} } @{ $panel->{fieldConfig}{overrides} }), $panel->{options}{xField} // ())
	{
		ok((grep { $_ eq $named } @$columns), "$title: the column $named is there");
	}
	foreach my $source ($panel->{datasource}, map { $_->{datasource} } @{ $panel->{targets} })
	{
		is($source->{uid}, "\${$dashboard->{templating}{list}[0]{name}}", "$title asks the chosen database");
	}
}
my %ids = map { $_->{id} => 1 } @{ $dashboard->{panels} };
is(scalar keys %ids, scalar @{ $dashboard->{panels} }, 'panels have ids of their own');
is_deeply($cells->{Now}, [ { 'Rows' => 60, 'Due' => $gmail->[7] + 30, 'In flight' => 5, 'Requested' => 1, 'Failing' => 7, 'Parked' => 12 } ],
	'the dashboard tells how things are');
is_deeply($cells->{'Runs by outcome'}, [
		{ source => 'google_calendar', completed => 3, failed => 1, rate_limited => 0, released => 0, lost => 1, revoked => 0 },
		{ source => 'google_contacts', completed => '\N', failed => 0, rate_limited => 1, released => '\N', lost => 0, revoked => 0 } ],
	'how runs ended');
is_deeply($cells->{'Duration of runs'}, [ { source => 'google_calendar', p95 => 60 } ], 'how long they took');
is_deeply($cells->{'Events that wait'}, [ { Waiting => $events->[0], Oldest => 3900 } ], 'what nobody has taken');
is_deeply([ grep { $_->{source} eq 'google_gmail' } @{ $cells->{'Push channels'} } ],
	[ { source => 'google_gmail', heard => 2, silent => 6, 'to be opened' => 2, 'to be stopped' => 1, refused => 3 } ], 'how push channels are');
is_deeply([ map { $_->{Overdue} } @{ $cells->{'Push channels that were not renewed in time'} } ], [ 0, 0, 3, 0 ], 'which were not renewed');
is_deeply([ map { $_->{Overdue} } grep { $_->{source} eq 'google_gmail' } @{ $cells->{Overdue} } ], [1200],
	'and by how much a source is overdue');

# ---------------------------------------------------------------- the rules

my $rules = slurp_file('examples/metrics/alerts.yaml');
my %known = map { ("syncstate_$_" => 1) } @names, (map { "runs_$_" } @run_names), 'events_waiting', 'events_oldest_seconds';
is_deeply([ grep { !$known{$_} } $rules =~ /\b(syncstate_\w+)/g ], [], 'the rules ask for metrics that there are');

SKIP:
{
	my $promtool = program('promtool') or skip 'promtool is not installed', 2;
	my $dir = PostgreSQL::Test::Utils::tempdir();

	copy($_, $dir) or die "$_: $!" foreach 'examples/metrics/alerts.yaml', 'test/metrics/alerts_test.yaml';
	command_ok([ $promtool, 'check', 'rules', "$dir/alerts.yaml" ], 'the rules are well-formed');
	command_ok([ $promtool, 'test', 'rules', "$dir/alerts_test.yaml" ], 'and fire when they shall, and only then');
}

# ------------------------------------------------------------- the exporter

SKIP:
{
	my $exporter = program('prometheus-postgres-exporter')
	  or skip 'prometheus-postgres-exporter is not installed', 4 + 4 * @names + @run_names * @runs;
	my $listen = '127.0.0.1:' . PostgreSQL::Test::Cluster::get_free_port();
	my ($log, $answer) = ('');

	local $ENV{DATA_SOURCE_NAME} = "user=monitor $connect sslmode=disable";
	local $ENV{PG_EXPORTER_EXTEND_QUERY_PATH} = 'examples/metrics/postgres_exporter.yaml';
	my $run = IPC::Run::start(
		[ $exporter, "--web.listen-address=$listen", '--disable-default-metrics', '--disable-settings-metrics' ],
		'<', \undef, '>&', \$log);
	my $http = HTTP::Tiny->new(no_proxy => '127.0.0.1', proxy => undef, http_proxy => undef);
	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$answer = $http->get("http://$listen/metrics");
		last if $answer->{success} || !$run->pumpable;
		select undef, undef, undef, 0.1;
	}
	$run->pump_nb;
	$run->signal('TERM');
	$run->finish;
	like($answer->{content}, qr/^pg_exporter_user_queries_load_error\{.*\} 0$/m, 'the exporter takes the query file')
	  or diag $log;
	# what the file does not map would come too, but untyped and without a word
	is_deeply([ grep { $answer->{content} !~ /^# HELP $_ (?!Unknown).*\n# TYPE $_ gauge$/m } sort keys %known ],
		[], 'and knows what each metric is');
	foreach my $row (@truth)
	{
		my ($source, @values) = @$row;
		foreach my $i (0 .. $#names)
		{
			my ($value) = $answer->{content} =~ /^syncstate_$names[$i]\{[^}]*\bsource="$source"[^}]*\} (\S+)$/m;
			cmp_ok($value // 'NaN', '==', $values[$i], "syncstate_$names[$i] of $source");
		}
	}
	foreach my $row (@runs)
	{
		my ($source, $outcome, @values) = @$row;
		foreach my $i (0 .. $#run_names)
		{
			my ($value) = $answer->{content} =~ /^syncstate_runs_$run_names[$i]\{outcome="$outcome",[^}]*\bsource="$source"[^}]*\} (\S+)$/m;
			is($value, $values[$i] eq '' ? 'NaN' : $values[$i], "syncstate_runs_$run_names[$i] of $source, $outcome");
		}
	}
	foreach my $i (0, 1)
	{
		my $name = 'syncstate_events_' . ('waiting', 'oldest_seconds')[$i];
		my ($value) = $answer->{content} =~ /^$name\{[^}]*\} (\S+)$/m;
		cmp_ok($value // 'NaN', '==', $events->[$i], $name);
	}
}

$node->stop;
done_testing();
