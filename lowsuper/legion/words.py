"""What a master and its agent say to each other over their socketpair: one JSON object a message.

The agent has no privileges and hears the network: the master takes nothing from it but these, with
the types that they are to have. Times are CLOCK_BOOTTIME in nanoseconds, which counts a suspend.
"""

from __future__ import annotations

from lowsuper import wire
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.units import Ns

MESSAGE_MAX = 65536
"""Bytes of the longest message; a view of more nodes than fit says so."""


class Node(Record):
    """A node of a legion, as it is shown."""

    name: str
    valor: int
    uuid: str
    lord: bool = False  # it says that it is the lord
    seen: Ns = 0  # when it was last heard of; 0: this is the node itself
    vote: str = ""  # uuid of whom it votes for
    scroll: str = ""
    peer: str = ""  # "lowsuper", "uwsgi" or "etcd"


# From the agent.


class Lease(Record):
    """This node is the lord until then, and longer if another lease follows in time."""

    legion: str
    until: Ns
    token: str = ""  # a number that grows with each lord, where there is such a number


class Resign(Record):
    """This node must not be the lord any more: its daemons have to be gone by then."""

    legion: str
    until: Ns
    why: str  # a phrase


class Occurred(Record):
    """Something that hooks follow has happened; `node` is the other one, or this one."""

    legion: str
    event: str  # one of model.LEGION_EVENTS
    node: Node


class Told(Record):
    """The operator should know."""

    legion: str
    text: str


class View(Record):
    """What this node knows of a legion."""

    legion: str
    state: str  # "follower", "lord", "resigning", "suspended" or "waiting"
    lord: str  # uuid of the lord, or ""
    votes: int
    quorum: int  # as configured
    until: Ns  # of the lease; 0: none
    nodes: tuple[Node, ...]  # this one first
    left_out: int = 0  # nodes that did not fit
    note: str = ""  # why there is no lord: a phrase


class Gone(Record):
    """The agent has said goodbye to all legions and ends."""


# From the master.


class Busy(Record):
    """Daemons of the legion may be running here, or nothing of them is left.

    Said at each change, and in answer to each lease: a master that does not answer is taken to be
    stopped, and this node keeps out of the legion until it does. What it says before it has read
    the last lease says nothing of what that lease will begin.
    """

    legion: str
    busy: bool
    until: Ns  # of the last lease that it has read; 0: none


class HookFailed(Record):
    """A lord hook has failed."""

    legion: str


class Quit(Record):
    """The master stops: give up what this node is the lord of, say goodbye, end."""


FROM_AGENT: tuple[type[Record], ...] = (Lease, Resign, Occurred, Told, View, Gone)
FROM_MASTER: tuple[type[Record], ...] = (Busy, HookFailed, Quit)

_TYPES: dict[type[Record], dict[str, type]] = {
    Node: {
        **dict.fromkeys(("name", "uuid", "vote", "scroll", "peer"), str),
        "valor": int,
        "lord": bool,
        "seen": int,
    },
    Lease: {"legion": str, "until": int, "token": str},
    Resign: {"legion": str, "until": int, "why": str},
    Occurred: {"legion": str, "event": str, "node": Node},
    Told: {"legion": str, "text": str},
    View: {
        **dict.fromkeys(("legion", "state", "lord", "note"), str),
        **dict.fromkeys(("votes", "quorum", "until", "left_out"), int),
        "nodes": tuple,
    },
    Gone: {},
    Busy: {"legion": str, "busy": bool, "until": int},
    HookFailed: {"legion": str},
    Quit: {},
}


def encode(message: Record) -> bytes:
    """Return a message as it is sent, at most MESSAGE_MAX bytes.

    Of a view that is too long nodes are left out. A string may hold any bytes, as surrogates.
    """
    data = _dump(message)
    while len(data) > MESSAGE_MAX:
        if not isinstance(message, View) or not message.nodes:
            raise ValueError(f"a {type(message).__name__} of {len(data)} bytes is too long")
        kept = message.nodes[: len(message.nodes) // 2]
        lost = len(message.nodes) - len(kept)
        message = message.replace(nodes=kept, left_out=message.left_out + lost)
        data = _dump(message)
    return data


def _dump(message: Record) -> bytes:
    return wire.encode({"kind": type(message).__name__, **_fields(message)}).encode()


def _fields(value: Record) -> dict[str, object]:
    return {name: _plain(getattr(value, name)) for name in _TYPES[type(value)]}


def _plain(value: object) -> object:
    if isinstance(value, Node):
        return _fields(value)
    return [_fields(node) for node in value] if isinstance(value, tuple) else value


def decode(data: bytes, kinds: tuple[type[Record], ...]) -> Record:
    """Return the message.

    Args:
        data: as it was received.
        kinds: which may be: FROM_AGENT or FROM_MASTER.

    Raises:
        ValueError: it is none of these; a phrase.
    """
    try:
        said = wire.decode(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None
    kind = said.pop("kind", None) if isinstance(said, dict) else None
    for each in kinds:
        if kind == each.__name__:
            return _build(each, said)
    raise ValueError("is of no known kind")


def _build(kind: type[Record], said: object) -> Record:
    types = _TYPES[kind]
    if not isinstance(said, dict) or said.keys() != types.keys():
        raise ValueError(f"is no {kind.__name__}")
    return kind(*(_take(kind, name, types[name], said[name]) for name in kind.__match_args__))


def _take(kind: type[Record], name: str, wanted: type, value: object) -> object:
    if wanted is Node:
        return _build(Node, value)
    if wanted is tuple and isinstance(value, list):
        return tuple(_build(Node, each) for each in value)
    if type(value) is not wanted:
        raise ValueError(f"has a wrong {name} of a {kind.__name__}")
    return value
