# Shards that are down, restarted in mid-call, slow, silent, full or standbys,
# and a router that dies: users of the other shards go on, what is wrong is
# told, and no row is held but by those who were told so.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;
use Time::HiRes qw(time);

Shards::skip_all_without_plproxy();
my $s = Shards->new(4, clusters => 1, conf => "max_prepared_transactions = 1\n");

# Users by their shard, and the same number of rows for each shard
my $each = 6;
my @users;
foreach my $n (0 .. 3)
{
	$users[$n] = [ split /\n/, $s->query(qq{
		SELECT u FROM (SELECT lpad(n::text, 32, '0')::uuid AS u FROM generate_series(1, 1000) AS n) AS u
		WHERE syncstate.shard_of(u) = $n ORDER BY u LIMIT $each}) ];
}

# Each shard has its rows, all due since this moment: what was due earlier, a
# session that has claimed since would only find when it sweeps.  They are of
# another account than users have who name none.
sub fill
{
	my ($rows) = @_;
	foreach my $n (0 .. 3)
	{
		my $count = $rows->{$n} // $each;
		$s->shard_query($n, qq{
			DELETE FROM syncstate.sync_state;
			INSERT INTO syncstate.sync_state (user_id, account, source, due_at)
			SELECT unnest(('{@{[ join ',', @{ $users[$n] } ]}}'::uuid[])[1:$count]), 'work', 'google_tasks', clock_timestamp()});
	}
	return;
}

# ------------------------------------------------------------- what is asked

# A session of the router, as a worker.
sub router_session
{
	my $session = $s->{router}->background_psql('router', on_error_stop => 0);
	$session->set_query_timer_restart;
	$session->query('SET ROLE service_role; \set VERBOSITY verbose');
	return $session;
}

# Rows and messages, messages only, rows only.
sub ask
{
	my ($session, $sql) = @_;
	$session->{stderr} = '';
	my $out = $session->query("$sql;");
	return ($out, $session->{stderr});
}

# Starts a statement that will have to wait.
sub start
{
	my ($session, $sql) = @_;
	$session->{stderr} = '';
	$session->query_until(qr/started/, "\\echo started\n$sql;\n");
	return;
}

sub finish
{
	my ($session) = @_;
	my $out = $session->query('');
	return ($out, $session->{stderr});
}

sub claim
{
	my ($max_rows) = @_;
	return sprintf q{SELECT user_id, lease, account FROM syncstate.claim_due_syncs('google_tasks', %s) ORDER BY 1}, $max_rows // 1000;
}

# A report about each of the rows of a claim
sub report
{
	my ($claimed) = @_;
	my @reports = map { sprintf '{"user_id": "%s", "source": "google_tasks", "lease": %s, "account": "%s", "outcome": "completed", "items_synced": 7}', split /\|/ } split /\n/, $claimed;
	return sprintf q{SELECT user_id, lease, account FROM syncstate.report_syncs('[%s]') ORDER BY 1}, join ',', @reports;
}

# --------------------------------------------------------- what is the case

# What the shards say is held, as a claim gives it
sub held
{
	my @rows;
	push @rows, grep { length } split /\n/, $s->shard_query($_, q{
		SELECT user_id, lease, account FROM syncstate.sync_state WHERE status = 'syncing'}) for 0 .. 3;
	return join "\n", sort @rows;
}

# Rows of a claim that are some shards'
sub of
{
	my ($claimed, @shards) = @_;
	my %of = map { $_ => 1 } map { @{ $users[$_] } } @shards;
	return join "\n", sort grep { $of{ (split /\|/)[0] } } split /\n/, $claimed;
}

sub count
{
	my ($rows) = @_;
	return scalar(my @rows = split /\n/, $rows);
}

my $in_transaction = q{FROM pg_stat_activity WHERE usename = 'router' AND state <> 'idle'};

# Until the router's session waits for some shards, and has the answers of the
# others, which hold their rows.
sub wait_for_shards
{
	my (@waiting) = @_;
	foreach my $n (0 .. 3)
	{
		my $waits = grep { $_ == $n } @waiting;
		$s->wait_for($n, $waits ? "EXISTS (SELECT $in_transaction AND wait_event_type = 'Lock')" : "EXISTS (SELECT $in_transaction AND state = 'idle in transaction')");
	}
	return;
}

# Until no shard does anything for the router
sub wait_for_rest
{
	$s->wait_for($_, "NOT EXISTS (SELECT $in_transaction)") for 0 .. 3;
	return;
}

# A lock that makes calls wait.  A prepared transaction holds it over a restart.  A
# session would release it at the shutdown, and a call that waits for it could take
# it and commit before it is ended itself.
sub lock_shard
{
	my ($n) = @_;
	$s->shard_query($n, q{BEGIN; LOCK TABLE syncstate.sync_state IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock'});
	return;
}

sub unlock_shard
{
	my ($n) = @_;
	$s->shard_query($n, q{ROLLBACK PREPARED 'lock'});
	return;
}

sub restart
{
	my ($n, $mode) = @_;
	$s->{shards}[$n]->stop($mode);
	$s->{shards}[$n]->start;
	return;
}

# Time of the shards; without an argument the real one
sub set_clock
{
	my ($time) = @_;
	my $value = defined $time ? "= '$time'" : '= DEFAULT';
	foreach my $n (0 .. 3)
	{
		$s->shard_query($n, "LOAD 'syncstate'; ALTER SYSTEM SET syncstate.clock $value");
		$s->shard_query($n, 'SELECT pg_reload_conf()');
		$s->wait_for($n, q{COALESCE(current_setting('syncstate.clock', true), '') = '} . ($time // '') . q{'});
	}
	return;
}

# Asks a shard again that took more than a second, as one that is restarted does
# on a busy machine.
sub ask_again
{
	my ($session, $n) = @_;
	ask($session, "SET syncstate_router.avoid_until_$n = ''");
	return;
}

# -------------------------------------------------------- a shard is stopped

my $router = router_session();
fill({});
# from shard 3 on, by turns: 6 rows, and of the others 4, 3 and 3
ask($router, 'SELECT syncstate.next_sync_due()');
ask($router, Shards::turn(3, 'google_tasks'));
my ($claimed, $messages) = ask($router, claim(16));
is(count($claimed), 16, 'all shards are up');
is($messages, '', 'which needs no words');
my ($none, $words) = ask($router, qq{SELECT syncstate.report_syncs('[{"user_id": "$users[0][0]", "source": "google_tasks", "lease": 99, "outcome": "rate_limited", "scope": "source"}]')});
is("$none$words", '', 'a limit with a lost lease pauses nothing anywhere');
# ... nor does it pass on a pause that a worker of a shard has met
$s->shard_query(0, q{SELECT syncstate.pause_sync_source('google_tasks', clock_timestamp() + '1 hour'); DELETE FROM syncstate.sync_event});
ask($router, qq{SELECT syncstate.report_syncs('[{"user_id": "$users[0][0]", "source": "google_tasks", "lease": 99, "outcome": "rate_limited", "scope": "source"}]')});
is(join(' ', map { $s->shard_query($_, q{SELECT paused_until IS NOT NULL FROM syncstate.get_sync_policy('google_tasks')}) } 0 .. 3), 't f f f', 'a pause of one shard stays its own');
($none, $words) = ask($router, q{SELECT paused_until > clock_timestamp() FROM syncstate.get_sync_policy('google_tasks')});
is($words, '', 'which is no difference of policies');
like($none, qr/^t$/, 'but told');
$s->shard_query(0, q{SELECT syncstate.resume_sync_source('google_tasks'); DELETE FROM syncstate.sync_event});
my $lost = of($claimed, 2);
is(count($lost), 3, 'the one that will be down has its part');

# connections of PL/Proxy as well
ask($router, "SELECT syncstate.get_sync_state('$users[$_][0]', 'google_tasks')") for 0 .. 3;
# and an event of a user of each
$s->shard_query($_, "INSERT INTO syncstate.sync_event (at, event, user_id, detail) VALUES (clock_timestamp(), 'parked', '$users[$_][4]', 'before')") for 0 .. 3;
# and push channels: one that is open, and one that is to be stopped
$s->shard_query($_, qq{
	INSERT INTO syncstate.sync_policy (source, push_renew_before) VALUES ('google_tasks', '1 day');
	INSERT INTO syncstate.sync_channel (user_id, account, source, resource, state, channel_id, token_hash, opened_at, renew_at) VALUES
		('$users[$_][4]', 'work', 'google_tasks', '', 'active', 'channel $_', sha256('secret'), now(), 'infinity'),
		('$users[$_][4]', 'work', 'google_contacts', '', 'retiring', 'old channel $_', sha256('secret'), now(), now())}) for 0 .. 3;
$s->{shards}[2]->stop('fast');

my ($more, $warning) = ask($router, claim());
is(count($more), 5, 'a claim gives what the others have');
like($warning, qr/WARNING:  08006: not all shards answer: not 2\nDETAIL:  Shard 2: [^\n]+/, 'and a warning names the shard');
my $others = join "\n", sort split(/\n/, of($claimed, 0, 1, 3)), split /\n/, $more;
my ($reported) = ask($router, report("$others\n$lost"));
like($router->{stderr}, qr/WARNING:  08006: not all shards answer: not 2\n/, 'so does a report');
is($reported, $others, 'reports about users of the others are applied');
($reported, $messages) = ask($router, report($others));
is("$reported$messages", '', 'a report that needs no other shard has no warning');
foreach my $looks ('next_sync_due()', "get_users_needing_sync('google_tasks')", "get_sync_policy('google_tasks')")
{
	my ($out, $err) = ask($router, "SELECT 'told', * FROM syncstate.$looks");
	like($err, qr/^psql:<stdin>:\d+: WARNING:  08006: not all shards answer: not 2\n/, "$looks warns");
	unlike($err, qr/ERROR/, "$looks is no error");
	like($out, qr/^told/, "$looks tells") unless $looks =~ /users/;
}

my $take = q{SELECT user_id FROM syncstate.take_sync_events(1000) WHERE detail = 'before' ORDER BY 1};
my ($taken, $of_events) = ask($router, $take);
is($taken, join("\n", sort map { $users[$_][4] } 0, 1, 3), 'events of the others are taken');
like($of_events, qr/WARNING:  08006: not all shards answer: not 2\nDETAIL:  Shard 2: [^\n]+/, 'with a warning that names the shard');

# Push channels: of which those of the others are handed out, and heard.  What
# might be known by the shard that is down has to be sent again.
my $push = q{SELECT syncstate.receive_push('channel %s', '%s')};
($taken, $of_events) = ask($router, q{SELECT user_id FROM syncstate.claim_push_channels('google_contacts', 100) ORDER BY 1});
is($taken, join("\n", sort map { $users[$_][4] } 0, 1, 3), 'channels of the others are handed out');
like($of_events, qr/WARNING:  08006: not all shards answer: not 2\nDETAIL:  Shard 2: [^\n]+/, 'with a warning that names the shard');
foreach my $n (0, 1, 3)
{
	is(join('|', ask($router, sprintf $push, $n, 'secret')), 't|', "a push of shard $n needs no words");
}
foreach my $case ([ 2, 'secret' ], [ 0, 'another' ], [ 'unknown', 'secret' ])
{
	my ($out, $err) = ask($router, sprintf $push, @$case);
	is($out, '', "push of @$case: not refused");
	like($err, qr/ERROR:  08006: not all shards answer: not 2\nDETAIL:  Shards that did what was asked: 0, 1, 3\. Shard 2: [^\n]+\n/, 'but has to be sent again');
}

# A bad report whose shard is not there to refuse it, beside a good one
ask($router, "SELECT syncstate.mark_sync_started('$users[0][0]', 'google_contacts')");
my $completed = '"source": "google_contacts", "outcome": "completed"';
my (undef, $malformed) = ask($router, qq{SELECT syncstate.report_syncs('[{"user_id": "$users[0][0]", "lease": 1, $completed}, {"user_id": "$users[2][0]", "lease": "x", $completed}]')});
like($malformed, qr/ERROR:  22P02: /, 'a malformed report is an error');
is($s->shard_query(0, q{SELECT status FROM syncstate.sync_state WHERE source = 'google_contacts'}), 'syncing', 'and none is applied');
ask($router, "SELECT syncstate.disconnect_sync('$users[0][0]', 'google_contacts')");

# All calls about one user: of the shard that is down, and of another one
my %single = (
	connect_sync => '%s',
	mark_sync_started => '%s',
	renew_sync_lease => '%s, lease => 1000',
	checkpoint_sync => '%s, lease => 1000',
	release_sync => '%s, lease => 1000',
	may_sweep => '%s, lease => 1000, vanished => 0, total => 0',
	clear_sync_token => '%s',
	mark_sync_completed => '%s',
	mark_sync_failed => q{%s, error_message => 'x'},
	mark_rate_limited => '%s',
	update_sync_state => q{%s, changes => '{}'},
	pause_sync => '%s',
	resume_sync => '%s',
	request_sync => '%s',
	get_sync_state => '%s',
	disconnect_sync => '%s',
	mark_channel_opened => q{%s, lease => 1000, channel_id => 'late', expires_at => NULL, token => 'secret'},
	mark_channel_failed => q{%s, lease => 1000, error_message => 'x'},
	mark_channel_stopped => '%s, lease => 1000',
	set_sync_resources => q{%s, resources => '{a}'},
	map { ($_ => undef) } qw(get_sync_states connect_account pause_account resume_account request_account disconnect_account));
foreach my $function (sort keys %single)
{
	my $call = sub {
		my ($n) = @_;
		return "SELECT format('of %s', coalesce(to_jsonb(r) ->> 'account', '-')) FROM syncstate.$function(" . (defined $single{$function}
			? sprintf($single{$function}, "'$users[$n][5]', 'google_tasks'") : "'$users[$n][5]'")
		  . ($function eq 'get_sync_states' ? ')' : q{, account => 'work')}) . ' AS r';
	};
	my (undef, $err) = ask($router, $call->(2));
	like($err, qr/ERROR:  08006: shard 2 does not answer\nDETAIL:  [^\n]+/, "$function: no user of the shard that is down");
	(my $out, $err) = ask($router, $call->(1));
	is($err =~ s/.*ERROR:  PT409: [^\n]+\nDETAIL:  Key [^=]*=\($users[1][5], work, google_tasks, \)[^\n]*\n.*//sr, '', "$function: a user of another shard");
	unlike($out, qr/^of $/m, "$function: and the account that was named");
}
ask($router, 'RESET ROLE');
my (undef, $refused) = ask($router, "SET request.jwt.claim.sub = '$users[2][0]'; SET ROLE authenticated; SELECT * FROM syncstate.my_syncs");
like($refused, qr/ERROR:  08006: shard 2 does not answer\nDETAIL:  08006\n/, 'users are told no more than that');
(undef, $refused) = ask($router, "SELECT * FROM syncstate.request_account('$users[2][0]', 'work')");
like($refused, qr/ERROR:  08006: shard 2 does not answer\nDETAIL:  08006\n/, 'nor of their accounts');
is((ask($router, "SELECT 'none', count(*) FROM syncstate.request_account('$users[1][0]', 'work')"))[0], 'none|0', 'of others they get nothing');
ask($router, 'RESET ROLE');

# Calls that are for all shards, and how to see on one that it was done
$s->query('CREATE TABLE app_user (id uuid PRIMARY KEY)');
$s->query("SELECT syncstate.watch_users('app_user')");
$s->query("INSERT INTO app_user VALUES " . join ', ', map { "('$users[$_][4]')" } 0 .. 3);
my @all = (
	[ q{SELECT syncstate.set_sync_policy('google_tasks', '{"sync_interval": "2 days", "daily_budget": 4000, "max_in_flight": 5, "provider": "mine"}')},
		q{SELECT sync_interval, daily_budget, max_in_flight, provider FROM syncstate.get_sync_policy('google_tasks')}, '2 days|1000|5|mine' ],
	[ q{SELECT syncstate.pause_sync_source('google_gmail')},
		q{SELECT paused_until FROM syncstate.get_sync_policy('google_gmail')}, 'infinity' ],
	[ q{SELECT syncstate.register_sync_source('custom')}, q{SELECT enum_last(NULL::syncstate.sync_source)}, 'custom' ],
	[ q{SELECT syncstate.resume_sync_source('google_gmail')},
		q{SELECT paused_until FROM syncstate.get_sync_policy('google_gmail')}, '' ],
	[ q{SELECT syncstate.resync_source('google_contacts', '3 days')},
		q{SELECT resync_spread FROM syncstate.get_sync_policy('google_contacts') WHERE resync_from < clock_timestamp()}, '3 days' ],
	[ q{SELECT syncstate.revive_syncs('google_tasks')}, q{SELECT 'done'}, 'done' ],
	[ q{SELECT syncstate.rebalance_syncs('google_tasks')}, q{SELECT 'done'}, 'done' ],
	[ q{DELETE FROM app_user}, q{SELECT count(*) FROM syncstate.sync_state WHERE user_id = '%s'}, '0' ],
	map({ [ "SELECT * FROM syncstate.$_", q{SELECT 'done'}, 'done' ] } 'sync_overview', 'sync_event', 'sync_run', 'sync_channel'));
foreach my $call (@all)
{
	my ($statement, $look, $then) = @$call;
	my (undef, $err) = ask($router, $statement);
	like($err, qr/ERROR:  08006: not all shards answer: not 2\nDETAIL:  Shards that did what was asked: 0, 1, 3\. Shard 2: .+?\nHINT:  Repeating the call is safe/s, "$statement: not without all");
	is($s->shard_query($_, sprintf $look, $users[$_][4]), $then, "... and shard $_ has done it") for 0, 1, 3;
}

# ------------------------------------------------------------ ... and is back

$s->{shards}[2]->start;
($more, $messages) = ask($router, "SET ROLE service_role; " . claim());
is($messages, '', 'the very next claim needs no words');
is(count(of($more, 2)), 3, 'and gives what nobody holds');
(undef, $messages) = ask($router, "SELECT syncstate.get_sync_state('$users[2][0]', 'google_tasks')");
is($messages, '', 'so does the next call about a user');
is(of(held(), 2), join("\n", sort split(/\n/, $lost), split /\n/, of($more, 2)), 'a lease is not lost with the shard');
is((ask($router, $take))[0], $users[2][4], 'nor is an event');
is(join('|', ask($router, sprintf $push, 2, 'secret')), 't|', 'a push that is sent again arrives');
is(join('|', ask($router, sprintf $push, @$_)), 'f|', "push of @$_: now it is refused") foreach [ 0, 'another' ], [ 'unknown', 'secret' ];
is(join('|', ask($router, q{SELECT channel_id, user_id FROM syncstate.claim_push_channels('google_contacts', 100)})), "old channel 2|$users[2][4]|", 'and what was not handed out is');

ask($router, 'RESET ROLE');
foreach my $call (@all)
{
	my ($statement, $look, $then) = @$call;
	(undef, $messages) = ask($router, $statement);
	is($messages, '', "$statement: repeated");
	is($s->shard_query($_, sprintf $look, $users[$_][4]), $then, "... and shard $_ has done it") for 0 .. 3;
}
ask($router, 'SET ROLE service_role');

# A day later: what was held when the shard went comes again.
my $day_later = '2126-01-01 00:00:00+00';
set_clock($day_later);
($more, $messages) = ask($router, claim());
is($messages, '', 'a day later');
my %again = map { (split /\|/)[0] => (split /\|/)[1] } split /\n/, $more;
my @back = grep { exists $again{$_} } map { (split /\|/)[0] } split /\n/, $lost;
is(scalar(@back), 3 - grep({ $_ eq $users[2][4] } map { (split /\|/)[0] } split /\n/, $lost), 'leases of before come back');
set_clock();
ask($router, q{SELECT syncstate.set_sync_policy('google_tasks', '{"sync_interval": null, "daily_budget": null, "max_in_flight": null, "provider": null}')});

# ----------------------------------------------------- restarted in mid-call

# So long that nothing but what is done here can be why nothing is held.
$s->query(q{ALTER SERVER syncstate OPTIONS (SET query_timeout '1000')});

# Rows that were given back are before the mark of the session that had them,
# which sweeps once a second only: a new session has them at once.
my $session;

# A shard goes while the call waits for it, or while it has answered and the
# call waits for another one.
foreach my $case ([ 'immediate', 0, 0 ], [ 'fast', 3, 3 ], [ 'immediate', 1, 2 ], [ 'fast', 3, 0 ])
{
	my ($mode, $restarted, $locked) = @$case;
	my $what = "$mode restart of shard $restarted, " . ($restarted == $locked ? 'which was to answer' : 'which had answered');

	fill({});
	lock_shard($locked);
	start($router, claim());
	wait_for_shards($locked);
	restart($restarted, $mode);
	unlock_shard($locked) if $restarted != $locked;
	($claimed, $warning) = finish($router);
	unlock_shard($locked) if $restarted == $locked;
	like($warning, qr/WARNING:  08006: not all shards answer: not $restarted\n/, "claim, $what: a warning");
	is(count($claimed), 3 * $each, 'the others give what they have');
	is(held(), $claimed, 'nothing is held but what the caller got, and the caller holds all that');

	# The same for a report of them all
	ask_again($router, $restarted);
	($more, $messages) = ask($router, claim());
	is($messages, '', 'the very next claim needs no words');
	$claimed = join "\n", sort split(/\n/, $claimed), split /\n/, $more;
	is(count($claimed), 4 * $each, 'and gives the rest');
	lock_shard($locked);
	start($router, report($claimed));
	wait_for_shards($locked);
	restart($restarted, $mode);
	unlock_shard($locked) if $restarted != $locked;
	($reported, $warning) = finish($router);
	unlock_shard($locked) if $restarted == $locked;
	like($warning, qr/WARNING:  08006: not all shards answer: not $restarted\n/, "report, $what: a warning");
	is($reported, of($claimed, grep { $_ != $restarted } 0 .. 3), 'what the others have is applied');
	is(held(), of($claimed, $restarted), 'and nothing else is');
	ask_again($router, $restarted);
	($more, $messages) = ask($router, report($claimed));
	is($messages, '', 'a repeated report needs no words');
	is($more, of($claimed, $restarted), 'and applies what was left');
	is(held(), '', 'nothing is held any more');
}

# A claim asks for more where there is more, and finds that what it was given
# there is gone: of shard 0, whose turn it is, nothing, of the others 3, 2 and 2,
# of which shard 1 has 1 only, and then of 2 and 3 one more.
fill({ 0 => 0, 1 => 1 });
lock_shard(1);
ask($router, Shards::turn(0, 'google_tasks'));
start($router, claim(7));
wait_for_shards(1);
restart(2, 'fast');
unlock_shard(1);
($claimed, $warning) = finish($router);
like($warning, qr/WARNING:  08006: not all shards answer: not 2\n/, 'a shard has lost what it gave, and is asked for more');
is(held(), $claimed, 'nothing is held but what the caller got, and the caller holds all that');
is(count($claimed), 7, 'the others gave what was missing');
ask_again($router, 2);

# A shard that refuses a call refuses it for all.
fill({});
my $body = $s->shard_query(3, q{SELECT pg_get_functiondef('syncstate.claim_due_syncs'::regproc)});
$s->shard_query(3, q{
	CREATE OR REPLACE FUNCTION syncstate.claim_due_syncs(source syncstate.sync_source DEFAULT NULL, max_rows int DEFAULT 10, lease_time interval DEFAULT NULL, kind text DEFAULT 'any')
		RETURNS SETOF syncstate.sync_state LANGUAGE plpgsql AS $$ BEGIN RAISE division_by_zero USING DETAIL = 'On purpose.'; END $$});
(undef, my $error) = ask($router, claim());
like($error, qr/ERROR:  22012: division_by_zero\nDETAIL:  On purpose\.\n/, 'a claim that a shard refuses fails as there');
wait_for_rest();
is(held(), '', 'and nothing is held');

# One that is damaged does not.
fill({});
$s->shard_query(3, q{
	CREATE OR REPLACE FUNCTION syncstate.claim_due_syncs(source syncstate.sync_source DEFAULT NULL, max_rows int DEFAULT 10, lease_time interval DEFAULT NULL, kind text DEFAULT 'any')
		RETURNS SETOF syncstate.sync_state LANGUAGE plpgsql AS $$ BEGIN RAISE data_corrupted; END $$});
(my $given, $error) = ask($router, claim());
like($error, qr/WARNING:  08006: not all shards answer: not 3\nDETAIL:  Shard 3: data_corrupted\./, 'a damaged shard is a warning');
is($given, of($given, 0, 1, 2), 'the others give their rows');
is(count($given), 3 * $each, 'all of them');
$s->shard_query(3, $body);
fill({});
$session = router_session();
is(count((ask($session, claim()))[0]), 4 * $each, 'all can be claimed afterwards');
$session->quit;

# ------------------------------------------------------------ the router dies

foreach my $end ('pg_terminate_backend', 'pg_cancel_backend')
{
	fill({});
	$session = router_session();
	my $pid = $session->query('SELECT pg_backend_pid();');
	lock_shard(0);
	start($session, claim());
	wait_for_shards(0);
	$s->query("SELECT $end($pid)");
	if ($end eq 'pg_cancel_backend')
	{
		(undef, $error) = finish($session);
		like($error, qr/ERROR:  57014: canceling statement due to user request/, 'a claim is canceled');
	}
	else
	{
		$s->{router}->poll_query_until('router', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
	}
	unlock_shard(0);
	wait_for_rest();
	is(held(), '', "$end in mid-claim: nothing is held");
	$session = router_session() if $end eq 'pg_terminate_backend';
	($claimed, $messages) = ask($session, claim());
	is($messages, '', 'the next claim needs no words');
	is(count($claimed), 4 * $each, 'and gives all');
	is(held(), $claimed, 'which the caller holds');
	$session->quit;
}

# A router that stops for long, as one that is cut off from the shards does.
# It gives up a shard after query_timeout, so it must be stopped before that; the
# shards give it up after twice query_timeout.
$s->query(q{ALTER SERVER syncstate OPTIONS (SET query_timeout '10')});
fill({});
$session = router_session();
my $pid = $session->query('SELECT pg_backend_pid();');
ask($session, 'SELECT syncstate.next_sync_due()');
lock_shard(0);
start($session, claim());
wait_for_shards(0);
kill 'STOP', $pid;
unlock_shard(0);
wait_for_rest();
is(held(), '', 'a router that is not heard of for long loses what it has not committed');
my $other = router_session();
($claimed) = ask($other, claim());
is(count($claimed), 4 * $each, 'and others get it');
$other->quit;
kill 'CONT', $pid;
($more, $error) = finish($session);
is($more, '', 'it tells its caller so');
like($error, qr/ERROR:  08006: not all shards answer: not 0, 1, 2, 3\n/, 'and why');
is(held(), $claimed, 'and takes nothing away');
$session->quit;

# ---------------------------------------------------------------- a slow shard

# A router connection each that hangs, or that waits for a lock.  After twice the
# timeout, shards give up what the router was too slow to commit.
$s->query(q{ALTER SERVER syncstate OPTIONS (SET query_timeout '3')});
foreach my $case ('stopped', 'locked')
{
	fill({});
	ask($router, 'SELECT syncstate.next_sync_due()');
	my ($backend) = split /\n/, $s->shard_query(2, q{
		SELECT pid FROM pg_stat_activity WHERE usename = 'router' AND query LIKE '%next_sync_due%'});
	lock_shard(2) if $case eq 'locked';
	kill 'STOP', $backend if $case eq 'stopped';
	my $began = time;
	($claimed, $warning) = ask($router, claim());
	my $took = time - $began;
	like($warning, qr/WARNING:  08006: not all shards answer: not 2\nDETAIL:  Shard 2: no answer within 00:00:03\.\n/, "$case: a shard is given up in time");
	cmp_ok($took, '>=', 3, 'not earlier');
	is(count($claimed), 3 * $each, 'the others give what they have');
	like((ask($router, q{SELECT current_setting('syncstate_router.avoid_until_2')::timestamptz - clock_timestamp() BETWEEN '1 s' AND '1 min'}))[0], qr/^t$/, 'it is left alone for a while');
	(undef, $warning) = ask($router, claim());
	like($warning, qr/DETAIL:  Shard 2: it took too long, and is not asked until [^\n]+\n/, 'so that the next claim does not wait again');
	(undef, $messages) = ask($router, report($claimed));
	is($messages, '', 'nor does a report to the others');
	if ($case eq 'stopped')
	{
		(undef, $error) = ask($router, "SELECT syncstate.get_sync_state('$users[2][0]', 'google_tasks')");
		is($error, '', 'calls about its users have a connection of their own');
		kill 'CONT', $backend;
		$s->wait_for(2, "NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $backend)");
	}
	else
	{
		# PL/Proxy looks at its query_timeout only when something comes: here
		# the shard's own limit
		$s->shard_query(2, q{ALTER ROLE router SET statement_timeout = '500ms'});
		$session = router_session();
		(undef, $error) = ask($session, "SELECT syncstate.get_sync_state('$users[2][0]', 'google_tasks')");
		like($error, qr/ERROR:  08006: shard 2 does not answer\nDETAIL:  (canceling statement due to statement timeout|query timeout)\n/, 'a call about its user fails when the shard gives it up');
		$session->quit;
		$s->shard_query(2, q{ALTER ROLE router RESET statement_timeout});
		# what was given up is not waited for by the shard for ever
		$s->wait_for(2, qq{NOT EXISTS (SELECT $in_transaction AND query LIKE '%claim_due_syncs%')});
		unlock_shard(2);
	}
	wait_for_rest();
	is(held(), '', 'nothing is held for nobody');
	ask_again($router, 2);
	($claimed, $messages) = ask($router, claim());
	is($messages, '', 'told that it goes on, the router asks it again');
	is($claimed, of(held(), 2), 'and gives its rows');
	is(count($claimed), $each, 'all of them');
}

# Nor does it keep a caller from the others who is less patient than the router:
# what a canceled claim knew of turns is rolled back with it.
fill({});
$session = router_session();
ask($session, 'SELECT syncstate.next_sync_due()');
ask($session, Shards::turn(2, 'google_tasks'));
ask($session, q{SET statement_timeout = '1s'});
lock_shard(2);
my $tries = 0;
do { ($claimed, $warning) = ask($session, claim(1)) } until count($claimed) == 1 || ++$tries == 15;
cmp_ok($tries, '>', 0, 'a shard that is too slow for its caller cancels a claim');
cmp_ok($tries, '<', 15, 'but not all of them');
unlock_shard(2);
$session->quit;
wait_for_rest();

# A host that hangs accepts connections, and says nothing.  From 16 on, dblink
# does not obey connect_timeout, and only the caller's patience bounds a claim.
fill({});
my $postmaster = $s->{shards}[0]{_pid};
my $patient = $s->query('SHOW server_version_num') >= 160000;
kill 'STOP', $postmaster;
$session = router_session();
ask($session, q{SET statement_timeout = '3s'}) if $patient;
($claimed, $warning) = ask($session, claim());
if ($patient)
{
	like($warning, qr/ERROR:  57014: canceling statement due to statement timeout/, 'a host that hangs holds a claim up until it is canceled');
}
else
{
	like($warning, qr/WARNING:  08006: not all shards answer: not 0\nDETAIL:  Shard 0: could not establish connection: [^\n]*timeout expired/, 'a host that hangs');
	is(count($claimed), 3 * $each, 'takes no time from the others');
}
kill 'CONT', $postmaster;
$session->quit;
wait_for_rest();
is(held(), $claimed, 'the caller holds what it got');
$s->query(q{ALTER SERVER syncstate OPTIONS (SET query_timeout '10')});

# ---------------------------------------------------- no answer to a commit

# Commits wait for a standby that is not there.  Whether they are made cannot
# be known: so nobody may work on these rows, and their leases run out.
sub synchronous
{
	my ($n, $names) = @_;
	$s->shard_query($n, "ALTER SYSTEM SET synchronous_standby_names = '$names'");
	$s->shard_query($n, 'SELECT pg_reload_conf()');
	$s->wait_for($n, "current_setting('synchronous_standby_names') = '$names'");
	return;
}
fill({});
synchronous(1, 'none');
$s->query(q{ALTER SERVER syncstate OPTIONS (SET query_timeout '3')});
$session = router_session();
($claimed, $warning) = ask($session, claim());
like($warning, qr/WARNING:  08006: not all shards answer: not 1\nDETAIL:  Shard 1: no answer within 00:00:03\.\n/, 'a commit without an answer');
is($claimed, of($claimed, 0, 2, 3), 'its rows are not given out');
is(count($claimed), 3 * $each, 'the others are');
synchronous(1, '');
wait_for_rest();
is(of(held(), 0, 2, 3), $claimed, 'the caller holds what it got');
ask_again($session, 1);
($more) = ask($session, claim());
is($more, '', 'the rows of that shard are held by nobody');
my $nobodys = of(held(), 1);
is(count($nobodys), $each, 'until their leases run out');
set_clock($day_later);
($more, $messages) = ask($session, claim());
is($messages, '', 'later');
is(count(of($more, 1)), $each, 'they come again');
is(join(' ', map { (split /\|/)[1] } split /\n/, of($more, 1)), join(' ', map { (split /\|/)[1] + 1 } split /\n/, $nobodys), 'with other leases');

# A report that was applied, and not confirmed, can be repeated.
synchronous(1, 'none');
($reported, $warning) = ask($session, report($more));
like($warning, qr/WARNING:  08006: not all shards answer: not 1\n/, 'a report without an answer to the commit');
is($reported, of($more, 0, 2, 3), 'is not said to be applied');
synchronous(1, '');
wait_for_rest();
is(held(), '', 'but is');
my $all = q{SELECT md5(string_agg(s::text, ' ' ORDER BY user_id)) FROM syncstate.sync_state AS s};
my @before = map { $s->shard_query($_, $all) } 0 .. 3;
ask_again($session, 1);
($reported, $messages) = ask($session, report($more));
is("$reported$messages", '', 'repeated, it says nothing');
is_deeply([ map { $s->shard_query($_, $all) } 0 .. 3 ], \@before, 'and does nothing');
set_clock();
$session->quit;
$s->query(q{ALTER SERVER syncstate OPTIONS (SET query_timeout '10')});

# ------------------------------------------------------ restarted between calls

foreach my $mode ('fast', 'immediate')
{
	fill({});
	restart(0, $mode);
	($claimed, $messages) = ask($router, claim());
	is($messages, '', "$mode restart between two calls: the next one notices nothing");
	is(count($claimed), 4 * $each, 'and gives all');
}

# ------------------------------------------------------- a standby as a shard

fill({});
$s->{shards}[3]->stop('fast');
$s->{shards}[3]->set_standby_mode;
$s->{shards}[3]->start;
($claimed, $warning) = ask($router, claim());
like($warning, qr/WARNING:  08006: not all shards answer: not 3\nDETAIL:  Shard 3: cannot execute .+ in a read-only transaction\.\n/, 'a standby gives nothing');
is(count($claimed), 3 * $each, 'the others do');
(undef, $error) = ask($router, "SELECT syncstate.connect_sync('$users[3][0]', 'google_tasks')");
like($error, qr/ERROR:  08006: shard 3 does not answer\nDETAIL:  cannot execute .+ in a read-only transaction\n/, 'nor does it take anything');
my ($out, $err) = ask($router, "SELECT status FROM syncstate.get_sync_state('$users[3][0]', 'google_tasks', account => 'work')");
is("$out$err", 'idle', 'but it can be read');
$s->{shards}[3]->promote;
$s->wait_for(3, 'NOT pg_is_in_recovery()');
($more, $messages) = ask($router, claim());
is($messages, '', 'once it is promoted');
is($more, of(held(), 3), 'all is as before');
is(count($more), $each, 'and nothing is missing');

# --------------------------------------------------------- no connection left

$s->shard_query(1, q{ALTER ROLE router CONNECTION LIMIT 0});
$session = router_session();
fill({});
($claimed, $warning) = ask($session, claim());
like($warning, qr/WARNING:  08006: not all shards answer: not 1\nDETAIL:  Shard 1: could not establish connection: [^\n]+too many connections for role "router"/, 'a shard without a connection for us');
is(held(), $claimed, 'the others give');
is(count($claimed), 3 * $each, 'what they have');
(undef, $error) = ask($session, "SELECT syncstate.connect_sync('$users[1][0]', 'google_tasks')");
like($error, qr/ERROR:  08006: shard 1 does not answer\nDETAIL:  [^\n]*too many connections for role "router"/, 'a call about its user fails');
$s->shard_query(1, q{ALTER ROLE router CONNECTION LIMIT -1});
(undef, $messages) = ask($session, claim() . "; SELECT syncstate.connect_sync('$users[1][0]', 'google_tasks')");
is($messages, '', 'as soon as there is one, all is well');
$session->quit;

# -------------------------------------------------------------- all are down

$s->{shards}[$_]->stop('immediate') for 0 .. 3;
foreach my $call (claim(), report($claimed), 'SELECT syncstate.take_sync_events(1000)', 'SELECT syncstate.claim_push_channels()', sprintf($push, 0, 'secret'), 'SELECT syncstate.next_sync_due()', "SELECT syncstate.get_users_needing_sync('google_tasks')",
	"SELECT syncstate.pause_sync_source('google_tasks')")
{
	($out, $error) = ask($router, $call);
	is($out, '', 'all shards are down: nothing comes');
	like($error, qr/ERROR:  08006: not all shards answer: not 0, (1, )?2, 3\nDETAIL:  Shards that did what was asked: none\. Shard 0: /, 'but an error');
}
$s->{shards}[$_]->start for 0 .. 3;
($out, $messages) = ask($router, claim());
is($messages, '', 'all are back');

$router->quit;
$s->stop;
done_testing();
