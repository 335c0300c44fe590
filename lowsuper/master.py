# ruff: noqa: PLR0911, RET503  # tables of cases that end in assert_never
"""The master machine: phases, order, reload, shutdown and the exit code.

What is to be done is a list of tasks in the state: a hook, the pidfiles, the drop of privileges,
"start the daemons", "wait until none is left". `step` works through it until a task has to wait;
the event that ends the wait goes on from there. Pure like `machine`; the daemons' states are
handed in to be read.
"""

from __future__ import annotations

from lowsuper.errors import assert_never
from lowsuper.events import (
    AllStarted,
    Announce,
    Boot,
    DaemonDown,
    DaemonEnded,
    DaemonSettled,
    DropPrivileges,
    FifoByte,
    Finish,
    Forget,
    HookEnded,
    HookFailed,
    HookPrints,
    HookRuns,
    HookTouched,
    Kill,
    KillHook,
    LoadConfig,
    Loaded,
    LoadRefused,
    MasterEnds,
    MasterIgnores,
    MasterKills,
    MasterReloaded,
    MasterReloads,
    MasterStops,
    Reload,
    ReloadTouched,
    ReopenLogs,
    RunHook,
    SayMaster,
    SayStats,
    SelectFifo,
    Signalled,
    Start,
    Stop,
    Tell,
    TellAll,
    WritePidfiles,
)
from lowsuper.machine import Down, Up
from lowsuper.model import Exec, Exit, Hook, Print
from lowsuper.record import Record
from lowsuper.units import Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowsuper.events import MasterAction, MasterEvent
    from lowsuper.machine import State
    from lowsuper.model import DaemonSpec, MasterSpec

    Daemons = Mapping[str, State]
    Actions = tuple[MasterAction, ...]

SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGTERM = 1, 2, 3, 10, 15
NAMES = {SIGHUP: "SIGHUP", SIGINT: "SIGINT", SIGQUIT: "SIGQUIT", SIGTERM: "SIGTERM"}

EXIT_ABANDONED = 125
EXIT_HOOK = 1

BOOTING, RUNNING, RELOADING, STOPPING, ENDED = (
    "booting",
    "running",
    "reloading",
    "stopping",
    "ended",
)

# Tasks, besides the hooks.
PIDFILES, DROP, PIDFILES2, START, DRAIN, STARTED, FINISH = (
    "pidfiles",
    "drop",
    "pidfiles2",
    "start",
    "drain",
    "started",
    "finish",
)


class Master(Record):
    """The master's state."""

    phase: str = BOOTING
    todo: tuple[str | Hook, ...] = ()
    hook: Hook | None = None  # the running one
    touched: tuple[Hook, ...] = ()  # touch hooks whose turn comes when there is nothing to do
    alive: int = 0  # daemons that were told to start and are not down again
    waiting: tuple[str, ...] = ()  # daemons to start when those they come after are ready
    unsettled: int = 0  # of them, those whose first attempt has no outcome yet
    failed: int = 0  # first attempts that failed
    since: Ns = 0  # when the phase began
    dropped: bool = False  # privileges are gone for good
    loading: bool = False  # a reload was asked for; the files are being read
    brutal: bool = False  # that reload does not wait for anybody
    again: bool = False  # another reload was asked for meanwhile
    again_brutal: bool = False  # and that one does not wait for anybody
    asked: bool = False  # somebody asked for the stop; else it stops for a reason of its own
    impatient: bool = False  # asked to stop a second time
    code: int = 0  # what the program will end with


if TYPE_CHECKING:
    Result = tuple[Master, Actions]


def step(  # noqa: C901, PLR0912
    spec: MasterSpec, state: Master, event: MasterEvent, daemons: Daemons, now: Ns
) -> Result:
    """Return the new state and what is to be done, in order.

    Args:
        spec: the configuration in force; at `Loaded` already the new one.
        state: the master's state.
        event: what happened.
        daemons: every daemon there is, by name, in file order; read only.
        now: CLOCK_MONOTONIC in nanoseconds.
    """
    match event:
        case Boot():
            return _advance(spec, state.replace(since=now, todo=_boot(spec)), now)
        case Signalled():
            return _signalled(spec, state, event.signal, now)
        case FifoByte():
            return _fifo(spec, state, event.command, now)
        case ReloadTouched():
            return _reload(spec, state, f"touch-reload {event.path}", False, now)
        case Loaded():
            return _loaded(spec, state, daemons, now)
        case LoadRefused():
            return state.replace(loading=False, again=False, again_brutal=False), ()
        case HookEnded():
            return _hook_ended(spec, state, event, now)
        case HookTouched():
            return _touched(spec, state, event.hook, now)
        case DaemonSettled():
            return _settled(spec, state, event, daemons, now)
        case DaemonDown():
            return _daemon_down(spec, state, event, daemons, now)
        case DaemonEnded():
            if state.phase in (STOPPING, ENDED):
                return state, ()
            ended = state.replace(code=exit_code(event.status))
            return _stop(spec, ended, f"{event.name} has ended", now, asked=False, gone=1)
        case _:
            assert_never(event)


def exit_code(status: int) -> int:
    """Return what a shell would call this wait status: the code, or 128 + the signal."""
    signal = status & 0x7F
    return 128 + signal if signal else (status >> 8) & 0xFF


def _hooks(spec: MasterSpec, *phases: str) -> tuple[Hook, ...]:
    return tuple(hook for phase in phases for hook in spec.hooks if hook.phase == phase)


def _boot(spec: MasterSpec) -> tuple[str | Hook, ...]:
    # As in uWSGI, in-jail hooks need no jail; those of post-jail are run by who makes one.
    return (
        *_hooks(spec, "asap", "pre-jail", "in-jail"),
        PIDFILES,
        *_hooks(spec, "as-root"),
        DROP,
        PIDFILES2,
        *_hooks(spec, "as-user"),
        START,
    )


def _advance(spec: MasterSpec, state: Master, now: Ns) -> Result:
    """Work through the tasks until one has to wait."""
    done: list[MasterAction] = []
    while state.hook is None and (state.todo or state.touched):
        if not state.todo:
            hook, *touched = state.touched
            state, actions = _run(spec, state.replace(touched=tuple(touched)), hook, now)
            done += actions
            continue
        task, rest = state.todo[0], state.todo[1:]
        if isinstance(task, Hook):
            state, actions = _run(spec, state.replace(todo=rest), task, now)
            done += actions
            continue
        if (task == DRAIN and state.alive) or (task == STARTED and state.unsettled):
            break
        state, actions = _perform(spec, state.replace(todo=rest), task, now)
        done += actions
    return state, tuple(done)


def _run(spec: MasterSpec, state: Master, hook: Hook, now: Ns) -> Result:
    """Begin with a hook, or do what it says if that is the machine's own business."""
    deed = hook.deed
    option, text = _title(hook)
    runs = SayMaster(HookRuns(option, text))
    if isinstance(deed, Print):
        return state, (runs, SayMaster(HookPrints(deed.text)))
    if not isinstance(deed, Exit):
        return state.replace(hook=hook), (runs, RunHook(hook))
    state = state.replace(code=deed.code)
    if state.phase == STOPPING:
        # As in uWSGI, where this is the end at once: no other hook comes after it.
        todo = tuple(task for task in state.todo if not isinstance(task, Hook))
        return state.replace(todo=todo), (runs,)
    state, actions = _stop(spec, state, option, now, asked=False)
    return state, (runs, *actions)


def _title(hook: Hook) -> tuple[str, str]:
    """Return the option and the text of a hook as messages have them."""
    return hook.origin.key, "(private)" if hook.private else hook.origin.value


def _perform(spec: MasterSpec, state: Master, task: str, now: Ns) -> Result:
    """Do one task that need not wait."""
    match task:
        case "pidfiles" | "pidfiles2":
            return state, (WritePidfiles(dropped=task == PIDFILES2),)
        case "drop":
            if not _drops(spec):
                return state, ()
            return state.replace(dropped=True), (DropPrivileges(),)
        case "start":
            count = len(spec.daemons)
            state = state.replace(unsettled=count, failed=0, todo=(STARTED, *state.todo))
            return _start(state, spec.daemons)
        case "started":
            return _started(spec, state, now)
        case "finish":
            return state.replace(phase=ENDED), (
                SayMaster(MasterEnds(state.code)),
                Finish(state.code),
            )
        case _:
            return state, ()


def _drops(spec: MasterSpec) -> bool:
    """Return whether the master becomes another user."""
    return not spec.master_as_root and (spec.user is not None or spec.group is not None)


def _start(state: Master, daemons: Sequence[DaemonSpec]) -> Result:
    """Start these daemons in file order, those that come after others only when they are ready."""
    later = [daemon.name for daemon in daemons if daemon.requires or daemon.after]
    now = [daemon.name for daemon in daemons if not (daemon.requires or daemon.after)]
    state = state.replace(alive=state.alive + len(now), waiting=(*state.waiting, *later))
    return state, tuple(Tell(name, Start()) for name in now)


def _start_waiting(spec: MasterSpec, state: Master, daemons: Daemons) -> Result:
    """Start those of the waiting daemons whose turn has come."""
    first = {daemon.name: (*daemon.requires, *daemon.after) for daemon in spec.daemons}
    free = [
        name
        for name in state.waiting
        if all(is_ready(daemons.get(other, Down())) for other in first[name])
    ]
    state = state.replace(
        alive=state.alive + len(free),
        waiting=tuple(name for name in state.waiting if name not in free),
    )
    return state, tuple(Tell(name, Start()) for name in free)


def is_ready(state: State) -> bool:
    """Return whether a daemon in this state is up and ready."""
    return isinstance(state, Up) and state.ready


def _started(spec: MasterSpec, state: Master, now: Ns) -> Result:
    """Every daemon has been started once."""
    took = now - state.since
    booted = state.phase == BOOTING
    note = AllStarted(len(spec.daemons), state.failed, took) if booted else MasterReloaded(took)
    say: Actions = (SayMaster(note), Announce()) if booted else (SayMaster(note),)
    state = state.replace(phase=RUNNING)
    if not state.again:
        return state, say
    brutal = state.again_brutal
    state = state.replace(again=False, again_brutal=False)
    state, actions = _reload(spec, state, "asked for meanwhile", brutal, now)
    return state, (*say, *actions)


def _signalled(spec: MasterSpec, state: Master, signal: int, now: Ns) -> Result:
    name = NAMES.get(signal, f"signal {signal}")
    if signal == SIGHUP:
        return _reload(spec, state, name, False, now)
    if signal == SIGTERM and not spec.die_on_term and state.phase != STOPPING:
        return _reload(spec, state, f"{name} with die-on-term = false", True, now)
    if signal in (SIGTERM, SIGINT, SIGQUIT):
        return _stop(spec, state, name, now)
    if signal == SIGUSR1:
        return state, (SayStats(),)
    return state, ()


def _fifo(spec: MasterSpec, state: Master, command: str, now: Ns) -> Result:
    why = f"master-fifo {command}"
    match command:
        case "q":
            return _stop(spec, state, why, now)
        case "Q":
            state, first = _stop(spec, state, why, now)
            if state.impatient or state.phase != STOPPING:
                return state, first
            state, second = _stop(spec, state, why, now)
            return state, (*first, *second)
        case "r" | "R":
            return _reload(spec, state, why, command == "R", now)
        case "s":
            return state, (SayStats(),)
        case "l" | "L":
            return state, (ReopenLogs(rotate=command == "L"),)
        case "P":
            return state, (WritePidfiles(dropped=state.dropped),)
        case "p":
            return state, (SayMaster(MasterIgnores(why, "there are no workers to pause")),)
        case _ if command in "0123456789":
            return state, (SelectFifo(int(command)),)
        case _:
            return state, ()


def _reload(spec: MasterSpec, state: Master, why: str, brutal: bool, now: Ns) -> Result:
    """Begin a reload by reading the files; nothing else happens until they are known good."""
    if state.phase in (STOPPING, ENDED):
        return state, (SayMaster(MasterIgnores(f"reload ({why})", "it is stopping")),)
    if spec.exit_on_reload:
        return _stop(spec, state, f"{why} with exit-on-reload", now)
    if state.phase != RUNNING or state.loading:
        return state.replace(again=True, again_brutal=state.again_brutal or brutal), ()
    state = state.replace(loading=True, brutal=brutal)
    return state, (SayMaster(MasterReloads(why, brutal)), LoadConfig())


def _loaded(spec: MasterSpec, state: Master, daemons: Daemons, now: Ns) -> Result:
    """Replace every daemon by its new self: one by one or, with hooks between, all at once."""
    state = state.replace(loading=False)
    if state.phase != RUNNING:
        return state, ()
    # What was touched was a file of the old configuration.
    state = state.replace(phase=RELOADING, since=now, failed=0, touched=())
    ending: Actions = (TellAll(Reload()),)
    if state.brutal:
        ending = (TellAll(Kill()), *ending)  # killed, but still to be followed by the next one
    phases = ("as-user",) if state.dropped else ("as-root", "as-user")
    hooks = _hooks(spec, *phases)
    if hooks:
        state = state.replace(todo=(DRAIN, *hooks, START))
        state, actions = _advance(spec, state, now)
        return state, (*ending, *actions)
    idle = [daemon for daemon in spec.daemons if isinstance(daemons.get(daemon.name, Down()), Down)]
    state = state.replace(unsettled=len(spec.daemons), todo=(STARTED,))
    state, starts = _start(state, idle)
    state, actions = _advance(spec, state, now)
    return state, (*ending, *starts, *actions)


def _settled(
    spec: MasterSpec, state: Master, event: DaemonSettled, daemons: Daemons, now: Ns
) -> Result:
    actions: Actions = ()
    if event.ok and state.waiting:
        state, actions = _start_waiting(spec, state, daemons)
    if not event.first:
        return state, actions
    state = state.replace(
        unsettled=max(0, state.unsettled - 1), failed=state.failed + (not event.ok)
    )
    if state.unsettled:
        return state, actions
    state, more = _advance(spec, state, now)
    return state, (*actions, *more)


def _daemon_down(
    spec: MasterSpec, state: Master, event: DaemonDown, daemons: Daemons, now: Ns
) -> Result:
    state = state.replace(alive=state.alive - 1)
    if event.abandoned:
        state = state.replace(code=state.code or EXIT_ABANDONED)
    actions: Actions = ()
    wanted: DaemonSpec | None = None
    if state.phase != STOPPING:
        wanted = next((daemon for daemon in spec.daemons if daemon.name == event.name), None)
        if wanted is None:
            actions = (Forget(event.name),)
    if wanted is not None and state.phase == RELOADING and DRAIN not in state.todo:
        state, actions = _start(state, (wanted,))
        if state.waiting:  # what it comes after may have been ready before it was down
            state, more = _start_waiting(spec, state, daemons)
            actions = (*actions, *more)
        return state, actions
    if state.alive == 0:
        state, more = _advance(spec, state, now)
        return state, (*actions, *more)
    return state, actions


def _stop(
    spec: MasterSpec, state: Master, why: str, now: Ns, *, asked: bool = True, gone: int = 0
) -> Result:
    """Stop everything; asked a second time, do not wait any more.

    Without `asked` it is the master itself that has to stop. `gone` daemons are down but have not
    been counted so yet.
    """
    if state.phase == ENDED:
        return state, ()
    hook: Actions = (KillHook(),) if state.hook is not None else ()
    if state.phase == STOPPING and state.impatient:
        return state, hook  # there may be several, and each may hang
    if state.phase == STOPPING and not state.asked:
        # Race: what made the master stop can have come along with the first request, as when an
        # init signals a whole cgroup.
        return state.replace(asked=True), (SayMaster(MasterIgnores(why, "it is stopping already")),)
    if state.phase == STOPPING:
        state = state.replace(impatient=True)
        return state, (SayMaster(MasterKills(why)), TellAll(Kill()), *hook)
    smart = min(state.alive - gone, sum(daemon.pidfile is not None for daemon in spec.daemons))
    stops = MasterStops(why, state.alive - gone - smart, smart)
    say: Actions = (SayMaster(stops), TellAll(Stop()), *hook)
    # What is for the unprivileged user is not done by a master that never became it.
    hooks = () if DROP in state.todo and _drops(spec) else _hooks(spec, "as-user-atexit")
    todo = (DRAIN, *hooks, FINISH)
    state = state.replace(
        phase=STOPPING,
        since=now,
        todo=todo,
        touched=(),
        loading=False,
        waiting=(),
        asked=asked,
    )
    if state.hook is not None or state.alive:
        return state, say
    state, actions = _advance(spec, state, now)
    return state, (*say, *actions)


def _touched(spec: MasterSpec, state: Master, hook: Hook, now: Ns) -> Result:
    """Run a touch hook, after others; as in uWSGI, only while everything just runs."""
    if state.phase != RUNNING or hook not in spec.hooks or hook in state.touched:
        return state, ()
    return _advance(spec, state.replace(touched=(*state.touched, hook)), now)


def _hook_ended(spec: MasterSpec, state: Master, event: HookEnded, now: Ns) -> Result:
    hook = state.hook
    assert hook is not None, "only a hook that runs can end"
    state = state.replace(hook=None)
    if event.status == 0:
        return _advance(spec, state, now)
    safe = isinstance(hook.deed, Exec) and hook.deed.safe
    fatal = not safe and state.phase != STOPPING and hook.phase != "touch"
    option, text = _title(hook)
    note = HookFailed(option, text, event.status, fatal, event.problem)
    if fatal:
        why = f"the {hook.phase} hook failed"
        state, actions = _stop(spec, state.replace(code=EXIT_HOOK), why, now, asked=False)
    else:
        state, actions = _advance(spec, state, now)
    return state, (SayMaster(note), *actions)
