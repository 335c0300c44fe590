"""What the tests of files in hostile directories share: a deadline, and somebody to fight with."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import tempfile
import warnings
from pathlib import Path

import pytest

from lowsuper.kernel import native

NOBODY = 65534
IN_OPEN = 0x20
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs: root")


@contextlib.contextmanager
def deadline(seconds: float):
    """Fail, rather than hang, where a call blocks."""

    def expire(_signo, _frame):
        raise AssertionError(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def other(act, *, uid: int | None = None, wait: bool = True):
    """Run `act(ready)` in a process that is killed at the end; yields its pid.

    With `wait` it must call `ready` before this goes on.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns about threads: a runner's, which the child does not need.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            act(lambda: os.write(writer, b"x"))
            os.write(writer, b".")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        if wait:
            assert os.read(reader, 1) == b"x", "the other process failed"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


@contextlib.contextmanager
def opens(path: Path):
    """Yield a function that tells whether somebody has opened a file; O_PATH does not count."""
    fd = native.inotify_create()
    try:
        native.inotify_add(fd, str(path), IN_OPEN)

        def was_opened() -> bool:
            with contextlib.suppress(BlockingIOError):
                return bool(os.read(fd, 4096))
            return False

        yield was_opened
    finally:
        os.close(fd)


@contextlib.contextmanager
def roots_directory():
    """Yield a directory that only root can say anything about, whatever the temporary one is."""
    path = Path(tempfile.mkdtemp(prefix="lowsuper-test-", dir=find_root_only()))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount something; for a process that has left the mounts of the others."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, data.encode()):
        raise OSError(ctypes.get_errno(), "mount", str(target))


def leave_mounts() -> None:
    """Get mounts of one's own: what is mounted from now on ends with this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)


def find_root_only() -> str:
    """Return a directory of which only root can write the entries; /run is not one everywhere."""
    for place in ("/run", "/var/lib", "/"):
        status = Path(place).stat()
        if status.st_uid == 0 and not status.st_mode & 0o022:
            return place
    raise AssertionError("anybody can write everywhere")
