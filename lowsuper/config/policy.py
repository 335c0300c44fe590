"""The daemon keys for what follows the end of a daemon. Pure.

Loaded when a configuration has such a key.
"""

from __future__ import annotations

from lowsuper.units import SECOND, Ns, nearest_name, parse_duration, parse_int

RESTARTS = ("always", "on-failure", "never")
ENDINGS = ("stop", "exit")
_SPELLINGS = {"on_failure": "on-failure", "no": "never", "yes": "always"}


def _choose(text: str, words: tuple[str, ...]) -> str:
    word = text.strip().lower()
    word = _SPELLINGS.get(word, word)
    if word not in words:
        near = nearest_name(word, words)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"is none of {', '.join(words)}{hint}")
    return word


def parse_restart(text: str) -> str:
    """Return when a daemon is started again: always, on-failure or never.

    Raises:
        ValueError: it is none of these.
    """
    return _choose(text, RESTARTS)


def parse_give_up(text: str) -> str:
    """Return what follows when a daemon is given up: stop or exit.

    Raises:
        ValueError: it is neither.
    """
    return _choose(text, ENDINGS)


def parse_backoff(text: str) -> tuple[Ns, Ns]:
    """Return the first and the longest pause of `FIRST..LONGEST`, or of one that never changes.

    Raises:
        ValueError: it is not that.
    """
    first_text, dots, longest_text = text.partition("..")
    first = parse_duration(first_text)
    longest = parse_duration(longest_text) if dots else first
    if first <= 0:
        raise ValueError("begins with no pause at all: a daemon that fails would take the machine")
    if longest < first:
        raise ValueError("its longest pause is shorter than its first")
    return first, longest


def parse_max_restarts(text: str) -> tuple[int, Ns]:
    """Return how many restarts are allowed in which time: `N/TIME`, or `N`, which is N/60s.

    Raises:
        ValueError: it is not that.
    """
    count, slash, window = text.partition("/")
    time = parse_duration(window) if slash else Ns(60 * SECOND)
    if time <= 0:
        raise ValueError("counts the restarts in no time at all: write N/60s")
    return parse_int(count, 0, 1000), time


def parse_codes(text: str) -> tuple[int, ...]:
    """Return the exit codes that are a success; 0 always is.

    Raises:
        ValueError: it is no list of numbers from 0 to 255.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    if not words:
        raise ValueError("is empty")
    return tuple(sorted({0, *(parse_int(word, 0, 255) for word in words)}))
