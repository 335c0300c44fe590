"""When a daemon is ready, by each way that there is; and that nothing is left of the waiting."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path

import pytest
from masters import find_program, free_port, needs_root, quote, rung_options, status_of, wait_gone
from puppets import Puppet
from test_smart_idle import expect_rest

RUNGS = ("cgroup", "shim", "pidns")


@pytest.fixture
def puppet(masters):
    puppet = Puppet(masters.directory)
    yield puppet
    puppet.close()


def count_fds(master):
    return len(os.listdir(f"/proc/{master.pid}/fd"))


def begin(masters, puppet, keys, more=""):
    master = masters.begin(more + puppet.line(keys))
    master.wait_started("puppet")
    master.wait_output("puppet at work")
    return master


def expect_ready(master, name="puppet"):
    master.wait_line(rf"lowsuper: {name}: pid \d+ is ready after ")
    master.wait_ready()


def expect_unready(master):
    """Assert that it is not ready though it had every chance to be taken for it."""
    select.select([], [], [], 0.1)  # a probe comes every 20 ms at first
    master.expect_silence("is ready after|lowsuper: ready")


def test_file(masters, puppet):
    path = masters.directory / "deep" / "flag"
    master = begin(masters, puppet, f"ready=file:{path}")
    expect_unready(master)
    path.parent.mkdir()
    puppet.do(master, "touch", f"{path}.other")
    expect_unready(master)
    puppet.do(master, "touch", path)
    expect_ready(master)
    expect_rest(master)


def test_file_relative_to_the_daemon(masters, puppet):
    (masters.directory / "home").mkdir()
    master = begin(masters, puppet, f"ready=file:flag,chdir={masters.directory}/home")
    puppet.do(master, "touch", masters.directory / "flag")
    expect_unready(master)
    puppet.do(master, "touch", "flag")
    expect_ready(master)


def test_unix_socket_that_is_bound_is_ready_when_it_listens(masters, puppet):
    path = masters.directory / "sock"
    master = begin(masters, puppet, f"ready=unix:{path}")
    puppet.do(master, "unix", path)
    expect_unready(master)
    puppet.do(master, "hear")
    expect_ready(master)
    expect_rest(master)


def test_unix_socket_of_an_earlier_life_is_not_taken_for_it(masters, puppet):
    path = masters.directory / "sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(os.fspath(path))
    master = begin(masters, puppet, f"ready=unix:{path}")
    expect_unready(master)
    path.unlink()
    puppet.do(master, "unix", path)
    puppet.do(master, "hear")
    expect_ready(master)


def test_abstract_unix_socket(masters, puppet):
    name = f"lowsuper-test-{os.getpid()}-{masters.directory.name}"
    with socket.socket(socket.AF_UNIX) as sock:
        master = begin(masters, puppet, f"ready=unix:@{name}")
        expect_unready(master)
        sock.bind(f"\0{name}")
        sock.listen()
        expect_ready(master)


def test_port(masters, puppet):
    port = free_port()
    master = begin(masters, puppet, f"ready=tcp:127.0.0.1:{port}")
    expect_unready(master)
    puppet.do(master, "listen", port)
    expect_ready(master)
    expect_rest(master)


def test_port_of_localhost_may_be_that_of_ipv6(masters, puppet):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        master = begin(masters, puppet, f"ready=tcp:{server.getsockname()[1]}")
        expect_ready(master)


def test_command(masters, puppet):
    flag = masters.directory / "flag"
    master = begin(masters, puppet, f"ready=exec:test -e {flag}")
    expect_unready(master)
    puppet.do(master, "touch", flag)
    expect_ready(master)
    assert len(master.family()) == 1
    expect_rest(master)


@needs_root
def test_command_is_run_as_the_daemon_runs(open_masters):
    place = open_masters.directory
    probe = quote("sh", "-c", f"{{ id -u; pwd; echo ${{X-}} ${{NOTIFY_SOCKET-}}; }} > {place}/seen")
    (place / "home").mkdir()
    text = "env = X=x\n[daemon:web]\ncommand = sleep 1000\nuid = 65534\ngid = 65534\n"
    text += f"chdir = {place}/home\nwatchdog = 1h\nready = exec:{probe}\n"
    open_masters.start(text)
    assert (place / "seen").read_text().splitlines() == ["65534", f"{place}/home", "x"]


def test_command_that_fails_is_quoted_when_it_is_too_late(masters, puppet):
    probe = quote("sh", "-c", "echo no such luck >&2; echo more >&2; exit 3")
    text = f"[daemon:web]\ncommand = sleep 1000\nready = exec:{probe}\nstart_timeout = 200ms\n"
    master = masters.begin(text)
    master.wait_line("web: not ready after .*: sh: exited with 3: no such luck; ending it")


def test_command_that_hangs_does_not_outlive_the_wait(masters, puppet):
    text = "[daemon:web]\ncommand = sleep 1000\nready = exec:sleep 2000\nstart_timeout = 300ms\n"
    master = masters.begin(text)
    pid = master.wait_started("web")
    master.wait_line("web: not ready after ")
    wait_gone(pid)
    master.wait_started("web")
    assert master.stop() == 0
    master.wait_family_gone()


def test_command_that_is_not_there_is_named(masters):
    text = "[daemon:web]\ncommand = sleep 1000\nready = exec:/no/such\nstart_timeout = 200ms\n"
    masters.begin(text).wait_line("web: not ready after .*: such: execve /no/such: No such file")


@pytest.mark.parametrize("rung", RUNGS)
def test_descriptor(masters, puppet, rung):
    if rung == "pidns" and os.geteuid():
        pytest.skip("needs: root")
    keys = "ready=fd:7" + (",ns_pid" if rung == "pidns" else "")
    master = begin(masters, puppet, keys, rung_options(rung))
    before = count_fds(master)
    expect_unready(master)
    puppet.do(master, "line", 7)
    expect_ready(master)
    assert count_fds(master) == before - 1
    expect_rest(master)


def test_descriptor_that_is_closed_without_a_line_is_never_ready(masters, puppet):
    master = begin(masters, puppet, "ready=fd:7,start_timeout=500ms")
    puppet.do(master, "close", 7)
    master.wait_line("puppet: not ready after .*: it has closed descriptor 7 without a line")


def test_pidfile(masters):
    masters.allow_survivors()
    path = masters.directory / "pid"
    text = (
        f"[daemon:web]\ncommand = sleep 1000\npidfile = {path}\ndaemonize = yes\nready = pidfile\n"
    )
    master = masters.start(text)
    assert master.has_said("web: started, ")
    assert path.exists()


def test_daemon_that_dies_before_it_is_ready_is_started_again(masters, puppet):
    path = masters.directory / "flag"
    master = begin(masters, puppet, f"ready=file:{path}")
    puppet.tell("exit 3")
    master.wait_line(r"puppet: pid \d+ exited with 3 ")
    pid = master.wait_started("puppet")
    master.wait_output("puppet at work")
    master.expect_silence("is ready after")
    puppet.do(master, "touch", path)
    master.wait_line(f"puppet: pid {pid} is ready after ")


@pytest.mark.parametrize(
    "way", ["file:{T}/none", "unix:{T}/none", "tcp:{P}", "exec:false", "fd:9", "notify"]
)
def test_restarts_while_it_is_waited_for_leave_nothing(masters, puppet, way):
    touched = masters.directory / "touched"
    touched.write_text("")
    way = way.replace("{T}", str(masters.directory)).replace("{P}", str(free_port()))
    master = begin(masters, puppet, f"ready={way},touch={touched}")
    fds = []
    for number in range(6):
        fds.append(count_fds(master))
        touched.write_text(str(number))
        pid = master.wait_started("puppet")
        master.wait_output("puppet at work")
        assert Path(f"/proc/{pid}").exists()
    # A command may run just now, which takes a few.
    assert min(fds[3:]) <= fds[1] + 1
    assert master.stop() == 0


def test_order_waits_for_readiness(masters, puppet):
    flag = masters.directory / "flag"
    text = puppet.line(f"ready=file:{flag}")
    text += "attach-daemon2 = name=next,cmd=sleep 1000,requires=puppet\n"
    master = masters.begin(text)
    master.wait_output("puppet at work")
    expect_unready(master)
    master.expect_silence("next: started")
    puppet.do(master, "touch", flag)
    master.wait_line("puppet: pid .* is ready")
    master.wait_started("next")
    master.wait_ready()


@needs_root
def test_port_in_a_network_of_its_own(masters):
    port = free_port()
    busybox = find_program("busybox")
    shell = quote("sh", "-c", f"ip link set lo up && exec {busybox} nc -ll -p {port} -e cat")
    text = f"[daemon:web]\ncommand = {shell}\nnamespaces = net\nready = tcp:127.0.0.1:{port}\n"
    master = masters.start(text)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    before = os.readlink("/proc/self/ns/net")
    assert os.readlink(f"/proc/{master.pid}/ns/net") == before


@needs_root
def test_command_in_a_network_of_its_own(masters):
    text = "[daemon:web]\ncommand = sleep 1000\nnamespaces = net\n"
    text += f"ready = exec:sh -c 'readlink /proc/self/ns/net > {masters.directory}/seen'\n"
    master = masters.start(text)
    pid = master.pid_of("web")
    seen = (masters.directory / "seen").read_text().strip()
    assert seen == os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")


@needs_root
def test_file_and_socket_below_a_root_of_its_own(masters):
    root = masters.directory / "root"
    for name in ("bin", "run"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path(find_program("busybox")).read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    (root / "bin" / "sh").symlink_to("busybox")
    script = "busybox sleep 0.1; busybox touch /run/flag; exec busybox sleep 1000"
    text = f"[daemon:web]\ncommand = /bin/busybox sh -c '{script}'\n"
    text += f"root = {root}\nready = file:/run/flag\n"
    text += f"[daemon:cmd]\ncommand = /bin/busybox sleep 1000\nroot = {root}\n"
    text += "ready = exec:/bin/busybox test -e /run/flag\nrequires = web\n"
    master = masters.start(text)
    assert master.has_said("web: pid .* is ready")
    assert master.has_said("cmd: pid .* is ready")


def test_stop_while_it_is_waited_for(masters, puppet):
    master = begin(masters, puppet, f"ready=tcp:{free_port()}")
    master.signal(signal.SIGTERM)
    assert master.wait() == 0


def test_many_that_wait_share_what_watches(masters):
    """fs.inotify.max_user_instances is 128."""
    names = [f"d{number}" for number in range(200)]
    text = "".join(
        f"attach-daemon2 = name={name},cmd=sleep 1000,ready=file:{masters.directory}/{name}.flag\n"
        for name in names
    )
    master = masters.begin(text)
    for name in names:
        (masters.directory / f"{name}.flag").touch()
    master.wait_ready()
    assert status_of(master.pid)["State"][0] in "SRD"


@needs_root
def test_every_way_in_a_jail(masters):
    """Nothing can be imported there any more."""
    root = masters.directory / "root"
    for name in ("bin", "tmp", "proc"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path(find_program("busybox")).read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    (root / "bin" / "sh").symlink_to("busybox")
    (root / "bin" / "act").write_text(
        '#!/bin/sh\nexec busybox sh -c "$1; exec busybox sleep 1000"\n'
    )
    (root / "bin" / "act").chmod(0o755)
    port = free_port()
    ways = {
        "file": ("busybox touch /tmp/flag", "file:/tmp/flag"),
        "exec": ("busybox true", "exec:/bin/busybox test -e /tmp/flag"),
        "fd": ("echo >&3", "fd:3"),
        "tcp": (f"exec busybox nc -ll -p {port} -e /bin/busybox cat", f"tcp:127.0.0.1:{port}"),
    }
    text = f"[uwsgi]\nnamespace = {root}:jailed\n"
    for name, (act, way) in ways.items():
        text += f"[daemon:{name}]\ncommand = /bin/act '{act}'\nready = {way}\n"
    text += "[daemon:notify]\ncommand = /bin/busybox sleep 1000\nready = notify\nwatchdog = 1h\n"
    master = masters.begin(text)
    master.wait_lines(*(rf"lowsuper: {name}: pid \d+ is ready" for name in ways))
    environ = Path(f"/proc/{find_in_jail(master, 'sleep', b'WATCHDOG_USEC')}/environ").read_bytes()
    assert b"NOTIFY_SOCKET=@lowsuper/notify/" in environ
    assert master.stop() == 0


def find_in_jail(master, name, variable):
    """Return the pid, out here, of the program with a variable in its environment."""
    return next(
        pid
        for pid in master.family()
        if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        and variable in Path(f"/proc/{pid}/environ").read_bytes()
    )
