"""The throttle: uWSGI's rule, and what differs."""

from __future__ import annotations

import pytest

from lowsuper.backoff import LONGEST, QUICK, STABLE, count_spawns, pause_before_start
from lowsuper.units import SECOND


@pytest.mark.parametrize(
    ("spawns", "age", "pause"),
    [
        (1, 0, 1),
        (2, 0, 2),
        (10, 0, 10),
        (10, SECOND - 1, 10),
        (10, SECOND, 9),
        (10, 3 * SECOND, 7),
        (1, 3 * SECOND, 1),
        (0, 0, 1),
        (10, 3 * SECOND + 1, 0),
        (300, 0, 300),
        (301, 0, 300),
        (10**9, 0, 300),
    ],
)
def test_pause_counts_spawns_less_the_age(spawns, age, pause):
    assert pause_before_start(spawns, age, None) == pause * SECOND


@pytest.mark.parametrize(
    ("longest", "pause"),
    [(None, 300), (0, 300), (SECOND, 1), (7 * SECOND, 7), (900 * SECOND, 900)],
)
def test_pause_when_max_throttle_is_set_is_no_longer(longest, pause):
    assert pause_before_start(1000, 0, longest) == pause * SECOND


def test_pause_when_max_throttle_is_below_a_second_is_that():
    assert pause_before_start(1, 0, SECOND // 2) == SECOND // 2


@pytest.mark.parametrize(("age", "count"), [(0, 5), (STABLE - 1, 5), (STABLE, 0), (STABLE * 9, 0)])
def test_count_when_it_ran_stably_begins_anew(age, count):
    assert count_spawns(5, age) == count


def test_limits_are_those_of_the_manual():
    assert (QUICK, STABLE, LONGEST) == (3 * SECOND, 30 * SECOND, 300 * SECOND)
