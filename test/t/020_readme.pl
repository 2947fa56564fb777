# The README is true: its SQL runs and prints what it shows, its reference is
# that of the catalogs, its error codes are those that come, its links lead
# somewhere, and its recipe for a parallel restore works.
#
# Every ```sql block is run, in order, in one psql session.  A ```text block
# right behind it is what psql must print; without one, there must be no error
# and no warning.  README_ACCEPT=1 writes into README.md what psql did print.

use strict;
use warnings FATAL => 'all';

use IPC::Run qw(run);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $readme = slurp_file('README.md');

# Whatever the machine's: times, formats and messages as in the README.
$ENV{PGTZ} = 'UTC';
$ENV{PGDATESTYLE} = 'ISO';
$ENV{PGCLIENTENCODING} = 'UTF8';
$ENV{PGOPTIONS} = '-c IntervalStyle=postgres -c lc_messages=C -c client_min_messages=notice';

my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
$node->start;
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(readme errors new);

# Runs a script in one session; returns all that psql prints, errors in place.
sub session
{
	my ($dbname, $script) = @_;
	my $out = '';

	run [ 'psql', '-X', '-q', '-d', $dbname ], '<', \$script, '>&', \$out;
	return $out;
}

# Rows of a query, as lists of columns.
sub rows
{
	my ($query) = @_;

	return map { [ split /\x1f/, $_, -1 ] } split /\x1e/,
	  $node->safe_psql('readme', "SET search_path = syncstate; $query",
		extra_params => [ '-F', "\x1f", '-R', "\x1e" ]);
}

# What does not matter: space at the ends of lines and of all; process ids.
sub tidy
{
	my ($text) = @_;

	$text =~ s/[ \t]+$//mg;
	$text =~ s/^\n+//;
	$text =~ s/\n+\z/\n/;
	$text =~ s/(with PID) \d+/$1 12345/g;
	return $text;
}

# The part of the README under a heading, up to the next one of its level.
sub section
{
	my ($heading) = @_;
	my ($level) = $heading =~ /^(#+)/;

	$readme =~ /^\Q$heading\E\n(.*?)(?=^#{1,${\ length $level}} |\z)/ms
	  or die "README has no section \"$heading\"";
	return $1;
}

# The rows of the tables in a text, as lists of cells without backquotes.
sub cells
{
	my ($text) = @_;
	my @rows = map { [ map { s/^\s+|\s+$//gr } split /\|/, s/^\||\|$//gr ] }
	  grep { /^\|/ } split /\n/, $text;
	my @body;

	foreach my $i (0 .. $#rows)
	{
		next if $rows[$i][0] =~ /^-+$/;
		next if $i < $#rows && $rows[ $i + 1 ][0] =~ /^-+$/;    # a heading
		push @body, [ map { s/`//gr } @{ $rows[$i] } ];
	}
	return @body;
}

# The SQL.
my @blocks;
while ($readme =~ /^```sql\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?/msg)
{
	push @blocks,
	  {
		sql => $1,
		expected => $2,
		at => $-[2],
		length => defined $2 ? length $2 : 0,
		line => 1 + (substr($readme, 0, $-[1]) =~ tr/\n//),
	  };
}
cmp_ok(scalar @blocks, '>', 30, 'README has SQL to run');

my $mark = '==== end of block ====';
my @printed = split /^\Q$mark\E\n/m,
  session('readme', join '', map { "$_->{sql}\\echo '$mark'\n" } @blocks);
is(scalar @printed, scalar @blocks, 'all blocks were run');

foreach my $i (0 .. $#blocks)
{
	my $block = $blocks[$i];
	my $got = $block->{got} = tidy($printed[$i] // '');

	if (defined $block->{expected})
	{
		is($got, tidy($block->{expected}), "output of the SQL at line $block->{line}");
	}
	else
	{
		unlike($got, qr/^(ERROR|FATAL|PANIC|WARNING|psql:|\\|invalid)/m,
			"no error in the SQL at line $block->{line}");
	}
}

if ($ENV{README_ACCEPT})
{
	my $accepted = $readme;

	substr($accepted, $_->{at}, $_->{length}) = $_->{got}
	  foreach reverse grep { defined $_->{expected} } @blocks;
	open my $fh, '>', 'README.md' or die "README.md: $!";
	print $fh $accepted;
	close $fh;
}

# The reference: functions.
my @functions = grep { $_->[0] =~ /\(/ && @$_ == 3 } cells(section('## Reference'));
my %errors_of;
my (@documented, @real);
foreach my $function (@functions)
{
	my ($signature, $description, $errors) = @$function;
	my ($name) = $signature =~ /^(\w+)/;

	push @documented, $signature;
	$errors_of{$name} = [ $errors eq 'none' ? () : split /, /, $errors ];
}
my %comment;
foreach my $function (rows(q{
	SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ') -> ' || pg_get_function_result(p.oid),
		obj_description(p.oid, 'pg_proc')
	FROM pg_proc AS p WHERE p.pronamespace = 'syncstate'::regnamespace}))
{
	push @real, $function->[0];
	$comment{ $function->[0] } = $function->[1];
}
is_deeply([ sort @documented ], [ sort @real ], 'the reference has the functions of the catalogs');
foreach my $function (@functions)
{
	my $start = ($comment{ $function->[0] } // '') . '.';

	is(substr($function->[1], 0, length $start),
		$start, "description of $function->[0] begins like its COMMENT");
}

my $all_sql = join '', map { $_->{sql} } @blocks;
my %internal = map { $_->[0] => 1 } cells(section('### Internal functions'));
foreach my $signature (sort grep { !$internal{$_} } @real)
{
	my ($name) = $signature =~ /^(\w+)/;

	ok($all_sql =~ /\bsyncstate\.$name\(/, "$name() has an example");
}

# The reference: types, tables, views, settings.
is_deeply(
	[ cells(section('### Types')) ],
	[
		rows(q{SELECT t.typname, string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
			FROM pg_type AS t JOIN pg_enum AS e ON e.enumtypid = t.oid
			WHERE t.typnamespace = 'syncstate'::regnamespace AND e.enumlabel <> 'outlook_mail'
			GROUP BY t.typname ORDER BY t.typname})
	],
	'the reference has the types of the catalogs');

my @relations;
foreach my $heading ($readme =~ /^(### (?:Table|View) `\w+`)$/mg)
{
	my ($kind, $relation) = $heading =~ /(\w+) `(\w+)`/;
	my @columns = cells(section($heading));

	push @relations, $relation;
	is_deeply(
		[ map { [ @$_[ 0, 1 ] ] } @columns ],
		[
			rows(qq{SELECT a.attname, format_type(a.atttypid, a.atttypmod)
					|| CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
				FROM pg_attribute AS a
				WHERE a.attrelid = '$relation'::regclass AND a.attnum > 0 AND NOT a.attisdropped
				ORDER BY a.attnum})
		],
		"the reference has the columns of $relation");
	next unless $kind eq 'Table';
	is_deeply(
		[ map { $_->[2] } @columns ],
		[
			map { "$_->[0]." }
			  rows(qq{SELECT col_description(a.attrelid, a.attnum) FROM pg_attribute AS a
				WHERE a.attrelid = '$relation'::regclass AND a.attnum > 0 AND NOT a.attisdropped
				ORDER BY a.attnum})
		],
		"descriptions of the columns of $relation are their COMMENTs");
}
is_deeply(
	[ sort @relations ],
	[
		map { $_->[0] }
		  rows(q{SELECT relname FROM pg_class WHERE relnamespace = 'syncstate'::regnamespace
			AND relkind IN ('r', 'v') ORDER BY relname COLLATE "C"})
	],
	'the reference has the tables and views of the catalogs');

is_deeply(
	[ map { $_->[0] } cells(section('## Settings')) ],
	[
		map { $_->[0] }
		  rows(q{SELECT syncstate.sync_clock() \g /dev/null
			SELECT name FROM pg_settings WHERE name LIKE 'syncstate.%' ORDER BY name})
	],
	'the reference has the settings');

# Error codes: each one that a function is said to raise, it does raise.
my $user = "'00000000-0000-4000-8000-000000000001'";    # held under lease 1
my $none = "'00000000-0000-4000-8000-000000000002'";    # has no row
my $key = '"user_id": "00000000-0000-4000-8000-000000000001", "source": "google_tasks"';
my $report = qq{$key, "lease": 1, "outcome": "completed"};
my %provoke = (
	claim_due_syncs => { '22023' => 'claim_due_syncs(max_rows => 0)' },
	mark_sync_started => {
		'22023' => "mark_sync_started($user, 'google_tasks', '0')",
		PT409 => "mark_sync_started($user, 'google_tasks')",
	},
	report_syncs => {
		'22003' => qq{report_syncs('[{$report, "items_synced": 99999999999999999999}]')},
		'22007' => qq{report_syncs('[{$report, "updated_min": "x"}]')},
		'22008' => qq{report_syncs('[{$report, "updated_min": "2026-13-45"}]')},
		'22023' => q{report_syncs('{}')},
		'22P02' => q{report_syncs('[{"user_id": "x", "source": "google_tasks", "lease": 1, "outcome": "released"}]')},
	},
	update_sync_state => {
		'22003' => qq{update_sync_state($user, 'google_tasks', '{"failures": 99999999999}')},
		'22007' => qq{update_sync_state($user, 'google_tasks', '{"due_at": "x"}')},
		'22008' => qq{update_sync_state($user, 'google_tasks', '{"due_at": "2026-13-45"}')},
		'22023' => qq{update_sync_state($user, 'google_tasks', '{"lease": 7}')},
		'22P02' => qq{update_sync_state($user, 'google_tasks', '{"status": "x"}')},
	},
	get_users_needing_sync => { '22023' => q{get_users_needing_sync(NULL)} },
	get_sync_policy => { '22023' => 'get_sync_policy(NULL)' },
	set_sync_policy => {
		'22003' => q{set_sync_policy('google_tasks', '{"max_failures": 99999999999}')},
		'22007' => q{set_sync_policy('google_tasks', '{"sync_interval": "x"}')},
		'22008' => q{set_sync_policy('google_tasks', '{"paused_until": "2026-13-45"}')},
		'22023' => q{set_sync_policy('google_tasks', '{"jitter": 1}')},
		'22P02' => q{set_sync_policy('google_tasks', '{"jitter": "x"}')},
	},
	pause_sync_source => { '22023' => q{pause_sync_source('google_tasks', NULL)} },
	resume_sync_source => { '22023' => 'resume_sync_source(NULL)' },
	current_user_id => {
		'22P02' => [ q{SET request.jwt.claims = '{"sub": "x"}'}, 'SELECT syncstate.current_user_id()', 'RESET request.jwt.claims' ],
	},
	grant_worker => { '22023' => 'grant_worker(NULL)', '42704' => q{grant_worker('nobody_of_this_name')} },
	grant_user => { '22023' => 'grant_user(NULL)', '42704' => q{grant_user('nobody_of_this_name')} },
	register_sync_source => { '22023' => q{register_sync_source('Outlook')} },
	watch_users => { '22023' => 'watch_users(NULL)', '42P01' => q{watch_users('nothing_of_this_name')} },
	is_legal => {
		'23514' => [q{SELECT syncstate.is_legal(jsonb_populate_record(s, '{"items_synced": -1}')) FROM syncstate.sync_state AS s}],
	},
	guard => {
		'22023' => ["UPDATE syncstate.sync_state SET resource = 'x'"],
		'23502' => ["INSERT INTO syncstate.sync_state (source) VALUES ('google_tasks')"],
		'39P01' => 'guard()',
	},
	policy_changed => { '39P01' => 'policy_changed()' },
	add_source_label => { '0A000' => 'add_source_label()' },
	skip_known_label => { '0A000' => 'skip_known_label()' },
	forget_users => {
		'0A000' => 'forget_users()',
		'39P01' => ['DELETE FROM users_unwatched'],
		'42703' => [ 'ALTER TABLE users_watched ALTER id TYPE text', 'DELETE FROM users_watched' ],
	},
	'any function' => {
		'23505' => ["INSERT INTO syncstate.sync_state (user_id, source) VALUES ($user, 'google_tasks')"],
		'23514' => ["UPDATE syncstate.sync_state SET history_id = 'x'"],
		'25006' => [ 'BEGIN READ ONLY', 'SELECT syncstate.claim_due_syncs()', 'ROLLBACK' ],
		'42501' => [ 'SET ROLE regress_syncstate_none', 'SELECT syncstate.claim_due_syncs()', 'RESET ROLE' ],
		'55P04' => [
			'BEGIN',
			"SELECT syncstate.register_sync_source('too_early')",
			"SELECT syncstate.connect_sync($user, 'too_early')",
			'ROLLBACK'
		],
	},
);
my %arguments = (
	mark_sync_completed => '',
	mark_sync_failed => ", 'message'",
	mark_rate_limited => '',
	clear_sync_token => '',
	renew_sync_lease => '',
	checkpoint_sync => '',
	release_sync => '',
);
while (my ($name, $more) = each %arguments)
{
	$provoke{$name} = {
		'22023' => "$name($user, 'google_tasks'$more, lease => 1, resource => NULL)",
		PT404 => "$name($none, 'google_tasks'$more, lease => 1)",
		PT409 => "$name($user, 'google_tasks'$more, lease => 2)",
	};
}
$provoke{$_} = { '22023' => "$_($user, NULL)", PT404 => "$_($none, 'google_tasks')" }
  foreach qw(pause_sync resume_sync request_sync);
$provoke{$_} = { '22023' => "$_($user, NULL)" } foreach qw(connect_sync disconnect_sync);

my $script = <<"EOS";
CREATE ROLE regress_syncstate_none;
CREATE EXTENSION syncstate;
GRANT USAGE ON SCHEMA syncstate TO regress_syncstate_none;
SELECT lease FROM syncstate.mark_sync_started($user, 'google_tasks') \\g /dev/null
CREATE TABLE users_watched (id uuid);
SELECT syncstate.watch_users('users_watched') \\g /dev/null
CREATE TABLE users_unwatched (id uuid);
CREATE TRIGGER t AFTER DELETE ON users_unwatched EXECUTE FUNCTION syncstate.forget_users();
\\set VERBOSITY sqlstate
EOS
my @expected;
foreach my $name (sort keys %provoke)
{
	foreach my $code (sort keys %{ $provoke{$name} })
	{
		my $how = $provoke{$name}{$code};

		push @expected, "$name $code", "ERROR:  $code";
		$script .= "\\echo $name $code\n";
		$script .= "$_ \\g /dev/null\n" foreach ref $how ? @$how : "SELECT syncstate.$how";
	}
}
is(session('errors', $script), join('', map { "$_\n" } @expected), 'error codes are raised');

foreach my $name (sort keys %errors_of)
{
	is_deeply($errors_of{$name}, [ sort keys %{ $provoke{$name} // {} } ],
		"the reference tells the errors of $name()");
}
my %codes = map { $_ => 1 } map { keys %$_ } values %provoke;
is_deeply([ sort map { split /, /, $_->[0] } cells(section('### SQLSTATEs')) ],
	[ sort keys %codes ], 'the reference tells each SQLSTATE');

# Links lead to files, and to headings here.
my %anchor = map { (lc =~ s/[`,.()]//gr =~ s/ /-/gr) => 1 } $readme =~ /^#+ (.*)$/mg;
foreach my $link (map { s/^\(|\)$//gr } $readme =~ /\](\([^) ]+\))/g)
{
	next if $link =~ /^https?:/;
	ok($link =~ /^#(.*)/ ? $anchor{$1} : -e $link, "link to $link");
}

# Restoring sources of one's own: what does not work, and the recipe.
my $dir = PostgreSQL::Test::Utils::tempdir;
my ($recipe) = section('## Backup and restore') =~ /^```sh\n(.*?)^```$/ms;
my $contents = q{SELECT s.* FROM syncstate.sync_state AS s ORDER BY user_id, source, resource;
	SELECT p.* FROM syncstate.sync_policy AS p ORDER BY source};

$node->safe_psql('readme', "SELECT syncstate.connect_sync($user, 'outlook_mail')");

command_ok([ 'pg_dump', '-Fd', '-f', "$dir/dump", 'readme' ], 'dump');
# Since 17 labels may be used in the transaction that made their type.
command_fails_like(
	[ 'pg_restore', '-1', '-d', 'new', "$dir/dump" ],
	qr/unsafe use of new value "outlook_mail"/,
	'a restore in one transaction needs the labels first')
  if $node->pg_version < 17;
command_ok([ 'sh', '-ec', "cd '$dir'\n$recipe" ], 'the recipe for a parallel restore');
is( $node->safe_psql('new', $contents),
	$node->safe_psql('readme', $contents),
	'which brings the same rows and policies');
is( $node->safe_psql('new', 'TABLE syncstate.custom_source'),
	'outlook_mail', 'and the registered sources');

$node->stop;
done_testing();
