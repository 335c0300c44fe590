"""The exceptions of lowsuper, each with what a message needs, and `assert_never`.

Operators read the text of these; a bug is an AssertionError and never one of them. `exit_code`
is what the program ends with when the error ends it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Never

    from lowsuper.model import MasterSpec, Problem

EXIT_OWN_FAILURE = 125
EXIT_CONFIG = 78


class LowsuperError(Exception):
    """What all errors of lowsuper are; never raised itself."""

    exit_code = EXIT_OWN_FAILURE


class ConfigError(LowsuperError):
    """The configuration is wrong, and this is all that is wrong with it.

    Args:
        problems: every problem found, in the order of the files; at least one.
        spec: what could be understood all the same, for `check`; never to be run.
    """

    exit_code = EXIT_CONFIG

    def __init__(self, problems: Sequence[Problem], spec: MasterSpec | None = None) -> None:
        """Keep the problems; their wording is `config.wording`'s."""
        super().__init__(f"{len(problems)} problem(s) in the configuration")
        self.problems = tuple(problems)
        self.spec = spec


class PlanError(LowsuperError):
    """What a daemon needs cannot be found on this machine: a user, a group.

    Args:
        problem: what is wrong, and where it was written.
    """

    exit_code = EXIT_CONFIG

    def __init__(self, problem: Problem) -> None:
        """Keep the problem; the text is its reason and advice."""
        super().__init__("; ".join(text for text in (problem.reason, problem.advice) if text))
        self.problem = problem


class KernelError(LowsuperError, OSError):
    """A system call failed.

    Args:
        call: its name, e.g. `clone3`.
        errno_: the errno.
        subject: what it was done to: a path, a daemon, or "".
        advice: what the operator can do, or "".
    """

    def __init__(self, call: str, errno_: int, subject: str = "", advice: str = "") -> None:
        """Make the text `call subject: reason; advice`."""
        from os import strerror

        OSError.__init__(self, errno_, strerror(errno_))
        self.call, self.subject, self.advice = call, subject, advice

    def __str__(self) -> str:
        """Return the one line that an operator reads."""
        text = f"{self.call} {self.subject}".rstrip() + f": {self.strerror}"
        return f"{text}; {self.advice}" if self.advice else text


class UnsupportedError(LowsuperError):
    """This kernel or this sandbox lacks what lowsuper needs; the text says what and since when."""


class WordError(LowsuperError):
    """An operator's word is not taken; the text says why.

    Args:
        why: a phrase.
        is_forbidden: it would be taken from somebody else.
    """

    def __init__(self, why: str, *, is_forbidden: bool = False) -> None:
        """Keep both."""
        super().__init__(why)
        self.is_forbidden = is_forbidden


def assert_never(value: Never) -> Never:
    """Say that this place cannot be reached; mypy proves it, and at run time it is a bug."""
    raise AssertionError(f"not handled: {value!r}")
