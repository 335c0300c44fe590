"""A world without a kernel: a virtual clock, scripted processes and a seeded order of events.

`World` implements `supervisor.Effects`, and the real `Supervisor` runs in it. What is due at the
same time comes in a random order and in random portions per turn, so that two reports of one
turn can pass each other as they can in epoll. The world checks what must hold whatever happens,
at every turn; a broken rule raises `RuleError` with the seed and the trace.

A world is one master. What survives it is in its `Host`, which several may share, at the same
time or one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from host import Governor, Host, Program

from lowsuper.events import (
    Boot,
    DaemonStuck,
    Emptied,
    ExecOk,
    Exited,
    FifoByte,
    HookEnded,
    MasterReloads,
    ReloadTouched,
    Signalled,
    SpawnFailed,
    Timer,
    Touched,
)
from lowsuper.machine import Down, Over, Starting, Up
from lowsuper.machine.states import ASKING, DOUBTING
from lowsuper.master import ENDED
from lowsuper.model import Command, DaemonSpec, Exec, Hook, MasterSpec, Origin, fill_in
from lowsuper.supervisor import Supervisor
from lowsuper.units import SECOND

SIGKILL = 9
FOREVER = None
ORIGIN = Origin("sim.ini", 1, "attach-daemon", "")


@dataclass(frozen=True)
class Behaviour:
    """What one run of a program does; times are nanoseconds, None stands for never."""

    clone_errno: int = 0  # clone itself fails
    fails: tuple[str, int] | None = None  # step and errno of the helper's failure
    exec_after: int | None = 0
    lives: int | None = FOREVER  # from execve until it ends by itself
    status: int = 0
    stops_after: int | None = 0  # after the stop signal
    leaves: int = 0  # processes that outlive it
    leaves_stop_after: int | None = 0  # after the stop signal
    dies_after: int | None = 0  # after SIGKILL; late: in a system call that does not end
    storms: bool = False  # forks a process that ignores signals at each signal


class RuleError(AssertionError):
    """A rule was broken."""


@dataclass
class Run:
    """One life of one daemon."""

    name: str
    run: int
    behaviour: Behaviour
    spec: DaemonSpec
    born: int
    main: bool = True
    ran: bool = False
    told: bool = False  # the outcome of its start
    children: int = 0
    killed: bool = False
    asked: int = 0

    @property
    def empty(self) -> bool:
        return not self.main and not self.children


def daemon(name: str, **fields) -> DaemonSpec:
    return DaemonSpec(name, Command(name, (name,)), ORIGIN, **fields)


def hook(phase: str, text: str = "true") -> Hook:
    deed = Exec(Command(text, (text,)))
    return Hook(phase, deed, Origin("sim.ini", 1, f"exec-{phase}", text))


def config(*daemons: DaemonSpec, **fields) -> MasterSpec:
    return fill_in(MasterSpec("sim", daemons=daemons, **fields))


@dataclass(eq=False)
class World:
    """Performs actions on scripted processes. `scripts` maps a name to one behaviour per run."""

    spec: MasterSpec
    seed: int = 0
    scripts: dict[str, list[Behaviour]] = field(default_factory=dict)
    hooks: dict[str, tuple[int | None, int]] = field(default_factory=dict)  # text: time, status
    audited: bool = True
    host: Host | None = None

    def __post_init__(self) -> None:
        if self.host is None:
            self.host = Host(self.seed)
        self.host.masters.append(self)
        self.governor = Governor(self, self.host)
        self.random = self.host.random
        self.notes: list[tuple[int, object]] = []
        self.done: list[object] = []  # what concerned the master's own process
        self.code: int | None = None
        self.finished_at = 0
        self.next_spec: MasterSpec | None = self.spec
        self.runs: dict[str, Run] = {}
        self.abandoned: list[Run] = []
        self.spawned: dict[str, list[int]] = {}
        self.requested: dict[str, int] = {}
        self.timers: dict[str, tuple[int, int]] = {}
        self.hook: Hook | None = None
        self.dead = False
        self.relocated = False  # to another directory, by the last reload
        self.supervisor = Supervisor(self.spec, self)

    # What the tests do.

    def boot(self) -> World:
        self.supervisor.post(Boot())
        self.host.settle()
        return self

    @property
    def time(self) -> int:
        return self.host.time

    @property
    def trace(self) -> list[str]:
        return self.host.trace

    def at(self, delay: int, what, *arguments) -> None:
        """Do something later, together with what else is due then."""
        self.host.at(delay, what, *arguments)

    def kill_master(self) -> None:
        """The master is killed: its plain daemons die with it, its smart ones live."""
        if self.dead:
            return
        self.log("SIGKILL to the master")
        self.dead = True
        self.host.masters.remove(self)
        self.timers.clear()
        for life in self.runs.values():
            life.main, life.children = False, 0
        self.governor.drop()

    def terminate(self, signal: int = 15) -> None:
        self.log(f"signal {signal} to the master")
        self.ask(Signalled(signal))

    def reload(self, spec: MasterSpec | None) -> None:
        """Send SIGHUP, with a new configuration in the file; None: a bad one."""
        self.log("SIGHUP")
        self.next_spec = spec
        self.ask(Signalled(1))

    def touch_reload(self, path: str) -> None:
        self.ask(ReloadTouched(path))

    def touch(self, name: str) -> None:
        self.log(f"touch {name}")
        self.requested[name] = self.time
        self.post(name, Touched(f"/{name}"))

    def fifo(self, command: str) -> None:
        self.log(f"fifo {command}")
        self.ask(FifoByte(command))

    def run(self, duration: int = 0) -> World:
        """Let time pass; stop early when the master has finished."""
        self.host.run(duration, lambda: self.code is not None)
        return self

    def state(self, name: str):
        return self.supervisor.states[name]

    @property
    def spec_now(self) -> MasterSpec:
        return self.supervisor.spec

    def said(self, kind: type) -> list:
        return [note for _, note in self.notes if isinstance(note, kind)]

    # Turns and rules.

    def settle(self) -> None:
        try:
            self.supervisor.settle()
        except AssertionError as error:
            if isinstance(error, RuleError):
                raise
            raise self._broken(f"assertion: {error}") from error
        if self.audited:
            self._audit()

    def _audit(self) -> None:
        states = self.supervisor.states
        for name, state in states.items():
            if isinstance(state, Down | Over):
                self.rule(name not in self.timers, f"{name} is down but has a timer")
                run = self.runs.get(name)
                self.rule(run is None or run.empty, f"{name} is down but not empty")
            elif isinstance(state, Up):
                doubting = state.doubted == DOUBTING
                self.rule((name in self.timers) == doubting, f"the timer of {name}, which is up")
                self.rule(state.doubted != ASKING, f"{name} was not answered")
        self.governor.audit()
        alive = sum(not isinstance(state, Down | Over) for state in states.values())
        self.rule(self.supervisor.master.alive == alive, f"alive should be {alive}")

    def rule(self, holds: bool, text: str) -> None:
        if not holds:
            raise self._broken(text)

    def _broken(self, text: str) -> RuleError:
        tail = "\n".join(self.trace[-80:])
        state = f"{self.supervisor.master}\n{dict(list(self.supervisor.states.items())[:10])}"
        return RuleError(f"seed {self.seed}: {text}\n{tail}\n{state}")

    def log(self, text: str) -> None:
        self.host.log(text)

    def _request_all(self) -> None:
        for name in (*self.supervisor.states, *(d.name for d in self.spec.daemons)):
            self.requested[name] = self.time

    # Effects: daemons.

    def now(self) -> int:
        return self.time

    def spawn(self, spec: DaemonSpec, run: int) -> SpawnFailed | None:
        name = spec.name
        before = self.runs.get(name)
        self.log(f"{name}.{run}: spawn")
        self.rule(not self.dead, f"{name} was started by a dead master")
        self.rule(self.code is None, f"{name} was started after the end")
        self.rule(before is None or before.empty, f"{name}.{run} was started beside another")
        times = self.spawned.setdefault(name, [])
        if times and self.requested.get(name, -1) < times[-1]:
            least = min(SECOND, spec.max_throttle or SECOND)
            self.rule(self.time - times[-1] >= least, f"{name} is started too often")
        times.append(self.time)
        behaviour = self._next_behaviour(name, Behaviour if spec.pidfile is None else Program)
        if spec.pidfile is not None:
            return self.governor.spawn(spec, run, behaviour)
        if behaviour.clone_errno:
            return SpawnFailed(run, "clone", behaviour.clone_errno, "", cloned=False)
        life = self.runs[name] = Run(name, run, behaviour, spec, self.time)
        if behaviour.fails is not None:
            self.at(behaviour.exec_after or 0, self._fail, life)
        elif behaviour.exec_after is not None:
            self.at(behaviour.exec_after, self._execute, life)
        return None

    def _next_behaviour(self, name: str, kind: type):
        """Take the next one from the script, which has both kinds for what a reload changes."""
        script = self.scripts.get(name, [])
        fitting = [behaviour for behaviour in script if isinstance(behaviour, kind)] or [kind()]
        if len(fitting) > 1:
            script.remove(fitting[0])
        return fitting[0]

    def ask(self, event) -> None:
        """Tell the master, if it lives."""
        if not self.dead:
            self.supervisor.post(event)

    def post(self, name: str, event) -> None:
        """Tell the supervisor, if it lives."""
        if not self.dead:
            self.supervisor.post_daemon(name, event)

    def _post(self, life: Run, event) -> None:
        self.log(f"{life.name}.{life.run}: {event}")
        self.post(life.name, event)

    def _fail(self, life: Run) -> None:
        """A step of the helper fails; its record and its exit come in either order."""
        if life.main:
            step, errno = life.behaviour.fails or ("", 0)
            failure = SpawnFailed(life.run, step, errno, "/x", cloned=True)
            life.told = True
            if life.spec.control:  # its exit status counts, so the kernel side keeps the order
                self._post(life, failure)
            else:
                self.at(0, self._post, life, failure)
            self.at(0, self._end_main, life, 127 << 8)

    def _execute(self, life: Run) -> None:
        if life.main:
            life.ran = life.told = True
            self.at(0, self._post, life, ExecOk(life.run, 100 + life.run, 0, 0, "cgroup"))
            if life.behaviour.lives is not None:
                self.at(life.behaviour.lives, self._end_main, life, life.behaviour.status)

    def _end_main(self, life: Run, status: int) -> None:
        if not life.main:
            return
        life.main = False
        if life.ran and not life.killed:
            life.children += life.behaviour.leaves
        if not life.told:
            self.at(0, self._post, life, SpawnFailed(life.run, "", 0, "", cloned=True))
        self._post(life, Exited(life.run, status, left=life.children > 0))

    def _end_children(self, life: Run) -> None:
        if life.children:
            life.children = 0
            if not life.main:
                self._post(life, Emptied(life.run))

    def moved(self, name: str, state) -> None:
        if isinstance(state, Starting) and state.first:
            self.requested[name] = self.time  # by the master, be it at the end of a reload

    def signal(self, name: str, run: int, signal: int, *, group: bool = True) -> None:
        self.log(f"{name}.{run}: signal {signal}")
        smart = self.governor.life_of(name, run)
        if smart is not None:
            self.governor.signal(smart, signal)
            return
        life = self.runs[name]
        self.rule(life.run == run, f"signal to {name}.{run}, but {life.run} lives")
        life.asked += 1
        self.rule(life.asked <= 2, f"{name}.{run}: more signals than one, and one to the rest")
        if life.asked == 1:
            self.at(life.spec.stop_timeout + 1, self._check_deadline, life)
        if life.behaviour.storms:
            life.children += 1
        if life.main and life.ran and life.behaviour.stops_after is not None:
            self.at(life.behaviour.stops_after, self._end_main, life, signal)
        if not life.main and life.behaviour.leaves_stop_after is not None:
            self.at(life.behaviour.leaves_stop_after, self._end_children, life)

    def _check_deadline(self, life: Run) -> None:
        self.rule(life.empty or life.killed, f"{life.name}.{life.run} was not killed in time")

    def kill(self, name: str, run: int) -> None:
        self.log(f"{name}.{run}: SIGKILL")
        smart = self.governor.life_of(name, run)
        if smart is not None:
            self.governor.kill(smart)
            return
        life = self.runs.get(name)
        if life is None or life.run != run or life.empty or life.killed:
            return
        life.killed = True
        if life.behaviour.dies_after is not None:
            self.at(life.behaviour.dies_after, self._die, life)

    def _die(self, life: Run) -> None:
        if life.main and life.children:
            # The children may be reaped by their own parent, before or after it ends.
            life.children = life.children if self.random.random() < 0.5 else 0
        if life.main:
            self._end_main(life, SIGKILL)
        self.at(0, self._end_children, life)

    def look(self, spec: DaemonSpec, run: int):
        answer = self.governor.look(spec, run)
        self.log(f"{spec.name}.{run}: look: {answer}")
        return answer

    def name(self, spec: DaemonSpec, run: int):
        answer = self.governor.name(spec, run)
        self.log(f"{spec.name}.{run}: name: {answer}")
        return answer

    def unname(self, spec: DaemonSpec, run: int) -> None:
        self.log(f"{spec.name}.{run}: unname")
        self.governor.unname(spec, run)

    def leave(self, spec: DaemonSpec, run: int) -> None:
        self.log(f"{spec.name}.{run}: leave")
        self.governor.leave(spec, run)

    def set_timer(self, name: str, run: int, at: int) -> None:
        self.rule(at >= self.time, f"{name}.{run}: a timer in the past")
        timer = self.timers[name] = (at, run)

        def go_off() -> None:
            if self.timers.get(name) is timer:
                del self.timers[name]
                self.log(f"{name}.{run}: timer")
                self.post(name, Timer(run))

        self.at(at - self.time, go_off)

    def cancel_timer(self, name: str) -> None:
        self.timers.pop(name, None)

    # Effects: the rest.

    def say(self, note) -> None:
        self.log(f"  {note}")
        self.notes.append((self.time, note))
        if isinstance(note, MasterReloads):
            self._request_all()
        if isinstance(note, DaemonStuck) and note.abandoned:
            self.abandoned.append(self.runs.pop(note.name))

    def say_stats(self, states) -> None:
        self.done.append(("stats", dict(states)))

    def run_hook(self, hook: Hook) -> None:
        self.log(f"hook {hook.phase} {hook.origin.value}")
        self.rule(self.hook is None, "two hooks at once")
        self.rule(self.code is None, "a hook after the end")
        self.done.append(("hook", hook.phase))
        time, status = self.hooks.get(hook.origin.value, (0, 0))
        if status < 0:
            self.ask(HookEnded(status))
            return
        self.hook = hook
        if time is not None:
            self.at(time, self._end_hook, hook, status)

    def _end_hook(self, hook: Hook, status: int) -> None:
        if self.hook is hook:
            self.hook = None
            self.ask(HookEnded(status))

    def kill_hook(self) -> None:
        self.log("kill the hook")
        if self.hook is not None:
            self.at(0, self._end_hook, self.hook, SIGKILL)

    def load(self) -> MasterSpec | None:
        self.done.append(("load", self.next_spec is not None))
        return self.next_spec

    def use(self, spec: MasterSpec) -> None:
        self.relocated = spec.chdir != self.spec_now.chdir
        self.done.append(("use", spec))

    def write_pidfiles(self, spec: MasterSpec, dropped: bool) -> None:
        self.done.append(("pidfiles", dropped))

    def drop_privileges(self, spec: MasterSpec) -> None:
        self.done.append(("drop", spec.user))

    def reopen_logs(self, rotate: bool) -> None:
        self.done.append(("logs", rotate))

    def select_fifo(self, slot: int) -> None:
        self.done.append(("fifo", slot))

    def announce(self) -> None:
        self.done.append(("announce", self.time))

    def finish(self, code: int) -> None:
        self.log(f"finish {code}")
        self.rule(self.code is None, "finished twice")
        self.rule(self.supervisor.master.phase == ENDED, "finished but not ended")
        for life in self.runs.values():
            self.rule(life.empty, f"{life.name}.{life.run} survives the master")
        self.code, self.finished_at = code, self.time
        held = self.host.locked_by(self)
        self.rule(not held, f"locks are held after the end: {held}")
        self.dead = True
        self.host.masters.remove(self)
        self.governor.drop()
