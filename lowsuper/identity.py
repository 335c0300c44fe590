"""Who a process is, and whether it is the daemon that a pidfile claims it to be.

A pidfile is a claim by whoever may write it. Here are the values that the claim is held against
(the process as the kernel shows it, the record that lowsuper made of its daemon, the configured
program) and the rules of belief. Pure: `kernel.inspect`, `kernel.pidfile` and `kernel.records`
look, this module judges.
"""

from __future__ import annotations

from lowsuper.record import Record


class ProcessId(Record):
    """One process of one boot, whatever happens to its number later."""

    pid: int
    start: int  # clock ticks since boot: field 22 of proc_pid_stat(5)
    inode: int = 0  # of its pidfd, the same for every pidfd of it; 0: unknown (Linux before 6.9)


class Process(Record):
    """A live process, pinned by a pidfd while it was looked at: see `kernel.inspect`."""

    id: ProcessId
    uid: int  # effective
    gid: int
    exe: str = ""  # what /proc/PID/exe links to; "" where it cannot be read
    exe_id: tuple[int, int] | None = None  # device and inode of the executable
    argv: tuple[str, ...] = ()  # its command line, as far as it is legible
    is_kernel: bool = False  # a kernel thread
    inner_pid: int = 0  # its number in its own pid namespace


class Recorded(Record):
    """What lowsuper noted of a smart daemon, for the next master."""

    pidfile: str  # absolute path
    boot_id: str
    main: ProcessId | None = None  # None: launched, and not named by its pidfile yet
    exe: str = ""
    leaf: str = ""  # directory of its cgroup, or ""
    keeper_kind: str = ""  # "pidns" or "shim": its kill domain is kept by a process of ours
    keeper: ProcessId | None = None


class Reading(Record):
    """What was found at the path of a pidfile: see `kernel.pidfile`."""

    pid: int = 0  # 0: there is no number to be had, and `reason` says why
    reason: str = ""  # a phrase about the file: "is not there", "is empty", "is a FIFO"
    missing: bool = False  # there is no such file
    owner: int = -1  # uid of the file; -1: unknown
    safe: bool = False  # the file and every directory above can be written by root (or us) only
    complete: bool = False  # its first line ends in a newline


class Program(Record):
    """The configured program, looked up: what a process must run to be believed for it."""

    path: str  # as found
    exe_ids: tuple[tuple[int, int], ...]  # device and inode of the executable, or the interpreter
    script: str = ""  # for an interpreter: what the command line must hold besides
