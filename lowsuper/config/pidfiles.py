"""Pidfiles in a configuration: the line of `smart-attach-daemon`, and whose pidfiles are the same.

Pure: paths are compared as texts. That two meet through a link only the lock of a pidfile tells.
"""

from __future__ import annotations

from lowsuper.config import keys
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowsuper.model import MasterSpec
    from lowsuper.units import Ns

_SYNTAX = "write PIDFILE COMMAND, or PIDFILE,FREQ COMMAND"
_OTHER_FORM = "needs attach-daemon2 or a [daemon:NAME] section"


class SmartLineError(ValueError):
    """The value of `smart-attach-daemon` cannot be read."""

    def __init__(self, reason: str, advice: str = _SYNTAX) -> None:
        """Keep what is wrong and the way out."""
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class SmartLine(Record):
    """What stands in `smart-attach-daemon = PIDFILE[,FREQ] COMMAND`."""

    pidfile: str
    freq: Ns | None  # None: not given
    command: str


def parse_smart(text: str) -> SmartLine:
    """Return the parts of `PIDFILE[,FREQ] COMMAND`.

    As in uWSGI the first blank ends the pidfile, which is cut at its first comma; so it can hold
    neither. Unlike there a tab is a blank, and what is missing or no number is an error.

    Raises:
        SmartLineError: a part is missing or cannot be what it should be.
    """
    head, command = _cut_at_blank(text.strip(" \t"))
    if not head:
        raise SmartLineError("needs a pidfile and a command")
    if head[0] in "\"'" or head.endswith("\\"):
        reason = "a quote or \\ protects no blank in a pidfile"
        raise SmartLineError(reason, f"a pidfile with blanks {_OTHER_FORM}")
    pidfile, comma, after = head.partition(",")
    if not pidfile:
        raise SmartLineError("there is no pidfile before the comma")
    try:
        keys.parse_pidfile(pidfile)
    except ValueError as error:
        raise SmartLineError(f"the pidfile {error}") from None
    freq = _parse_freq(after) if comma else None
    if not command:
        raise SmartLineError("there is no command after the pidfile")
    if command.startswith(","):
        raise SmartLineError("there is a blank before the comma of FREQ")
    if "/" not in pidfile and "pid" not in pidfile.lower():
        advice = f"{_SYNTAX}; if this really is the pidfile, write ./{pidfile}"
        raise SmartLineError(f"{pidfile} stands where the pidfile belongs", advice)
    return SmartLine(pidfile, freq, command)


def _cut_at_blank(text: str) -> tuple[str, str]:
    """Return what stands before the first blank or tab, and what follows."""
    end = min((at for at in (text.find(" "), text.find("\t")) if at >= 0), default=len(text))
    return text[:end], text[end:].strip(" \t")


def _parse_freq(text: str) -> Ns:
    if not text:
        raise SmartLineError("there is no FREQ after the comma", "write PIDFILE,10 COMMAND")
    try:
        return keys.parse_patience(text)
    except ValueError as error:
        advice = "write PIDFILE,10 COMMAND"
        if not text[0].isdigit():
            advice += f"; a pidfile with a comma {_OTHER_FORM}"
        raise SmartLineError(f"FREQ {error}", advice) from None


def normalize_path(directory: str, path: str) -> str:
    """Return a path without `//`, `.` and `..`; a relative one is seen from a directory.

    Args:
        directory: "" is the working directory, which is not known here.
        path: as it was written.
    """
    whole = path if path.startswith("/") or not directory else f"{directory}/{path}"
    kept: list[str] = []
    for part in whole.split("/"):
        if part == ".." and kept and kept[-1] != "..":
            kept.pop()
        elif part not in ("", ".") and not (part == ".." and whole.startswith("/")):
            kept.append(part)
    return ("/" if whole.startswith("/") else "") + "/".join(kept)


def find_clashes(spec: MasterSpec) -> Iterator[tuple[str, str]]:
    """Yield daemons whose pidfile is somebody else's too: the daemon's name, and why, a phrase.

    Args:
        spec: paths in it are seen from its `chdir`.
    """
    directory = spec.chdir or ""
    taken: dict[str, str] = {}
    for key, path in (
        ("pidfile", spec.pidfile),
        ("pidfile2", spec.pidfile2),
        ("safe-pidfile", spec.safe_pidfile),
    ):
        if path is not None:
            taken[normalize_path(directory, path)] = f"is the master's own {key}"
    for daemon in spec.daemons:
        if daemon.pidfile is None:
            continue
        path, origin = normalize_path(directory, daemon.pidfile), daemon.origin
        if path in taken:
            yield daemon.name, taken[path]
        else:
            place = f"{origin.file}:{origin.line}" if origin.line else origin.file
            taken[path] = f"is the pidfile of {daemon.name} ({place}) too"
