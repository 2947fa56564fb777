"""Histories of calls that go through a router to several shards.

Each row is on one shard, so the judge decides about each shard alone.  What is
different from a single database:

Which call made a write is not known to the shard: find_calls() finds out.

Shards are restarted under load.  A call may fail with 08006, or warn that some
shards do not answer.  Whether such a call did its work there is told by the
shard's log: if it did, the judge takes it as a call that did, and otherwise as
one that came to nothing.  A lease that was given in this way is one that no
worker was told of; nobody else may have the row as long as it lasts.
"""
import collections
import json
import re
import subprocess
import time

import load
from checker import COLUMNS, MAKES_ROW, OUTCOMES, SLOP, History, key_of

# Where a call leaves a row
STATUS = {"complete": "idle", "fail": "error", "limit": "rate_limited", "release": "idle", "start": "syncing",
          "renew": "syncing", "checkpoint": "syncing"}

# Between two restarts; a shard is away for less than that.
PAUSE = 1.5


def restart_now_and_then(shards, chance, seconds, barrier):
    """Restarts shards while the sessions call, and leaves them running."""
    restarts = 0
    barrier.wait()              # the sessions begin
    started = time.monotonic()
    while time.monotonic() < started + seconds - 2 * PAUSE or not restarts:
        time.sleep(PAUSE)
        restart(load.Connection(chance.choice(shards)), chance.choice(["fast", "immediate", "after commits"]))
        restarts += 1
    barrier.wait()              # they have ended; the policies are changed
    barrier.wait()
    return restarts


def restart(shard, mode):
    directory = shard.run("SHOW data_directory")[0].decode()
    if mode == "after commits":
        # they wait for a standby that is not there, so that nobody learns of them
        shard.run("ALTER SYSTEM SET synchronous_standby_names = 'none'")
        shard.run("SELECT pg_reload_conf()")
        time.sleep(0.2)
        shard.run("ALTER SYSTEM RESET synchronous_standby_names")
        mode = "immediate"
    shard.conn.finish()
    subprocess.run(["pg_ctl", "-D", directory, "-m", mode, "-l", "/dev/null", "-s", "-w", "restart"], check=True)


def silent(call):
    """Shards that did not answer a call, as far as it was told."""
    return {int(n) for words in call.get("warnings", []) + [call.get("message", "")] for numbers in
            re.findall(r"not all shards answer: not ([\d, ]+)", words) for n in numbers.split(", ")}


def find_calls(history):
    """Puts into each write the call that made it; counts what was met on the way.

    A call that tells the row it wrote is known by the row.  The others are
    known by the session, because a shard's process works for one session of
    the router, and by the time.
    """
    met = collections.Counter({"warnings": 0, "applied without an answer": 0, "leases that nobody was told of": 0})
    told = {(key_of(row), row["lease"], row["updated_at"]): call for call in history.calls
            for row in call["results"] if isinstance(row, dict) and "lease" in row}
    sessions = {}
    for write in history.writes:
        new = write["new"]
        call = told.get((key_of(new), new["lease"], new["updated_at"])) if new and not write["call"] else None
        if call is not None and new in call["results"]:
            write["call"] = call["id"]
            sessions[write["shard"], write["backend"]] = call["session"]
    by_time = collections.defaultdict(list)
    for call in history.calls:
        if call["session"] >= 0:
            for n in range((call["begin"] - SLOP) // SLOP, (call["end"] + SLOP) // SLOP + 1):
                by_time[n].append(call)
    begin = min(call["begin"] for call in history.calls if call["session"] >= 0)
    for write in history.policy_writes:
        if write["at"] < begin:
            write["call"] = "setup.policy"
    makers = Makers(by_time, sessions)
    for write in sorted(history.writes + history.policy_writes, key=lambda w: w["at"]):
        if not write["call"]:
            makers.find(write, set())
            met["policies that nobody wrote"] += "old" not in write and write["call"].startswith("nobody")

    writes = collections.defaultdict(list)
    for write in history.writes:
        writes[write["call"]].append(write)
    for call in history.calls:
        met["warnings"] += bool(call.get("warnings"))
        made = writes[call["id"]]
        if made and (call["error"] == "08006" or call.get("warnings")):
            if call["error"]:
                met["applied without an answer"] += 1
                call["error"], call["undone"] = None, False
                history.transactions[call["transaction"]]["committed"] = True
                if call["kind"] in ("request", "disconnect"):
                    call["results"] = [True]
                elif call["kind"] not in ("claim", "batch", "forget"):
                    call["results"] = [made[-1]["new"]]
            if call["kind"] in ("claim", "batch"):
                call.setdefault("spare", False)
                for write in made:
                    if write["shard"] in silent(call) and write["new"] not in call["results"] \
                            and (call["kind"] == "batch" or write["new"]["status"] == "syncing"):
                        met["leases that nobody was told of" if call["kind"] == "claim" else "applied without an answer"] += 1
                        call["results"].append(write["new"])
    return met


class Makers:
    """Which calls made the writes that none has told."""

    def __init__(self, by_time, sessions):
        self.by_time = by_time
        self.sessions = sessions
        self.made = {}          # by call and kind of write, where a call makes no more than one

    def find(self, write, tried):
        """Finds its call; those found before are given others, where that makes room (a bipartite matching)."""
        session = self.sessions.get((write["shard"], write["backend"]))
        at = write["at"]
        says = write["new"]["updated_at"] if write.get("new") else at
        calls = [c for c in self.by_time[at // SLOP] if c["begin"] - SLOP <= says and at <= c["end"] + SLOP
                 and session in (None, c["session"]) and may_have_made(write, c)]
        # a call that names the row rather than a claim, which may have taken any
        for call in sorted(calls, key=lambda c: (not c["begin"] <= says <= at <= c["end"], c["kind"] == "claim", c["end"])):
            if call["kind"] not in ("claim", "batch", "forget") and "old" in write:
                place = (call["id"], write["old"] is None, write["new"] is None)
                if place in tried:
                    continue
                tried.add(place)
                if place in self.made and not self.find(self.made[place], tried):
                    continue
                self.made[place] = write
            write["call"] = call["id"]
            return True
        if not write["call"]:
            write["call"] = f"nobody on shard {write['shard']}, session {session}, {write.get('old')} became " \
                f"{write.get('new')} at {at}"
        return False


def may_have_made(write, call):
    """Whether a write is of the kind that a call makes without telling the row."""
    kind = call["kind"]
    unsure = call["error"] == "08006" or bool(call["warnings"])
    if call["error"] not in (None, "08006"):
        return False
    if "old" not in write:
        return kind in ("policy", "pause_source", "resume_source") and write["source"] in call["sources"] \
            or kind == "limit" and call["args"]["scope"] == "source" or kind == "batch"
    old, new = write["old"], write["new"]
    key = key_of(new or old)
    if kind != "claim" and key not in call["keys"]:
        return False
    if new is None:
        return kind == "forget" or kind == "disconnect" and (unsure or call["results"] == [True])
    if old is None:
        return kind in MAKES_ROW and call["args"].get("lease") is None
    changed = {column for column in old if old[column] != new[column]}
    if kind == "claim":
        return key[1] in call["sources"] and (
            unsure and new["lease"] > old["lease"] or new["parked_reason"] == "failures" and changed <= COLUMNS["hopeless"])
    if kind == "request":
        return changed <= COLUMNS["request"] and (unsure or call["results"] == [True])
    reports = [(OUTCOMES[r["outcome"]], r["lease"]) for r in json.loads(call["args"]["results"]) if key_of(r) == key] \
        if kind == "batch" else [(kind, call["args"].get("lease"))]
    return unsure and any(
        (lease is None or old["status"] == "syncing" and old["lease"] == lease)
        and (what == "update" or changed <= COLUMNS.get(what, set()) and new["status"] == STATUS.get(what, new["status"]))
        for what, lease in reports)


def by_shard(history, shards):
    """A history for each shard, of its rows and policies."""
    parts = []
    for n in range(shards):
        part = History(history.calls, history.transactions, [w for w in history.writes if w["shard"] == n],
                       [w for w in history.policy_writes if w["shard"] == n], history.final,
                       history.end).project(key for key, shard in history.at.items() if shard == n)
        for call in part.calls:
            if n in silent(call):
                call.update(spare=False, doubtful=True)
        parts.append(part)
    return parts
