"""What real masters answer at their control socket, and what they do when they are asked to."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from jails import make_root
from masters import NOBODY, is_alive, needs_root
from steering import Client, socket_of

SLEEP = "attach-daemon2 = name={},cmd=sleep 1000{}\n"


def sleeper(name: str, **keys) -> str:
    more = "".join(f",{key}={value}" for key, value in keys.items())
    return f"attach-daemon2 = name={name},cmd=sleep 1000{more}\n"


@pytest.fixture
def pair(masters):
    """A master of two daemons, and a client."""
    master = masters.start(sleeper("web") + sleeper("db"))
    with Client(socket_of(masters)) as client:
        yield master, client


def test_hello_says_who_it_is(masters):
    master = masters.start(sleeper("web"))
    with Client(socket_of(masters)) as client:
        instance = client.done("hello")["instance"]
    assert instance["name"] == "test"
    assert instance["pid"] == master.pid
    assert instance["files"] == [str(masters.directory / "test.ini")]
    assert instance["phase"] == "running"
    assert instance["jail"] is False
    assert instance["since"] <= time.monotonic()


def test_status_tells_what_runs(pair):
    master, client = pair
    found = client.done("status")
    assert [each["name"] for each in found["daemons"]] == ["web", "db"]
    web = found["daemons"][0]
    assert (web["state"], web["ready"], web["pid"]) == ("running", True, master.pid_of("web"))
    assert (web["uid"], web["run"], web["restarts"], web["exit"]) == (os.getuid(), 1, 0, None)
    assert web["command"] == "sleep 1000"
    if web["kill_domain"] == "cgroup":
        procs = Path(web["leaf"], "cgroup.procs").read_text().split()
        assert procs == [str(web["pid"])]
    assert [each["name"] for each in client.done("status", "d*")["daemons"]] == ["db"]
    assert client.refused("status", "nope")[0] == "unknown-name"


def test_stop_start_restart_and_wait(pair):
    master, client = pair
    first = client.daemon("web")["pid"]
    assert client.done("stop", "web")["runs"] == {"web": 1}
    (web,) = client.wait("stopped", "web")
    assert (web["state"], web["pid"], web["exit"]["signal"]) == ("stopped", None, "SIGTERM")
    assert not is_alive(first)
    assert client.daemon("db")["state"] == "running"
    runs = client.done("start", "web")["runs"]
    (web,) = client.wait("running", "web", past=runs)
    assert web["run"] == 2
    runs = client.done("restart", "*")["runs"]
    found = client.wait("ready", "*", past=runs)
    assert [each["restarts"] for each in found] == [0, 0]  # those that nobody asked for
    assert {each["run"] for each in found} == {2, 3}
    master.expect_silence("died|exited")


def test_what_was_asked_for_is_seen_by_the_next_request(pair):
    _, client = pair
    client.send(b'{"do":"stop","names":["web"]}\n{"do":"status","names":["web"]}\n')
    assert client.next()["ok"] is True
    assert client.next()["daemons"][0]["state"] in ("stopping", "stopped")


def test_signal_reaches_the_daemon_alone(masters):
    text = "attach-daemon2 = name=web,cmd={D}/say_signals.py {T}/said,reload_signal=USR2\n"
    masters.start(text + sleeper("db"))
    with Client(socket_of(masters)) as client:
        client.wait("running", "web")
        client.done("signal", "db", signal="KILL")
        (db,) = client.wait("exited", "db", past={"db": 0})
        assert db["exit"]["signal"] == "SIGKILL"
        assert client.refused("reload", "db")[0] == "not-possible"
        client.done("stop", "db")
        client.wait("stopped", "db")
        assert client.refused("signal", "*", signal="HUP")[0] == "not-possible"


def test_events_tell_what_happens_as_it_does(pair):
    master, client = pair
    with Client(client.socket.getpeername()) as events:
        events.send(b'{"do":"events","names":["web"]}\n')
        assert events.next()["ok"] is True
        pid = client.daemon("web")["pid"]
        os.kill(pid, signal.SIGKILL)
        died = events.until("DaemonDied", daemon="web", pid=pid)
        assert died["line"].startswith(f"web: pid {pid} was killed by SIGKILL (9)")
        assert abs(died["time"] - time.time()) < 20
        assert abs(died["monotonic"] - time.monotonic()) < 20
        assert 0 <= died["age"] < 20
        events.until("state", daemon="web", state="running", run=2)
        client.done("stop", "db")
        client.wait("stopped", "db")
        client.done("stop", "web")
        assert events.until("DaemonEnding")["daemon"] == "web"
        assert master.stop() == 0
        while (event := events.next()) is not None:
            assert event["daemon"] == "web"


def test_wait_ends_when_it_can_not_come_any_more_or_takes_too_long(masters):
    masters.start(
        "attach-daemon2 = name=bad,cmd=/bin/false,max_restarts=1/1m,backoff=10ms..10ms\n"
        + sleeper("web")
    )
    with Client(socket_of(masters)) as client:
        code, message = client.refused("wait", "bad", **{"for": "running", "past": {"bad": 99}})
        assert code == "failed"
        assert "given up" in message
        begin = time.monotonic()
        found = client.ask("wait", "web", **{"for": "stopped", "timeout": 0.2})
        assert found["error"] == "timeout"
        assert [each["name"] for each in found["daemons"]] == ["web"]
        assert 0.2 <= time.monotonic() - begin < 10
        assert client.daemon("bad")["state"] == "failed"
        client.done("reset-failed", "bad")
        assert client.daemon("bad")["state"] == "stopped"


def test_why_tells_all_there_is_to_know(masters):
    masters.start("attach-daemon2 = name=web,cmd=/nowhere/web,log=ring\n")
    with Client(socket_of(masters)) as client:
        found = client.done("why", name="web")
        assert "execve /nowhere/web: No such file or directory" in found["failure"]
        assert found["state"] == "backoff"
        assert found["next_try"] > found["monotonic"]
        assert "starts again in" in found["decision"]
        assert found["history"][-1]["line"].startswith("web: execve /nowhere/web")
        assert client.refused("why", name="nope")[0] == "unknown-name"


def test_output_comes_and_is_followed(masters):
    log = masters.directory / "web.log"
    masters.start(f"attach-daemon2 = name=web,cmd=sleep 1000,log={log}\n" + sleeper("db"))
    with Client(socket_of(masters)) as client, Client(socket_of(masters)) as second:
        with log.open("a") as file:
            file.write("one\ntwo\nthree\n")
        assert client.done("logs", name="web", lines=2)["lines"] == ["two", "three"]
        second.send(b'{"do":"logs","name":"web","lines":1,"follow":true}\n')
        assert second.next()["lines"] == ["three"]
        with log.open("a") as file:
            file.write("fo")
            file.flush()
            file.write("ur\nfive\n")
        lines = []
        while "five" not in lines:
            lines += second.next()["lines"]
        assert lines == ["four", "five"]
        code, message = client.refused("logs", name="db")
        assert code == "not-possible"
        assert "log = PATH" in message


def test_reload_answers_when_the_files_are_read(masters):
    master = masters.start(sleeper("web"))
    with Client(socket_of(masters)) as client:
        assert client.done("diff")["changes"] == {
            "added": [], "removed": [], "changed": {}, "master": [],
        }  # fmt: skip
        masters.write(sleeper("web", stop_timeout=3) + sleeper("db"))
        changes = client.done("diff")["changes"]
        assert changes["added"] == ["db"]
        assert changes["changed"] == {"web": ["stop_timeout"]}
        masters.write(sleeper("web", colour="red"))
        found = client.ask("reload")
        assert found["error"] == "failed"
        assert any("colour" in line for line in found["problems"])
        assert client.refused("diff")[0] == "failed"
        assert client.daemon("web")["run"] == 1
        masters.write(sleeper("db"))
        client.done("reload")
        client.wait("running", "db")
        assert [each["name"] for each in client.done("status")["daemons"]][:1] == ["db"]
    master.wait_line("reload \\(uid 0\\)|reload")


def test_apply_touches_only_what_differs(masters):
    masters.start(sleeper("web") + sleeper("old") + sleeper("db"))
    with Client(socket_of(masters)) as client:
        web, db = client.daemon("web")["pid"], client.daemon("db")["pid"]
        masters.write(sleeper("web") + sleeper("db", stop_timeout=3) + sleeper("new"))
        found = client.done("apply")
        assert sorted(found["names"]) == ["db", "new", "old"]
        assert found["changes"]["removed"] == ["old"]
        client.wait("running", "db", past={"db": 1})
        client.wait("running", "new")
        assert client.daemon("web")["pid"] == web
        assert client.daemon("db")["pid"] != db
        masters.write("nonsense\n" + sleeper("web", colour="red"))
        assert client.refused("apply")[0] == "failed"


def test_shutdown_says_on_whom_it_waits(masters):
    master = masters.start("attach-daemon2 = name=web,cmd={D}/ignore_term.sh,stop_timeout=1\n")
    with Client(socket_of(masters)) as client:
        client.wait("running", "web")
        pid = client.daemon("web")["pid"]
        waiting = client.done("shutdown", wait=True)["waiting"]
        assert [(each["name"], each["pid"]) for each in waiting] == [("web", pid)]
        assert waiting[0]["process_state"] in ("S", "R", "D")
        lines = [waiting]
        while (found := client.next()) is not None:
            lines.append(found["waiting"])
        assert len(lines) >= 2
    assert master.wait() == 0
    assert not Path(socket_of(masters)).exists()


def test_shutdown_kill_waits_for_nobody(masters):
    master = masters.start("attach-daemon2 = name=web,cmd={D}/ignore_term.sh,stop_timeout=60\n")
    with Client(socket_of(masters)) as client:
        client.done("shutdown", kill=True)
    assert master.wait() == 0


def test_a_master_that_nobody_asks_loads_nothing_and_does_not_wake_up(masters):
    master = masters.start(sleeper("web"))
    maps = Path(f"/proc/{master.pid}/maps").read_text()
    assert "/_json." not in maps
    with Client(socket_of(masters)) as client:
        client.done("status")
        # Whoever is connected and asks for nothing costs nothing.
        wait_asleep(master.pid)
        before = read_switches(master.pid)
        poll_nothing(0.3)
        assert read_switches(master.pid) == before


def read_switches(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def wait_asleep(pid: int) -> None:
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < end


def poll_nothing(seconds: float) -> None:
    import select

    select.select([], [], [], seconds)


@needs_root
def test_master_that_drops_privileges_serves_its_user_and_root(open_masters):
    text = f"uid = {NOBODY}\ngid = {NOBODY}\n" + sleeper("web")
    master = open_masters.start(text)
    path = socket_of(open_masters)
    status = os.stat(path)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (NOBODY, NOBODY, 0o660)
    with Client(path) as client:
        assert client.daemon("web")["uid"] == NOBODY
        client.done("restart", "web")
        client.wait("running", "web", past={"web": 1})
        client.done("why", name="web")
    assert master.stop() == 0
    # It may not remove what root made; the next one cleans up.
    master = open_masters.start(text)
    with Client(path) as client:
        client.done("hello")
    assert master.stop() == 0


# In a jail.


@pytest.fixture
def jailed(masters, tmp_path):
    root = make_root(tmp_path / "root")
    log = f"attach-daemon2 = name=web,cmd=/bin/sleep 1000\nnamespace = {root}:testns\n"
    return masters.start(log)


@needs_root
def test_clients_of_a_jail_are_served_inside(masters, jailed):
    path = socket_of(masters)
    with Client(path) as client:
        hello = client.done("hello")["instance"]
        assert (hello["jail"], hello["pid"], hello["phase"]) == (True, jailed.pid, "running")
        # What comes before and behind, in one packet, is passed along.
        client.send(b'{"do":"hello"}\n{"do":"status"}\n{"do":"stop","names":["web"]}\n{"do":')
        assert client.next()["instance"]["pid"] == jailed.pid
        found = client.next()
        assert [each["name"] for each in found["daemons"]] == ["web"]
        assert found["instance"]["pid"] == jailed.pid
        assert client.next()["names"] == ["web"]
        client.send(b'"wait","names":["web"],"for":"stopped"}\n')
        assert client.next()["daemons"][0]["state"] == "stopped"
        runs = client.done("start", "web")["runs"]
        client.wait("running", "web", past=runs)
        client.done("why", name="web")
    fds = {
        os.readlink(f"/proc/{jailed.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{jailed.pid}/fd")
    }
    assert not any("memfd:client" in fd for fd in fds)


@needs_root
def test_jail_is_reloaded_and_shut_down_from_outside(masters, jailed):
    path = socket_of(masters)
    text = (masters.directory / "test.ini").read_text()
    with Client(path) as client:
        masters.write(text.replace("1000", "1001"))
        assert client.done("diff")["changes"]["changed"] == {"web": ["command"]}
        assert client.refused("apply")[0] == "not-possible"
        masters.write(text + "attach-daemon2 = colour=red\n")
        found = client.ask("reload")
        assert found["error"] == "failed"
        assert found["problems"]
        masters.write(text.replace("1000", "1001"))
        client.done("reload")
        jailed.wait_line("reload")
    jailed.wait_started("web")
    with Client(path) as client:
        assert client.daemon("web")["command"] == "/bin/sleep 1001"
    with Client(path) as client:
        assert client.done("shutdown", wait=True)["waiting"] is not None
        while client.next() is not None:
            pass
    assert jailed.wait() == 0
    assert not Path(path).exists()


@needs_root
def test_client_inside_can_shut_down_too(masters, jailed):
    with Client(socket_of(masters)) as client:
        client.daemon("web")
        client.done("shutdown")
    assert jailed.wait() == 0


@needs_root
def test_rights_hold_inside_of_the_jail(open_masters, tmp_path):
    root = make_root(Path(open_masters.directory) / "root")
    text = f"attach-daemon2 = name=web,cmd=/bin/sleep 1000\nnamespace = {root}:testns\n"
    open_masters.start(text + "control-allow = nobody status\n")
    path = socket_of(open_masters)
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with Client(path) as client:
                words = [str(client.ask("status")["ok"])]
                words += [client.ask("stop", "web").get("error", "")]
                words += [client.ask("shutdown").get("error", "")]
            os.write(write_fd, " ".join(words).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd) as file:
        assert file.read() == "True not-permitted not-permitted"
    os.waitpid(child, 0)
