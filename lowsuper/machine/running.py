# ruff: noqa: PLR0911  # tables of cases
"""What any daemon does while its program runs, smart or not: readiness, and what people ask for."""

from __future__ import annotations

from lowsuper.events import (
    CancelTimer,
    DaemonLate,
    DaemonReady,
    DaemonSignalled,
    DaemonSilent,
    Deliver,
    Halt,
    Ready,
    Reset,
    Restart,
    Say,
    Settled,
    Signal,
    Timer,
    Touched,
    Unready,
    WatchdogMissed,
)
from lowsuper.machine.moves import end, unsettle
from lowsuper.machine.states import AGAIN, CRASHED, DOWN, UNREADY, Awaiting, Up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import DaemonEvent
    from lowsuper.machine.moves import Result
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns

SIGABRT = 6


def step(spec: DaemonSpec, state: Up, event: DaemonEvent, now: Ns) -> Result | None:
    """Return the new state and what is to be done; None: it depends on the kind of daemon."""
    match event:
        case Ready() if event.run == state.run and not state.ready:
            up = state.replace(ready=True, first=False, finding="")
            said = Say(DaemonReady(spec.name, state.pid, max(0, now - state.since)))
            return up, (CancelTimer(), said, Settled(True, state.first))
        case Unready() if event.run == state.run and not state.ready:
            return state.replace(finding=event.finding), ()
        case Timer() if event.run == state.run and not state.ready:
            return _late(spec, state, now)
        case WatchdogMissed() if event.run == state.run:
            note = DaemonSilent(spec.name, state.pid, event.silence)
            return _fail(spec, state, SIGABRT, CRASHED, note, now=now)
        case Ready() | Unready() | WatchdogMissed():
            return state, ()
        case _:
            return ask(spec, state, event, now)


def ask(spec: DaemonSpec, state: Up | Awaiting, event: DaemonEvent, now: Ns) -> Result | None:
    """Do what somebody asked for; None: the event is none of that kind."""
    match event:
        case Halt(why=why):
            return _end(spec, state, why, DOWN, now)
        case Touched(path=path):
            return _end(spec, state, f"touch {path}", AGAIN, now)
        case Restart(why=why):
            return _end(spec, state, why, AGAIN, now)
        case Reset():
            return state.replace(spawns=0, recent=()), ()
        case Deliver(signal=signal, why=why):
            if not state.pid or (isinstance(state, Awaiting) and state.gone):
                return state, ()
            note = DaemonSignalled(spec.name, state.pid, signal, why)
            return state, (Signal(state.run, signal, group=False), Say(note))
        case _:
            return None


def _end(spec: DaemonSpec, state: Up | Awaiting, why: str, then: str, now: Ns) -> Result:
    after, actions = end(spec, state, spec.stop_signal, why=why, then=then, now=now)
    return after, (*unsettle(state.first), *actions)


def _late(spec: DaemonSpec, state: Up, now: Ns) -> Result:
    finding = state.finding or "nothing was seen of it"
    note = DaemonLate(spec.name, state.pid, max(0, now - state.since), finding)
    return _fail(spec, state, spec.stop_signal, UNREADY, note, now=now)


def _fail(
    spec: DaemonSpec,
    state: Up,
    signal: int,
    then: str,
    note: DaemonLate | DaemonSilent,
    *,
    now: Ns,
) -> Result:
    """End it for a fault of its own: what it has behind it still counts."""
    why = "watchdog" if then == CRASHED else "not ready in time"
    after, actions = end(spec, state, signal, why=why, then=then, now=now)
    # What was never ready has not run, as far as the next pause goes.
    born = after.born if then == CRASHED else now
    after = after.replace(spawns=state.spawns, recent=state.recent, born=born)
    return after, (Say(note), *actions, *unsettle(state.first))
