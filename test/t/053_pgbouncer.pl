# Behind pgbouncer in transaction mode, where each transaction of a client may
# come to another server connection: nothing is handed out twice or forgotten,
# and nobody's identity stays behind.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($pgbouncer) = grep { -x $_ } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';
plan skip_all => 'pgbouncer is not installed' unless $pgbouncer;
my ($major, $minor) = `$pgbouncer --version` =~ /(\d+)\.(\d+)/;

my ($clients, $servers, $rows) = (12, 4, 1800);

my $node = PostgreSQL::Test::Cluster->new('behind');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\nsynchronous_commit = off");
$node->start;

# pgbouncer has the socket, and the socket only, in a directory of its own.
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = $node->port;
my $prepares = $major > 1 || $minor >= 21;
append_to_file("$dir/pgbouncer.ini", <<"EOC" . ($prepares ? "max_prepared_statements = 100\n" : ''));
[databases]
postgres = host=@{[ $node->host ]} port=$port dbname=postgres user=@{[ scalar getpwuid($>) ]}
single = host=@{[ $node->host ]} port=$port dbname=postgres user=@{[ scalar getpwuid($>) ]} pool_size=1
session = host=@{[ $node->host ]} port=$port dbname=postgres user=@{[ scalar getpwuid($>) ]} pool_mode=session
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = any
pool_mode = transaction
default_pool_size = $servers
max_client_conn = 100
ignore_startup_parameters = extra_float_digits,options
logfile = $dir/pgbouncer.log
server_lifetime = 3600
EOC
my ($in, $bouncer_out) = ('', '');
my $bouncer = IPC::Run::start([ $pgbouncer, '-q', "$dir/pgbouncer.ini" ], '<', \$in, '>&', \$bouncer_out);

# A statement through the pooler.
sub through
{
	my ($sql, $pool) = @_;
	return $node->safe_psql('postgres', $sql, connstr => "host=$dir port=$port dbname=@{[ $pool // 'postgres' ]}");
}
my $up = 0;
foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	last if $up = -S "$dir/.s.PGSQL.$port";
	select undef, undef, undef, 0.1;
}
ok($up, 'pgbouncer is up') or diag $bouncer_out;

sub set_up
{
	$node->safe_psql('postgres', qq{
		CREATE EXTENSION syncstate;
		ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
		SELECT syncstate.grant_worker('regress_syncstate_pooled_worker');
		SELECT syncstate.grant_user('regress_syncstate_pooled_user');
		SELECT syncstate.set_sync_policy('google_calendar', '{"sync_interval": "1 day", "retry_base": "1 day", "retry_cap": "1 day"}');
		INSERT INTO syncstate.sync_state (user_id, source, due_at)
		SELECT ('00000000-0000-4000-8000-' || to_char(n, 'FM000000000000'))::uuid, 'google_calendar', now() - n * interval '1 s'
		FROM generate_series(1, $rows) AS n;
		TRUNCATE handed});
	return;
}
$node->safe_psql('postgres', q{
	CREATE ROLE regress_syncstate_pooled_worker;
	CREATE ROLE regress_syncstate_pooled_user;
	CREATE TABLE handed (user_id uuid, lease bigint, pid int);
	CREATE TABLE outbox (client int PRIMARY KEY, reports jsonb);
	GRANT ALL ON handed, outbox TO PUBLIC});

append_to_file("$dir/work.sql", <<'EOS');
\set id random(1, 1800)
\set kind random(1, 3)
BEGIN;
SET LOCAL ROLE regress_syncstate_pooled_worker;
WITH c AS (SELECT * FROM syncstate.claim_due_syncs('google_calendar', 3)),
	h AS (INSERT INTO handed SELECT user_id, lease, pg_backend_pid() FROM c RETURNING user_id, lease)
INSERT INTO outbox
SELECT (:client_id)::int, coalesce(jsonb_agg(jsonb_build_object('user_id', user_id, 'source', 'google_calendar', 'lease', lease) ||
	CASE (:kind)::int WHEN 1 THEN '{"outcome": "failed", "error_message": "no answer"}'
		WHEN 2 THEN '{"outcome": "rate_limited", "retry_after": "1 day"}'
		ELSE '{"outcome": "completed", "sync_token": "t"}' END::jsonb), '[]')
FROM h ON CONFLICT (client) DO UPDATE SET reports = EXCLUDED.reports;
COMMIT;
BEGIN;
SET LOCAL ROLE regress_syncstate_pooled_worker;
-- every lease that was handed out is good on whichever connection
SELECT 1 / (count(*) = (SELECT jsonb_array_length(reports) FROM outbox WHERE client = (:client_id)::int))::int
FROM syncstate.report_syncs((SELECT reports FROM outbox WHERE client = (:client_id)::int));
COMMIT;
EOS

append_to_file("$dir/look.sql", <<'EOS');
\set id random(1, 1800)
BEGIN;
SET LOCAL ROLE regress_syncstate_pooled_user;
SELECT set_config('request.jwt.claims', '{"sub": "00000000-0000-4000-8000-' || to_char((:id)::int, 'FM000000000000') || '"}', true);
SELECT 1 / (count(*) = 1 AND bool_and(user_id = ('00000000-0000-4000-8000-' || to_char((:id)::int, 'FM000000000000'))::uuid))::int
FROM syncstate.my_syncs;
COMMIT;
-- whose transaction comes next is nobody, whoever it was before
SELECT 1 / (syncstate.current_user_id() IS NULL AND current_user = session_user)::int;
EOS

foreach my $round (
	[ 'simple' ],
	[ 'extended' ],
	$prepares ? [ 'prepared' ] : (),
	[ 'extended', 'again after DROP and CREATE EXTENSION' ])
{
	my ($protocol, $what) = @$round;
	$what = "$protocol protocol" . ($what ? ", $what" : '');
	$node->safe_psql('postgres', 'DROP EXTENSION IF EXISTS syncstate');
	set_up();

	# half as many calls again as it takes, for some meet fewer rows
	my $transactions = int($rows / 3 / $clients * 1.5) + 1;
	my $seed = int(rand(2**31));
	$node->command_ok(
		# a thread for each client: pgbench prepares synchronously, and would
		# wait for a connection that another client of the thread holds
		[ 'pgbench', '--no-vacuum', "--client=$clients", "--jobs=$clients", "--protocol=$protocol",
			"--transactions=$transactions", "--random-seed=$seed", "--file=$dir/work.sql\@3", "--file=$dir/look.sql\@1",
			'-h', $dir, '-p', $port, 'postgres' ],
		"$what: $clients clients on $servers connections, seed $seed");

	# what chance has left over is handed out now
	through("INSERT INTO handed SELECT user_id, lease, 0 FROM syncstate.claim_due_syncs('google_calendar', 10000)");
	is($node->safe_psql('postgres', q{
		SELECT count(*), count(DISTINCT user_id), max(lease) - min(lease) FROM handed}) =~ s/\|\d+$//r,
		"$rows|$rows", "$what: every row once, none forgotten");
	cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT pid) FROM handed WHERE pid <> 0'), '>', 1,
		"$what: by several connections");
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM handed WHERE pid <> 0'), '>', $rows / 2,
		"$what: and most of them under load");
	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM syncstate.sync_state AS s JOIN handed AS h USING (user_id)
		WHERE s.lease <> h.lease OR (s.status = 'syncing') <> (h.pid = 0)}), '0',
		"$what: and its report arrived");
}
cmp_ok($node->safe_psql('postgres', q{
	SELECT count(*) FROM pg_stat_activity
	WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = 'postgres'}), '<=', $servers,
	"no more than $servers connections");

# LISTEN takes a session.  In transaction mode it is the server connection that
# listens, and whoever uses it next is told; with one connection only, that is
# the very client that asks for the sync.
sub listen_and_request
{
	my ($pool) = @_;
	my $asks = qq{psql -X -q -At -h $dir -p $port -d $pool -c "SELECT 'asks'"} .
	  qq{ -c "SELECT FROM syncstate.connect_sync(gen_random_uuid(), 'google_tasks')"};
	my $listens = "LISTEN syncstate;\n\\! $asks\n\\echo listens\n" . "SELECT;\n" x 50;
	my ($asked, $heard) = split /^listens$/m, through($listens, $pool);
	return map { /^Asynchronous notification "syncstate" with payload "google_tasks"/m ? 'told' : 'not told' } $asked, $heard;
}
is_deeply([ listen_and_request('single') ], [ 'told', 'not told' ], 'in transaction mode who listens is not told');
is_deeply([ listen_and_request('session') ], [ 'not told', 'told' ], 'in session mode they are');

$bouncer->signal('INT');
$bouncer->finish;
$node->stop;
done_testing();
