# ruff: noqa: PLR0911, RET503  # tables of cases that end in assert_never
r"""The daemon machine: what one daemon does next.

`step` is total and pure: given the specification, the state, an event and the time it returns the
new state and the actions, and nothing else decides. Rule 1: no clock, no I/O, no configuration
text. Rule 2: an event that carries another run than the state's changes nothing. Rule 3: a
daemon has at most one timer, and none when it is down.

        Start            ExecOk              Exited, nothing left
  Down -------> Starting -------> Up ------------------------------> Backoff (or at once Starting)
   ^               |  SpawnFailed  \ Stop, Reload, Touched,              | Timer
   |               |                \ Exited with something left         v
   |               v                 v                              Starting
   +----------- Broken           Stopping ---- deadline: SIGKILL, then Stuck is said
   |  Exited       |                 | Exited and Emptied
   +---------------+-----------------+--- then: down, or restart as after a crash
"""

from __future__ import annotations

from lowsuper.backoff import count_spawns, pause_before_start
from lowsuper.errors import assert_never
from lowsuper.events import (
    CancelTimer,
    ControlEnded,
    DaemonDied,
    DaemonEnding,
    DaemonGone,
    DaemonKilled,
    DaemonNotStarted,
    DaemonSlow,
    DaemonStarted,
    DaemonStuck,
    Emptied,
    ExecOk,
    Exited,
    Kill,
    KillDomain,
    Reload,
    Say,
    SetTimer,
    Settled,
    Signal,
    Spawn,
    SpawnFailed,
    Start,
    Stop,
    Timer,
    Touched,
    WentDown,
)
from lowsuper.record import Record
from lowsuper.units import SECOND, Ns, RunId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import DaemonAction, DaemonEvent
    from lowsuper.model import DaemonSpec

STATE_VERSION = 1
"""Raised whenever a state class changes, for a master that takes over a stored state."""

SLOW_START = 10 * SECOND  # a helper that has not reached execve by then is mentioned
STUCK = 10 * SECOND  # what lives this long after SIGKILL is mentioned, or abandoned

DOWN, RELOADED, AGAIN, CRASHED = "down", "reloaded", "again", "crashed"
"""What follows a Stopping: nothing; here nothing, but the master starts the next instance; a
start at once; a start under the throttle. Only what nothing follows is ever abandoned."""


class Down(Record):
    """No process of it exists and none is wanted."""

    run: RunId = 0  # the last one


class Starting(Record):
    """Cloned; whether the program could be executed is not known yet."""

    run: RunId
    since: Ns
    spawns: int  # starts since it last ran stably, this one included
    first: bool = False  # the first after a Start: its outcome is told to the master machine


class Broken(Record):
    """A step failed; the helper's exit has not been seen yet."""

    run: RunId
    since: Ns
    spawns: int
    failure: SpawnFailed
    main_gone: bool = False  # the helper is gone, something else of it is not


class Up(Record):
    """The program runs."""

    run: RunId
    since: Ns
    spawns: int
    pid: int
    ready: bool = True


class Stopping(Record):
    """It was asked to end, or its own process has ended and others of it have not."""

    run: RunId
    since: Ns  # when the ending began
    deadline: Ns  # what is timed now: first the patience, after SIGKILL the time to complain
    born: Ns
    spawns: int
    pid: int  # 0: it never ran
    then: str  # DOWN, RELOADED, AGAIN or CRASHED
    main_gone: bool = False
    status: int | None = None  # of the daemon's own process, once it is gone
    killed: bool = False
    said_stuck: bool = False


class Backoff(Record):
    """Nothing of it is left; it starts again at `until`."""

    run: RunId
    spawns: int
    until: Ns


State = Down | Starting | Broken | Up | Stopping | Backoff
STATES: tuple[type[Record], ...] = (Down, Starting, Broken, Up, Stopping, Backoff, SpawnFailed)

if TYPE_CHECKING:
    Result = tuple[State, tuple[DaemonAction, ...]]


def step(spec: DaemonSpec, state: State, event: DaemonEvent, now: Ns) -> Result:
    """Return the new state and what is to be done, in order.

    Args:
        spec: the daemon as it was when it was last started; `stop_timeout` must be filled in.
        state: its state.
        event: what happened.
        now: CLOCK_MONOTONIC in nanoseconds; never less than at the step before.
    """
    match state:
        case Down():
            return _down(state, event, now)
        case Starting():
            return _starting(spec, state, event, now)
        case Broken():
            return _broken(spec, state, event, now)
        case Up():
            return _up(spec, state, event, now)
        case Stopping():
            return _stopping(spec, state, event, now)
        case Backoff():
            return _backoff(spec, state, event, now)
        case _:
            assert_never(state)


def _spawn(run: RunId, spawns: int, now: Ns) -> tuple[Starting, tuple[DaemonAction, ...]]:
    """Begin the next run; `spawns` counts the starts before it."""
    run += 1
    return (
        Starting(run, now, spawns + 1),
        (Spawn(run), SetTimer(run, now + SLOW_START)),
    )


def _retry(run: RunId, spawns: int, pause: Ns, now: Ns) -> Result:
    """Start again after `pause`, or at once if there is none."""
    if pause == 0:
        return _spawn(run, spawns, now)
    return Backoff(run, spawns, now + pause), (SetTimer(run, now + pause),)


def _down(state: Down, event: DaemonEvent, now: Ns) -> Result:
    match event:
        case Start():
            starting, actions = _spawn(state.run, 0, now)
            return starting.replace(first=True), actions
        case (
            Stop()
            | Reload()
            | Kill()
            | Touched()
            | Timer()
            | ExecOk()
            | SpawnFailed()
            | Exited()
            | Emptied()
        ):
            return state, ()
        case _:
            assert_never(event)


def _starting(spec: DaemonSpec, state: Starting, event: DaemonEvent, now: Ns) -> Result:
    match event:
        case ExecOk() if event.run == state.run:
            up = Up(state.run, state.since, state.spawns, event.pid)
            note = DaemonStarted(spec.name, event.pid, event.uid, event.gid, event.rung)
            return up, (CancelTimer(), Say(note), Settled(True, state.first))
        case SpawnFailed() if event.run == state.run:
            settled = (Settled(False, True),) if state.first else ()
            if event.cloned:
                broken = Broken(state.run, state.since, state.spawns, event)
                return broken, (CancelTimer(), *settled)
            after, actions = _start_again(spec, state, event, now)
            return after, (*settled, *actions)
        case Exited() if event.run == state.run:
            # Race: the exit can be seen before the helper's record. The record, which then comes
            # for a run that is over, has only its text left to give; the pause is the same.
            up = Up(state.run, state.since, state.spawns, 0)
            settled = (Settled(False, True),) if state.first else ()
            after, actions = _up(spec, up, event, now)
            return after, (*settled, *actions)
        case Stop() | Reload() | Kill() | Touched():
            # Nothing runs yet that could end gracefully.
            stopping, actions = _kill_now(state, state.spawns, 0, _sequel(event), now)
            settled = (Settled(False, True),) if state.first else ()
            return stopping, (*actions, *settled)
        case Timer() if event.run == state.run:
            # One that hangs must not keep the master from being ready, or from a next reload.
            settled = (Settled(False, True),) if state.first else ()
            slow = DaemonSlow(spec.name, now - state.since)
            return state.replace(first=False), (Say(slow), *settled)
        case Start() | Timer() | ExecOk() | SpawnFailed() | Exited() | Emptied():
            return state, ()
        case _:
            assert_never(event)


def _sequel(event: Stop | Reload | Kill | Touched) -> str:
    """Return what follows the stop that this event asks for."""
    match event:
        case Stop() | Kill():
            return DOWN
        case Reload():
            return RELOADED
        case Touched():
            return AGAIN


def _kill_now(
    state: Starting | Broken | Up, spawns: int, pid: int, then: str, now: Ns
) -> tuple[Stopping, tuple[DaemonAction, ...]]:
    """End it without asking."""
    deadline = now + STUCK
    stopping = Stopping(state.run, now, deadline, state.since, spawns, pid, then, killed=True)
    return stopping, (KillDomain(state.run), SetTimer(state.run, deadline))


def _start_again(
    spec: DaemonSpec, state: Starting | Broken, failure: SpawnFailed, now: Ns
) -> Result:
    """After a start that failed: the throttle, and one line that says what failed."""
    pause = pause_before_start(state.spawns, now - state.since, spec.max_throttle)
    after, actions = _retry(state.run, state.spawns, pause, now)
    note = DaemonNotStarted(spec.name, failure.step, failure.errno, failure.subject, pause)
    return after, (Say(note), *actions)


def _broken(spec: DaemonSpec, state: Broken, event: DaemonEvent, now: Ns) -> Result:
    match event:
        case Exited() if event.run == state.run:
            if event.left:
                return state.replace(main_gone=True), (KillDomain(state.run),)
            return _start_again(spec, state, state.failure, now)
        case Emptied() if event.run == state.run and state.main_gone:
            return _start_again(spec, state, state.failure, now)
        case Stop() | Reload() | Kill():
            # It is about to end by itself, but a stop relies on nobody's good will.
            why = state.failure
            note = DaemonNotStarted(spec.name, why.step, why.errno, why.subject, None)
            stopping, actions = _kill_now(state, state.spawns, 0, _sequel(event), now)
            return stopping.replace(main_gone=state.main_gone), (*actions, Say(note))
        case Start() | Touched() | Timer() | ExecOk() | SpawnFailed() | Exited() | Emptied():
            return state, ()
        case _:
            assert_never(event)


def _up(spec: DaemonSpec, state: Up, event: DaemonEvent, now: Ns) -> Result:
    match event:
        case Exited() if event.run == state.run:
            return _died(spec, state, event, now)
        case Stop():
            return _end(spec, state, spec.stop_signal, why="stop", then=DOWN, now=now)
        case Reload():
            signal = spec.stop_signal if spec.reload_signal is None else spec.reload_signal
            return _end(spec, state, signal, why="reload", then=RELOADED, now=now)
        case Touched():
            why = f"touch {event.path}"
            return _end(spec, state, spec.stop_signal, why=why, then=AGAIN, now=now)
        case Kill():
            stopping, actions = _kill_now(state, state.spawns, state.pid, DOWN, now)
            return stopping, (*actions, Say(DaemonKilled(spec.name, state.pid, 0)))
        case Start() | Timer() | ExecOk() | SpawnFailed() | Exited() | Emptied():
            return state, ()
        case _:
            assert_never(event)


def _died(spec: DaemonSpec, state: Up, event: Exited, now: Ns) -> Result:
    """The daemon's own process ended without being asked."""
    age = now - state.since
    spawns = count_spawns(state.spawns, age)
    pause = None if spec.control else pause_before_start(spawns, age, spec.max_throttle)
    note = Say(DaemonDied(spec.name, state.pid, event.status, age, event.left, pause, spec.control))
    if event.left:
        # What it left behind may still hold its port: it goes first, gracefully.
        deadline = now + _patience(spec)
        stopping = Stopping(
            state.run,
            now,
            deadline,
            state.since,
            spawns,
            state.pid,
            CRASHED,
            main_gone=True,
            status=event.status,
        )
        return stopping, (
            note,
            Signal(state.run, spec.stop_signal),
            SetTimer(state.run, deadline),
        )
    if pause is None:
        return Down(state.run), (CancelTimer(), note, ControlEnded(event.status), WentDown())
    after, actions = _retry(state.run, spawns, pause, now)
    # The start comes before the words: whoever waits for the daemon waits for nothing else.
    return after, (*actions, note)


def _end(spec: DaemonSpec, state: Up, signal: int, *, why: str, then: str, now: Ns) -> Result:
    """Ask the daemon to end; `then` says what follows."""
    patience = _patience(spec)
    stopping = Stopping(state.run, now, now + patience, state.since, 0, state.pid, then)
    return stopping, (
        Signal(state.run, signal),
        SetTimer(state.run, stopping.deadline),
        Say(DaemonEnding(spec.name, state.pid, signal, patience, why)),
    )


def _patience(spec: DaemonSpec) -> Ns:
    assert spec.stop_timeout is not None, "filled in from reload-mercy when configured"
    return spec.stop_timeout


def _stopping(  # noqa: C901, PLR0912
    spec: DaemonSpec, state: Stopping, event: DaemonEvent, now: Ns
) -> Result:
    match event:
        case Exited() if event.run == state.run:
            gone = state.replace(main_gone=True, status=event.status)
            if not event.left:
                return _gone(spec, gone, now)
            # What is left is asked too: nobody else will tell it that its daemon has gone.
            ask = () if state.killed else (Signal(state.run, spec.stop_signal),)
            return gone, ask
        case Emptied() if event.run == state.run and state.main_gone:
            return _gone(spec, state, now)
        case Timer() if event.run == state.run and now >= state.deadline:
            return _overdue(spec, state, now)
        case Stop():
            return _for_good(state, now)
        case Reload():
            return state.replace(then=RELOADED), ()
        case Kill() if state.killed:
            return _for_good(state, now)
        case Kill():
            return _kill(spec, state.replace(then=DOWN), now)
        case Start():
            # A daemon that is on its way down comes back once the last of it is gone.
            return state.replace(then=AGAIN if state.then == DOWN else state.then), ()
        case ExecOk() if event.run == state.run:
            return state.replace(pid=event.pid), ()
        case SpawnFailed() if event.run == state.run and not event.cloned:
            # Race: it was told to end before it was known that there is nothing to end.
            return _gone(spec, state, now)
        case Touched() | Timer() | ExecOk() | SpawnFailed() | Exited() | Emptied():
            return state, ()
        case _:
            assert_never(event)


def _for_good(state: Stopping, now: Ns) -> Result:
    """Nothing shall follow, so its patience with what survived SIGKILL has an end too."""
    down = state.replace(then=DOWN)
    if not state.said_stuck or state.then == DOWN:
        return down, ()  # its timer is set
    deadline = now + STUCK
    return down.replace(deadline=deadline), (SetTimer(state.run, deadline),)


def _overdue(spec: DaemonSpec, state: Stopping, now: Ns) -> Result:
    """The deadline passed: SIGKILL, or, long after it, say who does not go."""
    if not state.killed:
        return _kill(spec, state, now)
    waited = now - state.since
    if state.then == DOWN and state.said_stuck:
        note = DaemonStuck(spec.name, state.pid, waited, abandoned=True)
        return Down(state.run), (Say(note), WentDown(abandoned=True))
    note = DaemonStuck(spec.name, state.pid, waited, abandoned=False)
    if state.then != DOWN:
        return state.replace(said_stuck=True), (Say(note),)
    deadline = now + STUCK
    return state.replace(said_stuck=True, deadline=deadline), (
        Say(note),
        SetTimer(state.run, deadline),
    )


def _kill(spec: DaemonSpec, state: Stopping, now: Ns) -> Result:
    deadline = now + STUCK
    return state.replace(killed=True, deadline=deadline), (
        KillDomain(state.run),
        SetTimer(state.run, deadline),
        Say(DaemonKilled(spec.name, state.pid, now - state.since)),
    )


def _gone(spec: DaemonSpec, state: Stopping, now: Ns) -> Result:
    """Nothing of the daemon is left: do what was to follow."""
    gone = DaemonGone(spec.name, state.pid, state.status, now - state.since)
    note = Say(gone)
    match state.then:
        case "again":
            starting, spawn = _spawn(state.run, 0, now)
            return starting, (Say(gone.replace(retry=0)), *spawn)
        case "crashed" if spec.control:
            ended = ControlEnded(state.status or 0)
            return Down(state.run), (CancelTimer(), note, ended, WentDown())
        case "crashed":
            age = state.since - state.born
            pause = pause_before_start(max(state.spawns, 1), age, spec.max_throttle)
            after, actions = _retry(state.run, state.spawns, pause, now)
            cancel = (CancelTimer(),) if pause == 0 else ()
            return after, (*cancel, Say(gone.replace(retry=pause)), *actions)
        case _:
            return Down(state.run), (CancelTimer(), note, WentDown())


def _backoff(spec: DaemonSpec, state: Backoff, event: DaemonEvent, now: Ns) -> Result:
    match event:
        case SpawnFailed() if event.run == state.run:
            note = DaemonNotStarted(
                spec.name, event.step, event.errno, event.subject, state.until - now
            )
            return state, (Say(note),)
        case Timer() if event.run == state.run and now >= state.until:
            return _spawn(state.run, state.spawns, now)
        case Start() | Touched():
            return _spawn(state.run, 0, now)
        case Stop() | Reload() | Kill():
            return Down(state.run), (CancelTimer(), WentDown())
        case SpawnFailed() | Timer() | ExecOk() | Exited() | Emptied():
            return state, ()
        case _:
            assert_never(event)
