"""`stats` and `metrics` as those see them who read them: monitors, curl, and whoever is slow."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from masters import DEADLINE, NOBODY, needs_root
from terminals import read_until

UWSGI = os.environ.get("TEST_UWSGI") or shutil.which("uwsgi")
OF_UWSGI = {
    "version": str,
    "listen_queue": int,
    "listen_queue_errors": int,
    "signal_queue": int,
    "load": int,
    "pid": int,
    "uid": int,
    "gid": int,
    "cwd": str,
    "daemons": list,
    "locks": list,
    "sockets": list,
    "workers": list,
}
"""The keys of uWSGI 2.0.31, and what their values are."""


def connect(path):
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(DEADLINE)
    made.connect(str(path))
    return made


def read_all(made):
    with made:
        data = b""
        while piece := made.recv(65536):
            data += piece
    return data


def read_json(path):
    return json.loads(read_all(connect(path)))


def ask(path, request=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
    made = connect(path)
    made.sendall(request)
    return read_all(made)


def wait_until(condition):
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come about"
        os.sched_yield()
    return found


def free_port(family=socket.AF_INET, host="127.0.0.1"):
    """Return a port that was free just now."""
    with socket.socket(family) as made:
        made.bind((host, 0))
        return made.getsockname()[1]


def tcp_text(host, port):
    return read_all(socket.create_connection((host, port), DEADLINE))


# What is told.


def test_page_has_the_keys_of_uwsgi_and_true_respawns(masters, tmp_path):
    master = masters.start(
        "stats = {T}/s.sock\nattach-daemon2 = name=a,cmd=sleep 1000\n"
        "attach-daemon2 = name=b,cmd=sleep 1001\n"
    )
    page = read_json(tmp_path / "s.sock")
    assert {key: type(page[key]) for key in OF_UWSGI} == OF_UWSGI
    assert (page["pid"], page["cwd"]) == (master.pid, str(tmp_path))
    assert (page["uid"], page["gid"]) == (os.getuid(), os.getgid())
    first, second = page["daemons"]
    assert (first["cmd"], first["pid"], first["respawns"]) == (
        "sleep 1000",
        master.pid_of("a"),
        0,
    )
    assert (first["name"], first["state"], first["ready"], first["exit"]) == (
        "a",
        "running",
        True,
        None,
    )
    os.kill(second["pid"], signal.SIGKILL)
    again = master.wait_started("b")
    second = wait_until(
        lambda: (found := read_json(tmp_path / "s.sock")["daemons"][1])["pid"] == again and found
    )
    assert (second["respawns"], second["exit"]["signal"]) == (1, "SIGKILL")
    assert page["lowsuper"]["phase"] == "running"
    assert master.stop() == 0
    assert not (tmp_path / "s.sock").exists()


def test_white_space_is_that_of_uwsgi_or_none(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nattach-daemon = sleep 1000\n")
    text = read_all(connect(tmp_path / "s.sock")).decode()
    assert text.startswith('{\n\t"version":"')
    assert '\n\t"daemons":[\n\t\t{\n\t\t\t"cmd":"sleep 1000",\n\t\t\t"pid":' in text


def test_minified(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nstats-minified = true\nattach-daemon = sleep 1000\n")
    text = read_all(connect(tmp_path / "s.sock")).decode()
    assert "\n" not in text
    assert "\t" not in text
    assert json.loads(text)["daemons"][0]["cmd"] == "sleep 1000"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs: curl")
def test_curl_reads_it_over_http(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nstats-http = true\nattach-daemon = sleep 1000\n")
    done = subprocess.run(
        ["curl", "-sSi", "--max-time", "15", "--unix-socket", f"{tmp_path}/s.sock", "http://x/"],
        stdout=subprocess.PIPE,
        check=True,
    )
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"\r\nContent-Type: application/json" in head
    assert len(json.loads(body)["daemons"]) == 1


def test_header_alone_is_what_head_gets(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nstats-http = true\nattach-daemon = sleep 1000\n")
    answer = ask(tmp_path / "s.sock", b"HEAD / HTTP/1.0\n\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(re.search(rb"Content-Length: (\d+)", head)[1])
    assert body == b""
    assert length > 100


def test_who_sends_a_lot_without_http_gets_the_page(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nattach-daemon = sleep 1000\n")
    assert json.loads(ask(tmp_path / "s.sock", b"x" * 20_000))["workers"] == []


def test_metrics_are_openmetrics(masters, tmp_path):
    master = masters.start("metrics = {T}/m.sock\nattach-daemon2 = name=a,cmd=sleep 1000\n")
    head, _, body = ask(tmp_path / "m.sock").decode().partition("\r\n\r\n")
    assert "Content-Type: application/openmetrics-text; version=1.0.0" in head
    lines = body.splitlines()
    assert lines[-1] == "# EOF"
    assert 'lowsuper_daemon_up{daemon="a"} 1' in lines
    assert 'lowsuper_daemon_restarts_total{daemon="a"} 0' in lines
    started = next(line for line in lines if line.startswith("lowsuper_daemon_start_time_seconds{"))
    assert abs(float(started.split()[1]) - time.time()) < 60
    # The lines of a family stand together, behind its type.
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    os.kill(master.pid_of("a"), signal.SIGKILL)
    master.wait_started("a")
    wait_until(lambda: b'restarts_total{daemon="a"} 1\n' in ask(tmp_path / "m.sock"))
    assert b'lowsuper_daemon_last_exit_code{daemon="a"} 137\n' in ask(tmp_path / "m.sock")


@pytest.mark.skipif(not UWSGI, reason="needs: uWSGI, by TEST_UWSGI or on the path")
def test_uwsgi_itself_has_the_same_keys_in_the_same_order(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nattach-daemon = sleep 1000\n")
    ours = read_json(tmp_path / "s.sock")
    command = [UWSGI, "--master", "--attach-daemon", "sleep 1000", "--stats", f"{tmp_path}/u.sock"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as peer:
        try:
            wait_until((tmp_path / "u.sock").exists)
            theirs = wait_until(
                lambda: (
                    (found := try_json(tmp_path / "u.sock"))
                    and found["daemons"]
                    and found["daemons"][0]["pid"] > 0
                    and found
                )
            )
        finally:
            peer.send_signal(signal.SIGINT)
    assert list(theirs) == [key for key in ours if key in theirs]
    assert [type(value) for value in theirs.values()] == [type(ours[key]) for key in theirs]
    assert list(theirs["daemons"][0]) == list(ours["daemons"][0])[:3]
    assert theirs["daemons"][0]["cmd"] == ours["daemons"][0]["cmd"]


def try_json(path):
    try:
        return read_json(path)
    except ConnectionRefusedError:
        return None


# Where.


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
def test_tcp(masters, host):
    port = free_port()
    masters.start(f"stats = {host}:{port}\nattach-daemon = sleep 1000\n")
    assert json.loads(tcp_text("127.0.0.1", port))["daemons"]


def test_ipv6(masters):
    try:
        port = free_port(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("needs: IPv6")
    masters.start(f"stats = [::1]:{port}\nattach-daemon = sleep 1000\n")
    assert json.loads(tcp_text("::1", port))["daemons"]


def test_abstract(masters, tmp_path):
    masters.start("stats = @{T}/stats\nattach-daemon = sleep 1000\n")
    assert read_json(f"\0{tmp_path}/stats")["daemons"]


def test_mode_of_the_socket(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nchmod-socket = 606\nattach-daemon = sleep 1000\n")
    assert stat.S_IMODE(os.stat(tmp_path / "s.sock").st_mode) == 0o606


@needs_root
def test_socket_is_the_users_that_the_master_becomes(masters, tmp_path):
    tmp_path.chmod(0o755)
    masters.start(f"stats = {{T}}/s.sock\nuid = {NOBODY}\nattach-daemon = sleep 1000\n")
    assert os.stat(tmp_path / "s.sock").st_uid == NOBODY
    assert read_json(tmp_path / "s.sock")["uid"] == NOBODY


def test_stale_socket_is_replaced(masters, tmp_path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s.sock"))
    masters.start("stats = {T}/s.sock\nattach-daemon = sleep 1000\n")
    assert read_json(tmp_path / "s.sock")["daemons"]


def test_what_is_in_use_stays_and_the_start_is_refused(masters, tmp_path):
    with socket.socket(socket.AF_UNIX) as used:
        used.bind(str(tmp_path / "s.sock"))
        used.listen()
        master = masters.begin("stats = {T}/s.sock\nattach-daemon = sleep 1000\n")
        master.wait_line(r"stats .*/s\.sock: Address already in use; another process listens")
        assert master.wait() != 0
        assert (tmp_path / "s.sock").exists()
    (tmp_path / "file").write_text("mine")
    master = masters.begin("stats = {T}/file\nattach-daemon = sleep 1000\n", name="b.ini")
    master.wait_line(r"stats .*/file: Address already in use; something else than a socket")
    assert master.wait() != 0
    assert (tmp_path / "file").read_text() == "mine"


def test_port_in_use_is_said(masters):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        master = masters.begin(f"stats = 127.0.0.1:{port}\nattach-daemon = sleep 1000\n")
        master.wait_line(rf"stats 127\.0\.0\.1:{port}: Address already in use")
        assert master.wait() != 0


# Reloads.


def test_reload_changes_the_address(masters, tmp_path):
    master = masters.start("stats = {T}/s.sock\nattach-daemon = sleep 1000\n")
    masters.write("stats = {T}/t.sock\nattach-daemon = sleep 1000\n")
    master.signal(signal.SIGHUP)
    wait_until((tmp_path / "t.sock").exists)
    assert read_json(tmp_path / "t.sock")["pid"] == master.pid
    assert not (tmp_path / "s.sock").exists()
    masters.write("attach-daemon = sleep 1000\n")
    master.signal(signal.SIGHUP)
    wait_until(lambda: not (tmp_path / "t.sock").exists())


def test_reload_keeps_the_address_that_it_can_have(masters, tmp_path):
    master = masters.start("stats = {T}/s.sock\nattach-daemon = sleep 1000\n")
    before = os.stat(tmp_path / "s.sock").st_ino
    (tmp_path / "file").write_text("mine")
    masters.write("stats = {T}/file\nattach-daemon = sleep 1000\n")
    master.signal(signal.SIGHUP)
    master.wait_line("something else than a socket is there")
    assert read_json(tmp_path / "s.sock")["pid"] == master.pid
    assert os.stat(tmp_path / "s.sock").st_ino == before


def test_reload_to_an_address_that_ours_is_part_of(masters):
    port = free_port()
    master = masters.start(f"stats = 127.0.0.1:{port}\nattach-daemon2 = name=a,cmd=sleep 1000\n")
    masters.write(f"stats = :{port}\nattach-daemon2 = name=b,cmd=sleep 1000\n")
    master.signal(signal.SIGHUP)
    master.wait_started("b")
    assert json.loads(tcp_text("127.0.0.1", port))["daemons"][0]["name"] == "b"
    master.expect_silence("in use")


# Those that are slow, many or broken.


def test_clients_that_never_read_are_in_nobodys_way(masters, tmp_path):
    command = "sleep 1000 " + "x" * 4000
    lines = "".join(f"attach-daemon2 = name=d{n},cmd={command}{n}\n" for n in range(60))
    master = masters.begin(f"stats = {{T}}/s.sock\n{lines}attach-daemon2 = name=z,cmd=sleep 9\n")
    wait_until((tmp_path / "s.sock").exists)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(tmp_path / "s.sock")) for _ in range(100)]
        assert len(read_json(tmp_path / "s.sock")["daemons"]) == 61
        # The oldest had to go for others, so there is an end of what it gets.
        read_all(slow[0])
        fds = os.listdir(f"/proc/{master.pid}/fd")
        connections = [fd for fd in fds if is_socket(master.pid, fd)]
        assert len(connections) < 32 + 16


def is_socket(pid, fd):
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    except FileNotFoundError:
        return False


def test_clients_that_go_away_at_once_and_those_that_say_nothing(masters, tmp_path):
    masters.start("stats = {T}/s.sock\nstats-http = true\nattach-daemon = sleep 1000\n")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            connect(tmp_path / "s.sock").close()
            stack.enter_context(connect(tmp_path / "s.sock"))
            half = stack.enter_context(connect(tmp_path / "s.sock"))
            half.sendall(b"GET / HT")
        assert b"200 OK" in ask(tmp_path / "s.sock")
        assert b"200 OK" in ask(tmp_path / "s.sock", b"\0\xff" * 8000)


def test_a_thousand_daemons(masters, tmp_path):
    lines = "".join(f"attach-daemon2 = name=d{n},cmd=sleep 1000\n" for n in range(1000))
    master = masters.start("stats = {T}/s.sock\nmetrics = {T}/m.sock\n" + lines)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(tmp_path / "s.sock")) for _ in range(30)]
        told = json.loads(read_all(slow.pop()))["daemons"]
        assert [daemon["name"] for daemon in told] == [f"d{n}" for n in range(1000)]
        assert len({daemon["pid"] for daemon in told} - {0}) == 1000
        assert ask(tmp_path / "m.sock").count(b"lowsuper_daemon_up{") == 1000
    assert master.stop() == 0


def test_idle_master_does_not_wake_up(masters, tmp_path):
    master = masters.start("stats = {T}/s.sock\nmetrics = {T}/m.sock\nattach-daemon = sleep 1000\n")
    for _ in range(3):
        read_json(tmp_path / "s.sock")
        ask(tmp_path / "m.sock")

    def count():
        text = Path(f"/proc/{master.pid}/status").read_text()
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)[1])

    wait_until(lambda: timers_of(master.pid) == {"(0, 0)"})
    before = count()
    select_nothing(0.5)
    assert count() == before


def timers_of(pid):
    """Return how long the timers of a process have to go."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError):
            text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
            if match := re.search(r"^it_value: (.*)$", text, re.MULTILINE):
                found.add(match[1])
    return found


def select_nothing(seconds):
    """Let time pass in which nothing may happen: that is what is tested."""
    never, other = socket.socketpair()
    with never, other:
        never.settimeout(seconds)
        with pytest.raises(TimeoutError):
            never.recv(1)


# The statistics of a signal.


def test_usr1_tells_restarts_and_the_last_exit(masters):
    master = masters.start("attach-daemon2 = name=a,cmd=sleep 1000\n")
    pid = master.pid_of("a")
    master.signal(signal.SIGUSR1)
    master.wait_line(rf"a: up, pid {pid}, for .*; no restart$")
    os.kill(pid, signal.SIGKILL)
    master.wait_line("a: pid .* was killed")
    again = master.wait_started("a")
    master.signal(signal.SIGUSR1)
    master.wait_line(
        rf"a: up, pid {again}, for .*; 1 restart; last exit .* ago: was killed by SIGKILL"
    )


@pytest.mark.parametrize("option", ["stats", "metrics"])
def test_socket_that_somebody_removed_is_made_again(masters, tmp_path, option):
    path = tmp_path / "s.sock"
    text = f"chmod-socket = 640\n{option} = {path}\nattach-daemon2 = name=web,cmd=sleep 1000\n"
    master = masters.start(text)
    for remove in (path.unlink, lambda: path.rename(tmp_path / "away")):
        remove()
        master.wait_line("s.sock was removed or replaced; made again$")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert b"web" in ask(path)
    # What somebody else has put there stays.
    mine = tmp_path / "mine"
    mine.write_text("mine")
    mine.replace(path)
    master.wait_line("s.sock was removed, and cannot be made again: .*something else than a socket")
    assert master.stop() == 0
    assert path.read_text() == "mine"


def test_client_that_waits_is_served_though_the_socket_is_made_again(masters, tmp_path):
    path = tmp_path / "s.sock"
    text = f"stats-http = true\nstats = {path}\nattach-daemon2 = name=web,cmd=sleep 1000\n"
    master = masters.start(text)
    made = connect(path)
    made.sendall(b"GET / HTTP/1.0\r\n")
    wait_until(lambda: b"web" in ask(path))  # by then the first was let in
    path.unlink()
    master.wait_line("made again")
    made.sendall(b"\r\n")
    assert b"200 OK" in read_all(made)


# The tools that people read it with.


def metrics_of(path):
    """Return what Prometheus' own parser makes of a page: the value of each sample, with labels."""
    parser = pytest.importorskip("prometheus_client.openmetrics.parser", reason="needs: it")
    families = parser.text_string_to_metric_families(ask(path).partition(b"\r\n\r\n")[2].decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_prometheus_reads_metrics(masters, tmp_path):
    text = "[uwsgi]\nmetrics = {T}/m.sock\n[daemon:a:b]\ncommand = sleep 1000\n"
    text += "[daemon:bad]\ncommand = sh -c 'exit 3'\nrestart = never\n"
    master = masters.start(text)
    found = wait_until(
        lambda: (
            (now := metrics_of(tmp_path / "m.sock")).get(("lowsuper_daemon_failed", "bad")) and now
        )
    )
    assert found["lowsuper_daemon_up", "a:b"] == 1
    assert found["lowsuper_daemon_up", "bad"] == 0
    assert found["lowsuper_daemon_last_exit_code", "bad"] == 3
    assert found["lowsuper_daemon_restarts_total", "a:b"] == 0
    os.kill(master.pid_of("a:b"), signal.SIGKILL)
    restarts = "lowsuper_daemon_restarts_total", "a:b"
    wait_until(lambda: metrics_of(tmp_path / "m.sock")[restarts] == 1)


UWSGITOP = shutil.which("uwsgitop", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(not UWSGITOP, reason="needs: uwsgitop")
@pytest.mark.parametrize("kind", ["unix", "tcp", "http"])
def test_uwsgitop_shows_the_master(masters, tmp_path, kind):
    port = free_port()
    address = str(tmp_path / "s.sock") if kind == "unix" else f"127.0.0.1:{port}"
    head = "stats-http = true\n" if kind == "http" else ""
    master = masters.start(f"{head}stats = {address}\nattach-daemon = sleep 1000\n")
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "LINES": "40", "COLUMNS": "250"}
    command = [sys.executable, UWSGITOP, f"http://{address}/" if kind == "http" else address]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as top:
        os.close(theirs)
        try:
            read_until(ours, f"masterpid: {master.pid}".encode())
            os.write(ours, b"q")
            assert top.wait(DEADLINE) == 0
        finally:
            top.kill()
            os.close(ours)
