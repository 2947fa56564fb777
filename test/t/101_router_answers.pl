# A worker or a PostgREST in front of a router cannot tell it from a single
# database: the same calls, one by one, come to the same rows and errors, and
# leave the same state.  Where the two are known to differ it is listed here.
# And claims: what comes through the router, how it is divided, and that no
# shard holds a row that the caller did not get.
#
#	SYNCSTATE_TEST_SEED		where due rows are, instead of a random one
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run qw(run);
use List::Util qw(max sum0 uniq);
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();

my $shards = 4;
my $s = Shards->new($shards, conf => "syncstate.clock = '2026-01-10 12:00:00+00'\n");
my $node = $s->{router};
$node->safe_psql('postgres', 'CREATE DATABASE single');
$node->safe_psql('single', 'CREATE EXTENSION syncstate; ' . Shards::small_leases());
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
# Whatever the machine's; but not for the router, whose environment libpq reads, too.
$ENV{PGTZ} = 'UTC';
$ENV{PGCLIENTENCODING} = 'UTF8';
$ENV{PGOPTIONS} = '-c lc_messages=C -c DateStyle=ISO';

# Moves the time of all databases and of the sessions in them: the server has
# signalled its sessions before it starts another one that sees the new time.
sub set_clock
{
	my ($time) = @_;
	$node->safe_psql('single', "SELECT syncstate.sync_clock() \\g /dev/null
		ALTER SYSTEM SET syncstate.clock = '$time'");
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	$node->poll_query_until('single', "SELECT syncstate.sync_clock() = '$time'")
	  or die 'the clock does not move';
	return;
}

# What psql prints for each of several statements, errors in place.
sub printed
{
	my ($database, $role, @statements) = @_;
	my $mark = '==== next ====';
	my $out = '';
	my $script = "SET ROLE $role;\n\\set VERBOSITY verbose\n\\set SHOW_CONTEXT never\n"
	  . join '', map { "$_\n;\n\\echo '$mark'\n" } @statements;

	run [ 'psql', '-X', '-q', '-A', '-t', '-d', $database ], '<', \$script, '>&', \$out;
	my @printed = split /^\Q$mark\E\n/m, $out, -1;
	pop @printed;
	foreach (@printed)
	{
		s/^LOCATION:.*\n//mg;
		s/(with PID) \d+/$1 .../g;
		# these are the real time's
		s/"(created_at|updated_at)": "[^"]*"/"$1": .../g;
		s/"id": "[^"]*"/"id": .../g;
		# of channels that are made by mark_channel_opened(), from the clock
		s/("lease": |gave lease )\d{13,}/$1.../g;
		# these are random, beyond what the state machine's own tests look into
		s/("failures": [1-9][0-9]*, "renew_at": )"[^"]*"/$1.../g;
		s/"due_at": "[^"]*"(.*"status": "(?:error|rate_limited)")/"due_at": ...$1/g;
	}
	return @printed;
}

# A call as a statement that shows all it returns.
sub statement
{
	my ($call) = @_;
	return $call =~ /^[A-Z]/ ? $call : "SELECT to_jsonb(r) FROM syncstate.$call AS r";
}

# Where a router has to say something else: the call, and what it says.
my %differs = (
	# there must be something for each shard
	q(set_sync_policy('google_calendar', '{"rate_per_minute": 1000001}')) => qr/"rate_per_minute": 1000001,/,
	q(set_sync_policy('google_calendar', '{"daily_budget": 3}')) =>
	  qr/\AERROR:  22023: daily_budget must be at least the number of shards\nDETAIL:  Got 3, for 4 shards\.\n\z/,
	q(set_sync_policy('google_calendar', '{"rate_per_minute": "1"}')) =>
	  qr/\AERROR:  22023: rate_per_minute must be at least the number of shards\nDETAIL:  Got 1, for 4 shards\.\n\z/,
	# the router does not know that a row is due already, or was requested before
	q(request_sync('00000000-0000-4000-8000-00000000000c', 'google_calendar')) => qr/\Atrue\nAsynchronous notification "syncstate" with payload "google_calendar"/,
	q(request_sync('00000000-0000-4000-8000-00000000000c', 'google_calendar', '')) => qr/\Atrue\nAsynchronous notification "syncstate" with payload "google_calendar"/,
	q(request_account('00000000-0000-4000-8000-000000000001', 'work', 'google')) => qr/\A(\{"source": "google_calendar", "resource": "."\}\n){4}Asynchronous notification "syncstate" with payload "google_calendar"/,
);

# The same calls on both sides.
sub compare
{
	my ($role, @calls) = @_;
	my @statements = map { statement($_) } @calls;
	my @router = printed('router', $role, @statements);
	my @single = printed('single', $role, @statements);

	is(scalar @router, scalar @calls, 'all were called on the router');
	is(scalar @single, scalar @calls, 'and on the single database');
	foreach my $i (0 .. $#calls)
	{
		my $name = length $calls[$i] > 150 ? substr($calls[$i], 0, 150) . '...' : $calls[$i];
		# in which order rows of several shards come is no one's promise
		if ($calls[$i] =~ /^(claim_due_syncs|claim_push_channels|get_users_needing_sync)/)
		{
			$_ = join '', sort /^.*\n/mg foreach $router[$i], $single[$i];
		}
		if (my $but = $differs{ $calls[$i] })
		{
			like($router[$i], $but, "$name, not as on a single database");
			isnt($router[$i], $single[$i], 'where it is otherwise');
			next;
		}
		# here, which statement could not be executed
		s/(ERROR:  25006: cannot execute) .*? in a/$1 ... in a/ foreach $router[$i], $single[$i];
		is($router[$i], $single[$i], $name);
	}
	return;
}

# All rows, and what is set for sources, are the same in the end, and so is what
# was told since the last time.
sub compare_states
{
	my ($when) = @_;
	my $rows = q{SELECT (to_jsonb(s) - '{created_at,updated_at}'::text[] - CASE WHEN status IN ('error', 'rate_limited') THEN 'due_at' ELSE '' END)::text
		FROM syncstate.sync_state AS s};

	is( join("\n", sort grep { $_ ne '' } map { split /\n/, $s->shard_query($_, $rows) } 0 .. $shards - 1),
		join("\n", sort split /\n/, $node->safe_psql('single', $rows)),
		"the same rows on the shards as on a single database $when");
	# events of a source each shard tells by itself
	my $told = 'SELECT at, event, user_id, account, source, resource, lease, reason, detail FROM syncstate.%s WHERE user_id IS NOT NULL ORDER BY 1, 2, 3, 4, 5, 6, 7';
	compare('service_role', 'SELECT to_jsonb(o) FROM syncstate.sync_overview AS o',
		map({ sprintf $told, $_ } 'sync_event', 'take_sync_events(10000)', 'sync_event'),
		'SELECT to_jsonb(r) FROM syncstate.sync_run AS r ORDER BY user_id, account, source, resource, lease',
		'SELECT to_jsonb(c) FROM syncstate.sync_channel AS c ORDER BY user_id, account, source, resource, channel_id',
		map { "get_sync_policy('$_')" } qw(google_calendar google_tasks google_gmail google_contacts));
	return;
}

sub empty
{
	my $sql = q{DELETE FROM syncstate.sync_state; DELETE FROM syncstate.sync_policy; DELETE FROM syncstate.sync_budget;
		DELETE FROM syncstate.sync_event; DELETE FROM syncstate.sync_run; DELETE FROM syncstate.sync_channel;
		INSERT INTO syncstate.sync_policy (source, keep_runs) SELECT s, 'all' FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s};
	$s->shard_query($_, $sql) foreach 0 .. $shards - 1;
	$node->safe_psql('single', $sql);
	return;
}

sub user { return sprintf '00000000-0000-4000-8000-%012x', $_[0] }
sub key { my ($n, $source) = @_; return "'" . user($n) . "', '" . ($source // 'google_calendar') . "'" }
my $mine = key(1);
# of what is due already, the router may tell another time
my $next_due = 'SELECT greatest(syncstate.next_sync_due(), syncstate.sync_clock())';

# Times that are random become the same ones, before rows are due by them.
sub settle
{
	my $sql = q{UPDATE syncstate.sync_state SET due_at = '2026-01-10 12:06+00' WHERE due_at IS NOT NULL AND status IN ('error', 'rate_limited')};
	$s->shard_query($_, $sql) foreach 0 .. $shards - 1;
	$node->safe_psql('single', $sql);
	return;
}

### Errors: what sql/errors.sql calls, with a row under lease 1, and a parked one

empty();
my @wrong = slurp_file('expected/errors.out') =~ /^(\w+\(.*)\n {4}[0-9A-Z]{5}: /mg;
s/\bK\b/$mine/ foreach @wrong;
cmp_ok(scalar @wrong, '>', 300, 'there are calls to get wrong');
my @start = (
	"mark_sync_started($mine)",
	"mark_sync_failed($mine, 'x', 'permanent', 1)",
	"mark_sync_started($mine)",
	"update_sync_state($mine, '{\"sync_token\": \"tok1\", \"history_id\": \"1000\", \"page_token\": \"p3\", \"sync_interval\": \"1 hour\"}')",
	"pause_sync($mine, 'parked')",
	"connect_sync($mine, 'parked')",
	"pause_sync($mine, 'parked')",
	"set_sync_policy('google_tasks', '{\"sync_interval\": \"1 hour\"}')");
compare('service_role', @start);
# the lease there is 2, and these take back what is done where the router allows more
compare('service_role', @wrong, q(set_sync_policy('google_calendar', '{"rate_per_minute": null}')),
	q(set_sync_policy('google_calendar', '{"daily_budget": 3}')), q(set_sync_policy('google_calendar', '{"daily_budget": null}')),
	q(set_sync_policy('google_calendar', '{"rate_per_minute": "1"}')), q(set_sync_policy('google_calendar', '{"rate_per_minute": null}')));
compare_states('after calls that fail');

# as a role that may not even look, and as one that may do all
$node->safe_psql($_, 'CREATE SCHEMA regress_errors; CREATE TABLE regress_errors.users (id uuid PRIMARY KEY, name text);
	CREATE VIEW regress_errors.people AS SELECT * FROM regress_errors.users')
  foreach qw(router single);
compare('none', grep { /^(grant_|register_|watch_)/ } @wrong);
compare('anon', grep { !$differs{$_} } @wrong);
compare('service_role', map { "take_sync_events($_)" } '0', '-1', '10001', 'NULL');
compare('service_role', map({ ('BEGIN READ ONLY', $_, 'ROLLBACK') } 'claim_due_syncs()', 'take_sync_events()'), 'BEGIN READ ONLY', "connect_sync($mine)", 'ROLLBACK',
	'BEGIN READ ONLY', "get_sync_state($mine)", "get_sync_policy('google_tasks')", $next_due, 'ROLLBACK');

### A life: each function, each outcome, while time goes by

empty();
my @users = (1 .. 24);
compare('service_role', 'LISTEN syncstate', map({ 'connect_sync(' . key($_) . ')' } @users),
	"get_sync_state($mine)", "get_sync_state($mine, 'none')", "get_sync_states('" . user(1) . "')", "get_sync_states('" . user(99) . "')",
	$next_due, $next_due =~ s/due\(\)/due('google_tasks')/r,
	"get_users_needing_sync('google_calendar')", "get_users_needing_sync('google_calendar', '1 hour')",
	"get_users_needing_sync('google_calendar', max_rows => 10000)", "get_users_needing_sync('google_tasks')",
	'SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 7)');
empty();
compare('service_role', map({ 'connect_sync(' . key($_) . ')' } @users),
	"claim_due_syncs('google_calendar', 24, '1 hour')", 'claim_due_syncs()', "claim_due_syncs('google_tasks')");
compare_states('after a claim');

set_clock('2026-01-10 12:05:00+00');
compare('service_role', 'LISTEN syncstate',
	'mark_sync_completed(' . key(1) . q{, 7, 'tok', '123', '2026-01-01 00:00+00', 1)},
	'mark_sync_completed(' . key(1) . ', lease => 1)',
	'mark_sync_failed(' . key(2) . q{, 'no', lease => 1)},
	'mark_sync_failed(' . key(3) . q{, E'it''s \\\\ "odd" % {}', 'permanent', 1)},
	'mark_sync_failed(' . key(4) . q{, 'revoked', 'auth')},
	'mark_rate_limited(' . key(5) . q{, '5 minutes', lease => 1)},
	'clear_sync_token(' . key(6) . ', 1)', 'clear_sync_token(' . key(7) . ')',
	'renew_sync_lease(' . key(8) . q{, 1, '2 hours')},
	'checkpoint_sync(' . key(8) . q{, 1, 'page 2', 50, 100)}, 'checkpoint_sync(' . key(8) . ', 1)',
	'may_sweep(' . key(8) . ', 1, 11, 100)', 'may_sweep(' . key(8) . ', 1, 11, 100, true)', 'may_sweep(' . key(8) . ', 2, 0, 0)',
	'release_sync(' . key(9) . ', 1)', 'mark_sync_started(' . key(9) . q{, '1 day')},
	'pause_sync(' . key(10) . ')', 'resume_sync(' . key(10) . ')', 'pause_sync(' . key(11) . ')',
	'request_sync(' . key(11) . ')', 'request_sync(' . key(12) . ')', 'request_sync(' . key(12) . ", '')", 'request_sync(' . key(99) . ')',
	'disconnect_sync(' . key(13) . ')', 'disconnect_sync(' . key(13) . ')',
	'update_sync_state(' . key(14) . q{, '{"status": "idle", "sync_token": null, "items_synced": 3, "updated_min": "2026-01-01T00:00:00Z"}')},
	'update_sync_state(' . key(14) . q{, '{"sync_token": "it''s \\\\ % { } \" é"}', E'it''s \\\\ odd')},
	'update_sync_state(' . key(25, 'google_gmail') . q{, '{"status": "syncing", "history_id": 18446744073709551615}')},
	'get_sync_states(\'' . user(14) . '\')', 'claim_due_syncs(max_rows => 10000)');

sub report
{
	my ($n, $outcome, $more, $lease) = @_;
	return sprintf '{"user_id": "%s", "source": "google_calendar", "lease": %s, "outcome": "%s"%s}', user($n), $lease // 1, $outcome, $more // '';
}
sub reports { return 'report_syncs($r$[' . join(', ', @_) . ']$r$)' }
my @good = (
	report(15, 'completed', ', "items_synced": 5, "sync_token": "it\'s \\\\ % {", "resource": ""'),
	report(16, 'failed', ', "error_message": "no"'),
	report(17, 'failed', ', "error_message": "no", "kind": "auth"'),
	report(18, 'rate_limited', ', "retry_after": "3 minutes"'),
	report(19, 'released'), report(20, 'completed', '', 7), report(98, 'completed'),
	'{"user_id": "{' . uc(user(21)) . '}", "source": "google_calendar", "lease": 1, "outcome": "completed"}');
compare('service_role',
	reports(), reports(@good, report(22, 'done')), reports(report(22, 'completed', ', "user_id": "x"'), @good),
	reports(@good, 'null'), reports(1, @good), reports(@good, '{"user_id": "' . user(3) . '"}'),
	reports(report(22, 'completed', ', "user_id": "{' . user(22) . '"')), reports(report(22, 'completed', ', "user_id": 7')),
	q{report_syncs((SELECT jsonb_agg('{}'::jsonb) FROM generate_series(1, 10001)))},
	"report_syncs((SELECT jsonb_agg('" . report(22, 'completed') . "'::jsonb) FROM generate_series(1, 10001)))");
compare_states('after reports that cannot be');
compare('service_role', reports(@good), reports(@good), reports(report(23, 'failed', ', "error_message": "a"'), report(23, 'completed')));
compare_states('after reports');

### Sources

compare('service_role', 'LISTEN syncstate', q{set_sync_policy('google_tasks', '{"daily_budget": 1001, "rate_per_minute": "402", "jitter": 0.5, "lease_time": "3 minutes"}')},
	q{get_sync_policy('google_tasks')},
	q{set_sync_policy('google_tasks', '{"daily_budget": " 77 ", "rate_per_minute": 1e2}')},
	q{set_sync_policy('google_tasks', '{"daily_budget": 100.0}')}, q{set_sync_policy('google_tasks', '{"daily_budget": 100.5}')},
	q{set_sync_policy('google_tasks', '{"daily_budget": [100]}')}, q{set_sync_policy('google_tasks', '{"daily_budget": true}')},
	q{set_sync_policy('google_tasks', '{"daily_budget": "1 00"}')},
	q{set_sync_policy('google_tasks', '{"daily_budget": 2147483647}')},
	q{set_sync_policy('google_tasks', '{"daily_budget": null, "rate_per_minute": null, "jitter": null}')},
	q{pause_sync_source('google_calendar', '2026-02-03 00:00:00+00')}, $next_due, q{get_users_needing_sync('google_calendar')},
	'claim_due_syncs()', q{resume_sync_source('google_calendar')}, q{resume_sync_source('google_calendar')},
	q{pause_sync_source('google_gmail')}, q{get_sync_policy('google_gmail')},
	q{resync_source('google_gmail', '2 days')}, q{get_sync_policy('google_gmail')}, q{resync_source('google_gmail', NULL)},
	q{set_sync_policy('google_gmail', '{"resync_from": null}')}, 'resync_source(NULL)',
	map({ "set_sync_policy('google_gmail', '{$_}')" } '"keep_runs": "failures", "keep_runs_for": "2 days"', '"keep_runs": "some"', '"keep_runs_for": "1 month"', '"keep_runs": "all", "keep_runs_for": null'),
	q{claim_due_syncs('google_calendar', 3, kind => 'full')}, q{claim_due_syncs('google_calendar', 3, kind => 'incremental')},
	q{claim_due_syncs(kind => 'neither')});
compare_states('after policies');

# A limit of the source, told by one, stops all; a longer one is not cut short.
# Each shard tells of it.
settle();
$s->query('SELECT syncstate.take_sync_events(10000)');
set_clock('2026-01-10 13:00:00+00');
compare('service_role', q{set_sync_policy('google_calendar', '{"rate_limit_wait": "7 minutes"}')},
	'connect_sync(' . key(26) . ')', 'connect_sync(' . key(27) . ')', 'connect_sync(' . key(28) . ')', 'mark_sync_started(' . key(26) . ')',
	reports(report(26, 'rate_limited', ', "scope": "source"', 9)), "get_sync_policy('google_calendar')",
	'mark_rate_limited(' . key(26) . q{, scope => 'source', lease => 9)}, "get_sync_policy('google_calendar')",
	'mark_rate_limited(' . key(26) . q{, '10 minutes', 'source', 1)}, "get_sync_policy('google_calendar')",
	'claim_due_syncs()', 'mark_rate_limited(' . key(27) . q{, '1 minute', 'source')}, "get_sync_policy('google_calendar')");
is(join(' ', uniq map { $s->shard_query($_, q{SELECT paused_until FROM syncstate.sync_policy WHERE source = 'google_calendar'}) } 0 .. $shards - 1),
	'2026-01-10 13:10:00+00', 'every shard waits until then');
is($s->query(q{SELECT event, source, reason, detail, count(*) FROM syncstate.sync_event WHERE user_id IS NULL GROUP BY 1, 2, 3, 4 ORDER BY 3}),
	join("\n", map { "source_limited|google_calendar|$_" } 'paused|2026-01-10T13:10:00+00:00|3', 'rate_limited|2026-01-10T13:10:00+00:00|1'),
	'and tells of it, the one where it was met of a limit, and the others of a pause');
compare('service_role', 'mark_sync_started(' . key(28, 'google_contacts') . ')',
	reports(report(28, 'rate_limited', ', "scope": "source", "retry_after": "20 minutes", "source": "google_contacts"')),
	"get_sync_policy('google_contacts')", $next_due, "claim_due_syncs('google_contacts')");
is(join(' ', uniq map { $s->shard_query($_, q{SELECT paused_until FROM syncstate.sync_policy WHERE source = 'google_contacts'}) } 0 .. $shards - 1),
	'2026-01-10 13:20:00+00', 'nor does a limit in a report stay on one shard');
compare_states('after limits of a source');
compare('service_role', 'update_sync_state(' . key(26) . q{, '{"due_at": "[a] b"}')});
settle();
set_clock('2026-01-10 13:30:00+00');
compare('service_role', 'claim_due_syncs(max_rows => 10000)');
compare_states('once they are over');

# A session's settings are not the shards'.
compare('service_role', "SET datestyle = 'SQL, DMY'", "SET intervalstyle = 'sql_standard'", "SET timezone = 'Asia/Kolkata'",
	'mark_sync_completed(' . key(1) . q{, updated_min => '2026-01-09 00:00+00')},
	q{pause_sync_source('google_gmail', '2026-03-04 05:06:07+00')}, q{get_sync_policy('google_gmail')}, $next_due,
	'mark_rate_limited(' . key(1) . q{, '1 day -02:00:00')},
	'mark_sync_started(' . key(29) . q{, '1 day -02:00:00')}, q{get_users_needing_sync('google_calendar', '1 day -02:00:00')},
	'renew_sync_lease(' . key(29) . q{, 1, '1 day -02:00:00')}, 'connect_sync(' . key(30) . ')', q{claim_due_syncs(lease_time => '1 day -02:00:00')},
	'SELECT to_jsonb(o) FROM syncstate.sync_overview AS o');
# 19 has no other strings
foreach my $strings ('on', $node->pg_version->major < 19 ? 'off' : ())
{
	compare('service_role', $strings eq 'off' ? 'SET escape_string_warning = off' : (), "SET standard_conforming_strings = $strings", "SET backslash_quote = off",
		'mark_sync_failed(' . key(1) . q{, E'a '' \\\\ b')}, 'update_sync_state(' . key(1) . q{, $j${"sync_token": "a ' \\\\ b"}$j$, E'a '' \\\\ b')},
		'get_sync_states(\'' . user(1) . '\')', reports(report(1, 'completed', q{, "resource": "a ' \\\\ b", "user_id": "{} ' \\\\"})),
		reports(report(1, 'completed', q{, "resource": "a ' \\\\ b", "sync_token": "' \\\\ '' '})), 'claim_due_syncs()',
		'mark_sync_started(' . key(98) . ', lease_time => NULL)', 'renew_sync_lease(' . key(98) . ', 77)', 'request_sync(' . key(97) . ')');
}
compare_states('whatever the session had set');

### Deleted users, and sources of one's own

$node->safe_psql($_, 'CREATE TABLE users (id uuid PRIMARY KEY, person uuid);
	GRANT DELETE, SELECT ON users TO service_role;
	INSERT INTO users SELECT (\'00000000-0000-4000-8000-\' || lpad(to_hex(i), 12, \'0\'))::uuid FROM generate_series(1, 20) AS i')
  foreach qw(router single);
compare('none', "watch_users('users')", "watch_users('users')", q{SELECT tgname, tgenabled, tgnargs, encode(tgargs, 'escape') FROM pg_trigger WHERE tgrelid = 'users'::regclass});
compare('service_role', map { 'pause_sync(' . key($_) . ')' } 2, 3, 4);
is($s->query("SELECT count(*) > 0 FROM syncstate.$_ WHERE user_id = '" . user(3) . "'"), 't', "there is something to forget in $_") foreach 'sync_event', 'sync_run';
compare('service_role', "DELETE FROM users WHERE id IN ('" . user(1) . "', '" . user(2) . "', '" . user(3) . "', '" . user(19) . "')",
	'DELETE FROM users WHERE false', map { "get_sync_states('" . user($_) . "')" } 1, 2, 3, 4, 19);
is($s->query("SELECT count(*) FROM syncstate.$_ WHERE user_id = '" . user(3) . "'"), '0', "it is forgotten in $_") foreach 'sync_event', 'sync_run';
compare_states('after users were deleted');
compare('none', 'ALTER TABLE users ALTER id TYPE text', 'INSERT INTO users VALUES (\'user_2NNE\')',
	"connect_sync(syncstate.user_id_of('user_2NNE'), 'google_tasks')", "DELETE FROM users WHERE id = 'user_2NNE'",
	"get_sync_states(syncstate.user_id_of('user_2NNE'))", "user_id_of(NULL)",
	'ALTER TABLE users ALTER id TYPE jsonb USING to_jsonb(id)', 'DELETE FROM users', 'DROP TABLE users');

compare('none', "register_sync_source('custom_crm')", "register_sync_source('custom_crm')", 'TABLE syncstate.custom_source',
	"SELECT enum_range(NULL::syncstate.sync_source)");
compare('service_role', 'LISTEN syncstate', 'connect_sync(' . key(1, 'custom_crm') . ')', 'claim_due_syncs(\'custom_crm\')',
	q{get_sync_policy('custom_crm')}, q{pause_sync_source('custom_crm')}, 'SELECT to_jsonb(o) FROM syncstate.sync_overview AS o',
	"register_sync_source('custom_erp')");

### What is parked comes back, on all shards

empty();
compare('service_role', map({ 'connect_sync(' . key($_) . ')', 'pause_sync(' . key($_) . ')' } @users),
	'LISTEN syncstate', q{revive_syncs('google_calendar')}, q{revive_syncs('google_calendar', 'auth')},
	q{revive_syncs('google_calendar', 'paused', '0')}, q{revive_syncs('google_calendar', 'paused')},
	q{revive_syncs('google_calendar', max_rows => 0)}, q{revive_syncs('google_calendar', max_rows => NULL)}, q{revive_syncs(NULL)},
	q{revive_syncs('google_calendar', spread => '2 days')}, q{revive_syncs('google_calendar', 'tired')});
compare_states('after reviving');
compare('service_role', map({ 'pause_sync(' . key($_) . ')' } @users));
my @some = map { $node->safe_psql('router', q{SELECT syncstate.revive_syncs('google_calendar', 'paused', max_rows => 8)}) } 1 .. 20;
is(sum0(@some), scalar(@users), 'some at a time, until none is left');
cmp_ok(max(@some), '<=', 8, 'and no more than that');

### Accounts: what is said of one is not said of another

# Each call that has an account, about a user of its own, who has three that are
# all alike: with a calendar and mail, claimed under lease 1.
my @accounts = (q{''}, q{'work'}, q{E'it''s \\\\ "odd", {\u00e9}'});
my %account_calls = (
	mark_sync_started => [ 'release_sync(%1$s, 1, account => %2$s)', q{mark_sync_started(%1$s, '1 hour', account => %2$s)} ],
	mark_sync_completed => [ q{mark_sync_completed(%1$s, 7, 'tok', lease => 1, account => %2$s)} ],
	mark_sync_failed => [ q{mark_sync_failed(%1$s, 'no', lease => 1, account => %2$s)} ],
	mark_rate_limited => [ q{mark_rate_limited(%1$s, '5 minutes', lease => 1, account => %2$s)} ],
	clear_sync_token => [ 'clear_sync_token(%1$s, 1, account => %2$s)' ],
	renew_sync_lease => [ q{renew_sync_lease(%1$s, 1, '2 hours', account => %2$s)} ],
	checkpoint_sync => [ q{checkpoint_sync(%1$s, 1, 'page 2', 50, 100, account => %2$s)} ],
	release_sync => [ q{release_sync(%1$s, 1, delay => '5 minutes', account => %2$s)} ],
	may_sweep => [ 'release_sync(%1$s, 1)', 'may_sweep(%1$s, 1, 11, 1000, account => %2$s)', 'may_sweep(%1$s, 1, 11, 1000)' ],
	update_sync_state => [ q{update_sync_state(%1$s, '{"status": "idle", "sync_token": "x"}', account => %2$s)}, q{update_sync_state(%1$s, '{"sync_token": "y"}', 'new', %2$s)} ],
	connect_sync => [ 'pause_sync(%1$s)', 'pause_sync(%1$s, account => %2$s)', 'resume_sync(%1$s, account => %2$s)', 'connect_sync(%1$s, account => %2$s)', q{connect_sync(%1$s, 'new', %2$s)} ],
	disconnect_sync => [ 'disconnect_sync(%1$s, account => %2$s)', 'disconnect_sync(%1$s)' ],
	pause_sync => [ 'pause_sync(%1$s, account => %2$s)' ],
	resume_sync => [ 'pause_sync(%1$s)', 'pause_sync(%1$s, account => %2$s)', 'resume_sync(%1$s, account => %2$s)' ],
	request_sync => [ 'request_sync(%1$s, account => %2$s)', q{request_sync(%1$s, 'none', %2$s)} ],
	get_sync_state => [ 'release_sync(%1$s, 1)', 'get_sync_state(%1$s, account => %2$s)', q{get_sync_state(%1$s, 'none', %2$s)}, q{get_sync_state(%1$s, account => 'none')} ],
	connect_account => [ q{mark_sync_failed(%1$s, 'no', 'permanent')}, q{mark_sync_failed(%1$s, 'no', 'permanent', 1, account => %2$s)}, 'connect_account(%3$s, %2$s)', q{connect_account(%3$s, %2$s, 'google')} ],
	pause_account => [ 'pause_account(%3$s, %2$s)', q{pause_account(%3$s, %2$s, 'google')} ],
	resume_account => [ 'pause_account(%3$s)', 'pause_account(%3$s, %2$s)', 'resume_account(%3$s, %2$s)' ],
	disconnect_account => [ 'disconnect_account(%3$s, %2$s)', 'disconnect_account(%3$s, %2$s)' ],
	request_account => [ 'pause_sync(%1$s, account => %2$s)', 'request_account(%3$s, %2$s)', q{request_account(%3$s, 'none')} ],
	mark_channel_opened => [ map { s/CHANNEL/channel of %3\$s, /r } q{mark_channel_opened(%1$s, 1, $c$CHANNEL$c$ || %2$s, '2026-01-13 14:00+00', 'secret', account => %2$s)}, q{mark_channel_opened(%1$s, 1, $c$CHANNEL$c$ || %2$s, '2026-01-13 14:00+00', 'secret', account => %2$s)}, q{receive_push($c$CHANNEL$c$ || %2$s, 'secret')} ],
	mark_channel_failed => [ q{mark_channel_failed(%1$s, 1, 'no', 'unsupported', account => %2$s)}, q{mark_channel_failed(%1$s, 1, 'no', account => %2$s)} ],
	mark_channel_stopped => [ q{mark_channel_opened(%1$s, 7, $c$late channel of %3$s, $c$ || %2$s, NULL, 'secret', account => %2$s)}, q{mark_channel_stopped(%1$s, 7, account => %2$s)},
		q{mark_channel_stopped(%1$s, (SELECT lease FROM syncstate.claim_push_channels('google_calendar', 100, '1 hour') WHERE channel_id = $c$late channel of %3$s, $c$ || %2$s), account => %2$s)}, q{mark_channel_stopped(%1$s, 1, 'none', %2$s)} ],
	set_sync_resources => [ q{set_sync_resources(%1$s, ARRAY['b', 'a', '', 'a', 'it''s {} \ "odd"'], %2$s)}, q{set_sync_resources(%1$s, '{b}', %2$s)}, q{set_sync_resources(%1$s, '{b,a}', %2$s)}, q{set_sync_resources(%1$s, '{a}')} ]);
is($s->query(q{SELECT string_agg(p.proname, ' ' ORDER BY p.proname) FROM pg_proc AS p
		WHERE p.pronamespace = 'syncstate'::regnamespace AND 'account' = ANY (p.proargnames[1:p.pronargs])}),
	join(' ', sort keys %account_calls), 'each call with an account is made');
set_clock('2026-01-10 14:00:00+00');
foreach my $account (@accounts)
{
	empty();
	my ($n, @connect, @calls) = (40);
	foreach my $function (sort keys %account_calls)
	{
		$n++;
		push @connect, map { my $of = $_; map { "connect_sync($_, account => $of)" } key($n), key($n, 'google_gmail') } @accounts;
		push @calls, map { sprintf $_, key($n), $account, "'" . user($n) . "'" } @{ $account_calls{$function} };
	}
	compare('service_role', @connect, q{set_sync_policy('google_calendar', '{"push_renew_before": "1 day"}')}, 'claim_due_syncs(max_rows => 10000)', 'claim_push_channels(max_rows => 10000)');
	compare('service_role', @calls);
	compare_states("after calls about account $account");
}

# Reports: of rows that differ in their account only, in any order
empty();
compare('service_role', map({ my $of = $_; map { ("connect_sync(" . key($_) . ", account => $of)", "connect_sync(" . key($_) . ", 'c', $of)") } 1 .. 6 } @accounts),
	'claim_due_syncs(max_rows => 10000)');
my @of_accounts = (
	report(1, 'completed', ', "account": "work", "sync_token": "work 1"'),
	report(2, 'failed', ', "account": "work", "error_message": "no"'),
	report(1, 'completed', ', "account": "it\'s \\\\ \\"odd\\", {\\u00e9}", "sync_token": "odd 1"'),
	report(1, 'completed', ', "sync_token": "1"'),
	report(3, 'released', ', "account": "work", "resource": "c"'),
	report(1, 'completed', ', "account": "work", "resource": "c", "sync_token": "work c"'),
	report(2, 'completed', ', "account": "", "sync_token": "2"'),
	report(2, 'completed', ', "account": "none", "sync_token": "none"'),
	report(1, 'completed', ', "account": "work", "sync_token": "twice"'));
compare('service_role', reports(@of_accounts), reports(reverse @of_accounts),
	reports(report(4, 'completed', ', "account": 7')), reports(report(4, 'completed', ', "account": null')),
	reports(report(4, 'completed', ', "account": "' . ('x' x 256) . '"')), reports(report(4, 'completed', ', "scope": "row"')),
	reports(report(4, 'failed', ', "error_message": "x", "scope": "source"')), reports(report(4, 'rate_limited', ', "scope": "user"')));
compare_states('after reports about accounts');

# Limits and revoked grants: a row, an account's, and by a report
empty();
set_clock('2026-01-10 15:00:00+00');
compare('service_role', map({ my $n = $_; map({ my $of = $_; map({ "connect_sync(" . key($n) . ", '$_', $of)" } '', 'c1', 'c2'), 'connect_sync(' . key($n, 'google_gmail') . ", account => $of)" } @accounts) } 1 .. 6),
	'connect_sync(' . key(3, 'custom_crm') . ", account => 'work')", 'claim_due_syncs(max_rows => 10000)');
set_clock('2026-01-10 15:01:00+00');
compare('service_role',
	'mark_rate_limited(' . key(1) . q{, '10 minutes', lease => 1, account => 'work')},
	'mark_rate_limited(' . key(1) . q{, '20 minutes', 'row', 1, account => '')}, 'mark_rate_limited(' . key(1) . q{, '5 minutes', 'account', 1, 'c1', 'work')},
	'mark_rate_limited(' . key(1) . q{, '5 minutes', 'user', 1, 'c1', 'work')},
	'connect_sync(' . key(1) . q{, 'c3', 'work')}, 'connect_sync(' . key(1) . q{, 'c3')},
	'mark_sync_failed(' . key(2) . q{, 'revoked', 'auth', 1, account => 'work')}, 'mark_sync_failed(' . key(2) . q{, 'revoked', 'auth', 1, scope => 'row')},
	'mark_sync_failed(' . key(2) . q{, 'revoked', 'auth', 1, scope => 'source')},
	'mark_sync_failed(' . key(3) . q{, 'revoked', 'auth', account => 'work', lease => 1)},
	reports(report(4, 'rate_limited', ', "account": "work", "retry_after": "15 minutes"'), report(4, 'rate_limited', ', "resource": "c1", "scope": "row"'),
		report(5, 'failed', ', "account": "work", "resource": "c2", "kind": "auth", "error_message": "no"'),
		report(5, 'failed', ', "kind": "auth", "scope": "row", "error_message": "no"'),
		report(5, 'completed', ', "account": "work", "resource": "c1"'), report(6, 'rate_limited', ', "account": "work"')),
	map({ "get_sync_states('" . user($_) . "')" } 1 .. 6));
compare_states('after limits and revoked grants');
settle();
set_clock('2026-01-10 15:06:30+00');
compare('service_role', map({ "request_account('" . user($_) . "', 'work')" } 1, 2, 4), q{get_users_needing_sync('google_calendar')}, $next_due,
	'claim_due_syncs(max_rows => 10000)', $next_due);
set_clock('2026-01-10 15:12:00+00');
compare('service_role', 'claim_due_syncs(max_rows => 10000)', 'mark_sync_started(' . key(4) . q{, account => 'work')});
compare_states('while the limits of accounts end');
compare('service_role', 'LISTEN syncstate', map({ my $n = $_; map { "connect_account('" . user($n) . "', $_)" } q{'work'}, q{'work', 'google'}, q{'work', 'custom_crm'}, q{'work', 'nobody'}, q{NULL} } 2, 3, 5));
compare_states('after accounts were connected again');

# Calendars come and go
empty();
compare('service_role', 'LISTEN syncstate', map({ my $n = $_; map { "set_sync_resources(" . key($n) . ", $_)" }
		q('{a,b,c}'), q('{a,b,c}', 'work'), q('{b,d}', 'work'), q('{a,b}', 'work'), q('{}', 'work'), 'NULL', 'ARRAY[NULL]', q('{{a,b},{c,d}}', 'work'),
		q(ARRAY[repeat('x', 1025)]), q(ARRAY(SELECT g::text FROM generate_series(1, 10001) AS g)), q('{a}', repeat('x', 256)), q('{a}', NULL) } 1, 2),
	"pause_sync(" . key(1) . ", 'a')", "set_sync_resources(" . key(1) . ", '{b}')", "connect_sync(" . key(1) . ", 'c')",
	map({ "$_('" . user(1) . "', 'work')" } qw(pause_account resume_account connect_account)), "request_account('" . user(1) . "', 'work', 'google')",
	q{revive_syncs('google_calendar')}, q{revive_syncs('google_calendar', 'gone', '0')});
compare_states('after calendars came and went');

# Providers, and how many at a time
empty();
compare('service_role', q{set_sync_policy('custom_crm', '{"provider": "google", "max_in_flight": 2}')}, q{get_sync_policy('custom_crm')}, q{get_sync_policy('google_calendar')},
	q{set_sync_policy('google_calendar', '{"max_in_flight": 3, "provider": "mine"}')},
	map({ my $of = $_; map({ my $n = $_; map { "connect_sync(" . key($n) . ", '$_', $of)" } 1 .. 6 } 1 .. 5), map { 'connect_sync(' . key($_, 'custom_crm') . ", account => $of)" } 1 .. 5 } @accounts[ 0, 1 ]),
	'mark_sync_started(' . key(1) . q{, '5', account => 'work')});
compare('service_role', map({ "SELECT user_id, account, source, count(*) FROM syncstate.$_ GROUP BY 1, 2, 3 ORDER BY 1, 2, 3" }
		'claim_due_syncs(max_rows => 10000)', 'claim_due_syncs(max_rows => 10000)'),
	'mark_sync_failed(' . key(1, 'custom_crm') . q{, 'revoked', 'auth')}, map { "connect_account('" . user(2) . "', 'work', '$_')" } qw(google mine custom_crm));
compare('service_role', q{set_sync_policy('google_calendar', '{"max_in_flight": null, "provider": null}')}, q{set_sync_policy('google_calendar', '{"max_in_flight": 0}')},
	q{set_sync_policy('google_calendar', '{"provider": "Mine"}')}, q{set_sync_policy('custom_crm', '{"max_in_flight": null, "provider": null}')});

# A deleted user goes with all accounts, also with a row that somebody is at.
$node->safe_psql($_, 'CREATE TABLE users (id uuid PRIMARY KEY); GRANT DELETE, SELECT ON users TO service_role;
	INSERT INTO users VALUES (\'' . user(1) . '\'); SELECT syncstate.watch_users(\'users\')') foreach qw(router single);
my $row_of_deleted = 'update_sync_state(' . key(1) . q{, '{"items_synced": 1}', '3', 'work')};
foreach my $database ('shard' . $s->query("SELECT syncstate.shard_of('" . user(1) . "')"), 'single')
{
	my ($busy, $deleting) = map { $node->background_psql($_) } $database, $database eq 'single' ? 'single' : 'router';
	$busy->query_safe("BEGIN; SELECT syncstate.$row_of_deleted");
	$deleting->query_until(qr/deleting/, "\\echo deleting\nDELETE FROM users;\n");
	$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = '$database' AND wait_event_type = 'Lock'") or die "$database: nobody waits";
	$busy->query_safe('COMMIT');
	$deleting->query('');
	$_->quit foreach $busy, $deleting;
}
compare('service_role', "get_sync_states('" . user(1) . "')", "SELECT count(*) > 0 FROM syncstate.get_sync_states('" . user(2) . "')");
compare('none', 'DROP TABLE users');
empty();

### Push channels: opened, renewed, stopped and heard, on whichever shard they are

$node->safe_psql('postgres', 'CREATE ROLE webhook NOLOGIN');
$node->safe_psql($_, 'GRANT USAGE ON SCHEMA syncstate TO webhook; GRANT EXECUTE ON FUNCTION syncstate.receive_push TO webhook') foreach qw(router single);
sub channel { my ($n, $lease, $name, $end) = @_; return 'mark_channel_opened(' . key($n) . ", $lease, '$name', " . ($end // q('2026-01-12 16:00+00')) . ", 'secret of $name', 'ref')" }
set_clock('2026-01-10 16:00:00+00');
compare('service_role', map({ 'connect_sync(' . key($_) . ')' } 1 .. 12), 'claim_push_channels()',
	q{set_sync_policy('google_calendar', '{"push_renew_before": "1 day", "push_interval": "4 hours", "push_silence": "30 minutes"}')},
	q{set_sync_policy('google_calendar', '{"push_renew_before": "1 month"}')}, q{get_sync_policy('google_calendar')},
	q{claim_push_channels('google_tasks')}, 'claim_push_channels(max_rows => 0)', 'claim_push_channels(max_rows => NULL)', q{claim_push_channels(lease_time => '2 days')},
	q{claim_push_channels('google_calendar', 100, '10 minutes')}, 'claim_push_channels()',
	map({ channel($_, 1, "channel $_") } 1 .. 6), channel(1, 1, 'channel 1'), channel(7, 1, 'channel 7', 'NULL'),
	channel(7, 2, 'late channel'), channel(99, 1, 'nobody\'\'s channel'), channel(8, 1, 'channel 8', q('2026-01-10 15:00+00')), channel(8, 1, 'channel 8', q('infinity')),
	'mark_channel_failed(' . key(8) . q{, 1, 'not now')}, 'mark_channel_failed(' . key(9) . q{, 1, E'it''s \\\\ no calendar', 'unsupported')}, 'mark_channel_failed(' . key(10) . q{, 1, 'x', 'odd')},
	'mark_channel_failed(' . key(10) . q{, 2, 'x')}, 'mark_channel_failed(' . key(10) . q{, 1, 'no', 'auth')}, 'mark_channel_stopped(' . key(11) . ', 1)', 'mark_channel_stopped(' . key(98) . ', 1)');
compare_states('after channels were opened');
my @pushes = map { "receive_push($_)" } q('channel 1', 'secret of channel 1', 7), q('channel 1', 'secret of channel 1', 7), q('channel 1', 'secret of channel 1', 6), q('channel 2', 'secret of channel 2'),
  q('channel 2', 'secret of channel 1'), q('channel 3', NULL), q(NULL, 'secret of channel 3'), q('', ''), q('channel 99', 'secret'), q('late channel', 'secret of late channel'), q('channel 7', 'secret of channel 7', 1);
compare('service_role', 'claim_due_syncs(max_rows => 10000)', map { 'mark_sync_completed(' . key($_) . ', lease => 1)' } 1 .. 8);
foreach my $role ('service_role', 'webhook')
{
	set_clock($role eq 'webhook' ? '2026-01-10 16:03:00+00' : '2026-01-10 16:02:00+00');
	compare($role, @pushes);
	compare_states("after pushes by $role");
}
compare('anon', @pushes);
compare('webhook', 'claim_push_channels()', 'BEGIN READ ONLY', $pushes[3], 'ROLLBACK');
# What it wakes: whoever waits for its source, once while a request is there
set_clock('2026-01-10 16:05:00+00');
compare('service_role', 'claim_due_syncs(max_rows => 10000)', map({ 'mark_sync_completed(' . key($_) . ', lease => 2)' } 1, 2, 7), 'pause_sync(' . key(3) . ')',
	'LISTEN syncstate', map { "receive_push('channel $_', 'secret of channel $_', $_ + 20)" } 1, 1, 3, 2);
compare('service_role', 'disconnect_sync(' . key(4) . ')', 'pause_sync(' . key(6) . ')', "set_sync_resources(" . key(2) . ", '{more}')",
	q{claim_push_channels('google_calendar', 100, '1 hour')}, 'mark_channel_stopped(' . key(4) . ', 2)', 'mark_channel_stopped(' . key(4) . ', 2)',
	'claim_push_channels()');
compare_states('after rows went');
# renewed a day later, each at its own time
set_clock('2026-01-12 03:59:00+00');
compare('service_role', q{claim_push_channels('google_calendar', 100, '1 hour')}, channel(5, 2, 'next channel 5', q('2026-01-14 16:00+00')), q{claim_push_channels('google_calendar', 100, '1 hour')}, @pushes,
	"receive_push('channel 5', 'secret of channel 5')", "receive_push('next channel 5', 'secret of next channel 5')");
compare_states('after a renewal');
compare('service_role', q{set_sync_policy('google_calendar', '{"push_renew_before": null}')}, 'resume_sync(' . key(6) . ')', q{claim_push_channels(NULL, 100, '1 hour')});
compare_states('after push was given up');
empty();

### The plans of rebalance_syncs() are each shard's own; their sums are as asked for

compare('service_role', q{set_sync_policy('google_tasks', '{"daily_budget": 4000}')}, q{rebalance_syncs('google_gmail')},
	map({ 'connect_sync(' . key($_, 'google_tasks') . ')' } 1 .. 40),
	q{SELECT source, rows, budget, round(planned) <= 4000, feasible FROM syncstate.rebalance_syncs('google_tasks')},
	q{SELECT source, rows, budget, feasible FROM syncstate.rebalance_syncs()});

### Claims

my $seed = $ENV{SYNCSTATE_TEST_SEED} // int(rand(2**31));
note "seed $seed";
srand $seed;

my @at = map { $node->background_psql("shard$_", on_error_stop => 0) } 0 .. $shards - 1;
my $worker = $node->background_psql('router', on_error_stop => 0);
$worker->query_safe('SET ROLE service_role');
$worker->query_safe('\set SHOW_CONTEXT never');
my $pid = $worker->query_safe('SELECT pg_backend_pid()');

# Users of each shard
my @users_of;
foreach (split /\n/, $s->query(q{SELECT syncstate.shard_of(u), u FROM generate_series(1, 1200) AS i,
	LATERAL (SELECT ('00000000-0000-4000-8001-' || lpad(to_hex(i), 12, '0'))::uuid AS u) AS u}))
{
	my ($shard, $user) = split /\|/;
	push @{ $users_of[$shard] }, $user;
}
cmp_ok(scalar @$_, '>', 200, 'users are spread') foreach @users_of;

# So many due rows on each shard, and some that are not due
sub fill
{
	my (@due) = @_;

	foreach my $n (0 .. $shards - 1)
	{
		my @rows = map { "('$users_of[$n][$_]', 'google_calendar', syncstate.sync_clock() " . ($_ < $due[$n] ? '-' : '+') . " interval '1 min $_ s')" } 0 .. $due[$n] + 2;
		$at[$n]->query_safe('DELETE FROM syncstate.sync_state; INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES ' . join ', ', @rows);
	}
	return;
}

# Who is held on each shard
sub held
{
	return map { [ split /\n/, $_->query_safe(q{SELECT user_id FROM syncstate.sync_state WHERE status = 'syncing' ORDER BY user_id}) ] } @at;
}

# What the worker's session has said to it since it was asked last
sub error
{
	my $error = $worker->{stderr} =~ s/^psql:<stdin>:\d+: //mgr;
	$worker->{stderr} = '';
	return $error;
}

# Claims, and gives how many rows came of each shard, or the error.
sub claim
{
	my ($arguments, $what) = @_;
	my @got = split /\n/, $worker->query("SELECT user_id FROM syncstate.claim_due_syncs($arguments)");
	my @held = held();

	is(join(' ', sort @got), join(' ', sort map { @$_ } @held), "$what: what is held is what came, and once each");
	my $error = error();
	return $error if $error ne '';
	return map { scalar @$_ } @held;
}

# Of each number of rows asked for: more or fewer than are due, wherever these are
foreach my $max (1 .. 50)
{
	my @due = (0) x $shards;
	if ($max % 3 == 0) { $due[ rand $shards ] = 60 }                  # all on one shard
	elsif ($max % 3 == 1) { $_ = int rand(1 + $max / 2) foreach @due }    # about as many
	else { $_ = int(rand 3) * int rand 40 foreach @due }
	fill(@due);
	my $sum = sum0(@due);
	my @got = claim("NULL, $max", "$max of @due");
	is(sum0(@got), $sum < $max ? $sum : $max, "$max of @due: @got");
	is(join(' ', grep { $got[$_] > $due[$_] } 0 .. $#got), '', 'none that is not due');
}

# Whose turn it is
sub turn
{
	$worker->query_safe(Shards::turn($_[0]));
	return;
}

# A shard is asked for each hundred rows, by turns, and those that are asked give
# equal shares.
foreach my $case ([ 1, 1 ], [ 3, 1 ], [ 20, 1 ], [ 100, 1 ], [ 101, 2 ], [ 150, 2 ], [ 301, 4 ], [ 403, 4 ])
{
	my ($max, $asked) = @$case;
	my ($low, @gave) = (int $max / $asked);
	foreach my $turn (0 .. $shards / $asked)
	{
		fill((110) x $shards);
		my @got = claim("'google_calendar', $max", "turn $turn of $max");
		$gave[$turn] = join ' ', grep { $got[$_] } 0 .. $#got;
		is(scalar(my @of = split / /, $gave[$turn]), $asked, "$max rows of as few shards as have them: @got");
		is(join(' ', grep { $got[$_] && $got[$_] != $low && $got[$_] != $low + 1 } 0 .. $#got), '', "shares of $max: @got");
	}
	is(join(' ', sort map { split / / } @gave[ 0 .. $shards / $asked - 1 ]), join(' ', 0 .. $shards - 1), "each shard has its turn of $max");
	is($gave[-1], $gave[0], 'and again in the same order');
}
fill((20) x $shards);
my @starts = map { $s->query('SELECT syncstate.shard_of(user_id) FROM syncstate.claim_due_syncs(max_rows => 1)') } 1 .. 12;
# by chance 12 times the same one: once in 4^11
cmp_ok(scalar(uniq @starts), '>', 1, 'not all sessions begin with the same shard');

# A worker that goes through its sources, or kinds, meets all shards for each:
# otherwise a shard that is never met with one of them would have rows that starve.
foreach my $turns ([qw(any full)], [qw(any full any)], [qw(any any full full)])
{
	my %met;
	fill((20) x $shards);
	foreach my $kind ((@$turns) x $shards)
	{
		$met{$kind}{ $worker->query_safe("SELECT syncstate.shard_of(user_id) FROM syncstate.claim_due_syncs('google_calendar', 1, kind => '$kind')") } = 1;
	}
	is(join(' ', map { scalar keys %{ $met{$_} } } sort keys %met), "$shards $shards", "claims of @$turns in turn each meet all shards");
}

# What one has not is asked of all the others, in equal shares.
fill(20, 3, 20, 20);
turn(1);
is(join(' ', claim('NULL, 20', 'too little on a shard')), '5 3 6 6', 'too little on a shard');
fill(0, 0, 1, 20);
turn(-4);
is(join(' ', claim('NULL, 2', 'nothing on two')), '0 0 1 1', 'nothing on two shards');

# Requested rows come first of a shard whose turn it is: after so many claims as
# there are shards, all of them.
fill((20) x $shards);
my @requested = map { $users_of[$_][21] } 0 .. $shards - 1;
$at[$_]->query_safe("SELECT syncstate.request_sync('$requested[$_]', 'google_calendar')") foreach 0 .. $shards - 1;
my @first = map { (split /\n/, $worker->query_safe('SELECT user_id FROM syncstate.claim_due_syncs(NULL, 5)'))[0] } 0 .. $shards - 1;
is(join(' ', sort @first), join(' ', sort @requested), 'requested rows wait for a turn at most');

# A shard that does not want: nobody's rows are taken, in the first round or later.
fill((10) x $shards);
like((claim(q{NULL, 20, '25 hours'}, 'a bad lease_time'))[0], qr/^ERROR:  lease_time must be between/, 'a bad lease_time');
$at[2]->query_safe(q{
	CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		RAISE EXCEPTION 'not this one' USING ERRCODE = 'ZZ001', DETAIL = 'The site does not want it.', HINT = 'Ask the site.';
	END
	$$;
	CREATE TRIGGER refuse AFTER UPDATE ON syncstate.sync_state FOR EACH ROW WHEN (NEW.resource = 'bad') EXECUTE FUNCTION public.refuse()});
# of shard 2, the oldest row, which is the first to come; and one that comes when the others have given all they have
foreach my $case ([ [ 10, 10, 10, 10 ], 2, 20, 9, 'at once' ], [ [ 1, 1, 20, 0 ], 3, 12, 12, 'in the third round' ])
{
	my ($due, $turn, $max, $bad, $when) = @$case;
	fill(@$due);
	turn($turn);
	$at[2]->query_safe("SET session_replication_role = replica; UPDATE syncstate.sync_state SET resource = 'bad' WHERE user_id = '$users_of[2][$bad]'; RESET session_replication_role");
	is((claim("NULL, $max", "refused $when"))[0], "ERROR:  not this one\nDETAIL:  The site does not want it.\nHINT:  Ask the site.", "refused $when");
	$at[2]->query_safe("DELETE FROM syncstate.sync_state WHERE resource = 'bad'");
	is(sum0(claim("NULL, $max", "after what was refused $when")), $max, "not so the next one");
}
# One that does at COMMIT, when others have committed: what they gave comes, with a warning.
$at[2]->query_safe(q{DROP TRIGGER refuse ON syncstate.sync_state;
	CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON syncstate.sync_state DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse()});
fill((10) x $shards);
turn(3);
is((claim('NULL, 20', 'a COMMIT that fails'))[0], "WARNING:  not all shards answer: not 2\nDETAIL:  Shard 2: not this one.", 'a COMMIT that fails');
is(join(' ', map { scalar @$_ } held()), '4 3 0 10', 'the others gave theirs');
$at[2]->query_safe(q{SET client_min_messages = warning; DROP FUNCTION public.refuse() CASCADE});

# One that has rows of a source that the router does not know
fill((10) x $shards);
$at[2]->query_safe("SELECT syncstate.register_sync_source('only_here')");
$at[2]->query_safe("INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES ('$users_of[2][100]', 'only_here', syncstate.sync_clock() - interval '2 hours')");
is((claim('NULL, 20', 'an unknown source'))[0], qq{ERROR:  invalid input value for enum syncstate.sync_source: "only_here"}, 'an unknown source');
is(sum0(claim("'google_calendar', 20", 'of a known one')), 20, 'is in nobody else\'s way');
$at[2]->query_safe("SELECT syncstate.mark_sync_started('$users_of[2][100]', 'only_here')");
$s->query("SELECT syncstate.mark_sync_started('$users_of[1][100]', 'google_tasks')");
$worker->query("SELECT syncstate.report_syncs('[" . join(', ', map { qq({"user_id": "$_->[0]", "source": "$_->[1]", "lease": 1, "outcome": "completed"}) }
	[ $users_of[1][100], 'google_tasks' ], [ $users_of[2][100], 'only_here' ]) . "]')");
like(error(), qr/invalid input value for enum syncstate.sync_source: "only_here"/, 'nor can it be reported');
is($at[1]->query("SELECT status FROM syncstate.sync_state WHERE user_id = '$users_of[1][100]'"), 'syncing', 'and the report beside it is not applied');
$worker->query(qq(SELECT syncstate.report_syncs('[{"user_id": "$users_of[2][100]", "source": "only_here", "lease": 1, "outcome": "completed"}]')));
like(error(), qr/invalid input value for enum syncstate.sync_source: "only_here"/, 'nor alone');
is($at[2]->query("SELECT status FROM syncstate.sync_state WHERE source = 'only_here'"), 'syncing', 'which is not applied either');
$s->query("SELECT syncstate.register_sync_source('only_here')");
fill((0) x $shards);
$at[2]->query_safe("INSERT INTO syncstate.sync_state (user_id, source, due_at) VALUES ('$users_of[2][100]', 'only_here', syncstate.sync_clock() - interval '2 hours')");
is(sum0(claim('NULL, 20', 'once it is registered')), 1, 'and comes once it is registered');

# Reports about users of one shard are one statement there, and a transaction on
# each where there are several.
foreach my $max (3, 12)
{
	fill((3) x $shards);
	is($worker->query_safe(qq(SELECT count(*) FROM syncstate.report_syncs((
		SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'source', source, 'lease', lease, 'outcome', 'completed')) FROM syncstate.claim_due_syncs(NULL, $max))))), $max, "$max reports");
	is(join(' ', map { scalar @$_ } held()), '0 0 0 0', 'are applied');
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT split_part(query, '(', 1), ', ' ORDER BY split_part(query, '(', 1)) FROM pg_stat_activity
			WHERE usename = 'router' AND state_change = (SELECT max(state_change) FROM pg_stat_activity WHERE usename = 'router')}),
		$max == 3 ? 'SELECT r::text FROM syncstate.report_syncs' : 'COMMIT', 'by a statement that ends it');
}

# A claim that is canceled while a shard keeps it waiting
foreach my $how ('a timeout', 'a cancel')
{
	fill((10) x $shards);
	$at[1]->query_safe('BEGIN; LOCK TABLE syncstate.sync_state');
	if ($how eq 'a timeout')
	{
		$worker->query_safe(q{SET statement_timeout = '300 ms'});
		is($worker->query('SELECT user_id FROM syncstate.claim_due_syncs(NULL, 20)'), '', "$how: nothing came");
		like(error(), qr/canceling statement due to statement timeout/, 'but the error');
		$worker->query_safe('RESET statement_timeout');
	}
	else
	{
		$worker->query_until(qr/waiting/, "\\echo waiting\nSELECT user_id FROM syncstate.claim_due_syncs(NULL, 20);\n");
		ok($node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'shard1' AND usename = 'router' AND wait_event_type = 'Lock'}), "$how: it waits");
		is($node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)"), 't', 'is canceled');
		is($worker->query('SELECT 1'), '1', 'and nothing came');
		like(error(), qr/canceling statement due to user request/, 'but the error');
	}
	$at[1]->query_safe('ROLLBACK');
	ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'router' AND (state <> 'idle' OR datname = 'shard1')}), 'shards have given it up');
	is(join(' ', map { scalar @$_ } held()), '0 0 0 0', "$how: no shard holds a row");
	is(sum0(claim('NULL, 20', "after $how")), 20, 'and the next claim finds them');
}

### Push channels: what is to be stopped comes first, whichever shard is asked first

$s->query(q{SELECT syncstate.set_sync_policy('google_calendar', '{"push_renew_before": "1 day"}')});
$at[0]->query_safe("INSERT INTO syncstate.sync_state (user_id, source) VALUES ('$users_of[0][150]', 'google_calendar')");
$at[1]->query_safe("INSERT INTO syncstate.sync_channel (user_id, account, source, resource, state, channel_id, token_hash, opened_at, renew_at)
	VALUES ('$users_of[1][150]', '', 'google_calendar', '', 'retiring', 'former', sha256('x'), now(), syncstate.sync_clock())");
$worker->query_safe(Shards::turn_of_channels(0));
is($worker->query_safe(qq{SELECT string_agg(action, ' ' ORDER BY place) FROM syncstate.claim_push_channels('google_calendar', 100) WITH ORDINALITY
	AS c (user_id, account, source, resource, action, lease, lease_expires_at, channel_id, provider_ref, expires_at, failures, place)
	WHERE user_id IN ('$users_of[0][150]', '$users_of[1][150]')}), 'stop open', 'a stop comes before the rest');

### Events: taken as rows are claimed, and none is lost

# So many on each shard, the oldest of them in turn on one after the other
sub fill_events
{
	my (@count) = @_;

	foreach my $n (0 .. $shards - 1)
	{
		$at[$n]->query_safe("DELETE FROM syncstate.sync_event; INSERT INTO syncstate.sync_event (at, event, user_id)
			SELECT timestamptz '2026-01-10 12:00:00+00' + i * interval '1 s' + interval '$n ms', 'parked', '$users_of[$n][0]' FROM generate_series(1, $count[$n]) AS i");
	}
	return;
}

# What is there, shard by shard, oldest first
sub events
{
	return map { [ split /\n/, $_->query_safe(q{SELECT to_char(at, 'HH24:MI:SS.MS'), id FROM syncstate.sync_event ORDER BY at, id}) ] } @at;
}

# Takes some, and gives how many of each shard are gone, or the error.
sub take
{
	my ($max, $what) = @_;
	my @before = events();
	my @got = split /\n/, $worker->query("SELECT to_char(at, 'HH24:MI:SS.MS'), id FROM syncstate.take_sync_events($max)");
	my @after = events();
	my @gone = map { @{ $before[$_] } - @{ $after[$_] } } 0 .. $shards - 1;

	is(join(' ', @got), join(' ', sort map { @{ $before[$_] }[ 0 .. $gone[$_] - 1 ] } 0 .. $shards - 1), "$what: what is gone came, the oldest first");
	is(join(' ', map { @$_ } @after), join(' ', map { @{ $before[$_] }[ $gone[$_] .. $#{ $before[$_] } ] } 0 .. $shards - 1), "$what: and the rest is there");
	my $error = error();
	return $error if $error ne '';
	return @gone;
}

$worker->query_safe('SET ROLE service_role');
foreach my $max (1 .. 12)
{
	my @count = map { int(rand 2) * int rand 8 } @at;
	my $sum = sum0(@count);
	fill_events(@count);
	is(sum0(take($max, "$max of @count")), $sum < $max ? $sum : $max, "as many as there are, and no more than $max");
}
foreach my $case ([ 1, 1 ], [ 100, 1 ], [ 101, 2 ], [ 301, 4 ])
{
	my ($max, $asked) = @$case;
	my %gave;
	foreach my $turn (1 .. $shards / $asked)
	{
		fill_events((110) x $shards);
		my @got = take($max, "turn $turn of $max");
		is(scalar(my @of = grep { $got[$_] } 0 .. $#got), $asked, "$max events of as few shards as have them: @got");
		$gave{$_}++ foreach grep { $got[$_] } 0 .. $#got;
	}
	is(join(' ', map { $gave{$_} // 0 } 0 .. $shards - 1), join(' ', (1) x $shards), "each shard has its turn of $max events");
}
fill_events(20, 3, 20, 20);
$worker->query_safe(Shards::turn_of_events(1));
is(join(' ', take(20, 'too few on a shard')), '5 3 6 6', 'what one has not is asked of the others');
is(take(0, 'none'), "ERROR:  max_rows must be between 1 and 10000\nDETAIL:  Got 0.", 'none cannot be taken');

# What a rollback on the router undoes on a single database it does not here.
$worker->query_safe('BEGIN');
take(10, 'in a transaction');
$worker->query_safe('ROLLBACK');
is(sum0(map { scalar @$_ } events()), 33, 'what is taken is gone, also after a rollback');

# A shard that does not want, one that does not at COMMIT, and one that keeps it waiting
$at[2]->query_safe(q{
	CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
	CREATE TRIGGER refuse AFTER DELETE ON syncstate.sync_event FOR EACH ROW WHEN (OLD.at >= '2026-01-10') EXECUTE FUNCTION public.refuse()});
$at[2]->query_safe('SET session_replication_role = replica');
fill_events((3) x $shards);
is(take(12, 'refused'), 'ERROR:  not this one', 'a shard that refuses');
is(sum0(map { scalar @$_ } events()), 12, 'nothing is lost');
$at[2]->query_safe(q{DROP TRIGGER refuse ON syncstate.sync_event;
	CREATE CONSTRAINT TRIGGER refuse AFTER DELETE ON syncstate.sync_event DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse()});
my @all = sort map { @$_ } events();
is($worker->query("SELECT to_char(at, 'HH24:MI:SS.MS'), id FROM syncstate.take_sync_events(12)"), join("\n", @all), 'what a shard does not confirm comes all the same');
is(error(), "WARNING:  shard 2 has not confirmed that its events are taken\nDETAIL:  not this one\nHINT:  They may come again, each by the same id.", 'with a warning');
is(join(' ', map { scalar @$_ } events()), '0 0 3 0', 'and may come again');
$at[2]->query_safe(q{SET client_min_messages = warning; DROP FUNCTION public.refuse() CASCADE; RESET session_replication_role});
is($worker->query("SELECT to_char(at, 'HH24:MI:SS.MS'), id FROM syncstate.take_sync_events(12)"), join("\n", grep { /\.002/ } @all), 'as the same');
fill_events((3) x $shards);
$at[1]->query_safe('BEGIN; LOCK TABLE syncstate.sync_event');
$worker->query_safe(q{SET statement_timeout = '300 ms'});
is($worker->query('SELECT id FROM syncstate.take_sync_events(12)'), '', 'a timeout: nothing came');
like(error(), qr/canceling statement due to statement timeout/, 'but the error');
$worker->query_safe('RESET statement_timeout');
$at[1]->query_safe('ROLLBACK');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'router' AND state <> 'idle'}), 'shards have given it up');
is(sum0(take(12, 'after a timeout')), 12, 'and nothing is lost');

# A cancel that comes while shards commit comes too late.
fill_events((3) x $shards);
$at[1]->query_safe(q{
	CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
	CREATE CONSTRAINT TRIGGER wait AFTER DELETE ON syncstate.sync_event DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait();
	SELECT pg_advisory_lock(1)});
@all = sort map { @$_ } events();
$worker->query_safe(q{SET statement_timeout = '300 ms'});
is($worker->query("SELECT to_char(at, 'HH24:MI:SS.MS'), id FROM syncstate.take_sync_events(12)"), join("\n", @all), 'canceled while shards commit: the events come');
is(join(' ', sort(error() =~ /^WARNING:  shard (\d) has not confirmed that its events are taken\nDETAIL:  canceling statement due to statement timeout$/mg)), '0 1 2 3', 'with warnings');
$worker->query_safe('RESET statement_timeout');
$at[1]->query_safe('SELECT pg_advisory_unlock(1)');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'router' AND state <> 'idle'}), 'shards have ended it');
is(sum0(map { scalar @$_ } events()), 0, 'and nothing comes again');
$at[1]->query_safe('SET client_min_messages = warning; DROP FUNCTION public.wait() CASCADE; RESET client_min_messages');

# One of a source that the router does not know
fill_events((3) x $shards);
$at[2]->query_safe("SELECT syncstate.register_sync_source('only_there')");
$at[2]->query_safe("INSERT INTO syncstate.sync_event (at, event, source) VALUES ('2026-01-01', 'source_resumed', 'only_there')");
is(take(12, 'an unknown source'), 'ERROR:  invalid input value for enum syncstate.sync_source: "only_there"', 'an unknown source');
is(sum0(map { scalar @$_ } events()), 13, 'nothing is lost');

$_->quit foreach $worker, @at;
$s->stop;
done_testing();
