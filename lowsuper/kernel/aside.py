"""Answers that need files, each read by a process of its own.

A configuration or a log may lie on a file server that does not answer, or on a dead disk: the
master would wait with whoever asks. The process is a plain fork of the master: it has the same
privileges, directory and namespaces, knows what the master knows, and needs no program to be
there. It keeps none of the master's descriptors but a pipe, and dies with it.
"""

from __future__ import annotations

import gc
import os
from errno import EAGAIN

from lowsuper.control import FAILED, TOO_MANY, RequestError, refusal
from lowsuper.errors import KernelError, LowsuperError
from lowsuper.kernel import native, process
from lowsuper.kernel.control import KEY, PARK
from lowsuper.kernel.loop import READ, Loop
from lowsuper.kernel.native import lib, move_high
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from lowsuper.kernel.control import Connection, Job
    from lowsuper.units import Ns

    Work = Callable[[Loop], Iterator[bytes | int]]
    """What the process does: it gives pieces, and `PARK` to wait for the loop that it gets."""

MOST = 8  # processes that come to an end; further ones wait for their turn
MOST_STREAMS = 32  # that end with their client
PIECE = 64 * 1024
LONGEST = 16 << 20  # of what `gather` returns
PATIENCE: Ns = 9 * SECOND  # less than that of our own client
SIGKILL = 9
RESULT_FD = 3


class Aside:
    """One process on its way. `wake` is called when there is something to read."""

    __slots__ = ("_loop", "_on_end", "_pidfd", "_read_fd", "_wake")

    def __init__(
        self, loop: Loop, work: Work, wake: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        """Begin.

        Args:
            loop: tells of its output and its end.
            work: what it does.
            wake: called when `read` has something.
            on_end: called once, when the process is no more.

        Raises:
            KernelError: there can be no further process.
        """
        self._loop, self._wake, self._on_end = loop, wake, on_end
        self._read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        self._read_fd = move_high(self._read_fd)
        os.set_blocking(self._read_fd, False)
        master = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(self._read_fd)
            os.close(write_fd)
            raise KernelError("fork", error.errno or EAGAIN) from None
        if pid == 0:
            status = 1
            try:
                status = _work_alone(work, write_fd, master)
            finally:
                os._exit(status)
        os.close(write_fd)
        self._pidfd = move_high(os.pidfd_open(pid))
        loop.watch(self._pidfd, READ, self._on_exit)
        loop.watch(self._read_fd, READ, self._on_output)

    def read(self) -> bytes | None:
        """Return a piece of its output; b"": there is none yet; None: that was all."""
        if self._read_fd < 0:
            return None
        try:
            data = os.read(self._read_fd, PIECE)
        except BlockingIOError:
            self._loop.unwatch(self._read_fd)
            self._loop.watch(self._read_fd, READ, self._on_output)
            return b""
        return data or None

    def close(self) -> None:
        """Let go of it, and kill it if it is there; one that cannot be killed now ends later."""
        if self._read_fd >= 0:
            self._loop.unwatch(self._read_fd)
            os.close(self._read_fd)
            self._read_fd = -1
        if self._pidfd >= 0:
            process.send_signal(self._pidfd, SIGKILL)

    def _on_output(self) -> None:
        self._loop.unwatch(self._read_fd)  # until all of it was read
        self._wake()

    def _on_exit(self) -> None:
        # It stays a zombie until the loop comes to its SIGCHLD.
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_end()


def _work_alone(work: Work, write_fd: int, master: int) -> int:
    """Work in the new process; return its exit status."""
    gc.disable()  # it would touch, and so copy, all that the master has
    os.dup2(write_fd, RESULT_FD, inheritable=False)
    native.close_range(RESULT_FD + 1)
    os.setsid()
    lib.lowsuper_set_pdeathsig(SIGKILL)
    # Race: the master was killed before that.
    if os.getppid() != master:
        return 1
    loop = Loop()
    try:
        for piece in work(loop):
            if isinstance(piece, bytes):
                _write(piece)
            else:
                loop.run_turn(_nothing)
    except RequestError as error:
        _write(refusal(error))
    except (LowsuperError, OSError, ImportError) as error:
        _write(refusal(RequestError(FAILED, str(error))))
    return 0


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(RESULT_FD, view) :]


def _nothing() -> None:
    return


class Asides:
    """The processes of one master that make answers."""

    def __init__(self, loop: Loop) -> None:
        """Begin without any."""
        self._loop = loop
        self._count = self._streams = 0
        self._line: list[Callable[[], None]] = []  # whom to wake when there is room

    def stream(self, connection: Connection, work: Work) -> Job:
        """Give what a process gives, for as long as it goes on.

        Raises:
            RequestError: there are too many, or there is nothing in time.
        """
        if self._streams >= MOST_STREAMS:
            why = f"{MOST_STREAMS} logs are followed already; end one, or try again"
            raise RequestError(TOO_MANY, why)
        aside = Aside(self._loop, work, connection.wake, self._on_stream_end)
        self._streams += 1
        yield from self._pass_on(aside, connection)

    def answer(self, connection: Connection, work: Work) -> Job:
        """Give what a process gives, which soon comes to an end.

        Raises:
            RequestError: there is nothing in time.
        """
        yield from self._wait_for_room(connection)
        aside = Aside(self._loop, work, connection.wake, self._on_end)
        self._count += 1
        yield from self._pass_on(aside, connection)

    def gather(
        self, connection: Connection, work: Work, patience: Ns = PATIENCE
    ) -> Generator[bytes | int, None, bytes | None]:
        """Return all that a process gives, which soon comes to an end; None: it did not."""
        yield from self._wait_for_room(connection)
        aside = Aside(self._loop, work, connection.wake, self._on_end)
        self._count += 1
        key, end = _key(connection), self._loop.now() + patience
        self._loop.set_timer(key, end, connection.wake)
        parts: list[bytes] = []
        size = 0
        try:
            while (data := aside.read()) is not None:
                parts.append(data)
                size += len(data)
                if self._loop.now() >= end or size > LONGEST:
                    return None
                yield b"" if data else PARK
        finally:
            self._loop.cancel_timer(key)
            aside.close()
        return b"".join(parts)

    def _wait_for_room(self, connection: Connection) -> Job:
        key, end = _key(connection), self._loop.now() + PATIENCE
        try:
            while self._count >= MOST:
                if self._loop.now() >= end:
                    raise RequestError(TOO_MANY, f"{MOST} files are being read, and do not come")
                self._line.append(connection.wake)
                self._loop.set_timer(key, end, connection.wake)
                yield PARK
        finally:
            self._loop.cancel_timer(key)

    def _pass_on(self, aside: Aside, connection: Connection) -> Job:
        """Give what comes; the first of it has to come soon."""
        key, end = _key(connection), self._loop.now() + PATIENCE
        self._loop.set_timer(key, end, connection.wake)
        last = b""
        try:
            while (data := aside.read()) is not None:
                if data:
                    self._loop.cancel_timer(key)
                    last = data
                    yield data
                    continue
                if not last and self._loop.now() >= end:
                    raise RequestError(FAILED, late())
                yield PARK
        finally:
            self._loop.cancel_timer(key)
            aside.close()
        if not last:
            raise RequestError(FAILED, "the process that was to answer this has ended")
        if not last.endswith(b"\n"):
            connection.ends = True  # it was killed amid a line

    def _on_end(self) -> None:
        self._count -= 1
        line, self._line = self._line, []
        for wake in line:
            wake()

    def _on_stream_end(self) -> None:
        self._streams -= 1


def late(patience: Ns = PATIENCE) -> str:
    """Return the words for what did not come to an end."""
    return f"it was not read in {patience // SECOND} s: does its file system answer?"


def _key(connection: Connection) -> str:
    return f"{KEY}aside {connection.fd}"
