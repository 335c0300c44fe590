"""The daemon machine, row by row. Every state of a plain daemon meets every event in `TABLE`.

What a smart daemon does is in test_smart.py.
"""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from lowsuper import events, machine
from lowsuper.events import (
    CancelTimer,
    ControlEnded,
    DaemonDied,
    DaemonEnding,
    DaemonGone,
    DaemonInBackground,
    DaemonKilled,
    DaemonNotStarted,
    DaemonSlow,
    DaemonStarted,
    DaemonStuck,
    Deliver,
    Emptied,
    ExecOk,
    Exited,
    Found,
    Halt,
    Kill,
    KillDomain,
    PidfileTouched,
    Ready,
    Reload,
    Reset,
    Restart,
    Say,
    SetTimer,
    Settled,
    Signal,
    Spawn,
    SpawnFailed,
    Start,
    Stop,
    Timer,
    Touched,
    Unready,
    WatchdogMissed,
    WentDown,
)
from lowsuper.machine import (
    Awaiting,
    Backoff,
    Broken,
    Down,
    Looking,
    Over,
    Starting,
    Stopping,
    Up,
    step,
)
from lowsuper.machine.plain import TO_BACKGROUND
from lowsuper.machine.states import (
    AGAIN,
    CRASHED,
    DOWN,
    RELOADED,
    SLOW_START,
    STUCK,
    UNREADY,
)
from lowsuper.model import Command, DaemonSpec, Origin
from lowsuper.units import SECOND

RUN = 3
BORN = 100 * SECOND
NOW = 104 * SECOND  # four seconds later: no pause before the next start
PATIENCE = 8 * SECOND
SPEC = DaemonSpec(
    "web",
    Command("web", ("web",)),
    Origin("f.ini", 1, "attach-daemon", "web"),
    stop_timeout=PATIENCE,
    stop_signal=2,
    reload_signal=1,
)
CONTROL = SPEC.replace(control=True)

FAILURE = SpawnFailed(RUN, "chdir", 2, "/srv", cloned=True)
NOT_CLONED = FAILURE.replace(step="clone", cloned=False)
EXEC_OK = ExecOk(RUN, 77, 33, 33, "cgroup")

STATES = {
    "Down": Down(RUN),
    "Starting": Starting(RUN, BORN, 1, first=True),
    "Broken": Broken(RUN, BORN, 1, FAILURE),
    "Up": Up(RUN, BORN, 1, 77),
    "Stopping": Stopping(RUN, BORN, NOW, BORN, 1, 77, DOWN),
    "Backoff": Backoff(RUN, 2, NOW),
    "Over": Over(RUN, "failed", 256),
}
EVENTS = {
    "Start": Start(),
    "Stop": Stop(),
    "Reload": Reload(),
    "Kill": Kill(),
    "Touched": Touched("/t"),
    "Restart": Restart(),
    "Halt": Halt(),
    "Reset": Reset(),
    "Deliver": Deliver(10, "signal"),
    "Ready": Ready(RUN),
    "Unready": Unready(RUN, "nobody listens"),
    "WatchdogMissed": WatchdogMissed(RUN, SECOND),
    "Timer": Timer(RUN),
    "ExecOk": EXEC_OK,
    "SpawnFailed": FAILURE,
    "not cloned": NOT_CLONED,
    "Exited": Exited(RUN, 256, left=False),
    "left": Exited(RUN, 256, left=True),
    "Emptied": Emptied(RUN),
}
RUN_EVENTS = [name for name, event in EVENTS.items() if hasattr(event, "run")]

SAME = "same"
# For each state one row per event: the next state, and the actions, in order. What is said is
# written as its note.
NOTHING = dict.fromkeys(EVENTS, (SAME, ""))
TABLE = {
    "Down": {
        **NOTHING,
        "Start": ("Starting", "Spawn SetTimer"),
        "Stop": (SAME, ""),
        "Reload": (SAME, ""),
        "Kill": (SAME, ""),
        "Touched": (SAME, ""),
        "Timer": (SAME, ""),
        "ExecOk": (SAME, ""),
        "SpawnFailed": (SAME, ""),
        "not cloned": (SAME, ""),
        "Exited": (SAME, ""),
        "left": (SAME, ""),
        "Emptied": (SAME, ""),
    },
    "Starting": {
        **NOTHING,
        "Halt": ("Stopping", "KillDomain SetTimer Settled"),
        "Restart": ("Stopping", "KillDomain SetTimer Settled"),
        "Start": (SAME, ""),
        "Stop": ("Stopping", "KillDomain SetTimer Settled"),
        "Reload": ("Stopping", "KillDomain SetTimer Settled"),
        "Kill": ("Stopping", "KillDomain SetTimer Settled"),
        "Touched": ("Stopping", "KillDomain SetTimer Settled"),
        "Timer": ("Starting", "DaemonSlow Settled"),
        "ExecOk": ("Up", "CancelTimer DaemonStarted Settled"),
        "SpawnFailed": ("Broken", "CancelTimer Settled"),
        "not cloned": ("Starting", "Settled DaemonNotStarted Spawn SetTimer"),
        "Exited": ("Starting", "Settled Spawn SetTimer DaemonDied"),
        "left": ("Stopping", "Settled DaemonDied Signal SetTimer"),
        "Emptied": (SAME, ""),
    },
    "Broken": {
        **NOTHING,
        "Halt": ("Stopping", "KillDomain SetTimer DaemonNotStarted"),
        "Restart": ("Stopping", "KillDomain SetTimer DaemonNotStarted"),
        "Start": (SAME, ""),
        "Stop": ("Stopping", "KillDomain SetTimer DaemonNotStarted"),
        "Reload": ("Stopping", "KillDomain SetTimer DaemonNotStarted"),
        "Kill": ("Stopping", "KillDomain SetTimer DaemonNotStarted"),
        "Touched": (SAME, ""),
        "Timer": (SAME, ""),
        "ExecOk": (SAME, ""),
        "SpawnFailed": (SAME, ""),
        "not cloned": (SAME, ""),
        "Exited": ("Starting", "DaemonNotStarted Spawn SetTimer"),
        "left": ("Broken", "KillDomain"),
        "Emptied": (SAME, ""),
    },
    "Up": {
        **NOTHING,
        "Halt": ("Stopping", "Signal SetTimer DaemonEnding"),
        "Restart": ("Stopping", "Signal SetTimer DaemonEnding"),
        "Reset": ("Up", ""),
        "Deliver": (SAME, "Signal DaemonSignalled"),
        "WatchdogMissed": ("Stopping", "DaemonSilent Signal SetTimer DaemonEnding"),
        "Start": (SAME, ""),
        "Stop": ("Stopping", "Signal SetTimer DaemonEnding"),
        "Reload": ("Stopping", "Signal SetTimer DaemonEnding"),
        "Kill": ("Stopping", "KillDomain SetTimer DaemonKilled"),
        "Touched": ("Stopping", "Signal SetTimer DaemonEnding"),
        "Timer": (SAME, ""),
        "ExecOk": (SAME, ""),
        "SpawnFailed": (SAME, ""),
        "not cloned": (SAME, ""),
        "Exited": ("Starting", "Spawn SetTimer DaemonDied"),
        "left": ("Stopping", "DaemonDied Signal SetTimer"),
        "Emptied": (SAME, ""),
    },
    "Stopping": {
        **NOTHING,
        "Restart": ("Stopping", ""),
        "Reset": ("Stopping", ""),
        "Start": ("Stopping", ""),
        "Stop": (SAME, ""),
        "Reload": ("Stopping", ""),
        "Kill": ("Stopping", "KillDomain SetTimer DaemonKilled"),
        "Touched": (SAME, ""),
        "Timer": ("Stopping", "KillDomain SetTimer DaemonKilled"),
        "ExecOk": (SAME, ""),  # the pid is known already
        "SpawnFailed": (SAME, ""),
        "not cloned": ("Down", "DaemonGone CancelTimer WentDown"),
        "Exited": ("Down", "DaemonGone CancelTimer WentDown"),
        "left": ("Stopping", "Signal"),
        "Emptied": (SAME, ""),
    },
    "Backoff": {
        **NOTHING,
        "Halt": ("Down", "CancelTimer WentDown"),
        "Restart": ("Starting", "Spawn SetTimer"),
        "Reset": ("Backoff", ""),
        "Start": ("Starting", "Spawn SetTimer"),
        "Stop": ("Down", "CancelTimer WentDown"),
        "Reload": ("Down", "CancelTimer WentDown"),
        "Kill": ("Down", "CancelTimer WentDown"),
        "Touched": ("Starting", "Spawn SetTimer"),
        "Timer": ("Starting", "Spawn SetTimer"),
        "ExecOk": (SAME, ""),
        "SpawnFailed": (SAME, "DaemonNotStarted"),
        "not cloned": (SAME, "DaemonNotStarted"),
        "Exited": (SAME, ""),
        "left": (SAME, ""),
        "Emptied": (SAME, ""),
    },
    "Over": {
        **NOTHING,
        "Start": ("Starting", "Spawn SetTimer"),
        "Stop": ("Down", ""),
        "Halt": ("Down", ""),
        "Reload": ("Down", ""),
        "Kill": ("Down", ""),
        "Reset": ("Down", ""),
    },
}


def name_of(action):
    return type(action.note if isinstance(action, Say) else action).__name__


def notes(actions):
    return [action.note for action in actions if isinstance(action, Say)]


def only(actions, kind):
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


@pytest.mark.parametrize(("state", "event"), list(product(STATES, EVENTS)))
def test_step_when_event_meets_state_follows_the_table(state, event):
    expected, actions = TABLE[state][event]
    before = STATES[state]
    after, done = step(SPEC, before, EVENTS[event], NOW)
    assert " ".join(map(name_of, done)) == actions
    if expected == SAME:
        assert after == before
    else:
        assert type(after).__name__ == expected
        assert after != before


def test_table_has_every_state_and_event():
    smart = {Looking, Awaiting}
    assert {type(state) for state in STATES.values()} == set(get_args(machine.State)) - smart
    assert {type(event) for event in EVENTS.values()} == set(get_args(events.PlainEvent))
    assert all(row.keys() == EVENTS.keys() for row in TABLE.values())
    assert TABLE.keys() == STATES.keys()


@pytest.mark.parametrize(("state", "event"), list(product(STATES, RUN_EVENTS)))
@pytest.mark.parametrize("other", [RUN - 1, RUN + 1])
def test_step_when_event_is_of_another_run_changes_nothing(state, event, other):
    before = STATES[state]
    assert step(SPEC, before, EVENTS[event].replace(run=other), NOW) == (before, ())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", [PidfileTouched(), Found(RUN, 7, 0, 0, "cgroup", BORN, "x")])
def test_step_when_the_daemon_is_plain_knows_no_pidfile(state, event):
    assert step(SPEC, STATES[state], event, NOW) == (STATES[state], ())


def test_states_lists_every_class_that_a_state_can_hold():
    assert {*get_args(machine.State), SpawnFailed} == set(machine.STATES)


# Starting.


def test_start_when_down_counts_the_run_up():
    after, actions = step(SPEC, Down(RUN), Start(), NOW)
    assert after == Starting(RUN + 1, NOW, 1, first=True)
    assert actions == (Spawn(RUN + 1), SetTimer(RUN + 1, NOW + SLOW_START))


@pytest.mark.parametrize("first", [True, False])
def test_exec_ok_when_starting_tells_pid_identity_and_whether_it_was_the_first(first):
    after, actions = step(SPEC, Starting(RUN, BORN, 4, first=first), EXEC_OK, NOW)
    assert after == Up(RUN, BORN, 4, 77)
    assert notes(actions) == [DaemonStarted("web", 77, 33, 33, "cgroup")]
    assert only(actions, Settled) == Settled(ok=True, first=first)


@pytest.mark.parametrize(
    "event", [FAILURE, NOT_CLONED, Exited(RUN, 9, False), Stop(), Kill(), Touched("/t"), Timer(RUN)]
)
def test_starting_when_not_the_first_settles_nothing(event):
    _, actions = step(SPEC, Starting(RUN, BORN, 4), event, NOW)
    assert not [action for action in actions if isinstance(action, Settled)]


def test_timer_when_starting_settles_the_first_attempt_once():
    after, actions = step(SPEC, Starting(RUN, BORN, 1, first=True), Timer(RUN), BORN + SLOW_START)
    assert after == Starting(RUN, BORN, 1)
    assert actions == (Say(DaemonSlow("web", SLOW_START)), Settled(ok=False, first=True))


@pytest.mark.parametrize(
    ("state", "event", "then"),
    [
        ("Starting", Stop(), DOWN),
        ("Starting", Kill(), DOWN),
        ("Starting", Reload(), RELOADED),
        ("Starting", Touched("/t"), AGAIN),
        ("Broken", Stop(), DOWN),
        ("Broken", Kill(), DOWN),
        ("Broken", Reload(), RELOADED),
    ],
)
def test_stop_when_nothing_runs_yet_kills_at_once_and_then(state, event, then):
    after, actions = step(SPEC, STATES[state], event, NOW)
    assert after == Stopping(RUN, NOW, NOW + STUCK, BORN, 1, 0, then, killed=True)
    assert actions[:2] == (KillDomain(RUN), SetTimer(RUN, NOW + STUCK))


@pytest.mark.parametrize("failed_first", [True, False])
def test_failure_and_exit_in_either_order_come_to_the_same_pause(failed_first):
    exited = Exited(RUN, 127 << 8, left=False)
    order = (FAILURE, exited) if failed_first else (exited, FAILURE)
    state, now = Starting(RUN, NOW, 2), NOW
    said = []
    for event in order:
        state, actions = step(SPEC, state, event, now)
        said += notes(actions)
    assert state == Backoff(RUN, 2, NOW + 2 * SECOND)
    assert DaemonNotStarted("web", "chdir", 2, "/srv", 2 * SECOND) in said


@pytest.mark.parametrize("ok_first", [True, False])
def test_exec_ok_and_exit_in_either_order_come_to_the_same_pause(ok_first):
    exited = Exited(RUN, 0, left=False)
    state = Starting(RUN, NOW, 2)
    for event in (EXEC_OK, exited) if ok_first else (exited, EXEC_OK):
        state, _ = step(SPEC, state, event, NOW)
    assert state == Backoff(RUN, 2, NOW + 2 * SECOND)


def test_broken_when_something_is_left_waits_until_it_is_gone():
    state, actions = step(SPEC, STATES["Broken"], Exited(RUN, 9, left=True), NOW)
    assert actions == (KillDomain(RUN),)
    state, actions = step(SPEC, state, Emptied(RUN), BORN + SECOND)
    assert state == Backoff(RUN, 1, BORN + 2 * SECOND)


def test_broken_when_stopped_after_its_helper_is_gone_waits_for_the_rest_only():
    state, _ = step(SPEC, STATES["Broken"], Exited(RUN, 9, left=True), NOW)
    state, actions = step(SPEC, state, Stop(), NOW)
    assert notes(actions) == [DaemonNotStarted("web", "chdir", 2, "/srv", None)]
    state, actions = step(SPEC, state, Emptied(RUN), NOW)
    assert state == Down(RUN)


# Running and ending.


@pytest.mark.parametrize(
    ("event", "signal", "why", "then"),
    [
        (Stop(), 2, "stop", DOWN),
        (Reload(), 1, "reload", RELOADED),
        (Touched("/t"), 2, "touch /t", AGAIN),
    ],
)
def test_up_when_asked_to_end_gets_its_signal_and_its_patience(event, signal, why, then):
    after, actions = step(SPEC, STATES["Up"], event, NOW)
    assert after == Stopping(RUN, NOW, NOW + PATIENCE, BORN, 0, 77, then)
    assert actions == (
        Signal(RUN, signal),
        SetTimer(RUN, NOW + PATIENCE),
        Say(DaemonEnding("web", 77, signal, PATIENCE, why)),
    )


def test_reload_when_there_is_no_reload_signal_uses_the_stop_signal():
    _, actions = step(SPEC.replace(reload_signal=None), STATES["Up"], Reload(), NOW)
    assert only(actions, Signal) == Signal(RUN, 2)


def test_kill_when_up_gives_no_patience():
    after, actions = step(SPEC, STATES["Up"], Kill(), NOW)
    assert after == Stopping(RUN, NOW, NOW + STUCK, BORN, 1, 77, DOWN, killed=True)
    assert actions[0] == KillDomain(RUN)
    assert notes(actions) == [DaemonKilled("web", 77, 0)]


@pytest.mark.parametrize(
    ("age", "spawns", "expected"),
    [
        (0, 1, Backoff(RUN, 1, NOW + SECOND)),
        (0, 5, Backoff(RUN, 5, NOW + 5 * SECOND)),
        (2 * SECOND, 5, Backoff(RUN, 5, NOW + 3 * SECOND)),
        (3 * SECOND + 1, 5, Starting(RUN + 1, NOW, 6)),
        (30 * SECOND, 5, Starting(RUN + 1, NOW, 1)),
    ],
)
def test_exited_when_up_waits_as_the_throttle_says(age, spawns, expected):
    state = Up(RUN, NOW - age, spawns, 77)
    after, actions = step(SPEC, state, Exited(RUN, 9, left=False), NOW)
    assert after == expected
    pause = expected.until - NOW if isinstance(expected, Backoff) else 0
    assert notes(actions) == [DaemonDied("web", 77, 9, age, False, pause, False)]
    if pause:
        assert only(actions, SetTimer) == SetTimer(RUN, NOW + pause)


def test_exited_for_lack_of_memory_says_of_which():
    _, actions = step(SPEC, STATES["Up"], Exited(RUN, 9, left=False, oom="memory.max 1M"), NOW)
    (died,) = notes(actions)
    assert died.oom == "memory.max 1M"


def test_start_that_failed_gives_the_advice_of_who_knows_better():
    failure = SpawnFailed(RUN, "cgroup", 2, "memory.max = 1M", cloned=False, advice="ask for it")
    _, actions = step(SPEC, STATES["Starting"], failure, NOW)
    (note,) = notes(actions)
    assert (note.step, note.advice) == ("cgroup", "ask for it")


def test_exited_when_something_is_left_ends_that_gracefully_first():
    after, actions = step(SPEC, STATES["Up"], Exited(RUN, 9, left=True), NOW)
    assert after == Stopping(
        RUN, NOW, NOW + PATIENCE, BORN, 1, 77, CRASHED, main_gone=True, status=9
    )
    assert only(actions, Signal) == Signal(RUN, 2)
    assert only(actions, SetTimer) == SetTimer(RUN, NOW + PATIENCE)


@pytest.mark.parametrize("left", [False, True])
def test_exited_when_control_tells_the_master_once_nothing_is_left(left):
    state, actions = step(CONTROL, STATES["Up"], Exited(RUN, 256, left=left), NOW)
    if left:
        assert not [action for action in actions if isinstance(action, ControlEnded)]
        state, actions = step(CONTROL, state, Emptied(RUN), NOW)
    assert state == Down(RUN)
    assert only(actions, ControlEnded) == ControlEnded(256)
    assert only(actions, WentDown) == WentDown()
    assert only(actions, CancelTimer) == CancelTimer()


# In the background.


BACKGROUND = Up(RUN, BORN, 1, 77, background=True)


def test_exited_with_0_soon_when_something_is_left_is_a_way_into_the_background():
    up = Up(RUN, BORN, 1, 77)
    age = TO_BACKGROUND - 1
    after, actions = step(SPEC, up, Exited(RUN, 0, left=True), BORN + age)
    assert after == BACKGROUND
    assert actions == (Say(DaemonInBackground("web", 77, age)),)


@pytest.mark.parametrize(
    ("spec", "event", "now"),
    [
        (SPEC, Exited(RUN, 0, left=True), BORN + TO_BACKGROUND),
        (SPEC, Exited(RUN, 256, left=True), BORN),
        (SPEC, Exited(RUN, 9, left=True), BORN),
        (SPEC, Exited(RUN, 0, left=False), BORN),
        (CONTROL, Exited(RUN, 0, left=True), BORN),
    ],
)
def test_exited_otherwise_is_an_end(spec, event, now):
    _, actions = step(spec, Up(RUN, BORN, 1, 77), event, now)
    assert DaemonDied in [type(note) for note in notes(actions)]


@pytest.mark.parametrize("first", [True, False])
def test_exited_into_the_background_before_exec_ok_is_ready_without_a_timer(first):
    starting = Starting(RUN, BORN, 1, first=first)
    after, actions = step(SPEC, starting, Exited(RUN, 0, left=True), BORN)
    assert after == Up(RUN, BORN, 1, 0, background=True)
    assert actions[0] == CancelTimer()
    assert actions[-1] == Settled(ok=True, first=first)
    assert step(SPEC, after, EXEC_OK, BORN)[0] == after


@pytest.mark.parametrize(
    ("event", "then"),
    [(Stop(), DOWN), (Reload(), RELOADED), (Touched("/t"), AGAIN), (Kill(), DOWN)],
)
def test_background_when_asked_to_end_waits_for_what_it_left(event, then):
    after, actions = step(SPEC, BACKGROUND, event, NOW)
    assert (after.then, after.main_gone) == (then, True)
    assert [type(action) for action in actions][:2] in ([Signal, SetTimer], [KillDomain, SetTimer])
    after, actions = step(SPEC, after, Emptied(RUN), NOW)
    assert isinstance(after, Starting if then == AGAIN else Down)


def test_background_when_empty_starts_again():
    after, actions = step(SPEC, BACKGROUND, Emptied(RUN), NOW)
    assert after == Starting(RUN + 1, NOW, 2)
    assert notes(actions) == [DaemonDied("web", 77, None, NOW - BORN, False, 0, False)]


def test_background_when_something_exits_again_changes_nothing():
    event = Exited(RUN, 0, left=False)
    assert step(SPEC, BACKGROUND, event, NOW) == (BACKGROUND, ())


@pytest.mark.parametrize("event", [Stop(), Touched("/t")])
def test_exited_when_control_was_asked_to_end_does_not_end_the_master(event):
    state, _ = step(CONTROL, STATES["Up"], event, NOW)
    _, actions = step(CONTROL, state, Exited(RUN, 0, left=False), NOW)
    assert not [action for action in actions if isinstance(action, ControlEnded)]


# What follows a Stopping.


def stopping(then, **changes):
    return Stopping(RUN, BORN, NOW, BORN - SECOND, 2, 77, then).replace(**changes)


@pytest.mark.parametrize("then", [DOWN, RELOADED])
def test_gone_when_nothing_follows_is_down_without_a_timer(then):
    after, actions = step(SPEC, stopping(then), Exited(RUN, 0, left=False), NOW)
    assert after == Down(RUN)
    note = DaemonGone("web", 77, 0, NOW - BORN)
    assert actions == (Say(note), CancelTimer(), WentDown())


def test_gone_when_restarted_starts_at_once_with_a_new_count():
    after, actions = step(SPEC, stopping(AGAIN), Exited(RUN, 0, left=False), NOW)
    assert after == Starting(RUN + 1, NOW, 1)
    assert only(actions, Spawn) == Spawn(RUN + 1)
    assert only(actions, SetTimer).run == RUN + 1


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (SECOND, Backoff(RUN, 2, NOW + SECOND)),
        (4 * SECOND, Starting(RUN + 1, NOW, 3)),
    ],
)
@pytest.mark.parametrize("then", [CRASHED, UNREADY])
def test_gone_when_crashed_is_throttled_by_the_age_at_the_crash(age, expected, then):
    state = stopping(then, main_gone=True, born=BORN - age, status=9)
    after, _ = step(SPEC, state, Emptied(RUN), NOW)
    assert after == expected


def test_gone_when_control_was_not_ready_does_not_end_the_master():
    state = stopping(UNREADY, main_gone=True, status=0)
    after, actions = step(CONTROL, state, Emptied(RUN), NOW)
    assert isinstance(after, Backoff)
    assert not [action for action in actions if isinstance(action, ControlEnded)]


def test_emptied_before_the_exit_is_not_believed():
    assert step(SPEC, stopping(DOWN), Emptied(RUN), NOW) == (stopping(DOWN), ())


def test_left_when_already_killed_is_not_asked_again():
    _, actions = step(SPEC, stopping(DOWN, killed=True), Exited(RUN, 9, left=True), NOW)
    assert actions == ()


@pytest.mark.parametrize("then", [DOWN, RELOADED, AGAIN, CRASHED, UNREADY])
@pytest.mark.parametrize(
    ("event", "sequel"), [(Stop(), DOWN), (Kill(), DOWN), (Reload(), RELOADED)]
)
def test_stopping_when_asked_again_obeys_the_last_word(then, event, sequel):
    after, _ = step(SPEC, stopping(then), event, NOW)
    assert after.then == sequel


@pytest.mark.parametrize("then", [DOWN, RELOADED, AGAIN, CRASHED, UNREADY])
def test_touch_when_stopping_changes_nothing(then):
    assert step(SPEC, stopping(then), Touched("/t"), NOW) == (stopping(then), ())


@pytest.mark.parametrize(
    ("then", "sequel"), [(DOWN, AGAIN), (RELOADED, RELOADED), (AGAIN, AGAIN), (CRASHED, CRASHED)]
)
def test_start_when_stopping_for_good_comes_back(then, sequel):
    assert step(SPEC, stopping(then), Start(), NOW) == (stopping(sequel), ())


def test_stop_when_stopping_keeps_the_first_deadline():
    before = stopping(AGAIN)
    after, actions = step(SPEC, before, Stop(), NOW - 1)
    assert (after.deadline, actions) == (before.deadline, ())


# Deadlines.


def test_timer_at_the_deadline_kills_the_domain():
    after, actions = step(SPEC, stopping(DOWN), Timer(RUN), NOW)
    assert after == stopping(DOWN, killed=True, deadline=NOW + STUCK)
    assert actions == (
        KillDomain(RUN),
        SetTimer(RUN, NOW + STUCK),
        Say(DaemonKilled("web", 77, NOW - BORN)),
    )


@pytest.mark.parametrize("state", [stopping(DOWN), Backoff(RUN, 2, NOW)])
def test_timer_of_an_earlier_state_of_the_run_changes_nothing(state):
    assert step(SPEC, state, Timer(RUN), NOW - 1) == (state, ())


def test_timer_long_after_kill_says_stuck_then_abandons():
    state, actions = step(SPEC, stopping(DOWN, killed=True), Timer(RUN), NOW)
    assert notes(actions) == [DaemonStuck("web", 77, NOW - BORN, abandoned=False)]
    assert only(actions, SetTimer) == SetTimer(RUN, NOW + STUCK)
    state, actions = step(SPEC, state, Timer(RUN), NOW + STUCK)
    assert state == Down(RUN)
    assert notes(actions) == [DaemonStuck("web", 77, NOW + STUCK - BORN, abandoned=True)]
    assert actions[-1] == WentDown(abandoned=True)


@pytest.mark.parametrize("then", [RELOADED, AGAIN, CRASHED, UNREADY])
def test_timer_long_after_kill_when_something_follows_says_stuck_and_waits(then):
    state, actions = step(SPEC, stopping(then, killed=True), Timer(RUN), NOW)
    assert [name_of(action) for action in actions] == ["DaemonStuck"]
    assert state.then == then
    assert state.said_stuck


@pytest.mark.parametrize("then", [RELOADED, AGAIN, CRASHED, UNREADY])
@pytest.mark.parametrize("event", [Stop(), Kill()])
def test_stop_when_stuck_without_a_timer_sets_one(then, event):
    state = stopping(then, killed=True, said_stuck=True)
    after, actions = step(SPEC, state, event, NOW + SECOND)
    assert actions == (SetTimer(RUN, NOW + SECOND + STUCK),)
    assert (after.then, after.deadline) == (DOWN, NOW + SECOND + STUCK)


def test_exec_ok_when_stopping_brings_the_pid():
    after, actions = step(SPEC, stopping(DOWN, pid=0), EXEC_OK, NOW)
    assert (after.pid, actions) == (77, ())


# Waiting.


def test_backoff_when_its_time_has_come_counts_on():
    after, _ = step(SPEC, Backoff(RUN, 4, NOW), Timer(RUN), NOW)
    assert after == Starting(RUN + 1, NOW, 5)


@pytest.mark.parametrize("event", [Start(), Touched("/t")])
def test_backoff_when_started_by_hand_counts_anew(event):
    after, _ = step(SPEC, Backoff(RUN, 4, NOW), event, BORN)
    assert after == Starting(RUN + 1, BORN, 1)


def test_backoff_when_the_failure_is_told_late_says_it():
    _, actions = step(SPEC, Backoff(RUN, 4, NOW + SECOND), FAILURE, NOW)
    assert notes(actions) == [DaemonNotStarted("web", "chdir", 2, "/srv", SECOND)]
