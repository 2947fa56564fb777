# The extension as clients of Supabase meet it: supabase-js and the TypeScript
# service of examples/ against a double of the REST layer, with Supabase's roles.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = 'test/node';

# Not skipped: then nobody would notice that it is never run.
ok(run_log([ "$dir/setup", '--check' ]), 'the npm packages are there')
  or do { diag "run $dir/setup"; done_testing(); exit };

# Compiled without a look at types, which is 080_types.pl's part.
my $said = '';
ok(IPC::Run::run([ 'node', "$dir/node_modules/typescript/bin/tsc", '-p', $dir, '--noCheck' ], '>&', \$said), 'the service compiles')
  or diag $said;

my $node = PostgreSQL::Test::Cluster->new('supabase');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\ntimezone = 'UTC'\nlc_messages = 'C'");
$node->start;

# Roles as on Supabase.  They are there before the extension, which then grants
# what they need by itself.
$node->safe_psql('postgres', q{
	CREATE ROLE anon NOLOGIN;
	CREATE ROLE authenticated NOLOGIN;
	CREATE ROLE service_role NOLOGIN BYPASSRLS;
	CREATE ROLE regress_syncstate_outsider NOLOGIN;
	CREATE ROLE authenticator LOGIN NOINHERIT;
	GRANT anon, authenticated, service_role, regress_syncstate_outsider TO authenticator;
	ALTER ROLE authenticated SET statement_timeout = '8s';
	CREATE FUNCTION public.setting(name text) RETURNS text LANGUAGE sql STABLE AS 'SELECT current_setting(name)';
	CREATE FUNCTION public.twice(a int, b int DEFAULT 0) RETURNS int LANGUAGE sql STABLE AS 'SELECT a + b';
	CREATE FUNCTION public.twice(a int, c text DEFAULT '') RETURNS text LANGUAGE sql STABLE AS 'SELECT a || c';
	CREATE EXTENSION syncstate;
	ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0});

# The function of doc/supabase.md that writes items and cursor.
my ($commit) = slurp_file('doc/supabase.md') =~ /^```sql\n(CREATE FUNCTION commit_events.*?)^```$/ms;
$node->safe_psql('postgres', qq{
	CREATE TABLE events (user_id uuid, id text, title text, PRIMARY KEY (user_id, id));
	GRANT ALL ON events TO service_role;
	$commit
	REVOKE EXECUTE ON FUNCTION commit_events FROM PUBLIC;
	GRANT EXECUTE ON FUNCTION commit_events TO service_role});

# Everything is on loopback and on a socket: no proxy of the environment.
delete @ENV{qw(http_proxy https_proxy HTTP_PROXY HTTPS_PROXY)};
local @ENV{qw(PGHOST PGPORT PGDATABASE PGUSER)} = ($node->host, $node->port, 'postgres', scalar getpwuid($>));

# One of our tests for each of its.
my $out = '';
my $ended = IPC::Run::run([ 'node', '--test-reporter=tap', "$dir/supabase_test.mjs" ],
	'>', \$out, '2>', \my $err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default * 2));
my $tests = 0;
while ($out =~ /^(not )?ok \d+ - (.*)\n((?:  .*\n)*)/mg)
{
	my ($failed, $name, $why) = ($1, $2, $3);
	ok(!$failed, $name) or diag $why;
	$tests++;
}
ok($ended, 'all of them ran') or diag $err;
cmp_ok($tests, '>', 40, 'and they are many');

$node->stop;
done_testing();
