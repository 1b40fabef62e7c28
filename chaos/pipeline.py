"""A pipeline under test: its workers, its wires and its disk.

The worker that is meant to do the work is `current`; faults may start others beside it. A watchdog sees
how every worker ends: only an exit that a fault has announced is in order.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

from worker import Worker as BenchWorker

HTTP_PORTS = 8
LEASE_LOST = "has taken the lease"
HALTED = re.compile(r"ERROR halted\b.*")
COPY_AGAIN = "copy every table again with `cutover resnapshot"
REMEDY_TRIES, REMEDY_SECONDS = 10, 5
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Worker(BenchWorker):
    """One process. `expected` are the exit codes that are in order by now; none while it is to run."""

    def __init__(self, number, binary, config, log, http_port, environment):
        super().__init__(binary, config, log, http_port)
        self.number, self.http_port, self.environment = number, http_port, environment
        self.expected = set()
        self.judged = False

    def start(self):
        self.offset = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        command = [*self.command, "run", "--listen", f"127.0.0.1:{self.http_port}"]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env=self.environment, start_new_session=True)

    def alive(self):
        return self.process.poll() is None

    def signal(self, number):
        if self.alive():
            self.process.send_signal(number)

    def wait(self, seconds):
        """Its exit code, or None if it still runs by then."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def said(self):
        """What it has logged."""
        with open(self.log, errors="replace") as log:
            return COLOURS.sub("", log.read())


class Pipeline:
    def __init__(self, name, source, database, tables, config, binary, folder, environment, http_base, proxies, disk, servers, journal):
        self.name, self.source, self.database, self.tables, self.config = name, source, database, tables, config
        self.binary, self.folder, self.environment = binary, folder, environment
        self.http_base, self.proxies, self.disk = http_base, proxies, disk
        self.servers, self.journal = servers, journal
        self.lock = threading.RLock()
        self.workers = []
        self.current = None
        self.starts = 0
        self.in_hands = threading.Event()    # a fault looks after the workers at the moment
        self.halts = set()
        # Words of halts that faults have brought about on purpose: they are in order, and their remedy has to work.
        self.halts_expected = set()
        self.lag_max = 0.0
        # What a change of a column in use must have led to: (table, generation before it).
        self.recopies_owed = []

    # Workers.

    def start_worker(self, current=True):
        with self.lock:
            self.starts += 1
            log = os.path.join(self.folder, f"worker-{self.name}-{self.starts:03}.log")
            busy = {worker.http_port for worker in self.workers if worker.alive()}
            ports = (self.http_base + (self.starts + i) % HTTP_PORTS for i in range(HTTP_PORTS))
            port = next(port for port in ports if port not in busy)
            worker = Worker(self.starts, self.binary, self.config, log, port, self.environment)
            worker.start()
            self.workers.append(worker)
            if current:
                self.current = worker
            return worker

    def kill_worker(self, worker):
        worker.expected.add(-signal.SIGKILL)
        worker.signal(signal.SIGKILL)
        worker.wait(30)

    def stop_worker(self, worker):
        """SIGTERM; the promise is an exit with 0 within ten seconds, and this machine gets as many again."""
        worker.expected.add(0)
        worker.signal(signal.SIGTERM)
        began = time.monotonic()
        code = worker.wait(20)
        if code is None:
            self.journal.problem(f"{self.name}: worker {worker.number} still ran 20 s after SIGTERM: {worker.log}")
            self.kill_worker(worker)
        return code, time.monotonic() - began

    def watch(self):
        """Judges every worker that has ended since the last look, and replaces one that should not have."""
        with self.lock:
            for worker in self.workers:
                if worker.judged or worker.alive():
                    continue
                worker.judged = True
                code, text = worker.process.returncode, worker.said()
                self.look_for_halts(worker, text)
                if "panicked" in text:
                    self.journal.problem(f"{self.name}: worker {worker.number} panicked: {worker.log}")
                if code not in worker.expected:
                    last = text.strip().rsplit("\n", 1)[-1][-300:]
                    self.journal.problem(f"{self.name}: worker {worker.number} ended by itself with {code}: {last} ({worker.log})")
                else:
                    self.journal.note(f"{self.name}: worker {worker.number} ended with {code}, as it should")
            if self.current is not None and self.current.alive():
                self.look_for_halts(self.current, self.current.said())
            if self.current is not None and not self.current.alive() and not self.in_hands.is_set():
                self.start_worker()

    def look_for_halts(self, worker, text):
        """A halt that no fault explains is a problem. Its remedy is followed where it is a command, so that the rest of the
        run means something."""
        for halt in HALTED.findall(text):
            if (worker.number, halt) in self.halts:
                continue
            self.halts.add((worker.number, halt))
            told = f"{self.name}: worker {worker.number} {halt[:400]}"
            if any(words in halt for words in self.halts_expected):
                self.journal.note(f"expected: {told}")
            else:
                self.journal.problem(told)
            if COPY_AGAIN in halt and worker is self.current and worker.alive():
                threading.Thread(target=self.copy_everything_again, daemon=True).start()

    def copy_everything_again(self):
        for table in self.tables:
            for _ in range(REMEDY_TRIES):
                command = self.command("resnapshot", table)
                said = command.communicate()[0].strip()
                self.journal.note(f"{self.name}: the halt's remedy, resnapshot {table}, ended with {command.returncode}: {said[-200:]}")
                if command.returncode == 0:
                    break
                # The target, or the wire to it, is away at the moment.
                time.sleep(REMEDY_SECONDS)

    def sample(self):
        lag = self.current.metric("cutover_sync_lag_seconds") if self.current else None
        if lag is not None:
            self.lag_max = max(self.lag_max, lag)
        return lag

    # What the target and the command line say.

    def generation(self, table):
        rows = self.servers.ask_target(
            self.database, "SELECT generation FROM cutover.tables WHERE pipeline = %s AND source_table = %s", self.name, table)
        return rows[0][0] if rows else None

    def command(self, *arguments):
        return subprocess.Popen([self.binary, "-c", self.config, *arguments], env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)

    def status(self):
        return self.answer("status", "--json")

    def verify(self):
        return self.answer("verify", "--json")

    def answer(self, *arguments):
        """The object that a command prints, after what it says on the way; an empty one if it could not."""
        answer = self.command(*arguments).communicate()[0]
        try:
            return json.loads(answer.strip().rpartition("\n")[2])
        except ValueError:
            return {}

    def readiness(self):
        """What /readyz says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.current.http_port}/readyz", timeout=5) as answer:
                return answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            return error.read().decode().strip()
        except OSError as error:
            return repr(error)

    def in_step(self, lag_seconds):
        """Whether the worker is well and not further behind than that."""
        lag = self.sample()
        return lag is not None and lag <= lag_seconds and self.current.alive()
