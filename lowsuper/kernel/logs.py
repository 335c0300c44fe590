"""Where the output of daemons goes.

A plain `log = PATH` is opened by the daemon's own helper and written by the daemon: see
`csrc/logfile.c` for whom it trusts.
"""

from __future__ import annotations

import os

from lowsuper.plan import LOG_FD, FdSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import DaemonSpec

STDOUT, STDERR = 1, 2


def plan_output(spec: DaemonSpec, null_fd: int) -> tuple[tuple[FdSource, FdSource], str | None]:
    """Return what a daemon's standard output and error become, and the path of LOG_FD.

    Args:
        spec: the daemon; a relative path is taken from the current directory.
        null_fd: /dev/null; stays the caller's.
    """
    output = spec.log
    if output is None:
        return (FdSource(1, STDOUT), FdSource(2, STDERR)), None
    match output.kind:
        case "stdout":
            fd = STDOUT
        case "stderr":
            fd = STDERR
        case "null":
            fd = null_fd
        case _:
            path = os.path.abspath(output.path)
            return (FdSource(1, LOG_FD), FdSource(2, LOG_FD)), path
    return (FdSource(1, fd), FdSource(2, fd)), None
