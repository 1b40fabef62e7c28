"""What happened, with times: a file for the details, the terminal for what matters, counts for the summary."""

import threading
import time
from collections import Counter


class Journal:
    def __init__(self, path):
        self.path = path
        self.file = open(path, "a", buffering=1)
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.faults = Counter()
        self.not_injected = Counter()
        self.problems = []

    def note(self, text, show=False):
        seconds = time.monotonic() - self.began
        line = f"{time.strftime('%H:%M:%S')} {seconds:7.1f} s  {text}"
        with self.lock:
            self.file.write(line + "\n")
            if show:
                print(line, flush=True)

    def fault(self, kind, where, detail=""):
        with self.lock:
            self.faults[kind, where] += 1
        self.note(f"fault    {kind} of {where}{detail and ': ' + detail}")

    def skipped(self, kind, where, why):
        """A fault that was due and could not be injected."""
        with self.lock:
            self.not_injected[kind, where] += 1
        self.note(f"skipped  {kind} of {where}: {why}")

    def problem(self, text):
        """What makes the run fail."""
        with self.lock:
            self.problems.append(text)
        self.note(f"PROBLEM  {text}", show=True)
