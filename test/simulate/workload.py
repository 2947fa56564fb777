"""Who changes what, and when: the same streams of changes for every strategy.

Nobody's real accounts: a made-up population with the traits that make the
division of a quota hard.  All times are seconds since the start, which is a
midnight.

rates       lognormal (sigma 1.5 about a median of 5 changes a day), at the
            population's quantiles: 400 users span 0.05 to 470 changes a day,
            four orders of magnitude
day, night  8 hours of the night have 1/14 of the rate of the 16 of the day;
            users live up to 3 time zones to either side
sleepers    a fifth of the users: awake and asleep in turns, each 7 days on
            average, at a hundredth of their rate while asleep
bursts      15 % of the changes touch several items at once, often dozens.
            A burst is one change: it is made, found and waited for as one
messages    a provider with push sends one for each item that a change touches,
            numbered, all up to 5 seconds after the change.  A tenth of them is
            lost, each by itself, so that a change of one item goes unheard as
            often as that, and a burst hardly ever.  Of those that arrive one
            in twenty comes twice, up to a minute later, because the provider
            missed the answer
"""
import bisect
import math
import random
import statistics

HOUR = 3600.0
DAY = 24 * HOUR

MEDIAN = 5 / DAY
SIGMA = 1.5
NIGHT_HOURS = 8
NIGHT = 0.1
ZONES = 3 * HOUR
SLEEPERS = 0.2
TURN = 7 * DAY
ASLEEP = 0.01
BURSTS = 0.15
LARGEST_BURST = 500
LATENCY = 5.0
LOST = 0.1
TWICE = 0.05
TWICE_WITHIN = 60.0

DAYTIME = (24 - NIGHT_HOURS * NIGHT) / (24 - NIGHT_HOURS)   # so that a day's mean is 1


class User:
    """One account: its rate at any time, and what came of it."""

    def __init__(self, seed, rate, length, step=None):
        chance = random.Random(seed)
        self.seed = seed
        self.rate = rate                # changes per second, awake, a day's mean
        self.zone = chance.uniform(-ZONES, ZONES)
        self.step = step                # (time, factor): from when on its rate is another
        self.turns = [(0.0, 1.0)]       # from when on, and times what
        self.sleeper = step is None and chance.random() < SLEEPERS
        if self.sleeper:
            self.turns = []
            awake = chance.random() < 0.5
            at = 0.0
            while at < length:
                self.turns.append((at, 1.0 if awake else ASLEEP))
                at += chance.expovariate(1 / TURN)
                awake = not awake
        if step is not None:
            self.turns.append(step)
        self.starts = [start for start, _ in self.turns]
        self.changes, self.items = self.draw(chance, length)

    def turn_ends(self, at):
        """When the mean rate changes next."""
        turn = bisect.bisect_right(self.starts, at)
        return self.starts[turn] if turn < len(self.starts) else math.inf

    def mean_rate(self, at):
        """The rate of the day about "at": awake or asleep, whatever the hour."""
        return self.rate * self.turns[bisect.bisect_right(self.starts, at) - 1][1]

    def hour(self, at):
        """How much of the mean rate this hour has, and until when (to a microsecond, and never "at" itself)."""
        of_day = (at + self.zone) % DAY
        dawn = NIGHT_HOURS * HOUR
        share, left = (NIGHT, dawn - of_day) if of_day < dawn else (DAYTIME, DAY - of_day)
        return share, at + max(left, 1e-6)

    def average_rate(self, begin, end):
        """The mean rate over a time."""
        total, at = 0.0, begin
        while at < end:
            until = min(end, self.turn_ends(at))
            total += self.mean_rate(at) * (until - at)
            at = until
        return total / (end - begin)

    def draw(self, chance, length):
        """A Poisson process with that rate, by thinning, and the items that each change touches."""
        most = self.rate * DAYTIME * max(factor for _, factor in self.turns)
        changes, items = [], []
        at = chance.expovariate(most)
        while at < length:
            if chance.random() * most < self.mean_rate(at) * self.hour(at)[0]:
                changes.append(at)
                burst = chance.random() < BURSTS
                items.append(min(LARGEST_BURST, 2 + int(chance.lognormvariate(1.5, 1.2))) if burst else 1)
            at += chance.expovariate(most)
        return changes, items


def population(seed, users, length, steps=()):
    """The users, in random order.

    steps   (rate, number, time, factor): so many of the users next to a rate
            never sleep, and have a multiple of their rate from a time on
    """
    quantiles = [statistics.NormalDist().inv_cdf((n + 0.5) / users) for n in range(users)]
    random.Random(f"{seed} order").shuffle(quantiles)
    rates = [MEDIAN * math.exp(SIGMA * q) for q in quantiles]
    stepping = {}
    for rate, number, at, factor in steps:
        nearest = sorted(range(users), key=lambda n: abs(math.log(rates[n] / rate)))
        for n in nearest[:number]:
            stepping[n] = (at, factor)
    return [User(f"{seed} {n}", rates[n], length, stepping.get(n)) for n in range(users)]


def messages(users, each_item):
    """What arrives of a provider's messages: (when, user number, when the change was made, their numbers).

    each_item   or else one message for each change
    """
    out = []
    for n, user in enumerate(users):
        chance = random.Random(f"{user.seed} messages")
        number = 0
        for made, items in zip(user.changes, user.items):
            sent = range(number, number + (items if each_item else 1))
            number = sent.stop
            at = made + chance.uniform(0, LATENCY)
            arrived = [k for k in sent if chance.random() >= LOST]
            if arrived:
                out.append((at, n, made, arrived))
            out += [(at + chance.uniform(0, TWICE_WITHIN), n, made, [k]) for k in arrived if chance.random() < TWICE]
    return out
