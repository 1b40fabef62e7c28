"""What a copy and a backlog from PostgreSQL into MySQL cost, beside plain multi-row INSERTs of the same rows.

scripts/bench-mysql-target starts the servers and calls this with fresh databases.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

import pymysql

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))
sys.path.insert(0, str(FOLDER.parent / "postgres"))
import bench  # noqa: E402

CONFIG = "bench/mysql/cutover.toml"
PLAIN = "bench-run/plain.sql"
ROWS_AT_ONCE = 2000
SUMMARY = "SELECT COUNT(*), SUM(k), SUM(amount), SUM(CRC32(CONCAT(c, pad, COALESCE(note, ''), active, created, updated))) FROM {}"
# A row as an INSERT has it.
LITERALS = ("format('(%s,%s,%L,%L,%s,%s,%s,%L,%L)', id, k, c, pad, amount, active::int, coalesce(quote_literal(note), 'NULL'), "
            "created, (updated AT TIME ZONE 'UTC'))")


def target():
    return pymysql.connect(host="127.0.0.1", port=int(os.environ["BENCH_TARGET_PORT"]), user="bench", password=os.environ["BENCH_PASSWORD"],
                           database="bench", autocommit=True)


def statements(rows):
    """The rows as multi-row INSERTs, each of which commits by itself."""
    cursor = bench.source()
    with open(PLAIN, "w") as file:
        file.write("SET time_zone = '+00:00';\n")
        for first in range(1, rows + 1, ROWS_AT_ONCE):
            cursor.execute(f"SELECT string_agg({LITERALS}, ',') FROM accounts WHERE id BETWEEN {first} AND {first + ROWS_AT_ONCE - 1}")
            file.write(f"INSERT INTO plain VALUES {cursor.fetchone()[0]};\n")


def plain():
    client = ["mariadb", "--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-P", os.environ["BENCH_TARGET_PORT"], "-u", "bench",
              "-pbench", "bench"]
    began = time.monotonic()
    with open(PLAIN) as file:
        subprocess.run(client, stdin=file, check=True)
    return time.monotonic() - began


def synced(binary):
    began = time.monotonic()
    with open("bench-run/worker.log", "a") as log:
        subprocess.run([binary, "-c", CONFIG, "run", "--until-synced"], stdout=log, stderr=log, check=True)
    return time.monotonic() - began


def equal():
    cursor = target().cursor()
    cursor.execute("SET time_zone = '+00:00'")
    found = []
    for table in ("accounts", "plain"):
        cursor.execute(SUMMARY.format(table))
        found.append(cursor.fetchone())
    if found[0] != found[1]:
        raise SystemExit(f"bench: the rows differ: {found}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--rows", type=int, default=300_000)
    arguments = parser.parse_args()
    rows, lines = arguments.rows, [f"{arguments.rows:,} rows; load average before {os.getloadavg()[0]:.2f}"]
    bench.fill(rows)
    statements(rows)
    floor = plain()
    lines.append(f"plain multi-row INSERT, two secondary indexes  {rows / floor:>10,.0f} rows/s")
    copy = synced(arguments.binary)
    equal()
    lines.append(f"the copy, from its start to its end            {rows / copy:>10,.0f} rows/s, {floor / copy:.2f} of that")
    bench.change(rows, rows // 2)
    backlog = synced(arguments.binary)
    lines.append(f"a backlog, half inserts, half updates          {rows // 2 / backlog:>10,.0f} changes/s")
    print("\n".join(lines), flush=True)
    with open(time.strftime("bench-run/mysql-target-%Y%m%d-%H%M%S.txt"), "w") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
