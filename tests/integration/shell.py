"""Typing commands: what they print into a pipe and on a terminal, and their exit code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

PROGRAM = [sys.executable, "-m", "lowsuper"]
DEADLINE = 20.0


class Shell:
    """Types commands."""

    def __init__(self, runtime: Path):
        self.env = {**os.environ, "LOWSUPER_RUNTIME_DIR": str(runtime), "TERM": "xterm"}
        for name in ("NO_COLOR", "LOWSUPER_SOCKET", "LOWSUPER_INSTANCE"):
            self.env.pop(name, None)

    def pipe(self, *words: str, **env: str) -> subprocess.CompletedProcess:
        """Return what a command prints into pipes."""
        return subprocess.run(
            [*PROGRAM, *words],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    @contextlib.contextmanager
    def terminal(self, *words: str, columns: int = 120, rows: int = 24, **env: str):
        """Start a command in a terminal."""
        session = Terminal([*PROGRAM, *words], self.env | env, columns, rows)
        try:
            yield session
        finally:
            session.close()

    def show(self, *words: str, **keywords) -> tuple[int, str]:
        """Return the exit code of a command and what it prints on a terminal."""
        with self.terminal(*words, **keywords) as session:
            return session.wait()


class Terminal:
    """A pseudo terminal with a command in it."""

    def __init__(self, command: list[str], env: dict[str, str], columns: int, rows: int):
        self.fd, inner = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            command, env=env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, end: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"nothing comes any more after:\n{self.text}"
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # EIO: nobody has the other side any more
            return False
        self.text += data.decode().replace("\r\n", "\n")
        return bool(data)

    def wait_text(self, pattern: str) -> str:
        """Return what was printed up to the pattern, and forget it."""
        end = time.monotonic() + DEADLINE
        while (match := re.search(pattern, self.text)) is None:
            assert self.read(end), f"no {pattern!r} in:\n{self.text}"
        found, self.text = self.text[: match.end()], self.text[match.end() :]
        return found

    def wait(self) -> tuple[int, str]:
        end = time.monotonic() + DEADLINE
        while self.read(end):
            pass
        return self.process.wait(DEADLINE), self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
