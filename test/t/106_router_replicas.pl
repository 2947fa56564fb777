# Standbys of shards: a second router reads from them what does not write, and
# they take the place of their shards, by a statement on the router or without
# one, for sessions that have called before too.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();
my $s = Shards->new(2, clusters => 1);
my @users = map { $s->query("SELECT u FROM generate_series(1, 99) AS n, LATERAL (SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid) AS u (u)
	WHERE syncstate.shard_of(u) = $_ LIMIT 1") } 0, 1;
my @primary = @{ $s->{shards} };
my @standby;
foreach my $n (0, 1)
{
	$primary[$n]->backup('standby');
	$standby[$n] = PostgreSQL::Test::Cluster->new("standby$n");
	$standby[$n]->init_from_backup($primary[$n], 'standby', has_streaming => 1);
	$standby[$n]->append_conf('postgresql.conf', "hot_standby_feedback = on\n");
	$standby[$n]->start;
	# acknowledged is what both have, for those that look at the standby too
	$primary[$n]->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_standby_names = '*'; ALTER SYSTEM SET synchronous_commit = 'remote_apply'; SELECT pg_reload_conf()});
	$primary[$n]->poll_query_until('postgres', q{SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')});
}

# Connection string of a shard that may be either of two servers
sub either
{
	my ($n, $attrs) = @_;
	return sprintf 'host=%s,%s port=%s,%s dbname=shard%s target_session_attrs=%s',
		map({ my $what = $_; map { $_->$what } $primary[$n], $standby[$n] } qw(host port)), $n, $attrs;
}

### reading

my $router = $s->{router};
my $places = join(', ', map { "($_, '" . either($_, 'prefer-standby') . "')" } 0, 1);
$router->safe_psql('postgres', 'CREATE DATABASE reader');
$router->safe_psql('reader', qq{
	CREATE EXTENSION syncstate_router CASCADE;
	INSERT INTO syncstate.shard VALUES $places;
	CREATE USER MAPPING FOR PUBLIC SERVER syncstate OPTIONS (user 'router', password 'none asked')});
foreach my $user (@users)
{
	$s->query("SELECT syncstate.connect_sync('$user', source), syncstate.update_sync_state('$user', source, '{\"sync_token\": \"old\"}')
		FROM unnest(enum_range(NULL::syncstate.sync_source)) AS source");
}
$s->query(q{SELECT syncstate.set_sync_policy('google_gmail', '{"sync_interval": "7 min", "daily_budget": 1000, "keep_runs": "all"}')});
$s->query("SELECT syncstate.mark_sync_started('$_', 'google_gmail'), syncstate.mark_sync_completed('$_', 'google_gmail')") foreach @users;

$s->query(q{SELECT syncstate.set_sync_policy('google_gmail', '{"push_renew_before": "1 day"}')});
$s->query(q{SELECT syncstate.mark_channel_opened(user_id, source, lease, 'channel of ' || user_id, NULL, 'secret') FROM syncstate.claim_push_channels('google_gmail')});

# Rows, or the SQLSTATE of the first error.
sub ask
{
	my ($database, $sql) = @_;
	my ($status, $out, $err) = $router->psql($database, "SET client_min_messages = error; SET timezone = 'UTC'; $sql", extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $out if $status == 0;
	return $err =~ /ERROR:\s+(\w{5})/ ? $1 : $err;
}
my $me = qq{SET request.jwt.claims = '{"sub": "$users[1]"}'; SET ROLE authenticated;};
my %readers = (
	my_syncs => "$me SELECT * FROM syncstate.my_syncs ORDER BY source",
	my_sync_runs => "$me SELECT * FROM syncstate.my_sync_runs",
	sync_event => 'SELECT * FROM syncstate.sync_event ORDER BY at',
	sync_run => 'SELECT * FROM syncstate.sync_run ORDER BY user_id',
	sync_channel => 'SELECT * FROM syncstate.sync_channel ORDER BY user_id',
	sync_overview => 'SELECT source, rows, idle, due, requested, without_cursor FROM syncstate.sync_overview',
	get_sync_state => "SELECT * FROM syncstate.get_sync_state('$users[0]', 'google_gmail')",
	get_sync_states => "SELECT * FROM syncstate.get_sync_states('$users[1]') ORDER BY source",
	next_sync_due => 'SELECT syncstate.next_sync_due()',
	get_users_needing_sync => q{SELECT syncstate.get_users_needing_sync('google_tasks')},
	get_sync_policy => q{SELECT syncstate.get_sync_policy('google_gmail')},
	shard_of => "SELECT syncstate.shard_of('$users[1]')",
	current_user_id => "$me SELECT syncstate.current_user_id()");
foreach my $function (sort keys %readers)
{
	my $told = ask('router', $readers{$function});
	like($told, qr/\w{3}|^1$/, "$function: the shards tell");
	is(ask('reader', $readers{$function}), $told, "$function: the standbys tell the same");
}
like(ask('reader', "SET ROLE authenticated; SELECT sync_token FROM syncstate.get_sync_states('$users[1]')"), qr/^42501$/, 'users see no cursors there either');

# What is asked of standbys is: the shards are idle, and their statistics say so.
sub calls
{
	my ($node, $n) = @_;
	return $node->safe_psql("shard$n", q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'router'});
}
my $session = $router->background_psql('reader', on_error_stop => 0);
$session->query(q{SELECT syncstate.get_sync_policy('google_gmail')});
is(calls($_->[0], $_->[1]), $_->[2], "connections of the reader: $_->[3]") foreach [ $standby[0], 0, 1, 'standby 0' ], [ $primary[0], 0, 0, 'shard 0' ], [ $standby[1], 1, 1, 'standby 1' ], [ $primary[1], 1, 0, 'shard 1' ];
$session->quit;

### writing

my $key = "'$users[0]', 'google_gmail'";
my %writers = (
	claim_due_syncs => 'claim_due_syncs()',
	take_sync_events => 'take_sync_events()',
	claim_push_channels => 'claim_push_channels()',
	mark_channel_opened => "mark_channel_opened($key, 1, 'late channel', NULL, 'secret')",
	mark_channel_failed => "mark_channel_failed($key, 1, 'x')",
	mark_channel_stopped => "mark_channel_stopped($key, 1)",
	receive_push => "receive_push('channel of $users[0]', 'secret')",
	mark_sync_started => "mark_sync_started($key)",
	mark_sync_completed => "mark_sync_completed($key)",
	mark_sync_failed => "mark_sync_failed($key, 'x')",
	mark_rate_limited => "mark_rate_limited($key, scope => 'source')",
	clear_sync_token => "clear_sync_token($key)",
	renew_sync_lease => "renew_sync_lease($key, 1)",
	checkpoint_sync => "checkpoint_sync($key, 1)",
	release_sync => "release_sync($key, 1)",
	may_sweep => "may_sweep($key, 1, 0, 0)",
	report_syncs => qq{report_syncs('[{"user_id": "$users[0]", "source": "google_gmail", "lease": 1, "outcome": "completed"}]')},
	update_sync_state => qq{update_sync_state($key, '{"sync_token": "x"}')},
	set_sync_policy => q{set_sync_policy('google_gmail', '{"jitter": 0}')},
	pause_sync_source => q{pause_sync_source('google_gmail')},
	resume_sync_source => q{resume_sync_source('google_gmail')},
	resync_source => q{resync_source('google_gmail')},
	revive_syncs => q{revive_syncs('google_gmail')},
	rebalance_syncs => 'rebalance_syncs()',
	connect_sync => "connect_sync($key)",
	disconnect_sync => "disconnect_sync($key)",
	pause_sync => "pause_sync($key)",
	resume_sync => "resume_sync($key)",
	request_sync => "request_sync($key)",
	set_sync_resources => "set_sync_resources($key, '{a}')",
	map({ ($_ => "$_('$users[0]')") } qw(connect_account pause_account resume_account request_account disconnect_account)),
	register_sync_source => q{register_sync_source('another')});
my $before = $s->shard_query(0, 'SELECT s FROM syncstate.sync_state AS s ORDER BY source') . $s->shard_query(1, 'SELECT s FROM syncstate.sync_state AS s ORDER BY source');
foreach my $function (sort keys %writers)
{
	is(ask('reader', "SELECT syncstate.$writers{$function}"), '08006', "$function is refused");
}
is($s->shard_query(0, 'SELECT s FROM syncstate.sync_state AS s ORDER BY source') . $s->shard_query(1, 'SELECT s FROM syncstate.sync_state AS s ORDER BY source'), $before, 'and nothing was done');
my (undef, undef, $said) = $router->psql('reader', "SELECT syncstate.$writers{request_sync}");
like($said, qr/shard 0 does not answer\nDETAIL:  cannot execute .* in a read-only transaction/, 'the error says why');

### what may lag

my $token = "SELECT sync_token FROM syncstate.get_sync_state('$users[1]', 'google_gmail')";
$s->query("SELECT syncstate.update_sync_state('$users[1]', 'google_gmail', '{\"sync_token\": \"applied\"}')");
is(ask('reader', $token), 'applied', 'with remote_apply, what was acknowledged is there at once');
$primary[1]->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_commit = 'on'; SELECT pg_reload_conf()});
$primary[1]->poll_query_until('postgres', q{SELECT current_setting('synchronous_commit') = 'on'});
$standby[1]->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
# in a new session: a setting comes to those that are open when they get to it
is($s->query("SELECT sync_token FROM syncstate.update_sync_state('$users[1]', 'google_gmail', '{\"sync_token\": \"new\"}')"), 'new', 'a standby that is behind keeps nobody from writing');
is(ask('reader', $token), 'applied', 'and tells what was');
is(ask('router', $token), 'new', 'while the shard tells what is');
$standby[1]->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
$router->poll_query_until('reader', "SELECT sync_token = 'new' FROM syncstate.get_sync_state('$users[1]', 'google_gmail')") or die 'the standby stays behind';
pass('later it tells the same');

### a standby takes the place of its shard

# Shard 0 is known by both servers, shard 1 by one.
$s->query("UPDATE syncstate.shard SET connection = '" . either(0, 'read-write') . "' WHERE shard = 0");
my $worker = $router->background_psql('router', on_error_stop => 0);
$worker->query('SET client_min_messages = error');
sub of_worker
{
	my ($sql) = @_;
	my $told = $worker->query($sql);
	$worker->{stderr} = '';
	return $told ne '' ? $told : $worker->query('\echo :LAST_ERROR_SQLSTATE');
}
my $anew = sub { "SELECT syncstate.disconnect_sync('$_[0]', 'google_tasks'); SELECT lease FROM syncstate.connect_sync('$_[0]', 'google_tasks')" };
is(of_worker(q{SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar')}), 2, 'a worker claims on both shards');
is(of_worker("SELECT count(*) FROM unnest('{" . join(',', @users) . "}'::uuid[]) AS u, syncstate.mark_sync_started(u, 'google_contacts')"), 2, 'and starts syncs on both');

# One that calls before the change and after it, and not in between.
my $idle = $router->background_psql('router', on_error_stop => 0);
$idle->query("SELECT syncstate.next_sync_due(), syncstate.get_sync_state('$users[0]', 'google_gmail'), syncstate.get_sync_state('$users[1]', 'google_gmail')");

foreach my $n (0, 1)
{
	my ($here, $there) = @users[ $n, 1 - $n ];
	of_worker("SELECT syncstate.update_sync_state('$here', 'google_gmail', '{\"sync_token\": \"last\"}')");
	$primary[$n]->stop('immediate');
	is(of_worker("SELECT user_id FROM syncstate.get_sync_state('$here', 'google_gmail')"), '08006', "shard $n is gone");
	is(of_worker("SELECT user_id FROM syncstate.get_sync_state('$there', 'google_gmail')"), $there, 'the other is not');
	of_worker($anew->($there));
	is(of_worker("SELECT user_id FROM syncstate.claim_due_syncs('google_tasks')"), $there, 'and its rows are handed out');

	$standby[$n]->promote;
	$standby[$n]->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf()});
	$s->{shards}[$n] = $standby[$n];
	$s->query("UPDATE syncstate.shard SET connection = '" . $s->connection(1) . "' WHERE shard = 1") if $n == 1;
	is(of_worker("SELECT sync_token FROM syncstate.get_sync_state('$here', 'google_gmail')"), 'last', 'the standby has its place, with all that was acknowledged');
	of_worker($anew->($here));
	is(of_worker("SELECT user_id FROM syncstate.claim_due_syncs('google_tasks') WHERE user_id = '$here'"), $here, 'its rows are handed out');
	# PL/Proxy notices that the connection is dead at a call, unless the table said so
	$idle->query("SELECT syncstate.get_sync_state('$here', 'google_gmail')") if $n == 0;
	is($idle->query("SELECT sync_token FROM syncstate.get_sync_state('$here', 'google_gmail')"), 'last', 'also a session that was idle meanwhile finds it');
	is($idle->query("SELECT rows FROM syncstate.sync_overview WHERE source = 'google_gmail'"), 2, 'in every way');
	is(of_worker("SELECT status FROM syncstate.mark_sync_completed('$here', 'google_contacts', lease => 1)"), 'idle', 'leases of before are good');
	is(of_worker(qq{SELECT status FROM syncstate.report_syncs('[{"user_id": "$here", "source": "google_calendar", "lease": 1, "outcome": "completed"}]')}), 'idle', 'in every way');
}
is(ask('reader', "SELECT user_id FROM syncstate.get_sync_state('$users[0]', 'google_gmail')"), $users[0], 'the reader goes on with the only server there is');

$_->quit foreach $worker, $idle;
$_->stop foreach $router, @standby;
done_testing();
