"""What is written to a cgroup's files: `cgroup_*` of a daemon, `cgroup` and `cgroup-opt`."""

from __future__ import annotations

import re

import pytest
from config_world import errors_of, load_lines, problems_of, warnings_of

from lowsuper.config import cgroups, keys
from lowsuper.model import CgroupSetting


def key(file):
    return keys.NAMES[f"cgroup_{file.replace('.', '_')}"]


@pytest.mark.parametrize(
    ("file", "text", "value"),
    [
        ("memory.max", "512M", str(512 << 20)),
        ("memory.max", "4096", "4096"),
        ("memory.max", "max", "max"),
        ("memory.high", "Unlimited", "max"),
        ("memory.swap.max", "0", "0"),
        ("memory.oom.group", "yes", "1"),
        ("pids.max", "32", "32"),
        ("pids.max", "max", "max"),
        ("cpu.max", "50%", "50000 100000"),
        ("cpu.max", "250%", "250000 100000"),
        ("cpu.max", "12.5%", "12500 100000"),
        ("cpu.max", "1%", "1000 100000"),
        ("cpu.max", "20000 50000", "20000 50000"),
        ("cpu.max", "max", "max 100000"),
        ("cpu.max", "max 20000", "max 20000"),
        ("cpu.weight", "10000", "10000"),
        ("io.weight", "50", "default 50"),
        ("io.max", "8:0 rbps=1048576", "8:0 rbps=1048576"),
        ("cpuset.cpus", "0-3,6", "0-3,6"),
        ("cpuset.cpus", "0-3 6; 8", "0-3,6,8"),
    ],
)
def test_value_is_the_kernels(file, text, value):
    assert key(file).parse(text) == (CgroupSetting(file, value),)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("memory.max", "", "not a size"),
        ("memory.max", "lots", "not a size"),
        ("memory.max", "50%", "not a size"),
        ("memory.max", "9999999999T", "more than"),
        ("pids.max", "0", "not between"),
        ("cpu.max", "50", "doubled"),
        ("cpu.max", "half", "neither a share"),
        ("cpu.max", "0%", "not between 1%"),
        ("cpu.max", "0.5%", "not between 1%"),
        ("cpu.max", ".5%", "not a share"),
        ("cpu.max", "%", "not a share"),
        ("cpu.max", "100 100000", "not between"),
        ("cpu.max", "5000 2000000", "not between"),
        ("cpu.max", "1 2 3", "neither a share"),
        ("cpu.weight", "0", "not between"),
        ("io.weight", "10001", "not between"),
        ("io.max", " ", "empty"),
        ("cpuset.cpus", "", "empty"),
        ("cpuset.cpus", "1-", "not a list"),
        ("cpuset.cpus", "3-1", "ends before it begins"),
    ],
)
def test_value_that_is_none_is_refused(file, text, reason):
    with pytest.raises(ValueError, match=reason):
        key(file).parse(text)


def test_every_file_has_a_key():
    wanted = {f"cgroup_{file.replace('.', '_')}" for file in cgroups.FILES}
    assert {name for name in keys.NAMES if name.startswith("cgroup_")} == wanted


def test_daemon_collects_its_settings_and_the_last_of_a_file_counts():
    spec = load_lines(
        "[daemon:web]", "command = x", "cgroup_memory_max = 64M", "cgroup-pids-max = 9"
    )
    assert spec.daemons[0].cgroup == (
        CgroupSetting("memory.max", str(64 << 20)),
        CgroupSetting("pids.max", "9"),
    )


def test_share_is_written_with_the_percent_sign_doubled():
    spec = load_lines("attach-daemon2 = cmd=x,cgroup_cpu_max=50%%")
    assert spec.daemons[0].cgroup == (CgroupSetting("cpu.max", "50000 100000"),)


@pytest.mark.parametrize(
    ("line", "reason", "advice"),
    [
        (
            "kill-domain = shim",
            "needs a cgroup, and kill-domain = shim makes none",
            "use auto",
        ),
        ("namespace = /x", "there are no cgroups in a jail", "use cgroup and cgroup-opt"),
    ],
)
def test_limits_are_refused_where_daemons_get_no_cgroup(line, reason, advice):
    text = f"[uwsgi]\n{line}\nattach-daemon2 = cmd=x,name=web,cgroup_pids_max=9"
    (error,) = [problem for problem in problems_of(text) if problem.is_error]
    assert (error.daemon, error.reason, error.advice) == ("web", reason, advice)
    assert error.origin.key == "cgroup_pids_max"


def test_limits_are_taken_where_the_cgroups_are_the_hosts():
    spec = load_lines("unshare = uts", "attach-daemon2 = cmd=x,cgroup_pids_max=9")
    assert spec.daemons[0].cgroup == (CgroupSetting("pids.max", "9"),)


def test_master_enters_a_cgroup_with_settings():
    spec = load_lines(
        "cgroup = /sys/fs/cgroup/web/",
        "cgroup-opt = memory.max=1G",
        "cgroup-opt = pids.max:100",
        "cgroup-opt = hugetlb.2MB.max=0",
        "cgroup-dir-mode = 700",
    )
    assert spec.cgroup == "/sys/fs/cgroup/web"
    assert spec.cgroup_mode == 0o700
    assert spec.cgroup_settings == (
        CgroupSetting("memory.max", str(1 << 30)),
        CgroupSetting("pids.max", "100"),
        CgroupSetting("hugetlb.2MB.max", "0"),
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["cgroup = web"], "not an absolute path"),
        (["cgroup = /a", "cgroup = /b"], "in one cgroup only"),
        (["cgroup = /a", "cgroup-opt = memory.max"], "is not FILE=VALUE"),
        (["cgroup = /a", "cgroup-opt = memory_max=1"], "did you mean memory.max"),
        (["cgroup = /a", "cgroup-opt = ../x.y=1"], "not the name of a cgroup's file"),
        (["cgroup = /a", "cgroup-opt = memory.max=lots"], "value of memory.max is not a size"),
        (["cgroup = /a", "cgroup-opt = io.stat="], "is empty"),
        (["cgroup = /a", "cgroup-opt = memory.limit_in_bytes=1"], "has memory.max"),
        (["cgroup = /a", "cgroup-opt = cpu.shares:512"], "version 1; .* has cpu.weight"),
        (["cgroup = /a", "cgroup-dir-mode = 9"], "octal"),
    ],
)
def test_wrong_option_is_refused(lines, reason):
    (error,) = errors_of(*lines)
    assert re.search(reason, error), error


def test_setting_without_a_cgroup_does_nothing():
    (warning,) = warnings_of("cgroup-opt = memory.max=1G")
    assert warning == "does nothing without cgroup; add cgroup = PATH"
