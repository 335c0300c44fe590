"""The `enter` command: a shell or another command in a jail that runs."""

from __future__ import annotations

import os
import sys

from lowsuper.kernel import enter, instance
from lowsuper.kernel.foreground import Job
from lowsuper.kernel.pidfile import read_pidfile
from lowsuper.kernel.source import load_config
from lowsuper.kernel.spawn import wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Never

    from lowsuper.kernel.enter import Inside, Order
    from lowsuper.model import MasterSpec

USAGE = """\
Usage: lowsuper enter [--user NAME] FILE|NAME|PID [--] [COMMAND [ARGUMENT]...]

Runs COMMAND, or a shell, in a jail: in the namespaces, the root and with the users of the process
PID, which may be the lowsuper that made the jail, or any process in it; or in that which the
lowsuper that runs FILE, or the instance NAME, has made. Needs root.

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
    """Return what to join for a pid, an instance, or the file that a master runs."""
    if target.isascii() and target.isdigit():
        return enter.find_jail(int(target))
    directory = None
    pid = _find_instance(target, None)
    if not pid:
        spec = load_config([target], os.environ, runs_commands=False)
        directory = spec.runtime_dir
        pid = _find_instance(target, directory) if directory else 0
        if not pid:
            return enter.find_jail(_read_pidfiles(target, spec), is_master=True)
    inside = enter.find_jail(pid)
    # Race: that master may have ended, and another process have got the number, before it was
    # pinned.
    if _find_instance(target, directory) != pid:
        inside.close()
        raise enter.NoJailError(f"the master of {target} has just ended")
    return inside


def _find_instance(target: str, directory: str | None) -> int:
    """Return the pid of the master that has a name or runs a file; 0: none does."""
    if os.path.exists(target):
        return instance.find_pid(target, directory)
    return next((each.pid for each in instance.find_instances(directory) if each.name == target), 0)


def _read_pidfiles(file: str, spec: MasterSpec) -> int:
    """Return the pid that the pidfiles of a configuration name; whose that is is to be looked at.

    For a master that has no runtime directory.

    Raises:
        NoJailError: they name none, or there are none.
    """
    reasons = ["none is in the runtime directory"]
    for name in (spec.safe_pidfile, spec.pidfile, spec.pidfile2):
        if name:
            path = os.path.join(spec.chdir or "", name)
            reading = read_pidfile(path)
            if reading.pid:
                return reading.pid
            reasons.append(f"its pidfile {path} {reading.reason}")
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
