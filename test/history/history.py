#!/usr/bin/python3
"""Many sessions call everything at once; a judge decides over the history.

    history.py CONNINFO [--seconds N] [--seed S] [--workers N] [--round-seconds N] [--keep FILE] [--shard CONNINFO ...]

The load is in load.py, the rules are in checker.py.  Runs in rounds, each with
a seed of its own and tables that are empty at first.  After the last round, the
judge is judged: it must object to the same history with each of a list of
faults put in.  CONNINFO is a superuser's; the database must be a throw-away
one.  With shards, in their order, CONNINFO is their router's, and shards are
restarted under load: see router.py.
"""
import argparse
import collections
import gc
import json
import multiprocessing
import os
import pickle
import random
import sys
import tempfile

import checker
import faults
import load
import router

WORKERS = 8
USERS = 2

# Calls of a round, so that each kind of fault has a place in it.
ENOUGH = 6000
ENOUGH_THROUGH_ROUTER = 2500
# Writes of the part in which the faults are put.
ENOUGH_WRITES = 1500


def run_round(conninfo, seed, seconds, workers, shards):
    """One round; returns its history, or the words of a session that failed."""
    chance = random.Random(seed)
    # where many claim, so many rows that they meet in the lanes
    users = chance.choice([3, 6, 10, 14]) * max(workers // WORKERS, 1)
    admin = load.Connection(conninfo)
    admin.script(load.SETUP + router.MARK_CALLS if shards else load.EXTENSION + load.SETUP)
    stores = [load.Connection(shard) for shard in shards] or [admin]
    for store in stores:
        store.script(load.SETUP_LOG)
        store.run("SELECT set_config('history.call', 'setup.rows', false)")
    admin.conn.exec_params(b"SET timezone = 'UTC'", [])
    for source in load.SOURCES:
        policy = dict(load.POLICY)
        if source == "google_contacts":
            policy.update(token_ttl="3 s", token_ttl_from="full")
        policy.update(provider=checker.provider_of(source), auth_failures=checker.AUTH_FAILURES[source])
        if source in checker.CAPS:
            policy.update(max_in_flight=checker.CAPS[source])
        admin.run("SELECT set_config('history.call', 'setup.policy', false)")
        admin.run("SELECT syncstate.set_sync_policy($1::syncstate.sync_source, $2::jsonb)", source, json.dumps(policy))
    admin.run("SELECT set_config('history.call', 'setup.rows', false)")
    admin.run("INSERT INTO history.app_user SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid"
              " FROM generate_series(0, $1::int - 1) AS n", users)
    at = [int(admin.run("SELECT syncstate.shard_of($1)", load.user(n))[0]) if shards else 0 for n in range(users)]
    for n, store in enumerate(stores):
        store.run("INSERT INTO syncstate.sync_state (user_id, account, source, resource)"
                  " SELECT u, a, s, r FROM unnest($1::uuid[]) AS u, unnest($2::text[]) AS a,"
                  " unnest(enum_range(NULL::syncstate.sync_source)) AS s, unnest($3::text[]) AS r",
                  "{%s}" % ",".join(load.user(u) for u in range(users) if at[u] == n),
                  *("{%s}" % ",".join(f'"{word}"' for word in words) for words in (load.ACCOUNTS, load.RESOURCES)))
    deadlocks = int(admin.run("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0])

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(workers + USERS + bool(shards))
    with tempfile.TemporaryDirectory() as directory:
        sessions = []
        for n in range(workers + USERS):
            path = f"{directory}/{n}"
            process = context.Process(target=load.session_main, args=(
                n, "worker" if n < workers else "user", conninfo, seed, users, int(seconds * 1e6), barrier, path))
            process.start()
            sessions.append((process, path))
        if shards:              # their connections go with them
            restarts = router.restart_now_and_then(shards, chance, seconds, barrier)
            stores = [load.Connection(shard) for shard in shards]
        logs = []
        for process, path in sessions:
            process.join()
            if process.exitcode != 0:
                for other, _ in sessions:
                    other.join()
                sys.exit(f"a session ended with {process.exitcode} (seed {seed})")
            with open(path, "rb") as f:
                logs.append(pickle.load(f))

    writes = []
    policy_writes = []
    final = {}
    end = load.now()
    for n, store in enumerate(stores):
        for text in store.run("SELECT to_jsonb(w) FROM history.write AS w"):
            write = json.loads(text)
            writes.append({**write, "old": checker.row_of(write["old"]), "new": checker.row_of(write["new"]), "shard": n})
        for text in store.run("SELECT to_jsonb(w) - 'old' - 'new' || jsonb_build_object('source', coalesce(new, old) ->> 'source',"
                              " 'paused_until', extract(epoch FROM (new ->> 'paused_until')::timestamptz), 'wait',"
                              " extract(epoch FROM (new ->> 'rate_limit_wait')::interval)) FROM history.policy_write AS w"):
            write = json.loads(text)
            if write["paused_until"] is not None:
                write["paused_until"] = round(float(write["paused_until"]) * 1e6) \
                    if write["paused_until"] != "Infinity" else 2 ** 62
            write["wait"] = round(float(write["wait"] or 60) * 1e6)
            policy_writes.append({**write, "shard": n})
        for text in store.run("SELECT to_jsonb(s) FROM syncstate.sync_state AS s"):
            row = checker.row_of(json.loads(text))
            final[checker.key_of(row)] = row
    deadlocks = int(admin.run("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0]) - deadlocks
    for store in stores:
        store.script(load.TEARDOWN_LOG)
    admin.script(load.TEARDOWN)

    # what the set-up wrote is the beginning of each chain
    setup = {"session": -1, "kind": "setup", "args": {}, "keys": [], "sources": None, "undone": False, "error": None,
             "results": [], "begin": 0, "end": 0, "snapshot": 0, "transaction": "setup"}
    calls = [{**setup, "id": "setup.rows"}, {**setup, "id": "setup.policy"}]
    transactions = {"setup": {"id": "setup", "committed": True, "commit_begin": 0, "commit_end": 0}}
    failures = [log["failure"] for log in logs if log["failure"]]
    for log in logs:
        calls.extend(log["calls"])
        transactions.update((t["id"], t) for t in log["transactions"])
    for call in calls:
        call["results"] = [checker.row_of(r) if isinstance(r, dict) and "lease" in r else r for r in call["results"]]
    calls.sort(key=lambda c: c["begin"])
    history = checker.History(calls, transactions, writes, policy_writes, final, end)
    if shards:
        history.faults = {"restarts": restarts, **router.settle(history)}
        history.at = {key: shard for n, shard in enumerate(at) for a in load.ACCOUNTS
                      for key in checker.account_keys(load.user(n), a)}
    return history, failures, deadlocks


def telling(history):
    """The rows of the users to whom the most happened; leases that ran out first."""
    happened, written = collections.Counter(), collections.Counter()
    for write in history.writes:
        old, new = write["old"], write["new"]
        ran_out = old and new and new["lease"] > old["lease"] and old["status"] == "syncing"
        happened[(new or old)["user_id"]] += 50 if ran_out else 1
        written[(new or old)["user_id"]] += 1
    keys, writes = [], 0
    for user, _ in happened.most_common():
        if writes < ENOUGH_WRITES:
            writes += written[user]
            keys += [key for account in checker.ACCOUNTS for key in checker.account_keys(user, account)]
    return keys


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("conninfo")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--round-seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--keep", help="leave the last history here")
    parser.add_argument("--shard", action="append", default=[], help="a superuser's connection to it")
    args = parser.parse_args()
    gc.disable()    # a history has no cycles, and looking for them takes a third of the time
    enough = ENOUGH_THROUGH_ROUTER if args.shard else ENOUGH
    load.SHARDS = len(args.shard)
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "big")
    rounds = max(1, round(args.seconds / args.round_seconds))
    print(f"seed {seed}, {rounds} rounds of {args.seconds / rounds:g} s, {args.workers} workers and {USERS} users")

    kinds = collections.Counter()
    refused = collections.Counter()
    isolations = collections.Counter()
    faults_met = collections.Counter()
    bad = 0
    starts = takeovers = undone = writes = 0
    for n in range(rounds):
        seconds = args.seconds / rounds
        history, failures, deadlocks = run_round(args.conninfo, seed + n, seconds, args.workers, args.shard)
        while not failures and len(history.calls) < enough and seconds < 60:
            seconds *= 2        # a busy machine: so few calls would prove little
            history, failures, deadlocks = run_round(args.conninfo, seed + n, seconds, args.workers, args.shard)
        if args.keep:
            with open(args.keep, "wb") as f:
                pickle.dump(history, f)
        complaints = [("error", words) for words in failures]
        if deadlocks:
            complaints.append(("error", f"{deadlocks} deadlocks"))
        parts = router.by_shard(history, len(args.shard)) if args.shard else [history]
        for part in parts:
            complaints += checker.check(part)
        faults_met.update(getattr(history, "faults", {}))
        for call in history.calls:
            if call["session"] >= 0:
                kinds[call["kind"]] += 1
                isolations[history.transactions[call["transaction"]]["isolation"]] += 1
                if call["error"]:
                    refused[call["error"]] += 1
                elif call["undone"]:
                    undone += 1
        writes += len(history.writes)
        for write in history.writes:
            if write["old"] and write["new"] and write["new"]["lease"] > write["old"]["lease"]:
                starts += 1
                takeovers += write["old"]["status"] == "syncing"
        if complaints:
            bad += 1
            print(f"round {n + 1}, seed {seed + n}: {len(complaints)} complaints")
            rules = collections.Counter(rule for rule, _ in complaints)
            print("  " + ", ".join(f"{rule} {count}" for rule, count in rules.most_common()))
            shown = collections.Counter()
            for rule, words in complaints:
                shown[rule] += 1
                if shown[rule] <= 3:
                    print(f"  {rule}: {words}")

    print(f"{sum(kinds.values())} calls: " + ", ".join(f"{k} {n}" for k, n in kinds.most_common()))
    print("isolation: " + ", ".join(f"{k} {n}" for k, n in isolations.most_common()))
    print("refused: " + ", ".join(f"{k} {n}" for k, n in refused.most_common()) + f"; rolled back: {undone}")
    print(f"{writes} writes, {starts} starts, {takeovers} of them after a lease that ran out")

    if args.shard:
        print("shards: " + ", ".join(f"{k} {n}" for k, n in faults_met.items()))

    # A history without these would prove little.
    wanted = [("starts", starts), ("expired leases", takeovers), ("lost leases", refused["PT409"])]
    if args.shard:
        wanted += [("calls without an answer", refused["08006"]), ("calls that some shards did not answer", faults_met["warnings"])]
    else:
        wanted += [("undone calls", undone), ("serialization failures", refused["40001"])]
    for what, count in wanted:
        if count == 0:
            bad += 1
            print(f"no {what}: the history is too thin")

    if not bad:
        part = max(parts, key=lambda part: len(part.writes))
        missed = faults.judge_the_judge(part.project(telling(part)))
        bad += missed
    print("all rounds are as promised" if not bad else f"FAILED (seed {seed})")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
