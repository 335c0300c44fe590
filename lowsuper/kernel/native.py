"""System calls that Python 3.11 has none for, or only behind imports that cost too much.

Thin and typed: no policy, no state. Each raises KernelError with the name of the call.
Rule: besides `kernel.spawn` and `kernel.process` nothing else imports the extension.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EINVAL, ENOTTY
from fcntl import F_DUPFD_CLOEXEC, fcntl

from lowsuper.errors import KernelError, UnsupportedError
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

try:
    from lowsuper import _native
except ImportError as error:
    raise UnsupportedError(
        f"lowsuper's compiled part is missing ({error}); run `pip install .` (or `pip install -e .`"
        " in a source tree) with the Python that is to run it, or vagrant/provision.sh"
    ) from error

ffi, lib = _native.ffi, _native.lib

HIGH_FD = lib.LOWSUPER_HIGH_FD
"""Descriptors from here on are the master's alone: children do not get a copy. See csrc/spawn.c."""
SIGNALS_AT_ONCE = 16
_signals = ffi.new("struct lowsuper_signal[]", SIGNALS_AT_ONCE)
_exit_info = ffi.new("struct lowsuper_exit_info *")


class Signal(Record):
    """One signal that a signalfd has told."""

    signo: int
    pid: int  # of the sender; 0: the kernel, or from outside of our pid namespace
    uid: int  # of the sender
    code: int  # si_code, see sigaction(2)


class ExitInfo(Record):
    """What the kernel still knows about a process: see `exit_info`."""

    status: int | None  # raw wait status; None: not reaped yet, or Linux before 6.15
    cgroup_id: int  # inode number of its cgroup v2 directory; 0: unknown


def _succeed(result: int, call: str, subject: str = "") -> int:
    """Return the result, or raise for a negative errno."""
    if result < 0:
        raise KernelError(call, -result, subject)
    return result


def close(fd: int) -> None:
    """Close a descriptor."""
    os.close(fd)


def move_high(fd: int) -> int:
    """Return the descriptor under a number out of the way of those that children get.

    A child copies the master's low descriptors only: see `HIGH_FD`.
    """
    try:
        high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD)
    except OSError:
        return fd  # so few are allowed that there is no high one; it works where it is, too
    os.close(fd)
    return high


def signalfd_create(signals: Iterable[int]) -> int:
    """Block `signals` in this thread for good; return a descriptor that tells them.

    The caller closes it; it does not block. See signalfd(2).
    """
    mask = 0
    for signo in signals:
        mask |= 1 << (signo - 1)
    return _succeed(lib.lowsuper_signalfd(mask), "signalfd")


def signalfd_read_infos(fd: int) -> list[Signal]:
    """Return the signals that wait, and who sent them; there may be none."""
    found: list[Signal] = []
    while True:
        count = _succeed(lib.lowsuper_signalfd_read(fd, _signals, SIGNALS_AT_ONCE), "read")
        for index in range(count):
            signal = _signals[index]
            found.append(Signal(signal.signo, signal.pid, signal.uid, signal.code))
        if count < SIGNALS_AT_ONCE:
            return found


def signalfd_read(fd: int) -> list[int]:
    """Return the numbers of the signals that wait; there may be none."""
    return [signal.signo for signal in signalfd_read_infos(fd)]


def timerfd_create() -> int:
    """Return a disarmed timer of CLOCK_MONOTONIC, which the caller closes.

    See timerfd_create(2).
    """
    return _succeed(lib.lowsuper_timerfd(), "timerfd_create")


def timerfd_settime(fd: int, at: int) -> None:
    """Fire once at the absolute time `at` (ns), at once if it is past; 0 disarms."""
    _succeed(lib.lowsuper_timerfd_settime(fd, at), "timerfd_settime")


def timerfd_read(fd: int) -> int:
    """Return how often the timer has fired since the last read; 0 if it has not."""
    try:
        return int.from_bytes(os.read(fd, 8), "little" if _LITTLE else "big")
    except BlockingIOError:
        return 0


_LITTLE = memoryview(b"\1\0").cast("H")[0] == 1


def inotify_create() -> int:
    """Return an inotify descriptor that does not block. The caller closes it. See inotify(7)."""
    return _succeed(lib.lowsuper_inotify(), "inotify_init1")


def inotify_add(fd: int, path: str, mask: int) -> int:
    """Watch `path`; return the number of the watch."""
    return _succeed(
        lib.lowsuper_inotify_add(fd, os.fsencode(path), mask), "inotify_add_watch", path
    )


def inotify_remove(fd: int, watch: int) -> None:
    """Remove a watch; one that the kernel removed with its file is no error."""
    result = lib.lowsuper_inotify_remove(fd, watch)
    # Race: the file was removed, and its watch with it, before the event for that was read.
    if result != -EINVAL:
        _succeed(result, "inotify_rm_watch")


def openat2(dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dir_fd`; return the descriptor, which the caller closes.

    Args:
        dir_fd: a directory, or -100 (AT_FDCWD).
        path: relative to it.
        flags: of open(2); O_CLOEXEC is the caller's to give.
        mode: of a file that is made.
        resolve: RESOLVE_* flags.

    See openat2(2); Linux 5.6.
    """
    encoded = os.fsencode(path)
    return _succeed(lib.lowsuper_openat2(dir_fd, encoded, flags, mode, resolve), "openat2", path)


def set_child_subreaper(on: bool = True) -> None:
    """Become the parent of orphans among our descendants. See PR_SET_CHILD_SUBREAPER(2const)."""
    _succeed(lib.lowsuper_set_child_subreaper(on), "prctl", "PR_SET_CHILD_SUBREAPER")


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close the descriptors from `first` to `last`.

    See close_range(2); Linux 5.9.
    """
    _succeed(lib.lowsuper_close_range(first, last, flags), "close_range")


def reap(pidfd: int) -> int | None:
    """Return the raw wait status of a child that has ended, and let go of it.

    None: it has not ended. Never waits. See waitid(2); P_PIDFD: Linux 5.4.

    Raises:
        KernelError: ECHILD, it is not our child, or was reaped before.
    """
    status = lib.lowsuper_reap(pidfd, False)
    return None if status == -EAGAIN else _succeed(status, "waitid")


def peek_status(pidfd: int) -> int | None:
    """Return the raw wait status of a child that has ended, and leave it a zombie.

    None: it has not ended. Takes less time than `reap`, which also takes the process apart.

    Raises:
        KernelError: as `reap`.
    """
    status = lib.lowsuper_reap(pidfd, True)
    return None if status == -EAGAIN else _succeed(status, "waitid")


def peek_child() -> int:
    """Return the pid of some child that has ended and was not reaped, or 0. See waitid(2)."""
    return _succeed(lib.lowsuper_peek_child(), "waitid")


def pidfd_send_signal(pidfd: int, signo: int, *, group: bool = False) -> None:
    """Send a signal to a process, or to the process group of its number.

    See pidfd_send_signal(2); Linux 5.1, `group` since 6.9 (EINVAL before).
    """
    _succeed(lib.lowsuper_send_signal(pidfd, signo, group), "pidfd_send_signal")


def pidfd_get_info(pidfd: int) -> ExitInfo | None:
    """Return how a process ended and where it lived, whoever its parent is.

    None: this kernel does not tell. See PIDFD_GET_INFO in linux/pidfd.h; Linux 6.13, the status
    since 6.15 and only once the parent has reaped (EPOLLHUP on the pidfd).

    Raises:
        KernelError: ESRCH, it has ended and the kernel has forgotten how.
    """
    result = lib.lowsuper_exit_info(pidfd, _exit_info)
    if result in (-ENOTTY, -EINVAL):
        return None
    _succeed(result, "ioctl", "PIDFD_GET_INFO")
    status = _exit_info.status if _exit_info.has_status else None
    return ExitInfo(status, _exit_info.cgroup_id)


def pid_of(pidfd: int) -> int:
    """Return the pid, in our /proc, of the process of a pidfd; -1: reaped, 0: not below us.

    See pidfd_open(2), proc_pid_fdinfo(5); Linux 5.3.
    """
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 1024)
    finally:
        os.close(fd)
    _, found, rest = text.partition(b"\nPid:")
    if not found:
        raise KernelError("fdinfo", EINVAL, str(pidfd))
    return int(rest.partition(b"\n")[0])
