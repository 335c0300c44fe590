"""The master FIFO: commands by single bytes, from one of up to ten named pipes.

A slot's pipe is made when it is selected; like uWSGI an old file in its place is removed first,
but only if that is a pipe too. It is opened for reading and writing, so it never reports an end.
"""

from __future__ import annotations

import os
import stat

from lowsuper.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.loop import Loop

MODE = 0o600
READ_BYTES = 256


class MasterFifo:
    """Owns the descriptor of the selected slot."""

    def __init__(self, loop: Loop, callback: Callable[[str], None]) -> None:
        """Begin with no pipe; `callback` gets each byte as one character."""
        self._loop, self._callback = loop, callback
        self._fd = -1
        self._path: str | None = None
        self._made: set[str] = set()

    def use(self, paths: tuple[str, ...]) -> None:
        """Keep to the selected pipe if it is one of these slots, else listen to the first.

        Raises:
            KernelError: it cannot be made.
        """
        if self._path in paths:
            return
        if paths:
            self.select(paths[0])
        else:
            self._forget()

    def select(self, path: str) -> None:
        """Listen to the pipe at `path`, and to no other.

        Raises:
            KernelError: it cannot be made; the pipe before goes on to be listened to.
        """
        fd = self._open(path)
        self._forget()
        self._fd, self._path = fd, path
        self._loop.watch(fd, 1, self._on_bytes)

    def close(self, remove: bool) -> None:
        """Listen to nothing; with `remove` take the pipes away that were made."""
        self._forget()
        if remove:
            for path in self._made:
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    continue
        self._made.clear()

    def _open(self, path: str) -> int:
        try:
            try:
                if stat.S_ISFIFO(os.lstat(path).st_mode):
                    os.unlink(path)
            except FileNotFoundError:
                pass
            os.mkfifo(path, MODE)
            # The umask may have taken bits away; nobody else is to get any.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags)
        except OSError as error:
            raise KernelError("master-fifo", error.errno or 0, path) from error
        self._made.add(path)
        return fd

    def _forget(self) -> None:
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd, self._path = -1, None

    def _on_bytes(self) -> None:
        fd = self._fd
        try:
            commands = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        for byte in commands:
            self._callback(chr(byte))
