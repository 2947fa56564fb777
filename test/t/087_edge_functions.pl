# The edge functions of examples/supabase do what they say: run under Node, by
# doubles of Supabase's runtime and REST layer, against the demo's provider, and
# judged by a comparison of all items.

use strict;
use warnings FATAL => 'all';

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = 'test/node';

# Not skipped: then nobody would notice that it is never run.
ok(run_log([ "$dir/setup", '--check' ]), 'the npm packages are there')
  or do { diag "run $dir/setup"; done_testing(); exit };

# Compiled without a look at types, which is 080_types.pl's part.
my $said = '';
ok(IPC::Run::run([ 'node', "$dir/node_modules/typescript/bin/tsc", '-p', $dir, '--noCheck' ], '>&', \$said), 'the functions compile')
  or diag $said;

my $node = PostgreSQL::Test::Cluster->new('edge_functions');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\nlc_messages = 'C'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE ROLE anon NOLOGIN;
	CREATE ROLE authenticated NOLOGIN;
	CREATE ROLE service_role NOLOGIN BYPASSRLS;
	CREATE ROLE authenticator LOGIN NOINHERIT;
	GRANT anon, authenticated, service_role TO authenticator});
local @ENV{qw(PGHOST PGPORT)} = ($node->host, $node->port);

my ($out, $error) = ('', '');
my $finished = IPC::Run::run([ 'test/demo/check_edge_functions.py' ], '<', \undef, '>', \$out, '2>', \$error);
my @passed = $out =~ /^ok \d+ - (.*)$/mg;
my ($plan) = $out =~ /^1\.\.(\d+)$/m;

pass($_) foreach @passed;
ok($finished && defined $plan && $plan == @passed, 'all of it') or diag "$out\n$error";

$node->stop;
done_testing();
