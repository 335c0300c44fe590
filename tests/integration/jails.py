"""Roots for jails, and masters that live in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

from masters import Master, children_of, need

from lowsuper.kernel import mount, native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MS_REC, MS_SHARED = 1 << 14, 1 << 20

BUSYBOX = "/bin/busybox"
TOOLS = ("sh", "cat", "echo", "hostname", "id", "kill", "ls", "sleep", "test", "touch", "true")


def make_root(path: Path) -> Path:
    """Make a root file system of busybox alone, which must be a static one."""
    need(os.path.exists(BUSYBOX), "busybox-static")
    for name in ("bin", "etc", "tmp"):
        (path / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin" / "busybox")
    for name in TOOLS:
        (path / "bin" / name).symlink_to("busybox")
    (path / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:1234:1235::/tmp:/bin/sh\n")
    (path / "etc" / "group").write_text("root:x:0:\nweb:x:1235:\nlogs:x:77:web\n")
    return path


def find_first(master: Master) -> int:
    """Return the pid, outside, of the first process of a master's jail."""
    (pid,) = [
        pid
        for pid in children_of(master.pid)
        if Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1]
        == "1"
    ]
    return pid


def read_mounts() -> bytes:
    """Return the mount table of this thread's namespace."""
    return Path("/proc/thread-self/mountinfo").read_bytes()


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """Have a mount namespace in which everything is shared, as systemd makes it, with nobody.

    What others mount meanwhile is not seen in it; it has to be at the end as it was.
    """
    with contextlib.ExitStack() as stack:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, here)
        host = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
        stack.callback(os.close, host)
        mount.unshare(mount.NEWNS)
        stack.callback(os.fchdir, here)  # setns(2) goes to the root directory
        stack.callback(mount.setns, host, mount.NEWNS)
        mount.make_private("/")
        result = native.lib.lowsuper_mount(b"none", b"/", b"", MS_REC | MS_SHARED, b"")
        assert result == 0, os.strerror(-result)
        before = read_mounts()
        yield
        assert read_mounts() == before


class Tampered(Master):
    """A master in which something was replaced before it began."""

    def __init__(self, script: str, *arguments: str, **keywords):
        script += "\nimport sys\nfrom lowsuper.cli import main\nsys.exit(main())\n"
        self.program = (sys.executable, "-c", script)
        super().__init__(*arguments, **keywords)
