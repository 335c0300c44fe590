"""Where the processes of a smart daemon live: kill domains that an earlier master has made.

A domain is found by the record of the daemon, or by its cgroup: a leaf `smart/NAME.RUN` of this
instance. Whether a process is in the domain is one of the proofs that it is the daemon.
"""

from __future__ import annotations

import os

from lowsuper.identity import is_same
from lowsuper.kernel import cgroup, inspect, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.identity import Process, ProcessId, Recorded
    from lowsuper.kernel.cgroup import Leaf
    from lowsuper.kernel.domain import Domains


class Territory:
    """Finds and compares domains for one master."""

    __slots__ = ("_domains",)

    def __init__(self, domains: Domains) -> None:
        """Look below the master's own cgroup, and where records say."""
        self._domains = domains

    def find_keeper(self, record: Recorded | None) -> int:
        """Return the pid of the process of ours that keeps a daemon's domain; 0: none lives."""
        pidfd = self.open_keeper(record)
        if pidfd < 0 or record is None or record.keeper is None:
            return 0
        os.close(pidfd)
        return record.keeper.pid

    def open_keeper(self, record: Recorded | None) -> int:
        """Return a pidfd of that process, which the caller closes; -1: none lives."""
        if record is None or record.keeper is None or record.boot_id != records.boot_id():
            return -1
        return open_same(record.keeper)

    def open_leaves(self, name: str, record: Recorded | None, path: str = "") -> list[Leaf]:
        """Return the populated leaves of a daemon, which the caller releases.

        Args:
            name: of the daemon.
            record: of the daemon, which may name a leaf of another place: an earlier master may
                have been started in another cgroup.
            path: directory of the cgroup of a process of it, or "".
        """
        leaves = self._domains.find_smart(name)
        known = {leaf.path for leaf in leaves}
        wanted = [] if record is None else [record.leaf]
        place = cgroup.describe_path(path)
        if place is not None and place.kind == "smart" and place.daemon == name:
            wanted.append(path)
        for other in wanted:
            leaf = cgroup.open_leaf(other) if other and other not in known else None
            if leaf is None:
                continue
            if leaf.is_populated():
                known.add(other)
                leaves.append(leaf)
            else:
                leaf.release()
        for leaf in leaves:
            leaf.fencer = self._domains.fence_smart
        return leaves

    def leaves_of(self, name: str, record: Recorded | None, process: Process) -> list[Leaf]:
        """Return the same for a process that was found; none if it is in none of them."""
        path = cgroup.directory_of(inspect.cgroup_of(process.id.pid))
        leaves = self.open_leaves(name, record, path)
        if any(_is_in(path, leaf.path) for leaf in leaves):
            return leaves
        for leaf in leaves:  # what is in there, if anything, must not end with this process
            leaf.release()
        return []

    def place(self, name: str, record: Recorded | None, process: Process) -> tuple[bool, str]:
        """Return whether a process is in the domain of a daemon, and else in whose it is, or ""."""
        keeper = self.find_keeper(record)
        if record is not None and keeper:
            # The init of a pid namespace may be the daemon itself (ns_init = false).
            is_init = keeper == process.id.pid and record.main == record.keeper
            if is_init or inspect.is_below(process.id.pid, keeper):
                return True, ""
        path = cgroup.directory_of(inspect.cgroup_of(process.id.pid))
        is_recorded = record is not None and record.leaf and _is_in(path, record.leaf)
        if is_recorded and cgroup.is_ours(path):
            return True, ""
        place = cgroup.find_place(path)
        if place is None:
            return False, ""
        own = (place.instance, place.kind, place.daemon)
        if own == (self._domains.instance, "smart", name):
            return True, ""
        return False, f"{place.daemon} of {place.instance}"


def open_same(wanted: ProcessId) -> int:
    """Return a pidfd of a process of this boot if it lives, which the caller closes; else -1."""
    opened = inspect.open_process(wanted.pid)
    if opened is None:
        return -1
    pidfd, process = opened
    if is_same(process.id, wanted):
        return pidfd
    os.close(pidfd)
    return -1


def find_first(leaves: list[Leaf]) -> int:
    """Return the pid of the only process in leaves whose parent is not in them; 0: none, several.

    In a domain whose first process stays in the foreground that is the one.
    """
    members = {pid for leaf in leaves for pid in leaf.members()}
    first = [pid for pid in members if inspect.parent_of(pid) not in members]
    return first[0] if len(first) == 1 else 0


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")
