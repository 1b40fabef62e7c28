"""Load that outlives its server: threads that connect again, at a bounded rate, until SIGTERM.

Uncommitted work that a crash has undone is not counted; a commit whose answer was lost is not either.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections import Counter

import psycopg2
import pymysql

RETRY_SECONDS = 0.5


class Patient:
    """What a customer has to offer: a connection, and one transaction at a time."""

    def once(self):
        """Runs one transaction; returns whether it was committed, and how many rows it wrote."""
        raise NotImplementedError


def work(make, number, arguments, threads, stop, counts):
    interval, rounds, customer = threads / arguments.rate, 0, None
    due = time.monotonic()
    while not stop.is_set():
        try:
            if customer is None:
                rounds += 1
                customer = make(number, arguments.seed, rounds)
            committed, rows = customer.once()
            counts["transactions" if committed else "rolled_back"] += 1
            counts["rows"] += rows if committed else 0
        except (pymysql.err.MySQLError, psycopg2.Error, OSError) as error:
            counts["connections_lost"] += 1
            print(f"{time.strftime('%H:%M:%S')} customer {number}: {error!r}", file=sys.stderr, flush=True)
            customer = None
            stop.wait(RETRY_SECONDS)
        # What could not be done in time is let go: the rate is a bound, never a debt.
        due = max(due + interval, time.monotonic() - interval)
        stop.wait(max(0.0, due - time.monotonic()))


def main(make, threads):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100, help="transactions per second, at most")
    arguments = parser.parse_args()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    counts = [Counter() for _ in range(threads)]
    workers = [threading.Thread(target=work, args=(make, number, arguments, threads, stop, counts[number]))
               for number in range(threads)]
    for worker in workers:
        worker.start()
    # Waiting in short steps, so that a signal is handled at once.
    while not stop.wait(0.2):
        pass
    for worker in workers:
        worker.join()
    print(json.dumps(sum(counts, Counter())))
