# Dump and restore lose nothing: rows in every state, events and runs, push
# channels, policies, custom sources, grants; and the restored database works.
#
# The data are taken with the clock moved far from now, so that a trigger that
# touched a restored row would show.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;
my $dir = $node->basedir;

$node->safe_psql('postgres', q{
	CREATE ROLE regress_syncstate_worker LOGIN;
	CREATE ROLE regress_syncstate_user LOGIN;
	CREATE ROLE regress_syncstate_other LOGIN;
	CREATE ROLE regress_syncstate_backup LOGIN BYPASSRLS IN ROLE pg_read_all_data;
	CREATE DATABASE original;
});

# register_sync_source() commits before its label is used
$node->safe_psql('original', q{
	CREATE EXTENSION syncstate;
	ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
	SELECT syncstate.register_sync_source('custom_crm');
	SELECT syncstate.register_sync_source('another_one');
});

# Each row says in its resource what it is.
$node->safe_psql('original', q{
	SET syncstate.clock = '2021-02-03 04:05:06.789+00';
	CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql
		RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

	-- idle: new, completed with each kind of cursor, requested
	SELECT syncstate.connect_sync(pg_temp.id(1), 'google_calendar', 'new and requested');
	INSERT INTO syncstate.sync_state (user_id, source, resource) VALUES
		(pg_temp.id(1), 'google_calendar', 'inserted');
	SELECT syncstate.mark_sync_completed(pg_temp.id(2), 'google_calendar', 3, 'token', resource => 'sync token');
	SELECT syncstate.mark_sync_completed(pg_temp.id(2), 'google_gmail', 4, history_id => '18446744073709551615', resource => 'history id');
	SELECT syncstate.mark_sync_completed(pg_temp.id(2), 'google_tasks', 5, updated_min => '2021-02-03 04:05:06.789123+00', resource => 'updated min');
	SELECT syncstate.mark_sync_completed(pg_temp.id(3), 'google_contacts', 9223372036854775807, repeat('Token ', 10922), resource => 'big token');
	SELECT syncstate.mark_sync_completed(pg_temp.id(3), 'custom_crm', 1, E'tab \t, newline \n, backslash \\\\, quote '', \\N', resource => 'custom source');
	SELECT syncstate.connect_sync(pg_temp.id(3), 'another_one', E'\\. \t');

	-- syncing: the lease live at the time of the restore, and run out
	SELECT syncstate.mark_sync_started(pg_temp.id(4), 'google_calendar', resource => 'expired lease');
	SELECT syncstate.checkpoint_sync(pg_temp.id(4), 'google_calendar', 1, 'page 2', 50, 100, resource => 'expired lease');
	SELECT syncstate.mark_sync_started(pg_temp.id(4), 'google_calendar', resource => 'live lease');
	SELECT syncstate.request_sync(pg_temp.id(4), 'google_calendar', resource => 'live lease');
	UPDATE syncstate.sync_state SET lease_expires_at = '2999-01-01 00:00:00+00' WHERE resource = 'live lease';
	SELECT syncstate.mark_sync_started(pg_temp.id(4), 'google_calendar', resource => 'paused while running');
	SELECT syncstate.pause_sync(pg_temp.id(4), 'google_calendar', resource => 'paused while running');

	-- error and rate_limited, and what came of many of them
	SELECT syncstate.mark_sync_failed(pg_temp.id(5), 'google_tasks', repeat('long ', 4000), resource => 'failed');
	SELECT syncstate.mark_sync_failed(pg_temp.id(5), 'google_tasks', 'permanent', 'permanent', resource => 'failed for good');
	SELECT syncstate.mark_rate_limited(pg_temp.id(5), 'google_tasks', '30 days', resource => 'rate limited', account => 'work');
	SELECT syncstate.connect_sync(pg_temp.id(5), 'google_tasks', 'limited with its account', 'work');
	SELECT syncstate.clear_sync_token(pg_temp.id(2), 'google_calendar', resource => 'sync token');
	SELECT syncstate.mark_sync_completed(pg_temp.id(5), 'google_gmail', 1, history_id => '42', resource => 'lost its cursor');
	SELECT syncstate.clear_sync_token(pg_temp.id(5), 'google_gmail', resource => 'lost its cursor') FROM generate_series(1, 4);

	-- push channels: open, to be opened, refused, and to be stopped since the row is gone
	SELECT syncstate.set_sync_policy('google_gmail', '{"push_renew_before": "1 day", "push_interval": "8 hours", "push_silence": "2 days"}');
	SELECT syncstate.connect_sync(pg_temp.id(9), 'google_gmail', r) FROM unnest('{open,to be opened,refused,gone}'::text[]) AS r;
	CREATE TEMP TABLE claimed AS SELECT * FROM syncstate.claim_push_channels('google_gmail', 100);
	SELECT syncstate.mark_channel_opened(user_id, source, lease, 'channel ' || resource, '2021-02-13 16:59:00+00', 'secret',
		E'tab \t, newline \n, backslash \\\\, quote '', \\N', resource) FROM claimed WHERE resource IN ('open', 'gone');
	SELECT syncstate.mark_channel_failed(user_id, source, lease, 'no push for this one', 'unsupported', resource) FROM claimed WHERE resource = 'refused';
	SELECT syncstate.receive_push('channel open', 'secret', 9223372036854775807);
	SELECT syncstate.disconnect_sync(pg_temp.id(9), 'google_gmail', 'gone');
	SELECT syncstate.claim_push_channels('google_gmail');

	-- parked, for each reason
	SELECT syncstate.connect_sync(pg_temp.id(6), 'google_tasks', 'paused');
	SELECT syncstate.pause_sync(pg_temp.id(6), 'google_tasks', 'paused');
	SELECT syncstate.mark_sync_failed(pg_temp.id(6), 'google_tasks', 'invalid_grant', 'auth', resource => 'auth', account => 'work');
	SELECT syncstate.set_sync_resources(pg_temp.id(6), 'google_tasks', '{gone}', 'home');
	SELECT syncstate.set_sync_resources(pg_temp.id(6), 'google_tasks', '{}', 'home');
	SELECT syncstate.clear_sync_token(pg_temp.id(6), 'google_tasks', resource => 'token loop') FROM generate_series(1, 10);
	SELECT syncstate.mark_sync_failed(pg_temp.id(6), 'google_tasks', 'first of many', resource => 'failures') FROM generate_series(1, 30);
	SET syncstate.clock = '2021-02-13 04:05:06.789+00';
	SELECT syncstate.mark_sync_failed(pg_temp.id(6), 'google_tasks', 'last of many', resource => 'failures');

	-- an interval of its own; the longest resource
	SELECT syncstate.update_sync_state(pg_temp.id(7), 'google_calendar', '{"sync_interval": "1 day 02:03:04.567"}', 'own interval');
	INSERT INTO syncstate.sync_state (user_id, source, resource) VALUES (pg_temp.id(7), 'google_calendar', repeat('x', 1024));

	-- runs that ended
	SELECT syncstate.set_sync_policy('google_contacts', '{"keep_runs": "all", "keep_runs_for": "1800 days"}');
	SELECT syncstate.mark_sync_started(pg_temp.id(8), 'google_contacts', resource => 'with runs');
	SELECT syncstate.mark_sync_completed(pg_temp.id(8), 'google_contacts', 9223372036854775807, 'token', resource => 'with runs');
	SELECT syncstate.mark_sync_started(pg_temp.id(8), 'google_contacts', resource => 'with runs');
	SELECT syncstate.mark_sync_failed(pg_temp.id(8), 'google_contacts', E'tab \t, newline \n, backslash \\\\, quote '', \\N', resource => 'with runs');

	-- settings
	SELECT syncstate.set_sync_policy('google_tasks', '{"sync_interval": "1 hour", "jitter": 0.3, "token_ttl": "3 days", "token_ttl_from": "full"}');
	SELECT syncstate.set_sync_policy('custom_crm', '{"lease_time": "1 minute", "max_failures": 3, "provider": "crm", "max_in_flight": 4}');
	SELECT syncstate.pause_sync_source('another_one');

	-- grants: the two kinds, and what a site makes of them
	SELECT syncstate.grant_worker('regress_syncstate_worker');
	SELECT syncstate.grant_user('regress_syncstate_user');
	GRANT SELECT ON syncstate.sync_overview TO regress_syncstate_other WITH GRANT OPTION;
	GRANT INSERT, UPDATE (sync_interval) ON syncstate.sync_state TO regress_syncstate_user;
	GRANT USAGE ON SCHEMA syncstate TO regress_syncstate_other;
	GRANT EXECUTE ON FUNCTION syncstate.next_sync_due TO PUBLIC;
	REVOKE EXECUTE ON FUNCTION syncstate.disconnect_sync FROM regress_syncstate_worker;
	REVOKE DELETE ON syncstate.sync_state FROM regress_syncstate_worker;
});

# Everything that has to come back, each as one query.
my %told_by = (
	'rows' => 'SELECT s FROM syncstate.sync_state AS s ORDER BY user_id, source::text, resource',
	'events' => 'SELECT e FROM syncstate.sync_event AS e ORDER BY at, id',
	'runs' => 'SELECT r FROM syncstate.sync_run AS r ORDER BY user_id, account, source::text, resource, lease',
	'channels' => 'SELECT h FROM syncstate.sync_channel AS h ORDER BY user_id, account, source::text, resource, id',
	'overrides' => 'SELECT p FROM syncstate.sync_policy AS p ORDER BY source::text',
	'effective policies' =>
	  'SELECT syncstate.get_sync_policy(s) FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s ORDER BY s::text',
	'sources' => q{SELECT enumlabel FROM pg_enum
		WHERE enumtypid = 'syncstate.sync_source'::regtype ORDER BY enumlabel},
	'grants' => q{
		SELECT object, grantor::regrole, grantee::regrole, privilege_type, is_grantable FROM (
			SELECT nspname AS object, nspacl AS acl FROM pg_namespace WHERE nspname = 'syncstate'
			UNION ALL SELECT oid::regclass::text, relacl FROM pg_class
				WHERE relnamespace = 'syncstate'::regnamespace AND relkind IN ('r', 'v')
			UNION ALL SELECT attrelid::regclass || '.' || attname, attacl FROM pg_attribute
				WHERE attrelid = 'syncstate.sync_state'::regclass
			UNION ALL SELECT oid::regprocedure::text, proacl FROM pg_proc
				WHERE pronamespace = 'syncstate'::regnamespace) AS o, aclexplode(acl)
		ORDER BY object, grantor::regrole::text, grantee::regrole::text, privilege_type},
	'policies' => q{SELECT p FROM pg_policies AS p WHERE schemaname = 'syncstate' ORDER BY tablename, policyname},
	'row security' => q{SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class
		WHERE relnamespace = 'syncstate'::regnamespace AND relkind = 'r' ORDER BY relname},
	'triggers' => q{SELECT pg_get_triggerdef(oid), tgenabled FROM pg_trigger
		WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace) ORDER BY 1},
	'indexes' => q{SELECT indexdef FROM pg_indexes WHERE schemaname = 'syncstate' ORDER BY indexname});

sub ask
{
	my ($database, $what) = @_;
	return $node->safe_psql($database, "SET timezone = 'UTC'; $told_by{$what}");
}

my %original = map { $_ => ask('original', $_) } keys %told_by;

# The test is no test without them.
is($node->safe_psql('original', q{SELECT string_agg(DISTINCT status::text, ' ' ORDER BY status::text),
		string_agg(DISTINCT parked_reason, ' ' ORDER BY parked_reason), count(*) > 20, max(length(sync_token)) > 65000
	FROM syncstate.sync_state}),
	'error idle rate_limited syncing|auth failures gone paused token_loop|t|t', 'there are rows in every state');
is($node->safe_psql('original', q{SELECT string_agg(DISTINCT event, ' ' ORDER BY event) FROM syncstate.sync_event;
		SELECT string_agg(outcome, ' ' ORDER BY lease) FROM syncstate.sync_run}),
	"cursor_lost first_sync gone parked source_limited\ncompleted failed", 'there are events and runs');
is($node->safe_psql('original', q{SELECT state, count(*) FROM syncstate.sync_channel GROUP BY state ORDER BY state}),
	"active|1\nopening|3\nretiring|1\nunsupported|1", 'and channels in every state');

# Plain dumps are one text, but for a key that newer versions draw at random.
sub plain_dump
{
	my ($database, $file, @options) = @_;
	$node->command_ok([ 'pg_dump', '--no-sync', '-f', $file, @options, $node->connstr($database) ],
		"plain dump of $database");
	my $text = slurp_file($file);
	$text =~ s/^\\(un)?restrict .*\n//mg;
	return $text;
}

my $first_dump = plain_dump('original', "$dir/plain.sql");
unlike($first_dump, qr/CREATE POLICY|ROW LEVEL SECURITY|CREATE TABLE syncstate|CREATE FUNCTION/,
	'the extension makes its objects, not the dump');
$node->command_ok([ 'pg_dump', '--no-sync', '-Fc', '-f', "$dir/custom.dump", $node->connstr('original') ], 'dump as custom');
$node->command_ok([ 'pg_dump', '--no-sync', '-Fd', '-j', '2', '-f', "$dir/directory", $node->connstr('original') ], 'dump as directory');

# A role for backups needs to pass by row security, and no more.
is(plain_dump('original', "$dir/backup.sql", '-U', 'regress_syncstate_backup'), $first_dump, 'the same from a backup role');

my %restored_by = (
	plain => [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain.sql", '-d' ],
	custom => [ 'pg_restore', '--exit-on-error', "$dir/custom.dump", '-d' ],
	directory => [ 'pg_restore', '--exit-on-error', "$dir/directory", '-d' ]);

foreach my $format (sort keys %restored_by)
{
	$node->safe_psql('postgres', "CREATE DATABASE $format");
	$node->command_ok([ @{ $restored_by{$format} }, $node->connstr($format) ], "restore of $format");
	foreach my $what (sort keys %told_by)
	{
		is(ask($format, $what), $original{$what}, "$format: same $what");
	}
}

is(plain_dump('custom', "$dir/second.sql"), $first_dump, 'a second dump is identical');

# The restored database works, for a worker and for a user, and time goes on
# where it was: what was due is, and who has the live lease has it still.
$node->safe_psql('custom', q{
	LOAD 'syncstate';
	ALTER SYSTEM SET syncstate.clock = '2021-02-13 05:00:00+00'});
$node->restart;

sub as_role
{
	my ($role, $sql) = @_;
	my ($status, $out, $err) = $node->psql('custom', $sql,
		extra_params => [ '-U', $role, '-v', 'VERBOSITY=sqlstate' ]);
	return $status == 0 ? $out : $err;
}

my $due = as_role('regress_syncstate_worker', q{SELECT resource FROM syncstate.claim_due_syncs(max_rows => 100) ORDER BY resource COLLATE "C"});
like($due, qr/^expired lease$/m, 'an expired lease is taken over');
like($due, qr/^inserted$/m, 'what was due is due');
like($due, qr/^custom source$/m, 'a custom source is known');
unlike($due, qr/live lease|paused|auth|failures|token loop|rate limited|\\\./, 'what is held, parked or paused is not handed out');
like(as_role('regress_syncstate_worker', q{SELECT syncstate.mark_sync_started('00000000-0000-4000-8000-000000000004', 'google_calendar', resource => 'live lease')}),
	qr/PT409/, 'the live lease is in the way');
is(as_role('regress_syncstate_worker', q{SELECT status, requested_at IS NOT NULL, sync_token FROM
		syncstate.mark_sync_completed('00000000-0000-4000-8000-000000000004', 'google_calendar', 7, 'new', lease => 1, resource => 'live lease')}),
	'idle|t|new', 'its holder completes');
is(as_role('regress_syncstate_worker', q{SELECT string_agg(event, ' ' ORDER BY at, id) FROM syncstate.take_sync_events(3)}),
	$node->safe_psql('original', q{SELECT string_agg(event, ' ' ORDER BY at, id) FROM (SELECT * FROM syncstate.sync_event ORDER BY at, id LIMIT 3) AS e}),
	'the oldest events are taken');
my $claim = q{SELECT action, resource, channel_id, provider_ref IS NOT NULL AS has_ref FROM syncstate.claim_push_channels('google_gmail') ORDER BY resource COLLATE "C"};
is(as_role('regress_syncstate_worker', $claim),
	"stop|gone|channel gone|t\nopen|history id||f\nopen|lost its cursor||f\nrenew|open|channel open|t\nopen|to be opened||f",
	'channels are renewed, opened and stopped');
is(as_role('regress_syncstate_worker', q{
		SELECT m.state FROM syncstate.sync_channel AS h, syncstate.mark_channel_opened(h.user_id, h.source, h.lease, 'the next one', '2021-02-20', 'new secret', resource => h.resource) AS m
			WHERE h.channel_id = 'channel open';
		SELECT id, syncstate.receive_push(id, token) FROM (VALUES ('channel open', 'secret'), ('channel gone', 'secret'), ('the next one', 'new secret'), ('the next one', 'secret')) AS p (id, token);
		SELECT m.channel_id FROM syncstate.sync_channel AS h, syncstate.mark_channel_stopped(h.user_id, h.source, h.lease, h.resource) AS m WHERE h.channel_id = 'channel gone'}),
	"active\nchannel open|t\nchannel gone|t\nthe next one|t\nthe next one|f\nchannel gone", 'and pushes heard');
is(as_role('regress_syncstate_worker', $claim), 'stop|open|channel open|t', 'what was renewed is stopped');
like(as_role('regress_syncstate_worker', q{SELECT syncstate.disconnect_sync('00000000-0000-4000-8000-000000000004', 'google_calendar')}),
	qr/42501/, 'what was revoked stays revoked');
is(as_role('regress_syncstate_user', q{
		SET "request.jwt.claims" = '{"sub": "00000000-0000-4000-8000-000000000002"}';
		SELECT count(*), count(DISTINCT user_id) FROM syncstate.sync_state}),
	'3|1', 'a user sees their own rows');
is(as_role('regress_syncstate_user', q{
		SET "request.jwt.claims" = '{"sub": "00000000-0000-4000-8000-000000000008"}';
		SELECT string_agg(outcome, ' ' ORDER BY outcome) FROM syncstate.my_sync_runs}),
	'completed failed', 'and their own runs');

$node->stop;
done_testing();
