# Labels that register_sync_source() added survive dump and restore, with the
# rows and policies that use them; where the order of restoring is not the
# dump's, registering the labels first is the cure.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;

# The owner of the databases is no superuser.
$node->safe_psql('postgres', 'CREATE ROLE site LOGIN');

# All that a restored database has to have; the many rows as a digest.
my $everything = q{
	SELECT enum_range(NULL::syncstate.sync_source);
	SELECT * FROM syncstate.custom_source ORDER BY label;
	SELECT * FROM syncstate.sync_policy ORDER BY source;
	SELECT source, count(*), md5(string_agg(s::text, '/' ORDER BY user_id, resource))
	FROM syncstate.sync_state AS s GROUP BY source ORDER BY source;
};

sub everything
{
	my ($database) = @_;
	return $node->safe_psql($database, $everything);
}

# A new, empty database.
sub database
{
	my ($name) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name OWNER site TEMPLATE template0");
	return $name;
}

# Run a program against the server; returns its exit status and its errors.
sub run_program
{
	my (@command) = @_;
	my ($out, $err);
	local %ENV = $node->_get_env;
	my $ok = IPC::Run::run(\@command, '>', \$out, '2>', \$err);
	return ($ok, $err);
}

# --------------------------------------------------------------- a source

database('original');
$node->safe_psql('original', 'SET ROLE site; CREATE EXTENSION syncstate');
$node->safe_psql('original', $_) foreach (
	q{SET ROLE site; SELECT syncstate.register_sync_source('outlook_mail')},
	q{SET ROLE site; SELECT syncstate.register_sync_source(l) FROM unnest(ARRAY['zoho', 'a', '7', '_']) AS l},
	q{SET ROLE site; SELECT syncstate.set_sync_policy('outlook_mail', '{"sync_interval": "1 hour"}')},
	q{SET ROLE site; SELECT syncstate.pause_sync_source('zoho')},
	q{INSERT INTO syncstate.sync_state (user_id, source, sync_token, due_at)
	  SELECT md5(i::text)::uuid, s, 'tok ' || i, '2030-01-01'::timestamptz + i * interval '1 s'
	  FROM generate_series(1, 500) AS i, unnest(enum_range(NULL::syncstate.sync_source)) AS s},
	q{SELECT syncstate.mark_sync_started(md5('1')::uuid, 'outlook_mail')},
	q{SELECT syncstate.mark_sync_failed(md5('2')::uuid, 'outlook_mail', 'no', 'auth')},
	q{SELECT syncstate.mark_rate_limited(md5('3')::uuid, 'a', scope => 'source')});
my $original = everything('original');
like($original, qr/^\{google_calendar,google_tasks,google_gmail,google_contacts,outlook_mail,zoho,a,7,_\}/,
	'labels are registered');

# Another session that was connected before a label was committed can use it,
# and has the policies of all labels.
{
  SKIP:
	{
		# early minor versions of 15 have another background_psql()
		skip 'no PostgreSQL::Test::BackgroundPsql', 2
		  unless eval { require PostgreSQL::Test::BackgroundPsql; 1 };
		my $session = $node->background_psql('original');
		$session->query_safe(q{SELECT count(*) FROM syncstate.claim_due_syncs(NULL, 1)});
		$node->safe_psql('original', q{SELECT syncstate.register_sync_source('late')});
		is($session->query_safe(q{SELECT (syncstate.connect_sync(md5('1')::uuid, 'late')).source}),
			'late', 'a label is usable in a session that was there before');
		$session->query_safe(q{SELECT syncstate.disconnect_sync(md5('1')::uuid, 'late')});

		# a label that a cleaner's snapshot does not show is kept, too
		$session->query_safe(q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM syncstate.custom_source});
		$node->safe_psql('original', q{SELECT syncstate.register_sync_source('later')});
		$session->query_safe(q{SET LOCAL client_min_messages = warning; TRUNCATE syncstate.custom_source; COMMIT});
		is($node->safe_psql('original', q{SELECT string_agg(label, ' ' ORDER BY ctid) FROM syncstate.custom_source}),
			'outlook_mail zoho a 7 _ late later', 'TRUNCATE keeps labels that came after its snapshot');
		$session->quit;
		$original = everything('original');
	}
}

# ------------------------------------------------------- a database cleaner

# Tests that empty all tables between them, each in its own way: the labels of
# the dumps below are there all the same, with the rows that came since.
foreach my $cleaner ('DELETE FROM syncstate.custom_source',
	'TRUNCATE syncstate.custom_source',
	'TRUNCATE syncstate.custom_source RESTART IDENTITY CASCADE',
	'SET session_replication_role = replica; DELETE FROM syncstate.custom_source; TRUNCATE syncstate.custom_source')
{
	$node->safe_psql('original', $cleaner);
	is(everything('original'), $original, "the labels stay: $cleaner");
}

# ------------------------------------------------------ pg_dump and restore

my $dir = PostgreSQL::Test::Utils::tempdir();
foreach my $format (qw(plain custom directory tar))
{
	my ($ok, $err) = run_program('pg_dump', '-F', $format, '-f', "$dir/$format", '-d', 'original');
	ok($ok && $err eq '', "pg_dump in $format format") or diag($err);
}

database('from_plain');
my ($ok, $err) = run_program('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain", '-d', 'from_plain');
ok($ok, 'psql restores') or diag($err);
unlike($err, qr/ERROR|WARNING/, 'without an error');
is(everything('from_plain'), $original, 'a plain dump restored by psql is the same');

foreach my $format (qw(custom directory tar))
{
	database("from_$format");
	($ok, $err) = run_program('pg_restore', '--exit-on-error', '-d', "from_$format", "$dir/$format");
	ok($ok, "pg_restore from $format format") or diag($err);
	is(everything("from_$format"), $original, "a $format dump restored is the same");
}

# The owner of the database restores, too, who is no superuser and owns no
# object of the extension.  Row security is in the way of COPY, as for any
# table that has it.
database('by_owner');
$node->safe_psql('postgres', 'ALTER ROLE site BYPASSRLS');
($ok, $err) = run_program('pg_restore', '-U', 'site', '--exit-on-error', '--no-owner', '--no-comments',
	'-d', 'by_owner', "$dir/custom");
ok($ok, 'pg_restore by the owner of the database') or diag($err);
is(everything('by_owner'), $original, 'is the same');

# A restored database goes on: its labels are known, more can be added, and a
# second dump is like the first.
$node->safe_psql('from_custom', q{SELECT syncstate.register_sync_source(l) FROM unnest(ARRAY['outlook_mail', 'restored']) AS l});
is($node->safe_psql('from_custom', q{SELECT label, count(*) FROM syncstate.custom_source WHERE label IN ('outlook_mail', 'restored') GROUP BY label ORDER BY label}),
	"outlook_mail|1\nrestored|1", 'a label that was restored is registered already');
is($node->safe_psql('from_custom', q{SELECT (syncstate.connect_sync(md5('x')::uuid, 'restored')).source}),
	'restored', 'another one can be added');
my @dumps;
foreach my $database (qw(original from_plain))
{
	run_program('pg_dump', '-f', "$dir/again_$database", '-d', $database);
	my $dump = slurp_file("$dir/again_$database");
	$dump =~ s/^\\(un)?restrict .*$//mg; # a random key, in newer versions
	push @dumps, $dump;
}
is($dumps[1], $dumps[0], 'a second dump is the same');

# ------------------------------------------------- other orders of restoring

# In one transaction the labels are added, but until 16 nothing may use them;
# since 17 it may, where the transaction made the type too.
database('single');
($ok, $err) = run_program('pg_restore', '--single-transaction', '-d', 'single', "$dir/custom");
if ($node->pg_version < 17)
{
	ok(!$ok, 'pg_restore --single-transaction fails');
	like($err, qr/unsafe use of new value/, 'because the labels are not committed');
	is($node->safe_psql('single', q{SELECT count(*) FROM pg_extension WHERE extname = 'syncstate'}),
		'0', 'and leaves nothing');
}
else
{
	ok($ok, 'pg_restore --single-transaction works') or diag($err);
	is(everything('single'), $original, 'and restores all');
}

# In parallel, the rows may come before their labels, or not: either all is
# there, or the errors say so.
database('parallel');
($ok, $err) = run_program('pg_restore', '-j', '4', '-d', 'parallel', "$dir/directory");
ok($ok ? everything('parallel') eq $original : $err =~ /invalid input value for enum|unsafe use of new value/,
	'pg_restore -j restores all or tells what it could not') or diag($err);

# The cure: the labels first, in a transaction of their own, in the order of
# the original.
my $labels = $node->safe_psql('original', q{
	SELECT string_agg(format('SELECT syncstate.register_sync_source(%L);', l), ' ' ORDER BY l)
	FROM unnest(enum_range(NULL::syncstate.sync_source)) AS l});
foreach my $how ([ 'single_cured', '--single-transaction', "$dir/custom" ],
	[ 'parallel_cured', '--jobs=4', "$dir/directory" ],
	[ 'plain_cured' ])
{
	my ($database, $option, $file) = @$how;
	database($database);
	$node->safe_psql($database, 'CREATE EXTENSION syncstate');
	$node->safe_psql($database, $labels);
	($ok, $err) = defined $file
	  ? run_program('pg_restore', '--exit-on-error', $option, '-d', $database, $file)
	  : run_program('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-1', '-f', "$dir/plain", '-d', $database);
	ok($ok, "$database: with the labels registered first, it restores") or diag($err);
	is(everything($database), $original, "$database: is the same");
}

$node->stop;
done_testing();
