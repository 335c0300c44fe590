"""Two MongoDB servers, as in uWSGI's documentation; a stand-in for mongod where there is none."""

import os
import shutil
import struct

import pytest
from masters import DAEMONS, free_port
from real_programs import (
    begin_adopting,
    begin_smart,
    go_through_all,
    read_pid,
    replace_killed,
    see_end,
)
from test_real_memcached import connect

OP_MSG = 2013
FOUND = shutil.which("mongod")


@pytest.fixture(params=["real mongod" if FOUND else "stand-in for mongod"])
def mongod(request):
    """Return the program; the test's name says which."""
    return FOUND or str(DAEMONS / "mongod")


def ping(port):
    """Run the command `ping`; see "OP_MSG" in MongoDB's wire protocol and bsonspec.org."""
    elements = b"\x10ping\x00" + struct.pack("<i", 1)
    elements += b"\x02$db\x00" + struct.pack("<i", 6) + b"admin\x00"
    document = struct.pack("<i", len(elements) + 5) + elements + b"\x00"
    body = struct.pack("<iB", 0, 0) + document
    with connect(("127.0.0.1", port)) as client:
        client.sendall(struct.pack("<4i", 16 + len(body), 7, 0, OP_MSG) + body)
        size, _, answered, _ = struct.unpack("<4i", client.recv(16))
        assert answered == 7
        assert b"\x01ok\x00" + struct.pack("<d", 1.0) in client.recv(size - 16)


def make_command(mongod, directory, name):
    """Return the words of a server's command, and its port."""
    port = free_port()
    (directory / name).mkdir()
    words = f"--pidfilepath {directory}/{name}.pid --dbpath {directory}/{name} --port {port}"
    return f"{mongod} {words}", port


def test_two_servers_in_the_foreground(masters, mongod):
    masters.allow_survivors()
    directory = masters.directory
    one, two = (make_command(mongod, directory, f"mongo{n}") for n in (1, 2))
    commands, ports = zip(one, two, strict=True)
    text = "".join(
        f"smart-attach-daemon = {directory}/mongo{n}.pid {command}\n"
        for n, command in enumerate(commands, 1)
    )
    names = ["mongod", "mongod-2"]
    master = masters.begin(text)
    started = master.wait_lines(*(rf"{name}: started, pid (\d+)," for name in names))
    pids = [int(match[1]) for match in started]
    assert pids == pids_of(directory)
    for port in ports:
        ping(port)
    master.kill()
    for port in ports:
        ping(port)

    master = masters.begin(text)
    found = master.wait_lines(*(rf"{name}: found running .*, pid (\d+)," for name in names))
    assert [int(match[1]) for match in found] == pids
    assert master.stop() == 0
    for port in ports:
        ping(port)


def pids_of(directory):
    return [read_pid(directory / f"mongo{n}.pid") for n in (1, 2)]


def test_server_that_forks_lives_through_it_all(masters, mongod):
    masters.allow_survivors()
    directory = masters.directory
    command, port = make_command(mongod, directory, "db")
    log = directory / "mongod.log"
    text = f"smart-attach-daemon = {directory}/db.pid {command} --fork --logpath {log}\n"
    go_through_all(
        masters,
        text,
        name="mongod",
        pidfile=directory / "db.pid",
        work=lambda: ping(port),
    )
    # The killed one did not see to its lock file; the next one saw that.
    assert "nclean" in log.read_text()


def test_server_shuts_down_cleanly_when_it_is_told(masters, mongod):
    """MongoDB leaves its pidfile behind, which says nothing of a next one."""
    masters.allow_survivors()
    directory = masters.directory
    command, port = make_command(mongod, directory, "db")
    pidfile = directory / "db.pid"
    text = f"attach-daemon2 = cmd={command},pidfile={pidfile},notifypid,name=db\n"
    master, pid = begin_smart(masters, text, "db")
    ping(port)
    assert master.stop() == 0
    see_end(pid)
    assert (directory / "db" / "mongod.lock").stat().st_size == 0
    assert os.path.exists(pidfile)

    master, new = begin_smart(masters, text, "db")
    assert master.has_said(rf"db: the pidfile {pidfile} names {pid}, which does not run")
    ping(port)
    newest = replace_killed(master, "db", new)
    ping(port)
    master.kill()
    begin_adopting(masters, text, "db", newest)
