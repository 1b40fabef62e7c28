"""What happens to the source's tables: altered, truncated, copied again, written at odd times and in large pieces."""

import threading
import time

import psycopg2
import pymysql

import bank
from lanes import Faults

LOCK_SECONDS = 15
REPAIR_SECONDS = 150    # a halt's remedy copies every table again
CLOCK_SECONDS = 25      # below [source] clock_ahead_max_seconds, which is 60
LARGE_ROWS = 20_000


class TableFaults(Faults):
    GAP = (6, 18)
    DATABASE = ""
    TABLES = []
    # (table, the two definitions between which it goes back and forth): columns in use, so that a copy must follow.
    REWRITES = []
    # Tables that nothing refers to at the target, and the statement that fills them again.
    TRUNCATED = {}
    LARGE = ""
    TOUCHED = []
    # Tables that no other one refers to at the source, and with no unique key but the primary one.
    SWAPPED = []
    # (table, the two orders of its key's columns).
    KEYS = []

    def __init__(self, pipeline, journal, controls):
        super().__init__(pipeline.name, journal, controls)
        self.pipeline = pipeline
        self.turns = {}
        self.added = []

    def run(self, *statements):
        """Runs them in one session; false if the server is away or the table too busy."""
        try:
            connection = self.pipeline.servers.source(self.pipeline.source, self.DATABASE)
            with connection, connection.cursor() as cursor:
                cursor.execute(f"SET SESSION lock_wait_timeout = {LOCK_SECONDS}")
                cursor.execute("SET SESSION sql_mode = 'NO_ENGINE_SUBSTITUTION'")
                for statement in statements:
                    cursor.execute(statement)
            return True
        except (pymysql.err.MySQLError, OSError) as error:
            self.journal.note(f"{self.where}: {error!r}")
            return False

    def change(self, kind, detail, *statements):
        done = self.run(*statements)
        if done:
            self.injected(kind, detail)
        else:
            self.skipped(kind, f"{detail}: the server refused, see above")
        return done

    def add_column(self, draw):
        table = draw.choice(self.TABLES)
        column, kind = f"chaos_{time.time_ns() // 1000}", draw.choice(["INT DEFAULT 5", "VARCHAR(40) DEFAULT 'é'", "DATETIME(6) NULL"])
        if self.change("column added", f"{table}, {kind}", f"ALTER TABLE {table} ADD COLUMN {column} {kind}{draw.choice(['', ' FIRST'])}"):
            self.added.append((table, column))

    def drop_column(self, draw):
        if not self.added:
            return self.add_column(draw)
        table, column = self.added.pop(draw.randrange(len(self.added)))
        self.change("added column dropped", table, f"ALTER TABLE {table} DROP COLUMN {column}")

    def rewrite(self, draw):
        table, *definitions = draw.choice(self.REWRITES)
        turn = self.turns.get(table, 0) + 1
        definition = definitions[turn % 2]
        before = self.pipeline.generation(table)
        if self.change("used column rewritten", f"{table}: {definition}", f"ALTER TABLE {table} MODIFY {definition}"):
            self.turns[table] = turn
            if before is not None:
                self.pipeline.recopies_owed.append((table, before))

    def truncate(self, draw):
        table = draw.choice(sorted(self.TRUNCATED))
        if self.change("table truncated", table, f"TRUNCATE TABLE {table}"):
            self.rest(draw.uniform(0, 3))
            self.run(self.TRUNCATED[table])

    def resnapshot(self, draw):
        table = draw.choice(self.TABLES)
        self.injected("snapshot restarted (cutover resnapshot)", table)
        command = self.pipeline.command("resnapshot", table)

        def wait():
            said = command.communicate()[0].strip()
            self.journal.note(f"{self.where}: resnapshot {table} ended with {command.returncode}: {said[-300:]}")

        threading.Thread(target=wait, daemon=True).start()
        if draw.random() < 0.3:
            self.rest(draw.uniform(0, 3))
            self.resnapshot(draw)

    def change_that_halts(self, kind, words, *statements):
        """What cannot be followed has to halt with these words, and its remedy has to work."""
        before = {table: self.pipeline.generation(table) for table in self.TABLES}
        self.pipeline.halts_expected.add(words)
        if not self.change(kind, "", *statements):
            return
        deadline = time.monotonic() + REPAIR_SECONDS
        while time.monotonic() < deadline and not self.controls.stop.is_set():
            after = {table: self.pipeline.generation(table) for table in self.TABLES}
            again = all(before[table] is not None and (after[table] or 0) > before[table] for table in self.TABLES)
            # Capture begins anew where the source is then: what happens before that halts nothing.
            if again and all(table["state"] == "copied" for table in self.pipeline.status().get("tables", [{"state": "unknown"}])):
                return
            self.rest(1)
        if not self.controls.stop.is_set():
            self.pipeline.recopies_owed += [(table, number) for table, number in before.items() if number is not None]
            self.journal.note(f"{self.where}: every table has still to be copied again after {kind}")

    def swap(self, draw):
        """As a tool that rebuilds a table does."""
        table = draw.choice(sorted(self.SWAPPED))
        self.change_that_halts("table swapped by RENAME", "was renamed to", f"DROP TABLE IF EXISTS {table}_next, {table}_last",
                               f"CREATE TABLE {table}_next LIKE {table}", f"INSERT INTO {table}_next SELECT * FROM {table}",
                               f"RENAME TABLE {table} TO {table}_last, {table}_next TO {table}", f"DROP TABLE {table}_last")

    def exchange(self, draw):
        """A captured table changes places with a partition of another one."""
        table = draw.choice(sorted(self.SWAPPED))
        self.change_that_halts("EXCHANGE PARTITION", "exchanged with a partition", f"DROP TABLE IF EXISTS {table}_parts",
                               f"CREATE TABLE {table}_parts LIKE {table}", f"INSERT INTO {table}_parts SELECT * FROM {table} LIMIT 500",
                               f"ALTER TABLE {table}_parts PARTITION BY KEY () PARTITIONS 1",
                               f"ALTER TABLE {table}_parts EXCHANGE PARTITION p0 WITH TABLE {table}",
                               f"DROP TABLE {table}_parts")

    def replace_key(self, draw):
        """The same columns in another order: rows are still told apart by them."""
        table, *orders = draw.choice(self.KEYS)
        turn = self.turns.get(f"key of {table}", 0) + 1
        self.turns[f"key of {table}"] = turn
        self.change_that_halts("primary key replaced", "primary key",
                               f"ALTER TABLE {table} DROP PRIMARY KEY, ADD PRIMARY KEY ({orders[turn % 2]})")

    def jump(self, draw):
        """Commits that say they happened before, or will happen: within the bound, and back and forth."""
        statements = []
        for _ in range(draw.randint(3, 12)):
            statements.append(f"SET TIMESTAMP = {time.time() + draw.uniform(-CLOCK_SECONDS, CLOCK_SECONDS):.6f}")
            statements.append(draw.choice(self.TOUCHED).format(n=draw.randint(0, 2000)))
        self.change("clock of commit jumped (SET TIMESTAMP)", f"{len(statements) // 2} commits", *statements)

    def large_transaction(self, draw):
        self.change("large transaction", f"up to {LARGE_ROWS:,} rows", "SET autocommit = 0", self.LARGE.format(rows=LARGE_ROWS), "COMMIT")

    KINDS = {add_column: 5, drop_column: 4, rewrite: 3, truncate: 2, resnapshot: 4, jump: 6, large_transaction: 2, swap: 1, exchange: 1,
             replace_key: 1}


class ShopTables(TableFaults):
    DATABASE = "shop"
    TABLES = ["users", "cart_sessions", "cart_items"]
    REWRITES = [
        # Values change without an event: money is rounded to ten cents.
        ("users", "balance DECIMAL(12,4) NOT NULL DEFAULT 0", "balance DECIMAL(12,1) NOT NULL DEFAULT 0"),
        ("cart_sessions", "user_agent VARCHAR(255) DEFAULT NULL", "user_agent VARCHAR(300) CHARACTER SET utf8mb4 DEFAULT NULL"),
        ("cart_items", "price DECIMAL(10,2) NOT NULL", "price DECIMAL(10,1) NOT NULL"),
    ]
    TRUNCATED = {
        "cart_items": "INSERT IGNORE INTO cart_items (session_id, line_no, sku, title, price, added) SELECT session_id, 1, "
                      "concat('sku-', 1 + crc32(session_id) % 500), 'Tee 紅茶', 1.25, created FROM cart_sessions",
    }
    SWAPPED = ["cart_items"]
    KEYS = [("cart_items", "session_id, line_no", "line_no, session_id")]
    LARGE = "UPDATE cart_items SET qty = qty + 1 WHERE qty < 1000 LIMIT {rows}"
    TOUCHED = [
        "UPDATE users SET notes = 'at another time {n}' WHERE id = {n} + 1",
        "UPDATE cart_items SET gift_message = 'at another time {n}' WHERE qty < 1000 ORDER BY session_id LIMIT 5",
        "DELETE FROM cart_items WHERE qty = 9 ORDER BY session_id LIMIT 2",
    ]


class BankTables(TableFaults):
    DATABASE = "bank"
    TABLES = bank.TABLES
    REWRITES = [
        ("seats", "price DECIMAL(8,2) NOT NULL DEFAULT 0", "price DECIMAL(8,1) NOT NULL DEFAULT 0"),
        ("moving", "body VARCHAR(120) DEFAULT NULL", "body VARCHAR(200) DEFAULT NULL"),
        ("sbtest1", "k INT NOT NULL DEFAULT 0", "k BIGINT NOT NULL DEFAULT 0"),
        ("sbtest2", "c CHAR(120) NOT NULL DEFAULT ''", "c VARCHAR(130) NOT NULL DEFAULT ''"),
        ("children", "amount DECIMAL(10,2) DEFAULT NULL", "amount DECIMAL(10,1) DEFAULT NULL"),
    ]
    TRUNCATED = {
        "sbtest3": f"INSERT IGNORE INTO sbtest3 (id, k, c, pad) SELECT id, k, c, pad FROM sbtest4 WHERE id <= {bank.SBTEST_ROWS // 3}",
        "seats": f"INSERT IGNORE INTO seats (id, label) SELECT seq, concat('seat ', seq) FROM seq_1_to_{bank.SEATS}",
        "moving": f"INSERT IGNORE INTO moving (place, part, body) SELECT seq, 'b', concat('body ', seq) FROM seq_0_to_{bank.PLACES // 3}",
        "children": "INSERT IGNORE INTO children (parent_id, n) SELECT id, 1 FROM parents",
    }
    SWAPPED = ["moving", "sbtest2"]
    KEYS = [("moving", "place, part", "part, place")]
    LARGE = "UPDATE sbtest4 SET k = k + 1 LIMIT {rows}"
    TOUCHED = [
        "UPDATE seats SET price = price + 1 WHERE id = {n}",
        "UPDATE moving SET moves = moves + 1 WHERE place = {n}",
        "UPDATE sbtest1 SET k = k + 1 WHERE id BETWEEN {n} AND {n} + 3",
        "DELETE FROM sbtest2 WHERE id = {n}",
    ]

    def mirror_column(self, draw):
        """A column that appears at the source, and later at the target too, which then has to get its values."""
        table = draw.choice(["moving", "parents", "sbtest4"])
        column = f"mirrored_{time.time_ns() // 1000}"
        if not self.change("column added on both sides", table, f"ALTER TABLE {table} ADD COLUMN {column} INT DEFAULT {draw.randint(1, 99)}"):
            return
        self.rest(draw.uniform(0, 5))
        while not self.controls.stop.is_set():
            try:
                connection = bank.target()
                with connection, connection.cursor() as cursor:
                    cursor.execute("SET lock_timeout = '20s'")
                    cursor.execute(f"ALTER TABLE {table} ADD COLUMN {column} integer")
                connection.close()
                return
            except psycopg2.Error as error:
                self.journal.note(f"{self.where}: {error!r}")
                self.rest(1)

    def set_statement(self, draw):
        """MariaDB's settings for one statement: what they carry counts, not what they are."""
        for_a_while = f"SET STATEMENT max_statement_time = {draw.randint(20, 60)} FOR"
        if draw.random() < 0.5:
            self.change("SET STATEMENT … FOR a row change", "sbtest1", f"{for_a_while} UPDATE sbtest1 SET k = k + 1 WHERE id % 50 = {draw.randint(0, 49)}")
            return
        table = draw.choice(sorted(self.TRUNCATED))
        if self.change("SET STATEMENT … FOR TRUNCATE", table, f"{for_a_while} TRUNCATE TABLE {table}"):
            self.rest(draw.uniform(0, 3))
            self.run(self.TRUNCATED[table])

    KINDS = {**TableFaults.KINDS, mirror_column: 1, set_statement: 3}
