"""How long a jail takes to start, against the same without one, and against other programs.

Run it as root with the interpreter that lowsuper is installed for, and perhaps a number of rounds:

    .venv/bin/python tests/integration/figure_jail.py 40

It prints medians in milliseconds, from the start of a program to the first output of what that
starts in the jail: `echo` of a static busybox. All programs take turns in each round. Those that
are not installed, or do not work here, are named with the reason. The packages are busybox-static,
util-linux, bubblewrap and systemd-container.
"""

from __future__ import annotations

import os
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jails import make_root

WORD = b"begun"
LIMIT = 20.0  # seconds for one start
JAIL, PLAIN = "lowsuper, jailed", "lowsuper, no jail"
SCRIPT = 'mount -t proc proc "$1/proc" && exec chroot "$1" /bin/busybox echo begun'


def list_commands(directory: Path, root: Path) -> dict[str, list[str]]:
    """Write the configurations; return the command of each way."""
    inside = ["/bin/busybox", "echo", WORD.decode()]
    daemon = f"attach-control-daemon = {' '.join(inside)}\n"
    lowsuper = [sys.executable, "-m", "lowsuper"]
    if os.access(Path(sys.executable).with_name("lowsuper"), os.X_OK):
        lowsuper = [str(Path(sys.executable).with_name("lowsuper"))]
    plain, jailed = directory / "plain.ini", directory / "jailed.ini"
    plain.write_text(f"[uwsgi]\n{daemon}")
    jailed.write_text(f"[uwsgi]\nnamespace = {root}:testns\n{daemon}")
    namespaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--propagation=private"]
    own = ["--unshare-pid", "--unshare-uts", "--unshare-ipc", "--hostname", "testns"]
    nspawn = ["--quiet", "--register=no", "--keep-unit", "--as-pid2", "--pipe", "-D", str(root)]
    return {
        "python -I -S -c pass": [sys.executable, "-I", "-S", "-c", f"print({WORD.decode()!r})"],
        PLAIN: [*lowsuper, str(plain)],
        JAIL: [*lowsuper, str(jailed)],
        "unshare and chroot": ["unshare", *namespaces, "sh", "-c", SCRIPT, "sh", str(root)],
        "bwrap": ["bwrap", "--bind", str(root), "/", "--proc", "/proc", *own, *inside],
        "systemd-nspawn": ["systemd-nspawn", *nspawn, *inside],
    }


def measure(command: list[str], env: dict[str, str]) -> float:
    """Return the milliseconds until the word comes; the command has ended then, too.

    Raises:
        OSError: it cannot be started, or fails; the text says why.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while WORD not in text.split(b"\n"):
                if not selector.select(LIMIT):
                    process.kill()
                    raise OSError(f"nothing within {LIMIT:.0f} s")
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    break
                text += piece.replace(b"\r", b"")
        took = (time.perf_counter() - began) * 1000
        process.communicate()
    if process.returncode or WORD not in text.split(b"\n"):
        lines = text.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"status {process.returncode}")
    return took


def compare(
    commands: dict[str, list[str]], rounds: int, directory: Path
) -> tuple[dict[str, list[float]], list[str]]:
    """Return the times of each command, and what is wrong with the others; they take turns."""
    env = {**os.environ, "LOWSUPER_RUNTIME_DIR": str(directory / "run")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    times: dict[str, list[float]] = {}
    problems = []
    for name, command in commands.items():
        try:
            measure(command, env)  # this fills the caches, of compiled modules too
        except OSError as error:
            problems.append(f"{name}: {error}")
        else:
            times[name] = []
    for _ in range(rounds):
        for name, found in times.items():
            found.append(measure(commands[name], env))
    return times, problems


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(rounds: int) -> None:
    """Measure and print."""
    directory = Path(tempfile.mkdtemp(prefix="lowsuper-figure-"))
    try:
        root = make_root(directory / "root")
        for name in ("dev", "proc", "usr"):  # what the others want
            (root / name).mkdir()
        (root / "etc" / "os-release").touch()
        times, problems = compare(list_commands(directory, root), rounds, directory)
    finally:
        shutil.rmtree(directory)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    say(f"{rounds} rounds on {os.cpu_count()} processors, load {load}; in ms:")
    say(f"{'':22}{'median':>8}{'least':>8}")
    for name, found in times.items():
        say(f"{name:22}{statistics.median(found):8.1f}{min(found):8.1f}")
    if {JAIL, PLAIN} <= set(times):
        more = [jailed - plain for jailed, plain in zip(times[JAIL], times[PLAIN], strict=True)]
        medians = statistics.median(times[JAIL]) - statistics.median(times[PLAIN])
        say(f"the jail costs {medians:.1f}, by the pairs {statistics.median(more):.1f}")
    for problem in problems:
        say(f"not measured: {problem}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
