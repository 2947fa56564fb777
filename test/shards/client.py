#!/usr/bin/python3
"""One of those who use a router all the time, and write down what they were told.

    client.py CONNINFO ROLE NUMBER LOG STOP

ROLE is "worker" (claims and reports), "user" (requests, and looks at their own
rows and runs), "backend" (connects, disconnects, and looks), "taker" (takes
events, fewer than there are), "opener" (opens, renews and stops push channels)
or "webhook" (brings pushes to one that is open).  It ends when the file STOP is
there.  LOG gets a line for each call, tabs between the fields; times are seconds
by the clock of all:

    claim FROM TO ROW LEASE
    report FROM TO ROW LEASE CURSOR
    withheld FROM TO ROW LEASE
    taken FROM TO ID EVENT ROW LEASE
    connect FROM TO ROW
    disconnect FROM TO ROW
    opened FROM TO ROW CHANNEL LIFE
    stopped FROM TO ROW CHANNEL
    pushed FROM TO CHANNEL
    look FROM TO
    wrong WHAT          an error, or an answer that cannot be

ROW is "user account source resource".
"""
import json
import os
import random
import sys
import time
import uuid

import psycopg

# Workers do not claim what comes and goes, which has another one.
SOURCES = ('google_gmail', 'custom_crm')
# What has push channels
PUSH = 'google_gmail'


class Client:
    def __init__(self, conninfo, number, log):
        self.number = number
        self.random = random.Random(number)
        self.runs = {}
        self.log = open(log, 'w', encoding='ascii', buffering=1)
        # prepared statements are one more thing that has to notice a change
        self.db = psycopg.connect(conninfo, autocommit=True, prepare_threshold=0)

    def write(self, *fields):
        print(*fields, sep='\t', file=self.log)

    def call(self, sql, *arguments):
        """Rows, and when it was."""
        start = time.time()
        rows = self.db.execute(sql, arguments).fetchall()
        return rows, f'{start:.6f}\t{time.time():.6f}'

    def worker(self):
        rows, when = self.call('SELECT user_id, account, source, resource, lease'
                               ' FROM syncstate.claim_due_syncs(%s, %s)', self.random.choice(SOURCES), self.random.randint(1, 12))
        for u, account, source, resource, lease in rows:
            self.write('claim', when, f'{u} {account} {source} {resource}', lease)
        time.sleep(self.random.uniform(0.002, 0.02))
        reports = []
        for u, account, source, resource, lease in rows:
            if self.random.random() < 0.3:
                done, when = self.call('SELECT syncstate.may_sweep(%s, %s, %s, 50, 100, resource => %s, account => %s)',
                                       u, source, lease, resource, account)
                self.write('withheld', when, f'{u} {account} {source} {resource}', lease)
                if done != [(False,)]:
                    self.write('wrong', f'a sweep of {u}: {done}, {when}')
            report = {'user_id': str(u), 'account': account, 'source': source, 'resource': resource, 'lease': lease,
                      'sync_token': f'{lease:012d}'}
            if self.random.random() < 0.5:
                reports.append({**report, 'outcome': 'completed'})
                continue
            if self.random.random() < 0.5:
                done, _ = self.call('SELECT lease FROM syncstate.checkpoint_sync(%s, %s, %s, resource => %s,'
                                    ' account => %s)', u, source, lease, resource, account)
            done, when = self.call('SELECT sync_token FROM syncstate.mark_sync_completed(%s, %s, sync_token => %s,'
                                   ' lease => %s, resource => %s, account => %s)',
                                   u, source, report['sync_token'], lease, resource, account)
            self.written(report, when)
            if done != [(report['sync_token'],)]:
                self.write('wrong', f'{report} gave {done}')
        if reports:
            done, when = self.call('SELECT user_id::text, account, source::text, resource'
                                   ' FROM syncstate.report_syncs(%s)', json.dumps(reports))
            for report in reports:
                if (report['user_id'], report['account'], report['source'], report['resource']) in done:
                    self.written(report, when)
                else:
                    self.write('wrong', f'{report} was left out, {when}')

    def written(self, report, when):
        self.write('report', when, f'{report["user_id"]} {report["account"]} {report["source"]} {report["resource"]}',
                   report['lease'], report['sync_token'])

    def taker(self):
        rows, when = self.call('SELECT id, event, user_id, account, source::text, resource, lease, at'
                               ' FROM syncstate.take_sync_events(%s)', self.random.randint(1, 3))
        for ident, event, u, account, source, resource, lease, _ in rows:
            self.write('taken', when, ident, event, f'{u} {account} {source} {resource}', lease)
        if [row[7] for row in rows] != sorted(row[7] for row in rows):
            self.write('wrong', f'events out of order, {when}')
        time.sleep(0.1)

    def opener(self):
        rows, when = self.call('SELECT user_id, account, source, resource, action, lease, channel_id'
                               ' FROM syncstate.claim_push_channels(%s, %s)', PUSH, self.random.randint(1, 12))
        for u, account, source, resource, action, lease, channel in rows:
            named, row = (u, source, lease, resource, account), f'{u} {account} {source} {resource}'
            if action == 'stop':
                done, when = self.call('SELECT channel_id FROM syncstate.mark_channel_stopped'
                                       '(%s, %s, %s, resource => %s, account => %s)', *named)
                self.write('stopped', when, row, channel)
                if done != [(channel,)]:
                    self.write('wrong', f'{channel} was not stopped: {done}, {when}')
                continue
            channel = f'channel {lease} of {row}'
            life = self.random.randint(16, 120)
            done, when = self.call("SELECT state, channel_id FROM syncstate.mark_channel_opened(%s, %s, %s,"
                                   " resource => %s, account => %s, channel_id => %s, token => 'secret',"
                                   " expires_at => now() + %s * interval '1 s')", *named, channel, life)
            self.write('opened', when, row, channel, life)
            if done != [('active', channel)]:
                self.write('wrong', f'{channel} was not opened: {done}, {when}')
        time.sleep(0.05)

    def webhook(self):
        # not one that may be renewed and stopped meanwhile: during a switch that
        # fails, calls wait for its two lock timeouts, 3 s in all
        rows, when = self.call("SELECT channel_id FROM syncstate.sync_channel WHERE state = 'active'"
                               " AND source = %s AND renew_at > now() + interval '10 s' ORDER BY random() LIMIT 1", PUSH)
        channel = 'none'
        for (channel,) in rows:
            rows, when = self.call("SELECT syncstate.receive_push(%s, 'secret')", channel)
            self.write('pushed', when, channel)
            if rows != [(True,)]:
                self.write('wrong', f'push of {channel}: {rows}, {when}')
        rows, when = self.call("SELECT syncstate.receive_push(%s, 'another')", channel)
        self.write('look', when)
        if rows != [(False,)]:
            self.write('wrong', f'a wrong push: {rows}, {when}')
        time.sleep(0.02)

    def user(self):
        me = f'00000000-0000-4000-8000-{self.random.randrange(100):012d}'
        self.db.execute("SELECT set_config('request.jwt.claims', %s, false)", (json.dumps({'sub': me}),))
        rows, when = self.call('SELECT account, source::text FROM syncstate.my_syncs WHERE source::text = ANY (%s)'
                               ' ORDER BY 1, 2', list(SOURCES))
        self.write('look', when)
        if rows != [('', 'google_gmail'), ('work', 'custom_crm'), ('work', 'google_gmail')]:
            self.write('wrong', f'{me} sees {rows}, {when}')
        rows, when = self.call('SELECT count(*) FROM syncstate.my_sync_runs')
        self.write('look', when)
        if rows[0][0] < self.runs.get(me, 0):
            self.write('wrong', f'{me} had {self.runs[me]} runs, and has {rows[0][0]}, {when}')
        self.runs[me] = rows[0][0]
        rows, when = self.call("SELECT syncstate.request_sync(%s, 'google_gmail')", me)
        self.write('look', when)
        if rows != [(True,)]:
            self.write('wrong', f'request of {me}: {rows}, {when}')
        rows, when = self.call("SELECT source::text, resource FROM syncstate.request_account(%s, 'work')"
                               " WHERE source::text = ANY (%s)", me, list(SOURCES))
        self.write('look', when)
        if rows != [('google_gmail', ''), ('custom_crm', '')]:
            self.write('wrong', f'request of the account of {me}: {rows}, {when}')
        time.sleep(0.01)

    def backend(self):
        them = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        _, when = self.call("SELECT syncstate.connect_sync(%s, 'google_tasks')", them)
        self.write('connect', when, f'{them}  google_tasks ')
        rows, when = self.call("SELECT resource, change FROM syncstate.set_sync_resources(%s, 'google_tasks',"
                               " '{list}', 'home')", them)
        self.write('connect', when, f'{them} home google_tasks list')
        if rows != [('list', 'added')]:
            self.write('wrong', f'the list of {them}: {rows}, {when}')
        rows, when = self.call("SELECT account, resource FROM syncstate.get_sync_states(%s)", them)
        self.write('look', when)
        if rows != [('', ''), ('home', 'list')]:
            self.write('wrong', f'{them} has {rows}, {when}')
        if self.random.random() < 0.5:
            rows, when = self.call("SELECT syncstate.disconnect_sync(%s, 'google_tasks')", them)
            self.write('disconnect', when, f'{them}  google_tasks ')
            if rows != [(True,)]:
                self.write('wrong', f'{them} cannot be disconnected, {when}')
        if self.random.random() < 0.5:
            rows, when = self.call("SELECT resource FROM syncstate.disconnect_account(%s, 'home')", them)
            self.write('disconnect', when, f'{them} home google_tasks list')
            if rows != [('list',)]:
                self.write('wrong', f'the account of {them} cannot be disconnected, {when}')
        rows, when = self.call("SELECT rows FROM syncstate.sync_overview WHERE source = 'custom_crm'")
        self.write('look', when)
        if rows != [(100,)]:
            self.write('wrong', f'sync_overview: {rows}, {when}')
        _, when = self.call('SELECT syncstate.next_sync_due()')
        self.write('look', when)
        time.sleep(0.05)

    def run(self, role, stop):
        self.db.execute('SET ROLE ' + ('authenticated' if role == 'user' else 'service_role'))
        while not os.path.exists(stop):
            getattr(self, role)()


def main():
    conninfo, role, number, log, stop = sys.argv[1:]
    client = Client(conninfo, int(number), log)
    try:
        client.run(role, stop)
    except psycopg.Error as error:
        client.write('wrong', f'{role} {number}: {error.sqlstate} {error}'.replace('\n', ' '))


if __name__ == '__main__':
    main()
