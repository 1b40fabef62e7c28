"""The benchmark's two databases: connections, rows and batches of changes."""

import os

import psycopg2
import pymysql

COLUMNS = "id, k, c, pad, amount, active, note, created, updated"
# One row as MySQL computes it from a key: 120 and 60 characters as sysbench has them.
ROW = (
    "{id}, mod({id} * 7, 1000003), concat(md5({id}), '-', md5({id} + 1), '-', md5({id} + 2), '-', left(md5({id} + 3), 21)), "
    "left(concat(md5({id} + 4), '-', md5({id} + 5)), 60), mod({id}, 100000) / 100, mod({id}, 2), "
    "if(mod({id}, 3) = 0, NULL, concat('note ', {id})), '2020-01-01' + INTERVAL {id} SECOND, now(6)"
)
FILL_ROWS = 50_000
TRANSACTION_ROWS = 20


def source(**options):
    connection = pymysql.connect(
        host="127.0.0.1", port=int(os.environ["BENCH_SOURCE_PORT"]), user="bench",
        password=os.environ["BENCH_PASSWORD"], database="bench", charset="utf8mb4", autocommit=False, **options)
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+00:00'")
    return connection


def target():
    return psycopg2.connect(host="127.0.0.1", port=int(os.environ["BENCH_TARGET_PORT"]), user="bench",
                            password=os.environ["BENCH_PASSWORD"], dbname="bench")


def insert_one():
    return f"INSERT INTO accounts ({COLUMNS}) SELECT {ROW.format(id='n.id')} FROM (SELECT %s AS id) n"


def insert_range(cursor, first, count):
    """Rows under the keys from `first`, made by the server from its table of numbers."""
    row = ROW.format(id=f"(n.i + {first})")
    cursor.execute(f"INSERT INTO accounts ({COLUMNS}) SELECT {row} FROM numbers n WHERE n.i < {count}")


def make_numbers(cursor):
    cursor.execute("CREATE TABLE numbers (i INT PRIMARY KEY)")
    cursor.execute("INSERT INTO numbers VALUES (0)")
    size = 1
    while size < FILL_ROWS:
        cursor.execute("INSERT INTO numbers SELECT i + %s FROM numbers WHERE i + %s < %s", (size, size, FILL_ROWS))
        size *= 2


def fill(rows):
    connection = source()
    with connection.cursor() as cursor:
        make_numbers(cursor)
        connection.commit()
        for first in range(1, rows + 1, FILL_ROWS):
            insert_range(cursor, first, min(FILL_ROWS, rows + 1 - first))
            connection.commit()
    connection.close()


def change(rows, changes, random):
    """Half inserts after the last key, half updates of random rows, in transactions of TRANSACTION_ROWS.

    Returns the key after the last one used.
    """
    connection = source()
    half, next_key = TRANSACTION_ROWS // 2, rows + 1
    with connection.cursor() as cursor:
        for _ in range(changes // TRANSACTION_ROWS):
            low = random.randint(1, rows - half)
            insert_range(cursor, next_key, half)
            cursor.execute("UPDATE accounts SET k = k + 1, note = concat('changed ', k), updated = now(6) "
                           "WHERE id BETWEEN %s AND %s", (low, low + half - 1))
            connection.commit()
            next_key += half
    connection.close()
    return next_key


SUMMARIES = (
    (source, "SELECT count(*), sum(k), max(id), sum(round(amount * 100)), sum(active), sum(microsecond(updated)), "
             "sum(conv(left(md5(concat(id, c, pad, coalesce(note, ''))), 8), 16, 10)) FROM accounts"),
    (target, "SELECT count(*), sum(k), max(id), sum(amount_cents), count(*) FILTER (WHERE active), "
             "sum(extract(microseconds FROM updated_at)::bigint % 1000000), "
             "sum(('x' || left(md5(id || c || pad || coalesce(note, '')), 8))::bit(32)::bigint) FROM accounts"),
)


def summaries():
    """Counts and sums over every column but one, of the source and of the target: equal if the rows are."""
    answers = []
    for connect, query in SUMMARIES:
        connection = connect()
        with connection.cursor() as cursor:
            cursor.execute(query)
            answers.append([int(value) for value in cursor.fetchone()])
        connection.close()
    return answers


AS_COPY = (
    "id, k, c, pad, CAST(round(amount * 100) AS SIGNED), if(active, 't', 'f'), coalesce(note, '\\\\N'), "
    "concat(created, '+00'), concat(updated, '+00')"
)


def rows_for_copy(where, batch_rows):
    """Batches of the source's rows, transformed, as text for COPY: (rows, text)."""
    connection = source(conv={}, cursorclass=pymysql.cursors.SSCursor)
    with connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {AS_COPY} FROM accounts WHERE {where}")
        while batch := cursor.fetchmany(batch_rows):
            yield len(batch), "".join("\t".join(row) + "\n" for row in batch)
