"""Options from the command line and from the environment, as uWSGI takes them.

`--key value`, `--key=value`, a bare `--key` for a flag, letters such as `-M` and `-d FILE`, and
files as the remaining words, which are read after all options.
"""

from __future__ import annotations

from lowsuper.config import options
from lowsuper.config.dialect import Option
from lowsuper.config.expand import suggest
from lowsuper.errors import ConfigError
from lowsuper.model import Origin, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMMAND_LINE = "command line"
ENVIRONMENT = "environment"

_PREFIXES = ("UWSGI_", "LOWSUPER_")
_INTERNAL = frozenset(
    (
        "UWSGI_RELOADS",
        "UWSGI_VASSALS_DIR",
        "UWSGI_EMPEROR_FD",
        "UWSGI_BROODLORD_NUM",
        "UWSGI_EMPEROR_FD_CONFIG",
        "UWSGI_EMPEROR_PROXY",
        "UWSGI_JAIL_PID",
        "UWSGI_ORIGINAL_PROC_NAME",
        "LOWSUPER_SOCKET",
    )
)


class _Words:
    """The words of a command line, taken from the front."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._at = 0
        self._declared: dict[str, bool] = {}
        self.options: list[Option] = []
        self.files: list[str] = []
        self.problems: list[Problem] = []

    def parse(self) -> None:
        """Sort all words into options and files."""
        while self._at < len(self._words):
            word = self._words[self._at]
            self._at += 1
            if word == "--":
                self.files.extend(self._words[self._at :])
                return
            if word.startswith("--"):
                self._take_long(word)
            elif word.startswith("-") and word != "-":
                self._take_letters(word)
            else:
                self.files.append(word)

    def _take_long(self, word: str) -> None:
        name, equals, value = word[2:].partition("=")
        known = name in self._declared or options.is_option(name)
        if not known:
            advice = suggest(name, options.list_names(), 0.7)
            if not advice:
                advice = f"for a placeholder write --set-ph {name}=VALUE"
            self._fault(word, "there is no such option", advice)
        elif equals:
            self._put(name, value)
        elif self._declared.get(name, options.takes_argument(name)):
            self._put_next(name, word)
        else:
            self._put(name, "")

    def _take_letters(self, word: str) -> None:
        for place, letter in enumerate(word[1:], 2):
            name = options.find_short(letter)
            if not name:
                self._fault(word, f"there is no option -{letter}")
                return
            if not options.takes_argument(name):
                self._put(name, "")
            elif word[place:]:
                self._put(name, word[place:])
                return
            else:
                self._put_next(name, word)

    def _put_next(self, name: str, word: str) -> None:
        if self._at >= len(self._words):
            self._fault(word, "needs a value")
            return
        self._put(name, self._words[self._at])
        self._at += 1

    def _put(self, name: str, value: str) -> None:
        if name in ("declare-option", "declare-option2"):
            declared, _, template = value.partition("=")
            self._declared[declared] = any(f"${digit}" in template for digit in (1, 2, 3))
        self.options.append(Option(name, value, Origin(COMMAND_LINE, 0, "--" + name, value)))

    def _fault(self, word: str, reason: str, advice: str = "") -> None:
        self.problems.append(Problem(Origin(COMMAND_LINE, 0, word, ""), reason, advice=advice))


def parse_arguments(words: Sequence[str]) -> tuple[Option, ...]:
    """Return the options of a command line, and `ini` for each word that is a file.

    Args:
        words: without the program's name and without what is the command line tool's own.

    Raises:
        ConfigError: an option does not exist or lacks its value.
    """
    parser = _Words(words)
    parser.parse()
    if parser.problems:
        raise ConfigError(parser.problems)
    files = [Option("ini", name, Origin(COMMAND_LINE, 0, "", name)) for name in parser.files]
    return (*parser.options, *files)


def parse_environment(environ: Mapping[str, str]) -> tuple[Option, ...]:
    """Return the options that `UWSGI_*` and `LOWSUPER_*` variables give.

    `UWSGI_TOUCH_RELOAD=/x` is `touch-reload = /x`; names that are no option are placeholders.
    """
    found: list[Option] = []
    for variable, value in environ.items():
        if variable.startswith(_PREFIXES) and variable not in _INTERNAL:
            name = variable.partition("_")[2].lower().replace("_", "-")
            origin = Origin(ENVIRONMENT, 0, variable, value)
            is_option = options.is_option(name)
            found.append(Option(name, value, origin, placeholder=not is_option))
    return tuple(found)
