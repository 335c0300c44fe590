"""How long the loop is kept by clients who ask for the state of many daemons, all at once.

python tests/integration/figure_control.py [DAEMONS [CLIENTS]]
"""

from __future__ import annotations

import gc
import socket
import sys
import time

from lowsuper.chronicle import Chronicle
from lowsuper.events import DaemonStarted
from lowsuper.kernel.answers import MasterAnswers
from lowsuper.kernel.control import Server
from lowsuper.kernel.loop import Loop
from lowsuper.kernel.peer import Peer, Rights
from lowsuper.machine import Up
from lowsuper.master import Master
from lowsuper.model import Command, DaemonSpec, MasterSpec, Origin


class Stage:
    """Stands for the supervisor and the world of a master whose daemons all run."""

    def __init__(self, count: int):
        origin = Origin("test.ini", 1, "attach-daemon", "sleep")
        specs = [
            DaemonSpec(f"web{number}", Command("sleep 1000", ("sleep", "1000")), origin)
            for number in range(count)
        ]
        self.spec = MasterSpec("test", daemons=tuple(specs))
        self.specs = {spec.name: spec for spec in specs}
        self.states = {
            spec.name: Up(1, time.monotonic_ns(), 1, 1000 + number)
            for number, spec in enumerate(specs)
        }
        self.master = Master(phase="running")
        self.posted: list[object] = []
        self.chronicles = {name: Chronicle() for name in self.specs}
        for name, chronicle in self.chronicles.items():
            pid = self.states[name].pid
            chronicle.record(DaemonStarted(name, pid, 0, 0, "cgroup"), time.monotonic_ns())

    def post(self, event) -> None:
        self.posted.append(event)

    def leaf_of(self, name: str) -> str:
        return f"/sys/fs/cgroup/lowsuper-test/dumb/{name}.1"

    def status_of(self, name: str) -> None:
        return None


class Site:
    """A server on a loop of its own, and clients over socketpairs."""

    def __init__(self, daemons: int):
        self.stage, self.loop = Stage(daemons), Loop()
        self.answers = MasterAnswers(self.loop, self.stage, self.stage, name="test")
        self.server = Server(self.loop, self.answers, lambda: Rights(frozenset((0,))))
        self.turns: list[float] = []
        self.work: list[float] = []  # the same, less what other processes took of it

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.server.take(socket.socket(fileno=theirs.detach()), Peer(0, 0, None))
        ours.setblocking(False)
        return ours

    def turn(self) -> None:
        """Run one turn of the loop; there must be something for it to do."""
        begin, work = time.perf_counter(), time.thread_time()
        self.loop.run_turn(lambda: None)
        self.work.append(time.thread_time() - work)
        self.turns.append(time.perf_counter() - begin)

    def close(self) -> None:
        self.server.close()
        self.loop.close()


def measure(daemons: int, clients: int, request: bytes = b'{"do":"status"}\n') -> Site:
    """Let all clients ask at once and read their answers; return the site, which is closed."""
    site = Site(daemons)
    sockets = [site.connect() for _ in range(clients)]
    gc.freeze()  # as the master does
    for each in sockets:
        each.sendall(request)
    waiting = dict.fromkeys(sockets, b"")
    while waiting:
        site.turn()
        for each in list(waiting):
            try:
                data = each.recv(1 << 20)
            except BlockingIOError:
                continue
            assert data, "the server has closed the connection"
            waiting[each] = data[-2:]
            if data.endswith(b"}\n"):
                each.close()
                del waiting[each]
    gc.unfreeze()
    site.close()
    return site


def main() -> None:
    words = [int(word) for word in sys.argv[1:]]
    daemons, clients = (*words, *(1000, 100)[len(words) :])[:2]
    site = measure(daemons, clients)
    turns = sorted(site.turns)
    sys.stdout.write(
        f"{clients} clients ask for {daemons} daemons: {len(turns)} turns, "
        f"the longest {turns[-1] * 1000:.2f} ms ({max(site.work) * 1000:.2f} of the processor), "
        f"99 of 100 below {turns[len(turns) * 99 // 100] * 1000:.2f} ms, "
        f"all {sum(turns) * 1000:.0f} ms\n"
    )


if __name__ == "__main__":
    main()
