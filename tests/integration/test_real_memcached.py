"""memcached as a dumb daemon: destroyed on reload and stop, respawned when killed."""

import pwd
import select
import signal
import socket
import time

import pytest
from masters import IS_ROOT, find_program, free_port, is_alive, send, status_of


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


def test_memcached_that_goes_to_the_background_is_ended_all_the_same(open_masters, memcached):
    """With -d it leaves its session, which is for smart-attach-daemon."""
    path = str(open_masters.directory / "memcached.sock")
    master = open_masters.begin(f"attach-daemon2 = cmd={memcached} -d -s {path},name=cache\n")
    # Its own process ends, what it left in the background is then ended before it starts again.
    master.wait_line(r"cache: pid \d+ exited with 0 after .* and left processes behind")
    master.wait_line(r"cache: pid \d+ exited with 0, nothing left after")
    assert master.stop() == 0
    assert not master.family()
