"""What daemons tell by sd_notify(3), whose words are believed, and that nobody is hurt by them."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time

import pytest
from masters import (
    DEADLINE,
    find_program,
    has_cgroups,
    is_alive,
    need,
    needs_root,
    quote,
    read_environ,
    status_of,
)
from puppets import Puppet
from test_ready_ways import count_fds, expect_ready, expect_unready
from test_smart_idle import expect_rest

NOBODY = 65534
LINUX = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
RUNGS = ("cgroup", "shim", pytest.param("pidns", marks=needs_root))


@pytest.fixture
def puppet(open_masters):
    puppet = Puppet(open_masters.directory)
    yield puppet
    puppet.close()


def begin(masters, puppet, keys, *, rung="cgroup", more="", command=None):
    keys += ",ns_pid" if rung == "pidns" else ""
    text = ("kill-domain = shim\n" if rung == "shim" else "") + more
    master = masters.begin(text + puppet.line(keys, command))
    master.wait_started("puppet")
    master.wait_output("puppet at work")
    return master


@pytest.mark.parametrize("rung", RUNGS)
def test_daemon_that_notifies_is_ready(open_masters, puppet, rung):
    master = begin(open_masters, puppet, "ready=notify", rung=rung)
    before = count_fds(master)
    puppet.do(master, "notify", "STATUS=working on it")
    puppet.do(master, "barrier", "READY=0")
    expect_unready(master)
    puppet.do(master, "notify", r"STATUS=fine\nREADY=1")
    expect_ready(master)
    puppet.do(master, "barrier", "X=1")
    assert count_fds(master) == before
    expect_rest(master)


@pytest.mark.parametrize("rung", RUNGS)
def test_child_of_a_daemon_is_not_believed(open_masters, puppet, rung):
    master = begin(open_masters, puppet, "ready=notify", rung=rung)
    puppet.tell("child READY=1")
    master.wait_line(r"puppet: a notification of pid \d+ \(uid 0\) was refused: the main process")
    expect_unready(master)
    puppet.do(master, "notify", "READY=1")
    expect_ready(master)


@pytest.mark.parametrize("rung", RUNGS)
def test_child_of_a_daemon_is_believed_where_all_may_notify(open_masters, puppet, rung):
    master = begin(open_masters, puppet, "ready=notify,notify_access=all", rung=rung)
    puppet.do(master, "child", "READY=1")
    expect_ready(master)


def test_child_that_has_ended_is_known_by_its_cgroup(open_masters, puppet):
    need(has_cgroups() and LINUX >= (6, 15), "cgroup v2 and Linux 6.15")
    master = begin(open_masters, puppet, "ready=notify,notify_access=all")
    master.signal(signal.SIGSTOP)
    puppet.tell("hasty READY=1")
    master.wait_output("^done hasty")
    master.signal(signal.SIGCONT)
    expect_ready(master)


def test_child_that_has_ended_is_nobodys_without_one(open_masters, puppet):
    master = begin(open_masters, puppet, "ready=notify,notify_access=all", rung="shim")
    master.signal(signal.SIGSTOP)
    puppet.tell("hasty READY=1")
    master.wait_output("^done hasty")
    master.signal(signal.SIGCONT)
    master.wait_line("a notification of pid .* was refused: it has ended, so nobody knows whose")
    expect_unready(master)


def test_other_main_process_is_believed_if_it_is_the_daemons(open_masters, puppet):
    master = begin(open_masters, puppet, "ready=notify")
    puppet.tell("notify MAINPID=1")
    master.wait_line("puppet: says that its main process is 1, which is not its")
    puppet.tell(f"notify MAINPID={os.getpid()}")
    puppet.do(master, "main", "READY=1")
    expect_ready(master)
    assert master.has_said(r"puppet: says that its main process is \d+$")


def test_other_main_process_in_a_pid_namespace_has_its_number_there(open_masters, puppet):
    if os.geteuid():
        pytest.skip("needs: root")
    master = begin(open_masters, puppet, "ready=notify", rung="pidns")
    puppet.do(master, "main", "READY=1")
    expect_ready(master)


def send(path, text, uid=None):
    """Send a notification from a process of its own that is no daemon's."""
    code = (
        "import os, socket, sys\n"
        "uid = int(sys.argv[3])\n"
        "if uid: os.setgid(uid), os.setuid(uid)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(sys.argv[1]); r, w = os.pipe()\n"
        "socket.send_fds(s, [sys.argv[2].encode()], [w]); os.close(w); os.read(r, 1)\n"
    )
    words = [sys.executable, "-I", "-S", "-c", code, path, text, str(uid or 0)]
    subprocess.run(words, check=True, timeout=DEADLINE)


@needs_root
def test_stranger_is_not_believed(open_masters, puppet):
    master = begin(open_masters, puppet, "ready=notify,notify_access=all")
    path = puppet.do(master, "variable", "NOTIFY_SOCKET")
    send(path, "READY=1", NOBODY)
    line = master.wait_line(
        r"a notification of pid \d+ \(uid (\d+)\) was refused: it is no daemon's"
    )
    assert line[1] == str(NOBODY)
    send(path, "READY=1")
    expect_unready(master)


@needs_root
def test_nobody_can_pretend_to_be_the_daemon(open_masters, puppet):
    """The kernel refuses credentials that are not the sender's: see unix(7)."""
    master = begin(open_masters, puppet, "ready=notify")
    path = puppet.do(master, "variable", "NOTIFY_SOCKET")
    pid = master.pid_of("puppet")
    code = (
        "import os, socket, struct, sys\n"
        f"os.setgid({NOBODY}), os.setuid({NOBODY})\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(sys.argv[1])\n"
        f"lie = struct.pack('3i', {pid}, 0, 0)\n"
        "try: s.sendmsg([b'READY=1'], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, lie)])\n"
        "except PermissionError: sys.exit(0)\n"
        "sys.exit(1)\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, path], check=True, timeout=DEADLINE)
    expect_unready(master)


def test_other_daemon_speaks_for_itself_only(open_masters, puppet):
    other = Puppet(open_masters.directory, "other")
    try:
        master = begin(open_masters, puppet, "ready=notify", more=other.line("ready=notify"))
        other.tell("notify READY=1")
        master.wait_line(r"other: pid \d+ is ready")
        master.expect_silence("puppet: pid .* is ready")
        puppet.tell("notify READY=1")
        expect_ready(master)
    finally:
        other.close()


def test_only_those_who_ask_get_a_socket(open_masters, puppet):
    more = "attach-daemon2 = name=none,cmd=sleep 1000\n"
    more += "attach-daemon2 = name=dog,cmd=sleep 1000,watchdog=1h\n"
    env = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3", "WATCHDOG_PID": "1"}
    text = more + puppet.line("notify_access=main")
    master = open_masters.begin(text, env=env)
    master.wait_lines(*(rf"lowsuper: {name}: started, pid" for name in ("none", "dog", "puppet")))
    master.wait_ready()
    none, dog, own = (
        dict(
            word.split(b"=", 1)
            for word in read_environ(str(master.pid_of(name))).split(b"\0")
            if word
        )
        for name in ("none", "dog", "puppet")
    )
    assert not {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID"} & none.keys()
    assert dog[b"WATCHDOG_USEC"] == b"3600000000"
    assert int(dog[b"WATCHDOG_PID"]) == master.pid_of("dog")
    assert dog[b"NOTIFY_SOCKET"] == own[b"NOTIFY_SOCKET"] != b"/nowhere"
    assert not {b"WATCHDOG_USEC", b"WATCHDOG_PID"} & own.keys()
    assert master.stop() == 0
    assert not os.path.exists(dog[b"NOTIFY_SOCKET"])


def test_socket_of_a_killed_master_is_taken_over(open_masters, puppet):
    text = puppet.line("ready=notify")
    first = open_masters.begin(text)
    first.wait_output("puppet at work")
    path = puppet.do(first, "variable", "NOTIFY_SOCKET")
    first.kill()
    first.wait_family_gone()
    assert os.path.exists(path)
    second = open_masters.begin(text)
    second.wait_output("puppet at work")
    assert puppet.do(second, "variable", "NOTIFY_SOCKET") == path
    puppet.do(second, "notify", "READY=1")
    expect_ready(second)


@needs_root
def test_daemon_with_a_root_of_its_own_gets_an_abstract_socket(open_masters):
    root = open_masters.directory / "root"
    (root / "bin").mkdir(parents=True)
    with open(find_program("busybox"), "rb") as file:
        (root / "bin" / "busybox").write_bytes(file.read())
    (root / "bin" / "busybox").chmod(0o755)
    text = f"[daemon:web]\ncommand = /bin/busybox sleep 1000\nroot = {root}\nnotify_access = main\n"
    master = open_masters.start(text)
    environ = read_environ(str(master.pid_of("web")))
    assert re.search(rb"NOTIFY_SOCKET=@lowsuper/notify/[0-9a-f]{16}\0", environ + b"\0")


@needs_root
def test_daemon_with_a_network_of_its_own_can_notify(open_masters, puppet):
    master = begin(open_masters, puppet, "ready=notify,namespaces=net")
    puppet.do(master, "notify", "READY=1")
    expect_ready(master)


@needs_root
def test_daemon_of_another_user_can_notify(open_masters, puppet):
    master = begin(open_masters, puppet, f"ready=notify,uid={NOBODY},gid={NOBODY}")
    puppet.do(master, "notify", "READY=1")
    expect_ready(master)


@needs_root
def test_master_that_drops_its_privileges_hears_its_daemons(open_masters, puppet):
    more = f"uid = {NOBODY}\ngid = {NOBODY}\n"
    master = begin(open_masters, puppet, "ready=notify", more=more)
    puppet.do(master, "notify", "READY=1")
    expect_ready(master)
    assert master.stop() == 0


def test_daemon_can_ask_for_more_time_to_start_and_not_to_stop(open_masters, puppet):
    keys = "ready=notify,start_timeout=500ms,stop_timeout=300ms,stopsignal=CONT"
    master = begin(open_masters, puppet, keys)
    for _ in range(4):
        puppet.do(master, "notify", "EXTEND_TIMEOUT_USEC=600000")
        select.select([], [], [], 0.2)  # more than its start_timeout in all
    master.expect_silence("not ready after")
    puppet.do(master, "notify", "EXTEND_TIMEOUT_USEC=100000000")
    puppet.do(master, "notify", "EXTEND_TIMEOUT_USEC=1000")
    master.wait_line("puppet: not ready after")
    puppet.tell("notify EXTEND_TIMEOUT_USEC=100000000")
    master.wait_line("puppet: still there after 3.* ms: SIGKILL")


# Watchdogs.


def test_watchdog_that_is_fed_is_quiet_and_one_that_is_not_bites(open_masters, puppet):
    master = begin(open_masters, puppet, "watchdog=400ms,stopsignal=TERM")
    for _ in range(8):
        puppet.do(master, "notify", "WATCHDOG=1")
        select.select([], [], [], 0.1)  # the rhythm of the feeding
    master.expect_silence("watchdog")
    master.wait_line("puppet: pid .* did not feed its watchdog for ")
    master.wait_line(r"puppet: watchdog: SIGABRT \(6\) to pid")
    master.wait_line("puppet: pid .* was killed by SIGABRT")
    master.wait_started("puppet")


def test_watchdog_begins_when_the_daemon_is_ready(open_masters, puppet):
    master = begin(open_masters, puppet, "ready=notify,watchdog=100ms")
    select.select([], [], [], 0.3)  # three times as long
    master.expect_silence("watchdog")
    puppet.tell("notify READY=1")
    master.wait_line("puppet: pid .* did not feed its watchdog for ")


def test_watchdog_is_triggered_and_changed_by_the_daemon(open_masters, puppet):
    master = begin(open_masters, puppet, "watchdog=1h")
    puppet.tell("notify WATCHDOG=trigger")
    master.wait_line("puppet: pid .* did not feed its watchdog")
    master.wait_started("puppet")
    master.wait_output("puppet at work")
    puppet.tell("notify WATCHDOG_USEC=100000")
    master.wait_line("puppet: pid .* did not feed its watchdog for 1")


@pytest.mark.parametrize("text", ["STOPPING=1", "WATCHDOG_USEC=0"])
def test_watchdog_that_is_let_go_of_does_not_bite(open_masters, puppet, text):
    master = begin(open_masters, puppet, "watchdog=300ms")
    puppet.do(master, "notify", text)
    select.select([], [], [], 0.6)  # twice as long
    master.expect_silence("watchdog")


@needs_root
def test_daemon_in_a_pid_namespace_has_its_own_number_for_the_watchdog(open_masters, puppet):
    master = begin(open_masters, puppet, "watchdog=1h", rung="pidns")
    number = puppet.do(master, "variable", "WATCHDOG_PID")
    assert number == status_of(master.pid_of("puppet"))["NSpid"].split()[-1]


def test_any_process_feeds_where_all_may_notify(open_masters, puppet):
    master = begin(open_masters, puppet, "watchdog=1h,notify_access=all")
    assert puppet.do(master, "variable", "WATCHDOG_PID") == "-"


# Hostile ones.


def test_nonsense_changes_nothing(open_masters, puppet):
    master = begin(open_masters, puppet, "ready=notify")
    before = count_fds(master)
    for text in (
        "x",
        "=",
        r"READY=1x\nREADY =1\n READY=1",
        "MAINPID=99999999999999999999999",
        "MAINPID=-1",
        "WATCHDOG_USEC=x",
        "ERRNO=99999999999",
        r"FDSTORE=1\nFDNAME=x",
        "STATUS=" + "\x1b[31m" + "y" * 3000,
        "Y" * 3000,
    ):
        puppet.do(master, "barrier", text)
    expect_unready(master)
    assert master.has_said("puppet: no descriptors are kept for it")
    puppet.do(master, "notify", r"READY=1\nSTATUS=" + "z" * 5000)
    master.wait_line("puppet: a notification of more than 4096 bytes was not read")
    assert count_fds(master) == before
    puppet.do(master, "notify", "READY=1")
    expect_ready(master)


def processor_time(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("who", ["daemon", "stranger"])
def test_flood_hurts_nobody_but_its_sender(open_masters, puppet, who):
    """The master takes a tenth of a processor for it, and the others have their turn."""
    other = Puppet(open_masters.directory, "other")
    try:
        more = other.line("ready=notify,watchdog=2")
        master = begin(open_masters, puppet, "notify_access=main", more=more)
        path = puppet.do(master, "variable", "NOTIFY_SOCKET")
        flood = None
        if who == "daemon":
            puppet.tell("flood 10000000")
        else:
            code = (
                "import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
                "s.connect(sys.argv[1])\nprint('begins', flush=True)\n"
                "while True: s.send(b'READY=1')\n"
            )
            words = [sys.executable, "-I", "-S", "-c", code, path]
            flood = subprocess.Popen(words, stdout=subprocess.PIPE)
            flood.stdout.readline()
        try:
            began, used = time.monotonic(), processor_time(master.pid)
            other.tell("notify READY=1")
            master.wait_line(r"other: pid \d+ is ready", timeout=2)
            for _ in range(10):
                other.tell("notify WATCHDOG=1")
                master.wait_output("^done notify ", timeout=2)
                select.select([], [], [], 0.1)  # the rhythm of the feeding
            share = (processor_time(master.pid) - used) / (time.monotonic() - began)
            assert share < 0.4, f"{share:.0%} of a processor"
            master.expect_silence("watchdog")
        finally:
            if flood is not None:
                flood.kill()
                flood.wait()
                flood.stdout.close()
        assert len(re.findall("was refused", master.text)) <= 2
    finally:
        other.close()


# Real ones.


def test_redis_that_is_supervised_by_systemd(masters):
    path = masters.directory / "redis.sock"
    redis = (
        f"{find_program('redis-server')} --supervised systemd --port 0 --unixsocket {path} "
        f'--save "" --appendonly no --dir {masters.directory}'
    )
    master = masters.begin(f"[daemon:redis]\ncommand = {redis}\nready = notify\n")
    expect_ready(master, "redis")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.fspath(path))
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b"+PONG\r\n"
    assert master.stop() == 0


def test_systemd_notify_of_a_script(masters):
    program = find_program("systemd-notify")
    shell = quote("sh", "-c", f"{program} --ready --status=fine; exec sleep 1000")
    text = f"[daemon:web]\ncommand = {shell}\nready = notify\nnotify_access = all\n"
    master = masters.start(text)
    assert is_alive(master.pid_of("web"))
    assert master.stop() == 0
