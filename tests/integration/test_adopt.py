"""`lowsuper adopt`: the word of an operator against a pidfile that is not believed."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from masters import DAEMONS, NOBODY, is_alive, needs_root, wait_text
from smart_tools import PYTHON
from steering import Client, socket_of

OTHER = f"{PYTHON} {DAEMONS}/say_signals.py"
"""What runs: the configured interpreter, with another script."""

WEB = f"attach-daemon2 = name=web,cmd={PYTHON} {{T}}/gone.py,pidfile={{pidfile}},freq=2,{{keys}}\n"
PLAIN = "attach-daemon2 = name=plain,cmd=sleep 1000\n"


class Scene:
    """A process whose pidfile is refused, and a master of a daemon that cannot start."""

    def __init__(self, masters):
        masters.allow_survivors()
        self.masters, self.pidfile = masters, masters.directory / "web.pid"
        self.record = masters.directory / "signals"
        self.process = self.open(self.record)
        self.pid = self.process.pid
        self.pidfile.write_text(f"{self.pid}\n")

    def open(self, record, **keywords) -> subprocess.Popen:
        with record.open("wb") as file:
            process = subprocess.Popen(
                OTHER.split(), stdout=file, stdin=subprocess.DEVNULL, start_new_session=True,
                **keywords,
            )  # fmt: skip
        wait_text(record, "settled")
        return process

    def text(self, keys: str = "restart=never", more: str = PLAIN) -> str:
        return WEB.format(pidfile=self.pidfile, keys=keys, T="{T}") + more

    def start(self, **keywords):
        return self.masters.start(self.text(**keywords))

    def client(self) -> Client:
        return Client(socket_of(self.masters))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def scene(masters):
    found = Scene(masters)
    yield found
    found.close()


def wait_failed(client: Client) -> None:
    assert client.ask("wait", "web", **{"for": "ready"})["error"] == "failed"


def test_word_counts_against_a_refused_pidfile_and_for_the_next_master(scene):
    master = scene.start()
    refused = (
        rf"web: the pidfile \S+ names {scene.pid} .*which is not believed: .*but not .*/gone.py"
    )
    assert master.has_said(refused), master.text
    with scene.client() as client:
        wait_failed(client)
        client.done("adopt", name="web", pid=scene.pid)
        web = client.daemon("web")
        assert (web["state"], web["pid"], web["restarts"]) == ("running", scene.pid, 0)
        client.done("adopt", name="web", pid=scene.pid)  # it is that one already
        code, message = client.refused("adopt", name="web", pid=os.getpid())
        assert (code, message) == ("not-possible", "web: up; first lowsuper stop web")
    master.wait_line(rf"web: found running for .*, pid {scene.pid},.*: uid {os.getuid()} says that")
    master.kill()
    master = scene.start()
    assert master.pid_of("web") == scene.pid
    assert master.has_said(r"web: found running .*: recorded by lowsuper$"), master.text
    with scene.client() as client:
        client.done("stop", "web")
        wait_text(scene.record, "got SIGTERM")


def test_next_try_is_not_waited_for(scene):
    """What is about to be started again is taken over at once, and then started no more."""
    scene.start(keys="backoff=60s..60s")
    with scene.client() as client:
        client.wait("exited", "web", past={"web": 0})
        assert client.daemon("web")["state"] == "backoff"
        client.done("adopt", name="web", pid=scene.pid)
        assert client.daemon("web")["pid"] == scene.pid


def test_its_death_is_noticed(scene):
    master = scene.start()
    with scene.client() as client:
        wait_failed(client)
        scene.pidfile.write_text("1\n")
        client.done("adopt", name="web", pid=scene.pid)
        os.kill(scene.pid, signal.SIGKILL)
        scene.process.wait()
        (web,) = client.wait("exited", "web", past={"web": client.daemon("web")["run"] - 1})
        assert web["exit"]["pid"] == scene.pid
    assert master.has_said(rf"uid {os.getuid()} says .*, though the pidfile \S+ names 1$")


def test_background_daemon_of_lowsuper_gets_its_pidfile(scene):
    """Where lowsuper writes the pidfile, it names what was adopted."""
    scene.start(keys="restart=never,daemonize=1")
    with scene.client() as client:
        client.wait("exited", "web", past={"web": 0})  # it may have been up for a moment
        scene.pidfile.unlink(missing_ok=True)
        client.done("adopt", name="web", pid=scene.pid)
    assert scene.pidfile.read_text().strip() == str(scene.pid)


def a_dead_one(scene, _master) -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


NEVER = {
    "pid 1": (lambda *_: 1, "it is pid 1"),
    "the master": (lambda _, master: master.pid, "it is lowsuper itself"),
    "its guard": (lambda _, master: master.guard(), "it is a helper of lowsuper"),
    "who started it": (lambda *_: os.getpid(), "lowsuper was started by it"),
    "a plain daemon": (lambda _, master: master.pid_of("plain"), "it belongs to plain of test"),
    "nobody": (a_dead_one, "there is no process"),
}


@pytest.mark.parametrize("which", NEVER)
def test_word_is_not_taken_for_everything(scene, which):
    master = scene.start()
    choose, why = NEVER[which]
    with scene.client() as client:
        wait_failed(client)
        code, message = client.refused("adopt", name="web", pid=choose(scene, master))
        assert code == "not-possible"
        assert why in message
        assert client.daemon("web")["state"] == "failed"
        assert client.refused("adopt", name="plain", pid=scene.pid)[0] == "not-possible"
        assert client.refused("adopt", name="nope", pid=scene.pid)[0] == "unknown-name"
        assert client.refused("adopt", name="web")[0] == "bad-request"


def test_daemon_of_another_pidfile_is_not_this_one(scene):
    """Neither that of this master nor that of one that has ended."""
    other = scene.masters.directory / "other.pid"
    text = scene.text(more=f"attach-daemon2 = name=other,cmd={OTHER},pidfile={other},daemonize=1\n")
    master = scene.masters.start(text)
    pid = master.pid_of("other")
    with scene.client() as client:
        wait_failed(client)
        assert "it belongs to other" in client.refused("adopt", name="web", pid=pid)[1]
    master.kill()
    master = scene.start()  # without it
    with scene.client() as client:
        wait_failed(client)
        message = client.refused("adopt", name="web", pid=pid)[1]
        assert "other" in message
        assert is_alive(pid)


@needs_root
def test_owner_gives_away_no_more_than_own_processes(open_masters):
    scene = Scene(open_masters)
    own = scene.open(scene.masters.directory / "own", user=NOBODY, group=NOBODY, extra_groups=[])
    try:
        allowed = f"control-owner = {NOBODY}\ncontrol-allow = daemon adopt,status\n"
        scene.masters.start(allowed + scene.text())
        code = (
            "import sys; sys.path[:0] = {path!r}\n"
            "from lowsuper.client import Client, ClientError\n"
            "try:\n Client({socket!r}).adopt('web', {pid})\n"
            "except ClientError as error:\n print(error.code)\n"
        )

        def ask(pid: int, uid: int = NOBODY) -> str:
            place = os.path.dirname(socket_of(scene.masters))
            os.chmod(place, 0o755)
            os.chmod(socket_of(scene.masters), 0o666)
            import lowsuper

            package = [os.path.dirname(os.path.dirname(lowsuper.__file__))]
            text = code.format(path=package, socket=socket_of(scene.masters), pid=pid)
            done = subprocess.run(
                [*PYTHON.split()[:1], "-c", text], user=uid, group=uid, extra_groups=[],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            return done.stdout.strip()

        with scene.client() as client:
            wait_failed(client)
            assert ask(scene.pid) == "not-permitted"
            assert ask(own.pid, uid=1) == "not-permitted"
            assert client.daemon("web")["state"] == "failed"
            assert ask(own.pid) == ""
            assert client.daemon("web")["pid"] == own.pid
    finally:
        own.kill()
        own.wait()
        scene.close()
