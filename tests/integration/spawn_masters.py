"""Running `spawn_master.py` and looking at what its end leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from spawning import read_all, read_exactly, wait_for


class SpawnMaster:
    """A master process with one daemon; a context manager that leaves nothing behind."""

    def __init__(self, **options) -> None:
        self.life, life_writer = os.pipe()
        asks_reader, self._asks = os.pipe()
        high = [os.dup2(fd, 100 + n) for n, fd in enumerate((life_writer, asks_reader))]
        os.close(life_writer)
        os.close(asks_reader)
        # The master finds them as 3 and 4: a shell moves them, and is replaced by Python.
        script = f'exec 3>&{high[0]} 4<&{high[1]} {high[0]}>&- {high[1]}<&-; exec "$@"'
        code = Path(__file__).with_name("spawn_master.py")
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, "bash", sys.executable, str(code), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=high,
        )
        for fd in high:
            os.close(fd)
        self._pidfds: list[int] = []
        self.pid = self._process.pid
        self.daemon = self.child = self.guard = 0

    def __enter__(self) -> SpawnMaster:
        wait_for(self._process.stdout.fileno())
        line = self._process.stdout.readline()
        assert line, "the master did not come up"
        self.daemon, self.child, self.guard = json.loads(line)
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        for fd in (self._asks, self.life, *self._pidfds):
            if fd >= 0:
                os.close(fd)

    def open_pidfd(self, pid: int) -> int:
        """Return a pidfd, which the end of the context closes."""
        self._pidfds.append(os.pidfd_open(pid))
        return self._pidfds[-1]

    def kill(self) -> None:
        """SIGKILL the master, and wait until it is dead."""
        self._process.kill()
        self._process.wait(20)

    def expect_three(self) -> None:
        """Wait until daemon, child and grandchild run."""
        assert read_exactly(self.life, 3) == b"xxx"

    def expect_end(self) -> None:
        """Wait until none of them is left: all hold the pipe."""
        assert read_all(self.life) == b""

    def ask(self) -> None:
        """Have the echoing daemon answer."""
        os.write(self._asks, b"y\n")
        assert read_exactly(self.life, 2) == b"y\n"

    def stop_asking(self) -> None:
        """Let the echoing daemon end."""
        os.close(self._asks)
        self._asks = -1
