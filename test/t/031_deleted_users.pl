# Rows of deleted users go with them: watch_users() puts a trigger on the
# application's table of users, which belongs to others.

use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;

# Run as a role; returns what came, or the SQLSTATE.
sub as
{
	my ($role, $sql, $database) = @_;
	my $become = $role eq 'superuser' ? 'RESET ROLE' : "SET ROLE $role";
	my ($status, $out, $err) =
	  $node->psql($database // 'postgres', "$become; $sql", on_error_stop => 1, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $status == 0 ? $out : $err =~ /ERROR:\s+(\w{5})/ ? $1 : "no SQLSTATE: $err";
}

# How many rows are left, and of how many users.
sub left
{
	my ($database) = @_;
	return $node->safe_psql($database // 'postgres', 'SELECT count(*), count(DISTINCT user_id) FROM syncstate.sync_state');
}

# A table of users as a platform has it: another schema, another owner; the
# service that deletes users knows nothing of syncstate.
$node->safe_psql('postgres', q{
	CREATE ROLE auth_admin;
	CREATE ROLE auth_api;
	CREATE ROLE site;
	CREATE EXTENSION syncstate;
	ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
	CREATE SCHEMA auth AUTHORIZATION auth_admin;
	SET ROLE auth_admin;
	CREATE TABLE auth.tenants (tenant integer PRIMARY KEY);
	CREATE TABLE auth.users (id uuid PRIMARY KEY, email text, tenant integer REFERENCES auth.tenants ON DELETE CASCADE, born date);
	GRANT USAGE ON SCHEMA auth TO auth_api, site;
	GRANT SELECT, DELETE ON auth.tenants, auth.users TO auth_api;
	GRANT TRIGGER ON auth.users TO site;
	RESET ROLE;
	CREATE FUNCTION public.u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
		RETURN ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;
	CREATE FUNCTION public.fill(users integer) RETURNS void LANGUAGE sql
	BEGIN ATOMIC
		INSERT INTO auth.tenants SELECT i FROM generate_series(0, 9) AS i ON CONFLICT DO NOTHING;
		INSERT INTO auth.users SELECT public.u(i), i || '@example.com', i % 10 FROM generate_series(1, users) AS i
			ON CONFLICT DO NOTHING;
		INSERT INTO syncstate.sync_state (user_id, source) SELECT id, 'google_calendar' FROM auth.users ON CONFLICT DO NOTHING;
		INSERT INTO syncstate.sync_state (user_id, source, resource) SELECT id, 'google_tasks', 'list' FROM auth.users
			WHERE tenant = 1 ON CONFLICT DO NOTHING;
	END;
});
$node->safe_psql('postgres', 'SELECT public.fill(100)');
is(left(), '110|100', 'users have rows');

# ------------------------------------------------------- who may attach it

my $watch = q{SELECT syncstate.watch_users('auth.users')};
my $create = q{CREATE TRIGGER mine AFTER DELETE ON auth.users REFERENCING OLD TABLE AS deleted
	FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users('id')};
foreach my $role (qw(auth_admin auth_api site))
{
	is(as($role, $watch), '42501', "$role may not watch users");
	is(as($role, $create), '42501', "$role may not make the trigger");
}
$node->safe_psql('postgres', 'GRANT USAGE ON SCHEMA syncstate TO auth_admin, site');
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION syncstate.watch_users TO auth_admin, site');
is(as('auth_admin', $watch), '42501', 'nor with EXECUTE on watch_users() alone');
is(as('auth_admin', $create), '42501', 'nor by hand');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'auth.users'::regclass AND NOT tgisinternal}),
	'0', 'there is no trigger');

# Who has both, and the right to make triggers on the table, may.
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION syncstate.forget_users TO site');
is(as('site', $watch), '', 'an administrator may watch users');
is(as('site', $watch), '', 'and do so again');
is($node->safe_psql('postgres', q{SELECT tgname FROM pg_trigger WHERE tgrelid = 'auth.users'::regclass AND NOT tgisinternal}),
	'syncstate_forget_users', 'there is one trigger');

# ------------------------------------------------------- what is no column

foreach my $case (
	[ q{'auth.users', 'born'},         '22023', 'a column of another type' ],
	[ q{'auth.users', 'nobody'},       '22023', 'no such column' ],
	[ q{'auth.users', 'ctid'},         '22023', 'a system column' ],
	[ q{'auth.users', ''},             '22023', 'an empty name' ],
	[ q{'auth.users', NULL},           '22023', 'no column' ],
	[ q{NULL},                         '22023', 'no table' ],
	[ q{'auth.nobody'},                '42P01', 'no such table' ],
	[ q{'auth.v'},                     '42809', 'a view' ],
	[ q{'auth.users_dropped', 'id'},   '22023', 'a dropped column' ])
{
	my ($arguments, $sqlstate, $what) = @$case;
	$node->safe_psql('postgres', q{
		CREATE OR REPLACE VIEW auth.v AS SELECT id FROM auth.users;
		DROP TABLE IF EXISTS auth.users_dropped;
		CREATE TABLE auth.users_dropped (id uuid, x int);
		ALTER TABLE auth.users_dropped DROP COLUMN id});
	is(as('superuser', "SELECT syncstate.watch_users($arguments)"), $sqlstate, $what);
}
$node->safe_psql('postgres', 'DROP VIEW auth.v; DROP TABLE auth.users_dropped');

# --------------------------------------------------------------- deletions

is(as('auth_api', 'SELECT count(*) FROM syncstate.sync_state'), '42501', 'who deletes users cannot see their rows');
is(as('auth_api', 'DELETE FROM auth.users WHERE id = public.u(1)'), '', 'a user is deleted');
is(left(), '108|99', 'and so are the rows');
is(as('auth_api', 'DELETE FROM auth.users WHERE id = public.u(1)'), '', 'deleting nobody');
is(left(), '108|99', 'deletes nothing');
is(as('auth_api', 'BEGIN; DELETE FROM auth.users; ROLLBACK'), '', 'a deletion is rolled back');
is(left(), '108|99', 'and all is there');
is(as('auth_api', 'DELETE FROM auth.tenants WHERE tenant = 1'), '', 'a tenant is deleted with its users');
is(left(), '90|90', 'and their rows');
is($node->safe_psql('postgres', q{SELECT count(*) FROM auth.users}), '90', 'the users left are those with rows');

# A worker that comes too late.
$node->safe_psql('postgres', q{
	SELECT syncstate.mark_sync_started(public.u(i), 'google_calendar') FROM generate_series(2, 4) AS i});
is(as('auth_api', 'DELETE FROM auth.users WHERE id = public.u(3)'), '', 'a user is deleted while a worker syncs');
is(as('superuser', q{SELECT syncstate.mark_sync_completed(public.u(3), 'google_calendar', sync_token => 'x', lease => 1)}),
	'PT404', 'its report finds no row');
is(as('superuser', q{SELECT syncstate.checkpoint_sync(public.u(3), 'google_calendar', 1, 'p')}), 'PT404', 'nor its checkpoint');
is(as('superuser', q{SELECT right(user_id::text, 1) FROM syncstate.report_syncs((SELECT jsonb_agg(jsonb_build_object(
	'user_id', public.u(i), 'source', 'google_calendar', 'lease', 1, 'outcome', 'completed') ORDER BY i) FROM generate_series(2, 4) AS i))}),
	"2\n4", 'in a batch it is left out, and the others are applied');
is($node->safe_psql('postgres', q{SELECT syncstate.get_sync_state(public.u(3), 'google_calendar') IS NULL}), 't', 'the row stays gone');

# Many in one statement are one statement here, too.
$node->safe_psql('postgres', q{
	SELECT public.fill(100000);
	CREATE TABLE public.statements (rows bigint);
	CREATE FUNCTION public.log_deletes() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.statements SELECT count(*) FROM gone;
		RETURN NULL;
	END $$;
	CREATE TRIGGER log_deletes AFTER DELETE ON syncstate.sync_state REFERENCING OLD TABLE AS gone
		FOR EACH STATEMENT EXECUTE FUNCTION public.log_deletes()});
is(left(), '110000|100000', '100,000 users have rows');
$node->safe_psql('postgres', q{INSERT INTO syncstate.sync_state (user_id, source) VALUES ('ffffffff-0000-4000-8000-000000000000', 'google_gmail')});
is(as('auth_api', 'DELETE FROM auth.users'), '', 'they are deleted by one statement');
is(left(), '1|1', 'and their rows, but no other');
is($node->safe_psql('postgres', 'SELECT * FROM public.statements'), '110000', 'by one statement');
$node->safe_psql('postgres', 'DROP TRIGGER log_deletes ON syncstate.sync_state');

# ----------------------------------------- what the table's owner may change

# The owner changes the column's type to one of their own, whose code would run
# as the owner of forget_users(), a superuser, if anything compared it.
$node->safe_psql('postgres', q{
	SELECT public.fill(10);
	DROP FUNCTION public.fill; -- it depends on the column's type
	CREATE TABLE public.trace (who text, is_superuser text);
	GRANT INSERT ON public.trace TO PUBLIC;
	SET ROLE auth_admin;
	CREATE FUNCTION auth.code() RETURNS void LANGUAGE sql AS
		$$INSERT INTO public.trace VALUES (current_user, current_setting('is_superuser'))$$;
	CREATE TYPE auth.evil AS ENUM ('00000000-0000-4000-8000-000000000002');
	CREATE FUNCTION auth.evil_to_uuid(auth.evil) RETURNS uuid LANGUAGE sql AS
		$$SELECT auth.code(); SELECT $1::text::uuid$$;
	CREATE CAST (auth.evil AS uuid) WITH FUNCTION auth.evil_to_uuid AS IMPLICIT;
	CREATE FUNCTION auth.equal(uuid, auth.evil) RETURNS boolean LANGUAGE sql AS $$SELECT auth.code(); SELECT true$$;
	CREATE OPERATOR auth.= (LEFTARG = uuid, RIGHTARG = auth.evil, FUNCTION = auth.equal);
	CREATE FUNCTION auth.check_code(uuid) RETURNS boolean LANGUAGE sql AS $$SELECT auth.code(); SELECT true$$;
	CREATE DOMAIN auth.evil_domain AS uuid CHECK (auth.check_code(VALUE));
});
my @changes = (
	'ALTER COLUMN id TYPE auth.evil USING NULL',
	'ALTER COLUMN id TYPE auth.evil_domain',
	'ALTER COLUMN id TYPE date USING NULL',
	'RENAME COLUMN id TO other_id',
	'DROP COLUMN id');
foreach my $change (@changes)
{
	is(as('auth_admin', qq{
		BEGIN;
		ALTER TABLE auth.users DROP CONSTRAINT users_pkey;
		ALTER TABLE auth.users ALTER COLUMN id DROP NOT NULL;
		ALTER TABLE auth.users $change;
		DELETE FROM auth.users WHERE tenant = 2;
		COMMIT}), '42703', "after $change a deletion fails");
}
is(left(), '12|11', 'no row is gone');
is($node->safe_psql('postgres', q{SELECT count(*) FROM public.trace WHERE who <> 'auth_admin' OR is_superuser = 'on'}),
	'0', 'no code of theirs has run as the owner of the function');
is(as('auth_admin', q{
	CREATE FUNCTION auth.f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
	CREATE OR REPLACE TRIGGER syncstate_forget_users AFTER DELETE ON auth.users REFERENCING OLD TABLE AS deleted
		FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users('tenant')}), '42501', 'nor can they change the trigger');
is(as('auth_admin', 'SET search_path = auth, pg_catalog; DELETE FROM auth.users WHERE id = public.u(2)'), '',
	'whatever path a deletion has');
is(left(), '11|10', 'it deletes the rows of the user');

# ------------------------------------------------------- as a function only

$node->safe_psql('postgres', 'CREATE TABLE public.other (id uuid, n integer)');
is(as('superuser', 'SELECT syncstate.forget_users()'), '0A000', 'forget_users() is a trigger');
foreach my $case (
	[ 'AFTER DELETE ON public.other FOR EACH ROW',          q{'id'},       'for each row' ],
	[ 'AFTER INSERT OR DELETE ON public.other FOR EACH STATEMENT', q{'id'}, 'of an INSERT' ],
	[ 'AFTER DELETE ON public.other FOR EACH STATEMENT',    '',            'without a column' ],
	[ 'AFTER DELETE ON public.other FOR EACH STATEMENT',    q{'id', 'id'}, 'with two columns' ])
{
	my ($when, $arguments, $what) = @$case;
	is(as('superuser', qq{
		BEGIN;
		CREATE TRIGGER t $when EXECUTE FUNCTION syncstate.forget_users($arguments);
		INSERT INTO public.other VALUES (public.u(3));
		DELETE FROM public.other;
		COMMIT}), '39P01', "a trigger $what is refused");
}
is(left(), '11|10', 'no row is gone');

# --------------------------------------------------------- names, partitions

$node->safe_psql('postgres', q{
	CREATE SCHEMA "My App";
	CREATE TABLE "My App"."Users; --" ("User ""ID""" uuid) PARTITION BY HASH ("User ""ID""");
	CREATE TABLE "My App".p0 PARTITION OF "My App"."Users; --" FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE "My App".p1 PARTITION OF "My App"."Users; --" FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	INSERT INTO "My App"."Users; --" SELECT public.u(i) FROM generate_series(3, 6) AS i;
	SELECT syncstate.watch_users('"My App"."Users; --"', 'User "ID"');
	DELETE FROM "My App"."Users; --"});
is(left(), '7|6', 'a partitioned table, and names that need quotes');

# ------------------------------------------------------- ids that are no uuids

foreach my $type ('text', 'varchar(100)', 'integer', 'bigint')
{
	my ($gone, $stays) = $type =~ /int/ ? (7, -4000000) : ('user_2NNEqL2nrIRdJ194ndJqAHwEfxC', "it's \\ odd");
	my $before = left();
	$node->safe_psql('postgres', qq{
		CREATE TABLE public.people (id $type, name text);
		INSERT INTO public.people VALUES (\$\$$gone\$\$, 'goes'), (\$\$$stays\$\$, 'stays'), (NULL, 'goes');
		INSERT INTO syncstate.sync_state (user_id, source)
		SELECT syncstate.user_id_of(p.id::text), s FROM public.people AS p, unnest('{google_tasks,google_gmail}'::syncstate.sync_source[]) AS s
		WHERE p.id IS NOT NULL;
		SELECT syncstate.watch_users('public.people');
		DELETE FROM public.people WHERE name = 'goes'});
	is($node->safe_psql('postgres', qq{SELECT user_id = syncstate.user_id_of(\$\$$stays\$\$), count(*) FROM syncstate.sync_state
			WHERE user_id IN (syncstate.user_id_of(\$\$$gone\$\$), syncstate.user_id_of(\$\$$stays\$\$)) GROUP BY 1}),
		't|2', "$type: the rows of who was deleted are gone, and no others");
	$node->safe_psql('postgres', 'DELETE FROM public.people; DROP TABLE public.people');
	is(left(), $before, '... and then the others');
}

# ---------------------------------------------------------- dump and restore

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->safe_psql('postgres', 'DROP SCHEMA "My App" CASCADE; DROP TABLE public.other');
$node->command_ok([ 'pg_dump', '-F', 'c', '-f', $dump, '-d', 'postgres' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored TEMPLATE template0');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', $dump ], 'pg_restore');
is(left('restored'), '7|6', 'the rows are there');
is($node->safe_psql('restored', q{SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'auth.users'::regclass AND NOT tgisinternal}),
	'syncstate_forget_users|O', 'and the trigger');
is(as('auth_api', 'DELETE FROM auth.users WHERE id = public.u(7)', 'restored'), '', 'a user is deleted');
is(left('restored'), '6|5', 'and the rows with them');
is(left(), '7|6', 'and not those of the original');

# The application's table outlives the extension.
is(as('superuser', 'DROP EXTENSION syncstate', 'restored'), '2BP01', 'the extension is in use');
is(as('superuser', 'DROP EXTENSION syncstate CASCADE', 'restored'), '', 'dropped with the trigger');
is(as('auth_api', 'DELETE FROM auth.users WHERE id = public.u(8)', 'restored'), '', 'users can be deleted as before');

$node->stop;
done_testing();
