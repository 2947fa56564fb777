# The jobs of examples/cron do what they say, and pg_cron runs them.
#
# Debian has no pg_net and no Vault: functions and tables of their names and
# signatures stand in, and note down what would be sent.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

chomp(my $share = `pg_config --sharedir`);
my $control = "$share/extension/pg_cron.control";
plan skip_all => 'pg_cron is not installed' unless -e $control;
my ($version) = slurp_file($control) =~ /default_version *= *'(1\.\d+)/;
my $has_seconds = $version >= 1.5;

my $node = PostgreSQL::Test::Cluster->new('cron');
$node->init;
$node->append_conf('postgresql.conf', q{
	fsync = off
	shared_preload_libraries = 'pg_cron'
	cron.database_name = 'app'
	cron.use_background_workers = on});
$node->start;

sub sql
{
	my ($statement, $user) = @_;
	return $node->safe_psql('app', $statement, extra_params => [ '-U', $user ]);
}

# Runs a file of examples/cron, as a user would.
sub schedule
{
	my ($file, $user, @variables) = @_;
	$node->command_ok(
		[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', map({ ('-v', $_) } @variables), '-U', $user,
			'-d', 'host=' . $node->host . ' port=' . $node->port . ' dbname=app', '-f', "examples/cron/$file.sql" ],
		"$file.sql" . (@variables ? " with $variables[-1]" : ''));
	return;
}

# The text of a job, as pg_cron has it.
sub job
{
	my ($name) = @_;
	return $node->safe_psql('app', "SELECT command FROM cron.job WHERE jobname = '$name'");
}

# The owner of the database is no superuser, nor is the worker.
$node->safe_psql('postgres', q{
	CREATE ROLE owner LOGIN;
	CREATE ROLE worker LOGIN;
	CREATE DATABASE app OWNER owner});
$node->safe_psql('app', q{
	CREATE EXTENSION pg_cron;
	GRANT USAGE ON SCHEMA cron TO owner, worker});
sql(q{
	CREATE EXTENSION syncstate;
	SELECT syncstate.grant_worker('worker');

	CREATE SCHEMA net;
	CREATE TABLE net.sent (id bigserial, url text, body jsonb, params jsonb, headers jsonb, timeout_milliseconds int);
	CREATE FUNCTION net.http_post(url text, body jsonb DEFAULT '{}', params jsonb DEFAULT '{}',
		headers jsonb DEFAULT '{"Content-Type": "application/json"}', timeout_milliseconds int DEFAULT 5000)
		RETURNS bigint LANGUAGE sql
		AS 'INSERT INTO net.sent (url, body, params, headers, timeout_milliseconds) VALUES ($1, $2, $3, $4, $5) RETURNING id';
	CREATE SCHEMA vault;
	CREATE TABLE vault.decrypted_secrets (name text, decrypted_secret text);
	INSERT INTO vault.decrypted_secrets VALUES ('sync_worker_key', 'the key'), ('other', 'wrong');
	GRANT USAGE ON SCHEMA net, vault TO worker;
	GRANT SELECT ON vault.decrypted_secrets TO worker;
	GRANT SELECT, INSERT ON net.sent TO worker;
	GRANT USAGE ON net.sent_id_seq TO worker}, 'owner');

# --------------------------------------------- when the edge function is called

my $url = q{https://example.com/functions/v1/it's};
schedule('edge_function', 'worker', "url=$url", $has_seconds ? () : 'schedule=* * * * *');
is($node->safe_psql('app', q{SELECT username, schedule, active FROM cron.job WHERE jobname = 'syncstate-worker'}),
	'worker|' . ($has_seconds ? '10 seconds' : '* * * * *') . '|t', 'it is scheduled');

my ($documented) = slurp_file('doc/scheduling.md') =~ /^```\n(SELECT net\.http_post\(.*?)^```$/ms;
$documented =~ s{url => '.*?'}{url => 'https://example.com/functions/v1/it''s'};
is(job('syncstate-worker') =~ s/\s+/ /gr =~ s/^ | $//gr, $documented =~ s/\s+/ /gr =~ s/ $//r, 'as doc/scheduling.md says');

# Stop it, so that it comes when we say.
$node->safe_psql('app', 'UPDATE cron.job SET active = false');
my $command = job('syncstate-worker');

# What the job sends if it comes now.
sub sent
{
	sql("TRUNCATE net.sent RESTART IDENTITY", 'owner');
	sql($command, 'worker');
	return sql('SELECT url, headers, body, timeout_milliseconds FROM net.sent', 'owner');
}

my $user = "'00000000-0000-4000-8000-000000000001', 'google_calendar'";
is(sent(), '', 'without rows nothing is sent');
sql(q{SELECT syncstate.connect_sync('00000000-0000-4000-8000-000000000001', 'google_tasks')}, 'worker');
is(sent(), '', 'nor for rows of a source that the function does not sync');
sql("SELECT syncstate.connect_sync($user)", 'worker');
my $since = sql(q{SELECT to_jsonb(due_at) FROM syncstate.sync_state WHERE source = 'google_calendar'}, 'worker');
is(sent(),
	qq{$url|{"Content-Type": "application/json", "Authorization": "Bearer the key"}|{"due_since": $since}|5000},
	'with work, the function is called, with its key');
my $lease = sql('SELECT lease FROM syncstate.claim_due_syncs(\'google_calendar\')', 'worker');
is(sent(), '', 'not while a worker has the row');
sql("SELECT syncstate.mark_sync_completed($user, sync_token => 'token', lease => $lease)", 'worker');
is(sent(), '', 'nor before it is due again');
sql(q{SELECT syncstate.set_sync_policy('google_calendar', '{"request_gap": 0}')}, 'worker');
sql("SELECT syncstate.request_sync($user)", 'worker');
isnt(sent(), '', 'but when somebody asks for it');
sql("SELECT syncstate.pause_sync_source('google_calendar')", 'worker');
is(sent(), '', 'and not while the source is paused');
sql("SELECT syncstate.resume_sync_source('google_calendar')", 'worker');
sql("SELECT syncstate.pause_sync($user)", 'worker');
is(sent(), '', 'or the row is parked');
sql("SELECT syncstate.resume_sync($user)", 'worker');

# ------------------------------------------------------- and pg_cron does it

# An old pg_cron has no seconds, but it can do a thing once it starts.
sql('TRUNCATE net.sent', 'owner');
if ($has_seconds)
{
	schedule('edge_function', 'worker', "url=$url", 'schedule=1 second');
	$node->safe_psql('app', q{UPDATE cron.job SET active = jobname = 'syncstate-worker'});
}
else
{
	schedule('edge_function', 'worker', "url=$url", 'schedule=@reboot');
	$node->safe_psql('app', q{UPDATE cron.job SET active = jobname = 'syncstate-worker'});
	$node->restart;
}
ok($node->poll_query_until('app', 'SELECT EXISTS (SELECT FROM net.sent)'), 'pg_cron runs it');
ok($node->poll_query_until('app', q{SELECT EXISTS (SELECT FROM cron.job_run_details WHERE status = 'succeeded')}),
	'and says so');
is($node->safe_psql('app', 'SELECT DISTINCT username, url FROM net.sent, cron.job_run_details'), "worker|$url",
	'as who scheduled it');
$node->safe_psql('app', 'UPDATE cron.job SET active = false');

# ---------------------------------------------------------------- housekeeping

$node->safe_psql('app', q{
	INSERT INTO cron.job_run_details (jobid, runid, username, end_time)
	SELECT 1, 1000 + n, 'worker', now() - n * interval '1 day' FROM unnest('{1,6,8,100}'::int[]) AS n});
sql(job('syncstate-cron-log'), 'worker');
is($node->safe_psql('app', q{SELECT string_agg((runid - 1000)::text, ' ' ORDER BY runid) FROM cron.job_run_details WHERE runid > 1000}),
	'1 6', 'of the log of pg_cron a week is left');

schedule('housekeeping', 'owner');
my $has_budgets = $node->safe_psql('app', q{SELECT to_regproc('syncstate.rebalance_syncs') IS NOT NULL}) eq 't';
is($node->safe_psql('app', q{SELECT string_agg(jobname, ' ' ORDER BY jobname) FROM cron.job WHERE username = 'owner'}),
	($has_budgets ? 'syncstate-rebalance ' : '') . 'syncstate-vacuum', 'there are the jobs');

sql(job('syncstate-vacuum'), 'owner');
ok($node->poll_query_until('app', q{
	SELECT last_vacuum IS NOT NULL AND last_analyze IS NOT NULL FROM pg_stat_all_tables
	WHERE relid = 'syncstate.sync_state'::regclass}), 'the table is vacuumed, by the owner of the database');
sql(job('syncstate-rebalance'), 'owner') if $has_budgets;

$node->stop;
done_testing();
