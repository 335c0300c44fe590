"""Which daemon is started when, and ended when: `requires`, `wants` and `after`.

What a daemon requires has to be ready before it starts; what it wants or comes after must have had
its chance. Ends come in reverse. Where no daemon has such a key, all start and end at once.
"""

from __future__ import annotations

from lowsuper.events import (
    DaemonNeeds,
    Halt,
    Reload,
    SayMaster,
    Start,
    Stop,
    Tell,
)
from lowsuper.machine import Down, Over, Up
from lowsuper.master.states import ENDED, STOPPING, Master

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowsuper.events import DaemonEvent
    from lowsuper.machine import State
    from lowsuper.master.states import Actions, Daemons, Names, Result
    from lowsuper.model import DaemonSpec, MasterSpec


def is_ordered(daemon: DaemonSpec) -> bool:
    """Return whether a daemon's start depends on others."""
    return bool(daemon.requires or daemon.wants or daemon.after)


def has_order(spec: MasterSpec) -> bool:
    """Return whether any daemon's start depends on others."""
    return any(map(is_ordered, spec.daemons))


def is_ready(state: State) -> bool:
    """Return whether a daemon in this state is ready, or has done what it was there for."""
    if isinstance(state, Up):
        return state.ready
    return isinstance(state, Over) and state.outcome == "done"


def is_idle(state: State) -> bool:
    """Return whether nothing of a daemon is there, and nothing comes by itself."""
    return isinstance(state, Down | Over)


def start(state: Master, daemons: Sequence[DaemonSpec]) -> Result:
    """Start these daemons, which are idle, in file order; those that come after others wait."""
    later = tuple(daemon.name for daemon in daemons if is_ordered(daemon))
    now = tuple(daemon.name for daemon in daemons if not is_ordered(daemon))
    state = state.replace(alive=state.alive + len(now), waiting=(*state.waiting, *later))
    if state.waiting:  # somebody may wait for these
        state = state.replace(coming=(*state.coming, *now))
    return state, tuple(Tell(name, Start()) for name in now)


def start_waiting(spec: MasterSpec, state: Master, daemons: Daemons) -> Result:
    """Start those of the waiting daemons whose turn has come; drop those whose turn cannot come."""
    wanted = {daemon.name: daemon for daemon in spec.daemons}
    actions: Actions = ()
    while lost := _find_lost(wanted, state, daemons):
        name, other = lost
        failed = state.failed + (name not in state.blocked)
        state = _drop_waiting(state, name).replace(failed=failed)
        actions = (*actions, SayMaster(DaemonNeeds(name, other, started=False)))
    free = tuple(name for name in state.waiting if _is_free(wanted[name], state, daemons))
    if not free:
        return state, actions
    state = state.replace(
        alive=state.alive + len(free),
        waiting=tuple(name for name in state.waiting if name not in free),
        coming=(*state.coming, *free),
        unsettled=state.unsettled + sum(name in state.blocked for name in free),
        blocked=tuple(name for name in state.blocked if name not in free),
    )
    return state, (*actions, *(Tell(name, Start()) for name in free))


def _drop_waiting(state: Master, name: str) -> Master:
    counts = name not in state.blocked
    return state.replace(
        waiting=tuple(each for each in state.waiting if each != name),
        blocked=tuple(each for each in state.blocked if each != name),
        unsettled=max(0, state.unsettled - counts),
    )


def drop_waiting(state: Master, names: Names) -> Master:
    """Start those of these daemons that wait for others no more."""
    for name in names:
        if name in state.waiting:
            state = _drop_waiting(state, name)
    return state


def _is_free(daemon: DaemonSpec, state: Master, daemons: Daemons) -> bool:
    return all(is_ready(daemons.get(other, Down())) for other in daemon.requires) and not any(
        _is_pending(other, state) for other in (*daemon.requires, *daemon.wants, *daemon.after)
    )


def _is_pending(name: str, state: Master) -> bool:
    """Return whether the first attempt to start it has no outcome yet."""
    return name in state.coming or name in state.waiting or name in state.returning


def _find_lost(
    wanted: dict[str, DaemonSpec], state: Master, daemons: Daemons
) -> tuple[str, str] | None:
    """Return a waiting daemon, and what it requires and will not get."""
    for name in state.waiting:
        for other in wanted[name].requires:
            is_there = not is_idle(daemons.get(other, Down())) or _is_pending(other, state)
            if not is_there and not is_ready(daemons.get(other, Down())):
                return name, other
    return None


def end(spec: MasterSpec, state: Master, names: Names, how: str, daemons: Daemons) -> Result:
    """Tell these daemons to end, each when those of them that come after it are gone.

    `how` is one of STOP, RELOAD and HALT, or why they are ended in words.
    """
    state = drop_waiting(state, names)
    gone = [name for name, _ in state.ending if name in names]
    pairs = [pair for pair in state.ending if pair[0] not in gone]
    pairs += [
        (name, how)
        for name in names
        if not is_idle(daemons.get(name, Down())) or name in state.coming
    ]
    return end_more(spec, state.replace(ending=tuple(pairs)))


def end_more(spec: MasterSpec, state: Master) -> Result:
    """Tell those to end whose turn has come, last started first."""
    if not state.ending:
        return state, ()
    going = {name for name, _ in state.ending} | set(state.leaving)
    held_up = {
        other
        for daemon in spec.daemons
        if daemon.name in going
        for other in (*daemon.requires, *daemon.wants, *daemon.after)
    }
    now = [pair for pair in reversed(state.ending) if pair[0] not in held_up]
    state = state.replace(
        ending=tuple(pair for pair in state.ending if pair not in now),
        leaving=(*state.leaving, *(name for name, _ in now if name not in state.leaving)),
    )
    return state, tuple(Tell(name, _build_end(how)) for name, how in now)


def stay(spec: MasterSpec, state: Master, names: Names) -> Result:
    """Let these daemons not end after all, or come back by themselves; others may end now."""
    state = state.replace(
        ending=tuple(pair for pair in state.ending if pair[0] not in names),
        leaving=tuple(name for name in state.leaving if name not in names),
    )
    return end_more(spec, state)


def _build_end(how: str) -> DaemonEvent:
    match how:
        case "stop":
            return Stop()
        case "reload":
            return Reload()
        case "halt":
            return Halt()
        case _:
            return Halt(how)


def note_down(spec: MasterSpec, state: Master, name: str) -> Result:
    """Take note that nothing of a daemon is left; others may end now."""
    if not (state.ending or state.leaving or state.coming):
        return state, ()
    state = state.replace(
        ending=tuple(pair for pair in state.ending if pair[0] != name),
        leaving=tuple(each for each in state.leaving if each != name),
        coming=tuple(each for each in state.coming if each != name),
    )
    return end_more(spec, state)


def take_returning(state: Master, name: str) -> tuple[bool, Master]:
    """Return whether a daemon that is gone is to be started again, and take note that it is."""
    if name not in state.returning or state.phase in (STOPPING, ENDED):
        return False, state
    returning = tuple(each for each in state.returning if each != name)
    return True, state.replace(returning=returning, unsettled=state.unsettled + 1)


def note_settled(state: Master, name: str) -> Master:
    """Take note that the first attempt to start a daemon has an outcome."""
    if name not in state.coming:
        return state
    return state.replace(coming=tuple(each for each in state.coming if each != name))


def block(spec: MasterSpec, state: Master, name: str) -> Master:
    """Let nobody wait for those that require a daemon whose first attempt has failed.

    They start when it is ready after all.
    """
    others = with_dependents(spec, (name,))
    blocked = tuple(each for each in state.waiting if each in others and each not in state.blocked)
    return state.replace(
        blocked=(*state.blocked, *blocked),
        unsettled=max(0, state.unsettled - len(blocked)),
        failed=state.failed + len(blocked),
    )


def with_required(spec: MasterSpec, names: Iterable[str]) -> Names:
    """Return these daemons and all that they need or want, in file order."""
    wanted = {daemon.name: daemon for daemon in spec.daemons}
    found: set[str] = set()
    todo = [name for name in names if name in wanted]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [*wanted[name].requires, *wanted[name].wants]
    return tuple(name for name in wanted if name in found)


def with_dependents(spec: MasterSpec, names: Iterable[str]) -> Names:
    """Return these daemons and all that require one of them, in file order."""
    found = set(names)
    grown = True
    while grown:
        grown = False
        for daemon in spec.daemons:
            if daemon.name not in found and found.intersection(daemon.requires):
                found.add(daemon.name)
                grown = True
    return tuple(daemon.name for daemon in spec.daemons if daemon.name in found)
