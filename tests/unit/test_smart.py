"""The daemon machine of a smart daemon, row by row. Every state meets every event in `TABLE`."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from lowsuper import events, machine
from lowsuper.events import (
    Absent,
    CancelTimer,
    ControlEnded,
    DaemonAwaited,
    DaemonDied,
    DaemonDoubted,
    DaemonEnding,
    DaemonFinding,
    DaemonFound,
    DaemonGone,
    DaemonHeld,
    DaemonLeft,
    DaemonMoved,
    DaemonNotReady,
    DaemonStarted,
    Deliver,
    Emptied,
    ExecOk,
    Exited,
    Expel,
    Found,
    Freed,
    Halt,
    HeldBy,
    Kill,
    KillDomain,
    Leave,
    Look,
    Name,
    NotNamed,
    PidfileTouched,
    Ready,
    Reaped,
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
    Unname,
    Unready,
    Unseen,
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
from lowsuper.machine.smart import DOUBT, SUCCESSION
from lowsuper.machine.states import (
    AGAIN,
    ASKING,
    CRASHED,
    DOUBTED,
    DOUBTING,
    DOWN,
    RELOADED,
    SLOW_START,
    STUCK,
    SURE,
    UNNAMED,
    UNREADY,
)
from lowsuper.model import Command, DaemonSpec, Origin
from lowsuper.units import SECOND

RUN = 3
BORN = 100 * SECOND
NOW = 104 * SECOND
PATIENCE = 8 * SECOND
FREQ = 10 * SECOND
SPEC = DaemonSpec(
    "db",
    Command("db", ("db",)),
    Origin("f.ini", 1, "smart-attach-daemon", "db"),
    stop_timeout=PATIENCE,
    stop_signal=2,
    pidfile="/p",
)
SMART2 = SPEC.replace(daemonize=True)
CONTROL = SPEC.replace(control=True)
NOTIFIED = SPEC.replace(notify_pid=True)

FINDING = "the pidfile /p is empty"
WHY = "recorded by lowsuper"
OTHER_BORN = 50 * SECOND

STATES = {
    "Down": Down(RUN),
    "Looking": Looking(RUN, 1, first=True),
    "held": Looking(RUN, 1, held=True),
    "expelling": Looking(RUN, 0, expel="no lord"),
    "Starting": Starting(RUN, BORN, 1, first=True),
    "Broken": Broken(RUN, BORN, 1, SpawnFailed(RUN, "chdir", 2, "/srv", cloned=True)),
    "Awaiting": Awaiting(RUN, BORN, NOW, BORN, 1, 77, first=True),
    "gone": Awaiting(RUN, BORN, NOW, BORN, 1, 77, gone=True, status=0),
    "lost": Awaiting(RUN, BORN, NOW, BORN - FREQ, 1, 77, lost=True, gone=True, status=0, told=True),
    "failed": Awaiting(RUN, BORN, NOW, BORN, 1, 77, lost=True, gone=True, status=256, last=True),
    "Up": Up(RUN, BORN, 1, 77),
    "doubting": Up(RUN, BORN, 1, 77, doubted=DOUBTING),
    "asking": Up(RUN, BORN, 1, 77, doubted=ASKING),
    "doubted": Up(RUN, BORN, 1, 77, doubted=DOUBTED),
    "unnamed": Up(RUN, BORN, 1, 77, doubted=UNNAMED),
    "Stopping": Stopping(RUN, BORN, NOW, BORN, 1, 77, AGAIN, main_gone=True),
    "Backoff": Backoff(RUN, 2, NOW),
    "Over": Over(RUN, "failed", 256),
}
EVENTS = {
    "Start": Start(),
    "Stop": Stop(),
    "Reload": Reload(),
    "changes": Reload(changes=True),
    "Kill": Kill(),
    "Touched": Touched("/t"),
    "Restart": Restart(),
    "Halt": Halt(),
    "Expel": Expel("no lord"),
    "Reset": Reset(),
    "Deliver": Deliver(10, "signal"),
    "Ready": Ready(RUN),
    "Unready": Unready(RUN, "nobody listens"),
    "WatchdogMissed": WatchdogMissed(RUN, SECOND),
    "Timer": Timer(RUN),
    "ExecOk": ExecOk(RUN, 77, 33, 33, "cgroup"),
    "SpawnFailed": SpawnFailed(RUN, "clone", 11, "", cloned=False),
    "Exited": Exited(RUN, 256, left=False),
    "left": Exited(RUN, 256, left=True),
    "Emptied": Emptied(RUN),
    "PidfileTouched": PidfileTouched(),
    "Found": Found(RUN, 78, 33, 34, "cgroup", OTHER_BORN, WHY),
    "found same": Found(RUN, 77, 33, 34, "cgroup", OTHER_BORN, WHY),
    "Absent": Absent(RUN, FINDING, left=False, telling=True),
    "absent left": Absent(RUN, FINDING, left=True, telling=True),
    "Unseen": Unseen(RUN, FINDING),
    "NotNamed": NotNamed(RUN, FINDING),
    "HeldBy": HeldBy(RUN, "main, pid 12"),
    "Freed": Freed(RUN),
    "Reaped": Reaped(RUN, 256),
}
RUN_EVENTS = [name for name, event in EVENTS.items() if hasattr(event, "run")]

# For each state the events that change something: the next state, and the actions, in order. What
# is said is written as its note. Every other event changes nothing.
LEFT = ("Down", "DaemonLeft CancelTimer Leave WentDown")
AT_ONCE = ("Down", "CancelTimer Leave WentDown")
LEFT_FIRST = ("Down", "DaemonLeft Settled CancelTimer Leave WentDown")
ASKED = ("Stopping", "Signal SetTimer DaemonEnding")
KILLED = ("Stopping", "KillDomain SetTimer Settled")
KILLED_BROKEN = ("Stopping", "KillDomain SetTimer DaemonNotStarted")
FOUND = ("Up", "DaemonFound Settled")
LOOKED = ("same", "Look")
RUNS = {
    "Halt": ASKED,
    "Restart": ASKED,
    "Reset": ("Up", ""),
    "Deliver": ("same", "Signal DaemonSignalled"),
    "WatchdogMissed": ("Stopping", "DaemonSilent Signal SetTimer DaemonEnding"),
    "Stop": LEFT,
    "Reload": LEFT,
    "changes": ASKED,
    "Touched": ASKED,
    "Exited": ("Awaiting", "Look"),
    "left": ("Awaiting", "Look"),
    "PidfileTouched": LOOKED,
    "Found": ("Up", "DaemonMoved"),
    "Unseen": ("Up", "DaemonDoubted"),
    "NotNamed": ("Up", "DaemonDoubted"),
}
TABLE = {
    "Down": {
        "Start": ("Looking", "CancelTimer Look"),
        "Expel": ("Looking", "CancelTimer Look"),
    },
    "expelling": {
        "Start": ("Looking", ""),
        "Halt": AT_ONCE,
        "Stop": AT_ONCE,
        "Reload": AT_ONCE,
        "changes": AT_ONCE,
        "Found": ("Stopping", "DaemonFound Signal SetTimer DaemonEnding"),
        "found same": ("Stopping", "DaemonFound Signal SetTimer DaemonEnding"),
        "Absent": AT_ONCE,
        "absent left": ("Stopping", "DaemonFinding Signal SetTimer"),
        "Unseen": ("Down", "DaemonFinding CancelTimer Leave WentDown"),
        "HeldBy": AT_ONCE,
    },
    "Looking": {
        "Halt": ("Down", "Settled CancelTimer Leave WentDown"),
        "Stop": ("Down", "Settled CancelTimer Leave WentDown"),
        "Reload": ("Down", "Settled CancelTimer Leave WentDown"),
        "changes": ("Down", "Settled CancelTimer Leave WentDown"),
        "Found": FOUND,
        "found same": FOUND,
        "Absent": ("Starting", "DaemonFinding Spawn SetTimer"),
        "absent left": ("Awaiting", "SetTimer DaemonAwaited"),
        "Unseen": ("Backoff", "SetTimer DaemonFinding Settled"),
        "HeldBy": ("Looking", "DaemonHeld Settled"),
    },
    "held": {
        "Halt": AT_ONCE,
        "Stop": AT_ONCE,
        "Reload": AT_ONCE,
        "changes": AT_ONCE,
        "Found": FOUND,
        "found same": FOUND,
        "Absent": ("Starting", "DaemonFinding Spawn SetTimer"),
        "absent left": ("Awaiting", "SetTimer DaemonAwaited"),
        "Unseen": ("Backoff", "SetTimer DaemonFinding"),
        "HeldBy": ("same", "DaemonHeld"),
        "Freed": LOOKED,
    },
    "Starting": {
        "Halt": KILLED,
        "Restart": KILLED,
        "Stop": KILLED,
        "Reload": KILLED,
        "changes": KILLED,
        "Kill": KILLED,
        "Touched": KILLED,
        "Timer": ("Starting", "DaemonSlow Settled"),
        "ExecOk": ("Awaiting", "SetTimer Look"),
        "SpawnFailed": ("Looking", "Settled DaemonNotStarted CancelTimer Look"),
        "Exited": ("Awaiting", "SetTimer Look"),
        "left": ("Awaiting", "SetTimer Look"),
    },
    "Broken": {
        "Halt": KILLED_BROKEN,
        "Restart": KILLED_BROKEN,
        "Stop": KILLED_BROKEN,
        "Reload": KILLED_BROKEN,
        "changes": KILLED_BROKEN,
        "Kill": KILLED_BROKEN,
        "Exited": ("Looking", "DaemonNotStarted CancelTimer Look"),
        "left": ("Broken", "KillDomain"),
    },
    "Awaiting": {
        "Halt": ("Stopping", "Settled Signal SetTimer DaemonEnding"),
        "Restart": ("Stopping", "Settled Signal SetTimer DaemonEnding"),
        "Reset": ("Awaiting", ""),
        "Deliver": ("same", "Signal DaemonSignalled"),
        "Stop": LEFT_FIRST,
        "Reload": LEFT_FIRST,
        "changes": ("Stopping", "Settled Signal SetTimer DaemonEnding"),
        "Touched": ("Stopping", "Settled Signal SetTimer DaemonEnding"),
        "Timer": ("Awaiting", "Look"),
        "Exited": ("Awaiting", "Look"),
        "left": ("Awaiting", "Look"),
        "PidfileTouched": LOOKED,
        "Found": ("Up", "CancelTimer DaemonStarted Settled"),
        "found same": ("Up", "CancelTimer DaemonStarted Settled"),
        "Absent": ("Awaiting", ""),
        "Unseen": ("Awaiting", ""),
        "absent left": ("Awaiting", ""),
        "NotNamed": ("Stopping", "DaemonNotReady Signal SetTimer Settled"),
    },
    "gone": {
        "Halt": ASKED,
        "Restart": ASKED,
        "Reset": ("Awaiting", ""),
        "Stop": LEFT,
        "Reload": LEFT,
        "changes": ASKED,
        "Touched": ASKED,
        "Timer": ("Awaiting", "Look"),
        "Exited": ("Awaiting", "Look"),
        "left": ("Awaiting", "Look"),
        "Emptied": ("Awaiting", "Look"),
        "PidfileTouched": LOOKED,
        "Found": ("Up", "CancelTimer DaemonStarted Settled"),
        "found same": ("Up", "CancelTimer DaemonStarted Settled"),
        "Absent": ("Awaiting", ""),
        "Unseen": ("Awaiting", ""),
        "absent left": ("Awaiting", ""),
        "NotNamed": ("Stopping", "DaemonNotReady Signal SetTimer"),
    },
    "lost": {
        "Halt": ASKED,
        "Restart": ASKED,
        "Reset": ("Awaiting", ""),
        "Stop": LEFT,
        "Reload": LEFT,
        "changes": ASKED,
        "Touched": ASKED,
        "Timer": ("Awaiting", "Look"),
        "Exited": ("Awaiting", "Look"),
        "left": ("Awaiting", "Look"),
        "Emptied": ("Awaiting", "Look"),
        "PidfileTouched": LOOKED,
        "Found": ("Up", "CancelTimer DaemonMoved Settled"),
        "found same": ("Up", "CancelTimer Settled"),
        "Absent": ("Awaiting", ""),
        "Unseen": ("Awaiting", ""),
        "absent left": ("Awaiting", ""),
        "NotNamed": ("Stopping", "DaemonNotReady Signal SetTimer"),
        "Reaped": ("Awaiting", "Look"),
    },
    "failed": {
        "Halt": ASKED,
        "Restart": ASKED,
        "Reset": ("Awaiting", ""),
        "Stop": LEFT,
        "Reload": LEFT,
        "changes": ASKED,
        "Touched": ASKED,
        "Timer": LOOKED,
        "Exited": ("Awaiting", "Look"),
        "left": LOOKED,
        "Emptied": ("Awaiting", "Look"),
        "PidfileTouched": LOOKED,
        "Found": ("Up", "CancelTimer DaemonMoved Settled"),
        "found same": ("Up", "CancelTimer Settled"),
        "Absent": ("Stopping", "DaemonDied Signal SetTimer"),
        "Unseen": ("Stopping", "DaemonNotReady Signal SetTimer"),
        "absent left": ("Stopping", "DaemonDied Signal SetTimer"),
        "NotNamed": ("Stopping", "DaemonNotReady Signal SetTimer"),
        "Reaped": LOOKED,
    },
    "Up": {
        **RUNS,
        "Absent": ("Up", "SetTimer"),
        "absent left": ("Up", "SetTimer"),
    },
    "doubting": {
        **RUNS,
        "Exited": ("Awaiting", "CancelTimer Look"),
        "left": ("Awaiting", "CancelTimer Look"),
        "Found": ("Up", "CancelTimer DaemonMoved"),
        "found same": ("Up", "CancelTimer"),
        "Timer": ("Up", "Look"),
        "Unseen": ("Up", "CancelTimer DaemonDoubted"),
        "NotNamed": ("Up", "CancelTimer DaemonDoubted"),
    },
    "asking": {
        **RUNS,
        "found same": ("Up", ""),
        "Absent": ("Up", "DaemonDoubted"),
        "absent left": ("Up", "DaemonDoubted"),
    },
    "doubted": RUNS,
    "unnamed": {key: value for key, value in RUNS.items() if key not in ("Unseen", "NotNamed")},
    "Stopping": {
        "Halt": ("Stopping", ""),
        "Reset": ("Stopping", ""),
        "Stop": ("Stopping", ""),
        "Reload": ("Stopping", ""),
        "changes": ("Stopping", ""),
        "Kill": ("Stopping", "KillDomain SetTimer DaemonKilled"),
        "Timer": ("Stopping", "KillDomain SetTimer DaemonKilled"),
        "SpawnFailed": ("Looking", "DaemonGone CancelTimer Look"),
        "Exited": ("Looking", "DaemonGone CancelTimer Look"),
        "left": ("Stopping", "Signal"),
        "Emptied": ("Looking", "DaemonGone CancelTimer Look"),
    },
    "Backoff": {
        "Halt": AT_ONCE,
        "Restart": ("Looking", "CancelTimer Look"),
        "Reset": ("Backoff", ""),
        "Start": ("Looking", "CancelTimer Look"),
        "Stop": AT_ONCE,
        "Reload": AT_ONCE,
        "changes": AT_ONCE,
        "Kill": AT_ONCE,
        "Touched": ("Looking", "CancelTimer Look"),
        "Timer": ("Looking", "CancelTimer Look"),
        "SpawnFailed": ("same", "DaemonNotStarted"),
    },
    "Over": {
        "Start": ("Looking", "CancelTimer Look"),
        "Expel": ("Looking", "CancelTimer Look"),
        "Stop": ("Down", ""),
        "Halt": ("Down", ""),
        "Reload": ("Down", ""),
        "changes": ("Down", ""),
        "Kill": ("Down", ""),
        "Reset": ("Down", ""),
    },
}


def name_of(action):
    return type(action.note if isinstance(action, Say) else action).__name__


def names(actions):
    return " ".join(map(name_of, actions))


def notes(actions):
    return [action.note for action in actions if isinstance(action, Say)]


def of_kind(actions, *kinds):
    return [action for action in actions if isinstance(action, kinds)]


def only(actions, kind):
    (found,) = of_kind(actions, kind)
    return found


class Play:
    """A daemon and the events that befall it; `done` has the actions of the last step."""

    def __init__(self, spec=SPEC, state=None, now=NOW):
        self.spec, self.now, self.done, self.all = spec, now, (), []
        self.state = Down(RUN - 1) if state is None else state

    def __call__(self, *happened, after=0):
        self.now += after
        for event in happened:
            self.state, self.done = step(self.spec, self.state, event, self.now)
            self.all += self.done
        return self

    @property
    def kind(self):
        return type(self.state)

    @property
    def run(self):
        return self.state.run

    def count(self, *kinds):
        return len(of_kind(self.all, *kinds))

    def found(self, pid=77, why=WHY):
        return self(Found(self.run, pid, 33, 34, "cgroup", self.now, why))

    def absent(self, finding=FINDING, *, left=False, telling=False):
        return self(Absent(self.run, finding, left, telling))

    def launch(self, pid=77):
        """Start, and have the program launched."""
        self(Start())
        return self.absent()(ExecOk(self.run, pid, 33, 34, "cgroup"))

    def exited(self, status=0, *, left=False):
        return self(Exited(self.run, status, left))


def up(spec=SPEC):
    """A daemon that has run for a minute."""
    return Play(spec).launch().found()(after=60 * SECOND)


@pytest.mark.parametrize(("state", "event"), list(product(STATES, EVENTS)))
def test_step_when_event_meets_state_follows_the_table(state, event):
    expected, actions = TABLE[state].get(event, ("same", ""))
    before = STATES[state]
    after, done = step(SPEC, before, EVENTS[event], NOW)
    assert names(done) == actions
    if expected == "same":
        assert after == before
    else:
        assert type(after).__name__ == expected
        assert after != before


@pytest.mark.parametrize("state", ["Awaiting", "gone", "lost", "Up", "doubting", "doubted"])
@pytest.mark.parametrize(("event", "then"), [(Stop(), DOWN), (Reload(), RELOADED)])
def test_daemon_of_a_legion_is_never_left_running(state, event, then):
    after, done = step(SPEC.replace(legion="l"), STATES[state], event, NOW)
    assert isinstance(after, Stopping)
    assert after.then == then
    assert only(done, Signal).signal == SPEC.stop_signal
    assert not of_kind(done, DaemonLeft)


def test_table_has_every_state_and_event():
    assert {type(state) for state in STATES.values()} == set(get_args(machine.State))
    assert {type(event) for event in EVENTS.values()} == set(get_args(events.DaemonEvent))
    assert TABLE.keys() == STATES.keys()
    assert all(row.keys() <= EVENTS.keys() for row in TABLE.values())


@pytest.mark.parametrize(("state", "event"), list(product(STATES, RUN_EVENTS)))
@pytest.mark.parametrize("other", [RUN - 1, RUN + 1])
@pytest.mark.parametrize("spec", [SPEC, SMART2, NOTIFIED])
def test_step_when_event_is_of_another_run_changes_nothing(spec, state, event, other):
    before = STATES[state]
    assert step(spec, before, EVENTS[event].replace(run=other), NOW) == (before, ())


# Looking.


def test_start_looks_before_anything_else():
    play = Play()(Start())
    assert play.state == Looking(RUN, 0, first=True)
    assert play.done == (CancelTimer(), Look(RUN))


def test_found_is_adopted_and_nothing_is_started():
    play = Play()(Start())(Found(RUN, 77, 33, 34, "cgroup", OTHER_BORN, WHY))
    assert play.state == Up(RUN, OTHER_BORN, 0, 77)
    assert notes(play.done) == [DaemonFound("db", 77, 33, 34, "cgroup", NOW - OTHER_BORN, WHY)]
    assert only(play.done, Settled) == Settled(ok=True, first=True)
    assert not play.count(Spawn)


def test_found_that_began_later_than_now_has_no_negative_age():
    play = Play()(Start())(Found(RUN, 77, 33, 34, "cgroup", NOW + 1, WHY))
    assert play.state.since == NOW
    assert notes(play.done)[0].age == 0


@pytest.mark.parametrize("telling", [True, False])
def test_absent_starts_it_and_says_what_is_worth_it(telling):
    play = Play()(Start()).absent(telling=telling)
    assert play.state == Starting(RUN, NOW, 1, first=True)
    said = [DaemonFinding("db", FINDING)] if telling else []
    assert notes(play.done) == said
    assert play.done[-2:] == (Spawn(RUN), SetTimer(RUN, NOW + SLOW_START))


def test_absent_when_an_earlier_master_left_something_waits_for_the_pidfile():
    play = Play()(Start()).absent(left=True)
    assert isinstance(play.state, Awaiting)
    assert play.done == (
        SetTimer(RUN, NOW + FREQ),
        Say(DaemonAwaited("db", 0, None, FINDING, FREQ)),
    )
    assert not play.count(Spawn, Settled)


def test_left_by_an_earlier_master_and_named_is_found_not_started():
    play = Play()(Start()).absent(left=True)
    play(PidfileTouched(), after=SECOND)
    assert play.done == (Look(RUN),)
    play(Found(RUN, 78, 33, 34, "cgroup", OTHER_BORN, WHY))
    assert play.state == Up(RUN, OTHER_BORN, 0, 78)
    assert [type(note) for note in notes(play.done)] == [DaemonFound]
    assert only(play.done, Settled) == Settled(ok=True, first=True)
    assert of_kind(play.done, CancelTimer)


def test_left_by_an_earlier_master_and_never_named_is_ended_before_the_next():
    play = Play()(Start()).absent(left=True)
    play(Timer(RUN), after=FREQ).absent(left=True)
    assert isinstance(play.state, Stopping)
    assert only(play.done, Signal) == Signal(RUN, 2)
    assert only(play.all, Settled) == Settled(ok=False, first=True)
    assert not play.count(Spawn)
    play(Emptied(RUN))
    assert isinstance(play.state, Backoff)
    assert not play.count(Spawn)


def test_left_by_an_earlier_master_when_it_ends_is_started_under_the_throttle():
    play = Play()(Start()).absent(left=True)(Emptied(RUN))
    assert play.done == (Look(RUN),)
    play.absent()
    assert play.state == Backoff(RUN, 1, NOW + SECOND)
    assert notes(play.done)[0].launcher is None
    play(Timer(RUN), after=SECOND)
    assert play.state == Looking(RUN + 1, 1)


def test_backoff_when_its_time_has_come_looks_again():
    play = Play(state=Backoff(RUN, 4, NOW))(Timer(RUN))
    assert play.state == Looking(RUN + 1, 4)
    play.found()
    assert (play.kind, play.state.spawns, play.count(Spawn)) == (Up, 4, 0)


@pytest.mark.parametrize("event", [Start(), Touched("/t")])
def test_backoff_when_started_by_hand_drops_its_timer_and_counts_anew(event):
    play = Play(state=Backoff(RUN, 4, NOW + SECOND))(event)
    assert play.state == Looking(RUN + 1, 0)
    assert play.done == (CancelTimer(), Look(RUN + 1))


def test_held_waits_until_the_other_lets_go():
    play = Play()(Start(), HeldBy(RUN, "main, pid 12"))
    assert play.state == Looking(RUN, 0, held=True)
    assert play.done == (Say(DaemonHeld("db", "/p", "main, pid 12")), Settled(False, True))
    play(PidfileTouched(), Touched("/t"), Timer(RUN), Start())
    assert not play.done
    play(Freed(RUN))
    assert play.done == (Look(RUN),)
    play(HeldBy(RUN, "third, pid 13"))
    assert play.done == (Say(DaemonHeld("db", "/p", "third, pid 13")),)
    play(Freed(RUN)).absent()
    assert play.kind == Starting
    play(ExecOk(RUN, 77, 0, 0, "cgroup")).found()
    assert of_kind(play.all, Settled) == [Settled(False, True), Settled(True, False)]


@pytest.mark.parametrize("event", [Stop(), Reload(), Reload(changes=True)])
def test_held_when_told_to_end_lets_go(event):
    play = Play()(Start(), HeldBy(RUN, "main, pid 12"), event)
    assert play.state == Down(RUN)
    assert (play.count(Leave), play.count(WentDown), play.count(Settled)) == (1, 1, 1)
    assert not play.count(Signal, KillDomain)


# The first start.


@pytest.mark.parametrize(("spec", "ask"), [(SPEC, Look), (SMART2, Name)])
def test_launched_waits_for_its_pidfile_or_writes_it(spec, ask):
    play = Play(spec).launch()
    assert play.done == (SetTimer(RUN, NOW + FREQ), ask(RUN))
    assert not play.count(Settled)
    play(after=SECOND // 2).found(78 if ask is Look else 77)
    assert play.kind == Up
    (note,) = notes(play.done)
    assert note == DaemonStarted("db", play.state.pid, 33, 34, "cgroup", SECOND // 2)
    assert only(play.all, Settled) == Settled(ok=True, first=True)
    assert of_kind(play.done, CancelTimer)


@pytest.mark.parametrize("status", [0, 256, 9])
def test_launcher_exits_and_then_its_pidfile_comes(status):
    play = Play().launch().exited(status, left=True)
    assert play.done == (Look(RUN),)
    play.absent("the pidfile /p is not there")
    assert (play.kind, play.done) == (Awaiting, ())
    play(PidfileTouched(), after=SECOND).found(78)
    assert (play.kind, play.state.pid) == (Up, 78)
    assert not play.count(Signal, KillDomain)


@pytest.mark.parametrize("status", [0, 256])
def test_launcher_exits_after_the_pidfile_came(status):
    """Its end may have been on its way when the pidfile was read."""
    play = Play().launch()(PidfileTouched()).found(78).exited(status, left=True)
    assert play.done == (Look(RUN),)
    play.found(78)
    assert (play.kind, play.state.pid, play.state.since) == (Up, 78, NOW)
    assert not notes(play.done)
    assert not play.count(Signal)


def test_launcher_exits_before_exec_is_told():
    play = Play()(Start()).absent().exited(left=True)
    assert play.done == (SetTimer(RUN, NOW + FREQ), Look(RUN))
    play.absent()(ExecOk(RUN, 77, 0, 0, "cgroup")).found(78)
    assert (play.kind, play.state.pid) == (Up, 78)
    assert [type(note) for note in notes(play.done)] == [DaemonStarted]


@pytest.mark.parametrize(("status", "early"), [(0, False), (256, False), (256, True)])
def test_launcher_exits_with_nothing_left_is_not_ready_at_once(status, early):
    play = Play()(Start()).absent()
    if not early:
        play(ExecOk(RUN, 77, 0, 0, "cgroup")).absent()
    play.exited(status).absent()
    assert play.state == Backoff(RUN, 1, NOW + SECOND)
    assert notes(play.done) == [DaemonNotReady("db", FINDING, status, 0, False, SECOND)]
    assert only(play.all, Settled) == Settled(ok=False, first=True)
    assert only(play.done, SetTimer) == SetTimer(RUN, NOW + SECOND)


def test_launcher_leaves_something_that_ends_is_not_ready():
    play = Play().launch().exited(left=True).absent()(Emptied(RUN), after=SECOND).absent()
    assert play.kind == Backoff
    assert notes(play.done) == [DaemonNotReady("db", FINDING, 0, SECOND, False, SECOND)]


@pytest.mark.parametrize("launcher", [None, 0, 768])
def test_deadline_ends_what_is_there_and_never_starts_beside_it(launcher):
    play = Play().launch()
    if launcher is not None:
        play.exited(launcher, left=True).absent(left=True)
    play(Timer(RUN), after=FREQ)
    assert play.done == (Look(RUN),)
    play.absent(left=True)
    assert notes(play.done) == [DaemonNotReady("db", FINDING, launcher, FREQ, True, None)]
    assert play.state.then == UNREADY
    assert only(play.done, Signal) == Signal(RUN, 2)
    assert only(play.done, SetTimer) == SetTimer(RUN, play.now + PATIENCE)
    play(Found(RUN, 78, 0, 0, "cgroup", NOW, WHY), PidfileTouched(), Reaped(RUN, 9))
    assert not play.done  # it is ended, whatever comes of it now
    play(Timer(RUN), after=PATIENCE)
    assert only(play.done, KillDomain) == KillDomain(RUN)
    assert play.count(Spawn) == 1
    if launcher is None:
        play.exited(9)
    else:
        play(Emptied(RUN))
    assert play.state == Backoff(RUN, 1, play.now + SECOND)
    assert play.count(Spawn) == 1


def test_deadline_when_the_pidfile_names_it_after_all_is_ready():
    play = Play().launch()(Timer(RUN), after=FREQ).found(78)
    assert (play.kind, play.state.pid) == (Up, 78)
    assert of_kind(play.done, CancelTimer)


def test_timer_that_crosses_the_naming_changes_nothing():
    play = Play().launch()(after=FREQ).found(78)
    before = play.state
    assert play(Timer(RUN)).state == before
    assert not play.done


def test_timer_of_the_start_does_not_end_the_waiting():
    play = Play(state=Starting(RUN, NOW - SLOW_START, 1))(ExecOk(RUN, 77, 0, 0, "x"), Timer(RUN))
    assert (play.kind, play.done) == (Awaiting, ())


def test_attempts_that_are_not_ready_wait_longer_and_longer():
    play, pauses = Play().launch(), []
    for _ in range(4):
        play.exited(256).absent()
        pauses.append(play.state.until - play.now)
        play(Timer(play.run), after=pauses[-1]).absent()
        play(ExecOk(play.run, 77, 0, 0, "x"))
    assert pauses == [SECOND, 2 * SECOND, 3 * SECOND, 4 * SECOND]


def test_not_named_ends_the_program_whose_pidfile_cannot_be_written():
    finding = "the pidfile /p cannot be written: read-only"
    play = Play(SMART2).launch()(NotNamed(RUN, finding))
    assert play.state.then == UNREADY
    assert notes(play.done) == [DaemonNotReady("db", finding, None, 0, True, None)]
    assert only(play.all, Settled) == Settled(ok=False, first=True)
    play.exited(2)
    assert play.state == Backoff(RUN, 1, NOW + SECOND)
    assert only(play.done, Unname) == Unname(RUN)


@pytest.mark.parametrize("event", [Stop(), Reload()])
@pytest.mark.parametrize("spec", [SPEC, NOTIFIED])
@pytest.mark.parametrize("gone", [False, True])
def test_awaiting_when_told_to_end_is_left(spec, event, gone):
    play = Play(spec).launch()
    if gone:
        play.exited(0, left=True).absent()
    play(event)
    assert play.state == Down(RUN)
    assert notes(play.done)[0].pid == (0 if gone else 77)
    assert not play.count(Signal, KillDomain)
    assert play.done[-3:] == (CancelTimer(), Leave(RUN), WentDown())


@pytest.mark.parametrize("gone", [False, True])
def test_awaiting_when_touched_is_ended_and_looked_for_again(gone):
    play = Play().launch()
    if gone:
        play.exited(0, left=True).absent()
    play(Touched("/t"))
    assert (play.state.then, play.state.main_gone) == (AGAIN, gone)
    assert of_kind(play.done, Signal, Settled) == [Settled(False, True), Signal(RUN, 2)]
    if gone:
        play(Emptied(RUN))
    else:
        play.exited()
    assert play.state == Looking(RUN + 1, 0)


# Its end.


def test_end_for_lack_of_memory_says_so_when_nobody_took_its_place():
    play = up()
    play(Exited(RUN, 9, left=False, oom="memory.max 1M")).absent(telling=True)
    (died,) = notes(play.done)
    assert (died.status, died.oom) == (9, "memory.max 1M")


@pytest.mark.parametrize("status", [0, 256, 9, None])
@pytest.mark.parametrize("spec", [SPEC, SMART2])
def test_end_with_nothing_left_is_looked_at_and_starts_again_at_once(spec, status):
    play = up(spec).exited(status)
    assert play.done == (Look(RUN),)
    play.absent(telling=True)
    assert play.state == Starting(RUN + 1, play.now, 1)
    assert notes(play.done) == [DaemonDied("db", 77, status, 60 * SECOND, False, 0, False)]
    assert play.count(Look) == (3 if spec == SPEC else 2)
    unnamed = [Unname(RUN)] if spec == SMART2 else []
    assert of_kind(play.done, Unname) == unnamed


def test_end_after_a_short_life_waits_and_then_looks():
    play = Play().launch().found()(after=2 * SECOND).exited(9).absent()
    assert play.state == Backoff(RUN, 1, play.now + SECOND)
    play(Timer(RUN), after=SECOND)
    assert play.state == Looking(RUN + 1, 1)


def test_end_with_0_and_others_left_waits_for_a_successor():
    play = up().exited(0, left=True).absent(left=True)
    assert notes(play.done) == [DaemonAwaited("db", 77, 0, FINDING, FREQ)]
    assert of_kind(play.done, SetTimer) == [SetTimer(RUN, play.now + FREQ)]
    play(PidfileTouched(), after=SECOND).absent(left=True)
    assert play.done == ()  # said once
    play(PidfileTouched()).found(78, "in the domain")
    assert notes(play.done) == [DaemonMoved("db", 77, 78, "in the domain")]
    assert (play.kind, play.state.pid) == (Up, 78)
    assert of_kind(play.done, CancelTimer)
    assert not play.count(Signal, KillDomain)


def test_end_with_0_and_no_successor_in_time_ends_the_rest():
    play = up().exited(0, left=True).absent(left=True)(Timer(RUN), after=FREQ).absent(left=True)
    assert (play.kind, play.state.then) == (Stopping, CRASHED)
    assert of_kind(play.done, Signal) == [Signal(RUN, 2)]
    play(Emptied(RUN))
    assert play.state == Looking(RUN + 1, 1)  # it had run long enough


def test_end_with_0_whose_rest_ends_too_is_over():
    play = up().exited(0, left=True).absent(left=True)(Emptied(RUN), after=SECOND).absent()
    assert play.kind == Starting
    assert notes(play.done) == [DaemonDied("db", 77, 0, 61 * SECOND, False, 0, False)]


@pytest.mark.parametrize("status", [256, 9])
def test_end_with_a_failure_gives_a_successor_a_moment_and_ends_the_rest(status):
    play = up().exited(status, left=True).absent(left=True)
    assert notes(play.done) == [DaemonAwaited("db", 77, status, FINDING, SUCCESSION)]
    assert of_kind(play.done, SetTimer) == [SetTimer(RUN, play.now + SUCCESSION)]
    play(PidfileTouched(), after=SUCCESSION // 2).absent(left=True)
    assert play.done == ()  # it waits no longer for that
    play(Timer(RUN), after=SUCCESSION // 2)
    assert play.done == (Look(RUN),)
    assert not play.count(Signal)
    play.absent(left=True)
    assert notes(play.done) == [DaemonDied("db", 77, status, 61 * SECOND, True, 0, False)]
    assert (play.kind, play.state.then, play.state.main_gone) == (Stopping, CRASHED, True)
    assert of_kind(play.done, Signal, SetTimer) == [
        Signal(RUN, 2),
        SetTimer(RUN, play.now + PATIENCE),
    ]
    play(Emptied(RUN))
    assert play.state == Looking(RUN + 1, 0)
    assert play.count(Spawn) == 1


@pytest.mark.parametrize("last", [False, True])
def test_end_with_a_failure_whose_successor_is_named_in_time_follows_it(last):
    """The old process of an upgrade takes its place again when the new one fails."""
    play = up()(PidfileTouched()).found(78, "in the domain")
    play.exited(256, left=True).absent(left=True)
    if last:
        play(Timer(RUN), after=SUCCESSION)
    else:
        play(PidfileTouched(), after=SUCCESSION // 2)
    play.found(77, "in the domain")
    assert notes(play.done) == [DaemonMoved("db", 78, 77, "in the domain")]
    assert (play.kind, play.state.pid) == (Up, 77)
    assert of_kind(play.done, CancelTimer)
    assert not play.count(Signal, KillDomain)


def test_end_with_a_failure_whose_rest_ends_meanwhile_is_over_at_once():
    play = up().exited(256, left=True).absent(left=True)(Emptied(RUN), after=SUCCESSION // 2)
    assert play.done == (Look(RUN),)
    play.absent()
    assert play.state == Starting(RUN + 1, play.now, 1)
    assert [type(note) for note in notes(play.done)] == [DaemonDied]


def test_end_with_a_failure_when_freq_is_less_than_that_moment_waits_no_longer():
    spec = SPEC.replace(freq=SUCCESSION // 4)
    play = up(spec).exited(256, left=True).absent(left=True)
    assert notes(play.done) == [DaemonAwaited("db", 77, 256, FINDING, SUCCESSION // 4)]
    assert of_kind(play.done, SetTimer) == [SetTimer(RUN, play.now + SUCCESSION // 4)]


@pytest.mark.parametrize("status", [256, 9])
def test_end_whose_failure_is_told_late_shortens_the_wait_and_ends_the_rest(status):
    play = up().exited(None, left=True).absent(left=True)
    assert notes(play.done) == [DaemonAwaited("db", 77, None, FINDING, FREQ)]
    play(Reaped(RUN, status), after=SECOND)
    assert play.done == (Look(RUN),)
    play.absent(left=True)
    assert play.done == (SetTimer(RUN, play.now + SUCCESSION),)  # said already
    play(Timer(RUN), after=SUCCESSION).absent(left=True)
    assert notes(play.done) == [DaemonDied("db", 77, status, 62 * SECOND, True, 0, False)]
    assert only(play.done, Signal) == Signal(RUN, 2)


def test_end_whose_failure_is_told_shortly_before_the_deadline_does_not_move_it():
    play = up().exited(None, left=True).absent(left=True)
    play(Reaped(RUN, 256), after=FREQ - SUCCESSION // 2).absent(left=True)
    assert play.done == ()
    play(Timer(RUN), after=SUCCESSION // 2).absent(left=True)
    assert (play.kind, play.state.then) == (Stopping, CRASHED)


def test_end_whose_success_is_told_late_goes_on_waiting():
    play = up().exited(None, left=True).absent(left=True)(Reaped(RUN, 0)).absent(left=True)
    assert (play.kind, play.state.status, play.done) == (Awaiting, 0, ())


def test_end_whose_failure_is_told_late_when_a_successor_is_there_follows_it():
    play = up().exited(None, left=True).absent(left=True)(Reaped(RUN, 256)).found(78)
    assert (play.kind, play.state.pid) == (Up, 78)
    assert not play.count(Signal)


def test_reaped_after_the_restart_changes_nothing():
    play = up().exited(None).absent()
    before = play.state
    assert play(Reaped(RUN, 9)).state == before


@pytest.mark.parametrize("event", [Stop(), Reload()])
@pytest.mark.parametrize("spec", [SPEC, NOTIFIED])
def test_lost_when_told_to_end_leaves_what_is_there(spec, event):
    play = up(spec).exited(0, left=True).absent(left=True)(event)
    assert play.state == Down(RUN)
    assert notes(play.done)[0].pid == 0
    assert not play.count(Signal, KillDomain)


@pytest.mark.parametrize("left", [False, True])
def test_end_when_control_ends_the_master_once_nothing_is_left(left):
    play = up(CONTROL).exited(768, left=left).absent(left=left)
    if left:
        play(Timer(RUN), after=SUCCESSION).absent(left=True)
        assert not play.count(ControlEnded)
        play(Emptied(RUN))
    assert play.state == Down(RUN)
    assert only(play.all, ControlEnded) == ControlEnded(768)
    assert of_kind(play.done, Leave, WentDown) == [Leave(RUN), WentDown()]


def test_end_when_control_and_nobody_knows_how_is_no_success():
    play = Play(CONTROL)(Start()).found()(after=SECOND).exited(None).absent()
    assert only(play.done, ControlEnded) == ControlEnded(256)


def test_control_when_it_ends_before_it_was_named_ends_the_master():
    play = Play(CONTROL).launch().exited(768).absent()
    assert play.state == Down(RUN)
    assert only(play.done, ControlEnded) == ControlEnded(768)
    assert notes(play.done) == [DaemonNotReady("db", FINDING, 768, 0, False, None)]
    assert of_kind(play.done, Leave, WentDown, Settled) == [
        Settled(False, True),
        Leave(RUN),
        WentDown(),
    ]


def test_control_when_it_was_not_named_in_time_is_tried_again():
    play = Play(CONTROL).launch().exited(0, left=True).absent(left=True)
    play(Timer(RUN), after=FREQ).absent(left=True)(Emptied(RUN))
    assert play.kind == Backoff
    assert not play.count(ControlEnded)


def test_control_when_an_earlier_master_launched_it_is_tried_again():
    play = Play(CONTROL)(Start()).absent(left=True)(Emptied(RUN)).absent()
    assert play.kind == Backoff
    assert not play.count(ControlEnded)


def test_control_when_left_does_not_end_the_master():
    play = up(CONTROL)(Stop())
    assert not play.count(ControlEnded)


# Running.


def test_upgrade_in_place_is_followed():
    play = up()(PidfileTouched())
    assert play.done == (Look(RUN),)
    play.found(78, "in the domain")
    assert play.state == Up(RUN, play.now, 1, 78)
    assert play.done == (Say(DaemonMoved("db", 77, 78, "in the domain")),)
    play(PidfileTouched()).found(77, "in the domain")  # and back
    assert play.state.pid == 77


@pytest.mark.parametrize("status", [0, 9])
def test_upgrade_whose_new_process_ends_after_the_end_of_the_old_one_came_late_is_over(status):
    play = up().found(78).exited(0, left=True)  # of the one before
    play(Unseen(RUN, FINDING))(after=SECOND).exited(status)
    assert play.done == (Look(RUN),)
    play.absent()
    assert notes(play.done) == [DaemonDied("db", 78, status, SECOND, False, SECOND, False)]
    assert play.kind == Backoff


def test_upgrade_that_is_stopped_after_the_end_of_the_old_one_came_late_is_over():
    play = up().found(78).exited(0, left=True)(Unseen(RUN, FINDING))(Halt()).exited(2)
    assert play.state == Down(RUN)


def test_pidfile_removed_from_a_live_daemon_is_said_once_and_starts_nothing():
    play = up()(PidfileTouched()).absent(telling=True, left=True)
    assert play.state.doubted == DOUBTING
    assert play.done == (SetTimer(RUN, play.now + DOUBT),)
    play(PidfileTouched(), after=DOUBT // 2).absent(left=True)
    assert play.done == ()  # no doubt lasts longer for that
    play(Timer(RUN), after=DOUBT // 2)
    assert play.state.doubted == ASKING
    assert play.done == (Look(RUN),)
    play.absent("the pidfile /p is not there", left=True)
    assert play.state.doubted == DOUBTED
    assert play.done == (Say(DaemonDoubted("db", 77, "the pidfile /p is not there", False)),)
    before = play.state
    for _ in range(2):
        play(PidfileTouched()).absent(left=True)
        assert play.done == ()
        play.found(77)  # and there it is again
        assert (play.state, play.done) == (before, ())
    assert play.count(Spawn) == 1
    assert not play.count(Signal, Name)


@pytest.mark.parametrize("asked", [False, True])
def test_pidfile_that_names_it_again_in_time_is_not_mentioned(asked):
    """Whoever truncates and then writes it is seen in between."""
    play = up()(PidfileTouched()).absent(left=True)
    if asked:
        play(Timer(RUN), after=DOUBT)
    play.found(77)
    assert play.state.doubted == SURE
    assert play.done == (() if asked else (CancelTimer(),))
    play(PidfileTouched()).absent(left=True)  # the next doubt is a new one
    assert play.done == (SetTimer(RUN, play.now + DOUBT),)
    assert not play.count(Signal)
    assert DaemonDoubted not in map(type, notes(play.all))


@pytest.mark.parametrize("asked", [False, True])
def test_pidfile_that_names_another_in_time_is_followed_without_a_doubt(asked):
    play = up()(PidfileTouched()).absent(left=True)
    if asked:
        play(Timer(RUN), after=DOUBT)
    play.found(78, "in the domain")
    assert play.state == Up(RUN, play.now, 1, 78)
    assert names(play.done) == ("DaemonMoved" if asked else "CancelTimer DaemonMoved")


@pytest.mark.parametrize("left", [False, True])
def test_pidfile_removed_by_a_daemon_that_ends_is_not_mentioned(left):
    play = up()(PidfileTouched()).absent(left=True).exited(0, left=left)
    assert play.done == (CancelTimer(), Look(RUN))
    play.absent(left=left)
    assert DaemonDoubted not in map(type, notes(play.all))
    assert play.kind == (Awaiting if left else Starting)


@pytest.mark.parametrize("event", [Stop(), Reload(), Reload(changes=True), Touched("/t")])
def test_doubt_ends_with_the_run(event):
    play = up()(PidfileTouched()).absent(left=True)(event)
    if play.kind == Down:
        assert of_kind(play.done, CancelTimer)
    else:
        assert only(play.done, SetTimer) == SetTimer(RUN, play.now + PATIENCE)
        before = play.state
        assert play(Timer(RUN), after=DOUBT).state == before  # of the doubt, and late


def test_pidfile_that_cannot_be_looked_at_under_a_live_daemon_is_said_once():
    play = up()(PidfileTouched()).absent(left=True)
    play(PidfileTouched(), Unseen(RUN, "the pidfile /p could not be looked at: EMFILE"))
    assert play.state.doubted == UNNAMED
    assert names(play.done) == "CancelTimer DaemonDoubted"
    for _ in range(2):
        play(PidfileTouched(), Unseen(RUN, "x"))
        assert play.done == ()
        play.absent(left=True)
        assert play.done == ()
    assert play.kind == Up


def test_pidfile_of_smart2_is_written_again_each_time_and_said_once():
    play = up(SMART2)
    for number in range(3):
        play(PidfileTouched()).absent(left=True)
        assert only(play.done, Name) == Name(RUN)
        assert len(notes(play.done)) == (number == 0)
        before = play.state
        assert play.found(77).state == before
        assert not play.done


def test_pidfile_of_smart2_that_cannot_be_written_again_is_said_once():
    play = up(SMART2)(PidfileTouched()).absent(left=True)(NotNamed(RUN, "the pidfile /p is full"))
    assert notes(play.done) == [DaemonDoubted("db", 77, "the pidfile /p is full", False)]
    play(PidfileTouched()).absent()(NotNamed(RUN, "the pidfile /p is full"))
    assert play.done == ()
    assert play.kind == Up


@pytest.mark.parametrize(
    ("event", "why", "signal"),
    [(Stop(), "stop", 2), (Reload(), "reload", 1)],
)
@pytest.mark.parametrize("notified", [False, True])
def test_up_when_told_to_end_is_left_and_at_most_told(event, why, signal, notified):
    play = up(NOTIFIED if notified else SPEC)(event)
    told = signal if notified else None
    tell = () if told is None else (Signal(RUN, told),)
    assert play.state == Down(RUN)
    assert play.done == (
        *tell,
        Say(DaemonLeft("db", 77, why, told)),
        CancelTimer(),
        Leave(RUN),
        WentDown(),
    )


def test_reload_when_notified_and_it_has_a_reload_signal_uses_that():
    play = up(NOTIFIED.replace(reload_signal=12))(Reload())
    assert only(play.done, Signal) == Signal(RUN, 12)


@pytest.mark.parametrize("signal", [None, 12])
@pytest.mark.parametrize("spec", [SPEC, SMART2, NOTIFIED])
def test_reload_that_governs_it_otherwise_ends_it(spec, signal):
    """Its next instance would not find it, and run beside it."""
    play = up(spec.replace(reload_signal=signal))(Reload(changes=True))
    asked = 2 if signal is None else signal
    assert (play.kind, play.state.then) == (Stopping, RELOADED)
    assert play.done == (
        Signal(RUN, asked),
        SetTimer(RUN, play.now + PATIENCE),
        Say(DaemonEnding("db", 77, asked, PATIENCE, "reload")),
    )
    play(Timer(RUN), after=PATIENCE)
    assert only(play.done, KillDomain) == KillDomain(RUN)
    play.exited(9, left=True)
    assert not play.count(Leave, WentDown)
    play(Emptied(RUN))
    assert play.state == Down(RUN)
    unnamed = ["Unname"] if spec == SMART2 else []
    assert names(play.done).split() == ["DaemonGone", *unnamed, "CancelTimer", "Leave", "WentDown"]
    play(Start())
    assert play.state == Looking(RUN + 1, 0, first=True)


@pytest.mark.parametrize("case", ["launched", "gone", "earlier", "lost"])
def test_reload_that_governs_it_otherwise_ends_what_waits_for_its_pidfile(case):
    play = up() if case == "lost" else Play()(Start())
    if case == "earlier":
        play.absent(left=True)
    elif case == "lost":
        play.exited(0, left=True).absent(left=True)
    else:
        play.absent()(ExecOk(RUN, 77, 33, 34, "cgroup")).absent(left=True)
        if case == "gone":
            play.exited(0, left=True).absent(left=True)
    play(Reload(changes=True))
    assert play.state.then == RELOADED
    assert play.state.main_gone == (case != "launched")
    assert only(play.done, Signal) == Signal(RUN, 2)
    assert len(of_kind(play.all, Settled)) == 1
    if case == "launched":
        play.exited(2)
    else:
        play(Emptied(RUN))
    assert play.state == Down(RUN)
    assert (play.count(Leave), play.count(WentDown), play.count(Spawn)) == (
        1,
        1,
        case != "earlier",
    )


def test_reload_that_governs_it_otherwise_and_then_a_stop_goes_down():
    play = up()(Reload(changes=True), Stop())
    assert (play.kind, play.state.then) == (Stopping, DOWN)
    play(Kill())
    assert only(play.done, KillDomain) == KillDomain(RUN)


@pytest.mark.parametrize("notified", [False, True])
def test_brutal_reload_tells_it_and_lets_go(notified):
    play = up(NOTIFIED if notified else SPEC)(Kill())
    assert (play.kind, play.done) == (Up, ())
    play(Reload())
    tell = "Signal " if notified else ""
    assert names(play.done) == f"{tell}DaemonLeft CancelTimer Leave WentDown"
    assert notes(play.done)[0].why == "reload"


@pytest.mark.parametrize("spec", [SPEC, SMART2, NOTIFIED])
def test_touch_restarts_it(spec):
    play = up(spec)(Touched("/t"))
    assert notes(play.done) == [DaemonEnding("db", 77, 2, PATIENCE, "touch /t")]
    assert only(play.done, Signal) == Signal(RUN, 2)
    assert play.state.then == AGAIN
    play(PidfileTouched())  # it removes it
    assert play.done == ()
    play(Timer(RUN), after=PATIENCE)
    assert only(play.done, KillDomain) == KillDomain(RUN)
    play.exited(9, left=True)(Emptied(RUN))
    assert play.state == Looking(RUN + 1, 0)
    kinds = names(play.done)
    unname = " Unname" if spec == SMART2 else ""
    assert kinds == f"DaemonGone{unname} CancelTimer Look"
    play.absent()
    assert play.state == Starting(RUN + 1, play.now, 1)


@pytest.mark.parametrize(
    ("event", "then", "after"),
    [(Stop(), DOWN, Down), (Kill(), DOWN, Down), (Reload(), RELOADED, Down)],
)
def test_stopping_when_told_to_end_goes_down_once_it_is_gone(event, then, after):
    play = up()(Touched("/t"), event)
    assert play.state.then == then
    assert not play.count(Leave)
    play.exited()
    assert play.kind == after
    assert (play.count(Leave), play.count(WentDown)) == (1, 1)


def test_stopping_when_nothing_kills_it_is_abandoned_and_left():
    play = up()(Touched("/t"), Stop())
    play(Timer(RUN), after=PATIENCE)(Timer(RUN), after=STUCK)(Timer(RUN), after=STUCK)
    assert play.state == Down(RUN)
    assert play.done[-3:] == (CancelTimer(), Leave(RUN), WentDown(abandoned=True))


@pytest.mark.parametrize(
    ("event", "then"),
    [(Stop(), DOWN), (Kill(), DOWN), (Reload(), RELOADED), (Touched("/t"), AGAIN)],
)
def test_starting_when_told_to_end_is_ended(event, then):
    """Nothing of it runs that could be left."""
    play = Play()(Start()).absent()(event)
    assert (play.kind, play.state.then, play.state.killed) == (Stopping, then, True)
    assert only(play.done, KillDomain) == KillDomain(RUN)
    play(ExecOk(RUN, 77, 0, 0, "x")).exited(9)
    assert play.kind == (Looking if then == AGAIN else Down)
    assert play.count(Leave) == (then != AGAIN)


def test_broken_when_stopped_goes_down_and_lets_go():
    play = Play()(Start()).absent()(SpawnFailed(RUN, "chdir", 2, "/x", cloned=True), Stop())
    play.exited(127 << 8)
    assert play.state == Down(RUN)
    assert (play.count(Leave), play.count(WentDown), play.count(Settled)) == (1, 1, 1)


@pytest.mark.parametrize("event", [Stop(), Kill(), Reload()])
def test_backoff_when_told_to_end_lets_go(event):
    play = Play().launch().exited(256).absent()(event)
    assert play.state == Down(RUN)
    assert play.done == (CancelTimer(), Leave(RUN), WentDown())


def test_crashed_when_its_rest_is_gone_looks_before_it_starts():
    """Somebody may have started it while its rest was ended."""
    play = up().exited(9, left=True).absent(left=True)(Timer(RUN), after=SUCCESSION)
    play.absent(left=True)(Emptied(RUN), after=SECOND)
    assert play.state == Looking(RUN + 1, 0)
    assert notes(play.done) == [DaemonGone("db", 77, 9, SECOND, 0)]
    play.found(78)
    assert (play.kind, play.count(Spawn)) == (Up, 1)


def test_start_that_failed_after_a_long_time_looks_and_has_no_timer():
    failure = SpawnFailed(RUN, "clone", 11, "", cloned=False)
    play = Play(state=Starting(RUN, NOW - FREQ, 1))(failure)
    assert play.state == Looking(RUN + 1, 1)
    assert play.done[-2:] == (CancelTimer(), Look(RUN + 1))


def test_emptied_before_the_end_is_not_believed():
    play = up()(Emptied(RUN))
    assert (play.kind, play.done) == (Up, ())


def test_down_hears_of_nothing():
    play = up()(Stop())
    before = play.state
    late = [event for name, event in EVENTS.items() if name not in ("Start", "Expel")]
    play(*late)
    assert play.state == before
    assert play.count(Leave) == 1


def test_end_when_it_cannot_be_looked_at_waits_and_looks_again():
    """Another may have taken its place."""
    play = up().exited(9)(Unseen(RUN, FINDING))
    assert play.state == Backoff(RUN, 0, play.now + SECOND)
    assert notes(play.done) == [DaemonDied("db", 77, 9, 60 * SECOND, False, SECOND, False)]
    play(Timer(RUN), after=SECOND)
    assert play.state == Looking(RUN + 1, 0)


@pytest.mark.parametrize("status", [0, 9, None])
def test_end_when_it_cannot_be_looked_at_keeps_the_rest_until_it_can(status):
    """The rest may be what took its place."""
    play = up().exited(status, left=True)(Unseen(RUN, FINDING))
    assert notes(play.done) == [DaemonAwaited("db", 77, status, FINDING, FREQ)]
    assert not play.count(Signal)
    play(PidfileTouched()).found(78)
    assert (play.kind, play.state.pid) == (Up, 78)


def test_end_when_it_cannot_be_looked_at_until_the_deadline_ends_the_rest():
    play = up().exited(9, left=True)(Unseen(RUN, FINDING))(Timer(RUN), after=FREQ)
    play(Unseen(RUN, FINDING))
    assert only(play.done, Signal) == Signal(RUN, 2)
    assert play.kind == Stopping


def test_what_cannot_be_looked_at_is_not_started():
    """It may well run: a second one would be started."""
    play = Play()(Start())(Unseen(RUN, "the pidfile /p could not be looked at: EMFILE"))
    assert play.kind is Backoff
    assert notes(play.done) == [
        DaemonFinding("db", "the pidfile /p could not be looked at: EMFILE", SECOND)
    ]
    assert not play.count(Spawn)
    play(Timer(RUN), after=SECOND)
    assert play.kind is Looking
    play(Unseen(play.run, "f"))
    assert only(play.done, SetTimer).at == play.now + 2 * SECOND
