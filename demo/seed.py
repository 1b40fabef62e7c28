"""Fills the old shop: users, sessions and lines, in multi-row inserts, from one seed number."""

import argparse
import multiprocessing
import random
import time

import shop

BATCH_ROWS = 2_000


def write(table, columns, rows):
    """Inserts the rows of an iterator in batches, a transaction each; returns how many."""
    statement, count, batch = shop.insert(table, columns), 0, []
    connection = shop.legacy()
    cursor = connection.cursor()
    cursor.max_stmt_length = 4 << 20

    def flush():
        cursor.executemany(statement, batch)
        connection.commit()

    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            flush()
            count, batch = count + len(batch), []
    if batch:
        flush()
    connection.close()
    return count + len(batch)


def users(seed):
    draw = random.Random(f"{seed} users")
    return write("users", shop.USER_COLUMNS, (
        shop.user(draw, shop.user_id(i), f"{draw.choice(['user', 'USER', 'Kunde'])}{i}@shop.example")
        for i in range(shop.USERS)))


def sessions(seed):
    draw = random.Random(f"{seed} sessions")
    return write("cart_sessions", shop.SESSION_COLUMNS, (
        shop.session(draw, shop.session_id(seed, i), shop.maybe(draw, 0.7, shop.user_id(draw.randrange(shop.USERS)), 0))
        for i in range(shop.SESSIONS)))


def items(seed):
    draw = random.Random(f"{seed} items")
    return write("cart_items", shop.ITEM_COLUMNS, (
        shop.item(draw, shop.session_id(seed, i), line)
        for i in range(shop.SESSIONS) for line in range(1, shop.lines_of(i) + 1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    started = time.monotonic()
    with multiprocessing.Pool(3) as pool:
        parts = [pool.apply_async(part, (seed,)) for part in (items, sessions, users)]
        counts = [part.get() for part in parts]
    print(f"seeded {counts[2]:,} users, {counts[1]:,} sessions, {counts[0]:,} lines: "
          f"{sum(counts):,} rows in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
