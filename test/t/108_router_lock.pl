# Calls that wait for the lock on the table of shards go by the table as it is
# when they get it, or fail where their transaction cannot see that.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();
my $s = Shards->new(4);
$s->query('DELETE FROM syncstate.shard WHERE shard >= 2');

# One user for each shard, when they are four: all on the shard that has them then.
my @users = map { $s->query("SELECT u FROM generate_series(1, 99) AS n, LATERAL (SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid) AS u (u)
	WHERE syncstate_shard.hash(u) & 3 = $_ LIMIT 1") } 0 .. 3;
sub fill
{
	foreach my $n (0 .. 3)
	{
		$s->shard_query($n, qq{DELETE FROM syncstate.sync_state;
			SELECT syncstate.mark_sync_started('$users[$n]', 'google_gmail');
			SELECT syncstate.connect_sync('$users[$n]', 'google_tasks');
			DELETE FROM syncstate.sync_channel;
			INSERT INTO syncstate.sync_channel (user_id, account, source, resource, state, channel_id, token_hash, opened_at, renew_at, lease, lease_expires_at) VALUES
				('$users[$n]', '', 'google_gmail', '', 'retiring', 'channel $n', sha256('secret'), now(), now(), 1, NULL),
				('$users[$n]', '', 'google_calendar', '', 'retiring', 'held $n', sha256('secret'), now(), 'infinity', 1, now());
			DELETE FROM syncstate.sync_event;
			SELECT syncstate.connect_sync('$users[$n]', 'google_contacts'), syncstate.pause_sync('$users[$n]', 'google_contacts'), syncstate.disconnect_sync('$users[$n]', 'google_contacts')});
	}
	return;
}
# A function of the site's that goes to a shard, beside ours
my $examples = "$FindBin::RealBin/../../examples";
$s->shard_query($_, slurp_file("$examples/items.sql")) foreach 0 .. 3;
$s->shard_query($_, 'GRANT ALL ON TABLE items TO router') foreach 0 .. 3;
$s->query(slurp_file("$examples/items_router.sql"));

my $reports = '[' . join(', ', map { qq({"user_id": "$_", "source": "google_gmail", "lease": 1, "outcome": "completed", "sync_token": "new"}) } @users) . ']';

my $switch = $s->{router}->background_psql('router');
$switch->set_query_timer_restart;
foreach my $isolation ('read committed', 'repeatable read', 'serializable')
{
	foreach my $call (
		[ 'claim_due_syncs', 'SELECT count(*) FROM syncstate.claim_due_syncs()', 4 ],
		[ 'take_sync_events', 'SELECT count(*) FROM syncstate.take_sync_events()', 4 ],
		[ 'sync_event', 'SELECT count(*) FROM syncstate.sync_event', 4 ],
		[ 'claim_push_channels', q{SELECT count(*) FROM syncstate.claim_push_channels('google_gmail')}, 4 ],
		[ 'mark_channel_stopped', "SELECT channel_id FROM syncstate.mark_channel_stopped('$users[3]', 'google_calendar', 1)", 'held 3' ],
		[ 'receive_push', q{SELECT syncstate.receive_push('channel 3', 'secret')}, 't' ],
		[ 'sync_channel', 'SELECT count(*) FROM syncstate.sync_channel', 8 ],
		[ 'report_syncs', "SELECT count(*) FROM syncstate.report_syncs('$reports')", 4 ],
		[ 'mark_sync_completed', "SELECT lease FROM syncstate.mark_sync_completed('$users[3]', 'google_gmail', lease => 1)", 1 ],
		[ 'get_sync_state', "SELECT lease FROM syncstate.get_sync_state('$users[2]', 'google_gmail')", 1 ],
		[ 'get_sync_states', "SELECT count(*) FROM syncstate.get_sync_states('$users[2]')", 2 ],
		[ 'connect_account', "SELECT count(*) FROM syncstate.connect_account('$users[3]')", 2 ],
		[ 'set_sync_resources', "SELECT change FROM syncstate.set_sync_resources('$users[3]', 'google_contacts', '{a}')", 'added' ],
		[ 'get_users_needing_sync', q{SELECT count(*) FROM syncstate.get_users_needing_sync('google_tasks')}, 4 ],
		[ 'sync_overview', q{SELECT rows FROM syncstate.sync_overview WHERE source = 'google_gmail'}, 4 ],
		[ 'set_sync_policy', q{SELECT daily_budget FROM syncstate.set_sync_policy('google_contacts', '{"daily_budget": 12}')}, 12 ],
		[ 'my_syncs', qq{SET request.jwt.claims = '{"sub": "$users[3]"}'; SELECT count(*) FROM syncstate.my_syncs}, 2 ],
		[ 'save_page', "SELECT save_page('$users[3]', 'google_gmail', '', 1, '{}', NULL, 0)", 'f' ],
		[ 'shard_of', "SELECT syncstate.shard_of('$users[3]')", 3 ])
	{
		my ($name, $sql, $answer) = @$call;
		fill();
		my $caller = $s->{router}->background_psql('router', on_error_stop => 0);
		# it has the plans of the functions below already, as sessions usually do
		$caller->query_safe('SELECT syncstate.next_sync_due()');
		$caller->query_safe("SET default_transaction_isolation = '$isolation'");
		$switch->query_safe('BEGIN; LOCK TABLE syncstate.shard IN ACCESS EXCLUSIVE MODE');
		$caller->query_until(qr/sent/, "\\echo sent\n$sql;\n");
		$s->wait_for(0, q{count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'});
		$switch->query_safe('INSERT INTO syncstate.shard VALUES ' . join(', ', map { "($_, '" . $s->connection($_) . "')" } 2, 3) . '; COMMIT');
		my $told = $caller->query('');
		$told = $caller->query('\echo :LAST_ERROR_SQLSTATE') if $told eq '';
		is($told, $isolation eq 'read committed' ? $answer : '40001', "$name, $isolation");
		is($caller->query($sql), $answer, "$name, $isolation, once more") if $isolation ne 'read committed';
		$caller->quit;
		$switch->query_safe('DELETE FROM syncstate.shard WHERE shard >= 2');
	}
}
$switch->quit;

# A time that goes to a shard as text is the same there.
fill();
$s->query(qq{SET datestyle = 'SQL, DMY'; SELECT save_page('$users[0]', 'google_gmail', '', 1, '{}', NULL, 0, updated_min => '03/02/2026 00:00 UTC')});
is($s->shard_query(0, qq{SELECT updated_min AT TIME ZONE 'UTC' FROM syncstate.sync_state WHERE source = 'google_gmail' AND user_id = '$users[0]'}), '2026-02-03 00:00:00', 'whatever the style of dates');

# A column of the site's
$s->shard_query($_, 'ALTER TABLE syncstate.sync_state ADD COLUMN note text') foreach 0 .. 1;
$s->query('ALTER TYPE syncstate.sync_state ADD ATTRIBUTE note text');
fill();
is($s->query('SELECT count(*), count(note) FROM syncstate.claim_due_syncs()'), '2|0', 'comes along if the router knows it');
is($s->query("SELECT status, note FROM syncstate.mark_sync_completed('$users[1]', 'google_gmail', lease => 1)"), 'idle|', 'also of one row');

$s->stop;
done_testing();
