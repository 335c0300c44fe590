"""The network of a jail: what its options mean, and all that can be wrong with them."""

from __future__ import annotations

import pytest
from config_world import load_lines
from hypothesis import given
from hypothesis import strategies as st

from lowsuper.check import find_network_problems
from lowsuper.config.network import format_link, parse_link
from lowsuper.errors import ConfigError
from lowsuper.model import Link

BASE = ("namespace = /ns/001", "namespace-net = true")


def reasons_of(*lines):
    with pytest.raises(ConfigError) as caught:
        load_lines(*lines)
    return [problem.reason for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("veth:eth0", Link("veth", "eth0")),
        (
            "veth:eth0,address=10.9.0.2/24,gateway=10.9.0.1,bridge=br0",
            Link("veth", "eth0", ("10.9.0.2/24",), ("10.9.0.1",), bridge="br0"),
        ),
        (
            " veth : eth0 , address = FD00::2/64 , gateway=fe80::1, mtu=1400, host_name=web",
            Link("veth", "eth0", ("fd00::2/64",), ("fe80::1",), mtu=1400, host_name="web"),
        ),
        (
            "veth:a,address=10.0.0.2/31,peer-address=10.0.0.3/31,gateway=10.0.0.3",
            Link("veth", "a", ("10.0.0.2/31",), ("10.0.0.3",), peer_addresses=("10.0.0.3/31",)),
        ),
        (
            "macvlan:lan0,link=eth1,address=10.1.0.9/16,address=fd01::9/64,mac=02:00:00:00:00:AA",
            Link(
                "macvlan",
                "lan0",
                ("10.1.0.9/16", "fd01::9/64"),
                mac="02:00:00:00:00:aa",
                parent="eth1",
            ),
        ),
    ],
)
def test_link(text, link):
    assert parse_link(text) == (link, [])
    assert load_lines(*BASE, f"namespace-net-link = {text}").jail.links == (link,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is no kind of link; begin with veth:NAME"),
        ("eth0", "eth0 is no kind of link; begin with veth:NAME"),
        ("veht:eth0", "veht is no kind of link; did you mean veth:NAME?"),
        ("veth", "veth lacks the name of the link: write veth:NAME"),
        ("veth:", "is no name of a link: it is empty"),
        ("veth:lo", "lo is no name for a link: it has a meaning of its own"),
        ("veth:..", ".. is no name of a link"),
        ("veth:a/b", "a/b is no name of a link: it holds '/'"),
        ("veth:eth%d", "eth%d is no name of a link: it holds '%'"),
        ("veth:é", "é is no name of a link: it holds 'é'"),
        (f"veth:{'x' * 16}", f"{'x' * 16} is no name of a link: it is longer than 15 bytes"),
        ("veth:e,adress=10.0.0.1/8", "a link has no adress; did you mean address?"),
        ("veth:e,", "a link has no key without a name; there are address, gateway, mtu, mac,"),
        ("veth:e,mtu", "mtu needs a value"),
        ("veth:e,mtu=9", "mtu=9: is not between 68 and 65535"),
        ("veth:e,mtu=x", "mtu=x: is not a number"),
        ("veth:e,mtu=1000,address=fd00::1/64", "mtu=1000: IPv6 needs at least 1280"),
        ("veth:e,mtu=1400,mtu=1500", "mtu is there twice"),
        ("veth:e,address=10.0.0.2", "lacks the length of its prefix: write it as 10.9.0.2/24"),
        ("veth:e,address=fd00::2", "lacks the length of its prefix: write it as fd00::2/64"),
        ("veth:e,address=10.0.0.2/33", "10.0.0.2/33 is no address with a prefix such as"),
        ("veth:e,address=10.0.0.2/255.0.0.0", "is no address with a prefix such as 10.9.0.2/24"),
        ("veth:e,address=10.0.0/24", "10.0.0/24 is no address with a prefix such as 10.9.0.2/24"),
        ("veth:e,address=10.0.0.0/24", "10.0.0.0/24 is the network, not an address in it"),
        ("veth:e,address=10.0.0.255/24", "is the broadcast address of its network"),
        ("veth:e,address=127.0.0.2/8", "127.0.0.2/8 is no address that a link can have"),
        ("veth:e,address=224.0.0.2/8", "224.0.0.2/8 is no address that a link can have"),
        ("veth:e,address=fe80::1%x/64", "fe80::1%x/64 has a zone: leave the % out"),
        ("veth:e,address=10.0.0.2/8,address=10.0.0.2/8", "address=10.0.0.2/8 is there twice"),
        ("veth:e,gateway=10.0.0.1", "gateway=10.0.0.1 is in the network of none of its addresses"),
        ("veth:e,address=10.0.0.1/8,gateway=10.0.0.1", "is the address of the link itself"),
        ("veth:e,address=10.0.0.2/8,gateway=10.0.0.1/8", "a gateway is one address, without /"),
        ("veth:e,address=10.0.0.2/8,gateway=router", "router is no address such as 10.9.0.1"),
        ("veth:e,mac=02:00", "02:00 is no Ethernet address such as"),
        ("veth:e,mac=01:00:00:00:00:01", "is no Ethernet address of one host"),
        ("veth:e,bridge=br0,peer-address=10.0.0.1/8", "peer-address is for a link without a"),
        ("veth:e,address=10.0.0.1/8,peer-address=10.0.0.1/9", "are both 10.0.0.1"),
        ("veth:e,link=eth0", "link is for macvlan, not for veth"),
        ("macvlan:e,link=eth0,bridge=br0", "bridge is for veth, not for macvlan"),
        ("macvlan:e", "a macvlan needs link=NAME, the host's link that it is on"),
    ],
)
def test_bad_link_is_one_clear_problem(text, reason):
    link, (found,) = parse_link(text)
    assert link is None
    assert reason in found
    if "%" not in text:  # which has a meaning in a file
        assert reasons_of(*BASE, f"namespace-net-link = {text}") == [found]


def test_everything_that_is_wrong_with_a_link_is_told():
    text = "veth:lo,mtu=1,address=x,gatway=10.0.0.1"
    assert len(reasons_of(*BASE, f"namespace-net-link = {text}")) == 4


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("veth:a", "veth:a", "there is another link a"),
        ("veth:a,host-name=h", "veth:b,host-name=h", "host-name=h is that of another link"),
        (
            "veth:a,address=10.0.0.2/8",
            "macvlan:b,link=x,address=10.0.0.2/8",
            "address=10.0.0.2/8 is that of another link",
        ),
        (
            "veth:a,mac=02:00:00:00:00:01",
            "veth:b,mac=02:00:00:00:00:01",
            "mac=02:00:00:00:00:01 is that of another link",
        ),
        (
            "veth:a,address=10.0.0.2/8,gateway=10.0.0.1",
            "veth:b,address=10.1.0.2/16,gateway=10.1.0.1",
            "gateway=10.1.0.1: there is one for IPv4, 10.0.0.1 of a; one default route is all",
        ),
        (
            "veth:a",
            "veth:e,address=10.0.0.2/8,gateway=10.0.0.1,gateway=10.0.0.3",
            "gateway=10.0.0.3: there is one for IPv4, 10.0.0.1 of e; one default route is all",
        ),
    ],
)
def test_links_that_do_not_go_together(first, second, reason):
    lines = (f"namespace-net-link = {first}", f"namespace-net-link = {second}")
    assert reasons_of(*BASE, *lines) == [reason]


def test_one_default_route_of_each_kind_is_fine():
    jail = load_lines(
        *BASE,
        "namespace-net-link = veth:a,address=10.0.0.2/8,gateway=10.0.0.1",
        "namespace-net-link = veth:b,address=fd00::2/64,gateway=fd00::1",
    ).jail
    assert [link.name for link in jail.links] == ["a", "b"]


def test_link_without_a_network_of_its_own_is_an_error():
    link = "namespace-net-link = veth:eth0"
    reason = "is for a jail with a network of its own"
    assert reasons_of("namespace = /x", link) == [reason]
    assert reasons_of("namespace = /x", "namespace-net = no", link) == [reason]
    (found,) = reasons_of("namespace = /x", "namespace-net = blue", link)
    assert found == f"{reason}, but this one joins blue"


def test_link_without_a_jail_does_nothing():
    spec = load_lines("namespace-net-link = veth:eth0", "namespace-net = blue")
    assert spec.jail is None
    assert {notice.reason for notice in spec.notices} == {"does nothing without namespace"}


@pytest.mark.parametrize(
    ("lines", "net", "netns"),
    [
        (("namespace-net = blue",), False, "/run/netns/blue"),
        (("namespace-net = /proc/7/ns/net",), False, "/proc/7/ns/net"),
        (("ns-net = true", "ns-net = blue"), False, "/run/netns/blue"),
        (("ns-net = blue", "ns-net = true"), True, None),
        (("ns-net = blue", "ns-net = red"), False, "/run/netns/red"),
    ],
)
def test_network_that_is_joined_and_the_last_one_counts(lines, net, netns):
    jail = load_lines("namespace = /x", *lines).jail
    assert (jail.net, jail.netns) == (net, netns)


@pytest.mark.parametrize("name", ["a/b", ".."])
def test_bad_name_of_a_network_is_an_error(name):
    (reason,) = reasons_of("namespace = /x", f"namespace-net = {name}")
    assert reason == "is neither the name of a network namespace nor an absolute path"


def test_daemon_joins_a_network():
    spec = load_lines("attach-daemon2 = cmd=true,netns=blue", "attach-daemon2 = cmd=a,netns=/x/y")
    assert [daemon.netns for daemon in spec.daemons] == ["/run/netns/blue", "/x/y"]
    (reason,) = reasons_of("attach-daemon2 = cmd=true,netns=blue,namespaces=net")
    assert reason.startswith("contradicts net among the namespaces")
    (reason,) = reasons_of("attach-daemon2 = cmd=true,netns=a/b")
    assert reason == "is neither the name of a network namespace nor an absolute path"


def find(spec, *, has=(), there=(), installed=True):
    return [
        (problem.origin.key, problem.reason, problem.is_error)
        for problem in find_network_problems(
            spec, there.__contains__, has.__contains__, lambda _: installed
        )
    ]


def test_check_says_what_the_host_lacks():
    links = (
        "namespace-net-link = veth:a,bridge=br0",
        "namespace-net-link = macvlan:b,link=eth7",
    )
    spec = load_lines(*BASE, *links)
    missing = [
        ("namespace-net-link", "there is no bridge br0", True),
        ("namespace-net-link", "there is no link eth7", True),
    ]
    assert find(spec) == missing
    assert find(spec, has=("br0", "eth7")) == []
    (found,) = find(spec, has=("br0", "eth7"), installed=False)
    assert found == ("namespace-net-link", "pyroute2, which makes links, is not installed", True)
    hooked = load_lines(*BASE, *links, "exec-pre-jail = make-bridge")
    assert find(hooked) == [(key, reason, False) for key, reason, _ in missing]


def test_check_says_that_a_network_is_not_there():
    spec = load_lines("namespace = /x", "namespace-net = blue")
    reason = "there is no network namespace /run/netns/blue"
    assert find(spec) == [("namespace-net", reason, True)]
    assert find(spec, there=("/run/netns/blue",)) == []


NAMES = st.text("abz019-_.", min_size=1, max_size=15).filter(lambda name: name.strip("."))
V4 = st.tuples(st.integers(1, 223), st.integers(1, 254), st.integers(8, 24)).map(
    lambda each: f"{10 + each[0] % 90}.1.1.{each[1]}/{each[2]}"
)
V6 = st.integers(1, 0xFFFF).map(lambda number: f"fd00::{number:x}/64")
LINKS = st.builds(
    Link,
    st.just("veth"),
    NAMES.filter(lambda name: name not in ("all", "default", "lo")),
    st.lists(V4 | V6, max_size=3, unique=True).map(tuple),
    mtu=st.none() | st.integers(1280, 65535),
    mac=st.none()
    | st.integers(1, (1 << 40) - 1).map(
        lambda n: ":".join(["02", *(f"{b:02x}" for b in n.to_bytes(5, "big"))])
    ),
    bridge=st.none() | NAMES.filter(lambda name: name not in ("all", "default", "lo")),
    host_name=st.none() | NAMES.filter(lambda name: name not in ("all", "default", "lo")),
)


@given(LINKS)
def test_link_survives_the_command_line_of_the_helper(link):
    assert parse_link(format_link(link)) == (link, [])


@given(st.text("vethmacln:,=.0123456789/%adrs -_é\n", max_size=60))
def test_any_text_is_a_link_or_has_reasons(text):
    link, reasons = parse_link(text)
    assert (link is None) == bool(reasons)
