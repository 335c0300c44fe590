"""What differs between two configurations, as far as their daemons would notice. Pure."""

from __future__ import annotations

from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowsuper.model import DaemonSpec, MasterSpec

_SHARED = (
    "env",
    "chdir",
    "umask",
    "user",
    "group",
    "add_groups",
    "master_as_root",
    "daemons_honour_stdin",
    "kill_domain",
    "jail",
)
"""What every daemon has of the master: one that differs changes all of them."""

_UNSEEN = ("name", "files", "daemons", "notices", "origins")


class Changes(Record):
    """What differs. Names are those of daemons; keys are the fields of their specifications."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[tuple[str, tuple[str, ...]], ...] = ()  # name, and what of it
    master: tuple[str, ...] = ()  # the master's own
    shared: bool = False  # it is among the master's own what every daemon has of it

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.removed or self.changed or self.master)

    @property
    def restarted(self) -> tuple[str, ...]:
        """The daemons that have to be started again."""
        return tuple(name for name, _ in self.changed)


def compare(before: MasterSpec, started: Mapping[str, DaemonSpec], after: MasterSpec) -> Changes:
    """Return what differs.

    Args:
        before: the configuration in force.
        started: each daemon as it was last started, by name.
        after: the new configuration.
    """
    master = tuple(
        field
        for field in before.__match_args__
        if field not in _UNSEEN and _read(before, field) != _read(after, field)
    )
    shared = any(field in _SHARED for field in master)
    wanted = {daemon.name: daemon for daemon in after.daemons}
    known = {daemon.name for daemon in before.daemons}
    changed = []
    for name, daemon in wanted.items():
        if name not in known:
            continue
        fields = _differ(started.get(name, daemon), daemon)
        if fields or shared:
            changed.append((name, fields))
    return Changes(
        tuple(name for name in wanted if name not in known),
        tuple(daemon.name for daemon in before.daemons if daemon.name not in wanted),
        tuple(changed),
        master,
        shared,
    )


def _read(spec: MasterSpec, field: str) -> object:
    """Return a field; the line on which a hook was written is nothing that differs."""
    if field != "hooks":
        return getattr(spec, field)
    return tuple(hook.replace(origin=hook.origin.replace(line=0)) for hook in spec.hooks)


def _differ(before: DaemonSpec, after: DaemonSpec) -> tuple[str, ...]:
    """Return the fields that differ; where a daemon was written is none of them."""
    return tuple(
        field
        for field in before.__match_args__
        if field != "origin" and getattr(before, field) != getattr(after, field)
    )
