"""Spawning in a test: plans in one line, waiting with a deadline, and nothing left running."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import struct
import subprocess
import warnings
from pathlib import Path

from lowsuper.kernel import process, spawn
from lowsuper.plan import EXEC, FdSource, SpawnPlan

DEADLINE_MS = 20_000
"""How long a test waits for anything; far more than it takes, since machines are busy."""

SOURCES = Path(__file__).parents[2] / "csrc"
PROGRAM_SOURCES = (
    *("main", "task", "child", "isolate", "channel", "logfile"),
    *("keeper", "nsinit", "shim", "guard", "logger", "stream"),
)
NULL = FdSource(0, path=b"/dev/null")


def make_plan(*argv: str, **fields) -> SpawnPlan:
    """Return a plan that runs `argv` with nothing but /dev/null and the test's stderr."""
    given = {
        "name": "web",
        "role": EXEC,
        "programs": (os.fsencode(argv[0]),),
        "argv": tuple(map(os.fsencode, argv)),
        "envp": (b"PATH=" + os.fsencode(os.defpath) + b":/usr/sbin:/sbin",),
        "fds": (NULL, FdSource(1, 2), FdSource(2, 2)),
    }
    return SpawnPlan(**(given | fields))


def has_happened(fd: int, events: int = select.POLLIN, timeout_ms: int = DEADLINE_MS) -> bool:
    """Wait for `events` on `fd`, or its hang-up."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(timeout_ms))


def wait_for(fd: int, events: int = select.POLLIN) -> None:
    """Wait for `events` on `fd`, or its hang-up, and fail at the deadline."""
    assert has_happened(fd, events), "nothing happened until the deadline"


def read_exactly(fd: int, count: int) -> bytes:
    """Read `count` bytes before the deadline."""
    data = b""
    while len(data) < count:
        wait_for(fd)
        piece = os.read(fd, count - len(data))
        assert piece, f"end of file after {data!r}"
        data += piece
    return data


def read_all(fd: int) -> bytes:
    """Read until the end of file, that is until all that hold the other end are gone."""
    data = b""
    while True:
        wait_for(fd)
        piece = os.read(fd, 4096)
        if not piece:
            return data
        data += piece


class Run:
    """One spawned child; a context manager that ends it by its pidfd and closes everything."""

    def __init__(self, spawner: spawn.Spawner, plan: SpawnPlan, **options) -> None:
        self.child = spawner.spawn(plan, **options)
        self.status: int | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_) -> None:
        if self.status is None:
            process.send_signal(self.child.pidfd, signal.SIGKILL)
            self.wait()
        for fd in (self.child.pidfd, self.child.error_fd, self.child.channel_fd):
            if fd >= 0:
                os.close(fd)

    def outcome(self):
        """Wait until it is known how the steps went."""
        wait_for(self.child.error_fd, 0)
        return spawn.read_outcome(self.child.error_fd)

    def wait(self) -> int:
        """Wait for the end of the child; return its raw wait status."""
        wait_for(self.child.pidfd)
        self.status = process.reap(self.child.pidfd)
        assert self.status is not None
        return self.status

    def receive(self):
        """Wait for the next message of the role."""
        wait_for(self.child.channel_fd)
        message = spawn.receive(self.child.channel_fd)
        assert message is not None
        return message


def in_child(act, *, uid: int | None = None, limits: dict[int, int] | None = None):
    """Call `act` in a forked process with another uid or resource limits; return what it returns.

    What it returns must have a repr that is a literal, or be one of the outcomes.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns about threads: a runner's, which the child does not need.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            for limit, value in (limits or {}).items():
                resource.setrlimit(limit, (value, value))
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            os.write(writer, repr(act()).encode())
        except BaseException as error:
            os.write(writer, repr(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    text = read_all(reader).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    names = {kind.__name__: kind for kind in (spawn.ExecOk, spawn.StepFailed, spawn.DiedBefore)}
    return eval(text, {"__builtins__": {}}, names)


def outcome_of(spawner: spawn.Spawner, plan: SpawnPlan, **options):
    """Spawn, and return how the steps went."""
    with Run(spawner, plan, **options) as run:
        return run.outcome()


def run_helper(
    plan: SpawnPlan,
    tmp_path: Path,
    *before: str,
    leader: bool = False,
    helper: str = spawn.HELPER,
    leaf_fd: int = -1,
):
    """Run the helper as a child of a program of its own, and return how the steps went.

    Args:
        plan: its role must be EXEC.
        tmp_path: where to put a link that gives the helper its name.
        before: a command to run it with, such as strace; looked up in PATH.
        leader: it is the leader of a process group.
        helper: which one.
        leaf_fd: cgroup directory that it is to enter, or -1.
    """
    link = tmp_path / "lowsuper-child"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(helper)
    reader, writer = os.pipe()
    memory = os.memfd_create("plan")
    master = os.pidfd_open(os.getpid())
    os.write(memory, struct.pack("4iq", writer, master, leaf_fd, -1, 0) + spawn.pack(plan))
    helper_process = subprocess.Popen(
        [*before, "lowsuper-child", str(memory)],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        executable=str(link) if not before else None,
        pass_fds=(writer, memory, master, *((leaf_fd,) if leaf_fd >= 0 else ())),
        process_group=0 if leader else None,
    )
    for fd in (writer, memory, master):
        os.close(fd)
    try:
        helper_process.wait(DEADLINE_MS / 1000)
        return spawn.read_outcome(reader)
    finally:
        os.close(reader)


def build_helper(directory: Path, *flags: str) -> str:
    """Compile the static program with other flags than the installed one; return its path."""
    path = directory / "lowsuper-helper"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a test that needs a compiler was not skipped"
    files = [str(SOURCES / f"{name}.c") for name in PROGRAM_SOURCES]
    command = [compiler, "-std=gnu11", *flags, "-o", str(path), *files]
    subprocess.run(command, check=True, timeout=300)
    path.chmod(0o755)
    return str(path)
