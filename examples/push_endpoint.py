#!/usr/bin/python3
"""Where Calendar's and Gmail's push messages arrive: a small HTTP server for doc/push.md.

It needs psycopg 3 (Debian: python3-psycopg), and in front of it what speaks https for it. A
message becomes one call of syncstate.receive_push(), and a worker that sleeps is woken. Run as
many as you like.

    DATABASE_URL   which database; without it libpq's PGHOST, PGDATABASE and so on. As a role that
                   may execute receive_push(), and needs nothing else
    PUSH_TOKEN     the secret in the URL of Gmail's push subscription: ...?token=SECRET
    HOST, PORT     where to listen

The answers: 204, it is taken. 404, nobody has this channel: Calendar forgets the message. 503, the
database is away: the provider sends it again.
"""
import base64
import hmac
import json
import os
import queue
import re
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import psycopg

DATABASE_URL = os.environ.get("DATABASE_URL", "")
PUSH_TOKEN = os.environ.get("PUSH_TOKEN", "")
LARGEST = 65536         # bytes of a body; Gmail's have some hundred
PATIENCE = 5            # seconds to wait for a connection

connections = queue.LifoQueue()
for _ in range(4):
    connections.put(None)       # each is made when it is needed first


def receive_push(channel_id, token, number):
    """False for an unknown channel, or a wrong token."""
    db = connections.get(timeout=PATIENCE)
    try:
        if db is None or db.closed:
            db = psycopg.connect(DATABASE_URL, autocommit=True, connect_timeout=PATIENCE,
                                 options="-c statement_timeout=10s")
        return db.execute("SELECT syncstate.receive_push(%s, %s, %s)",
                          (channel_id, token, number)).fetchone()[0]
    finally:
        connections.put(db)


def message_number(text):
    """As a bigint. Gmail's may be larger; without a number no message is taken for a repeat."""
    number = int(text) if re.fullmatch("[0-9]{1,20}", text or "") else 2 ** 63
    return number if number < 2 ** 63 else None


class Endpoint(BaseHTTPRequestHandler):
    timeout = 10        # seconds without a byte; a proxy in front limits the whole request

    def do_POST(self):
        try:
            channel = self.headers["X-Goog-Channel-ID"]
            status = self.gmail() if channel is None else self.calendar(channel)
        except (psycopg.Error, queue.Empty) as error:
            # text that the database cannot take, it never will
            status = self.refuse(400 if isinstance(error, psycopg.DataError) else 503, error)
        except Exception as error:      # not a message of theirs
            status = self.refuse(400, error)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def calendar(self, channel):
        """All is in the headers. That a channel begins is told with state "sync"."""
        if self.headers["X-Goog-Resource-State"] == "sync":
            return 204
        number = message_number(self.headers["X-Goog-Message-Number"])
        token = self.headers["X-Goog-Channel-Token"]
        return 204 if receive_push(channel, token, number) else 404

    def gmail(self):
        """The body is Pub/Sub's; the message in it says which mailbox has changed.

        Pub/Sub sends again, for days, what is not answered with success. So one of a mailbox that
        is not watched any more is taken, too.
        """
        token = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        if not PUSH_TOKEN or not hmac.compare_digest(token.encode(), PUSH_TOKEN.encode()):
            return 404
        length = int(self.headers["Content-Length"])
        if not 0 <= length <= LARGEST:
            return 413
        message = json.loads(self.rfile.read(length))["message"]
        change = json.loads(base64.urlsafe_b64decode(message["data"]))
        address, number = change["emailAddress"], message_number(str(change["historyId"]))
        if not isinstance(address, str):
            raise TypeError("not the address of a mailbox")
        receive_push(address, PUSH_TOKEN, number)
        return 204

    def refuse(self, status, error):
        print(f"{status}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return status

    def log_request(self, *_):
        pass            # the path has the token


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server = Server((os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8080"))),
                    Endpoint)
    print(f"http://{server.server_address[0]}:{server.server_port}", flush=True)
    server.serve_forever()
