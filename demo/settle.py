"""Waits until the new shop can be compared with the old one: `settle.py URL` of the worker's /status.

The old shop must be closed: nobody else is logged in as its application. From then on everything that it committed
must have arrived. That the worker has applied all that it captured is not enough, since it may have more to capture; the
lag says up to when it has everything.
"""

import json
import sys
import time
import urllib.error
import urllib.request

import shop

PATIENCE_SECONDS = 300
# Sessions of a load that has just ended take a moment to go.
CLOSING_SECONDS = 5
# MySQL 5.7 tells commit times in whole seconds.
RESOLUTION_SECONDS = 1


def others_at_work():
    connection = shop.legacy()
    with connection.cursor() as cursor:
        # Without the PROCESS privilege a user sees its own sessions only, which are the ones asked for.
        cursor.execute("SELECT count(*) FROM information_schema.processlist WHERE id <> connection_id()")
        (count,) = cursor.fetchone()
    connection.close()
    return count


def in_step(url, closed):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            status = json.load(answer)
    except (urllib.error.URLError, TimeoutError) as error:
        return f"the worker does not answer: {error}"
    if status["halted"]:
        raise SystemExit(f"the worker is halted: {status['halted']['reason']}; {status['halted']['remedy']}")
    lag = status["lag_seconds"]
    if status["synced"] and lag is not None and lag + RESOLUTION_SECONDS < time.monotonic() - closed:
        return None
    return f"phase {status['phase']}, lag {status['lag_seconds']} s, {status['waiting']} waiting"


def main():
    started = time.monotonic()
    while others_at_work():
        if time.monotonic() > started + CLOSING_SECONDS:
            raise SystemExit("the old shop is still open: stop the load first (docker compose stop go-on)")
        time.sleep(0.5)
    closed = time.monotonic()
    while (why := in_step(sys.argv[1], closed)) is not None:
        if time.monotonic() > closed + PATIENCE_SECONDS:
            raise SystemExit(f"waited {PATIENCE_SECONDS} s in vain for the worker to be in step: {why}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
