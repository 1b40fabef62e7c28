"""PostgreSQL to PostgreSQL: the rates of a copy and of a backlog, the worker's CPU, and both sides equal after each.

scripts/bench-postgres starts the servers and calls this with fresh databases.
"""

import argparse
import os
import pathlib
import signal
import sys
import time

import psycopg2

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import database  # noqa: E402
from worker import Worker, timed  # noqa: E402

# The row of bench/database.py, computed by PostgreSQL.
ROW = (
    "i, (i * 7::bigint % 1000003)::int, concat(md5(i::text), '-', md5((i + 1)::text), '-', md5((i + 2)::text), '-', left(md5((i + 3)::text), 21)), "
    "left(concat(md5((i + 4)::text), '-', md5((i + 5)::text)), 60), (i % 100000) / 100.0, i % 2 = 1, "
    "CASE WHEN i % 3 <> 0 THEN 'note ' || i END, timestamp '2020-01-01' + i * interval '1 second', clock_timestamp()"
)
TRANSACTION_ROWS = 20
SUMMARY = "SELECT count(*), sum(k), sum({amount})::text, max({updated})::text, sum(hashtext(c || pad || coalesce(note, ''))) FROM accounts"


def source():
    connection = psycopg2.connect(host="127.0.0.1", port=int(os.environ["BENCH_SOURCE_PORT"]), user="bench",
                                  password=os.environ["BENCH_PASSWORD"], dbname="bench", options="-c timezone=UTC")
    connection.autocommit = True
    return connection.cursor()


def equal(what):
    target = database.target().cursor()
    target.execute("SET timezone = 'UTC'")
    target.execute(SUMMARY.format(amount="amount_cents", updated="updated_at"))
    at_source = source()
    at_source.execute(SUMMARY.format(amount="(amount * 100)::bigint", updated="updated"))
    found, wanted = target.fetchone(), at_source.fetchone()
    if found != wanted:
        raise SystemExit(f"bench: source and target differ after {what}: {wanted} and {found}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=500_000)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows, changes = arguments.rows, arguments.changes
    worker = Worker(arguments.binary, "bench/postgres/cutover.toml", "bench-run/worker.log", os.environ["BENCH_HTTP_PORT"])
    lines = [f"load average before: {os.getloadavg()[0]:.2f}"]
    cursor = source()
    cursor.execute(f"INSERT INTO accounts SELECT {ROW} FROM generate_series(1, {rows}) i")
    cursor.execute("VACUUM ANALYZE accounts")
    try:
        lines.append(timed(worker, "snapshot", rows, lambda: (worker.metric("cutover_snapshot_rows_total") or 0) >= rows))
        worker.wait_for("sync", worker.synced, pause=0.2)
        worker.stop()
        equal("the snapshot")
        half = TRANSACTION_ROWS // 2
        for first in range(0, changes // 2, half):
            new, old = rows + 1 + first, 1 + first % (rows - half)
            cursor.execute(f"BEGIN; INSERT INTO accounts SELECT {ROW} FROM generate_series({new}, {new + half - 1}) i; "
                           f"UPDATE accounts SET k = k + 1, updated = clock_timestamp() WHERE id BETWEEN {old} AND {old + half - 1}; COMMIT")
        last = database.target()
        last.autocommit = True
        last = last.cursor()

        def arrived():
            last.execute("SELECT 1 FROM accounts WHERE id = %s", (rows + changes // 2,))
            return last.fetchone() is not None

        lines.append(timed(worker, "backlog", changes, arrived))
        worker.wait_for("sync", worker.synced, pause=0.2)
        worker.stop()
        equal("the backlog")
    finally:
        worker.kill()
    text = "\n".join(lines)
    print(text)
    with open(time.strftime("bench-run/postgres-%Y%m%d-%H%M%S.txt"), "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
