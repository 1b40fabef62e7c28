"""The floor: what PostgreSQL alone needs for the same rows.

COPY of a batch into a temporary table, an upsert from there into the table, COMMIT; one connection, the
best that a plain client does. Only that is timed: making the text beforehand is not.
"""

import io
import time

import database

BATCH_ROWS = 10_000


class Floor:
    def __init__(self):
        self.connection = database.target()
        with self.connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS floor_accounts")
            cursor.execute("CREATE TABLE floor_accounts (LIKE accounts INCLUDING ALL)")
            cursor.execute("ALTER TABLE floor_accounts DROP COLUMN IF EXISTS cutover_version")
            cursor.execute("CREATE TEMP TABLE batch (LIKE floor_accounts) ON COMMIT DELETE ROWS")
            cursor.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'floor_accounts'::regclass "
                           "AND attnum > 0 AND NOT attisdropped AND attname <> 'id'")
            columns = [name for (name,) in cursor.fetchall()]
        self.connection.commit()
        self.upsert = ("INSERT INTO floor_accounts SELECT * FROM batch ON CONFLICT (id) DO UPDATE SET "
                       + ", ".join(f"{c} = excluded.{c}" for c in columns))

    def rate(self, batches):
        """Rows per second over batches of (rows, text)."""
        rows, spent = 0, 0.0
        with self.connection.cursor() as cursor:
            for count, text in batches:
                source = io.StringIO(text)
                started = time.monotonic()
                cursor.copy_expert("COPY batch FROM STDIN", source)
                cursor.execute(self.upsert)
                self.connection.commit()
                spent += time.monotonic() - started
                rows += count
        return rows / spent

    def close(self):
        with self.connection.cursor() as cursor:
            cursor.execute("DROP TABLE floor_accounts")
        self.connection.commit()
        self.connection.close()
