"""Sockets that a daemon finds open, and its own environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from masters import DEADLINE, NOBODY, is_alive, name_of, needs_root, read_environ, wait_text
from smart_tools import PYTHON, wait_until
from steering import Client, socket_of

SERVE = f"{PYTHON} {Path(__file__).with_name('serve.py')}"
"""Says what it found, and answers each client with its pid."""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def ask(address) -> str:
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as made:
        made.settimeout(DEADLINE)
        made.connect(address)
        return made.recv(100).decode()


def found_by(masters, name: str = "web") -> dict:
    return json.loads(wait_text(masters.directory / f"{name}.found", r"(?s).*\n").group())


def line(name: str = "web", *more: str) -> str:
    rows = (f"command = {SERVE} {{T}}/{name}.found", *more)
    return "\n".join([f"[daemon:{name}]", *rows]) + "\n"


@pytest.mark.parametrize("keys", [(), ("ns_pid = true",), ("kill-domain",)], ids=str)
def test_daemon_finds_its_sockets(masters, keys):
    """With the number that it has itself, in whatever pid namespace, and below whatever."""
    if keys and "ns_pid" in keys[0] and os.getuid():
        pytest.skip("needs: root")
    head = "kill-domain = shim\n" if keys == ("kill-domain",) else ""
    keys = () if head else keys
    port, path = free_port(), masters.directory / "web.sock"
    text = line("web", *keys, f"listen = 127.0.0.1:{port} http", f"listen = {path}")
    master = masters.start("[uwsgi]\nchmod-socket = 600\n" + head + text)
    found = found_by(masters)
    assert found["LISTEN_FDS"] == "2"
    assert found["LISTEN_FDNAMES"] == "http:web"
    assert found["LISTEN_PID"] == str(found["pid"])
    assert found["open"] == [0, 1, 2, 3, 4]
    assert ask(("127.0.0.1", port)) == ask(str(path)) == str(found["pid"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert master.stop() == 0
    assert not path.exists()


def test_who_comes_while_it_is_started_again_waits(masters):
    """The socket is the master's: nobody is refused, and it is the same one for the next."""
    path = masters.directory / "web.sock"
    master = masters.start(line("web", f"listen = {path}"))
    inode = path.stat().st_ino
    first = found_by(masters)["pid"]
    with Client(socket_of(masters)) as client:
        client.done("stop", "web")
        client.wait("stopped", "web")
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.settimeout(DEADLINE)
            waiting.connect(str(path))
            client.done("start", "web")
            second = int(waiting.recv(100))
    assert second != first
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    assert path.stat().st_ino == inode
    assert int(ask(str(path))) not in (first, second)


def test_reload_opens_and_closes(masters):
    one, two = masters.directory / "one.sock", masters.directory / "two.sock"
    master = masters.start(line("web", f"listen = {one}"))
    masters.write(line("web", f"listen = {two}"))
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    assert ask(str(two))
    assert not one.exists()


def test_address_of_somebody_else_is_said_and_tried_again(masters):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        text = line("web", f"listen = 127.0.0.1:{port}", "backoff = 20ms..20ms")
        master = masters.begin(text)
        master.wait_line(rf"web: listen 127.0.0.1:{port}: .*another process listens there")
    master.wait_started("web")
    assert ask(("127.0.0.1", port)) == str(found_by(masters)["pid"])


def test_option_socket_is_for_those_who_ask(masters):
    port = free_port()
    masters.start(f"[uwsgi]\nsocket = 127.0.0.1:{port}\n" + line("web", "listen = socket"))
    assert ask(("127.0.0.1", port)) == str(found_by(masters)["pid"])


@needs_root
def test_daemon_that_survives_keeps_its_socket(masters):
    masters.allow_survivors()
    path, pidfile = masters.directory / "web.sock", masters.directory / "web.pid"
    text = line("web", f"listen = {path}", f"pidfile = {pidfile}", "daemonize = true")
    master = masters.start(text)
    pid = master.pid_of("web")
    assert master.stop() == 0
    assert is_alive(pid)
    assert ask(str(path)) == str(pid)
    master = masters.start(text)
    assert master.pid_of("web") == pid
    assert ask(str(path)) == str(pid)
    with Client(socket_of(masters)) as client:
        runs = client.done("restart", "web")["runs"]
        (web,) = client.wait("ready", "web", past=runs)
    assert ask(str(path)) == str(web["pid"]) != str(pid)


@needs_root
def test_socket_belongs_to_the_user_of_its_daemon(open_masters):
    path = open_masters.directory / "web.sock"
    keys = (f"listen = {path}", f"uid = {NOBODY}", f"gid = {NOBODY}")
    open_masters.start(line("web", *keys))
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    assert ask(str(path)) == str(found_by(open_masters)["pid"])


# The environment.


def environ_of(master, name: str = "web") -> dict[str, str]:
    pid = master.pid_of(name)
    wait_until(lambda: name_of(pid) == "sleep", f"{name} is still on its way to its exec")
    data = read_environ(str(pid))
    return dict(each.decode().split("=", 1) for each in data.split(b"\0") if each)


def test_environment_of_its_own(masters):
    file = masters.directory / "web.env"
    file.write_text('# secrets\nA=file\nexport B = "two \\"words\\""\n\nC=\'x\'\n')
    text = (
        "[uwsgi]\nenv = A=all\nenv = D=all\n"
        "[daemon:web]\ncommand = sleep 1000\nenv = C=own\nenv = E=a=b\n"
        "envfile = {T}/web.env\nenvfile = -{T}/none\n"
        "[daemon:db]\ncommand = sleep 1000\n"
        "[daemon:bare]\ncommand = sleep 1000\nclean_env = true\nenv = X=1\n"
    )
    master = masters.start(text, env={"FROM_CALLER": "1"})
    found = environ_of(master)
    assert {key: found.get(key) for key in "ABCDE"} == {
        "A": "file", "B": 'two "words"', "C": "own", "D": "all", "E": "a=b",
    }  # fmt: skip
    assert found["FROM_CALLER"] == "1"
    assert {key: environ_of(master, "db").get(key) for key in "ABCD"} == {
        "A": "all", "B": None, "C": None, "D": "all",
    }  # fmt: skip
    assert environ_of(master, "bare").keys() == {"PATH", "X"}


def test_envfile_is_read_at_each_start_and_its_words_are_not_told(masters):
    file = masters.directory / "web.env"
    file.write_text("A=one\n")
    text = "[daemon:web]\ncommand = sleep 1000\nenvfile = {T}/web.env\nbackoff = 20ms..20ms\n"
    master = masters.start(text)
    assert environ_of(master)["A"] == "one"
    file.write_text("A=two\n")
    with Client(socket_of(masters)) as client:
        runs = client.done("restart", "web")["runs"]
        client.wait("running", "web", past=runs)
        assert environ_of(master)["A"] == "two"
        file.write_text("A=two\nhunter2\n")
        client.done("restart", "web")
        master.wait_line(r"web: envfile \S+web.env:2: .*the line is not NAME=value")
        assert "hunter2" not in json.dumps(client.done("why", name="web"))
        file.unlink()
        master.wait_line(r"web: envfile \S+web.env: No such file")
        file.write_text("A=three\n")
        client.wait("running", "web")
    assert environ_of(master)["A"] == "three"
    assert "hunter2" not in master.text


@needs_root
@pytest.mark.parametrize("how", ["link", "hard", "writable", "stranger", "fifo", "huge"])
def test_envfile_that_is_not_to_be_trusted_is_not_read(open_masters, how):
    masters = open_masters
    place = masters.directory / "own"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    secret, file = masters.directory / "secret", place / "web.env"
    secret.write_text("A=secret\n")
    secret.chmod(0o600)
    if how == "link":
        file.symlink_to(secret)
    elif how == "hard":
        file.hardlink_to(secret)
    elif how == "fifo":
        os.mkfifo(file)
    else:
        file.write_text("A=1\n" * (100_000 if how == "huge" else 1))
        os.chown(file, 1 if how == "stranger" else NOBODY, NOBODY)
        file.chmod(0o666 if how == "writable" else 0o644)
    keys = f"uid = {NOBODY}\ngid = {NOBODY}\nenvfile = {file}\n"
    master = masters.begin("[daemon:web]\ncommand = sleep 1000\n" + keys)
    master.wait_line(r"web: envfile \S+web.env.*: ")
    assert not master.has_said("web: started")
    master.stop()


def test_keys_of_a_line(masters):
    text = 'attach-daemon2 = name=web,cmd=sleep 1000,env=A=1,env="B=x,y",clean_env\n'
    master = masters.start(text)
    assert environ_of(master) == {"PATH": environ_of(master)["PATH"], "A": "1", "B": "x,y"}


def check(masters, text: str) -> str:
    path = masters.write(text)
    done = subprocess.run(
        [sys.executable, "-m", "lowsuper", "check", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["listen = 8080"], "did you mean :8080?"),
        (["listen = socket"], "there is no such option"),
        (["listen = :1 a:b"], "a colon"),
        (["listen = :1", "ready = fd:3"], "are those of listen"),
        (["env = A"], "is not NAME=value"),
        (["env = A B=1"], "is not NAME=value"),
        (["envfile = -"], "is empty"),
    ],
)
def test_what_makes_no_sense_is_said(masters, rows, words):
    assert words in check(masters, line("web", *rows))


def test_values_are_not_shown(masters):
    text = line("web", "env = A=hunter2")
    assert "hunter2" not in check(masters, text)
    masters.start(text)
    masters.write(text.replace("hunter2", "hunter3"))
    with Client(socket_of(masters)) as client:
        found = client.done("diff")
        assert found["changes"]["changed"] == {"web": ["env"]}
        assert "hunter" not in json.dumps([found, client.done("status")])
