"""One text to one typed value, and back: booleans, durations, signals, modes, ids.

Every parser takes the text as written and raises ValueError with a phrase that completes
"key=value: ..."; none performs I/O.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable
else:
    import _signal  # the constants of `signal`, without the enums that take long to build

Ns = int
"""Nanoseconds: of CLOCK_MONOTONIC where it is a time, else a length of time.

A plain alias: a NewType would cost a call at each addition.
"""

RunId = int
"""One life of one daemon: counts up from 1 per daemon; 0 means none yet."""

SECOND = 1_000_000_000

_TRUE = frozenset(("", "true", "yes", "on", "1"))
_FALSE = frozenset(("false", "no", "off", "0"))
_DURATION_UNITS = {
    "": SECOND,
    "us": 1_000,
    "ms": 1_000_000,
    "s": SECOND,
    "sec": SECOND,
    "m": 60 * SECOND,
    "min": 60 * SECOND,
    "h": 3_600 * SECOND,
    "d": 86_400 * SECOND,
}
_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_LONGEST = 100 * 365 * 86_400 * SECOND


def nearest_name(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Return the known name that is most like `name`, or "".

    Args:
        name: what was written.
        known: the names that exist.
        likeness: from 0 to 1, how like it must be.
    """
    try:
        import difflib  # only needed once something is wrong
    except ImportError:
        return ""  # in a jail nothing can be imported any more

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return found[0] if found else ""


def parse_bool(text: str) -> bool:
    """Return the truth value of true/yes/on/1 or false/no/off/0; an empty text is true.

    Raises:
        ValueError: it is none of these.
    """
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("is neither true nor false")


def parse_int(text: str, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """Return a decimal number.

    Raises:
        ValueError: it is no number, or not between `least` and `most`.
    """
    digits = text.strip()
    unsigned = digits[1:] if digits[:1] in ("+", "-") else digits
    if not (unsigned.isascii() and unsigned.isdigit()):
        raise ValueError("is not a number")
    if len(unsigned) > 30 or not least <= int(digits) <= most:
        raise ValueError(f"is not between {least} and {most}")
    return int(digits)


def _split_units(text: str) -> list[tuple[str, str]]:
    """Return the (number, unit) pairs of `1m30s`; the caller judges both."""
    pairs: list[tuple[str, str]] = []
    number = unit = ""
    for char in text.strip().lower().replace(" ", ""):
        is_digit = char.isascii() and (char.isdigit() or char == ".")
        if is_digit and unit:
            pairs.append((number, unit))
            number = unit = ""
        if is_digit:
            number += char
        else:
            unit += char
    return [*pairs, (number, unit)]


def parse_duration(text: str) -> Ns:
    """Return the nanoseconds of `10s`, `1.5`, `2m`, `500ms`, `1m30s`; a bare number is seconds.

    Raises:
        ValueError: it is not a length of time.
    """
    total = 0
    for number, unit in _split_units(text):
        whole, _, fraction = number.partition(".")
        if not whole + fraction or "." in fraction or unit not in _DURATION_UNITS:
            raise ValueError("is not a length of time such as 10, 1.5, 500ms, 30s or 2m")
        scale = _DURATION_UNITS[unit]
        total += int(whole or "0") * scale
        total += int(fraction or "0") * scale // 10 ** len(fraction)
    if total > _LONGEST:
        raise ValueError("is more than a hundred years")
    return total


def format_duration(time: Ns) -> str:
    """Return a length of time as people write it: `340 ms`, `5.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if time < SECOND:
        return f"{time // 1_000_000} ms"
    seconds = time // SECOND
    if seconds < 60:
        tenths = time * 10 // SECOND % 10
        return f"{seconds}.{tenths} s" if tenths else f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def parse_size(text: str) -> int:
    """Return the bytes of `4096`, `64k`, `10M`, `1G`: powers of 1024.

    Raises:
        ValueError: it is not a size.
    """
    pairs = _split_units(text)
    number, unit = pairs[0]
    unit = unit.removesuffix("ib") or unit
    if len(pairs) > 1 or not number.isdigit() or unit not in _SIZE_UNITS:
        raise ValueError("is not a size such as 4096, 64k, 10M or 1G")
    return int(number) * _SIZE_UNITS[unit]


_CAPABILITY_NAMES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap"
    " linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner"
    " sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice"
    " sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap"
    " mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf"
    " checkpoint_restore"
)
CAPABILITIES = tuple(_CAPABILITY_NAMES.split())
"""The names of the capabilities 0, 1, ... without CAP_: see capabilities(7)."""


def parse_capability(text: str) -> int:
    """Return the number of a capability given by name: `net_raw`, `CAP_NET_RAW`.

    Raises:
        ValueError: there is no such capability; the phrase holds the nearest name.
    """
    name = text.strip().lower().removeprefix("cap_")
    if name in CAPABILITIES:
        return CAPABILITIES.index(name)
    near = nearest_name(name, CAPABILITIES)
    hint = f"; did you mean {near}?" if near else ""
    raise ValueError(f"there is no capability {name}{hint}")


def parse_mode(text: str) -> int:
    """Return a file mode or umask written in octal digits.

    Raises:
        ValueError: it is not octal, or more than 7777.
    """
    digits = text.strip().lower().removeprefix("0o")
    if not digits or len(digits) > 5 or digits.strip("01234567") or int(digits, 8) > 0o7777:
        raise ValueError("is not an octal mode such as 022")
    return int(digits, 8)


def signal_numbers() -> dict[str, int]:
    """Return the numbers of all signals that have a name, keyed by the name without SIG."""
    return {
        name[3:]: int(value)
        for name, value in vars(_signal).items()
        if name.startswith("SIG") and name[3:].isalnum() and isinstance(value, int)
    }


def _realtime_signal(word: str) -> int:
    """Return the number of `RTMIN+3` or `RTMAX-1`, or 0."""
    for base, sign, low in (("RTMIN", "+", True), ("RTMAX", "-", False)):
        offset = word.removeprefix(base)
        if offset == word or offset[:1] != sign or not offset[1:].isdigit():
            continue
        first, last = int(_signal.SIGRTMIN), int(_signal.SIGRTMAX)
        number = first + int(offset[1:]) if low else last - int(offset[1:])
        return number if first <= number <= last else 0
    return 0


def parse_signal(text: str) -> int:
    """Return the number of a signal given by number or name: `15`, `TERM`, `SIGTERM`, `RTMIN+3`.

    Raises:
        ValueError: there is no such signal; the phrase holds the nearest name.
    """
    word = text.strip().upper()
    if word.isascii() and word.isdigit():
        number = int(word) if len(word) < 4 else 0
        if not 1 <= number <= int(_signal.SIGRTMAX):
            raise ValueError(f"is not a signal: they go from 1 to {int(_signal.SIGRTMAX)}")
        return number
    word = word.removeprefix("SIG")
    numbers = signal_numbers()
    found = numbers.get(word, 0) or _realtime_signal(word)
    if found:
        return found
    near = nearest_name(word, numbers)
    raise ValueError("there is no such signal" + (f"; did you mean {near}?" if near else ""))


def signal_name(number: int) -> str:
    """Return the usual name of a signal, `SIGTERM`, or "" where it has none."""
    first = int(_signal.SIGRTMIN)
    if first <= number <= int(_signal.SIGRTMAX):
        return f"SIGRTMIN+{number - first}" if number > first else "SIGRTMIN"
    for name, value in signal_numbers().items():
        if value == number and name not in _OTHER_SIGNAL_NAMES:
            return f"SIG{name}"
    return ""


_OTHER_SIGNAL_NAMES = frozenset(("CLD", "POLL", "IOT"))
