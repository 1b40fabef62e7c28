"""The loads: the demo's shop, the second source's own application, and sysbench, each a process that outlives its server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import bank

SYSBENCH_SECONDS = 15    # a round; a round that meets a crash ends early
REPORT = re.compile(r"tps: ([\d.]+) qps: [\d.]+ \(r/w/o: [\d.]+/([\d.]+)/")


class Program:
    """One of our own load programs."""

    def __init__(self, name, script, folder, seed, rate):
        self.name = name
        self.errors = os.path.join(folder, f"load-{name}.log")
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen([sys.executable, script, "--seed", str(seed), "--rate", str(rate)],
                                            stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True,
                                            start_new_session=True)

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        """Its counts."""
        self.process.terminate()
        try:
            said = self.process.communicate(timeout=60)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            return Counter()
        return Counter(json.loads(said)) if said.strip() else Counter()

    def kill(self):
        if self.alive():
            self.process.kill()
            self.process.wait()


class Sysbench:
    """sysbench's OLTP on MariaDB, in rounds: it knows no way to connect again."""

    def __init__(self, folder, rate):
        self.name = "sysbench"
        self.log = os.path.join(folder, "load-sysbench.log")
        self.rate = rate
        self.counts = Counter()
        self.stopping = threading.Event()
        self.round = None
        self.thread = threading.Thread(target=self.rounds, daemon=True)

    @staticmethod
    def command(action, *options):
        return ["sysbench", "oltp_read_write", "--db-driver=mysql", "--mysql-host=127.0.0.1",
                f"--mysql-port={os.environ['CHAOS_MARIADB_PORT']}", "--mysql-user=bank",
                f"--mysql-password={os.environ['LEGACY_PASSWORD']}", "--mysql-db=bank", f"--tables={bank.SBTEST_TABLES}",
                f"--table-size={bank.SBTEST_ROWS}", *options, action]

    @classmethod
    def prepare(cls):
        subprocess.run(cls.command("prepare"), check=True, stdout=subprocess.DEVNULL)

    def start(self):
        self.thread.start()

    def rounds(self):
        options = ("--threads=3", f"--rate={self.rate}", f"--time={SYSBENCH_SECONDS}", "--report-interval=1", "--point-selects=2",
                   "--range-selects=off", "--mysql-ignore-errors=1213,1205,1020,1062,1412")
        while not self.stopping.is_set():
            with open(self.log, "a") as log:
                self.round = subprocess.Popen(self.command("run", *options), stdout=subprocess.PIPE, stderr=log,
                                              stdin=subprocess.DEVNULL, text=True, start_new_session=True)
            for line in self.round.stdout:
                found = REPORT.search(line)
                if found:
                    self.counts["transactions"] += round(float(found[1]))
                    self.counts["rows"] += round(float(found[2]))
            if self.round.wait() != 0:
                self.counts["connections_lost"] += 1
                self.stopping.wait(0.5)

    def alive(self):
        return self.thread.is_alive()

    def stop(self):
        self.stopping.set()
        self.kill()
        self.thread.join(30)
        return self.counts

    def kill(self):
        self.stopping.set()
        if self.round is not None and self.round.poll() is None:
            self.round.send_signal(signal.SIGKILL)
