"""What somebody with the right to do so asks of single daemons: start, stop, restart, forgive.

What was stopped so is held: no reload starts it. What such a request ends or starts never counts
as a crash, and forgives those that were.
"""

from __future__ import annotations

from lowsuper.events import Halt, Reset, Restart, Tell
from lowsuper.machine import Down, Over, Stopping
from lowsuper.master import lordship, order
from lowsuper.master.states import HALT, START, Master

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.master.states import Daemons, Names, Result
    from lowsuper.model import MasterSpec


def ask(spec: MasterSpec, state: Master, verb: str, names: Names, daemons: Daemons) -> Result:
    """Return the new state and what is to be done for these daemons.

    Args:
        spec: the configuration in force.
        state: of a master that does not stop.
        verb: start, stop, restart, try-restart or reset-failed.
        names: daemons, each of which `spec` has.
        daemons: the state of each, by name.
    """
    if verb == "stop":
        return _stop(spec, state, names, daemons)
    if verb == "reset-failed":
        return state, tuple(Tell(name, Reset()) for name in names)
    if verb == "try-restart":
        names = tuple(
            name
            for name in names
            if name not in state.held and not _is_absent(state, name, daemons)
        )
        return _restart(spec, state, names, daemons)
    if verb == "restart":
        there = tuple(name for name in names if not _is_absent(state, name, daemons))
        state, actions = _restart(spec, state, there, daemons)
        rest = tuple(name for name in names if name not in there)
        state, more = _start(spec, state, rest, daemons)
        return state, (*actions, *more)
    return _start(spec, state, names, daemons)


def _is_absent(state: Master, name: str, daemons: Daemons) -> bool:
    """Return whether a daemon is idle and was not told to start either."""
    return order.is_idle(daemons.get(name, Down())) and name not in state.coming


def _start(spec: MasterSpec, state: Master, names: Names, daemons: Daemons) -> Result:
    names = order.with_required(spec, names)
    counted = lordship.find_counted(spec, state, daemons)
    state = state.replace(held=tuple(name for name in state.held if name not in names))
    if START in state.todo:
        return state, ()  # all that is not held is to be started yet
    asked = [
        daemon
        for daemon in spec.daemons
        if daemon.name in names
        and daemon.name not in state.waiting
        and daemon.name not in state.returning
    ]
    barred = lordship.say_barred(state, asked)
    wanted = lordship.choose(state, asked)
    idle = [each for each in wanted if _is_absent(state, each.name, daemons)]
    state = state.replace(unsettled=state.unsettled + len(idle))
    state, actions = order.start(state, idle)
    known = tuple(each.name for each in wanted)
    state, back = lordship.bring_back(state, known, counted, daemons)
    state, ends = order.stay(spec, state, known)
    state, more = order.start_waiting(spec, state, daemons)
    return state, (*barred, *actions, *back, *ends, *more)


def _stop(spec: MasterSpec, state: Master, names: Names, daemons: Daemons) -> Result:
    ended = order.with_dependents(spec, names)
    held = tuple(name for name in ended if name not in state.held)
    # A reload counts on the next instance of what it is ending, which does not come now.
    lost = sum(name in held for name in lordship.find_counted(spec, state, daemons))
    state = state.replace(
        unsettled=max(0, state.unsettled - lost),
        held=(*state.held, *held),
        returning=tuple(name for name in state.returning if name not in ended),
    )
    forgiven = tuple(Tell(name, Halt()) for name in ended if isinstance(daemons.get(name), Over))
    state, actions = order.end(spec, state, ended, HALT, daemons)
    return state, (*forgiven, *actions)


def replace(spec: MasterSpec, state: Master, names: Names, daemons: Daemons) -> Result:
    """End these daemons, and start them again as they are configured now.

    What is down, or was given up and is different now, is started unless somebody stopped it.
    """
    there = tuple(name for name in names if not _is_absent(state, name, daemons))
    back = lordship.choose(state, (each for each in spec.daemons if each.name in there))
    state = state.replace(returning=(*state.returning, *(each.name for each in back)))
    state, actions = order.end(spec, state, there, HALT, daemons)
    rest = [each for each in spec.daemons if each.name in names and each.name not in there]
    absent = tuple(each.name for each in lordship.choose(state, rest))
    state, more = _start(spec, state, absent, daemons)
    return state, (*actions, *more)


def _restart(spec: MasterSpec, state: Master, names: Names, daemons: Daemons) -> Result:
    counted = lordship.find_counted(spec, state, daemons)
    state = state.replace(held=tuple(name for name in state.held if name not in names))
    if START in state.todo:
        return state, ()
    asked = [daemon for daemon in spec.daemons if daemon.name in names]
    barred = lordship.say_barred(state, asked)
    names = tuple(daemon.name for daemon in lordship.choose(state, asked))
    # What is on its way down in a reload that does not count on it is not restarted by itself.
    reloaded = tuple(
        name
        for name in names
        if lordship.is_reloaded(daemons.get(name)) and name not in (*counted, *state.returning)
    )
    state = state.replace(returning=(*state.returning, *reloaded))
    state, actions = _restart_chosen(spec, state, names, daemons)
    return state, (*barred, *actions)


def _restart_chosen(spec: MasterSpec, state: Master, names: Names, daemons: Daemons) -> Result:
    ended = tuple(
        name
        for name in order.with_dependents(spec, names)
        if not _is_absent(state, name, daemons) and name not in state.returning
    )
    if set(ended) <= set(names) and not any(
        order.is_ordered(daemon) for daemon in spec.daemons if daemon.name in ended
    ):
        # What is to end in its turn does so, and comes back.
        later = tuple(name for name, _ in state.ending if name in ended)
        alone = tuple(
            name
            for name in names
            if name in ended
            and name not in later
            and (name not in state.coming or isinstance(daemons.get(name), Stopping))
        )
        state, ends = order.stay(spec, state, alone)
        state = state.replace(returning=(*state.returning, *later))
        return state, (*(Tell(name, Restart()) for name in alone), *ends)
    back = lordship.choose(state, (daemon for daemon in spec.daemons if daemon.name in ended))
    state = state.replace(returning=(*state.returning, *(daemon.name for daemon in back)))
    return order.end(spec, state, ended, HALT, daemons)
