# The owner of a database who is no superuser installs the extension, uses it
# and passes it on; and does not become superuser by it, whatever they plant.
#
# The objects belong to the bootstrap superuser, and two of them act as it:
# what a planted object could make them run would run as superuser.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->start;

my ($owner, $worker, $user) = map { "regress_syncstate_$_" } qw(owner worker user);
my $a = 'aaaaaaaa-0000-4000-8000-00000000000a';
my $b = 'bbbbbbbb-0000-4000-8000-00000000000b';

# What a role gets: rows, or the SQLSTATE of the first error.
sub as_role
{
	my ($role, $sql, $database) = @_;
	my ($status, $out, $err) = $node->psql($database // 'app', $sql,
		extra_params => [ '-U', $role, '-v', 'VERBOSITY=sqlstate' ]);
	return $out if $status == 0;
	return $err =~ /(?:ERROR|FATAL):\s+(\w{5})/ ? $1 : $err;
}

$node->safe_psql('postgres', qq{
	CREATE ROLE $owner LOGIN;
	CREATE ROLE $worker LOGIN;
	CREATE ROLE $user LOGIN;
	CREATE DATABASE app OWNER $owner;
	CREATE DATABASE planted OWNER $owner});

### installing

is(as_role($worker, 'CREATE EXTENSION syncstate'), '42501', 'who does not own the database cannot install it');
is(as_role($owner, 'CREATE EXTENSION syncstate'), '', 'who does, can');
$node->safe_psql('app', 'ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');
is(as_role($owner, q{SELECT DISTINCT pg_get_userbyid(owner) FROM (
		SELECT nspowner FROM pg_namespace WHERE nspname = 'syncstate'
		UNION ALL SELECT relowner FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace
		UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'syncstate'::regnamespace
		UNION ALL SELECT typowner FROM pg_type WHERE typnamespace = 'syncstate'::regnamespace) AS o (owner)}),
	$node->safe_psql('postgres', 'SELECT pg_get_userbyid(10)'), 'all objects are those of the bootstrap superuser');

### using it, and passing it on

is(as_role($owner, qq{SELECT status FROM syncstate.connect_sync('$a', 'google_calendar');
		SELECT lease FROM syncstate.claim_due_syncs();
		SELECT sync_token FROM syncstate.mark_sync_completed('$a', 'google_calendar', 1, 'token', lease => 1);
		SELECT count(*) FROM syncstate.sync_state;
		SELECT sync_interval FROM syncstate.set_sync_policy('google_tasks', '{"sync_interval": "42 minutes"}');
		SELECT rows FROM syncstate.sync_overview WHERE source = 'google_calendar'}),
	"idle\n1\ntoken\n1\n00:42:00\n1", 'the owner uses it');
is(as_role($owner, qq{SELECT syncstate.register_sync_source('custom_crm')}), '', 'and adds a source');
is(as_role($owner, qq{SELECT syncstate.grant_worker('$worker'), syncstate.grant_user('$user')}), '|', 'and grants it');
is(as_role($worker, qq{SELECT status FROM syncstate.connect_sync('$b', 'custom_crm');
		SELECT user_id, lease FROM syncstate.claim_due_syncs();
		SELECT status FROM syncstate.mark_sync_completed('$b', 'custom_crm', 1, 'token', lease => 1)}),
	"idle\n$b|1\nidle", 'a worker works');
is(as_role($user, qq{SET "request.jwt.claims" = '{"sub": "$a"}';
		SELECT user_id, source FROM syncstate.my_syncs;
		SELECT count(*) FROM syncstate.sync_state;
		SELECT syncstate.request_sync('$a', 'google_calendar')}),
	"$a|google_calendar\n1\nt", 'a user sees and requests');
is(as_role($user, 'SELECT syncstate.claim_due_syncs()'), '42501', 'a user is no worker');
is(as_role($worker, qq{SELECT syncstate.grant_worker('$user')}), '42501', 'a worker cannot make workers');
is(as_role($owner, qq{REVOKE EXECUTE ON FUNCTION syncstate.claim_due_syncs FROM $worker}), '', 'the owner takes back');
is(as_role($worker, 'SELECT count(*) FROM syncstate.sync_state'), '0', 'and a worker is none any more');
is(as_role($owner, qq{SELECT syncstate.grant_worker('$worker')}), '', 'and gives again');

### the application's own users

is(as_role($owner, qq{CREATE TABLE public.users (id uuid PRIMARY KEY);
		GRANT SELECT, DELETE ON public.users TO $user;
		INSERT INTO public.users VALUES ('$a'), ('$b');
		SELECT syncstate.watch_users('public.users')}), '', 'the owner watches users');
is(as_role($user, qq{DELETE FROM public.users WHERE id = '$b'}), '', 'who may not touch sync_state deletes a user');
is(as_role($owner, qq{SELECT user_id FROM syncstate.sync_state}), $a, 'and only the rows of that user are gone');

### what the owner cannot do

# Whatever one may do with an object only as its owner.
my %forbidden = (
	'drop the table' => 'DROP TABLE syncstate.sync_state',
	'alter the table' => 'ALTER TABLE syncstate.sync_state DISABLE ROW LEVEL SECURITY',
	'take the table' => "ALTER TABLE syncstate.sync_state OWNER TO $owner",
	'switch the trigger off' => 'ALTER TABLE syncstate.sync_state DISABLE TRIGGER sync_state_guard',
	'drop a policy' => 'DROP POLICY sync_state_select ON syncstate.sync_state',
	'add a policy' => 'CREATE POLICY planted ON syncstate.sync_state USING (true)',
	'add an index' => 'CREATE INDEX planted ON syncstate.sync_state ((user_id::text))',
	'add a rule' => 'CREATE RULE planted AS ON DELETE TO syncstate.sync_state DO INSTEAD NOTHING',
	'replace a function' => 'CREATE OR REPLACE FUNCTION syncstate.forget_users() RETURNS trigger LANGUAGE sql AS $$SELECT 1$$',
	'alter a function' => 'ALTER FUNCTION syncstate.forget_users() RESET search_path',
	'put a function into the schema' => 'CREATE FUNCTION syncstate.lower(text) RETURNS text LANGUAGE sql AS $$SELECT $1$$',
	'put a table into the schema' => 'CREATE TABLE syncstate.planted (a int)',
	'put a type into the schema' => 'CREATE TYPE syncstate.planted AS (a int)',
	'rename the schema' => 'ALTER SCHEMA syncstate RENAME TO planted',
	'add a label by hand' => q{ALTER TYPE syncstate.sync_source ADD VALUE 'planted'},
	'move the clock' => q{LOAD 'syncstate'; SET syncstate.clock = '2030-01-01'},
	'take a function out of the extension' => 'ALTER EXTENSION syncstate DROP FUNCTION syncstate.guard()');
foreach my $deed (sort keys %forbidden)
{
	is(as_role($owner, $forbidden{$deed}), '42501', "the owner cannot $deed");
}

### code of the owner's must never run as superuser

# A function that notes for whom it runs; every trick below tries to have it
# called by what acts above its caller.
is(as_role($owner, q{
		DELETE FROM syncstate.sync_state;
		CREATE TABLE public.loot (as_whom name, how text);
		GRANT INSERT ON public.loot TO PUBLIC;
		CREATE FUNCTION public.loot(how text) RETURNS bool LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.loot VALUES (current_user, how);
			RETURN true;
		END $$;
		CREATE FUNCTION public.loot() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM public.loot(tg_table_name);
			RETURN coalesce(new, old);
		END $$}), '', 'planting');

# Each trick runs in a session of its own, errors and all: an error is as good
# an end as any.  It may plant into public, which is the owner's, and pg_temp.
my $fill = qq{INSERT INTO public.users VALUES ('$b') ON CONFLICT DO NOTHING;
	INSERT INTO syncstate.sync_state (user_id, source) VALUES ('$b', 'google_tasks') ON CONFLICT DO NOTHING;};
my %tricks = (
	'a trigger on the table that forget_users() deletes from' => qq{
		CREATE TRIGGER planted BEFORE DELETE ON syncstate.sync_state FOR EACH ROW EXECUTE FUNCTION public.loot();
		$fill DELETE FROM public.users;},
	'a trigger on the table of custom sources' => q{
		CREATE TRIGGER planted BEFORE INSERT ON syncstate.custom_source FOR EACH ROW EXECUTE FUNCTION public.loot();
		SELECT syncstate.register_sync_source('planted');},
	'a foreign key to the table that forget_users() deletes from' => qq{
		CREATE TABLE public.child (user_id uuid, source syncstate.sync_source, resource text,
			FOREIGN KEY (user_id, source, resource) REFERENCES syncstate.sync_state ON DELETE CASCADE);
		CREATE TRIGGER planted BEFORE DELETE ON public.child FOR EACH ROW EXECUTE FUNCTION public.loot();
		$fill INSERT INTO public.child VALUES ('$b', 'google_tasks', '');
		DELETE FROM public.users;},
	'forget_users() without its transition table, but a view of that name' => qq{
		CREATE TEMP VIEW deleted AS SELECT '$b'::uuid AS id WHERE public.loot('view');
		CREATE TABLE public.bait (id uuid);
		CREATE TRIGGER planted AFTER DELETE ON public.bait FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users('id');
		$fill INSERT INTO public.bait VALUES ('$b'); DELETE FROM public.bait;},
	'forget_users() with a transition table of another name' => qq{
		CREATE TEMP VIEW deleted AS SELECT '$b'::uuid AS id WHERE public.loot('view');
		CREATE TABLE public.bait (id uuid);
		CREATE TRIGGER planted AFTER DELETE ON public.bait REFERENCING OLD TABLE AS other
			FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users('id');
		$fill INSERT INTO public.bait VALUES ('$b'); DELETE FROM public.bait;},
	'forget_users() before the deletion' => qq{
		CREATE TEMP VIEW deleted AS SELECT '$b'::uuid AS id WHERE public.loot('view');
		CREATE TABLE public.bait (id uuid);
		CREATE TRIGGER planted BEFORE DELETE ON public.bait FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users('id');
		$fill INSERT INTO public.bait VALUES ('$b'); DELETE FROM public.bait;},
	'forget_users() for each row' => qq{
		CREATE TEMP VIEW deleted AS SELECT '$b'::uuid AS id WHERE public.loot('view');
		CREATE TABLE public.bait (id uuid);
		CREATE TRIGGER planted AFTER DELETE ON public.bait FOR EACH ROW EXECUTE FUNCTION syncstate.forget_users('id');
		$fill INSERT INTO public.bait VALUES ('$b'); DELETE FROM public.bait;},
	'a column of a type that casts itself' => qq{
		CREATE TYPE public.wolf AS (id uuid);
		CREATE FUNCTION public.wolf(public.wolf) RETURNS uuid LANGUAGE plpgsql AS \$\$
		BEGIN PERFORM public.loot('cast'); RETURN (\$1).id; END \$\$;
		CREATE CAST (public.wolf AS uuid) WITH FUNCTION public.wolf(public.wolf) AS IMPLICIT;
		CREATE TABLE public.bait (id uuid);
		SELECT syncstate.watch_users('public.bait');
		ALTER TABLE public.bait ALTER id TYPE public.wolf USING ROW(id)::public.wolf;
		$fill INSERT INTO public.bait VALUES (ROW('$b')); DELETE FROM public.bait;},
	'a domain over uuid' => qq{
		CREATE DOMAIN public.sheep AS uuid CHECK (public.loot('domain'));
		CREATE TABLE public.bait (id uuid);
		SELECT syncstate.watch_users('public.bait');
		ALTER TABLE public.bait ALTER id TYPE public.sheep;
		$fill TRUNCATE public.loot; INSERT INTO public.bait VALUES ('$b'); DELETE FROM public.bait;},
	'a column whose name tries to be SQL' => qq{
		CREATE TABLE public.bait (id uuid, "id; SELECT public.loot('name')" uuid, "x"" OR public.loot('quote') OR d.""x" uuid);
		SELECT syncstate.watch_users('public.bait', 'id; SELECT public.loot(''name'')');
		$fill INSERT INTO public.bait VALUES ('$b', '$b', '$b'); DELETE FROM public.bait;
		SELECT syncstate.watch_users('public.bait', 'x" OR public.loot(''quote'') OR d."x');
		INSERT INTO public.bait VALUES ('$b', '$b', '$b'); DELETE FROM public.bait;},
	'operators and functions ahead in the search path' => qq{
		CREATE SCHEMA planted;
		CREATE FUNCTION planted.equal(uuid, uuid) RETURNS bool LANGUAGE sql AS \$\$SELECT public.loot('uuid = uuid')\$\$;
		CREATE OPERATOR planted.= (FUNCTION = planted.equal, LEFTARG = uuid, RIGHTARG = uuid);
		CREATE FUNCTION planted.format(text, text) RETURNS text LANGUAGE sql AS \$\$SELECT public.loot('format')::text\$\$;
		CREATE FUNCTION planted.format(text, name) RETURNS text LANGUAGE sql AS \$\$SELECT public.loot('format')::text\$\$;
		SET search_path = planted, pg_catalog;
		$fill DELETE FROM public.users;
		SELECT syncstate.register_sync_source('planted_too');},
	'a label that tries to be SQL' => q{
		INSERT INTO syncstate.custom_source VALUES ($$x'; SELECT public.loot('label'); --$$);
		CREATE TABLE public.bait (label text);
		CREATE TRIGGER planted AFTER INSERT ON public.bait FOR EACH ROW EXECUTE FUNCTION syncstate.add_source_label();
		INSERT INTO public.bait VALUES ($$x'; SELECT public.loot('label'); --$$);},
	'a column that is written by a default' => qq{
		ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC;
		CREATE TABLE public.bait (id uuid GENERATED ALWAYS AS ('$b'::uuid) STORED, x int CHECK (public.loot('check')));
		SELECT syncstate.watch_users('public.bait');
		$fill TRUNCATE public.loot; INSERT INTO public.bait (x) VALUES (1); DELETE FROM public.bait;});
foreach my $trick (sort keys %tricks)
{
	$node->psql('app', $tricks{$trick}, on_error_stop => 0, extra_params => [ '-U', $owner ]);
	is($node->safe_psql('app', "SELECT DISTINCT as_whom, how FROM public.loot WHERE as_whom <> '$owner'"), '',
		"no code of the owner's runs as superuser: $trick");
	$node->safe_psql('app', q{
		SET client_min_messages = warning;
		DROP TRIGGER IF EXISTS planted ON syncstate.sync_state;
		DROP TRIGGER IF EXISTS planted ON syncstate.custom_source;
		DROP TABLE IF EXISTS public.child, public.bait;
		DROP TYPE IF EXISTS public.wolf, public.sheep CASCADE;
		DROP SCHEMA IF EXISTS planted CASCADE;
		TRUNCATE public.loot});
}

# Only what register_sync_source() would take got in.
is($node->safe_psql('app', q{SELECT enumlabel FROM pg_enum
		WHERE enumtypid = 'syncstate.sync_source'::regtype AND enumlabel::text COLLATE "C" !~ '^[a-z0-9_]+$'}),
	'', 'no label got in past the check of labels');

### a planted schema

is(as_role($owner, 'CREATE SCHEMA syncstate', 'planted'), '', 'planted a schema');
is(as_role($owner, 'CREATE EXTENSION syncstate', 'planted'), '42P06', 'the install does not use it');
is(as_role($owner, q{SELECT count(*) FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace;
		DROP SCHEMA syncstate}, 'planted'), '0', 'and left nothing in it');

# Objects that a script might pick up by their names, with the script's superuser.
is(as_role($owner, q{
		CREATE TABLE public.loot (as_whom name);
		CREATE FUNCTION public.loot() RETURNS bool LANGUAGE plpgsql AS $$
			BEGIN INSERT INTO public.loot VALUES (current_user); RETURN true; END $$;
		CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT public.loot(); SELECT pg_catalog.now()$$;
		CREATE FUNCTION public.isfinite(timestamptz) RETURNS bool LANGUAGE sql AS $$SELECT public.loot()$$;
		CREATE FUNCTION public.format(text, regrole) RETURNS text LANGUAGE sql AS $$SELECT public.loot()::text$$;
		CREATE FUNCTION public.equal(name, text) RETURNS bool LANGUAGE sql AS $$SELECT public.loot()$$;
		CREATE OPERATOR public.= (FUNCTION = public.equal, LEFTARG = name, RIGHTARG = text);
		CREATE VIEW public.pg_roles AS SELECT 'postgres'::name AS rolname WHERE public.loot();
		CREATE TEMP VIEW pg_roles AS SELECT 'postgres'::name AS rolname WHERE public.loot();
		CREATE TYPE pg_temp.uuid AS (x text);
		SET search_path = pg_temp, public, pg_catalog;
		CREATE EXTENSION syncstate;
		RESET search_path;
		SELECT * FROM public.loot;
		DROP EXTENSION syncstate}, 'planted'), '', 'nor anything else that was planted');

### going again

is(as_role($owner, 'DROP EXTENSION syncstate CASCADE; DROP TABLE public.users'), '', 'the owner drops it');
is(as_role($owner, 'CREATE EXTENSION syncstate; SELECT count(*) FROM syncstate.sync_state'), '0', 'and installs it again');

$node->stop;
done_testing();
