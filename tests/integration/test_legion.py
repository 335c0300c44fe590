"""Legions of real masters: one daemon at a time, whatever happens to nodes, processes and wires."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from legions import DAEMON, FREQ, TOLERANCE, Legion, freeze, thaw
from masters import RUNTIME, find_marked, needs_root, wait_gone
from wires import Wire

pytestmark = needs_root

TAKEOVER = TOLERANCE + 4.0
"""Seconds in which another node takes over, on a busy machine."""


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


def begin(legion, **options):
    """Start three nodes, of which the first is the lord; return the pid of its daemon."""
    for number in legion.wire.places:
        legion.start(number, valor=40 - 10 * number, **options)
    pid = legion.journal.wait(1)
    legion.nodes[1].wait_started(DAEMON)
    return pid


def expect_takeover(legion, after, timeout=TAKEOVER):
    """Wait for the daemon of another node, and see that there were never two."""
    legion.journal.wait(after + 1, timeout)
    legion.journal.check()


WAYS = {
    "multicast": {},
    "unicast": {"unicast": True},
    "multicast6": {"ipv6": True},
    "unicast6": {"unicast": True, "ipv6": True},
    "gcm": {"cipher": "aes-256-gcm"},
    "chacha": {"cipher": "chacha20-poly1305", "unicast": True},
    "blowfish": {"cipher": "bf-cbc"},
}


@pytest.mark.parametrize("way", WAYS)
def test_takeover_when_the_lord_stops_is_at_once(legion, way):
    begin(legion, **WAYS[way])
    begun = time.monotonic()
    assert legion.nodes[1].stop() == 0
    legion.journal.wait(2)
    assert time.monotonic() - begun < FREQ, "before the next packet that is due anyway"
    assert legion.lord() == 2
    legion.journal.check()


def test_lord_that_is_killed_is_followed(legion):
    pid = begin(legion)
    legion.nodes[1].kill()
    wait_gone(pid)
    expect_takeover(legion, 1)
    assert legion.lord() == 2


def test_lord_that_is_cut_off_has_ended_its_daemon_before_another_starts(legion):
    begin(legion)
    legion.wire.isolate(1)
    legion.nodes[1].wait_line("legion l: too few nodes are heard: ending 1 daemon")
    expect_takeover(legion, 1)
    assert legion.lord() == 2
    legion.wire.heal()
    # It has the higher valor: the other gives up in order.
    legion.nodes[2].wait_line("has a higher valor: ending 1 daemon")
    expect_takeover(legion, 2)
    assert legion.lord() == 1


@pytest.mark.parametrize("direction", ["out", "in"])
def test_lord_that_is_cut_off_one_way(legion, direction):
    begin(legion)
    pairs = [(1, 2), (1, 3)]
    legion.wire.cut(*(pair if direction == "out" else pair[::-1] for pair in pairs))
    # One that hears nothing still says for a while that it has heard the others lately.
    expect_takeover(legion, 1, 2 * TOLERANCE + 4.0)
    assert legion.lord() == 2


def test_daemon_that_does_not_end_is_killed_before_another_starts(legion):
    pid = begin(legion, words="")
    legion.wire.isolate(1)
    wait_gone(pid)
    expect_takeover(legion, 1)


@pytest.mark.parametrize("who", ["master", "agent", "both"])
def test_lord_that_is_stopped_loses_its_daemon_before_another_starts(legion, who):
    pid = begin(legion, words="")
    pids = {"master": [legion.nodes[1].pid], "agent": [legion.agent_of(1)]}
    pids["both"] = pids["agent"] + pids["master"]
    for each in pids[who]:
        freeze(each)
    expect_takeover(legion, 1, 2 * TOLERANCE + 4.0)
    assert not Path(f"/proc/{pid}/exe").exists() or pid not in find_marked(legion.nodes[1].mark)
    assert legion.lord() == 2
    for each in pids[who]:
        thaw(each)
    legion.journal.check()


def test_agent_that_is_killed_is_started_again(legion):
    begin(legion)
    agent = legion.agent_of(1)
    os.kill(agent, signal.SIGKILL)
    legion.nodes[1].wait_line("legion agent: it was killed by SIGKILL .*; next try in 1 s")
    expect_takeover(legion, 1)


def test_smart_daemon_does_not_survive_a_stop(legion):
    legion.masters.allow_survivors()
    pid = begin(legion, smart=True)
    assert legion.nodes[1].stop() == 0
    wait_gone(pid)
    expect_takeover(legion, 1)


def test_smart_daemon_of_a_lord_that_was_killed_is_gone_in_time(legion):
    legion.masters.allow_survivors()
    pid = begin(legion, smart=True)
    legion.nodes[1].kill()
    wait_gone(pid)
    expect_takeover(legion, 1)


def test_smart_daemon_is_ended_when_its_node_comes_back(legion):
    legion.masters.allow_survivors()
    pid = begin(legion, smart=True, tolerance=30)
    legion.nodes[1].kill()
    node = legion.start(1, valor=30, smart=True, tolerance=30)
    node.wait_line("this node is not the lord of the legion l: SIGTERM")
    wait_gone(pid)
    legion.journal.check()


def test_reload_starts_the_daemon_again_on_the_lord_only(legion):
    begin(legion)
    for node in legion.nodes.values():
        node.signal(signal.SIGHUP)
        node.wait_line("reloaded in")
    legion.journal.wait(2)
    assert legion.lord() == 1
    legion.journal.check()


def test_reload_with_another_quorum_makes_a_new_agent(legion):
    begin(legion)
    before = legion.agent_of(1)
    legion.masters.write(legion.configure(1, valor=30, quorum=3), "node1.ini")
    legion.nodes[1].signal(signal.SIGHUP)
    legion.nodes[1].wait_line("the configuration of the legion has changed: ending 1 daemon")
    legion.journal.wait(2, TAKEOVER)
    wait_gone(before)
    legion.journal.check()


def test_without_quorum_both_parts_of_a_network_have_a_lord(legion):
    begin(legion, quorum=0)
    legion.wire.isolate(1)
    legion.nodes[2].wait_line("this node is the lord now")
    legion.nodes[2].wait_line(rf"{DAEMON}: pid .* exited with 9")  # `sole.py` when it is not alone
    assert legion.journal.pids


def test_lord_hooks_come_first_and_one_that_fails_keeps_the_node_out(legion):
    hooks = "legion-lord = l exec:false\nlegion-death-on-lord-error = 60"
    for number in legion.wire.places:
        more = hooks if number == 1 else "legion-lord = l cmd:echo $LOWSUPER_LEGION is mine"
        legion.start(number, valor=40 - 10 * number, more=more)
    legion.nodes[1].wait_line("this node keeps out of the legion for 1 min")
    legion.nodes[2].wait_output("l is mine")
    legion.journal.wait(1, TAKEOVER)
    assert legion.lord() == 2
    legion.journal.check()


def test_hook_that_hangs_does_not_cost_the_title(legion):
    more = "legion-lord = l exec:sleep 1000"
    for number in legion.wire.places:
        legion.start(number, valor=40 - 10 * number, more=more if number == 1 else "")
    legion.nodes[1].wait_line("this node is the lord now")
    time.sleep(0)  # it goes on to say so
    legion.nodes[2].drain()
    assert not legion.journal.pids
    assert legion.nodes[1].stop() == 0
    expect_takeover(legion, 0)


def test_secret_is_nowhere_to_be_seen(legion):
    begin(legion)
    secret = b"that-is-long-enough"
    agent = legion.agent_of(1)
    for pid in (agent, legion.nodes[1].pid, legion.journal.pids[0]):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
    for node in legion.nodes.values():
        node.expect_silence(secret.decode())
    for verb in (["status", "--json"], ["legion", "--json"], ["why", DAEMON]):
        assert secret.decode() not in ask(legion, *verb)


def test_agent_has_no_privileges(legion):
    begin(legion)
    status = Path(f"/proc/{legion.agent_of(1)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert 0 not in map(int, fields["Uid"].split() + fields["Gid"].split())
    assert fields["Groups"].strip() == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def ask(legion, *words):
    command = [sys.executable, "-m", "lowsuper", *words, "-n", "node1"]
    env = {**os.environ, RUNTIME: f"{legion.masters.directory}/.run"}
    return subprocess.run(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=20,
        check=False,
    ).stdout


def test_legion_is_shown(legion):
    begin(legion)
    text = ask(legion, "legion")
    assert text.startswith("l: this node is the lord, for "), text
    assert "(votes: 3, 2 needed)" in text
    lines = text.splitlines()
    assert len(lines) == 5, text
    assert "this node" in lines[2], text
    legion.nodes[1].stop()
    legion.journal.wait(2)


def test_daemon_that_may_not_run_says_why(legion):
    legion.start(1)
    assert "starts when this node is the lord of the legion l" in ask(legion, "why", DAEMON)
    assert "this node is not the lord of the legion l" in ask(legion, "start", DAEMON)
    assert not legion.journal.pids
