"""The orders of the agent: what it needs arrives whole, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowsuper.legion.orders import decode_orders, encode_orders
from lowsuper.model import Command, Endpoint, Etcd, Legion, LegionHook, Origin, Secret

TEXTS = st.text(max_size=20) | st.binary(max_size=20).map(
    lambda data: data.decode("utf-8", "surrogateescape")
)
NUMBERS = st.integers(0, 1 << 62)
SECRETS = st.builds(Secret, TEXTS)
ENDPOINTS = st.builds(
    Endpoint, TEXTS, st.sampled_from(["udp", "udp6"]), TEXTS, st.integers(0, 65535)
)
NODES = st.lists(ENDPOINTS, max_size=3).map(tuple)
MAYBE = st.none() | TEXTS
ETCDS = st.builds(
    Etcd,
    st.lists(TEXTS, max_size=3).map(tuple),
    NUMBERS,
    ca=MAYBE,
    certificate=MAYBE,
    key=MAYBE,
    user=MAYBE,
    password=st.none() | SECRETS,
)
NOWHERE = Origin("", 0, "", "")
LEGIONS = st.builds(
    Legion,
    TEXTS,
    st.just(NOWHERE),
    valor=NUMBERS,
    address=st.none() | ENDPOINTS,
    multicast=st.booleans(),
    nodes=NODES,
    cipher=TEXTS,
    secret=SECRETS,
    iv=MAYBE,
    quorum=NUMBERS,
    freq=NUMBERS,
    tolerance=NUMBERS,
    skew_tolerance=NUMBERS,
    death_on_lord_error=NUMBERS,
    scroll=TEXTS,
    scroll_max_size=NUMBERS,
    multicast_ttl=NUMBERS,
    etcd=st.none() | ETCDS,
)


@given(
    st.lists(st.tuples(LEGIONS, NUMBERS), max_size=3, unique_by=lambda pair: pair[0].name),
    TEXTS,
    NUMBERS,
)
def test_orders_arrive_as_they_were_given(pairs, name, number):
    legions = tuple(legion for legion, _ in pairs)
    patience = {legion.name: wait for legion, wait in pairs}
    data = encode_orders(legions, patience, name=name, pid=number, uid=1, gid=2)
    orders = decode_orders(data)
    assert orders.legions == legions
    assert orders.patience == tuple(patience.values())
    assert (orders.name, orders.pid, orders.uid, orders.gid) == (name, number, 1, 2)


def test_what_hooks_run_is_not_told():
    command = Command("mail boss", ("mail", "boss"))
    origin = Origin("/etc/web.ini", 7, "legion-lord", "web cmd:mail boss")
    hook = LegionHook("lord", origin, command)
    legion = Legion("web", origin, hooks=(hook,))
    data = encode_orders((legion,), {"web": 0}, name="n", pid=1, uid=1, gid=1)
    assert b"boss" not in data
    assert b"/etc/web.ini" not in data
    assert decode_orders(data).legions == (legion.replace(hooks=(), origin=NOWHERE),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"legions":1}',
        b'{"legions":[],"patience":[]}',
        b'{"legions":[{}],"patience":[],"name":"","pid":1,"uid":1,"gid":1}',
        b'{"legions":[7],"patience":[],"name":"","pid":1,"uid":1,"gid":1}',
        b'{"legions":[],"patience":[],"name":"","pid":1,"uid":1,"gid":1,"more":1}',
        b'{"secret":"hush"',
    ],
)
def test_what_is_no_orders_is_refused_without_being_repeated(data):
    with pytest.raises(ValueError, match=r"^are no orders \(\w+\)$"):
        decode_orders(data)
