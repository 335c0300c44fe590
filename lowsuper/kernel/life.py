"""One life of one daemon: from clone until the last of its processes is gone.

It watches the descriptors that tell about it and posts what happens; on the cgroup rung the
daemon is our child and its leaf tells when the rest is gone, on the other rungs our child is the
role between (the namespace's init, or the shim), which tells over its channel and lives as long
as anything below it. Descriptors are closed by `release`, after the turn of the loop in which the
life ended, so that the next start waits for no clean-up.
"""

from __future__ import annotations

import os

from lowsuper.events import Emptied, ExecOk, Exited, SpawnFailed
from lowsuper.kernel import process, spawn
from lowsuper.kernel.loop import HANGUP, READ, URGENT
from lowsuper.plan import describe_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.events import DaemonEvent
    from lowsuper.kernel.cgroup import Leaf
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.spawn import Child
    from lowsuper.plan import SpawnPlan
    from lowsuper.units import Ns, RunId

SIGKILL = 9


class Life:
    """Owns the child's descriptors and the leaf, if there is one."""

    __slots__ = (
        "_child",
        "_child_gone",
        "_error_fd",
        "_failed",
        "_killed",
        "_leaf",
        "_loop",
        "_main_gone",
        "_main_pid",
        "_main_pidfd",
        "_main_status",
        "_plan",
        "_post",
        "_ran",
        "_rung",
        "name",
        "over",
        "run",
    )

    def __init__(
        self,
        loop: Loop,
        run: RunId,
        plan: SpawnPlan,
        *,
        child: Child,
        leaf: Leaf | None,
        rung: str,
        post: Callable[[DaemonEvent], None],
    ) -> None:
        """Take over the child and the leaf, and begin to watch."""
        self._loop, self.run, self._plan, self._child = loop, run, plan, child
        self.name = plan.name
        self._leaf, self._rung, self._post = leaf, rung, post
        self._error_fd = child.error_fd
        self._child_gone = self._main_gone = self.over = False
        self._killed = self._ran = self._failed = False
        self._main_status: int | None = None
        self._main_pid, self._main_pidfd = 0, -1
        loop.watch(child.error_fd, HANGUP, self.on_outcome)
        loop.watch(child.pidfd, READ, self.on_exit)
        if child.channel_fd >= 0:
            loop.watch(child.channel_fd, READ, self.on_channel)
        else:
            self._main_pid = child.pid

    def on_outcome(self) -> None:
        """The error pipe has hung up: the program runs, or a step failed."""
        if self._error_fd < 0:
            return
        fd, self._error_fd = self._error_fd, -1
        self._loop.unwatch(fd)
        outcome = spawn.read_outcome(fd)
        os.close(fd)
        match outcome:
            case spawn.ExecOk():
                self._ran = True
                self._tell_started()
            case spawn.StepFailed(step=step, errno=errno, arg=arg):
                self._failed = True
                subject = describe_step(self._plan, step, arg)
                self._post(SpawnFailed(self.run, step, errno, subject, cloned=True))
            case spawn.DiedBefore():
                self._failed = True
                self._post(SpawnFailed(self.run, "", 0, "", cloned=True))

    def _tell_started(self) -> None:
        """Say that the program runs, once both that and its pid are known."""
        if self._ran and self._main_pid:
            uid = os.geteuid() if self._plan.uid is None else self._plan.uid
            gid = os.getegid() if self._plan.gid is None else self._plan.gid
            self._post(ExecOk(self.run, self._main_pid, uid, gid, self._rung))

    def on_channel(self) -> None:
        """The role has something to say."""
        while (message := spawn.receive(self._child.channel_fd)) is not None:
            match message:
                case spawn.Started(pid=pid, pidfd=pidfd):
                    # One that has ended meanwhile has no number any more; the role has.
                    self._main_pid, self._main_pidfd = pid if pid > 0 else self._child.pid, pidfd
                    self._tell_started()
                case spawn.MainExited(status=status, left=left):
                    self._main_status = status
                    if left:
                        self._end_main(status, left=True)
                    # Else the role itself ends now, and its end is the end of the last.
                case spawn.Closed():
                    self._loop.unwatch(self._child.channel_fd)
                    return

    def _end_main(self, status: int, left: bool) -> None:
        if self._error_fd >= 0:
            self.on_outcome()
        self._main_gone = True
        oom = "" if self._leaf is None else self._leaf.find_oom()
        self._post(Exited(self.run, status, left, oom))

    def on_exit(self) -> None:
        """Our child has ended; it stays a zombie until the loop comes to its SIGCHLD."""
        status = None if self._child_gone else process.peek_status(self._child.pidfd)
        if status is None:
            return
        self._child_gone = True
        # It would be reported at every turn of the loop for as long as the rest of it lives.
        self._loop.unwatch(self._child.pidfd)
        if self._child.channel_fd >= 0:
            self.on_channel()
            self._loop.unwatch(self._child.channel_fd)
            self.over = True
            if self._main_gone:
                self._post(Emptied(self.run))
            else:
                main = self._main_status
                self._end_main(status if main is None else main, left=False)
            return
        left = self._leaf is not None and self._leaf.is_populated()
        self.over = not left
        if left and self._leaf is not None:
            self._loop.watch(self._leaf.events_fd(), URGENT, self.on_leaf)
        self._end_main(status, left)

    def on_leaf(self) -> None:
        """The leaf may be empty now."""
        if self._leaf is not None and not self.over and not self._leaf.is_populated():
            self._loop.unwatch(self._leaf.events_fd())
            self.over = True
            self._post(Emptied(self.run))

    @property
    def pid(self) -> int:
        """The pid of our child."""
        return self._child.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The pids of which the master may be told as of our children."""
        return (self._child.pid,)

    def owns(self, callback: Callable[[], None]) -> bool:
        """Return whether this is what the master calls for one of `pids`."""
        return callback == self.on_exit

    @property
    def main_pid(self) -> int:
        """The pid of the daemon's own process; 0: it has ended, or is not known yet."""
        return 0 if self._main_gone else self._main_pid

    @property
    def known_pid(self) -> int:
        """The pid of the daemon's own process, also when it has ended; 0: it is not known yet."""
        return self._main_pid

    @property
    def known_pidfd(self) -> int:
        """The pidfd of the same, which stays the life's; -1: there is none."""
        return self._main_pidfd if self._child.channel_fd >= 0 else self._child.pidfd

    @property
    def keeper_pid(self) -> int:
        """The pid of the role between; 0: there is none."""
        return self._child.pid if self._child.channel_fd >= 0 else 0

    @property
    def rung(self) -> str:
        """The rung of the kill domain."""
        return self._rung

    @property
    def channel_fd(self) -> int:
        """The channel to the role between; -1 if there is none. It stays the life's."""
        return self._child.channel_fd

    @property
    def leaf(self) -> Leaf | None:
        """The leaf on the cgroup rung, which stays the life's."""
        return self._leaf

    def has_others(self) -> bool:
        """Return whether processes are in the domain, when its own or a named one has ended."""
        if self.over:
            return False
        if self._child.channel_fd >= 0 or not self._child_gone:
            return True
        return self._leaf is not None and self._leaf.is_populated()

    def signal(self, signal: int, *, group: bool = True) -> None:
        """Signal the daemon's process and, with `group`, its group; or what is left of it."""
        if self.over:
            return
        if not group and self._main_pidfd >= 0 and not self._main_gone:
            process.signal_stranger(self._main_pidfd, signal, group=False)
        elif self._child.channel_fd >= 0:
            send = spawn.send_signal_all if self._main_gone else spawn.send_signal
            send(self._child.channel_fd, signal)
        elif not self._main_gone:
            process.send_signal(self._child.pidfd, signal, group=group)
        elif self._leaf is not None:
            self._leaf.signal(signal)

    def kill(self) -> None:
        """SIGKILL all of it."""
        if self.over:
            return
        if self._rung == "shim":
            # The shim itself must live on: what it looks after would be lost without it.
            spawn.send_kill(self._child.channel_fd)
            return
        if self._leaf is not None:
            self._killed = True
            self._leaf.kill()
        if not self._main_gone or self._child.channel_fd >= 0:
            # Also where the helper has not entered its leaf yet; a namespace ends with its init.
            process.send_signal(self._child.pidfd, SIGKILL, group=True)

    def fence(self, until: Ns) -> bool:
        """Let all of it be SIGKILLed at `until`, whatever becomes of us, unless told again.

        Args:
            until: CLOCK_BOOTTIME, which counts a suspend; in the past: at once; 0: not any more.

        Returns:
            False if there is nothing that can hold it to that, and the caller is to end it.
        """
        if self.over:
            return True
        if self._child.channel_fd >= 0:
            return spawn.send_fence(self._child.channel_fd, until)
        leaf = self._leaf
        if leaf is None or leaf.fencer is None or not leaf.fencer(leaf, until):
            return False
        if self._main_gone or not self._ran or leaf.holds(self._main_pid):
            return True
        return process.has_ended(self._child.pidfd)

    def take_leaf(self) -> Leaf | None:
        """Hand the empty leaf over to the next run, which saves it the making of one.

        None if there is none, or if limits were set in it, or if it was ever killed: Linux 6.14
        and later kill at birth what is cloned into a leaf that has been killed more often than the
        cgroup of its parent.
        """
        if self._leaf is None or not self.over or self._killed or self._leaf.limited:
            return None
        leaf, self._leaf = self._leaf, None
        leaf.forget_ooms()
        return leaf

    def release(self) -> None:
        """Close everything; the life must be over, or is given up."""
        for fd in (self._error_fd, self._child.pidfd, self._child.channel_fd, self._main_pidfd):
            if fd >= 0:
                self._loop.unwatch(fd)
                os.close(fd)
        if self._leaf is not None:
            if not self.over and self._main_gone:
                self._loop.unwatch(self._leaf.events_fd())
            self._leaf.release()
