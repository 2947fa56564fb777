# Dump and restore of a router: its shards, their server and user mapping, and
# the labels of sources come back, and the next call is answered.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();
my $s = Shards->new(2);
my $node = $s->{router};
my $dir = PostgreSQL::Test::Utils::tempdir;

$s->query(q{
	SELECT syncstate.register_sync_source('custom_crm');
	ALTER SERVER syncstate OPTIONS (SET query_timeout '7');
	ALTER USER MAPPING FOR PUBLIC SERVER syncstate OPTIONS (SET password E'it''s \\\\ odd');
	CREATE ROLE worker;
	SELECT syncstate.grant_worker('worker')});
my $user = q{'aaaaaaaa-0000-4000-8000-00000000000a'};
$s->query(qq{SELECT syncstate.set_sync_policy('custom_crm', '{"keep_runs": "failures"}'), syncstate.mark_sync_started($user, 'custom_crm'),
	syncstate.clear_sync_token($user, 'custom_crm'), syncstate.connect_sync($user, 'custom_crm'),
	syncstate.connect_sync($user, 'custom_crm', 'paused'), syncstate.pause_sync($user, 'custom_crm', 'paused'), syncstate.disconnect_sync($user, 'custom_crm', 'paused')});
is($s->query('DELETE FROM syncstate.custom_source; TRUNCATE syncstate.custom_source; TABLE syncstate.custom_source'),
	'custom_crm', 'whoever empties all tables does not empty this one');

# All that makes a router what it is
my $settings = q{
	SELECT * FROM syncstate.shard ORDER BY shard;
	SELECT * FROM syncstate.custom_source;
	SELECT enum_range(NULL::syncstate.sync_source);
	SELECT srvname, srvowner::regrole, srvoptions FROM pg_foreign_server;
	SELECT srvname, usename, ARRAY(SELECT o FROM unnest(umoptions) AS o ORDER BY o) FROM pg_user_mappings;
	SELECT p.oid::regprocedure, p.proacl FROM pg_proc AS p
		WHERE p.pronamespace IN ('syncstate'::regnamespace, 'syncstate_shard'::regnamespace)
		ORDER BY p.oid::regprocedure::text;
	SELECT oid::regclass, relacl FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace ORDER BY relname};
# which one answers, and through which of the two ways
my $calls = qq{
	SET ROLE worker;
	SELECT source, resource FROM syncstate.get_sync_states($user);
	SELECT user_id, source FROM syncstate.claim_due_syncs('custom_crm');
	SELECT status FROM syncstate.release_sync($user, 'custom_crm', (syncstate.get_sync_state($user, 'custom_crm')).lease);
	SELECT source, event, user_id FROM syncstate.sync_event;
	SELECT source, outcome FROM syncstate.sync_run;
	SELECT action FROM syncstate.claim_push_channels('google_gmail');
	SELECT source, channel_id, state FROM syncstate.sync_channel;
	SELECT syncstate.receive_push('channel', 'secret'), syncstate.receive_push('channel', 'another');
	SELECT source, rows FROM syncstate.sync_overview};
$s->query(qq{SELECT syncstate.mark_channel_opened($user, 'google_tasks', 1, 'channel', NULL, 'secret')});
my $was = $s->query($settings);
my $answers = $s->query($calls);
like($was, qr/query_timeout=7.*password=it's \\/s, 'there is something to keep');
like($answers, qr/^custom_crm\|\n.*\|custom_crm\nidle\ncustom_crm\|parked\|.*\ncustom_crm\|revoked\n.*custom_crm\|1\z/s, 'and it answers');

foreach my $format ('plain', 'custom', 'directory')
{
	my $file = "$dir/$format";
	command_ok([ 'pg_dump', '-d', $node->connstr('router'), "--format=$format", "--file=$file" ], "$format: dumped");
	$node->safe_psql('postgres', 'CREATE DATABASE restored');
	command_ok(
		$format eq 'plain'
		? [ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $file ]
		: [ 'pg_restore', '-e', '-d', $node->connstr('restored'), ($format eq 'directory' ? '-j2' : ()), $file ],
		"$format: restored");
	is($node->safe_psql('restored', $settings), $was, "$format: all is as it was");
	is($node->safe_psql('restored', $calls), $answers, "$format: and it answers");

	# The server follows the table there, too.
	$node->safe_psql('restored', q{UPDATE syncstate.shard SET connection = connection || ' connect_timeout=5'});
	like($node->safe_psql('restored', 'SELECT srvoptions FROM pg_foreign_server'), qr/query_timeout=7.*connect_timeout=5.*connect_timeout=5/, "$format: shards can be changed");
	is($node->safe_psql('restored', $calls), $answers, "$format: and it answers again");
	$node->safe_psql('postgres', 'DROP DATABASE restored');
}

$s->stop;
done_testing();
