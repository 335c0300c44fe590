"""From where a daemon sees the world: its root directory and its network, looked at from outside.

The root is reached through /proc/PID/root, as the main process has it; a namespace is entered by
this process for the moment of one call, which works as it is the only thread here.
"""

from __future__ import annotations

import _socket
import os

from lowsuper.kernel import mount
from lowsuper.plan import NAMESPACES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from lowsuper.model import DaemonSpec

    T = TypeVar("T")

_SHARED = ("net", "ipc", "uts")  # namespaces of the daemon in which a command for it is run


class Vantage:
    """From where a daemon sees the world."""

    __slots__ = ("_pid", "has_net", "has_root", "shared")

    def __init__(self, spec: DaemonSpec, pid: int) -> None:
        """Take what is its own from its configuration.

        Args:
            spec: the daemon.
            pid: of its main process; 0: unknown, so it is looked from here.
        """
        self._pid = pid
        own = set(spec.namespaces)
        if spec.hostname is not None:
            own.add("uts")
        is_own_mount = spec.root is not None or bool(spec.mounts) or "mount" in own
        self.has_root = pid > 0 and is_own_mount
        self.has_net = pid > 0 and ("net" in own or spec.netns is not None)
        self.shared = tuple(name for name in _SHARED if name in own) if pid > 0 else ()

    def locate(self, path: str) -> str:
        """Return where an absolute path of the daemon's is to be found from here."""
        return f"/proc/{self._pid}/root{path}" if self.has_root else path

    def open_socket(self, family: int, kind: int) -> _socket.socket:
        """Return a socket of the daemon's network, which does not block.

        Raises:
            OSError: there can be none, or the daemon is gone.
        """
        names = ("net",) if self.has_net else ()
        return self.within(names, lambda: _socket.socket(family, kind | _socket.SOCK_NONBLOCK))

    def within(self, names: Sequence[str], call: Callable[[], T]) -> T:
        """Return what `call` returns in namespaces of the daemon; we are back in ours then.

        We are the only thread: see setns(2).

        Raises:
            OSError: of `call`, or the daemon is gone.
        """
        if not names:
            return call()
        back: list[tuple[int, int]] = []
        try:
            for name in names:
                kind = NAMESPACES[name]
                own_fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                back.append((own_fd, kind))
                other_fd = os.open(f"/proc/{self._pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    mount.setns(other_fd, kind)
                finally:
                    os.close(other_fd)
            return call()
        finally:
            for own_fd, kind in back:
                mount.setns(own_fd, kind)
                os.close(own_fd)
