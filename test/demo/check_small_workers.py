#!/usr/bin/python3
"""Checks a worker of examples/, in whichever language: check_small_workers.py NAME.

Two processes of it sync calendars from the demo's provider. At the end the database has the very
items that the provider has. Needs what run needs, and prints TAP.

node_worker.mjs and worker.py write page by page, and run several syncs at a time.
"""
import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
from check_worker import demo_run, stop_during_claim   # noqa: E402

CALENDAR = demo_run.CALENDAR
INTERPRETERS = {".py": [sys.executable, "-B"], ".mjs": ["node"], ".sh": ["bash"]}
CONCURRENCY = 3


class Small(demo_run.Demo):
    """The demo's stage, with another worker on it."""

    def __init__(self, file):
        super().__init__()
        self.file = file
        self.turns_pages = file.name in ("node_worker.mjs", "worker.py")

    def step(self, title):
        print(f"# {title}", flush=True)

    def check(self, holds, what):
        self.checks += 1
        print(f"{'ok' if holds else 'not ok'} {self.checks} - {what}", flush=True)
        if not holds:
            raise demo_run.Failed(what)

    def start_worker(self, name, **more):
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment |= {
            "PGDATABASE": demo_run.DATABASE, "PGUSER": demo_run.WORKER_ROLE,
            "PGPASSWORD": self.password, "API_URL": self.url, "WORKER_NAME": name,
            "PAGE_SIZE": str(demo_run.PAGE_SIZE), "CONCURRENCY": str(CONCURRENCY)} | more
        with open(self.temp / f"worker-{name}.log", "a") as log:
            self.workers[name] = self.start([*INTERPRETERS[self.file.suffix], self.file.name], log,
                                            stdout=log, env=environment)

    def worker_log(self, name):
        return (self.temp / f"worker-{name}.log").read_text()

    def signal_worker(self, name, number):
        if number != signal.SIGTERM:
            return super().signal_worker(name, number)
        process = self.workers.pop(name)
        os.killpg(process.pid, number)      # as systemd does, with all that it has started
        return process

    def clean_up(self):
        for process in self.workers.values():       # with all that it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        super().clean_up()

    def connect(self, *names):
        for name in names:
            self.call("connect_sync", *self.of(name))

    def of(self, name):
        """The calendar that each of the users has."""
        return self.own(name, CALENDAR)

    def held(self, name, page=2):
        """Lets a listing hang at a page, from the next sync on; returns who is hanging there."""
        mark = len(self.log(*self.of(name)))
        self.control("hold", *self.of(name), page=page)
        self.connect(name)
        return self.wait_for("the page", lambda: [
            e for e in self.log(*self.of(name), since=mark) if e["page"] == page])[0]["agent"]

    def items(self, name):
        return self.value("SELECT count(*) FROM items WHERE user_id = %s", self.users[name])

    def has_dropped(self, name, agent):
        return any(self.users[name] in line and ": dropped" in line
                   for line in self.worker_log(agent).splitlines())

    def play(self):
        self.set_up()
        people = "ada ben cleo dan eve finn".split()
        listings = [self.of(name) for name in people]

        self.step("a stop during a claim")
        self.connect("jon")
        self.check(stop_during_claim(self, "one") == 0, "it ends with status 0")
        row = self.row(*self.of("jon"))
        self.check((row.status, row.syncs_started, row.failures) == ("idle", 1, 0)
                   and self.value("SELECT %s <= clock_timestamp()", row.due_at)
                   and not self.log(*self.of("jon")),
                   "before the first page, and the row is released: due, nothing counted")
        self.call("disconnect_sync", *self.of("jon"))

        self.step("waking")
        self.start_worker("one")
        self.start_worker("two")
        self.wait_for("sleep", lambda: all(
            "sleeps" in self.worker_log(name) for name in self.workers))
        self.connect(*people)
        self.wait_synced(*listings)         # or else they sleep for ten minutes
        starts = [sum(demo_run.is_full(e) and e["page"] == 1 for e in self.log(*a))
                  for a in listings]
        self.check(set(starts) == {1}, "a notification wakes them: one full sync for each calendar")
        self.check_items(*listings)

        self.step("sleeping until work is due")
        marks = {listing: len(self.log(*listing)) for listing in listings}
        for listing in listings:
            self.control("mutate", *listing, add=12, change=4, delete=3)
        self.wait_synced(*listings)
        requests = [e for listing in listings for e in self.log(*listing, since=marks[listing])]
        self.check(requests and not any(demo_run.is_full(e) for e in requests),
                   "they get up in time, and go on from the cursors")
        self.check_items(*listings)

        self.step("lost connections")
        self.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                   demo_run.WORKER_ROLE)
        for listing in listings:
            self.control("mutate", *listing, add=2, change=2, delete=2)
        self.wait_synced(*listings)
        self.check_items(*listings)

        self.step("errors")
        marks = {listing: len(self.log(*listing)) for listing in listings}
        self.control("expire", *self.of("ada"), delete=3)
        # longer than any wait after a failure, so that it cannot be taken for one
        self.control("limit", *self.of("ben"), seconds=5, kind="403")
        self.control("revoke", *self.of("cleo"))
        self.control("fail", *self.of("dan"), times=1)
        self.control("garble", *self.of("eve"))
        # what Finn has cannot be written, and his report comes in the same transaction
        # (paused, so that no sync gets a new cursor before that)
        finn = self.users["finn"]
        self.call("pause_sync", *self.of("finn"))
        self.wait_for("the end of Finn's sync",
                      lambda: self.row(*self.of("finn")).status != "syncing")
        cursor = self.row(*self.of("finn")).sync_token
        self.db.execute("ALTER TABLE items ADD CONSTRAINT not_finn "
                        f"CHECK (user_id <> '{finn}') NOT VALID")
        self.control("mutate", *self.of("finn"), change=3)
        self.call("resume_sync", *self.of("finn"))

        def has_answered(name, status):
            log = self.log(*self.of(name), since=marks[self.of(name)])
            return any(e["status"] == status for e in log)
        self.wait_for("the outcome of each", lambda: (
            has_answered("ada", 410) and has_answered("ben", 403) and has_answered("dan", 503)
            and self.row(*self.of("cleo")).parked_reason and self.row(*self.of("eve")).failures
            and self.row(*self.of("finn")).failures))
        row = self.row(*self.of("finn"))
        self.check(row.sync_token == cursor and "not_finn" not in row.error_message,
                   "where the items cannot be written, the cursor stays, and users are not told why")
        self.db.execute("ALTER TABLE items DROP CONSTRAINT not_finn")
        row = self.row(*self.of("cleo"))
        self.check(row.parked_reason == "auth" and "HTTP 401" in row.error_message,
                   "who took back the consent is parked, with the reason")
        self.check([e["status"] for e in self.log(*self.of("cleo"), since=marks[self.of("cleo")])] == [401, 401],
                   "after a second try, with a new token")
        self.wait_synced(*map(self.of, ("ada", "ben", "dan")))
        log = self.log(*self.of("ben"), since=marks[self.of("ben")])
        refused = [n for n, e in enumerate(log) if e["status"] == 403]
        self.check(len(refused) == 1 and log[refused[0] + 1]["at"] - log[refused[0]]["at"] >= 5,
                   "a rate limit is waited for")
        self.control("restore", *self.of("cleo"))
        self.control("narrow", *self.of("cleo"))
        self.connect("cleo")
        self.wait_for("the next refusal", lambda: self.row(*self.of("cleo")).parked_reason)
        row = self.row(*self.of("cleo"))
        self.check(row.parked_reason == "auth" and "HTTP 403" in row.error_message,
                   "so is who does not consent to the calendar")
        self.control("restore", *self.of("cleo"))
        self.control("mutate", *self.of("eve"), delete=100)         # the strange item, too
        self.connect("cleo", "eve", "finn")
        self.wait_synced(*listings)
        self.check_items(*listings)

        self.step("the heartbeat")
        agent = self.held("gina")
        row = self.row(*self.of("gina"))
        self.wait_for("the first lease's end", lambda: self.value(
            "SELECT clock_timestamp() > %s::timestamptz + '0.2 s'", row.lease_expires_at))
        later = self.row(*self.of("gina"))
        self.check(later.syncs_started == 1 and later.status == "syncing"
                   and later.lease_expires_at > row.lease_expires_at,
                   "while the provider takes its time, the lease is renewed")

        self.step("the end")
        self.signal_worker(agent, signal.SIGKILL).wait()
        self.wait_for("the take-over", lambda: self.row(*self.of("gina")).syncs_started == 2)
        if self.turns_pages:
            self.check(self.items("gina") == demo_run.PAGE_SIZE,
                       "of a killed worker the pages stay that it wrote, but no heartbeat")
        else:
            self.check(self.items("gina") == 0,
                       "of a killed worker nothing stays, no heartbeat either")
        self.control("release", *self.of("gina"))
        self.start_worker(agent)
        self.wait_synced(self.of("gina"))
        if self.turns_pages:
            pages = [e["page"] for e in self.log(*self.of("gina")) if demo_run.is_full(e)]
            self.check(pages.count(1) == 1, "and the other one goes on at the next page")

        self.step("a lost lease")
        # on the last page, after which the sync is reported complete
        pages = math.ceil(len(self.control("dump", *self.of("hugo"))) / demo_run.PAGE_SIZE)
        agent = self.held("hugo", pages)
        with self.db.transaction():         # or the other one may come in between
            self.call("clear_sync_token", *self.of("hugo"))
            self.call("pause_sync", *self.of("hugo"))
        self.control("release", *self.of("hugo"))
        self.wait_for("the report", lambda: self.has_dropped("hugo", agent))
        row = self.row(*self.of("hugo"))
        written = demo_run.PAGE_SIZE * (pages - 1) if self.turns_pages else 0
        self.check(self.items("hugo") == written and row.sync_token is None and row.failures == 0,
                   "its report is refused, and its items with it")

        self.step("a graceful stop")
        self.control("mutate", *self.of("ida"), add=60)
        agent = self.held("ida")
        other, = (process for name, process in self.workers.items() if name != agent)
        other.send_signal(signal.SIGSTOP)   # it must not take what is released, nor by a claim
        self.wait_for("the end of its call", lambda: self.value(    # that is on its way
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = %s AND state = 'active'",
            demo_run.WORKER_ROLE))
        process = self.signal_worker(agent, signal.SIGTERM)
        if not self.turns_pages:            # the others do not wait for the page
            self.control("release", *self.of("ida"))
        self.check(process.wait(demo_run.PATIENCE) == 0, "it ends with status 0")
        if self.turns_pages:
            self.control("release", *self.of("ida"))
        row = self.row(*self.of("ida"))
        print(f"# {row.status}, {row.syncs_started} started, {row.failures} failed, due {row.due_at}, "
              f"page {self.log(*self.of('ida'))[-1]['page']}")
        self.check((row.status, row.syncs_started, row.failures) == ("idle", 1, 0)
                   and self.value("SELECT %s <= clock_timestamp()", row.due_at)
                   and self.log(*self.of("ida"))[-1]["page"] < 6,
                   "between two pages, and the row is released: due, nothing counted")
        other.send_signal(signal.SIGCONT)
        self.wait_for("the other worker", lambda: self.row(*self.of("ida")).last_successful_sync_at)

        self.step("the list of an account")
        self.control("open", user=self.users["jon"], account="work")
        names = [f"c{n:02}" for n in range(12)]         # two pages
        calendars = [("jon", CALENDAR, name, "work") for name in names]
        for calendar in calendars[:11]:
            self.control("connect", *calendar)
        of_list = ("jon", CALENDAR, "", "work")
        own = self.own("jon", CALENDAR, "work")
        self.call("connect_sync", *of_list)
        self.wait_for("the rows", lambda: self.listed(of_list, own, *calendars[:11]))
        self.check_items(of_list, own, *calendars[:11])
        self.control("disconnect", *calendars[0])
        self.control("hide", *calendars[1])
        self.control("connect", *calendars[11])
        self.wait_for("what is new", lambda: self.listed(calendars[11]))
        gone = [row.resource for row in map(lambda c: self.row(*c), calendars)
                if row.parked_reason == "gone"]
        self.check(gone == names[:2], "calendars come, go, and are hidden: so do their rows")
        self.query("SELECT syncstate.disconnect_account(%s, 'work')", self.users["jon"])
        self.db.execute("DELETE FROM items WHERE account = 'work'")

        if self.turns_pages:
            self.step("several at a time")
            names = "kim leo mia nina".split()
            for name in names:
                self.control("hold", *self.of(name), page=1)
            self.connect(*names)

            def asked():
                return [name for name in names if self.log(*self.of(name))]
            self.wait_for("all places", lambda: len(asked()) == CONCURRENCY)
            time.sleep(0.5)             # for one too many
            self.check(len(asked()) == CONCURRENCY == self.value(
                "SELECT count(*) FROM syncstate.sync_state WHERE status = 'syncing'"),
                f"of {len(names)} due calendars a worker syncs {CONCURRENCY}")
            lost, refused, outdated = asked()
            agent, = self.workers
            self.call("disconnect_sync", *self.of(lost))
            self.wait_for("the heartbeat", lambda: self.has_dropped(lost, agent))
            self.check(len(self.log(*self.of(lost))) == 1,
                       "the lease is lost: the work is dropped before the provider answers")
            self.control("revoke", *self.of(refused))       # answered when the pages are
            self.control("outdate", *self.of(outdated))
            for name in names:
                self.control("release", *self.of(name))
            names.remove(lost)
            self.wait_synced(*(self.of(name) for name in names if name != refused))
            self.wait_for("the refusal", lambda: self.row(*self.of(refused)).parked_reason)
            self.check([e["status"] for e in self.log(*self.of(refused))] == [401, 401],
                       "a token is refused twice before that is reported")
            self.check([e["status"] for e in self.log(*self.of(outdated))][:2] == [401, 200]
                       and self.row(*self.of(outdated)).failures == 0,
                       "and a refreshed one may be taken")
            self.check(self.items(lost) == 0, "nothing is written without the lease")
            for name in names:
                self.call("disconnect_sync", *self.of(name))
                self.query("DELETE FROM items WHERE user_id = %s RETURNING 1", self.users[name])

        self.step("the comparison")
        self.call("resume_sync", *self.of("hugo"))
        listings += [self.of(name) for name in ("gina", "hugo", "ida")]
        for listing in listings:
            self.control("mutate", *listing, add=3, change=4, delete=2)
        self.wait_synced(*listings)
        ends = [self.signal_worker(name, signal.SIGTERM) for name in list(self.workers)]
        self.check([process.wait(demo_run.PATIENCE) for process in ends] == [0],
                   "the other one ends")
        self.check(self.value("SELECT count(*) FROM syncstate.sync_state WHERE status = 'idle' "
                              "AND failures = 0 AND due_at IS NOT NULL") == len(listings),
                   "all rows are idle and due again")
        self.check_items(*listings)
        self.check(self.value("SELECT count(*) FROM items") == self.compare(*listings)[0],
                   "and there are no other items")

        self.step("a database that cannot be reached")
        self.start_worker("early", PGPORT="9")
        self.wait_for("its words", lambda: self.worker_log("early"))
        time.sleep(1)
        self.check(self.workers["early"].poll() is None, "the worker keeps running")
        self.check(self.worker_log("early").count("\n") < 20, "it pauses before it tries again")
        self.check(self.signal_worker("early", signal.SIGTERM).wait(demo_run.PATIENCE) == 0,
                   "and it stops when it is asked to")
        print(f"1..{self.checks}")


def judge(kind, *arguments):
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    small = kind(*arguments)
    try:
        small.play()
    except demo_run.Failed as error:
        print(f"# {error}")
        small.show_logs()
        return 1
    finally:
        small.clean_up()
    return 0


if __name__ == "__main__":
    sys.exit(judge(Small, Path(sys.argv[1]).resolve()))
