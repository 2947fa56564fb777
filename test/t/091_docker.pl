# The Dockerfiles, as far as they can be checked without Docker: their steps are
# taken in directories that stand for the images.  What is not: that the images
# exist, and what the real ones hold.

use strict;
use warnings FATAL => 'all';

use Cwd;
use File::Basename;
use File::Find;
use File::Path qw(make_path);
use PostgreSQL::Test::Utils;
use Test::More;

delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES DESTDIR)};

my $tmp = PostgreSQL::Test::Utils::tempdir();
my %dir;
foreach my $what (qw(bindir pkglibdir sharedir))
{
	$dir{$what} = `pg_config --$what`;
	chomp $dir{$what};
}
my ($major) = `pg_config --version` =~ /(\d+)/;
my @ours = ("$dir{pkglibdir}/syncstate.so", map { "$dir{sharedir}/extension/$_" } 'syncstate.control', 'syncstate_router.control',
	map { basename($_) } glob('sql/syncstate--*.sql sql/syncstate_router--*.sql'));

sub write_file
{
	my ($file, $text, $mode) = @_;
	make_path(dirname($file));
	open(my $handle, '>', $file) or die "$file: $!";
	print $handle $text;
	close $handle or die "$file: $!";
	chmod($mode // 0644, $file);
}

# All files below a directory, from it on.
sub files
{
	my ($root) = @_;
	my @files;
	find({ no_chdir => 1, wanted => sub { push @files, substr($_, length($root)) if !-d $_ } }, $root);
	return [ sort @files ];
}

### what docker would be sent

# The tree, with things in it that must not come along: what was built for
# another server would not be built again.
my $tree = "$tmp/tree";
make_path($tree);
system_or_bail('sh', '-c', 'tar -c --exclude=./tmp_check --exclude=./.git --exclude="*.o" --exclude="*.so" . | tar -x -C "$1"', 'sh', $tree);
my @stale = qw(syncstate.so src/claim.o src/claim.bc examples/node_modules/x/y.js tmp_check/log/main.log .git/HEAD);
write_file("$tree/$_", 'stale') foreach @stale;

# Patterns of .dockerignore as regular expressions on paths.
my @ignored = map {
	my $pattern = quotemeta($_);
	$pattern =~ s{\\\*\\\*\\/}{(?:.*/)?}g;
	$pattern =~ s{\\\*}{[^/]*}g;
	qr{^$pattern(?:/|$)};
} grep { !/^(#|$)/ } split(/\n/, slurp_file('.dockerignore'));
my $context = "$tmp/context";
foreach my $file (map { substr($_, 1) } @{ files($tree) })
{
	next if grep { $file =~ $_ } @ignored;
	make_path(dirname("$context/$file"));
	system_or_bail('cp', '-p', "$tree/$file", "$context/$file");
}
is(join(' ', grep { -e "$context/$_" } @stale), '', 'nothing that was built here is sent');
ok(-e "$context/$_", "$_ is sent") foreach qw(Makefile syncstate.control syncstate_router.control sql/syncstate--1.0.sql src/syncstate.h src/claim.c);

### steps

# [instruction, arguments] of a Dockerfile.
sub instructions
{
	my ($file) = @_;
	my $text = slurp_file($file);
	$text =~ s/^\s*#.*\n//mg;
	$text =~ s/\\\n\s*/ /g;
	return map { /^(\S+)\s+(.*)/ ? [ $1, $2 ] : die "$file: $_" } grep { /\S/ } split(/\n/, $text);
}

# Whether apt can tell what packages there are.
my $apt = !system('apt-cache show libc6 >/dev/null 2>&1');

# Take the steps of a Dockerfile in the directories of its stages, with these
# values of its arguments.  Before the last stage's steps, "prepare" is called
# with its directory.  Returns that directory, what each stage was made from, and
# the exit status and output of the last command.  A stage with a name is made
# but once for each file.
my (%stages, $builds);
sub build
{
	my ($file, $values, $prepare) = @_;
	my $work = "$tmp/" . basename(dirname($file)) . '.' . ++$builds;
	my $stage = $stages{$file} //= {};
	my (%global, %arguments, @from, $root, $in_stage, $made, $status, $output);
	my $expand = sub {
		my ($text, $known) = @_;
		return $text =~ s/\$\{(\w+)\}/$known->{$1} \/\/ die "$file: $1 has no value here"/ger;
	};

	foreach (instructions($file))
	{
		my ($instruction, $rest) = @$_;
		if ($instruction eq 'ARG')
		{
			my ($name, $default) = $rest =~ /^(\w+)(?:=(.*))?$/ or die "$file: ARG $rest";
			my $value = $values->{$name} // $default // $global{$name} // die "$file: $name has no value";
			($in_stage ? $arguments{$name} : $global{$name}) = $value;
		}
		elsif ($instruction eq 'FROM')
		{
			my ($image, $name) = $rest =~ /^(\S+)(?: AS (\w+))?$/ or die "$file: FROM $rest";
			($in_stage, %arguments) = (1);
			push @from, $expand->($image, \%global);
			$root = "$work/" . ($name // 'final');
			$made = $name && $stage->{$name};
			next if $made;
			$stage->{$name} = $root if $name;
			make_path("$root/tmp");
			$prepare->($root) if !$name && $prepare;
		}
		elsif ($made)
		{
			next;
		}
		elsif ($instruction eq 'COPY')
		{
			my @paths = split(' ', $rest);
			my $base = $context;
			if ($paths[0] =~ /^--from=(\w+)$/)
			{
				$base = $stage->{$1} // die "$file: no stage $1";
				shift @paths;
			}
			my $target = pop @paths;
			ok(@paths == 1 || $target =~ m{/$}, "$file: $target is a directory");
			make_path("$root$target");
			foreach my $source (@paths)
			{
				my @found = glob("$base/$source");
				ok(@found && !grep({ !-e $_ } @found), "$file: there is $source to copy");
				# a directory's contents, or a file
				system_or_bail('cp', '-r', (map { -d $_ ? "$_/." : $_ } @found), "$root$target");
			}
		}
		elsif ($instruction eq 'RUN' && $rest =~ /^apt-get update && apt-get install -y --no-install-recommends (.*)$/)
		{
			foreach my $package (split(' ', $expand->($1, \%arguments)))
			{
			SKIP:
				{
					skip('apt has no lists of packages', 1) unless $apt;
					ok(!system("apt-cache show $package >/dev/null 2>&1"), "$file: Debian has $package");
				}
			}
		}
		elsif ($instruction eq 'RUN')
		{
			# The server of the image is the one we are tested with.
			my $command = $rest =~ s{/usr/lib/postgresql/\$\{PG_MAJOR\}/bin/pg_config}{$dir{bindir}/pg_config}r;
			$command =~ s{(?<![\w/.])/(?=(?:src|out|tmp/syncstate|usr/bin/postgres)\b)}{$root/}g;
			my ($stdout, $stderr) = do
			{
				local @ENV{ keys %arguments } = values %arguments;
				local $ENV{PATH} = "$root/usr/bin:$ENV{PATH}";
				run_command([ 'sh', '-c', $command ]);
			};
			($status, $output) = ($?, "$stdout\n$stderr");
			last if $status;
		}
		elsif ($instruction ne 'USER')
		{
			die "$file: what is $instruction?";
		}
	}
	return ($root, \@from, $status, $output);
}

### postgres

my $file = 'docker/postgres/Dockerfile';
my ($root, $from, $status, $output) = build($file, { PG_MAJOR => $major });
is($status, 0, "$file: builds") or diag($output);
is_deeply($from, [ ("postgres:$major-bookworm") x 2 ], 'for the release that it was built in');
is_deeply(files($root), [ sort @ours ], 'and puts our files where the server looks, and nothing else');

# What docker makes of it without --build-arg.
my ($default) = slurp_file($file) =~ /^ARG PG_MAJOR=(\d+)$/m;
like($default, qr/^1[5-8]$/, 'by default, for a server that we support');

# The library as it goes into both images.
my ($needed) = run_command([ 'readelf', '-d', "$root$ours[0]" ]);
is(join(' ', $needed =~ /\(NEEDED\).*\[(.*)\]/g), 'libc.so.6', 'which needs nothing but the C library');

### supabase/postgres

# What of the image our steps touch: a script that starts the server, and says
# where its libraries are; and pg_config, which says something else.
$file = 'docker/supabase/Dockerfile';
my ($libraries, $share) = ("nix/store/x-postgresql-and-plugins-$major.6/lib", "nix/store/x-postgresql-$major.6/share/postgresql");
sub image
{
	my (%other) = @_;
	return sub {
		my ($root) = @_;
		make_path("$root/$libraries", "$root/$share/extension");
		write_file("$root/usr/bin/postgres", $other{wrapper} // <<"END", 0755);
#! /nix/store/x-bash-5.2/bin/bash -e
export NIX_PGLIBDIR='$root/$libraries'
exec -a "\$0" "/nix/store/x-postgresql-and-plugins/bin/.postgres-wrapped"  "\$@"
END
		my $version = $other{version} // "PostgreSQL $major.6";
		write_file("$root/usr/bin/pg_config", <<"END", 0755);
#!/bin/sh
case \$1 in
	--version) echo '$version' ;;
	--sharedir) echo '$root/$share' ;;
	--pkglibdir) echo '$root/elsewhere' ;;
esac
END
	};
}

my %values = (PG_MAJOR => $major, SUPABASE_POSTGRES_TAG => "$major.6.1.136");
($root, $from, $status, $output) = build($file, \%values, image());
is($status, 0, "$file: builds") or diag($output);
is_deeply($from, [ "postgres:$major-bookworm", "supabase/postgres:$major.6.1.136" ], 'on the image with the tag given');
my @there = map { m{\.so$} ? "/$libraries/" . basename($_) : "/$share/extension/" . basename($_) } @ours;
is_deeply(files($root), [ sort @there, '/usr/bin/pg_config', '/usr/bin/postgres' ], 'our files are where that server looks, and nothing else is left');
is((stat("$root$there[0]"))[2] & 07777, 0755, 'the library can be loaded by all');
is((stat("$root$_"))[2] & 07777, 0644, basename($_) . ' can be read by all') foreach @there[ 1 .. $#there ];
my ($needed_there) = run_command([ 'readelf', '-d', "$root$there[0]" ]);
is($needed_there, $needed, 'the library is the same');

# An image that is other than we know.
($root, undef, $status, $output) = build($file, \%values, image(version => 'PostgreSQL 9.6'));
isnt($status, 0, 'no image of another major version');
like($output, qr/^built for PostgreSQL $major, but this is PostgreSQL 9\.6$/m, 'which is told');
is_deeply([ grep { m{^/nix} } @{ files($root) } ], [], 'and nothing is installed');
($root, undef, $status, $output) = build($file, \%values, image(wrapper => "#!/bin/sh\nexec postgres\n"));
isnt($status, 0, 'no image whose libraries are where we do not know');
like($output, qr/NIX_PGLIBDIR.*is not set by/, 'which is told');
is_deeply([ grep { m{^/nix} } @{ files($root) } ], [], 'and nothing is installed');

my %default = slurp_file($file) =~ /^ARG (\w+)=(\S+)$/mg;
like($default{SUPABASE_POSTGRES_TAG}, qr/^$default{PG_MAJOR}\.\d/, 'the defaults are of the same major version');

done_testing();
