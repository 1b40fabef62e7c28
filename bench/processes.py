"""What processes cost, from /proc: CPU seconds and peak memory."""

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def stat(pid):
    """The fields after the command's name, from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()


def cpu_seconds(pid):
    """User and system time of one process, all threads."""
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICK


def tree_cpu_seconds(root):
    """That of a process, its descendants, and those of them that have ended and been waited for."""
    total, family = 0, {root}
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(stat(entry.name)[1])
            except (OSError, IndexError):
                continue    # ended meanwhile
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in family} - family
        family |= children
        grown = bool(children)
    for pid in family:
        try:
            fields = stat(pid)
        except OSError:
            continue
        total += sum(int(fields[i]) for i in (11, 12, 13, 14))
    return total / TICK


def peak_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
