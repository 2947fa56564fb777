#!/usr/bin/python3
"""Opens, renews and stops the push channels of Calendar and Gmail, as the database says.

doc/push.md tells what else it takes. Copy it with google_apis.py. It needs psycopg 3 (Debian:
python3-psycopg), what google_apis.py says about push, and a login role that was given to
syncstate.grant_worker(). One is enough; where there are more, no two get the same channel.

DATABASE_URL says which database; without it libpq's PGHOST, PGDATABASE and so on. PAUSE is how
many seconds it waits when there is nothing to do.
"""
import os
import select
import signal
import socket
import time
import traceback

import psycopg
from psycopg.rows import namedtuple_row

from google_apis import CHANNELS, NAME, ApiError

PAUSE = float(os.environ.get("PAUSE", "30"))

bell, rope = socket.socketpair()            # a signal, in a form that select() can wait for
unrecorded = []                             # what the provider has opened, until the database knows


def is_asked_to_stop(seconds=0):
    return bool(select.select([bell], [], [], seconds)[0])


def work(db):
    record(db)                              # what was opened when the connection broke
    pause = 0
    while not is_asked_to_stop(pause):
        rows = [row for source in CHANNELS for row in db.execute(
            "SELECT * FROM syncstate.claim_push_channels(%s, 1)", (source,))]
        for row in rows:
            serve(db, row)
        pause = 0 if rows else PAUSE


def report(db, function, row, **arguments):
    """A call with the lease of the row's channel; returns the channel as it is then."""
    arguments |= {k: getattr(row, k) for k in "user_id account source resource lease".split()}
    names = ", ".join(f"{name} => %({name})s" for name in arguments)
    try:
        return db.execute(f"SELECT * FROM syncstate.{function}({names})", arguments).fetchone()
    except psycopg.DatabaseError as error:
        if error.diag.sqlstate != "PT409":
            raise                           # without a database, the lease ends by itself
        log(row, "dropped: another worker has it")


def serve(db, row):
    """Does what is to be done about a channel, and reports what came of it."""
    watch, stop = CHANNELS[row.source]
    try:
        if row.action == "stop":
            try:
                stop(row)
            except ApiError as error:
                if error.status != 404:     # else it has ended already
                    raise
            if report(db, "mark_channel_stopped", row):
                log(row, "stopped")
        else:                               # renewed by another one, which overlaps
            unrecorded.append((row, watch(row)))
            record(db)
    except ApiError as error:
        log(row, error)
        report(db, "mark_channel_failed", row, error_message=str(error), kind=kind_of(error))
    except psycopg.Error:
        raise
    except Exception as error:              # an answer of another form than we know
        traceback.print_exc()
        report(db, "mark_channel_failed", row, error_message=repr(error))


def record(db):
    """Tells the database what was opened; if the connection breaks, the next one does it again.

    A channel that is told of twice is the same one. Where another worker was faster, or the row
    is gone, it is recorded all the same, and will be claimed to be stopped.
    """
    while unrecorded:
        row, opened = unrecorded[0]
        try:
            channel = report(db, "mark_channel_opened", row, **opened)
            log(row, f"{channel.state} until {channel.expires_at:%Y-%m-%d %H:%M:%S%z}")
        except (psycopg.errors.UniqueViolation, psycopg.DataError) as error:
            # The mailbox is another row's too, which has its one channel: do not stop it. Or, if
            # it is no more than a bad value, the channel has ended before it could be told of.
            log(row, error.diag.message_primary)
            is_taken = isinstance(error, psycopg.errors.UniqueViolation)
            report(db, "mark_channel_failed", row, error_message=error.diag.message_primary,
                   kind="unsupported" if is_taken else "transient")
        del unrecorded[0]


def kind_of(error):
    # "push.": Google does not accept our URL. The user is not to blame, and we can correct it.
    if (error.is_rate_limit or error.kind == "transient"
            or any(reason.startswith("push.") for reason in error.reasons)):
        return "transient"
    return "auth" if error.status == 401 or "invalid_grant" in error.reasons else "unsupported"


def log(row, text):
    who = " ".join(filter(None, (str(row.user_id), row.account, row.resource)))
    print(f"{NAME}: {row.action} {row.source} of {who}: {text}", flush=True)


def main():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: rope.send(b"!"))
    while unrecorded or not is_asked_to_stop():
        try:
            url = os.environ.get("DATABASE_URL", "")
            with psycopg.connect(url, autocommit=True, row_factory=namedtuple_row) as connection:
                work(connection)
        except psycopg.OperationalError as error:
            print(f"{NAME}: database: {error}", flush=True)
            if is_asked_to_stop(5):
                time.sleep(1)


if __name__ == "__main__":
    main()
