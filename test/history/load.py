"""The load: sessions that call everything at once, and log what they see.

Each session is a process with a connection of its own.  It makes up its calls
from the seed, logs each one with its times and its result, and at the end
leaves the log in a file.  Beside that, triggers on sync_state and sync_policy
log every write that was committed, in the order in which it happened to the
row, with the number of the call that made it.  (router.py says how the number
gets through a router.)

Times are microseconds since 1970.  Client and server must share a clock.
"""
import json
import pickle
import random
import time

from psycopg import pq

from checker import ACCOUNTS, RESOURCES, SOURCES, account_keys, domain_of, grant_of, key_of, key_order, provider_of

EXTENSION = """
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS syncstate;
"""

# Where calls are made
SETUP = """
SET client_min_messages = warning;
DO $$
BEGIN
	IF to_regrole('regress_syncstate_worker') IS NULL THEN
		CREATE ROLE regress_syncstate_worker LOGIN;
		CREATE ROLE regress_syncstate_user LOGIN;
	END IF;
END
$$;
SELECT syncstate.grant_worker('regress_syncstate_worker'), syncstate.grant_user('regress_syncstate_user');

DROP SCHEMA IF EXISTS history CASCADE;
CREATE SCHEMA history;
GRANT USAGE ON SCHEMA history TO PUBLIC;
CREATE TABLE history.app_user (id uuid PRIMARY KEY);
GRANT ALL ON history.app_user TO regress_syncstate_worker;
SELECT syncstate.watch_users('history.app_user');
"""

# Where the rows are
SETUP_LOG = """
CREATE SCHEMA IF NOT EXISTS history;
GRANT USAGE ON SCHEMA history TO PUBLIC;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;

-- What was written, by which call.  The sequence is drawn while the row is
-- locked, so that it numbers the writes of a row in their order.
CREATE SEQUENCE history.write_number;
CREATE TABLE history.write (n bigint, call text, old jsonb, new jsonb);
-- The number is set in the session, or stands at the end of the statement.
CREATE FUNCTION history.this_call() RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(substring(current_query() FROM '/[*] call ([^ ]+) [*]/$'), current_setting('history.call', true));
$$;
CREATE FUNCTION history.log_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	INSERT INTO history.write VALUES (
		nextval('history.write_number'), history.this_call(),
		CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
		CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
	RETURN NULL;
END
$$;
CREATE TRIGGER zz_history AFTER INSERT OR UPDATE OR DELETE ON syncstate.sync_state
	FOR EACH ROW EXECUTE FUNCTION history.log_write();
CREATE TABLE history.policy_write (LIKE history.write);
CREATE FUNCTION history.log_policy() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	INSERT INTO history.policy_write VALUES (
		nextval('history.write_number'), history.this_call(),
		CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
		CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
	RETURN NULL;
END
$$;
CREATE TRIGGER zz_history AFTER INSERT OR UPDATE OR DELETE ON syncstate.sync_policy
	FOR EACH ROW EXECUTE FUNCTION history.log_policy();
"""

TEARDOWN = """
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS history CASCADE;
"""

TEARDOWN_LOG = """
SET client_min_messages = warning;
DROP TRIGGER zz_history ON syncstate.sync_state;
DROP TRIGGER zz_history ON syncstate.sync_policy;
DROP SCHEMA history CASCADE;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_policy;
"""

# Short, so that everything happens often.
POLICY = {"sync_interval": "1 s", "lease_time": "1 s", "retry_base": "1 s", "retry_cap": "2 s",
          "rate_limit_wait": "1 s", "max_failures": 4, "park_after": "1 s", "request_gap": "0.5 s"}
# How many are behind a router, if it is one.  Then each call is a transaction
# of its own: what the caller rolls back is not undone on the shards.
SHARDS = 0

# At the end: nothing comes back by itself.
REST = {"sync_interval": "1 h", "jitter": 0, "token_ttl": None, "token_ttl_from": None}


def now():
    return time.time_ns() // 1000


def user(n):
    return f"00000000-0000-4000-8000-{n:012d}"


class Failed(Exception):
    """The call ended with an SQLSTATE."""


class Connection:
    def __init__(self, conninfo):
        self.conn = pq.PGconn.connect(conninfo.encode())
        if self.conn.status != pq.ConnStatus.OK:
            raise RuntimeError(self.conn.error_message.decode())
        self.warnings = []
        self.conn.notice_handler = self.notice

    def notice(self, result):
        if result.error_field(pq.DiagnosticField.SQLSTATE) == b"08006":
            self.warnings.append(result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY).decode())

    def run(self, sql, *params):
        """The values of the first column."""
        result = self.conn.exec_params(
            sql.encode(), [None if p is None else str(p).encode() for p in params])
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            state = result.error_field(pq.DiagnosticField.SQLSTATE)
            raise Failed(state.decode() if state else "lost", result.error_message.decode())
        return [result.get_value(i, 0) for i in range(result.ntuples)]

    def script(self, sql):
        result = self.conn.exec_(sql.encode())
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise RuntimeError(result.error_message.decode())


class Session:
    """One connection that makes up calls."""

    def __init__(self, number, kind, conninfo, seed, users):
        self.number = number
        self.kind = kind
        self.random = random.Random(f"{seed}.{number}")
        self.conn = Connection(f"{conninfo} user=regress_syncstate_{kind}")
        self.users = users
        self.calls = []
        self.transactions = []
        self.held = {}    # key: lease, of claims that were committed
        self.lost = []    # (key, lease) that are worth nothing any more
        self.history_id = 0
        self.statements = 0
        # a quarter of the sessions each has another isolation level by default
        self.isolation = ["read committed", "repeatable read", "serializable",
                          "read committed"][number % 4]
        self.conn.run("SET timezone = 'UTC'")
        self.conn.run(f"SET default_transaction_isolation = '{self.isolation}'")
        if kind == "user":
            self.me = user(self.random.randrange(users))

    def aside(self, sql, *args):
        """A statement that is no call of ours, as often as it fails to serialize."""
        while True:
            try:
                return self.conn.run(sql, *args)
            except Failed as failed:
                if failed.args[0] != "40001":
                    raise

    # ------------------------------------------------------------ one call

    def call(self, kind, function, keys, args, sources=None, **more):
        """Makes a call and logs it; args are names and values."""
        self.statements += 1
        number = f"{self.number}.{self.statements}"
        names = list(args)
        sql = ("SELECT pg_catalog.to_jsonb(c) FROM (SELECT pg_catalog.set_config('history.call', $1, false)) AS o "
               f"LEFT JOIN LATERAL {function}("
               + ", ".join(f"{name} => ${i + 2}" for i, name in enumerate(names)) + ") AS c ON true")
        if function.startswith("DELETE"):
            self.conn.run("SELECT pg_catalog.set_config('history.call', $1, false)", number)
            sql = function
        record = {"id": number, "session": self.number, "kind": kind, "args": dict(args), "keys": keys,
                  "sources": sources, "undone": False, "error": None, "results": [], **more}
        transaction = self.transaction
        record["begin"] = now()
        if transaction["begin"] is None:
            transaction["begin"] = record["begin"]
        record["snapshot"] = record["begin"] if self.transaction["isolation"] == "read committed" \
            else transaction["begin"]
        self.calls.append(record)
        record["transaction"] = transaction["id"]
        self.conn.warnings.clear()
        try:
            values = self.conn.run(sql, *(([number] if "$1" in sql else []) + list(args.values()))) \
                if not function.startswith("DELETE") else self.conn.run(sql, *args.values())
            record["results"] = [json.loads(v) for v in values if v is not None]
            if kind == "claim":
                record["spare"] = len(record["results"]) < args["max_rows"] and args["kind"] == "any"
        except Failed as failed:
            record["error"] = failed.args[0]
            record["undone"] = True
            if failed.args[0] not in ("40001", "PT404", "PT409"):
                record["message"] = failed.args[1]
            raise
        finally:
            record["end"] = now()
            record["warnings"] = list(self.conn.warnings)
        return record["results"]

    def begin(self, isolation=None):
        self.transaction = {"id": f"{self.number}.{len(self.transactions)}",
                            "isolation": isolation or self.isolation, "begin": None, "committed": False,
                            "explicit": isolation is not None}
        self.transactions.append(self.transaction)
        if isolation is not None:
            self.conn.run(f"BEGIN ISOLATION LEVEL {isolation}")

    def end(self, commit):
        transaction = self.transaction
        if transaction["explicit"]:
            transaction["commit_begin"] = now()
            try:
                self.conn.run("COMMIT" if commit else "ROLLBACK")
                transaction["committed"] = commit
            finally:
                transaction["commit_end"] = now()
                if not transaction["committed"]:
                    self.undo(0)
        else:
            last = self.calls[-1]
            transaction["commit_begin"], transaction["commit_end"] = last["begin"], last["end"]
            transaction["committed"] = last["error"] is None

    def undo(self, first):
        """The transaction's calls from this position on came to nothing."""
        mine = [c for c in reversed_while(self.calls, lambda c: c["transaction"] == self.transaction["id"])]
        for record in mine[first:]:
            record["undone"] = True

    # ----------------------------------------------------- kinds of calls

    def key(self):
        return (user(self.random.randrange(self.users)), self.random.choice(ACCOUNTS), self.random.choice(SOURCES),
                self.random.choice(RESOURCES))

    @staticmethod
    def named(key):
        return {"user_id": key[0], "account": key[1], "source": key[2], "resource": key[3]}

    def claim(self):
        source = self.random.choice(SOURCES + [None, None])
        rows = self.random.choice([1, 1, 2, 3, 5, 10, 40, 1000])
        self.call("claim", "syncstate.claim_due_syncs", [],
                  {"source": source, "max_rows": rows,
                   "lease_time": self.random.choice([None, None, "1 s", "2 s"]),
                   "kind": self.random.choice(["any"] * 6 + ["incremental", "full"])},
                  sources=[source] if source else SOURCES)

    def start(self, key):
        self.call("start", "syncstate.mark_sync_started", [key], {**self.named(key), "lease_time": "1 s"})

    def cursor(self, source):
        """A new cursor, sometimes none and sometimes an older one."""
        if self.random.random() < 0.2:
            return {}
        if source == "google_gmail":
            self.history_id = max(self.history_id, now() // 1000) + self.random.randrange(3)
            return {"history_id": str(self.history_id - (self.random.randrange(10 ** 7)
                                                         if self.random.random() < 0.3 else 0))}
        if source == "google_tasks":
            ago = self.random.choice([0, 0, 10])
            return {"updated_min": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago))}
        return {"sync_token": f"token {self.number}.{self.statements}"}

    def scope(self, wide):
        """Of a report; {}: the default, which is the account."""
        return self.random.choice([{}, {"scope": "account"}, {"scope": "row"}, {"scope": "row"}]) if wide else {"scope": "row"}

    def report(self, what, key, lease, wide=True):
        """A report; one that is not wide is about no other row."""
        named = {**self.named(key), "lease": lease}
        if what == "complete":
            self.call(what, "syncstate.mark_sync_completed", [key],
                      {**named, "items_synced": self.random.randrange(100), **self.cursor(key[2])})
        elif what == "fail":
            more = {"kind": self.random.choice(["transient"] * 6 + ["permanent", "auth", "auth"]), **self.scope(wide)}
            self.call(what, "syncstate.mark_sync_failed", concerned(key, "failed", more),
                      {**named, "error_message": "out of luck", **more})
        elif what == "limit":
            more = {"retry_after": self.random.choice([None, "1 s", "1 s", "2 s"]), **self.scope(wide)}
            self.call(what, "syncstate.mark_rate_limited", concerned(key, "rate_limited", more), {**named, **more})
        elif what == "limit_source":
            self.call("limit", "syncstate.mark_rate_limited", [key],
                      {**named, "retry_after": "1 s", "scope": "source"})
        elif what == "clear":
            self.call(what, "syncstate.clear_sync_token", [key], named)
        elif what == "renew":
            self.call(what, "syncstate.renew_sync_lease", [key],
                      {**named, "lease_time": self.random.choice([None, "1 s", "2 s"])})
        elif what == "checkpoint":
            self.call(what, "syncstate.checkpoint_sync", [key],
                      {**named, "page_token": f"page {self.statements}",
                       "progress_done": self.random.randrange(100)})
        elif what == "release":
            self.call(what, "syncstate.release_sync", [key],
                      {**named, "delay": self.random.choice(["0", "0", "0.2 s"])})

    def batch(self, leases, wide=True):
        """Reports in any order, some of them twice and some with lost leases."""
        reports = []
        keys = [key for key, _ in leases]
        for key, lease in leases:
            report = {**self.named(key), "lease": lease}
            outcome = self.random.choice(["completed"] * 4 + ["failed", "rate_limited", "released"])
            report["outcome"] = outcome
            if outcome == "completed":
                report.update(self.cursor(key[2]), items_synced=self.random.randrange(100))
            elif outcome == "failed":
                report.update(error_message="out of luck", **self.scope(wide),
                              kind=self.random.choice(["transient"] * 6 + ["permanent", "auth", "auth"]))
            elif outcome == "rate_limited":
                report.update(retry_after=self.random.choice(["1 s", "1 s", "2 s"]), **self.scope(wide))
                if self.random.random() < 0.02:
                    report["scope"] = "source"
            keys += [k for k in concerned(key, outcome, report) if k not in keys]
            reports.append(report)
            if self.random.random() < 0.05:
                reports.append(report)
        self.random.shuffle(reports)
        self.call("batch", "syncstate.report_syncs", keys, {"results": json.dumps(reports)})

    def update(self, key):
        changes = self.random.choice([
            {"status": "syncing"}, {"status": "idle"}, {"status": "error", "error_message": "by hand"},
            {"sync_interval": "1 h"}, {"sync_interval": None}, {"progress_total": 5},
            {"due_at": None}, {"due_at": "now"}, {"requested_at": "now"},
            {"sync_token": None, "history_id": None, "updated_min": None}])
        self.call("update", "syncstate.update_sync_state", [key],
                  {**self.named(key), "changes": json.dumps(changes)})

    def simple(self, what, key):
        if what == "request" and self.kind == "user":
            key = (self.me, *key[1:])
        self.call(what, f"syncstate.{what}_sync", [key], self.named(key))

    def whole_account(self, what):
        """connect_account() and the like."""
        whose = self.me if self.kind == "user" else user(self.random.randrange(self.users))
        account = self.random.choice(ACCOUNTS)
        provider = self.random.choice([None, None, provider_of("google_gmail"), provider_of("google_contacts")])
        self.call(what, f"syncstate.{what}", account_keys(whose, account, provider),
                  {"user_id": whose, "account": account, "provider": provider})

    def set_resources(self):
        key = self.key()
        resources = [r for r in RESOURCES * 2 if self.random.random() < 0.6]
        self.call("set_resources", "syncstate.set_sync_resources", domain_of(key),
                  {"user_id": key[0], "account": key[1], "source": key[2],
                   "resources": "{%s}" % ",".join(f'"{r}"' for r in resources)})

    def policy(self):
        changes = self.random.choice([
            {"lease_time": "1 s"}, {"lease_time": "2 s"}, {"sync_interval": "1 s"}, {"sync_interval": "3 s"},
            {"jitter": 0.5}, {"jitter": None}, {"max_failures": 4}, {"max_failures": 1}])
        source = self.random.choice(SOURCES)
        self.call("policy", "syncstate.set_sync_policy", [],
                  {"source": source, "changes": json.dumps(changes)}, sources=[source])

    def pause_source(self):
        source = self.random.choice(SOURCES)
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1)) \
            if self.random.random() < 0.7 else "infinity"
        self.call("pause_source", "syncstate.pause_sync_source", [], {"source": source, "until": until},
                  sources=[source])

    def resume_source(self, source=None):
        source = source or self.random.choice(SOURCES)
        self.call("resume_source", "syncstate.resume_sync_source", [], {"source": source}, sources=[source])

    def resync(self):
        source = self.random.choice(SOURCES)
        self.call("resync", "syncstate.resync_source", [], {"source": source, "spread": "1 s"}, sources=[source])

    def revive(self):
        source = self.random.choice(SOURCES)
        self.call("revive", "syncstate.revive_syncs",
                  [(user(n), a, source, r) for n in range(self.users) for a in ACCOUNTS for r in RESOURCES],
                  {"source": source, "reason": self.random.choice([None, None, "failures", "auth", "paused", "gone"]),
                   "spread": self.random.choice(["0", "0.5 s"]), "max_rows": self.random.choice([1, 5, 1000])})

    def forget(self):
        gone = user(self.random.randrange(self.users))
        self.call("forget", "DELETE FROM history.app_user WHERE id = ANY ($1)",
                  [key for a in ACCOUNTS for key in account_keys(gone, a)], {"users": "{%s}" % gone})

    # --------------------------------------------------- what to do next

    def leases(self, most):
        """Some of the leases in hand, and some that are lost."""
        found = {}
        for key in self.random.sample(sorted(self.held), min(len(self.held), most)):
            found[key] = self.held[key]
        if self.lost and self.random.random() < 0.3:
            key, lease = self.random.choice(self.lost)
            found.setdefault(key, lease)
        return list(found.items())

    def one_call(self):
        """A call as a function of nothing, so that it can be tried again."""
        if self.kind == "user":
            if self.random.random() < 0.2:
                return lambda: self.whole_account("request_account")
            key = self.key()
            return lambda: self.simple("request", key)
        what = self.random.choices(*WEIGHTS)[0]
        if SHARDS and what in NOT_ROUTED:
            return self.claim
        key = self.key()
        if what in LEASED:
            leases = self.leases(20 if what == "batch" else 1)
            if not leases:
                return self.claim
            if what == "batch":
                return lambda: self.batch(leases)
            # without a lease: whoever holds the row
            if what in ("complete", "fail", "limit", "clear") and self.random.random() < 0.04:
                return lambda: self.report(what, key, None)
            return lambda: self.report(what, *leases[-1])
        if what in ("request", "connect", "disconnect", "pause", "resume"):
            return lambda: self.simple(what, key)
        if what in ("start", "update"):
            return lambda: getattr(self, what)(key)
        if what.endswith("_account"):
            return lambda: self.whole_account(what)
        return getattr(self, what)

    def some_calls(self):
        """The calls of a transaction.

        Calls on single rows lock them in the order of the keys, which is the
        duty of whoever makes several in one transaction; claims lock without
        waiting, so they come last, or their rows are reported at once.  What
        locks the rows of an account comes first.
        """
        calls = []
        if self.kind == "user":
            keys = sorted(((self.me, *self.key()[1:]) for _ in range(3)), key=key_order)
            return [lambda key=key: self.simple("request", key) for key in keys]
        form = self.random.choice([0, 0, 1, 1, 2, 2, 3, 4, 4])
        if form == 0:
            # claim, work and report, all in one
            calls.append(self.claim)
            calls.append(self.report_claimed)
            return calls
        if form == 1:
            leases = self.leases(20)
            if leases:
                calls.append(lambda: self.batch(leases))
            calls.append(self.claim)
            return calls
        if form == 2:
            return [self.claim] * self.random.randrange(1, 4)
        if form == 3:
            return [self.random.choice([self.set_resources] + [
                lambda what=what: self.whole_account(what) for what in ACCOUNT_CALLS]), self.claim]
        leases = dict(self.leases(3))
        for key in [self.key() for _ in range(self.random.randrange(1, 4))]:
            leases.setdefault(key, None)
        for key in sorted(leases, key=key_order):
            lease = leases[key]
            for _ in range(self.random.choice([1, 1, 2])):
                if lease is None:
                    calls.append(lambda key=key, what=self.random.choice(
                        ["request", "connect", "pause", "resume"]): self.simple(what, key))
                else:
                    calls.append(lambda key=key, lease=lease, what=self.random.choice(
                        ["complete", "fail", "limit", "renew", "checkpoint", "release"]):
                        self.report(what, key, lease, wide=False))
        if self.random.random() < 0.3:
            calls.append(self.claim)
        return calls

    def report_claimed(self):
        """Part of what the transaction's last claim gave."""
        rows = self.calls[-1]["results"] if self.calls[-1]["kind"] == "claim" else []
        leases = [(key_of(row), row["lease"]) for row in rows if self.random.random() < 0.7]
        if leases:
            self.batch(leases, wide=False)

    def run_once(self):
        if SHARDS or self.random.random() < 0.8:
            call = self.one_call()
            while True:
                self.begin()
                try:
                    call()
                except Failed as failed:
                    self.end(False)
                    if failed.args[0] == "40001":
                        continue
                    break
                self.end(True)
                break
        else:
            calls = self.some_calls()
            isolation = self.random.choice(["read committed", "repeatable read", "serializable"])
            savepoints = self.random.random() < 0.5
            commit = self.random.random() < 0.85
            for attempt in range(20):
                if self.run_transaction(calls, isolation, savepoints, commit):
                    break
        self.learn()

    def run_transaction(self, calls, isolation, savepoints, commit):
        """False: to be tried again."""
        self.begin(isolation)
        done = 0
        for call in calls:
            try:
                if savepoints:
                    self.conn.run("SAVEPOINT s")
                before = self.statements
                call()
                if savepoints and self.random.random() < 0.1:
                    self.conn.run("ROLLBACK TO s")
                    self.undo(done)
            except Failed as failed:
                if failed.args[0] == "40001" or not savepoints:
                    self.end(False)
                    return failed.args[0] != "40001"
                self.conn.run("ROLLBACK TO s")
            done += self.statements - before
            if self.random.random() < 0.3:
                time.sleep(self.random.random() * 0.005)
        try:
            self.end(commit)
        except Failed as failed:
            if failed.args[0] != "40001":
                self.calls[-1]["error"] = failed.args[0]
                self.calls[-1]["message"] = failed.args[1]
                raise
            return False
        return True

    def learn(self):
        """What the last transaction means for the leases in hand."""
        last = self.transaction["id"]
        for record in reversed_while(self.calls, lambda c: c["transaction"] == last):
            if record["undone"] and not record["error"]:
                continue
            if record["error"] in ("PT404", "PT409") and record["args"].get("lease") is not None:
                self.held.pop(record["keys"][0], None)
            if record["error"]:
                continue
            if record["kind"] == "forget":
                self.aside("INSERT INTO history.app_user SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING",
                           record["args"]["users"])
            if record["kind"] == "batch":
                for key in map(key_of, json.loads(record["args"]["results"])):
                    # what a shard did not confirm is reported again
                    if key in self.held and not record["warnings"]:
                        self.lost.append((key, self.held.pop(key)))
            for row in record["results"]:
                if not isinstance(row, dict) or "lease" not in row:
                    continue
                key = key_of(row)
                if record["kind"] in ("claim", "start") and row["status"] == "syncing":
                    # some are dropped: the worker died, or it comes back late
                    chance = self.random.random()
                    if chance < 0.85:
                        self.held[key] = row["lease"]
                    elif chance < 0.95:
                        self.lost.append((key, row["lease"]))
                elif row["status"] != "syncing" and key in self.held:
                    self.lost.append((key, self.held.pop(key)))
        self.lost = self.lost[-200:]

    def drain(self, deadline):
        """Claims and completes, until nothing is left to wait for."""
        # PL/Proxy looks whether a connection is still there only if it was idle
        # for two seconds, so that each shard's may fail once after the restarts.
        broken = SHARDS
        while True:
            if now() > deadline:
                return False
            self.begin()
            try:
                rows = self.call("claim", "syncstate.claim_due_syncs", [],
                                 {"source": None, "max_rows": self.random.choice([1, 7, 50, 1000]),
                                  "lease_time": None, "kind": "any"}, sources=SOURCES)
                self.end(True)
                for row in sorted(rows, key=lambda row: key_order(key_of(row))):
                    self.begin()
                    self.report("complete", key_of(row), row["lease"])
                    self.end(True)
            except Failed as failed:
                self.end(False)
                if failed.args[0] == "08006" and broken:
                    broken -= 1
                elif failed.args[0] not in ("40001", "PT409", "PT404"):
                    raise
                continue
            if rows:
                continue
            due = self.aside("SELECT (extract(epoch FROM syncstate.next_sync_due()) * 1000000)::bigint")[0]
            if due is None or int(due) > now() + 60_000_000:
                return True
            time.sleep(0.02 + self.random.random() * 0.05)


# How often a worker makes each call.
WEIGHTS = tuple(zip(*{
    "claim": 24, "complete": 16, "batch": 8, "fail": 6, "limit": 3, "limit_source": 0.2, "renew": 6,
    "checkpoint": 6, "release": 4, "clear": 2, "start": 3, "request": 8, "connect": 4, "disconnect": 0.5,
    "pause": 0.6, "resume": 3, "update": 2, "policy": 0.5, "pause_source": 0.15, "resume_source": 1,
    "resync": 0.15, "revive": 1, "forget": 0.15,
    "connect_account": 1.5, "pause_account": 0.05, "resume_account": 1, "disconnect_account": 0.05, "request_account": 0.5,
    "set_resources": 1,
}.items()))
ACCOUNT_CALLS = ["connect_account"] * 3 + ["resume_account"] * 3 + ["request_account"] * 3 + ["pause_account", "disconnect_account"]
# A router makes of one such call one per shard, each with a time of its own.
NOT_ROUTED = {"resync", "revive"}
LEASED = {"complete", "batch", "fail", "limit", "limit_source", "renew", "checkpoint", "release", "clear"}


def concerned(key, outcome, more):
    """The rows that a report may write, its own first."""
    others = []
    if more.get("scope", "account") == "account":
        if outcome == "rate_limited":
            others = domain_of(key)
        elif outcome == "failed" and more["kind"] == "auth":
            others = grant_of(key)
    return [key] + [k for k in others if k != key]


def reversed_while(records, condition):
    """The last records that meet a condition, in their order."""
    i = len(records)
    while i > 0 and condition(records[i - 1]):
        i -= 1
    return records[i:]


def session_main(number, kind, conninfo, seed, users, until, barrier, path):
    """The life of a session, in a process of its own."""
    try:
        live(number, kind, conninfo, seed, users, until, barrier, path)
    except BaseException:
        barrier.abort()     # nobody waits for this one
        raise


def live(number, kind, conninfo, seed, users, until, barrier, path):
    session = Session(number, kind, conninfo, seed, users)
    if kind == "user":
        session.conn.run("SELECT set_config('request.jwt.claim.sub', $1, false)", session.me)
    barrier.wait()
    failure = None
    started = now()
    try:
        while now() < started + until:
            if kind == "user":
                if session.random.random() < 0.1:
                    session.me = user(session.random.randrange(users))
                    session.conn.run("SELECT set_config('request.jwt.claim.sub', $1, false)", session.me)
                time.sleep(session.random.random() * 0.01)
            session.run_once()
    except Failed as failed:
        failure = f"session {number} got {failed.args[0]}: {failed.args[1]}"
    barrier.wait()
    for n in range(SHARDS):
        # they are all back, and need not be left alone any longer
        session.conn.run(f"SET syncstate_router.avoid_until_{n} = ''")
    if number == 0 and failure is None:
        for source in SOURCES:
            session.begin()
            session.call("policy", "syncstate.set_sync_policy", [],
                         {"source": source, "changes": json.dumps(REST)}, sources=[source])
            session.end(True)
            session.begin()
            session.resume_source(source)
            session.end(True)
    barrier.wait()
    if kind == "worker" and failure is None:
        try:
            if not session.drain(now() + 120_000_000):
                failure = f"session {number} still has work after two minutes without new requests"
        except Failed as failed:
            failure = f"session {number} got {failed.args[0]}: {failed.args[1]}"
    with open(path, "wb") as out:
        pickle.dump({"calls": session.calls, "transactions": session.transactions, "failure": failure}, out)
