"""The `enter` command: a shell or another command in a jail that runs."""

from __future__ import annotations

import os
import sys

from lowsuper.kernel import enter
from lowsuper.kernel.foreground import Job
from lowsuper.kernel.pidfile import read_pidfile
from lowsuper.kernel.source import load_config
from lowsuper.kernel.spawn import wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Never

    from lowsuper.kernel.enter import Inside, Order

USAGE = """\
Usage: lowsuper enter [--user NAME] FILE|PID [--] [COMMAND [ARGUMENT]...]

Runs COMMAND, or a shell, in a jail: in the namespaces, the root and with the users of the process
PID, which may be the lowsuper that made the jail, or any process in it; or in that which the
lowsuper that runs FILE has made. Needs root.

  --user NAME  be this user of the jail; else root

Ends with the exit status of the command, or 128 + N if signal N killed it; 127: there is no such
command, 126: it cannot be executed, 125: the jail could not be entered.
"""
EXIT_USAGE = 125
END_MS = 200  # how long the jail may take to end when the command was killed with it
SIGKILL = 9


def main(words: Sequence[str]) -> int:
    """Run `lowsuper enter` and return its exit status.

    Args:
        words: what follows `enter` on the command line.
    """
    rest = list(words)
    user = ""
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            sys.stdout.write(USAGE)
            return 0
        if name not in ("--user", "-u") or not (equals or rest):
            return _refuse(f"{word} is no option of enter, or lacks its value")
        user = value if equals else rest.pop(0)
    if not rest:
        sys.stderr.write(USAGE)
        return EXIT_USAGE
    target, *command = rest
    if command[:1] == ["--"]:
        del command[0]
    return _enter(target, command, user)


def _refuse(text: str) -> int:
    sys.stderr.write(f"lowsuper: enter: {text}\n")
    return EXIT_USAGE


def _find_jail(target: str) -> Inside:
    """Return what to join for a pid, or for the file that a master runs."""
    if target.isascii() and target.isdigit():
        return enter.find_jail(int(target))
    return enter.find_jail(_find_master(target), is_master=True)


def _find_master(file: str) -> int:
    """Return the pid that the pidfiles of a configuration name; whose that is is to be looked at.

    Raises:
        NoJailError: they name none, or there are none.
        ConfigError: the file is wrong.
    """
    spec = load_config([file], os.environ, runs_commands=False)
    paths = [path for path in (spec.safe_pidfile, spec.pidfile, spec.pidfile2) if path]
    reasons = []
    for path in paths:
        path = os.path.join(spec.chdir or "", path)  # noqa: PLW2901  # as the master sees it
        reading = read_pidfile(path)
        if reading.pid:
            return reading.pid
        reasons.append(f"its pidfile {path} {reading.reason}")
    if not paths:
        reasons.append("it has no pidfile to find it by; name its pid")
    raise enter.NoJailError(f"no master of {file} is known to run: {', '.join(reasons)}")


def _enter(target: str, command: Sequence[str], user: str) -> int:
    inside = _find_jail(target)
    try:
        order = enter.prepare(inside, command, user, os.environ.get("TERM", ""))
        return _run(inside, order)
    finally:
        inside.close()


def _run(inside: Inside, order: Order) -> int:
    job = Job()

    def start(channel_fd: int) -> Never:
        enter.usher(inside, order, channel_fd, mask=job.mask, in_front=job.in_front)

    try:
        status = job.run(start)
    finally:
        job.close()
    if status is None:
        return enter.EXIT_FAILED
    code = os.waitstatus_to_exitcode(status)
    if code == -SIGKILL and wait_readable(inside.pidfd, END_MS):
        sys.stderr.write(f"lowsuper: enter: the jail of process {inside.pid} has ended\n")
    return code if code >= 0 else 128 - code
