"""The socket of a legion: where its packets come in, and go out from.

A multicast group is bound itself, and not the port at all addresses: what is sent to this host
alone is none of a group's. It is shared with other programs of this host, as uWSGI shares it.
"""

from __future__ import annotations

import socket
import struct
from errno import EAGAIN, EINTR, EINVAL, ENOBUFS, ENODEV, EPERM

from lowsuper.errors import KernelError
from lowsuper.legion import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowsuper.model import Endpoint, Legion

    Address = tuple[Any, ...]

DATAGRAM_MAX = 65535
BUFFER_SIZE = 1 << 20
"""Bytes that the kernel keeps for us: what hostile senders fill is not there for the others."""

_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29
_UDP_HEADER = 8

# See the kernel's Documentation/networking/filter.rst: load a byte, is it equal, return.
_LOAD_BYTE, _EQUAL, _RETURN = 0x30, 0x15, 0x06


def is_ipv6(endpoint: Endpoint) -> bool:
    """Return whether an address is one of IPv6."""
    return endpoint.kind == "udp6"


def find_address(endpoint: Endpoint) -> Address:
    """Return an address in the form of the module `socket`.

    Raises:
        KernelError: there is no link of the name behind its `%`, or it is no address.
    """
    if not is_ipv6(endpoint):
        host = endpoint.host or "0.0.0.0"
        _check(socket.AF_INET, host, endpoint)
        return (host, endpoint.port)
    host, _, link = endpoint.host.partition("%")
    _check(socket.AF_INET6, host or "::", endpoint)
    return (host or "::", endpoint.port, 0, _find_link(link, endpoint) if link else 0)


def _check(family: int, host: str, endpoint: Endpoint) -> None:
    try:
        socket.inet_pton(family, host)
    except OSError:
        raise KernelError("inet_pton", EINVAL, endpoint.text) from None


def _find_link(name: str, endpoint: Endpoint) -> int:
    if name.isdigit():
        return int(name)
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise KernelError("if_nametoindex", ENODEV, endpoint.text) from None


def drop_strangers(first_bytes: tuple[int, ...]) -> bytes:
    """Return a filter, classic BPF, that lets datagrams pass which begin with one of these.

    Those that are shorter than a byte do not, either.
    """
    code = [(_LOAD_BYTE, 0, 0, _UDP_HEADER)]
    for number, byte in enumerate(first_bytes):
        code.append((_EQUAL, len(first_bytes) - number, 0, byte))
    code += [(_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF)]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


class Port:
    """The sockets of one legion: made while we may, bound when that is possible."""

    def __init__(self, legion: Legion, first_bytes: tuple[int, ...]) -> None:
        """Make the sockets.

        Args:
            legion: with an address.
            first_bytes: what its datagrams begin with; all others are dropped in the kernel.

        Raises:
            KernelError: what cannot be made, and why.
        """
        assert legion.address is not None, "etcd has no port"
        self._legion, self._endpoint = legion, legion.address
        # Later there may be no right to look for a link.
        self._address = find_address(self._endpoint)
        self._addresses = {node: find_address(node) for node in legion.nodes}
        families = {is_ipv6(node) for node in legion.nodes} | {is_ipv6(self._endpoint)}
        self._sockets = {family: _make(family) for family in sorted(families)}
        self._main = self._sockets[is_ipv6(self._endpoint)]
        self._is_bound = False
        self._set_up(first_bytes)

    def _set_up(self, first_bytes: tuple[int, ...]) -> None:
        for family, each in self._sockets.items():
            each.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            hops = min(255, max(0, self._legion.multicast_ttl))
            if family:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
            else:
                each.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
                each.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            if each is not self._main:
                _attach(each, struct.pack("=HBBI", _RETURN, 0, 0, 0))  # nobody reads it
        if self._legion.multicast:
            self._main.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._main.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_SIZE)
        except PermissionError:
            self._main.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)
        _attach(self._main, drop_strangers(first_bytes))

    def open(self) -> None:
        """Bind the address and join the group; to be tried again if it fails.

        Raises:
            KernelError: why not.
        """
        endpoint, main, address = self._endpoint, self._main, self._address
        if not self._is_bound:
            try:
                main.bind(address)
            except OSError as error:
                raise KernelError("bind", error.errno or 0, endpoint.text) from None
            self._is_bound = True
        if not self._legion.multicast:
            return
        try:
            self._join(address)
        except OSError as error:
            advice = "is there a route to the group?"
            raise KernelError("join", error.errno or 0, endpoint.text, advice) from None

    def _join(self, address: Address) -> None:
        """Join the group on the link that the way to it goes by, or that is named."""
        main, host = self._main, address[0]
        if not is_ipv6(self._endpoint):
            group = socket.inet_pton(socket.AF_INET, host)
            main.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            main.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + bytes(4))
            return
        group, link = socket.inet_pton(socket.AF_INET6, host), address[3]
        main.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        membership = group + struct.pack("=I", link)
        main.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        if link:
            main.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a packet has come."""
        return self._main.fileno()

    def receive(self) -> tuple[bytes, str] | None:
        """Return a datagram and where it is from; None: there is none.

        Raises:
            OSError: what the network has told of one that we sent.
        """
        try:
            data, address = self._main.recvfrom(DATAGRAM_MAX)
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return None
            raise
        return data, format_address(address)

    def send(self, endpoint: Endpoint, datagram: bytes) -> int:
        """Send a datagram to a node, without waiting; return 0, or the errno."""
        try:
            self._sockets[is_ipv6(endpoint)].sendto(datagram, self._addresses[endpoint])
        except OSError as error:
            return ENOBUFS if error.errno == EAGAIN else error.errno or EPERM
        return 0

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets.values():
            each.close()


def format_address(address: Address) -> str:
    """Return an address for a message."""
    host = f"[{address[0]}]" if len(address) > 2 else address[0]
    return f"{host}:{address[1]}"


def _make(ipv6: bool) -> socket.socket:
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        return socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, kind)
    except OSError as error:
        family = "IPv6" if ipv6 else "IPv4"
        raise KernelError("socket", error.errno or 0, f"of {family}") from None


def _attach(sock: socket.socket, code: bytes) -> None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(libc.make_program(code)))
