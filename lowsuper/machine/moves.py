"""What the tables of the daemon machine share: how a start, an end and a retry begin."""

from __future__ import annotations

from lowsuper.backoff import count_spawns, pause_before_start
from lowsuper.events import (
    CancelTimer,
    ControlEnded,
    DaemonDied,
    DaemonEnding,
    KillDomain,
    Leave,
    Look,
    Reload,
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
    DOWN,
    RELOADED,
    SLOW_START,
    STUCK,
    Awaiting,
    Backoff,
    Broken,
    Down,
    Looking,
    Starting,
    Stopping,
    Up,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import DaemonAction, Kill, Stop
    from lowsuper.machine.states import State
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns, RunId

    Actions = tuple[DaemonAction, ...]
    Result = tuple[State, Actions]


def is_smart(spec: DaemonSpec) -> bool:
    """Return whether the daemon is governed by a pidfile."""
    return spec.pidfile is not None


def begin(spec: DaemonSpec, run: RunId, spawns: int, now: Ns, *, first: bool = False) -> Result:
    """Begin the run after `run`; a smart daemon may be running already.

    Args:
        spec: the daemon.
        run: the last run.
        spawns: the starts since it last ran stably.
        now: the time.
        first: the outcome is told to the master machine.
    """
    if is_smart(spec):
        return Looking(run + 1, spawns, first), (CancelTimer(), Look(run + 1))
    return spawn(run + 1, spawns, now, first=first)


def spawn(run: RunId, spawns: int, now: Ns, *, first: bool = False) -> Result:
    """Start the program as `run`; `spawns` counts the starts before it."""
    return (
        Starting(run, now, spawns + 1, first),
        (Spawn(run), SetTimer(run, now + SLOW_START)),
    )


def retry(spec: DaemonSpec, run: RunId, spawns: int, pause: Ns, now: Ns) -> Result:
    """Begin the run after `run` after `pause`, or at once if there is none."""
    if pause == 0:
        return begin(spec, run, spawns, now)
    return Backoff(run, spawns, now + pause), (SetTimer(run, now + pause),)


def go_down(spec: DaemonSpec, run: RunId, *, abandoned: bool = False) -> Result:
    """Be down: there is no timer, nothing of it is watched, the master machine knows."""
    leave = (Leave(run),) if is_smart(spec) else ()
    return Down(run), (CancelTimer(), *leave, WentDown(abandoned))


def unsettle(first: bool) -> Actions:
    """Tell the master machine that the first attempt failed, if it was the first."""
    return (Settled(False, True),) if first else ()


def sequel(event: Stop | Reload | Kill | Touched) -> str:
    """Return what follows the stop that this event asks for."""
    match event:
        case Reload():
            return RELOADED
        case Touched():
            return AGAIN
        case _:
            return DOWN


def patience(spec: DaemonSpec) -> Ns:
    """Return how long the daemon may take to end."""
    assert spec.stop_timeout is not None, "filled in from reload-mercy when configured"
    return spec.stop_timeout


def end(
    spec: DaemonSpec, state: Up | Awaiting, signal: int, *, why: str, then: str, now: Ns
) -> Result:
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
    stopping = Stopping(state.run, now, deadline, state.since, spawns, pid, then, killed=True)
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
) -> Result:
    """Ask what is there of a daemon to end, gracefully; `then` says what follows.

    What it left behind may still hold its port, and must not run beside the next.
    """
    deadline = now + patience(spec)
    stopping = Stopping(run, now, deadline, born, spawns, pid, then, main_gone=gone, status=status)
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
) -> Result:
    """The daemon's own process ended without being asked.

    A smart one was looked for just now; unless it was `seen` that no other took its place, that
    is to be done again before the next start.
    """
    age = max(0, now - born)
    spawns = count_spawns(spawns, age)
    quick = age if seen else 0
    pause = None if spec.control else pause_before_start(spawns, quick, spec.max_throttle)
    note = Say(DaemonDied(spec.name, pid, status, age, left, pause, spec.control))
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
        )
        return stopping, (note, *actions)
    unname = unname_after(spec, run)
    if pause is None:
        down, actions = go_down(spec, run)
        return down, (note, *unname, ControlEnded(known(status)), *actions)
    if pause == 0:
        after, actions = spawn(run + 1, spawns, now)
    else:
        after, actions = retry(spec, run, spawns, pause, now)
    # The start comes before the words: whoever waits for the daemon waits for nothing else.
    return after, (*unname, *actions, note)


def unname_after(spec: DaemonSpec, run: RunId) -> Actions:
    """Remove the pidfile of a run that is over, if it was lowsuper that wrote it."""
    return (Unname(run),) if spec.daemonize else ()


def known(status: int | None) -> int:
    """Return a wait status for one that nobody could tell: no success is made up."""
    return 1 << 8 if status is None else status
