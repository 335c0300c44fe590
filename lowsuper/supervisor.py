"""The shell between the machines and the world: events in, actions out.

It holds the state of every daemon and of the master, hands each event to the machine it is for,
and performs what comes out through `Effects`, in order. It decides nothing: there is no branch on
a daemon's state here. `tests/sim` runs this very class in a simulated world.
"""

from __future__ import annotations

from collections import deque

from lowsuper import changes, machine, master
from lowsuper.errors import assert_never
from lowsuper.events import (
    Announce,
    Applied,
    AwaitReady,
    CancelTimer,
    Concluded,
    ControlEnded,
    DaemonConcluded,
    DaemonDown,
    DaemonEnded,
    DaemonSettled,
    DropPrivileges,
    Finish,
    Forget,
    KillDomain,
    KillHook,
    Leave,
    LoadConfig,
    Loaded,
    LoadRefused,
    Look,
    Name,
    Reload,
    ReopenLogs,
    RunHook,
    Say,
    SayMaster,
    SayStats,
    SelectFifo,
    SetTimer,
    Settled,
    Signal,
    Spawn,
    Start,
    Tell,
    TellAll,
    Unname,
    WentDown,
    WritePidfiles,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from lowsuper.events import (
        Absent,
        DaemonAction,
        DaemonEvent,
        Found,
        HeldBy,
        MasterAction,
        MasterEvent,
        Note,
        NotNamed,
        SpawnFailed,
        Unseen,
    )
    from lowsuper.machine import State
    from lowsuper.model import DaemonSpec, Hook, MasterSpec
    from lowsuper.units import Ns, RunId

    Item = tuple[
        str | None, DaemonEvent | MasterEvent
    ]  # for the daemon of that name, or the master

    class Effects(Protocol):
        """What the shell can do to the world. Results come back later, as events."""

        def now(self) -> Ns:
            """Return CLOCK_MONOTONIC in nanoseconds."""

        def spawn(self, spec: DaemonSpec, run: RunId) -> SpawnFailed | None:
            """Start a program; what failed at once is returned, the rest comes as events."""

        def signal(self, name: str, run: RunId, signal: int, *, group: bool = True) -> None:
            """Send a signal to a daemon and, with `group`, its group; or to what it left."""

        def await_ready(self, spec: DaemonSpec, run: RunId) -> None:
            """See when a daemon is ready; Unready and Ready follow. Its next state ends that."""

        def moved(self, name: str, state: State) -> None:
            """Take note that a daemon is in another state now."""

        def kill(self, name: str, run: RunId) -> None:
            """SIGKILL everything of a daemon."""

        def look(self, spec: DaemonSpec, run: RunId) -> Found | Absent | Unseen | HeldBy:
            """See whether a smart daemon runs, and watch it if it does."""

        def name(self, spec: DaemonSpec, run: RunId) -> Found | NotNamed:
            """Write the pidfile of the program that runs."""

        def unname(self, spec: DaemonSpec, run: RunId) -> None:
            """Remove the pidfile that `name` has written, if it is still that one."""

        def leave(self, spec: DaemonSpec, run: RunId) -> None:
            """Let go of a smart daemon and of its pidfile."""

        def set_timer(self, name: str, run: RunId, at: Ns) -> None:
            """Set the daemon's only timer."""

        def cancel_timer(self, name: str) -> None:
            """Forget the daemon's timer."""

        def say(self, note: Note) -> None:
            """Tell the operator."""

        def say_stats(self, states: Mapping[str, State]) -> None:
            """Tell the operator the state of every daemon."""

        def run_hook(self, hook: Hook) -> None:
            """Run a hook; HookEnded follows."""

        def kill_hook(self) -> None:
            """SIGKILL the running hook; HookEnded follows whatever it does."""

        def load(self) -> MasterSpec | None:
            """Read the files again; None when they are bad, which was said."""

        def use(self, spec: MasterSpec) -> None:
            """Adopt a new configuration: environment, directory, logs, watched files."""

        def write_pidfiles(self, spec: MasterSpec, dropped: bool) -> None:
            """Write the pidfiles for before or after the drop of privileges."""

        def drop_privileges(self, spec: MasterSpec) -> None:
            """Become the configured user for good."""

        def reopen_logs(self, rotate: bool) -> None:
            """Open the log file again."""

        def select_fifo(self, slot: int) -> None:
            """Listen to another master FIFO."""

        def announce(self) -> None:
            """Tell whoever waits for the start."""

        def finish(self, code: int) -> None:
            """Clean up; the program ends with `code` after this turn."""


class Daemon:
    """One daemon: the specification it was last started with, and its state."""

    __slots__ = ("spec", "state")

    def __init__(self, spec: DaemonSpec) -> None:
        """Begin down."""
        self.spec = spec
        self.state: State = machine.Down()


class Supervisor:
    """Holds the states and routes events and actions. `post` events, then `settle`."""

    def __init__(self, spec: MasterSpec, effects: Effects) -> None:
        """Begin with nothing started; post a Boot to begin."""
        self._effects = effects
        self._daemons: dict[str, Daemon] = {}
        self._states: dict[str, State] = {}
        self._queue: deque[Item] = deque()
        self._inner: deque[Item] = deque()
        self._moved = False
        self.master = master.Master()
        self._place(spec)

    @property
    def states(self) -> Mapping[str, State]:
        """The state of every daemon by name, in file order; read only."""
        return self._states

    @property
    def specs(self) -> Mapping[str, DaemonSpec]:
        """The specification that each daemon was last started with, by name."""
        return {name: daemon.spec for name, daemon in self._daemons.items()}

    def has_any_of(self, legion: str) -> bool:
        """Return whether anything of a legion's daemons may be there."""
        return any(
            daemon.spec.legion == legion and not master.is_idle(daemon.state)
            for daemon in self._daemons.values()
        )

    def legion_of(self, name: str) -> str | None:
        """Return the legion of a daemon; None: it runs on every node."""
        return self._daemons[name].spec.legion

    def post(self, event: MasterEvent) -> None:
        """Queue an event for the master machine."""
        self._queue.append((None, event))

    def post_daemon(self, name: str, event: DaemonEvent) -> None:
        """Queue an event for one daemon; one that does not exist any more misses nothing."""
        self._queue.append((name, event))

    def settle(self) -> None:
        """Handle every queued event, each with all that follows from it before the next one."""
        queue, inner = self._queue, self._inner
        while inner or queue:
            name, event = (inner or queue).popleft()
            if name is None:
                self._step_master(event)  # type: ignore[arg-type]  # the queue holds both kinds
            elif (daemon := self._daemons.get(name)) is not None:
                self._step_daemon(name, daemon, event)  # type: ignore[arg-type]

    def _place(self, spec: MasterSpec) -> None:
        """Take a configuration; daemons that it does not have stay until they are down."""
        self.spec = spec
        self._wanted = {daemon.name: daemon for daemon in spec.daemons}
        rest = [daemon for name, daemon in self._daemons.items() if name not in self._wanted]
        placed = {
            name: self._daemons.get(name) or Daemon(wanted) for name, wanted in self._wanted.items()
        }
        self._daemons = placed | {daemon.spec.name: daemon for daemon in rest}
        self._states = {name: daemon.state for name, daemon in self._daemons.items()}

    def _step_daemon(self, name: str, daemon: Daemon, event: DaemonEvent) -> None:
        state, actions = machine.step(daemon.spec, daemon.state, event, self._effects.now())
        if state is not daemon.state:
            daemon.state = self._states[name] = state
            self._effects.moved(name, state)
        for action in actions:
            self._perform_daemon(name, daemon.spec, action)

    def _perform_daemon(  # noqa: C901, PLR0912
        self, name: str, spec: DaemonSpec, action: DaemonAction
    ) -> None:
        effects = self._effects
        match action:
            case Spawn(run=run):
                failure = effects.spawn(spec, run)
                if failure is not None:
                    self._inner.append((name, failure))
            case SetTimer(run=run, at=at):
                effects.set_timer(name, run, at)
            case CancelTimer():
                effects.cancel_timer(name)
            case Say(note=note):
                effects.say(note)
            case Settled(ok=ok, first=first):
                self._inner.append((None, DaemonSettled(name, ok, first)))
            case Signal(run=run, signal=signal, group=group):
                effects.signal(name, run, signal, group=group)
            case AwaitReady(run=run):
                effects.await_ready(spec, run)
            case KillDomain(run=run):
                effects.kill(name, run)
            case Look() | Name() | Unname() | Leave():
                self._perform_smart(name, spec, action)
            case WentDown(abandoned=abandoned):
                self._inner.append((None, DaemonDown(name, abandoned)))
            case Concluded(failed=failed, status=status):
                self._inner.append((None, DaemonConcluded(name, failed, status)))
            case ControlEnded(status=status):
                self._inner.append((None, DaemonEnded(name, status)))
            case _:
                assert_never(action)

    def _perform_smart(
        self, name: str, spec: DaemonSpec, action: Look | Name | Unname | Leave
    ) -> None:
        """Perform what concerns a daemon's pidfile."""
        effects = self._effects
        match action:
            case Look(run=run):
                self._inner.append((name, effects.look(spec, run)))
            case Name(run=run):
                self._inner.append((name, effects.name(spec, run)))
            case Unname(run=run):
                effects.unname(spec, run)
            case Leave(run=run):
                effects.leave(spec, run)
            case _:
                assert_never(action)

    def _step_master(self, event: MasterEvent) -> None:
        now = self._effects.now()
        self.master, actions = master.step(self.spec, self.master, event, self._states, now)
        for action in actions:
            self._perform_master(action)

    def _perform_master(self, action: MasterAction) -> None:  # noqa: C901
        effects = self._effects
        match action:
            case Tell(name=name, event=event):
                if isinstance(event, Start) and name in self._wanted:
                    # Until now it was ended with the specification that it was started with.
                    self._daemons[name].spec = self._wanted[name]
                if name in self._daemons:
                    self._inner.append((name, self._complete(name, event)))
            case TellAll(event=event):
                self._inner.extend(
                    (name, self._complete(name, event)) for name in reversed(self._daemons)
                )
            case Forget(name=name):
                del self._daemons[name], self._states[name]
            case RunHook(hook=hook):
                effects.run_hook(hook)
            case KillHook():
                effects.kill_hook()
            case LoadConfig(applies=applies):
                self._load(applies=applies)
            case SayMaster(note=note):
                effects.say(note)
            case SayStats():
                effects.say_stats(self._states)
            case _:
                self._perform_process(action)

    def _complete(self, name: str, event: DaemonEvent) -> DaemonEvent:
        """Tell a Reload what becomes of the daemon's pidfile."""
        wanted = self._wanted.get(name)
        if not isinstance(event, Reload) or wanted is None:
            return event
        pidfile = self._daemons[name].spec.pidfile
        moved = self._moved and pidfile is not None and not pidfile.startswith("/")
        return Reload(changes=moved or wanted.pidfile != pidfile)

    def _perform_process(
        self,
        action: WritePidfiles | DropPrivileges | ReopenLogs | SelectFifo | Announce | Finish,
    ) -> None:
        """Perform what concerns the master's own process."""
        effects = self._effects
        match action:
            case WritePidfiles(dropped=dropped):
                effects.write_pidfiles(self.spec, dropped)
            case DropPrivileges():
                effects.drop_privileges(self.spec)
            case ReopenLogs(rotate=rotate):
                effects.reopen_logs(rotate)
            case SelectFifo(slot=slot):
                effects.select_fifo(slot)
            case Announce():
                effects.announce()
            case Finish(code=code):
                effects.finish(code)
            case _:
                assert_never(action)

    def _load(self, *, applies: bool) -> None:
        spec = self._effects.load()
        if spec is None:
            self._inner.append((None, LoadRefused()))
            return
        loaded: MasterEvent = Loaded()
        if applies:
            differ = changes.compare(self.spec, self.specs, spec)
            loaded = Applied(differ.added, differ.removed, differ.restarted)
        self._effects.use(spec)
        self._moved = spec.chdir != self.spec.chdir  # relative pidfiles are others now
        self._place(spec)
        self._inner.append((None, loaded))
