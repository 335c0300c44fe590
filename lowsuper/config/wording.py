"""Problems as text for people and as JSON for programs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowsuper.model import DaemonSpec, MasterSpec, Origin, Problem

SCHEMA = 1
"""Version of the JSON form; it changes when a field goes or changes its meaning."""

_LONGEST_VALUE = 160


def clean_text(text: str) -> str:
    """Return a text in one line, without control characters, and not endless."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return shown if len(shown) <= _LONGEST_VALUE else shown[:_LONGEST_VALUE] + "..."


def format_place(origin: Origin) -> str:
    """Return `file:line`, or the file alone where there are no lines."""
    return f"{origin.file}:{origin.line}" if origin.line else origin.file


def format_problem(problem: Problem) -> str:
    """Return the one line for a problem: `file:line: daemon: key=value: reason; advice`."""
    origin = problem.origin
    parts = [clean_reason(format_place(origin))]
    if not problem.is_error:
        parts.append("warning")
    if problem.daemon:
        parts.append(clean_text(problem.daemon))
    if origin.key or origin.value:
        equals = "=" if origin.key and origin.value else ""
        parts.append(clean_text(origin.key + equals + origin.value))
    reason = f"{problem.reason}; {problem.advice}" if problem.advice else problem.reason
    return ": ".join([*parts, clean_reason(reason)])


def clean_reason(text: str) -> str:
    """Return a reason in one line, whatever it quotes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def describe_problem(problem: Problem) -> dict[str, object]:
    """Return a problem as a JSON object."""
    origin = problem.origin
    return {
        "severity": "error" if problem.is_error else "warning",
        "file": clean_reason(origin.file),
        "line": origin.line,
        "daemon": clean_reason(problem.daemon),
        "key": clean_reason(origin.key),
        "value": clean_reason(origin.value),
        "reason": clean_reason(problem.reason),
        "advice": clean_reason(problem.advice),
    }


def describe_daemon(daemon: DaemonSpec) -> dict[str, object]:
    """Return a daemon as a JSON object."""
    return {
        "name": daemon.name,
        "file": clean_reason(daemon.origin.file),
        "line": daemon.origin.line,
        "command": clean_reason(daemon.command.text),
        "argv": [clean_reason(word) for word in daemon.command.argv],
        "shell": daemon.command.shell,
        "compound": daemon.command.compound,
        "user": daemon.user,
        "group": daemon.group,
        "control": daemon.control,
        "pidfile": None if daemon.pidfile is None else clean_reason(daemon.pidfile),
        "daemonize": daemon.daemonize,
    }


def format_json(problems: Iterable[Problem], spec: MasterSpec | None) -> str:
    """Return the JSON form of a check.

    Args:
        problems: all of them.
        spec: the configuration, or None when it could not be read.
    """
    import json  # only when it is asked for

    daemons = () if spec is None else spec.daemons
    report = {
        "schema": SCHEMA,
        "problems": [describe_problem(problem) for problem in problems],
        "daemons": [describe_daemon(daemon) for daemon in daemons],
    }
    return json.dumps(report)
