"""What the process outside a jail decides about the jail's links."""

from __future__ import annotations

import pytest

from lowsuper.command import parse_command
from lowsuper.events import (
    Boot,
    Finish,
    HookEnded,
    KillHook,
    LoadConfig,
    Loaded,
    RunHook,
    Signalled,
)
from lowsuper.jail import (
    JailEnded,
    JailEntered,
    JailReady,
    JailTimer,
    KillJail,
    KillNetwork,
    LetJailGo,
    MakeJail,
    MakeNetwork,
    NetworkMade,
    NetworkRemoved,
    Outside,
    RemoveNetwork,
    SayLine,
    SetJailTimer,
    SignalJail,
    step,
)
from lowsuper.model import Exec, Hook, Jail, Link, MasterSpec, Origin
from lowsuper.units import SECOND

SIGHUP, SIGINT, SIGTERM = 1, 2, 15
SPEC = MasterSpec(name="test", jail=Jail("/x", net=True, links=(Link("veth", "eth0"),)))
HOOK = Hook("post-jail", Exec(parse_command("true")), Origin("f", 1, "exec-post-jail", "true"))
KILLED = JailEnded(9)


class Play:
    """Steps with a clock; keeps what was said."""

    def __init__(self, spec=SPEC):
        self.spec, self.state, self.now = spec, Outside(), 0
        self.said = []

    def do(self, *events, after=0.0):
        self.now += int(after * SECOND)
        done = []
        for event in events:
            self.state, actions = step(self.spec, self.state, event, self.now)
            self.said += [action.text for action in actions if isinstance(action, SayLine)]
            done += [action for action in actions if not isinstance(action, SayLine)]
        return done

    def start(self):
        self.do(Boot(), JailEntered(), NetworkMade(), JailReady())
        return self


def test_network_is_made_before_post_jail_hooks_and_before_the_master_begins():
    play = Play(SPEC.replace(hooks=(HOOK,)))
    play.do(Boot())
    assert play.do(JailEntered()) == [MakeNetwork()]
    assert play.do(NetworkMade()) == [RunHook(HOOK)]
    assert play.do(HookEnded(0)) == [LetJailGo()]


def test_jail_without_links_makes_no_network():
    play = Play(SPEC.replace(jail=Jail("/x", net=True)))
    play.do(Boot())
    assert play.do(JailEntered()) == [LetJailGo()]


def test_failed_network_is_fatal_at_the_start():
    play = Play()
    play.do(Boot(), JailEntered())
    assert play.do(NetworkMade("eth0: no")) == [KillJail()]
    assert play.do(KILLED) == [SetJailTimer(None), RemoveNetwork()]
    assert play.do(NetworkRemoved())[-1] == Finish(125)
    assert play.said[-1] == "the jail: eth0: no"


def test_failed_network_of_a_later_jail_is_tried_again():
    play = Play().start()
    play.do(KILLED, NetworkRemoved(), JailTimer(), JailEntered(), NetworkMade("no"))
    done = play.do(KILLED, NetworkRemoved())
    assert isinstance(done[-1], SetJailTimer)
    assert done[-1].at is not None
    assert any("could not be made" in line for line in play.said)
    assert play.do(JailTimer(), after=60) == [MakeJail()]
    assert play.do(JailEntered(), NetworkMade()) == [MakeNetwork(), LetJailGo()]


def test_network_is_removed_before_the_jail_is_made_again():
    play = Play().start()
    assert play.do(KILLED, after=60) == [SetJailTimer(None), RemoveNetwork()]
    assert play.do(NetworkRemoved()) == [SetJailTimer(None), MakeJail()]


def test_network_is_removed_before_the_end():
    play = Play().start()
    assert play.do(Signalled(SIGTERM)) == [SignalJail(SIGTERM)]
    assert play.do(JailEnded(7 << 8, 7)) == [SetJailTimer(None), RemoveNetwork()]
    assert play.do(NetworkRemoved("a link is left"))[-1] == Finish(7)
    assert "a link is left" in play.said


def test_stop_while_the_network_is_made_kills_the_helper_and_then_removes():
    play = Play()
    play.do(Boot(), JailEntered())
    assert play.do(Signalled(SIGTERM)) == [KillJail()]
    assert play.do(KILLED) == [SetJailTimer(None), KillNetwork()]
    assert play.do(NetworkMade("killed")) == [RemoveNetwork()]
    assert play.do(NetworkRemoved())[-1] == Finish(137)


def test_network_made_after_a_stop_lets_nothing_go():
    play = Play(SPEC.replace(hooks=(HOOK,)))
    play.do(Boot(), JailEntered(), Signalled(SIGTERM))
    assert play.do(NetworkMade()) == []
    assert play.do(KILLED) == [SetJailTimer(None), RemoveNetwork()]
    assert play.do(NetworkRemoved())[-1] == Finish(137)


def test_jail_that_dies_while_its_network_is_made_is_made_again_when_all_is_removed():
    play = Play()
    play.do(Boot(), JailEntered())
    assert play.do(KILLED, after=60) == [SetJailTimer(None), KillNetwork()]
    assert play.do(NetworkMade()) == [RemoveNetwork()]
    assert play.do(NetworkRemoved()) == [SetJailTimer(None), MakeJail()]


@pytest.mark.parametrize("signal", [SIGTERM, SIGINT])
def test_stop_while_the_network_is_removed_ends_when_it_is(signal):
    play = Play().start()
    play.do(KILLED)
    assert play.do(Signalled(signal), Signalled(signal), JailTimer()) == []
    assert play.do(NetworkRemoved())[-1] == Finish(0)


def test_reload_removes_the_network_and_makes_it_again():
    play = Play().start()
    assert play.do(Signalled(SIGHUP), Loaded()) == [LoadConfig(), SignalJail(SIGTERM)]
    assert play.do(JailEnded(0, 0)) == [SetJailTimer(None), RemoveNetwork()]
    assert play.do(NetworkRemoved()) == [SetJailTimer(None), MakeJail()]
    assert play.do(JailEntered()) == [MakeNetwork()]


def test_reload_while_the_network_is_removed_comes_afterwards():
    play = Play().start()
    play.do(KILLED, after=60)
    assert play.do(Signalled(SIGHUP)) == []
    assert play.do(NetworkRemoved()) == [SetJailTimer(None), MakeJail()]
    done = play.do(JailEntered(), NetworkMade(), JailReady())
    assert done == [MakeNetwork(), LetJailGo(), LoadConfig()]


def test_configuration_that_was_read_when_the_jail_died_is_that_of_the_next():
    play = Play().start()
    play.do(Signalled(SIGHUP), KILLED)
    assert play.do(Loaded()) == []
    assert play.do(NetworkRemoved()) == [SetJailTimer(None), MakeJail()]


def test_removed_links_of_a_new_configuration_are_removed_all_the_same():
    play = Play().start()
    play.spec = SPEC.replace(jail=Jail("/x", net=True))
    play.do(Signalled(SIGHUP), Loaded())
    assert RemoveNetwork() in play.do(JailEnded(0, 0))
    play.do(NetworkRemoved())
    assert play.do(JailEntered()) == [LetJailGo()]


def test_hook_that_runs_when_the_jail_dies_is_killed_and_waited_for():
    play = Play(SPEC.replace(hooks=(HOOK,)))
    play.do(Boot(), JailEntered(), NetworkMade())
    assert play.do(KILLED, after=60) == [SetJailTimer(None), KillHook(), RemoveNetwork()]
    assert play.do(HookEnded(9)) == []
    assert play.do(NetworkRemoved()) == [SetJailTimer(None), MakeJail()]
