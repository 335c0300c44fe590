"""Limits of cgroups where they cannot be had; tests/vm shows them where they can."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from masters import has_cgroups, need, needs_root, own_cgroup

pytestmark = needs_root


def find_v1(controller):
    """Return where the version 1 hierarchy of a controller is mounted, or None."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup ") and controller in right.split()[-1].split(","):
            return Path(left.split()[4])
    return None


def test_limit_whose_controller_is_of_version_1_says_so_and_spares_the_others(masters):
    need(has_cgroups(), "cgroup v2 that can be written")
    need(find_v1("memory") is not None, "a version 1 hierarchy of memory")
    master = masters.begin(
        "attach-daemon2 = cmd=sleep 3600,name=plain\n"
        "attach-daemon2 = cmd=sleep 3600,name=web,cgroup_memory_max=64M\n"
    )
    master.wait_lines(
        rf"web: cgroup memory\.max = {64 << 20} in \S+/dumb/web\.1: No such file or directory "
        r"\(write \+memory to \S+/cgroup\.subtree_control: the controller memory is in a version 1 "
        r"hierarchy here, so not in \S+: boot with systemd\.unified_cgroup_hierarchy=1, or "
        r"cgroup_no_v1=memory\); next try in 1 s",
        "plain: started",
    )
    assert master.stop() == 0


@pytest.mark.parametrize("pid_namespace", ["", ",ns_pid"])
def test_limit_without_cgroups_is_an_error_of_the_start(masters, pid_namespace):
    # Where /sys is not mounted there is no hierarchy.
    prefix = ("unshare", "--mount", "sh", "-c", 'umount -Rl /sys && exec "$@"', "sh")
    master = masters.begin(
        f"attach-daemon2 = cmd=sleep 3600,name=web,cgroup_pids_max=9{pid_namespace}\n",
        prefix=prefix,
    )
    master.wait_line(
        r"web: cgroup pids\.max = 9: Operation not supported \(no cgroup v2 hierarchy is mounted"
    )
    assert master.stop() == 0


def test_master_refuses_a_cgroup_of_version_1(masters):
    place = find_v1("memory")
    need(place is not None, "a version 1 hierarchy of memory")
    master = masters.begin(
        f"cgroup = {place}/lowsuper-test\ncgroup-opt = memory.max=64M\nattach-daemon = sleep 9\n"
    )
    master.wait_line(
        rf"cgroup {re.escape(str(place))}/lowsuper-test: Operation not supported; that is the "
        r"version 1 hierarchy of memory, and lowsuper uses version 2 only"
    )
    assert master.wait() == 125
    assert not (place / "lowsuper-test").exists()


def test_master_makes_enters_and_removes_its_cgroup(masters):
    need(has_cgroups(), "cgroup v2 that can be written")
    place = own_cgroup() / masters.directory.name
    master = masters.start(f"cgroup = {place}\ncgroup-dir-mode = 700\nattach-daemon = sleep 3600\n")
    pid = master.pid_of("sleep")
    assert str(master.pid) in (place / "cgroup.procs").read_text().split()
    assert place.stat().st_mode & 0o777 == 0o700
    assert place.name in Path(f"/proc/{pid}/cgroup").read_text()
    assert master.stop() == 0
    assert not place.exists()


def test_setting_that_cannot_be_written_is_an_error_and_leaves_nothing(masters):
    need(has_cgroups(), "cgroup v2 that can be written")
    place = own_cgroup() / masters.directory.name
    master = masters.begin(
        f"cgroup = {place}\ncgroup-opt = cgroup.max.depth=many\nattach-daemon = sleep 9\n"
    )
    master.wait_line(rf"cgroup cgroup\.max\.depth = many in {re.escape(str(place))}: Invalid arg")
    assert master.wait() == 125
    assert not place.exists()
