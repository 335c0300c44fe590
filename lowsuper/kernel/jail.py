"""The two sides of a jail: the process that stays outside, and the master's way in.

Outside, `Warden` performs what `lowsuper.jail` decides, single-threaded as the fork into a pid
namespace needs it. Inside, `live` makes the jail, seals Python's imports, and runs the master, as
the first process there if the jail has a pid namespace. The two talk over a socketpair, in packets
of words parted by NUL bytes: from inside `place PATH DEVICE INODE KIND`, `hold`
with a descriptor to keep open while the jail lives, `entered`, `ready`,
`reload`, `failed CODE TEXT`, `finished CODE` and `front WORDS`; from outside `go`, and `log` with
the descriptor of a log file that was opened again. Its end tells each side that the other is dead.

Rule: of the descriptors of before the change of root the jail has 0, 1 and 2, its end of the
socketpair, /dev/null, and the spawner's (the helper program, the master's own pidfd): each is a
door. That of the helper is read-only, and so is what /proc/PID/exe shows of it: root in the jail,
even without any capability, could write another program for the host to run.
"""

from __future__ import annotations

import _socket
import gc
import os
import sys
from errno import ENOMEM, EPIPE, ESRCH
from fcntl import (
    F_ADD_SEALS,
    F_SEAL_GROW,
    F_SEAL_SEAL,
    F_SEAL_SHRINK,
    F_SEAL_WRITE,
    fcntl,
)
from struct import Struct
from time import monotonic

from lowsuper import jail
from lowsuper.errors import ConfigError, KernelError, LowsuperError, PlanError
from lowsuper.events import (
    Announce,
    Boot,
    FifoByte,
    Finish,
    HookEnded,
    KillHook,
    LoadConfig,
    Loaded,
    LoadRefused,
    ReloadTouched,
    ReopenLogs,
    RunHook,
    SelectFifo,
    Signalled,
    WritePidfiles,
)
from lowsuper.jail import (
    JailAsksReload,
    JailEnded,
    JailEntered,
    JailReady,
    JailTimer,
    KillJail,
    KillNetwork,
    LetJailGo,
    MakeJail,
    MakeNetwork,
    NetworkMade,
    NetworkRemoved,
    Outside,
    RemoveNetwork,
    SayLine,
    SetJailTimer,
    SignalJail,
)
from lowsuper.kernel import accounts, mount, native, process, root
from lowsuper.kernel.domain import enter_place, leave_place, renew_place
from lowsuper.kernel.fifo import MasterFifo
from lowsuper.kernel.gate import CLIENT, Gate
from lowsuper.kernel.log import Log
from lowsuper.kernel.loop import READ, Loop
from lowsuper.kernel.privilege import resolve, resolve_master
from lowsuper.kernel.root import Place
from lowsuper.kernel.spawn import HELPER, Spawner, wait_readable
from lowsuper.kernel.watch import Watcher
from lowsuper.model import NAMESPACE, ChangeDirectory, EnvChange, Origin, Problem, SetVariable
from lowsuper.plan import FdSource, build_environment, change_environment
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from lowsuper.events import Note
    from lowsuper.jail import Action, Event
    from lowsuper.kernel.control import Server
    from lowsuper.kernel.door import Door
    from lowsuper.kernel.hooks import Hooks
    from lowsuper.kernel.instance import Claim
    from lowsuper.kernel.life import Life
    from lowsuper.kernel.lobby import LobbyAnswers
    from lowsuper.kernel.parent import Parent
    from lowsuper.kernel.peer import Rights
    from lowsuper.kernel.setns import Joiner, Share
    from lowsuper.kernel.ways import Joined
    from lowsuper.kernel.wiring import Wiring
    from lowsuper.model import Hook, Jail, MasterSpec

    class Supervise(Protocol):
        """Runs a master until it has ended; returns its exit code."""

        def __call__(
            self,
            spec: MasterSpec,
            log: Log,
            load: Callable[[], MasterSpec | None],
            announce: Callable[[], None],
            *,
            spawner: Spawner,
            watch: tuple[int, Callable[[], None]],
            null_fd: int,
            gate: Gate,
        ) -> int:
            """Run it, with a descriptor to watch besides, one of /dev/null, and a way in."""


SIGKILL, SIGTERM, SIGCHLD = 9, 15, 17
SIGNALS = (1, 2, 3, 10, 12, 15, 17)  # HUP INT QUIT USR1 USR2 TERM CHLD
EXIT_FAILED = 125
PACKET = 8192
TIMER, REST_TIMER = "jail", "rest"
REST_PATIENCE = 2 * SECOND  # for what ends with a master that has died
_ACCOUNTS = ("/etc/passwd", "/etc/group")

PRELOAD = (
    "resource",
    "select",
    "lowsuper.chronicle",
    "lowsuper.kernel.answers",
    "lowsuper.kernel.tail",
    "lowsuper.kernel.world",
    "lowsuper.supervisor",
)
"""What the master in a jail may import once it runs; nothing can be imported there any more."""
PRELOAD_SMART = (
    "lowsuper.command",
    "lowsuper.kernel.adoption",
    "lowsuper.kernel.pidfile",
    "lowsuper.kernel.smart",
    "lowsuper.script",
)
PRELOAD_HOOKS = ("lowsuper.kernel.deeds", "lowsuper.kernel.hooks")
PRELOAD_TITLE = ("prctl",)
PRELOAD_ATTENDANCE = ("lowsuper.kernel.attendance",)
PRELOAD_CAPS = ("lowsuper.kernel.caps",)
PRELOAD_DROP = ("traceback",)
PRELOAD_USERS = ("difflib",)
PRELOAD_ENVFILE = ("lowsuper.kernel.envfile",)
PRELOAD_LISTEN = ("lowsuper.kernel.sockets",)
PRELOAD_KEYS = {"pidfile": PRELOAD_SMART, "envfile": PRELOAD_ENVFILE, "listen": PRELOAD_LISTEN}
"""By the keys of daemons that need them."""
PRELOAD_JSON = ("lowsuper.wire",)


def examine(spec: MasterSpec) -> None:
    """Look from outside whether a jail can be made, and has the users that are wanted.

    What a hook may still make is not looked at.

    Raises:
        ConfigError: there is no such root.
        PlanError: a user or group is not known in it.
    """
    made = spec.jail
    outside = (*jail.OUTSIDE_BEFORE, *jail.AFTER)
    if made is None or made.root is None or any(hook.phase in outside for hook in spec.hooks):
        return
    if not os.path.isdir(made.root):
        origin = next((each for each in reversed(spec.origins) if each.key == made.way), None)
        origin = origin or Origin("command line", 0, made.way, made.root)
        reason = f"there is no directory {made.root}"
        raise ConfigError([Problem(origin, reason, advice="make it first")])
    if any(keep.target == "/etc" or keep.target in _ACCOUNTS for keep in made.keeps):
        return  # its users are not those of the root as it is now
    accounts.use_files(accounts.read_files(made.root))
    try:
        resolve(spec)
        resolve_master(spec)
    finally:
        accounts.use_files(None)


# Outside.


class Warden:
    """Makes the jail, watches it, and stands for it: to be run by the process launched."""

    def __init__(
        self,
        spec: MasterSpec,
        log: Log,
        load: Callable[[], MasterSpec | None],
        announce: Callable[[], None],
        supervise: Supervise,
        *,
        claim: Claim,
        preview: Callable[[], MasterSpec],
    ) -> None:
        """Prepare to make the jail of a configuration.

        Args:
            spec: with a jail.
            log: where lines go.
            load: reads the configuration again; None when it is bad, which it said.
            announce: called once when every daemon was started.
            supervise: runs the master, in the jail.
            claim: what makes it the only master of its kind.
            preview: reads the configuration again and changes nothing.

        Raises:
            KernelError: this machine lacks something.
        """
        self._spec, self._log = spec, log
        self._load, self._announce, self._supervise = load, announce, supervise
        self._parent: Parent | None = None
        self._state = Outside()
        self._queue: list[Event] = []
        self._exit_code: int | None = None
        self._children: dict[int, Callable[[], None]] = {}
        self._over: list[Life] = []
        self._pidfiles: set[str] = set()
        self._put_env: list[EnvChange] = []  # by hooks
        self._jail: _Inmate | None = None
        self.relay: Callable[[list[str]], None] | None = None  # gets what a `Teller` inside says
        self._joiner: Joiner | None = None
        self._share: Share | None = None
        self._dead: tuple[_Inmate, JailEnded] | None = None  # but not all that was in it
        # Once, at the start: the way back from a pid namespace that was only for a child.
        self._own_ns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._own_pid = os.getpid()
        self._own_pidfd = process.open_pidfd(self._own_pid)
        self._loop = Loop()
        self._loop.watch_signals(SIGNALS, self._on_signal)
        log.attach(self._loop)
        if "NOTIFY_SOCKET" in os.environ:
            from lowsuper.kernel.parent import open_parent

            background = bool(spec.daemonize or spec.daemonize2)
            self._parent = open_parent(os.environ, self._loop, log.put, in_background=background)
        self._null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._spawner = Spawner()
        self._hooks: Hooks | None = None  # until there is one to run
        self._wiring: Wiring | None = None  # until there is a link to make
        self._watcher = Watcher(self._loop)
        self._fifo = MasterFifo(self._loop, lambda byte: self._queue.append(FifoByte(byte)))
        self._use(spec)
        self._fifo.use(spec.master_fifo)
        self._share_namespaces(spec)
        self._cgroup = enter_place(spec)
        self._claim, self.preview = claim, preview
        self._lobby: LobbyAnswers | None = None
        self._server: Server | None = None
        self._door: Door | None = None

    # The control socket.

    def _open_door(self) -> None:
        """Listen at the control socket; the jail does not wait for that."""
        from lowsuper.kernel.door import open_door

        self._door = open_door(
            self._spec,
            self._claim,
            self._loop,
            self._watcher,
            say=self.say_line,
            on_knock=self._on_knock,
        )

    def _on_knock(self) -> None:
        """Let somebody in who wants to ask or to steer."""
        if self._server is None:
            from lowsuper.kernel.control import Server
            from lowsuper.kernel.lobby import LobbyAnswers

            self._lobby = LobbyAnswers(self._loop, self, self._claim.name)
            self._server = Server(self._loop, self._lobby, self._find_rights)
        door = self._door
        if door is not None and door.socket is not None and not self._server.accept(door.socket):
            door.rest()

    def _find_rights(self) -> Rights:
        from lowsuper.kernel.peer import resolve_rights

        return resolve_rights(self._spec)

    @property
    def spec(self) -> MasterSpec:
        """The configuration in force."""
        return self._spec

    @property
    def phase(self) -> str:
        """What it is at, in the words that a master has for it."""
        return jail.describe_phase(self._state)

    @property
    def is_open(self) -> bool:
        """Whether there is a master in the jail that can be asked."""
        return self._jail is not None and self._state.going

    def post(self, event: Signalled) -> None:
        """Take something that happens."""
        self._queue.append(event)

    def send(self, words: list[str], fds: tuple[int, ...]) -> None:
        """Send a packet to the master in the jail.

        Raises:
            OSError: it does not take it now.
        """
        if self._jail is None:
            raise KernelError("send", EPIPE)
        packed = Struct(f"{len(fds)}i").pack(*fds)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)
        self._jail.channel.sendmsg(["\0".join(words).encode()], [rights])

    def run(self) -> int:
        """Run until the jail has ended for good; return the exit code."""
        self._queue.append(Boot())
        self._settle()
        self._open_door()
        self._log.flush()
        while self._exit_code is None:
            self._loop.run_turn(self._settle)
            for life in self._over:
                life.release()
            self._over.clear()
            self._log.flush()
        self._close()
        return self._exit_code

    def _close(self) -> None:
        self._fifo.close(remove=self._spec.vacuum)
        if self._pidfiles:
            from lowsuper.kernel.pidfile import remove_pidfile

            for path in self._pidfiles:
                try:
                    remove_pidfile(path, os.getpid())
                except KernelError as error:
                    self.say_line(str(error))
        if self._share is not None:
            self._share.close()
        if self._server is not None:
            self._server.close()
        if self._door is not None:
            self._door.close()
        self._watcher.close()
        self._spawner.close()
        if self._parent is not None:
            self._parent.close(self._exit_code or 0)
        if self._cgroup is not None:
            leave_place(self._cgroup, self.say_line)
        self._log.drain()
        self._loop.close()
        for fd in (self._null_fd, self._own_ns, self._own_pidfd):
            os.close(fd)

    # Events.

    def _settle(self) -> None:
        while self._queue:
            event = self._queue.pop(0)
            now = self._loop.now()
            self._state, actions = jail.step(self._spec, self._state, event, now)
            for action in actions:
                self._perform(action)
        if self._parent is not None:
            self._tell_parent(self._parent)

    def _tell_parent(self, parent: Parent) -> None:
        """Tell the service manager what has become of us."""
        count = len(self._spec.daemons)
        words = f"{count} daemon{'' if count == 1 else 's'} in a jail"
        if self._state.goal == jail.STOP:
            parent.follow("stopping", lambda: f"stopping: {words}")
        elif self._state.ready and self._state.goal == jail.RUN:
            parent.follow("ready", lambda: f"ready: {words}")

    def _on_signal(self, signal: int) -> None:
        if signal != SIGCHLD:
            self._queue.append(Signalled(signal))
            return
        while (pid := process.peek_child()) != 0:
            if self._jail is not None and pid == self._jail.pid:
                self._on_jail_end()
                continue
            callback = self._children.pop(pid, None)
            if callback is not None:
                callback()
            os.waitpid(pid, os.WNOHANG)
        if self._dead is not None and is_childless():
            self._bury()

    def _on_message(self) -> None:
        """Take what the jail says; at its end the process tells more than the socket does."""
        if self._jail is not None and not self._jail.take(self._queue):
            self._loop.unwatch(self._jail.channel.fileno())

    def _on_jail_end(self) -> None:
        inmate = self._jail
        if inmate is None or process.peek_status(inmate.pidfd) is None:
            return
        inmate.take(self._queue)
        self._jail = None
        self._loop.unwatch(inmate.pidfd)
        self._loop.unwatch(inmate.channel.fileno())
        ended = inmate.end()
        self._dead = inmate, ended
        if "pid" in inmate.made.namespaces or ended.code is not None or is_childless():
            self._bury()
        else:
            # Without a pid namespace the rest is killed by the shims and the guard of its master,
            # who are our children now. Smart daemons may be, too, and those live on.
            at = Ns(self._loop.now() + REST_PATIENCE)
            self._loop.set_timer(REST_TIMER, at, self._bury)

    def _bury(self) -> None:
        """The jail is dead, and all that does not outlive it."""
        assert self._dead is not None
        inmate, ended = self._dead
        self._dead = None
        self._loop.cancel_timer(REST_TIMER)
        self._queue.append(ended)
        inmate.release()
        for problem in root.remove_places(inmate.made.root or "/", inmate.places):
            self.say_line(problem)

    # Actions.

    def _perform(self, action: Action) -> None:  # noqa: C901, PLR0912  # a table
        match action:
            case SayLine(text=text):
                self.say_line(text)
            case MakeJail():
                self._begin()
            case LetJailGo():
                self._tell(b"go")
            case SignalJail(signal=signal):
                self._signal(signal)
            case KillJail() if self._joiner is not None:
                self._joiner.close()
                self._joiner = None
                self._queue.append(JailEnded(0, 0))
            case KillJail():
                self._signal(SIGKILL)
            case SetJailTimer(at=None):
                self._loop.cancel_timer(TIMER)
            case SetJailTimer(at=at) if at is not None:
                self._loop.set_timer(TIMER, at, lambda: self._queue.append(JailTimer()))
            case RunHook(hook=hook):
                self._run_hook(hook)
            case KillHook():
                if self._hooks is not None:
                    self._hooks.kill()
            case MakeNetwork() | KillNetwork() | RemoveNetwork():
                self._wire(action)
            case LoadConfig():
                self._reload()
            case Announce():
                gc.freeze()
                self._log.flush()
                self._announce()
            case WritePidfiles():
                self._write_pidfiles()
            case ReopenLogs(rotate=rotate):
                self._log.reopen(rotate)
                self._pass_log()
            case SelectFifo(slot=slot):
                self._select_fifo(slot)
            case Finish(code=code):
                self._exit_code = code
            case _:
                raise AssertionError(action)

    def _begin(self) -> None:
        """Make the jail, if need be when there is what it joins."""
        made = self._spec.jail
        assert made is not None, "a reload keeps it"
        if made.joins is None:
            self._try([])
            return
        from lowsuper.kernel.setns import Joiner

        self._joiner = Joiner(
            self._loop, made.joins, take=self._on_joined, fail=self._give_up, say=self.say_line
        )

    def _on_joined(self, joined: list[Joined]) -> None:
        from lowsuper.kernel import ways

        assert self._spec.jail is not None, "a reload keeps it"
        self._joiner = None
        self._try(ways.leave_out(joined, ways.find_own(self._spec.jail)))

    def _try(self, joined: list[Joined]) -> None:
        try:
            self._make(joined)
        except OSError as error:
            self._give_up(str(error))
        finally:
            for each in joined:
                os.close(each.fd)

    def _give_up(self, failure: str) -> None:
        """The jail cannot be made."""
        self._joiner = None
        self._queue.append(JailEnded(EXIT_FAILED << 8, EXIT_FAILED, f"the jail: {failure}"))

    def _make(self, joined: list[Joined]) -> None:
        made = self._spec.jail
        assert made is not None, "a reload keeps it"
        self._log.flush()  # what is buffered must not be written twice
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            pid = self._fork("pid" in made.namespaces, joined)
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                self._live(theirs.fileno(), joined)
            finally:
                os._exit(EXIT_FAILED)
        theirs.close()
        ours.setblocking(False)
        self._jail = inmate = _Inmate(pid, ours, made)
        inmate.relay = self.relay
        inmate.shared = any(each.kind == mount.NEWPID for each in joined)
        self._loop.watch(inmate.pidfd, READ, self._on_jail_end)
        self._loop.watch(ours.fileno(), READ, self._on_message)

    def _fork(self, is_first: bool, joined: list[Joined]) -> int:
        """Fork into a new pid namespace, one that is joined, or ours; return as os.fork does."""
        other = next((each.fd for each in joined if each.kind == mount.NEWPID), -1)
        if not is_first:
            native.set_child_subreaper()  # what is left when it has died comes to us
        if not is_first and other < 0:
            return os.fork()
        pid = -1
        if is_first:
            mount.unshare(mount.NEWPID)
        else:
            mount.setns(other, mount.NEWPID)
        try:
            pid = os.fork()
        except OSError as error:
            if error.errno != ENOMEM or is_first:
                raise
            advice = "the first process of the pid namespace has ended"
            raise KernelError("fork", ENOMEM, "", advice) from None
        finally:
            # From here on no other child may be the first of the new namespace. The child itself
            # cannot go back up.
            if pid != 0:
                mount.setns(self._own_ns, mount.NEWPID)
        return pid

    def _live(self, channel_fd: int, joined: list[Joined]) -> None:
        """Be the jail's master."""
        for change in self._put_env:
            if change.value is None:
                os.environ.pop(change.name, None)
            else:
                os.environ[change.name] = change.value
        gate = Gate(self._claim.name, self._own_pid)
        live(self._spec, channel_fd, self._own_pidfd, self._supervise, joined, gate=gate)

    def _tell(self, text: bytes) -> None:
        self._log.flush()  # before what its master says to it
        if self._jail is not None:
            try:
                self._jail.channel.send(text)
            except OSError:
                return  # Race: it is dead, which is told next.

    def _signal(self, signal: int) -> None:
        self._log.flush()  # before what its master says to it
        if self._jail is not None:
            process.send_signal(self._jail.pidfd, signal)

    def _pass_log(self) -> None:
        """Let the master in the jail write to the log file that was just opened."""
        if self._jail is not None:
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, (2).to_bytes(4, sys.byteorder))
            try:
                self._jail.channel.sendmsg([b"log"], [rights])
            except OSError as error:
                self.say_line(f"the jail goes on to write to the old log file: {error.strerror}")

    def _reload(self) -> None:
        if self._parent is not None:
            self._parent.follow("reloading", lambda: "reading the files")
        lines: list[str] = []
        self._log.tap = lines
        spec = self._load()
        self._log.tap = None
        if self._lobby is not None:
            self._lobby.loaded(spec, lines)
        if spec is None:
            self._queue.append(LoadRefused())
            return
        try:
            renew_place(self._cgroup, spec)
        except KernelError as error:
            self.say_line(f"{error}; nothing was changed")
            self._queue.append(LoadRefused())
            return
        self._use(spec)
        self._spec = spec
        try:
            self._fifo.use(spec.master_fifo)
        except KernelError as error:
            self.say_line(str(error))
        try:
            self._share_namespaces(spec)
        except KernelError as error:
            self.say_line(str(error))
        self._pass_log()
        self._queue.append(Loaded())

    def _share_namespaces(self, spec: MasterSpec) -> None:
        """Let others join the jail, if the configuration wants that."""
        if spec.setns_socket is None and self._share is None:
            return
        from lowsuper.kernel.setns import share

        before, self._share = self._share, None
        self._share = share(before, spec, self._loop, self._find_jail, self.say_line)

    def _find_jail(self) -> int:
        """Return the pid of a process that is in the jail; 0: it is not made yet, or ends."""
        inmate = self._jail
        is_there = inmate is not None and inmate.entered and self._state.goal == jail.RUN
        return inmate.pid if inmate is not None and is_there else 0

    def _use(self, spec: MasterSpec) -> None:
        watched = [(path, self._toucher(path)) for path in spec.touch_reload]
        for problem in self._watcher.replace(watched, []):
            self.say_line(problem)

    def _toucher(self, path: str) -> Callable[[], None]:
        return lambda: self._queue.append(ReloadTouched(path))

    def _write_pidfiles(self) -> None:
        spec = self._spec
        paths = [path for path in (spec.pidfile, spec.pidfile2, spec.safe_pidfile) if path]
        if not paths:
            return
        from lowsuper.kernel.pidfile import write_pidfile

        for path in paths:
            try:
                write_pidfile(path, os.getpid())
                self._pidfiles.add(os.path.abspath(path))
            except KernelError as error:
                self.say_line(str(error))

    def _select_fifo(self, slot: int) -> None:
        paths = self._spec.master_fifo
        if slot >= len(paths):
            self.say_line(f"master-fifo {slot}: there is no such slot")
            return
        try:
            self._fifo.select(paths[slot])
        except KernelError as error:
            self.say_line(str(error))

    # Links.

    def _wire(self, action: MakeNetwork | KillNetwork | RemoveNetwork) -> None:
        wiring = self._wiring
        if wiring is None:
            from lowsuper.kernel.domain import instance_id
            from lowsuper.kernel.wiring import Wiring

            wiring = self._wiring = Wiring(
                self._loop,
                self._spawner,
                self._children,
                self,
                instance=instance_id(self._spec),
                null_fd=self._null_fd,
            )
        match action:
            case MakeNetwork():
                inmate, made = self._jail, self._spec.jail
                if inmate is None or made is None:
                    problem = "namespace-net-link: the jail has ended"
                    self._queue.append(NetworkMade(problem))  # its end is told next
                    return
                wiring.make(
                    made.links,
                    inmate.pid,
                    inmate.pidfd,
                    lambda problem: self._queue.append(NetworkMade(problem)),
                )
            case KillNetwork():
                wiring.kill()
            case RemoveNetwork():
                wiring.remove(lambda problem: self._queue.append(NetworkRemoved(problem)))

    # Hooks, whose owner this is.

    def _run_hook(self, hook: Hook) -> None:
        match hook.deed:
            case SetVariable(change=change):
                self._put_env.append(change)
                self.hook_ended(HookEnded(0))
            case ChangeDirectory(path=path):
                try:
                    os.chdir(path)
                except OSError as error:
                    text = str(KernelError("chdir", error.errno or 0, path))
                    self.hook_ended(HookEnded(1 << 8, text))
                else:
                    self.hook_ended(HookEnded(0))
            case _:
                env = build_environment(os.environ, self._spec.env)
                env = change_environment(env, self._put_env)
                if self._jail is not None:  # as in uWSGI, for post-jail
                    pid = str(self._jail.pid)
                    env = change_environment(env, (EnvChange("UWSGI_JAIL_PID", pid),))
                self._open_hooks().run(hook, env)

    def _open_hooks(self) -> Hooks:
        if self._hooks is None:
            from lowsuper.kernel.hooks import Hooks

            self._hooks = Hooks(
                self._loop,
                self._spawner,
                self._children,
                self,
                fds=(FdSource(0, self._null_fd), FdSource(1, 1), FdSource(2, 2)),
                limits=(),
            )
        return self._hooks

    def say(self, note: Note) -> None:
        """Tell the operator."""
        from lowsuper.report import format_note

        self.say_line(format_note(note))

    def say_line(self, line: str) -> None:
        """Tell the operator a line."""
        self._log.put(line)

    def hook_ended(self, event: HookEnded) -> None:
        """Take the end of a hook."""
        self._queue.append(event)

    def put_over(self, life: Life) -> None:
        """Release a life after this turn."""
        self._over.append(life)


class _Inmate:
    """A jail as it is seen from outside: its first process, and what that has said."""

    __slots__ = (
        "_code",
        "_failure",
        "_held",
        "channel",
        "entered",
        "made",
        "pid",
        "pidfd",
        "places",
        "relay",
        "shared",
    )

    def __init__(self, pid: int, channel: _socket.socket, made: Jail) -> None:
        self.pid, self.channel, self.made = pid, channel, made
        self.pidfd = os.pidfd_open(pid)  # our child that nobody has reaped
        self.places: list[Place] = []
        self._held: list[int] = []  # descriptors of mount points
        self.relay: Callable[[list[str]], None] | None = None
        self.entered = self.shared = False
        self._code: int | None = None
        self._failure = ""

    def take(self, queue: list[Event]) -> bool:
        """Read all packets; return False when there will be none any more."""
        while True:
            try:
                packet, rights, _, _ = self.channel.recvmsg(
                    PACKET, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return True
            except ConnectionResetError:
                continue
            if not packet:
                return False
            self._held += [int.from_bytes(data[:4], sys.byteorder) for _, _, data in rights]
            word, *rest = packet.decode("utf-8", "surrogateescape").split("\0")
            self._take(queue, word, rest)

    def _take(self, queue: list[Event], word: str, rest: list[str]) -> None:
        match word, rest:
            case "place", [path, device, inode, kind]:
                self.places.append(Place(path, int(device), int(inode), kind == "directory"))
            case "hold", []:
                pass
            case "entered", []:
                self.entered = True
                queue.append(JailEntered())
            case "ready", []:
                queue.append(JailReady())
            case "reload", []:
                queue.append(JailAsksReload())
            case "failed", [code, text]:
                self._failure, self._code = text, int(code)
            case "finished", [code]:
                self._code = int(code)
            case "front", _ if self.relay is not None:
                self.relay(rest)
            case _:
                raise AssertionError(f"the jail said {word}")

    def release(self) -> None:
        """Let go of the mount points: all that was in the jail is dead."""
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def end(self) -> JailEnded:
        """Reap the process that has ended; return how."""
        status = process.reap(self.pidfd)
        os.close(self.pidfd)
        self.channel.close()
        return JailEnded(status or 0, self._code, self._failure, self.shared)


# Inside.


def live(
    spec: MasterSpec,
    channel_fd: int,
    outer_pidfd: int,
    supervise: Supervise,
    joined: list[Joined],
    *,
    gate: Gate,
) -> None:
    """Make the jail around this process, and run the master.

    Does not return.
    """
    logs = (daemon.log.fd for daemon in spec.daemons if daemon.log and daemon.log.fd >= 0)
    close_all_but((0, 1, 2, channel_fd, outer_pidfd, *(each.fd for each in joined), *logs))
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, fileno=channel_fd)
    try:
        mount.set_parent_death_signal(SIGKILL)
        # Race: the process outside was killed before that.
        if wait_readable(outer_pidfd, 0):
            os._exit(EXIT_FAILED)
        os.close(outer_pidfd)
        # A ^C at the terminal is for the process outside, which passes it on.
        os.setsid()
        code = _enter_and_run(spec, channel, supervise, joined, gate)
    except PlanError as error:
        text, code = _explain(error.problem), error.exit_code
    except LowsuperError as error:
        text, code = f"the jail: {error}", error.exit_code
    except OSError as error:
        text, code = f"the jail: {error}", EXIT_FAILED
    except Exception as error:  # a bug; `traceback` may not be at hand
        text, code = f"the jail: {format_traceback(error)}", EXIT_FAILED
    else:
        _send(channel, "finished", str(code))
        os._exit(code)
    _send(channel, "failed", str(code), text)
    os._exit(code)


def _explain(problem: Problem) -> str:
    """Return a problem in words; there is no file in the jail to point to."""
    where = f"{problem.origin.key}={problem.origin.value}"
    words = (problem.daemon, where, problem.reason)
    text = ": ".join(filter(None, words))
    return f"{text}; {problem.advice}" if problem.advice else text


def _enter_and_run(
    spec: MasterSpec,
    channel: _socket.socket,
    supervise: Supervise,
    joined: list[Joined],
    gate: Gate,
) -> int:
    made = spec.jail
    assert made is not None
    if made.is_elsewhere:
        preload(spec)
    spawner = _open_spawner(made)
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    finish_network = _prepare_network(spec)

    def tell(place: Place) -> None:
        kind = "directory" if place.is_directory else "file"
        _send(channel, "place", place.path, str(place.device), str(place.inode), kind)

    if joined:
        from lowsuper.kernel import ways

        ways.join(joined)
    if made.way == NAMESPACE:
        root.enter(made, tell, lambda fd: _hold(channel, fd))
    else:
        from lowsuper.kernel import ways

        ways.enter(
            made,
            tell,
            lambda fd: _hold(channel, fd),
            lambda: _run_hooks(spec, spawner, null_fd),
        )
    if made.is_elsewhere:
        seal()
        accounts.use_files(accounts.read_files("/"))
    finish_network()
    _send(channel, "entered")
    if channel.recv(PACKET) != b"go":
        os._exit(EXIT_FAILED)  # the process outside has ended
    log = Log(spec.log_date, spec.log_format)
    inner = jail.build_inner(spec)

    def ask_reload() -> None:
        _send(channel, "reload")

    def on_message() -> None:
        _take_message(channel, gate)

    code = supervise(
        inner,
        log,
        ask_reload,
        lambda: _send(channel, "ready"),
        spawner=spawner,
        watch=(channel.fileno(), on_message),
        null_fd=null_fd,
        gate=gate,
    )
    if "pid" in made.namespaces:
        end_rest(spec.reload_mercy / SECOND)
    return code


def _open_spawner(made: Jail) -> Spawner:
    """Return a spawner whose helper nobody in another root can write to."""
    if not made.is_elsewhere:
        return Spawner()
    directory, _, name = HELPER.rpartition("/")
    try:
        tree_fd = mount.clone_tree(directory)
    except KernelError:
        return _copy_spawner()
    try:
        mount.restrict(tree_fd, mount.ATTR_RDONLY, directory)
        return Spawner(helper=f"/proc/self/fd/{tree_fd}/{name}")
    except KernelError:
        return _copy_spawner()
    finally:
        os.close(tree_fd)


def _copy_spawner() -> Spawner:
    """Return a spawner with a sealed copy of the helper, where mounts cannot be read-only.

    See memfd_create(2) and F_ADD_SEALS of fcntl(2).
    """
    fd = os.memfd_create("lowsuper-helper", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(HELPER, "rb") as helper:
            os.sendfile(fd, helper.fileno(), 0, os.fstat(helper.fileno()).st_size)
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
        return Spawner(helper=f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _run_hooks(spec: MasterSpec, spawner: Spawner, null_fd: int) -> None:
    """Run the post-jail hooks that come before the change of root."""
    assert spec.jail is not None
    hooks = [hook for hook in spec.hooks if hook.phase in jail.AFTER]
    if hooks and spec.jail.post_jail == "inside":
        from lowsuper.kernel.phase import run_phase

        run_phase(hooks, spec.env, Log(spec.log_date, spec.log_format), spawner, null_fd)


def _prepare_network(spec: MasterSpec) -> Callable[[], None]:
    """Join the network that is to be joined; return what is to be called in the jail."""
    made = spec.jail
    if made is None or (not made.net and made.netns is None):
        return lambda: None
    from lowsuper.kernel import network  # while something can be imported

    network.prepare(made)
    return lambda: network.finish(made)


def _send(channel: _socket.socket, *words: str) -> None:
    try:
        channel.send("\0".join(words).encode("utf-8", "surrogateescape")[:PACKET])
    except BrokenPipeError:
        os._exit(EXIT_FAILED)  # the process outside is dead, and so is the jail


def _hold(channel: _socket.socket, fd: int) -> None:
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
    try:
        channel.sendmsg([b"hold"], [rights])
    except BrokenPipeError:
        os._exit(EXIT_FAILED)  # the process outside is dead, and so is the jail


def _take_message(channel: _socket.socket, gate: Gate) -> None:
    packet, rights, _, _ = channel.recvmsg(PACKET, _socket.CMSG_SPACE(8), _socket.MSG_CMSG_CLOEXEC)
    if not packet:
        os._exit(EXIT_FAILED)  # the process outside is dead, and so is the jail
    words = packet.decode().split("\0")
    if words[0] == CLIENT:
        gate.let_in(words, rights[0][2])
        return
    for _, _, data in rights:
        fd = int.from_bytes(data[:4], sys.byteorder)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)


def close_all_but(fds: tuple[int, ...]) -> None:
    """Close every descriptor but these."""
    following = 0
    for fd in sorted(fds):
        if fd > following:
            native.close_range(following, fd - 1)
        following = fd + 1
    native.close_range(following)


def preload(spec: MasterSpec) -> None:
    """Import all that the master of a configuration may want when it is in the jail."""
    from lowsuper.kernel.world import is_attended

    drops = (spec.user is not None or spec.group is not None) and not spec.master_as_root
    caps = spec.caps is not None and not spec.master_as_root
    users = spec.user or spec.group or any(each.user or each.group for each in spec.daemons)
    wanted = [
        (True, PRELOAD),
        (spec.hooks, PRELOAD_HOOKS),
        (spec.procname_master or spec.auto_procname, PRELOAD_TITLE),
        (caps, PRELOAD_CAPS),
        (caps or drops, PRELOAD_DROP),
        (users, PRELOAD_USERS),
        (spec.log_format == "json", PRELOAD_JSON),
        (any(map(is_attended, spec.daemons)), PRELOAD_ATTENDANCE),
    ]
    for field, names in PRELOAD_KEYS.items():
        wanted.append((any(getattr(each, field) for each in spec.daemons), names))
    for is_wanted, names in wanted:
        for name in names if is_wanted else ():
            __import__(name)


def seal() -> None:
    """Let Python import nothing any more but what is built into it.

    `sys.path` still names directories of the host: a file that the jail has at such a path would be
    imported, and run as root.
    """
    from _frozen_importlib import BuiltinImporter, FrozenImporter

    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]


def is_childless() -> bool:
    """Tell whether this process has no child at all."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def format_traceback(error: BaseException) -> str:
    """Return where an exception comes from, in one line, reading no file."""
    places = []
    where = error.__traceback__
    while where is not None:
        code = where.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{where.tb_lineno} {code.co_name}")
        where = where.tb_next
    return f"{type(error).__name__}: {error} ({', '.join(places)})"


def end_rest(patience: float) -> None:
    """Ask whatever is left in this pid namespace to end, and wait for it, `patience` seconds.

    What smart daemons and others left behind dies with us anyway, but by SIGKILL.
    """
    import _signal  # type: ignore[import-not-found]  # `signal` takes long to import

    if os.getpid() != 1:
        raise AssertionError("kill(-1) is for the first process of a pid namespace only")
    end = monotonic() + patience
    try:
        os.kill(-1, SIGTERM)
        os.kill(-1, _signal.SIGCONT)
    except OSError as error:
        if error.errno != ESRCH:
            raise
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        left = end - monotonic()
        if left <= 0:
            return
        _signal.sigtimedwait((SIGCHLD,), left)
