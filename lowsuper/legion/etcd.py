"""One legion that elects by etcd: carries out what `claim` decides.

Requests block, and so threads make them, one for each lane of `claim`. A thread whose answer is not
waited for any more is left to itself, and ends once its request has: none of this holds up the
loop. The threads hand their answers over in a queue, and make a descriptor readable.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from urllib.parse import urlsplit

from lowsuper.errors import UnsupportedError
from lowsuper.legion import claim, claim_states, states, words
from lowsuper.legion.claim_states import WATCH
from lowsuper.legion.udp import MOST_SCROLL, SHOW_EVERY, make_uuid, now_boot
from lowsuper.units import Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.legion.claim_states import Answer, Ask, Flight, Rules
    from lowsuper.legion.gateway import Gateway
    from lowsuper.model import Legion
    from lowsuper.record import Record

MOST_THREADS = 12
"""Of a legion, those that wait for an answer nobody waits for included."""

_FOR_WATCHES = 6  # so many of them; then what matters more has the rest


def make_rules(legion: Legion, name: str, patience: Ns) -> Rules:
    """Return what the election has to know; see `EtcdLegion`."""
    assert legion.etcd is not None, "etcd elects"
    fits = len(legion.scroll.encode("utf-8", "surrogateescape")) <= MOST_SCROLL
    return claim_states.Rules(
        legion=legion.name,
        valor=legion.valor,
        name=name,
        uuid=make_uuid(),
        servers=legion.etcd.servers,
        ttl=legion.etcd.ttl,
        patience=patience,
        suspension=legion.death_on_lord_error,
        scroll=legion.scroll if fits else "",
    )


class Worker:
    """A thread that makes one request after the other."""

    def __init__(self, gateway: Gateway, put: Callable[[Answer], None]) -> None:
        """Start it.

        Args:
            gateway: its own, which it closes.
            put: is given the answers, in the thread.
        """
        self.is_idle = True
        self._requests: SimpleQueue[Flight | None] = SimpleQueue()
        self._gateway, self._put = gateway, put
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is still there."""
        return self._thread.is_alive()

    def send(self, flight: Flight) -> None:
        """Have it make a request; it is idle."""
        self.is_idle = False
        self._requests.put(flight)

    def leave(self) -> None:
        """Have it end after what it is about."""
        self._requests.put(None)

    def _run(self) -> None:
        while True:
            flight = self._requests.get()
            if flight is None:
                break
            answer = self._gateway.carry_out(flight)
            self.is_idle = True
            self._put(answer)
        self._gateway.close()


class EtcdLegion:
    """A legion, its threads, and the state of the election."""

    def __init__(
        self, legion: Legion, node: str, patience: Ns, say: Callable[[Record], None]
    ) -> None:
        """Read certificates, and look up names of servers once, which may take a while.

        Nothing is asked, and no thread is there, before the first `wake`.

        Args:
            legion: as configured, with `etcd`.
            node: name of this node.
            patience: how long the daemons of the legion may take to end.
            say: is given what the master is to know.

        Raises:
            KernelError: a certificate cannot be read.
            UnsupportedError: there is no client of etcd.
        """
        assert legion.etcd is not None, "etcd elects"
        try:
            from lowsuper.legion import gateway
        except ImportError as error:
            raise UnsupportedError(
                f"legion {legion.name}: etcd needs the Python package etcd3gw ({error}):"
                " pip install 'lowsuper[legion]'"
            ) from None
        self.name = legion.name
        self.is_over = False
        self._say = say
        self._rules = make_rules(legion, node, patience)
        self._node = claim_states.Node()
        self._access = gateway.Access(legion.etcd)
        self._make_gateway: Callable[[], Gateway] = lambda: gateway.Gateway(
            self._access, self._rules, legion.scroll_max_size, self._put
        )
        self._has_begun = False
        self._wake = self._show_at = self._shown = Ns(0)
        self._answers: deque[Answer] = deque()
        self._lanes: dict[str, Worker] = {}
        self._left: list[Worker] = []
        look_up(self._rules.servers)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def fds(self) -> tuple[int, ...]:
        """All its descriptors that are there before the first `wake`."""
        return (self._bell,)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `take` has something to do."""
        return self._bell

    def close(self) -> None:
        """Have the threads end; the descriptor stays, for those that still have an answer."""
        for worker in self._lanes.values():
            worker.leave()
        self._lanes.clear()

    def next_wake(self) -> Ns:
        """Return when `wake` has something to do, CLOCK_BOOTTIME."""
        return min(self._wake, self._show_at)

    def wake(self, now: Ns) -> None:
        """Do what it is time for."""
        if self.is_over:
            return
        if not self._has_begun:
            self._has_begun = True
            self._tell(f"asks {', '.join(self._rules.servers)}")
            self._step(states.Begin())
        elif now >= self._wake:
            self._step(states.Woke())
        if now >= self._show_at:
            self._show(now)

    def hear(self, message: Record) -> None:
        """Take what the master says of this legion, or of all."""
        if not self._has_begun:
            self.is_over = self.is_over or isinstance(message, words.Quit)
            return
        match message:
            case words.Busy(busy=busy, until=until):
                self._step(states.Busy(busy, until))
            case words.HookFailed():
                self._step(states.HookFailed())
            case words.Quit():
                self._step(states.Quit())
            case _:
                raise AssertionError(f"not handled: {message!r}")

    def take(self) -> None:
        """Take the answers that have come."""
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return
        while self._answers and not self.is_over:
            self._step(self._answers.popleft())

    # The election.

    def _step(self, event: claim_states.Event) -> None:
        self._node, actions = claim.step(self._rules, self._node, event, now_boot())
        for action in actions:
            self._do(action)

    def _do(self, action: claim_states.Action) -> None:
        match action:
            case claim_states.Ask():
                self._ask(action)
            case states.WakeAt(at=at):
                self._wake = at
            case claim_states.Lease(until=until, token=token):
                self._say(words.Lease(self.name, until, str(token)))
            case states.Resign(until=until, why=why):
                self._say(words.Resign(self.name, until, why))
            case claim_states.Occur(event=event, member=member):
                self._say(words.Occurred(self.name, event, self._describe(member)))
            case states.Tell(text=text):
                self._tell(text)
            case states.Show():
                self._show_at = min(self._show_at, Ns(self._shown + SHOW_EVERY))
            case states.End():
                self._show(now_boot())
                self.is_over = True
                self.close()

    def _ask(self, ask: Ask) -> None:
        """Hand a request to the thread of its lane, or to a new one if that is still about one."""
        worker = self._lanes.get(ask.lane)
        if worker is not None and not worker.is_idle:
            self._left.append(self._lanes.pop(ask.lane))
            worker.leave()
            worker = None
        if worker is None:
            self._left = [each for each in self._left if each.is_alive]
            most = _FOR_WATCHES if ask.lane == WATCH else MOST_THREADS
            if len(self._left) + len(self._lanes) >= most:
                self._refuse(ask.flight)
                return
            worker = self._lanes[ask.lane] = Worker(self._make_gateway(), self._put)
        worker.send(ask.flight)

    def _refuse(self, flight: Flight) -> None:
        why = "is not asked: too many requests have no answer yet"
        self._put(claim_states.Failed(flight.serial, why))

    def _put(self, answer: Answer) -> None:
        """Leave an answer for `take`; from any thread."""
        self._answers.append(answer)
        os.eventfd_write(self._bell, 1)

    def _describe(self, member: claim_states.Member | None) -> words.Node:
        """Return another node, or this one, as it is shown."""
        rules, node = self._rules, self._node
        if member is None:
            lord = node.state in (states.LORD, states.RESIGNING)
            return words.Node(
                rules.name, rules.valor, rules.uuid, lord, scroll=rules.scroll, peer="etcd"
            )
        lord = node.holder is not None and node.holder.uuid == member.uuid
        return words.Node(
            member.name,
            member.valor,
            member.uuid,
            lord,
            seen=max(1, node.looked),
            scroll=member.scroll,
            peer="etcd",
        )

    def _show(self, now: Ns) -> None:
        self._shown, self._show_at = now, Ns(now + claim.pace(self._rules))
        self._say(claim.view(self._rules, self._node, now))

    def _tell(self, text: str) -> None:
        self._say(words.Told(self.name, text))


def look_up(servers: tuple[str, ...]) -> None:
    """Look up the names of servers, to have the C library load what it needs for that.

    Later no code can be loaded. What it finds, or not, does not matter yet.
    """
    for server in servers:
        url = urlsplit(server)
        with suppress(OSError):
            socket.getaddrinfo(url.hostname, url.port)
