"""Finds out when daemons are ready, each in the way that it is configured.

Where the kernel tells, nothing is asked twice: files and sockets appear by inotify, a pipe by
epoll. Where only trying helps (a TCP port, a command, a socket to which nobody listens yet) it is
tried again after a pause that grows from 20 ms to 1 s. Nothing is left that could wake the master
once a daemon is ready.

It is looked from where the daemon is: below its own root, and in its own network namespace. A
look at a file system that does not answer would block, so a path on one is not for this.
"""

from __future__ import annotations

import _socket
import os
from errno import EAGAIN, ECONNREFUSED, EINPROGRESS, ENOENT, ENOTDIR, EPROTOTYPE
from struct import pack as struct_pack

from lowsuper.command import parse_command
from lowsuper.errors import KernelError
from lowsuper.events import Emptied, Exited, Ready, SpawnFailed, Unready
from lowsuper.kernel import native
from lowsuper.kernel.life import Life
from lowsuper.kernel.loop import READ, WRITE
from lowsuper.kernel.vantage import Vantage
from lowsuper.kernel.watch import Watcher
from lowsuper.plan import NAMESPACES, SHIM, FdSource, build_plan
from lowsuper.record import Record
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from lowsuper.events import DaemonEvent
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.spawn import Child, Spawner
    from lowsuper.model import DaemonSpec
    from lowsuper.plan import Environment, SpawnPlan
    from lowsuper.units import Ns, RunId

    class Probe(Protocol):
        """One way to be ready; begins when it is made."""

        def close(self) -> None:
            """Stop, and leave nothing that wakes the master."""


SHORTEST_PAUSE: Ns = SECOND // 50
LONGEST_PAUSE: Ns = SECOND
CONNECT_PATIENCE: Ns = 2 * SECOND
EXEC_PATIENCE: Ns = 10 * SECOND
LONGEST_UNIX = 107  # bytes of a path in sun_path, see unix(7)
WORDS_BYTES = 200  # of what a command says that are kept
KEY = "ready\0"  # of timers; no daemon has a name with such a character
_NOT_THERE = (ENOENT, ENOTDIR)
_OWN_VARIABLES = (b"NOTIFY_SOCKET=", b"WATCHDOG_USEC=", b"WATCHDOG_PID=")


class Prober:
    """The wait for one run of one daemon. Closed when it is ready, or by `close`."""

    def __init__(
        self, loop: Loop, name: str, run: RunId, post: Callable[[str, DaemonEvent], None]
    ) -> None:
        """Begin without a probe, which is to be set at once.

        Args:
            loop: to wait with.
            name: of the daemon.
            run: of the daemon.
            post: takes Ready and Unready.
        """
        self._loop, self.name, self.run, self._post = loop, name, run, post
        self._finding = ""
        self._pause = SHORTEST_PAUSE
        self.probe: Probe | None = None
        self.is_closed = False

    def succeed(self) -> None:
        """It is ready."""
        if not self.is_closed:
            self.close()
            self._post(self.name, Ready(self.run))

    def find(self, finding: str) -> None:
        """Tell what was seen, unless it is what was seen before."""
        if not self.is_closed and finding != self._finding:
            self._finding = finding
            self._post(self.name, Unready(self.run, finding))

    def retry(self, call: Callable[[], None]) -> None:
        """Call after a pause, which is longer than the last one."""
        self.wait(self._pause, call)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def hurry(self) -> None:
        """Something has changed: pauses are short again."""
        self._pause = SHORTEST_PAUSE

    def wait(self, span: Ns, call: Callable[[], None]) -> None:
        """Set the only timer."""
        if not self.is_closed:
            self._loop.set_timer(KEY + self.name, self._loop.now() + span, call)

    def cancel(self) -> None:
        """Forget the timer."""
        self._loop.cancel_timer(KEY + self.name)

    def close(self) -> None:
        """Stop to wait."""
        if self.is_closed:
            return
        self.is_closed = True
        self.cancel()
        if self.probe is not None:
            self.probe.close()


# The ways.


class _FileProbe:
    """There is something at a path."""

    def __init__(self, prober: Prober, watcher: Watcher, path: str, title: str) -> None:
        self._prober, self._watcher, self._path, self._title = prober, watcher, path, title
        self._number = watcher.expect(path, self._look)
        self._look()

    def _look(self) -> None:
        try:
            os.stat(self._path)
        except OSError as error:
            if error.errno in _NOT_THERE:
                self._prober.find(f"{self._title} is not there")
            else:
                self._prober.find(f"{self._title}: {error.strerror}")
        else:
            self._prober.succeed()

    def close(self) -> None:
        self._watcher.remove(self._number)


class _UnixProbe:
    """Somebody listens at a socket with a path, or with an abstract name: `@NAME`."""

    def __init__(
        self,
        prober: Prober,
        watcher: Watcher,
        vantage: Vantage,
        path: str,
        title: str,
    ) -> None:
        self._prober, self._watcher, self._vantage = prober, watcher, vantage
        self._path, self._title = path, title
        self._number = 0 if path.startswith("@") else watcher.expect(path, self._on_change)
        self._try()

    def _on_change(self) -> None:
        self._prober.hurry()
        self._try()

    def _try(self) -> None:
        if self._prober.is_closed:
            return
        self._prober.cancel()
        errno = 0
        for kind in (_socket.SOCK_STREAM, _socket.SOCK_DGRAM, _socket.SOCK_SEQPACKET):
            try:
                errno = self._connect(kind)
            except OSError as error:
                errno = error.errno or 0
            if errno != EPROTOTYPE:
                break
        if errno in (0, EAGAIN):  # EAGAIN: more than it can take wait already
            self._prober.succeed()
        elif errno in _NOT_THERE and self._number:
            self._prober.find(f"{self._title} is not there")
        else:
            # No event tells when a socket that is there is listened to.
            refused = errno == ECONNREFUSED
            why = "nobody listens" if refused else os.strerror(errno)
            self._prober.find(f"{self._title}: {why}")
            self._prober.retry(self._try)

    def _connect(self, kind: int) -> int:
        sock = self._vantage.open_socket(_socket.AF_UNIX, kind)
        try:
            if self._path.startswith("@"):
                return sock.connect_ex(b"\0" + os.fsencode(self._path[1:]))
            if len(os.fsencode(self._path)) <= LONGEST_UNIX:
                return sock.connect_ex(self._path)
            path_fd = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
            try:
                return sock.connect_ex(f"/proc/self/fd/{path_fd}")
            finally:
                os.close(path_fd)
        finally:
            sock.close()

    def close(self) -> None:
        if self._number:
            self._watcher.remove(self._number)


class _TcpProbe:
    """Somebody listens at a port."""

    def __init__(self, prober: Prober, loop: Loop, vantage: Vantage, target: str) -> None:
        self._prober, self._loop, self._vantage = prober, loop, vantage
        self._target = target
        host, _, port = target.rpartition(":")
        hosts = ("127.0.0.1", "::1") if host == "localhost" else (host.strip("[]"),)
        self._addresses = [(each, int(port)) for each in hosts]
        self._next = 0
        self._socket: _socket.socket | None = None
        self._try()

    def _try(self) -> None:
        address = self._addresses[self._next]
        family = _socket.AF_INET6 if ":" in address[0] else _socket.AF_INET
        try:
            sock = self._vantage.open_socket(family, _socket.SOCK_STREAM)
            self._socket = sock
            errno = sock.connect_ex(address)
        except OSError as error:
            self._judge(error.errno or 0)
            return
        if errno != EINPROGRESS:
            self._judge(errno)
            return
        self._loop.watch(sock.fileno(), WRITE, self._on_outcome)
        self._prober.wait(CONNECT_PATIENCE, self._on_silence)

    def _on_outcome(self) -> None:
        if self._socket is not None:
            self._judge(self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR))

    def _on_silence(self) -> None:
        self._drop()
        self._fail("does not answer")

    def _judge(self, errno: int) -> None:
        sock = self._socket
        if errno == 0 and sock is not None and sock.getsockname() == sock.getpeername():
            # Where nobody listens at a port of ip_local_port_range, a socket that happens to get
            # it for its own end connects to itself. Reset, it frees the port at once.
            linger = struct_pack("ii", 1, 0)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, linger)
            errno = ECONNREFUSED
        self._drop()
        if errno == 0:
            self._prober.succeed()
        else:
            self._fail("nobody listens" if errno == ECONNREFUSED else os.strerror(errno))

    def _fail(self, why: str) -> None:
        self._prober.find(f"{self._target}: {why}")
        self._next = (self._next + 1) % len(self._addresses)
        if self._next:
            self._try()
        else:
            self._prober.retry(self._try)

    def _drop(self) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._drop()


class _ExecProbe:
    """A command ends with 0."""

    def __init__(self, prober: Prober, crew: Crew, vantage: Vantage, plan: SpawnPlan) -> None:
        self._prober, self._crew, self._vantage = prober, crew, vantage
        self._plan = plan
        self._life: Life | None = None
        self._error_fd = -1
        self._words = b""
        self._failure = ""
        self._start()

    @property
    def _title(self) -> str:
        return os.fsdecode(self._plan.argv[0].rpartition(b"/")[2] or self._plan.argv[0])

    def _start(self) -> None:
        crew = self._crew
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            null_fd = crew.null_fd
            fds = (FdSource(0, null_fd), FdSource(1, null_fd), FdSource(2, write_fd))
            plan = self._plan.replace(fds=fds)
            names = self._vantage.shared

            def spawn() -> Child:
                return crew.spawner.spawn(plan)

            child = self._vantage.within(names, spawn)
        except OSError as error:
            os.close(read_fd)
            self._fail(str(error))
            return
        finally:
            os.close(write_fd)
        self._words = b""
        self._failure = ""
        self._error_fd = native.move_high(read_fd)
        crew.loop.watch(self._error_fd, READ, self._on_words)

        def post(event: DaemonEvent) -> None:
            self._on_event(life, event)

        life = Life(crew.loop, 1, plan, child=child, leaf=None, rung="shim", post=post)
        self._life = life
        crew.children[child.pid] = life.on_exit
        self._prober.wait(EXEC_PATIENCE, self._on_silence)

    def _on_words(self) -> None:
        """Keep the first of what it says; let it say whatever it likes."""
        try:
            data = os.read(self._error_fd, 4096)
        except BlockingIOError:
            return
        if len(self._words) < WORDS_BYTES:
            self._words += data[:WORDS_BYTES]
        if not data:
            self._mute()

    def _mute(self) -> None:
        if self._error_fd >= 0:
            self._crew.loop.unwatch(self._error_fd)
            os.close(self._error_fd)
            self._error_fd = -1

    def _on_event(self, life: Life, event: DaemonEvent) -> None:
        match event:
            case SpawnFailed():
                self._failure = f"{event.step} {event.subject}: {os.strerror(event.errno)}"
            case Exited(status=status, left=left):
                if left:
                    life.kill()  # the next one, or the daemon, is not to meet it
                if life is self._life:
                    self._judge(status or 0)
                if not left:
                    self._crew.put_over(life)
            case Emptied():
                self._crew.put_over(life)
            case _:
                pass

    def _judge(self, status: int) -> None:
        if self._error_fd >= 0:
            self._on_words()
        self._mute()
        self._life = None
        if status == 0 and not self._failure:
            self._prober.succeed()
            return
        signal = status & 0x7F
        how = f"was killed by signal {signal}" if signal else f"exited with {status >> 8}"
        said = self._words.decode("utf-8", "replace").strip().partition("\n")[0]
        said = "".join(char if char.isprintable() else "?" for char in said)
        self._fail(self._failure or (f"{how}: {said}" if said else how))

    def _fail(self, why: str) -> None:
        self._prober.find(f"{self._title}: {why}")
        self._prober.retry(self._start)

    def _on_silence(self) -> None:
        self._failure = f"did not end in {EXEC_PATIENCE // SECOND} s and was killed"
        self._prober.find(f"{self._title}: {self._failure}")
        if self._life is not None:
            self._life.kill()

    def close(self) -> None:
        life, self._life = self._life, None
        self._mute()
        if life is not None:
            life.kill()


class _PipeProbe:
    """The daemon writes a newline to a descriptor that it was started with."""

    def __init__(self, prober: Prober, pipe: _Pipe, number: str) -> None:
        self._prober, self._pipe, self._number = prober, pipe, number
        pipe.on_change = self._look
        self._look()

    def _look(self) -> None:
        if self._pipe.is_ready:
            self._prober.succeed()
        elif self._pipe.is_closed:
            self._prober.find(f"it has closed descriptor {self._number} without a line")
        else:
            self._prober.find(f"nothing came over descriptor {self._number}")

    def close(self) -> None:
        self._pipe.on_change = None


class _NotifyProbe:
    """The daemon notifies; whoever listens to it posts Ready."""

    def __init__(self, prober: Prober) -> None:
        prober.find("it has not notified")

    def close(self) -> None:
        pass


class _Pipe:
    """Our end of a pipe of which a daemon has the other; closes itself when it has told."""

    __slots__ = ("_fd", "_loop", "is_closed", "is_ready", "on_change", "run")

    def __init__(self, loop: Loop, run: RunId, fd: int) -> None:
        self._loop, self.run, self._fd = loop, run, fd
        self.is_ready = self.is_closed = False
        self.on_change: Callable[[], None] | None = None
        loop.watch(fd, READ, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        self.is_ready = b"\n" in data
        if self.is_ready or not data:
            self.close()
            if self.on_change is not None:
                self.on_change()

    def close(self) -> None:
        if self._fd >= 0:
            self.is_closed = True
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1


# All of them.


class Crew:
    """What probes need of the master that they belong to."""

    __slots__ = ("children", "loop", "null_fd", "put_over", "spawner")

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        children: dict[int, Callable[[], None]],
        put_over: Callable[[Life], None],
        null_fd: int,
    ) -> None:
        """Take what it is made of.

        Args:
            loop: to wait with.
            spawner: to start commands with.
            children: whom to call when a child of the master has ended.
            put_over: releases a life after this turn.
            null_fd: /dev/null.
        """
        self.loop, self.spawner, self.children = loop, spawner, children
        self.put_over, self.null_fd = put_over, null_fd


class Launch(Record):
    """With what a daemon was started."""

    directory: str  # the master's, absolute
    environment: Environment  # of all daemons
    plan: SpawnPlan


class Probers:
    """Waits for the readiness of the daemons of one master."""

    def __init__(self, crew: Crew, post: Callable[[str, DaemonEvent], None]) -> None:
        """Wait for nothing yet; `post` takes Ready and Unready of a daemon."""
        self._crew, self._post = crew, post
        self._loop = crew.loop
        self._watcher = Watcher(crew.loop)
        self._probers: dict[str, Prober] = {}
        self._pipes: dict[str, _Pipe] = {}

    def open_pipe(self, name: str, run: RunId) -> int:
        """Return the end of a pipe for a run that is about to start; the caller closes it.

        Raises:
            OSError: out of descriptors.
        """
        self.close_pipe(name)
        # Not O_NONBLOCK on the end of the daemon, which does not expect that.
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_fd, False)
        self._pipes[name] = _Pipe(self._loop, run, native.move_high(read_fd))
        return write_fd

    def close_pipe(self, name: str) -> None:
        """Close our end of the pipe of a daemon; there need not be one."""
        pipe = self._pipes.pop(name, None)
        if pipe is not None:
            pipe.close()

    def begin(
        self,
        spec: DaemonSpec,
        run: RunId,
        pid: int,
        launch: Launch,
    ) -> None:
        """Begin to wait for a run.

        Args:
            spec: the daemon, with `ready`.
            run: of the daemon.
            pid: of its main process; 0: unknown.
            launch: what it was started with.
        """
        self.end(spec.name)
        prober = Prober(self._loop, spec.name, run, self._post)
        self._probers[spec.name] = prober
        try:
            probe = self._make(prober, spec, pid, launch)
        except (OSError, ValueError) as error:
            prober.find(str(error))
            return
        prober.probe = probe
        if prober.is_closed:  # at the first look
            probe.close()

    def _make(  # noqa: PLR0911  # a table
        self, prober: Prober, spec: DaemonSpec, pid: int, launch: Launch
    ) -> Probe:
        ready = spec.ready
        assert ready is not None, "nothing to wait for"
        target = ready.target
        place = Vantage(spec, pid)
        home = os.path.join("/" if place.has_root else launch.directory, spec.chdir or "")
        match ready.kind:
            case "file":
                path = place.locate(os.path.join(home, target))
                return _FileProbe(prober, self._watcher, path, target)
            case "unix" if target.startswith("@"):
                return _UnixProbe(prober, self._watcher, place, target, target)
            case "unix":
                path = place.locate(os.path.join(home, target))
                return _UnixProbe(prober, self._watcher, place, path, target)
            case "tcp":
                return _TcpProbe(prober, self._loop, place, target)
            case "exec":
                probe_plan = build_probe_plan(target, launch)
                return _ExecProbe(prober, self._crew, place, probe_plan)
            case "fd":
                pipe = self._pipes.get(spec.name)
                if pipe is None or pipe.run != prober.run:
                    raise KernelError("pipe", 0, spec.name, "it was started without one")
                return _PipeProbe(prober, pipe, target)
            case "notify":
                return _NotifyProbe(prober)
            case _:
                raise AssertionError(f"nothing to wait for: {ready}")

    def is_waiting(self, name: str) -> bool:
        """Return whether the readiness of a daemon is waited for."""
        return name in self._probers

    def end(self, name: str) -> None:
        """Wait no more for a daemon."""
        prober = self._probers.pop(name, None)
        if prober is not None:
            prober.close()

    def close(self) -> None:
        """Wait for nothing any more."""
        for name in list(self._probers):
            self.end(name)
        for name in list(self._pipes):
            self.close_pipe(name)
        self._watcher.close()


def build_probe_plan(text: str, launch: Launch) -> SpawnPlan:
    """Return the plan that runs a command as a daemon would run it, once, below a shim.

    Args:
        text: the command.
        launch: of the daemon.

    Raises:
        ValueError: the command cannot be read.
    """
    plan = launch.plan
    command = build_plan(plan.name, parse_command(text), launch.environment)
    variables = tuple(each for each in plan.envp if not each.startswith(_OWN_VARIABLES))
    return plan.replace(
        role=SHIM,
        programs=command.programs,
        argv=command.argv,
        envp=variables,
        new_pid_ns=False,
        own_proc=False,
        # A root and mounts of its own are made once more; what else it has is joined or shared.
        namespaces=plan.namespaces & NAMESPACES["mount"],
        hostname=None,
        log=None,
        dies_with_master=True,
    )
