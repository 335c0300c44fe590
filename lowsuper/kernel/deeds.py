"""What hooks do to files and mounts, each in a process of its own.

A mount of a server that does not answer, a FIFO that nobody reads or a dead disk can hold such a
call for ever, so the master does none of them itself. The process is a plain fork of the master:
it has the same privileges, directory, umask and namespaces, and needs no program to be there,
which a jail may not have. It keeps none of the master's descriptors and dies with it.
"""

from __future__ import annotations

import os
from errno import ENODEV, ENXIO
from stat import S_IMODE

from lowsuper.errors import KernelError, LowsuperError, assert_never
from lowsuper.kernel import native, process
from lowsuper.kernel.facts import find_group_number, find_user_number
from lowsuper.kernel.loop import READ
from lowsuper.kernel.native import lib
from lowsuper.model import (
    ChangeMode,
    ChangeOwner,
    MakeDirectory,
    Mount,
    Unlink,
    Unmount,
    Write,
    WriteFifo,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowsuper.kernel.loop import Loop
    from lowsuper.model import FileDeed

SIGKILL = 9
RESULT_FD = 3
RESULT_BYTES = 4096  # PIPE_BUF: one write that is all there or not at all

MS_REMOUNT, MS_BIND, MS_REC = 0x20, 0x1000, 0x4000
MS_PROPAGATION = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20  # unbindable, private, slave, shared
MNT_DETACH = 2
ATTRIBUTES = 0xF  # ro, nosuid, nodev, noexec: the same bits in mount(2) and mount_setattr(2)
AT_FDCWD = -100
AT_RECURSIVE = 0x8000


class DeedProcess:
    """One deed on its way; closes its descriptors when it has ended."""

    __slots__ = ("_done", "_loop", "_on_end", "_pidfd", "_result_fd", "pid")

    def __init__(self, loop: Loop, deed: FileDeed, on_end: Callable[[int, str], None]) -> None:
        """Begin with it.

        Args:
            loop: tells its end.
            deed: what to do.
            on_end: called once with the wait status, and with what there is to say: why it failed,
                or, with status 0, what is strange.

        Raises:
            KernelError: there can be no further process.
        """
        self._loop, self._on_end, self._done = loop, on_end, False
        self._result_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        master = os.getpid()
        try:
            self.pid = os.fork()
        except OSError as error:
            os.close(self._result_fd)
            os.close(write_fd)
            raise KernelError("fork", error.errno or 0) from None
        if self.pid == 0:
            try:
                status = _do_alone(deed, write_fd, master)
            finally:
                os._exit(status)
        os.close(write_fd)
        self._pidfd = os.pidfd_open(self.pid)
        loop.watch(self._pidfd, READ, self.on_exit)

    def on_exit(self) -> None:
        """It has ended; it stays a zombie until the loop comes to its SIGCHLD."""
        status = None if self._done else process.peek_status(self._pidfd)
        if status is None:
            return
        try:
            text = os.read(self._result_fd, RESULT_BYTES)
        except BlockingIOError:  # nothing was written, and a process that was killed had not closed
            text = b""
        self.abandon()
        self._on_end(status, text.decode("utf-8", "surrogateescape"))

    def kill(self) -> None:
        """SIGKILL it."""
        if not self._done:
            process.send_signal(self._pidfd, SIGKILL)

    def abandon(self) -> None:
        """Do not wait for its end any more."""
        if not self._done:
            self._done = True
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            os.close(self._result_fd)


def _do_alone(deed: FileDeed, write_fd: int, master: int) -> int:
    """Do a deed in the new process; return its exit status."""
    try:
        os.dup2(write_fd, RESULT_FD, inheritable=False)
        native.close_range(RESULT_FD + 1)
        os.setsid()
        lib.lowsuper_set_pdeathsig(SIGKILL)
        # Race: the master was killed before that.
        if os.getppid() != master:
            return 1
        text, status = do(deed), 0
    except LowsuperError as error:
        text, status = str(error), 1
    except Exception as error:  # setsid, or a bug: there is nobody else who could tell
        text, status = f"{type(error).__name__}: {error}", 1
    if text:
        os.write(RESULT_FD, text.encode("utf-8", "surrogateescape")[:RESULT_BYTES])
    return status


def do(deed: FileDeed) -> str:
    """Do a deed; return what is strange about it, or "".

    Raises:
        LowsuperError: it could not be done.
    """
    match deed:
        case Mount():
            _mount(deed)
        case Unmount():
            _unmount(deed)
        case Write(path=path, text=text, append=append):
            _write(path, text, os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC))
        case WriteFifo(path=path, text=text):
            return _write_fifo(path, text)
        case Unlink() | MakeDirectory() | ChangeMode() | ChangeOwner():
            call = _CALLS[type(deed)]
            try:
                _change(deed)
            except OSError as error:
                raise KernelError(call, error.errno or 0, deed.path) from None
        case _:
            assert_never(deed)
    return ""


_CALLS = {Unlink: "unlink", MakeDirectory: "mkdir", ChangeMode: "chmod", ChangeOwner: "chown"}


def _change(deed: Unlink | MakeDirectory | ChangeMode | ChangeOwner) -> None:
    match deed:
        case Unlink(path=path):
            os.unlink(path)
        case MakeDirectory(path=path):
            os.mkdir(path)
        case ChangeMode(path=path, mode=mode, add=add):
            os.chmod(path, S_IMODE(os.stat(path).st_mode) | mode if add else mode)
        case ChangeOwner(path=path, user=user, group=group):
            os.chown(path, find_user_number(user), find_group_number(group))
        case _:
            assert_never(deed)


def _write(path: str, text: str, flags: int) -> None:
    """Write a text, through links and into FIFOs and devices as in uWSGI."""
    data = text.encode("utf-8", "surrogateescape")
    call = "open"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC | flags, 0o666)
        call = "write"
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise KernelError(call, error.errno or 0, path) from None


def _write_fifo(path: str, text: str) -> str:
    try:
        _write(path, text, os.O_NONBLOCK)
    except KernelError as error:
        if error.call != "open" or error.errno not in (ENXIO, ENODEV):
            raise
        return f"nobody reads {path}; nothing was written"
    return ""


def _mount(deed: Mount) -> None:
    """Mount something; a bind mount gets its flags too, which mount(2) does not do in one call."""
    source, target = os.fsencode(deed.source), os.fsencode(deed.target)
    flags = deed.flags

    def mount(flags: int, fstype: str = "", data: str = "") -> None:
        _succeed(
            lib.lowsuper_mount(source, target, os.fsencode(fstype), flags, os.fsencode(data)),
            "mount",
            deed.target,
        )

    if not flags & MS_BIND or flags & MS_REMOUNT:
        mount(flags, deed.fstype, deed.data)
        return
    mount(flags & (MS_BIND | MS_REC))
    try:
        if flags & ATTRIBUTES:
            recursive = AT_RECURSIVE if flags & MS_REC else 0
            result = lib.lowsuper_mount_setattr(AT_FDCWD, target, recursive, flags & ATTRIBUTES, 0)
            _succeed(result, "mount_setattr", deed.target)
        if flags & MS_PROPAGATION:
            mount(flags & (MS_PROPAGATION | MS_REC))
    except KernelError:
        # Rather nothing than something that can be written to.
        lib.lowsuper_umount(target, MNT_DETACH)
        raise


def _unmount(deed: Unmount) -> None:
    if deed.recursive:
        below = os.path.realpath(deed.target).rstrip("/") + "/"
        for path in reversed(list(_mount_points())):
            if path.startswith(below) and path != "/":
                _succeed(lib.lowsuper_umount(os.fsencode(path), deed.flags), "umount", path)
    _succeed(lib.lowsuper_umount(os.fsencode(deed.target), deed.flags), "umount", deed.target)


def _mount_points() -> Iterator[str]:
    r"""Yield every mount point of this namespace, the first mounted first.

    See proc_pid_mountinfo(5): the fifth field, with blanks and the like as \040.
    """
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            text = file.read()
    except OSError as error:
        raise KernelError("open", error.errno or 0, "/proc/self/mountinfo") from None
    for line in text.splitlines():
        parts = line.split(b" ", 5)[4].split(b"\\")
        plain = parts[0] + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in parts[1:])
        yield os.fsdecode(plain)


def _succeed(result: int, call: str, subject: str) -> None:
    if result < 0:
        raise KernelError(call, -result, subject)
