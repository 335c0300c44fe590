"""The values of the keys and options about where output goes.

Loaded when a configuration has such a key.
"""

from __future__ import annotations

from lowsuper.model import Output
from lowsuper.units import parse_int, parse_size

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
