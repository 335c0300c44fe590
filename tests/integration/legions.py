"""Legions of real masters, each in a network of its own, on a wire that can be cut.

The daemon of each legion is `sole.py`: it holds a lock for as long as it lives, and writes `clash`
to a journal when another one ran beside it. That journal is the proof; nothing that a master says
is.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

from masters import DEADLINE, Master, Masters, children_of, kill_all, need
from wires import MULTICAST, Wire

SOLE = Path(__file__).with_name("sole.py")
DAEMON = Path(sys.executable).name
"""The name that the daemon gets from its program."""
PORT = 9191
SECRET = "one secret for all that is long enough"
FREQ, TOLERANCE = 1, 5
"""Seconds; a fifth of what they usually are."""


class Uwsgi(Master):
    """A node that is uWSGI itself."""

    program = ()

    def wait_ready(self) -> Uwsgi:
        self.wait_output("legion manager thread enabled")
        return self


def uwsgi_binary() -> str:
    """Return the uWSGI to compare with: TEST_UWSGI, or Debian's."""
    path = os.environ.get("TEST_UWSGI") or shutil.which("uwsgi-core") or shutil.which("uwsgi")
    need(path is not None, "uWSGI (uwsgi-core)")
    return path


class Journal:
    """What the daemons of a legion have written."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def lines(self) -> list[list[str]]:
        """One list of words per line: the pid, then what happened to it."""
        if not self.path.exists():
            return []
        return [line.split() for line in self.path.read_text().splitlines()]

    @property
    def pids(self) -> list[int]:
        """Return the pids of the daemons that came up, in their order."""
        return [int(words[0]) for words in self.lines if words[1] == "up"]

    def wait(self, count: int, timeout: float = DEADLINE) -> int:
        """Wait until that many daemons have come up, and return the pid of that one."""
        end = time.monotonic() + timeout
        while len(self.pids) < count:
            assert time.monotonic() < end, f"no {count}. start in {self.lines}"
            select.select([], [], [], 0.01)
        return self.pids[count - 1]

    def check(self) -> None:
        """Assert that there were never two at once."""
        assert not [words for words in self.lines if words[1] == "clash"], self.lines


class Legion:
    """Nodes of one legion. `start` makes one."""

    def __init__(self, masters: Masters, wire: Wire, **options: object):
        """Begin without a node.

        Args:
            masters: starts the masters.
            wire: connects the nodes.
            options: of `configure`, for all nodes.
        """
        self.masters, self.wire, self.options = masters, wire, options
        self.journal = Journal(masters.directory / "journal")
        self.nodes: dict[int, Master] = {}

    def configure(
        self,
        number: int,
        *,
        valor: int = 10,
        quorum: int = 2,
        freq: int = FREQ,
        tolerance: int = TOLERANCE,
        cipher: str = "aes-256-cbc",
        secret: str = SECRET,
        unicast: bool = False,
        ipv6: bool = False,
        smart: bool = False,
        words: str = "end=TERM",
        more: str = "",
    ) -> str:
        """Return the configuration of a node."""
        places = self.wire.places

        def address(each: int) -> str:
            place = places[each]
            return f"[{place.address6}]:{PORT}" if ipv6 else f"{place.address}:{PORT}"

        if unicast:
            lines = [f"legion = l {address(number)} {valor} {cipher}:{secret.replace(' ', '-')}"]
            lines += [f"legion-node = l {address(each)}" for each in places if each != number]
        else:
            group = f"[ff15::91]:{PORT}" if ipv6 else f"{MULTICAST}:{PORT}"
            lines = [f"legion-mcast = l {group} {valor} {cipher}:{secret.replace(' ', '-')}"]
        lines += [
            f"legion-quorum = l {quorum}",
            f"legion-freq = {freq}",
            f"legion-tolerance = {tolerance}",
        ]
        command = f"{sys.executable} -I -S {SOLE} {self.journal.path} {words}"
        pidfile = f"{self.masters.directory}/sole-{number}.pid"
        if smart:
            lines.append(f"legion-smart-attach-daemon = l {pidfile} {command} pidfile={pidfile}")
        else:
            lines.append(f"legion-attach-daemon = l {command}")
        return "\n".join(["[lowsuper]", *lines, more, ""])

    def start(self, number: int, **options: object) -> Master:
        """Start the master of a node; wait until it has done what it has to do alone."""
        text = self.configure(number, **{**self.options, **options})
        node = self.masters.begin(
            text, name=f"node{number}.ini", prefix=self.wire.places[number].prefix
        )
        self.nodes[number] = node
        return node.wait_ready()

    def start_uwsgi(self, number: int, **options: object) -> Master:
        """Start a node that is uWSGI; its daemon is its own process group's leader."""
        text = self.configure(number, **{**self.options, **options})
        text = text.replace("[lowsuper]", "[uwsgi]\nmaster = true")
        text = text.replace(f"l {sys.executable}", f"l exec {sys.executable}")
        path = self.masters.directory / f"node{number}.ini"
        path.write_text(text)
        node = Uwsgi(
            uwsgi_binary(),
            str(path),
            cwd=self.masters.directory,
            prefix=self.wire.places[number].prefix,
        )
        self.nodes[number] = self.masters.adopt(node)
        return node.wait_ready()

    def start_all(self, **options: object) -> None:
        for number in self.wire.places:
            self.start(number, **options)

    def agent_of(self, number: int) -> int:
        """Return the pid of a node's agent."""
        for pid in children_of(self.nodes[number].pid):
            if b"lowsuper.legion.agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError(f"node {number} has no agent")

    def lord(self) -> int:
        """Return the number of the node whose daemon runs."""
        pid = self.journal.pids[-1]
        for number, node in self.nodes.items():
            if pid in node.family():
                return number
        for node in self.nodes.values():
            node.drain()
        texts = "\n".join(node.text for node in self.nodes.values())
        raise AssertionError(f"{pid} is of no node: {self.journal.lines}\n{texts}")

    def close(self) -> None:
        """End all nodes, and what a uWSGI leaves behind."""
        originals = [node for node in self.nodes.values() if isinstance(node, Uwsgi)]
        for node in originals:
            node.kill_if_alive()
        for node in originals:
            kill_all(node.family())
        self.masters.end()

    def others(self, number: int) -> list[int]:
        return [each for each in self.nodes if each != number]


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
