"""A master that becomes another user: really, for good, and still in charge of its daemons."""

import os
import signal

import pytest
from masters import (
    has_cgroups,
    is_alive,
    need,
    needs_root,
    own_cgroup,
    send,
    shown,
    status_of,
    wait_text,
)

pytestmark = needs_root


@pytest.fixture
def dropped(open_masters):
    """Return a function that starts a master which becomes www-data."""

    def start(text, **keywords):
        return open_masters.start("uid = www-data\ngid = www-data\n" + text, **keywords)

    return start


def test_master_really_becomes_the_user(dropped):
    master = dropped("attach-daemon2 = cmd=sleep 1000,name=one")
    for pid in (master.pid, master.pid_of("one")):
        status = status_of(pid)
        assert status["Uid"].split() == ["33"] * 4
        assert status["Gid"].split() == ["33"] * 4
        assert set(status["Groups"].split()) <= {"33"}
        for field in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[field], 16) == 0, field
    assert master.has_said(r"one: started, pid \d+, uid 33, gid 33,")
    assert master.stop() == 0


def test_add_gid_adds_a_group(dropped):
    master = dropped("add-gid = daemon\nattach-daemon2 = cmd=sleep 1000,name=one")
    assert "1" in status_of(master.pid)["Groups"].split()
    assert "1" in status_of(master.pid_of("one"))["Groups"].split()
    assert master.stop() == 0


def test_environment_of_the_daemons_follows_the_user(dropped, open_masters):
    master = dropped("attach-daemon2 = cmd={D}/show.py {T}/shown")
    env = shown(open_masters.directory / "shown")["env"]
    assert (env["USER"], env["LOGNAME"], env["HOME"]) == ("www-data", "www-data", "/var/www")
    assert master.stop() == 0


@pytest.mark.parametrize("rung", ["cgroup", "shim"])
@pytest.mark.parametrize("program", ["setsid_children.sh", "double_fork.sh"])
def test_dropped_master_ends_its_daemons_as_a_tree(dropped, open_masters, rung, program):
    if rung == "cgroup":
        need(has_cgroups(), "cgroup v2 that can be written")
    open_masters.checks_leftovers = False  # see the test of the directories below
    master = dropped(
        f"kill-domain = {rung}\nattach-daemon2 = cmd={{D}}/{program},name=one,stop_timeout=300ms"
    )
    for _ in range(3 if program == "setsid_children.sh" else 1):
        master.wait_output("settled")
    first = master.family()
    master.signal(signal.SIGHUP)
    master.wait_started("one")
    assert not [pid for pid in first if is_alive(pid)]
    assert master.stop() == 0
    assert not master.family()


@pytest.mark.parametrize("rung", ["cgroup", "shim"])
def test_killed_dropped_master_leaves_nothing(dropped, rung):
    if rung == "cgroup":
        need(has_cgroups(), "cgroup v2 that can be written")
    master = dropped(
        f"kill-domain = {rung}\nattach-daemon2 = cmd={{D}}/setsid_children.sh,name=one"
    )
    for _ in range(3):
        master.wait_output("settled")
    master.kill()
    master.wait_family_gone()


def test_dropped_master_lives_in_its_own_cgroup_and_leaves_none(dropped, open_masters):
    need(has_cgroups(), "cgroup v2 that can be written")
    master = dropped("kill-domain = cgroup\nattach-daemon2 = cmd=sleep 1000,name=one")
    (base,) = open_masters.cgroups()
    assert str(master.pid) in (base / "master" / "cgroup.procs").read_text().split()
    assert (base / "dumb").stat().st_uid == 33
    assert own_cgroup() == base.parent
    assert master.stop() == 0
    # Teardown waits for the guard, which is root still, and sees to the directories.


def test_guard_of_a_dropped_master_is_replaced(dropped, open_masters):
    need(has_cgroups(), "cgroup v2 that can be written")
    master = dropped("kill-domain = cgroup\nattach-daemon2 = cmd={D}/setsid_children.sh,name=one")
    for _ in range(3):
        master.wait_output("settled")
    first = master.guard()
    assert status_of(first)["Uid"].split()[0] == "0"
    send(first, signal.SIGKILL)
    master.wait_line("the guard was killed; starting another")
    assert is_alive(master.guard())
    master.kill()
    master.wait_family_gone()
    # The new guard is that user, who cannot remove the directory that root made: the next master
    # does.
    open_masters.wait_orphans()
    again = open_masters.launch("test.ini").wait_ready()
    assert again.stop() == 0


def test_daemon_of_the_dropped_user_restarts_after_a_crash(dropped):
    master = dropped("attach-daemon2 = cmd=sleep 1000,name=one")
    send(master.pid_of("one"), signal.SIGKILL)
    master.wait_line("one: pid .* was killed by SIGKILL")
    master.wait_started("one")
    assert master.stop() == 0


def test_daemon_with_another_identity_is_a_configuration_error(open_masters):
    master = open_masters.begin(
        "uid = www-data\nattach-daemon2 = cmd=sleep 1000,name=one,uid=daemon"
    )
    assert master.wait() == 78
    assert master.has_said(
        r"test\.ini:3: one: uid=daemon: the master drops its privileges and cannot change to it; "
        "set master-as-root = true"
    )


def test_master_as_root_drops_only_the_daemons(open_masters):
    master = open_masters.start(
        "uid = www-data\nmaster-as-root = true\n"
        "attach-daemon2 = cmd=sleep 1000,name=one\n"
        "attach-daemon2 = cmd=sleep 1000,name=two,uid=daemon\n"
    )
    assert status_of(master.pid)["Uid"].split() == ["0"] * 4
    assert status_of(master.pid_of("one"))["Uid"].split() == ["33"] * 4
    assert status_of(master.pid_of("two"))["Uid"].split() == ["1"] * 4
    assert master.stop() == 0


def test_user_by_number_without_an_entry_needs_a_group(open_masters):
    master = open_masters.begin("uid = 4242\nattach-daemon2 = cmd=sleep 1000,name=one")
    assert master.wait() == 78
    assert master.has_said("uid=4242: no user has this number.*give gid too")
    master = open_masters.start("uid = 4242\ngid = 4343\nattach-daemon2 = cmd=sleep 9,name=one")
    assert status_of(master.pid)["Uid"].split() == ["4242"] * 4
    assert status_of(master.pid)["Gid"].split() == ["4343"] * 4
    assert status_of(master.pid)["Groups"] == ""
    assert master.stop() == 0


def test_files_of_root_and_of_the_user(open_masters):
    """pidfile and logto are made before the drop, pidfile2 and logto2 after it."""
    master = open_masters.begin(
        "uid = www-data\npidfile = {T}/first\npidfile2 = {T}/second\nlogto2 = {T}/log\n"
        "attach-daemon2 = cmd=sleep 1000,name=one\nvacuum = true"
    )
    wait_text(open_masters.directory / "log", "ready: ")
    first, second = open_masters.directory / "first", open_masters.directory / "second"
    assert first.read_text() == second.read_text() == f"{master.pid}\n"
    assert first.stat().st_uid == 0
    assert second.stat().st_uid == 33
    assert (open_masters.directory / "log").stat().st_uid == 33
    assert master.stop() == 0


def test_dropped_master_needs_no_file_that_only_root_can_read(open_masters):
    """What it imports late must not be closed to its user: it has been seen to work until then."""
    master = open_masters.start(
        "uid = 4242\ngid = 4343\nattach-daemon2 = cmd={D}/exits.sh 1,name=one\n"
        "attach-daemon2 = cmd=sleep 1000,name=two,touch={T}/file\nmaster-fifo = {T}/fifo\n"
    )
    for number in (signal.SIGUSR1, signal.SIGHUP):
        master.signal(number)
    master.wait_line("reloaded")
    master.expect_silence("Traceback|ModuleNotFound|PermissionError")
    assert os.getuid() == 0
    assert master.stop() == 0
