"""Processes of daemons, as the client sees them: memory and the tree, from cgroups and /proc.

What is read here is for people. A pid may have gone to another process meanwhile: nothing is done
to any of them.
"""

from __future__ import annotations

import os

from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowsuper.client import Daemon

_PAGE = os.sysconf("SC_PAGE_SIZE")
_READ = os.O_RDONLY | os.O_CLOEXEC
_BYTES = 65536


class Process(Record):
    """A process in /proc."""

    pid: int
    parent: int
    state: str  # its letter: see proc(5)
    name: str
    command: str  # its arguments, or its name where there are none
    memory: int | None  # resident, in bytes
    waits_in: str = ""  # the function of the kernel that it sleeps in


def _read(path: str, dir_fd: int | None = None) -> bytes:
    """Return the beginning of a file; b"": it is gone, or not for us."""
    try:
        fd = os.open(path, _READ, dir_fd=dir_fd)
    except OSError:
        return b""
    try:
        return os.read(fd, _BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _read_all(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


class Memory:
    """Reads how much memory daemons take."""

    def __init__(self, *, is_seen: bool) -> None:
        """Begin.

        Args:
            is_seen: the master's pids and paths are those that we see.
        """
        self._is_seen = is_seen
        self._unaccounted: set[str] = set()  # directories whose children account for no memory

    def read(self, daemons: Iterable[Daemon]) -> list[int | None]:
        """Return the memory of each daemon in bytes; None: it is not known."""
        if not self._is_seen:
            return [None for _ in daemons]
        return [self._read_one(each.leaf, each.pid) for each in daemons]

    def _read_one(self, leaf: str | None, pid: int | None) -> int | None:
        """Return what the cgroup accounts for, else the sum of what is resident."""
        if leaf is None:
            return None if not pid else resident(pid)
        parent = leaf.rpartition("/")[0]
        if parent not in self._unaccounted:
            text = _read(f"{leaf}/memory.current")
            if text:
                return int(text)
            if os.path.isdir(leaf):  # the controller is not enabled for this one and its siblings
                self._unaccounted.add(parent)
        pids = _read(f"{leaf}/cgroup.procs").split()
        if len(pids) == 1:
            return resident(int(pids[0]))
        found = [size for each in pids if (size := resident(int(each))) is not None]
        if found:
            return sum(found)
        return None if not pid else resident(pid)


def resident(pid: int) -> int | None:
    """Return the resident memory of a process in bytes; None: it is gone, or a zombie."""
    fields = _read(f"/proc/{pid}/statm").split()
    if not fields:
        return None
    return int(fields[1]) * _PAGE or None


# The tree.


def members(daemon: Daemon) -> list[int]:
    """Return the pids of a daemon's processes: of its cgroup, and all that descend from it."""
    found = set()
    if daemon.leaf:
        for directory, _, _ in os.walk(daemon.leaf):
            found |= set(map(int, _read_all(f"{directory}/cgroup.procs").split()))
    if daemon.pid:
        found.add(daemon.pid)
    ahead = list(found)
    while ahead:
        for child in children(ahead.pop()):
            if child not in found:
                found.add(child)
                ahead.append(child)
    return sorted(found)


def children(pid: int) -> list[int]:
    """Return the pids of a process's children, zombies among them."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [
        int(each) for task in tasks for each in _read(f"/proc/{pid}/task/{task}/children").split()
    ]


def read_process(pid: int) -> Process | None:
    """Return what /proc tells of a process; None: it is gone."""
    stat = _read(f"/proc/{pid}/stat")
    head, _, rest = stat.rpartition(b")")
    fields = rest.split()
    if not fields:
        return None
    name = head.partition(b"(")[2].decode("utf-8", "surrogateescape")
    state = fields[0].decode()
    words = _read(f"/proc/{pid}/cmdline").rstrip(b"\0").replace(b"\0", b" ")
    command = words.decode("utf-8", "surrogateescape") or f"[{name}]"
    waits_in = ""
    if state == "D":
        waits_in = _read(f"/proc/{pid}/wchan").decode("ascii", "replace").removeprefix("0")
    return Process(pid, int(fields[1]), state, name, command, resident(pid), waits_in)


def read_processes(pids: Sequence[int]) -> dict[int, Process]:
    """Return those of the processes that are there, by pid."""
    return {pid: found for pid in pids if (found := read_process(pid)) is not None}
