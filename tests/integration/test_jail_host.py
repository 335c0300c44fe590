"""What jails leave on a host: on one on which every mount spreads, and after very many of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from jails import Tampered, find_first, make_root
from masters import children_of, find_program, needs_root, wait_gone

pytestmark = needs_root

ROUNDS = 200
KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


class Host:
    """A mount namespace in which everything is shared, as systemd makes it."""

    def __init__(self):
        self._keeper = subprocess.Popen(
            [find_program("unshare"), "--mount", "--propagation=shared", "sh", "-c", "echo; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout.read(1) == b"\n"
        self.pid = self._keeper.pid
        place = f"/proc/{self.pid}"
        self.prefix = (find_program("nsenter"), f"--mount={place}/ns/mnt")
        self._table = Path(place, "mountinfo")
        assert b" shared:" in self.read()

    def read(self) -> bytes:
        """Return the mount table."""
        return self._table.read_bytes()

    def close(self) -> None:
        self._keeper.communicate()


@pytest.fixture
def host():
    found = Host()
    yield found
    found.close()


@pytest.fixture
def root(tmp_path):
    """Return a root file system with blanks and letters of many scripts in its path."""
    return make_root(tmp_path / "the röot of 根 и  it")


def jail(root, *lines):
    keeps = ("namespace-keep-mount = /dev", "namespace-keep-mount = ro:/etc:/host etc/ü")
    return "\n".join([f"namespace = {root}:testns", *keeps, "attach-daemon = sleep 1000", *lines])


@pytest.mark.parametrize("overlay", ["true", "false"])
def test_mount_table_of_the_host_stays_to_the_byte(masters, host, root, overlay):
    before = host.read()
    text = jail(root, f"namespace-overlay = {overlay}", "exec-as-root = ls '/host etc/ü'")
    master = masters.start(text, prefix=host.prefix)
    assert os.readlink(f"/proc/{master.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert host.read() == before
    assert "passwd" in master.lines
    master.signal(signal.SIGHUP)
    master.wait_line("ending the jail, to make a new one")
    master.wait_ready()
    assert host.read() == before
    os.kill(find_first(master), signal.SIGKILL)
    master.wait_line("the jail died")
    assert host.read() == before
    master.wait_ready()
    assert master.stop() == 0
    assert host.read() == before
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_mount_table_stays_when_the_process_outside_is_killed(masters, host, root):
    before = host.read()
    master = masters.start(jail(root), prefix=host.prefix)
    first = find_first(master)
    master.kill()
    wait_gone(first)
    master.wait_family_gone()
    assert host.read() == before
    # Its mount points are left, and the next master makes use of them.
    master = masters.start(jail(root), prefix=host.prefix)
    assert master.stop() == 0
    assert host.read() == before


CRASH = """
import os
from lowsuper.kernel import mount

outside = os.getpid()
count = 0

def tamper(name):
    original = getattr(mount, name)
    def replacement(*arguments, **keywords):
        global count
        if os.getpid() != outside and arguments != (mount.NEWPID,):
            count += 1
            if count == {step}:
                os._exit(99)
        return original(*arguments, **keywords)
    setattr(mount, name, replacement)

for name in (
    "unshare", "make_private", "clone_tree", "restrict", "attach", "make_filesystem", "pivot_here"
):
    tamper(name)
"""
STEPS = 14


@pytest.mark.parametrize("step", range(1, STEPS + 2))
def test_crash_at_a_mount_step_leaves_a_host_where_mounts_spread_as_it_was(
    masters, host, root, step
):
    before = host.read()
    path = masters.write(jail(root))
    script = CRASH.replace("{step}", str(step))
    keywords = {"cwd": root.parent, "prefix": host.prefix}
    master = masters.adopt(Tampered(script, str(path), **keywords))
    if step <= STEPS:
        master.wait_line("the jail died: exited with 99")
    else:
        master.wait_ready()
    assert host.read() == before
    assert master.stop() == 0
    assert host.read() == before
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def read_kinds(pid: int) -> set[str]:
    """Return the names of the namespaces of a process."""
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


def list_namespaces(pid: int) -> set[str]:
    """Return the names of the namespaces that a process and all below it are in, or have open."""
    found = set()
    for kind in ("ns", "fd"):
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/{kind}"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/{kind}/{name}"))
    return found.union(*map(list_namespaces, children_of(pid)))


def count_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_two_hundred_starts_and_stops_of_jails_leave_nothing(masters, host, root):
    """Of ten, nine by a reload, which ends one jail and makes another, and one by a new master."""
    table = host.read()
    text = jail(root, "namespace-net = true")
    kinds: set[str] = set()
    own = read_kinds(os.getpid())
    made = 0
    while made < ROUNDS:
        master = masters.start(text, prefix=host.prefix)
        fds = count_fds(master.pid)
        while True:
            first = find_first(master)
            kinds |= read_kinds(first) - own
            made += 1
            if made % 10 == 0:
                break
            master.signal(signal.SIGHUP)
            master.wait_ready()
        assert count_fds(master.pid) == fds
        assert children_of(master.pid) == [first]
        assert master.stop() == 0
        master.wait_family_gone()
        assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]
        assert host.read() == table
    kinds -= list_namespaces(host.pid)
    assert len(kinds) > 10
    # Whatever loses its parent becomes our child.
    assert kinds & list_namespaces(os.getpid()) == set()
    assert masters.cgroups() == []
    shutil.rmtree(root)  # nothing is mounted in it
