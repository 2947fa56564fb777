# Logical replication carries the rows into a database of another cluster that
# has the extension too: each as it is, through inserts, updates and deletes of
# all calls, and with their events and runs.  The triggers that fill in and count,
# and that keep the run of a deleted row, do not fire for them there; those that add
# labels and make settings known do.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $states = slurp_file("$FindBin::RealBin/../sql/states.sql");
my $tables = 'syncstate.sync_state, syncstate.sync_policy, syncstate.sync_budget, syncstate.custom_source, syncstate.sync_event, syncstate.sync_run, syncstate.sync_channel';

my $publisher = PostgreSQL::Test::Cluster->new('publisher');
$publisher->init(allows_streaming => 'logical');
$publisher->start;
my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init;
$subscriber->start;

foreach my $node ($publisher, $subscriber)
{
	$node->safe_psql('postgres', q{
		CREATE ROLE regress_syncstate_worker LOGIN;
		CREATE ROLE regress_syncstate_user LOGIN;
		CREATE EXTENSION syncstate});
}
$publisher->safe_psql('postgres', "SELECT syncstate.register_sync_source('$_')") foreach qw(custom_crm another_one);
$publisher->safe_psql('postgres', $states);

my $rows = q{SET timezone = 'UTC'; SELECT s FROM syncstate.sync_state AS s ORDER BY user_id, source::text, resource;
	SELECT p FROM syncstate.sync_policy AS p ORDER BY source::text; SELECT b FROM syncstate.sync_budget AS b ORDER BY source::text; SELECT c FROM syncstate.custom_source AS c ORDER BY label};
my $events = q{SET timezone = 'UTC'; SELECT e FROM syncstate.sync_event AS e ORDER BY at, id};
my $runs = q{SET timezone = 'UTC'; SELECT r FROM syncstate.sync_run AS r ORDER BY user_id, account, source::text, resource, lease};
my $channels = q{SET timezone = 'UTC'; SELECT h FROM syncstate.sync_channel AS h ORDER BY user_id, account, source::text, resource, id};
$rows .= "; $events; $runs; $channels";

sub same
{
	my ($name) = @_;
	$publisher->wait_for_catchup('sub');
	is($subscriber->safe_psql('postgres', $rows), $publisher->safe_psql('postgres', $rows), $name);
	return;
}

### what is there at first

$publisher->safe_psql('postgres', "CREATE PUBLICATION pub FOR TABLE $tables");
my $connection = $publisher->connstr . ' dbname=postgres';

# Tables are copied in any order: rows of a source that is not known yet fail,
# and are tried again until its label has come.
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION sub CONNECTION '$connection' PUBLICATION pub");
$subscriber->poll_query_until('postgres', q{SELECT count(*) = 7 FROM pg_subscription_rel WHERE srsubstate IN ('r', 's')});
same('the first copy is the same, in every state');

### what changes

# A worker of the subscriber that knows the settings before they change.
my $session = $subscriber->background_psql('postgres', on_error_stop => 0);
is($session->query(q{SELECT sync_interval FROM syncstate.get_sync_policy('google_tasks')}), '01:00:00', 'a session of the subscriber knows the settings');

my $some = q{FROM (SELECT * FROM syncstate.sync_state WHERE resource = '' ORDER BY user_id, source LIMIT 50) AS s};
foreach my $call (
	[ 'claims', 'SELECT syncstate.claim_due_syncs(max_rows => 1000)' ],
	[ 'checkpoints', q{SELECT syncstate.checkpoint_sync(user_id, source, lease, 'page', 1, 2, resource, account) FROM syncstate.sync_state WHERE status = 'syncing'} ],
	[ 'completions', q{SELECT syncstate.mark_sync_completed(user_id, source, 1, 'a new token', lease => lease, resource => resource, account => account) FROM syncstate.sync_state WHERE status = 'syncing'} ],
	[ 'a big token', q{SELECT syncstate.update_sync_state(user_id, source, jsonb_build_object('sync_token', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) AS i)), resource, account) FROM syncstate.sync_state WHERE resource = 'inserted'} ],
	# which is not sent again when it did not change
	[ 'next to a big token', q{SELECT syncstate.pause_sync(user_id, source, resource, account) FROM syncstate.sync_state WHERE resource IN ('inserted', 'big token')} ],
	[ 'failures', "SELECT syncstate.mark_sync_failed(user_id, source, 'no', 'transient', NULL, resource, account => account) $some" ],
	[ 'limits', "SELECT syncstate.mark_rate_limited(user_id, source, '1 h', 'source', NULL, resource, account) $some" ],
	[ 'losses', "SELECT syncstate.clear_sync_token(user_id, source, NULL, resource, account) $some" ],
	[ 'requests', "SELECT syncstate.request_sync(user_id, source, resource, account) $some" ],
	[ 'pauses', "SELECT syncstate.pause_sync(user_id, source, resource, account) $some" ],
	[ 'new rows', q{SELECT syncstate.connect_sync(gen_random_uuid(), 'custom_crm') FROM generate_series(1, 20)} ],
	[ 'limits of accounts', "SELECT syncstate.mark_rate_limited(user_id, source, '1 h', resource => resource, account => account) $some" ],
	[ 'revoked grants', "SELECT syncstate.mark_sync_failed(user_id, source, 'no', 'auth', resource => resource, account => account) $some" ],
	[ 'new accounts', q{SELECT syncstate.set_sync_resources(user_id, 'google_tasks', '{one,two}', 'work') FROM syncstate.sync_state LIMIT 20} ],
	[ 'what is gone', q{SELECT syncstate.set_sync_resources(user_id, 'google_tasks', '{two}', 'work') FROM syncstate.sync_state WHERE account = 'work'} ],
	[ 'accounts that come back', "SELECT syncstate.connect_account(user_id, account) $some" ],
	[ 'accounts that go', q{SELECT syncstate.disconnect_account(user_id, 'work') FROM (SELECT DISTINCT user_id FROM syncstate.sync_state WHERE account = 'work' LIMIT 5) AS s} ],
	[ 'events that are taken', 'SELECT syncstate.take_sync_events(10)' ],
	# of accounts without a limit, since others get none
	[ 'channels that are claimed and opened', q{SELECT syncstate.resume_sync_source('google_gmail');
		SELECT syncstate.connect_sync(gen_random_uuid(), 'google_gmail') FROM generate_series(1, 40);
		SELECT count(*) FROM syncstate.claim_push_channels('google_gmail', 50);
		SELECT syncstate.mark_channel_opened(user_id, source, lease, 'of ' || id, now() + interval '7 days', 'secret', NULL, resource, account)
		FROM syncstate.sync_channel WHERE lease_expires_at > now() AND state = 'opening' LIMIT 30} ],
	[ 'pushes', q{SELECT syncstate.receive_push(channel_id, 'secret', 42) FROM syncstate.sync_channel WHERE channel_id LIKE 'of %'} ],
	[ 'channels that fail, and whose rows go', q{SELECT syncstate.mark_channel_failed(user_id, source, lease, 'no', 'unsupported', resource, account) FROM syncstate.sync_channel WHERE lease_expires_at > now() LIMIT 5;
		SELECT syncstate.disconnect_sync(user_id, source, resource, account) FROM syncstate.sync_channel WHERE channel_id LIKE 'of %' LIMIT 5;
		SELECT count(*) FROM syncstate.claim_push_channels('google_gmail', 1000)} ],
	[ 'channels that are stopped', q{SELECT syncstate.mark_channel_stopped(user_id, source, lease, resource, account) FROM syncstate.sync_channel WHERE lease_expires_at > now() AND state = 'retiring'} ],
	[ 'deleted rows', "SELECT syncstate.disconnect_sync(user_id, source, resource, account) $some" ],
	[ 'deleted rows with runs in flight', q{SELECT syncstate.mark_sync_started(gen_random_uuid(), 'google_gmail') FROM generate_series(1, 5); DELETE FROM syncstate.sync_state WHERE status = 'syncing'} ],
	[ 'deleted users', 'DELETE FROM users WHERE id IN (SELECT user_id FROM syncstate.sync_state LIMIT 30)' ],
	[ 'direct writes', q{UPDATE syncstate.sync_state SET status = 'syncing'; UPDATE syncstate.sync_state SET status = 'idle', due_at = now()} ],
	[ 'settings', q{SELECT syncstate.set_sync_policy('google_tasks', '{"sync_interval": "2 hours"}'); SELECT syncstate.pause_sync_source('google_calendar')} ],
	[ 'a new plan of a budget', q{SELECT syncstate.rebalance_syncs('custom_crm')} ],
	[ 'many in one transaction, some undone', q{SELECT syncstate.resume_sync_source(s) FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s;
		BEGIN; SELECT syncstate.claim_due_syncs(max_rows => 10); SAVEPOINT s; SELECT syncstate.claim_due_syncs(max_rows => 10);
		ROLLBACK TO s; SELECT syncstate.claim_due_syncs(max_rows => 3); COMMIT; BEGIN; DELETE FROM syncstate.sync_state; ROLLBACK} ])
{
	my ($name, $sql) = @$call;
	my $before = $publisher->safe_psql('postgres', $rows);
	$publisher->safe_psql('postgres', $sql);
	isnt($publisher->safe_psql('postgres', $rows), $before, "$name: something changed");
	same("$name: the same");
}

is($subscriber->safe_psql('postgres', q{SELECT sync_interval FROM syncstate.get_sync_policy('google_tasks')}), '02:00:00', 'a new session of the subscriber has the new settings');
is($session->query(q{SELECT sync_interval FROM syncstate.get_sync_policy('google_tasks')}), '02:00:00', 'and one that was there');

### labels later on

# Registered by the publisher only, or by the subscriber before.
$publisher->safe_psql('postgres', q{SELECT syncstate.register_sync_source('late')});
$subscriber->safe_psql('postgres', q{SELECT syncstate.register_sync_source('later')});
$publisher->safe_psql('postgres', q{SELECT syncstate.register_sync_source('later')});
$publisher->safe_psql('postgres', q{SELECT syncstate.set_sync_policy('late', '{"keep_runs": "all"}')});
$publisher->safe_psql('postgres', q{SELECT syncstate.connect_sync('aaaaaaaa-0000-4000-8000-00000000000a', s) FROM unnest(ARRAY['late', 'later']::syncstate.sync_source[]) AS s});
same('labels come along, whoever knew them first');

# A row of custom_source that came while triggers were off has no label;
# registering it mends that.
$subscriber->safe_psql('postgres', q{SET session_replication_role = replica; ALTER TABLE syncstate.custom_source DISABLE TRIGGER ALL;
	INSERT INTO syncstate.custom_source VALUES ('latest'); ALTER TABLE syncstate.custom_source ENABLE TRIGGER ALL});
my $labels = q{SELECT (SELECT count(*) FROM syncstate.custom_source WHERE label = 'latest'),
	(SELECT count(*) FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s WHERE s::text = 'latest')};
is($subscriber->safe_psql('postgres', $labels), '1|0', 'a row that came without its label');
$subscriber->safe_psql('postgres', q{SELECT syncstate.register_sync_source('latest')});
is($subscriber->safe_psql('postgres', $labels), '1|1', 'registering it adds the label');

### taking over

# The subscriber becomes the one that works: its own triggers and lanes do.
$publisher->safe_psql('postgres', q{SELECT syncstate.resume_sync_source(s) FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s});
$publisher->wait_for_catchup('sub');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION sub');
my $claim = q{SET syncstate.clock = '2098-01-01 00:00:00+00'; SELECT user_id, source, resource, lease FROM syncstate.claim_due_syncs(max_rows => 10000) ORDER BY user_id, source::text, resource};
is($subscriber->safe_psql('postgres', "$events; BEGIN; SELECT syncstate.take_sync_events(10000); ROLLBACK"),
	$publisher->safe_psql('postgres', "$events; BEGIN; SELECT syncstate.take_sync_events(10000); ROLLBACK"), 'the subscriber would have the same events taken');
my $due_channels = q{SET syncstate.clock = '2098-01-01 00:00:00+00';
	SELECT action, user_id, account, resource, channel_id FROM syncstate.claim_push_channels('google_gmail', 1000) ORDER BY user_id, account, resource, channel_id};
my $renewed = $publisher->safe_psql('postgres', $due_channels);
like($renewed, qr/^renew\|/m, 'the publisher would renew channels');
is($subscriber->safe_psql('postgres', $due_channels), $renewed, 'and the subscriber the same');
my $kept = $publisher->safe_psql('postgres', $runs);
my $claimed = $publisher->safe_psql('postgres', $claim);
isnt($claimed, '', 'the publisher would hand out rows');
is($subscriber->safe_psql('postgres', $claim), $claimed, 'the subscriber hands out the same, under the same numbers');
isnt($publisher->safe_psql('postgres', $runs), $kept, 'the publisher keeps the runs that were lost meanwhile');
is($subscriber->safe_psql('postgres', $runs), $publisher->safe_psql('postgres', $runs), 'and so does the subscriber');
is($subscriber->safe_psql('postgres', q{SELECT syncstate.request_sync(user_id, source, resource, account) FROM syncstate.sync_state WHERE parked_reason IS NULL LIMIT 1;
		SELECT m.status FROM syncstate.sync_state AS s, syncstate.mark_sync_completed(s.user_id, s.source, lease => s.lease) AS m WHERE s.source = 'late'}), "t\nidle", 'and takes requests and reports');
is($subscriber->safe_psql('postgres', q{SELECT outcome FROM syncstate.sync_run WHERE source = 'late';
		SELECT event FROM syncstate.take_sync_events(10000) WHERE source = 'late'}), "completed\nfirst_sync", 'with their runs and events');

$session->quit;
$subscriber->stop;
$publisher->stop;
done_testing();
