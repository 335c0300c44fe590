"""Records: immutable values with named fields."""

from __future__ import annotations

import inspect

import pytest

from lowsuper import events, machine, master, model, plan
from lowsuper.record import Record


class Point(Record):
    x: int
    y: int = 2
    z: int = 3


class Other(Record):
    x: int
    y: int
    z: int


class Empty(Record):
    pass


def test_record_when_made_by_place_or_name_is_the_same():
    assert Point(1) == Point(x=1) == Point(1, 2, 3) == Point(1, z=3) == Point(z=3, y=2, x=1)
    assert (Point(1).x, Point(1).y, Point(1).z) == (1, 2, 3)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), {}),
        ((), {"y": 1}),
        ((1, 2, 3, 4), {}),
        ((1,), {"x": 1}),
        ((1,), {"w": 1}),
        ((1, 2, 3), {"z": 3}),
    ],
)
def test_record_when_fields_do_not_fit_is_refused(args, named):
    with pytest.raises(TypeError, match="Point"):
        Point(*args, **named)


def test_record_when_a_field_is_set_refuses():
    with pytest.raises(AttributeError):
        Point(1).x = 2
    with pytest.raises(AttributeError):
        Point(1).w = 2


def test_record_when_the_class_differs_is_not_equal():
    assert Point(1, 2, 3) != Other(1, 2, 3)
    assert Point(1, 2, 3) != (1, 2, 3)
    assert Empty() != ()
    assert len({Point(1), Point(1), Other(1, 2, 3)}) == 2


def test_replace_changes_only_what_is_named():
    assert Point(1).replace(y=9) == Point(1, 9, 3)
    with pytest.raises(TypeError, match="w"):
        Point(1).replace(w=1)


def test_record_matches_by_place_and_by_name():
    match Point(1):
        case Point(1, y=2, z=z):
            assert z == 3
        case _:
            pytest.fail("did not match")


def test_record_repr_reads_as_it_is_made():
    assert repr(Point(1)) == "Point(x=1, y=2, z=3)"
    assert repr(Empty()) == "Empty()"


@pytest.mark.parametrize("module", [events, machine, master, model, plan])
def test_module_has_records_that_do_not_inherit_from_each_other(module):
    found = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Record) and value is not Record
    ]
    assert found
    assert all(value.__bases__ == (Record,) for value in found)
