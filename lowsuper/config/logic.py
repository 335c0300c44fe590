"""The blocks of a configuration: `for`, `for-glob`, `if-env`, ... up to `endfor` or `endif`.

As in uWSGI a block repeats each of its lines by itself, and blocks do not nest. Unlike there a
condition is judged once, at the opening line.
"""

from __future__ import annotations

from lowsuper.config.expand import read_source
from lowsuper.config.options import find_reader_option
from lowsuper.config.requests import AskFact, Failure, JudgePath, ListGlob
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowsuper.config.requests import Asking

OPENERS_FOR = frozenset(("for", "for-glob", "for-times", "for-readline"))
ENDS = frozenset(("end", "endfor", "end-for", "endif", "end-if"))

_ALIASES = {
    "ifenv": "if-env",
    "ifexists": "if-exists",
    "ifplugin": "if-plugin",
    "ifdir": "if-dir",
    "if-directory": "if-dir",
}
_PATH_KINDS = {"exists": "exists", "file": "file", "dir": "dir"}
_MOST_ITEMS = 100_000


class Block(Record):
    """What an opening line makes of the lines below it.

    Each line is repeated once per item, with the item for `%(_)`; None leaves `%(_)` alone.
    """

    items: tuple[str | None, ...]
    is_loop: bool


def is_opener(name: str) -> bool:
    """Tell whether an option (its name with hyphens) opens a block."""
    return name in OPENERS_FOR or name.startswith("if")


def is_block_line(name: str) -> bool:
    """Tell whether a line belongs to blocks, and so may stand in a daemon's section too."""
    name = find_reader_option(name)
    return bool(name) and (is_opener(name) or name in ENDS or name == "else")


def switch_to_else(block: Block) -> Block:
    """Return the block that an `else` makes of an `if`."""
    return Block(() if block.items else (None,), is_loop=False)


def open_block(
    name: str, value: str, environ: Mapping[str, str], find_option: Callable[[str], str | None]
) -> Asking[Block | Failure]:
    """Return the block that an opening line begins.

    Args:
        name: the option, with hyphens.
        value: its value.
        environ: the environment.
        find_option: returns the first value of an option so far, or None.
    """
    if name in OPENERS_FOR:
        return (yield from _open_loop(name, value))
    word = _ALIASES.get(name, name).removeprefix("if-")
    positive = word.removeprefix("not-")
    wanted = positive == word
    if positive in ("env", "opt"):
        return _compare(value, environ.get if positive == "env" else find_option, wanted=wanted)
    answer = yield from _judge(positive, value)
    if isinstance(answer, Failure):
        return answer
    item = None if positive == "reload" else value
    return Block((item,) if answer is wanted else (), is_loop=False)


def _open_loop(name: str, value: str) -> Asking[Block | Failure]:
    if name == "for":
        return Block(tuple(item for item in value.split(" ") if item), is_loop=True)
    if name == "for-times":
        count = int(value) if value.isascii() and value.isdigit() and len(value) < 9 else -1
        if not 0 <= count <= _MOST_ITEMS:
            return Failure(f"is not a number of times up to {_MOST_ITEMS}")
        return Block(tuple(str(number) for number in range(1, count + 1)), is_loop=True)
    if name == "for-glob":
        paths = yield ListGlob(value)
        assert isinstance(paths, tuple)
        return Block(tuple(str(path) for path in paths), is_loop=True)
    answer = yield from read_source(value)
    if isinstance(answer, Failure):
        return answer
    lines = answer.text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return Block(tuple(line.rstrip("\r") for line in lines), is_loop=True)


def _compare(value: str, look_up: Callable[[str], str | None], *, wanted: bool) -> Block:
    """Return the block of `if-env = NAME` or `if-env = NAME=value`."""
    name, equals, expected = value.partition("=")
    found = look_up(name)
    holds = found is not None and (not equals or found == expected)
    return Block((found,) if holds is wanted else (), is_loop=False)


def _judge(kind: str, value: str) -> Asking[bool | Failure]:
    """Return whether a condition other than env and opt holds."""
    if kind in _PATH_KINDS:
        answer = yield JudgePath(value, _PATH_KINDS[kind])
        assert isinstance(answer, bool)
        return answer
    if kind == "reload":
        return (yield AskFact("reload")) == "1"
    if kind == "plugin":
        return False  # lowsuper has none
    hostname = yield AskFact("hostname")
    assert isinstance(hostname, str)
    return hostname == value if kind == "hostname" else _matches(value, hostname)


def _matches(pattern: str, text: str) -> bool | Failure:
    import re  # takes longer to import than most files to read

    try:
        return re.search(pattern, text) is not None
    except re.error as error:
        return Failure(f"is not a regular expression: {error}")
