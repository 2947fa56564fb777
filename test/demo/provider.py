#!/usr/bin/python3
"""A small provider on loopback HTTP, for the demo: four Google APIs, as far as syncing goes.

    GET /calendar/v3/calendars/{id}/events      syncToken; a dead one is 410 fullSyncRequired
    GET /tasks/v1/lists/{id}/tasks              updatedMin, showDeleted, showHidden, showCompleted
    GET /gmail/v1/users/me/profile|messages|messages/{id}|history      a dead historyId is 404
    GET /v1/people/me/connections               syncToken; a dead one is 400 EXPIRED_SYNC_TOKEN
    POST /control                               the demo's own levers: see class Control

Like the real ones it gives nextSyncToken on the last page only, refuses with 400 a page or a
token whose query differs from the one it was issued for, and misses no change that happens
while a listing is paged: a cursor always means "the state when the first page was asked for".

The access token of a request is the user's id. All data is made up from --seed, and each
(user, source) has a random sequence of its own, so the order of requests does not change it.
"""
import argparse
import json
import math
import random
import re
import sys
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

CALENDAR, TASKS, GMAIL, CONTACTS = SOURCES = (
    "google_calendar", "google_tasks", "google_gmail", "google_contacts")

# Gmail's history ids are unsigned 64-bit numbers. Each user starts at another one: where
# doubles lose digits, where signed integers end, and where the number of digits changes.
FIRST_HISTORY_ID = (9007199254740993, 9223372036854775790, 990, 12345678901234567890)

WORDS = "lunch dentist budget review plan trip school garden call café Grüße 会議 ❤".split()

# Page sizes: the parameter's name, its default, its maximum.
PAGE_SIZE = {CALENDAR: ("maxResults", 250, 2500), TASKS: ("maxResults", 20, 100),
             GMAIL: ("maxResults", 100, 500), CONTACTS: ("pageSize", 100, 1000)}

HOLD_LIMIT = 120        # seconds after which a held response goes out by itself


def rfc3339(when):
    return when.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Refused(Exception):
    """An answer that is an error, in the shape that Google gives it."""

    def __init__(self, status, reason, message, headers=None, style="classic", **more):
        self.status, self.headers = status, headers or {}
        error = {"code": status, "message": message}
        if style == "rpc":
            error["status"] = "FAILED_PRECONDITION"
            error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
                                 "reason": reason, "domain": "googleapis.com"}]
        else:
            error["errors"] = [{"domain": "global", "reason": reason, "message": message, **more}]
        self.body = {"error": error}


def bad_request(message):
    return Refused(400, "badRequest", message)


class Account:
    """What one user has at one source: items, the order in which they changed, and cursors.

    The caller must hold the provider's lock.
    """

    def __init__(self, seed, user, source, number, size):
        self.user, self.source = user, source
        self.random = random.Random(f"{seed}/{user}/{source}")
        self.version = FIRST_HISTORY_ID[number % len(FIRST_HISTORY_ID)]
        self.items = {}             # id -> what the API shows of it
        self.changed = {}           # id -> version and time of its last change, or deletion
        self.history = []           # Gmail: one record per change
        self.oldest = self.version  # Gmail: history before this one is gone
        self.pages = {}             # page token -> where it goes on
        self.tokens = {}            # sync token -> what it stands for
        self.limit = self.hold = None
        self.failing = 0
        self.is_gone = False
        self.log = []               # the requests that came, for the demo's checks
        for _ in range(size):
            self.add(days_ago=self.random.randint(1, 300))

    # ---- data

    def add(self, days_ago=0):
        name = "".join(self.random.choices("abcdefghijklmnopqrstuv0123456789", k=12))
        self.put("people/c" + name if self.source == CONTACTS else name, "messagesAdded", days_ago)

    def put(self, name, kind, days_ago=0):
        """Adds or changes an item."""
        when = datetime.now(timezone.utc) - timedelta(days=days_ago)
        self.touch(name, when, kind)
        text = " ".join(self.random.choices(WORDS, k=3))
        etag = f'"{self.random.getrandbits(60):x}"'
        if self.source == CALENDAR:
            item = {"kind": "calendar#event", "id": name, "etag": etag, "status": "confirmed",
                    "summary": text, "updated": rfc3339(when)}
        elif self.source == TASKS:
            item = {"kind": "tasks#task", "id": name, "etag": etag, "title": text,
                    "updated": rfc3339(when), "status": "needsAction"}
            if self.random.random() < 0.3:      # seen with showCompleted and showHidden only
                item.update(status="completed", completed=rfc3339(when), hidden=True)
        elif self.source == GMAIL:
            labels = self.random.sample(["INBOX", "UNREAD", "IMPORTANT", "STARRED"], 2)
            item = {"id": name, "threadId": name, "labelIds": labels, "snippet": text,
                    "historyId": str(self.version)}
        else:
            item = {"resourceName": name, "etag": etag, "names": [{"displayName": text}],
                    "metadata": {"objectType": "PERSON"}}
        self.items[name] = item

    def delete(self, name):
        self.touch(name, datetime.now(timezone.utc), "messagesDeleted")
        del self.items[name]

    def touch(self, name, when, kind):
        # history ids increase, but are not contiguous
        self.version += self.random.randint(1, 9) if self.source == GMAIL else 1
        self.changed[name] = (self.version, when)
        if self.source == GMAIL:
            message = {"id": name, "threadId": name}
            self.history.append({"id": str(self.version), "messages": [message],
                                 kind: [{"message": message}]})

    def mutate(self, add=0, change=0, delete=0):
        names = self.random.sample(sorted(self.items), min(change + delete, len(self.items)))
        for name in names[:change]:
            self.put(name, "labelsAdded")
        for name in names[change:]:
            self.delete(name)
        for _ in range(add):
            self.add()

    def forget(self):
        """Lets every cursor die and forgets what was deleted: only a full sync can find out."""
        self.tokens.clear()
        self.pages.clear()
        self.history.clear()
        self.oldest = self.version + 1
        self.version += 2
        self.changed = {name: self.changed[name] for name in self.items}

    # ---- listing

    def page(self, query, listing, names):
        """One page of names: those of this page, the next page's token, the listing's version.

        A page token remembers the query it belongs to; names come in a fixed order, so a page
        goes on after the last name of the page before, whatever was added or deleted since.
        """
        parameter, default, maximum = PAGE_SIZE[self.source]
        size = int(query.get(parameter, default))
        if not 1 <= size <= maximum:
            raise bad_request(f"{parameter} must be between 1 and {maximum}")
        same = [listing, sorted((k, v) for k, v in query.items() if k != "pageToken")]
        place = {"query": same, "after": "", "version": self.version, "number": 1}
        if "pageToken" in query:
            place = self.pages.get(query["pageToken"])
            if place is None or place["query"] != same:
                raise bad_request("Invalid pageToken, or the query differs from the first page's")
        rest = sorted(name for name in names if name > place["after"])
        token = None
        if len(rest) > size:
            token = f"page-{self.random.getrandbits(80):x}"
            self.pages[token] = dict(place, after=rest[size - 1], number=place["number"] + 1)
        return rest[:size], token, place["version"]

    def token_version(self, query, not_allowed, expired):
        """The version that the query's sync token stands for; None without a token."""
        token = query.get("syncToken")
        if token is None:
            return None
        for parameter in not_allowed:
            if parameter in query:
                raise bad_request(f"{parameter} cannot be specified together with syncToken")
        if token not in self.tokens:
            raise expired
        version, same = self.tokens[token]
        if same != self.fingerprint(query):
            raise bad_request("The query differs from the one that the syncToken was issued for")
        return version

    def fingerprint(self, query):
        return sorted((k, v) for k, v in query.items()
                      if k not in ("pageToken", "syncToken", "maxResults", "pageSize"))

    def issue_token(self, query, version):
        token = f"sync-{self.random.getrandbits(160):x}"
        self.tokens[token] = (version, self.fingerprint(query))
        return token

    def since(self, version):
        """Names changed or deleted after a version; without one, all that are there."""
        if version is None:
            return self.items
        return (name for name, (changed, _) in self.changed.items() if changed > version)

    # ---- the four APIs

    def events(self, query):
        gone = Refused(410, "fullSyncRequired",
                       "Sync token is no longer valid, a full sync is required.",
                       domain="calendar", locationType="parameter", location="syncToken")
        if self.is_gone:
            raise gone
        version = self.token_version(
            query, ("iCalUID", "orderBy", "q", "timeMin", "timeMax", "updatedMin"), gone)
        names, token, start = self.page(query, "events", self.since(version))
        body = {"kind": "calendar#events",
                "items": [self.items.get(n) or {"kind": "calendar#event", "id": n,
                                                "status": "cancelled"} for n in names]}
        return self.end(body, query, token, start)

    def connections(self, query):
        if not query.get("personFields"):
            raise bad_request("personFields mask is required.")
        version = self.token_version(
            query, (), Refused(400, "EXPIRED_SYNC_TOKEN", "Sync token is expired. Clear local "
                               "cache and retry call without the sync token.", style="rpc"))
        names, token, start = self.page(query, "connections", self.since(version))
        body = {"connections": [self.items.get(n) or {"resourceName": n, "metadata": {
                    "deleted": True}} for n in names], "totalItems": len(self.items)}
        if query.get("requestSyncToken") != "true" and not token:
            return body
        return self.end(body, query, token, start)

    def end(self, body, query, token, start):
        if token:
            body["nextPageToken"] = token
        else:
            body["nextSyncToken"] = self.issue_token(query, start)
        return body

    def tasks(self, query):
        wanted = {f for f in ("showDeleted", "showHidden") if query.get(f) == "true"}
        completed = query.get("showCompleted", "true") == "true"
        minimum = query.get("updatedMin")
        if minimum:
            try:
                minimum = datetime.fromisoformat(minimum)
            except ValueError:
                raise bad_request("Invalid updatedMin") from None

        def is_listed(name):
            item = self.items.get(name)
            if minimum and self.changed[name][1] < minimum:
                return False
            if item is None:
                return "showDeleted" in wanted
            return ((completed or item["status"] != "completed")
                    and ("showHidden" in wanted or not item.get("hidden")))

        names, token, _ = self.page(query, "tasks", filter(is_listed, self.changed))
        body = {"kind": "tasks#tasks",
                "items": [self.items.get(n) or {"kind": "tasks#task", "id": n, "deleted": True,
                                                "updated": rfc3339(self.changed[n][1])}
                          for n in names]}
        return body | ({"nextPageToken": token} if token else {})

    def messages(self, query):
        names, token, _ = self.page(query, "messages", self.items)
        body = {"messages": [{"id": n, "threadId": n} for n in names],
                "resultSizeEstimate": len(self.items)}
        return body | ({"nextPageToken": token} if token else {})

    def message(self, name):
        if name not in self.items:
            raise Refused(404, "notFound", "Requested entity was not found.")
        return self.items[name]

    def profile(self):
        return {"emailAddress": f"{self.user[:8]}@example.com", "messagesTotal": len(self.items),
                "historyId": str(self.version)}

    def list_history(self, query):
        start = query.get("startHistoryId", "")
        if not re.fullmatch(r"[0-9]{1,20}", start):
            raise bad_request("Invalid startHistoryId")
        if int(start) < self.oldest:
            raise Refused(404, "notFound", "Requested entity was not found.")
        records = {r["id"].rjust(20, "0"): r for r in self.history if int(r["id"]) > int(start)}
        names, token, _ = self.page(query, "history", records)
        body = {"historyId": str(self.version)}
        if names:
            body["history"] = [records[name] for name in names]
        return body | ({"nextPageToken": token} if token else {})


class Control:
    """The demo's levers: POST /control {"op": name, "user": ..., "source": ..., arguments}."""

    def __init__(self, provider):
        self.provider = provider

    def users(self):
        return self.provider.users

    def mutate(self, account, add=0, change=0, delete=0):
        account.mutate(add, change, delete)

    def expire(self, account, delete=0):
        """Deletes items, and at once lets all cursors and all trace of deletions go."""
        account.mutate(delete=delete)
        account.forget()

    def expire_pages(self, account):
        account.pages.clear()

    def limit(self, account, seconds, kind):
        """Refuses from the next request on, for some seconds: '403', '429' or '429 in words'."""
        account.limit = {"seconds": seconds, "kind": kind, "until": None}

    def fail(self, account, times):
        """Answers the next few requests with 503."""
        account.failing = times

    def gone(self, account, on):
        """Answers every listing of events with 410, even one without a token."""
        account.is_gone = on

    def garble(self, account):
        """Puts a NUL, which PostgreSQL cannot store, into one item."""
        name = min(account.items)
        account.put(name, "labelsAdded")
        account.items[name]["etag"] = "a\0b"

    def hold(self, account, page):
        """Lets requests for this page of a listing wait until release()."""
        account.hold = {"page": page, "go": threading.Event()}

    def release(self, account):
        account.hold["go"].set()
        account.hold = None

    def revoke(self, account):
        self.provider.revoked.add(account.user)

    def restore(self, account):
        self.provider.revoked.discard(account.user)

    def dump(self, account):
        return dict(account.items)

    def log(self, account):
        return list(account.log)

    def journal(self):
        """All requests there were, in order."""
        return sorted((dict(entry, user=a.user, source=a.source)
                       for a in self.provider.accounts.values() for entry in a.log),
                      key=lambda entry: entry["at"])


class Provider:
    """All accounts, and what a request goes through before an API answers it."""

    def __init__(self, seed, users):
        self.lock = threading.Lock()
        self.users = [str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{seed}.{n}")) for n in range(users)]
        self.revoked = set()
        sizes = random.Random(seed)
        self.accounts = {(user, source): Account(seed, user, source, n, sizes.randint(15, 35))
                         for n, user in enumerate(self.users) for source in SOURCES}
        self.started = time.monotonic()

    def control(self, op, user=None, source=None, **arguments):
        with self.lock:
            lever = getattr(Control(self), op)
            if user is not None:
                arguments["account"] = self.accounts[user, source]
            return lever(**arguments)

    def route(self, path):
        """The source a path belongs to, and the rest of what it names."""
        if re.fullmatch(r"/calendar/v3/calendars/[^/]+/events", path):
            return CALENDAR, "events"
        if re.fullmatch(r"/tasks/v1/lists/[^/]+/tasks", path):
            return TASKS, "tasks"
        if m := re.fullmatch(r"/gmail/v1/users/me/(profile|history|messages(?:/[^/]+)?)", path):
            return GMAIL, unquote(m[1])
        if path == "/v1/people/me/connections":
            return CONTACTS, "connections"
        raise Refused(404, "notFound", "Not Found")

    def answer(self, path, query, user, agent):
        source, what = self.route(path)
        if (user, source) not in self.accounts:
            raise Refused(401, "authError", "Invalid Credentials")
        account = self.accounts[user, source]
        with self.lock:
            page = self.page_number(account, what, query)
            entry = {"at": time.monotonic() - self.started, "agent": agent, "what": what,
                     "page": page, "query": query, "status": 0}
            account.log.append(entry)
            hold = account.hold
        if hold and hold["page"] == page:
            hold["go"].wait(HOLD_LIMIT)
        try:
            with self.lock:
                self.check_gates(account)
                body = self.dispatch(account, what, query)
                entry["status"] = 200
                return body
        except Refused as error:
            entry["status"] = error.status
            raise

    def page_number(self, account, what, query):
        """Which page of its listing a request asks for; none if it is no listing."""
        if what == "profile" or what.startswith("messages/"):
            return None
        place = account.pages.get(query.get("pageToken"))
        return place["number"] if place else 1

    def check_gates(self, account):
        if account.user in self.revoked:
            raise Refused(401, "authError", "Invalid Credentials")
        if account.failing:
            account.failing -= 1
            raise Refused(503, "backendError", "Backend Error")
        if account.limit:
            self.check_limit(account)

    def check_limit(self, account):
        limit, now = account.limit, time.monotonic()
        if limit["until"] is None:
            limit["until"] = now + limit["seconds"]
        left = limit["until"] - now
        if left <= 0:
            account.limit = None
            return
        if limit["kind"] == "429 in words":     # Gmail says it in the message, as a time
            until = rfc3339(datetime.now(timezone.utc) + timedelta(seconds=left + 0.001))
            raise Refused(429, "userRateLimitExceeded",
                          f"User-rate limit exceeded.  Retry after {until}")
        reason = "rateLimitExceeded"
        raise Refused(int(limit["kind"]), reason, "Rate Limit Exceeded",
                      headers={"Retry-After": str(math.ceil(left))}, domain="usageLimits")

    def dispatch(self, account, what, query):
        if what.startswith("messages/"):
            return account.message(what.removeprefix("messages/"))
        if what == "profile":
            return account.profile()
        listing = {"events": account.events, "tasks": account.tasks,
                   "messages": account.messages, "history": account.list_history,
                   "connections": account.connections}[what]
        return listing(query)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = urlsplit(self.path)
        user = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.reply(lambda: self.server.provider.answer(
            parts.path, dict(parse_qsl(parts.query)), user, self.headers.get("User-Agent", "")))

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply(lambda: self.server.provider.control(**request))

    def reply(self, make_body):
        status, headers = 200, {}
        try:
            body = make_body()
        except Refused as error:
            status, headers, body = error.status, error.headers, error.body
        try:
            # The Date header is set after the data was read, and in whole seconds: whoever
            # takes it as a cursor needs an overlap, as with the real ones.
            self.send_response(status)
            data = json.dumps(body, ensure_ascii=False).encode()
            for name, value in {"Content-Type": "application/json; charset=UTF-8",
                                "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            pass                    # the client is gone: a killed worker

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, provider, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.provider = provider


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--port", type=int, default=0, help="0 = any free one")
    options.add_argument("--seed", default="1")
    options.add_argument("--users", type=int, default=12)
    arguments = options.parse_args()
    server = Server(Provider(arguments.seed, arguments.users), arguments.port)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
