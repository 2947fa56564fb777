# The router has the functions of a shard, by the same names, arguments,
# defaults, results and descriptions, and so the types.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();
my $s = Shards->new(2);

my $functions = q{
	SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.provolatile, p.prorows,
		obj_description(p.oid, 'pg_proc')
	FROM pg_proc p WHERE pronamespace = 'syncstate'::regnamespace
		AND proname NOT IN (%s) ORDER BY 1};
my $internal = q{'is_legal', 'guard', 'policy_changed', 'add_source_label', 'skip_known_label'};
my $additions = q{'shard_of', 'get_my_syncs', 'get_sync_overview'};
is($s->query(sprintf $functions, $additions), $s->shard_query(0, sprintf $functions, $internal),
	'functions are those of a shard');

my $columns = q{
	SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attcollation::regcollation
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
	WHERE c.relname IN ('sync_state', 'sync_policy', 'my_syncs', 'sync_overview') AND a.attnum > 0
	ORDER BY 1, a.attnum};
is($s->query($columns), $s->shard_query(0, $columns), 'types and views are those of a shard');

my $labels = q{SELECT enumtypid::regtype, enumlabel FROM pg_enum ORDER BY 1, enumsortorder};
is($s->query($labels), $s->shard_query(0, $labels), 'enums are those of a shard');

$s->stop;
done_testing();
