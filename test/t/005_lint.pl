# The rules of the database linter that Supabase shows its users, as queries of
# our own.  Membership in an extension hides most objects from that linter, so
# they are asked of the installed extension and of the same script run as plain
# SQL.  Each rule must also find an offence that is committed on purpose.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;
$node->safe_psql('postgres',
	'CREATE ROLE anon; CREATE ROLE authenticated; CREATE ROLE service_role BYPASSRLS');

$node->safe_psql('postgres', 'CREATE DATABASE installed');
$node->safe_psql('installed', 'CREATE EXTENSION syncstate');

# The script without what only CREATE EXTENSION does
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my ($sharedir) = `$pg_config --sharedir` =~ /(.*)/;
my $script = slurp_file("$sharedir/extension/syncstate--1.0.sql");
$script =~ s/^\\echo .*$//m;
$script =~ s/MODULE_PATHNAME/syncstate/g;
$script =~ s/\@extowner\@/CURRENT_USER/g;
$script =~ s/^SELECT pg_catalog\.pg_extension_config_dump\(.*\);$//mg;
$node->safe_psql('postgres', 'CREATE DATABASE plain');
$node->safe_psql('plain', "SET search_path = pg_catalog, pg_temp;\n$script");

my $ours = q{'syncstate'::regnamespace};

# name, query that lists offences, and SQL that commits one (in a transaction)
my @rules = (
	[   '0001 foreign key without an index',
		qq{SELECT conname FROM pg_constraint c WHERE connamespace = $ours AND contype = 'f'
			AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1])},
		q{CREATE TABLE syncstate.bad (id uuid PRIMARY KEY, s syncstate.sync_source REFERENCES syncstate.sync_policy)} ],
	[   '0003 policy that asks who is asking for each row',
		qq{SELECT policyname FROM pg_policies p, regexp_matches(coalesce(qual, '') || coalesce(with_check, ''),
				'(select\\s+)?[a-z_.]*(current_user_id|current_setting|has_function_privilege|uid|jwt)\\(', 'gi') m
			WHERE schemaname = 'syncstate' AND m[1] IS NULL},
		q{CREATE POLICY bad ON syncstate.sync_policy FOR DELETE USING (syncstate.current_user_id() IS NOT NULL)} ],
	[   '0004 table without a primary key',
		qq{SELECT relname FROM pg_class c WHERE relnamespace = $ours AND relkind IN ('r', 'p')
			AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)},
		q{CREATE TABLE syncstate.bad (id uuid)} ],
	[   '0006 several permissive policies for one command',
		qq{SELECT tablename FROM pg_policies WHERE schemaname = 'syncstate' AND permissive = 'PERMISSIVE'
			GROUP BY tablename, cmd HAVING count(*) > 1},
		q{CREATE POLICY bad ON syncstate.sync_state FOR SELECT USING (false)} ],
	[   '0007 policies on a table without row security',
		qq{SELECT relname FROM pg_class c WHERE relnamespace = $ours AND NOT relrowsecurity
			AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)},
		q{CREATE POLICY bad ON syncstate.custom_source FOR SELECT USING (false)} ],
	[   '0008 row security without a policy',
		qq{SELECT relname FROM pg_class c WHERE relnamespace = $ours AND relrowsecurity
			AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)},
		q{ALTER TABLE syncstate.custom_source ENABLE ROW LEVEL SECURITY} ],
	[   '0009 the same index twice',
		qq{SELECT min(indexrelid::regclass::text) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
			WHERE relnamespace = $ours
			GROUP BY indrelid, indkey::text, indclass::text, pg_get_expr(indpred, indrelid) HAVING count(*) > 1},
		q{CREATE INDEX bad ON syncstate.custom_source (label)} ],
	[   '0010 view with the rights of its owner',
		qq{SELECT relname FROM pg_class WHERE relnamespace = $ours AND relkind = 'v'
			AND NOT coalesce(reloptions, '{}') && '{security_invoker=true,security_invoker=on}'},
		q{CREATE VIEW syncstate.bad AS SELECT 1 AS one} ],
	[   '0011 function whose names depend on the search_path of the call',
		qq{SELECT proname FROM pg_proc p JOIN pg_language l ON l.oid = prolang WHERE pronamespace = $ours
			AND lanname NOT IN ('c', 'internal') AND prosqlbody IS NULL
			AND NOT coalesce(proconfig, '{}') && ARRAY['search_path=pg_catalog, pg_temp']},
		q{CREATE FUNCTION syncstate.bad() RETURNS int LANGUAGE sql AS 'SELECT 1'} ],
	[   '0013 table without row security that users may read',
		qq{SELECT relname FROM pg_class c, unnest('{anon,authenticated}'::name[]) r
			WHERE relnamespace = $ours AND relkind IN ('r', 'p') AND NOT relrowsecurity
			AND has_any_column_privilege(r, c.oid, 'SELECT')},
		q{GRANT SELECT ON syncstate.custom_source TO authenticated} ],
	[   '0014 extension in public',
		q{SELECT extname FROM pg_extension WHERE extname = 'syncstate' AND extnamespace = 'public'::regnamespace
			UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace},
		q{CREATE FUNCTION public.bad() RETURNS int LANGUAGE sql AS 'SELECT 1'} ],
	[   '0018 column of a type that pg_upgrade refuses',
		qq{SELECT attrelid::regclass FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
			WHERE relnamespace = $ours AND attnum > 0 AND atttypid = ANY (ARRAY['regproc', 'regprocedure', 'regoper',
				'regoperator', 'regconfig', 'regdictionary', 'regnamespace', 'regcollation']::regtype[])},
		q{CREATE TABLE syncstate.bad (id uuid PRIMARY KEY, f regprocedure)} ],
	[   '0022 older version than the files',
		q{SELECT e.extname FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname
			WHERE e.extname = 'syncstate' AND e.extversion <> a.default_version},
		q{UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'syncstate'}, 'installed' ],
	[   '0023 sensitive column without row security',
		qq{SELECT attrelid::regclass FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
			WHERE relnamespace = $ours AND relkind = 'r' AND NOT relrowsecurity
			AND attname IN ('token', 'secret', 'password', 'access_token', 'refresh_token', 'session_id')},
		q{CREATE TABLE syncstate.bad (token text PRIMARY KEY)} ],
	[   '0024 policy that lets everybody',
		q{SELECT policyname FROM pg_policies WHERE schemaname = 'syncstate' AND permissive = 'PERMISSIVE'
			AND (qual = 'true' OR with_check = 'true')},
		q{CREATE POLICY bad ON syncstate.sync_policy FOR UPDATE USING (true)} ],
	[   '0026 anon may read',
		qq{SELECT relname FROM pg_class c WHERE relnamespace = $ours AND relkind IN ('r', 'v', 'm', 'p')
			AND has_any_column_privilege('anon', c.oid, 'SELECT')},
		q{GRANT SELECT ON syncstate.my_syncs TO PUBLIC} ],
	[   '0027 authenticated may read more than its own syncs',
		qq{SELECT relname FROM pg_class c WHERE relnamespace = $ours AND relkind IN ('r', 'v', 'm', 'p')
			AND relname NOT IN ('sync_state', 'sync_run', 'my_syncs', 'my_sync_runs')
			AND has_any_column_privilege('authenticated', c.oid, 'SELECT')},
		q{GRANT SELECT ON syncstate.sync_overview TO authenticated} ],
	[   '0028/0029 users may execute a SECURITY DEFINER function',
		qq{SELECT proname FROM pg_proc p, unnest('{anon,authenticated}'::name[]) r WHERE pronamespace = $ours
			AND prosecdef AND has_function_privilege(r, p.oid, 'EXECUTE')},
		q{GRANT EXECUTE ON FUNCTION syncstate.forget_users() TO authenticated} ],
	[   'function that PUBLIC may execute',
		qq{SELECT proname FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
			WHERE pronamespace = $ours AND a.grantee = 0},
		q{CREATE FUNCTION syncstate.bad() RETURNS int LANGUAGE sql RETURN 1} ]);

foreach my $rule (@rules)
{
	my ($name, $query, $offence, $only) = @$rule;

	foreach my $db ('installed', 'plain')
	{
		is($node->safe_psql($db, $query), '', "$name: none, $db");
		next if $only && $only ne $db;
		isnt($node->safe_psql($db,
				"SET allow_system_table_mods = on; BEGIN; $offence; $query; ROLLBACK"),
			'', "$name: found where there is one, $db");
	}
}

# The same rules for a router, where there can be one.  Its functions speak to
# the shards as their owner, so the four that are for users are SECURITY DEFINER,
# and check who is asking.  Functions of PL/Proxy, which only these call, have no
# path, which a test of their text replaces; those of the language are in public.
SKIP:
{
	skip 'PL/Proxy is not installed for this server', 1 unless -e "$sharedir/extension/plproxy.control";
	$node->safe_psql('postgres', 'CREATE DATABASE router');
	$node->safe_psql('router', 'CREATE EXTENSION syncstate_router CASCADE');
	my %found = ('0028/0029 users may execute a SECURITY DEFINER function' => "get_my_sync_runs\nget_my_syncs\nrequest_account\nrequest_sync");

	foreach my $rule (@rules)
	{
		my ($name, $query, $offence) = @$rule;

		$query =~ s/= 'syncstate'::regnamespace/= ANY ('{syncstate,syncstate_shard}'::regnamespace[])/g;
		$query =~ s/extname = 'syncstate'/extname = 'syncstate_router'/g;
		$query =~ s/'c', 'internal'/'c', 'internal', 'plproxy'/;
		$query =~ s/(pronamespace = 'public'::regnamespace)/$1 AND proname !~ '^plproxy_'/;
		$query =~ s/\z/ ORDER BY 1/;
		$offence =~ s/extname = 'syncstate'/extname = 'syncstate_router'/;
		my $none = $found{$name} // '';
		is($node->safe_psql('router', $query), $none, "$name: none, router");
		next if $offence =~ /syncstate\.sync_(state|policy)/;    # which are no tables there
		isnt($node->safe_psql('router', "SET allow_system_table_mods = on; BEGIN; $offence; $query; ROLLBACK"),
			$none, "$name: found where there is one, router");
	}
	is($node->safe_psql('router', q{SELECT string_agg(DISTINCT regexp_replace(prosrc, 'TARGET syncstate\.\w+', 'TARGET'), '')
			FROM pg_proc p JOIN pg_language l ON l.oid = prolang WHERE lanname = 'plproxy' AND proname <> ALL ('{my_syncs,my_sync_runs}')}),
		q{CLUSTER 'syncstate'; RUN ON syncstate_shard.hash(user_id); TARGET;}, 'what PL/Proxy runs here is named in full');
}

$node->stop;
done_testing();
