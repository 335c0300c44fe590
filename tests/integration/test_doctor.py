"""`lowsuper doctor` on this machine, and on worse ones: filters, capabilities and mounts taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from errno import ENOSYS, EPERM

import pytest
from jails import make_root
from masters import DEADLINE, has_cgroups, need, needs_root, own_cgroup

from lowsuper.doctor import find_needs
from lowsuper.model import DaemonSpec, Jail, Keep, Origin

DOCTOR = (sys.executable, "-m", "lowsuper", "doctor")

FILTER = """
import ctypes, os, struct, sys

errno, *calls = map(int, sys.argv[1].split(","))
rules = [(0x20, 0, 0, 0)]
for number in calls:
    rules += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno)]
rules.append((0x06, 0, 0, 0x7FFF0000))
buffer = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
header = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, header, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""
CLONE3, OPEN_TREE, FSOPEN, MOUNT_SETATTR = 435, 428, 430, 442  # on every machine
OPENAT2, PIDFD_OPEN = 437, 434
UNSHARE = {"x86_64": 272, "aarch64": 97}.get(os.uname().machine, 0)


def doctor(*words, prefix=(), **keywords):
    """Return the exit status and the rows by name."""
    done = subprocess.run(
        [*prefix, *DOCTOR, "--json", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        **keywords,
    )
    assert done.stdout, done.stderr
    return done.returncode, {row["name"]: row for row in json.loads(done.stdout)["rows"]}


def refusing(errno, *calls):
    """Return what to begin a command with so that these system calls are refused."""
    return (sys.executable, "-c", FILTER, ",".join(map(str, (errno, *calls))))


def without(text):
    """Return what to begin a command with so that it runs in a private mount namespace."""
    return ("unshare", "--mount", "sh", "-ec", f'{text}; exec "$@"', "sh")


@pytest.fixture(scope="module")
def usual():
    return doctor()


def test_rows_are_told_apart_and_complete(usual):
    code, rows = usual
    assert code == int(any(row["state"] != "ok" for row in rows.values()))
    for row in rows.values():
        assert row["state"] in ("ok", "degraded", "missing")
        assert row["seen"]
        assert row["state"] == "ok" or (row["effect"] and row["effect"] != row["advice"])
    assert {"pidfd_open", "clone3", "kill domain", "/proc", "runtime directory"} <= rows.keys()


def test_every_row_that_can_be_needed_exists(usual):
    rows = usual[1].keys()
    origin = Origin("", 0, "", "")
    keep = Keep("/a", "/b", read_only=True)
    daemon = DaemonSpec(
        name="",
        origin=origin,
        command=None,
        ns_pid=True,
        namespaces=("mount", "net", "uts", "ipc", "cgroup"),
        root="/",
        mounts=(keep,),
        pidfile="/a",
        touch=("/a",),
    )
    jail = Jail("/", net=True, overlay=True, keeps=(keep,))

    class Spec:
        daemons = (daemon,)
        touch_reload = ()
        kill_domain = "cgroup"
        cgroup = None
        cgroup_settings = (1,)

    Spec.jail = jail
    wanted = {name for name in find_needs(Spec) if not name.startswith("capability ")}
    assert wanted <= rows


@needs_root
@pytest.mark.usefixtures("own_mounts")
def test_nothing_stays(usual):
    del usual
    base = own_cgroup()
    before = base and sorted(os.listdir(base))
    doctor()
    assert before is None or not [
        name for name in os.listdir(base) if name.startswith("lowsuper-doctor")
    ]


@needs_root
@pytest.mark.parametrize("errno", [ENOSYS, EPERM])
def test_clone3_that_is_refused_is_replaced(errno):
    rows = doctor(prefix=refusing(errno, CLONE3))[1]
    assert rows["clone3"]["state"] == rows["seccomp, no_new_privs"]["state"] == "degraded"
    assert rows["helper program"]["state"] == "ok"
    if has_cgroups():
        assert rows["birth in a cgroup"]["state"] == "degraded"
        assert rows["kill domain"]["seen"].startswith("cgroup: ")


@needs_root
def test_container_without_namespaces_has_no_jails():
    need(UNSHARE != 0, "a known number of unshare")
    code, rows = doctor(prefix=refusing(EPERM, UNSHARE))
    assert code == 1
    for name in ("namespace pid", "namespace mount", "pivot_root", "overlay"):
        assert rows[name]["state"] == "missing"
    assert "seccomp" in rows["namespace pid"]["advice"]
    assert rows["pivot_root"]["advice"] == "see namespace mount"


@needs_root
def test_missing_mount_calls_are_told_apart():
    rows = doctor(prefix=refusing(ENOSYS, MOUNT_SETATTR))[1]
    assert rows["mount_setattr"]["state"] == "degraded"
    assert rows["open_tree, move_mount"]["state"] == rows["private mounts"]["state"] == "ok"
    rows = doctor(prefix=refusing(ENOSYS, OPEN_TREE))[1]
    assert rows["open_tree, move_mount"]["seen"].startswith("open_tree ")
    assert rows["open_tree, move_mount"]["state"] == "missing"
    assert "Linux 5.2" in rows["open_tree, move_mount"]["advice"]


def test_missing_basic_calls_are_survived():
    code, rows = doctor(prefix=refusing(ENOSYS, PIDFD_OPEN, OPENAT2))
    assert code == 1
    assert rows["pidfd_open"]["state"] == rows["helper program"]["state"] == "missing"
    assert rows["openat2"]["state"] == "degraded"


@needs_root
def test_missing_capabilities_are_named():
    rows = doctor(prefix=("setpriv", "--bounding-set=-sys_ptrace,-setpcap"))[1]
    assert "what smart daemons" in rows["capability sys_ptrace"]["effect"]
    assert "SETPCAP" in rows["capability setpcap"]["advice"]


@needs_root
def test_machine_without_cgroups_has_shims():
    rows = doctor(prefix=without("umount -R /sys"))[1]
    assert rows["cgroup v2"]["state"] == "degraded"
    assert rows["cgroup v2"]["seen"] == "no cgroup v2 hierarchy is mounted"
    assert rows["kill domain"]["seen"].startswith("shim: ")
    assert "ns_pid = true" in rows["kill domain"]["advice"]


@needs_root
def test_cgroups_that_are_read_only_are_of_no_use():
    need(has_cgroups(), "cgroup v2 that can be written")
    place = "$(awk '$0 ~ / - cgroup2 / {print $5; exit}' /proc/self/mountinfo)"
    rows = doctor(prefix=without(f"mount -o remount,ro,bind {place}"))[1]
    assert rows["kill domain"]["seen"].startswith("shim: ")
    assert "Read-only file system" in rows["cgroup v2"]["seen"]
    assert "writable" in rows["cgroup v2"]["advice"]


@needs_root
def test_runtime_directory_that_is_read_only_is_told():
    script = "mount -t tmpfs none /run; mount -o remount,ro /run"
    rows = doctor(prefix=without(script))[1]
    assert rows["runtime directory"]["state"] == rows["state directory"]["state"] == "degraded"


@needs_root
def test_proc_that_hides_is_told(tmp_path):
    script = "mount -t proc -o hidepid=2 proc /proc"
    assert "hidepid=" in doctor(prefix=without(script))[1]["/proc"]["seen"]
    # As nobody, who cannot read our Python; so what is needed is loaded before.
    code = (
        "import os,sys,importlib.util,subprocess,textwrap,pwd,grp,json,resource,prctl;"
        "import lowsuper.doctor;from lowsuper.kernel import premises;"
        "os.setgroups([]);os.setresuid(65534,65534,65534);"
        "print(*premises._look_at_proc())"
    )
    done = subprocess.run(
        [*without(script), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.startswith("/proc degraded hidepid=")


def test_user_who_is_not_root_is_told_what_root_would_have(tmp_path):
    code = (
        "import os,sys,importlib.util,subprocess,textwrap,pwd,grp,json,resource,prctl,select,"
        "lowsuper.doctor,lowsuper.kernel.premises,lowsuper.kernel.records;"
        "from lowsuper.cli import main;"
        "os.getuid() or (os.setgroups([]), os.setresgid(65534,65534,65534),"
        " os.setresuid(65534,65534,65534));"
        "sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"},
    )
    assert done.returncode == 1, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert "the kernel has it, for root" in rows["namespace mount"]["seen"]
    assert rows["capabilities"]["advice"] == rows["namespace mount"]["advice"] == "run it as root"
    assert rows["runtime directory"]["state"] == "degraded"
    assert rows["pidfd_open"]["state"] == rows["helper program"]["state"] == "ok"


# What the table says is what a master does.


@needs_root
def test_jail_is_made_without_mount_setattr(masters, tmp_path):
    root = make_root(tmp_path / "root")
    master = masters.begin(
        f"namespace = {root}\nattach-daemon = sleep 1000\n",
        prefix=refusing(ENOSYS, MOUNT_SETATTR),
    ).wait_ready()
    assert master.stop() == 0


@needs_root
@pytest.mark.parametrize("errno", [ENOSYS, EPERM])
@pytest.mark.parametrize(
    ("calls", "keep", "text"),
    [
        ((MOUNT_SETATTR,), "ro:/dev/null", "mount_setattr /dev/null: "),
        ((OPEN_TREE,), "/dev/null", "open_tree /dev/null: "),
        ((FSOPEN,), "/dev/null", "fsopen proc: "),
    ],
)
def test_jail_that_cannot_be_made_says_why_and_where_to_ask(
    masters, tmp_path, errno, calls, keep, text
):
    root = make_root(tmp_path / "root")
    master = masters.begin(
        f"namespace = {root}\nnamespace-keep-mount = {keep}\nattach-daemon = sleep 1000\n",
        prefix=refusing(errno, *calls),
    )
    master.wait_line(f"the jail: {text}.*; a jail needs .*; see lowsuper doctor")
    assert master.wait() == 125


@pytest.mark.parametrize("jailed", [False, True])
def test_kernel_without_pidfds_is_told_and_is_no_bug(masters, tmp_path, jailed):
    need(os.geteuid() == 0 or not jailed, "root")
    root = make_root(tmp_path / "root")
    master = masters.begin(
        ("", f"namespace = {root}\n")[jailed] + "attach-daemon = sleep 1000\n",
        prefix=refusing(ENOSYS, PIDFD_OPEN),
    )
    master.wait_line("lowsuper: pidfd_open .*: Function not implemented; lowsuper needs Linux")
    assert master.wait() == 125


# With a configuration.


def test_file_counts_only_what_it_needs(tmp_path, usual):
    file = tmp_path / "test.ini"
    file.write_text("[uwsgi]\nattach-daemon = true\n")
    code, rows = doctor(file)
    assert not rows["pivot_root"]["needed"]
    assert rows["pidfd_open"]["needed"]
    assert code == 0, [row for row in rows.values() if row["needed"] and row["state"] != "ok"]
    assert usual[1].keys() == rows.keys()


@needs_root
def test_file_that_needs_what_is_missing_fails(tmp_path):
    need(UNSHARE != 0, "a known number of unshare")
    file = tmp_path / "test.ini"
    root = make_root(tmp_path / "root")
    file.write_text(f"[uwsgi]\nnamespace = {root}\nattach-daemon = true\n")
    code, rows = doctor(file, prefix=refusing(EPERM, UNSHARE))
    assert code == 1
    assert rows["namespace mount"]["needed"]
    file.write_text("[uwsgi]\nattach-daemon = true\n")
    assert doctor(file, prefix=refusing(EPERM, UNSHARE))[0] == 0


def test_file_that_is_wrong_is_told_as_check_does(tmp_path):
    file = tmp_path / "test.ini"
    file.write_text("[uwsgi]\nattach-daemon2 = cmd=true,stop_timout=5s\n")
    done = subprocess.run(
        [*DOCTOR, str(file)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert "test.ini:2: " in done.stderr


def test_table_is_plain_in_a_pipe_and_coloured_on_a_terminal():
    done = subprocess.run([*DOCTOR], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert "\033" not in done.stdout
    for environ, wanted in (({}, True), ({"NO_COLOR": "1"}, False)):
        fd, tty = os.openpty()
        process = subprocess.Popen(
            [*DOCTOR], stdin=tty, stdout=tty, stderr=tty, env={**os.environ, **environ}
        )
        os.close(tty)
        seen = b""
        try:
            while piece := os.read(fd, 65536):
                seen += piece
        except OSError:
            pass  # the last writer is gone
        process.wait(DEADLINE)
        os.close(fd)
        assert (b"\033[" in seen) is wanted
