"""What a master and its agent say to each other: there and back, and nothing else is taken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowsuper.legion.words import (
    FROM_AGENT,
    FROM_MASTER,
    MESSAGE_MAX,
    Busy,
    Gone,
    HookFailed,
    Lease,
    Node,
    Occurred,
    Quit,
    Resign,
    Told,
    View,
    decode,
    encode,
)

NODE = Node("h1", 98, "u" * 36, lord=True, seen=5, vote="v" * 36, scroll="hello", peer="uwsgi")
VIEW = View("web", "follower", "u" * 36, 2, 2, 10**18, (NODE, NODE.replace(name="h2")), note="n")
SAID = (
    Lease("web", 10**18),
    Lease("web", 10**18, "7"),
    Resign("web", 10**18, "no quorum"),
    Occurred("web", "node-joined", NODE),
    Told("web", "text"),
    VIEW,
    Gone(),
)
ANSWERED = (
    Busy("web", busy=True, until=10**18),
    Busy("web", busy=False, until=0),
    HookFailed("web"),
    Quit(),
)
ALL = FROM_AGENT + FROM_MASTER

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.binary(max_size=20).map(
    lambda data: data.decode("utf-8", "surrogateescape")
)
NUMBERS = st.integers(-(1 << 64), 1 << 64)
NODES = st.builds(
    Node,
    name=TEXTS,
    valor=NUMBERS,
    uuid=TEXTS,
    lord=st.booleans(),
    seen=NUMBERS,
    vote=TEXTS,
    scroll=TEXTS,
    peer=TEXTS,
)
MESSAGES = st.one_of(
    st.builds(Lease, legion=TEXTS, until=NUMBERS, token=TEXTS),
    st.builds(Resign, legion=TEXTS, until=NUMBERS, why=TEXTS),
    st.builds(Occurred, legion=TEXTS, event=TEXTS, node=NODES),
    st.builds(Told, legion=TEXTS, text=TEXTS),
    st.builds(
        View,
        *(TEXTS, TEXTS, TEXTS, NUMBERS, NUMBERS, NUMBERS, st.lists(NODES, max_size=4).map(tuple)),
        *(NUMBERS, TEXTS),
    ),
    st.builds(Busy, legion=TEXTS, busy=st.booleans(), until=NUMBERS),
    st.builds(HookFailed, legion=TEXTS),
)


def test_every_kind_of_message_is_tested():
    assert {type(message) for message in SAID} == set(FROM_AGENT)
    assert {type(message) for message in ANSWERED} == set(FROM_MASTER)


@pytest.mark.parametrize("message", SAID, ids=repr)
def test_message_of_the_agent_there_and_back_is_the_same(message):
    assert decode(encode(message), FROM_AGENT) == message


@pytest.mark.parametrize("message", ANSWERED, ids=repr)
def test_message_of_the_master_there_and_back_is_the_same(message):
    assert decode(encode(message), FROM_MASTER) == message


@given(MESSAGES)
def test_message_with_any_content_there_and_back_is_the_same(message):
    assert decode(encode(message), ALL) == message


@pytest.mark.parametrize("message", SAID, ids=repr)
def test_master_when_it_is_told_what_only_an_agent_says_takes_it_from_no_other(message):
    with pytest.raises(ValueError, match="no known kind"):
        decode(encode(message), FROM_MASTER)


@pytest.mark.parametrize("message", ANSWERED, ids=repr)
def test_agent_message_from_a_master_is_refused_in_the_other_direction(message):
    with pytest.raises(ValueError, match="no known kind"):
        decode(encode(message), FROM_AGENT)


@pytest.mark.parametrize(
    "text",
    ["", "{", "nonsense", "[" * 100_000, '{"kind": "Gone"} x', "\x00", "{'kind': 'Gone'}"],
    ids=lambda text: repr(text[:10]),
)
def test_decode_when_text_is_no_json_says_so(text):
    with pytest.raises(ValueError, match="is no JSON"):
        decode(text.encode(), ALL)


@pytest.mark.parametrize("data", [b"\xff", '{"kind": "Told", "legion": "é", "text": ""}'.encode()])
def test_decode_when_data_is_not_ascii_says_so(data):
    with pytest.raises(ValueError, match="is no JSON"):
        decode(data, ALL)


@pytest.mark.parametrize(
    "value", [None, 1, "Gone", [], {}, {"kind": 1}, {"kind": ["Gone"]}, {"kind": "Node"}]
)
def test_decode_when_value_is_no_message_says_so(value):
    with pytest.raises(ValueError, match="no known kind"):
        decode(json.dumps(value).encode(), ALL)


def fields_of(message):
    return json.loads(encode(message))


@pytest.mark.parametrize("message", [*SAID, *ANSWERED], ids=repr)
def test_decode_when_a_field_is_missing_or_too_much_says_so(message):
    said = fields_of(message)
    for name in said.keys() - {"kind"}:
        less = {key: value for key, value in said.items() if key != name}
        with pytest.raises(ValueError, match=f"is no {type(message).__name__}"):
            decode(json.dumps(less).encode(), ALL)
    with pytest.raises(ValueError, match=f"is no {type(message).__name__}"):
        decode(json.dumps({**said, "more": 1}).encode(), ALL)


@pytest.mark.parametrize("message", [*SAID, *ANSWERED], ids=repr)
def test_decode_when_a_field_has_another_type_says_which(message):
    said = fields_of(message)
    for name, right in said.items():
        for wrong in (None, True, 1, 1.0, "1", [], [1], {}, [[]], [None]):
            if name == "kind" or type(wrong) is type(right) is not list or wrong == []:
                continue
            with pytest.raises(ValueError, match=rf"has a wrong {name} of|is no Node"):
                decode(json.dumps({**said, name: wrong}).encode(), ALL)


@pytest.mark.parametrize("name", Node.__match_args__)
def test_decode_when_a_node_is_wrong_says_so(name):
    for message, path in ((SAID[3], ("node",)), (VIEW, ("nodes", 1))):
        said = fields_of(message)
        node = said
        for key in path:
            node = node[key]
        node[name] = None
        with pytest.raises(ValueError, match=f"has a wrong {name} of a Node"):
            decode(json.dumps(said).encode(), ALL)


def test_message_fits_whatever_the_nodes_of_a_view():
    nodes = tuple(NODE.replace(name=str(number), scroll="s" * 4096) for number in range(65))
    data = encode(VIEW.replace(nodes=nodes))
    assert len(data) <= MESSAGE_MAX
    view = decode(data, FROM_AGENT)
    assert view.nodes == nodes[: len(view.nodes)]
    assert len(view.nodes) >= 5
    assert view.left_out == 65 - len(view.nodes)


def test_view_when_not_even_itself_fits_says_nothing_of_nodes():
    view = VIEW.replace(nodes=(NODE.replace(scroll="\udcff" * 60000),))
    assert decode(encode(view), FROM_AGENT) == view.replace(nodes=(), left_out=1)


def test_view_when_nodes_fit_leaves_none_out():
    nodes = tuple(NODE.replace(name=f"h{number}") for number in range(65))
    assert decode(encode(VIEW.replace(nodes=nodes)), FROM_AGENT).nodes == nodes


@pytest.mark.parametrize(
    "message", [Told("web", "x" * MESSAGE_MAX), VIEW.replace(nodes=(), note="x" * MESSAGE_MAX)]
)
def test_message_that_cannot_be_made_shorter_says_so(message):
    with pytest.raises(ValueError, match="is too long"):
        encode(message)


def read(data):
    """Return the message, or None if it is refused with a phrase."""
    try:
        return decode(data, ALL)
    except ValueError as error:
        return None if str(error) else error


@given(st.binary(max_size=200))
def test_decode_when_data_is_random_raises_nothing_but_value_error(data):
    assert read(data) is None


@given(MESSAGES, st.integers(0, 10_000), st.integers(0, 255))
def test_decode_when_a_byte_is_changed_refuses_or_makes_sense(message, place, byte):
    data = bytearray(encode(message))
    data[place % len(data)] = byte
    other = read(bytes(data))
    assert other is None or decode(encode(other), ALL) == other
