"""memcached, dumb and smart: destroyed with its master, or governed by its pidfile."""

import os
import pwd
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from masters import (
    IS_ROOT,
    ROOT,
    RUNGS,
    daemon_line,
    find_program,
    free_port,
    is_alive,
    needs_root,
    rung_options,
    send,
    status_of,
    wait_file,
    wait_gone,
)
from real_programs import (
    QUICK,
    begin_adopting,
    begin_smart,
    count_starts,
    end_and_reap,
    outlive,
    read_pid,
    reload_without,
    replace_killed,
    stop_without,
)


class Client:
    """Speaks memcached's text protocol."""

    def __init__(self, address):
        self._socket = connect(address)
        self._file = self._socket.makefile("rwb")

    def ask(self, *lines):
        self._file.write("".join(f"{line}\r\n" for line in lines).encode())
        self._file.flush()
        return self._file.readline().decode().rstrip()

    def set(self, key, value):
        return self.ask(f"set {key} 0 0 {len(value)}", value)

    def get(self, key):
        answer = self.ask(f"get {key}")
        if answer == "END":
            return None
        value = self._file.readline().decode().rstrip()
        assert self._file.readline() == b"END\r\n"
        return value

    def is_closed(self, timeout=20):
        """Wait for the end of the connection: the server is gone."""
        ready, _, _ = select.select([self._socket], [], [], timeout)
        try:
            return bool(ready) and self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self._file.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def connect(address, timeout=20):
    """Connect as soon as the server, which was started a moment ago, listens."""
    end = time.monotonic() + timeout
    while True:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        client = socket.socket(family)
        try:
            client.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            client.close()
            assert time.monotonic() < end, f"nobody listens on {address}"
            select.select([], [], [], 0.01)
        else:
            return client


@pytest.fixture
def memcached():
    user = "-u nobody" if IS_ROOT else ""
    return f"{find_program('memcached')} {user}".strip()


def test_memcached_lives_and_dies_with_its_master(masters, memcached):
    """The first example of uWSGI's documentation."""
    port = free_port()
    address = ("127.0.0.1", port)
    master = masters.start(
        f"master = true\nsocket = :0\nattach-daemon = {memcached} -l 127.0.0.1 -p {port}\n"
    )
    first = master.pid_of("memcached")
    if IS_ROOT:
        assert int(status_of(first)["Uid"].split()[0]) in (0, pwd.getpwnam("nobody").pw_uid)
    with Client(address) as client:
        assert client.set("colour", "red") == "STORED"
        assert client.get("colour") == "red"

        # Killed: another takes its place, empty.
        send(first, signal.SIGKILL)
        assert client.is_closed()
    master.wait_line(rf"memcached: pid {first} was killed by SIGKILL \(9\) after")
    second = master.wait_started("memcached")
    assert second != first
    with Client(address) as client:
        assert client.get("colour") is None
        assert client.set("colour", "blue") == "STORED"

        # A reload destroys it.
        master.signal(signal.SIGHUP)
        assert client.is_closed()
    master.wait_line("reloaded")
    third = master.pid_of("memcached")
    assert third not in (first, second)
    assert not is_alive(second)
    with Client(address) as client:
        assert client.get("colour") is None

        # So does the end of the master.
        assert master.stop() == 0
        assert client.is_closed()
    assert not is_alive(third)
    with socket.socket() as probe:
        assert probe.connect_ex(address) != 0


def test_memcached_dies_with_a_killed_master(open_masters, memcached):
    path = str(open_masters.directory / "memcached.sock")
    master = open_masters.start(f"attach-daemon2 = cmd={memcached} -s {path} -a 0777,name=cache\n")
    with Client(path) as client:
        assert client.set("a", "1") == "STORED"
        master.kill()
        assert client.is_closed()
    master.wait_family_gone()


def test_memcached_that_goes_to_the_background_gets_a_hint(open_masters, memcached):
    """With -d it leaves its session, which is for smart-attach-daemon; it is a dumb one still."""
    path = str(open_masters.directory / "memcached.sock")
    master = open_masters.begin(f"attach-daemon2 = cmd={memcached} -d -s {path},name=cache\n")
    master.wait_line(
        r"cache: pid \d+ exited with 0 after .* and left processes running: .*smart-attach-daemon"
    )
    with Client(path) as client:
        assert client.set("a", "1") == "STORED"
        assert master.stop() == 0
        assert client.is_closed()
    assert not master.family()
    assert count_starts(master, "cache") == 1


class Memory:
    """What a memcached was told: as long as the same one runs, it knows."""

    def __init__(self, path):
        self._path, self._told = str(path), 0

    def work(self):
        """Ask for what it was told last, and tell it something new."""
        with Client(self._path) as client:
            if self._told:
                assert client.get("number") == str(self._told)
            self._told += 1
            assert client.set("number", str(self._told)) == "STORED"

    def forget(self):
        self._told = 0


@pytest.fixture
def smart(open_masters, memcached):
    """Return masters, the command of a memcached in the background, its pidfile and memory."""
    open_masters.allow_survivors()
    path = open_masters.directory
    pidfile = path / "memcached.pid"
    command = f"{memcached} -d -P {pidfile} -s {path}/memcached.sock -a 0777"
    return open_masters, command, pidfile, Memory(path / "memcached.sock")


def test_smart_memcached_lives_through_it_all(smart):
    """The second example of uWSGI's documentation."""
    masters, command, pidfile, memory = smart
    text = f"master = true\nsocket = :0\nsmart-attach-daemon = {pidfile} {command}\n"
    master, pid = begin_smart(masters, text, "memcached")
    assert read_pid(pidfile) == pid
    if IS_ROOT:
        assert int(status_of(pid)["Uid"].split()[1]) == pwd.getpwnam("nobody").pw_uid
    memory.work()
    stop_without(master, "memcached", pid)
    memory.work()

    master = begin_adopting(masters, text, "memcached", pid)
    reload_without(master, "memcached", pid)
    memory.work()

    master.kill()
    memory.work()
    master = begin_adopting(masters, text, "memcached", pid)
    memory.work()

    # It dies, and another serves; nobody waits for anything before that one is started.
    outlive(pid, QUICK)
    end_and_reap(pid)
    memory.forget()
    memory.work()
    died = rf"memcached: pid {pid} (was killed by SIGKILL \(9\)|ended) after .*starting again"
    master.wait_line(died)
    new = master.wait_started("memcached")
    assert new == read_pid(pidfile) != pid
    memory.work()


@pytest.mark.parametrize("rung", RUNGS)
def test_smart_memcached_in_every_kill_domain(smart, rung):
    """With a pid namespace, the pidfile that it writes holds its number in there."""
    masters, command, pidfile, memory = smart
    text = rung_options(rung) + daemon_line(rung, command, name="cache", pidfile=pidfile)
    master, pid = begin_smart(masters, text, "cache")
    assert (read_pid(pidfile) == pid) == (rung != "pidns")
    memory.work()
    stop_without(master, "cache", pid)
    memory.work()
    master = begin_adopting(masters, text, "cache", pid)
    reload_without(master, "cache", pid)
    memory.work()
    master.kill()
    memory.work()
    master = begin_adopting(masters, text, "cache", pid)
    memory.work()
    new = replace_killed(master, "cache", pid)
    memory.forget()
    memory.work()
    assert is_alive(new)


def test_memcached_in_the_foreground_that_lowsuper_daemonizes(open_masters, memcached):
    open_masters.allow_survivors()
    path = open_masters.directory
    memory = Memory(path / "memcached.sock")
    pidfile = path / "memcached.pid"
    command = f"{memcached} -s {path}/memcached.sock -a 0777"
    text = f"smart-attach-daemon2 = {pidfile} {command}\n"
    master, pid = begin_smart(open_masters, text, "memcached")
    assert pidfile.read_text() == f"{pid}\n"
    assert pidfile.stat().st_mode & 0o777 == 0o644
    assert pidfile.stat().st_uid == pwd.getpwnam("root").pw_uid or not IS_ROOT
    memory.work()
    stop_without(master, "memcached", pid)
    master = begin_adopting(open_masters, text, "memcached", pid)
    master.kill()
    memory.work()
    master = begin_adopting(open_masters, text, "memcached", pid)
    reload_without(master, "memcached", pid)
    memory.work()
    new = replace_killed(master, "memcached", pid)
    assert pidfile.read_text() == f"{new}\n"
    memory.forget()
    memory.work()


def test_touch_restarts_a_smart_memcached(smart):
    masters, command, pidfile, memory = smart
    touched = masters.directory / "touch"
    touched.write_text("")
    text = f"attach-daemon2 = cmd={command},pidfile={pidfile},touch={touched},name=cache\n"
    master, first = begin_smart(masters, text, "cache")
    memory.work()
    stop_without(master, "cache", first)
    # Also one that it has only found.
    master = begin_adopting(masters, text, "cache", first)
    Path(touched).touch()
    second = master.wait_started("cache")
    assert second == read_pid(pidfile) != first
    assert not is_alive(first)
    memory.forget()
    memory.work()


def test_notified_memcached_ends_with_a_stop_and_not_with_a_killed_master(smart):
    masters, command, pidfile, memory = smart
    text = f"attach-daemon2 = cmd={command},pidfile={pidfile},notifypid,name=cache\n"
    master, pid = begin_smart(masters, text, "cache")
    master.kill()
    memory.work()
    master = begin_adopting(masters, text, "cache", pid)
    assert master.stop() == 0
    assert master.has_said(rf"cache: stop: left running, pid {pid}, told by SIGTERM \(15\)")
    wait_gone(pid)


def test_memcached_of_a_person_is_taken_over(smart):
    """Started by hand, or by uWSGI before a migration: its executable is the configured one."""
    masters, command, pidfile, memory = smart
    subprocess.run(command.split(), check=True)
    wait_file(pidfile)
    memory.work()
    pid = read_pid(pidfile)
    text = f"smart-attach-daemon = {pidfile} {command}\n"
    master = begin_adopting(masters, text, "memcached", pid)
    memory.work()
    master.kill()
    master = begin_adopting(masters, text, "memcached", pid)
    memory.work()
    new = replace_killed(master, "memcached", pid)
    assert read_pid(pidfile) == new


@needs_root
@pytest.mark.usefixtures("memcached")
def test_isolated_memcached_of_the_example_serves(masters):
    text = (ROOT / "lowsuper" / "examples" / "isolation.ini").read_text()
    port = free_port()
    master = masters.start(text.replace("11311", str(port)))
    pid = master.pid_of("memcached")
    with Client(("127.0.0.1", port)) as client:
        assert client.set("colour", "red") == "STORED"
        assert client.get("colour") == "red"
        status = status_of(pid)
        assert {int(status[f"Cap{name}"], 16) for name in ("Prm", "Eff", "Bnd", "Amb")} == {0}
        assert (status["NoNewPrivs"], status["Umask"]) == ("1", "0077")
        assert os.getpriority(os.PRIO_PROCESS, pid) == 5
        for name in ("pid", "mnt", "uts", "ipc"):
            own = os.readlink(f"/proc/self/ns/{name}")
            assert os.readlink(f"/proc/{pid}/ns/{name}") != own
    assert master.stop() == 0
