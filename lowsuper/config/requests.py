"""What the reader of configurations asks the world for, and what it is told.

The reader is a generator: it yields a request and is sent the answer. `kernel.source` answers
from the running system, tests answer from dicts.
"""

from __future__ import annotations

from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeAlias, TypeVar

UNKNOWN = "\ufdd0"
"""Stands in a value for what was not looked up; it is no character of any text."""


class ReadFile(Record):
    """Ask for the text of a file; answered by `FileText` or `Failure`."""

    path: str  # relative to the working directory; "-" is the standard input


class RunCommand(Record):
    """Ask for what a command writes, as `@(exec://...)` does; answered by `FileText` or `Failure`.

    The path of the answer is empty, and its text is `UNKNOWN` if commands must not be run.
    """

    text: str


class ListGlob(Record):
    """Ask for the sorted paths that match a pattern; answered by a tuple of texts."""

    pattern: str


class JudgePath(Record):
    """Ask whether a path is readable (`exists`), a `file` or a `dir`; answered by a bool."""

    path: str
    kind: str


class ReadDirectory(Record):
    """Ask for a directory's regular files; answered by a tuple of (name, text) or `Failure`."""

    path: str


class AskFact(Record):
    """Ask for a fact of the machine; answered by a text.

    Names: cwd, hostname, cpus, uid, user, gid, group, time, micros, version, binary.
    """

    name: str


class FileText(Record):
    """The text of a file, and what the magic variables say of it."""

    text: str
    path: str = ""  # absolute; a symbolic link is not followed
    inode: int = 0


class Failure(Record):
    """Why there is no answer, as a phrase."""

    reason: str
    advice: str = ""


if TYPE_CHECKING:
    Request: TypeAlias = ReadFile | RunCommand | ListGlob | JudgePath | ReadDirectory | AskFact
    Answer: TypeAlias = (
        FileText | Failure | bool | str | tuple[str, ...] | tuple[tuple[str, str], ...]
    )
    T = TypeVar("T")
    Asking: TypeAlias = Generator[Request, Answer, T]
    """A generator that asks, is answered, and returns a T."""
