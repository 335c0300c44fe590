"""Legions in which some nodes are the real uWSGI.

uWSGI's own nodes may run a second daemon beside a new lord's: a lord that is cut off notices that
at most once a minute. What is shown here is that a lowsuper node never adds one.
"""

from __future__ import annotations

import signal

import pytest
from legions import TOLERANCE, Legion
from masters import needs_root
from wires import Wire

pytestmark = needs_root

TAKEOVER = TOLERANCE + 8.0
"""Seconds: until a silent lord is given up, and what uWSGI needs for an election after that."""


@pytest.fixture
def wire():
    found = Wire(3)
    yield found
    found.close()


@pytest.fixture
def legion(wire, masters):
    found = Legion(masters, wire)
    yield found
    found.close()


def start(legion, kinds, **options):
    """Start node 1, 2, ... with valor 30, 20, ...; each is `u`, uWSGI, or `l`, lowsuper."""
    for number, kind in enumerate(kinds, 1):
        begin = legion.start_uwsgi if kind == "u" else legion.start
        begin(number, valor=40 - 10 * number, **options)


@pytest.mark.parametrize("cipher", ["aes-128-cbc", "aes-256-cbc"])
@pytest.mark.parametrize("kinds", ["lu", "ul"])
def test_two_nodes_elect_the_higher_valor(legion, kinds, cipher):
    start(legion, kinds, cipher=cipher)
    legion.journal.wait(1, 30)
    assert legion.lord() == 1
    legion.journal.check()


@pytest.mark.parametrize("kinds", ["ull", "lul", "uul", "luu", "ulu", "llu"])
def test_takeover_when_the_lord_stops_in_order(legion, kinds):
    start(legion, kinds)
    legion.journal.wait(1, 30)
    assert legion.lord() == 1
    if kinds[0] == "u":
        legion.nodes[1].signal(signal.SIGINT)  # SIGTERM reloads
        legion.nodes[1].wait()
    else:
        assert legion.nodes[1].stop() == 0
    legion.journal.wait(2, TAKEOVER)
    assert legion.lord() == 2
    legion.journal.check()


@pytest.mark.parametrize("kinds", ["llu", "luu", "lul"])
def test_takeover_when_a_lowsuper_lord_is_killed(legion, kinds):
    start(legion, kinds)
    legion.journal.wait(1, 30)
    legion.nodes[1].kill()
    legion.journal.wait(2, TAKEOVER)
    legion.journal.check()


@pytest.mark.parametrize("kinds", ["luu", "llu"])
def test_lowsuper_lord_that_is_cut_off_stops_before_another_starts(legion, kinds):
    start(legion, kinds)
    legion.journal.wait(1, 30)
    legion.wire.isolate(1)
    legion.journal.wait(2, TAKEOVER)
    assert legion.lord() == 2
    legion.journal.check()


def test_higher_valor_takes_over_from_a_lowsuper_lord_without_an_overlap(legion):
    legion.start(2, valor=20)
    legion.start(3, valor=10)
    legion.journal.wait(1, 30)
    legion.start_uwsgi(1, valor=30)
    legion.journal.wait(2, TAKEOVER)
    assert legion.lord() == 1
    legion.journal.check()


def test_arbiter_of_lowsuper_makes_the_quorum_of_a_uwsgi(legion):
    legion.start_uwsgi(1, valor=10)
    legion.start(2, valor=0)
    legion.journal.wait(1, 30)
    assert legion.lord() == 1


def test_arbiter_of_uwsgi_makes_the_quorum_of_a_lowsuper(legion):
    legion.start(1, valor=10)
    legion.start_uwsgi(2, valor=0)
    legion.journal.wait(1, 30)
    assert legion.lord() == 1


def test_hooks_of_both(legion):
    hooks = "\n".join(
        f"legion-{event} = l log:HOOK {event}"
        for event in ("setup", "join", "lord", "unlord", "node-joined", "node-left", "death")
    )
    one = legion.start(1, valor=30, more=hooks)
    two = legion.start_uwsgi(2, valor=20, more=hooks)
    legion.journal.wait(1, 30)
    one.wait_lines("HOOK setup", "HOOK join", "HOOK lord", "HOOK node-joined")
    assert one.stop() == 0
    for event in ("HOOK unlord", "HOOK death"):
        assert one.has_said(event), one.text
    for event in ("setup", "join", "node-joined"):
        assert two.has_said(f"HOOK {event}"), two.text
