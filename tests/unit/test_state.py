"""The machines' states as plain values."""

from __future__ import annotations

import json

import pytest

from lowsuper import machine, master
from lowsuper.events import SpawnFailed
from lowsuper.machine import (
    STATE_VERSION,
    Awaiting,
    Backoff,
    Broken,
    Down,
    Looking,
    Over,
    Starting,
    Stopping,
    Up,
)
from lowsuper.master import Master
from lowsuper.master.states import DRAIN, FINISH
from lowsuper.model import Command, Exec, Hook, Origin
from lowsuper.state import dump, load

CLASSES = (*machine.STATES, Master, Hook, Exec, Command, Origin)
HOOK = Hook("touch", Exec(Command("x", ("x",))), Origin("f", 1, "touch-exec", "/f x"), path="/f")
FAILURE = SpawnFailed(3, "chdir", 2, "/srv\udce9", cloned=True)
VALUES = [
    Down(),
    Looking(1, 2, first=True, held=True),
    Starting(1, 2, 3, first=True),
    Awaiting(1, 2, 3, 4, 5, 6, lost=True, status=9, finding="the pidfile /x\udce9 is empty"),
    Broken(1, 2, 3, FAILURE),
    Up(1, 2, 3, 4, ready=False),
    Stopping(1, 2, 3, 4, 5, 6, "again", main_gone=True, status=None),
    Backoff(1, 2, 1 << 62),
    Over(3, "failed", 256),
    Master(phase=master.STOPPING, todo=(DRAIN, HOOK, FINISH), waiting=("a", "class")),
    (Master(), (("a", Down(1)), ("class", Up(1, 2, 3, 4)))),
    (),
    None,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_state_when_stored_as_json_comes_back(value):
    again = load(json.loads(json.dumps(dump(value))), CLASSES)
    assert again == value
    assert repr(again) == repr(value)


def test_values_has_every_state_class():
    parts = {SpawnFailed, Hook, Exec, Command, Origin}
    assert {type(value) for value in VALUES} | parts >= set(CLASSES)


@pytest.mark.parametrize("version", [0, STATE_VERSION + 1, None, "1", [1]])
def test_load_when_the_version_is_another_refuses(version):
    with pytest.raises(ValueError, match="has version"):
        load({"version": version, "value": None}, CLASSES)


@pytest.mark.parametrize("plain", [None, [], {}, {"version": STATE_VERSION}, "x", 1])
def test_load_when_there_is_no_envelope_refuses(plain):
    with pytest.raises(ValueError, match="not a stored state"):
        load(plain, CLASSES)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"class": "Nobody"}, "unknown class 'Nobody'"),
        ({"class": "Record"}, "unknown class 'Record'"),
        ({"class": ["Down"]}, "unknown class"),
        ({"run": 1}, "unknown class None"),
        ({"class": "Down"}, "Down has the fields run"),
        ({"class": "Down", "run": 1, "more": 2}, "not more, run"),
        ([[{"class": "Nobody"}]], "unknown class"),
        (1.5, "no float"),
    ],
)
def test_load_when_the_value_does_not_fit_refuses(value, reason):
    with pytest.raises(ValueError, match=reason):
        load({"version": STATE_VERSION, "value": value}, CLASSES)


def test_load_when_the_class_is_not_allowed_refuses():
    with pytest.raises(ValueError, match="unknown class 'Up'"):
        load(dump(Up(1, 2, 3, 4)), (Down,))


@pytest.mark.parametrize("value", [1.5, b"x", [1], {"a": 1}, {1}])
def test_dump_when_it_is_no_state_refuses(value):
    with pytest.raises(TypeError, match="a state holds no"):
        dump(value)
