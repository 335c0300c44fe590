"""The daemon keys for what follows the end of a daemon, and what the machine makes of them."""

from __future__ import annotations

import pytest

from lowsuper.config import policy
from lowsuper.config.keys import find_key
from lowsuper.events import (
    AwaitReady,
    Concluded,
    DaemonDied,
    DaemonDone,
    DaemonGivenUp,
    DaemonLate,
    DaemonNotStarted,
    DaemonReady,
    DaemonSignalled,
    DaemonSilent,
    Deliver,
    Emptied,
    ExecOk,
    Exited,
    Halt,
    Ready,
    Reset,
    Restart,
    Say,
    Settled,
    Signal,
    Spawn,
    SpawnFailed,
    Start,
    Stop,
    Timer,
    Unready,
    WatchdogMissed,
)
from lowsuper.machine import Backoff, Down, Over, Starting, Stopping, Up, step
from lowsuper.model import Command, DaemonSpec, Origin, Readiness
from lowsuper.units import SECOND, Ns

ORIGIN = Origin("f.ini", 1, "", "")
SPEC = DaemonSpec("d", Command("d", ("d",)), ORIGIN, stop_timeout=Ns(8 * SECOND))
FAILED, OK, ASKED = 1 << 8, 0, 15


class Play:
    """One daemon's machine and its time."""

    def __init__(self, **fields):
        self.spec, self.state, self.now = SPEC.replace(**fields), Down(), 100 * SECOND
        self.done = []

    def __call__(self, event, *, after=0):
        self.now += after
        self.state, actions = step(self.spec, self.state, event, self.now)
        self.done += actions
        return actions

    def start(self):
        self(Start())
        return self.up()

    def up(self):
        self(ExecOk(self.state.run, 7, 0, 0, "cgroup"))
        return self

    def die(self, status, *, after=0, left=False):
        return self(Exited(self.state.run, status, left), after=after)

    def again(self):
        """Let the pause pass."""
        assert isinstance(self.state, Backoff)
        self(Timer(self.state.run), after=self.state.until - self.now)
        return self.up()

    def said(self, kind):
        return [a.note for a in self.done if isinstance(a, Say) and isinstance(a.note, kind)]

    def took(self, kind):
        return [action for action in self.done if isinstance(action, kind)]


# The values.


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("restart", "Always", "always"),
        ("restart", "on_failure", "on-failure"),
        ("restart", "no", "never"),
        ("backoff", "0.5s..30s", (SECOND // 2, 30 * SECOND)),
        ("backoff", "2s", (2 * SECOND, 2 * SECOND)),
        ("max-restarts", "5", (5, 60 * SECOND)),
        ("max_restarts", "0/1s", (0, SECOND)),
        ("on_give_up", "exit", "exit"),
        ("success-codes", "3, 4", (0, 3, 4)),
    ],
)
def test_key_when_good_is_read(key, text, value):
    assert find_key(key).parse(text) == value


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("restart", "onfailure", "did you mean on-failure?"),
        ("backoff", "0", "no pause at all"),
        ("backoff", "5s..1s", "shorter than its first"),
        ("backoff", "..", "$"),
        ("max_restarts", "5/0", "no time at all"),
        ("max_restarts", "-1", "$"),
        ("on_give_up", "die", "stop, exit"),
        ("success_codes", "", "is empty"),
        ("success_codes", "256", "$"),
    ],
)
def test_key_when_bad_says_why(key, text, reason):
    with pytest.raises(ValueError, match=reason):
        find_key(key).parse(text)


def test_words_are_what_the_documentation_has():
    assert (policy.RESTARTS, policy.ENDINGS) == (
        ("always", "on-failure", "never"),
        ("stop", "exit"),
    )


# The policy.


@pytest.mark.parametrize(
    ("restart", "status", "outcome"),
    [
        ("always", OK, None),
        ("always", FAILED, None),
        ("on-failure", OK, "exited"),
        ("on-failure", FAILED, None),
        ("on-failure", 9, None),
        ("on-failure", None, None),
        ("never", OK, "exited"),
        ("never", FAILED, "failed"),
        ("never", 9, "failed"),
    ],
)
def test_end_of_a_daemon_is_judged_by_its_policy(restart, status, outcome):
    play = Play(restart=restart).start()
    play.die(status, after=SECOND)
    if outcome is None:
        assert isinstance(play.state, Backoff)
        assert play.took(Concluded) == []
        return
    assert play.state == Over(1, outcome, status)
    assert play.took(Concluded) == [Concluded(outcome == "failed", status)]
    assert bool(play.said(DaemonGivenUp)) == (outcome == "failed")
    assert bool(play.said(DaemonDone)) == (outcome == "exited")


def test_success_codes_are_a_success():
    play = Play(restart="on-failure", success_codes=(0, 3)).start()
    play.die(3 << 8)
    assert play.state == Over(1, "exited", 3 << 8)


def test_max_restarts_counts_within_its_window_only():
    play = Play(max_restarts=(2, 10 * SECOND), backoff=(SECOND, SECOND)).start()
    for pause in (SECOND, SECOND):
        play.die(FAILED)
        assert play.state.until - play.now == pause
        play.again()
    play.die(FAILED, after=20 * SECOND)  # the first two are long ago
    play.again().die(FAILED)
    play.again().die(FAILED)
    assert isinstance(play.state, Over)
    assert [note.reason for note in play.said(DaemonGivenUp)] == [
        "it was restarted 2 times within 10 s"
    ]
    assert play.said(DaemonDied)[-1].retry is None


def test_backoff_doubles_up_to_its_longest():
    play = Play(backoff=(SECOND // 2, 3 * SECOND)).start()
    pauses = []
    for _ in range(5):
        play.die(FAILED)
        pauses.append(play.state.until - play.now)
        play.again()
    assert pauses == [SECOND // 2, SECOND, 2 * SECOND, 3 * SECOND, 3 * SECOND]


def test_start_that_fails_counts_too():
    play = Play(max_restarts=(1, 60 * SECOND))
    play(Start())
    play(SpawnFailed(1, "clone", 11, "", cloned=False))
    play(Timer(1), after=play.state.until - play.now)
    play(SpawnFailed(2, "clone", 11, "", cloned=False))
    assert play.state == Over(2, "failed", None)
    assert [note.retry for note in play.said(DaemonNotStarted)] == [SECOND, None]


def test_what_it_left_is_ended_before_it_is_given_up():
    play = Play(restart="never").start()
    play.die(FAILED, left=True)
    assert isinstance(play.state, Stopping)
    play(Emptied(1))
    assert play.state == Over(1, "failed", FAILED)
    assert play.took(Concluded) == [Concluded(True, FAILED)]


def test_given_up_starts_again_when_somebody_asks_with_a_clean_record():
    play = Play(max_restarts=(0, 60 * SECOND)).start()
    play.die(FAILED)
    assert isinstance(play.state, Over)
    play.start()
    assert play.state == Up(2, play.now, 1, 7)


@pytest.mark.parametrize("event", [Stop(), Halt(), Reset()])
def test_given_up_when_stopped_or_forgiven_is_down_and_tells_nobody(event):
    play = Play(restart="never").start()
    play.die(FAILED)
    assert (play(event), play.state) == ((), Down(1))


def test_reset_forgives_what_counts():
    play = Play(max_restarts=(1, 60 * SECOND), backoff=(SECOND, 9 * SECOND)).start()
    play.die(FAILED)
    play.again()(Reset())
    play.die(FAILED)
    assert isinstance(play.state, Backoff)
    assert play.state.until - play.now == SECOND


# One-shots.


def test_oneshot_is_ready_when_it_has_ended_well():
    play = Play(kind="oneshot").start()
    assert (play.state.ready, play.took(Settled)) == (False, [])
    play.die(OK, after=SECOND)
    assert play.state == Over(1, "done", OK)
    assert play.took(Settled) == [Settled(True, True)]
    assert play.said(DaemonDone)[0].oneshot


def test_oneshot_that_fails_is_tried_again_or_given_up():
    play = Play(kind="oneshot").start()
    play.die(FAILED)
    assert isinstance(play.state, Backoff)
    assert play.took(Settled) == [Settled(False, True)]
    play = Play(kind="oneshot", restart="never").start()
    play.die(FAILED)
    assert play.state == Over(1, "failed", FAILED)
    assert play.took(Settled) == [Settled(False, True)]


def test_oneshot_that_leaves_something_behind_is_done_when_that_has_gone():
    play = Play(kind="oneshot").start()
    play.die(OK, left=True)
    assert isinstance(play.state, Stopping)
    play(Emptied(1))
    assert play.state == Over(1, "done", OK)


# Readiness.


NOTIFY = Readiness("notify")


def test_daemon_is_ready_when_it_says_so_and_settles_once():
    play = Play(ready=NOTIFY).start()
    assert (play.state.ready, play.took(AwaitReady)) == (False, [AwaitReady(1)])
    assert play.took(Settled) == []
    play(Unready(1, "nobody listens"))
    assert play.state.finding == "nobody listens"
    play(Ready(1), after=SECOND)
    play(Ready(1))
    assert play.state == Up(1, 100 * SECOND, 1, 7)
    assert play.took(Settled) == [Settled(True, True)]
    assert play.said(DaemonReady) == [DaemonReady("d", 7, SECOND)]


def test_daemon_that_is_not_ready_in_time_is_ended_and_tried_again():
    play = Play(ready=NOTIFY, start_timeout=Ns(5 * SECOND)).start()
    play(Unready(1, "nobody listens"))
    play(Timer(1), after=5 * SECOND)
    assert play.said(DaemonLate) == [DaemonLate("d", 7, Ns(5 * SECOND), "nobody listens")]
    assert play.took(Settled) == [Settled(False, True)]
    assert isinstance(play.state, Stopping)
    play.die(ASKED)
    assert isinstance(play.state, Backoff)  # whatever it ended with
    play.again()
    play(Ready(2))
    assert play.took(Settled) == [Settled(False, True), Settled(True, False)]


def test_daemon_that_ends_well_but_late_has_failed():
    play = Play(ready=NOTIFY, start_timeout=Ns(SECOND), restart="on-failure").start()
    play(Timer(1), after=SECOND)
    play.die(OK)
    assert isinstance(play.state, Backoff)


@pytest.mark.parametrize("event", [Stop(), Halt(), Restart(), Exited(1, FAILED, left=False)])
def test_daemon_that_is_not_ready_yet_settles_as_failed_whatever_ends_it(event):
    play = Play(ready=NOTIFY).start()
    play(event)
    assert play.took(Settled) == [Settled(False, True)]


def test_ready_of_an_earlier_run_changes_nothing():
    play = Play(ready=NOTIFY).start()
    play.die(FAILED)
    play.again()
    assert (play(Ready(1)), play.state.ready) == ((), False)


def test_watchdog_ends_it_by_abort_and_counts_as_a_failure():
    play = Play(max_restarts=(0, SECOND)).start()
    play(WatchdogMissed(1, Ns(SECOND)))
    assert play.took(Signal) == [Signal(1, 6)]
    assert play.said(DaemonSilent)
    play.die(6)
    assert play.state == Over(1, "failed", 6)


# What people ask for.


def test_restart_and_halt_are_no_crash():
    play = Play(restart="never").start()
    play(Restart())
    play.die(ASKED)
    assert isinstance(play.state, Starting)
    play.up()
    play(Halt())
    play.die(ASKED)
    assert isinstance(play.state, Down)
    assert play.took(Concluded) == []


def test_deliver_sends_to_the_process_alone():
    play = Play().start()
    play(Deliver(10, "signal"))
    assert play.took(Signal) == [Signal(1, 10, group=False)]
    assert play.said(DaemonSignalled) == [DaemonSignalled("d", 7, 10, "signal")]
    play(Stop())
    assert play(Deliver(10, "signal")) == ()


def test_halt_ends_a_smart_daemon():
    from lowsuper.events import Absent, Found, Unname

    play = Play(pidfile="/p", daemonize=True)
    play(Start())
    play(Absent(1, "none", left=False, telling=False))
    play.up()
    play(Found(1, 7, 0, 0, "cgroup", play.now, "ours"))
    assert isinstance(play.state, Up)
    play(Halt())
    assert play.took(Signal) == [Signal(1, 15)]
    play.die(ASKED)
    assert play.took(Unname) == [Unname(1)]
    assert isinstance(play.state, Down)


def test_spawn_is_asked_for_once_per_run():
    play = Play().start()
    assert play.took(Spawn) == [Spawn(1)]
