#!/usr/bin/python3
"""An executable model of the contract, and random histories that compare it
with the extension.

    syncstate_model.py CONNINFO [--calls N] [--seed S] [--shrink SECONDS]
        [--history FILE] [--replay FILE]

The class Model says what each call returns, what it makes of the row, and
when it fails, in words of its own: it shares no code and no formula with the
C files.  Runner makes up a history of calls by workers, users, administrators
and clients that write the table directly, makes each of them in the database
and in the model, and compares what came back and what the table holds, column
by column.

What the contract leaves open is not predicted but checked against its bounds,
and then taken over from the database: random backoff, the spread of a rate
limit, and a row's own part of jitter.  The latter must be the same each time:
the model narrows it down from what it sees (class Part).

Times are microseconds since 1970, durations are microseconds.

The database must have the extension and is emptied; the connection must be a
superuser's, who alone may set syncstate.clock.

See README.md beside this file.
"""

import argparse
import ast
import collections
import datetime
import hashlib
import itertools
import json
import math
import random
import re
import sys
import time

from psycopg import pq

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

INFINITY = float('inf')
FIRST_LEASE = 10 ** 15     # the numbers of new rows are microseconds since 1970

# Rounding: durations are computed in floating point.
SLOP = 3


class Mismatch(Exception):
    """The extension did something else than the model."""

    def __init__(self, what, expected, got):
        super().__init__(what)
        self.what, self.expected, self.got = what, expected, got


class Refused(Exception):
    """The call must fail with this SQLSTATE."""

    def __init__(self, sqlstate):
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


def refuse_unless(ok, sqlstate='22023'):
    if not ok:
        raise Refused(sqlstate)


# ------------------------------------------------------------------- values

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
ONE_US = datetime.timedelta(microseconds=1)
_times = {}


def parse_time(text):
    """What PostgreSQL's JSON says of a timestamptz, in microseconds."""
    if text is None:
        return None
    t = _times.get(text)
    if t is None:
        if text in ('infinity', '-infinity'):
            return float(text.replace('infinity', 'inf'))
        if len(_times) > 100_000:
            _times.clear()
        # fromisoformat() takes 3 or 6 digits of a second only
        head, zone = text[:-6], text[-6:]
        if '.' in head:
            whole, part = head.split('.')
            head = whole + '.' + part.ljust(6, '0')
        t = (datetime.datetime.fromisoformat(head + zone) - EPOCH) // ONE_US
        _times[text] = t
    return t


def time_text(t):
    if t is None:
        return None
    if t == INFINITY:
        return 'infinity'
    return (EPOCH + datetime.timedelta(microseconds=t)).strftime(
        '%Y-%m-%d %H:%M:%S.%f+00')


def parse_interval(text):
    """An interval in IntervalStyle postgres, without months."""
    if text is None:
        return None
    m = re.fullmatch(r'(?:(-?\d+) days?)? ?(?:(-?)(\d+):(\d+):(\d+)(?:\.(\d+))?)?',
                     text)
    if m is None:
        raise ValueError(text)
    us = int(m[1] or 0) * DAY
    if m[3] is not None:
        part = ((int(m[3]) * 60 + int(m[4])) * 60 + int(m[5])) * SECOND
        part += int((m[6] or '0').ljust(6, '0'))
        us += -part if m[2] else part
    return us


def interval_text(us):
    return None if us is None else '%d microseconds' % us


def literal(value, cast=''):
    if value is None:
        return 'NULL' + cast
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, int):
        return '(%d)%s' % (value, cast) if value < 0 else '%d%s' % (value, cast)
    return "'" + value.replace("'", "''") + "'" + cast


# -------------------------------------------------------- what is left open

class Within:
    """A number that the contract leaves open between two bounds, mostly a time."""

    def __init__(self, lo, hi, learn=None):
        self.lo, self.hi, self.learn = lo, hi, learn

    def __add__(self, n):
        return Within(self.lo + n, self.hi + n)

    def __repr__(self):
        return '%s .. %s' % tuple(
            time_text(int(t)) if abs(t) < INFINITY else 'any'
            for t in (self.lo, self.hi))


class Something:
    """A text that the contract asks for but does not word."""

    def __repr__(self):
        return 'a text'


class Part:
    """A row's own part of something, from 0 to 1, as far as it has shown."""

    __slots__ = ('lo', 'hi')

    def __init__(self):
        self.lo, self.hi = 0.0, 1.0

    def narrow(self, lo, hi):
        lo, hi = max(self.lo, lo), min(self.hi, hi)
        if lo > hi:
            raise Mismatch('a row\'s own part is not what it was',
                           (self.lo, self.hi), (lo, hi))
        self.lo, self.hi = lo, hi


# -------------------------------------------------------------------- model

COLUMNS = ('user_id account source resource status sync_token history_id '
           'updated_min token_issued_at last_full_sync_at due_at requested_at '
           'parked_reason sync_interval lease lease_expires_at last_sync_at '
           'last_successful_sync_at items_synced page_token progress_done '
           'progress_total failures token_losses error_message created_at '
           'updated_at failing_since changes_seen seconds_watched full_sync_id '
           'syncs_started lease_required limited_until run_requested_at '
           'troubled_at push_until').split()
TIMES = ('updated_min token_issued_at last_full_sync_at due_at requested_at '
         'lease_expires_at last_sync_at last_successful_sync_at created_at '
         'updated_at failing_since limited_until run_requested_at troubled_at '
         'push_until expires_at renew_at opened_at last_push_at').split()
MINE = ('user_id account source resource status due_at requested_at parked_reason '
        'sync_interval last_full_sync_at last_sync_at '
        'last_successful_sync_at items_synced progress_done progress_total '
        'failures failing_since token_losses error_message created_at '
        'updated_at limited_until').split()
SETTINGS = ('sync_interval lease_time retry_base retry_cap rate_limit_wait '
            'max_failures park_after token_ttl token_ttl_from jitter '
            'daily_budget min_interval max_interval request_gap auth_failures '
            'resync_spread max_vanished provider max_in_flight keep_runs '
            'keep_runs_for push_renew_before push_interval push_silence '
            'resync_from paused_until').split()
BUILTIN = dict(sync_interval=15 * MINUTE, lease_time=10 * MINUTE,
               retry_base=30 * SECOND, retry_cap=HOUR,
               rate_limit_wait=60 * SECOND, max_failures=30,
               park_after=7 * DAY, token_ttl=None, token_ttl_from=None,
               jitter=0.1, paused_until=None, daily_budget=None,
               min_interval=MINUTE, max_interval=DAY, rate_per_minute=None,
               request_gap=10 * SECOND, auth_failures=1,
               resync_from=None, resync_spread=DAY, max_vanished=0.1,
               max_in_flight=None, keep_runs='none', keep_runs_for=7 * DAY,
               push_renew_before=None, push_interval=6 * HOUR, push_silence=2 * DAY)
GOOGLE = {'google_calendar', 'google_tasks', 'google_gmail', 'google_contacts'}
REASONS = 'paused', 'auth', 'failures', 'token_loop', 'gone'
# Reasons that nothing but their own name takes back.
STAY_PARKED = 'paused', 'gone'
BUILTIN_TTL = {'google_gmail': (7 * DAY, 'token'),
               'google_contacts': (7 * DAY, 'full')}
# From this many losses of the cursor in a row on the row waits, is parked.
LOSSES_WAIT, LOSSES_PARK = 3, 10
# A limit with no cursor's life in it.
ERROR_MAX = 8192
# What is told: the columns of sync_event and of sync_run.
EVENT = 'at event user_id account source resource lease reason detail'.split()
RUN = ('user_id account source resource lease started_at ended_at outcome '
       'was_full was_requested items error_message').split()
KEEP_EVENTS_FOR = 30 * DAY
# The columns of sync_channel.
CHANNEL = ('id user_id account source resource state channel_id token_hash '
           'provider_ref expires_at renew_at lease lease_expires_at failures '
           'error_message opened_at last_push_at message_number').split()
ACTIONS = {'opening': 'open', 'unsupported': 'open', 'active': 'renew', 'retiring': 'stop'}
ASK_AGAIN_AFTER = 30 * DAY
HEARD_EVERY = 10 * SECOND
# So many rows that are too old does a call delete at once, if there are.
TRIMMED = 100


class Model:
    """The state of all rows and policies, and the effect of each call.

    A call reads self.now and changes rows by replacing them, so that a
    savepoint is a copy of two dictionaries.
    """

    def __init__(self):
        self.now = 0
        self.rows = {}
        self.greatest = {}      # the last lease of each key, deleted or not
        self.overrides = {}
        # What was learned about budgets: multiplier and mean rate.
        self.plans = {}
        self.sources = ['google_calendar', 'google_tasks', 'google_gmail',
                        'google_contacts']
        # What is told and was not taken yet, by id; and ended runs, by key and lease.
        self.events = {}
        self.runs = {}
        # Push channels by id; one that the call at hand makes, by a name of our own.
        self.channels = {}
        self.numbers = itertools.count()
        # What the call at hand tells, the runs that it ended, and whether this
        # transaction has told of anything.
        self.tells = False
        self.begin()
        # Sources whose work became available in this transaction by a request,
        # and those that may be announced, because a row was resumed.
        self.announced = self.perhaps = frozenset()
        # A row's own parts belong to its key: they outlive the row.
        self.jitter_part = collections.defaultdict(Part)
        self.first_part = collections.defaultdict(Part)
        self.open_part = collections.defaultdict(Part)
        self.life_part = collections.defaultdict(Part)
        self.resync_part = collections.defaultdict(Part)
        self.push_part = collections.defaultdict(Part)

    def save(self):
        return dict(self.rows), dict(self.overrides), self.announced, \
            self.perhaps, dict(self.plans), dict(self.events), \
            dict(self.runs), self.tells, dict(self.channels)

    def restore(self, saved):
        self.rows, self.overrides = dict(saved[0]), dict(saved[1])
        self.announced, self.perhaps = saved[2:4]
        self.plans, self.events, self.runs = map(dict, saved[4:7])
        self.tells, self.channels = saved[7], dict(saved[8])
        self.begin()

    def begin(self):
        """Nothing is told yet of the call at hand."""
        self.told, self.ended, self.forgotten = [], [], None
        self.source_limits, self.domain_limits, self.dead_grants = {}, [], []

    # ---------------------------------------------------------- policies

    def policy(self, source):
        p = dict(BUILTIN)
        p['token_ttl'], p['token_ttl_from'] = \
            BUILTIN_TTL.get(source, (None, 'token'))
        p['provider'] = 'google' if source in GOOGLE else source
        for k, v in self.overrides.get(source, {}).items():
            if v is not None:
                p[k] = v
        if p['token_ttl'] is None:
            p['token_ttl_from'] = None      # from nothing
        return p

    def set_policy(self, source, changes):
        refuse_unless(changes.get('provider') is None
                      or is_label(changes['provider']))
        refuse_unless(changes.get('max_in_flight') != 0)
        refuse_unless(changes.get('keep_runs') in (None, 'none', 'failures', 'all'))
        o = dict(self.overrides.get(source, {}))
        o.update(changes)
        before, self.overrides[source] = self.overrides.get(source), o
        p = self.policy(source)
        if p['retry_base'] > p['retry_cap'] or p['jitter'] > 0.9 \
                or p['min_interval'] > p['max_interval']:
            self.overrides[source] = before or {}
            raise Refused('22023')

    def pause_source(self, source, until, reason='paused'):
        """Pauses a source, or with None resumes it; tells if that is news"""
        was_paused, is_paused = (
            t is not None and t > self.now for t in (
                self.policy(source)['paused_until'], until))
        self.set_policy(source, {'paused_until': until})
        if is_paused and not was_paused:
            self.tell('source_limited', source=source, reason=reason, detail=until)
        elif was_paused and not is_paused:
            self.tell('source_resumed', source=source)

    # -------------------------------------------------------- arithmetic

    def own_interval(self, row):
        """(shortest, longest, whole, jitter) interval of this row"""
        p = self.policy(row['source'])
        whole = row['sync_interval']
        if whole is None:
            whole = self.shared_interval(row, p)
        part = self.jitter_part[key_of(row)]
        # shortened by between half and the whole of jitter
        return (whole * (1 - p['jitter'] * (0.5 + 0.5 * part.hi)),
                whole * (1 - p['jitter'] * (0.5 + 0.5 * part.lo)),
                whole, p['jitter'])

    def shared_interval(self, row, p):
        """The interval of a row that has none of its own"""
        if p['daily_budget'] is None:
            return p['sync_interval']
        whole = p['sync_interval']
        plan = self.plans.get(row['source'])
        if plan is not None:
            rate = change_rate(row, plan[1])
            whole = int(min(plan[0] / math.sqrt(rate) * SECOND, 36500.0 * DAY))
        return min(max(whole, p['min_interval']), p['max_interval'])

    def learn(self, row, items):
        """What a row learns from a completion"""
        last = row['last_successful_sync_at']
        if last is None:
            return
        watched = max(self.now - last, 0) / SECOND
        x = watched * math.log(2) / (3 * 86400)
        weight = -math.expm1(-x) / x if x > 0 else 1
        a, b = ((row[c] or 0) * math.exp(-x) + new * weight for c, new in (
            ('changes_seen', min(items, 3)), ('seconds_watched', watched)))
        if a > 12:      # the last 12 changes are enough to know a rate by
            a, b = 12, b * 12 / a
        for c, v in ('changes_seen', a), ('seconds_watched', b):
            row[c] = Within(v * (1 - 1e-12), v * (1 + 1e-12))

    def life(self, row):
        """(when the cursor's life began, how long it is), or None"""
        p = self.policy(row['source'])
        if p['token_ttl'] is None or not has_cursor(row):
            return None
        began = row['token_issued_at']
        if p['token_ttl_from'] == 'full' and row['last_full_sync_at'] is not None:
            began = row['last_full_sync_at']
        return None if began is None else (began, p['token_ttl'])

    def next_due(self, row):
        """When a row is due that has just completed."""
        now = self.now
        shortest, longest, whole, jitter = self.own_interval(row)
        # A start that lies ahead (the clock was set back) counts as now.
        began = min(row['last_sync_at'] or now, now)
        # No interval sleeps past 0.8 of the cursor's life; then not past the
        # point where the cursor is given up; then it is dead, and may wait.
        last = last_hi = INFINITY
        life = self.life(row)
        if life is not None:
            last = last_hi = life[0] + 0.8 * life[1]
            if last <= now:
                last, last_hi = self.given_up(row, life)
                if last_hi <= now:
                    last = last_hi = INFINITY
        lo, hi = (max(began + i, now + whole / 10) for i in (shortest, longest))
        part = self.jitter_part[key_of(row)]
        # While a push channel is trusted, push_interval counts, if it is longer,
        # but no longer than that and one interval.
        pushed = self.is_trusted(row)
        if pushed:
            after = self.poll_after(row, row['push_until'])
            p = self.policy(row['source'])
            lo, hi = (max(t, min(began + p['push_interval'] * (
                1 - jitter * (0.5 + 0.5 * x)), a)) for t, x, a in (
                    (lo, part.hi, after[0]), (hi, part.lo, after[1])))

        def learn(due):
            if last <= due + 2 * SLOP and last < last_hi:
                p = [((due + e - life[0]) / life[1] - 0.80) / 0.05
                     for e in (-SLOP, SLOP)]
                if due < lo - SLOP:
                    self.life_part[key_of(row)].narrow(*p)
                return
            if pushed or due > last - 2 * SLOP or due < now + whole / 10 + SLOP \
                    or whole * jitter < SECOND:
                return
            p = [(1 - (due + e - began) / whole) / jitter * 2 - 1
                 for e in (SLOP, -SLOP)]
            part.narrow(p[0], p[1])

        if last <= now < last_hi and hi > last_hi:
            last_hi = INFINITY      # given up already, perhaps
        return Within(min(lo, last) - SLOP, min(hi, last_hi) + SLOP, learn)

    def given_up(self, row, life):
        """(earliest, latest) time at which the row's cursor counts as dead"""
        if self.policy(row['source'])['token_ttl_from'] == 'token':
            return life[0] + life[1], life[0] + life[1]
        # 'full': at a point of the row's own that is a little before 0.85
        part = self.life_part[key_of(row)]
        return (life[0] + (0.80 + 0.05 * part.lo) * life[1],
                life[0] + (0.80 + 0.05 * part.hi) * life[1])

    def first_due(self, key):
        """T less a spread of up to a second, the row's own"""
        part = self.first_part[key]
        now = self.now

        def learn(due):
            part.narrow((now - due - SLOP) / SECOND, (now - due + SLOP) / SECOND)

        return Within(now - SECOND * part.hi - SLOP,
                      min(now - SECOND * part.lo + SLOP, now), learn)

    def backoff(self, source, n):
        p = self.policy(source)
        wait = min(p['retry_cap'], p['retry_base'] * 2 ** min(n - 1, 60))
        return Within(self.now + wait / 2 - SLOP, self.now + wait + SLOP)

    # --------------------------------------------------------- claimable

    def opens_alone(self, row):
        """opens(), were the source not paused"""
        p = self.policy(row['source'])
        failing = row['failures'] > 0
        lo = hi = row['due_at']
        if lo is None:
            return None
        if row['status'] == 'syncing':
            end = row['lease_expires_at']
            wait = 0
            if failing and not self.at_limits(
                    row['source'], row['failures'] + 1, row['failing_since'], end):
                wait = min(p['retry_cap'],
                           p['retry_base'] * 2 ** min(row['failures'], 60))
            lo, hi = max(lo, end + wait // 2), max(hi, end + wait)
        if row['requested_at'] is not None and row['status'] != 'rate_limited':
            asked = row['requested_at']
            if row['last_sync_at'] is not None:
                gap = max(p['request_gap'], p['retry_base']) if failing \
                    else p['request_gap']
                asked = max(asked, min(row['last_sync_at'], asked) + gap)
            parted = asked, asked
            if failing and row['status'] == 'syncing':
                end = row['lease_expires_at']
                parted = (max(asked, end + p['retry_base'] // 2),
                          max(asked, end + p['retry_base']))
            lo, hi = min(lo, parted[0]), min(hi, parted[1])
        if row['status'] == 'syncing':
            lo, hi = (max(t, row['lease_expires_at']) for t in (lo, hi))
        if row['limited_until'] is not None:
            lo, hi = (max(t, row['limited_until']) for t in (lo, hi))
        return lo, hi

    def opens(self, row):
        """(earliest, latest) time at which a claim would take the row, by
        what is known of it; None = not by itself"""
        alone = self.opens_alone(row)
        o = self.overrides.get(row['source'])
        paused = o and o.get('paused_until')
        if alone is None or paused is None:
            return alone
        if paused == INFINITY:
            return None
        wait = self.policy(row['source'])['rate_limit_wait']
        part = self.open_part[key_of(row)]
        return (max(alone[0], paused + part.lo * wait - SLOP),
                max(alone[1], paused + part.hi * wait + SLOP))

    def learn_opens(self, row, at):
        """A row was seen to open at this time."""
        paused = (self.overrides.get(row['source']) or {}).get('paused_until')
        wait = self.policy(row['source'])['rate_limit_wait']
        self.open_part[key_of(row)].narrow((at - paused - SLOP) / wait,
                                           (at - paused + SLOP) / wait)

    def learn_open(self, row, is_open):
        """A row was seen to be open now, or not to be."""
        paused = (self.overrides.get(row['source']) or {}).get('paused_until')
        if paused is None or paused == INFINITY:
            return
        lo, hi = self.opens_alone(row)
        if lo < hi:
            return      # a wait that is the run's own tells nothing of it
        wait = self.policy(row['source'])['rate_limit_wait']
        at = (self.now - paused) / wait
        if is_open:
            self.open_part[key_of(row)].narrow(0, at + SLOP / wait)
        else:
            self.open_part[key_of(row)].narrow(at - SLOP / wait, 1)

    def hopeless(self, row):
        """Whether a claim parks the row instead of handing it out"""
        if row['status'] != 'syncing':
            return False
        return self.at_limits(row['source'], row['failures'] + 1,
                              row['failing_since'])

    def at_limits(self, source, failures, since, at=None):
        p = self.policy(source)
        return failures >= p['max_failures'] and since is not None \
            and (self.now if at is None else at) - since >= p['park_after']

    def settle_due(self, row):
        """A due time that no rule gives is over."""
        p = self.policy(row['source'])
        wait = row['sync_interval']
        if wait is None:
            wait = p['sync_interval'] if p['daily_budget'] is None \
                else p['max_interval']
        wait = max(wait, p['retry_cap'], DAY)
        if p['push_renew_before'] is not None:
            wait = max(wait, p['push_interval'])
        if row['status'] == 'rate_limited':
            wait = max(wait, 33 * DAY)
        due = row['due_at']
        if isinstance(due, int) and due > self.now + wait:
            row['due_at'] = self.now

    def settle_lease(self, row):
        """Nor is a lease that no call gives."""
        if row['status'] == 'syncing' and \
                row['lease_expires_at'] > self.now + DAY:
            row['lease_expires_at'] = \
                self.now + self.policy(row['source'])['lease_time']

    def settle_limit(self, row):
        if (row['limited_until'] or 0) > self.now + 30 * DAY:
            row['limited_until'] = None

    # ------------------------------------------------------- transitions

    def place(self, key):
        """Sorts keys as the database does"""
        return (*key[:SOURCE], self.sources.index(key[SOURCE]), key[RESOURCE])

    def keys_of(self, user, account, *source):
        """The keys of an account, or of one of its quota domains, in order"""
        prefix = user, account, *source
        return sorted((k for k in self.rows if k[:len(prefix)] == prefix),
                      key=self.place)

    def new_row(self, key):
        """A row that a call makes"""
        row = dict.fromkeys(COLUMNS)
        row.update(zip(COLUMNS, key))
        row.update(status='idle', items_synced=0, failures=0, syncs_started=0,
                   lease=Within(self.greatest.get(key, FIRST_LEASE), 2 ** 53),
                   token_losses=0, due_at=self.first_due(key),
                   lease_required=False, limited_until=max(
                       (self.rows[k]['limited_until']
                        for k in self.keys_of(*key[:RESOURCE])
                        if self.rows[k]['limited_until'] is not None),
                       default=None),
                   created_at=Within(-INFINITY, INFINITY), updated_at=self.now)
        return row

    def start(self, row, lease_time, claim=False):
        """What a claim and mark_sync_started make of a row"""
        now = self.now
        row = dict(row)
        if row['status'] == 'syncing':
            self.count_failure(row)
        row.update(status='syncing', lease=row['lease'] + 1,
                   syncs_started=row['syncs_started'] + 1,
                   lease_expires_at=now + (
                       lease_time or self.policy(row['source'])['lease_time']),
                   last_sync_at=now,
                   run_requested_at=row['requested_at'],
                   requested_at=None, error_message=None,
                   lease_required=claim, updated_at=now)
        if isinstance(row['due_at'], int) and row['due_at'] > now:
            row['due_at'] = now
        if row['limited_until'] is not None and row['limited_until'] <= now:
            row['limited_until'] = None
        return row

    def resync(self, row):
        """(earliest, latest) time from which a start of the row belongs to the
        planned full sync of its source, or None"""
        p = self.policy(row['source'])
        since = p['resync_from']
        if since is None:
            return None
        began_before = row['last_sync_at'] is not None \
            and row['last_sync_at'] < since
        if not has_cursor(row):
            began_before = began_before and row['full_sync_id'] is not None
        elif row['last_full_sync_at'] is None or row['last_full_sync_at'] < since:
            part = self.resync_part[key_of(row)]
            return (since + part.lo * p['resync_spread'] - SLOP,
                    since + part.hi * p['resync_spread'] + SLOP)
        return (since, since) if began_before else None

    def death(self, row):
        """(surely, surely not) whether a start drops the row's cursor and its
        place in a listing"""
        dead, alive = self.cursor_death(row)
        resync = self.resync(row)
        if resync is None:
            return dead, alive
        return dead or resync[1] <= self.now, alive and resync[0] > self.now

    def learn_resync(self, row, dead):
        """Where that was left open by nothing but the row's part of the spread"""
        resync = self.resync(row)
        spread = self.policy(row['source'])['resync_spread']
        if resync is None or not spread or not self.cursor_death(row)[1]:
            return
        at = (self.now - self.policy(row['source'])['resync_from']) / spread
        if dead:
            self.resync_part[key_of(row)].narrow(0, at + SLOP / spread)
        else:
            self.resync_part[key_of(row)].narrow(at - SLOP / spread, 1)

    def cursor_death(self, row):
        """(surely dead, surely alive) of the row's cursor"""
        life = self.life(row)
        if life is None:
            return False, True
        lo, hi = self.given_up(row, life)
        if lo == hi:
            return self.now > lo, self.now <= lo
        return self.now > hi + SLOP, self.now < lo - SLOP

    def learn_death(self, row, dead):
        self.learn_resync(row, dead)
        life = self.life(row)
        resync = self.resync(row)
        if dead and resync is not None and resync[0] <= self.now:
            return          # that may have been it
        if life is None or self.policy(row['source'])['token_ttl_from'] == 'token':
            return
        at = ((self.now - life[0]) / life[1] - 0.80) / 0.05
        slop = SLOP / life[1] / 0.05
        if dead:
            self.life_part[key_of(row)].narrow(0, at + slop)
        else:
            self.life_part[key_of(row)].narrow(at - slop, 1)

    def started(self, row, lease_time, got, claim=False):
        """start(), with the cursor cleared where it is dead.  Where that is
        left open, what the database did (got) tells."""
        dead, alive = self.death(row)
        if not dead and not alive:
            dead = got is not None and not has_cursor(got)
            self.learn_death(row, dead)
        old, row = row, self.start(row, lease_time, claim)
        if dead:
            drop_cursor(row)
        name_full_sync(row)
        self.tell_row(old, row)
        self.tell_run(old, row, 'lost')
        return row

    def count_failure(self, row):
        if row['failures'] == 0:
            row['failing_since'] = self.now
        row['failures'] += 1

    def park(self, row, reason):
        row.update(due_at=None, parked_reason=reason)

    def park_failed(self, row, reason):
        """A failure does not end a pause, nor bring back what is gone."""
        row['troubled_at'] = self.now
        if row['parked_reason'] not in ('paused', 'gone'):
            self.park(row, reason)

    def wait_until(self, row, due):
        """A parked row stays parked, whatever its run reports."""
        if row['parked_reason'] is None:
            row['due_at'] = due

    def end(self, row, status):
        row.update(status=status, lease_expires_at=None, lease_required=False,
                   run_requested_at=None)

    def complete(self, row, a):
        now = self.now
        was_full = not has_cursor(row)
        set_cursor = False
        if a.get('sync_token'):
            row['sync_token'] = a['sync_token']
            set_cursor = True
        if a.get('history_id'):
            new = a['history_id'].lstrip('0') or '0'
            if row['history_id'] is None or int(new) >= int(row['history_id']):
                row['history_id'] = new
                set_cursor = True
        if a.get('updated_min') is not None:
            if row['updated_min'] is None or a['updated_min'] >= row['updated_min']:
                row['updated_min'] = a['updated_min']
                set_cursor = True
        if set_cursor:
            row['token_issued_at'] = now
        if was_full:
            row['last_full_sync_at'] = now
        self.end(row, 'idle')
        if not was_full:
            self.learn(row, a.get('items_synced', 0))
        row.update(page_token=None, progress_done=None, progress_total=None,
                   last_successful_sync_at=now,
                   items_synced=a.get('items_synced', 0),
                   failures=0, failing_since=None, token_losses=0,
                   full_sync_id=None, error_message=None)
        self.wait_until(row, self.next_due(row))

    def fail(self, row, a):
        kind = a.get('kind', 'transient')
        self.count_failure(row)
        self.end(row, 'error')
        row['error_message'] = cut(a['error_message'])
        if kind == 'auth' and row['failures'] >= \
                self.policy(row['source'])['auth_failures']:
            self.park_failed(row, 'auth')
            if a.get('scope', 'account') == 'account':
                self.dead_grants.append((row, a))
        elif self.at_limits(row['source'], row['failures'],
                            row['failing_since']):
            self.park_failed(row, 'failures')
        elif kind != 'transient':
            self.wait_until(row, self.now
                            + self.policy(row['source'])['retry_cap'])
        else:
            self.wait_until(row, self.backoff(row['source'], row['failures']))

    def grant(self, key):
        """All that is under one grant"""
        return key[USER], key[ACCOUNT], self.policy(key[SOURCE])['provider']

    def park_account(self, row):
        """A grant was revoked: it is that of all sources of the provider.
        Returns whether that parked another row."""
        parked = False
        for key in self.keys_of(row['user_id'], row['account']):
            if self.rows[key]['parked_reason'] is None \
                    and self.grant(key) == self.grant(key_of(row)):
                other = self.rows[key] = dict(self.rows[key], updated_at=self.now)
                self.park(other, 'auth')
                parked = True
        return parked

    def limit_account(self, domain, until):
        """A quota is that of all resources of the source."""
        for key in self.keys_of(*domain):
            if (self.rows[key]['limited_until'] or 0) < until:
                self.rows[key] = dict(self.rows[key], limited_until=until,
                                      updated_at=self.now)

    def spread(self, changes):
        """What reports of rows say of the account, and of the source: after
        they made of their own rows what they did.  changes: of each row the
        key, the state before, and the state after"""
        # one event for each grant, which names the first row that said so
        grants = {}
        for row, a in sorted(self.dead_grants, key=lambda x: self.place(key_of(x[0]))):
            grants.setdefault(self.grant(key_of(row)), (row, a))
        news = {g: False for g in grants}
        for key, old, row in changes:
            g = self.grant(key)
            if g in grants and old['parked_reason'] is None \
                    and row['parked_reason'] == 'auth':
                news[g] = True
            else:
                self.tell_row(old, row)
        for domain, until in self.domain_limits:
            self.limit_account(domain, until)
        for source, until in self.source_limits.items():
            was = self.overrides.get(source, {}).get('paused_until')
            if was is None or was <= until - SECOND:     # a moment more is no news
                self.pause_source(source, until, 'rate_limited')
        for g, (row, a) in grants.items():
            if self.park_account(row) or news[g]:
                self.tell('parked', row, lease=a.get('lease'), reason='auth',
                          detail=cut(a['error_message']))

    def limit(self, row, a):
        p = self.policy(row['source'])
        wait = a.get('retry_after')
        if wait is None:
            wait = p['rate_limit_wait']
        wait = min(max(wait, SECOND), 30 * DAY)
        lo, hi = self.now + wait, self.now + wait * 1.1
        if row['status'] == 'rate_limited' and row['due_at'] is not None \
                and row['due_at'] > self.now:
            lo, hi = max(lo, row['due_at']), max(hi, row['due_at'])
        self.end(row, 'rate_limited')
        row['error_message'] = 'API rate limit exceeded'
        self.wait_until(row, Within(lo - SLOP, hi + SLOP))
        until = self.now + wait
        if a.get('scope', 'account') == 'account':
            row['limited_until'] = max(row['limited_until'] or 0, until)
            self.domain_limits.append((key_of(row)[:RESOURCE], until))
        elif a['scope'] == 'source':
            self.source_limits[row['source']] = max(
                until, self.source_limits.get(row['source'], 0))

    def lose_cursor(self, row, has_lease):
        drop_cursor(row)
        row['token_losses'] += 1
        n = row['token_losses']
        if n >= LOSSES_PARK:
            self.end(row, 'error')
            row['error_message'] = Something()
            self.park_failed(row, 'token_loop')
        elif n >= LOSSES_WAIT:
            self.end(row, 'error')
            row['error_message'] = Something()
            self.wait_until(row, self.backoff(row['source'], n))
        elif not has_lease:
            if row['status'] == 'syncing':
                self.end(row, 'idle')
            self.wait_until(row, self.now)
        else:
            row['full_sync_id'] = row['lease']

    # ------------------------------------------------------- what is told

    def tell(self, event, row=None, **told):
        told = dict.fromkeys(EVENT) | {'at': self.now, 'event': event} | told
        if row is not None:
            told.update(zip(EVENT[2:6], key_of(row)))
        self.told.append(told)
        self.tells = True

    def tell_row(self, old, row, completed=False, cleared=False, quiet=False):
        """What is told of a row that became another.  quiet: not that it is
        parked"""
        lease = old['lease'] if old['status'] == 'syncing' else None
        was, reason = old['parked_reason'], row['parked_reason']
        if completed:
            if old['troubled_at'] is not None:
                self.tell('recovered', row, lease=lease)
            if old['last_successful_sync_at'] is None:
                self.tell('first_sync', row, lease=lease)
            row['troubled_at'] = None
        if cleared and has_cursor(old):
            self.tell('cursor_lost', row, lease=lease)
        if reason == 'gone':
            if was != 'gone':
                self.tell('gone', row, lease=lease)
        elif reason is not None:
            if was is None and not quiet:
                self.tell('parked', row, lease=lease, reason=reason,
                          detail=row['error_message'])
                if reason != 'paused':
                    row['troubled_at'] = self.now
        if row['failures'] > old['failures'] and self.half_way(row) and (
                old['troubled_at'] is None
                or old['troubled_at'] <= row['failing_since']):
            # once per run of failures
            row['troubled_at'] = self.now
            if reason in (None, *STAY_PARKED):
                self.tell('failing', row, lease=lease,
                          detail='lease expired without a report'
                          if row['status'] == 'syncing' else row['error_message'])

    def trouble_of_call(self, old, row, call):
        """troubled_at, did a direct write nothing but what it amounts to"""
        told, tells, row = list(self.told), self.tells, dict(row)
        self.tell_row(old, row, completed=call == 'complete')
        self.told, self.tells = told, tells
        return row['troubled_at']

    def half_way(self, row):
        p = self.policy(row['source'])
        return 2 * row['failures'] >= p['max_failures'] \
            and 2 * (self.now - row['failing_since']) >= p['park_after']

    def tell_run(self, old, row, outcome, items=None, is_own=True, cleared=False):
        """The run in flight, if that has ended.  is_own: whether the worker
        that had it may have said how; otherwise it was lost before."""
        if old['status'] != 'syncing' or row is not None \
                and row['status'] == 'syncing' and row['lease'] == old['lease']:
            return
        if not is_own and outcome in ('completed', 'failed', 'rate_limited'):
            outcome = 'lost'
        ended_at = old['lease_expires_at'] if outcome == 'lost' else self.now
        ended_at = min(ended_at, self.now)
        kept = self.policy(old['source'])['keep_runs']
        if kept == 'none' or kept == 'failures' and outcome in ('completed', 'released'):
            return
        self.ended.append(dict(
            {c: old[c] for c in RUN[:5]}, started_at=old['last_sync_at'],
            ended_at=ended_at, outcome=outcome,
            was_full=cleared or not has_cursor(old),
            was_requested=old['run_requested_at'] is not None,
            items=items if outcome == 'completed' else old['progress_done'],
            error_message=row['error_message'] if outcome == 'failed' else
            Something() if outcome == 'lost' else None))

    def events_after(self):
        """Of the events that there were, those that must be there still after
        what was told, and those that may be"""
        if not self.told:
            return self.events, self.events
        old = sorted((e['at'], i) for i, e in self.events.items()
                     if e['at'] < self.now - KEEP_EVENTS_FOR)
        kept = {i: e for i, e in self.events.items()
                if e['at'] >= self.now - KEEP_EVENTS_FOR}
        return kept, kept | {i: self.events[i] for _, i in old[TRIMMED:]}

    def runs_after(self):
        """The same of runs, with those that have ended: old ones of their
        sources go, and may of any other"""
        runs = self.runs | {run_of(r): r for r in self.ended}
        if not self.ended:
            return runs, runs
        sources = {r['source'] for r in self.ended}
        old = sorted((r['ended_at'], i) for i, r in runs.items() if r['ended_at']
                     < self.now - self.policy(r['source'])['keep_runs_for'])
        must_go = {i for s in sources for _, i in
                   [x for x in old if runs[x[1]]['source'] == s][:TRIMMED]}
        kept = {i: r for i, r in runs.items() if i not in {x[1] for x in old}}
        return kept, {i: r for i, r in runs.items() if i not in must_go}

    def take_sync_events(self, max_rows):
        """The oldest events: their ids, in order"""
        refuse_unless(max_rows is not None and 1 <= max_rows <= 10000)
        ids = [i for _, i in sorted((e['at'], i) for i, e in self.events.items())]
        for i in ids[:max_rows]:
            del self.events[i]
        return ids[:max_rows]

    def delete(self, key):
        """A run that is in flight is revoked with its row."""
        row = self.rows.pop(key)
        self.tell_run(row, None, 'revoked')
        return row

    # ------------------------------------------------------------- calls
    #
    # Each takes its arguments as a dictionary and what the database returned,
    # and returns what it must return.  The row it expects is in self.rows.

    def locate(self, key, a, make):
        """The row that a report is about, to be changed."""
        row = self.rows.get(key)
        lease = a.get('lease')
        if lease is not None:
            refuse_unless(row is not None, 'PT404')
            refuse_unless(row['lease'] == lease
                          and row['status'] == 'syncing', 'PT409')
        if row is None:
            refuse_unless(make, 'PT404')
            return self.new_row(key)
        return dict(row, updated_at=self.now)

    def check_report(self, name, a):
        if name == 'mark_sync_completed':
            refuse_unless(a.get('items_synced', 0) is not None
                          and a.get('items_synced', 0) >= 0)
            h = a.get('history_id')
            refuse_unless(not h or (re.fullmatch('[0-9]+', h)
                                    and int(h) < 2 ** 64))
        elif name == 'mark_sync_failed':
            refuse_unless(a.get('error_message') is not None)
            refuse_unless(a.get('kind', 'transient')
                          in ('transient', 'permanent', 'auth'))
            refuse_unless(a.get('scope', 'account') in ('row', 'account'))
        elif name == 'mark_rate_limited':
            refuse_unless(a.get('scope', 'account')
                          in ('row', 'account', 'source'))

    REPORTS = {'mark_sync_completed': 'complete', 'mark_sync_failed': 'fail',
               'mark_rate_limited': 'limit'}
    ENDS = {'complete': 'completed', 'fail': 'failed', 'limit': 'rate_limited',
            'release': 'released'}

    def refuse_without_lease(self, row, a):
        """What a claim handed out is its worker's alone."""
        refuse_unless(a.get('lease') is not None or not row['lease_required']
                      or row['lease_expires_at'] <= self.now, 'PT409')

    def report(self, name, key, a):
        self.check_report(name, a)
        row = self.locate(key, a, make=True)
        self.refuse_without_lease(row, a)
        self.spread([self.apply(self.REPORTS[name], key, row, a)])
        return self.rows[key]

    def apply(self, call, key, old, a):
        """What a report makes of its own row: the key, the row before and
        after"""
        row = self.rows[key] = dict(old)
        getattr(self, call)(row, a)
        self.tell_run(old, row, self.ENDS[call], a.get('items_synced', 0),
                      is_own=a.get('lease') is not None or not old['lease_required'])
        if call == 'complete':
            self.tell_row(old, row, completed=True)
            old = row
        return key, old, row

    def clear_sync_token(self, key, a):
        old = self.locate(key, a, make=True)
        row = self.rows[key] = dict(old)
        has_lease = a.get('lease') is not None
        self.lose_cursor(row, has_lease)
        self.tell_row(old, row, cleared=True)
        self.tell_run(old, row, 'failed' if has_lease else 'revoked', cleared=has_lease)
        return row

    def mark_sync_started(self, key, a, got):
        lease_time = a.get('lease_time')
        refuse_unless(lease_time is None or SECOND <= lease_time <= DAY)
        row = self.rows.get(key)
        if row is None:
            row = self.new_row(key)
        refuse_unless(row['status'] != 'syncing'
                      or row['lease_expires_at'] <= self.now, 'PT409')
        row = self.rows[key] = self.started(row, lease_time, got)
        return row

    def renew_sync_lease(self, key, a):
        lease_time = a.get('lease_time')
        refuse_unless(a.get('lease') is not None)
        refuse_unless(lease_time is None or SECOND <= lease_time <= DAY)
        row = self.locate(key, a, make=False)
        row['lease_expires_at'] = self.now + (
            lease_time or self.policy(key[SOURCE])['lease_time'])
        self.rows[key] = row
        return row

    def checkpoint_sync(self, key, a):
        for c in ('progress_done', 'progress_total'):
            refuse_unless(a.get(c) is None or a[c] >= 0)
        row = self.locate(key, a, make=False)
        refuse_unless(row['status'] == 'syncing', 'PT409')
        self.refuse_without_lease(row, a)
        if a.get('page_token') not in (None, row['page_token']):
            row.update(failures=0, failing_since=None)
        for c in ('page_token', 'progress_done', 'progress_total'):
            if a.get(c) is not None:
                row[c] = a[c]
        # a lease that was taken for longer is not cut short
        row['lease_expires_at'] = max(
            row['lease_expires_at'],
            self.now + self.policy(key[SOURCE])['lease_time'])
        self.rows[key] = row
        return row

    def release_sync(self, key, a):
        refuse_unless(a.get('lease') is not None)
        refuse_unless(0 <= (a.get('delay') or 0) <= DAY)
        row = self.locate(key, a, make=False)
        self.apply('release', key, row, a)
        return self.rows[key]

    def release(self, row, a):
        self.end(row, 'idle')
        row['error_message'] = None
        self.wait_until(row, self.now + (a.get('delay') or 0))

    def request_sync(self, key, visible=True):
        row = self.rows.get(key)
        refuse_unless(row is not None and visible, 'PT404')
        if row['parked_reason'] is not None:
            return False
        new = dict(row)
        self.settle_due(new)
        self.settle_lease(new)
        self.settle_limit(new)
        if row['requested_at'] is None or row['requested_at'] > self.now \
                or row['updated_at'] > self.now \
                or new['due_at'] != row['due_at']:
            self.rows[key] = dict(new, requested_at=self.now,
                                  updated_at=self.now)
            self.announce_request(row, self.rows[key])
        return True

    def announce_request(self, row, new):
        """A request notifies if it makes its row due earlier."""
        source = row['source']
        if row['status'] == 'syncing':      # a backoff that follows a lost lease is cut short
            if row['failures'] > 0 or row['updated_at'] > self.now:
                self.announced |= {source}
            return
        if isinstance(row['due_at'], Within):
            self.perhaps |= {source}
            return
        before, after = self.opens(row), self.opens(new)
        if before is None:
            return
        if after[1] < before[0]:
            self.announced |= {source}
        elif after[0] < before[1]:
            self.perhaps |= {source}

    def revive(self, row, but=None):
        """What connect and resume have in common"""
        if row['parked_reason'] not in (None, but):
            row.update(due_at=self.now, parked_reason=None)
        self.settle_due(row)
        if row['requested_at'] is not None:
            row['requested_at'] = min(row['requested_at'], self.now)
        self.settle_lease(row)
        self.settle_limit(row)
        row.update(failures=0, failing_since=None, token_losses=0)
        if row['status'] == 'error':
            row.update(status='idle', error_message=None)

    def connect_sync(self, key):
        row = self.rows.get(key)
        row = self.new_row(key) if row is None else dict(row, updated_at=self.now)
        self.revive(row, but='paused')
        if row['requested_at'] is None:
            row['requested_at'] = self.now
            self.announced |= {key[SOURCE]}
        self.perhaps |= {key[SOURCE]}
        self.rows[key] = row
        return row

    def resume_sync(self, key):
        row = self.locate(key, {}, make=False)
        self.revive(row)
        self.perhaps |= {key[SOURCE]}
        self.rows[key] = row
        return row

    def revive_syncs(self, source, reason, spread, max_rows):
        """The keys of rows that are parked for a reason, in their order, and
        taken back"""
        refuse_unless(reason is None or reason in REASONS)
        refuse_unless(0 <= spread <= DAY)
        refuse_unless(1 <= max_rows <= 10000)
        keys = sorted(k for k, row in self.rows.items() if k[SOURCE] == source
                      and row['parked_reason'] is not None
                      and row['parked_reason'] == (reason or row['parked_reason'])
                      and (reason or row['parked_reason'] not in STAY_PARKED)
                      )[:max_rows]
        for key in keys:
            row = dict(self.rows[key], updated_at=self.now)
            self.revive(row)
            row['due_at'] = Within(self.now, self.now + spread)
            self.rows[key] = row
        if keys:
            self.announced |= {source}
        return keys

    def pause_sync(self, key):
        return self.park_by_name(key, 'paused')

    def park_by_name(self, key, reason, quiet=False):
        old = self.locate(key, {}, make=False)
        row = self.rows[key] = dict(old)
        self.park(row, reason)
        self.tell_row(old, row, quiet=quiet)
        return row

    def disconnect_sync(self, key):
        return key in self.rows and self.delete(key) is not None

    def keys_with(self, user, account, provider):
        """The keys that a call about an account is about, in order"""
        refuse_unless(provider is None or provider in (
            self.policy(s)['provider'] for s in self.sources))
        return [k for k in self.keys_of(user, account) if provider in
                (None, self.policy(k[SOURCE])['provider'])]

    def connect_account(self, keys):
        return [self.connect_sync(k) for k in keys]

    def pause_account(self, keys):
        keys = self.not_gone(keys)
        running = [k for k in keys if self.rows[k]['parked_reason'] is None]
        if running:
            self.tell('parked', user_id=keys[0][USER], account=keys[0][ACCOUNT],
                      reason='paused')
        return [self.park_by_name(k, 'paused', quiet=True) for k in keys]

    def resume_account(self, keys):
        return [self.resume_sync(k) for k in self.not_gone(keys)]

    def disconnect_account(self, keys):
        return [self.delete(k) for k in keys]

    def request_account(self, keys):
        return [k for k in keys if self.request_sync(k)]

    def not_gone(self, keys):
        return [k for k in keys if self.rows[k]['parked_reason'] != 'gone']

    def set_sync_resources(self, domain, resources):
        """{resource: change}, in order"""
        refuse_unless(resources is not None and len(resources) <= 10000)
        refuse_unless(all(x is not None and len(x.encode()) <= 1024
                          for x in resources))
        there = {k[RESOURCE] for k in self.keys_of(*domain)}
        changes = {}
        for resource in sorted(there | set(resources)):
            key = *domain, resource
            reason = self.rows[key]['parked_reason'] if key in self.rows else None
            if resource == '':
                continue
            if resource not in there:
                self.connect_sync(key)
                changes[resource] = 'added'
            elif resource in resources and reason == 'gone':
                self.connect_sync(key)
                changes[resource] = 'returned'
            elif resource in resources or reason == 'paused':
                changes[resource] = 'kept'
            elif reason != 'gone':
                self.park_by_name(key, 'gone')
                changes[resource] = 'gone'
        return changes

    def report_syncs(self, reports):
        """The rows that were changed, in any order"""
        for r in reports:
            refuse_unless(r.get('lease') is not None)
            self.check_report(self.OUTCOMES[r['outcome']], r)
            refuse_unless(0 <= (r.get('delay') or 0) <= DAY)
        done = []
        for r in reports:
            key = reported_key(r)
            try:
                row = self.locate(key, r, make=False)
            except Refused:
                continue
            call = self.REPORTS.get(self.OUTCOMES[r['outcome']], 'release')
            done.append(self.apply(call, key, row, r))
        self.spread(done)
        return [key for key, _, _ in done]

    OUTCOMES = {'completed': 'mark_sync_completed',
                'failed': 'mark_sync_failed',
                'rate_limited': 'mark_rate_limited',
                'released': 'release_sync'}

    # ----------------------------------------------------- push channels

    def is_trusted(self, row):
        return self.policy(row['source'])['push_renew_before'] is not None \
            and (row['push_until'] or 0) > self.now

    def poll_after(self, row, until):
        """(earliest, latest) time of the poll of a row whose channel is trusted
        until then"""
        whole = self.own_interval(row)[2]
        part = self.push_part[key_of(row)]
        return until + whole * part.lo, until + whole * part.hi

    def trust(self, key, until, begins=False):
        """Its push channel makes frequent polls of a row unnecessary until then.
        begins: nobody called back before"""
        row = self.rows[key] = dict(self.rows[key], push_until=until,
                                    updated_at=self.now)
        due = row['due_at']
        if begins and row['status'] == 'syncing' and row['requested_at'] is None:
            row['requested_at'] = self.now
        if row['status'] != 'idle' or due is None:
            return
        begins = max(until or 0, self.now)
        lo, hi = self.poll_after(row, begins)
        whole = self.own_interval(row)[2]

        def learn(got):
            part = self.push_part[key]
            if got < due:
                part.narrow((got - SLOP - begins) / whole, (got + SLOP - begins) / whole)
            else:
                part.narrow((due - SLOP - begins) / whole, 1)

        if due > lo - SLOP:
            row['due_at'] = Within(min(due, lo - SLOP), min(due, hi + SLOP), learn)

    def channels_of(self, key):
        return [i for i, c in self.channels.items() if key_of(c) == key]

    def channel_named(self, channel_id):
        return next((i for i, c in self.channels.items()
                     if c['channel_id'] == channel_id), None)

    def make_channel(self, key, **values):
        channel = dict.fromkeys(CHANNEL) | dict(zip(CHANNEL[1:5], key))
        channel.update(id=Something(), failures=0, lease=Within(FIRST_LEASE, 2 ** 53))
        name = 'new', next(self.numbers)
        self.channels[name] = channel | values
        return name

    def change_channel(self, i, **values):
        self.channels[i] = dict(self.channels[i], **values)

    def open_channel(self, i, opened):
        """A channel is open now, as it was told."""
        old = self.channels[i]
        if old['channel_id'] != opened['channel_id']:
            self.change_channel(i, last_push_at=None, message_number=None)
        end = opened['expires_at']
        self.change_channel(i, **opened, state='active', failures=0, error_message=None,
                            lease_expires_at=None, opened_at=self.now, renew_at=INFINITY)
        if end is None:
            return
        # between once and half of push_renew_before before the end, at the row's
        # own part, and not before half of its life
        before = self.policy(old['source'])['push_renew_before'] or 0
        half = self.now + (end - self.now) // 2
        part = self.push_part[key_of(old)]

        def learn(at):
            if before >= SECOND and at > half + SLOP:
                part.narrow(*(2 * (1 - (end - at + e) / before) for e in (SLOP, -SLOP)))

        self.change_channel(i, renew_at=Within(*(
            max(half, end - before * (1 - 0.5 * x)) + e
            for x, e in ((part.lo, -SLOP), (part.hi, SLOP))), learn))

    def retire_channel(self, i):
        self.change_channel(i, state='retiring', failures=0, error_message=None,
                            renew_at=self.now, lease_expires_at=None)

    def refuse_channel(self, i, message):
        self.change_channel(i, state='unsupported', failures=0, error_message=message,
                            renew_at=self.now + ASK_AGAIN_AFTER, lease_expires_at=None)

    def is_of_former_row(self, channel, row):
        """Leases begin with the time, unless somebody has chosen a number."""
        made = row['lease'] - row['syncs_started']
        return 10 ** 15 <= channel['lease'] < made <= time.time() * 10 ** 6

    def match_channels(self, source):
        """Each row of a source with push has one channel that is not to be
        stopped, unless it is parked and never had one; no others have.  A channel
        that is older than its row was that of another one."""
        p = self.policy(source)
        uses = p['push_renew_before'] is not None
        latest = self.now + max(ASK_AGAIN_AFTER, DAY + p['retry_cap'])
        with_one = set()
        for i, c in list(self.channels.items()):
            if c['source'] != source or c['state'] == 'retiring':
                continue
            row = self.rows.get(key_of(c))
            if not uses or row is None or row['parked_reason'] == 'gone' \
                    or self.is_of_former_row(c, row):
                if c['channel_id'] is None:
                    del self.channels[i]
                else:
                    self.retire_channel(i)
                continue
            with_one.add(key_of(c))
            waits = c['renew_at'] is None or c['state'] != 'active' \
                and c['renew_at'] > latest      # by a clock that was wrong
            if waits and row['due_at'] is not None:
                self.change_channel(i, renew_at=self.now)
        for key, row in self.rows.items():
            if uses and key[SOURCE] == source and row['due_at'] is not None \
                    and key not in with_one:
                self.make_channel(key, state='opening', renew_at=self.now)

    def claim_push_channels(self, source, max_rows, lease_time, got, after):
        """Checks which channels were handed out, in which order, and for what.
        got: what came, in order; after: the channels that there are now"""
        refuse_unless(max_rows is not None and 1 <= max_rows <= 10000)
        refuse_unless(lease_time is None or SECOND <= lease_time <= DAY)
        total = 0
        if [k for k, _ in itertools.groupby(g['source'] for g in got)] != \
                list(dict.fromkeys(g['source'] for g in got)):
            raise Mismatch('channels of a source by source', None, got)
        for s in self.sources if source is None else [source]:
            mine = [g for g in got if g['source'] == s]
            if (self.policy(s)['paused_until'] or 0) > self.now:
                if mine:
                    raise Mismatch('channels of a paused source', None, mine)
                continue
            self.match_channels(s)
            total += self.claim_channels_of(s, mine, len(got) < max_rows, lease_time, after)
        if len(got) > max_rows or total > 0 and len(got) < max_rows:
            raise Mismatch('number of channels handed out', max_rows, len(got))
        if len(got) == max_rows and source is None:
            raise Mismatch('room for more channels', None, len(got))

    def claim_channels_of(self, source, got, all_of_them, lease_time, after):
        """The same of one source; returns how many were left"""
        now = self.now
        due = {i: c for i, c in self.channels.items() if c['source'] == source
               and c['renew_at'] is not None and c['renew_at'] <= now
               and (c['state'] == 'retiring' or key_of(c) in self.rows)}
        # these are not handed out: they have ended, or wait for their row or its limit
        bad = {i for i, c in due.items() if (
            (c['expires_at'] or INFINITY) <= now if c['state'] == 'retiring'
            else self.rows[key_of(c)]['due_at'] is None
            or (self.rows[key_of(c)]['limited_until'] or 0) > now)}
        # these wait until the former channel of their row is stopped
        waiting = {i for i, c in due.items() if c['state'] != 'retiring' and any(
            d['state'] == 'retiring' and key_of(d) == key_of(c) for d in due.values())}
        last, taken = -INFINITY, set()
        before = {}     # of those to be stopped, which come first, and of the others
        for g in got:
            i = next((i for i, c in due.items() if key_of(c) == key_of(g)
                      and (c['state'] == 'retiring') == (g['action'] == 'stop')
                      and c['channel_id'] == g['channel_id'] and i not in taken), None)
            to_stop = g['action'] == 'stop'
            if i is None or i in bad or (to_stop and False in before) \
                    or (due[i]['renew_at'] < before.get(to_stop, 0) and i not in waiting):
                raise Mismatch('handed out what was not to be done, or not yet',
                               list(due.values()), g)
            taken.add(i)
            before[to_stop] = max(due[i]['renew_at'], before.get(to_stop, 0))
            last = max(last, due[i]['renew_at'])
            self.hand_out(i, lease_time)
            want = dict(self.channels[i], action=ACTIONS[due[i]['state']])
            wrong = [c for c in g if want[c] != g[c] and not (
                isinstance(want[c], Within) and want[c].lo <= g[c] <= want[c].hi)]
            if wrong:
                raise Mismatch('claimed channel', {c: want[c] for c in wrong},
                               {c: g[c] for c in wrong})
        for i in bad:
            at = due[i]['renew_at']
            there = after.get(i) or isinstance(i, tuple) and next(      # made by this call
                (c for c in after.values() if key_of(c) == key_of(due[i]) and c['state'] != 'retiring'), None)
            changed = not there or there['renew_at'] != at
            if all_of_them or (at < last and i not in waiting) \
                    or (changed and (at <= last or waiting)):
                if due[i]['state'] == 'retiring':
                    del self.channels[i]
                else:
                    row = self.rows[key_of(due[i])]
                    self.change_channel(i, renew_at=None if row['due_at'] is None
                                        else min(row['limited_until'], now + DAY))
        left = due.keys() - taken - bad
        if any(due[i]['renew_at'] < last for i in left - waiting):
            raise Mismatch('passed over a channel', [due[i] for i in left], got)
        return len(left)

    def hand_out(self, i, lease_time):
        c = self.channels[i]
        failures = c['failures'] + (c['lease_expires_at'] is not None)
        lease_time = lease_time or self.policy(c['source'])['lease_time']
        again = self.now + lease_time
        if failures > 0:
            again = self.backoff(c['source'], failures + 1) + lease_time
        self.change_channel(
            i, failures=failures, lease=c['lease'] + 1, renew_at=again,
            lease_expires_at=self.now + lease_time,
            state='opening' if c['state'] == 'unsupported' else c['state'])

    def held_channel(self, key, lease):
        return next((i for i in self.channels_of(key) if self.channels[i]['lease'] == lease
                     and self.channels[i]['lease_expires_at'] is not None), None)

    def mark_channel_opened(self, key, a):
        """What must be returned: the name of a channel"""
        refuse_unless(a['channel_id'] and len(a['channel_id'].encode()) <= 1024)
        refuse_unless(a['token'] and len(a['token'].encode()) <= 65536)
        refuse_unless(a['expires_at'] is None or a['expires_at'] > self.now)
        refuse_unless(len((a.get('provider_ref') or '').encode()) <= 8192)
        opened = {'channel_id': a['channel_id'], 'expires_at': a['expires_at'],
                  'provider_ref': a.get('provider_ref'), 'token_hash': hash_of(a['token'])}
        held = self.held_channel(key, a['lease'])
        if held is not None and self.channels[held]['state'] == 'retiring':
            held = None
        row = self.rows.get(key)
        if held is not None and row is not None and self.is_of_former_row(self.channels[held], row):
            held = None
        if row is None or row['parked_reason'] == 'gone' \
                or self.policy(key[SOURCE])['push_renew_before'] is None:
            held = None
        namesake = self.channel_named(a['channel_id'])
        if namesake is not None and key_of(self.channels[namesake]) != key:
            refuse_unless(self.channels[namesake]['state'] == 'retiring', '23505')
            del self.channels[namesake]
            namesake = None
        if held is None:
            # somebody has opened it all the same: it is to be stopped
            if namesake is None:
                namesake = self.make_channel(key)
                self.open_channel(namesake, opened)
                self.retire_channel(namesake)
            return namesake
        begins = self.channels[held]['state'] == 'opening' \
            or (self.channels[held]['expires_at'] or INFINITY) <= self.now
        if namesake is not None and namesake != held:
            del self.channels[namesake]
        if self.channels[held]['state'] == 'active' and namesake != held:
            self.retire_channel(held)
            held = self.make_channel(key)
        self.open_channel(held, opened)
        self.trust(key, self.trusted(held), begins)
        return held

    def trusted(self, i):
        """Until when a channel makes frequent polls unnecessary"""
        c = self.channels[i]
        until = max(c['opened_at'], c['last_push_at'] or 0) + \
            self.policy(c['source'])['push_silence']
        return until if c['expires_at'] is None else min(until, c['expires_at'])

    def mark_channel_failed(self, key, a):
        refuse_unless(a['error_message'] is not None)
        kind = a.get('kind', 'transient')
        refuse_unless(kind in ('transient', 'unsupported', 'auth'))
        i = self.held_channel(key, a['lease'])
        refuse_unless(i is not None, 'PT409')
        state, message = self.channels[i]['state'], cut(a['error_message'])
        refuse_unless(state == 'retiring' or key not in self.rows
                      or not self.is_of_former_row(self.channels[i], self.rows[key]), 'PT409')
        if kind == 'unsupported' and state != 'retiring':
            if self.rows.get(key, {}).get('push_until') is not None:
                self.trust(key, None)
            if state == 'active':
                self.retire_channel(i)
                i = self.make_channel(key)
            self.refuse_channel(i, message)
            return i
        p = self.policy(key[SOURCE])
        failures = self.channels[i]['failures'] + 1
        again = self.backoff(key[SOURCE], failures) if kind == 'transient' else \
            self.now + p['retry_cap'] if kind == 'auth' else \
            self.channels[i]['expires_at'] or INFINITY
        if kind == 'auth' and state != 'retiring' and failures >= p['auth_failures']:
            row = dict(zip(EVENT[2:6], key))
            before = self.rows.get(key)
            if self.park_account(row):
                self.tell('parked', row, reason='auth', detail=message)
            if before is not None and before['parked_reason'] is None:
                self.rows[key]['troubled_at'] = self.now
            again, failures = None, 0
        self.change_channel(i, failures=failures, error_message=message,
                            renew_at=again, lease_expires_at=None)
        return i

    def mark_channel_stopped(self, key, a):
        i = self.held_channel(key, a['lease'])
        refuse_unless(i is not None and self.channels[i]['state'] == 'retiring', 'PT409')
        if self.rows.get(key, {}).get('push_until') is not None and not any(
                c['state'] == 'active' and key_of(c) == key for c in self.channels.values()):
            self.trust(key, None)
        return self.channels.pop(i)

    def receive_push(self, channel_id, token, number):
        """Whether the channel is known, by its token"""
        i = self.channel_named(channel_id) if channel_id is not None else None
        if i is None or token is None or self.channels[i]['token_hash'] != hash_of(token):
            return False
        c = self.channels[i]
        key = key_of(c)
        if number is not None and number < 0:
            number = None
        if number is not None and c['message_number'] is not None \
                and number <= c['message_number'] or key not in self.rows:
            return True
        self.request_sync(key)
        last = c['last_push_at']
        if last is None or last > self.now or self.now - last >= HEARD_EVERY:
            self.change_channel(i, last_push_at=self.now)
            if number is not None:
                self.change_channel(i, message_number=number)
            if c['state'] == 'active' \
                    and self.policy(key[SOURCE])['push_renew_before'] is not None:
                self.trust(key, self.trusted(i))
        return True

    # ------------------------------------------------------------ claims

    def is_of_kind(self, row, kind):
        """Whether a sync of the row that started now would be of a kind, where
        that is not left open: see do_claim()."""
        if kind == 'any':
            return True
        return (has_cursor(row) and self.death(row)[1]) == (kind == 'incremental')

    def lanes(self, source, taken, kind):
        """The priority lane and the due lane as far as they are claimable,
        in order; rows of which it is not known whether they are open after a
        pause are in if they were taken."""
        now = self.now
        priority, due = [], []
        for key, row in self.rows.items():
            if key[SOURCE] != source or not self.is_of_kind(row, kind):
                continue
            opens = self.opens(row)
            if opens is None or opens[0] > now:
                continue
            if opens[1] > now and key not in taken:
                continue
            if row['requested_at'] is not None:
                priority.append((row['requested_at'], key))
            if row['due_at'] <= now:
                due.append((row['due_at'], key))
        priority.sort()
        due.sort()
        return [p[-1] for p in priority], [d[-1] for d in due]

    def room(self, domain):
        """How many syncs of a quota domain may start"""
        most = self.policy(domain[SOURCE])['max_in_flight']
        if most is None:
            return INFINITY
        return max(most - sum(self.rows[k]['status'] == 'syncing' and
                              self.rows[k]['lease_expires_at'] > self.now
                              for k in self.keys_of(*domain)), 0)

    def claim(self, source, max_rows, lease_time, kind, got):
        """Checks which rows were handed out, in which order, and what became
        of them and of those that were parked, and how many were held back by
        others of their domain.  got: rows, in order"""
        refuse_unless(max_rows is not None and 1 <= max_rows <= 10000)
        refuse_unless(lease_time is None or SECOND <= lease_time <= DAY)
        refuse_unless(kind in ('any', 'incremental', 'full'))
        order = [key_of(g) for g in got]
        taken = set(order)
        if len(taken) < len(order):
            raise Mismatch('a row was handed out twice', None, order)
        full = len(got) == max_rows
        sources = self.sources if source is None else [source]
        hopeless, perhaps, held_back = [], [], 0
        claimable = {}
        for s in sources:
            priority, due = self.lanes(s, taken, kind)
            mine = [k for k in order if k[SOURCE] == s]
            bad = {k for k in priority + due if self.hopeless(self.rows[k])}
            good_p = [k for k in priority if k not in bad]
            good_d = [k for k in due if k not in bad]
            left = {d: self.room(d) - sum(k[:RESOURCE] == d for k in mine)
                    for d in {k[:RESOURCE] for k in self.rows if k[SOURCE] == s}}
            if any(n < 0 for n in left.values()):
                raise Mismatch('more syncs of a domain than may run', None, left)
            waiting = {k for k in good_p + good_d
                       if k not in taken and left[k[:RESOURCE]] > 0}
            claimable[s] = len(mine) + len(waiting)
            held_back += len({*good_p, *good_d} - taken - waiting)
            if bad & taken:
                raise Mismatch('handed out what had to be parked',
                               None, bad & taken)
            stray = set(mine) - set(good_p + good_d)
            if stray:
                raise Mismatch('handed out what was not due', None, stray)
            self.check_order(mine, good_p, good_d, waiting, len(sources) > 1)
            # All rows to be parked were met, or else those at least that
            # lie before one that can only come from the due lane, where
            # requested ones are passed over once the others took their part.
            last = max((due.index(k) for k in mine if k not in priority),
                       default=0)
            for k in bad:
                if left[k[:RESOURCE]] == 0:
                    perhaps.append(k)
                elif not full or k in due[:last] and k not in priority:
                    hopeless.append(k)
                else:
                    perhaps.append(k)
            # All rows not taken although there was room are closed yet; those
            # to be parked tell by whether they were.
            for k, row in self.rows.items():
                if k[SOURCE] != s or k in taken or k in bad \
                        or not self.is_of_kind(row, kind):
                    continue
                opens = self.opens(row)
                if opens is not None and opens[0] <= self.now < opens[1] \
                        and self.hopeless(row):
                    perhaps.append(k)
                elif not full and left[k[:RESOURCE]] > 0:
                    self.expect_closed(row)
        total = sum(claimable.values())
        if len(got) != min(total, max_rows):
            raise Mismatch('number of rows handed out',
                           min(total, max_rows), len(got))
        if source is None and full:
            for s in sources:
                fair = min(claimable[s], max_rows // len(sources))
                mine = sum(1 for k in order if k[SOURCE] == s)
                if mine < fair:
                    raise Mismatch('unfair share of ' + s, fair, mine)
        for g in got:
            key = key_of(g)
            row = self.rows[key]
            opens = self.opens(row)
            if opens[1] > self.now:
                self.learn_open(row, True)
            self.rows[key] = self.started(row, lease_time, g, claim=True)
        return hopeless, perhaps, held_back

    def expect_closed(self, row):
        """The row was not handed out: then it is closed, or left open."""
        opens = self.opens(row)
        if opens is None or opens[0] > self.now:
            return
        if opens[1] <= self.now:
            raise Mismatch('not handed out although due',
                           key_of(row), None)
        self.learn_open(row, False)

    def check_order(self, mine, priority, due, waiting, shared):
        """Requested rows first, in order, then the due ones, in order; none is
        passed over, but where as many of its domain run as may.  While the
        priority lane is full, one in four goes to the due lane.  A batch over
        all sources visits a source up to twice."""
        due = [k for k in due if k not in priority]
        requested = [k for k in priority if k in mine]
        others = [k for k in due if k in mine]
        passed_over = [k for lane in (priority, due) for i, k in enumerate(lane)
                       if k not in mine and any(
                           x in mine and (k in waiting or x[:RESOURCE] == k[:RESOURCE])
                           for x in lane[i:])]
        n, slack = len(mine), int(shared)
        too_many = waiting & {*priority} and len(others) > -(-n // 4) + slack
        too_few = waiting & {*due} and len(others) < n // 4 - slack
        if mine != requested + others or passed_over or too_many or too_few:
            raise Mismatch('order of the rows handed out', {
                'requested': [(k, time_text(self.rows[k]['requested_at']))
                              for k in priority],
                'due': [(k, time_text(self.rows[k]['due_at'])) for k in due],
                'passed over': passed_over}, mine)

    def park_expired(self, key):
        old = self.rows[key]
        row = dict(old, updated_at=self.now)
        self.count_failure(row)
        self.end(row, 'error')
        row['error_message'] = Something()
        self.park(row, 'failures')
        self.tell_row(old, row)
        self.tell_run(old, row, 'lost')
        self.rows[key] = row

    # ------------------------------------------------------------- looks

    def next_sync_due(self, source):
        """(earliest, latest) answer; None = null.  Where there is work now,
        any time that has passed says so."""
        lo = hi = None
        for key, row in self.rows.items():
            if source is None or key[SOURCE] == source:
                opens = self.opens(row)
                if opens is not None and opens[0] <= self.now \
                        and not self.room(key[:RESOURCE]):
                    # whoever looks for it may look again in a second
                    again = self.now + SECOND
                    opens = (again, again) if opens[1] <= self.now else \
                        (self.now + 1, max(opens[1], again))
                if opens is not None:
                    lo = opens[0] if lo is None else min(lo, opens[0])
                    hi = opens[1] if hi is None else min(hi, opens[1])
        if lo is None:
            return None
        return (lo, max(hi, self.now) if lo <= self.now else hi)

    def users_needing(self, source, stale_after, got):
        """Users with a row that a claim would take, and the places that their
        first one may have in the claim (requested ones first, then the oldest
        due): several, where it is not known whether a row is open yet"""
        sure = {}
        perhaps = collections.defaultdict(list)
        for key, row in self.rows.items():
            if key[SOURCE] != source or self.hopeless(row) \
                    or not self.room(key[:RESOURCE]):
                continue
            opens = self.opens(row)
            if opens is None or opens[0] > self.now:
                continue
            if stale_after is not None and row['last_sync_at'] is not None \
                    and row['last_sync_at'] >= self.now - stale_after:
                continue
            place = (0, row['requested_at']) if row['requested_at'] is not None \
                else (1, row['due_at'])
            if opens[1] <= self.now:
                sure[key[USER]] = min(sure.get(key[USER], (2, 0)), place)
            elif key[USER] in got:     # what is not known, the answer says
                perhaps[key[USER]].append(place)
        return {u: sorted(([sure[u]] if u in sure else []) +
                          [p for p in perhaps[u] if p < sure.get(u, (2, 0))])
                for u in {*sure, *perhaps}}

    def is_ahead(self, row):
        """Whether a time lies further ahead than any rule allows"""
        settled = dict(row)
        self.settle_due(settled)
        self.settle_limit(settled)
        return settled != row or (row['requested_at'] or self.now) > self.now \
            or (row['lease_expires_at'] or self.now) > self.now + DAY

    def overview(self):
        out = {}
        now = self.now
        for s in self.sources:
            rows = [r for k, r in self.rows.items() if k[SOURCE] == s]
            o = collections.OrderedDict(source=s, rows=len(rows))
            for status in ('idle', 'syncing', 'error', 'rate_limited'):
                o[status] = sum(r['status'] == status for r in rows)
            # what is not known of the rows, as what it is at least and at most
            ages = [now - t for r in rows for t in (self.opens_alone(r) or ())]
            latest, oldest = (sorted(a for a in x if a >= 0)
                              for x in (ages[1::2], ages[0::2]))
            o['due'] = len(latest), len(oldest)
            o['oldest_due_age'] = (latest[-1] if latest else None,
                                   oldest[-1] if oldest else None)
            o['requested'] = sum(r['requested_at'] is not None for r in rows)
            o['live_leases'] = sum(r['status'] == 'syncing' and
                                   r['lease_expires_at'] > now for r in rows)
            o['expired_leases'] = o['syncing'] - o['live_leases']
            o['failing'] = sum(r['failures'] > 0 for r in rows)
            for reason in REASONS:
                o['parked_' + reason] = sum(r['parked_reason'] == reason
                                            for r in rows)
            o['limited'] = sum((r['limited_until'] or 0) > now for r in rows)
            o['without_cursor'] = sum(
                r['last_successful_sync_at'] is not None
                and r['last_successful_sync_at'] == r['last_full_sync_at']
                and not has_cursor(r) and r['token_losses'] == 0 for r in rows)
            o['paused_until'] = self.overrides.get(s, {}).get('paused_until')
            o['ahead'] = sum(map(self.is_ahead, rows))
            channels = [c for c in self.channels.values() if c['source'] == s]
            for state in ('opening', 'active', 'retiring', 'unsupported'):
                o['channels_' + state] = sum(c['state'] == state for c in channels)
            active = [c for c in channels if c['state'] == 'active']
            o['channels_ending'] = sum((c['expires_at'] or INFINITY) <= now + DAY
                                       for c in active)
            o['channels_silent'] = sum(
                (self.rows.get(key_of(c), {}).get('push_until') or 0) <= now for c in active)
            out[s] = o
        return out

    # ----------------------------------------------------- direct writes

    def insert(self, key, changes):
        """INSERT of a row with some columns: what is missing is filled in."""
        row = self.new_row(key)
        row['limited_until'] = None
        row['updated_at'] = Within(-INFINITY, INFINITY)     # DEFAULT now()
        row.update(changes)
        if row['status'] == 'syncing':
            row.update(last_sync_at=self.now, lease_expires_at=
                       self.now + self.policy(key[SOURCE])['lease_time'])
            name_full_sync(row)
        if has_cursor(row):
            row['token_issued_at'] = self.now
        if row['parked_reason'] is not None:
            row['due_at'] = None
        self.rows[key] = row
        return row

    def write(self, key, changes, got):
        """A direct write: UPDATE, the other half of an upsert, and
        update_sync_state(), which makes a missing row first.

        It is the call that it amounts to.  A column that it changes keeps
        what the client said, every other one becomes what the call makes of
        it."""
        old = self.rows.get(key) or self.new_row(key)
        said = dict(old, **changes)
        given = {c for c in changes if changes[c] != old[c]}
        row = dict(old, sync_interval=said['sync_interval'])
        if old['parked_reason'] is not None and (
                'due_at' in given and 'parked_reason' not in given or
                'parked_reason' in given and said['parked_reason'] is None):
            self.revive(row)
        row, call = self.amounts_to(row, old, said, changes, given, got)
        troubled_at = self.trouble_of_call(old, row, call)
        if old['parked_reason'] is None and (
                'parked_reason' in given or
                'due_at' in given and said['due_at'] is None):
            self.park(row, 'paused')

        row.update({c: said[c] for c in given}, updated_at=self.now)
        if 'items_synced' in changes:
            row['items_synced'] = said['items_synced']
        if row['due_at'] is None and row['parked_reason'] is None:
            row['due_at'] = self.now
        elif row['due_at'] is not None and row['parked_reason'] is not None:
            row['due_at' if 'parked_reason' in given else 'parked_reason'] = None
        if not has_cursor(row):
            if has_cursor(old):
                drop_cursor(row)
            row['token_issued_at'] = None
        elif any(c in given and said[c] is not None for c in CURSOR):
            row['token_issued_at'] = self.now
        if row['status'] != 'syncing':
            self.end(row, row['status'])
        else:
            name_full_sync(row)
        self.tell_row(old, row, completed=call == 'complete', cleared=call == 'clear')
        if troubled_at == self.now:
            row['troubled_at'] = self.now
        is_live = old['status'] == 'syncing' and old['lease_expires_at'] > self.now
        self.tell_run(old, row, {'start': 'revoked' if is_live else 'lost', 'clear': 'revoked'}.get(
            call, self.ENDS.get(call)), changes.get('items_synced', 0),
            is_own=is_live or not old['lease_required'])
        self.rows[key] = row
        return row

    def amounts_to(self, row, old, said, changes, given, got):
        """The row after the call that a direct write amounts to, and that"""
        call = None
        running = old['status'] == 'syncing'
        expired = running and old['lease_expires_at'] <= self.now
        lost = has_cursor(old) and not has_cursor(said)
        status = said['status']
        if status == 'syncing' and (not running or 'status' in changes
                                    and (expired or lost)):
            if not expired:
                row['status'] = 'idle'          # nothing has failed
            old = dict(old, last_sync_at=said['last_sync_at'])
            dead, alive = self.death(old)
            if not dead and not alive:
                rest = [c for c in CURSOR + ('page_token', 'progress_done')
                        if c not in given and old[c] is not None]
                dead = bool(rest) and all(got[c] is None for c in rest)
                if not given & set(CURSOR):
                    self.learn_death(old, dead)
            row = self.start(row, None)
            if dead:
                drop_cursor(row)
            call = 'start'
        elif status == 'idle' and running:
            call = 'complete'
            self.complete(row, dict(
                {c: said[c] for c in CURSOR if c in changes},
                items_synced=said['items_synced']
                if 'items_synced' in changes else 0))
        elif status == 'idle' and old['status'] == 'error' \
                and old['parked_reason'] is None:
            self.revive(row)
        elif status == 'error' and old['status'] != 'error':
            call = 'fail'
            self.fail(row, {'error_message': said['error_message'] or ''})
            row['error_message'] = said['error_message']
        elif status == 'rate_limited' and 'status' in changes:
            call = 'limit'
            self.limit(row, {'scope': 'row'})
        elif lost:
            call = 'clear'
            self.lose_cursor(row, False)
        return row, call

    def forget_user(self, user):
        """And with the rows of a user all that is told of them"""
        for key in [k for k in self.rows if k[USER] == user]:
            self.delete(key)
        self.events = {i: e for i, e in self.events.items() if e['user_id'] != user}
        self.forgotten = user


# The parts of a key.  All rows of an account share the first two, those of a
# quota domain the first three.
USER, ACCOUNT, SOURCE, RESOURCE = range(4)


def key_of(row):
    return row['user_id'], row['account'], row['source'], row['resource']


def hash_of(token):
    """As JSON has it"""
    return '\\x' + hashlib.sha256(token.encode()).hexdigest()


def run_of(run):
    return tuple(run[c] for c in RUN[:5])


def reported_key(report):
    return (report['user_id'], report.get('account', ''), report['source'],
            report.get('resource', ''))


def change_rate(row, mean):
    """Changes per second of a row, as far as is known"""
    a, b = (v.hi if isinstance(v, Within) else v or 0
            for v in (row['changes_seen'], row['seconds_watched']))
    return max(a / b if a >= 1 and b >= 1 else 0, (a + 1) / (b + 1 / mean))


def is_label(text):
    return re.fullmatch('[a-z0-9_]{1,58}', text) is not None


def has_cursor(row):
    return row['sync_token'] is not None or row['history_id'] is not None \
        or row['updated_min'] is not None


def name_full_sync(row):
    if has_cursor(row):
        row['full_sync_id'] = None
    elif row['full_sync_id'] is None:
        row['full_sync_id'] = row['lease']


CURSOR = 'sync_token', 'history_id', 'updated_min'


def drop_cursor(row):
    for c in ('sync_token', 'history_id', 'updated_min', 'token_issued_at',
              'full_sync_id', 'page_token', 'progress_done', 'progress_total'):
        row[c] = None


def cut(message):
    raw = message.encode()
    if len(raw) <= ERROR_MAX:
        return message
    return Something()


# -------------------------------------------------------------- the database

class Session:
    """A connection: of a role, and at its own idea of the model's time."""

    def __init__(self, conninfo, role, claims=None):
        self.role, self.claims = role, claims
        self.pg = pq.PGconn.connect(conninfo.encode())
        if self.pg.status != pq.ConnStatus.OK:
            raise SystemExit(self.pg.error_message.decode())
        self.clock = None
        self.pid = self.pg.backend_pid
        self.must('LISTEN syncstate; LISTEN syncstate_events')
        self.must("SET TimeZone = 'UTC'; SET IntervalStyle = postgres; "
                  "SET client_min_messages = warning")
        self.must('PREPARE row_of(uuid, text, text, text) AS '
                  'SELECT row_to_json(s)::text FROM syncstate.sync_state AS s '
                  'WHERE s.user_id = $1 AND s.account = $2 '
                  'AND s.source::text = $3 AND s.resource = $4')
        self.must('PREPARE rows_of(uuid, text) AS '
                  'SELECT row_to_json(s)::text FROM syncstate.sync_state AS s '
                  'WHERE s.user_id = $1 AND s.account = $2')
        if claims is not None:
            self.must("SET request.jwt.claims = '%s'"
                      % json.dumps({'sub': claims}))
        if role is not None:
            self.must('SET ROLE ' + role)

    def execute(self, sql):
        """(SQLSTATE or None, first column of each row or message)"""
        res = self.pg.exec_(sql.encode())
        if res.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            return None, [res.get_value(i, 0) for i in range(res.ntuples)]
        code = res.error_field(pq.DiagnosticField.SQLSTATE)
        if code is None:
            raise SystemExit('the server is gone: '
                             + self.pg.error_message.decode())
        return code.decode(), res.error_message.decode()

    def must(self, sql):
        code, out = self.execute(sql)
        if code is not None:
            raise SystemExit('%s: %s' % (sql, out))
        return out

    def notified(self):
        """The notifications of this session's own since the last time"""
        out = []
        while True:
            n = self.pg.notifies()
            if n is None:
                return out
            if n.be_pid == self.pid:
                out.append((n.relname.decode(), n.extra.decode()))

    def set_clock(self, now):
        if self.clock != now:
            sql = "SET syncstate.clock = '%s'" % time_text(now)
            if self.role is not None:
                sql = 'RESET ROLE; %s; SET ROLE %s' % (sql, self.role)
            self.must(sql)
            self.clock = now

    def close(self):
        self.pg.finish()


def parse_row(data):
    row = json.loads(data)
    for c in TIMES:
        if c in row:
            row[c] = parse_time(row[c])
    if row.get('sync_interval') is not None:
        row['sync_interval'] = parse_interval(row['sync_interval'])
    return row


def parse_run(data):
    run = json.loads(data)
    for c in 'started_at', 'ended_at':
        run[c] = parse_time(run[c])
    return run


# ----------------------------------------------------------------- histories

# Few users, so that what holds for an account meets other rows of it.
USERS = ['00000000-0000-4000-8000-%012x' % i for i in range(1, 5)]
ACCOUNTS = ['', 'ada@work', 'é' * 127 + '1']
RESOURCES = ['', 'a', 'b', 'Ä b']
WORKERS = ['worker1', 'worker2', 'admin']
# The first is always there: Google's share their provider, and it has its own.
EXTRA_SOURCES = ['outlook_mail', 'a0_notes']
TOKENS = ['s', 'secret', 'ü']

Call = collections.namedtuple('Call', 'who name args now')


class Runner:
    """Makes a history, or repeats one, and compares each step."""

    def __init__(self, conninfo, seed):
        self.conninfo = conninfo
        self.rnd = random.Random(seed)
        self.sessions = {}
        self.refused = collections.Counter()
        self.facts = collections.Counter()
        self.reset()

    def reset(self):
        """A clean slate, for each history that is run"""
        root = Session(self.conninfo, None)
        root.must('DELETE FROM syncstate.sync_state; '
                  'DELETE FROM syncstate.sync_event; '
                  'DELETE FROM syncstate.sync_run; '
                  'DELETE FROM syncstate.sync_channel; '
                  'DELETE FROM syncstate.sync_policy; '
                  'DELETE FROM syncstate.sync_budget; '
                  'DROP TABLE IF EXISTS regress_model_users; '
                  'CREATE TABLE regress_model_users (id uuid PRIMARY KEY); '
                  "SELECT syncstate.watch_users('regress_model_users')")
        for role, grant in (('regress_model_worker', 'grant_worker'),
                            ('regress_model_user', 'grant_user')):
            if not root.must("SELECT 1 FROM pg_roles WHERE rolname = '%s'" % role):
                root.must('CREATE ROLE ' + role)
            root.must("SELECT syncstate.%s('%s')" % (grant, role))
        root.must('GRANT EXECUTE ON FUNCTION syncstate.receive_push TO regress_model_user')
        root.must("SELECT syncstate.register_sync_source('%s')" % EXTRA_SOURCES[0])
        self.model = Model()
        self.model.sources = [x.decode() for x in root.must(
            'SELECT unnest(enum_range(NULL::syncstate.sync_source))::text')]
        self.model.now = 1_700_000_000 * SECOND
        self.model.rows = {}
        self.sessions['admin'] = root
        self.owner = None       # who has a transaction open
        self.saved = []         # (savepoint or None, the model's state)
        self.log = []
        self.step = 0

    def finish(self):
        """Ends what is open, and looks at everything once more."""
        if self.owner is not None:
            self.play(Call(self.owner, 'commit', {}, self.model.now))
        self.compare_all()

    def close(self):
        for s in self.sessions.values():
            s.close()
        self.sessions = {}

    def session(self, who):
        s = self.sessions.get(who)
        if s is None:
            if who.startswith('user'):
                s = Session(self.conninfo, 'regress_model_user',
                            USERS[int(who[4:])])
            else:
                s = Session(self.conninfo, 'regress_model_worker')
            self.sessions[who] = s
        return s

    # ------------------------------------------------------ making it up

    def invent(self):
        """The next call, by chance, with an eye on the model's state."""
        r, m = self.rnd, self.model
        now = self.invent_time()
        who = self.owner or r.choice(WORKERS)
        if self.owner is not None and r.random() < 0.25:
            return Call(who, r.choice(['commit', 'commit', 'rollback', 'savepoint',
                                       'savepoint', 'rollback to', 'release']),
                        {}, now)
        if self.owner is None and r.random() < 0.04:
            return Call(who, 'begin', {}, now)
        name = r.choices(NAMES, WEIGHTS)[0]
        if self.owner is not None and name in NOT_INSIDE:
            name = 'claim'
        return Call(who, name, getattr(self, 'invent_' + name)(), now)

    def invent_time(self):
        r, m = self.rnd, self.model
        x = r.random()
        self.focus = None
        if x < 0.5:
            return m.now
        if x < 0.65:
            return m.now + r.randrange(3 * SECOND)
        if x < 0.80:
            return m.now + r.randrange(5 * MINUTE)
        if x < 0.85:
            return m.now + r.randrange(2 * HOUR)
        if x < 0.857:
            return m.now + r.randrange(9 * DAY)
        if x < 0.862:
            return m.now - r.randrange(3 * SECOND)
        # to where something is about to happen, give or take the least
        row = self.some_row()
        if row is None:
            return m.now
        t = r.choice([row['due_at'], row['lease_expires_at'],
                      row['requested_at'], row['limited_until'], row['push_until'],
                      m.policy(row['source'])['paused_until']])
        channel = self.some_channel()
        if channel is not None and r.random() < 0.25:
            row = channel
            t = r.choice([row['renew_at'], row['expires_at'], row['lease_expires_at'],
                          (row['last_push_at'] or -HEARD_EVERY) + HEARD_EVERY])
        if t is None or t == INFINITY or not m.now <= t <= m.now + 2 * DAY:
            return m.now
        self.focus = key_of(row)    # something is about to happen to this one
        return max(m.now, t + r.choice([-1, 0, 0, 1]))

    def some_row(self, *statuses):
        rows = [x for x in self.model.rows.values()
                if not statuses or x['status'] in statuses]
        return self.rnd.choice(rows) if rows else None

    def some_channel(self, condition=lambda c: True):
        channels = [c for c in self.model.channels.values() if condition(c)]
        return self.rnd.choice(channels) if channels else None

    def some_key(self, *statuses):
        """A row's key, mostly; else any"""
        row = None
        x = self.rnd.random()
        if self.focus is not None and x < 0.6:
            return self.focus
        if x < 0.75:
            row = self.some_row(*statuses)
        if row is None and x < 0.9:
            row = self.some_row()
        if row is not None:
            return key_of(row)
        return self.any_key()

    def any_key(self):
        beside = [k for k, row in self.model.rows.items()
                  if row['limited_until'] is not None] or list(self.model.rows)
        if beside and self.rnd.random() < 0.5:
            return (*self.rnd.choice(beside)[:RESOURCE], self.rnd.choice(RESOURCES))
        return (self.rnd.choice(USERS), self.rnd.choices(ACCOUNTS, [4, 3, 1])[0],
                self.rnd.choice(self.model.sources), self.rnd.choice(RESOURCES))

    def some_lease(self):
        # relative to the row's, so that a shortened history still means it
        return self.rnd.choices(['none', 0, -1, 1], [25, 65, 8, 2])[0]

    def invent_claim(self):
        r = self.rnd
        a = {}
        if r.random() < 0.8:
            a['source'] = r.choice(self.model.sources)
        a['max_rows'] = r.choice([1, 1, 2, 3, 4, 5, 7, 10, 100, 10000])
        if r.random() < 0.03:
            a['max_rows'] = r.choice([0, -1, 10001, None])
        if r.random() < 0.2:
            a['lease_time'] = r.choice([SECOND, 30 * SECOND, HOUR, DAY])
            if r.random() < 0.05:
                a['lease_time'] = r.choice([0, SECOND - 1, DAY + 1, -SECOND])
        if r.random() < 0.25:
            a['kind'] = r.choice(['any', 'incremental', 'incremental', 'full', 'full'])
            if r.random() < 0.02:
                a['kind'] = r.choice(['', 'FULL', None])
        return a

    def invent_start(self):
        a = {'key': self.some_key()}
        if self.rnd.random() < 0.3:
            a['lease_time'] = self.rnd.choice([SECOND, 5 * MINUTE, DAY, DAY + 1])
        return a

    def report_args(self, name, a):
        r = self.rnd
        if name == 'complete':
            if r.random() < 0.7:
                a['items_synced'] = r.choice([0, 1, 7, 10 ** 12])
            if r.random() < 0.02:
                a['items_synced'] = -1
            if r.random() < 0.6:
                a['sync_token'] = r.choice(['t1', 't2', 'tok' + str(r.random()), ''])
            if r.random() < 0.5:
                a['history_id'] = r.choice(
                    ['1', '007', '', '0', '18446744073709551615', '00']
                    + [str(r.randrange(10 ** r.randrange(1, 19))) for _ in range(9)])
                if r.random() < 0.02:
                    a['history_id'] = r.choice(['x', '-1', '1.5', '18446744073709551616'])
            if r.random() < 0.4:
                a['updated_min'] = self.model.now - r.randrange(3 * DAY)
        elif name == 'fail':
            a['error_message'] = r.choice(['broken', '', 'x' * 8192, 'y' * 8193,
                                           'boom', 'no', "it's"])
            if r.random() < 0.02:
                a['error_message'] = None
            if r.random() < 0.35:
                a['kind'] = r.choices(['transient', 'permanent', 'auth', 'odd'],
                                      [4, 5, 5, 1])[0]
            if r.random() < 0.2:
                a['scope'] = r.choices(['row', 'account', 'source'], [10, 5, 1])[0]
        elif name == 'limit':
            if r.random() < 0.6:
                a['retry_after'] = r.choice([SECOND, 90 * SECOND, HOUR, 0, -HOUR,
                                             31 * DAY, 2 * DAY])
                if a['retry_after'] > HOUR and r.random() < 0.7:
                    a['retry_after'] = 10 * SECOND
            if r.random() < 0.5:
                a['scope'] = r.choices(['row', 'account', 'source', 'user'],
                                       [10, 5, 3, 1])[0]
        return a

    def invent_complete(self):
        return self.report_args('complete', {'key': self.some_key('syncing'),
                                             'lease': self.some_lease()})

    def invent_fail(self):
        return self.report_args('fail', {'key': self.some_key('syncing'),
                                         'lease': self.some_lease()})

    def invent_limit(self):
        return self.report_args('limit', {'key': self.some_key('syncing'),
                                          'lease': self.some_lease()})

    def invent_clear(self):
        return {'key': self.some_key('syncing'), 'lease': self.some_lease()}

    def invent_clear_again(self):
        """Losses in a row are rare by chance"""
        rows = sorted((x for x in self.model.rows.values()
                       if x['token_losses'] > 0),
                      key=lambda x: x['token_losses'])
        row = self.rnd.choice(rows[-2:]) if rows else None
        return {'key': key_of(row) if row else self.some_key(),
                'lease': self.rnd.choice(['none', 'none', 0])}

    def invent_renew(self):
        a = {'key': self.some_key('syncing'),
             'lease': self.rnd.choice([0, 0, 0, 0, -1, 1, 'none'])}
        if self.rnd.random() < 0.4:
            a['lease_time'] = self.rnd.choice([SECOND, HOUR, DAY, 0])
        return a

    def invent_checkpoint(self):
        r = self.rnd
        a = {'key': self.some_key('syncing'),
             'lease': r.choice([0, 0, 0, 0, 0, -1, 'none'])}
        for c, values in (('page_token', ['p1', 'p2', 'p3']),
                          ('progress_done', [0, 1, 50, 10 ** 15]),
                          ('progress_total', [0, 100, 10 ** 15])):
            if r.random() < 0.6:
                a[c] = r.choice(values)
        if r.random() < 0.03:
            a['progress_done'] = -1
        return a

    def invent_release(self):
        a = {'key': self.some_key('syncing'),
             'lease': self.rnd.choice([0, 0, 0, 0, -1, 1, 'none'])}
        if self.rnd.random() < 0.5:
            a['delay'] = self.rnd.choice([0, 1, MINUTE, HOUR, DAY, DAY + 1, -1])
        return a

    def invent_batch(self):
        r = self.rnd
        reports = []
        for _ in range(r.randrange(7)):
            outcome = r.choice(['completed', 'completed', 'failed',
                                'rate_limited', 'released'])
            key = self.some_key('syncing')
            a = self.report_args({'completed': 'complete', 'failed': 'fail',
                                  'rate_limited': 'limit'}.get(outcome), {})
            if a.get('scope') == 'source' and r.random() < 0.7:
                del a['scope']
            a.update(user_id=key[USER], source=key[SOURCE], outcome=outcome,
                     lease=r.choice([0, 0, 0, 0, 0, 0, -1, 1]))
            for name, part in (('account', key[ACCOUNT]),
                               ('resource', key[RESOURCE])):
                if part or r.random() < 0.5:
                    a[name] = part
            if outcome == 'released' and r.random() < 0.5:
                a['delay'] = r.choice([0, 1, MINUTE, HOUR, DAY])
            reports.append(a)
            if r.random() < 0.1:
                reports.append(dict(a))
        if r.random() < 0.02 and reports:
            reports[-1]['lease'] = 'none'
        return {'reports': reports}

    def invent_update(self):
        r = self.rnd
        changes = {}
        for _ in range(r.choice([0, 1, 1, 1, 1, 2, 2, 3])):
            c = r.choice(['status', 'status', 'sync_token', 'history_id',
                          'cursor', 'sync_interval', 'sync_interval', 'items_synced',
                          'page_token', 'error_message', 'park', 'due_at',
                          'token_losses', 'progress_done', 'limited_until'])
            if c == 'cursor':
                changes.update(sync_token=None, history_id=None, updated_min=None)
            elif c == 'park':
                changes['parked_reason'] = r.choice(['paused', 'auth', 'gone', None])
            else:
                changes[c] = r.choice({
                    'status': ['syncing', 'syncing', 'idle', 'error', 'rate_limited'],
                    'sync_token': ['u1', 'u2', None],
                    'history_id': ['5', '77777', None],
                    'sync_interval': [5 * MINUTE, HOUR, DAY, 30 * DAY, None],
                    'items_synced': [0, 3],
                    'page_token': ['q1', None],
                    'error_message': ['odd', None],
                    'due_at': [self.model.now + r.randrange(-HOUR, 2 * HOUR)],
                    'token_losses': [0, 2, 8, 9],
                    'progress_done': [4, None],
                    'limited_until': [self.model.now + r.randrange(-HOUR, HOUR), None],
                }[c])
        if 'parked_reason' in changes and 'due_at' in changes:
            del changes['due_at']
        return {'key': self.some_key(), 'changes': changes}

    def invent_upsert(self):
        while True:
            a = self.invent_update()
            if a['changes']:
                return a

    def invent_policy(self):
        r = self.rnd
        changes = {}
        for _ in range(r.choice([1, 1, 2, 4])):
            k = r.choice(SETTINGS[:-2])
            changes[k] = r.choice({
                'sync_interval': [MINUTE, 15 * MINUTE, 6 * HOUR, DAY, 20 * DAY],
                'lease_time': [SECOND, MINUTE, HOUR, DAY],
                'retry_base': [SECOND, 10 * SECOND, HOUR],
                'retry_cap': [SECOND, MINUTE, HOUR, DAY],
                'rate_limit_wait': [SECOND, MINUTE, HOUR, 30 * DAY],
                'max_failures': [1, 2, 3, 1000],
                'park_after': [SECOND, HOUR, 7 * DAY],
                'token_ttl': [MINUTE, HOUR, DAY, 7 * DAY, 30 * DAY],
                'token_ttl_from': ['token', 'full'],
                'daily_budget': [1, 100, 1000, 10000, 100000],
                'min_interval': [SECOND, MINUTE, HOUR, DAY],
                'max_interval': [MINUTE, HOUR, DAY, 30 * DAY],
                'request_gap': [0, SECOND, MINUTE, DAY],
                'auth_failures': [1, 2, 3, 1000],
                'resync_spread': [0, MINUTE, HOUR, DAY],
                'max_vanished': [0, 0.5, 1],
                'provider': ['google', 'other', 'outlook_mail'],
                'keep_runs': ['failures', 'all', 'all', 'all', 'none'],
                'keep_runs_for': [SECOND, MINUTE, HOUR, DAY],
                'push_renew_before': [MINUTE, HOUR, DAY],
                'push_interval': [SECOND, HOUR, 6 * HOUR, 2 * DAY],
                'push_silence': [SECOND, MINUTE, HOUR, DAY],
                'max_in_flight': [1, 1, 2, 3, 1000],
                'jitter': [0, 0.05, 0.1, 0.5, 0.9]}[k] + [None])
        if r.random() < 0.02:
            changes.update(r.choice([{'jitter': 0.95}, {'max_in_flight': 0},
                                     {'provider': ''}, {'provider': 'Google'},
                                     {'keep_runs': 'some'}]))
        return {'source': r.choice(self.model.sources), 'changes': changes}

    def invent_push_policy(self):
        r = self.rnd
        return {'source': r.choice(self.model.sources), 'changes': {
            'push_renew_before': r.choice([MINUTE, HOUR, HOUR, DAY, None])}}

    def invent_channels(self):
        r = self.rnd
        a = {'max_rows': 10000}
        if r.random() < 0.8:
            a.update(source=r.choice(self.model.sources),
                     max_rows=r.choice([1, 1, 2, 3, 5, 10000]))
        if r.random() < 0.03:
            a['max_rows'] = r.choice([0, -1, 10001, None])
        if r.random() < 0.3:
            a['lease_time'] = r.choice([SECOND, MINUTE, HOUR, DAY, DAY + 1])
        return a

    def invent_channel(self, condition=lambda c: True):
        """Which channel a report is about: its row's own, or one to be stopped"""
        channel = self.some_channel(lambda c: c['lease_expires_at'] is not None
                                    and condition(c))
        if channel is None or self.rnd.random() < 0.08:
            channel = self.some_channel()
        a = {'key': key_of(channel) if channel else self.some_key(), 'of': None,
             'lease': self.rnd.choices([0, -1, 1], [18, 2, 1])[0]}
        if channel and channel['state'] == 'retiring':
            a['of'] = channel['channel_id']
        return a

    def invent_channel_opened(self):
        r, m = self.rnd, self.model
        a = self.invent_channel(lambda c: c['state'] != 'retiring')
        a.update(channel_id='channel %d' % r.randrange(10 ** 9), token=r.choice(TOKENS),
                 expires_at=r.choice([None, m.now + SECOND, m.now + 10 * MINUTE,
                                      m.now + 3 * HOUR, m.now + 2 * DAY, m.now + 7 * DAY]))
        x = r.random()
        known = self.some_channel(lambda c: c['channel_id'] is not None and (
            x < 0.05 or key_of(c) == a['key']))
        if x < 0.25 and known is not None:
            a['channel_id'] = known['channel_id']
        elif x > 0.97:
            a.update(r.choice([{'channel_id': ''}, {'channel_id': None}, {'token': None}, {'token': ''},
                               {'channel_id': 'x' * 1025}, {'expires_at': m.now}, {'expires_at': m.now - DAY}]))
        if r.random() < 0.5:
            a['provider_ref'] = r.choice(['', 'ref', 'x' * 8192, 'x' * 8193])
        return a

    def invent_channel_failed(self):
        a = self.invent_channel()
        a['error_message'] = self.rnd.choice(['no', '', 'y' * 8193])
        if self.rnd.random() < 0.02:
            a['error_message'] = None
        if self.rnd.random() < 0.6:
            a['kind'] = self.rnd.choices(['transient', 'unsupported', 'auth', 'permanent'], [6, 8, 2, 1])[0]
        return a

    def invent_channel_stopped(self):
        return self.invent_channel(lambda c: c['state'] == 'retiring')

    def invent_push(self):
        r = self.rnd
        channel = self.some_channel(lambda c: c['channel_id'] is not None)
        a = {'channel_id': channel['channel_id'] if channel else 'unknown', 'number': None,
             'token': r.choices(['right', 'other', None], [10, 2, 1])[0]}
        if r.random() < 0.03:
            a['channel_id'] = r.choice([None, '', 'unknown'])
        if r.random() < 0.6:
            a['number'] = r.choice([-1, 0, 1, 1, 1, 2, 10 ** 15])
        return a

    def invent_user_push(self):
        return dict(self.invent_push(), user=self.rnd.randrange(len(USERS)))

    def invent_take(self):
        return {'max_rows': self.rnd.choice([1, 2, 5, 20, 100, 10000, None])
                if self.rnd.random() < 0.95 else self.rnd.choice([0, -1, 10001])}

    def invent_rebalance(self):
        return {'source': self.rnd.choice(self.model.sources + [None])}

    def invent_resync(self):
        a = {'source': self.rnd.choice(self.model.sources)}
        if self.rnd.random() < 0.7:
            a['spread'] = self.rnd.choice([0, MINUTE, HOUR, DAY, 30 * DAY, -1])
        return a

    def invent_revive(self):
        r = self.rnd
        a = {'source': r.choice(self.model.sources)}
        if r.random() < 0.6:
            a['reason'] = r.choice(REASONS + ('none',))
        if r.random() < 0.6:
            a['spread'] = r.choice([0, SECOND, HOUR, DAY, DAY + 1])
        if r.random() < 0.6:
            a['max_rows'] = r.choice([1, 2, 3, 10000, 0])
        return a

    def invent_sweep(self):
        r = self.rnd
        a = {'key': self.some_key('syncing'),
             'lease': r.choice([0, 0, 0, 0, 0, -1, 'none']),
             'vanished': r.choice([0, 10, 11, 50, 100]), 'total': r.choice([10, 100, 200])}
        if r.random() < 0.2:
            a['force'] = True
        return a

    def invent_pause_source(self):
        r = self.rnd
        a = {'source': r.choice(self.model.sources)}
        x = r.random()
        if x < 0.75:
            a['until'] = self.model.now + r.choice([-MINUTE, SECOND, MINUTE, HOUR])
        elif x < 0.78:
            a['until'] = None
        return a

    def invent_resume_source(self):
        paused = [s for s, o in self.model.overrides.items()
                  if o.get('paused_until') is not None]
        return {'source': self.rnd.choice(paused or self.model.sources)}

    def invent_key_only(self):
        return {'key': self.some_key()}

    invent_request = invent_connect = invent_disconnect = invent_pause = \
        invent_resume = invent_get = invent_user_forbidden = \
        invent_key_change = invent_key_only

    def invent_user_request(self):
        return {'key': self.some_key(), 'user': self.rnd.randrange(len(USERS))}

    def invent_account(self):
        r = self.rnd
        key = self.some_key()
        a = {'user_id': key[USER]}
        if key[ACCOUNT] or r.random() < 0.5:
            a['account'] = key[ACCOUNT]
        if r.random() < 0.5:
            a['provider'] = r.choice(['google', 'google', 'google', 'outlook_mail',
                                      'outlook_mail', 'other', ''])
        return a

    invent_connect_account = invent_pause_account = invent_resume_account = \
        invent_disconnect_account = invent_request_account = invent_account

    def invent_user_request_account(self):
        return dict(self.invent_account(), user=self.rnd.randrange(len(USERS)))

    def invent_set_resources(self):
        r = self.rnd
        a = {'domain': self.some_key()[:RESOURCE],
             'resources': r.choices(RESOURCES, k=r.randrange(6))}
        if r.random() < 0.05:
            a['resources'] = r.choice([None, ['a', None], ['x' * 1024], ['b', 'x' * 1025]])
        elif r.random() < 0.05:
            a['times'] = r.choice([2000, 2001, 5000])
        return a

    def invent_my_syncs(self):
        return {'user': self.rnd.randrange(len(USERS))}

    def invent_get_all(self):
        return {'user': self.rnd.randrange(len(USERS))}

    invent_forget = invent_get_all

    def invent_users(self):
        r = self.rnd
        a = {'source': r.choice(self.model.sources)}
        if r.random() < 0.5:
            a['stale_after'] = r.choice([SECOND, MINUTE, HOUR, DAY])
        if r.random() < 0.5:
            a['max_rows'] = r.choice([1, 2, 3, 10000, 0])
        return a

    def invent_next(self):
        return {'source': self.rnd.choice(self.model.sources + [None])}

    def invent_overview(self):
        return {}

    def invent_get_policy(self):
        return {'source': self.rnd.choice(self.model.sources)}

    def invent_register(self):
        return {'label': self.rnd.choice(EXTRA_SOURCES + ['google_tasks', 'Bad'])}

    def invent_reconnect(self):
        return {}

    # ---------------------------------------------------------- doing it

    def play(self, call):
        """Makes one call in the database and in the model."""
        self.model.now = call.now
        self.step += 1
        if self.owner is not None:
            # As in a history made shorter: others would wait for its locks.
            call = call._replace(who=self.owner)
            if call.name in NOT_INSIDE:
                return
        self.log.append(call)
        self.model.begin()
        getattr(self, 'do_' + call.name.replace(' ', '_'))(call)
        self.compare_news()
        if self.owner is None:
            self.check_announced()
        if self.owner is None and self.step % 40 == 0:
            self.compare_all()

    def check_announced(self):
        """Each source with new requests once per transaction, at its end"""
        heard = [n for s in self.sessions.values() for n in s.notified()]
        got = [n for channel, n in heard if channel == 'syncstate']
        events = [n for channel, n in heard if channel == 'syncstate_events']
        if events != [''] * self.model.tells:
            raise Mismatch('notifications of events', self.model.tells, events)
        self.facts['notifications of events'] += len(events)
        self.model.tells = False
        want, perhaps = self.model.announced, self.model.perhaps
        if len(set(got)) < len(got) or not want <= set(got) <= want | perhaps:
            raise Mismatch('notifications', (want, perhaps), got)
        self.facts['notifications'] += len(got)
        self.model.announced = self.model.perhaps = frozenset()

    def compare_news(self):
        """The events and the runs that the call made, and that there are no
        others"""
        m = self.model
        session = self.sessions['admin'] if self.owner is None else \
            self.session(self.owner)
        n = tuple(map(int, session.must(
            'SELECT count(*) FROM syncstate.sync_event '
            'UNION ALL SELECT count(*) FROM syncstate.sync_run')))
        if n != (len(m.events), len(m.runs)) or m.told or m.ended or m.forgotten:
            self.compare_events(session)
            self.compare_runs(session)

    def compare_events(self, session):
        m = self.model
        got = {}
        for x in session.must('SELECT row_to_json(e)::text FROM syncstate.sync_event AS e'):
            e = json.loads(x)
            e['at'] = parse_time(e['at'])
            if e['event'] == 'source_limited':
                e['detail'] = parse_time(e['detail'])
            got[e.pop('id')] = e
        kept, perhaps = m.events_after()
        want = {told_of(e): e for e in m.told}
        new = {told_of(e): e for i, e in got.items() if i not in m.events}
        known = {i: e for i, e in got.items() if i in m.events}
        if want.keys() != new.keys() or len(new) + len(known) != len(got):
            raise Mismatch('events', list(want.values()), list(new.values()))
        for i, e in want.items():
            self.same_row(e, new[i], 'event ' + e['event'], EVENT)
            self.facts['events ' + ' '.join(filter(None, (e['event'], e['reason'])))] += 1
        if not kept.keys() <= known.keys() <= perhaps.keys() \
                or any(e != m.events[i] for i, e in known.items()):
            raise Mismatch('events that there were', list(kept.values()), list(known.values()))
        self.facts['events too old'] += len(m.events) - len(known)
        m.events, m.told = got, []

    def compare_runs(self, session):
        m = self.model
        got = {}
        for x in session.must('SELECT row_to_json(r)::text FROM syncstate.sync_run AS r'):
            r = parse_run(x)
            got[run_of(r)] = r
        kept, perhaps = m.runs_after()
        if m.forgotten is not None:
            kept, perhaps = ({i: r for i, r in x.items() if i[USER] != m.forgotten}
                             for x in (kept, perhaps))
        if not kept.keys() <= got.keys() <= perhaps.keys():
            raise Mismatch('runs', [(r, r['outcome']) for r in kept.values() if run_of(r) not in got],
                           [r for i, r in got.items() if i not in perhaps])
        for i, r in got.items():
            self.same_row(perhaps[i], r, 'run ' + perhaps[i]['outcome'], RUN)
        for r in m.ended:
            self.facts['runs ' + r['outcome']] += 1
        if m.forgotten is None:
            self.facts['runs too old'] += len(m.runs.keys() - got.keys())
        m.runs, m.ended, m.forgotten = got, [], None

    def read_channels(self, session):
        return {c['id']: c for c in map(parse_row, session.must(
            'SELECT row_to_json(c)::text FROM syncstate.sync_channel AS c'))}

    def compare_channels(self, session):
        """Every push channel; those that the call made are known by what they are."""
        m = self.model
        got = self.read_channels(session)
        want = dict(m.channels)
        for i, c in got.items():
            if i not in want:
                name = next((n for n, w in want.items() if isinstance(n, tuple)
                             and key_of(w) == key_of(c) and w['channel_id'] == c['channel_id']
                             and w['state'] == c['state']), None)
                if name is not None:
                    want[i] = want.pop(name)
        if want.keys() != got.keys():
            raise Mismatch('channels', [c for i, c in want.items() if i not in got],
                           [c for i, c in got.items() if i not in want])
        for i, c in got.items():
            self.same_row(want[i], c, 'channel', CHANNEL)
        m.channels = got

    def do_channels(self, call):
        session = self.session(call.who)
        a = call.args
        out = self.call(session, 'SELECT row_to_json(c)::text FROM '
                        'syncstate.claim_push_channels(%s) AS c' % arguments(None, a))
        got = [parse_row(x) for x in out or ()]
        after = self.read_channels(session) if out is not None else {}
        self.settle(session, lambda: self.model.claim_push_channels(
            a.get('source'), a['max_rows'], a.get('lease_time'), got, after) or True)
        if self.owner is None or self.code is None:
            self.compare_channels(session)
        for g in got:
            self.facts['channels claimed to ' + g['action']] += 1

    def do_report_of_channel(self, call):
        session = self.session(call.who)
        key = call.args['key']
        a = {k: v for k, v in call.args.items() if k not in ('key', 'of')}
        held = next((c for c in self.model.channels.values() if key_of(c) == key and (
            c['state'] != 'retiring' if call.args['of'] is None
            else c['channel_id'] == call.args['of'])), None)
        a['lease'] += held['lease'] if held else 1
        function = 'mark_' + call.name
        out = self.call(session, 'SELECT row_to_json(c)::text FROM syncstate.%s(%s) AS c'
                        % (function, arguments(key, a)))
        got = parse_row(out[0]) if out else None
        lost = a['lease'] is not None and self.model.held_channel(key, a['lease']) is None
        want = self.settle(session, lambda: getattr(self.model, function)(key, a))
        if want is not None:
            self.same_row(want if isinstance(want, dict) else self.model.channels[want],
                          got, 'returned channel', CHANNEL)
            self.facts['%s, %s' % (call.name, got['state'])] += 1
            self.facts['channels opened without the lease'] += lost
        if self.owner is None or self.code is None:
            self.compare_channels(session)
            self.compare_account(session, *key[:SOURCE])

    do_channel_opened = do_channel_failed = do_channel_stopped = do_report_of_channel

    def do_push(self, call):
        a = call.args
        session = self.session('user%d' % a['user'] if 'user' in a else call.who)
        i = self.model.channel_named(a['channel_id'])
        channel = self.model.channels[i] if i is not None else None
        token = a['token']
        if token == 'right':
            token = next((t for t in TOKENS if channel and hash_of(t) == channel['token_hash']), 's')
        number = a['number']
        if number is not None and channel and channel['message_number'] is not None and number >= 0:
            number = min(channel['message_number'] + number - 1, 2 ** 62)
        out = self.call(session, 'SELECT syncstate.receive_push(%s, %s, %s)'
                        % (literal(a['channel_id']), literal(token), literal(number)))
        want = self.settle(session, lambda: self.model.receive_push(
            a['channel_id'], token, number))
        if (out[0] == b't') != want:
            raise Mismatch('receive_push', want, out[0])
        self.facts['pushes taken' if want else 'pushes refused'] += 1
        if session.role == 'regress_model_user':
            session = self.sessions['admin']
        self.compare_channels(session)
        if channel is not None:
            self.compare_table(session, key_of(channel))

    do_user_push = do_push

    def do_take(self, call):
        session = self.session(call.who)
        max_rows = call.args['max_rows']
        out = self.call(session, 'SELECT row_to_json(e)::text FROM '
                        'syncstate.take_sync_events(%s) AS e' % literal(max_rows))
        known = self.model.events
        want = self.settle(session, lambda: self.model.take_sync_events(max_rows))
        if want is not None:
            got = [json.loads(x)['id'] for x in out]
            if got != want:
                raise Mismatch('events taken', [known[i] for i in want], list(map(known.get, got)))
            self.facts['events taken'] += len(got)

    def call(self, session, sql):
        """Executes; None instead of rows if the call was refused."""
        session.set_clock(self.model.now)
        self.sql = sql
        code, out = session.execute(sql)
        self.code, self.message = code, out if code is not None else None
        return None if code is not None else out

    def settle(self, session, expect):
        """Runs the model's side; they must agree on whether it fails."""
        saved = self.model.save() if self.code is not None else None
        try:
            expected = expect()
            refused = None
        except Refused as e:
            refused = e.sqlstate
        if refused != self.code:
            raise Mismatch('SQLSTATE', refused, '%s %s' % (
                self.code, self.message or ''))
        if refused is not None:
            self.refused[refused] += 1
            self.model.restore(saved)
            if self.owner is not None:
                self.undo(session)
            return None
        return expected

    def undo(self, session):
        """After an error: back to the last savepoint, or to the start."""
        name, state = self.saved[-1]
        self.model.restore(state)
        if name is not None:
            session.must('ROLLBACK TO SAVEPOINT ' + name)
        else:
            session.must('ROLLBACK')
            self.owner = None
            self.saved = []
        session.clock = None

    def compare_row(self, key, got, what='row'):
        """The model's row against the database's, which it then becomes."""
        want = self.model.rows.get(key)
        if want is None or got is None:
            if want is not None or got is not None:
                raise Mismatch(what + ': there or not', want, got)
            return
        self.model.greatest[key] = got['lease']
        self.same_row(want, got, what)
        self.model.rows[key] = got

    def same_row(self, want, got, what, columns=COLUMNS):
        if want == got:
            return
        wrong = {}
        learn = []
        for c in columns:
            w, g = want[c], got[c]
            if w is not g and w != g:
                if isinstance(w, Within):
                    if g is not None and w.lo <= g <= w.hi:
                        if w.learn is not None:
                            learn.append((w.learn, g))
                        continue
                elif isinstance(w, Something):
                    if g:
                        continue
                wrong[c] = w, g
        if wrong:
            raise Mismatch('%s: %s' % (what, ', '.join(wrong)),
                           {c: nice(c, w) for c, (w, g) in wrong.items()},
                           {c: nice(c, g) for c, (w, g) in wrong.items()})
        for f, g in learn:
            f(g)

    def table_row(self, session, key):
        if session.role == 'regress_model_user':
            session = self.sessions['admin']
        out = session.must("EXECUTE row_of('%s', '%s', '%s', '%s')" % key)
        return parse_row(out[0]) if out else None

    def compare_table(self, session, key):
        self.compare_row(key, self.table_row(session, key), 'table')

    def compare_account(self, session, user, account):
        if session.role == 'regress_model_user':
            session = self.sessions['admin']
        rows = [parse_row(x) for x in session.must(
            "EXECUTE rows_of('%s', '%s')" % (user, account))]
        got = {key_of(row): row for row in rows}
        for key in {*got, *self.model.keys_of(user, account)}:
            self.compare_row(key, got.get(key), 'table')

    def compare_all(self):
        """Every row and every policy, as another session sees them."""
        root = self.sessions['admin']
        got = {}
        for data in root.must('SELECT row_to_json(s)::text '
                              'FROM syncstate.sync_state AS s'):
            row = parse_row(data)
            got[key_of(row)] = row
        for key in set(got) | set(self.model.rows):
            self.compare_row(key, got.get(key), 'table as a whole')
        got = {}
        for data in root.must('SELECT row_to_json(p)::text '
                              'FROM syncstate.sync_policy AS p'):
            p = parse_policy(data)
            source = p.pop('source')
            got[source] = {k: v for k, v in p.items() if v is not None}
        want = {s: {k: v for k, v in o.items() if v is not None}
                for s, o in self.model.overrides.items()}
        got = {s: o for s, o in got.items() if o}
        want = {s: o for s, o in want.items() if o}
        if got != want:
            raise Mismatch('sync_policy', want, got)
        self.compare_plans(root)
        self.compare_channels(root)
        self.compare_events(root)
        self.compare_runs(root)

    def resolve(self, key, args):
        """The arguments with the lease as a number"""
        args = {k: v for k, v in args.items() if k != 'key'}
        if args.get('lease') == 'none':
            del args['lease']
        elif 'lease' in args:
            row = self.model.rows.get(key)
            args['lease'] += row['lease'] if row else 1
        return args

    ORDINARY = {
        'complete': 'mark_sync_completed', 'fail': 'mark_sync_failed',
        'limit': 'mark_rate_limited', 'clear': 'clear_sync_token',
        'clear_again': 'clear_sync_token', 'renew': 'renew_sync_lease',
        'checkpoint': 'checkpoint_sync', 'release': 'release_sync',
        'start': 'mark_sync_started', 'connect': 'connect_sync',
        'pause': 'pause_sync', 'resume': 'resume_sync'}

    def do_lifecycle(self, call):
        """A call about one row that returns the row"""
        session = self.session(call.who)
        key = call.args['key']
        a = self.resolve(key, call.args)
        function = self.ORDINARY[call.name]
        sql_args = dict(a)
        if function in ('renew_sync_lease', 'checkpoint_sync', 'release_sync'):
            sql_args.setdefault('lease', None)
        out = self.call(session, 'SELECT row_to_json(r)::text FROM syncstate.%s(%s) AS r'
                        % (function, arguments(key, sql_args)))
        got = parse_row(out[0]) if out else None

        def expect():
            m = self.model
            if function in m.REPORTS:
                m.report(function, key, a)
            elif function == 'mark_sync_started':
                m.mark_sync_started(key, a, got)
            elif function in ('connect_sync', 'pause_sync', 'resume_sync'):
                getattr(m, function)(key)
            else:
                getattr(m, function)(key, a)
            return True

        before = self.model.rows.copy()
        if self.settle(session, expect):
            self.compare_row(key, got, 'returned row')
            if got['parked_reason'] is not None:
                self.facts['rows returned parked, ' + got['parked_reason']] += 1
            if a.get('scope') == 'source':
                self.check_policy(session, key[SOURCE])
            if key not in before:
                self.facts['rows made under a limit'] += \
                    got['limited_until'] is not None
            if call.name in ('fail', 'limit'):
                self.facts['other rows changed by ' + call.name] += sum(
                    k != key and self.model.rows[k] is not before[k]
                    for k in self.model.keys_of(*key[:SOURCE]))
        if self.owner is None or self.code is None:
            self.compare_account(session, *key[:SOURCE])

    do_complete = do_fail = do_limit = do_clear = do_clear_again = do_renew = \
        do_checkpoint = do_release = do_start = do_connect = do_pause = \
        do_resume = do_lifecycle

    def do_claim(self, call):
        session = self.session(call.who)
        a = dict(call.args)
        # of which kind a row is must be known for a claim of one kind
        if 'kind' in a and not all(any(self.model.death(row))
                                   for row in self.model.rows.values()):
            del a['kind']
        sql = arguments(None, a)
        out = self.call(session, 'SELECT row_to_json(r)::text '
                        'FROM syncstate.claim_due_syncs(%s) AS r' % sql)
        got = [parse_row(x) for x in out or ()]
        done = self.settle(session, lambda: self.model.claim(
            a.get('source'), a['max_rows'], a.get('lease_time'),
            a.get('kind', 'any'), got))
        if done is None:
            return
        self.facts['rows claimed'] += len(got)
        self.facts['claims that found something'] += bool(got)
        for row in got:
            self.compare_row(key_of(row), row, 'claimed row')
            self.compare_table(session, key_of(row))
        surely, perhaps, held_back = done
        self.facts['rows held back by a cap'] += held_back
        for key in surely:
            self.facts['rows parked by a claim'] += 1
            self.model.park_expired(key)
            self.compare_table(session, key)
        for key in perhaps:
            out = session.must("EXECUTE row_of('%s', '%s', '%s', '%s')" % key)
            row = parse_row(out[0])
            if row['parked_reason'] is not None:
                self.facts['rows parked by a claim'] += 1
                self.model.learn_open(self.model.rows[key], True)
                self.model.park_expired(key)
            self.compare_row(key, row, 'table')

    def do_batch(self, call):
        session = self.session(call.who)
        reports = []
        for r in call.args['reports']:
            reports.append(self.resolve(reported_key(r), r))
        sent = [{k: interval_text(v) if k in ('retry_after', 'delay') else
                 time_text(v) if k == 'updated_min' else v
                 for k, v in r.items()} for r in reports]
        out = self.call(session, 'SELECT row_to_json(r)::text '
                        'FROM syncstate.report_syncs(%s) AS r'
                        % literal(json.dumps(sent)))
        done = self.settle(session, lambda: self.model.report_syncs(reports))
        if done is None:
            return
        got = [parse_row(x) for x in out]
        if sorted(map(key_of, got)) != sorted(done):
            raise Mismatch('rows of report_syncs', sorted(done),
                           sorted(map(key_of, got)))
        self.facts['rows reported in batches'] += len(got)
        for row in got:
            self.compare_row(key_of(row), row, 'returned row')
        for key in {reported_key(r)[:SOURCE] for r in reports}:
            self.compare_account(session, *key)

    def do_update(self, call):
        session = self.session(call.who)
        key, changes = call.args['key'], call.args['changes']
        sent = {k: interval_text(v) if k == 'sync_interval' else
                time_text(v) if k in TIMES else v for k, v in changes.items()}
        out = self.call(session, 'SELECT row_to_json(r)::text FROM '
                        'syncstate.update_sync_state(%s) AS r'
                        % arguments(key, {'changes': json.dumps(sent)}))
        got = parse_row(out[0]) if out else None

        def expect():
            refuse_unless('limited_until' not in changes)
            return self.model.write(key, changes, got)

        if self.settle(session, expect):
            self.compare_row(key, got, 'returned row')
        if self.owner is None or self.code is None:
            self.compare_table(session, key)

    def do_upsert(self, call):
        session = self.session(call.who)
        key, changes = call.args['key'], call.args['changes']
        columns = list(changes)
        values = [literal(interval_text(v) if c == 'sync_interval' else
                          time_text(v) if c in TIMES else v)
                  for c, v in changes.items()]
        self.call(session, 'INSERT INTO syncstate.sync_state AS s '
                  '(user_id, account, source, resource, %s) VALUES (%s, %s) '
                  'ON CONFLICT (user_id, account, source, resource) '
                  'DO UPDATE SET %s' % (
                      ', '.join(columns), ', '.join(map(literal, key)),
                      ', '.join(values),
                      ', '.join('%s = EXCLUDED.%s' % (c, c) for c in columns)))
        if key in self.model.rows:
            got = self.table_row(session, key) if self.code is None else None
            self.settle(session, lambda: self.model.write(key, changes, got))
        else:
            self.settle(session, lambda: self.model.insert(key, changes))
        if self.owner is None or self.code is None:
            self.compare_table(session, key)

    def do_key_change(self, call):
        """The key of a row cannot be changed."""
        session = self.session(call.who)
        key = call.args['key']
        self.call(session, "UPDATE syncstate.sync_state SET resource = 'other' "
                  "WHERE user_id = '%s' AND account = '%s' AND source = '%s' "
                  "AND resource = '%s'" % key)
        self.settle(session, lambda: refuse_unless(
            key not in self.model.rows) or True)
        if self.owner is None or self.code is None:
            self.compare_table(session, key)

    def do_disconnect(self, call):
        self.boolean(call, 'disconnect_sync', self.session(call.who),
                     lambda: self.model.disconnect_sync(call.args['key']))

    def do_request(self, call):
        self.boolean(call, 'request_sync', self.session(call.who),
                     lambda: self.model.request_sync(call.args['key']))

    def do_user_request(self, call):
        user = call.args['user']
        self.boolean(call, 'request_sync', self.session('user%d' % user),
                     lambda: self.model.request_sync(
                         call.args['key'], call.args['key'][0] == USERS[user]))

    def boolean(self, call, function, session, expect):
        key = call.args['key']
        out = self.call(session, 'SELECT syncstate.%s(%s)'
                        % (function, arguments(key, {})))
        want = self.settle(session, expect)
        if self.code is None:
            if (out[0] == b't') != want:
                raise Mismatch(function, want, out[0])
        if self.owner is None or self.code is None:
            self.compare_table(session, key)

    def do_account(self, call):
        """A call about an account that returns its rows"""
        self.account_call(call, self.session(call.who), call.name)

    do_connect_account = do_pause_account = do_resume_account = \
        do_disconnect_account = do_request_account = do_account

    def do_user_request_account(self, call):
        user = call.args['user']
        self.account_call(call, self.session('user%d' % user), 'request_account',
                          USERS[user] == call.args['user_id'])

    def account_call(self, call, session, function, visible=True):
        a = {k: v for k, v in call.args.items() if k != 'user'}
        user, account = a['user_id'], a.get('account', '')
        out = self.call(session, 'SELECT row_to_json(r)::text FROM syncstate.%s(%s) AS r'
                        % (function, arguments(None, a)))
        got = [parse_row(x) for x in out or ()]

        def expect():
            m = self.model
            keys = m.keys_with(user, account, a.get('provider'))
            return getattr(m, function)(keys if visible else [])

        want = self.settle(session, expect)
        if want is None:
            pass
        elif function == 'request_account':
            want = [{'source': k[SOURCE], 'resource': k[RESOURCE]} for k in want]
            if got != want:
                raise Mismatch('rows requested', want, got)
        else:
            if [key_of(row) for row in got] != [key_of(row) for row in want]:
                raise Mismatch('rows of ' + function, want, got)
            for row, w in zip(got, want):
                self.same_row(w, row, 'returned row')
        self.facts['rows of ' + function] += len(got)
        if self.owner is None or self.code is None:
            self.compare_account(session, user, account)

    def do_set_resources(self, call):
        session = self.session(call.who)
        domain = call.args['domain']
        resources = call.args['resources']
        if resources is not None:
            resources = resources * call.args.get('times', 1)
        array = 'NULL' if resources is None else \
            'ARRAY[%s]::text[]' % ', '.join(map(literal, resources))
        out = self.call(session, 'SELECT json_build_array(resource, change)::text '
                        'FROM syncstate.set_sync_resources(%s, resources => %s)'
                        % (arguments((*domain, ''), {}), array))
        want = self.settle(session, lambda: self.model.set_sync_resources(
            domain, resources))
        if want is not None:
            got = [tuple(json.loads(x)) for x in out]
            if got != list(want.items()):
                raise Mismatch('changes of resources', want, got)
            for _, change in got:
                self.facts['resources ' + change] += 1
        if self.owner is None or self.code is None:
            self.compare_account(session, *domain[:SOURCE])

    def do_user_forbidden(self, call):
        """What a user may not do, not even with their own row"""
        user = call.args['key'][0]
        session = self.session('user%d' % USERS.index(user))
        self.call(session, self.rnd_free_choice(call, [
            "SELECT syncstate.mark_sync_completed(%s)" % arguments(call.args['key'], {}),
            "SELECT syncstate.connect_sync(%s)" % arguments(call.args['key'], {}),
            "SELECT syncstate.connect_account('%s')" % user,
            "SELECT syncstate.pause_account('%s')" % user,
            "SELECT syncstate.resume_account('%s')" % user,
            "SELECT syncstate.disconnect_account('%s')" % user,
            "SELECT syncstate.set_sync_resources(%s, resources => '{}')"
            % arguments(call.args['key'][:RESOURCE] + ('',), {}),
            "SELECT count(*) FROM syncstate.claim_due_syncs()",
            "SELECT sync_token FROM syncstate.sync_state",
            "UPDATE syncstate.sync_state SET due_at = now()",
            "DELETE FROM syncstate.sync_state",
            "SELECT * FROM syncstate.sync_policy",
            "SELECT * FROM syncstate.sync_event",
            "SELECT * FROM syncstate.take_sync_events()",
            "SELECT lease FROM syncstate.sync_run",
            "SELECT * FROM syncstate.sync_channel",
            "SELECT * FROM syncstate.claim_push_channels()",
            "SELECT * FROM syncstate.sync_overview"]))
        self.settle(session, lambda: refuse_unless(False, '42501'))

    @staticmethod
    def rnd_free_choice(call, choices):
        """A choice that repeats with the call"""
        return choices[call.now % len(choices)]

    def do_my_syncs(self, call):
        user = call.args['user']
        session = self.session('user%d' % user)
        out = self.call(session, 'SELECT row_to_json(m)::text FROM syncstate.my_syncs AS m')
        self.settle(session, lambda: True)
        got = sorted((parse_row(x) for x in out), key=key_of)
        want = sorted(({c: r[c] for c in MINE} for k, r in self.model.rows.items()
                       if k[USER] == USERS[user]), key=key_of)
        if got != want:
            raise Mismatch('my_syncs', want, got)
        got = sorted(map(parse_run, session.must(
            'SELECT row_to_json(m)::text FROM syncstate.my_sync_runs AS m')), key=str)
        want = sorted(({c: r[c] for c in RUN if c != 'lease'}
                       for i, r in self.model.runs.items() if i[USER] == USERS[user]), key=str)
        if got != want:
            raise Mismatch('my_sync_runs', want, got)
        self.facts['runs of one\'s own'] += len(got)

    def do_get(self, call):
        session = self.session(call.who)
        key = call.args['key']
        out = self.call(session, 'SELECT row_to_json(r)::text FROM '
                        '(SELECT (syncstate.get_sync_state(%s)).*) AS r'
                        % arguments(key, {}))
        self.settle(session, lambda: True)
        row = parse_row(out[0])
        self.compare_row(key, row if row['user_id'] is not None else None,
                         'get_sync_state')

    def do_get_all(self, call):
        session = self.session(call.who)
        user = USERS[call.args['user']]
        out = self.call(session, "SELECT row_to_json(r)::text "
                        "FROM syncstate.get_sync_states('%s') AS r" % user)
        self.settle(session, lambda: True)
        got = [parse_row(x) for x in out]
        want = [self.model.rows[k] for k in sorted(
            (k for k in self.model.rows if k[USER] == user),
            key=self.model.place)]
        if got != want:
            raise Mismatch('get_sync_states', want, got)

    def do_users(self, call):
        session = self.session(call.who)
        a = call.args
        out = self.call(session, 'SELECT u FROM '
                        'syncstate.get_users_needing_sync(%s) AS u'
                        % arguments(None, a))
        got = [x.decode() for x in out or ()]

        def expect():
            refuse_unless(a.get('max_rows', 1) >= 1)
            return self.model.users_needing(a['source'], a.get('stale_after'), got)

        want = self.settle(session, expect)
        if want is None:
            return
        n = len(want) if a.get('max_rows') is None else min(len(want), a['max_rows'])
        last = (-1, 0)
        for u in got:               # each has a place that is not before the last
            last = min((t for t in want.get(u, []) if t >= last), default=None)
            if last is None:
                break
        if len(got) != n or len(set(got)) < n or last is None \
                or any(t[-1] < last for u, t in want.items() if u not in got):
            raise Mismatch('get_users_needing_sync',
                           {u: [(p, time_text(t)) for p, t in places]
                            for u, places in want.items()}, got)
        self.facts['users found needing a sync'] += n

    def do_next(self, call):
        session = self.session(call.who)
        source = call.args['source']
        out = self.call(session, 'SELECT to_json(syncstate.next_sync_due(%s))'
                        % literal(source))
        self.settle(session, lambda: True)
        got = parse_time(json.loads(out[0])) if out[0] is not None else None
        want = self.model.next_sync_due(source)
        if (got is None) != (want is None) or \
                got is not None and not want[0] <= got <= want[1]:
            raise Mismatch('next_sync_due', want and [time_text(int(w)) for w in want],
                           time_text(got))

    def do_overview(self, call):
        session = self.session(call.who)
        out = self.call(session, 'SELECT row_to_json(o)::text FROM syncstate.sync_overview AS o')
        self.settle(session, lambda: True)
        want = self.model.overview()
        got = {}
        for x in out:
            o = json.loads(x)
            o['oldest_due_age'] = parse_interval(o['oldest_due_age'])
            o['paused_until'] = parse_time(o['paused_until'])
            got[o['source']] = o
        if list(got) != self.model.sources:
            raise Mismatch('sources of sync_overview', self.model.sources, list(got))
        for s in got:
            for k in 'due', 'oldest_due_age':
                lo, hi = want[s][k]
                is_within = got[s][k] is not None and (lo or 0) <= got[s][k] <= (hi or 0)
                want[s][k] = got[s][k] if is_within else lo
            if got[s] != dict(want[s]):
                raise Mismatch('sync_overview of ' + s, *(
                    {k: v for k, v in o.items() if got[s].get(k) != want[s].get(k)}
                    for o in (want[s], got[s])))
        for data in session.must('SELECT json_build_array(s, syncstate.due_from(s))'
                                 '::text FROM syncstate.sync_state AS s'):
            row, due_from = json.loads(data)
            due_from = parse_time(due_from)
            lo, hi = self.model.opens_alone(self.model.rows[key_of(row)]) \
                or (None, None)
            if due_from != lo and (due_from is None or lo is None
                                   or not lo <= due_from <= hi):
                raise Mismatch('due_from', (time_text(lo), time_text(hi)),
                               time_text(due_from))

    def check_policy(self, session, source):
        out = session.must("SELECT row_to_json(p)::text FROM "
                           "syncstate.get_sync_policy('%s') AS p" % source)
        self.compare_policy(source, out[0])

    def compare_policy(self, source, data):
        got = parse_policy(data)
        got.pop('source')
        want = self.model.policy(source)
        if got != want:
            raise Mismatch('policy of ' + source, *(
                {k: v for k, v in o.items() if got.get(k) != want.get(k)}
                for o in (want, got)))

    def do_get_policy(self, call):
        session = self.session(call.who)
        session.set_clock(self.model.now)
        self.check_policy(session, call.args['source'])

    def do_policy(self, call):
        session = self.session(call.who)
        source, changes = call.args['source'], call.args['changes']
        sent = {k: interval_text(v) if k in INTERVAL_SETTINGS else v
                for k, v in changes.items()}
        out = self.call(session, 'SELECT row_to_json(p)::text FROM '
                        'syncstate.set_sync_policy(%s, %s) AS p'
                        % (literal(source), literal(json.dumps(sent))))

        def expect():
            self.model.set_policy(source, changes)
            return True

        if self.settle(session, expect):
            self.compare_policy(source, out[0])

    do_push_policy = do_policy

    def do_rebalance(self, call):
        """Takes the multipliers over, if what they come to is what it says"""
        session = self.session(call.who)
        source = call.args['source']
        out = self.call(session, 'SELECT row_to_json(r)::text FROM '
                        'syncstate.rebalance_syncs(%s) AS r' % literal(source))
        m = self.model
        asked = [s for s in m.sources if source in (None, s)]
        with_budget = [s for s in asked
                       if m.policy(s)['daily_budget'] is not None]

        def expect():
            for s in asked:
                m.plans.pop(s, None)
            return True

        if not self.settle(session, expect):
            return
        got = {r['source']: r for r in map(json.loads, out)}
        if list(got) != with_budget:
            raise Mismatch('sources rebalanced', with_budget, list(got))
        plans = self.read_plans(session)
        for s, r in got.items():
            m.plans[s] = plans[s]
            p = m.policy(s)
            rows = [x for x in m.rows.values()
                    if x['source'] == s and x['due_at'] is not None]
            most = p['max_interval']
            if p['token_ttl'] is not None:
                most = min(most, 0.8 * p['token_ttl'])
            part = 1 - 0.75 * p['jitter']
            planned = least = 0
            for x in rows:
                own = x['sync_interval']
                if m.is_trusted(x):     # polled rarely, and at each change
                    each = DAY / part * (1 / max(p['push_interval'], own or 0)
                                         + change_rate(x, m.plans[s][1]) / SECOND)
                    planned, least = planned + each, least + each
                    continue
                # bounded as for the plan, which knows nothing finer
                planned += DAY / part / (own or min(m.shared_interval(x, p), most))
                least += DAY / part / (own or most)
            wrong = [k for k, v in (
                ('rows', r['rows'] == sum(x['source'] == s for x in m.rows.values())),
                ('budget', r['budget'] == p['daily_budget']),
                ('planned', abs(r['planned'] - planned) <= 0.05 * planned),
                ('feasible', r['feasible'] == (least <= p['daily_budget'])
                 or abs(least / p['daily_budget'] - 1) < 1e-9 or not rows),
                ('clamps', r['at_min'] + r['at_max'] <= len(rows))) if not v]
            if wrong:
                raise Mismatch('plan of %s: %s' % (s, ', '.join(wrong)),
                               (planned, least, p['daily_budget']), r)
        self.compare_plans(session)

    def read_plans(self, session):
        return {s: (float(x), float(y)) for s, x, y in map(json.loads, session.must(
            'SELECT json_build_array(source, multiplier, mean_rate)::text '
            'FROM syncstate.sync_budget'))}

    def compare_plans(self, session):
        got = self.read_plans(session)
        if got != self.model.plans:
            raise Mismatch('sync_budget', self.model.plans, got)

    def do_pause_source(self, call):
        session = self.session(call.who)
        a = dict(call.args)
        source = a['source']
        until = a.get('until', INFINITY)
        if 'until' in a:
            a['until'] = time_text(a['until'])
        out = self.call(session, 'SELECT row_to_json(p)::text FROM '
                        'syncstate.pause_sync_source(%s) AS p' % arguments(None, a))

        def expect():
            refuse_unless(until is not None)
            self.model.pause_source(source, until)
            return True

        if self.settle(session, expect):
            self.compare_policy(source, out[0])

    def do_resume_source(self, call):
        session = self.session(call.who)
        source = call.args['source']
        out = self.call(session, 'SELECT row_to_json(p)::text FROM '
                        "syncstate.resume_sync_source('%s') AS p" % source)

        def expect():
            self.model.pause_source(source, None)
            self.model.perhaps |= {source}
            return True

        self.settle(session, expect)
        self.compare_policy(source, out[0])

    def do_resync(self, call):
        session = self.session(call.who)
        a = call.args
        out = self.call(session, 'SELECT row_to_json(p)::text FROM '
                        'syncstate.resync_source(%s) AS p' % arguments(None, a))

        def expect():
            spread = a.get('spread', DAY)
            refuse_unless(0 <= spread <= 36500 * DAY)
            self.model.set_policy(a['source'], {'resync_from': self.model.now,
                                                'resync_spread': spread})
            return True

        if self.settle(session, expect):
            self.compare_policy(a['source'], out[0])

    def do_revive(self, call):
        session = self.session(call.who)
        a = call.args
        out = self.call(session, 'SELECT syncstate.revive_syncs(%s)' % arguments(None, a))
        keys = self.settle(session, lambda: self.model.revive_syncs(
            a['source'], a.get('reason'), a.get('spread', HOUR),
            a.get('max_rows', 10000)))
        if keys is None:
            return
        if int(out[0]) != len(keys):
            raise Mismatch('rows taken back', len(keys), out[0])
        self.facts['rows taken back'] += len(keys)
        for key in keys:
            self.compare_table(session, key)

    def do_sweep(self, call):
        session = self.session(call.who)
        key = call.args['key']
        a = self.resolve(key, call.args)
        a.setdefault('lease', None)
        out = self.call(session, 'SELECT syncstate.may_sweep(%s)' % arguments(key, a))

        def expect():
            refuse_unless(a['lease'] is not None)
            refuse_unless(0 <= a['vanished'] <= a['total'])
            row = self.model.rows.get(key)
            refuse_unless(row is not None, 'PT404')
            refuse_unless(row['status'] == 'syncing'
                          and row['lease'] == a['lease'], 'PT409')
            return True

        if self.settle(session, expect):
            want = a.get('force', False) or a['vanished'] <= 10 or a['vanished'] <= \
                self.model.policy(key[SOURCE])['max_vanished'] * a['total']
            if (out[0] == b't') != want:
                raise Mismatch('whether to sweep', want, out[0])
            if not want:
                row = self.model.rows[key]
                self.model.tell('sweep_withheld', row, lease=row['lease'],
                                detail=Something())

    def do_register(self, call):
        session = self.sessions['admin']
        label = call.args['label']
        self.call(session, 'SELECT syncstate.register_sync_source(%s)' % literal(label))

        def expect():
            refuse_unless(is_label(label))
            if label not in self.model.sources:
                self.model.sources = self.model.sources + [label]
            return True

        self.settle(session, expect)

    def do_forget(self, call):
        """The application deletes a user."""
        session = self.sessions['admin'] if self.owner is None else \
            self.session(self.owner)
        if session.role is not None:
            return
        user = USERS[call.args['user']]
        self.call(session, "INSERT INTO regress_model_users VALUES ('%s'); "
                  "DELETE FROM regress_model_users" % user)
        self.settle(session, lambda: self.model.forget_user(user) or True)
        out = session.must("SELECT count(*) FROM syncstate.sync_state "
                           "WHERE user_id = '%s'" % user)
        if out[0] != b'0':
            raise Mismatch('rows of a deleted user', 0, out[0])

    # ------------------------------------------------------ transactions

    def do_begin(self, call):
        if self.owner is not None:
            return
        self.owner = call.who
        session = self.session(call.who)
        session.must('BEGIN')
        self.saved = [(None, self.model.save())]

    def do_savepoint(self, call):
        if self.owner is None:
            return
        name = 's%d' % len(self.saved)
        self.session(self.owner).must('SAVEPOINT ' + name)
        self.saved.append((name, self.model.save()))

    def do_rollback_to(self, call):
        if self.owner is None:
            return
        self.undo(self.session(self.owner))
        if self.owner is None:
            self.compare_all()

    def do_release(self, call):
        """Of a sync, or of a savepoint: the call says by its arguments"""
        if 'key' in call.args:
            return self.do_lifecycle(call)
        if self.owner is None or len(self.saved) < 2:
            return
        name, _ = self.saved.pop()
        self.session(self.owner).must('RELEASE SAVEPOINT ' + name)

    def do_commit(self, call):
        if self.owner is None:
            return
        self.session(self.owner).must('COMMIT')
        self.owner, self.saved = None, []
        self.compare_all()

    def do_rollback(self, call):
        if self.owner is None:
            return
        session = self.session(self.owner)
        session.must('ROLLBACK')
        session.clock = None
        self.model.restore(self.saved[0][1])
        self.owner, self.saved = None, []
        self.compare_all()

    def do_reconnect(self, call):
        """A worker is restarted."""
        if self.owner is None and call.who != 'admin' and call.who in self.sessions:
            self.sessions.pop(call.who).close()


def told_of(event):
    """What is told only once by a call"""
    return tuple(event[c] for c in EVENT[1:6])


def nice(column, value):
    if column in TIMES and isinstance(value, (int, float)):
        return time_text(value)
    return value if not isinstance(value, str) or len(value) < 100 \
        else value[:100] + '...'


INTERVAL_SETTINGS = ('sync_interval', 'lease_time', 'retry_base', 'retry_cap',
                     'rate_limit_wait', 'park_after', 'token_ttl',
                     'min_interval', 'max_interval', 'request_gap',
                     'resync_spread', 'keep_runs_for', 'push_renew_before',
                     'push_interval', 'push_silence')


def parse_policy(data):
    p = json.loads(data)
    for k in INTERVAL_SETTINGS:
        p[k] = parse_interval(p[k])
    for k in ('paused_until', 'resync_from'):
        p[k] = parse_time(p[k])
    return p


def arguments(key, a):
    """SQL's named arguments"""
    out = []
    if key is not None:
        out += ["user_id => '%s'" % key[USER], "source => '%s'" % key[SOURCE]]
        out += ['%s => %s' % (name, literal(key[i])) for name, i in (
            ('account', ACCOUNT), ('resource', RESOURCE)) if key[i]]
    for k, v in a.items():
        if k in ('lease_time', 'retry_after', 'stale_after', 'delay', 'spread'):
            v = interval_text(v)
        elif k in ('updated_min', 'expires_at'):
            v = time_text(v)
        out.append('%s => %s' % (k, literal(v)))
    return ', '.join(out)


MIX = dict(claim=22, start=7, complete=15, fail=10, limit=5, clear=3,
           clear_again=2, renew=4, checkpoint=5, release=3, batch=6, update=5,
           upsert=4, request=5, user_request=3, connect=6, disconnect=1.2,
           pause=2, resume=3, connect_account=2, pause_account=0.4,
           resume_account=1, disconnect_account=0.15, request_account=1,
           user_request_account=1, set_resources=4,
           channels=6, channel_opened=6, channel_failed=1.5, channel_stopped=2,
           push=7, user_push=1.5, push_policy=0.5,
           policy=1.5, pause_source=0.5, resume_source=0.7,
           resync=0.3, revive=1, sweep=2, take=1,
           get=1, get_all=0.5, my_syncs=1, users=3, next=3, overview=2,
           get_policy=0.5, rebalance=0.7, user_forbidden=0.7, key_change=0.2,
           forget=0.05, register=0.01, reconnect=0.3)
# Of other sessions than the one that has a transaction open.
NOT_INSIDE = {'user_request', 'user_request_account', 'user_push', 'my_syncs',
              'user_forbidden', 'register', 'reconnect', 'begin'}
NAMES, WEIGHTS = list(MIX), list(MIX.values())


# ---------------------------------------------------------------- a failure

def replay(conninfo, calls):
    """(number of the call that differs, Mismatch), or None"""
    runner = Runner(conninfo, 0)
    n = 0
    try:
        for n, call in enumerate(calls):
            runner.play(call)
        runner.finish()
        return None
    except Mismatch as e:
        return n, e
    finally:
        runner.close()


def shrink(conninfo, calls, mismatch, seconds):
    """A shorter history that ends in the same difference, as far as one is
    found in time, and how that one ends."""
    until = time.monotonic() + seconds
    best = calls, mismatch

    def same(shorter):
        if time.monotonic() > until:
            return False
        found = replay(conninfo, shorter)
        if found is None or found[1].what != mismatch.what:
            return False
        nonlocal best
        best = shorter[:found[0] + 1], found[1]
        return True

    # without all that is about other rows, or else about other sources
    last = calls[-1].args
    for about in (last.get('key'), last.get('source')):
        if about is not None:
            same([c for c in best[0] if 'key' not in c.args
                  or about in (c.args['key'], c.args['key'][SOURCE])])
    # without all calls of a kind
    for name in NAMES + ['begin', 'savepoint']:
        same([c for c in best[0][:-1] if c.name != name] + best[0][-1:])
    # without stretches of calls, down to single ones
    size = len(best[0]) // 2
    while size >= 1:
        start = 0
        while start < len(best[0]) - 1 and time.monotonic() < until:
            now = best[0]
            if not same(now[:start] + now[min(start + size, len(now) - 1):]):
                start += size
        size //= 2
    return best


def describe(call):
    args = re.sub(r'(.)\1{50,}', lambda m: '%s... (%d)' % (m[1], len(m[0])),
                  repr(call.args))
    return '%s %-8s %-14s %s' % (time_text(call.now), call.who, call.name, args)


def report_failure(options, seed, runner, e):
    found = ('seed %d, step %d, %s: %s\n  expected %r\n  got      %r'
             % (seed, runner.step, describe(runner.log[-1]), e.what,
                e.expected, e.got))
    print(found)
    print('  statement: %s' % getattr(runner, 'sql', '')[:2000])
    key = runner.log[-1].args.get('key')
    if key is not None:
        print('  the row should be %r\n  with policy %r' % (
            {c: nice(c, v) for c, v in
             (runner.model.rows.get(key) or {}).items() if v is not None},
            runner.model.policy(key[SOURCE])))
    sys.stdout.flush()
    runner.close()
    calls, end = runner.log, e
    if options.shrink > 0:
        calls, end = shrink(options.conninfo, calls, e, options.shrink)
    print('the history, %d of %d calls, of which the last %d:' % (
        len(calls), len(runner.log), min(len(calls), 30)))
    for call in calls[-30:]:
        print('  ' + describe(call))
    if len(calls) < len(runner.log):
        print('  which ends with %s\n  expected %r\n  got      %r'
              % (end.what, end.expected, end.got))
    if options.history is not None:
        with open(options.history, 'w') as f:
            for call in calls:
                print(repr(tuple(call)), file=f)
        print('all of it is in ' + options.history)
    # again, since the end is what is kept of a long output
    print(found)
    sys.stdout.flush()


# A history that is longer is made of several, each with the next seed.
HISTORY = 20_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('conninfo')
    parser.add_argument('--calls', type=int, default=HISTORY)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--shrink', type=float, default=60,
                        help='seconds to look for a shorter failing history')
    parser.add_argument('--history', help='file for a failing history')
    parser.add_argument('--replay', help='file with a history to repeat')
    options = parser.parse_args()

    if options.replay is not None:
        with open(options.replay) as f:
            calls = [Call(*ast.literal_eval(line)) for line in f]
        found = replay(options.conninfo, calls)
        if found is None:
            print('%d calls agree' % len(calls))
            return 0
        n, e = found
        print('call %d, %s: %s\n  expected %r\n  got      %r' % (
            n + 1, describe(calls[n]), e.what, e.expected, e.got))
        return 1

    began = time.monotonic()
    total, seed = 0, options.seed
    done, refused, facts = (collections.Counter() for _ in range(3))
    while total < options.calls:
        runner = Runner(options.conninfo, seed)
        length = min(HISTORY, options.calls - total)
        try:
            while runner.step < length:
                runner.play(runner.invent())
            runner.finish()
        except Mismatch as e:
            report_failure(options, seed, runner, e)
            return 1
        runner.close()
        total += length
        seed += 1
        done.update(call.name for call in runner.log)
        refused.update(runner.refused)
        facts.update(runner.facts)
        if total % 200_000 == 0:
            print('%d calls agree so far' % total)
            sys.stdout.flush()
    print('%d calls agree, seeds %d to %d, %.0f s' % (
        total, options.seed, seed - 1, time.monotonic() - began))
    for title, counter in (('calls', done), ('refused', refused),
                           ('seen', facts)):
        print('%s: %s' % (title, ', '.join('%s %d' % kv for kv in
                                           sorted(counter.items()))))
    return 0


if __name__ == '__main__':
    sys.exit(main())
