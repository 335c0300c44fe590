"""Hooks that not even SIGKILL ends."""

from __future__ import annotations

import os
import signal
from time import monotonic_ns

import pytest
from masters import DEADLINE, wait_gone

from lowsuper.kernel import hooks
from lowsuper.kernel.hooks import Hooks
from lowsuper.kernel.loop import Loop
from lowsuper.kernel.spawn import Spawner
from lowsuper.model import Command, Exec, Hook, MakeDirectory, Origin, Write
from lowsuper.plan import Environment
from lowsuper.units import SECOND


class Owner:
    """Whoever is told what happens."""

    def __init__(self):
        self.ends, self.lines, self.over = [], [], []
        self.say = self.say_line = self.lines.append
        self.hook_ended, self.put_over = self.ends.append, self.over.append


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def spawner():
    spawner = Spawner()
    yield spawner
    spawner.close()


def run_until(loop, is_over):
    """Run the loop until something is so."""
    loop.set_timer("deadline", monotonic_ns() + int(DEADLINE * SECOND), pytest.fail)
    while not is_over():
        loop.run_turn(lambda: None)
    loop.cancel_timer("deadline")


def hook_of(deed):
    return Hook("asap", deed, Origin("f", 1, "hook-asap", "it"))


def test_command_that_cannot_be_killed_is_given_up(loop, spawner, monkeypatch):
    """A shim that is stopped stands for one whose process is in a call that does not end."""
    monkeypatch.setattr(hooks, "STUCK", SECOND // 20)
    owner, children = Owner(), {}
    runner = Hooks(loop, spawner, children, owner, fds=(), limits=())
    runner.run(hook_of(Exec(Command("sleep", ("/bin/sleep", "999")))), Environment({}))
    ((pid, _),) = children.items()
    os.kill(pid, signal.SIGSTOP)
    runner.kill()
    run_until(loop, lambda: owner.ends)
    assert [(end.status, end.problem) for end in owner.ends] == [(256, "was given up")]
    assert "hook-asap: it: still there" in owner.lines[-1]
    (life,) = owner.over
    os.kill(pid, signal.SIGCONT)  # now it obeys
    wait_gone(pid)
    os.waitpid(pid, 0)
    life.release()
    assert len(owner.ends) == 1


def test_deed_that_cannot_be_killed_is_given_up(loop, spawner, monkeypatch, tmp_path):
    monkeypatch.setattr(hooks, "STUCK", SECOND // 20)
    monkeypatch.setattr("lowsuper.kernel.process.send_signal", lambda *_: True)
    os.mkfifo(tmp_path / "fifo")
    owner, children = Owner(), {}
    runner = Hooks(loop, spawner, children, owner, fds=(), limits=())
    runner.run(hook_of(Write(str(tmp_path / "fifo"), "x")), Environment({}))
    runner.kill()
    run_until(loop, lambda: owner.ends)
    assert [(end.status, end.problem) for end in owner.ends] == [(256, "was given up")]
    ((pid, on_exit),) = children.items()
    assert (tmp_path / "fifo").read_text() == "x"  # now it can end
    os.waitpid(pid, 0)
    on_exit()
    assert len(owner.ends) == 1


def test_deed_whose_end_is_told_twice_ends_once(loop, spawner, tmp_path):
    owner, children = Owner(), {}
    runner = Hooks(loop, spawner, children, owner, fds=(), limits=())
    runner.run(hook_of(MakeDirectory(str(tmp_path / "d"))), Environment({}))
    run_until(loop, lambda: owner.ends)
    ((pid, on_exit),) = children.items()
    on_exit()
    os.waitpid(pid, 0)
    assert [(end.status, end.problem) for end in owner.ends] == [(0, "")]
