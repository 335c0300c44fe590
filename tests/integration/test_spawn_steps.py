"""Every step of the helper fails for a natural reason, and says which, why and at what."""

from __future__ import annotations

import ctypes
import os
import resource
from errno import (
    E2BIG,
    EACCES,
    EAGAIN,
    EBADF,
    EINVAL,
    ENAMETOOLONG,
    ENOENT,
    ENOEXEC,
    ENOTDIR,
    EPERM,
    ESRCH,
    ETIME,
)
from pathlib import Path

import pytest
from spawning import NULL, Run, in_child, make_plan, outcome_of, run_helper

from lowsuper.errors import KernelError
from lowsuper.kernel import native, spawn
from lowsuper.kernel.spawn import ExecOk, StepFailed
from lowsuper.plan import NAMESPACES, SHIM, FdSource, Limit, Mount

NOBODY = 65534
NO_ID = 0xFFFFFFFF  # (uid_t)-1, which the kernel takes as "do not change"


def fail_plan(spawner, tmp_path):
    plan = make_plan("/bin/true")
    torn = spawn.pack(plan)[:-1] + b"x"  # the last string has no end
    return outcome_of(spawner, plan, packed=torn)


def fail_fork(spawner, tmp_path):
    # A user that nobody else is: this process, the shim, and then no more.
    return in_child(
        lambda: outcome_of(spawner, make_plan("/bin/true", role=SHIM)),
        uid=1_000_000 + os.getpid(),
        limits={resource.RLIMIT_NPROC: 2},
    )


def fail_cgroup(spawner, tmp_path):
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        return outcome_of(spawner, make_plan("/bin/true"), leaf_fd=directory, self_write=True)
    finally:
        os.close(directory)


def fail_setsid(spawner, tmp_path, helper):
    return run_helper(make_plan("/bin/true"), tmp_path, leader=True, helper=helper)


def fail_fds(spawner, tmp_path):
    missing = FdSource(7, path=os.fsencode(tmp_path / "missing"))
    return outcome_of(spawner, make_plan("/bin/true", fds=(NULL, FdSource(2, 2), missing)))


def fail_log(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", log=b"/missing/web.log"))


def fail_oom_score(spawner, tmp_path):
    return in_child(lambda: outcome_of(spawner, make_plan("/bin/true", oom_score=-1)), uid=NOBODY)


def fail_oom_score_range(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", oom_score=1001))


def fail_nice(spawner, tmp_path):
    return in_child(lambda: outcome_of(spawner, make_plan("/bin/true", nice=-1)), uid=NOBODY)


def fail_namespaces(spawner, tmp_path):
    plan = make_plan("/bin/true", namespaces=NAMESPACES["uts"] | NAMESPACES["ipc"])
    return in_child(lambda: outcome_of(spawner, plan), uid=NOBODY)


def fail_hostname(spawner, tmp_path):
    plan = make_plan("/bin/true", namespaces=NAMESPACES["uts"], hostname=b"x" * 65)
    return outcome_of(spawner, plan)


def fail_netns(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", netns=os.fsencode(tmp_path / "missing")))


def fail_netns_of_another_kind(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", netns=b"/proc/self/ns/uts"))


def fail_fence(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true"), fence=1)


def fail_netns_fifo(spawner, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return outcome_of(spawner, make_plan("/bin/true", netns=os.fsencode(tmp_path / "fifo")))


def fail_root(spawner, tmp_path):
    plan = make_plan("/bin/true", namespaces=NAMESPACES["mount"], root=b"/dev/null")
    return outcome_of(spawner, plan)


def fail_root_of_host(spawner, tmp_path):
    # Without a mount namespace of its own it is the host's table that would change.
    return outcome_of(spawner, make_plan("/bin/true", root=os.fsencode(tmp_path)))


def fail_proc_of_host(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", own_proc=True))


def fail_mounts_of_host(spawner, tmp_path):
    mounts = (Mount(b"/tmp", os.fsencode(tmp_path)),)
    plan = make_plan("/bin/true", mounts=mounts, namespaces=NAMESPACES["uts"])
    return outcome_of(spawner, plan)


def fail_hostname_of_host(spawner, tmp_path):
    plan = make_plan("/bin/true", hostname=b"x", namespaces=NAMESPACES["mount"])
    return outcome_of(spawner, plan)


def fail_proc(spawner, tmp_path):
    plan = make_plan("/bin/true", namespaces=NAMESPACES["mount"], own_proc=True)
    return outcome_of(spawner, plan.replace(root=os.fsencode(tmp_path)))


def fail_sources(spawner, tmp_path):
    mounts = (Mount(b"/tmp", b"/tmp"), Mount(b"/missing", b"/tmp"))
    plan = make_plan("/bin/true", namespaces=NAMESPACES["mount"], mounts=mounts)
    return outcome_of(spawner, plan)


def fail_mounts(spawner, tmp_path):
    mounts = (Mount(b"/tmp", b"/tmp"), Mount(b"/tmp", b"/missing"))
    plan = make_plan("/bin/true", namespaces=NAMESPACES["mount"], mounts=mounts)
    return outcome_of(spawner, plan)


def fail_caps(spawner, tmp_path):
    # As it has them by default, a user can take none of root's away.
    return in_child(lambda: outcome_of(spawner, make_plan("/bin/true", caps=0)), uid=NOBODY)


def fail_caps_missing(spawner, tmp_path):
    # In the bounding set, which nobody changes here, but not permitted.
    everything = bounding_set()
    lowest = (everything & -everything).bit_length() - 1
    assert lowest == 0
    return in_child(
        lambda: outcome_of(spawner, make_plan("/bin/true", caps=everything)), uid=NOBODY
    )


def fail_caps_unknown(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", caps=bounding_set() | 1 << 63))


def fail_caps_unbound(spawner, tmp_path):
    def act():
        ctypes.CDLL(None).prctl(24, 0, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_CHOWN
        return outcome_of(spawner, make_plan("/bin/true", caps=1))

    return in_child(act)


def bounding_set() -> int:
    """Return the capabilities that may be had here, which in a container are not all."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("CapBnd:")[2].split()[0], 16)


def fail_rlimits(spawner, tmp_path):
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    limits = (Limit(resource.RLIMIT_CORE, 0, 0), Limit(resource.RLIMIT_NOFILE, 16, most + 1))
    return outcome_of(spawner, make_plan("/bin/true", limits=limits))


def fail_rlimits_as_user(spawner, tmp_path):
    limits = (Limit(resource.RLIMIT_CORE, 0, -1),)
    return in_child(
        lambda: outcome_of(spawner, make_plan("/bin/true", limits=limits)),
        uid=NOBODY,
        limits={resource.RLIMIT_CORE: 0},
    )


def fail_chdir(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", chdir=os.fsencode(tmp_path / "missing")))


def fail_chdir_file(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", chdir=b"/dev/null"))


def fail_setgroups(spawner, tmp_path):
    plan = make_plan("/bin/true", groups=(1, 2))
    return in_child(lambda: outcome_of(spawner, plan), uid=NOBODY)


def fail_setresgid(spawner, tmp_path):
    return in_child(lambda: outcome_of(spawner, make_plan("/bin/true", gid=0)), uid=NOBODY)


def fail_setresgid_unchanged(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", gid=NO_ID))


def fail_setresuid(spawner, tmp_path):
    return in_child(lambda: outcome_of(spawner, make_plan("/bin/true", uid=0)), uid=NOBODY)


def fail_setresuid_unchanged(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/bin/true", uid=NO_ID))


def fail_pdeathsig(spawner, tmp_path):
    # A spawner of a process that is dead when its helper looks.
    with Run(spawner, make_plan("/bin/true")) as dead:
        dead.wait()
        request = spawner._request
        master, request.master_fd = request.master_fd, dead.child.pidfd
        try:
            return outcome_of(spawner, make_plan("/bin/true"))
        finally:
            request.master_fd = master


def fail_execve(spawner, tmp_path):
    return outcome_of(spawner, make_plan(str(tmp_path / "missing")))


def fail_execve_permission(spawner, tmp_path):
    # EACCES is remembered over a later ENOENT: "not found" would be a lie.
    programs = (b"/missing", b"/dev/null", b"/missing/too")
    return outcome_of(spawner, make_plan("/bin/true", programs=programs))


def fail_execve_script(spawner, tmp_path):
    script = tmp_path / "script"
    script.write_text("echo no interpreter\n")
    script.chmod(0o755)
    return outcome_of(spawner, make_plan(str(script)))


def fail_execve_interpreter(spawner, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/missing/interpreter\n")
    script.chmod(0o755)
    return outcome_of(spawner, make_plan(str(script)))


def fail_execve_directory(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/tmp"))


def fail_execve_not_directory(spawner, tmp_path):
    return outcome_of(spawner, make_plan("/dev/null/program"))


def fail_execve_size(spawner, tmp_path):
    # One argument may have 128 kB: see execve(2), MAX_ARG_STRLEN.
    return outcome_of(spawner, make_plan("/bin/true", "x" * 131_072))


def fail_execve_name(spawner, tmp_path):
    programs = (b"/missing", b"/" + b"x" * 300, b"/bin/true")
    return outcome_of(spawner, make_plan("/bin/true", programs=programs))


CASES = (
    (fail_plan, StepFailed("plan", EINVAL, 1)),
    (fail_fork, StepFailed("fork", EAGAIN, 0)),
    (fail_cgroup, StepFailed("cgroup", ENOENT, 0)),
    (fail_setsid, StepFailed("setsid", EPERM, 0)),
    (fail_fds, StepFailed("fds", ENOENT, 2)),
    (fail_log, StepFailed("log", ENOENT, 0)),
    (fail_oom_score, StepFailed("oom_score", EACCES, 0)),
    (fail_oom_score_range, StepFailed("oom_score", EINVAL, 0)),
    (fail_nice, StepFailed("nice", EACCES, 0)),
    (fail_namespaces, StepFailed("namespaces", EPERM, NAMESPACES["uts"])),
    (fail_netns, StepFailed("netns", ENOENT, 0)),
    (fail_netns_of_another_kind, StepFailed("netns", EINVAL, 1)),
    (fail_netns_fifo, StepFailed("netns", EINVAL, 1)),
    (fail_fence, StepFailed("fence", ETIME, 0)),
    (fail_hostname, StepFailed("hostname", EINVAL, 0)),
    (fail_root, StepFailed("root", ENOTDIR, 0)),
    (fail_root_of_host, StepFailed("namespaces", EINVAL, 0)),
    (fail_proc_of_host, StepFailed("namespaces", EINVAL, 0)),
    (fail_mounts_of_host, StepFailed("namespaces", EINVAL, 0)),
    (fail_hostname_of_host, StepFailed("namespaces", EINVAL, 0)),
    (fail_proc, StepFailed("proc", ENOENT, 0)),
    (fail_sources, StepFailed("mounts", ENOENT, 1)),
    (fail_mounts, StepFailed("mounts", ENOENT, 1)),
    (fail_caps, StepFailed("caps", EPERM, 0)),
    (fail_caps_missing, StepFailed("caps", EPERM, 0)),
    (fail_caps_unknown, StepFailed("caps", EINVAL, 63)),
    (fail_caps_unbound, StepFailed("caps", EPERM, 0)),
    (fail_rlimits, StepFailed("rlimits", EPERM, 1)),
    (fail_rlimits_as_user, StepFailed("rlimits", EPERM, 0)),
    (fail_chdir, StepFailed("chdir", ENOENT, 0)),
    (fail_chdir_file, StepFailed("chdir", ENOTDIR, 0)),
    (fail_setgroups, StepFailed("setgroups", EPERM, 0)),
    (fail_setresgid, StepFailed("setresgid", EPERM, 0)),
    (fail_setresgid_unchanged, StepFailed("setresgid", EINVAL, 0)),
    (fail_setresuid, StepFailed("setresuid", EPERM, 0)),
    (fail_setresuid_unchanged, StepFailed("setresuid", EINVAL, 0)),
    (fail_pdeathsig, StepFailed("pdeathsig", ESRCH, 0)),
    (fail_execve, StepFailed("execve", ENOENT, 0)),
    (fail_execve_permission, StepFailed("execve", EACCES, 1)),
    (fail_execve_script, StepFailed("execve", ENOEXEC, 0)),
    (fail_execve_interpreter, StepFailed("execve", ENOENT, 0)),
    (fail_execve_directory, StepFailed("execve", EACCES, 0)),
    (fail_execve_not_directory, StepFailed("execve", ENOTDIR, 0)),
    (fail_execve_size, StepFailed("execve", E2BIG, 0)),
    (fail_execve_name, StepFailed("execve", ENAMETOOLONG, 1)),
)

CANNOT_FAIL = {
    "none": "is no step",
    "umask": "umask(2): this system call always succeeds",
    "no_new_privs": "prctl(2): EINVAL before Linux 3.5 only",
    "signals": "sigaction(2): EINVAL only for SIGKILL, SIGSTOP and numbers that do not exist",
}


def step_names() -> set[str]:
    steps = range(native.lib.LOWSUPER_STEP_COUNT)
    return {native.ffi.string(native.lib.lowsuper_step_name(step)).decode() for step in steps}


def test_steps_each_have_a_case():
    assert step_names() == {expected.step for _, expected in CASES} | CANNOT_FAIL.keys()


@pytest.mark.parametrize(
    ("fail", "expected"), CASES, ids=[case.__name__.removeprefix("fail_") for case, _ in CASES]
)
@pytest.mark.usefixtures("root")
def test_step_when_it_fails_says_step_errno_and_index(spawner, helper, tmp_path, fail, expected):
    more = (helper,) if fail is fail_setsid else ()
    assert fail(spawner, tmp_path, *more) == expected


def test_step_name_when_out_of_range_is_unknown():
    for step in (-1, native.lib.LOWSUPER_STEP_COUNT, 1 << 30):
        assert native.ffi.string(native.lib.lowsuper_step_name(step)) == b"unknown"


def test_spawn_when_step_fails_child_ends_with_127(spawner):
    with Run(spawner, make_plan("/missing")) as run:
        assert run.wait() == 127 << 8
        assert run.outcome() == StepFailed("execve", ENOENT, 0)


def test_spawn_when_killed_before_exec_says_died_before(spawner, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # The helper hangs in open(2) and the master does not: it comes back to kill it.
    plan = make_plan("/bin/true", fds=(FdSource(0, path=os.fsencode(fifo)),))
    with Run(spawner, plan) as run:
        native.pidfd_send_signal(run.child.pidfd, 9)
        assert run.wait() == 9
        assert run.outcome() == spawn.DiedBefore()


def test_spawn_when_programs_are_missing_takes_the_first_that_is_there(spawner):
    programs = (b"/missing/true", b"/dev/null/true", b"/dev/null", b"/bin/true", b"/missing")
    with Run(spawner, make_plan("true", programs=programs)) as run:
        assert run.outcome() == ExecOk()
        assert run.wait() == 0


def test_spawn_when_source_is_closed_raises_and_starts_nothing(plain_spawner):
    closed = os.dup(0)
    os.close(closed)
    with pytest.raises(KernelError) as raised:
        plain_spawner.spawn(make_plan("/bin/true", fds=(NULL, FdSource(1, closed))))
    assert (raised.value.call, raised.value.errno) == ("fcntl", EBADF)
    assert raised.value.subject == "web"


def test_pack_when_string_has_nul_byte_raises():
    with pytest.raises(KernelError, match="NUL"):
        spawn.pack(make_plan("/bin/echo", "a\0b"))


def test_spawner_when_helper_is_missing_says_so(tmp_path):
    with pytest.raises(KernelError, match="not installed completely"):
        spawn.Spawner(helper=str(tmp_path / "missing"))


@pytest.mark.parametrize("way", [spawn.CLONE3, spawn.CLONE])
def test_spawn_when_helper_is_not_executable_raises(way, tmp_path):
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\n")
    spawner = spawn.Spawner(way=way, helper=str(helper))
    with pytest.raises(KernelError) as raised:
        spawner.spawn(make_plan("/bin/true"))
    spawner.close()
    assert (raised.value.call, raised.value.errno) == ("execveat", EACCES)
