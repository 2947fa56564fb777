#!/usr/bin/python3
"""A worker that may lose its server at any moment, and knows what it was told.

    client.py CONNINFO NUMBER SEED LOG

Calls the lifecycle functions at random until the connection breaks, one call
per transaction, and writes to LOG, one line each, tabs between the fields:

    try N CALL          before anything is sent
    done N ROW...       after the server acknowledged the commit
    undone N            rolled back on purpose
    refused N SQLSTATE  the call failed; its transaction was rolled back

N counts up over all runs with the same LOG.  ROW is "user source resource
lease md5", of the row as the call left it; md5 is "gone" if it is deleted.

Each transaction also writes what it did into the table journal, with a number
from a sequence that it draws while it holds the row's lock: in the order of
these numbers the row's states follow one another.  So a database that has the
journal of a call and not its effect, or the other way round, shows.

Leases are held on from one run to the next: a worker outlives its server.
"""
import hashlib
import json
import os
import random
import sys

import psycopg

SOURCES = ('google_calendar', 'google_tasks', 'google_gmail', 'custom_crm')
KEY = 'user_id = %s AND source = %s::syncstate.sync_source AND resource = %s'


class Client:
    def __init__(self, conninfo, number, seed, log):
        self.conninfo = conninfo
        self.number = number
        self.log_name = log
        self.n = 0
        self.held = []  # (user, source, resource, lease) of acknowledged claims
        self.reported = []  # those of the last batch: the lost ones are not told of
        self.read_log()
        self.random = random.Random(f'{seed}/{number}/{self.n}')
        self.log = open(log, 'a', encoding='ascii')

    def read_log(self):
        """Goes on where the last run was cut off."""
        if not os.path.exists(self.log_name):
            return
        calls = {}
        with open(self.log_name, encoding='ascii') as log:
            for line in log:
                fields = line.rstrip('\n').split('\t')
                self.n = int(fields[1])
                if fields[0] == 'try':
                    calls[self.n] = fields[2]
                elif fields[0] == 'done':
                    self.remember(calls[self.n], [tuple(r.split(' ')) for r in fields[2:]])

    def write(self, *fields):
        self.log.write('\t'.join(str(f) for f in fields) + '\n')
        self.log.flush()

    def remember(self, call, rows):
        """Which leases we hold after a call that was acknowledged."""
        keys = [row[:3] for row in rows]
        if call in ('claim', 'start'):
            self.held += [(row[0], row[1], row[2], int(row[3])) for row in rows]
        elif call in ('complete', 'fail', 'limit', 'release', 'report'):
            self.held = [h for h in self.held if h[:3] not in keys and h not in self.reported]

    def a_row(self):
        return (f'00000000-0000-4000-8000-{self.random.randrange(40):012d}',
                self.random.choice(SOURCES), self.random.choice(('', 'r')))

    def call(self):
        """A call: name, statement, arguments.  Each statement returns rows of sync_state."""
        r = self.random
        mark = f'{self.number}.{self.n}'
        kinds = ['claim'] * 6 + ['start', 'connect', 'connect', 'request', 'request', 'pause', 'resume',
                                 'disconnect', 'update', 'clear by hand', 'write']
        if self.held:
            kinds += ['complete'] * 8 + ['fail', 'fail', 'limit', 'clear', 'renew', 'checkpoint', 'checkpoint',
                                         'release', 'report', 'report', 'report']
        kind = r.choice(kinds)
        if kind == 'claim':
            return kind, 'SELECT c.* FROM syncstate.claim_due_syncs(max_rows => %s) AS c', (r.choice((1, 3, 10, 30)),)
        if kind == 'report':
            held = self.reported = r.sample(self.held, min(len(self.held), 5))
            reports = [{'user_id': u, 'source': s, 'resource': x, 'lease': lease, **r.choice((
                {'outcome': 'completed', 'items_synced': self.n, 'sync_token': mark},
                {'outcome': 'failed', 'error_message': mark},
                {'outcome': 'rate_limited', 'retry_after': '1 s'},
                {'outcome': 'released'}))} for u, s, x, lease in held]
            return kind, 'SELECT c.* FROM syncstate.report_syncs(%s) AS c', (json.dumps(reports),)
        if kind in ('complete', 'fail', 'limit', 'clear', 'renew', 'checkpoint', 'release'):
            u, s, x, lease = r.choice(self.held)
            name, more = {
                'complete': ('mark_sync_completed', {'items_synced': self.n, 'sync_token': mark}),
                'fail': ('mark_sync_failed', {'error_message': mark, 'kind': r.choice(('transient', 'transient', 'permanent', 'auth'))}),
                'limit': ('mark_rate_limited', {'retry_after': '1 s'}),
                'clear': ('clear_sync_token', {}),
                'renew': ('renew_sync_lease', {}),
                'checkpoint': ('checkpoint_sync', {'page_token': mark, 'progress_done': self.n}),
                'release': ('release_sync', {})}[kind]
            more = {'user_id': u, 'source': s, 'resource': x, 'lease': lease, **more}
        else:
            u, s, x = self.a_row()
            if kind == 'write':
                return kind, f'UPDATE syncstate.sync_state AS c SET page_token = %s WHERE {KEY} RETURNING c.*', (mark, u, s, x)
            name, more = {
                'start': ('mark_sync_started', {}),
                'connect': ('connect_sync', {}),
                'request': ('request_sync', {}),
                'pause': ('pause_sync', {}),
                'resume': ('resume_sync', {}),
                'disconnect': ('disconnect_sync', {}),
                'update': ('update_sync_state', {'changes': json.dumps({'updated_min': '2020-01-01', 'page_token': mark})}),
                'clear by hand': ('clear_sync_token', {})}[kind]
            more = {'user_id': u, 'source': s, 'resource': x, **more}
        types = {'user_id': '::uuid', 'source': '::syncstate.sync_source', 'retry_after': '::interval', 'lease': '::bigint',
                 'changes': '::jsonb', 'items_synced': '::bigint', 'progress_done': '::bigint'}
        arguments = ', '.join(f'{k} => %s{types.get(k, "::text")}' for k in more)
        if kind in ('request', 'disconnect'):
            # these return a boolean: the row is the one of the key
            return kind, (f'SELECT %s::uuid AS user_id, %s::syncstate.sync_source AS source, %s::text AS resource, '
                          f'syncstate.{name}({arguments}) AS result'), (u, s, x, *more.values())
        return kind, f'SELECT c.* FROM syncstate.{name}({arguments}) AS c', tuple(more.values())

    def step(self, connection):
        self.n += 1
        kind, statement, arguments = self.call()
        undo = self.random.random() < 0.1
        self.write('try', self.n, kind)
        try:
            rows = []
            with connection.transaction():
                cursor = connection.cursor()
                touched = cursor.execute(statement, arguments).fetchall()
                names = [c.name for c in cursor.description]
                for values in touched:
                    row = dict(zip(names, values))
                    if kind == 'disconnect' and not row['result']:
                        continue
                    key = (str(row['user_id']), row['source'], row['resource'])
                    stored = cursor.execute(f'SELECT s::text, lease FROM syncstate.sync_state AS s WHERE {KEY} FOR UPDATE', key).fetchone()
                    if stored is None and kind == 'request':
                        continue
                    image, lease = stored or (None, 0)
                    cursor.execute('INSERT INTO journal (client, n, call, user_id, source, resource, lease, image) '
                                   'VALUES (%s, %s, %s, %s, %s, %s, %s, %s)', (self.number, self.n, kind, *key, lease, image))
                    rows.append((*key, lease, hashlib.md5(image.encode()).hexdigest() if image else 'gone'))
                if undo:
                    raise psycopg.Rollback()
        except psycopg.Error as e:
            if connection.closed or e.sqlstate is None or e.sqlstate.startswith('57') or e.sqlstate.startswith('08'):
                raise
            self.write('refused', self.n, e.sqlstate)
            if e.sqlstate in ('PT409', 'PT404'):
                self.held = [h for h in self.held if not set(h) <= set(arguments)]
            return
        if undo:
            self.write('undone', self.n)
        else:
            self.write('done', self.n, *(' '.join(str(f) for f in row) for row in rows))
            self.remember(kind, rows)

    def run(self):
        try:
            with psycopg.connect(self.conninfo, autocommit=True) as connection:
                connection.execute("SET TimeZone = 'UTC'")
                while True:
                    self.step(connection)
        except psycopg.OperationalError as e:
            print(f'client {self.number}, call {self.n}: {e}', file=sys.stderr)


Client(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]).run()
