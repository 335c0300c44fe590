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
_LONGEST = 1 << 20
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


def find_reference(value: str, symbol: str, start: int) -> tuple[int, int] | None:
    """Return where the next `symbol(...)` begins and where it ends, or None."""
    begin = value.find(symbol + "(", start)
    while begin >= 0:
        depth = 0
        for at in range(begin + 1, len(value)):
            depth += (value[at] == "(") - (value[at] == ")")
            if not depth:
                if at > begin + 2:
                    return begin, at + 1
                break
        begin = value.find(symbol + "(", begin + 2)
    return None


def replace_references(value: str, symbol: str, look_up: LookUp) -> str:
    """Return the value with each `symbol(name)` replaced by what `look_up` says.

    Args:
        value: the text.
        symbol: `$` or `%`.
        look_up: returns the replacement, or None to leave the reference as it stands.

    Raises:
        ExpandError: the replacements never end.
    """
    start, rounds = 0, 0
    while (found := find_reference(value, symbol, start)) is not None:
        begin, end = found
        replacement = look_up(value[begin + 2 : end - 1])
        if replacement is None:
            start = end
            continue
        value = value[:begin] + replacement + value[end:]
        rounds += 1
        start = max(0, begin - 1)
        if rounds > _MOST_ROUNDS or len(value) > _LONGEST:
            raise ExpandError(f"{symbol}(...) refers to itself")
    return value


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
    start = 0
    while (found := find_reference(value, "@", start)) is not None:
        begin, end = found
        answer = yield from read_source(value[begin + 2 : end - 1])
        if isinstance(answer, Failure):
            name = value[begin + 2 : end - 1]
            raise ExpandError(f"@({name}): {answer.reason}", answer.advice)
        text = answer.text
        if text[-1:] in ("\n", "\r"):
            text = text[:-1]
        value = value[:begin] + text + value[end:]
        start = begin + len(text)
        if len(value) > _LONGEST:
            raise ExpandError("is longer than 1 MiB after @(...)")
    return value


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
