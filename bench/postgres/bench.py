"""PostgreSQL to PostgreSQL: the rates of a copy and of a backlog, the worker's CPU, and both sides equal after each.

scripts/bench-postgres starts the servers and calls this with fresh databases.
"""

import os
import pathlib
import sys

import psycopg2

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import database  # noqa: E402
import rates  # noqa: E402

NAME = "postgres"
# The row of bench/database.py, computed by PostgreSQL.
ROW = (
    "i, (i * 7::bigint % 1000003)::int, concat(md5(i::text), '-', md5((i + 1)::text), '-', md5((i + 2)::text), '-', left(md5((i + 3)::text), 21)), "
    "left(concat(md5((i + 4)::text), '-', md5((i + 5)::text)), 60), (i % 100000) / 100.0, i % 2 = 1, "
    "CASE WHEN i % 3 <> 0 THEN 'note ' || i END, timestamp '2020-01-01' + i * interval '1 second', clock_timestamp()"
)
TRANSACTION_ROWS = 20
ARRIVED = "SELECT EXISTS (SELECT FROM accounts WHERE id = %(rows)s + %(changes)s / 2)"
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


def fill(rows):
    cursor = source()
    cursor.execute(f"INSERT INTO accounts SELECT {ROW} FROM generate_series(1, {rows}) i")
    cursor.execute("VACUUM ANALYZE accounts")


def change(rows, changes):
    cursor = source()
    half = TRANSACTION_ROWS // 2
    for first in range(0, changes // 2, half):
        new, old = rows + 1 + first, 1 + first % (rows - half)
        cursor.execute(f"BEGIN; INSERT INTO accounts SELECT {ROW} FROM generate_series({new}, {new + half - 1}) i; "
                       f"UPDATE accounts SET k = k + 1, updated = clock_timestamp() WHERE id BETWEEN {old} AND {old + half - 1}; COMMIT")


if __name__ == "__main__":
    rates.measure(sys.modules[__name__], __doc__, rows=1_000_000, changes=500_000)
