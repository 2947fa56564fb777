# The design of leases, fencing, hints, requests and caps holds in every order
# of events: spin looks at all states of test/model/lease.pml.  And it would not
# hold without each of its parts.  See test/model/README.md.
#
# Needs spin and a C compiler (test/setup installs them), and no server.
#
#	SYNCSTATE_DESIGN_FAULTS		how many faults one history may have; 1 if unset
use strict;
use warnings;

use Cwd;
use File::Temp;
use FindBin;
use Test::More;

my $faults = $ENV{SYNCSTATE_DESIGN_FAULTS} || 1;
my $model = Cwd::abs_path("$FindBin::RealBin/../model/lease.pml");
# How deep the search may go; a search that would go deeper fails.
my $depth = 1_000_000 * $faults;
# Compressed states take less memory and more time: only for the long version.
my $compressed = $faults > 1 ? '-DCOLLAPSE' : '';
my $made = '';
my $dir = File::Temp::tempdir(CLEANUP => 1);

# Returns what a command prints, with an end that says how it ended.
sub output
{
	my ($command) = @_;
	my $out = `cd '$dir' && $command 2>&1`;
	return $out . ($? == 0 ? '' : "\nexit status $?\n");
}

# Looks at all states, for a property of lease.pml or only for its assertions
# ("assert"), and returns what was found: 'holds', 'violated' or all output.
sub check
{
	my ($property, %config) = @_;
	my $defines = join ' ', map { "-D$_=$config{$_}" } sort keys %config;
	my $kind = $property eq 'assert' ? '-DSAFETY -DNOCLAIM' : '-DNFAIR=4';
	my $out;

	# The program that spin makes knows all the properties of a configuration;
	# it is not written to be read: -w
	if ($made ne "$defines $kind")
	{
		$out = output("spin $defines -a '$model'");
		return $out if $out =~ /exit status|Error|error:/;
		$out = output("gcc -O1 -w $kind $compressed -o pan pan.c");
		return $out if $out =~ /exit status/;
		$made = "$defines $kind";
	}

	# -f: who can go on for ever, does go on
	$out = output('./pan' . ($property eq 'assert' ? '' : " -a -f -N $property") . " -m$depth");
	note("$property, $defines: $1 states") if $out =~ /(\d+) states, stored/;

	return 'violated'
		if $out =~ /errors: 1\b/ && $out =~ /assertion violated|acceptance cycle/;
	return 'holds'
		if $out =~ /errors: 0\b/ && $out !~ /exit status|max search depth|Search not completed/;
	return $out;
}

foreach my $program ('spin', 'gcc')
{
	die "$program is not installed; test/setup does that\n"
		if system("command -v $program >/dev/null") != 0;
}

# What is written in comments here stands in lease.pml at more length.
my %leases = (ROWS => 1, WORKERS => 3, FAULTS => $faults + 2, ANY_ROW => 1);
my %hints = (ROWS => 1, WORKERS => 2, FAULTS => $faults);
my %lanes = (ROWS => 2, WORKERS => 1, FAULTS => $faults);
my %domain = (ROWS => 2, WORKERS => 2, FAULTS => $faults, ANY_ROW => 1, CAP => 1);

is(check('assert', %leases), 'holds', 'of two holders only the last one succeeds, and no two leases are live');
is(check('assert', %leases, $_ => 1), 'violated', "... not so with $_") 
  foreach 'NO_FENCE', 'NO_STATUS', 'NO_RECHECK', 'NUMBERS_AGAIN', 'NO_LEASE_NEEDED';

is(check('assert', %domain), 'holds', 'no more rows of a quota domain run than may, whoever claims at once');
is(check('assert', %domain, $_ => 1), 'violated', "... not so with $_") foreach 'NO_DOMAIN_LOCK', 'COUNTED_BEFORE';

is(check('request_kept', %leases), 'holds', 'a request stays until a run starts');
is(check('request_kept', %leases, LOSE_REQUEST => 1), 'violated', '... not so with LOSE_REQUEST');

is(check('due_claimed', %hints), 'holds', 'a due row is claimed in the end, whatever the hints of two sessions');
is(check('request_served', %hints), 'holds', 'and a requested one');
is(check('due_claimed', %hints, $_ => 1), 'violated', "... not so with $_") foreach 'NO_SWEEP', 'ONE_SWEEP';
is(check('request_served', %hints, NO_SWEEP => 1), 'violated', '... nor a requested one with NO_SWEEP');

is(check('due_claimed', %lanes, ORDINARY => 1), 'holds', 'a due row is claimed in the end, however often others are requested');
is(check('due_claimed', %lanes, ORDINARY => 1, NO_SHARE => 1), 'violated', '... not so with NO_SHARE');
is(check('request_served', %lanes), 'holds', 'and a requested one, whatever else is due');

done_testing();
