"""Whatever state a node of a legion is in and whatever it hears, the election holds its promises.

Totality: `step` answers every event in every state, also in states that it never gets into itself.
Hostile: whoever sends again what nodes have once said makes no lord, and keeps no dead one alive.
"""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "sim"))

from legion import MS, Plan, World

from lowsuper.legion import words
from lowsuper.legion.election import MOST_MEMBERS, MOST_SENT, MOST_TOMBS, step, view
from lowsuper.legion.packet import NOBODY, Packet, sum_of
from lowsuper.legion.states import (
    ENDED,
    FOLLOWER,
    LORD,
    RESIGNING,
    SUSPENDED,
    Begin,
    Busy,
    End,
    Heard,
    HookFailed,
    Lease,
    Member,
    Node,
    Quit,
    Resign,
    Rules,
    Send,
    Sent,
    Tomb,
    WakeAt,
    Woke,
)
from lowsuper.units import SECOND

ME = "8" * 36
NAMES = tuple(f"{number:x}" * 36 for number in (1, 5, 9, 15))
NOW = 1000 * SECOND
WALL = 1_700_000_000

# Times are few, so that they coincide and lie on both sides of every bound.
BOUNDS = (0, 1, 100 * MS, SECOND, 3 * SECOND, 14 * SECOND, 15 * SECOND, 16 * SECOND, 60 * SECOND)
PAST = st.sampled_from([NOW - bound for bound in BOUNDS] + [0, -1])
TIMES = st.sampled_from([NOW + sign * bound for bound in BOUNDS for sign in (-1, 1)] + [0])
UUIDS = st.sampled_from((*NAMES, ME, NOBODY, "\udcff" * 36))
SEQS = st.sampled_from([0, 1, 2, 3, 10, 11, (1 << 64) - 1])
VALORS = st.sampled_from([0, 1, 2, 65535, (1 << 64) - 1])
WALLS = st.sampled_from([0, 1, WALL - 61, WALL - 60, WALL, WALL + 10**6, (1 << 64) - 1])
VOTES = st.tuples(VALORS, UUIDS)
SUMS = st.sampled_from([0, sum_of(1, ME), sum_of(1, ME) + sum_of(2, NAMES[0])])
ECHOES = st.lists(st.tuples(UUIDS, SEQS), max_size=4).map(tuple)

RULES = st.builds(
    Rules,
    legion=st.just("web"),
    valor=VALORS,
    name=st.just("me"),
    pid=st.just(1),
    uuid=st.just(ME),
    quorum=st.integers(0, 4),
    freq=st.sampled_from([SECOND, 3 * SECOND]),
    tolerance=st.sampled_from([4 * SECOND, 15 * SECOND]),
    skew=st.sampled_from([0, 60]),
    patience=st.sampled_from([0, SECOND, 8 * SECOND]),
    suspension=st.sampled_from([0, 20 * SECOND]),
    modern=st.booleans(),
)
MEMBERS = st.builds(
    Member,
    valor=VALORS,
    name=st.sampled_from(["a", "b"]),
    uuid=UUIDS.filter(lambda uuid: uuid != ME),
    seen=PAST,
    unix=WALLS,
    lord=WALLS,
    checksum=SUMS,
    vote=VOTES,
    seq=SEQS,
    reached=PAST,
    counts=st.booleans(),
)
NODES = st.builds(
    Node,
    state=st.sampled_from([FOLLOWER, LORD, RESIGNING, SUSPENDED, ENDED]),
    since=PAST,
    members=st.lists(MEMBERS, max_size=5, unique_by=lambda member: member.uuid).map(tuple),
    tombs=st.lists(st.builds(Tomb, uuid=UUIDS, seq=SEQS, unix=WALLS, until=TIMES), max_size=3).map(
        tuple
    ),
    sent=st.lists(st.builds(Sent, seq=SEQS, at=PAST), max_size=4).map(tuple),
    seq=SEQS,
    lord=WALLS,
    until=TIMES,
    leased=TIMES,
    busy=st.booleans(),
    settled=st.booleans(),
    joined=st.booleans(),
    vote=VOTES,
    checksum=SUMS,
    votes=st.integers(0, 5),
    best=VOTES,
    due=TIMES,
    suspended=TIMES,
    quits=st.booleans(),
    out=st.sampled_from(["", "hook", "master"]),
    asked=PAST,
    warned=PAST,
    blamed=PAST,
)
PACKETS = st.builds(
    Packet,
    legion=st.sampled_from(["web", "other"]),
    valor=VALORS,
    unix=WALLS,
    name=st.sampled_from(["a", "b", "\udcff"]),
    pid=st.just(2),
    uuid=UUIDS,
    lord=WALLS,
    checksum=SUMS,
    lord_valor=VALORS,
    lord_uuid=UUIDS,
    dead=st.booleans(),
    seq=SEQS,
    heard=ECHOES,
    met=ECHOES,
)
EVENTS = st.one_of(
    st.just(Begin()),
    st.builds(Heard, PACKETS),
    st.just(Woke()),
    st.builds(Busy, busy=st.booleans(), until=TIMES),
    st.just(HookFailed()),
    st.just(Quit()),
)
STEPS = st.lists(
    st.tuples(EVENTS, st.sampled_from(BOUNDS), st.sampled_from([0, 0, 0, 100, -100])), max_size=8
)


def check_step(rules, before, event, node, actions, now):
    """Look at what every step must keep to."""
    assert len(node.members) <= max(MOST_MEMBERS, len(before.members))
    assert len(node.tombs) <= max(MOST_TOMBS, len(before.tombs))
    assert len(node.sent) <= max(MOST_SENT, len(before.sent))
    if before.state == ENDED:
        assert actions == ()
        return
    assert isinstance(actions[-1], End if node.state == ENDED else WakeAt)
    for action in actions:
        match action:
            case WakeAt():
                assert action.at >= now
            case Lease() if not isinstance(event, Begin):  # which is the first, of no lord
                assert node.busy
                early = min(SECOND, rules.tolerance // 10)  # for clocks, and for kills
                assert now < action.until <= now + rules.tolerance - early
            case Send():
                assert action.packet.legion == rules.legion
                assert action.packet.uuid == rules.uuid
    if before.state == LORD and node.state != LORD:
        assert any(isinstance(action, Resign) for action in actions)
    if before.state != LORD and node.state == LORD:
        assert any(isinstance(action, Lease) for action in actions)


@given(RULES, NODES, STEPS)
@settings(max_examples=300, deadline=None)
def test_step_answers_every_event_in_every_state(rules, node, steps):
    now, wall = NOW, WALL
    for event, pause, jump in steps:
        now, wall = now + pause, wall + jump
        before = node
        node, actions = step(rules, before, event, now, wall)
        assert step(rules, before, event, now, wall) == (node, actions)
        check_step(rules, before, event, node, actions, now)
        shown = view(rules, node, now)
        assert words.decode(words.encode(shown), words.FROM_AGENT) is not None


@given(RULES, NODES)
@settings(max_examples=200, deadline=None)
def test_step_when_woken_when_it_asked_for_it_soon_rests(rules, node):
    """However a node stands, it does not wake up again and again without an end."""
    now = NOW
    for _ in range(60):
        node, actions = step(rules, node, Woke(), now, WALL)
        if node.state == ENDED or actions[-1].at > now + SECOND // 100:
            break
        now = actions[-1].at
    else:
        pytest.fail(f"wakes all the time: {node}")


@given(RULES, st.lists(PACKETS, max_size=30))
@settings(deadline=None)
def test_step_when_nobody_answers_makes_no_lord_with_a_quorum(rules, packets):
    """Packets that echo nothing that was said lately are not enough, whatever they say."""
    rules = rules.replace(quorum=max(2, rules.quorum), modern=True)
    node, now = Node(), NOW
    node, _ = step(rules, node, Begin(), now, WALL)
    for packet in packets:
        now += SECOND
        deaf = packet.replace(heard=(), met=tuple((u, s) for u, s in packet.met if u != ME))
        node, actions = step(rules, node, Heard(deaf), now, WALL)
        assert node.state == FOLLOWER
        assert not any(isinstance(action, Lease) for action in actions)


def test_state_is_bounded_whoever_talks():
    rules = Rules("web", 1, "me", 1, ME, 2, SECOND, 15 * SECOND, 60, 0)
    source = random.Random(1)
    node, _ = step(rules, Node(), Begin(), NOW, WALL)
    for number in range(3000):
        packet = Packet(
            *("web", number % 7, WALL, f"n{number}", 1, f"{source.getrandbits(144):036x}"),
            *(0, 0, 0, NOBODY, "", number % 3 == 0),
            number % 2 * (number + 1),
            met=((ME, node.seq),),
        )
        node, actions = step(rules, node, Heard(packet), NOW + number, WALL)
        for action in actions:
            assert not isinstance(action, Send) or len(action.packet.heard) <= MOST_MEMBERS
    assert len(node.members) <= MOST_MEMBERS
    assert len(node.tombs) <= MOST_TOMBS
    assert len(node.sent) <= MOST_SENT


# What stands against a lord: one fact is changed at a time.

A, B = "1" * 36, "5" * 36
PLAIN = Rules("web", 9, "me", 1, ME, 2, 3 * SECOND, 15 * SECOND, 60, 2 * SECOND)
SUM = (sum_of(9, ME) + sum_of(1, A) + sum_of(2, B)) % (1 << 64)
KNOWN_A = Member(1, "a", A, NOW, WALL, 0, SUM, (9, ME), "", 10, NOW - SECOND)
KNOWN_B = Member(2, "b", B, NOW, WALL, 0, SUM, (9, ME), "", 20, NOW - SECOND)
READY = Node(
    since=NOW - 100 * SECOND,
    members=(KNOWN_A, KNOWN_B),
    sent=(Sent(7, NOW - SECOND),),
    seq=7,
    vote=(9, ME),
    checksum=SUM,
    due=NOW + SECOND,
)


def become_lord():
    node, actions = step(PLAIN, READY, Woke(), NOW, WALL)
    assert node.state == LORD
    assert Lease(NOW - SECOND + 14 * SECOND) in actions
    return node


def with_b(**changes):
    return READY.replace(members=(KNOWN_A, KNOWN_B.replace(**changes)))


def test_node_becomes_lord_when_nothing_stands_against_it():
    become_lord()


@pytest.mark.parametrize(
    ("rules", "node"),
    [
        (PLAIN, with_b(checksum=1)),
        (PLAIN, with_b(vote=(2, B))),
        (PLAIN, with_b(vote=(0, NOBODY))),
        (PLAIN, with_b(lord=1)),
        (PLAIN, with_b(reached=NOW - 15 * SECOND)),
        (PLAIN, with_b(reached=-1)),
        (PLAIN.replace(valor=0), READY),
        (PLAIN.replace(quorum=4), READY),
        (PLAIN.replace(quorum=3), READY.replace(since=NOW - SECOND)),
        (PLAIN, READY.replace(quits=True)),
        (PLAIN, READY.replace(fading=NOW + 1)),
        (PLAIN, READY.replace(members=(KNOWN_A.replace(reached=-1), KNOWN_B.replace(reached=-1)))),
    ],
    ids=[
        *("knows others", "votes for itself", "votes for nobody", "is the lord"),
        *("promise is over", "does not hear us", "arbiter", "no quorum", "has just started"),
        *("quits", "daemon of a uwsgi", "no evidence"),
    ],
)
def test_node_does_not_become_lord_when_one_thing_stands_against_it(rules, node):
    node, actions = step(rules, node, Woke(), NOW, WALL)
    assert node.state != LORD
    assert not any(isinstance(action, Lease) for action in actions)


def test_lord_when_a_master_says_before_it_has_read_the_lease_that_nothing_runs_waits():
    rules, node = PLAIN.replace(suspension=SECOND), become_lord()
    node, _ = step(rules, node, HookFailed(), NOW + 1, WALL)
    assert node.state == RESIGNING
    for said in (Busy(busy=False, until=0), Busy(busy=False, until=node.leased - 1)):
        node, _ = step(rules, node, said, NOW + 2, WALL)
        assert node.state == RESIGNING
    node, _ = step(rules, node, Busy(busy=True, until=node.leased), NOW + 3, WALL)
    assert node.state == RESIGNING
    node, actions = step(rules, node, Busy(busy=False, until=node.leased), NOW + 4, WALL)
    assert node.state == SUSPENDED
    assert next(a for a in actions if isinstance(a, Send)).packet.dead


def test_lord_whose_next_lease_is_on_its_way_does_not_believe_that_nothing_runs():
    node = become_lord()
    node, _ = step(PLAIN, node, Busy(busy=False, until=node.leased), NOW + 1, WALL)
    node = node.replace(sent=(*node.sent, Sent(8, NOW + SECOND)))
    echo = says(KNOWN_B, 21, heard=((ME, 8),))
    node, actions = step(PLAIN, node, Heard(echo), NOW + 2 * SECOND, WALL)
    assert Lease(NOW + SECOND + 14 * SECOND) in actions
    node, _ = step(PLAIN, node, Quit(), NOW + 2 * SECOND, WALL)
    assert node.state == RESIGNING


def test_lord_that_resigns_gives_up_when_a_kill_has_had_its_moment():
    node = become_lord()
    node, _ = step(PLAIN, node, Quit(), NOW + 1, WALL)
    before, _ = step(PLAIN, node, Woke(), node.until, WALL)
    assert before.state == RESIGNING
    before, _ = step(PLAIN, before, Woke(), node.until + SECOND - 1, WALL)
    assert before.state == RESIGNING
    after, _ = step(PLAIN, before, Woke(), node.until + SECOND, WALL)
    assert after.state == ENDED


def test_lord_that_nobody_hears_resigns_in_time_for_its_daemons_to_end():
    node = become_lord()
    node, _ = step(PLAIN, node, Busy(busy=True, until=node.leased), NOW, WALL)
    begin = node.until - PLAIN.patience
    before, _ = step(PLAIN, node, Woke(), begin - 1, WALL)
    assert before.state == LORD
    after, actions = step(PLAIN, before, Woke(), begin, WALL)
    assert after.state == RESIGNING
    assert actions[0].until == node.until


def test_lord_says_that_it_votes_for_itself_though_another_is_better():
    node = become_lord()
    better = KNOWN_B.replace(valor=99)
    node = node.replace(members=(KNOWN_A, better), due=0)
    for state in (LORD, RESIGNING):
        _, actions = step(PLAIN, node.replace(state=state), Woke(), NOW + 4 * SECOND, WALL)
        packet = next(a for a in actions if isinstance(a, Send)).packet
        assert (packet.lord_valor, packet.lord_uuid) == (9, ME)
        assert packet.lord


def test_lord_whose_master_answers_after_a_while_stays_in_the_legion():
    node = become_lord().replace(state=RESIGNING, out="master")
    node, actions = step(PLAIN, node, Busy(busy=False, until=node.leased), NOW + 1, WALL)
    assert node.state in (FOLLOWER, LORD)
    assert not any(isinstance(a, Send) and a.packet.dead for a in actions)


def test_node_that_comes_back_believes_nothing_from_before_its_goodbye():
    rules = PLAIN.replace(suspension=SECOND)
    node, _ = step(rules, become_lord(), HookFailed(), NOW + 1, WALL)
    node, _ = step(rules, node, Busy(busy=False, until=node.leased), NOW + 2, WALL)
    assert (node.state, node.members) == (SUSPENDED, ())
    node, _ = step(rules, node, Woke(), NOW + 2 * SECOND, WALL)
    assert node.state == FOLLOWER
    for known in (KNOWN_A, KNOWN_B):
        old = says(known, known.seq + 1, heard=((ME, 7),))
        node, _ = step(rules, node, Heard(old), NOW + 2 * SECOND, WALL)
    assert node.state == FOLLOWER
    assert not any(member.counts for member in node.members)


def says(member, seq, *, heard=((ME, 7),), **changes):
    return Packet(
        *("web", member.valor, WALL, member.name, 1, member.uuid, member.lord),
        *(member.checksum, *member.vote),
        seq=seq,
        heard=heard,
    ).replace(**changes)


@pytest.mark.parametrize(
    "packet",
    [
        says(KNOWN_B, 20),
        says(KNOWN_B, 19),
        says(KNOWN_B, 21, heard=()),
        says(KNOWN_B, 21, heard=((ME, 6),)),
        says(KNOWN_B, 21, heard=((A, 7),)),
        says(KNOWN_B, 21, unix=WALL - 61),
        says(KNOWN_B, 21, legion="other"),
        says(KNOWN_B, 21, valor=3),
        says(KNOWN_B, 21, name="c"),
        says(KNOWN_B, 0),
        says(KNOWN_B, 20, dead=True),
    ],
    ids=[
        *("the same again", "an earlier one", "echoes nothing", "echoes what is long ago"),
        *("echoes another", "old", "another legion", "another valor", "another name"),
        *("no seq any more", "a goodbye of before"),
    ],
)
def test_member_whose_packet_is_not_to_be_believed_stays_as_it_is(packet):
    node, _ = step(PLAIN, READY, Heard(packet), NOW + SECOND, WALL)
    assert node.members[1] == KNOWN_B


def test_member_whose_packet_is_new_and_echoes_us_is_taken():
    node, _ = step(PLAIN, READY, Heard(says(KNOWN_B, 21)), NOW + SECOND, WALL)
    assert node.members[1].seen == NOW + SECOND
    assert node.members[1].seq == 21


def test_member_that_has_said_goodbye_does_not_come_back_by_an_older_packet():
    node, _ = step(PLAIN, READY, Heard(says(KNOWN_B, 25, dead=True)), NOW, WALL)
    assert [member.uuid for member in node.members] == [A]
    for seq in (21, 24, 25):
        node, _ = step(PLAIN, node, Heard(says(KNOWN_B, seq)), NOW + 1, WALL)
        assert [member.uuid for member in node.members] == [A]
    node, _ = step(PLAIN, node, Heard(says(KNOWN_B, 26)), NOW + 1, WALL)
    assert [member.uuid for member in node.members] == [A, B]


def test_node_that_is_met_is_no_member_until_it_echoes_us():
    node = READY.replace(members=(KNOWN_A,))
    node, actions = step(PLAIN, node, Heard(says(KNOWN_B, 1, heard=())), NOW, WALL)
    assert [(member.uuid, member.counts) for member in node.members] == [(A, True), (B, False)]
    said = [action.packet for action in actions if isinstance(action, Send)]
    assert all(packet.heard == ((A, 10),) for packet in said)
    node, _ = step(PLAIN, node, Heard(says(KNOWN_B, 2, heard=(), met=((ME, 7),))), NOW, WALL)
    assert node.members[1].counts
    assert node.members[1].reached == -1, "it has not said that it counts us"


@pytest.mark.parametrize("modern", [False, True])
def test_uwsgi_is_a_member_unless_the_legion_is_modern(modern):
    node = READY.replace(members=(KNOWN_A,))
    packet = says(KNOWN_B, 0, heard=())
    node, _ = step(PLAIN.replace(modern=modern), node, Heard(packet), NOW, WALL)
    assert len(node.members) == (1 if modern else 2)


# Replayed packets.


def make_world(seed, kinds="lll", **changes):
    return World(Plan(kinds=kinds, modern=True, **changes), seed).start_all(SECOND)


def replay(world, node, duration, every=SECOND // 5, order="random"):
    """Let an attacker send to a node what was once sent, for that long."""
    wire = list(world.wire)
    for number in range(duration // every):
        packet = wire[number % len(wire)] if order == "same" else world.random.choice(wire)
        world.at(number * every, node.receive, packet)


@pytest.mark.parametrize("order", ["random", "same"])
@pytest.mark.parametrize("seed", range(5))
def test_replayed_packets_do_not_make_a_lord_of_a_node_that_is_alone(seed, order):
    world = make_world(seed)
    world.run(60 * SECOND)
    for node in world.nodes:
        node.crash()
    world.run(60 * SECOND)
    starts = len(world.starts)
    alone = world.nodes[0]
    alone.start()
    replay(world, alone, 90 * SECOND, order=order)
    world.run(90 * SECOND, lambda: alone.is_lord)
    assert not alone.is_lord, world.tell()
    assert len(world.starts) == starts
    assert not any(member.counts for member in alone.node.members), world.tell()


@pytest.mark.parametrize("order", ["random", "same"])
@pytest.mark.parametrize("seed", range(5))
def test_replayed_packets_do_not_keep_a_lord_whose_others_are_dead(seed, order):
    world = make_world(seed)
    world.run(60 * SECOND)
    lord = next(node for node in world.nodes if node.is_lord)
    for node in world.nodes:
        if node is not lord:
            node.crash()
    replay(world, lord, 60 * SECOND, order=order)
    world.run(world.plan.tolerance * SECOND)
    assert not world.running, world.tell()
    world.run(45 * SECOND)
    assert not world.running, world.tell()


@pytest.mark.parametrize("graceful", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_replayed_packets_do_not_keep_a_dead_lord_alive(seed, graceful):
    world = make_world(seed)
    world.run(60 * SECOND)
    lord = next(node for node in world.nodes if node.is_lord)
    starts = len(world.starts)
    lord.quit() if graceful else lord.crash()
    for node in world.nodes:
        replay(world, node, 60 * SECOND)
    plan = world.plan
    bound = (plan.freq if graceful else plan.tolerance + plan.freq) * SECOND + plan.patience
    assert world.run(bound, lambda: len(world.starts) > starts), world.tell()
    assert lord.number not in world.running
    assert not world.overlaps


@pytest.mark.parametrize("seed", range(5))
def test_replayed_packets_of_earlier_lives_do_not_disturb_a_legion(seed):
    world = make_world(seed)
    for _ in range(3):
        world.run(40 * SECOND)
        for node in world.nodes:
            node.crash()
            node.start()
    world.run(40 * SECOND)
    running = dict(world.running)
    assert len(running) == 1
    for node in world.nodes:
        replay(world, node, 90 * SECOND)
    world.run(90 * SECOND)
    assert world.running == running, world.tell()
    for node in world.nodes:
        assert len(node.node.members) <= MOST_MEMBERS


@pytest.mark.parametrize("seed", range(3))
def test_lease_never_goes_back_while_a_lord_stays(seed):
    world = make_world(seed)
    world.run(120 * SECOND)
    untils = [what.until for _, _, what in world.trace if isinstance(what, Lease)]
    assert len(untils) > 10
    assert all(earlier < later for earlier, later in pairwise(untils))


def test_packet_of_a_dead_uwsgi_that_is_sent_again_does_not_keep_it_alive():
    rules = Rules("l", 1, "a", 1, "0" * 36, 0, SECOND, 5 * SECOND, 60, SECOND)
    packet = Packet("l", 9, 1000, "u", 2, "f" * 36)
    node, _ = step(rules, Node(), Begin(), 0, 1000)
    for second in range(1, 12):
        node, _ = step(rules, node, Heard(packet), second * SECOND, 1000)
        assert bool(node.members) == (second <= 6), "it is heard for the first time at 1 s"
