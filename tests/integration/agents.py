"""Agents of legions, as a master starts them, with the test at the master's end of the channel."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from masters import DEADLINE

from lowsuper.legion import words
from lowsuper.legion.orders import CHANNEL_FD, ORDERS_FD, encode_orders
from lowsuper.model import Endpoint, Legion, Origin, Secret
from lowsuper.record import Record
from lowsuper.units import SECOND

SECRET = "xyzzy-plugh-a-secret-of-some-length"
FREQ, TOLERANCE = SECOND // 5, 3 * SECOND // 2
"""A fifteenth and a tenth of what they usually are."""

UID = 61190
"""Whom an agent of root's becomes: the first of a range that nobody else uses."""

PROGRAM = ("-I", "-m", "lowsuper.legion.agent")


def endpoint(host: str, port: int) -> Endpoint:
    ipv6 = ":" in host
    text = f"[{host}]:{port}" if ipv6 else f"{host}:{port}"
    return Endpoint(text, "udp6" if ipv6 else "udp", host, port)


def free_ports(*hosts: str) -> list[Endpoint]:
    """Return addresses whose ports were free a moment ago."""
    found = []
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            found.append(endpoint(host, sock.getsockname()[1]))
    return found


def make_legion(address: Endpoint, nodes: tuple[Endpoint, ...], **fields: object) -> Legion:
    defaults = {
        "valor": 10,
        "cipher": "aes-256-gcm",
        "secret": Secret(SECRET),
        "quorum": 2,
        "freq": FREQ,
        "tolerance": TOLERANCE,
    }
    origin = Origin("", 0, "", "")
    return Legion("web", origin, address=address, nodes=nodes, **{**defaults, **fields})


class Agent:
    """One agent, and everything that it has said."""

    def __init__(
        self,
        *legions: Legion,
        name: str = "node",
        patience: int = SECOND // 10,
        prefix: tuple[str, ...] = (),
        uid: int = UID,
        buffer: int = 0,
        program: tuple[str, ...] = PROGRAM,
    ):
        self.said: list[Record] = []
        self.times: list[int] = []  # of each, CLOCK_BOOTTIME
        self._seen = 0
        self.is_closed = False
        self.answers = True
        waits = {legion.name: patience for legion in legions}
        text = encode_orders(legions, waits, name=name, pid=os.getpid(), uid=uid, gid=uid)
        orders = os.memfd_create("orders")
        os.write(orders, text)
        os.lseek(orders, 0, os.SEEK_SET)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        # A shell puts the descriptors where the agent looks for them.
        fds = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs.fileno(), orders))
        script = f'exec "$@" {CHANNEL_FD}<&{fds[0]} {ORDERS_FD}<&{fds[1]}'
        command = ["bash", "-c", script, "bash", *prefix, sys.executable, *program]
        self.process = subprocess.Popen(
            command,
            pass_fds=fds,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self.process.pid
        theirs.close()
        for fd in (orders, *fds):
            os.close(fd)
        self.channel.setblocking(False)

    def fileno(self) -> int:
        return self.channel.fileno()

    # What it says.

    def read(self) -> None:
        """Take what it has said, and answer leases and resignations as a master does."""
        while not self.is_closed:
            try:
                data = self.channel.recv(words.MESSAGE_MAX)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.is_closed = True
                return
            message = words.decode(data, words.FROM_AGENT)
            self.said.append(message)
            self.times.append(now())
            if self.answers and isinstance(message, words.Lease):
                self.say(words.Busy(message.legion, True, message.until))
            elif self.answers and isinstance(message, words.Resign):
                self.say(words.Busy(message.legion, False, self.last(words.Lease).until))

    def say(self, message: Record) -> None:
        self.channel.send(words.encode(message))

    def of(self, kind: type, **fields: object) -> list[Record]:
        """Return the messages of a kind that have these values."""
        return [
            each
            for each in self.said
            if isinstance(each, kind)
            and all(getattr(each, name) == value for name, value in fields.items())
        ]

    def last(self, kind: type) -> Record:
        return self.of(kind)[-1]

    def told(self) -> list[str]:
        return [each.text for each in self.of(words.Told)]

    def occurred(self) -> list[str]:
        return [each.event for each in self.of(words.Occurred)]

    @property
    def uuid(self) -> str:
        return self.last(words.View).nodes[0].uuid

    @property
    def leads(self) -> bool:
        """Whether its last lease has not been given up, and is not over."""
        titles = [each for each in self.said if isinstance(each, words.Lease | words.Resign)]
        return bool(titles) and isinstance(titles[-1], words.Lease) and titles[-1].until > now()

    def status(self, name: str) -> str:
        """Return a line of /proc/PID/status, without its name."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
        raise AssertionError(f"there is no {name}")

    # Its end.

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> str:
        """End it, and return what it wrote to standard error."""
        self.channel.close()
        self.is_closed = True
        if self.process.poll() is None:
            self.process.kill()
        _, errors = self.process.communicate(timeout=DEADLINE)
        return errors.decode()


class Agents:
    """Starts agents and hears all of them."""

    def __init__(self) -> None:
        self.all: list[Agent] = []

    def start(self, *legions: Legion, **options: object) -> Agent:
        agent = Agent(*legions, name=options.pop("name", f"node{len(self.all)}"), **options)
        self.all.append(agent)
        return agent

    def wait(self, condition: Callable[[], object], timeout: float = DEADLINE) -> None:
        """Hear all agents until the condition holds."""
        end = time.monotonic() + timeout
        while not condition():
            left = end - time.monotonic()
            assert left > 0, "\n".join(repr((each.pid, each.said[-6:])) for each in self.all)
            live = [each for each in self.all if not each.is_closed]
            ready, _, _ = select.select(live, [], [], min(left, 0.05))
            for each in ready:
                each.read()

    def hear(self, seconds: float) -> None:
        """Hear all agents for a time, in which something must not happen."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= end)

    def close(self) -> None:
        errors = [each.close() for each in self.all]
        assert not any(errors), "\n".join(errors)


def now() -> int:
    """Return CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def rss_of(pid: int) -> int:
    """Return the memory of a process that is its own, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("there is no RssAnon")
