"""The master machine: phases, order, reload, shutdown and the exit code.

`step` is total and pure, as that of `machine` is: `table` has it, `states` the state, `order` which
daemon starts and ends when, `steer` what people ask of single daemons.
"""

from __future__ import annotations

from lowsuper.master.order import is_idle, is_ready
from lowsuper.master.states import (
    BOOTING,
    ENDED,
    RELOADING,
    RUNNING,
    STOPPING,
    Master,
)
from lowsuper.master.table import NAMES, exit_code, step

__all__ = [
    "BOOTING",
    "ENDED",
    "NAMES",
    "RELOADING",
    "RUNNING",
    "STOPPING",
    "Master",
    "exit_code",
    "is_idle",
    "is_ready",
    "step",
]
