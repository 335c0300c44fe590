"""Processes as the kernel shows them: facts for `identity` to judge.

All facts of a process are read through one descriptor of its directory in /proc, between opening
its pidfd and asking the pidfd whether it still lives: so they are of that process and no other,
whatever its number is given to. What is read of a process is what that process wants to show
(its name and command line above all): nothing here believes it.

What remains: to stat the executable of a process asks the file system it lies on, which blocks
where that is a network file system that is dead. Nobody without privileges can bring that about
unless FUSE's user_allow_other is set. The command line comes from anonymous memory only (Linux
4.17), which unprivileged users cannot make wait (vm.unprivileged_userfaultfd is 0 since 5.11).
"""

from __future__ import annotations

import os
import time
from errno import EACCES, EINVAL, ENOENT, ENOTTY, EPERM, ESRCH
from select import POLLIN, poll
from stat import S_ISREG

from lowsuper.errors import KernelError
from lowsuper.identity import NO_SCRIPT, Process, ProcessId, Program
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import Command
    from lowsuper.units import Ns

MAX_CMDLINE = 4096
_STATUS_BYTES = 8192

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
_GONE = (ENOENT, ESRCH)
_PF_KTHREAD = 0x0020_0000
# _IOR(0xb7, 6 and 7, int) of linux/nsfs.h, as most machines number it; others say ENOTTY.
_NS_GET_PID_FROM_PIDNS = 0x8004_B706
_NS_GET_TGID_FROM_PIDNS = 0x8004_B707


# One process.


def open_process(pid: int) -> tuple[int, Process] | None:
    """Return a pidfd and what it is a pidfd of.

    The caller closes the pidfd, and polls it again (POLLIN: it has ended) before it acts on
    anything that it concluded from other sources, such as the cgroup.

    A process whose first thread has ended while others run is alive, though the kernel calls it a
    zombie; its executable and command line are then read from one of those threads.

    Args:
        pid: in our pid namespace.

    Returns:
        None: no live process has the number. It is free, of a zombie or of a mere thread, or it
        ended meanwhile, or /proc hides it from us (hidepid, see proc(5)): it is not ours then.

    Raises:
        KernelError: out of descriptors or memory, or /proc is not there.

    See pidfd_open(2); Linux 5.3.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        # A thread's number is EINVAL, and ENOENT since Linux 6.15.
        if error.errno in (ESRCH, EINVAL, ENOENT):
            return None
        raise KernelError("pidfd_open", error.errno or 0, str(pid)) from None
    except OverflowError:
        return None  # larger than any pid
    try:
        process = _read_process(pid, pidfd)
        if process is not None and is_alive(pidfd):
            pinned, pidfd = pidfd, -1
            return pinned, process
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return None


def is_alive(pidfd: int) -> bool:
    """Return whether a process still runs: see pidfd_open(2)."""
    poller = poll()
    poller.register(pidfd, POLLIN)
    return not poller.poll(0)


def _read_process(pid: int, pidfd: int) -> Process | None:
    """Return the facts about what has the number `pid`; None: it is gone."""
    directory_fd = _open_directory(pid)
    if directory_fd < 0:
        return None
    try:
        name, fields = _read_stat(directory_fd)
        status = _read_status("status", directory_fd)
        uids, gids = _field(status, b"Uid"), _field(status, b"Gid")
        inner = _field(status, b"NSpid")
        exe, exe_id = _read_exe(directory_fd, "exe")
        argv = _read_argv(directory_fd, "cmdline")
        is_kernel = bool(int(fields[6]) & _PF_KTHREAD)
        if exe_id is None and fields[0] == b"Z":
            thread = _find_thread(directory_fd)
            if thread:
                exe, exe_id = _read_exe(directory_fd, thread + "/exe")
                argv = _read_argv(directory_fd, thread + "/cmdline")
    except OSError as error:
        if error.errno in (*_GONE, EACCES, EPERM):
            return None
        raise KernelError("read", error.errno or 0, f"/proc/{pid}") from None
    finally:
        os.close(directory_fd)
    start = int(fields[19])
    return Process(
        id=ProcessId(pid, start, _inode_of(pidfd)),
        uid=int(uids[1]),
        gid=int(gids[1]),
        exe=exe,
        exe_id=exe_id,
        argv=argv,
        is_kernel=is_kernel,
        inner_pid=int(inner[-1]) if inner else pid,
        comm=name,
        since=born_at(start) + time.clock_gettime_ns(time.CLOCK_REALTIME) - time.monotonic_ns(),
    )


def _open_directory(pid: int) -> int:
    """Return a descriptor of /proc/PID, which the caller closes; -1: there is none.

    Raises:
        KernelError: out of descriptors.
    """
    try:
        return os.open(f"/proc/{pid}", _DIRECTORY)
    except OSError as error:
        if error.errno in (*_GONE, EACCES, EPERM):
            return -1
        raise KernelError("open", error.errno or 0, f"/proc/{pid}") from None


def _read_at(directory_fd: int, name: str, size: int) -> bytes:
    fd = os.open(name, _READ, dir_fd=directory_fd)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def _read_status(path: str, directory_fd: int | None = None) -> bytes:
    """Return the whole of /proc/PID/status: what a process has of groups may be long."""
    fd = os.open(path, _READ, dir_fd=directory_fd)
    try:
        data = os.read(fd, _STATUS_BYTES)
        while b"\nNSpid:" not in data:
            piece = os.read(fd, _STATUS_BYTES)
            if not piece:
                break
            data += piece
    finally:
        os.close(fd)
    return data


def _read_stat(directory_fd: int) -> tuple[str, list[bytes]]:
    """Return the name, which may hold anything, and the fields from the third: the state."""
    head, _, rest = _read_at(directory_fd, "stat", _STATUS_BYTES).rpartition(b")")
    return _decode(head.partition(b"(")[2]), rest.split()


def _field(status: bytes, name: bytes) -> list[bytes]:
    """Return the values of one line of /proc/PID/status; [] where the kernel has none such."""
    _, _, rest = status.partition(b"\n" + name + b":")
    return rest.partition(b"\n")[0].split()


def _read_exe(directory_fd: int, name: str) -> tuple[str, tuple[int, int] | None]:
    """Return the path, and device and inode, of what a process executes; "", None: unreadable."""
    try:
        path = os.readlink(os.fsencode(name), dir_fd=directory_fd)
        status = os.stat(name, dir_fd=directory_fd)
    except OSError:
        return "", None  # a kernel thread, no permission, or gone, which the caller finds out
    return _decode(path.removesuffix(b" (deleted)")), (status.st_dev, status.st_ino)


def _read_argv(directory_fd: int, name: str) -> tuple[str, ...]:
    """Return the command line, as far as it fits; () where there is none."""
    try:
        data = _read_at(directory_fd, name, MAX_CMDLINE)
    except OSError:
        return ()  # gone, which the caller finds out
    words = data.split(b"\0")
    if not words[-1] or len(data) == MAX_CMDLINE:
        words.pop()  # what comes after the last NUL is nothing, or was cut off
    return tuple(map(_decode, words))


def _find_thread(directory_fd: int) -> str:
    """Return a thread that runs on in a process whose first thread has ended, or ""."""
    task_fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        for name in reversed(os.listdir(task_fd)):
            if _read_exe(task_fd, name + "/exe")[1] is not None:
                return f"task/{name}"
    finally:
        os.close(task_fd)
    return ""


def _inode_of(pidfd: int) -> int:
    """Return what is the same for all pidfds of a process, and of no other in this boot.

    0: this kernel has none; before Linux 6.9 all pidfds were one anonymous inode, as eventfds are.
    """
    status = os.fstat(pidfd)
    event_fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        return 0 if os.fstat(event_fd).st_dev == status.st_dev else status.st_ino
    finally:
        os.close(event_fd)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def born_at(start_ticks: int) -> Ns:
    """Return when a process began, as a time of CLOCK_MONOTONIC.

    Negative for one that began before a suspension that was longer than the time since.

    Args:
        start_ticks: `ProcessId.start`; counts what the machine was suspended, in steps of 10 ms.
    """
    ahead = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return start_ticks * SECOND // os.sysconf("SC_CLK_TCK") - ahead


# Where it belongs.


def parent_of(pid: int) -> int:
    """Return the parent of what has this number now, or 0; only to inform, never to act on."""
    directory_fd = _open_directory(pid)
    if directory_fd < 0:
        return 0
    try:
        return _read_parent(directory_fd)
    finally:
        os.close(directory_fd)


def _read_parent(directory_fd: int) -> int:
    """Return the parent's number; 0: there is none in our namespace, or the process is gone."""
    try:
        return int(_read_stat(directory_fd)[1][1])
    except OSError as error:
        if error.errno in _GONE:
            return 0
        raise KernelError("read", error.errno or 0, "/proc/PID/stat") from None


def find_negligent(pid: int) -> str:
    """Return the parent of a zombie in words, "" if the number is of none; only to inform.

    A program that looks for its predecessor by kill(2) takes a zombie for a live one.
    """
    try:
        name, fields = _read_numbered_stat(pid)
        if fields[0] != b"Z":
            return ""
        parent = int(fields[1])
        name, _ = _read_numbered_stat(parent)
    except OSError as error:
        if error.errno in (*_GONE, EACCES, EPERM):
            return ""
        raise KernelError("read", error.errno or 0, f"/proc/{pid}") from None
    return f"its parent, pid {parent} ({name})"


def _read_numbered_stat(pid: int) -> tuple[str, list[bytes]]:
    directory_fd = os.open(f"/proc/{pid}", _DIRECTORY)
    try:
        return _read_stat(directory_fd)
    finally:
        os.close(directory_fd)


def is_below(pid: int, ancestor_pid: int) -> bool:
    """Return whether a process is a child of another, or a child's child, and so on.

    A process whose parents have ended is below the subreaper that it was given to, so this tells
    whether it belongs to the daemon of a shim. Each step is verified: the parent's directory is
    open when the child says once more who its parent is. The two ends are the caller's to pin:
    it holds pidfds of both, and polls them afterwards.

    Returns:
        False for a process itself, and where either does not exist.
    """
    child_fd = _open_directory(pid)
    try:
        while child_fd >= 0:
            parent = _read_parent(child_fd)
            if parent in (0, ancestor_pid):
                return parent != 0
            parent_fd = _open_directory(parent)
            if _read_parent(child_fd) == parent:
                os.close(child_fd)
                child_fd = parent_fd
            else:  # Race: the parent ended, so there is another one now, or the child ended too.
                _close(parent_fd)
    finally:
        _close(child_fd)
    return False


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def cgroup_of(pid: int) -> str:
    """Return the v2 cgroup of what has this number now, as a path of its hierarchy.

    "": it has none, or there is no such process. The caller holds a pidfd of it and polls that
    afterwards. Paths are relative to our own cgroup namespace; see cgroups(7).
    """
    try:
        with open(f"/proc/{pid}/cgroup", "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        if error.errno in (*_GONE, EACCES, EPERM):
            return ""
        raise KernelError("open", error.errno or 0, f"/proc/{pid}/cgroup") from None
    _, found, rest = (b"\n" + data).partition(b"\n0::")
    return _decode(rest.partition(b"\n")[0]) if found else ""


def translate(number: int, keeper_pid: int) -> int:
    """Return the pid, in our namespace, of what has a number in another pid namespace.

    What a daemon with `ns_pid` writes into its pidfile is such a number.

    Args:
        number: in the namespace.
        keeper_pid: of the namespace's init, in ours. The caller holds a pidfd of it, and polls
            that afterwards.

    Returns:
        0: no process there has the number, or `keeper_pid` is not the init of a namespace below
        ours. The answer is a number again, for `open_process`, and `inner_pid` is then compared
        with the first one.

    See NS_GET_PID_FROM_PIDNS in linux/nsfs.h; Linux 6.11. Before that, and where the namespace
    must not be opened (ptrace(2)), all processes are looked through.
    """
    keeper_numbers = _read_numbers(str(keeper_pid))
    if len(keeper_numbers) < 2 or keeper_numbers[-1] != 1:
        return 0
    try:
        namespace_fd = os.open(f"/proc/{keeper_pid}/ns/pid", _READ)
    except OSError as error:
        if error.errno in _GONE:
            return 0
        return _search(number, keeper_pid, len(keeper_numbers))
    try:
        return _ask_namespace(namespace_fd, number)
    except OSError as error:
        if error.errno == ESRCH:
            return 0
        if error.errno != ENOTTY:
            raise KernelError("ioctl", error.errno or 0, "NS_GET_PID_FROM_PIDNS") from None
        return _search(number, keeper_pid, len(keeper_numbers))
    finally:
        os.close(namespace_fd)


def _ask_namespace(namespace_fd: int, number: int) -> int:
    """Return the pid of a process, and 0 for a mere thread."""
    from fcntl import ioctl

    pid = ioctl(namespace_fd, _NS_GET_PID_FROM_PIDNS, number)
    return pid if ioctl(namespace_fd, _NS_GET_TGID_FROM_PIDNS, number) == pid else 0


def _search(number: int, keeper_pid: int, depth: int) -> int:
    """Look through all processes for the one that has `number` in the namespace of the keeper.

    Whatever lives in a pid namespace is below its init, except for what somebody put into it from
    outside (setns(2)), which no daemon of the namespace can have written into a pidfile.
    """
    for name in os.listdir("/proc"):
        if name.isdigit():
            numbers = _read_numbers(name)
            if len(numbers) == depth and numbers[-1] == number:
                pid = int(name)
                if pid == keeper_pid or is_below(pid, keeper_pid):
                    return pid
    return 0


def _read_numbers(name: str) -> list[int]:
    """Return the numbers of a process, from our pid namespace to its own; [] if it is gone."""
    try:
        return [int(word) for word in _field(_read_status(f"/proc/{name}/status"), b"NSpid")]
    except OSError as error:
        if error.errno in (*_GONE, EACCES, EPERM):
            return []
        raise KernelError("open", error.errno or 0, f"/proc/{name}/status") from None


# The configured program.

_MAX_INTERPRETERS = 5  # the kernel follows as many (search_binary_handler)
_HEAD_BYTES = 256  # of a file, as far as the kernel reads a line with #!
_ELF = b"\x7fELF"


def look_up_program(command: Command, path: tuple[str, ...], directory: str) -> Program | None:
    """Return what a process must run to be taken for the daemon, whoever started it.

    What execve(2) would do is done in mind: PATH, #! lines, `env`. Reads files, and can wait for
    a dead file system: for the start of the master, once per daemon, and not for its loop.

    Args:
        command: as configured. Of a shell command what its one program surely is.
        path: the directories of PATH.
        directory: where the daemon starts, absolute.

    Returns:
        None: only running it would tell, or there is no such program. `script` is NO_SCRIPT for
        an interpreter whose script is not clear.
    """
    from lowsuper.command import find_words

    words = find_words(command)
    found = ""
    for _ in range(_MAX_INTERPRETERS + 1):
        words = _skip_env(words)
        program = _find_in_path(words[0], path, directory) if words else ""
        if not program:
            return None
        found = found or program
        file = os.path.join(directory, program)
        head = _read_head(file)
        if not head.startswith(b"#!"):
            is_binary = head.startswith(_ELF)
            return _describe_binary(found, file, words, directory) if is_binary else None
        interpreter = _read_interpreter(head)
        if not interpreter:
            return None
        words = (*interpreter, program, *words[1:])
    return None


def _skip_env(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return what env(1) executes, if that is what is run; () where it is not clear.

    `env -S` as in #! lines is understood where its text is mere words.
    """
    while words and os.path.basename(words[0]) == "env":
        words = _skip_env_options(words[1:])
        while words and "=" in words[0]:
            if words[0].startswith("PATH="):
                return ()  # it looks elsewhere than we would
            words = words[1:]
    return words


def _skip_env_options(words: tuple[str, ...]) -> tuple[str, ...]:
    while words and words[0].startswith("-"):
        word, words = words[0], words[1:]
        if word == "--":
            break
        if word in ("-S", "--split-string") and words:
            word, words = "-S" + words[0], words[1:]
        if word.startswith(("-S", "--split-string=")):
            text = word.removeprefix("--split-string=").removeprefix("-S")
            if not _PLAIN_WORDS.isdisjoint(text):
                return ()
            words = (*text.split(), *words)
        elif word in ("-u", "--unset"):
            words = words[1:]
        elif word not in _ENV_FLAGS and not word.startswith("--unset="):
            return ()  # another directory, or what is not known here
    return words


_ENV_FLAGS = frozenset(("-", "-i", "--ignore-environment", "-v", "--debug"))
_PLAIN_WORDS = frozenset("\"'\\#$")
"""What makes a text of `env -S` more than words."""


def _find_in_path(name: str, path: tuple[str, ...], directory: str) -> str:
    """Return the path that execvp(3) hands to execve(2), or ""."""
    if "/" in name:
        return name
    for place in path:
        candidate = f"{place or '.'}/{name}"
        try:
            status = os.stat(os.path.join(directory, candidate))
        except (OSError, ValueError):
            continue
        if S_ISREG(status.st_mode) and status.st_mode & 0o111:
            return candidate
    return ""


def _read_head(file: str) -> bytes:
    """Return the first bytes of a regular file; b"": there is none.

    One that may be executed and not read is a binary, since an interpreter could not read it.
    """
    try:
        if not S_ISREG(os.stat(file).st_mode):
            return b""
        fd = os.open(file, _READ | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError:
        return _ELF
    except (OSError, ValueError):
        return b""
    try:
        return os.read(fd, _HEAD_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _read_interpreter(head: bytes) -> tuple[str, ...]:
    """Return the interpreter of a #! line and its one argument, if any; () if there is none."""
    line = _decode(head[2:].partition(b"\n")[0]).strip(" \t")
    end = min((place for place in map(line.find, " \t\0") if place >= 0), default=len(line))
    argument = line[end:].strip(" \t").partition("\0")[0]
    if "/" not in line[:end]:
        return ()
    return (line[:end], argument) if argument else (line[:end],)


def _describe_binary(
    found: str, file: str, words: tuple[str, ...], directory: str
) -> Program | None:
    """Return what the process of a binary must look like.

    Args:
        found: what the command names: the binary itself, or a script.
        file: the binary.
        words: its command line; "" stands for what only a shell knows.
        directory: where it starts.
    """
    from lowsuper.script import find_script, needs_script

    try:
        status = os.stat(file)
    except OSError:
        return None  # removed just now
    path = os.path.normpath(os.path.join(directory, found))
    program = Program(path, ((status.st_dev, status.st_ino),))
    name = os.path.basename(os.path.realpath(file))
    if not needs_script(name) and os.path.join(directory, found) == file:
        return program
    script = find_script(words, name)
    script_file = os.path.normpath(os.path.join(directory, script))
    is_file = bool(script) and os.path.isfile(script_file)
    return program.replace(
        script=script or NO_SCRIPT, script_path=script_file if is_file else "", interpreter=name
    )
