"""The second source's tables: their rows, and how to reach both of its databases."""

import os
import random

import psycopg2
import pymysql

SBTEST_TABLES = 4
SBTEST_ROWS = 15_000
SEATS, PLACES, PARENTS = 2_000, 3_000, 3_000
TABLES = [*(f"sbtest{n}" for n in range(1, SBTEST_TABLES + 1)), "seats", "moving", "parents", "children"]
SBTEST_TARGET = """CREATE TABLE {table} (id integer PRIMARY KEY, k bigint NOT NULL, c text NOT NULL, pad text NOT NULL)"""


def source(**options):
    return pymysql.connect(host="127.0.0.1", port=int(os.environ["CHAOS_MARIADB_PORT"]), user="bank",
                           password=os.environ["LEGACY_PASSWORD"], database="bank", charset="utf8mb4", autocommit=False, **options)


def target():
    return psycopg2.connect(host="127.0.0.1", port=int(os.environ["MODERN_PORT"]), user="cutover",
                            password=os.environ["MODERN_PASSWORD"], dbname="bank")


def make_target():
    connection = target()
    with connection, connection.cursor() as cursor:
        for n in range(1, SBTEST_TABLES + 1):
            cursor.execute(SBTEST_TARGET.format(table=f"sbtest{n}"))
    connection.close()


def seed(number):
    draw = random.Random(f"{number} bank")
    connection = source()
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO seats (id, label, price) VALUES (%s, %s, %s)",
                           [(i, f"seat {i}", f"{draw.randint(0, 999)}.{draw.randint(0, 99):02}") for i in range(1, SEATS + 1)])
        cursor.executemany("INSERT INTO moving (place, part, body) VALUES (%s, %s, %s)",
                           [(i // 3, "abc"[i % 3], None if i % 7 == 0 else f"body {i} – é 紅") for i in range(PLACES)])
        cursor.executemany("INSERT INTO parents (id, name) VALUES (%s, %s)", [(i, f"parent {i}") for i in range(1, PARENTS + 1)])
        cursor.executemany("INSERT INTO children (parent_id, n, amount) VALUES (%s, %s, %s)",
                           [(i, n, f"{draw.randint(0, 9999)}.50") for i in range(1, PARENTS + 1) for n in range(1, draw.randint(1, 5))])
    connection.commit()
    connection.close()
