"""The daemon machine: what one daemon does next.

`step` is total and pure: given the specification, the state, an event and the time it returns the
new state and the actions, and nothing else decides. `states` has the states, `plain` and `smart`
the two tables, `moves` what they share.
"""

from __future__ import annotations

from lowsuper.machine.plain import step
from lowsuper.machine.states import (
    STATE_VERSION,
    STATES,
    Awaiting,
    Backoff,
    Broken,
    Down,
    Looking,
    Over,
    Starting,
    State,
    Stopping,
    Up,
)

__all__ = [
    "STATES",
    "STATE_VERSION",
    "Awaiting",
    "Backoff",
    "Broken",
    "Down",
    "Looking",
    "Over",
    "Starting",
    "State",
    "Stopping",
    "Up",
    "step",
]
