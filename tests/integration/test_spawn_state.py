"""What a daemon gets: its descriptors and no others, signals, identity, limits, environment."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import struct
from errno import ENOSYS, EPERM
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spawning import NULL, Run, has_happened, in_child, make_plan, read_all, read_exactly

from lowsuper.kernel import native, process, spawn
from lowsuper.kernel.spawn import ExecOk
from lowsuper.plan import FdSource, Limit

NOBODY = 65534


def status_of(pid: int) -> dict[str, str]:
    """Return the lines of /proc/PID/status by their names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def files_of(pid: int) -> dict[int, tuple[int, int]]:
    """Return device and inode number of every descriptor of a process."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        status = os.stat(f"/proc/{pid}/fd/{name}")
        found[int(name)] = (status.st_dev, status.st_ino)
    return found


def identity(file: int | bytes) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fds_are_exactly_the_map(spawner, still, tmp_path, data):
    with contextlib.ExitStack() as stack:
        files = [os.open(tmp_path / f"file{n}", os.O_RDWR | os.O_CREAT) for n in range(3)]
        for fd in files:
            stack.callback(os.close, fd)
        sources = st.one_of(
            st.sampled_from([0, 1, 2, *files]).map(lambda fd: (fd, b"")),
            st.sampled_from([b"/dev/null", b"/dev/zero"]).map(lambda path: (-1, path)),
        )
        # Targets in any order, among them the numbers of the sources and of the helper's own.
        chosen = data.draw(st.dictionaries(st.integers(0, 24), sources, max_size=12))
        order = data.draw(st.permutations(list(chosen)))
        fds = tuple(FdSource(target, chosen[target][0], chosen[target][1]) for target in order)
        flags = {fd: os.get_inheritable(fd) for fd in (0, 1, 2, *files)}
        run = stack.enter_context(Run(spawner, make_plan(still, fds=fds)))
        assert run.outcome() == ExecOk()
        assert files_of(run.child.pid) == {
            target: identity(path if fd < 0 else fd) for target, (fd, path) in chosen.items()
        }
        assert flags == {fd: os.get_inheritable(fd) for fd in (0, 1, 2, *files)}


def test_fds_when_source_is_used_twice_keeps_it_close_on_exec(plain_spawner, still):
    reader, writer = os.pipe()
    with Run(
        plain_spawner, make_plan(still, fds=(FdSource(1, writer), FdSource(2, writer)))
    ) as run:
        assert run.outcome() == ExecOk()
        assert not os.get_inheritable(writer)
        assert files_of(run.child.pid) == {1: identity(writer), 2: identity(writer)}
    os.close(reader)
    os.close(writer)


def test_fds_when_path_is_made_has_flags_and_mode(plain_spawner, tmp_path):
    path = tmp_path / "out"
    source = FdSource(1, path=os.fsencode(path), flags=os.O_WRONLY | os.O_CREAT, mode=0o640)
    with Run(plain_spawner, make_plan("/bin/echo", "hello", fds=(NULL, source))) as run:
        assert run.wait() == 0
    assert path.read_text() == "hello\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_signals_are_default_and_unblocked(spawner, still):
    # CPython ignores SIGPIPE and SIGXFSZ; add more, and a mask.
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGRTMAX)
    old = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with Run(spawner, make_plan(still)) as run:
            assert run.outcome() == ExecOk()
            status = status_of(run.child.pid)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {*mask, signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in old.items():
            signal.signal(number, handler)
    for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
        assert int(status[name], 16) == 0, name


IDENTITY = """
#define _GNU_SOURCE
#include <grp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(void)
{
    uid_t ids[3];
    gid_t groups[100];
    int deathsig = -1;
    getresuid(ids, ids + 1, ids + 2);
    printf("%u %u %u\\n", ids[0], ids[1], ids[2]);
    getresgid(ids, ids + 1, ids + 2);
    printf("%u %u %u\\n", ids[0], ids[1], ids[2]);
    int count = getgroups(100, groups);
    for (int i = 0; i < count; i++)
        printf("%u ", groups[i]);
    prctl(PR_GET_PDEATHSIG, &deathsig);
    printf("\\n%d %d\\n", deathsig, getsid(0) == getpid());
}
"""
"""Only the process itself can ask for its parent-death signal."""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("dies", [False, True])
def test_identity_is_changed_for_good_and_pdeathsig_set_after_it(spawner, compiled, dies):
    reader, writer = os.pipe()
    plan = make_plan(
        compiled("identity", IDENTITY),
        uid=NOBODY,
        gid=12345,
        groups=(7, 8),
        dies_with_master=dies,
        fds=(NULL, FdSource(1, writer), FdSource(2, 2)),
    )
    with Run(spawner, plan) as run:
        os.close(writer)
        assert run.outcome() == ExecOk()
        text = read_all(reader).decode()
    os.close(reader)
    signal_at_death = int(signal.SIGKILL) if dies else 0
    ids = f"{NOBODY} {NOBODY} {NOBODY}\n12345 12345 12345\n7 8 \n"
    assert text == f"{ids}{signal_at_death} 1\n"


@pytest.mark.usefixtures("root")
def test_identity_when_groups_are_empty_clears_them(plain_spawner, still):
    with Run(plain_spawner, make_plan(still, uid=NOBODY, gid=NOBODY, groups=())) as run:
        assert run.outcome() == ExecOk()
        status = status_of(run.child.pid)
    assert status["Groups"] == ""
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0


def test_environment_directory_umask_and_limits_are_the_plans(spawner, tmp_path):
    reader, writer = os.pipe()
    plan = make_plan(
        "/bin/sh",
        "-c",
        'pwd; umask; ulimit -n; ulimit -Hn; echo "$0,$A,$B"',
        "with space",
        chdir=os.fsencode(tmp_path),
        umask=0o27,
        limits=(Limit(resource.RLIMIT_NOFILE, 33, 44),),
        envp=(b"A=1", b"B=x y"),
        fds=(NULL, FdSource(1, writer), FdSource(2, 2)),
    )
    with Run(spawner, plan):
        os.close(writer)
        assert read_all(reader).decode().split("\n") == [
            str(tmp_path),
            "0027",
            "33",
            "44",
            "with space,1,x y",
            "",
        ]
    os.close(reader)


NET_BIND_SERVICE, KILL = 1 << 10, 1 << 5


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("uid", [None, 0, NOBODY])
@pytest.mark.parametrize("caps", [0, KILL, NET_BIND_SERVICE | KILL])
@pytest.mark.parametrize("no_new_privs", [False, True])
def test_caps_are_what_is_kept_whoever_it_becomes(spawner, still, uid, caps, no_new_privs):
    plan = make_plan(still, uid=uid, caps=caps, no_new_privs=no_new_privs)
    with Run(spawner, plan) as run:
        assert run.outcome() == ExecOk()
        status = status_of(run.child.pid)
    sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")}
    assert set(sets.values()) == {caps}, sets
    assert int(status["CapAmb"], 16) == caps


@pytest.mark.usefixtures("root")
def test_caps_leave_the_parent_death_signal(spawner, compiled):
    # A process that gains capabilities loses it: see commit_creds() in the kernel.
    reader, writer = os.pipe()
    plan = make_plan(
        compiled("identity", IDENTITY),
        uid=NOBODY,
        gid=NOBODY,
        groups=(),
        caps=NET_BIND_SERVICE,
        fds=(NULL, FdSource(1, writer), FdSource(2, 2)),
    )
    with Run(spawner, plan) as run:
        os.close(writer)
        assert run.outcome() == ExecOk()
        text = read_all(reader).decode()
    os.close(reader)
    assert text.endswith(f"\n{int(signal.SIGKILL)} 1\n")


@pytest.mark.parametrize("uid", [None, 65534])
def test_nice_oom_score_and_no_new_privs_are_the_plans(spawner, still, uid):
    if os.geteuid() != 0 and uid is not None:
        pytest.skip("needs: root")
    plan = make_plan(still, nice=7, oom_score=321, no_new_privs=True, uid=uid)
    with Run(spawner, plan) as run:
        assert run.outcome() == ExecOk()
        process = Path(f"/proc/{run.child.pid}")
        assert os.getpriority(os.PRIO_PROCESS, run.child.pid) == 7
        assert Path(process, "oom_score_adj").read_text() == "321\n"
        assert status_of(run.child.pid)["NoNewPrivs"] == "1"
        with contextlib.suppress(FileNotFoundError):  # a kernel without autogroups
            assert Path(process, "autogroup").read_text().endswith(" nice 7\n")
    assert "nice 7" not in Path("/proc/self/autogroup").read_text()


def test_nice_when_many_start_at_once_is_each_ones(plain_spawner, still):
    # A user may set the nice value of an autogroup once in 0.1 s only.
    def act():
        spawner = spawn.Spawner()
        with contextlib.ExitStack() as stack:
            plan = make_plan(still, nice=3)
            runs = [stack.enter_context(Run(spawner, plan)) for _ in range(4)]
            return [run.outcome() for run in runs]

    assert in_child(act, uid=NOBODY if os.geteuid() == 0 else None) == [ExecOk()] * 4


def test_session_is_the_daemons_own(spawner, still):
    with Run(spawner, make_plan(still)) as run:
        assert run.outcome() == ExecOk()
        assert os.getsid(run.child.pid) == os.getpgid(run.child.pid) == run.child.pid


def test_signal_when_sent_to_group_reaches_children(plain_spawner):
    reader, writer = os.pipe()
    plan = make_plan(
        "/bin/sh",
        "-c",
        "sleep 1000 & printf x; wait",
        fds=(NULL, FdSource(1, writer), FdSource(2, 2)),
    )
    with Run(plain_spawner, plan) as run:
        os.close(writer)
        assert read_exactly(reader, 1) == b"x"
        assert process.send_signal(run.child.pidfd, signal.SIGTERM, group=True)
        assert read_all(reader) == b""
        assert run.wait() == signal.SIGTERM
        assert not process.send_signal(run.child.pidfd, signal.SIGTERM)
    os.close(reader)


@pytest.mark.usefixtures("root")
def test_new_pid_namespace_without_init_makes_the_daemon_pid_1(spawner):
    reader, writer = os.pipe()
    fds = (NULL, FdSource(1, writer), FdSource(2, 2))
    with Run(spawner, make_plan("/bin/sh", "-c", "echo $$", fds=fds, new_pid_ns=True)) as run:
        os.close(writer)
        assert run.outcome() == ExecOk()
        assert read_all(reader) == b"1\n"
        assert run.wait() == 0
    os.close(reader)


@pytest.mark.parametrize("way", [spawn.AUTO, spawn.CLONE3, spawn.CLONE])
@pytest.mark.parametrize("self_write", [False, True])
def test_cgroup_is_entered_on_every_way(cgroup, still, way, self_write):
    leaf = cgroup / "web.1"
    leaf.mkdir()
    directory = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
    spawner = spawn.Spawner(way=way)
    with Run(spawner, make_plan(still), leaf_fd=directory, self_write=self_write) as run:
        assert run.outcome() == ExecOk()
        assert Path(leaf, "cgroup.procs").read_text() == f"{run.child.pid}\n"
        assert files_of(run.child.pid).keys() == {0, 1, 2}
        info = process.exit_info(run.child.pidfd)
        if info is not None:
            assert info.cgroup_id in (0, leaf.stat().st_ino)
    assert spawner.way == (spawn.CLONE if way == spawn.CLONE else spawn.CLONE3)
    spawner.close()
    os.close(directory)


def refuse_clone3(errno: int) -> None:
    """Install the seccomp filter of a container that knows nothing of clone3. See seccomp(2)."""
    clone3, allow, refuse = 435, 0x7FFF0000, 0x00050000 | errno
    load, equal, result = 0x20, 0x15, 0x06  # of the number; BPF_JEQ; BPF_RET
    program = struct.pack(
        "HBBI" * 4, load, 0, 0, 0, equal, 0, 1, clone3, result, 0, 0, refuse, result, 0, 0, allow
    )
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, header, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


@pytest.mark.parametrize("errno", [ENOSYS, EPERM])
def test_cgroup_when_clone3_is_refused_is_entered_by_the_helper(cgroup, still, errno):
    def act():
        refuse_clone3(errno)
        spawner = spawn.Spawner()
        answer = spawner.probe_into_cgroup(directory)
        with Run(spawner, make_plan(still), leaf_fd=directory) as run:
            outcome = run.outcome()
            members = Path(cgroup, "cgroup.procs").read_text() == f"{run.child.pid}\n"
        return answer, outcome, members, spawner.way

    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    assert in_child(act) == (False, ExecOk(), True, spawn.CLONE)
    os.close(directory)


def test_fds_when_source_is_high_reaches_the_helper(spawner, still):
    # Stage 1 gives the helper no more descriptors than it must.
    reader, writer = os.pipe()
    high = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 700)
    with Run(spawner, make_plan(still, fds=(FdSource(900, high), FdSource(0, 0)))) as run:
        assert run.outcome() == ExecOk()
        assert files_of(run.child.pid) == {0: identity(0), 900: identity(writer)}
        assert identity(high) == identity(writer)
    for fd in (reader, writer, high):
        os.close(fd)


def test_probe_says_whether_a_child_can_be_born_in_a_cgroup(cgroup, still):
    leaf = cgroup / "probe"
    leaf.mkdir()
    directory = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
    refused, forced = spawn.Spawner(way=spawn.CLONE), spawn.Spawner()
    assert not refused.probe_into_cgroup(directory)
    for kill in (False, True):
        if kill:
            Path(leaf, "cgroup.kill").write_text("1")
        answer = forced.probe_into_cgroup(directory)
        with Run(forced, make_plan(still), leaf_fd=directory, self_write=not answer) as run:
            assert run.outcome() == ExecOk()
    refused.close()
    forced.close()
    os.close(directory)


def test_error_pipe_has_hung_up_only_once_all_is_known(plain_spawner, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    plan = make_plan("/bin/true", fds=(FdSource(0, path=os.fsencode(fifo)),))
    with Run(plain_spawner, plan) as run, Run(plain_spawner, make_plan("/bin/true")) as other:
        # The second child does not hold the first one's pipe, nor the other way round.
        assert other.outcome() == ExecOk()
        assert not has_happened(run.child.error_fd, 0, timeout_ms=0)
        with pytest.raises(AssertionError):
            spawn.read_outcome(run.child.error_fd)
        writer = os.open(fifo, os.O_WRONLY)
        assert run.outcome() == ExecOk()
        os.close(writer)


def test_reap_when_alive_is_none_and_when_reaped_raises(plain_spawner):
    with Run(plain_spawner, make_plan("/bin/sh", "-c", "kill -SEGV $$")) as run:
        status = run.wait()
        assert os.WTERMSIG(status) == signal.SIGSEGV
        with pytest.raises(OSError, match="No child"):
            process.reap(run.child.pidfd)
    with Run(plain_spawner, make_plan("/bin/sleep", "1000")) as run:
        assert process.reap(run.child.pidfd) is None
        assert process.peek_child() == 0
        assert native.pid_of(run.child.pidfd) == run.child.pid
        process.send_signal(run.child.pidfd, signal.SIGKILL)
        assert has_happened(run.child.pidfd)
        assert process.peek_child() == run.child.pid
