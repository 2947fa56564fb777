# The README and the other pages are true: their SQL runs and prints what they
# show, the reference is that of the catalogs, its privileges are those that
# roles have, its error codes are those that come, links lead somewhere, no
# heading stands twice, numbers that were measured stand in one place, and the
# recipe for a parallel restore works.
#
# Every ```sql block of a page is run, in order, in one psql session, and each
# page has a database of its own.  The page says as whom: "one psql session; a
# test does so as a superuser", or "as the owner of the database", who is not one.
# A ```text block right behind it is what psql must print; without one, there
# must be no error and no warning.  README_ACCEPT=1 writes into the pages what
# psql did print.
#
# A page whose questions need a history finds one in its database: see %history.

use strict;
use warnings FATAL => 'all';

use File::Basename;
use IPC::Run qw(run);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $reference = 'doc/syncstate.md';
my $performance = 'doc/performance.md';
my @pages = (qw(README.md CONTRIBUTING.md SECURITY.md test/README.md), sort glob 'doc/*.md');
my %text = map { $_ => slurp_file($_) } @pages;

# This one needs PL/Proxy, which is a package of its own.
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my ($sharedir) = `$pg_config --sharedir` =~ /(.*)/;
my %not_run = -e "$sharedir/extension/plproxy.control" ? () : ('doc/sharding.md' => 1);

# Whatever the machine's: times, formats and messages as in the README.
$ENV{PGTZ} = 'UTC';
$ENV{PGDATESTYLE} = 'ISO';
$ENV{PGCLIENTENCODING} = 'UTF8';

my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
$node->start;
$ENV{PGOPTIONS} = '-c IntervalStyle=postgres -c lc_messages=C -c client_min_messages=notice';    # not of the server's own connections
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(errors new privileges);

# The owner of a page's database, who is no superuser.
my $owner = 'regress_syncstate_owner';
$node->safe_psql('postgres', "CREATE ROLE $owner LOGIN CREATEROLE; ALTER ROLE $owner SET lc_messages = 'C'");

# Runs a script in one session; returns all that psql prints, errors in place.
sub session
{
	my ($dbname, $script, @options) = @_;
	my $out = '';

	run [ 'psql', '-X', '-q', '-d', $dbname, @options ], '<', \$script, '>&', \$out;
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

# Remove what does not matter: space at the ends of lines and of all, process
# ids, the numbers of leases, and how 19 says what the pages quote from earlier servers.
sub tidy
{
	my ($text) = @_;

	$text =~ s/^ERROR:  UNIQUE constraint/ERROR:  unique constraint/mg;
	$text =~ s/^CONTEXT:  waiting for ShareLock on transaction \d+\n/CONTEXT:  /mg;
	$text =~ s/[ \t]+$//mg;
	$text =~ s/^\n+//;
	$text =~ s/\n+\z/\n/;
	$text =~ s/(with PID) \d+/$1 12345/g;
	$text =~ s/(lease) \d{16}\b/$1 1234567890123456/g;
	return $text;
}

# The part of a page under a heading, up to the next one of its level.
sub section
{
	my ($page, $heading) = @_;
	my ($level) = $heading =~ /^(#+)/;

	$text{$page} =~ /^\Q$heading\E\n(.*?)(?=^#{1,${\ length $level}} |\z)/ms
	  or die "$page has no section \"$heading\"";
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

# What has happened before a page begins.
#
# doc/monitoring.md: two weeks of some users, one of a kind for each answer.  By
# a: a day with each outcome.  b: failing, 20 runs of 1 to 20 seconds, one of them
# lost.  c, d, e, f and g were parked with their grants; c came back after two
# days, d after ten, e never, f has two days left, and g connected anew.  h: a
# pause, and a run of failures that began with a lost one.  Row '' of each.
my %history = ('doc/monitoring.md' => <<'EOS');
SET client_min_messages = error;
CREATE EXTENSION syncstate;
SELECT syncstate.set_sync_policy(s, '{"keep_runs": "all"}') FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s;

CREATE FUNCTION pg_temp.u(letter text) RETURNS uuid LANGUAGE sql
RETURN (translate(letter, 'gh', '12') || '0000000-0000-4000-8000-00000000000' || ascii(letter) - 96)::uuid;

CREATE PROCEDURE pg_temp.at(new_time timestamptz) LANGUAGE sql
AS $$ SELECT set_config('syncstate.clock', new_time::text, false) $$;

-- A run as a worker would report it, one that is lost not at all.
CREATE PROCEDURE pg_temp.run(started timestamptz, letter text, source syncstate.sync_source, took interval,
	outcome text DEFAULT 'completed', error text DEFAULT NULL) LANGUAGE plpgsql AS $$
DECLARE
	u uuid = pg_temp.u(letter);
	lease bigint;
BEGIN
	CALL pg_temp.at(started);
	lease = (syncstate.mark_sync_started(u, source)).lease;
	CALL pg_temp.at(started + took);
	CASE outcome
	WHEN 'completed' THEN PERFORM syncstate.mark_sync_completed(u, source, 3, 'token', lease => lease);
	WHEN 'failed' THEN PERFORM syncstate.mark_sync_failed(u, source, error, lease => lease);
	WHEN 'auth' THEN PERFORM syncstate.mark_sync_failed(u, source, 'HTTP 401: invalid_grant', 'auth', lease);
	WHEN 'rate_limited' THEN PERFORM syncstate.mark_rate_limited(u, source, lease => lease);
	WHEN 'released' THEN PERFORM syncstate.release_sync(u, source, lease);
	WHEN 'lost' THEN NULL;
	END CASE;
END
$$;

-- all have synced once
DO $$
DECLARE
	letter text;
BEGIN
	FOREACH letter IN ARRAY '{a,b,c,d,f,g}'::text[] LOOP
		CALL pg_temp.run('2026-02-09 12:00+00', letter, 'google_gmail', '5 s');
	END LOOP;
END
$$;
CALL pg_temp.run('2026-02-09 12:00+00', 'b', 'google_contacts', '5 s');
CALL pg_temp.run('2026-02-09 12:00+00', 'e', 'google_calendar', '5 s');
CALL pg_temp.run('2026-02-09 12:00+00', 'h', 'google_tasks', '5 s');

-- grants that were revoked
CALL pg_temp.run('2026-02-10 12:00+00', 'c', 'google_gmail', '1 s', 'auth');
CALL pg_temp.run('2026-02-10 12:00+00', 'd', 'google_gmail', '1 s', 'auth');
CALL pg_temp.run('2026-02-10 12:00+00', 'g', 'google_gmail', '1 s', 'auth');
CALL pg_temp.at('2026-02-11 12:00+00');
SELECT syncstate.disconnect_account(pg_temp.u('g'));
SELECT syncstate.connect_sync(pg_temp.u('g'), 'google_gmail');
CALL pg_temp.run('2026-02-11 12:01+00', 'g', 'google_gmail', '5 s');
CALL pg_temp.at('2026-02-12 12:00+00');
SELECT syncstate.connect_account(pg_temp.u('c'));
CALL pg_temp.run('2026-02-12 12:01+00', 'c', 'google_gmail', '5 s');
CALL pg_temp.run('2026-02-20 12:00+00', 'e', 'google_calendar', '1 s', 'auth');
CALL pg_temp.at('2026-02-20 12:00+00');
SELECT syncstate.connect_account(pg_temp.u('d'));
CALL pg_temp.run('2026-02-20 12:01+00', 'd', 'google_gmail', '5 s');
CALL pg_temp.run('2026-02-25 09:00+00', 'f', 'google_gmail', '1 s', 'auth');
CALL pg_temp.at('2026-02-25 12:00+00');
SELECT syncstate.pause_account(pg_temp.u('h'));
SELECT syncstate.resume_account(pg_temp.u('h'));

-- the last days
CALL pg_temp.run('2026-02-28 12:00+00', 'b', 'google_contacts', '5 s');
CALL pg_temp.run('2026-03-01 02:00+00', 'h', 'google_tasks', '5 s');
CALL pg_temp.run('2026-03-01 08:59+00', 'a', 'google_gmail', '5 s');
CALL pg_temp.run('2026-03-01 21:00+00', 'a', 'google_gmail', '4 s');
CALL pg_temp.run('2026-03-01 22:00+00', 'a', 'google_gmail', '30 s', 'failed', 'HTTP 503: backend error');
CALL pg_temp.run('2026-03-01 22:01+00', 'a', 'google_gmail', '8 s');
CALL pg_temp.run('2026-03-01 23:00+00', 'a', 'google_gmail', '2 s', 'rate_limited');
CALL pg_temp.at('2026-03-02 08:00+00');
SELECT syncstate.request_sync(pg_temp.u('a'), 'google_gmail');
CALL pg_temp.run('2026-03-02 08:00:01+00', 'a', 'google_gmail', '6 s');
CALL pg_temp.run('2026-03-02 03:00+00', 'a', 'google_calendar', '1 min', 'lost');
CALL pg_temp.run('2026-03-02 03:11+00', 'a', 'google_calendar', '4 min');
CALL pg_temp.run('2026-03-01 20:00+00', 'b', 'google_gmail', '1 s', 'failed', 'HTTP 500: backend error');
CALL pg_temp.run('2026-03-01 20:05+00', 'b', 'google_gmail', '1 s', 'failed', 'HTTP 503: unavailable');
CALL pg_temp.run('2026-03-01 20:10+00', 'b', 'google_gmail', '1 s', 'released');
CALL pg_temp.run('2026-03-01 20:15+00', 'b', 'google_gmail', '1 s', 'failed', 'HTTP 503: unavailable');
CALL pg_temp.run('2026-03-01 12:00+00', 'b', 'google_contacts', '1 min', 'lost');
DO $$
BEGIN
	FOR n IN 1 .. 20 LOOP
		CALL pg_temp.run('2026-03-01 13:00+00'::timestamptz + n * interval '1 hour', 'b', 'google_contacts', n * interval '1 s');
	END LOOP;
END
$$;
CALL pg_temp.run('2026-03-02 05:00+00', 'h', 'google_tasks', '1 min', 'lost');
CALL pg_temp.run('2026-03-02 05:20+00', 'h', 'google_tasks', '1 s', 'failed', 'HTTP 400: malformed');

SELECT format('ALTER DATABASE %I SET syncstate.clock = %L', current_database(), '2026-03-02 09:00:00+00') \gexec
EOS

# The SQL.
my $all_sql = '';
my $mark = '==== end of block ====';
foreach my $page (@pages)
{
	my @blocks;

	while ($text{$page} =~ /^```sql\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?/msg)
	{
		push @blocks,
		  {
			sql => $1,
			expected => $2,
			at => $-[2],
			length => defined $2 ? length $2 : 0,
			line => 1 + (substr($text{$page}, 0, $-[1]) =~ tr/\n//),
		  };
	}
	next if !@blocks || $not_run{$page};
	$all_sql .= $_->{sql} foreach @blocks;

	my ($role) = $text{$page} =~ /one psql session[^.]*; a test does so as (a superuser|the owner of the database)\b/;
	ok($role, "$page says as whom its SQL is run") or next;

	my $database = lc basename($page, '.md');
	my @options = $role eq 'a superuser' ? () : ('-U', $owner);
	local $ENV{PGOPTIONS} = $ENV{PGOPTIONS};
	$ENV{PGOPTIONS} =~ s/-c lc_messages=C// if @options;    # which only a superuser may set
	$node->safe_psql('postgres', qq{CREATE DATABASE "$database"} . (@options ? " OWNER $owner" : ''));
	is(session($database, "\\o /dev/null\n$history{$page}"), '', "what happened before $page") if $history{$page};
	my @printed = split /^\Q$mark\E\n/m,
	  session($database, join('', map { "$_->{sql}\\echo '$mark'\n" } @blocks), @options), -1;
	pop @printed;    # what is behind the last mark
	is(scalar @printed, scalar @blocks, "all blocks of $page were run");

	foreach my $i (0 .. $#blocks)
	{
		my $block = $blocks[$i];
		my $got = $block->{got} = tidy($printed[$i] // '');

		if (defined $block->{expected})
		{
			is($got, tidy($block->{expected}), "output of the SQL at $page, line $block->{line}");
		}
		else
		{
			unlike($got, qr/^(ERROR|FATAL|PANIC|WARNING|psql:|\\|invalid)/m,
				"no error in the SQL at $page, line $block->{line}");
		}
	}

	if ($ENV{README_ACCEPT})
	{
		my $accepted = $text{$page};

		substr($accepted, $_->{at}, $_->{length}) = $_->{got}
		  foreach reverse grep { defined $_->{expected} } @blocks;
		open my $fh, '>', $page or die "$page: $!";
		print $fh $accepted;
		close $fh;
	}
}

# The reference: functions.
my @functions = grep { @$_ == 4 && $_->[0] =~ /\(/ } cells($text{$reference});
my %errors_of;
my %granted_to;
my (@documented, @real);
foreach my $function (@functions)
{
	my ($signature, $description, $errors, $granted_to) = @$function;
	my ($name) = $signature =~ /^(\w+)/;

	push @documented, $signature;
	$errors_of{$name} = [ $errors eq 'none' ? () : split /, /, $errors ];
	$granted_to{$signature} = $granted_to;
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

my %internal = map { $_->[0] => 1 } cells(section($reference, '## Internal functions'));
foreach my $signature (sort grep { !$internal{$_} } @real)
{
	my ($name) = $signature =~ /^(\w+)/;

	ok($all_sql =~ /\bsyncstate\.$name\(/, "$name() has an example");
}
is_deeply(
	[ sort grep { $_ } map { @$_[ 0, 2 ] } cells(section('README.md', '## All functions')) ],
	[ sort map { /^(\w+)/ } grep { !$internal{$_} } @real ],
	'the list in the README has each of them');

# The reference: types, tables, views, settings.
is_deeply(
	[ cells(section($reference, '## Types')) ],
	[
		rows(q{SELECT t.typname, string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
			FROM pg_type AS t JOIN pg_enum AS e ON e.enumtypid = t.oid
			WHERE t.typnamespace = 'syncstate'::regnamespace AND e.enumlabel <> 'outlook_mail'
			GROUP BY t.typname ORDER BY t.typname})
	],
	'the reference has the types of the catalogs');

my @relations;
foreach my $heading ($text{$reference} =~ /^(## (?:Table|View) `\w+`)$/mg)
{
	my ($kind, $relation) = $heading =~ /(\w+) `(\w+)`/;
	my @columns = cells(section($reference, $heading));

	push @relations, $relation;
	is_deeply(
		[ map { [ @$_[ 0, 1 ] ] } @columns ],
		[
			rows(qq{SELECT a.attname, format_type(a.atttypid, a.atttypmod)
					|| CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
					|| coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
				FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
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
	[ map { [ $_->[0], $_->[1] eq 'empty' ? '' : $_->[1] ] } cells(section($reference, '## Settings')) ],
	[
		rows(q{SELECT syncstate.sync_clock() \g /dev/null
			SELECT name, boot_val FROM pg_settings WHERE name LIKE 'syncstate.%' ORDER BY name})
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
	resync_source => { '22023' => 'resync_source(NULL)' },
	revive_syncs => { '22023' => q{revive_syncs('google_tasks', 'none')} },
	current_user_id => {
		'22P02' => [ q{SET request.jwt.claims = '{"sub": []}'}, 'SELECT syncstate.current_user_id()', 'RESET request.jwt.claims' ],
	},
	grant_worker => { '22023' => 'grant_worker(NULL)', '42704' => q{grant_worker('nobody_of_this_name')} },
	grant_user => { '22023' => 'grant_user(NULL)', '42704' => q{grant_user('nobody_of_this_name')} },
	register_sync_source => { '22023' => q{register_sync_source('Outlook')} },
	watch_users => { '22023' => 'watch_users(NULL)', '42P01' => q{watch_users('nothing_of_this_name')} },
	(map { $_ => { '23514' => qq{$_(jsonb_populate_record(NULL::syncstate.sync_state, '{}'))} } } qw(due_from is_ahead)),
	is_legal => {
		'23514' => [q{SELECT syncstate.is_legal(jsonb_populate_record(s, '{"items_synced": -1}')) FROM syncstate.sync_state AS s}],
	},
	guard => {
		'22023' => ["UPDATE syncstate.sync_state SET resource = 'x'"],
		'23502' => ["INSERT INTO syncstate.sync_state (source) VALUES ('google_tasks')"],
		'39P01' => 'guard()',
	},
	record_revoked => { '39P01' => 'record_revoked()' },
	take_sync_events => { '22023' => 'take_sync_events(0)' },
	policy_changed => { '39P01' => 'policy_changed()' },
	add_source_label => { '0A000' => 'add_source_label()' },
	skip_known_label => { '0A000' => 'skip_known_label()' },
	keep_source_labels => { '0A000' => 'keep_source_labels()' },
	forget_users => {
		'0A000' => 'forget_users()',
		'39P01' => ['DELETE FROM users_unwatched'],
		'42703' => [ 'ALTER TABLE users_watched ALTER id TYPE jsonb USING to_jsonb(id)', 'DELETE FROM users_watched' ],
	},
	'any function' => {
		'22009' => [qq{SELECT syncstate.update_sync_state($user, 'google_tasks', '{"due_at": "2026-01-01 00:00+99"}')}],
		'22015' => [qq{SELECT syncstate.update_sync_state($user, 'google_tasks', '{"sync_interval": "99999999999999999999 hours"}')}],
		'23505' => ["INSERT INTO syncstate.sync_state (user_id, source) VALUES ($user, 'google_tasks')"],
		'23514' => ["UPDATE syncstate.sync_state SET history_id = 'x'"],
		'25006' => [ 'BEGIN READ ONLY', 'SELECT syncstate.claim_due_syncs()', 'ROLLBACK' ],
		'27000' => [
			'BEGIN',
			'CREATE FUNCTION write_again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE syncstate.sync_state SET progress_total = 1; RETURN NEW; END $$',
			'CREATE TRIGGER site BEFORE UPDATE ON syncstate.sync_state FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION write_again()',
			"SELECT syncstate.pause_sync($user, 'google_tasks')",
			'ROLLBACK'
		],
		'42501' => [ 'SET ROLE regress_syncstate_none', 'SELECT syncstate.claim_due_syncs()', 'RESET ROLE' ],
		'42809' => [
			'BEGIN',
			'ALTER EXTENSION syncstate DROP TABLE syncstate.sync_state',
			'ALTER TABLE syncstate.sync_state RENAME TO once_sync_state',
			'CREATE TABLE syncstate.sync_state (LIKE syncstate.once_sync_state) PARTITION BY HASH (user_id)',
			'SELECT syncstate.next_sync_due()',
			'ROLLBACK'
		],
		'55000' => [
			'BEGIN',
			'DROP INDEX syncstate.sync_state_requested',
			'CREATE INDEX sync_state_requested ON syncstate.sync_state (source)',
			'SELECT syncstate.next_sync_due()',
			'ROLLBACK'
		],
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
	may_sweep => ', vanished => 0, total => 0',
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
$provoke{$_} = { '22023' => "$_(NULL)" }
  foreach qw(connect_account pause_account resume_account disconnect_account request_account);
$provoke{claim_push_channels} = { '22023' => 'claim_push_channels(max_rows => 0)' };
$provoke{mark_channel_opened} = {
	'22023' => "mark_channel_opened($user, 'google_tasks', 1, NULL, NULL, 'secret')",
	'23505' => "mark_channel_opened($user, 'google_tasks', 1, 'taken', NULL, 'secret')",
};
$provoke{mark_channel_failed} = {
	'22023' => "mark_channel_failed($user, 'google_tasks', 1, NULL)",
	PT409 => "mark_channel_failed($user, 'google_tasks', 1, 'message')",
};
$provoke{mark_channel_stopped} = {
	'22023' => "mark_channel_stopped($user, 'google_tasks', NULL)",
	PT409 => "mark_channel_stopped($user, 'google_tasks', 1)",
};
$provoke{set_sync_resources} = { '22023' => "set_sync_resources($user, 'google_tasks', NULL)" };

my $script = <<"EOS";
CREATE ROLE regress_syncstate_none;
CREATE EXTENSION syncstate;
ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
GRANT USAGE ON SCHEMA syncstate TO regress_syncstate_none;
SELECT lease FROM syncstate.mark_sync_started($user, 'google_tasks') \\g /dev/null
SELECT syncstate.set_sync_policy('google_gmail', '{"push_renew_before": "1 day"}') \\g /dev/null
SELECT syncstate.connect_sync($user, 'google_gmail') \\g /dev/null
SELECT syncstate.mark_channel_opened(user_id, source, lease, 'taken', NULL, 'secret') FROM syncstate.claim_push_channels() \\g /dev/null
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
is_deeply([ sort map { split /, /, $_->[0] } cells(section($reference, '## SQLSTATEs')) ],
	[ sort keys %codes ], 'the reference tells each SQLSTATE');

# Privileges, and settings that nobody has changed: those of a database whose
# owner is no superuser, and made the extension.
my %role = map { $_ => "regress_syncstate_$_" } qw(administrator worker user);
session('postgres', join '', map { "CREATE ROLE $_;\n" } values %role);
session('postgres', "ALTER DATABASE privileges OWNER TO $role{administrator}");
is(session('privileges', <<"EOS"), '', 'roles are made');
SET ROLE $role{administrator};
CREATE EXTENSION syncstate;
SELECT syncstate.grant_worker('$role{worker}') \\g /dev/null
SELECT syncstate.grant_user('$role{user}') \\g /dev/null
EOS

# Rows of a query there.
sub privileges
{
	my ($query) = @_;

	return map { [ split /\|/, $_, -1 ] } split /\n/,
	  $node->safe_psql('privileges', "SET search_path = syncstate; $query");
}

is_deeply(
	\%granted_to,
	{
		map { $_->[0] => $_->[1] } privileges(qq{
			SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ') -> ' || pg_get_function_result(p.oid),
				coalesce((SELECT string_agg(replace(r.rolname, 'regress_syncstate_', ''), ', ' ORDER BY r.rolname LIKE '%user', r.rolname)
					FROM pg_roles AS r
					WHERE r.rolname IN ('$role{administrator}', '$role{worker}', '$role{user}', 'regress_syncstate_none')
						AND has_function_privilege(r.oid, p.oid, 'EXECUTE')), 'none')
			FROM pg_proc AS p WHERE p.pronamespace = 'syncstate'::regnamespace})
	},
	'the reference tells who may call which function');

my %view_of = map { reverse @$_ } privileges(q{SELECT attrelid::regclass, string_agg(attname, ', ' ORDER BY attname)
	FROM pg_attribute WHERE attrelid IN ('my_syncs'::regclass, 'my_sync_runs'::regclass) AND attnum > 0 GROUP BY attrelid});
my %has;
foreach my $row (privileges(q{
	SELECT c.relname, a.grantee::regrole, a.privilege_type, ''
	FROM pg_class AS c, aclexplode(c.relacl) AS a
	WHERE c.relnamespace = 'syncstate'::regnamespace AND c.relkind IN ('r', 'v') AND a.grantee <> c.relowner
	UNION ALL
	SELECT c.relname, a.grantee::regrole, a.privilege_type, string_agg(t.attname, ', ' ORDER BY t.attname)
	FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid, aclexplode(t.attacl) AS a
	WHERE c.relnamespace = 'syncstate'::regnamespace
	GROUP BY 1, 2, 3}))
{
	my ($relation, $role, $privilege, $columns) = @$row;
	$columns = "the columns of $view_of{$columns}" if $view_of{$columns};
	$has{$relation}{$role}{$privilege} = $columns ? "$privilege of $columns" : $privilege;
}
my $order = sub { my $had = shift // {}; join(', ', grep { defined } map { delete $had->{$_} } qw(SELECT INSERT UPDATE DELETE)) || 'none' };
is_deeply(
	[ cells(section($reference, '## Privileges')) ],
	[ map { my $relation = $_; [ $relation, map { $order->($has{$relation}{$_}) } @role{qw(administrator worker user)} ] } sort @relations ],
	'the reference tells the privileges on tables and views');
is_deeply([ map { %$_ } map { values %$_ } values %has ], [], 'and there are no others');
is_deeply(
	[
		privileges(q{SELECT a.grantee::regrole, a.privilege_type
			FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
			WHERE n.nspname = 'syncstate' AND a.grantee <> n.nspowner ORDER BY a.grantee::regrole::text})
	],
	[ map { [ $_, 'USAGE' ] } sort values %role ],
	'who may look into the schema');

my @settings = privileges(q{
	SELECT c.attname, coalesce(to_jsonb(p) ->> c.attname, 'null')
	FROM unnest(enum_range(NULL::sync_source)) WITH ORDINALITY AS s (source, i), get_sync_policy(s.source) AS p,
		pg_attribute AS c
	WHERE c.attrelid = 'sync_policy'::regclass AND c.attnum > 1
	ORDER BY c.attnum, s.i});
my @built_in;
push @built_in, [ $settings[0][0], map { $_->[1] } splice @settings, 0, 4 ] while @settings;
is_deeply([ cells(section($reference, '## Built-in settings')) ], \@built_in, 'the reference tells the built-in settings');

# The text of a page without its code.
sub prose
{
	my ($page) = @_;

	return $text{$page} =~ s/^```.*?^```$//msgr;
}

# Links lead to files, and to headings there.  No heading stands twice, on
# whichever page.
my (%anchor, %pages_with);
foreach my $page (@pages)
{
	foreach my $heading (prose($page) =~ /^#+ (.*)$/mg)
	{
		my $anchor = lc($heading) =~ s/[^\w -]//gr =~ s/ /-/gr;

		$anchor{$page}{$anchor} = 1;
		push @{ $pages_with{$anchor} }, $page;
	}
}
is(join(', ', map { "$_ (@{ $pages_with{$_} })" } sort grep { @{ $pages_with{$_} } > 1 } keys %pages_with),
	'', 'no heading stands twice');

# A number that was measured stands on one page, to which the others link: those
# with a unit in which we measure, and others with three digits or more that are
# not round.
sub numbers
{
	my ($page) = @_;
	my %found;

	foreach (prose($page) =~ s/\]\([^)]*\)//gr =~ /(?<![\w.,-])(\d[\d,]*(?:\.\d+)?(?: (?:us|ms|bytes|%|min)(?!\w))?)(?![\w.]*\d)/g)
	{
		my $digits = tr/1-9//;

		$found{ s/,$//r } = 1 if /[a-z%]/ || ($digits > 2 && !/,000$/);
	}
	return \%found;
}
my $measured = numbers($performance);
cmp_ok(scalar keys %$measured, '>', 50, 'numbers were measured');
foreach my $page (grep { $_ ne $performance } @pages)
{
	is(join(', ', sort grep { $measured->{$_} } keys %{ numbers($page) }), '', "no number of $performance stands in $page");
}

foreach my $page (@pages)
{
	foreach my $link (map { s/^\(|\)$//gr } $text{$page} =~ /\](\([^) ]+\))/g)
	{
		next if $link =~ /^https?:/;
		my ($file, $heading) = split /#/, $link, 2;
		my $target = $file eq '' ? $page : ($page =~ m{(.*/)} ? $1 : '') . $file;

		1 while $target =~ s{(^|/)[^/.]+/\.\./}{$1};

		ok((defined $heading ? $anchor{$target}{$heading} : -e $target), "link of $page to $link");
	}
}

# Restoring sources of one's own: what does not work, and the recipe.
my $dir = PostgreSQL::Test::Utils::tempdir;
my ($recipe) = section('doc/backup.md', '## With sources of your own') =~ /^```sh\n(.*?)^```$/ms;
my $contents = q{SELECT s.* FROM syncstate.sync_state AS s ORDER BY user_id, source, resource;
	SELECT p.* FROM syncstate.sync_policy AS p ORDER BY source};

$node->safe_psql('own-sources', "SELECT syncstate.connect_sync($user, 'outlook_mail')");

command_ok([ 'pg_dump', '-Fd', '-f', "$dir/dump", 'own-sources' ], 'dump');
# Since 17 labels may be used in the transaction that made their type.
command_fails_like(
	[ 'pg_restore', '-1', '-d', 'new', "$dir/dump" ],
	qr/unsafe use of new value "outlook_mail"/,
	'a restore in one transaction needs the labels first')
  if $node->pg_version < 17;
command_ok([ 'sh', '-ec', "cd '$dir'\n$recipe" ], 'the recipe for a parallel restore');
is( $node->safe_psql('new', $contents),
	$node->safe_psql('own-sources', $contents),
	'which brings the same rows and policies');
is( $node->safe_psql('new', 'TABLE syncstate.custom_source'),
	'outlook_mail', 'and the registered sources');

$node->stop;
done_testing();
