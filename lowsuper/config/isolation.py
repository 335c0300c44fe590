"""The values of the daemon keys that limit and isolate a daemon.

Loaded when a configuration has such a key: few have.
"""

from __future__ import annotations

from lowsuper.model import ResourceLimit
from lowsuper.units import SECOND, parse_capability, parse_duration, parse_int, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
