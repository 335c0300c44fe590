"""Daemons of a legion, which run only while this node is its lord.

Whether it is comes from outside: `kernel.legion`. While it is not, they are barred: no start,
reload or apply begins with them. One that runs all the same, since it outlived an earlier master,
is ended.
"""

from __future__ import annotations

from lowsuper.events import DaemonBarred, Expel, LegionLost, SayMaster, Start, Tell
from lowsuper.machine import Down, Stopping
from lowsuper.machine.states import RELOADED
from lowsuper.master import order
from lowsuper.master.states import RELOADING, START, Master

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowsuper.events import LordChanged
    from lowsuper.machine import State
    from lowsuper.master.states import Actions, Daemons, Names, Result
    from lowsuper.model import DaemonSpec, MasterSpec


def is_barred(state: Master, daemon: DaemonSpec) -> bool:
    """Return whether a daemon must not run here now."""
    return daemon.legion is not None and daemon.legion not in state.lordships


def choose(state: Master, daemons: Iterable[DaemonSpec]) -> list[DaemonSpec]:
    """Return those of the daemons that are to run: nobody has stopped them, and they may."""
    return [
        daemon
        for daemon in daemons
        if daemon.name not in state.held and not is_barred(state, daemon)
    ]


def find_counted(spec: MasterSpec, state: Master, daemons: Daemons) -> Names:
    """Return the daemons that a reload is ending, and whose next instances it waits for."""
    if state.phase != RELOADING or START in state.todo:
        return ()
    return tuple(
        each.name
        for each in choose(state, spec.daemons)
        if each.name not in state.returning and is_reloaded(daemons.get(each.name))
    )


def is_reloaded(daemon: State | None) -> bool:
    """Return whether a reload is ending a daemon: the master starts its next instance."""
    return isinstance(daemon, Stopping) and daemon.then == RELOADED


def bring_back(state: Master, names: Iterable[str], counted: Names, daemons: Daemons) -> Result:
    """Let those of these daemons that are on their way down come back once they are there.

    Args:
        state: the master's.
        names: the daemons; none of them is returning yet.
        counted: see `find_counted`, before it was known that they come back.
        daemons: the state of each, by name.
    """
    going = [name for name in names if isinstance(daemons.get(name), Stopping)]
    reloaded = [name for name in going if is_reloaded(daemons[name])]
    # A reload that is over, or has left them out, does not start their next instances.
    returning = tuple(name for name in reloaded if name not in counted)
    state = state.replace(returning=(*state.returning, *returning))
    return state, tuple(Tell(name, Start()) for name in going if name not in reloaded)


def expel(state: Master, wanted: Iterable[DaemonSpec], daemons: Daemons) -> Result:
    """See of those daemons that must not run here whether they do, and end them."""
    actions: Actions = ()
    for daemon in wanted:
        idle = order.is_idle(daemons.get(daemon.name, Down()))
        # What has no pidfile did not outlive the master that had started it.
        if is_barred(state, daemon) and daemon.pidfile is not None and idle:
            why = f"this node is not the lord of the legion {daemon.legion}"
            actions = (*actions, Tell(daemon.name, Expel(why)))
    return state.replace(alive=state.alive + len(actions)), actions


def say_barred(state: Master, wanted: Sequence[DaemonSpec]) -> Actions:
    """Say of those that somebody wants to start why they are not."""
    return tuple(
        SayMaster(DaemonBarred(daemon.name, daemon.legion))
        for daemon in wanted
        if daemon.legion is not None and is_barred(state, daemon)
    )


def change(spec: MasterSpec, state: Master, event: LordChanged, daemons: Daemons) -> Result:
    """Start the daemons of a legion, or end them."""
    if event.lord == (event.legion in state.lordships):
        return state, ()
    if event.lord:
        state = state.replace(lordships=(*state.lordships, event.legion))
        return _gain(spec, state, event.legion, daemons)
    return _lose(spec, state, event, daemons)


def _gain(spec: MasterSpec, state: Master, legion: str, daemons: Daemons) -> Result:
    if START in state.todo:
        return state, ()  # all are to be started yet
    wanted = [
        daemon
        for daemon in spec.daemons
        if daemon.legion == legion
        and daemon.name not in (*state.held, *state.waiting, *state.returning)
    ]
    idle = [
        each
        for each in wanted
        if order.is_idle(daemons.get(each.name, Down())) and each.name not in state.coming
    ]
    state = state.replace(unsettled=state.unsettled + len(idle))
    names = tuple(each.name for each in wanted)
    # What a reload is ending was barred then: it does not count on it.
    state, back = bring_back(state, names, (), daemons)
    state, actions = order.start(state, idle)
    state, ends = order.stay(spec, state, names)
    state, more = order.start_waiting(spec, state, daemons)
    return state, (*actions, *back, *ends, *more)


def _lose(spec: MasterSpec, before: Master, event: LordChanged, daemons: Daemons) -> Result:
    lordships = tuple(legion for legion in before.lordships if legion != event.legion)
    state = before.replace(lordships=lordships)
    names = tuple(daemon.name for daemon in spec.daemons if daemon.legion == event.legion)
    ended = order.with_dependents(spec, names)
    # A reload counts on the next instance of what it is ending, which does not come now.
    lost = sum(name in ended for name in find_counted(spec, before, daemons))
    state = state.replace(
        unsettled=max(0, state.unsettled - lost),
        returning=tuple(name for name in state.returning if name not in ended),
    )
    count = sum(not order.is_idle(daemons.get(name, Down())) for name in ended)
    say = SayMaster(LegionLost(event.legion, event.why, count))
    state, actions = order.end(spec, state, ended, event.why, daemons)
    return state, (say, *actions)
