"""Histories of calls that go through a router to several shards.

Each row is on one shard, so the judge decides about each shard alone.  What is
different from a single database:

The router comes to a shard over connections of its own, where the number of a
call is not set.  MARK_CALLS changes the router's functions so that each
statement brings the number along.

Shards are restarted under load.  A call may fail with 08006, or warn that some
shards do not answer.  Whether such a call did its work there is told by the
shard's log: if it did, the judge takes it as a call that did, and otherwise as
one that came to nothing.  A lease that was given in this way is one that no
worker was told of; nobody else may have the row as long as it lasts.
"""
import collections
import re
import subprocess
import time

import load
from checker import History, key_of

# Each function in PL/Proxy gets another argument: the number of the call, as the
# caller's session has it.  Its statement sets the number on the shard, for its
# own transaction only, so that no later write can be taken for this call's.
# Statements over dblink have the number in a comment.
#
# A function that is changed leaves the extension, so it is not changed again by
# the next round.
MARK_CALLS = r"""
DO $install$
DECLARE
	fn record;
BEGIN
	FOR fn IN SELECT p.oid::regprocedure::text AS signature, p.oid::regproc::text AS name, pg_get_function_arguments(p.oid) AS arguments,
			array_to_string(p.proargnames[1:p.pronargs], ', ') AS names, pg_get_function_result(p.oid) AS result,
			p.prosrc AS body, p.proretset AS rows
		FROM pg_proc AS p
			JOIN pg_language AS l ON l.oid = p.prolang AND l.lanname = 'plproxy'
			JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
		WHERE p.prosrc ~ 'TARGET'
	LOOP
		EXECUTE format('ALTER EXTENSION syncstate_router DROP FUNCTION %s', fn.signature);
		EXECUTE format('DROP FUNCTION %s', fn.signature);
		EXECUTE format('CREATE FUNCTION %s(%s, call text DEFAULT current_setting(''history.call'')) RETURNS %s LANGUAGE plproxy VOLATILE AS %L',
			fn.name, fn.arguments, fn.result,
			regexp_replace(fn.body, 'TARGET ([^;]+);', format(
				CASE WHEN fn.rows
					THEN 'SELECT (r.f).* FROM (SELECT \1(%s) AS f FROM pg_catalog.set_config(''history.call'', call, true)) AS r;'
					ELSE 'SELECT \1(%s)::%s FROM pg_catalog.set_config(''history.call'', call, true);'
				END, fn.names, fn.result)));
	END LOOP;

	IF to_regproc('syncstate_shard.ask_unmarked') IS NULL THEN
		ALTER FUNCTION syncstate_shard.ask RENAME TO ask_unmarked;
		CREATE FUNCTION syncstate_shard.ask(statements text[], begun integer[] DEFAULT '{}', places syncstate_shard.place[] DEFAULT NULL)
			RETURNS syncstate_shard.answer[]
			LANGUAGE sql VOLATILE
		BEGIN ATOMIC
			SELECT syncstate_shard.ask_unmarked(
				ARRAY(SELECT s.statement || format(' /* call %s */', current_setting('history.call'))
					FROM unnest(statements) WITH ORDINALITY AS s (statement, place) ORDER BY s.place), begun, places);
		END;
	END IF;
END
$install$;
"""

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


def change_of(state, listed):
    """What set_sync_resources() says of a row that it met."""
    reason = state and state["parked_reason"]
    if listed:
        return "added" if state is None else "returned" if reason == "gone" else "kept"
    return None if state is None or reason == "gone" else "kept" if reason == "paused" else "gone"


def answer(call, made, writes):
    """What a call about one user would have answered, which wrote these and was not heard of."""
    if call["kind"] in ("request", "disconnect"):
        return [True]
    if call["kind"] == "disconnect_account":
        return [write["old"] for write in made]
    if call["kind"] in ("connect_account", "pause_account", "resume_account"):
        return [write["new"] for write in made]
    if call["kind"] not in ("request_account", "set_resources"):
        return [write["new"] for write in made if key_of(write["new"]) == call["keys"][0]][-1:]

    # the rows as it met them
    met, written = {}, set()
    for write in writes:
        key = key_of(write["new"] or write["old"])
        if write["n"] > made[-1]["n"]:
            break
        if key in call["keys"] and key not in written:
            met[key] = write["old"] if write["call"] == call["id"] else write["new"]
            if write["call"] == call["id"]:
                written.add(key)
    if call["kind"] == "request_account":
        return [{"source": key[2], "resource": key[3]} for key in call["keys"]
                if met.get(key) and met[key]["parked_reason"] is None]
    listed = call["args"]["resources"].strip("{}").replace('"', "").split(",")
    changes = {key[3]: change_of(met.get(key), key[3] in listed) for key in call["keys"] if key[3]}
    return [{"resource": resource, "change": changes[resource]} for resource in sorted(changes) if changes[resource]]


def settle(history):
    """Settles which of the calls without an answer did their work; counts what was met on the way."""
    met = collections.Counter({"warnings": 0, "applied without an answer": 0, "leases that nobody was told of": 0})
    history.writes.sort(key=lambda write: (write["shard"], write["n"]))
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
                if call["kind"] not in ("claim", "batch", "forget"):
                    call["results"] = answer(call, made, [w for w in history.writes if w["shard"] == made[0]["shard"]])
            if call["kind"] in ("claim", "batch"):
                call.setdefault("spare", False)
                last = {key_of(write["new"]): write["new"] for write in made}
                for write in made:
                    # a batch writes other rows of an account, too
                    if write["shard"] in silent(call) and last[key_of(write["new"])] not in call["results"] \
                            and (write["new"]["status"] == "syncing") == (call["kind"] == "claim") \
                            and (call["kind"] == "claim" or write["old"]["status"] == "syncing"):
                        met["leases that nobody was told of" if call["kind"] == "claim" else "applied without an answer"] += 1
                        call["results"].append(last[key_of(write["new"])])
    return met


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
