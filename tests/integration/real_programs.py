"""What a smart daemon goes through, whichever program it is: stops, reloads, deaths, successors."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from masters import DEADLINE, Master, Masters, is_alive

QUICK = 3.0
"""A daemon that has run for longer than these seconds is started again at once when it dies."""


def read_pid(path: Path | str) -> int:
    """Return the number on the first line of a pidfile."""
    return int(Path(path).read_text().splitlines()[0])


def begin_smart(masters: Masters, text: str, name: str, **keywords) -> tuple[Master, int]:
    """Start a master that starts the daemon; return both, the daemon as its pid."""
    master = masters.begin(text, **keywords)
    started, _ = master.wait_lines(rf"lowsuper: {name}: started, pid (\d+),", "lowsuper: ready: ")
    return master, int(started[1])


def begin_adopting(masters: Masters, text: str, name: str, pid: int, **keywords) -> Master:
    """Start a master that finds the daemon running, and does not start another."""
    master = masters.begin(text, **keywords)
    found, _ = master.wait_lines(
        rf"lowsuper: {name}: found running for .*?, pid (\d+),", "lowsuper: ready: "
    )
    assert int(found[1]) == pid, master.text
    master.expect_silence(rf"lowsuper: {name}: started,")
    return master


def stop_without(master: Master, name: str, pid: int) -> None:
    """Stop the master, which leaves the daemon alone."""
    assert master.stop() == 0, master.text
    assert master.has_said(rf"lowsuper: {name}: stop: left running, pid {pid}\b"), master.text
    assert is_alive(pid)


def reload_without(master: Master, name: str, pid: int) -> None:
    """Reload the master, which leaves the daemon alone."""
    master.drain()
    before = count_starts(master, name)
    master.signal(signal.SIGHUP)
    master.wait_line(rf"lowsuper: {name}: reload: left running, pid {pid}\b")
    master.wait_line("lowsuper: reloaded")
    assert is_alive(pid)
    assert master.pid_of(name) == pid, master.text
    assert count_starts(master, name) == before, master.text
    master.expect_silence(rf"lowsuper: {name}: pid {pid} (was|exited|ended)")


def count_starts(master: Master, name: str) -> int:
    """Return how often the master has started the daemon, by its lines until now."""
    master.drain()
    return sum(f"lowsuper: {name}: started," in line for line in master.lines)


def end_and_reap(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process and see it end; reap it if it has become our child."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
        wait_end(pid, pidfd)
    finally:
        os.close(pidfd)


def see_end(pid: int) -> None:
    """Wait until a process has ended; reap it if it has become our child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_end(pid, pidfd)
    finally:
        os.close(pidfd)


def wait_end(pid: int, pidfd: int) -> None:
    """Wait for the end of a process, and reap it as init would, to whom orphans come elsewhere.

    Many programs take a zombie that has the pid in their pidfile for a running instance.
    """
    ready, _, _ = select.select([pidfd], [], [], DEADLINE)
    assert ready, f"process {pid} did not end"
    reap(pidfd)


def reap(pidfd: int) -> None:
    """Reap a process that has ended, if it is our child."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return  # its own parent's task


def outlive(pid: int, seconds: float) -> None:
    """Wait until the process has run for so long, and see that it does not end meanwhile."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    pidfd = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([pidfd], [], [], max(0.0, seconds - age + 0.05))
        assert not ready, f"process {pid} ended"
    finally:
        os.close(pidfd)


def replace_killed(master: Master, name: str, pid: int) -> int:
    """Kill the daemon; return the pid of the one that the master starts in its place."""
    end_and_reap(pid)
    master.wait_line(rf"lowsuper: {name}: pid {pid} (was killed by SIGKILL \(9\)|ended) after")
    new = master.wait_started(name)
    assert new != pid
    return new


def go_through_all(
    masters: Masters, text: str, *, name: str, pidfile: Path | str, work: Callable[[], None]
) -> tuple[Master, int]:
    """Let a smart daemon live through everything that a master can do or suffer.

    Args:
        masters: they keep what survives until the test's end.
        text: the configuration.
        name: of the daemon.
        pidfile: its pidfile.
        work: has the daemon do what it is there for; fails if it does not.

    Returns:
        the last master, and the pid of the daemon that replaces the one that was killed.
    """
    master, pid = begin_smart(masters, text, name)
    assert read_pid(pidfile) == pid
    work()

    stop_without(master, name, pid)
    work()
    master = begin_adopting(masters, text, name, pid)
    work()

    reload_without(master, name, pid)
    work()

    master.kill()
    assert is_alive(pid)
    work()
    master = begin_adopting(masters, text, name, pid)
    work()

    new = replace_killed(master, name, pid)
    assert read_pid(pidfile) == new
    work()
    return master, new


@contextlib.contextmanager
def run_client(*words: str, **popen) -> Iterator[Callable[[object], None]]:
    """Start a client that takes a line for each thing to do; yield what gives it one.

    It is one process for the whole test, since that of an interpreted program takes its time.
    """
    with subprocess.Popen(words, stdin=subprocess.PIPE, text=True, **popen) as process:

        def give(line: object) -> None:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()

        yield give
        process.stdin.close()
        assert process.wait(DEADLINE) == 0, f"{words[0]} failed"
