"""What the master tells the agent at its start: one JSON object in a sealed memfd.

It holds the secrets, which are so in no command line, environment or file. What a hook runs is not
in it: the process that hears the network knows nothing that it can do without.
"""

from __future__ import annotations

from lowsuper import wire
from lowsuper.model import Endpoint, Etcd, Legion, Origin, Secret
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from lowsuper.units import Ns

CHANNEL_FD, ORDERS_FD = 3, 4
"""Descriptors that the agent is started with: its end of the socketpair, and the memfd."""

_NOWHERE = Origin("", 0, "", "")


class Orders(Record):
    """What an agent has to do."""

    legions: tuple[Legion, ...]  # without their hooks and origins
    patience: tuple[Ns, ...]  # of each legion
    name: str  # of the node
    pid: int  # of the master, as it is announced
    uid: int  # what the agent becomes, if it is root
    gid: int


def encode_orders(
    legions: tuple[Legion, ...],
    patience: Mapping[str, Ns],
    *,
    name: str,
    pid: int,
    uid: int,
    gid: int,
) -> bytes:
    """Return the text for a memfd.

    Args:
        legions: as configured.
        patience: of each legion by its name: how long its daemons may take to end.
        name: of the node.
        pid: of the master.
        uid: what the agent becomes, if it is root.
        gid: likewise.
    """
    return wire.encode(
        {
            "legions": [_plain(legion) for legion in legions],
            "patience": [patience[legion.name] for legion in legions],
            "name": name,
            "pid": pid,
            "uid": uid,
            "gid": gid,
        }
    ).encode()


def decode_orders(data: bytes) -> Orders:
    """Return what `encode_orders` has written.

    Raises:
        ValueError: it is not that; a phrase.
    """
    try:
        said = wire.decode(data.decode("ascii"))
        legions = tuple(_build(Legion, each) for each in said.pop("legions"))
        return Orders(legions=legions, patience=tuple(said.pop("patience")), **said)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        # Of the text nothing is repeated: there are secrets in it.
        raise ValueError(f"are no orders ({type(error).__name__})") from None


_LEFT_OUT = ("origin", "hooks")
_INNER: dict[tuple[type[Record], str], type[Record]] = {
    (Legion, "address"): Endpoint,
    (Legion, "nodes"): Endpoint,
    (Legion, "etcd"): Etcd,
}
_SECRETS = ("secret", "password")


def _plain(value: Record) -> dict[str, object]:
    return {
        name: _plain_field(getattr(value, name))
        for name in value.__match_args__
        if name not in _LEFT_OUT
    }


def _plain_field(value: object) -> object:
    if isinstance(value, Secret):
        return value.text
    if isinstance(value, Record):
        return _plain(value)
    if isinstance(value, tuple):
        return [_plain_field(each) for each in value]
    return value


def _build(kind: type[Record], said: dict[str, Any]) -> Any:  # noqa: ANN401  # one of `kind`
    fields: dict[str, Any] = {name: _build_field(kind, name, value) for name, value in said.items()}
    if kind is Legion:
        fields["origin"] = _NOWHERE
    return kind(**fields)


def _build_field(kind: type[Record], name: str, value: Any) -> object:  # noqa: ANN401  # of JSON
    if name in _SECRETS and value is not None:
        return Secret(value)
    inner = _INNER.get((kind, name))
    if isinstance(value, list):
        return tuple(each if inner is None else _build(inner, each) for each in value)
    return value if inner is None or value is None else _build(inner, value)
