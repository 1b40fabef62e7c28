"""What a comparison costs of rows that PostgreSQL 15 and 18 have alike: by digests, row by row, and again.

scripts/bench-verify --copies starts the servers and calls this with fresh databases.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))
sys.path.insert(0, str(FOLDER))
import bench  # noqa: E402

CONFIG = "bench/postgres/copies.toml"


def copy_out(port):
    """All rows in the order of their keys, by the server's own client."""
    url = f"postgresql://bench:{os.environ['BENCH_PASSWORD']}@127.0.0.1:{port}/bench"
    return subprocess.Popen(["psql", "-X", "-q", url, "-c", "COPY (SELECT * FROM accounts ORDER BY id) TO STDOUT"], stdout=subprocess.DEVNULL)


def selects():
    began = time.monotonic()
    clients = [copy_out(os.environ[port]) for port in ("BENCH_SOURCE_PORT", "BENCH_TARGET_PORT")]
    if any(client.wait() != 0 for client in clients):
        raise SystemExit("bench: a plain SELECT failed")
    return time.monotonic() - began


def verify(binary, rows, *options):
    """The table's verdict, which has to be clean, and seconds."""
    began = time.monotonic()
    answer = subprocess.run([binary, "-c", CONFIG, "verify", "--json", *options], stdout=subprocess.PIPE, check=False)
    seconds = time.monotonic() - began
    verdict = json.loads(answer.stdout) if answer.stdout.strip() else {}
    if answer.returncode != 0 or verdict["tables"][0]["rows"] != rows:
        raise SystemExit(f"bench: verify ended with {answer.returncode}: {json.dumps(verdict)[:2000]}")
    return verdict["tables"][0], seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    rows, lines = arguments.rows, [f"{arguments.rows:,} rows; load average before {os.getloadavg()[0]:.2f}"]
    bench.fill(rows)
    with open("bench-run/worker.log", "a") as log:
        subprocess.run([arguments.binary, "-c", CONFIG, "run", "--until-synced"], stdout=log, stderr=log, check=True)
    plain = min(selects() for _ in range(2))
    lines.append(f"two SELECT ... ORDER BY id at once       {rows / plain:>12,.0f} rows/s")
    for name, options in (("verify, the first", ()), ("verify again", ()), ("verify --full", ("--full",))):
        table, seconds = verify(arguments.binary, rows, *options)
        how = f"{table['digested']:,} rows by digests of both, {table['unchanged']:,} unchanged"
        lines.append(f"{name:<20} {rows / seconds:>12,.0f} rows/s, {plain / seconds:.2f} of the SELECTs; {how}")
    print("\n".join(lines), flush=True)
    with open(time.strftime("bench-run/verify-copies-%Y%m%d-%H%M%S.txt"), "w") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
