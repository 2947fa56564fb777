# The TypeScript types in examples/ are those of the schema, and the examples
# and what an application may write compile with them.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = 'test/node';

# Not skipped: then nobody would notice that it is never run.
ok(run_log([ "$dir/setup", '--check' ]), 'the npm packages are there')
  or do { diag "run $dir/setup"; done_testing(); exit };

my $node = PostgreSQL::Test::Cluster->new('types');
$node->init;
$node->start;

my ($types, $err) = ('', '');
{
	local @ENV{qw(PGHOST PGPORT)} = ($node->host, $node->port);
	ok(IPC::Run::run([ "$dir/types" ], '>', \$types, '2>', \$err), 'types are made from the catalogs') or diag $err;
}
ok($types eq slurp_file('examples/syncstate-types.ts'), 'examples/syncstate-types.ts is up to date')
  or diag 'run `make types`';
$node->stop;

# The TypeScript of doc/supabase.md, which leaves out what is the reader's.
my ($block) = slurp_file('doc/supabase.md') =~ /^```ts\n(.*?)^```$/ms;
ok($block, 'doc/supabase.md has TypeScript');
$block =~ s{'\./(?=sync)}{'../../examples/}g;
unlink "$dir/readme_blocks.ts";
append_to_file("$dir/readme_blocks.ts", <<'EOT' . $block . 'void [rows, error, mine];');
declare const url: string, serviceKey: string, anonKey: string, userId: string;
declare function fetchMail(userId: string, historyId: string | null): Promise<{ items: object[]; historyId: string }>;
EOT

my $said = '';
ok(IPC::Run::run([ 'node', "$dir/node_modules/typescript/bin/tsc", '-p', $dir, '--noEmit' ], '>&', \$said),
	'the examples and doc/supabase.md compile, and types_test.ts does and does not where it says so') or diag $said;

done_testing();
