# A router and its shards, for tests.
#
#	my $s = Shards->new(4);						shards are databases of one cluster
#	my $s = Shards->new(4, clusters => 1);		each shard is a cluster of its own
#	my $s = Shards->new(4, conf => "...");		lines for every postgresql.conf
#	my $s = Shards->new(4, real_leases => 1);	leases do not count from 0
#
# Roles anon, authenticated and service_role exist on the router, as the site's
# roles do when the extension is created, and "router" on the shards: as whom
# the router comes there.
package Shards;
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;
use Time::HiRes qw(time usleep);

# A statement that lets a session's next claim of a source (all of them without
# one) begin with shard $n.
sub turn
{
	my ($n, $source) = @_;
	return turn_of($n, defined $source ? "$source any" : 'any');
}

# The same of events, and of push channels
sub turn_of_events { return turn_of($_[0], 'events') }
sub turn_of_channels { return turn_of($_[0], 'channels') }

sub turn_of
{
	my ($n, $what) = @_;
	return "SELECT set_config('syncstate_router.turn_' || to_hex(hashtextextended('$what', 0)), '$n', false)";
}

# PL/Proxy is a package of its own.
sub skip_all_without_plproxy
{
	my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
	my ($sharedir) = `$pg_config --sharedir` =~ /(.*)/;
	plan skip_all => 'PL/Proxy is not installed for this server'
	  unless -e "$sharedir/extension/plproxy.control";
	return;
}

sub new
{
	my ($class, $count, %option) = @_;
	my $self = bless { shards => [], %option }, $class;

	my $node = $self->{router} = $self->cluster('router');
	$node->safe_psql('postgres', 'CREATE DATABASE router');
	$node->safe_psql('postgres', "CREATE ROLE $_ NOLOGIN") for qw(anon authenticated service_role);
	$self->add_shard($_) for 0 .. $count - 1;
	$self->query(qq{
		CREATE EXTENSION syncstate_router CASCADE;
		INSERT INTO syncstate.shard VALUES } . join(', ', map { "($_, '" . $self->connection($_) . "')" } 0 .. $count - 1) . qq{;
		CREATE USER MAPPING FOR PUBLIC SERVER syncstate OPTIONS (user 'router', password 'none asked');
	});
	return $self;
}

sub cluster
{
	my ($self, $name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(allows_streaming => 'logical');
	$node->append_conf('postgresql.conf', "fsync = off\nmax_connections = 100\n" . ($self->{conf} // ''));
	$node->start;
	$node->safe_psql('postgres', 'CREATE ROLE router LOGIN');
	return $node;
}

# Statements by which leases count from 0
sub small_leases
{
	return q{ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
		ALTER TABLE syncstate.sync_channel ALTER lease SET DEFAULT 0};
}

# A new database that is, or may become, a shard.
sub add_shard
{
	my ($self, $n) = @_;
	my $node = $self->{clusters} ? $self->cluster("shard$n") : $self->{router};

	$node->safe_psql('postgres', "CREATE DATABASE shard$n");
	$node->safe_psql("shard$n", q{
		CREATE EXTENSION syncstate;
		SELECT syncstate.grant_worker('router');
		GRANT SELECT, INSERT, DELETE ON syncstate.custom_source TO router;
		GRANT EXECUTE ON FUNCTION syncstate.register_sync_source TO router;
	});
	$node->safe_psql("shard$n", small_leases()) unless $self->{real_leases};
	$self->{shards}[$n] = $node;
	return;
}

# Connection string of a shard, as the router's table has it
sub connection
{
	my ($self, $n) = @_;
	my $node = $self->{shards}[$n];
	return sprintf('host=%s port=%s dbname=shard%s', $node->host, $node->port, $n);
}

# Statements on the router, by its superuser
sub query
{
	my ($self, $sql) = @_;
	return $self->{router}->safe_psql('router', $sql);
}

# Statements on one shard, by its superuser, in a session that is kept, since psql
# takes longer to start than most of them take.  Nothing that they set stays set.
sub shard_query
{
	my ($self, $n, $sql) = @_;
	my $node = $self->{shards}[$n];
	my $server = "$node $node->{_pid}";

	# the last session is gone if its server was restarted
	if (($self->{servers}[$n] // '') ne $server)
	{
		$self->quit($n);
		$self->{sessions}[$n] = $node->background_psql("shard$n", on_error_stop => 0);
		$self->{sessions}[$n]->set_query_timer_restart;
		$self->{servers}[$n] = $server;
	}

	my $session = $self->{sessions}[$n];
	$session->{stderr} = '';
	my $out = $session->query("$sql\n;\nDISCARD ALL");
	die "shard $n: $session->{stderr}" if $session->{stderr} =~ /(ERROR|FATAL|PANIC):/;
	return $out;
}

# Until a condition is true on a shard
sub wait_for
{
	my ($self, $n, $condition) = @_;
	my $deadline = time() + $PostgreSQL::Test::Utils::timeout_default;

	until ($self->shard_query($n, "SELECT $condition") eq 't')
	{
		die "shard $n: it is never true that $condition" if time() > $deadline;
		usleep(20_000);
	}
	return;
}

# Ends the session of a shard.
sub quit
{
	my ($self, $n) = @_;
	my $session = delete $self->{sessions}[$n];
	# its psql may be gone, too
	eval { $session->quit } if $session;
	return;
}

sub stop
{
	my ($self) = @_;
	my %seen;
	$self->quit($_) for 0 .. $#{ $self->{shards} };
	$_->stop for grep { !$seen{$_}++ } @{ $self->{shards} }, $self->{router};
	return;
}

1;
