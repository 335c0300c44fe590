"""The helper that makes and removes the links of a jail, a program of its own: see `kernel.wiring`.

Nothing else imports pyroute2. It is called with `make` or `remove`, the alias of what is ours, and
the links; it runs on the host's side and has a netlink socket on either side. What it has made it
removes again when a step fails.
"""

from __future__ import annotations

import os
import sys
from errno import EBUSY, EEXIST, EINVAL, ENODEV, EOPNOTSUPP
from time import monotonic, sleep

from lowsuper.config.network import MACVLAN, VETH, parse_link
from lowsuper.kernel import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Protocol

    from lowsuper.model import Link

    class Message(Protocol):
        """What the kernel says of a link."""

        def __getitem__(self, field: str) -> int:
            """Return a field of its header."""

        def get(self, attribute: str) -> str | None:
            """Return an attribute; None: it has none."""

    class Side(Protocol):
        """A netlink socket of pyroute2's."""

        def link(self, verb: str, **fields: object) -> Iterable[Message]:
            """Make, change, remove or get links."""

        def addr(self, verb: str, **fields: object) -> object:
            """Add addresses."""

        def route(self, verb: str, **fields: object) -> object:
            """Add routes."""


NETNS_FD, RESULT_FD = 3, 4
ALIAS_PREFIX = "lowsuper:"
PATIENCE = 2.0  # seconds for a link to be of use, when both of its ends are up
_NO_DUPLICATES = 0x02  # IFA_F_NODAD: it can be used at once


class StepError(Exception):
    """A step failed.

    Args:
        step: what was to be done, in words.
        link: the name of the link in the jail.
        errno_: why.
        text: the same in words; "": the errno's own.
    """

    def __init__(self, step: str, link: str, errno_: int, text: str = "") -> None:
        """Keep all four."""
        super().__init__(step, link, errno_, text)
        self.words = (step, link, str(errno_), text)


def tell(*words: str) -> None:
    """Write a line to the process that has started this one."""
    line = "\0".join(word.replace("\n", " ") for word in words) + "\n"
    os.write(RESULT_FD, line.encode("utf-8", "surrogateescape"))


def host_mac(mac: str) -> str:
    """Return the Ethernet address of the host's end of a link.

    High, as a bridge without an address of its own takes the lowest of its links.
    """
    return ("fa" if mac.startswith("fe") else "fe") + mac[2:]


def is_alive(pid: str, start: str) -> bool:
    """Tell whether the process runs that has this number and start time."""
    try:
        with open(f"/proc/{int(pid)}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return False
    return fields[19].decode() == start and fields[0] not in (b"Z", b"X")


def judge_alias(alias: str, own: str) -> str:
    """Return why a link with an alias must not be touched, or "": it is this instance's.

    Args:
        alias: of the link.
        own: of the links of this instance.
    """
    whose, _, owner = alias.rpartition(":")
    if whose != own.rpartition(":")[0]:
        return f"it belongs to {whose}" if alias.startswith(ALIAS_PREFIX) else "it is not ours"
    if alias == own:
        return ""
    pid, _, rest = owner.partition(".")
    start, _, namespace = rest.partition(".")
    if namespace != own.rpartition(".")[2]:
        return "it belongs to the same instance in another pid namespace"
    return f"it belongs to the master with pid {pid}, which runs" if is_alive(pid, start) else ""


class Worker:
    """Makes and removes links. `host` and `jail` are the netlink sockets of the two sides."""

    def __init__(self, own: str, netlink: Callable[[], Side], error: type[Exception]) -> None:
        """Open the socket of the host's side.

        Args:
            own: the alias of what is ours.
            netlink: makes a netlink socket of the network namespace that we are in.
            error: what such a socket raises.
        """
        self._own, self._netlink, self._error = own, netlink, error
        self.host = netlink()
        self.jail = self.host  # until `open_jail`
        self._undo: list[Callable[[], object]] = []

    def open_jail(self) -> None:
        """Open the socket of the jail's side."""
        own_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        mount.setns(NETNS_FD, mount.NEWNET)
        try:
            self.jail = self._netlink()
        finally:
            mount.setns(own_fd, mount.NEWNET)
            os.close(own_fd)

    def make(self, links: Sequence[Link]) -> None:
        """Make links; all of them or, with a StepError, none."""
        made: list[tuple[Side, int]] = []
        try:
            for link in links:
                made += self._make_veth(link) if link.kind == VETH else self._make_macvlan(link)
        except StepError:
            for undo in reversed(self._undo):
                try:
                    undo()
                except self._error as error:
                    tell("note", f"{self._own}: a link is left behind: {error}")
            raise
        _wait_up(made)

    def remove(self, links: Sequence[Link]) -> None:
        """Remove the host's ends that are still there and ours."""
        for link in links:
            name = link.host_name
            found = None if name is None else self._find(self.host, name)
            if found is not None and not self._judge(found, link):
                self._delete(found["index"], f"remove {name}", link)

    # One kind after the other.

    def _make_veth(self, link: Link) -> list[tuple[Side, int]]:
        name, mac = link.host_name, link.mac
        assert name is not None
        assert mac is not None
        self._clear(name, link)
        ends: list[dict[str, object]] = [
            {"ifname": name, "address": host_mac(mac)},
            {"ifname": link.name, "address": mac, "net_ns_fd": NETNS_FD},
        ]
        if link.mtu is not None:
            for end in ends:
                end["mtu"] = link.mtu
        self._do(f"make the pair {name}", link, "add", kind="veth", **ends[0], peer=ends[1])
        index = self._index(self.host, name, link)
        self._undo.append(lambda: self.host.link("del", index=index))
        self._do(f"mark {name}", link, "set", index=index, ifalias=self._own)
        if link.bridge is not None:
            bridge = self._index(self.host, link.bridge, link, "bridge")
            step = f"put {name} on the bridge {link.bridge}"
            self._do(step, link, "set", index=index, master=bridge)
        self._add_addresses(self.host, index, link.peer_addresses, link)
        inner = self._finish_inside(link)
        self._do(f"raise {name}", link, "set", index=index, state="up")
        self._add_gateways(inner, link)
        return [(self.host, index), (self.jail, inner)]

    def _make_macvlan(self, link: Link) -> list[tuple[Side, int]]:
        assert link.parent is not None
        fields: dict[str, object] = {} if link.mtu is None else {"mtu": link.mtu}
        self._do(
            f"make it on {link.parent}",
            link,
            "add",
            kind=MACVLAN,
            macvlan_mode="bridge",
            ifname=link.name,
            address=link.mac,
            link=self._index(self.host, link.parent, link),
            net_ns_fd=NETNS_FD,
            **fields,
        )
        found = self._index(self.jail, link.name, link)
        self._undo.append(lambda: self.jail.link("del", index=found))
        inner = self._finish_inside(link)
        self._add_gateways(inner, link)
        return [(self.jail, inner)]

    def _finish_inside(self, link: Link) -> int:
        """Raise the jail's end and give it its addresses; return its index."""
        index = self._index(self.jail, link.name, link)
        with self._explain("raise it", link):
            self.jail.link("set", index=index, state="up")
        self._add_addresses(self.jail, index, link.addresses, link)
        return index

    def _add_addresses(self, side: Side, index: int, addresses: Sequence[str], link: Link) -> None:
        for text in addresses:
            address, _, length = text.partition("/")
            flags = {"flags": _NO_DUPLICATES} if ":" in address else {}
            with self._explain(f"add the address {text}", link):
                side.addr("add", index=index, address=address, prefixlen=int(length), **flags)

    def _add_gateways(self, index: int, link: Link) -> None:
        for gateway in link.gateways:
            with self._explain(f"add the gateway {gateway}", link):
                self.jail.route("add", dst="default", gateway=gateway, oif=index)

    # What they have in common.

    def _explain(self, step: str, link: Link) -> _Explain:
        return _Explain(step, link.name, self._error)

    def _do(self, step: str, link: Link, verb: str, /, **fields: object) -> None:
        with self._explain(step, link):
            self.host.link(verb, **fields)

    def _find(self, side: Side, name: str) -> Message | None:
        """Return what there is of a name, or None."""
        try:
            return next(iter(side.link("get", ifname=name)), None)
        except self._error as error:
            if getattr(error, "code", 0) != ENODEV:
                raise
            return None

    def _index(self, side: Side, name: str, link: Link, kind: str = "link") -> int:
        found = self._find(side, name)
        if found is None:
            text = f"there is no {kind} {name}; make it first"
            raise StepError(f"find {name}", link.name, ENODEV, text)
        return int(found["index"])

    def _judge(self, found: Message, link: Link) -> str:
        """Return why the host's link of a name must not be touched, or "": it is ours."""
        alias = found.get("IFLA_IFALIAS") or ""
        if alias:
            return judge_alias(alias, self._own)
        # One that was left between its making and its marking.
        is_same = link.mac is not None and found.get("IFLA_ADDRESS") == host_mac(link.mac)
        return "" if is_same else "it is not ours"

    def _clear(self, name: str, link: Link) -> None:
        """Remove what a master that was killed has left under a name."""
        found = self._find(self.host, name)
        if found is None:
            return
        reason = self._judge(found, link)
        if reason:
            text = f"there is a link of that name, and {reason}; remove it, or give a host-name"
            raise StepError(f"make the pair {name}", link.name, EEXIST, text)
        self._delete(found["index"], f"remove what was left of {name}", link)
        tell("note", f"{link.name}: {name} was left by an earlier master; removed")

    def _delete(self, index: int, step: str, link: Link) -> None:
        try:
            self.host.link("del", index=index)
        except self._error as error:
            # Race: the kernel, which removes a pair with its namespace, was quicker.
            if getattr(error, "code", 0) != ENODEV:
                raise StepError(step, link.name, *_read_error(error)) from None


class _Explain:
    """Turns what a netlink socket raises to a StepError."""

    __slots__ = ("_error", "_link", "_step")

    def __init__(self, step: str, link: str, error: type[Exception]) -> None:
        self._step, self._link, self._error = step, link, error

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, self._error):
            raise StepError(self._step, self._link, *_read_error(error)) from None


_ADVICE = {
    EBUSY: "it is in use otherwise",
    EOPNOTSUPP: "the kernel lacks this kind of link, or that is no bridge",
}


def _read_error(error: Exception) -> tuple[int, str]:
    """Return the errno, and what the kernel says besides."""
    code = getattr(error, "code", 0) or EINVAL
    usual = os.strerror(code)
    words = str(error.args[1]) if len(error.args) > 1 else usual
    text = usual if words == usual else f"{usual} ({words})"
    return code, "; ".join(filter(None, (text, _ADVICE.get(code, ""))))


def _wait_up(ends: Sequence[tuple[Side, int]]) -> None:
    """Wait until links carry something, which the kernel makes so a moment after they are up."""
    end = monotonic() + PATIENCE
    for side, index in ends:
        while _is_down(side, index) and monotonic() < end:
            sleep(0.002)


def _is_down(side: Side, index: int) -> bool:
    return any(found.get("IFLA_OPERSTATE") != "UP" for found in side.link("get", index=index))


def read_links(words: Sequence[str]) -> Iterator[Link]:
    """Yield the links of the command line."""
    for word in words:
        link, reasons = parse_link(word)
        if link is None:
            raise AssertionError(f"{word}: {reasons}")
        yield link


def main(argv: Sequence[str]) -> int:
    """Do what the command line says, and tell how it went; return the exit status."""
    deed, own, *words = argv
    try:
        from pyroute2 import IPRoute  # type: ignore[attr-defined,unused-ignore]
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError as error:
        text = f"pyroute2 is missing ({error}); pip install pyroute2"
        tell("failed", "import pyroute2", words[0].partition(",")[0], "0", text)
        return 1
    links = list(read_links(words))
    try:
        worker = Worker(own, lambda: IPRoute(ext_ack=True), NetlinkError)
        if deed == "make":
            worker.open_jail()
            worker.make(links)
        else:
            worker.remove(links)
    except StepError as error:
        tell("failed", *error.words)
        return 1
    tell("done")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # nothing of pyroute2 needs an end
