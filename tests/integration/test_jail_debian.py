"""A jail whose root is a Debian system, made once for all tests by mmdebstrap or debootstrap."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from jails import find_first, read_mounts
from masters import find_program, need, needs_root

pytestmark = [needs_root, pytest.mark.usefixtures("own_mounts")]

PATIENCE = 300.0  # seconds for a slow mirror
TOOLS = "/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Return the directory of a Debian system; tests write to overlays of it only."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    need(bool(suite), "a Debian or Ubuntu with a code name")
    path = tmp_path_factory.mktemp("ns") / "001"
    if program := shutil.which("mmdebstrap", path=TOOLS):
        command = [program, "--quiet", "--mode=root", "--variant=essential", suite, path]
    else:
        program = shutil.which("debootstrap", path=TOOLS)
        need(program is not None, "mmdebstrap or debootstrap")
        command = [program, "--variant=minbase", suite, path]
    # What it mounts meanwhile is not to be seen by other tests.
    command = [find_program("unshare"), "--mount", *command]
    try:
        made = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"needs: a Debian mirror; {program} took more than {PATIENCE:.0f} s")
    if made.returncode:
        why = (made.stderr.strip().splitlines() or [f"status {made.returncode}"])[-1]
        pytest.skip(f"needs: a Debian mirror; {program} says: {why}")
    yield path
    shutil.rmtree(path)


def list_tree(path: Path) -> set[str]:
    """Return all names below a directory, with what would show that something was written."""
    found = set()
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))
            found.add(f"{directory}/{name} {status.st_ino} {status.st_mode} {status.st_mtime_ns}")
    return found


@pytest.mark.parametrize("overlay", ["true", "false"])
def test_debian_runs_in_a_jail_and_is_left_as_it_was(masters, tree, overlay):
    before, mounts = list_tree(tree), read_mounts()
    show = "cat /etc/debian_version; dpkg-query -W -f '${Package}=${Status}\\n' dpkg; echo over"
    master = masters.start(
        f"namespace = {tree}:testns\n"
        f"namespace-overlay = {overlay}\n"
        "namespace-keep-mount = /dev\n"
        f"exec-as-root = {show}\n"
        "exec-as-root = test $(cat /proc/1/comm) != systemd && hostname\n"
        "attach-daemon2 = cmd=sh -c 'id; echo $$; exec sleep 1000',uid=www-data\n"
    )
    assert read_mounts() == mounts
    master.wait_output("^over$")
    assert "dpkg=install ok installed" in master.lines
    assert "testns" in master.lines
    # Its users are those of its own files, whatever numbers they have outside.
    passwd = (tree / "etc" / "passwd").read_text()
    uid = re.search(r"^www-data:[^:]*:(\d+):", passwd, re.MULTILINE)[1]
    master.wait_output(rf"^uid={uid}\(www-data\) ")
    exe = os.readlink(f"/proc/{find_first(master)}/exe")
    assert "python" in exe  # of the host: in the jail there is neither Python nor lowsuper
    assert not list(tree.glob("usr/bin/python*"))
    assert master.stop() == 0
    assert read_mounts() == mounts
    # Only the times of the directories in which a mount point came and went may differ.
    left = {line.split()[0] for line in list_tree(tree) ^ before}
    assert left <= {str(tree)}


def test_debian_that_is_read_only_is_left_alone_to_the_byte(masters, tree):
    """Without an overlay nothing may be made: /proc and /dev are there already."""
    before = list_tree(tree)
    assert (tree / "proc").is_dir()
    master = masters.start(
        f"namespace = {tree}\nnamespace-keep-mount = ro:/usr/share:/usr/share\n"
        "attach-daemon = sleep 1000\n"
    )
    assert master.stop() == 0
    assert list_tree(tree) == before
