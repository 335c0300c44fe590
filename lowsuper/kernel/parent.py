"""What lowsuper tells whoever has started it, by sd_notify(3): ready, reloading, stopping, alive.

Made only where NOTIFY_SOCKET is set. Its variables are never those of a daemon or a hook. Nothing
waits here: what cannot be sent now is sent a little later.
"""

from __future__ import annotations

import _socket
import os
from errno import EAGAIN, EINVAL, ENOBUFS

from lowsuper.errors import KernelError
from lowsuper.kernel.loop import READ
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from lowsuper.kernel.loop import Loop
    from lowsuper.units import Ns

BOOTING, READY, RELOADING, STOPPING = "booting", "ready", "reloading", "stopping"

KEY, WATCHDOG_KEY, RELAY_KEY = "parent\0", "parent\0watchdog", "parent\0relay"  # of timers
PAUSE: Ns = SECOND // 10
MOST_WAITING = 16
MOST_BYTES = 8192
SCM_CREDENTIALS = 2  # see unix(7)
_LATER = (EAGAIN, ENOBUFS)


class Outbox:
    """Sends messages to a service manager; what cannot be sent now waits a little."""

    def __init__(self, address: str, key: str) -> None:
        """Open a socket of our own.

        Args:
            address: of NOTIFY_SOCKET.
            key: of the timer.

        Raises:
            KernelError: it is no address that can be used.
        """
        if address[:1] not in ("/", "@") or len(address) < 2:
            raise KernelError("NOTIFY_SOCKET", EINVAL, address)
        name = os.fsencode(address)
        self._address = b"\0" + name[1:] if name.startswith(b"@") else name
        self._key = key
        self._waiting: list[bytes] = []
        self._has_failed = False
        self._loop: Loop
        self._say: Callable[[str], None]
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)

    def attach(self, loop: Loop, say: Callable[[str], None]) -> None:
        """Take whose callbacks send what has to wait, and who tells the operator a line."""
        self._loop, self._say = loop, say

    def close(self) -> None:
        """Close the socket."""
        self._loop.cancel_timer(self._key)
        self._socket.close()

    def send(self, text: bytes) -> None:
        """Send a message, now or a little later."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(text)
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._socket.sendto(self._waiting[0], _socket.MSG_NOSIGNAL, self._address)
            except OSError as error:
                if error.errno in _LATER:
                    self._loop.set_timer(self._key, self._loop.now() + PAUSE, self._flush)
                    return
                if not self._has_failed:
                    self._has_failed = True
                    name = os.fsdecode(self._address).replace("\0", "@", 1)
                    self._say(str(KernelError("sendto", error.errno or 0, name)))
            del self._waiting[0]


class Parent:
    """Tells a service manager what becomes of this master."""

    def __init__(self, address: str, *, interval: Ns, pid: int) -> None:
        """Take an address, and open a socket of our own.

        Args:
            address: of NOTIFY_SOCKET.
            interval: between two signs of life; 0: none are wanted.
            pid: of the process that is to be looked after now; 0: the one that was started.

        Raises:
            KernelError: it is no address that can be used.
        """
        self._outbox = Outbox(address, KEY)
        self._interval, self._pid = interval, pid
        self._phase = BOOTING
        self._loop: Loop

    def attach(self, loop: Loop, say: Callable[[str], None]) -> None:
        """Begin with the signs of life.

        Args:
            loop: which they show to be alive; its callbacks send what has to wait.
            say: tells the operator a line.
        """
        self._loop = loop
        self._outbox.attach(loop, say)
        if self._interval:
            self._feed()

    def follow(self, phase: str, status: Callable[[], str]) -> None:
        """Tell a phase, one of the four, unless it was told last.

        Args:
            phase: the one of the master now.
            status: gives a line about it.
        """
        if phase == self._phase:
            return
        self._phase = phase
        text = os.fsencode(status().replace("\n", " "))
        match phase:
            case "ready":
                main = b"\nMAINPID=%d" % self._pid if self._pid else b""
                self._outbox.send(b"READY=1" + main + b"\nSTATUS=" + text)
            case "reloading":
                at = self._loop.now() // 1000
                self._outbox.send(b"RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=%s" % (at, text))
            case "stopping":
                self._outbox.send(b"STOPPING=1\nSTATUS=" + text)
            case _:
                pass

    def close(self, code: int) -> None:
        """Tell the exit code, as the first process of a container does, and close the socket."""
        if os.getpid() == 1:
            self._outbox.send(b"EXIT_STATUS=%d" % code)
        self._loop.cancel_timer(WATCHDOG_KEY)
        self._outbox.close()

    def _feed(self) -> None:
        self._outbox.send(b"WATCHDOG=1")
        self._loop.set_timer(WATCHDOG_KEY, self._loop.now() + self._interval, self._feed)


def open_parent(
    environ: Mapping[str, str], loop: Loop, say: Callable[[str], None], *, in_background: bool
) -> Parent | None:
    """Return what tells our service manager of us; None: there is none, or it cannot be told.

    Args:
        environ: the variables that we were started with.
        loop: whose callbacks send what has to wait, and which the signs of life show to be alive.
        say: tells the operator a line.
        in_background: we are a child of the process that was started.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return None
    pid = os.getpid()
    span, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    wanted = span.isdigit() and len(span) < 20 and (in_background or whose in ("", str(pid)))
    # Half of what is allowed, as sd_watchdog_enabled(3) recommends.
    interval = max(int(span) * 1000 // 2, SECOND // 1000) if wanted and int(span) else 0
    try:
        parent = Parent(address, interval=interval, pid=pid if in_background else 0)
    except OSError as error:
        say(f"{error}; nobody is told when this master is ready")
        return None
    parent.attach(loop, say)
    return parent


class Relay:
    """Passes on what a master tells that is a child of the process which was started.

    A service manager may believe only the process that it has started (NotifyAccess=main of
    systemd.service(5)), and knows the sender of a message from the kernel. So the master is given
    a socket of ours, where nobody but the master is believed.
    """

    def __init__(self, address: str) -> None:
        """Open the socket.

        Args:
            address: of NOTIFY_SOCKET.

        Raises:
            KernelError: it is no address that can be used.
        """
        self._outbox = Outbox(address, RELAY_KEY)
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        self._socket.bind(b"")  # the kernel chooses a name: see unix(7)
        self._loop: Loop
        self._pid = 0

    def equip(self, environ: MutableMapping[str, str], parent: int) -> None:
        """Have the variables of this process, the master, lead to the relay.

        Args:
            environ: the variables.
            parent: the process that was started.
        """
        name: bytes = self._socket.getsockname()
        environ["NOTIFY_SOCKET"] = "@" + name[1:].decode()
        if environ.get("WATCHDOG_PID") == str(parent):
            environ["WATCHDOG_PID"] = str(os.getpid())

    def attach(self, pid: int, loop: Loop, say: Callable[[str], None]) -> None:
        """Begin to pass on what the master, `pid`, says."""
        self._pid, self._loop = pid, loop
        self._outbox.attach(loop, say)
        loop.watch(self._socket.fileno(), READ, self.take)

    def take(self) -> None:
        """Pass on all that has come."""
        while True:
            try:
                text, about, _, _ = self._socket.recvmsg(MOST_BYTES, _socket.CMSG_SPACE(12))
            except BlockingIOError:
                return
            senders = [data[:4] for _, kind, data in about if kind == SCM_CREDENTIALS]
            if [int.from_bytes(sender, "little") for sender in senders] == [self._pid]:
                self._outbox.send(text)

    def close(self, code: int) -> None:
        """Pass on the last; tell the exit code, as the first process of a container does."""
        self.take()
        if os.getpid() == 1:
            self._outbox.send(b"EXIT_STATUS=%d" % code)
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._outbox.close()
