"""The processes between the master and a daemon: the namespace's init and the shim."""

from __future__ import annotations

import os
import signal
import time
from errno import ENOENT
from pathlib import Path

import pytest
from role_runs import ANSWERING, DEEP, RoleRun
from spawn_masters import SpawnMaster
from spawning import (
    has_happened,
    read_all,
    wait_for,
)

from lowsuper.kernel import native, process, spawn
from lowsuper.kernel.spawn import Closed, MainExited, StepFailed
from lowsuper.plan import NSINIT, SHIM

pytestmark = pytest.mark.usefixtures("root")
SIGTERM, SIGKILL, SIGQUIT = int(signal.SIGTERM), int(signal.SIGKILL), int(signal.SIGQUIT)


@pytest.fixture(params=[NSINIT, SHIM])
def role(request: pytest.FixtureRequest) -> str:
    return request.param


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_role_tells_pid_pidfd_and_exit_code(spawner, role):
    with RoleRun(spawner, role, "printf x >&3; exit 9") as run:
        pid = run.start()
        assert pid not in (run.child.pid, 0)
        run.expect(b"x")
        assert run.receive() == MainExited(9 << 8, False)
        assert run.receive() == Closed()
        assert run.wait() == 9 << 8
        assert has_happened(run.main_pidfd)


def test_role_when_daemon_is_killed_tells_the_signal_and_ends_with_128_and_more(spawner, role):
    with RoleRun(spawner, role, "exec sleep 1000") as run:
        pid = run.start()
        assert parent_of(pid) == run.child.pid
        assert native.pid_of(run.main_pidfd) == pid
        assert process.send_signal(run.main_pidfd, SIGKILL)
        assert run.receive() == MainExited(SIGKILL, False)
        assert run.wait() == (128 + SIGKILL) << 8


def test_role_passes_signals_to_the_group_of_the_daemon(spawner, role):
    # No traps: a shell may start its next command between a signal and the trap.
    script = "sleep 1000 & setsid sh -c 'printf x >&3; exec sleep 1000' & exec sleep 1000"
    with RoleRun(spawner, role, script) as run:
        pid = run.start()
        run.expect(b"x")
        children = [int(child) for child in children_of(pid)]
        assert len(children) == 2
        member, outsider = sorted(children, key=lambda child: os.getpgid(child) != pid)
        pidfds = [os.pidfd_open(child) for child in (member, outsider)]
        assert spawn.send_signal(run.child.channel_fd, SIGTERM)
        assert run.receive() == MainExited(SIGTERM, True)
        wait_for(pidfds[0])
        assert not has_happened(pidfds[1], timeout_ms=0)
        for fd in pidfds:
            os.close(fd)


def test_role_when_step_fails_says_so_and_ends(spawner, role):
    with RoleRun(spawner, role, "", programs=(b"/missing",)) as run:
        assert run.outcome() == StepFailed("execve", ENOENT, 0)
        run.main_pidfd = run.receive().pidfd
        assert run.receive() == MainExited(127 << 8, False)
        assert run.wait() == 127 << 8


def test_role_stays_with_what_the_daemon_left_until_it_is_killed(spawner, role, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    env = {"envp": (b"PATH=/usr/bin:/bin", b"FIFO=" + os.fsencode(fifo))}
    # The rest is deaf to SIGTERM, has a session of its own, and an orphan below it.
    left = "setsid sh -c '(sleep 1000 &) ; printf x >&3; exec sleep 1000'"
    with RoleRun(spawner, role, f"trap '' TERM; {left} & read line <$FIFO; exit 3", **env) as run:
        run.start()
        run.expect(b"x")
        os.close(os.open(fifo, os.O_WRONLY))  # only now may the daemon end
        message = run.receive()
        assert message == MainExited(3 << 8, True)
        assert spawn.send_signal_all(run.child.channel_fd, SIGTERM)
        assert spawn.send_signal(run.child.channel_fd, SIGKILL)  # for the daemon, which is gone
        assert not has_happened(run.child.pidfd, timeout_ms=0)
        assert spawn.send_kill(run.child.channel_fd)
        assert read_all(run.pipe) == b""
        assert run.receive() == Closed()
        assert run.wait() == message.status
        assert not spawn.send_kill(run.child.channel_fd)


def test_role_signals_everything_in_the_domain(spawner, role):
    script = "setsid sh -c '(setsid sleep 1000 &); printf x >&3; exec sleep 1000' & exec sleep 1000"
    with RoleRun(spawner, role, script) as run:
        run.start()
        run.expect(b"x")
        assert spawn.send_signal_all(run.child.channel_fd, int(signal.SIGUSR1))
        assert read_all(run.pipe) == b""
        assert run.receive().status == signal.SIGUSR1
        assert run.wait() == (128 + signal.SIGUSR1) << 8


def test_role_reaps_orphans_and_ends_only_without_children(spawner, role):
    script = "for n in 1 2 3 4 5; do (sh -c 'exit 1' &); done; printf x >&3; exec sleep 1000"
    with RoleRun(spawner, role, script) as run:
        pid = run.start()
        run.expect(b"x")
        process.send_signal(run.main_pidfd, SIGTERM)
        assert run.receive().status == SIGTERM  # the orphans may not have ended yet
        assert run.wait() == (128 + SIGTERM) << 8
        assert read_all(run.pipe) == b""
        assert not Path(f"/proc/{pid}").exists()


def test_role_keeps_no_descriptors_of_the_daemon(spawner, role):
    with RoleRun(spawner, role, "printf x >&3; exec sleep 1000") as run:
        run.start()
        run.expect(b"x")
        links = sorted(
            os.readlink(f"/proc/{run.child.pid}/fd/{fd}").partition(":")[0]
            for fd in os.listdir(f"/proc/{run.child.pid}/fd")
            if fd != "2"
        )
        # The master's pidfd, the signalfd, the channel.
        assert links[0] in ("anon_inode", "pidfd")
        assert links[-1] == "socket"
        assert len(links) == 3
        assert os.readlink(f"/proc/{run.child.pid}/cwd") == "/"
        assert os.getsid(run.child.pid) == run.child.pid


def test_nsinit_forwards_what_comes_from_outside(spawner):
    with RoleRun(spawner, NSINIT, "printf x >&3; exec sleep 1000") as run:
        run.start()
        run.expect(b"x")
        assert process.send_signal(run.child.pidfd, SIGTERM)
        assert run.receive() == MainExited(SIGTERM, False)
        assert run.wait() == (128 + SIGTERM) << 8


def test_nsinit_ignores_what_comes_from_inside(spawner):
    script = "kill -TERM 1; kill -KILL 1; kill -INT 1; echo $$ >&3; exit 4"
    with RoleRun(spawner, NSINIT, script) as run:
        run.start()
        run.expect(b"2\n")
        assert run.receive() == MainExited(4 << 8, False)
        assert run.wait() == 4 << 8


def test_nsinit_when_killed_takes_the_namespace_with_it(spawner):
    script = "setsid sh -c 'printf x >&3; exec sleep 1000' & printf x >&3; exec sleep 1000"
    with RoleRun(spawner, NSINIT, script) as run:
        run.start()
        run.expect(b"xx")
        process.send_signal(run.child.pidfd, SIGKILL)
        assert read_all(run.pipe) == b""
        assert run.wait() == SIGKILL
        assert run.receive() == Closed()


def test_shim_when_killed_takes_the_daemon_with_it(spawner):
    with RoleRun(spawner, SHIM, "printf x >&3; exec sleep 1000") as run:
        run.start()
        run.expect(b"x")
        process.send_signal(run.child.pidfd, SIGKILL)
        assert read_all(run.pipe) == b""
        assert run.wait() == SIGKILL


def test_shim_kills_what_forks_as_fast_as_it_can(spawner):
    script = (
        "n=0\n"
        "while [ $n -lt 300 ]; do\n"
        "    (setsid sleep 1000 &); n=$((n+1)); [ $n != 40 ] || printf x >&3\n"
        "done; exec sleep 1000"
    )
    with RoleRun(spawner, SHIM, script) as run:
        run.start()
        run.expect(b"x")
        assert spawn.send_kill(run.child.channel_fd)
        assert read_all(run.pipe) == b""
        assert run.wait() == (128 + SIGKILL) << 8


@pytest.mark.parametrize("echo", [False, True])
def test_role_when_master_is_killed_leaves_nothing(helper, role, echo):
    with SpawnMaster(helper=helper, role=role, echo=echo) as master:
        if echo:
            master.ask()
        else:
            master.expect_three()
        child = master.open_pidfd(master.child)
        master.kill()
        master.expect_end()
        wait_for(child)


def test_role_when_daemon_survives_the_master_stays_with_it(helper, role):
    with SpawnMaster(helper=helper, role=role, echo=True, dies=False) as master:
        master.ask()
        child = master.open_pidfd(master.child)
        master.kill()
        for _ in range(3):
            master.ask()
        assert not has_happened(child, timeout_ms=0)
        master.stop_asking()
        master.expect_end()
        wait_for(child)


def wait_until_told(pid):
    """Wait until a role has read that it is to survive: it lets go of what was the master's.

    A namespace's init that has not read it yet dies with the master, as it has to.
    """
    end = time.monotonic() + 20
    while os.readlink(f"/proc/{pid}/fd/2") != "/dev/null":
        assert time.monotonic() < end, "it was not told"
        os.sched_yield()


def test_role_when_told_to_survive_outlives_the_master(helper, role):
    with SpawnMaster(helper=helper, role=role, echo=True, survive=True) as master:
        master.ask()
        child = master.open_pidfd(master.child)
        wait_until_told(master.child)
        master.kill()
        for _ in range(3):
            master.ask()
        assert not has_happened(child, timeout_ms=0)
        master.stop_asking()
        master.expect_end()
        wait_for(child)


def test_shim_heeds_what_a_master_said_just_before_its_death(helper):
    with SpawnMaster(helper=helper, role=SHIM, echo=True, survive_unread=True) as master:
        child = master.open_pidfd(master.child)
        master.kill()
        process.send_signal(child, signal.SIGCONT)
        for _ in range(3):
            master.ask()
        assert not has_happened(child, timeout_ms=0)
        master.stop_asking()
        master.expect_end()
        wait_for(child)


def test_role_that_survives_lets_go_of_the_master(spawner, role):
    with RoleRun(spawner, role, ANSWERING) as run:
        run.start()
        run.expect(b"x")
        assert spawn.send_survive(run.child.channel_fd)
        assert spawn.send_survive(run.child.channel_fd)
        run.expect_answer()
        directory = f"/proc/{run.child.pid}/fd"
        links = {int(fd): os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)}
        assert links.pop(2) == "/dev/null"
        # The signalfd and the channel.
        assert sorted(link.partition(":")[0] for link in links.values()) == ["anon_inode", "socket"]
        # It obeys as before.
        assert spawn.send_kill(run.child.channel_fd)
        assert read_all(run.pipe) == b""
        assert run.receive().status == SIGKILL
        assert run.wait() == (128 + SIGKILL) << 8


def test_role_that_survives_and_is_left_stays_until_its_domain_is_empty(spawner, role):
    script = "setsid sh -c 'printf x >&3; exec sleep 1000' & printf x >&3; exit 3"
    with RoleRun(spawner, role, script) as run:
        run.start()
        run.expect(b"xx")
        wait_for(run.main_pidfd)
        # What the role says of that is not read any more: the channel breaks instead of ending.
        wait_for(run.child.channel_fd)
        run.orphan()
        (left,) = map(int, children_of(run.child.pid))
        with os.fdopen(os.pidfd_open(left)) as pidfd:
            assert not has_happened(run.child.pidfd, timeout_ms=50)
            process.send_signal(pidfd.fileno(), SIGTERM)
            assert run.wait() == 3 << 8


def test_shim_that_is_left_without_having_to_survive_kills_all(spawner):
    with RoleRun(spawner, SHIM, DEEP + "exec sleep 1000") as run:
        run.start()
        run.expect(b"xx")
        os.close(run.child.channel_fd)
        run.child.channel_fd = -1
        assert read_all(run.pipe) == b""
        assert run.wait() == (128 + SIGKILL) << 8


def test_shim_ignores_signals_until_it_is_an_orphan(spawner):
    with RoleRun(spawner, SHIM, ANSWERING) as run:
        run.start()
        run.expect(b"x")
        for number in (SIGTERM, SIGQUIT, int(signal.SIGHUP), int(signal.SIGINT)):
            assert process.send_signal(run.child.pidfd, number)
        run.expect_answer()
        assert spawn.send_survive(run.child.channel_fd)
        for number in (SIGTERM, SIGQUIT):
            assert process.send_signal(run.child.pidfd, number)
        run.expect_answer()
        run.orphan()
        # Neither what came before it was one, nor other signals.
        for number in (int(signal.SIGHUP), int(signal.SIGINT), int(signal.SIGUSR1)):
            assert process.send_signal(run.child.pidfd, number)
        process.send_signal(run.main_pidfd, int(signal.SIGUSR1))
        run.expect(b"u")
        assert process.send_signal(run.child.pidfd, SIGTERM)
        assert read_all(run.pipe) == b""
        assert run.wait() == (128 + SIGTERM) << 8


@pytest.mark.parametrize("number", [SIGTERM, SIGQUIT])
def test_orphaned_shim_takes_a_signal_for_all_below_it(spawner, number):
    with RoleRun(spawner, SHIM, DEEP + "exec sleep 1000") as run:
        run.start()
        run.expect(b"xx")
        run.orphan()
        # At once: it may see both in the same turn.
        assert process.send_signal(run.child.pidfd, number)
        assert read_all(run.pipe) == b""
        ended_by = SIGTERM if number == SIGTERM else SIGKILL
        assert run.wait() == (128 + ended_by) << 8


def test_orphaned_shim_kills_what_is_deaf_and_whose_parent_is_gone(spawner):
    script = f"trap '' TERM; {DEEP} exit 5"
    with RoleRun(spawner, SHIM, script) as run:
        run.start()
        run.expect(b"xx")
        run.orphan()
        wait_for(run.main_pidfd)
        assert process.send_signal(run.child.pidfd, SIGTERM)
        assert not has_happened(run.child.pidfd, timeout_ms=50)
        assert process.send_signal(run.child.pidfd, SIGQUIT)
        assert read_all(run.pipe) == b""
        assert run.wait() == 5 << 8


def test_orphaned_nsinit_forwards_to_the_daemon(spawner):
    with RoleRun(spawner, NSINIT, ANSWERING) as run:
        run.start()
        run.expect(b"x")
        run.orphan()
        assert process.send_signal(run.child.pidfd, int(signal.SIGUSR1))
        run.expect(b"u")
        assert process.send_signal(run.child.pidfd, SIGTERM)
        wait_for(run.main_pidfd)
        # Its child has lived on; the daemon is gone, so it is for all now.
        assert not has_happened(run.child.pidfd, timeout_ms=0)
        assert process.send_signal(run.child.pidfd, SIGTERM)
        assert read_all(run.pipe) == b""
        assert run.wait() == (128 + SIGTERM) << 8


def test_orphaned_nsinit_when_killed_takes_the_namespace_with_it(spawner):
    with RoleRun(spawner, NSINIT, DEEP + "exec sleep 1000") as run:
        run.start()
        run.expect(b"xx")
        run.orphan()
        assert process.send_signal(run.child.pidfd, SIGKILL)
        assert read_all(run.pipe) == b""
        assert run.wait() == SIGKILL


def test_orphaned_shim_when_killed_takes_the_daemon_with_it(spawner):
    with RoleRun(spawner, SHIM, "printf x >&3; exec sleep 1000") as run:
        run.start()
        run.expect(b"x")
        run.orphan()
        process.send_signal(run.child.pidfd, SIGKILL)
        wait_for(run.main_pidfd)
        assert read_all(run.pipe) == b""
        assert run.wait() == SIGKILL


def test_survive_to_a_role_that_is_gone_says_so(spawner, role):
    with RoleRun(spawner, role, "exit 0") as run:
        run.start()
        assert run.wait() == 0
        assert not spawn.send_survive(run.child.channel_fd)


def test_exec_when_master_is_killed_kills_the_daemon_itself(helper):
    with SpawnMaster(helper=helper, echo=True) as master:
        master.ask()
        master.kill()
        master.expect_end()


def test_exec_when_daemon_survives_the_master_lives_on(helper):
    with SpawnMaster(helper=helper, echo=True, dies=False) as master:
        master.ask()
        master.kill()
        master.ask()
        master.stop_asking()
        master.expect_end()
