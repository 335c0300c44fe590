"""The guard: what it kills when the master dies, what at a deadline, and what it lets live."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from spawn_fixtures import wait_until_empty
from spawn_masters import SpawnMaster
from spawning import Run, has_happened, make_plan, wait_for

from lowsuper.errors import KernelError
from lowsuper.kernel import native, process, spawn
from lowsuper.kernel.guard import (
    MOST_DOMAINS,
    Guard,
    GuardAdded,
    GuardExpired,
    GuardFull,
    note_deadline,
    start_guard,
)
from lowsuper.kernel.spawn import Closed, ExecOk

SIGKILL = int(signal.SIGKILL)
SECOND = 1_000_000_000


@pytest.fixture
def instance(cgroup: Path) -> Path:
    """The cgroup of an instance, as a master makes it, below the test's own."""
    path = cgroup / "instance"
    for part in ("", "dumb", "smart", "master", "dumb/web.1", "smart/db.1"):
        (path / part).mkdir()
    return path


@pytest.fixture
def guard(spawner: spawn.Spawner, instance: Path):
    """A guard of this process, ended by `quit`."""
    parent = os.open(instance.parent, os.O_PATH)
    directory = os.open(instance, os.O_RDONLY)
    made = start_guard(spawner, directory, parent, instance.name)
    os.close(parent)
    os.close(directory)
    assert made.ready()
    yield made
    if not has_happened(made.pidfd, timeout_ms=0):
        made.quit()
    wait_for(made.pidfd)
    process.reap(made.pidfd)
    made.close()


class Domain:
    """A leaf with one process in it; a context manager."""

    def __init__(self, spawner: spawn.Spawner, leaf: Path, program: str) -> None:
        self.kill_fd = os.open(leaf / "cgroup.kill", os.O_WRONLY)
        leaf_fd = os.open(leaf, os.O_RDONLY)
        self._run = Run(spawner, make_plan(program), leaf_fd=leaf_fd)
        os.close(leaf_fd)
        self.pidfd = self._run.child.pidfd

    def __enter__(self) -> Domain:
        assert self._run.outcome() == ExecOk()
        return self

    def __exit__(self, *details) -> None:
        self._run.__exit__(*details)
        os.close(self.kill_fd)

    def is_alive(self) -> bool:
        return not has_happened(self.pidfd, timeout_ms=0)

    def expect_killed(self) -> None:
        assert self._run.wait() == SIGKILL


@pytest.fixture
def domain(spawner: spawn.Spawner, instance: Path, still: str):
    with Domain(spawner, instance / "smart/db.1", still) as made:
        yield made


def later(seconds: float) -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(seconds * SECOND)


def synchronize(guard: Guard, kill_fd: int) -> None:
    """Wait until the guard has done all that it was told: it answers to this one."""
    guard.add(0xFFFFFFFF, kill_fd, deadline=1)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardExpired(0xFFFFFFFF)


@pytest.fixture
def harmless(instance: Path):
    """The cgroup.kill of an empty leaf."""
    fd = os.open(instance / "dumb/web.1/cgroup.kill", os.O_WRONLY)
    yield fd
    os.close(fd)


def test_guard_when_master_is_killed_kills_and_removes_all(helper, instance, still):
    for leaf in ("dumb/web.1", "smart/db.1"):
        (instance / leaf / "made/by/daemon").mkdir(parents=True)
    options = {"cgroup": str(instance), "leaf": "dumb/web.1", "dies": False}
    with SpawnMaster(helper=helper, **options) as master:
        master.expect_three()
        guard = master.open_pidfd(master.guard)
        master.kill()
        master.expect_end()
        wait_for(guard)
        assert not instance.exists()


def test_guard_when_master_is_killed_spares_what_is_not_dumb(helper, instance):
    kept, empty = instance / "smart/db.1/made", instance / "smart/web.2/made"
    kept.mkdir()
    empty.mkdir(parents=True)
    options = {"cgroup": str(instance), "leaf": "smart/db.1", "dies": False, "echo": True}
    with SpawnMaster(helper=helper, **options) as master:
        master.ask()
        guard = master.open_pidfd(master.guard)
        master.kill()
        wait_for(guard)
        master.ask()
        assert not (instance / "dumb").exists()
        assert kept.exists()
        assert not empty.parent.exists()
        master.stop_asking()
        master.expect_end()


def test_guard_lives_apart_from_its_master(guard):
    assert os.getsid(guard.pid) == guard.pid != os.getsid(0)
    assert os.readlink(f"/proc/{guard.pid}/cwd") == "/"
    assert Path(f"/proc/{guard.pid}/comm").read_text() == "lowsuper-guard\n"
    adjusted = Path(f"/proc/{guard.pid}/oom_score_adj").read_text()
    assert adjusted in ("-1000\n", Path("/proc/self/oom_score_adj").read_text())
    # Two directories, cgroup.kill, control, pidfd, timer; and 2.
    assert len(os.listdir(f"/proc/{guard.pid}/fd")) == 7


def test_guard_does_not_heed_signals(guard, harmless):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        process.send_signal(guard.pidfd, number)
    synchronize(guard, harmless)


@pytest.mark.parametrize("survives", [False, True])
def test_guard_when_deadline_passes_kills_though_the_master_lives(guard, domain, survives):
    guard.add(7, domain.kill_fd, survives=survives, deadline=later(0.05))
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardExpired(7)
    assert guard.receive() is None
    domain.expect_killed()


def test_guard_when_renewed_does_not_kill(guard, domain, harmless):
    guard.add(7, domain.kill_fd, deadline=later(3600))
    guard.renew(7, deadline=later(7200))
    guard.renew(8, deadline=1)  # there is no such domain
    synchronize(guard, harmless)
    assert domain.is_alive()
    guard.renew(7, deadline=1)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardExpired(7)
    domain.expect_killed()


def test_guard_when_dropped_does_not_kill(guard, domain, harmless):
    guard.add(7, domain.kill_fd, deadline=later(3600))
    guard.drop(7)
    guard.drop(7)
    guard.renew(7, deadline=1)
    synchronize(guard, harmless)
    assert domain.is_alive()


def test_guard_when_added_again_replaces(guard, domain, harmless):
    guard.add(7, domain.kill_fd, deadline=later(3600))
    guard.add(7, harmless, deadline=1)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardExpired(7)
    guard.renew(7, deadline=1)
    synchronize(guard, harmless)
    assert domain.is_alive()


def test_guard_when_full_says_so(guard, harmless):
    resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (2048, 2048))
    for number in range(MOST_DOMAINS):
        guard.add(number, harmless)
    guard.add(5000, harmless)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardFull(5000)
    guard.drop(3)
    synchronize(guard, harmless)


def test_guard_when_it_cannot_open_more_says_so(guard, harmless):
    """A descriptor that cannot be received is left out, and the message comes without it."""
    resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (12, 12))
    for number in range(20):
        guard.add(number, harmless)
    wait_for(guard.channel_fd)
    message = guard.receive()
    assert isinstance(message, GuardFull)
    assert 1 < message.id < 19


def test_guard_when_asked_confirms(guard, domain, harmless):
    guard.add(7, domain.kill_fd, deadline=later(3600), asks=True)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardAdded(7)
    guard.renew(7, deadline=later(7200), asks=True)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardAdded(7)
    guard.renew(8, deadline=later(7200), asks=True)  # there is no such domain
    synchronize(guard, harmless)
    assert domain.is_alive()


def test_guard_counts_what_the_machine_sleeps_through(guard):
    directory = Path(f"/proc/{guard.pid}/fdinfo")
    texts = [file.read_text() for file in directory.iterdir()]
    assert [text for text in texts if f"clockid: {time.CLOCK_BOOTTIME}\n" in text]


def test_guard_when_renewed_in_time_does_not_kill_though_it_was_late_to_read(guard, domain):
    guard.add(7, domain.kill_fd, deadline=later(0.1), asks=True)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardAdded(7)
    process.send_signal(guard.pidfd, signal.SIGSTOP)
    for _ in range(3):  # one is read before the timer is looked at in any case
        guard.renew(7, deadline=later(0.1))
    guard.renew(7, deadline=later(3600), asks=True)
    assert not has_happened(guard.channel_fd, timeout_ms=300)
    process.send_signal(guard.pidfd, signal.SIGCONT)
    wait_for(guard.channel_fd)
    assert guard.receive() == GuardAdded(7)
    assert domain.is_alive()


def test_guard_when_told_nonsense_ignores_it(guard, harmless):
    lib, ffi = native.lib, native.ffi
    message = ffi.new("struct lowsuper_guard_msg *")
    for op in (0, -1, 99, lib.LOWSUPER_GUARD_READY):
        message.op = op
        assert lib.lowsuper_send(guard.channel_fd, message, 24, harmless) == 0
    for size in (1, 23):
        assert lib.lowsuper_send(guard.channel_fd, message, size, harmless) == 0
    synchronize(guard, harmless)
    assert len(os.listdir(f"/proc/{guard.pid}/fd")) == 7


def test_guard_when_told_to_quit_kills_nothing(guard, domain):
    guard.add(7, domain.kill_fd)
    guard.quit()
    wait_for(guard.pidfd)
    assert guard.receive() == Closed()
    assert domain.is_alive()
    with pytest.raises(KernelError):
        guard.drop(7)


@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("deadline", [0, 0.3])
def test_guard_when_master_dies_heeds_survival_and_deadline(
    helper, instance, plain_spawner, still, survives, deadline
):
    """The master is a process that we fork, since the guard watches the one that started it."""
    with Domain(plain_spawner, instance / "smart/db.1", still) as domain:
        until = later(deadline) if deadline else 0
        guard = leave_guard(helper, instance, domain.kill_fd, survives=survives, deadline=until)
        wait_for(guard)
        os.close(guard)
        if survives and not deadline:
            assert domain.is_alive()
        else:
            domain.expect_killed()
    # What was killed at once may have been gone when the guard came to remove the directories.
    with contextlib.suppress(FileNotFoundError):
        wait_until_empty(instance)


@pytest.mark.parametrize("noted", [False, True])
def test_guard_without_master_heeds_what_the_next_one_writes(
    helper, instance, plain_spawner, still, noted
):
    with Domain(plain_spawner, instance / "smart/db.1", still) as domain:
        first = later(0.3)
        assert note_deadline(domain.kill_fd, first)
        guard = leave_guard(helper, instance, domain.kill_fd, deadline=first, noted=noted)
        assert note_deadline(domain.kill_fd, later(0.8))
        if noted:
            assert not has_happened(domain.pidfd, timeout_ms=400)
            assert note_deadline(domain.kill_fd, 0)
            wait_for(guard)
            assert domain.is_alive()
        else:
            # What is there is of an earlier master, and this one could not write.
            domain.expect_killed()
            assert later(0) < first + SECOND // 3
        os.close(guard)


def test_guard_that_waits_for_a_deadline_does_not_keep_the_next_master_waiting(
    helper, instance, plain_spawner, still
):
    with Domain(plain_spawner, instance / "smart/db.1", still) as domain:
        guard = leave_guard(
            helper, instance, domain.kill_fd, deadline=later(3600), noted=True, locked=True
        )
        directory = os.open(instance, os.O_RDONLY)
        end = time.monotonic() + 20
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < end, "the guard keeps the lock"
                assert not has_happened(guard, timeout_ms=1)
        os.close(directory)
        assert domain.is_alive()
        assert not has_happened(guard, timeout_ms=0)
        signal.pidfd_send_signal(guard, SIGKILL)
        wait_for(guard)
        os.close(guard)


def leave_guard(helper: str, instance: Path, kill_fd: int, **options) -> int:
    """Return a pidfd of the guard of a master that was killed."""
    told, tell = os.pipe()
    master = start_guarding_master(helper, instance, kill_fd, tell, **options)
    os.close(tell)
    wait_for(told)
    guard = os.pidfd_open(int(os.read(told, 20)))
    os.close(told)
    os.kill(master, SIGKILL)
    os.waitpid(master, 0)
    return guard


def start_guarding_master(
    helper: str,
    instance: Path,
    kill_fd: int,
    tell: int,
    *,
    survives: bool = True,
    deadline: int = 0,
    noted: bool = False,
    locked: bool = False,
) -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    try:
        spawner = spawn.Spawner(helper=helper)
        parent = os.open(instance.parent, os.O_PATH)
        directory = os.open(instance, os.O_RDONLY)
        if locked:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        guard = start_guard(spawner, directory, parent, instance.name)
        assert guard.ready()
        guard.add(7, kill_fd, survives=survives, deadline=deadline, noted=noted)
        os.write(tell, str(guard.pid).encode())
        signal.pause()
    finally:
        os._exit(1)
