"""The master machine: phases, order, reload, shutdown and the exit code."""

from __future__ import annotations

from typing import get_args

import pytest

from lowsuper import events, master
from lowsuper.events import (
    AllStarted,
    Announce,
    Applied,
    Asked,
    Boot,
    DaemonConcluded,
    DaemonDown,
    DaemonEnded,
    DaemonNeeds,
    DaemonSettled,
    DropPrivileges,
    FifoByte,
    Finish,
    Forget,
    Halt,
    HookEnded,
    HookFailed,
    HookPrints,
    HookRuns,
    HookTouched,
    Kill,
    KillHook,
    LoadConfig,
    Loaded,
    LoadRefused,
    LordChanged,
    MasterEnds,
    MasterIgnores,
    MasterKills,
    MasterReloaded,
    MasterReloads,
    MasterStops,
    Reload,
    ReloadTouched,
    ReopenLogs,
    Reset,
    Restart,
    RunHook,
    SayMaster,
    SayStats,
    SelectFifo,
    Signalled,
    Start,
    Stop,
    Tell,
    TellAll,
    WritePidfiles,
)
from lowsuper.machine import Backoff, Down, Looking, Over, Starting, Stopping, Up
from lowsuper.master import BOOTING, ENDED, RELOADING, RUNNING, STOPPING, Master, exit_code
from lowsuper.model import (
    Command,
    DaemonSpec,
    Exec,
    Exit,
    Hook,
    MakeDirectory,
    MasterSpec,
    Origin,
    Print,
)

ORIGIN = Origin("f.ini", 1, "", "")
HUP, INT, QUIT, USR1, TERM = 1, 2, 3, 10, 15
UP = Up(1, 0, 1, 77)


def daemon(name, **fields):
    return DaemonSpec(name, Command(name, (name,)), ORIGIN, **fields)


def hook(phase, text="true", deed=None, **fields):
    deed = deed or Exec(Command(text, (text,)))
    return Hook(phase, deed, Origin("f.ini", 1, f"exec-{phase}", text), **fields)


def config(*daemons, **fields):
    return MasterSpec("m", daemons=daemons, **fields)


class Play:
    """A master machine and the states of its daemons, as a test sets them."""

    def __init__(self, spec, **states):
        self.spec, self.now, self.state = spec, 0, Master()
        self.daemons = {each.name: Down() for each in spec.daemons} | states

    def step(self, event):
        self.state, actions = master.step(self.spec, self.state, event, self.daemons, self.now)
        return list(actions)

    def boot(self):
        """Start everything; every daemon comes up."""
        self.step(Boot())
        self.settle(*(each.name for each in self.spec.daemons))
        assert self.state.phase == RUNNING
        return self

    def settle(self, *names, ok=True):
        done = []
        for name in names:
            self.daemons[name] = UP if ok else Backoff(1, 1, 9)
            done += self.step(DaemonSettled(name, ok, first=True))
        return done

    def down(self, *names, **fields):
        done = []
        for name in names:
            self.daemons[name] = Down(1)
            done += self.step(DaemonDown(name, **fields))
        return done

    def load(self, spec):
        """Bring in a new configuration as the shell does."""
        self.spec = spec
        self.daemons = {each.name: self.daemons.get(each.name, Down()) for each in spec.daemons} | {
            name: state for name, state in self.daemons.items() if state != Down()
        }
        return self.step(Loaded())


def going(then="down"):
    """A daemon that has been told to end."""
    return Stopping(1, 0, 0, 0, 1, 7, then)


def notes(actions):
    return [action.note for action in actions if isinstance(action, SayMaster)]


def acts(actions):
    """The actions without the words."""
    return [action for action in actions if not isinstance(action, SayMaster)]


# Boot.


def test_boot_runs_everything_in_order():
    hooks = [
        hook(phase, phase)
        for phase in ("as-user-atexit", "as-user", "as-root", "in-jail", "pre-jail", "asap")
    ]
    play = Play(config(daemon("a"), daemon("b"), hooks=tuple(hooks), user="www"))
    done = acts(play.step(Boot()))
    for index in (5, 4, 3, 2, 1):
        assert done[-1] == RunHook(play.spec.hooks[index])
        done += acts(play.step(HookEnded(0)))
    done += acts(play.settle("a", "b"))
    assert done == [
        RunHook(play.spec.hooks[5]),
        RunHook(play.spec.hooks[4]),
        RunHook(play.spec.hooks[3]),
        WritePidfiles(dropped=False),
        RunHook(play.spec.hooks[2]),
        DropPrivileges(),
        WritePidfiles(dropped=True),
        RunHook(play.spec.hooks[1]),
        Tell("a", Start()),
        Tell("b", Start()),
        Announce(),
    ]


def test_boot_when_two_hooks_of_a_phase_runs_them_in_file_order():
    play = Play(config(hooks=(hook("asap", "x"), hook("asap", "y"))))
    assert notes(play.step(Boot())) == [HookRuns("exec-asap", "x")]
    assert notes(play.step(HookEnded(0)))[0] == HookRuns("exec-asap", "y")


@pytest.mark.parametrize(
    ("fields", "drops"),
    [
        ({}, False),
        ({"user": "www"}, True),
        ({"group": "www"}, True),
        ({"user": "www", "master_as_root": True}, False),
    ],
)
def test_boot_drops_privileges_only_where_asked_to(fields, drops):
    play = Play(config(**fields))
    assert (DropPrivileges() in play.step(Boot())) == drops
    assert play.state.dropped == drops


def test_boot_says_how_many_could_not_be_started():
    play = Play(config(daemon("a"), daemon("b")))
    play.step(Boot())
    play.now = 5
    assert play.settle("a", ok=False) == []
    assert notes(play.settle("b")) == [AllStarted(2, 1, 5)]


def test_settled_when_not_the_first_does_not_count():
    play = Play(config(daemon("a"), daemon("b")))
    play.step(Boot())
    play.step(DaemonSettled("a", ok=True, first=True))
    assert play.step(DaemonSettled("a", ok=True, first=False)) == []
    assert play.state.phase == BOOTING


# Hooks that fail.


@pytest.mark.parametrize("status", [256, 9, -1])
@pytest.mark.parametrize("phase", ["asap", "pre-jail", "in-jail", "as-root", "as-user"])
def test_hook_when_it_fails_ends_with_1(phase, status):
    play = Play(config(daemon("a"), hooks=(hook(phase, "bad"),)))
    play.step(Boot())
    done = play.step(HookEnded(status))
    assert notes(done)[0] == HookFailed(f"exec-{phase}", "bad", status, fatal=True)
    assert done[-1] == Finish(1)
    assert Tell("a", Start()) not in done


def test_exit_hook_when_it_fails_is_only_said():
    play = Play(config(hooks=(hook("as-user-atexit", "bad"),))).boot()
    play.step(Signalled(TERM))
    done = play.step(HookEnded(256))
    assert notes(done) == [
        HookFailed("exec-as-user-atexit", "bad", 256, fatal=False),
        MasterEnds(0),
    ]
    assert done[-1] == Finish(0)


def test_stop_during_a_hook_kills_it_and_starts_nothing():
    play = Play(config(daemon("a"), hooks=(hook("as-root"), hook("as-user"))))
    play.step(Boot())
    done = play.step(Signalled(TERM))
    assert KillHook() in done
    assert Finish(0) not in done
    assert acts(play.step(HookEnded(9))) == [Finish(0)]


@pytest.mark.parametrize(("phase", "cleans"), [("as-root", False), ("as-user", True)])
def test_stop_before_the_drop_runs_no_exit_hook(phase, cleans):
    """What is for the unprivileged user must not run as root."""
    play = Play(config(hooks=(hook(phase), hook("as-user-atexit")), user="www"))
    play.step(Boot())
    play.step(Signalled(TERM))
    done = play.step(HookEnded(9))
    assert (RunHook(play.spec.hooks[1]) in done) == cleans
    assert (Finish(0) in done) == (not cleans)


def test_advance_when_a_hook_runs_does_not_start_the_next():
    play = Play(config(daemon("a"), hooks=(hook("as-user-atexit"), hook("as-user-atexit")))).boot()
    play.step(Signalled(TERM))
    assert RunHook(play.spec.hooks[0]) in play.down("a")
    assert play.step(DaemonSettled("a", ok=False, first=True)) == []


@pytest.mark.parametrize(
    ("fields", "cleans"), [({}, True), ({"user": "www", "master_as_root": True}, True)]
)
def test_hook_that_fails_where_no_privileges_are_dropped_is_followed_by_exit_hooks(fields, cleans):
    play = Play(config(hooks=(hook("asap"), hook("as-user-atexit", "clean")), **fields))
    play.step(Boot())
    assert (RunHook(play.spec.hooks[1]) in play.step(HookEnded(256))) == cleans


def test_hook_when_safe_and_it_fails_is_only_said():
    safe = Exec(Command("x", ("x",)), safe=True)
    play = Play(config(hooks=(hook("asap", "x", safe), hook("asap", "y"))))
    play.step(Boot())
    done = play.step(HookEnded(256))
    assert notes(done)[0] == HookFailed("exec-asap", "x", 256, fatal=False)
    assert acts(done) == [RunHook(play.spec.hooks[1])]


def test_hook_when_private_keeps_its_text_out_of_the_notes():
    play = Play(config(hooks=(hook("asap", "secret", MakeDirectory("/secret"), private=True),)))
    assert notes(play.step(Boot())) == [HookRuns("exec-asap", "(private)")]
    failed = notes(play.step(HookEnded(256, "mkdir /x: refused")))[0]
    assert failed == HookFailed("exec-asap", "(private)", 256, True, "mkdir /x: refused")


def test_hook_that_prints_is_said_and_waits_for_nothing():
    play = Play(config(hooks=(hook("asap", "p", Print("hello")), hook("asap", "x"))))
    done = play.step(Boot())
    assert notes(done) == [
        HookRuns("exec-asap", "p"),
        HookPrints("hello"),
        HookRuns("exec-asap", "x"),
    ]
    assert acts(done) == [RunHook(play.spec.hooks[1])]


@pytest.mark.parametrize("phase", ["asap", "as-root", "as-user"])
def test_exit_hook_at_the_start_ends_with_its_code(phase):
    play = Play(config(daemon("a"), hooks=(hook(phase, "e", Exit(5)), hook("as-user", "x"))))
    done = play.step(Boot())
    assert done[-1] == Finish(5)
    assert Tell("a", Start()) not in done
    assert not [action for action in done if isinstance(action, RunHook)]


def test_exit_hook_at_the_end_leaves_out_those_after_it():
    hooks = (hook("as-user-atexit", "e", Exit(42)), hook("as-user-atexit", "x"))
    play = Play(config(daemon("a"), hooks=hooks)).boot()
    play.step(Signalled(TERM))
    assert acts(play.down("a")) == [Finish(42)]


def test_hook_of_post_jail_is_not_the_masters_business():
    play = Play(config(hooks=(hook("post-jail"),)))
    assert not [action for action in play.step(Boot()) if isinstance(action, RunHook)]


# Hooks that a file sets off.


def test_touch_hook_runs_when_its_file_changes():
    play = Play(config(daemon("a"), hooks=(hook("touch", "t"),))).boot()
    touch = play.spec.hooks[0]
    assert acts(play.step(HookTouched(touch))) == [RunHook(touch)]
    assert play.step(HookEnded(0)) == []
    assert play.state.phase == RUNNING


def test_touch_hook_when_it_fails_is_only_said():
    play = Play(config(daemon("a"), hooks=(hook("touch", "t"),))).boot()
    play.step(HookTouched(play.spec.hooks[0]))
    assert notes(play.step(HookEnded(256))) == [HookFailed("exec-touch", "t", 256, fatal=False)]
    assert play.state.phase == RUNNING


def test_touch_hook_when_touched_while_it_runs_runs_once_more():
    play = Play(config(daemon("a"), hooks=(hook("touch", "t"), hook("touch", "u")))).boot()
    first, second = play.spec.hooks
    play.step(HookTouched(first))
    for event in (HookTouched(second), HookTouched(first), HookTouched(first)):
        assert play.step(event) == []
    assert acts(play.step(HookEnded(0))) == [RunHook(second)]
    assert acts(play.step(HookEnded(0))) == [RunHook(first)]
    assert play.step(HookEnded(0)) == []


def test_touch_hook_before_everything_runs_is_left_out():
    play = Play(config(daemon("a"), hooks=(hook("touch", "t"),)))
    play.step(Boot())
    assert play.step(HookTouched(play.spec.hooks[0])) == []
    assert AllStarted(1, 0, 0) in notes(play.settle("a"))
    assert play.state.hook is None


def test_touch_hook_that_runs_does_not_hold_up_a_reload_but_its_start():
    play = Play(config(daemon("a"), hooks=(hook("touch", "t"),))).boot()
    play.step(HookTouched(play.spec.hooks[0]))
    play.step(Signalled(HUP))
    assert acts(play.load(config(daemon("a")))) == [TellAll(Reload())]
    play.down("a")
    play.settle("a")
    assert notes(play.step(HookEnded(0))) == [MasterReloaded(0)]
    assert play.state.phase == RUNNING


def test_stop_during_a_touch_hook_kills_it_and_forgets_the_others():
    play = Play(config(daemon("a"), hooks=(hook("touch", "t"), hook("touch", "u")))).boot()
    play.step(HookTouched(play.spec.hooks[0]))
    play.step(HookTouched(play.spec.hooks[1]))
    assert KillHook() in play.step(Signalled(TERM))
    play.down("a")
    assert acts(play.step(HookEnded(9))) == [Finish(0)]


# Reload.


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Signalled(HUP), "SIGHUP"),
        (FifoByte("r"), "master-fifo r"),
        (ReloadTouched("/x"), "touch-reload /x"),
    ],
)
def test_reload_reads_the_files_before_anything_else(event, why):
    play = Play(config(daemon("a"))).boot()
    assert play.step(event) == [SayMaster(MasterReloads(why, brutal=False)), LoadConfig()]
    assert play.state.phase == RUNNING


def test_reload_when_refused_changes_nothing():
    play = Play(config(daemon("a"))).boot()
    before = play.state
    play.step(Signalled(HUP))
    assert play.step(LoadRefused()) == []
    assert play.state == before


def test_reload_starts_each_daemon_when_its_old_one_is_gone():
    play = Play(config(daemon("a"), daemon("b"))).boot()
    play.step(Signalled(HUP))
    assert acts(play.load(play.spec)) == [TellAll(Reload())]
    assert play.state.phase == RELOADING
    assert play.down("b") == [Tell("b", Start())]
    assert play.settle("b") == []
    assert play.down("a") == [Tell("a", Start())]
    play.now = 7
    assert play.settle("a") == [SayMaster(MasterReloaded(7))]
    assert play.state.phase == RUNNING
    assert play.state.alive == 2


def test_reload_when_daemons_are_added_and_removed_starts_and_forgets_them():
    play = Play(config(daemon("a"), daemon("old"))).boot()
    play.step(Signalled(HUP))
    assert acts(play.load(config(daemon("new"), daemon("a")))) == [
        TellAll(Reload()),
        Tell("new", Start()),
    ]
    assert play.down("old") == [Forget("old")]
    assert play.state.alive == 2
    play.down("a")
    play.settle("new")
    assert notes(play.settle("a")) == [MasterReloaded(0)]


def test_reload_does_not_wait_for_removed_daemons():
    play = Play(config(daemon("a"), daemon("old"))).boot()
    play.step(Signalled(HUP))
    play.load(config(daemon("a")))
    play.down("a")
    play.settle("a")
    assert play.state.phase == RUNNING
    assert play.down("old") == [Forget("old")]


def test_reload_when_nothing_is_left_to_run_is_done_at_once():
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(HUP))
    assert notes(play.load(config())) == [MasterReloaded(0)]
    assert play.down("a") == [Forget("a")]
    assert play.step(Signalled(TERM))[-1] == Finish(0)


def test_reload_when_brutal_kills_but_is_followed_by_the_next():
    play = Play(config(daemon("a"))).boot()
    assert MasterReloads("master-fifo R", brutal=True) in notes(play.step(FifoByte("R")))
    assert acts(play.load(play.spec)) == [TellAll(Kill()), TellAll(Reload())]
    play.down("a")
    play.settle("a")
    play.step(FifoByte("r"))
    assert acts(play.load(play.spec)) == [TellAll(Reload())]


@pytest.mark.parametrize(("user", "hooks"), [(None, [1, 2]), ("www", [2])])
def test_reload_with_hooks_runs_them_between_the_last_end_and_the_first_start(user, hooks):
    phases = ("asap", "as-root", "as-user", "as-user-atexit")
    play = Play(config(daemon("a"), daemon("b"), user=user)).boot()
    play.step(Signalled(HUP))
    new = config(daemon("a"), daemon("b"), user=user, hooks=tuple(map(hook, phases)))
    assert acts(play.load(new)) == [TellAll(Reload())]
    assert play.down("a") == []
    done = acts(play.down("b"))
    for index in hooks:
        assert done == [RunHook(play.spec.hooks[index])]
        done = acts(play.step(HookEnded(0)))
    assert done == [Tell("a", Start()), Tell("b", Start())]
    assert notes(play.settle("a", "b")) == [MasterReloaded(0)]


def test_reload_when_a_hook_fails_stops_with_1():
    play = Play(config()).boot()
    play.step(Signalled(HUP))
    play.load(config(hooks=(hook("as-user"),)))
    assert play.step(HookEnded(256))[-1] == Finish(1)


def test_reload_when_booting_is_remembered():
    play = Play(config(daemon("a")))
    play.step(Boot())
    assert play.step(Signalled(HUP)) == []
    assert play.settle("a")[-2:] == [
        SayMaster(MasterReloads("asked for meanwhile", brutal=False)),
        LoadConfig(),
    ]
    assert not play.state.again


def test_reload_brutal_when_booting_is_remembered_as_brutal():
    play = Play(config(daemon("a")))
    play.step(Boot())
    assert play.step(FifoByte("R")) == play.step(Signalled(HUP)) == []
    note = MasterReloads("asked for meanwhile", brutal=True)
    assert play.settle("a")[-2:] == [SayMaster(note), LoadConfig()]
    assert play.load(play.spec)[:1] == [TellAll(Kill())]


def test_reload_when_reloading_is_remembered_once():
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(HUP))
    play.load(play.spec)
    assert play.step(Signalled(HUP)) == play.step(FifoByte("r")) == []
    play.down("a")
    assert LoadConfig() in play.settle("a")
    play.load(play.spec)
    play.down("a")
    assert LoadConfig() not in play.settle("a")


def test_reload_when_the_files_are_being_read_is_remembered_unless_refused():
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(HUP))
    assert play.step(Signalled(HUP)) == []
    assert play.state.again
    play.step(LoadRefused())
    assert not play.state.again


@pytest.mark.parametrize(
    "event", [Signalled(HUP), FifoByte("r"), FifoByte("R"), ReloadTouched("/")]
)
def test_reload_when_exit_on_reload_stops(event):
    play = Play(config(exit_on_reload=True)).boot()
    assert play.step(event)[-1] == Finish(0)


def test_reload_when_stopping_is_ignored_aloud():
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(TERM))
    assert play.step(Signalled(HUP)) == [
        SayMaster(MasterIgnores("reload (SIGHUP)", "it is stopping"))
    ]


def test_loaded_when_stopping_starts_nothing():
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(HUP))
    play.step(Signalled(TERM))
    assert play.load(config(daemon("a"), daemon("new"))) == []


# Order.


@pytest.mark.parametrize("key", ["after", "requires"])
def test_dependent_when_the_other_is_ready_is_started(key):
    play = Play(config(daemon("b", **{key: ("a",)}), daemon("a"), daemon("c", after=("b",))))
    assert [action.name for action in play.step(Boot()) if isinstance(action, Tell)] == ["a"]
    assert play.settle("a") == [Tell("b", Start())]
    assert play.settle("b") == [Tell("c", Start())]
    assert notes(play.settle("c")) == [AllStarted(3, 0, 0)]
    assert play.state.alive == 3


def test_dependent_when_the_other_fails_waits_until_it_is_up_later():
    play = Play(config(daemon("a"), daemon("b", requires=("a",)), daemon("c", after=("b",))))
    play.step(Boot())
    assert notes(play.settle("a", ok=False)) == []  # c has to wait for the outcome of b
    play.daemons["a"] = UP
    assert play.step(DaemonSettled("a", ok=True, first=False)) == [Tell("b", Start())]


def test_ready_does_not_wait_for_what_requires_a_daemon_that_failed():
    play = Play(config(daemon("a"), daemon("b", requires=("a",))))
    play.step(Boot())
    assert notes(play.settle("a", ok=False)) == [AllStarted(2, 2, 0)]
    play.daemons["a"] = UP
    assert play.step(DaemonSettled("a", ok=True, first=False)) == [Tell("b", Start())]
    assert (play.state.unsettled, play.state.blocked) == (1, ())


@pytest.mark.parametrize("key", ["after", "wants"])
def test_dependent_when_the_other_fails_and_is_not_required_is_started(key):
    play = Play(config(daemon("a"), daemon("b", **{key: ("a",)})))
    play.step(Boot())
    assert play.settle("a", ok=False) == [Tell("b", Start())]


@pytest.mark.parametrize("state", [UP.replace(ready=False), Starting(1, 0, 1), Down(1)])
def test_dependent_when_one_of_two_is_not_ready_waits(state):
    play = Play(config(daemon("a"), daemon("x"), daemon("b", requires=("a", "x"))))
    play.step(Boot())
    play.daemons["x"] = state
    assert play.settle("a") == []


def test_reload_of_daemons_with_an_order_ends_them_in_reverse_and_starts_them_again():
    play = Play(config(daemon("a"), daemon("b", after=("a",)))).boot()
    play.step(Signalled(HUP))
    assert play.load(play.spec) == [Tell("b", Reload())]
    assert play.down("b") == [Tell("a", Reload())]
    assert play.down("a") == [Tell("a", Start())]
    assert play.settle("a") == [Tell("b", Start())]
    assert play.state.alive == 2


def test_stop_of_daemons_with_an_order_ends_them_in_reverse():
    chain = (daemon("a"), daemon("b", requires=("a",)), daemon("x"), daemon("c", wants=("b",)))
    play = Play(config(*chain)).boot()
    assert acts(play.step(Signalled(TERM))) == [Tell("c", Stop()), Tell("x", Stop())]
    assert play.down("x") == []
    assert play.down("c") == [Tell("b", Stop())]
    assert play.down("b") == [Tell("a", Stop())]
    assert play.down("a")[-1] == Finish(0)


def test_second_stop_of_daemons_with_an_order_kills_them_all_at_once():
    play = Play(config(daemon("a"), daemon("b", after=("a",)))).boot()
    play.step(Signalled(TERM))
    assert acts(play.step(Signalled(TERM))) == [TellAll(Kill())]
    assert play.down("b") == []
    assert play.down("a")[-1] == Finish(0)


def test_dependents_of_a_daemon_that_is_given_up_are_ended_or_not_started():
    chain = (daemon("a"), daemon("b", requires=("a",)), daemon("c", requires=("b",)))
    play = Play(config(*chain)).boot()
    play.daemons["a"] = Over(1, "failed", 256)
    done = play.step(DaemonConcluded("a", failed=True, status=256))
    assert notes(done) == [DaemonNeeds("b", "a", True), DaemonNeeds("c", "a", True)]
    assert acts(done) == [Tell("c", Halt())]
    assert play.down("c") == [Tell("b", Halt())]
    assert play.down("b") == []
    assert play.state.alive == 0
    assert play.state.phase == RUNNING


def test_given_up_before_it_was_ready_lets_its_dependents_not_start():
    play = Play(config(daemon("a"), daemon("b", requires=("a",))))
    play.step(Boot())
    assert notes(play.settle("a", ok=False)) == [AllStarted(2, 2, 0)]
    play.daemons["a"] = Over(1, "failed", None)
    done = play.step(DaemonConcluded("a", failed=True, status=None))
    assert notes(done) == [DaemonNeeds("b", "a", False)]
    assert (play.state.waiting, play.state.alive) == ((), 0)


@pytest.mark.parametrize(("status", "code"), [(3 << 8, 3), (9, 137), (None, 1), (0, 1)])
def test_given_up_with_on_give_up_exit_ends_the_master_with_its_code(status, code):
    play = Play(config(daemon("a", on_give_up="exit"), daemon("b"))).boot()
    play.daemons["a"] = Over(1, "failed", status)
    done = play.step(DaemonConcluded("a", failed=True, status=status))
    assert TellAll(Stop()) in done
    assert play.down("b")[-1] == Finish(code)


def test_oneshot_that_is_done_lets_those_that_require_it_start():
    play = Play(config(daemon("a", kind="oneshot"), daemon("b", requires=("a",))))
    play.step(Boot())
    play.daemons["a"] = Over(1, "done", 0)
    assert play.step(DaemonSettled("a", ok=True, first=True)) == [Tell("b", Start())]
    assert play.step(DaemonConcluded("a", failed=False, status=0)) == []
    assert play.state.alive == 1


# What people ask of single daemons.


def ask(play, verb, *names):
    return acts(play.step(Asked(verb, names)))


def test_asked_to_stop_one_holds_it_over_a_reload_until_it_is_started():
    play = Play(config(daemon("a"), daemon("b"))).boot()
    assert ask(play, "stop", "a") == [Tell("a", Halt())]
    assert play.down("a") == []
    play.step(Signalled(HUP))
    assert play.load(play.spec) == [TellAll(Reload())]
    assert play.down("b") == [Tell("b", Start())]
    assert notes(play.settle("b")) == [MasterReloaded(0)]
    assert ask(play, "start", "a") == [Tell("a", Start())]
    assert play.settle("a") == []
    assert (play.state.alive, play.state.held) == (2, ())


def test_asked_to_start_what_runs_changes_nothing():
    play = Play(config(daemon("a"))).boot()
    before = play.state
    assert ask(play, "start", "a") == []
    assert play.state == before


def test_asked_to_start_what_is_stopping_brings_it_back():
    play = Play(config(daemon("a"))).boot()
    ask(play, "stop", "a")
    play.daemons["a"] = going()
    assert ask(play, "start", "a") == [Tell("a", Start())]
    assert play.state.alive == 1


def test_asked_to_start_what_came_back_holds_nothing_up():
    play = Play(config(daemon("a"), daemon("b", after=("a",)))).boot()
    ask(play, "stop", "b")
    play.daemons["b"] = going()
    assert ask(play, "start", "b") == [Tell("b", Start())]
    play.daemons["b"] = UP
    assert ask(play, "stop", "a") == [Tell("a", Halt())]


def test_asked_to_start_what_is_to_stop_in_its_turn_keeps_it():
    play = Play(config(daemon("a"), daemon("b", after=("a",)))).boot()
    assert ask(play, "stop", "a", "b") == [Tell("b", Halt())]
    assert ask(play, "start", "a") == []
    assert play.down("b") == []


def test_asked_to_restart_what_is_to_stop_in_its_turn_brings_it_back():
    play = Play(config(daemon("a"), daemon("b", after=("a",)))).boot()
    assert ask(play, "stop", "a", "b") == [Tell("b", Halt())]
    assert ask(play, "restart", "a") == []
    assert play.down("b") == [Tell("a", Halt())]
    assert play.down("a") == [Tell("a", Start())]


def test_asked_to_restart_what_is_stopping_before_it_came_up_brings_it_back():
    play = Play(config(daemon("a"), daemon("b", after=("a",))))
    play.step(Boot())
    assert ask(play, "stop", "a") == [Tell("a", Halt())]
    play.daemons["a"] = going()
    assert ask(play, "restart", "a") == [Tell("a", Restart())]


def test_asked_to_restart_does_not_wait_for_what_somebody_stopped():
    play = Play(config(daemon("a"), daemon("b", requires=("a",)))).boot()
    ask(play, "stop", "b")
    play.daemons["b"] = going()
    ask(play, "restart", "a")
    assert play.down("b") == [Tell("a", Halt())]
    assert play.down("a") == [Tell("a", Start())]
    assert play.settle("a") == []
    assert play.state.unsettled == 0


@pytest.mark.parametrize("verb", ["start", "restart"])
@pytest.mark.parametrize("over", [True, False])
def test_asked_to_start_what_a_reload_ends_and_does_not_start_brings_it_back(verb, over):
    play = Play(config(daemon("a"), daemon("b"))).boot()
    ask(play, "stop", "a")
    play.daemons["a"] = going()
    play.step(Signalled(HUP))
    play.load(play.spec)
    play.daemons |= {"a": going("reloaded"), "b": going("reloaded")}
    assert play.down("b") == [Tell("b", Start())]
    if over:
        play.settle("b")
    assert ask(play, verb, "a") == []
    assert play.down("a") == [Tell("a", Start())]
    play.settle("a")
    if not over:
        assert play.state.phase == RELOADING
        play.settle("b")
    assert (play.state.phase, play.state.unsettled) == (RUNNING, 0)


def test_lord_when_a_reload_ends_a_daemon_of_the_legion_starts_the_next_one():
    play = Play(config(daemon("a", legion="l"), daemon("b")))
    play.step(Boot())
    play.settle("b")
    play.daemons["a"] = going("reloaded")
    play.state = play.state.replace(alive=2)
    assert play.step(LordChanged("l", lord=True)) == []
    assert play.down("a") == [Tell("a", Start())]
    play.settle("a")
    assert play.state.unsettled == 0


def test_asked_to_start_starts_what_it_requires_first():
    play = Play(config(daemon("a"), daemon("b", requires=("a",)))).boot()
    ask(play, "stop", "a")
    assert play.down("b") == [Tell("a", Halt())]
    play.down("a")
    assert ask(play, "start", "b") == [Tell("a", Start())]
    assert play.settle("a") == [Tell("b", Start())]
    assert play.settle("b") == []
    assert play.state.alive == 2


def test_asked_to_restart_restarts_what_requires_it_in_order():
    play = Play(config(daemon("a"), daemon("b", requires=("a",)), daemon("c"))).boot()
    assert ask(play, "restart", "a") == [Tell("b", Halt())]
    assert play.down("b") == [Tell("a", Halt())]
    assert play.down("a") == [Tell("a", Start())]
    assert play.settle("a") == [Tell("b", Start())]
    assert play.settle("b") == []
    assert play.state == Play(play.spec).boot().state


def test_asked_to_restart_one_alone_or_what_is_down():
    play = Play(config(daemon("a"), daemon("b"))).boot()
    assert ask(play, "restart", "a") == [Tell("a", Restart())]
    ask(play, "stop", "b")
    play.down("b")
    assert ask(play, "try-restart", "b") == []
    assert ask(play, "restart", "b") == [Tell("b", Start())]
    assert play.state.held == ()


def test_asked_to_start_what_was_given_up_or_is_done_starts_it():
    play = Play(config(daemon("a"))).boot()
    play.daemons["a"] = Over(1, "failed", 256)
    play.step(DaemonConcluded("a", failed=True, status=256))
    assert play.state.alive == 0
    assert ask(play, "reset-failed", "a") == [Tell("a", Reset())]
    assert ask(play, "start", "a") == [Tell("a", Start())]
    assert play.state.alive == 1


def test_asked_to_stop_one_that_waits_starts_it_no_more():
    play = Play(config(daemon("a"), daemon("b", requires=("a",))))
    play.step(Boot())
    assert ask(play, "stop", "b") == []
    assert notes(play.settle("a")) == [AllStarted(1, 0, 0)]


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "reset-failed"])
def test_asked_while_it_stops_is_ignored_aloud(verb):
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(TERM))
    done = play.step(Asked(verb, ("a",)))
    assert notes(done) == [MasterIgnores(f"{verb} a (control)", "it is stopping")]
    assert acts(done) == []


def test_asked_for_the_master_is_as_its_signals():
    play = Play(config(daemon("a"))).boot()
    assert play.step(Asked("reload")) == [
        SayMaster(MasterReloads("reload (control)", False)),
        LoadConfig(),
    ]
    play.step(LoadRefused())
    assert play.step(Asked("shutdown"))[-1] == TellAll(Stop())
    assert play.step(Asked("kill"))[-1] == TellAll(Kill())


def test_stop_when_one_still_waits_starts_it_no_more():
    play = Play(config(daemon("a"), daemon("b", after=("a",))))
    play.step(Boot())
    play.step(Signalled(TERM))
    play.daemons["a"] = UP
    assert play.step(DaemonSettled("a", ok=True, first=True)) == []
    assert play.down("a")[-1] == Finish(0)


# Smart daemons.


SMART = daemon("s", pidfile="/s")


def test_stop_counts_smart_daemons_as_left_running():
    play = Play(config(daemon("a"), SMART, daemon("t", pidfile="/t"))).boot()
    done = play.step(Signalled(TERM))
    assert done == [SayMaster(MasterStops("SIGTERM", 1, 2)), TellAll(Stop())]
    assert acts(play.down("s", "t")) == []  # at once
    assert acts(play.down("a")) == [Finish(0)]


def test_stop_with_smart_daemons_only_ends_once_they_are_let_go():
    play = Play(config(SMART)).boot()
    assert notes(play.step(Signalled(TERM))) == [MasterStops("SIGTERM", 0, 1)]
    assert acts(play.down("s")) == [Finish(0)]


def test_reload_when_a_smart_daemon_is_let_go_at_once_looks_for_it_again():
    play = Play(config(daemon("a"), SMART)).boot()
    assert acts(play.step(Signalled(HUP))) == [LoadConfig()]
    assert acts(play.load(play.spec)) == [TellAll(Reload())]
    assert play.down("s") == [Tell("s", Start())]
    assert play.settle("s") == []
    assert play.down("a") == [Tell("a", Start())]
    assert [type(note) for note in notes(play.settle("a"))] == [MasterReloaded]


def test_reload_without_a_smart_daemon_forgets_it():
    play = Play(config(daemon("a"), SMART)).boot()
    play.step(Signalled(HUP))
    play.load(config(daemon("a")))
    assert Forget("s") in play.down("s")


def test_ready_waits_for_the_pidfile_of_a_smart_daemon():
    play = Play(config(daemon("a"), SMART, daemon("b", after=("s",))))
    play.step(Boot())
    assert acts(play.settle("a")) == []
    assert play.state.phase == BOOTING
    assert acts(play.settle("s")) == [Tell("b", Start())]
    assert Announce() in play.settle("b")


def test_ready_when_another_master_holds_a_smart_daemon_does_not_wait_for_it():
    play = Play(config(SMART))
    play.step(Boot())
    play.daemons["s"] = Looking(1, 0, held=True)
    done = play.step(DaemonSettled("s", ok=False, first=True))
    assert notes(done) == [AllStarted(1, 1, 0)]


# Stop and exit code.


@pytest.mark.parametrize("number", [TERM, INT, QUIT])
def test_stop_waits_for_all_and_ends_with_0(number):
    play = Play(config(daemon("a"), daemon("b"), hooks=(hook("as-user-atexit"),))).boot()
    done = play.step(Signalled(number))
    assert done == [SayMaster(MasterStops(master.NAMES[number], 2)), TellAll(Stop())]
    assert play.state.phase == STOPPING
    assert play.down("b") == []
    assert acts(play.down("a")) == [RunHook(play.spec.hooks[0])]
    assert play.step(HookEnded(0)) == [SayMaster(MasterEnds(0)), Finish(0)]
    assert play.state.phase == ENDED


def test_second_stop_kills_and_third_says_nothing():
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(TERM))
    assert play.step(Signalled(INT)) == [SayMaster(MasterKills("SIGINT")), TellAll(Kill())]
    assert play.step(Signalled(INT)) == []
    assert play.down("a")[-1] == Finish(0)


def test_further_stops_kill_each_hook_that_hangs():
    play = Play(config(hooks=(hook("as-user-atexit"), hook("as-user-atexit")))).boot()
    play.step(Signalled(TERM))
    assert KillHook() in play.step(Signalled(TERM))
    assert acts(play.step(HookEnded(9))) == [RunHook(play.spec.hooks[1])]
    assert play.step(Signalled(TERM)) == [KillHook()]
    assert play.step(HookEnded(9))[-1] == Finish(0)


def test_term_when_die_on_term_is_false_reloads_brutally_and_does_not_kill_a_stop():
    play = Play(config(daemon("a"), die_on_term=False)).boot()
    assert LoadConfig() in play.step(Signalled(TERM))
    assert play.state.brutal
    play.step(LoadRefused())
    play.step(Signalled(INT))
    assert TellAll(Kill()) in play.step(Signalled(TERM))


@pytest.mark.parametrize(
    ("status", "code"), [(0, 0), (256, 1), (255 << 8, 255), (9, 137), (11 | 0x80, 139)]
)
def test_control_when_it_ends_gives_the_exit_code(status, code):
    assert exit_code(status) == code
    play = Play(config(daemon("c", control=True), daemon("a"))).boot()
    done = play.step(DaemonEnded("c", status))
    assert done == [SayMaster(MasterStops("c has ended", 1)), TellAll(Stop())]
    play.down("c")
    assert play.down("a")[-1] == Finish(code)


def test_control_when_two_end_gives_the_first_code_and_kills_nothing():
    play = Play(config(daemon("c"), daemon("d"), daemon("a"))).boot()
    play.step(DaemonEnded("c", 256))
    play.down("c")
    assert play.step(DaemonEnded("d", 512)) == []
    play.down("d")
    assert play.down("a")[-1] == Finish(1)


def test_control_when_a_stop_was_asked_for_does_not_change_the_code():
    play = Play(config(daemon("c"))).boot()
    play.step(Signalled(TERM))
    assert play.step(DaemonEnded("c", 256)) == []
    assert play.down("c")[-1] == Finish(0)


def test_first_request_when_a_control_daemon_has_ended_gives_patience():
    play = Play(config(daemon("c"), daemon("a"))).boot()
    play.step(DaemonEnded("c", 0))
    assert notes(play.step(Signalled(TERM))) == [MasterIgnores("SIGTERM", "it is stopping already")]
    assert TellAll(Kill()) in play.step(Signalled(TERM))


def test_abandoned_daemon_makes_it_125():
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(TERM))
    assert play.down("a", abandoned=True)[-1] == Finish(125)


def test_abandoned_daemon_does_not_hide_the_code_of_a_control_daemon():
    play = Play(config(daemon("c"), daemon("a"))).boot()
    play.step(DaemonEnded("c", 3 << 8))
    play.down("c")
    assert play.down("a", abandoned=True)[-1] == Finish(3)


@pytest.mark.parametrize("event", [Signalled(TERM), DaemonEnded("a", 256), FifoByte("Q")])
def test_ended_when_asked_again_does_nothing(event):
    play = Play(config(daemon("a"))).boot()
    play.step(Signalled(TERM))
    play.down("a")
    before = play.state
    assert play.step(event) == []
    assert play.state == before


# Signals and the FIFO.


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("s", [SayStats()]),
        ("l", [ReopenLogs(rotate=False)]),
        ("L", [ReopenLogs(rotate=True)]),
        ("p", [SayMaster(MasterIgnores("master-fifo p", "there are no workers to pause"))]),
        *((str(slot), [SelectFifo(slot)]) for slot in range(10)),
        *((byte, []) for byte in "xzAC \n\0é²"),
    ],
)
def test_fifo_byte_does_what_uwsgi_does(command, actions):
    play = Play(config(daemon("a"))).boot()
    before = play.state
    assert play.step(FifoByte(command)) == actions
    assert play.state == before


@pytest.mark.parametrize("user", [None, "www"])
def test_fifo_pidfile_writes_those_that_can_be_written_now(user):
    play = Play(config(user=user)).boot()
    assert play.step(FifoByte("P")) == [WritePidfiles(dropped=user is not None)]


def test_fifo_quit_stops_and_force_quit_kills():
    play = Play(config(daemon("a"))).boot()
    assert acts(play.step(FifoByte("q"))) == [TellAll(Stop())]
    assert acts(play.step(FifoByte("Q"))) == [TellAll(Kill())]
    play = Play(config(daemon("a"))).boot()
    assert acts(play.step(FifoByte("Q"))) == [TellAll(Stop()), TellAll(Kill())]
    play = Play(config()).boot()
    assert acts(play.step(FifoByte("Q")))[-1] == Finish(0)


def test_fifo_force_quit_when_a_control_daemon_has_ended_kills():
    play = Play(config(daemon("c"), daemon("a"))).boot()
    play.step(DaemonEnded("c", 0))
    assert TellAll(Kill()) in play.step(FifoByte("Q"))


@pytest.mark.parametrize(("number", "actions"), [(USR1, [SayStats()]), (12, []), (64, [])])
def test_signal_when_it_changes_nothing(number, actions):
    play = Play(config(daemon("a"))).boot()
    before = play.state
    assert play.step(Signalled(number)) == actions
    assert play.state == before


# Totality.

EVENTS = (
    Boot(),
    Signalled(TERM),
    Signalled(HUP),
    FifoByte("Q"),
    ReloadTouched("/"),
    Loaded(),
    LoadRefused(),
    HookEnded(0),
    HookEnded(9),
    HookTouched(hook("touch")),
    DaemonSettled("a", ok=True, first=True),
    DaemonDown("a"),
    DaemonDown("a", abandoned=True),
    DaemonEnded("a", 256),
    DaemonConcluded("a", failed=True, status=256),
    DaemonConcluded("a", failed=False, status=0),
    LordChanged("l", lord=True),
    LordChanged("l", lord=False, why="why"),
    Asked("start", ("a", "gone")),
    Asked("stop", ("a",)),
    Asked("restart", ("a",)),
    Asked("try-restart", ("a",)),
    Asked("reset-failed", ("a",)),
    Asked("reload"),
    Asked("shutdown"),
    Asked("kill"),
    Asked("apply"),
    Applied(("a",), (), ()),
    Applied((), ("a", "gone"), ()),
    Applied((), (), ("a",)),
)


def test_events_has_every_class():
    assert {type(event) for event in EVENTS} == set(get_args(events.MasterEvent))


@pytest.mark.parametrize("phase", [BOOTING, RUNNING, RELOADING, STOPPING, ENDED])
@pytest.mark.parametrize("event", EVENTS, ids=repr)
def test_step_when_any_event_meets_any_phase_answers(phase, event):
    play = Play(config(daemon("a"), hooks=(hook("as-user"),)), a=UP)
    running = hook("as-user") if isinstance(event, HookEnded) else None
    play.state = Master(phase=phase, alive=1, unsettled=1, hook=running)
    for action in play.step(event):
        assert isinstance(action, get_args(events.MasterAction))
