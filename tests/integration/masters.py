"""Running real masters in a test: their lines with a deadline, their end by pidfd, nothing left.

Every process below a master, whatever it does to hide, carries the master's mark in its
environment, so `Master.family` finds the daemons without help of the program that is tested.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest

DEADLINE = 20.0
"""Seconds that a test waits for anything; far more than it takes, since machines are busy."""

ROOT = Path(__file__).resolve().parents[2]
DAEMONS = ROOT / "tests" / "daemons"
MARK = "TEST_MASTER_MARK"
RUNTIME = "LOWSUPER_RUNTIME_DIR"
NOBODY = 65534

IS_ROOT = os.geteuid() == 0
TIER = os.environ.get("LOWSUPER_TIER", "")


def need(condition: bool, what: str) -> None:
    """Skip the test when something is missing; the tier that promises it fails instead."""
    if condition:
        return
    if TIER == "root":
        pytest.fail(f"needs: {what}")
    pytest.skip(f"needs: {what}")


needs_root = pytest.mark.skipif(not IS_ROOT and TIER != "root", reason="needs: root")


class Master:
    """One `lowsuper` process and everything that it writes."""

    program: tuple[str, ...] = (sys.executable, "-m", "lowsuper")

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        wrap_output: bool = True,
        **popen,
    ):
        self.mark = uuid.uuid4().hex
        if wrap_output:
            popen |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(
            [*prefix, *self.program, *arguments],
            cwd=cwd,
            env={RUNTIME: f"{cwd}/.run", **os.environ, MARK: self.mark, **(env or {})},
            stdin=popen.pop("stdin", subprocess.DEVNULL),
            start_new_session=True,
            **popen,
        )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._out = self._process.stdout
        if self._out is not None:
            os.set_blocking(self._out.fileno(), False)
        self._partial = b""
        self.lines: list[str] = []
        self._seen = {True: 0, False: 0}

    # What it says.

    def _read(self, timeout: float) -> bool:
        """Take what there is within `timeout` seconds; False at the end of the output."""
        if self._out is None:
            return False
        ready, _, _ = select.select([self._out], [], [], max(0.0, timeout))
        if not ready:
            return True
        data = os.read(self._out.fileno(), 65536)
        if not data:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        self.lines += [line.decode("utf-8", "replace") for line in lines]
        return True

    def wait_line(self, pattern: str, timeout: float = DEADLINE) -> re.Match[str]:
        """Return the match of its next line that has `pattern`; lines before it are consumed."""
        return self._wait(pattern, True, timeout)

    def wait_output(self, pattern: str, timeout: float = DEADLINE) -> re.Match[str]:
        """The same for the lines of its daemons and hooks, whose order among its own is open."""
        return self._wait(pattern, False, timeout)

    def _wait(self, pattern: str, own: bool, timeout: float) -> re.Match[str]:
        end = time.monotonic() + timeout
        while True:
            while self._seen[own] < len(self.lines):
                line = self.lines[self._seen[own]]
                self._seen[own] += 1
                if own == ("lowsuper: " in line) and (match := re.search(pattern, line)):
                    return match
            if time.monotonic() >= end or not self._read(end - time.monotonic()):
                raise AssertionError(f"no line with {pattern!r} in:\n{self.text}")

    def wait_lines(self, *patterns: str) -> list[re.Match[str]]:
        """Return a match for each pattern, in whichever order the lines come."""
        first = last = self._seen[True]
        found = []
        for pattern in patterns:
            self._seen[True] = first
            found.append(self.wait_line(pattern))
            last = max(last, self._seen[True])
        self._seen[True] = last
        return found

    def has_said(self, pattern: str) -> bool:
        """Return whether a line with `pattern` was written, of all that came so far."""
        self.drain()
        return any(re.search(pattern, line) for line in self.lines)

    def drain(self) -> None:
        """Take everything that is in the pipe now."""
        before = -1
        while len(self.lines) + len(self._partial) != before:
            before = len(self.lines) + len(self._partial)
            if not self._read(0.0):
                return

    def expect_silence(self, pattern: str) -> None:
        """Assert that no line with `pattern` was written."""
        assert not self.has_said(pattern), self.text

    @property
    def text(self) -> str:
        return "\n".join([*self.lines, self._partial.decode("utf-8", "replace")])

    def wait_started(self, name: str) -> int:
        """Return the pid of the daemon's next start."""
        return int(self.wait_line(rf"lowsuper: {re.escape(name)}: started, pid (\d+),")[1])

    def wait_found(self, name: str) -> int:
        """Return the pid of the smart daemon that it finds running next."""
        return int(
            self.wait_line(rf"lowsuper: {re.escape(name)}: found running for .*?, pid (\d+),")[1]
        )

    def wait_moved(self, name: str) -> int:
        """Return the pid of the process that takes the place of the daemon's next."""
        return int(
            self.wait_line(rf"lowsuper: {re.escape(name)}: is pid (\d+) now, no longer \d+:")[1]
        )

    def wait_ready(self) -> Master:
        self.wait_line(r"lowsuper: ready: ")
        return self

    def pid_of(self, name: str) -> int:
        """Return the pid that its last line about the daemon's start or whereabouts gave."""
        self.drain()
        found = re.findall(
            rf"lowsuper: {re.escape(name)}: (?:started, pid|found running for .*?, pid|is pid)"
            r" (\d+)\b",
            self.text,
        )
        assert found, self.text
        return int(found[-1])

    # What it is and has.

    def family(self) -> set[int]:
        """Return the pids of all live processes that descend from it, by their mark."""
        return find_marked(self.mark) - {self.pid}

    def wait_family_gone(self, timeout: float = DEADLINE) -> None:
        """Wait until no process that descends from it is left."""
        end = time.monotonic() + timeout
        while pids := self.family():
            assert time.monotonic() < end, f"left over: {describe(pids)}\n{self.text}"
            for pid in pids:
                wait_gone(pid, max(0.1, end - time.monotonic()))

    def guard(self) -> int:
        """Return the pid of its guard."""
        (pid,) = [pid for pid in children_of(self.pid) if name_of(pid) == "lowsuper-guard"]
        return pid

    # What is done to it.

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Return the exit status once it has ended, as `subprocess` gives it."""
        end = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if self._out is not None:
            poll.register(self._out, select.POLLIN)
        while True:
            # Its pipe must not fill up meanwhile.
            fds = {fd for fd, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000)}
            if self.pidfd in fds:
                break
            if not fds:
                raise AssertionError(f"the master did not end:\n{self.text}")
            if not self._read(0.0):
                poll.unregister(self._out)
        code = self._process.wait()
        self.drain()
        return code

    def stop(self, timeout: float = DEADLINE) -> int:
        """Stop it with SIGTERM and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Kill it as nothing can be kept from, and reap it."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def kill_if_alive(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.kill()

    def wait_end_of_output(self, timeout: float = DEADLINE) -> None:
        """Wait until nobody holds its standard output any more."""
        end = time.monotonic() + timeout
        while self._read(end - time.monotonic()):
            assert time.monotonic() < end, "somebody holds the output"

    def close(self) -> None:
        """End it if it still runs; its daemons die with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self._process.wait()
        if self._out is not None:
            self._out.close()
        os.close(self.pidfd)


class Masters:
    """Starts masters for one test and sees to it that nothing of them stays."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._masters: list[Master] = []
        self._before = set(children_of(os.getpid()))
        self._instances: set[Path] = set()
        self._survive = False
        self._last_wishes: list[Callable[[], None]] = []
        self.checks_leftovers = True
        self.patience = 10.0  # seconds that what is left at the end may take to go

    def allow_survivors(self, last_wish: Callable[[], None] | None = None) -> None:
        """Let daemons outlive their masters until the end of the test, where they are killed.

        The records of them are kept in the test's directory. What must die with its master, or
        at least what had a cgroup for that, is still looked for. `last_wish` is called when no
        master is left that could start anything again.
        """
        assert not self._instances, "too late: a configuration without state-dir was written"
        self._survive = True
        if last_wish is not None:
            self._last_wishes.append(last_wish)

    def write(self, text: str, name: str = "test.ini") -> Path:
        """Write a configuration: what follows the first line `[uwsgi]`, or a whole file."""
        path = self.directory / name
        text = text.replace("{D}", str(DAEMONS)).replace("{T}", str(self.directory))
        if not text.lstrip().startswith("["):
            text = "[uwsgi]\n" + text
        if self._survive:
            text += f"\n[uwsgi]\nstate-dir = {self.directory}/state\n"
        # Whole or not at all: a master that watches it must not see half of it.
        partial = path.with_name(f".{name}.part")
        partial.write_text(text)
        partial.rename(path)
        instance = path.name.removesuffix(".ini")
        if match := re.search(r"^instance *= *(\S+)", text, re.MULTILINE):
            instance = match[1]
        self._instances.add(path)
        if (base := own_cgroup()) is not None:
            digest = crc32(os.fsencode(path))
            self._instances.add(base / f"lowsuper-{instance}-{digest:08x}")
        return path

    def launch(self, *arguments: str, **keywords) -> Master:
        """Start a master with these arguments, and do not wait for anything."""
        keywords.setdefault("cwd", self.directory)
        env = keywords.get("env") or {}
        keywords["env"] = {RUNTIME: f"{self.directory}/.run", **env}
        return self.adopt(Master(*arguments, **keywords))

    def adopt(self, master: Master) -> Master:
        """See to the end of a master that the test has started itself."""
        self._masters.append(master)
        return master

    def clear(self, master: Master) -> None:
        """Kill what a master of somebody else's has left behind."""
        kill_all(master.family())
        self.wait_orphans()

    def start(self, text: str, *arguments: str, name: str = "test.ini", **keywords) -> Master:
        """Start a master with this configuration and wait until it is ready."""
        return self.begin(text, *arguments, name=name, **keywords).wait_ready()

    def begin(self, text: str, *arguments: str, name: str = "test.ini", **keywords) -> Master:
        """Start a master with this configuration, and do not wait for anything."""
        path = self.write(text, name)
        return self.launch(str(path), *arguments, **keywords)

    def cgroups(self) -> list[Path]:
        """Return the cgroup directories of the instances that exist now."""
        return [path for path in self._instances if path.is_dir()]

    def end(self) -> None:
        """Kill every master and wait until nothing of them is left, but for allowed survivors."""
        for master in self._masters:
            master.kill_if_alive()
        if self._survive:
            return
        for master in self._masters:
            master.wait_family_gone()
        self.wait_orphans()

    def wait_orphans(self) -> None:
        """Wait for the end of what masters that have ended left to us, such as their guards."""
        known = {master.pid for master in self._masters}
        assert not wait_children(self._before | known)

    def survivors(self) -> set[int]:
        """Return the pids of what runs of masters that have ended.

        Some programs overwrite their environment, and with it the mark; then the cgroup tells,
        or that they are orphans, who come to us.
        """
        found = {pid for pid in children_of(os.getpid()) if is_alive(pid)} - self._before
        found -= {master.pid for master in self._masters}
        for master in self._masters:
            found |= master.family()
        return found.union(*map(members_of, self.cgroups()))

    def _end_survivors(self) -> list[str]:
        """Kill what was allowed to live on; return what is wrong, in words."""
        problems = []
        for wish in self._last_wishes:
            try:
                wish()
            except AssertionError as error:
                problems.append(str(error))
        dumb = set().union(*(members_of(path / "dumb") for path in self.cgroups()))
        for pid in dumb:
            try:
                wait_gone(pid, self.patience)
            except AssertionError as error:
                problems.append(f"outlives its master: {error}")
        end = time.monotonic() + self.patience
        while pids := self.survivors():
            kill_all(pids)
            if time.monotonic() >= end:
                problems.append(f"does not die: {describe(pids)}")
                break
        return problems

    def close(self) -> None:
        """End everything; raises AssertionError if something outlives its master unbidden."""
        for master in self._masters:
            master.close()
        problems = self._end_survivors() if self._survive else []
        for master in self._masters:
            try:
                master.wait_family_gone(self.patience)
            except AssertionError as error:
                problems.append(str(error))
                kill_all(master.family())
        problems += wait_children(self._before, self.patience)
        if self._survive:
            for path in self.cgroups():
                remove_cgroup(path, self.patience)
        if self.checks_leftovers:
            problems += [f"cgroup {path} is left" for path in self.cgroups()]
        for path in self.cgroups():
            remove_cgroup(path)
        assert not problems, "\n".join(problems)


# Processes.


def wait_gone(pid: int, timeout: float = DEADLINE) -> None:
    """Wait until no live process has this pid; a zombie counts as gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(timeout * 1000), f"process {pid} is still there: {describe([pid])}"
    finally:
        os.close(pidfd)


def is_alive(pid: int) -> bool:
    """Return whether a process with this pid runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def find_marked(mark: str) -> set[int]:
    """Return the pids of the live processes that have the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    return {
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and wanted in read_environ(entry) and is_alive(int(entry))
    }


def read_environ(pid: str) -> bytes:
    """Return the environment of a process; empty if it has ended or is not ours to see."""
    for _ in range(20):
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            if environ or os.readlink(f"/proc/{pid}/exe").endswith("/lowsuper-helper"):
                return environ
        except OSError:  # also a kernel thread, which has no exe
            return b""
        # In the middle of an execve it has none for a moment.
        select.select([], [], [], 0.001)
    return b""


def children_of(pid: int) -> list[int]:
    """Return the children of a process, zombies among them."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{pid}/task/{task}/children").read_text()
                found += map(int, text.split())
    return found


def wait_children(before: set[int], timeout: float = 10.0) -> list[str]:
    """Wait for the end of orphans that became our children; return what is wrong, in words."""
    end = time.monotonic() + timeout
    problems = []
    while pids := set(children_of(os.getpid())) - before:
        for pid in pids:
            try:
                wait_gone(pid, max(0.0, end - time.monotonic()))
            except AssertionError as error:
                problems.append(str(error))
                kill_all([pid])
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return problems


def kill_all(pids) -> None:
    """Kill processes, each through a pidfd, and wait for their end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
            wait_gone(pid)


def send(pid: int, number: int) -> None:
    """Send a signal through a pidfd."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def describe(pids) -> str:
    """Return what these processes are, for a message."""
    words = []
    for pid in sorted(pids):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            line = "?"
        words.append(f"{pid} ({name_of(pid)}: {line.strip()})")
    return ", ".join(words)


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/PID/status as a dictionary."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# Files.


def wait_file(path: Path, timeout: float = DEADLINE, *, gone: bool = False) -> Path:
    """Wait until a file exists (or does not) by inotify on its directory."""
    from lowsuper.kernel import native

    fd = native.inotify_create()
    try:
        native.inotify_add(fd, str(path.parent), 0x80 | 0x100 | 0x200 | 0x40)
        end = time.monotonic() + timeout
        while os.path.lexists(path) is gone:
            ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{path} is {'still' if gone else 'not'} there"
            os.read(fd, 65536)
    finally:
        os.close(fd)
    return path


def wait_match(directory: Path, pattern: str, timeout: float = DEADLINE) -> Path:
    """Wait by inotify until one file in a directory matches `pattern`; return it."""
    from lowsuper.kernel import native

    fd = native.inotify_create()
    try:
        native.inotify_add(fd, str(directory), 0x80 | 0x100)
        end = time.monotonic() + timeout
        while not (found := list(directory.glob(pattern))):
            ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"nothing in {directory} matches {pattern}"
            os.read(fd, 65536)
    finally:
        os.close(fd)
    assert len(found) == 1
    return found[0]


def wait_text(path: Path, pattern: str, timeout: float = DEADLINE) -> re.Match[str]:
    """Wait until a file holds `pattern`, by inotify; return the match."""
    from lowsuper.kernel import native

    fd = native.inotify_create()
    try:
        native.inotify_add(fd, str(path.parent), 0x2 | 0x8 | 0x80 | 0x100)
        end = time.monotonic() + timeout
        while True:
            text = path.read_text(errors="replace") if path.exists() else ""
            if match := re.search(pattern, text, re.MULTILINE):
                return match
            ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {path}:\n{text}"
            os.read(fd, 65536)
    finally:
        os.close(fd)


def put_file(path: Path, text: str) -> None:
    """Make a file, or replace it, in one step: one change for whoever watches it."""
    new = Path(f"{path}.put")
    with new.open("w") as file:
        file.write(text)
    new.rename(path)


def grow_file(path: Path, text: str) -> None:
    """Write to a file that exists in one step, without making it empty first."""
    with path.open("r+") as file:
        file.write(text)


def shown(path: Path) -> dict:
    """Return what the daemon `show.py` has written about itself."""
    return json.loads(wait_file(path).read_text())


def quote(*words: object) -> str:
    return shlex.join(map(str, words))


def find_program(name: str) -> str:
    """Return the path of a program that the tests cannot do without."""
    path = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    assert path, f"{name} is not installed; vagrant/provision.sh installs it"
    return path


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Cgroups.


def own_cgroup() -> Path | None:
    """Return the directory of our cgroup v2, or None where there is none to write to."""
    mount = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            mount = Path(left.split()[4])
            break
    if mount is None:
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            path = mount / line[3:].strip("/")
            return path if path.is_dir() and os.access(path, os.W_OK) else None
    return None


def members_of(path: Path) -> set[int]:
    """Return the pids of the processes in a cgroup and all those below it."""
    found: set[int] = set()
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            found |= set(map(int, Path(directory, "cgroup.procs").read_text().split()))
    return found


def remove_cgroup(path: Path, timeout: float = 0.0) -> None:
    """Remove what is left of an instance's cgroups; wait for what dies there at this moment."""
    end = time.monotonic() + timeout
    while True:
        for directory, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if not path.is_dir() or time.monotonic() >= end:
            return
        select.select([], [], [], 0.01)


def has_cgroups() -> bool:
    """Return whether daemons can have cgroups of their own here."""
    if (base := own_cgroup()) is None:
        return False
    probe = base / f"test-probe-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError:
        return False
    try:
        return (probe / "cgroup.kill").exists()
    finally:
        probe.rmdir()


RUNGS = {"pidns": "ns_pid=true", "cgroup": "", "shim": ""}
"""What a daemon needs in its keyval line for each rung; `rung_options` is for the instance."""


def rung_options(rung: str) -> str:
    """Return the line of the instance that forces a rung; skips where it cannot be had."""
    if rung == "pidns":
        need(IS_ROOT, "root")
    elif rung == "cgroup":
        need(has_cgroups(), "cgroup v2 that can be written")
    return "" if rung == "pidns" else f"kill-domain = {rung}\n"


def daemon_line(rung: str, command: str, **keys: object) -> str:
    """Return an attach-daemon2 line for a daemon on this rung."""
    words = [f"cmd={command}", *(f"{key}={value}" for key, value in keys.items())]
    if RUNGS[rung]:
        words.append(RUNGS[rung])
    return f"attach-daemon2 = {','.join(words)}\n"
