"""How long until an account is looked at again: what is compared.

A strategy prepares the source and its rows, and may say the interval of a row
before each completion.  The rest, when a row is due and who gets it, is the
extension's with all of them.

interval(user number, now, how many items were found)
        the row's sync_interval in seconds, or None to leave what it is
timers  (every so many seconds, action), run by the clock of the simulation
events(begin, end)
        (when, action) of what happens once between two times
        An action is called with the function that runs SQL, and the time.
lead    how many seconds before the measured time it begins
budgeted
        whether it spends the budget, and so can be compared with others that do
"""
import functools
import math

from psycopg.types.json import Jsonb

import workload
from workload import DAY

SOURCE = "google_calendar"

# The built-in limits of intervals under a budget; the others keep them too.
SHORTEST = 60.0
LONGEST = DAY

# The extension shortens an interval by between half and the whole of jitter,
# 0.1, by a part that is the row's own: what is left on average, and how many
# more syncs there are over all rows, 1 / (1 - x) for x even in (0.05, 0.1).
SHORTENED = 0.925
MORE = math.log(0.95 / 0.9) / 0.05


def clamp(interval):
    return min(LONGEST, max(SHORTEST, interval))


def bisection(too_much, low, high):
    """The least value, to a millionth, that is not too much."""
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_much(middle) else (low, middle)
    return high


class Strategy:
    """What most of them do: nothing."""

    timers = ()
    lead = 2 * DAY
    budgeted = True

    def prepare(self, run):
        pass

    def events(self, begin, end):
        return ()

    def interval(self, n, now, found):
        return None


class Fixed(Strategy):
    """One interval for all: sync_policy.sync_interval."""

    label = "fixed interval"

    def __init__(self, users, budget, begin, end):
        self.seconds = len(users) * DAY / budget * MORE

    def prepare(self, run):
        run("SELECT syncstate.set_sync_policy(%s, jsonb_build_object('sync_interval', make_interval(secs => %s)))",
            SOURCE, self.seconds)


class Aimd(Fixed):
    """Halve the interval on a change, add a step otherwise.

    It knows no budget.  To be comparable, the step is the one with which it
    spends the budget, which takes knowing all changes beforehand.
    """

    label = "AIMD"

    def __init__(self, users, budget, begin, end):
        super().__init__(users, budget, begin, end)
        self.current = [self.seconds] * len(users)
        share = budget * (end - begin) / DAY
        self.step = bisection(lambda step: self.spent(users, step, begin, end) > share, 1.0, DAY)

    @staticmethod
    def after(interval, found, step):
        return clamp(interval / 2 if found else interval + step)

    def spent(self, users, step, begin, end):
        """How many syncs there would be, between two times."""
        syncs = 0
        for user in users:
            at, interval, seen = begin - self.lead, self.seconds, 0
            while True:
                at += interval * SHORTENED
                if at >= end:
                    break
                syncs += at >= begin
                before = seen
                while seen < len(user.changes) and user.changes[seen] <= at:
                    seen += 1
                interval = self.after(interval, seen > before, step)
        return syncs

    def interval(self, n, now, found):
        self.current[n] = self.after(self.current[n], found, self.step)
        return self.current[n]


class Oracle(Strategy):
    """Is told the rates, and divides the budget by their square roots.

    Intervals of c / sqrt(rate) have the least mean delay that a number of
    syncs can buy (minimise the sum of rate / 2f under a sum of f).
    One c for all users and the whole time, such that the budget is
    spent, clamped like ours.  This one knows of each account the mean rate of
    the day: when it falls asleep or wakes up, its interval follows at once, in
    the middle of the wait.  No oracle knows single changes beforehand.
    """

    label = "oracle"

    def __init__(self, users, budget, begin, end):
        self.users = users
        self.span = begin, end
        self.told = {}
        share = budget * (end - begin) / DAY
        self.c = 1.0
        self.c = bisection(lambda c: self.spent(c) > share, 1.0, 1e6)

    def rate(self, user, at):
        """The rate that it is told, and until when that is so."""
        return user.mean_rate(at), user.turn_ends(at)

    def spent(self, c):
        begin, end = self.span
        syncs = 0.0
        for user in self.users:
            at = begin
            while at < end:
                rate, until = self.rate(user, at)
                until = min(until, end)
                syncs += (until - at) / clamp(c / math.sqrt(rate)) * MORE
                at = until
        return syncs

    def interval(self, n, now, found):
        """Until a whole interval has passed, each part of it at the rate of its time."""
        part, at = 1.0, now
        while True:
            rate, until = self.rate(self.users[n], at)
            interval = clamp(self.c / math.sqrt(rate)) * SHORTENED
            if at + part * interval <= until:
                break
            part -= (until - at) / interval
            at = until
        wait = (at - now + part * interval) / SHORTENED
        if self.told.get(n) == wait:
            return None
        self.told[n] = wait
        return wait


class AverageOracle(Oracle):
    """Is told only the average over the measured time, not who sleeps when."""

    label = "oracle, averages only"

    def rate(self, user, at):
        return self.averages[user], math.inf

    def __init__(self, users, budget, begin, end):
        self.averages = {user: user.average_rate(begin, end) for user in users}
        super().__init__(users, budget, begin, end)


class HourlyOracle(Oracle):
    """Is told the hours of the day as well."""

    label = "oracle, hour by hour"

    def rate(self, user, at):
        share, until = user.hour(at)
        return user.mean_rate(at) * share, min(until, user.turn_ends(at))


class Budget(Strategy):
    """sync_policy.daily_budget: what the extension learns and divides by itself."""

    label = "daily_budget"
    lead = 7 * DAY          # it begins without knowing anything
    timers = ((3600.0, lambda run, now: run("SELECT syncstate.rebalance_syncs(%s)", SOURCE)),)

    def __init__(self, users, budget, begin, end):
        self.budget = budget

    def prepare(self, run):
        run("SELECT syncstate.set_sync_policy(%s, jsonb_build_object('daily_budget', %s::integer))", SOURCE, self.budget)


class Push(Strategy):
    """Push channels, and polls where they are silent.

    A worker does what claim_push_channels() hands out.  The provider sends its
    messages to each channel that was open when the change was made.
    """

    label = "push"
    budgeted = False
    each_item = True
    LIFE = 7 * DAY
    TEND = 300.0
    POLICY = {"push_renew_before": "1 day"}

    def __init__(self, users, budget, begin, end):
        self.users = users
        self.open = [{} for _ in users]     # at the provider, of each user: channel -> (from when on, until when)
        self.calls = []         # when the provider was called to open or stop one
        self.told = set()       # (user number, when it was made) of the changes that were heard of
        self.timers = ((self.TEND, self.tend),)

    def prepare(self, run):
        run("SELECT syncstate.set_sync_policy(%s, %s)", SOURCE, Jsonb(self.POLICY))

    def events(self, begin, end):
        return [(at, functools.partial(self.deliver, n, made, numbers))
                for at, n, made, numbers in workload.messages(self.users, self.each_item) if begin < made and at < end]

    def tend(self, run, now):
        for n, action, lease, channel in run("SELECT right(user_id::text, 12)::integer, action, lease, channel_id"
                                             " FROM syncstate.claim_push_channels(%s, 10000)", SOURCE):
            self.calls.append(now)
            if action == "stop":
                del self.open[n][channel]
                run("SELECT syncstate.mark_channel_stopped(simulate.account(%s), %s, %s)", n, SOURCE, lease)
            else:
                channel = f"channel {len(self.calls)}"
                self.open[n][channel] = now, now + self.LIFE
                run("SELECT syncstate.mark_channel_opened(simulate.account(%s), %s, %s, %s, simulate.at(%s), %s)",
                    n, SOURCE, lease, channel, now + self.LIFE, f"secret of {channel}")

    def deliver(self, n, made, numbers, run, now):
        for channel, (begin, end) in self.open[n].items():
            if begin <= made < end:
                known = run("SELECT syncstate.receive_push(%s, %s, number) FROM unnest(%s::bigint[]) AS number",
                            channel, f"secret of {channel}", numbers)
                if (True,) in known:
                    self.told.add((n, made))


class PushOnce(Push):
    """The same, with one message for each change, however many items it touches."""

    label = "push, one message a change"
    each_item = False


class PushOneDay(Push):
    """Channels that are silent for a day, not two, are polled as if there were none."""

    label = "push, silence of a day"
    POLICY = {"push_renew_before": "1 day", "push_silence": "1 day"}
