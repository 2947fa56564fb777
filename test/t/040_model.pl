# The extension does what the contract says: random histories of all calls are
# made in the database and in a model of the contract in Python, which share
# nothing, and each result and each row is compared.  See test/model/README.md.
#
#	SYNCSTATE_MODEL_CALLS	how many calls; 20000 if unset, the long version
#							is 1000000
#	SYNCSTATE_TEST_SEED		where to begin; otherwise 1, so that the short
#							version makes much the same calls each time
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $calls = $ENV{SYNCSTATE_MODEL_CALLS} || 20_000;
my $seed = $ENV{SYNCSTATE_TEST_SEED} || 1;
my $model = "$FindBin::RealBin/../model/syncstate_model.py";

# Debian's Python has Debian's psycopg; another one may come first in the path.
my ($python) = grep { system("$_ -c 'import psycopg' >/dev/null 2>&1") == 0 } 'python3', '/usr/bin/python3';
plan skip_all => 'python3-psycopg is not installed; test/setup does that'
	unless defined $python;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "log_statement = none\nlog_min_messages = fatal\nlog_min_error_statement = panic");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION syncstate');
$node->safe_psql('postgres', 'CREATE DATABASE broken');
$node->safe_psql('broken', 'CREATE EXTENSION syncstate');

# Returns whether the model agreed, and what it printed.
sub compare
{
	my ($database, @options) = @_;
	my ($stdout, $stderr);
	my $agreed = run_log([ $python, $model, $node->connstr($database), @options ],
		'>', \$stdout, '2>', \$stderr);
	return ($agreed, $stdout . $stderr);
}

my ($agreed, $out) = compare('postgres', '--calls', $calls, '--seed', $seed,
	'--history', "$PostgreSQL::Test::Utils::tmp_check/model.history");
ok($agreed, "$calls calls from seed $seed do what the model says");
note($out) if $agreed;
diag($out) unless $agreed;
like($out, qr/^$calls calls agree/m, 'all of them were made');

# The histories get everywhere: a kind of call or of refusal that no longer
# occurs would no longer be tested.
my %seen = $out =~ /[:,] ([a-zA-Z][\w ,']*?|\d{5}|\w{5}) (\d+)(?=,|$)/mg;
my @rare = grep { ($seen{$_} // 0) < $calls / 4000 }
	'claim', 'start', 'complete', 'fail', 'limit', 'clear', 'renew', 'checkpoint', 'release', 'batch', 'update',
	'upsert', 'request', 'user_request', 'connect', 'disconnect', 'pause', 'resume', 'policy', 'pause_source',
	'resume_source', 'users', 'next', 'overview', 'my_syncs', 'get', 'rollback', 'rollback to', 'commit',
	'savepoint', '22023', '42501', 'PT404', 'PT409', 'rows claimed', 'rows parked by a claim', 'notifications',
	'connect_account', 'pause_account', 'resume_account', 'disconnect_account', 'request_account', 'user_request_account',
	'set_resources', 'other rows changed by fail', 'other rows changed by limit', 'rows made under a limit',
	'rows held back by a cap', (map { "resources $_" } 'added', 'gone', 'returned', 'kept'),
	'take', 'events taken', 'notifications of events',
	'channels', 'channel_opened', 'channel_failed', 'channel_stopped', 'push', 'user_push', 'push_policy', 'pushes taken', 'pushes refused',
	(map { "channels claimed to $_" } 'open', 'renew', 'stop'), 'channel_opened, active', 'channel_stopped, retiring', 'channels opened without the lease',
	map { "rows returned parked, $_" } 'paused', 'auth', 'failures', 'token_loop', 'gone';
is("@rare", '', 'every kind of call was made, and refused, often enough');

my @missing = grep { !$seen{$_} } 'events too old', 'runs too old', "runs of one's own",
	(map { "events $_" } 'parked paused', 'parked auth', 'parked failures', 'failing', 'recovered', 'first_sync', 'cursor_lost',
		'gone', 'sweep_withheld', 'source_limited paused', 'source_limited rate_limited', 'source_resumed'),
	(map { "runs $_" } 'completed', 'failed', 'rate_limited', 'released', 'lost', 'revoked'),
	'23505', (map { "channel_failed, $_" } 'opening', 'active', 'retiring', 'unsupported');
is("@missing", '', 'every kind of event was told, every outcome of a run, and what can become of a channel');

# The control: a function that does a little more than it should is found.
$node->safe_psql('broken', <<'EOSQL');
CREATE OR REPLACE FUNCTION syncstate.resume_sync(user_id uuid, source syncstate.sync_source, resource text DEFAULT '',
		account text DEFAULT '')
	RETURNS syncstate.sync_state
	LANGUAGE plpgsql
	AS $$
DECLARE
	r syncstate.sync_state;
BEGIN
	UPDATE syncstate.sync_state AS s SET parked_reason = NULL, failures = 0, token_losses = 0
	WHERE s.user_id = resume_sync.user_id AND s.account = resume_sync.account
		AND s.source = resume_sync.source AND s.resource = resume_sync.resource
	RETURNING * INTO r;
	IF NOT FOUND THEN
		RAISE SQLSTATE 'PT404';
	END IF;
	RETURN r;
END
$$;
EOSQL
($agreed, $out) = compare('broken', '--calls', 20_000, '--seed', $seed, '--shrink', 3);
ok(!$agreed, 'a function that forgets part of its work is found');
like($out, qr/^seed \d+, step \d+, .* resume .*: returned row: \w+/m, 'and told with the seed, the step and the column');
like($out, qr/^the history, \d+ of \d+ calls/m, 'and with how it came about');

$node->stop;
done_testing();
