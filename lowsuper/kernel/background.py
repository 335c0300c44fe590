"""Going to the background: the caller gets its prompt back once the master is ready."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FAILED = 125


def go_to_background(log_path: str) -> Callable[[], None]:
    """Fork twice into a session of its own; returns only in the new process.

    The caller of the program waits until the returned function is called, and then ends with
    status 0; if the new process ends without that, the caller says so and ends with 125. To be
    called while this is the only thread, and before any child or descriptor of the master exists.

    Args:
        log_path: where the new process will say what went wrong.
    """
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child != 0:
        os.close(write_fd)
        os.waitpid(child, 0)
        if os.read(read_fd, 1):
            os._exit(0)
        os.write(2, f"lowsuper: it ended before it was ready; see {log_path}\n".encode())
        os._exit(FAILED)
    os.close(read_fd)
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    null_fd = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.close(null_fd)

    def ready() -> None:
        os.write(write_fd, b"\0")
        os.close(write_fd)

    return ready
