#!/usr/bin/python3
"""Histories of push channels: many workers open, renew and stop them at once,
some too late, while their rows come and go and pushes arrive; a judge decides
over what they were told and over each write of sync_channel.

    channels.py CONNINFO [--seconds N] [--seed N] [--shard CONNINFO]...

The rules:
    chain       each write of a channel goes on from the write before it; the last
                one is what the table holds
    origin      every write was made by a call that was committed
    result      what a call returned is what it wrote
    lease       a channel was handed out to one worker at a time, each time under a
                greater number, and no number of a row was given twice
    winner      of those who opened a channel under one lease, one has the row's;
                whoever held the lease was not taken for late
    lost        each channel that was opened is there, was stopped by a worker, or
                has ended; only one that was to be stopped was
    push        a push was taken if, and only if, its channel was there and the
                token was right
    left        in the end, when the source uses push no more, all are stopped
    error       no SQLSTATE but PT409 and 40001, and PT404 for a row that is gone
"""
import argparse
import collections
import copy
import gc
import json
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import time

import load
import router
from checker import moment
from load import Connection, Failed

SOURCE = "google_calendar"
USERS, STABLE = 12, 6       # the rows of the first are never disconnected
RESOURCES = ["", "more"]
WORKERS = 8
SLOP = 20_000
REPORTED = ("user_id", "account", "source", "resource", "lease")
TIMES = ("expires_at", "renew_at", "lease_expires_at", "opened_at", "last_push_at")

SETUP_LOG = """
CREATE SCHEMA IF NOT EXISTS history;
GRANT USAGE ON SCHEMA history TO PUBLIC;
DELETE FROM syncstate.sync_state;
DELETE FROM syncstate.sync_channel;
CREATE SEQUENCE history.write_number;
CREATE TABLE history.write (n bigint, call text, at timestamptz, old jsonb, new jsonb);
CREATE FUNCTION history.log_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	INSERT INTO history.write VALUES (nextval('history.write_number'),
		coalesce(substring(current_query() FROM '/[*] call ([^ ]+) [*]/$'), current_setting('history.call', true)),
		clock_timestamp(), CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END, CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
	RETURN NULL;
END
$$;
CREATE TRIGGER zz_history AFTER INSERT OR UPDATE OR DELETE ON syncstate.sync_channel
	FOR EACH ROW EXECUTE FUNCTION history.log_write();
"""
TEARDOWN_LOG = """
SET client_min_messages = warning;
DROP TRIGGER zz_history ON syncstate.sync_channel;
DROP SCHEMA history CASCADE;
DELETE FROM syncstate.sync_state; DELETE FROM syncstate.sync_channel; DELETE FROM syncstate.sync_policy;
"""
POLICY = {"sync_interval": "1 s", "lease_time": "1 s", "retry_base": "1 s", "retry_cap": "2 s", "push_renew_before": "1 day"}


def read(values):
    """A channel with its times as microseconds."""
    if values is None:
        return None
    return {c: moment(v) if c in TIMES and v is not None and "infinity" not in v else v for c, v in values.items()}


def key_of(channel):
    return tuple(channel[c] for c in ("user_id", "account", "source", "resource"))


class Worker:
    def __init__(self, number, conninfo, seed):
        self.number = number
        self.random = random.Random(f"{seed}.{number}")
        self.conn = Connection(f"{conninfo} user=regress_syncstate_worker")
        self.conn.run("SET timezone = 'UTC'")
        # a transaction that keeps its snapshot sees less of the others
        isolation = ["read committed", "read committed", "repeatable read", "serializable"][number % 4]
        self.conn.run(f"SET default_transaction_isolation = '{isolation}'")
        self.calls = []
        self.opened = collections.deque(maxlen=20)

    def call(self, kind, function, /, **args):
        record = {"id": f"{self.number}.{len(self.calls)}", "kind": kind, "args": args, "results": [], "error": None,
                  "committed": False, "begin": load.now()}
        self.calls.append(record)
        sql = ("SELECT pg_catalog.to_jsonb(c) FROM (SELECT pg_catalog.set_config('history.call', $1, false)) AS o "
               f"LEFT JOIN LATERAL syncstate.{function}("
               + ", ".join(f"{name} => ${i + 2}" for i, name in enumerate(args)) + ") AS c ON true")
        try:
            record["results"] = [json.loads(v) for v in self.conn.run(sql, record["id"], *args.values()) if v is not None]
            record["committed"] = True
        except Failed as failed:
            record["error"] = failed.args[0]
            if failed.args[0] not in ("PT409", "40001"):
                record["message"] = failed.args[1]
        record["end"] = load.now()
        return record

    def claim(self, most, undo=False):
        """Some of what is to be done; perhaps in a transaction that comes to nothing."""
        if undo:
            self.conn.run("BEGIN")
        record = self.call("claim", "claim_push_channels", source=SOURCE, max_rows=most, lease_time="1 s")
        if undo:
            self.conn.run("ROLLBACK")
            record["committed"] = False
            return []
        return record["results"]

    def do(self, task):
        """What a task asks for, perhaps too late, or not at all."""
        named = {c: task[c] for c in REPORTED}
        chance = self.random.random()
        if chance < 0.05:
            return                                      # the worker died
        if chance < 0.2:
            time.sleep(1 + self.random.random() * 0.3)  # its lease runs out
        if task["action"] == "stop":
            self.call("stopped", "mark_channel_stopped", **named)
        elif self.random.random() < 0.05:
            self.call("failed", "mark_channel_failed", **named, error_message="no",
                      kind=self.random.choice(["transient", "transient", "unsupported"]))
        else:
            name = f"channel {self.number}.{len(self.calls)}"
            life = self.random.choice([1, 2, 2, 4, 8])
            args = {**named, "channel_id": name, "token": "secret of " + name,
                    "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1 + life))}
            self.call("opened", "mark_channel_opened", **args)
            if self.random.random() < 0.1:              # no answer came: once more
                self.call("opened", "mark_channel_opened", **args)
            self.opened.append(name)

    def push(self):
        for name in self.random.sample(sorted(self.opened), min(2, len(self.opened))):
            right = self.random.random() < 0.8
            self.call("push", "receive_push", channel_id=name, token=("secret of " if right else "not that of ") + name)

    def rows_come_and_go(self):
        key = {"user_id": load.user(self.random.randrange(STABLE, USERS)), "source": SOURCE, "resource": self.random.choice(RESOURCES)}
        self.call("rows", self.random.choice(["connect_sync", "connect_sync", "disconnect_sync", "resume_sync"]), **key)

    def live(self, until):
        while load.now() < until:
            # a router's shards undo nothing
            undo = not load.SHARDS and self.random.random() < 0.1
            for task in self.claim(self.random.choice([1, 2, 5, 20]), undo):
                self.do(task)
            self.push()
            if self.number == 0:
                self.rows_come_and_go()
            time.sleep(self.random.random() * 0.01)

    def drain(self, deadline):
        """Stops all that is left; leases of before have to run out."""
        quiet = None
        while quiet is None or load.now() < quiet + 60_000_000:
            if load.now() > deadline:
                raise RuntimeError("there are still channels to be stopped after two minutes")
            tasks = self.claim(100)
            for task in tasks:
                # what is still to be opened or renewed will be no more
                if task["action"] == "stop":
                    self.call("stopped", "mark_channel_stopped", **{c: task[c] for c in REPORTED})
            left = int(self.conn.run("SELECT count(*) FROM syncstate.sync_channel")[0])
            if not left:
                return
            quiet = load.now() if tasks or quiet is None else quiet
            time.sleep(0.05)


def worker_main(number, conninfo, seed, seconds, barrier, path):
    try:
        worker = Worker(number, conninfo, seed)
        barrier.wait()
        worker.live(load.now() + int(seconds * 1e6))
        barrier.wait()
        if number == 0:
            worker.call("policy", "set_sync_policy", source=SOURCE, changes='{"push_renew_before": null}')
            worker.conn.run("SET default_transaction_isolation = 'read committed'")
            worker.drain(load.now() + 120_000_000)
        with open(path, "wb") as out:
            pickle.dump(worker.calls, out)
    except BaseException:
        barrier.abort()
        raise


class History:
    def __init__(self, calls, writes, final):
        self.calls, self.writes, self.final = calls, writes, final


# ------------------------------------------------------------------ the judge

def check(h):
    """Complaints, as pairs of a rule and words about it"""
    complaints = []
    calls = {c["id"]: c for c in h.calls}

    def complain(rule, words):
        complaints.append((rule, words))

    for call in h.calls:
        if call["error"] not in (None, "PT409", "40001") and (call["kind"], call["error"]) != ("rows", "PT404"):
            complain("error", f"{call['kind']} failed with {call['error']}: {call.get('message')}")
    chains, wrote, of_row = collections.defaultdict(list), collections.defaultdict(list), collections.defaultdict(list)
    for write in sorted(h.writes, key=lambda w: (w["shard"], w["n"])):
        channel = write["new"] or write["old"]
        chains[channel["id"]].append(write)
        of_row[key_of(channel)].append(write)
        wrote[write["call"]].append(write)
        call = calls.get(write["call"])
        if call is None or not call["committed"]:
            complain("origin", f"write {write['n']} was made by call {write['call']}, which nobody made, or which was undone")

    # each channel, from its first write to its last
    stops = {c["id"] for c in h.calls if c["kind"] == "stopped"}
    for i, chain in chains.items():
        last = None
        for write in chain:
            old, new = write["old"], write["new"]
            if old != last:
                complain("chain", f"write {write['n']} does not go on from the one before it: {last} {old}")
            last = new
            if old and new and new["lease"] != old["lease"]:
                claimed_at = new["lease_expires_at"] - 1_000_000
                if new["lease"] != old["lease"] + 1 or calls[write["call"]]["kind"] != "claim":
                    complain("lease", f"number {new['lease']} after {old['lease']}, by {calls[write['call']]['kind']}")
                if old["lease_expires_at"] is not None and old["lease_expires_at"] > claimed_at:
                    complain("lease", f"{key_of(new)} was handed out while a worker had it")
            if new is None and old["channel_id"] is not None:
                has_ended = calls[write["call"]]["kind"] == "claim" and old["expires_at"] is not None and old["expires_at"] <= write["at"]
                if old["state"] != "retiring" or not (write["call"] in stops or has_ended):
                    complain("lost", f"{old['channel_id']} was deleted as {old['state']} by {calls[write['call']]['kind']}")
        if last != h.final.get(i):
            complain("chain", f"the table holds something else than was written last: {last} {h.final.get(i)}")

    # what the workers were told
    given = collections.Counter((key_of(r), r["lease"]) for c in h.calls if c["kind"] == "claim" and c["committed"] for r in c["results"])
    for (key, lease), times in given.items():
        if times > 1:
            complain("lease", f"number {lease} of {key} was given {times} times")
    ever = {(w["new"]["channel_id"], key_of(w["new"])) for w in h.writes if w["new"]}
    winners = collections.defaultdict(set)
    # from then on, all that is opened is to be stopped
    off = min((c["begin"] for c in h.calls if c["kind"] == "policy"), default=float("inf"))
    for call in h.calls:
        if not call["committed"]:
            continue
        made = wrote[call["id"]]
        if call["kind"] == "claim":
            told = sorted((key_of(r), r["lease"]) for r in call["results"])
            handed = sorted((key_of(w["new"]), w["new"]["lease"]) for w in made
                            if w["old"] and w["new"] and w["old"]["lease"] != w["new"]["lease"])
            if told != handed:
                complain("result", f"a claim told of {told}, and handed out {handed}")
        elif call["kind"] in ("opened", "failed", "stopped"):
            result = read(call["results"][0])
            if made and result not in [w["new"] or w["old"] for w in made]:
                complain("result", f"{call['kind']} returned {result}")
        if call["kind"] == "opened":
            named = key_of(call["args"]), call["args"]["lease"]
            if (call["args"]["channel_id"], named[0]) not in ever:
                complain("lost", f"{call['args']['channel_id']} was opened, and recorded nowhere")
            if result["channel_id"] != call["args"]["channel_id"] or result["state"] not in ("active", "retiring"):
                complain("result", f"{call['args']['channel_id']} was opened: {result}")
            if result["state"] == "active":
                winners[named].add(result["channel_id"])
            elif [w for w in made if w["old"] is None and w["new"]["state"] == "retiring"] and call["end"] < off \
                    and int(named[0][0][-12:]) < STABLE:
                n, shard = made[0]["n"], made[0]["shard"]
                before = {}
                for write in of_row[named[0]]:
                    if write["shard"] == shard and write["n"] < n:
                        before[(write["new"] or write["old"])["id"]] = write["new"]
                if any(c and c["lease"] == named[1] and c["lease_expires_at"] is not None and c["state"] != "retiring" for c in before.values()):
                    complain("winner", f"{call['args']['channel_id']} was opened under a lease that was held, and is to be stopped")
    for (key, lease), names in winners.items():
        if len(names) > 1:
            complain("winner", f"{sorted(names)} of {key} were all taken for what was opened under lease {lease}")

    # pushes: when each channel was there; what was committed may be seen from its call's begin to its end
    there = collections.defaultdict(list)
    for chain in chains.values():
        for write in chain:
            for side, event in (("new", "came"), ("old", "went")):
                name = write[side]["channel_id"] if write[side] else None
                other = write["old" if side == "new" else "new"]
                if name is not None and (other is None or other["channel_id"] != name):
                    call = calls.get(write["call"])
                    there[name].append((event, call["begin"], call["end"]) if call else (event, 0, 0))
    for call in h.calls:
        if call["kind"] != "push" or not call["committed"]:
            continue
        name, right = call["args"]["channel_id"], call["args"]["token"] == "secret of " + call["args"]["channel_id"]
        taken = call["results"] == [True]
        came = min((b for e, b, _ in there[name] if e == "came"), default=None)
        came_surely = min((t for e, _, t in there[name] if e == "came"), default=None)
        goes = min((b for e, b, _ in there[name] if e == "went"), default=float("inf"))
        gone = min((t for e, _, t in there[name] if e == "went"), default=float("inf"))
        if taken and (not right or came is None or came > call["end"] or gone + SLOP < call["begin"]):
            complain("push", f"a push of {name} was taken, " + ("though it was not there" if right else "though its token was wrong"))
        if right and not taken and came_surely is not None and came_surely < call["begin"] and goes - SLOP > call["end"]:
            complain("push", f"a push of {name} was refused")
    for channel in h.final.values():
        complain("left", f"{channel['channel_id']} of {key_of(channel)} is {channel['state']}")
    return complaints


# ------------------------------------------------------------------ its faults

def of_claims(h):
    kinds = {c["id"]: c for c in h.calls}
    return [(kinds[w["call"]], w) for w in h.writes if w["old"] and w["new"] and w["old"]["lease"] != w["new"]["lease"]]


def held_twice(h):
    """A channel was handed out while another worker had it."""
    for call, write in of_claims(h):
        if write["old"]["lease_expires_at"] is not None:
            later = {**write["old"], "lease_expires_at": write["new"]["lease_expires_at"]}
            for w in h.writes:
                if w["new"] == write["old"]:
                    w["new"] = later
            write["old"] = later
            return "lease"


def number_given_again(h):
    for call, write in of_claims(h):
        earlier = next((c for c in h.calls if c["kind"] == "claim" and c["committed"] and c["id"] != call["id"] and c["results"]), None)
        if earlier:
            call["results"].append(earlier["results"][0])
            return "lease"


def forgotten(h):
    """Of the loser of a race nothing was recorded."""
    for call in h.calls:
        if call["kind"] == "opened" and call["committed"] and call["results"][0]["state"] == "retiring":
            name = call["args"]["channel_id"]
            h.writes = [w for w in h.writes if (w["new"] or w["old"])["channel_id"] != name]
            return "lost"


def dropped_at_renewal(h):
    """The channel that was renewed was deleted instead of being kept to be stopped."""
    kinds = {c["id"]: c["kind"] for c in h.calls}
    for write in h.writes:
        if write["old"] and write["new"] and write["old"]["state"] == "active" and write["new"]["state"] == "retiring" \
                and kinds[write["call"]] == "opened":
            h.writes = [w for w in h.writes if (w["new"] or w["old"])["id"] != write["old"]["id"]
                        or (w["shard"], w["n"]) <= (write["shard"], write["n"])]
            write["new"] = None
            return "lost"


def both_won(h):
    for call in h.calls:
        if call["kind"] == "opened" and call["committed"] and call["results"][0]["state"] == "active":
            h.calls.append({**copy.deepcopy(call), "id": "another"})
            h.calls[-1]["results"][0]["channel_id"] = h.calls[-1]["args"]["channel_id"] = "another"
            return "winner"


def holder_was_late(h):
    """Whoever held the lease has a channel that is to be stopped."""
    kinds = {c["id"]: c for c in h.calls}
    for write in h.writes:
        call = kinds[write["call"]]
        if write["old"] and write["new"] and write["old"]["state"] == "opening" and write["new"]["state"] == "active" \
                and call["kind"] == "opened" and int(write["new"]["user_id"][-12:]) < STABLE:
            late = {**write["new"], "id": "late", "state": "retiring"}
            h.writes = [w for w in h.writes if (w["new"] or w["old"])["id"] != write["new"]["id"]
                        or (w["shard"], w["n"]) < (write["shard"], write["n"])]
            h.writes.append({**write, "old": None, "new": late})
            call["results"][0].update(id="late", state="retiring")
            return "winner"


def stopped_in_use(h):
    for write in h.writes:
        if write["new"] is None and write["old"]["state"] == "retiring":
            active = {**write["old"], "state": "active"}
            for w in h.writes:
                if w["new"] == write["old"]:
                    w["new"] = active
            write["old"] = active
            return "lost"


def wrong_token(h):
    for call in h.calls:
        if call["kind"] == "push" and call["results"] == [True]:
            call["args"]["token"] = "another"
            return "push"


def push_refused(h):
    for call in [c for c in h.calls if c["kind"] == "push" and c["results"] == [True]][:30]:
        trial = pickle.loads(pickle.dumps(h))
        next(c for c in trial.calls if c["id"] == call["id"])["results"] = [False]
        if any(rule == "push" for rule, _ in check(trial)):
            call["results"] = [False]
            return "push"


def undone_claim_stays(h):
    for call, _ in of_claims(h):
        call["committed"] = False
        return "origin"


def not_stopped(h):
    kinds = {c["id"]: c["kind"] for c in h.calls}
    for write in h.writes:
        if write["new"] is None and kinds[write["call"]] == "stopped":
            h.writes.remove(write)
            h.final[write["old"]["id"]] = write["old"]
            return "left"


FAULTS = [held_twice, number_given_again, forgotten, dropped_at_renewal, both_won, holder_was_late, stopped_in_use,
          wrong_token, push_refused, undone_claim_stays, not_stopped]


def judge_the_judge(history):
    missed = 0
    for fault in FAULTS:
        faulty = pickle.loads(pickle.dumps(history))
        rule = fault(faulty)
        if rule is None:
            print(f"no place for the fault {fault.__name__}")
            missed += 1
        elif rule not in {r for r, _ in check(faulty)}:
            print(f"the judge missed the fault {fault.__name__}: no complaint about \"{rule}\"")
            missed += 1
    print(f"the judge was given {len(FAULTS)} faults, and missed {missed}")
    return missed


# ----------------------------------------------------------------- one history

def run(conninfo, seed, seconds, shards):
    admin = Connection(conninfo)
    admin.script(load.SETUP + router.MARK_CALLS if shards else load.EXTENSION + load.SETUP)
    stores = [Connection(shard) for shard in shards] or [admin]
    for store in stores:
        store.script(SETUP_LOG)
    admin.run("SELECT set_config('history.call', 'setup', false)")
    admin.run("SELECT syncstate.set_sync_policy($1, $2)", SOURCE, json.dumps(POLICY))
    for n in range(USERS):
        for resource in RESOURCES:
            admin.run("SELECT syncstate.connect_sync($1, $2, $3)", load.user(n), SOURCE, resource)

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(WORKERS)
    with tempfile.TemporaryDirectory() as directory:
        processes = [context.Process(target=worker_main, args=(n, conninfo, seed, seconds, barrier, f"{directory}/{n}")) for n in range(WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(f"a worker failed (seed {seed})")
        calls = []
        for n in range(WORKERS):
            with open(f"{directory}/{n}", "rb") as f:
                calls += pickle.load(f)
    writes, final = [], {}
    for n, store in enumerate(stores):
        store.run("SET timezone = 'UTC'")
        for text in store.run("SELECT to_jsonb(w) FROM history.write AS w"):
            write = json.loads(text)
            writes.append({**write, "at": moment(write["at"]), "old": read(write["old"]), "new": read(write["new"]), "shard": n})
        final.update((c["id"], c) for c in (read(json.loads(t)) for t in store.run("SELECT to_jsonb(c) FROM syncstate.sync_channel AS c")))
    for store in stores:
        store.script(TEARDOWN_LOG)
    if shards:
        admin.script(load.TEARDOWN)
    writes.sort(key=lambda w: (w["shard"], w["n"]))
    return History(calls, writes, final)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("conninfo")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--shard", action="append", default=[], help="a superuser's connection to it")
    args = parser.parse_args()
    gc.disable()    # see history.py
    load.SHARDS = len(args.shard)
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "big")
    seconds = args.seconds
    print(f"seed {seed}, {seconds:g} s, {WORKERS} workers of push channels")
    while True:
        history = run(args.conninfo, seed, seconds, args.shard)
        kinds = collections.Counter(c["kind"] + (" " + c["results"][0]["state"] if c["kind"] == "opened" and c["committed"] else "")
                                    for c in history.calls)
        tasks = collections.Counter(r["action"] for c in history.calls if c["kind"] == "claim" and c["committed"] for r in c["results"])
        # a history without these would prove little, as that of a busy machine may be
        by = {c["id"]: c["kind"] for c in history.calls}
        renewed = sum(bool(w["old"] and w["new"]) and w["old"]["state"] == "active" and w["new"]["state"] == "retiring"
                      and by.get(w["call"]) == "opened" for w in history.writes)
        if min(tasks["open"], renewed, tasks["stop"], kinds["opened active"], 2 * kinds["opened retiring"], kinds["push"]) >= 4 or seconds > 30:
            break
        seconds *= 2
    complaints = check(history)
    print(f"{len(history.calls)} calls: " + ", ".join(f"{k} {n}" for k, n in kinds.most_common()))
    print(f"{len(history.writes)} writes; handed out to " + ", ".join(f"{k} {n}" for k, n in tasks.most_common())
          + "; refused: " + ", ".join(f"{k} {n}" for k, n in collections.Counter(c["error"] for c in history.calls if c["error"]).items()))
    shown = collections.Counter()
    for rule, words in complaints:
        shown[rule] += 1
        if shown[rule] <= 3:
            print(f"  {rule}: {words}")
    bad = bool(complaints) or judge_the_judge(history) > 0
    print("all channels are as promised" if not bad else f"FAILED (seed {seed})")
    return bad


if __name__ == "__main__":
    sys.exit(main())
