"""Namespaces, root and mounts of a daemon; and that the host sees nothing of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import stat
from errno import EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, EPERM
from pathlib import Path

import pytest
from masters import need
from spawning import NULL, Run, in_child, make_plan, outcome_of, read_all

from lowsuper.kernel import spawn
from lowsuper.kernel.spawn import ExecOk, StepFailed
from lowsuper.plan import NAMESPACES, NSINIT, SHIM, FdSource, Limit, Mount

pytestmark = pytest.mark.usefixtures("root")

NOBODY = 65534
NEWNS = NAMESPACES["mount"]
MS_REC, MS_PRIVATE, MS_SHARED = 0x4000, 0x40000, 0x100000
KINDS = {"mount": "mnt", "cgroup": "cgroup", "uts": "uts", "ipc": "ipc", "net": "net"}


@pytest.fixture
def busybox(open_directory):
    """A root file system of a few files."""
    program = shutil.which("busybox")
    need(program is not None, "busybox")
    root = open_directory / "root"
    if not root.exists():
        for name in ("bin", "proc", "data", "etc", "tmp", "dir with space é"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "bin/sh").symlink_to("busybox")
        (root / "etc/file").write_text("of the root\n")
        (root / "outside").symlink_to("/etc/target")
        (root / "magic").symlink_to("/proc/self/root")
        shutil.copy2(program, root / "bin/busybox")
    return root


def fds_to(writer):
    return (NULL, FdSource(1, writer), FdSource(2, writer))


def output_of(spawner, script, **fields):
    """Run a shell script, and return what it writes and how the steps went."""
    reader, writer = os.pipe()
    plan = make_plan("/bin/busybox", "sh", "-c", script, fds=fds_to(writer), **fields)
    plan = plan.replace(envp=(b"PATH=/bin",))
    if fields.get("root") is None:
        plan = plan.replace(programs=(os.fsencode(shutil.which("busybox")),))
    with Run(spawner, plan) as run:
        os.close(writer)
        outcome = run.outcome()
        text = read_all(reader).decode()
        run.wait()
    os.close(reader)
    return text.splitlines(), outcome


def own_table():
    return Path("/proc/self/mountinfo").read_bytes()


def share_everything():
    """Become a host of our own, whose mounts are all shared: what is not made private gets out."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(NEWNS) == 0
    for kind in (MS_PRIVATE, MS_SHARED):  # not with those of the host, which may be shared, too
        assert libc.mount(None, b"/", None, MS_REC | kind, None) == 0


@pytest.mark.parametrize("kind", NAMESPACES)
def test_namespace_is_the_daemons_own_and_no_other(spawner, still, kind):
    plan = make_plan(still, namespaces=NAMESPACES[kind])
    with Run(spawner, plan) as run:
        assert run.outcome() == ExecOk()
        for name, file in KINDS.items():
            there = os.readlink(f"/proc/{run.child.pid}/ns/{file}")
            assert (there != os.readlink(f"/proc/self/ns/{file}")) == (name == kind)


def test_hostname_is_the_daemons_own(spawner, still):
    before = socket.gethostname()
    lines, outcome = output_of(
        spawner, "hostname", namespaces=NAMESPACES["uts"], hostname=b"jail-1.example"
    )
    assert (lines, outcome) == (["jail-1.example"], ExecOk())
    assert socket.gethostname() == before


def test_loopback_of_a_network_namespace_is_up(spawner):
    script = "ifconfig lo; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo answered"
    lines, _ = output_of(spawner, script, namespaces=NAMESPACES["net"])
    assert any("UP LOOPBACK RUNNING" in line for line in lines)
    assert lines[-1] == "answered"


@pytest.mark.parametrize("role", ["exec", NSINIT])
def test_proc_is_of_the_pid_namespace(spawner, role):
    lines, outcome = output_of(
        spawner,
        "echo $$; cd /proc; echo [0-9]*; readlink /proc/self/ns/pid",
        role=role,
        new_pid_ns=True,
        namespaces=NEWNS,
        own_proc=True,
    )
    assert outcome == ExecOk()
    own = "2" if role == NSINIT else "1"
    assert lines[:2] == [own, "1 2" if role == NSINIT else "1"]
    assert lines[2] != os.readlink("/proc/self/ns/pid")


def test_mount_namespace_takes_nothing_to_the_host_and_nothing_from_it(spawner, tmp_path):
    def act():
        share_everything()
        own = spawn.Spawner()
        before = own_table()
        lines, outcome = output_of(
            own,
            f"mount -t tmpfs none {tmp_path} && touch {tmp_path}/file && echo mounted",
            namespaces=NEWNS,
        )
        return lines, outcome, own_table() == before, os.listdir(tmp_path)

    assert in_child(act) == (["mounted"], ExecOk(), True, [])


ROOTS = ("directory", "mount", "tmpfs", "read-only")


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("role", ["exec", NSINIT, SHIM])
def test_root_is_all_that_is_there_and_the_host_is_as_before(busybox, tmp_path, kind, role):
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source, target, fstype, flags):
        assert libc.mount(source, os.fsencode(target), fstype, flags, None) == 0

    def act():
        share_everything()
        root = tmp_path / "root"
        root.mkdir()
        if kind == "tmpfs":
            mount(b"none", root, b"tmpfs", 0)
        if kind in ("mount", "read-only"):
            mount(os.fsencode(busybox), root, None, 0x1000)  # MS_BIND
        else:
            shutil.copytree(busybox, root, symlinks=True, dirs_exist_ok=True)
        if kind == "read-only":
            mount(None, root, None, 0x1000 | 0x20 | 1)  # MS_BIND, MS_REMOUNT, MS_RDONLY
        own = spawn.Spawner()
        before = own_table()
        lines, outcome = output_of(
            own,
            "pwd; echo /*; cat /etc/file; cd ..; pwd; wc -l < /proc/mounts; echo [0-9]*",
            role=role,
            new_pid_ns=role == NSINIT,
            namespaces=NEWNS,
            root=os.fsencode(root),
            own_proc=role == NSINIT,
            mounts=() if role == NSINIT else (Mount(b"/proc", b"/proc"),),
        )
        return lines[:4], outcome, own_table() == before

    there = sorted(name for name in os.listdir(busybox))
    lines, outcome, same = in_child(act)
    assert outcome == ExecOk()
    assert sorted(lines[1].split(" /")) == sorted(["/" + there[0], *there[1:]])
    assert [lines[0], *lines[2:]] == ["/", "of the root", "/"]
    assert same


def test_root_leaves_no_descriptor_of_the_host(spawner, still, open_directory, busybox):
    shutil.copy2(still, busybox / "bin/still")
    plan = make_plan(
        "/bin/still",
        namespaces=NEWNS,
        root=os.fsencode(busybox),
        mounts=(Mount(b"/proc", b"/proc"),),
        dies_with_master=True,
    )
    with Run(spawner, plan) as run:
        assert run.outcome() == ExecOk()
        process = Path(f"/proc/{run.child.pid}")
        assert set(os.listdir(process / "fd")) == {"0", "1", "2"}
        assert os.stat(process / "root").st_ino == os.stat(busybox).st_ino
        assert os.stat(process / "cwd").st_ino == os.stat(busybox).st_ino
        tops = [line.split()[4] for line in (process / "mountinfo").read_text().splitlines()]
        assert "/" in tops
        assert all(top == "/" or top.startswith("/proc") for top in tops)


def test_root_with_chdir_uid_and_caps_is_entered_before_them(spawner, busybox):
    lines, outcome = output_of(
        spawner,
        "pwd; id -u; grep CapEff /proc/self/status",
        namespaces=NEWNS,
        root=os.fsencode(busybox),
        mounts=(Mount(b"/proc", b"/proc"),),
        chdir=os.fsencode("/dir with space é"),
        uid=NOBODY,
        gid=NOBODY,
        groups=(),
        caps=1 << 5,
    )
    assert outcome == ExecOk()
    assert lines == ["/dir with space é", str(NOBODY), "CapEff:\t0000000000000020"]


@pytest.fixture
def places(tmp_path):
    """Directories of a host: a source with a mount in it, and a target."""
    source, target = tmp_path / "source é", tmp_path / "target"
    for path in (source, target, source / "sub"):
        path.mkdir()
    (source / "file").write_text("of the source\n")
    return source, target


@pytest.mark.parametrize("read_only", [False, True])
def test_mounts_are_recursive_and_the_daemons_alone(places, busybox, read_only):
    source, target = places
    libc = ctypes.CDLL(None, use_errno=True)

    def act():
        share_everything()
        assert libc.mount(b"none", os.fsencode(source / "sub"), b"tmpfs", 0, None) == 0
        (source / "sub/deep").write_text("deep\n")
        own = spawn.Spawner()
        before = own_table()
        lines, outcome = output_of(
            own,
            f"cd {target}; cat file sub/deep; echo x > new; echo x > sub/new",
            namespaces=NEWNS,
            mounts=(Mount(os.fsencode(source), os.fsencode(target), read_only),),
        )
        made = sorted(str(path.relative_to(source)) for path in source.rglob("new"))
        return lines, outcome, made, own_table() == before, os.listdir(target)

    lines, outcome, made, same, below = in_child(act)
    assert outcome == ExecOk()
    assert lines[:2] == ["of the source", "deep"]
    assert sum("Read-only file system" in line for line in lines) == 2 * read_only
    assert made == ([] if read_only else ["new", "sub/new"])
    assert same
    assert below == []


def test_mount_of_a_file_on_a_file(spawner, tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("a\n")
    target.write_text("b\n")
    mounts = (Mount(os.fsencode(source), os.fsencode(target)),)
    lines, _ = output_of(spawner, f"cat {target}", namespaces=NEWNS, mounts=mounts)
    assert lines == ["a"]
    assert target.read_text() == "b\n"


def test_link_in_the_root_leads_no_mount_out_of_it(spawner, places, busybox):
    source, _ = places
    target = busybox / "etc/target"
    target.mkdir(exist_ok=True)
    lines, outcome = output_of(
        spawner,
        "busybox cat /etc/target/file",
        namespaces=NEWNS,
        root=os.fsencode(busybox),
        mounts=(Mount(os.fsencode(source), b"/outside"),),
    )
    assert (lines, outcome) == (["of the source"], ExecOk())
    assert os.listdir(target) == []


def failure(spawner, **fields):
    return outcome_of(spawner, make_plan("/bin/true", namespaces=NEWNS, **fields))


def test_steps_that_fail_are_named(spawner, places, busybox, tmp_path):
    source, target = (os.fsencode(path) for path in places)
    root, missing = os.fsencode(busybox), os.fsencode(tmp_path / "missing")
    file = os.fsencode(places[0] / "file")
    proc = Mount(b"/proc", b"/proc")
    good = Mount(source, target)
    assert failure(spawner, root=missing) == StepFailed("root", ENOENT, 0)
    assert failure(spawner, root=file) == StepFailed("root", ENOTDIR, 0)
    assert failure(spawner, root=b"/proc/self/root") == StepFailed("root", ELOOP, 0)
    assert failure(spawner, root=target, own_proc=True) == StepFailed("proc", ENOENT, 0)
    for index, before in ((0, ()), (1, (good,))):
        for bad, errno in (
            (Mount(missing, target), ENOENT),
            (Mount(b"/proc/self/cwd", target), ELOOP),
            (Mount(source, missing), ENOENT),
            (Mount(source, file), ENOTDIR),
            (Mount(file, target), EISDIR),
        ):
            outcome = failure(spawner, mounts=(*before, bad))
            assert outcome == StepFailed("mounts", errno, index), bad
    escape = failure(spawner, root=root, mounts=(proc, Mount(source, b"/magic/tmp")))
    assert escape == StepFailed("mounts", ELOOP, 1)
    assert failure(spawner, root=target) == StepFailed("execve", ENOENT, 0)


def test_step_that_fails_leaves_the_host_as_it_was(places, busybox):
    source, target = (os.fsencode(path) for path in places)
    root = os.fsencode(busybox)
    good = Mount(source, b"/data")
    plans = (
        {"root": b"/missing"},
        {"root": target, "own_proc": True},
        {"root": root, "mounts": (good, Mount(source, b"/missing"))},
        {"root": root, "mounts": (good, Mount(b"/missing", b"/data"))},
        {"root": root, "mounts": (good,), "chdir": b"/missing"},
        {"root": root, "mounts": (good,), "caps": 1 << 63},
        {"root": root, "mounts": (good,), "limits": (Limit(999, 1, 1),)},
        {"root": root, "mounts": (good,), "own_proc": True},  # there is no /bin/true
    )

    def act():
        share_everything()
        own = spawn.Spawner()
        before = own_table()
        steps = [failure(own, **fields).step for fields in plans]
        return steps, own_table() == before

    steps = ["root", "proc", "mounts", "mounts", "chdir", "caps", "rlimits", "execve"]
    assert in_child(act) == (steps, True)


def test_namespace_that_cannot_be_had_is_named(spawner):
    for flag in NAMESPACES.values():
        outcome = in_child(
            lambda flag=flag: outcome_of(spawner, make_plan("/bin/true", namespaces=flag)),
            uid=NOBODY,
        )
        assert outcome == StepFailed("namespaces", EPERM, flag)


def test_hostname_that_is_too_long_is_named(spawner):
    plan = make_plan("/bin/true", namespaces=NAMESPACES["uts"], hostname=b"x" * 65)
    assert outcome_of(spawner, plan) == StepFailed("hostname", EINVAL, 0)


def test_nothing_is_left_after_many(spawner, places, busybox):
    source, _ = places
    before = own_table(), sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        lines, outcome = output_of(
            spawner,
            "echo $$",
            namespaces=sum(NAMESPACES.values()),
            root=os.fsencode(busybox),
            mounts=(Mount(os.fsencode(source), b"/data", True),),
            role=NSINIT,
            new_pid_ns=True,
            own_proc=True,
            hostname=b"jail",
        )
        assert (lines, outcome) == (["2"], ExecOk())
    assert (own_table(), sorted(os.listdir("/proc/self/fd"))) == before
    with contextlib.suppress(FileNotFoundError):
        assert stat.S_ISDIR(os.stat(busybox / "data").st_mode)
    assert os.listdir(busybox / "data") == []
