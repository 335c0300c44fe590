"""A terminal with an interactive shell, typed at by a test."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time

from masters import DEADLINE


class Terminal:
    """A terminal with a shell on it that has job control."""

    def __init__(self):
        self.fd, tty = os.openpty()
        fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
        # That what is typed is not shown makes what is read unambiguous.
        modes = termios.tcgetattr(tty)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(tty, termios.TCSANOW, modes)
        script = "import fcntl,os,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0);os.execv(*{})"
        self.shell = subprocess.Popen(
            [sys.executable, "-c", script.format(("/bin/sh", ["sh", "-i"]))],
            stdin=tty,
            stdout=tty,
            stderr=tty,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "PS1": "OUTER$ ", "TERM": "dumb"},
        )
        os.close(tty)
        self._seen = b""
        self.expect("OUTER\\$ ")

    def type(self, text):
        os.write(self.fd, text.encode())

    def expect(self, pattern):
        """Return the match of the next output with `pattern`, what comes before it included."""
        end = time.monotonic() + DEADLINE
        while not (match := re.search(pattern.encode(), self._seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self._seen!r}"
            self._seen += os.read(self.fd, 65536)
        self._seen = self._seen[match.end() :]
        return match

    def close(self):
        os.close(self.fd)
        self.shell.wait(DEADLINE)


def read_until(fd, wanted):
    seen = b""
    end = time.monotonic() + DEADLINE
    while wanted not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, seen
        seen += os.read(fd, 65536)
