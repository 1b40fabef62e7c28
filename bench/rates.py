"""The rates of a copy and of a backlog of one kind of source, the worker's CPU, and both sides equal after each."""

import argparse
import os
import signal
import sys
import time

import database
from worker import Worker


def timed(worker, name, rows, done, pause=0.02):
    """Runs the worker until that is done: what it did, as a line."""
    started = time.monotonic()
    worker.start()
    worker.wait_for(name, done, pause=pause)
    seconds = time.monotonic() - started
    cpu = worker.cpu_seconds()
    return (f"{name:<10} {rows / seconds:>10,.0f} rows/s   worker {cpu / rows * 1e6:5.1f} s of CPU per million rows, "
            f"peak {worker.peak_mib:.0f} MiB")


def measure(source, description, rows, changes, pause=0.02):
    """Measures `source`, which is named as its folder in bench/ and has `fill(rows)`, `change(rows, changes)`, `equal(what)`, and
    `ARRIVED`: a query of the target with `rows` and `changes`, true when the whole backlog is there, asked every `pause` seconds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--changes", type=int, default=changes)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows, changes = arguments.rows, arguments.changes
    worker = Worker(arguments.binary, f"bench/{source.NAME}/cutover.toml", "bench-run/worker.log", os.environ["BENCH_HTTP_PORT"])
    lines = [f"load average before: {os.getloadavg()[0]:.2f}"]
    source.fill(rows)
    target = database.target()
    target.autocommit = True
    cursor = target.cursor()

    def arrived():
        cursor.execute(source.ARRIVED, {"rows": rows, "changes": changes})
        return cursor.fetchone()[0]

    def part(name, count, done, pause):
        lines.append(timed(worker, name, count, done, pause))
        worker.wait_for("sync", worker.synced, pause=0.2)
        worker.stop()
        source.equal(f"the {name}")

    try:
        part("snapshot", rows, lambda: (worker.metric("cutover_snapshot_rows_total") or 0) >= rows, 0.02)
        source.change(rows, changes)
        part("backlog", changes, arrived, pause)
    finally:
        worker.kill()
    text = "\n".join(lines)
    print(text)
    with open(time.strftime(f"bench-run/{source.NAME}-%Y%m%d-%H%M%S.txt"), "w") as file:
        file.write(text + "\n")
