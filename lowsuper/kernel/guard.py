"""The guard: a process that cleans up after a master that was killed, and keeps to deadlines.

The master starts it before the first daemon on the cgroup rung, and talks to it over a channel.
"""

from __future__ import annotations

import os
from errno import EAGAIN, ECONNRESET

from lowsuper.errors import KernelError
from lowsuper.kernel.native import ffi, lib
from lowsuper.kernel.spawn import Closed, pack, wait_readable
from lowsuper.plan import EXEC, FdSource, SpawnPlan
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.kernel.spawn import Child, Spawner
    from lowsuper.units import Ns

_SIZE = ffi.sizeof("struct lowsuper_guard_msg")
_passed_fd = ffi.new("int32_t *")
_CLOSED = Closed()
MOST_DOMAINS = lib.LOWSUPER_GUARD_DOMAINS_MAX
PATIENCE_MS = 1000  # with a guard that is slow to read what it is told, or to answer
_ADOPTED_UNTIL = "trusted.lowsuper.until"  # LOWSUPER_GUARD_XATTR


class GuardReady(Record):
    """The guard watches the master."""


class GuardFull(Record):
    """The guard has no room for this domain, which is not guarded."""

    id: int


class GuardAdded(Record):
    """The guard has this domain now, with what it was added with."""

    id: int


class GuardExpired(Record):
    """The deadline of a domain has passed; the guard killed it and has forgotten it."""

    id: int


class Guard:
    """The process that kills what must not outlive the master, and removes its cgroups.

    When the master dies it kills all of dumb/ and the domains that were added without `survives`,
    removes the empty cgroups, and ends. A domain with a deadline is killed when that passes, even
    while the master lives; one that survives the master keeps its deadline and the guard with it.
    """

    __slots__ = ("_message", "channel_fd", "pid", "pidfd")

    def __init__(self, child: Child) -> None:
        """Take over the descriptors of the guard's process."""
        self.pid, self.pidfd, self.channel_fd = child.pid, child.pidfd, child.channel_fd
        self._message = ffi.new("struct lowsuper_guard_msg *")

    def ready(self, timeout_ms: int = 5000) -> bool:
        """Wait until it watches the master; start nothing that needs it before.

        Returns:
            False when it has not said so in time or has died, which its pidfd tells.
        """
        return wait_readable(self.channel_fd, timeout_ms) and isinstance(self.receive(), GuardReady)

    def receive(self) -> GuardReady | GuardFull | GuardAdded | GuardExpired | Closed | None:
        """Return what it says; None: nothing now."""
        message = self._message
        size = lib.lowsuper_receive(self.channel_fd, message, _SIZE, _passed_fd)
        if size == -EAGAIN:
            return None
        if size in (0, -ECONNRESET):
            return _CLOSED
        if size < 0:
            raise KernelError("recvmsg", -size, "guard")
        match message.op:
            case lib.LOWSUPER_GUARD_READY:
                return GuardReady()
            case lib.LOWSUPER_GUARD_FULL:
                return GuardFull(message.id)
            case lib.LOWSUPER_GUARD_GUARDED:
                return GuardAdded(message.id)
            case lib.LOWSUPER_GUARD_EXPIRED:
                return GuardExpired(message.id)
        raise AssertionError(f"the guard said {message.op}")

    def add(
        self,
        domain: int,
        kill_fd: int,
        *,
        survives: bool = False,
        deadline: Ns = 0,
        noted: bool = False,
        asks: bool = False,
    ) -> None:
        """Guard a domain besides what is in dumb/.

        Args:
            domain: a number of the caller's choice; one in use is replaced.
            kill_fd: its cgroup.kill, open for writing; stays the caller's.
            survives: it is not killed when the master dies.
            deadline: CLOCK_BOOTTIME at which it is killed unless renewed; 0: never.
            noted: `note_deadline` has told the same, and may tell more when the master is dead.
            asks: GuardAdded is wanted; GuardFull comes anyway.

        Raises:
            KernelError: the guard is dead, or does not read what it is told.
        """
        flags = _flags(survives, noted, asks)
        self._send(lib.LOWSUPER_GUARD_ADD, domain, flags, deadline, kill_fd)

    def renew(
        self,
        domain: int,
        *,
        survives: bool = False,
        deadline: Ns = 0,
        noted: bool = False,
        asks: bool = False,
    ) -> None:
        """Give a domain that was added other properties: see `add`."""
        self._send(lib.LOWSUPER_GUARD_RENEW, domain, _flags(survives, noted, asks), deadline)

    def drop(self, domain: int) -> None:
        """Forget a domain; it is neither killed nor an error if there is none."""
        self._send(lib.LOWSUPER_GUARD_DROP, domain)

    def quit(self) -> None:
        """Let it end at once without killing anything."""
        self._send(lib.LOWSUPER_GUARD_QUIT, 0)

    def close(self) -> None:
        """Close its descriptors; it goes on to watch the master."""
        os.close(self.pidfd)
        os.close(self.channel_fd)

    def _send(self, op: int, domain: int, flags: int = 0, deadline: Ns = 0, fd: int = -1) -> None:
        message = self._message
        message.op, message.id, message.deadline_ns = op, domain, deadline
        message.flags = flags
        result = lib.lowsuper_send(self.channel_fd, message, _SIZE, fd)
        if result == -EAGAIN and wait_writable(self.channel_fd, PATIENCE_MS):
            # So many at once that it has not come to read them.
            result = lib.lowsuper_send(self.channel_fd, message, _SIZE, fd)
        if result:
            raise KernelError("sendmsg", -result, "guard")


def _flags(survives: bool, noted: bool, asks: bool) -> int:
    return (
        (lib.LOWSUPER_GUARD_SURVIVES if survives else 0)
        | (lib.LOWSUPER_GUARD_NOTED if noted else 0)
        | (lib.LOWSUPER_GUARD_ASKS if asks else 0)
    )


def note_deadline(kill_fd: int, deadline: Ns) -> bool:
    """Tell the guards of earlier masters, who keep to a domain's deadline still, of another one.

    Call it before the own guard is told. See xattr(7).

    Args:
        kill_fd: cgroup.kill of a domain that outlives masters, with any access but O_PATH.
        deadline: as of `Guard.add`.

    Returns:
        False where it cannot be told (EPERM: we are not root): they kill the domain when they were
        to, which is the safe side.
    """
    try:
        os.setxattr(kill_fd, _ADOPTED_UNTIL, b"%d" % max(0, deadline))
    except OSError:
        return False
    return True


def wait_writable(fd: int, timeout_ms: int) -> bool:
    """Wait until a message can be sent."""
    import select  # the loop has imported it already

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_ms))


def start_guard(
    spawner: Spawner, instance_fd: int, parent_fd: int, name: str, *, leaf_fd: int = -1
) -> Guard:
    """Start the process that cleans up after this one; see `Guard`.

    Args:
        spawner: of the master that it guards.
        instance_fd: directory of the instance's cgroup, which has `dumb` and `smart`; may be
            O_PATH; stays the caller's, as the others do.
        parent_fd: directory above, for the removal of the instance's.
        name: of the instance's directory in it.
        leaf_fd: directory of the cgroup to start it in, or -1: ours.

    Raises:
        KernelError: dumb/cgroup.kill cannot be opened (Linux 5.14), or the guard not started.
    """
    try:
        kill_fd = os.open("dumb/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=instance_fd)
    except OSError as error:
        raise KernelError("open", error.errno or 0, f"{name}/dumb/cgroup.kill") from None
    plan = SpawnPlan(
        name="guard",
        role=EXEC,
        programs=(os.fsencode(name),),
        argv=(),
        envp=(),
        fds=(FdSource(0, instance_fd), FdSource(0, kill_fd), FdSource(0, parent_fd)),
    )
    try:
        child = spawner.start_role(lib.LOWSUPER_ROLE_GUARD, pack(plan), name, leaf_fd=leaf_fd)
    finally:
        os.close(kill_fd)
    os.close(child.error_fd)
    return Guard(child)
