"""The command `run FILE -- COMMAND`: daemons for as long as one command runs."""

from __future__ import annotations

import os
import sys

from lowsuper.units import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowsuper.kernel.teller import Teller
    from lowsuper.units import Ns

USAGE = """\
usage: lowsuper run [FILE] [OPTION]... -- COMMAND [ARGUMENT]...

Starts the daemons, waits until all are ready, runs COMMAND, and stops everything when it has ended.

  --timeout TIME   how long the daemons may take to be ready, as in 30s or 2m
  --strict         end COMMAND when a daemon is given up, or the daemons are stopped
  --keep-logs DIR  keep what the daemons write in DIR/NAME.log, and why they failed in DIR/NAME.why

Ends with the exit status of COMMAND, or 128 + N if signal N killed it; 127: there is no such
command, 126: it cannot be executed, 125: a daemon was not ready, or could not be ended, or was
given up (--strict); 78: the configuration is wrong.
"""
EXIT_USAGE = 125
VALUED = ("--timeout", "--keep-logs")


class Wishes:
    """What the command line asks for."""

    __slots__ = ("arguments", "command", "keep", "strict", "timeout")

    def __init__(self, words: Sequence[str]) -> None:
        """Take the words after `run`, one of which is `--`.

        Raises:
            ValueError: they make no sense; the text says why.
        """
        split = words.index("--")
        self.command = list(words[split + 1 :])
        self.arguments: list[str] = []  # for the configuration
        self.timeout: Ns | None = None
        self.keep: str | None = None
        self.strict = False
        rest = list(words[:split])
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            if word == "--strict":
                self.strict = True
            elif name not in VALUED:
                self.arguments.append(word)
            elif equals or rest:
                self._take(name, value if equals else rest.pop(0))
            else:
                raise ValueError(f"{name} needs a value")
        if not self.command:
            raise ValueError("there is no command after --")

    def _take(self, name: str, value: str) -> None:
        if name == "--keep-logs":
            self.keep = os.path.abspath(value)
            return
        try:
            self.timeout = parse_duration(value)
        except ValueError as error:
            raise ValueError(f"{name} {value}: {error}") from None


def main(words: Sequence[str], serve: Callable[[Sequence[str], Teller], int]) -> int:
    """Run `lowsuper run ... -- COMMAND` and return its exit status.

    Args:
        words: what follows `run` on the command line.
        serve: is a master with these arguments, in a child; returns its exit code.
    """
    if words[0] in ("--help", "-h"):
        sys.stdout.write(USAGE)
        return 0
    try:
        wishes = Wishes(words)
        if wishes.keep is not None:
            os.makedirs(wishes.keep, exist_ok=True)
    except ValueError as error:
        sys.stderr.write(f"lowsuper: run: {error}\n")
        return EXIT_USAGE
    except OSError as error:
        sys.stderr.write(f"lowsuper: run: --keep-logs {error.filename}: {error.strerror}\n")
        return EXIT_USAGE
    from lowsuper.kernel.front import Stage

    stage = Stage(
        wishes.command,
        lambda teller: serve(wishes.arguments, teller),
        timeout=wishes.timeout,
        strict=wishes.strict,
        keep=wishes.keep,
    )
    return stage.run()
