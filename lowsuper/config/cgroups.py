"""The values of `cgroup_*` keys and of `cgroup-opt`: what is written to a cgroup's files.

Loaded when a configuration has such a key: few have. The files are those of version 2: see
cgroups(7) and the kernel's cgroup-v2 document.
"""

from __future__ import annotations

from lowsuper.model import CgroupSetting, Problem
from lowsuper.units import nearest_name, parse_bool, parse_int, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowsuper.config.dialect import Option

UNLIMITED = ("max", "unlimited", "infinity", "none")
PERIOD = 100_000  # microseconds, the kernel's own
SHORTEST, LONGEST = 1_000, 1_000_000  # a period, and the least quota
_MOST = (1 << 63) - 1


def _parse_bytes(text: str) -> str:
    if text.strip().lower() in UNLIMITED:
        return "max"
    size = parse_size(text)
    if size > _MOST:
        raise ValueError(f"is more than {_MOST}")
    return str(size)


def _parse_count(text: str) -> str:
    return "max" if text.strip().lower() in UNLIMITED else str(parse_int(text, 1))


def _parse_weight(text: str) -> str:
    return str(parse_int(text, 1, 10_000))


def _parse_io_weight(text: str) -> str:
    return f"default {_parse_weight(text)}"


def _parse_flag(text: str) -> str:
    return str(int(parse_bool(text)))


def _parse_cpu(text: str) -> str:
    """Return `QUOTA PERIOD` in microseconds, of a share of one processor or of just these two."""
    words = text.split()
    if len(words) == 1 and words[0].endswith("%"):
        return f"{_parse_percent(words[0][:-1])} {PERIOD}"
    if not 1 <= len(words) <= 2:
        raise ValueError("is neither a share such as 50% nor QUOTA PERIOD")
    quota = words[0].lower()
    if quota not in UNLIMITED and not quota.isdigit():
        raise ValueError("is neither a share such as 50% nor QUOTA PERIOD")
    least = parse_int(words[1], SHORTEST, LONGEST) if len(words) == 2 else PERIOD
    if quota in UNLIMITED:
        return f"max {least}"
    if len(words) == 1:
        hint = "the % of a share is doubled in these files (50%%), and a quota needs its period"
        raise ValueError(f"is neither a share nor QUOTA PERIOD: {hint}")
    return f"{parse_int(quota, SHORTEST)} {least}"


def _parse_percent(number: str) -> int:
    """Return that share of a period, in microseconds."""
    whole, dot, fraction = number.partition(".")
    if not (whole + fraction).isascii() or not (whole + fraction).isdigit() or (dot and not whole):
        raise ValueError("is not a share such as 50%, or 250% for two and a half processors")
    hundredths = int((fraction + "00")[:2])
    share = (int(whole) * 100 + hundredths) * PERIOD // 10_000
    if not SHORTEST <= share <= PERIOD * 100_000:
        raise ValueError("is not between 1% and 10000000%")
    return share


def _parse_list(text: str) -> str:
    """Return a list such as `0-3,6`; blanks and semicolons part like commas."""
    words = text.replace(",", " ").replace(";", " ").split()
    if not words:
        raise ValueError("is empty")
    for word in words:
        first, dash, last = word.partition("-")
        numbers = (first, last) if dash else (first,)
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise ValueError("is not a list such as 0-3,6")
        if dash and int(first) > int(last):
            raise ValueError(f"{word} ends before it begins")
    return ",".join(words)


def _parse_plain(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


FILES: dict[str, Callable[[str], str]] = {
    "memory.max": _parse_bytes,
    "memory.high": _parse_bytes,
    "memory.low": _parse_bytes,
    "memory.min": _parse_bytes,
    "memory.swap.max": _parse_bytes,
    "memory.oom.group": _parse_flag,
    "pids.max": _parse_count,
    "cpu.max": _parse_cpu,
    "cpu.weight": _parse_weight,
    "cpu.idle": _parse_flag,
    "io.weight": _parse_io_weight,
    "io.max": _parse_plain,
    "cpuset.cpus": _parse_list,
    "cpuset.mems": _parse_list,
}
"""The files of a cgroup that have a key, and how a value of it is read."""

OLD_NAMES = {
    "memory.limit_in_bytes": "memory.max",
    "memory.soft_limit_in_bytes": "memory.high",
    "memory.memsw.limit_in_bytes": "memory.swap.max",
    "cpu.shares": "cpu.weight",
    "cpu.cfs_quota_us": "cpu.max",
    "cpu.cfs_period_us": "cpu.max",
    "blkio.weight": "io.weight",
    "blkio.throttle.read_bps_device": "io.max",
    "blkio.throttle.write_bps_device": "io.max",
    "freezer.state": "cgroup.freeze",
}
"""Files of version 1, and what has taken their place."""


def parse_setting(file: str, text: str) -> tuple[CgroupSetting]:
    """Return what is written to a file of a cgroup.

    Args:
        file: its name, one of `FILES`.
        text: as written.

    Raises:
        ValueError: it is no value of that file.
    """
    return (CgroupSetting(file, FILES[file](text)),)


def parse_option(text: str) -> CgroupSetting:
    """Return what a `cgroup-opt` writes: FILE=VALUE, or as in uWSGI FILE:VALUE.

    A file that has no key takes any value, as it is.

    Raises:
        ValueError: it is none.
    """
    file, mark, value = text.partition("=")
    if not mark:
        file, mark, value = text.partition(":")
    file = file.strip()
    if not mark or not file:
        raise ValueError("is not FILE=VALUE, such as memory.max=512M")
    if file in OLD_NAMES:
        hint = f"version 2, which lowsuper uses, has {OLD_NAMES[file]}"
        raise ValueError(f"{file} is of cgroups version 1; {hint}")
    if "/" in file or "." not in file or file.startswith("."):
        near = nearest_name(file.replace("_", "."), FILES)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"{file} is not the name of a cgroup's file{hint}")
    parse = FILES.get(file, _parse_plain)
    try:
        return CgroupSetting(file, parse(value))
    except ValueError as error:
        raise ValueError(f"the value of {file} {error}") from None


def read_cgroup(
    taken: Mapping[str, Sequence[Option]],
) -> tuple[dict[str, object], list[Problem]]:
    """Return the fields of `MasterSpec` for `cgroup`, `cgroup-opt` and `cgroup-dir-mode`.

    Args:
        taken: the options by field, in file order.
    """
    from lowsuper.units import parse_mode

    problems: list[Problem] = []
    fields: dict[str, object] = {}

    def fault(option: Option, reason: str, advice: str = "", *, is_error: bool = True) -> None:
        problems.append(Problem(option.origin, reason, advice=advice, is_error=is_error))

    for option in taken.get("cgroup", ()):
        path = option.value.rstrip("/")
        if not path.startswith("/"):
            fault(option, "is not an absolute path", "begin it with /sys/fs/cgroup/")
        elif fields.get("cgroup", path) != path:
            reason = "a process is in one cgroup only (version 2), and another one was given"
            fault(option, reason, "leave one out; one hierarchy has all controllers")
        fields["cgroup"] = path
    settings = []
    for option in taken.get("cgroup_settings", ()):
        try:
            settings.append(parse_option(option.value))
        except ValueError as error:
            fault(option, str(error))
        if "cgroup" not in taken:
            fault(option, "does nothing without cgroup", "add cgroup = PATH", is_error=False)
    fields["cgroup_settings"] = tuple(settings)
    for option in taken.get("cgroup_mode", ()):
        try:
            fields["cgroup_mode"] = parse_mode(option.value)
        except ValueError as error:
            fault(option, str(error))
    return fields, problems
