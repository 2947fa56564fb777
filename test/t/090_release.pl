# What is released: META.json is one that PGXN takes, all files agree on the
# version, `make dist` makes archives of all that is committed, and what is
# unpacked from one builds, installs into a server that has nothing of ours, and
# passes its regression tests there.

use strict;
use warnings FATAL => 'all';

use Cwd;
use File::Find;
use File::Path qw(make_path);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Neither the make nor the git that may run this test is to tell ours anything.
delete @ENV{ qw(MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES DESTDIR REGRESS ISOLATION PROVE_TESTS), grep { /^GIT_/ } keys %ENV };

my $tmp = PostgreSQL::Test::Utils::tempdir();
my %dir;
foreach my $what (qw(bindir pkglibdir sharedir))
{
	$dir{$what} = `pg_config --$what`;
	chomp $dir{$what};
}
my $pg_config = "$dir{bindir}/pg_config";

# Output of a command, which must succeed.
sub output
{
	my ($stdout, $stderr) = run_command(\@_);
	die "@_: $stderr" if $?;
	return $stdout;
}

sub write_file
{
	my ($file, $text) = @_;
	open(my $handle, '>', $file) or die "$file: $!";
	print $handle $text;
	close $handle or die "$file: $!";
}

# A repository of the tree as it is, committed, at which nothing here can break
# the real one.  What .gitignore names is no part of it.
{
	local $ENV{GIT_DIR} = "$tmp/origin";
	local $ENV{GIT_WORK_TREE} = getcwd();
	output('git', 'init', '-q');
	output('git', 'add', '.');
	output('git', '-c', 'user.name=regress', '-c', 'user.email=regress@localhost', 'commit', '-q', '-m', 'all');
}
my $tree = "$tmp/tree";
output('git', 'clone', '-q', "$tmp/origin", $tree);

### META.json

# What the PGXN Meta Spec 1.0 (https://pgxn.org/spec/) says a META.json must be,
# as [required, check] by key, and where PGXN's own schema is narrower, that.
my $string = sub { !ref $_[0] && defined $_[0] && length $_[0] };
my $term = sub { $string->(@_) && $_[0] =~ m{^[^/\\[:cntrl:][:space:]]{2,}$} };
my $tag = sub { $string->(@_) && $_[0] =~ m{^[^/\\[:cntrl:]]{2,255}$} };
my $uri = sub { $string->(@_) && $_[0] =~ m{^[a-z][a-z0-9+.-]*:\S+$}i };
my $spec_url = sub { $string->(@_) && $_[0] =~ m{^https?://pgxn\.org/meta/spec\.txt$} };
my $path = sub { $string->(@_) && $_[0] !~ m{^/|\\|(^|/)\.\.(/|$)} };
my $number = qr/(?:0|[1-9][0-9]*)/;
my $semver = qr/$number\.$number\.$number(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?(?:\+[0-9A-Za-z.-]+)?/;
my $version = sub { $string->(@_) && $_[0] =~ m{^$semver$} };
my $range = sub {
	defined $_[0] && !ref $_[0] && ($_[0] eq '0' || $_[0] =~ m{^(?:(?:[<>]=?|[=!]=) *)?$semver(?: *, *(?:(?:[<>]=?|[=!]=) *)?$semver)*$});
};
my $license = sub {
	$string->(@_) && $_[0] =~ m{^(?:agpl_3|apache_1_1|apache_2_0|artistic_[12]|bsd|freebsd|gfdl_1_[23]|gpl_[123]|lgpl_2_1|lgpl_3_0|mit
		|mozilla_1_[01]|openssl|perl_5|postgresql|qpl_1_0|ssleay|sun|zlib|open_source|restricted|unrestricted|unknown)$}x;
};

# One, or a list of at least one.
sub some
{
	my ($check) = @_;
	return sub {
		my @values = ref $_[0] eq 'ARRAY' ? @{ $_[0] } : ($_[0]);
		return @values && !grep { !$check->($_) } @values;
	};
}

# A map, of at least one, whose keys and values pass.
sub map_of
{
	my ($key, $value) = @_;
	return sub {
		my ($map) = @_;
		return ref $map eq 'HASH' && %$map && !grep { !$key->($_) || !$value->($map->{$_}) } keys %$map;
	};
}

# A map of these keys, beside which only those that begin with x_ are allowed.
sub structure
{
	my (%keys) = @_;
	return sub {
		my ($map) = @_;
		return 0 if ref $map ne 'HASH';
		return 0 if grep { $keys{$_}[0] && !exists $map->{$_} } keys %keys;
		return !grep { !/^x_/i && !($keys{$_} && $keys{$_}[1]->($map->{$_})) } keys %$map;
	};
}

my $phase = sub { $_[0] =~ m{^(?:configure|build|test|runtime|develop)$} };
my $relation = sub { $_[0] =~ m{^(?:requires|recommends|suggests|conflicts)$} };
my $is_meta = structure(
	name => [ 1, $term ],
	version => [ 1, $version ],
	abstract => [ 1, $string ],
	maintainer => [ 1, some($string) ],
	license => [ 1, sub { ref $_[0] eq 'HASH' ? map_of($string, $uri)->(@_) : some($license)->(@_) } ],
	provides => [ 1, map_of($term, structure(
		file => [ 1, $path ], version => [ 1, $version ], abstract => [ 0, $string ], docfile => [ 0, $path ])) ],
	'meta-spec' => [ 1, structure(version => [ 1, sub { $string->(@_) && $_[0] =~ m{^1\.0\.[0-9]+$} } ], url => [ 0, $spec_url ]) ],
	description => [ 0, $string ],
	generated_by => [ 0, $string ],
	tags => [ 0, some($tag) ],
	no_index => [ 0, structure(file => [ 0, some($path) ], directory => [ 0, some($path) ]) ],
	prereqs => [ 0, map_of($phase, map_of($relation, map_of($term, $range))) ],
	release_status => [ 0, sub { $string->(@_) && $_[0] =~ m{^(?:stable|testing|unstable)$} } ],
	resources => [ 0, structure(
		homepage => [ 0, $uri ],
		bugtracker => [ 0, structure(web => [ 0, $uri ], mailto => [ 0, $string ]) ],
		repository => [ 0, structure(url => [ 0, $uri ], web => [ 0, $uri ], type => [ 0, sub { $string->(@_) && $_[0] =~ m{^[a-z]+$} } ]) ]) ]);

my $json = slurp_file("$tree/META.json");
my $meta = decode_json($json);
ok($is_meta->($meta), 'META.json is as PGXN demands');

# Faults that must not pass: code that makes one, in $_.
foreach my $fault (
	(map { my $key = $_; sub { delete $_->{$key} } } qw(name version abstract maintainer license provides meta-spec)),
	(map { my $key = $_; sub { $_->{$key} = '' } } qw(name version abstract maintainer license provides meta-spec)),
	sub { $_->{version} = '1.0' },
	sub { $_->{version} = '01.0.0' },
	sub { $_->{version} = 'v1.0.0' },
	sub { $_->{name} = 'sync/state' },
	sub { $_->{name} = 's' },
	sub { $_->{maintainer} = [] },
	sub { $_->{maintainer} = { name => 'x' } },
	sub { $_->{license} = 'PostgreSQL' },
	sub { $_->{license} = { PostgreSQL => 'postgresql' } },
	sub { $_->{provides} = {} },
	sub { delete $_->{provides}{syncstate}{file} },
	sub { delete $_->{provides}{syncstate}{version} },
	sub { $_->{provides}{syncstate}{file} = '/syncstate.sql' },
	sub { $_->{provides}{syncstate}{docs} = 'README.md' },
	sub { $_->{prereqs}{runtime}{requires}{PostgreSQL} = '15' },
	sub { $_->{prereqs}{runtime}{needs}{PostgreSQL} = '15.0.0' },
	sub { $_->{prereqs}{install}{requires}{PostgreSQL} = '15.0.0' },
	sub { $_->{tags} = ['a/b'] },
	sub { $_->{'meta-spec'}{version} = '2.0.0' },
	sub { $_->{keywords} = ['sync'] })
{
	local $_ = decode_json($json);
	$fault->();
	my $faulty = JSON::PP->new->canonical->encode($_);
	isnt($faulty, JSON::PP->new->canonical->encode($meta), 'a fault is made');
	ok(!$is_meta->($_), 'not taken: ' . substr($faulty, 0, 60)) or diag($faulty);
}

ok($meta->{provides}{$_}, "it provides $_") foreach map { s/\.control$//r } grep { /\.control$/ } split(/\n/, output('git', '-C', $tree, 'ls-files'));
foreach my $extension (values %{ $meta->{provides} })
{
	ok(-s "$tree/$_", "$_ exists") foreach @$extension{qw(file docfile)};
}
foreach my $extension (sort keys %{ $meta->{provides} })
{
	my ($comment) = slurp_file("$tree/$extension.control") =~ /^comment = '(.*)'$/m;
	is($meta->{provides}{$extension}{abstract}, $comment, "what $extension is about, in the words of its control file");
}
is($meta->{abstract}, $meta->{provides}{syncstate}{abstract}, 'and it is about syncstate');

### versions

my $release = output("$tree/test/versions");
is($release, $meta->{version}, 'all files agree on the version');

# The version in one file after another becomes another one.
foreach my $change (
	[ 'syncstate.control', sub { s/'1\.0'/'1.1'/ } ],
	[ 'syncstate_router.control', sub { s/'1\.0'/'1.1'/ } ],
	[ 'META.json', sub { s/"1\.0\.0"/"1.1.0"/ } ],
	[ 'META.json', sub { s/"syncstate": \{.*?\K"1\.0\.0"/"1.1.0"/s } ],
	[ 'META.json', sub { s/"syncstate_router": \{.*?\K"1\.0\.0"/"1.1.0"/s } ],
	[ 'META.json', sub { s/syncstate--1\.0\.sql/syncstate--1.1.sql/ } ],
	[ 'META.json', sub { s/router--1\.0\.sql/router--1.1.sql/ } ],
	[ 'CHANGELOG.md', sub { s/^## /## 1.1 (unreleased)\n\n- Added.\n\n## /m } ],
	[ 'debian/changelog', sub { s/\(1\.0\.0-/(1.1.0-/ } ],
	[ 'sql/syncstate--1.1.sql', sub { $_ = 'SELECT 1;' } ],
	[ 'sql/syncstate_router--1.1.sql', sub { $_ = 'SELECT 1;' } ])
{
	my ($file, $edit) = @$change;
	my $before = -e "$tree/$file" ? slurp_file("$tree/$file") : undef;
	local $_ = $before // '';
	$edit->();
	isnt($_, $before // '', "$file is changed");
	write_file("$tree/$file", $_);
	my ($stdout, $stderr) = run_command(["$tree/test/versions"]);
	ok($? && $stdout eq '' && $stderr =~ /control file says/, "another version in $file is noticed") or diag("$stdout$stderr");
	defined $before ? write_file("$tree/$file", $before) : unlink("$tree/$file");
}
# An update script is not an install script.
write_file("$tree/sql/syncstate--1.0--1.1.sql", '');
is(output("$tree/test/versions"), $release, 'a script that updates to the next version is none of it');
unlink("$tree/sql/syncstate--1.0--1.1.sql");

### archives

my @make = ('make', '-s', "PG_CONFIG=$pg_config");
my @archives = map { "syncstate-$release.$_" } qw(zip tar.gz);

sub refused
{
	my ($name, $message) = @_;
	my ($stdout, $stderr) = run_command([ @make, '-C', $tree, 'dist' ]);
	ok($? && $stderr =~ $message, "no archive of $name") or diag("$stdout$stderr");
	ok(!-e "$tree/$_", "no $_") foreach @archives;
}

append_to_file("$tree/README.md", "more\n");
refused('what is not committed', qr/commit first/);
output('git', '-C', $tree, 'checkout', '-q', 'README.md');
write_file("$tree/debian/changelog", slurp_file("$tree/debian/changelog") =~ s/\(1\.0\.0-/(1.1.0-/r);
output('git', '-C', $tree, '-c', 'user.name=regress', '-c', 'user.email=regress@localhost', 'commit', '-q', '-a', '-m', 'other');
refused('two versions', qr{^debian/changelog: }m);
output('git', '-C', $tree, 'reset', '-q', '--hard', 'HEAD^');

is(output(@make, '-C', $tree, 'dist'), join("\n", @archives), 'make dist tells what it makes');
is(output('git', '-C', $tree, 'status', '--porcelain'), '', 'git ignores the archives');

# Files below a directory, with their contents and whether they can be run.
sub contents
{
	my ($root) = @_;
	my %found;
	find(
		{
			no_chdir => 1,
			wanted => sub {
				return $File::Find::prune = 1 if /\/\.git$/;
				$found{ substr($_, length($root) + 1) } = (-x $_ ? 'x ' : '- ') . slurp_file($_) if -f $_;
			}
		},
		$root);
	delete @found{@archives};
	return \%found;
}

my $committed = contents($tree);
is_deeply([ sort keys %$committed ], [ sort split(/\n/, output('git', '-C', $tree, 'ls-files')) ], 'all that is committed is here');
foreach my $archive (@archives)
{
	make_path("$tmp/$archive");
	output($archive =~ /zip$/ ? ('python3', '-c', <<'END', "$tree/$archive", "$tmp/$archive") : ('tar', '-x', '-f', "$tree/$archive", '-C', "$tmp/$archive"));
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    for member in archive.infolist():
        path = archive.extract(member, sys.argv[2])
        if not member.is_dir():
            os.chmod(path, member.external_attr >> 16 & 0o777 or 0o644)
END
	my @top = map { s{.*/}{}r } glob("$tmp/$archive/*");
	is_deeply(\@top, ["syncstate-$release"], "$archive has one directory");
	my $unpacked = contents("$tmp/$archive/syncstate-$release");
	is_deeply([ sort keys %$unpacked ], [ sort keys %$committed ], "$archive has all that is committed, and nothing else");
	is(join("\n", grep { ($unpacked->{$_} // '') ne $committed->{$_} } sort keys %$committed), '', 'and as it is committed');
}

### from an archive to an extension

# A server finds its files by where it lies, so that a copy is a whole server;
# one that knows nothing of us, and that we may write to.
my $server = "$tmp/server";
foreach my $from (values %dir)
{
	make_path("$server$from");
	output('cp', '-rL', "$from/.", "$server$from");
}
unlink("$server$dir{pkglibdir}/syncstate.so", glob("$server$dir{sharedir}/extension/syncstate*"));

my $node = PostgreSQL::Test::Cluster->new('copy', install_path => "$server$dir{bindir}/..");
$node->init;
$node->start;
my ($status, undef, $stderr) = $node->psql('postgres', 'CREATE EXTENSION syncstate');
ok($status && $stderr =~ /extension "syncstate" is not available|could not open extension control file/, 'the server has nothing of ours') or diag($stderr);

my $source = "$tmp/$archives[0]/syncstate-$release";
my @ours = ("$dir{pkglibdir}/syncstate.so", map { "$dir{sharedir}/extension/$_" } 'syncstate.control', 'syncstate_router.control',
	map { s{.*/}{}r } glob("$source/sql/syncstate--*.sql $source/sql/syncstate_router--*.sql"));
sub installed { return [ grep { -e "$server$_" } @ours ] }

command_ok([ @make, '-C', $source, 'all' ], 'make');
is_deeply(installed(), [], 'which installs nothing');
command_ok([ @make, '-C', $source, "DESTDIR=$server", 'install' ], 'make install');
is_deeply(installed(), \@ours, 'and all is where the server looks');
is((stat("$server$ours[0]"))[2] & 022, 0, 'nobody else may write to the library');

$node->safe_psql('postgres', 'CREATE EXTENSION syncstate');
is($node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'syncstate'}) . '.0', $release, 'CREATE EXTENSION makes this version');

# A database is either a shard or a router, and a router needs PL/Proxy.
$node->safe_psql('postgres', 'CREATE DATABASE router');
SKIP:
{
	skip('PL/Proxy is not installed for this server', 1) unless -e "$server$dir{sharedir}/extension/plproxy.control";
	$node->safe_psql('router', 'CREATE EXTENSION syncstate_router CASCADE');
	is($node->safe_psql('router', q{SELECT extversion FROM pg_extension WHERE extname = 'syncstate_router'}) . '.0', $release,
		'and so does that of the router');
}
{
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	command_ok([ @make, '-C', $source, 'installcheck', 'ISOLATION=', 'TAP_TESTS=', 'REGRESS=install lifecycle uninstall' ],
		'make installcheck, with the tests of the archive');
}
$node->safe_psql('postgres', 'DROP EXTENSION syncstate');
command_ok([ @make, '-C', $source, "DESTDIR=$server", 'uninstall' ], 'make uninstall');
is_deeply(installed(), [], 'and all is gone');
$node->stop;

done_testing();
