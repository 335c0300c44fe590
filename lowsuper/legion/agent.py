"""The process of a master's legions: it hears the network, and has no privileges.

    python -I -m lowsuper.legion.agent

Descriptor 3 is its end of a SOCK_SEQPACKET pair, on which it and the master exchange `words`; 4
holds its `orders`. It opens its sockets, gives up everything else (`confine`), and then only
listens. It ends with 0 once it has said goodbye to all legions, and at once, with 1, when the
master's end is closed: the title then runs out by itself, in which time the guard ends the daemons.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
from errno import EAGAIN, ECONNRESET, EPIPE

import prctl

from lowsuper.errors import LowsuperError
from lowsuper.legion import libc, words
from lowsuper.legion.cipher import spare_legacy
from lowsuper.legion.confine import confine, keep_fds
from lowsuper.legion.orders import CHANNEL_FD, ORDERS_FD, decode_orders
from lowsuper.legion.udp import UdpLegion, now_boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from lowsuper.legion.orders import Orders
    from lowsuper.model import Legion
    from lowsuper.record import Record
    from lowsuper.units import Ns

    class Engine(Protocol):
        """One legion, by whichever way it elects. It has no thread before its first `wake`."""

        @property
        def is_over(self) -> bool:
            """Return whether it has left the legion for good."""

        def fileno(self) -> int:
            """Return the descriptor that is readable when `take` has something to do."""

        def take(self) -> None:
            """Do some of what there is to do."""

        def next_wake(self) -> Ns:
            """Return when `wake` has something to do, CLOCK_BOOTTIME."""

        def wake(self, now: Ns) -> None:
            """Do what it is time for."""

        def hear(self, message: Record) -> None:
            """Take what the master says."""


MOST_WAITING = 256
"""Messages that wait for a master that does not read."""

_HEARD_AT_ONCE = 16


class MasterGoneError(Exception):
    """The master has closed its end."""


class Channel:
    """The agent's end of the socketpair. What cannot be sent waits, within bounds."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a socket that does not block."""
        self._socket = sock
        self._waiting: dict[object, bytes] = {}
        self._counter = 0

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    @property
    def has_waiting(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._waiting)

    def say(self, message: Record) -> None:
        """Send a message, if not now, then later.

        Of what replaces what was said before only the last waits. If too much waits, what others
        can do without is left out; the rest is little, since who does not answer loses the title.
        """
        data = words.encode(message)
        if not self._waiting and self._send(data):
            return
        key: object = self._counter
        self._counter += 1
        if isinstance(message, words.Lease | words.Resign | words.View):
            key = (type(message), message.legion)
            self._waiting.pop(key, None)
        elif len(self._waiting) >= MOST_WAITING and _is_small_talk(message):
            return
        self._waiting[key] = data

    def flush(self) -> None:
        """Send what waits, as much as the master takes."""
        for key, data in [*self._waiting.items()]:
            if not self._send(data):
                return
            del self._waiting[key]

    def _send(self, data: bytes) -> bool:
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno == EAGAIN:
                return False
            if error.errno in (EPIPE, ECONNRESET):
                raise MasterGoneError from None
            raise
        return True

    def hear(self) -> list[Record]:
        """Return what the master has said, some of it."""
        heard = []
        for _ in range(_HEARD_AT_ONCE):
            try:
                data = self._socket.recv(words.MESSAGE_MAX)
            except OSError as error:
                if error.errno == EAGAIN:
                    break
                if error.errno == ECONNRESET:
                    raise MasterGoneError from None
                raise
            if not data:
                raise MasterGoneError
            heard.append(words.decode(data, words.FROM_MASTER))
        return heard


def _is_small_talk(message: Record) -> bool:
    if isinstance(message, words.Occurred):
        return message.event in ("node-joined", "node-left")
    return isinstance(message, words.Told)


class Agent:
    """The loop: one turn serves the master, then each legion's packets, then all timers."""

    def __init__(self, channel: Channel, engines: dict[str, Engine]) -> None:
        """Make the descriptors that are needed to wait.

        Args:
            channel: to the master.
            engines: of the legions, by their names.
        """
        self._channel, self._engines = channel, engines
        self._epoll = select.epoll()
        self._timer = libc.timerfd_create()
        self._epoll.register(self._timer, select.EPOLLIN)
        self._events = select.EPOLLIN
        self._epoll.register(channel.fileno(), self._events)
        for engine in engines.values():
            self._epoll.register(engine.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Run until all legions are over, and the master knows it.

        Raises:
            MasterGoneError: the master has closed its end.
        """
        while self._engines:
            self._turn()
        self._channel.say(words.Gone())
        while self._channel.has_waiting:
            self._wait()

    def _turn(self) -> None:
        engines = [*self._engines.items()]
        ready = self._wait(min(engine.next_wake() for _, engine in engines))
        for _, engine in engines:
            if engine.fileno() in ready:
                engine.take()
        now = now_boot()
        for name, engine in engines:
            engine.wake(now)
            if engine.is_over:
                self._epoll.unregister(engine.fileno())
                del self._engines[name]

    def _wait(self, until: Ns | None = None) -> set[int]:
        """Wait for an event; see to the channel; return what is readable."""
        if until is not None:
            libc.timerfd_settime(self._timer, until)
        events = select.EPOLLIN | (select.EPOLLOUT if self._channel.has_waiting else 0)
        if events != self._events:
            self._events = events
            self._epoll.modify(self._channel.fileno(), events)
        ready = dict(self._epoll.poll())
        told = ready.pop(self._channel.fileno(), 0)
        if told & ~select.EPOLLOUT:
            for message in self._channel.hear():
                self._pass(message)
        if told & select.EPOLLOUT:
            self._channel.flush()
        return set(ready)

    def _pass(self, message: Record) -> None:
        legion = getattr(message, "legion", None)
        for name, engine in self._engines.items():
            if legion in (None, name):
                engine.hear(message)


def read_orders() -> Orders:
    """Return the orders, and close their descriptor."""
    with open(ORDERS_FD, "rb") as file:
        return decode_orders(file.read())


def make_engine(legion: Legion, orders: Orders, patience: Ns, channel: Channel) -> Engine:
    """Return what elects in a legion; see UdpLegion."""
    if legion.etcd is not None:
        from lowsuper.legion.etcd import EtcdLegion  # its client takes long to import

        return EtcdLegion(legion, orders.name, patience, channel.say)
    return UdpLegion(legion, orders.name, orders.pid, patience, channel.say)


def prepare(channel: Channel, orders: Orders) -> Agent:
    """Open what is needed, and give up the rest.

    Raises:
        LowsuperError: it cannot be done; the master has been told.
    """
    spare_legacy(legion.cipher for legion in orders.legions)
    engines = {}
    for legion, patience in zip(orders.legions, orders.patience, strict=True):
        try:
            engines[legion.name] = make_engine(legion, orders, patience, channel)
        except LowsuperError as error:
            channel.say(words.Told(legion.name, str(error)))
            raise
    agent = Agent(channel, engines)
    threads = any(legion.etcd is not None for legion in orders.legions)

    def tell(problem: str) -> None:
        channel.say(words.Told(orders.legions[0].name, f"of its agent: {problem}"))

    try:
        problems = confine(orders.uid, orders.gid, threads=threads)
    except LowsuperError as error:
        tell(str(error))
        raise
    for problem in problems:
        tell(problem)
    return agent


def main() -> int:
    """Be the agent; return the exit code."""
    # They are for the master, which then says what is to be done; a terminal, or a manager of
    # services, sends them to all.
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signo, signal.SIG_IGN)
    keep_fds((0, 1, 2, CHANNEL_FD, ORDERS_FD))
    orders = read_orders()
    sock = socket.socket(fileno=CHANNEL_FD)
    sock.setblocking(False)
    channel = Channel(sock)
    prctl.set_name("lowsuper-legion")
    try:
        prepare(channel, orders).run()
    except (MasterGoneError, LowsuperError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
