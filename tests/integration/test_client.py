"""The client for scripts, against a master that only speaks the protocol."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time

import pytest
from fake_master import FakeMaster, daemon, ended, exit_of, refuse

import lowsuper
from lowsuper import client


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir(mode=0o755)
    monkeypatch.setenv("LOWSUPER_RUNTIME_DIR", str(directory))
    for name in ("LOWSUPER_SOCKET", "LOWSUPER_INSTANCE"):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture
def fakes(runtime):
    with contextlib.ExitStack() as stack:

        def make(name="fake", file="/etc/fake.ini"):
            made = FakeMaster(runtime, name, file)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def fake(fakes):
    return fakes().add(daemon("web"), ended("db"))


def later(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


# What it loads.


def test_import_loads_nothing_of_the_supervisor(fake):
    code = """
import sys
import lowsuper
assert "lowsuper.client" not in sys.modules
with lowsuper.connect() as master:
    assert master.status()["web"].state == "running"
    master.restart("web")
loaded = {name for name in sys.modules if name.startswith("lowsuper")}
assert loaded <= {"lowsuper", "lowsuper.client", "lowsuper.errors", "lowsuper.wire",
    "lowsuper.record", "lowsuper.kernel", "lowsuper.kernel.instance", "lowsuper.kernel.trust",
    "lowsuper.units"}, loaded
heavy = {"json", "typing", "dataclasses", "argparse", "re", "enum", "socket", "logging"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_package_offers_what_it_lists():
    assert {name for name in lowsuper.__all__ if getattr(lowsuper, name) is not None}
    with pytest.raises(AttributeError):
        lowsuper.nonsense  # noqa: B018  # it is the question


# Which master.


def test_connect_when_one_runs_takes_it(fake):
    with lowsuper.connect() as master:
        assert (master.name, master.pid) == ("fake", os.getpid())
        assert master.hello()["files"] == ["/etc/fake.ini"]


def test_connect_when_none_runs_says_so(runtime):
    with pytest.raises(lowsuper.NoMasterError, match="no master runs") as caught:
        lowsuper.connect()
    assert caught.value.code == "no-master"


def test_connect_when_several_run_lists_them(fakes):
    fakes("one", "/etc/one.ini")
    fakes("two", "/etc/two.ini")
    with pytest.raises(lowsuper.NoMasterError, match="several") as caught:
        lowsuper.connect()
    assert caught.value.code == "several-masters"
    assert "/etc/one.ini" in caught.value.message
    assert [each.name for each in lowsuper.list_instances()] == ["one", "two"]


@pytest.mark.parametrize("how", ["name", "file", "socket", "LOWSUPER_INSTANCE", "LOWSUPER_SOCKET"])
def test_connect_finds_the_one_that_is_meant(fakes, tmp_path, monkeypatch, how):
    file = tmp_path / "two.ini"
    file.touch()
    fakes("one", "/etc/one.ini")
    two = fakes("two", str(file))
    monkeypatch.chdir(tmp_path)
    target = {"name": "two", "file": "two.ini", "socket": str(two.path)}.get(how)
    if target is None:
        monkeypatch.setenv(how, "two" if how.endswith("INSTANCE") else str(two.path))
    with lowsuper.connect(target) as master:
        assert master.hello()["name"] == "two"


def test_connect_when_name_is_unknown_suggests(fakes):
    fakes("frontend")
    with pytest.raises(lowsuper.NoMasterError, match="did you mean frontend"):
        lowsuper.connect("fronted")
    with pytest.raises(lowsuper.NoMasterError, match=r"no master runs ./other\.ini"):
        lowsuper.connect("./other.ini")


def test_connect_when_master_is_dead_says_so(runtime, fakes):
    fake = fakes()
    path = fake.path
    fake.close()
    with pytest.raises(lowsuper.NoMasterError):
        client.Client(str(path))


def test_connect_when_path_is_long(runtime, tmp_path):
    directory = tmp_path / ("d" * 100)
    directory.mkdir(mode=0o755)
    fake = FakeMaster(directory)
    try:
        with lowsuper.connect(str(fake.path)) as master:
            assert master.hello()["name"] == "fake"
    finally:
        fake.close()


# Asking.


def test_status_gives_daemons_with_attributes(fake):
    fake.daemons["db"]["exit"] = exit_of(3)
    with lowsuper.connect() as master:
        daemons = master.status()
        assert list(daemons) == ["web", "db"]
        assert daemons["web"].is_active
        assert daemons["web"].exit is None
        assert (daemons["db"].exit.code, daemons["db"].exit.core) == (3, False)
        assert list(master.status("w*")) == ["web"]
        assert list(master.status(["db", "web"])) == ["db", "web"]


def test_daemon_of_an_older_master_has_defaults():
    found = client.Daemon({"name": "x", "new": 1})
    assert (found.state, found.exit, found.restarts) == ("", None, 0)
    assert vars(found) == {"name": "x", "new": 1}


def test_error_carries_code_and_message(fake):
    with lowsuper.connect() as master:
        with pytest.raises(lowsuper.UnknownNameError, match="no daemon nope") as caught:
            master.status("nope")
        assert caught.value.code == "unknown-name"
        assert caught.value.answer["schema"] == 1
        assert master.status("web"), "the connection goes on"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not-permitted", lowsuper.NotPermittedError),
        ("timeout", lowsuper.WaitTimeoutError),
        ("timeout", TimeoutError),
        ("something-new", lowsuper.ClientError),
    ],
)
def test_error_has_its_class(fake, code, kind):
    fake.answers["diff"] = lambda _: refuse(code, "no")
    with lowsuper.connect() as master, pytest.raises(kind, match="no") as caught:
        master.diff()
    assert caught.value.code == code


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b'{"schema":\n', b"[" * 100_000 + b"\n"])
def test_answer_that_is_nonsense_is_an_error(fake, line):
    fake.answers["hello"] = lambda _: line
    with lowsuper.connect() as master, pytest.raises(lowsuper.ClientError) as caught:
        master.hello()
    assert caught.value.code == "bad-answer"


@pytest.mark.parametrize("part", [b"", b'{"schema": 1, "ok"'])
def test_master_that_goes_away_is_an_error(fake, part):
    fake.answers["hello"] = lambda _: None if not part else [part, {}]
    if part:
        fake.answers["hello"] = cut(fake, part)
    with lowsuper.connect() as master, pytest.raises(lowsuper.ClientError) as caught:
        master.hello()
    assert caught.value.code == "gone"


def cut(fake, part):
    """Return an answer that ends in its middle."""

    def answer(_request):
        for connection in list(fake._connections):
            connection.sendall(part)

    return answer


def test_master_that_does_not_answer_is_an_error_in_time(fake):
    fake.answers["hello"] = lambda _: []
    with lowsuper.connect() as master:
        begin = time.monotonic()
        with pytest.raises(lowsuper.ClientError, match=r"has not answered for 0\.2 s") as caught:
            master.request("hello", patience=0.2)
        assert time.monotonic() - begin < 5
    assert caught.value.code == "silent"


def test_answer_of_many_pieces_is_one(fake):
    fake.answers["logs"] = lambda _: {"schema": 1, "ok": True, "lines": ["x" * 1000] * 3000}
    with lowsuper.connect() as master:
        assert len(master.logs("web")) == 3000
        assert master.status("web")


def test_bytes_that_are_no_text_survive(fake):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    fake.add(daemon(name))
    with lowsuper.connect() as master:
        assert name in master.status()
        assert master.status(name)[name].name == name


def test_why_tells_what_came_before(fake):
    with lowsuper.connect() as master:
        reasons = master.why("web")
    assert reasons.lines == ["one", "two"]
    assert reasons.decision == "restart = always"
    assert reasons.history[0]["line"] == "web: started"


# Steering.


def test_start_waits_until_it_is_ready(fake):
    def start(request):
        fake.change("db", state="starting", run=2)
        return {"schema": 1, "ok": True, "names": request["names"], "runs": {"db": 1}}

    fake.answers["start"] = start

    def come_up():
        fake.wait_asked("status")
        fake.change("db", state="running", ready=True, pid=1)

    thread = later(come_up)
    with lowsuper.connect() as master:
        master.start("db", timeout=20)
        assert master.status()["db"].ready
    thread.join()


def test_start_of_what_fails_raises_with_the_reason(fake):
    def start(request):
        fake.change("db", state="backoff", run=2, words="waiting before the next try")
        return {"schema": 1, "ok": True, "names": request["names"], "runs": {"db": 1}}

    why = {**fake.daemons["db"], "failure": "db: exec /srv/db: No such file or directory"}
    fake.answers |= {"start": start, "why": lambda _: {"schema": 1, "ok": True, **why}}
    with lowsuper.connect() as master:
        with pytest.raises(lowsuper.ClientError, match="come up: exec /srv/db: No") as caught:
            master.start("db", timeout=20)
        assert caught.value.code == "failed"


def test_start_that_takes_too_long_raises_with_the_state(fake):
    def start(request):
        fake.change("db", state="starting", run=2, words="up, not ready: nobody listens")
        return {"schema": 1, "ok": True, "names": request["names"], "runs": {"db": 1}}

    fake.answers["start"] = start
    with lowsuper.connect() as master:
        with pytest.raises(lowsuper.WaitTimeoutError, match="db: up, not ready: nobody listens"):
            master.start("db", timeout=0.2)
        assert master.status("db"), "the connection goes on"


def test_restart_waits_for_a_new_life(fake):
    def restart(request):
        return {"schema": 1, "ok": True, "names": request["names"], "runs": {"web": 1}}

    fake.answers["restart"] = restart

    def come_up():
        fake.wait_asked("status")
        fake.change("web", state="stopping", ready=False)
        fake.wait_asked("status", 2)
        fake.change("web", state="running", ready=True, run=2)

    thread = later(come_up)
    with lowsuper.connect() as master:
        master.restart("web", timeout=20)
        assert master.status()["web"].run == 2
    thread.join()


def test_start_without_waiting_returns_at_once(fake):
    fake.answers["start"] = lambda request: {"schema": 1, "ok": True, "names": request["names"]}
    with lowsuper.connect() as master:
        master.start(["db"], wait=False)
    assert fake.asked("start") == [{"do": "start", "names": ["db"]}]
    assert fake.asked("status") == []


def test_try_restart_leaves_alone_what_is_down(fake):
    fake.answers["try-restart"] = lambda request: (
        fake.change("web", run=2)
        or {"schema": 1, "ok": True, "names": ["web", "db"], "runs": {"web": 1, "db": 1}}
    )
    with lowsuper.connect() as master:
        master.try_restart("*", timeout=20)


def test_stop_waits_until_nothing_is_left(fake):
    with lowsuper.connect() as master:
        master.stop("web", timeout=20)
    (request,) = fake.asked("wait")
    assert request == {"do": "wait", "names": ["web"], "for": "stopped", "timeout": 20}


def test_more_daemons_than_a_request_has_names_for(fake):
    fake.add(*(daemon(f"d{number}") for number in range(1200)))
    with lowsuper.connect() as master:
        master.start("*", timeout=20)
    assert all(len(each.get("names", ())) <= 1000 for each in fake.requests)


def test_wait_returns_the_daemons(fake):
    with lowsuper.connect() as master:
        assert master.wait("web", "running")["web"].pid == os.getpid()
        with pytest.raises(lowsuper.WaitTimeoutError):
            master.wait("db", "ready", timeout=0.05)


def test_events_come_beside_other_requests(fake):
    with lowsuper.connect() as master:
        events = master.events(timeout=20)
        master.stop("web")
        assert next(events)["daemon"] == "web"
        events.close()


def test_events_end_in_time(fake):
    with lowsuper.connect() as master, pytest.raises(lowsuper.WaitTimeoutError):
        for _ in master.events(timeout=0.05):
            pass


def test_events_end_with_the_master(fakes):
    fake = fakes().add(daemon("web"))
    with lowsuper.connect() as master:
        events = master.events(timeout=20)
        fake.close()
        assert list(events) == []


def test_client_can_be_selected(fake):
    with lowsuper.connect() as master:
        poll = select.poll()
        poll.register(master, select.POLLIN)
        assert poll.poll(0) == []


def test_shutdown_tells_whom_it_waits_for(fake, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE", 0.01)  # the process that plays the master lives on
    waiting = {"waiting": [{"name": "web", "pid": 1, "seconds": 1.0, "process_state": "S"}]}
    line = json.dumps({"schema": 1, "ok": True}).encode() + b"\n"

    def answer(_request):
        later(end)
        return [line, {"schema": 1, **waiting}]

    def end():
        fake.wait_asked("hello")
        for connection in list(fake._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    fake.answers["shutdown"] = answer
    with lowsuper.connect() as master, lowsuper.connect() as other:
        told = []
        for each in master.watch_shutdown():
            told.append(each)
            if "waiting" in each:
                other.hello()
    assert told[1]["waiting"][0]["name"] == "web"
