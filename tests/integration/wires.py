"""A wire between network namespaces that a test can cut, slow down, or make lose packets.

Each node has a network namespace with a TUN device. What it sends comes to the test's process as
whole IP packets, and goes on from there: to the node that has the address, or, if the address is a
group, to all others. The kernel's own means for this, netem, are not everywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time

from networks import Host

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
NETWORK, NETWORK6 = "10.91.0", "fd91"
MULTICAST = "225.1.1.1"


class Place(Host):
    """The network of one node."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number
        self.address = f"{NETWORK}.{number}"
        self.address6 = f"{NETWORK6}::{number}"
        self.fd = self._open()
        for words in (
            ("link", "set", "wire", "up", "mtu", "1500"),
            ("addr", "add", f"{self.address}/24", "dev", "wire"),
            ("-6", "addr", "add", f"{self.address6}/64", "dev", "wire"),
            ("route", "add", "224.0.0.0/4", "dev", "wire"),
        ):
            self.busybox("ip", *words)

    def _open(self) -> int:
        """Return the TUN device of this network; a thread enters it for that."""
        from pyroute2 import netns  # takes long to import

        fds = []

        def enter() -> None:
            netns.setns(self.path)
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", b"wire", IFF_TUN | IFF_NO_PI))
            fds.append(fd)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert fds, "there is no TUN device"
        return fds[0]


class Wire:
    """Connects nodes, numbered from 1. What is set counts for packets that come from then on."""

    def __init__(self, count: int, seed: int = 0):
        self._random = random.Random(seed)
        self.delay = (0.0, 0.0)  # seconds, at least and at most
        self.loss = 0.0  # of all packets
        self.twice = 0.0  # of all packets
        self._cut: set[tuple[int, int]] = set()
        self._late: list[tuple[float, int, int, bytes]] = []
        self._counter = 0
        self.carried = 0
        self.places: dict[int, Place] = {}
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for number in range(1, count + 1):
                self.places[number] = Place(number)
        except BaseException:
            self._close_places()
            raise
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self, *pairs: tuple[int, int]) -> None:
        """Let nothing pass from the first to the second of each pair."""
        self._cut = self._cut | set(pairs)

    def heal(self, *pairs: tuple[int, int]) -> None:
        """Let it pass again; without pairs, everywhere."""
        self._cut = self._cut - set(pairs) if pairs else set()

    def isolate(self, number: int) -> None:
        """Cut a node off from all others, in both directions."""
        others = [other for other in self.places if other != number]
        self.cut(*((number, other) for other in others), *((other, number) for other in others))

    def close(self) -> None:
        self._ends = True
        os.write(self._waker, b"x")
        self._thread.join()
        self._close_places()
        os.close(self._wake)
        os.close(self._waker)

    def _close_places(self) -> None:
        for place in self.places.values():
            os.close(place.fd)
            place.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        by_fd = {place.fd: place for place in self.places.values()}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        while not self._ends:
            wait = None
            if self._late:
                wait = max(0.0, self._late[0][0] - time.monotonic()) * 1000
            for fd, _ in poll.poll(wait):
                if fd in by_fd:
                    self._take(by_fd[fd])
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(self._late)
                self._put(target, packet)

    def _take(self, source: Place) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                packet = os.read(source.fd, 65536)
                for target in self._targets(source, packet):
                    self._send(source.number, target, packet)

    def _targets(self, source: Place, packet: bytes) -> list[int]:
        version = packet[0] >> 4
        if version == 4:
            group, last = packet[16] >> 4 == 14, packet[19]
        else:
            group, last = packet[24] == 255, packet[39]
        if group:
            return [number for number in self.places if number != source.number]
        return [last] if last in self.places and last != source.number else []

    def _send(self, source: int, target: int, packet: bytes) -> None:
        for _ in range(1 + (self._random.random() < self.twice)):
            if (source, target) in self._cut or self._random.random() < self.loss:
                continue
            delay = self._random.uniform(*self.delay)
            if delay <= 0:
                self._put(target, packet)
            else:
                self._counter += 1
                late = (time.monotonic() + delay, self._counter, target, packet)
                heapq.heappush(self._late, late)

    def _put(self, target: int, packet: bytes) -> None:
        self.carried += 1
        with contextlib.suppress(OSError):  # the queue is full, as on a real wire
            os.write(self.places[target].fd, packet)
