"""What the process outside a jail decides."""

from __future__ import annotations

import pytest

from lowsuper.command import parse_command
from lowsuper.events import (
    Announce,
    Boot,
    FifoByte,
    Finish,
    HookEnded,
    KillHook,
    LoadConfig,
    Loaded,
    LoadRefused,
    RunHook,
    Signalled,
    WritePidfiles,
)
from lowsuper.jail import (
    JailAsksReload,
    JailEnded,
    JailEntered,
    JailReady,
    JailTimer,
    KillJail,
    LetJailGo,
    MakeJail,
    Outside,
    SayLine,
    SetJailTimer,
    SignalJail,
    build_inner,
    step,
)
from lowsuper.model import DaemonSpec, Exec, Exit, Hook, Jail, MasterSpec, Origin, Print
from lowsuper.units import SECOND

SIGHUP, SIGINT, SIGUSR1, SIGTERM = 1, 2, 10, 15
SPEC = MasterSpec(name="test", jail=Jail("/x"))
KILLED = JailEnded(9)


def hook(phase, deed=None):
    deed = deed or Exec(parse_command("true"))
    return Hook(phase, deed, Origin("f", 1, f"exec-{phase}", "true"))


class Play:
    """Steps with a clock; keeps what was done."""

    def __init__(self, spec=SPEC):
        self.spec, self.state, self.now = spec, Outside(), 0
        self.said = []

    def do(self, *events, after=0.0):
        """Return the actions of these events, but for what is said."""
        self.now += int(after * SECOND)
        done = []
        for event in events:
            self.state, actions = step(self.spec, self.state, event, self.now)
            self.said += [action.text for action in actions if isinstance(action, SayLine)]
            done += [action for action in actions if not isinstance(action, SayLine)]
        return done

    def start(self):
        self.do(Boot(), JailEntered(), JailReady())
        return self


def test_start_makes_the_jail_lets_it_go_and_announces_it_once():
    play = Play()
    assert play.do(Boot()) == [WritePidfiles(dropped=False), MakeJail()]
    assert play.do(JailEntered()) == [LetJailGo()]
    assert play.do(JailReady()) == [Announce()]
    assert play.do(JailReady()) == []


def test_hooks_run_outside_before_and_after_the_jail_is_made():
    hooks = tuple(map(hook, ("post-jail", "pre-jail", "asap", "in-jail", "as-root")))
    play = Play(SPEC.replace(hooks=hooks))
    assert play.do(Boot())[1:] == [RunHook(hooks[2])]
    assert play.do(HookEnded(0)) == [RunHook(hooks[1])]
    assert play.do(HookEnded(0)) == [MakeJail()]
    assert play.do(JailEntered()) == [RunHook(hooks[0])]
    assert play.do(HookEnded(0)) == [LetJailGo()]
    assert build_inner(play.spec).hooks == hooks[3:]


def test_failed_hook_outside_is_fatal():
    play = Play(SPEC.replace(hooks=(hook("asap"), hook("pre-jail"))))
    play.do(Boot())
    assert play.do(HookEnded(3 << 8)) == [SetJailTimer(None), Finish(1)]
    assert play.said[-1] == "exec-asap: true: exited with 3; stopping"


def test_failed_hook_after_the_jail_was_made_kills_it():
    play = Play(SPEC.replace(hooks=(hook("post-jail"),)))
    play.do(Boot(), JailEntered())
    assert play.do(HookEnded(256)) == [KillJail()]
    assert play.do(KILLED)[-1] == Finish(1)


def test_failed_safe_hook_is_not_fatal():
    play = Play(SPEC.replace(hooks=(hook("asap", Exec(parse_command("x"), safe=True)),)))
    play.do(Boot())
    assert play.do(HookEnded(256)) == [MakeJail()]


def test_hooks_that_print_and_exit():
    hooks = (hook("asap", Print("hello")), hook("pre-jail", Exit(4)))
    play = Play(SPEC.replace(hooks=hooks))
    assert play.do(Boot())[-1] == Finish(4)
    assert play.said[0] == "hello"


@pytest.mark.parametrize("code", [0, 1, 7])
def test_jail_whose_master_finished_ends_everything(code):
    assert Play().start().do(JailEnded(code << 8, code))[-1] == Finish(code)


def test_jail_that_could_not_be_made_at_the_start_is_fatal():
    play = Play()
    play.do(Boot())
    assert play.do(JailEnded(125 << 8, 125, "no"))[-1] == Finish(125)
    assert play.said[-1] == "no"


def test_jail_that_dies_is_made_again_after_growing_pauses():
    play = Play().start()
    pauses = []
    for _ in range(4):
        (_, timer) = play.do(KILLED, after=1)
        pauses.append((timer.at - play.now) / SECOND)
        assert play.do(JailTimer(), after=pauses[-1]) == [MakeJail()]
        play.do(JailEntered(), JailReady())
    assert pauses == [1, 1, 2, 3]
    # One that has run for long is made again at once.
    assert play.do(KILLED, after=40) == [SetJailTimer(None), MakeJail()]


def test_jail_that_cannot_be_made_again_is_tried_again():
    play = Play().start()
    play.do(KILLED, JailTimer())
    assert isinstance(play.do(JailEnded(125 << 8, 125, "no"))[-1], SetJailTimer)
    assert play.do(JailTimer()) == [MakeJail()]


def test_stop_is_passed_on_and_a_second_one_by_another_signal_with_a_deadline():
    play = Play().start()
    assert play.do(Signalled(SIGTERM)) == [SignalJail(SIGTERM)]
    assert play.do(Signalled(SIGTERM)) == [SignalJail(SIGINT), SetJailTimer(10 * SECOND)]
    assert play.do(JailTimer()) == [KillJail()]
    assert play.do(Signalled(SIGTERM)) == [KillJail()]
    assert play.do(KILLED)[-1] == Finish(137)


def test_stop_while_the_jail_is_entered_kills_it():
    play = Play()
    play.do(Boot())
    assert play.do(Signalled(SIGTERM)) == [KillJail()]
    assert play.do(KILLED)[-1] == Finish(137)


def test_stop_during_a_pause_ends_at_once():
    play = Play().start()
    play.do(KILLED)
    assert play.do(Signalled(SIGINT)) == [SetJailTimer(None), Finish(0)]
    assert play.do(JailTimer(), Signalled(SIGINT)) == []


def test_stop_during_a_hook_waits_for_its_end():
    play = Play(SPEC.replace(hooks=(hook("asap"),)))
    play.do(Boot())
    assert play.do(Signalled(SIGTERM)) == [KillHook()]
    assert play.do(HookEnded(9))[-1] == Finish(0)


def test_reload_reads_ends_the_jail_and_makes_a_new_one():
    play = Play().start()
    assert play.do(Signalled(SIGHUP)) == [LoadConfig()]
    assert play.do(Loaded()) == [SignalJail(SIGTERM)]
    assert play.do(JailEnded(0, 0)) == [SetJailTimer(None), MakeJail()]
    play.do(JailEntered(), JailReady())
    assert play.do(JailEnded(0, 0))[-1] == Finish(0)


def test_refused_reload_changes_nothing():
    play = Play().start()
    play.do(Signalled(SIGHUP))
    before = play.state
    assert play.do(LoadRefused()) == []
    assert play.state == before
    assert play.do(Signalled(SIGHUP)) == [LoadConfig()]


def test_stop_during_a_reload_does_not_ask_a_second_time():
    play = Play().start()
    play.do(Signalled(SIGHUP), Loaded())
    assert play.do(Signalled(SIGTERM)) == []
    assert play.do(JailEnded(0, 0))[-1] == Finish(0)


def test_reload_before_everything_is_up_comes_afterwards():
    play = Play()
    play.do(Boot())
    assert play.do(Signalled(SIGHUP)) == []
    assert play.do(JailEntered(), JailReady()) == [LetJailGo(), Announce(), LoadConfig()]


def test_reload_during_a_pause_makes_the_jail_at_once():
    play = Play().start()
    play.do(KILLED)
    assert play.do(Signalled(SIGHUP), Loaded()) == [LoadConfig(), SetJailTimer(None), MakeJail()]


def test_reload_asked_for_in_the_jail():
    assert Play().start().do(JailAsksReload()) == [LoadConfig()]


def test_brutal_reload_kills_the_jail():
    play = Play(SPEC.replace(die_on_term=False)).start()
    assert play.do(Signalled(SIGTERM), Loaded()) == [LoadConfig(), KillJail()]
    assert play.do(KILLED) == [SetJailTimer(None), MakeJail()]
    play.do(JailEntered(), JailReady())
    assert play.do(FifoByte("R"), Loaded()) == [LoadConfig(), KillJail()]


def test_reload_with_exit_on_reload_stops():
    play = Play(SPEC.replace(exit_on_reload=True)).start()
    assert play.do(Signalled(SIGHUP)) == [SignalJail(SIGTERM)]


def test_fifo_commands():
    play = Play().start()
    assert play.do(FifoByte("s")) == [SignalJail(SIGUSR1)]
    assert play.do(FifoByte("x"), FifoByte("p")) == []
    assert play.do(FifoByte("r")) == [LoadConfig()]
    assert Play().start().do(FifoByte("q")) == [SignalJail(SIGTERM)]
    assert Play().start().do(FifoByte("Q")) == [
        SignalJail(SIGTERM),
        SignalJail(SIGINT),
        SetJailTimer(10 * SECOND),
    ]


def test_jail_that_dies_during_a_hook_outside_is_made_again_once_that_is_dead():
    play = Play(SPEC.replace(hooks=(hook("post-jail"),)))
    play.do(Boot(), JailEntered())
    done = play.do(KILLED, after=60)
    assert KillHook() in done
    assert MakeJail() not in done
    assert MakeJail() not in play.do(JailTimer())
    assert play.do(HookEnded(9)) == []
    assert play.do(JailTimer()) == [MakeJail()]


def test_inner_configuration_has_nothing_of_what_is_outside():
    spec = SPEC.replace(
        chdir="srv",
        pidfile="/p",
        logto="/l",
        touch_reload=("/t",),
        master_fifo=("/f",),
        die_on_term=False,
    )
    inner = build_inner(spec)
    assert (inner.chdir, inner.pidfile, inner.logto) == ("/srv", None, None)
    assert (inner.touch_reload, inner.master_fifo, inner.die_on_term) == ((), (), True)


def test_jail_that_ends_with_the_pid_namespace_of_another_is_made_again():
    play = Play().start()
    assert play.do(JailEnded(0, 0, shared=True), after=10) == [SetJailTimer(None), MakeJail()]
    assert "ended with the pid namespace that it had joined" in play.said[-1]
    assert Play().start().do(JailEnded(0, 0), after=10)[-1] == Finish(0)
    assert Play().start().do(JailEnded(256, 1, shared=True), after=10)[-1] == Finish(1)
    control = DaemonSpec("a", parse_command("x"), Origin("f", 1, "", ""), control=True)
    play = Play(SPEC.replace(daemons=(control,))).start()
    assert play.do(JailEnded(0, 0, shared=True), after=10)[-1] == Finish(0)


def test_stop_of_a_jail_that_shares_a_pid_namespace_ends_everything():
    play = Play().start()
    play.do(Signalled(SIGTERM))
    assert play.do(JailEnded(0, 0, shared=True), after=10)[-1] == Finish(0)


def test_post_jail_hooks_are_run_outside_only_where_they_belong_there():
    hooks = (hook("post-jail"),)
    for where, wanted in (
        ("outside", RunHook(hooks[0])),
        ("inside", LetJailGo()),
        ("", LetJailGo()),
    ):
        jail = Jail(None, way="unshare", namespaces=(), post_jail=where)
        play = Play(SPEC.replace(hooks=hooks, jail=jail))
        play.do(Boot())
        assert play.do(JailEntered())[-1] == wanted


def test_inner_configuration_of_a_jail_without_a_root_keeps_directory_and_cgroups():
    spec = SPEC.replace(chdir="srv", jail=Jail(None, way="unshare", namespaces=("uts",)))
    inner = build_inner(spec)
    assert (inner.chdir, inner.kill_domain) == ("srv", "auto")
    inner = build_inner(spec.replace(jail=Jail("/x", way="chroot", namespaces=())))
    assert (inner.chdir, inner.kill_domain) == ("/srv", "shim")
