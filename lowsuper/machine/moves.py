"""What the tables of the daemon machine share: how a start, an end and a retry begin."""

from __future__ import annotations

from lowsuper.backoff import choose_pause, count_spawns
from lowsuper.events import (
    AwaitReady,
    CancelTimer,
    Concluded,
    ControlEnded,
    DaemonDied,
    DaemonDone,
    DaemonEnding,
    DaemonGivenUp,
    KillDomain,
    Leave,
    Look,
    Reload,
    Restart,
    Say,
    SetTimer,
    Settled,
    Signal,
    Spawn,
    Touched,
    Unname,
    WentDown,
)
from lowsuper.machine.states import (
    AGAIN,
    CRASHED,
    DONE,
    DOWN,
    EXITED,
    FAILED,
    RELOADED,
    SLOW_START,
    STUCK,
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
from lowsuper.record import Record
from lowsuper.units import Ns, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import DaemonAction, Halt, Kill, Stop
    from lowsuper.machine.states import State
    from lowsuper.model import DaemonSpec
    from lowsuper.units import RunId

    Actions = tuple[DaemonAction, ...]
    Times = tuple[Ns, ...]
    Result = tuple[State, Actions]


ONESHOT = "oneshot"


def is_smart(spec: DaemonSpec) -> bool:
    """Return whether the daemon is governed by a pidfile."""
    return spec.pidfile is not None


def begin(
    spec: DaemonSpec, run: RunId, spawns: int, now: Ns, *, first: bool = False, recent: Times = ()
) -> Result:
    """Begin the run after `run`; a smart daemon may be running already.

    Args:
        spec: the daemon.
        run: the last run.
        spawns: the starts since it last ran stably.
        now: the time.
        first: the outcome is told to the master machine.
        recent: when it was restarted lately.
    """
    if is_smart(spec):
        looking = Looking(run + 1, spawns, first, recent=recent)
        return looking, (CancelTimer(), Look(run + 1))
    return spawn(run + 1, spawns, now, first=first, recent=recent)


def spawn(run: RunId, spawns: int, now: Ns, *, first: bool = False, recent: Times = ()) -> Result:
    """Start the program as `run`; `spawns` counts the starts before it."""
    return (
        Starting(run, now, spawns + 1, first, recent),
        (Spawn(run), SetTimer(run, now + SLOW_START)),
    )


def retry(
    spec: DaemonSpec, run: RunId, spawns: int, pause: Ns, now: Ns, *, recent: Times = ()
) -> Result:
    """Begin the run after `run` after `pause`, or at once if there is none."""
    if pause == 0:
        return begin(spec, run, spawns, now, recent=recent)
    return Backoff(run, spawns, now + pause, recent), (SetTimer(run, now + pause),)


class Verdict(Record):
    """What becomes of a daemon that has ended without being asked."""

    outcome: str  # AGAIN, or as in Over
    pause: Ns = Ns(0)  # before it starts again
    recent: tuple[Ns, ...] = ()
    reason: str = ""  # why it was given up


def judge_end(
    spec: DaemonSpec, status: int | None, *, spawns: int, recent: Times, age: Ns, now: Ns
) -> Verdict:
    """Return what the daemon's restart policy makes of its end.

    Args:
        spec: the daemon.
        status: its wait status; None: unknown, or it could not even be started.
        spawns: the starts since it last ran stably.
        recent: when it was restarted lately.
        age: how long it ran, for the pause.
        now: the time.
    """
    is_oneshot = spec.kind == ONESHOT
    if has_succeeded(spec, status) and (is_oneshot or spec.restart != "always"):
        return Verdict(DONE if is_oneshot else EXITED)
    if spec.restart == "never":
        return Verdict(FAILED, reason="restart = never")
    if spec.max_restarts is not None:
        most, window = spec.max_restarts
        recent = tuple(at for at in recent if now - at < window)
        if len(recent) >= most:
            times = f"{most} time{'' if most == 1 else 's'} within {format_duration(window)}"
            return Verdict(FAILED, reason=f"it was restarted {times}")
        recent = (*recent, now)
    return Verdict(AGAIN, choose_pause(spec, spawns, age), recent)


def has_succeeded(spec: DaemonSpec, status: int | None) -> bool:
    """Return whether a wait status is one of success for this daemon."""
    return status is not None and not status & 0x7F and (status >> 8) & 0xFF in spec.success_codes


def conclude(spec: DaemonSpec, run: RunId, outcome: str, status: int | None) -> Result:
    """Nothing of it is left, and it does not start again by itself."""
    leave = (Leave(run),) if is_smart(spec) else ()
    over = Over(run, outcome, status)
    return over, (CancelTimer(), *leave, Concluded(outcome == FAILED, status))


def come_up(spec: DaemonSpec, up: Up, *, first: bool, found: bool, now: Ns) -> tuple[Up, Actions]:
    """Return the state of a daemon whose program runs, ready or not.

    Args:
        spec: the daemon.
        up: as it is when it is ready.
        first: the outcome is told to the master machine.
        found: it was not this master that started it: what it says only once was said already.
        now: the time.
    """
    ready = spec.ready
    is_oneshot = spec.kind == ONESHOT
    told = ready is None or ready.kind == "pidfile" or (found and ready.kind in ("notify", "fd"))
    if told and not is_oneshot:
        return up, (Settled(True, first),)
    timer: Actions = ()
    if spec.start_timeout is not None:
        timer = (SetTimer(up.run, Ns(now + spec.start_timeout)),)
    ask = () if is_oneshot else (AwaitReady(up.run),)
    return up.replace(ready=False, first=first), (*timer, *ask)


def go_down(spec: DaemonSpec, run: RunId, *, abandoned: bool = False) -> Result:
    """Be down: there is no timer, nothing of it is watched, the master machine knows."""
    leave = (Leave(run),) if is_smart(spec) else ()
    return Down(run), (CancelTimer(), *leave, WentDown(abandoned))


def unsettle(first: bool) -> Actions:
    """Tell the master machine that the first attempt failed, if it was the first."""
    return (Settled(False, True),) if first else ()


def sequel(event: Stop | Halt | Reload | Kill | Touched | Restart) -> str:
    """Return what follows the stop that this event asks for."""
    match event:
        case Reload():
            return RELOADED
        case Touched() | Restart():
            return AGAIN
        case _:
            return DOWN


def patience(spec: DaemonSpec) -> Ns:
    """Return how long the daemon may take to end."""
    assert spec.stop_timeout is not None, "filled in from reload-mercy when configured"
    return spec.stop_timeout


def end(
    spec: DaemonSpec, state: Up | Awaiting, signal: int, *, why: str, then: str, now: Ns
) -> tuple[Stopping, Actions]:
    """Ask the daemon to end; `then` says what follows."""
    wait = patience(spec)
    if isinstance(state, Up):
        gone, born = state.background, state.since
    else:
        gone, born = state.gone, state.born
    stopping = Stopping(state.run, now, now + wait, born, 0, state.pid, then, main_gone=gone)
    return stopping, (
        Signal(state.run, signal),
        SetTimer(state.run, stopping.deadline),
        Say(DaemonEnding(spec.name, state.pid, signal, wait, why)),
    )


def kill_now(
    state: Starting | Broken | Up, spawns: int, pid: int, then: str, now: Ns
) -> tuple[Stopping, Actions]:
    """End it without asking."""
    deadline = now + STUCK
    stopping = Stopping(
        state.run, now, deadline, state.since, spawns, pid, then, killed=True, recent=state.recent
    )
    return stopping, (KillDomain(state.run), SetTimer(state.run, deadline))


def end_rest(
    spec: DaemonSpec,
    run: RunId,
    pid: int,
    *,
    born: Ns,
    spawns: int,
    status: int | None,
    gone: bool,
    then: str,
    now: Ns,
    recent: Times = (),
) -> Result:
    """Ask what is there of a daemon to end, gracefully; `then` says what follows.

    What it left behind may still hold its port, and must not run beside the next.
    """
    deadline = now + patience(spec)
    stopping = Stopping(
        run,
        now,
        deadline,
        born,
        spawns,
        pid,
        then,
        main_gone=gone,
        status=status,
        recent=recent,
    )
    return stopping, (Signal(run, spec.stop_signal), SetTimer(run, deadline))


def die(
    spec: DaemonSpec,
    run: RunId,
    pid: int,
    *,
    born: Ns,
    spawns: int,
    status: int | None,
    left: bool,
    now: Ns,
    seen: bool = True,
    first: bool = False,
    recent: Times = (),
    oom: str = "",
) -> Result:
    """The daemon's own process ended without being asked.

    A smart one was looked for just now; unless it was `seen` that no other took its place, that
    is to be done again before the next start. With `first` it had not been ready yet, and the
    outcome is told to the master machine.
    """
    age = max(0, now - born)
    spawns = count_spawns(spawns, age)
    quick = age if seen else 0
    verdict = judge_end(spec, status, spawns=spawns, recent=recent, age=quick, now=now)
    ended = spec.control or verdict.outcome != AGAIN
    pause = None if ended else verdict.pause
    note = Say(DaemonDied(spec.name, pid, status, age, left, pause, spec.control, oom))
    if left:
        stopping, actions = end_rest(
            spec,
            run,
            pid,
            born=born,
            spawns=spawns,
            status=status,
            gone=True,
            then=CRASHED,
            now=now,
            recent=recent,
        )
        return stopping, (note, *actions, *unsettle(first))
    unname = unname_after(spec, run)
    if spec.control:
        down, actions = go_down(spec, run)
        return down, (note, *unname, ControlEnded(known(status)), *unsettle(first), *actions)
    if pause is None:
        after, actions = finish(spec, run, verdict, status, first=first)
        if verdict.outcome != FAILED:
            oneshot = verdict.outcome == DONE
            note = Say(DaemonDone(spec.name, pid, known(status), age, oneshot))
        return after, (note, *unname, *actions)
    # What `max_restarts` looks at is passed on; the count that makes pauses longer is its own.
    if pause == 0:
        after, actions = spawn(run + 1, spawns, now, recent=verdict.recent)
    else:
        after, actions = retry(spec, run, spawns, pause, now, recent=verdict.recent)
    actions = (*actions, *unsettle(first))
    # The start comes before the words: whoever waits for the daemon waits for nothing else.
    return after, (*unname, *actions, note)


def finish(
    spec: DaemonSpec, run: RunId, verdict: Verdict, status: int | None, *, first: bool
) -> Result:
    """It is at its end, whatever end that is; say so if it was given up."""
    over, actions = conclude(spec, run, verdict.outcome, status)
    if verdict.outcome == FAILED:
        return over, (Say(DaemonGivenUp(spec.name, verdict.reason)), *unsettle(first), *actions)
    # Those that come after a one-shot wait for its end.
    settled = (Settled(verdict.outcome == DONE, first),) if first else ()
    return over, (*settled, *actions)


def unname_after(spec: DaemonSpec, run: RunId) -> Actions:
    """Remove the pidfile of a run that is over, if it was lowsuper that wrote it."""
    return (Unname(run),) if spec.daemonize else ()


def known(status: int | None) -> int:
    """Return a wait status for one that nobody could tell: no success is made up."""
    return 1 << 8 if status is None else status
