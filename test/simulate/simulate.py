#!/usr/bin/python3
"""What a quota buys, with the same changes and different intervals.

    simulate.py [--short] [--seed N] [--archive]

Each strategy of strategies.py gets a database of its own, with the extension,
and the users of workload.py.  Then time passes, by syncstate.clock: it goes to
next_sync_due(), what is due is claimed, each sync finds the changes since the
last one, takes no time, and is reported.  What that cost and how long the
changes had waited is the result.

The server is that of the environment, and a throw-away one.  Ends with 1 if a
promise is not kept; checks() has them.  It also says whether goals are met that
depend on how many messages a provider loses.

    --short     fewer users and days, for the test suite
    --archive   write RESULTS.md and the plots to standard output, as a tar file
"""
import argparse
import bisect
import concurrent.futures
import functools
import io
import json
import math
import os
import statistics
import sys
import tarfile
import time

import psycopg
from psycopg.types.json import Jsonb

import plot
import strategies
import workload
from strategies import SOURCE
from workload import DAY, HOUR, population

START = "2026-01-05 00:00:00+00"
POLLS = 96              # a day, every 15 minutes: what push is compared with

SETUP = f"""
CREATE EXTENSION syncstate;
CREATE SCHEMA simulate;

-- vacuumed each day of the simulation instead, so that all runs are the same
ALTER TABLE syncstate.sync_state SET (autovacuum_enabled = off);

CREATE FUNCTION simulate.account(n integer) RETURNS uuid IMMUTABLE LANGUAGE sql
    RETURN ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid;
CREATE FUNCTION simulate.at(seconds double precision) RETURNS timestamptz IMMUTABLE LANGUAGE sql
    RETURN timestamptz '{START}' + make_interval(secs => seconds);

-- Ends the syncs that were claimed last, at the time when they began; moves the
-- clock to when the next one is due, or to "until"; claims what is due then.
CREATE FUNCTION simulate.step(ended jsonb, intervals jsonb, until double precision)
    RETURNS TABLE (at double precision, n integer, lease bigint)
    LANGUAGE plpgsql AS $$
DECLARE
    now timestamptz;
BEGIN
    IF intervals <> '[]' THEN
        PERFORM syncstate.update_sync_state(simulate.account(i.n), '{SOURCE}',
                                            jsonb_build_object('sync_interval', make_interval(secs => i.seconds)))
        FROM jsonb_to_recordset(intervals) AS i (n integer, seconds double precision);
    END IF;
    PERFORM syncstate.report_syncs(ended);
    now := least(greatest(syncstate.next_sync_due('{SOURCE}'), syncstate.sync_clock()), simulate.at(until));
    PERFORM set_config('syncstate.clock', now::text, false);
    IF now < simulate.at(until) THEN
        RETURN QUERY SELECT extract(epoch FROM now - '{START}')::double precision,
                            right(c.user_id::text, 12)::integer, c.lease
        FROM syncstate.claim_due_syncs('{SOURCE}', 100) AS c;
    END IF;
END $$;
"""


def vacuum(run, now):
    run("VACUUM syncstate.sync_state")


def request(n, run, now):
    run(f"SELECT syncstate.request_sync(simulate.account(%s), '{SOURCE}')", n)


def delays(found):
    """Of changes that were found, (how long they waited, of how many items they are).

    minute, items   what part of the changes, and of the items, was found within a minute
    """
    waits = sorted(wait for wait, _ in found)
    return {"mean": statistics.fmean(waits), "median": statistics.median(waits),
            "p95": waits[math.ceil(0.95 * len(waits)) - 1], "minute": bisect.bisect_right(waits, 60.0) / len(waits),
            "items": sum(items for wait, items in found if wait <= 60.0) / sum(items for _, items in found)}


class Simulation:
    """One strategy in a database of its own; its attributes say what happened.

    waits   of each change that was found: when it was, how many seconds it had waited, and which of whose it is
    syncs   of each user: the times of the syncs
    found   of each user: how many changes each of these syncs found
    """

    def __init__(self, server, name, users, strategy, begin, end, pushed=()):
        self.users = users
        self.pushed = pushed
        self.strategy = strategy
        self.begin, self.end = begin, end
        self.waits = []
        self.syncs = [[] for _ in users]
        self.found = [[] for _ in users]
        self.seen = [bisect.bisect_right(user.changes, begin) for user in users]
        server.execute(f"CREATE DATABASE {name}")
        try:
            with psycopg.connect(server.info.dsn, dbname=name, autocommit=True) as connection:
                self.cursor = connection.cursor()
                self.run("SET timezone = 'UTC'; SET synchronous_commit = off")
                for statement in SETUP.split("\n\n"):
                    self.run(statement)
                self.run("SELECT set_config('syncstate.clock', simulate.at(%s)::text, false)", begin)
                strategy.prepare(self.run)
                self.run(f"SELECT syncstate.connect_sync(simulate.account(n), '{SOURCE}')"
                         " FROM generate_series(0, %s - 1) AS n", len(users))
                self.pass_time(pushed)
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, sql, *values):
        self.cursor.execute(sql, values or None)
        return self.cursor.fetchall() if self.cursor.description else None

    def pass_time(self, pushed):
        # (time, action) of what happens by the clock; the next one is the last
        events = [(self.end, None), *self.strategy.events(self.begin, self.end)]
        for period, action in (*self.strategy.timers, (DAY, vacuum)):
            events += [(self.begin + period * k, action) for k in range(math.ceil((self.end - self.begin) / period))]
        for n in pushed:
            events += [(at, functools.partial(request, n)) for at in self.users[n].changes if at > self.begin]
        events.sort(key=lambda event: -event[0])

        claimed = []
        while events:
            ended, intervals = [], []
            for at, n, lease in claimed:
                items = self.sync(at, n)
                ended.append({"user_id": f"00000000-0000-4000-8000-{n:012}", "source": SOURCE, "lease": lease,
                              "outcome": "completed", "items_synced": items, "sync_token": str(at)})
                seconds = self.strategy.interval(n, at, items)
                if seconds is not None:
                    intervals.append({"n": n, "seconds": seconds})
            claimed = self.run("SELECT * FROM simulate.step(%s, %s, %s)",
                               Jsonb(ended), Jsonb(intervals), events[-1][0])
            if not claimed:
                at, action = events.pop()
                if action:
                    action(self.run, at)

    def sync(self, now, n):
        """Finds what changed since the last one; returns how many items that are."""
        user = self.users[n]
        before = self.seen[n]
        upto = bisect.bisect_right(user.changes, now, before)
        self.waits += [(now, now - user.changes[k], n, k) for k in range(before, upto)]
        self.seen[n] = upto
        self.syncs[n].append(now)
        self.found[n].append(upto - before)
        return sum(user.items[before:upto])

    def measure(self, begin):
        """What is compared, from a time on."""
        waits = [(wait, self.users[n].items[k]) for found, wait, n, k in self.waits if found >= begin]
        looks = [found for syncs, founds in zip(self.syncs, self.found)
                 for at, found in zip(syncs, founds) if at >= begin]
        gaps = [after - before for syncs in self.syncs
                for before, after in zip([self.begin, *syncs], [*syncs, self.end]) if after >= begin]
        return {**delays(waits), "changes": len(waits),
                "syncs": len(looks), "idle": looks.count(0) / len(looks), "longest": max(gaps)}

    def measure_push(self, begin):
        """What is said of push, from a time on.

        told    what part of the changes a message told of
        prompt  what part of those was found within a minute
        channels    calls to open or stop channels
        """
        since = [(wait <= 60.0, (n, self.users[n].changes[k])) for found, wait, n, k in self.waits if found >= begin]
        told = [prompt for prompt, change in since if change in self.strategy.told]
        return {"told": len(told) / len(since), "prompt": sum(told) / len(told),
                "channels": sum(at >= begin for at in self.strategy.calls)}

    def per_day(self):
        """How many syncs each day had."""
        days = [0] * round((self.end - self.begin) / DAY)
        for syncs in self.syncs:
            for at in syncs:
                days[int((at - self.begin) / DAY)] += 1
        return days

    def log_interval(self, chosen, at):
        """The mean logarithm of the intervals that some users have at a time."""
        total = 0.0
        for n in chosen:
            after = bisect.bisect_right(self.syncs[n], at)
            total += math.log(self.syncs[n][after] - self.syncs[n][after - 1])
        return total / len(chosen)


class Setting:
    """How many users, for how long, and what disturbs them."""

    def __init__(self, short):
        self.short = short
        self.users = 100 if short else 400
        self.begin = 4 * DAY if short else 7 * DAY      # of what is measured
        self.end = self.begin + (7 if short else 14) * DAY
        self.budget = 24 * self.users                   # syncs a day
        # so many accounts change ten times as often at once, or a tenth
        self.stepping = 5 if short else 10
        self.step_at = self.begin + (0 if short else 3 * DAY)
        self.slow, self.fast = 4 / DAY, 40 / DAY
        # of the mean delays of others; few users for a short time are a rougher measure
        self.of_fixed = 0.62
        self.of_oracle = 1.10 if short else 1.08
        self.strategies = [strategies.Fixed, strategies.Oracle, strategies.Budget, strategies.Push]
        if not short:
            self.strategies[1:1] = [strategies.Aimd]
            self.strategies[3:3] = [strategies.AverageOracle, strategies.HourlyOracle]
            self.strategies += [strategies.PushOnce, strategies.PushOneDay]

    def population(self, seed, disturbed=False):
        steps = ()
        if disturbed:
            steps = ((self.slow, self.stepping, self.step_at, 10.0), (self.fast, self.stepping, self.step_at, 0.1))
        return population(seed, self.users, self.end, steps)


def simulate(setting, seed, kind, disturbed):
    """One simulation: a strategy, and whether with disturbances."""
    users = setting.population(seed, disturbed)
    strategy = kind(users, setting.budget, setting.begin, setting.end)
    pushed = [n for n, user in enumerate(users) if n % 10 == 0 and user.step is None] if disturbed else ()
    started = time.monotonic()
    with psycopg.connect(dbname="postgres", autocommit=True) as server:
        name = f"simulate_{kind.__name__.lower()}{'_disturbed' if disturbed else ''}"
        done = Simulation(server, name, users, strategy, max(0.0, setting.begin - kind.lead), setting.end, pushed)
    print(f"{kind.label}{', disturbed' if disturbed else ''}: {sum(map(len, done.syncs))} syncs"
          f" in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    del done.cursor
    return done


class Adaptation:
    """How the intervals of some accounts follow a tenfold change of their rates.

    Their geometric mean over the last day, from hour to hour, is compared with
    that of the three days before the change.  By the square-root rule it goes
    to sqrt(10) times as much or as little; half of the way, on a logarithmic
    scale, is the fourth root.
    """

    def __init__(self, done, setting, factor):
        chosen = [n for n, user in enumerate(done.users) if user.step is not None and user.step[1] == factor]
        before = statistics.fmean(done.log_interval(chosen, setting.step_at - k * HOUR) for k in range(1, 73))
        hourly = [done.log_interval(chosen, setting.step_at + k * HOUR) for k in range(-24, 24 * 10)
                  if setting.step_at + k * HOUR < setting.end - DAY]
        daily = [statistics.fmean(hourly[k - 24:k]) for k in range(24, len(hourly) + 1)]
        # (days since the change, part of the way)
        way = -0.5 * math.log(factor)
        self.curve = [(k / 24, (value - before) / way) for k, value in enumerate(daily)]
        self.days = next((day for day, part in self.curve if part >= 0.5), math.inf)


def weeks(done):
    """Syncs per day, by week, the last one complete."""
    days = done.per_day()
    return [statistics.fmean(days[k:k + 7]) for k in range(len(days) % 7, len(days), 7)]


def checks(setting, results, disturbed, adaptations):
    """What was promised: (what, the value, its limit, whether it is kept, whether that is a goal only)."""
    ours, fixed, oracle = (results[kind].measure(setting.begin)
                           for kind in (strategies.Budget, strategies.Fixed, strategies.Oracle))
    share = setting.budget * (setting.end - setting.begin) / DAY
    out = []

    def at_most(what, value, limit, form="{:.3f}"):
        out.append((what, form.format(value), "at most " + form.format(limit), value <= limit, False))

    def at_least(what, value, limit, goal=False):
        out.append((what, f"{value:.1%}", f"at least {limit:.1%}", value >= limit, goal))

    for kind, done in results.items():
        if kind.budgeted:
            at_most(f"syncs of {kind.label}, off the budget", abs(done.measure(setting.begin)["syncs"] / share - 1),
                    0.03, "{:.1%}")
    at_most("mean delay, times that of the fixed interval", ours["mean"] / fixed["mean"], setting.of_fixed)
    at_most("mean delay, times that of the oracle", ours["mean"] / oracle["mean"], setting.of_oracle)
    at_most("longest that an account was left alone, hours", ours["longest"] / HOUR, strategies.LONGEST / HOUR,
            "{:.2f}")
    at_most("worst week off the budget",
            max(abs(week / setting.budget - 1) for week in weeks(results[strategies.Budget])), 0.03, "{:.1%}")
    at_most("worst week off the budget, with requests and steps",
            max(abs(week / setting.budget - 1) for week in weeks(disturbed)), 0.03, "{:.1%}")
    for factor, adaptation in adaptations.items():
        at_most(f"half of the adaptation to {factor:g} times the rate, days", adaptation.days, 3, "{:.2f}")

    pushed = results[strategies.Push].measure(setting.begin)
    told = results[strategies.Push].measure_push(setting.begin)
    polls = POLLS * setting.users * (setting.end - setting.begin) / DAY
    at_most("calls of push, of those of polls every 15 minutes", (pushed["syncs"] + told["channels"]) / polls, 1 / 3,
            "{:.1%}")
    at_least("push: changes found within a minute, of those that a message told of", told["prompt"], 0.999)
    at_least("push: items found within a minute", pushed["items"], 0.95)
    for kind in (strategies.Push, strategies.PushOnce):
        if kind in results:
            at_least(f"{kind.label}: changes found within a minute", results[kind].measure(setting.begin)["minute"], 0.95,
                     goal=True)
    return out


def table(head, *rows):
    """Markdown whose columns line up on a terminal, too."""
    rows = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def comparison(setting, results):
    rows = []
    fixed = results[strategies.Fixed].measure(setting.begin)
    oracle = results[strategies.Oracle].measure(setting.begin)
    for kind, done in results.items():
        m = done.measure(setting.begin)
        rows.append((kind.label, f"{m['mean'] / 60:.1f}", f"{m['p95'] / 60:.1f}", f"{m['mean'] / fixed['mean']:.3f}",
                     f"{m['mean'] / oracle['mean']:.3f}", f"{m['syncs']:,}", f"{m['idle']:.1%}",
                     f"{m['longest'] / HOUR:.1f}"))
    return table(("strategy", "mean delay, min", "p95, min", "of fixed", "of oracle", "syncs", "found nothing",
                  "longest alone, h"), *rows)


def polled(setting, users):
    """How long changes wait for polls at fixed times, each user's at its own part of the interval, and their items."""
    return [((DAY / POLLS * n / len(users) - at) % (DAY / POLLS), items) for n, user in enumerate(users)
            for at, items in zip(user.changes, user.items) if setting.begin <= at < setting.end]


def push_comparison(setting, results):
    user_days = setting.users * (setting.end - setting.begin) / DAY
    rows = []

    def row(label, m, channels=0):
        calls = m["syncs"] + channels
        rows.append((label, f"{m['mean'] / 60:.1f}", f"{m['median'] / 60:.2f}", f"{m['p95'] / 60:.1f}",
                     f"{m['minute']:.1%}", f"{m['items']:.1%}", f"{round(m['syncs']):,}", f"{channels:,}", f"{calls / user_days:.1f}",
                     f"{calls / user_days / POLLS:.1%}"))

    row("polls every 15 minutes",
        {**delays(polled(setting, results[strategies.Push].users)), "syncs": POLLS * user_days})
    row(strategies.Budget.label, results[strategies.Budget].measure(setting.begin))
    for kind, done in results.items():
        if issubclass(kind, strategies.Push):
            row(kind.label, done.measure(setting.begin), done.measure_push(setting.begin)["channels"])
    return table(("strategy", "mean delay, min", "median, min", "p95, min", "within a minute", "items within a minute", "syncs",
                  "channel calls", "calls a day and user", "of 15-minute polls"), *rows)


def report(setting, seed, version, results, disturbed, adaptations, judged):
    """RESULTS.md."""
    users = results[strategies.Fixed].users
    rates = [user.rate * DAY for user in users]
    days = (setting.end - setting.begin) / DAY
    changes = sum(setting.begin <= at < setting.end for user in users for at in user.changes)
    pushes = sum(len(user.changes) for n, user in enumerate(disturbed.users) if n in disturbed.pushed)
    m = disturbed.measure(setting.begin)
    told, told_once = (results[kind].measure_push(setting.begin) for kind in (strategies.Push, strategies.PushOnce))
    return f"""# What a budget buys: results of `make simulate`

Written by `test/simulate/simulate.py`; seed {seed}, PostgreSQL {version}. The clock is set and the seed is fixed: nothing depends on the machine's speed.

{setting.users} users for {days:g} days, after {setting.begin / DAY:g} days in which `daily_budget` begins without knowing anything; budget {setting.budget:,} syncs a day, one per user and hour; `rebalance_syncs()` each hour.
In these {days:g} days there are {changes:,} changes, {changes / setting.budget / days:.2f} per sync of the budget. While awake, users make {min(rates):.2f} to {max(rates):.0f} changes a day, {statistics.median(rates):.1f} in the median; {sum(user.sleeper for user in users)} of them sleep in turns. `workload.py` says how they are drawn.
A change is found by the next sync of its account; a burst of items is one change. Delays are of all changes that were found in these {days:g} days.

{comparison(setting, results)}

- AIMD halves the interval on a change and adds {results[strategies.Aimd].strategy.step / 60:.1f} minutes otherwise, the step with which it spends the budget; that takes knowing the changes beforehand, by itself it knows no budget.
- The oracle is told the mean rate of each account's day at any time, so at once who falls asleep and wakes up, and divides the budget by the square roots of the rates: the rule that makes the mean delay least for a number of syncs. "Averages only" is told nothing of sleep. "Hour by hour" is told day and night as well, which an estimate over days does not know by design.
- All keep intervals within a minute and a day. Syncs take no time.

## Promises

{table(("what", "measured", "limit", ""), *[(what, value, limit, "kept" if kept else "**missed**") for what, value, limit, kept, _ in judged])}

The last two are goals, and no promises: what a provider loses bounds them, see below.

Budget by week, syncs a day: {", ".join(f"{week:,.0f}" for week in weeks(results[strategies.Budget]))}.

## Push

The same changes, and a provider that sends one message for each item that a change touches: {workload.LOST:.0%} of them are lost, {workload.TWICE:.0%} of the others come twice. Channels live for {strategies.Push.LIFE / DAY:g} days; a worker looks after them every {strategies.Push.TEND / 60:g} minutes. The policy is `{json.dumps(strategies.Push.POLICY)}`, and else what is built in.

{push_comparison(setting, results)}

- Polls every 15 minutes are computed, not simulated: {POLLS} calls a day for each user, at fixed times.
- Calls are syncs, and calls to open and to stop channels.
- With "silence of a day" the policy is `{json.dumps(strategies.PushOneDay.POLICY)}`: accounts that were not heard of for a day, instead of two, are polled every 15 minutes.
- A message told of {told["told"]:.1%} of the changes, of {told_once["told"]:.1%} with one message a change, and {told["prompt"]:.1%} of those that were told were found within a minute. Lost messages are what bounds the rest: a change of which every message is lost waits for the next message or poll of its account. Most changes touch one item, so about a tenth of them is lost with its only message; of a burst some message nearly always arrives, so that more of the items than of the changes are found within a minute.

## Disturbances

Another run with `daily_budget`, in which each tenth account is pushed ({len(disturbed.pushed)} accounts: `request_sync()` at each of their {pushes:,} changes), and after {setting.step_at / DAY:g} days {setting.stepping} accounts about {setting.slow * DAY:g} changes a day make ten times as many, and {setting.stepping} about {setting.fast * DAY:g} a tenth.
Mean delay {m['mean'] / 60:.1f} minutes, p95 {m['p95'] / 60:.1f} minutes, {m['syncs']:,} syncs, {m['idle']:.1%} of them found nothing. Budget by week, syncs a day: {", ".join(f"{week:,.0f}" for week in weeks(disturbed))}.
Half of the adaptation, on a logarithmic scale of the interval, mean of the accounts, itself averaged over the last 24 hours: {" and ".join(f"after {adaptation.days:.2f} days ({factor:g} times the rate)" for factor, adaptation in adaptations.items())}.
"""


def plots(setting, results, disturbed, adaptations):
    """The drawings, by file name."""
    seconds = [(1, "1 s"), (10, "10 s")]
    minutes = [(60, "1 min"), (300, "5 min"), (900, "15 min"), (3600, "1 h"), (4 * 3600, "4 h"), (24 * 3600, "1 d")]
    shown = [results[kind] for kind in (strategies.Fixed, strategies.Aimd, strategies.Oracle, strategies.Budget,
                                     strategies.Push)]
    quantiles = []
    for done in shown:
        waits = sorted(wait for found, wait, *_ in done.waits if found >= setting.begin)
        quantiles.append((done.strategy.label, "line",
                          [(waits[round(k / 200 * (len(waits) - 1))], k / 200) for k in range(201)]))
    out = {"delays.svg": plot.plot(
        "Changes found within a time, of all", plot.Axis("delay", seconds + minutes, log=True),
        plot.Axis("part of the changes", [(k / 4, f"{25 * k} %") for k in range(5)]), quantiles)}

    ours, oracle = results[strategies.Budget], results[strategies.AverageOracle]
    rates = [(k, f"{k:g}") for k in (0.01, 0.1, 1, 10, 100, 1000)]
    dots = []
    for user, syncs in zip(ours.users, ours.syncs):
        count = sum(at >= setting.begin for at in syncs)
        dots.append((user.average_rate(setting.begin, setting.end) * DAY, (setting.end - setting.begin) / max(count, 1)))
    line = [(rate, strategies.clamp(oracle.strategy.c / math.sqrt(rate / DAY)) * strategies.SHORTENED)
            for rate in (10 ** (k / 20) for k in range(-40, 61))]
    out["intervals.svg"] = plot.plot(
        "Mean interval of each account, and how often it changes",
        plot.Axis("changes a day", rates, log=True), plot.Axis("interval", minutes, log=True),
        [(ours.strategy.label, "dots", dots), (oracle.strategy.label, "line", line)])

    days = range(round((setting.end - ours.begin) / DAY) + 1)
    top = setting.budget * 1.2
    out["budget.svg"] = plot.plot(
        "Syncs a day", plot.Axis("day", [(day, str(day)) for day in days if day % 7 == 0]),
        plot.Axis("of the budget", [(setting.budget * k / 4, f"{25 * k} %") for k in range(5)] + [(top, "")]),
        [(label, kind, list(zip(days, counts + counts[-1:]))) for label, kind, counts in (
            ("the budget", "dashes", [setting.budget] * (len(days) - 1)),
            ("spent", "steps", ours.per_day()), ("with requests and steps", "steps", disturbed.per_day()))])

    last = min(adaptation.curve[-1][0] for adaptation in adaptations.values())
    out["adaptation.svg"] = plot.plot(
        "After a tenfold change of the rate", plot.Axis("days", [(day, str(day)) for day in range(math.ceil(last) + 1)]),
        plot.Axis("way of the interval, log.", [(k / 4, f"{25 * k} %") for k in range(6)]),
        [(f"{factor:g} times the rate", "line", adaptation.curve) for factor, adaptation in adaptations.items()])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--archive", action="store_true")
    options = parser.parse_args()
    setting = Setting(options.short)

    with concurrent.futures.ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = {kind: pool.submit(simulate, setting, options.seed, kind, False) for kind in setting.strategies}
        disturbed = pool.submit(simulate, setting, options.seed, strategies.Budget, True)
        results = {kind: job.result() for kind, job in jobs.items()}
        disturbed = disturbed.result()

    adaptations = {factor: Adaptation(disturbed, setting, factor) for factor in (10, 0.1)}
    judged = checks(setting, results, disturbed, adaptations)
    print(comparison(setting, results), push_comparison(setting, results), sep="\n\n", file=sys.stderr)
    for what, value, limit, kept, goal in judged:
        print(f"{'goal ' if goal else ''}{'kept' if kept else 'MISSED'}: {what}: {value}, {limit}", file=sys.stderr)
    if options.archive:
        with psycopg.connect(dbname="postgres") as server:
            version = server.execute("SELECT split_part(current_setting('server_version'), ' ', 1)").fetchone()[0]
        files = {"RESULTS.md": report(setting, options.seed, version, results, disturbed, adaptations, judged),
                 **plots(setting, results, disturbed, adaptations)}
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                entry.mtime = time.time()
                archive.addfile(entry, io.BytesIO(text.encode()))
    sys.exit(not all(kept or goal for *_, kept, goal in judged))


if __name__ == "__main__":
    main()
