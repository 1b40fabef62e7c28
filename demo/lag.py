"""Measures how far the new shop is behind, in two ways that do not trust each other.

`lag.py sample FILE` runs until SIGTERM. Ten times a second it commits a guest's cart in the old shop
and notes the moment; a second thread asks the new shop every other millisecond which of them it can
see. Beside that it scrapes what the worker says at /metrics. Samples go to FILE, one JSON object a line.

`lag.py report FILE` prints p50 and p99: of the whole run, kills and all, and of the part after the
last line `{"event": "steady", …}`.
"""

import json
import os
import random
import re
import signal
import sys
import threading
import time
import urllib.request

import psycopg2

import shop

PROBES_PER_SECOND = 10
POLL_SECONDS = 0.002
SCRAPE_SECONDS = 0.25
# After SIGTERM, for probes that have not arrived yet.
PATIENCE_SECONDS = 120
SAMPLE = re.compile(r'^(\w+)(?:\{(.*)\})? ([^ ]+)$')


class Recorder:
    def __init__(self, path):
        self.file = open(path, "a", buffering=1)
        self.lock = threading.Lock()

    def write(self, **sample):
        with self.lock:
            self.file.write(json.dumps(sample) + "\n")


class Prober:
    """Commits probes, and watches for them at the target."""

    def __init__(self, recorder):
        self.recorder = recorder
        self.lock = threading.Lock()
        self.outstanding = {}
        self.random = random.Random("probes")

    def commit_probes(self, stop):
        connection = shop.legacy()
        statement = shop.insert("cart_sessions", shop.SESSION_COLUMNS)
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            key = f"probe{time.time_ns():027d}"
            with connection.cursor() as cursor:
                cursor.execute(statement, shop.session(self.random, key, 0))
            connection.commit()
            with self.lock:
                self.outstanding[key] = time.time()
            due = max(due + 1 / PROBES_PER_SECOND, time.monotonic() - 1)
        connection.close()

    def watch(self, stop):
        """Until told to stop, and then until every probe has arrived."""
        connection = psycopg2.connect(shop.modern_dsn())
        connection.autocommit = True
        deadline = None
        with connection.cursor() as cursor:
            while True:
                with self.lock:
                    keys = list(self.outstanding)
                if stop.is_set():
                    deadline = deadline or time.monotonic() + PATIENCE_SECONDS
                    if not keys or time.monotonic() > deadline:
                        break
                if keys:
                    cursor.execute("SELECT cart_id FROM cart_sessions WHERE cart_id = ANY(%s)", (keys,))
                    seen = time.time()
                    for (key,) in cursor.fetchall():
                        with self.lock:
                            committed = self.outstanding.pop(key)
                        self.recorder.write(at=committed, probe_seconds=max(0.0, seen - committed))
                time.sleep(POLL_SECONDS)
        connection.close()
        if self.outstanding:
            sys.exit(f"lag: {len(self.outstanding)} carts did not arrive within {PATIENCE_SECONDS} s")


def metrics(url):
    """The samples of a scrape as (name, labels, value)."""
    with urllib.request.urlopen(url, timeout=1) as answer:
        for line in answer.read().decode().splitlines():
            found = SAMPLE.match(line)
            if found:
                yield found[1], found[2] or "", float(found[3])


def scrape(recorder, url, stop):
    while not stop.wait(SCRAPE_SECONDS):
        try:
            samples = list(metrics(url))
        except (OSError, ValueError):
            continue    # no worker at the moment: it was killed, or has not been started
        lag = [value for name, _, value in samples if name == "cutover_sync_lag_seconds"]
        buckets = {}
        for name, labels, value in samples:
            bound = re.search(r'le="([^"]+)"', labels)
            if name == "cutover_end_to_end_seconds_bucket" and bound:
                buckets[bound[1]] = buckets.get(bound[1], 0) + value
        recorder.write(at=time.time(), sync_lag_seconds=max(lag, default=None), end_to_end=buckets)


def sample(path):
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    recorder = Recorder(path)
    prober = Prober(recorder)
    url = f"http://127.0.0.1:{os.environ['CUTOVER_HTTP_PORT']}/metrics"
    for target, arguments in ((prober.commit_probes, (stop,)), (scrape, (recorder, url, stop))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    prober.watch(stop)


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def histogram_quantile(buckets, share):
    """The upper bound of the bucket that holds the quantile."""
    bounds = sorted((float(bound.replace("+Inf", "inf")), count) for bound, count in buckets.items())
    total = bounds[-1][1] if bounds else 0
    return next((bound for bound, count in bounds if total and count >= total * share), None)


def increase(scrapes):
    """What a histogram gained over scrapes, through the restarts that set it back to nothing."""
    gained, previous = {}, {}
    for buckets in scrapes:
        restarted = any(count < previous.get(bound, 0) for bound, count in buckets.items())
        for bound, count in buckets.items():
            gained[bound] = gained.get(bound, 0) + count - (0 if restarted else previous.get(bound, 0))
        previous = buckets
    return gained


def line(label, values):
    if not values:
        return f"  {label:<52} no samples"
    return (f"  {label:<52} p50 {quantile(values, 0.5) * 1000:>8,.1f} ms   p99 {quantile(values, 0.99) * 1000:>9,.1f} ms"
            f"   ({len(values):,} samples)")


def report(path):
    samples = [json.loads(text) for text in open(path)]
    steady = max((s["at"] for s in samples if s.get("event") == "steady"), default=float("inf"))
    for name, since in (("whole run, kills and all", 0), ("steady", steady)):
        part = [s for s in samples if s["at"] >= since]
        print(line(f"{name}: commit to visible", [s["probe_seconds"] for s in part if "probe_seconds" in s]))
        print(line(f"{name}: cutover_sync_lag_seconds",
                   [s["sync_lag_seconds"] for s in part if s.get("sync_lag_seconds") is not None]))
    scrapes = [s["end_to_end"] for s in samples if s.get("end_to_end")]
    gained = increase(scrapes)
    p50, p99 = histogram_quantile(gained, 0.5), histogram_quantile(gained, 0.99)
    if p50 is not None:
        print(f"  {'whole run: cutover_end_to_end_seconds':<52} p50 <= {p50:g} s, p99 <= {p99:g} s"
              f"   ({max(gained.values()):,.0f} changes)")


if __name__ == "__main__":
    {"sample": sample, "report": report}[sys.argv[1]](sys.argv[2])
