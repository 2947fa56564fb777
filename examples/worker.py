#!/usr/bin/python3
"""A worker: asks the database what is due, fetches it, writes items and cursor, reports.

Copy it together with google_apis.py and items.sql, and change save_page() there, which writes a
page into your tables and reports it. It needs psycopg 3 (Debian: python3-psycopg) and a login role
that was given to syncstate.grant_worker() and may write the items. Run as many as you like, on as
many machines as you like: the database never hands one row to two of them.

The database may be a router (see doc/sharding.md), with items_router.sql: to a worker it looks the
same.

    DATABASE_URL   which database; without it libpq's PGHOST, PGDATABASE and so on (a connection
                   of our own: LISTEN does not work through a transaction pooler)
    SYNC_SOURCE    serve this source only; without it, all
    BATCH          how many rows to claim at once
    WORKER_NAME    for the log

Every report carries the lease. If somebody else has the row by then, because this process was
stopped for too long, the report fails with PT409, and the items that came with it in the same
call are not written: a late worker changes nothing.
"""
import json
import os
import select
import signal
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

from google_apis import NAME, PAGES, ApiError, is_list

DATABASE_URL = os.environ.get("DATABASE_URL", "")
SOURCE = os.environ.get("SYNC_SOURCE") or None
BATCH = int(os.environ.get("BATCH", "5"))


class LeaseLost(Exception):
    """Somebody else has the row by now, or it is gone: what was fetched is not ours to write.

    Or its shard does not answer, while others do: then the lease ends by itself.
    """


class Worker:
    def __init__(self, db, stop):
        self.db, self.stop = db, stop
        self.held = []                      # the rows we have a lease of; the first is in work
        self.pool = ThreadPoolExecutor()    # fetches, while we renew the leases
        self.notified = False
        db.add_notify_handler(self.on_notify)
        db.add_notice_handler(lambda notice: print(f"{NAME}: {notice.message_primary}", flush=True))
        db.execute("LISTEN syncstate")

    def run(self):
        while not self.stop.asked:
            self.notified = False
            self.held = self.db.execute("SELECT * FROM syncstate.claim_due_syncs(%s, %s)",
                                        (SOURCE, BATCH)).fetchall()
            if not self.held:
                self.sleep()
                continue
            leases = [row.lease_expires_at - row.last_sync_at for row in self.held]
            self.renew_every = min(leases).total_seconds() / 3
            self.renew_at = time.monotonic() + self.renew_every
            while self.held:
                row = self.held[0]
                self.serve(row)
                del self.held[0]

    def call(self, function, row, **arguments):
        """A call with the row's lease; a lifecycle call returns the row as it is then."""
        arguments |= {"user_id": row.user_id, "account": row.account, "source": row.source,
                      "resource": row.resource, "lease": row.lease}
        names = ", ".join(f"{name} => %({name})s" for name in arguments)
        try:
            return self.db.execute(f"SELECT * FROM {function}({names})", arguments).fetchone()
        except psycopg.DatabaseError as error:
            if error.diag.sqlstate in ("PT409", "PT404", "08006"):
                raise LeaseLost(error.diag.message_primary) from error
            raise

    def serve(self, row):
        """Syncs a row, and reports whatever comes of it."""
        try:
            if self.stop.asked:
                self.release(row, "not begun")
            else:
                self.sync(row)
        except LeaseLost as error:
            self.log(row, f"dropped: {error}")

    def sync(self, row):
        try:
            self.turn_pages(row)
        except ApiError as error:
            self.log(row, error)
            if error.is_rate_limit:
                self.call("syncstate.mark_rate_limited", row, retry_after=error.retry_after)
            else:
                self.call("syncstate.mark_sync_failed", row, error_message=str(error),
                          kind=error.kind)
            if error.is_rate_limit or error.kind == "auth":     # of the account, others wait too
                self.release_waiting("its account must wait", lambda other: (
                    (other.user_id, other.account) == (row.user_id, row.account)
                    and (error.kind == "auth" or other.source == row.source)))
        except (LeaseLost, psycopg.OperationalError):
            raise                           # without a database, the leases end by themselves
        except Exception as error:          # one strange item must not stop all other syncs
            traceback.print_exc()
            self.call("syncstate.mark_sync_failed", row, error_message=repr(error),
                      kind="permanent")

    def turn_pages(self, row):
        """Page by page: what a page holds and where it ends, in one call, so in one transaction."""
        place, is_resumed = self.place(row)
        while True:
            try:
                items, next_page, cursor = self.fetch(row, place)
            except ApiError as error:
                if error.cursor_is_dead:
                    self.log(row, error)
                    row = self.call("syncstate.clear_sync_token", row)
                    if row.status != "syncing":
                        return              # once too often: the database makes it wait
                elif not (is_resumed and error.status == 400):
                    raise
                # from the beginning: the cursor is dead, or the page token too old
                place, is_resumed = self.place(row._replace(page_token=None))
                continue
            is_resumed = False
            place |= {"page": next_page, "done": place["done"] + len(items)}
            self.call("save_page", row, found=Jsonb(items), full_sync=row.full_sync_id,
                      done=place["done"], page_token=json.dumps(place) if next_page else None,
                      is_list=is_list(row), **cursor)
            if not next_page:
                break
            if self.stop.asked:             # whoever comes next goes on at the next page
                return self.release(row, f"after {place['done']} items")
        kind = "full" if row.full_sync_id else "incremental"
        self.log(row, f"{kind} sync, {place['done']} items")

    def place(self, row):
        """Where to begin, and whether that is between the pages of a run that did not end.

        page_token is a text of ours, so it holds all that such a run must leave behind, as JSON.
        """
        try:
            place = json.loads(row.page_token or "")
            if place["done"] >= 0 and place["page"]:
                return place, True
        except (ValueError, LookupError, TypeError):
            pass                            # none, or not ours
        return {"done": 0, "page": None}, False

    def fetch(self, row, place):
        """One page, in a thread, while we keep the lease alive, however long that takes."""
        future = self.pool.submit(PAGES[row.source], row, place)
        is_done = False
        while not is_done:
            seconds = min(1, max(0, self.renew_at - time.monotonic()))     # 1: see whether to stop
            is_done = wait([future], timeout=seconds).done
            if self.stop.asked:             # whoever ends us may not wait as long as the provider
                self.release_waiting("not begun")
            if time.monotonic() >= self.renew_at:
                self.release_waiting("waited too long")
                self.renew_lease(row)
        return future.result()

    def renew_lease(self, row):
        with suppress(LeaseLost):           # the next report will say it again
            self.call("syncstate.renew_sync_lease", row)
        self.renew_at = time.monotonic() + self.renew_every

    def release_waiting(self, why, which=lambda row: True):
        """Those that wait behind the row in work go back: another worker may be free."""
        for row in list(filter(which, self.held[1:])):
            self.held.remove(row)
            with suppress(LeaseLost):
                self.release(row, why)

    def release(self, row, why):
        self.call("syncstate.release_sync", row)
        self.log(row, f"released, {why}")

    def sleep(self):
        """Until work falls due or somebody notifies us, and without asking in between.

        Ten minutes at most, in case somebody writes into sync_state by hand.
        """
        seconds, = self.db.execute(
            """SELECT extract(epoch FROM least(syncstate.next_sync_due(%s),
                                               clock_timestamp() + '10 minutes')
                                         - clock_timestamp())::float8""", (SOURCE,)).fetchone()
        if not self.notified and not self.take_notifications():
            select.select([self.db, self.stop], [], [], max(seconds, 0.05))
            self.take_notifications()

    def take_notifications(self):
        self.db.pgconn.consume_input()
        while self.db.pgconn.notifies():
            self.notified = True
        return self.notified

    def on_notify(self, _):                 # one came along with the answer to a query
        self.notified = True

    def log(self, row, text):
        who = " ".join(filter(None, (str(row.user_id), row.account, row.resource)))
        print(f"{NAME}: {row.source} of {who}: {text}", flush=True)


class Stop:
    """SIGTERM and SIGINT, in a form that select() can wait for."""

    def __init__(self):
        self.asked = False
        self.reader, self.writer = socket.socketpair()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.ask)

    def ask(self, *_):
        self.asked = True
        self.writer.send(b"!")

    def fileno(self):
        return self.reader.fileno()


def main():
    stop = Stop()
    while not stop.asked:
        try:
            with psycopg.connect(DATABASE_URL, autocommit=True, row_factory=namedtuple_row) as db:
                Worker(db, stop).run()
        except psycopg.OperationalError as error:
            print(f"{NAME}: database: {error}", flush=True)
            select.select([stop], [], [], 5)


if __name__ == "__main__":
    main()
