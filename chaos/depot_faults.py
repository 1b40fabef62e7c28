"""What happens to the tables of a PostgreSQL source: what its log says nothing of. See table_faults.py for the others."""

import threading
import time

import psycopg2

import depot
from lanes import Faults

PUBLICATION = "cutover_depot"
LARGE_ROWS = 3_000
SEEN_SECONDS = 20       # within which a difference is looked at, on a machine that is crowded


class DepotTables(Faults):
    GAP = (6, 18)
    TABLES = depot.TABLES

    def __init__(self, pipeline, journal, controls):
        super().__init__(pipeline.name, journal, controls)
        self.pipeline = pipeline
        self.added = []
        self.is_attached = False

    def run(self, *statements):
        """Runs each in a transaction of its own; false if the server is away or the table too busy."""
        try:
            connection = depot.source()
        except psycopg2.Error as error:
            self.journal.note(f"{self.where}: {error!r}")
            return False
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
            return True
        except psycopg2.Error as error:
            self.journal.note(f"{self.where}: {error!r}")
            return False
        finally:
            connection.close()

    def change(self, kind, detail, *statements, copies=None):
        """`copies` is the table that has to be copied again for it."""
        before = self.pipeline.generation(copies) if copies else None
        done = self.run(*statements)
        if done:
            self.injected(kind, detail)
            if before is not None:
                self.pipeline.recopies_owed.append((copies, before))
        else:
            self.skipped(kind, f"{detail}: the server refused, see above")
        return done

    def swap(self, draw):
        """As one statement, so that there is always a table of the name."""
        table = draw.choice(["goods", "bins"])
        self.change("table swapped in", table, f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; DROP TABLE IF EXISTS {table}_next, {table}_last; "
                    f"CREATE TABLE {table}_next (LIKE {table} INCLUDING ALL); INSERT INTO {table}_next SELECT * FROM {table}; "
                    f"DELETE FROM {table}_next WHERE {'id' if table == 'goods' else 'place'} % 20 = {draw.randrange(20)}; "
                    f"ALTER TABLE {table} RENAME TO {table}_last; ALTER TABLE {table}_next RENAME TO {table}; COMMIT",
                    f"DROP TABLE {table}_last", copies=table)

    ATTACH = "ALTER TABLE moves ATTACH PARTITION moves_visit FOR VALUES FROM ('2031-01-01') TO ('2032-01-01')"
    FILLED = ("DROP TABLE IF EXISTS moves_visit; CREATE TABLE moves_visit (LIKE moves INCLUDING ALL); INSERT INTO moves_visit "
              "SELECT i, date '2031-01-01' + i % 300, 1, 1 FROM generate_series(1, 900) i")

    def attach(self, draw):
        if self.is_attached:
            return self.detach(draw)
        if self.change("partition attached", "moves_visit", self.FILLED, self.ATTACH, copies="moves"):
            self.is_attached = True

    def detach(self, draw):
        if not self.is_attached:
            return self.attach(draw)
        statement = draw.choice(["ALTER TABLE moves DETACH PARTITION moves_visit", "DROP TABLE moves_visit"])
        if self.change("partition detached or dropped", statement, statement, copies="moves"):
            self.is_attached = False

    def short_life(self, draw):
        """A partition that has come and gone before anybody looks, or nearly."""
        if self.is_attached:
            return self.detach(draw)
        self.change("partition made, filled and dropped", "moves_visit", "DROP TABLE IF EXISTS moves_visit",
                    "CREATE TABLE moves_visit PARTITION OF moves FOR VALUES FROM ('2031-01-01') TO ('2032-01-01')",
                    "INSERT INTO moves SELECT i, date '2031-02-01', 1, 1 FROM generate_series(1, 50) i", "DROP TABLE moves_visit")

    def empty_partition(self, draw):
        partition = draw.choice(["moves_first", "moves_second"])
        self.change("partition truncated", partition, f"CREATE TEMPORARY TABLE kept AS SELECT * FROM {partition} WHERE id % 2 = 0; "
                    f"TRUNCATE {partition}; INSERT INTO moves SELECT * FROM kept", copies="moves")

    def rewrite(self, draw):
        table, column = draw.choice([("goods", "amount"), ("bins", "amount"), ("goods", "spare"), ("moves", "n")])
        self.change("ALTER TYPE USING", f"{table}.{column}", f"ALTER TABLE {table} ALTER {column} TYPE integer USING {column} % 1000 + {draw.randint(1, 9)}",
                    copies=table)

    def swap_names(self, draw):
        self.change("columns that swap their names", "goods", "BEGIN; ALTER TABLE goods RENAME amount TO between; ALTER TABLE goods RENAME spare TO amount; "
                    "ALTER TABLE goods RENAME between TO spare; COMMIT", copies="goods")

    def publication(self, draw):
        table = draw.choice(depot.TABLES)
        if draw.random() < 0.5:
            self.change("table taken out of the publication", table, f"ALTER PUBLICATION {PUBLICATION} DROP TABLE {table}", copies=table)
        else:
            altered = f"ALTER PUBLICATION {PUBLICATION} SET (publish = "
            self.change("publication altered and altered back", table, f"BEGIN; {altered}'insert'); DELETE FROM bins WHERE place % 97 = 3; "
                        f"{altered}'insert, update, delete, truncate'); COMMIT", copies=table)

    def add_or_drop_column(self, draw):
        if self.added and draw.random() < 0.5:
            table, column = self.added.pop(draw.randrange(len(self.added)))
            self.change("added column dropped", table, f"ALTER TABLE {table} DROP COLUMN {column}")
            return
        table, column = draw.choice(["bins", "moves"]), f"chaos_{time.time_ns() // 1000}"
        if self.change("column added", table, f"ALTER TABLE {table} ADD COLUMN {column} integer DEFAULT {draw.randint(1, 99)}"):
            self.added.append((table, column))

    def truncate(self, draw):
        if self.change("table truncated", "bins", "TRUNCATE bins"):
            self.rest(draw.uniform(0, 3))
            self.run(f"INSERT INTO bins SELECT i / 3, substr('abc', 1 + i % 3, 1), i FROM generate_series(0, {depot.BINS - 1}) i ON CONFLICT DO NOTHING")

    def vacuum(self, draw):
        table = draw.choice(["goods", "bins"])
        self.change("VACUUM FULL", table, f"VACUUM FULL {table}")

    def resnapshot(self, draw):
        table = draw.choice(depot.TABLES)
        self.injected("snapshot restarted (cutover resnapshot)", table)
        command = self.pipeline.command("resnapshot", table)

        def wait():
            said = command.communicate()[0].strip()
            self.journal.note(f"{self.where}: resnapshot {table} ended with {command.returncode}: {said[-300:]}")

        threading.Thread(target=wait, daemon=True).start()

    def large_transaction(self, draw):
        self.change("large transaction", f"{LARGE_ROWS:,} rows", f"UPDATE moves SET n = n + 1 WHERE id <= {LARGE_ROWS}")

    KINDS = {swap: 4, attach: 4, detach: 3, short_life: 3, empty_partition: 3, rewrite: 5, swap_names: 2, publication: 3, add_or_drop_column: 4,
             truncate: 2, vacuum: 2, resnapshot: 2, large_transaction: 2}
