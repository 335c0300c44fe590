"""The last lines of what a daemon wrote, and what comes after them.

Both read what is there without asking anybody: the end of a file, or the ring that the log process
fills. A file is opened as for writing (see `csrc/logfile.c`): where others can write, no link is
followed, so that nobody shows a client a file of root's.
"""

from __future__ import annotations

import os
from errno import ENOENT
from fcntl import F_SETFL, fcntl

from lowsuper.errors import KernelError, LowsuperError
from lowsuper.kernel.logger import read_ring
from lowsuper.kernel.logs import is_managed
from lowsuper.kernel.native import ffi, lib, move_high
from lowsuper.plan import LOG_REASONS
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.logger import Logger
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.watch import Watcher
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns

BLOCK = 64 * 1024
MOST_BYTES = 4 << 20
"""The most that `tail` returns."""
BACKUPS_MAX = 9  # old files that `tail` looks into
IN_MODIFY, IN_ATTRIB = 0x2, 0x4
RETRY: Ns = SECOND // 10  # for the next file, between its two names
WORDS = {"stdout": "the master's standard output", "stderr": "the master's standard error"}


class NoOutputError(LowsuperError):
    """There is nothing to be read; the text says why, and what to do."""


def tail(spec: DaemonSpec, lines: int, logger: Logger | None, uid: int) -> bytes:
    """Return the last lines that a daemon wrote, with what is there of an unfinished one.

    Args:
        spec: the daemon.
        lines: how many, at most; `MOST_BYTES` bounds them too.
        logger: has the rings.
        uid: the daemon's user.

    Raises:
        NoOutputError: its output is kept nowhere.
        KernelError: the file cannot be read.
    """
    kind, path = _find_place(spec)
    if kind == "ring":
        fd = _open_ring(spec.name, logger)
        try:
            data, total = read_ring(fd)
        finally:
            os.close(fd)
        if len(data) < total:
            data = data[data.find(b"\n") + 1 :]  # the first line is not whole
        return _last_lines(data, lines)
    if kind == "open":
        assert spec.log is not None, "it has a place"
        return _last_lines(_read_end(spec.log.fd, lines), lines)
    data = b""
    for number in range((BACKUPS_MAX if is_managed(spec) else 0) + 1):
        try:
            fd = _open_file(f"{path}.{number}" if number else path, uid)
        except KernelError as error:
            if number or error.errno == ENOENT:
                break  # there is no older one; or nothing was written yet
            raise
        try:
            data = _read_end(fd, lines - data.count(b"\n")) + data
        finally:
            os.close(fd)
        if data.count(b"\n") >= lines or len(data) >= MOST_BYTES:
            break
    return _last_lines(data, lines)


def _find_place(spec: DaemonSpec) -> tuple[str, str]:
    output = spec.log
    if output is None:
        where = "the master's standard output and error"
    elif output.kind == "null":
        raise NoOutputError(f"{spec.name}: its output is thrown away (log = null)")
    elif output.kind in WORDS:
        where = WORDS[output.kind]
    else:
        return output.kind, os.path.abspath(output.path) if output.path else ""
    raise NoOutputError(
        f"{spec.name} writes straight to {where}; log = PATH or log = ring keeps it"
    )


def _open_file(path: str, uid: int) -> int:
    return _open_as(path, uid, lib.LOWSUPER_LOG_READ)


def open_log(path: str) -> int:
    """Return a descriptor of a log file, to add lines and to read them; the caller closes it.

    Raises:
        KernelError: it cannot be opened, or is not to be trusted.
    """
    fd = move_high(_open_as(path, os.geteuid(), lib.LOWSUPER_LOG_BOTH))
    fcntl(fd, F_SETFL, os.O_APPEND)
    return fd


def _open_as(path: str, uid: int, access: int) -> int:
    reason = ffi.new("int32_t *")
    fd = lib.lowsuper_log_open(os.fsencode(path), uid, access, reason)
    if fd < 0:
        raise KernelError("log", -fd, path + LOG_REASONS[reason[0]])
    return fd


def _open_ring(name: str, logger: Logger | None) -> int:
    if logger is None:
        raise NoOutputError(f"{name}: there is no log process")
    path = logger.ring_of(name)
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoOutputError(f"{name} has not been started yet") from None
    except OSError as error:
        raise KernelError("log", error.errno or 0, path) from error


def _read_end(fd: int, lines: int) -> bytes:
    """Return the last lines of a file, and perhaps more."""
    end = os.fstat(fd).st_size
    blocks: list[bytes] = []
    size = found = 0
    while end > 0 and found <= lines and size < MOST_BYTES:
        start = max(0, end - BLOCK)
        block = os.pread(fd, end - start, start)
        blocks.append(block)
        found += block.count(b"\n")
        size += len(block)
        end = start
    return b"".join(reversed(blocks))


def _last_lines(data: bytes, lines: int) -> bytes:
    """Return the last lines; what has no newline at the end is one more."""
    if lines <= 0:
        return b""
    at = len(data) - (not data.endswith(b"\n"))
    for _ in range(lines + data.endswith(b"\n") if data else 0):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return data[-MOST_BYTES:]
    return data[at + 1 :][-MOST_BYTES:]


class Follower:
    """What a daemon writes from now on. `read` whenever `wake` was called, then `close`.

    `wake` comes once when there is more, and again only after the next `read`: whoever does not
    read costs nothing. `skipped` counts bytes that were overwritten in a ring before they were
    read, or cut off a file.
    """

    __slots__ = (
        "_at", "_fd", "_key", "_logger", "_loop", "_number", "_path", "_told", "_uid", "_wake",
        "_watcher", "name", "skipped",
    )  # fmt: skip

    def __init__(
        self,
        spec: DaemonSpec,
        wake: Callable[[], None],
        *,
        loop: Loop,
        watcher: Watcher,
        logger: Logger | None,
        uid: int,
    ) -> None:
        """Begin at the end of what is there now.

        Args:
            spec: the daemon.
            wake: called when there is something to read.
            loop: for the moment between two files.
            watcher: tells when a file grows.
            logger: has the rings.
            uid: the daemon's user.

        Raises:
            NoOutputError: its output is kept nowhere.
            KernelError: the file cannot be read.
        """
        self.name, self._wake, self._uid = spec.name, wake, uid
        self._loop, self._watcher, self._logger = loop, watcher, logger
        self._key = f"follow\0{id(self)}"
        self._number = self._fd = -1
        self._at = self.skipped = 0
        self._told = False
        kind, self._path = _find_place(spec)
        if kind == "open":
            raise NoOutputError(f"{spec.name} writes to {self._path} outside of the jail")
        if kind == "ring":
            self._path = ""
            self._fd = _open_ring(spec.name, logger)
            self._at = read_ring(self._fd)[1]
            assert logger is not None
            logger.listen(spec.name, self._tell)
            logger.expect(spec.name, self._at)
        else:
            try:
                self._open()
                self._at = os.fstat(self._fd).st_size
            except KernelError as error:
                if error.errno != ENOENT:
                    raise
                self._retry()

    def read(self, limit: int = BLOCK) -> bytes:
        """Return what came since the last time, at most `limit` bytes; b"": nothing now."""
        self._told = False
        if not self._path:
            return self._read_ring(limit)
        data = self._read_file(limit)
        if len(data) == limit:
            self._tell()  # there may be more
        return data

    def close(self) -> None:
        """Stop; the caller does not hear of it any more."""
        self._told = True
        if self._path:
            self._leave_file()
            self._loop.cancel_timer(self._key)
        else:
            os.close(self._fd)
            if self._logger is not None:
                self._logger.unlisten(self.name, self._tell)
        self._fd = -1

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._wake()

    def _read_ring(self, limit: int) -> bytes:
        assert self._logger is not None
        data, total = read_ring(self._fd, self._at)
        first = total - len(data)
        self.skipped += max(0, first - self._at)
        data = data[:limit]
        self._at = first + len(data)
        self._logger.expect(self.name, self._at)
        return data

    def _read_file(self, limit: int) -> bytes:
        data = b""
        while self._fd >= 0 and len(data) < limit:
            size = os.fstat(self._fd).st_size
            if size < self._at:
                self.skipped += self._at - size
                self._at = 0  # cut off, and written anew from the start
            piece = os.pread(self._fd, limit - len(data), self._at)
            self._at += len(piece)
            data += piece
            if not piece and not self._take_next():
                break
        return data

    def _take_next(self) -> bool:
        """Go on with the file that has the name now; return whether it is another one."""
        try:
            fd = _open_file(self._path, self._uid)
        except KernelError:
            self._retry()
            return False
        if os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            return False
        # Race: the last that was written to the old one came after it was read to its end.
        if os.fstat(self._fd).st_size > self._at:
            os.close(fd)
            return True
        self._leave_file()
        self._watch(fd)
        return True

    def _open(self) -> None:
        self._watch(_open_file(self._path, self._uid))

    def _watch(self, fd: int) -> None:
        self._fd, self._at = fd, 0
        # By its own name, which is not that of a link.
        path = os.readlink(f"/proc/self/fd/{fd}")
        try:
            self._number = self._watcher.add(path, self._on_change, IN_MODIFY | IN_ATTRIB)
        except KernelError:
            self._retry()  # it was moved away just now

    def _on_change(self) -> None:
        self._tell()

    def _retry(self) -> None:
        """Look once more soon: there is no file of that name, or one that is just being made."""
        self._loop.set_timer(self._key, self._loop.now() + RETRY, self._on_due)

    def _on_due(self) -> None:
        if self._fd < 0:
            try:
                self._open()
            except KernelError:
                self._retry()
                return
        self._tell()

    def _leave_file(self) -> None:
        if self._number >= 0:
            self._watcher.remove(self._number)
        if self._fd >= 0:
            os.close(self._fd)
        self._number = self._fd = -1
