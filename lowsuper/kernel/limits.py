"""Resource limits by their names: the numbers differ between architectures. See setrlimit(2)."""

from __future__ import annotations

from lowsuper.plan import Limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowsuper.model import ResourceLimit


def find_limits(inherited: Iterable[Limit], wanted: Iterable[ResourceLimit]) -> tuple[Limit, ...]:
    """Return the limits of a daemon, one for each resource.

    Args:
        inherited: those of every daemon.
        wanted: its own; the last one of a resource counts.
    """
    import resource  # the master has it from its start: see `kernel.world`

    found = {limit.resource: limit for limit in inherited}
    for limit in wanted:
        number: int = getattr(resource, f"RLIMIT_{limit.resource.upper()}")
        found[number] = Limit(number, limit.soft, limit.hard, limit.resource)
    return tuple(found.values())
