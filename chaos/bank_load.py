"""The second source's application, beside sysbench: swaps, moves and families. See patient.py for its life."""

import random

import pymysql

import bank
from patient import Patient, main

THREADS = 3
COLLISIONS = {1205, 1213, 1062, 1020, 1451, 1452}    # lock waits, deadlocks, duplicates, families that are gone


class Gone(Exception):
    """The rows that were drawn are not there."""


class Clerk(Patient):
    def __init__(self, number, seed, round_number):
        self.random = random.Random(f"{seed} clerk {number} {round_number}")
        self.connection = bank.source()
        self.cursor = self.connection.cursor()
        self.written = 0

    def run(self, statement, *values):
        rows = self.cursor.execute(statement, values)
        if not statement.startswith("SELECT"):
            self.written += rows
        return rows

    # Transactions.

    def swap_labels(self):
        one, other = sorted(self.random.sample(range(1, bank.SEATS + 1), 2))
        if self.run("SELECT id, label FROM seats WHERE id IN (%s, %s) FOR UPDATE", one, other) != 2:
            raise Gone
        labels = dict(self.cursor.fetchall())
        self.run("UPDATE seats SET label = %s WHERE id = %s", f"moving {one} {self.random.getrandbits(40)}", one)
        self.run("UPDATE seats SET label = %s, price = price + 0.01 WHERE id = %s", labels[one], other)
        self.run("UPDATE seats SET label = %s WHERE id = %s", labels[other], one)

    def rotate_labels(self):
        """Three rows hand their labels on, over two transactions: between them one label is nobody's."""
        first = self.random.randint(1, bank.SEATS - 2)
        if self.run("SELECT id, label FROM seats WHERE id BETWEEN %s AND %s FOR UPDATE", first, first + 2) != 3:
            raise Gone
        labels = [label for _, label in sorted(self.cursor.fetchall())]
        self.run("UPDATE seats SET label = %s WHERE id = %s", f"between {first} {self.random.getrandbits(40)}", first)
        self.run("UPDATE seats SET label = %s WHERE id = %s", labels[0], first + 1)
        self.connection.commit()
        self.run("UPDATE seats SET label = %s WHERE id = %s", labels[1], first + 2)
        self.run("UPDATE seats SET label = %s WHERE id = %s", labels[2], first)

    def replace_seat(self):
        seat = self.random.randint(1, bank.SEATS)
        if not self.run("SELECT label FROM seats WHERE id = %s FOR UPDATE", seat):
            raise Gone
        label = self.cursor.fetchone()[0]
        self.run("DELETE FROM seats WHERE id = %s", seat)
        if self.random.random() < 0.5:
            # The label's new owner has another key.
            self.run("INSERT INTO seats (label, price) VALUES (%s, 1)", label)
            self.run("INSERT INTO seats (id, label) VALUES (%s, %s)", seat, f"new {seat} {self.random.getrandbits(40)}")
        else:
            self.run("REPLACE INTO seats (id, label, price) VALUES (%s, %s, 2.5)", seat, label)

    def move(self):
        """One row gets a new key."""
        place = self.random.randrange(bank.PLACES // 3)
        self.run("UPDATE moving SET place = place + %s, moves = moves + 1 WHERE place = %s AND part = %s",
                 bank.PLACES * self.random.choice([-1, 1]), place, self.random.choice("abc"))

    def move_back(self):
        self.run("UPDATE moving SET place = place - %s * sign(place), moves = moves + 1 WHERE abs(place) >= %s LIMIT 3",
                 bank.PLACES, bank.PLACES // 2)

    def shift(self):
        """A chain: each row takes the key that its neighbour has just left."""
        part = self.random.choice("abc")
        first = self.random.randrange(bank.PLACES // 3)
        self.run("UPDATE moving SET place = place + 1, moves = moves + 1 WHERE part = %s AND place BETWEEN %s AND %s "
                 "ORDER BY place DESC", part, first, first + 5)

    def refill(self):
        place = self.random.randrange(bank.PLACES // 3)
        self.run("INSERT INTO moving (place, part, body) VALUES (%s, %s, %s) ON DUPLICATE KEY UPDATE body = VALUES(body)",
                 place, self.random.choice("abc"), f"again {self.random.getrandbits(30)}")

    def found_family(self):
        self.run("INSERT INTO parents (name) VALUES (%s)", f"new {self.random.getrandbits(40)}")
        parent = self.cursor.lastrowid
        for n in range(1, self.random.randint(2, 6)):
            self.run("INSERT INTO children (parent_id, n, amount) VALUES (%s, %s, %s)", parent, n, self.random.randint(0, 500))
        self.run("UPDATE parents SET total = (SELECT count(*) FROM children WHERE parent_id = %s) WHERE id = %s", parent, parent)

    def parent(self):
        self.run("SELECT max(id) FROM parents")
        newest = self.cursor.fetchone()[0] or 1
        key = self.random.randint(1, newest)
        if not self.run("SELECT 1 FROM parents WHERE id = %s FOR UPDATE", key):
            raise Gone
        return key

    def adopt(self):
        """Children get another parent, and with it another key."""
        one, other = self.parent(), self.parent()
        if one == other:
            raise Gone
        self.run("SELECT coalesce(max(n), 0) FROM children WHERE parent_id = %s", other)
        highest = self.cursor.fetchone()[0]
        self.run("UPDATE children SET parent_id = %s, n = n + %s WHERE parent_id = %s AND n <= 2", other, highest, one)

    def drop_family(self):
        parent = self.parent()
        self.run("DELETE FROM children WHERE parent_id = %s", parent)
        self.run("DELETE FROM parents WHERE id = %s", parent)

    def refound_family(self):
        """The same keys, gone and back within one transaction."""
        parent = self.parent()
        self.run("DELETE FROM children WHERE parent_id = %s", parent)
        self.run("DELETE FROM parents WHERE id = %s", parent)
        self.run("INSERT INTO parents (id, name, total) VALUES (%s, 'back', 1)", parent)
        self.run("INSERT INTO children (parent_id, n, amount) VALUES (%s, 1, NULL)", parent)

    def pay(self):
        self.run("UPDATE children SET amount = coalesce(amount, 0) + 0.01 WHERE parent_id = %s", self.parent())

    KINDS = {
        swap_labels: 14, rotate_labels: 5, replace_seat: 4, move: 10, move_back: 4, shift: 6, refill: 5,
        found_family: 10, adopt: 6, drop_family: 5, refound_family: 3, pay: 12,
    }

    def once(self):
        self.written = 0
        kind = self.random.choices(list(self.KINDS), list(self.KINDS.values()))[0]
        try:
            kind(self)
            self.connection.commit()
            return True, self.written
        except Gone:
            self.connection.rollback()
        except pymysql.err.MySQLError as error:
            if error.args[0] not in COLLISIONS:
                raise
            self.connection.rollback()
        return False, 0


if __name__ == "__main__":
    main(Clerk, THREADS)
