"""What happens to a worker: killed, stopped for a while, told to end, met by a second one."""

import signal
import time

from lanes import Faults
from pipeline import LEASE_LOST

NOTICE_SECONDS = 90     # a worker that lost its lease looks every three seconds, when it can reach the target
TAKE_SECONDS = 60


class WorkerFaults(Faults):
    GAP = (8, 32)

    def __init__(self, pipeline, journal, controls):
        super().__init__(pipeline.name, journal, controls)
        self.pipeline = pipeline

    def begin(self):
        self.pipeline.in_hands.set()

    def end(self):
        self.pipeline.in_hands.clear()

    def kill(self, draw):
        worker = self.pipeline.current
        self.injected("worker killed (kill -9)", f"worker {worker.number}")
        self.pipeline.kill_worker(worker)
        self.rest(draw.choice([0, 0, draw.uniform(0, 5)]))
        self.pipeline.start_worker()

    def kill_again_and_again(self, draw):
        """Starts that do not get far: each of them dies on the way up."""
        for _ in range(draw.randint(2, 5)):
            self.kill(draw)
            self.rest(draw.uniform(0, 2.5))

    def terminate(self, draw):
        worker = self.pipeline.current
        self.injected("worker terminated (SIGTERM)", f"worker {worker.number}")
        code, seconds = self.pipeline.stop_worker(worker)
        self.journal.note(f"{self.where}: worker {worker.number} ended with {code} {seconds:.1f} s after SIGTERM")
        self.rest(draw.choice([0, draw.uniform(0, 10)]))
        self.pipeline.start_worker()

    def pause(self, draw):
        """Stopped and continued before anybody misses it, or after its lease has run out with nobody to take it."""
        worker, seconds = self.pipeline.current, draw.choice([draw.uniform(0.5, 8), draw.uniform(11, 25)])
        self.injected("worker paused (SIGSTOP, SIGCONT)", f"worker {worker.number} for {seconds:.1f} s")
        worker.signal(signal.SIGSTOP)
        self.rest(seconds)
        worker.signal(signal.SIGCONT)

    def take_over(self, draw):
        """Stopped until a second worker has the lease; continued, it must notice and leave."""
        first = self.pipeline.current
        if self.lease_holder() != first.process.pid:
            return self.skipped("worker paused until a second one took over", "it has no lease yet, or the target is away")
        first.signal(signal.SIGSTOP)
        second = self.pipeline.start_worker(current=False)
        self.injected("worker paused until a second one took over", f"worker {first.number}, then {second.number}")
        deadline = time.monotonic() + TAKE_SECONDS
        taken = False
        while not taken and time.monotonic() < deadline and not self.controls.stop.is_set():
            self.rest(0.5)
            # The second one holds it for a moment at a time, as long as the first one has the log open.
            taken = self.lease_holder() == second.process.pid
        self.rest(draw.uniform(0, 6))
        woken = len(first.said())
        first.signal(signal.SIGCONT)
        self.settle(draw, first, second, taken, woken)

    def lease_holder(self):
        """The process that took the newest lease; None while the target is away."""
        rows = self.pipeline.servers.ask_target(
            self.pipeline.database, "SELECT split_part(holder, ':', 2)::int FROM cutover.lease WHERE pipeline = %s "
            "AND role = 'worker' AND holder <> ''", self.where)
        return rows[0][0] if rows else None

    def settle(self, draw, first, second, taken, woken):
        """Whoever lost the lease waits for it again: one of the two dies, and the other has to take over."""
        if not taken:
            self.journal.note(f"{self.where}: the lease was not taken within {TAKE_SECONDS} s, the target was away")
            self.pipeline.kill_worker(second)
            return
        began = time.monotonic()
        while LEASE_LOST not in first.said()[woken:] and first.alive():
            if time.monotonic() - began > NOTICE_SECONDS:
                self.journal.problem(f"{self.where}: worker {first.number} lost its lease to worker {second.number} and has not "
                                     f"noticed within {NOTICE_SECONDS} s: {first.log}")
                self.pipeline.kill_worker(first)
                self.pipeline.current = second
                return
            self.rest(0.5)
        self.journal.note(f"{self.where}: worker {first.number} noticed after {time.monotonic() - began:.1f} s")
        self.rest(draw.uniform(0, 8))
        dies, stays = draw.choice([(first, second), (second, first)])
        self.pipeline.kill_worker(dies)
        self.pipeline.current = stays

    def stand_by(self, draw):
        """A second worker waits beside the first, which then dies."""
        first = self.pipeline.current
        second = self.pipeline.start_worker(current=False)
        self.injected("worker killed with a second one waiting", f"worker {first.number}, then {second.number}")
        self.rest(draw.uniform(0, 8))
        self.pipeline.kill_worker(first)
        self.pipeline.current = second

    KINDS = {kill: 10, kill_again_and_again: 3, terminate: 7, pause: 6, take_over: 5, stand_by: 4}
