"""Faults for the judge: a history with one of them in must not pass.

Each fault is a function that changes a history, and the rule that must object;
it returns False where the history has no place for it.  Rows are changed
wherever they appear (in writes, results and the table), so that nothing but
the fault itself is wrong with the history.
"""
import copy
import itertools
import json
import pickle

import checker
from checker import CAPS, SECOND, domain_of, grant_of, key_of, limit_of

FAULTS = []


def fault(rule):
    def register(function):
        FAULTS.append((rule, function))
        return function
    return register


def call_of(h, write):
    return next(c for c in h.calls if c["id"] == write["call"])


def counts(h, call):
    return not call["undone"] and h.transactions[call["transaction"]]["committed"] and call["error"] is None


def rewrite(h, key, change):
    """Applies a change to each version of a row, wherever it is."""
    for write in h.writes:
        if key_of(write["new"] or write["old"]) == key:
            for side in ("old", "new"):
                if write[side] is not None:
                    write[side] = change(dict(write[side]))
    for call in h.calls:
        call["results"] = [change(dict(r)) if isinstance(r, dict) and "lease" in r and key_of(r) == key else r
                           for r in call["results"]]
    if key in h.final:
        h.final[key] = change(dict(h.final[key]))


def set_from(h, write, column, value):
    """From this write on, the column is another, as long as nobody writes it again."""
    key, before, since = key_of(write["new"]), write["new"][column], write["new"]["updated_at"]

    def change(row):
        if row["updated_at"] >= since and row[column] == before:
            row[column] = value
        return row
    rewrite(h, key, change)


def instead(h, row, values):
    """One version of a row is another one."""
    same = dict(row)
    rewrite(h, key_of(row), lambda r: {**r, **values} if r == same else r)


def places(h, kind, condition=lambda call, write: True):
    """Writes by calls of a kind, the latest first."""
    kinds = {c["id"]: c for c in h.calls if c["kind"] == kind and counts(h, c)}
    for write in sorted(h.writes, key=lambda w: -w["n"]):
        call = kinds.get(write["call"])
        if call is not None and write["old"] is not None and write["new"] is not None and condition(call, write):
            yield call, write


def first(h, kind, condition=lambda call, write: True):
    return next(places(h, kind, condition), (None, None))


def own(call, write):
    """Whether a report ended the run of its own row."""
    keys = call["keys"][:1] if call["kind"] != "batch" else [key_of(r) for r in json.loads(call["args"]["results"])]
    return key_of(write["new"]) in keys and write["old"]["status"] == "syncing" and write["new"]["status"] != "syncing"


def started(call, write):
    return write["new"]["lease"] > write["old"]["lease"]


def cut_off(h, write):
    """Nothing happens to the row after a write."""
    key = key_of(write["new"])
    gone = {w["call"] for w in h.writes if w["n"] > write["n"] and key_of(w["new"] or w["old"]) == key}
    h.writes = [w for w in h.writes if w["n"] <= write["n"] or key_of(w["new"] or w["old"]) != key]
    since = call_of(h, write)["begin"]
    for call in h.calls:
        if call["id"] in gone or call["begin"] > since:
            call["results"] = [r for r in call["results"] if not (isinstance(r, dict) and "lease" in r and key_of(r) == key)]
    h.calls = [c for c in h.calls if c["begin"] <= since or key not in c["keys"]]
    h.final[key] = dict(write["new"])


def without(h, call, write):
    """The call did not write."""
    old, new = dict(write["old"]), dict(write["new"])
    h.writes.remove(write)
    rewrite(h, key_of(new), lambda r: dict(old) if r == new else r)
    call["results"] = [r for r in call["results"] if not (isinstance(r, dict) and "lease" in r and key_of(r) == key_of(new))]


@fault("chain")
def claim_counted_twice(h):
    call, write = first(h, "claim", started)
    if write:
        h.writes.append({**copy.deepcopy(write), "n": write["n"] + 0.5})
    return write


@fault("chain")
def start_dropped(h):
    call, write = first(h, "claim", started)
    if write:
        h.writes.remove(write)
    return write


@fault("chain")
def end_dropped(h):
    call, write = first(h, "complete")
    if write:
        h.writes.remove(write)
    return write


@fault("chain")
def writes_swapped(h):
    call, write = first(h, "complete", lambda c, w: w["old"]["status"] == "syncing")
    if write:
        before = [w for w in h.writes if key_of(w["new"] or w["old"]) == key_of(write["new"]) and w["n"] < write["n"]]
        before[-1]["n"], write["n"] = write["n"], before[-1]["n"]
    return write


@fault("chain")
def table_holds_another_row(h):
    for key, row in h.final.items():
        h.final[key] = {**row, "items_synced": row["items_synced"] + 1}
        return True


def told(h, write):
    """Whether the lease before this start was told to a worker, and the row not deleted since.

    A deletion ends the run as well, which the workers are not told.
    """
    key, lease = key_of(write["old"]), write["old"]["lease"]
    given, until = write["old"]["last_sync_at"], write["new"]["updated_at"]
    return any(isinstance(r, dict) and "lease" in r and key_of(r) == key and r["lease"] == lease
               and r["updated_at"] == given for c in h.calls if counts(h, c) for r in c["results"]) and not any(
        c["kind"] in checker.DELETES and key in c["keys"] and counts(h, c)
        and c["begin"] - checker.SLOP <= until
        and h.transactions[c["transaction"]]["commit_end"] + checker.SLOP >= given for c in h.calls)


def claim_under_live_lease(h):
    call, write = first(h, "claim", lambda c, w: started(c, w) and w["old"]["status"] == "syncing"
                        and w["old"]["last_sync_at"] == w["old"]["updated_at"] and told(h, w))
    if write:
        instead(h, write["old"], {"lease_expires_at": write["new"]["updated_at"] + SECOND})
    return write


fault("lease")(claim_under_live_lease)
fault("holder")(claim_under_live_lease)


@fault("lease")
def live_row_started(h):
    call, write = first(h, "start", lambda c, w: started(c, w) and w["old"]["status"] != "syncing")
    if write:
        instead(h, write["old"], {"status": "syncing", "lease_expires_at": write["new"]["updated_at"] + SECOND})
    return write


def number_used_again(h):
    call, write = first(h, "claim", lambda c, w: started(c, w) and told(h, w))
    if write:
        since = write["new"]["updated_at"]
        rewrite(h, key_of(write["new"]), lambda r: {**r, "lease": r["lease"] - 1} if r["updated_at"] >= since else r)
    return write


fault("lease")(number_used_again)
fault("holder")(number_used_again)


@fault("lease")
def number_back_after_deletion(h):
    for write in h.writes:
        if write["new"] is None and write["old"]["lease"] > 0:
            key, since = key_of(write["old"]), write["n"]
            later = [w for w in h.writes if w["n"] > since and w["new"] and key_of(w["new"]) == key
                     and w["new"]["status"] == "syncing"]
            if later:
                least = min(w["new"]["lease"] for w in later)
                after = {json.dumps(w["new"], sort_keys=True) for w in later}
                rewrite(h, key, lambda r: {**r, "lease": r["lease"] - least + 1}
                        if json.dumps(r, sort_keys=True) in after else r)
                return True


@fault("stale")
def lost_lease_accepted(h):
    call, write = first(h, "complete", lambda c, w: c["args"].get("lease") is not None)
    if write:
        call["args"]["lease"] -= 1
    return write


@fault("stale")
def lost_lease_renewed(h):
    call, write = first(h, "renew")
    if write:
        call["args"]["lease"] -= 1
    return write


@fault("stale")
def lost_lease_in_batch(h):
    call, write = first(h, "batch", own)
    if write:
        reports = json.loads(call["args"]["results"])
        for report in reports:
            if key_of(report) == key_of(write["new"]):
                report["lease"] -= 1
        call["args"]["results"] = json.dumps(reports)
    return write


def alone(h, call, write):
    """A transaction of its own, with nothing else near it that could explain a refusal."""
    key = key_of(write["new"])
    return h.transactions[call["transaction"]]["isolation"] == "read committed" and \
        not h.transactions[call["transaction"]]["explicit"] and not any(
            other is not call and other["begin"] <= call["end"]
            and h.transactions[other["transaction"]].get("commit_end", other["end"]) >= call["begin"]
            and key in other["keys"] + [key_of(r) for r in other["results"] if isinstance(r, dict) and "lease" in r]
            for other in h.calls)


def refuse(h, error):
    for kind in ("checkpoint", "renew", "complete", "fail", "release"):
        call, write = first(h, kind, lambda c, w: key_of(w["new"]) == c["keys"][0] and alone(h, c, w)
                            and c["args"].get("lease") is not None)
        if write:
            break
    if write:
        without(h, call, write)
        call["error"], call["undone"] = error, True
        h.transactions[call["transaction"]]["committed"] = False
    return write


@fault("refused")
def holder_refused(h):
    return refuse(h, "PT409")


@fault("refused")
def row_not_found(h):
    return refuse(h, "PT404")


@fault("refused")
def left_out_of_batch(h):
    call, write = first(h, "batch", lambda c, w: own(c, w) and alone(h, c, w))
    if write:
        without(h, call, write)
    return write


@fault("cursor")
def cursor_lost_by_failure(h):
    for column in checker.CURSOR:
        call, write = first(h, "fail", lambda c, w: w["old"][column] is not None)
        if write:
            set_from(h, write, column, None)
            return True


@fault("cursor")
def cursor_lost_by_completion(h):
    for column in ("history_id", "updated_min", "sync_token"):
        call, write = first(h, "complete", lambda c, w: w["old"][column] is not None and column not in c["args"])
        if write:
            set_from(h, write, column, None)
            return True


@fault("cursor")
def cursor_moved_back(h):
    call, write = first(h, "complete", lambda c, w: w["old"]["history_id"] is not None
                        and w["new"]["history_id"] != w["old"]["history_id"])
    if write:
        set_from(h, write, "history_id", "7")
    return write


@fault("cursor")
def new_cursor_not_kept(h):
    call, write = first(h, "complete", lambda c, w: c["args"].get("sync_token") is not None)
    if write:
        set_from(h, write, "sync_token", "another")
    return write


@fault("cursor")
def cursor_kept_by_a_full_sync_of_everybody(h):
    call, write = first(h, "claim", lambda c, w: started(c, w) and w["new"]["full_sync_id"] is None
                        and c["snapshot"] == c["begin"] and not any(
                            r["kind"] == "resync" and w["new"]["source"] in r["sources"]
                            and c["begin"] - 2 * SECOND < r["begin"] < c["end"] + SECOND for r in h.calls))
    if write:
        long_ago = min(c["begin"] for c in h.calls)
        h.calls.append({**call, "id": "resync", "kind": "resync", "transaction": "resync", "results": [],
                        "sources": [write["new"]["source"]], "begin": long_ago, "end": long_ago})
        h.transactions["resync"] = {"committed": True, "begin": long_ago, "commit_begin": long_ago, "commit_end": long_ago}
        instead(h, write["old"], {"last_full_sync_at": None})
    return write


@fault("columns")
def pause_revived(h):
    call, write = first(h, "revive", lambda c, w: c["args"]["reason"] != "paused")
    if write:
        instead(h, write["old"], {"parked_reason": "paused"})
    return write


@fault("result")
def revived_more_than_said(h):
    call, write = first(h, "revive")
    if write:
        call["results"] = [call["results"][0] - 1]
    return write


@fault("request")
def request_lost(h):
    for call, write in places(h, "request"):
        cut_off(h, write)
        return True


@fault("request")
def request_absorbed(h):
    """It wrote nothing, because the row had been requested; but the start was over."""
    for call, write in places(h, "request", lambda c, w: c["results"] == [True]):
        before = [w for w in h.writes if key_of(w["new"] or w["old"]) == key_of(write["new"]) and w["n"] < write["n"]]
        # a request may rely on one that is served while it is made
        if not before or before[-1]["new"] is None or any(call_of(h, w)["end"] >= call["begin"] for w in before):
            continue
        h.writes.remove(write)
        cut_off(h, before[-1])
        h.final[key_of(write["new"])] = dict(before[-1]["new"])
        if h.final[key_of(write["new"])]["parked_reason"] is None:
            h.calls.append(call)
            return True
    return False


@fault("left")
def due_row_left(h):
    call, write = first(h, "complete", lambda c, w: w["new"]["due_at"] is not None and w["new"]["due_at"] < h.end)
    if write:
        cut_off(h, write)
    return write


@fault("waiting")
def due_row_passed_over(h):
    for kind in ("complete", "release", "renew"):
        for call, write in list(places(h, kind, lambda c, w: w["new"]["due_at"] is not None
                                       and w["new"]["due_at"] < h.end - 3 * SECOND))[-4:]:
            trial = pickle.loads(pickle.dumps(h))
            cut_off(trial, next(w for w in trial.writes if w["n"] == write["n"]))
            if any(rule == "waiting" for rule, _ in checker.check(trial)):
                cut_off(h, write)
                return True
    return False


@fault("origin")
def written_by_nobody(h):
    write = max((w for w in h.writes if w["new"]), key=lambda w: w["n"])
    new = {**write["new"], "items_synced": 77}
    h.writes.append({"n": write["n"] + 1, "call": "nobody", "old": dict(write["new"]), "new": new})
    h.final[key_of(new)] = new
    return True


@fault("origin")
def written_by_another_call(h):
    call, write = first(h, "complete")
    if write:
        other, _ = first(h, "complete", lambda c, w: key_of(w["new"]) != key_of(write["new"]))
        if other:
            write["call"] = other["id"]
            return True
    return False


@fault("origin")
def undone_claim_stays(h):
    call, write = first(h, "claim", started)
    if write:
        h.transactions[call["transaction"]]["committed"] = False
    return write


@fault("result")
def worker_told_another_lease(h):
    call, write = first(h, "claim", started)
    if write:
        for row in call["results"]:
            row["lease"] += 1
    return write


@fault("result")
def worker_told_of_another_row(h):
    call, write = first(h, "claim", started)
    if write:
        call["results"].append({**write["new"], "resource": "not there"})
    return write


@fault("claimable")
def claimed_by_another_kind(h):
    call, write = first(h, "claim", started)
    if write:
        call["args"]["kind"] = "full" if any(write["new"][c] is not None for c in checker.CURSOR) else "incremental"
    return write


@fault("claimable")
def claimed_before_due(h):
    call, write = first(h, "claim", started)
    if write:
        instead(h, write["old"], {"due_at": write["new"]["updated_at"] + 3600 * SECOND, "requested_at": None})
    return write


@fault("claimable")
def parked_row_claimed(h):
    call, write = first(h, "claim", started)
    if write:
        instead(h, write["old"], {"due_at": None, "parked_reason": "paused"})
    return write


@fault("claimable")
def request_beats_rate_limit(h):
    call, write = first(h, "claim", started)
    if write:
        at = write["new"]["updated_at"]
        instead(h, write["old"], {"due_at": at + SECOND, "requested_at": at - 1, "status": "rate_limited",
                                  "lease_expires_at": None})
    return write


@fault("claimable")
def claimed_during_backoff(h):
    """A lease ran out for the second time in a row, just before."""
    call, write = first(h, "claim", started)
    if write:
        at = write["new"]["updated_at"]
        instead(h, write["old"], {"status": "syncing", "lease_expires_at": at - 1, "due_at": at - 1, "requested_at": None,
                                  "failures": 1, "failing_since": at - 1})
        set_from(h, write, "failures", 2)
    return write


@fault("claimable")
def requested_within_the_gap(h):
    call, write = first(h, "claim", started)
    if write:
        at = write["new"]["updated_at"]
        instead(h, write["old"], {"status": "idle", "lease_expires_at": None, "due_at": at + SECOND,
                                  "requested_at": at - 1, "last_sync_at": at - 2, "failures": 0, "failing_since": None})
        set_from(h, write, "failures", 0)
    return write


@fault("stale")
def ended_without_the_lease(h):
    """A claimed run, and a report that gave no lease."""
    call, write = first(h, "complete", lambda c, w: w["old"] is not None and w["old"]["status"] == "syncing"
                        and w["old"]["lease_expires_at"] > w["new"]["updated_at"])
    if write:
        instead(h, write["old"], {"lease_required": True})
        call["args"]["lease"] = None
    return write


@fault("columns")
def full_sync_renamed(h):
    call, write = first(h, "claim", lambda c, w: started(c, w) and w["new"]["full_sync_id"] is not None)
    if write:
        # far from the name of a full sync that was to begin anew
        set_from(h, write, "full_sync_id", write["new"]["full_sync_id"] - SECOND)
    return write


@fault("columns")
def requested_run_not_called_so(h):
    call, write = first(h, "claim", lambda c, w: started(c, w) and w["old"]["requested_at"] is not None)
    if write:
        set_from(h, write, "run_requested_at", None)
    return write


@fault("columns")
def trouble_outlives_a_completion(h):
    call, write = first(h, "complete")
    if write:
        instead(h, write["new"], {"troubled_at": write["new"]["updated_at"]})
    return write


@fault("claimable")
def claimed_from_paused_source(h):
    call, write = first(h, "claim", started)
    if write:
        for version in h.policy_writes:
            if version["source"] == write["new"]["source"]:
                version["paused_until"] = write["new"]["updated_at"] + SECOND
    return write


@fault("time")
def time_of_another_moment(h):
    call, write = first(h, "complete")
    if write:
        instead(h, write["new"], {"updated_at": call["begin"] - SECOND})
    return write


@fault("columns")
def renewal_changed_more(h):
    call, write = first(h, "renew")
    if write:
        set_from(h, write, "failures", write["new"]["failures"] + 1)
    return write


@fault("columns")
def update_of_another_lost(h):
    """A report wrote the row as it was before somebody's pause."""
    call, write = first(h, "complete", lambda c, w: w["new"]["requested_at"] is not None)
    if write:
        set_from(h, write, "requested_at", None)
    return write


# ------------------------------------------------------------ whole accounts

def reported_by(call):
    """The keys of the rows that a report is about."""
    return call["keys"][:1] if call["kind"] != "batch" else [key_of(r) for r in json.loads(call["args"]["results"])]


def sides(h, kinds, column, condition=lambda call, write: True):
    """Writes of rows by another row's report, which changed this column."""
    for kind in kinds:
        for call, write in places(h, kind, lambda c, w: w["old"][column] != w["new"][column] and condition(c, w)):
            if key_of(write["new"]) not in reported_by(call):
                yield call, write


def side(*args):
    return next(sides(*args), (None, None))


def left_out(h, found, results=lambda call, write: call["results"]):
    """A row that a call did not reach: one of these writes is missing.  Not each shows, if others wrote meanwhile."""
    for call, write in itertools.islice(found, 20):
        trial = pickle.loads(pickle.dumps(h))
        for faulty in (trial, h):
            mine = next(c for c in faulty.calls if c["id"] == call["id"])
            without(faulty, mine, next(w for w in faulty.writes if w["n"] == write["n"]))
            mine["results"] = results(mine, write)
            if faulty is h:
                return True
            judge = checker.Judge(trial)
            judge.check_call(mine)
            if not any(rule == "scope" for rule, _ in judge.complaints):
                break
    return False


def at_its_end(h, call, key, values):
    """One more write of a row, by this call."""
    row = h.final[key]
    new = {**row, **values}
    h.writes.append({"n": max(w["n"] for w in h.writes) + 1, "call": call["id"], "old": dict(row), "new": new})
    h.final[key] = new


def elsewhere(h, key):
    """A row of another account of the user."""
    return next((k for k in h.final if k[0] == key[0] and k[1] != key[1]), None)


@fault("claimable")
def sibling_claimed_while_limited(h):
    call, write = first(h, "claim", started)
    if write:
        instead(h, write["old"], {"limited_until": write["new"]["updated_at"] + SECOND})
    return write


def after_report(h, kind, concerned, condition):
    """A report, its write, and a claim that began later of another row that it concerned and that was there."""
    judge = checker.Judge(h)
    claims = [(c, r) for c in h.calls if c["kind"] == "claim" and counts(h, c) for r in c["results"]]
    for call, write in places(h, kind, condition):
        end = h.transactions[call["transaction"]]["commit_end"]
        for claim, row in claims:
            key = key_of(row)
            if claim["begin"] > end and key != key_of(write["new"]) and key in concerned(key_of(write["new"])) \
                    and judge.was_there(key, call["begin"], claim["begin"]):
                return call, write, claim, row
    return None, None, None, None


@fault("limit")
def limit_told_and_not_kept(h):
    """The worker was told of a longer limit than a claim obeyed."""
    call, write, claim, row = after_report(h, "limit", domain_of, lambda c, w: limit_of(c["args"])
                                           and key_of(w["new"]) == c["keys"][0])
    if write:
        call["args"]["retry_after"] = f"{(row['last_sync_at'] - write['new']['updated_at']) // SECOND + 2} s"
    return write


@fault("limit")
def limit_not_inherited_and_claimed(h):
    """A row that was connected after the report was claimed, and its sibling is limited for longer."""
    judge = checker.Judge(h)
    for claim, row, key in judge.claimed():
        made = judge.made_at(key, claim)
        for call, write in made and places(h, "limit", lambda c, w: limit_of(c["args"]) and key_of(w["new"]) == c["keys"][0]) or []:
            if h.transactions[call["transaction"]]["commit_end"] < made[0] and key_of(write["new"]) in domain_of(key) and any(
                    judge.was_there(k, call["begin"], made[1]) for k in domain_of(key) if k != key):
                call["args"]["retry_after"] = f"{(row['last_sync_at'] - write['new']['updated_at']) // SECOND + 2} s"
                return True
    return False


@fault("scope")
def limit_not_inherited(h):
    """The others were limited for long when the row was made."""
    judge = checker.Judge(h)
    for write in sorted(h.writes, key=lambda w: -w["n"]):
        call = judge.calls.get(write["call"])
        if write["old"] is not None or call is None or call["session"] < 0 or not counts(h, call):
            continue
        for key in domain_of(key_of(write["new"])):
            if key != key_of(write["new"]) and all(judge.states_during(key, call) or [None]):
                rewrite(h, key, lambda r: {**r, "limited_until": h.end + 60 * SECOND})
                return True
    return False


@fault("columns")
def limit_cut_short(h):
    call, write = first(h, "limit", lambda c, w: limit_of(c["args"]) and key_of(w["new"]) == c["keys"][0])
    if write:
        instead(h, write["old"], {"limited_until": write["new"]["limited_until"] + SECOND})
    return write


@fault("columns")
def limit_of_a_sibling_cut_short(h):
    call, write = side(h, ("limit", "batch"), "limited_until")
    if write:
        instead(h, write["old"], {"limited_until": write["new"]["limited_until"] + SECOND})
    return write


@fault("scope")
def sibling_not_limited(h):
    return left_out(h, sides(h, ("limit", "batch"), "limited_until"))


@fault("scope")
def limit_of_another_account(h):
    call, write = first(h, "limit", lambda c, w: limit_of(c["args"]))
    key = write and elsewhere(h, key_of(write["new"]))
    if key:
        at_its_end(h, call, key, {"limited_until": write["new"]["limited_until"], "updated_at": write["new"]["updated_at"]})
    return key


@fault("scope")
def limit_of_the_row_alone_told_to_others(h):
    call, write = side(h, ("limit",), "limited_until")
    if write:
        call["args"]["scope"] = "row"
    return write


@fault("columns")
def limit_lost_by_a_start(h):
    call, write = first(h, "start", started)
    if write:
        set_from(h, write, "limited_until", None)
        instead(h, write["old"], {"limited_until": write["new"]["updated_at"] + SECOND})
    return write


@fault("grant")
def parked_sibling_claimed(h):
    """Nobody had connected or resumed it."""
    call, write, claim, row = after_report(h, "fail", grant_of, lambda c, w: checker.reaches("fail", c["args"], w["new"])[0]
                                           and key_of(w["new"]) == c["keys"][0])
    if write:
        for other in h.calls:
            if other["kind"] in checker.UNPARKS and key_of(row) in other["keys"]:
                other["kind"] = "policy"
    return write


@fault("scope")
def sibling_not_parked(h):
    return left_out(h, sides(h, ("fail", "batch"), "parked_reason"))


def park(h, wrong):
    """A report that revoked a grant parks one row more, of which this is wrong; it was not parked before."""
    for call, write in sides(h, ("fail", "batch"), "parked_reason"):
        reported = reported_by(call)
        key = next((k for k, row in h.final.items() if wrong(key_of(write["new"]), k) and row["parked_reason"] is None
                    and not any(k in grant_of(own) for own in reported)), None)
        if key:
            at_its_end(h, call, key, {"due_at": None, "parked_reason": "auth", "updated_at": write["new"]["updated_at"]})
            return True
    return False


@fault("scope")
def another_account_parked(h):
    return park(h, lambda of, key: key[0] == of[0] and key[1] != of[1])


@fault("scope")
def another_provider_parked(h):
    return park(h, lambda of, key: key[:2] == of[:2] and key not in grant_of(of))


@fault("columns")
def reason_overwritten(h):
    call, write = side(h, ("fail", "batch"), "parked_reason")
    if write:
        instead(h, write["old"], {"due_at": None, "parked_reason": "paused"})
    return write


def two_runs(h, kind):
    """A start of a kind, and a claim that began later of a sibling, where one run at a time is allowed."""
    ones = [s for s in CAPS if CAPS[s] == 1]
    judge = checker.Judge(h)
    for call, write in places(h, kind, lambda c, w: started(c, w) and w["new"]["source"] in ones):
        end, key = h.transactions[call["transaction"]]["commit_end"], key_of(write["new"])
        siblings = {w["n"]: w for w in h.writes if w["new"] and key_of(w["new"]) != key and key_of(w["new"]) in domain_of(key)}
        begun = {c["id"] for c in h.calls if c["kind"] == "claim" and c["begin"] <= end}
        meanwhile = max((judge.committed(w)[1] for w in siblings.values() if w["call"] in begun), default=0)
        for claim, other in places(h, "claim", lambda c, w: w["n"] in siblings and started(c, w)):
            # The claimed run must have been in flight when it was committed, and cut_off() must leave the call
            # that ended it; and the judge does not hold against it what another claim that was made meanwhile
            # need not have seen.
            now, chain = judge.committed(other)[1], judge.chains[key_of(other["new"])]
            after = next((w for w in chain if w["n"] > other["n"]), None)
            if after and (key in judge.calls[after["call"]]["keys"] or judge.committed(after)[0] <= now):
                continue
            if claim["begin"] > max(end, meanwhile) and other["new"]["lease_expires_at"] > now:
                cut_off(h, write)
                instead(h, write["new"], {"lease_expires_at": other["new"]["lease_expires_at"] + 60 * SECOND})
                return True
    return False


@fault("cap")
def one_run_too_many(h):
    return two_runs(h, "claim")


@fault("cap")
def run_begun_by_hand_not_counted(h):
    return two_runs(h, "start")


@fault("scope")
def account_call_missed_a_row(h):
    return left_out(h, (place for kind in ("connect_account", "resume_account", "pause_account") for place in places(h, kind)))


@fault("scope")
def account_was_not_deleted(h):
    """A row is still there."""
    for call in h.calls:
        mine = [w for w in h.writes if w["call"] == call["id"]] if call["kind"] == "disconnect_account" else []
        for write in mine:
            key = key_of(write["old"])
            judge = checker.Judge(h)
            if counts(h, call) and call["snapshot"] == call["begin"] and \
                    judge.was_there(key, call["begin"] - checker.SLOP, call["begin"] - 1):
                cut_off(h, next(w for w in reversed(judge.chains[key]) if w["n"] < write["n"]))
                call["results"] = [r for r in call["results"] if key_of(r) != key]
                h.calls = h.calls if call in h.calls else h.calls + [call]
                return True
    return False


@fault("scope")
def request_of_an_account_missed_a_row(h):
    return left_out(h, places(h, "request_account"), lambda call, write: [
        r for r in call["results"] if (r["source"], r["resource"]) != key_of(write["new"])[2:]])


@fault("scope")
def account_call_wrote_another_account(h):
    for kind in ("connect_account", "resume_account", "pause_account"):
        call, write = first(h, kind)
        key = write and elsewhere(h, key_of(write["new"]))
        if key:
            at_its_end(h, call, key, {"updated_at": write["new"]["updated_at"]})
            return True
    return False


@fault("result")
def account_returned_in_another_order(h):
    for call in h.calls:
        if call["kind"] == "connect_account" and counts(h, call) and len(call["results"]) > 1:
            call["results"].reverse()
            return True
    return False


@fault("columns")
def pause_wrote_a_row_that_is_gone(h):
    for kind in ("resume_account", "pause_account"):
        call, write = first(h, kind)
        if write:
            instead(h, write["old"], {"due_at": None, "parked_reason": "gone"})
            return True
    return False


@fault("chain")
def disconnected_row_claimed(h):
    """Nobody had connected it again."""
    for call in h.calls:
        for deletion in [w for w in h.writes if w["call"] == call["id"] and w["new"] is None] \
                if call["kind"] == "disconnect_account" else []:
            key = key_of(deletion["old"])
            for claim, write in reversed(list(places(h, "claim", lambda c, w: started(c, w) and key_of(w["new"]) == key
                                                     and w["n"] > deletion["n"]))):
                h.writes = [w for w in h.writes if key_of(w["new"] or w["old"]) != key
                            or not deletion["n"] < w["n"] < write["n"]]
                return True
    return False


@fault("claimable")
def gone_row_claimed(h):
    call, write = first(h, "claim", started)
    if write:
        instead(h, write["old"], {"due_at": None, "parked_reason": "gone"})
    return write


@fault("scope")
def resource_missed(h):
    """It is listed no more, and was left as it was."""
    return left_out(h, places(h, "set_resources", lambda c, w: w["new"]["parked_reason"] == "gone"), lambda call, write: [
        r for r in call["results"] if r["resource"] != write["new"]["resource"]])


@fault("result")
def paused_resource_gone(h):
    call, write = first(h, "set_resources", lambda c, w: w["new"]["parked_reason"] == "gone")
    if write:
        instead(h, write["old"], {"due_at": None, "parked_reason": "paused"})
    return write


@fault("result")
def added_called_kept(h):
    for call in h.calls:
        for row in call["results"] if call["kind"] == "set_resources" and counts(h, call) else []:
            if row["change"] in ("added", "returned"):
                row["change"] = "kept"
                return True
    return False


@fault("columns")
def gone_revived(h):
    call, write = first(h, "revive", lambda c, w: c["args"]["reason"] != "gone")
    if write:
        instead(h, write["old"], {"parked_reason": "gone"})
    return write


@fault("error")
def deadlock(h):
    h.calls[len(h.calls) // 2].update(error="40P01", undone=True)
    return True


def judge_the_judge(history):
    """How many faults the judge missed; it must find nothing in the history as it is."""
    complaints = checker.check(history)
    for rule, words in complaints:
        print(f"the part of the history: {rule}: {words}")
    missed = len(complaints)
    kept = pickle.dumps(history)
    placed = 0
    for rule, put_in in FAULTS:
        faulty = pickle.loads(kept)
        if not put_in(faulty):
            print(f"no place for the fault {put_in.__name__}")
            continue
        placed += 1
        if rule not in {r for r, _ in checker.check(faulty)}:
            missed += 1
            print(f"the judge missed the fault {put_in.__name__}: no complaint about \"{rule}\"")
    print(f"the judge was given {placed} faults of {len(FAULTS)}, and missed {missed}")

    # some need what a short history may lack
    if placed < len(FAULTS) - 25:
        print("too few faults found a place")
        missed += 1
    return missed
