"""The cgroup v2 rung of the kill domain: one leaf per run of a daemon.

    <the master's own cgroup>/lowsuper-INSTANCE/dumb/NAME.RUN     dies with the master
                                              /smart/NAME.RUN    outlives it
                                              /master           the master, if it drops to a user

No controller is enabled, so the rule against processes in inner cgroups is not touched, and a
leaf is nothing but a set of processes with an off switch (`cgroup.kill`, Linux 5.14). The
directory is locked (flock) while a master uses it: two masters of one configuration would sweep
each other's daemons away.

Signals to the members of a leaf go through pidfds: the number is read, the pidfd opened, and the
membership read again before anything is sent.
"""

from __future__ import annotations

import os
import time
from errno import EBUSY, EEXIST, ENOENT, ENOTEMPTY, ESRCH
from fcntl import LOCK_EX, LOCK_NB, flock

from lowsuper.errors import KernelError, LowsuperError, UnsupportedError
from lowsuper.kernel import process
from lowsuper.kernel.native import move_high

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
MAX_NAME = 200
PATIENCE = 8.0  # seconds; a guard takes up to 5 for what is slow to die
LOCK_PAUSE = 0.02


def find_mount(mountinfo: str) -> tuple[str, str] | None:
    """Return (mount point, root of the mount) of the v2 hierarchy from the text of mountinfo.

    See proc_pid_mountinfo(5). Octal escapes in the mount point are resolved.
    """
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            fields = left.split()
            return _unescape(fields[4]), _unescape(fields[3])
    return None


def _unescape(path: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, char)
    return path


def find_own(proc_cgroup: str) -> str | None:
    """Return the v2 path from the text of /proc/self/cgroup, or None; see cgroups(7)."""
    for line in proc_cgroup.splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None


def own_directory() -> str:
    """Return the directory of this process's v2 cgroup.

    Raises:
        UnsupportedError: there is no v2 hierarchy here, or not this process's part of it.
    """
    mount = find_mount(_read_text("/proc/self/mountinfo"))
    own = find_own(_read_text("/proc/self/cgroup"))
    if mount is None or own is None:
        raise UnsupportedError("no cgroup v2 hierarchy is mounted")
    point, root = mount
    if root not in ("/", own) and not own.startswith(root + "/"):
        raise UnsupportedError(f"the cgroup v2 mount {point} does not show our own cgroup {own}")
    inner = own if root == "/" else own[len(root) :]
    return point.rstrip("/") + "/" + inner.strip("/") if inner.strip("/") else point


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


class LockedError(LowsuperError):
    """Another master holds the lock of an instance."""

    def __init__(self, pid: int) -> None:
        """Remember who; 0: unknown."""
        super().__init__(f"locked by {pid}")
        self.pid = pid


class Leaf:
    """The cgroup of one run. `directory_fd` is the leaf's own and closed by `release`."""

    __slots__ = ("_events_fd", "_tree", "directory_fd", "name")

    def __init__(self, tree: Tree, name: str, directory_fd: int) -> None:
        """Take over `directory_fd`."""
        self._tree, self.name, self.directory_fd = tree, name, directory_fd
        self._events_fd = -1

    def is_populated(self) -> bool:
        """Return whether a live process is in it; zombies do not count."""
        return b"populated 1" in os.pread(self.events_fd(), 256, 0)

    def events_fd(self) -> int:
        """Return a descriptor that epoll reports as urgent when `is_populated` may have changed.

        It stays the leaf's.
        """
        if self._events_fd < 0:
            flags = os.O_RDONLY | os.O_CLOEXEC
            events_fd = os.open("cgroup.events", flags, dir_fd=self.directory_fd)
            self._events_fd = move_high(events_fd)
        return self._events_fd

    def kill(self) -> None:
        """SIGKILL every process in it, frozen ones too; see cgroup.kill, Linux 5.14."""
        _write_at(self.directory_fd, "cgroup.kill", b"1")

    def signal(self, signal: int) -> None:
        """Send `signal` to every process in it, each through a pidfd that was checked."""
        for pid in self._members():
            try:
                pidfd = process.open_pidfd(pid)
            except KernelError as error:
                if error.errno != ESRCH:
                    raise
                continue
            try:
                # Race: the number may have been given to another process between the reading of
                # the list and the pidfd. The pidfd pins it now, so a second look is the truth.
                if pid in self._members():
                    process.send_signal(pidfd, signal)
            finally:
                os.close(pidfd)

    def _members(self) -> list[int]:
        flags = os.O_RDONLY | os.O_CLOEXEC
        with open(os.open("cgroup.procs", flags, dir_fd=self.directory_fd)) as file:
            return [int(line) for line in file]

    def release(self) -> None:
        """Close the descriptors and remove the directory, which must be unpopulated."""
        if self._events_fd >= 0:
            os.close(self._events_fd)
        os.close(self.directory_fd)
        self._tree.remove(self.name)


class Tree:
    """The directories of one instance, locked. Made by `open_tree`; `close` unlocks."""

    def __init__(self, path: str, parent_fd: int, base_fd: int) -> None:
        """Take over the descriptors: of the parent and of the instance's own directory."""
        self.path: Final = path
        self.parent_fd: Final = parent_fd
        self.base_fd: Final = base_fd
        for name in ("dumb", "smart"):
            _make_directory(name, base_fd)
        self.dumb_fd: Final = os.open("dumb", DIRECTORY, dir_fd=base_fd)

    @property
    def name(self) -> str:
        """Return the name of the instance's directory."""
        return self.path.rpartition("/")[2]

    def make(self, name: str) -> Leaf:
        """Make the leaf `name` for a dumb daemon.

        Raises:
            KernelError: mkdir failed, e.g. ENOSPC when a limit on descendants is reached.
        """
        leaf = wanted = name[:MAX_NAME]
        for number in range(1, 100):
            try:
                os.mkdir(leaf, 0o755, dir_fd=self.dumb_fd)
            except FileExistsError:
                leaf = f"{wanted}-{number}"  # what not even SIGKILL ended is still in the old one
            except OSError as error:
                raise KernelError("mkdir", error.errno or 0, f"{self.path}/dumb/{leaf}") from error
            else:
                return Leaf(self, leaf, move_high(os.open(leaf, DIRECTORY, dir_fd=self.dumb_fd)))
        raise KernelError("mkdir", EEXIST, f"{self.path}/dumb/{wanted}")

    def remove(self, name: str) -> None:
        """Remove a leaf; one that is busy stays for the sweep of the next master."""
        try:
            os.rmdir(name, dir_fd=self.dumb_fd)
        except OSError as error:
            if error.errno not in (EBUSY, ENOENT):
                raise KernelError("rmdir", error.errno or 0, f"{self.path}/dumb/{name}") from error

    def leftovers(self) -> list[str]:
        """Return the names of the leaves that an earlier master left behind."""
        return [entry for entry in os.listdir(self.dumb_fd) if _is_directory(entry, self.dumb_fd)]

    def sweep(self) -> int:
        """Kill what an earlier master left in dumb/ and return in how many leaves there was some.

        The directories go too. Waits for the end of what was killed.
        """
        found = 0
        for name in self.leftovers():
            leaf = Leaf(self, name, os.open(name, DIRECTORY, dir_fd=self.dumb_fd))
            try:
                if leaf.is_populated():
                    found += 1
                    leaf.kill()
                    _wait_until_empty(leaf)
            finally:
                leaf.release()
        return found

    def delegate(self, uid: int, gid: int) -> None:
        """Hand the directories to a user, before the master becomes that user.

        A process may be moved only by who can write cgroup.procs of the common ancestor, so the
        master itself moves below the delegated directory. See cgroups(7), "delegation".
        """
        _make_directory("master", self.base_fd)
        _write_at(self.base_fd, "master/cgroup.procs", b"0")
        for directory in (".", "dumb", "smart", "master"):
            for file in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                path = f"{directory}/{file}" if file else directory
                os.chown(path, uid, gid, dir_fd=self.base_fd, follow_symlinks=False)
        # For a guard that the master starts later, when it is that user.
        os.chown("dumb/cgroup.kill", uid, gid, dir_fd=self.base_fd, follow_symlinks=False)

    def close(self, remove: bool) -> None:
        """Close, and with `remove` take the empty directories away."""
        if remove:
            for name in ("dumb", "smart"):
                _remove_empty(name, self.base_fd)
            _remove_empty(self.name, self.parent_fd)
        for fd in (self.dumb_fd, self.base_fd, self.parent_fd):
            os.close(fd)


def open_tree(instance: str, patience: float = PATIENCE) -> Tree:
    """Make, or take over, and lock the directories of an instance below our own cgroup.

    The guard of a master that was killed shares its lock until it has cleaned up, so a next
    master that is quick waits for it.

    Args:
        instance: a name that is the same at every start of the same configuration.
        patience: how many seconds to wait for such a guard.

    Raises:
        UnsupportedError: this machine or sandbox does not let us; the text says why.
        LockedError: another master holds the lock.
    """
    parent = own_directory()
    path = f"{parent.rstrip('/')}/lowsuper-{instance[:MAX_NAME]}"
    try:
        parent_fd = os.open(parent, DIRECTORY)
    except OSError as error:
        raise UnsupportedError(f"cgroup v2: cannot open {parent}: {error.strerror}") from error
    base_fd = -1
    try:
        base_fd = _lock_directory(path.rpartition("/")[2], parent_fd, patience)
        tree = Tree(path, parent_fd, base_fd)
    except OSError as error:
        if base_fd >= 0:
            os.close(base_fd)
        os.close(parent_fd)
        raise UnsupportedError(f"cgroup v2: cannot make {path}: {error.strerror}") from error
    except LockedError:
        os.close(parent_fd)
        raise
    try:
        os.stat("cgroup.kill", dir_fd=tree.dumb_fd)
    except OSError as error:
        tree.close(remove=True)
        why = f"cgroup v2: no cgroup.kill (Linux 5.14): {error.strerror}"
        raise UnsupportedError(why) from error
    return tree


def _lock_directory(name: str, parent_fd: int, patience: float) -> int:
    """Return the descriptor of a locked directory, which the caller closes.

    Raises:
        LockedError: it is locked by a master that lives, or for longer than `patience`.
    """
    deadline = time.monotonic() + patience
    while True:
        _make_directory(name, parent_fd)
        try:
            fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
        except FileNotFoundError:
            continue  # removed since, by who had the lock
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            # Race: whoever had the lock removed the directory just before it let go of it.
            if _is_same(fd, name, parent_fd):
                return fd
        except BlockingIOError as error:
            holder = find_lock_holder(fd)
            if process.is_running(holder) or time.monotonic() >= deadline:
                os.close(fd)
                raise LockedError(holder) from error
            time.sleep(LOCK_PAUSE)  # nothing tells of the end of a lock
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _is_same(fd: int, name: str, dir_fd: int) -> bool:
    try:
        return os.stat(name, dir_fd=dir_fd).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def sweep_unlocked(prefix: str) -> None:
    """Remove the directories of instances named `prefix...` whose master is gone."""
    parent = own_directory()
    for entry in os.listdir(parent):
        if entry.startswith(f"lowsuper-{prefix}"):
            try:
                tree = open_tree(entry.removeprefix("lowsuper-"), patience=0)
            except (LockedError, UnsupportedError):
                continue  # it runs, or is not ours to touch
            tree.sweep()
            tree.close(remove=True)


def find_lock_holder(fd: int) -> int:
    """Return the pid of the process that holds a flock on an open file, or 0. See proc_locks(5)."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    found = 0
    for line in _read_text("/proc/locks").splitlines():
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF", and "1: -> ..." for who waits
        if fields[1] != "FLOCK" or fields[5].rpartition(":")[2] != str(status.st_ino):
            continue
        found = max(0, int(fields[4]))
        # Some file systems (btrfs, overlayfs) show another device there than stat(2) does.
        if fields[5].startswith(f"{device}:"):
            break
    return found


def _make_directory(name: str, dir_fd: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    except FileExistsError:
        return


def _remove_empty(name: str, dir_fd: int) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        # EBUSY: smart daemons live in there, or the master itself; the guard tries again.
        if error.errno not in (EBUSY, ENOENT, ENOTEMPTY):
            raise


def _is_directory(name: str, dir_fd: int) -> bool:
    import stat

    return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)


def _write_at(dir_fd: int, path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, text)
    except OSError as error:
        if error.errno != ESRCH:
            raise KernelError("write", error.errno or 0, path) from error
    finally:
        os.close(fd)


def _wait_until_empty(leaf: Leaf, seconds: float = 5.0) -> None:
    """Wait for the end of killed processes; one that hangs in the kernel is left behind."""
    import select
    from time import monotonic

    poll = select.poll()
    poll.register(leaf.events_fd(), select.POLLPRI)
    deadline = monotonic() + seconds
    while leaf.is_populated() and (left := deadline - monotonic()) > 0:
        poll.poll(left * 1000)
