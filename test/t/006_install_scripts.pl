# CREATE EXTENSION puts the name of the installing role in the place of
# @extowner@, and a schema's in that of @extschema@, as identifiers: within
# quotes of any kind they would become code (CVE-2023-39417, before 15.4).
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

# The quoted strings and identifiers of a script.  Comments are passed over; a
# string within another is a part of it.
sub quoted
{
	my ($text) = @_;
	my @quoted;
	while ($text =~ m{\G(?:
			--[^\n]*
			| /\*(?:(?!\*/).)*\*/
			| \b[eE]'((?:[^'\\]|''|\\.)*)'
			| '((?:[^']|'')*)'
			| "((?:[^"]|"")*)"
			| (?<![\w\$])(\$(?:[A-Za-z_]\w*)?\$)(.*?)\4
			| .)}gsx)
	{
		my $body = $1 // $2 // $3 // $5;
		next unless defined $body;
		$body =~ s/''/'/g if defined $1 || defined $2;
		push @quoted, $body;
	}
	return @quoted;
}

# The quoted strings that something is substituted in.
sub offences { return grep { /\@ext(?:owner|schema(?::[^@]*)?)\@/ } quoted($_[0]) }

foreach my $offence (
	q{SELECT 'GRANT ALL ON t TO @extowner@';},
	q{SELECT E'it\'s @extowner@';},
	q{DO $$ BEGIN GRANT ALL ON t TO @extowner@; END $$;},
	q{DO $do$ BEGIN EXECUTE 'a' || '@extowner@'; END $do$;},
	q{SELECT "@extschema@".f();},
	q{SELECT '-- ' || '@extschema:dblink@';},
	qq{COMMENT ON TABLE t IS '/*'; SELECT '\@extowner\@';})
{
	cmp_ok(scalar offences($offence), '>', 0, "found: $offence");
}
foreach my $fine (
	q{GRANT ALL ON t TO @extowner@ WITH GRANT OPTION;},
	q{-- it's about @extowner@'s},
	q{/* it's about @extowner@'s */ SELECT 'fine';},
	q{SELECT 'it''s'; GRANT ALL ON t TO @extowner@; SELECT $1, $$fine$$;},
	q{SELECT @extschema:dblink@.dblink('dbname=' || $1);})
{
	is(scalar offences($fine), 0, "fine: $fine");
}

my @scripts = sort glob 'sql/*--*.sql';
cmp_ok(scalar @scripts, '>=', 2, 'there are scripts');
foreach my $script (@scripts)
{
	my $text = slurp_file($script);
	cmp_ok(scalar quoted($text), '>', 100, "$script has quoted strings");
	is(join("\n----\n", offences($text)), '', "$script substitutes nothing within quotes");
}

done_testing();
