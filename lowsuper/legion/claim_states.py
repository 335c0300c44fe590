"""What a node knows and asks of one legion where etcd elects: state, requests, events, actions.

What is the same as where packets elect is in `states`. All times are CLOCK_BOOTTIME in nanoseconds.
"""

from __future__ import annotations

from lowsuper.legion.states import (
    FOLLOWER,
    Begin,
    Busy,
    End,
    HookFailed,
    Quit,
    Resign,
    Show,
    Tell,
    WakeAt,
    Woke,
)
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.units import Ns

TITLE, LIFE, WORK, WATCH = LANES = ("title", "life", "work", "watch")
"""What requests are for: to stay the lord; the lease; other keys; to hear of changes at once."""


class Rules(Record):
    """What is configured, and who this node is."""

    legion: str
    valor: int
    name: str  # of the node
    uuid: str
    servers: tuple[str, ...]  # as they are named in messages
    ttl: Ns
    patience: Ns  # the longest that a daemon of the legion may take to end
    suspension: Ns = 0  # after a lord hook that failed; 0: it does not matter
    scroll: str = ""


class Member(Record):
    """A node that is there."""

    valor: int
    name: str
    uuid: str
    lease: int  # that its key hangs on
    scroll: str = ""
    since: Ns = 0  # when it was first seen


class Holder(Record):
    """Who has the lord's key."""

    uuid: str  # "": it cannot be read
    term: int  # which of its claims this is
    ttl: Ns  # how long it may count on the key after it has written it
    revision: int  # in which it was last written


# Requests.


class Grant(Record):
    """Have a lease for so many seconds."""

    ttl: int


class KeepAlive(Record):
    """Have a lease last for another `ttl` from now."""

    lease: int


class Present(Record):
    """Make, or make again, the key of this node."""

    lease: int


class Claim(Record):
    """Write the lord's key, if it was last written in that revision; 0: if it is not there."""

    term: int
    revision: int


class Beat(Record):
    """Write the lord's key again, if it is that of this term."""

    term: int


class Release(Record):
    """Delete the lord's key, if it is that of this term."""

    term: int


class Look(Record):
    """Read all keys of the legion, as a majority of the servers know them."""


class Revoke(Record):
    """Give a lease back, with the key that hangs on it."""

    lease: int


class Watch(Record):
    """Wait until a key of the legion has changed after that revision."""

    revision: int


Request = Grant | KeepAlive | Present | Claim | Beat | Release | Look | Revoke | Watch


class Flight(Record):
    """A request that is not answered yet."""

    serial: int
    server: int
    sent: Ns
    bound: Ns  # how long an answer may take
    request: Request


class Trouble(Record):
    """What is wrong with a server."""

    text: str
    told: Ns


class Node(Record):
    """The state of one node in one legion."""

    state: str = FOLLOWER
    serial: int = 0  # of the last request
    server: int = 0  # that is asked
    fails: int = 0  # requests that have failed since one was answered
    pause: Ns = 0  # nothing is asked before then
    title: Flight | None = None
    life: Flight | None = None
    work: Flight | None = None
    watch: Flight | None = None
    watch_at: Ns = 0  # not before
    troubles: tuple[Trouble | None, ...] = ()  # of each server
    lease: int = 0  # 0: none
    alive: Ns = 0  # when the newest request was sent that shows it to be alive
    renew: Ns = 0  # when it is to be kept alive
    is_present: bool = False  # the key of this node hangs on it
    revoke: int = 0  # a lease that is to be given back
    leave_by: Ns = 0  # when it leaves without having given back what it has
    look: Ns = 0  # when to look
    looked: Ns = -1  # when the last look that was answered was sent; -1: never
    revision: int = 0  # of that look
    holder: Holder | None = None
    changed: Ns = 0  # when it was seen that the holder, or its revision, is another
    members: tuple[Member, ...] = ()  # the others
    shunned: frozenset[str] = frozenset()  # who had the chance to be the lord, and did not take it
    shun: Ns = 0  # until then
    term: int = 0  # of the lord's key if it is this node's; 0: it is not
    token: int = 0  # of that term
    lapsed: int = 0  # the last term that this node counts on no more
    dropped: int = 0  # a term whose key is to be deleted
    proved: Ns = -1  # when the newest request was sent that has written the key; -1: none
    beat: Ns = 0  # when it is to be written again
    until: Ns = 0  # when nothing of the daemons may be left: of the last lease, or earlier
    leased: Ns = 0  # of the last lease
    busy: bool = False  # daemons may be running
    asked: Ns = 0  # when the first lease was sent that the master has not answered; 0: none
    joined: bool = False
    suspended: Ns = 0  # until then; 0: until the master answers
    quits: bool = False
    why: str = ""  # why it resigns: a phrase
    out: str = ""  # it keeps out of the legion after it has resigned: "hook" or "master"


# Events, besides those of `states`: answers to the request of that serial number.


class Granted(Record):
    """There is a lease."""

    serial: int
    lease: int


class Kept(Record):
    """A lease was kept alive."""

    serial: int
    is_alive: bool  # else it is no more


class Done(Record):
    """What was asked is done: Present, Release, Revoke."""

    serial: int


class Wrote(Record):
    """The lord's key was written, by the claim or the beat of that term, sent then."""

    serial: int
    term: int
    sent: Ns
    revision: int


class Lost(Record):
    """The lord's key is not what was expected, and was not written; what it is."""

    serial: int
    holder: Holder | None


class Saw(Record):
    """What there is."""

    serial: int
    revision: int
    holder: Holder | None
    members: tuple[Member, ...]  # this node, too


class Heartbeat(Record):
    """The lord's key was written again; the watch goes on."""

    serial: int
    holder: Holder


class Stirred(Record):
    """Another key has changed, or it was watched long enough."""

    serial: int


class Failed(Record):
    """The request may have been carried out or not."""

    serial: int
    why: str  # a phrase
    lease: int = 0  # a lease that is no more


Answer = Granted | Kept | Done | Wrote | Lost | Saw | Heartbeat | Stirred | Failed
Event = Begin | Woke | Busy | HookFailed | Quit | Answer

# Actions, besides those of `states`.


class Ask(Record):
    """Send a request to a server; the one before of the same lane is not waited for any more."""

    lane: str
    flight: Flight


class Lease(Record):
    """Be the lord until then."""

    until: Ns
    token: int  # grows from lord to lord


class Occur(Record):
    """Hooks may follow this."""

    event: str  # one of model.LEGION_EVENTS
    member: Member | None = None  # None: this node


Action = Ask | Lease | Resign | Occur | Tell | Show | WakeAt | End
