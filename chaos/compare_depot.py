"""Compares every row of the third source with the target, knowing nothing of cutover. Exits 0 only if nothing differs."""

import depot

EXAMPLES_MAX = 10
COLUMNS = {
    "goods": (1, "id, name, trim_scale(price), amount, spare, note"),
    "bins": (2, "place, part, amount"),
    "moves": (2, "id, day, good, n"),
}


def rows(connect, table):
    key_length, columns = COLUMNS[table]
    connection = connect()
    with connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM {table}")
        found = {row[:key_length]: row[key_length:] for row in cursor.fetchall()}
    connection.close()
    return found


def main():
    total, examples, different = 0, [], 0
    for table in depot.TABLES:
        old, new = rows(depot.source, table), rows(depot.target, table)
        keys = old.keys() | new.keys()
        wrong = sorted(key for key in keys if old.get(key) != new.get(key))
        for key in wrong[:EXAMPLES_MAX]:
            what = "is missing at the target" if key not in new else "is only at the target" if key not in old else "differs"
            examples.append(f"  {table} {' '.join(map(str, key))} {what}")
        print(f"  {table:<14} {len(keys):>9,} rows compared, {len(wrong):,} different")
        total, different = total + len(keys), different + len(wrong)
    print(f"rows compared:  {total:,}")
    print(f"rows different: {different:,}")
    for example in examples[:EXAMPLES_MAX]:
        print(example)
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
