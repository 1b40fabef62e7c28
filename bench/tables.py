"""How long many small tables take, from the start of `run --until-synced` to its end. See docs/benchmarks.md.

scripts/bench-tables starts the servers and calls this with fresh databases.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import time

import database

FOLDER = pathlib.Path("bench-run/tables")
CONFIG = """name = "tables"
[source]
url = "mysql://bench:{password}@127.0.0.1:{source}/bench"
tables = [{tables}]
[target]
url = "postgresql://bench:{password}@127.0.0.1:{target}/bench"
[http]
listen = "127.0.0.1:{http}"
"""


def make(names, rows):
    """The tables on both sides, with their rows at the source."""
    source, target = database.source(), database.target()
    with source.cursor() as cursor:
        for name in names:
            cursor.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, name varchar(40) NOT NULL, amount decimal(10,2), made datetime(6))")
            values = ", ".join(f"({row}, 'row {row} of {name}', {row}.25, '2024-01-01 10:00:00.123456')" for row in range(rows))
            cursor.execute(f"INSERT INTO {name} VALUES {values}")
            source.commit()
    with target, target.cursor() as cursor:
        for name in names:
            cursor.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, name text NOT NULL, amount numeric(10,2), made timestamp)")
    source.close()
    target.close()


def copied(binary, names):
    """Seconds of one run, on a log and a state of its own."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    target = database.target()
    with target, target.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS cutover CASCADE; " + "".join(f"TRUNCATE {name}; " for name in names))
    target.close()
    ports = {"source": os.environ["BENCH_SOURCE_PORT"], "target": os.environ["BENCH_TARGET_PORT"], "http": os.environ["BENCH_HTTP_PORT"]}
    tables = ", ".join(f'"{name}"' for name in names)
    (FOLDER / "cutover.toml").write_text(CONFIG.format(password=os.environ["BENCH_PASSWORD"], tables=tables, **ports))
    began = time.monotonic()
    with open(FOLDER / "worker.log", "w") as log:
        code = subprocess.run([os.path.abspath(binary), "run", "--until-synced"], cwd=FOLDER, stdout=log, stderr=log, check=False).returncode
    if code != 0:
        raise SystemExit(f"bench: the worker ended with {code}: see {FOLDER}/worker.log")
    return time.monotonic() - began


def rows_there(names):
    target = database.target()
    with target.cursor() as cursor:
        cursor.execute("SELECT " + " + ".join(f"(SELECT count(*) FROM {name})" for name in names))
        return cursor.fetchone()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1000, help="of each table")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    names = [f"t{number:04}" for number in range(arguments.tables)]
    make(names, arguments.rows)
    for chosen in (names[:1], names):
        times = [copied(arguments.binary, chosen) for _ in range(arguments.runs)]
        if rows_there(chosen) != len(chosen) * arguments.rows:
            raise SystemExit("bench: rows are missing at the target")
        shown = ", ".join(f"{seconds:.2f}" for seconds in sorted(times))
        print(f"{len(chosen)} tables of {arguments.rows:,} rows: {shown} s", flush=True)


if __name__ == "__main__":
    main()
