"""What lowsuper tells whoever has started it, by sd_notify(3): ready, reloading, stopping, alive.

Made only where NOTIFY_SOCKET is set. Its variables are never those of a daemon or a hook. Nothing
waits here: what cannot be sent now is sent a little later.
"""

from __future__ import annotations

import _socket
import os
from errno import EAGAIN, EINVAL, ENOBUFS

from lowsuper.errors import KernelError
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowsuper.kernel.loop import Loop
    from lowsuper.units import Ns

BOOTING, READY, RELOADING, STOPPING = "booting", "ready", "reloading", "stopping"

KEY, WATCHDOG_KEY = "parent\0", "parent\0watchdog"  # of timers
PAUSE: Ns = SECOND // 10
MOST_WAITING = 16
_LATER = (EAGAIN, ENOBUFS)


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
        if address[:1] not in ("/", "@") or len(address) < 2:
            raise KernelError("NOTIFY_SOCKET", EINVAL, address)
        name = os.fsencode(address)
        self._address = b"\0" + name[1:] if name.startswith(b"@") else name
        self._interval, self._pid = interval, pid
        self._phase = BOOTING
        self._waiting: list[bytes] = []
        self._has_failed = False
        self._loop: Loop
        self._say: Callable[[str], None]
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)

    def attach(self, loop: Loop, say: Callable[[str], None]) -> None:
        """Begin with the signs of life.

        Args:
            loop: which they show to be alive; its callbacks send what has to wait.
            say: tells the operator a line.
        """
        self._loop, self._say = loop, say
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
                self._send(b"READY=1" + main + b"\nSTATUS=" + text)
            case "reloading":
                at = self._loop.now() // 1000
                self._send(b"RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=%s" % (at, text))
            case "stopping":
                self._send(b"STOPPING=1\nSTATUS=" + text)
            case _:
                pass

    def close(self, code: int) -> None:
        """Tell the exit code, as the first process of a container does, and close the socket."""
        if os.getpid() == 1:
            self._send(b"EXIT_STATUS=%d" % code)
        self._loop.cancel_timer(KEY)
        self._loop.cancel_timer(WATCHDOG_KEY)
        self._socket.close()

    def _feed(self) -> None:
        self._send(b"WATCHDOG=1")
        self._loop.set_timer(WATCHDOG_KEY, self._loop.now() + self._interval, self._feed)

    def _send(self, text: bytes) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(text)
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            try:
                self._socket.sendto(self._waiting[0], _socket.MSG_NOSIGNAL, self._address)
            except OSError as error:
                if error.errno in _LATER:
                    self._loop.set_timer(KEY, self._loop.now() + PAUSE, self._flush)
                    return
                if not self._has_failed:
                    self._has_failed = True
                    name = os.fsdecode(self._address).replace("\0", "@", 1)
                    self._say(str(KernelError("sendto", error.errno or 0, name)))
            del self._waiting[0]


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
