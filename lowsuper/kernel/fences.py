"""Fences: deadlines of kill domains that the guard keeps to, whatever becomes of the master.

A fence belongs to a leaf. It is lifted when the leaf is given up empty; one of a daemon that lives
on when its master lets go of it stays, and so does the guard. A guard that is dead, or does not
answer, is replaced, and the next one gets all fences again before anything else is done; if there
is no next one, everything that is fenced is killed: nothing is ever unfenced.
"""

from __future__ import annotations

import os
from errno import ECONNRESET, ENOENT, ENOSPC, ETIMEDOUT
from time import monotonic_ns

from lowsuper.errors import KernelError
from lowsuper.kernel.guard import (
    MOST_DOMAINS,
    PATIENCE_MS,
    GuardAdded,
    GuardExpired,
    GuardFull,
    note_deadline,
)
from lowsuper.kernel.native import move_high
from lowsuper.kernel.spawn import Closed, wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.cgroup import Leaf
    from lowsuper.kernel.guard import Guard
    from lowsuper.units import Ns


PATIENCE: Ns = PATIENCE_MS * 1_000_000


class FullError(KernelError):
    """The guard has no room; another guard would not have any, either."""


class Fence:
    """What the guard is told of one domain. `kill_fd` is the fence's."""

    __slots__ = ("id", "kill_fd", "name", "noted", "survives", "until")

    def __init__(self, number: int, leaf: Leaf, *, survives: bool) -> None:
        """Open the switch of the domain.

        Args:
            number: for the guard.
            leaf: the domain.
            survives: it outlives the master, until its deadline.

        Raises:
            KernelError: there is none (Linux 5.14), or no descriptor left.
        """
        self.id, self.survives = number, survives
        self.name = leaf.path.rpartition("/")[2]
        self.until: Ns = 0
        self.noted = False
        try:
            fd = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=leaf.directory_fd)
        except OSError as error:
            raise KernelError("open", error.errno or 0, f"{leaf.path}/cgroup.kill") from None
        self.kill_fd = move_high(fd)

    def note(self, until: Ns) -> None:
        """Take a deadline; guards of earlier masters are told, if they may have the domain."""
        self.until = until
        self.noted = self.survives and note_deadline(self.kill_fd, until)

    def kill(self) -> None:
        """SIGKILL everything in the domain."""
        try:
            os.write(self.kill_fd, b"1")
        except OSError:
            return  # ENODEV: the cgroup was removed, so it was empty

    def close(self) -> None:
        """Close the switch; the guard has its own."""
        os.close(self.kill_fd)


class Fences:
    """The fences of one master."""

    __slots__ = ("_asked", "_by_leaf", "_find_guard", "_last", "_replace_guard", "_say")

    def __init__(
        self,
        find_guard: Callable[[], Guard],
        replace_guard: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """Begin with none.

        Args:
            find_guard: returns the guard, which is started if there is none.
            replace_guard: ends the guard, starts another, and calls `renew_all`; both raise
                KernelError when none can be started.
            say: tells the operator a line.
        """
        self._find_guard, self._replace_guard, self._say = find_guard, replace_guard, say
        self._by_leaf: dict[int, Fence] = {}
        self._last = 0
        self._asked: Ns = 0  # when the guard was asked what it has not answered yet

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._by_leaf)

    def set(self, leaf: Leaf, until: Ns, *, survives: bool) -> None:
        """Let everything in a leaf be killed at `until`, CLOCK_BOOTTIME; in the past: at once.

        Raises:
            KernelError: nothing holds it; one that was there may be forgotten.
        """
        leaf.limited = True
        fence = self._by_leaf.get(leaf.id)
        if fence is not None and fence.survives == survives:
            fence.note(until)
            self._try_twice(lambda: self._renew(fence))
            return
        self.lift(leaf)
        self._last += 1
        made = Fence(self._last, leaf, survives=survives)
        try:
            made.note(until)
            self._try_twice(lambda: self._add(self._find_guard(), made))
        except KernelError:
            made.close()
            raise
        self._by_leaf[leaf.id] = made

    def lift(self, leaf: Leaf) -> None:
        """Forget the fence of a leaf, if it has one."""
        fence = self._by_leaf.pop(leaf.id, None)
        if fence is None:
            return
        try:
            fence.note(0)
            self._find_guard().drop(fence.id)
        except KernelError as error:
            self._say(f"{fence.name}: {error}")  # the next guard is not told of it
        fence.close()

    def _try_twice(self, act: Callable[[], None]) -> None:
        try:
            act()
        except FullError:
            raise
        except KernelError as error:
            self._say(f"the guard does not do what it is told ({error}); starting another")
            self._replace_guard()
            act()

    def _renew(self, fence: Fence) -> None:
        """Tell the guard of another deadline; that it has heard is seen at the next one."""
        guard = self._find_guard()
        if self._asked and monotonic_ns() - self._asked > PATIENCE:
            self.hear(guard)
            if self._asked:
                raise KernelError("guard", ETIMEDOUT, fence.name)
        guard.renew(
            fence.id, survives=fence.survives, deadline=fence.until, noted=fence.noted, asks=True
        )
        self._asked = self._asked or monotonic_ns()

    def _add(self, guard: Guard, fence: Fence) -> None:
        """Tell the guard of a domain and wait until it has it.

        Raises:
            KernelError: it has not.
        """
        guard.add(
            fence.id,
            fence.kill_fd,
            survives=fence.survives,
            deadline=fence.until,
            noted=fence.noted,
            asks=True,
        )
        end = monotonic_ns() + PATIENCE
        while True:
            match guard.receive():
                case GuardAdded(id=number):
                    self._asked = 0
                    if number == fence.id:
                        return
                case GuardFull(id=number) if number == fence.id:
                    advice = f"the guard takes {MOST_DOMAINS} domains at most, or open files"
                    raise FullError("guard", ENOSPC, fence.name, advice)
                case GuardExpired(id=number):
                    self._expire(number)
                case Closed():
                    raise KernelError("guard", ECONNRESET, fence.name)
                case None:
                    left = (end - monotonic_ns()) // 1_000_000
                    if left <= 0 or not wait_readable(guard.channel_fd, left):
                        raise KernelError("guard", ETIMEDOUT, fence.name)
                case _:
                    pass  # it answers to a question that nobody waits for any more

    def hear(self, guard: Guard) -> bool:
        """Take what the guard says; False: it says no more."""
        while (message := guard.receive()) is not None:
            match message:
                case GuardAdded():
                    self._asked = 0
                case GuardExpired(id=number):
                    self._expire(number)
                case Closed():
                    return False
                case _:
                    pass
        return True

    def _expire(self, number: int) -> None:
        """The guard has killed a domain, and forgotten it."""
        for leaf_id, fence in self._by_leaf.items():
            if fence.id == number:
                del self._by_leaf[leaf_id]
                fence.close()
                self._say(f"{fence.name}: its deadline has passed; the guard killed it")
                return

    def renew_all(self, guard: Guard) -> None:
        """Tell another guard of all fences; what it does not take is killed."""
        self._asked = 0
        for leaf_id, fence in tuple(self._by_leaf.items()):
            try:
                self._add(guard, fence)
            except KernelError as error:
                # One that the guard has just told to be over is not there any more.
                if self._by_leaf.pop(leaf_id, None) is not None:
                    self._fall(fence, str(error))

    def fall(self, why: str) -> None:
        """There is no guard: kill everything that is fenced."""
        fences, self._by_leaf = self._by_leaf, {}
        for fence in fences.values():
            self._fall(fence, why)

    def _fall(self, fence: Fence, why: str) -> None:
        self._say(f"{fence.name}: nothing holds its deadline ({why}); killing it")
        fence.kill()
        fence.close()

    def close(self) -> None:
        """Close what is ours; the guard keeps to the deadlines of what is left."""
        for fence in self._by_leaf.values():
            fence.close()
        self._by_leaf.clear()


def explain_missing(name: str) -> KernelError:
    """Return the error of a daemon that nothing could hold a deadline of."""
    advice = "a daemon with ns-init = false needs cgroup v2 for a deadline, or ns-init = true"
    return KernelError("fence", ENOENT, name, advice)
