# The state machine alone, in a program without a server: test/unit/transitions.c,
# which says more.  Whatever it does that C does not define ends the program.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/../..";
my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
my ($include) = `$pg_config --includedir-server` =~ /(.*)/;

# That of the server's build may be another version than the one that is here.
my ($server_cc) = `$pg_config --cc` =~ /(.*)/;
my ($cc) = grep { system("$_ --version >/dev/null 2>&1") == 0 } grep { $_ } $ENV{CC}, $server_cc, 'cc', 'gcc', 'clang';
plan skip_all => 'there is no C compiler' unless defined $cc;

# Parts that a server would call are left out, and with them what they need of it.
my $program = PostgreSQL::Test::Utils::tempdir . '/transitions';
my @sources = ((map { "$top/test/unit/$_.c" } qw(transitions cases writes backend)),
	(map { "$top/src/$_.c" } qw(transition schedule due state check)));
my $complaints = '';
my $compiled = run_log([ split(' ', $cc), qw(-g -O1 -fno-strict-aliasing -D_GNU_SOURCE),
	qw(-fsanitize=undefined -fsanitize-undefined-trap-on-error),
	qw(-ffunction-sections -fdata-sections), '-Wl,--gc-sections',
	"-I$top/src", '-isystem', $include, '-o', $program, @sources, '-lm' ], '2>', \$complaints);
diag($complaints) unless $compiled;
ok($compiled, "the state machine needs no more of a server than test/unit/backend.c has ($cc)");

if ($compiled)
{
	my ($output, $errors) = ('', '');
	my $passed = run_log([$program], '>', \$output, '2>', \$errors);
	my ($properties) = $output =~ /^1\.\.(\d+)$/m;
	my $told = 0;
	foreach (split /\n/, $output)
	{
		if (/^(not )?ok \d+ - (.*)/) { ok(!$1, $2); $told++ }
		elsif (/^1\.\./) { }
		else { s/^# //; diag($_) }
	}
	diag($errors) if $errors ne '';
	is($told, $properties // 'a plan', 'all properties are told');
	ok($passed, 'the program ends as it says');
}
done_testing();
