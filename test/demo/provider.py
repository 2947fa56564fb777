#!/usr/bin/python3
"""A small provider on loopback HTTP, for the demo: four Google APIs, as far as syncing goes.

    GET /calendar/v3/users/me/calendarList      syncToken; a dead one is 410 fullSyncRequired
    GET /calendar/v3/calendars/{id}/events      the same
    GET /tasks/v1/users/@me/lists               neither tokens nor times
    GET /tasks/v1/lists/{id}/tasks              updatedMin, showDeleted, showHidden, showCompleted
    GET /gmail/v1/users/me/profile|messages|messages/{id}|history      a dead historyId is 404
    GET /v1/people/me/connections               syncToken; a dead one is 400 EXPIRED_SYNC_TOKEN
    POST .../calendarList/watch|.../events/watch, /calendar/v3/channels/stop    see class Push
    POST /gmail/v1/users/me/watch|stop          one watch for each mailbox
    POST /control                               the demo's own levers: see class Control

Like the real ones it gives nextSyncToken on the last page only, refuses with 400 a page or a
token whose query differs from the one it was issued for, and misses no change that happens
while a listing is paged: a cursor always means "the state when the first page was asked for".

The access token of a request is the user's id, a slash, and which account of theirs; a refreshed
one ends with an exclamation mark. An account may have MAX_IN_FLIGHT requests of a source at the
same time: one more is refused with 429. All data is made up from --seed, and each listing has a
random sequence of its own, so the order of requests does not change it.
"""
import argparse
import base64
import json
import math
import random
import re
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

CALENDAR, TASKS, GMAIL, CONTACTS = SOURCES = (
    "google_calendar", "google_tasks", "google_gmail", "google_contacts")

# Gmail's history ids are unsigned 64-bit numbers. Each user starts at another one: where
# doubles lose digits, where signed integers end, and where the number of digits changes.
FIRST_HISTORY_ID = (9007199254740993, 9223372036854775790, 990, 12345678901234567890)

WORDS = "lunch dentist budget review plan trip school garden call café Grüße 会議 ❤".split()

# Page sizes: the parameter's name, its default, its maximum.
PAGE_SIZE = {"calendarList": ("maxResults", 100, 250), "events": ("maxResults", 250, 2500),
             "lists": ("maxResults", 1000, 1000), "tasks": ("maxResults", 20, 100),
             "messages": ("maxResults", 100, 500), "history": ("maxResults", 100, 500),
             "connections": ("pageSize", 100, 1000)}

MAX_IN_FLIGHT = 2       # requests of an account and source at the same time
HOLD_LIMIT = 120        # seconds after which a held response goes out by itself


def own_id(user, account, source):
    """The calendar and the task list that each account has; else what is listed has no id."""
    own = {CALENDAR: account or f"{user[:8]}@example.com", TASKS: f"list-{user[:8]}"}
    return own.get(source, "")


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
    """What one account of a user has at one source: listings, and what its requests meet.

    Of Calendar and Tasks, the listing '' is that of the calendars or task lists, and these are
    there as long as it has them. The caller must hold the provider's lock.
    """

    def __init__(self, seed, user, name, source, number, size):
        self.seed, self.user, self.name, self.source = seed, user, name, source
        self.number, self.size = number, size
        self.listings = {}          # resource -> Listing
        self.limit = None
        self.touched = set()        # listings with changes that were not told yet
        self.in_flight = self.peak = self.crowded = 0
        own = own_id(user, name, source)
        self.listings[""] = Listing(self, "", 0 if own else size)
        if own:
            self.listings[""].put(own, "added")

    def listing(self, resource):
        if resource not in self.listings:
            own = resource == own_id(self.user, self.name, self.source)
            size = self.size if own else random.Random(resource).randint(5, 25)
            self.listings[resource] = Listing(self, resource, size)
        return self.listings[resource]

    def has(self, resource):
        return not resource or resource in self.listings[""].items


class Listing:
    """The items of a listing, the order in which they changed, and cursors.

    The caller must hold the provider's lock.
    """

    def __init__(self, account, resource, size):
        self.account, self.resource = account, resource
        self.user, self.source = account.user, account.source
        self.is_list = not resource and self.source in (CALENDAR, TASKS)
        self.random = random.Random("/".join(
            (account.seed, self.user, account.name, self.source, resource)))
        number = account.number
        self.version = FIRST_HISTORY_ID[number % len(FIRST_HISTORY_ID)]
        self.items = {}             # id -> what the API shows of it
        self.trash = {}             # Gmail: the same of what is not listed
        self.changed = {}           # id -> version and time of its last change, or deletion
        self.history = []           # Gmail: one record per change
        self.oldest = self.version  # Gmail: history before this one is gone
        self.pages = {}             # page token -> where it goes on
        self.tokens = {}            # sync token -> what it stands for
        self.hold = None
        self.failing = 0
        self.is_gone = self.has_no_push = False
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
        if self.is_list:
            kind, title = {CALENDAR: ("calendar#calendarListEntry", "summary"),
                           TASKS: ("tasks#taskList", "title")}[self.source]
            item = {"kind": kind, "id": name, "etag": etag, title: text}
        elif self.source == CALENDAR:
            item = {"kind": "calendar#event", "id": name, "etag": etag, "status": "confirmed",
                    "summary": text, "updated": rfc3339(when)}
            if self.random.random() < 0.1:      # an occurrence taken out of a series: always shown
                item = {"kind": "calendar#event", "id": name, "etag": etag, "status": "cancelled",
                        "recurringEventId": "series", "originalStartTime": {"dateTime": rfc3339(when)}}
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
        is_trashed = self.source == GMAIL and self.random.random() < 0.5
        self.touch(name, datetime.now(timezone.utc),
                   "labelsAdded" if is_trashed else "messagesDeleted")
        item = self.items.pop(name)
        if is_trashed:
            self.trash[name] = item | {"labelIds": ["TRASH"]}

    def touch(self, name, when, kind):
        # history ids increase, but are not contiguous
        self.version += self.random.randint(1, 9) if self.source == GMAIL else 1
        self.changed[name] = (self.version, when)
        self.account.touched.add(self)
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
        parameter, default, maximum = PAGE_SIZE[listing]
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
        return self.calendar(query, "events", lambda name: {
            "kind": "calendar#event", "id": name, "status": "cancelled"})

    def calendar_list(self, query):
        return self.calendar(query, "calendarList", lambda name: {
            "kind": "calendar#calendarListEntry", "id": name, "deleted": True})

    def calendar(self, query, what, deleted):
        """With a token come all changes, hidden entries too; without one, what is shown."""
        gone = Refused(410, "fullSyncRequired",
                       "Sync token is no longer valid, a full sync is required.",
                       domain="calendar", locationType="parameter", location="syncToken")
        if self.is_gone:
            raise gone
        version = self.token_version(query, ("iCalUID", "orderBy", "q", "timeMin", "timeMax",
                                             "updatedMin", "minAccessRole"), gone)
        names = self.since(version)
        if version is None:
            names = [name for name in names if not self.items[name].get("hidden")]
        names, token, start = self.page(query, what, names)
        body = {"kind": f"calendar#{what}",
                "items": [self.items.get(n) or deleted(n) for n in names]}
        return self.end(body, query, token, start)

    def connections(self, query):
        if not query.get("personFields"):
            raise bad_request("personFields mask is required.")
        version = self.token_version(
            query, (), Refused(400, "EXPIRED_SYNC_TOKEN", "Sync token is expired. Clear local "
                               "cache and retry call without the sync token.", style="rpc"))
        names, token, start = self.page(query, "connections", self.since(version))
        # a field comes to those who ask for it
        deleted = {"metadata": {"deleted": True}} \
            if "metadata" in query["personFields"].split(",") else {}
        body = {"connections": [self.items.get(n) or {"resourceName": n} | deleted
                                for n in names], "totalItems": len(self.items)}
        if query.get("requestSyncToken") != "true" and not token:
            return body
        return self.end(body, query, token, start)

    def end(self, body, query, token, start):
        if token:
            body["nextPageToken"] = token
        else:
            body["nextSyncToken"] = self.issue_token(query, start)
        return body

    def task_lists(self, query):
        names, token, _ = self.page(query, "lists", self.items)
        body = {"kind": "tasks#taskLists", "items": [self.items[n] for n in names]}
        return body | ({"nextPageToken": token} if token else {})

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
        if name not in self.items and name not in self.trash:
            raise Refused(404, "notFound", "Requested entity was not found.")
        return self.items.get(name) or self.trash[name]

    def profile(self):
        return {"emailAddress": self.address(), "messagesTotal": len(self.items),
                "historyId": str(self.version)}

    def address(self):
        return self.account.name or f"{self.user[:8]}@example.com"

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


class Channel:
    """A push channel: whom to tell of a listing's changes, and until when."""

    def __init__(self, listing, name, lifetime, address, token=None):
        self.listing, self.name, self.address, self.token = listing, name, address, token
        self.ends = time.time() + lifetime
        self.number, self.told = 0, 0       # of the last message, and when it was

    def is_open(self):
        return self.ends > time.time()

    def message(self, state):
        """The next one, as Calendar or as Gmail by way of Pub/Sub sends it: body and headers."""
        if self.listing.source == GMAIL:
            change = {"emailAddress": self.name, "historyId": self.listing.version}
            data = base64.b64encode(json.dumps(change).encode()).decode()
            message = {"message": {"data": data, "messageId": str(self.listing.version)},
                       "subscription": "projects/demo/subscriptions/push"}
            return json.dumps(message).encode(), {"Content-Type": "application/json"}
        # the numbers increase, but are not contiguous
        self.number += 1 if state == "sync" else self.listing.random.randint(1, 3)
        return b"", {
            "Content-Type": "application/json; utf-8", "X-Goog-Channel-ID": self.name, "X-Goog-Channel-Token": self.token,
            "X-Goog-Message-Number": str(self.number), "X-Goog-Resource-State": state,
            "X-Goog-Resource-ID": resource_id(self.listing)}


def resource_id(listing):
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(
        (listing.user, listing.account.name, listing.resource))))


class Push:
    """Tells of changes, but not reliably. What stands here, callers do with the provider's lock.

    Calendar opens as many channels as somebody asks for, each with an id of theirs; one stops with
    that id and its resourceId. Gmail has one watch for each mailbox, and tells at most once in a
    second. A channel ends after some time, and nobody is told.
    """

    TRIES = 8               # for a message that meets no endpoint, or 503

    def __init__(self):
        self.channels = {}          # by the id that we send, Gmail's by the mailbox
        self.opened = set()         # all that ever were
        self.subscriptions = {}     # of Gmail: topic -> where Pub/Sub sends its messages
        self.lifetimes = [7 * 86400]        # each listing gets the next one
        self.places = {}            # listing -> which one it was
        self.lose = self.repeat = 0         # each message of this number; 0 = none
        self.is_silent = False
        self.counts = Counter()
        self.counting = threading.Lock()
        self.senders = ThreadPoolExecutor(8)
        self.open_url = build_opener(ProxyHandler({})).open

    def watch(self, listing, body):
        if listing.has_no_push:
            raise Refused(400, "pushNotSupportedForRequestedResource",
                          "Push notifications are not supported by this resource.")
        self.counts["watch"] += 1
        lifetime = self.lifetimes[
            self.places.setdefault(listing, len(self.places)) % len(self.lifetimes)]
        if listing.source == GMAIL:
            if body.get("topicName") not in self.subscriptions:
                raise bad_request("Invalid topicName")
            name = listing.address()
            channel = Channel(listing, name, lifetime, self.subscriptions[body["topicName"]])
            answer = {"historyId": str(listing.version)}
        else:
            name = body.get("id", "")
            if body.get("type") != "web_hook" or not name or not body.get("address"):
                raise bad_request("Required: id, type, address")
            if name in self.channels:
                raise Refused(400, "channelIdNotUnique", f"Channel id {name} not unique")
            channel = Channel(listing, name, lifetime, body["address"], body.get("token", ""))
            self.senders.submit(self.send, channel, channel.message("sync"))
            answer = {"kind": "api#channel", "id": name, "resourceId": resource_id(listing)}
        self.channels[name] = channel
        self.opened.add(name)
        return answer | {"expiration": str(int(channel.ends * 1000))}

    def stop(self, listing, body):
        name = listing.address() if listing.source == GMAIL else body.get("id")
        channel = self.channels.get(name)
        if listing.source != GMAIL and (not channel or not channel.is_open() or (
                body.get("resourceId") != resource_id(channel.listing))):
            raise Refused(404, "notFound", f"Channel '{name}' not found for project")
        self.counts["stop"] += 1
        self.channels.pop(name, None)

    def tell(self, listing):
        for channel in self.channels.values():
            if channel.listing is not listing or not channel.is_open():
                continue
            is_soon = listing.source == GMAIL and time.monotonic() - channel.told < 1
            if not is_soon:
                channel.told = time.monotonic()
            message = channel.message("exists")
            self.counts["message"] += 1
            if self.is_silent or is_soon or self.comes_to(self.lose):
                self.counts["lost"] += 1
                continue
            self.senders.submit(self.send, channel, message)
            if self.comes_to(self.repeat):
                self.counts["sent twice"] += 1
                self.senders.submit(self.send, channel, message)

    def comes_to(self, number):
        return number > 0 and self.counts["message"] % number == 0

    def send(self, channel, message):
        """Runs by itself, without the lock."""
        for n in range(self.TRIES):
            time.sleep(0.1 * n)
            try:
                with self.open_url(Request(channel.address, *message), timeout=10) as answer:
                    status = answer.status
            except HTTPError as error:
                status = error.code
            except (OSError, HTTPException):
                status = "no answer"
            with self.counting:
                self.counts[f"answered {status}"] += 1
            if isinstance(status, int) and (status < 300 or (
                    channel.listing.source != GMAIL and status not in (500, 502, 503, 504))):
                break       # Pub/Sub sends all again that was no success


class Control:
    """The demo's levers: POST /control {"op": name, arguments}.

    Which listing: "user", "source", and where they are not empty "resource" and "account".
    """

    def __init__(self, provider):
        self.provider = provider

    def users(self):
        return self.provider.users

    def open(self, user, account):
        """A user gets another account."""
        self.provider.open(user, account)

    def connect(self, listing):
        """The account gets a calendar or task list, by the resource, or gets it back."""
        listing.account.listing("").put(listing.resource, "added")

    def disconnect(self, listing):
        listing.account.listing("").delete(listing.resource)

    def hide(self, listing):
        """It stays, but full listings do not show it."""
        entries = listing.account.listing("")
        entries.put(listing.resource, "changed")
        entries.items[listing.resource]["hidden"] = True

    def mutate(self, listing, add=0, change=0, delete=0):
        listing.mutate(add, change, delete)
        return self.now()

    def expire(self, listing, delete=0):
        """Deletes items, and at once lets all cursors and all trace of deletions go."""
        listing.mutate(delete=delete)
        listing.forget()

    def expire_pages(self, listing):
        listing.pages.clear()

    def limit(self, listing, seconds, kind):
        """Refuses the account's requests from the next one on, for some seconds.

        The kind is '403', '429' or '429 in words'.
        """
        listing.account.limit = {"seconds": seconds, "kind": kind, "until": None}

    def fail(self, listing, times):
        """Answers the next few requests with 503."""
        listing.failing = times

    def gone(self, listing, on):
        """Answers every listing of events with 410, even one without a token."""
        listing.is_gone = on

    def garble(self, listing):
        """Puts a NUL, which PostgreSQL cannot store, into one item."""
        name = min(listing.items)
        listing.put(name, "labelsAdded")
        listing.items[name]["etag"] = "a\0b"

    def refuse_push(self, listing):
        """Refuses to watch it, as with calendars of public holidays."""
        listing.has_no_push = True

    def subscribe(self, topic, url):
        """Where Gmail's messages go that are published under a topic."""
        self.provider.push.subscriptions[topic] = url

    def set_push(self, **options):
        """lifetimes of channels in turn; lose, repeat: each such message; is_silent."""
        vars(self.provider.push).update(options)

    def channels(self):
        """The open ones, each with what stops it, besides its id."""
        return [[c.listing.source, name, None if c.listing.source == GMAIL else resource_id(c.listing)]
                for name, c in self.provider.push.channels.items() if c.is_open()]

    def opened(self):
        """The ids of all that ever were."""
        return sorted(self.provider.push.opened)

    def pushes(self):
        """How many of what there were."""
        return dict(self.provider.push.counts)

    def now(self):
        """By the clock of the log."""
        return time.monotonic() - self.provider.started

    def hold(self, listing, page):
        """Lets requests for this page of a listing wait until release()."""
        listing.hold = {"page": page, "go": threading.Event()}

    def release(self, listing):
        listing.hold["go"].set()
        listing.hold = None

    def revoke(self, listing):
        """Refuses the account, of all sources."""
        self.provider.revoked.add((listing.user, listing.account.name))

    def narrow(self, listing):
        """Refuses the account, since its user has not consented to what is asked for."""
        self.provider.narrowed.add((listing.user, listing.account.name))

    def restore(self, listing):
        self.provider.revoked.discard((listing.user, listing.account.name))
        self.provider.narrowed.discard((listing.user, listing.account.name))

    def outdate(self, listing):
        """From now on takes only refreshed tokens of the account."""
        self.provider.outdated.add((listing.user, listing.account.name))

    def dump(self, listing):
        return dict(listing.items)

    def log(self, listing):
        return list(listing.log)

    def journal(self):
        """All requests there were, in order."""
        return sorted((dict(entry, user=a.user, account=a.name, source=a.source, resource=resource)
                       for a in self.provider.accounts.values()
                       for resource, listing in a.listings.items() for entry in listing.log),
                      key=lambda entry: entry["at"])

    def concurrency(self):
        """By account and source: the most requests at once, and how many were one too many."""
        return [[*key, a.peak, a.crowded] for key, a in self.provider.accounts.items()]


class Provider:
    """All accounts, and what a request goes through before an API answers it."""

    def __init__(self, seed, users):
        self.lock = threading.Lock()
        self.seed = seed
        self.users = [str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{seed}.{n}")) for n in range(users)]
        self.revoked = set()
        self.narrowed = set()
        self.outdated = set()
        self.push = Push()
        self.sizes = random.Random(seed)
        self.accounts = {}      # (user, account, source) -> Account
        for user in self.users:
            self.open(user, "")
        self.started = time.monotonic()

    def open(self, user, account):
        number = self.users.index(user)
        for source in SOURCES:
            self.accounts[user, account, source] = Account(
                self.seed, user, account, source, number, self.sizes.randint(15, 35))

    def control(self, op, source=None, resource="", **arguments):
        with self.lock:
            lever = getattr(Control(self), op)
            if source is not None:
                account = self.accounts[arguments.pop("user"), arguments.pop("account", ""), source]
                arguments["listing"] = account.listing(resource)
                account.touched.clear()     # when it was made
            answer = lever(**arguments)
            if source is not None:
                for listing in account.touched:
                    self.push.tell(listing)
            return answer

    def route(self, path, body):
        """The source a path belongs to, the resource, and the rest of what it names."""
        if body is not None:
            return self.push_route(path, body)
        if path == "/calendar/v3/users/me/calendarList":
            return CALENDAR, "", "calendarList"
        if m := re.fullmatch(r"/calendar/v3/calendars/([^/]+)/events", path):
            return CALENDAR, unquote(m[1]), "events"
        if path == "/tasks/v1/users/@me/lists":
            return TASKS, "", "lists"
        if m := re.fullmatch(r"/tasks/v1/lists/([^/]+)/tasks", path):
            return TASKS, unquote(m[1]), "tasks"
        if m := re.fullmatch(r"/gmail/v1/users/me/(profile|history|messages(?:/[^/]+)?)", path):
            return GMAIL, "", unquote(m[1])
        if path == "/v1/people/me/connections":
            return CONTACTS, "", "connections"
        raise Refused(404, "notFound", "Not Found")

    def push_route(self, path, body):
        """The same of a POST. A channel is stopped under the name of what it watches."""
        if m := re.fullmatch(r"/gmail/v1/users/me/(watch|stop)", path):
            return GMAIL, "", m[1]
        if path == "/calendar/v3/channels/stop":
            channel = self.push.channels.get(body.get("id"))
            return CALENDAR, channel.listing.resource if channel else "", "stop"
        what, _, watch = path.rpartition("/")
        source, resource, _ = self.route(what, None)
        if watch != "watch" or source != CALENDAR:
            raise Refused(404, "notFound", "Not Found")
        return source, resource, "watch"

    def answer(self, path, query, token, agent, body=None):
        source, resource, what = self.route(path, body)
        user, _, name = token.removesuffix("!").partition("/")
        if (user, name, source) not in self.accounts:
            raise Refused(401, "authError", "Invalid Credentials")
        account = self.accounts[user, name, source]
        if resource in ("primary", "@default"):
            resource = own_id(user, name, source)
        with self.lock:
            listing = account.listing(resource)
            page = self.page_number(listing, what, query)
            entry = {"at": time.monotonic() - self.started, "agent": agent, "what": what,
                     "page": page, "query": query, "status": 0}
            listing.log.append(entry)
            hold = listing.hold
            is_crowded = account.in_flight >= MAX_IN_FLIGHT
            account.crowded += is_crowded
            account.in_flight += 1
            account.peak = max(account.peak, account.in_flight)
        try:
            if is_crowded:
                raise Refused(429, "rateLimitExceeded", "Too many concurrent requests for user",
                              domain="usageLimits")
            if hold and hold["page"] == page:
                hold["go"].wait(HOLD_LIMIT)
            with self.lock:
                self.check_gates(listing, token)
                if body is not None:
                    answer = getattr(self.push, what)(listing, body)
                else:
                    answer = self.dispatch(listing, what, query)
                entry["status"] = 200
                return answer
        except Refused as error:
            entry["status"] = error.status
            raise
        finally:
            with self.lock:
                account.in_flight -= 1

    def page_number(self, listing, what, query):
        """Which page of its listing a request asks for; none if it is no listing."""
        if what in ("profile", "watch", "stop") or what.startswith("messages/"):
            return None
        place = listing.pages.get(query.get("pageToken"))
        return place["number"] if place else 1

    def check_gates(self, listing, token):
        account = listing.account
        key = account.user, account.name
        if key in self.revoked or key in self.outdated and not token.endswith("!"):
            raise Refused(401, "authError", "Invalid Credentials")
        if key in self.narrowed:
            raise Refused(403, "insufficientPermissions", "Insufficient Permission")
        if listing.failing:
            listing.failing -= 1
            raise Refused(503, "backendError", "Backend Error")
        if account.limit:
            self.check_limit(account)
        if not account.has(listing.resource):
            raise Refused(404, "notFound", "Not Found")

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

    def dispatch(self, listing, what, query):
        if what.startswith("messages/"):
            return listing.message(what.removeprefix("messages/"))
        if what == "profile":
            return listing.profile()
        answer = {"calendarList": listing.calendar_list, "events": listing.events,
                  "lists": listing.task_lists, "tasks": listing.tasks,
                  "messages": listing.messages, "history": listing.list_history,
                  "connections": listing.connections}[what]
        return answer(query)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self, body=None):
        parts = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.reply(lambda: self.server.provider.answer(
            parts.path, dict(parse_qsl(parts.query)), token, self.headers.get("User-Agent", ""),
            body))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            self.reply(lambda: self.server.provider.control(**body))
        else:
            self.do_GET(body)

    def reply(self, make_body):
        status, headers = 200, {}
        try:
            body = make_body()
        except Refused as error:
            status, headers, body = error.status, error.headers, error.body
        try:
            # The Date header is set after the data was read, and in whole seconds: whoever
            # takes it as a cursor needs an overlap, as with the real ones.
            data = json.dumps(body, ensure_ascii=False).encode()
            if body is None and self.path != "/control":
                status, data = 204, b""
            self.send_response(status)
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
