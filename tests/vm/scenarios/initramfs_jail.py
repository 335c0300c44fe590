"""A jail on an initramfs, which no pivot_root leaves: its root is covered instead."""

import os
import shutil
from pathlib import Path

import inside

ROOT = "/srv/jail"
SCRIPT = f"""\
namespace = {ROOT}:cell
namespace-keep-mount = /dev/null
attach-daemon = /bin/sh -c 'ls / > /seen; hostname > /host; cat /proc/mounts > /mounts; sleep 3600'
"""


def read_mounts() -> str:
    """Return the mounts of the machine, as the kernel tells them."""
    with open("/proc/self/mountinfo") as file:
        return file.read()


for name in ("bin", "proc", "dev"):
    os.makedirs(f"{ROOT}/{name}")
shutil.copy(shutil.which("busybox"), f"{ROOT}/bin/busybox")
for name in ("sh", "ls", "hostname", "cat", "sleep"):
    os.symlink("busybox", f"{ROOT}/bin/{name}")

before = read_mounts()
master = inside.Master(SCRIPT)
master.wait_line("kill domain")
seen = Path(f"{ROOT}/mounts")
inside.wait_until(lambda: seen.exists() and seen.read_text(), "what the daemon sees")
during = read_mounts()
code = master.stop()
inside.tell(
    root=next(line.split()[8] for line in before.splitlines() if line.split()[4] == "/"),
    same=before == during == read_mounts(),
    seen=Path(f"{ROOT}/seen").read_text().split(),
    host=Path(f"{ROOT}/host").read_text().strip(),
    points=[line.split()[1] for line in Path(f"{ROOT}/mounts").read_text().splitlines()],
    code=code,
)
