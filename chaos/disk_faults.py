"""The disk of the log is full for a while."""

from lanes import Faults


class DiskFaults(Faults):
    GAP = (40, 90)

    def __init__(self, pipeline, journal, controls):
        super().__init__(pipeline.name, journal, controls)
        self.disk = pipeline.disk

    def fill(self, draw):
        seconds = draw.uniform(3, 30)
        if not self.disk.can_be_filled():
            return self.skipped("disk of the log full", "no file system may be mounted on this machine")
        taken = self.disk.fill()
        self.injected("disk of the log full", f"{taken / 1e6:.1f} MB taken, for {seconds:.1f} s")
        try:
            for _ in range(int(seconds)):
                self.rest(1)
                # What the log lets go of is taken too.
                self.disk.fill()
        finally:
            self.disk.free()

    def heal(self):
        self.disk.free()

    KINDS = {fill: 1}
