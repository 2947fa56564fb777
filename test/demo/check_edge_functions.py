#!/usr/bin/python3
"""Checks the edge functions of examples/supabase against the demo's provider; prints TAP.

test/node/edge_runtime.mjs plays Supabase, and this plays the rest: the application with its users,
pg_cron, and Google's token endpoint. At the end the database has the very items that the provider
has. Needs what run needs, Supabase's roles, and the functions as tsc compiles them.
"""
import base64
import hashlib
import hmac
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import parse_qsl, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import psycopg

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
from check_small_workers import CALENDAR, Small, demo_run, judge    # noqa: E402

FUNCTIONS = demo_run.EXAMPLES / "supabase" / "functions"
SCOPE = "https://www.googleapis.com/auth/calendar.readonly"
JWT_SECRET = "a secret of at least thirty-two characters"
SETTINGS = {"SYNC_WORKER_KEY": "the key of the cron job", "STATE_KEY": "the key of states",
            "REDIRECT_URL": "https://app.example/connected", "GOOGLE_CLIENT_ID": "client",
            "GOOGLE_CLIENT_SECRET": "client's secret", "JWT_SECRET": JWT_SECRET,
            # however slow the machine
            "WORK_SECONDS": "50", "STEP_SECONDS": "30", "ANSWER_SECONDS": "60"}
OPEN = build_opener(ProxyHandler({})).open      # a proxy of the environment is not for loopback


def base64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def mac(key, text):
    return base64url(hmac.digest(key.encode(), text.encode(), "sha256"))


def jwt(key, **claims):
    text = ".".join(base64url(json.dumps(part).encode())
                    for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{text}.{mac(key, text)}"


def post(url, token=None, body=None, **headers):
    """The status and the answer, which is JSON."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = b"" if body is None else json.dumps(body).encode()
    try:
        with OPEN(Request(url, data, headers | {"Content-Type": "application/json"}), timeout=90) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.loads(error.read() or "null")


class TokenEndpoint(ThreadingHTTPServer):
    """Google's, and the page where users consent."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), TokenHandler)
        self.codes = {}         # code -> what was consented to
        self.grants = {}        # refresh token -> user, account
        self.expired = set()    # who gets an access token that is good no more
        self.revoked = set()
        self.asked = Counter()
        self.is_away = False
        self.secret = "client's secret"
        self.brief = set()      # whose access tokens are not worth keeping
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def consent(self, url, user, account, scope=f"openid {SCOPE}"):
        """The user says yes. Returns what Google adds to the URL of the application."""
        query = dict(parse_qsl(urlsplit(url).query))
        code = f"code-{len(self.codes)}"
        self.codes[code] = query | {"of": (user, account), "scope": scope}
        return {"code": code, "state": query["state"]}

    def answer(self, form):
        if self.is_away:
            return 503, {"error": "backend_error"}
        if (form["client_id"], form["client_secret"]) != ("client", self.secret):
            return 401, {"error": "invalid_client"}
        if form["grant_type"] == "authorization_code":
            code = self.codes.get(form["code"])
            if not code or code.pop("redirect_uri", None) != form["redirect_uri"] or code["code_challenge"] \
                    != base64url(hashlib.sha256(form["code_verifier"].encode()).digest()):
                return 400, {"error": "invalid_grant"}
            token = f"refresh-{len(self.grants)}"
            self.grants[token] = code["of"]
            return 200, self.access(code["of"]) | {
                "refresh_token": token, "scope": code["scope"],
                "id_token": jwt("Google's", sub=code["of"][1], note="ÿ?>")}
        of = self.grants[form["refresh_token"]]
        self.asked[of] += 1
        if of in self.revoked:
            return 400, {"error": "invalid_grant"}
        return 200, self.access(of)

    def access(self, of):
        token = "expired" if of in self.expired else "/".join(of)
        self.expired.discard(of)
        return {"access_token": token, "expires_in": 60 if of in self.brief else 3600, "token_type": "Bearer"}


class TokenHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status, body = self.server.answer(dict(parse_qsl(form)))
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Cron(threading.Thread):
    """Calls the function as the job does: when work is due."""

    def __init__(self, demo, path):
        super().__init__(daemon=True)
        self.demo, self.path = demo, path
        self.is_over = False
        self.answers = []

    def run(self):
        with psycopg.connect(dbname=demo_run.DATABASE, autocommit=True) as db:
            while not self.is_over:
                if db.execute("SELECT 1 FROM syncstate.next_sync_due() AS due WHERE due <= clock_timestamp()").fetchone():
                    self.answers.append(self.demo.work(self.path))
                time.sleep(0.1)


class Edge(Small):
    def step(self, title):
        print(f"# {time.monotonic() - self.started:.0f} s: {title}", flush=True)

    def set_up_items(self):
        self.db.execute("""
            ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role""")
        super().set_up_items()
        for file in "items.sql", "edge_functions.sql":
            self.db.execute((demo_run.EXAMPLES / "supabase" / file).read_text())

    def start_host(self, name):
        """Supabase, as far as the functions see of it."""
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment |= SETTINGS | {
            "PGDATABASE": demo_run.DATABASE, "PAGE_SIZE": str(demo_run.PAGE_SIZE), "API_URL": self.url,
            "TOKEN_URL": f"http://127.0.0.1:{self.google.server_port}/token"}
        with open(self.temp / f"worker-{name}.log", "a") as log:
            self.workers[name] = self.start(["node", HERE.parent / "node" / "edge_runtime.mjs"], log,
                                            stdout=log, env=environment)
        self.functions, self.rest = self.wait_for("the host", lambda: self.worker_log(name).splitlines())[0].split()

    def invoke(self, function, token, body=None, **headers):
        return post(f"{self.functions}/functions/v1/{function}", token, body, **headers)

    def work(self, query="", **settings):
        """A call of the worker, as the job makes it."""
        return self.invoke(f"sync-worker{query}", SETTINGS["SYNC_WORKER_KEY"], {"due_since": "now"},
                           **{"X-Settings": json.dumps(settings)})

    def session(self, name):
        return jwt(JWT_SECRET, role="authenticated", sub=self.users[name], exp=time.time() + 3600)

    def connect_google(self, name, body=None):
        return self.invoke("connect-google", self.session(name), body)

    def go_to_google(self, name, **more):
        """The user clicks, and consents. Returns what the application gets."""
        status, answer = self.connect_google(name)
        if status != 200:
            raise demo_run.Failed(f"no URL: {answer}")
        return self.google.consent(answer["url"], self.users[name], "home", **more)

    def of(self, name, resource="home"):
        return name, CALENDAR, resource, "home"

    def grants(self, name):
        return self.value("SELECT count(*) FROM google_grants WHERE user_id = %s", self.users[name])

    def request(self, *listing):
        self.call("request_sync", *listing)

    def sync_now(self, listing, query=""):
        """Calls until a requested row is synced, which is soon; returns what became of it."""
        self.request(*listing)
        return self.wait_for("the sync", lambda: [
            outcome for outcome, number in self.work(query)[1].items() if number])

    def held(self, listing, page, **settings):
        """Holds a page of a listing, and calls until it is asked for. Returns the calls."""
        mark = len(self.log(*listing))
        self.control("hold", *listing, page=page)
        self.request(*listing)
        calls = []

        def asked():
            if not calls or calls[-1].done():
                calls.append(self.pool.submit(self.work, **settings))
            return [e for e in self.log(*listing, since=mark) if e["page"] == page]
        self.wait_for("the page", asked)
        return calls

    def play(self):
        self.pool, self.google = ThreadPoolExecutor(8), TokenEndpoint()
        self.set_up()
        people = "ada ben cleo dan eve finn gina hugo".split()
        for name in people:
            self.control("open", user=self.users[name], account="home")
            self.control("connect", *self.of(name, "team"))
        of = {name: (self.users[name], "home") for name in people}
        self.google.brief |= {of["finn"], of["gina"], of["hugo"]}
        self.start_host("one")
        nothing = dict.fromkeys(("synced", "released", "limited", "failed", "dropped"), 0)

        self.step("connecting")
        self.check([self.invoke("connect-google", token)[0] for token in (
            None, "x", jwt("another", role="authenticated", sub=self.users["ada"]),
            jwt(JWT_SECRET, role="anon"), jwt(JWT_SECRET, role="service_role"),
            jwt(JWT_SECRET, role="authenticated", sub=self.users["ada"], exp=1))] == [401] * 6,
            "nobody connects who is not signed in")
        status, answer = self.connect_google("ada")
        query = dict(parse_qsl(urlsplit(answer["url"]).query))
        self.check(answer["url"].startswith("https://accounts.google.com/o/oauth2/v2/auth?")
                   and query["scope"] == f"openid {SCOPE}" and query["access_type"] == "offline"
                   and query["prompt"] == "consent" and query["response_type"] == "code"
                   and query["redirect_uri"] == SETTINGS["REDIRECT_URL"]
                   and query["code_challenge_method"] == "S256", "a user is sent to Google")
        back = self.google.consent(answer["url"], self.users["ada"], "home")
        self.check(self.connect_google("ben", back)[0] == 403, "the user who comes back must be the one who was sent")
        past = str(round(1000 * time.time()) - 1)
        states = ["", "x", back["state"] + "x", f"{past}{back['state'][len(past):]}",
                  f"{past}.{mac(SETTINGS['STATE_KEY'], 'state ' + self.users['ada'] + ' ' + past)}"]
        self.check([self.connect_google("ada", back | {"state": state})[0] for state in states] == [403] * 5,
                   "with a state of ours that is not too old")
        future = str(round(1000 * time.time()) + 60_000)
        other = f"{future}.{mac(SETTINGS['STATE_KEY'], 'state ' + self.users['ada'] + ' ' + future)}"
        self.check(self.connect_google("ada", back | {"state": other})[0] == 400 and not self.grants("ada"),
                   "a code is good with its own state only")
        back = self.go_to_google("ada", scope="openid")
        self.check(self.connect_google("ada", back) == (400, {"error": "the calendars were not granted"})
                   and not self.grants("ada") and not self.value("SELECT count(*) FROM rows"),
                   "without access to the calendars nothing is connected")
        for name in people:
            back = self.go_to_google(name)
            status, answer = self.connect_google(name, back)
            if (status, answer) != (200, {"account": "home"}):
                raise demo_run.Failed(f"{name}: {answer}")
        self.check(self.connect_google("hugo", back)[0] == 400, "a code is good once")
        rows = self.query("SELECT resource, account, status, requested_at <= clock_timestamp() AS soon FROM rows")
        self.check([tuple(row) for row in rows] == [("", "home", "idle", True)] * len(people),
                   "an account gets the row of its list, which is due")
        tables = [f"{self.rest}/rest/v1/{table}" for table in ("google_grants", "items")]
        self.check([post(table, self.session("ada"), {"user_id": self.users["ada"], "account": "x"})[0]
                    for table in tables] == [403, 403]
                   and self.read(tables[0], self.session("ada"))[0] == 403
                   and [self.read(table, None)[0] for table in tables] == [401, 401], "no user sees a refresh token, or writes")

        self.step("calls")
        self.check([self.invoke("sync-worker", token)[0] for token in (None, "", "x", self.session("ada"))] == [401] * 4
                   and not self.value("SELECT count(*) FROM rows WHERE syncs_started > 0"), "only with the key")
        self.check(self.work() == (200, nothing) and not self.value("SELECT count(*) FROM rows WHERE syncs_started > 0"),
                   "rows without a cursor are left for another worker")
        listings = [self.of(name, resource) for name in people for resource in ("", "home", "team")]
        answers = []

        def has_all():
            calls = [self.pool.submit(self.work, "?kind=any") for _ in range(4)]
            answers.extend(call.result() for call in calls)
            return self.listed(*listings)
        self.wait_for("the first syncs", has_all)
        starts = [sum(demo_run.is_full(e) and e["page"] == 1 for e in self.log(*listing)) for listing in listings]
        self.check(set(starts) == {1}, "unless kind=any: four calls at once list each calendar once")
        self.check({status for status, _ in answers} == {200}
                   and sum(counts["synced"] for _, counts in answers) >= len(listings)
                   and not any(sum(counts.values()) - counts["synced"] for _, counts in answers),
                   "and each answers with how much it did")
        self.check_items(*listings)
        mine = self.read(tables[1], self.session("ada"))[1]
        self.check({item["user_id"] for item in mine} == {self.users["ada"]}, "a user sees their own items")

        self.step("the cron job")
        marks = {listing: len(self.log(*listing)) for listing in listings}
        for listing in listings:
            if listing[2]:
                self.control("mutate", *listing, add=12, change=4, delete=3)
        crons = [Cron(self, "") for _ in range(2)]
        for cron in crons:
            cron.start()
        self.wait_synced(*listings)
        requests = [e for listing in listings for e in self.log(*listing, since=marks[listing])]
        self.check(requests and not any(demo_run.is_full(e) for e in requests), "it goes on from the cursors")
        self.check_items(*listings)

        self.step("errors")
        marks = {listing: len(self.log(*listing)) for listing in listings}
        asked = self.google.asked[of["cleo"]]
        self.control("expire", *self.of("ada"), delete=3)
        # longer than any wait after a failure, so that it cannot be taken for one
        self.control("limit", *self.of("ben"), seconds=5, kind="403")
        self.control("revoke", *self.of("cleo"))
        self.control("fail", *self.of("dan"), times=1)
        self.control("garble", *self.of("eve"))

        def log(*listing):
            return self.log(*listing, since=marks[listing])

        def rows(name):
            return [self.row(*self.of(name, resource)) for resource in ("", "home", "team")]

        def statuses(name):
            return [e["status"] for resource in ("", "home", "team") for e in log(*self.of(name, resource))]
        failed = self.wait_for("the failure", lambda: [row for row in rows("eve") if row.failures])[0]
        self.wait_for("the outcome of each", lambda: (
            410 in statuses("ada") and 403 in statuses("ben") and 503 in statuses("dan")
            and all(row.parked_reason and row.status != "syncing" for row in rows("cleo"))))
        row = self.row(*self.of("cleo"))
        refused = [sum(e["status"] == 401 for e in log(*self.of("cleo", resource))) for resource in ("", "home", "team")]
        self.check(row.parked_reason == "auth" and not any(n % 2 for n in refused)
                   and self.google.asked[of["cleo"]] > asked,
                   "a token is refused twice before that is reported: then the account is parked")
        self.wait_synced(*map(self.of, ("ada", "ben", "dan")))
        self.check(any(map(demo_run.is_full, log(*self.of("ada")))), "a dead cursor leads to a full sync")
        requests = [e for e in self.control("journal") if e["user"] == self.users["ben"] and e["account"] == "home"]
        limited = [e["at"] for e in requests if e["status"] == 403]
        again = [e["at"] for e in requests if e["at"] > limited[-1]]
        outcomes = {row.outcome for row in self.query(
            "SELECT outcome FROM syncstate.sync_run WHERE user_id = %s", self.users["ben"])}
        self.check(again[0] - limited[0] >= 5 and outcomes == {"completed", "rate_limited"}, "a rate limit is waited for")
        self.check(failed.error_message == "the sync failed" and failed.due_at - failed.last_sync_at > timedelta(seconds=3),
                   "what cannot be written is tried again later")
        for cron in crons:
            cron.is_over = True
            cron.join()
        self.check({status for cron in crons for status, _ in cron.answers} == {200}, "all calls were answered")

        # from here on, what is due is what is asked for
        self.control("mutate", *self.of("eve"), delete=100)         # the strange item, too
        self.query("SELECT syncstate.set_sync_policy(%s, '{\"sync_interval\": \"1 day\", \"request_gap\": 0}')", CALENDAR)
        for listing in listings:
            self.request(*listing)
        self.wait_for("rest", lambda: self.work()[1] == nothing and not self.value(
            "SELECT count(*) FROM rows WHERE due_at < clock_timestamp() + '1 hour'"))

        self.step("tokens")
        finn, gina, hugo = map(self.of, ("finn", "gina", "hugo"))
        self.google.expired.add(of["finn"])
        asked = self.google.asked[of["finn"]]
        self.check(self.sync_now(finn) == ["synced"] and self.google.asked[of["finn"]] == asked + 2
                   and self.row(*finn).failures == 0, "an access token that has expired is renewed")
        self.google.is_away = True
        self.check(self.sync_now(hugo) == ["failed"] and self.row(*hugo).failures == 1
                   and not self.row(*hugo).parked_reason, "where no token can be had, it is tried again")
        self.google.is_away, self.google.secret = False, "another"
        self.check(self.sync_now(hugo) == ["failed"] and not self.row(*hugo).parked_reason
                   and "invalid_client" in self.row(*hugo).error_message, "a wrong secret of the application parks nobody")
        self.google.secret = "client's secret"
        self.check(self.sync_now(hugo) == ["synced"], "and is soon repaired")
        self.call("pause_sync", *self.of("gina", "team"))
        self.google.revoked.add(of["gina"])
        mark = len(self.log(*gina))
        self.check(self.sync_now(gina) == ["failed"] and not self.log(*gina, since=mark)
                   and [self.row(*self.of("gina", r)).parked_reason for r in ("", "home", "team")] == ["auth", "auth", "paused"],
                   "a grant that has ended parks the account")

        jon = self.of("jon", "")
        self.call("connect_sync", *jon)
        self.check(self.sync_now(jon, "?kind=any") == ["failed"] and self.row(*jon).parked_reason == "auth",
                   "without a grant nothing is tried")
        self.call("disconnect_sync", *jon)

        self.step("the end of an instance")
        self.control("mutate", *hugo, add=60)

        def run_out_of_time():
            *_, call = self.held(hugo, 3, WORK_SECONDS="1")
            starts = self.row(*hugo).syncs_started
            time.sleep(1)               # by the clock of the function
            self.control("release", *hugo)
            self.check(call.result() == (200, nothing | {"released": 1}), "what it has not finished is released")
            row = self.row(*hugo)
            self.check((row.status, row.failures, row.syncs_started) == ("idle", 0, starts) and row.page_token,
                       "which is no failure")
            return len(self.log(*hugo))
        mark = run_out_of_time()
        self.wait_for("the rest", lambda: self.work()[1]["synced"])
        self.check(self.log(*hugo, since=mark)[0]["page"] == 4, "and resumed at its page")
        self.control("mutate", *hugo, change=60)
        mark = run_out_of_time()
        self.control("expire_pages", *hugo)
        self.wait_for("the rest", lambda: self.work()[1]["synced"])
        self.check([e["status"] for e in self.log(*hugo, since=mark)[:2]] == [400, 200] and self.row(*hugo).failures == 0,
                   "or started again, if the page token has expired")
        *_, call = self.held(hugo, 1, STEP_SECONDS="1")
        self.check(call.result() == (200, nothing | {"failed": 1}) and "Timeout" in self.row(*hugo).error_message,
                   "no page may take long")
        self.control("release", *hugo)
        self.check(self.sync_now(hugo) == ["synced"], "and the next call may succeed")

        self.step("a call that is cut off")
        self.control("mutate", *finn, add=60)
        calls = self.held(finn, 3, ANSWER_SECONDS="0.5", STEP_SECONDS="")   # that is, the default
        self.check((202, {"working": True}) in [call.result() for call in calls], "the caller has an answer before the end")
        row = self.row(*finn)
        left = self.value("SELECT %s - clock_timestamp()", row.lease_expires_at)
        self.check(row.status == "syncing" and left.total_seconds() < 60, "the lease ends before the instance would")
        self.signal_worker("one", signal.SIGKILL).wait()
        self.control("release", *finn)
        self.call("renew_sync_lease", *finn, lease=row.lease, lease_time="1 second")
        mark = len(self.log(*finn))
        self.start_host("two")
        self.wait_for("the rest", lambda: self.work()[1]["synced"])
        self.check(self.log(*finn, since=mark)[0]["page"] == 3, "another one goes on at its page")

        self.step("a lost lease")
        self.control("mutate", *finn, change=5)
        *_, call = self.held(finn, 1)
        before = self.query("SELECT id, payload FROM items WHERE user_id = %s ORDER BY id", self.users["finn"])
        with self.db.transaction():
            self.call("clear_sync_token", *finn)
            self.call("pause_sync", *finn)
        self.control("release", *finn)
        self.check(call.result() == (200, nothing | {"dropped": 1}), "the answer says so")
        row = self.row(*finn)
        self.check(before == self.query("SELECT id, payload FROM items WHERE user_id = %s ORDER BY id", self.users["finn"])
                   and row.sync_token is None and row.failures == 0, "and nothing is written or reported")

        self.step("connecting again")
        self.control("restore", *self.of("cleo"))
        self.google.revoked.discard(of["gina"])
        before = self.value("SELECT refresh_token FROM google_grants WHERE user_id = %s", self.users["gina"])
        for name in "cleo", "gina":
            self.check(self.connect_google(name, self.go_to_google(name)) == (200, {"account": "home"})
                       and [self.row(*self.of(name, r)).parked_reason for r in ("", "home")] == [None, None]
                       and self.grants(name) == 1, f"what was parked is due again: {name}")
        self.check(before != self.value("SELECT refresh_token FROM google_grants WHERE user_id = %s", self.users["gina"])
                   and self.row(*self.of("gina", "team")).parked_reason == "paused", "a new grant takes the place of the old one, and a pause stays")

        self.step("the comparison")
        self.call("resume_sync", *finn)
        self.call("resume_sync", *self.of("gina", "team"))
        for listing in listings:
            if listing[2]:
                self.control("mutate", *listing, add=3, change=4, delete=2)
            self.request(*listing)
        since = self.value("SELECT clock_timestamp()")
        crons = [Cron(self, "?kind=any") for _ in range(2)]
        for cron in crons:
            cron.start()
        self.wait_synced(*listings, since=since)
        for cron in crons:
            cron.is_over = True
            cron.join()
        self.check_items(*listings)
        self.check(self.value("SELECT count(*) FROM items") == self.compare(*listings)[0], "and there are no other items")
        self.check(not any(crowded for *_, crowded in self.control("concurrency")),
                   "no account got more requests at a time than it takes")
        self.check(self.value("SELECT count(*) FROM rows WHERE status = 'idle' AND failures = 0 AND due_at IS NOT NULL")
                   == len(listings), "all rows are idle and due again")
        self.step("end")
        print(f"1..{self.checks}")

    def read(self, url, token):
        request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        try:
            with OPEN(request, timeout=90) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, None


if __name__ == "__main__":
    sys.exit(judge(Edge, FUNCTIONS / "sync-worker" / "index.ts"))
