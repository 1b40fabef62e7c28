"""The disk of a pipeline's log: a file system of its own in memory, small enough to be filled.

scripts/chaos mounts it, if this machine lets it; else the log is in a plain folder and no disk is full.
"""

import errno
import os


class Disk:
    def __init__(self, folder):
        self.folder = folder
        self.ballast = os.path.join(folder, "ballast")

    def can_be_filled(self):
        return os.path.ismount(self.folder)

    def fill(self):
        """Fills it to the last byte; returns how many bytes that took."""
        taken, piece = 0, 1 << 20
        with open(self.ballast, "ab", buffering=0) as file:
            while piece:
                try:
                    taken += file.write(b"\1" * piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2
        return taken

    def free(self):
        try:
            os.remove(self.ballast)
        except FileNotFoundError:
            pass
