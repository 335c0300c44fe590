"""The machine below the simulated masters: the clock, and all that survives a master.

A `Host` has the processes of smart daemons, their pidfiles, the records and locks of lowsuper.
A `Governor` is what one master's kernel side does with them: it answers Look and Name, and tells
of the end of processes, as `kernel.adoption` and `kernel.smart` do.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from itertools import count

from lowsuper.events import (
    Absent,
    Emptied,
    ExecOk,
    Exited,
    Found,
    Freed,
    HeldBy,
    NotNamed,
    PidfileTouched,
    Reaped,
    SpawnFailed,
    Unseen,
)
from lowsuper.machine import Down, Over, Stopping
from lowsuper.machine.states import AGAIN, CRASHED, UNREADY
from lowsuper.master import STOPPING
from lowsuper.units import SECOND

SIGKILL = 9
STRANGER = 7  # the pid of a process that has nothing to do with any daemon
DEAD = 99_999_999


@dataclass(frozen=True)
class Program:
    """What one launch of a smart daemon does; times are nanoseconds, None stands for never."""

    clone_errno: int = 0  # clone itself fails
    fails: tuple[str, int] | None = None  # step and errno of the helper's failure
    exec_after: int = 0
    forks_after: int | None = None  # it daemonizes itself after that time; None: foreground
    launcher_after: int = 0  # how long the launcher lives after it has forked
    launcher_status: int = 0
    writes: str = "right"  # its pidfile: right, never, wrong (a stranger), dead, half (then right)
    writes_after: int = 0
    cleans: bool = True  # removes its pidfile when it ends gracefully
    lives: int | None = None  # from execve until it ends by itself
    status: int = 0
    stops_after: int | None = 0  # after the stop signal
    workers: int = 0  # processes besides the main one
    workers_stay: bool = False  # when the main one ends
    workers_stop_after: int | None = 0  # after a signal that reaches them


@dataclass(eq=False)
class Process:
    """One process of a smart daemon."""

    pid: int
    path: str  # of its pidfile
    leaf: int  # its cgroup: one for each launch
    role: str  # launcher, main, worker, helper (before execve)
    program: Program
    born: int
    ours: bool  # a master launched it
    parent: object = None  # the master whose child it is
    alive: bool = True


@dataclass(eq=False)
class Life:
    """What a master knows of one run of a smart daemon."""

    name: str
    run: int
    path: str
    leaf: int
    spec: object
    launched: int = 0
    named: int = 0
    told: bool = False  # that the named or launched process ended
    over: bool = False  # that nothing is left
    outcome: bool = False  # of the start, told
    written: int = 0  # what was written into the pidfile
    asked: bool = False
    killed: bool = False


@dataclass(eq=False)
class Host:
    """Holds what is shared by masters; `masters` are those that live."""

    seed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.time = 1000 * SECOND
        self.trace: list[str] = []
        self.masters: list = []
        self.processes: dict[int, Process] = {}
        self.files: dict[str, int] = {}  # 0: garbage
        self.records: dict[str, int] = {}  # the pid that was named
        self.locks: dict[str, tuple[object, str]] = {}  # the master, and the daemon it is for
        self.waiters: dict[str, list] = {}
        self.writable = True
        self.blind = False  # looking at a pidfile fails now and then
        self.launches: dict[str, int] = {}
        self._heap: list[tuple[int, int, object]] = []
        self._serial = count()
        self._pids = count(101)
        self._leaves = count(1)

    # Time.

    def at(self, delay: int, what, *arguments) -> None:
        """Do something later, together with what else is due then."""
        heapq.heappush(
            self._heap, (self.time + delay, next(self._serial), lambda: what(*arguments))
        )

    def run(self, duration: int = 0, finished=lambda: False) -> None:
        """Let time pass; stop early when `finished` says so."""
        end = self.time + duration
        self.at(0, int)  # a turn for what was posted until now
        while self._heap and self._heap[0][0] <= end and not finished():
            self.time = self._heap[0][0]
            due = []
            while self._heap and self._heap[0][0] == self.time:
                due.append(heapq.heappop(self._heap)[2])
            self.random.shuffle(due)
            self.turn(due)
        if not finished():
            self.time = max(self.time, end)

    def turn(self, due: list) -> None:
        """Do what is due, in random portions."""
        for callback in due:
            callback()
            if self.random.random() < 0.3:
                self.settle()
        self.settle()

    def settle(self) -> None:
        for master in tuple(self.masters):
            if master in self.masters:
                master.settle()

    def log(self, text: str) -> None:
        self.trace.append(f"{self.time / SECOND:.3f} {text}")

    # Processes.

    def fork(self, path, leaf, role, program, *, ours=True, parent=None) -> Process:
        process = Process(
            next(self._pids), path, leaf, role, program, self.time, ours=ours, parent=parent
        )
        self.processes[process.pid] = process
        self.log(f"{path}: {role} {process.pid} begins in {leaf}")
        return process

    def living(self, path: str, *, ours: bool | None = None) -> list[Process]:
        """Return the live processes of a daemon."""
        return [
            process
            for process in self.processes.values()
            if process.alive and process.path == path and ours in (None, process.ours)
        ]

    def in_leaf(self, leaf: int) -> list[Process]:
        return [process for process in self.processes.values() if process.leaf == leaf]

    def main(self, path: str) -> Process | None:
        """Return the newest process that is the daemon as its program sees it."""
        mains = [process for process in self.living(path) if process.role == "main"]
        return mains[-1] if mains else None

    def execute(self, process: Process) -> None:
        """The program runs."""
        program = process.program
        if program.lives is not None:
            self.at(program.lives, self.end, process, program.status)
        if program.forks_after is None:
            self._become_main(process)
        else:
            process.role = "launcher"
            self.at(program.forks_after, self._daemonize, process)

    def _daemonize(self, launcher: Process) -> None:
        if launcher.alive:
            program = launcher.program
            self._become_main(
                self.fork(launcher.path, launcher.leaf, "main", program, ours=launcher.ours)
            )
            self.at(program.launcher_after, self.die, launcher, program.launcher_status)

    def _become_main(self, process: Process) -> None:
        process.role = "main"
        program = process.program
        for _ in range(program.workers):
            self.fork(process.path, process.leaf, "worker", program, ours=process.ours)
        number = {"right": process.pid, "wrong": STRANGER, "dead": DEAD, "half": 0}
        if program.writes in number:
            self.at(program.writes_after, self.write_of, process, number[program.writes])
        if program.writes == "half":
            self.at(program.writes_after + SECOND // 10, self.write_of, process, process.pid)

    def write_of(self, process: Process, number: int) -> None:
        if process.alive:
            self.write(process.path, number)

    def end(self, process: Process, status: int) -> None:
        """It ends by itself, or gracefully."""
        if not process.alive:
            return
        program = process.program
        if program.cleans and self.files.get(process.path) == process.pid:
            self.write(process.path, None)
        if process.role == "main" and not program.workers_stay:
            for worker in self.in_leaf(process.leaf):
                if worker.role == "worker":
                    self.at(0, self.die, worker, 15)
        self.die(process, status)

    def die(self, process: Process, status: int) -> None:
        if not process.alive:
            return
        process.alive = False
        self.log(f"{process.path}: {process.role} {process.pid} ends with {status}")
        for master in self.masters:
            master.governor.on_end(process, status)

    def signal(self, process: Process, signal: int) -> None:
        """A signal arrives that asks it to end."""
        program = process.program
        after = program.workers_stop_after if process.role == "worker" else program.stops_after
        if after is not None:
            self.at(after, self.end, process, signal)

    # Files.

    def write(self, path: str, number: int | None) -> None:
        """Somebody writes a pidfile, or removes it."""
        self.log(f"{path} holds {number}")
        if number is None:
            self.files.pop(path, None)
        else:
            self.files[path] = number
        for master in self.masters:
            self.at(self.random.choice([0, 0, SECOND // 20]), master.governor.on_write, path)

    def locked_by(self, master) -> list[str]:
        """Return the paths whose lock a master has."""
        return [path for path, (holder, _) in self.locks.items() if holder is master]

    def unlock(self, path: str, master, name: str) -> None:
        """A lock is let go; whoever waits may be quicker than who let go."""
        if self.locks.get(path) != (master, name):
            return
        del self.locks[path]
        waiters = list(self.waiters.get(path, []))
        if waiters and self.random.random() < 0.3:
            self.locks[path] = (waiters[0], waiters[0].governor.waiting[path][0])
        for other in waiters:
            self.at(0, other.governor.on_unlock, path)

    # What the tests do.

    def kill_main(self, path: str, status: int = SIGKILL) -> None:
        process = self.main(path)
        if process is not None:
            self.die(process, status)

    def kill_any(self, path: str) -> None:
        """Kill one process of a daemon."""
        living = self.living(path)
        if living:
            self.die(self.random.choice(living), SIGKILL)

    def upgrade(self, path: str, late: int = 0) -> None:
        """The daemon puts another process in its place; with `late` it ends first."""
        old = self.main(path)
        if old is None:
            return
        program = old.program
        new = self.fork(path, old.leaf, "main", program, ours=old.ours)
        if late:
            self.write(path, None)
            old.role = "old"
            self.die(old, 0)
            self.at(late, self.write_of, new, new.pid)
        else:
            old.role = "old"
            self.write(path, new.pid)
            self.at(self.random.choice([0, SECOND]), self.die, old, 0)

    def start_by_hand(self, path: str) -> None:
        """Somebody starts the daemon, if nothing of it is there."""
        if not self.living(path):
            process = self.fork(path, -next(self._leaves), "main", Program(), ours=False)
            self.write(path, process.pid)


class Governor:
    """The kernel side of one master for its smart daemons."""

    def __init__(self, world, host: Host) -> None:
        self.world, self.host = world, host
        self.lives: dict[str, Life] = {}
        self.waiting: dict[str, tuple[str, int]] = {}  # for the lock of a path: name and run
        self.absent: dict[str, int] = {}  # when a daemon was seen not to run

    def life_of(self, name: str, run: int) -> Life | None:
        life = self.lives.get(name)
        return life if life is not None and life.run == run else None

    def post(self, life: Life, event) -> None:
        self.world.log(f"{life.name}.{life.run}: {event}")
        self.world.post(life.name, event)

    def left(self, life: Life) -> bool:
        return any(process.alive for process in self.host.in_leaf(life.leaf))

    # What happens.

    def on_write(self, path: str) -> None:
        for spec in self.world.spec_now.daemons:
            if spec.pidfile == path:
                self.world.post(spec.name, PidfileTouched())

    def on_unlock(self, path: str) -> None:
        name, run = self.waiting.get(path, ("", 0))
        if name:
            self.world.post(name, Freed(run))

    def on_end(self, process: Process, status: int) -> None:
        for life in tuple(self.lives.values()):
            if not life.told and process.pid == (life.named or life.launched):
                self._tell_end(life, process, status)
            elif life.told and not life.over and not self.left(life):
                life.over = True
                self.post(life, Emptied(life.run))

    def _tell_end(self, life: Life, process: Process, status: int) -> None:
        life.told = True
        left = self.left(life)
        life.over = not left
        if not life.outcome:  # a race with the news that it began, or there is none
            life.outcome = True
            if process.role == "helper":
                failure = SpawnFailed(life.run, "", 0, "", cloned=True)
                self.host.at(0, self.post, life, failure)
        known = process.parent is self.world
        self.post(life, Exited(life.run, status if known else None, left))
        if not known and self.host.random.random() < 0.7:
            delay = self.host.random.choice([0, SECOND // 10, 2 * SECOND])
            self.host.at(delay, self.post, life, Reaped(life.run, status))

    # Effects.

    def spawn(self, spec, run: int, program: Program) -> SpawnFailed | None:
        host, path = self.host, spec.pidfile
        locked = host.locks.get(path) == (self.world, spec.name)
        self.world.rule(locked, f"{spec.name} is started without a lock")
        seen = self.absent.get(path) == host.time
        self.world.rule(seen, f"{spec.name}.{run} is started without a look")
        beside = host.living(path, ours=True)
        self.world.rule(not beside, f"{spec.name}.{run} is started beside {beside}")
        if program.clone_errno:
            return SpawnFailed(run, "clone", program.clone_errno, "", cloned=False)
        host.launches[path] = host.launches.get(path, 0) + 1
        leaf = next(host._leaves)
        process = host.fork(path, leaf, "helper", program, parent=self.world)
        life = Life(spec.name, run, path, leaf, spec, launched=process.pid)
        self.lives[spec.name] = life
        host.records.pop(path, None)
        if program.fails is not None:
            host.at(program.exec_after, self._fail, life, process)
        else:
            host.at(program.exec_after, self._execute, life, process)
        return None

    def _fail(self, life: Life, process: Process) -> None:
        if process.alive and process.program.fails is not None:
            step, errno = process.program.fails
            life.outcome = True
            failure = SpawnFailed(life.run, step, errno, "/x", cloned=True)
            self.host.at(0, self.post, life, failure)
            self.host.at(0, self.host.die, process, 127 << 8)

    def _execute(self, life: Life, process: Process) -> None:
        if process.alive:
            life.outcome = True
            ok = ExecOk(life.run, process.pid, 0, 0, "cgroup")
            self.host.at(0, self.post, life, ok)
            self.host.execute(process)

    def look(self, spec, run: int) -> Found | Absent | Unseen | HeldBy:
        host, path = self.host, spec.pidfile
        self.absent.pop(path, None)
        if host.blind and host.random.random() < 0.4:
            return Unseen(run, f"the pidfile {path} could not be looked at")
        us = (self.world, spec.name)
        if host.locks.get(path, us) != us:
            self.waiting[path] = (spec.name, run)
            waiters = host.waiters.setdefault(path, [])
            if self.world not in waiters:
                waiters.append(self.world)
            return HeldBy(run, "another master, or the daemon that had the path before")
        self._wait_no_more(path, spec.name)
        host.locks[path] = us
        life = self.life_of(spec.name, run)
        number = host.files.get(path)
        chosen, finding = self._decide(path, life, number)
        leaf = max((process.leaf for process in host.living(path, ours=True)), default=0)
        if chosen is None:
            if life is None and leaf:
                life = Life(spec.name, run, path, leaf, spec, told=True, outcome=True)
                self.lives[spec.name] = life
            left = life is not None and self.left(life)
            self.absent[path] = host.time
            return Absent(run, finding, left, number is not None)
        if life is not None and life.named == chosen.pid and finding:
            return Absent(run, finding, left=True, telling=True)
        if life is None:
            life = Life(spec.name, run, path, chosen.leaf, spec, outcome=True)
            life.leaf = chosen.leaf if chosen.ours else leaf
            self.lives[spec.name] = life
        if spec.daemonize:
            life.written = chosen.pid
            if finding:
                host.write(path, chosen.pid)
        return self._accept(life, chosen, finding or "named")

    def _decide(self, path, life: Life | None, number) -> tuple[Process | None, str]:
        """Return the process that is the daemon, and what is wrong with the pidfile."""
        recorded = self._alive(life.named if life else self.host.records.get(path, 0))
        named = self._alive(number or 0)
        if named is not None and named.path != path:
            named = None
        if named is not None and (recorded is None or named.leaf == recorded.leaf):
            return named, ""
        return recorded, f"the pidfile {path} holds {number}"

    def _alive(self, pid: int) -> Process | None:
        process = self.host.processes.get(pid)
        return process if process is not None and process.alive else None

    def _accept(self, life: Life, process: Process, why: str) -> Found:
        if life.named != process.pid:
            life.named, life.told, life.over = process.pid, False, False
        self.host.records[life.path] = process.pid
        return Found(life.run, process.pid, 0, 0, "cgroup", process.born, why)

    def name(self, spec, run: int) -> Found | NotNamed:
        life = self.life_of(spec.name, run)
        self.world.rule(life is not None, f"{spec.name}.{run} is named but is not there")
        process = self._alive(life.named or life.launched)
        if process is None:
            return Found(run, life.launched, 0, 0, "cgroup", self.host.time, "")
        if not self.host.writable:
            return NotNamed(run, f"the pidfile {life.path} cannot be written")
        self.host.write(life.path, process.pid)
        life.written = process.pid
        return self._accept(life, process, "written")

    def unname(self, spec, run: int) -> None:
        life = self.lives.get(spec.name)
        self.world.rule(life is None or not self.left(life), f"{spec.name}: unnamed alive")
        if life is not None and life.written and self.host.files.get(life.path) == life.written:
            self.host.write(life.path, None)

    def leave(self, spec, run: int) -> None:
        life = self.lives.pop(spec.name, None)
        if life is not None and self.left(life):
            self._check_next(spec)
        self._wait_no_more(spec.pidfile, spec.name)
        self.host.unlock(spec.pidfile, self.world, spec.name)

    def _check_next(self, spec) -> None:
        """What is left running must be where its next instance looks for it."""
        stops = self.world.supervisor.master.phase == STOPPING
        left = stops or not self.is_changed(spec.name, spec.pidfile)
        self.world.rule(left, f"{spec.name} is left where it will not be looked for")

    def _wait_no_more(self, path: str, name: str) -> None:
        if self.waiting.get(path, ("", 0))[0] != name:
            return
        del self.waiting[path]
        waiters = self.host.waiters.get(path, [])
        if self.world in waiters:
            waiters.remove(self.world)

    def signal(self, life: Life, signal: int) -> None:
        """Signal the named process; one that has ended: whatever is there of it."""
        state = self.world.state(life.name)
        told = isinstance(state, Down) and life.spec.notify_pid
        ends = isinstance(state, Stopping) and (
            state.then in (AGAIN, CRASHED, UNREADY) or self.is_changed(life.name, life.path)
        )
        self.world.rule(
            told or ends or life.asked, f"{life.name}.{life.run} is signalled in {state}"
        )
        if isinstance(state, Stopping) and state.then == AGAIN:
            asked = self.world.requested.get(life.name, -1)
            self.world.rule(asked >= life_began(self.host, life), "restarted unasked")
        if ends and not life.asked:
            life.asked = True
            self.host.at(life.spec.stop_timeout + 1, self._check_deadline, life)
        process = self._alive(life.named) or self._alive(life.launched)
        if life.named and self._alive(life.named) is None:
            process = None
        targets = [process] if process else self.host.in_leaf(life.leaf)
        for target in targets:
            if target.alive and target.role != "helper" and not (told and signal == 1):
                self.host.signal(target, signal)

    def is_changed(self, name: str, path: str) -> bool:
        """Return whether the daemon's next instance is not looked for at this path."""
        wanted = {spec.name: spec.pidfile for spec in self.world.spec_now.daemons}
        moved = self.world.relocated and not path.startswith("/")
        return name in wanted and (moved or wanted[name] != path)

    def _check_deadline(self, life: Life) -> None:
        gone = not self.left(life) and self._alive(life.named) is None
        held = self.lives.get(life.name) is life
        self.world.rule(gone or life.killed or not held, f"{life.name} was not killed in time")

    def kill(self, life: Life) -> None:
        state = self.world.state(life.name)
        self.world.rule(isinstance(state, Stopping), f"{life.name} is killed in {state}")
        self.world.rule(
            state.then in (AGAIN, CRASHED, UNREADY) or life.asked or not life.named,
            f"{life.name} is killed by a stop",
        )
        life.killed = True
        self.host.at(0, self._die, life)

    def _die(self, life: Life) -> None:
        """Everything that is in its cgroup by now ends, and the named process."""
        targets = self.host.in_leaf(life.leaf)
        self.host.random.shuffle(targets)
        for target in targets:
            self.host.die(target, SIGKILL)
        process = self._alive(life.named)
        if process is not None:
            self.host.die(process, SIGKILL)

    # Rules.

    def audit(self) -> None:
        for name, state in self.world.supervisor.states.items():
            if isinstance(state, Down | Over):
                self.world.rule(name not in self.lives, f"{name} is down but held")
        held = set(self.host.locked_by(self.world))
        wanted = {
            daemon.spec.pidfile
            for daemon in self.world.supervisor._daemons.values()
            if not isinstance(daemon.state, Down)
        }
        self.world.rule(held <= wanted, f"locks are held for nothing: {held - wanted}")

    def drop(self) -> None:
        """The master is gone: so are its locks, and what had not begun."""
        for waiters in self.host.waiters.values():
            if self.world in waiters:
                waiters.remove(self.world)
        for path in self.host.locked_by(self.world):
            self.host.unlock(path, *self.host.locks[path])
        assert not self.host.locked_by(self.world)
        for process in self.host.processes.values():
            if process.parent is self.world and process.alive and process.role == "helper":
                process.alive = False
        self.lives.clear()
        self.waiting.clear()


def life_began(host: Host, life: Life) -> int:
    """Return when a run began, or was found."""
    process = host.processes.get(life.named or life.launched)
    return process.born if process is not None else 0
