"""Processes by pidfd: reap, signal, and ask how one ended.

A process is never a bare number here: a pidfd is that process and no other, even after its pid has
been given to the next one.
"""

from __future__ import annotations

import os
from errno import ECHILD, EINVAL, ENOSYS, EPERM, ESRCH

from lowsuper.errors import KernelError
from lowsuper.kernel import native
from lowsuper.kernel.native import ExitInfo, peek_child, peek_status, reap

__all__ = [
    "ExitInfo",
    "exit_info",
    "exit_status",
    "has_ended",
    "is_running",
    "open_pidfd",
    "peek_child",
    "peek_status",
    "reap",
    "send_signal",
    "signal_stranger",
    "tells_status",
]

_NEEDED = "lowsuper needs Linux 5.11, and a container that lets it pass; see lowsuper doctor"


def is_running(pid: int) -> bool:
    """Return whether a process has this pid now and is no zombie; only to inform, never to act on.

    See proc_pid_stat(5).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_pidfd(pid: int) -> int:
    """Return a pidfd, which the caller closes. See pidfd_open(2); Linux 5.3.

    Race: the pid may belong to another process by now, unless it is an unreaped child's; so verify
    afterwards what was opened.

    Raises:
        KernelError: ESRCH, there is no such process.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        advice = _NEEDED if error.errno in (ENOSYS, EPERM) else ""
        raise KernelError("pidfd_open", error.errno or 0, str(pid), advice) from None


def send_signal(pidfd: int, signal: int, *, group: bool = False) -> bool:
    """Send a signal; return whether there was still somebody to get it.

    Args:
        pidfd: the process; with `group` it must be our own child that we have not reaped.
        signal: its number; 0 only asks.
        group: send it to the process group that it leads. Before it has made that group (its
            helper has not come to setsid yet) it gets the signal alone.

    Raises:
        KernelError: EPERM, EINVAL: no such signal.
    """
    if group:
        try:
            _signal_group(pidfd, signal)
        except OSError as error:
            if error.errno != ESRCH:
                raise
        else:
            return True
    try:
        native.pidfd_send_signal(pidfd, signal)
    except KernelError as error:
        if error.errno != ESRCH:
            raise
        return False
    return True


def _signal_group(pidfd: int, signal: int) -> None:
    try:
        native.pidfd_send_signal(pidfd, signal, group=True)
    except KernelError as error:
        if error.errno != EINVAL:
            raise
        # Linux before 6.9. The pid stays its own, and its group's, until we reap it.
        pid = native.pid_of(pidfd)
        if pid > 1:
            os.killpg(pid, signal)


def signal_stranger(pidfd: int, signal: int, *, group: bool = True) -> bool:
    """Send a signal to a process that need not be our child and, with `group`, to that it leads.

    With PIDFD_SIGNAL_PROCESS_GROUP (Linux 6.9) the kernel takes the group from the very object
    that the pidfd stands for (its struct pid), never from a number that another process may have
    by now; it is safe though the process is reaped, and reaches what is left of its group then.
    Before that the process gets it alone: killpg(2) of a number that is not our child's is a guess.
    A process that leads no group gets it alone, too.

    Returns:
        Whether there was still somebody to get it.

    Raises:
        KernelError: EPERM, EINVAL: no such signal.
    """
    for whole in (True, False) if group else (False,):
        try:
            native.pidfd_send_signal(pidfd, signal, group=whole)
        except KernelError as error:
            if error.errno not in (ESRCH, EINVAL) or (error.errno == EINVAL and not whole):
                raise
        else:
            return True
    return False


def has_ended(pidfd: int) -> bool:
    """Return whether a process has ended, reaped or not. See pidfd_open(2)."""
    import select  # the loop has imported it already

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def exit_status(pidfd: int) -> int | None:
    """Return the raw wait status of a process that has ended; None: it cannot be told (yet).

    It can be told of a child of ours that is a zombie, which it stays; and, since Linux 6.15, of
    any process once its parent has reaped it. A pidfd is readable (EPOLLIN) from the death on and
    hangs up (EPOLLHUP) when that has happened: so act on the first, and for the status watch for
    `loop.HANGUP` alone, as the other would be told without end; bound that wait, since a parent
    need not reap, and older kernels never tell.

    Raises:
        KernelError: `pidfd` is none.
    """
    try:
        return peek_status(pidfd)
    except KernelError as error:
        if error.errno != ECHILD:
            raise
    info = exit_info(pidfd)
    return None if info is None else info.status


def tells_status(pidfd: int) -> bool:
    """Return whether `exit_status` of a process that has ended may be told later (Linux 6.13)."""
    return exit_info(pidfd) is not None


def exit_info(pidfd: int) -> ExitInfo | None:
    """Return how a process ended and where it lived; None: the kernel does not tell (any more).

    See `native.pidfd_get_info`.
    """
    try:
        return native.pidfd_get_info(pidfd)
    except KernelError as error:
        if error.errno != ESRCH:
            raise
        return None
