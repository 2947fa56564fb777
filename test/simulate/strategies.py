"""How long until an account is looked at again: what is compared.

A strategy prepares the source and its rows, and may say the interval of a row
before each completion.  The rest, when a row is due and who gets it, is the
extension's with all of them.

interval(user number, now, how many items were found)
        the row's sync_interval in seconds, or None to leave what it is
timers  (every so many seconds, SQL), run by the clock of the simulation
lead    how many seconds before the measured time it begins
"""
import math

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


class Fixed:
    """One interval for all: sync_policy.sync_interval."""

    label = "fixed interval"
    timers = ()
    lead = 2 * DAY

    def __init__(self, users, budget, begin, end):
        self.seconds = len(users) * DAY / budget * MORE

    def prepare(self, run):
        run("SELECT syncstate.set_sync_policy(%s, jsonb_build_object('sync_interval', make_interval(secs => %s)))",
            SOURCE, self.seconds)

    def interval(self, n, now, found):
        return None


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


class Oracle:
    """Is told the rates, and divides the budget by their square roots.

    Intervals of c / sqrt(rate) have the least mean delay that a number of
    syncs can buy (minimise the sum of rate / 2f under a sum of f).
    One c for all users and the whole time, such that the budget is
    spent, clamped like ours.  This one knows of each account the mean rate of
    the day: when it falls asleep or wakes up, its interval follows at once, in
    the middle of the wait.  No oracle knows single changes beforehand.
    """

    label = "oracle"
    timers = ()
    lead = 2 * DAY

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

    def prepare(self, run):
        pass

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


class Budget:
    """sync_policy.daily_budget: what the extension learns and divides by itself."""

    label = "daily_budget"
    lead = 7 * DAY          # it begins without knowing anything
    timers = ((3600.0, "SELECT syncstate.rebalance_syncs('google_calendar')"),)

    def __init__(self, users, budget, begin, end):
        self.budget = budget

    def prepare(self, run):
        run("SELECT syncstate.set_sync_policy(%s, jsonb_build_object('daily_budget', %s::integer))", SOURCE, self.budget)

    def interval(self, n, now, found):
        return None
