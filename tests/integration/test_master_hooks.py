"""Hooks: their order, their environment, and what a failing one does."""

import signal

import pytest
from masters import is_alive, needs_root

PHASES = ("asap", "pre-jail", "in-jail", "as-root", "as-user")


def test_hooks_run_in_order_before_and_after_the_daemons(masters):
    text = "".join(
        f"exec-{phase} = echo {phase}-{number} >> {{T}}/order\n"
        for number in (1, 2)
        for phase in reversed((*PHASES, "as-user-atexit"))
    )
    master = masters.start(
        text + "attach-daemon2 = cmd=sh -c 'echo daemon >> {T}/order; exec sleep 1000',name=one\n"
    )
    master.signal(signal.SIGTERM)
    assert master.wait() == 0
    order = (masters.directory / "order").read_text().split()
    before = [f"{phase}-{number}" for phase in PHASES for number in (1, 2)]
    assert [word for word in order if word != "daemon"] == [
        *before,
        "as-user-atexit-1",
        "as-user-atexit-2",
    ]
    if "daemon" in order:  # it may have been stopped before it wrote
        assert order[len(before)] == "daemon"
    said = [line for line in master.lines if "exec-" in line]
    assert said[0] == f"lowsuper: exec-asap: echo asap-1 >> {masters.directory}/order"
    assert len(said) == len(before) + 2


def test_atexit_hooks_run_when_nothing_of_the_daemons_is_left(masters):
    master = masters.start(
        "exec-as-user-atexit = kill -0 $(cat {T}/pid) && exit 33\n"
        "attach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=200ms"
    )
    master.wait_output("settled")
    (masters.directory / "pid").write_text(str(master.pid_of("one")))
    assert master.stop() == 0
    assert master.has_said(r"exec-as-user-atexit: .*: exited with 1$")


@pytest.mark.parametrize("phase", PHASES)
def test_failing_hook_is_fatal_and_named(masters, phase):
    master = masters.begin(
        f"exec-{phase} = exit 42\nattach-daemon2 = cmd=sleep 1000,name=one\n"
        "exec-as-user-atexit = touch {T}/atexit"
    )
    assert master.wait() == 1
    assert master.has_said(rf"exec-{phase}: exit 42: exited with 42; giving up")
    master.expect_silence("one: started")
    assert (masters.directory / "atexit").exists()


def test_hook_killed_by_a_signal_is_named(masters):
    master = masters.begin("exec-asap = kill -KILL $$")
    assert master.wait() == 1
    assert master.has_said(r"exec-asap: kill -KILL \$\$: was killed by SIGKILL \(9\); giving up")


def test_hook_that_cannot_be_run_is_named(masters):
    master = masters.begin("exec-asap = /nonexistent/hook --now")
    assert master.wait() == 1
    assert master.has_said("/nonexistent/hook: No such file or directory")
    assert master.has_said("exec-asap: /nonexistent/hook --now: could not be started; giving up")


def test_failing_atexit_hook_is_named_and_changes_nothing(masters):
    master = masters.start("exec-as-user-atexit = exit 9\nattach-daemon2 = cmd=sleep 99,name=one")
    assert master.stop() == 0
    assert master.has_said("exec-as-user-atexit: exit 9: exited with 9")


def test_failing_hook_of_a_reload_stops_the_master(masters):
    master = masters.start(
        "exec-as-root = test ! -e {T}/bad\nattach-daemon2 = cmd=sleep 1000,name=one"
    )
    (masters.directory / "bad").touch()
    master.signal(signal.SIGHUP)
    assert master.wait() == 1
    assert master.has_said("exec-as-root: .*: exited with 1; giving up")
    assert not master.family()


def test_stop_during_a_hook_kills_it(masters):
    master = masters.begin("exec-asap = sleep 1000\nattach-daemon2 = cmd=sleep 1000,name=one")
    master.wait_line("exec-asap: sleep 1000")
    assert master.stop() == 0
    master.expect_silence("one: started")


def test_children_of_a_killed_hook_do_not_stay(masters):
    master = masters.begin("exec-asap = sleep 998 & echo up; sleep 999; true")
    master.wait_output("up")
    assert master.stop() == 0
    assert not master.family()


def test_killed_master_takes_its_hook_along(masters):
    master = masters.begin("exec-asap = sleep 999")
    master.wait_line("exec-asap: sleep 999")
    master.kill()
    master.wait_family_gone()


def test_hook_has_the_environment_and_only_0_1_2(masters):
    master = masters.start(
        "env = COLOUR=red\nexec-asap = echo $COLOUR $(ls /proc/self/fd | tr '\\n' ' ')\n"
        "attach-daemon2 = cmd=sleep 1000,name=one"
    )
    master.wait_output("^red 0 1 2 3$")  # 3 is that of ls itself
    assert master.stop() == 0


@needs_root
def test_hooks_as_root_and_as_user_when_the_master_drops(open_masters):
    text = "".join(
        f"exec-{phase} = echo {phase} $(id -u) $(id -g) >> {{T}}/who\n"
        for phase in (*PHASES, "as-user-atexit")
    )
    (open_masters.directory / "who").touch()
    (open_masters.directory / "who").chmod(0o666)
    master = open_masters.start(
        "uid = www-data\ngid = www-data\n" + text + "attach-daemon2 = cmd=sleep 1000,name=one"
    )
    assert is_alive(master.pid_of("one"))
    assert master.stop() == 0
    lines = (open_masters.directory / "who").read_text().split("\n")
    assert lines == [
        "asap 0 0",
        "pre-jail 0 0",
        "in-jail 0 0",
        "as-root 0 0",
        "as-user 33 33",
        "as-user-atexit 33 33",
        "",
    ]


@needs_root
def test_reload_of_a_dropped_master_runs_only_what_it_still_can(open_masters):
    """uWSGI: after a reload exec-as-root does not run again, since the user cannot."""
    (open_masters.directory / "who").touch()
    (open_masters.directory / "who").chmod(0o666)
    master = open_masters.start(
        "uid = www-data\nexec-as-root = echo root $(id -u) >> {T}/who\n"
        "exec-as-user = echo user $(id -u) >> {T}/who\nattach-daemon2 = cmd=sleep 1000,name=one"
    )
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    assert (open_masters.directory / "who").read_text().split() == [
        *("root", "0"),
        *("user", "33"),
        *("user", "33"),
    ]
    assert master.stop() == 0


def test_hook_does_not_see_the_masters_own_variables(masters):
    master = masters.begin(
        'exec-asap = test -z "$NOTIFY_SOCKET$LISTEN_FDS"',
        env={"NOTIFY_SOCKET": "/x", "LISTEN_FDS": "1"},
    )
    master.wait_ready()
    assert master.stop() == 0
