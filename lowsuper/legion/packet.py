"""The packets of a legion: uWSGI's keys and values, without what closes and opens them.

A packet is a list of keys and values, each with its length before it as 16 bits, little endian. An
unknown key is ignored, by uWSGI too: so a packet can say more to a lowsuper, whoever else reads it.
"""

from __future__ import annotations

from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Echo = tuple[tuple[str, int], ...]

PACKET_MAX = 65535 - 20
"""Bytes of the longest packet that uWSGI reads, with its header."""

UUID_SIZE = 36
NOBODY = "\0" * UUID_SIZE
"""The uuid of the lord while there is none, as uWSGI has it."""

MOST_HEARD = 64  # nodes in `Packet.heard`, and in `Packet.met`
_MOST_DIGITS = 20
_UUID_CHARACTERS = "0123456789abcdef-"


class Packet(Record):
    """What a node says of itself. Texts hold bytes that are no UTF-8 as surrogates."""

    legion: str
    valor: int
    unix: int  # seconds since 1970, by its clock
    name: str
    pid: int
    uuid: str  # 36 characters; those of uWSGI need not be a real UUID
    lord: int = 0  # since when it is the lord, as `unix`; 0: it is not
    checksum: int = 0  # of the nodes it knows
    lord_valor: int = 0  # its vote
    lord_uuid: str = NOBODY
    scroll: str = ""
    dead: bool = False  # its last one
    seq: int = 0  # counts its packets; 0: it is a uWSGI, which does not
    heard: Echo = ()  # uuid and `seq` of the last packet of each member it knows
    met: Echo = ()  # the same of those that are no members yet


_NUMBERS = ("valor", "unix", "lord", "pid", "checksum", "lord_valor", "seq")
_KEYS = (
    *("legion", "valor", "unix", "lord", "name", "pid", "uuid", "checksum"),
    *("lord_valor", "lord_uuid"),
)
"""What uWSGI sends, in its order."""

SEQ = "ls_seq"
_ECHOES = (("ls_heard", "heard"), ("ls_met", "met"))


def encode(packet: Packet) -> bytes:
    """Return the plain text of a packet."""
    pairs = [(key, str(getattr(packet, key))) for key in _KEYS]
    if packet.scroll:
        pairs.append(("scroll", packet.scroll))
    if packet.dead:
        pairs.append(("dead", "1"))
    if packet.seq:
        pairs.append((SEQ, str(packet.seq)))
    for key, name in _ECHOES:
        echo = getattr(packet, name)[:MOST_HEARD]
        if echo:
            pairs.append((key, ",".join(f"{uuid}:{seq}" for uuid, seq in echo)))
    return b"".join(_field(key) + _field(value) for key, value in pairs)


def _field(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return len(data).to_bytes(2, "little") + data


def decode(data: bytes) -> Packet:
    """Return the packet of a plain text.

    Raises:
        ValueError: it is none; a phrase.
    """
    fields = _split(data)
    values: dict[str, Any] = {}
    for key in (*_KEYS, SEQ):
        name = "seq" if key == SEQ else key
        text = fields.get(key)
        if text is None:
            if name in Packet.__match_args__[:6]:
                raise ValueError(f"has no {key}")
            continue
        values[name] = _number(key, text) if name in _NUMBERS else text
    for key in ("uuid", "lord_uuid"):
        if len(fields.get(key, NOBODY).encode("utf-8", "surrogateescape")) != UUID_SIZE:
            raise ValueError(f"has a {key} that is not {UUID_SIZE} bytes long")
    if values.get("seq") and fields["uuid"].strip(_UUID_CHARACTERS):
        raise ValueError("has a uuid that is none")  # nobody could echo it
    if not fields["name"]:
        raise ValueError("has an empty name")
    for key, name in _ECHOES:
        values[name] = tuple(_parse_echo(key, fields.get(key, "")))
    return Packet(**values, scroll=fields.get("scroll", ""), dead="dead" in fields)


def _split(data: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    at, end, is_key = 0, len(data), True
    while at < end:
        size = int.from_bytes(data[at : at + 2], "little")
        begin, at = at + 2, at + 2 + size
        if at > end or (is_key and size == 0):
            raise ValueError("is no list of keys and values")
        text = data[begin:at].decode("utf-8", "surrogateescape")
        if is_key:
            key = text
        else:
            fields[key] = text
        is_key = not is_key
    if not is_key:
        raise ValueError("ends with a key that has no value")
    return fields


def _number(key: str, text: str) -> int:
    if len(text) > _MOST_DIGITS or not (text.isascii() and text.isdigit()):
        raise ValueError(f"has a {key} that is no number")
    number = int(text)
    if number >= 1 << 64:
        raise ValueError(f"has a {key} that is too large")
    return number


def _parse_echo(key: str, text: str) -> list[tuple[str, int]]:
    if not text:
        return []
    pairs = []
    for each in text.split(",")[:MOST_HEARD]:
        uuid, colon, seq = each.rpartition(":")
        if not colon or len(uuid) != UUID_SIZE:
            raise ValueError(f"has a {key} that is none")
        pairs.append((uuid, _number(key, seq)))
    return pairs


def sum_of(valor: int, uuid: str) -> int:
    """Return what a node adds to the checksum: 64 bits, whatever the order of the nodes."""
    # uWSGI adds chars, which are signed: only a made-up uuid has bytes above 127.
    data = uuid.encode("utf-8", "surrogateescape")
    return (valor + sum(byte - 256 if byte > 127 else byte for byte in data)) % (1 << 64)
