# No two files of the library need each other: a file needs those whose headers
# it includes, and what they need.  The order that is printed has each file after
# those that it needs.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

chdir "$FindBin::RealBin/../..";

# The files that can be reached from each, by the name without its ending.
sub order
{
	my (%needs) = @_;
	my (@order, %state);
	my $visit;
	$visit = sub {
		my ($file, @path) = @_;
		return if ($state{$file} || '') eq 'done';
		die join(' -> ', @path, $file) . "\n" if ($state{$file} || '') eq 'open';
		$state{$file} = 'open';
		$visit->($_, @path, $file) foreach sort keys %{ $needs{$file} };
		$state{$file} = 'done';
		push @order, $file;
	};
	$visit->($_) foreach sort keys %needs;
	return @order;
}

my %needs;
foreach my $path (glob 'src/*.[ch]')
{
	my ($file) = $path =~ m{([^/]+)\.[ch]$};
	$needs{$file} ||= {};
	foreach my $other (slurp_file($path) =~ /^#include "(\w+)\.h"/mg)
	{
		$needs{$file}{$other} = 1 if $other ne $file && -e "src/$other.h";
	}
}
cmp_ok(scalar(keys %needs), '>', 15, 'the files were found');

my @order = eval { order(%needs) };
is($@, '', 'no two files need each other');
note "@order";

# The check finds a circle.
$needs{check}{claim} = 1;
eval { order(%needs) };
like($@, qr/check -> claim -> |claim -> .*check/, 'a circle would be seen');

done_testing();
