"""Roots for jails, and masters that live in them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from masters import Master, children_of, need

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
    """Return the mount table of this process's namespace."""
    return Path("/proc/self/mountinfo").read_bytes()


class Tampered(Master):
    """A master in which something was replaced before it began."""

    def __init__(self, script: str, *arguments: str, **keywords):
        script += "\nimport sys\nfrom lowsuper.cli import main\nsys.exit(main())\n"
        self.program = (sys.executable, "-c", script)
        super().__init__(*arguments, **keywords)
