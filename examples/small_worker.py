#!/usr/bin/python3
"""A small worker, to read or to start from: a whole sync in memory, then into the database.

worker.py does more: it checkpoints each page, so that a long sync goes on where it was, and
claims many rows at once. Copy this one with google_apis.py and items.sql. It needs psycopg 3
(Debian: python3-psycopg) and a login role that was given to syncstate.grant_worker() and may
write the items. Run as many as you like.

DATABASE_URL says which database; without it libpq's PGHOST, PGDATABASE and so on. It takes a
connection of our own: LISTEN does not work through a transaction pooler.
"""
import os
import select
import signal
import socket
from concurrent.futures import ThreadPoolExecutor, wait

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

from google_apis import NAME, PAGES, ApiError, is_list

bell, rope = socket.socketpair()            # a signal, in a form that select() can wait for
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: rope.send(b"!"))
pool = ThreadPoolExecutor()                 # fetches, while we renew the lease


def is_asked_to_stop(seconds=0, *others):
    return bell in select.select([bell, *others], [], [], seconds)[0]


def work(db):
    notified = []                           # what came along with the answers to queries
    db.add_notify_handler(notified.append)
    db.execute("LISTEN syncstate")
    while not is_asked_to_stop():
        notified.clear()
        if row := db.execute("SELECT * FROM syncstate.claim_due_syncs(max_rows => 1)").fetchone():
            print(f"{NAME}: {row.source} of {row.user_id}: {serve(db, row)}", flush=True)
            continue
        seconds, = db.execute("""SELECT extract(epoch FROM least(syncstate.next_sync_due(),
            clock_timestamp() + '10 minutes') - clock_timestamp())::float8""").fetchone()
        if not notified and not db.pgconn.notifies():
            print(f"{NAME}: sleeps", flush=True)
            is_asked_to_stop(max(seconds, 0.05), db)


def call(db, function, row, **arguments):
    """A call with the row's lease; a lifecycle call returns the row as it is then."""
    arguments |= {k: getattr(row, k) for k in "user_id account source resource lease".split()}
    names = ", ".join(f"{name} => %({name})s" for name in arguments)
    return db.execute(f"SELECT * FROM {function}({names})", arguments).fetchone()


def serve(db, row):
    """Syncs a row and reports; tells what came of it."""
    try:
        try:
            return sync(db, row)
        except (ApiError, psycopg.DataError, psycopg.IntegrityError) as error:  # or a strange item
            kind = getattr(error, "kind", "permanent")
            if getattr(error, "is_rate_limit", False):
                call(db, "syncstate.mark_rate_limited", row, retry_after=error.retry_after)
            else:
                call(db, "syncstate.mark_sync_failed", row, error_message=str(error), kind=kind)
            return error
    except psycopg.DatabaseError as error:
        if error.diag.sqlstate not in ("PT409", "PT404"):
            raise                           # without a database, the lease ends by itself
        return f"dropped: {error.diag.message_primary}"


def sync(db, row):
    """All pages; then items and cursor in one transaction: both or neither."""
    place, found = {"page": None}, {}
    while True:
        if is_asked_to_stop():
            call(db, "syncstate.release_sync", row)
            return "released"
        try:
            items, place["page"], cursor = fetch(db, row, place)
        except ApiError as error:
            if not error.cursor_is_dead:
                raise
            if (row := call(db, "syncstate.clear_sync_token", row)).status != "syncing":
                return error
            place, found = {"page": None}, {}               # from the beginning, in full
            continue
        found |= items
        if place["page"] is None:
            break
        call(db, "syncstate.checkpoint_sync", row, progress_done=len(found))  # and renews
    is_full = row.full_sync_id is not None
    with db.transaction():
        call(db, "write_items", row, found=Jsonb(found), is_full=is_full, is_list=is_list(row))
        call(db, "syncstate.mark_sync_completed", row, items_synced=len(found), **cursor)
    return f"{'full' if is_full else 'incremental'} sync, {len(found)} items"


def fetch(db, row, place):
    """One page, in a thread; the heartbeat, each third of the lease, however long that takes."""
    future = pool.submit(PAGES[row.source], row, place)
    every = (row.lease_expires_at - row.last_sync_at).total_seconds() / 3
    while not wait([future], timeout=every).done:
        call(db, "syncstate.renew_sync_lease", row)
    return future.result()


while not is_asked_to_stop():
    try:
        url = os.environ.get("DATABASE_URL", "")
        with psycopg.connect(url, autocommit=True, row_factory=namedtuple_row) as connection:
            work(connection)
    except psycopg.OperationalError as error:
        print(f"{NAME}: database: {error}", flush=True)
        is_asked_to_stop(5)
