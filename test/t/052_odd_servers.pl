# Servers and sessions with unusual settings, and databases with unusual
# encodings and collations: the same life of a row comes to the same end
# everywhere.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('odd');
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', "fsync = off\nmax_prepared_transactions = 2");
$node->start;

my @user = map { sprintf '00000000-0000-4000-8000-%012d', $_ } 0 .. 3;

# A life whose every value is known: time is moved by hand, nothing is random.
# %s is the role that lives it.
my $life = <<"EOS";
RESET ROLE;
SET syncstate.clock = '2026-06-01 12:00:00.5+00';
SET ROLE %s;
SELECT keep_runs, extract(epoch FROM keep_runs_for) FROM syncstate.set_sync_policy('google_calendar', '{"keep_runs": "all", "keep_runs_for": "PT36H"}');
SELECT (syncstate.connect_sync('$user[1]', 'google_calendar', 'b')).requested_at IS NOT NULL;
SELECT (syncstate.connect_sync('$user[1]', 'google_calendar', 'B')).status;
SELECT syncstate.request_sync('$user[1]', 'google_calendar', 'b');
SELECT (syncstate.update_sync_state('$user[2]', 'google_tasks', '{"sync_interval": "PT1H30M", "updated_min": "2026-05-01T00:00:00.25Z", "failures": 2}')).failures;
SELECT resource, lease, extract(epoch FROM lease_expires_at) FROM syncstate.claim_due_syncs(lease_time => '1 day') ORDER BY user_id, resource COLLATE "C";
SELECT (syncstate.checkpoint_sync('$user[1]', 'google_calendar', 1, 'page', 1, 2, resource => 'b')).page_token;
SELECT resource, status, sync_token FROM syncstate.report_syncs(
	'[{"user_id": "$user[1]", "source": "google_calendar", "resource": "b", "lease": 1, "outcome": "completed", "sync_token": "t", "items_synced": 3},
	  {"user_id": "$user[1]", "source": "google_calendar", "resource": "B", "lease": 1, "outcome": "rate_limited", "retry_after": "PT2M"},
	  {"user_id": "$user[1]", "source": "google_calendar", "resource": "B", "lease": 9, "outcome": "released"}]');
SELECT extract(epoch FROM (syncstate.mark_sync_completed('$user[2]', 'google_tasks', 7, updated_min => '2026-06-01 11:00:00.125+00', lease => 1)).updated_min);
SELECT (syncstate.mark_sync_failed('$user[3]', 'google_gmail', 'no answer', 'permanent')).failures;
SELECT (syncstate.mark_sync_completed('$user[3]', 'google_gmail', history_id => '18446744073709551615')).history_id;
SELECT (syncstate.clear_sync_token('$user[3]', 'google_gmail')).token_losses;
SELECT (syncstate.pause_sync('$user[1]', 'google_calendar', 'b')).parked_reason;
SELECT extract(epoch FROM lease_time), jitter FROM syncstate.set_sync_policy('google_contacts', '{"lease_time": "PT3M", "jitter": 0.25}');
SELECT extract(epoch FROM paused_until) FROM syncstate.pause_sync_source('google_contacts', '2026-06-01 13:00+00');
SELECT extract(epoch FROM syncstate.next_sync_due('google_tasks')), syncstate.get_users_needing_sync('google_gmail');
SELECT user_id, source, resource, status, sync_token, history_id, extract(epoch FROM updated_min),
	extract(epoch FROM due_at), extract(epoch FROM requested_at), parked_reason, extract(epoch FROM sync_interval), lease,
	extract(epoch FROM last_sync_at), items_synced, page_token, failures, token_losses, error_message,
	extract(epoch FROM updated_at), extract(epoch FROM failing_since)
FROM syncstate.sync_state ORDER BY user_id, source, resource COLLATE "C";
SELECT source, rows, due, extract(epoch FROM oldest_due_age), without_cursor FROM syncstate.sync_overview;
RESET ROLE;
SET ROLE regress_syncstate_odd_user;
SET request.jwt.claims = '{"sub": "$user[2]"}';
SELECT source, status, items_synced FROM syncstate.my_syncs;
SELECT syncstate.request_sync('$user[2]', 'google_tasks');
SET request.jwt.claims = '{"sub": "$user[1]"}';
SELECT resource, extract(epoch FROM started_at), extract(epoch FROM ended_at), outcome, was_full, was_requested, items
FROM syncstate.my_sync_runs ORDER BY resource COLLATE "C";
RESET request.jwt.claims;
RESET ROLE;
SET ROLE %s;
SELECT syncstate.disconnect_sync(user_id, source, resource) FROM (SELECT * FROM syncstate.sync_state) AS s;
SELECT (syncstate.resume_sync_source('google_contacts')).paused_until;
SELECT user_id, source, resource, outcome FROM syncstate.sync_run ORDER BY user_id, source, resource COLLATE "C";
SELECT extract(epoch FROM at), event, user_id, source, resource, lease, reason,
	CASE WHEN starts_with(event, 'source_limited') THEN extract(epoch FROM detail::timestamptz)::text ELSE detail END FROM syncstate.take_sync_events()
ORDER BY event COLLATE "C", user_id, source, resource COLLATE "C", reason COLLATE "C";
SELECT count(*) FROM syncstate.take_sync_events();
DELETE FROM syncstate.sync_run;
SELECT (syncstate.set_sync_policy('google_calendar', '{"keep_runs": null, "keep_runs_for": null}')).keep_runs;
SELECT (syncstate.set_sync_policy('google_contacts', '{"lease_time": null, "jitter": null}')).jitter;
SELECT count(*) FROM syncstate.sync_policy;
RESET ROLE;
EOS
my %life = map { my $l = $life; $l =~ s/%s/$_/g; ($_ => $l) } qw(postgres regress_syncstate_odd_worker);
$_ =~ s/SET ROLE postgres/SET ROLE none/g foreach values %life;

# A database with the extension and the two kinds of roles.
my $roles = 0;

sub make_database
{
	my ($name, $how) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name TEMPLATE template0 $how");
	$node->safe_psql($name, 'CREATE ROLE regress_syncstate_odd_worker; CREATE ROLE regress_syncstate_odd_user')
	  unless $roles++;
	$node->safe_psql($name, q{
		CREATE EXTENSION syncstate;
		ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
		SELECT syncstate.grant_worker('regress_syncstate_odd_worker');
		SELECT syncstate.grant_user('regress_syncstate_odd_user')});
	return;
}

# What the life says, and the errors it raises.
sub live
{
	my ($database, $role, $settings) = @_;
	my ($ret, $out, $err) = $node->psql($database, "$settings;\n$life{$role}", on_error_stop => 0);
	return join "\n", $out, $err =~ /(ERROR: .*)/g;
}

# The SQLSTATE of a statement's error, or what it returns.
sub outcome
{
	my ($database, $sql) = @_;
	my ($ret, $out, $err) = $node->psql($database, "\\set VERBOSITY sqlstate\n$sql", on_error_stop => 1);
	return $ret == 0 ? $out : ($err =~ /ERROR:  (\w{5})/)[0] // "status $ret: $err";
}

make_database('plain', "ENCODING 'UTF8' LOCALE 'C'");
my $expected = live('plain', 'postgres', 'SELECT');
unlike($expected, qr/ERROR/, 'a life without an error');
cmp_ok(scalar(() = $expected =~ /\n/g), '>', 30, 'that says something');

# ------------------------------------------------------------ settings

# Objects with the names of ours and of the server's, in front of both.
$node->safe_psql('plain', q{
	CREATE SCHEMA hostile;
	CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT 'epoch'::timestamptz$$;
	CREATE FUNCTION hostile.equal(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT false';
	CREATE FUNCTION hostile.equal(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
	CREATE FUNCTION hostile.equal(syncstate.sync_source, syncstate.sync_source) RETURNS boolean LANGUAGE sql AS 'SELECT false';
	CREATE FUNCTION hostile.less(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT false';
	CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.equal);
	CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.equal);
	CREATE OPERATOR hostile.= (LEFTARG = syncstate.sync_source, RIGHTARG = syncstate.sync_source, FUNCTION = hostile.equal);
	CREATE OPERATOR hostile.< (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.less);
	CREATE OPERATOR hostile.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.less);
	CREATE FUNCTION hostile.unnest(anyarray) RETURNS SETOF anyelement LANGUAGE sql AS 'SELECT $1[1] WHERE false';
	CREATE TABLE hostile.sync_state (user_id uuid);
	CREATE TABLE hostile.sync_policy (source text);
	CREATE DOMAIN hostile.uuid AS text;
	CREATE DOMAIN hostile.interval AS text;
	CREATE TYPE hostile.sync_source AS ENUM ('mine');
	CREATE TYPE hostile.sync_status AS ENUM ('mine');
	GRANT ALL ON SCHEMA hostile TO PUBLIC});

my @settings = (
	# 19 has no other strings
	($node->pg_version->major < 19
		? 'SET standard_conforming_strings = off; SET escape_string_warning = off' : ()),
	'SET backslash_quote = off; SET quote_all_identifiers = on',
	(map { "SET IntervalStyle = '$_'" } qw(postgres postgres_verbose sql_standard iso_8601)),
	(map { "SET DateStyle = '$_'" } 'ISO, DMY', 'SQL, MDY', 'SQL, DMY', 'German, DMY', 'Postgres, YMD'),
	(map { "SET TimeZone = '$_'" } 'Asia/Kathmandu', 'America/St_Johns', 'Pacific/Apia', 'FOO-15:59', '-12.5'),
	(map { "SET search_path = $_" } q{''}, 'hostile, pg_catalog, syncstate', 'pg_temp, hostile', 'no_such_schema'),
	(map { "SET default_transaction_isolation = '$_'" } 'repeatable read', 'serializable'),
	'SET transform_null_equals = on; SET array_nulls = off',
	'SET plan_cache_mode = force_custom_plan',
	'SET plan_cache_mode = force_generic_plan',
	'SET enable_tidscan = off; SET enable_indexscan = off; SET enable_nestloop = off',
	'SET enable_seqscan = off; SET work_mem = 64',
	'SET jit = on; SET jit_above_cost = 0; SET jit_inline_above_cost = 0',
	'SET ' . ($node->pg_version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode')
	  . ' = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0',
	'SET default_transaction_deferrable = on; SET synchronous_commit = off',
	'SET check_function_bodies = off; SET xmloption = document; SET bytea_output = escape',
	'SET client_min_messages = debug5; RESET client_min_messages',
	'SET session_replication_role = origin; SET default_toast_compression = pglz',
	q{SET lc_messages = 'C'; SET client_encoding = 'LATIN1'},
	'SET row_security = on; SET default_table_access_method = heap',
	'SET lock_timeout = 10000; SET statement_timeout = 60000; SET idle_in_transaction_session_timeout = 60000',
);
foreach my $settings (@settings)
{
	is(live('plain', 'regress_syncstate_odd_worker', $settings), $expected, $settings);
}

# The same in one session, whose kept plans and caches see all of them.
my $all = join "\n", map { "$_;\n$life{postgres}\nRESET ALL;" } @settings;
my ($ret, $out, $err) = $node->psql('plain', $all, on_error_stop => 0);
is($out, join("\n", ($expected) x @settings), 'all of them in one session');
unlike($err, qr/ERROR/, 'without an error');

# ---------------------------------------------------- row_security = off

# The server then refuses what a policy would have filtered; never all rows.
my $hide = 'SET ROLE regress_syncstate_odd_%s; SET row_security = off; ';
$node->safe_psql('plain', "SELECT syncstate.connect_sync('$user[1]', 'google_gmail')");
is(outcome('plain', sprintf($hide, 'worker') . $_), '42501', "row_security = off, as a worker: $_")
  foreach ("SELECT count(*) FROM syncstate.sync_state",
	"SELECT syncstate.get_sync_state('$user[1]', 'google_gmail')",
	"SELECT syncstate.mark_sync_started('$user[1]', 'google_gmail')",
	"SELECT syncstate.mark_sync_completed('$user[1]', 'google_gmail')",
	"SELECT syncstate.claim_due_syncs()",
	"SELECT syncstate.take_sync_events()",
	"SELECT count(*) FROM syncstate.sync_run",
	"SELECT syncstate.set_sync_policy('google_gmail', '{\"jitter\": 0}')");
is(outcome('plain', sprintf($hide, 'user') . "SET request.jwt.claim.sub = '$user[1]'; $_"), '42501',
	"row_security = off, as a user: $_")
  foreach ('SELECT count(*) FROM syncstate.my_syncs', 'SELECT count(*) FROM syncstate.my_sync_runs', "SELECT syncstate.request_sync('$user[1]', 'google_gmail')");
is(outcome('plain', "SET row_security = off; SELECT (syncstate.mark_sync_started('$user[1]', 'google_gmail')).status"),
	'syncing', 'row_security = off, as a superuser');

# ------------------------------------------------ read-only transactions

# Every function is here, so that a new one is not forgotten.
$node->safe_psql('plain', 'CREATE TABLE app_users (id uuid PRIMARY KEY)');
my $row = "'$user[1]', 'google_gmail'";
my %writers = (
	claim_due_syncs => '', mark_sync_started => "$row, resource => 'new'", mark_sync_completed => $row,
	mark_sync_failed => "$row, 'x'", mark_rate_limited => $row, clear_sync_token => $row,
	take_sync_events => '', renew_sync_lease => "$row, 1", checkpoint_sync => "$row, 1", release_sync => "$row, 1",
	may_sweep => "$row, 1, 1, 1",
	report_syncs => qq('[{"user_id": "$user[1]", "source": "google_gmail", "lease": 1, "outcome": "released"}]'),
	connect_account => "'$user[1]'", pause_account => "'$user[1]'", resume_account => "'$user[1]'",
	disconnect_account => "'$user[1]'", request_account => "'$user[1]'", set_sync_resources => "$row, '{x}'",
	update_sync_state => "$row, '{}'", connect_sync => $row, disconnect_sync => $row, pause_sync => $row,
	resume_sync => $row, request_sync => $row, set_sync_policy => q('google_gmail', '{}'),
	pause_sync_source => q('google_gmail'), resume_sync_source => q('google_gmail'), rebalance_syncs => '',
	resync_source => q('google_gmail'), revive_syncs => q('google_gmail'), register_sync_source => q('another'), watch_users => q('app_users'),
	claim_push_channels => '', mark_channel_opened => "$row, 1, 'id', NULL, 'secret'",
	mark_channel_failed => "$row, 1, 'x'", mark_channel_stopped => "$row, 1",
	receive_push => q('id', 'secret'),
	grant_worker => q('regress_syncstate_odd_worker'), grant_user => q('regress_syncstate_odd_user'));
my %readers = (
	get_users_needing_sync => q('google_gmail'), next_sync_due => '', get_sync_state => $row,
	get_sync_states => "'$user[1]'", get_sync_policy => q('google_gmail'), current_user_id => '', user_id_of => q('user_2NNE'), sync_clock => '',
	check_installation => '', present_objects => '', installed_objects => '',
	map { $_ => '(SELECT s FROM syncstate.sync_state AS s LIMIT 1)' } qw(is_legal due_from is_ahead));
my @functions = split /\n/, $node->safe_psql('plain', q{
	SELECT proname FROM pg_proc
	WHERE pronamespace = 'syncstate'::regnamespace AND prorettype <> 'trigger'::regtype ORDER BY proname COLLATE "C"});
is(join(' ', sort(keys %writers, keys %readers)), join(' ', @functions), 'every function is a reader or a writer');

my $before = $node->safe_psql('plain', 'SELECT * FROM syncstate.sync_state');
is(outcome('plain', "BEGIN READ ONLY; SELECT count(*) FROM syncstate.$_($writers{$_})"), '25006', "read-only: $_ is refused")
  foreach sort keys %writers;
like(outcome('plain', "BEGIN READ ONLY; SELECT count(*) FROM syncstate.$_($readers{$_})"), qr/^\d+$/, "read-only: $_ works")
  foreach sort keys %readers;
like(outcome('plain', "BEGIN READ ONLY; SELECT count(*) FROM syncstate.$_"), qr/^\d+$/, "read-only: $_ works")
  foreach qw(my_syncs my_sync_runs sync_overview sync_state sync_policy sync_budget custom_source sync_event sync_run);
is($node->safe_psql('plain', 'SELECT * FROM syncstate.sync_state'), $before, 'read-only: nothing changed');

# ------------------------------------- every UPDATE and DELETE has a WHERE

# What the extension "safeupdate" would refuse, read from the sources.
my $c = slurp_file('src/store.c') =~ s{/\*.*?\*/}{}gsr;
$c =~ s/#define\s+(\w+)(?:\(\w+\))?\s*(?:\\\n)?//g;
my @statements = map { join '', /"((?:[^"\\]|\\.)*)"/g } $c =~ /\[PLAN_\w+\] = \{(.*?),\s*(?:\d+, \{|KEY_ARGS)/gs;
my $script = join '', map { slurp_file($_) } glob 'sql/syncstate--*.sql';
$script =~ s{/\*.*?\*/}{}gs;
$script =~ s/^\s*--.*$//mg;
push @statements, map { s/''/'/gr } $script =~ /\b((?:UPDATE|DELETE\s+FROM)\s+syncstate\.[^;]*?)(?=;|'\s*,|\$\$)/gs;
my @writes = grep { /\b(?:UPDATE\s+(?:syncstate|%)|DELETE\s+FROM)\b/ } @statements;
cmp_ok(scalar(@writes), '>=', 7, 'found the statements: ' . @writes);
my @bare = grep { !/\bWHERE\b/ } @writes;
is("@bare", '', 'every UPDATE and DELETE has a WHERE');

# ------------------------------------------------------- event triggers

make_database('events', "ENCODING 'UTF8' LOCALE 'C'");
$node->safe_psql('events', q{
	DROP EXTENSION syncstate;
	CREATE TABLE seen (tag text, object text);
	CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
	BEGIN
		INSERT INTO seen SELECT command_tag, object_identity FROM pg_event_trigger_ddl_commands();
	END $$;
	CREATE FUNCTION note_drop() RETURNS event_trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen SELECT tg_tag, object_identity FROM pg_event_trigger_dropped_objects();
	END $$;
	CREATE FUNCTION note_start() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM 1; END';
	CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note();
	CREATE EVENT TRIGGER note_drop ON sql_drop EXECUTE FUNCTION note_drop();
	CREATE EVENT TRIGGER note_start ON ddl_command_start EXECUTE FUNCTION note_start();
	CREATE TABLE app_users (id uuid PRIMARY KEY);
	CREATE EXTENSION syncstate;
	ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0;
	SELECT syncstate.grant_worker('regress_syncstate_odd_worker');
	SELECT syncstate.grant_user('regress_syncstate_odd_user');
	SELECT syncstate.register_sync_source('evented');
	SELECT syncstate.watch_users('app_users')});
$node->safe_psql('events', qq{
	INSERT INTO app_users VALUES ('$user[1]');
	SELECT syncstate.connect_sync('$user[1]', 'evented');
	DELETE FROM app_users});
is($node->safe_psql('events', 'SELECT count(*) FROM syncstate.sync_state'), '0', 'event triggers: deleted users are forgotten');
is(live('events', 'regress_syncstate_odd_worker', 'SELECT') =~ s/^evented\|.*\n//mr, $expected, 'event triggers: the same life');
$node->safe_psql('events', 'DROP EXTENSION syncstate CASCADE');
is($node->safe_psql('events', q{
	SELECT string_agg(DISTINCT tag, ', ' ORDER BY tag) FROM seen
	WHERE tag IN ('CREATE EXTENSION', 'ALTER TYPE', 'CREATE TRIGGER', 'GRANT', 'DROP EXTENSION')}),
	'ALTER TYPE, CREATE EXTENSION, CREATE TRIGGER, DROP EXTENSION, GRANT', 'event triggers saw it all');

# ------------------------------------------- encodings and collations

my @databases = (
	[ 'latin1', "ENCODING 'LATIN1' LOCALE 'C'" ],
	[ 'sql_ascii', "ENCODING 'SQL_ASCII' LOCALE 'C'" ],
	[ 'euc_jp', "ENCODING 'EUC_JP' LOCALE 'C'" ]);
push @databases, [ 'icu', "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'de-u-kf-upper' LOCALE 'C'" ]
  if $node->safe_psql('postgres', q{SELECT count(*) > 0 FROM pg_collation WHERE collprovider = 'i'}) eq 't';
push @databases, [ 'builtin', "ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'" ]
  if $node->pg_version >= 17;
foreach (@databases)
{
	my ($database, $how) = @$_;
	make_database($database, $how);
	is(live($database, $_, 'SELECT'), $expected, "$how, as $_") foreach sort keys %life;
}

# What the encoding has not, in text and in JSON, is refused by the server.
my $euro = "\xe2\x82\xac";
is(outcome('latin1', "SET client_encoding = 'UTF8'; SELECT syncstate.mark_sync_failed('$user[1]', 'google_gmail', '$euro')"),
	'22P05', 'LATIN1: a text with a euro sign');
is(outcome('latin1', "SELECT $_"), '22P05', "LATIN1: $_")
  foreach (qq{syncstate.update_sync_state('$user[1]', 'google_gmail', '{"error_message": "\\u20ac"}')},
	qq{syncstate.report_syncs('[{"user_id": "$user[1]", "source": "google_gmail", "lease": 1, "outcome": "failed", "error_message": "\\u20ac"}]')});
is(outcome('latin1', qq{SET request.jwt.claims = '{"name": "\\u20ac"}'; SELECT syncstate.current_user_id()}),
	'22P05', 'LATIN1: claims with a euro sign');
is(outcome('latin1', qq{SET client_encoding = 'UTF8'; SELECT (syncstate.update_sync_state('$user[1]', 'google_gmail', '{"error_message": "\\u00e9"}')).error_message}),
	"\xc3\xa9", 'LATIN1: an accent through JSON');
is(outcome('latin1', qq{SET client_encoding = 'UTF8'; SELECT syncstate.user_id_of('Zo\xc3\xab')}), 'fe9824c9-da43-5291-b5e5-43d13b188f31', 'LATIN1: an id with an accent is the same user as in UTF8');
is(outcome('sql_ascii', qq{SELECT encode((syncstate.mark_sync_failed('$user[1]', 'google_gmail', E'\\xff\\xfe')).error_message::bytea, 'hex')}),
	'fffe', 'SQL_ASCII: any bytes');

# A message is cut between characters, whatever their lengths.
foreach (
	[ 'plain', "repeat('a', n) || repeat(U&'\\00e9', 8000)" ],
	[ 'plain', "repeat('a', n) || repeat(U&'\\20ac', 8000)" ],
	[ 'plain', "repeat('a', n) || repeat(U&'\\+01f600', 8000)" ],
	[ 'euc_jp', "repeat('a', n) || repeat(convert_from('\\xa4a2', 'EUC_JP'), 8000)" ],
	[ 'euc_jp', "repeat('a', n) || repeat(convert_from('\\x8fb0a1', 'EUC_JP'), 8000)" ],
	[ 'latin1', "repeat('a', n) || repeat(convert_from('\\xe9', 'LATIN1'), 9000)" ],
	[ 'sql_ascii', "repeat('a', n) || repeat(convert_from('\\xc3a9', 'SQL_ASCII'), 8000)" ])
{
	my ($database, $message) = @$_;
	# "prefix" of whole characters: cutting never made another character
	is(outcome($database, qq{
		SELECT count(*), bool_and(octet_length(cut) BETWEEN 8180 AND 8192),
			bool_and(cut LIKE '% [cut]'), bool_and(starts_with(message, left(cut, -6)))
		FROM generate_series(0, 4) AS n, LATERAL (SELECT $message) AS m (message),
			LATERAL (SELECT (syncstate.mark_sync_failed('$user[1]', 'google_gmail', message)).error_message) AS e (cut)
		WHERE convert_from(convert_to(cut, getdatabaseencoding()), getdatabaseencoding()) = cut}),
		'5|t|t|t', "$database: cut of $message");
	like(outcome($database, qq{
		SELECT syncstate.mark_sync_failed('$user[1]', 'google_gmail', 'x', kind => $message) FROM (SELECT 1) AS s (n)}),
		qr/^22023$/, "$database: a bad word of it");
}

# The order of the lanes does not follow the locale.
is(outcome('icu', "SELECT string_agg(c.collname, ' ') FROM pg_attribute AS a JOIN pg_collation AS c ON c.oid = a.attcollation WHERE a.attrelid IN ('syncstate.sync_state_due'::regclass, 'syncstate.sync_state_requested'::regclass) AND a.attname = 'resource'"),
	'C C', 'ICU: resource compares bytewise in both lanes')
  if grep { $_->[0] eq 'icu' } @databases;

# ------------------------------------------------ two-phase commit

# A claim may be prepared, and is one once it is committed.
$node->safe_psql('plain', "TRUNCATE syncstate.sync_state; SELECT syncstate.connect_sync('$user[1]', 'google_tasks')");
is(outcome('plain', "BEGIN; SELECT lease FROM syncstate.claim_due_syncs('google_tasks'); PREPARE TRANSACTION 'claim'"),
	$node->safe_psql('plain', q{SELECT 1 WHERE EXISTS (SELECT FROM pg_prepared_xacts)}), 'a claim can be prepared');
is(outcome('plain', "SELECT count(*) FROM syncstate.claim_due_syncs('google_tasks')"), '0', 'its row is nobody else\'s');
is(outcome('plain', "COMMIT PREPARED 'claim'; SELECT status FROM syncstate.sync_state"), 'syncing', 'and it is held afterwards');

$node->stop;
done_testing();
