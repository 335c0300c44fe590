"""The network of a jail: its links, made from outside, and what is left of them: nothing.

Each test has a network namespace of its own that stands for the host's.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from jails import BUSYBOX, Tampered, find_first, make_root
from masters import DEADLINE, needs_root, send, wait_gone
from networks import Host, links_of

pytestmark = needs_root

BRIDGE = (
    "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad;"  # of this network alone
    "ip link add br0 type bridge; ip addr add 10.9.0.1/24 dev br0;"
    "ip addr add fd00:9::1/64 dev br0; ip link set br0 up"
)
PAIR = "ip link add blue0 type veth; ip link set veth0 name blue1"
PING = f"{BUSYBOX} ping -c 1 -W 5"
DAEMON = "attach-daemon = sleep 1000"
ON_BRIDGE = "namespace-net-link = veth:eth0,address=10.9.0.2/24,gateway=10.9.0.1,bridge=br0"


@pytest.fixture
def hosts():
    """Make hosts."""
    made = []

    def _make(setup="true"):
        made.append(Host(setup))
        return made[-1]

    yield _make
    for each in made:
        each.close()


@pytest.fixture
def host(hosts):
    """Return a host with a bridge."""
    return hosts(BRIDGE)


@pytest.fixture
def root(tmp_path):
    """Return a root file system."""
    return make_root(tmp_path / "root")


def jail(root, *lines, net="true"):
    return "\n".join([f"namespace = {root}:web", f"namespace-net = {net}", *lines, ""])


def test_loopback_is_up(masters, host, root):
    hook = f"exec-as-root = {PING} 127.0.0.1 && echo answered"
    master = masters.begin(jail(root, hook, DAEMON), prefix=host.prefix).wait_ready()
    master.wait_output("^answered$")
    assert links_of(find_first(master)) == {"lo"}
    assert master.stop() == 0


def test_link_on_a_bridge_is_there_before_the_first_hook_and_gone_after_the_end(
    masters, host, root
):
    before = host.links()
    link = f"{ON_BRIDGE},address=fd00:9::2/64,gateway=fd00:9::1,mtu=1400,mac=02:00:00:00:00:07"
    hook = (
        f"exec-in-jail = {PING} 10.9.0.1 && {PING} -6 fd00:9::1 && {BUSYBOX} ip route &&"
        f" {BUSYBOX} ip -6 route && {BUSYBOX} ip link show eth0 && echo over"
    )
    daemon = f"attach-daemon = {BUSYBOX} httpd -f -p 80 -h /etc"
    master = masters.start(jail(root, link, hook, daemon), prefix=host.prefix)
    master.wait_output("^over$")
    assert "default via 10.9.0.1 dev eth0" in master.text
    assert "default via fd00:9::1 dev eth0" in master.text
    assert "mtu 1400" in master.text
    assert "02:00:00:00:00:07" in master.text
    (name,) = host.links() - before
    assert len(name) <= 15
    fetch = f"until {BUSYBOX} wget -qO- http://10.9.0.2/group; do {BUSYBOX} usleep 50000; done"
    assert "web:x:1235" in host.run("sh", "-c", fetch)
    assert "web:x:1235" in host.busybox("wget", "-qO-", "http://[fd00:9::2]/group")
    assert master.stop() == 0
    assert host.links() == before  # at once: not when the kernel comes to it


def test_two_jails_on_one_bridge_talk(masters, host, tmp_path):
    before = host.links()
    first = masters.start(
        jail(
            make_root(tmp_path / "a"),
            ON_BRIDGE,
            f"attach-daemon = {BUSYBOX} httpd -f -p 80 -h /etc",
        ),
        name="a.ini",
        prefix=host.prefix,
    )
    fetch = (
        f"exec-as-root = until {BUSYBOX} wget -qO- http://10.9.0.2/group;"
        f" do {BUSYBOX} usleep 50000; done"
    )
    second = masters.start(
        jail(
            make_root(tmp_path / "b"),
            "namespace-net-link = veth:eth0,address=10.9.0.3/24,bridge=br0",
            fetch,
            DAEMON,
        ),
        name="b.ini",
        prefix=host.prefix,
    )
    second.wait_output("web:x:1235")
    assert len(host.links() - before) == 2
    assert first.stop() == 0
    assert len(host.links() - before) == 1
    assert second.stop() == 0
    assert host.links() == before


def test_link_to_the_host_without_a_bridge(masters, hosts, root):
    host = hosts()
    link = (
        "namespace-net-link = veth:eth0,address=10.9.0.2/31,gateway=10.9.0.3,"
        "peer-address=10.9.0.3/31,peer-address=fd00::1/64,address=fd00::2/64,host-name=to-web"
    )
    hook = f"exec-as-root = {PING} 10.9.0.3 && {PING} -6 fd00::1 && echo over"
    master = masters.start(jail(root, link, hook, DAEMON), prefix=host.prefix)
    master.wait_output("^over$")
    assert host.links() == {"lo", "to-web"}
    host.busybox("ping", "-c", "1", "-W", "5", "10.9.0.2")
    assert master.stop() == 0
    assert host.links() == {"lo"}


def test_macvlan_is_on_a_link_of_the_host(masters, hosts, root):
    host = hosts(
        "ip link add lan0 type veth; ip link set veth0 name far0; ip addr add 10.8.0.1/24 dev far0;"
        "ip link set lan0 up; ip link set far0 up"
    )
    link = "namespace-net-link = macvlan:eth0,link=lan0,address=10.8.0.2/24,gateway=10.8.0.1"
    hook = f"exec-as-root = {PING} 10.8.0.1 && echo over"
    master = masters.start(jail(root, link, hook, DAEMON), prefix=host.prefix)
    master.wait_output("^over$")
    assert links_of(find_first(master)) == {"lo", "eth0"}
    assert master.stop() == 0
    assert host.links() == {"lo", "lan0", "far0"}


def test_master_that_unshares_its_network_alone_gets_a_link(masters, host):
    before = host.links()
    hook = f"exec-as-root = {PING} 10.9.0.1 && {PING} 127.0.0.1 && echo over"
    text = f"unshare = net\n{ON_BRIDGE}\n{hook}\n{DAEMON}\n"
    master = masters.start(text, prefix=host.prefix)
    master.wait_output("^over$")
    assert len(host.links() - before) == 1
    assert master.stop() == 0
    assert host.links() == before


def test_post_jail_hook_finds_the_link(masters, host, root):
    link = f"{ON_BRIDGE},host-name=to-web"
    hook = f"exec-post-jail = {PING} 10.9.0.2 && {BUSYBOX} ip link show to-web"
    master = masters.start(jail(root, link, hook, DAEMON), prefix=host.prefix)
    assert "to-web" in host.links()
    assert "master br0" in master.text
    assert master.stop() == 0


def test_killed_outside_process_leaves_no_link(masters, host, root):
    before = host.links()
    master = masters.start(jail(root, ON_BRIDGE, DAEMON), prefix=host.prefix)
    first = find_first(master)
    master.kill()
    wait_gone(first)
    host.wait_links(before)  # the kernel removes it with the namespace


def test_starts_and_stops_and_reloads_leave_no_link(masters, host, root):
    before = host.links()
    text = jail(root, ON_BRIDGE, DAEMON)
    for _ in range(4):
        master = masters.start(text, prefix=host.prefix)
        names = host.links() - before
        for number in range(4):
            if number % 2:
                send(find_first(master), signal.SIGKILL)  # made again after a pause of 1 s
                master.wait_line("the jail died")
                master.signal(signal.SIGHUP)
            else:
                master.signal(signal.SIGHUP)
            master.wait_line("sleep: started, pid")
            assert host.links() - before == names
        assert master.stop() == 0
        assert host.links() == before


def test_missing_bridge_is_fatal_and_named_and_nothing_is_left(masters, hosts, root):
    host = hosts()
    master = masters.begin(jail(root, ON_BRIDGE, DAEMON), prefix=host.prefix)
    master.wait_line(
        "the jail: namespace-net-link eth0: find br0: there is no bridge br0; make it first"
    )
    assert master.wait() == 125
    assert host.links() == {"lo"}


@pytest.mark.parametrize(
    ("setup", "link", "reason"),
    [
        (
            "ip link add br0 type veth",
            "veth:b,bridge=br0",
            r"b: put \S+ on the bridge br0: Operation not supported.*is no bridge",
        ),
        ("true", "macvlan:b,link=eth9", "b: find eth9: there is no link eth9; make it first"),
        (
            "ip link add web type veth",
            "veth:b,host-name=web",
            "b: make the pair web: there is a link of that name, and it is not ours; remove it, or",
        ),
    ],
)
def test_failure_removes_what_was_made_before_it(masters, hosts, root, setup, link, reason):
    host = hosts(setup)
    before = host.links()
    links = ("namespace-net-link = veth:a", f"namespace-net-link = {link}")
    master = masters.begin(jail(root, *links, DAEMON), prefix=host.prefix)
    master.wait_line(f"the jail: namespace-net-link {reason}")
    assert master.wait() == 125
    assert host.links() == before


def test_link_of_another_instance_is_left_alone(masters, host, tmp_path):
    link = f"{ON_BRIDGE},host-name=to-web"
    first = masters.start(
        jail(make_root(tmp_path / "a"), link, DAEMON), name="a.ini", prefix=host.prefix
    )
    second = masters.begin(
        jail(make_root(tmp_path / "b"), link, DAEMON), name="b.ini", prefix=host.prefix
    )
    second.wait_line("make the pair to-web: there is a link .* it belongs to lowsuper:a-")
    assert second.wait() == 125
    host.busybox("ping", "-c", "1", "-W", "5", "10.9.0.2")
    assert first.stop() == 0


def test_what_a_killed_master_has_left_is_replaced(masters, host, root):
    """As when something holds the namespace of its jail, which else takes the link with it."""
    before = host.links()
    text = jail(root, ON_BRIDGE, DAEMON)
    master = masters.start(text, prefix=host.prefix)
    (name,) = host.links() - before
    netns_fd = os.open(f"/proc/{find_first(master)}/ns/net", os.O_RDONLY)
    try:
        first = find_first(master)
        master.kill()
        wait_gone(first)
        assert name in host.links()
        again = masters.start(text, prefix=host.prefix)
        assert again.has_said(f"eth0: {name} was left by an earlier master; removed")
        host.busybox("ping", "-c", "1", "-W", "5", "10.9.0.2")
        assert again.stop() == 0
    finally:
        os.close(netns_fd)
    assert host.links() == before


HANG = """
import sys
from lowsuper.kernel import wiring
wiring.DEADLINE = {deadline}
original = wiring.Wiring._start
def start(self, deed, *rest):
    if deed == "make":
        was, sys.executable = sys.executable, {program!r}
        try:
            original(self, deed, *rest)
        finally:
            sys.executable = was
    else:
        original(self, deed, *rest)
wiring.Wiring._start = start
"""


@pytest.fixture
def hang(tmp_path):
    """Return a program that makes the link, half of it, says so, and then hangs."""
    program = tmp_path / "hang"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, time\n"
        "from lowsuper.kernel import links\n"
        "def hang(*_):\n"
        "    print('HANGS', flush=True)\n"
        "    time.sleep(1000)\n"
        "links.Worker._finish_inside = hang\n"
        "links.main(sys.argv[4:])\n"
    )
    program.chmod(0o755)
    return program


def tamper(masters, host, hang, deadline, text):
    path = masters.write(text)
    script = HANG.format(deadline=deadline, program=str(hang))
    return masters.adopt(Tampered(script, str(path), cwd=masters.directory, prefix=host.prefix))


def test_helper_that_hangs_is_killed_and_what_it_made_is_removed(masters, host, root, hang):
    before = host.links()
    master = tamper(masters, host, hang, 1_000_000_000, jail(root, ON_BRIDGE, DAEMON))
    master.wait_line("the jail: namespace-net-link: the helper did not come to an end within 1 s")
    assert master.wait() == 125
    assert master.has_said("HANGS")
    assert host.links() == before


def test_stop_while_the_network_is_made(masters, host, root, hang):
    before = host.links()
    master = tamper(masters, host, hang, 60_000_000_000, jail(root, ON_BRIDGE, DAEMON))
    master.wait_output("HANGS")
    assert host.links() != before
    assert master.stop() == 137
    assert host.links() == before


def test_outside_process_that_is_killed_takes_the_helper_with_it(masters, host, root, hang):
    before = host.links()
    master = tamper(masters, host, hang, 60_000_000_000, jail(root, ON_BRIDGE, DAEMON))
    master.wait_output("HANGS")
    master.kill()
    master.wait_family_gone()
    host.wait_links(before)


def test_helper_without_pyroute2_says_so(masters, host, root, tmp_path):
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "sys.modules['pyroute2'] = None\n"
        "from lowsuper.kernel import links\n"
        "sys.exit(links.main(sys.argv[4:]))\n"
    )
    program.chmod(0o755)
    master = tamper(masters, host, program, 60_000_000_000, jail(root, ON_BRIDGE, DAEMON))
    master.wait_line("eth0: import pyroute2: pyroute2 is missing .*pip install pyroute2")
    assert master.wait() == 125


# Networks that are there.


def test_jail_joins_a_network_by_path(masters, hosts, root):
    host, other = hosts(), hosts(PAIR)
    hook = f"exec-as-root = {BUSYBOX} ip link; echo over"
    master = masters.start(jail(root, hook, DAEMON, net=other.path), prefix=host.prefix)
    assert links_of(find_first(master)) == {"lo", "blue0", "blue1"}
    assert master.stop() == 0
    assert other.links() == {"lo", "blue0", "blue1"}


NAMED = (
    "mount -t tmpfs none /run && mkdir /run/netns && touch /run/netns/blue &&"
    ' mount --bind "$0" /run/netns/blue && exec "$@"'
)
"""Gives a network the name blue, as `ip netns` does it, for a program alone."""


def test_jail_and_daemon_join_a_network_by_name(masters, hosts, root):
    other = hosts(PAIR)
    prefix = ("unshare", "--mount", "sh", "-c", NAMED, other.path)
    master = masters.start(jail(root, DAEMON, net="blue"), prefix=prefix)
    assert links_of(find_first(master)) == {"lo", "blue0", "blue1"}
    assert master.stop() == 0
    daemon = "attach-daemon2 = cmd=sleep 1000,name=web,netns=blue\nkill-domain = shim"
    master = masters.start(daemon, prefix=prefix)
    pid = master.pid_of("web")
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(other.path)
    assert os.readlink(f"/proc/{master.pid}/ns/net") == os.readlink("/proc/self/ns/net")
    assert master.stop() == 0


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "open /run/netns/nowhere: No such file or directory; ip netns add nowhere"),
        ("/proc/self/ns/uts", "setns /proc/self/ns/uts: Invalid argument; it is no network"),
    ],
)
def test_network_that_is_none_is_fatal_and_named(masters, hosts, root, path, reason):
    master = masters.begin(jail(root, DAEMON, net=path), prefix=hosts().prefix)
    master.wait_line(f"the jail: {re.escape(reason)}")
    assert master.wait() == 125


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/no/where", "web: netns /no/where: No such file or directory"),
        ("/proc/self/ns/uts", r"web: netns /proc/self/ns/uts \(setns: .*\): Invalid argument"),
    ],
)
def test_daemon_in_a_network_that_is_none_does_not_start(masters, path, reason):
    master = masters.begin(f"attach-daemon2 = cmd=sleep 1000,name=web,netns={path}")
    master.wait_line(reason)
    master.stop()


def test_check_says_what_the_host_lacks(hosts, root, tmp_path):
    host = hosts("ip link add br1 type bridge")

    def check(*lines):
        (tmp_path / "a.ini").write_text("[uwsgi]\n" + jail(root, *lines, DAEMON))
        command = [*host.prefix, sys.executable, "-m", "lowsuper", "check", "a.ini"]
        return subprocess.run(
            command, check=False, cwd=tmp_path, timeout=DEADLINE, stdout=subprocess.PIPE, text=True
        )

    bad = check(ON_BRIDGE)
    assert bad.returncode == 78
    assert "there is no bridge br0; make it first" in bad.stdout
    assert check(ON_BRIDGE.replace("br0", "br1")).returncode == 0
