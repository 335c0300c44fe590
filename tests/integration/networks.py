"""Network namespaces that stand for a host, so that no test touches the machine's own network."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from jails import BUSYBOX
from masters import DEADLINE, kill_all, need


class Host:
    """A network namespace with loopback and what `setup` makes, and no way out of it."""

    def __init__(self, setup: str = "true"):
        need(os.path.exists(BUSYBOX), "busybox-static")
        script = f'ip() {{ {BUSYBOX} ip "$@"; }}; ip link set lo up; {setup}; echo made; read x'
        self._process = subprocess.Popen(
            ["unshare", "--net", BUSYBOX, "sh", "-ec", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE)
        answer = os.read(self._process.stdout.fileno(), 100) if ready else b""
        if answer != b"made\n":
            self.close()
            raise AssertionError("the network of the host could not be made")

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a program in this network."""
        return ("nsenter", f"--net={self.path}")

    def run(self, *words: str) -> str:
        """Run a program in this network and return its output."""
        command = [*self.prefix, *words]
        return subprocess.run(
            command, check=True, timeout=DEADLINE, stdout=subprocess.PIPE, text=True
        ).stdout

    def busybox(self, *words: str) -> str:
        return self.run(BUSYBOX, *words)

    def netlink(self, script: str) -> str:
        """Run Python with a socket `ip` of pyroute2's in this network."""
        return self.run(
            sys.executable, "-c", f"from pyroute2 import IPRoute\nip = IPRoute()\n{script}"
        )

    def links(self) -> set[str]:
        return links_of(self.pid)

    def wait_links(self, wanted: set[str]) -> None:
        """Wait until there are these links; the kernel tells it by netlink only, so look again."""
        end = time.monotonic() + DEADLINE
        while (found := self.links()) != wanted:
            assert time.monotonic() < end, f"{found} are not {wanted}"
            select.select([], [], [], 0.01)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._process.poll() is None:
            kill_all([self.pid])
        self._process.wait()
        self._process.stdout.close()


def links_of(pid: int) -> set[str]:
    """Return the names of the links in the network of a process."""
    _, _, *lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    return {line.partition(":")[0].strip() for line in lines}
