"""Stage 1 is nothing but system calls, and stage 2 makes its own in the documented order."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess

import pytest
from spawning import NULL, SOURCES, make_plan, run_helper

from lowsuper.kernel.spawn import ExecOk
from lowsuper.plan import LOG_FD, NAMESPACES, FdSource, Limit, Mount

ALLOWED = {
    *("clone", "close", "fcntl", "memfd_create", "pipe2", "socketpair", "syscall", "waitpid"),
    *("writev", "_exit", "__errno_location", "memset", "memcpy"),
    *("__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"),  # of the compiler's own
}

WARNINGS = (
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wvla", "-Wmissing-prototypes"),
    "-Werror",
)

ORDER = (
    r"openat\(.*\"cgroup.procs\"",
    r"write\(\d+, \"0\", 1\)",
    r"setsid\(\)",
    r"(open|openat)\(.*\"/\", .*O_PATH",
    r"openat\(\d+, \"null\", O_WRONLY.*O_APPEND.*O_NOFOLLOW",
    r"fcntl\(\d+, F_DUPFD_CLOEXEC",
    r"close_range\(0, \d+, CLOSE_RANGE_CLOEXEC\)",
    r"dup2\(\d+, 0\)",
    r"(open|openat)\(.*\"/proc/self/oom_score_adj\"",
    r"write\(\d+, \"500\", 3\)",
    r"setpriority\(PRIO_PROCESS, 0, 5\)",
    r"(open|openat)\(.*\"/proc/self/autogroup\"",
    r"(open|openat)\(.*\"/proc/self/ns/net\", O_RDONLY\|O_NOCTTY\|O_NONBLOCK\|O_CLOEXEC",
    r"setns\(\d+, CLONE_NEWNET\)",
    r"unshare\(CLONE_NEWNS\)",
    r"mount\(NULL, \"/\", NULL, MS_REC\|MS_PRIVATE",
    r"unshare\(CLONE_NEWUTS\)",
    r"sethostname\(\"jail\"",
    r"openat2\(AT_FDCWD, \"/usr\".*RESOLVE_NO_MAGICLINKS",
    r"open_tree\(.*OPEN_TREE_CLONE",
    r"mount_setattr\(.*MOUNT_ATTR_RDONLY",
    r"openat2\(AT_FDCWD, \"/\".*RESOLVE_NO_MAGICLINKS",
    r"open_tree\(.*OPEN_TREE_CLONE",
    r"move_mount\(",
    r"fchdir\(",
    r"pivot_root\(\".\", \".\"\)",
    r"umount2\(\".\", MNT_DETACH\)",
    r"chdir\(\"/\"\)",
    r"mount\(\"proc\", \"/proc\", \"proc\"",
    r"openat2\(AT_FDCWD, \"/usr\".*RESOLVE_NO_MAGICLINKS",
    r"move_mount\(",
    r"(setrlimit|prlimit64)\((0, )?RLIMIT_CORE",
    r"chdir\(\"/\"\)",
    r"prctl\(PR_CAPBSET_DROP, CAP_CHOWN",
    r"prctl\(PR_CAPBSET_READ, CAP_NET_BIND_SERVICE",
    r"setgroups\(",
    r"setresgid\(",
    r"getresgid\(",
    r"prctl\(PR_SET_KEEPCAPS, 1",
    r"setresuid\(",
    r"getresuid\(",
    r"capget\(",
    r"capset\(.*effective=1<<CAP_NET_BIND_SERVICE",
    r"prctl\(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL",
    r"prctl\(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE",
    r"capget\(",
    r"prctl\(PR_SET_NO_NEW_PRIVS, 1",
    r"prctl\(PR_SET_PDEATHSIG, SIGKILL",
    r"poll\(|ppoll\(",
    r"umask\(",
    r"rt_sigaction\(SIGHUP, \{sa_handler=SIG_DFL",
    r"write\(\d+, ",
    r"rt_sigprocmask\(SIG_SETMASK, \[\]",
    r"execve\(\"/missing\"",
    r"execve\(\"/bin/true\"",
)


@pytest.mark.usefixtures("needs_compiler")
def test_stage_1_needs_only_system_calls(tmp_path):
    if not shutil.which("nm"):
        pytest.skip("needs: nm")
    compiler = shutil.which("cc") or "gcc"
    target = tmp_path / "spawn.o"
    source = SOURCES / "spawn.c"
    flags = ("-std=gnu11", "-O2", "-fPIC", "-U_FORTIFY_SOURCE")
    subprocess.run([compiler, *flags, "-c", "-o", target, source], check=True, timeout=300)
    output = subprocess.run(
        ["nm", "-u", target], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert {line.split()[-1] for line in output.splitlines()} <= ALLOWED


@pytest.mark.usefixtures("needs_compiler")
def test_sources_have_no_warnings(tmp_path):
    compiler = shutil.which("cc") or "gcc"
    for source in sorted(SOURCES.glob("*.c")):
        if source.name == "tiny.c" and os.uname().machine != "x86_64":
            continue
        command = [compiler, "-std=gnu11", "-Os", *WARNINGS, "-c", "-o", tmp_path / "o", source]
        subprocess.run(command, check=True, timeout=300)


@pytest.mark.usefixtures("root")
def test_stage_2_makes_its_calls_in_order(cgroup, tmp_path):
    if not shutil.which("strace"):
        pytest.skip("needs: strace")
    trace = tmp_path / "trace"
    leaf = cgroup / "leaf"
    leaf.mkdir()
    plan = make_plan(
        "/bin/true",
        programs=(b"/missing", b"/bin/true"),
        chdir=b"/",
        uid=65534,
        gid=65534,
        groups=(),
        umask=0o22,
        nice=5,
        oom_score=500,
        no_new_privs=True,
        caps=1 << 10,
        namespaces=NAMESPACES["mount"] | NAMESPACES["uts"],
        hostname=b"jail",
        netns=b"/proc/self/ns/net",
        root=b"/",
        own_proc=True,
        mounts=(Mount(b"/usr", b"/usr", read_only=True),),
        limits=(Limit(resource.RLIMIT_CORE, 0, 0),),
        fds=(NULL, FdSource(1, LOG_FD), FdSource(2, 2)),
        log=b"/dev/null",
    )
    leaf_fd = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
    try:
        strace = ("strace", "-o", str(trace))
        assert run_helper(plan, tmp_path, *strace, leaf_fd=leaf_fd) == ExecOk()
    finally:
        os.close(leaf_fd)
    lines = iter(trace.read_text().splitlines())
    for pattern in ORDER:
        assert any(re.match(pattern, line) for line in lines), f"{pattern} is not in its place"
