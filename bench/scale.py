"""How applying grows with partitions and processes, and what bounds it. See docs/scaling.md.

scripts/bench-scale starts the servers and calls this.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import database
import processes
from delay import Delay
from worker import Worker

FOLDER = Path("bench-run/scale")
CONFIG = """\
name = "scale-{partitions}"

[source]
url = "mysql://bench:${{BENCH_PASSWORD}}@127.0.0.1:${{BENCH_SOURCE_PORT}}/bench"
tables = ["accounts"]

[target]
url = "postgresql://bench:${{BENCH_PASSWORD}}@127.0.0.1:{target_port}/bench"

[transform]
folder = "../../bench/transforms"

[log]
url = "kafka://127.0.0.1:${{BENCH_KAFKA_PORT}}"
partitions = {partitions}
retention_hours = 1
"""
NEWEST = "SELECT coalesce(min(newest_commit_us), 0) FROM cutover.offsets WHERE topic = 'changes'"
OFFSETS = "SELECT coalesce(sum(next_offset), 0) FROM cutover.offsets WHERE topic = 'changes'"


class Scale:
    def __init__(self, arguments):
        self.arguments = arguments
        self.workers = []
        self.rows = 0
        self.random = random.Random(1)
        self.pids = {"PostgreSQL": arguments.target_pid, "Kafka": arguments.kafka_pid}

    def config(self, partitions, target_port):
        file = FOLDER / f"{partitions}-{target_port}.toml"
        file.write_text(CONFIG.format(partitions=partitions, target_port=target_port))
        return str(file)

    def worker(self, config, *arguments):
        port = int(os.environ["BENCH_HTTP_PORT"]) + len(self.workers)
        worker = Worker(self.arguments.binary, config, str(FOLDER / "workers.log"), port,
                        [*arguments, "--listen", f"127.0.0.1:{port}"])
        self.workers.append(worker)
        worker.start()
        return worker

    def stop_workers(self):
        for worker in reversed(self.workers):
            worker.stop()
        self.workers.clear()

    def asked(self, sql):
        with self.watch.cursor() as cursor:
            cursor.execute(sql)
            return int(cursor.fetchone()[0])

    def fresh_target(self):
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", os.environ["BENCH_ADMIN_URL"],
                        "-c", "SET client_min_messages = warning", "-c", "DROP DATABASE IF EXISTS bench WITH (FORCE)",
                        "-c", "CREATE DATABASE bench OWNER bench"], check=True)
        url = f"postgresql://bench:bench@127.0.0.1:{os.environ['BENCH_TARGET_PORT']}/bench"
        subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", url, "-f", "bench/target.sql"], check=True)
        self.watch = database.target()
        self.watch.autocommit = True

    def wait(self, what, done):
        deadline = time.monotonic() + 900
        while not done():
            for worker in self.workers:
                worker.check()
            if time.monotonic() > deadline:
                sys.exit(f"bench-scale: waited in vain for {what}: see {FOLDER}/workers.log")
            time.sleep(0.02)

    def backlog(self):
        """Changes that are in the log and not in the target; the commit time after them, in microseconds."""
        next_key = database.change(self.rows, self.arguments.changes, self.random)
        self.rows = next_key - 1
        connection = database.source()
        with connection.cursor() as cursor:
            cursor.execute("SELECT CAST(UNIX_TIMESTAMP(now(6)) * 1000000 AS UNSIGNED)")
            end_us = int(cursor.fetchone()[0])
        connection.close()
        capture = self.workers[0]
        self.wait("capture", lambda: (lag := capture.metric("cutover_capture_lag_seconds")) is not None
                  and time.time() - lag > end_us / 1e6 + 0.5)
        return end_us

    def partitions(self, partitions, counts):
        """All counts of processes over a log with so many partitions."""
        self.fresh_target()
        own = self.config(partitions, os.environ["BENCH_TARGET_PORT"])
        applier = self.config(partitions, self.arguments.delay.port) if self.arguments.delay else own
        capture = self.worker(own, "--role", "capture")
        first = self.worker(own, "--role", "apply")
        self.wait("the copy", capture.synced)
        first.stop()
        self.workers.remove(first)
        for count in counts:
            end_us = self.backlog()
            subprocess.run(["psql", "-X", "-q", os.environ["BENCH_ADMIN_URL"], "-c", "CHECKPOINT"], check=True)
            before = {name: processes.tree_cpu_seconds(pid) for name, pid in self.pids.items()}
            captured, start = capture.cpu_seconds(), self.asked(OFFSETS)
            began = time.monotonic()
            appliers = [self.worker(applier, "--role", "apply") for _ in range(count)]
            self.wait("the first batch", lambda: self.asked(OFFSETS) > start)
            first_batch = time.monotonic()
            self.wait("the last change", lambda: self.asked(NEWEST) >= end_us)
            done = time.monotonic()
            seconds = done - first_batch
            spent = {"appliers": sum(worker.cpu_seconds() for worker in appliers), "capture": capture.cpu_seconds() - captured}
            spent |= {name: processes.tree_cpu_seconds(pid) - before[name] for name, pid in self.pids.items()}
            self.tell(partitions, count, seconds, first_batch - began, spent)
            for worker in appliers:
                worker.stop()
                self.workers.remove(worker)
        summaries = self.agree()
        print(f"  {partitions} partition(s): source and target are equal, {summaries[0][0]:,} rows", flush=True)
        self.watch.close()
        self.stop_workers()

    def agree(self):
        worker = self.workers[0]
        applier = self.worker(worker.command[2], "--role", "apply")
        self.wait("both sides", worker.synced)
        source, target = database.summaries()
        applier.stop()
        self.workers.remove(applier)
        if source != target:
            sys.exit(f"bench-scale: source {source} and target {target} differ")
        return source, target

    def tell(self, partitions, count, seconds, joined, spent):
        # What the processes need to begin is little, and counted as if it were part of the applying.
        cores = sum(spent.values()) / seconds
        shares = ", ".join(f"{name} {value / seconds:.2f}" for name, value in spent.items())
        rate = self.arguments.changes / seconds
        print(f"{partitions:>10} {count:>9} {rate:>11,.0f} {seconds:>8.1f} {joined:>9.1f} {cores:>11.2f}   {shares}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--target-pid", type=int, required=True)
    parser.add_argument("--kafka-pid", type=int, required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--changes", type=int, default=400_000)
    parser.add_argument("--round-trip-ms", type=float, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "workers.log").write_text("")
    arguments.delay = None
    if arguments.round_trip_ms:
        arguments.delay = Delay(int(os.environ["BENCH_TARGET_PORT"]), arguments.round_trip_ms / 2000)
    scale = Scale(arguments)
    database.fill(arguments.rows)
    scale.rows = arguments.rows
    where = f", {arguments.round_trip_ms:g} ms away" if arguments.delay else ""
    print(f"{arguments.changes:,} changes from the log into the target{where}, on {os.cpu_count()} cores\n")
    print("partitions processes   changes/s  seconds  begun in  cores used   by", flush=True)
    try:
        for partitions, counts in ((1, [1]), (2, [1, 2]), (4, [1, 2])):
            scale.partitions(partitions, counts)
    finally:
        for worker in scale.workers:
            worker.kill()
        if arguments.delay:
            arguments.delay.stop()


main()
