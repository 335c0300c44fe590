"""A long random walk: masters and smart daemons come and go, pidfiles lie, and it stays in order.

After each burst of operations there is a quiet point: exactly one instance of each daemon runs, a
master says that it is up with that pid, its pidfile names it unless the walk itself has spoiled it,
and it is the one of the last quiet point unless the walk has killed it. No bystander ever gets a
signal, and no daemon sees another instance beside it: each holds a lock, or its port.

Environment: LOWSUPER_SOAK_SEED (a number, or `random`), LOWSUPER_SOAK_OPERATIONS.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from masters import (
    DEADLINE,
    RUNGS,
    Master,
    find_program,
    free_port,
    kill_all,
    rung_options,
    status_of,
)
from smart_tools import SOLE, Bystanders, Smart, ask_states, pid_up, show

SEED = os.environ.get("LOWSUPER_SOAK_SEED", "3")
OPERATIONS = int(os.environ.get("LOWSUPER_SOAK_OPERATIONS", "300"))
SOAKS = {"cgroup": OPERATIONS, "shim": OPERATIONS // 3, "pidns": OPERATIONS // 3}
BURSTS = (1, 1, 1, 2, 2, 3)
KEYS = "freq=5,max_throttle=20ms,stop_timeout=5"
CLASH = r"clash|Address already in use|failed to listen"


class Walk:
    """The walk: two places for a master, the daemons that they share, and what is known."""

    def __init__(self, masters, bystanders: Bystanders, *, seed: int, rung: str):
        self.masters, self.bystanders, self.random = masters, bystanders, random.Random(seed)
        self.directory = masters.directory
        port, memcached = free_port(), find_program("memcached")
        pidfiles = {name: self.directory / f"{name}.pid" for name in ("cache", "self", "fore")}
        journals = {name: self.directory / f"{name}.journal" for name in ("self", "fore")}
        self.journals = list(journals.values())
        self.daemons = [
            Smart("cache", pidfiles["cache"], str(pidfiles["cache"])),
            Smart("self", pidfiles["self"], str(journals["self"])),
            Smart("fore", pidfiles["fore"], str(journals["fore"])),
        ]
        commands = {
            "cache": f"{memcached} -d -P {pidfiles['cache']} -l 127.0.0.1 -p {port} -U 0 -u root",
            "self": f"{SOLE} {journals['self']} background pidfile={pidfiles['self']}",
            "fore": f"{SOLE} {journals['fore']}",
        }
        self.is_inner = rung == "pidns"  # what the daemons write into their pidfiles
        keys = f"{KEYS},{RUNGS[rung]}" if RUNGS[rung] else KEYS
        text = rung_options(rung)
        text += "".join(
            f"attach-daemon2 = cmd={command},pidfile={pidfiles[name]},name={name},{keys}"
            f"{',daemonize' if name == 'fore' else ''}\n"
            for name, command in commands.items()
        )
        self.files = [masters.write(text, f"{place}.ini") for place in "ab"]
        self.live: list[Master | None] = [None, None]
        self.all: list[Master] = []
        self.expected: dict[str, int] = {}  # pids of the last quiet point
        self.found: dict[str, int] = {}
        self.spoiled: set[str] = set()  # pidfiles that the walk has spoiled
        self.killed: set[str] = set()  # daemons that the walk has killed since
        self.done: list[str] = []

    # Operations.

    def launch(self, place: int, *, wait: bool = True) -> Master:
        master = self.live[place] = self.masters.launch(str(self.files[place]))
        self.all.append(master)
        if wait:
            master.wait_ready()
        return master

    def start(self, place: int) -> None:
        """Start a master where there is none: the first one, or a second one beside it."""
        if self.live[place] is None:
            self.launch(place)

    def kill_master(self, place: int) -> None:
        master = self.live[place]
        if master is not None:
            master.kill()
            self.live[place] = None

    def stop(self, place: int) -> None:
        master = self.live[place]
        if master is not None:
            assert master.stop() == 0, master.text
            self.live[place] = None

    def reload(self, place: int) -> None:
        master = self.live[place]
        if master is not None:
            master.signal(signal.SIGHUP)
            master.wait_line("lowsuper: reloaded")

    def restart(self, place: int) -> None:
        """Kill a master and start the next one at once; it may be killed before it is ready."""
        self.kill_master(place)
        master = self.launch(place, wait=False)
        if self.random.random() < 0.3:
            master._read(self.random.uniform(0.0, 0.2))
            self.kill_master(place)
            master = self.launch(place, wait=False)
        master.wait_ready()

    def kill_daemon(self, _: int) -> None:
        daemon = self.random.choice(self.daemons)
        self.killed.add(daemon.name)
        kill_all(daemon.running())

    def remove(self, _: int) -> None:
        self._spoil().unlink(missing_ok=True)

    def garble(self, _: int) -> None:
        text = self.random.choice(
            ["", "nonsense\n", "-1\n", "0\n", "99999999999\n", "\0\0", "12 34\n"]
        )
        self._spoil().write_text(text)

    def swap(self, _: int) -> None:
        """Have a pidfile name a live process that is not the daemon."""
        path = self._spoil()
        strangers = [one.pid for one in self.bystanders.all] + [1, os.getpid()]
        strangers += [master.pid for master in self.live if master is not None]
        strangers += [daemon.named() for daemon in self.daemons if daemon.pidfile != path]
        text = f"{self.random.choice(strangers)}\n"
        if self.random.random() < 0.5:
            path.write_text(text)
        else:
            other = path.with_suffix(".other")
            other.write_text(text)
            other.rename(path)

    def _spoil(self) -> Path:
        daemon = self.random.choice(self.daemons)
        self.spoiled.add(daemon.name)
        return daemon.pidfile

    # The walk.

    def run(self, operations: int) -> None:
        weighted = [
            (self.start, 5), (self.kill_master, 3), (self.stop, 2), (self.reload, 3),
            (self.restart, 3), (self.kill_daemon, 6), (self.remove, 2), (self.garble, 2),
            (self.swap, 3),
        ]  # fmt: skip
        choices, weights = zip(*weighted, strict=True)
        while len(self.done) < operations:
            for _ in range(self.random.choice(BURSTS)):
                (operation,) = self.random.choices(choices, weights)
                place = 0 if self.random.random() < 0.7 else 1
                self.done.append(f"{operation.__name__} {place}")
                operation(place)
            self.settle()

    def settle(self) -> None:
        """Come to a quiet point, and see that all is as it must be."""
        end = time.monotonic() + DEADLINE
        while wrong := self.find_wrong():
            assert time.monotonic() < end, wrong
            for master in self.live:
                if master is not None:
                    master._read(0.01)
        for daemon in self.daemons:
            pid = self.found[daemon.name]
            before = self.expected.get(daemon.name, 0)
            if before and daemon.name not in self.killed:
                assert pid == before, f"{daemon.name} is {pid} now, and nobody killed {before}"
            self.expected[daemon.name] = pid
            if self.names_right(daemon, pid):
                self.spoiled.discard(daemon.name)
        if self.masters_live():
            self.killed.clear()
        assert not self.bystanders.problems()

    def masters_live(self) -> list[Master]:
        return [master for master in self.live if master is not None]

    def find_wrong(self) -> str:
        """Return why this is no quiet point, or ""."""
        states = [ask_states(master, self.names) for master in self.masters_live()]
        for daemon in self.daemons:
            running = daemon.running()
            if len(running) > 1:
                return f"{daemon.name} runs more than once: {show(running)}"
            (self.found[daemon.name],) = running or {0}
            if not states:
                continue
            said = [state[daemon.name] for state in states]
            up = [pid for pid in map(pid_up, said) if pid]
            if len(up) != 1 or running != {up[0]}:
                return f"{daemon.name}: {said}, and there run {show(running)}"
            others = len(said) - said.count("another master governs its pidfile")
            if others != 1:
                return f"{daemon.name}: {said}"
            may_lie = daemon.name in self.spoiled and daemon.name != "fore"
            if not self.names_right(daemon, up[0]) and not may_lie:
                return f"{daemon.name} is {up[0]}, but its pidfile names {daemon.named()}"
        return ""

    def names_right(self, daemon: Smart, pid: int) -> bool:
        """Return whether a pidfile names this process, by its number as its writer sees it."""
        if not pid:
            return False
        if self.is_inner and daemon.name != "fore":
            pid = int(status_of(pid)["NSpid"].split()[-1])
        return daemon.named() == pid

    @property
    def names(self) -> list[str]:
        return [daemon.name for daemon in self.daemons]

    # Afterwards.

    def check_whole(self) -> None:
        """See what can only be seen of the whole walk."""
        for master in self.all:
            assert not master.has_said(CLASH), master.text
            assert not master.has_said("Traceback|Error"), master.text
        may_signal = any(master.has_said("not ready after") for master in self.all)
        for journal in self.journals:
            lines = {line.partition(" ")[2] for line in journal.read_text().splitlines()}
            assert lines == {"up"} or (may_signal and "clash" not in lines), journal.read_text()

    def end(self) -> None:
        """End everything, and see that nothing is left."""
        for place in (0, 1):
            self.stop(place)
        for daemon in self.daemons:
            kill_all(daemon.running())
        for place, path in enumerate(self.files):
            self.masters.write("attach-daemon = {D}/say_signals.py TERM\n", path.name)
            self.launch(place)
            self.stop(place)
        assert self.masters.survivors() <= {one.pid for one in self.bystanders.all}
        assert not self.masters.cgroups()
        kept = {path.suffix for path in (self.directory / "state").iterdir()}
        assert kept <= {".lock", ".record"}, kept
        assert len(list((self.directory / "state").iterdir())) <= 2 * len(self.daemons)

    def history(self) -> str:
        texts = [f"master {master.pid}:\n{master.text}" for master in self.all[-4:]]
        return "\n".join([*texts, "operations: " + ", ".join(self.done[-20:])])


@pytest.fixture
def bystanders(tmp_path):
    found = Bystanders(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize(("rung", "operations"), SOAKS.items())
def test_soak(masters, bystanders, rung, operations):
    """Hundreds of random operations on a real memcached and two other daemons."""
    seed = random.randrange(1 << 32) if SEED == "random" else int(SEED)
    masters.allow_survivors()
    for name in ("one", "two"):
        bystanders.add(name)
    walk = Walk(masters, bystanders, seed=seed, rung=rung)
    try:
        walk.run(operations)
        walk.check_whole()
        walk.end()
    except BaseException as error:
        done = f"LOWSUPER_SOAK_SEED={seed}, after {len(walk.done)} operations"
        error.add_note(f"{done}\n{walk.history()}")
        raise
