# Who may do what through a router: the attacks on a single database, by a
# session as PostgREST has it, and those that only a router has to fear: its
# connections, the server with the password, and what is told of the shards.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run qw(run);
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;

Shards::skip_all_without_plproxy();
my $s = Shards->new(2);
my $node = $s->{router};
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;
my ($host, $port) = ($node->host, $node->port);

my $a = 'aaaaaaaa-0000-4000-8000-00000000000a';
my $b = 'bbbbbbbb-0000-4000-8000-00000000000b';

# The shards ask for a password, and nothing about them is easy to quote.
my $password = q{it's \ odd' host='nowhere};
{
	my $hba = $node->data_dir . '/pg_hba.conf';
	my $rest = slurp_file($hba);
	open my $fh, '>', $hba or die "$hba: $!";
	print $fh "local all router scram-sha-256\n$rest";
	close $fh;
}
$node->reload;
$node->safe_psql('postgres', q{ALTER DATABASE shard1 RENAME TO "the 'second' \\ shard"});
my $second = q{the 'second' \ shard};
$s->query(qq{ALTER ROLE router PASSWORD '@{[ $password =~ s/'/''/gr ]}';
	ALTER USER MAPPING FOR PUBLIC SERVER syncstate OPTIONS (SET password '@{[ $password =~ s/'/''/gr ]}');
	UPDATE syncstate.shard SET connection = E'host=$host port=$port dbname=\\'the \\\\\\'second\\\\\\' \\\\\\\\ shard\\'' WHERE shard = 1});

# A single database to compare with
$node->safe_psql('postgres', q{CREATE DATABASE single;
	CREATE ROLE authenticator LOGIN NOINHERIT;
	GRANT anon, authenticated, service_role TO authenticator;
	CREATE ROLE looker NOLOGIN;
	GRANT looker TO authenticator;
	CREATE ROLE nobody_special NOLOGIN;
	GRANT nobody_special TO authenticator});
$node->safe_psql('single', 'CREATE EXTENSION syncstate; ' . Shards::small_leases());
$node->safe_psql($_, 'GRANT USAGE ON SCHEMA syncstate TO looker') foreach qw(router single);

# What psql prints for each of several transactions of a session, each made of
# statements, as PostgREST runs them.  An error ends a transaction.
sub each_as
{
	my ($database, $role, $claims, @transactions) = @_;
	my $mark = '==== next ====';
	my $out = '';
	my $script = join "\n", '\set VERBOSITY verbose', '\set SHOW_CONTEXT never';

	foreach my $transaction (@transactions)
	{
		$script .= join "\n", '', 'BEGIN;', ($role eq 'none' ? () : "SET LOCAL ROLE $role;"),
		  (defined $claims ? "SELECT set_config('request.jwt.claims', '$claims', true) \\g /dev/null" : ()),
		  (map { "$_\n;" } ref $transaction ? @$transaction : $transaction), 'COMMIT;', "\\echo '$mark'", '';
	}
	run [ 'psql', '-X', '-q', '-A', '-t', '-U', 'authenticator', '-d', $database ], '<', \$script, '>&', \$out;
	$out =~ s/^LOCATION:.*\n//mg;
	$out =~ s/^(LINE \d+: .*|\s*\^)\n//mg;
	$out =~ s/^ERROR:  25P02: .*\n//mg;    # what comes after the error
	my @out = map { s/\n\z//r } split /^\Q$mark\E\n/m, $out, -1;
	pop @out;
	return @out;
}

# What it prints for one of them
sub as
{
	my ($database, $role, $claims, @statements) = @_;
	return (each_as($database, $role, $claims, \@statements))[0];
}

# The error of a row that is not there for the caller, who named it so.
sub not_there
{
	my ($user_id, $source, $resource, $account) = @_;
	return "ERROR:  PT404: sync state does not exist or is not visible\n"
	  . "DETAIL:  Key (user_id, account, source, resource)=($user_id, @{[ $account // '' ]}, $source, @{[ $resource // '' ]}).";
}
my $claims_a = qq{{"sub": "$a", "role": "authenticated"}};
my $claims_b = qq{{"sub": "$b", "role": "authenticated"}};

# Of times there is nothing to compare: they are real.
sub timeless { return map { s/\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.\d]*[+:\d]*/.../gr } @_ }

# Of each transaction on both: the same.
sub each_same
{
	my ($name, $role, $claims, @transactions) = @_;
	my @router = timeless(each_as('router', $role, $claims, @transactions));
	my @single = timeless(each_as('single', $role, $claims, @transactions));

	is(scalar @$_, scalar @transactions, "$name: all were run") foreach \@router, \@single;
	is($router[$_], $single[$_], "$name: " . (ref $transactions[$_] ? $transactions[$_][-1] : $transactions[$_])) foreach 0 .. $#transactions;
	return @router;
}

sub same
{
	my ($name, $role, $claims, @statements) = @_;
	return (each_same($name, $role, $claims, \@statements))[0];
}

foreach my $database (qw(router single))
{
	as($database, 'service_role', undef, map({ "SELECT syncstate.connect_sync($_)" } "'$a', 'google_calendar'", "'$a', 'google_tasks'", "'$b', 'google_calendar'", "'$b', 'google_gmail'", "'$b', 'google_calendar', 'secret calendar'",
			"'$a', 'google_gmail', '', 'work'", "'$b', 'google_gmail', '', 'work'", "'$b', 'google_calendar', '', 'secret account'"),
		"SELECT syncstate.mark_sync_started('$b', 'google_gmail')",
		"SELECT syncstate.checkpoint_sync('$b', 'google_gmail', 1, 'secret page', 5, 42)",
		"SELECT syncstate.update_sync_state('$b', 'google_calendar', '{\"sync_token\": \"secret token\", \"error_message\": \"secret error\"}')",
		"SELECT syncstate.pause_sync('$a', 'google_tasks')",
		q{SELECT syncstate.set_sync_policy('google_gmail', '{"keep_runs": "all"}')},
		(map { "SELECT syncstate.mark_sync_started('$_', 'google_gmail', account => 'work'), syncstate.mark_sync_completed('$_', 'google_gmail', 3, 'secret token', account => 'work')" } $a, $b),
		"SELECT syncstate.mark_rate_limited('$b', 'google_gmail', '1 day', account => 'work')");
}
isnt($s->query("SELECT syncstate.shard_of('$a')"), $s->query("SELECT syncstate.shard_of('$b')"), 'the two users are on different shards');

### Every function, by every kind of role

# those of sql/acl.sql, which calls all of a single database
my %call = slurp_file('sql/acl.sql') =~ /^\t\('(\w+)',\n\t\t\$\$(SELECT [^\n]*?)\$\$\)/mg;
delete @call{qw(is_legal due_from is_ahead watch_users grant_worker grant_user register_sync_source check_installation present_objects installed_objects)};    # not a router's, or shown below
is($s->query(q{SELECT proname FROM pg_proc WHERE pronamespace = 'syncstate'::regnamespace
		AND proname <> ALL (ARRAY['} . join("','", keys %call) . q{']) ORDER BY 1}),
	join("\n", qw(forget_users get_my_sync_runs get_my_syncs get_sync_channels get_sync_events get_sync_overview get_sync_runs grant_user grant_worker register_sync_source shard_of watch_users)),
	'all but these are called');
foreach my $case ([ 'anon', undef ], [ 'anon', $claims_a ], [ 'looker', $claims_a ], [ 'nobody_special', $claims_a ], [ 'none', $claims_a ],
	[ 'authenticated', $claims_a ], [ 'authenticated', undef ])
{
	my ($role, $claims) = @$case;
	my @names = sort keys %call;
	my @answers = each_same($role . ($claims ? ' with claims' : ''), $role, $claims, map { $call{$_} } @names);
	foreach my $i (0 .. $#names)
	{
		like($answers[$i], qr/^ERROR:  42501: permission denied for (function|schema)/, "$names[$i]() is refused to $role")
		  if $role ne 'authenticated' || $names[$i] !~ /^(request_account|request_sync|current_user_id|user_id_of|sync_clock)$/;
	}
}
my %may = (authenticated => qr/get_my/, service_role => qr/get_|shard_of/);
foreach my $role ('anon', 'looker', 'none', 'authenticated', 'service_role')
{
	my @calls = grep { !$may{$role} || !/$may{$role}/ } 'get_my_syncs()', 'get_my_sync_runs()', 'get_sync_overview()', 'get_sync_events()', 'get_sync_runs()', 'get_sync_channels()', "shard_of('$a')",
	  "grant_worker('anon')", "grant_user('anon')", "register_sync_source('mine')", "watch_users('pg_class')";
	my @answers = each_as('router', $role, $claims_a, map { "SELECT syncstate.$_" } @calls);
	like($answers[$_], qr/^ERROR:  42501: permission denied/, "$calls[$_] by $role") foreach 0 .. $#calls;
}
is($s->query(q{SELECT string_agg(p.proname, ' ' ORDER BY p.proname) FROM pg_proc AS p
		WHERE pronamespace = 'syncstate'::regnamespace AND has_function_privilege('authenticated', p.oid, 'EXECUTE')}),
	'current_user_id get_my_sync_runs get_my_syncs request_account request_sync sync_clock user_id_of', 'these are a user\'s');
is($s->query(q{SELECT count(*) FROM pg_proc AS p WHERE has_function_privilege('public', p.oid, 'EXECUTE')
		AND pronamespace IN ('syncstate'::regnamespace, 'syncstate_shard'::regnamespace)}), '0', 'and none is everybody\'s');

### A user and their own rows

my $view = 'SELECT user_id, account, source, resource, status, error_message, limited_until > now() FROM syncstate.my_syncs ORDER BY account, source, resource';
is(same('my_syncs', 'authenticated', $claims_a, $view), "$a||google_calendar||idle||\n$a||google_tasks||idle||\n$a|work|google_gmail||idle||", 'shows one\'s own');
like(same('my_syncs', 'authenticated', $claims_b, $view), qr/^$b\|secret account\|google_calendar\|\|idle\|\|\n$b\|work\|google_gmail\|\|rate_limited\|[^|]*\|t$/m, 'of all accounts, with their limits');
same("my_syncs of $_", 'authenticated', $claims_b, $_) foreach 'SELECT count(*) FROM syncstate.my_syncs', "SELECT * FROM syncstate.my_syncs WHERE user_id <> '$b'";
same('my_syncs of nobody', 'authenticated', undef, $view);
same("my_syncs of $_", 'authenticated', $_, $view) foreach '', '{}', '{"sub": null}', '{"sub": ""}', '{"sub": "00000000-0000-4000-8000-000000000000"}',
  qq({"sub": "{$a}"}), qq({"sub": "@{[ uc $a ]}"});
my $runs = 'SELECT * FROM syncstate.my_sync_runs';
like(same('my_sync_runs', 'authenticated', $claims_a, $runs), qr/^$a\|work\|google_gmail\|\|[^\n]*\|completed\|t\|t\|3\|\z/, 'and runs, one\'s own');
like(same('my_sync_runs', 'authenticated', $claims_b, $runs), qr/^$b\|work\|google_gmail\|\|[^\n]*\z/, 'each for themselves');
is(same('my_sync_runs of nobody', 'authenticated', $_, $runs), '', 'and none of others') foreach undef, '{}', '{"sub": "00000000-0000-4000-8000-000000000000"}';
same('my_sync_runs with a malformed identity', 'authenticated', '{"sub": 42}', $runs);
is(same('runs', 'service_role', undef, "SELECT user_id, lease, outcome FROM syncstate.sync_run ORDER BY user_id"), "$a|1|completed\n$b|1|completed", 'a worker sees all');
like(same('events', 'service_role', undef, 'SELECT event, user_id, account, source, resource, lease, reason, detail FROM syncstate.sync_event ORDER BY at'), qr/^parked\|$a\|\|google_tasks\|\|\|paused\|$/m, 'and all events');
foreach my $role (qw(anon looker none authenticated))
{
	like(as('router', $role, $claims_a, "SELECT * FROM syncstate.$_"), qr/^ERROR:  42501: permission denied for/, "$_ by $role") foreach 'sync_event', 'sync_run', 'sync_channel', 'take_sync_events()', 'claim_push_channels()';
}
same('my_syncs of a worker', 'service_role', undef, $view);
same('my_syncs of a worker with claims', 'service_role', $claims_b, $view);
same('requests', 'authenticated', $claims_a, "SELECT syncstate.request_sync('$a', 'google_calendar')", "SELECT syncstate.request_sync('$a', 'google_tasks')", "SELECT syncstate.request_sync('$a', 'google_gmail', '', 'work')", $view);
foreach my $claims ($claims_a, undef)
{
	my @calls = grep { $claims || !/^'$a/ } "'$a', 'google_contacts'", "'$b', 'google_calendar'", "'$b', 'google_contacts'", "'$b', 'google_calendar', 'secret calendar'", "'$b', 'google_calendar', 'none'",
	  "'99999999-0000-4000-8000-000000000009', 'google_calendar'", "'$a', 'google_calendar', '', 'work'", "'$a', 'google_calendar', '', 'secret account'",
	  "'$b', 'google_gmail', '', 'work'", "'$b', 'google_calendar', '', 'secret account'", "'$b', 'google_calendar', '', 'none'";
	my @answers = each_same('requests', 'authenticated', $claims, map { "SELECT syncstate.request_sync($_)" } @calls);
	is($answers[$_], not_there($calls[$_] =~ /'([^']*)'/g), 'no other\'s, whether it is there or not') foreach 0 .. $#calls;
}
# an account's rows that are not one's own are as if they were not there
my $own = q{SELECT user_id, account, source, resource, requested_at IS NOT NULL FROM syncstate.get_sync_states('%s')};
$node->safe_psql($_, 'UPDATE syncstate.sync_state SET requested_at = NULL') foreach 'shard0', $second, 'single';
foreach my $claims ($claims_a, undef)
{
	is($_, '', 'nothing of another\'s, whether it is there or not') foreach each_same('requests', 'authenticated', $claims, map { "SELECT * FROM syncstate.request_account($_)" }
		"'$b'", "'$b', 'work'", "'$b', 'secret account'", "'$b', 'secret account', 'google'", "'$b', 'none'", "'$a', 'secret account'", "'$a', 'none'", "'99999999-0000-4000-8000-000000000009'");
	my @rows = each_same('and nothing was done', 'service_role', undef, map { sprintf $own, $_ } $a, $b);
	like($rows[0], qr/^$a\|.*\|f$/m, 'to rows that are there');
	unlike($_, qr/\|t$/m, 'and none is requested') foreach @rows;
}
is(same("request_account()", 'authenticated', undef, "SELECT * FROM syncstate.request_account('$a', 'work')"), '', 'nobody requests nothing');
is(same('request_account()', 'authenticated', $claims_a, "SELECT * FROM syncstate.request_account('$a', 'work')"), 'google_gmail|', 'one\'s own account');
is(same('request_account()', 'authenticated', $claims_a, sprintf('SELECT account, source FROM syncstate.my_syncs WHERE requested_at IS NOT NULL')), 'work|google_gmail', 'and no other one');
is(same('request_account()', 'authenticated', $claims_a, "SELECT * FROM syncstate.request_account('$a')"), 'google_calendar|', 'nor what is paused');
is(same('request_account()', 'authenticated', $claims_b, "SELECT * FROM syncstate.request_account('$b', 'secret account', 'google')"), 'google_calendar|', 'each for themselves');
is(same('request_account() by a worker', 'service_role', undef, "SELECT * FROM syncstate.request_account('$b', 'work')"), 'google_gmail|', 'a worker for all');
like(as($_, 'authenticated', $claims_a, 'SET TRANSACTION READ ONLY', "SELECT * FROM syncstate.request_account('$a', 'work')"),
	qr/^ERROR:  25006: cannot execute .* in a read-only transaction\z/, "not where nothing may be written, on $_") foreach qw(router single);
like($_, qr/^ERROR/, 'fails') foreach each_same('bad arguments', 'authenticated', $claims_a,
	map({ "SELECT * FROM syncstate.request_account($_)" } 'NULL', "'$a', NULL", "'$a', repeat('x', 256)", "'$a', 'work', 'nobody'", "'x'"),
	map({ "SELECT syncstate.request_sync($_)" } "NULL, 'google_calendar'", "'$a', NULL", "'$a', 'google_calendar', NULL", "'$a', 'google_calendar', repeat('x', 1025)", "'$a', 'x'", "'x', 'google_calendar'"));
# nor is what another one's row would be refused for told: it is not there at all
is(as('router', 'authenticated', $claims_a, "SELECT syncstate.request_sync('$b', $_->[0])"), not_there($b, @$_[ 1 .. 3 ]), "request_sync(B, $_->[0])")
  foreach [ 'NULL', '' ], [ "'google_calendar', NULL", 'google_calendar' ], [ "'google_calendar', repeat('x', 1025)", 'google_calendar', 'x' x 1025 ],
	[ "'google_calendar', '', NULL", 'google_calendar' ], [ "'google_calendar', '', repeat('x', 256)", 'google_calendar', '', 'x' x 256 ];
is(as('router', 'authenticated', $claims_a, "SELECT * FROM syncstate.request_account('$b', $_)"), '', "request_account(B, $_)") foreach 'NULL', q{repeat('x', 256)}, q{'', 'nobody'};
foreach my $claims ('{"sub": "not-a-uuid"}', '{"sub": 42}', 'no JSON', '{"sub": ', '[]', '{"sub": {}}')
{
	each_same("with $claims", 'authenticated', $claims, $view, "SELECT syncstate.request_sync('$a', 'google_calendar')", "SELECT syncstate.request_sync('$b', 'google_calendar')", 'SELECT syncstate.current_user_id()',
		map { "SELECT * FROM syncstate.request_account('$_')" } $a, $b);
}
like($_, qr/^ERROR:  22P02: /, 'a malformed identity is an error')
  foreach each_as('router', 'authenticated', '{"sub": ["no subject"]}', $view, "SELECT syncstate.request_sync('$a', 'google_calendar')", "SELECT * FROM syncstate.request_account('$a')");
like($_, qr/^(t|google_calendar\|)\z/, 'which a worker is never asked for')
  foreach each_same('a worker of no identity', 'service_role', '{"sub": ["no subject"]}', map { "SELECT * FROM syncstate.$_('$a'" . (/sync/ ? ", 'google_calendar')" : ')') } 'request_sync', 'request_account');
foreach my $role ('anon', 'looker', 'none', 'authenticated', 'service_role')
{
	each_same("views by $role", $role, $role eq 'service_role' ? undef : $claims_a, map { "SELECT count(*) FROM syncstate.$_" } qw(my_syncs my_sync_runs sync_overview));
}
# A role that may receive pushes, and nothing else, needs no identity.
foreach my $database (qw(router single))
{
	$node->safe_psql($database, q{DO $$ BEGIN CREATE ROLE webhook NOLOGIN; GRANT webhook TO authenticator; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
		GRANT USAGE ON SCHEMA syncstate TO webhook; GRANT EXECUTE ON FUNCTION syncstate.receive_push TO webhook});
	is(as($database, 'service_role', undef, q{SELECT syncstate.set_sync_policy('google_gmail', '{"push_renew_before": "1 day"}') \g /dev/null},
			q{SELECT count(m) FROM syncstate.claim_push_channels('google_gmail') AS c,
				syncstate.mark_channel_opened(c.user_id, c.source, c.lease, 'channel of ' || c.user_id || c.account, NULL, 'secret', account => c.account) AS m}),
		'2', "channels are open on $database, but for the account that is limited");
}
foreach my $claims (undef, '{}', $claims_a, '{"sub": ["no subject"]}')
{
	is(same('a push', 'webhook', $claims, map { "SELECT syncstate.receive_push($_)" } "'channel of ${b}', 'secret'", "'channel of ${a}work', 'secret'", "'channel of ${b}', 'another'", "'channel of ${b}', NULL", "'channel', 'secret'", "NULL, 'secret'"),
		"t\nt\nf\nf\nf\nf", 'is taken with its secret');
}
like($_, qr/^ERROR:  42501: /, 'and that is all') foreach each_same('one who receives pushes', 'webhook', $claims_b, 'SELECT * FROM syncstate.claim_push_channels()',
	"SELECT syncstate.mark_channel_stopped('$b', 'google_gmail', 1)", "SELECT syncstate.request_sync('$b', 'google_gmail')", 'SELECT * FROM syncstate.my_syncs');
like(same("a push by $_", $_, $claims_b, "SELECT syncstate.receive_push('channel of $b', 'secret')"), qr/^ERROR:  42501: /, 'is not for everybody') foreach qw(anon authenticated looker nobody_special none);

# one transaction's identity is gone with it, in the same session
is(same('identities by turns', 'authenticated', $claims_a, 'SELECT count(*) FROM syncstate.my_syncs', 'COMMIT', 'BEGIN', 'SET LOCAL ROLE authenticated', 'SELECT count(*) FROM syncstate.my_syncs', 'COMMIT',
		'BEGIN', 'SET LOCAL ROLE service_role', "SELECT syncstate.request_sync('$b', 'google_calendar')", 'COMMIT', 'BEGIN', 'SET LOCAL ROLE authenticated',
		"SELECT set_config('request.jwt.claims', '$claims_a', true) \\g /dev/null\nSELECT syncstate.request_sync('$b', 'google_calendar')"),
	"3\n0\nt\n" . not_there($b, 'google_calendar'), 'each for itself');

### Who is asking, where a function of the site's is in between

my $site = q{
	CREATE FUNCTION public.site_request(u uuid, s syncstate.sync_source) RETURNS boolean LANGUAGE sql SECURITY DEFINER
		AS 'SELECT syncstate.request_sync(u, s)';
	GRANT CREATE, USAGE ON SCHEMA public TO authenticated, service_role;
	ALTER FUNCTION public.site_request OWNER TO service_role;
	CREATE FUNCTION public.site_request_account(u uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER
		AS 'SELECT count(*) FROM syncstate.request_account(u)';
	ALTER FUNCTION public.site_request_account OWNER TO service_role;
	CREATE FUNCTION public.site_my_syncs() RETURNS bigint LANGUAGE sql SECURITY DEFINER
		AS 'SELECT count(*) FROM syncstate.my_syncs';
	ALTER FUNCTION public.site_my_syncs OWNER TO service_role;
	CREATE FUNCTION public.users_request(u uuid, s syncstate.sync_source) RETURNS boolean LANGUAGE sql SECURITY DEFINER
		AS 'SELECT syncstate.request_sync(u, s)';
	ALTER FUNCTION public.users_request OWNER TO authenticated};
$node->safe_psql($_, $site) foreach qw(router single);
same('a function of a worker\'s, of one\'s own row', 'authenticated', $claims_a, "SELECT public.site_request('$a', 'google_calendar')");
same('a function of a worker\'s, of own rows', 'authenticated', $claims_a, 'SELECT public.site_my_syncs()');
# row security goes by the owner of the function, and a router by the role of the session
is(as('single', 'authenticated', $claims_a, "SELECT public.site_request('$b', 'google_calendar')"), 't', 'a worker\'s function lends a worker\'s rights');
is(as('router', 'authenticated', $claims_a, "SELECT public.site_request('$b', 'google_calendar')"),
	not_there($b, 'google_calendar'), 'but not on a router');
is(as('single', 'service_role', undef, "SELECT public.users_request('$b', 'google_calendar')"), not_there($b, 'google_calendar'), 'a user\'s function takes them');
is(as('router', 'service_role', undef, "SELECT public.users_request('$b', 'google_calendar')"), 't', 'but not on a router');
is(as('single', 'authenticated', $claims_a, "SELECT public.site_request_account('$b')"), '3', 'so for accounts');
is(as('router', 'authenticated', $claims_a, "SELECT public.site_request_account('$b')"), '0', 'on both');
# sessions of their own, without SET ROLE or with it
$node->safe_psql('postgres', 'CREATE ROLE app_user LOGIN IN ROLE authenticated; CREATE ROLE app_worker LOGIN IN ROLE service_role, authenticated');
foreach my $case (
	[ 'app_user', '', 'PT404' ],
	[ 'app_user', 'SET ROLE authenticated;', 'PT404' ],
	[ 'app_user', 'SET ROLE service_role;', '42501' ],
	[ 'app_worker', '', 't' ],
	[ 'app_worker', 'SET ROLE authenticated;', 'PT404' ],
	[ 'app_worker', 'SET ROLE authenticated; RESET ROLE;', 't' ],
	[ 'app_worker', 'SET ROLE authenticated; SET ROLE none;', 't' ],
	[ 'authenticator', '', '42501' ],
	[ 'authenticator', 'SET SESSION AUTHORIZATION service_role;', '42501' ])
{
	my ($login, $become, $expected) = @$case;
	foreach my $database (qw(router single))
	{
		my ($status, $out, $err) = $node->psql($database, "$become SELECT syncstate.request_sync('$b', 'google_calendar')",
			on_error_stop => 1, extra_params => [ '-U', $login, '-v', 'VERBOSITY=sqlstate' ]);
		is($status == 0 ? $out : $err =~ s/.*ERROR:\s+(\w{5}).*/$1/sr, $expected, "$login; $become on $database");
	}
}

# Who deletes users need not know of all this, and cannot have more done by it.
foreach my $database (qw(router single))
{
	$node->safe_psql($database, qq{CREATE TABLE public.users (id uuid PRIMARY KEY); INSERT INTO public.users VALUES ('$a'), ('$b'), ('cccccccc-0000-4000-8000-00000000000c');
		GRANT SELECT, DELETE, TRIGGER ON public.users TO nobody_special;
		SELECT syncstate.watch_users('public.users');
		SELECT syncstate.connect_sync('cccccccc-0000-4000-8000-00000000000c', 'google_tasks')});
}
same('a trigger on users', 'nobody_special', undef, q{CREATE TRIGGER mine AFTER DELETE ON public.users REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION syncstate.forget_users('id')});
same('a deleted user', 'nobody_special', undef, q{DELETE FROM public.users WHERE id > 'c'});
same("a user's rows", 'service_role', undef, "SELECT count(*) FROM syncstate.get_sync_states('$_')") foreach $a, $b, 'cccccccc-0000-4000-8000-00000000000c';

### What is below the functions

my @below = split /\n/, $s->query(q{SELECT format('%I.%I(%s)', 'syncstate_shard', p.proname,
		(SELECT string_agg(format('NULL::%s', format_type(t, NULL)), ', ' ORDER BY n) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, n)))
	FROM pg_proc AS p WHERE p.pronamespace = 'syncstate_shard'::regnamespace AND p.prorettype <> 'trigger'::regtype ORDER BY 1});
cmp_ok(scalar @below, '>', 30, 'there is something below');
foreach my $role (qw(anon authenticated service_role looker none))
{
	# after a claim in the same session, where the role may claim
	my @claim = $role eq 'service_role' ? 'SELECT count(*) FROM syncstate.claim_due_syncs()' : 'SELECT 1';
	my ($claimed, @answers) = each_as('router', $role, $claims_a, \@claim, map { "SELECT * FROM $_" . (/get_result/ ? ' AS r (x text)' : '') } @below);
	is(join(' ', map { $below[$_] } grep { $answers[$_] !~ /^ERROR:  42501: permission denied for schema syncstate(_shard)?\z/ } 0 .. $#below),
		'', "$role can execute nothing in syncstate_shard");
	my @statements = ('SELECT * FROM syncstate.shard', 'TABLE syncstate.custom_source', "INSERT INTO syncstate.shard VALUES (0, '')", 'DELETE FROM syncstate.shard',
		"UPDATE syncstate.shard SET connection = 'host=evil'", 'LOCK TABLE syncstate.shard IN ACCESS SHARE MODE',
		'CREATE FOREIGN TABLE pg_temp.t (x int) SERVER syncstate', 'CREATE USER MAPPING FOR CURRENT_USER SERVER syncstate',
		"ALTER USER MAPPING FOR PUBLIC SERVER syncstate OPTIONS (SET user 'evil')", 'DROP USER MAPPING FOR PUBLIC SERVER syncstate',
		"ALTER SERVER syncstate OPTIONS (SET p0 'host=evil')", 'SELECT * FROM pg_user_mapping',
		q{CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE plproxy AS 'CLUSTER ''syncstate''; RUN ON ANY; SELECT 1;'},
		q{CREATE FUNCTION pg_temp.f(text, text) RETURNS text LANGUAGE c AS '$libdir/dblink', 'dblink_exec'},
		'CREATE EXTENSION dblink', 'CREATE FUNCTION syncstate.planted() RETURNS int LANGUAGE sql AS $$SELECT 1$$');
	@answers = each_as('router', $role, $claims_a, @statements);
	like($answers[$_], qr/^ERROR:  42501: /, "$role: $statements[$_]") foreach 0 .. $#statements;
	is(as('router', $role, $claims_a, 'SELECT usename, umoptions FROM pg_user_mappings'), 'public|', "$role cannot see the password");
}
is($s->query('SELECT umoptions IS NOT NULL FROM pg_user_mappings'), 't', 'which is there');

# The extension dblink sees the connections of the router.
my $claim = 'SELECT count(*) >= 0 FROM syncstate.claim_due_syncs()';
is(as('router', 'service_role', undef, $claim), 't', 'a claim without dblink');
$s->query('CREATE EXTENSION dblink');
is(as('router', 'service_role', undef, $claim), "ERROR:  42501: everybody may execute functions of dblink in this database
DETAIL:  They reach the connections of the router, which may do everything on the shards.
HINT:  Drop extension dblink, or revoke EXECUTE on its functions from PUBLIC.", 'none where everybody has dblink');
is(as('router', 'service_role', undef, "SELECT syncstate.request_sync('$b', 'google_calendar')"), 't', 'while calls of the other way go on');
$s->query(q{DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE probin = '$libdir/dblink' LOOP EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$});
like(as('router', 'service_role', undef, $claim, "SELECT public.$_"), qr/^t\nERROR:  42501: permission denied for function/, "$_ reaches nothing")
  foreach 'dblink_get_connections()', "dblink_exec('syncstate 0', 'DELETE FROM syncstate.sync_state')", "dblink_connect('x', 'server')";
$s->query('DROP EXTENSION dblink');

### Planted objects

$s->query(q{
	CREATE SCHEMA planted;
	CREATE TABLE planted.trace (what pg_catalog.text);
	GRANT USAGE ON SCHEMA planted TO PUBLIC;
	GRANT INSERT ON planted.trace TO PUBLIC;
	CREATE FUNCTION planted.trace(what pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO planted.trace VALUES (what); RETURN true; END $$;
	DO $do$
	DECLARE
		type pg_catalog.text;
		op pg_catalog.text;
	BEGIN
		FOREACH type IN ARRAY ARRAY['uuid', 'text', 'int4', 'int8', 'bool', 'timestamptz', 'interval', 'float8', 'numeric', 'name', 'oid', 'jsonb',
			'syncstate.sync_source', 'syncstate.sync_status']
		LOOP
			EXECUTE format('CREATE FUNCTION planted.compare(%1$s, %1$s) RETURNS pg_catalog.bool LANGUAGE sql AS %2$L', type,
						   format('SELECT planted.trace(%L)', 'comparison of ' || type));
			FOREACH op IN ARRAY ARRAY['=', '<>', '<', '<=', '>', '>=', '~']
			LOOP
				EXECUTE format('CREATE OPERATOR planted.%1$s (FUNCTION = planted.compare, LEFTARG = %2$s, RIGHTARG = %2$s)', op, type);
			END LOOP;
		END LOOP;
		FOREACH op IN ARRAY ARRAY['+', '-', '/', '%', '&', '|', '<<']
		LOOP
			EXECUTE format('CREATE FUNCTION planted.%1$I(int4, int4) RETURNS int4 LANGUAGE sql AS %2$L', 'op ' || op,
						   format('SELECT planted.trace(%L); SELECT $1', op));
			EXECUTE format('CREATE OPERATOR planted.%1$s (FUNCTION = planted.%2$I, LEFTARG = int4, RIGHTARG = int4)', op, 'op ' || op);
		END LOOP;
		FOREACH op IN ARRAY ARRAY['current_user_id()', 'clock_timestamp()', 'random()', 'count(uuid)', 'unnest(text[])', 'array_agg(text)', 'to_jsonb(syncstate.sync_state)',
			'jsonb_array_elements(jsonb)', 'jsonb_typeof(jsonb)', 'floor(float8)', 'format(text, uuid)', 'format(text, text, integer)', 'sha256(bytea)', 'pg_notify(text, text)',
			'sees(uuid)', 'check_user(uuid, text, syncstate.sync_source, text)', 'current_setting(text)', 'has_function_privilege(name, text, text)', 'hash(uuid)', 'enter()', 'ask(text[])', 'get_my_syncs()']
		LOOP
			EXECUTE format('CREATE FUNCTION planted.%s RETURNS pg_catalog.text LANGUAGE sql AS %L', op, format('SELECT planted.trace(%L); SELECT NULL::pg_catalog.text', op));
		END LOOP;
	END
	$do$;
	CREATE TYPE planted.sync_source AS ENUM ('planted');
	CREATE TYPE planted.sync_state AS (planted pg_catalog.int4);
	CREATE TYPE planted.answer AS (planted pg_catalog.int4);
	CREATE TABLE planted.shard (shard pg_catalog.int4, connection pg_catalog.text);
	CREATE TABLE planted.my_syncs (planted pg_catalog.int4);
	GRANT SELECT ON planted.shard, planted.my_syncs TO PUBLIC;
	GRANT TEMPORARY ON DATABASE router TO PUBLIC});
my @worker = (
	"SELECT status FROM syncstate.connect_sync('$a', 'google_contacts')",
	"SELECT syncstate.request_sync('$a', 'google_contacts')",
	q{SELECT user_id, source FROM syncstate.claim_due_syncs('google_contacts', 3, '1 minute')},
	qq{SELECT source, status FROM syncstate.report_syncs('[{"user_id": "$a", "source": "google_contacts", "lease": 1, "outcome": "released"}, {"user_id": "$b", "source": "google_contacts", "lease": 1, "outcome": "rate_limited", "scope": "source"}]')},
	"SELECT status FROM syncstate.mark_sync_completed('$a', 'google_contacts')", "SELECT source, status FROM syncstate.get_sync_states('$a')",
	"SELECT syncstate.get_users_needing_sync('google_contacts', '1 hour', 5)", "SELECT syncstate.next_sync_due('google_contacts')",
	q{SELECT daily_budget FROM syncstate.set_sync_policy('google_contacts', '{"daily_budget": 1001}')},
	q{SELECT source FROM syncstate.pause_sync_source('google_contacts', '2100-01-01 00:00+00')}, q{SELECT source FROM syncstate.resume_sync_source('google_contacts')},
	"SELECT status FROM syncstate.mark_rate_limited('$a', 'google_contacts', '1 second', 'source')", q{SELECT source FROM syncstate.rebalance_syncs('google_contacts')},
	q{SELECT daily_budget FROM syncstate.set_sync_policy('google_contacts', '{"daily_budget": null}')}, q{SELECT source FROM syncstate.resume_sync_source('google_contacts')},
	qq{SELECT account, status FROM syncstate.mark_sync_failed('$a', 'google_contacts', 'no', 'auth', account => 'home')},
	(map { "SELECT account, source, parked_reason FROM syncstate.$_('$a', 'home', 'google')" } qw(connect_account pause_account resume_account)),
	"SELECT * FROM syncstate.set_sync_resources('$a', 'google_contacts', '{x,y}', 'home')", "SELECT * FROM syncstate.set_sync_resources('$a', 'google_contacts', '{y}', 'home')",
	"SELECT * FROM syncstate.request_account('$a', 'home')", "SELECT resource FROM syncstate.disconnect_account('$a', 'home')",
	q{SELECT push_interval FROM syncstate.set_sync_policy('google_contacts', '{"push_renew_before": "1 day"}')}, q{SELECT user_id, action, state FROM syncstate.claim_push_channels('google_contacts', 5, '1 minute') AS c,
		syncstate.mark_channel_opened(user_id, source, lease, 'planted', NULL, 'secret', 'ref') AS m (i, u, a, s, r, state)}, q{SELECT syncstate.receive_push('planted', 'secret', 1)}, q{SELECT syncstate.receive_push('planted', 'another')},
	"SELECT state FROM syncstate.mark_channel_opened('$a', 'google_contacts', 7, 'planted late', NULL, 'secret')", q{SELECT action, state FROM syncstate.claim_push_channels('google_contacts') AS c,
		syncstate.mark_channel_stopped(user_id, source, lease) AS m (i, u, a, s, r, state)}, 'SELECT source, state, failures FROM syncstate.sync_channel ORDER BY source',
	'SELECT event FROM syncstate.sync_event ORDER BY at', 'SELECT event FROM syncstate.take_sync_events(1000)', 'SELECT outcome FROM syncstate.sync_run GROUP BY outcome ORDER BY outcome',
	'SELECT source, rows FROM syncstate.sync_overview', "SELECT syncstate.disconnect_sync('$a', 'google_contacts')", "SELECT syncstate.shard_of('$a')");
my @user = ('SELECT source, status FROM syncstate.my_syncs', 'SELECT source, outcome FROM syncstate.my_sync_runs', "SELECT syncstate.request_sync('$a', 'google_calendar')", "SELECT * FROM syncstate.request_account('$a', 'work')", "SELECT * FROM syncstate.request_account('$b', 'work')",
	"SELECT syncstate.request_sync('$b', 'google_calendar')");
# without what was before
as('router', 'service_role', undef, q{SELECT syncstate.set_sync_policy('google_contacts', '{"keep_runs": "all"}')}, 'SELECT syncstate.take_sync_events(1000)');
my %life = (service_role => \@worker, authenticated => \@user);
foreach my $role (sort keys %life)
{
	my ($expected) = timeless(as('router', $role, $claims_a, @{ $life{$role} }));
	$role eq 'service_role' ? unlike($expected, qr/ERROR/, 'a life without errors') : like($expected, qr/\nt\ngoogle_gmail\|\nERROR:  PT404/, 'what a user can do');
	foreach my $path ('planted, pg_catalog', 'planted, syncstate, syncstate_shard, pg_catalog', 'pg_temp, planted', q{''})
	{
		$node->safe_psql($_, q{DELETE FROM syncstate.sync_channel WHERE source = 'google_contacts'}) foreach 'shard0', $second;
		is((timeless(as('router', $role, $claims_a, 'CREATE TEMP TABLE shard (shard pg_catalog.int4, connection pg_catalog.text)', 'CREATE TEMP TABLE deleted (id pg_catalog.uuid)', "SET search_path = $path", @{ $life{$role} })))[0],
			$expected, "$role: search_path = $path");
	}
}
is($s->query('SELECT what FROM planted.trace'), '', 'nothing planted was called');
is($s->query(q{SET search_path = planted, pg_catalog; SELECT '1'::pg_catalog.int8 = '2'::pg_catalog.int8; SELECT what FROM planted.trace}),
	"t\ncomparison of int8", 'which would have shown');
$s->query('SET client_min_messages = error; DROP SCHEMA planted CASCADE');

### Texts that want to be SQL

my @odd = (q{'; DELETE FROM syncstate.sync_state; --}, q{\'; DELETE FROM syncstate.sync_state; --}, q{'); DELETE FROM syncstate.sync_state; --}, q{E'\\\\'' || 'x}, q{\\}, q{'}, q{''}, q{"}, q{$$},
	q{$f$; $body$}, q{%}, q{%s %L %1$I %n}, q({} {"a": 1} {NULL}), q{(,)}, q{[1]}, "two\nlines\ttab\r", "\x{c3}\x{a9}\x{e2}\x{82}\x{ac}", q{:x :'x'}, 'COMMIT; ROLLBACK', q{NULL}, '');
my $rows_of_b = "SELECT count(*) FROM syncstate.get_sync_states('$b')";
$ENV{"ODD$_"} = $odd[$_] foreach 0 .. $#odd;
# 19 has no other strings
foreach my $strings ('on', $node->pg_version->major < 19 ? 'off' : ())
{
	my @quiet = $strings eq 'off' ? 'SET escape_string_warning = off' : ();
	my (@lives, @expected, @refused, @names);
	foreach my $n (0 .. $#odd)
	{
		my $odd = $odd[$n];
		push @lives, [ "SET standard_conforming_strings = $strings", @quiet, "\\getenv odd ODD$n",
				# each text argument: as a key, in JSON, as a message, a cursor, a page, in a report
				"SELECT resource = :'odd' AND sync_token IS NOT DISTINCT FROM nullif(:'odd', '') FROM syncstate.update_sync_state('$a', 'google_contacts', jsonb_build_object('sync_token', :'odd'), :'odd')",
				"SELECT error_message = :'odd' FROM syncstate.mark_sync_failed('$a', 'google_contacts', :'odd', resource => :'odd')",
				"SELECT c.page_token = :'odd' FROM syncstate.mark_sync_started('$a', 'google_contacts', resource => :'odd') AS m, syncstate.checkpoint_sync('$a', 'google_contacts', m.lease, :'odd', resource => m.resource) AS c",
				"SELECT status, error_message = :'odd', resource = :'odd' FROM syncstate.report_syncs(jsonb_build_array(jsonb_build_object('user_id', '{$a}', 'source', 'google_contacts', 'lease', 1,
					'resource', :'odd', 'outcome', 'failed', 'error_message', :'odd')))",
				"SELECT sync_token IS NOT DISTINCT FROM nullif(:'odd', '') FROM syncstate.mark_sync_completed('$a', 'google_contacts', 1, :'odd', resource => :'odd')",
				"SELECT count(*) FROM syncstate.get_sync_states('$a') AS g WHERE g.resource = :'odd' AND g.source = 'google_contacts'",
				"SELECT syncstate.disconnect_sync('$a', 'google_contacts', :'odd')",
				# and as an account
				"SELECT account = :'odd' AND resource = '' FROM syncstate.connect_sync('$a', 'google_contacts', account => :'odd')",
				"SELECT source, resource FROM syncstate.request_account('$a', :'odd') WHERE source = 'google_contacts'",
				"SELECT c.account = :'odd', c.page_token FROM syncstate.mark_sync_started('$a', 'google_contacts', account => :'odd') AS m, syncstate.checkpoint_sync('$a', 'google_contacts', m.lease, 'page', account => m.account) AS c",
				"SELECT status, account = :'odd' FROM syncstate.report_syncs(jsonb_build_array(jsonb_build_object('user_id', '{$a}', 'source', 'google_contacts', 'lease', 1, 'account', :'odd', 'outcome', 'completed')))",
				"SELECT resource = nullif(:'odd', ''), change FROM syncstate.set_sync_resources('$a', 'google_contacts', ARRAY[:'odd'], :'odd')",
				# and as a channel and its token
				"SELECT channel_id = :'odd' || 'x', provider_ref = :'odd', token_hash = sha256(convert_to('x' || :'odd', 'UTF8')), resource = :'odd' FROM syncstate.mark_channel_opened('$a', 'google_contacts', 7, :'odd' || 'x', NULL, 'x' || :'odd', :'odd', :'odd', 'push')",
				"SELECT syncstate.receive_push(:'odd' || 'x', 'x' || :'odd'), syncstate.receive_push(:'odd' || 'x', :'odd'), syncstate.receive_push(:'odd', 'x' || :'odd')",
				$odd eq '' ? "SELECT syncstate.disconnect_sync('$a', 'google_contacts')" : "SELECT count(*) FROM syncstate.disconnect_account('$a', :'odd') AS d WHERE d.account = :'odd' AND d.source = 'google_contacts'", $rows_of_b ];
		push @expected, "t\nt\nt\nerror|t|t\nt\n1\nt\nt\ngoogle_contacts|\nt|page\nidle|t\n" . ($odd eq '' ? "" : "t|added\n") . "t|t|t|t\nt|f|f\n" . ($odd eq '' ? "t\n5" : "2\n5");

		# where it is no value that can be, it is refused as it is on a single database
		push @refused, map { [ "SET LOCAL standard_conforming_strings = $strings", (map { s/SET/SET LOCAL/r } @quiet), "\\getenv odd ODD$n", $_ ] } map { "SELECT * FROM syncstate.$_" } "report_syncs(jsonb_build_array(jsonb_build_object('user_id', :'odd', 'source', 'google_tasks', 'lease', 1, 'outcome', 'released')))",
		  "report_syncs(jsonb_build_array(jsonb_build_object('user_id', '$a', 'source', :'odd', 'lease', 1, 'outcome', 'released')))",
		  "report_syncs(jsonb_build_array(jsonb_build_object('user_id', '$a', 'source', 'google_tasks', 'lease', :'odd', 'outcome', 'released')))",
		  "report_syncs(jsonb_build_array(jsonb_build_object('user_id', '$a', 'source', 'google_tasks', 'lease', 1, 'outcome', :'odd')))",
		  "mark_sync_failed('$a', 'google_tasks', 'x', :'odd')", "mark_sync_failed('$a', 'google_tasks', 'x', scope => :'odd')",
		  "connect_account('$a', '', :'odd')", "set_sync_policy('google_tasks', jsonb_build_object('provider', :'odd'))", "mark_rate_limited('$a', 'google_tasks', scope => :'odd')",
		  "mark_sync_completed('$a', 'google_tasks', history_id => coalesce(nullif(:'odd', ''), 'x'))",
		  "set_sync_policy('google_tasks', jsonb_build_object(:'odd', 1))", "set_sync_policy('google_tasks', jsonb_build_object('daily_budget', :'odd'))",
		  "update_sync_state('$a', 'google_tasks', jsonb_build_object(:'odd', :'odd'))";
		push @names, "\\getenv odd ODD$n", "SELECT syncstate.register_sync_source(:'odd');";
	}
	my @lived = each_as('router', 'service_role', undef, @lives);
	is($lived[$_], $expected[$_], "strings $strings: " . $odd[$_] =~ s/[^ -~]/?/gr) foreach 0 .. $#odd;
	like($_, qr/^ERROR:  22/, 'is refused') foreach each_same("strings $strings", 'service_role', undef, @refused);
	my ($status, $out, $err) = $node->psql('router', join("\n", "SET standard_conforming_strings = $strings;", (map { $_ . ';' } @quiet), @names),
		on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	is(scalar(my @told = $err =~ /ERROR:  22023$/mg), scalar @odd, "strings $strings: no source can be named so");
	is(as('router', 'service_role', undef, "SET standard_conforming_strings = $strings", @quiet, $rows_of_b), '5', 'B still has all rows');
}

### A shard that is down: users are not told where it was

my $down = $s->query("SELECT syncstate.shard_of('$a')");
my $database = $down ? $second : 'shard0';
my $quoted = $database =~ s/'/''/gr;
my %told = (
	'does not let in' => [ qq{ALTER DATABASE "$database" ALLOW_CONNECTIONS false}, qq{ALTER DATABASE "$database" ALLOW_CONNECTIONS true} ],
	'knows another password' => [ q{ALTER ROLE router PASSWORD 'another'}, "ALTER ROLE router PASSWORD '" . ($password =~ s/'/''/gr) . "'" ],
	'is not the router\'s' => [ qq{REVOKE CONNECT ON DATABASE "$database" FROM PUBLIC}, qq{GRANT CONNECT ON DATABASE "$database" TO PUBLIC} ]);
foreach my $how (sort keys %told)
{
	$node->safe_psql('postgres', $told{$how}[0]);
	foreach my $statement ('SELECT * FROM syncstate.my_syncs', "SELECT syncstate.request_sync('$a', 'google_calendar')", "SELECT * FROM syncstate.request_account('$a', 'work')", "SELECT syncstate.receive_push('unknown', 'secret')")
	{
		my $role = $statement =~ /push/ ? 'webhook' : 'authenticated';
		my ($status, $out, $err) = $node->psql('router', "SET client_min_messages = debug5; SET ROLE $role; SET request.jwt.claims = '$claims_a'; $statement",
			on_error_stop => 0, extra_params => [ '-U', 'authenticator', '-v', 'VERBOSITY=verbose', '-v', 'SHOW_CONTEXT=always' ]);
		like($err, $role eq 'webhook' ? qr/ERROR:  08006: not all shards answer: not (?:0, 1\nDETAIL:  Shards that did what was asked: none\.|$down\nDETAIL:  Shards that did what was asked: @{[ 1 - $down ]}\.)(?: Shard \d: 08001\.)+\n/ : qr/ERROR:  08006: shard $down does not answer/, "a shard that $how: $statement");
		unlike($err, qr/\Q$host\E|\Q$port\E|\Q$database\E|dbname|user "router"|socket|shard0/, 'and no more');
	}
	my ($status, $out, $err) = $node->psql('router', "SET ROLE service_role; SELECT syncstate.request_sync('$a', 'google_calendar')", extra_params => [ '-U', 'authenticator', '-v', 'VERBOSITY=verbose' ]);
	like($err, qr/ERROR:  08006: shard $down does not answer\nDETAIL:  .*\Q$host\E/, 'a worker is told more');
	unlike($err . slurp_file($node->logfile), qr/it's \\ odd/, 'nobody is told the password') if $how =~ /password/;
	$node->safe_psql('postgres', $told{$how}[1]);
	is(as('router', 'authenticated', $claims_a, "SELECT syncstate.request_sync('$a', 'google_calendar')"), 't', 'afterwards all is well');
}
is($s->query(q{SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text ~ 'password'}), '0', 'no password is in the options that all can read');

$s->stop;
done_testing();
