"""The server, the workers, and what a round of them costs."""
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from rivals import HERE, RIVALS, Ours, Queue, Router

# The same for all.  Nothing but a round itself may write: vacuum and
# checkpoints are run between rounds, see measure().
SETTINGS = {
    "shared_buffers": "2GB",
    "fsync": "on",
    "full_page_writes": "on",
    "max_wal_size": "20GB",
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "max_connections": "1000",
}


def die(message):
    sys.exit(f"test/bench/run: {message}")


class Server:
    """A cluster of our own in a temporary directory, run as nobody if we are root."""

    def __init__(self, settings):
        config = os.environ.get("PG_CONFIG", "pg_config")
        self.bin = subprocess.run([config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip()
        for name in [n for n in os.environ if n.startswith("PG") and not n.startswith("PG_")]:
            del os.environ[name]
        self.tmp = tempfile.TemporaryDirectory(prefix="syncstate-bench.")
        self.dir = self.tmp.name
        self.user = ()
        if os.getuid() == 0:
            subprocess.run(["chown", "nobody:", self.dir], check=True)
            self.user = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
        os.environ.update(PGHOST=self.dir, PGPORT="54321", PGUSER="postgres", LC_ALL="C.UTF-8",
                          PATH=f"{self.bin}:{os.environ['PATH']}")
        self.run("initdb", "-D", f"{self.dir}/data", "-U", "postgres", "-A", "trust", "-N")
        with open(f"{self.dir}/data/postgresql.conf", "a", encoding="utf-8") as conf:
            conf.write(f"listen_addresses = ''\nunix_socket_directories = '{self.dir}'\n")
            conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.run("pg_ctl", "-D", f"{self.dir}/data", "-l", f"{self.dir}/log", "-w", "start")
        self.sessions = {}

    def run(self, *command):
        subprocess.run([*self.user, *command], check=True, cwd=self.dir, stdout=subprocess.DEVNULL)

    def stop(self):
        for session in self.sessions.values():
            session.close()
        self.run("pg_ctl", "-D", f"{self.dir}/data", "-m", "immediate", "stop")
        self.tmp.cleanup()

    def db(self, name="postgres"):
        """A session of ours, kept; not one of those that are measured."""
        if name not in self.sessions:
            self.sessions[name] = Session(name)
        return self.sessions[name]


class Session:
    """psql, and what it answers."""

    def __init__(self, database):
        self.psql = subprocess.Popen(
            ["psql", "-XAtqF\t", "-v", "ON_ERROR_STOP=1", "-d", database],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.pid = int(self("SELECT pg_backend_pid()")[0][0])

    def __call__(self, sql):
        self.psql.stdin.write(f"{sql}\n;\n\\echo --done--\n")
        self.psql.stdin.flush()
        rows = []
        for line in self.psql.stdout:
            if line == "--done--\n":
                return rows
            rows.append(line.rstrip("\n").split("\t"))
        die(f"failed: {sql}")

    def close(self):
        self.psql.kill()
        self.psql.wait()


def cpu_of(pids):
    """CPU time of processes, in seconds, to the nanosecond."""
    total = 0
    for pid in pids:
        try:
            total += int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0])
        except FileNotFoundError:
            pass
    return total / 1e9


# ------------------------------------------------------------------ workers

def build_driver(server):
    """Compiles driver.c, and returns where it is."""
    config = os.environ.get("PG_CONFIG", "pg_config")
    include, lib = (subprocess.run([config, o], check=True, capture_output=True, text=True).stdout.strip()
                    for o in ("--includedir", "--libdir"))
    path = f"{server.dir}/driver"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-pthread", f"-I{include}", HERE / "driver.c",
                    "-o", path, f"-L{lib}", "-lpq"], check=True)
    return path


class Workers:
    """The clients of one rival with one batch size, connected for as long as we measure."""

    def __init__(self, rival, database, rows, **settings):
        self.rival, self.database, self.rows = rival, database, rows
        self.batch, self.clients, self.sync, self.cycles, self.interval = 1, 1, "off", rows, 900
        self.pause = 0          # seconds from one claim of a client to its next
        self.__dict__.update(settings)
        self.completed = self.held = self.double = self.lost = 0
        self.process = None

    def due(self, sql):
        """The statement, with the interval from one sync of a row to the next."""
        return sql.replace("interval '15 min'", f"interval '{self.interval} s'")

    def connect(self, driver):
        options = f"-c synchronous_commit={self.sync}"
        self.process = subprocess.Popen(
            self.rival.command(driver, self), env={**os.environ, "PGOPTIONS": options},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            die(f"workers of {self.rival.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def say(self, line):
        with contextlib.suppress(BrokenPipeError):      # it is missed at the answer
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def begin(self, what, n, ready=lambda: None):
        """Tells the workers what to do; they prepare, call ready, and do it."""
        self.say(f"{what} {n} {self.pause}")
        self.answer()
        ready()
        self.say("")

    def finish(self, what):
        result = self.answer()
        if what == "go":
            self.completed += result["cycles"]
        elif what == "hold":
            self.held += result["cycles"]
        self.double += result["double"]
        self.lost += result["lost"]
        return result

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Bench:
    forgotten = 0               # cycles, see --forget-one

    def __init__(self, due_in="0", **settings):
        self.due_in = due_in
        self.late = due_in.startswith("-")      # workers come when rows have been due for long
        self.settings = {**SETTINGS, **settings}
        self.server = Server(self.settings)
        self.driver = build_driver(self.server)
        self.workers = []
        self.databases = {}             # name: (rival, rows)
        self.server.db()("CREATE ROLE app_user")
        self.server.db()("CREATE ROLE router LOGIN")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for workers in self.workers:
            workers.stop()
        self.server.stop()

    def create(self, rival, rows):
        """A database without rows; see load()."""
        name = f"{rival.family}_{rows}"
        if name in self.databases:
            return name
        self.databases[name] = (rival, rows)
        if isinstance(rival, Router):
            self.create_router(name, rival.shards(name))
        for database in rival.shards(name):
            self.server.db()(f"CREATE DATABASE {database}")
            # Due in another order than rows lie in the table or in the primary key.
            self.server.db(database)(f"""
                CREATE EXTENSION syncstate;
                SELECT FROM syncstate.grant_worker('router');
                CREATE EXTENSION pg_walinspect;
                {rival.prelude};
                CREATE SCHEMA bench;
                CREATE VIEW bench.rows AS
                SELECT (lpad(to_hex(n * 2654435761 & 4294967295), 8, '0') || '-0000-4000-8000-'
                        || lpad(to_hex(n), 12, '0'))::uuid AS user_id,
                    now() + n * 7919 % {rows} * interval '1 us' + interval '{self.due_in}' AS due_at,
                    'CP' || md5(n::text) || 'GAU=' AS cursor
                FROM generate_series(1::bigint, {rows}) AS n""")
        return name

    def create_router(self, name, shards):
        """A database without rows, before others that will have them."""
        places = ", ".join(f"({n}, 'host={self.server.dir} port={os.environ['PGPORT']} dbname={shard}')"
                           for n, shard in enumerate(shards))
        self.server.db()(f"CREATE DATABASE {name}")
        self.server.db(name)(f"""
            SET client_min_messages = warning;
            CREATE EXTENSION syncstate_router CASCADE;
            CREATE EXTENSION pg_walinspect;
            INSERT INTO syncstate.shard VALUES {places};
            CREATE USER MAPPING FOR PUBLIC SERVER syncstate OPTIONS (user 'router', password 'none asked')""")

    def add(self, rival, rows, **settings):
        """Workers, whom load() connects.  "cycles" is how many they make in a round."""
        rival = RIVALS[rival]
        workers = Workers(rival, self.create(rival, rows), rows, **settings)
        self.workers.append(workers)
        return workers

    def load(self):
        """Fills all tables.  Our workers have been waiting for work by then, and have their marks."""
        for workers in self.workers if not self.late else ():
            if isinstance(workers.rival, (Ours, Queue)):
                workers.connect(self.driver)
            if isinstance(workers.rival, Queue):
                workers.answer()        # it made its tables
            elif isinstance(workers.rival, Ours):
                workers.begin("read", 1)
                workers.finish("read")
        for name, (rival, rows) in self.databases.items():
            start = time.time()
            rival.fill(self.server, name, next(w for w in self.workers if w.database == name))
            for database in rival.shards(name):
                self.server.db(database)("VACUUM (FREEZE, ANALYZE)")
            print(f"{time.time() - start:.0f} s to load {rows} rows for {rival.title}", file=sys.stderr)
        for workers in self.workers if not self.late else ():
            if workers.process is None:
                workers.connect(self.driver)
        self.server.db()("CHECKPOINT")

    def fall_due(self, workers, n, step):
        """Rows that are due later fall due soon, so many microseconds apart; those of a list, before.  Returns when."""
        db, table = self.server.db(workers.database), workers.rival.table
        lead = -3600 if workers.rival.list else 2
        while True:
            start = db(f"SELECT now() + interval '{lead} s'")[0][0]
            db(f"""
                UPDATE {table} AS s SET due_at = timestamptz '{start}' + r.n * {step} * interval '1 us'
                FROM (SELECT user_id, row_number() OVER (ORDER BY due_at) AS n FROM {table}
                      ORDER BY due_at LIMIT {n}) AS r
                WHERE s.user_id = r.user_id""")
            db("VACUUM")
            left = float(db(f"SELECT extract(epoch FROM timestamptz '{start}' - clock_timestamp())")[0][0])
            if left > 0 or lead < 0:
                time.sleep(max(left - 0.3, 0))
                return start
            lead *= 2

    def measure(self, workers, cycles=None, what="go", vacuum=True, meanwhile=None):
        """One round: what it cost, for each of its cycles.  With "meanwhile", as long as that takes."""
        db = self.server.db(workers.database)
        shards = [self.server.db(name) for name in workers.rival.shards(workers.database)]
        cycles = 0 if meanwhile else cycles or workers.cycles
        before, after = {}, {}

        def look(into):
            pids = db("SELECT pid, backend_type = 'client backend', application_name = 'worker' AND "
                      "datname = current_database(), usename = 'router' AND "
                      "starts_with(datname, current_database() || '_shard') FROM pg_stat_activity")
            into["backends"] = cpu_of(pid for pid, client, worker, shard in pids if worker == "t")
            into["shards"] = cpu_of(pid for pid, client, worker, shard in pids if shard == "t")
            into["background"] = cpu_of(pid for pid, client, worker, shard in pids if client == "f")
            into["tables"] = db("""
                SELECT coalesce(sum(n_tup_upd), 0), coalesce(sum(n_tup_hot_upd), 0),
                    coalesce(sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read), 0)
                FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid)""")[0]
            # the indexes that claims walk by are those that are not unique
            into["visits"] = db("""
                SELECT coalesce(sum(idx_tup_read), 0), coalesce(sum(idx_tup_fetch), 0),
                    coalesce(sum(idx_tup_read) FILTER (WHERE indexrelname = 'sync_state_requested'), 0)
                FROM pg_stat_user_indexes JOIN pg_index USING (indexrelid) WHERE NOT indisunique""")[0]

        def ready():
            before["lsn"] = db("SELECT pg_current_wal_insert_lsn()")[0][0]
            look(before)

        workers.begin(what, cycles, ready)
        if meanwhile:
            meanwhile()
            workers.say("")
        result = workers.finish(what)
        look(after)
        # a commit, so that all of it is on disk, where pg_walinspect reads it
        db("SELECT pg_logical_emit_message(true, '', '')")
        wal = db(f"SELECT sum(count), sum(record_size), sum(fpi_size) FROM "
                 f"pg_get_wal_stats('{before['lsn']}', pg_current_wal_flush_lsn())")[0]
        updated, hot, buffers, visits, fetched, requested = (
            int(a) - int(b) for a, b in zip(after["tables"] + after["visits"], before["tables"] + before["visits"]))
        vacuumed = cpu_of(shard.pid for shard in shards)
        if vacuum:
            for shard in shards:
                shard("VACUUM")
        n = result["cycles"] if what in ("go", "hold") else cycles * workers.clients
        return {
            "rival": workers.rival.name, "rows": workers.rows, "batch": workers.batch,
            "clients": workers.clients, "sync": workers.sync, "pause": workers.pause, **result,
            "rate": n / result["seconds"],
            "cpu": (after["backends"] - before["backends"]) / n * 1e6,
            "shards": (after["shards"] - before["shards"]) / n * 1e6,
            "background": (after["background"] - before["background"]) / n * 1e6,
            "vacuum": (cpu_of(shard.pid for shard in shards) - vacuumed) / n * 1e6,
            "wal_records": float(wal[0] or 0) / n,
            "wal_bytes": float(wal[1] or 0) / n,
            "wal_fpi": float(wal[2] or 0) / n,
            "hot": hot / updated if updated else None,
            "buffers": buffers / n,
            "visits": visits / n,
            "fetched": fetched / n,
            "requested": requested / n,
        }

    def dismiss(self, workers):
        """Ends all sessions of a database's workers: whose CPU time was added up must not go in a later round."""
        workers.stop()
        while self.server.db(workers.database)("SELECT FROM pg_stat_activity WHERE application_name = 'worker' "
                                               "AND datname = current_database()"):
            time.sleep(0.01)

    def compare(self, cells, rounds, prepare=lambda workers: None, **options):
        """Rounds of all workers by turns, A B C A B C, after one that is not counted."""
        results = []
        for number in range(rounds + 1):
            for workers in cells:
                if self.late:
                    workers.connect(self.driver)
                prepare(workers)
                result = self.measure(workers, **options)
                if self.late:
                    self.dismiss(workers)
                if number > 0:
                    results.append({**result, "round": number})
        return results

    def verify(self):
        """Every cycle was counted once, and no row was had by two at a time."""
        for name, (rival, _) in self.databases.items():
            workers = [w for w in self.workers if w.database == name]
            told = sum(w.completed + w.held for w in workers) - self.forgotten
            held = sum(w.held for w in workers)
            found = [sum(int(x) for x in counts) for counts in zip(*(
                self.server.db(database)(rival.count.format(table=rival.table))[0]
                for database in rival.shards(name)))]
            if found != [told, held]:
                die(f"{rival.title}: the workers made {told} claims and hold {held} rows, the table says {found}")
            double, lost = sum(w.double for w in workers), sum(w.lost for w in workers)
            if rival.safe and (double, lost) != (0, 0):
                die(f"{rival.title}: {double} rows were claimed by two, {lost} were lost to those who had them")
