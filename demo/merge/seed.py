"""Fills the old application's tables: `seed.py [--seed N]`. The same seed makes the same rows."""

import argparse

from psycopg2.extras import execute_batch

from queue_app import ADMINS, EVENTS, NOTIFICATIONS, REQUESTS, Rows, insert, legacy


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    rows = Rows(f"{parser.parse_args().seed} seed")
    drawn = rows.random
    tables = {
        "admins": [rows.admin(key) for key in range(1, ADMINS + 1)],
        "spotify_auth": [rows.spotify(key) for key in range(1, ADMINS + 1) if drawn.random() < 0.6],
        "oauth_sessions": [rows.session(key) for key in range(1, ADMINS + 1) if drawn.random() < 0.6],
        "settings": [rows.settings(key) for key in range(1, EVENTS + 1)],
        "event_settings": [rows.event_settings(key) for key in range(1, EVENTS + 1) if drawn.random() < 0.9],
        "requests": [rows.request(key, drawn.randrange(1, EVENTS + 1)) for key in range(1, REQUESTS + 1)],
        "notifications": [rows.notification(key, drawn.randrange(1, REQUESTS + 1)) for key in range(1, NOTIFICATIONS + 1)],
    }
    connection = legacy()
    with connection, connection.cursor() as cursor:
        for table, filled in tables.items():
            execute_batch(cursor, insert(table), filled, page_size=500)
        for table, key in (("admins", "id"), ("settings", "event_id"), ("requests", "id"), ("notifications", "id")):
            cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', '{key}'), max({key})) FROM {table}")
    connection.close()
    print("  " + ", ".join(f"{len(filled):,} {table}" for table, filled in tables.items()))


if __name__ == "__main__":
    main()
