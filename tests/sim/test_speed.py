"""The decisions stay roughly linear in the number of daemons."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from time import process_time

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import World, config, daemon

from lowsuper.units import SECOND


def measure(count, *, reload):
    """Return the least processor time of a boot, a reload if wanted, and a stop."""
    best = 1e9
    for seed in range(3):
        world = World(config(*(daemon(f"d{number}") for number in range(count))), seed)
        world.audited = False
        gc.collect()
        gc.disable()  # the trace grows, and what it costs to look through it is not meant
        begin = process_time()
        world.boot().run(SECOND)
        if reload:
            world.reload(world.spec)
            world.run(SECOND)
        world.terminate()
        world.run(SECOND)
        best = min(best, process_time() - begin)
        gc.enable()
        assert world.code == 0
    return best


@pytest.mark.parametrize("reload", [False, True])
def test_four_times_the_daemons_take_less_than_eight_times_as_long(reload):
    assert measure(1000, reload=reload) < 8 * measure(250, reload=reload)
