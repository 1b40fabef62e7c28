"""Commit-to-visible latency at a fixed rate of single-row commits, measured from outside.

Writers insert rows under keys that are dealt out beforehand, and note when each COMMIT returned. A
process of its own asks the target every millisecond for the keys it has not seen yet. Latency is the
moment a row was seen minus the moment its commit returned, so it includes the poller's own interval.
"""

import multiprocessing
import threading
import time

import database

WRITERS = 4
POLL_SECONDS = 0.001
PATIENCE_SECONDS = 60


def write(number, first, count, rate, committed):
    connection = database.source()
    due = time.monotonic()
    with connection.cursor() as cursor:
        for key in range(first + number, first + count, WRITERS):
            time.sleep(max(0.0, due - time.monotonic()))
            cursor.execute(database.insert_one(), (key,))
            connection.commit()
            committed[key] = time.time()
            due += WRITERS / rate
    connection.close()


def poll(first, count, ready, answers):
    """Sends back when each key was first seen."""
    seen = {}
    lowest = first
    connection = database.target()
    connection.autocommit = True
    deadline = None
    with connection.cursor() as cursor:
        cursor.execute("PREPARE unseen AS SELECT id FROM accounts WHERE id >= $1")
        ready.set()
        while lowest < first + count:
            cursor.execute("EXECUTE unseen(%s)", (lowest,))
            now = time.time()
            for (key,) in cursor.fetchall():
                seen.setdefault(key, now)
            while lowest in seen:
                lowest += 1
            if deadline is None and seen:
                deadline = time.monotonic() + PATIENCE_SECONDS + count / 100
            if deadline and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
    connection.close()
    answers.put(seen)


def measure(first, rate, seconds):
    """Latencies in seconds, sorted, and the rate that was really reached."""
    count = int(rate * seconds)
    committed, ready, answers = {}, multiprocessing.Event(), multiprocessing.Queue()
    poller = multiprocessing.Process(target=poll, args=(first, count, ready, answers), daemon=True)
    poller.start()
    ready.wait()
    started = time.monotonic()
    writers = [threading.Thread(target=write, args=(n, first, count, rate, committed)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    elapsed = time.monotonic() - started
    seen = answers.get()
    poller.join()
    missing = [key for key in committed if key not in seen]
    if missing:
        raise SystemExit(f"bench: {len(missing)} of {count} rows were not seen at the target")
    return sorted(max(0.0, seen[key] - at) for key, at in committed.items()), count / elapsed
