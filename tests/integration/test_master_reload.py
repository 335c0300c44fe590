"""A reload: read and checked first, then everything that changed, and no two instances at once."""

import os
import signal
import socket

from masters import (
    free_port,
    grow_file,
    is_alive,
    needs_root,
    put_file,
    shown,
    wait_file,
    wait_gone,
)

ONE = "attach-daemon2 = cmd=sleep 1000,name=one\n"
TWO = "attach-daemon2 = cmd=sleep 1000,name=two\n"


def reload(master):
    master.signal(signal.SIGHUP)
    master.wait_line("SIGHUP: reloading")
    master.wait_line("reloaded in")


def test_reload_adds_a_daemon(masters):
    master = masters.start(ONE)
    masters.write(ONE + TWO)
    reload(master)
    assert is_alive(master.pid_of("two"))
    assert master.stop() == 0
    assert master.has_said("SIGTERM: stopping 2 daemons")


def test_reload_removes_a_daemon(masters):
    master = masters.start(ONE + TWO)
    two = master.pid_of("two")
    masters.write(ONE)
    reload(master)
    wait_gone(two)
    assert master.has_said("two: pid .*nothing left")
    master.signal(signal.SIGUSR1)
    master.wait_line("one: up")
    master.expect_silence("two: (up|down)")
    assert master.stop() == 0


def test_reload_changes_a_daemon(masters):
    master = masters.start("attach-daemon2 = cmd={D}/show.py {T}/old,name=one")
    old = shown(masters.directory / "old")
    masters.write("attach-daemon2 = cmd={D}/show.py {T}/new,name=one,chdir={T}\nenv = COLOUR=red")
    reload(master)
    new = shown(masters.directory / "new")
    assert new["pid"] != old["pid"]
    assert new["cwd"] == str(masters.directory)
    assert new["env"]["COLOUR"] == "red"
    assert "COLOUR" not in old["env"]
    assert master.stop() == 0


def test_reload_from_and_to_nothing(masters):
    master = masters.start("master = true")
    masters.write(ONE)
    reload(master)
    one = master.pid_of("one")
    masters.write("master = true")
    reload(master)
    wait_gone(one)
    assert master.stop() == 0


def test_reload_moves_a_name_to_another_daemon(masters):
    master = masters.start(ONE + TWO)
    masters.write(
        "attach-daemon2 = cmd={D}/show.py {T}/one,name=one\n"
        "attach-daemon2 = cmd=sleep 1000,name=three\n"
    )
    reload(master)
    assert shown(masters.directory / "one")["pid"] == master.pid_of("one")
    assert is_alive(master.pid_of("three"))
    assert not is_alive(master.pid_of("two"))
    assert master.stop() == 0


def test_reload_of_a_bad_file_changes_nothing_and_says_so(masters):
    master = masters.start(ONE + TWO)
    pids = {name: master.pid_of(name) for name in ("one", "two")}
    masters.write(ONE + "attach-daemon2 = cmd=sleep 1000,name=two,stopsignal=NOPE\n")
    master.signal(signal.SIGHUP)
    master.wait_line(r"test\.ini:3: two: stopsignal=NOPE: there is no such signal")
    master.wait_line("nothing was changed: the new configuration is not good")
    for name, pid in pids.items():
        assert is_alive(pid)
        assert master.pid_of(name) == pid
    # The next good one is taken.
    masters.write(ONE)
    reload(master)
    assert master.pid_of("one") != pids["one"]
    assert master.stop() == 0


def test_reload_of_a_missing_file_changes_nothing(masters):
    master = masters.start(ONE)
    pid = master.pid_of("one")
    path = masters.directory / "test.ini"
    path.rename(masters.directory / "away.ini")
    master.signal(signal.SIGHUP)
    master.wait_line(r"test\.ini.*No such file")
    master.wait_line("nothing was changed")
    assert master.pid_of("one") == pid
    assert is_alive(pid)
    assert master.stop() == 0


def test_reload_uses_reloadsignal_and_stop_the_stopsignal(masters):
    master = masters.start(
        "attach-daemon2 = cmd={D}/say_signals.py USR2 HUP,name=one,"
        "reloadsignal=USR2,stopsignal=SIGHUP"
    )
    master.wait_output("settled")
    master.signal(signal.SIGHUP)
    master.wait_line(r"one: reload: SIGUSR2 \(12\) to pid")
    master.wait_output("got SIGUSR2")
    master.wait_line("reloaded")
    master.wait_output("settled")
    assert master.stop() == 0
    assert master.has_said(r"one: stop: SIGHUP \(1\) to pid")
    assert master.has_said("got SIGHUP")


def test_reload_of_a_stubborn_daemon_kills_at_its_deadline(masters):
    master = masters.start("attach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=300ms")
    master.wait_output("settled")
    old = master.pid_of("one")
    master.signal(signal.SIGHUP)
    master.wait_line(r"one: still there after \d+ ms: SIGKILL to all of it")
    master.wait_started("one")
    assert not is_alive(old)
    assert master.stop() == 0


def test_reload_waits_for_the_port_of_the_old_one(masters):
    """The daemon keeps its port for a second: uWSGI starts the next one meanwhile."""
    port = free_port()
    master = masters.start(f"attach-daemon2 = cmd={{D}}/hold_port.py {port},name=one")
    master.wait_output("port bound")
    reload(master)
    master.wait_output("port held on")
    master.wait_output("port bound")
    with socket.create_connection(("127.0.0.1", port), 10):
        pass
    master.expect_silence("port taken")
    assert master.stop() == 0


def test_reload_waits_for_the_lock_of_the_old_one(masters):
    master = masters.start("attach-daemon2 = cmd={D}/hold_lock.sh {T}/lock,name=one")
    master.wait_output("lock held")
    reload(master)
    master.wait_output("lock held")
    master.expect_silence("lock taken")
    assert master.stop() == 0
    assert not (masters.directory / "lock").exists()


def test_reload_does_not_wait_for_a_slow_daemon_to_start_another(masters):
    master = masters.start(
        "attach-daemon2 = cmd={D}/ignore_term.sh,name=slow,stop_timeout=600\n" + ONE
    )
    master.wait_output("settled")
    master.signal(signal.SIGHUP)
    master.wait_started("one")
    master.expect_silence("slow: pid")
    master.signal(signal.SIGTERM)
    master.wait_line("stopping")
    master.signal(signal.SIGTERM)
    assert master.wait() == 0


def test_reload_forgets_the_throttle(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 1,name=one")
    master.wait_line("one: .*next try in 1 s")
    masters.write(ONE)
    reload(master)
    assert is_alive(master.pid_of("one"))
    assert master.stop() == 0


def test_reload_runs_the_hooks_of_root_and_user_once(masters):
    text = "\n".join(f"exec-{phase} = echo {phase} >> {{T}}/hooks" for phase in PHASES)
    master = masters.start(text + "\n" + ONE)
    reload(master)
    assert (masters.directory / "hooks").read_text().split() == [
        "asap",
        "pre-jail",
        "in-jail",
        "as-root",
        "as-user",
        "as-root",
        "as-user",
    ]
    assert master.stop() == 0
    assert (masters.directory / "hooks").read_text().split()[-1] == "as-user-atexit"


PHASES = ("as-user-atexit", "as-user", "as-root", "in-jail", "pre-jail", "asap")


def test_touch_reload_reloads_when_the_file_changes(masters):
    trigger = masters.directory / "trigger"
    master = masters.start(f"touch-reload = {trigger}\n" + ONE)
    for change in (
        lambda: put_file(trigger, "made"),
        lambda: grow_file(trigger, "changed!"),
        trigger.unlink,
    ):
        old = master.pid_of("one")
        change()
        master.wait_line(rf"touch-reload {trigger}: reloading")
        master.wait_line("reloaded")
        assert master.pid_of("one") != old
    assert master.stop() == 0


def test_touch_reload_of_the_configuration_itself(masters):
    master = masters.start("touch-reload = %p\n" + ONE)
    masters.write("touch-reload = %p\n" + ONE + TWO)
    master.wait_line("touch-reload .*: reloading")
    master.wait_line("reloaded")
    assert is_alive(master.pid_of("two"))
    assert master.stop() == 0


def test_reload_keeps_the_relative_file_after_chdir(masters):
    """The files are read as from the directory that lowsuper was started in."""
    elsewhere = masters.directory / "elsewhere"
    elsewhere.mkdir()
    masters.write(f"chdir = {elsewhere}\n" + ONE)
    master = masters.launch("test.ini").wait_ready()
    masters.write(f"chdir = {elsewhere}\nattach-daemon2 = cmd={{D}}/show.py shown,name=one")
    reload(master)
    assert shown(wait_file(elsewhere / "shown"))["cwd"] == str(elsewhere)
    assert master.stop() == 0


def test_reload_keeps_a_relative_chdir(masters):
    (masters.directory / "inner").mkdir()
    master = masters.start("chdir = inner\n" + ONE)
    reload(master)
    reload(master)
    assert os.readlink(f"/proc/{master.pid}/cwd") == str(masters.directory / "inner")
    assert master.stop() == 0


@needs_root
def test_reload_of_a_dropped_master_that_was_started_in_a_closed_directory(masters, open_masters):
    """As `cd /root; lowsuper /etc/x.ini`, where the new user cannot go back to."""
    masters.directory.parent.chmod(0o700)
    master = open_masters.start("uid = www-data\n" + ONE, cwd=masters.directory)
    old = master.pid_of("one")
    reload(master)
    assert master.pid_of("one") != old
    assert master.stop() == 0


def test_reload_after_the_directory_of_the_start_was_removed(masters):
    gone = masters.directory / "gone"
    gone.mkdir()
    master = masters.start(ONE, cwd=gone)
    gone.rmdir()
    reload(master)
    assert is_alive(master.pid_of("one"))
    assert master.stop() == 0
