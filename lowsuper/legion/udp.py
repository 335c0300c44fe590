"""One legion that elects by packets: carries out what `election` decides.

What comes from the network costs a bounded time and a bounded memory, whatever it is.
"""

from __future__ import annotations

import os
from errno import EINTR
from time import CLOCK_BOOTTIME, clock_gettime_ns, time

from lowsuper.errors import KernelError
from lowsuper.legion import election, packet, states, words
from lowsuper.legion.cipher import COMPATIBLE, MAGIC, make_seal
from lowsuper.legion.sockets import Port
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.model import Endpoint, Legion
    from lowsuper.record import Record

AT_ONCE = 64
"""Packets of a turn; then others have theirs."""

TELL_EVERY = Ns(60 * SECOND)
SHOW_EVERY = Ns(SECOND // 20)  # at most
MOST_KNOWN = 1024
MOST_SCROLL = 32768  # bytes; with what else is in a packet, it fits


def now_boot() -> Ns:
    """Return CLOCK_BOOTTIME in nanoseconds."""
    return clock_gettime_ns(CLOCK_BOOTTIME)


def make_uuid() -> str:
    """Return a random UUID, as text. See RFC 9562, version 4."""
    data = bytearray(os.urandom(16))
    data[6], data[8] = data[6] & 0x0F | 0x40, data[8] & 0x3F | 0x80
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def make_rules(legion: Legion, name: str, pid: int, patience: Ns) -> states.Rules:
    """Return what the election has to know.

    Args:
        legion: as configured.
        name: of this node.
        pid: of the master.
        patience: how long the daemons of the legion may take to end.
    """
    return states.Rules(
        legion=legion.name,
        valor=legion.valor,
        name=name,
        pid=pid,
        uuid=make_uuid(),
        quorum=legion.quorum,
        freq=legion.freq,
        tolerance=legion.tolerance,
        skew=legion.skew_tolerance // SECOND,
        patience=patience,
        suspension=legion.death_on_lord_error,
        scroll=_cut_scroll(legion.scroll, MOST_SCROLL),
        modern=legion.is_modern,
    )


def _cut_scroll(scroll: str, most: int) -> str:
    """Return a scroll, or nothing if it is longer than so many bytes."""
    return scroll if len(scroll.encode("utf-8", "surrogateescape")) <= most else ""


class UdpLegion:
    """A legion, its socket, and the state of the election."""

    def __init__(
        self,
        legion: Legion,
        name: str,
        pid: int,
        patience: Ns,
        say: Callable[[Record], None],
    ) -> None:
        """Make the socket; nothing is sent or heard before the first `wake`.

        Args:
            legion: as configured.
            name: of this node.
            pid: of the master.
            patience: how long the daemons of the legion may take to end.
            say: is given what the master is to know.

        Raises:
            KernelError: the socket cannot be made.
            UnsupportedError: its cipher is not to be had.
        """
        self.is_over = False
        self._legion, self._say = legion, say
        self._seal = make_seal(legion)
        self._port = Port(legion, (COMPATIBLE, MAGIC[0]))
        self._rules = make_rules(legion, name, pid, patience)
        self._node = states.Node()
        self._is_open = False
        self._problem = ""  # why it is not
        self._wake = self._show_at = self._shown = Ns(0)
        self._errors: dict[Endpoint, int] = {}
        self._known: dict[int, None] = {}  # packets that came lately: what they had to say is said
        self._rejected, self._rejection, self._blame_at = 0, "", Ns(0)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `take` has something to do."""
        return self._port.fileno()

    def close(self) -> None:
        """Close the socket; an agent leaves that to its end."""
        self._port.close()

    def next_wake(self) -> Ns:
        """Return when `wake` has something to do, CLOCK_BOOTTIME."""
        times = [self._wake, self._show_at]
        if self._rejected:
            times.append(self._blame_at)
        return min(times)

    def wake(self, now: Ns) -> None:
        """Do what it is time for."""
        if self.is_over:
            return
        if not self._is_open:
            if now >= self._wake:
                self._open(now)
            return
        if now >= self._wake:
            self._step(states.Woke())
        if self._rejected and now >= self._blame_at:
            self._blame(now)
        if now >= self._show_at:
            self._show(now)

    def hear(self, message: Record) -> None:
        """Take what the master says of this legion, or of all."""
        if not self._is_open:
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
        """Take packets that have come, some of them."""
        for _ in range(AT_ONCE):
            if self.is_over:
                return
            try:
                received = self._port.receive()
            except OSError as error:
                self._reject(f"could not be received: {error.strerror}", "somebody")
                return
            if received is None:
                return
            if self._is_open:
                self._take(*received)

    # The network.

    def _open(self, now: Ns) -> None:
        text = "" if self._legion.address is None else self._legion.address.text
        try:
            self._port.open()
        except KernelError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._tell(f"{error}; tried again until it can be had")
            self._wake = self._show_at = Ns(now + self._rules.freq)
            view = election.view(self._rules, self._node, now)
            self._say(view.replace(note=str(error)))
            return
        self._is_open = True
        self._tell(f"listens on {text}")
        self._step(states.Begin())

    def _take(self, datagram: bytes, sender: str) -> None:
        digest = hash(datagram)
        if digest in self._known:
            return  # a replay, or what came here by two ways
        try:
            heard = packet.decode(self._seal.open(datagram))
        except ValueError as error:
            self._reject(str(error), sender)
            return
        if heard.seq:
            # A uWSGI may mean what it says again: it has no numbers, and seconds are long.
            self._known[digest] = None
            if len(self._known) > MOST_KNOWN:
                del self._known[next(iter(self._known))]
        if heard.legion != self._legion.name or heard.uuid == self._rules.uuid:
            return
        scroll = _cut_scroll(heard.scroll, self._legion.scroll_max_size)
        self._step(states.Heard(heard.replace(scroll=scroll)))

    def _reject(self, reason: str, sender: str) -> None:
        """Count a packet that says nothing; the operator hears of the first one at once."""
        self._rejected += 1
        self._rejection = f"of {sender}: it {reason}"
        now = now_boot()
        if now >= self._blame_at:
            self._blame(now)

    def _blame(self, now: Ns) -> None:
        last = self._rejection
        if self._rejected == 1:
            self._tell(f"a packet was not taken, {last}")
        else:
            self._tell(f"{self._rejected} packets were not taken, the last one {last}")
        self._rejected, self._blame_at = 0, Ns(now + TELL_EVERY)

    def _send(self, said: packet.Packet) -> None:
        datagram = self._seal.close(packet.encode(said))
        for node in self._legion.nodes:
            errno = self._port.send(node, datagram)
            if errno == EINTR or errno == self._errors.get(node, 0):
                continue
            self._errors[node] = errno
            if errno:
                self._tell(f"packets do not go out to {node.text}: {os.strerror(errno)}")
            else:
                self._tell(f"packets go out to {node.text} again")

    # The election.

    def _step(self, event: states.Event) -> None:
        self._node, actions = election.step(self._rules, self._node, event, now_boot(), int(time()))
        for action in actions:
            self._do(action)

    def _do(self, action: states.Action) -> None:
        match action:
            case states.Send(packet=said):
                self._send(said)
            case states.WakeAt(at=at):
                self._wake = at
            case states.Lease(until=until):
                self._say(words.Lease(self._legion.name, until))
            case states.Resign(until=until, why=why):
                self._say(words.Resign(self._legion.name, until, why))
            case states.Occur(event=event, member=member):
                self._say(words.Occurred(self._legion.name, event, self._describe(member)))
            case states.Tell(text=text):
                self._tell(text)
            case states.Show():
                self._show_at = min(self._show_at, Ns(self._shown + SHOW_EVERY))
            case states.End():
                self._show(now_boot())
                self.is_over = True

    def _describe(self, member: states.Member | None) -> words.Node:
        """Return another node, or this one, as it is shown."""
        rules, node = self._rules, self._node
        if member is None:
            lord = node.lord != 0
            return words.Node(
                rules.name, rules.valor, rules.uuid, lord, scroll=rules.scroll, peer="lowsuper"
            )
        return words.Node(
            member.name,
            member.valor,
            member.uuid,
            member.lord != 0,
            member.seen,
            scroll=member.scroll,
            peer="lowsuper" if member.seq else "uwsgi",
        )

    def _show(self, now: Ns) -> None:
        self._shown, self._show_at = now, Ns(now + self._rules.freq)
        self._say(election.view(self._rules, self._node, now))

    def _tell(self, text: str) -> None:
        self._say(words.Told(self._legion.name, text))
