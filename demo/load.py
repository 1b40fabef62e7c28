"""The old shop at work: transactions of several statements, at a bounded rate, until told to stop.

Carts are filled, changed, ordered, deleted; lines are soft-deleted, come back, and change places;
carts and users get new keys; users swap e-mail addresses. The shop has no foreign keys, so its
application locks the parent row before it touches children, and so does this. Whatever races
(deadlock, a row that another thread has just deleted) is rolled back and counted.

Stops after --seconds, or on SIGTERM or SIGINT with the current transactions finished.
"""

import argparse
import random
import signal
import string
import threading
import time
from collections import Counter

import pymysql

import shop

THREADS = 4
RECENT_MAX = 2_000
RETRIED = {1205, 1213}    # lock wait timeout, deadlock
DUPLICATE = 1062


class Gone(Exception):
    """The row that was drawn has been deleted meanwhile."""


class Shopper:
    """One connection's worth of customers."""

    def __init__(self, number, seed, round=1):
        self.random = random.Random(f"{seed} shopper {number} {round}")
        self.seed = seed
        self.carts = []       # keys made by this shopper, the newest last
        self.connection = shop.legacy()
        self.cursor = self.connection.cursor()
        self.statements = 0

    def run(self, statement, *values):
        self.statements += 1
        return self.cursor.execute(statement, values)

    def many(self, statement, rows):
        if rows:
            self.statements += 1
            self.cursor.executemany(statement, rows)

    # Drawing rows.

    def new_key(self):
        return f"{self.random.getrandbits(128):032x}"

    def remember(self, key):
        self.carts.append(key)
        if len(self.carts) > RECENT_MAX:
            del self.carts[0]

    def cart(self):
        """Locks a cart and returns its key."""
        if self.carts and self.random.random() < 0.5:
            key = self.random.choice(self.carts)
        else:
            key = shop.session_id(self.seed, self.random.randrange(shop.SESSIONS))
        if not self.run("SELECT 1 FROM cart_sessions WHERE session_id = %s FOR UPDATE", key):
            raise Gone
        return key

    def user(self):
        """Locks a user and returns its key."""
        key = shop.user_id(self.random.randrange(shop.USERS))
        if not self.run("SELECT 1 FROM users WHERE id = %s FOR UPDATE", key):
            raise Gone
        return key

    def lines(self, cart):
        self.run("SELECT line_no FROM cart_items WHERE session_id = %s ORDER BY line_no", cart)
        return [line for (line,) in self.cursor.fetchall()]

    def email(self):
        return f"{''.join(self.random.choices(string.ascii_letters, k=12))}@new.example"

    # Transactions.

    def open_cart(self):
        owner = self.user() if self.random.random() < 0.7 else 0
        key = self.new_key()
        self.run(shop.insert("cart_sessions", shop.SESSION_COLUMNS), *shop.session(self.random, key, owner))
        self.many(shop.insert("cart_items", shop.ITEM_COLUMNS),
                  [shop.item(self.random, key, line + 1) for line in range(self.random.randint(0, 4))])
        self.run("UPDATE cart_sessions SET total = (SELECT sum(qty * price) FROM cart_items WHERE session_id = %s "
                 "AND qty < 100) WHERE session_id = %s", key, key)
        self.remember(key)

    def fill_cart(self):
        key = self.cart()
        lines = self.lines(key)
        line = max(lines, default=0) + 1
        self.run(shop.insert("cart_items", shop.ITEM_COLUMNS), *shop.item(self.random, key, line))
        if lines:
            self.run("UPDATE cart_items SET qty = qty + 1, options = JSON_SET(coalesce(options, '{}'), '$.size', %s) "
                     "WHERE session_id = %s AND line_no = %s AND qty < 1000",
                     self.random.choice(["L", "XXL", "é"]), key, self.random.choice(lines))
        self.run("UPDATE cart_sessions SET cart_data = %s, updated = %s, time_on_site = %s WHERE session_id = %s",
                 shop.cart_json(self.random), shop.wall_clock(self.random, fraction=True), "01:02:03", key)

    def check_out(self):
        key = self.cart()
        self.run("UPDATE cart_sessions SET status = status + 1, expires = NULL WHERE session_id = %s AND status < 3", key)
        self.run("UPDATE cart_items SET price = round(price * 0.9, 2), discount_pct = 10 WHERE session_id = %s", key)

    def soft_delete(self):
        key = self.cart()
        self.run("UPDATE cart_items SET is_deleted = 1 - coalesce(is_deleted, 0) WHERE session_id = %s AND line_no <= %s",
                 key, self.random.randint(1, 3))
        self.run("UPDATE cart_sessions SET is_mobile = 1 - coalesce(is_mobile, 0) WHERE session_id = %s", key)

    def drop_line(self):
        key = self.cart()
        self.run("DELETE FROM cart_items WHERE session_id = %s ORDER BY line_no DESC LIMIT 1", key)
        self.run("UPDATE cart_sessions SET total = NULL WHERE session_id = %s", key)

    def drop_cart(self):
        key = self.cart()
        self.run("DELETE FROM cart_items WHERE session_id = %s", key)
        self.run("DELETE FROM cart_sessions WHERE session_id = %s", key)

    def rotate_cart(self):
        old, new = self.cart(), self.new_key()
        self.run("UPDATE cart_sessions SET session_id = %s WHERE session_id = %s", new, old)
        self.run("UPDATE cart_items SET session_id = %s WHERE session_id = %s", new, old)
        self.remember(new)

    def swap_lines(self):
        key = self.cart()
        lines = self.lines(key)
        if len(lines) < 2:
            raise Gone
        one, other = self.random.sample(lines, 2)
        for old, new in ((one, 60_000), (other, one), (60_000, other)):
            self.run("UPDATE cart_items SET line_no = %s WHERE session_id = %s AND line_no = %s", new, key, old)

    def replace_cart(self):
        """The same key deleted and made again, in one transaction; its lines too."""
        key = self.cart()
        self.run("DELETE FROM cart_items WHERE session_id = %s", key)
        self.run("DELETE FROM cart_sessions WHERE session_id = %s", key)
        self.run(shop.insert("cart_sessions", shop.SESSION_COLUMNS), *shop.session(self.random, key, 0))
        for verb in ("INSERT", "REPLACE"):
            self.run(shop.insert("cart_items", shop.ITEM_COLUMNS, verb), *shop.item(self.random, key, 1))

    def sign_up(self):
        self.run("INSERT INTO users (email, name, created) VALUES (%s, %s, %s)",
                 self.email(), self.random.choice(shop.FIRST), shop.wall_clock(self.random))
        key, cart = self.cursor.lastrowid, self.new_key()
        self.run(shop.insert("cart_sessions", shop.SESSION_COLUMNS), *shop.session(self.random, cart, key))
        self.remember(cart)

    def edit_user(self):
        key = self.user()
        self.run("UPDATE users SET status = %s, balance = balance - 0.0050, prefs = %s, flags = %s, last_login = %s "
                 "WHERE id = %s", self.random.choice(["active", "locked", "closed"]),
                 self.random.choice(["", "mail", "mail,push", "sms,push"]), bytes([self.random.randint(0, 255)]),
                 shop.wall_clock(self.random), key)
        self.run("UPDATE users SET notes = %s, birth_date = %s WHERE id = %s",
                 self.random.choice(shop.NOTES), self.random.choice(["0000-00-00", None, "1977-05-25"]), key)

    def renumber_user(self):
        """A user gets a new key; the carts follow."""
        old, new = self.user(), self.random.randint(100_000_000, 3_900_000_000)
        self.run("UPDATE users SET id = %s WHERE id = %s", new, old)
        self.run("UPDATE cart_sessions SET user_id = %s WHERE user_id = %s", new, old)

    def swap_emails(self):
        one, other = sorted((self.user(), self.user()))
        if one == other:
            raise Gone
        self.run("SELECT id, email FROM users WHERE id IN (%s, %s)", one, other)
        emails = dict(self.cursor.fetchall())
        self.run("UPDATE users SET email = %s WHERE id = %s", self.email(), one)
        self.run("UPDATE users SET email = %s WHERE id = %s", emails[one], other)
        self.run("UPDATE users SET email = %s WHERE id = %s", emails[other], one)

    def merge_users(self):
        """One user's carts go to another; the user goes before its carts have moved."""
        keep, leave = self.user(), self.user()
        if keep == leave:
            raise Gone
        self.run("DELETE FROM users WHERE id = %s", leave)
        self.run("UPDATE cart_sessions SET user_id = %s WHERE user_id = %s", keep, leave)

    def drop_user(self):
        key = self.user()
        self.run("SELECT 1 FROM cart_sessions WHERE user_id = %s FOR UPDATE", key)
        self.run("DELETE i FROM cart_items i JOIN cart_sessions s USING (session_id) WHERE s.user_id = %s", key)
        self.run("DELETE FROM cart_sessions WHERE user_id = %s", key)
        self.run("DELETE FROM users WHERE id = %s", key)

    def raise_prices(self):
        self.run("UPDATE cart_items SET price = price + 0.01 WHERE sku = %s", f"sku-{self.random.randint(1, 500)}")

    def change_mind(self):
        self.drop_cart()
        raise Gone

    KINDS = {
        open_cart: 24, fill_cart: 22, check_out: 10, soft_delete: 10, drop_line: 5, drop_cart: 6, rotate_cart: 4,
        swap_lines: 3, replace_cart: 2, sign_up: 4, edit_user: 6, renumber_user: 2, swap_emails: 2, merge_users: 1,
        drop_user: 1, raise_prices: 0.2, change_mind: 1,
    }

    def transact(self):
        """One transaction of a drawn kind; returns what became of it."""
        kind = self.random.choices(list(self.KINDS), list(self.KINDS.values()))[0]
        try:
            kind(self)
            self.connection.commit()
            return kind.__name__
        except Gone:
            self.connection.rollback()
            return "rolled back"
        except pymysql.err.MySQLError as error:
            self.connection.rollback()
            if error.args[0] in RETRIED or error.args[0] == DUPLICATE:
                return "collided"
            raise


def work(number, arguments, stop, counts, failures):
    shopper = Shopper(number, arguments.seed, arguments.round)
    interval = THREADS / arguments.rate
    due = time.monotonic()
    try:
        while not stop.is_set():
            counts[number][shopper.transact()] += 1
            # What could not be done in time is let go: the rate is a bound, never a debt.
            due = max(due + interval, time.monotonic() - interval)
            stop.wait(max(0.0, due - time.monotonic()))
    except Exception as error:
        failures.append(error)
        stop.set()
    finally:
        counts[number]["statements"] += shopper.statements
        shopper.connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="with which the old shop was seeded")
    parser.add_argument("--round", type=int, default=1, help="another number draws other transactions")
    parser.add_argument("--rate", type=float, default=300, help="transactions per second, at most")
    parser.add_argument("--seconds", type=float, default=3600)
    arguments = parser.parse_args()

    stop, failures = threading.Event(), []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    counts = [Counter() for _ in range(THREADS)]
    threads = [threading.Thread(target=work, args=(n, arguments, stop, counts, failures)) for n in range(THREADS)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    # Waiting in short steps, so that a signal is handled at once.
    while time.monotonic() - started < arguments.seconds and not stop.wait(0.2):
        pass
    stop.set()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - started
    total = sum(counts, Counter())
    statements = total.pop("statements")
    lost = total.pop("rolled back", 0) + total.pop("collided", 0)
    committed = sum(total.values())
    print(f"load: {committed:,} transactions committed ({committed / elapsed:.0f}/s), {lost:,} rolled back, "
          f"{statements:,} statements")
    print("load: " + ", ".join(f"{kind} {count}" for kind, count in total.most_common()))
    if failures:
        raise SystemExit(f"load: stopped by {failures[0]!r}")


if __name__ == "__main__":
    main()
