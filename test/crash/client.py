#!/usr/bin/python3
"""A worker that may lose its server at any moment, and knows what it was told.

    client.py CONNINFO NUMBER SEED LOG

Calls the lifecycle functions at random until the connection breaks, one call
per transaction, and writes to LOG, one line each, tabs between the fields:

    try N CALL          before anything is sent
    done N ROW...       after the server acknowledged the commit
    undone N            rolled back on purpose
    refused N SQLSTATE  the call failed; its transaction was rolled back

N counts up over all runs with the same LOG.  ROW is "user account source
resource lease md5", of a row that the call wrote, as it left it; md5 is "gone"
if it is deleted.

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
ACCOUNTS = ('', 'work')
KEY = 'user_id = %s AND account = %s AND source = %s::syncstate.sync_source AND resource = %s'


class Client:
    def __init__(self, conninfo, number, seed, log):
        self.conninfo = conninfo
        self.number = number
        self.log_name = log
        self.n = 0
        self.held = []  # (user, account, source, resource, lease) of acknowledged claims
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
        if call in ('claim', 'start'):
            self.held += [(*row[:4], int(row[4])) for row in rows]
        elif call in ('complete', 'fail', 'limit', 'release', 'report'):
            # others of the account may be limited or parked, and their runs go on
            self.held = [h for h in self.held if h not in self.reported]

    def a_row(self):
        return (f'00000000-0000-4000-8000-{self.random.randrange(40):012d}',
                self.random.choice(ACCOUNTS), self.random.choice(SOURCES), self.random.choice(('', 'r')))

    def call(self):
        """A call: name, statement, arguments.  Each statement returns users and accounts that it is about."""
        r = self.random
        self.reported = []
        mark = f'{self.number}.{self.n}'
        kinds = ['claim'] * 6 + ['start', 'connect', 'connect', 'request', 'request', 'pause', 'resume',
                                 'disconnect', 'update', 'clear by hand', 'write', 'connect account', 'connect account', 'resume account',
                 'pause account', 'disconnect account', 'request account', 'resources', 'resources']
        if self.held:
            kinds += ['complete'] * 8 + ['fail', 'fail', 'limit', 'clear', 'renew', 'checkpoint', 'checkpoint',
                                         'release', 'report', 'report', 'report']
        kind = r.choice(kinds)
        if kind == 'claim':
            return kind, 'SELECT c.* FROM syncstate.claim_due_syncs(max_rows => %s) AS c', (r.choice((1, 3, 10, 30)),)
        if kind == 'report':
            held = self.reported = r.sample(self.held, min(len(self.held), 5))
            reports = [{'user_id': u, 'account': a, 'source': s, 'resource': x, 'lease': lease, **r.choice((
                {'outcome': 'completed', 'items_synced': self.n, 'sync_token': mark},
                {'outcome': 'failed', 'error_message': mark},
                {'outcome': 'rate_limited', 'retry_after': '1 s'},
                {'outcome': 'released'}))} for u, a, s, x, lease in held]
            return kind, 'SELECT c.* FROM syncstate.report_syncs(%s) AS c', (json.dumps(reports),)
        if kind in ('complete', 'fail', 'limit', 'clear', 'renew', 'checkpoint', 'release'):
            u, a, s, x, lease = held = r.choice(self.held)
            if kind in ('complete', 'fail', 'limit', 'release'):
                self.reported = [held]
            name, more = {
                'complete': ('mark_sync_completed', {'items_synced': self.n, 'sync_token': mark}),
                'fail': ('mark_sync_failed', {'error_message': mark, 'kind': r.choice(('transient', 'transient', 'permanent', 'auth'))}),
                'limit': ('mark_rate_limited', {'retry_after': '1 s', 'scope': r.choice(('row', 'account'))}),
                'clear': ('clear_sync_token', {}),
                'renew': ('renew_sync_lease', {}),
                'checkpoint': ('checkpoint_sync', {'page_token': mark, 'progress_done': self.n}),
                'release': ('release_sync', {})}[kind]
            more = {'user_id': u, 'account': a, 'source': s, 'resource': x, 'lease': lease, **more}
        else:
            u, a, s, x = self.a_row()
            if kind == 'write':
                return kind, f'UPDATE syncstate.sync_state AS c SET page_token = %s WHERE {KEY} RETURNING c.*', (mark, u, a, s, x)
            if kind == 'resources':
                return kind, ('SELECT %s::uuid AS user_id, %s::text AS account, count(*) FROM syncstate.set_sync_resources'
                              '(%s::uuid, %s::syncstate.sync_source, %s::text[], %s)'), (u, a, u, s, r.choice((['r'], ['r'], [])), a)
            if kind == 'request account':
                return kind, ('SELECT %s::uuid AS user_id, %s::text AS account, count(*) '
                              'FROM syncstate.request_account(%s::uuid, %s)'), (u, a, u, a)
            if kind.endswith(' account'):
                return kind, f"SELECT c.* FROM syncstate.{kind.replace(' ', '_')}(%s::uuid, %s) AS c", (u, a)
            name, more = {
                'start': ('mark_sync_started', {}),
                'connect': ('connect_sync', {}),
                'request': ('request_sync', {}),
                'pause': ('pause_sync', {}),
                'resume': ('resume_sync', {}),
                'disconnect': ('disconnect_sync', {}),
                'update': ('update_sync_state', {'changes': json.dumps({'updated_min': '2020-01-01', 'page_token': mark})}),
                'clear by hand': ('clear_sync_token', {})}[kind]
            more = {'user_id': u, 'account': a, 'source': s, 'resource': x, **more}
        types = {'user_id': '::uuid', 'source': '::syncstate.sync_source', 'retry_after': '::interval', 'lease': '::bigint',
                 'changes': '::jsonb', 'items_synced': '::bigint', 'progress_done': '::bigint'}
        arguments = ', '.join(f'{k} => %s{types.get(k, "::text")}' for k in more)
        if kind in ('request', 'disconnect'):
            # these return a boolean: the row is the one of the key
            return kind, (f'SELECT %s::uuid AS user_id, %s::text AS account, %s::syncstate.sync_source AS source, '
                          f'%s::text AS resource, syncstate.{name}({arguments}) AS result'), (u, a, s, x, *more.values())
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
                touched = [dict(zip(names, values)) for values in touched]
                deleted = [row for row in touched if kind == 'disconnect account' or kind == 'disconnect' and row['result']]
                for row in deleted:
                    key = (str(row['user_id']), row['account'], row['source'], row['resource'])
                    cursor.execute('INSERT INTO journal (client, n, call, user_id, account, source, resource, lease) '
                                   'VALUES (%s, %s, %s, %s, %s, %s, %s, 0)', (self.number, self.n, kind, *key))
                    rows.append((*key, 0, 'gone'))
                # what this transaction wrote, others of the account included
                accounts = {(row['user_id'], row['account']) for row in touched}
                written = cursor.execute(
                    'INSERT INTO journal (client, n, call, user_id, account, source, resource, lease, image) '
                    'SELECT %s, %s, %s, user_id, account, source, resource, lease, s::text FROM syncstate.sync_state AS s '
                    'JOIN unnest(%s::uuid[], %s::text[]) AS a (user_id, account) USING (user_id, account) '
                    'WHERE s.xmin = pg_current_xact_id()::xid RETURNING user_id, account, source, resource, lease, image',
                    (self.number, self.n, kind, [u for u, _ in accounts], [a for _, a in accounts]))
                rows += [(str(u), *key, hashlib.md5(image.encode()).hexdigest()) for u, *key, image in written]
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
