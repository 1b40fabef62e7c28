"""The third source's application. See patient.py for its life."""

import random

import psycopg2

import depot
from patient import Patient, main

THREADS = 2


class Keeper(Patient):
    def __init__(self, number, seed, round_number):
        self.random = random.Random(f"{seed} keeper {number} {round_number}")
        self.connection = depot.source()
        self.cursor = self.connection.cursor()
        self.written = 0

    def run(self, statement, *values):
        self.cursor.execute(statement, values)
        self.written += max(self.cursor.rowcount, 0)

    # Transactions.

    def book(self):
        good = self.random.randint(1, depot.GOODS)
        self.run("INSERT INTO moves VALUES (%s, date '2030-01-01' + %s, %s, 1) ON CONFLICT (id, day) DO UPDATE SET n = moves.n + 1",
                 self.random.randint(1, 2 * depot.MOVES), self.random.randrange(365), good)
        self.run("UPDATE goods SET amount = amount + 1 WHERE id = %s", good)

    def correct(self):
        first = self.random.randint(1, depot.MOVES)
        self.run("UPDATE moves SET n = n + 1 WHERE id BETWEEN %s AND %s", first, first + 4)

    def postpone(self):
        """From one partition to another."""
        self.run("UPDATE moves SET day = day + 183 WHERE id = %s AND day < '2030-07-01'", self.random.randint(1, depot.MOVES))

    def forget(self):
        self.run("DELETE FROM moves WHERE id = %s", self.random.randint(1, 2 * depot.MOVES))

    def visit(self):
        """Rows of a partition that comes and goes."""
        self.run("UPDATE moves SET n = n + 1 WHERE day >= '2031-01-01' AND id %% 7 = %s", self.random.randrange(7))

    def describe(self):
        good = self.random.randint(1, depot.GOODS)
        self.run("UPDATE goods SET note = repeat(%s, 700) WHERE id = %s", f"note {self.random.getrandbits(20)}", good)

    def price(self):
        """The note is stored out of line, and the log leaves it out."""
        self.run("UPDATE goods SET price = price + 0.01, spare = spare + 1 WHERE id %% 400 = %s", self.random.randrange(400))

    def replace(self):
        good = self.random.randint(1, depot.GOODS)
        self.run("DELETE FROM goods WHERE id = %s", good)
        self.run("INSERT INTO goods (id, name, note) VALUES (%s, %s, NULL)", good, f"again {self.random.getrandbits(30)}")

    def carry(self):
        """Keys that change."""
        place = self.random.randrange(depot.BINS // 3)
        self.run("UPDATE bins SET place = -place - 1 WHERE place = %s AND part = %s AND NOT EXISTS "
                 "(SELECT FROM bins b WHERE b.place = -bins.place - 1 AND b.part = bins.part)", place, self.random.choice("abc"))

    def carry_back(self):
        self.run("UPDATE bins SET place = -place - 1, amount = amount + 1 WHERE (place, part) IN (SELECT place, part FROM bins b WHERE place < 0 "
                 "AND NOT EXISTS (SELECT FROM bins o WHERE o.place = -b.place - 1 AND o.part = b.part) ORDER BY place DESC LIMIT 3)")

    def refill(self):
        self.run("INSERT INTO bins VALUES (%s, %s, 1) ON CONFLICT (place, part) DO UPDATE SET amount = bins.amount + 1",
                 self.random.randrange(depot.BINS // 3), self.random.choice("abc"))

    KINDS = {book: 14, correct: 8, postpone: 4, forget: 4, visit: 4, describe: 6, price: 8, replace: 4, carry: 6, carry_back: 3, refill: 8}

    def once(self):
        self.written = 0
        kind = self.random.choices(list(self.KINDS), list(self.KINDS.values()))[0]
        try:
            kind(self)
            self.connection.commit()
            return True, self.written
        except psycopg2.Error:
            if self.connection.closed:
                raise
            # A lock that is waited for, a deadlock, a column that is called otherwise at the moment.
            self.connection.rollback()
        return False, 0


if __name__ == "__main__":
    main(Keeper, THREADS)
