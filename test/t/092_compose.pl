# examples/supabase/docker-compose.yaml, as far as it can be checked without Docker
# and without Supabase: what it names is there, and what its services of ours run
# does what it shall, on a server with Supabase's roles.  What is not checked: the
# images, and what Compose makes of this file and Supabase's together.

use strict;
use warnings FATAL => 'all';

use CPAN::Meta::YAML;
use Cwd;
use File::Copy;
use IPC::Run qw(start timeout);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $tree = getcwd;
my $services = CPAN::Meta::YAML->read_string(slurp_file('examples/supabase/docker-compose.yaml'))->[0]{services};
my ($db, $setup, $rest, $worker) = @$services{qw(db sync-setup rest sync-worker)};
is(scalar keys %$services, 4, 'two services of Supabase, and two of ours');

### what it names

# Supabase's directory, as the file's first lines say.
my $dir = PostgreSQL::Test::Utils::tempdir;
symlink($tree, "$dir/syncstate") or die $!;
copy('examples/google_calendar.mjs', $dir) or die $!;

my $text = slurp_file('examples/supabase/docker-compose.yaml') =~ s/^ *#.*//gmr;
my %theirs = map { $_ => 1 } qw(POSTGRES_HOST POSTGRES_PORT POSTGRES_DB POSTGRES_PASSWORD PGRST_DB_SCHEMAS);
my %demanded;
while ($text =~ /\$\{(\w+)(:[?-])?/g)
{
	$demanded{$1} = 1 if ($2 // '') eq ':?';
	ok($theirs{$1} || $demanded{$1} || $2, "$1 is in Supabase's .env, or demanded, or has a default");
}
my ($to_add) = slurp_file('examples/supabase/docker-compose.yaml') =~ /Add to \.env\n((?:# {8,}.*\n)+)/;
is_deeply([ sort $to_add =~ /(\w+)=/g ], [ sort keys %demanded ], 'what is demanded is what the file says to add');

foreach my $name (sort keys %$services)
{
	my $service = $services->{$name};
	if (my $build = $service->{build})
	{
		my $file = "$dir/$build->{context}/$build->{dockerfile}";
		ok(-f $file, "$name: there is $build->{dockerfile}");
		my %arguments = map { $_ => 1 } slurp_file($file) =~ /^ARG (\w+)/mg;
		ok($arguments{$_}, "$name: $_ is an argument of it") foreach sort keys %{ $build->{args} // {} };
	}
	foreach my $volume (@{ $service->{volumes} // [] })
	{
		my ($source) = ref $volume ? $volume->{source} : split(/:/, $volume);
		ok(-e "$dir/$source", "$name: there is $source");
	}
	ok($services->{$_}, "$name: there is $_ to wait for") foreach sort keys %{ $service->{depends_on} // {} };
}
is($_->{depends_on}{'sync-setup'}{condition}, 'service_completed_successfully', 'nothing starts before the schema is there')
	foreach $rest, $worker;
is($worker->{restart}, 'unless-stopped', 'the worker is started again');

### what it runs

# What a service's environment is, with these values for what .env has.
my $node = PostgreSQL::Test::Cluster->new('compose');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
my $hba = $node->data_dir . '/pg_hba.conf';
my $others = slurp_file($hba);
unlink $hba or die $!;
append_to_file($hba, "local all sync_worker scram-sha-256\n$others");
$node->start;
$node->safe_psql('postgres', $_)
	foreach 'CREATE ROLE supabase_admin LOGIN SUPERUSER',
	map({ "DO 'BEGIN CREATE ROLE $_; EXCEPTION WHEN duplicate_object THEN NULL; END'" } qw(postgres anon authenticated service_role)),
	'GRANT CREATE ON SCHEMA public TO postgres',
	map { "ALTER DEFAULT PRIVILEGES FOR ROLE $_ IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated" } qw(postgres supabase_admin);
my %dotenv = (
	POSTGRES_HOST => $node->host,
	POSTGRES_PORT => $node->port,
	POSTGRES_DB => 'postgres',
	POSTGRES_PASSWORD => 'any',
	PGRST_DB_SCHEMAS => 'public',
	SYNC_WORKER_PASSWORD => "it's secret");
delete @ENV{ grep { /^PG[A-Z]+$/ } keys %ENV };

sub environment
{
	my ($service) = @_;
	return map { $_ => $service->{environment}{$_} =~ s/\$\{(\w+)[^}]*\}/$dotenv{$1}/gr } keys %{ $service->{environment} };
}

{
	local %ENV = (%ENV, environment($setup));
	my $command = $setup->{command};
	is($command =~ s{/examples/}{$tree/examples/}, 1, 'the script is where the directory is mounted');
	command_ok([ split ' ', $command ], 'setup.sql runs');
	$node->safe_psql('postgres', 'ALTER ROLE sync_worker PASSWORD NULL');
	command_ok([ split ' ', $command ], 'and again');
	delete $ENV{SYNC_WORKER_PASSWORD};
	command_fails([ split ' ', $command ], 'not without a password');
}
my %rest = environment($rest);
is($node->safe_psql('postgres', "SELECT count(*) FROM unnest(string_to_array('$rest{PGRST_DB_SCHEMAS}', ',')) AS s WHERE to_regnamespace(s) IS NULL"),
	0, 'the schemas that PostgREST is told of are there');
is($node->safe_psql('postgres', q{SELECT string_agg(r || ' ' || p, ', ' ORDER BY r, p)
	FROM unnest('{anon,authenticated,sync_worker}'::text[]) AS r, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) AS p
	WHERE has_table_privilege(r, 'items', p)}),
	'authenticated SELECT, sync_worker DELETE, sync_worker INSERT, sync_worker SELECT, sync_worker UPDATE', 'who may do what to the items');
is($node->safe_psql('postgres', q{SELECT has_function_privilege('postgres', 'syncstate.next_sync_due(syncstate.sync_source)', 'EXECUTE')}),
	't', 'the role postgres may use syncstate');

# The image of the worker.
my $file = slurp_file("$dir/$worker->{build}{context}/$worker->{build}{dockerfile}");
my ($workdir) = $file =~ /^WORKDIR (.*)$/m;
my ($copied) = $file =~ m{^COPY (.*) \Q$workdir\E/$}m;
my ($packages) = $file =~ /^RUN npm install (.*)$/m;
my ($command) = $file =~ /^CMD (.*)$/m;
my $image = "$dir/image";
mkdir $image or die $!;
copy($_, $image) or die "$_: $!" foreach split ' ', $copied;
symlink("$tree/test/node/node_modules", "$image/node_modules") or die $!;
my ($major) = $packages =~ /^pg@(\d+)$/;
like(decode_json(slurp_file('test/node/package.json'))->{dependencies}{pg}, qr/^$major\./, 'its package is the one that the tests use');
my $script = slurp_file("$image/node_worker.mjs");
like($script, qr/process\.env\.$_\b/, "the worker reads $_") foreach grep { !/^PG/ } sort keys %{ $worker->{environment} };

# Mounted over what the image has: one source of which a page comes at once, and another one never.
my ($mounted) = map { $_->{target} } @{ $worker->{volumes} };
is($mounted =~ s{^\Q$workdir\E/}{$image/}, 1, 'the mounted file is in its directory');
ok(unlink($mounted), 'and takes the place of one');
append_to_file($mounted, <<'END');
export const SOURCE = 'google_calendar'
export const isList = () => false
export const fetchPage = (row, page, signal) => row.resource === 'slow'
  ? new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
  : Promise.resolve({ items: { one: {} }, next: null, cursor: 'token' })
END

my $out = '';
my $run;
{
	local %ENV = (%ENV, environment($worker));
	$run = start(decode_json($command), init => sub { chdir $image or die $! }, '<', \undef, '>&', \$out, timeout(180));
}
my $key = q{'a0000000-0000-4000-8000-000000000001', 'google_calendar'};
pump $run until $out =~ /sleeps/;
$node->safe_psql('postgres', "SET ROLE postgres; SELECT syncstate.connect_sync($key, '$_')") foreach qw(quick slow);
ok($node->poll_query_until('postgres', "SELECT (syncstate.get_sync_state($key, 'quick')).sync_token = 'token'
	AND (syncstate.get_sync_state($key, 'slow')).status = 'syncing'"), 'it is woken, and syncs');
is($node->safe_psql('postgres', 'SELECT resource, id FROM items'), 'quick|one', 'and writes the items');
is($node->safe_psql('postgres', qq{SET ROLE authenticated; SET request.jwt.claims = '{"sub": "$_->[0]"}'; SELECT count(*) FROM items}),
	$_->[1], 'of which users see their own')
	foreach [ 'a0000000-0000-4000-8000-000000000001', 1 ], [ 'b0000000-0000-4000-8000-000000000002', 0 ];
my $stopped = time;
$run->signal('TERM');
ok($run->finish, 'SIGTERM ends it') or diag $out;
my ($grace) = $worker->{stop_grace_period} =~ /^(\d+)s$/;
cmp_ok(time - $stopped, '<', $grace, 'before SIGKILL would come');
is($node->safe_psql('postgres', "SELECT status, due_at <= now() FROM syncstate.get_sync_state($key, 'slow')"), 'idle|t', 'and its row is released');

$node->stop;
done_testing();
