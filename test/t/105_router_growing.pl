# Two shards become four by examples/shards, while workers claim and report,
# users request and look, rows come and go, events are taken, and push channels are
# opened, renewed, stopped and heard, without pause: no call fails, each row is in
# one place and loses nothing, nobody holds one twice, each event and run is told
# once, and no channel is lost, or stopped while its row has no other one.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use List::Util qw(sum0);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Shards;
use Test::More;
use Time::HiRes qw(usleep time);

Shards::skip_all_without_plproxy();
my $s = Shards->new(2, clusters => 1, conf => "log_statement = none\nautovacuum_naptime = 1s\n");
my $me = getpwuid($<);
my $patience = $PostgreSQL::Test::Utils::timeout_default;

# Runs a file of examples/shards as its header says; the error, if it fails.
sub run_file
{
	my ($file, $on, @variables) = @_;
	my ($out, $err);
	my $ok = run_log([ 'psql', '-X', '-q', '-At', map({ ('-v', $_) } @variables), '-d', $on, '-f', "examples/shards/$file.sql" ],
		'>', \$out, '2>', \$err);
	return $ok ? '' : $err;
}

$s->query("SELECT syncstate.register_sync_source('custom_crm')");
$s->query(q{
	SELECT syncstate.set_sync_policy(s, '{"sync_interval": "1 s", "jitter": 0, "keep_runs": "all"}') FROM unnest(enum_range(NULL::syncstate.sync_source)) AS s;
	SELECT syncstate.set_sync_policy('google_gmail', '{"push_renew_before": "1 day", "push_interval": "1 s"}');
	SELECT syncstate.set_sync_policy('custom_crm', '{"rate_per_minute": 600000}');
	SELECT syncstate.set_sync_policy('google_tasks', '{"daily_budget": 1001, "rate_per_minute": 2}')});
my $python = -x '/usr/bin/python3' ? '/usr/bin/python3' : 'python3';
my $client = "$FindBin::RealBin/../shards/client.py";
my @users = map { sprintf '00000000-0000-4000-8000-%012d', $_ } 0 .. 99;
# each has mail, and mail and the CRM of another account
$s->query("SELECT count(syncstate.connect_sync(u, s, '', a)) FROM unnest('{" . join(',', @users) . "}'::uuid[]) AS u,
	(VALUES ('', 'google_gmail'::syncstate.sync_source), ('work', 'google_gmail'), ('work', 'custom_crm')) AS v (a, s)");

# The site's own, next to the rows of each user
my $item = 'CREATE TABLE item (user_id uuid, id int, PRIMARY KEY (user_id, id))';
foreach my $n (0, 1)
{
	$s->shard_query($n, "$item; INSERT INTO item SELECT DISTINCT user_id, 1 FROM syncstate.sync_state");
}

# Those that will be added
$s->add_shard($_) foreach 2, 3;

### clients

my $dir = PostgreSQL::Test::Utils::tempdir();
my (@pids, @logs);
my @roles = (('worker') x 3, 'user', 'backend', 'taker', 'opener', 'webhook');
foreach my $n (0 .. $#roles)
{
	push @logs, "$dir/$roles[$n].$n";
	my $pid = fork() // die "fork: $!";
	if (!$pid)
	{
		exec($python, '-B', $client, $s->{router}->connstr('router') . " user=$me", $roles[$n], $n, $logs[$n], "$dir/stop");
		die "exec: $!";
	}
	push @pids, $pid;
}

# Lines of all logs that begin with a word, as lists of fields.
sub lines
{
	my ($word) = @_;
	return map { chomp; [ split /\t/ ] } map { open(my $log, '<', $_) or die "$_: $!"; grep { /^$word\t/ } <$log> } grep { -e } @logs;
}

# Until so many more reports have been taken, of each kind of client.
sub work_goes_on
{
	my ($more, $when) = @_;
	my %goal = (report => $more + lines('report'), look => $more / 5 + lines('look'), pushed => $more / 20 + lines('pushed'));
	my $deadline = time() + $patience;
	while (grep { lines($_) < $goal{$_} } keys %goal)
	{
		die "$when: the clients get nowhere: " . join("\n", (map { "$_ " . lines($_) . ", not $goal{$_}" } sort keys %goal), map { $_->[1] } lines('wrong')) if lines('wrong') || time() > $deadline;
		usleep(50_000);
	}
	return;
}

work_goes_on(200, 'before');

### growing

my $condition;
foreach my $n (2, 3)
{
	my $old = $s->{shards}[ $n - 2 ];
	$old->safe_psql('shard' . ($n - 2), q{
		CREATE ROLE mover LOGIN REPLICATION BYPASSRLS;
		GRANT USAGE ON SCHEMA syncstate TO mover;
		GRANT SELECT ON syncstate.sync_state, syncstate.sync_event, syncstate.sync_run, syncstate.sync_channel, syncstate.sync_policy, syncstate.sync_budget, syncstate.custom_source TO mover});
	is(run_file('publish', $old->connstr('shard' . ($n - 2)), 'shards=2', "new=$n"), '', "publish.sql for shard $n");
	$condition = $old->safe_psql('shard' . ($n - 2), q{SELECT rowfilter FROM pg_publication_tables WHERE tablename = 'sync_state'});
	$old->safe_psql('shard' . ($n - 2), "GRANT SELECT ON item TO mover; ALTER PUBLICATION syncstate_grow ADD TABLE item WHERE ($condition)");
	$s->shard_query($n, $item);
	is(run_file('subscribe', $s->{shards}[$n]->connstr("shard$n"), "new=$n", 'old=' . $s->connection($n - 2) . ' user=mover'), '', "subscribe.sql on shard $n");
}
my @switch = ('switch', $s->{router}->connstr('router'), 'new=' . join(', ', map { "($_, '" . $s->connection($_) . "')" } 2, 3), "admin=user=$me");

# Due all the time: google_contacts of users who move is not what the workers claim.
$s->query("SELECT count(syncstate.connect_sync(u, 'google_contacts', account => 'home')) FROM unnest('{" . join(',', @users) . "}'::uuid[]) AS u WHERE syncstate_shard.hash(u) & 2 <> 0");

# What goes on meanwhile comes along, too.
work_goes_on(200, 'while copying');
$s->query("SELECT syncstate.set_sync_policy('google_tasks', '{\"retry_base\": \"17 s\"}')");
foreach my $n (2, 3)
{
	$s->{shards}[$n]->poll_query_until("shard$n", q{SELECT count(*) = 8 FROM pg_subscription_rel WHERE srsubstate = 'r'}) or die "shard $n does not follow";
}

# A switch that fails late, at the second of two shards, leaves all as it was.
like(run_file('cleanup', $s->{shards}[0]->connstr('shard0')), qr/the new shard still follows this one/, 'cleanup.sql does not come before the switch');
my $reader = $s->{shards}[1]->background_psql('shard1');
$reader->query_safe('BEGIN; SELECT FROM syncstate.sync_state LIMIT 1');
like(run_file(@switch[ 0, 1 ], 'new=' . "(2, 'host=nowhere')", $switch[3]), qr/the new shards must be 2, 3, as many as there are/, 'switch.sql wants all new shards');
like(run_file(@switch), qr/canceling statement due to lock timeout/, 'switch.sql gives up waiting for a lock');
$reader->quit;
is($s->query('SELECT count(*) FROM syncstate.shard'), '2', 'the router knows of no new shards');
is($s->shard_query($_, q{SELECT count(*) FROM pg_policies WHERE policyname = 'syncstate_grow'}), '0', "no fence is left on shard $_") foreach 0, 1;
work_goes_on(200, 'after a switch that failed');

# A router that nobody will think of
$s->{router}->safe_psql('postgres', 'CREATE DATABASE forgotten');
$s->{router}->safe_psql('forgotten', q{CREATE EXTENSION syncstate_router CASCADE; INSERT INTO syncstate.shard VALUES }
	. join(', ', map { "($_, '" . $s->connection($_) . "')" } 0, 1) . q{;
	CREATE USER MAPPING FOR PUBLIC SERVER syncstate OPTIONS (user 'router', password 'none asked');
	SELECT syncstate.register_sync_source('custom_crm')});

# What is taken last: on each shard an event of a source, and one of a user who
# moves
my @moved = map { $s->query("SELECT u FROM unnest('{" . join(',', @users) . "}'::uuid[]) AS u WHERE syncstate_shard.hash(u) & 3 = $_ LIMIT 1") } 2, 3;
my $moved = $moved[0];
$s->shard_query($_, q{INSERT INTO syncstate.sync_event (at, event, source) VALUES ('2100-01-01', 'source_limited', 'google_tasks')}) foreach 0, 1;
$s->shard_query($_, "BEGIN;
	SELECT syncstate.connect_sync('$moved[$_]', 'google_tasks', 'last'), syncstate.pause_sync('$moved[$_]', 'google_tasks', 'last');
	UPDATE syncstate.sync_event SET at = '2100-01-02' WHERE resource = 'last';
	COMMIT") foreach 0, 1;

# The new shards stop following, again and again, so that there is something to
# wait for when no more calls come.
my @stoppers;
foreach my $n (2, 3)
{
	$s->shard_query($n, q{
		CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$;
		CREATE TRIGGER follow BEFORE INSERT OR UPDATE ON syncstate.sync_state FOR EACH ROW EXECUTE FUNCTION follow();
		ALTER TABLE syncstate.sync_state ENABLE REPLICA TRIGGER follow});
	push @stoppers, $s->{shards}[$n]->background_psql("shard$n");
	$stoppers[-1]->query_until(qr/sent/, q{\echo sent
		DO $$ BEGIN LOOP PERFORM pg_advisory_xact_lock(1), pg_sleep(0.3); COMMIT; PERFORM pg_sleep(0.03); END LOOP; END $$;
	});
}
# It gives up waiting for a call that takes longer than a second, as one may on a
# busy machine.  Then it is run again, as its header says.
my ($before, $error);
foreach my $try (1 .. 5)
{
	$before = time();
	$error = run_file(@switch);
	last unless $error =~ /canceling statement due to lock timeout/;
	diag "switch.sql, run $try: $error";
}
is($error, '', 'switch.sql');
my $after = time();
$s->shard_query($_, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%LOOP PERFORM pg_advisory%' AND pid <> pg_backend_pid()}) foreach 2, 3;
$_->{run}->finish foreach @stoppers;
work_goes_on(200, 'after the switch');

# It reaches no row that has moved, and makes none where it would not be found.
foreach my $n (0, 1)
{
	isnt($s->shard_query($n, "SELECT count(*) FROM syncstate.$_ WHERE $condition"), '0', "shard $n still has what has moved of $_") foreach 'sync_state', 'sync_event', 'sync_run', 'sync_channel';
	is($s->shard_query($n, "SET ROLE router; SELECT count(*) FROM syncstate.$_ WHERE $condition"), '0', "and shows nothing of it") foreach 'sync_state', 'sync_event', 'sync_run', 'sync_channel';
	is($s->shard_query($n, "SET ROLE router; SELECT count(*) FROM syncstate.sync_event WHERE event = 'source_limited'"), '1', "but what is of no user");
}
is($s->query("SELECT count(*), count(DISTINCT user_id) FROM syncstate.sync_event WHERE resource = 'last'"), '2|2', 'an event that has moved is there once');
is($s->query('SELECT count(DISTINCT (user_id, account, source, resource, lease)) = count(*) FROM syncstate.sync_run'), 't', 'and so is each run');
foreach my $call (
	[ 'takes no row that has moved', q{SELECT count(*) FROM syncstate.claim_due_syncs('google_contacts', 100)}, '0' ],
	[ 'sees none', "SELECT count(*) FROM syncstate.get_sync_states('$moved')", '0' ],
	[ 'sees no event of one', "SELECT count(*) FROM syncstate.sync_event WHERE user_id = '$moved'", '0' ],
	[ 'sees no run of one', "SELECT count(*) FROM syncstate.sync_run WHERE user_id = '$moved'", '0' ],
	[ 'reports nothing', qq{SELECT count(*) FROM syncstate.report_syncs('[{"user_id": "$moved", "account": "home", "source": "google_contacts", "lease": 1, "outcome": "completed"}]')}, '0' ],
	[ 'makes no row', "SELECT syncstate.connect_sync('$moved', 'google_contacts', account => 'home')", '42501' ],
	[ 'starts none', "SELECT syncstate.mark_sync_started('$moved', 'google_contacts', account => 'home')", '42501' ])
{
	my ($name, $sql, $answer) = @$call;
	my ($status, $out, $err) = $s->{router}->psql('forgotten', $sql, extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	is($status == 0 ? $out : $err =~ s/.*ERROR:\s+(\w{5}).*/$1/sr, $answer, "a router that was forgotten $name");
}

$s->shard_query($_, 'DROP FUNCTION follow CASCADE') foreach 2, 3;
like(run_file(@switch), qr/the new shards must be 4, 5, 6, 7, as many as there are/, 'switch.sql is not run twice');
like(run_file('publish', $s->{shards}[0]->connstr('shard0'), 'shards=4', 'new=4'), qr/rows that moved at an earlier switch are still here/, 'the shards are not doubled again before cleanup.sql');
foreach my $n (0, 1)
{
	# one channel escapes the scan, like one that a claim has rewritten on an earlier page
	$s->shard_query($n, qq{
		CREATE SEQUENCE escapes;
		CREATE FUNCTION escape() RETURNS trigger LANGUAGE plpgsql AS \$\$
			BEGIN
				IF NOT (SELECT $condition FROM (SELECT OLD.user_id) AS o) OR nextval('public.escapes') > 1 THEN RETURN OLD; END IF;
				RETURN NULL;
			END \$\$;
		CREATE TRIGGER escape BEFORE DELETE ON syncstate.sync_channel FOR EACH ROW EXECUTE FUNCTION escape()});
	is(run_file('cleanup', $s->{shards}[$n]->connstr("shard$n")), '', "cleanup.sql on shard $n");
	cmp_ok($s->shard_query($n, 'SELECT last_value FROM escapes'), '>', 1, "shard $n: one escaped at first");
	is($s->shard_query($n, "SELECT count(*) FROM syncstate.sync_channel WHERE $condition"), '0', 'but not for good');
	$s->shard_query($n, 'DROP FUNCTION escape CASCADE; DROP SEQUENCE escapes');
}
$s->{router}->safe_psql('forgotten', 'INSERT INTO syncstate.shard VALUES ' . join(', ', map { "($_, '" . $s->connection($_) . "')" } 2, 3));
is($s->{router}->safe_psql('forgotten', "SELECT count(*) FROM syncstate.get_sync_states('$moved')"), '5', 'a router that was forgotten goes on when it knows of the new shards');
work_goes_on(200, 'at the end');
note sprintf '%.1f s: %s', time() - $^T, join(', ', map { "$_ " . lines($_) } qw(claim report opened stopped taken withheld connect disconnect pushed look));
append_to_file("$dir/stop", '');
waitpid($_, 0) foreach @pids;

### the judge

is(join("\n", map { join(' ', @$_) } lines('wrong')), '', 'no call failed, and none was told a wrong thing');

my (%there, %gone, %cursor, %holder, %run, $twice, $overlap);
my @claims = lines('claim');
my @reports = lines('report');
foreach (@claims)
{
	my (undef, undef, $to, $row, $lease) = @$_;
	$twice .= "$row $lease\n" if $holder{$row}{$lease};
	$holder{$row}{$lease} = [ $to, undef ];
}
foreach (@reports)
{
	my (undef, $from, undef, $row, $lease, $cursor) = @$_;
	$holder{$row}{$lease}[1] = $from;
	$run{"$row $lease completed"} = 1;
	$cursor{$row} = $cursor if $cursor gt ($cursor{$row} // '');
}
foreach my $row (keys %holder)
{
	my @leases = sort { $a <=> $b } keys %{ $holder{$row} };
	foreach my $i (1 .. $#leases)
	{
		my ($last, $next) = @{ $holder{$row} }{ @leases[ $i - 1, $i ] };
		# held from when a worker knew of it until it set out to report
		$overlap .= "$row $leases[$i]\n" if !defined $last->[1] || $next->[0] < $last->[1];
	}
}
is($twice, undef, 'no fencing number was handed out twice');
is($overlap, undef, 'no two leases of a row overlapped');

$there{$_}{known} = 1 foreach map({ ("$_  google_gmail ", "$_ work google_gmail ", "$_ work custom_crm ") } @users), map { $_->[3] } lines('connect');
delete $there{ $_->[3] } foreach lines('disconnect');
$there{"$_  google_tasks last"}{known} = 1 foreach @moved;
$there{"$_ home google_contacts "}{known} = 1 foreach split /\n/, $s->query("SELECT u FROM unnest('{" . join(',', @users) . "}'::uuid[]) AS u WHERE syncstate.shard_of(u) >= 2");
my (@misplaced, @back, @runs, %channel);
foreach my $n (0 .. 3)
{
	is($s->query("SELECT count(*) FROM unnest('{" . join(',', split /\n/, $s->shard_query($n, "SELECT user_id FROM syncstate.$_ WHERE user_id IS NOT NULL")) . "}'::uuid[]) AS u WHERE syncstate.shard_of(u) <> $n"),
		'0', "shard $n has no others' $_") foreach 'sync_event', 'sync_run', 'sync_channel';
	push @{ $channel{ $_->[0] } }, $_->[1] foreach map { [ split /\|/ ] } split /\n/, $s->shard_query($n, q{SELECT channel_id, state FROM syncstate.sync_channel WHERE channel_id IS NOT NULL});
	push @runs, split /\n/, $s->shard_query($n, q{SELECT concat_ws(' ', user_id, account, source, resource, lease, outcome) FROM syncstate.sync_run});
	my @rows = map { [ split /\|/ ] }
		split /\n/, $s->shard_query($n, q{SELECT user_id || ' ' || account || ' ' || source || ' ' || resource, sync_token, user_id FROM syncstate.sync_state});
	my %shard_of = map { split /\|/ }
		split /\n/, $s->query("SELECT u, syncstate.shard_of(u) FROM unnest('{" . join(',', map { $_->[2] } @rows) . "}'::uuid[]) AS u");
	foreach (@rows)
	{
		my ($row, $token, $user) = @$_;
		$there{$row}{places}++;
		push @misplaced, "$row on $n" if $shard_of{$user} != $n;
		push @back, "$row: $token, not $cursor{$row}" if $token lt ($cursor{$row} // '');
	}
}
is(join("\n", @misplaced), '', 'every row is on the shard of its user');
is(join("\n", @back), '', 'every acknowledged cursor is there, or a later one');
is(join("\n", grep { !$there{$_}{known} || ($there{$_}{places} // 0) != 1 } sort keys %there), '', 'every row is there once, and no other');

my %runs;
$runs{$_}++ foreach @runs;
is(join("\n", grep { ($run{$_} // 0) != ($runs{$_} // 0) } sort keys %{ { %run, %runs } }), '', 'every run that was reported is there once, and no other');

my (%opened, %stopped, %ends);
$ends{ $_->[4] } = $_->[2] + $_->[5] foreach lines('opened');
push @{ $opened{ $_->[3] } }, $_->[4] foreach sort { $a->[2] <=> $b->[2] } lines('opened');
$stopped{ $_->[4] }++ foreach lines('stopped');
cmp_ok(keys(%opened), '>', 100, 'push channels were opened');
cmp_ok(keys(%stopped), '>', 20, 'and stopped, when they had been renewed');
is(join("\n", grep { $stopped{$_} > 1 } keys %stopped), '', 'none twice');
is(join("\n", grep { $stopped{ $opened{$_}[-1] } } keys %opened), '', 'and never the last one of its row');
is(join("\n", map { my @of = @{ $opened{$_} }; map { my $is = join ' ', @{ $channel{$_} // ['nowhere'] }; my $ought = $stopped{$_} ? 'nowhere' : $_ eq $of[-1] ? 'active' : $ends{$_} > time() ? 'retiring' : 'nowhere, or retiring'; $ought =~ /\b$is\b/ ? () : "$_: $is, not $ought" } @of } keys %opened),
	'', 'each of the others is there once, and no other channel of its row is active');
is(join(' ', grep { my $channel = $_; !grep { $_->[4] eq $channel } lines('opened') } keys %channel), '', 'and there are no others');

my (%event, %events);
$events{ $_->[4] }{"$_->[5] $_->[6]"}++, $event{ $_->[3] }++ foreach lines('taken');
my $taken = keys %event;
while (my @left = split /\n/, $s->query(q{SELECT id, event, concat_ws(' ', user_id, account, source, resource), coalesce(lease::text, 'None') FROM syncstate.take_sync_events(10000)}))
{
	$events{ $_->[1] }{"$_->[2] $_->[3]"}++, $event{ $_->[0] }++ foreach map { [ split /\|/ ] } @left;
}
cmp_ok($taken, '>', 20, 'events were taken');
cmp_ok(keys(%event), '>', 20 + $taken, 'and others left');
is(join("\n", grep { $event{$_} > 1 } keys %event), '', 'no event was taken twice');
my %withheld = map { ("$_->[3] $_->[4]" => 1) } lines('withheld');
is(join("\n", grep { ($withheld{$_} // 0) != ($events{sweep_withheld}{$_} // 0) } sort keys %{ { %withheld, %{ $events{sweep_withheld} } } }), '', 'every sweep that was withheld was told of once');
my %first;
$first{ s/ \d+$//r }++ foreach keys %{ $events{first_sync} };
is(join("\n", grep { ($first{$_} // 0) != 1 } sort keys %{ { %first, %cursor } }), '', 'and so was the first sync of each row');
is(join(' ', map { "$_ " . sum0(values %{ $events{$_} }) } sort grep { !/first_sync|withheld/ } keys %events), 'parked 2 source_limited 2', 'and all else');
is($s->shard_query($_, 'SELECT count(*) FROM syncstate.sync_event'), '0', "no event is hidden on shard $_") foreach 0 .. 3;
is($s->shard_query($_, q{SELECT count(*) > 0, (SELECT count(DISTINCT user_id) FROM syncstate.sync_state WHERE source = 'custom_crm') = count(*) FROM item}), 't|t', "the users of shard $_ have their items") foreach 2, 3;
cmp_ok($s->shard_query($_, 'SELECT count(*) FROM syncstate.sync_state'), '>', 20, "shard $_ has rows") foreach 0 .. 3;

is($s->query(q{SELECT retry_base, daily_budget, rate_per_minute FROM syncstate.get_sync_policy('google_tasks')}), '00:00:17|1000|4', 'budget and rate are divided anew');
is($s->query(q{SELECT rate_per_minute FROM syncstate.get_sync_policy('custom_crm')}), '600000', 'and all together what they were');
like(run_file('cleanup', $s->{shards}[0]->connstr('shard0')), qr/no switch has been made, or all is done/, 'cleanup.sql has nothing to do twice');
is($s->shard_query($_, q{SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))
		+ (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_policies WHERE policyname = 'syncstate_grow')
		+ (SELECT count(*) FROM pg_class WHERE oid = 'syncstate.sync_event'::regclass AND relreplident <> 'd')}), '0', "nothing of it is left on shard $_") foreach 0 .. 3;

my @waits = sort { $b <=> $a } map { $_->[2] - $_->[1] } grep { $_->[2] > $before && $_->[1] < $after } map { lines($_) } qw(claim report connect disconnect look);
my @usual = sort { $a <=> $b } map { $_->[2] - $_->[1] } grep { $_->[2] < $before } map { lines($_) } qw(claim report connect disconnect look);
note(sprintf '%d claims, %d reports; a call took %.0f ms usually, %.0f ms at most during the switch, which took %.0f ms',
	scalar @claims, scalar @reports, 1000 * $usual[ @usual / 2 ], 1000 * $waits[0], 1000 * ($after - $before));
cmp_ok($waits[0], '<', 10, 'calls waited, but not long');

$s->stop;
done_testing();
