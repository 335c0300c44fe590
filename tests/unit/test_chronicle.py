"""A chronicle is folded from what the operator was told."""

from __future__ import annotations

from lowsuper.chronicle import KEPT, Chronicle, Exit
from lowsuper.events import (
    DaemonDied,
    DaemonFound,
    DaemonGone,
    DaemonMoved,
    DaemonNotStarted,
    DaemonReaped,
    DaemonStarted,
)

STARTED = DaemonStarted("d", 7, 33, 34, "cgroup")
DIED = DaemonDied("d", 7, 256, 50, False, 10, False)


def fold(*notes):
    chronicle = Chronicle()
    for at, note in enumerate(notes):
        chronicle.record(note, at)
    return chronicle


def test_started_and_found_tell_who_it_is():
    chronicle = fold(STARTED)
    assert (chronicle.pid, chronicle.uid, chronicle.gid, chronicle.rung) == (7, 33, 34, "cgroup")
    found = fold(DaemonFound("d", 9, 1, 2, "shim", 5, "x"), DaemonMoved("d", 9, 10, "y"))
    assert (found.pid, found.uid, found.rung) == (10, 1, "shim")


def test_restarts_are_those_that_nobody_asked_for():
    assert fold(STARTED, DIED, STARTED, DIED).restarts == 2
    assert fold(STARTED, DIED.replace(retry=None)).restarts == 0
    asked = DaemonGone("d", 7, 15, 5, retry=0)
    assert fold(STARTED, asked, STARTED).restarts == 0


def test_exit_tells_of_the_last_end():
    assert fold(STARTED, DIED).exit == Exit(256, 7, 50, 1)
    died = DIED.replace(left=True, retry=None)
    crashed = fold(STARTED, died, DaemonGone("d", 7, 256, 5, retry=10))
    assert (crashed.exit, crashed.restarts) == (Exit(256, 7, 50, 1), 1)
    assert fold(STARTED, DaemonGone("d", 7, 15, 5)).exit == Exit(15, 7, None, 1)
    unknown = fold(STARTED, DIED.replace(status=None), DaemonReaped("d", 7, 9))
    assert unknown.exit == Exit(9, 7, 50, 1)


def test_failure_is_forgotten_when_it_runs():
    failed = DaemonNotStarted("d", "chdir", 2, "/x", 10)
    assert fold(failed).failure == failed
    assert fold(failed).restarts == 1
    assert fold(failed, STARTED).failure is None


def test_notes_are_the_last_ones():
    chronicle = fold(*[STARTED] * (KEPT + 5), DIED)
    assert len(chronicle.notes) == KEPT
    assert chronicle.notes[-1] == (KEPT + 5, DIED)
