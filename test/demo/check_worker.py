#!/usr/bin/python3
"""Checks examples/worker.py where the demo does not go. Needs what run needs, and stays silent."""
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

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent.parent / "examples"))
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
        self.demo.query("SELECT syncstate.disconnect_sync(user_id, source, resource) "
                        "FROM syncstate.sync_state")

    def connect(self, *account, resource=""):
        self.demo.query("SELECT syncstate.connect_sync(%s, %s, %s)",
                        self.demo.users[account[0]], account[1], resource)

    def until(self, what, probe):
        return self.demo.wait_for(what, probe)

    def held(self, account, page):
        self.demo.control("hold", *account, page=page)
        self.connect(*account)
        return self.until("the page", lambda: [
            e for e in self.demo.log(*account) if e["page"] == page])[0]

    def assert_synced(self, *account):
        self.until("the sync", lambda: (row := self.demo.row(*account)).status == "idle"
                   and row.last_full_sync_at)
        self.assertEqual(self.demo.compare(account)[1:], (0, 0, 0))

    def assert_not_begun(self, *account):
        row = self.demo.row(*account)
        self.assertEqual((row.status, row.syncs_started, row.failures), ("idle", 1, 0))
        self.assertTrue(self.demo.value("SELECT %s <= clock_timestamp()", row.due_at))

    def worker_log(self):
        return (self.demo.temp / "worker-solo.log").read_text()

    def test_row_deleted_meanwhile(self):
        account = ("ada", CALENDAR)
        self.held(account, page=2)
        user = self.demo.users["ada"]
        with self.demo.db.transaction():
            self.demo.query("SELECT syncstate.disconnect_sync(%s, %s)", user, CALENDAR)
            self.demo.db.execute("DELETE FROM items WHERE user_id = %s", (user,))
        self.demo.control("release", *account)
        self.until("the report", lambda: f"{user}: dropped" in self.worker_log())
        self.assertEqual(self.demo.value("SELECT count(*) FROM items WHERE user_id = %s", user), 0)

    def test_changes_while_paging(self):
        accounts = [("hugo", source) for source in demo_run.SOURCES]
        for account in accounts:        # each held up by one of four workers
            if account != accounts[0]:
                self.demo.start_worker(account[1])
            self.held(account, page=2)
        for name in list(self.demo.workers):    # what page 1 told must outlive them
            self.demo.signal_worker(name, 9).wait()
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
        account = ("mia", CALENDAR)
        self.connect(*account)
        self.assert_synced(*account)
        before = self.demo.row(*account)
        self.demo.control("expire", *account, delete=12)
        self.demo.query("SELECT syncstate.request_sync(%s, %s)", self.demo.users["mia"], CALENDAR)
        self.until("the full sync", lambda: self.demo.row(*account).last_full_sync_at
                   > before.last_full_sync_at)
        left_over = self.demo.compare(account)[2]
        self.assertEqual(left_over, 12)         # nothing was deleted,
        self.assertIn("did not list 12 of ", self.worker_log())
        user = self.demo.users["mia"]
        confirmed = self.demo.value("SELECT confirm_sweep(%s, %s)", user, CALENDAR)
        self.assertEqual(confirmed, 12)         # unless somebody says so
        self.assertEqual(self.demo.compare(account)[1:], (0, 0, 0))

    def test_rows_behind_a_long_one(self):
        accounts = [("ida", CALENDAR), ("jon", CALENDAR)]
        for account in accounts:
            self.demo.control("hold", *account, page=2)
        with self.demo.db.transaction():    # so that one claim takes both
            for account in accounts:
                self.connect(*account)
        self.until("the release", lambda: "released, waited too long" in self.worker_log())
        rows = [self.demo.row(*account) for account in accounts]
        self.assertEqual(sorted((row.status, row.syncs_started, row.failures) for row in rows),
                         [("idle", 1, 0), ("syncing", 1, 0)])
        for account in accounts:
            self.demo.control("release", *account)
        for account in accounts:
            self.assert_synced(*account)

    def test_stop_during_claim(self):
        accounts = [("kim", CALENDAR), ("leo", CALENDAR)]
        self.demo.signal_worker("solo", 9).wait()
        for account in accounts:
            self.connect(*account)
        self.assertEqual(stop_during_claim(self.demo, "solo"), 0)
        for account in accounts:
            self.assert_not_begun(*account)
            self.assertEqual(self.demo.log(*account), [])

    def test_stop_before_rows_that_wait(self):
        accounts = [("kim", TASKS), ("leo", TASKS)]
        # nor may they go back because they waited too long
        self.demo.query("SELECT syncstate.set_sync_policy(%s, '{\"lease_time\": \"1 day\"}')", TASKS)
        self.addCleanup(self.demo.query, "SELECT syncstate.set_sync_policy(%s, %s)", TASKS,
                        json.dumps(demo_run.POLICY))
        for account in accounts:
            self.demo.control("hold", *account, page=1)
        with self.demo.db.transaction():    # so that one claim takes both
            for account in accounts:
                self.connect(*account)
        first = self.until("the page", lambda: [a for a in accounts if self.demo.log(*a)])[0]
        second, = set(accounts) - {first}
        process = self.demo.signal_worker("solo", signal.SIGTERM)
        self.until("the release", lambda: self.demo.row(*second).status == "idle")
        self.assert_not_begun(*second)
        self.assertEqual(self.demo.row(*first).status, "syncing")
        self.demo.control("release", *first)
        self.assertEqual(process.wait(demo_run.PATIENCE), 0)
        row = self.demo.row(*first)
        self.assertEqual((row.status, row.syncs_started, row.failures), ("idle", 1, 0))
        self.assertEqual(self.demo.log(*second), [])

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

    def test_foreign_page_token(self):
        for text in ("garbage", "[1]", "null", '{"page": "x"}'):
            account = ("cleo", CONTACTS)
            self.demo.signal_worker("solo", 9).wait()
            self.connect(*account)
            user = self.demo.users["cleo"]
            self.demo.query("SELECT syncstate.update_sync_state(%s, %s, %s)", user, CONTACTS,
                            json.dumps({"page_token": text}))
            self.demo.start_worker("solo")
            self.assert_synced(*account)
            self.assertIsNone(self.demo.row(*account).page_token)
            self.demo.query("SELECT syncstate.disconnect_sync(%s, %s)", user, CONTACTS)

    def test_lost_connection(self):
        account = ("dan", GMAIL)
        kill = ("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = %s")
        self.until("sleep", self.demo.sleeping_workers)
        self.assertEqual(self.demo.value(kill, demo_run.WORKER_ROLE), 1)
        self.held(account, page=2)          # found the way back
        self.assertEqual(self.demo.value(kill, demo_run.WORKER_ROLE), 1)
        self.demo.control("release", *account)
        self.assert_synced(*account)
        self.assertGreater(self.demo.row(*account).syncs_started, 1)
        pages = [e["page"] for e in self.demo.log(*account) if e["what"] == "messages"]
        self.assertEqual(pages[:4], [1, 2, 2, 3])

    def test_resource(self):
        resource = "team #1/ä@group.calendar.google.com"
        self.connect("eve", CALENDAR, resource=resource)
        self.until("the sync", lambda: self.demo.row("eve", CALENDAR).last_full_sync_at)
        items = self.demo.value("SELECT count(*) FROM items WHERE user_id = %s AND resource = %s",
                                self.demo.users["eve"], resource)
        self.assertEqual(items, len(self.demo.control("dump", "eve", CALENDAR)))

    def test_strange_item(self):
        self.demo.control("garble", "finn", TASKS)
        self.connect("finn", TASKS)
        self.connect("finn", CALENDAR)
        self.until("the failure", lambda: self.demo.row("finn", TASKS).status == "error")
        row = self.demo.row("finn", TASKS)
        self.assertEqual((row.failures, row.lease_expires_at), (1, None))
        self.assert_synced("finn", CALENDAR)

    def test_dead_cursor_for_ever(self):
        account = ("gina", CALENDAR)
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
