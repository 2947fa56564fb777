"""The judge: decides over a history of calls whether the promises were kept.

A history is what the sessions of load.py logged (calls, transactions), what
the triggers logged (writes, in their order for each row), and the table at the
end.  check() returns complaints, as pairs of a rule and words about it; it
knows the contract and nothing of the C code.

The rules:
    chain       each write of a row goes on from the write before it; the last
                one is what the table holds
    origin      every write was made by a call that was committed, and each
                call made just the writes that it may
    result      what a call returned is what it wrote
    lease       no start while another's live lease was on the row; a started
                row has a greater fencing number than ever before
    holder      the same, from what the workers were told alone
    stale       no report was accepted under a lease that was not the row's
    refused     nobody was told that a lease was lost, or a row missing, when
                it was not
    claimable   a claim took only rows that were due or requested, not parked,
                and no row of a paused source
    cursor      a cursor was lost or moved back by explicit calls only
    request     each request was followed by a start, which was made for a request
    columns     a call changed only the columns that are its own
    scope       what a report says of an account, and what is called for an
                account, reached all rows of it and no others; a row that was
                made while its siblings are limited is limited too
    limit       the same from what the workers were told alone: no claim that
                began after a limit was reported took a row of its quota domain
                before its end
    grant       nor one of an account whose grant was reported to be revoked,
                before it was connected or resumed
    cap         no claim made the runs of a quota domain more than max_in_flight
    time        times are those of the call
    waiting     no row waited while claims with room for it came by
    left        in the end, nothing that was due or requested was left
    error       no SQLSTATE but those of the contract, and 40001; through a
                router also 08006
"""
import bisect
import collections
import datetime
import json

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
MICROSECOND = datetime.timedelta(microseconds=1)
SECOND = 1_000_000

TIMES = ("updated_min", "token_issued_at", "last_full_sync_at", "due_at", "requested_at", "run_requested_at", "lease_expires_at",
         "last_sync_at", "last_successful_sync_at", "created_at", "updated_at", "failing_since", "limited_until",
         "troubled_at")
CURSOR = ("sync_token", "history_id", "updated_min")

# By how much the clocks of client and server may seem to differ.
SLOP = 20_000

# A claim that begins this long after a row became claimable sweeps, or its
# session has swept since: a sweep starts no sooner than a second after the
# last one.
SWEEP = int(1.05 * SECOND)
# A sweep visits 2,000 index entries per claim, dead ones too.
SWEEP_CLAIMS = 5

SOURCES = ["google_calendar", "google_tasks", "google_gmail", "google_contacts"]
ACCOUNTS = ["", "work"]
RESOURCES = ["", "more", "third"]

# Policies of the sources that stay as they are.
PROVIDERS = {"google_contacts": "people"}
AUTH_FAILURES = {"google_calendar": 1, "google_tasks": 2, "google_gmail": 1, "google_contacts": 1}
CAPS = {"google_calendar": 2, "google_gmail": 1}

# Of load.POLICY.  max_failures is 1 now and then.
REQUEST_GAP = SECOND // 2
RETRY_BASE, RETRY_CAP = SECOND, 2 * SECOND
MAX_FAILURES, PARK_AFTER = 4, SECOND
RESYNC_SPREAD = SECOND
RATE_LIMIT_WAIT = SECOND

RUN = {"status", "lease_expires_at", "lease_required", "run_requested_at", "error_message", "updated_at"}
LOSS = set(CURSOR) | {"token_issued_at", "full_sync_id", "page_token", "progress_done", "progress_total"}
# What each call may change.
COLUMNS = {
    "start": RUN | LOSS | {"lease", "syncs_started", "last_sync_at", "requested_at", "due_at", "failures", "failing_since",
                           "limited_until", "troubled_at"},
    "complete": RUN | LOSS | {"due_at", "last_successful_sync_at", "items_synced", "failures", "failing_since",
                              "token_losses", "last_full_sync_at", "changes_seen", "seconds_watched", "troubled_at"},
    "fail": RUN | {"due_at", "parked_reason", "failures", "failing_since", "troubled_at"},
    "limit": RUN | {"due_at", "limited_until"},
    "limited": {"limited_until", "updated_at"},
    "revoked": {"due_at", "parked_reason", "updated_at"},
    "clear": RUN | LOSS | {"due_at", "parked_reason", "token_losses", "troubled_at"},
    "renew": {"lease_expires_at", "updated_at"},
    "checkpoint": {"lease_expires_at", "page_token", "progress_done", "progress_total", "updated_at",
                   "failures", "failing_since"},
    "release": RUN | {"due_at"},
    "request": {"requested_at", "updated_at"},
    "connect": RUN | {"due_at", "parked_reason", "requested_at", "failures", "failing_since", "token_losses"},
    "pause": {"due_at", "parked_reason", "updated_at"},
    "gone": {"due_at", "parked_reason", "updated_at"},
    "resume": RUN | {"due_at", "parked_reason", "failures", "failing_since", "token_losses"},
    "revive": RUN | {"due_at", "parked_reason", "failures", "failing_since", "token_losses"},
    "hopeless": RUN | {"due_at", "parked_reason", "failures", "failing_since", "troubled_at"},
}
OUTCOMES = {"completed": "complete", "failed": "fail", "rate_limited": "limit", "released": "release"}
MAKES_ROW = {"start", "complete", "fail", "limit", "clear", "connect", "update"}
# What an account call does to each row.
OF_ACCOUNT = {"connect_account": "connect", "pause_account": "pause", "resume_account": "resume",
              "request_account": "request", "disconnect_account": "disconnect"}
DELETES = {"disconnect", "disconnect_account", "forget"}
# After these a row that was parked may be claimed.
UNPARKS = {"connect", "resume", "revive", "update", "connect_account", "resume_account", "set_resources"}


def moment(text):
    return (datetime.datetime.fromisoformat(text) - EPOCH) // MICROSECOND


def row_of(values):
    """A row with its times as microseconds."""
    if values is None:
        return None
    row = dict(values)
    for column in TIMES:
        if row[column] is not None:
            row[column] = moment(row[column])
    return row


def key_of(row):
    return (row["user_id"], row["account"], row["source"], row["resource"])


def key_order(key):
    return (key[0], key[1], SOURCES.index(key[2]), key[3])


def provider_of(source):
    return PROVIDERS.get(source, "google")


def account_keys(user, account, provider=None):
    """The keys that an account may have, in their order."""
    return [(user, account, source, resource) for source in SOURCES for resource in RESOURCES
            if provider in (None, provider_of(source))]


def domain_of(key):
    """All keys of its quota domain."""
    return [(*key[:3], resource) for resource in RESOURCES]


def grant_of(key):
    """All keys of the account that are under the same grant."""
    return account_keys(key[0], key[1], provider_of(key[2]))


def limit_of(report):
    """How long a limit lasts; 0 if it is none of the account."""
    if report.get("scope", "account") != "account":
        return 0
    wait = report.get("retry_after")
    return RATE_LIMIT_WAIT if wait is None else int(wait.removesuffix(" s")) * SECOND


def reaches(kind, report, new):
    """What a report did beside what it did to its own row: (effect, keys, until)."""
    key = key_of(new)
    if kind == "limit" and limit_of(report):
        return "limited", domain_of(key), new["updated_at"] + limit_of(report)
    if kind == "fail" and report.get("kind") == "auth" and report.get("scope", "account") == "account" \
            and new["failures"] >= AUTH_FAILURES[key[2]]:
        return "revoked", grant_of(key), None
    return None, [], None


def is_reached(row, effect, until):
    """Whether there is nothing for the effect to do to a row."""
    return row["parked_reason"] is not None if effect == "revoked" else (row["limited_until"] or 0) >= until


def alone(write, report, effects):
    """A write as the row's own report made it, without what the others' reports did to the row."""
    old, new = write["old"], dict(write["new"])
    ends = [until for _, effect, keys, until in effects if effect == "limited" and write["key"] in keys]
    if ends and new["limited_until"] == max(old["limited_until"] or 0, *ends):
        new["limited_until"] = max(old["limited_until"] or 0, new["updated_at"] + limit_of(report)) \
            if report["outcome"] == "rate_limited" and limit_of(report) else old["limited_until"]
    if new["parked_reason"] == "auth" and old["parked_reason"] is None and any(
            effect == "revoked" and write["key"] in keys and own is not write for own, effect, keys, _ in effects):
        new.update(parked_reason=None, due_at=new["updated_at"] + SECOND)
    return {**write, "new": new}


class History:
    def __init__(self, calls, transactions, writes, policy_writes, final, end):
        self.calls = calls                  # dicts, see load.py; results are rows
        self.transactions = transactions    # by id
        self.writes = writes                # dicts of n, call, old, new
        self.policy_writes = policy_writes  # dicts of n, call, source, paused_until, wait
        self.final = final                  # rows by key
        self.end = end                      # when the table was read

    def project(self, keys):
        """The part of the history that is about some rows."""
        keys = set(keys)
        calls = []
        kinds = ("claim", "policy", "pause_source", "resume_source", "resync", "setup")
        wrote = collections.Counter(w["call"] for w in self.writes if key_of(w["new"] or w["old"]) in keys)
        limited = {w["call"] for w in self.policy_writes}
        for call in self.calls:
            part = dict(call)
            part["keys"] = [k for k in call["keys"] if k in keys]
            part["results"] = [dict(r) if isinstance(r, dict) else r for r in call["results"]
                               if not (isinstance(r, dict) and "user_id" in r) or key_of(r) in keys]
            if call["kind"] == "revive" and call["error"] is None:
                part["results"] = [wrote[call["id"]]]
            # of the claims that found nothing, some are witnesses enough
            if call["kind"] == "claim" and not part["results"] and call["session"] > 1 and call["id"] not in wrote:
                continue
            if call["keys"] and not part["keys"] and call["id"] in limited:
                part.update(kind="policy", results=[])
            if part["keys"] or part["kind"] in kinds:
                calls.append(part)
        return History(calls, {k: dict(t) for k, t in self.transactions.items()},
                       [dict(w) for w in self.writes if key_of(w["new"] or w["old"]) in keys],
                       [dict(w) for w in self.policy_writes],
                       {k: dict(r) for k, r in self.final.items() if k in keys}, self.end)


class Judge:
    def __init__(self, history):
        self.history = history
        self.complaints = []
        self.calls = {c["id"]: c for c in history.calls}
        self.calls_of = collections.defaultdict(list)
        for call in history.calls:
            self.calls_of[call["transaction"]].append(call)
        self.resyncs_made = [c for c in history.calls if c["kind"] == "resync" and self.counts(c)]
        self.chains = collections.defaultdict(list)
        self.writes_of = collections.defaultdict(list)
        self.states_of = {}
        for write in sorted(history.writes, key=lambda w: w["n"]):
            write["key"] = key_of(write["new"] or write["old"])
            self.chains[write["key"]].append(write)
            self.writes_of[write["call"]].append(write)

    def complain(self, rule, words, key=None):
        self.complaints.append((rule, f"{words}" + (
            f" (row {key[0][-3:]} '{key[1]}' {key[2]} '{key[3]}')" if key else "")))

    def transaction(self, call):
        return self.history.transactions[call["transaction"]]

    def counts(self, call):
        """Whether what the call did was committed."""
        return not call["undone"] and self.transaction(call)["committed"]

    def check(self):
        self.check_errors()
        self.check_chains()
        for call in self.history.calls:
            if call["kind"] != "setup":
                self.check_call(call)
        for write in self.history.writes:
            call = self.calls.get(write["call"])
            if call is None or not self.counts(call):
                self.complain("origin", f"write {write['n']} was made by call {write['call']}, "
                              + ("which nobody made" if call is None else "which was undone"), write["key"])
        self.check_numbers()
        self.check_holders()
        self.check_refusals()
        self.check_requests()
        self.check_source_pauses()
        self.check_limits()
        self.check_grants()
        self.check_caps()
        self.check_waiting()
        self.check_left()
        return self.complaints

    # ------------------------------------------------------- what was said

    def check_errors(self):
        for call in self.history.calls:
            if call["error"] in (None, "40001", "08006"):
                continue
            if call["error"] in ("PT404", "PT409") and call["kind"] not in (
                    "claim", "batch", "policy", "forget", "set_resources", *OF_ACCOUNT):
                continue
            self.complain("error", f"{call['kind']} failed with {call['error']}: {call.get('message', '')}")

    def check_chains(self):
        for key, chain in self.chains.items():
            last = None
            for write in chain:
                if write["old"] != last:
                    self.complain("chain", f"write {write['n']} does not go on from the one before it: "
                                  + differences(last, write["old"]), key)
                last = write["new"]
            if last != self.history.final.get(key):
                self.complain("chain", "the table holds something else than was written last: "
                              + differences(last, self.history.final.get(key)), key)
        for key in self.history.final:
            if key not in self.chains:
                self.complain("chain", "nobody made this row", key)

    # ----------------------------------------------------- call by call

    def check_call(self, call):
        if not self.counts(call):
            return
        writes = self.writes_of[call["id"]]
        kind = call["kind"]
        if kind == "claim":
            self.check_claim(call, writes)
        elif kind == "batch":
            self.check_batch(call, writes)
        elif kind in ("disconnect", "forget"):
            for write in writes:
                if write["new"] is not None or write["key"] not in call["keys"]:
                    self.complain("origin", f"{kind} made another write than a deletion", write["key"])
            if kind == "disconnect" and call["results"] != [len(writes) == 1]:
                self.complain("result", f"disconnect returned {call['results']}, and deleted {len(writes)} rows",
                              call["keys"][0])
        elif kind in OF_ACCOUNT:
            self.check_account(call, writes)
        elif kind == "set_resources":
            self.check_resources(call, writes)
        elif kind == "revive":
            for write in writes:
                if write["old"] is None or write["new"] is None or write["key"] not in call["keys"]:
                    self.complain("origin", "revive_syncs made, deleted or wrote a row of another source", write["key"])
                else:
                    self.check_write(call, kind, write, None)
            if call["results"] != [len(writes)] or len(writes) > call["args"]["max_rows"]:
                self.complain("result", f"revive_syncs({call['args']['max_rows']}) returned {call['results']}, "
                              f"and wrote {len(writes)} rows")
        elif kind in ("policy", "pause_source", "resume_source", "resync"):
            if writes:
                self.complain("origin", f"{kind} wrote rows")
        else:
            self.check_single(call, writes)

    def check_single(self, call, writes):
        kind, key = call["kind"], call["keys"][0]
        others = [w for w in writes if w["key"] != key]
        writes = [w for w in writes if w["key"] == key]
        if others and kind not in ("limit", "fail"):
            self.complain("origin", f"{kind} wrote another row than its own", key)
            return
        if writes and writes[0]["old"] is None:
            if kind not in MAKES_ROW or call["args"].get("lease") is not None:
                self.complain("origin", f"{kind} made a row", key)
            self.check_inherited(call, kind, writes)
            writes = writes[1:]
        if any(w["new"] is None for w in writes) or len(writes) > 1 or (not writes and kind != "request"):
            self.complain("origin", f"{kind} made {len(writes)} writes", key)
            return
        if kind == "request":
            for write in writes:
                self.check_write(call, "request", write, None)
            return
        write = writes[0]
        if call["results"] != [write["new"]]:
            self.complain("result", f"{kind} returned something else than it wrote: "
                          + differences(call["results"][0] if call["results"] else None, write["new"]), key)
        self.check_write(call, kind, write, call["args"])
        self.check_reached(call, [(write, *reaches(kind, call["args"], write["new"]))], others)

    def check_reached(self, call, effects, writes):
        """What reports did to other rows; effects are those of reaches(), with the report's own write."""
        for write in writes:
            old, new, key = write["old"], write["new"], write["key"]
            if old is None or new is None:
                self.complain("origin", f"{call['kind']} made or deleted another row", key)
                continue
            # a batch may do both to a row at once
            limited = {**new, "due_at": old["due_at"], "parked_reason": old["parked_reason"]}
            revoked = {**new, "limited_until": old["limited_until"]}
            for effect, alone in ("limited", limited), ("revoked", revoked):
                if {**alone, "updated_at": None} == {**old, "updated_at": None}:
                    continue
                ends = [until for own, e, keys, until in effects if e == effect and key in keys and own["key"] != key]
                if not ends:
                    self.complain("scope", f"{call['kind']} wrote a row that its account's rows are not among", key)
                    continue
                self.check_write(call, effect, {**write, "new": alone}, None)
                if effect == "limited" and new["limited_until"] not in [max(end, old["limited_until"] or 0) for end in ends]:
                    self.complain("columns", f"limited by call {call['id']} until {new['limited_until']} instead of {ends}; "
                                  f"before until {old['limited_until']}", key)
            if new == {**old, "updated_at": new["updated_at"]}:
                self.complain("columns", f"{call['kind']} wrote a row that it did not change", key)
        for own, effect, keys, until in effects:
            for key in keys:
                if key == own["key"]:
                    continue
                last = [w["new"] for w in self.writes_of[call["id"]] if w["key"] == key][-1:]
                states = last or self.states_during(key, call)
                if states and all(state is not None and not is_reached(state, effect, until) for state in states):
                    self.complain("scope", f"the row was not {effect} by call {call['id']}: limited until "
                                  f"{states[-1]['limited_until']}, to be {until}, parked {states[-1]['parked_reason']}", key)

    def check_inherited(self, call, kind, writes):
        """A row that a call made is limited as the others of its quota domain are."""
        made, last = writes[0]["new"], writes[-1]["new"]
        least, most = 0, 0
        for key in domain_of(key_of(made)):
            if key == key_of(made):
                continue
            ends = [state["limited_until"] or 0 if state else 0 for state in self.states_during(key, call)]
            least = max(least, min(ends, default=0))
            most = max(most, max(ends, default=2 ** 62))
        has = last["limited_until"] or 0
        if least > last["updated_at"] and has < least or kind != "limit" and has > most:
            self.complain("scope", f"{kind} made a row that is limited until {has}, and the others are until "
                          f"{least}, {most} at most", key_of(made))

    def check_account(self, call, writes):
        kind = call["kind"]
        what = OF_ACCOUNT[kind]
        for write in writes:
            old, new = write["old"], write["new"]
            if write["key"] not in call["keys"]:
                self.complain("scope", f"{kind} wrote a row that is not the account's", write["key"])
            elif old is None or (new is None) != (what == "disconnect"):
                self.complain("origin", f"{kind} made another write than its own", write["key"])
            elif what != "disconnect":
                self.check_write(call, what, write, None)
                if what in ("pause", "resume") and old["parked_reason"] == "gone":
                    self.complain("columns", f"{kind} wrote a row that is gone", write["key"])
        written = [write["key"] for write in writes]
        if kind == "request_account":
            returned = [(call["args"]["user_id"], call["args"]["account"], row["source"], row["resource"])
                        for row in call["results"]]
            for key in set(written) - set(returned):
                self.complain("result", f"{kind} wrote the row and did not return it", key)
        else:
            returned = [key_of(row) for row in call["results"]]
            side = "old" if what == "disconnect" else "new"
            if sorted(written) != sorted(returned) or any(write[side] not in call["results"] for write in writes):
                self.complain("result", f"{kind} returned something else than it wrote: {len(written)} rows, "
                              f"and {len(returned)} returned")
        if returned != [key for key in call["keys"] if key in returned]:
            self.complain("result", f"{kind} did not return each row once and in their order")
        for key in call["keys"]:
            states = self.states_during(key, call)
            if key in returned:
                if kind == "request_account" and states and \
                        all(state is None or state["parked_reason"] is not None for state in states):
                    self.complain("result", f"{kind} returned a row that no sync comes for", key)
            elif states and all(state is not None and (
                    what in ("connect", "disconnect") or
                    what == "request" and state["parked_reason"] is None or
                    what in ("pause", "resume") and state["parked_reason"] != "gone") for state in states):
                self.complain("scope", f"{kind} missed the row", key)

    def check_resources(self, call, writes):
        kind = "set_sync_resources"
        listed = call["args"]["resources"].strip("{}").replace('"', "").split(",")
        answers = {row["resource"]: row["change"] for row in call["results"]}
        if [row["resource"] for row in call["results"]] != sorted(answers):
            self.complain("result", f"{kind} did not return each resource once and in their order")

        def answer(state, resource):
            reason = state and state["parked_reason"]
            if resource == "":
                return None
            if resource in listed:
                return "added" if state is None else "returned" if reason == "gone" else "kept"
            return None if state is None or reason == "gone" else "kept" if reason == "paused" else "gone"

        for key in {write["key"] for write in writes} - set(call["keys"]):
            self.complain("scope", f"{kind} wrote a row of another quota domain", key)
        for key in call["keys"]:
            change = answers.pop(key[3], None)
            mine = [write for write in writes if write["key"] == key]
            if change != (answer(mine[0]["old"], key[3]) if mine else change if change in (None, "kept") else ""):
                self.complain("result", f"{kind} said {change}, and made {len(mine)} writes", key)
            elif mine and mine[-1]["new"] is None or len(mine) > 1 + (change == "added"):
                self.complain("origin", f"{kind} made {len(mine)} writes", key)
            elif change == "added":
                self.check_inherited(call, kind, mine)
                for write in mine[1:]:
                    self.check_write(call, "connect", write, None)
                if mine[-1]["new"]["requested_at"] is None:
                    self.complain("columns", f"{kind} made a row without a request", key)
            elif mine:
                self.check_write(call, {"returned": "connect", "gone": "gone"}.get(change, "kept"), mine[0], None)
            states = self.states_during(key, call)
            if states and change not in [answer(state, key[3]) for state in states]:
                self.complain("scope", f"{kind} said {change} of a row that was {states[0] and states[0]['parked_reason']}", key)
        if answers:
            self.complain("result", f"{kind} returned others: {', '.join(answers)}")

    def check_claim(self, call, writes):
        started = []
        for write in writes:
            old, new = write["old"], write["new"]
            if old is None or new is None:
                self.complain("origin", "a claim made or deleted a row", write["key"])
            elif new["status"] == "syncing":
                started.append(new)
                self.check_write(call, "start", write, None)
            else:
                self.check_write(call, "hopeless", write, None)
        returned = {key_of(row): row for row in call["results"]}
        if len(returned) != len(call["results"]):
            self.complain("result", "a claim returned a row twice")
        for row in started:
            if returned.get(key_of(row)) != row:
                self.complain("result", "a claim started a row, and returned it otherwise or not at all", key_of(row))
        for key in returned.keys() - {key_of(row) for row in started}:
            self.complain("result", "a claim returned a row that it did not start", key)
        for row in started:
            kind = "incremental" if any(row[c] is not None for c in CURSOR) else "full"
            if call["args"]["kind"] not in ("any", kind):
                self.complain("claimable", f"a claim of kind {call['args']['kind']} took the row for a sync that is {kind}",
                              key_of(row))

    def check_batch(self, call, writes):
        reports = collections.defaultdict(list)
        for report in json.loads(call["args"]["results"]):
            reports[key_of(report)].append(report)
        applied = {}            # rows, each by one report
        others = []
        for write in writes:
            old, new, mine = write["old"], write["new"], reports[write["key"]]
            if old is None or new is None:
                self.complain("origin", "report_syncs made or deleted a row", write["key"])
            elif write["key"] in applied or not (old["status"] == "syncing" and new["status"] != "syncing"):
                others.append(write)
            elif old["lease"] not in [r["lease"] for r in mine]:
                self.complain("stale", "report_syncs applied a report with a lost lease", write["key"])
            else:
                report = next(r for r in mine if r["lease"] == old["lease"])
                applied[write["key"]] = write, OUTCOMES[report["outcome"]], report
        effects = [(write, *reaches(kind, report, write["new"])) for write, kind, report in applied.values()]
        for write, kind, report in applied.values():
            self.check_write(call, kind, alone(write, report, effects), report)
        self.check_reached(call, effects, others)
        returned = [key_of(row) for row in call["results"]]
        if sorted(returned) != sorted(applied):
            self.complain("result", "report_syncs returned other rows than it applied reports to")
        for row in call["results"]:
            if [row] != [w["new"] for w in writes if w["key"] == key_of(row)][-1:]:
                self.complain("result", "report_syncs returned something else than it wrote", key_of(row))

    def check_write(self, call, kind, write, args):
        """One transition."""
        old, new, key = write["old"], write["new"], write["key"]
        at = new["updated_at"]
        if not call["begin"] - SLOP <= at <= call["end"] + SLOP:
            self.complain("time", f"{kind} was made between {call['begin']} and {call['end']}, and says {at}", key)
        if kind in COLUMNS:
            for column in old:
                if old[column] != new[column] and column not in COLUMNS[kind]:
                    self.complain("columns", f"{kind} changed {column} from {old[column]} to {new[column]}", key)
        if (new["status"] == "syncing") != (new["lease_expires_at"] is not None) or \
                (new["due_at"] is None) != (new["parked_reason"] is not None) or \
                new["run_requested_at"] is not None and new["status"] != "syncing":
            self.complain("columns", f"{kind} left a row that is not legal", key)
        if new["troubled_at"] not in (old["troubled_at"], at) and not (kind in ("complete", "update") and new["troubled_at"] is None):
            self.complain("columns", f"{kind} changed troubled_at from {old['troubled_at']} to {new['troubled_at']}", key)

        # who held it
        live = old["status"] == "syncing" and old["lease_expires_at"] > at
        if kind in ("start", "hopeless") or (kind == "update" and new["lease"] > old["lease"]):
            if live:
                self.complain("lease", f"{call['kind']} took a row under the live lease {old['lease']}", key)
            if kind != "hopeless" and new["lease"] <= old["lease"]:
                self.complain("lease", f"start under lease {new['lease']} after {old['lease']}", key)
        elif new["lease"] != old["lease"]:
            self.complain("lease", f"{kind} changed the lease from {old['lease']} to {new['lease']}", key)
        if args is not None and args.get("lease") is None and kind in ("complete", "fail", "limit") and \
                live and old["lease_required"]:
            self.complain("stale", f"{kind} without a lease ended the run of lease {old['lease']}", key)
        if args is not None and args.get("lease") is not None and \
                not (old["status"] == "syncing" and old["lease"] == args["lease"]):
            self.complain("stale", f"{kind} with lease {args['lease']} was accepted; the row was {old['status']}, "
                          f"lease {old['lease']}", key)

        # whether it was due
        if call["kind"] == "claim":
            opens = opens_between(old)
            if kind == "start" and not new["lease_required"]:
                self.complain("columns", "a claim did not say that the run takes its lease", key)
            if opens is None or opens[0] > at:
                self.complain("claimable", f"claimed at {at} by call {call['id']}: due at {old['due_at']}, "
                              f"parked {old['parked_reason']}, requested {old['requested_at']}, {old['status']}", key)

        # the cursor
        explicit = kind == "clear" or (kind == "update" and "sync_token" in json.loads(args["changes"]))
        starts = kind == "start" or kind == "update" and new["lease"] > old["lease"]
        may_resync, must_resync = self.resyncs(call, old) if starts else (False, False)
        planned = starts and (key[2] == "google_contacts" or may_resync)
        if must_resync and any(new[c] is not None for c in CURSOR):
            self.complain("cursor", "a start kept the cursor, long after a full sync of everybody was to be", key)
        if not explicit and not planned:
            for column in CURSOR:
                if old[column] is None or old[column] == new[column]:
                    continue
                if kind != "complete":
                    self.complain("cursor", f"{kind} changed {column} from {old[column]} to {new[column]}", key)
                elif new[column] is None:
                    self.complain("cursor", f"a completion lost {column}", key)
                elif column == "history_id" and int(new[column]) < int(old[column]) or \
                        column == "updated_min" and new[column] < old[column]:
                    self.complain("cursor", f"{column} moved back from {old[column]} to {new[column]}", key)
        if kind == "clear" and any(new[c] is not None for c in CURSOR):
            self.complain("cursor", "clear_sync_token left a cursor", key)
        if kind == "complete":
            if args.get("sync_token") is not None and new["sync_token"] != args["sync_token"]:
                self.complain("cursor", "the cursor of a completion was not kept", key)
            if args.get("history_id") is not None and (
                    new["history_id"] is None or int(new["history_id"]) < int(args["history_id"])):
                self.complain("cursor", "the history id of a completion was not kept", key)
            if new["items_synced"] != args.get("items_synced", 0):
                self.complain("columns", "the items of a completion were not kept", key)

        # what follows
        if kind == "start":
            failed = old["status"] == "syncing"
            is_full = all(new[c] is None for c in CURSOR)
            name = None if not is_full else new["lease"] if any(old[c] is not None for c in CURSOR) else \
                old["full_sync_id"] or new["lease"]
            limited = old["limited_until"] if (old["limited_until"] or 0) > at else None
            if new["requested_at"] is not None or new["failures"] != old["failures"] + failed or \
                    new["last_sync_at"] != at or new["limited_until"] != limited or \
                    new["run_requested_at"] != old["requested_at"] or \
                    new["full_sync_id"] != name and not (may_resync and is_full and new["full_sync_id"] == new["lease"]):
                self.complain("columns", "a start did not do what a start does", key)
        elif kind == "complete":
            if new["status"] != "idle" or new["failures"] or new["last_successful_sync_at"] != at or \
                    new["full_sync_id"] is not None or new["troubled_at"] is not None or \
                    new["due_at"] is not None and new["due_at"] <= at:
                self.complain("columns", "a completion did not do what a completion does", key)
        elif kind == "fail":
            if new["status"] != "error" or new["failures"] != old["failures"] + 1 or \
                    new["due_at"] is not None and new["due_at"] <= at:
                self.complain("columns", "a failure did not do what a failure does", key)
        elif kind == "limit":
            if new["status"] != "rate_limited" or new["due_at"] is not None and new["due_at"] < at + SECOND:
                self.complain("columns", "a rate limit did not do what a rate limit does", key)
            limited = max(old["limited_until"] or 0, at + limit_of(args)) if limit_of(args) else old["limited_until"]
            if new["limited_until"] != limited:
                self.complain("columns", f"a limit changed limited_until from {old['limited_until']} to {new['limited_until']} "
                              f"instead of {limited}", key)
        elif kind == "revoked":
            if old["parked_reason"] is not None or new["parked_reason"] != "auth":
                self.complain("columns", f"a revoked grant parked as {new['parked_reason']} what was "
                              f"parked as {old['parked_reason']}", key)
        elif kind == "gone":
            if old["parked_reason"] in ("paused", "gone") or new["parked_reason"] != "gone":
                self.complain("columns", f"a resource that is gone was parked as {new['parked_reason']} and had been "
                              f"as {old['parked_reason']}", key)
        elif kind == "kept":
            self.complain("columns", "a resource was kept, and written", key)
        elif kind in ("renew", "checkpoint"):
            if new["lease_expires_at"] is None or new["lease_expires_at"] < at + SECOND or \
                    kind == "checkpoint" and (
                        new["lease_expires_at"] < old["lease_expires_at"] or
                        new["failures"] != (0 if new["page_token"] != old["page_token"] else old["failures"])):
                self.complain("columns", f"{kind} did not renew", key)
        elif kind == "release":
            if new["status"] != "idle" or new["due_at"] is not None and not at <= new["due_at"] <= at + SECOND:
                self.complain("columns", "a release did not do what a release does", key)
        elif kind == "pause":
            if new["parked_reason"] != "paused":
                self.complain("columns", "a pause did not park", key)
        elif kind in ("connect", "resume"):
            stays = kind == "connect" and old["parked_reason"] == "paused"
            if (new["parked_reason"] is not None) != stays or new["failures"] or \
                    kind == "connect" and new["requested_at"] is None or \
                    (old["status"] in ("syncing", "rate_limited")) and new["status"] != old["status"]:
                self.complain("columns", f"{kind} did not do what a {kind} does", key)
        elif kind == "revive":
            reason = call["args"]["reason"]
            if old["parked_reason"] is None or new["parked_reason"] is not None or new["failures"] or \
                    (old["parked_reason"] != reason if reason else old["parked_reason"] in ("paused", "gone")) or \
                    not at <= new["due_at"] <= at + SECOND // 2:
                self.complain("columns", "revive_syncs did not do what it does", key)
        elif kind == "request":
            if old["requested_at"] is not None or old["parked_reason"] is not None or new["requested_at"] is None:
                self.complain("columns", "a request wrote where it had nothing to say", key)
        elif kind == "hopeless":
            if old["status"] != "syncing" or new["parked_reason"] != "failures":
                self.complain("columns", "a claim changed a row that it did not start", key)

    def resyncs(self, call, row):
        """Whether a start by this call may, and whether it must, begin a full sync because everybody is to have one."""
        begin = min(call["begin"], call["snapshot"])
        known = [c for c in self.resyncs_made if row["source"] in c["sources"] and c["begin"] <= call["end"] + SLOP]
        if not known:
            return False, False
        last = max(known, key=lambda c: c["begin"])
        return (any(row[column] is None or row[column] <= c["end"] + SLOP for c in known
                    for column in ("last_full_sync_at", "last_sync_at")),
                all(self.transaction(c)["commit_end"] + SLOP < begin for c in known)
                and last["end"] + RESYNC_SPREAD + SLOP < begin
                and (row["last_full_sync_at"] is None or row["last_full_sync_at"] < last["begin"] - SLOP))

    # ---------------------------------------------------- leases as a whole

    def check_numbers(self):
        """Fencing numbers only grow, whether or not the row was deleted meanwhile."""
        for key, chain in self.chains.items():
            greatest = 0
            for write in chain:
                old, new = write["old"], write["new"]
                if new is None or (old is not None and new["lease"] == old["lease"]):
                    continue
                if new["status"] == "syncing" and new["lease"] <= greatest:
                    self.complain("lease", f"start under lease {new['lease']}, after a start under {greatest}", key)
                greatest = max(greatest, new["lease"])

    def check_holders(self):
        """What the workers were told: no two of them held a row at once."""
        told = collections.defaultdict(list)    # rows, in the order of their times
        deletions = collections.defaultdict(list)
        for call in self.history.calls:
            if not self.counts(call):
                continue
            for row in call["results"]:
                if isinstance(row, dict) and "lease" in row:
                    told[key_of(row)].append(row)
            if call["kind"] in DELETES:
                for key in call["keys"]:
                    deletions[key].append((call["begin"] - SLOP, self.transaction(call)["commit_end"] + SLOP))
        for key, rows in told.items():
            rows.sort(key=lambda row: (row["updated_at"], row["lease"]))
            given = {}          # when each lease was
            holder = None
            for row in rows:
                at = row["updated_at"]
                if row["status"] != "syncing":
                    if holder is not None and row["lease"] >= holder["lease"]:
                        holder = None
                    continue
                if row["last_sync_at"] == at:
                    if holder is not None and holder["lease_expires_at"] > at and row != holder and \
                            not any(begin <= at and end >= holder["updated_at"] for begin, end in deletions[key]):
                        self.complain("holder", f"lease {row['lease']} was given at {at}, and lease "
                                      f"{holder['lease']} until {holder['lease_expires_at']}", key)
                    if at != given.get(row["lease"], at):
                        self.complain("holder", f"lease {row['lease']} was given twice", key)
                    given[row["lease"]] = at
                holder = row

    def states_during(self, key, call):
        """The rows that a call may have met; empty if that cannot be known."""
        begin, end = min(call["begin"], call["snapshot"]), call["end"]
        mine = []
        for earlier in self.calls_of.get(call["transaction"], []):
            if earlier["id"] == call["id"]:
                break
            if earlier["undone"] and key in earlier["keys"] + [key_of(r) for r in earlier["results"]
                                                               if isinstance(r, dict) and "lease" in r]:
                return []       # what it wrote is in no log
            mine += [w["new"] for w in self.writes_of.get(earlier["id"], []) if w["key"] == key]
        return mine + [state for state, since, until in self.states(key) if since <= end and until >= begin]

    def states(self, key):
        """All that a row was, each with the times between which it may have been that."""
        if key not in self.states_of:
            chain = self.chains.get(key, [])
            times = [self.committed(write) for write in chain]
            self.states_of[key] = list(zip(
                [chain[0]["old"] if chain else None] + [write["new"] for write in chain],
                [0] + [begin for begin, end in times], [end for begin, end in times] + [float("inf")]))
        return self.states_of[key]

    def committed(self, write):
        """Between which times the write was committed."""
        call = self.calls.get(write["call"])
        if call is None:
            return (0, float("inf"))
        transaction = self.transaction(call)
        return (transaction["commit_begin"], transaction["commit_end"])

    def check_refusals(self):
        for call in self.history.calls:
            if call["error"] not in ("PT404", "PT409"):
                if call["kind"] == "batch" and call["error"] is None and not call.get("doubtful"):
                    given = {key_of(row) for row in call["results"]}
                    for report in json.loads(call["args"]["results"]):
                        if key_of(report) not in given and key_of(report) in call["keys"]:
                            self.check_refusal(call, key_of(report), report["lease"], "left out")
                continue
            for key in call["keys"][:1]:
                self.check_refusal(call, key, call["args"].get("lease"), call["error"])

    def check_refusal(self, call, key, lease, what):
        begin = min(call["begin"], call["snapshot"])
        states = self.states_during(key, call)
        if not states:
            return
        if what == "PT404":
            if all(state is not None for state in states):
                self.complain("refused", f"{call['kind']} was told that the row does not exist", key)
        elif lease is not None:
            if all(state is not None and state["status"] == "syncing" and state["lease"] == lease
                   for state in states):
                self.complain("refused", f"{call['kind']} with lease {lease} was {what}, and held the row", key)
        elif all(state is None or state["status"] != "syncing" or state["lease_expires_at"] < begin - SLOP
                 for state in states):
            self.complain("refused", f"{call['kind']} was refused, and nobody held the row", key)

    # ------------------------------------------------------------ requests

    def requests(self):
        """The calls that requested a sync, each with a row that it was about."""
        for call in self.history.calls:
            if not self.counts(call):
                continue
            if call["kind"] in ("request", "connect"):
                yield call, call["keys"][0]
            elif call["kind"] == "connect_account":
                yield from ((call, key_of(row)) for row in call["results"])
            elif call["kind"] == "request_account":
                yield from ((call, (*call["keys"][0][:2], row["source"], row["resource"])) for row in call["results"])
            elif call["kind"] == "set_resources":
                yield from ((call, (*call["keys"][0][:3], row["resource"])) for row in call["results"]
                            if row["change"] in ("added", "returned"))

    def check_requests(self):
        for call, key in self.requests():
            chain = self.chains.get(key, [])
            if call["results"] == [False]:
                states = self.states_during(key, call)
                if states and all(state is None or state["parked_reason"] is None for state in states):
                    self.complain("request", "a request was refused, and the row was not parked", key)
                continue
            own = [i for i, w in enumerate(chain) if w["call"] == call["id"]]
            if own:
                later = chain[own[-1] + 1:]
            else:
                # it relied on an earlier request: a start that had been made by then does not count,
                # nor one that came before that request
                later = [w for w in chain if self.calls.get(w["call"]) is None
                         or self.calls[w["call"]]["end"] >= call["begin"]]
                relied_on = next((i for i, w in enumerate(later) if any(
                    state is not None and state["requested_at"] is not None
                    for state in (w["old"], w["new"]))), len(later))
                later = later[relied_on:]
            served = next((w for w in later if w["new"] is None
                           or w["old"] is not None and w["new"]["lease"] > w["old"]["lease"]), None)
            if served is None:
                last = self.history.final.get(key)
                if last is not None and last["parked_reason"] is None:
                    self.complain("request", f"call {call['id']} requested a sync at {call['begin']}, "
                                  "and none came", key)
            elif served["new"] is not None and served["old"]["requested_at"] is None:
                self.complain("request", f"call {call['id']} requested a sync at {call['begin']}, and the next start, "
                              f"at {served['new']['updated_at']}, knew of no request", key)

    # ------------------------------------------------------------- waiting

    def check_source_pauses(self):
        """A claim that began after a pause was committed obeys it."""
        versions = self.policy_versions()
        for call in self.history.calls:
            if call["kind"] != "claim" or not self.counts(call):
                continue
            for row in call["results"]:
                current, changing = self.policy_during(versions[row["source"]], call)
                if changing or current["paused_until"] is None:
                    continue
                if current["paused_until"] > row["updated_at"]:
                    self.complain("claimable", f"claimed at {row['updated_at']}, and the source was paused until "
                                  f"{current['paused_until']}", key_of(row))

    # ------------------------------------------------- accounts as a whole

    def told(self):
        """The rows that reports told of, each with the report and its call."""
        for call in self.history.calls:
            if not self.counts(call):
                continue
            if call["kind"] in ("limit", "fail"):
                for row in call["results"]:
                    yield call, call["kind"], call["args"], row
            elif call["kind"] == "batch":
                reports = {}
                for report in json.loads(call["args"]["results"]):
                    reports.setdefault((key_of(report), report["lease"]), report)
                for row in call["results"]:
                    report = reports.get((key_of(row), row["lease"]))
                    if report is not None:
                        yield call, OUTCOMES[report["outcome"]], report, row

    def reported(self, effect):
        """For each row, what reports said of its account: (begin, when it was committed, until)."""
        said = collections.defaultdict(list)
        for call, kind, report, row in self.told():
            what, keys, until = reaches(kind, report, row)
            if what == effect:
                for key in keys:
                    said[key].append((call["begin"], self.transaction(call)["commit_end"], until))
        return said

    def claimed(self):
        for call in self.history.calls:
            if call["kind"] == "claim" and self.counts(call):
                for row in call["results"]:
                    yield call, row, key_of(row)

    def was_there(self, key, since, until):
        return all(state is not None for state, first, last in self.states(key) if first <= until and last >= since)

    def made_at(self, key, call):
        """Between which times the row was made that a claim took; None: earlier than the history."""
        made = None
        for write in self.chains.get(key, []):
            maker = self.calls.get(write["call"])
            if write["old"] is None and maker is not None:
                made = (min(maker["begin"], maker["snapshot"]), self.committed(write)[1])
            if write["call"] == call["id"]:
                return made
        return None

    def check_limits(self):
        said = self.reported("limited")
        for call, row, key in self.claimed():
            for begin, end, until in said[key]:
                if end >= call["begin"] or until <= row["last_sync_at"]:
                    continue
                made = self.made_at(key, call)
                # a row that was made later has the limit of those that were there
                if self.was_there(key, begin, call["begin"]) or made and made[0] > end and any(
                        self.was_there(sibling, begin, made[1]) for sibling in domain_of(key) if sibling != key):
                    self.complain("limit", f"claimed at {row['last_sync_at']} by call {call['id']}, and its account was "
                                  f"limited until {until}, as was told by {end}", key)

    def check_grants(self):
        said = self.reported("revoked")
        unparks = collections.defaultdict(list)
        for call in self.history.calls:
            if call["kind"] in UNPARKS and self.counts(call):
                for key in call["keys"]:
                    unparks[key].append((call["begin"], self.transaction(call)["commit_end"]))
        for call, row, key in self.claimed():
            last = max((s for s in said[key] if s[1] < call["begin"]), default=None, key=lambda s: s[1])
            if last and self.was_there(key, last[0], call["begin"]) and not any(
                    begin <= call["end"] and end >= last[0] for begin, end in unparks[key]):
                self.complain("grant", f"claimed at {row['last_sync_at']} by call {call['id']}, and its account's grant "
                              f"was revoked, as was told by {last[1]}", key)

    def check_caps(self):
        """Runs that surely were in flight at once, where a claim made the last of them."""
        runs = collections.defaultdict(list)
        for key, chain in self.chains.items():
            for write, after in zip(chain, chain[1:] + [None]):
                row = write["new"]
                if key[2] not in CAPS or row is None or row["status"] != "syncing":
                    continue
                call = self.calls.get(write["call"])
                if call is not None:
                    began = self.committed(write)[1]
                    ended = min(row["lease_expires_at"], self.committed(after)[0] if after else row["lease_expires_at"])
                    runs[key[:3]].append((call["kind"] == "claim", call["begin"], began, ended, key))
        for domain, all_runs in runs.items():
            for is_claim, begin, now, ended, key in all_runs:
                if not is_claim or ended <= now:
                    continue
                claims = [run for run in all_runs if run[0] and run[2] <= now < run[3]]
                # of the others those that all claims that were made meanwhile must have seen
                first = min(run[1] for run in claims if run[2] >= begin)
                others = [run for run in all_runs if not run[0] and run[2] < first and run[3] > now]
                if len(claims) + len(others) > CAPS[domain[2]]:
                    self.complain("cap", f"{len(claims)} runs that were claimed and {len(others)} others were in flight "
                                  f"at {now}", key)

    def policy_versions(self):
        versions = collections.defaultdict(list)
        for write in sorted(self.history.policy_writes, key=lambda w: w["n"]):
            versions[write["source"]].append({**write, "committed": self.committed(write)})
        return versions

    @staticmethod
    def policy_during(versions, call):
        """What was in force when the call began, and whether that changed meanwhile."""
        current = {"paused_until": None}
        changing = False
        for version in versions:
            if version["committed"][1] < call["begin"]:
                current = version
            elif version["committed"][0] <= call["end"]:
                changing = True
        return current, changing

    def check_waiting(self):
        """No row that nobody touched waited while claims with room came by."""
        touches = collections.defaultdict(list)
        source_touches = collections.defaultdict(list)
        claims = collections.defaultdict(list)
        for call in self.history.calls:
            transaction = self.transaction(call)
            span = (call["begin"], max(call["end"], transaction.get("commit_end", call["end"])))
            if call["kind"] == "claim":
                if call["error"] is not None:
                    for source in call["sources"]:
                        source_touches[source].append(span)
                elif call["spare"]:
                    for source in call["sources"]:
                        claims[source].append((call["snapshot"], call["end"], call["session"]))
                for row in call["results"]:
                    touches[key_of(row)].append(span)
            elif call["sources"]:
                for source in call["sources"]:
                    source_touches[source].append(span)
            else:
                for key in call["keys"]:
                    touches[key].append(span)
        versions = self.policy_versions()
        for source, written in versions.items():
            for version in written:
                call = self.calls.get(version["call"])
                if call is not None:
                    source_touches[source].append((call["begin"], version["committed"][1]))
        for spare in claims.values():
            spare.sort()
        for key, chain in self.chains.items():
            written = []
            for write in chain:
                call = self.calls.get(write["call"])
                if call is not None:
                    span = (call["begin"], max(call["end"], self.committed(write)[1]))
                    touches[key].append(span)
                    written.append((span[1], write))
            quiet_since = 0
            state = None
            at = 0
            # where runs at a time are few, the others have to do with it
            near = [k for k in domain_of(key) if k == key or key[2] in CAPS]
            for begin, end in sorted(sum((touches[k] for k in near), source_touches[key[2]])) + [
                    (self.history.end, self.history.end)]:
                if begin > quiet_since and quiet_since > 0 and begin - quiet_since > SWEEP:
                    while at < len(written) and written[at][0] <= quiet_since:
                        state = written[at][1]["new"]
                        at += 1
                    self.check_wait(key, state, quiet_since, begin, claims[key[2]], versions[key[2]])
                quiet_since = max(quiet_since, end)

    def check_wait(self, key, state, since, until, claims, versions):
        if state is None or state["due_at"] is None:
            return
        claimable = opens_between(state)[1]
        paused = None
        for version in versions:
            if version["committed"][1] <= since:
                paused = version
        if paused is not None and paused["paused_until"] is not None:
            claimable = max(claimable, paused["paused_until"] + paused["wait"])
        for sibling in domain_of(key) if key[2] in CAPS else []:
            for other, begin, end in self.states(sibling):
                if begin <= since < end and other is not None and other["status"] == "syncing":
                    claimable = max(claimable, other["lease_expires_at"])
        claimable = max(claimable, since)
        first = bisect.bisect_left(claims, (claimable + SWEEP,))
        by_session = collections.Counter(session for begin, end, session in claims[first:]
                                         if begin < until and end < until)
        if by_session and max(by_session.values()) > SWEEP_CLAIMS:
            self.complain("waiting", f"was claimable from {claimable} to {until}, and {max(by_session.values())} claims "
                          "of one session that had room for it passed it over", key)

    def check_left(self):
        for key, row in self.history.final.items():
            opens = opens_between(row)
            if opens is not None and opens[1] <= self.history.end:
                self.complain("left", f"{row['status']}, due at {row['due_at']}, requested {row['requested_at']}", key)


def opens_between(row):
    """(earliest, latest) time from which a claim takes the row, were its source not paused; None: it is parked."""
    if row["due_at"] is None:
        return None
    failing = row["failures"] > 0
    running = row["status"] == "syncing"
    lo = hi = row["due_at"]
    if running:
        end = row["lease_expires_at"]
        wait = min(RETRY_CAP, RETRY_BASE * 2 ** min(row["failures"], 30)) if failing else 0
        lasts = failing and end - (row["failing_since"] or end) >= PARK_AFTER
        lo = max(lo, end + (0 if lasts else wait // 2))
        hi = max(hi, end + (0 if lasts and row["failures"] + 1 >= MAX_FAILURES else wait))
    if row["requested_at"] is not None and row["status"] != "rate_limited":
        asked = row["requested_at"]
        if row["last_sync_at"] is not None:
            asked = max(asked, min(row["last_sync_at"], asked) + (max(REQUEST_GAP, RETRY_BASE) if failing else REQUEST_GAP))
        lost = row["lease_expires_at"] if running and failing else 0
        lo = min(lo, max(asked, lost and lost + RETRY_BASE // 2))
        hi = min(hi, max(asked, lost and lost + RETRY_BASE))
    if running:
        lo, hi = (max(t, row["lease_expires_at"]) for t in (lo, hi))
    return tuple(max(t, row["limited_until"] or 0) for t in (lo, hi))


def differences(a, b):
    if a is None or b is None:
        return f"{'no row' if a is None else 'a row'} / {'no row' if b is None else 'a row'}"
    return ", ".join(f"{c} {a[c]} / {b[c]}" for c in a if a[c] != b.get(c))


def check(history):
    return Judge(history).check()
