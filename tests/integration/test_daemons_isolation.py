"""The keys that limit and isolate a daemon, as the kernel shows them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from masters import IS_ROOT, NOBODY, Master, is_alive, need, needs_root

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


@needs_root
def test_master_that_is_not_root_any_more_limits_its_daemons(masters):
    master = masters.start(
        f"uid = {NOBODY}\ngid = {NOBODY}\n"
        "attach-daemon2 = cmd=sleep 1000,name=web,rlimit_core=0,nice=3,umask=077,no_new_privs,"
        "oom_score=900"
    )
    web = master.pid_of("web")
    assert limits_of(web)["Max core file size"] == ("0", "0")
    assert os.getpriority(os.PRIO_PROCESS, web) == 3
    assert read_proc(web, "oom_score_adj") == "900\n"
    status = status_of(web)
    assert (status["Umask"], status["NoNewPrivs"]) == ("0077", "1")
    assert status["Uid"].split() == [str(NOBODY)] * 4
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
        ("namespaces=mnt", "namespaces=mnt: there is no namespace mnt; did you mean mount"),
        (
            "namespaces=pid,ns_pid=0",
            "ns_pid=0: contradicts pid among the namespaces; leave one out",
        ),
        ("root=jail", "root=jail: is not an absolute path"),
        ("mounts=/a", "mounts=/a: /a is neither SOURCE:TARGET nor SOURCE:TARGET:ro"),
        ("hostname=a/b", "hostname=a/b: holds '/'"),
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


# Namespaces, root, mounts.


def namespaces_of(pid):
    """Return the namespaces of a process that are not ours."""
    names = ("pid", "mnt", "net", "uts", "ipc", "cgroup")
    return {name for name in names if os.readlink(f"/proc/{pid}/ns/{name}") != own_namespace(name)}


def own_namespace(name):
    return os.readlink(f"/proc/self/ns/{name}")


@pytest.fixture
def root(tmp_path):
    """A root file system of a few files."""
    program = shutil.which("busybox")
    need(program is not None, "busybox")
    place = tmp_path / "root"
    for name in ("bin", "proc", "srv"):
        (place / name).mkdir(parents=True)
    shutil.copy2(program, place / "bin/busybox")
    return place


@needs_root
def test_namespaces_are_those_that_were_asked_for(masters):
    master = masters.start(
        """
        attach-daemon2 = cmd=sleep 1000,name=none
        attach-daemon2 = cmd=sleep 1000,name=pid,namespaces=pid
        attach-daemon2 = cmd=sleep 1000,name=all,namespaces='pid,mount,net,uts,ipc,cgroup'
        attach-daemon2 = cmd=sleep 1000,name=some,namespaces=net;ipc
        attach-daemon2 = cmd=sleep 1000,name=host,hostname=jail
        attach-daemon2 = cmd=sleep 1000,name=place,mounts=/usr:/usr:ro
        """
    )
    wanted = {
        "none": set(),
        "pid": {"pid"},
        "all": {"pid", "mnt", "net", "uts", "ipc", "cgroup"},
        "some": {"net", "ipc"},
        "host": {"uts"},
        "place": {"mnt"},
    }
    assert {name: namespaces_of(master.pid_of(name)) for name in wanted} == wanted
    assert master.has_said("pid: started, .*kill domain pidns")
    assert master.stop() == 0


@needs_root
@pytest.mark.parametrize("rung", ["cgroup", "shim", "pidns"])
def test_daemon_in_a_root_of_its_own_starts_again_and_stops(masters, root, rung):
    (root / "srv/secret").write_text("x")
    source = masters.directory / "source é"
    source.mkdir()
    (source / "file").write_text("of the host")
    pid = "pid," if rung == "pidns" else ""
    master = masters.launch(
        str(
            masters.write(
                f"""
                kill-domain = {"auto" if rung == "pidns" else rung}
                [daemon:web]
                command = /bin/busybox sh -c 'echo i see /* /srv/*; exec busybox sleep 1000'
                root = {root}
                namespaces = {pid}uts
                hostname = jail
                mounts = {source}:/srv:ro
                """
            )
        ),
        prefix=("unshare", "--mount", "--propagation", "shared"),
    ).wait_ready()
    master.wait_output("i see /bin /proc /srv /srv/file$")
    table = read_proc(master.pid, "mountinfo")
    first = master.pid_of("web")
    assert os.stat(f"/proc/{first}/root").st_ino == root.stat().st_ino
    os.kill(first, signal.SIGKILL)
    master.wait_line("web: .*was killed by SIGKILL")
    second = master.wait_started("web")
    assert second != first
    assert read_proc(master.pid, "mountinfo") == table
    assert {"mnt", "uts"} <= namespaces_of(second)
    assert master.stop() == 0
    assert os.listdir(root / "srv") == ["secret"]
    assert sorted(os.listdir(root)) == ["bin", "proc", "srv"]


@needs_root
@pytest.mark.parametrize("pid", [False, True])
def test_smart_daemon_in_a_root_is_adopted_by_the_next_master(masters, root, pid):
    masters.allow_survivors()
    text = f"""
        [daemon:web]
        command = /bin/busybox sleep 1000
        root = {root}
        namespaces = {"pid;" if pid else ""}net
        caps = kill
        pidfile = {{T}}/web.pid
        daemonize = true
        """
    first = masters.start(text)
    web = first.pid_of("web")
    first.kill()
    second = masters.start(text)
    assert second.pid_of("web") == web
    assert second.has_said("web: found running")
    assert "mnt" in namespaces_of(web)
    assert second.stop() == 0
    assert is_alive(web)


@needs_root
def test_pid_and_mount_namespace_bring_a_proc_of_their_own(masters):
    master = masters.start(
        "attach-daemon2 = cmd=sh -c 'echo pids /proc/[0-9]*; exec sleep 1000',name=web,"
        "namespaces=pid;mount"
    )
    master.wait_output("pids /proc/1 /proc/2$")
    assert master.stop() == 0


@needs_root
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("root=/nonexistent", "web: root /nonexistent: No such file or directory; next try"),
        ("root={R},namespaces=pid", "web: proc /proc: No such file or directory; next try"),
        ("mounts=/nonexistent:/mnt", "web: mounts /nonexistent on /mnt: No such file or directory"),
        ("mounts=/usr:/nonexistent", "web: mounts /usr on /nonexistent: No such file or directory"),
        ("mounts=/usr:/etc/passwd", "web: mounts /usr on /etc/passwd: Not a directory"),
        ("root={R},name=web", "web: execve sleep: No such file or directory"),
    ],
)
def test_step_that_fails_is_named_and_tried_again(masters, tmp_path, keys, said):
    empty = tmp_path / "empty"
    empty.mkdir()
    name = "" if "name=web" in keys else ",name=web"
    master = masters.begin(
        f"attach-daemon2 = cmd=sleep 1000{name},{keys.replace('{R}', str(empty))}"
    )
    master.wait_line(said)
    assert master.stop() == 0
    assert os.listdir(empty) == []


@pytest.mark.skipif(not IS_ROOT, reason="needs: root")
def test_namespace_for_another_than_root_is_refused(masters):
    master = masters.begin(
        f"uid = {NOBODY}\ngid = {NOBODY}\nattach-daemon2 = cmd=sleep 1000,name=web,namespaces=net"
    )
    master.wait_line(r"web: namespaces net: Operation not permitted \(namespaces need root")
    assert master.stop() == 0


def test_check_finds_a_root_that_is_not_there(masters, tmp_path):
    (tmp_path / "root").mkdir()
    path = masters.write(
        "attach-daemon2 = cmd=/bin/only-there,name=web,root=/nonexistent\n"
        "attach-daemon2 = cmd=/bin/only-there,name=other,chdir=/only/there,"
        f"root={tmp_path}/root\n"
        "attach-daemon2 = cmd=/mnt/only-there,name=third,mounts=/usr:/mnt\n"
    )
    command = [*Master.program, "check", str(path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 78
    assert "web: root=/nonexistent: is not a directory" in result.stdout
    assert "other" not in result.stdout.replace(str(tmp_path), "")
    assert "third: command=/mnt/only-there: there is no file" in result.stdout
    assert "1 error, 1 warning" in result.stdout
