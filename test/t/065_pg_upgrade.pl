# pg_upgrade, from the oldest server on this machine to the newest, takes all
# along: rows in every state, events and runs of every kind, sources of one's own,
# settings, grants; and the new server works.
#
# Where there is only one version that has the extension, from it to itself,
# which pg_upgrade allows: the way through its dump is the same.
use strict;
use warnings;

use Cwd;
use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $here = "$FindBin::RealBin/../sql";
my $schema = slurp_file("$here/schema.sql");
my $states = slurp_file("$here/states.sql");
my $contents = slurp_file("$here/contents.sql");

# The servers that have the extension: version => its folder, as
# PostgreSQL::Test::Cluster knows it (undef: the one under test).
my ($mine) = (`pg_config --version` =~ /(\d+)/);
my %servers = ($mine => undef);
foreach my $bin (glob('/usr/lib/postgresql/*/bin'))
{
	my ($folder, $version) = $bin =~ m{^(.*/(\d+))/bin$} or next;
	next if exists $servers{$version} || !-x "$bin/initdb" || !-x "$bin/pg_upgrade";
	next unless -x "$bin/postgres" && -e "/usr/share/postgresql/$version/extension/syncstate.control";
	$servers{$version} = $folder;
}
my ($oldest, $newest) = (sort { $a <=> $b } keys %servers)[ 0, -1 ];
note("from $oldest to $newest, both of: " . join(' ', sort { $a <=> $b } keys %servers));

sub server
{
	my ($name, $version) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, defined $servers{$version} ? (install_path => $servers{$version}) : ());
	# the same for old and new, whatever the version's defaults
	$node->init(extra => [ '--data-checksums', '--encoding=UTF8', '--locale=C' ]);
	return $node;
}

# What a program of the node's version does.
sub bindir
{
	my ($version) = @_;
	return "$servers{$version}/bin" if defined $servers{$version};
	my $bindir = `pg_config --bindir`;
	chomp $bindir;
	return $bindir;
}

sub ask
{
	my ($node, $what) = @_;
	return $node->safe_psql('app', q{SET search_path = public; SET timezone = 'UTC';} . $what);
}

# Facts of one server version may be told differently by another: compared are
# those that do not depend on it.
sub schema
{
	my ($node) = @_;
	my $text = $node->safe_psql('app', "SET search_path = ''; SET timezone = 'UTC'; $schema");

	# pg_upgrade gives every extension to the superuser who runs it
	$text =~ s/^(extension .*) owner .*$/$1/m;
	if ($oldest != $newest)
	{
		$text =~ s/^.*\bMAINTAIN\b.*\n//mg; # since 17
		$text =~ s/^constraint \S+ on \S+ NOT NULL .*\n//mg; # named since 18
		$text =~ s/^member type .*\n//mg; # since 17 also row and array types
		$text =~ s/^(view|rule) .*\n//mg; # printed differently
	}
	return $text;
}

# Runs pg_upgrade; returns whether it succeeded, what it printed, and its logs.
sub upgrade
{
	my ($old, $new, @options) = @_;
	my $bin = bindir($newest);
	# it writes where it is called
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $cwd = getcwd();
	chdir $dir or die "$dir: $!";
	my @command = ("$bin/pg_upgrade", '--no-sync',
		'--old-datadir', $old->data_dir, '--new-datadir', $new->data_dir,
		'--old-bindir', bindir($oldest), '--new-bindir', $bin,
		'--socketdir', $new->host, '--old-port', $old->port, '--new-port', $new->port, @options);
	my ($out, $ok);
	{
		local %ENV = $new->_get_env;
		$ok = IPC::Run::run(\@command, '>&', \$out);
	}
	chdir $cwd or die "$cwd: $!";
	my %logs = map { $_ => slurp_file($_) } glob("$dir/*.log"), glob($new->data_dir . '/pg_upgrade_output.d/*/log/*');
	return ($ok, $out, \%logs);
}

# Minor releases of November 2026 mark every column with an option "pg_attver",
# which pg_upgrade hands on to the new server; one that is older does not know
# it, and no database with a table can be upgraded.  Whether these two are such
# a pair, a database without the extension tells; the marks are taken off then,
# so that what is ours is tested all the same.
my $marked = 0;
if ($oldest != $newest)
{
	my ($old, $new) = (server('plain_old', $oldest), server('plain_new', $newest));
	$old->start;
	$old->safe_psql('postgres', 'CREATE TABLE plain (a int)');
	$old->stop;
	my ($ok, $out, $logs) = upgrade($old, $new);
	$marked = grep { /unrecognized parameter "pg_attver"/ } values %$logs;
	ok($ok || $marked, 'pg_upgrade of a plain table') or diag($out);
	diag("pg_upgrade from $oldest to $newest fails for every table; going on without the marks it falls over") if $marked;
}

my $old = server('old', $oldest);
$old->start;
$old->safe_psql('postgres', q{
	CREATE ROLE regress_syncstate_worker LOGIN;
	CREATE ROLE regress_syncstate_user LOGIN;
	CREATE ROLE regress_syncstate_owner LOGIN;
	CREATE DATABASE app OWNER regress_syncstate_owner});

# Installed by an owner who is no superuser; the labels not in the order of
# their names.
$old->safe_psql('app', 'SET ROLE regress_syncstate_owner; CREATE EXTENSION syncstate');
$old->safe_psql('app', "SELECT syncstate.register_sync_source('$_')") foreach qw(custom_crm another_one);
$old->safe_psql('app', "SET search_path = public; $states");
is($old->safe_psql('app', q{SELECT string_agg(DISTINCT status::text, ' ' ORDER BY status::text),
		string_agg(DISTINCT parked_reason, ' ' ORDER BY parked_reason) FROM syncstate.sync_state}),
	'error idle rate_limited syncing|auth failures gone paused token_loop', 'there are rows in every state');
is($old->safe_psql('app', q{SELECT (SELECT string_agg(DISTINCT event, ' ' ORDER BY event) FROM syncstate.sync_event),
		(SELECT string_agg(DISTINCT reason, ' ' ORDER BY reason) FROM syncstate.sync_event),
		(SELECT string_agg(DISTINCT outcome, ' ' ORDER BY outcome) FROM syncstate.sync_run)}),
	'cursor_lost failing first_sync gone parked recovered source_limited source_resumed sweep_withheld|auth failures paused rate_limited token_loop|completed failed lost rate_limited released revoked',
	'there are events and runs of every kind');
my $had = ask($old, $contents);
my $first = ask($old, 'SELECT e FROM syncstate.sync_event AS e ORDER BY at, id LIMIT 5');
my $was = schema($old);
my $order = ask($old, 'SELECT enum_range(NULL::syncstate.sync_source)');
my $check = 'SELECT object, problem FROM syncstate.check_installation()';
my $found = ask($old, $check);
if ($marked)
{
	$old->safe_psql($_, q{UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '{pg_attver=%}'})
		foreach qw(template1 postgres app);
}
$old->stop;

# Copies come first: after linking, the old cluster must not be started.
foreach my $mode ($oldest == $newest ? '--link' : ('--copy', '--link'))
{
	my $new = server('new' . $mode =~ s/-//gr, $newest);
	my $bin = bindir($newest);
	# 15 copies unless told otherwise
	my ($ok, $out, $logs) = upgrade($old, $new, $mode eq '--copy' ? () : $mode);
	ok($ok, "pg_upgrade $mode from $oldest to $newest") or do
	{
		diag($out);
		diag("$_: " . substr($logs->{$_}, -3000)) foreach sort keys %$logs;
		next;
	};

	$new->start;
	is(ask($new, $contents), $had, "$mode: rows, events, runs, settings and labels are the same");
	is(ask($new, 'SELECT enum_range(NULL::syncstate.sync_source)'), $order, "$mode: labels are in the same order");
	my %was = map { $_ => 1 } split(/\n/, $was);
	my %is = map { $_ => 1 } split(/\n/, schema($new));
	is(join("\n", (map { "- $_" } sort grep { !$is{$_} } keys %was), (map { "+ $_" } sort grep { !$was{$_} } keys %is)),
		'', "$mode: the schema is the same");
	is(ask($new, $check), $found, "$mode: check_installation() finds what it found");

	# It works, and goes on where it was.
	my $at = q{SET syncstate.clock = '2021-02-13 05:00:00+00'; };
	is(ask($new, $at . q{SELECT string_agg(resource, ', ' ORDER BY resource COLLATE "C") FROM syncstate.claim_due_syncs(max_rows => 100) WHERE length(resource) BETWEEN 1 AND 100 AND resource !~ '\t'}),
		'failed, failed for good, failing, history id, inserted, lease over, lost its cursor, new and requested, open, own interval, refused, renewed, sync token, updated min',
		"$mode: what was due or requested is handed out, and nothing else");
	is(ask($new, $at . q{SELECT status, requested_at IS NOT NULL, sync_token FROM syncstate.mark_sync_completed(id(3), 'google_calendar', 7, 'new',
			lease => (syncstate.get_sync_state(id(3), 'google_calendar', 'lease live')).lease, resource => 'lease live')}),
		'idle|t|new', "$mode: the holder of a live lease completes");
	is(ask($new, q{SELECT outcome, items FROM syncstate.sync_run WHERE user_id = id(3) AND resource = 'lease live'}),
		'completed|7', "$mode: its run is kept");
	is(ask($new, q{SELECT event, resource FROM syncstate.sync_event WHERE at = '2021-02-13 05:00:00+00'}),
		'first_sync|lease live', "$mode: and an event tells that it was the first");
	is(ask($new, $at . 'SELECT syncstate.take_sync_events(5)'), $first, "$mode: the oldest events are taken");
	is(ask($new, q{DELETE FROM users WHERE id IN (id(2), id(6));
			SELECT count(*) FROM syncstate.sync_state WHERE user_id IN (id(2), id(6));
			SELECT count(*) FROM syncstate.sync_event WHERE user_id IN (id(2), id(6));
			SELECT count(*) FROM syncstate.sync_run WHERE user_id IN (id(2), id(6))}),
		"0\n0\n0", "$mode: deleted users are forgotten");
	is(ask($new, q{SELECT syncstate.register_sync_source('after'); SELECT enum_range(NULL::syncstate.sync_source)}),
		"\n" . $order =~ s/\}$/,after}/r, "$mode: a label can be added");
	is(ask($new, q{SET ROLE regress_syncstate_user; SET "request.jwt.claims" = '{"sub": "00000000-0000-4000-8000-000000000005"}';
			SELECT count(*), count(DISTINCT user_id) FROM syncstate.my_syncs}),
		'5|1', "$mode: a user sees their own rows");

	# The next step is a dump, as ever.
	$new->safe_psql('postgres', 'CREATE DATABASE next');
	my $dump = $new->basedir . '/dump';
	$new->command_ok([ "$bin/pg_dump", '--no-sync', '-f', $dump, $new->connstr('app') ], "$mode: dump");
	$new->command_ok([ "$bin/psql", '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $new->connstr('next') ], "$mode: restore");
	my $counts = 'SELECT (SELECT count(*) FROM syncstate.sync_state), (SELECT count(*) FROM syncstate.sync_event), (SELECT count(*) FROM syncstate.sync_run)';
	is($new->safe_psql('next', $counts), ask($new, $counts), "$mode: complete");

	$new->safe_psql('app', 'DROP EXTENSION syncstate CASCADE');
	is($new->safe_psql('app', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'syncstate'}), '0', "$mode: DROP EXTENSION drops all");
	$new->stop;
}

done_testing();
