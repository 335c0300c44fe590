"""What the process outside a jail decides: when the jail is made, ended, and made again.

Pure. The master lives in the jail and looks after the daemons; the process that was launched stays
outside, where the configuration, the log, the FIFO and the pidfile are. `step` maps its state and
what happened to a new state and to what is to be done, as `machine` and `master` do.
"""

from __future__ import annotations

from lowsuper.backoff import count_spawns, pause_before_start
from lowsuper.events import (
    Announce,
    Boot,
    FifoByte,
    Finish,
    HookEnded,
    KillHook,
    LoadConfig,
    Loaded,
    LoadRefused,
    ReloadTouched,
    ReopenLogs,
    RunHook,
    SelectFifo,
    Signalled,
    WritePidfiles,
)
from lowsuper.model import Exec, Exit, Hook, Print
from lowsuper.record import Record
from lowsuper.report import format_status
from lowsuper.units import SECOND, Ns, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import MasterSpec

SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGTERM = 1, 2, 3, 10, 15
NAMES = {SIGHUP: "SIGHUP", SIGINT: "SIGINT", SIGQUIT: "SIGQUIT", SIGTERM: "SIGTERM"}

EXIT_HOOK, EXIT_FAILED = 1, 125
GRACE = Ns(10 * SECOND)  # from the second request to stop until the whole jail is killed

OUTSIDE_BEFORE = ("asap", "pre-jail")
AFTER = ("post-jail",)

PREPARING, ALIVE, WAITING, ENDED = "preparing", "alive", "waiting", "ended"
RUN, RELOAD, STOP = "run", "reload", "stop"
MAKING, MADE, REMOVING = "making", "made", "removing"


# What happens.


class JailEntered(Record):
    """The mounts are made; the master waits for leave to begin."""


class JailReady(Record):
    """Every daemon was started once."""


class JailAsksReload(Record):
    """Somebody in the jail asked its master for a reload."""


class JailEnded(Record):
    """The jail's first process has ended, and so has everything in it."""

    status: int  # raw wait status
    code: int | None = None  # what its master ended with; None: it died
    failure: str = ""  # why the jail could not be made
    shared: bool = False  # its pid namespace was another jail's


class JailTimer(Record):
    """The timer has fired."""


class NetworkMade(Record):
    """The links were made, or, with a problem, not; nothing more is done about them now."""

    problem: str = ""


class NetworkRemoved(Record):
    """Nothing is left of the links but what the problem tells."""

    problem: str = ""


# What is to be done.


class MakeJail(Record):
    """Make it; JailEntered or JailEnded follows."""


class LetJailGo(Record):
    """Let its master begin."""


class SignalJail(Record):
    """Send a signal to its master."""

    signal: int


class KillJail(Record):
    """SIGKILL everything in it."""


class SetJailTimer(Record):
    """Set the only timer; None: no timer."""

    at: Ns | None


class SayLine(Record):
    """Tell the operator."""

    text: str


class MakeNetwork(Record):
    """Make the links of the jail that was entered; NetworkMade follows."""


class KillNetwork(Record):
    """Go on with that no longer; NetworkMade follows all the same."""


class RemoveNetwork(Record):
    """Remove what is left of the links of a dead jail; NetworkRemoved follows."""


class Outside(Record):
    """The state of the process outside."""

    phase: str = PREPARING
    goal: str = RUN
    todo: tuple[Hook, ...] = ()
    hook: Hook | None = None  # the running one
    going: bool = False  # its master was let go
    ready: bool = False  # and has started every daemon
    announced: bool = False
    stops: int = 0  # how often a stop was asked for
    spawns: int = 0  # makings that count for the pause before the next
    makings: int = 0
    since: Ns = Ns(0)  # of the last making
    again: str = ""  # why a reload was asked for while there was no time for it
    brutal: bool = False  # a reload does not wait for the daemons
    code: int | None = None  # what the program ends with, whatever the jail does
    network: str = ""  # "": it has no links; making, made, removing
    failure: str = ""  # why they could not be made
    ended: JailEnded | None = None  # is dead, but its links are still there


if TYPE_CHECKING:
    from lowsuper.events import MasterAction, MasterEvent

    JailEvent = JailEntered | JailReady | JailAsksReload | JailEnded | JailTimer
    Event = MasterEvent | JailEvent | NetworkMade | NetworkRemoved
    JailAction = MakeJail | LetJailGo | SignalJail | KillJail | SetJailTimer | SayLine
    Action = MasterAction | JailAction | MakeNetwork | KillNetwork | RemoveNetwork
    Result = tuple[Outside, tuple[Action, ...]]


def build_inner(spec: MasterSpec) -> MasterSpec:
    """Return the configuration of the master in the jail: without what is done outside."""
    assert spec.jail is not None
    outside = (*OUTSIDE_BEFORE, *AFTER)
    chdir, kill_domain = spec.chdir, spec.kill_domain
    if chdir is not None and spec.jail.is_elsewhere:
        chdir = "/" + chdir.lstrip("/")
    if not spec.jail.has_cgroups:
        kill_domain = "shim"
    return spec.replace(
        hooks=tuple(hook for hook in spec.hooks if hook.phase not in outside),
        chdir=chdir,
        die_on_term=True,
        exit_on_reload=False,
        pidfile=None,
        pidfile2=None,
        safe_pidfile=None,
        daemonize=None,
        daemonize2=None,
        logto=None,
        logto2=None,
        touch_reload=(),
        cgroup=None,  # the process outside has entered it, and this one with it
        cgroup_settings=(),
        master_fifo=(),
        kill_domain=kill_domain,
        setns_socket=None,
    )


def step(spec: MasterSpec, state: Outside, event: Event, now: Ns) -> Result:  # noqa: C901, PLR0911, PLR0912
    """Return the new state and what is to be done, in order.

    Args:
        spec: the configuration in force; at `Loaded` already the new one.
        state: the state.
        event: what happened.
        now: CLOCK_MONOTONIC in nanoseconds.
    """
    match event:
        case Boot():
            state, actions = _prepare(spec, state, now)
            return state, (WritePidfiles(dropped=False), *actions)
        case Signalled(signal=signal):
            return _signalled(spec, state, signal, now)
        case FifoByte(command=command):
            return _fifo(spec, state, command, now)
        case ReloadTouched(path=path):
            return _reload(spec, state, f"touch-reload {path}", False, now)
        case JailAsksReload():
            return _reload(spec, state, "SIGHUP in the jail", False, now)
        case Loaded():
            return _loaded(spec, state, now)
        case LoadRefused():
            return state, ()
        case NetworkMade(problem=problem):
            return _network_made(spec, state, problem, now)
        case NetworkRemoved(problem=problem):
            return _network_removed(spec, state, problem, now)
        case JailEntered() if spec.jail is not None and spec.jail.links and not state.network:
            return state.replace(network=MAKING), (MakeNetwork(),)
        case JailEnded() if state.network:
            return _hold_end(state, event)
        case JailTimer() if state.ended is not None:
            return state, ()
        case HookEnded(status=status, problem=problem):
            return _hook_ended(spec, state, status, problem, now)
        case JailEntered():
            is_here = spec.jail is not None and spec.jail.post_jail == "outside"
            todo = _hooks(spec, AFTER) if is_here else ()
            return _advance(spec, state.replace(todo=todo), now)
        case JailReady():
            return _ready(spec, state, now)
        case JailEnded():
            return _ended(spec, state, event, now)
        case JailTimer() if state.phase == WAITING and state.hook is None:
            return _prepare(spec, state, now)
        case JailTimer() if state.phase == WAITING:
            return state, (SetJailTimer(Ns(now + SECOND)),)  # a hook of the last one dies still
        case JailTimer() if state.phase == ALIVE and state.goal == STOP:
            return state, (SayLine("the jail does not end; killing it"), KillJail())
        case _:
            return state, ()


def describe_phase(state: Outside) -> str:
    """Return what the process outside is at, in the words that a master has for it."""
    if state.phase == ENDED:
        return "ended"
    if state.goal == STOP:
        return "stopping"
    if state.goal == RELOAD:
        return "reloading"
    return "running" if state.ready else "booting"


def _hooks(spec: MasterSpec, phases: tuple[str, ...]) -> tuple[Hook, ...]:
    return tuple(hook for phase in phases for hook in spec.hooks if hook.phase == phase)


def _prepare(spec: MasterSpec, state: Outside, now: Ns) -> Result:
    state = state.replace(phase=PREPARING, todo=_hooks(spec, OUTSIDE_BEFORE), going=False)
    return _advance(spec, state, now)


def _advance(spec: MasterSpec, state: Outside, now: Ns) -> Result:
    """Run the next hook or, when there is none, go on."""
    done: list[Action] = []
    while state.todo:
        hook, state = state.todo[0], state.replace(todo=state.todo[1:])
        match hook.deed:
            case Print(text=text):
                done.append(SayLine(text))
            case Exit(code=code):
                done.append(SayLine(f"{hook.origin.key}: exit"))
                state, actions = _give_up(state, code)
                return state, (*done, *actions)
            case _:
                text = "" if hook.private else f": {hook.origin.value}"
                say = SayLine(f"running {hook.origin.key}{text}")
                return state.replace(hook=hook), (*done, say, RunHook(hook))
    if state.phase == ALIVE:
        return state.replace(going=True), (*done, LetJailGo())
    state = state.replace(
        phase=ALIVE,
        ready=False,
        since=now,
        spawns=state.spawns + 1,
        makings=state.makings + 1,
    )
    return state, (*done, MakeJail())


def _give_up(state: Outside, code: int) -> Result:
    """End with `code` as soon as nothing lives any more."""
    state = state.replace(goal=STOP, code=code, todo=())
    if state.ended is not None:
        return state, ()  # the end comes when the network is removed
    if state.phase == ALIVE:
        return state, (KillJail(),)
    return state.replace(phase=ENDED), (SetJailTimer(None), Finish(code))


def _hook_ended(spec: MasterSpec, state: Outside, status: int, problem: str, now: Ns) -> Result:
    hook = state.hook
    assert hook is not None
    state = state.replace(hook=None)
    if state.goal == STOP:
        return _give_up(state, 0 if state.code is None else state.code)
    if state.phase == WAITING:
        return state, ()  # it was killed when the jail died
    if status == 0:
        return _advance(spec, state, now)
    why = problem or format_status(status)
    text = "" if hook.private else f": {hook.origin.value}"
    safe = isinstance(hook.deed, Exec) and hook.deed.safe
    consequence = "going on" if safe else "stopping"
    say = SayLine(f"{hook.origin.key}{text}: {why}; {consequence}")
    state, actions = _advance(spec, state, now) if safe else _give_up(state, EXIT_HOOK)
    return state, (say, *actions)


def exit_code(status: int) -> int:
    """Return what a shell would call this wait status: the code, or 128 + the signal."""
    signal = status & 0x7F
    return 128 + signal if signal else status >> 8 & 0xFF


def _signalled(spec: MasterSpec, state: Outside, signal: int, now: Ns) -> Result:
    name = NAMES.get(signal, f"signal {signal}")
    if signal == SIGHUP:
        return _reload(spec, state, name, False, now)
    if signal == SIGTERM and not spec.die_on_term and state.goal != STOP:
        return _reload(spec, state, f"{name} with die-on-term = false", True, now)
    if signal in (SIGTERM, SIGINT, SIGQUIT):
        return _stop(state, signal, name, now)
    if signal == SIGUSR1:
        return state, _say_state(state, now)
    return state, ()


def _say_state(state: Outside, now: Ns) -> tuple[Action, ...]:
    if state.phase != ALIVE:
        return (SayLine(f"the jail: {state.phase}"),)
    line = SayLine(f"the jail: up for {format_duration(Ns(now - state.since))}")
    return (line, SignalJail(SIGUSR1)) if state.going else (line,)


def _fifo(  # noqa: PLR0911  # a table
    spec: MasterSpec, state: Outside, command: str, now: Ns
) -> Result:
    why = f"master-fifo {command}"
    match command:
        case "q":
            return _stop(state, SIGTERM, why, now)
        case "Q":
            state, first = _stop(state, SIGTERM, why, now)
            if state.stops > 1:
                return state, first
            state, second = _stop(state, SIGTERM, why, now)
            return state, (*first, *second)
        case "r" | "R":
            return _reload(spec, state, why, command == "R", now)
        case "s":
            return state, _say_state(state, now)
        case "l" | "L":
            return state, (ReopenLogs(rotate=command == "L"),)
        case "P":
            return state, (WritePidfiles(dropped=False),)
        case _ if command in "0123456789":
            return state, (SelectFifo(int(command)),)
        case _:
            return state, ()


def _stop(  # noqa: PLR0911
    state: Outside, signal: int, why: str, now: Ns
) -> Result:
    """Stop the jail's master; asked again let it kill its daemons; asked a third time kill all."""
    if state.phase == ENDED:
        return state, ()
    was = state.goal
    state = state.replace(goal=STOP, stops=state.stops + 1)
    if state.hook is not None:
        kill: tuple[Action, ...] = (KillJail(),) if state.phase == ALIVE else ()
        return state, (SayLine(f"{why}: stopping"), KillHook(), *kill)
    if state.phase != ALIVE:
        state, actions = _give_up(state, 0)
        return state, (SayLine(f"{why}: stopping"), *actions)
    if not state.going or state.stops > 2:
        return state, (SayLine(f"{why}: killing the jail"), KillJail())
    if was == RELOAD and state.stops == 1:
        return state, (SayLine(f"{why}: stopping"),)  # its master is stopping already
    if state.stops == 2:
        # Another number than before: two of the same that wait are one.
        other = SIGTERM if signal == SIGINT else SIGINT
        return state, (SignalJail(other), SetJailTimer(Ns(now + GRACE)))
    return state, (SignalJail(signal),)


def _reload(spec: MasterSpec, state: Outside, why: str, brutal: bool, now: Ns) -> Result:
    if state.goal == STOP or state.phase == ENDED:
        return state, (SayLine(f"reload ({why}): it is stopping; ignored"),)
    if spec.exit_on_reload:
        return _stop(state, SIGTERM, f"{why} with exit-on-reload", now)
    busy = state.goal == RELOAD or state.phase == PREPARING or state.ended is not None
    if busy or (state.phase == ALIVE and not state.ready):
        return state.replace(again=why, brutal=state.brutal or brutal), ()
    state = state.replace(brutal=brutal, again="")
    return state, (SayLine(f"{why}: reloading"), LoadConfig())


def _loaded(spec: MasterSpec, state: Outside, now: Ns) -> Result:
    """End the jail, to make a new one; nothing of lowsuper is inside that could do more."""
    if state.ended is not None:
        return state.replace(goal=RELOAD if state.goal == RUN else state.goal), ()
    if state.phase == WAITING:
        state, actions = _prepare(spec, state.replace(spawns=0), now)
        return state, (SetJailTimer(None), *actions)
    if state.phase != ALIVE or state.goal != RUN:
        return state, ()
    state = state.replace(goal=RELOAD)
    say = SayLine("ending the jail, to make a new one")
    return state, (say, KillJail() if state.brutal else SignalJail(SIGTERM))


def _ready(spec: MasterSpec, state: Outside, now: Ns) -> Result:
    actions: tuple[Action, ...] = () if state.announced else (Announce(),)
    state = state.replace(ready=True, announced=True)
    if not state.again or state.goal != RUN:
        return state, actions
    state, more = _reload(spec, state, state.again, state.brutal, now)
    return state, (*actions, *more)


def _network_made(spec: MasterSpec, state: Outside, problem: str, now: Ns) -> Result:
    """Go on with what comes once the jail was entered; without its network it is of no use."""
    if state.ended is not None:  # meanwhile
        return state.replace(network=REMOVING), (RemoveNetwork(),)
    state = state.replace(network=MADE)
    if state.goal == STOP:
        return state, ()  # it is being killed
    if problem:
        return state.replace(failure=f"the jail: {problem}"), (KillJail(),)
    return step(spec, state, JailEntered(), now)


def _hold_end(state: Outside, event: JailEnded) -> Result:
    """Remove the links of a jail that has ended before anything comes of its end.

    The kernel removes them, too, but some time later, and a new jail would find them still there.
    """
    done: list[Action] = [SetJailTimer(None)]
    if state.hook is not None:
        done.append(KillHook())
    if state.failure:
        event = event.replace(code=EXIT_FAILED, failure=state.failure)
    state = state.replace(phase=WAITING, going=False, todo=(), ended=event)
    if state.network == MAKING:
        return state, (*done, KillNetwork())
    return state.replace(network=REMOVING), (*done, RemoveNetwork())


def _network_removed(spec: MasterSpec, state: Outside, problem: str, now: Ns) -> Result:
    event = state.ended
    assert event is not None
    say: list[Action] = [SayLine(problem)] if problem else []
    state = state.replace(network="", failure="", ended=None)
    return _then(say, _ended(spec, state, event, now))


def _ended(spec: MasterSpec, state: Outside, event: JailEnded, now: Ns) -> Result:
    """Everything in the jail has ended: end, too, or make it again."""
    done: list[Action] = [SetJailTimer(None)]
    if state.hook is not None:  # a post-jail hook runs still
        done.append(KillHook())
    if event.failure:
        done.append(SayLine(event.failure))
    state = state.replace(phase=WAITING, going=False, todo=())
    code = exit_code(event.status) if event.code is None else event.code
    if state.goal == STOP:
        if state.code is not None:
            code = state.code
        elif event.code is None and not state.stops:
            code = EXIT_FAILED
        return _finish(state, code, done)
    if state.goal == RELOAD:
        return _then(done, _prepare(spec, state.replace(goal=RUN, spawns=0), now))
    if _is_final(spec, state, event):
        return _finish(state, code, done)
    age = Ns(now - state.since)
    spawns = count_spawns(state.spawns, age)
    pause = pause_before_start(spawns, age, None)
    state = state.replace(spawns=spawns)
    how = "could not be made" if event.failure else f"died: {format_status(event.status)}"
    if event.code == 0:
        how = "ended with the pid namespace that it had joined,"
    after = f"in {format_duration(pause)}" if pause else "now"
    done.append(SayLine(f"the jail {how} after {format_duration(age)}; made again {after}"))
    if state.hook is None and not pause:
        return _then(done, _prepare(spec, state, now))
    return state, (*done, SetJailTimer(Ns(now + max(pause, 1))))


def _is_final(spec: MasterSpec, state: Outside, event: JailEnded) -> bool:
    """Tell whether a jail that ended without being asked to is not made again."""
    if event.code is None or (event.failure and state.makings > 1):
        return False
    # When a pid namespace ends, SIGTERM goes to all that is in it, also to who has joined it.
    control = any(daemon.control for daemon in spec.daemons)
    return event.code != 0 or control or not event.shared


def _finish(state: Outside, code: int, done: list[Action]) -> Result:
    if state.hook is not None:
        return state.replace(goal=STOP, code=code), tuple(done)
    return state.replace(phase=ENDED), (*done, Finish(code))


def _then(done: list[Action], result: Result) -> Result:
    state, actions = result
    return state, (*done, *actions)
