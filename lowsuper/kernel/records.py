"""Records of smart daemons: what one master notes for the next, in the state directory.

One file per pidfile, `NAME-HASH.record`, replaced whole by rename(2). It need not outlive a loss
of power: the boot id in it would not match any more. Whatever is not exactly what `save` writes
counts as no record, and is told.

Beside it lies `NAME-HASH.lock`. Who holds its flock governs the pidfile, and only that master
writes the record. Lock files stay: to remove one would need a second lock.

All is done below one descriptor of the directory, so a directory that is renamed goes on to be
used. If it is removed, `save` and `lock` fail and say so; it is not made anew, because another
master could have taken the same locks in another new one.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL, ENOENT, EPERM
from fcntl import F_DUPFD_CLOEXEC, LOCK_EX, LOCK_NB, LOCK_UN, fcntl, flock

from lowsuper.errors import KernelError, LowsuperError
from lowsuper.identity import ProcessId, Recorded
from lowsuper.kernel import trust
from lowsuper.kernel.cgroup import find_lock_holder
from lowsuper.kernel.native import move_high
from lowsuper.kernel.pidfile import fill_and_rename, unlink_if_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

DEFAULT_DIRECTORY = "/run/lowsuper/state"
VERSION = "lowsuper-record 1"
END = "end"
KEYS = ("pidfile", "boot_id", "main", "exe", "leaf", "keeper_kind", "keeper")
MAX_BYTES = 64 * 1024
MAX_PID = 1 << 22
MAX_HOLDER = 200

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
SHARE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_boot_id: list[str] = []


class BrokenError(LowsuperError):
    """What is in a file is not what `render` writes; the text says in a few words why."""


class HeldError(LowsuperError):
    """Another master governs a pidfile.

    Args:
        pid: of the process that holds the lock; 0: it is not to be seen from here.
        holder: who that is, in words; never "".
    """

    def __init__(self, pid: int, holder: str) -> None:
        """Keep both."""
        super().__init__(f"held by {holder}")
        self.pid, self.holder = pid, holder


def boot_id() -> str:
    """Return the id of this boot, see random(4).

    Raises:
        KernelError: /proc is not there.
    """
    if not _boot_id:
        path = "/proc/sys/kernel/random/boot_id"
        try:
            with open(path, "rb") as file:  # a codec could not be loaded after a drop
                _boot_id.append(file.read().strip().decode())
        except OSError as error:
            raise KernelError("open", error.errno or 0, path) from error
    return _boot_id[0]


def default_directory(uid: int) -> str:
    """Return where a master that runs as `uid` keeps its records unless it is told."""
    return DEFAULT_DIRECTORY if uid == 0 else f"{DEFAULT_DIRECTORY}-{uid}"


def render(recorded: Recorded) -> str:
    """Return the text of a record: a line of version, lines `key value`, and an end."""
    lines = [VERSION]
    for key in KEYS:
        value = getattr(recorded, key)
        if isinstance(value, str):
            lines.append(f"{key} {_escape(value)}")
        elif value is None:
            lines.append(f"{key} ")
        else:
            lines.append(f"{key} {value.pid} {value.start} {value.inode}")
    return "\n".join((*lines, END, ""))


def parse(text: str) -> Recorded:
    """Return the record of a text that `render` made.

    Raises:
        BrokenError: it is anything else.
    """
    version, *lines = text.split("\n")
    if version != VERSION:
        is_other = version.startswith(VERSION.rpartition(" ")[0] + " ") and lines
        raise BrokenError("is of another version of lowsuper" if is_other else "is not a record")
    if len(lines) < len(KEYS) + 2 or lines[len(KEYS) :] != [END, ""]:
        raise BrokenError("is cut short or too long")
    values = []
    for key, line in zip(KEYS, lines, strict=False):
        found, blank, value = line.partition(" ")
        if found != key or not blank:
            raise BrokenError(f"has no {key} where it should be")
        values.append(value)
    pidfile, boot, main, exe, leaf, kind, keeper = values
    if not boot:
        raise BrokenError("has no boot id")
    return Recorded(
        pidfile=_unescape(pidfile),
        boot_id=_unescape(boot),
        main=_parse_process(main),
        exe=_unescape(exe),
        leaf=_unescape(leaf),
        keeper_kind=_unescape(kind),
        keeper=_parse_process(keeper),
    )


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _unescape(text: str) -> str:
    parts = []
    while text:
        plain, mark, text = text.partition("\\")
        parts.append(plain)
        if mark:
            if text[:1] not in ("\\", "n"):
                raise BrokenError("has an escape that is none")
            parts.append("\n" if text[0] == "n" else "\\")
            text = text[1:]
    return "".join(parts)


def _parse_process(text: str) -> ProcessId | None:
    if not text:
        return None
    words = text.split(" ")
    numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 20]
    if len(numbers) != 3 or [str(number) for number in numbers] != words:
        raise BrokenError("has a process that is none")
    if not 1 <= numbers[0] <= MAX_PID:
        raise BrokenError("has a pid that is none")
    return ProcessId(*numbers)


class Lock:
    """The right to govern a pidfile. It ends with `release`, and with the process."""

    __slots__ = ("_lock_fd", "_text_fd")

    def __init__(self, lock_fd: int, text_fd: int) -> None:
        """Take over two descriptors of the lock file; only the first has the flock."""
        self._lock_fd, self._text_fd = lock_fd, text_fd

    def release(self) -> None:
        """Let go; the file stays. Who watches it for IN_CLOSE_WRITE is told after that."""
        if self._lock_fd < 0:
            return
        os.ftruncate(self._text_fd, 0)
        flock(self._lock_fd, LOCK_UN)
        os.close(self._lock_fd)
        os.close(self._text_fd)
        self._lock_fd = self._text_fd = -1


class Store:
    """The records of one directory. Made by `open_store`."""

    def __init__(self, directory: str, dir_fd: int) -> None:
        """Take over `dir_fd`."""
        self.directory: Final = directory
        self._fd = dir_fd
        self._uid = os.geteuid()

    def load(self, pidfile: str) -> tuple[Recorded | None, str]:
        """Return the record of a pidfile, or None; and what is wrong with it, or "".

        The problem is a sentence for the operator; that there is no record is none.
        """
        pidfile = os.path.abspath(pidfile)
        name = f"{make_key(pidfile)}.record"
        try:
            recorded = parse(self._read(name))
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
        except BrokenError as error:
            why = str(error)
        else:
            if os.path.abspath(recorded.pidfile) == pidfile:
                return recorded, ""
            why = "is that of another pidfile"
        return None, f"the record of {pidfile}, {self.directory}/{name}, {why}; it counts as none"

    def load_all(self) -> Iterator[Recorded]:
        """Yield every good record, those of other masters too; each is read when it is asked for.

        Raises:
            KernelError: the directory cannot be read.
        """
        try:
            names = [name for name in os.listdir(self._fd) if name.endswith(".record")]
        except OSError as error:
            raise self._explain("readdir", error, "") from error
        for name in names:
            try:
                recorded = parse(self._read(name))
            except (OSError, BrokenError):
                continue  # whoever governs it is told of that
            yield recorded

    def save(self, recorded: Recorded) -> None:
        """Write a record in place of the one before. Hold its pidfile's lock.

        Raises:
            KernelError: it could not be written; the one before is still there.
        """
        key = make_key(recorded.pidfile)
        temporary = f"{key}.new"
        data = render(recorded).encode("utf-8", "surrogateescape")
        try:
            # What a master left that was killed while it wrote: only who has the lock writes.
            unlink_if_there(temporary, self._fd)
            fd = os.open(temporary, WRITE, FILE_MODE, dir_fd=self._fd)
            fill_and_rename(fd, data, (temporary, f"{key}.record"), self._fd, FILE_MODE)
        except OSError as error:
            raise self._explain("record", error, f"{key}.record") from error

    def remove(self, pidfile: str) -> None:
        """Remove the record of a pidfile; its absence is no error. Hold the lock.

        Raises:
            KernelError: it cannot be removed.
        """
        key = make_key(pidfile)
        for name in (f"{key}.new", f"{key}.record"):
            try:
                unlink_if_there(name, self._fd)
            except OSError as error:
                raise self._explain("unlink", error, name) from error

    def lock_path(self, pidfile: str) -> str:
        """Return the path of a pidfile's lock, which exists once somebody has tried it.

        To wait for the lock, watch this for IN_CLOSE_WRITE, try again, and then wait; an attempt
        that fails makes no such event. That a killed holder's lock is free when the event comes
        is what Linux does (see `lock`), not what it promises; so if an event brought nothing, try
        once more a little later. A pidfd of `HeldError.pid` comes after both for certain.
        """
        return f"{self.directory}/{make_key(pidfile)}.lock"

    def lock(self, pidfile: str, holder: str) -> Lock:
        """Take the lock of a pidfile; never waits.

        Args:
            pidfile: its path.
            holder: who we are, in words, for the others: one line.

        Raises:
            HeldError: another process has it, or another `Lock` of ours.
            KernelError: it cannot be made.
        """
        name = f"{make_key(pidfile)}.lock"
        fds: list[int] = []
        try:
            # The flock belongs to a descriptor that cannot write, so that an attempt which fails
            # makes no IN_CLOSE_WRITE and does not wake those who wait, itself included.
            lock_fd = self._open_lock(name)
            fds.append(lock_fd)
            flock(lock_fd, LOCK_EX | LOCK_NB)
            text_fd = move_high(os.open(name, SHARE, FILE_MODE, dir_fd=self._fd))
            fds.append(text_fd)
            os.ftruncate(text_fd, 0)
            os.write(text_fd, _sign(holder))
            # Race: the closing of a file is told before its lock is let go. What a killed process
            # had open is closed from the highest number down, so this way the lock goes first.
            fds[0] = fcntl(lock_fd, F_DUPFD_CLOEXEC, text_fd + 1)
            os.close(lock_fd)
        except BlockingIOError as error:
            held = HeldError(*_find_holder(fds[0]))
            _close_all(fds)
            raise held from error
        except BrokenError as error:
            raise KernelError("lock", EPERM, f"{self.directory}/{name}", f"it {error}") from error
        except OSError as error:
            _close_all(fds)
            raise self._explain("lock", error, name) from error
        return Lock(*fds)

    def close(self) -> None:
        """Close the directory; locks that are held stay held."""
        os.close(self._fd)

    def _open_lock(self, name: str) -> int:
        """Return a descriptor of a lock file, made if need be."""
        try:
            fd = os.open(name, READ, dir_fd=self._fd)
        except FileNotFoundError:
            os.close(os.open(name, SHARE, FILE_MODE, dir_fd=self._fd))
            fd = os.open(name, READ, dir_fd=self._fd)
        try:
            self._judge(fd)
        except BrokenError:
            os.close(fd)
            raise
        return move_high(fd)

    def _read(self, name: str) -> str:
        fd = os.open(name, READ, dir_fd=self._fd)
        try:
            self._judge(fd)
            data = os.read(fd, MAX_BYTES + 1)
        finally:
            os.close(fd)
        try:
            return data.decode("utf-8", "surrogateescape")
        except UnicodeDecodeError:
            raise BrokenError("is not a record") from None

    def _judge(self, fd: int) -> None:
        """See that an open file is a plain one, and ours alone."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BrokenError("is not a plain file")
        if status.st_uid != self._uid:
            raise BrokenError(f"belongs to uid {status.st_uid}")
        if status.st_mode & trust.OTHERS_WRITE or status.st_nlink != 1:
            raise BrokenError("can be written by others")

    def _explain(self, call: str, error: OSError, name: str) -> KernelError:
        advice = ""
        if error.errno == ENOENT and not os.fstat(self._fd).st_nlink:
            advice = "the state directory was removed; restart lowsuper to make a new one"
        return KernelError(call, error.errno or 0, f"{self.directory}/{name}", advice)


def make_key(pidfile: str) -> str:
    """Return the file name that stands for the path of a pidfile.

    The end of it is legible, the hash (FNV-1a, 64 bits) tells paths apart; paths come from the
    configuration, so nobody looks for two that are alike, and `load` would see it.
    """
    path = os.path.abspath(pidfile)
    digest = 0xCBF29CE484222325
    for byte in os.fsencode(path):
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    base = os.path.basename(path)[:100]
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in base)
    return f"{clean.lstrip('.') or 'pidfile'}-{digest:016x}"


def open_store(directory: str) -> Store:
    """Make the state directory if need be, and open it.

    Only root and we may be able to say where it is; it must be ours, written by us alone, and no
    link itself. What is missing above it is made with mode 0755, itself with 0700.

    Args:
        directory: an absolute path.

    Raises:
        KernelError: it cannot be had; the advice names `state-dir`.
    """
    directory, name = _split(directory)
    try:
        parent_fd = trust.open_trusted(directory, sticky=True, make=True)
    except (OSError, trust.UntrustedError) as error:
        raise _refuse(f"{directory}/{name}", error) from error
    try:
        fd = _open_own(name, parent_fd)
    except (OSError, trust.UntrustedError) as error:
        raise _refuse(f"{directory}/{name}", error) from error
    finally:
        os.close(parent_fd)
    return Store(f"{directory.rstrip('/')}/{name}", move_high(fd))


def prepare_for(directory: str, uid: int, gid: int) -> None:
    """As root, make the state directory for a master that is about to become `uid`.

    Where somebody else could change where it leads, root makes nothing; then that master itself
    makes it with its own rights, or says why it cannot.

    Raises:
        KernelError: it cannot be made, or another than `uid` has it.
    """
    directory, name = _split(directory)
    path = f"{directory.rstrip('/')}/{name}"
    try:
        parent_fd = trust.open_trusted(directory, sticky=True, make=True)
    except trust.UntrustedError:
        return
    except OSError as error:
        raise _refuse(path, error) from error
    try:
        fd = _open_or_make(name, parent_fd)
        try:
            _give(fd, uid, gid)
        finally:
            os.close(fd)
    except (OSError, trust.UntrustedError) as error:
        raise _refuse(path, error) from error
    finally:
        os.close(parent_fd)


def _split(directory: str) -> tuple[str, str]:
    parent, _, name = directory.rstrip("/").rpartition("/")
    if not directory.startswith("/") or name in ("", ".", "..") or "\0" in directory:
        advice = "state-dir must be the absolute path of a directory"
        raise KernelError("state-dir", EINVAL, directory, advice)
    return parent or "/", name


def _open_or_make(name: str, parent_fd: int) -> int:
    try:
        return trust.make_directory(name, parent_fd, DIRECTORY_MODE)
    except FileExistsError:
        return os.open(name, DIRECTORY, dir_fd=parent_fd)


def _open_own(name: str, parent_fd: int) -> int:
    fd = _open_or_make(name, parent_fd)
    status = os.fstat(fd)
    why = ""
    if status.st_uid != os.geteuid():
        why = f"it belongs to uid {status.st_uid}"
    elif status.st_mode & trust.OTHERS_WRITE:
        why = "others can write to it"
    if why:
        os.close(fd)
        raise trust.UntrustedError(why)
    return fd


def _give(fd: int, uid: int, gid: int) -> None:
    """Hand a directory to `uid`, if it is root's and has nothing in it."""
    owner = os.fstat(fd).st_uid
    if owner == uid:
        return
    if owner != os.geteuid():
        raise trust.UntrustedError(f"it belongs to uid {owner}")
    if os.listdir(fd):
        raise trust.UntrustedError(f"it holds what belongs to uid {owner}")
    os.fchmod(fd, DIRECTORY_MODE)
    os.fchown(fd, uid, gid)


def _refuse(path: str, error: OSError | trust.UntrustedError) -> KernelError:
    advice = "state-dir = PATH keeps records elsewhere, where only root and this user can write"
    if isinstance(error, OSError):
        return KernelError("state-dir", error.errno or 0, path, advice)
    return KernelError("state-dir", EPERM, path, f"{error}; {advice}")


def _sign(holder: str) -> bytes:
    clean = "".join(char if char.isprintable() else "?" for char in holder)[:MAX_HOLDER]
    return f"{os.getpid()} {clean}\n".encode("utf-8", "surrogateescape")


def _find_holder(fd: int) -> tuple[int, str]:
    """Return who holds the flock of an open file: its pid, and what it says of itself."""
    pid = find_lock_holder(fd)
    text = os.pread(fd, 4 * MAX_HOLDER, 0).decode("utf-8", "replace")
    number, _, holder = text.partition("\n")[0].partition(" ")
    # Race: the text may be that of the holder before this one, which has not written its own yet.
    if holder and (pid == 0 or number == str(pid)):
        return pid, holder
    return pid, f"pid {pid}" if pid else "a process that is not to be seen from here"


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
