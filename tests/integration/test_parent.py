"""What lowsuper tells whoever has started it, by sd_notify(3)."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time

import pytest
from masters import DEADLINE, needs_root, read_environ
from puppets import Puppet

from lowsuper.kernel.loop import Loop
from lowsuper.kernel.parent import Relay


class Manager:
    """The socket of a service manager, and what came to it."""

    def __init__(self, path, **variables):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(os.fspath(path))
        self._socket.settimeout(DEADLINE)
        self.env = {"NOTIFY_SOCKET": os.fspath(path), **variables}
        self.pid = 0  # of the last sender

    def get(self, wanted):
        """Return the fields of the next message with `wanted`; those before it are dropped."""
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            self.pid = int.from_bytes(ancillary[0][2][:4], "little")
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            if wanted in fields:
                return fields

    def is_empty(self):
        return not select.select([self._socket], [], [], 0)[0]

    def close(self):
        self._socket.close()


@pytest.fixture
def manager(masters):
    manager = Manager(masters.directory / "manager")
    yield manager
    manager.close()


@pytest.fixture
def puppet(masters):
    puppet = Puppet(masters.directory)
    yield puppet
    puppet.close()


def test_ready_comes_when_the_daemons_are(masters, manager, puppet):
    master = masters.begin(puppet.line("ready=fd:3"), env=manager.env)
    master.wait_output("puppet at work")
    select.select([], [], [], 0.1)
    assert manager.is_empty()
    puppet.do(master, "line", 3)
    fields = manager.get("READY")
    assert fields == {"READY": "1", "STATUS": "ready: 1 daemon"}
    assert manager.pid == master.pid
    assert b"NOTIFY_SOCKET" not in read_environ(str(master.pid_of("puppet")))
    master.stop()
    assert manager.get("STOPPING")["STATUS"] == "stopping: 1 daemon"
    assert manager.is_empty()


def test_reload_is_told_with_its_time_and_its_end(masters, manager):
    text = "attach-daemon = sleep 1000\n"
    master = masters.begin(text, env=manager.env)
    manager.get("READY")
    before = time.monotonic_ns() // 1000
    master.signal(signal.SIGHUP)
    fields = manager.get("RELOADING")
    assert before <= int(fields["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert "READY" not in fields
    manager.get("READY")
    master.wait_line("reloaded in ")
    masters.write(text + "attach-daemon2 = nonsense\n")
    master.signal(signal.SIGHUP)
    manager.get("RELOADING")
    manager.get("READY")
    master.wait_line("nothing was changed")


def test_signs_of_life_come_twice_as_often_as_they_must(masters):
    manager = Manager(masters.directory / "manager", WATCHDOG_USEC="200000")
    try:
        master = masters.begin("attach-daemon = sleep 1000\n", env=manager.env)
        manager.get("READY")
        times = []
        for _ in range(6):
            assert manager.get("WATCHDOG") == {"WATCHDOG": "1"}
            times.append(time.monotonic())
        assert times[-1] - times[0] > 0.3
        master.signal(signal.SIGSTOP)
        time_of_silence = select.select([manager._socket], [], [], 0.5)[0]
        assert not time_of_silence or manager.get("WATCHDOG")
        assert manager.is_empty()
        master.signal(signal.SIGCONT)
        manager.get("WATCHDOG")
    finally:
        manager.close()


def test_signs_of_life_that_are_asked_of_another_are_not_given(masters):
    manager = Manager(masters.directory / "manager", WATCHDOG_USEC="20000", WATCHDOG_PID="1")
    try:
        masters.begin("attach-daemon = sleep 1000\n", env=manager.env)
        manager.get("READY")
        select.select([], [], [], 0.1)  # ten times as long
        assert manager.is_empty()
    finally:
        manager.close()


def test_master_in_the_background_names_itself(masters, manager):
    log, pidfile = masters.directory / "log", masters.directory / "pid"
    text = f"daemonize = {log}\npidfile = {pidfile}\nattach-daemon = sleep 1000\n"
    master = masters.begin(text, env=manager.env)
    fields = manager.get("READY")
    assert int(fields["MAINPID"]) == manager.pid == int(pidfile.read_text())
    assert master.wait() == 0
    os.kill(manager.pid, signal.SIGTERM)
    manager.get("STOPPING")


@needs_root
def test_process_outside_of_a_jail_tells(masters, manager):
    root = masters.directory / "root"
    root.mkdir()
    text = f"namespace = {root}:jailed\nnamespace-keep-mount = /usr\nnamespace-keep-mount = /lib\n"
    text += "namespace-keep-mount = optional:/lib64\nattach-daemon = /usr/bin/sleep 1000\n"
    for name in ("usr", "lib", "lib64"):
        (root / name).mkdir()
    master = masters.begin(text, env=manager.env)
    assert manager.get("READY")["STATUS"] == "ready: 1 daemon in a jail"
    assert manager.pid == master.pid
    master.signal(signal.SIGHUP)
    manager.get("RELOADING")
    manager.get("READY")
    assert master.stop() == 0
    manager.get("STOPPING")
    assert manager.is_empty()


@pytest.mark.parametrize("address", ["vsock:2:1", "relative", "@", "/nobody/there"])
def test_manager_that_cannot_be_told_is_no_obstacle(masters, address):
    master = masters.begin("attach-daemon = sleep 1000\n", env={"NOTIFY_SOCKET": address})
    line = "nobody is told" if not address.startswith("/n") else "/nobody/there: No such file"
    master.wait_lines(line, "lowsuper: ready: ")
    assert master.stop() == 0


def test_manager_that_does_not_read_is_no_obstacle(masters, manager):
    """Its queue is full: 10 datagrams, or 512 where systemd runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
        other.connect(manager.env["NOTIFY_SOCKET"])
        while select.select([], [other], [], 0)[1]:
            other.send(b"X=1")
    masters.start("attach-daemon = sleep 1000\n", env=manager.env)
    assert manager.get("READY")["READY"] == "1"


# In front of a master: `run FILE -- COMMAND`.


@pytest.fixture
def front(masters, manager):
    """Start a front that says what it knows of itself in the variables of sd_notify(3)."""
    words = 'WATCHDOG_PID=$$ exec "$@"'
    prefix = ("sh", "-c", words, "sh")
    path = masters.write("attach-daemon = sleep 1000\n")

    def begin(*command, **variables):
        env = {**manager.env, **variables}
        return masters.launch("run", str(path), "--", *command, prefix=prefix, env=env)

    return begin


def test_process_in_front_speaks_for_its_master(manager, front):
    """A service manager that believes only whom it has started (NotifyAccess=main) believes it."""
    one = front("sh", "-c", "echo up; env; exec sleep 1000")
    fields = manager.get("READY")
    assert (manager.pid, fields) == (one.pid, {"READY": "1", "STATUS": "ready: 1 daemon"})
    # The command has the variables that it would have without us.
    one.wait_output(f"^NOTIFY_SOCKET={manager.env['NOTIFY_SOCKET']}$")
    one.signal(signal.SIGTERM)
    assert manager.get("STOPPING")["STATUS"] == "stopping: 1 daemon"
    assert manager.pid == one.pid
    one.wait()
    assert manager.is_empty()


def test_signs_of_life_are_those_of_the_master(manager, front):
    one = front("sleep", "1000", WATCHDOG_USEC="100000")
    for _ in range(3):
        manager.get("WATCHDOG")
        assert manager.pid == one.pid
    master = min(one.family() - {one.pid})
    os.kill(master, signal.SIGSTOP)
    try:
        while select.select([manager._socket], [], [], 0.3)[0]:
            manager.get("WATCHDOG")
    finally:
        os.kill(master, signal.SIGCONT)
    manager.get("WATCHDOG")
    one.signal(signal.SIGTERM)
    one.wait()


def test_relay_believes_only_its_master(manager):
    loop = Loop()
    relay = Relay(manager.env["NOTIFY_SOCKET"])
    environ = {"WATCHDOG_PID": "5"}
    relay.equip(environ, 5)
    assert environ["WATCHDOG_PID"] == str(os.getpid())
    address = "\0" + environ["NOTIFY_SOCKET"][1:]
    relay.attach(os.getpid(), loop, print)
    code = f"import socket; socket.socket(1, 2).sendto(b'READY=1', {address!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        own.sendto(b"STATUS=own", address)
    relay.take()
    assert manager.get("STATUS") == {"STATUS": "own"}
    assert manager.is_empty()
    relay.close(0)
    loop.close()
