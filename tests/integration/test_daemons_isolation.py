"""The keys that limit and isolate a daemon, as the kernel shows them."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import pytest
from masters import IS_ROOT, NOBODY, need, needs_root

from lowsuper.units import CAPABILITIES


def read_proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_text()


def status_of(pid):
    """Return the lines of /proc/PID/status by their names."""
    lines = read_proc(pid, "status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limits_of(pid):
    """Return the soft and hard limits of a process, as text, by the names that the kernel has."""
    lines = read_proc(pid, "limits").splitlines()[1:]
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


# Priorities, umask, privileges.


def test_nice_oom_score_umask_and_no_new_privs(masters):
    master = masters.start(
        """
        attach-daemon2 = cmd=sleep 1000,name=web,nice=5,oom-score=300,umask=027,no_new_privs
        attach-daemon2 = cmd=sleep 1000,name=other,no_new_privs=0
        """
    )
    web, other = master.pid_of("web"), master.pid_of("other")
    assert os.getpriority(os.PRIO_PROCESS, web) == 5
    assert os.getpriority(os.PRIO_PROCESS, other) == os.getpriority(os.PRIO_PROCESS, 0)
    assert read_proc(web, "oom_score_adj") == "300\n"
    assert read_proc(other, "oom_score_adj") == read_proc(os.getpid(), "oom_score_adj")
    assert (status_of(web)["Umask"], status_of(web)["NoNewPrivs"]) == ("0027", "1")
    assert status_of(other)["NoNewPrivs"] == "0"
    assert master.stop() == 0


def test_nice_counts_against_other_daemons(masters):
    """The kernel shares the processor out between sessions first, where it has autogroups."""
    master = masters.start("attach-daemon2 = cmd=sleep 1000,name=web,nice=11")
    try:
        assert read_proc(master.pid_of("web"), "autogroup").endswith(" nice 11\n")
    except FileNotFoundError:
        pytest.skip("needs: CONFIG_SCHED_AUTOGROUP")
    assert master.stop() == 0


@pytest.mark.parametrize("rung", ["ns_pid", "shim"])
def test_role_between_keeps_its_own_priority(masters, rung):
    if rung == "ns_pid" and not IS_ROOT:
        pytest.skip("needs: root")
    key = ",ns_pid" if rung == "ns_pid" else ""
    master = masters.start(
        f"kill-domain = shim\nattach-daemon2 = cmd=sleep 1000,name=web,nice=5,oom_score=700{key}"
    )
    web = master.pid_of("web")
    keeper = int(status_of(web)["PPid"])
    assert os.getpriority(os.PRIO_PROCESS, web) == 5
    assert os.getpriority(os.PRIO_PROCESS, keeper) == os.getpriority(os.PRIO_PROCESS, 0)
    assert read_proc(keeper, "oom_score_adj") == read_proc(os.getpid(), "oom_score_adj")
    assert master.stop() == 0


def caps_of(pid):
    """Return the five sets of capabilities of a process."""
    status = status_of(pid)
    return [int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")]


NET_BIND_SERVICE, KILL = 1 << 10, 1 << 5


@needs_root
def test_caps_are_kept_by_a_user_and_by_root(masters):
    master = masters.start(
        """
        attach-daemon2 = cmd=sleep 1000,name=user,uid=65534,gid=65534,caps=net_bind_service
        attach-daemon2 = cmd=sleep 1000,name=root,caps='CAP_KILL,net_bind_service'
        attach-daemon2 = cmd=sleep 1000,name=nothing,caps=none,uid=65534,gid=65534
        attach-daemon2 = cmd=sleep 1000,name=other,uid=65534,gid=65534
        [daemon:lines]
        command = sleep 1000
        ns_pid = true
        caps = kill
        caps = cap_net_bind_service
        """
    )
    both = NET_BIND_SERVICE | KILL
    wanted = {"user": NET_BIND_SERVICE, "root": both, "nothing": 0, "lines": both}
    for name, caps in wanted.items():
        assert caps_of(master.pid_of(name)) == [caps] * 5, name
    bounding = caps_of(os.getpid())[3]
    assert caps_of(master.pid_of("other")) == [0, 0, 0, bounding, 0]
    assert master.stop() == 0


@needs_root
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("caps=net_bind_service", "port bound, owner refused"),
        ("caps=chown;net_bind_service", "port bound, owner changed"),
        ("caps=none", "port refused, owner refused"),
        ("max_throttle=10", "port refused, owner refused"),
    ],
)
def test_caps_let_a_user_do_what_they_are_for(masters, key, said):
    master = masters.start(
        f"attach-daemon2 = cmd={{D}}/low_port.py,name=web,uid={NOBODY},gid={NOBODY},{key}"
    )
    master.wait_output(said)
    assert master.stop() == 0


@needs_root
def test_caps_of_root_let_it_do_nothing_else(masters):
    master = masters.start("attach-daemon2 = cmd={D}/low_port.py,name=web,caps=none")
    master.wait_output("port refused, owner refused")
    assert master.stop() == 0


@needs_root
def test_capability_that_lowsuper_does_not_have_is_named(masters):
    bounding = caps_of(os.getpid())[3]
    missing = [name for number, name in enumerate(CAPABILITIES) if not bounding >> number & 1]
    name = missing[0] if missing else "chown"
    if not missing:
        prefix = ("setpriv", "--bounding-set", "-chown")
        need(shutil.which("setpriv") is not None, "setpriv")
    else:
        prefix = ()
    master = masters.begin(f"attach-daemon2 = cmd=sleep 1000,name=web,caps={name}", prefix=prefix)
    master.wait_line(rf"web: caps {name}: (Operation not permitted \(lowsuper must have|Invalid)")
    assert master.stop() == 0


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("caps=net_rwa", "caps=net_rwa: there is no capability net_rwa; did you mean net_raw"),
        ("caps=", "web: caps.*is empty"),
        ("nice=20", "nice=20: is not between -20 and 19"),
        ("nice=high", "nice=high: is not a number"),
        ("oom_score=1001", "oom_score=1001: is not between -1000 and 1000"),
        ("umask=8", "umask=8: is not an octal mode"),
        ("umask=1022", "umask=1022: is more than 777"),
        ("no_new_privs=perhaps", "no_new_privs=perhaps: is neither true nor false"),
    ],
)
def test_bad_value_starts_nothing(masters, key, reason):
    master = masters.begin(f"attach-daemon2 = cmd=sleep 1000,name=web,{key}")
    assert master.wait() == 78
    assert master.has_said(reason)
