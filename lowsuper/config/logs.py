"""The values of the keys and options about where output goes.

Loaded when a configuration has such a key.
"""

from __future__ import annotations

from lowsuper.model import Output
from lowsuper.units import parse_duration, parse_int, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lowsuper.model import DaemonSpec, MasterSpec
    from lowsuper.units import Ns

FORMATS = ("text", "json")

MOST_BACKUPS = 999
RING_BYTES = 256 * 1024
LEAST_RING, MOST_RING = 4096, 64 << 20
LEAST_FILE = 4096
_WORDS = ("stdout", "stderr", "null")
_ALIASES = {
    "/dev/stdout": "stdout",
    "/dev/fd/1": "stdout",
    "/proc/self/fd/1": "stdout",
    "/dev/stderr": "stderr",
    "/dev/fd/2": "stderr",
    "/proc/self/fd/2": "stderr",
    "/dev/null": "null",
}


def parse_output(text: str) -> Output:
    """Return where a daemon's output goes: `stdout`, `stderr`, `null`, `ring[:SIZE]` or a path.

    Raises:
        ValueError: it is none of them.
    """
    word = _ALIASES.get(text, text)
    if word in _WORDS:
        return Output(word)
    kind, colon, size = text.partition(":")
    if kind == "ring":
        return Output("ring", size=_parse_ring(size) if colon else RING_BYTES)
    if not text:
        raise ValueError("is empty")
    if "\0" in text:
        raise ValueError("holds a NUL byte")
    if "/" not in text:
        raise ValueError(
            f"is none of {', '.join(_WORDS)}, ring and ring:SIZE, nor a path (which has a slash)"
        )
    if text.rpartition("/")[2] in ("", ".", ".."):
        raise ValueError("names a directory, not a file")
    return Output("file", path=text)


def _parse_ring(text: str) -> int:
    size = parse_size(text)
    if not LEAST_RING <= size <= MOST_RING:
        raise ValueError("needs a size between 4k and 64M")
    return size


def parse_maxsize(text: str) -> int:
    """Return the size at which a log file is rotated, in bytes.

    Raises:
        ValueError: it is none, or so small that files would be rotated all the time.
    """
    size = parse_size(text)
    if size < LEAST_FILE:
        raise ValueError("is less than 4k")
    if size >= 1 << 62:
        raise ValueError("is more than a file can hold")
    return size


def parse_backups(text: str) -> int:
    """Return how many old log files are kept.

    Raises:
        ValueError: it is not a number from 0 to 999.
    """
    return parse_int(text, 0, MOST_BACKUPS)


def parse_max_age(text: str) -> Ns:
    """Return the age at which a log file is rotated.

    Raises:
        ValueError: it is none.
    """
    age = parse_duration(text)
    if not age:
        raise ValueError("is not more than 0")
    return age


def _parse_path(text: str) -> str:
    if text.rpartition("/")[2] in ("", ".", ".."):
        raise ValueError("names a directory, not a file")
    return text


_OPTIONS: dict[str, Callable[[str], object]] = {
    "log_maxsize": parse_maxsize,
    "log_max_age": parse_max_age,
    "log_backups": parse_backups,
    "log_backupname": _parse_path,
    "log_format": str,
}


def parse_option(field: str, text: str) -> object:
    """Return the value of an option of the master's own log.

    Args:
        field: of `MasterSpec`.
        text: what was written.

    Raises:
        ValueError: it is none.
    """
    return _OPTIONS[field](text)


def find_faults(
    spec: MasterSpec, fields: Iterable[str], daemons: Iterable[DaemonSpec]
) -> Iterator[tuple[str, str, str, str, bool]]:
    """Yield what cannot be done: the daemon or "", the key, reason, advice, and if it is an error.

    Args:
        spec: the whole configuration.
        fields: those about the rotation of the master's own log that it sets.
        daemons: those whose output is rotated, or kept in memory.
    """
    has_log = spec.logto or spec.logto2 or spec.daemonize or spec.daemonize2
    jailed = "cannot be had in a jail: the process that does it would have to be outside"
    for field in fields:
        key = field.replace("_", "-")
        if spec.jail is not None:
            yield "", key, jailed, "rotate the file from outside, and use touch-logreopen", True
        elif not has_log:
            # In uWSGI it is no error, so neither must a file of its be one.
            yield "", key, "means nothing without a log file", "add logto = FILE", False
    if spec.log_backups is not None and spec.log_backupname is not None:
        yield "", "log-backupname", "contradicts log-backups, which numbers old files", "", True
    for daemon in daemons:
        key = next((key for key in _KEYS if getattr(daemon, key) is not None), "log")
        if spec.jail is not None:
            advice = "write to a file, and rotate it from outside with copytruncate"
            yield daemon.name, key, jailed, advice, True
        elif key != "log" and (daemon.log is None or daemon.log.kind != "file"):
            yield daemon.name, key, "means nothing without a log file", "add log = FILE", True


_KEYS = ("log_maxsize", "log_max_age", "log_backups")
