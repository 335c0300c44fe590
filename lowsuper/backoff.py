"""How long to wait before a daemon is started again.

uWSGI's rule (`uwsgi_spawn_daemon`): a daemon that ends within 3 s waits as many seconds as it was
spawned, less its age, at least 1 and at most `max_throttle` or 300. Different here: the
age counts from the moment when the daemon really ran, not from the beginning of the pause before
it, and `STABLE` resets the count, which uWSGI never does. A daemon with a `backoff` of its own
waits twice as long each time, whatever its age.
"""

from __future__ import annotations

from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import DaemonSpec

QUICK = 3 * SECOND
STABLE = 30 * SECOND
LONGEST = 300 * SECOND


def pause_before_start(spawns: int, age: Ns, longest: Ns | None) -> Ns:
    """Return the pause in nanoseconds before the next start.

    Args:
        spawns: how often it was started since it last ran stably, at least 1.
        age: how long the life that has just ended lasted.
        longest: the configured `max_throttle`; None or 0: 300 s.
    """
    if age > QUICK:
        return 0
    wanted = max(1, spawns - age // SECOND) * SECOND
    return min(wanted, longest or LONGEST)


def count_spawns(spawns: int, age: Ns) -> int:
    """Return the number of starts that count, after a life of `age` that was start `spawns`."""
    return 0 if age >= STABLE else spawns


def choose_pause(spec: DaemonSpec, spawns: int, age: Ns) -> Ns:
    """Return the pause in nanoseconds before the next start of this daemon.

    Args:
        spec: the daemon.
        spawns: as in `pause_before_start`.
        age: as there.
    """
    if spec.backoff is None:
        return pause_before_start(max(spawns, 1), age, spec.max_throttle)
    first, longest = spec.backoff
    # No shift beyond what any pause can be: it may have failed a million times.
    return Ns(min(first << min(max(spawns - 1, 0), 40), longest))
