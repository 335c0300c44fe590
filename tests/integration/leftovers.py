"""What tests could leave on the machine: processes, mounts, namespaces, cgroups, records."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from pathlib import Path

from masters import children_of, describe, members_of, own_cgroup, wait_children


class Snapshot:
    """The state of the machine at one moment, as far as this process can be to blame for it."""

    def __init__(self, temporary: Path):
        """Look now; of the mounts only at those below `temporary`, as others mount things too."""
        self.temporary = temporary
        self.children = set(children_of(os.getpid()))
        self.mounts = read_mounts(temporary)
        self.namespaces = read_namespaces()
        self.cgroups = find_cgroups()

    def compare(self, patience: float = 10.0) -> list[str]:
        """Return what is there now and was not before, each in words.

        What has only just lost its master gets `patience` seconds to end.
        """
        problems = wait_children(self.children, patience)
        problems += [f"mount {line}" for line in sorted(read_mounts(self.temporary) - self.mounts)]
        for name, pids in read_namespaces().items():
            if name not in self.namespaces and is_below(pids, os.getpid()):
                problems.append(f"namespace {name} of {describe(pids)}")
        new = sorted(find_cgroups() - self.cgroups)
        end = time.monotonic() + patience
        problems += [f"cgroup {path}" for path in new if stays_abandoned(path, end)]
        problems += [f"record {path}" for path in sorted(find_records(self.temporary))]
        return problems


def read_mounts(below: Path) -> set[str]:
    """Return the mounts below a directory, or that come from below it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {" ".join(line.split()[3:5]) for line in lines if str(below) in line}


def read_namespaces() -> dict[str, set[int]]:
    """Return the pid, mount, uts, ipc and net namespaces that live processes are in."""
    found: dict[str, set[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        for kind in ("pid", "mnt", "uts", "ipc", "net"):
            with contextlib.suppress(OSError):
                name = os.readlink(f"/proc/{entry}/ns/{kind}")
                found.setdefault(name, set()).add(int(entry))
    return found


def is_below(pids: set[int], ancestor: int) -> bool:
    """Return whether one of these processes descends from `ancestor`."""
    below = {ancestor}
    todo = [ancestor]
    while todo:
        for child in children_of(todo.pop()):
            if child not in below:
                below.add(child)
                todo.append(child)
    return not below.isdisjoint(pids - {ancestor})


def find_cgroups() -> set[Path]:
    """Return the cgroup directories of all instances in our own cgroup."""
    base = own_cgroup()
    return set(base.glob("lowsuper-*")) if base is not None else set()


def stays_abandoned(path: Path, end: float) -> bool:
    """Return whether an instance's cgroup has no master until the time `end`.

    The tests of other processes have some without, between two masters of a smart daemon: with
    the daemon in it, or for a moment without.
    """
    while is_abandoned(path):
        members = members_of(path)
        if members and not is_below(members, os.getpid()):
            return False
        if time.monotonic() >= end:
            return True
        select.select([], [], [], 0.02)
    return False


def find_records(below: Path) -> set[Path]:
    """Return the records of smart daemons of a test that forgot to keep them to itself."""
    found = set()
    for path in Path("/run/lowsuper").glob("state*/*"):
        with contextlib.suppress(OSError):
            if os.fsencode(below) in path.read_bytes():
                found.add(path)
    return found


def is_abandoned(path: Path) -> bool:
    """Return whether a cgroup of an instance exists whose master does not run."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # somebody else's, who runs
    finally:
        os.close(fd)
    return path.is_dir()
