"""Where the verbs write to: colours for terminals only, and nothing that steers one."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

RED, GREEN, YELLOW, DIM, BOLD = "31", "32", "33", "2", "1"


def write(text: str, fd: int = 1) -> None:
    """Write a text to standard output, all of it.

    Not through `sys.stdout`, which may be None, and whose buffer fails once more at the exit.
    """
    data = memoryview(text.encode("utf-8", "surrogateescape"))
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            from select import POLLOUT, poll

            poller = poll()
            poller.register(fd, POLLOUT)
            poller.poll()


def clean(text: str) -> str:
    r"""Return a text that steers no terminal: what cannot be printed is escaped, as in `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def clean_line(text: str) -> str:
    """Return a line of a daemon's output: tabs stay, what steers a terminal does not."""
    return "\t".join(map(clean, text.split("\t")))


def is_terminal(fd: int = 1) -> bool:
    """Return whether somebody looks at it."""
    return os.isatty(fd)


def wants_color(when: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether to use colours: see https://no-color.org.

    Args:
        when: what --color said: always, never, or anything else.
        environ: for NO_COLOR and TERM.
    """
    if when in ("always", "never"):
        return when == "always"
    return is_terminal() and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"


def width() -> int:
    """Return the number of columns of the terminal; 0: there is none."""
    try:
        return os.get_terminal_size(1).columns
    except OSError:
        return 0


def paint(text: str, color: str) -> str:
    """Return the text in a colour; none for ""."""
    return f"\x1b[{color}m{text}\x1b[m" if color else text
