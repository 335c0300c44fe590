# ruff: noqa: PLR0911, RET503  # tables of cases that end in assert_never
"""The table of the states that only a smart daemon has: one that is governed by a pidfile.

It survives the master: a Stop or a Reload lets go of it. Before each start it is asked whether
it runs already, and after each start its pidfile has to name it. The process that the pidfile
names may change (an upgrade in place), and is gone for good only when the pidfile names no other.
"""

from __future__ import annotations

from lowsuper.backoff import choose_pause, count_spawns
from lowsuper.errors import assert_never
from lowsuper.events import (
    Absent,
    CancelTimer,
    ControlEnded,
    DaemonAwaited,
    DaemonDoubted,
    DaemonFinding,
    DaemonFound,
    DaemonHeld,
    DaemonLeft,
    DaemonMoved,
    DaemonNotReady,
    DaemonStarted,
    Deliver,
    Emptied,
    ExecOk,
    Exited,
    Found,
    Freed,
    Halt,
    HeldBy,
    Kill,
    Look,
    Name,
    NotNamed,
    PidfileTouched,
    Ready,
    Reaped,
    Reload,
    Reset,
    Restart,
    Say,
    SetTimer,
    Signal,
    SpawnFailed,
    Start,
    Stop,
    Timer,
    Touched,
    Unready,
    Unseen,
    WatchdogMissed,
)
from lowsuper.machine import running
from lowsuper.machine.moves import (
    come_up,
    die,
    end,
    end_rest,
    finish,
    go_down,
    judge_end,
    retry,
    spawn,
    unname_after,
    unsettle,
)
from lowsuper.machine.states import (
    AGAIN,
    ASKING,
    CRASHED,
    DOUBTED,
    DOUBTING,
    DOWN,
    RELOADED,
    SURE,
    UNNAMED,
    UNREADY,
    Awaiting,
    Backoff,
    Looking,
    Starting,
    Up,
)
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import DaemonAction, PlainEvent, SmartEvent
    from lowsuper.machine.moves import Result
    from lowsuper.model import DaemonSpec
    from lowsuper.units import RunId

    Event = PlainEvent | SmartEvent

SIGHUP = 1

DOUBT = 2 * SECOND
"""How long the pidfile of a daemon that runs may be wrong before it is mentioned: programs remove
it when they are about to end."""

SUCCESSION = SECOND
"""How long the pidfile may take to name another one when the named process has failed: the old
process of an upgrade that went wrong takes its place again."""


def step(spec: DaemonSpec, state: Looking | Awaiting | Up, event: Event, now: Ns) -> Result:
    """Return the new state and what is to be done, in order."""
    if spec.legion is not None:
        # Of a legion's daemons there must not be two: what is let go of here could be the second.
        match event:
            case Stop():
                event = Halt()
            case Reload():
                event = Reload(changes=True)
    match state:
        case Looking() if state.expel:
            return _expelling(spec, state, event, now)
        case Looking():
            return _looking(spec, state, event, now)
        case Awaiting():
            return _awaiting(spec, state, event, now)
        case Up():
            return _up(spec, state, event, now)
        case _:
            assert_never(state)


def _looking(spec: DaemonSpec, state: Looking, event: Event, now: Ns) -> Result:
    """It is asked whether the daemon runs."""
    match event:
        case Found() if event.run == state.run:
            return _found(spec, state, event, now)
        case Absent() if event.run == state.run:
            return _absent(spec, state, event, now)
        case Unseen() if event.run == state.run:
            # To start it now could be to start a second one.
            spawns = state.spawns + 1
            pause = choose_pause(spec, spawns, 0)
            wait = Backoff(state.run, spawns, now + pause, state.recent)
            unseen = DaemonFinding(spec.name, event.finding, pause)
            return wait, (SetTimer(state.run, wait.until), Say(unseen), *unsettle(state.first))
        case HeldBy() if event.run == state.run:
            # It may be told again by the next who was quicker.
            note = DaemonHeld(spec.name, spec.pidfile or "", event.holder)
            held = state.replace(first=False, held=True)
            return held, (Say(note), *unsettle(state.first))
        case Freed() if event.run == state.run and state.held:
            return state, (Look(state.run),)
        case Stop() | Halt() | Reload():
            down, actions = go_down(spec, state.run)
            return down, (*unsettle(state.first), *actions)
        case (
            Start()
            | Kill()
            | Touched()
            | Restart()
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
            | PidfileTouched()
            | Found()
            | Absent()
            | Unseen()
            | NotNamed()
            | HeldBy()
            | Freed()
            | Reaped()
        ):
            return state, ()
        case _:
            assert_never(event)


def expel(run: RunId, why: str) -> Result:
    """See whether it runs; it is ended if it does, and not started if it does not."""
    return Looking(run + 1, 0, expel=why), (CancelTimer(), Look(run + 1))


def _expelling(spec: DaemonSpec, state: Looking, event: Event, now: Ns) -> Result:
    """It is asked whether the daemon runs, which it must not."""
    match event:
        case Found() if event.run == state.run:
            up, actions = _found(spec, state, event, now)
            assert isinstance(up, Up)
            said = tuple(action for action in actions if isinstance(action, Say))
            after, more = end(spec, up, spec.stop_signal, why=state.expel, then=DOWN, now=now)
            return after, (*said, *more)
        case Absent(left=True) if event.run == state.run:
            note = DaemonFinding(spec.name, f"{event.finding}; {state.expel}")
            rest, more = end_rest(
                spec, state.run, 0, born=now, spawns=0, status=None, gone=True, then=DOWN, now=now
            )
            return rest, (Say(note), *more)
        case Unseen() if event.run == state.run:
            down, actions = go_down(spec, state.run)
            return down, (Say(DaemonFinding(spec.name, event.finding)), *actions)
        case Absent() | HeldBy() if event.run == state.run:
            return go_down(spec, state.run)  # one that another master has is that one's
        case Stop() | Halt() | Reload():
            return go_down(spec, state.run)
        case Start():
            return state.replace(expel="", first=True), ()
        case _:
            return state, ()


def _found(spec: DaemonSpec, state: Looking | Awaiting, event: Found, now: Ns) -> Result:
    """It runs, and it was not this master that started it."""
    born = min(event.born, now)
    note = DaemonFound(
        spec.name, event.pid, event.uid, event.gid, event.rung, now - born, event.why
    )
    up = Up(state.run, born, state.spawns, event.pid, recent=state.recent)
    up, actions = come_up(spec, up, first=state.first, found=True, now=now)
    return up, (Say(note), *actions)


def _absent(spec: DaemonSpec, state: Looking, event: Absent, now: Ns) -> Result:
    """It does not run: start it, unless an earlier master did and it is not ready yet."""
    if event.left:
        deadline = now + spec.freq
        waiting = Awaiting(
            state.run,
            now,
            deadline,
            now,
            state.spawns,
            0,
            first=state.first,
            gone=True,
            told=True,
            finding=event.finding,
            recent=state.recent,
        )
        note = DaemonAwaited(spec.name, 0, None, event.finding, spec.freq)
        return waiting, (SetTimer(state.run, deadline), Say(note))
    say = (Say(DaemonFinding(spec.name, event.finding)),) if event.telling else ()
    starting, actions = spawn(state.run, state.spawns, now, first=state.first, recent=state.recent)
    return starting, (*say, *actions)


def launched(spec: DaemonSpec, state: Starting, pid: int, now: Ns) -> Result:
    """Its program runs: it has to be named by its pidfile now."""
    waiting = _await(spec, state, pid, now)
    ask = Name(state.run) if spec.daemonize else Look(state.run)
    return waiting, (SetTimer(state.run, waiting.deadline), ask)


def launched_and_gone(spec: DaemonSpec, state: Starting, event: Exited, now: Ns) -> Result:
    """Its program ended before it was known that it ran."""
    waiting = _await(spec, state, 0, now)
    after, actions = _awaiting(spec, waiting, event, now)
    return after, (SetTimer(state.run, waiting.deadline), *actions)


def _await(spec: DaemonSpec, state: Starting, pid: int, now: Ns) -> Awaiting:
    deadline = now + spec.freq
    born = state.since
    return Awaiting(
        state.run, born, deadline, born, state.spawns, pid, first=state.first, recent=state.recent
    )


def _awaiting(  # noqa: C901, PLR0912
    spec: DaemonSpec, state: Awaiting, event: Event, now: Ns
) -> Result:
    """Its pidfile has to name it."""
    asked = running.ask(spec, state, event, now)
    if asked is not None:
        return asked
    match event:
        case Found() if event.run == state.run:
            return _named(spec, state, event, now)
        case Absent() | Unseen() if event.run == state.run:
            seen = isinstance(event, Absent)
            return _unnamed(spec, state.replace(finding=event.finding), now, seen=seen)
        case NotNamed() if event.run == state.run:
            return _give_up(spec, state.replace(finding=event.finding), now)
        case Exited() if event.run == state.run:
            # Race: what was named while the end of the one before was on its way here ends, too.
            gone = state.replace(
                gone=True, status=event.status, oom=event.oom, empty=not event.left
            )
            return gone, (Look(state.run),)
        case Emptied() if event.run == state.run and state.gone:
            return state.replace(empty=True), (Look(state.run),)
        case Reaped() if event.run == state.run and state.lost and state.gone:
            return state.replace(status=event.status), (Look(state.run),)
        case PidfileTouched():
            return state, (Look(state.run),)
        case Timer() if event.run == state.run and now >= state.deadline:
            # The file may lie where changes are not told, as on a network file system.
            return state.replace(last=True), (Look(state.run),)
        case Stop():
            return _leave(spec, state, "stop", None)
        case Reload(changes=True):
            return _end_for_next(spec, state, now)
        case Reload():
            return _leave(spec, state, "reload", None)
        case (
            Start()
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
            | Found()
            | Absent()
            | Unseen()
            | NotNamed()
            | HeldBy()
            | Freed()
            | Reaped()
        ):
            return state, ()
        case _:
            assert_never(event)


def _named(spec: DaemonSpec, state: Awaiting, event: Found, now: Ns) -> Result:
    """The pidfile names a process that is believed."""
    first, recent = state.first, state.recent
    if state.lost and event.pid == state.pid:
        # Race: it was named while the end of what had launched it was on its way here.
        up = Up(state.run, state.born, state.spawns, event.pid, recent=recent)
        up, actions = come_up(spec, up, first=first, found=False, now=now)
        return up, (CancelTimer(), *actions)
    if state.lost:
        up = Up(state.run, min(event.born, now), state.spawns, event.pid, recent=recent)
        up, actions = come_up(spec, up, first=first, found=False, now=now)
        moved = DaemonMoved(spec.name, state.pid, event.pid, event.why)
        return up, (CancelTimer(), Say(moved), *actions)
    if state.told:  # an earlier master launched it
        after, actions = _found(spec, state, event, now)
        return after, (CancelTimer(), *actions)
    up = Up(state.run, state.born, state.spawns, event.pid, recent=recent)
    up, actions = come_up(spec, up, first=first, found=False, now=now)
    started = DaemonStarted(
        spec.name, event.pid, event.uid, event.gid, event.rung, max(0, now - state.since)
    )
    return up, (CancelTimer(), Say(started), *actions)


def _unnamed(spec: DaemonSpec, state: Awaiting, now: Ns, *, seen: bool) -> Result:
    """The pidfile names nobody who is believed, as far as it was seen: wait, or give the run up."""
    has_failed = state.lost and bool(state.status) and seen
    if state.lost and (state.empty or (has_failed and state.last)):
        return _lost_for_good(spec, state, now, seen=seen)
    if state.empty or state.last:
        return _give_up(spec, state, now)
    if not state.lost:
        return state, ()
    deadline = min(state.deadline, now + SUCCESSION) if has_failed else state.deadline
    if state.told and deadline == state.deadline:
        return state, ()
    patience = max(0, deadline - now)
    note = DaemonAwaited(spec.name, state.pid, state.status, state.finding, patience)
    say = () if state.told else (Say(note),)
    waiting = state.replace(told=True, deadline=deadline)
    return waiting, (SetTimer(state.run, deadline), *say)


def _lost_for_good(spec: DaemonSpec, state: Awaiting, now: Ns, *, seen: bool) -> Result:
    after, actions = die(
        spec,
        state.run,
        state.pid,
        born=state.born,
        spawns=state.spawns,
        status=state.status,
        left=not state.empty,
        now=now,
        seen=seen,
        first=state.first,
        recent=state.recent,
        oom=state.oom,
    )
    # Every state but Up and Down that may follow sets a timer of its own.
    return after, actions


def _give_up(spec: DaemonSpec, state: Awaiting, now: Ns) -> Result:
    """No process was named in time, or none is left that could be: as after a quick crash.

    One that did run, and whose process has ended, is throttled by how long it ran.
    """
    born = state.born if state.lost else now
    spawns = max(count_spawns(state.spawns, now - born), 1)
    waited = max(0, now - state.since)
    launcher = state.status if state.gone else None
    if not state.empty:
        note = DaemonNotReady(spec.name, state.finding, launcher, waited, True, None)
        after, actions = end_rest(
            spec,
            state.run,
            state.pid,
            born=born,
            spawns=spawns,
            status=state.status,
            gone=state.gone,
            then=CRASHED if state.lost else UNREADY,
            now=now,
            recent=state.recent,
        )
        return after, (Say(note), *actions, *unsettle(state.first))
    if spec.control and launcher is not None:
        # All of it has ended by itself: its status is the master's.
        note = DaemonNotReady(spec.name, state.finding, launcher, waited, False, None)
        down, actions = go_down(spec, state.run)
        rest = (*unname_after(spec, state.run), *unsettle(state.first), ControlEnded(launcher))
        return down, (Say(note), *rest, *actions)
    verdict = judge_end(spec, None, spawns=spawns, recent=state.recent, age=Ns(0), now=now)
    note = DaemonNotReady(spec.name, state.finding, launcher, waited, False, None)
    if verdict.outcome != AGAIN:
        over, actions = finish(spec, state.run, verdict, launcher, first=state.first)
        return over, (Say(note), *unname_after(spec, state.run), *actions)
    pause, recent = verdict.pause, verdict.recent
    note = note.replace(retry=pause)
    after, actions = retry(spec, state.run, spawns, pause, now, recent=recent)
    rest = (*unname_after(spec, state.run), *unsettle(state.first))
    return after, (Say(note), *actions, *rest)


def _up(  # noqa: C901, PLR0912
    spec: DaemonSpec, state: Up, event: Event, now: Ns
) -> Result:
    """It runs."""
    common = running.step(spec, state, event, now)
    if common is not None:
        return common
    match event:
        case Exited() if event.run == state.run:
            return _lost(spec, state, event, now)
        case Found() if event.run == state.run and event.pid != state.pid:
            moved = DaemonMoved(spec.name, state.pid, event.pid, event.why)
            after, actions = _trust(state)
            since = min(event.born, now)
            return after.replace(pid=event.pid, since=since), (*actions, Say(moved))
        case Found() if event.run == state.run and state.doubted in (DOUBTING, ASKING):
            return _trust(state)
        case PidfileTouched():
            return state, (Look(state.run),)
        case Absent() if event.run == state.run:
            return _doubt(spec, state, event.finding, now)
        case Timer() if event.run == state.run and state.doubted == DOUBTING:
            return state.replace(doubted=ASKING), (Look(state.run),)
        case NotNamed() | Unseen() if event.run == state.run and state.doubted != UNNAMED:
            after, actions = _trust(state)
            note = DaemonDoubted(spec.name, state.pid, event.finding, False)
            return after.replace(doubted=UNNAMED), (*actions, Say(note))
        case Stop():
            signal = spec.stop_signal if spec.notify_pid else None
            return _leave(spec, state, "stop", signal)
        case Reload(changes=True):
            return _end_for_next(spec, state, now)
        case Reload():
            told = SIGHUP if spec.reload_signal is None else spec.reload_signal
            return _leave(spec, state, "reload", told if spec.notify_pid else None)
        case (
            Start()
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
            | Found()
            | Absent()
            | Unseen()
            | NotNamed()
            | HeldBy()
            | Freed()
            | Reaped()
        ):
            return state, ()
        case _:
            assert_never(event)


def _lost(spec: DaemonSpec, state: Up, event: Exited, now: Ns) -> Result:
    """The named process has ended: is there another one?"""
    waiting = Awaiting(
        state.run,
        now,
        now + spec.freq,
        state.since,
        state.spawns,
        state.pid,
        lost=True,
        gone=True,
        status=event.status,
        oom=event.oom,
        empty=not event.left,
        first=state.first,
        recent=state.recent,
    )
    _, actions = _trust(state)
    return waiting, (*actions, Look(state.run))


def _doubt(spec: DaemonSpec, state: Up, finding: str, now: Ns) -> Result:
    """The pidfile does not name the daemon any more: it runs all the same. Said once a run."""
    note = DaemonDoubted(spec.name, state.pid, finding, renamed=spec.daemonize)
    if not state.ready:
        return state, ()  # its only timer is another
    if spec.daemonize:
        # Nobody but lowsuper is to touch it.
        say = (Say(note),) if state.doubted == SURE else ()
        return state.replace(doubted=max(state.doubted, DOUBTED)), (*say, Name(state.run))
    if state.doubted == SURE:
        return state.replace(doubted=DOUBTING), (SetTimer(state.run, now + DOUBT),)
    if state.doubted == ASKING:
        return state.replace(doubted=DOUBTED), (Say(note),)
    return state, ()


def _trust(state: Up) -> tuple[Up, tuple[DaemonAction, ...]]:
    """Forget a doubt that was not told yet."""
    if state.doubted not in (DOUBTING, ASKING):
        return state, ()
    cancel = (CancelTimer(),) if state.doubted == DOUBTING else ()
    return state.replace(doubted=SURE), cancel


def _end_for_next(spec: DaemonSpec, state: Up | Awaiting, now: Ns) -> Result:
    """End it: its next instance does not look for it where it is."""
    signal = spec.stop_signal if spec.reload_signal is None else spec.reload_signal
    after, actions = end(spec, state, signal, why="reload", then=RELOADED, now=now)
    return after, (*unsettle(state.first), *actions)


def _leave(spec: DaemonSpec, state: Up | Awaiting, why: str, signal: int | None) -> Result:
    """Let go of it; with `signal` it is told, and nobody waits for what it makes of that."""
    tell = () if signal is None else (Signal(state.run, signal),)
    pid = 0 if isinstance(state, Awaiting) and state.gone else state.pid
    note = DaemonLeft(spec.name, pid, why, signal)
    down, actions = go_down(spec, state.run)
    return down, (*tell, Say(note), *unsettle(state.first), *actions)
