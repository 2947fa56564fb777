# A streaming standby serves what reads, to users and to workers, and refuses
# what writes with 25006 and nothing else.  When the primary is killed in the
# middle of load and the standby is promoted, every acknowledged call is there,
# and all goes on.
#
#	SYNCSTATE_CRASH_ROUNDS	how many promotions (otherwise one)
#	SYNCSTATE_SEED			the seed that a failure told
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../crash", "$FindBin::RealBin/lib";
use Load;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $rounds = $ENV{SYNCSTATE_CRASH_ROUNDS} || 1;

sub standby_of
{
	my ($primary, $name) = @_;
	$primary->backup("for_$name");
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, "for_$name", has_streaming => 1);
	$standby->start;
	return $standby;
}

# Rows, or the SQLSTATE of the first error.
sub as_role
{
	my ($node, $role, $sql) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "SET client_min_messages = error; $sql",
		extra_params => [ (defined $role ? ('-U', $role) : ()), '-v', 'VERBOSITY=sqlstate' ]);
	return $out if $status == 0;
	return $err =~ /(?:ERROR|FATAL|PANIC):\s+(\w{5})/ ? $1 : $err;
}

my $primary = PostgreSQL::Test::Cluster->new('node0');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', q{
max_connections = 20
log_statement = none
wal_log_hints = off
restart_after_crash = off});
$primary->start;

my $load = Load->new(3);
$load->prepare($primary);
$primary->safe_psql('postgres', q{
	CREATE ROLE regress_syncstate_worker LOGIN;
	CREATE ROLE regress_syncstate_user LOGIN;
	SELECT syncstate.grant_worker('regress_syncstate_worker');
	SELECT syncstate.grant_user('regress_syncstate_user');
	SELECT syncstate.connect_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_gmail', 'mine');
	SELECT syncstate.pause_sync('aaaaaaaa-0000-4000-8000-00000000000a', 'google_gmail', 'mine');
	GRANT USAGE, CREATE ON SCHEMA public TO regress_syncstate_worker;
	INSERT INTO journal (client, n, call, user_id, account, source, resource, lease, image)
		SELECT 0, 0, 'made', user_id, account, source, resource, lease, s::text FROM syncstate.sync_state AS s WHERE resource = 'mine'});
my $standby = standby_of($primary, 'node1');
$primary->wait_for_catchup($standby);

### reading

# What both are asked, by whom.  At one time, so that the answers are the same.
my $a = 'aaaaaaaa-0000-4000-8000-00000000000a';
my $worker = 'regress_syncstate_worker';
my $user = 'regress_syncstate_user';
my $me = qq{SET "request.jwt.claims" = '{"sub": "$a"}';};
$primary->safe_psql('postgres', q{LOAD 'syncstate'; ALTER SYSTEM SET syncstate.clock = '2098-01-01 00:00:00+00'; SELECT pg_reload_conf()});
$standby->safe_psql('postgres', q{LOAD 'syncstate'; ALTER SYSTEM SET syncstate.clock = '2098-01-01 00:00:00+00'; SELECT pg_reload_conf()});
foreach my $node ($primary, $standby)
{
	$node->poll_query_until('postgres', q{SELECT current_setting('syncstate.clock') <> ''});
}
foreach my $question (
	[ 'my_syncs', $user, "$me SELECT * FROM syncstate.my_syncs" ],
	[ 'the table, through row security', $user, "$me SELECT count(*), min(user_id::text), max(user_id::text) FROM syncstate.sync_state" ],
	[ 'current_user_id', $user, "$me SELECT syncstate.current_user_id()" ],
	[ 'sync_clock', $user, 'SELECT syncstate.sync_clock()' ],
	[ 'sync_overview', $worker, 'SELECT * FROM syncstate.sync_overview' ],
	[ 'get_sync_state', $worker, "SELECT * FROM syncstate.get_sync_state('$a', 'google_gmail', 'mine')" ],
	[ 'get_sync_states', $worker, "SELECT * FROM syncstate.get_sync_states('00000000-0000-4000-8000-000000000003')" ],
	[ 'next_sync_due', $worker, 'SELECT syncstate.next_sync_due(), syncstate.next_sync_due(s) FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s' ],
	[ 'get_users_needing_sync', $worker, q{SELECT count(*), md5(string_agg(u::text, ' ')) FROM syncstate.get_users_needing_sync('custom_crm', max_rows => 30) AS u} ],
	[ 'get_sync_policy', $worker, 'SELECT syncstate.get_sync_policy(s) FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s' ],
	[ 'the table', $worker, 'SELECT s FROM syncstate.sync_state AS s ORDER BY user_id, source, resource' ],
	[ 'the custom sources', undef, 'SELECT * FROM syncstate.custom_source' ],
	[ 'is_legal', $worker, 'SELECT count(*) FROM syncstate.sync_state AS s WHERE syncstate.is_legal(s)' ],
	[ 'check_installation', undef, q{SELECT count(*) FROM syncstate.check_installation() WHERE object !~ '^(table|session|replication)'} ])
{
	my ($what, $role, $sql) = @$question;
	my $answer = as_role($primary, $role, "SET TimeZone = 'UTC'; $sql");
	like($answer, qr/[^\n|]{6}|\d/, "$what: the primary tells");
	is(as_role($standby, $role, "SET TimeZone = 'UTC'; $sql"), $answer, "$what: the standby tells the same");
}
is(as_role($standby, $user, "SELECT * FROM syncstate.my_syncs"), '', 'who is nobody sees nothing');
is(as_role($standby, $user, "$me SELECT sync_token FROM syncstate.sync_state"), '42501', 'no cursor for users there either');

### writing

my $key = "'$a', 'google_gmail'";
my %writers = (
	claim_due_syncs => 'claim_due_syncs()',
	mark_sync_started => "mark_sync_started($key)",
	mark_sync_completed => "mark_sync_completed($key)",
	mark_sync_failed => "mark_sync_failed($key, 'x')",
	mark_rate_limited => "mark_rate_limited($key, scope => 'source')",
	clear_sync_token => "clear_sync_token($key)",
	renew_sync_lease => "renew_sync_lease($key, 1, resource => 'mine')",
	checkpoint_sync => "checkpoint_sync($key, 1, resource => 'mine')",
	release_sync => "release_sync($key, 1, resource => 'mine')",
	may_sweep => "may_sweep($key, 1, 0, 0, resource => 'mine')",
	report_syncs => qq{report_syncs('[{"user_id": "$a", "source": "google_gmail", "lease": 1, "outcome": "completed"}]')},
	update_sync_state => qq{update_sync_state($key, '{"sync_token": "x"}')},
	set_sync_policy => qq{set_sync_policy('google_gmail', '{"jitter": 0}')},
	pause_sync_source => q{pause_sync_source('google_gmail')},
	resume_sync_source => q{resume_sync_source('google_gmail')},
	resync_source => q{resync_source('google_gmail')},
	revive_syncs => q{revive_syncs('google_gmail')},
	rebalance_syncs => 'rebalance_syncs()',
	connect_sync => "connect_sync($key)",
	disconnect_sync => "disconnect_sync($key, 'mine')",
	connect_account => "connect_account('$a')",
	pause_account => "pause_account('$a')",
	resume_account => "resume_account('$a')",
	disconnect_account => "disconnect_account('$a')",
	request_account => "request_account('$a')",
	set_sync_resources => "set_sync_resources($key, '{x}')",
	pause_sync => "pause_sync($key, 'mine')",
	resume_sync => "resume_sync($key, 'mine')",
	request_sync => "request_sync($key, 'mine')",
	register_sync_source => q{register_sync_source('another')},
	grant_worker => q{grant_worker('regress_syncstate_user')},
	grant_user => q{grant_user('regress_syncstate_worker')},
	take_sync_events => 'take_sync_events()',
	claim_push_channels => 'claim_push_channels()',
	mark_channel_opened => "mark_channel_opened($key, 1, 'id', NULL, 'secret')",
	mark_channel_failed => "mark_channel_failed($key, 1, 'x')",
	mark_channel_stopped => "mark_channel_stopped($key, 1)",
	receive_push => q{receive_push('id', 'secret')},
	watch_users => q{watch_users('journal', 'user_id')});
is($standby->safe_psql('postgres', q{SELECT string_agg(proname, ' ' ORDER BY proname COLLATE "C") FROM pg_proc
		WHERE pronamespace = 'syncstate'::regnamespace AND provolatile = 'v' AND prorettype <> 'trigger'::regtype AND proname <> 'sync_clock'}),
	join(' ', sort keys %writers), 'these are all functions that write');
foreach my $function (sort keys %writers)
{
	is(as_role($standby, undef, "SELECT syncstate.$writers{$function}"), '25006', "$function is refused");
}
foreach my $statement (
	"INSERT INTO syncstate.sync_state (user_id, source) VALUES ($key)",
	q{UPDATE syncstate.sync_state SET requested_at = now()},
	'DELETE FROM syncstate.sync_state',
	'SELECT FROM syncstate.sync_state FOR UPDATE',
	q{INSERT INTO syncstate.sync_policy (source) VALUES ('google_gmail')},
	'TRUNCATE syncstate.sync_policy')
{
	is(as_role($standby, undef, $statement), '25006', "$statement is refused");
}
is(as_role($standby, $worker, 'SELECT syncstate.claim_due_syncs()'), '25006', 'for a worker as well');
is(as_role($standby, $user, "$me SELECT syncstate.request_sync($key, 'mine')"), '25006', 'for a user as well');

foreach my $node ($primary, $standby)
{
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET syncstate.clock; SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', q{SELECT COALESCE(current_setting('syncstate.clock', true), '') = ''});
}

### a session of the standby that stays

my $session = $standby->background_psql('postgres', on_error_stop => 0);
$session->query(q{SET client_min_messages = error; SELECT syncstate.next_sync_due()});
is($session->query(q{SELECT sync_interval FROM syncstate.get_sync_policy('google_calendar')}), '00:00:01', 'a session knows the settings');
$primary->safe_psql('postgres', q{SELECT syncstate.set_sync_policy('google_calendar', '{"sync_interval": "2 s"}')});
$primary->safe_psql('postgres', q{SELECT syncstate.register_sync_source('late')});
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
is($session->query(q{SELECT sync_interval FROM syncstate.get_sync_policy('google_calendar')}), '00:00:02', 'and learns of changes of the primary');
is($session->query(q{SELECT source FROM syncstate.sync_overview WHERE source = 'late'}), 'late', 'and of labels');

### promotion

# Acknowledged is what both have.
sub synchronous
{
	my ($node, $names) = @_;
	$node->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = '$names'; SELECT pg_reload_conf()");
	$node->poll_query_until('postgres', qq{SELECT current_setting('synchronous_standby_names') = '$names'});
	$node->poll_query_until('postgres', q{SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')}) if $names;
	return;
}

foreach my $round (1 .. $rounds)
{
	synchronous($primary, '*');
	$load->start($primary);
	$load->wait_for(200);
	$round % 2 ? $primary->kill9 : $primary->stop('immediate');
	$load->wait_for_end;
	$standby->promote;
	$load->check($standby, "promotion $round");

	if (defined $session)
	{
		# It was there before the promotion, and is a worker now.
		is($session->query(q{SELECT count(*) FROM syncstate.claim_due_syncs(max_rows => 3);}), '3', 'the session can claim now');
		is($session->query(q{UPDATE syncstate.sync_state AS s SET page_token = 'x' WHERE user_id = '00000000-0000-4000-8000-000000000001' RETURNING 1}) =~ /1/ ? 't' : 'f', 't', 'and write');
		$session->quit;
		undef $session;
		$standby->safe_psql('postgres', q{
			SET TimeZone = 'UTC';
			INSERT INTO journal (client, n, call, user_id, account, source, resource, lease, image)
			SELECT 0, 0, 'by hand', user_id, account, source, resource, lease, s::text FROM syncstate.sync_state AS s});
	}

	# The clients go on there, with the leases that they have.
	$load->start($standby);
	$load->wait_for(50);
	$load->wait_for_end('KILL');
	$load->wait_for_silence($standby);
	$load->check($standby, "after promotion $round");

	($primary, $standby) = ($standby, undef);
	$standby = standby_of($primary, 'node' . ($round + 1)) if $round < $rounds;
}
$load->check_that_all_come_back($primary);

diag('SYNCSTATE_SEED=' . $load->seed) unless Test::More->builder->is_passing;
$primary->stop;
$standby->stop if defined $standby;
done_testing();
