"""System calls that neither Python 3.11 nor the extension has: for the agent's process alone.

By `ctypes`, which takes longer to import than a master may.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from lowsuper.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.units import Ns

_libc = ctypes.CDLL(None, use_errno=True)

_CLOCK_BOOTTIME, _TFD_TIMER_ABSTIME = 7, 1
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_SECOND = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Program(ctypes.Structure):
    """A filter: struct sock_fprog, and the instructions that it points to."""

    _fields_ = (("count", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def load_unwinder() -> None:
    """Load what the C library ends a thread with, and would else load when the first one is ended.

    It kills the process if it cannot. See pthread_exit(3).
    """
    with contextlib.suppress(OSError):  # there is none with another C library than GNU's
        ctypes.CDLL("libgcc_s.so.1")


def make_program(code: bytes) -> Program:
    """Return a filter of classic BPF.

    Args:
        code: instructions of 8 bytes, as struct sock_filter.
    """
    return Program(len(code) // 8, code)


def timerfd_create() -> int:
    """Return a disarmed timer of CLOCK_BOOTTIME, which counts a suspend; the caller closes it.

    See timerfd_create(2).
    """
    return _succeed(
        _libc.timerfd_create(_CLOCK_BOOTTIME, os.O_CLOEXEC | os.O_NONBLOCK), "timerfd_create"
    )


def timerfd_settime(fd: int, at: Ns) -> None:
    """Fire once at the absolute time `at`, at once if it is past."""
    spec = _Itimerspec(_Timespec(0, 0), _Timespec(*divmod(max(1, at), _SECOND)))
    _succeed(
        _libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None), "timerfd_settime"
    )


def filter_calls(program: Program) -> None:
    """Have a filter decide on each system call of this thread from now on.

    See seccomp(2); no_new_privs has to be set.
    """
    result = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))
    _succeed(result, "prctl", "PR_SET_SECCOMP")


def _succeed(result: int, call: str, subject: str = "") -> int:
    if result < 0:
        raise KernelError(call, ctypes.get_errno(), subject)
    return result
