"""Legions that a real etcd elects: one daemon at a time, whatever happens to nodes and servers."""

from __future__ import annotations

import contextlib
import shutil
import signal
from base64 import b64encode
from urllib.parse import quote

import pytest
from etcds import Arena, Certificates, Cluster, Proxy, now_boot
from masters import need

TTL = 3.0
SECOND = 1_000_000_000
MARGIN = SECOND


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    need(shutil.which("etcd") is not None, "etcd (etcd-server)")
    cluster = Cluster(tmp_path_factory.mktemp("etcd"))
    yield cluster
    cluster.close()


@pytest.fixture
def arena(cluster, tmp_path):
    arena = Arena(tmp_path, cluster.urls)
    yield arena
    arena.close()
    arena.check()


def enter_two(arena, **options):
    """Have a lord and one that could be the next."""
    first = arena.enter(node="first", **options)
    assert arena.wait(1)["node"] == "first"
    second = arena.enter(node="second", **options)
    second.wait("Occurred", event="join")
    return first, second


def end_of(contender):
    """Return until when the last lease was."""
    return [line["until"] for line in contender.drain() if line["kind"] == "Lease"][-1]


def test_lord_has_hooks_a_token_and_a_view(arena):
    first = arena.enter(node="first", valor=2, scroll="of the first")
    told = first.wait("Told")["text"]
    assert told.startswith("asks http://127.0.0.1:")
    for event in ("setup", "join", "lord"):
        first.wait("Occurred", event=event)
    lease = first.wait("Lease")
    assert int(lease["token"]) > 1
    assert now_boot() < lease["until"] <= now_boot() + int(TTL * SECOND) - MARGIN
    second = arena.enter(node="second", scroll="of the second")
    assert first.wait("Occurred", event="node-joined")["node"] == "second"
    assert second.wait("Occurred", event="node-joined")["node"] == "first"
    view = second.wait("View", state="follower", note="")
    nodes = {node["name"]: node for node in view["nodes"]}
    while "first" not in nodes or not nodes["first"]["lord"]:
        view = second.wait("View")
        nodes = {node["name"]: node for node in view["nodes"]}
    assert view["lord"] == nodes["first"]["uuid"]
    assert (nodes["first"]["scroll"], nodes["first"]["valor"]) == ("of the first", 2)
    assert nodes["first"]["peer"] == "etcd"
    assert arena.wait(1)["token"] == lease["token"]
    second.say("quit")
    second.wait("Occurred", event="death")
    second.wait("Over")
    assert first.wait("Occurred", event="node-left")["node"] == "second"


def test_lord_that_stops_hands_over_at_once(arena):
    first, second = enter_two(arena)
    first.say("quit")
    first.wait("Resign", why="the master stops")
    first.wait("Occurred", event="unlord")
    first.wait("Over")
    assert arena.wait(2)["node"] == "second"
    down, up = arena.of("down")[0]["at"], arena.of("up")[1]["at"]
    assert up - down < SECOND, "it is not waited for the end of a lease"
    assert second.drain()[-1]["kind"] != "Resign"


def test_killed_lord_is_replaced_when_its_lease_is_over(arena):
    first, second = enter_two(arena)
    until = end_of(first)
    first.signal(signal.SIGKILL)
    assert arena.wait(2)["node"] == "second"
    assert arena.of("down")[0]["at"] >= until, "its daemon has gone on until its deadline"
    assert second.wait("Occurred", event="node-left")["node"] == "first"


def test_stopped_lord_finds_itself_deposed(arena):
    first, second = enter_two(arena)
    first.signal(signal.SIGSTOP)
    assert arena.wait(2)["node"] == "second"
    first.signal(signal.SIGCONT)
    first.wait("Resign")
    first.wait("Occurred", event="unlord")
    first.wait("View", state="follower", note="")
    assert len(arena.of("up")) == 2
    assert not [line for line in second.drain() if line["kind"] == "Resign"]


def test_three_contend_and_each_is_killed_in_turn(arena):
    nodes = {name: arena.enter(node=name) for name in ("a", "b", "c")}
    for number in (1, 2, 3):
        name = arena.wait(number)["node"]
        nodes.pop(name).signal(signal.SIGKILL)
    assert len({entry["node"] for entry in arena.of("up")}) == 3


def test_higher_valor_gets_the_title_when_the_daemon_has_ended(arena):
    low = arena.enter(node="low", valor=1)
    arena.wait(1)
    arena.enter(node="arbiter", valor=0).wait("Occurred", event="join")
    arena.enter(node="high", valor=2)
    low.wait("Resign", why="high has a higher valor")
    assert arena.wait(2)["node"] == "high"
    down, up = arena.of("down")[0]["at"], arena.of("up")[1]["at"]
    assert down <= up < down + SECOND


def test_lord_hook_that_fails_makes_room(arena):
    first, second = enter_two(arena, suspension=60)
    first.say("fail")
    first.wait("Resign", why="a lord hook has failed")
    assert arena.wait(2)["node"] == "second"
    first.wait("View", state="suspended", note="a lord hook has failed")
    assert second.wait("Occurred", event="node-left")["node"] == "first"


def test_death_of_the_leader_costs_no_title(cluster, arena):
    first, _ = enter_two(arena, ttl=5.0)
    leader = cluster.find_leader()
    leader.kill()
    try:
        lease = first.wait("Lease")
        end = now_boot() + 3 * SECOND
        while lease["until"] < end:
            lease = first.wait("Lease")
        assert not [line for line in first.drain() if line["kind"] == "Resign"]
    finally:
        leader.start()
        assert cluster.wait_ready()
    assert len(arena.of("up")) == 1


@contextlib.contextmanager
def stopped(members):
    for member in members:
        member.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for member in members:
            member.signal(signal.SIGCONT)


def test_etcd_without_a_majority_stops_the_daemon_in_time(cluster, arena):
    first, second = enter_two(arena)
    with stopped(cluster.members[:2]):
        first.wait("Resign", why="etcd did not answer in time")
        first.wait("Occurred", event="unlord")
        until = end_of(first)
        assert now_boot() < until
        assert len(arena.of("down")) == 1
        assert arena.of("down")[0]["at"] < until
        view = second.wait("View", state="waiting", note="etcd does not answer")
        assert not view["lord"] or view["note"]
    assert cluster.wait_ready()
    arena.wait(2)


def test_servers_that_are_deaf_or_gone_cost_no_title(cluster, arena):
    deaf = Proxy(cluster.members[0].port)
    deaf.is_deaf = True
    gone = Proxy(cluster.members[0].port)
    gone.close()
    try:
        first = arena.enter(node="first", servers=[deaf.url, gone.url, cluster.urls[1]])
        first.wait("Told", text=f"{deaf.url} did not answer in ")
        first.wait("Told", text=f"{gone.url} cannot be reached: Connection refused")
        arena.wait(1)
        lease = first.wait("Lease")
        end = now_boot() + SECOND * 2
        while lease["until"] < end:
            lease = first.wait("Lease")
        assert not [line for line in first.drain() if line["kind"] == "Resign"]
    finally:
        deaf.close()


def test_server_that_goes_deaf_costs_no_title(cluster, arena):
    proxy = Proxy(cluster.members[0].port)
    try:
        first = arena.enter(node="first", servers=[proxy.url, cluster.urls[1]])
        arena.wait(1)
        proxy.is_deaf = True
        first.wait("Told", text=f"{proxy.url} did not answer in ")
        end = now_boot() + SECOND * 3
        while first.wait("Lease")["until"] < end:
            pass
        assert not [line for line in first.drain() if line["kind"] == "Resign"]
    finally:
        proxy.close()


def test_slow_server_is_no_lie(cluster, arena):
    """Answers that are late prove what they prove from when they were asked for."""
    proxy = Proxy(cluster.members[0].port)
    try:
        first = arena.enter(node="first", servers=[proxy.url])
        arena.wait(1)
        arena.enter(node="second").wait("Occurred", event="join")
        proxy.delay = 0.08
        end = now_boot() + SECOND * 2
        while (lease := first.wait("Lease"))["until"] < end:
            pass
        assert lease["until"] <= now_boot() + int(TTL * SECOND) - MARGIN
        proxy.delay = 1.5
        first.wait("Resign", why="etcd did not answer in time")
        assert arena.wait(2)["node"] == "second"
        assert arena.of("down")[0]["at"] < lease["until"] + int(TTL * SECOND)
    finally:
        proxy.close()


def test_key_that_somebody_deletes_ends_the_title_at_once(cluster, arena):
    first = arena.enter(node="first")
    arena.wait(1)
    lease = first.wait("Lease")
    key = f"/lowsuper/legion/{quote(arena.legion, safe='')}/lord"
    cluster.members[0].ask("kv/deleterange", key=encode(key))
    resign = first.wait("Resign", why="the key of its title is not as it was written")
    assert resign["until"] < lease["until"] + SECOND
    token = arena.wait(2)["token"]
    assert int(token) > int(lease["token"])


# Passwords and certificates.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that wants a certificate, and a user with a password."""
    need(shutil.which("etcd") is not None, "etcd (etcd-server)")
    directory = tmp_path_factory.mktemp("guarded")
    cluster = Cluster(directory, 1, tls=Certificates(directory))
    try:
        set_up_users(cluster.members[0])
        yield cluster
    finally:
        cluster.close()


def encode(text):
    return b64encode(text.encode()).decode()


def set_up_users(member):
    for name in ("root", "beat", "nobody"):
        member.ask("auth/user/add", name=name, password=f"of-{name}")
    for role in ("root", "legions"):
        member.ask("auth/role/add", name=role)
    keys = {"key": encode("/lowsuper/"), "range_end": encode("/lowsuper0")}
    member.ask("auth/role/grant", name="legions", perm={"permType": "READWRITE", **keys})
    member.ask("auth/user/grant", user="root", role="root")
    member.ask("auth/user/grant", user="beat", role="legions")
    member.ask("auth/enable")


@pytest.fixture
def guarded_arena(guarded, tmp_path):
    arena = Arena(tmp_path, guarded.urls)
    yield arena
    arena.close()
    arena.check()


def ways_in(guarded, **changes):
    tls = guarded.tls
    way = {"ca": tls.ca, "certificate": tls.client[0], "key": tls.client[1]}
    # To compare a password takes a server some time.
    return {**way, "user": "beat", "password": "of-beat", "ttl": 10.0, **changes}


def test_certificate_and_password_let_it_in(guarded, guarded_arena):
    first = guarded_arena.enter(**ways_in(guarded))
    guarded_arena.wait(1)
    first.say("quit")
    first.wait("Over")
    assert "of-beat" not in str(first.drain())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"password": "of-best"}, "authentication failed, invalid user ID or password"),
        ({"user": "nobody", "password": "of-nobody"}, "says: etcdserver: permission denied"),
        ({"ca": "other"}, "is not to be trusted: "),
        ({"ca": None}, "is not to be trusted: "),
        ({"certificate": None, "key": None}, "does not agree on TLS: "),
        ({"certificate": "named"}, "takes no certificate with a common name where there are users"),
    ],
    ids=["password", "permission", "authority", "no authority", "no certificate", "common name"],
)
def test_what_keeps_it_out_is_told(guarded, guarded_arena, changes, text):
    if changes.get("ca"):
        changes = {"ca": guarded.tls.other_ca}
    if changes.get("certificate"):
        changes = dict(zip(("certificate", "key"), guarded.tls.named, strict=True))
    first = guarded_arena.enter(**ways_in(guarded, **changes))
    first.wait("Told", text=text)
    first.wait("View", state="waiting", note=text)
    assert not guarded_arena.entries


def test_token_that_has_run_out_is_renewed(guarded, guarded_arena):
    first = guarded_arena.enter(**ways_in(guarded))
    guarded_arena.wait(1)
    member = guarded.members[0]
    # Tokens are in the memory of the server.
    member.kill()
    member.start()
    lease = first.wait("Lease")
    end = now_boot() + int(9.5 * SECOND)
    while lease["until"] < end:
        lease = first.wait("Lease")
    assert len(guarded_arena.of("up")) == 1
