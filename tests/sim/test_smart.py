"""Random operations on smart daemons, their pidfiles and their masters.

At every turn nothing is started beside what a master launched earlier, and a stop or reload
signals nothing; whenever it is quiet, exactly one instance of each daemon runs, and the master
that governs it has it. A failure names its seed. To play one again:
`SEED=n pytest tests/sim/test_smart.py`.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from host import DEAD, STRANGER, Host, Program
from world import Behaviour, World, config, daemon

from lowsuper.machine import Backoff, Looking, Up
from lowsuper.units import SECOND

FRESH = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)
ROUNDS = 100
NAMES = "abc"


def pick(source, *halves):
    """Times are few, so that much falls on the same moment."""
    return source.choice(halves) * SECOND // 2


def pick_program(source):
    kind = source.randrange(12)
    stubborn = {
        "stops_after": source.choice([0, 0, SECOND, None]),
        "workers": source.choice([0, 0, 2]),
        "workers_stay": source.random() < 0.3,
        "workers_stop_after": source.choice([0, SECOND, None]),
        "cleans": source.random() < 0.7,
        "exec_after": pick(source, 0, 0, 0, 1, 8),
        "writes_after": pick(source, 0, 0, 1, 4, 5, 12),
    }
    forks = {
        "forks_after": pick(source, 0, 0, 1, 4),
        "launcher_after": pick(source, 0, 0, 1, 6),
        "launcher_status": source.choice([0, 0, 0, 256]),
    }
    if kind == 0:
        return Program(clone_errno=11)
    if kind == 1:
        return Program(fails=("chdir", 2), exec_after=pick(source, 0, 0, 1, 8))
    if kind == 2:
        return Program(lives=pick(source, 0, 0, 1), status=256, forks_after=20 * SECOND)
    if kind == 3:
        return Program(writes=source.choice(["never", "wrong", "dead"]), **stubborn)
    if kind == 4:
        return Program(writes=source.choice(["never", "wrong", "half"]), **stubborn, **forks)
    if kind in (5, 6):
        return Program(
            lives=pick(source, 0, 1, 4, 8, 20, 70), status=source.choice([0, 256]), **stubborn
        )
    if kind in (7, 8, 9):
        return Program(**stubborn, **forks)
    return Program(**stubborn)


def pick_daemon(source, name, *, plain):
    if plain:
        return daemon(name, stop_timeout=pick(source, 2, 6))
    return daemon(
        name,
        pidfile=f"/{name}.pid",
        freq=pick(source, 4, 8, 20),
        daemonize=source.random() < 0.3,
        notify_pid=source.random() < 0.2,
        stop_timeout=pick(source, 1, 2, 6),
        max_throttle=source.choice([None, None, 2 * SECOND]),
        control=source.random() < 0.03,
    )


class History:
    """A host, its masters, and what befalls them."""

    def __init__(self, seed):
        self.source = source = random.Random(seed)
        self.seed = seed
        self.host = Host(seed)
        names = NAMES[: source.choice([1, 1, 2, 3])]
        self.spec = config(
            *(
                pick_daemon(source, name, plain=index and source.random() < 0.2)
                for index, name in enumerate(names)
            )
        )
        self.smart = {
            spec.name: spec.pidfile for spec in self.spec.daemons if spec.pidfile is not None
        }
        self.scripts = {
            spec.name: [
                pick_program(source) if spec.pidfile else Behaviour()
                for _ in range(source.randrange(1, 8))
            ]
            for spec in self.spec.daemons
        }
        for spec in self.spec.daemons:
            if spec.daemonize:  # these write no pidfile, and stay in the foreground mostly
                self.scripts[spec.name] = [
                    self.foreground(program) for program in self.scripts[spec.name]
                ]
        self.worlds = []

    @staticmethod
    def foreground(program):
        return replace(program, writes="never", forks_after=None)

    @property
    def masters(self):
        return self.host.masters

    def start_master(self):
        if len(self.masters) < 2:
            self.host.log("a master starts")
            world = World(self.spec, self.seed, self.scripts, host=self.host)
            self.worlds.append(world)
            world.boot()

    def a_master(self):
        return self.source.choice(self.masters) if self.masters else None

    def operate(self):
        """Do one random thing."""
        source, host, world = self.source, self.host, self.a_master()
        name = source.choice(list(self.smart))
        path = self.smart[name]
        if world is not None and source.random() < 0.4:
            self.operate_on_master(world, name)
            return
        other = host.main(source.choice(list(self.smart.values())))
        swapped = other.pid if other else DEAD
        operations = (
            (host.kill_main, path),
            (host.kill_main, path, 0),
            (host.kill_any, path),
            (self.start_by_hand, name),
            (self.start_master,),
            (self.remount,),
            (self.blind,),
            (self.write, path, None),
            (self.write, path, source.choice([0, 1, STRANGER, DEAD])),
            (self.write, path, swapped),
            (self.upgrade, path, source.choice([0, 0, SECOND])),
        )
        what, *arguments = source.choice(operations)
        what(*arguments)

    def operate_on_master(self, world, name):
        operations = (
            (world.kill_master,),
            (self.kill_and_start, world),
            (world.terminate, self.source.choice([2, 15])),
            (world.reload, self.spec),
            (world.fifo, self.source.choice("rRq")),
            (world.touch, name),
            (world.touch, name),
        )
        what, *arguments = self.source.choice(operations)
        what(*arguments)

    def kill_and_start(self, world):
        world.kill_master()
        self.start_master()

    def remount(self):
        self.host.writable = not self.host.writable

    def blind(self):
        self.host.blind = not self.host.blind

    def write(self, path, number):
        """Remove, garble or swap a pidfile."""
        if not self.is_lost_without_pidfile(path, upgraded=False):
            self.host.write(path, number)

    def upgrade(self, path, late):
        if not self.is_lost_without_pidfile(path, upgraded=True):
            self.host.upgrade(path, late)

    def is_lost_without_pidfile(self, path, upgraded):
        """Return whether nobody could find what was started by hand, which has no kill domain."""
        return any(
            upgraded or self.host.records.get(path) != process.pid
            for process in self.host.living(path, ours=False)
        )

    def start_by_hand(self, name):
        states = [world.supervisor.states.get(name) for world in self.masters]
        if all(state is None or isinstance(state, Backoff) for state in states):
            self.host.start_by_hand(self.smart[name])

    def play(self):
        """Play some random operations, and see that all is well in the end."""
        self.start_master()
        for _ in range(self.source.randrange(3, 30)):
            self.host.at(pick(self.source, *range(80)), self.operate)
        self.host.run(45 * SECOND)
        self.recover()
        self.check_quiet()
        self.leave()
        return self

    def recover(self):
        """Let every program behave from now on, and see to it that there is a master."""
        for script in self.scripts.values():
            script[:] = [Behaviour() if isinstance(script[0], Behaviour) else Program()]
        for spec in self.spec.daemons:
            if spec.daemonize:
                self.scripts[spec.name][:] = [Program(writes="never")]
        self.host.writable, self.host.blind = True, False
        self.host.run(60 * SECOND)
        for process in self.host.processes.values():  # what is there has no surprises any more
            if process.alive and process.program.lives is not None:
                self.host.die(process, 9)
        if not self.masters:
            self.start_master()
        self.host.run(400 * SECOND)
        if not self.masters:  # a control daemon has ended meanwhile
            self.start_master()
            self.host.run(60 * SECOND)

    def check_quiet(self):
        host = self.host
        for name, path in self.smart.items():
            leaves = {process.leaf for process in host.living(path)}
            holders = [
                world for world in self.masters if isinstance(world.supervisor.states[name], Up)
            ]
            assert len(leaves) == 1, self.tail(f"{name} runs in {leaves}")
            assert len(holders) == 1, self.tail(f"{name} is up in {holders}")
            assert host.locks[path] == (holders[0], name), self.tail(f"the lock of {name}")
            state = holders[0].supervisor.states[name]
            main = host.main(path)
            assert main is not None, self.tail(f"{name} has no process")
            assert state.pid == main.pid, self.tail(f"{name} is {main.pid}, not {state.pid}")
            for world in self.masters:
                other = world.supervisor.states[name]
                held = isinstance(other, Looking) and other.held
                assert world is holders[0] or held, self.tail(f"{name} is held")

    def leave(self):
        """The last masters stop; their daemons run on, and the next master finds them."""
        before = {path: self.host.main(path).pid for path in self.smart.values()}
        launches = dict(self.host.launches)
        for world in tuple(self.masters):
            world.terminate(2)
        self.host.run(30 * SECOND)
        for world in self.worlds:
            control = any(spec.control for spec in self.spec.daemons)
            assert world.code in (0, None) or control, self.tail(f"exit code {world.code}")
        assert not self.masters, self.tail("a master is left")
        assert not self.host.locks, self.tail("locks are left")
        told = any(spec.notify_pid for spec in self.spec.daemons)
        if told:
            return
        assert self.mains() == before, self.tail("a daemon did not survive")
        self.start_master()
        self.host.run(SECOND)
        assert self.mains() == before, self.tail("a daemon was not found")
        assert self.host.launches == launches, self.tail("a second one was started")

    def mains(self):
        return {path: self.host.main(path).pid for path in self.smart.values()}

    def tail(self, text):
        lines = "\n".join(self.host.trace[-120:])
        states = [dict(world.supervisor.states) for world in self.masters]
        return f"seed {self.seed}: {text}\n{lines}\n{states}\n{self.spec.daemons}"


@pytest.mark.parametrize("seed", [*range(1, 21)])
def test_random_history_keeps_the_rules(seed):
    for number in range(ROUNDS):
        History(seed * 1000 + number).play()


def test_random_history_from_a_fresh_seed_keeps_the_rules():
    print(f"fresh seed: {FRESH}")  # noqa: T201  # shown on failure, and with -rP
    for number in range(1 if os.environ.get("SEED") else ROUNDS):
        History(FRESH + number).play()


@pytest.mark.parametrize("seed", [7, 77, 777])
def test_random_history_when_played_again_is_the_same(seed):
    first, second = History(seed).play(), History(seed).play()
    assert first.host.trace == second.host.trace


class Changes:
    """One master whose file is changed again and again, and its daemons, smart and plain.

    It is not stopped before the end, so that whatever it has left must be found by it again.
    """

    PATHS = ("/a.pid", "/b.pid", "c.pid", None)

    def __init__(self, seed):
        self.source = source = random.Random(seed)
        self.seed, self.host = seed, Host(seed)
        self.daemons = [self.pick(name, path) for name, path in zip("ab", self.PATHS, strict=False)]
        self.scripts = {name: [self.program() for _ in range(source.randrange(9))] for name in "ab"}
        self.world = World(self.spec(None), seed, self.scripts, host=self.host)

    def pick(self, name, path):
        source = self.source
        smart = {} if path is None else {"pidfile": path, "notify_pid": source.random() < 0.1}
        return daemon(
            name,
            freq=pick(source, 4, 8),
            stop_timeout=pick(source, 1, 2, 6),
            reload_signal=source.choice([None, 12]),
            **smart,
        )

    def program(self):
        source = self.source
        stops_after = source.choice([0, 0, SECOND, None])
        if source.random() < 0.3:
            return Behaviour(stops_after=stops_after, leaves=source.choice([0, 0, 2]))
        return replace(
            pick_program(source), stops_after=stops_after, writes=source.choice(["right", "half"])
        )

    def spec(self, directory):
        return config(*self.daemons, chdir=directory)

    def change(self, brutal):
        source = self.source
        paths = source.sample(self.PATHS, 2)
        for index, spec in enumerate(self.daemons):
            if source.random() < 0.6:
                paths[index] = spec.pidfile
        if paths[0] != paths[1] or paths[0] is None:
            self.daemons = [
                self.pick(spec.name, path) for spec, path in zip(self.daemons, paths, strict=True)
            ]
        self.world.next_spec = self.spec(source.choice([None, "/elsewhere"]))
        self.world.fifo("R" if brutal else "r")

    def operate(self):
        source, host = self.source, self.host
        path = source.choice([spec.pidfile for spec in self.daemons] + ["/a.pid"]) or "/b.pid"
        operations = (
            (self.change, False),
            (self.change, False),
            (self.change, True),
            (self.world.touch, source.choice("ab")),
            (host.kill_main, path),
            (host.kill_main, path, 0),
            (host.kill_any, path),
            (host.upgrade, path, source.choice([0, 0, SECOND])),
            (host.write, path, source.choice([None, None, 0, STRANGER, DEAD])),
        )
        what, *arguments = source.choice(operations)
        what(*arguments)

    def play(self):
        self.world.boot()
        for _ in range(self.source.randrange(3, 30)):
            self.host.at(pick(self.source, *range(80)), self.operate)
        self.host.run(45 * SECOND)
        for script in self.scripts.values():
            script[:] = [Behaviour(), Program()]
        for spec in self.daemons:  # what is there may have surprises left
            self.world.touch(spec.name)
        self.host.run(400 * SECOND)
        self.check()
        return self

    def check(self):
        """Each runs once, and is what its last reload has made of it."""
        wanted = {spec.name: spec.pidfile for spec in self.daemons}
        states = self.world.supervisor.states
        leaves = [process.leaf for process in self.host.processes.values() if process.alive]
        smart = [path for path in wanted.values() if path is not None]
        assert len(set(leaves)) == len(smart), self.tail("one each")
        assert sorted(self.host.locks) == sorted(smart), self.tail("the locks")
        for name, path in wanted.items():
            assert isinstance(states[name], Up), self.tail(f"{name} is not up")
            run = self.world.runs.get(name)
            plain = run is not None and not run.empty
            assert plain == (path is None), self.tail(f"{name} should be at {path}")
            if path is not None:
                assert states[name].pid == self.host.main(path).pid, self.tail(f"{name}")

    def tail(self, text):
        lines = "\n".join(self.host.trace[-120:])
        return f"seed {self.seed}: {text}\n{lines}\n{dict(self.world.supervisor.states)}"


@pytest.mark.parametrize("seed", [*range(1, 11)])
def test_random_changes_of_the_configuration_never_run_two_of_one(seed):
    for number in range(ROUNDS):
        Changes(seed * 1000 + number).play()


def test_random_changes_from_a_fresh_seed_never_run_two_of_one():
    print(f"fresh seed: {FRESH}")  # noqa: T201  # shown on failure, and with -rP
    for number in range(1 if os.environ.get("SEED") else ROUNDS):
        Changes(FRESH + number).play()
