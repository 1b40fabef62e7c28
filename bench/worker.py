"""The worker as the benchmark sees it: a process, its metrics and its status."""

import json
import re
import signal
import subprocess
import time
import urllib.request

import processes


class Worker:
    def __init__(self, binary, config, log, http_port, arguments=()):
        self.command = [binary, "-c", config]
        self.arguments = list(arguments)
        self.log = log
        self.url = f"http://127.0.0.1:{http_port}/metrics"
        self.process = None
        self.peak_mib = 0.0

    def start(self):
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([*self.command, "run", *self.arguments], stdout=log, stderr=log)

    def check(self):
        if self.process.poll() is not None:
            raise SystemExit(f"bench: the worker ended by itself ({self.process.returncode}): see {self.log}")

    def cpu_seconds(self):
        self.peak_mib = max(self.peak_mib, processes.peak_mib(self.process.pid))
        return processes.cpu_seconds(self.process.pid)

    def wait_for(self, what, done, seconds=900, pause=0.02):
        deadline = time.monotonic() + seconds
        while not done():
            self.check()
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: waited {seconds} s in vain for {what}: see {self.log}")
            time.sleep(pause)

    def metric(self, name):
        """The sum over a metric's labels, None while nobody answers."""
        try:
            with urllib.request.urlopen(self.url, timeout=1) as answer:
                text = answer.read().decode()
        except (OSError, ValueError):
            return None
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, values)) if values else None

    def status(self):
        answer = subprocess.run([*self.command, "status", "--json"], capture_output=True, text=True, check=False)
        try:
            return json.loads(answer.stdout)
        except ValueError:
            return {}

    def synced(self):
        return self.status().get("synced") is True

    def stop(self):
        """SIGTERM; a worker that does not drain within its ten seconds is an error."""
        self.cpu_seconds()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SystemExit("bench: the worker did not stop within 15 s of SIGTERM") from None
        if code != 0:
            raise SystemExit(f"bench: the worker ended with {code} on SIGTERM: see {self.log}")

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
