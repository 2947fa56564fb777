# Make background_psql() answer alike on all servers.
#
# Minor releases before 2025 leave a newline at the end of what query() returns
# and of stderr, and their own mark where there is no answer.
package Sessions;
use strict;
use warnings;

use PostgreSQL::Test::Cluster;

# the first ones of 15 do not have this module
if (my $query = PostgreSQL::Test::BackgroundPsql->can('query'))
{
	no warnings 'redefine';
	*PostgreSQL::Test::BackgroundPsql::query = sub {
		my ($self, $sql, @rest) = @_;
		my ($answer, $failed) = $query->($self, $sql, @rest);

		# those that count their queries remove all of it
		if (!$self->{query_cnt})
		{
			$answer =~ s/(^|\n)(background_psql: QUERY_SEPARATOR\n?)?\z//;
			$self->{stderr} =~ s/\n\z//;
		}
		return wantarray ? ($answer, $failed) : $answer;
	};
}

1;
