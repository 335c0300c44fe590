"""The three passes over all values: `$(ENV)`, `@(file)`, `%(placeholder)`.

Pure but for what `@(...)` asks. As in uWSGI a replacement may hold another reference, which is
replaced in its turn; only what `@(...)` brings is not searched for further files.
"""

from __future__ import annotations

from lowsuper.config.requests import UNKNOWN, Failure, FileText, ReadFile, RunCommand
from lowsuper.units import nearest_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from lowsuper.config.requests import Asking

    LookUp: TypeAlias = Callable[[str], str | None]

_MOST_ROUNDS = 1_000
LONGEST = 1 << 17
"""The longest value with references: Linux takes no longer argument. See execve(2)."""
_SCHEMES = ("http", "https", "fd", "data", "sym", "section", "call", "emperor", "symzero")


class ExpandError(ValueError):
    """A reference cannot be replaced.

    Args:
        reason: a phrase for the operator.
        advice: the way out, or "".
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        """Keep both."""
        super().__init__(reason)
        self.reason, self.advice = reason, advice


def find_references(value: str, symbol: str, start: int = 0) -> list[tuple[int, int]]:
    """Return where each outermost `symbol(...)` begins and ends, in order.

    Args:
        value: the text.
        symbol: one character.
        start: where to begin to look.
    """
    opened: list[int] = []
    closed: dict[int, int] = {}
    for at in range(start, len(value)):
        if value[at] == "(":
            opened.append(at)
        elif value[at] == ")" and opened:
            closed[opened.pop()] = at + 1
    found: list[tuple[int, int]] = []
    begin = value.find(symbol + "(", start)
    while begin >= 0:
        end = closed.get(begin + 1, 0)
        if end > begin + 3:
            found.append((begin, end))
        begin = value.find(symbol + "(", max(end, begin + 2))
    return found


def replace_references(value: str, symbol: str, look_up: LookUp) -> str:
    """Return the value with each `symbol(name)` replaced by what `look_up` says.

    Args:
        value: the text.
        symbol: `$` or `%`.
        look_up: returns the replacement, or None to leave the reference as it stands.

    Raises:
        ExpandError: the replacements never end, or the value becomes too long.
    """
    start = 0
    # What is being put in: each name, and how much of the value stands behind its replacement.
    inside: list[tuple[str, int]] = []
    for _ in range(_MOST_ROUNDS):
        for begin, end in find_references(value, symbol, start):
            name = value[begin + 2 : end - 1]
            replacement = look_up(name)
            if replacement is not None:
                inside = [each for each in inside if begin < len(value) - each[1]]
                if any(name == outer for outer, _ in inside):
                    raise ExpandError(f"{symbol}({name}) refers to itself")
                inside.append((name, len(value) - end))
                value = value[:begin] + replacement + value[end:]
                start = max(0, begin - 1)
                break
        else:
            return value
        require_length(value)
    raise ExpandError(f"holds more than {_MOST_ROUNDS} references")


def require_length(value: str) -> None:
    """Refuse a value that could not be an argument of a program.

    Raises:
        ExpandError: it is too long.
    """
    if len(value) > LONGEST:
        raise ExpandError(f"is longer than {LONGEST >> 10} KiB after what it refers to is put in")


def split_scheme(path: str) -> tuple[str, str]:
    """Return the scheme and the rest of `exec://cmd`; the scheme is "" for a plain path."""
    scheme, separator, rest = path.partition("://")
    if separator and (scheme == "exec" or scheme in _SCHEMES):
        return scheme, rest
    return "", path


def read_source(path: str) -> Asking[FileText | Failure]:
    """Ask for the text of a path, `-` or `exec://command`; refuse other schemes."""
    scheme, rest = split_scheme(path)
    if scheme and scheme != "exec":
        return Failure(
            f"lowsuper does not read from {scheme}://",
            "use a file, or exec:// with a command that fetches it",
        )
    answer = yield (RunCommand(rest) if scheme else ReadFile(path))
    assert isinstance(answer, FileText | Failure)
    return answer


def replace_files(value: str) -> Asking[str]:
    """Return the value with each `@(file)` and `@(exec://command)` replaced.

    Raises:
        ExpandError: one cannot be read.
    """
    parts: list[str] = []
    start = 0
    for begin, end in find_references(value, "@"):
        name = value[begin + 2 : end - 1]
        answer = yield from read_source(name)
        if isinstance(answer, Failure):
            raise ExpandError(f"@({name}): {answer.reason}", answer.advice)
        text = answer.text
        parts += [value[start:begin], text[:-1] if text[-1:] in ("\n", "\r") else text]
        start = end
    result = "".join([*parts, value[start:]])
    if parts:
        require_length(result)
    return result


def _to_number(text: str) -> int:
    """Return the number that a text begins with, as strtoll(3) does."""
    stripped = text.lstrip()
    sign = stripped[:1] if stripped[:1] in ("-", "+") else ""
    digits = ""
    for char in stripped[len(sign) :]:
        if not (char.isascii() and char.isdigit()):
            break
        digits += char
    return int(sign + digits) if digits else 0


def _apply_operator(operator: str, left: str, right: str) -> str:
    if not operator:
        return left + right
    one, two = _to_number(left), _to_number(right)
    if operator == "+":
        return str(one + two)
    if operator == "-":
        return str(one - two)
    if operator == "*":
        return str(one * two)
    if not two:
        return "0"
    quotient = abs(one) // abs(two)  # C rounds towards zero
    return str(quotient if (one < 0) == (two < 0) else -quotient)


def compute_placeholder(name: str, look_up: LookUp) -> str | None:
    """Return the value of what stands between `%(` and `)`.

    A name alone is looked up. With blanks it is a pipeline from left to right of names, numbers,
    `+ - * /` and `++ --`; two operands without an operator are joined as texts.

    Args:
        name: the text between the parentheses.
        look_up: returns the first value of an option, or None.

    Returns:
        None when there is no such option and the reference stays.
    """
    if " " not in name:
        return look_up(name)
    value: str | None = None
    operator = ""
    for word in name.split(" "):
        if word in ("+", "-", "*", "/"):
            operator = word
        elif word in ("++", "--"):
            if value is not None:
                value = str(_to_number(value) + (1 if word == "++" else -1))
            operator = ""
        elif word:
            is_number = word.isascii() and word.isdigit()
            operand = word if is_number else look_up(word) or ""
            value = _apply_operator(operator, value or "", operand)
            operator = ""
    return value


def advise_on_path(path: str, base: str) -> str:
    """Return advice for a file that could not be read.

    Args:
        path: as written.
        base: the file in which it was written.
    """
    if "$(" in path or "%(" in path or "@(" in path:
        return "this option acts before $(...), @(...) and %(...) are replaced, as in uWSGI"
    if path.startswith(("/", "-")) or base in ("command line", "environment"):
        return ""
    return "relative paths start at the working directory; %d is the directory of this file"


def has_unknown(value: str) -> bool:
    """Tell whether a value holds something that was not looked up."""
    return UNKNOWN in value


def suggest(name: str, known: tuple[str, ...] | list[str], likeness: float = 0.6) -> str:
    """Return `did you mean NAME?`, or ""."""
    near = nearest_name(name, known, likeness)
    return f"did you mean {near}?" if near else ""
