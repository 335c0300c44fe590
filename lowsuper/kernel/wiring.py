"""The links of a jail, made and removed from outside, by a process of its own for each.

The helper (`kernel.links`) works with pyroute2, whose import takes long and much memory: neither is
spent here. It gets the links by its command line, the jail's network namespace as descriptor 3, and
writes to descriptor 4 how it went, as lines of words that are parted by NUL bytes: `note TEXT`,
`failed STEP LINK ERRNO TEXT` or `done`.

The host's side of a link has an alias that tells whose it is, so that what a master that was killed
has left is known, and nothing else is ever removed.
"""

from __future__ import annotations

import os
import sys
from errno import ESRCH
from time import monotonic_ns
from zlib import crc32

from lowsuper.config.network import VETH, format_link
from lowsuper.errors import KernelError
from lowsuper.events import DaemonNotStarted, Exited, SpawnFailed
from lowsuper.kernel.life import Life
from lowsuper.kernel.network import has_link
from lowsuper.kernel.spawn import wait_readable
from lowsuper.plan import EXEC, FdSource, SpawnPlan
from lowsuper.report import format_note, format_status
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from lowsuper.events import DaemonEvent
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.spawn import Spawner
    from lowsuper.model import Link

    class Owner(Protocol):
        """Whose jail it is."""

        def say_line(self, line: str) -> None:
            """Tell the operator."""

        def put_over(self, life: Life) -> None:
            """Release a life after this turn."""


MODULE = "lowsuper.kernel.links"
OPTION = "namespace-net-link"
PREFIX = "lowsuper:"  # of the alias of a link that is ours
DEADLINE = Ns(15 * SECOND)
STUCK = Ns(5 * SECOND)  # after SIGKILL; by then only a system call that does not end holds it
TIMER = "(network)"  # no daemon can have this name
NETNS_FD, RESULT_FD = 3, 4
_LARGEST = 1 << 16


def name_owner(instance: str) -> str:
    """Return the alias of the links of this process: instance, pid, start time, pid namespace."""
    with open("/proc/self/stat", "rb") as file:
        start = file.read().rpartition(b")")[2].split()[19].decode()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{PREFIX}{instance}:{os.getpid()}.{start}.{namespace}"


def complete(link: Link, instance: str) -> Link:
    """Return a link with the names and the Ethernet address that it has unless others are given.

    They are the same at every start, and no other instance's.
    """
    key = f"{instance}:{link.name}".encode("utf-8", "surrogateescape")
    digest = crc32(key)
    if link.mac is None:
        number = digest << 8 | crc32(key[::-1]) & 0xFF
        mac = ":".join(f"{byte:02x}" for byte in (2, *number.to_bytes(5, "big")))
        link = link.replace(mac=mac)
    if link.kind == VETH and link.host_name is None:
        plain = "".join(char for char in instance if char.isascii() and char.isalnum())
        link = link.replace(host_name=f"{plain[:6] or 'jail'}-{digest:08x}")
    return link


def open_netns(pid: int, pidfd: int) -> int:
    """Return the network namespace of a process, which the caller closes.

    Raises:
        KernelError: it has ended, or has the one that we have.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", error.errno or 0, f"/proc/{pid}/ns/net") from None
    # Race: it ended before, and the number was another's; a zombie has no namespaces any more.
    if wait_readable(pidfd, 0):
        os.close(fd)
        raise KernelError("open", ESRCH, f"/proc/{pid}/ns/net")
    own, its = os.stat("/proc/self/ns/net"), os.fstat(fd)
    if (own.st_dev, own.st_ino) == (its.st_dev, its.st_ino):
        os.close(fd)
        raise AssertionError("a jail with links has a network of its own")
    return fd


class Wiring:
    """Makes the links of one jail after another, and removes them."""

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        children: dict[int, Callable[[], None]],
        owner: Owner,
        *,
        instance: str,
        null_fd: int,
    ) -> None:
        """Start nothing yet.

        Args:
            loop: to watch the helper with.
            spawner: to start it with.
            children: whom to call when a child of this process has ended.
            owner: is told what happens.
            instance: what tells this instance from others, the same at every start.
            null_fd: of /dev/null.
        """
        self._loop, self._spawner, self._children = loop, spawner, children
        self._owner, self._instance, self._null_fd = owner, instance, null_fd
        self._links: tuple[Link, ...] = ()
        self._life: Life | None = None
        self._reader = -1
        self._problem = ""  # known before the helper has ended
        self._done: Callable[[str], None] = _nobody

    def make(
        self, links: Sequence[Link], pid: int, pidfd: int, done: Callable[[str], None]
    ) -> None:
        """Make links in the network namespace of a process, its own.

        Args:
            links: to make; those of the jail before are removed.
            pid: of the process.
            pidfd: of the same; stays the caller's.
            done: told what is wrong, or "", perhaps at once. Then nothing is left of them.
        """
        self._links = tuple(complete(link, self._instance) for link in links)
        try:
            netns_fd = open_netns(pid, pidfd)
        except KernelError as error:
            done(str(error))
            return
        try:
            self._start("make", self._links, netns_fd, done)
        finally:
            os.close(netns_fd)

    def remove(self, done: Callable[[str], None]) -> None:
        """Remove what is left on the host of the links that were made, the jail being dead.

        The kernel does it, too, but some time later, and a new jail would find them still there.

        Args:
            done: told what is wrong, or "", perhaps at once.
        """
        links, self._links = self._links, ()
        left = [link for link in links if link.host_name is not None and has_link(link.host_name)]
        if left:
            self._start("remove", left, self._null_fd, done)
        else:
            done("")

    def kill(self) -> None:
        """SIGKILL the helper, if it runs; its end is told even if that is of no use."""
        self._kill("was killed")

    def _kill(self, why: str) -> None:
        if self._life is None:
            return
        self._problem = self._problem or f"the helper {why}"
        self._life.kill()
        self._loop.set_timer(TIMER, Ns(monotonic_ns() + STUCK), self._give_up)

    def _give_up(self) -> None:
        """Nothing has come of SIGKILL."""
        self._problem += f", and is still there {STUCK // SECOND} s later"
        if self._life is not None:
            self._children[self._life.pid] = lambda: None  # reaped, and nothing more
        self._end("")

    def _start(
        self, deed: str, links: Sequence[Link], netns_fd: int, done: Callable[[str], None]
    ) -> None:
        assert self._life is None, "one after the other"
        words = [sys.executable, "-I", "-m", MODULE, deed, name_owner(self._instance)]
        words += map(format_link, links)
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        plan = SpawnPlan(
            name=OPTION,
            role=EXEC,
            programs=(os.fsencode(sys.executable),),
            argv=tuple(map(os.fsencode, words)),
            envp=(),
            fds=(
                FdSource(0, self._null_fd),
                FdSource(1, 2),
                FdSource(2, 2),
                FdSource(NETNS_FD, netns_fd),
                FdSource(RESULT_FD, writer),
            ),
        )
        self._done, self._problem = done, ""
        try:
            child = self._spawner.spawn(plan)
        except OSError as error:
            os.close(self._reader)
            done(str(error))
            return
        finally:
            os.close(writer)
        life = Life(
            self._loop, 1, plan, child=child, leaf=None, rung="", post=lambda e: self._post(life, e)
        )
        self._life = life
        self._children[child.pid] = life.on_exit
        deadline = Ns(monotonic_ns() + DEADLINE)
        why = f"did not come to an end within {DEADLINE // SECOND} s"
        self._loop.set_timer(TIMER, deadline, lambda: self._kill(why))

    def _post(self, life: Life, event: DaemonEvent) -> None:
        if self._life is not life:
            return  # it was given up
        match event:
            case SpawnFailed():
                note = DaemonNotStarted(OPTION, event.step, event.errno, event.subject, None)
                self._problem = self._problem or format_note(note)
            case Exited(status=status):
                self._end(self._read_result(status or 0))
            case _:
                pass  # it runs

    def _read_result(self, status: int) -> str:
        """Return what the helper says is wrong, or ""; tell its notes."""
        try:
            text = os.read(self._reader, _LARGEST).decode("utf-8", "replace")
        except BlockingIOError:
            text = ""  # what it has started holds the pipe, which nothing does
        for line in text.split("\n"):
            match line.split("\0"):
                case ["note", note]:
                    self._owner.say_line(note)
                case ["failed", step, link, errno, words]:
                    reason = words or os.strerror(int(errno))
                    return f"{OPTION} {link}: {step}: {reason}"
                case ["done"]:
                    return ""
        return f"{OPTION}: the helper {format_status(status)}"

    def _end(self, problem: str) -> None:
        self._loop.cancel_timer(TIMER)
        os.close(self._reader)
        life, self._life = self._life, None
        if life is not None:
            self._owner.put_over(life)
        done, self._done = self._done, _nobody
        done(f"{OPTION}: {self._problem}" if self._problem else problem)


def _nobody(_problem: str) -> None:
    raise AssertionError("nothing runs")
