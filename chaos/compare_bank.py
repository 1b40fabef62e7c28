"""Compares every row of the second source with the target, in the spirit of the demo's comparison: knowing nothing of cutover.

Both sides are read in key order, as text. The columns are the target's, less cutover's own; the source must have
them all. Numbers are compared by value, times to the microsecond. Exits 0 only if nothing differs.
"""

from decimal import Decimal

import psycopg2.extensions
import pymysql

import bank

EXAMPLES_MAX = 10
FETCH_ROWS = 5_000
NUMBERS = ("smallint", "integer", "bigint", "numeric")
KEYS = {"moving": ["place", "part"], "children": ["parent_id", "n"]}


def columns_of(connection, table):
    """(name, type) of the target's columns in their order, the key first."""
    key = KEYS.get(table, ["id"])
    with connection.cursor() as cursor:
        cursor.execute("SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' "
                       "AND table_name = %s AND column_name <> 'cutover_version' ORDER BY ordinal_position", (table,))
        found = dict(cursor.fetchall())
    return [(name, found[name]) for name in key] + [(name, kind) for name, kind in found.items() if name not in key], len(key)


def value(text, kind):
    if text is None:
        return None
    if kind in NUMBERS:
        return Decimal(text)
    if kind.startswith("timestamp"):
        moment, _, fraction = text.partition(".")
        return moment, fraction.ljust(6, "0")
    return text


def read(cursor, columns):
    while rows := cursor.fetchmany(FETCH_ROWS):
        for row in rows:
            yield tuple(value(text, kind) for text, (_, kind) in zip(row, columns))


def old_rows(table, columns, key_length):
    order = ", ".join(name if kind in NUMBERS else f"CAST({name} AS BINARY)" for name, kind in columns[:key_length])
    # conv={}: every value as the text that the server sent.
    connection = bank.source(conv={}, cursorclass=pymysql.cursors.SSCursor)
    with connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(name for name, _ in columns)} FROM {table} ORDER BY {order}")
        yield from read(cursor, columns)


def new_rows(connection, table, columns, key_length):
    # A bare name would be the text that is selected.
    order = ", ".join(f"t.{name}" if kind in NUMBERS else f't.{name} COLLATE "C"' for name, kind in columns[:key_length])
    with connection.cursor(f"compare_{table}") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(f"SELECT {', '.join(f'{name}::text' for name, _ in columns)} FROM {table} t ORDER BY {order}")
        yield from read(cursor, columns)


def compare(connection, table):
    columns, key_length = columns_of(connection, table)
    old, new = old_rows(table, columns, key_length), new_rows(connection, table, columns, key_length)
    compared, different, examples = 0, 0, []
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        compared += 1
        left_key, right_key = left and left[:key_length], right and right[:key_length]
        key = " ".join(map(str, left_key or right_key))
        if right is None or (left is not None and left_key < right_key):
            what, left = f"{' '.join(map(str, left_key))} is missing at the target", next(old, None)
        elif left is None or right_key < left_key:
            what, right = f"{' '.join(map(str, right_key))} is only at the target", next(new, None)
        else:
            names = [name for (name, _), a, b in zip(columns, left, right) if a != b]
            what = f"{key} differs in {', '.join(names)}" if names else None
            left, right = next(old, None), next(new, None)
        if what:
            different += 1
            examples.append(f"  {table} {what}")
            del examples[EXAMPLES_MAX:]
    print(f"  {table:<14} {compared:>9,} rows compared, {different:,} different")
    return compared, different, examples


def main():
    connection = bank.target()
    connection.set_session(isolation_level=psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ, readonly=True)
    total, different, examples = 0, 0, []
    for table in bank.TABLES:
        counts = compare(connection, table)
        total, different, examples = total + counts[0], different + counts[1], examples + counts[2]
    connection.close()
    print(f"rows compared:  {total:,}")
    print(f"rows different: {different:,}")
    for example in examples[:EXAMPLES_MAX]:
        print(example)
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
