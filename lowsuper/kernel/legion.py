"""The master's side of the legions: its agent, the leases, the fences, the hooks.

The agent (`lowsuper.legion.agent`) is a process without privileges that hears the network and says
until when this node is the lord of a legion. Each lease is passed on to those who kill a legion's
daemons when it ends, whatever has become of master and agent: the guard, or the daemon's keeper.
So that it does not come to that, the daemons are stopped as long before the end as they may take.

A lease is in CLOCK_BOOTTIME, which counts a suspend; the loop's timers are not, and need not be.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import sys
from errno import EAGAIN, EPIPE
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns
from zlib import crc32

from lowsuper.errors import KernelError, PlanError
from lowsuper.events import (
    DaemonNotStarted,
    Exited,
    HookEnded,
    LegionSays,
    LordChanged,
    SpawnFailed,
)
from lowsuper.kernel.facts import resolve_identity
from lowsuper.kernel.hooks import Hooks
from lowsuper.kernel.life import Life
from lowsuper.kernel.loop import READ
from lowsuper.legion import words
from lowsuper.legion.orders import CHANNEL_FD, ORDERS_FD, encode_orders
from lowsuper.model import EnvChange, Exec, Hook
from lowsuper.plan import EXEC, FdSource, SpawnPlan, change_environment
from lowsuper.record import Record
from lowsuper.report import format_status
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from lowsuper.events import DaemonEvent, MasterEvent, Note
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.spawn import Spawner
    from lowsuper.model import DaemonSpec, Legion, MasterSpec
    from lowsuper.plan import Environment, Limit

    class Owner(Protocol):
        """The master."""

        def say(self, note: Note) -> None:
            """Tell the operator."""

        def say_line(self, line: str) -> None:
            """Tell the operator something that no machine has decided."""

        def post_master(self, event: MasterEvent) -> None:
            """Queue an event for the master machine."""

        def fence(self, legion: str, until: Ns) -> None:
            """See that nothing of a legion's daemons is left at `until`, CLOCK_BOOTTIME."""

        def is_busy(self, legion: str) -> bool:
            """Return whether anything of a legion's daemons may be there."""

        def hook_environment(self) -> Environment:
            """Return the environment of hooks."""

        def put_over(self, life: Life) -> None:
            """Release a life after this turn."""


MODULE = "lowsuper.legion.agent"
NAME = "legion agent"
FREE_UIDS = range(61184, 65520)  # for users that exist only while something runs, as systemd's
FIRST_PAUSE, LONGEST_PAUSE = Ns(SECOND), Ns(30 * SECOND)
STABLE = Ns(30 * SECOND)
GOODBYE = Ns(3 * SECOND)  # for the last words of an agent, and the hooks that follow them
MOST_HOOKS = 256  # that wait
SLACK = Ns(SECOND // 10)  # the agent's word that the end is near comes so long before our own clock
_SOFT, _RETRY, _LATE, _HOOK = "legion\0", "legion agent\0", "legion end\0", "(legion hook)"


def now_boot() -> Ns:
    """Return CLOCK_BOOTTIME in nanoseconds."""
    return clock_gettime_ns(CLOCK_BOOTTIME)


class Wanted(Record):
    """A hook whose turn comes."""

    legion: str
    is_lord: bool  # the daemons wait for it
    hook: Hook
    changes: tuple[EnvChange, ...]  # of its environment


class Legions:
    """Keeps an agent, and does what follows from what it says."""

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        children: dict[int, Callable[[], None]],
        owner: Owner,
        *,
        null_fd: int,
        limits: tuple[Limit, ...],
    ) -> None:
        """Begin without an agent.

        Args:
            loop: to hear the agent with.
            spawner: to start it with, and hooks.
            children: whom to call when a child of the master has ended.
            owner: the master.
            null_fd: of /dev/null.
            limits: resource limits of hooks.
        """
        self._loop, self._spawner, self._children, self._owner = loop, spawner, children, owner
        self._null_fd = null_fd
        self._legions: dict[str, Legion] = {}
        self._patience: dict[str, Ns] = {}
        self._spec: MasterSpec | None = None
        self._leases: dict[str, words.Lease] = {}
        self._lord: set[str] = set()  # legions whose daemons may be started
        self._read: dict[str, Ns] = {}  # until when the last lease was, whatever became of it
        self._refused: set[str] = set()  # legions whose lord hooks have failed
        self._busy: dict[str, bool] = {}  # as the agent was told
        self._views: dict[str, words.View] = {}
        self._life: Life | None = None
        self._channel: _socket.socket | None = None
        self._started: Ns = 0
        self._pause = FIRST_PAUSE
        self._again = self._quitting = self._ending = False
        self._queue: list[Wanted] = []
        self._running: Wanted | None = None
        self._hooks = Hooks(
            loop,
            spawner,
            children,
            self,
            fds=(FdSource(0, null_fd), FdSource(1, 1), FdSource(2, 2)),
            limits=limits,
            timer=_HOOK,
        )

    # What the master asks for.

    def use(self, spec: MasterSpec) -> None:
        """Take the legions of a configuration; an agent that has others is replaced."""
        legions = {legion.name: legion for legion in spec.legions}
        patience = {name: find_patience(spec, name) for name in legions}
        before, self._spec = self._spec, spec
        same = before is not None and (
            (legions, patience, spec.legion_user)
            == (self._legions, self._patience, before.legion_user)
        )
        if same:
            return
        for name in tuple(self._lord):
            self._lose(name, "the configuration of the legion has changed")
        self._legions, self._patience = legions, patience
        self._views = {name: view for name, view in self._views.items() if name in legions}
        self._loop.cancel_timer(_RETRY)
        if self._life is not None:
            self._again = True
            self._quit()
        elif legions:
            self._start()

    def follow(self, phase: str) -> None:
        """Take note of the phase that the master is in."""
        if phase in ("stopping", "ended") and not self._ending:
            self._ending, self._again = True, False
            self._loop.cancel_timer(_RETRY)
            self._quit()

    def moved(self, legion: str) -> None:
        """Take note that a daemon of a legion is in another state now."""
        busy = self._is_busy(legion)
        if legion in self._legions and self._busy.get(legion) != busy:
            self._tell_busy(legion, busy)

    def until_of(self, legion: str) -> Ns:
        """Return when the daemons of a legion have to be gone, CLOCK_BOOTTIME; 1: long ago."""
        lease = self._leases.get(legion)
        return 1 if lease is None else lease.until

    def adapt(self, spec: DaemonSpec, environment: Environment) -> Environment:
        """Return the environment of a daemon of a legion."""
        lease = self._leases.get(spec.legion or "")
        changes = [EnvChange("LOWSUPER_LEGION", spec.legion)]
        if lease is not None and lease.token:
            changes.append(EnvChange("LOWSUPER_LEGION_TOKEN", lease.token))
        return change_environment(environment, changes)

    @property
    def views(self) -> Mapping[str, words.View]:
        """What is known of each legion; one that the agent has said nothing of is left out."""
        return self._views

    def finish(self, run_turn: Callable[[], None]) -> None:
        """Let the agent say goodbye, and the hooks that follow that run; at most for 3 seconds.

        Args:
            run_turn: runs a turn of the loop.
        """
        self.follow("ended")
        if self._life is None and not self._queue and self._running is None:
            return
        late = False

        def give_up() -> None:
            nonlocal late
            late = True

        self._loop.set_timer(_LATE, Ns(monotonic_ns() + GOODBYE), give_up)
        for name in self._legions:
            self.moved(name)
        while not late and (self._life is not None or self._queue or self._running is not None):
            run_turn()
        self._loop.cancel_timer(_LATE)
        if self._life is not None:
            self._owner.say_line(f"{NAME}: did not end in time; killing it")
            self._life.kill()
        if self._running is not None:
            self._hooks.kill()
        self._close_channel()

    # The agent.

    def _start(self) -> None:
        """Start an agent; what goes wrong is said, and tried again."""
        assert self._spec is not None
        self._quitting = False
        self._started = monotonic_ns()
        try:
            life = self._spawn(self._spec)
        except OSError as error:
            self._fail(str(error))
            return
        except PlanError as error:
            self._fail(error.problem.reason)
            return
        self._life = life
        self._children[life.pid] = life.on_exit
        self._busy, self._read = {}, {}
        for name in self._legions:
            self.moved(name)

    def _spawn(self, spec: MasterSpec) -> Life:
        uid, gid = find_agent_user(spec)
        orders = encode_orders(
            spec.legions,
            {name: patience + SLACK for name, patience in self._patience.items()},
            name=os.uname().nodename,
            pid=os.getpid(),
            uid=uid,
            gid=gid,
        )
        orders_fd = make_sealed(orders)
        kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
        plan = SpawnPlan(
            name=NAME,
            role=EXEC,
            programs=(os.fsencode(sys.executable),),
            argv=tuple(map(os.fsencode, (sys.executable, "-I", "-m", MODULE))),
            envp=(),
            fds=(
                FdSource(0, self._null_fd),
                FdSource(1, 2),
                FdSource(2, 2),
                FdSource(CHANNEL_FD, theirs.fileno()),
                FdSource(ORDERS_FD, orders_fd),
            ),
        )
        try:
            child = self._spawner.spawn(plan)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(orders_fd)
        self._channel = ours
        self._loop.watch(ours.fileno(), READ, self._on_channel)
        return Life(self._loop, 1, plan, child=child, leaf=None, rung="", post=self._on_life)

    def _on_life(self, event: DaemonEvent) -> None:
        match event:
            case SpawnFailed():
                self._owner.say(
                    DaemonNotStarted(NAME, event.step, event.errno, event.subject, None)
                )
            case Exited(status=status):
                self._hear_rest()
                self._close_channel()
                life, self._life = self._life, None
                assert life is not None
                self._owner.put_over(life)
                self._replace(status or 0)
            case _:
                pass

    def _replace(self, status: int) -> None:
        """The agent has ended: start the next one, if there is to be one."""
        if self._again:
            self._again = False
            if self._legions:
                self._start()
        elif not self._ending and self._legions:
            self._fail(f"it {format_status(status)}" if status else "it has ended")

    def _fail(self, why: str) -> None:
        """There is no agent; leases run out meanwhile."""
        now = monotonic_ns()
        if now - self._started > STABLE:
            self._pause = FIRST_PAUSE
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        self._owner.say_line(f"{NAME}: {why}; next try in {pause // SECOND} s")
        for name, view in self._views.items():
            self._views[name] = view.replace(state="follower", note="there is no agent", nodes=())
        self._loop.set_timer(_RETRY, Ns(now + pause), self._start)

    def _quit(self) -> None:
        if not self._quitting:
            self._quitting = True
            self._send(words.Quit())

    def _send(self, message: words.Busy | words.HookFailed | words.Quit) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(words.encode(message))
        except OSError as error:
            # One that does not listen is not the lord for long; its end is told otherwise.
            if error.errno not in (EAGAIN, EPIPE):
                self._owner.say_line(f"{NAME}: send: {error.strerror}")

    def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._loop.unwatch(channel.fileno())
            channel.close()

    def _hear_rest(self) -> None:
        while self._channel is not None and self._hear_one():
            pass

    def _on_channel(self) -> None:
        """Take what it says, some of it: the daemons have a turn, too."""
        for _ in range(16):
            if self._channel is None or not self._hear_one():
                break

    def _hear_one(self) -> bool:
        """Take one message; return False if there is none."""
        assert self._channel is not None
        try:
            data = self._channel.recv(words.MESSAGE_MAX)
        except BlockingIOError:
            return False
        except OSError as error:
            self._owner.say_line(f"{NAME}: recv: {error.strerror}")
            data = b""
        if not data:
            self._close_channel()
            return False
        try:
            message = words.decode(data, words.FROM_AGENT)
        except ValueError as error:
            self._owner.say_line(f"{NAME}: what it says {error}")
            return True
        legion = getattr(message, "legion", None)
        if legion is None or legion in self._legions:
            self._take(message)
        return True

    def _take(self, message: object) -> None:
        match message:
            case words.Lease():
                self._renew(message)
            case words.Resign(legion=legion, until=until, why=why):
                self._resign(legion, until, why)
            case words.Occurred(legion=legion, event=event, node=node):
                self._occur(legion, event, node)
            case words.Told(legion=legion, text=text):
                self._owner.say(LegionSays(legion, printable(text)))
            case words.View(legion=legion):
                self._views[legion] = message
            case _:
                pass  # it is gone: its end is told by its pidfd

    # Leases.

    def _renew(self, lease: words.Lease) -> None:
        """This node is the lord until then."""
        name = lease.legion
        self._read[name] = lease.until
        if self._ending or self._again:
            self._tell_busy(name, self._is_busy(name))
            return
        self._leases[name] = lease
        self._owner.fence(name, lease.until)
        self._arm(name)
        self._try_rise(name)
        self._tell_busy(name, self._is_busy(name))

    def _arm(self, name: str) -> None:
        """See that the daemons are stopped in time if no other lease comes."""
        left = self._leases[name].until - self._patience[name] - now_boot()
        self._loop.set_timer(f"{_SOFT}{name}", Ns(monotonic_ns() + left), lambda: self._lapse(name))

    def _lapse(self, name: str) -> None:
        lease = self._leases.get(name)
        if lease is None:
            return
        if lease.until - self._patience[name] > now_boot():
            self._arm(name)  # the clocks differ by what the machine slept
            return
        self._lose(name, "the agent has not renewed the lease")

    def _try_rise(self, name: str) -> None:
        """Let the daemons start once the lord hooks are done."""
        if name in self._lord or name not in self._leases or self._has_lord_hook(name):
            return
        if name in self._refused:
            return  # the agent is about to hear of that
        self._lord.add(name)
        self._owner.post_master(LordChanged(name, lord=True))

    def _resign(self, name: str, until: Ns, why: str) -> None:
        lease = self._leases.get(name)
        if lease is not None and until < lease.until:
            self._leases[name] = lease.replace(until=until)
            self._owner.fence(name, max(1, until))
        self._lose(name, printable(why))
        self._tell_busy(name, self._is_busy(name))

    def _lose(self, name: str, why: str) -> None:
        """End the daemons; the fence stays for what does not end."""
        self._leases.pop(name, None)
        self._refused.discard(name)
        self._loop.cancel_timer(f"{_SOFT}{name}")
        self._drop_lord_hooks(name)
        if name in self._lord:
            self._lord.discard(name)
            self._owner.post_master(LordChanged(name, lord=False, why=why))

    def _is_busy(self, name: str) -> bool:
        # What was posted has not been done yet; what a lord hook has begun is to be undone.
        return name in self._lord or self._has_lord_hook(name) or self._owner.is_busy(name)

    def _tell_busy(self, name: str, busy: bool) -> None:
        self._busy[name] = busy
        self._send(words.Busy(name, busy, self._read.get(name, 0)))

    # Hooks.

    def _occur(self, name: str, event: str, node: words.Node) -> None:
        legion = self._legions[name]
        if event == "lord" and name in self._lord:
            return  # a new agent has come to the title of the one before in time
        for each in legion.hooks:
            if each.event != event:
                continue
            if each.command is None:
                self._owner.say(LegionSays(name, each.text))
            elif len(self._queue) < MOST_HOOKS:
                hook = Hook("legion", Exec(each.command, safe=True), each.origin)
                self._queue.append(Wanted(name, event == "lord", hook, tell(event, legion, node)))
            else:
                self._owner.say_line(f"{each.origin.key}: not run: too many wait")
        self._run_next()

    def _has_lord_hook(self, name: str) -> bool:
        waiting = self._queue if self._running is None else [*self._queue, self._running]
        return any(each.legion == name and each.is_lord for each in waiting)

    def _drop_lord_hooks(self, name: str) -> None:
        self._queue = [each for each in self._queue if each.legion != name or not each.is_lord]

    def _run_next(self) -> None:
        if self._running is None and self._queue:
            wanted = self._running = self._queue.pop(0)
            environment = change_environment(self._owner.hook_environment(), wanted.changes)
            self._hooks.run(wanted.hook, environment)

    def hook_ended(self, event: HookEnded) -> None:
        """Take the end of a hook."""
        ended, self._running = self._running, None
        assert ended is not None, "only a hook that runs can end"
        name = ended.legion
        if event.status:
            how = event.problem or (
                "could not be started" if event.status < 0 else format_status(event.status)
            )
            origin = ended.hook.origin
            self._owner.say_line(f"{origin.key}: {origin.value}: {how}")
            if ended.is_lord and name in self._legions:
                self._fail_lord(name)
        if ended.is_lord:
            self._try_rise(name)
            self.moved(name)
        self._run_next()

    def _fail_lord(self, name: str) -> None:
        """A lord hook has failed; what that means is configured."""
        if self._legions[name].death_on_lord_error:
            self._drop_lord_hooks(name)
            self._refused.add(name)
            self._send(words.HookFailed(name))

    def say(self, note: Note) -> None:
        """Tell the operator."""
        self._owner.say(note)

    def say_line(self, line: str) -> None:
        """Tell the operator something that no machine has decided."""
        self._owner.say_line(line)

    def put_over(self, life: Life) -> None:
        """Release a life after this turn."""
        self._owner.put_over(life)


def find_patience(spec: MasterSpec, legion: str) -> Ns:
    """Return the longest that a daemon of a legion may take to end, and a little for the news."""
    times = [
        daemon.stop_timeout
        for daemon in spec.daemons
        if daemon.legion == legion and daemon.stop_timeout is not None
    ]
    return max(times, default=Ns(0))


def tell(event: str, legion: Legion, node: words.Node) -> tuple[EnvChange, ...]:
    """Return what a hook finds in its environment."""
    told = {
        "": legion.name,
        "_EVENT": event,
        "_NODE": node.name,
        "_UUID": node.uuid,
        "_VALOR": str(node.valor),
        "_SCROLL": node.scroll,
    }
    return tuple(
        EnvChange(f"LOWSUPER_LEGION{key}", value.replace("\0", "")) for key, value in told.items()
    )


def find_agent_user(spec: MasterSpec) -> tuple[int, int]:
    """Return uid and gid that the agent becomes: a free uid, unless one is configured.

    Raises:
        PlanError: there is no such user, or we are not root.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if spec.legion_user is not None:
        origin = next(each for each in reversed(spec.origins) if each.key == "legion-user")
        identity = resolve_identity(spec.legion_user, None, origin)
        assert identity is not None
        return identity.uid, identity.gid
    import pwd

    first = crc32(spec.name.encode("utf-8", "surrogateescape"))
    for step in range(len(FREE_UIDS)):
        uid = FREE_UIDS[(first + step) % len(FREE_UIDS)]
        try:
            pwd.getpwuid(uid)
        except KeyError:
            return uid, uid
    raise KernelError("getpwuid", EAGAIN, "", "set legion-user: all of 61184 to 65519 are taken")


def make_sealed(data: bytes) -> int:
    """Return a memfd with these bytes, which nobody can change; the caller closes it.

    See memfd_create(2).
    """
    fd = os.memfd_create("lowsuper-legion", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def printable(text: str) -> str:
    """Return a text of the network for the log: one line, without what moves a cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)[:500]
