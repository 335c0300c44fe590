"""From a specification and the facts of this machine to a spawn plan with nothing left to look up.

The plan holds exactly what the helper (`csrc/child.c`) will do, in bytes and numbers; no file is
opened and nothing is started here.
"""

from __future__ import annotations

from lowsuper.record import Record

EXEC, NSINIT, SHIM = "exec", "nsinit", "shim"


class FdSource(Record):
    """One descriptor of the daemon: `target` becomes a copy of `fd`, or of `path` opened.

    `fd` is a descriptor of the master, which stays the master's; with `path` the helper opens
    the file itself, after the chdir and uid steps have not happened yet, that is as root.
    """

    target: int
    fd: int = -1
    path: bytes = b""
    flags: int = 0  # of open(2), for `path`
    mode: int = 0


class Limit(Record):
    """One resource limit: see setrlimit(2). -1 stands for RLIM_INFINITY."""

    resource: int
    soft: int
    hard: int


class SpawnPlan(Record):
    """All that one start of a program needs.

    `programs` are tried in order until one can be executed, as execvp(3) does with PATH: the
    search is made in the helper so that a dead file system in PATH cannot stop the master.
    """

    name: str  # of the daemon, for messages
    role: str  # EXEC, or what stays between the master and the program: NSINIT, SHIM
    programs: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    envp: tuple[bytes, ...]
    fds: tuple[FdSource, ...]  # targets not named are closed
    new_pid_ns: bool = False
    chdir: bytes | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None  # None: keep the master's
    umask: int | None = None
    limits: tuple[Limit, ...] = ()
    dies_with_master: bool = True  # parent-death signal, and the roles' watch on the master
