"""Configuration text to a `MasterSpec`: sans-IO, with all problems at once.

`load` is the way in; `kernel.source.load_config` drives it on a running system.
"""

from __future__ import annotations

from lowsuper.config.arguments import parse_arguments, parse_environment
from lowsuper.config.build import build_spec
from lowsuper.config.dialect import Reader
from lowsuper.config.requests import Failure, ReadDirectory
from lowsuper.model import EnvChange, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowsuper.config.dialect import Option
    from lowsuper.config.requests import Asking
    from lowsuper.model import MasterSpec

__all__ = ["load", "parse_arguments", "parse_environment"]


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Asking[MasterSpec]:
    """Return what a command line and an environment ask for.

    A generator: it yields requests (see `requests`) and is sent the answers.

    Args:
        arguments: options and files, as on uWSGI's command line.
        environ: for `UWSGI_*` and `LOWSUPER_*` options, `$(NAME)` and `if-env`.

    Raises:
        ConfigError: something is wrong; it holds everything that is.
    """
    given = (*parse_environment(environ), *parse_arguments(arguments))
    reading = yield from Reader(environ).read(given)
    directories: dict[str, tuple[EnvChange, ...]] = {}
    problems = list(reading.problems)
    for option in reading.options:
        if option.name == "envdir" and not option.daemon and option.value not in directories:
            directories[option.value] = yield from _read_directory(option, problems)
    return build_spec(reading.replace(problems=tuple(problems)), directories)


def _read_directory(option: Option, problems: list[Problem]) -> Asking[tuple[EnvChange, ...]]:
    """Ask for one `envdir`; an empty file removes its variable."""
    answer = yield ReadDirectory(option.value)
    if isinstance(answer, Failure):
        problems.append(Problem(option.origin, answer.reason, advice=answer.advice))
        return ()
    changes: list[EnvChange] = []
    assert isinstance(answer, tuple)
    for name, text in (pair for pair in answer if isinstance(pair, tuple)):
        changes.append(EnvChange(name, text or None))
    return tuple(changes)
