"""The keys that limit and isolate a daemon, as the kernel shows them."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from masters import needs_root


def limits_of(pid):
    """Return the soft and hard limits of a process, as text, by the names that the kernel has."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}


# Resource limits.


def test_limits_are_the_daemons_own(masters):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    master = masters.start(
        f"""
        attach-daemon2 = cmd=sleep 1000,name=web,rlimit_nofile=100:{hard},rlimit_core=0,rlimit-as=1G
        attach-daemon2 = cmd=sleep 1000,name=other
        [daemon:db]
        command = sleep 1000
        rlimit_nofile = 50
        rlimit_nofile = 60
        rlimit_cpu = 1h
        rlimit_fsize = 10M
        rlimit_data = 2G
        rlimit_stack = 1M
        rlimit_memlock = 64k
        rlimit_msgqueue = 800k
        rlimit_nproc = 5000
        rlimit_sigpending = 200
        rlimit_nice = 0
        rlimit_rtprio = 0
        rlimit_rttime = 10ms
        """
    )
    web, db = limits_of(master.pid_of("web")), limits_of(master.pid_of("db"))
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits_of(master.pid_of("other"))["Max open files"] == tuple(map(str, own))
    assert web["Max open files"] == ("100", str(hard))
    assert web["Max core file size"] == ("0", "0")
    assert web["Max address space"] == (str(1 << 30),) * 2
    wanted = {
        "open files": 60,
        "cpu time": 3600,
        "file size": 10 << 20,
        "data size": 2 << 30,
        "stack size": 1 << 20,
        "locked memory": 64 << 10,
        "msgqueue size": 800 << 10,
        "processes": 5000,
        "pending signals": 200,
        "nice priority": 0,
        "realtime priority": 0,
        "realtime timeout": 10_000,
    }
    assert {name: db[f"Max {name}"] for name in wanted} == {
        name: (str(value),) * 2 for name, value in wanted.items()
    }
    assert master.stop() == 0


@needs_root
def test_limit_that_cannot_be_set_is_named(masters):
    most = int(Path("/proc/sys/fs/nr_open").read_text()) + 1
    master = masters.begin(f"attach-daemon2 = cmd=sleep 1000,name=web,rlimit_nofile=16:{most}")
    master.wait_line(rf"web: rlimits nofile to 16:{most}: Operation not permitted.*next try in 1 s")
    assert master.stop() == 0


@pytest.mark.parametrize("key", ["rlimit_nofiles=1", "rlimit_nofile=2:1", "rlimit_core"])
def test_bad_limit_starts_nothing(masters, key):
    master = masters.begin(f"attach-daemon2 = cmd=sleep 1000,name=web,{key}")
    assert master.wait() == 78
    assert master.has_said("web: rlimit_")
