"""The thin wrappers: each does what its system call does, and raises with the call's name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from errno import EBADF, ELOOP, ENOENT, ESRCH

import pytest
from spawning import NULL, Run, in_child, make_plan, wait_for

from lowsuper.errors import KernelError
from lowsuper.kernel import native, process
from lowsuper.plan import FdSource

RESOLVE_NO_SYMLINKS = 4
IN_CREATE = 0x100


def test_signalfd_tells_number_and_sender():
    def act():
        fd = native.signalfd_create((signal.SIGTERM, signal.SIGRTMAX))
        nothing = native.signalfd_read(fd)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGRTMAX)
        os.kill(os.getpid(), signal.SIGRTMAX)
        infos = native.signalfd_read_infos(fd)
        pids = {info.pid == os.getpid() and info.uid == os.getuid() for info in infos}
        for _ in range(40):
            os.kill(os.getpid(), signal.SIGRTMAX)
        many = len(native.signalfd_read(fd))
        return nothing, [info.signo for info in infos], pids, many

    nothing, numbers, pids, many = in_child(act)
    assert nothing == []
    assert numbers == [signal.SIGTERM, signal.SIGRTMAX, signal.SIGRTMAX]
    assert pids == {True}
    assert many == 40


def test_timerfd_fires_at_an_absolute_time_and_zero_disarms():
    fd = native.timerfd_create()
    native.timerfd_settime(fd, time.monotonic_ns() + 5_000_000)
    wait_for(fd)
    assert native.timerfd_read(fd) == 1
    assert native.timerfd_read(fd) == 0
    native.timerfd_settime(fd, 1)  # long past: at once
    wait_for(fd)
    native.timerfd_settime(fd, 0)
    assert native.timerfd_read(fd) == 0
    native.close(fd)


def test_inotify_tells_of_a_new_file(tmp_path):
    fd = native.inotify_create()
    watch = native.inotify_add(fd, str(tmp_path), IN_CREATE)
    (tmp_path / "new").touch()
    wait_for(fd)
    assert b"new\0" in os.read(fd, 4096)
    native.inotify_remove(fd, watch)
    native.inotify_remove(fd, watch)  # gone already
    with pytest.raises(KernelError) as raised:
        native.inotify_add(fd, str(tmp_path / "missing"), IN_CREATE)
    assert (raised.value.errno, raised.value.call) == (ENOENT, "inotify_add_watch")
    native.close(fd)


def test_openat2_refuses_a_link(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    directory = os.open(tmp_path, os.O_PATH)
    flags = os.O_RDONLY | os.O_CLOEXEC
    fd = native.openat2(directory, "file", flags, resolve=RESOLVE_NO_SYMLINKS)
    assert os.read(fd, 2) == b"x"
    with pytest.raises(KernelError) as raised:
        native.openat2(directory, "link", flags, resolve=RESOLVE_NO_SYMLINKS)
    assert raised.value.errno == ELOOP
    os.close(fd)
    os.close(directory)


def test_subreaper_gets_the_orphan_and_peek_child_tells_it():
    def act():
        native.set_child_subreaper()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
                os._exit(3)
            os._exit(0)
        os.waitpid(middle, 0)
        orphan, _ = os.waitpid(-1, os.WUNTRACED)
        alive = native.peek_child()
        os.kill(orphan, signal.SIGCONT)
        pidfd = os.pidfd_open(orphan)
        wait_for(pidfd)
        found = native.peek_child() == orphan
        status = native.reap(pidfd)
        os.close(pidfd)
        native.set_child_subreaper(False)
        return alive, found, status, native.peek_child()

    assert in_child(act) == (0, True, 3 << 8, 0)


def test_close_range_closes():
    assert in_child(lambda: close_range_above(200))


def close_range_above(first: int) -> bool:
    high = os.dup2(0, first + 1)
    native.close_range(first, first + 10)
    try:
        os.fstat(high)
    except OSError as error:
        return error.errno == EBADF
    return False


def test_exit_info_when_reaped_by_another_tells_the_status(plain_spawner, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader, writer = os.pipe()
    script = f"sh -c 'read line <{fifo}; exit 7' & echo $!; wait"
    plan = make_plan("/bin/sh", "-c", script, fds=(NULL, FdSource(1, writer), FdSource(2, 2)))
    with Run(plain_spawner, plan) as run:
        os.close(writer)
        wait_for(reader)
        pidfd = process.open_pidfd(int(os.read(reader, 20)))
        alive = process.exit_info(pidfd)
        os.close(os.open(fifo, os.O_WRONLY))
        assert run.wait() == 0  # it has reaped its child
        info = process.exit_info(pidfd)
    if alive is not None:
        assert alive.status is None
    if info is not None:  # Linux 6.15
        assert info.status == 7 << 8
    os.close(pidfd)
    os.close(reader)


def test_open_pidfd_when_there_is_no_such_process_raises():
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    with pytest.raises(KernelError) as raised:
        process.open_pidfd(child)
    assert (raised.value.call, raised.value.errno) == ("pidfd_open", ESRCH)


def test_send_signal_when_fd_is_no_pidfd_raises():
    with pytest.raises(KernelError) as raised:
        process.send_signal(0, 0)
    assert raised.value.call == "pidfd_send_signal"


def test_missing_extension_says_how_to_build_it():
    code = "import sys; sys.modules['lowsuper._native'] = None; import lowsuper.kernel.native"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "UnsupportedError: lowsuper's compiled part is missing" in result.stderr
    assert "pip install" in result.stderr
