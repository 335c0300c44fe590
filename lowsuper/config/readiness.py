"""The daemon keys for readiness and order, and what is wrong with them together. Pure.

Loaded when a configuration has such a key.
"""

from __future__ import annotations

from lowsuper.model import Readiness
from lowsuper.units import nearest_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowsuper.model import DaemonSpec

    Finding = tuple[str, str, str, str, bool]  # daemon, key, reason, advice, whether an error

KINDS = ("exec", "tcp", "unix", "file", "pidfile", "notify", "fd")
TYPES = ("simple", "oneshot")
ACCESS = ("main", "all")
_WORDS = ("pidfile", "notify")  # kinds without a target
_HOWS = "exec:COMMAND, tcp:HOST:PORT, unix:PATH, file:PATH, pidfile, notify or fd:N"
_LONGEST_UNIX = 107  # bytes of sun_path, less the NUL: see unix(7)
_FDS = range(3, 1024)


def _choose(text: str, words: tuple[str, ...]) -> str:
    word = text.strip().lower()
    if word not in words:
        near = nearest_name(word, words)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"is none of {', '.join(words)}{hint}")
    return word


def parse_type(text: str) -> str:
    """Return the type of a daemon: simple or oneshot.

    Raises:
        ValueError: it is neither.
    """
    return _choose(text, TYPES)


def parse_access(text: str) -> str:
    """Return which processes of a daemon may notify: main or all.

    Raises:
        ValueError: it is neither.
    """
    return _choose(text, ACCESS)


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names of a list, parted by commas, semicolons or blanks, each of them once.

    Raises:
        ValueError: there is none, or one that no daemon and no group can have.
    """
    from lowsuper.config.keys import parse_name

    words = text.replace(",", " ").replace(";", " ").split()
    if not words:
        raise ValueError("is empty")
    for word in words:
        if any(char in word for char in "*?["):
            raise ValueError(f"{word} is a pattern: write each name")
        try:
            parse_name(word)
        except ValueError as error:
            raise ValueError(f"the name {word} {error}") from None
    return tuple(dict.fromkeys(words))


def parse_ready(text: str) -> Readiness:
    """Return how it is known that a daemon is ready.

    Raises:
        ValueError: it is none of the ways.
    """
    kind, colon, target = text.strip().partition(":")
    kind, target = kind.strip().lower(), target.strip()
    if kind not in KINDS:
        near = nearest_name(kind, KINDS)
        hint = f"; did you mean {near}?" if near else f"; write {_HOWS}"
        raise ValueError(f"there is no way {kind or text!r} to be ready{hint}")
    if kind in _WORDS:
        if colon:
            raise ValueError(f"{kind} takes nothing after it")
        return Readiness(kind)
    if not target:
        raise ValueError(f"needs something after {kind}:")
    if "\0" in target:
        raise ValueError("holds a NUL byte")
    if kind == "tcp":
        target = _parse_tcp(target)
    elif kind == "fd":
        target = _parse_fd(target)
    elif kind in ("unix", "file"):
        _judge_path(kind, target)
    return Readiness(kind, target)


def _judge_path(kind: str, target: str) -> None:
    if target.endswith("/"):
        raise ValueError("names a directory")
    size = len(target.encode("utf-8", "surrogateescape"))
    if kind == "unix" and size > _LONGEST_UNIX:
        raise ValueError(f"is longer than {_LONGEST_UNIX} bytes, which no socket can be")
    if kind == "unix" and target == "@":
        raise ValueError("needs a name after the @")


def _parse_fd(target: str) -> str:
    if not (target.isascii() and target.isdigit()) or int(target) not in _FDS:
        raise ValueError(f"is not a descriptor from {_FDS[0]} to {_FDS[-1]}")
    return str(int(target))


def _parse_tcp(target: str) -> str:
    """Return HOST:PORT with a host that needs no look-up; without one it is localhost."""
    host, colon, port = target.rpartition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise ValueError("is not HOST:PORT with a port from 1 to 65535")
    if not colon or host in ("", "*", "localhost"):
        return f"localhost:{int(port)}"
    if host.startswith("[") and host.endswith("]"):
        if not is_ipv6(host[1:-1]):
            raise ValueError(f"{host} is not an address of IPv6")
    elif ":" in host:
        raise ValueError(f"an address of IPv6 needs brackets: [{host}]:{port}")
    elif not is_ipv4(host):
        # To ask for it could take long, and whoever answers would decide.
        raise ValueError(
            f"{host} is a name, which is not looked up: write its address, or localhost"
        )
    return f"{host}:{int(port)}"


def is_ipv4(text: str) -> bool:
    """Tell whether a text is four numbers with dots between: see inet_pton(3)."""
    parts = text.split(".")
    return len(parts) == 4 and all(_is_byte(part) for part in parts)


def _is_byte(text: str) -> bool:
    is_number = text.isascii() and text.isdigit() and len(text) <= 3
    return is_number and int(text) <= 255 and str(int(text)) == text


def is_ipv6(text: str) -> bool:
    """Tell whether a text is an address of IPv6 without a scope: see inet_pton(3)."""
    head, double, tail = text.partition("::")
    groups = [group for side in (head, tail) if side for group in side.split(":")]
    count = len(groups)
    if groups and is_ipv4(groups[-1]) and (tail or not double):
        groups.pop()
        count += 1
    if not all(1 <= len(group) <= 4 and not group.strip(_HEX) for group in groups):
        return False
    return count < 8 if double else count == 8


_HEX = "0123456789abcdefABCDEF"


# What is wrong with the daemons as a whole.


def find_problems(daemons: Sequence[DaemonSpec], names: Iterable[str] = ()) -> Iterator[Finding]:
    """Yield daemon, key, reason and advice of all that is wrong, and whether it is an error.

    Args:
        daemons: all of a configuration, as far as they could be read.
        names: of those that could not.
    """
    for daemon in daemons:
        yield from _find_contradictions(daemon)
        if daemon.ready is not None:
            yield from _find_unready(daemon, daemon.ready)
    yield from _find_disorder(daemons, {*names, *(daemon.name for daemon in daemons)})


def _find_contradictions(daemon: DaemonSpec) -> Iterator[Finding]:
    if daemon.kind == "oneshot":
        for key, value in (
            ("ready", daemon.ready),
            ("watchdog", daemon.watchdog),
            ("pidfile", daemon.pidfile),
        ):
            if value is not None:
                reason = "contradicts type = oneshot, which is ready when it has ended well"
                yield daemon.name, key, reason, "leave one out", True
    elif daemon.start_timeout is not None and daemon.ready is None:
        reason = "means nothing without ready: it is ready as soon as it runs"
        yield daemon.name, "start_timeout", reason, f"add ready = {_HOWS}", True


def _find_unready(daemon: DaemonSpec, ready: Readiness) -> Iterator[Finding]:
    if ready.kind == "pidfile" and daemon.pidfile is None:
        yield daemon.name, "ready", "there is no pidfile", "add pidfile = FILE", True
    if ready.kind == "notify" and daemon.root is not None and "net" in daemon.namespaces:
        reason = "no socket can be reached from a root and a network namespace of its own"
        yield daemon.name, "ready", reason, "use fd:N, or do without one of both", True
    if ready.kind == "notify" and daemon.command.compound and daemon.notify_access != "all":
        reason = "a shell stays as the daemon's main process, and only that one may notify"
        yield daemon.name, "ready", reason, "add notify_access = all", False


def _find_disorder(daemons: Sequence[DaemonSpec], known: set[str]) -> Iterator[Finding]:
    edges: dict[str, tuple[str, ...]] = {}
    for daemon in daemons:
        for key in ("requires", "wants", "after"):
            for other in getattr(daemon, key):
                if other == daemon.name:
                    yield daemon.name, key, f"{other} is this daemon itself", "leave it out", True
                elif other not in known:
                    near = nearest_name(other, known)
                    advice = f"did you mean {near}?" if near else ""
                    yield daemon.name, key, f"there is no daemon {other}", advice, True
        others = (*daemon.requires, *daemon.wants, *daemon.after)
        edges[daemon.name] = tuple(other for other in dict.fromkeys(others) if other != daemon.name)
    for circle in find_circles(edges):
        first = next(daemon for daemon in daemons if daemon.name == circle[0])
        key = next(
            key for key in ("requires", "wants", "after") if circle[1] in getattr(first, key)
        )
        reason = f"none of these can be the first: {' -> '.join(circle)}"
        yield first.name, key, reason, "leave one out", True


def find_circles(edges: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yield a circle of each set of daemons that wait for each other, its first name last again.

    Args:
        edges: the names that each name comes after, and not itself; they need not be keys.
    """
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        places: dict[str, int] = {}
        ahead = [iter((start,))]
        while ahead:
            name = next(ahead[-1], None)
            if name is None:
                ahead.pop()
                if path:
                    left = path.pop()
                    del places[left]
                    done.add(left)
            elif name in places:
                yield (*path[places[name] :], name)
            elif name not in done:
                places[name] = len(path)
                path.append(name)
                ahead.append(iter(edges.get(name, ())))
