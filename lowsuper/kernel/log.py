"""The master's own lines and where they go: standard error, or the log file of the whole tree.

With a log file it takes the place of standard output and error, so that the daemons started from
then on write there too, as in uWSGI.
"""

from __future__ import annotations

import os
import time

from lowsuper.errors import KernelError
from lowsuper.kernel.sink import Sink, open_log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.loop import Loop

PREFIX = "lowsuper: "
LAST_PATIENCE = 1.0  # seconds, when everything has ended


class Log:
    """Puts date and name in front of each line, or makes it JSON, and hands it to a sink."""

    def __init__(self, date_format: str | None = None, line_format: str = "text") -> None:
        """Write to standard error.

        Args:
            date_format: of strftime(3), None for no date.
            line_format: text or json; a line of JSON always has its time.
        """
        self._encode: Callable[[object], str] | None = None
        self._choose(date_format, line_format)
        self.path: str | None = None  # absolute, of the log file
        self.tap: list[str] | None = None  # gets all lines besides, while somebody asks for them
        self.is_poured = False  # the log process writes to it: see `pour`
        self._sink = Sink(2)

    def attach(self, loop: Loop) -> None:
        """Let the loop wait for slow readers."""
        self._sink.attach(loop)

    def _choose(self, date_format: str | None, line_format: str) -> None:
        self.date_format, self._encode = date_format, None
        if line_format == "json":
            from lowsuper.wire import encode

            self._encode = encode

    def put(self, line: str, **more: str) -> None:
        """Add one line; it is written by `flush`. `more` is for those who read JSON."""
        if self.tap is not None:
            self.tap.append(line)
        if self._encode is not None:
            now = time.time_ns()
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
            line = self._encode(
                {
                    "time": f"{when}.{now // 1_000_000 % 1000:03}Z",
                    "monotonic": time.monotonic_ns() / 1e9,
                    "pid": os.getpid(),
                    **more,
                    "message": line,
                }
            )
        elif self.date_format is not None:
            line = f"{time.strftime(self.date_format)} - {PREFIX}{line}"
        else:
            line = PREFIX + line
        self._sink.put(line)

    def flush(self) -> None:
        """Write what there is, without waiting for a reader."""
        self._sink.flush()

    def drain(self) -> None:
        """Write the last lines; a slow reader is waited for, for a moment."""
        self._sink.drain(LAST_PATIENCE)

    def open(self, path: str) -> None:
        """Let `path` take the place of standard output and error.

        Raises:
            KernelError: it cannot be opened; nothing has changed.
        """
        path = os.path.abspath(path)
        try:
            fd = open_log(path)
        except OSError as error:
            raise KernelError("logto", error.errno or 0, path) from error
        self.flush()
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
        self._sink.redirect(2)
        self.path, self.is_poured = path, False

    def pour(self, take_fd: int) -> None:
        """Write to a FIFO, whose reader fills the log file, instead of to the file itself."""
        self.flush()
        os.dup2(take_fd, 1)
        os.dup2(take_fd, 2)
        os.close(take_fd)
        self._sink.redirect(2)
        self.is_poured = True

    def use(self, path: str | None, date_format: str | None, line_format: str = "text") -> None:
        """Take what a new configuration says; without a path the file stays what it is.

        Raises:
            KernelError: the file cannot be opened; nothing has changed.
        """
        if path is not None and os.path.abspath(path) != self.path:
            self.open(path)
        self._choose(date_format, line_format)

    def reopen(self, rotate: bool) -> None:
        """Open the log file again, for log rotation; with `rotate` move the old one aside first.

        The old one becomes `PATH.UNIXTIME`, as in uWSGI. Daemons that run keep the file that
        they have. Without a log file there is nothing to do, which is said.
        """
        if self.path is None:
            self.put("there is no log file to open again")
            return
        try:
            if rotate:
                os.rename(self.path, f"{self.path}.{int(time.time())}")
            self.open(self.path)
        except OSError as error:
            self.put(f"log file not opened again: {error}")
