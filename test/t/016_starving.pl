# Nobody starves: the lives of workers and rows, simulated for days by
# syncstate.clock, with rows that kill their worker, syncs that come in slices,
# floods of requests, limits, and workers that are few.  What is measured is how
# long a row waits from its due time until its sync is done: see doc/limits.md,
# which states the bound.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', 'fsync = off');
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION syncstate; ALTER TABLE syncstate.sync_state ALTER lease SET DEFAULT 0');
$node->safe_psql('postgres', <<'EOSQL');
SET search_path = syncstate;
CREATE FUNCTION public.u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;

-- What a row is like, and what became of it.
CREATE TABLE public.rows (
	n integer PRIMARY KEY,
	kind text,						-- ordinary, poison, huge, asked (by a flood), limited
	longest interval DEFAULT '0',	-- from due to done
	done timestamptz DEFAULT '2030-01-01 00:00+00',
	gap interval DEFAULT '0',		-- from done to done
	runs integer DEFAULT 0,
	crashes timestamptz[] DEFAULT '{}');
CREATE TABLE public.workers (w integer PRIMARY KEY, wakes timestamptz, held sync_state[]);

CREATE PROCEDURE public.begin_with(VARIADIC kinds text[]) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('syncstate.clock', '2030-01-01 00:00+00', false);
	TRUNCATE sync_state, public.rows, sync_policy;
	INSERT INTO public.rows (n, kind)
	SELECT row_number() OVER (ORDER BY md5(k.i::text || g)), k.words[2]
	FROM unnest(kinds) WITH ORDINALITY AS kinds (kind, i), LATERAL (SELECT i, regexp_split_to_array(kind, ' ') AS words) AS k,
		generate_series(1, k.words[1]::int) AS g;
	INSERT INTO sync_state (user_id, source, due_at)
	SELECT public.u(n), 'google_calendar', '2030-01-01 00:00+00'::timestamptz - n * interval '1 ms' FROM public.rows;
END
$$;

-- Reports the row that a worker has in hand; false if the worker is dead.
CREATE FUNCTION public.serve(s sync_state, r public.rows, t timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF r.kind = 'poison' THEN
		UPDATE public.rows SET crashes = crashes || t WHERE n = r.n;
		RETURN false;
	ELSIF r.kind = 'huge' THEN		-- always another slice
		PERFORM checkpoint_sync(s.user_id, s.source, s.lease, page_token => t::text);
		PERFORM release_sync(s.user_id, s.source, s.lease);
	ELSIF r.kind = 'limited' AND r.runs % 2 = 0 THEN
		PERFORM mark_rate_limited(s.user_id, s.source, '5 min', lease => s.lease);
	ELSE
		PERFORM mark_sync_completed(s.user_id, s.source, sync_token => 't', lease => s.lease);
	END IF;
	UPDATE public.rows SET longest = greatest(longest, t - s.due_at), gap = greatest(gap, t - done), done = t, runs = runs + 1
	WHERE n = r.n;
	RETURN true;
EXCEPTION WHEN SQLSTATE 'PT409' THEN
	RETURN true;					-- its lease ran out: somebody else has it
END
$$;

-- Workers claim, serve a row after the other, and sleep until there is work.
-- One that died is back after a minute, without what it had.
CREATE PROCEDURE public.live(nworkers integer, batch integer, hours integer, flood interval DEFAULT NULL) LANGUAGE plpgsql AS $$
DECLARE
	t timestamptz := sync_clock();
	ends timestamptz := t + hours * interval '1 hour';
	request timestamptz := t;
	w public.workers;
	r public.rows;
	steps integer := 0;
BEGIN
	TRUNCATE public.workers;
	INSERT INTO public.workers SELECT g, t + g * interval '1 s', '{}' FROM generate_series(1, nworkers) AS g;
	LOOP
		SELECT * INTO w FROM public.workers AS x ORDER BY x.wakes, x.w LIMIT 1;
		t := w.wakes;
		EXIT WHEN t > ends;
		WHILE flood IS NOT NULL AND request <= t LOOP
			PERFORM set_config('syncstate.clock', request::text, false);
			PERFORM request_sync(public.u(rows.n), 'google_calendar') FROM public.rows WHERE kind = 'asked';
			request := request + flood;
		END LOOP;
		PERFORM set_config('syncstate.clock', t::text, false);
		IF cardinality(w.held) > 0 THEN
			SELECT * INTO r FROM public.rows WHERE public.u(rows.n) = w.held[1].user_id;
			IF public.serve(w.held[1], r, t) THEN
				w.held := w.held[2:];
			ELSE
				w.held := '{}';
				w.wakes := t + interval '1 min';
			END IF;
		ELSE
			w.held := ARRAY(SELECT c FROM claim_due_syncs('google_calendar', batch) AS c);
		END IF;
		IF cardinality(w.held) > 0 THEN
			SELECT * INTO r FROM public.rows WHERE public.u(rows.n) = w.held[1].user_id;
			w.wakes := t + CASE r.kind WHEN 'huge' THEN interval '140 s' ELSE interval '0.2 s' END;
		ELSIF w.wakes = t THEN
			w.wakes := greatest(t + interval '0.1 s', least(next_sync_due('google_calendar'), t + interval '10 min'));
		END IF;
		UPDATE public.workers AS x SET held = w.held, wakes = w.wakes WHERE x.w = w.w;
		steps := steps + 1;
		IF steps % 50 = 0 THEN
			COMMIT;					-- dead versions can go
		END IF;
	END LOOP;
END
$$;
EOSQL

# Lives a life; returns what became of the rows by kind: how many, the longest
# wait in seconds, the fewest and the most runs, the most crashes, the longest time
# without a sync.
sub live
{
	my ($kinds, $live, @policy) = @_;
	my $policy = join ';', map { "SELECT FROM set_sync_policy('google_calendar', '$_')" } @policy;
	my $out = $node->safe_psql('postgres', qq{
		SET search_path = syncstate;
		CALL public.begin_with($kinds);
		$policy;
		CALL public.live($live);
		-- what still waits at the end has waited that long, served or not
		SELECT kind, count(*), ceil(extract(epoch FROM max(greatest(longest, sync_clock() - s.due_at)))), min(runs), max(runs),
			max(cardinality(crashes)), ceil(extract(epoch FROM max(greatest(gap, sync_clock() - done))))
		FROM public.rows AS r LEFT JOIN sync_state AS s ON s.user_id = public.u(r.n) GROUP BY kind});
	return map { my ($kind, @rest) = split /\|/; ($kind => \@rest) } split /\n/, $out;
}

my ($interval, $lease, $base) = (15 * 60, 10 * 60, 30);

### a row that kills its worker

foreach my $workers (1, 2, 8)
{
	foreach my $case ([ 20, 1, 10, 24 ], [ 20, 3, 10, 6 ], [ 60, 1, 100, 6 ], [ 7, 1, 2, 6 ])
	{
		my ($ordinary, $poison, $batch, $hours) = @$case;
		next if $workers == 8 && $hours == 6;
		my $name = "$workers workers, batches of $batch, $ordinary rows beside $poison that kill";
		my %is = live("'$ordinary ordinary', '$poison poison'", "$workers, $batch, $hours");
		my ($rows, $longest, $fewest, $most, $crashes, $gap) = @{ $is{ordinary} };
		note("$name: waits up to $longest s, $gap s without a sync, $fewest runs");
		cmp_ok($longest, '<=', 2 * $lease + 2 * $base + 60, "$name: no row waits longer than the bound");
		cmp_ok($gap, '<=', 2 * $interval, "$name: no row goes without a sync for more than two intervals");
		cmp_ok($fewest, '>=', $hours * 3600 / $interval - 2, "$name: none loses more than two syncs");

		# each crash waits for the lease, the backoff, and a free worker
		next if $poison > 1;
		my $waits = $node->safe_psql('postgres', q{
			SELECT count(*) FILTER (WHERE wait < lease + backoff / 2 - interval '20 s'),
				count(*) FILTER (WHERE wait > lease + backoff + interval '2 min')
			FROM (SELECT crashes[i + 1] - crashes[i] AS wait, interval '10 min' AS lease,
					  CASE WHEN i = 1 THEN interval '0' ELSE least(interval '1 hour', interval '30 s' * 2 ^ (i - 1)) END AS backoff
				  FROM public.rows, generate_series(1, cardinality(crashes) - 1) AS i) AS c});
		is($waits, '0|0', "$name: its crashes follow the backoff");
	}
}

### a sync that never ends, in slices

foreach my $workers (1, 2)
{
	my %is = live("'10 ordinary', '1 huge'", "$workers, 1, 24");
	cmp_ok($is{ordinary}[1], '<=', 140 + 10, "$workers workers: ten rows beside a sync in slices wait for one slice");
	cmp_ok($is{ordinary}[2], '>=', 24 * 3600 / ($interval + 140) - 2, "$workers workers: and none of them loses a sync");
	cmp_ok($is{huge}[2], '>=', 24 * 3600 / 140 * 0.9, "$workers workers: and its slices come whenever nobody else is due");
}

### requests

foreach my $case ([ 5, '1 s', 1, 1 ], [ 5, '1 s', 10, 1 ], [ 50, '1 s', 10, 2 ])
{
	my ($asked, $flood, $batch, $workers) = @$case;
	my $name = "$asked rows requested each second, batches of $batch, $workers workers";
	my %is = live("'10 ordinary', '$asked asked'", "$workers, $batch, 2, '$flood'");
	cmp_ok($is{asked}[3], '<=', 2 * 3600 / 10 + 1, "$name: none starts more often than every ten seconds");
	cmp_ok($is{ordinary}[2], '>=', 2 * 3600 / $interval - 2, "$name: no ordinary row loses more than two syncs");
	cmp_ok($is{ordinary}[1], '<=', 30, "$name: ordinary rows have one start in four");
}

# with a rate, a quarter of it is theirs
{
	my ($rows, $rate) = (40, 12);
	my %is = live("'$rows ordinary', '20 asked'", "2, 10, 6, '10 s'", qq({"rate_per_minute": $rate}));
	cmp_ok($is{ordinary}[1], '<=', 60 * $rows / ($rate / 4) + 60, 'a flood of requests under a rate: no ordinary row waits longer than a quarter of the rate makes it');
	cmp_ok($is{ordinary}[2], '>=', 6 * 3600 / ($interval + 60 * $rows / ($rate / 4)) - 1, 'a flood of requests under a rate: and each is synced in turn');
	cmp_ok($is{asked}[2], '>', 6 * 3600 / 20 / 60 * $rate / 2, 'a flood of requests under a rate: the rest is for the requests');
}

# sessions of one claim each, which cannot count: a quarter on average
$node->safe_psql('postgres', q{
	TRUNCATE syncstate.sync_state, syncstate.sync_policy;
	INSERT INTO syncstate.sync_state (user_id, source, due_at, requested_at)
	SELECT public.u(n), 'google_calendar', now() + (n % 2 - 0.5) * interval '2 hours', CASE WHEN n % 2 = 1 THEN now() - interval '1 min' END
	FROM generate_series(1, 600) AS n});
$node->safe_psql('postgres', q{SELECT FROM syncstate.claim_due_syncs('google_calendar', 1)}) foreach 1 .. 200;
cmp_ok($node->safe_psql('postgres', q{SELECT count(*) FROM syncstate.sync_state WHERE lease = 1 AND due_at < now() - interval '30 min'}),
	'>=', 20, 'of 200 sessions of one claim, about fifty start ordinary rows');

### all of it at once, for days

my $hours = $ENV{SYNCSTATE_STARVING_HOURS} || 24;

my %is = live("'40 ordinary', '2 poison', '1 huge', '5 asked', '5 limited'", "3, 10, $hours, '1 min'");
cmp_ok($is{ordinary}[1], '<=', 2 * $lease + 2 * $base + 140 + 60, 'everything at once: no row waits longer than the bound');
cmp_ok($is{ordinary}[2], '>=', $hours * 3600 / $interval * 0.9, 'everything at once: no row loses more than a tenth of its syncs');
cmp_ok($is{limited}[2], '>', $hours, 'everything at once: rows that meet limits are synced');
cmp_ok($is{poison}[4], '<', $hours * 1.5 + 12, 'everything at once: rows that kill their workers do so about hourly');
note(join '; ', map { "$_: @{ $is{$_} }" } sort keys %is);

$node->stop;
done_testing();
