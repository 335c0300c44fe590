"""Daemons that do what a test tells them: tests/daemons/puppet.py."""

from __future__ import annotations

import os

from masters import DAEMONS


class Puppet:
    """The strings of one daemon: it must be part of a configuration, by `line`."""

    def __init__(self, directory, name="puppet"):
        self.name = name
        self._fifo = directory / f"{name}.fifo"
        os.mkfifo(self._fifo)
        self._fifo.chmod(0o666)
        self._fd = os.open(self._fifo, os.O_RDWR)  # what is written waits for its reader

    @property
    def command(self):
        return f"{DAEMONS}/puppet.py {self._fifo} {self.name}"

    def line(self, keys="", command=None):
        keys = f",{keys}" if keys else ""
        return f"attach-daemon2 = name={self.name},cmd={command or self.command}{keys}\n"

    def tell(self, *words):
        """Write a command, and do not wait for anything."""
        os.write(self._fd, f"{' '.join(map(str, words))}\n".encode())

    def do(self, master, *words):
        """Return what it says when it has done something."""
        self.tell(*words)
        return master.wait_output(rf"^done {words[0]} (.*)$")[1]

    def close(self):
        os.close(self._fd)
