"""What a node knows and decides of one legion, as plain values: state, events and actions.

`now` is CLOCK_BOOTTIME in nanoseconds, on which everything rests: it counts a suspend and never
jumps. `wall` is the clock of the day in whole seconds, which only a packet's age is judged by.
"""

from __future__ import annotations

from lowsuper.legion.packet import NOBODY, Packet
from lowsuper.record import Record
from lowsuper.units import Ns

FOLLOWER, LORD, RESIGNING, SUSPENDED, ENDED = (
    "follower",
    "lord",
    "resigning",
    "suspended",
    "ended",
)


class Rules(Record):
    """What is configured, and who this node is."""

    legion: str
    valor: int
    name: str  # of the node
    pid: int
    uuid: str
    quorum: int
    freq: Ns
    tolerance: Ns
    skew: int  # seconds
    patience: Ns  # the longest that a daemon of the legion may take to end
    suspension: Ns = 0  # after a lord hook that failed; 0: it does not matter
    scroll: str = ""
    modern: bool = False  # there is no uWSGI among the nodes


class Member(Record):
    """Another node."""

    valor: int
    name: str
    uuid: str
    seen: Ns  # when it was last heard of
    unix: int  # of that packet
    lord: int = 0
    checksum: int = 0
    vote: tuple[int, str] = (0, NOBODY)
    scroll: str = ""
    seq: int = 0
    reached: Ns = -1  # when the newest packet of ours was sent that is known to have reached it
    counts: bool = True  # it is a member; else it has not shown that it hears us


class Tomb(Record):
    """A node that has said goodbye: what was sent before does not bring it back."""

    uuid: str
    seq: int
    unix: int
    until: Ns


class Sent(Record):
    """A packet of ours."""

    seq: int
    at: Ns


class Node(Record):
    """The state of one node in one legion."""

    state: str = FOLLOWER
    since: Ns = 0  # when it began to listen
    members: tuple[Member, ...] = ()
    tombs: tuple[Tomb, ...] = ()
    sent: tuple[Sent, ...] = ()  # in the last `tolerance`, oldest first
    seq: int = 0  # of the last packet
    lord: int = 0  # since when it is the lord, by the clock of the day; 0: it is not
    until: Ns = 0  # when nothing of the daemons may be left: of the last lease, or earlier
    leased: Ns = 0  # of the last lease
    busy: bool = False  # daemons may be running
    settled: bool = False  # it has met, since then, so many nodes that there can be no other lord
    joined: bool = False
    vote: tuple[int, str] = (0, NOBODY)  # as announced
    checksum: int = 0  # as announced
    votes: int = 0
    best: tuple[int, str] = (0, NOBODY)  # whom all should vote for
    due: Ns = 0  # when the next packet is to be sent
    suspended: Ns = 0  # until then; 0: until the master answers
    quits: bool = False
    why: str = ""  # why it resigns: a phrase
    fading: Ns = 0  # until then the daemon of a uWSGI that was the lord may be running
    out: str = ""  # it keeps out of the legion after it has resigned: "hook" or "master"
    asked: Ns = 0  # when the first lease was sent that the master has not answered; 0: none
    warned: Ns = 0  # when it was said last that there is no quorum; 0: never
    blamed: Ns = 0  # the same of a clock that is wrong


# Events.


class Begin(Record):
    """The socket is open."""


class Heard(Record):
    """A packet came, closed with the right key."""

    packet: Packet


class Woke(Record):
    """The time has come that WakeAt named, or an earlier one."""


class Busy(Record):
    """The master says whether daemons may be running: when that changes, and after each lease.

    What it says before it has read the last lease says nothing of what that lease will begin.
    """

    busy: bool
    until: Ns  # of the last lease that it has read; 0: none


class HookFailed(Record):
    """A lord hook has failed."""


class Quit(Record):
    """The master stops."""


Event = Begin | Heard | Woke | Busy | HookFailed | Quit

# Actions.


class Send(Record):
    """Send a packet to all nodes."""

    packet: Packet


class Lease(Record):
    """Be the lord until then."""

    until: Ns


class Resign(Record):
    """Stop the daemons gracefully, so that nothing of them is left by then."""

    until: Ns
    why: str


class Occur(Record):
    """Hooks may follow this."""

    event: str  # one of model.LEGION_EVENTS
    member: Member | None = None  # None: this node


class Tell(Record):
    """The operator should know."""

    text: str


class Show(Record):
    """What is known has changed."""


class WakeAt(Record):
    """Come back at that time at the latest; the only timer."""

    at: Ns


class End(Record):
    """This node has left the legion for good."""


Action = Send | Lease | Resign | Occur | Tell | Show | WakeAt | End
