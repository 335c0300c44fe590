"""Into a jail that runs: find it, join its namespaces, and become a command there.

Three processes. The one that was called stays where it is and looks after the terminal
(`kernel.foreground`). The *usher*, its child, joins the namespaces and the root, and forks the
third, which becomes the command. The usher stays to reap it: the first process of a pid namespace
cannot end while somebody in it is not reaped, and the process that was called may be stopped for
as long as its user likes. The usher itself is outside of the pid namespace, so the jail does not
see it.

What comes into the jail's sight, the third process before its exec, has nothing of the host: its
root and namespaces are the jail's, only 0, 1 and 2 are open (which are the caller's choice), its
memory is not dumpable (no /proc/PID/mem, exe or fd for processes that lack CAP_SYS_PTRACE), and it
imports nothing. The command gets no capability that the process it joined could not have either:
a program of the jail that root runs by `enter` is not to be a way out of it.

See setns(2), pid_namespaces(7), user_namespaces(7). setns(2) takes a pidfd since Linux 5.8.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes long to import
import os
from errno import EACCES, EINVAL, ENOENT, ENOTDIR, EPERM, ESRCH

from lowsuper.errors import KernelError, LowsuperError
from lowsuper.kernel import accounts, mount, process
from lowsuper.kernel.spawn import wait_readable
from lowsuper.plan import DEFAULT_PATH
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Never

    from lowsuper.kernel.accounts import User

KINDS = (
    ("user", 0x10000000),
    ("cgroup", 0x02000000),
    ("ipc", mount.NEWIPC),
    ("uts", mount.NEWUTS),
    ("net", mount.NEWNET),
    ("pid", mount.NEWPID),
    ("mnt", mount.NEWNS),
    ("time", 0x00000080),
)
"""Names in /proc/PID/ns, and the flags of setns(2)."""
EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 125, 126, 127
NO_LOGIN = ("nologin", "false", "true", "sync")  # "shells" of users who may not log in
DEFAULT_SHELL = "/bin/sh"

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
_NEEDS_ROOT = "only root may enter a jail: it takes CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE"
_JOIN_ADVICE = {
    EPERM: _NEEDS_ROOT,
    ESRCH: "it has just ended",
    EINVAL: "joining by pidfd needs Linux 5.8",
}


class NoJailError(LowsuperError):
    """There is nothing to enter; the text says why."""


class Inside(Record):
    """A process to join, and what of it is not ours."""

    pid: int  # in our /proc
    pidfd: int  # of the same
    root_fd: int  # its root directory
    kinds: int  # CLONE_NEW*: the namespaces that are not ours
    lost: int  # bit n: it can never have capability n, and we could
    no_new_privs: bool

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.pidfd)
        os.close(self.root_fd)


class Order(Record):
    """What to become, all of it in the words of the jail."""

    argv: tuple[str, ...]
    programs: tuple[str, ...]  # paths to try in this order
    environment: dict[str, str]
    user: User
    groups: tuple[int, ...]


class _Look(Record):
    """What tells a process in a jail from others, and a jail's first process from its daemons."""

    inside: Inside
    is_elsewhere: bool  # in other namespaces, or with another root, than ours
    is_like_us: bool  # runs the program that we do, as our user
    exe: tuple[int, int]  # device and inode
    start_stack: int  # where exec(2) has put its stack: the same in a fork, random in others
    name: str


# Finding.


def find_jail(pid: int, *, is_master: bool = False) -> Inside:
    """Return the process to join for a pid; the caller closes it.

    Args:
        pid: of the process outside, which made the jail, or of any process in it.
        is_master: it was found in a file, which may be a lie: it must be a lowsuper of ours.

    Raises:
        NoJailError: there is no such process, or no jail.
        KernelError: it cannot be looked at.
    """
    look = _look(pid)
    if look is None:
        raise NoJailError(f"there is no process {pid}")
    if is_master and not look.is_like_us:
        look.inside.close()
        raise NoJailError(f"process {pid} ({look.name}) is not a lowsuper of ours")
    if look.is_elsewhere:
        return look.inside
    found: list[_Look] = []
    try:
        for child in _read_children(pid):
            below = _look(child)
            if below is None:
                continue
            if below.is_elsewhere:
                found.append(below)
            else:
                below.inside.close()
        if process.has_ended(look.inside.pidfd):
            raise NoJailError(f"process {pid} has just ended")
        first = _choose(look, found)
        found.remove(first)
    finally:
        for each in (look, *found):
            each.inside.close()
    return first.inside


def _choose(outer: _Look, found: list[_Look]) -> _Look:
    """Return which child of the process outside is the first process of its jail.

    It is a fork of it, or, if the process outside has executed itself anew since, at least runs
    the same program. Daemons with namespaces of their own do neither.
    """
    same = [each for each in found if each.exe == outer.exe]
    forks = [each for each in same if each.start_stack == outer.start_stack]
    chosen = forks or same
    if len(chosen) == 1:
        return chosen[0]
    pid = outer.inside.pid
    text = f"process {pid} ({outer.name}) is not in a jail and has none"
    if chosen:
        text = f"process {pid} ({outer.name}) has several jails"
    if found:
        names = ", ".join(f"{each.inside.pid} ({each.name})" for each in found)
        text += f"; with namespaces of their own run {names}, and can be entered by pid"
    raise NoJailError(text)


def _look(pid: int) -> _Look | None:
    """Return what a process is, pinned by a pidfd; None: there is none that lives."""
    try:
        pidfd = process.open_pidfd(pid)
    except KernelError as error:
        # A thread's number is EINVAL, and ENOENT since Linux 6.15.
        if error.errno not in (ESRCH, EINVAL, ENOENT):
            raise
        return None
    except OverflowError:
        return None  # larger than any pid
    try:
        look = _read_look(pid, pidfd)
    except BaseException:
        os.close(pidfd)
        raise
    if look is None:
        os.close(pidfd)
        return None
    # Race: the pidfd's process may have ended, and the number be another's, before it was read.
    if process.has_ended(pidfd):
        look.inside.close()
        return None
    return look


def _read_look(pid: int, pidfd: int) -> _Look | None:
    place = f"/proc/{pid}"
    try:
        fd = os.open(place, _DIRECTORY)
    except OSError as error:
        if error.errno in (ENOENT, ESRCH):
            return None
        raise KernelError("open", error.errno or 0, place) from None
    root_fd = -1
    try:
        kinds = _compare(fd)
        root_fd = os.open("root", _DIRECTORY, dir_fd=fd)
        exe = os.stat("exe", dir_fd=fd)
        head, _, stat = _read(fd, "stat").rpartition(b")")
        status = _read(fd, "status")
        no_new_privs = _field(status, b"NoNewPrivs") == b"1"
    except OSError as error:
        if root_fd >= 0:
            os.close(root_fd)
        if error.errno in (ENOENT, ESRCH):
            return None  # it is a zombie, or gone
        advice = _NEEDS_ROOT if error.errno in (EACCES, EPERM) else ""
        raise KernelError("open", error.errno or 0, place, advice) from None
    finally:
        os.close(fd)
    inside = Inside(pid, pidfd, root_fd, kinds, _find_lost(status), no_new_privs)
    is_elsewhere = bool(kinds) or not os.path.samestat(os.fstat(root_fd), os.stat("/"))
    name = head.partition(b"(")[2].decode("utf-8", "backslashreplace")
    is_like_us = os.path.samestat(exe, os.stat("/proc/self/exe")) and (
        _field(status, b"Uid").split()[0] == b"%d" % os.getuid()
    )
    exe_id = exe.st_dev, exe.st_ino
    return _Look(inside, is_elsewhere, is_like_us, exe_id, int(stat.split()[25]), name)


def _find_lost(status: bytes) -> int:
    """Return the capabilities of our bounding set that one with this status does not have."""
    with open("/proc/self/status", "rb") as file:
        ours = int(_field(file.read(), b"CapBnd"), 16)
    return ours & ~int(_field(status, b"CapBnd"), 16)


def _compare(directory_fd: int) -> int:
    """Return the flags of the namespaces of a process that are not ours."""
    kinds = 0
    for name, flag in KINDS:
        try:
            ours = os.stat(f"/proc/self/ns/{name}")
        except FileNotFoundError:
            continue  # this kernel has none such
        if not os.path.samestat(os.stat(f"ns/{name}", dir_fd=directory_fd), ours):
            kinds |= flag
    return kinds


def _read(directory_fd: int, name: str) -> bytes:
    fd = os.open(name, _READ, dir_fd=directory_fd)
    try:
        pieces = []
        while piece := os.read(fd, 8192):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces)


def _field(status: bytes, name: bytes) -> bytes:
    """Return a value of /proc/PID/status; b"0" where this kernel has none such."""
    _, found, rest = status.partition(b"\n" + name + b":")
    return rest.partition(b"\n")[0].strip() if found else b"0"


def _read_children(pid: int) -> list[int]:
    """Return the children of a process's first thread, which is all of a master's."""
    try:
        fd = os.open(f"/proc/{pid}/task/{pid}", _DIRECTORY)
    except OSError:
        return []  # it is gone, which the caller finds out
    try:
        return [int(word) for word in _read(fd, "children").split()]
    except OSError:
        return []
    finally:
        os.close(fd)


# What to become.


def prepare(inside: Inside, command: Sequence[str], user: str, term: str) -> Order:
    """Return what to become, by the jail's own users.

    Args:
        inside: where.
        command: with its arguments; none: the user's shell.
        user: name or number; "": root.
        term: the type of the terminal; "": unknown.

    Raises:
        NoJailError: the jail does not know the user.
    """
    accounts.use_files(accounts.read_files(f"/proc/self/fd/{inside.root_fd}"))
    try:
        found = _find_user(user)
        groups = accounts.list_groups_of(found.pw_name, found.pw_gid)
    finally:
        accounts.use_files(None)
    shell = found.pw_shell or DEFAULT_SHELL
    if shell.rpartition("/")[2] in NO_LOGIN:
        shell = DEFAULT_SHELL
    environment = {
        "PATH": DEFAULT_PATH,
        "HOME": found.pw_dir or "/",
        "USER": found.pw_name,
        "LOGNAME": found.pw_name,
        "SHELL": shell,
    }
    if term:
        environment["TERM"] = term
    if command:
        argv = tuple(command)
        programs = _list_programs(argv[0])
    else:
        argv = (shell.rpartition("/")[2],)
        programs = tuple(dict.fromkeys((shell, DEFAULT_SHELL)))
    return Order(argv, programs, environment, found, tuple(groups))


def _find_user(user: str) -> User:
    if user.isascii() and user.isdigit():
        found = accounts.find_user_by_number(int(user))
    else:
        found = accounts.find_user(user or "root")
    if found is not None:
        return found
    if user in ("", "root", "0"):
        return accounts.User("root", 0, 0, "/")  # of a jail without a passwd file
    raise NoJailError(f"there is no user {user} in the jail")


def _list_programs(name: str) -> tuple[str, ...]:
    if "/" in name:
        return (name,)
    return tuple(f"{directory}/{name}" for directory in DEFAULT_PATH.split(":"))


# The usher.


def usher(
    inside: Inside, order: Order, channel_fd: int, *, mask: set[int], in_front: bool
) -> Never:
    """Be the usher, a fresh fork: join, fork the command, and look after it until it has ended.

    Args:
        inside: where.
        order: what to become.
        channel_fd: our end of what `kernel.foreground` describes.
        mask: the signals that are blocked in the command.
        in_front: put the command into the foreground of the terminal that is 0.
    """
    try:
        _usher(inside, order, channel_fd, mask, in_front)
    except (LowsuperError, OSError) as error:
        _complain(str(error))
    finally:
        os._exit(EXIT_FAILED)


def _usher(inside: Inside, order: Order, channel_fd: int, mask: set[int], in_front: bool) -> None:
    import prctl

    from lowsuper.kernel.foreground import attend
    from lowsuper.kernel.jail import close_all_but, seal

    # Whatever comes, it must live to reap: only SIGKILL and SIGSTOP are left.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    close_all_but((0, 1, 2, channel_fd, inside.pidfd, inside.root_fd))
    prctl.set_dumpable(False)
    own_pidfd = os.pidfd_open(os.getpid())
    seal()
    _join(inside)
    inside.close()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(channel_fd)
            _become(inside, order, own_pidfd, mask, in_front)
        except (LowsuperError, OSError) as error:
            _complain(str(error))
        finally:
            os._exit(EXIT_FAILED)
    os.close(own_pidfd)
    # In a group of its own, out of reach of what the user's shell does to the job.
    os.setpgid(0, 0)
    attend(pid, channel_fd)


def _join(inside: Inside) -> None:
    """Join the namespaces, the one of processes for our next child; then the root."""
    if inside.kinds:
        try:
            mount.setns(inside.pidfd, inside.kinds)
        except KernelError as error:
            why = _JOIN_ADVICE.get(error.errno or 0, "")
            raise KernelError("setns", error.errno or 0, f"process {inside.pid}", why) from None
    try:
        os.fchdir(inside.root_fd)
        os.chroot(".")
    except OSError as error:
        advice = _NEEDS_ROOT if error.errno == EPERM else ""
        raise KernelError("chroot", error.errno or 0, "the root of the jail", advice) from None
    os.chdir("/")


def _become(inside: Inside, order: Order, parent_fd: int, mask: set[int], in_front: bool) -> None:
    """Be the third process: become the command."""
    os.setpgid(0, 0)
    if in_front:
        os.tcsetpgrp(0, os.getpid())
    _become_user(inside, order)
    mount.set_parent_death_signal(_signal.SIGKILL)
    # Race: the usher was killed before that.
    if wait_readable(parent_fd, 0):
        os._exit(EXIT_FAILED)
    os.close(parent_fd)
    try:
        os.chdir(order.environment["HOME"])
    except OSError:
        os.chdir("/")
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    _execute(order)


def _become_user(inside: Inside, order: Order) -> None:
    import prctl  # is loaded

    user = order.user
    try:
        if inside.lost:
            # What is inheritable would come through the exec of a program by root.
            prctl.cap_inheritable.limit()
        for number in range(64):
            if inside.lost >> number & 1:
                prctl.capbset_drop(number)
        os.setgroups(order.groups)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        if inside.no_new_privs:
            prctl.set_no_new_privs(True)
    except OSError as error:
        raise KernelError("setresuid", error.errno or 0, user.pw_name) from None


def _execute(order: Order) -> Never:
    """Execute the command; if that fails, say why, and end as env(1) does."""
    code, reason = EXIT_NOT_FOUND, os.strerror(ENOENT)
    for path in order.programs:
        try:
            os.execve(path, order.argv, order.environment)  # noqa: S606  # no shell is wanted
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR):
                code, reason = EXIT_NOT_EXECUTABLE, error.strerror or ""
            elif code == EXIT_NOT_FOUND and _is_there(path):
                reason = "it is there, but what is to run it (its #! line, its loader) is not"
    names = order.argv[0] if len(order.programs) > 2 else " or ".join(order.programs)
    _complain(f"{names} in the jail: {reason}")
    os._exit(code)


def _is_there(path: str) -> bool:
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def _complain(text: str) -> None:
    os.write(2, f"lowsuper: enter: {text}\n".encode("utf-8", "backslashreplace"))
