"""Fills the old bookshop, or has its customers at work until it is told to stop."""

import argparse
import random
import signal
import time

import shop


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=150, help="changes per second, at most")
    parser.add_argument("--fill", action="store_true", help="make the tables anew, fill them, and end")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    if arguments.fill:
        shop.seed(draw)
        print(f"filled: {shop.BOOKS:,} books, {shop.USERS:,} users, {shop.ORDERS:,} orders, {shop.CARTS:,} carts")
        return
    stopped = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.append(True))
    customers, began = shop.Customers(random.Random(arguments.seed + 1)), time.monotonic()
    while not stopped:
        customers.act()
        # What could not be done in time is let go: the rate is a bound, never a debt.
        time.sleep(max(0.0, 1 / arguments.rate - 0.002))
    print(f"load: {customers.changes:,} changes, {customers.changes / (time.monotonic() - began):.0f} a second")


if __name__ == "__main__":
    main()
