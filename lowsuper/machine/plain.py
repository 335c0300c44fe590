# ruff: noqa: PLR0911, RET503  # tables of cases that end in assert_never
"""The table of a daemon's states; what only a smart daemon does is in `smart`.

Rule 1: no clock, no I/O, no configuration text. Rule 2: an event that carries another run than
the state's changes nothing. Rule 3: a daemon has at most one timer, and none when it is down.
"""

from __future__ import annotations

from lowsuper.errors import assert_never
from lowsuper.events import (
    CancelTimer,
    ControlEnded,
    DaemonGone,
    DaemonInBackground,
    DaemonKilled,
    DaemonNotStarted,
    DaemonSlow,
    DaemonStarted,
    DaemonStuck,
    Deliver,
    Emptied,
    ExecOk,
    Exited,
    Expel,
    Halt,
    Kill,
    KillDomain,
    Ready,
    Reload,
    Reset,
    Restart,
    Say,
    SetTimer,
    Signal,
    SmartEvent,
    SpawnFailed,
    Start,
    Stop,
    Timer,
    Touched,
    Unready,
    WatchdogMissed,
)
from lowsuper.machine import running, smart
from lowsuper.machine.moves import (
    ONESHOT,
    begin,
    come_up,
    die,
    end,
    finish,
    go_down,
    is_smart,
    judge_end,
    kill_now,
    known,
    retry,
    sequel,
    unname_after,
    unsettle,
)
from lowsuper.machine.states import (
    AGAIN,
    DOWN,
    RELOADED,
    STUCK,
    UNREADY,
    Awaiting,
    Backoff,
    Broken,
    Down,
    Looking,
    Over,
    Starting,
    Stopping,
    Up,
)
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import DaemonEvent, PlainEvent
    from lowsuper.machine.moves import Result
    from lowsuper.machine.states import State
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns

TO_BACKGROUND = 5 * SECOND
"""A plain daemon whose program exits with 0 within that time and leaves processes has put itself
into the background, most likely."""


def step(  # noqa: C901
    spec: DaemonSpec, state: State, event: DaemonEvent, now: Ns
) -> Result:
    """Return the new state and what is to be done, in order.

    Args:
        spec: the daemon as it was when it was last started; `stop_timeout` must be filled in.
        state: its state.
        event: what happened.
        now: CLOCK_MONOTONIC in nanoseconds; never less than at the step before.
    """
    if isinstance(event, Expel):
        expels = is_smart(spec) and isinstance(state, Down | Over)
        return smart.expel(state.run, event.why) if expels else (state, ())
    if isinstance(state, Looking | Awaiting) or (isinstance(state, Up) and is_smart(spec)):
        return smart.step(spec, state, event, now)
    if isinstance(event, SmartEvent):
        return state, ()  # an answer that comes too late, or a pidfile that nobody looks at now
    match state:
        case Down():
            return _down(spec, state, event, now)
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
        case Over():
            return _over(spec, state, event, now)
        case _:
            assert_never(state)


def _down(spec: DaemonSpec, state: Down, event: PlainEvent, now: Ns) -> Result:
    match event:
        case Start():
            return begin(spec, state.run, 0, now, first=True)
        case (
            Stop()
            | Reload()
            | Kill()
            | Touched()
            | Restart()
            | Halt()
            | Reset()
            | Deliver()
            | Ready()
            | Unready()
            | WatchdogMissed()
            | Timer()
            | ExecOk()
            | SpawnFailed()
            | Exited()
            | Emptied()
        ):
            return state, ()
        case _:
            assert_never(event)


def _starting(spec: DaemonSpec, state: Starting, event: PlainEvent, now: Ns) -> Result:
    match event:
        case ExecOk() if event.run == state.run:
            if is_smart(spec):
                return smart.launched(spec, state, event.pid, now)
            up = Up(state.run, state.since, state.spawns, event.pid, recent=state.recent)
            up, actions = come_up(spec, up, first=state.first, found=False, now=now)
            note = DaemonStarted(spec.name, event.pid, event.uid, event.gid, event.rung)
            return up, (CancelTimer(), Say(note), *actions)
        case SpawnFailed() if event.run == state.run:
            settled = unsettle(state.first)
            if event.cloned:
                broken = Broken(state.run, state.since, state.spawns, event, recent=state.recent)
                return broken, (CancelTimer(), *settled)
            after, actions = _start_again(spec, state, event, now)
            return after, (*settled, *actions)
        case Exited() if event.run == state.run:
            # Race: the exit can be seen before the helper's record. The record, which then comes
            # for a run that is over, has only its text left to give; the pause is the same.
            return _ended_early(spec, state, event, now)
        case Stop() | Halt() | Reload() | Kill() | Touched() | Restart():
            # Nothing runs yet that could end gracefully.
            stopping, actions = kill_now(state, state.spawns, 0, sequel(event), now)
            return stopping, (*actions, *unsettle(state.first))
        case Timer() if event.run == state.run:
            # One that hangs must not keep the master from being ready, or from a next reload.
            settled = unsettle(state.first)
            slow = DaemonSlow(spec.name, now - state.since)
            return state.replace(first=False), (Say(slow), *settled)
        case Reset():
            return state.replace(spawns=1, recent=()), ()
        case (
            Start()
            | Deliver()
            | Ready()
            | Unready()
            | WatchdogMissed()
            | Timer()
            | ExecOk()
            | SpawnFailed()
            | Exited()
            | Emptied()
        ):
            return state, ()
        case _:
            assert_never(event)


def _ended_early(spec: DaemonSpec, state: Starting, event: Exited, now: Ns) -> Result:
    """Its program ended before it was known that it ran."""
    if is_smart(spec):
        return smart.launched_and_gone(spec, state, event, now)
    up = Up(state.run, state.since, state.spawns, 0, recent=state.recent)
    up, settled = come_up(spec, up, first=state.first, found=False, now=now)
    after, actions = _ended(spec, up, event, now)
    if isinstance(after, Up):  # in the background
        return after, (CancelTimer(), *actions, *settled)
    # One that would have been ready at once has not told so yet; any other says it itself.
    return after, (*(unsettle(state.first) if up.ready else ()), *actions)


def _start_again(
    spec: DaemonSpec, state: Starting | Broken, failure: SpawnFailed, now: Ns
) -> Result:
    """After a start that failed: the throttle, and one line that says what failed."""
    verdict = judge_end(
        spec, None, spawns=state.spawns, recent=state.recent, age=now - state.since, now=now
    )
    note = DaemonNotStarted(
        spec.name, failure.step, failure.errno, failure.subject, None, failure.advice
    )
    if verdict.outcome != AGAIN:
        over, actions = finish(spec, state.run, verdict, None, first=False)
        return over, (Say(note), *actions)
    after, actions = retry(spec, state.run, state.spawns, verdict.pause, now, recent=verdict.recent)
    return after, (Say(note.replace(retry=verdict.pause)), *actions)


def _broken(spec: DaemonSpec, state: Broken, event: PlainEvent, now: Ns) -> Result:
    match event:
        case Exited() if event.run == state.run:
            if event.left:
                return state.replace(main_gone=True), (KillDomain(state.run),)
            return _start_again(spec, state, state.failure, now)
        case Emptied() if event.run == state.run and state.main_gone:
            return _start_again(spec, state, state.failure, now)
        case Stop() | Halt() | Reload() | Kill() | Restart():
            # It is about to end by itself, but a stop relies on nobody's good will.
            why = state.failure
            note = DaemonNotStarted(spec.name, why.step, why.errno, why.subject, None)
            stopping, actions = kill_now(state, state.spawns, 0, sequel(event), now)
            return stopping.replace(main_gone=state.main_gone), (*actions, Say(note))
        case Reset():
            return state.replace(spawns=1, recent=()), ()
        case (
            Start()
            | Touched()
            | Deliver()
            | Ready()
            | Unready()
            | WatchdogMissed()
            | Timer()
            | ExecOk()
            | SpawnFailed()
            | Exited()
            | Emptied()
        ):
            return state, ()
        case _:
            assert_never(event)


def _up(spec: DaemonSpec, state: Up, event: PlainEvent, now: Ns) -> Result:
    common = running.step(spec, state, event, now)
    if common is not None:
        return common
    match event:
        case Exited() if event.run == state.run and not state.background:
            return _ended(spec, state, event, now)
        case Emptied() if event.run == state.run and state.background:
            return _died(spec, state, Exited(state.run, None, False), now)
        case Stop():
            after, actions = end(spec, state, spec.stop_signal, why="stop", then=DOWN, now=now)
            return after, (*actions, *unsettle(state.first))
        case Reload():
            signal = spec.stop_signal if spec.reload_signal is None else spec.reload_signal
            after, actions = end(spec, state, signal, why="reload", then=RELOADED, now=now)
            return after, (*actions, *unsettle(state.first))
        case Kill():
            stopping, actions = kill_now(state, state.spawns, state.pid, DOWN, now)
            stopping = stopping.replace(main_gone=state.background)
            killed = Say(DaemonKilled(spec.name, state.pid, 0))
            return stopping, (*actions, killed, *unsettle(state.first))
        case (
            Start()
            | Touched()
            | Restart()
            | Halt()
            | Reset()
            | Deliver()
            | Ready()
            | Unready()
            | WatchdogMissed()
            | Timer()
            | ExecOk()
            | SpawnFailed()
            | Exited()
            | Emptied()
        ):
            return state, ()
        case _:
            assert_never(event)


def _ended(spec: DaemonSpec, state: Up, event: Exited, now: Ns) -> Result:
    """The daemon's own process ended without being asked."""
    age = now - state.since
    has_left = event.left and event.status == 0 and age < TO_BACKGROUND
    if has_left and not spec.control and spec.kind != ONESHOT:
        # To end what it left and start it again would go on so for ever.
        note = DaemonInBackground(spec.name, state.pid, age)
        return state.replace(background=True), (Say(note),)
    return _died(spec, state, event, now)


def _died(spec: DaemonSpec, state: Up, end: Exited, now: Ns) -> Result:
    return die(
        spec,
        state.run,
        state.pid,
        born=state.since,
        spawns=state.spawns,
        status=end.status,
        left=end.left,
        now=now,
        first=state.first,
        recent=state.recent,
        oom=end.oom,
    )


def _stopping(  # noqa: C901, PLR0912
    spec: DaemonSpec, state: Stopping, event: PlainEvent, now: Ns
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
        case Stop() | Halt():
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
        case Restart():
            return state.replace(then=RELOADED if state.then == RELOADED else AGAIN), ()
        case Reset():
            return state.replace(spawns=0, recent=()), ()
        case ExecOk() if event.run == state.run:
            return state.replace(pid=event.pid), ()
        case SpawnFailed() if event.run == state.run and not event.cloned:
            # Race: it was told to end before it was known that there is nothing to end.
            return _gone(spec, state, now)
        case (
            Touched()
            | Deliver()
            | Ready()
            | Unready()
            | WatchdogMissed()
            | Timer()
            | ExecOk()
            | SpawnFailed()
            | Exited()
            | Emptied()
        ):
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
        down, actions = go_down(spec, state.run, abandoned=True)
        return down, (Say(note), *actions)
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
    unname = unname_after(spec, state.run)
    match state.then:
        case "again":
            after, actions = begin(spec, state.run, 0, now)
            return after, (Say(gone.replace(retry=0)), *unname, *actions)
        case "crashed" if spec.control:
            down, actions = go_down(spec, state.run)
            ended = ControlEnded(known(state.status))
            return down, (Say(gone), *unname, ended, *actions)
        case "crashed" | "unready":
            verdict = judge_end(
                spec,
                None if state.then == UNREADY else state.status,
                spawns=state.spawns,
                recent=state.recent,
                age=state.since - state.born,
                now=now,
            )
            if verdict.outcome != AGAIN:
                over, actions = finish(spec, state.run, verdict, state.status, first=False)
                return over, (Say(gone), *unname, *actions)
            pause, recent = verdict.pause, verdict.recent
            after, actions = retry(spec, state.run, state.spawns, pause, now, recent=recent)
            return after, (Say(gone.replace(retry=pause)), *unname, *actions)
        case _:
            down, actions = go_down(spec, state.run)
            return down, (Say(gone), *unname, *actions)


def _backoff(spec: DaemonSpec, state: Backoff, event: PlainEvent, now: Ns) -> Result:
    match event:
        case SpawnFailed() if event.run == state.run:
            note = DaemonNotStarted(
                spec.name, event.step, event.errno, event.subject, state.until - now
            )
            return state, (Say(note),)
        case Timer() if event.run == state.run and now >= state.until:
            return begin(spec, state.run, state.spawns, now, recent=state.recent)
        case Start() | Touched() | Restart():
            return begin(spec, state.run, 0, now)
        case Stop() | Halt() | Reload() | Kill():
            return go_down(spec, state.run)
        case Reset():
            return state.replace(spawns=0, recent=()), ()
        case (
            Deliver()
            | Ready()
            | Unready()
            | WatchdogMissed()
            | SpawnFailed()
            | Timer()
            | ExecOk()
            | Exited()
            | Emptied()
        ):
            return state, ()
        case _:
            assert_never(event)


def _over(spec: DaemonSpec, state: Over, event: PlainEvent, now: Ns) -> Result:
    match event:
        case Start():
            return begin(spec, state.run, 0, now, first=True)
        case Stop() | Halt() | Reload() | Kill() | Reset():
            return Down(state.run), ()  # the master machine does not count it any more
        case (
            Touched()
            | Restart()
            | Deliver()
            | Ready()
            | Unready()
            | WatchdogMissed()
            | Timer()
            | ExecOk()
            | SpawnFailed()
            | Exited()
            | Emptied()
        ):
            return state, ()
        case _:
            assert_never(event)
