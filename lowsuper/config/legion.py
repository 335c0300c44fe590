"""What the options of the Legion mean: nodes, addresses, secrets, hooks, and times that fit.

A secret goes from its line into `model.Secret` and nowhere else: what messages show of the line
comes from `redact`.
"""

from __future__ import annotations

from lowsuper.command import parse_command
from lowsuper.config.expand import suggest
from lowsuper.config.stats import parse_endpoint
from lowsuper.legion.suites import SUITES
from lowsuper.model import LEGION_EVENTS, Etcd, Legion, LegionHook, Problem, Secret
from lowsuper.units import SECOND, format_duration, parse_duration, parse_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.config.dialect import Option
    from lowsuper.model import DaemonSpec, Endpoint, MasterSpec, Origin
    from lowsuper.units import Ns

HIDDEN = "***"
LARGEST_VALOR = 65535  # uWSGI keeps 16 bits of it
SHORT_SECRET = 16
LEAST_PATIENCE = SECOND // 5
ETCD_TTL = 15 * SECOND
_TIMES = {
    "legion-freq": "freq",
    "legion-tolerance": "tolerance",
    "legion-skew-tolerance": "skew_tolerance",
    "legion-death-on-lord-error": "death_on_lord_error",
}
_ETCD_FILES = {
    "legion-etcd-ca": "ca",
    "legion-etcd-cert": "certificate",
    "legion-etcd-key": "key",
}
_SYNTAX = "is not NAME ADDRESS VALOR CIPHER:SECRET [IV]"


def redact(name: str, value: str) -> str:
    """Return what may be shown of the value of an option of the Legion."""
    if name in ("legion", "legion-mcast"):
        head, colon, _ = value.partition(" ")[2].partition(" ")[2].partition(" ")[2].partition(":")
        if not colon:
            # Whatever it is, a part of it may have been meant as the secret.
            return f"{value.partition(' ')[0]} {HIDDEN}"
        return f"{value[: value.index(' ' + head + ':')]} {head}:{HIDDEN}"
    if name == "legion-etcd-user":
        head, colon, _ = value.partition(":")
        return f"{head}:{HIDDEN}" if colon else head
    return value


def split_name(value: str, what: str) -> tuple[str, str]:
    """Return the first word of a value, and the rest.

    Raises:
        ValueError: there is only one.
    """
    name, _, rest = value.strip().partition(" ")
    if not rest.strip():
        raise ValueError(f"is not the name of a legion and {what}")
    return name, rest.strip()


def margin(tolerance: Ns) -> Ns:
    """Return how much a lease ends before the promises that it rests on: see the election."""
    return min(SECOND, tolerance // 10)


def longest_patience(legion: Legion) -> Ns:
    """Return how long a daemon of a legion may take to end, so that a lost packet costs nothing.

    A uWSGI says less of what it has heard, so its word is older.
    """
    if legion.etcd is not None:
        return legion.etcd.ttl * 2 // 3 - SECOND
    packets = 2 if legion.is_modern else 3
    return legion.tolerance - margin(legion.tolerance) - packets * legion.freq


class LegionBuilder:
    """Collects the legions of a configuration; `finish` puts them into it."""

    def __init__(self, problems: list[Problem]) -> None:
        """Begin with none.

        Args:
            problems: what is wrong is appended here; the list stays the caller's.
        """
        self._problems = problems
        self._legions: dict[str, Legion] = {}
        self._times: dict[str, Ns] = {}
        self._ttl = 1
        self._scroll_size: int | None = None
        self._later: list[tuple[str, Option]] = []  # what is said of a legion
        self._origins: dict[str, Origin] = {}
        self._takers: dict[str, Callable[[str, str, Option], None]] = {
            "legion-node": self._add_node,
            "legion-quorum": self._set_quorum,
            "legion-scroll": self._set_scroll,
            "legion-etcd-valor": self._set_valor,
            "legion-etcd-user": self._set_user,
            **dict.fromkeys(_ETCD_FILES, self._set_file),
            **{f"legion-{event}": self._add_hook for event in LEGION_EVENTS},
        }

    def take(self, name: str, option: Option) -> None:
        """Take one option in, whose origin has no secret.

        Raises:
            ValueError: its value cannot be.
        """
        value = option.value.strip()
        self._origins[name] = option.origin
        if name in ("legion", "legion-mcast"):
            self._add(option, value, multicast=name == "legion-mcast")
        elif name == "legion-etcd":
            self._add_etcd(option, value)
        elif name in _TIMES:
            self._times[_TIMES[name]] = parse_duration(value)
        elif name == "multicast-ttl":
            self._ttl = parse_int(value, 1, 255)
        elif name == "legion-scroll-max-size":
            self._scroll_size = parse_int(value, 1, 32768)
        elif name == "legion-scroll-list-max-size":
            parse_int(value, 1)
        else:
            split_name(value, "what is said of it")
            self._later.append((name, option))

    # Legions.

    def _add(self, option: Option, value: str, *, multicast: bool) -> None:
        words = value.split(" ", 3)
        if len(words) < 4 or ":" not in words[3]:
            raise ValueError(_SYNTAX)
        name, place, valor, rest = words
        cipher, _, secret = rest.strip().partition(":")
        secret, _, iv = secret.partition(" ")
        cipher = cipher.lower()
        if cipher not in SUITES:
            hint = suggest(cipher, [each for each, suite in SUITES.items() if not suite.weak])
            raise ValueError(
                f"has a cipher that there is not: {cipher}" + (f"; {hint}" if hint else "")
            )
        if not secret:
            raise ValueError("has no secret behind the cipher")
        address = parse_address(place)
        if multicast and not is_group(address):
            raise ValueError(f"has an address that is no multicast group: {place}; write legion")
        self._put(
            option,
            Legion(
                name,
                option.origin,
                _parse_valor(valor),
                address,
                multicast=multicast or is_group(address),
                nodes=(address,) if multicast else (),
                cipher=cipher,
                secret=Secret(secret),
                iv=iv.strip() or None,
            ),
        )
        self._judge_secret(option, cipher, secret, iv.strip())

    def _add_etcd(self, option: Option, value: str) -> None:
        words = value.split()
        if not 2 <= len(words) <= 3:
            raise ValueError("is not NAME http://HOST:PORT[,http://HOST:PORT...] [TTL]")
        servers = parse_servers(words[1])
        ttl = parse_duration(words[2]) if len(words) == 3 else ETCD_TTL
        if not 3 * SECOND <= ttl <= 600 * SECOND:
            raise ValueError("has a TTL that is not between 3 s and 10 min")
        etcd = Etcd(servers, ttl)
        self._put(option, Legion(words[0], option.origin, 1, etcd=etcd))

    def _put(self, option: Option, legion: Legion) -> None:
        if legion.name in self._legions:
            place = self._legions[legion.name].origin
            raise ValueError(f"is a second legion of this name; {place.file}:{place.line} has one")
        self._legions[legion.name] = legion

    def _judge_secret(self, option: Option, cipher: str, secret: str, iv: str) -> None:
        suite = SUITES[cipher]
        size = len(secret.encode("utf-8", "surrogateescape"))
        if suite.weak:
            self._warn(option, f"has a weak cipher: {cipher} {suite.weak}", _BETTER)
        if size < SHORT_SECRET:
            least = f"take {SHORT_SECRET} characters at least"
            self._warn(option, "has a short secret, which can be guessed", least)
        elif size > suite.key and not suite.modern:
            reason = f"has a secret of which {cipher} takes the first {suite.key} bytes only"
            self._warn(option, reason, "shorten it")
        if iv and suite.modern:
            self._warn(option, f"has an IV, which {cipher} does not take from here", "leave it out")

    # What is said of one.

    def _add_node(self, name: str, rest: str, _option: Option) -> None:
        legion = self._legions[name]
        self._legions[name] = legion.replace(nodes=(*legion.nodes, parse_address(rest)))

    def _set_quorum(self, name: str, rest: str, _option: Option) -> None:
        self._legions[name] = self._legions[name].replace(quorum=parse_int(rest, 0, 65535))

    def _set_scroll(self, name: str, rest: str, _option: Option) -> None:
        self._legions[name] = self._legions[name].replace(scroll=rest)

    def _set_valor(self, name: str, rest: str, _option: Option) -> None:
        self._require_etcd(name)
        self._legions[name] = self._legions[name].replace(valor=_parse_valor(rest))

    def _set_user(self, name: str, rest: str, _option: Option) -> None:
        user, colon, password = rest.partition(":")
        if not (user and colon and password):
            raise ValueError("is not NAME USER:PASSWORD")
        etcd = self._require_etcd(name)
        changed = etcd.replace(user=user, password=Secret(password))
        self._legions[name] = self._legions[name].replace(etcd=changed)

    def _set_file(self, name: str, rest: str, option: Option) -> None:
        if not rest.startswith("/"):
            raise ValueError("is not NAME and an absolute path")
        field = _ETCD_FILES[option.origin.key.replace("_", "-")]
        changed = self._require_etcd(name).replace(**{field: rest})
        self._legions[name] = self._legions[name].replace(etcd=changed)

    def _require_etcd(self, name: str) -> Etcd:
        etcd = self._legions[name].etcd
        if etcd is None:
            raise ValueError(f"is for legions of legion-etcd, which {name} is not")
        return etcd

    def _add_hook(self, name: str, rest: str, option: Option) -> None:
        event = option.origin.key.replace("_", "-").removeprefix("legion-")
        kind, colon, text = rest.partition(":")
        if not colon or kind not in ("cmd", "exec", "log", "signal", "alarm"):
            raise ValueError("is not NAME and cmd:COMMAND, exec:COMMAND or log:TEXT")
        if kind in ("signal", "alarm"):
            raise ValueError(f"has {kind}:, which belongs to uWSGI's applications; use cmd:")
        if kind == "log":
            hook = LegionHook(event, option.origin, text=text)
        else:
            hook = LegionHook(event, option.origin, parse_command(text))
        legion = self._legions[name]
        self._legions[name] = legion.replace(hooks=(*legion.hooks, hook))

    # All together.

    def finish(self, spec: MasterSpec) -> MasterSpec:
        """Return the specification with its legions."""
        for name, option in self._later:
            legion, rest = split_name(option.value, "what is said of it")
            if legion not in self._legions:
                self._fault(option.origin, f"there is no legion {legion}", self._near(legion))
                continue
            try:
                self._takers[name](legion, rest, option)
            except ValueError as error:
                self._fault(option.origin, str(error))
        times = {field: time for field, time in self._times.items() if time}  # 0: as in uWSGI
        size = {} if self._scroll_size is None else {"scroll_max_size": self._scroll_size}
        legions = {
            name: legion.replace(**times, **size, multicast_ttl=self._ttl)
            for name, legion in self._legions.items()
        }
        for legion_ in legions.values():
            self._judge(spec, legion_)
        daemons = tuple(self._fit(daemon, spec, legions) for daemon in spec.daemons)
        self._judge_order(daemons)
        return spec.replace(legions=tuple(legions.values()), daemons=daemons)

    def _near(self, name: str) -> str:
        return suggest(name, [*self._legions])

    def _judge(self, spec: MasterSpec, legion: Legion) -> None:
        if spec.jail is not None:
            reason = f"is not available with {spec.jail.way}: the process that hears the network"
            reason += " could not be started in there"
            self._fault(
                legion.origin, reason, "leave the jail to the daemons: root =, namespaces ="
            )
        if legion.etcd is not None:
            return
        if not legion.nodes:
            advice = f"add legion-node = {legion.name} ADDRESS for each other node"
            self._say(legion.origin, "has no other nodes", advice)
        known = 0 if any(map(is_group, legion.nodes)) else len(legion.nodes) + 1
        origin = self._origins.get("legion-quorum", legion.origin)
        if legion.quorum == 0:
            reason = "has no quorum: each part of a network that falls apart has its own lord"
            self._say(legion.origin, reason, f"add legion-quorum = {legion.name} N")
        elif known and legion.quorum > known:
            reason = f"can never be reached: there are {known} nodes"
            self._fault(origin, reason, "add legion-node lines, or lower it")
        elif known and known > 1 and 2 * legion.quorum <= known:
            reason = f"is not more than half of {known} nodes: there can be two lords"
            self._say(origin, reason, f"use {known // 2 + 1}")
        if legion.quorum > 1 and longest_patience(legion) < LEAST_PATIENCE:
            reason = f"is too short for a legion-freq of {format_duration(legion.freq)}"
            advice = f"use {format_duration(5 * legion.freq)} or more"
            self._fault(self._origins.get("legion-tolerance", legion.origin), reason, advice)

    def _fit(self, daemon: DaemonSpec, spec: MasterSpec, legions: dict[str, Legion]) -> DaemonSpec:
        """Return a daemon with a stop_timeout that fits its legion."""
        if daemon.legion is None:
            return daemon
        legion = legions.get(daemon.legion)
        if legion is None:
            reason = f"there is no legion {daemon.legion}"
            problem = Problem(daemon.origin, reason, daemon.name, self._near(daemon.legion))
            self._problems.append(problem)
            return daemon
        longest = max(longest_patience(legion), LEAST_PATIENCE)
        if daemon.stop_timeout is None:
            return daemon.replace(stop_timeout=min(spec.reload_mercy, longest))
        if daemon.stop_timeout > longest:
            least = legion.tolerance + (daemon.stop_timeout - longest)
            reason = (
                f"its stop_timeout of {format_duration(daemon.stop_timeout)} is too long: "
                "another node may start it before it has ended here"
            )
            advice = f"use {format_duration(longest)} at most"
            if legion.etcd is None:
                advice += f", or legion-tolerance = {-(-least // SECOND)}"
            self._problems.append(Problem(daemon.origin, reason, daemon.name, advice))
        return daemon

    def _judge_order(self, daemons: tuple[DaemonSpec, ...]) -> None:
        """Refuse daemons that count on one that mostly runs elsewhere."""
        legion_of = {daemon.name: daemon.legion for daemon in daemons}
        for daemon in daemons:
            for other in (*daemon.requires, *daemon.wants, *daemon.after):
                legion = legion_of.get(other)
                if legion is not None and legion != daemon.legion:
                    reason = f"it comes after {other}, which runs on the lord of {legion} only"
                    advice = f"add legion = {legion}"
                    self._problems.append(Problem(daemon.origin, reason, daemon.name, advice))

    def _fault(self, origin: Origin, reason: str, advice: str = "") -> None:
        self._problems.append(Problem(origin, reason, advice=advice))

    def _warn(self, option: Option, reason: str, advice: str = "") -> None:
        self._say(option.origin, reason, advice)

    def _say(self, origin: Origin, reason: str, advice: str = "") -> None:
        self._problems.append(Problem(origin, reason, advice=advice, is_error=False))


_BETTER = "use aes-256-gcm where all nodes are lowsuper, else aes-256-cbc"


def parse_address(text: str) -> Endpoint:
    """Return an address for datagrams: HOST:PORT, :PORT or [IPV6]:PORT.

    Raises:
        ValueError: it is none.
    """
    place = parse_endpoint(text)
    if place.kind not in ("tcp", "tcp6"):
        raise ValueError(f"has an address that is not HOST:PORT or [IPV6]:PORT: {text}")
    return place.replace(kind="udp" if place.kind == "tcp" else "udp6")


def is_group(address: Endpoint) -> bool:
    """Return whether an address is a multicast group."""
    if address.kind == "udp6":
        return address.host.lower().startswith("ff")
    return 224 <= int(address.host.partition(".")[0]) <= 239


def parse_servers(text: str) -> tuple[str, ...]:
    """Return the URLs of `http(s)://HOST:PORT,...`; one without a scheme has the first one's.

    Raises:
        ValueError: it is not that.
    """
    scheme, found = "", []
    for part in text.split(","):
        head, slashes, rest = part.partition("://")
        if slashes:
            scheme = head
        else:
            rest = part
        host, colon, port = rest.rstrip("/").rpartition(":")
        if scheme not in ("http", "https") or not (host and colon) or "/" in host:
            raise ValueError("is not NAME http://HOST:PORT[,http://HOST:PORT...] [TTL]")
        parse_int(port, 1, 65535)
        found.append(f"{scheme}://{host}:{port}")
    return tuple(found)


def _parse_valor(text: str) -> int:
    try:
        return parse_int(text, 0, LARGEST_VALOR)
    except ValueError as error:
        raise ValueError(f"has a valor that {error}") from None
