"""A daemon below a role, in a test: its pipe, its messages, and nothing left of it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from spawning import DEADLINE_MS, NULL, Run, has_happened, make_plan, read_exactly, wait_for

from lowsuper.kernel import process, spawn
from lowsuper.kernel.spawn import ExecOk, Started
from lowsuper.plan import NSINIT, FdSource

SIGTERM, SIGKILL, SIGQUIT = int(signal.SIGTERM), int(signal.SIGKILL), int(signal.SIGQUIT)

ANSWERING = "trap 'printf u >&3' USR1; sleep 1000 & printf x >&3; while :; do wait; done"
"""A daemon that answers SIGUSR1, and has a child."""

DEEP = """
(setsid sleep 1000 &)
setsid sh -c '(setsid sleep 1000 &); printf x >&3; exec sleep 1000' &
printf x >&3
"""
"""What a daemon starts to be hard to find; each keeps the pipe."""


class RoleRun(Run):
    """A daemon below a role: a shell script that has a pipe as its descriptor 3."""

    def __init__(
        self, spawner: spawn.Spawner, role: str, script: str, *, fence: int = 0, **fields
    ) -> None:
        self.pipe, writer = os.pipe()
        plan = make_plan(
            "/bin/sh",
            "-c",
            script,
            role=role,
            new_pid_ns=role == NSINIT,
            fds=(NULL, FdSource(1, 2), FdSource(2, 2), FdSource(3, writer)),
        )
        try:
            super().__init__(spawner, plan.replace(**fields), fence=fence)
        finally:
            os.close(writer)
        self.main_pidfd = -1
        self._role = role

    def __exit__(self, *details) -> None:
        if self.status is None:
            # Before SIGKILL, which what is below a shim would outlive.
            if self.child.channel_fd >= 0:
                spawn.send_kill(self.child.channel_fd)
            else:
                process.send_signal(self.child.pidfd, SIGKILL if self._role == NSINIT else SIGQUIT)
            wait_for(self.child.pidfd)
        super().__exit__(*details)
        os.close(self.pipe)
        if self.main_pidfd >= 0:
            os.close(self.main_pidfd)

    def start(self) -> int:
        """Wait until the daemon runs; return its pid."""
        assert self.outcome() == ExecOk()
        started = self.receive()
        assert isinstance(started, Started)
        self.main_pidfd = started.pidfd
        return started.pid

    def orphan(self) -> None:
        """Let it survive, and leave it."""
        assert spawn.send_survive(self.child.channel_fd)
        os.close(self.child.channel_fd)
        self.child.channel_fd = -1

    def expect_answer(self) -> None:
        """Wait until the role has come to the end of its channel and the daemon has answered."""
        assert spawn.send_signal(self.child.channel_fd, int(signal.SIGUSR1))
        self.expect(b"u")
        self.expect_rest()

    def expect_rest(self) -> None:
        """Wait until the role has taken all signals and waits for what comes.

        It reads its channel while it takes one, too: an answer may come from the midst of that,
        and what is done to the channel then counts for that signal.
        """
        end = time.monotonic() + DEADLINE_MS / 1000
        while not self.rests():
            assert time.monotonic() < end, "it does not come to rest"
            assert not has_happened(self.child.pidfd, timeout_ms=1), "it has ended"

    def rests(self) -> bool:
        text = Path(f"/proc/{self.child.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in text.splitlines())
        # In this order: a signal that comes makes it run.
        pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
        return (
            not pending & 1 << (SIGTERM - 1)
            and not pending & 1 << (SIGQUIT - 1)
            and (fields["State"].startswith("S"))
        )

    def expect(self, text: bytes) -> None:
        """Wait for what the script writes."""
        assert read_exactly(self.pipe, len(text)) == text
