"""The old application at work: transactions of several statements, at a bounded rate, until told to stop.

Admins sign in, also before their own row is there; they are deleted, marked as deleted, come back, change their keys and swap their
addresses. Events lose and regain their settings. Requests are voted for, get new keys and go with their event.
Notifications change the set of their recipients. Whatever races (a deadlock, a row that another thread has just
deleted) is rolled back and counted.

Stops on SIGTERM or SIGINT with the current transactions finished.
"""

import argparse
import json
import signal
import threading
import time
from collections import Counter

import psycopg2

from queue_app import ADMINS, EVENTS, NOTIFICATIONS, REQUESTS, Rows, insert, legacy

THREADS = 4
MOVED = 10_000_000    # what a key that is changed grows by


class Gone(Exception):
    """The row that was drawn is not there."""


class Host:
    """One connection's worth of people."""

    def __init__(self, number, seed):
        self.rows = Rows(f"{seed} host {number}")
        self.random = self.rows.random
        self.connection = legacy()
        self.cursor = self.connection.cursor()

    def run(self, statement, *values):
        self.cursor.execute(statement, values)
        return self.cursor.rowcount

    def needs(self, statement, *values):
        if self.run(statement, *values) < 1:
            raise Gone

    def put(self, table, row):
        self.run(insert(table), *row)

    def fresh(self, table, key):
        self.run(f"SELECT nextval(pg_get_serial_sequence('{table}', '{key}'))")
        return self.cursor.fetchone()[0]

    def admin(self):
        return self.random.randrange(1, ADMINS + 1)

    # What people do, each one transaction (or two, where the order of the rows matters).

    def sign_up(self):
        key = self.fresh("admins", "id")
        contributors = [("spotify_auth", self.rows.spotify(key)), ("oauth_sessions", self.rows.session(key))]
        self.random.shuffle(contributors)
        early = self.random.randrange(3)
        for table, row in contributors[:early]:
            self.put(table, row)
        if self.random.random() < 0.5:
            self.connection.commit()
        self.put("admins", self.rows.admin(key))
        for table, row in contributors[early:]:
            self.put(table, row)

    def refresh(self):
        key = self.admin()
        row = self.rows.spotify(key)
        if not self.run("UPDATE spotify_auth SET access_token = %s, scopes = %s, expires_at = %s WHERE admin_id = %s",
                        row[1], row[3], row[4], key):
            self.put("spotify_auth", row)

    def unlink(self):
        self.needs("DELETE FROM spotify_auth WHERE admin_id = %s", self.admin())

    def log_in(self):
        row = self.rows.session(self.admin())
        self.run(insert("oauth_sessions").replace("DO NOTHING", "(admin_id) DO UPDATE SET provider = excluded.provider, subject = "
                 "excluded.subject, claims = excluded.claims, last_seen = excluded.last_seen"), *row)

    def log_out(self):
        self.needs("DELETE FROM oauth_sessions WHERE admin_id = %s", self.admin())

    def mark_deleted(self):
        self.needs("UPDATE admins SET deleted_at = CASE WHEN deleted_at IS NULL THEN timestamp '2024-06-01' END WHERE id = %s", self.admin())

    def delete_admin(self):
        """What it has signed in with stays, and is the account's again if the admin comes back."""
        key = self.admin()
        self.needs("DELETE FROM admins WHERE id = %s", key)
        if self.random.random() < 0.7:
            self.connection.commit()
            self.put("admins", self.rows.admin(key))

    def rename_key(self):
        key = self.admin()
        self.needs("UPDATE admins SET id = id + %s WHERE id = %s", MOVED, key)
        for table in ("spotify_auth", "oauth_sessions"):
            self.run(f"UPDATE {table} SET admin_id = admin_id + %s WHERE admin_id = %s", MOVED, key)

    def swap_addresses(self):
        one, other = sorted({self.admin(), self.admin(), self.admin()})[:2]
        self.needs("SELECT email FROM admins WHERE id = %s FOR UPDATE", one)
        mine = self.cursor.fetchone()[0]
        self.needs("SELECT email FROM admins WHERE id = %s FOR UPDATE", other)
        yours = self.cursor.fetchone()[0]
        for key, email in ((one, f"swap-{one}@example.org"), (other, mine), (one, yours)):
            self.run("UPDATE admins SET email = %s WHERE id = %s", email, key)

    def event(self, lock="KEY SHARE"):
        key = self.random.randrange(1, EVENTS + 1)
        self.needs(f"SELECT FROM settings WHERE event_id = %s FOR {lock}", key)
        return key

    def open_event(self):
        key = self.fresh("settings", "event_id")
        parts = [("settings", self.rows.settings(key)), ("event_settings", self.rows.event_settings(key))]
        self.random.shuffle(parts)
        for table, row in parts:
            self.put(table, row)
            if self.random.random() < 0.3:
                self.connection.commit()

    def change_event(self):
        key = self.event("UPDATE")
        row = self.rows.settings(key)
        self.run("UPDATE settings SET title = %s, venue = %s, closed = NOT closed WHERE event_id = %s", row[1], row[2], key)
        if not self.run("DELETE FROM event_settings WHERE event_id = %s", key) or self.random.random() < 0.8:
            self.put("event_settings", self.rows.event_settings(key))

    def cancel_event(self):
        key = self.event("UPDATE")
        self.run("DELETE FROM requests WHERE event_id = %s", key)
        self.run("DELETE FROM settings WHERE event_id = %s", key)
        if self.random.random() < 0.5:
            self.run("DELETE FROM event_settings WHERE event_id = %s", key)

    def wish(self):
        event = self.event()
        for _ in range(self.random.randrange(1, 5)):
            self.put("requests", self.rows.request(self.fresh("requests", "id"), event))

    def request(self):
        return self.random.randrange(1, REQUESTS + 1)

    def vote(self):
        self.needs("UPDATE requests SET votes = votes + 1 WHERE id = %s", self.request())

    def decide(self):
        row = self.rows.request(0, 0)
        self.needs("UPDATE requests SET state = %s, tip = %s, lyrics = coalesce(%s, lyrics) WHERE id = %s", row[5], row[7], row[8], self.request())

    def move_request(self):
        self.needs("UPDATE requests SET id = id + %s, votes = 0 WHERE id = %s", MOVED, self.request())

    def withdraw(self):
        self.needs("DELETE FROM requests WHERE id = %s", self.request())

    def notify(self):
        self.put("notifications", self.rows.notification(self.fresh("notifications", "id"), self.request()))

    def notify_others(self):
        self.needs("UPDATE notifications SET recipients = %s, payload = payload || %s::jsonb WHERE id = %s", self.rows.recipients(),
                   json.dumps({"again": self.random.random()}), self.random.randrange(1, NOTIFICATIONS + 1))

    def forget(self):
        self.needs("DELETE FROM notifications WHERE id = %s", self.random.randrange(1, NOTIFICATIONS + 1))

    DEEDS = [(sign_up, 6), (refresh, 10), (unlink, 3), (log_in, 10), (log_out, 3), (mark_deleted, 4), (delete_admin, 3), (rename_key, 1),
             (swap_addresses, 3), (open_event, 3), (change_event, 6), (cancel_event, 1), (wish, 14), (vote, 16), (decide, 8),
             (move_request, 1), (withdraw, 3), (notify, 8), (notify_others, 10), (forget, 2)]

    def once(self, counts):
        deed, = self.random.choices([deed for deed, _ in self.DEEDS], [weight for _, weight in self.DEEDS])
        try:
            deed(self)
            self.connection.commit()
            counts["transactions"] += 1
        except Gone:
            self.connection.rollback()
            counts["found nothing"] += 1
        except (psycopg2.errors.DeadlockDetected, psycopg2.errors.UniqueViolation):
            self.connection.rollback()
            counts["rolled back"] += 1


def work(number, arguments, stop, counts, failures):
    try:
        host = Host(number, arguments.seed)
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            host.once(counts)
            due = max(due + THREADS / arguments.rate, time.monotonic() - 1)
        host.connection.close()
    except Exception as error:    # the others are to stop as well, and the program is to fail
        failures.append(error)
        stop.set()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=250, help="transactions per second")
    arguments = parser.parse_args()
    stop, counts, failures = threading.Event(), Counter(), []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    threads = [threading.Thread(target=work, args=(n, arguments, stop, counts, failures)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("load: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    if failures:
        raise SystemExit(f"load: {failures[0]!r}")


if __name__ == "__main__":
    main()
