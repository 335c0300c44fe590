"""The network of a jail: the values of `namespace-net` and `namespace-net-link`.

Pure. Loaded when a configuration has such a link: few have.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

from lowsuper.config.isolation import parse_netns
from lowsuper.model import Link, Problem
from lowsuper.units import nearest_name, parse_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

    from lowsuper.config.dialect import Option
    from lowsuper.model import Jail, Origin

    Interface = IPv4Interface | IPv6Interface

LINK_OPTION = "namespace-net-link"
VETH, MACVLAN = "veth", "macvlan"
KINDS = (VETH, MACVLAN)
NAME_LENGTH = 15
"""The longest name of a link, in bytes: IFNAMSIZ less its NUL byte."""

_RESERVED = ("all", "default", "lo")  # the first two are directories of /proc/sys/net
_MTU_LEAST, _MTU_LEAST_IPV6, _MTU_MOST = 68, 1280, 65535


def parse_link_name(text: str) -> str:
    """Return the name of a link: see dev_valid_name() of the kernel.

    Raises:
        ValueError: it is none.
    """
    if not text:
        raise ValueError("is no name of a link: it is empty")
    if len(text.encode("utf-8", "surrogateescape")) > NAME_LENGTH:
        raise ValueError(f"{text} is no name of a link: it is longer than {NAME_LENGTH} bytes")
    if text in (".", ".."):
        raise ValueError(f"{text} is no name of a link")
    for char in text:
        if not char.isascii() or not char.isprintable() or char in " /:%,=":
            raise ValueError(f"{text} is no name of a link: it holds {char!r}")
    if text in _RESERVED:
        raise ValueError(f"{text} is no name for a link: it has a meaning of its own")
    return text


def parse_address(text: str) -> str:
    """Return an address with the length of its network's prefix, as the kernel writes it.

    Raises:
        ValueError: it is not that, or no address of one host.
    """
    example = "fd00::2/64" if ":" in text else "10.9.0.2/24"
    if "%" in text:
        raise ValueError(f"{text} has a zone: leave the % out")
    if "/" not in text:
        raise ValueError(f"{text or 'it'} lacks the length of its prefix: write it as {example}")
    _, _, length = text.partition("/")
    if not (length.isascii() and length.isdigit()):
        raise ValueError(f"{text} is no address with a prefix such as {example}")
    try:
        found = ip_interface(text)
    except ValueError:
        raise ValueError(f"{text} is no address with a prefix such as {example}") from None
    if found.is_multicast or found.is_unspecified or found.is_loopback:
        raise ValueError(f"{text} is no address that a link can have")
    network = found.network
    if network.num_addresses > 2:
        if found.version == 4 and found.ip == network.broadcast_address:
            raise ValueError(f"{text} is the broadcast address of its network")
        if found.ip == network.network_address:
            raise ValueError(f"{text} is the network, not an address in it")
    return str(found)


def parse_gateway(text: str) -> str:
    """Return an address.

    Raises:
        ValueError: it is none, or not of one host.
    """
    if "/" in text:
        raise ValueError(f"{text} is a network: a gateway is one address, without /")
    if "%" in text:
        raise ValueError(f"{text} has a zone: leave the % out")
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError(f"{text or 'it'} is no address such as 10.9.0.1 or fd00::1") from None
    if found.is_multicast or found.is_unspecified or found.is_loopback:
        raise ValueError(f"{text} is no address that a gateway can have")
    return str(found)


def parse_mac(text: str) -> str:
    """Return an Ethernet address of one host.

    Raises:
        ValueError: it is none.
    """
    parts = text.lower().split(":")
    if len(parts) != 6 or any(len(part) != 2 or part.strip("0123456789abcdef") for part in parts):
        raise ValueError(f"{text or 'it'} is no Ethernet address such as 02:00:0a:09:00:02")
    if int(parts[0], 16) & 1 or not any(int(part, 16) for part in parts):
        raise ValueError(f"{text} is no Ethernet address of one host")
    return ":".join(parts)


def _parse_mtu(text: str) -> int:
    return parse_int(text, _MTU_LEAST, _MTU_MOST)


_KEYS: dict[str, tuple[str, Callable[[str], object], tuple[str, ...]]] = {
    # key: field, parser, kinds that have it
    "address": ("addresses", parse_address, KINDS),
    "gateway": ("gateways", parse_gateway, KINDS),
    "mtu": ("mtu", _parse_mtu, KINDS),
    "mac": ("mac", parse_mac, KINDS),
    "bridge": ("bridge", parse_link_name, (VETH,)),
    "peer-address": ("peer_addresses", parse_address, (VETH,)),
    "host-name": ("host_name", parse_link_name, (VETH,)),
    "link": ("parent", parse_link_name, (MACVLAN,)),
}
_SEVERAL = ("addresses", "gateways", "peer_addresses")


def parse_link(text: str) -> tuple[Link | None, list[str]]:
    """Return the link of `KIND:NAME,key=value,...`, and what is wrong with it, in phrases.

    None when something is.
    """
    head, *items = (part.strip() for part in text.split(","))
    kind, colon, name = (part.strip() for part in head.partition(":"))
    reasons: list[str] = []
    if not colon or kind not in KINDS:
        return None, [_explain_kind(kind, colon)]
    try:
        parse_link_name(name)
    except ValueError as error:
        reasons.append(str(error))
    fields: dict[str, object] = {}
    for item in items:
        try:
            _take(kind, item, fields)
        except ValueError as error:
            reasons.append(str(error))
    link = Link(kind, name).replace(**fields)
    reasons += [] if reasons else _judge(link)
    return (None if reasons else link), reasons


def _explain_kind(kind: str, colon: str) -> str:
    if kind in KINDS:
        return f"{kind} lacks the name of the link: write {kind}:NAME"
    near = nearest_name(kind, KINDS) if colon else ""
    hint = f"did you mean {near}:NAME?" if near else f"begin with {VETH}:NAME"
    return f"{kind or 'it'} is no kind of link; {hint}"


def _take(kind: str, item: str, fields: dict[str, object]) -> None:
    """Take one `key=value` in; raises ValueError."""
    key, equals, value = (part.strip() for part in item.partition("="))
    key = key.replace("_", "-")
    if key not in _KEYS:
        near = nearest_name(key, _KEYS)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(_KEYS)}"
        raise ValueError(f"a link has no {key or 'key without a name'}; {hint}")
    field, parse, kinds = _KEYS[key]
    if kind not in kinds:
        raise ValueError(f"{key} is for {kinds[0]}, not for {kind}")
    if not equals:
        raise ValueError(f"{key} needs a value")
    try:
        parsed = parse(value)
    except ValueError as error:
        raise ValueError(f"{key}={value}: {error}") from None
    if field in _SEVERAL:
        several = _texts(fields.get(field))
        if parsed in several:
            raise ValueError(f"{key}={value} is there twice")
        fields[field] = (*several, parsed)
    elif field in fields:
        raise ValueError(f"{key} is there twice")
    else:
        fields[field] = parsed


def _texts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else ()


def _judge(link: Link) -> list[str]:
    """Return what does not go together, in phrases."""
    reasons = []
    own = [ip_interface(text) for text in link.addresses]
    if link.kind == MACVLAN and link.parent is None:
        reasons.append("a macvlan needs link=NAME, the host's link that it is on")
    if link.bridge is not None and link.peer_addresses:
        reasons.append("peer-address is for a link without a bridge, which has the address then")
    everything = (*link.addresses, *link.peer_addresses)
    if link.mtu is not None and link.mtu < _MTU_LEAST_IPV6 and any(":" in a for a in everything):
        reasons.append(f"mtu={link.mtu}: IPv6 needs at least {_MTU_LEAST_IPV6}")
    both = {ip_interface(text).ip for text in link.peer_addresses}.intersection(
        interface.ip for interface in own
    )
    reasons += [f"address and peer-address are both {address}" for address in both]
    reasons += filter(None, (_judge_gateway(text, own) for text in link.gateways))
    return reasons


def _judge_gateway(text: str, own: list[Interface]) -> str:
    """Return why a gateway cannot be reached from these addresses, in a phrase, or ""."""
    gateway = ip_address(text)
    if any(gateway == interface.ip for interface in own):
        return f"gateway={text} is the address of the link itself"
    if gateway.version == 6 and gateway.is_link_local:
        return ""  # as every link has an address of that network
    if any(gateway in interface.network for interface in own):
        return ""
    return f"gateway={text} is in the network of none of its addresses"


def format_link(link: Link) -> str:
    """Return the text that `parse_link` makes this link of."""
    words = [f"{link.kind}:{link.name}"]
    for key, (field, _, _) in _KEYS.items():
        value = getattr(link, field)
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        words += [f"{key}={each}" for each in values]
    return ",".join(words)


def add_network(
    jail: Jail | None, options: Mapping[str, Sequence[Option]]
) -> tuple[Jail | None, list[Problem]]:
    """Return a jail with the network that options ask for, and what is wrong with them.

    Args:
        jail: without; None: there is none.
        options: `netns`, the last of which counts, and `links`; as read, in their order.
    """
    names, links = options.get("netns", ()), options.get("links", ())
    if jail is None:
        reason = "does nothing without namespace"
        return None, [Problem(each.origin, reason, is_error=False) for each in (*names, *links)]
    if names:
        return _join_network(jail, names[-1], links)
    if not jail.net:
        reason, advice = "is for a jail with a network of its own", "set namespace-net = true"
        return jail, [Problem(each.origin, reason, advice=advice) for each in links]
    found, problems = read_links(links)
    return jail.replace(links=found), problems


def _join_network(
    jail: Jail, option: Option, links: Sequence[Option]
) -> tuple[Jail, list[Problem]]:
    problems = []
    for link in links:
        reason = f"is for a jail with a network of its own, but this one joins {option.value}"
        advice = "set namespace-net = true, or make the link in that network"
        problems.append(Problem(link.origin, reason, advice=advice))
    if jail.joins is not None:
        reason = "contradicts setns, which joins a network as well"
        problems.append(Problem(option.origin, reason, advice="leave one out"))
    try:
        jail = jail.replace(net=False, netns=parse_netns(option.value))
    except ValueError as error:
        problems.append(Problem(option.origin, str(error)))
    return jail, problems


def read_links(options: Sequence[Option]) -> tuple[tuple[Link, ...], list[Problem]]:
    """Return the links of these options, and what is wrong with them.

    Args:
        options: each with one link, in their order.
    """
    links: list[Link] = []
    problems: list[Problem] = []
    for option in options:
        link, reasons = parse_link(option.value)
        if link is not None:
            reasons = list(_find_clashes(link, links))
            links.append(link)
        problems += [Problem(option.origin, reason) for reason in reasons]
    return tuple(links), problems


def _find_clashes(link: Link, others: Sequence[Link]) -> list[str]:
    """Return what a link has that one of a jail only can have, in phrases."""
    reasons = []
    for other in others:
        if link.name == other.name:
            reasons.append(f"there is another link {link.name}")
        if link.host_name is not None and link.host_name == other.host_name:
            reasons.append(f"host-name={link.host_name} is that of another link")
        if link.mac is not None and link.mac == other.mac:
            reasons.append(f"mac={link.mac} is that of another link")
        reasons += [
            f"address={address} is that of another link"
            for address in link.addresses
            if address in other.addresses
        ]
    for version in (4, 6):
        ways = [
            (each.name, text)
            for each in (*others, link)
            for text in each.gateways
            if ip_address(text).version == version
        ]
        own = [text for text in link.gateways if ip_address(text).version == version]
        if own and len(ways) > 1:
            name, text = ways[0]
            reasons.append(
                f"gateway={own[-1]}: there is one for IPv{version}, {text} of {name}; "
                "one default route is all"
            )
    return reasons


def find_link_problems(
    origins: Sequence[Origin], has_link: Callable[[str], bool], *, is_final: bool
) -> list[Problem]:
    """Return what links lack of the host's.

    Args:
        origins: of the options of a configuration.
        has_link: tells whether the host has a link of a name.
        is_final: no hook can make what is missing.
    """
    found = []
    advice = "make it first" if is_final else "unless a hook makes it"
    for origin in origins:
        link = parse_link(origin.value)[0] if origin.key == LINK_OPTION else None
        if link is None:
            continue
        for key, name in (("bridge", link.bridge), ("link", link.parent)):
            if name is not None and not has_link(name):
                reason = f"there is no {key} {name}"
                found.append(Problem(origin, reason, "", advice, is_error=is_final))
    return found
