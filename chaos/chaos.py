"""A run: loads, faults, and at the end the comparison of every row. scripts/chaos starts the servers and calls this."""

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "bench"), str(HERE.parent / "demo")]

import bank
import depot
from depot_faults import DepotTables
from disk import Disk
from disk_faults import DiskFaults
from journal import Journal
from lanes import Controls, Lane
from loads import Program, Sysbench
from network_faults import NOTICE_SECONDS, NetworkFaults
from pipeline import Pipeline
from proxy import Proxies
from server_faults import ServerFaults
from servers import Servers
from table_faults import BankTables, ShopTables
from worker_faults import WorkerFaults

CALM_EVERY_SECONDS = 150        # faults rest, and the workers have to catch up
FAULT_ENDS_SECONDS = 240        # the longest that a fault at work may last
CATCH_UP_SECONDS = 300
LAG_CALM_SECONDS = 10
SETTLE_SECONDS = 900
QUIET_SECONDS = 5               # of load, after the last fault
COPIED_SHARE = 0.3              # of the first copy, before the first fault
FIRST_COPY_SECONDS = 120


class Run:
    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = f"chaos-run/{time.strftime('%Y%m%d-%H%M%S')}-seed-{arguments.seed}"
        os.makedirs(self.folder)
        self.journal = Journal(f"{self.folder}/journal.log")
        self.servers = Servers(self.journal)
        self.proxies = Proxies()
        self.controls = Controls()
        self.pipelines = [self.pipeline("shop", "mysql80", ShopTables.TABLES, 0), self.pipeline("bank", "mariadb", BankTables.TABLES, 1),
                          self.pipeline("depot", "pg18", DepotTables.TABLES, 2)]
        self.loads, self.counts = [], Counter()
        self.rows_compared = self.rows_different = None
        self.watching = threading.Event()

    def pipeline(self, name, source, tables, number):
        base = int(os.environ["CHAOS_PORT_BASE"]) + 351 + 20 * number
        proxies = {
            "source": self.proxies.open(f"{name} source", base, self.servers.ports[source]),
            "target": self.proxies.open(f"{name} target", base + 1, self.servers.ports["pg15"]),
        }
        environment = {**os.environ, "CHAOS_SOURCE_PROXY": str(base), "CHAOS_TARGET_PROXY": str(base + 1)}
        return Pipeline(name, source, name, tables, f"chaos/{name}.toml", self.arguments.binary, self.folder, environment, base + 2,
                        proxies, Disk(f"chaos-run/disk-{name}"), self.servers, self.journal)

    def say(self, text):
        self.journal.note(text, show=True)

    # The parts.

    def prepare(self):
        self.say(f"seed {self.arguments.seed}, {self.arguments.minutes:g} minutes of faults; everything is logged to {self.journal.path}")
        self.say("seeding the shop (MySQL 8.0), the bank (MariaDB) and the depot (PostgreSQL 18)")
        shop = subprocess.Popen([sys.executable, "demo/seed.py", "--seed", str(self.arguments.seed)], stdout=subprocess.DEVNULL)
        Sysbench.prepare()
        bank.seed(self.arguments.seed)
        bank.make_target()
        depot.seed()
        if shop.wait() != 0:
            raise SystemExit("chaos: the shop could not be seeded")

    def open(self):
        self.say("the loads begin, the workers start")
        rates = self.arguments.rate
        self.loads = [Program("shop", "chaos/shop_load.py", self.folder, self.arguments.seed, rates * 0.4),
                      Program("bank", "chaos/bank_load.py", self.folder, self.arguments.seed, rates * 0.25),
                      Program("depot", "chaos/depot_load.py", self.folder, self.arguments.seed, rates * 0.15),
                      Sysbench(self.folder, max(1, round(rates * 0.2)))]
        self.loads[-1].start()
        for pipeline in self.pipelines:
            pipeline.start_worker()
        threading.Thread(target=self.watch, daemon=True).start()
        for pipeline in self.pipelines:
            self.wait(FIRST_COPY_SECONDS, lambda pipeline=pipeline: self.copied(pipeline) >= COPIED_SHARE)

    @staticmethod
    def copied(pipeline):
        return pipeline.current.metric("cutover_snapshot_progress_ratio") or 0.0

    def watch(self):
        """Once a second: workers that ended, lag, connections that nobody missed."""
        reported = set()
        while not self.watching.wait(1):
            for pipeline in self.pipelines:
                pipeline.watch()
                pipeline.sample()
                for side, proxy in pipeline.proxies.items():
                    seconds = proxy.oldest_half_open_seconds()
                    if seconds > NOTICE_SECONDS and (proxy.name, round(time.monotonic() - seconds)) not in reported:
                        reported.add((proxy.name, round(time.monotonic() - seconds)))
                        self.journal.problem(f"{pipeline.name}: a connection to the {side} that is dead for {seconds:.0f} s is still "
                                             "believed in")
            for load in self.loads:
                if not load.alive() and load.name not in reported and not self.controls.stop.is_set():
                    reported.add(load.name)
                    self.journal.problem(f"the load {load.name} ended by itself: see {self.folder}/load-{load.name}.log")

    @staticmethod
    def wait(seconds, done, pause=0.5):
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
        return True

    def start_faults(self):
        lanes = [("servers", ServerFaults(self.servers, self.journal, self.controls))]
        for pipeline, tables in zip(self.pipelines, (ShopTables, BankTables, DepotTables)):
            for kind, faults in (("worker", WorkerFaults), ("network", NetworkFaults), ("tables", tables), ("disk", DiskFaults)):
                lanes.append((f"{kind} {pipeline.name}", faults(pipeline, self.journal, self.controls)))
        for name, faults in lanes:
            if self.arguments.lanes and not any(part in name for part in self.arguments.lanes.split(",")):
                continue
            Lane(name, faults, self.arguments.seed, self.controls).start()
        self.controls.go.set()

    def torment(self):
        self.say("faults begin")
        self.start_faults()
        end = time.monotonic() + 60 * self.arguments.minutes
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, CALM_EVERY_SECONDS))
            self.calm()
            self.say(f"{sum(self.journal.faults.values())} faults so far, {len(self.journal.problems)} problems")
            self.controls.go.set()
        self.calm()
        self.controls.stop.set()

    def calm(self):
        """Holds the faults until the workers have caught up: a fault must end when it ends."""
        if not self.controls.hold(FAULT_ENDS_SECONDS):
            busy = [lane.name for lane in self.controls.lanes if not lane.idle.is_set()]
            self.journal.problem(f"faults did not end within {FAULT_ENDS_SECONDS} s: {', '.join(busy)}")
        for lane in self.controls.lanes:
            lane.faults.heal()
        began = time.monotonic()
        for pipeline in self.pipelines:
            if not self.wait(CATCH_UP_SECONDS, lambda pipeline=pipeline: pipeline.in_step(LAG_CALM_SECONDS)):
                self.journal.problem(f"{pipeline.name}: the worker did not catch up within {CATCH_UP_SECONDS} s without faults: "
                                     f"{pipeline.readiness()} ({pipeline.current.log})")
        self.journal.note(f"calm: caught up after {time.monotonic() - began:.1f} s")

    def settle(self):
        self.say("no more faults; the workers are restarted in good order, the loads stop, the workers catch up")
        for pipeline in self.pipelines:
            pipeline.in_hands.set()
            pipeline.stop_worker(pipeline.current)
            pipeline.start_worker()
            pipeline.in_hands.clear()
        time.sleep(QUIET_SECONDS)
        for load in self.loads:
            self.count(load)
        for pipeline in self.pipelines:
            began = time.monotonic()
            synced = self.wait(SETTLE_SECONDS, lambda pipeline=pipeline: self.settled(pipeline), pause=1)
            status = pipeline.status()
            if not synced:
                self.journal.problem(f"{pipeline.name}: not in sync within {SETTLE_SECONDS} s: {status}")
            if status.get("halted") or status.get("dead_letters") or status.get("waiting"):
                self.journal.problem(f"{pipeline.name}: left at the end: {status}")
            self.journal.note(f"{pipeline.name}: in sync after {time.monotonic() - began:.1f} s: {status}")
            for table, before in pipeline.recopies_owed:
                if (pipeline.generation(table) or 0) <= before:
                    self.journal.problem(f"{pipeline.name}: {table} was rewritten in copy {before} and has not been copied again")

    def settled(self, pipeline):
        status = pipeline.status()
        return bool(status.get("halted") or (status.get("synced") and not status.get("waiting")))

    def count(self, load):
        counts = load.stop()
        self.counts += counts
        self.journal.note(f"load {load.name}: {dict(counts)}")

    def compare(self):
        self.say("comparing every row")
        self.rows_compared = self.rows_different = 0
        for script in ("demo/compare.py", "chaos/compare_bank.py", "chaos/compare_depot.py"):
            answer = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
            for line in (answer.stdout + answer.stderr).splitlines():
                self.say(f"  {line}")
                name, _, number = line.partition(":")
                if name == "rows compared":
                    self.rows_compared += int(number.split()[0].replace(",", ""))
                elif name == "rows different":
                    self.rows_different += int(number.replace(",", ""))
            if answer.returncode != 0:
                self.journal.problem(f"{script} ended with {answer.returncode}")

    def verify(self):
        """What cutover itself says, which shares no code with the comparisons."""
        self.say("cutover verify")
        for pipeline in self.pipelines:
            verdict = pipeline.verify()
            rows = sum(table["rows"] for table in verdict.get("tables", []))
            self.say(f"  {pipeline.name}: {rows:,} rows, {'clean' if verdict.get('clean') else verdict}")
            if not verdict.get("clean"):
                self.journal.problem(f"{pipeline.name}: cutover verify is not clean")

    def end_workers(self):
        for pipeline in self.pipelines:
            pipeline.in_hands.set()
            pipeline.stop_worker(pipeline.current)
            pipeline.watch()

    def abandon(self):
        """Nothing of this process stays behind, however it ended."""
        self.controls.stop.set()
        self.watching.set()
        for load in self.loads:
            load.kill()
        for pipeline in self.pipelines:
            pipeline.disk.free()
            for worker in pipeline.workers:
                if worker.alive():
                    worker.process.kill()
                    worker.process.wait()

    def summary(self):
        journal, lines = self.journal, ["", "faults injected"]
        kinds = Counter()
        for (kind, _), count in journal.faults.items():
            kinds[kind] += count
        for kind, count in sorted(kinds.items()):
            where = ", ".join(f"{place} {n}" for (k, place), n in sorted(journal.faults.items()) if k == kind)
            lines.append(f"  {kind:<48} {count:>5}   {where}")
        lines.append(f"  {'in all':<48} {sum(kinds.values()):>5}")
        for (kind, where), count in sorted(journal.not_injected.items()):
            lines.append(f"  due, and not possible at the time: {kind} of {where} {count}")
        starts = {pipeline.name: pipeline.starts for pipeline in self.pipelines}
        lines += [
            f"transactions written  {self.counts['transactions']:,}, rows {self.counts['rows']:,}; "
            f"connections of the loads lost {self.counts['connections_lost']:,}",
            "workers started       " + ", ".join(f"{name} {count}" for name, count in starts.items()),
            "highest lag seen      " + ", ".join(f"{p.name} {p.lag_max:.1f} s" for p in self.pipelines),
            f"rows compared         {self.rows_compared or 0:,}",
            f"rows different        {self.rows_different if self.rows_different is not None else 'not known'}",
            f"problems              {len(journal.problems)}",
            *(f"  {problem}" for problem in journal.problems),
            f"seed {self.arguments.seed}; everything is in {journal.path}",
        ]
        for line in lines:
            self.say(line)

    def run(self):
        try:
            self.prepare()
            self.open()
            self.torment()
            self.settle()
            self.compare()
            self.verify()
            self.end_workers()
        except BaseException as error:
            self.journal.problem(f"the run did not reach its end: {error!r}")
            raise
        finally:
            self.abandon()
            self.summary()
        return 1 if self.journal.problems or self.rows_different else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--lanes", help="only lanes whose names have one of these words: servers, worker, network, tables, "
                        "disk, shop, bank, depot; the others' faults stay as they are for the same seed")
    parser.add_argument("--rate", type=float, default=200, help="transactions per second of all loads together, at most")
    arguments = parser.parse_args()
    # As an exception, so that everything is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(Run(arguments).run())


if __name__ == "__main__":
    main()
