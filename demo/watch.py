"""One line a second about the worker, for the person who watches: `watch.py COMMAND…` runs `COMMAND… status --json`."""

import json
import subprocess
import sys
import time

BAR = 24


def line(status):
    tables = status["tables"]
    rows, copied = sum(t["rows"] for t in tables), sum(min(t["copied"], t["rows"]) for t in tables)
    share = copied / rows if rows else 0.0
    bar = "#" * round(share * BAR)
    parts = [f"{status['phase']:<9} [{bar:<{BAR}}] {share:4.0%}"]
    if status.get("eta_seconds"):
        parts.append(f"eta {status['eta_seconds']:.0f} s")
    if status["phase"] != "following":
        parts.append(f"{status.get('copied_rows_per_second', 0):,.0f} rows/s")
    parts.append(f"{status.get('changes_per_second', 0):,.0f} changes/s")
    lag = status["lag_seconds"]
    parts.append("lag unknown" if lag is None else f"lag {lag:.1f} s")
    parts += [f"{status[name]} {label}" for name, label in (("waiting", "waiting"), ("dead_letters", "dead letters")) if status[name]]
    if status.get("worker_running") is False:
        parts.append("no worker")
    if status["halted"]:
        parts.append(f"HALTED: {status['halted']['reason']}")
    return "  " + "   ".join(parts)


def main():
    while True:
        answer = subprocess.run([*sys.argv[1:], "status", "--json"], capture_output=True, text=True, check=False)
        try:
            print(line(json.loads(answer.stdout)), flush=True)
        except ValueError:
            pass    # before the worker's first start there is nothing to tell
        time.sleep(1)


if __name__ == "__main__":
    main()
