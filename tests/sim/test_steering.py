"""What people ask of a running master: apply changes what differs, and a stop is kept to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from world import Behaviour, World, config, daemon

from lowsuper.events import Asked, DaemonGivenUp, MasterApplies
from lowsuper.machine import Down, Over, Up
from lowsuper.master import RUNNING
from lowsuper.units import SECOND

NAMES = "abcde"


def apply(world, spec, duration=30 * SECOND):
    world.next_spec = spec
    world.ask(Asked("apply"))
    return world.run(duration)


def up(world):
    return {
        name: world.supervisor.specs[name]
        for name, state in world.supervisor.states.items()
        if isinstance(state, Up)
    }


@st.composite
def configurations(draw):
    """Some daemons in some order, of which some require earlier ones."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    return config(
        *(
            daemon(
                name,
                stop_signal=draw(st.sampled_from([2, 15])),
                requires=tuple(names[:1]) if index and draw(st.booleans()) else (),
                after=tuple(names[1:2]) if index > 1 and draw(st.booleans()) else (),
            )
            for index, name in enumerate(names)
        )
    )


@given(configurations(), configurations(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_apply_ends_where_a_reload_ends_and_touches_only_what_differs(old, new, seed):
    one, other = (World(old, seed).boot().run(SECOND) for _ in range(2))
    before = {name: state.run for name, state in one.supervisor.states.items()}
    specs = dict(one.supervisor.specs)
    apply(one, new)
    other.reload(new)
    other.run(30 * SECOND)
    assert one.supervisor.master.phase == other.supervisor.master.phase == RUNNING
    assert up(one) == up(other)
    assert up(one).keys() == {each.name for each in new.daemons}
    assert list(one.supervisor.states) == list(other.supervisor.states)
    assert one.supervisor.master.alive == len(new.daemons)
    for each in new.daemons:
        same = each.name in specs and specs[each.name] == each
        if same:
            assert one.supervisor.states[each.name].run == before[each.name]
        elif each.name in specs:
            assert one.supervisor.states[each.name].run > before[each.name]
    for world in (one, other):
        world.terminate()
        world.run(100 * SECOND)
        assert world.code == 0


def test_apply_says_what_differs():
    old = config(daemon("kept"), daemon("gone"), daemon("changed", stop_signal=2))
    new = config(daemon("added"), daemon("kept"), daemon("changed", stop_signal=3))
    world = apply(World(old).boot().run(SECOND), new)
    assert world.said(MasterApplies) == [MasterApplies(("added",), ("gone",), ("changed",))]
    assert {name: len(times) for name, times in world.spawned.items()} == {
        "kept": 1,
        "gone": 1,
        "changed": 2,
        "added": 1,
    }


@pytest.mark.parametrize("way", ["apply", "reload"])
def test_stopped_stays_stopped_over_a_change(way):
    old = config(daemon("a"), daemon("b"))
    new = config(daemon("a", stop_signal=3), daemon("b", stop_signal=3))
    world = World(old).boot().run(SECOND)
    world.ask(Asked("stop", ("a",)))
    world.run(SECOND)
    if way == "apply":
        apply(world, new)
    else:
        world.reload(new)
        world.run(SECOND)
    assert isinstance(world.supervisor.states["a"], Down)
    assert up(world).keys() == {"b"}
    world.ask(Asked("start", ("a",)))
    world.run(SECOND)
    assert up(world) == {each.name: each for each in new.daemons}


def test_given_up_comes_back_when_somebody_asks():
    world = World(
        config(daemon("a", max_restarts=(1, 60 * SECOND))),
        scripts={"a": [Behaviour(lives=0), Behaviour(lives=0), Behaviour()]},
    )
    world.boot().run(10 * SECOND)
    assert isinstance(world.supervisor.states["a"], Over)
    assert len(world.said(DaemonGivenUp)) == 1
    world.ask(Asked("start", ("a",)))
    world.run(SECOND)
    assert up(world).keys() == {"a"}
    world.terminate()
    world.run(SECOND)
    assert world.code == 0
