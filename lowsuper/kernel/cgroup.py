"""The cgroup v2 rung of the kill domain: one leaf per run of a daemon.

    <the master's own cgroup>/lowsuper-INSTANCE/dumb/NAME.RUN     dies with the master
                                              /smart/NAME.RUN    outlives it
                                              /master           the master, if it drops to a user
                                                                or sets limits

Unless limits are set (`kernel.controllers`) no controller is enabled, so the rule against
processes in inner cgroups is not touched, and a leaf is nothing but a set of processes with an off
switch (`cgroup.kill`, Linux 5.14). The directory is locked (flock) while a master uses it: two
masters of one configuration would sweep each other's daemons away.

Signals to the members of a leaf go through pidfds: the number is read, the pidfd opened, and the
membership read again before anything is sent.
"""

from __future__ import annotations

import os
import time
from errno import (
    EACCES,
    EBUSY,
    EEXIST,
    ENODEV,
    ENOENT,
    ENOTEMPTY,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from fcntl import LOCK_EX, LOCK_NB, flock

from lowsuper.errors import KernelError, LowsuperError, UnsupportedError
from lowsuper.kernel import process
from lowsuper.kernel.native import move_high
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

    from lowsuper.units import Ns

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
PREFIX = "lowsuper-"  # of the directory of an instance
MASTER = "master"  # in it, for the master itself
MAX_NAME = 200
MAX_DEPTH = 16  # of cgroups that a daemon has made in its own
SIGNALLED_AT_ONCE = 64  # processes, each of which takes a descriptor
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
            return unescape(fields[4]), unescape(fields[3])
    return None


def unescape(path: str) -> str:
    """Return a path of mountinfo as it is."""
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
    mount = find_mount(read_text("/proc/self/mountinfo"))
    own = find_own(read_text("/proc/self/cgroup"))
    if mount is None or own is None:
        raise UnsupportedError("no cgroup v2 hierarchy is mounted")
    directory = _below_mount(mount, own)
    if directory is None:
        raise UnsupportedError(f"the cgroup v2 mount {mount[0]} does not show our own cgroup {own}")
    return directory


def home_directory(instance: str) -> str:
    """Return where the directory of an instance is made: our own cgroup, as a rule.

    A master that is in its own leaf came from two levels above. What systemd started in a subgroup
    of a delegated unit (DelegateSubgroup) has the unit's, which holds no process.

    Raises:
        UnsupportedError: as `own_directory`.
    """
    own = own_directory()
    leaf = f"/{PREFIX}{instance[:MAX_NAME]}/{MASTER}"
    if own.endswith(leaf):
        return own.removesuffix(leaf) or "/"
    above = own.rpartition("/")[0]
    return above if is_delegated(above) and not is_delegated(own) else own


def is_delegated(path: str) -> bool:
    """Return whether systemd has marked a cgroup as somebody else's business."""
    for name in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(path, name) == b"1":
                return True
        except OSError:
            continue  # it has none, or we may not see it
    return False


def read_text(path: str) -> str:
    """Return the text of a file of proc(5)."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


class LockedError(LowsuperError):
    """Another master holds the lock of an instance."""

    def __init__(self, pid: int) -> None:
        """Remember who; 0: unknown."""
        super().__init__(f"locked by {pid}")
        self.pid = pid


class Leaf:
    """The cgroup of one run. `directory_fd` is the leaf's own; `release` or `close` closes it."""

    __slots__ = (
        "_events_fd",
        "_ooms",
        "_owns_parent",
        "_parent_fd",
        "directory_fd",
        "fencer",
        "limited",
        "path",
    )

    def __init__(
        self, path: str, directory_fd: int, parent_fd: int, *, owns_parent: bool = False
    ) -> None:
        """Take over `directory_fd`, and the descriptor of the one above with `owns_parent`."""
        self.path: Final = path  # absolute, as we see the v2 mount
        self.directory_fd, self._parent_fd = directory_fd, parent_fd
        self._owns_parent = owns_parent
        self._events_fd = -1
        self._ooms = (0, 0)
        self.limited = False  # it is for one run, and for no next one
        # Gives it a deadline; None: nobody can. See `domain.Domains`.
        self.fencer: Callable[[Leaf, Ns], bool] | None = None

    @property
    def id(self) -> int:
        """What PIDFD_GET_INFO tells as the cgroup of a process in it."""
        return os.fstat(self.directory_fd).st_ino

    def is_populated(self) -> bool:
        """Return whether a live process is in it, or below it; zombies do not count."""
        try:
            return b"populated 1" in os.pread(self.events_fd(), 256, 0)
        except OSError as error:
            if error.errno not in (ENOENT, ENODEV):
                raise
            return False  # somebody has removed it, so it was empty

    def events_fd(self) -> int:
        """Return a descriptor that epoll reports as urgent when `is_populated` may have changed.

        It stays the leaf's.
        """
        if self._events_fd < 0:
            flags = os.O_RDONLY | os.O_CLOEXEC
            events_fd = os.open("cgroup.events", flags, dir_fd=self.directory_fd)
            self._events_fd = move_high(events_fd)
        return self._events_fd

    def forget_ooms(self) -> None:
        """Let `find_oom` be about what happens from now on."""
        self._ooms = _count_ooms(self.directory_fd)

    def find_oom(self) -> str:
        """Return which memory was out when processes in it were killed for that; "": none was.

        See memory.events in the kernel's cgroup-v2 document. Without the controller there is none.
        """
        killed, reached = _count_ooms(self.directory_fd)
        if killed <= self._ooms[0]:
            return ""
        most = read_at(self.directory_fd, "memory.max").decode().strip()
        if reached > self._ooms[1] and most.isdigit():
            return f"memory.max {format_size(int(most))}"
        return "of the machine, or of a cgroup above its own"

    def kill(self) -> None:
        """SIGKILL every process in it, frozen ones too; see cgroup.kill, Linux 5.14."""
        _write_at(self.directory_fd, "cgroup.kill", b"1")

    def signal(self, signal: int) -> None:
        """Send `signal` to every process in it, each through a pidfd that was checked."""
        pids = [pid for pid in self.members() if pid > 0]
        for first in range(0, len(pids), SIGNALLED_AT_ONCE):
            self._signal(pids[first : first + SIGNALLED_AT_ONCE], signal)

    def _signal(self, pids: list[int], signal: int) -> None:
        pidfds: dict[int, int] = {}
        try:
            for pid in pids:
                try:
                    pidfds[pid] = process.open_pidfd(pid)
                except KernelError as error:
                    if error.errno != ESRCH:
                        raise
            # Race: the number may have been given to another process between the reading of the
            # list and the pidfd. The pidfd pins it now, so a second look is the truth.
            members = set(self.members())
            for pid, pidfd in pidfds.items():
                if pid in members:
                    process.send_signal(pidfd, signal)
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)

    def members(self) -> list[int]:
        """Return the pids of its processes, also of those in cgroups that the daemon made in it.

        Zombies are among them where the kernel still lists them. One of another pid namespace
        that we do not see is 0.
        """
        return _members_below(self.directory_fd, MAX_DEPTH)

    def holds(self, pid: int) -> bool:
        """Return whether a process is in it, or below it; the caller has a pidfd and polls that.

        A process of root may have gone elsewhere.
        """
        from lowsuper.kernel import inspect

        path = directory_of(inspect.cgroup_of(pid))
        return path == self.path or path.startswith(f"{self.path}/")

    def close(self) -> None:
        """Close the descriptors and leave the directory alone."""
        if self._events_fd >= 0:
            os.close(self._events_fd)
        os.close(self.directory_fd)
        if self._owns_parent:
            os.close(self._parent_fd)

    def release(self) -> None:
        """Close the descriptors and remove the directory; one that is populated stays.

        What is populated is of a smart daemon, or stays for the sweep of the next master; its
        deadline, if it has one, stays, too.
        """
        if self.limited and self.fencer is not None and not self.is_populated():
            self.fencer(self, 0)
        name = self.path.rpartition("/")[2]
        try:
            _remove(name, self._parent_fd, MAX_DEPTH)
            if self._owns_parent:
                _remove_foreign(self.path)
        except OSError as error:
            # A user who is master now cannot remove what root has made elsewhere.
            if error.errno not in (EACCES, EPERM) or not self._owns_parent:
                raise KernelError("rmdir", error.errno or 0, self.path) from error
        finally:
            self.close()


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
        self.smart_fd: Final = os.open("smart", DIRECTORY, dir_fd=base_fd)

    @property
    def name(self) -> str:
        """Return the name of the instance's directory."""
        return self.path.rpartition("/")[2]

    def make(self, name: str, *, smart: bool = False) -> Leaf:
        """Make the leaf `name`; a `smart` one outlives the master.

        Raises:
            KernelError: mkdir failed, e.g. ENOSPC when a limit on descendants is reached.
        """
        leaf = wanted = name[:MAX_NAME]
        kind, parent_fd = ("smart", self.smart_fd) if smart else ("dumb", self.dumb_fd)
        for number in range(1, 100):
            path = f"{self.path}/{kind}/{leaf}"
            try:
                os.mkdir(leaf, 0o755, dir_fd=parent_fd)
            except FileExistsError:
                leaf = f"{wanted}-{number}"  # what not even SIGKILL ended is still in the old one
            except OSError as error:
                raise KernelError("mkdir", error.errno or 0, path) from error
            else:
                directory_fd = os.open(leaf, DIRECTORY, dir_fd=parent_fd)
                return Leaf(path, move_high(directory_fd), parent_fd)
        raise KernelError("mkdir", EEXIST, f"{self.path}/{kind}/{wanted}")

    def open(self, kind: str, daemon: str | None = None) -> Iterator[Leaf]:
        """Open one by one the leaves of one kind, "dumb" or "smart"; each is the caller's to close.

        Args:
            kind: which directory to look into.
            daemon: only those of this daemon, the earliest run first.
        """
        parent_fd = self.smart_fd if kind == "smart" else self.dumb_fd
        names = os.listdir(parent_fd)
        if daemon is not None:
            runs = [(run, name) for name in names if (run := _parse_leaf(name, daemon))]
            names = [name for _, name in sorted(runs)]
        for name in names:
            try:
                directory_fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
            except (FileNotFoundError, NotADirectoryError):
                continue  # the cgroup's own files are in the list, too
            yield Leaf(f"{self.path}/{kind}/{name}", move_high(directory_fd), parent_fd)

    def find_smart(self, daemon: str) -> list[Leaf]:
        """Return the populated leaves of a smart daemon, earliest first; the caller's to close."""
        found = []
        for leaf in self.open("smart", daemon):
            if leaf.is_populated():
                found.append(leaf)
            else:
                leaf.close()
        return found

    def sweep(self) -> int:
        """Kill what an earlier master left in dumb/ and return in how many leaves there was some.

        The directories go too, and those in smart/ that are empty. Waits for the end of what was
        killed.
        """
        found = 0
        for leaf in self.open("dumb"):
            try:
                if leaf.is_populated():
                    found += 1
                    leaf.kill()
                    _wait_until_empty(leaf)
            finally:
                leaf.release()
        for leaf in self.open("smart"):
            leaf.release()
        return found

    def delegate(self, uid: int, gid: int) -> None:
        """Hand the directories to a user, before the master becomes that user.

        A process may be moved only by who can write cgroup.procs of the common ancestor, so the
        master itself moves below the delegated directory. See cgroups(7), "delegation".
        """
        _make_directory(MASTER, self.base_fd)
        _write_at(self.base_fd, f"{MASTER}/cgroup.procs", b"0")
        for directory in (".", "dumb", "smart", MASTER):
            for file in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                path = f"{directory}/{file}" if file else directory
                os.chown(path, uid, gid, dir_fd=self.base_fd, follow_symlinks=False)
        # For a guard that the master starts later, when it is that user.
        os.chown("dumb/cgroup.kill", uid, gid, dir_fd=self.base_fd, follow_symlinks=False)

    def close(self, remove: bool) -> None:
        """Close, and with `remove` take the empty directories away."""
        if remove:
            remove_instance(self.name, self.base_fd, self.parent_fd)
        for fd in (self.dumb_fd, self.smart_fd, self.base_fd, self.parent_fd):
            os.close(fd)


class Place(Record):
    """What the path of a leaf tells."""

    instance: str  # name of the instance's directory without "lowsuper-"
    kind: str  # "dumb" or "smart"
    daemon: str
    run: str  # "7", or "7-1" where there was a 7 already


def _parse_leaf(name: str, daemon: str) -> tuple[int, int] | None:
    """Return the order of a leaf among those of a daemon; None: it is of another one."""
    found, _, run = name.rpartition(".")
    number, dash, again = run.partition("-")
    if found != daemon or not _is_number(number) or (dash and not _is_number(again)):
        return None
    return int(number), int(again or 0)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _find_leaf(path: str) -> tuple[str, Place] | None:
    """Return the innermost leaf in a path, which may go on below it, and what it tells."""
    parts = path.split("/")
    for index in range(len(parts) - 3, -1, -1):
        instance, kind, leaf = parts[index : index + 3]
        daemon, _, run = leaf.rpartition(".")
        if (
            instance.startswith(PREFIX)
            and kind in ("dumb", "smart")
            and daemon
            and _parse_leaf(leaf, daemon)
        ):
            place = Place(instance.removeprefix(PREFIX), kind, daemon, run)
            return "/".join(parts[: index + 3]), place
    return None


def describe_path(path: str) -> Place | None:
    """Return what the path of a cgroup tells, or of one inside of a leaf; None: it is not ours.

    Where leaves are in leaves (a daemon may be another lowsuper) it is the innermost that counts.
    Anybody with a delegated part of the hierarchy can make directories of such names: `is_ours`.
    """
    found = _find_leaf(path)
    return None if found is None else found[1]


def find_place(path: str) -> Place | None:
    """Return whose a process is by the directory of its cgroup; None: nobody's of lowsuper's.

    The innermost leaf counts that only root or we can have made: what the user of a daemon makes
    in a part of the hierarchy that was delegated to it does not take it out of that daemon.
    """
    while (found := _find_leaf(path)) is not None:
        leaf, place = found
        if is_ours(leaf):
            return place
        path = leaf.rpartition("/")[0]
    return None


def is_ours(path: str) -> bool:
    """Return whether only root or we can have made a leaf, and put processes into it.

    Args:
        path: of the leaf's directory, or of one inside of it.
    """
    found = _find_leaf(path)
    if found is None:
        return False
    try:
        directory_fd = os.open(found[0], DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _is_private(directory_fd)
    finally:
        os.close(directory_fd)


def _is_private(directory_fd: int) -> bool:
    """Return whether nobody but root and we may move a process into a cgroup.

    That needs leave to write to its cgroup.procs, and to that of the common ancestor; so where
    somebody else owns directories above, he still cannot bring anything in here.
    """
    try:
        for path in ("cgroup.procs", "."):
            status = os.stat(path, dir_fd=directory_fd, follow_symlinks=False)
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                return False
    except FileNotFoundError:
        return False  # it is no cgroup, or was removed
    return True


def directory_of(path: str) -> str:
    """Return the directory of a v2 cgroup, as it is mounted here; "" if it is not visible.

    Args:
        path: in the hierarchy, as in proc_pid_cgroup(5).
    """
    mount = find_mount(read_text("/proc/self/mountinfo"))
    if mount is None or not path.startswith("/") or path.startswith("/.."):
        return ""
    return _below_mount(mount, path) or ""


def _below_mount(mount: tuple[str, str], path: str) -> str | None:
    point, root = mount
    if root not in ("/", path) and not path.startswith(root + "/"):
        return None
    inner = (path if root == "/" else path[len(root) :]).strip("/")
    return f"{point.rstrip('/')}/{inner}" if inner else point


def open_leaf(path: str) -> Leaf | None:
    """Return the leaf of a smart daemon wherever it is; None: it is not there, or not ours.

    An earlier master may have been started in another cgroup. The caller's to close or release;
    its release takes the empty directories of that master away, too.

    Args:
        path: absolute, as `Leaf.path` was.
    """
    mount = find_mount(read_text("/proc/self/mountinfo"))
    found = _find_leaf(path)
    if mount is None or found is None or found[0] != path or found[1].kind != "smart":
        return None
    is_plain = not any(part in ("", ".", "..") for part in path.split("/")[1:])
    if not is_plain or not path.startswith(mount[0].rstrip("/") + "/"):
        return None
    parent, _, name = path.rpartition("/")
    parent_fd = directory_fd = -1
    is_right = False
    try:
        parent_fd = os.open(parent, DIRECTORY)
        directory_fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        # Another file system could be mounted on a directory below.
        is_right = os.fstat(directory_fd).st_dev == os.stat(mount[0]).st_dev
        is_right = is_right and _is_private(directory_fd)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        is_right = False
    finally:
        if not is_right:
            for fd in (parent_fd, directory_fd):
                if fd >= 0:
                    os.close(fd)
    if not is_right:
        return None
    return Leaf(path, move_high(directory_fd), move_high(parent_fd), owns_parent=True)


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
    parent = home_directory(instance)
    path = f"{parent.rstrip('/')}/{PREFIX}{instance[:MAX_NAME]}"
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
        if entry.startswith(f"{PREFIX}{prefix}"):
            try:
                tree = open_tree(entry.removeprefix(PREFIX), patience=0)
            except (LockedError, UnsupportedError):
                continue  # it runs, or is not ours to touch
            tree.sweep()
            tree.close(remove=True)


def find_lock_holder(fd: int) -> int:
    """Return the pid of the process that holds a flock on an open file, or 0. See proc_locks(5)."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    found = 0
    for line in read_text("/proc/locks").splitlines():
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


def _remove(name: str, dir_fd: int, depth: int = 0) -> bool:
    """Remove a cgroup, and up to `depth` levels of empty ones in it; return whether it is gone.

    One that is populated stays, with all below it: a daemon that lives may have made itself
    cgroups that it has no use for yet.
    """
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (EBUSY, ENOTEMPTY):
            raise
    else:
        return True
    if not depth:
        return False
    try:
        directory_fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return True
    try:
        if b"populated 1" in read_at(directory_fd, "cgroup.events"):
            return False
        for entry in os.scandir(directory_fd):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.name, directory_fd, depth - 1)
    finally:
        os.close(directory_fd)
    return _remove(name, dir_fd)


def remove_instance(name: str, base_fd: int, parent_fd: int) -> None:
    """Remove the directories of an instance whose lock we have, as far as they are empty."""
    # In "smart" daemons may live, in "master" the master itself; the guard tries again. An empty
    # leaf is left where a process of ours kept the daemon, not the leaf.
    for group, depth in (("dumb", 0), ("smart", 1), (MASTER, 0)):
        _remove(group, base_fd, depth)
    _remove(name, parent_fd)


def _remove_foreign(leaf: str) -> None:
    """Remove the empty directories above a leaf of another place, unless a master uses them."""
    path = leaf.rpartition("/")[0].rpartition("/")[0]
    parent, _, name = path.rpartition("/")
    fds: list[int] = []
    try:
        fds.append(os.open(parent, DIRECTORY))
        fds.append(os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[0]))
        flock(fds[1], LOCK_EX | LOCK_NB)
        remove_instance(name, fds[1], fds[0])
    except (FileNotFoundError, PermissionError, BlockingIOError):
        pass  # it is gone, not ours, or in use
    finally:
        for fd in reversed(fds):
            os.close(fd)


def _members_below(directory_fd: int, depth: int) -> list[int]:
    """Return the pids of the processes in a cgroup and in those in it."""
    pids = [int(line) for line in read_at(directory_fd, "cgroup.procs").split()]
    for entry in os.scandir(directory_fd) if depth else ():
        if not entry.is_dir(follow_symlinks=False):
            continue
        try:
            below_fd = os.open(entry.name, DIRECTORY | os.O_NOFOLLOW, dir_fd=directory_fd)
        except FileNotFoundError:
            continue
        try:
            pids += _members_below(below_fd, depth - 1)
        finally:
            os.close(below_fd)
    return pids


def _count_ooms(directory_fd: int) -> tuple[int, int]:
    """Return how often a process was killed for lack of memory, and how often the limit was met."""
    events = {}
    for line in read_at(directory_fd, "memory.events").decode().splitlines():
        name, _, number = line.partition(" ")
        events[name] = int(number)
    return events.get("oom_kill", 0), events.get("oom", 0)


def format_size(size: int) -> str:
    """Return a size as people write it: `64M`; 4097 has no shorter name."""
    for unit in ("", "k", "M", "G"):
        if size < 1024 or size % 1024:
            return f"{size}{unit}"
        size //= 1024
    return f"{size}T"


def read_at(dir_fd: int, path: str) -> bytes:
    """Return the text of a file of a cgroup; empty if that has been removed."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd), "rb") as file:
            return file.read()
    except OSError as error:
        # EOPNOTSUPP: cgroup.procs of a threaded cgroup, whose processes its root has.
        if error.errno not in (ENOENT, ENODEV, EOPNOTSUPP):
            raise KernelError("read", error.errno or 0, path) from error
        return b""


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
