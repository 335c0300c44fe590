"""Running a real master in a test: its lines with a deadline, its end by pidfd, nothing left over."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

DEADLINE = 20.0
"""Seconds that a test waits for anything; far more than it takes, since machines are busy."""


class Master:
    """One `lowsuper` process and everything that it writes."""

    def __init__(self, *arguments: str, cwd: Path, env: dict[str, str] | None = None, **popen):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lowsuper", *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=popen.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **popen,
        )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._out = self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._partial = b""
        self.lines: list[str] = []
        self._seen = 0

    def _read(self, timeout: float) -> bool:
        """Take what there is within `timeout` seconds; False at the end of the output."""
        ready, _, _ = select.select([self._out], [], [], max(0.0, timeout))
        if not ready:
            return True
        data = os.read(self._out.fileno(), 65536)
        if not data:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        self.lines += [line.decode("utf-8", "replace") for line in lines]
        return True

    def wait_line(self, pattern: str, timeout: float = DEADLINE) -> re.Match[str]:
        """Return the match of the next line that has `pattern`; lines before it are consumed."""
        end = time.monotonic() + timeout
        while True:
            while self._seen < len(self.lines):
                line = self.lines[self._seen]
                self._seen += 1
                if match := re.search(pattern, line):
                    return match
            if time.monotonic() >= end or not self._read(end - time.monotonic()):
                raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.lines))

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Return the exit status once it has ended, as `subprocess` gives it."""
        end = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        while not poll.poll(0):
            if time.monotonic() >= end:
                raise AssertionError("the master did not end:\n" + "\n".join(self.lines))
            # Its pipe must not fill up meanwhile.
            self._read(min(0.05, end - time.monotonic()))
        code = self._process.wait()
        with contextlib.suppress(BlockingIOError):  # a daemon that survived may hold the pipe
            while self._read(0.0) and select.select([self._out], [], [], 0)[0]:
                pass
        return code

    def stop(self, timeout: float = DEADLINE) -> int:
        """Stop it with SIGTERM and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def close(self) -> None:
        """End it if it still runs; its daemons die with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._process.wait()
        self._out.close()
        os.close(self.pidfd)


def wait_gone(pid: int, timeout: float = DEADLINE) -> None:
    """Wait until no live process has this pid; a zombie counts as gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(timeout * 1000), f"process {pid} is still there"
    finally:
        os.close(pidfd)


def is_alive(pid: int) -> bool:
    """Return whether a process with this pid runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
