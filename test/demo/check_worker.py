#!/usr/bin/python3
"""Checks examples/worker.py where the demo does not go. Needs what run needs, and stays silent."""
import asyncio
import contextlib
import io
import json
import signal
import sys
import time
import unittest
from datetime import timedelta
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent.parent / "examples"))
import google_apis                  # noqa: E402
from google_apis import ApiError    # noqa: E402


def load_demo():
    loader = SourceFileLoader("demo_run", str(HERE / "run"))
    module = module_from_spec(spec_from_loader("demo_run", loader))
    loader.exec_module(module)
    return module


demo_run = load_demo()
CALENDAR, TASKS, GMAIL, CONTACTS = demo_run.SOURCES


def stop_during_claim(demo, name):
    """Starts a worker whose first claim has to wait, asks it to stop, and lets the claim go on.

    Returns its exit status.
    """
    with demo.db.transaction():
        demo.db.execute("LOCK TABLE syncstate.sync_state")
        demo.start_worker(name)
        demo.wait_for("the claim", lambda: demo.server.execute(
            """SELECT 1 FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'
                     AND query LIKE '%%claim_due_syncs%%'""", [demo_run.WORKER_ROLE]).fetchone())
        process = demo.signal_worker(name, signal.SIGTERM)
        time.sleep(0.5)                 # it does not tell when it has noticed
    return process.wait(demo_run.PATIENCE)


def classic(reason, message="", **more):
    return json.dumps({"error": {"errors": [{"reason": reason, "message": message}],
                                 "message": message, **more}})


def rpc(reason):
    return json.dumps({"error": {"message": "no", "status": "X", "details": [
        {"@type": "type.googleapis.com/google.rpc.Help"},
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]}})


class ErrorTest(unittest.TestCase):
    """What an answer means: the cursor is dead, wait, or a kind of failure."""

    CASES = [
        (410, "/events", classic("fullSyncRequired"), "cursor"),
        (410, "/events", classic("updatedMinTooLongAgo"), "cursor"),
        (410, "/events", classic("deleted"), "permanent"),
        (404, "/gmail/v1/users/me/history", classic("notFound"), "cursor"),
        (410, "/calendar/v3/users/me/calendarList", classic("fullSyncRequired"), "cursor"),
        (404, "/calendar/v3/calendars/x/events", classic("notFound"), "permanent"),
        (400, "/connections", rpc("EXPIRED_SYNC_TOKEN"), "cursor"),
        (400, "/connections", rpc("INVALID_ARGUMENT"), "permanent"),
        (429, "/x", "", "wait"),
        (429, "/x", rpc("RATE_LIMIT_EXCEEDED"), "wait"),
        (403, "/x", classic("rateLimitExceeded"), "wait"),
        (403, "/x", classic("userRateLimitExceeded"), "wait"),
        (403, "/x", classic("insufficientPermissions"), "auth"),
        (403, "/x", rpc("ACCESS_TOKEN_SCOPE_INSUFFICIENT"), "auth"),
        (403, "/x", classic("accessNotConfigured"), "permanent"),
        (401, "/x", "<html>", "auth"),
        (400, "/token", '{"error": "invalid_grant"}', "auth"),
        (500, "/x", "[]", "transient"),
        (503, "/x", '{"error": null}', "transient"),
        (408, "/x", "{}", "transient"),
        (0, "/x", "timed out", "transient"),
    ]

    def test_kinds(self):
        for status, path, text, meaning in self.CASES:
            error = ApiError(path, status, text, {})
            found = ("cursor" if error.cursor_is_dead else "wait" if error.is_rate_limit
                     else error.kind)
            self.assertEqual(found, meaning, (status, path, text))
            self.assertIsNone(error.retry_after)

    def test_time_to_retry(self):
        date = {"Date": "Mon, 23 Nov 2026 08:00:00 GMT"}
        for headers, message, seconds in [
                ({"Retry-After": "17"}, "", 17),
                ({"Retry-After": "Mon, 23 Nov 2026 08:01:00 GMT"}, "", 60),
                ({}, "Limit exceeded.  Retry after 2026-11-23T08:00:30.500Z", 30.5),
                ({"Retry-After": "soon"}, "", None),
                ({}, "Retry after 99Z", None)]:
            error = ApiError("/x", 429, classic("x", message), date | headers)
            self.assertEqual(error.retry_after, seconds and timedelta(seconds=seconds))


class PageTest(unittest.TestCase):
    """What is made of a page."""
    ROW = SimpleNamespace(sync_token="x", history_id=None, resource="")

    def test_contact_with_another_name(self):
        renamed = {"resourceName": "c/2", "metadata": {"previousResourceNames": ["c/1", "c/3"]}}
        other = {"resourceName": "c/3", "metadata": {}}
        for connections in [renamed, other], [other, renamed]:
            body = {"connections": connections}
            with mock.patch.object(google_apis, "get", lambda *_, **query: (body, {})):
                items, _, _ = google_apis.contacts_page(self.ROW, {})
            self.assertEqual(items, {"c/1": None, "c/2": renamed, "c/3": other})

    def test_token_is_told_to_nobody(self):
        for token in "ya29.secret\n", "ya29.secret\u20ac":
            with mock.patch.object(google_apis, "access_token", lambda *_: token), \
                    mock.patch.object(google_apis, "API_URL", "http://127.0.0.1:9"), \
                    self.assertRaises(ApiError) as raised:
                google_apis.get(self.ROW, "www", "/x")
            self.assertNotIn("secret", str(raised.exception))

    def test_token_store_fails(self):
        def fail(*_):
            raise OSError("vault.internal refused the connection")

        with mock.patch.object(google_apis, "access_token", fail), self.assertRaises(OSError) as raised:
            google_apis.get(self.ROW, "www", "/x")
        self.assertNotIsInstance(raised.exception, ApiError)    # of which users hear

        # it will be back soon, and nothing is wrong with the row
        with mock.patch("asyncio.run", lambda main: main.close()):
            import worker
        row = SimpleNamespace(user_id="x", account="", source=CALENDAR, resource="")
        solo, reports = object.__new__(worker.Worker), []

        async def sync(_):
            raise raised.exception

        async def call(*_, **arguments):
            reports.append(arguments)

        solo.sync, solo.call = sync, call
        with contextlib.redirect_stdout(io.StringIO()):
            asyncio.run(solo.serve(row))
        self.assertEqual(reports, [{"kind": "transient", "error_message": "the sync failed"}])

    def test_no_channel_without_settings(self):
        with mock.patch.multiple(google_apis, PUSH_URL=None, PUSH_TOPIC="x", PUSH_TOKEN=None,
                                 send=lambda *_: self.fail("a request was sent")):
            for watch, _ in google_apis.CHANNELS.values():
                with self.assertRaisesRegex(ValueError, "not set"):
                    watch(self.ROW)


class WorkerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.demo = demo_run.Demo()
        cls.addClassCleanup(cls.demo.clean_up)
        cls.output = cls.enterClassContext(contextlib.redirect_stdout(io.StringIO()))
        cls.demo.set_up()

    def setUp(self):
        self.demo.start_worker("solo")

    def tearDown(self):
        for name in list(self.demo.workers):
            self.demo.signal_worker(name, 9).wait()
        # nor may the next test take its session for that of the worker to come
        self.until("the end of its session", lambda: self.demo.value(
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = %s", demo_run.WORKER_ROLE))
        # each test has a user of its own; its rows must not disturb the next test
        self.demo.query("SELECT syncstate.disconnect_sync(user_id, source, resource, account) "
                        "FROM syncstate.sync_state")

    def connect(self, *listing):
        self.demo.call("connect_sync", *listing)

    def until(self, what, probe):
        return self.demo.wait_for(what, probe)

    def held(self, listing, page):
        self.demo.control("hold", *listing, page=page)
        self.connect(*listing)
        return self.until("the page", lambda: [
            e for e in self.demo.log(*listing) if e["page"] == page])[0]

    def assert_synced(self, *listing):
        self.until("the sync", lambda: self.demo.listed(listing)
                   and self.demo.row(*listing).status == "idle")
        self.assertEqual(self.demo.compare(listing)[1:], (0, 0, 0))

    def worker_log(self):
        return (self.demo.temp / "worker-solo.log").read_text()

    def test_row_deleted_meanwhile(self):
        account = self.demo.own("ada", CALENDAR)
        self.held(account, page=2)
        user = self.demo.users["ada"]
        with self.demo.db.transaction():
            self.demo.call("disconnect_sync", *account)
            self.demo.db.execute("DELETE FROM items WHERE user_id = %s", (user,))
        self.demo.control("release", *account)
        self.until("the report", lambda: f"{user} {account[2]}: dropped" in self.worker_log())
        self.assertEqual(self.demo.value("SELECT count(*) FROM items WHERE user_id = %s", user), 0)

    def test_changes_while_paging(self):
        accounts = [self.demo.own("hugo", source) for source in demo_run.SOURCES]
        for account in accounts:
            self.held(account, page=2)
        self.demo.signal_worker("solo", 9).wait()   # what page 1 told must outlive it
        for account in accounts:
            self.demo.control("mutate", *account, add=4, change=9, delete=4)
            self.demo.control("release", *account)
        self.demo.start_worker("solo")
        self.until("the full syncs", lambda: all(
            self.demo.row(*account).last_full_sync_at for account in accounts))
        self.demo.wait_synced(*accounts)
        self.assertEqual(self.demo.compare(*accounts)[1:], (0, 0, 0))
        for account in accounts:
            pages = [e["page"] for e in self.demo.log(*account) if demo_run.is_full(e)]
            self.assertEqual(pages[:3], [1, 2, 2])

    def test_short_listing(self):
        account = self.demo.own("mia", CALENDAR)
        self.connect(*account)
        self.assert_synced(*account)
        before = self.demo.row(*account)
        self.demo.control("expire", *account, delete=12)
        self.demo.call("request_sync", *account)
        self.until("the full sync", lambda: self.demo.row(*account).last_full_sync_at
                   > before.last_full_sync_at)
        left_over = self.demo.compare(account)[2]
        self.assertEqual(left_over, 12)         # nothing was deleted,
        confirmed = self.demo.value("SELECT confirm_sweep(%s, %s, %s, %s)",
                                    *self.demo.key(*account).values())
        self.assertEqual(confirmed, 12)         # unless somebody says so
        self.assertEqual(self.demo.compare(account)[1:], (0, 0, 0))

    def test_forgotten_page_token(self):
        account = ("ben", CONTACTS)
        self.held(account, page=2)
        # most of page 1 is gone when the listing begins anew, under the same full_sync_id
        number = len(self.demo.control("dump", *account))
        self.demo.control("mutate", *account, add=2 * demo_run.PAGE_SIZE, delete=number - 5)
        self.demo.control("expire_pages", *account)
        self.demo.control("release", *account)
        self.assert_synced(*account)
        log = [(e["page"], e["status"]) for e in self.demo.log(*account)]
        # an unknown token counts as page 1 in the log: refused twice, the second time resumed
        self.assertEqual(log[:5], [(1, 200), (2, 400), (1, 400), (1, 200), (2, 200)])

    def test_lost_connection(self):
        account = ("dan", GMAIL)
        kill = ("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = %s")
        self.until("sleep", self.demo.sleeping_workers)
        self.assertEqual(self.demo.value(f"{kill} AND query ~ 'LISTEN'", demo_run.WORKER_ROLE), 1)
        self.held(account, page=2)          # found the way back
        self.assertEqual(self.demo.value(kill, demo_run.WORKER_ROLE), 2)
        self.demo.control("release", *account)
        self.assert_synced(*account)
        self.assertGreater(self.demo.row(*account).syncs_started, 1)
        pages = [e["page"] for e in self.demo.log(*account) if e["what"] == "messages"]
        self.assertEqual(pages[:4], [1, 2, 2, 3])

    def test_strange_ids(self):
        listings = [("eve", CALENDAR, "team #1/ä@group.calendar.google.com"),
                    ("eve", TASKS, "a/b c?")]
        for listing in listings:
            self.demo.control("connect", *listing)
            self.connect(*listing)
        for listing in listings:
            self.assert_synced(*listing)

    def open(self, account):
        """An account of Nina's that no other test has: its list of calendars."""
        self.demo.control("open", user=self.demo.users["nina"], account=account)
        return "nina", CALENDAR, "", account

    def calendar(self, of_list, resource):
        self.demo.control("connect", *of_list[:2], resource, of_list[3])
        return *of_list[:2], resource, of_list[3]

    def changes(self, *listing):
        """What the rows of a list's calendars or task lists are."""
        name, source, _, account = demo_run.full(*listing)
        return dict(self.demo.query(
            "SELECT resource, coalesce(parked_reason, '') FROM rows WHERE (name, source::text, "
            "account) = (%s, %s, %s) AND resource <> ''", name, source, account))

    def test_calendars_and_task_lists_come_and_go(self):
        self.open("work")
        for source in (CALENDAR, TASKS):
            of_list = ("nina", source, "", "work")
            own = self.demo.own("nina", source, "work")
            others = [("nina", source, resource, "work") for resource in "abcdefghijkl"]
            for listing in others[:11]:
                self.demo.control("connect", *listing)      # two pages
            self.connect(*of_list)
            self.until("the rows", lambda: self.demo.listed(of_list, own, *others[:11]))
            there = dict.fromkeys([own[2], *"abcdefghijk"], "")
            self.assertEqual(self.changes(*of_list), there)
            self.assertEqual(self.demo.compare(of_list, own, *others[:11])[1:], (0, 0, 0))

            # what the user has paused stays so, listed or not
            self.demo.call("pause_sync", *others[0])
            self.demo.call("pause_sync", *others[1])
            self.demo.control("disconnect", *others[0])
            self.demo.control("disconnect", *others[2])
            self.demo.control("connect", *others[11])
            self.until("what is new", lambda: self.demo.listed(others[11]))
            there |= {"a": "paused", "b": "paused", "c": "gone", "l": ""}
            self.assertEqual(self.changes(*of_list), there)
            mark = len(self.demo.log(*others[2]))
            self.demo.wait_synced(of_list)
            self.assertEqual(self.demo.log(*others[2], since=mark), [])
            self.demo.control("connect", *others[2])
            self.demo.wait_synced(others[2])
            self.assertEqual(self.changes(*of_list), there | {"c": ""})
            self.assertFalse(any(map(demo_run.is_full, self.demo.log(*others[2], since=mark))))
            self.assertEqual(self.demo.compare(of_list, others[2], others[11])[1:], (0, 0, 0))

    def test_hidden_calendars(self):
        of_list = self.open("hides")
        hidden = self.calendar(of_list, "hidden")
        self.connect(*of_list)
        self.assert_synced(*hidden)
        self.demo.control("hide", *hidden)
        self.until("its end", lambda: self.changes(*of_list)["hidden"] == "gone")
        # a full listing, which does not have it, says the same
        before = self.demo.row(*of_list)
        self.demo.control("expire", *of_list)
        self.until("the full sync", lambda: self.demo.row(*of_list).last_full_sync_at
                   > before.last_full_sync_at)
        self.assertEqual(self.changes(*of_list)["hidden"], "gone")
        self.demo.control("connect", *hidden)
        self.demo.wait_synced(hidden)

    def test_dead_cursor_of_the_list(self):
        of_list = self.open("forgets")
        self.calendar(of_list, "stays")
        goes = self.calendar(of_list, "goes")
        self.connect(*of_list)
        self.until("the rows", lambda: len(self.changes(*of_list)) == 3)
        # nobody remembers that it was there
        self.demo.control("disconnect", *goes)
        self.demo.control("expire", *of_list)
        self.until("its end", lambda: self.changes(*of_list)["goes"] == "gone")
        self.assertIn(410, [e["status"] for e in self.demo.log(*of_list)])
        self.assertEqual(self.changes(*of_list)["stays"], "")

    def test_short_list(self):
        of_list = self.open("short")
        for n in range(20):
            self.calendar(of_list, f"c{n}")
        self.connect(*of_list)
        self.until("the rows", lambda: len(self.changes(*of_list)) == 21)
        before = self.demo.row(*of_list)
        self.demo.control("expire", *of_list, delete=15)
        self.until("the full sync", lambda: self.demo.row(*of_list).last_full_sync_at
                   > before.last_full_sync_at)
        self.assertEqual(set(self.changes(*of_list).values()), {""})    # nobody is parked,
        confirmed = self.demo.value("SELECT confirm_sweep(%s, %s, %s, %s)",
                                    *self.demo.key(*of_list).values())
        self.assertEqual(confirmed, 15)                     # unless somebody says so
        self.demo.wait_synced(of_list)
        self.assertEqual(list(self.changes(*of_list).values()).count("gone"), 15)

    def test_same_calendar_in_two_accounts(self):
        shared = [self.calendar(self.open(account), "shared") for account in ("left", "right")]
        for listing in shared:
            self.connect(*listing)
        for listing in shared:
            self.assert_synced(*listing)
        before = self.demo.row(*shared[0])
        self.demo.control("expire", *shared[0], delete=3)
        self.until("the full sync", lambda: self.demo.row(*shared[0]).last_full_sync_at
                   > before.last_full_sync_at)
        self.demo.wait_synced(*shared)
        self.assertEqual(self.demo.compare(*shared)[1:], (0, 0, 0))

    def test_list_is_one_transaction(self):
        of_list = self.open("strange")
        # a name that no row can have: neither the list nor its cursor is kept
        strange = self.calendar(of_list, "x" * 1100)
        self.connect(*of_list)
        self.until("the failure", lambda: self.demo.row(*of_list).failures)
        row = self.demo.row(*of_list)
        self.assertEqual((row.sync_token, row.last_full_sync_at, self.changes(*of_list)),
                         (None, None, {}))
        self.assertEqual(self.demo.value("SELECT count(*) FROM items WHERE account = 'strange'"), 0)
        self.demo.control("disconnect", *strange)
        self.until("the row", lambda: len(self.changes(*of_list)) == 1)

    def test_source_of_another_worker(self):
        self.demo.query("SELECT syncstate.register_sync_source('another')")
        self.connect("finn", "another")
        self.until("its return", lambda: "released" in self.worker_log())
        row = self.demo.row("finn", "another")
        self.assertEqual((row.status, row.failures), ("idle", 0))
        # later, so that it is not claimed without pause; but the other one need not wait long
        self.assertGreaterEqual(row.due_at - row.last_sync_at, timedelta(seconds=10))
        self.assertLess(row.due_at - row.last_sync_at, timedelta(minutes=1))

    def test_strange_item(self):
        tasks, calendar = self.demo.own("finn", TASKS), self.demo.own("finn", CALENDAR)
        self.demo.control("garble", *tasks)
        self.connect(*tasks)
        self.connect(*calendar)
        self.until("the failure", lambda: self.demo.row(*tasks).status == "error")
        row = self.demo.row(*tasks)
        self.assertEqual((row.failures, row.lease_expires_at), (1, None))
        self.assert_synced(*calendar)

    def test_dead_cursor_for_ever(self):
        account = self.demo.own("gina", CALENDAR)
        self.connect(*account)
        self.assert_synced(*account)
        self.demo.control("gone", *account, on=True)
        self.until("the brake", lambda: self.demo.row(*account).token_losses >= 3)
        self.until("rest", lambda: self.demo.row(*account).status != "syncing")
        before = len(self.demo.log(*account))
        row = self.demo.row(*account)
        self.assertLess(before, 10)
        self.assertTrue(row.parked_reason
                        or self.demo.value("SELECT %s > clock_timestamp()", row.due_at))
        self.demo.control("gone", *account, on=False)
        self.assert_synced(*account)
        self.assertEqual(self.demo.row(*account).token_losses, 0)


if __name__ == "__main__":
    unittest.main()
