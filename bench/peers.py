#!/usr/bin/python3
"""walkeep beside its peers, in one run on one machine: ratios mean something, absolute figures depend on the disk and the neighbours.

usage: bench/peers.py path/to/walkeep [--only receive,push,get,backup,restore,replay,redis] [--runs 3]

Each comparison alternates between the contenders and takes each one's best run. The scratch server (PostgreSQL 15, a pgbench database of
about 1.5 GB and 1 GB of steady WAL after a base backup) is built once and kept in the cache folder. Peers: PostgreSQL's own pg_receivewal and
pg_basebackup, and pgbackrest: the one on PATH, or the program that $PGBACKREST names. For Redis: redis-cli --rdb and a replica, of Redis 7.0 as tests/setup.sh installs it.
"""

import argparse
import fcntl
import filecmp
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PG = "/usr/lib/postgresql/15/bin"
SCALE = 100
WAL_BYTES = 1 << 30
SEGMENT = 16 << 20
PGBACKREST = os.environ.get("PGBACKREST", "pgbackrest")


def version_of_pgbackrest():
    """`pgbackrest 2.45`: what the program itself prints, so that the table cannot name another one than was measured."""
    try:
        printed = subprocess.run([PGBACKREST, "version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"pgbackrest of unknown version ({error})"
    return printed.strip().replace("pgBackRest", "pgbackrest") or "pgbackrest of unknown version"


PGBACKREST_NAME = version_of_pgbackrest()


def cache_folder(root):
    return os.environ.get("WALKEEP_CACHE") or ("/var/cache/walkeep" if root else os.path.expanduser("~/.cache/walkeep"))


def become_postgres():
    """PostgreSQL refuses to run as root; this file may lie where user postgres cannot read it, so its text goes along."""
    if os.geteuid() != 0:
        return cache_folder(False)
    bench = os.path.join(cache_folder(True), "bench")
    os.makedirs(bench, exist_ok=True)
    user = pwd.getpwnam("postgres")
    os.chown(bench, user.pw_uid, user.pw_gid)
    source = open(__file__, encoding="utf-8").read()
    os.execvp("setpriv", ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--reset-env", "env",
                          f"WALKEEP_CACHE={cache_folder(True)}", f"PGBACKREST={PGBACKREST}", "/usr/bin/python3", "-c", source, *sys.argv[1:]])


class Run:
    """What one command cost."""

    def __init__(self, seconds, usage):
        self.seconds = seconds
        self.cpu = usage.ru_utime + usage.ru_stime
        self.peak = usage.ru_maxrss * 1024


def start(command, **more):
    return subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)


def timed(command, allow=(0,), **more):
    """Runs to the end. A temporary file takes the output, so that a full pipe stops nobody."""
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, **more)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in allow:
            output.seek(0)
            sys.exit(f"{' '.join(map(str, command))}\nended with {process.returncode}\n{output.read().decode(errors='replace')[-3000:]}")
        return Run(took, usage)


def output_of(command, **more):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def bytes_under(path):
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def megabytes(count):
    return f"{count / 1e6:,.0f} MB"


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One PostgreSQL over a data directory, reached over a Unix socket in its own folder."""

    def __init__(self, data, folder):
        self.data, self.folder, self.port = data, folder, free_port()
        self.env = dict(os.environ, PGHOST=folder, PGPORT=str(self.port), PGUSER="postgres", PGDATABASE="postgres")

    def start(self, *settings, wait=True):
        options = f"-p {self.port} -k {self.folder} -c listen_addresses='' " + " ".join(f"-c {setting}" for setting in settings)
        output_of([f"{PG}/pg_ctl", "-D", self.data, "-l", f"{self.folder}/server.log", "-o", options, "-t", "600",
                   "-w" if wait else "-W", "start"])

    def stop(self, mode="fast"):
        if os.path.exists(f"{self.data}/postmaster.pid"):
            subprocess.run([f"{PG}/pg_ctl", "-D", self.data, "-m", mode, "-w", "stop"], capture_output=True, check=False)

    def sql(self, statement):
        return output_of([f"{PG}/psql", "-XAtqc", statement], env=self.env)

    def conninfo(self):
        return f"host={self.folder} port={self.port} user=postgres dbname=postgres"


# ---- the scratch server -------------------------------------------------------------------------------------------------------------

SETTINGS = """
fsync = off
shared_buffers = 1GB
max_wal_size = 100GB
checkpoint_timeout = 1d
wal_keep_size = 100GB
max_replication_slots = 50
max_wal_senders = 20
autovacuum = off
bgwriter_lru_maxpages = 0
max_connections = 50
"""


def build(home):
    """pgbench's tables, a base backup, then WAL with few full-page images: the steady state between checkpoints."""
    fresh = home + ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh)
    data = f"{fresh}/data"
    print(f"building the scratch server in {home}: some minutes, once", flush=True)
    output_of([f"{PG}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "--data-checksums", "--no-sync"])
    with open(f"{data}/postgresql.conf", "a", encoding="utf-8") as file:
        file.write(SETTINGS)
    with tempfile.TemporaryDirectory(prefix="walkeep-bench-", dir="/tmp") as folder:
        server = Server(data, folder)
        try:
            server.start()
            output_of([f"{PG}/pgbench", "-i", "-q", "-s", SCALE], env=server.env)
            server.sql("checkpoint")
            server.sql("select pg_create_physical_replication_slot('backlog', true)")
            output_of([f"{PG}/pg_basebackup", "-D", f"{fresh}/base", "-X", "none", "-c", "fast", "--no-sync"], env=server.env)
            server.sql("alter system set full_page_writes = off")
            server.sql("select pg_reload_conf()")
            server.sql("select pg_switch_wal()")
            begin = server.sql("select pg_current_wal_lsn()")
            while lsn(server.sql("select pg_current_wal_lsn()")) < lsn(begin) + WAL_BYTES:
                output_of([f"{PG}/pgbench", "-n", "-M", "prepared", "-c", "8", "-j", "2", "-T", "10"],
                          env=dict(server.env, PGOPTIONS="-c synchronous_commit=off"))
            server.sql("select pg_create_restore_point('end of the backlog')")
            end = server.sql("select pg_current_wal_lsn()")
            server.sql("select pg_switch_wal()")
            server.sql("alter system reset full_page_writes")
            server.sql("checkpoint")
            slot = server.sql("select restart_lsn from pg_replication_slots where slot_name = 'backlog'")
        finally:
            server.stop()
    with open(f"{fresh}/meta.json", "w", encoding="utf-8") as file:
        json.dump({"slot": slot, "begin": begin, "end": end}, file)
    shutil.rmtree(home, ignore_errors=True)
    os.rename(fresh, home)


# ---- one comparison -----------------------------------------------------------------------------------------------------------------

class Table:
    def __init__(self):
        self.lines = []

    def add(self, what, contender, runs, against=None, limit=None, note=""):
        """`against` is the peer's best time; `limit` what the ratio may be."""
        best = min(run.seconds for run in runs)
        cpu = min(run.cpu for run in runs)
        peak = max(run.peak for run in runs)
        ratio = f"{best / against:.2f}" if against else ""
        verdict = "" if limit is None or not against else ("≤ " if best / against <= limit else "**>** ") + f"{limit}"
        digits = 3 if best < 0.2 else 2
        line = f"| {what} | {contender} | {best:.{digits}f} | {cpu:.{digits}f} | {peak / 1e6:.0f} | {ratio} | {verdict} | {note} |"
        self.lines.append(line)
        print(line, flush=True)
        return best

    def heading(self):
        print("| what | contender | seconds | CPU s | peak MB | ratio | wanted | |\n| --- | --- | ---: | ---: | ---: | ---: | --- | --- |", flush=True)


class Bench:
    def __init__(self, walkeep, home, runs):
        self.walkeep, self.runs = walkeep, runs
        self.meta = json.load(open(f"{home}/meta.json", encoding="utf-8"))
        self.home = home
        self.scratch = tempfile.mkdtemp(prefix="walkeep-bench-", dir=os.path.dirname(home))
        self.sockets = tempfile.mkdtemp(prefix="walkeep-bench-", dir="/tmp")
        self.server = Server(f"{home}/data", self.sockets)
        self.table = Table()
        self.sites = 0
        self.children = []

    def __enter__(self):
        try:
            self.server.start()
            # Slots that an aborted run left behind.
            self.server.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name <> 'backlog'")
        except SystemExit:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()
        self.server.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def folder(self, name):
        path = f"{self.scratch}/{name}"
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path, mode=0o700)
        return path

    def slot(self, name):
        """A slot of its own that holds the whole backlog."""
        self.server.sql(f"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}'")
        self.server.sql(f"select pg_copy_physical_replication_slot('backlog', '{name}')")

    def site(self, level="auto"):
        """A fresh walkeep installation; the environment that names it."""
        self.sites += 1
        site = self.folder(f"site-{self.sites}")
        env = dict(os.environ, WALKEEP_CONFIG=f"{site}/walkeep.toml")
        output_of([self.walkeep, "init", "--cluster", "main", "--connection", self.server.conninfo(), "--repository", f"file://{site}/repository",
                   "--state-dir", f"{site}/state", "--config", f"{site}/walkeep.toml"], env=env)
        if level != "auto":
            text = open(f"{site}/walkeep.toml", encoding="utf-8").read()
            assert 'level = "auto"' in text
            open(f"{site}/walkeep.toml", "w", encoding="utf-8").write(text.replace('level = "auto"', f"level = {level}"))
        return site, env

    def receive(self):
        end = self.meta["end"]
        size = lsn(end) - lsn(self.meta["slot"])
        runs, limit = {}, []
        peers = {"pg_receivewal": [], "pg_receivewal --synchronous": ["--synchronous"], "pg_receivewal -Z lz4:1": ["-Z", "lz4:1"]}
        stored = {}
        for _ in range(self.runs):
            for name, options in peers.items():
                folder = self.folder("received")
                self.slot("peer")
                runs.setdefault(name, []).append(timed([f"{PG}/pg_receivewal", "-D", folder, "-S", "peer", "--no-loop", f"--endpos={end}", *options], env=self.server.env))
                stored[name] = bytes_under(folder)
                shutil.rmtree(folder)
            # What the server can give to somebody who does nothing with it.
            self.slot("peer")
            with tempfile.TemporaryDirectory(prefix="walkeep-bench-", dir="/dev/shm") as memory:
                command = [f"{PG}/pg_receivewal", "-D", memory, "-S", "peer", "--no-loop", "--no-sync", f"--endpos={end}"]
                limit.append(timed(command, env=self.server.env))
            self.slot("walkeep")
            site, env = self.site()
            runs.setdefault("walkeep receive", []).append(timed([self.walkeep, "receive", "main", "--end-lsn", end], env=env))
            stored["walkeep receive"] = bytes_under(f"{site}/repository")
            shutil.rmtree(site)
        ours = min(run.seconds for run in runs["walkeep receive"])
        what = f"receive {megabytes(size)} of WAL"
        for name in peers:
            self.table.add(what, name, runs[name], note=f"stored {megabytes(stored[name])}")
        self.table.add(what, "the limit: pg_receivewal --no-sync into memory", limit)
        best = {name: min(run.seconds for run in runs[name]) for name in peers}
        self.table.add(what, "walkeep receive, beside lz4:1", runs["walkeep receive"], best["pg_receivewal -Z lz4:1"], 1.3,
                       f"stored {megabytes(stored['walkeep receive'])}; {min(r.cpu for r in runs['walkeep receive']) / size * 1e9:.2f} CPU s per GB")
        self.table.add(what, "walkeep receive, beside the default", runs["walkeep receive"], best["pg_receivewal"], 0.5, f"{size / ours / 1e6:.0f} MB/s")

    def segments(self, count):
        """Whole segments from the middle of the backlog."""
        names = sorted(name for name in os.listdir(f"{self.home}/data/pg_wal") if len(name) == 24)
        first = self.server.sql(f"select pg_walfile_name('{self.meta['begin']}')")
        at = names.index(first) + 4
        return [f"{self.home}/data/pg_wal/{name}" for name in names[at:at + count]]

    def pgbackrest(self, name):
        """A fresh pgbackrest repository, encrypted, at zstd's level 1, with as many processes as there are cores."""
        folder = self.folder(name)
        config = f"{folder}/pgbackrest.conf"
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"""[global]
repo1-path={folder}/repo
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=pgbackrest-benchmark-passphrase
compress-type=zst
compress-level=1
process-max={os.cpu_count()}
log-path={folder}
lock-path={folder}
spool-path={folder}
log-level-console=warn
start-fast=y
archive-check=n
[main]
pg1-path={self.home}/data
pg1-socket-path={self.sockets}
pg1-port={self.server.port}
pg1-user=postgres
""")
        command = [PGBACKREST, f"--config={config}", "--stanza=main"]
        output_of([*command, "--no-online", "stanza-create"])
        return command

    def push(self):
        segments = self.segments(12)
        pgbackrest = self.pgbackrest("push-peer")
        _, env = self.site(level=1)
        peer, ours, peer_again, ours_again, starts = [], [], [], [], []
        for segment in segments:
            peer.append(timed([*pgbackrest, "archive-push", segment]))
            ours.append(timed([self.walkeep, "archive-push", segment, "--cluster", "main"], env=env))
        for segment in segments:
            peer_again.append(timed([*pgbackrest, "archive-push", segment]))
            ours_again.append(timed([self.walkeep, "archive-push", segment, "--cluster", "main"], env=env))
            starts.append(timed([self.walkeep, "--version"]))
        what = "archive-push one segment, zstd 1, encrypted"
        against = self.table.add(what, PGBACKREST_NAME, peer)
        self.table.add(what, "walkeep", ours, against, 0.4)
        what = "archive-push one that is there already"
        against = self.table.add(what, PGBACKREST_NAME, peer_again)
        self.table.add(what, "walkeep", ours_again, against, 0.25)
        self.table.add(what, "the limit: walkeep --version, which only starts", starts, against)

    def get(self):
        segments = self.segments(12)
        pgbackrest = self.pgbackrest("get-peer")
        _, env = self.site(level=1)
        for segment in segments:
            timed([*pgbackrest, "archive-push", segment])
            timed([self.walkeep, "archive-push", segment, "--cluster", "main"], env=env)
        folder = self.folder("got")
        peer, ours = [], []
        for segment in segments:
            name = os.path.basename(segment)
            peer.append(timed([*pgbackrest, "archive-get", name, f"{folder}/peer"]))
            ours.append(timed([self.walkeep, "archive-get", name, f"{folder}/ours", "--cluster", "main"], env=env))
            assert filecmp.cmp(f"{folder}/ours", segment, shallow=False)
        what = "archive-get one segment"
        against = self.table.add(what, PGBACKREST_NAME, peer)
        self.table.add(what, "walkeep", ours, against)

    def receiver(self, env):
        """A receiver in the background, so that a backup's WAL arrives."""
        self.server.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'walkeep'")
        child = subprocess.Popen([self.walkeep, "receive", "main"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.children.append(child)
        deadline = time.monotonic() + 30
        while self.server.sql("select count(*) from pg_stat_replication where application_name = 'walkeep'") == "0":
            if child.poll() is not None or time.monotonic() > deadline:
                sys.exit("walkeep receive did not attach")
            time.sleep(0.05)
        return child

    def backup(self):
        size = int(self.server.sql("select sum(pg_database_size(oid)) from pg_database"))
        base, tar, ours, again = [], [], [], []
        stored = peer_stored = 0
        for _ in range(self.runs):
            folder = self.folder("basebackup")
            base.append(timed([f"{PG}/pg_basebackup", "-D", folder, "-Ft", "--compress=server-zstd:1", "-X", "none", "-c", "fast"], env=self.server.env))
            peer_stored = bytes_under(folder)
            shutil.rmtree(folder)
            pgbackrest = self.pgbackrest("backup-peer")
            tar.append(timed([*pgbackrest, "--type=full", "backup"]))
            site, env = self.site()
            child = self.receiver(env)
            ours.append(timed([self.walkeep, "backup", "postgres", "main"], env=env))
            stored = bytes_under(f"{site}/repository/main/pack")
            again.append(timed([self.walkeep, "backup", "postgres", "main"], env=env))
            grown = bytes_under(f"{site}/repository/main/pack") - stored
            child.terminate()
            child.wait()
            if len(ours) < self.runs:
                shutil.rmtree(site)
        self.backed_up = (pgbackrest, env)
        what = f"full backup of {megabytes(size)}"
        against = self.table.add(what, "pg_basebackup -Ft --compress=server-zstd:1", base, note=f"stored {megabytes(peer_stored)}")
        self.table.add(what, f"{PGBACKREST_NAME}, zstd 1, encrypted", tar)
        self.table.add(what, "walkeep", ours, against, 1.0, f"stored {megabytes(stored)}")
        self.table.add("backup again, nothing changed", "walkeep", again, against, None, f"stored {megabytes(grown)} more")

    def restore(self):
        if not hasattr(self, "backed_up"):
            self.backup()
        pgbackrest, env = self.backed_up
        peer, ours = [], []
        for _ in range(self.runs):
            folder = self.folder("restored")
            peer.append(timed([*pgbackrest, f"--pg1-path={folder}", "--type=immediate", "restore"]))
            folder = self.folder("restored")
            ours.append(timed([self.walkeep, "restore", "postgres", "main", "--pgdata", folder, "--target-immediate"], env=env))
            shutil.rmtree(folder)
        what = "restore of that backup"
        against = self.table.add(what, PGBACKREST_NAME, peer)
        self.table.add(what, "walkeep", ours, against, 1.0)

    def replay(self):
        """Recovery from the base backup to the end of the backlog, with its WAL in pg_wal or coming through archive-get."""
        self.slot("walkeep")
        _, env = self.site()
        past = (lsn(self.meta["end"]) // SEGMENT + 1) * SEGMENT
        timed([self.walkeep, "receive", "main", "--end-lsn", f"{past >> 32:X}/{past & 0xFFFFFFFF:X}"], env=env)
        size = lsn(self.meta["end"]) - lsn(self.meta["slot"])
        get = f"{self.walkeep} --config {env['WALKEEP_CONFIG']} archive-get %f \"%p\" --cluster main"
        raw, ours = [], []
        for _ in range(self.runs):
            raw.append(self.recover("false", raw=True))
            ours.append(self.recover(get, raw=False))
        what = f"replay of {megabytes(size)} of WAL"
        against = self.table.add(what, "segments lying in pg_wal", raw)
        self.table.add(what, "walkeep archive-get", ours, against, 1.3)

    def recover(self, restore_command, raw):
        folder = self.folder("recovered")
        output_of(["cp", "-a", f"{self.home}/base", f"{folder}/data"])
        if raw:
            for name in os.listdir(f"{self.home}/data/pg_wal"):
                if len(name) == 24:
                    shutil.copy(f"{self.home}/data/pg_wal/{name}", f"{folder}/data/pg_wal/{name}")
        with open(f"{folder}/data/postgresql.auto.conf", "w", encoding="utf-8") as file:
            file.write(f"restore_command = '{restore_command}'\nrecovery_target_lsn = '{self.meta['end']}'\nrecovery_target_action = 'pause'\n")
        open(f"{folder}/data/recovery.signal", "w", encoding="utf-8").close()
        server = Server(f"{folder}/data", self.folder("recovered-socket") if len(folder) < 60 else self.sockets)
        try:
            begun = time.monotonic()
            server.start()
            while server.sql("select pg_get_wal_replay_pause_state()") != "paused":
                time.sleep(0.05)
            took = time.monotonic() - begun
        finally:
            server.stop("immediate")
            shutil.rmtree(folder)
        return Run(took, resource.struct_rusage([0] * 16))


class Redis:
    """A server with half-random values, walkeep and redis-cli asking it for its data, and redis-benchmark writing to it."""

    KEYS, VALUE = 1_200_000, 1000

    def __init__(self, walkeep, cache, runs):
        self.walkeep, self.runs, self.table = walkeep, runs, Table()
        self.bin = f"{cache}/redis/7.0/bin"
        self.scratch = tempfile.mkdtemp(prefix="walkeep-bench-", dir=f"{cache}/bench")
        self.children = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.kill()
            child.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start(self, name, *options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        folder = f"{self.scratch}/{name}"
        os.makedirs(folder)
        log = open(f"{folder}/log", "wb")
        command = [f"{self.bin}/redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no",
                   "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-backlog-size", "256mb", *options]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children.append(child)
        self.until(lambda: self.cli(port, "PING") == "PONG")
        return port, child

    def cli(self, port, *words):
        done = subprocess.run([f"{self.bin}/redis-cli", "-p", str(port), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.stdout.strip()

    @staticmethod
    def until(true):
        end = time.monotonic() + 120
        while not true():
            if time.monotonic() > end:
                sys.exit("redis: what was waited for did not come about")
            time.sleep(0.05)

    def fill(self, port):
        with tempfile.TemporaryFile() as feed:
            half = self.VALUE // 2
            for n in range(self.KEYS):
                key, value = b"key:%d" % n, os.urandom(half) + b"x" * half
                feed.write(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value))
            feed.seek(0)
            subprocess.run([f"{self.bin}/redis-cli", "-p", str(port), "--pipe"], stdin=feed, stdout=subprocess.DEVNULL, check=True)

    def site(self, port, name):
        site = f"{self.scratch}/{name}"
        os.makedirs(site)
        env = dict(os.environ, WALKEEP_CONFIG=f"{site}/walkeep.toml")
        output_of([self.walkeep, "init", "--cluster", "main", "--repository", f"file://{site}/repository", "--state-dir", f"{site}/state",
                   "--config", f"{site}/walkeep.toml"], env=env)
        with open(f"{site}/walkeep.toml", "a", encoding="utf-8") as file:
            file.write(f'\n[redis.cache]\nurl = "redis://127.0.0.1:{port}"\n')
        return site, env

    def snapshots(self, port, server=None):
        """With `server`, its process has one core for itself, and who asks it has another, as if on a machine of their own."""
        peer, ours, stored = [], [], 0
        apart = ["taskset", "-c", "1"] if server else []
        if server:
            os.sched_setaffinity(server.pid, {0})
        for n in range(self.runs):
            peer.append(timed([*apart, f"{self.bin}/redis-cli", "-p", str(port), "--rdb", f"{self.scratch}/by-cli.rdb"]))
            size = os.path.getsize(f"{self.scratch}/by-cli.rdb")
            site, env = self.site(port, f"snapshot-{n}")
            ours.append(timed([*apart, self.walkeep, "-q", "backup", "redis"], env=env))
            stored = bytes_under(f"{site}/repository/cache")
            shutil.rmtree(site)
        if server:
            os.sched_setaffinity(server.pid, range(os.cpu_count()))
        what = f"snapshot of {megabytes(size)}, diskless" + (", a core for the server and one for us" if server else "")
        against = self.table.add(what, "redis-cli --rdb, neither walked nor encrypted", peer)
        self.table.add(what, "walkeep backup redis", ours, against, 1.0, f"stored {megabytes(stored)}")

    def writes(self, port):
        """SETs a second of redis-benchmark -P 16: the server alone, with a replica, with walkeep. In turns; each one's best."""
        best = {}
        for n in range(self.runs):
            for contender in ("nobody attached", "a Redis replica attached", "walkeep receive attached"):
                child = None
                if contender.startswith("a Redis"):
                    _, child = self.start(f"replica-{n}", "--replicaof", "127.0.0.1", str(port))
                elif contender.startswith("walkeep"):
                    site, env = self.site(port, f"receive-{n}")
                    child = subprocess.Popen([self.walkeep, "-q", "receive", "cache"], stdin=subprocess.DEVNULL, env=env)
                    self.children.append(child)
                    # The snapshot to begin with is not what is measured.
                    self.until(lambda: os.path.isdir(f"{site}/repository/cache/snapshot") and os.listdir(f"{site}/repository/cache/snapshot"))
                if child:
                    self.until(lambda: "state=online" in self.cli(port, "INFO", "replication"))
                said = output_of([f"{self.bin}/redis-benchmark", "-p", str(port), "-P", "16", "-n", "2000000", "-r", "100000", "-d", "100",
                                  "-t", "set", "--csv"])
                rate = float(said.splitlines()[-1].split(",")[1].strip('"'))
                lag = 0.0
                if child:
                    begun, end = time.monotonic(), self.number(port, "master_repl_offset")
                    self.until(lambda: self.acknowledged(port) >= end)
                    lag = time.monotonic() - begun
                    child.kill()
                    child.wait()
                    self.until(lambda: "state=online" not in self.cli(port, "INFO", "replication"))
                before = best.get(contender, (0.0, 0.0))
                best[contender] = max(before, (rate, lag))
        print("\n| redis-benchmark -P 16 -t set -d 100 | operations a second | ratio | all acknowledged after |\n| --- | ---: | ---: | ---: |")
        alone = best["nobody attached"][0]
        for contender, (rate, lag) in best.items():
            print(f"| {contender} | {rate:,.0f} | {rate / alone:.2f} | {f'{lag:.1f} s' if lag else ''} |")

    def number(self, port, name):
        return int(next(line.split(":")[1] for line in self.cli(port, "INFO", "replication").splitlines() if line.startswith(name)))

    def acknowledged(self, port):
        lines = [line for line in self.cli(port, "INFO", "replication").splitlines() if line.startswith("slave0:")]
        return int(lines[0].split("offset=")[1].split(",")[0]) if lines else 0

    def run(self):
        port, server = self.start("server")
        self.fill(port)
        print(f"{os.cpu_count()} cores; Redis {output_of([f'{self.bin}/redis-server', '--version']).split()[2]}\n")
        self.table.heading()
        self.snapshots(port)
        self.snapshots(port, server)
        self.cli(port, "FLUSHALL")
        self.writes(port)


def main():
    cache = become_postgres()
    parser = argparse.ArgumentParser()
    parser.add_argument("walkeep")
    parser.add_argument("--only", default="receive,push,get,backup,restore,replay,redis")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--build-only", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    home = os.path.join(cache, "bench", f"pgbench-{SCALE}")
    os.makedirs(os.path.dirname(home), exist_ok=True)
    # Two runs at once would measure one another.
    alone = open(f"{os.path.dirname(home)}/lock", "w", encoding="utf-8")
    fcntl.flock(alone, fcntl.LOCK_EX)
    names = arguments.only.split(",")
    if "redis" in names and not arguments.build_only:
        with Redis(arguments.walkeep, cache, arguments.runs) as bench:
            bench.run()
    names = [name for name in names if name != "redis"]
    if not names:
        return
    if not os.path.exists(f"{home}/meta.json"):
        build(home)
    if arguments.build_only:
        return
    with Bench(arguments.walkeep, home, arguments.runs) as bench:
        print(f"{os.cpu_count()} cores; PostgreSQL {bench.server.sql('show server_version')}\n")
        bench.table.heading()
        for name in names:
            getattr(bench, name)()


main()
