"""The agent of a legion as a real process: elections, what it has given up, and hostile packets."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents import (
    FREQ,
    SECRET,
    TOLERANCE,
    UID,
    Agents,
    endpoint,
    free_ports,
    make_legion,
    now,
    rss_of,
)
from legions import uwsgi_binary
from masters import DEADLINE, NOBODY, need, needs_root
from networks import Host

from lowsuper.legion import words
from lowsuper.legion.cipher import make_seal
from lowsuper.legion.packet import Packet, encode
from lowsuper.legion.udp import AT_ONCE, UdpLegion
from lowsuper.model import Etcd, Legion, Origin
from lowsuper.units import SECOND

GROUP, GROUP6 = "225.1.1.1", "ff15::91"
LOOPBACK = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture
def agents():
    found = Agents()
    yield found
    found.close()


@pytest.fixture
def network():
    # Loopback has no multicast of IPv6.
    host = Host(
        "ip route add 224.0.0.0/4 dev lo; echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"
        "; ip link add v0 type veth peer name v1; ip link set v0 up"
        "; ip -6 addr add fd91::1/64 dev v0"
    )
    yield host
    host.close()


def start_unicast(agents, count=2, hosts=LOOPBACK, **fields):
    """Start agents that know each other, the last one with the highest valor."""
    addresses = free_ports(*hosts[:count])
    return [
        agents.start(
            make_legion(
                address,
                tuple(each for each in addresses if each != address),
                **{"valor": 10 + number, **fields},
            )
        )
        for number, address in enumerate(addresses)
    ]


def wait_lord(agents, lord):
    """Wait until an agent is the lord, and all others say so."""
    agents.wait(lambda: lord.leads)
    live = [each for each in agents.all if not each.is_closed]
    agents.wait(lambda: all(each.last(words.View).lord == lord.uuid for each in live))


# Elections.


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305", "aes-256-cbc", "bf-cbc"])
def test_two_agents_elect_the_higher_valor_and_hand_over(agents, cipher):
    low, high = start_unicast(agents, cipher=cipher, quorum=2, tolerance=SECOND)
    wait_lord(agents, high)
    assert low.occurred()[:2] == ["setup", "node-joined"]
    assert "join" in low.occurred()
    assert high.occurred().count("lord") == 1
    leases = len(high.of(words.Lease))
    agents.wait(lambda: len(high.of(words.Lease)) >= leases + 3)
    assert not low.of(words.Lease)
    high.say(words.Quit())
    agents.wait(lambda: high.is_closed)
    assert isinstance(high.said[-1], words.Gone)
    assert high.wait() == 0
    assert high.occurred()[-2:] == ["unlord", "death"]
    agents.wait(lambda: "node-left" in low.occurred())
    assert "node0 (valor 10) joined" in high.told()
    assert "node1 (valor 11) left: said goodbye" in low.told()


def test_three_agents_replace_one_that_is_killed_but_not_before_its_lease_is_over(agents):
    low, middle, high = start_unicast(agents, 3)
    wait_lord(agents, high)
    agents.wait(lambda: len(high.of(words.Lease)) >= 3)
    high.kill()
    agents.wait(lambda: high.is_closed)
    until = high.last(words.Lease).until
    killed = now()
    agents.wait(lambda: middle.leads)
    first = middle.said.index(middle.of(words.Lease)[0])
    assert middle.times[first] > until
    assert middle.times[first] < killed + TOLERANCE + 6 * FREQ + 2 * SECOND
    assert not low.of(words.Lease)


def test_lord_that_hears_nobody_any_more_gives_up_before_its_lease_is_over(agents):
    low, high = start_unicast(agents)
    wait_lord(agents, high)
    low.kill()
    agents.wait(lambda: high.of(words.Resign))
    resigned = high.last(words.Resign)
    at = high.times[high.said.index(resigned)]
    assert at < resigned.until
    assert resigned.until == high.last(words.Lease).until
    agents.wait(lambda: "unlord" in high.occurred())
    agents.wait(lambda: "no quorum" in high.last(words.View).note)


def test_silent_master_loses_the_title(agents):
    _, middle, high = start_unicast(agents, 3)
    high.answers = False
    agents.wait(lambda: high.of(words.Lease))
    agents.wait(lambda: high.of(words.Resign))
    assert high.last(words.Resign).why == "the master does not answer"
    agents.wait(lambda: middle.leads)
    high.answers = True
    high.say(words.Busy("web", False, high.last(words.Lease).until))
    wait_lord(agents, high)
    assert middle.last(words.Resign).why == "node2 has a higher valor"


def test_agents_of_ipv6_elect(agents):
    _, high = start_unicast(agents, hosts=("::1", "::1"), tolerance=SECOND)
    wait_lord(agents, high)
    port = high.told()[0].rpartition(":")[2]
    assert high.told()[0] == f"listens on [::1]:{port}"


@needs_root
@pytest.mark.parametrize("group", [GROUP, GROUP6, f"{GROUP6}%v0"])
def test_agents_of_one_host_share_a_multicast_group(agents, network, group):
    address = endpoint(group, 9191)
    low, high = (
        agents.start(
            make_legion(address, (address,), valor=valor, multicast=True, tolerance=SECOND),
            prefix=network.prefix,
        )
        for valor in (1, 2)
    )
    wait_lord(agents, high)
    assert [node.name for node in low.last(words.View).nodes] == ["node0", "node1"]


def test_agent_of_two_legions_leaves_both(agents):
    first, second, other = free_ports(*LOOPBACK)
    agent = agents.start(
        make_legion(first, (other,), quorum=0),
        make_legion(second, (other,), quorum=0, cipher="aes-128-cbc").replace(name="mail"),
    )
    agents.wait(lambda: {each.legion for each in agent.of(words.Lease)} == {"web", "mail"})
    agent.say(words.Busy("mail", True, 0))
    agent.say(words.Quit())
    agents.wait(lambda: agent.is_closed)
    assert agent.wait() == 0
    assert {each.legion for each in agent.of(words.Occurred, event="death")} == {"web", "mail"}


def test_agent_with_threads_ends_in_order_whatever_they_wait_for(agents):
    with socket.socket() as server:
        # It takes connections, and never answers.
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://localhost:{server.getsockname()[1]}"
        origin = Origin("", 0, "", "")
        legion = Legion("web", origin, valor=1, etcd=Etcd((url,), 5 * SECOND))
        agent = agents.start(legion)
        assert select.select([server], [], [], DEADLINE)[0]
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1)
            agents.wait(lambda: agent.of(words.View))
            agent.say(words.Quit())
            agents.wait(lambda: agent.is_closed)
            assert agent.wait() == 0


def test_hook_that_fails_keeps_the_node_out(agents):
    _, middle, high = start_unicast(agents, 3, death_on_lord_error=60 * SECOND)
    wait_lord(agents, high)
    high.say(words.HookFailed("web"))
    agents.wait(lambda: middle.leads)
    agents.wait(lambda: high.last(words.View).state == "suspended")


def test_scroll_that_is_too_long_is_not_shown(agents):
    addresses = free_ports(*LOOPBACK[:2])
    for address, other, scroll in zip(
        addresses, reversed(addresses), ["x" * 100, "y" * 10], strict=True
    ):
        agents.start(make_legion(address, (other,), scroll=scroll, scroll_max_size=50))
    first, second = agents.all
    agents.wait(lambda: all("node-joined" in each.occurred() for each in agents.all))
    agents.wait(lambda: all(each.of(words.View) for each in agents.all))
    agents.wait(lambda: all(len(each.last(words.View).nodes) == 2 for each in agents.all))
    assert first.last(words.View).nodes[1].scroll == "y" * 10
    assert second.last(words.View).nodes[1].scroll == ""


# Its place between master and network.


def test_view_comes_every_freq_and_not_all_the_time(agents):
    address, other = free_ports(*LOOPBACK[:2])
    agent = agents.start(make_legion(address, (other,)))
    agents.wait(lambda: len(agent.of(words.View)) >= 3)
    times = [
        at for said, at in zip(agent.said, agent.times, strict=True) if isinstance(said, words.View)
    ]
    began = now()
    agents.wait(lambda: len(agent.of(words.View)) >= len(times) + 5)
    assert now() - began >= 4 * FREQ


def test_agent_ends_at_once_when_its_master_is_gone(agents):
    low, high = start_unicast(agents)
    wait_lord(agents, high)
    high.channel.close()
    high.is_closed = True
    assert high.wait() == 1
    # It has said no goodbye: smart daemons may live on until the lease is over.
    agents.wait(lambda: "node-left" in low.occurred())
    assert any(text.startswith("node1 (valor 11) left: nothing was heard") for text in low.told())


def test_crash_is_a_traceback_and_exit_code_1(agents):
    address, other = free_ports(*LOOPBACK[:2])
    agent = agents.start(make_legion(address, (other,)))
    agents.wait(lambda: agent.said)
    agent.channel.send(b'{"kind":"Nonsense"}')
    assert agent.wait() == 1
    agents.all.remove(agent)
    errors = agent.close()
    assert "Traceback (most recent call last)" in errors
    assert errors.endswith("ValueError: is of no known kind\n")
    assert SECRET not in errors


def test_signals_of_a_terminal_are_for_the_master(agents):
    _, high = start_unicast(agents)
    wait_lord(agents, high)
    for signo in (1, 2, 15):
        high.process.send_signal(signo)
    leases = len(high.of(words.Lease))
    agents.wait(lambda: len(high.of(words.Lease)) >= leases + 3)


def test_master_that_does_not_read_costs_no_memory_and_misses_no_lease(agents):
    address, other = free_ports(*LOOPBACK[:2])
    agent = agents.start(make_legion(address, (other,), quorum=0), buffer=4608)
    time_up = time.monotonic() + 3 * TOLERANCE / SECOND
    select.select([agent], [], [], DEADLINE)
    while time.monotonic() < time_up:
        # It is not heard, only seen to live.
        assert agent.process.poll() is None
        select.select([], [], [], 0.1)
    before = now()
    agents.wait(lambda: agent.of(words.Resign))
    assert agent.last(words.Resign).why == "the master does not answer"
    assert len(agent.said) < 50
    agents.wait(lambda: agent.last(words.Lease).until > before and agent.leads)


def test_address_that_is_taken_is_told_once_and_tried_again(agents):
    address, other = free_ports(*LOOPBACK[:2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((address.host, address.port))
        agent = agents.start(make_legion(address, (other,)))
        agents.wait(lambda: len(agent.of(words.View)) >= 4)
        problem = f"bind {address.text}: Address already in use"
        assert agent.told() == [f"{problem}; tried again until it can be had"]
        assert agent.last(words.View).note == problem
        assert agent.occurred() == []
    agents.wait(lambda: "setup" in agent.occurred())
    assert agent.told()[1] == f"listens on {address.text}"


def test_agent_that_never_listened_ends_when_it_is_told(agents):
    address, other = free_ports(*LOOPBACK[:2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((address.host, address.port))
        agent = agents.start(make_legion(address, (other,)))
        agents.wait(agent.told)
        agent.say(words.Quit())
        agents.wait(lambda: agent.is_closed)
        assert agent.wait() == 0


@needs_root
def test_node_that_cannot_be_sent_to_is_told_once(agents, network):
    first, second = endpoint("127.0.0.1", 9191), endpoint("192.0.2.1", 9191)
    agent = agents.start(make_legion(first, (second,)), prefix=network.prefix)
    agents.wait(lambda: len(agent.of(words.View)) >= 8)
    wanted = "packets do not go out to 192.0.2.1:9191: Network is unreachable"
    assert agent.told().count(wanted) == 1
    network.busybox("ip", "route", "add", "192.0.2.0/24", "dev", "lo")
    agents.wait(lambda: "packets go out to 192.0.2.1:9191 again" in agent.told())


def test_cipher_that_is_not_to_be_had_ends_the_agent_with_a_word(agents):
    address, other = free_ports(*LOOPBACK[:2])
    agent = agents.start(make_legion(address, (other,), cipher="no-such"))
    agents.wait(lambda: agent.is_closed)
    assert agent.told() == ["legion web: there is no cipher no-such"]
    assert agent.wait() == 1


# What it has given up.


@needs_root
def test_agent_has_no_privileges_and_nothing_that_it_does_not_need(agents):
    address, other = free_ports(*LOOPBACK[:2])
    agent = agents.start(make_legion(address, (other,)))
    agents.wait(lambda: agent.said)
    assert agent.status("Uid").split() == [str(UID)] * 4
    assert agent.status("Gid").split() == [str(UID)] * 4
    assert agent.status("Groups") == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(agent.status(name), 16) == 0, name
    assert agent.status("NoNewPrivs") == "1"
    assert agent.status("Threads") == "1"
    if os.uname().machine in ("x86_64", "aarch64"):
        assert agent.status("Seccomp") == "2"
    # Nobody but root may look into it, not even another process of its user.
    assert os.stat(f"/proc/{agent.pid}/mem").st_uid == 0
    links = {
        int(fd): os.readlink(f"/proc/{agent.pid}/fd/{fd}")
        for fd in os.listdir(f"/proc/{agent.pid}/fd")
    }
    kinds = sorted(re.sub(r":\[\d+\]$", "", link) for fd, link in links.items() if fd > 2)
    assert kinds == ["anon_inode:[eventpoll]", "anon_inode:[timerfd]", "socket", "socket"]
    limits = Path(f"/proc/{agent.pid}/limits").read_text()
    for name, bound in (
        ("core file size", 0),
        ("processes", 0),
        ("open files", max(links) + 1),
        ("address space", r"\d{1,9}"),
    ):
        assert re.search(rf"^Max {name} +({bound}) +\1 ", limits, re.MULTILINE), limits
    assert not any("of its agent" in text for text in agent.told())


def test_secret_is_in_no_place_that_others_can_read(agents):
    address, other = free_ports(*LOOPBACK[:2])
    agent = agents.start(make_legion(address, (other,)))
    agents.wait(lambda: agent.said)
    for name in ("cmdline", "environ", "comm", "status"):
        assert SECRET.encode() not in Path(f"/proc/{agent.pid}/{name}").read_bytes()
    assert SECRET not in repr(agent.said)


AS_NOBODY = """
import os, prctl, sys
from lowsuper.legion import agent
from lowsuper.legion.cipher import make_seal
from lowsuper.model import Legion, Origin
# What is imported when it is needed is perhaps where only root can read.
make_seal(Legion("", Origin("", 0, "", ""), cipher="aes-256-gcm"))
os.setgroups([])
os.setresgid({0}, {0}, {0})
os.setresuid({0}, {0}, {0})
prctl.set_dumpable(1)  # as who has always been that user
sys.exit(agent.main())
"""


@needs_root
def test_agent_that_is_not_root_says_so_and_works(agents):
    addresses = free_ports(*LOOPBACK[:2])
    for valor, (address, other) in enumerate(zip(addresses, reversed(addresses), strict=True)):
        program = ("-I", "-c", AS_NOBODY.format(NOBODY))
        agents.start(make_legion(address, (other,), valor=valor + 1), program=program)
    low, high = agents.all
    wait_lord(agents, high)
    assert low.status("Uid").split() == [str(NOBODY)] * 4
    assert f"of its agent: it is not root, and stays the user {NOBODY}" in low.told()
    assert low.status("NoNewPrivs") == "1"
    assert int(low.status("CapEff"), 16) == 0
    assert os.stat(f"/proc/{low.pid}/mem").st_uid == 0


CONFINED = """
import ctypes, errno, mmap, os, socket, sys, threading, time
from lowsuper.legion.confine import confine
problems = confine({uid}, {uid}, threads={threads})
assert not problems, problems

def libc(name, *args):
    call = getattr(ctypes.CDLL(None, use_errno=True), name)
    if call(*args) == -1:
        raise OSError(ctypes.get_errno(), name)

def start():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()

def connect():
    # There is nobody there; that is not for us to say.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))

for name, deed in {{
    "read": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
    "write": lambda: os.open("/tmp/x", os.O_WRONLY),
    "create": lambda: os.open("/tmp/x", os.O_WRONLY | os.O_CREAT),
    "connect": connect,
    "thread": start,
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "data": lambda: mmap.mmap(-1, 4096).close(),
    "signal": lambda: os.kill(os.getppid(), 0),
    "mount": lambda: libc("mount", b"x", b"/tmp", b"tmpfs", 0, None),
    "ptrace": lambda: libc("ptrace", 0, 0, 0, 0),
    "root": lambda: os.setuid(0),
    "unshare": lambda: libc("unshare", 0x10000000),
    "keyring": lambda: libc("syscall", 250, 0, 0, 0, 0, 0),
}}.items():
    try:
        deed()
    except (OSError, RuntimeError) as error:
        print(name, errno.errorcode.get(getattr(error, "errno", None), "no"))
    else:
        print(name, "ok")

def tick():
    while True:
        time.sleep(0.0001)

# They are ended as they are, by the C library, when the interpreter ends.
for _ in range({threads} * 8):
    threading.Thread(target=tick, daemon=True).start()
"""

ALONE = {
    **dict.fromkeys(("read", "write", "create", "connect", "fork", "exec", "code"), "EPERM"),
    **dict.fromkeys(("signal", "mount", "ptrace", "root", "unshare", "keyring"), "EPERM"),
    "thread": "no",
    "data": "ok",
}
WITH_THREADS = {**ALONE, "read": "ok", "connect": "ok", "thread": "ok"}


@needs_root
@pytest.mark.parametrize(("threads", "wanted"), [(False, ALONE), (True, WITH_THREADS)])
def test_system_call_that_is_not_needed_is_an_error(threads, wanted):
    need(os.uname().machine in ("x86_64", "aarch64"), "a list of system calls for this machine")
    program = CONFINED.format(uid=UID, threads=threads)
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == wanted


# Hostile packets.


class Attacker:
    """Sends what it likes to an agent."""

    def __init__(self, legion):
        self.legion, self.seal = legion, make_seal(legion)
        self.target = (legion.address.host, legion.address.port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.random = random.Random(1)

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, self.target)

    def make(self, **fields: object) -> bytes:
        packet = Packet("web", 5, int(time.time()), "mallory", 1, "m" * 36)
        return self.seal.close(encode(packet.replace(**fields)))

    def kinds(self, valid: list[bytes]) -> list[bytes]:
        """Return one packet of each kind that says nothing."""
        draw = self.random
        flipped = bytearray(draw.choice(valid))
        flipped[draw.randrange(4, len(flipped))] ^= 1 << draw.randrange(8)
        whole = draw.choice(valid)
        return [
            draw.randbytes(draw.randrange(1400)),
            whole[:1] + draw.randbytes(draw.randrange(1400)),
            whole[:17] + draw.randbytes(draw.randrange(1400)),
            bytes(flipped),
            whole[: draw.randrange(len(whole))],
            whole,
            self.make(legion="mail"),
        ]


@pytest.fixture
def attacker():
    with contextlib.ExitStack() as stack:

        def make(legion):
            found = Attacker(legion)
            stack.enter_context(found.socket)
            return found

        yield make


@pytest.fixture
def ear():
    """A node that only listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def hear_all(sock: socket.socket) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(65535))
    return found


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "aes-256-cbc"])
def test_hostile_packets_change_nothing_and_are_told_once(agents, attacker, ear, cipher):
    first, second = free_ports(*LOOPBACK[:2])
    listener = endpoint(*ear.getsockname())
    low = agents.start(make_legion(first, (second, listener), cipher=cipher))
    legion = make_legion(second, (first, listener), valor=20, cipher=cipher)
    high = agents.start(legion)
    wait_lord(agents, high)
    valid = hear_all(ear)
    assert len(valid) > 5
    mallory = attacker(legion)
    events, leases, told = (
        len(each) for each in (high.occurred(), high.of(words.Lease), high.told())
    )
    began = rss_of(high.pid)
    for _ in range(20):
        for _ in range(50):
            for data in mallory.kinds(valid):
                mallory.send(data)
        agents.hear(0.02)
    agents.wait(lambda: len(high.of(words.Lease)) >= leases + 5)
    assert high.occurred()[events:] == []
    assert low.last(words.View).lord == high.uuid
    (news,) = high.told()[told:]
    sender = f"127.0.0.1:{mallory.socket.getsockname()[1]}"
    assert re.fullmatch(rf"a packet was not taken, of {sender}: it (is|does|has|ends) .*", news)
    assert rss_of(high.pid) - began < 4 << 20


def test_replays_do_not_keep_a_uwsgi_that_is_gone(agents, attacker):
    address, other = free_ports(*LOOPBACK[:2])
    legion = make_legion(address, (other,), cipher="aes-256-cbc")
    agent = agents.start(legion)
    agents.wait(lambda: agent.of(words.View))
    mallory = attacker(legion)
    data = mallory.make()

    def send_and_see(event):
        mallory.send(data)
        return event in agent.occurred()

    agents.wait(lambda: send_and_see("node-joined"))
    agents.wait(lambda: send_and_see("node-left"), timeout=8)


@pytest.mark.parametrize("what", ["another legion", "its own", "no packet at all"])
def test_packets_of_others_and_its_own_are_no_news(agents, attacker, what):
    address, other = free_ports(*LOOPBACK[:2])
    legion = make_legion(address, (other,), cipher="aes-256-cbc")
    agent = agents.start(legion)
    agents.wait(lambda: agent.of(words.View))
    mallory = attacker(legion)
    match what:
        case "another legion":
            mallory.send(mallory.make(legion="mail"))
        case "its own":
            mallory.send(mallory.make(uuid=agent.uuid))
        case _:
            mallory.send(b"GET / HTTP/1.0\r\n\r\n")
            mallory.send(b"")
    mallory.send(b"m????")  # it has taken the one before when it tells of this one
    agents.wait(lambda: len(agent.told()) == 2)
    assert "is not as long as it says" in agent.told()[1]
    assert len(agent.last(words.View).nodes) == 1


def test_ten_thousand_packets_a_second_do_not_hinder_an_election(agents, attacker, ear):
    addresses = free_ports(*LOOPBACK)
    listener = endpoint(*ear.getsockname())
    legions = [
        make_legion(
            address,
            (*(each for each in addresses if each != address), listener),
            valor=number + 1,
            cipher="aes-256-cbc",
        )
        for number, address in enumerate(addresses)
    ]
    floods = []
    try:
        for legion in legions:
            agents.start(legion)
        agents.wait(lambda: all(each.of(words.View) for each in agents.all))
        began = [rss_of(each.pid) for each in agents.all]
        agents.wait(lambda: select.select([ear], [], [], 0)[0])
        kinds = attacker(legions[0]).kinds(hear_all(ear))
        floods = [flood(legion, kinds) for legion in legions]
        low, middle, high = agents.all
        wait_lord(agents, high)
        high.kill()
        killed = now()
        agents.wait(lambda: middle.leads)
        assert now() - killed < TOLERANCE + 6 * FREQ + 4 * SECOND
        # It is the flood that is still there, and the title stays.
        assert all(each.poll() is None for each in floods)
        agents.hear(2 * TOLERANCE / SECOND)
        assert middle.leads
        assert not middle.of(words.Resign)
        for agent, before in zip((low, middle), began, strict=False):
            assert rss_of(agent.pid) - before < 6 << 20
    finally:
        sent = [end_flood(each) for each in floods]
    assert all(each > 3000 for each in sent), sent


FLOOD = """
import base64, random, select, socket, sys, time
host, port, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
packets = [base64.b64decode(word) for word in sys.argv[4:]]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
began, sent = time.monotonic(), 0
while time.monotonic() < began + 60:
    while sent < rate * (time.monotonic() - began):
        sock.sendto(packets[sent % len(packets)], (host, port))
        sent += 1
    if select.select([sys.stdin], [], [], 0.001)[0]:
        break
print(int(sent / (time.monotonic() - began)))
"""


def flood(legion, kinds: list[bytes]) -> subprocess.Popen:
    """Send ten thousand packets a second of these kinds to an agent, or as many as can be sent."""
    packets = [base64.b64encode(data).decode() for data in kinds if data]
    address = legion.address
    return subprocess.Popen(
        [sys.executable, "-I", "-c", FLOOD, address.host, str(address.port), "10000", *packets],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def end_flood(process: subprocess.Popen) -> int:
    """Return how many packets a second it has sent."""
    output, _ = process.communicate(b"x", timeout=DEADLINE)
    return int(output)


def test_turn_takes_no_more_packets_than_others_can_wait_for(attacker):
    (address,) = free_ports(LOOPBACK[0])
    legion = make_legion(address, (), quorum=0)
    said = []
    engine = UdpLegion(legion, "node", 1, 0, said.append)
    engine.wake(now())
    mallory = attacker(legion)
    for _ in range(3 * AT_ONCE):
        mallory.send(mallory.make(legion="mail"))
    engine.take()
    with socket.socket(fileno=os.dup(engine.fileno())) as sock:
        left = len(hear_all(sock))
    engine.close()
    assert left == 2 * AT_ONCE


@needs_root
def test_root_that_lacks_capabilities_gives_up_what_it_has(agents):
    first, second = free_ports(*LOOPBACK[:2])
    prefix = ("setpriv", "--bounding-set", "-setpcap")
    agent = agents.start(make_legion(first, (second,)), prefix=prefix)
    agents.wait(lambda: "setup" in agent.occurred())
    (told,) = (text for text in agent.told() if text.startswith("of its agent: "))
    assert "its bounding set stays" in told
    assert agent.status("Uid").split() == [str(UID)] * 4
    assert int(agent.status("CapPrm"), 16) == int(agent.status("CapEff"), 16) == 0
    assert agent.status("Seccomp") == "2"
    prefix = ("setpriv", "--bounding-set", "-setuid")
    agent = agents.start(make_legion(first, (second,)), prefix=prefix)
    agents.wait(lambda: agent.is_closed)
    assert agent.wait() == 1
    assert agent.told() == [f"of its agent: setresuid {UID}:{UID}: Operation not permitted"]


# With uWSGI.


@pytest.mark.parametrize("cipher", ["aes-128-cbc", "aes-256-cbc"])
def test_uwsgi_and_an_agent_know_each_other(agents, cipher, tmp_path):
    address, other = free_ports(*LOOPBACK[:2])
    agent = agents.start(make_legion(address, (other,), cipher=cipher, valor=1, scroll="ours"))
    words_of_uwsgi = [
        uwsgi_binary(),
        "--master",
        *("--legion", f"web {other.text} 9 {cipher}:{SECRET}"),
        *("--legion-node", f"web {address.text}"),
        *("--legion-freq", "1", "--legion-scroll", "web theirs"),
    ]
    log = tmp_path / "log"
    with log.open("wb") as file:
        uwsgi = subprocess.Popen(words_of_uwsgi, stdout=file, stderr=file, cwd=tmp_path)
    try:
        agents.wait(lambda: len(agent.of(words.View)) and len(agent.last(words.View).nodes) == 2)
        found = agent.last(words.View).nodes[1]
        assert (found.valor, found.scroll, found.peer) == (9, "theirs", "uwsgi")
        agents.wait(lambda: re.search(r"node: node0 valor: 1 .*joined Legion web", log.read_text()))
        agents.wait(
            lambda: (
                "is now the Lord of the Legion web" in log.read_text() or "Lord" in log.read_text()
            )
        )
    finally:
        uwsgi.kill()
        uwsgi.wait(DEADLINE)
