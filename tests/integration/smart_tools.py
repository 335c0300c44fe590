"""What tests of smart daemons share: who runs, what the masters say of it, innocent bystanders."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from masters import DAEMONS, DEADLINE, Master, describe, is_alive, wait_text


def find_python() -> str:
    """Return an interpreter that every user can run, and that is no script which starts others."""
    own = Path(sys.executable).resolve()
    is_open = all(place.stat().st_mode & stat.S_IXOTH for place in (own, *own.parents))
    return str(own) if is_open else find_program_of_all("python3")


def find_program_of_all(name: str) -> str:
    path = shutil.which(name, path="/usr/bin:/bin:/usr/local/bin")
    assert path, f"{name} is not installed where every user can run it"
    return path


PYTHON = f"{find_python()} -I -S"
SOLE = f"{PYTHON} {Path(__file__).with_name('sole.py')}"
SELFD = f"{PYTHON} {DAEMONS}/selfd.py"
SAY_SIGNALS = f"{PYTHON} {DAEMONS}/say_signals.py"
BRIEFLY = 0.02
"""Seconds after which a state is looked at again of which nobody tells."""


class Smart:
    """A smart daemon of a test, by what it cannot lose: a word of its command line."""

    def __init__(self, name: str, pidfile: Path, mark: str):
        self.name, self.pidfile, self.mark = name, pidfile, mark

    def running(self) -> set[int]:
        """Return the pids of all instances, those that are about to go to the background too."""
        return find_running(self.mark)

    def named(self) -> int:
        """Return the number in the pidfile; 0 if there is none."""
        return read_number(self.pidfile)


def find_running(word: str) -> set[int]:
    """Return the live processes that have this word in their command line."""
    wanted = word.encode()
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in words and is_alive(int(entry)):
                found.add(int(entry))
    return found


def read_number(path: Path) -> int:
    """Return the number on the first line of a file; 0 if there is none to be had."""
    try:
        text = path.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def ask_states(master: Master, names) -> dict[str, str]:
    """Return what a master that is ready says of these daemons when it is asked (SIGUSR1)."""
    master.signal(signal.SIGUSR1)
    found = master.wait_lines(*(rf"lowsuper: ({name}): {STATE}" for name in names))
    return {match[1]: match[2] for match in found}


STATE = (
    r"(down|another master governs its pidfile|looking whether it runs|start failed"
    r"|(?:waiting for its pidfile|starting|stopping|waiting|up), [^;]*|starting for [^;]*)(?:;|$)"
)


def pid_up(state: str) -> int:
    """Return the pid of a daemon that is up; 0: it is not."""
    match = re.match(r"up, pid (\d+),", state)
    return int(match[1]) if match else 0


def fds_of(pid: int) -> int:
    """Return how many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_of(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bystander:
    """An innocent process that writes down each signal it gets, and must get none."""

    def __init__(self, directory: Path, name: str, *, uid: int | None = None):
        self.name, self.record = name, directory / f"{name}.signals"
        with self.record.open("wb") as file:
            self._process = subprocess.Popen(
                SAY_SIGNALS.split(),
                stdout=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **({} if uid is None else {"user": uid, "group": uid, "extra_groups": []}),
            )
        self.pid = self._process.pid
        wait_text(self.record, "settled")

    def problems(self) -> list[str]:
        """Return what has happened to it, in words."""
        found = [line for line in self.record.read_text().splitlines() if line.startswith("got")]
        if self._process.poll() is not None:
            found.append(f"it ended with {self._process.returncode}")
        return [f"bystander {self.name} ({self.pid}): {line}" for line in found]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Bystanders:
    """All of a test; made by the fixture `bystanders`."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.all: list[Bystander] = []

    def add(self, name: str, *, uid: int | None = None) -> Bystander:
        one = Bystander(self.directory, name, uid=uid)
        self.all.append(one)
        return one

    def problems(self) -> list[str]:
        return [problem for one in self.all for problem in one.problems()]

    def close(self) -> None:
        problems = self.problems()
        for one in self.all:
            one.close()
        assert not problems, "\n".join(problems)


def wait_until(check, what: str, timeout: float = DEADLINE, master: Master | None = None):
    """Return what `check` returns once it is true; look again at each line of `master`."""
    end = time.monotonic() + timeout
    while not (result := check()):
        text = "" if master is None else f"\n{master.text}"
        assert time.monotonic() < end, f"{what}{text}"
        if master is None or not master._read(BRIEFLY):
            select.select([], [], [], BRIEFLY)
    return result


def show(pids) -> str:
    return describe(pids) or "nobody"
