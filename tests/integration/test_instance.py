"""One master of a configuration: locks, names, the socket file, and who finds whom."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from masters import NOBODY, needs_root, wait_gone
from steering import Client, socket_of

from lowsuper.kernel import instance

SLEEP = "attach-daemon2 = name=web,cmd=sleep 1000\n"


def runtime(masters) -> Path:
    return Path(masters.directory) / ".run"


def find(masters) -> dict[str, instance.Instance]:
    return {each.name: each for each in instance.find_instances(str(runtime(masters)))}


def test_instance_is_found_by_name_and_by_file(masters):
    master = masters.start(SLEEP)
    file = str(masters.directory / "test.ini")
    assert find(masters) == {
        "test": instance.Instance("test", master.pid, file, socket_of(masters))
    }
    assert instance.find_pid(file, str(runtime(masters))) == master.pid
    assert instance.find_pid("/nowhere.ini", str(runtime(masters))) == 0
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in runtime(masters).iterdir()}
    assert modes.pop("test.sock") == 0o660
    assert modes.pop("test.lock") == 0o600
    assert list(modes.values()) == [0o600]
    assert stat.S_IMODE(runtime(masters).stat().st_mode) == 0o755
    assert master.stop() == 0
    assert find(masters) == {}
    assert list(runtime(masters).iterdir()) == []
    assert instance.find_pid(file, str(runtime(masters))) == 0


@pytest.mark.parametrize("rung", ["", "kill-domain = shim\n"])
def test_second_master_of_a_file_is_refused(masters, rung):
    first = masters.start(rung + SLEEP)
    second = masters.launch("test.ini")
    assert second.wait() == 125
    assert len(second.lines) == 1
    assert f"test.ini is already run by another lowsuper, with pid {first.pid};" in second.text
    assert "instance = OTHER" in second.text
    third = masters.launch("test.ini", "--instance", "other", "--kill-domain", "shim").wait_ready()
    assert {name: each.pid for name, each in find(masters).items()} == {
        "test": first.pid,
        "other": third.pid,
    }
    file = str(masters.directory / "test.ini")
    with pytest.raises(instance.LowsuperError, match=r"other \(pid .*test \(pid"):
        instance.find_pid(file, str(runtime(masters)))
    fourth = masters.launch("test.ini", "--instance", "other")
    assert fourth.wait() == 125
    assert f"the instance other is already run by another lowsuper, with pid {third.pid}" in (
        fourth.text
    )
    assert first.stop() == third.stop() == 0


def test_masters_of_one_file_that_start_at_once_agree_on_one(masters):
    masters.write("kill-domain = shim\n" + SLEEP)
    all_ = [masters.launch("test.ini") for _ in range(6)]
    winners = [each for each in all_ if not is_refused(each)]
    assert len(winners) == 1
    assert winners[0].stop() == 0


def is_refused(master) -> bool:
    """Wait until it is clear what becomes of a master."""
    found = master.wait_line("already run by another|ready: ")[0]
    if found == "ready: ":
        return False
    assert master.wait() == 125
    return True


def test_same_base_name_elsewhere_gets_a_name_of_its_own(masters):
    first = masters.start(SLEEP)
    file = masters.directory / "sub" / "test.ini"
    file.parent.mkdir()
    file.write_text("[uwsgi]\nkill-domain = shim\n" + SLEEP)
    second = masters.launch(str(file)).wait_ready()
    names = {each.pid: name for name, each in find(masters).items()}
    assert names[first.pid] == "test"
    digest = instance._hash(str(file))
    assert names[second.pid] == f"test-{digest:08x}"
    with Client(socket_of(masters, names[second.pid])) as client:
        assert client.done("hello")["instance"]["pid"] == second.pid
    assert first.stop() == second.stop() == 0


def test_masters_without_a_file_have_names(masters):
    all_ = [
        masters.launch("--attach-daemon", "sleep 1000", "--kill-domain", "shim").wait_ready()
        for _ in range(2)
    ]
    assert set(find(masters)) == {"lowsuper", f"lowsuper-{all_[1].pid}"}
    assert [each.stop() for each in all_] == [0, 0]


def test_killed_master_is_in_nobodys_way(masters):
    first = masters.start(SLEEP)
    first.kill()
    assert Path(socket_of(masters)).exists()
    assert find(masters) == {}
    second = masters.launch("test.ini").wait_ready()
    assert find(masters)["test"].pid == second.pid
    with Client(socket_of(masters)) as client:
        client.done("hello")
    assert second.stop() == 0
    assert list(runtime(masters).iterdir()) == []


def test_removed_socket_is_made_again(masters):
    master = masters.start(SLEEP)
    path = Path(socket_of(masters))
    for _ in range(3):
        path.unlink()
        master.wait_line("removed or replaced; made again")
        with Client(str(path)) as client:
            client.done("hello")


def test_removed_lock_is_made_again(masters):
    master = masters.start(SLEEP)
    (runtime(masters) / "test.lock").unlink()
    master.wait_line("made again")
    second = masters.launch("test.ini")
    assert second.wait() == 125
    assert find(masters)["test"].pid == master.pid


def test_removed_directory_is_made_again(masters):
    master = masters.start(SLEEP)
    other = runtime(masters).with_name("moved")
    runtime(masters).rename(other)
    (other / "test.sock").unlink()
    master.wait_line("made again")
    with Client(socket_of(masters)) as client:
        client.done("hello")
    assert masters.launch("test.ini").wait() == 125
    assert master.stop() == 0
    assert list(runtime(masters).iterdir()) == []


def test_something_in_place_of_the_socket_is_left_alone_and_said(masters):
    master = masters.start(SLEEP)
    path = Path(socket_of(masters))
    new = path.with_name("new")
    new.write_text("mine")
    new.rename(path)
    master.wait_line("cannot be made again: there is something that is no socket")
    assert path.read_text() == "mine"
    assert master.stop() == 0
    assert path.read_text() == "mine"


def test_clients_that_are_connected_stay_so_when_the_socket_is_made_again(masters):
    master = masters.start(SLEEP)
    with Client(socket_of(masters)) as client:
        client.done("hello")
        Path(socket_of(masters)).unlink()
        master.wait_line("made again")
        client.done("status")


@pytest.mark.parametrize("what", ["link", "others", "file"])
def test_directory_that_is_not_to_be_trusted_is_refused_and_the_master_runs(masters, what):
    place = masters.directory / "place"
    if what == "link":
        (masters.directory / "real").mkdir()
        place.symlink_to("real")
    elif what == "others":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_text("")
    master = masters.start(f"runtime-dir = {place}\n" + SLEEP)
    assert len([line for line in master.lines if "no control socket" in line]) == 1
    assert master.stop() == 0
    assert not list(masters.directory.glob("**/*.sock"))


@needs_root
def test_user_without_a_runtime_directory_runs_all_the_same(open_masters):
    open_masters.write("kill-domain = shim\n" + SLEEP)
    become = ("env", "-u", "LOWSUPER_RUNTIME_DIR", "-u", "XDG_RUNTIME_DIR", "setpriv",
              f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")  # fmt: skip
    for _ in range(2):  # and they do not clash
        master = open_masters.launch("test.ini", "--kill-domain=shim", prefix=become)
        master.wait_line("no control socket: an ordinary user without XDG_RUNTIME_DIR")
        master.wait_ready()


@needs_root
def test_directory_of_somebody_else_is_refused(open_masters):
    place = Path(open_masters.directory) / "place"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    master = open_masters.begin(f"runtime-dir = {place}\n" + SLEEP)
    master.wait_line(f"no control socket: .*belongs to uid {NOBODY}")
    master.wait_ready()


def test_socket_where_the_configuration_wants_it_or_none(masters):
    path = masters.directory / "here.sock"
    master = masters.start(f"control-socket = {path}\ncontrol-mode = 600\n" + SLEEP)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    with Client(str(path)) as client:
        client.done("hello")
    assert not Path(socket_of(masters)).exists()
    assert master.stop() == 0
    assert not path.exists()
    master = masters.start("control-socket = none\n" + SLEEP)
    assert list(runtime(masters).glob("*.sock")) == []
    assert find(masters)["test"] == instance.Instance(
        "test", master.pid, str(masters.directory / "test.ini"), ""
    )
    assert masters.launch("test.ini").wait() == 125
    assert master.stop() == 0


@needs_root
def test_owner_of_the_socket_may_do_everything(masters):
    rules = f"control-owner = nobody:{NOBODY - 1}\ncontrol-mode = 640\n"
    masters.start(rules + SLEEP)
    status = os.lstat(socket_of(masters))
    assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY - 1)
    assert stat.S_IMODE(status.st_mode) == 0o640


@pytest.mark.parametrize(
    "line",
    [
        "control-allow = nobody-of-that-name read",
        "control-allow = @nogroup-of-that-name read",
        "control-owner = nobody-of-that-name",
        "control-allow = root dance",
        "control-socket = here",
        "runtime-dir = here",
    ],
)
def test_wrong_rule_is_an_error_of_the_configuration(masters, line):
    master = masters.begin(line + "\n" + SLEEP)
    assert master.wait() == 78
    assert "test.ini:2: " in master.text
    assert line.partition(" ")[0] in master.text


def test_long_path_is_no_hindrance(masters):
    place = masters.directory / ("long" * 30) / ("way" * 30)
    place.parent.mkdir()
    master = masters.start(f"runtime-dir = {place}\n" + SLEEP)
    with Client(str(place / "test.sock")) as client:
        assert client.done("hello")["instance"]["pid"] == master.pid
    assert instance.find_instances(str(place))[0].pid == master.pid
    assert master.stop() == 0


def test_name_stays_over_a_reload(masters):
    master = masters.start(SLEEP)
    masters.write("instance = other\n" + SLEEP)
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded in")
    assert set(find(masters)) == {"test"}
    with Client(socket_of(masters)) as client:
        assert client.done("hello")["instance"]["name"] == "test"


def test_master_in_the_background_holds_the_locks_itself(masters):
    log = masters.directory / "log"
    caller = masters.begin(f"daemonize2 = {log}\npidfile = {{T}}/pid\n" + SLEEP)
    assert caller.wait() == 0
    pid = int((masters.directory / "pid").read_text())
    try:
        assert find(masters)["test"].pid == pid
        with Client(socket_of(masters)) as client:
            assert client.done("hello")["instance"]["pid"] == pid
            assert instance.read_peer(client.socket)[0] == pid
        assert masters.launch("test.ini").wait() == 125
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)
    assert find(masters) == {}


def test_daemons_inherit_neither_lock_nor_socket(masters):
    master = masters.start(SLEEP)
    pid = master.pid_of("web")
    held = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # Race: the program's loader closes its own.
            held[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    assert {"0", "1", "2"} <= held.keys()
    assert not any("lock" in each or "socket" in each for each in held.values())


def test_failed_start_leaves_nothing(masters):
    master = masters.begin("master-fifo = /nowhere/fifo\n" + SLEEP)
    assert master.wait() == 125
    assert list(runtime(masters).iterdir()) == []


def test_somebody_elses_socket_is_not_removed(masters):
    path = masters.directory / "here.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        status = path.lstat()
        master = masters.start(f"control-socket = {path}\n" + SLEEP)
        assert master.has_said("no control socket: .*somebody else listens there")
        assert master.stop() == 0
        assert path.lstat().st_ino == status.st_ino


def test_socket_has_the_mode_from_its_first_moment(masters):
    """A umask that takes bits, or gives too many, changes nothing."""
    for umask in (0, 0o077):
        master = masters.start(SLEEP, prefix=("sh", "-c", f'umask {umask:o}; exec "$@"', "sh"))
        assert stat.S_IMODE(os.lstat(socket_of(masters)).st_mode) == 0o660
        assert master.stop() == 0
