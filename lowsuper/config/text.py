"""The text of one configuration file: lines, sections and magic variables.

Pure. Magic variables are replaced in the raw text before anything is understood, as in uWSGI;
only the line structure is kept here, where uWSGI lets a `%` at the end of a line swallow it.
"""

from __future__ import annotations

from lowsuper.record import Record

DAEMON_PREFIX = "daemon:"
_BLANKS = " \t\r"


class Line(Record):
    """One `key = value` of a file."""

    number: int
    section: str
    key: str
    value: str
    bare: bool  # there was no "="


class Oddity(Record):
    """One line that is wrong, or only strange."""

    number: int
    text: str
    reason: str
    advice: str = ""
    is_error: bool = False


class Parsed(Record):
    """What one file holds."""

    lines: tuple[Line, ...]
    headers: tuple[tuple[int, str], ...]  # line and name of each section
    odd: tuple[Oddity, ...]


def hash_path(path: str) -> str:
    """Return the value of `%j`: the djb33x hash of a path, low byte first, in hexadecimal."""
    value = 5381
    for byte in path.encode("utf-8", "surrogateescape"):
        value = ((value << 5) + value ^ byte) & 0xFFFFFFFF
    return value.to_bytes(4, "little").hex().upper()


def build_magic(name: str, path: str, inode: int, section: str) -> dict[str, str]:
    """Return the magic variables that concern one file.

    Args:
        name: the file as it was asked for, without the section.
        path: its absolute path.
        inode: its number.
        section: the section asked for, or "".
    """
    directory, _, base = path.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    magic = {
        "o": name,
        "p": path,
        "s": base,
        "d": directory + "/",
        "e": extension if dot else "",
        "n": stem if dot else base,
        "c": directory.rpartition("/")[2],
        "x": section,
        "i": str(inode),
        "j": hash_path(path),
    }
    parts = [part for part in directory.split("/") if part]
    magic.update({str(digit): "" for digit in range(10)})
    magic.update({str(index): part for index, part in enumerate(parts[:10])})
    return magic


FILE_MAGIC = "opsdencxij0123456789"
"""The magic variables of the file in which they stand."""
FIRST_MAGIC = "OPSDENCXIJ"
"""The same, of the first file that was not included."""
FACT_MAGIC = {
    "v": "cwd",
    "h": "hostname",
    "k": "cpus",
    "u": "uid",
    "U": "user",
    "g": "gid",
    "G": "group",
    "t": "time",
    "T": "micros",
    "V": "version",
    "b": "binary",
}
"""The magic variables that are facts of the machine, with the names of the facts."""


def find_magic(text: str) -> set[str]:
    """Return the characters that follow a `%` anywhere in the text."""
    found = set()
    at = text.find("%")
    while at >= 0 and at + 1 < len(text):
        found.add(text[at + 1])
        at = text.find("%", at + 2)
    return found


def expand_magic(line: str, magic: dict[str, str]) -> tuple[str, list[str]]:
    """Replace the magic variables of one line.

    Returns:
        The new line, and the `%x` that mean nothing and were taken out.
    """
    if "%" not in line:
        return line, []
    parts: list[str] = []
    lost: list[str] = []
    start, at = 0, line.find("%")
    while at >= 0:
        char = line[at + 1 : at + 2]
        parts.append(line[start:at])
        if char in magic:
            parts.append(magic[char])
        else:
            lost.append("%" + char)
        start = at + 2
        at = line.find("%", start)
    parts.append(line[start:])
    return "".join(parts), lost


def _warn_of_magic(number: int, raw: str, lost: list[str]) -> Oddity | None:
    """Return a warning when magic variables did what the user will not have wanted."""
    if lost:
        names = " ".join(lost)
        reason = f"{names} stands for nothing and is taken out, as in uWSGI"
        return Oddity(number, raw.strip(), reason, "write %% for one %")
    if "date " in raw and "+%" in raw.replace("+%%", ""):
        reason = "% starts a magic variable also inside a command"
        return Oddity(number, raw.strip(), reason, "write %% for each % that date should see")
    return None


def _parse_section(stripped: str, number: int) -> tuple[str, Oddity | None]:
    """Return the name of `[name]`, with what is odd about it."""
    end = stripped.find("]")
    if end < 0:
        return "", Oddity(number, stripped, "a section's name must end with ]", is_error=True)
    rest = stripped[end + 1 :].strip(_BLANKS)
    if rest and rest[0] not in ";#":
        return stripped[1:end].strip(), Oddity(number, stripped, "what follows the ] is ignored")
    return stripped[1:end].strip(), None


def parse_lines(text: str, magic: dict[str, str]) -> Parsed:
    """Return the options and sections of a file, and what is odd in it.

    Args:
        text: the whole file.
        magic: a value for each magic variable, by its character.
    """
    lines: list[Line] = []
    headers: list[tuple[int, str]] = []
    odd: list[Oddity] = []
    magic = {"%": "%", "(": "%(", "[": "\033", **magic}
    section = ""
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        stripped = raw.strip(_BLANKS)
        if not stripped or stripped[0] in ";#":
            continue
        expanded, lost = expand_magic(stripped, magic)
        warning = _warn_of_magic(number, raw, lost)
        if stripped[0] == "[":
            section, warning = _parse_section(expanded, number)
            headers.append((number, section))
        else:
            key, equals, value = expanded.partition("=")
            lines.append(
                Line(number, section, key.strip(_BLANKS), value.strip(_BLANKS), not equals)
            )
        if warning is not None:
            odd.append(warning)
    return Parsed(tuple(lines), tuple(headers), tuple(odd))
