# Every way to dump that pg_dump knows and every way to restore brings back the
# same: rows in every state, events and runs of every kind, push channels, sources
# of one's own, settings, grants, and what the application made on top.  What takes a step more is told in doc/backup.md,
# and is done so here; what does not work says so and
# leaves nothing behind.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $here = "$FindBin::RealBin/../sql";
my $schema = slurp_file("$here/schema.sql");
my $states = slurp_file("$here/states.sql");
my $contents = slurp_file("$here/contents.sql");

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'log_statement = none');
$node->start;
my $dir = PostgreSQL::Test::Utils::tempdir();
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
my ($owner, $user) = qw(regress_syncstate_owner regress_syncstate_user);

sub run_program
{
	my (@command) = @_;
	my $err;
	local %ENV = $node->_get_env;
	my $ok = IPC::Run::run(\@command, '>', '/dev/null', '2>', \$err);
	return ($ok, $err);
}

sub works
{
	my ($name, @command) = @_;
	my ($ok, $err) = run_program(@command);
	ok($ok, $name) or diag(substr($err, 0, 1000));
	return;
}

sub dump_to
{
	my ($file, @options) = @_;
	works(join(' ', 'pg_dump', @options), 'pg_dump', '--no-sync', '-f', "$dir/$file", @options, '-d', 'app');
	return;
}

sub contents
{
	my ($database) = @_;
	return $node->safe_psql($database, "SET search_path = public; SET timezone = 'UTC'; $contents");
}

sub schema
{
	my ($database) = @_;
	return $node->safe_psql($database, "SET search_path = ''; SET timezone = 'UTC'; $schema");
}

sub database
{
	my ($name) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE template0 OWNER $owner");
	return $name;
}

$node->safe_psql('postgres', qq{
	CREATE ROLE regress_syncstate_worker LOGIN;
	CREATE ROLE $user LOGIN;
	CREATE ROLE $owner LOGIN});
database('app');
$node->safe_psql('app', "SET ROLE $owner; CREATE EXTENSION syncstate");
$node->safe_psql('app', "SET ROLE $owner; SELECT syncstate.register_sync_source('$_')") foreach qw(custom_crm another_one);
$node->safe_psql('app', "SET search_path = public; $states");
$node->safe_psql('app', qq{ALTER TABLE public.users OWNER TO $owner;
	ALTER FUNCTION public.id(int) OWNER TO $owner; ALTER FUNCTION public.cursor_of(syncstate.sync_state) OWNER TO $owner});
my $had = contents('app');
my $was = schema('app');

# The test is no test without them.
is($node->safe_psql('app', q{SELECT (SELECT string_agg(DISTINCT event, ' ' ORDER BY event) FROM syncstate.sync_event),
		(SELECT string_agg(DISTINCT reason, ' ' ORDER BY reason) FROM syncstate.sync_event),
		(SELECT string_agg(DISTINCT outcome, ' ' ORDER BY outcome) FROM syncstate.sync_run),
		(SELECT string_agg(DISTINCT state, ' ' ORDER BY state) FROM syncstate.sync_channel)}),
	'cursor_lost failing first_sync gone parked recovered source_limited source_resumed sweep_withheld|auth failures paused rate_limited token_loop|completed failed lost rate_limited released revoked|active opening retiring unsupported',
	'there are events, runs and channels of every kind');

sub same_contents
{
	my ($database) = @_;
	ok(contents($database) eq $had, "$database: the same rows and settings");
	return;
}

# Where a superuser restored into an empty database, the extension is theirs,
# and so is what its owner may do, also as installed_objects() has it; and labels
# are in the order of their names.  Not so where the owner made the extension and
# the labels first.
sub same
{
	my ($database, $into_empty, $triggers) = @_;
	my ($was, $is) = ($was, schema($database));
	s/^(trigger .*) enabled [AO] /$1 /mg foreach $triggers ? ($was, $is) : ();
	my %was = map { $_ => 1 } split(/\n/, $was);
	my %is = map { $_ => 1 } split(/\n/, $is);
	my @difference = ((map { "- $_" } sort grep { !$is{$_} } keys %was), (map { "+ $_" } sort grep { !$was{$_} } keys %is));
	@difference = grep { !/^. (extension .* owner |function syncstate\.installed_objects\(\) |label (custom_crm|another_one) |(initial )?privilege on .* to (\Q$owner\E|\Q$superuser\E) by )/ } @difference
	  if $into_empty;
	is(join("\n", @difference), '', "$database: the same schema and grants");
	is($node->safe_psql($database, 'SELECT object, problem FROM syncstate.check_installation()'),
		'function syncstate.next_sync_due(syncstate.sync_source)|grants EXECUTE to PUBLIC', "$database: as installed, but for a grant of the site's")
	  unless $triggers;
	same_contents($database);
	return;
}

sub psql_file
{
	my ($database, $file, @options) = @_;
	works("$database: psql", 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/$file", @options, '-d', $database);
	return;
}

# What doc/backup.md says to do where labels cannot come with the rows, done by
# the owner.
sub register_first
{
	my ($database) = @_;
	foreach my $sql ('CREATE EXTENSION IF NOT EXISTS syncstate',
		(map { "SELECT syncstate.register_sync_source('$_')" } qw(custom_crm another_one)))
	{
		$node->safe_psql($database, "SET client_min_messages = error; SET ROLE $owner; $sql");
	}
	return;
}

### one text

foreach my $options (
	[ 'inserts', '--inserts' ],
	[ 'column_inserts', '--column-inserts', '--quote-all-identifiers' ],
	[ 'many_inserts', '--rows-per-insert=7', '--on-conflict-do-nothing', '--disable-dollar-quoting' ])
{
	my ($name, @options) = @$options;
	dump_to($name, @options);
	psql_file(database($name), $name);
	same($name, 1);
}

# Each object is made in the name of its owner, who must own the extension to
# use it.
dump_to('sessions', '--use-set-session-authorization', '--serializable-deferrable');
register_first(database('sessions'));
psql_file('sessions', 'sessions');
same('sessions');

# Over a database in use.
dump_to('clean', '--clean', '--if-exists');
database('clean');
psql_file('clean', 'inserts');
$node->safe_psql('clean', q{DELETE FROM syncstate.sync_state WHERE source = 'google_tasks';
	UPDATE syncstate.sync_state SET resource = resource WHERE false;
	SELECT syncstate.set_sync_policy('google_gmail', '{"jitter": 0}')});
psql_file('clean', 'clean');
same('clean', 1);

### the way to a newer commit, as doc/install.md has it

my ($upgrade) = slurp_file("$FindBin::RealBin/../../doc/install.md") =~ /^## Upgrade\n.*?^```sh\n(.*?)^```$/ms;
my ($tables) = $contents =~ /^(SELECT s FROM .*? ORDER BY label;)$/ms;
sub rows_of { return $node->safe_psql('mydb', "SET timezone = 'UTC'; $tables") }
$node->safe_psql('postgres', 'CREATE DATABASE mydb TEMPLATE app');
like((run_program('bash', '-ec', "cd $dir\n$upgrade"))[1], qr/cannot drop extension syncstate because other objects depend on it/,
	'an upgrade stops where something depends on the extension');
$node->safe_psql('mydb', q{DROP TRIGGER syncstate_forget_users ON public.users; DROP VIEW public.late; DROP FUNCTION public.cursor_of});
my $carried = rows_of();
works('and goes through where nothing does', 'bash', '-ec', "cd $dir\n$upgrade");
ok(rows_of() eq $carried, 'with the rows of all tables');
$node->safe_psql('postgres', 'DROP DATABASE mydb');

### archives

dump_to('tar', '-Ft');
works('tar: pg_restore', 'pg_restore', '--exit-on-error', '-d', database('tar'), "$dir/tar");
same('tar', 1);

# In parallel at both ends, with the labels registered first.
dump_to('jobs', '-Fd', '-j', '3', '-Z', '1');
register_first(database('jobs'));
works('jobs: pg_restore -j', 'pg_restore', '--exit-on-error', '-j', '3', '-d', 'jobs', "$dir/jobs");
same('jobs');

# In one transaction, likewise.
dump_to('archive', '-Fc');
register_first(database('single'));
works('single: pg_restore -1', 'pg_restore', '-1', '-d', 'single', "$dir/archive");
same('single');

# By sections.
database('sections');
foreach my $section (qw(pre-data data post-data))
{
	works("sections: $section", 'pg_restore', '--exit-on-error', '--section', $section, '-d', 'sections', "$dir/archive");
}
same('sections', 1);

### schema and data apart

dump_to('schema_only', '--schema-only');
dump_to('data_only', '--data-only');
psql_file(database('apart'), 'schema_only');
is($node->safe_psql('apart', 'SELECT (SELECT count(*) FROM syncstate.sync_state), (SELECT count(*) FROM syncstate.sync_policy),
		(SELECT count(*) FROM syncstate.custom_source), (SELECT count(*) FROM syncstate.sync_event), (SELECT count(*) FROM syncstate.sync_run), (SELECT count(*) FROM syncstate.sync_channel)'),
	'0|0|0|0|0|0', 'a schema has no rows');
is($node->safe_psql('apart', 'SELECT enum_range(NULL::syncstate.sync_source)'),
	'{google_calendar,google_tasks,google_gmail,google_contacts}', 'and no labels, which are data');
psql_file('apart', 'data_only');
same('apart', 1);

# The same data a second time are refused, and nothing changes.
my ($ok, $err) = run_program('psql', '-X', '-q', '-1', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/data_only", '-d', 'apart');
ok(!$ok && $err =~ /duplicate key/, 'rows that are there already are refused') or diag($err);
same_contents('apart');

# With triggers disabled, no label comes by itself, and no row after it.
dump_to('no_triggers', '--data-only', '--disable-triggers');
psql_file(database('no_triggers'), 'schema_only');
($ok, $err) = run_program('psql', '-X', '-q', '-1', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/no_triggers", '-d', 'no_triggers');
ok(!$ok && $err =~ /invalid input value for enum/, 'with triggers disabled, labels are missing') or diag($err);
is($node->safe_psql('no_triggers', 'SELECT count(*) FROM syncstate.sync_state'), '0', 'and nothing is restored');
foreach my $label (qw(custom_crm another_one))
{
	$node->safe_psql('no_triggers', "SELECT syncstate.register_sync_source('$label')");
}
$node->safe_psql('no_triggers', 'ALTER TABLE syncstate.custom_source DISABLE TRIGGER ALL; DELETE FROM syncstate.custom_source');
psql_file('no_triggers', 'no_triggers');
# Such a dump ends with ENABLE TRIGGER ALL, so no trigger is ALWAYS any more.
same('no_triggers', 1, 1);

# Who owned the extension has lost it, where a superuser restored.
my $may = qq{SELECT has_function_privilege('$owner', 'syncstate.claim_due_syncs(syncstate.sync_source, integer, interval, text)', 'EXECUTE')};
is(join(' ', map { $node->safe_psql($_, $may) } qw(app tar jobs)), 't f t', 'the owner of the extension is who made it');

### parts

# A table alone is data without the extension; the extension alone has no data.
dump_to('table', '-t', 'syncstate.sync_state');
unlike(slurp_file("$dir/table"), qr/CREATE EXTENSION/, 'one table: without the extension');
database('one_table');
register_first('one_table');
psql_file('one_table', 'table');
my $rows = 'SELECT count(*), md5(string_agg(s::text, chr(10) ORDER BY user_id, source, resource)) FROM syncstate.sync_state AS s';
is($node->safe_psql('one_table', "SET timezone = 'UTC'; $rows"), $node->safe_psql('app', "SET timezone = 'UTC'; $rows"), 'one table: the same rows');
is($node->safe_psql('one_table', 'SELECT (SELECT count(*) FROM syncstate.sync_event), (SELECT count(*) FROM syncstate.sync_run)'),
	'0|0', 'rows that are restored make no events and end no runs');

### who dumps, who restores

# The owner of the database, who is no superuser and passes no row security.
($ok, $err) = run_program('pg_dump', '-U', $owner, '-f', "$dir/refused", '-d', 'app');
ok(!$ok && $err =~ /row-level security/, 'an owner who would not see all rows is told so') or diag($err);
($ok, $err) = run_program('pg_dump', '-U', $user, '-f', "$dir/refused", '-d', 'app');
ok(!$ok && $err =~ /permission denied/, 'a user cannot dump') or diag($err);
($ok, $err) = run_program('pg_dump', '-U', $user, '--enable-row-security', '-t', 'syncstate.sync_state', '-f', "$dir/refused", '-d', 'app');
ok(!$ok && $err =~ /permission denied/, 'not even what they see, which has no cursors') or diag($err);

dump_to('by_owner', '-U', $owner, '--enable-row-security', '--inserts', '--no-owner');
psql_file(database('by_owner'), 'by_owner', '-U', $owner);
same_contents('by_owner');
is($node->safe_psql('by_owner', qq{SELECT extowner::regrole FROM pg_extension WHERE extname = 'syncstate'}), $owner, 'it is the extension of who restored');
is($node->safe_psql('by_owner', q{SELECT has_function_privilege('regress_syncstate_worker', 'syncstate.report_syncs(jsonb)', 'EXECUTE'),
		has_function_privilege('regress_syncstate_worker', 'syncstate.disconnect_sync(uuid, syncstate.sync_source, text, text)', 'EXECUTE'),
		has_column_privilege('regress_syncstate_user', 'syncstate.sync_state', 'sync_token', 'SELECT'),
		has_column_privilege('regress_syncstate_user', 'syncstate.sync_state', 'sync_interval', 'UPDATE')}),
	't|f|f|t', 'and the grants came along');

# COPY is not for them, whoever dumped.
($ok, $err) = run_program('psql', '-X', '-q', '-U', $owner, '-v', 'ON_ERROR_STOP=1', '-f', "$dir/data_only", '-d', database('by_copy'));
ok(!$ok, 'without the extension, data only cannot be restored');
$node->safe_psql('by_copy', "SET ROLE $owner; CREATE EXTENSION syncstate");
($ok, $err) = run_program('pg_restore', '-U', $owner, '-1', '--data-only', '-t', 'sync_policy', '-d', 'by_copy', "$dir/archive");
ok(!$ok && $err =~ /row-level security/, 'an owner cannot COPY into a table with row security') or diag($err);

### and it works

is($node->safe_psql('jobs', q{SET syncstate.clock = '2021-02-13 05:00:00+00';
		SELECT string_agg(resource, ', ' ORDER BY resource COLLATE "C") FROM syncstate.claim_due_syncs(max_rows => 100)
		WHERE length(resource) BETWEEN 1 AND 100 AND resource !~ '\t'}),
	'failed, failed for good, failing, history id, inserted, lease over, lost its cursor, new and requested, open, own interval, refused, renewed, sync token, updated min',
	'what was due or requested is handed out, and nothing else');
my $first = "SET timezone = 'UTC'; SELECT e FROM syncstate.sync_event AS e ORDER BY at, id LIMIT 5";
is($node->safe_psql('jobs', "SET timezone = 'UTC'; SELECT syncstate.take_sync_events(5)"), $node->safe_psql('app', $first), 'the oldest events are taken');
is($node->safe_psql('jobs', q{DELETE FROM users WHERE id IN (id(5), id(6));
		SELECT count(*) FROM syncstate.sync_state WHERE user_id IN (id(5), id(6));
		SELECT count(*) FROM syncstate.sync_event WHERE user_id IN (id(5), id(6));
		SELECT count(*) FROM syncstate.sync_run WHERE user_id IN (id(5), id(6))}),
	"0\n0\n0", 'deleted users are forgotten');
is($node->safe_psql('jobs', 'SELECT label FROM syncstate.custom_source ORDER BY label'), "another_one\ncustom_crm", 'the labels are known as registered');

$node->stop;
done_testing();
