"""One master of a configuration, and where to find it: runtime directory, locks, socket file.

Below the runtime directory an instance has `NAME.lock`, `NAME.sock` and, unless its name was
chosen, `.HASH.file`, the lock of its configuration file. Who holds such a lock is the master; the
locks are of open files (F_OFD_SETLK in fcntl(2)), so anybody who may open one can ask about it
without being in the way, and none outlives its master. What is written in a lock file is for
messages and for those who look for a process: it names the holder with the time of its start, so
that a text of a holder that is gone is known for what it is.

A lock file is removed by its holder only, which is why a lock that was got counts only if its file
still has its name. The mode is 0600: whoever can open a file can lock it.

The second half of this module is what the command line asks; it loads nothing of the master.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
from errno import EACCES, EAGAIN
from struct import Struct
from time import monotonic, sleep
from zlib import crc32

from lowsuper.errors import KernelError, LowsuperError
from lowsuper.kernel import trust
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowsuper.model import MasterSpec

VARIABLE = "LOWSUPER_RUNTIME_DIR"
ROOTS_DIRECTORY = "/run/lowsuper"

DIRECTORY_MODE, LOCK_MODE = 0o755, 0o600
LONGEST_PATH = 107  # of a socket: see unix(7)
PATIENCE = 2.0  # seconds that a master that is dying gets to let go of its lock
PAUSE = 0.01
MAX_TEXT = 8192

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_FLOCK = Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_UCRED = Struct("iII")  # struct ucred: pid, uid, gid


class TakenError(LowsuperError):
    """Another master has this configuration, or this name; the text names it and the way out."""


class Claim:
    """What makes a master the only one of its kind; it lasts as long as the process."""

    __slots__ = ("_fds", "_file", "_fixed", "directory", "directory_fd", "name", "problem")

    def __init__(self, name: str, file: str, *, fixed: bool) -> None:
        """Begin with nothing.

        Args:
            name: what was chosen, or what the file suggests.
            file: the absolute path of the configuration, or "".
            fixed: the name was chosen.
        """
        self.name, self._file, self._fixed = name, file, fixed
        self.directory = ""  # the runtime directory; "": there is none
        self.directory_fd = -1
        self.problem = ""  # why there is none, a line for the operator
        self._fds: dict[str, int] = {}  # of the locks, by name

    def take(self, directory: str) -> None:
        """Make the runtime directory if need be, and take the locks.

        Raises:
            TakenError: another master has them.
            OSError: they cannot be had.
            UntrustedError: the directory is not to be trusted.
        """
        self.directory_fd = _open_directory(directory)
        self.directory = directory
        if self._fixed:
            self._take_or_refuse(f"{self.name}.lock", f"the instance {self.name}")
        else:
            if self._file:
                self._take_or_refuse(_file_lock(self._file), self._file)
            if not self._take(f"{self.name}.lock", 0):
                rest = f"{_hash(self._file):08x}" if self._file else str(os.getpid())
                self.name = f"{self.name}-{rest}"
                self._take_or_refuse(f"{self.name}.lock", f"the instance {self.name}")
        self.sign()

    def sign(self) -> None:
        """Write into the locks who holds them: this process; to be called after a fork."""
        start = _read_start(os.getpid())
        text = f"{os.getpid()} {start}\n{_escape(self._file)}\n{self.name}\n"
        for fd in self._fds.values():
            os.ftruncate(fd, 0)
            os.pwrite(fd, text.encode("utf-8", "surrogateescape"), 0)

    def _is_elsewhere(self) -> bool:
        """Return whether the directory that is open is not the one that has its name now."""
        try:
            status = os.stat(self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return not os.path.samestat(status, os.fstat(self.directory_fd))

    def renew(self) -> None:
        """Make again what somebody has removed: the directory, a lock.

        Raises:
            TakenError: another master has taken our place meanwhile.
            OSError: it cannot be made.
            UntrustedError: the directory is not to be trusted.
        """
        if self._is_elsewhere():
            fd = _open_directory(self.directory)
            os.close(self.directory_fd)
            self.directory_fd = fd
        for name, old in list(self._fds.items()):
            if not _is_same(old, name, self.directory_fd):
                self._take_or_refuse(name, f"the instance {self.name}")
                os.close(old)
        self.sign()

    def is_damaged(self) -> bool:
        """Return whether somebody has removed the directory or a lock."""
        return self._is_elsewhere() or not all(
            _is_same(fd, name, self.directory_fd) for name, fd in self._fds.items()
        )

    def watched(self) -> list[str]:
        """Return the paths of the lock files."""
        return [f"{self.directory}/{name}" for name in self._fds]

    def close(self) -> None:
        """Let go of everything. What may not be removed any more is left to the next master."""
        for name, fd in self._fds.items():
            if _is_same(fd, name, self.directory_fd):
                unlink(name, self.directory_fd)
            os.close(fd)
        self._fds.clear()
        if self.directory_fd >= 0:
            os.close(self.directory_fd)
            self.directory_fd = -1

    def _take_or_refuse(self, name: str, what: str) -> None:
        if self._take(name, PATIENCE):
            return
        holder = _read_holder(name, self.directory_fd)
        who = f"with pid {holder.pid}" if holder.pid else "in another pid namespace"
        raise TakenError(
            f"{what} is already run by another lowsuper, {who}; stop that one first (see lowsuper "
            "status), or give one of them another name (instance = OTHER)"
        )

    def _take(self, name: str, patience: float) -> bool:
        """Take a lock; wait for at most so many seconds for a holder that is about to end."""
        end = monotonic() + patience
        while True:
            fd = _open_lock(name, self.directory_fd)
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
            except OSError as error:
                os.close(fd)
                if error.errno not in (EAGAIN, EACCES):
                    raise
                # Race: it may be about to end, or about to write its name.
                if monotonic() >= end or _read_holder(name, self.directory_fd).pid:
                    return False
                sleep(PAUSE)  # nothing tells of the end of a lock
                continue
            # Race: the holder before has removed the file between our opening and our lock.
            if _is_same(fd, name, self.directory_fd):
                self._fds[name] = _move_high(fd)
                return True
            os.close(fd)


def claim(spec: MasterSpec, environ: Mapping[str, str]) -> Claim:
    """Make sure that this is the only master of a configuration; to be called before any fork.

    Where no runtime directory can be had there is nothing to make sure of; `problem` says why.

    Raises:
        TakenError: there is another one.
    """
    fixed = any(origin.key == "instance" for origin in spec.origins)
    made = Claim(spec.name, spec.files[0] if spec.files else "", fixed=fixed)
    directory = find_directory(environ, spec.runtime_dir)
    if not directory:
        made.problem = (
            "no control socket: an ordinary user without XDG_RUNTIME_DIR has no runtime directory; "
            "give one with runtime-dir"
        )
        return made
    try:
        made.take(directory)
    except (OSError, trust.UntrustedError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        made.close()
        made.problem = f"no control socket: {directory}: {text}; choose another with runtime-dir"
    except TakenError:
        made.close()
        raise
    return made


# The runtime directory.


def find_directory(environ: Mapping[str, str], wanted: str | None = None) -> str:
    """Return where instances are, or "": the option, its variable, or what is usual."""
    if wanted is not None:
        return wanted
    if environ.get(VARIABLE):
        return environ[VARIABLE]
    if os.geteuid() == 0:
        return ROOTS_DIRECTORY
    home = environ.get("XDG_RUNTIME_DIR", "")
    return f"{home.rstrip('/')}/lowsuper" if home.startswith("/") else ""


def _open_directory(path: str) -> int:
    """Make a runtime directory if need be; return its descriptor, which the caller closes."""
    parent, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise trust.UntrustedError("is not the path of a directory of its own")
    parent_fd = trust.open_trusted(parent or "/", sticky=True, make=True)
    try:
        try:
            fd = trust.make_directory(name, parent_fd, DIRECTORY_MODE)
        except FileExistsError:
            fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
    except NotADirectoryError:
        raise trust.UntrustedError("is a link, or no directory") from None
    finally:
        os.close(parent_fd)
    status = os.fstat(fd)
    if not trust.is_owned(status):
        os.close(fd)
        mine = status.st_uid in (0, os.geteuid())
        others = "others can write to it" if mine else f"it belongs to uid {status.st_uid}"
        raise trust.UntrustedError(others)
    return _move_high(fd)


def _move_high(fd: int) -> int:
    from lowsuper.kernel.native import move_high  # the client has no use for the extension

    return move_high(fd)


# Locks.


class Holder(Record):
    """What a lock file says."""

    pid: int  # of the master; 0: it does not run, or not in our pid namespace
    file: str = ""  # the configuration; "": it was given by options only
    name: str = ""  # of the instance


def _hash(file: str) -> int:
    """Return the number that stands for a path, as in `kernel.domain`."""
    return crc32(file.encode("utf-8", "surrogateescape"))


def _file_lock(file: str) -> str:
    return f".{_hash(file):08x}.file"


def _open_lock(name: str, dir_fd: int) -> int:
    fd = os.open(name, LOCK, LOCK_MODE, dir_fd=dir_fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not trust.is_owned(status) or status.st_nlink > 1:
        os.close(fd)
        raise trust.UntrustedError(f"{name} is not a lock file of lowsuper's")
    return fd


def _is_same(fd: int, name: str, dir_fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=dir_fd, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def unlink(name: str, dir_fd: int) -> None:
    """Remove a file that may be gone, or that a user we have become may not remove."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except (FileNotFoundError, PermissionError):
        return  # a master that has become another user may not; the next one cleans up


def _read_start(pid: int) -> str:
    """Return the start time of a process, in the kernel's ticks; "" if it does not run."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return ""
    finally:
        os.close(fd)
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _read_holder(name: str, dir_fd: int) -> Holder:
    """Return what is written in a lock file, if the process that wrote it still runs."""
    try:
        fd = os.open(name, READ, dir_fd=dir_fd)
    except FileNotFoundError:
        return Holder(0)
    try:
        return _parse_holder(os.read(fd, MAX_TEXT))
    finally:
        os.close(fd)


def _parse_holder(data: bytes) -> Holder:
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    first, _, start = lines[0].partition(" ")
    if len(lines) < 4 or not (first.isascii() and first.isdigit()) or len(first) > 10:
        return Holder(0)
    pid = int(first) if start and _read_start(int(first)) == start else 0
    return Holder(pid, _unescape(lines[1]), lines[2])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _unescape(text: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))


# What the command line asks.


class Instance(Record):
    """A master that runs."""

    name: str
    pid: int  # 0: it is in another pid namespace, or not to be seen
    file: str  # its configuration; "": it was given by options only
    socket: str  # the path of its control socket; "": it has none in the runtime directory


def name_file(path: str) -> str:
    """Return the path of a configuration file as its master knows it."""
    return os.path.abspath(path) if os.path.islink(path) else os.path.realpath(path)


def find_instances(directory: str | None = None) -> list[Instance]:
    """Return the masters of a runtime directory that run, by name.

    Who may not look into the locks of another user learns only which sockets there are, and who
    listens to them.

    Args:
        directory: None: the usual one.

    Raises:
        KernelError: it cannot be read; that there is none is no error.
    """
    directory = find_directory(os.environ) if directory is None else directory
    if not directory:
        return []
    try:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KernelError("open", error.errno or 0, directory) from None
    try:
        names = sorted(os.listdir(dir_fd))
        found = [
            _find_instance(name.removesuffix(".lock"), directory, dir_fd)
            for name in names
            if name.endswith(".lock") and not name.startswith(".")
        ]
    finally:
        os.close(dir_fd)
    return [instance for instance in found if instance is not None]


def _find_instance(name: str, directory: str, dir_fd: int) -> Instance | None:
    path = f"{directory.rstrip('/')}/{name}.sock"
    try:
        is_socket = stat.S_ISSOCK(os.stat(f"{name}.sock", dir_fd=dir_fd).st_mode)
    except FileNotFoundError:
        is_socket = False
    socket = path if is_socket else ""
    try:
        fd = os.open(f"{name}.lock", READ, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    except PermissionError:
        return _ask_socket(name, socket) if socket else None
    try:
        end = monotonic() + PATIENCE
        while is_locked(fd):
            holder = _parse_holder(os.pread(fd, MAX_TEXT, 0))
            # Race: the lock is taken first, and then the name is written.
            if holder.pid or (holder.name and monotonic() >= end):
                return Instance(name, holder.pid, holder.file, socket)
            if monotonic() >= end:
                return None
            sleep(PAUSE)
    finally:
        os.close(fd)
    return None


def _ask_socket(name: str, path: str) -> Instance | None:
    """Return what a socket alone tells of an instance; None: nobody listens there."""
    try:
        connected = connect(path)
    except PermissionError:
        return Instance(name, 0, "", path)  # whether anybody listens is not for us to know
    except OSError:
        return None
    try:
        return Instance(name, read_peer(connected)[0], "", path)
    finally:
        connected.close()


def is_locked(fd: int) -> bool:
    """Return whether another has the lock of an open file, without taking it."""
    asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
    kind: int = _FLOCK.unpack(asked)[0]
    return kind != fcntl.F_UNLCK


def find_pid(file: str, directory: str | None = None) -> int:
    """Return the pid of the master that runs a configuration file; 0: none does.

    With a jail that is the process outside, which was launched. A pid is a number only: open a
    pidfd of it and ask again before something is done to it.

    Args:
        file: its path.
        directory: the runtime directory; None: the usual one.

    Raises:
        LowsuperError: several do, under names that were chosen.
        KernelError: the runtime directory cannot be read.
    """
    wanted = name_file(file)
    found = [each for each in find_instances(directory) if each.file == wanted and each.pid]
    if len(found) > 1:
        names = ", ".join(f"{each.name} (pid {each.pid})" for each in found)
        raise LowsuperError(f"{file} is run by several masters: {names}")
    return found[0].pid if found else 0


def connect(path: str) -> _socket.socket:
    """Return a socket that is connected to a control socket, however long its path is.

    Raises:
        OSError: ENOENT, there is none; ECONNREFUSED, nobody listens any more; EACCES.
    """
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    dir_fd = -1
    try:
        if len(os.fsencode(path)) > LONGEST_PATH:
            directory, _, name = path.rpartition("/")
            dir_fd = os.open(directory or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{dir_fd}/{name}"
        made.connect(path)
    except OSError:
        made.close()
        raise
    finally:
        if dir_fd >= 0:
            os.close(dir_fd)
    return made


def read_peer(connected: _socket.socket) -> tuple[int, int, int]:
    """Return pid, user and group of who is at the other end, as it was when it connected.

    Of a socket that was connected to one that listens it is who began to listen. See SO_PEERCRED
    in unix(7); pid 0: it is in another pid namespace.
    """
    data = connected.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return pid, uid, gid
