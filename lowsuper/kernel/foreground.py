"""A command elsewhere as the job that the user's shell knows: terminal, signals, exit status.

No second terminal is made: the command runs on the caller's own, in a process group of its own,
which is put into the foreground while we would be there. What the terminal sends (^C, ^Z, a new
window size) goes to it without us; what is sent to us is passed on; when it stops, we take the
terminal back and stop, too, so that the user's shell takes over, and go on when we are continued.

`Job` is the side of the process that was called, `attend` that of its child which is the command's
parent. They talk over a SEQPACKET socketpair: `started PID`, `stopped SIGNAL` and `ended STATUS`
one way, the number of a signal for the command's process group the other way. When the first has
ended, the command is hung up on, and killed if that does not help.

See credentials(7), "job control"; tcsetpgrp(3); termios(3).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes long to import
import _socket
import os
from select import POLLIN, poll

from lowsuper.kernel import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Never

HANG_UP_MS = 2000  # how long a command may take to end when nobody is there any more
EXIT_FAILED = 125
_PACKET = 64
_STOPS = (_signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU)
_PASSED = (
    *(_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM),
    *(_signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGTSTP),
)


# The child.


def attend(pid: int, channel_fd: int, *, sweeps: bool = False) -> Never:
    """Look after our child `pid`, with all signals blocked, until it has ended; then end.

    Args:
        pid: the command.
        channel_fd: our end.
        sweeps: we are a subreaper, so that what the command leaves behind comes to us. It is
            killed if nobody is there any more to whom it goes next.
    """
    signal_fd = native.signalfd_create((_signal.SIGCHLD,))
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, fileno=channel_fd)
    _tell(channel, f"started {pid}")
    poller = poll()
    poller.register(channel_fd, POLLIN)
    poller.register(signal_fd, POLLIN)
    is_alone, patience = False, -1
    while True:
        ready = [fd for fd, _ in poller.poll(patience)]
        if not ready:
            _signal_group(pid, _signal.SIGKILL)
        if signal_fd in ready:
            native.signalfd_read(signal_fd)
            _reap(pid, channel, sweeps=sweeps and is_alone)
        if channel_fd in ready and not is_alone:
            try:
                packet = channel.recv(_PACKET)
            except ConnectionResetError:
                packet = b""  # it died before it had read all that we said
            if packet:
                _signal_group(pid, int(packet))
                continue
            is_alone, patience = True, HANG_UP_MS
            poller.unregister(channel_fd)
            _signal_group(pid, _signal.SIGHUP)
            _signal_group(pid, _signal.SIGCONT)


def _reap(pid: int, channel: _socket.socket, *, sweeps: bool) -> None:
    while True:
        found, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if not found:
            return
        if found != pid:
            continue  # an orphan that was handed to us
        if not os.WIFSTOPPED(status):
            _tell(channel, f"ended {status}")
            if sweeps:
                _kill_rest()
            os._exit(0)
        _tell(channel, f"stopped {os.WSTOPSIG(status)}")


def _kill_rest() -> None:
    """SIGKILL our children, and theirs, which become ours then, until none is left."""
    while pids := list_children():
        for pid in pids:
            os.kill(pid, _signal.SIGKILL)  # a child's number is its own until we reap it
            os.waitpid(pid, 0)


def list_children() -> list[int]:
    """Return the children of this process, which has one thread; [] where /proc does not tell.

    See proc_pid_task_tid_children(5); Linux 3.5, and CONFIG_PROC_CHILDREN.
    """
    pid = os.getpid()
    try:
        if os.readlink("/proc/self") != str(pid):
            return []  # it is of another pid namespace
        with open(f"/proc/self/task/{pid}/children", "rb") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return []


def _signal_group(pid: int, signal: int) -> None:
    # The number is its own until we reap it. It, and not the group, before it has made that.
    try:
        os.killpg(pid, signal)
    except ProcessLookupError:
        os.kill(pid, signal)


def _tell(channel: _socket.socket, text: str) -> None:
    try:
        channel.send(text.encode())
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody is there any more, which `attend` finds out


# The process that was called.


class Job:
    """Stands for a command that is to run: the parent's side."""

    def __init__(self, *more: int) -> None:
        """Begin to take the signals, these too; look at the terminal."""
        self.mask: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self.signal_fd = native.signalfd_create((*_PASSED, _signal.SIGCONT, *more))
        # To give the terminal away from the background, and for `stop_here`.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _STOPS)
        self._channel: _socket.socket | None = None
        self._command = 0
        try:
            self._terminal_fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._terminal_fd = -1  # there is none, and so no jobs
        self.in_front = self._is_lent = False  # until the command begins
        self._modes: list[int | list[bytes | int]] | None = None
        self._status: int | None = None

    def _is_interactive(self) -> bool:
        """Return whether the command is to have the terminal from the beginning.

        Not in a pipeline, whose other members may want it; it gets it when it asks for it.
        """
        if not (os.isatty(0) and os.isatty(1)):
            return False
        try:
            return os.tcgetpgrp(0) == os.getpgrp()
        except OSError:
            return False  # it is not that of our session

    def run(self, start: Callable[[int], Never]) -> int | None:
        """Run the command; return its raw wait status; None: it could not be started.

        Args:
            start: run in a child of ours; it is given its end of the channel for `attend`.
        """
        pid, channel = self.begin(start)
        try:
            self._wait(channel)
        finally:
            self.end()
            os.waitpid(pid, 0)
        return self._status

    def begin(self, start: Callable[[int], Never]) -> tuple[int, _socket.socket]:
        """Start the command as `run` does; return the child's pid and our end of the channel.

        The caller calls `take_packet` whenever that is readable, then `end`, and reaps the child.
        """
        self.in_front = self._is_lent = self._is_interactive()
        self._modes = self._read_modes() if self.in_front else None
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                start(theirs.fileno())
            finally:
                os._exit(EXIT_FAILED)
        theirs.close()
        self._channel = ours
        return pid, ours

    def end(self) -> int | None:
        """Have the terminal again; return the raw wait status, or None, as `run` does."""
        assert self._channel is not None
        self._channel.close()
        self._channel = None
        self._take_terminal()
        if self._status is not None and os.WIFSIGNALED(self._status):
            self._restore_modes()
        return self._status

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.signal_fd)
        if self._terminal_fd >= 0:
            os.close(self._terminal_fd)

    def _wait(self, channel: _socket.socket) -> None:
        poller = poll()
        poller.register(channel.fileno(), POLLIN)
        poller.register(self.signal_fd, POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if channel.fileno() in ready and not self.take_packet():
                return
            if self.signal_fd in ready:
                for number in native.signalfd_read(self.signal_fd):
                    self.pass_on(number)

    def take_packet(self) -> bool:
        """Take what the command's parent says; return False when it has ended."""
        assert self._channel is not None
        try:
            packet = self._channel.recv(_PACKET)
        except ConnectionResetError:
            return True  # it ended before it had read all that we said; what it said comes next
        if packet:
            self._take(packet.decode())
        return bool(packet)

    def _take(self, packet: str) -> None:
        word, number = packet.split()
        match word:
            case "started":
                self._command = int(number)
            case "ended":
                self._status = int(number)
            case "stopped":
                self._on_stop(int(number))
            case _:
                raise AssertionError(packet)

    def pass_on(self, signal: int) -> None:
        """Send the command's process group a signal that was sent to us."""
        # As when we began: a pipeline keeps the terminal until it is asked for it.
        if signal == _signal.SIGCONT and self.in_front and self._is_in_foreground():
            self._lend_terminal()
        self._send(signal)

    def _send(self, signal: int) -> None:
        assert self._channel is not None
        try:
            self._channel.send(b"%d" % signal)
        except (BrokenPipeError, ConnectionResetError):
            return  # Race: it has ended, which is told next.

    def _on_stop(self, signal: int) -> None:
        """Stop as the command has; return when we have been continued, or could not stop."""
        if self._terminal_fd < 0:
            return  # whoever stopped it without a terminal continues it
        wants_terminal = signal in (_signal.SIGTTIN, _signal.SIGTTOU)
        if wants_terminal and not self._is_lent and self._is_in_foreground():
            self._lend_terminal()
            self._send(_signal.SIGCONT)
            return
        self._take_terminal()
        if self.stop_here(signal if signal in _STOPS else _signal.SIGTSTP):
            return  # that we were continued is told by the signal descriptor
        # We are in an orphaned group, which the kernel does not stop: there is no shell to come
        # back to.
        if wants_terminal and not self._is_in_foreground():
            self._send(_signal.SIGHUP)
        elif self.in_front:
            self._lend_terminal()
        self._send(_signal.SIGCONT)

    def stop_here(self, signal: int) -> bool:
        """Stop our whole job; return whether we were stopped and are continued."""
        os.kill(0, signal)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (signal,))  # here time passes
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (signal,))
        return _signal.SIGCONT in _signal.sigpending()

    # The terminal. It may be hung up at any time: what cannot be had then is not missed.

    def _is_in_foreground(self) -> bool:
        try:
            return self._terminal_fd >= 0 and os.tcgetpgrp(self._terminal_fd) == os.getpgrp()
        except OSError:
            return False

    def _lend_terminal(self) -> None:
        self._is_lent = self._set_foreground(self._command)

    def _take_terminal(self) -> None:
        if self._is_lent:
            self._is_lent = False
            self._set_foreground(os.getpgrp())

    def _set_foreground(self, group: int) -> bool:
        try:
            os.tcsetpgrp(self._terminal_fd, group)
        except OSError:
            return False
        return True

    def _read_modes(self) -> list[int | list[bytes | int]] | None:
        import termios

        try:
            return termios.tcgetattr(0)
        except termios.error:
            return None

    def _restore_modes(self) -> None:
        """Undo what a command that was killed has done to the terminal."""
        import termios

        if self._modes is not None:
            try:
                termios.tcsetattr(0, termios.TCSADRAIN, self._modes)
            except termios.error:
                return  # it is hung up
