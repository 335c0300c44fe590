"""What scripts in a guest have: results to the test, masters, the machine. See `guest.py`."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

SCALE = 10.0
DEADLINE = 2.0 * SCALE

PORT = int(os.environ.get("LOWSUPER_VM_PORT", "-1"))
"""Of the port for results, which only one can open at a time: init has it, and hands it down."""


def tell(**values: object) -> None:
    """Tell results: `Guest.wait` and `finish` have them."""
    data = json.dumps(values).encode() + b"\n"
    while data:
        data = data[os.write(PORT, data) :]


def hear() -> dict:
    """Return the next line that the test sends."""
    line = b""
    while not line.endswith(b"\n"):
        # As long as the host's end is not connected a read returns nothing.
        line += os.read(PORT, 1) or (time.sleep(0.01) or b"")
    return json.loads(line)


class Master:
    """A running lowsuper, started with a configuration."""

    def __init__(self, text: str, *arguments: str, name: str = "test", prefix: tuple = ()) -> None:
        """Start it; `text` is what follows [uwsgi], or a whole file."""
        self.path = Path(f"/tmp/{name}.ini")
        self.write(text)
        self._process = subprocess.Popen(
            [*prefix, "/usr/bin/lowsuper", str(self.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid
        self._out = self._process.stdout
        self.lines: list[str] = []
        self._partial = b""
        self._seen = 0

    def write(self, text: str) -> None:
        """Write its configuration anew."""
        self.path.write_text(text if text.lstrip().startswith("[") else "[uwsgi]\n" + text)

    def wait_line(self, pattern: str, timeout: float = DEADLINE) -> re.Match:
        """Return the match of its next line that has `pattern`; lines before it are consumed."""
        ends = time.monotonic() + timeout
        while True:
            while self._seen < len(self.lines):
                self._seen += 1
                if match := re.search(pattern, self.lines[self._seen - 1]):
                    return match
            if not self._read(ends - time.monotonic()):
                raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.lines))

    def wait_said(self, pattern: str) -> re.Match:
        """Return the first match of all its lines, also of those before; consumes nothing."""
        seen, self._seen = self._seen, 0
        try:
            return self.wait_line(pattern)
        finally:
            self._seen = seen

    def wait_started(self, name: str) -> int:
        """Return the pid of the daemon's next start."""
        return int(self.wait_line(rf"lowsuper: {re.escape(name)}: started, pid (\d+),")[1])

    def pid_of(self, name: str) -> int:
        """Return the pid of the daemon's last start so far, or of its first."""
        pattern = rf"lowsuper: {re.escape(name)}: started, pid (\d+),"
        self.wait_said(pattern)
        return int(re.findall(pattern, "\n".join(self.lines))[-1])

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return its exit status; what it wrote until then is in `lines`."""
        pidfd = os.pidfd_open(self.pid)
        ready, _, _ = select.select([pidfd], [], [], DEADLINE)
        os.close(pidfd)
        assert ready, "the master did not end:\n" + "\n".join(self.lines)
        # Daemons that it leaves running may hold its output.
        while self._read(0.0):
            pass
        return self._process.wait()

    def _read(self, timeout: float) -> bool:
        """Take what comes within that time; False: nothing did, or never will."""
        ready, _, _ = select.select([self._out], [], [], max(0.0, timeout))
        data = os.read(self._out.fileno(), 65536) if ready else b""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self.lines.append(line.decode("utf-8", "replace"))
            print(self.lines[-1], flush=True)  # noqa: T201  # for the console's log
        return bool(data)

    def stop(self) -> int:
        """Stop it; return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill it, and reap it."""
        self.signal(signal.SIGKILL)
        self._process.wait()


def wait_until(condition, what: str, timeout: float = DEADLINE) -> None:
    """Wait for what nothing tells of."""
    ends = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < ends, f"never: {what}"
        select.select([], [], [], 0.02)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def cgroup_of(pid: int) -> Path:
    """Return the directory of a process's cgroup."""
    text = Path(f"/proc/{pid}/cgroup").read_text()
    match = re.search(r"^0::(.*)$", text, re.MULTILINE)
    return Path("/sys/fs/cgroup" + match[1])
