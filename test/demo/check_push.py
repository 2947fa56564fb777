#!/usr/bin/python3
"""Checks examples/push_worker.py and both push_endpoint.* where the demo does not go.

Needs what run needs, and the npm packages of test/node.
"""
import base64
import contextlib
import http.client
import io
import json
import signal
import sys
import threading
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
from check_worker import classic, demo_run      # noqa: E402, which adds examples/ to the path
from google_apis import ApiError                # noqa: E402
import push_worker                              # noqa: E402

CALENDAR, TASKS, GMAIL, CONTACTS = demo_run.SOURCES
for end in (push_worker.bell, push_worker.rope):    # nobody here asks it to stop
    end.close()


class KindTest(unittest.TestCase):
    def test_kinds(self):
        for status, text, kind in [
                (400, classic("pushNotSupportedForRequestedResource"), "unsupported"),
                (403, classic("forbidden"), "unsupported"),
                (403, classic("insufficientPermissions"), "unsupported"),   # it may sync all the same
                (404, classic("notFound"), "unsupported"),
                (401, classic("authError"), "auth"),
                (400, '{"error": "invalid_grant"}', "auth"),
                (401, classic("push.webhookUrlUnauthorized"), "transient"),
                (400, classic("push.webhookUrlNotHttps"), "transient"),
                (403, classic("rateLimitExceeded"), "transient"),
                (429, "", "transient"),
                (503, "<html>", "transient"),
                (0, "timed out", "transient")]:
            self.assertEqual(push_worker.kind_of(ApiError("/watch", status, text, {})), kind, (status, text))


class PushTest(unittest.TestCase):
    """Push for Calendar and Gmail, and no worker that syncs."""

    @classmethod
    def setUpClass(cls):
        cls.demo = demo_run.Demo()
        cls.addClassCleanup(cls.demo.clean_up)
        cls.enterClassContext(contextlib.redirect_stdout(io.StringIO()))
        cls.demo.set_up()
        cls.demo.make_push_role()
        for source in (CALENDAR, GMAIL):
            cls.demo.query("SELECT syncstate.set_sync_policy(%s, %s)", source, json.dumps(
                demo_run.POLICY | {"push_renew_before": "2 days"}))

    def tearDown(self):
        for name in list(self.demo.workers):
            self.demo.signal_worker(name, signal.SIGKILL).wait()
        self.demo.db.execute("DELETE FROM syncstate.sync_state")
        self.demo.db.execute("DELETE FROM syncstate.sync_channel")

    def until(self, what, probe):
        return self.demo.wait_for(what, probe)

    def channels(self):
        return self.demo.query("SELECT * FROM syncstate.sync_channel ORDER BY opened_at")

    def states(self):
        return [channel.state for channel in self.channels()]

    def claim(self):
        return self.demo.query("SELECT * FROM syncstate.claim_push_channels()")[0]

    def open_by_hand(self, listing, channel_id, token="secret"):
        """A channel that only the database knows."""
        self.demo.call("connect_sync", *listing)
        self.demo.call("mark_channel_opened", *listing, lease=self.claim().lease,
                       channel_id=channel_id, token=token, provider_ref="ref",
                       expires_at="2999-01-01")
        self.demo.db.execute("UPDATE syncstate.sync_state SET requested_at = NULL")


class WorkerTest(PushTest):
    def setUp(self):
        self.mark = 0
        self.demo.control("subscribe", topic=demo_run.TOPIC, url="http://127.0.0.1:1/")

    def start_worker(self):
        self.mark += len(self.log())
        self.demo.start_push_worker("http://127.0.0.1:1/")      # nobody is there, nor is called

    def log(self):
        """What the last one has said."""
        log = self.demo.temp / "worker-push.log"
        return log.read_text()[self.mark:] if log.exists() else ""

    def theirs(self):
        return [name for _, name, _ in self.demo.control("channels")]

    def hanging(self, *listing):
        """Starts a worker, whose request for a channel hangs until release()."""
        self.demo.control("hold", *listing, page=None)
        mark = len(self.demo.log(*listing))
        self.start_worker()
        self.until("the request", lambda: len(self.demo.log(*listing)) > mark)

    def test_another_worker_was_faster(self):
        listing = ("ada", CALENDAR)
        self.demo.call("connect_sync", *listing)
        self.hanging(*listing)
        self.demo.db.execute("UPDATE syncstate.sync_channel SET lease_expires_at = clock_timestamp(), "
                        "renew_at = clock_timestamp()")
        other = self.claim()
        self.demo.call("mark_channel_opened", *listing, lease=other.lease, channel_id="other",
                       token="secret", expires_at="2999-01-01")
        self.demo.control("release", *listing)
        self.until("its stop", lambda: ": stopped" in self.log())
        self.assertIn(": retiring until ", self.log())
        self.assertEqual([(c.state, c.channel_id) for c in self.channels()], [("active", "other")])
        self.assertEqual(self.theirs(), [])

    def test_ended_before_the_report(self):
        listing = ("jon", CALENDAR)
        self.demo.call("connect_sync", *listing)
        self.demo.control("set_push", lifetimes=[0.3])
        self.addCleanup(self.demo.control, "set_push", lifetimes=[600])
        before = len(self.demo.control("opened"))
        self.hanging(*listing)
        self.demo.workers["push"].send_signal(signal.SIGSTOP)
        self.demo.control("release", *listing)
        self.until("its end", lambda: len(self.demo.control("opened")) > before
                   and not self.theirs())
        self.demo.control("set_push", lifetimes=[600])
        self.demo.workers["push"].send_signal(signal.SIGCONT)
        self.until("another one", lambda: self.states() == ["active"])
        self.assertIn("expires_at must be later than now", self.log())
        self.assertEqual([c.channel_id for c in self.channels()], self.theirs())
        self.demo.signal_worker("push", signal.SIGKILL).wait()
        self.stop_all()

    def test_row_deleted_meanwhile(self):
        listing = ("ben", CALENDAR)
        self.demo.call("connect_sync", *listing)
        self.hanging(*listing)
        self.demo.call("disconnect_sync", *listing)
        self.demo.control("release", *listing)
        self.until("its stop", lambda: ": stopped" in self.log() and not self.states())
        self.assertEqual(self.theirs(), [])

    def test_lost_connection(self):
        for listing in (("cleo", CALENDAR), ("cleo", GMAIL)):
            self.demo.call("connect_sync", *listing)
            self.hanging(*listing)
            self.assertEqual(self.demo.value(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = %s",
                demo_run.WORKER_ROLE), 1)
            # asked to end, it does not before the database knows
            process = self.demo.signal_worker("push", signal.SIGTERM)
            self.demo.control("release", *listing)
            self.assertEqual(process.wait(demo_run.PATIENCE), 0)
        self.assertEqual([c.state for c in self.channels()], ["active", "active"])
        self.assertEqual({c.channel_id for c in self.channels()}, set(self.theirs()))
        self.stop_all()

    def stop_all(self):
        self.demo.db.execute("DELETE FROM syncstate.sync_state")
        self.start_worker()
        self.until("all stops", lambda: not self.channels())
        self.assertEqual(self.theirs(), [])

    def test_mailbox_of_two_rows(self):
        listings = [(name, GMAIL, "", "shared@example.com") for name in ("dan", "eve")]
        for listing in listings:
            self.demo.control("open", user=self.demo.users[listing[0]], account=listing[3])
            self.demo.call("connect_sync", *listing)
        self.start_worker()
        self.until("both", lambda: sorted(self.states()) == ["active", "unsupported"])
        self.assertEqual(self.theirs(), ["shared@example.com"])
        self.assertEqual(sorted(filter(None, (c.channel_id for c in self.channels()))),
                         self.theirs())
        self.demo.signal_worker("push", signal.SIGKILL).wait()
        self.stop_all()

    def test_revoked_account(self):
        rows = [("finn", CALENDAR), ("finn", TASKS)]
        for listing in rows:
            self.demo.call("connect_sync", *listing)
        self.demo.control("revoke", *rows[0])
        self.start_worker()
        self.until("parked rows", lambda: [self.demo.row(*r).parked_reason for r in rows]
                   == ["auth", "auth"])
        self.demo.control("restore", *rows[0])
        self.demo.query("SELECT syncstate.connect_account(%s)", self.demo.users["finn"])
        self.until("the channel", lambda: self.states() == ["active"])
        self.demo.signal_worker("push", signal.SIGKILL).wait()
        # a grant that is gone does not hinder anybody when a channel is to be stopped
        self.demo.call("disconnect_sync", *rows[0])
        self.demo.control("revoke", *rows[0])
        self.start_worker()
        self.until("the refusal", lambda: [c.state for c in self.channels() if c.failures]
                   == ["retiring"])
        self.assertIsNone(self.demo.row(*rows[1]).parked_reason)
        self.demo.control("restore", *rows[0])
        self.until("the stop", lambda: not self.channels())
        self.assertEqual(self.theirs(), [])

    def test_failure(self):
        listing = ("gina", CALENDAR)
        self.demo.call("connect_sync", *listing)
        self.demo.control("fail", *listing, times=2)
        self.start_worker()
        self.until("the channel", lambda: self.states() == ["active"])
        self.assertEqual([e["status"] for e in self.demo.log(*listing)], [503, 503, 200])
        self.demo.signal_worker("push", signal.SIGKILL).wait()
        self.stop_all()

    def test_stop_of_what_has_ended(self):
        self.open_by_hand(("hugo", CALENDAR), "forgotten by the provider")
        self.demo.call("disconnect_sync", "hugo", CALENDAR)
        self.start_worker()
        self.until("the stop", lambda: not self.channels())


class EndpointTest:
    """What both endpoints do, in two languages."""

    def setUp(self):
        self.port = self.demo.start_endpoint("endpoint", self.KIND)
        self.calendar, self.mailbox = ("ida", CALENDAR), ("ida", GMAIL)
        self.open_by_hand(self.calendar, "ch-1")
        self.open_by_hand(self.mailbox, "ida@example.com", self.demo.secret)

    def send(self, path="/", body=b"", headers=(), method="POST"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            if method == "POST":
                self.assertEqual(answer.read(), b"")
            return answer.status

    def of_calendar(self, channel="ch-1", token="secret", number="5", state="exists"):
        headers = {"X-Goog-Channel-ID": channel, "X-Goog-Channel-Token": token,
                   "X-Goog-Message-Number": number, "X-Goog-Resource-State": state}
        return self.send(headers={k: v for k, v in headers.items() if v is not None})

    def of_gmail(self, change, token=None):
        if not isinstance(change, bytes):
            change = json.dumps(change).encode()
        body = {"message": {"data": base64.b64encode(change).decode(), "messageId": "1"}}
        return self.send(f"/?token={token or self.demo.secret}", json.dumps(body).encode())

    def requested(self, listing):
        """Whether it was, since the last time that we looked."""
        row = self.demo.row(*listing)
        self.demo.db.execute("UPDATE syncstate.sync_state SET requested_at = NULL")
        return row.requested_at is not None

    def number(self, channel_id):
        """Of the last message that was kept; the next one will be, too."""
        return self.demo.query("""UPDATE syncstate.sync_channel c
                                  SET message_number = NULL, last_push_at = NULL
                                  FROM syncstate.sync_channel o
                                  WHERE o.channel_id = c.channel_id AND c.channel_id = %s
                                  RETURNING o.message_number""", channel_id)[0][0]

    def test_calendar(self):
        self.assertEqual(self.of_calendar(), 204)
        self.assertTrue(self.requested(self.calendar))
        self.assertEqual(self.number("ch-1"), 5)
        for wrong in ({"channel": "ch-2"}, {"token": "Secret"}, {"token": None}, {"token": ""},
                      {"channel": "x" * 5000}):
            self.assertEqual(self.of_calendar(**wrong), 404, wrong)
        self.assertEqual(self.of_calendar(state="sync"), 204)
        self.assertEqual(self.of_calendar(channel="too early", state="sync"), 204)
        self.assertFalse(self.requested(self.calendar))
        self.assertIsNone(self.number("ch-1"))
        for number, kept in (("9223372036854775807", 2 ** 63 - 1), ("9223372036854775808", None),
                             ("-1", None), ("1e3", None), ("", None), (None, None),
                             ("9007199254740993", 2 ** 53 + 1)):
            self.assertEqual(self.of_calendar(number=number), 204, number)
            self.assertTrue(self.requested(self.calendar))
            self.assertEqual(self.number("ch-1"), kept)

    def test_gmail(self):
        address = "ida@example.com"
        for history_id, kept in ((17, 17), ("18", 18), (2 ** 53 + 1, 2 ** 53 + 1),
                                 (12345678901234567890, None)):
            self.assertEqual(self.of_gmail({"emailAddress": address, "historyId": history_id}), 204)
            self.assertTrue(self.requested(self.mailbox))
            self.assertEqual(self.number(address), kept)
        self.assertFalse(self.requested(self.calendar))
        change = {"emailAddress": address, "historyId": 1000}
        for token in ("wrong", self.demo.secret + "x", "%00", "%ff"):
            self.assertEqual(self.of_gmail(change, token), 404)
        self.assertEqual(self.send(body=b"{}"), 404)
        self.assertEqual(self.of_gmail(change | {"emailAddress": "nobody@example.com"}), 204)
        self.assertFalse(self.requested(self.mailbox))

    def test_nonsense(self):
        change = {"emailAddress": "ida@example.com", "historyId": 1}
        for nonsense in (b"\xff", b"[]", b"1", b"null", b"[" * 9000, {}, {"emailAddress": 1},
                         change | {"emailAddress": "a\0b"}, change | {"emailAddress": None},
                         change | {"emailAddress": 1}):
            self.assertEqual(self.of_gmail(nonsense), 400, nonsense)
        # Python can have half a character in a text, Node puts another one in its place
        self.assertIn(self.of_gmail(change | {"emailAddress": "\ud800"}), (400, 204))
        path = f"/?token={self.demo.secret}"
        for body in (b"", b"x", b"[]", b"{}", b'{"message": {"data": "***"}}', b'{"message": 1}'):
            self.assertEqual(self.send(path, body), 400, body)
        self.assertEqual(self.send(path, b"x" * 65537), 413)
        self.assertIn(self.send(path, method="GET"), (405, 501))
        self.assertEqual(self.of_gmail(change), 204)

    def test_database_away(self):
        self.assertEqual(self.of_calendar(), 204)
        self.demo.server.execute(f"ALTER ROLE {demo_run.PUSH_ROLE} NOLOGIN")
        self.demo.server.execute("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                                 "WHERE usename = %s", (demo_run.PUSH_ROLE,))
        self.assertEqual({self.of_calendar(number="6") for _ in range(6)}, {503})
        self.demo.server.execute(f"ALTER ROLE {demo_run.PUSH_ROLE} LOGIN")
        self.until("its return", lambda: self.of_calendar(number="7") == 204)

    def test_many_at_once(self):
        answers = []
        threads = [threading.Thread(target=lambda n=n: answers.append(
            self.of_calendar(number=str(n)))) for n in range(40)]
        with self.demo.db.transaction():    # so that they wait
            self.demo.db.execute("LOCK TABLE syncstate.sync_channel")
            for thread in threads:
                thread.start()
            self.until("all connections", lambda: self.demo.server.execute(
                "SELECT count(*) = 4 FROM pg_stat_activity WHERE usename = %s "
                "AND wait_event_type = 'Lock'", (demo_run.PUSH_ROLE,)).fetchone()[0])
        for thread in threads:
            thread.join(demo_run.PATIENCE)
        self.assertEqual((len(answers), set(answers)), (40, {204}))
        self.assertLessEqual(self.demo.value("SELECT count(*) FROM pg_stat_activity "
                                             "WHERE usename = %s", demo_run.PUSH_ROLE), 4)


class NodeEndpointTest(EndpointTest, PushTest):
    KIND = "mjs"


class PythonEndpointTest(EndpointTest, PushTest):
    KIND = "py"


if __name__ == "__main__":
    unittest.main()
