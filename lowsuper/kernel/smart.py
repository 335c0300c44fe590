"""One life of a smart daemon: its kill domain, and the process in it that its pidfile names.

The life begins with a launch, which `life.Life` looks after, or with a process that was found
running, whose kill domain an earlier master has made: a leaf, or a process of ours that keeps the
domain. The named process need not be our child, and may become another one (`follow`).
"""

from __future__ import annotations

import os

from lowsuper.events import Emptied, Exited, Reaped
from lowsuper.identity import ProcessId
from lowsuper.kernel import process, spawn
from lowsuper.kernel.loop import HANGUP, READ, URGENT
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from lowsuper.events import DaemonEvent
    from lowsuper.kernel.cgroup import Leaf
    from lowsuper.kernel.life import Life
    from lowsuper.kernel.loop import Loop
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns, RunId

    class Domain(Protocol):
        """The kill domain of a life that was found; whoever made it told nobody how to end it."""

        rung: str

        def is_empty(self) -> bool:
            """Return whether no process is in it."""

        def signal(self, signal: int) -> None:
            """Send a signal to every process in it."""

        def kill(self) -> None:
            """SIGKILL every process in it."""

        def release(self) -> None:
            """Stop to watch it, and close what belongs to it."""


SIGKILL, SIGTERM, SIGQUIT = 9, 15, 3
NOBODY = ProcessId(0, 0)
REAP_PATIENCE: Ns = 2 * SECOND  # for a parent that is not us to reap...
START_PATIENCE: Ns = SECOND // 10  # ...and how long a next start may wait for that
KEEPER_PATIENCE: Ns = SECOND // 10  # for a keeper to end after the last of its domain


def find_patience(spec: DaemonSpec) -> Ns:
    """Return how long the news of the end of a daemon may wait for its parent to reap it.

    Where the exit status decides what the master ends with, long. A program that finds its own
    pidfile, and a zombie of that number, does not start (celery, PostgreSQL): an init that is
    worth its name reaps at once, so a moment. No daemon looks for what lowsuper writes.
    """
    if spec.control:
        return REAP_PATIENCE
    return 0 if spec.daemonize else START_PATIENCE


class LeafDomain:
    """The cgroups that earlier masters made for a daemon: one, as a rule."""

    __slots__ = ("_leaves", "_loop", "rung")

    def __init__(self, loop: Loop, leaves: list[Leaf], on_change: Callable[[], None]) -> None:
        """Take over the leaves; `on_change` is called when they may be empty."""
        self._loop, self._leaves, self.rung = loop, leaves, "cgroup"
        for leaf in leaves:
            leaf.forget_ooms()
            loop.watch(leaf.events_fd(), URGENT, on_change)

    def is_empty(self) -> bool:
        """Return whether no live process is in them."""
        return not any(leaf.is_populated() for leaf in self._leaves)

    def find_oom(self) -> str:
        """Return which memory was out when a process in them was killed for that, or ""."""
        return next(filter(None, (leaf.find_oom() for leaf in self._leaves)), "")

    def signal(self, signal: int) -> None:
        """Send a signal to every process in them."""
        for leaf in self._leaves:
            leaf.signal(signal)

    def kill(self) -> None:
        """SIGKILL every process in them."""
        for leaf in self._leaves:
            leaf.kill()

    def fence(self, until: Ns, pid: int) -> bool:
        """See `Life.fence`; False also if a process is in none of them, 0: there is none."""
        for leaf in self._leaves:
            if leaf.fencer is None or not leaf.fencer(leaf, until):
                return False
        return not pid or any(leaf.holds(pid) for leaf in self._leaves)

    def release(self) -> None:
        """Stop to watch them; an empty directory goes."""
        for leaf in self._leaves:
            self._loop.unwatch(leaf.events_fd())
            leaf.release()


class KeeperDomain:
    """What a process of ours keeps that an earlier master started: csrc/shim.c, csrc/nsinit.c."""

    __slots__ = ("_loop", "_pidfd", "rung")

    def __init__(self, loop: Loop, rung: str, pidfd: int, on_change: Callable[[], None]) -> None:
        """Take over the keeper's pidfd. It ends with the last process of its domain."""
        self._loop, self.rung, self._pidfd = loop, rung, pidfd

        def on_end() -> None:
            # Once is enough: somebody may have killed the keeper, and not the daemon.
            loop.unwatch(pidfd)
            on_change()

        loop.watch(pidfd, READ, on_end)

    def is_empty(self) -> bool:
        """Return whether the keeper has ended."""
        return process.has_ended(self._pidfd)

    def signal(self, signal: int) -> None:
        """Ask every process in it to end; a keeper without a master passes on SIGTERM only."""
        process.send_signal(self._pidfd, SIGKILL if signal == SIGKILL else SIGTERM)

    def kill(self) -> None:
        """SIGKILL every process in it."""
        # A namespace ends with its init; a shim must live on until it has ended the others.
        process.send_signal(self._pidfd, SIGKILL if self.rung == "pidns" else SIGQUIT)

    def release(self) -> None:
        """Stop to watch it; the keeper goes on."""
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)


class SmartLife:
    """Owns the launch or the found domain, and the pidfd of the named process.

    It posts ExecOk and SpawnFailed of a launch; Exited of the launched process until another one
    is named, and of that one from then on; Emptied; and Reaped.
    """

    __slots__ = (
        "_domain",
        "_ended",
        "_launch",
        "_loop",
        "_patience",
        "_pidfd",
        "_post",
        "_reaping",
        "_told",
        "identity",
        "name",
        "over",
        "reaped_pid",
        "run",
    )

    def __init__(
        self,
        loop: Loop,
        name: str,
        run: RunId,
        *,
        post: Callable[[DaemonEvent], None],
        patience: Ns,
    ) -> None:
        """Begin with nothing; `launched`, `adopt` and `follow` say what there is.

        Args:
            loop: to watch with.
            name: of the daemon.
            run: of the daemon.
            post: takes the events.
            patience: how long the news of its end may wait until its parent has reaped it.
        """
        self._loop, self.name, self.run, self._post, self._patience = (
            loop,
            name,
            run,
            post,
            patience,
        )
        self._launch: Life | None = None
        self._domain: Domain | None = None
        self.identity = NOBODY  # of the named process
        self._pidfd = -1  # of the same; -1: it is the launched one, which `_launch` watches
        self._ended = False  # the named process has ended...
        self._told = False  # ...and that was posted
        self._reaping = False  # ...and its parent is being waited for
        self.reaped_pid = 0  # of the process that `Reaped` is about
        self.over = False  # nothing of it is left

    @property
    def pids(self) -> tuple[int, ...]:
        """The pids of which the master may be told as of our children."""
        return (self.pid, *(self._launch.pids if self._launch is not None else ()))

    def owns(self, callback: Callable[[], None]) -> bool:
        """Return whether this is what the master calls for one of `pids`."""
        if callback == self.on_named_exit:
            return True
        return self._launch is not None and self._launch.owns(callback)

    # How it begins.

    def launched(self, launch: Life) -> None:
        """Take over the launch, whose `post` must be `on_launch`."""
        self._launch = launch

    def adopt(self, domain: Domain) -> None:
        """Take over a domain that was found; `on_domain` must be what it calls."""
        self._domain = domain

    def follow(self, identity: ProcessId, pidfd: int) -> None:
        """Take a process for the daemon from now on; `pidfd` becomes this life's."""
        if identity == self.identity and not self._ended:
            os.close(pidfd)
            return
        self._forget_named()
        self.identity = identity
        self._ended = self._told = self._reaping = self.over = False
        if self.launched_pid == identity.pid:
            os.close(pidfd)
            return
        self._pidfd = pidfd
        self._loop.watch(pidfd, READ, self.on_named_exit)

    @property
    def pid(self) -> int:
        """The pid of the named process; 0 if there is none yet."""
        return self.identity.pid

    @property
    def has_ended(self) -> bool:
        """Return whether the named process has ended."""
        return self._ended

    def is_watching(self, identity: ProcessId) -> bool:
        """Return whether this is the named process, and has not ended."""
        return not self._ended and identity == self.identity

    def let_survive(self) -> bool:
        """Tell the keeper of the launch to survive us; False: it is gone."""
        return self._launch is None or spawn.send_survive(self._launch.channel_fd)

    @property
    def launched_pid(self) -> int:
        """The pid of the launched program while it runs; 0 if there is none."""
        return self._launch.main_pid if self._launch is not None else 0

    @property
    def known_pid(self) -> int:
        """The pid of the named process, or until there is one of the launched; 0: neither."""
        if self.pid or self._launch is None:
            return self.pid
        return self._launch.known_pid

    @property
    def known_pidfd(self) -> int:
        """The pidfd of the same, which stays the life's; -1: there is none."""
        if self._pidfd >= 0 or self._launch is None:
            return self._pidfd
        return self._launch.known_pidfd

    @property
    def keeper_pid(self) -> int:
        """The pid of the process that keeps the domain of the launch; 0: there is none."""
        return 0 if self._launch is None else self._launch.keeper_pid

    @property
    def leaf(self) -> Leaf | None:
        """The leaf of the launch, which stays the launch's."""
        return None if self._launch is None else self._launch.leaf

    @property
    def rung(self) -> str:
        """The rung of the kill domain."""
        if self._launch is not None:
            return self._launch.rung
        return self._domain.rung if self._domain is not None else "process"

    # What happens to it.

    def on_launch(self, event: DaemonEvent) -> None:
        """Take an event of the launch."""
        match event:
            case Exited(left=left) if self._told:
                # The named process ended first; this is the launcher, or what it waited for.
                if not left:
                    self._tell_empty()
            case Exited() if self._pidfd >= 0:
                pass  # the launcher only; the daemon's own end is told by its pidfd
            case Exited(left=left):
                self._ended = self._told = True
                self.over = not left
                self._post(event)
            case Emptied():
                self._on_empty()
            case _:
                self._post(event)

    def _on_empty(self) -> None:
        if self._told:
            self._tell_empty()
        elif self._ended and not self._reaping:
            self._tell_end(process.exit_status(self._pidfd))
        # Else the end of the named process comes right after.

    def _tell_empty(self) -> None:
        if not self.over:
            self.over = True
            self._post(Emptied(self.run))

    def on_domain(self) -> None:
        """The found domain may be empty now."""
        if self._domain is None or self.over or not self._domain.is_empty():
            return
        if self._pidfd < 0:
            self._told = True
        self._on_empty()

    def on_named_exit(self) -> None:
        """The named process has ended, if its pidfd says so."""
        if self._pidfd < 0 or self._ended or not process.has_ended(self._pidfd):
            return
        self._ended = True
        self._loop.unwatch(self._pidfd)
        status = process.exit_status(self._pidfd)
        if self._is_keeper_busy():
            # It reaps the process first and ends itself right after if that was the last one.
            at = self._loop.now() + KEEPER_PATIENCE
            self._loop.set_timer(f"{self.name} keeper", at, self._on_keeper_time)
        elif status is None and self._patience and process.tells_status(self._pidfd):
            self._reaping = True
            ended = self.identity
            self._report(self._patience, lambda status: self._on_reaped(ended, status))
        else:
            self._tell_end(status)

    def _on_reaped(self, ended: ProcessId, status: int | None) -> None:
        if self._reaping and ended == self.identity:
            self._reaping = False
            self._tell_end(status)

    def _is_keeper_busy(self) -> bool:
        if self._launch is not None:
            return self._launch.channel_fd >= 0 and not self._launch.over
        return isinstance(self._domain, KeeperDomain) and not self._domain.is_empty()

    def _on_keeper_time(self) -> None:
        if not self._told:
            self._tell_end(process.exit_status(self._pidfd))

    def _tell_end(self, status: int | None) -> None:
        """Post the end of the named process."""
        if self._told:
            return
        self._told = True
        left = self._is_left()
        self.over = not left
        self._post(Exited(self.run, status, left, self._find_oom()))
        is_late = status is None and self._patience < REAP_PATIENCE
        if is_late and process.tells_status(self._pidfd):
            pid = self.pid
            self._report(REAP_PATIENCE, lambda status: self._tell_status(pid, status))

    def _tell_status(self, pid: int, status: int | None) -> None:
        if status is not None:
            self.reaped_pid = pid
            self._post(Reaped(self.run, status))

    def _report(self, patience: Ns, tell: Callable[[int | None], None]) -> None:
        """Wait for the exit status; the wait outlives this life."""
        key = f"{self.name}.{self.run}"
        wait_for_reaping(self._loop, os.dup(self._pidfd), key, patience, tell)

    def _find_oom(self) -> str:
        """Return which memory was out when processes of it were killed for that, or ""."""
        if self._launch is not None and self._launch.leaf is not None:
            return self._launch.leaf.find_oom()
        return self._domain.find_oom() if isinstance(self._domain, LeafDomain) else ""

    def _is_left(self) -> bool:
        """Return whether processes of the domain are there, the named one having ended."""
        if self._launch is not None:
            return self._launch.has_others()
        return self._domain is not None and not self._domain.is_empty()

    # What is done to it.

    def signal(self, signal: int, *, group: bool = True) -> None:
        """Signal the named process and, with `group`, its group; if it has ended, what it left."""
        if self._pidfd >= 0 and not self._ended:
            process.signal_stranger(self._pidfd, signal, group=group)
        elif self._launch is not None:
            self._launch.signal(signal, group=group)
        elif self._domain is not None and not self.over:
            self._domain.signal(signal)

    def kill(self) -> None:
        """SIGKILL all of it."""
        if self._launch is not None:
            self._launch.kill()
        if self._domain is not None and not self.over:
            self._domain.kill()
        if self._pidfd >= 0 and not self._ended:
            process.signal_stranger(self._pidfd, SIGKILL)

    def fence(self, until: Ns) -> bool:
        """Let all of it be SIGKILLed at `until`: see `life.Life.fence`.

        Returns:
            False also where no keeper of an earlier master can be told, and where the named process
            is in no domain.
        """
        if self.over:
            return True
        named = self.pid if self._pidfd >= 0 and not self._ended else 0
        if self._launch is not None:
            is_held = self._launch.fence(until) and (not named or self._is_inside(named))
        else:
            is_held = isinstance(self._domain, LeafDomain) and self._domain.fence(until, named)
        # One that has just ended is in no domain any more.
        return is_held or (bool(named) and process.has_ended(self._pidfd) and not self._is_left())

    def _is_inside(self, pid: int) -> bool:
        """Return whether a process is in the domain of the launch."""
        assert self._launch is not None
        if self._launch.over:
            return False
        if not self._launch.keeper_pid:
            return self._launch.leaf is not None and self._launch.leaf.holds(pid)
        from lowsuper.kernel import inspect

        return inspect.is_below(pid, self._launch.keeper_pid)

    def take_leaf(self) -> None:
        """Hand over nothing: the next run gets a fresh leaf."""

    def release(self) -> None:
        """Close everything; what lives of it lives on."""
        self._forget_named()
        self._reaping = False
        self._loop.cancel_timer(f"{self.name} keeper")
        if self._launch is not None:
            self._launch.release()
        if self._domain is not None:
            self._domain.release()

    def _forget_named(self) -> None:
        if self._pidfd >= 0:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def wait_for_reaping(
    loop: Loop, pidfd: int, key: str, patience: Ns, tell: Callable[[int | None], None]
) -> None:
    """Wait until the parent of a process that has ended reaps it, but not for long.

    A pidfd hangs up then, and PIDFD_GET_INFO tells the status (Linux 6.15).

    Args:
        loop: to wait with.
        pidfd: of the process; is closed at the end.
        key: of the timer.
        patience: the longest wait.
        tell: gets the raw wait status, or None.
    """
    timer = f"{key} reaped {pidfd}"

    def finish() -> None:
        loop.unwatch(pidfd)
        loop.cancel_timer(timer)
        status = process.exit_status(pidfd)
        os.close(pidfd)
        tell(status)

    # Its end is known, and level-triggered: only the hang-up is news.
    loop.watch(pidfd, HANGUP, finish)
    loop.set_timer(timer, loop.now() + patience, finish)
