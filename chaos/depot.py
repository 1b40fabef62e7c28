"""The third source's tables: their rows, and how to reach both of its databases."""

import os

import psycopg2

GOODS, BINS, MOVES = 4_000, 3_000, 6_000
TABLES = ["goods", "bins", "moves"]


def source():
    """A session of the tables' owner, in a transaction until it commits."""
    return psycopg2.connect(host="127.0.0.1", port=int(os.environ["CHAOS_PG18_PORT"]), user="cutover",
                            password=os.environ["LEGACY_PASSWORD"], dbname="depot", connect_timeout=10,
                            options="-c lock_timeout=15s -c statement_timeout=120s")


def target():
    return psycopg2.connect(host="127.0.0.1", port=int(os.environ["MODERN_PORT"]), user="cutover",
                            password=os.environ["MODERN_PASSWORD"], dbname="depot")


def seed():
    connection = source()
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO goods SELECT i, 'good ' || i, i %% 900 + 0.25, i %% 50, 0, CASE WHEN i %% 5 = 0 THEN repeat('é' || i, 900) "
                       "END FROM generate_series(1, %s) i", (GOODS,))
        cursor.execute("INSERT INTO bins SELECT i / 3, substr('abc', 1 + i %% 3, 1), i FROM generate_series(0, %s) i", (BINS - 1,))
        cursor.execute("INSERT INTO moves SELECT i, date '2030-01-01' + i %% 365, 1 + i %% %s, 0 FROM generate_series(1, %s) i", (GOODS, MOVES))
    connection.close()
