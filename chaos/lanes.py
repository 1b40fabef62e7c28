"""The schedule: lanes of faults, side by side, each drawn from the run's seed.

A lane is one thread that injects one fault after another into one thing: a pipeline's worker, its wires,
its tables, its disk, the servers. Lanes do not know of each other, so that faults overlap. What a lane does and
for how long follows from seed, lane and turn alone; what becomes of it does not: the machine has its own timing.
"""

import random
import threading
import traceback


class Controls:
    """Starts, holds and ends all lanes."""

    def __init__(self):
        self.stop = threading.Event()
        self.go = threading.Event()
        self.lanes = []

    def hold(self, seconds):
        """No new faults; true when those at work are over within that time."""
        self.go.clear()
        return all(lane.idle.wait(seconds) for lane in self.lanes)


class Faults:
    """Base of a lane's faults: KINDS has methods and weights, GAP the seconds between two of them."""

    KINDS = {}
    GAP = (5, 15)

    def __init__(self, where, journal, controls):
        self.where, self.journal, self.controls = where, journal, controls

    def rest(self, seconds):
        """Waits, or less if the run is ending."""
        self.controls.stop.wait(seconds)

    def injected(self, kind, detail="", where=None):
        self.journal.fault(kind, where or self.where, detail)

    def skipped(self, kind, why, where=None):
        self.journal.skipped(kind, where or self.where, why)

    def begin(self):
        """Before every fault."""

    def end(self):
        """After every fault, however it went."""

    def heal(self):
        """Ends what lasts longer than one fault."""


class Lane(threading.Thread):
    def __init__(self, name, faults, seed, controls):
        super().__init__(name=name, daemon=True)
        self.faults, self.seed, self.controls = faults, seed, controls
        self.idle = threading.Event()
        self.idle.set()
        controls.lanes.append(self)

    def run(self):
        turn = 0
        while not self.controls.stop.is_set():
            turn += 1
            draw = random.Random(f"{self.seed} {self.name} {turn}")
            kind = draw.choices(list(self.faults.KINDS), list(self.faults.KINDS.values()))[0]
            self.controls.stop.wait(draw.uniform(*self.faults.GAP))
            while not self.controls.go.wait(0.5):
                if self.controls.stop.is_set():
                    return
            self.idle.clear()
            self.faults.begin()
            try:
                if self.controls.go.is_set() and not self.controls.stop.is_set():
                    kind(self.faults, draw)
            except Exception as error:
                # Whatever the harness itself meets must not pass for a sound run.
                self.faults.journal.problem(f"lane {self.name} failed in {kind.__name__}: {error!r}")
                self.faults.journal.note(traceback.format_exc())
            finally:
                self.faults.end()
                self.idle.set()
