"""Namespaces over a socket: masters that share theirs, masters that join, and uWSGI."""

from __future__ import annotations

import array
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from jails import find_first, make_root
from masters import NOBODY, children_of, need, needs_root, wait_gone

pytestmark = [needs_root, pytest.mark.usefixtures("own_mounts")]

SLEEP = "attach-daemon = sleep 1000"
WORD = b"uwsgi-setns"
DEADLINE = 20


@pytest.fixture
def path(tmp_path):
    """Return where a socket may be."""
    return tmp_path / "ns.socket"


def text_of(*lines):
    return "\n".join([*lines, ""])


def namespace_of(pid, name):
    return os.readlink(f"/proc/{pid}/ns/{name}")


def find_inner(master):
    (pid,) = children_of(master.pid)
    return pid


def uwsgi():
    """Return the program uWSGI, of the tests' own Python or of the path."""
    names = [Path(sys.executable).with_name("uwsgi"), Path("/usr/bin/uwsgi")]
    if "TEST_UWSGI" in os.environ:
        names.insert(0, Path(os.environ["TEST_UWSGI"]))
    found = next((name for name in names if name.exists()), None)
    need(found is not None, "uWSGI")
    return str(found)


def test_join_the_network_of_another_while_both_live_and_after_it_has_ended(masters, path):
    first = masters.start(text_of("unshare = net", f"setns-socket = {path}", SLEEP), name="a.ini")
    second = masters.start(text_of(f"setns = {path}", SLEEP), name="b.ini")
    inner = find_inner(second)
    net = namespace_of(find_inner(first), "net")
    assert namespace_of(inner, "net") == net != namespace_of("self", "net")
    for kind in ("mnt", "pid", "uts", "ipc"):
        assert namespace_of(inner, kind) == namespace_of("self", kind)
    assert first.stop() == 0
    assert not path.exists()
    assert namespace_of(inner, "net") == net
    assert second.stop() == 0


def test_join_a_jail_with_its_root_and_processes(masters, path, tmp_path):
    root = make_root(tmp_path / "root")
    first = masters.start(
        text_of(f"namespace = {root}:testns", f"setns-socket = {path}", SLEEP), name="a.ini"
    )
    show = "exec-as-root = hostname; ls /; readlink /proc/self; echo over"
    second = masters.start(text_of(f"setns = {path}", show, SLEEP), name="b.ini")
    second.wait_output("^testns$")
    second.wait_output("^bin$")
    assert int(second.wait_output(r"^(\d+)$")[1]) < 50
    inner, jail = find_inner(second), find_first(first)
    for kind in ("mnt", "pid", "uts", "ipc"):
        assert namespace_of(inner, kind) == namespace_of(jail, kind)
    # The jail takes with it whoever is in its pid namespace; then one waits for the next.
    assert first.stop() == 0
    wait_gone(inner)
    second.wait_line(
        "the jail (died: was killed by SIGKILL|ended with the pid namespace that it had joined,)"
    )
    second.wait_line(f"waiting for the namespaces of {path}: No such file or directory")
    third = masters.start(
        text_of(f"namespace = {root}:again", f"setns-socket = {path}", SLEEP), name="a.ini"
    )
    second.wait_output("^again$")
    second.wait_ready()
    assert second.stop() == 0
    assert third.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_what_is_skipped_is_not_shared(masters, path, tmp_path):
    root = make_root(tmp_path / "root")
    skips = ("setns-socket-skip = pid", "setns-skip = mnt")
    first = masters.start(
        text_of(f"namespace = {root}:testns", f"setns-socket = {path}", *skips, SLEEP), name="a.ini"
    )
    second = masters.start(text_of(f"setns = {path}", SLEEP), name="b.ini")
    inner = find_inner(second)
    own = {
        kind
        for kind in ("mnt", "pid", "uts", "ipc", "net")
        if namespace_of(inner, kind) != namespace_of("self", kind)
    }
    assert own == {"uts", "ipc"}
    assert first.stop() == 0
    assert second.stop() == 0


def test_processes_of_a_jail_with_the_mounts_of_the_host_have_the_right_proc(masters, path):
    first = masters.start(
        text_of("unshare = pid", f"setns-socket = {path}", "setns-skip = mnt", SLEEP), name="a.ini"
    )
    second = masters.start(
        text_of(f"setns = {path}", "exec-as-root = readlink /proc/self", SLEEP), name="b.ini"
    )
    assert int(second.wait_output(r"^(\d+)$")[1]) < 50
    assert second.stop() == 0
    assert first.stop() == 0


def test_what_a_jail_has_of_its_own_is_not_joined(masters, path, tmp_path):
    one, two = make_root(tmp_path / "one"), make_root(tmp_path / "two")
    first = masters.start(
        text_of(f"namespace = {one}:one", "ns-net = true", f"setns-socket = {path}", SLEEP),
        name="a.ini",
    )
    second = masters.start(
        text_of(f"namespace = {two}:two", f"setns = {path}", SLEEP), name="b.ini"
    )
    inner, jail = find_first(second), find_first(first)
    for kind in ("mnt", "pid", "uts", "ipc"):
        assert namespace_of(inner, kind) != namespace_of(jail, kind)
    assert namespace_of(inner, "net") == namespace_of(jail, "net")
    assert second.stop() == 0
    assert first.stop() == 0


def test_master_without_a_jail_shares_what_it_is_in(masters, path):
    master = masters.start(text_of(f"setns-socket = {path}", SLEEP))
    names = {os.readlink(f"/proc/self/fd/{fd}") for fd in ask(path)}
    assert names >= {namespace_of("self", kind) for kind in ("mnt", "pid", "net")}
    masters.write(text_of(SLEEP))
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    assert not path.exists()
    assert master.stop() == 0


# The socket.


def ask(path, uid=0):
    """Return the descriptors that a server sends to this user; a child closes them."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if uid:
                os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.settimeout(DEADLINE)
                _, fds, _, _ = socket.recv_fds(connection, 100, 64)
                os.write(write_fd, len(fds).to_bytes(1, "little"))
            code = 0
        except PermissionError:
            code = 2
        finally:
            os._exit(code)
    os.close(write_fd)
    count = os.read(read_fd, 1)
    os.close(read_fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 2:
        raise PermissionError
    assert code == 0
    if uid:
        return list(range(count[0]))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.settimeout(DEADLINE)
        text, fds, _, _ = socket.recv_fds(connection, 100, 64)
    assert text == WORD + len(fds).to_bytes(4, sys.byteorder)
    return Descriptors(fds)


class Descriptors(list):
    def __del__(self):
        for fd in self:
            os.close(fd)


def test_socket_is_for_root_alone(masters, path):
    master = masters.start(text_of("unshare = uts", f"setns-socket = {path}", SLEEP))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.parent.chmod(0o755)
    for parent in path.parents:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    with pytest.raises(PermissionError):
        ask(path, NOBODY)
    path.chmod(0o666)
    assert ask(path, NOBODY) == []
    master.wait_line(f"setns-socket .*: user {NOBODY} may not join; refused")
    assert len(ask(path)) >= 6
    assert master.stop() == 0


def test_dead_socket_is_replaced_and_a_live_one_is_not(masters, path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    text = text_of("unshare = uts", f"setns-socket = {path}", SLEEP)
    first = masters.start(text, name="a.ini")
    second = masters.begin(text, name="b.ini")
    second.wait_line("setns-socket .*: Address already in use; another process listens there")
    assert second.wait() == 125
    assert path.exists()
    assert first.stop() == 0
    path.write_text("not a socket")
    third = masters.begin(text, name="c.ini")
    third.wait_line("setns-socket .*: Address already in use; something else than a socket")
    assert third.wait() == 125
    assert path.read_text() == "not a socket"


def test_clients_that_say_and_read_nothing_hold_nobody_up(masters, path):
    master = masters.start(text_of("unshare = uts", f"setns-socket = {path}", SLEEP))
    clients = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    try:
        for client in clients:
            client.connect(str(path))
        assert len(ask(path)) >= 6
        before = len(os.listdir(f"/proc/{master.pid}/fd"))
        assert before < 60
    finally:
        for client in clients:
            client.close()
    assert master.stop() == 0


# Servers that are not what they seem.


@pytest.fixture
def serve(path):
    """Return what answers clients with a text and descriptors."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(DEADLINE)

    def _serve(text, fds):
        client, _ = listener.accept()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        client.sendmsg([text], rights)
        client.close()

    with listener:
        yield _serve


def count(number):
    return WORD + number.to_bytes(4, sys.byteorder)


def answer(kind):
    path = {"file": "/etc/passwd", "device": "/dev/zero"}.get(kind, f"/proc/self/ns/{kind}")
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize(
    ("text", "kinds", "reason"),
    [
        (count(1), ["file"], "it sends /etc/passwd, which is no namespace"),
        (count(1), ["device"], "it sends /dev/zero, which is no namespace"),
        (count(2), ["net", "user"], "it sends a namespace of users"),
        (count(2), ["net"], "this is no answer of a master"),
        (count(0), [], "this is no answer of a master"),
        (b"uwsgi-zerg" + bytes(4), ["net"], "this is no answer of a master"),
        (count(1) + b"more", ["net"], "this is no answer of a master|it sends more"),
        (count(100), ["net"] * 100, "it sends more|this is no answer"),
    ],
)
def test_wrong_answer_is_refused(masters, path, serve, text, kinds, reason):
    master = masters.begin(text_of(f"setns = {path}", SLEEP))
    fds = [answer(kind) for kind in kinds]
    serve(text, fds)
    for fd in fds:
        os.close(fd)
    master.wait_line(f"the jail: setns {path}: ({reason})")
    assert master.wait() == 125


def test_server_of_another_user_is_refused(masters, path):
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        path.parent.chmod(0o777)
        for parent in path.parents:
            if parent.stat().st_mode & 0o005 != 0o005:
                parent.chmod(parent.stat().st_mode | 0o055)
        os.setuid(NOBODY)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        os.write(write_fd, b"x")
        signal.pause()
    assert os.read(read_fd, 1) == b"x"
    try:
        master = masters.begin(text_of(f"setns = {path}", SLEEP))
        master.wait_line(f"it is user {NOBODY} who listens there, not root")
        assert master.wait() == 125
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read_fd)
        os.close(write_fd)


def test_stop_while_one_waits_for_a_server(masters, path):
    master = masters.begin(text_of(f"setns = {path}", SLEEP))
    master.wait_line("waiting for the namespaces of .*: No such file or directory")
    assert master.stop() == 0


# uWSGI.


def test_uwsgi_joins_lowsuper(masters, path):
    program = uwsgi()
    master = masters.start(text_of("unshare = net,uts", f"setns-socket = {path}", SLEEP))
    wanted = namespace_of(find_inner(master), "net")
    command = [program, "--master", "--setns", str(path), "--socket", f"{path}.w"]
    show = "readlink /proc/self/ns/net; readlink /proc/self/ns/mnt"
    result = subprocess.run(
        [*command, "--exec-as-root", show, "--exec-as-user", "false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        text=True,
        check=False,
    )
    assert wanted in result.stdout.splitlines()
    assert namespace_of("self", "mnt") in result.stdout.splitlines()
    assert master.stop() == 0


def test_lowsuper_joins_uwsgi(masters, path):
    program = uwsgi()
    command = [program, "--master", "--unshare", "net,uts", "--setns-socket", str(path)]
    with subprocess.Popen(
        [*command, "--die-on-term", "--exec-as-root", "echo ready"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    ) as server:
        try:
            master = masters.start(text_of(f"setns = {path}", SLEEP))
            inner = find_inner(master)
            for kind in ("net", "uts"):
                assert namespace_of(inner, kind) == namespace_of(server.pid, kind)
                assert namespace_of(inner, kind) != namespace_of("self", kind)
            assert master.stop() == 0
        finally:
            server.send_signal(signal.SIGKILL)
            server.communicate()
