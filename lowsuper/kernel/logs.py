"""Where the output of daemons goes.

A plain `log = PATH` is opened by the daemon's own helper and written by the daemon: see
`csrc/logfile.c` for whom it trusts. What is rotated, or kept in memory, goes through a FIFO to the
log process: see `kernel.logger`, which is imported where there is such a log.
"""

from __future__ import annotations

import os

from lowsuper.plan import LOG_FD, FdSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.kernel.logger import Logger
    from lowsuper.model import DaemonSpec, MasterSpec

STDOUT, STDERR = 1, 2


def is_managed(spec: DaemonSpec) -> bool:
    """Return whether the log process moves the output of a daemon."""
    output = spec.log
    if output is None or output.kind not in ("file", "ring"):
        return False
    rotation = (spec.log_maxsize, spec.log_max_age, spec.log_backups)
    return output.kind == "ring" or rotation != (None, None, None)


def rotates_master(spec: MasterSpec) -> bool:
    """Return whether the log process moves the master's own lines, where it has a log file."""
    rotation = (spec.log_maxsize, spec.log_max_age, spec.log_backups, spec.log_backupname)
    return rotation != (None, None, None, None)


def has_managed(spec: MasterSpec) -> bool:
    """Return whether a configuration needs the log process."""
    return rotates_master(spec) or any(is_managed(daemon) for daemon in spec.daemons)


def plan_output(
    spec: DaemonSpec, null_fd: int, logger: Logger | None
) -> tuple[tuple[FdSource, FdSource], str | None]:
    """Return what a daemon's standard output and error become, and the path of LOG_FD.

    Args:
        spec: the daemon; a relative path is taken from the current directory.
        null_fd: /dev/null; stays the caller's.
        logger: has what is rotated.

    Raises:
        KernelError: what is rotated cannot be had.
    """
    output = spec.log
    if output is None:
        return (FdSource(1, STDOUT), FdSource(2, STDERR)), None
    if is_managed(spec):
        assert logger is not None, "has_managed"
        path = os.fsencode(logger.find_fifo(spec.name))
        # For reading as well: it never waits for a reader, and never is without one.
        return (
            FdSource(1, path=path, flags=os.O_RDWR),
            FdSource(2, path=path, flags=os.O_RDWR),
        ), None
    match output.kind:
        case "stdout":
            fd = STDOUT
        case "stderr":
            fd = STDERR
        case "null":
            fd = null_fd
        case "open":
            fd = output.fd
        case _:
            return (FdSource(1, LOG_FD), FdSource(2, LOG_FD)), os.path.abspath(output.path)
    return (FdSource(1, fd), FdSource(2, fd)), None
