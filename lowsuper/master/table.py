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
    Applied,
    Asked,
    Boot,
    DaemonConcluded,
    DaemonDown,
    DaemonEnded,
    DaemonNeeds,
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
    LordChanged,
    MasterApplies,
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
    Stop,
    TellAll,
    WritePidfiles,
)
from lowsuper.machine import Down
from lowsuper.master import lordship, order, steer
from lowsuper.master.states import (
    BOOTING,
    DRAIN,
    DROP,
    ENDED,
    FINISH,
    HALT,
    PIDFILES,
    PIDFILES2,
    RELOAD,
    RELOADING,
    RUNNING,
    START,
    STARTED,
    STOP,
    STOPPING,
    Master,
)
from lowsuper.model import Exec, Exit, Hook, Print

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import MasterAction, MasterEvent
    from lowsuper.master.states import Actions, Daemons, Result
    from lowsuper.model import DaemonSpec, MasterSpec
    from lowsuper.units import Ns

SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGTERM = 1, 2, 3, 10, 15
NAMES = {SIGHUP: "SIGHUP", SIGINT: "SIGINT", SIGQUIT: "SIGQUIT", SIGTERM: "SIGTERM"}

EXIT_ABANDONED = 125
EXIT_HOOK = 1


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
            return _advance(spec, state.replace(since=now, todo=_boot(spec)), daemons, now)
        case Signalled():
            return _signalled(spec, state, event.signal, daemons, now)
        case FifoByte():
            return _fifo(spec, state, event.command, daemons, now)
        case ReloadTouched():
            return _reload(spec, state, f"touch-reload {event.path}", False, daemons, now)
        case Loaded():
            return _loaded(spec, state, daemons, now)
        case Applied():
            return _applied(spec, state, event, daemons, now)
        case LoadRefused():
            return state.replace(loading=False, again=False, again_brutal=False), ()
        case HookEnded():
            return _hook_ended(spec, state, event, daemons, now)
        case HookTouched():
            return _touched(spec, state, event.hook, daemons, now)
        case DaemonSettled():
            return _settled(spec, state, event, daemons, now)
        case DaemonDown():
            return _daemon_down(spec, state, event, daemons, now)
        case DaemonEnded():
            if state.phase in (STOPPING, ENDED):
                return state, ()
            ended = state.replace(code=exit_code(event.status))
            why = f"{event.name} has ended"
            return _stop(spec, ended, why, daemons, now, asked=False, gone=1)
        case DaemonConcluded():
            return _concluded(spec, state, event, daemons, now)
        case LordChanged():
            if state.phase in (STOPPING, ENDED):
                return state, ()
            state, actions = lordship.change(spec, state, event, daemons)
            # What was to settle, and does not now, may have been the last one.
            state, more = _advance(spec, state, daemons, now)
            return state, (*actions, *more)
        case Asked():
            return _asked(spec, state, event, daemons, now)
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


def _advance(spec: MasterSpec, state: Master, daemons: Daemons, now: Ns) -> Result:
    """Work through the tasks until one has to wait."""
    done: list[MasterAction] = []
    while state.hook is None and (state.todo or state.touched):
        if not state.todo:
            hook, *touched = state.touched
            state, actions = _run(spec, state.replace(touched=tuple(touched)), hook, daemons, now)
            done += actions
            continue
        task, rest = state.todo[0], state.todo[1:]
        if isinstance(task, Hook):
            state, actions = _run(spec, state.replace(todo=rest), task, daemons, now)
            done += actions
            continue
        if (task == DRAIN and state.alive) or (task == STARTED and state.unsettled):
            break
        state, actions = _perform(spec, state.replace(todo=rest), task, daemons, now)
        done += actions
    return state, tuple(done)


def _run(spec: MasterSpec, state: Master, hook: Hook, daemons: Daemons, now: Ns) -> Result:
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
    state, actions = _stop(spec, state, option, daemons, now, asked=False)
    return state, (runs, *actions)


def _title(hook: Hook) -> tuple[str, str]:
    """Return the option and the text of a hook as messages have them."""
    return hook.origin.key, "(private)" if hook.private else hook.origin.value


def _perform(spec: MasterSpec, state: Master, task: str, daemons: Daemons, now: Ns) -> Result:
    """Do one task that need not wait."""
    match task:
        case "pidfiles" | "pidfiles2":
            return state, (WritePidfiles(dropped=task == PIDFILES2),)
        case "drop":
            if not _drops(spec):
                return state, ()
            return state.replace(dropped=True), (DropPrivileges(),)
        case "start":
            wanted = lordship.choose(state, spec.daemons)
            todo = (STARTED, *state.todo)
            state = state.replace(unsettled=len(wanted), failed=0, todo=todo, returning=())
            state, ends = lordship.expel(state, spec.daemons, daemons)
            state, actions = order.start(state, wanted)
            state, more = order.start_waiting(spec, state, daemons)
            return state, (*ends, *actions, *more)
        case "started":
            return _started(spec, state, daemons, now)
        case "finish":
            return state.replace(phase=ENDED), (
                SayMaster(MasterEnds(state.code)),
                Finish(state.code),
            )
        case _:
            return state, ()


def _drops(spec: MasterSpec) -> bool:
    """Return whether the master becomes another user, or gives up capabilities."""
    wanted = (spec.user, spec.group, spec.caps)
    return not spec.master_as_root and any(each is not None for each in wanted)


def _started(spec: MasterSpec, state: Master, daemons: Daemons, now: Ns) -> Result:
    """Every daemon has been started once."""
    took = now - state.since
    booted = state.phase == BOOTING
    count = len(lordship.choose(state, spec.daemons))
    note = AllStarted(count, state.failed, took) if booted else MasterReloaded(took)
    say: Actions = (SayMaster(note), Announce()) if booted else (SayMaster(note),)
    state = state.replace(phase=RUNNING)
    if not state.again:
        return state, say
    brutal = state.again_brutal
    state = state.replace(again=False, again_brutal=False)
    state, actions = _reload(spec, state, "asked for meanwhile", brutal, daemons, now)
    return state, (*say, *actions)


def _signalled(spec: MasterSpec, state: Master, signal: int, daemons: Daemons, now: Ns) -> Result:
    name = NAMES.get(signal, f"signal {signal}")
    if signal == SIGHUP:
        return _reload(spec, state, name, False, daemons, now)
    if signal == SIGTERM and not spec.die_on_term and state.phase != STOPPING:
        return _reload(spec, state, f"{name} with die-on-term = false", True, daemons, now)
    if signal in (SIGTERM, SIGINT, SIGQUIT):
        return _stop(spec, state, name, daemons, now)
    if signal == SIGUSR1:
        return state, (SayStats(),)
    return state, ()


def _fifo(spec: MasterSpec, state: Master, command: str, daemons: Daemons, now: Ns) -> Result:
    why = f"master-fifo {command}"
    match command:
        case "q":
            return _stop(spec, state, why, daemons, now)
        case "Q":
            return _kill(spec, state, why, daemons, now)
        case "r" | "R":
            return _reload(spec, state, why, command == "R", daemons, now)
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


def _kill(spec: MasterSpec, state: Master, why: str, daemons: Daemons, now: Ns) -> Result:
    """Stop everything without waiting for anybody."""
    state, first = _stop(spec, state, why, daemons, now)
    if state.impatient or state.phase != STOPPING:
        return state, first
    state, second = _stop(spec, state, why, daemons, now)
    return state, (*first, *second)


def _asked(spec: MasterSpec, state: Master, event: Asked, daemons: Daemons, now: Ns) -> Result:
    """Do what somebody asked for through the control socket."""
    match event.verb:
        case "reload":
            return _reload(spec, state, f"reload ({event.who})", False, daemons, now)
        case "apply":
            return _apply(state, event.who)
        case "shutdown":
            return _stop(spec, state, f"shutdown ({event.who})", daemons, now)
        case "kill":
            return _kill(spec, state, f"kill ({event.who})", daemons, now)
        case _ if state.phase in (STOPPING, ENDED):
            what = f"{event.verb} {' '.join(event.names)} ({event.who})"
            return state, (SayMaster(MasterIgnores(what, "it is stopping")),)
        case _:
            known = {daemon.name for daemon in spec.daemons}
            names = tuple(name for name in event.names if name in known)
            state, actions = steer.ask(spec, state, event.verb, names, daemons)
            # A daemon that waited, and waits no more, may have been the last one to settle.
            state, more = _advance(spec, state, daemons, now)
            return state, (*actions, *more)


def _reload(  # noqa: PLR0917
    spec: MasterSpec, state: Master, why: str, brutal: bool, daemons: Daemons, now: Ns
) -> Result:
    """Begin a reload by reading the files; nothing else happens until they are known good."""
    if state.phase in (STOPPING, ENDED):
        return state, (SayMaster(MasterIgnores(f"reload ({why})", "it is stopping")),)
    if spec.exit_on_reload:
        return _stop(spec, state, f"{why} with exit-on-reload", daemons, now)
    if state.phase != RUNNING or state.loading:
        return state.replace(again=True, again_brutal=state.again_brutal or brutal), ()
    state = state.replace(loading=True, brutal=brutal)
    return state, (SayMaster(MasterReloads(why, brutal)), LoadConfig())


def _apply(state: Master, who: str) -> Result:
    """Begin to bring in what differs in the files, by reading them."""
    if state.phase != RUNNING or state.loading:
        why = "it is stopping" if state.phase in (STOPPING, ENDED) else "it is not at rest yet"
        return state, (SayMaster(MasterIgnores(f"apply ({who})", why)),)
    return state.replace(loading=True, brutal=False), (LoadConfig(applies=True),)


def _applied(spec: MasterSpec, state: Master, event: Applied, daemons: Daemons, now: Ns) -> Result:
    """End what is not wanted any more, start what is new, replace what is different."""
    state = state.replace(loading=False)
    if state.phase != RUNNING:
        return state, ()
    names = {daemon.name for daemon in spec.daemons}
    state = state.replace(held=tuple(name for name in state.held if name in names))
    note = SayMaster(MasterApplies(event.added, event.removed, event.changed))
    idle = tuple(Forget(name) for name in event.removed if order.is_idle(daemons.get(name, Down())))
    state, ends = order.end(spec, state, event.removed, STOP, daemons)
    state, actions = steer.replace(spec, state, event.changed, daemons)
    added = [daemon for daemon in spec.daemons if daemon.name in event.added]
    state, expels = lordship.expel(state, added, daemons)
    fresh = lordship.choose(state, added)
    state = state.replace(unsettled=state.unsettled + len(fresh))
    state, starts = order.start(state, fresh)
    state, more = order.start_waiting(spec, state, daemons)
    state, rest = _advance(spec, state, daemons, now)
    return state, (note, *idle, *ends, *actions, *expels, *starts, *more, *rest)


def _loaded(spec: MasterSpec, state: Master, daemons: Daemons, now: Ns) -> Result:
    """Replace every daemon by its new self: one by one or, with hooks between, all at once."""
    state = state.replace(loading=False)
    if state.phase != RUNNING:
        return state, ()
    # What was touched was a file of the old configuration.
    names = {daemon.name for daemon in spec.daemons}
    state = state.replace(
        phase=RELOADING,
        since=now,
        failed=0,
        touched=(),
        returning=(),
        held=tuple(name for name in state.held if name in names),
    )
    # Starts that somebody asked for just now: each has an outcome yet, and an end before the next.
    pending = max(0, state.unsettled - len(set(state.waiting) - set(state.blocked)))
    ordered = order.has_order(spec)
    actions: Actions
    if ordered and not state.brutal:
        state = order.drop_waiting(state, state.waiting)
        state, actions = order.end(spec, state, tuple(daemons), RELOAD, daemons)
    else:
        state = state.replace(waiting=(), blocked=(), ending=(), leaving=(), coming=())
        # Killed, but still to be followed by the next one.
        actions = (TellAll(Kill()), TellAll(Reload())) if state.brutal else (TellAll(Reload()),)
    phases = ("as-user",) if state.dropped else ("as-root", "as-user")
    hooks = _hooks(spec, *phases)
    if hooks or ordered:
        state = state.replace(todo=(DRAIN, *hooks, START))
        state, more = _advance(spec, state, daemons, now)
        return state, (*actions, *more)
    wanted = lordship.choose(state, spec.daemons)
    idle = [each for each in wanted if order.is_idle(daemons.get(each.name, Down()))]
    state = state.replace(unsettled=pending + len(wanted), todo=(STARTED,))
    state, expels = lordship.expel(state, spec.daemons, daemons)
    state, starts = order.start(state, idle)
    state, more = _advance(spec, state, daemons, now)
    return state, (*actions, *expels, *starts, *more)


def _settled(
    spec: MasterSpec, state: Master, event: DaemonSettled, daemons: Daemons, now: Ns
) -> Result:
    actions: Actions = ()
    if event.first:
        state = order.note_settled(state, event.name)
        state = state.replace(
            unsettled=max(0, state.unsettled - 1), failed=state.failed + (not event.ok)
        )
        if state.waiting and not event.ok:
            state = order.block(spec, state, event.name)
    if state.waiting:
        state, actions = order.start_waiting(spec, state, daemons)
    if state.unsettled or not event.first:
        return state, actions
    state, more = _advance(spec, state, daemons, now)
    return state, (*actions, *more)


def _daemon_down(
    spec: MasterSpec, state: Master, event: DaemonDown, daemons: Daemons, now: Ns
) -> Result:
    state = state.replace(alive=state.alive - 1)
    if event.abandoned:
        state = state.replace(code=state.code or EXIT_ABANDONED)
    state, actions = order.note_down(spec, state, event.name)
    wanted: DaemonSpec | None = None
    if state.phase != STOPPING:
        wanted = next((daemon for daemon in spec.daemons if daemon.name == event.name), None)
        if wanted is None:
            actions = (*actions, Forget(event.name))
    again, state = order.take_returning(state, event.name)
    again = again or (state.phase == RELOADING and DRAIN not in state.todo)
    if wanted is not None and again and lordship.choose(state, (wanted,)):
        state, more = order.start(state, (wanted,))
        actions = (*actions, *more)
    if state.waiting:  # what one comes after may have been ready before it was down
        state, more = order.start_waiting(spec, state, daemons)
        actions = (*actions, *more)
    if state.alive == 0 or not state.unsettled:
        state, more = _advance(spec, state, daemons, now)
        return state, (*actions, *more)
    return state, actions


def _concluded(
    spec: MasterSpec, state: Master, event: DaemonConcluded, daemons: Daemons, now: Ns
) -> Result:
    """A daemon is at its end; those that require it cannot go on if it was given up."""
    state = state.replace(alive=state.alive - 1)
    state, actions = order.note_down(spec, state, event.name)
    daemon = next((each for each in spec.daemons if each.name == event.name), None)
    if daemon is None and state.phase != STOPPING:
        actions = (*actions, Forget(event.name))
    again, state = order.take_returning(state, event.name)
    if daemon is not None and again and lordship.choose(state, (daemon,)):
        # It came to its end before it could be told to end.
        state, more = order.start(state, (daemon,))
        actions = (*actions, *more)
    elif daemon is not None and event.failed and state.phase != STOPPING:
        if daemon.on_give_up == "exit":
            code = 1 if event.status is None else exit_code(event.status) or 1
            state, more = _stop(
                spec,
                state.replace(code=code),
                f"{event.name} was given up",
                daemons,
                now,
                asked=False,
            )
            return state, (*actions, *more)
        others = order.with_dependents(spec, (event.name,))
        there = tuple(
            name
            for name in others
            if name not in (event.name, *state.waiting)
            and not order.is_idle(daemons.get(name, Down()))
        )
        says = tuple(SayMaster(DaemonNeeds(name, event.name, started=True)) for name in there)
        state, more = order.end(spec, state, there, HALT, daemons)
        actions = (*actions, *says, *more)
    if state.waiting:
        state, more = order.start_waiting(spec, state, daemons)
        actions = (*actions, *more)
    state, more = _advance(spec, state, daemons, now)
    return state, (*actions, *more)


def _stop(
    spec: MasterSpec,
    state: Master,
    why: str,
    daemons: Daemons,
    now: Ns,
    *,
    asked: bool = True,
    gone: int = 0,
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
        state = state.replace(impatient=True, ending=())
        return state, (SayMaster(MasterKills(why)), TellAll(Kill()), *hook)
    stay = sum(each.pidfile is not None and each.legion is None for each in spec.daemons)
    smart = min(state.alive - gone, stay)
    stops = MasterStops(why, state.alive - gone - smart, smart)
    if order.has_order(spec):
        state, ends = order.end(spec, state, tuple(daemons), STOP, daemons)
    else:
        ends = (TellAll(Stop()),)
    say: Actions = (SayMaster(stops), *ends, *hook)
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
        blocked=(),
        returning=(),
        asked=asked,
    )
    if state.hook is not None or state.alive:
        return state, say
    state, actions = _advance(spec, state, daemons, now)
    return state, (*say, *actions)


def _touched(spec: MasterSpec, state: Master, hook: Hook, daemons: Daemons, now: Ns) -> Result:
    """Run a touch hook, after others; as in uWSGI, only while everything just runs."""
    if state.phase != RUNNING or hook not in spec.hooks or hook in state.touched:
        return state, ()
    return _advance(spec, state.replace(touched=(*state.touched, hook)), daemons, now)


def _hook_ended(
    spec: MasterSpec, state: Master, event: HookEnded, daemons: Daemons, now: Ns
) -> Result:
    hook = state.hook
    assert hook is not None, "only a hook that runs can end"
    state = state.replace(hook=None)
    if event.status == 0:
        return _advance(spec, state, daemons, now)
    safe = isinstance(hook.deed, Exec) and hook.deed.safe
    fatal = not safe and state.phase != STOPPING and hook.phase != "touch"
    option, text = _title(hook)
    note = HookFailed(option, text, event.status, fatal, event.problem)
    if fatal:
        why = f"the {hook.phase} hook failed"
        state, actions = _stop(spec, state.replace(code=EXIT_HOOK), why, daemons, now, asked=False)
    else:
        state, actions = _advance(spec, state, daemons, now)
    return state, (SayMaster(note), *actions)
