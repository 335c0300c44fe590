"""The reference example: ssh with a terminal into a jail, whose end is that of every session."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
from jails import find_first, make_root, read_mounts
from masters import DEADLINE, ROOT, need, needs_root

pytestmark = [needs_root, pytest.mark.usefixtures("own_mounts")]

EXAMPLE = ROOT / "lowsuper" / "examples" / "dropbear-jail.ini"
DROPBEAR = "/usr/sbin/dropbear"
DEVICES = {"null": (1, 3), "urandom": (1, 9), "tty": (5, 0), "ptmx": (5, 2)}


class Session:
    """An ssh client with a terminal."""

    def __init__(self, home: Path, port: int):
        self._fd, theirs = pty.openpty()
        self.client = subprocess.Popen(
            ["dbclient", "-y", "-y", "-t", "-i", home / "key", "-p", str(port), "root@127.0.0.1"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "HOME": str(home)},
            start_new_session=True,
        )
        os.close(theirs)
        self.text = ""

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Return the match of a pattern in what came since the last."""
        end = time.monotonic() + DEADLINE
        while not (match := re.search(pattern, self.text, re.MULTILINE)):
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.text!r}"
            if select.select([self._fd], [], [], left)[0]:
                self.text += os.read(self._fd, 65536).decode().replace("\r\n", "\n")
        self.text = self.text[match.end() :]
        return match

    def close(self) -> None:
        self.client.kill()
        self.client.wait()
        os.close(self._fd)


@pytest.fixture
def home(tmp_path):
    """Return the directory of a user with a key."""
    for program in (DROPBEAR, "/usr/bin/dbclient", "/usr/bin/dropbearkey"):
        need(os.path.exists(program), program)
    path = tmp_path / "home"
    path.mkdir()
    subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", path / "key"], check=True, capture_output=True
    )
    return path


@pytest.fixture
def root(tmp_path, home):
    """Return a root file system with dropbear and its libraries, busybox, keys and devices."""
    path = make_root(tmp_path / "ns" / "001")
    for name in ("dev/pts", "etc/dropbear", "root/.ssh", "usr/sbin", "var/run"):
        (path / name).mkdir(parents=True)
    for name in ("chown", "setsid", "tty"):
        (path / "bin" / name).symlink_to("busybox")
    shutil.copy(DROPBEAR, path / "usr/sbin")
    libraries = subprocess.run(["ldd", DROPBEAR], check=True, capture_output=True, text=True)
    for library in re.findall(r"(/\S+) \(", libraries.stdout):
        (path / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, path / library[1:])
    for name, (major, minor) in DEVICES.items():
        os.mknod(path / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        (path / "dev" / name).chmod(0o666)
    (path / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\n"
    )
    (path / "etc/shells").write_text("/bin/sh\n")
    key = subprocess.run(
        ["dropbearkey", "-y", "-f", home / "key"], check=True, capture_output=True, text=True
    )
    public = next(line for line in key.stdout.splitlines() if line.startswith("ssh-"))
    (path / "root/.ssh/authorized_keys").write_text(public + "\n")
    for name, mode in (("root", 0o700), ("root/.ssh", 0o700), ("root/.ssh/authorized_keys", 0o600)):
        (path / name).chmod(mode)
    subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", path / "etc/dropbear/dropbear_ed25519_host_key"],
        check=True,
        capture_output=True,
    )
    return path


@pytest.fixture
def port():
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def connect(home, port):
    """Return what opens a session."""
    with contextlib.ExitStack() as sessions:

        def open_session() -> Session:
            session = Session(home, port)
            sessions.callback(session.close)
            session.expect("~ # ")
            return session

        yield open_session


@pytest.fixture
def master(masters, root, port):
    """Return a master with the example, which differs only in the root and the port."""
    text = EXAMPLE.read_text()
    assert "namespace = /ns/001/:testns\n" in text
    assert " -p 1022 " in text
    text = text.replace("/ns/001/:testns", f"{root}/:testns").replace("1022", f"127.0.0.1:{port}")
    before = read_mounts()
    master = masters.start(text)
    wait_listening(port)
    assert read_mounts() == before
    yield master
    assert read_mounts() == before


def wait_listening(port):
    end = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        assert time.monotonic() < end, "dropbear does not listen"
        select.select([], [], [], 0.01)


def list_jailed(first):
    """Return the pids, outside, of all processes of the pid namespace of a process."""
    name = os.readlink(f"/proc/{first}/ns/pid")
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == name:
                found.append(int(entry))
    return found


def test_login_with_a_terminal_sees_the_jail_and_nothing_else(master, connect, root):
    session = connect()
    session.type("tty; hostname; cat /proc/1/comm; echo mounts: $(cat /proc/mounts | wc -l)")
    session.expect(r"^/dev/pts/\d+\ntestns\n(lowsuper|python\S*)\n")
    session.type("cat /proc/mounts; ls -d /proc/[0-9]* | while read p; do cat $p/comm; done")
    session.type("ls /; echo o''ver")
    seen = session.expect(r"[\s\S]*^over$")[0]
    points = set(re.findall(r"^\S+ (/\S*) \S+ \S+ 0 0$", seen, re.MULTILINE))
    assert points == {"/", "/proc", "/dev/pts"}
    assert "dropbear" in seen
    assert "pytest" not in seen
    assert (root / "etc/dropbear").stat().st_uid == 33
    assert master.stop() == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_end_of_the_master_ends_every_session_and_what_it_started(master, connect, end):
    sessions = [connect() for _ in range(2)]
    # Out of dropbear's tree, session and process group.
    sessions[0].type("(setsid sh -c 'trap \"\" TERM HUP INT; sleep 1000' &); echo be''gun")
    sessions[0].expect("^begun$")
    jailed = list_jailed(find_first(master))
    assert len(jailed) >= 8
    pidfds = [os.pidfd_open(pid) for pid in jailed]
    try:
        if end == signal.SIGTERM:
            assert master.stop() == 0
        else:
            master.kill()
        for session in sessions:
            session.client.wait(DEADLINE)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], DEADLINE)[0]
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def test_reload_ends_the_sessions_and_takes_new_ones(master, connect, port):
    session = connect()
    master.signal(signal.SIGHUP)
    master.wait_line("making|to make a new one")
    session.client.wait(DEADLINE)
    master.wait_ready()
    wait_listening(port)
    again = connect()
    again.type("hostname")
    again.expect("^testns$")
    assert master.stop() == 0
