"""What the links of a jail are called, and whose a link is."""

from __future__ import annotations

import os

import pytest

from lowsuper.config.network import parse_link_name, parse_mac
from lowsuper.kernel import links, wiring
from lowsuper.model import Link


@pytest.mark.parametrize("instance", ["web-0123abcd", "x" * 70, "-.@:+", "a", "cmdline-17"])
def test_names_are_valid_the_same_at_every_start_and_no_others(instance):
    seen = set()
    for name in ("eth0", "eth1", "x" * 15):
        link = wiring.complete(Link("veth", name), instance)
        assert link == wiring.complete(Link("veth", name), instance)
        assert parse_link_name(link.host_name) == link.host_name
        assert parse_mac(link.mac) == link.mac
        assert links.host_mac(link.mac) != link.mac
        other = wiring.complete(Link("veth", name), f"{instance}2")
        seen |= {link.host_name, link.mac, other.host_name, other.mac}
    assert len(seen) == 12


def test_what_was_given_is_kept():
    link = Link("veth", "eth0", mac="02:00:00:00:00:01", host_name="web")
    assert wiring.complete(link, "x") == link
    assert wiring.complete(Link("macvlan", "eth0", parent="x"), "x").host_name is None


def test_alias_tells_whose_a_link_is():
    own = wiring.name_owner("web-1")
    rest = own.rpartition(":")[2]
    pid, start, namespace = rest.split(".")
    assert links.judge_alias(own, own) == ""
    assert links.judge_alias(f"lowsuper:web-1:{pid}.1.{namespace}", own) == ""  # the number's last
    assert "not ours" in links.judge_alias("somebody", own)
    assert links.judge_alias(f"lowsuper:other:{rest}", own) == "it belongs to lowsuper:other"
    assert "another pid namespace" in links.judge_alias(f"lowsuper:web-1:{pid}.{start}.1", own)
    with open(f"/proc/{os.getppid()}/stat", "rb") as file:
        parent = file.read().rpartition(b")")[2].split()[19].decode()
    alias = f"lowsuper:web-1:{os.getppid()}.{parent}.{namespace}"
    assert "which runs" in links.judge_alias(alias, own)


def test_process_that_has_ended_has_no_network():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        with pytest.raises(OSError, match="No such"):
            wiring.open_netns(pid, pidfd)
    finally:
        os.waitpid(pid, 0)
        os.close(pidfd)


def test_own_network_is_no_jails():
    pidfd = os.pidfd_open(os.getpid())
    try:
        with pytest.raises(AssertionError):
            wiring.open_netns(os.getpid(), pidfd)
    finally:
        os.close(pidfd)
