"""Packets of a legion: what uWSGI sends is read, what it reads is sent, and nothing else passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowsuper.legion.packet import (
    MOST_HEARD,
    NOBODY,
    PACKET_MAX,
    UUID_SIZE,
    Packet,
    decode,
    encode,
    sum_of,
)

UUID = "ab0437a6-ae41-4cdd-abb8-4c2907905d12"

# What uWSGI 2.0.31 sent, deciphered: first, as the lord, and as its last one.
FIRST = (
    b"\x06\x00legion\x03\x00web\x05\x00valor\x02\x0098\x04\x00unix\n\x001795488587"
    b"\x04\x00lord\x01\x000\x04\x00name\x02\x00h1\x03\x00pid\x05\x0026246"
    b"\x04\x00uuid$\x00ab0437a6-ae41-4cdd-abb8-4c2907905d12\x08\x00checksum\x01\x000"
    b"\n\x00lord_valor\x01\x000\t\x00lord_uuid$\x00" + bytes(36) + b"\x06\x00scroll\x05\x00hello"
)
AS_LORD = (
    b"\x06\x00legion\x03\x00web\x05\x00valor\x02\x0098\x04\x00unix\n\x001795488589"
    b"\x04\x00lord\n\x001795488588\x04\x00name\x02\x00h1\x03\x00pid\x05\x0026246"
    b"\x04\x00uuid$\x00ab0437a6-ae41-4cdd-abb8-4c2907905d12\x08\x00checksum\x04\x002547"
    b"\n\x00lord_valor\x02\x0098\t\x00lord_uuid$\x00ab0437a6-ae41-4cdd-abb8-4c2907905d12"
    b"\x06\x00scroll\x05\x00hello"
)
LAST = AS_LORD + b"\x04\x00dead\x01\x001"

NUMBERS = st.integers(0, (1 << 64) - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
BYTES = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
OURS = st.text("0123456789abcdef-", min_size=36, max_size=36)
UUIDS = OURS | st.text(st.characters(codec="ascii"), min_size=36, max_size=36)
ECHOES = st.lists(st.tuples(OURS, NUMBERS), max_size=MOST_HEARD).map(tuple)
FIELDS_OF_ALL = {
    "legion": TEXTS | BYTES,
    "valor": NUMBERS,
    "unix": NUMBERS,
    "name": (TEXTS | BYTES).filter(bool),
    "pid": NUMBERS,
    "lord": NUMBERS,
    "checksum": NUMBERS,
    "lord_valor": NUMBERS,
    "lord_uuid": UUIDS | st.just(NOBODY),
    "scroll": TEXTS | BYTES,
    "dead": st.booleans(),
}
PACKETS = st.builds(Packet, uuid=UUIDS, **FIELDS_OF_ALL) | st.builds(
    Packet, uuid=OURS, seq=NUMBERS, heard=ECHOES, met=ECHOES, **FIELDS_OF_ALL
)


@pytest.mark.parametrize(
    ("data", "packet"),
    [
        (FIRST, Packet("web", 98, 1795488587, "h1", 26246, UUID, scroll="hello")),
        (
            AS_LORD,
            Packet(
                *("web", 98, 1795488589, "h1", 26246, UUID),
                *(1795488588, 2547, 98, UUID, "hello"),
            ),
        ),
        (
            LAST,
            Packet(
                *("web", 98, 1795488589, "h1", 26246, UUID),
                *(1795488588, 2547, 98, UUID, "hello", True),
            ),
        ),
    ],
    ids=["first", "lord", "last"],
)
def test_packet_of_uwsgi_is_read_and_would_be_written_byte_for_byte(data, packet):
    assert decode(data) == packet
    assert encode(packet) == data


def test_checksum_of_one_node_is_what_uwsgi_says():
    assert sum_of(98, UUID) == decode(AS_LORD).checksum == 2547


@given(PACKETS)
def test_packet_there_and_back_is_the_same(packet):
    assert decode(encode(packet)) == packet


def test_packet_when_everything_is_said_fits():
    echo = tuple((f"{number:036}", (1 << 64) - 1) for number in range(MOST_HEARD))
    most = (1 << 64) - 1
    packet = Packet(
        *("l" * 255, most, most, "n" * 64, most, UUID, most, most, most, UUID),
        *("s" * 4096, True, most, echo, echo),
    )
    assert len(encode(packet)) < 16384 < PACKET_MAX


def test_packet_when_more_is_heard_than_fits_says_the_first():
    echo = tuple((f"{number:036}", number) for number in range(MOST_HEARD + 10))
    packet = Packet("web", 1, 2, "h", 3, UUID, seq=1, heard=echo, met=echo)
    back = decode(encode(packet))
    assert back.heard == back.met == echo[:MOST_HEARD]


def test_decode_when_more_is_heard_than_is_kept_keeps_the_first():
    echo = ",".join(f"{number:036}:{number}" for number in range(1000))
    assert len(decode(join({**FIELDS, "ls_heard": echo})).heard) == MOST_HEARD


def join(fields):
    data = b""
    for key, value in fields.items():
        for text in (key, value):
            raw = text.encode("utf-8", "surrogateescape")
            data += len(raw).to_bytes(2, "little") + raw
    return data


FIELDS = {
    "legion": "web",
    "valor": "98",
    "unix": "1795488587",
    "lord": "0",
    "name": "h1",
    "pid": "26246",
    "uuid": UUID,
    "checksum": "0",
    "lord_valor": "0",
    "lord_uuid": NOBODY,
}


def test_decode_when_fields_come_in_another_order_is_the_same():
    back = dict(reversed(FIELDS.items()))
    assert decode(join(back)) == decode(join(FIELDS))


def test_decode_when_a_key_is_unknown_ignores_it():
    assert decode(join({**FIELDS, "later": "x", "ls_later": ""})) == decode(join(FIELDS))


def test_decode_when_a_key_is_empty_as_a_value_takes_it():
    assert decode(join({**FIELDS, "scroll": ""})).scroll == ""


def test_decode_when_dead_has_any_value_is_dead():
    assert decode(join({**FIELDS, "dead": ""})).dead


@pytest.mark.parametrize("key", ["lord", "checksum", "lord_valor", "lord_uuid"])
def test_decode_when_what_may_be_missing_is_missing_takes_the_default(key):
    fields = {each: value for each, value in FIELDS.items() if each != key}
    assert decode(join(fields)) == decode(join(FIELDS))


@pytest.mark.parametrize("key", ["legion", "valor", "unix", "name", "pid", "uuid"])
def test_decode_when_a_key_is_missing_says_which(key):
    fields = {each: value for each, value in FIELDS.items() if each != key}
    with pytest.raises(ValueError, match=f"has no {key}"):
        decode(join(fields))


@pytest.mark.parametrize(
    "key", ["valor", "unix", "lord", "pid", "checksum", "lord_valor", "ls_seq"]
)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no number"),
        ("-1", "no number"),
        ("+1", "no number"),
        (" 1", "no number"),
        ("1_0", "no number"),
        ("0x1", "no number"),
        ("\u0661", "no number"),  # a digit, though not in ASCII
        ("\u00b2", "no number"),
        ("9" * 21, "no number"),
        ("9" * 60000, "no number"),
        (str(1 << 64), "too large"),
    ],
)
def test_decode_when_a_number_is_none_says_which(key, text, why):
    with pytest.raises(ValueError, match=f"has a {key} that is {why}"):
        decode(join({**FIELDS, key: text}))


@pytest.mark.parametrize("key", ["uuid", "lord_uuid"])
@pytest.mark.parametrize("uuid", ["", "a", "a" * 35, "a" * 37, "\u00e9" * 36])
def test_decode_when_a_uuid_is_too_short_or_long_says_so(key, uuid):
    with pytest.raises(ValueError, match=f"has a {key} that is not {UUID_SIZE} bytes long"):
        decode(join({**FIELDS, key: uuid}))


def test_decode_when_the_name_is_empty_says_so():
    with pytest.raises(ValueError, match="empty name"):
        decode(join({**FIELDS, "name": ""}))


@pytest.mark.parametrize("uuid", ["," * 36, UUID[1:] + ":", UUID.upper(), "\u00e9" * 18, NOBODY])
def test_decode_when_nobody_could_echo_a_uuid_refuses_it_unless_it_is_of_a_uwsgi(uuid):
    assert decode(join({**FIELDS, "uuid": uuid})).uuid == uuid
    with pytest.raises(ValueError, match="has a uuid that is none"):
        decode(join({**FIELDS, "uuid": uuid, "ls_seq": "1"}))


@pytest.mark.parametrize("key", ["ls_heard", "ls_met"])
@pytest.mark.parametrize(
    "text",
    [",", "x", ":", f"{UUID}", f"{UUID}:", f"{UUID}:x", f"{UUID[1:]}:1", f"{UUID}:1,", f":{UUID}"],
)
def test_decode_when_an_echo_is_none_says_which(key, text):
    with pytest.raises(ValueError, match=f"has a {key}"):
        decode(join({**FIELDS, key: text}))


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x00\x00",
        b"\x00\x00\x00\x00",
        b"\x01\x00",
        b"\x01\x00a\x00",
        b"\x01\x00a\x02\x00b",
        b"\xff\xffa",
        b"\x06\x00legion\x00\x00\x00\x00\x00\x00",
    ],
)
def test_decode_when_data_is_no_list_says_so(data):
    with pytest.raises(ValueError, match=r"no list of keys and values|no value"):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"\x06\x00legion"])
def test_decode_when_data_ends_early_raises_value_error(data):
    with pytest.raises(ValueError, match=r"\S"):
        decode(data)


def read(data):
    """Return the packet, or None if it is refused with a phrase."""
    try:
        return decode(data)
    except ValueError as error:
        return None if str(error) else error


@given(st.integers(0, len(LAST) - 1))
def test_decode_when_cut_anywhere_refuses_or_misses_a_field(size):
    packet = read(LAST[:size])
    assert packet is None or (packet.legion, packet.uuid, packet.dead) == ("web", UUID, False)


@given(st.binary(max_size=400))
def test_decode_when_data_is_random_raises_nothing_but_value_error(data):
    assert read(data) is None


@given(st.lists(st.integers(0, 8 * len(AS_LORD) - 1), min_size=1, max_size=3))
def test_decode_when_bits_are_flipped_refuses_or_makes_sense(bits):
    data = bytearray(AS_LORD)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    packet = read(bytes(data))
    assert packet is None or decode(encode(packet)) == packet


@given(st.lists(st.tuples(st.integers(0, 65535), UUIDS), max_size=5), st.randoms())
def test_checksum_does_not_depend_on_the_order(nodes, source):
    mixed = list(nodes)
    source.shuffle(mixed)
    assert sum(sum_of(*node) for node in nodes) == sum(sum_of(*node) for node in mixed)


def test_checksum_takes_bytes_as_signed_as_uwsgi_does():
    uuid = b"\xff".decode("utf-8", "surrogateescape") + "\0" * 35
    assert sum_of(5, uuid) == 4
    assert sum_of(0, uuid) == (1 << 64) - 1
