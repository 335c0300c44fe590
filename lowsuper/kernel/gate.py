"""The way into the master in a jail, for clients that were let in outside: see `kernel.lobby`."""

from __future__ import annotations

import _socket
import os
from struct import Struct

from lowsuper.kernel.native import move_high

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.peer import Peer

CLIENT = "client"  # the first word of a packet that brings one
MOST_DATA = 1 << 20
_FDS = Struct("ii")


class Gate:
    """The way into the master in the jail, for clients that come from outside."""

    __slots__ = ("name", "pid", "take")

    def __init__(self, name: str, pid: int) -> None:
        """Begin closed.

        Args:
            name: of the instance.
            pid: of the process outside, as it is known there.
        """
        self.name, self.pid = name, pid
        self.take: Callable[[_socket.socket, Peer, bytes], None] | None = None

    def let_in(self, words: list[str], fds: bytes) -> None:
        """Take a client.

        Args:
            words: of the packet.
            fds: the descriptors that came with it; they are this method's to close.
        """
        from lowsuper.kernel.peer import Peer  # with the server, which few starts need

        _, pid, uid, verbs = words
        client_fd, data_fd = _FDS.unpack(fds)
        data = os.pread(data_fd, MOST_DATA, 0)
        os.close(data_fd)
        made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=move_high(client_fd))
        if self.take is None:
            made.close()  # it ends already
            return
        allowed = None if verbs == "*" else frozenset(verbs.split(","))
        self.take(made, Peer(int(pid), int(uid), allowed), data)
