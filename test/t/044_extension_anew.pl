# The extension is dropped and made again while a session holds what it
# remembers of it: plans, names, marks in the lanes.  By another session between
# two calls and while a call waits for the table, and by a trigger of the site's
# in the middle of our statement.  The real clock counts, since a claim goes by
# its marks only then.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;

my $anew = 'DROP EXTENSION syncstate; CREATE EXTENSION syncstate;';
my $fill = q{
	INSERT INTO syncstate.sync_state (user_id, source, due_at)
	SELECT md5(n::text)::uuid, 'google_calendar', now() - n * interval '1 s' FROM generate_series(1, 300) AS n;};

$node->safe_psql('postgres', 'CREATE EXTENSION syncstate');

sub connection
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe('SET client_min_messages = error');
	return $session;
}

# The output of statements, with their errors in it.
sub run_in
{
	my ($session, $sql) = @_;
	$session->{stderr} = '';
	my $out = $session->query($sql);
	my $err = $session->{stderr};
	$session->{stderr} = '';
	$err =~ s/^psql:<stdin>:\d+: //mg;
	s/\n+\z// foreach $out, $err;
	return join "\n", grep { $_ ne '' } $out, $err;
}

# Waits until a backend waits for a lock on sync_state.
sub wait_until_waiting
{
	my ($pid) = @_;
	return $node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM pg_locks WHERE pid = $pid AND NOT granted AND locktype = 'relation'");
}

# Claims until there is nothing left, and tells how many rows that were, and
# whether each was handed out once.
my $claim_all = q{
	CREATE TEMP TABLE IF NOT EXISTS claimed (user_id uuid);
	TRUNCATE claimed;
	DO $$
	BEGIN
		FOR i IN 1 .. 100 LOOP
			INSERT INTO claimed SELECT user_id FROM syncstate.claim_due_syncs('google_calendar', 30);
			COMMIT;
			EXIT WHEN NOT FOUND AND i > 20;
		END LOOP;
	END
	$$;
	SELECT count(*), count(DISTINCT user_id) FROM claimed;};

my $session = connection();
my $other = connection();
my $pid = $session->query_safe('SELECT pg_backend_pid()');
chomp $pid;

# --------------------------------------------------- between two calls

# Push channels: all calls about one.
my $push = q{
	SELECT FROM syncstate.set_sync_policy('google_calendar', '{"push_renew_before": "1 day"}');
	SELECT count(*) FROM syncstate.claim_push_channels('google_calendar', 3);
	SELECT m.state FROM syncstate.sync_channel AS h, syncstate.mark_channel_opened(h.user_id, h.source, h.lease, 'channel ' || h.user_id, now() + interval '7 days', 'secret') AS m
		WHERE h.lease_expires_at IS NOT NULL ORDER BY h.user_id LIMIT 2;
	SELECT m.failures FROM syncstate.sync_channel AS h, syncstate.mark_channel_failed(h.user_id, h.source, h.lease, 'no') AS m WHERE h.lease_expires_at IS NOT NULL;
	SELECT syncstate.receive_push(channel_id, 'secret', 1) FROM syncstate.sync_channel WHERE state = 'active';
	SELECT syncstate.disconnect_sync(user_id, source) FROM syncstate.sync_channel WHERE state = 'active' LIMIT 1;
	SELECT action FROM syncstate.claim_push_channels('google_calendar', 1000) WHERE action = 'stop';
	SELECT m.state FROM syncstate.sync_channel AS h, syncstate.mark_channel_stopped(h.user_id, h.source, h.lease) AS m WHERE h.state = 'retiring';};

foreach my $round (1 .. 3)
{
	$node->safe_psql('postgres', $fill);
	is(run_in($session, $push), "3\nactive\nactive\n1\nt\nt\nt\nstop\nretiring", "round $round: calls about channels");
	$node->safe_psql('postgres', $anew . $fill);
	is(run_in($session, $claim_all), '300|300', "round $round: all are claimed once");
	is(run_in($session, q{SELECT syncstate.next_sync_due() > clock_timestamp() + interval '5 min'}), 't', "round $round: then nothing is due");
	$node->safe_psql('postgres', $anew . $fill);
	is(run_in($session, q{SELECT syncstate.next_sync_due() <= clock_timestamp()}), 't', "round $round: made anew, there is work");
	is(run_in($session, q{SELECT count(*) FROM syncstate.get_users_needing_sync('google_calendar')}), '300', "round $round: of so many users");
	is(run_in($session, $claim_all), '300|300', "round $round: and all are claimed once again");
	is( run_in($session, q{SELECT count(*) FROM syncstate.report_syncs((
			SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'source', source, 'lease', lease, 'outcome', 'completed')) FROM syncstate.sync_state))}),
		'300', "round $round: and reported");
	$node->safe_psql('postgres', $anew);
}

# ------------------------------------------- while a call waits for the table

# What the call comes to is the server's business: the function it runs is gone.
# It ends, with an error or without, and the next call is right.
foreach my $call (
	q{SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar', 30)},
	q{SELECT syncstate.next_sync_due() IS NULL},
	q{SELECT count(*) FROM syncstate.get_users_needing_sync('google_calendar')},
	q{SELECT (syncstate.mark_sync_completed(md5('1')::uuid, 'google_calendar')).status},
	q{SELECT syncstate.request_sync(md5('1')::uuid, 'google_calendar')},
	q{SELECT (syncstate.connect_sync(md5('1')::uuid, 'google_calendar')).status},
	q{SELECT count(*) FROM syncstate.report_syncs(jsonb_build_array(jsonb_build_object(
		'user_id', md5('1')::uuid, 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed')))},
	q{SELECT count(*) FROM syncstate.claim_push_channels('google_calendar')},
	q{SELECT syncstate.receive_push('channel', 'secret')})
{
	my ($name) = $call =~ /syncstate\.(\w+)/;
	$node->safe_psql('postgres', $anew . $fill);
	is(run_in($session, $claim_all), '300|300', "$name: all are claimed");
	run_in($other, "BEGIN; $anew $fill");
	$session->query_until(qr/asked/, "\\echo asked\n$call;\n\\echo answered\n");
	ok(wait_until_waiting($pid), "$name waits for the table");
	run_in($other, 'COMMIT');
	$session->query_until(qr/answered/, '');
	my $said = $session->{stderr};
	unlike($said, qr/server closed|PANIC|memory/, "$name ends in good order");
	note($said) if $said ne '';
	$session->{stderr} = '';
	is(run_in($session, 'SELECT count(*) FROM syncstate.sync_state'), 300, "$name: the table has its rows");
	run_in($session, q{UPDATE syncstate.sync_state SET status = 'idle', due_at = now() - interval '1 s', requested_at = NULL});
	is(run_in($session, $claim_all), '300|300', "$name: and all of them can be claimed");
}

# --------------------------------------------- by a trigger, in our statement

# DROP EXTENSION is refused while a statement has the table; whoever catches that
# goes on, and the statement too.
$node->safe_psql('postgres', $anew . q{
	CREATE TABLE refused (command text, state text);
	CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
		command text;
	BEGIN
		FOREACH command IN ARRAY ARRAY['DROP EXTENSION syncstate CASCADE', 'ALTER TABLE syncstate.sync_state ADD COLUMN note text',
			'TRUNCATE syncstate.sync_state', 'REINDEX TABLE syncstate.sync_state']
		LOOP
			BEGIN
				EXECUTE command;
				INSERT INTO refused VALUES (command, 'not');
			EXCEPTION WHEN OTHERS THEN
				INSERT INTO refused VALUES (command, SQLSTATE);
			END;
		END LOOP;
		RETURN coalesce(NEW, OLD);
	END
	$$});
foreach my $when ('a_meddle BEFORE', 'z_meddle BEFORE', 'a_meddle AFTER')
{
	$node->safe_psql('postgres', qq{TRUNCATE refused;
		CREATE TRIGGER $when INSERT OR UPDATE OR DELETE ON syncstate.sync_state FOR EACH ROW EXECUTE FUNCTION meddle()});
	is( run_in($session, q{
			SELECT status FROM syncstate.connect_sync(md5('1')::uuid, 'google_calendar');
			SELECT status FROM syncstate.connect_sync(md5('2')::uuid, 'google_calendar');
			SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar');
			SELECT m.status, m.sync_token FROM syncstate.sync_state AS s,
				syncstate.mark_sync_completed(s.user_id, s.source, sync_token => 'new', lease => s.lease) AS m WHERE s.user_id = md5('1')::uuid;
			SELECT count(*) FROM syncstate.report_syncs((SELECT jsonb_agg(jsonb_build_object('user_id', user_id, 'source', source, 'lease', lease, 'outcome', 'released'))
				FROM syncstate.sync_state WHERE status = 'syncing'));
			SELECT syncstate.request_sync(md5('1')::uuid, 'google_calendar');
			SELECT count(*) FROM syncstate.get_users_needing_sync('google_calendar');
			SELECT syncstate.disconnect_sync(md5('1')::uuid, 'google_calendar'), syncstate.disconnect_sync(md5('2')::uuid, 'google_calendar')}),
		"idle\nidle\n2\nidle|new\n1\nt\n1\nt|t", "calls go on while a trigger $when a row drops and alters what it can");
	is(run_in($session, q{SELECT DISTINCT state FROM refused}), '55006', "... which is refused as in use, $when");
	cmp_ok(run_in($session, q{SELECT count(*) FROM refused}), '>', 30, "... each time, $when");
	my ($trigger) = $when =~ /(\w+)/;
	$node->safe_psql('postgres', "DROP TRIGGER $trigger ON syncstate.sync_state");
}

# uncaught, the call fails and changes nothing
$node->safe_psql('postgres', q{
	CREATE OR REPLACE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		DROP EXTENSION syncstate CASCADE;
		RETURN NEW;
	END
	$$;
	SELECT FROM syncstate.connect_sync(md5('1')::uuid, 'google_calendar');
	CREATE TRIGGER a_meddle BEFORE UPDATE ON syncstate.sync_state FOR EACH ROW EXECUTE FUNCTION meddle()});
foreach my $call (
	q{SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar')},
	q{SELECT status FROM syncstate.pause_sync(md5('1')::uuid, 'google_calendar')},
	q{SELECT status FROM syncstate.connect_sync(md5('1')::uuid, 'google_calendar')})
{
	my ($name) = $call =~ /syncstate\.(\w+)/;
	like(run_in($session, $call), qr/^ERROR: +cannot DROP .* because it is being used by active queries in this session/m, "$name fails where the trigger does");
	is(run_in($session, q{SELECT status, parked_reason IS NULL FROM syncstate.sync_state}), 'idle|t', "$name has changed nothing");
}
$node->safe_psql('postgres', 'DROP TRIGGER a_meddle ON syncstate.sync_state');
# With the clock set, a claim looks from the beginning: the one that failed had
# come past the row, which the real clock's sweep finds up to a second later.
is(run_in($session, q{SET syncstate.clock = '2100-01-01Z'; SELECT count(*) FROM syncstate.claim_due_syncs('google_calendar')}), '1',
	'and the session works on');

$_->quit foreach $session, $other;
$node->stop;
done_testing();
