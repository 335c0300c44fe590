"""How a process that hears the network gives up all that it does not need, for good.

What is left: a uid of its own without any capability, the descriptors that it names, memory up to a
limit, and the system calls on a short list. All others fail with EPERM, which a bug can be told
from; none of them kills.

A system that cannot do a part of this, or a caller who is not root, is no reason to do without a
legion: what could not be done is returned, to be told.
"""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from errno import EPERM
from signal import SIGKILL

import prctl

from lowsuper.errors import KernelError
from lowsuper.kernel import caps, native
from lowsuper.legion import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MEMORY = 64 << 20
MEMORY_OF_THREADS = 1 << 30  # of address space: each thread has a stack and an arena of its own
MOST_THREADS = 64
MOST_FDS = 256

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""AUDIT_ARCH_*, and which of the numbers below."""

_NONE = -1  # this machine has no such call
_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "writev": (20, 66),
    "close": (3, 57),
    "lseek": (8, 62),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "fcntl": (72, 25),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "bind": (49, 200),
    "setsockopt": (54, 208),
    "epoll_wait": (232, _NONE),
    "epoll_pwait": (281, 22),
    "epoll_ctl": (233, 21),
    "timerfd_settime": (286, 86),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "clock_gettime": (228, 113),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""What an agent does, by its number on x86-64 and on aarch64."""

_CALLS_OF_CLIENTS = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "sendmmsg": (307, 269),
    "recvmmsg": (299, 243),
    "poll": (7, _NONE),
    "ppoll": (271, 73),
    "select": (23, _NONE),
    "pselect6": (270, 72),
    "pipe2": (293, 59),
    "eventfd2": (290, 19),
    "ioctl": (16, 29),
    "stat": (4, _NONE),
    "statx": (332, 291),
    "access": (21, _NONE),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, _NONE),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "sched_getaffinity": (204, 123),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
}
"""What threads that ask servers by name over TLS do besides."""

_CLONE_THREAD, _PROT_EXEC, _ACCESS_MODE = 0x10000, 4, 3
_BOUNDED = {"mmap": (9, 222), "mprotect": (10, 226)}
_OPENAT, _CLONE, _CLONE3 = (257, 56), (56, 220), (435, 435)

# Classic BPF over struct seccomp_data: see seccomp(2).
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_ENOSYS = 38

Rule = tuple[int, int, int, int]


def make_filter(machine: str, *, threads: bool) -> bytes | None:
    """Return the program that knows which system calls are needed; None: not for this machine.

    Args:
        machine: as uname(2) says.
        threads: there are threads, and they make connections.
    """
    if machine not in _MACHINES:
        return None
    arch, column = _MACHINES[machine]
    fail: Rule = (_RETURN, 0, 0, _FAIL | EPERM)
    rules: list[Rule] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), fail, (_LOAD, 0, 0, _NR)]
    calls = [*_CALLS.values(), *(_CALLS_OF_CLIENTS.values() if threads else ())]
    for numbers in calls:
        if numbers[column] != _NONE:
            rules += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    # What is memory of code, and what is not, is settled.
    for numbers in _BOUNDED.values():
        rules += _when(numbers[column], 2, _PROT_EXEC, 0)
    if threads:
        rules += _when(_OPENAT[column], 2, _ACCESS_MODE, os.O_RDONLY)
        rules += _when(_CLONE[column], 0, _CLONE_THREAD, _CLONE_THREAD)
        # Its flags are out of reach; the C library falls back on the other one.
        rules += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _FAIL | _ENOSYS)]
    rules.append(fail)
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


def _when(number: int, argument: int, mask: int, wanted: int) -> list[Rule]:
    """Return what allows a call only if the bits of an argument are those that are wanted."""
    return [
        (_EQUAL, 0, 5, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),  # both machines are little endian
        (_AND, 0, 0, mask),
        (_EQUAL, 0, 1, wanted),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | EPERM),
    ]


def keep_fds(fds: Iterable[int]) -> None:
    """Close all other descriptors."""
    first = 0
    for fd in sorted(set(fds)):
        if first < fd:
            native.close_range(first, fd - 1)
        first = fd + 1
    native.close_range(first)


def _find_last_fd() -> int:
    last = 2
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that has listed them
            os.fstat(int(name))
            last = max(last, int(name))
    return last


def confine(uid: int, gid: int, *, threads: bool) -> list[str]:
    """Give up all that is not needed; return what could not be given up, one phrase each.

    Descriptors stay: see `keep_fds`, which comes first.

    Args:
        uid: whom to become, if we are root.
        gid: likewise; there are no other groups.
        threads: threads will be started, which make connections.

    Raises:
        KernelError: what must not fail has failed.
    """
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would keep what it has"
    if threads:
        libc.load_unwinder()
    problems = _drop_privileges(uid, gid)
    prctl.set_dumpable(0)
    prctl.set_no_new_privs(1)
    # Lost at a change of the uid, and so not before.
    prctl.set_pdeathsig(SIGKILL)
    _set_limits(threads=threads, alone=not problems)
    problems += _filter(threads=threads)
    return problems


def _drop_privileges(uid: int, gid: int) -> list[str]:
    if os.geteuid() != 0:
        _drop_capabilities()
        return [f"it is not root, and stays the user {os.geteuid()}"]
    problems = []
    try:
        caps.prepare(())
    except KernelError as error:
        # A root of a container, which lacks capabilities itself.
        problems.append(f"its bounding set stays ({error})")
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise KernelError("setresuid", error.errno or 0, f"{uid}:{gid}") from None
    found = (*os.getresuid(), *os.getresgid(), *os.getgroups())
    if found != (uid, uid, uid, gid, gid, gid):
        raise KernelError("setresuid", EPERM, f"{uid}:{gid}", "it had no effect")
    if problems:
        _drop_capabilities()
    else:
        caps.finish(())
    return problems


def _drop_capabilities() -> None:
    known = caps.list_known()
    kinds = (prctl.CAP_INHERITABLE, prctl.CAP_EFFECTIVE, prctl.CAP_PERMITTED)
    try:
        prctl.set_caps(*((known, kind, False) for kind in kinds))
    except OSError as error:
        raise KernelError("capset", error.errno or 0) from None


def _set_limits(*, threads: bool, alone: bool) -> None:
    """Set limits of what it may use.

    Args:
        threads: it has threads.
        alone: nobody else is this user.
    """
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[0])
    memory = pages * resource.getpagesize() + (MEMORY_OF_THREADS if threads else MEMORY)
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_NOFILE: _find_last_fd() + 1 + (MOST_FDS if threads else 0),
    }
    if alone:
        limits[resource.RLIMIT_NPROC] = MOST_THREADS if threads else 0
    for which, value in limits.items():
        _, hard = resource.getrlimit(which)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bound, bound))


def _filter(*, threads: bool) -> list[str]:
    machine = os.uname().machine
    code = make_filter(machine, threads=threads)
    if code is None:
        return [f"there is no list of system calls for {machine}"]
    try:
        libc.filter_calls(libc.make_program(code))
    except KernelError as error:
        return [f"all system calls stay ({error})"]
    return []
