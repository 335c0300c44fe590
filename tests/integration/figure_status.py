"""How long `lowsuper status` takes with many daemons, against a Python that does nothing.

Run it with the interpreter that lowsuper is installed for; it prints the figure. What it measures
is the client: this process answers as a master does.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fake_master import FakeMaster, daemon, exit_of

COUNT = 1000


def fill(master: FakeMaster, pid: int, count: int = COUNT) -> bytes:
    """Give the master many daemons that say as much as real ones; return the answer to `status`."""
    import json

    for number in range(count):
        last = exit_of(3) if number % 3 == 0 else None
        name = f"daemon-{number:04}"
        leaf = f"/sys/fs/cgroup/lowsuper-fake-01234567/dumb/{name}.1"
        master.add(daemon(name, pid=pid, exit=last, restarts=number % 7, leaf=leaf))
    answer = {"schema": 1, "ok": True, **master.do_status({})}
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def measure(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def compare(commands: list[list[str]], env: dict[str, str], rounds: int = 15) -> list[float]:
    """Return the median time of each command in seconds; they take turns."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(rounds + 1):  # the first one fills the caches, of compiled modules too
        for command, found in zip(commands, times, strict=True):
            found.append(measure(command, env))
    return [statistics.median(found[1:]) for found in times]


def measure_status(directory: Path, program: list[str], rounds: int = 15) -> tuple[float, float]:
    """Return how long nothing and `status` take, in seconds."""
    env = dict(os.environ)
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env |= {"LOWSUPER_RUNTIME_DIR": str(directory), "PYTHONPYCACHEPREFIX": str(directory / "pyc")}
    master = FakeMaster(directory)
    try:
        line = fill(master, os.getpid())
        master.answers["status"] = lambda _request: line
        nothing, status = compare(
            [[sys.executable, "-c", "pass"], [*program, "status"]], env, rounds
        )
    finally:
        master.close()
    return nothing, status


def main() -> None:
    program = Path(sys.executable).with_name("lowsuper")
    with tempfile.TemporaryDirectory(prefix="lowsuper-figure-") as directory:
        nothing, status = measure_status(Path(directory), [str(program)])
    sys.stdout.write(
        f"python3 -c pass: {nothing * 1000:.1f} ms; lowsuper status with {COUNT} daemons: "
        f"{status * 1000:.1f} ms, {status / nothing:.2f} times as long\n"
    )


if __name__ == "__main__":
    main()
