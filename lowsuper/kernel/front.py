"""The process of `run FILE -- COMMAND`: it has the terminal, and is the one that was called.

Below it are the master, in a session of its own and with our standard error as its output, and the
command with its parent: see `kernel.foreground`. It is a subreaper (or the first process of a
container) and reaps whatever loses its parent. `lowsuper.foreground` decides.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes long to import
import _socket
import os
import sys
from select import POLLIN, poll
from time import monotonic

from lowsuper import foreground
from lowsuper.errors import KernelError, assert_never
from lowsuper.foreground import (
    AllReady,
    CommandEnded,
    FinishFront,
    Front,
    FrontSignalled,
    GivenUp,
    MasterEnded,
    MasterStopping,
    NotReady,
    PatienceOver,
    RunCommand,
    SayFront,
    SetPatience,
    SignalCommand,
    StopMaster,
    Sweep,
    Swept,
)
from lowsuper.kernel import mount, native, process
from lowsuper.kernel.foreground import Job, attend, list_children
from lowsuper.kernel.loop import READ, Loop
from lowsuper.kernel.spawn import wait_readable
from lowsuper.kernel.teller import PACKET, Teller
from lowsuper.units import SECOND, Ns, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Never

    from lowsuper.foreground import Action, Event
    from lowsuper.kernel.parent import Relay

EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 125, 126, 127
LATE, PATIENCE = "late", "patience"
GRACE: Ns = 2 * SECOND
"""How much later than the master we find out that not all is ready: it can say what is not."""
SWEEPS = ((1.0, 0), (2.0, _signal.SIGTERM), (2.0, _signal.SIGKILL))
"""Seconds to wait for what is left, after a signal to it: the guard of the master needs none."""


class Stage:
    """Runs a command with daemons around it."""

    def __init__(
        self,
        command: list[str],
        serve: Callable[[Teller], int],
        *,
        timeout: Ns | None,
        strict: bool,
        keep: str | None,
    ) -> None:
        """Start nothing yet.

        Args:
            command: its words.
            serve: is the master, in a child of ours; returns its exit code.
            timeout: how long the daemons may take to be ready; None: any time.
            strict: a daemon that is given up ends the command.
            keep: an absolute path of a directory for what daemons write, and why they failed.
        """
        self._command, self._serve = command, serve
        self._timeout, self._strict, self._keep = timeout, strict, keep
        self._state = Front()
        self._queue: list[Event] = []
        self._code: int | None = None
        self._usher = 0
        self._is_up = self._is_jailed = self._was_stopped = False

    def run(self) -> int:
        """Run it all; return the exit code."""
        native.set_child_subreaper()
        # What the caller wants ignored (see nohup(1)) comes nevertheless, as it is blocked.
        self._ignored = [n for n in foreground.ENDING if _signal.getsignal(n) == _signal.SIG_IGN]
        self._job = Job(_signal.SIGCHLD)
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self._relay = open_relay()
        front = os.getpid()
        self._master = os.fork()
        if self._master == 0:
            ours.close()
            self._be_master(theirs.fileno(), front)
        theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self._loop = Loop()
        self._loop.watch(self._job.signal_fd, READ, self._on_signals)
        self._loop.watch(ours.fileno(), READ, self._on_packets)
        if self._relay is not None:
            self._relay.attach(self._master, self._loop, say)
        if self._timeout is not None:
            at = Ns(self._loop.now() + self._timeout + GRACE)
            self._loop.set_timer(LATE, at, self._on_late)
        while self._code is None:
            self._loop.run_turn(self._settle)
        if self._relay is not None:
            self._relay.close(self._code)
        self._loop.close()
        self._channel.close()
        self._job.close()
        return self._code

    def _be_master(self, channel_fd: int, front: int) -> Never:
        """Be the master, away from the terminal; its output is our standard error."""
        code = EXIT_FAILED
        try:
            os.setsid()
            self._job.close()
            null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null_fd, 0)
            os.close(null_fd)
            os.dup2(2, 1)
            if self._relay is not None:
                self._relay.equip(os.environ, front)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._job.mask)
            code = self._serve(Teller(channel_fd, self._timeout, self._keep))
            if sys.stdout is not None:
                sys.stdout.flush()
        finally:
            os._exit(code)

    def _settle(self) -> None:
        while self._queue:
            event = self._queue.pop(0)
            self._state, actions = foreground.step(self._state, event, strict=self._strict)
            for action in actions:
                self._perform(action)

    # Events.

    def _on_late(self) -> None:
        if self._state.phase == foreground.WAITING:
            assert self._timeout is not None
            say(f"not ready after {format_duration(self._timeout)}")
        self._queue.append(NotReady())

    def _on_signals(self) -> None:
        for number in native.signalfd_read(self._job.signal_fd):
            if number == _signal.SIGCHLD:
                self._reap()
            elif number in (_signal.SIGCONT, _signal.SIGTSTP):
                self._pass_on(number)
            elif number not in self._ignored:
                self._queue.append(FrontSignalled(number))

    def _pass_on(self, number: int) -> None:
        if self._usher:
            self._job.pass_on(number)
        elif number == _signal.SIGTSTP:
            self._job.stop_here(number)

    def _reap(self) -> None:
        """Reap all that has ended; some are orphans that were handed to us."""
        while (pid := process.peek_child()) != 0:
            _, status = os.waitpid(pid, os.WNOHANG)
            if pid == self._master:
                self._on_packets()
                self._loop.unwatch(self._channel.fileno())
                self._queue.append(MasterEnded(to_code(status)))

    def _on_packets(self) -> None:
        """Take what the master says."""
        while True:
            try:
                packet = self._channel.recv(PACKET)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue
            if not packet:
                self._loop.unwatch(self._channel.fileno())  # it ends, which is told otherwise
                return
            self._take(packet.decode("utf-8", "surrogateescape").split("\0"))

    def _take(self, words: list[str]) -> None:
        match words:
            case ["up"]:
                self._is_up = True
            case ["jailed"]:
                self._is_up = self._is_jailed = True
            case ["ready"]:
                self._loop.cancel_timer(LATE)
                self._queue.append(AllReady())
            case ["not-ready", name, why]:
                self._tell(name, f"{name} is not ready: {why}", why)
            case ["refused", why]:
                if why:
                    say(why)
                self._queue.append(NotReady())
            case ["given-up", name, why]:
                self._tell(name, f"{name} was given up: {why}", why)
                self._queue.append(GivenUp(name))
            case ["stopping"]:
                self._queue.append(MasterStopping())
            case _:
                raise AssertionError(f"the master said {words}")

    def _tell(self, name: str, text: str, why: str) -> None:
        """Say, and keep, why a daemon is not as it should be."""
        say(text)
        if self._keep is None:
            return
        path = f"{self._keep}/{name}.why"
        try:
            with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{name}: {why}\n")
        except OSError as error:
            say(f"{path}: {error.strerror}")

    def _on_usher(self) -> None:
        """Take what the command's parent says; at its end the command has ended."""
        if self._job.take_packet():
            return
        self._loop.unwatch(self._usher)
        self._usher = 0
        self._loop.cancel_timer(PATIENCE)
        status = self._job.end()
        if status is None:
            say("what looks after the command has ended, and the command with it")
        self._queue.append(CommandEnded(EXIT_FAILED if status is None else to_code(status)))

    # Actions.

    def _perform(self, action: Action) -> None:
        match action:
            case RunCommand():
                _, channel = self._job.begin(self._start)
                self._usher = channel.fileno()
                self._loop.watch(self._usher, READ, self._on_usher)
            case SignalCommand(signal=signal):
                if self._usher:
                    self._job.pass_on(signal)
            case SetPatience(after=after):
                at = Ns(self._loop.now() + after)
                self._loop.set_timer(PATIENCE, at, lambda: self._queue.append(PatienceOver()))
            case StopMaster(now=now):
                self._stop_master(now=now)
            case Sweep():
                self._queue.append(Swept(self._sweep()))
            case SayFront(text=text):
                say(text)
            case FinishFront(code=code):
                self._code = code
            case _:
                assert_never(action)

    def _stop_master(self, *, now: bool) -> None:
        if not self._is_up:
            os.kill(self._master, _signal.SIGTERM)  # it is ours, and not reaped
        elif self._is_jailed:
            # The second ends the daemons, the third the jail; two of the same number are one.
            numbers = [_signal.SIGQUIT] if self._was_stopped else [_signal.SIGINT]
            if now and not self._was_stopped:
                numbers.append(_signal.SIGQUIT)
            for number in numbers:
                os.kill(self._master, number)
        else:
            try:
                self._channel.send(b"kill" if now else b"stop")
            except OSError:
                return  # Race: it is dead, which is told next.
        self._was_stopped = True

    def _sweep(self) -> bool:
        """End what is left below us; return whether nothing is."""
        poller = poll()
        poller.register(self._job.signal_fd, POLLIN)
        for patience, number in SWEEPS:
            end = monotonic() + patience
            if number == _signal.SIGTERM:
                names = ", ".join(map(describe, list_children()))
                say(f"the command has left behind what is ended now: {names}")
            while True:
                if reap_all():
                    return True
                if number:
                    for pid in list_children():
                        os.kill(pid, number)  # a child's number is its own until we reap it
                        os.kill(pid, _signal.SIGCONT)
                left = end - monotonic()
                if left <= 0 or not poller.poll(left * 1000):
                    break
                native.signalfd_read(self._job.signal_fd)
        if reap_all():
            return True
        say(f"could not be ended: {', '.join(map(describe, list_children()))}")
        return False

    # The command.

    def _start(self, channel_fd: int) -> Never:
        """Be the command's parent."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        native.set_child_subreaper()
        own_pidfd = os.pidfd_open(os.getpid())
        pid = os.fork()
        if pid == 0:
            self._become(own_pidfd)
        # Of what we hold, the end tells others that the process in front is dead.
        native.close_range(3, channel_fd - 1)
        native.close_range(channel_fd + 1)
        # In a group of its own, out of reach of what the user's shell does to the job.
        os.setpgid(0, 0)
        attend(pid, channel_fd, sweeps=True)

    def _become(self, parent_fd: int) -> Never:
        try:
            os.setpgid(0, 0)
            if self._job.in_front:
                os.tcsetpgrp(0, os.getpid())
            mount.set_parent_death_signal(_signal.SIGKILL)
            # Race: it was killed before that.
            if wait_readable(parent_fd, 0):
                os._exit(EXIT_FAILED)
            for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._job.mask)
            execute(self._command)
        finally:
            os._exit(EXIT_FAILED)


def open_relay() -> Relay | None:
    """Return what passes on to our service manager what the master tells; None: there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return None
    from lowsuper.kernel.parent import Relay

    try:
        return Relay(address)
    except KernelError:
        return None  # the master says so


def execute(command: list[str]) -> Never:
    """Execute a command; if that fails, say why, and end as env(1) does."""
    try:
        os.execvp(command[0], command)  # noqa: S606  # no shell is wanted
    except (FileNotFoundError, NotADirectoryError) as error:
        say(f"{command[0]}: {error.strerror}")
        os._exit(EXIT_NOT_FOUND)
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")
        os._exit(EXIT_NOT_EXECUTABLE)


def reap_all() -> bool:
    """Reap all children that have ended; return whether there is none left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if not pid:
            return False


def to_code(status: int) -> int:
    """Return what a shell would call this wait status."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def describe(pid: int) -> str:
    """Return a process in words."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read().strip()})"
    except (FileNotFoundError, ProcessLookupError):
        return f"pid {pid}"


def say(text: str) -> None:
    """Tell the operator."""
    try:
        os.write(2, f"lowsuper: run: {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody is there to read it
