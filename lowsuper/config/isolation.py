"""The values of the daemon keys that limit and isolate a daemon.

Loaded when a configuration has such a key: few have.
"""

from __future__ import annotations

from lowsuper.model import Keep, ResourceLimit
from lowsuper.units import (
    CAPABILITIES,
    SECOND,
    nearest_name,
    parse_capability,
    parse_duration,
    parse_int,
    parse_size,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lowsuper.model import DaemonSpec

NAMESPACES = ("pid", "mount", "net", "uts", "ipc", "cgroup")
HOSTNAME_LENGTH = 64
NETNS_DIRECTORY = "/run/netns"
"""Where `ip netns` keeps the network namespaces that have a name: see ip-netns(8)."""
UNLIMITED = ("unlimited", "infinity")
_MOST = (1 << 63) - 1


def _parse_count(text: str) -> int:
    return parse_int(text)


def _parse_bytes(text: str) -> int:
    size = parse_size(text)
    if size > _MOST:
        raise ValueError(f"is more than {_MOST}")
    return size


def _parse_seconds(text: str) -> int:
    """Return a time in whole seconds, as RLIMIT_CPU has it; what is over counts as one more."""
    return -(-parse_duration(text) // SECOND)


def _parse_microseconds(text: str) -> int:
    """Return a time as RLIMIT_RTTIME has it; without a unit setrlimit(2) and lowsuper differ."""
    if text.strip().isdigit() and int(text):
        raise ValueError("needs a unit, such as 500ms")
    return parse_duration(text) // 1_000


def _parse_nice(text: str) -> int:
    """Return RLIMIT_NICE, which is 20 minus the lowest nice value that is allowed."""
    if text.strip()[:1] in ("+", "-"):
        return 20 - parse_int(text, -20, 19)
    return parse_int(text, 0, 40)


def _parse_priority(text: str) -> int:
    return parse_int(text, 0, 99)


RESOURCES: dict[str, Callable[[str], int]] = {
    "as": _parse_bytes,
    "core": _parse_bytes,
    "cpu": _parse_seconds,
    "data": _parse_bytes,
    "fsize": _parse_bytes,
    "memlock": _parse_bytes,
    "msgqueue": _parse_bytes,
    "nice": _parse_nice,
    "nofile": _parse_count,
    "nproc": _parse_count,
    "rtprio": _parse_priority,
    "rttime": _parse_microseconds,
    "sigpending": _parse_count,
    "stack": _parse_bytes,
}


def parse_limit(resource: str, text: str) -> tuple[ResourceLimit]:
    """Return the limit of `SOFT:HARD`, or of one value for both.

    Args:
        resource: its name, in lower case and without RLIMIT_.
        text: as written.

    Raises:
        ValueError: it is none.
    """
    parts = text.split(":")
    if len(parts) > 2:
        raise ValueError("is neither SOFT nor SOFT:HARD")
    values = [
        -1 if part.strip().lower() in UNLIMITED else RESOURCES[resource](part) for part in parts
    ]
    soft, hard = values[0], values[-1]
    if hard >= 0 and not 0 <= soft <= hard:
        raise ValueError("its soft limit is above its hard limit")
    return (ResourceLimit(resource, soft, hard),)


def split_list(text: str) -> list[str]:
    """Return the words of a list, parted by commas, semicolons or blanks."""
    return text.replace(",", " ").replace(";", " ").split()


def parse_caps(text: str) -> tuple[int, ...]:
    """Return the numbers of capabilities given by their names; `none` stands for none at all.

    Raises:
        ValueError: there is no such capability, or the list is empty.
    """
    words = split_list(text)
    if not words:
        raise ValueError("is empty; none keeps no capability")
    if len(words) == 1 and words[0].lower() == "none":
        return ()
    return tuple(map(parse_capability, words))


def parse_master_caps(text: str) -> tuple[int, ...]:
    """Return the same, of a list in which there may be numbers, as uWSGI takes them.

    Raises:
        ValueError: as `parse_caps`.
    """
    words = [
        CAPABILITIES[int(word)] if word.isdecimal() and int(word) < len(CAPABILITIES) else word
        for word in split_list(text)
    ]
    return parse_caps(" ".join(words))


def find_lost(daemon: DaemonSpec, kept: Sequence[int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the keys of a daemon that take capabilities which its master does not keep, and those.

    Args:
        daemon: the daemon.
        kept: numbers of capabilities.
    """
    wanted = {
        "uid": (daemon.user, ("setuid", "setgid", "kill")),
        "gid": (daemon.group, ("setgid",)),
        "ns_pid": (daemon.ns_pid or None, ("sys_admin",)),
        "namespaces": (daemon.namespaces or None, ("sys_admin",)),
        "netns": (daemon.netns, ("sys_admin",)),
        "root": (daemon.root, ("sys_admin", "sys_chroot")),
        "mounts": (daemon.mounts or None, ("sys_admin",)),
        "caps": (
            daemon.caps,
            ("setpcap", *(CAPABILITIES[cap] for cap in daemon.caps or ())),
        ),
    }
    for key, (value, names) in wanted.items():
        lost = tuple(name for name in names if CAPABILITIES.index(name) not in kept)
        if value is not None and lost:
            yield key, lost


def parse_namespaces(text: str) -> tuple[str, ...]:
    """Return the names of namespaces.

    Raises:
        ValueError: there is no such namespace, or the list is empty.
    """
    words = split_list(text.lower())
    if not words:
        raise ValueError("is empty")
    for word in words:
        if word not in NAMESPACES:
            near = nearest_name(word, NAMESPACES)
            hint = f"; did you mean {near}?" if near else f"; there are {', '.join(NAMESPACES)}"
            raise ValueError(f"there is no namespace {word}{hint}")
    return tuple(words)


def parse_hostname(text: str) -> str:
    """Return a host name: see sethostname(2).

    Raises:
        ValueError: it is none.
    """
    if not text or len(text.encode("utf-8", "surrogateescape")) > HOSTNAME_LENGTH:
        raise ValueError(f"is not a name of 1 to {HOSTNAME_LENGTH} bytes")
    for char in text:
        if not (char.isascii() and char.isalnum()) and char not in "-._":
            raise ValueError(f"holds {char!r}; a host name has letters, digits, -, _ and . only")
    return text


def parse_netns(text: str) -> str:
    """Return the path of a network namespace; one that `ip netns add` has made may be named.

    Raises:
        ValueError: it is neither a name nor an absolute path.
    """
    if text.startswith("/") and "\0" not in text:
        return text
    if not text or "/" in text or "\0" in text or text in (".", ".."):
        raise ValueError("is neither the name of a network namespace nor an absolute path")
    return f"{NETNS_DIRECTORY}/{text}"


def parse_place(text: str) -> str:
    """Return an absolute path.

    Raises:
        ValueError: it is none.
    """
    if not text.startswith("/") or "\0" in text:
        raise ValueError("is not an absolute path")
    return text


def parse_mounts(files: tuple[str, ...]) -> tuple[Keep, ...]:
    """Return the mounts of the items `SOURCE:TARGET` or `SOURCE:TARGET:ro`.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(map(_parse_mount, files))


def _parse_mount(text: str) -> Keep:
    parts = text.split(":")
    read_only = len(parts) == 3 and parts[2] == "ro"
    if len(parts) != 2 + read_only:
        raise ValueError(f"{text} is neither SOURCE:TARGET nor SOURCE:TARGET:ro")
    for path in parts[:2]:
        if not path.startswith("/"):
            raise ValueError(f"{path or text} is not an absolute path")
    return Keep(parts[0], parts[1], read_only)
