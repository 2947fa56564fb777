# The life of push channels: 90 days of 1,000 rows by syncstate.clock, with workers
# that stay away, fail, die and report late, and users who come and go, beside a
# provider that knows which channels are open.  Before that, workers that open
# channels at the same time, and two that renew the same one.
use strict;
use warnings;

use File::Basename;
use lib dirname(__FILE__) . '/lib';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Sessions;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', "fsync = off\nautovacuum = off");
$node->start;
$node->safe_psql('postgres', <<'EOSQL');
CREATE EXTENSION syncstate;
ALTER ROLE CURRENT_USER SET search_path = life, syncstate;
SELECT FROM syncstate.set_sync_policy('google_calendar', '{"push_renew_before": "2 days"}');
CREATE SCHEMA life;
SET search_path = life, syncstate;

CREATE TABLE clock (now timestamptz, awake timestamptz);	-- the hour; the last one in which a worker was there
INSERT INTO clock VALUES ('2030-01-01Z', '2030-01-01Z');

-- The users' side: 500 users with a work and a private calendar.
CREATE TABLE rows (
	n integer PRIMARY KEY,
	user_id uuid, account text, resource text,
	state text DEFAULT 'off',		-- on, paused, off
	back timestamptz,				-- when the user connects or resumes it
	is_mailbox boolean,				-- has one channel, which is prolonged in place
	refused integer,				-- how often the provider has refused a channel; null = it grants one
	excused timestamptz DEFAULT '-infinity',	-- until when it need not have one, or may be renewed late
	UNIQUE (user_id, account, resource));
INSERT INTO rows (n, user_id, account, resource, is_mailbox, refused)
SELECT n, ('00000000-0000-4000-8000-' || lpad((n / 2)::text, 12, '0'))::uuid, CASE WHEN n % 6 < 2 THEN 'home' ELSE '' END,
	CASE WHEN n % 2 = 0 THEN 'work' ELSE '' END, n % 10 = 3, CASE WHEN n % 100 = 7 THEN 0 END
FROM generate_series(0, 999) AS n;

-- The provider's side: what is open there.
CREATE SEQUENCE channels;
CREATE TABLE provider (channel_id text PRIMARY KEY, n integer, ends timestamptz);

-- The workers' side.
CREATE TABLE workers (w integer PRIMARY KEY, away_until timestamptz DEFAULT '-infinity');
INSERT INTO workers SELECT generate_series(1, 3);
CREATE TABLE late (at timestamptz, n integer, action text, lease bigint, channel_id text, ends timestamptz);

-- What was seen.
CREATE TABLE findings (what text, at timestamptz, n integer, detail text);
CREATE TABLE done (at timestamptz, n integer, action text, how text);	-- how: well, failed, dead, late, lost
CREATE TABLE hours (at timestamptz, slept numeric);	-- with a worker; hours since the last one

-- Opens or renews a channel at the provider; returns its id.
CREATE FUNCTION open_channel(r rows, until timestamptz) RETURNS text LANGUAGE sql AS $$
	INSERT INTO life.provider
	SELECT CASE WHEN r.is_mailbox THEN 'mailbox ' || r.n ELSE 'channel ' || nextval('life.channels') END, r.n, until
	ON CONFLICT (channel_id) DO UPDATE SET ends = until
	RETURNING channel_id
$$;

-- Reports what was done; a channel that another worker has stopped since is no news.
CREATE FUNCTION report(l late) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r life.rows;
BEGIN
	SELECT * INTO r FROM life.rows WHERE n = l.n;
	IF l.action = 'stop' THEN
		PERFORM mark_channel_stopped(r.user_id, 'google_calendar', l.lease, r.resource, r.account);
	ELSE
		PERFORM mark_channel_opened(r.user_id, 'google_calendar', l.lease, l.channel_id, l.ends, 'secret', NULL, r.resource, r.account);
	END IF;
EXCEPTION WHEN SQLSTATE 'PT409' THEN
	IF l.action <> 'stop' THEN
		RAISE;
	END IF;
	INSERT INTO life.done VALUES (sync_clock(), l.n, l.action, 'lost');
END
$$;

-- Claims up to so many channels and does what is to be done about them; returns how
-- many there were.  Of the work so many parts come to nothing: the worker fails, dies,
-- or calls the provider and reports hours later.
CREATE FUNCTION work(batch integer, failing double precision DEFAULT 0, dying double precision DEFAULT 0,
					 hanging double precision DEFAULT 0) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
	t timestamptz := sync_clock();
	before timestamptz := (SELECT awake FROM life.clock);
	c record;
	r life.rows;
	l life.late;
	chance double precision;
	how text;
	wait interval;
	claimed integer := 0;
BEGIN
	FOR c IN SELECT * FROM claim_push_channels('google_calendar', batch) LOOP
		claimed := claimed + 1;
		SELECT * INTO r FROM life.rows WHERE (user_id, account, resource) = (c.user_id, c.account, c.resource);
		IF c.action = 'renew' AND c.expires_at - t > interval '2 days' THEN
			INSERT INTO life.findings VALUES ('renewed early', t, r.n, c.expires_at);
		ELSIF c.action = 'renew' AND c.expires_at - before < interval '1 day' AND r.excused < before THEN
			INSERT INTO life.findings VALUES ('renewed late', t, r.n, c.expires_at);
		END IF;

		chance := random();
		how := CASE WHEN c.action <> 'stop' AND r.refused IS NOT NULL THEN 'refused' WHEN chance < failing THEN 'failed'
					WHEN chance < failing + dying THEN 'dead' WHEN chance < failing + dying + hanging THEN 'late' ELSE 'well' END;
		INSERT INTO life.done VALUES (t, r.n, c.action, how);
		IF how IN ('failed', 'dead', 'late') AND c.action <> 'stop' THEN
			-- backoff doubles from 30 seconds to an hour; the first lease that is lost is handed out when it ends
			wait := least(interval '1 hour', interval '30 s' * 2 ^ least(c.failures, 10));
			UPDATE life.rows SET excused = greatest(excused, CASE WHEN how = 'failed' THEN t + wait
				ELSE c.lease_expires_at + wait * sign(c.failures) END) WHERE n = r.n;
		END IF;

		-- a worker dies before it opens a channel, or after it has stopped one: of one
		-- that it opens and tells nobody of, no table can know
		l := ROW(t, r.n, c.action, c.lease, c.channel_id, t + interval '7 days');
		IF how IN ('dead', 'late', 'well') AND c.action = 'stop' THEN
			DELETE FROM life.provider WHERE channel_id = c.channel_id;
		ELSIF how IN ('late', 'well') THEN
			l.channel_id := life.open_channel(r, l.ends);
		END IF;
		CASE how
			WHEN 'refused' THEN
				UPDATE life.rows SET refused = refused + 1 WHERE n = r.n;
				PERFORM mark_channel_failed(c.user_id, c.source, c.lease, 'no push here', 'unsupported', c.resource, c.account);
			WHEN 'failed' THEN
				PERFORM mark_channel_failed(c.user_id, c.source, c.lease, 'try again', 'transient', c.resource, c.account);
			WHEN 'late' THEN
				l.at := t + random() * interval '20 hours';
				INSERT INTO life.late SELECT l.*;
			WHEN 'well' THEN
				PERFORM life.report(l);
			ELSE
		END CASE;
	END LOOP;
	RETURN claimed;
END
$$;

-- At the end of an hour, in which a worker was there or not.
CREATE FUNCTION look(t timestamptz, awake boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	-- every row has a live channel that the table knows, or waits for a retry
	INSERT INTO life.findings
	SELECT 'without a channel', t, r.n, concat_ws(' ', r.excused,
		(SELECT jsonb_agg(to_jsonb(h)) FROM sync_channel AS h
			WHERE (h.user_id, h.account, h.source, h.resource) = (r.user_id, r.account, 'google_calendar', r.resource)),
		(SELECT jsonb_agg(to_jsonb(p)) FROM life.provider AS p WHERE p.n = r.n AND p.ends > t - interval '7 days'),
		(SELECT jsonb_agg(to_jsonb(d)) FROM life.done AS d WHERE d.n = r.n AND d.at > t - interval '3 days'))
	FROM life.rows AS r
	WHERE awake AND r.state = 'on' AND r.refused IS NULL AND r.excused < t
	AND NOT EXISTS (
		SELECT FROM sync_channel AS h JOIN life.provider AS p USING (channel_id)
		WHERE h.user_id = r.user_id AND h.account = r.account AND h.source = 'google_calendar' AND h.resource = r.resource
		AND p.ends > t);
	-- the table knows every live channel that a worker is not about to report
	INSERT INTO life.findings
	SELECT 'unknown channel', t, p.n, p.channel_id
	FROM life.provider AS p
	WHERE p.ends > t
	AND NOT EXISTS (SELECT FROM sync_channel AS h WHERE h.channel_id = p.channel_id)
	AND NOT EXISTS (SELECT FROM life.late AS l WHERE l.channel_id = p.channel_id AND l.action <> 'stop');
END
$$;

-- Users come and go.
CREATE FUNCTION live(t timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	r life.rows;
BEGIN
	FOR r IN SELECT * FROM life.rows WHERE state = 'on' AND refused IS NULL AND n IN (SELECT floor(random() * 1000) FROM generate_series(1, 2)) LOOP
		IF random() < 0.5 THEN
			PERFORM pause_sync(r.user_id, 'google_calendar', r.resource, r.account);
			UPDATE life.rows SET state = 'paused', back = t + random() * interval '12 days' WHERE n = r.n;
		ELSE
			-- one in four comes back before any worker sees it, or soon
			PERFORM disconnect_sync(r.user_id, 'google_calendar', r.resource, r.account);
			UPDATE life.rows SET state = 'off', back = t + greatest(0, random() * 1.33 - 0.33) ^ 3 * interval '10 days' WHERE n = r.n;
		END IF;
	END LOOP;
	FOR r IN SELECT * FROM life.rows WHERE back <= t LOOP
		IF r.state = 'paused' THEN
			PERFORM resume_sync(r.user_id, 'google_calendar', r.resource, r.account);
		ELSE
			PERFORM connect_sync(r.user_id, 'google_calendar', r.resource, r.account);
		END IF;
		UPDATE life.rows SET state = 'on', back = NULL, excused = greatest(excused, t) WHERE n = r.n;
	END LOOP;
END
$$;

-- Hours go by, with users who come and go or without.
CREATE PROCEDURE pass(nhours integer, lives boolean) LANGUAGE plpgsql AS $$
DECLARE
	t timestamptz;
	l life.late;
	awake boolean;
	works boolean;
BEGIN
	FOR i IN 1 .. nhours LOOP
		UPDATE life.clock SET now = now + interval '1 hour' RETURNING now INTO t;
		PERFORM set_config('syncstate.clock', t::text, false);
		IF lives THEN
			PERFORM life.live(t);
			-- a worker goes away every two days, and all of them do every week
			UPDATE life.workers SET away_until = t + random() * interval '20 hours' WHERE away_until <= t AND random() < 1 / 48.0;
			UPDATE life.workers SET away_until = until
			FROM (SELECT t + random() * interval '20 hours' AS until WHERE random() < 1 / 168.0) AS outage;
		END IF;
		awake := EXISTS (SELECT FROM life.workers WHERE away_until <= t);

		FOR l IN DELETE FROM life.late WHERE at <= t RETURNING * LOOP
			PERFORM life.report(l);
		END LOOP;
		works := awake;
		WHILE works LOOP
			works := life.work(50, 0.06, 0.03, 0.03) = 50;
		END LOOP;
		PERFORM life.look(t, awake);
		IF awake THEN
			INSERT INTO life.hours SELECT t, extract(epoch FROM t - clock.awake) / 3600 FROM life.clock;
			UPDATE life.clock SET awake = t;
		END IF;
		COMMIT;
	END LOOP;
END
$$;
EOSQL

# ---------------------------------------- workers that open channels together

$node->safe_psql('postgres', q{
	SET syncstate.clock = '2030-01-01Z';
	UPDATE life.rows SET state = 'on', excused = '2030-01-01Z';
	SELECT FROM life.rows, syncstate.connect_sync(user_id, 'google_calendar', resource, account);
	SELECT life.work(7) -- from here on there is work for all
	});
my $script = $node->basedir . '/work.sql';
append_to_file($script, 'SELECT life.work(7);');
{
	local $ENV{PGOPTIONS} = '-c syncstate.clock=2030-01-01Z';
	$node->command_ok([ 'pgbench', '-n', '-c', 4, '-j', 2, '-t', 200, '-f', $script, 'postgres' ], 'four workers open channels');
}
is($node->safe_psql('postgres', q{
	SELECT count(*), count(DISTINCT n), (SELECT count(*) FROM syncstate.sync_channel WHERE state = 'active') FROM life.provider}),
	'990|990|990', 'each row that is granted one has one');
is($node->safe_psql('postgres', q{SELECT how, count(*), count(DISTINCT n) FROM life.done GROUP BY how ORDER BY how}),
	"refused|10|10\nwell|990|990", 'and each row was handed to one of them');

# ----------------------------------------------------------- three months

my $seed = $ENV{SYNCSTATE_PUSH_SEED} // int(rand(1000));
note("SYNCSTATE_PUSH_SEED=$seed");

# Hours go by, in sessions of ten days.
sub hours_go_by
{
	my ($hours, $lives) = @_;
	$node->safe_psql('postgres', 'ANALYZE');
	while ($hours > 0)
	{
		my $some = $hours > 240 ? 240 : $hours;
		$node->safe_psql('postgres', "SELECT setseed(1.0 / (1 + $seed)); CALL life.pass($some, $lives)");
		$node->safe_psql('postgres', 'VACUUM ANALYZE syncstate.sync_state, syncstate.sync_channel, life.rows, life.provider');
		$seed++;
		$hours -= $some;
	}
	return;
}

# What is against a property: how often, from when to when, and the first few cases.
sub found
{
	my ($what) = @_;
	return $node->safe_psql('postgres', qq{
		SELECT count(*), min(at), max(at) FROM life.findings WHERE what = '$what' HAVING count(*) > 0;
		SELECT at, n, detail FROM life.findings WHERE what = '$what' ORDER BY at, n LIMIT 5});
}

hours_go_by(90 * 24, 'true');
note($_) foreach split /\n/, $node->safe_psql('postgres', q{SELECT action, how, count(*) FROM life.done GROUP BY 1, 2 ORDER BY 1, 2});

is(found('without a channel'), '', 'no row is without a live channel for an hour, unless no worker was there or a retry is waited for');
is(found('unknown channel'), '', 'the table knows every live channel that was reported');
is(found('renewed early'), '', 'no channel is renewed earlier than push_renew_before before its end');
is(found('renewed late'), '', 'nor later than half of that, unless no worker was there or a retry is waited for');


# each hour's renewals, of those of a mean hour, for each hour that they waited for a worker
my $most = $node->safe_psql('postgres', q{
	WITH hour AS (
		SELECT at, slept, count(action) AS renewals
		FROM hours LEFT JOIN done USING (at)
		WHERE at > '2030-01-29Z' AND action IS NOT DISTINCT FROM 'renew' GROUP BY at, slept)
	SELECT round(max(renewals / slept / mean), 1), round(mean, 1)
	FROM hour, (SELECT sum(renewals) / sum(slept) AS mean FROM hour) AS m
	GROUP BY mean});
note("renewals of the fullest hour, times those of a mean hour, which are: $most");
ok($most =~ /^([\d.]+)\|/ && $1 <= 6, 'after a month renewals are spread over the hours');
# a provider that refused is asked again after 30 days, and whatever no worker was there
is($node->safe_psql('postgres', q{SELECT min(refused) >= 3, max(refused) <= 4 FROM rows}), 't|t',
	'for a row that is refused the provider is asked once a month');

# ---------------------------------------- two workers that renew the same one

# Two sessions at the same hour, after all that was due is done.
$node->safe_psql('postgres', q{UPDATE clock SET now = now + interval '30 min', awake = now + interval '30 min'});
my @sessions = map { $node->background_psql('postgres') } 0 .. 1;
$_->query_safe(q{SELECT set_config('syncstate.clock', now::text, false) FROM clock}) foreach @sessions;
$sessions[0]->query_safe('SELECT work(1000), work(1000)');

foreach my $first (0, 1)
{
	my $name = $first == 0 ? 'who lost the lease reports first' : 'who has the lease reports first';
	my $n = $node->safe_psql('postgres', q{
		UPDATE sync_channel AS h SET renew_at = now
		FROM clock, rows AS r
		WHERE r.n = (SELECT min(r.n) FROM rows AS r JOIN sync_channel AS h USING (user_id, account, resource)
			WHERE r.state = 'on' AND NOT is_mailbox AND h.state = 'active' AND h.renew_at > now AND lease_expires_at IS NULL)
			AND (h.user_id, h.account, h.resource) = (r.user_id, r.account, r.resource) AND h.state = 'active'
		RETURNING r.n});

	my $claim = qq{SELECT action, lease FROM claim_push_channels('google_calendar', 1000) JOIN rows USING (user_id, account, resource)
		WHERE n = $n};

	# one has it and the other passes it over, until the lease has run out
	my ($action, @leases);
	$sessions[0]->query_safe('BEGIN');
	($action, $leases[0]) = split /\|/, $sessions[0]->query_safe($claim);
	is($action, 'renew', "$name: a worker claims a renewal");
	is($sessions[1]->query_safe($claim), '', "$name: another passes it over while that is not committed");
	$sessions[0]->query_safe('COMMIT');
	is($sessions[1]->query_safe($claim), '', "$name: and afterwards");
	$_->query_safe(q{SELECT set_config('syncstate.clock', (sync_clock() + interval '11 min')::text, false)}) foreach @sessions;
	($action, $leases[1]) = split /\|/, $sessions[1]->query_safe($claim);
	is($action, 'renew', "$name: it gets it when the lease has run out") or next;

	# both have opened a channel
	my @report = map {
		qq{SELECT opened.state FROM rows AS r, open_channel(r, sync_clock() + interval '7 days') AS id,
			mark_channel_opened(r.user_id, 'google_calendar', $leases[$_], id, sync_clock() + interval '7 days', 'secret', NULL, r.resource, r.account) AS opened
			WHERE n = $n}
	} 0 .. 1;
	$sessions[$first]->query_safe("BEGIN");
	$sessions[$first]->query_safe($report[$first]);
	$sessions[ 1 - $first ]->query_until(qr/reports/, "\\echo reports\n$report[ 1 - $first ];\n");
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'});
	$sessions[$first]->query_safe('COMMIT');
	$sessions[ 1 - $first ]->query_safe('SELECT');
	is($node->safe_psql('postgres', qq{
			SELECT string_agg(h.state, ' ' ORDER BY length(h.channel_id), h.channel_id) FROM rows JOIN sync_channel AS h USING (user_id, account, resource) WHERE n = $n}),
		$first == 0 ? 'retiring retiring active' : 'retiring active retiring',
		"$name: that of the lease is used, the other ones are to be stopped");
	is($node->safe_psql('postgres', qq{SELECT bool_and(receive_push(channel_id, 'secret')) FROM provider WHERE n = $n AND ends > (SELECT now FROM clock)}),
		't', "$name: until then all of them are heard");
	$sessions[1]->query_safe('SELECT work(1000)');
	is($node->safe_psql('postgres', qq{
			SELECT count(*), min(state) FROM provider JOIN sync_channel USING (channel_id) WHERE n = $n AND ends > (SELECT now FROM clock)}),
		'1|active', "$name: then one is open");
}
$_->quit foreach @sessions;

# ------------------------------------------------------------------ the end

$node->safe_psql('postgres', q{
	SELECT set_config('syncstate.clock', now::text, false) FROM clock;
	SELECT FROM rows, disconnect_sync(user_id, 'google_calendar', resource, account);
	UPDATE rows SET state = 'off', back = NULL;
	DELETE FROM findings;
	UPDATE clock SET now = now + interval '30 min'});
hours_go_by(72, 'false');
is(found('unknown channel'), '', 'the table still knows every live channel');
is($node->safe_psql('postgres', q{SELECT count(*) FROM provider WHERE ends > (SELECT now FROM clock)}), '0',
	'three days after all users have gone no channel is open');
is($node->safe_psql('postgres', q{SELECT count(*) FROM sync_channel}), '0', 'and none is known');

$node->stop;
done_testing();
