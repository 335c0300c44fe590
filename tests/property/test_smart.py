"""Whatever happens to a smart daemon and its pidfile, the machine keeps its promises.

The model is a set of processes that belong to the daemon, the number in its pidfile, and what the
kernel side of lowsuper would make of them: who is watched, and which answer a Look gets.
"""

from __future__ import annotations

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lowsuper.events import (
    Absent,
    CancelTimer,
    ControlEnded,
    Emptied,
    ExecOk,
    Exited,
    Found,
    Freed,
    HeldBy,
    Kill,
    KillDomain,
    Leave,
    Look,
    Name,
    NotNamed,
    PidfileTouched,
    Reaped,
    Reload,
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
    Unseen,
    WentDown,
)
from lowsuper.machine import (
    STATES,
    Awaiting,
    Backoff,
    Broken,
    Down,
    Looking,
    Starting,
    Stopping,
    Up,
    step,
)
from lowsuper.machine.smart import DOUBT, SUCCESSION
from lowsuper.machine.states import ASKING, DOUBTING, DOWN
from lowsuper.model import Command, DaemonSpec, Origin
from lowsuper.state import dump, load
from lowsuper.units import SECOND

PATIENCE = 5 * SECOND
FREQ = 4 * SECOND
SPEC = DaemonSpec(
    "d",
    Command("d", ("d",)),
    Origin("f", 1, "", ""),
    stop_timeout=PATIENCE,
    pidfile="/p",
    freq=FREQ,
)
TIMELESS = Down | Looking | Broken


class SmartMachine(RuleBasedStateMachine):
    """A smart daemon, its processes and its pidfile."""

    @initialize(
        daemonize=st.booleans(),
        notify=st.booleans(),
        control=st.sampled_from([False, False, False, True]),
    )
    def begin(self, daemonize, notify, control):
        self.spec = SPEC.replace(daemonize=daemonize, notify_pid=notify, control=control)
        self.state, self.now, self.timer = Down(), 1000 * SECOND, None
        self.serial = 0
        self.live: dict[int, int] = {}  # the daemon's processes, and when they began
        self.file = 0  # what the pidfile holds; 0: nothing that is a number
        self.writable, self.blind = True, False
        self.absent = False  # the last Look saw that it does not run
        self.holder = False  # another master has the lock
        self.governed = False  # from the first Look to Leave
        self.waits_for_lock = False
        self.launched = self.watched = 0  # pids of this run
        self.failing = False  # the helper of this run has failed, or was never cloned
        self.exec_told = True
        self.ended = False  # Exited of this run was posted
        self.deadline = None  # until when SIGKILL must have come
        self.killed = False
        self.late = []  # of runs that are over, or Reaped
        self.asked = self.born = -(10**12)
        self.told = {"starts": 0, "downs": 0, "firsts": 0, "leaves": 0}
        self.trace = []

    # What the machine does to the world.

    def send(self, event):
        self.trace.append((self.now, event))
        before = self.state
        after, actions = step(self.spec, before, event, self.now)
        self.state = load(json.loads(json.dumps(dump(after))), STATES)
        assert self.state == after
        assert sum(isinstance(action, Spawn) for action in actions) <= 1
        answers = []
        for action in actions:
            self.perform(action, before, event, answers)
        for answer in answers:
            self.send(answer)

    def perform(self, action, before, event, answers):  # noqa: C901
        if isinstance(action, Signal | KillDomain | Unname | Leave | Name | Spawn):
            held = isinstance(action, Leave) and isinstance(before, Looking | Backoff)
            assert self.governed or held, "not ours any more, or not yet"
        match action:
            case Look(run=run):
                assert run == self.state.run
                answers.append(self.look(run))
            case Name(run=run):
                answers.append(self.name(run))
            case Spawn(run=run):
                self.spawn(run)
            case Unname():
                assert not self.live
                if self.writable:
                    self.file = 0
            case Leave():
                self.told["leaves"] += 1
                self.governed = self.waits_for_lock = False
                self.deadline = None
            case Signal():
                # A Stop or Reload never signals it, but with notifypid, or to govern it otherwise.
                if isinstance(event, Stop | Reload) and isinstance(self.state, Down):
                    assert self.spec.notify_pid
                    assert isinstance(before, Up)
                else:
                    assert not isinstance(event, Stop | Kill)
                    assert not isinstance(event, Reload) or event.changes
                    assert not self.killed
                    self.deadline = self.deadline or self.now + PATIENCE
            case KillDomain():
                if isinstance(event, Stop | Reload | Kill):
                    assert isinstance(before, Starting | Broken | Stopping), "left, not killed"
                self.killed, self.deadline = True, None
            case SetTimer(run=run, at=at):
                assert at >= self.now
                assert run == self.state.run
                self.timer = (at, run)
            case CancelTimer():
                self.timer = None
            case WentDown(abandoned=_):
                self.told["downs"] += 1
                assert self.told["leaves"] == self.told["downs"]
                assert not self.governed
            case Settled(first=first):
                self.told["firsts"] += first
            case ControlEnded():
                assert self.spec.control
                assert not self.live
            case Say():
                pass

    def look(self, run):
        self.absent = False
        if self.blind:
            return Unseen(run, "f")
        if not self.governed:
            if self.holder:
                self.waits_for_lock = True
                return HeldBy(run, "h")
            self.governed = True
            self.waits_for_lock = False
            self.killed = False
            self.ended = not self.live
        pid = 0
        if self.file in self.live:
            pid = self.file
        elif isinstance(self.state, Looking) and self.watched in self.live:
            pid = self.watched  # as recorded
        if not pid:
            self.absent = True
            return Absent(run, f"{self.file}", left=bool(self.live), telling=self.file != 0)
        if pid != self.watched or isinstance(self.state, Looking):
            self.watched, self.ended = pid, False
        return Found(run, pid, 0, 0, "x", self.live[pid], "w")

    def name(self, run):
        pid = self.watched if self.watched in self.live else self.launched
        if not self.writable:
            return NotNamed(run, "f")
        self.file = pid
        if pid in self.live:
            self.watched = pid
        return Found(run, pid, 0, 0, "x", self.now, "w")

    def spawn(self, run):
        assert self.absent, "unseen"
        self.absent = False
        assert run == self.state.run
        assert not self.live, "beside another"
        if self.asked < self.born:
            assert self.now - self.born >= SECOND, "too often"
        self.born = self.now
        self.launched, self.watched = self.fork(), 0
        self.failing = self.exec_told = self.ended = self.killed = False
        self.deadline = None

    def fork(self):
        self.serial += 1
        self.live[self.serial] = self.now
        return self.serial

    @property
    def main(self):
        """The process whose end is told."""
        return self.watched or self.launched

    def report(self, pid, status):
        """A process has ended: tell what the kernel side would."""
        if not self.governed:
            return
        run, left = self.state.run, bool(self.live)
        if not self.ended and pid == self.main:
            self.ended = True
            self.send(Exited(run, status, left))
        elif self.ended and not left:
            self.send(Emptied(run))

    # What happens.

    @precondition(lambda self: isinstance(self.state, Down))
    @rule(runs=st.booleans())
    def start(self, runs):
        self.told["starts"] += 1
        self.asked = self.now
        self.send(Start())
        if runs and isinstance(self.state, Starting):
            self.execute()

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule(event=st.sampled_from([Stop(), Reload(), Reload(changes=True), None, None, None]))
    def stop(self, event):
        if event is None:
            return
        before = self.state
        self.send(event)
        if isinstance(event, Stop) or not event.changes:
            assert isinstance(self.state, Down | Stopping)
            ends = isinstance(before, Starting | Broken | Stopping)
            assert ends or isinstance(self.state, Down), "left, not waited for"
        elif not isinstance(before, Looking | Backoff):  # which may not have seen it
            assert isinstance(self.state, Stopping), "left to no next instance"

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule(really=st.sampled_from([True, False, False]))
    def kill(self, really):
        """The master does not wait any more, or reloads brutally."""
        if not really:
            return
        before = self.state
        self.send(Kill())
        if isinstance(before, Looking | Awaiting | Up):
            assert self.state == before, "what survives the master is not killed"

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule(really=st.sampled_from([True, False]))
    def touch(self, really):
        if really:
            self.asked = self.now
            self.send(Touched("/t"))

    @precondition(lambda self: isinstance(self.state, Starting | Stopping) and not self.exec_told)
    @rule()
    def execute(self):
        if self.launched in self.live and not self.failing:
            self.exec_told = True
            self.send(ExecOk(self.state.run, self.launched, 0, 0, "x"))

    @precondition(lambda self: isinstance(self.state, Starting) and not self.exec_told)
    @rule(cloned=st.booleans())
    def fail(self, cloned):
        if self.launched not in self.live or len(self.live) > 1:
            return
        self.exec_told = self.failing = True
        if not cloned:
            self.live.clear()
            self.ended = True
        self.send(SpawnFailed(self.state.run, "chdir", 2, "/x", cloned))

    @precondition(lambda self: self.live and not self.failing)
    @rule(writes=st.booleans(), told=st.booleans())
    def fork_another(self, writes, told):
        """It daemonizes itself, or upgrades in place."""
        if not self.exec_told:
            return
        pid = self.fork()
        if writes:
            self.file = pid
            if told:
                self.send(PidfileTouched())

    @rule(pid=st.sampled_from([0, 0, 10**6, -1]), told=st.booleans())
    def write_pidfile(self, pid, told):
        """Somebody removes it, garbles it, or writes the right number into it."""
        self.file = max(self.live, default=0) if pid < 0 else pid
        if told:
            self.send(PidfileTouched())

    @precondition(lambda self: self.live)
    @rule(
        first=st.booleans(),
        everything=st.booleans(),
        status=st.sampled_from([0, 0, 256, 9, None]),
    )
    def die(self, first, everything, status):
        """One of its processes ends, or all that there are."""
        pids = sorted(self.live, reverse=not first)
        for pid in pids if everything else pids[:1]:
            del self.live[pid]
            if status is None:
                self.late.append(Reaped(self.state.run, 256))
            if not self.exec_told and pid == self.launched:
                self.exec_told = True
                self.late.append(ExecOk(self.state.run, pid, 0, 0, "x"))
            self.report(pid, status)

    @precondition(lambda self: self.killed and self.live)
    @rule()
    def die_by_sigkill(self):
        self.die(first=True, everything=True, status=9)

    @precondition(lambda self: self.late)
    @rule()
    def come_late(self):
        before, event = self.state, self.late.pop()
        self.send(event)
        if event.run != before.run:
            assert self.state == before

    @precondition(lambda self: not self.governed)
    @rule(holder=st.booleans())
    def start_or_stop_another_master(self, holder):
        self.holder = holder
        if not holder and self.waits_for_lock:
            self.send(Freed(self.state.run))

    @rule(writable=st.booleans(), blind=st.sampled_from([False, False, True]))
    def remount(self, writable, blind):
        self.writable, self.blind = writable, blind

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule(time=st.sampled_from([0, 1, SECOND, FREQ, 4 * SECOND, 31 * SECOND]))
    def pass_time(self, time):
        """Time passes, but no timer is missed."""
        self.now += time
        if self.timer is not None and self.timer[0] <= self.now:
            at, run = self.timer
            self.timer, self.now = None, max(at, self.now - time)
            self.send(Timer(run))

    @precondition(lambda self: not isinstance(self.state, Down))
    @rule()
    def stale_timer(self):
        """A timer of this run that had gone off before the machine set another."""
        if self.timer is None or self.timer[0] > self.now:
            before = self.state
            early = isinstance(before, Starting)  # it has one only
            early |= isinstance(before, Up) and before.doubted == DOUBTING  # it looks early
            if not early:
                self.send(Timer(before.run))
                assert self.state == before

    @rule(
        kind=st.sampled_from([Timer, Freed, Emptied, "x", "f", "a"]),
        off=st.sampled_from([-1, 1, 2]),
    )
    def stale_event(self, kind, off):
        run, before = self.state.run + off, self.state
        if kind == "x":
            event = Exited(run, 9, False)
        elif kind == "f":
            event = Found(run, 10**6, 0, 0, "x", 0, "w")
        elif kind == "a":
            event = Absent(run, "f", False, True)
        else:
            event = kind(run)
        self.send(event)
        assert self.state == before

    # What holds at all times.

    @invariant()
    def a_timer_is_there_when_it_is_needed(self):
        state = getattr(self, "state", None)
        if isinstance(state, TIMELESS):
            assert self.timer is None, state
        elif isinstance(state, Up):
            assert state.doubted != ASKING, "that is answered at once"
            assert (self.timer is not None) == (state.doubted == DOUBTING)
            assert self.timer is None or self.timer[0] <= self.now + DOUBT
        elif isinstance(state, Awaiting):
            assert self.timer == (state.deadline, state.run)
        elif isinstance(state, Backoff):
            assert self.timer == (state.until, state.run)
        elif isinstance(state, Stopping) and state.then == DOWN:
            assert self.timer is not None

    @invariant()
    def a_failure_leaves_a_successor_a_moment_only(self):
        state = getattr(self, "state", None)
        if isinstance(state, Awaiting) and state.lost and state.status and self.absent:
            assert state.deadline - self.now <= SUCCESSION

    @invariant()
    def deadline_is_kept(self):
        if getattr(self, "deadline", None) is not None and self.live and not self.killed:
            assert self.now <= self.deadline
            assert self.timer is not None
            assert self.timer[0] <= self.deadline

    @invariant()
    def up_has_the_process_that_is_watched(self):
        state = getattr(self, "state", None)
        if isinstance(state, Up):
            assert state.pid == self.watched
            assert state.pid in self.live or not self.ended

    @invariant()
    def backoff_is_empty(self):
        if isinstance(getattr(self, "state", None), Backoff):
            assert not self.live or all(born >= self.born for born in self.live.values())

    @invariant()
    def every_start_is_settled_and_goes_down_once(self):
        if not hasattr(self, "told"):
            return
        running = not isinstance(self.state, Down)
        assert self.told["starts"] - self.told["downs"] == running
        assert self.told["leaves"] == self.told["downs"]
        assert self.told["firsts"] <= self.told["starts"]
        if not running or isinstance(self.state, Up | Backoff | Stopping):
            assert self.told["firsts"] == self.told["starts"]

    @invariant()
    def whoever_is_not_down_governs_or_waits_for_the_lock(self):
        if hasattr(self, "state"):
            held = self.governed or self.waits_for_lock
            if isinstance(self.state, Down):
                assert not held
            else:
                assert held or isinstance(self.state, Backoff)

    def teardown(self):
        """Played again from the beginning, the trace leads to the same state."""
        if hasattr(self, "trace"):
            state = Down()
            for now, event in self.trace:
                state, _ = step(self.spec, state, event, now)
            assert state == self.state


SmartMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
TestSmartMachine = SmartMachine.TestCase
