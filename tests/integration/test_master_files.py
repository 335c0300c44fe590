"""What the master writes: pidfiles, logs, its title; and going to the background."""

import os
import re
import signal

import pytest
from masters import is_alive, name_of, send, wait_file, wait_gone, wait_text

ONE = "attach-daemon2 = cmd=sleep 1000,name=one\n"


# Pidfiles.


@pytest.mark.parametrize("key", ["pidfile", "pidfile2", "safe-pidfile"])
def test_pidfile_holds_the_masters_pid(masters, key):
    path = masters.directory / "pid"
    master = masters.start(f"{key} = {path}\n" + ONE)
    assert path.read_text() == f"{master.pid}\n"
    assert master.stop() == 0


def test_pidfile_is_there_before_the_hooks_of_root(masters):
    master = masters.start("pidfile = {T}/pid\nexec-as-root = cp {T}/pid {T}/seen\n" + ONE)
    assert (masters.directory / "seen").read_text() == f"{master.pid}\n"
    assert master.stop() == 0


def test_pidfile_replaces_a_link_and_does_not_follow_it(masters):
    target, path = masters.directory / "target", masters.directory / "pid"
    target.write_text("precious")
    path.symlink_to(target)
    master = masters.start(f"pidfile = {path}\n" + ONE)
    assert target.read_text() == "precious"
    assert path.read_text() == f"{master.pid}\n"
    assert not path.is_symlink()
    assert master.stop() == 0


def test_pidfile_of_somebody_else_is_not_removed(masters):
    path = masters.directory / "pid"
    master = masters.start(f"safe-pidfile = {path}\nvacuum = true\n" + ONE)
    path.write_text("4242\n")
    assert master.stop() == 0
    assert path.read_text() == "4242\n"


def test_vacuum_removes_the_pidfiles(masters):
    names = ("pidfile", "pidfile2", "safe-pidfile")
    master = masters.start("".join(f"{name} = {{T}}/{name}\n" for name in names) + "vacuum\n" + ONE)
    for name in names:
        assert (masters.directory / name).exists()
    assert master.stop() == 0
    for name in names:
        assert not (masters.directory / name).exists()


def test_pidfile_that_cannot_be_written_is_told(masters):
    master = masters.start("pidfile = {T}/no/such/pid\n" + ONE)
    assert master.has_said(r"pidfile .*/no/such/pid: No such file or directory")
    assert is_alive(master.pid_of("one"))
    assert master.stop() == 0


def test_reload_keeps_the_pidfile(masters):
    path = masters.directory / "pid"
    master = masters.start(f"pidfile = {path}\n" + ONE)
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    assert path.read_text() == f"{master.pid}\n"
    assert master.stop() == 0


# Logs.


@pytest.mark.parametrize("key", ["logto", "logto2"])
def test_log_file_takes_the_lines_of_all(masters, key):
    log = masters.directory / "log"
    master = masters.begin(
        f"{key} = {log}\nattach-daemon2 = cmd=sh -c 'echo from daemon; exec sleep 1000',name=one\n"
    )
    wait_text(log, "ready: 1 daemon up")
    wait_text(log, "^from daemon$")
    assert master.stop() == 0
    text = log.read_text()
    assert "lowsuper: one: started" in text
    assert "exit status 0" in text
    assert master.text == ""


def test_log_file_is_appended_to(masters):
    log = masters.directory / "log"
    log.write_text("old line\n")
    master = masters.begin(f"logto = {log}\n" + ONE)
    wait_text(log, "ready: ")
    assert master.stop() == 0
    assert log.read_text().startswith("old line\n")


def test_log_file_that_cannot_be_opened_is_told(masters):
    master = masters.begin("logto = {T}/no/such/log\n" + ONE)
    assert master.wait() == 125
    assert master.has_said(r"logto .*/no/such/log: No such file or directory")


def test_reload_takes_another_log_file(masters):
    first, second = masters.directory / "first", masters.directory / "second"
    master = masters.begin(f"logto = {first}\n" + ONE)
    wait_text(first, "ready: ")
    masters.write(f"logto = {second}\nlog-date = %%Y\n" + ONE)
    master.signal(signal.SIGHUP)
    wait_text(second, r"^\d{4} - lowsuper: reloaded in")
    assert os.readlink(f"/proc/{master.pid}/fd/1") == str(second)
    assert master.stop() == 0
    assert "reloaded" not in first.read_text()


def test_relative_log_file_stays_the_same_at_a_reload(masters):
    (masters.directory / "inner").mkdir()
    log = masters.directory / "log"
    master = masters.begin("logto = log\nchdir = inner\n" + ONE)
    wait_text(log, "ready: ")
    master.signal(signal.SIGHUP)
    wait_text(log, "reloaded in")
    assert master.stop() == 0


def test_reload_with_a_log_file_that_cannot_be_opened_changes_nothing(masters):
    master = masters.start(ONE)
    old = master.pid_of("one")
    masters.write("logto = {T}/no/such/log\n" + ONE)
    master.signal(signal.SIGHUP)
    master.wait_line(r"logto .*/no/such/log: No such file or directory")
    master.wait_line("nothing was changed")
    assert is_alive(old)
    assert master.stop() == 0


def test_log_date_begins_the_lines(masters):
    master = masters.start("log-date = %%Y-%%m-%%d %%H:%%M\n" + ONE)
    assert master.stop() == 0
    for line in master.lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d - lowsuper: ", line), line


def test_log_date_alone_is_ctimes(masters):
    master = masters.start("log-date = true\n" + ONE)
    assert re.match(r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4} - lowsuper: ", master.lines[0])
    assert master.stop() == 0


# The background.


@pytest.mark.parametrize("key", ["daemonize", "daemonize2"])
def test_background_master_lets_its_caller_go(masters, key):
    log, pidfile = masters.directory / "log", masters.directory / "pid"
    caller = masters.begin(f"{key} = {log}\npidfile = {pidfile}\n" + ONE)
    assert caller.wait() == 0
    if key == "daemonize2":
        assert "ready: 1 daemon up" in log.read_text(), "the caller waits for the daemons"
    wait_text(log, "ready: 1 daemon up")
    pid = int(wait_file(pidfile).read_text())
    assert pid != caller.pid
    assert is_alive(pid)
    assert os.getsid(pid) != os.getsid(0)
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)} == {str(log)}
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    send(pid, signal.SIGTERM)
    wait_gone(pid)
    wait_text(log, "exit status 0")
    caller.wait_family_gone()


def test_background_master_reloads_and_dies_like_any_other(masters):
    log, pidfile = masters.directory / "log", masters.directory / "pid"
    caller = masters.begin(
        f"daemonize2 = {log}\npidfile = {pidfile}\n"
        "attach-daemon2 = cmd={D}/setsid_children.sh,name=one,stop_timeout=200ms\n"
    )
    assert caller.wait() == 0
    pid = int(pidfile.read_text())
    send(pid, signal.SIGHUP)
    wait_text(log, "reloaded in")
    assert len(caller.family()) >= 2
    send(pid, signal.SIGKILL)
    caller.wait_family_gone()


@pytest.mark.parametrize("key", ["daemonize", "daemonize2"])
def test_bad_configuration_is_told_before_the_background(masters, key):
    caller = masters.begin(f"{key} = {{T}}/log\nattach-daemon2 = cmd=sleep 9,stopsignal=NOPE")
    assert caller.wait() == 78
    assert caller.has_said("stopsignal=NOPE")
    assert not (masters.directory / "log").exists()


def test_failure_in_the_background_is_the_callers_status(masters):
    log = masters.directory / "log"
    caller = masters.begin(f"daemonize2 = {log}\nexec-asap = exit 3\n" + ONE)
    assert caller.wait() == 125
    assert caller.has_said(f"it ended before it was ready; see {log}")
    assert "exec-asap: exit 3: exited with 3; giving up" in log.read_text()
    caller.wait_family_gone()


def test_daemons_of_a_background_master_hold_no_pipe_of_its_caller(masters):
    """Whoever reads the output of the command to its end must not wait for the daemons."""
    caller = masters.begin("daemonize = {T}/log\npidfile = {T}/pid\n" + ONE)
    assert caller.wait() == 0
    caller.wait_end_of_output()
    pid = wait_text(masters.directory / "log", r"one: started, pid (\d+)")[1]
    assert is_alive(int(pid))
    send(int(wait_file(masters.directory / "pid").read_text()), signal.SIGTERM)
    caller.wait_family_gone()


# Titles.


def title_of(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().rstrip(b"\0").decode()


def test_titles(masters):
    master = masters.start("procname-master = the boss\n" + ONE)
    assert title_of(master.pid) == "the boss"
    assert name_of(master.guard()) == "lowsuper-guard"
    assert master.stop() == 0


def test_auto_procname_with_prefix_and_append(masters):
    master = masters.start(
        "auto-procname = true\nprocname-prefix-spaced = shop\nprocname-append = (test)\n" + ONE
    )
    assert title_of(master.pid).startswith("shop lowsuper master")
    assert title_of(master.pid).endswith("(test)")
    assert master.stop() == 0


def test_title_is_left_alone_unless_asked_for(masters):
    master = masters.start(ONE)
    assert "test.ini" in title_of(master.pid)
    assert master.stop() == 0
