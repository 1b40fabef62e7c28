"""What `cutover verify` costs, and whether it is right while everything is written. See docs/benchmarks.md.

scripts/bench-verify starts the servers and calls this with fresh databases.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import database
import latency
import processes
from worker import Worker

WRITERS = 4
# Keys that the load inserts and deletes lie above those that it only updates.
LOAD_KEYS = 1_000_000_000


class Load:
    """Single-row transactions at a rate: updates of old rows, inserts and deletes of new ones."""

    def __init__(self, rows, rate):
        self.rows, self.rate = rows, rate
        self.stop, self.count, self.lock = threading.Event(), 0, threading.Lock()
        self.threads = [threading.Thread(target=self.write, args=(number,)) for number in range(WRITERS)]

    def __enter__(self):
        self.began = time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.reached = self.count / (time.monotonic() - self.began)
        if not self.count:
            raise SystemExit("bench: the load wrote nothing, so that the runs prove nothing")

    def write(self, number):
        chance, connection, due = random.Random(number), database.source(), time.monotonic()
        with connection.cursor() as cursor:
            while not self.stop.is_set():
                time.sleep(max(0.0, due - time.monotonic()))
                due += WRITERS / self.rate
                kind, new = chance.randrange(10), LOAD_KEYS + number + WRITERS * chance.randrange(2000)
                if kind < 6:
                    cursor.execute("UPDATE accounts SET k = k + 1, updated = now(6) WHERE id = %s", (chance.randint(1, self.rows),))
                elif kind < 8:
                    cursor.execute("DELETE FROM accounts WHERE id = %s", (new,))
                    cursor.execute(database.insert_one(), (new,))
                else:
                    cursor.execute("DELETE FROM accounts WHERE id = %s", (new,))
                connection.commit()
                with self.lock:
                    self.count += 1
        connection.close()


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.worker = Worker(arguments.binary, "bench/cutover.toml", "bench-run/worker.log", os.environ["BENCH_HTTP_PORT"])
        self.lines = []

    def tell(self, text):
        print(text, flush=True)
        self.lines.append(text)

    def verify(self, *options):
        """The verdict, the exit code, seconds, and the command's peak memory in MiB."""
        began = time.monotonic()
        process = subprocess.Popen([*self.worker.command, "verify", "--json", *options], stdout=subprocess.PIPE)
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        verdict = json.loads(said) if said.strip() else {}
        return verdict, process.returncode, time.monotonic() - began, usage.ru_maxrss / 1024

    def clean(self, *options):
        verdict, code, seconds, peak = self.verify(*options)
        if code != 0:
            raise SystemExit(f"bench: verify ended with {code}: {json.dumps(verdict)[:2000]}")
        return verdict, seconds, peak

    def selects(self):
        """Both tables read in the order of their keys by the servers' own clients, at the same time."""
        source = ["mariadb", "--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-u", "bench", "-P", os.environ["BENCH_SOURCE_PORT"],
                  f"-p{os.environ['BENCH_PASSWORD']}", "--quick", "-B", "-e", "SELECT * FROM accounts ORDER BY id", "bench"]
        target = ["psql", "-X", "-q", f"postgresql://bench:{os.environ['BENCH_PASSWORD']}@127.0.0.1:{os.environ['BENCH_TARGET_PORT']}/bench",
                  "-c", "COPY (SELECT * FROM accounts ORDER BY id) TO STDOUT"]
        began = time.monotonic()
        clients = [subprocess.Popen(client, stdout=subprocess.DEVNULL) for client in (source, target)]
        if any(client.wait() != 0 for client in clients):
            raise SystemExit("bench: a plain SELECT failed")
        return time.monotonic() - began

    def rates(self):
        rows = self.arguments.rows
        selects = min(self.selects() for _ in range(2))
        cpu = {name: processes.tree_cpu_seconds(pid) for name, pid in self.servers()}
        verdict, seconds, peak = self.clean()
        spent = ", ".join(f"{name} {processes.tree_cpu_seconds(pid) - cpu[name]:.1f}" for name, pid in self.servers())
        if verdict["tables"][0]["rows"] != rows:
            raise SystemExit(f"bench: not every row was compared: {verdict}")
        again, seconds_again, _ = self.clean()
        unchanged = again["tables"][0]["unchanged"]
        self.tell(f"two SELECT ... ORDER BY id at once       {rows / selects:>12,.0f} rows/s")
        self.tell(f"verify, through the transform            {rows / seconds:>12,.0f} rows/s, {selects / seconds:.2f} of the SELECTs")
        self.tell(f"verify again, {unchanged:,} rows unchanged   {rows / seconds_again:>12,.0f} rows/s")
        self.tell(f"verify, peak memory                      {peak:>12,.0f} MiB")
        self.tell(f"verify, CPU seconds of the servers       {spent:>12}")

    def servers(self):
        return (("MySQL", self.arguments.source_pid), ("PostgreSQL", self.arguments.target_pid))

    def lag(self):
        """Commit to visible without and beside a verify that is repeated."""
        first, rate, seconds = self.arguments.rows + 1, self.arguments.rate, self.arguments.seconds
        alone, _ = latency.measure(first, rate, seconds)
        over, passes = threading.Event(), []

        def repeat():
            while not over.is_set():
                passes.append(self.verify()[1])

        beside = threading.Thread(target=repeat)
        beside.start()
        with_verify, _ = latency.measure(first + rate * seconds, rate, seconds)
        over.set()
        beside.join()
        if any(passes):
            raise SystemExit(f"bench: a verify beside the commits ended with {passes}")
        for share in (0.5, 0.99):
            one, other = (times[int((len(times) - 1) * share)] * 1000 for times in (alone, with_verify))
            self.tell(f"commit to visible at {rate}/s, p{share * 100:.0f}          {one:>8.1f} ms alone, {other:.1f} ms beside verify")

    def false_alarms(self):
        runs, alarms, unclear, compared = self.arguments.runs, 0, 0, 0
        with Load(self.arguments.rows, self.arguments.writes) as load:
            for _ in range(runs):
                verdict, code, _, _ = self.verify()
                if code not in (0, 1):
                    raise SystemExit(f"bench: verify ended with {code}")
                table = verdict["tables"][0]
                compared += table["rows"]
                drifted = table["missing"] + table["extra"] + table["different"]
                alarms += drifted > 0
                unclear += code == 1 and not drifted
                if code:
                    print(json.dumps(verdict)[:1000], flush=True)
        self.tell(f"{runs} runs at {load.reached:,.0f} writes/s: {compared:,} rows compared, {alarms} false alarms, {unclear} not clean for other reasons")

    def repairs(self):
        """Rows that are spoilt at the target are repaired while the source deletes half of them."""
        chance, wanted, sent, back = random.Random(7), self.arguments.repairs, 0, 0
        keys = chance.sample(range(1, self.arguments.rows + 1), wanted)
        for first in range(0, wanted, 100):
            spoilt = keys[first:first + 100]
            target = database.target()
            with target, target.cursor() as cursor:
                cursor.execute("DELETE FROM accounts WHERE id = ANY(%s)", (spoilt[::2],))
                cursor.execute("UPDATE accounts SET k = -1 WHERE id = ANY(%s)", (spoilt[1::2],))
            target.close()
            deleted = [key for place, key in enumerate(spoilt) if place % 4 < 2]
            deletes = threading.Thread(target=self.delete, args=(deleted,))
            deletes.start()
            verdict, code, _, _ = self.verify("--repair")
            deletes.join()
            if code not in (0, 1):
                raise SystemExit(f"bench: verify --repair ended with {code}: {verdict}")
            sent += verdict["tables"][0]["repaired"]
            self.worker.wait_for("sync", self.worker.synced, pause=0.2)
            target = database.target()
            with target, target.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM accounts WHERE id = ANY(%s)", (deleted,))
                back += cursor.fetchone()[0]
            target.close()
        self.clean("--repair")
        self.clean()
        source, target = database.summaries()
        if source != target:
            raise SystemExit(f"bench: source and target differ after the repairs: {source} and {target}")
        self.tell(f"{wanted} rows spoilt, {wanted // 2} of them deleted at the source meanwhile: {sent} repaired, {back} brought back")

    def delete(self, keys):
        connection = database.source()
        with connection.cursor() as cursor:
            for key in keys:
                cursor.execute("DELETE FROM accounts WHERE id = %s", (key,))
                connection.commit()
                time.sleep(0.02)
        connection.close()

    def run(self):
        load = os.getloadavg()[0]
        print("filling the source and copying it", flush=True)
        database.fill(self.arguments.rows)
        try:
            self.worker.start()
            self.worker.wait_for("sync", self.worker.synced, pause=0.2)
            self.tell(f"{self.arguments.rows:,} rows; load average before {load:.2f}")
            self.rates()
            if self.arguments.seconds:
                self.lag()
            if self.arguments.runs:
                self.false_alarms()
            if self.arguments.repairs:
                self.repairs()
            self.worker.stop()
        finally:
            self.worker.kill()
        with open(time.strftime("bench-run/verify-%Y%m%d-%H%M%S.txt"), "w") as file:
            file.write("\n".join(self.lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source-pid", type=int, required=True)
    parser.add_argument("--target-pid", type=int, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=500, help="single-row commits per second, whose lag is measured")
    parser.add_argument("--seconds", type=int, default=20, help="of those commits; 0 leaves them out")
    parser.add_argument("--writes", type=int, default=1000, help="transactions per second beside the runs")
    parser.add_argument("--runs", type=int, default=10, help="verifies beside them, none of which may find anything")
    parser.add_argument("--repairs", type=int, default=1000, help="rows that are spoilt and repaired")
    arguments = parser.parse_args()
    # As an exception, so that the worker is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Bench(arguments).run()


if __name__ == "__main__":
    main()
