#!/usr/bin/python3
"""Checks that provider.py keeps the rules of the real ones: the demo proves nothing otherwise."""
import base64
import json
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from provider import (CALENDAR, CONTACTS, GMAIL, MAX_IN_FLIGHT, SOURCES, TASKS, Provider, Server,
                      own_id)

CALENDARS = "/calendar/v3/users/me/calendarList"
EVENTS = "/calendar/v3/calendars/primary/events"
TASK_LISTS = "/tasks/v1/users/@me/lists"
TASK_LIST = "/tasks/v1/lists/@default/tasks"
MAILBOX = "/gmail/v1/users/me"
PEOPLE = "/v1/people/me/connections"
SHOW = {"showDeleted": "true", "showHidden": "true", "showCompleted": "true"}
LISTS = {CALENDAR: (EVENTS, "items", "id", {"maxResults": 7}),
         TASKS: (TASK_LIST, "items", "id", {"maxResults": 7, **SHOW}),
         GMAIL: (MAILBOX + "/messages", "messages", "id", {"maxResults": 7}),
         CONTACTS: (PEOPLE, "connections", "resourceName",
                    {"pageSize": 7, "personFields": "names,metadata", "requestSyncToken": "true"})}


class ProviderTest(unittest.TestCase):
    def setUp(self):
        self.server = Server(Provider("check", 4))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.users = self.server.provider.users
        self.open = build_opener(ProxyHandler({})).open

    def tearDown(self):
        self.server.shutdown()
        self.server.server_close()

    def get(self, path, user=0, headers=None, account="", **query):
        request = Request(f"{self.url}{path}?{urlencode(query)}",
                          headers={"Authorization": f"Bearer {self.users[user]}/{account}"})
        try:
            with self.open(request, timeout=10) as answer:
                if headers is not None:
                    headers.update(answer.headers)
                return 200, json.load(answer)
        except HTTPError as error:
            if headers is not None:
                headers.update(error.headers)
            return error.code, json.load(error)["error"]

    def control(self, op, source=None, user=0, **arguments):
        """The user's own calendar or task list, if no resource is named."""
        body = {"op": op, **arguments}
        if source:
            own = own_id(self.users[user], arguments.get("account", ""), source)
            body = {"user": self.users[user], "source": source, "resource": own, **body}
        with self.open(Request(f"{self.url}/control", json.dumps(body).encode()), timeout=10) as r:
            return json.load(r)

    def listing(self, source, between=None, **more):
        """All pages; calls between() after the first one."""
        path, key, name, query = LISTS[source]
        pages, token = [], {}
        while True:
            status, body = self.get(path, **query, **more, **token)
            self.assertEqual(status, 200, body)
            pages.append(body)
            if len(pages) == 1 and between:
                between()
            if "nextPageToken" not in body:
                return pages, [item for page in pages for item in page.get(key, [])], name
            token = {"pageToken": body["nextPageToken"]}

    def test_full_listings_hold_each_item_once(self):
        for source in SOURCES:
            pages, items, name = self.listing(source)
            self.assertGreater(len(pages), 2)
            there = self.control("dump", source)
            self.assertEqual(sorted(i[name] for i in items), sorted(there))
            if source != GMAIL:
                self.assertEqual({i[name]: i for i in items}, there)

    def test_sync_token_only_on_the_last_page(self):
        for source in (CALENDAR, CONTACTS):
            pages, _, _ = self.listing(source)
            self.assertEqual(["nextSyncToken" in p for p in pages],
                             [False] * (len(pages) - 1) + [True])
            self.assertTrue(all(("nextPageToken" in p) != ("nextSyncToken" in p) for p in pages))

    def test_changes_while_paging_come_next_time(self):
        for source in (CALENDAR, CONTACTS):
            before = self.control("dump", source)
            pages, _, name = self.listing(
                source, lambda: self.control("mutate", source, add=9, change=9, delete=5))
            after = self.control("dump", source)
            changed = {n for n in before | after if before.get(n) != after.get(n)}
            self.assertEqual(len(changed), 23)
            _, items, _ = self.listing(source, syncToken=pages[-1]["nextSyncToken"])
            self.assertEqual({i[name] for i in items}, changed)
            gone = {i[name] for i in items if i.get("metadata", {}).get("deleted")
                    or i.get("status") == "cancelled" and "recurringEventId" not in i}
            self.assertEqual(gone, set(before) - set(after))

    def test_gmail_history(self):
        for user in range(4):
            start = self.get(MAILBOX + "/profile", user)[1]["historyId"]
            self.assertIsInstance(start, str)
            self.assertLess(int(start), 2 ** 64)
            before = self.control("dump", GMAIL, user)
            self.control("mutate", GMAIL, user, add=3, change=2, delete=2)
            status, body = self.get(MAILBOX + "/history", user, startHistoryId=start)
            self.assertEqual(status, 200)
            after = self.control("dump", GMAIL, user)
            self.assertEqual({m["id"] for record in body["history"] for m in record["messages"]},
                             {n for n in before | after if before.get(n) != after.get(n)})
            status, end = self.get(MAILBOX + "/history", user, startHistoryId=body["historyId"])
            self.assertEqual((status, "history" in end), (200, False))
            self.control("expire", GMAIL, user)
            self.assertEqual(self.get(MAILBOX + "/history", user,
                                      startHistoryId=body["historyId"])[0], 404)
        large = [int(self.get(MAILBOX + "/profile", u)[1]["historyId"]) for u in range(4)]
        self.assertTrue(any(2 ** 53 < n < 2 ** 63 for n in large))
        self.assertTrue(any(n >= 2 ** 63 for n in large))

    def test_tasks(self):
        headers = {}
        self.get(TASK_LIST, headers=headers)
        self.assertIn("Date", headers)
        before = self.control("dump", TASKS)
        self.control("mutate", TASKS, add=1, change=2, delete=3)
        after = self.control("dump", TASKS)
        since = max(t["updated"] for t in before.values())[:19] + "Z"
        _, items, _ = self.listing(TASKS, updatedMin=since)
        changed = {n for n in before | after if before.get(n) != after.get(n)}
        self.assertLessEqual(changed, {t["id"] for t in items})
        self.assertEqual(sum(t.get("deleted", False) for t in items), 3)
        shown = self.get(TASK_LIST, maxResults=100)[1]["items"]
        self.assertFalse(any(t.get("deleted") or t.get("hidden") for t in shown))

    def test_the_query_of_a_listing_must_not_change(self):
        for source in SOURCES:
            path, _, _, query = LISTS[source]
            token = self.get(path, **query)[1]["nextPageToken"]
            self.assertEqual(self.get(path, **query, pageToken=token)[0], 200)
            self.assertEqual(self.get(path, **query, fields="x", pageToken=token)[0], 400)
            self.assertEqual(self.get(path, **query, pageToken="nonsense")[0], 400)
            self.control("expire_pages", source)
            self.assertEqual(self.get(path, **query, pageToken=token)[0], 400)
        token = self.listing(CALENDAR)[0][-1]["nextSyncToken"]
        self.assertEqual(self.get(EVENTS, syncToken=token)[0], 200)
        self.assertEqual(self.get(EVENTS, syncToken=token, timeMin="x")[0], 400)
        self.assertEqual(self.get(EVENTS, syncToken=token, singleEvents="true")[0], 400)
        self.assertEqual(self.get(PEOPLE)[0], 400)

    def test_dead_tokens(self):
        token = self.listing(CALENDAR)[0][-1]["nextSyncToken"]
        self.control("expire", CALENDAR)
        status, error = self.get(EVENTS, syncToken=token)
        self.assertEqual((status, error["errors"][0]["reason"]), (410, "fullSyncRequired"))
        query = LISTS[CONTACTS][3]
        token = self.listing(CONTACTS)[0][-1]["nextSyncToken"]
        self.control("expire", CONTACTS)
        status, error = self.get(PEOPLE, **query, syncToken=token)
        self.assertEqual((status, error["details"][0]["reason"]), (400, "EXPIRED_SYNC_TOKEN"))

    def test_refusals(self):
        self.control("limit", CALENDAR, seconds=1.2, kind="403")
        headers = {}
        status, error = self.get(EVENTS, headers=headers)
        self.assertEqual((status, error["errors"][0]["reason"], headers["Retry-After"]),
                         (403, "rateLimitExceeded", "2"))
        self.control("limit", GMAIL, seconds=60, kind="429 in words")
        status, error = self.get(MAILBOX + "/profile")
        self.assertEqual(status, 429)
        self.assertRegex(error["message"], r"Retry after 20\d\d-\d\d-\d\dT[\d:.]+Z")
        self.assertEqual(self.get(MAILBOX + "/profile", user=1)[0], 200)
        self.control("fail", TASKS, times=1)
        self.assertEqual([self.get(TASK_LIST)[0], self.get(TASK_LIST)[0]], [503, 200])
        self.control("revoke", CONTACTS)
        self.assertEqual(self.get(PEOPLE, personFields="names")[0], 401)
        self.control("restore", CONTACTS)
        self.assertEqual(self.get(PEOPLE, personFields="names")[0], 200)
        time.sleep(1.3)
        self.assertEqual(self.get(EVENTS)[0], 200)

    def test_lists(self):
        for source, path in ((CALENDAR, CALENDARS), (TASKS, TASK_LISTS)):
            own = own_id(self.users[0], "", source)
            for n in range(10):
                self.control("connect", source, resource=f"#{n}")
            pages, token = [], {}
            while not pages or token:
                body = self.get(path, maxResults=4, **token)[1]
                pages.append([item["id"] for item in body["items"]])
                token = {"pageToken": body["nextPageToken"]} if "nextPageToken" in body else {}
            self.assertEqual(pages, [["#0", "#1", "#2", "#3"], ["#4", "#5", "#6", "#7"],
                                     ["#8", "#9", own]])
            self.assertEqual("nextSyncToken" in body, source == CALENDAR)
            self.control("disconnect", source, resource="#3")
            self.control("hide", source, resource="#4")
            self.assertEqual(len(self.get(path)[1]["items"]), 9 if source == CALENDAR else 10)

    def test_changes_of_the_list_of_calendars(self):
        for name in ("a", "b", "c"):
            self.control("connect", CALENDAR, resource=name)
        token = self.get(CALENDARS)[1]["nextSyncToken"]
        self.assertEqual(self.get(CALENDARS, syncToken=token)[1]["items"], [])
        self.assertEqual(self.get(CALENDARS, syncToken=token, minAccessRole="owner")[0], 400)
        self.control("disconnect", CALENDAR, resource="a")
        self.control("hide", CALENDAR, resource="b")
        self.control("connect", CALENDAR, resource="d")
        body = self.get(CALENDARS, syncToken=token)[1]
        self.assertEqual({c["id"]: (c.get("deleted"), c.get("hidden")) for c in body["items"]},
                         {"a": (True, None), "b": (None, True), "d": (None, None)})
        self.control("connect", CALENDAR, resource="b")
        body = self.get(CALENDARS, syncToken=body["nextSyncToken"])[1]
        self.assertEqual([(c["id"], "hidden" in c) for c in body["items"]], [("b", False)])
        self.control("expire", CALENDAR, resource="")
        self.assertEqual(self.get(CALENDARS, syncToken=body["nextSyncToken"])[0], 410)

    def test_what_is_gone_and_returns(self):
        path = "/calendar/v3/calendars/team%20%231/events"
        self.assertEqual(self.get(path)[0], 404)
        self.control("connect", CALENDAR, resource="team #1")
        status, body = self.get(path, maxResults=100)
        self.assertEqual(sorted(e["id"] for e in body["items"]),
                         sorted(self.control("dump", CALENDAR, resource="team #1")))
        self.control("disconnect", CALENDAR, resource="team #1")
        self.assertEqual(self.get(path, syncToken=body["nextSyncToken"])[0], 404)
        self.control("mutate", CALENDAR, resource="team #1", add=1)
        self.control("connect", CALENDAR, resource="team #1")
        status, body = self.get(path, syncToken=body["nextSyncToken"])
        self.assertEqual((status, len(body["items"])), (200, 1))

    def test_accounts(self):
        self.assertEqual(self.get(EVENTS, account="work")[0], 401)
        self.server.provider.open(self.users[0], "work")
        own = {account: self.get(CALENDARS, account=account)[1]["items"][0]["id"]
               for account in ("", "work")}
        self.assertEqual(own["work"], "work")
        data = [self.get(EVENTS, account=account)[1]["items"] for account in own]
        self.assertFalse({e["id"] for e in data[0]} & {e["id"] for e in data[1]})
        # a limit is for all calendars of an account, and for no other one
        self.control("connect", CALENDAR, account="work", resource="team")
        self.control("limit", CALENDAR, account="work", resource="team", seconds=60, kind="429")
        team = "/calendar/v3/calendars/team/events"
        self.assertEqual([self.get(path, account="work")[0] for path in (EVENTS, CALENDARS, team)],
                         [429] * 3)
        self.assertEqual(self.get(MAILBOX + "/profile", account="work")[0], 200)
        self.assertEqual(self.get(EVENTS)[0], 200)
        # a revoked grant is for all of an account
        self.control("revoke", GMAIL, account="work")
        self.assertEqual([self.get(path, account="work")[0] for path in (EVENTS, TASK_LISTS)],
                         [401] * 2)
        self.assertEqual(self.get(TASK_LISTS)[0], 200)
        # so are tokens that must be refreshed
        self.control("outdate", GMAIL)
        self.assertEqual([self.get(TASK_LISTS, account=of)[0] for of in ("", "!")], [401, 200])

    def test_requests_at_once(self):
        waiting = [EVENTS, CALENDARS]
        self.assertEqual(len(waiting), MAX_IN_FLIGHT)
        self.control("hold", CALENDAR, page=1)
        self.control("hold", CALENDAR, resource="", page=1)
        answers = []
        threads = [threading.Thread(target=lambda path=path: answers.append(self.get(path)[0]))
                   for path in waiting]
        for thread in threads:
            thread.start()
        while len(self.control("journal")) < len(waiting):
            time.sleep(0.01)
        status, error = self.get("/calendar/v3/calendars/other/events")
        self.assertEqual((status, error["errors"][0]["reason"]), (429, "rateLimitExceeded"))
        self.assertEqual(self.get(TASK_LISTS)[0], 200)          # another source
        self.assertEqual(self.get(CALENDARS, user=1)[0], 200)   # another account
        self.control("release", CALENDAR)
        self.control("release", CALENDAR, resource="")
        for thread in threads:
            thread.join(10)
        self.assertEqual(answers, [200, 200])
        self.assertEqual(self.get(EVENTS)[0], 200)
        self.assertEqual([n[3:] for n in self.control("concurrency") if n[4]], [[3, 1]])

    def test_hold(self):
        path, _, _, query = LISTS[CALENDAR]
        token = self.get(path, **query)[1]["nextPageToken"]
        self.control("hold", CALENDAR, page=2)
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(self.get(path, **query, pageToken=token)[0]))
        thread.start()
        self.assertEqual(self.get(path, **query)[0], 200)
        time.sleep(0.3)
        self.assertEqual(answers, [])
        self.control("release", CALENDAR)
        thread.join(10)
        self.assertEqual(answers, [200])

    def post(self, path, body, user=0):
        request = Request(f"{self.url}{path}", json.dumps(body).encode(),
                          {"Authorization": f"Bearer {self.users[user]}/"})
        try:
            with self.open(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except HTTPError as error:
            return error.code, json.load(error)["error"]["errors"][0]["reason"]

    def endpoint(self, *answers):
        """Where messages are kept, and answered with these statuses, then with 204."""
        answers, self.messages = list(answers), []

        class Endpoint(BaseHTTPRequestHandler):
            def do_POST(endpoint):
                length = int(endpoint.headers["Content-Length"])
                self.messages.append((dict(endpoint.headers), endpoint.rfile.read(length)))
                endpoint.send_response(answers.pop(0) if answers else 204)
                endpoint.end_headers()

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}/"

    def until(self, probe):
        end = time.monotonic() + 20
        while not probe():
            self.assertLess(time.monotonic(), end, "waited in vain")
            time.sleep(0.01)

    def watch(self, name, path=EVENTS, **more):
        body = {"id": name, "type": "web_hook", "token": f"secret {name}", "address": self.address}
        return self.post(path + "/watch", body | more)

    def test_channels(self):
        self.address = self.endpoint()
        self.control("set_push", lifetimes=[3600])
        status, channel = self.watch("one")
        self.assertEqual((status, channel["id"]), (200, "one"))
        self.assertRegex(channel["expiration"], "^[0-9]{13}$")
        self.assertAlmostEqual(int(channel["expiration"]) / 1000, time.time() + 3600, delta=30)
        self.until(lambda: self.messages)
        first = self.messages.pop()[0]
        self.assertEqual([first[f"X-Goog-{h}"] for h in (
            "Channel-Id", "Channel-Token", "Message-Number", "Resource-State", "Resource-Id")],
            ["one", "secret one", "1", "sync", channel["resourceId"]])
        self.assertEqual(self.watch("one"), (400, "channelIdNotUnique"))
        self.assertEqual(self.watch("x", type="smoke signal")[0], 400)
        self.assertEqual(self.watch("x", TASK_LIST)[0], 404)
        self.assertEqual(self.watch("x", CALENDARS)[0], 200)

        # a second one overlaps
        status, second = self.watch("two")
        self.assertEqual(second["resourceId"], channel["resourceId"])
        self.until(lambda: len(self.messages) == 2)
        self.messages.clear()
        for _ in range(3):
            self.control("mutate", CALENDAR, change=1)
        self.control("mutate", TASKS, change=1)
        self.until(lambda: len(self.messages) == 6)
        for name in ("one", "two"):
            numbers = [int(h["X-Goog-Message-Number"]) for h, body in self.messages
                       if h["X-Goog-Channel-Id"] == name and not body]
            self.assertEqual(len(set(numbers)), 3)

        stop = {"id": "one", "resourceId": channel["resourceId"]}
        self.assertEqual(self.post("/calendar/v3/channels/stop", stop | {"resourceId": "x"}),
                         (404, "notFound"))
        self.assertEqual(self.post("/calendar/v3/channels/stop", stop), (204, None))
        self.assertEqual(self.post("/calendar/v3/channels/stop", stop), (404, "notFound"))
        self.assertEqual(sorted(name for _, name, _ in self.control("channels")), ["two", "x"])
        self.assertEqual(self.control("opened"), ["one", "two", "x"])
        self.messages.clear()
        self.control("mutate", CALENDAR, change=1)
        self.until(lambda: self.messages)
        self.assertEqual(self.messages[0][0]["X-Goog-Channel-Id"], "two")

        self.control("refuse_push", CALENDAR)
        self.assertEqual(self.watch("three"), (400, "pushNotSupportedForRequestedResource"))

    def test_channels_end(self):
        self.address = self.endpoint()
        self.control("set_push", lifetimes=[0.5, 3600])
        resource_id = self.watch("short")[1]["resourceId"]
        self.watch("long", CALENDARS)
        self.until(lambda: len(self.control("channels")) == 1)
        self.until(lambda: len(self.messages) == 2)
        self.messages.clear()
        self.control("mutate", CALENDAR, change=1)
        self.control("mutate", CALENDAR, resource="", change=1)
        self.until(lambda: self.messages)
        time.sleep(0.2)
        self.assertEqual([h["X-Goog-Channel-Id"] for h, _ in self.messages], ["long"])
        self.assertEqual(self.post("/calendar/v3/channels/stop", {
            "id": "short", "resourceId": resource_id})[0], 404)

    def test_mailboxes(self):
        self.assertEqual(self.post(MAILBOX + "/watch", {"topicName": "t"}), (400, "badRequest"))
        self.control("subscribe", topic="t", url=self.endpoint() + "?token=secret")
        for _ in range(2):              # a mailbox has one
            status, watch = self.post(MAILBOX + "/watch", {"topicName": "t"})
            self.assertEqual((status, sorted(watch)), (200, ["expiration", "historyId"]))
        address = self.get(MAILBOX + "/profile")[1]["emailAddress"]
        self.assertEqual([name for _, name, _ in self.control("channels")], [address])
        for _ in range(3):              # at most one in a second
            self.control("mutate", GMAIL, add=1)
        self.until(lambda: self.control("pushes").get("lost") == 2 and self.messages)
        time.sleep(0.2)
        (_, body), = self.messages
        change = json.loads(base64.b64decode(json.loads(body)["message"]["data"]))
        self.assertEqual(change["emailAddress"], address)
        self.assertGreater(change["historyId"], int(watch["historyId"]))
        self.assertEqual([self.post(MAILBOX + "/stop", {}) for _ in range(2)], [(204, None)] * 2)
        self.assertEqual(self.control("channels"), [])

    def test_messages_are_not_reliable(self):
        self.address = self.endpoint(204, 503, 503, 204, 404)
        self.watch("one")
        self.until(lambda: self.messages)
        self.control("mutate", CALENDAR, change=1)      # which meets the two 503
        self.until(lambda: len(self.messages) == 4)
        self.assertEqual(len({h["X-Goog-Message-Number"] for h, _ in self.messages[1:]}), 1)
        self.control("mutate", CALENDAR, change=1)      # and this one the 404
        self.until(lambda: self.control("pushes").get("answered 404"))
        self.control("set_push", lose=4, repeat=5)
        for _ in range(3):
            self.control("mutate", CALENDAR, change=1)
        self.until(lambda: len(self.messages) == 8)
        time.sleep(0.2)
        self.assertEqual(len(self.messages), 8)
        self.control("set_push", is_silent=True)
        self.control("mutate", CALENDAR, change=1)
        pushes = self.control("pushes")
        self.assertEqual([pushes[what] for what in ("message", "lost", "sent twice")], [6, 2, 1])
        self.assertEqual(len(self.messages), 8)

    def test_same_seed_same_data(self):
        def data(seed):
            return {(*key, resource): sorted(listing.items)
                    for key, account in Provider(seed, 2).accounts.items()
                    for resource, listing in account.listings.items()}
        self.assertEqual(data("a"), data("a"))
        self.assertNotEqual(data("a"), data("b"))


if __name__ == "__main__":
    unittest.main()
