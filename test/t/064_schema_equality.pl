# Two installs of the same version are the same: made anew, made again after
# DROP, in a database with other settings, by an owner, restored from a dump.
#
# What compares them is one query, test/sql/schema.sql.  That it would notice a
# difference is shown by making one of each kind.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;

my $query = slurp_file("$FindBin::RealBin/../sql/schema.sql");

# How the catalogs print names, times and quotes must not differ.
my $settings = q{SET search_path = ''; SET timezone = 'UTC'; SET datestyle = 'ISO';
	SET intervalstyle = 'postgres'; SET standard_conforming_strings = on;};

sub schema
{
	my ($database) = @_;
	return $node->safe_psql($database, "$settings $query");
}

# The lines of one text that the other does not have, with their side.
sub difference
{
	my ($a, $b) = @_;
	my (%a, %b);
	$a{$_} = 1 foreach split(/\n/, $a);
	$b{$_} = 1 foreach split(/\n/, $b);
	return join("\n", (map { "- $_" } sort grep { !$b{$_} } keys %a), (map { "+ $_" } sort grep { !$a{$_} } keys %b));
}

sub same
{
	my ($database, $first, $name) = @_;
	is(difference($first, schema($database)), '', $name);
}

$node->safe_psql('postgres', q{
	CREATE ROLE regress_syncstate_owner LOGIN BYPASSRLS;
	CREATE DATABASE fresh;
	CREATE DATABASE another TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C';
	ALTER DATABASE another SET search_path = pg_temp, public;
	ALTER DATABASE another SET IntervalStyle = 'sql_standard';
	ALTER DATABASE another SET DateStyle = 'SQL, DMY';
	ALTER DATABASE another SET TimeZone = 'Asia/Kolkata';
	ALTER DATABASE another SET check_function_bodies = off;
	ALTER DATABASE another SET default_toast_compression = 'pglz';
	CREATE DATABASE owned OWNER regress_syncstate_owner;
	CREATE DATABASE restored});
$node->safe_psql('postgres', 'ALTER DATABASE another SET standard_conforming_strings = off')
  if $node->pg_version->major < 19;    # which has no other strings

### the same

$node->safe_psql('fresh', 'CREATE EXTENSION syncstate');
my $fresh = schema('fresh');
unlike($fresh, qr/^(.*)\n\1$/m, 'no line comes twice');
foreach my $kind (qw(extension dumped member schema relation column index view rule constraint policy trigger
	function type label comment privilege), 'initial privilege')
{
	like($fresh, qr/^$kind /m, "there are lines about: $kind");
}

# Every member is told of by more than its membership, and nothing of ours is
# no member (but what belongs to a member).
is($node->safe_psql('fresh', q{
		SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
		WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'syncstate'
			AND d.classid NOT IN ('pg_namespace'::regclass, 'pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass)}),
	'', 'the extension has members of these kinds only');

$node->safe_psql('another', 'CREATE EXTENSION syncstate');
same('another', $fresh, 'the settings of a database make no difference');

$node->safe_psql('fresh', q{
	SELECT syncstate.connect_sync('00000000-0000-4000-8000-000000000001', 'google_calendar');
	SELECT syncstate.set_sync_policy('google_tasks', '{"jitter": 0}');
	SELECT syncstate.register_sync_source('custom_crm')});
is(join("\n", grep { !/\brate_custom_crm\b/ } split /\n/, difference($fresh, schema('fresh'))),
	'+ label custom_crm of syncstate.sync_source at 5', 'use makes no difference, but for a label and its sequence');
my $with_label = schema('fresh');
$node->safe_psql('fresh', 'VACUUM ANALYZE syncstate.sync_state');
same('fresh', $with_label, 'statistics make no difference');

# a dump carries it all
my $file = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '--no-sync', '-f', $file, $node->connstr('fresh') ], 'dump');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, '-d', $node->connstr('restored') ], 'restore');
same('restored', $with_label, 'a restored database is the same');

$node->safe_psql('fresh', 'DROP EXTENSION syncstate');
is(schema('fresh'), '', 'nothing is left after DROP');
$node->safe_psql('fresh', 'CREATE EXTENSION syncstate');
same('fresh', $fresh, 'a second install is the same');
$node->safe_psql('fresh', 'ALTER EXTENSION syncstate UPDATE');
same('fresh', $fresh, 'an update to the same version is none');

# Who installs owns the extension and is granted the use of it; all else is the same.
$node->safe_psql('owned', 'SET ROLE regress_syncstate_owner; CREATE EXTENSION syncstate');
my ($others, $owned) = ($fresh, schema('owned'));
foreach my $text ($others, $owned)
{
	$text =~ s/^(initial )?privilege on .*(\n|\z)//mg;
	$text =~ s/^(extension .*) owner .*$/$1/m;
	$text =~ s/^function syncstate\.installed_objects\(\) .*$//m;    # which has the privileges, too
}
is(difference($others, $owned), '', 'installed by an owner, only privileges differ');

### not the same

# [what, how]; each must show, and be gone when it is undone.
my $claim = 'syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)';
my @changes = (
	[ 'a table', 'CREATE TABLE syncstate.more ()' ],
	[ 'a member more', 'CREATE VIEW public.v AS SELECT 1; ALTER EXTENSION syncstate ADD VIEW public.v' ],
	[ 'a member less', 'ALTER EXTENSION syncstate DROP VIEW syncstate.my_syncs' ],
	[ 'what is dumped', q{UPDATE pg_extension SET extcondition[1] = 'WHERE lease > 0' WHERE extname = 'syncstate'} ],
	[ 'the version', q{UPDATE pg_extension SET extversion = '1.1' WHERE extname = 'syncstate'} ],
	[ 'the owner of the extension', q{UPDATE pg_extension SET extowner = 'regress_syncstate_owner'::regrole WHERE extname = 'syncstate'} ],
	[ 'the owner of the schema', 'ALTER SCHEMA syncstate OWNER TO regress_syncstate_owner' ],
	[ 'the owner of a table', 'ALTER TABLE syncstate.sync_policy OWNER TO regress_syncstate_owner' ],
	[ 'the owner of a function', "ALTER FUNCTION $claim OWNER TO regress_syncstate_owner" ],
	[ 'the owner of a type', 'ALTER TYPE syncstate.sync_status OWNER TO regress_syncstate_owner' ],
	[ 'a column', 'ALTER TABLE syncstate.sync_policy ADD COLUMN more int' ],
	[ 'the name of a column', 'ALTER TABLE syncstate.sync_policy RENAME COLUMN jitter TO jitters' ],
	[ 'the order of columns', q{ALTER TABLE syncstate.sync_policy DROP COLUMN jitter CASCADE, ADD COLUMN jitter double precision;
		ALTER TABLE syncstate.sync_policy ADD CONSTRAINT sync_policy_jitter_range CHECK (jitter >= 0 AND jitter <= 0.9);
		COMMENT ON COLUMN syncstate.sync_policy.jitter IS 'By how much of itself an interval is shortened at most; 0 to 0.9'} ],
	[ 'the type of a column', 'ALTER TABLE syncstate.sync_policy ALTER COLUMN max_failures TYPE bigint' ],
	[ 'a default', 'ALTER TABLE syncstate.sync_state ALTER COLUMN failures SET DEFAULT 1' ],
	[ 'NOT NULL', 'ALTER TABLE syncstate.sync_state ALTER COLUMN failures DROP NOT NULL' ],
	[ 'storage', 'ALTER TABLE syncstate.sync_state ALTER COLUMN sync_token SET STORAGE EXTERNAL' ],
	[ 'compression', 'ALTER TABLE syncstate.sync_state ALTER COLUMN sync_token SET COMPRESSION pglz' ],
	[ 'a statistics target', 'ALTER TABLE syncstate.sync_state ALTER COLUMN due_at SET STATISTICS 1000' ],
	[ 'an option of a column', 'ALTER TABLE syncstate.sync_state ALTER COLUMN due_at SET (n_distinct = 5)' ],
	[ 'a collation', 'ALTER TABLE syncstate.sync_policy ALTER COLUMN token_ttl_from TYPE text COLLATE "C"' ],
	[ 'fillfactor', 'ALTER TABLE syncstate.sync_state SET (fillfactor = 70)' ],
	[ 'persistence', 'ALTER TABLE syncstate.sync_policy SET UNLOGGED' ],
	[ 'replica identity', 'ALTER TABLE syncstate.sync_state REPLICA IDENTITY FULL' ],
	[ 'an index', 'DROP INDEX syncstate.sync_state_due; CREATE INDEX sync_state_due ON syncstate.sync_state (source, due_at) WHERE due_at IS NOT NULL' ],
	[ 'an index more', 'CREATE INDEX ON syncstate.sync_state (updated_at)' ],
	[ 'extended statistics', 'CREATE STATISTICS syncstate.more ON source, status FROM syncstate.sync_state' ],
	[ 'a view', 'CREATE OR REPLACE VIEW syncstate.my_syncs AS SELECT s.user_id, s.account, s.source, s.resource, s.status, s.due_at, s.requested_at,
		s.parked_reason, s.sync_interval, s.last_full_sync_at, s.last_sync_at, s.last_successful_sync_at, s.items_synced, s.progress_done,
		s.progress_total, s.failures, s.failing_since, s.token_losses, s.error_message, s.created_at, s.updated_at,
		s.limited_until FROM syncstate.sync_state AS s' ],
	[ 'an option of a view', 'ALTER VIEW syncstate.my_syncs SET (security_invoker = false)' ],
	[ 'a rule', 'CREATE RULE more AS ON DELETE TO syncstate.sync_policy DO ALSO SELECT 1' ],
	[ 'a constraint', 'ALTER TABLE syncstate.sync_policy DROP CONSTRAINT sync_policy_max_failures_range,
		ADD CONSTRAINT sync_policy_max_failures_range CHECK (max_failures >= 2)' ],
	[ 'an unvalidated constraint', 'ALTER TABLE syncstate.sync_policy DROP CONSTRAINT sync_policy_max_failures_range,
		ADD CONSTRAINT sync_policy_max_failures_range CHECK (max_failures >= 1) NOT VALID' ],
	[ 'the name of a constraint', 'ALTER TABLE syncstate.sync_policy RENAME CONSTRAINT sync_policy_jitter_range TO jitter_range' ],
	[ 'row security', 'ALTER TABLE syncstate.sync_state DISABLE ROW LEVEL SECURITY' ],
	[ 'forced row security', 'ALTER TABLE syncstate.sync_state FORCE ROW LEVEL SECURITY' ],
	[ 'a policy', 'ALTER POLICY sync_state_delete ON syncstate.sync_state USING (true)' ],
	[ 'the check of a policy', 'ALTER POLICY sync_state_update ON syncstate.sync_state WITH CHECK (true)' ],
	[ 'the roles of a policy', 'ALTER POLICY sync_state_delete ON syncstate.sync_state TO regress_syncstate_owner' ],
	[ 'a policy less', 'DROP POLICY sync_policy_worker ON syncstate.sync_policy' ],
	[ 'a trigger', 'DROP TRIGGER sync_state_guard ON syncstate.sync_state;
		CREATE TRIGGER sync_state_guard BEFORE INSERT ON syncstate.sync_state FOR EACH ROW EXECUTE FUNCTION syncstate.guard()' ],
	[ 'a disabled trigger', 'ALTER TABLE syncstate.sync_state DISABLE TRIGGER sync_state_guard' ],
	[ 'a label', q{ALTER TYPE syncstate.sync_status ADD VALUE 'more'} ],
	[ 'the name of a label', q{ALTER TYPE syncstate.sync_status RENAME VALUE 'idle' TO 'resting'} ],
	[ 'the order of labels', q{ALTER TYPE syncstate.sync_status RENAME VALUE 'idle' TO 'x'; ALTER TYPE syncstate.sync_status RENAME VALUE 'error' TO 'idle';
		ALTER TYPE syncstate.sync_status RENAME VALUE 'x' TO 'error'} ],
	[ 'volatility', "ALTER FUNCTION $claim STABLE" ],
	[ 'strictness', "ALTER FUNCTION $claim STRICT" ],
	[ 'parallel safety', "ALTER FUNCTION $claim PARALLEL SAFE" ],
	[ 'cost', "ALTER FUNCTION $claim COST 7" ],
	[ 'rows', "ALTER FUNCTION $claim ROWS 7" ],
	[ 'leakproof', 'ALTER FUNCTION syncstate.current_user_id() LEAKPROOF' ],
	[ 'security definer', "ALTER FUNCTION $claim SECURITY DEFINER" ],
	[ 'a setting of a function', 'ALTER FUNCTION syncstate.forget_users() RESET search_path' ],
	[ 'a body', q{UPDATE pg_proc SET prosrc = replace(prosrc, 'pg_catalog.', '') WHERE oid = 'syncstate.forget_users()'::regprocedure} ],
	[ 'a C symbol', "UPDATE pg_proc SET prosrc = 'syncstate_other' WHERE oid = '$claim'::regprocedure" ],
	[ 'a library', "UPDATE pg_proc SET probin = 'elsewhere' WHERE oid = '$claim'::regprocedure" ],
	[ 'a default of an argument', q{CREATE OR REPLACE FUNCTION syncstate.get_sync_state(user_id uuid, source syncstate.sync_source, resource text DEFAULT 'x', account text DEFAULT '')
		RETURNS syncstate.sync_state LANGUAGE sql STABLE PARALLEL SAFE BEGIN ATOMIC SELECT s FROM syncstate.sync_state AS s
		WHERE s.user_id = get_sync_state.user_id AND s.source = get_sync_state.source AND s.resource = get_sync_state.resource; END} ],
	[ 'a function more', 'CREATE FUNCTION syncstate.more() RETURNS int LANGUAGE sql RETURN 1' ],
	[ 'the name of a function', "ALTER FUNCTION $claim RENAME TO claim" ],
	[ 'a comment on a table', q{COMMENT ON TABLE syncstate.sync_state IS 'x'} ],
	[ 'a comment on a column', 'COMMENT ON COLUMN syncstate.sync_state.lease IS NULL' ],
	[ 'a comment on a function', "COMMENT ON FUNCTION $claim IS 'x'" ],
	[ 'a comment on a policy', 'COMMENT ON POLICY sync_state_delete ON syncstate.sync_state IS NULL' ],
	[ 'a comment on a trigger', 'COMMENT ON TRIGGER sync_state_guard ON syncstate.sync_state IS NULL' ],
	[ 'a comment on a type', 'COMMENT ON TYPE syncstate.sync_status IS NULL' ],
	[ 'a comment on the schema', 'COMMENT ON SCHEMA syncstate IS NULL' ],
	[ 'a comment on the extension', 'COMMENT ON EXTENSION syncstate IS NULL' ],
	[ 'a comment on an index', q{COMMENT ON INDEX syncstate.sync_state_due IS 'x'} ],
	[ 'a comment on a constraint', q{COMMENT ON CONSTRAINT sync_state_pkey ON syncstate.sync_state IS 'x'} ],
	[ 'a privilege on the schema', 'GRANT USAGE ON SCHEMA syncstate TO PUBLIC' ],
	[ 'a privilege on a table', 'GRANT SELECT ON syncstate.sync_state TO PUBLIC' ],
	[ 'a privilege on a view', 'GRANT SELECT ON syncstate.my_syncs TO PUBLIC' ],
	[ 'a privilege on a column', 'GRANT UPDATE (due_at) ON syncstate.sync_state TO regress_syncstate_owner' ],
	[ 'a privilege on a function', "GRANT EXECUTE ON FUNCTION $claim TO PUBLIC" ],
	[ 'a privilege on a type', 'REVOKE USAGE ON TYPE syncstate.sync_status FROM PUBLIC' ],
	[ 'a default privilege', 'ALTER DEFAULT PRIVILEGES IN SCHEMA syncstate GRANT SELECT ON TABLES TO PUBLIC' ],
	[ 'an initial privilege', q{DELETE FROM pg_init_privs WHERE objoid = 'syncstate.sync_state'::regclass} ],
	[ 'a cast', 'CREATE CAST (syncstate.sync_status AS text) WITH INOUT; ALTER EXTENSION syncstate ADD CAST (syncstate.sync_status AS text)' ],
	[ 'an operator', 'CREATE OPERATOR syncstate.@@@ (FUNCTION = pg_catalog.int4eq, LEFTARG = int, RIGHTARG = int);
		ALTER EXTENSION syncstate ADD OPERATOR syncstate.@@@ (int, int)' ]);

# All in one session; each in a transaction of its own that is undone.
my $script = "SET allow_system_table_mods = on; SET client_min_messages = error; $settings\n";
foreach my $i (0 .. $#changes)
{
	$script .= "BEGIN;\n$changes[$i][1];\n\\echo == $i\n$query\nROLLBACK;\n";
}
$script .= "\\echo == end\n$query";
my $told = $node->safe_psql('fresh', $script); # ends at an error
my %told = $told =~ /^== (\w+)\n(.*?)(?=^== |\z)/msg;
foreach my $i (0 .. $#changes)
{
	isnt(difference($fresh, $told{$i} // $fresh), '', "noticed: $changes[$i][0]");
}
is(difference($fresh, $told{end}), '', 'and without them it is the same again');

$node->stop;
done_testing();
