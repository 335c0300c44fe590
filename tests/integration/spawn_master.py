"""A master for the tests to kill: starts what its arguments say, tells, and waits for its end.

Its descriptors 3 (held by every process that must not outlive it) and 4 (input of the daemon) are
the test's. It writes one line when all is running: the pids of the daemon and of what guards it.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from spawning import Run, make_plan

from lowsuper.kernel import spawn
from lowsuper.kernel.guard import start_guard
from lowsuper.plan import EXEC, FdSource

BREEDER = """
trap '' TERM
setsid sh -c 'printf x >&3; exec sleep 1000' &
(setsid sh -c 'printf x >&3; exec sleep 1000' &)
printf x >&3
exec sleep 1000
"""
"""A daemon, its child and a double-forked grandchild, each of a session of its own and deaf."""

ECHO = "while read line; do echo $line >&3; done"
"""A daemon that answers, and ends when nobody asks any more."""


def main() -> None:
    """Start a daemon on the rung of the first argument, and perhaps a guard."""
    options = json.loads(sys.argv[1])
    spawner = spawn.Spawner(helper=options["helper"])
    guard = leaf_fd = None
    if options.get("cgroup"):
        parent, name = os.path.split(options["cgroup"])
        parent_fd = os.open(parent, os.O_PATH | os.O_CLOEXEC)
        instance_fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent_fd)
        # As a real master does: where the guard begins, which has to remove it.
        own = os.open("master/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=instance_fd)
        os.write(own, b"0")
        guard = start_guard(spawner, instance_fd, parent_fd, name)
        assert guard.ready()
        leaf_fd = os.open(options["leaf"], os.O_RDONLY | os.O_CLOEXEC, dir_fd=instance_fd)
    role = options.get("role", EXEC)
    plan = make_plan(
        "/bin/sh",
        "-c",
        ECHO if options.get("echo") else BREEDER,
        role=role,
        new_pid_ns=role == "nsinit",
        dies_with_master=options.get("dies", True),
        fds=(FdSource(0, 4), FdSource(1, 2), FdSource(2, 2), FdSource(3, 3)),
    )
    # Not `with`: what is left when this process ends is the question.
    run = Run(spawner, plan, leaf_fd=-1 if leaf_fd is None else leaf_fd)
    assert run.outcome() == spawn.ExecOk()
    daemon = run.child.pid
    if run.child.channel_fd >= 0:
        daemon = run.receive().pid
    if options.get("survive"):
        assert spawn.send_survive(run.child.channel_fd)
    if options.get("survive_unread"):
        # The role comes to it only when this process is dead.
        os.kill(run.child.pid, signal.SIGSTOP)
        os.waitpid(run.child.pid, os.WUNTRACED)
        for number in (0, signal.SIGCONT):
            assert spawn.send_signal(run.child.channel_fd, number)
        assert spawn.send_survive(run.child.channel_fd)
    pids = [daemon, run.child.pid, guard.pid if guard else 0]
    os.write(1, json.dumps(pids).encode() + b"\n")
    os.close(3)
    os.close(4)
    wait_for_end()


def wait_for_end() -> None:
    """Wait for the end of standard input, or a signal."""
    os.set_blocking(0, True)
    while os.read(0, 1):
        pass


if __name__ == "__main__":
    main()
