"""Where the operator's lines go: standard error, or a log file.

A line is never waited for. What a pipe or a terminal does not take at once is kept, up to
`LIMIT` bytes, and written when the reader is ready; beyond that lines are dropped and counted.
"""

from __future__ import annotations

import _socket
import os
import stat
from errno import EAGAIN, EINTR

MSG_DONTWAIT = _socket.MSG_DONTWAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.kernel.loop import Loop

LIMIT = 256 * 1024
MODE = 0o640


class Sink:
    """Writes lines to a descriptor without ever blocking.

    O_NONBLOCK belongs to the open file, which the daemons share: setting it on standard error
    would change it under them. So a pipe or a terminal is opened once more through /proc; a
    socket, which cannot be, is written with MSG_DONTWAIT; a file never blocks.
    """

    def __init__(self, fd: int = 2) -> None:
        """Write to `fd`, which stays the caller's."""
        self._loop: Loop | None = None
        self._waiting = False
        self._lines: list[bytes] = []  # of this turn
        self._left = b""  # what the reader has not taken yet
        self._dropped = 0
        self._own_fd = -1
        self._socket: _socket.socket | None = None
        self.redirect(fd)

    def redirect(self, fd: int) -> None:
        """Write to another descriptor from now on; it stays the caller's."""
        self.close()
        mode = os.fstat(fd).st_mode
        self._fd, self._socket = fd, None
        if stat.S_ISSOCK(mode):
            self._socket = _socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                self._own_fd = self._fd = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:
                # No /proc, or not our terminal any more: a write may wait for its reader then.
                self._own_fd, self._fd = -1, fd

    def attach(self, loop: Loop) -> None:
        """Let the loop say when a slow reader is ready again."""
        self._loop = loop

    def put(self, line: str) -> None:
        """Add one line; `flush` writes it."""
        self._lines.append(line.encode("utf-8", "surrogateescape") + b"\n")

    def flush(self) -> None:
        """Write what there is, as far as the reader takes it."""
        if self._lines:
            self._left += b"".join(self._lines)
            self._lines = []
        while self._left:
            written = self._write(self._left)
            if written <= 0:
                if written < 0:
                    self._keep_within_limit()
                    self._wait()
                return
            self._left = self._left[written:]
            if not self._left and self._dropped:
                self._left = b"lowsuper: %d lines were lost: nobody read them\n" % self._dropped
                self._dropped = 0

    def _keep_within_limit(self) -> None:
        """Drop the newest of the lines that nobody takes."""
        if len(self._left) > LIMIT:
            end = self._left.rfind(b"\n", 0, LIMIT) + 1
            self._dropped += self._left.count(b"\n", end)
            self._left = self._left[:end]

    def drain(self, patience: float) -> None:
        """Flush, and wait up to `patience` seconds for a slow reader: the program ends."""
        self.flush()
        self._stop_waiting()
        if not self._left:
            return
        import select
        from time import monotonic

        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        end = monotonic() + patience
        while self._left and (rest := end - monotonic()) > 0 and poll.poll(rest * 1000):
            self.flush()
            self._stop_waiting()

    def _write(self, text: bytes) -> int:
        """Return how much was written; -1: the reader is not ready, 0: it is gone for now."""
        try:
            if self._socket is not None:
                return self._socket.send(text, MSG_DONTWAIT)
            return os.write(self._fd, text)
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return -1
            # The reader is gone or the disk is full: there is nobody left to tell.
            self._dropped += text.count(b"\n")
            self._left = b""
            return 0

    def _wait(self) -> None:
        if self._loop is not None and not self._waiting:
            self._waiting = True
            self._loop.watch(self._fd, 4, self._on_ready)

    def _on_ready(self) -> None:
        self._stop_waiting()
        self.flush()

    def _stop_waiting(self) -> None:
        if self._waiting and self._loop is not None:
            self._loop.unwatch(self._fd)
            self._waiting = False

    def close(self) -> None:
        """Close what the sink opened; `redirect` gives it another place."""
        self._stop_waiting()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._own_fd >= 0:
            os.close(self._own_fd)
            self._own_fd = -1


def open_log(path: str) -> int:
    """Open a log file for appending, making it if need be; the caller closes it.

    Raises:
        OSError: as open(2) does.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(path, flags, MODE)
