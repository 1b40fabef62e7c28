"""The demo's load, by customers who come back when the old shop was away.

Prints a line of JSON at the end: transactions and rows that were committed, and connections lost.
"""

import random
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "demo"))

import load
import shop

from patient import Patient, main


class Customer(load.Shopper, Patient):
    """A shopper of the demo, who counts the rows that are written."""

    LOCKING = ("SELECT",)

    def __init__(self, number, seed, round_number):
        self.written = 0
        super().__init__(number, seed)
        # Keys must not repeat after a new connection; seeded rows are still found by the seed.
        self.random = random.Random(f"{seed} customer {number} {round_number}")
        self.counts = Counter()

    def run(self, statement, *values):
        rows = super().run(statement, *values)
        if not statement.startswith(self.LOCKING):
            self.written += rows
        return rows

    def many(self, statement, rows):
        super().many(statement, rows)
        self.written += len(rows)

    def once(self):
        self.written = 0
        outcome = self.transact()
        return outcome not in ("rolled back", "collided"), self.written


if __name__ == "__main__":
    main(Customer, load.THREADS)
