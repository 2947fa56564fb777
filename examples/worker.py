#!/usr/bin/python3
"""A worker that runs CONCURRENCY syncs at a time.

Copy it with google_apis.py and items.sql. It needs psycopg 3 (Debian: python3-psycopg), and a role
that was given to grant_worker() and may write the items. A router takes items_router.sql as well.
"""
import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

from google_apis import NAME, PAGES, ApiError, is_list      # yours to change

CONCURRENCY = int(os.environ.get("CONCURRENCY", "8"))
SOURCE = os.environ.get("SYNC_SOURCE") or None              # None: all
DATABASE = os.environ.get("DATABASE_URL", "")               # else PGHOST, PGDATABASE...
DOWN = psycopg.OperationalError, OSError                    # the database, or the tokens
BEGINNING = '{"page": null, "done": 0}'
requests = ThreadPoolExecutor(CONCURRENCY)                  # urllib blocks


def connect():
    return psycopg.AsyncConnection.connect(DATABASE, autocommit=True, row_factory=namedtuple_row)


def first_of(futures, seconds=None):
    return asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


class Worker:
    def __init__(self, db, stop):
        self.db = db                                        # makes one short call after another
        self.end = asyncio.create_task(stop.wait())         # when it is done, each sync ends

    async def run(self, listener):
        """Claims as many rows as there are places, until it is stopped or something breaks."""
        await listener.execute("LISTEN syncstate")          # not through a transaction pooler
        notifications, notified, running = listener.notifies(), None, set()
        try:
            while not self.end.done():
                rows = await self.query("SELECT * FROM syncstate.claim_due_syncs(%s, %s)",
                                        SOURCE, CONCURRENCY - len(running))
                running |= {asyncio.create_task(self.serve(row)) for row in rows}
                if len(running) == CONCURRENCY:             # ask nothing meanwhile
                    await first_of(running)
                elif not rows:
                    (seconds,), = await self.query("""SELECT extract(epoch FROM least(
                        syncstate.next_sync_due(%s), clock_timestamp() + '10 minutes')
                        - clock_timestamp())::float8""", SOURCE)
                    print(f"{NAME}: sleeps", flush=True)
                    notified = notified or asyncio.create_task(notifications.__anext__())
                    await first_of({self.end, notified, *running}, max(seconds, 0.05))
                    if notified.done():
                        notified = notified.result() and None       # or raises what broke
                running = {sync for sync in running if not sync.done()}
        finally:
            self.end.cancel()
            if notified:
                notified.cancel()
            await asyncio.gather(*running)

    async def query(self, statement, *arguments):
        return await (await self.db.execute(statement, arguments)).fetchall()

    async def call(self, function, row, **arguments):
        """A call about a row: every argument by name, and always with the lease."""
        arguments |= {k: getattr(row, k) for k in "user_id account source resource lease".split()}
        names = ", ".join(f"{name} => %s" for name in arguments)
        return (await self.query(f"SELECT * FROM {function}({names})", *arguments.values()))[0]

    async def serve(self, row):
        """Syncs a row, and reports whatever comes of it."""
        try:
            try:
                outcome = await self.sync(row)
            except Exception as error:                      # of this row: the others go on
                if isinstance(error, psycopg.Error) and error.diag.sqlstate in ("PT409", "PT404"):
                    raise
                is_told = isinstance(error, ApiError)       # to users, who can read error_message
                outcome = str(error) if is_told else repr(error)
                if getattr(error, "is_rate_limit", False):
                    await self.call("syncstate.mark_rate_limited", row, retry_after=error.retry_after)
                else:
                    kind = "transient" if isinstance(error, DOWN) else "permanent"
                    await self.call("syncstate.mark_sync_failed", row, kind=getattr(error, "kind", kind),
                                    error_message=outcome if is_told else "the sync failed")
        except psycopg.Error as error:      # the lease is lost; or no database, and it ends by itself
            outcome = f"dropped: {error}"
        who = " ".join(filter(None, (str(row.user_id), row.account, row.resource)))
        print(f"{NAME}: {row.source} of {who}: {outcome}", flush=True)

    async def sync(self, row):
        """Page by page: each page's items and the place where it ends are one transaction."""
        place, is_resumed = json.loads(row.page_token or BEGINNING), bool(row.page_token)
        heartbeat = (row.lease_expires_at - row.last_sync_at).total_seconds() / 3
        while page := await self.fetch(row, place, heartbeat):
            try:
                items, next_page, cursor = page.result()
            except ApiError as error:
                if error.cursor_is_dead:
                    row = await self.call("syncstate.clear_sync_token", row)
                    if row.status != "syncing":
                        return "cursor refused too often"
                elif not (is_resumed and error.status == 400):
                    raise
                place = json.loads(BEGINNING)               # start again
            else:
                place |= {"page": next_page, "done": place["done"] + len(items)}
                await self.call("save_page", row, found=Jsonb(items), full_sync=row.full_sync_id,
                                done=place["done"], page_token=json.dumps(place) if next_page else None,
                                is_list=is_list(row), **cursor)
                if not next_page:
                    return f"{'full' if row.full_sync_id else 'incremental'} sync, {place['done']} items"
            is_resumed = False
        await self.call("syncstate.release_sync", row, delay="0" if row.source in PAGES else "10 s")
        return "released"

    async def fetch(self, row, place, heartbeat):
        """A page; None if we are to end. Lost leases are noticed meanwhile, and nobody waits on."""
        if row.source in PAGES and not self.end.done():
            page = asyncio.get_running_loop().run_in_executor(requests, PAGES[row.source], row, place)
            try:
                while not (await first_of({page, self.end}, heartbeat))[0]:
                    await self.call("syncstate.renew_sync_lease", row)
                return page if page.done() else None
            finally:
                page.cancel()


async def main():
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set():
        try:
            async with await connect() as db, await connect() as listener:
                await Worker(db, stop).run(listener)
        except psycopg.Error as error:
            print(f"{NAME}: database: {error}", flush=True)
            await first_of({asyncio.create_task(stop.wait())}, 5)
    os._exit(0)     # without the requests that nobody waits for


asyncio.run(main())
