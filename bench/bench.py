"""All figures in one run, side by side: floor, snapshot, backlog, latency, CPU, memory. See docs/benchmarks.md.

scripts/bench-smoke starts the servers and calls this with fresh databases.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import time

import database
import latency
import processes
from floor import BATCH_ROWS, Floor
from worker import Worker

MARK_FLOOR_SHARE, MARK_P99_MS, MARK_PEAK_MIB = 0.5, 50, 150


Measured = collections.namedtuple("Measured", "p50 p99 worst rate")


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.worker = Worker(arguments.binary, "bench/cutover.toml", "bench-run/worker.log", os.environ["BENCH_HTTP_PORT"])
        self.servers = {"worker": None, "MySQL": arguments.source_pid, "PostgreSQL": arguments.target_pid}
        self.costs = []
        self.lines = []

    def say(self, text):
        print(text, flush=True)

    def checkpoint(self):
        """Every timed part begins with nothing left to write from the one before."""
        subprocess.run(["psql", "-X", "-q", os.environ["BENCH_ADMIN_URL"], "-c", "CHECKPOINT"], check=True)

    def cpu(self):
        return {
            name: self.worker.cpu_seconds() if pid is None else processes.tree_cpu_seconds(pid)
            for name, pid in self.servers.items()
        }

    def timed(self, name, rows, until, what):
        """Starts the worker, waits, and notes time and CPU: from the start of the process, so its own start counts."""
        self.checkpoint()
        before = {n: 0.0 if pid is None else processes.tree_cpu_seconds(pid) for n, pid in self.servers.items()}
        started = time.monotonic()
        self.worker.start()
        self.worker.wait_for(what, until)
        seconds = time.monotonic() - started
        after = self.cpu()
        self.costs.append((name, rows, seconds, {n: after[n] - before[n] for n in after}, os.getloadavg()[0]))
        return rows / seconds

    # The parts.

    def floors(self):
        rows = self.arguments.rows
        self.say(f"floor: COPY + upsert of {rows:,} rows in batches of {BATCH_ROWS:,}")
        floor = Floor()
        self.checkpoint()
        self.floor_alone = floor.rate(database.rows_for_copy(f"id <= {rows}", BATCH_ROWS))
        floor.close()
        self.say(f"  alone on the machine {self.floor_alone:,.0f} rows/s")

        floor = Floor()
        reader = subprocess.Popen(["bash", "-c", "while :; do mariadb --no-defaults --protocol=tcp -h 127.0.0.1 -u bench "
                                   '-P "$BENCH_SOURCE_PORT" "-p$BENCH_PASSWORD" --quick -B -e "SELECT * FROM accounts" bench; done'],
                                  stdout=subprocess.DEVNULL, start_new_session=True)
        self.checkpoint()
        self.floor_beside = floor.rate(database.rows_for_copy(f"id <= {rows // 2}", BATCH_ROWS))
        os.killpg(reader.pid, 15)
        reader.wait()
        floor.close()
        self.say(f"  beside a client that reads the source all the time {self.floor_beside:,.0f} rows/s")

    def floor_of_changes(self, next_key):
        """Half of each batch are new rows, half are rows that are there."""
        rows, half = self.arguments.rows, self.arguments.changes // 2
        floor = Floor()
        floor.rate(database.rows_for_copy(f"id <= {half}", BATCH_ROWS))
        self.checkpoint()
        old = database.rows_for_copy(f"id <= {half}", BATCH_ROWS // 2)
        new = database.rows_for_copy(f"id > {rows} AND id < {next_key}", BATCH_ROWS // 2)
        self.floor_changes = floor.rate((a + b, old_text + new_text) for (a, old_text), (b, new_text) in zip(old, new))
        floor.close()
        self.say(f"floor of the same changes, alone: {self.floor_changes:,.0f} rows/s")

    def snapshot(self):
        self.say(f"snapshot of {self.arguments.rows:,} rows")

        def copied():
            return (self.worker.metric("cutover_snapshot_rows_total") or 0) >= self.arguments.rows

        self.snapshot_rate = self.timed("snapshot", self.arguments.rows, copied, "the end of the copy")
        self.say(f"  {self.snapshot_rate:,.0f} rows/s")
        self.worker.wait_for("sync", self.worker.synced, pause=0.2)
        self.worker.stop()
        self.equal("the snapshot")

    def backlog(self):
        self.say(f"backlog of {self.arguments.changes:,} changes, half inserts, half updates, "
                 f"{database.TRANSACTION_ROWS} in a transaction")
        next_key = database.change(self.arguments.rows, self.arguments.changes, random.Random(1))
        # The last transaction's last insert is the sentinel.
        connection = database.target()
        connection.autocommit = True
        cursor = connection.cursor()

        def arrived():
            cursor.execute("SELECT 1 FROM accounts WHERE id = %s", (next_key - 1,))
            return cursor.fetchone() is not None

        self.backlog_rate = self.timed("backlog", self.arguments.changes, arrived, "the end of the backlog")
        connection.close()
        self.say(f"  {self.backlog_rate:,.0f} changes/s")
        self.worker.wait_for("sync", self.worker.synced, pause=0.2)
        self.equal("the backlog")
        return next_key

    def latency(self, next_key):
        self.say(f"{self.arguments.rate} single-row commits a second for {self.arguments.seconds} s")
        # The same worker goes on; its first seconds after the backlog are not what is measured.
        time.sleep(2)
        self.alone = self.measured(next_key)
        self.equal("the commits")

    def latency_beside_a_copy(self, next_key):
        self.say("the same commits while the whole table is copied again")
        copy = subprocess.Popen([*self.worker.command, "resnapshot", "accounts"], stdout=subprocess.DEVNULL)
        before = self.worker.metric("cutover_snapshot_rows_total") or 0
        self.worker.wait_for("the copy's first rows", lambda: (self.worker.metric("cutover_snapshot_rows_total") or 0) > before)
        began = time.monotonic()
        self.beside = self.measured(next_key)
        self.copied_rate = ((self.worker.metric("cutover_snapshot_rows_total") or 0) - before) / (time.monotonic() - began)
        self.copy_lasted = copy.poll() is None
        self.say(f"  {self.copied_rate:,.0f} rows/s copied meanwhile" + ("" if self.copy_lasted else "; the copy was over before the commits were"))
        if copy.wait() != 0:
            raise SystemExit("bench: the table could not be copied again: see bench-run/worker.log")
        self.worker.stop()
        self.equal("the copy beside the commits")

    def measured(self, next_key):
        """p50, p99 and the worst of commits at the wanted rate, in ms, and the rate that was reached."""
        latencies, rate = latency.measure(next_key, self.arguments.rate, self.arguments.seconds)
        p50, p99, worst = (latencies[int((len(latencies) - 1) * q)] * 1000 for q in (0.5, 0.99, 1))
        self.say(f"  {rate:,.0f}/s: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {worst:.1f} ms")
        return Measured(p50, p99, worst, rate)

    def equal(self, what):
        source, target = database.summaries()
        if source != target:
            raise SystemExit(f"bench: source and target differ after {what}: {source} and {target}")

    def table(self):
        def row(name, value, against, mark):
            self.lines.append(f"{name:<44} {value:>18}   {against:<28} {mark}")

        def judged(good):
            return "reached" if good else "MISSED"

        share = self.snapshot_rate / self.floor_alone
        changes_share = self.backlog_rate / self.floor_changes
        peak = self.worker.peak_mib
        row("figure", "value", "against", "first mark")
        row("floor, inserts, alone", f"{self.floor_alone:,.0f} rows/s", "", "")
        row("floor, inserts, beside a reading client", f"{self.floor_beside:,.0f} rows/s", f"{self.floor_beside / self.floor_alone:.2f} of alone", "")
        row("floor, half inserts half updates, alone", f"{self.floor_changes:,.0f} rows/s", "", "")
        row("snapshot", f"{self.snapshot_rate:,.0f} rows/s", f"{share:.2f} of the floor",
            f">= {MARK_FLOOR_SHARE}: {judged(share >= MARK_FLOOR_SHARE)}")
        row("backlog", f"{self.backlog_rate:,.0f} changes/s", f"{changes_share:.2f} of the floor",
            f">= {MARK_FLOOR_SHARE}: {judged(changes_share >= MARK_FLOOR_SHARE)}")
        alone, beside = self.alone, self.beside
        row(f"commit to visible at {alone.rate:,.0f}/s, p50", f"{alone.p50:.1f} ms", "", "")
        row(f"commit to visible at {alone.rate:,.0f}/s, p99", f"{alone.p99:.1f} ms", f"worst {alone.worst:.1f} ms",
            f"< {MARK_P99_MS} ms: {judged(alone.p99 < MARK_P99_MS)}")
        share = f"{self.copied_rate:,.0f} rows/s copied" + ("" if self.copy_lasted else " (not to the end)")
        row(f"the same beside a copy at {beside.rate:,.0f}/s, p50", f"{beside.p50:.1f} ms", share, "")
        row(f"the same beside a copy at {beside.rate:,.0f}/s, p99", f"{beside.p99:.1f} ms", f"{beside.p99 / alone.p99:.1f} times that without", "")
        row("worker, peak memory", f"{peak:.0f} MiB", "", f"< {MARK_PEAK_MIB} MiB: {judged(peak < MARK_PEAK_MIB)}")
        for name, rows, _, costs, _ in self.costs:
            row(f"worker, CPU per million rows, {name}", f"{costs['worker'] / rows * 1e6:.1f} s", "", "")
        self.lines.append("")
        self.lines.append("where the time goes (CPU seconds; the machine has " f"{os.cpu_count()} cores)")
        for name, _, seconds, costs, load in self.costs:
            parts = ", ".join(f"{process} {spent:.1f}" for process, spent in costs.items())
            self.lines.append(f"  {name:<10} {seconds:6.1f} s elapsed: {parts} (load average {load:.1f})")

    def run(self):
        load = os.getloadavg()[0]
        self.lines.append(f"load average before: {load:.2f}" + (" (the machine was not quiet)" if load > 0.5 else ""))
        self.say("filling the source")
        database.fill(self.arguments.rows)
        try:
            self.floors()
            self.snapshot()
            next_key = self.backlog()
            self.latency(next_key)
            self.latency_beside_a_copy(next_key + self.arguments.rate * self.arguments.seconds)
            self.floor_of_changes(next_key)
        finally:
            self.worker.kill()
        self.table()
        text = "\n".join(self.lines)
        print("\n" + text)
        with open(time.strftime("bench-run/%Y%m%d-%H%M%S.txt"), "w") as file:
            file.write(text + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source-pid", type=int, required=True)
    parser.add_argument("--target-pid", type=int, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=500_000)
    parser.add_argument("--rate", type=int, default=500, help="single-row commits per second")
    parser.add_argument("--seconds", type=int, default=20)
    arguments = parser.parse_args()
    # As an exception, so that the worker is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Bench(arguments).run()


if __name__ == "__main__":
    main()
