"""What each signal does to a running master."""

import os
import signal
import time

import pytest
from masters import is_alive, wait_gone

TWO = """
attach-daemon2 = cmd=sleep 1000,name=one
attach-daemon2 = cmd=sleep 1000,name=two
"""


def test_start_says_pid_uid_gid_and_rung(masters):
    master = masters.begin("attach-daemon2 = cmd=sleep 1000,name=one\nkill-domain = shim")
    line = master.wait_line(r"one: started, pid (\d+), uid (\d+), gid (\d+), kill domain (\w+)")
    assert is_alive(int(line[1]))
    assert line.string.startswith("lowsuper: one: ")
    assert line[4] == "shim"
    master.wait_line(r"ready: 1 daemon up after \d+ ms")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_signal_that_stops_ends_with_0(masters, name):
    master = masters.start(TWO)
    pids = [master.pid_of("one"), master.pid_of("two")]
    master.signal(getattr(signal, name))
    assert master.wait() == 0
    assert not master.family()
    master.wait_line(rf"{name}: stopping 2 daemons")
    for daemon, pid in zip(("two", "one"), reversed(pids), strict=True):
        master.wait_line(rf"{daemon}: stop: SIGTERM \(15\) to pid {pid}, SIGKILL in 8 s")
    assert master.has_said(r"one: pid \d+ was killed by SIGTERM \(15\), nothing left after \d+ ms")
    assert master.lines[-1] == "lowsuper: everything has ended; exit status 0"


def test_stop_of_a_master_without_daemons_ends_with_0(masters):
    assert masters.start("master = true").stop() == 0


def test_hup_reloads_in_the_same_process(masters):
    master = masters.start(TWO)
    old = {name: master.pid_of(name) for name in ("one", "two")}
    master.signal(signal.SIGHUP)
    master.wait_line("SIGHUP: reloading")
    master.wait_line(r"reloaded in \d+ ms")
    for name, pid in old.items():
        assert master.pid_of(name) != pid
        assert not is_alive(pid)
        assert is_alive(master.pid_of(name))
    assert master.stop() == 0


def test_usr1_says_the_state_of_each_daemon(masters):
    master = masters.start(TWO + "attach-daemon2 = cmd={D}/exits.sh 5,name=three")
    master.wait_line("three: .* next try")
    master.signal(signal.SIGUSR1)
    master.wait_line(rf"one: up, pid {master.pid_of('one')}, for \d+")
    master.wait_line(rf"two: up, pid {master.pid_of('two')}, for \d+")
    master.wait_line("three: (waiting, next try in|starting for|up, )")


def test_usr2_changes_nothing(masters):
    master = masters.start(TWO)
    master.signal(signal.SIGUSR2)
    master.signal(signal.SIGUSR1)
    master.wait_line("one: up")
    assert master.stop() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_kills_at_once(masters, second):
    master = masters.start("attach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=600")
    master.wait_output("settled")
    master.signal(signal.SIGTERM)
    master.wait_line("one: stop: SIGTERM .* SIGKILL in 10 min")
    start = time.monotonic()
    master.signal(second)
    assert master.wait() == 0
    assert time.monotonic() - start < 5
    assert master.has_said(rf"{second.name} again: SIGKILL to everything")
    assert master.has_said(r"one: still there after .*: SIGKILL to all of it")
    assert not master.family()


def test_term_reloads_brutally_when_die_on_term_is_false(masters):
    master = masters.start(
        "die-on-term = false\nattach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=600"
    )
    master.wait_output("settled")
    old = master.pid_of("one")
    master.signal(signal.SIGTERM)
    master.wait_line("SIGTERM with die-on-term = false: reloading without waiting for anybody")
    assert master.wait_started("one") != old
    wait_gone(old)
    master.wait_line("reloaded")
    master.signal(signal.SIGINT)
    master.wait_line("stopping")
    master.signal(signal.SIGINT)
    assert master.wait() == 0


def test_reload_ends_the_master_with_exit_on_reload(masters):
    master = masters.start("exit-on-reload = true\n" + TWO)
    master.signal(signal.SIGHUP)
    assert master.wait() == 0
    assert master.has_said("SIGHUP with exit-on-reload: stopping 2 daemons")


def test_stop_while_reloading_ends(masters):
    master = masters.start("attach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=500ms")
    master.wait_output("settled")
    master.signal(signal.SIGHUP)
    master.wait_line("one: reload: SIGTERM")
    assert master.stop() == 0
    assert not master.family()
    assert len([line for line in master.lines if "one: started" in line]) == 1


def test_reload_while_stopping_is_refused_in_words(masters):
    master = masters.start("attach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=500ms")
    master.wait_output("settled")
    master.signal(signal.SIGTERM)
    master.wait_line("one: stop: SIGTERM")
    master.signal(signal.SIGHUP)
    master.wait_line(r"reload \(SIGHUP\): ignored, it is stopping")
    assert master.wait() == 0


def test_reload_asked_for_while_reloading_comes_after_it(masters):
    master = masters.start("attach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=500ms")
    master.wait_output("settled")
    master.signal(signal.SIGHUP)
    master.wait_line("one: reload: SIGTERM")
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    master.wait_line("asked for meanwhile: reloading")
    master.wait_line("reloaded")
    assert master.stop() == 0


def test_terminal_interrupt_reaches_the_master_only(masters):
    """A ^C goes to the foreground process group: the daemons are not in it."""
    master = masters.start("attach-daemon2 = cmd={D}/say_signals.py TERM,name=one")
    master.wait_output("settled")
    assert os.getpgid(master.pid_of("one")) != os.getpgid(master.pid)
    os.killpg(os.getpgid(master.pid), signal.SIGINT)
    master.wait_output("got SIGTERM")
    assert master.wait() == 0
    master.expect_silence("got SIGINT")
