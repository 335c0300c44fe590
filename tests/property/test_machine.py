"""Whatever happens to a daemon, in whatever order, the machine keeps its promises.

A smart daemon's own promises are in test_smart.py.
"""

from __future__ import annotations

import json
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lowsuper import events
from lowsuper.backoff import LONGEST, count_spawns, pause_before_start
from lowsuper.events import (
    Absent,
    CancelTimer,
    Concluded,
    ControlEnded,
    Deliver,
    Emptied,
    ExecOk,
    Exited,
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
    STATES,
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
from lowsuper.machine.states import AGAIN, CRASHED, DOWN, RELOADED, STUCK, UNREADY
from lowsuper.model import Command, DaemonSpec, Origin, Readiness
from lowsuper.state import dump, load
from lowsuper.units import SECOND

PATIENCE = 5 * SECOND
SPEC = DaemonSpec("d", Command("d", ("d",)), Origin("f", 1, "", ""), stop_timeout=PATIENCE)

RUNS = st.integers(0, 6)
TIMES = st.integers(0, 200 * SECOND)
COUNTS = st.integers(0, 400)
FAILURES = st.builds(
    SpawnFailed,
    run=RUNS,
    step=st.sampled_from(["", "clone", "chdir"]),
    errno=st.integers(0, 40),
    subject=st.sampled_from(["", "/x"]),
    cloned=st.booleans(),
)
EVENTS = st.one_of(
    st.sampled_from([Start(), Stop(), Reload(), Kill(), Touched("/t")]),
    st.sampled_from([Restart(), Halt(), Reset(), Deliver(10, "x")]),
    st.builds(Ready, RUNS),
    st.builds(Unready, RUNS, st.just("x")),
    st.builds(WatchdogMissed, RUNS, st.just(5)),
    st.builds(Timer, RUNS),
    st.builds(ExecOk, run=RUNS, pid=st.just(7), uid=st.just(0), gid=st.just(0), rung=st.just("x")),
    FAILURES,
    st.builds(Exited, run=RUNS, status=st.integers(0, 65535), left=st.booleans()),
    st.builds(Emptied, RUNS),
)
STATUSES = st.sampled_from([0, 256, 9])
RECENT = st.lists(TIMES, max_size=3).map(lambda times: tuple(sorted(times)))
SMART_EVENTS = st.one_of(
    EVENTS,
    st.builds(Exited, run=RUNS, status=st.none(), left=st.booleans()),
    st.just(PidfileTouched()),
    st.builds(
        Found,
        run=RUNS,
        pid=st.sampled_from([7, 8]),
        uid=st.just(0),
        gid=st.just(0),
        rung=st.just("x"),
        born=TIMES,
        why=st.just("w"),
    ),
    st.builds(
        Absent, run=RUNS, finding=st.sampled_from("fg"), left=st.booleans(), telling=st.booleans()
    ),
    st.builds(NotNamed, run=RUNS, finding=st.just("f")),
    st.builds(Unseen, run=RUNS, finding=st.just("f")),
    st.builds(HeldBy, run=RUNS, holder=st.just("h")),
    st.builds(Freed, RUNS),
    st.builds(Reaped, run=RUNS, status=STATUSES),
)
ANY_STATE = st.one_of(
    st.builds(Down, RUNS),
    st.builds(Starting, run=RUNS, since=TIMES, spawns=COUNTS, first=st.booleans()),
    st.builds(
        Broken, run=RUNS, since=TIMES, spawns=COUNTS, failure=FAILURES, main_gone=st.booleans()
    ),
    st.builds(Looking, run=RUNS, spawns=COUNTS, first=st.booleans(), held=st.booleans()),
    st.builds(
        Awaiting,
        run=RUNS,
        since=TIMES,
        deadline=TIMES,
        born=TIMES,
        spawns=COUNTS,
        pid=st.sampled_from([0, 7, 8]),
        first=st.booleans(),
        lost=st.booleans(),
        gone=st.booleans(),
        status=st.none() | STATUSES,
        empty=st.booleans(),
        told=st.booleans(),
        last=st.booleans(),
        finding=st.sampled_from(["", "f"]),
    ),
    st.builds(
        Up,
        run=RUNS,
        since=TIMES,
        spawns=COUNTS,
        pid=COUNTS,
        ready=st.booleans(),
        background=st.booleans(),
        doubted=st.integers(0, 2),
        first=st.booleans(),
        recent=RECENT,
    ),
    st.builds(
        Stopping,
        run=RUNS,
        since=TIMES,
        deadline=TIMES,
        born=TIMES,
        spawns=COUNTS,
        pid=COUNTS,
        then=st.sampled_from([DOWN, RELOADED, AGAIN, CRASHED, UNREADY]),
        main_gone=st.booleans(),
        status=st.none() | st.integers(0, 65535),
        killed=st.booleans(),
        said_stuck=st.booleans(),
    ),
    st.builds(Backoff, run=RUNS, spawns=COUNTS, until=TIMES, recent=RECENT),
    st.builds(
        Over,
        run=RUNS,
        outcome=st.sampled_from(["done", "exited", "failed"]),
        status=st.none() | STATUSES,
    ),
)
SPECS = st.builds(
    SPEC.replace,
    control=st.booleans(),
    pidfile=st.sampled_from([None, "/p", "/p"]),
    daemonize=st.booleans(),
    notify_pid=st.booleans(),
    max_throttle=st.none() | st.integers(0, 400 * SECOND),
    reload_signal=st.none() | st.just(1),
    kind=st.sampled_from(["simple", "simple", "oneshot"]),
    ready=st.sampled_from([None, None, Readiness("notify"), Readiness("tcp", "127.0.0.1:1")]),
    start_timeout=st.none() | st.just(SECOND),
    restart=st.sampled_from(["always", "on-failure", "never"]),
    backoff=st.none() | st.just((SECOND, 9 * SECOND)),
    max_restarts=st.none() | st.just((1, 60 * SECOND)),
)
NOWS = st.integers(200 * SECOND, 400 * SECOND)


@given(SPECS, ANY_STATE, SMART_EVENTS, NOWS)
@settings(max_examples=600, deadline=None)
def test_step_is_total_and_deterministic(spec, state, event, now):
    first, second = step(spec, state, event, now), step(spec, state, event, now)
    assert first == second
    after, actions = first
    assert isinstance(after, STATES)
    assert all(isinstance(action, get_args(events.DaemonAction)) for action in actions)


@given(SPECS, ANY_STATE, SMART_EVENTS, NOWS)
@settings(max_examples=600, deadline=None)
def test_event_of_another_run_changes_nothing(spec, state, event, now):
    if getattr(event, "run", state.run) != state.run:
        assert step(spec, state, event, now) == (state, ())


@given(SPECS, ANY_STATE, SMART_EVENTS, NOWS)
@settings(max_examples=600, deadline=None)
def test_step_starts_one_run_at_most_and_counts_it_up(spec, state, event, now):
    after, actions = step(spec, state, event, now)
    spawns = [action for action in actions if isinstance(action, Spawn)]
    assert spawns in ([], [Spawn(after.run)])
    starts = isinstance(after, Starting) and (type(state) is not Starting or after.run != state.run)
    assert bool(spawns) == starts
    assert after.run in (state.run, state.run + 1)
    if after.run != state.run:
        assert spawns or Look(after.run) in actions
    if spec.pidfile is None and not isinstance(state, Looking | Awaiting):
        assert bool(spawns) == (after.run != state.run)
    for action in actions:
        if isinstance(action, SetTimer):
            assert action.run == after.run
            assert action.at >= now or isinstance(state, Awaiting)
        elif isinstance(action, Signal | KillDomain | Unname | Leave):
            assert action.run == state.run
        elif isinstance(action, Look | Name):
            assert action.run == after.run


@given(SPECS, ANY_STATE, SMART_EVENTS, NOWS)
@settings(max_examples=600, deadline=None)
def test_step_that_goes_down_says_so_once_and_lets_go(spec, state, event, now):
    after, actions = step(spec, state, event, now)
    kinds = [type(action) for action in actions]
    over = isinstance(after, Over) and not isinstance(state, Over)
    down = isinstance(after, Down) and not isinstance(state, Down | Over)
    smart = spec.pidfile is not None
    assert kinds.count(WentDown) == down
    assert kinds.count(Concluded) == over
    assert kinds.count(Leave) == ((down or over) and smart)
    if down or over:
        end = WentDown if down else Concluded
        last = [CancelTimer, Leave, end] if smart else [CancelTimer, end]
        assert kinds[-len(last) :] == last


@given(SPECS, ANY_STATE, SMART_EVENTS, NOWS)
@settings(max_examples=600, deadline=None)
def test_step_settles_a_first_attempt_once(spec, state, event, now):
    after, actions = step(spec, state, event, now)
    first = [action for action in actions if isinstance(action, Settled) and action.first]
    assert len(first) <= 1
    was = getattr(state, "first", False) or (isinstance(state, Down | Over) and event == Start())
    if was and not getattr(after, "first", False):
        assert first, "somebody waits for it for ever"
    if not was:
        assert not first


@given(ANY_STATE)
def test_state_when_stored_comes_back(state):
    assert load(json.loads(json.dumps(dump(state))), STATES) == state


@given(st.integers(0, 10**6), st.integers(0, 10**12), st.none() | st.integers(0, 10**12))
def test_pause_has_its_bounds(spawns, age, longest):
    pause = pause_before_start(spawns, age, longest)
    most = longest or LONGEST
    assert pause == 0 or min(SECOND, most) <= pause <= most
    assert (pause == 0) == (age > 3 * SECOND)
    assert pause_before_start(spawns + 1, age, longest) >= pause
    assert count_spawns(spawns, age) in (0, spawns)


class DaemonMachine(RuleBasedStateMachine):
    """A daemon whose processes are a few flags, and the promises of the machine about them."""

    @initialize(control=st.booleans(), throttle=st.sampled_from([None, 2 * SECOND, SECOND // 2]))
    def begin(self, control, throttle):
        self.spec = SPEC.replace(control=control, max_throttle=throttle)
        self.state, self.now, self.timer = Down(), 1000 * SECOND, None
        self.main = self.rest = False  # processes of the run that live
        self.outcome = None  # of the start, not told yet
        self.exit = self.emptied = None  # reports that are under way
        self.killed = self.wanted = False
        self.deadline = None  # until when SIGKILL must have come
        self.born = self.asked = -(10**12)
        self.told = {"starts": 0, "downs": 0, "firsts": 0}
        self.trace = []

    # What the machine does to the world.

    def send(self, event):
        state = self.state
        self.trace.append((self.now, event))
        after, actions = step(self.spec, state, event, self.now)
        assert (after, actions) == step(self.spec, state, event, self.now)
        json_state = json.loads(json.dumps(dump(after)))
        self.state = load(json_state, STATES)  # any moment may be that of a takeover
        assert self.state == after
        for action in actions:
            self.perform(action)

    def perform(self, action):  # noqa: C901
        match action:
            case Spawn(run=run):
                self.spawn(run)
            case KillDomain(run=run):
                assert run == self.state.run
                self.killed, self.deadline = True, None
            case Signal():
                assert self.main or self.rest or self.exit
                assert not self.killed
                if self.deadline is None:
                    self.deadline = self.now + PATIENCE
            case SetTimer(run=run, at=at):
                assert at >= self.now
                self.timer = (at, run)
            case CancelTimer():
                self.timer = None
            case WentDown(abandoned=abandoned):
                self.told["downs"] += 1
                assert isinstance(self.state, Down)
                assert abandoned == bool(self.lives)
                if abandoned:  # what still lives is not this daemon's any more
                    self.main = self.rest = False
                    self.outcome = self.exit = self.emptied = None
            case Settled(ok=_, first=first):
                self.told["firsts"] += first
            case ControlEnded():
                assert self.spec.control
            case Say():
                pass

    @property
    def lives(self):
        return self.main or self.rest or self.exit or self.emptied

    def spawn(self, run):
        assert not self.lives, "beside another"
        assert self.wanted, "while stopped"
        assert run == self.state.run
        if self.asked < self.born:
            least = min(SECOND, self.spec.max_throttle or SECOND)
            assert self.now - self.born >= least, "too often"
        self.born = self.now
        self.main, self.killed, self.deadline = True, False, None
        self.outcome = "pending"

    # What happens.

    # Most of what can happen to a daemon that is down is nothing, so little of it is tried.

    @precondition(lambda self: isinstance(self.state, Down))
    @rule(stale=st.none() | EVENTS, runs=st.sampled_from([True, True, False]))
    def start(self, stale, runs):
        if stale is not None and not isinstance(stale, Start):
            self.send(stale)
            assert isinstance(self.state, Down)
        self.told["starts"] += 1
        self.asked, self.wanted = self.now, True
        self.send(Start())
        if runs:
            self.execute()

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule(event=st.sampled_from([Stop(), Kill(), Reload(), Kill(), Stop()]))
    def stop(self, event):
        self.wanted = False
        self.send(event)

    @precondition(lambda self: not isinstance(self.state, Down | Broken))
    @rule(really=st.sampled_from([True, False, False]))
    def touch(self, really):
        if not really:
            return
        self.asked = self.now
        self.send(Touched("/t"))

    @precondition(lambda self: self.main and self.outcome == "pending")
    @rule()
    def execute(self):
        self.outcome = None
        self.send(ExecOk(self.state.run, 7, 0, 0, "x"))

    @precondition(lambda self: self.main and self.outcome == "pending")
    @rule(how=st.sampled_from(["fails", "not cloned"]))
    def fail(self, how):
        run = self.state.run
        self.outcome = None
        if how == "fails":
            self.exit = Exited(run, 127 << 8, left=False)
            self.main = False
            self.send(SpawnFailed(run, "chdir", 2, "/x", cloned=True))
        else:
            self.main = False
            self.send(SpawnFailed(run, "clone", 11, "", cloned=False))

    @precondition(lambda self: self.main)
    @rule(left=st.booleans(), late=st.booleans())
    def die(self, left, late):
        self.main, self.rest = False, left
        exited = Exited(self.state.run, 256, left=left)
        if late:  # its outcome, or a request, is told before
            self.exit = exited
        else:
            if self.outcome == "pending":
                self.outcome = "late"
            self.send(exited)

    @precondition(lambda self: self.exit)
    @rule()
    def report_exit(self):
        exited, self.exit = self.exit, None
        if self.outcome == "pending":
            self.outcome = "late"
        self.send(exited)

    @precondition(lambda self: self.outcome == "late")
    @rule(ok=st.booleans(), run=st.just(0))
    def report_outcome_late(self, ok, run):
        """The exit was seen first: the run is over, or only leftovers of it live."""
        self.outcome = None
        before = self.state
        run = before.run
        self.send(ExecOk(run, 7, 0, 0, "x") if ok else SpawnFailed(run, "", 0, "", cloned=True))
        assert type(self.state) is type(before)

    @precondition(lambda self: self.rest and not self.exit)
    @rule()
    def empty(self):
        self.rest = False
        self.send(Emptied(self.state.run))

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule(time=st.sampled_from([0, 1, SECOND // 2, SECOND, 4 * SECOND, 31 * SECOND]))
    def pass_time(self, time):
        """Time passes, but no timer is missed."""
        self.now += time
        if self.timer is not None and self.timer[0] <= self.now:
            at, run = self.timer
            self.timer, self.now = None, max(at, self.now - time)
            self.send(Timer(run))

    @precondition(lambda self: isinstance(self.state, Stopping | Backoff))
    @rule()
    def stale_timer(self):
        """A timer of the run that had gone off before the machine set another."""
        if self.timer is not None and self.timer[0] > self.now:
            before, trace = self.state, len(self.trace)
            self.send(Timer(self.state.run))
            assert self.state == before
            assert len(self.trace) == trace + 1

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule(event=EVENTS)
    def stale_event(self, event):
        if getattr(event, "run", None) is not None and event.run != self.state.run:
            before = self.state
            self.send(event)
            assert self.state is before or self.state == before

    # What holds at all times.

    @invariant()
    def down_means_empty_without_a_timer(self):
        if isinstance(getattr(self, "state", None), Down):
            assert self.timer is None
            assert not self.lives

    @invariant()
    def up_needs_no_timer(self):
        assert self.timer is None or not isinstance(self.state, Up | Broken)

    @invariant()
    def deadline_is_kept(self):
        if getattr(self, "deadline", None) is not None and self.lives and not self.killed:
            assert self.now <= self.deadline
            assert self.timer is not None
            assert self.timer[0] <= self.deadline

    @invariant()
    def a_stop_has_a_timer(self):
        """Whoever waits for nothing to follow is told so in the end."""
        state = getattr(self, "state", None)
        if isinstance(state, Stopping) and state.then == DOWN:
            assert self.timer is not None
            assert self.timer[0] <= self.now + max(PATIENCE, STUCK)
        if isinstance(state, Backoff):
            assert self.timer == (state.until, state.run)

    @invariant()
    def every_start_goes_down_once(self):
        if hasattr(self, "told"):
            running = not isinstance(self.state, Down)
            assert self.told["starts"] - self.told["downs"] == running
            assert self.told["firsts"] <= self.told["starts"]
            if not running or isinstance(self.state, Up | Backoff):
                assert self.told["firsts"] == self.told["starts"]

    def teardown(self):
        """Played again from the beginning, the trace leads to the same state."""
        if hasattr(self, "trace"):
            state = Down()
            for now, event in self.trace:
                state, _ = step(self.spec, state, event, now)
            assert state == self.state


DaemonMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestDaemonMachine = DaemonMachine.TestCase
