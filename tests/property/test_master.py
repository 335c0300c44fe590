"""Whatever the operator and the daemons do, the master starts, replaces and ends them in order."""

from __future__ import annotations

import json
import os
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lowsuper import events, master
from lowsuper.events import (
    Announce,
    Asked,
    Boot,
    DaemonConcluded,
    DaemonDown,
    DaemonEnded,
    DaemonNeeds,
    DaemonSettled,
    DropPrivileges,
    Expel,
    FifoByte,
    Finish,
    Forget,
    Halt,
    HookEnded,
    HookTouched,
    Kill,
    KillHook,
    LoadConfig,
    Loaded,
    LoadRefused,
    LordChanged,
    MasterStops,
    Reload,
    ReloadTouched,
    Restart,
    RunHook,
    SayMaster,
    Signalled,
    Start,
    Stop,
    Tell,
    TellAll,
)
from lowsuper.machine import Backoff, Down, Over, Starting, Stopping, Up
from lowsuper.master import BOOTING, ENDED, RELOADING, RUNNING, STOPPING, Master, order, step
from lowsuper.model import Command, DaemonSpec, Exec, Exit, Hook, MasterSpec, Origin, Print
from lowsuper.state import dump, load

ORIGIN = Origin("f", 1, "", "")
NAMES = "abcd"
SMART = "bd"
PHASES = ("asap", "as-root", "as-user", "as-user-atexit", "touch")
COMMAND = Command("h", ("h",))
SIGNALS = st.sampled_from([1, 1, 1, 10, 12])
STOPS = st.sampled_from([Signalled(15), Signalled(2), FifoByte("q"), FifoByte("Q")])


def build_spec(names, hooks, kinds=("after", "requires"), legion=9, **fields):
    daemons = tuple(
        DaemonSpec(
            name,
            Command(name, (name,)),
            ORIGIN,
            **({key: tuple(names[:1])} if index > 1 and (key := kinds[index % 2]) else {}),
            pidfile=f"/{name}" if name in SMART else None,
            legion="l" if index >= legion else None,
        )
        for index, name in enumerate(names)
    )
    return MasterSpec("m", daemons=daemons, hooks=tuple(hooks), **fields)


def build_hook(phase, deed, number):
    return Hook(phase, deed, ORIGIN.replace(line=number), path="/f" if phase == "touch" else "")


DEEDS = st.sampled_from([*[Exec(COMMAND)] * 5, Exec(COMMAND, safe=True), Print("x"), Exit(3)])
HOOKS = st.builds(build_hook, st.sampled_from(PHASES), DEEDS, st.integers(1, 3))
SPECS = st.builds(
    build_spec,
    st.lists(st.sampled_from(NAMES), unique=True),
    st.lists(HOOKS, max_size=3, unique=True),
    kinds=st.sampled_from([("after", "requires"), ("wants", "requires"), ("", "")]),
    legion=st.sampled_from([9, 9, 0, 1, 2]),
    user=st.sampled_from([None, "www"]),
    die_on_term=st.booleans(),
    exit_on_reload=st.sampled_from([False, False, False, True]),
)
CLASSES = (Master, Hook, Exec, Exit, Print, Command, Origin)
UP = Up(1, 0, 1, 7)
VERBS = ("start", "stop", "restart", "try-restart", "reset-failed")
STATES = st.sampled_from(
    [Down(), Over(1, "failed", 256), Starting(1, 0, 1), UP, Stopping(1, 0, 0, 0, 1, 7, "down")]
)
TASKS = st.sampled_from(["pidfiles", "drop", "pidfiles2", "start", "drain", "started", "finish"])
NAMED = st.lists(st.sampled_from(NAMES)).map(tuple)
MASTERS = st.builds(
    Master,
    phase=st.sampled_from([BOOTING, RUNNING, RELOADING, STOPPING, ENDED]),
    todo=st.lists(TASKS, max_size=4).map(tuple),
    hook=st.none() | HOOKS,
    touched=st.lists(HOOKS, max_size=2).map(tuple),
    alive=st.integers(0, 4),
    unsettled=st.integers(0, 4),
    failed=st.integers(0, 4),
    dropped=st.booleans(),
    loading=st.booleans(),
    brutal=st.booleans(),
    again=st.booleans(),
    asked=st.booleans(),
    impatient=st.booleans(),
    code=st.sampled_from([0, 1, 125]),
    held=NAMED,
    returning=NAMED,
    lordships=st.sampled_from([(), ("l",)]),
)
EVENTS = st.one_of(
    st.sampled_from([Boot(), ReloadTouched("/"), Loaded(), LoadRefused()]),
    st.builds(Signalled, st.integers(1, 64)),
    st.builds(FifoByte, st.characters(max_codepoint=255)),
    st.builds(HookEnded, st.sampled_from([0, 9, 256, -1])),
    st.builds(HookTouched, HOOKS),
    st.builds(DaemonSettled, st.sampled_from(NAMES), st.booleans(), st.booleans()),
    st.builds(DaemonDown, st.sampled_from(NAMES), st.booleans()),
    st.builds(DaemonEnded, st.sampled_from(NAMES), st.integers(0, 65535)),
    st.builds(DaemonConcluded, st.sampled_from(NAMES), st.booleans(), st.none() | st.just(256)),
    st.builds(Asked, st.sampled_from([*VERBS, "reload", "shutdown", "kill"]), NAMED),
    st.builds(LordChanged, st.just("l"), st.booleans(), st.just("why")),
)


@given(SPECS, MASTERS, EVENTS, st.dictionaries(st.sampled_from(NAMES), STATES))
@settings(max_examples=500, deadline=None)
def test_step_is_total_and_deterministic(spec, state, event, daemons):
    if isinstance(event, HookEnded) and state.hook is None:
        return
    first = step(spec, state, event, daemons, 5)
    assert first == step(spec, state, event, daemons, 5)
    after, actions = first
    assert isinstance(after, Master)
    assert all(isinstance(action, get_args(events.MasterAction)) for action in actions)
    assert load(json.loads(json.dumps(dump(after))), CLASSES) == after
    if isinstance(event, Boot) or {"start", "started"} & set(state.todo):
        return  # none of these comes when it stops
    if state.phase in (STOPPING, ENDED):
        assert not [a for a in actions if isinstance(a, Tell | LoadConfig)]


class MasterMachine(RuleBasedStateMachine):
    """A master and daemons that are each down, coming up, up, or going down."""

    @initialize(spec=SPECS)
    def begin(self, spec):
        self.spec, self.next_spec, self.now = spec, spec, 0
        self.state = Master()
        self.daemons = dict.fromkeys((d.name for d in spec.daemons), Down())
        self.left = []  # smart daemons that were let go of, which is not told yet
        self.first = set()  # whose first attempt is not settled
        self.lost = set()  # what was not started, or ended, for lack of what it requires
        self.held = set()  # what somebody has stopped
        self.again = set()  # what is on its way down, and is to come back
        self.hook = None
        self.code = None
        self.lord = False
        self.stopped = self.dropped = False
        self.announced = 0
        self.trace = []
        self.send(Boot())

    def send(self, event):
        daemons = dict(self.daemons)
        self.trace.append((self.spec, event, daemons, self.now))
        self.state, actions = step(self.spec, self.state, event, daemons, self.now)
        for action in actions:
            self.perform(action)
        while self.left:
            self.send(DaemonDown(self.left.pop(0)))

    def perform(self, action):  # noqa: C901
        assert self.code is None, "after the end"
        match action:
            case Tell(name=name, event=Start()) if isinstance(self.daemons[name], Down | Over):
                assert not self.stopped, "started while it stops"
                assert name not in self.held, "started what somebody has stopped"
                assert name not in self.find_barred(), "started without the lordship"
                assert self.hook is None or self.hook.phase == "touch", "started before its hook"
                self.daemons[name] = Starting(1, 0, 1, first=True)
                self.first.add(name)
            case Tell(name=name, event=Start()):
                assert isinstance(self.daemons[name], Stopping), "started beside itself"
                assert name not in self.find_barred(), "comes back without the lordship"
                if self.daemons[name].then == "down":
                    self.again.add(name)
            case Tell(name=name, event=Expel()):
                assert name in SMART
                assert name in self.find_barred()
                assert isinstance(self.daemons[name], Down | Over)
                if self.leftover:
                    self.daemons[name] = Stopping(1, 0, 0, 0, 1, 7, "down")
                else:
                    self.left.append(name)
                self.leftover = not self.leftover
            case TellAll(event=Stop() | Reload() | Kill() as event):
                for name in self.daemons:
                    self.tell_end(name, event)
            case Tell(name=name, event=Stop() | Reload() | Halt() as event):
                later = [
                    each.name
                    for each in self.spec.daemons
                    if name in (*each.requires, *each.after) and self.stopped
                ]
                gone = all(isinstance(self.daemons[each], Down | Over) for each in later)
                assert gone, "ended before those that come after it"
                self.tell_end(name, event)
            case Tell(name=name, event=Restart()):
                assert isinstance(self.daemons[name], Up | Starting | Stopping | Backoff)
                if isinstance(self.daemons[name], Stopping) and self.daemons[name].then == "down":
                    self.again.add(name)
            case SayMaster(note=DaemonNeeds(name=name)):
                self.lost.add(name)
            case Forget(name=name):
                assert isinstance(self.daemons.pop(name), Down | Over)
                assert name not in {daemon.name for daemon in self.spec.daemons}
            case RunHook(hook=hook):
                assert self.hook is None, "two hooks at once"
                assert hook in self.spec.hooks
                assert (hook.phase == "as-user-atexit") == self.stopped
                assert hook.phase != "touch" or self.state.phase == RUNNING
                if hook.phase.startswith("as-user") and self.spec.user and not self.reloaded:
                    assert self.dropped, "the user's hook as root"
                self.hook = hook
            case KillHook():
                assert self.hook is not None
            case LoadConfig():
                assert not self.stopped
                self.loading = True
            case DropPrivileges():
                assert not self.dropped
                self.dropped = True
            case Announce():
                self.announced += 1
            case SayMaster(note=MasterStops(count=count, smart=smart)):
                assert count >= 0
                assert smart >= 0
                alive = [n for n, s in self.daemons.items() if not isinstance(s, Down | Over)]
                assert count + smart == len(alive)
            case Finish():
                assert self.stopped
                assert self.hook is None
                assert all(isinstance(state, Down | Over) for state in self.daemons.values())
                self.code = action.code
            case _:
                pass
        self.stopped = self.stopped or self.state.phase in (STOPPING, ENDED)

    loading = reloaded = leftover = False

    def find_barred(self):
        return {d.name for d in self.spec.daemons if d.legion is not None and not self.lord}

    def tell_end(self, name, event):
        state = self.daemons[name]
        self.again.discard(name)
        then = "reloaded" if isinstance(event, Reload) else "down"
        stays = name in SMART and name not in self.in_legion
        if isinstance(state, Up) and stays and not isinstance(event, Halt):
            self.daemons[name] = Down(1)
            self.left.append(name)
        elif isinstance(state, Over):
            self.daemons[name] = Down(1)
        elif not isinstance(state, Down):
            self.daemons[name] = Stopping(1, 0, 0, 0, 1, 7, then)
            # What is stopped before it was up has failed.

    @property
    def in_legion(self):
        return {daemon.name for daemon in self.spec.daemons if daemon.legion is not None}

    def ask(self, event):
        self.send(event)
        while self.loading:
            self.loading = False
            if self.next_spec is None:
                self.send(LoadRefused())
                continue
            before = self.spec
            self.spec, self.reloaded = self.next_spec, True
            self.held &= {daemon.name for daemon in self.spec.daemons}
            placed = {d.name: self.daemons.get(d.name, Down()) for d in self.spec.daemons}
            self.daemons = placed | {
                name: state for name, state in self.daemons.items() if name not in placed
            }
            assert before is not None
            self.send(Loaded())

    @precondition(lambda self: self.code is None)
    @rule(signal=SIGNALS)
    def signal(self, signal):
        self.ask(Signalled(signal))

    @precondition(lambda self: self.code is None)
    @rule(command=st.sampled_from("rRslLpP07x"))
    def fifo(self, command):
        self.ask(FifoByte(command))

    @precondition(lambda self: self.code is None)
    @rule(event=STOPS, really=st.integers(0, 7))
    def stop(self, event, really):
        if really == 0:
            self.ask(event)

    @precondition(lambda self: self.code is None and self.in_legion)
    @rule()
    def change_lord(self):
        self.lord = not self.lord
        self.ask(LordChanged("l", self.lord, "why"))

    @rule(spec=st.none() | SPECS)
    def edit(self, spec):
        self.next_spec = spec

    @precondition(lambda self: self.hook is not None)
    @rule(status=st.sampled_from([0, 0, 0, 0, 0, 0, 256, -1]))
    def end_hook(self, status):
        self.hook = None
        self.ask(HookEnded(status))

    @rule(data=st.data())
    def touch(self, data):
        hooks = [hook for hook in self.spec.hooks if hook.phase == "touch"]
        if hooks and self.code is None:
            self.ask(HookTouched(data.draw(st.sampled_from(hooks))))

    @precondition(lambda self: any(isinstance(s, Starting) for s in self.daemons.values()))
    @rule()
    def settle_all(self):
        for name in [name for name, s in self.daemons.items() if isinstance(s, Starting | Backoff)]:
            if isinstance(self.daemons[name], Starting | Backoff):
                self.come_up(name)

    def come_up(self, name, *, ok=True):
        self.daemons[name] = UP if ok else Backoff(1, 1, 9)
        first = name in self.first
        self.first.discard(name)
        if ok or first:
            self.ask(DaemonSettled(name, ok, first))

    @precondition(lambda self: any(isinstance(s, Stopping) for s in self.daemons.values()))
    @rule()
    def all_go_down(self):
        for name in [name for name, s in self.daemons.items() if isinstance(s, Stopping)]:
            if isinstance(self.daemons.get(name), Stopping):
                self.end(name)

    def end(self, name, *, abandoned=False):
        if name in self.first:
            self.first.discard(name)
            self.ask(DaemonSettled(name, ok=False, first=True))
        if name in self.again:
            self.again.discard(name)
            self.daemons[name] = Starting(2, 0, 1)
            return
        self.daemons[name] = Down(1)
        self.ask(DaemonDown(name, abandoned and self.stopped))

    @precondition(lambda self: self.code is None and not self.stopped)
    @rule(verb=st.sampled_from(VERBS), names=st.lists(st.sampled_from(NAMES), min_size=1))
    def steer(self, verb, names):
        known = {daemon.name for daemon in self.spec.daemons}
        named = tuple(name for name in dict.fromkeys(names) if name in known)
        if verb == "stop":
            self.held |= set(order.with_dependents(self.spec, named))
        elif verb == "restart":
            self.held -= set(named)
            there = [n for n in named if not isinstance(self.daemons[n], Down | Over)]
            self.held -= set(order.with_required(self.spec, [n for n in named if n not in there]))
        elif verb == "start":
            self.held -= set(order.with_required(self.spec, named))
        self.ask(Asked(verb, tuple(names)))

    @rule(data=st.data(), failed=st.booleans())
    def conclude(self, data, failed):
        """One is given up, or has done what it was to do."""
        ups = [name for name, s in self.daemons.items() if isinstance(s, Up | Backoff)]
        if ups and self.code is None:
            name = data.draw(st.sampled_from(ups))
            first = name in self.first
            self.first.discard(name)
            self.daemons[name] = Over(1, "failed" if failed else "exited", 256)
            if first:
                self.ask(DaemonSettled(name, not failed, first=True))
            self.ask(DaemonConcluded(name, failed, 256))

    @rule(data=st.data(), ok=st.booleans())
    def settle(self, data, ok):
        coming = [name for name, s in self.daemons.items() if isinstance(s, Starting | Backoff)]
        if coming:
            self.come_up(data.draw(st.sampled_from(coming)), ok=ok)

    @rule(data=st.data(), abandoned=st.sampled_from([False, False, True]))
    def go_down(self, data, abandoned):
        going = [name for name, state in self.daemons.items() if isinstance(state, Stopping)]
        if going:
            self.end(data.draw(st.sampled_from(going)), abandoned=abandoned)

    @rule(data=st.data(), status=st.sampled_from([0, 256, 9]), really=st.integers(0, 7))
    def control_ends(self, data, status, really):
        up = really == 0 and [name for name, state in self.daemons.items() if isinstance(state, Up)]
        if up:
            name = data.draw(st.sampled_from(up))
            self.daemons[name] = Down(1)
            self.ask(DaemonEnded(name, status))
            self.ask(DaemonDown(name))

    @invariant()
    def books_are_right(self):
        if hasattr(self, "state"):
            alive = sum(not isinstance(state, Down | Over) for state in self.daemons.values())
            assert self.state.alive == alive
            assert self.state.hook == self.hook
            assert self.announced <= 1

    @invariant()
    def nothing_is_forgotten(self):
        """With nothing under way the master rests: it runs with all daemons up, or it ended."""
        if not hasattr(self, "state") or self.hook is not None:
            return
        kinds = {type(state) for state in self.daemons.values()}
        if kinds & {Starting, Stopping, Backoff}:
            return
        if self.state.phase == STOPPING:
            assert Up in kinds, "it waits for nothing"
        elif self.state.phase != ENDED:
            assert self.state.phase == RUNNING, self.state
            absent = (
                self.held | self.lost | {n for n, s in self.daemons.items() if isinstance(s, Over)}
            )
            absent = set(order.with_dependents(self.spec, absent | self.find_barred()))
            wanted = {daemon.name for daemon in self.spec.daemons} - absent
            up = {name for name, s in self.daemons.items() if isinstance(s, Up)}
            assert wanted <= up
            assert not self.held & up

    def teardown(self):
        if hasattr(self, "trace"):
            state = Master()
            for spec, event, daemons, now in self.trace:
                state, _ = master.step(spec, state, event, daemons, now)
            assert state == self.state


TestMasterMachine = MasterMachine.TestCase
# The same histories in each run; `SEED=random` looks for others.
TestMasterMachine.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    derandomize=os.environ.get("SEED") != "random",
    database=None,
    deadline=None,
)
