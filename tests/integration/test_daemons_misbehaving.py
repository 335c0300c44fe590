"""Daemons that cannot start or do harm, and what is missing around the master."""

import fcntl
import os
import re
import select
import signal
import time
from pathlib import Path

import pytest
from masters import (
    IS_ROOT,
    children_of,
    find_program,
    is_alive,
    need,
    needs_root,
    status_of,
    wait_text,
)

FINE = "attach-daemon2 = cmd=sleep 1000,name=fine\n"


# What cannot be started.


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/nonexistent/program", r"execve /nonexistent/program: No such file or directory \("),
        ("no-such-program-anywhere", r"execve no-such-program-anywhere: No such file"),
        ("{T}/plain", r"execve .*/plain: Permission denied \(it is not executable"),
        ("{T}/no_hash_bang", r"execve .*/no_hash_bang: Exec format error \("),
        ("{T}/lost_interpreter", r"execve .*/lost_interpreter: No such file .*interpreter"),
        ("{T}", r"execve .*: Permission denied"),
        ("{T}/empty", r"execve .*/empty: Exec format error"),
    ],
)
@pytest.mark.parametrize("rung", ["cgroup", "shim", "pidns"])
def test_program_that_cannot_be_executed_is_told_and_tried_again(masters, command, words, rung):
    if rung != "shim":
        need(IS_ROOT, "root")
    for name, text, mode in (
        ("plain", "#!/bin/sh\n", 0o644),
        ("no_hash_bang", "echo hello\n", 0o755),
        ("lost_interpreter", "#!/no/such/interpreter\n", 0o755),
        ("empty", "", 0o755),
    ):
        path = masters.directory / name
        path.write_text(text)
        path.chmod(mode)
    rung_key = ",ns_pid" if rung == "pidns" else ""
    option = "" if rung == "pidns" else f"kill-domain = {rung}\n"
    master = masters.begin(
        f"{option}attach-daemon2 = cmd={command},name=bad,max_throttle=100ms{rung_key}\n" + FINE
    )
    master.wait_ready()
    assert master.has_said("ready: 1 daemon up after .*, 1 could not be started yet")
    for _ in range(2):
        master.wait_line("bad: ")
    said = [line for line in master.lines if "bad: " in line]
    for line in said:
        assert re.search(f"bad: {words}.*next try in 100 ms", line)
    assert is_alive(master.pid_of("fine"))
    assert master.stop() == 0


def test_missing_chdir_of_a_daemon_is_told_and_tried_again(masters):
    master = masters.begin(
        "attach-daemon2 = cmd=sleep 1000,name=bad,chdir=/no/such/dir,max_throttle=50ms\n" + FINE
    )
    for _ in range(3):
        master.wait_line("bad: chdir /no/such/dir: No such file or directory; next try in 50 ms")
    assert master.stop() == 0


def test_chdir_that_comes_later_lets_the_daemon_start(masters):
    later = masters.directory / "later"
    master = masters.begin(
        f"attach-daemon2 = cmd=sleep 1000,name=bad,chdir={later},max_throttle=50ms\n"
    )
    master.wait_line("bad: chdir .*next try")
    later.mkdir()
    master.wait_started("bad")
    assert master.stop() == 0


def test_each_attempt_is_one_line(masters):
    master = masters.begin("attach-daemon2 = cmd=/no/such,name=bad,max_throttle=50ms\n")
    for _ in range(5):
        master.wait_line("bad: ")
    assert master.stop() == 0
    lines = [line for line in master.lines if "bad: " in line]
    assert all("execve /no/such: No such file or directory" in line for line in lines[:5])


def test_daemon_that_exits_at_once_does_not_spin(masters):
    """Three starts in the first three seconds: the pauses are 1 and 2 s."""
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 0,name=bad\n" + FINE)
    starts = []
    for _ in range(3):
        master.wait_started("bad")
        starts.append(time.monotonic())
    assert starts[1] - starts[0] > 0.9
    assert starts[2] - starts[1] > 1.9
    assert master.stop() == 0


@needs_root
def test_limit_of_processes_is_told_and_survived(masters):
    """The master runs in a pids cgroup that is full, then the limit goes."""
    base = pids_cgroup()
    need(base is not None, "the pids controller")
    path = base / f"lowsuper-test-pids-{os.getpid()}"
    path.mkdir()
    try:
        master = masters.launch(
            str(masters.write("kill-domain = shim\n" + FINE + FINE.replace("fine", "more"))),
            prefix=("sh", "-c", f'echo $$ > {path}/cgroup.procs; exec "$@"', "sh"),
        ).wait_ready()
        count = int((path / "pids.current").read_text())
        (path / "pids.max").write_text(str(count - 1))
        master.signal(signal.SIGHUP)
        master.wait_line(r"(fine|more): (clone3?|fork).*Resource temporarily unavailable.*next try")
        (path / "pids.max").write_text("max")
        while not both_up(master):
            master.wait_line("(fine|more): started")
        assert master.stop() == 0
    finally:
        masters.end()
        path.rmdir()


def both_up(master):
    return is_alive(master.pid_of("fine")) and is_alive(master.pid_of("more"))


def pids_cgroup():
    """Return a cgroup below which the pids controller can be had, or None."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(maxsplit=2)
        path = Path(left.split()[4])
        if kind == "cgroup" and "pids" in options.split(","):
            return path
        control = path / "cgroup.subtree_control"
        if kind == "cgroup2" and control.exists() and "pids" in control.read_text().split():
            return path
    return None


@pytest.mark.parametrize("limit", [40, 300])
def test_few_descriptors_are_told_and_survived(masters, limit):
    """Not every daemon can be started with so few files, and the master says why.

    With 300 those of daemons run out while low ones are left, with 40 there are only low ones.
    """
    text = "" if IS_ROOT else "kill-domain = shim\n"
    text += "".join(
        f"attach-daemon2 = cmd=sleep 1000,name=d{number},max_throttle=1\n" for number in range(30)
    )
    prefix = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    master = masters.begin(text, prefix=prefix)
    master.wait_line(r"d\d+: .*Too many open files.*next try")
    master.wait_ready()
    assert master.has_said(r"ready: \d+ daemons? up after .*, \d+ could not be started yet")
    master.signal(signal.SIGUSR1)
    master.wait_line("d29: ")
    assert master.stop() == 0
    master.expect_silence("Traceback")


# What does harm to the master's own output.


def test_full_pipe_that_nobody_reads_does_not_stop_the_master(masters):
    read_fd, write_fd = os.pipe()
    try:
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
        master = masters.begin(
            "attach-daemon2 = cmd={D}/flood.sh,name=flood\nmaster-fifo = {T}/fifo\n",
            wrap_output=False,
            stdout=write_fd,
            stderr=write_fd,
        )
        os.close(write_fd)
        write_fd = -1
        wait_full(read_fd)
        master.signal(signal.SIGHUP)
        master.signal(signal.SIGUSR1)
        assert master.stop() == 0
    finally:
        os.close(read_fd)
        if write_fd >= 0:
            os.close(write_fd)


def wait_full(read_fd):
    """Wait until a pipe is full: its length does not change over several looks."""
    from array import array
    from termios import FIONREAD

    seen, same = -1, 0
    end = time.monotonic() + 20
    while same < 5:
        assert time.monotonic() < end
        select.select([], [], [], 0.05)
        size = array("i", [0])
        fcntl.ioctl(read_fd, FIONREAD, size)
        same = same + 1 if size[0] == seen and size[0] > 2048 else 0
        seen = size[0]


def test_lines_that_nobody_read_are_counted(masters):
    """More than the sink keeps is dropped, and how much is said when the reader comes back."""
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)
    many = "".join(f"attach-daemon2 = cmd=sleep 1000,name=d{number}\n" for number in range(60))
    master = masters.begin(
        "kill-domain = shim\nmaster-fifo = {T}/fifo\n" + many,
        wrap_output=False,
        stdout=write_fd,
        stderr=write_fd,
    )
    os.close(write_fd)
    wait_full(read_fd)
    fifo = os.open(masters.directory / "fifo", os.O_WRONLY)
    for _ in range(120):
        os.write(fifo, b"s")
        select.select([], [], [], 0.005)  # each in a turn of its own
    os.close(fifo)
    text = b""
    while b"lines were lost: nobody read them" not in text:
        text += os.read(read_fd, 65536)
    master.signal(signal.SIGTERM)
    while data := os.read(read_fd, 65536):
        text += data
    os.close(read_fd)
    assert master.wait() == 0
    # Its last words reach a reader that is slow.
    assert text.endswith(b"exit status 0\n")


def test_reader_of_the_log_that_goes_away_does_not_matter(masters):
    read_fd, write_fd = os.pipe()
    master = masters.begin(
        "pidfile = {T}/pid\nmaster-fifo = {T}/fifo\n" + FINE,
        wrap_output=False,
        stdout=write_fd,
        stderr=write_fd,
    )
    os.close(write_fd)
    text = b""
    while b"ready" not in text:
        text += os.read(read_fd, 4096)
    os.close(read_fd)
    fifo = os.open(masters.directory / "fifo", os.O_WRONLY)
    os.write(fifo, b"srs")
    os.close(fifo)
    assert master.stop() == 0


def test_terminal_as_standard_error_stays_blocking(masters):
    """O_NONBLOCK belongs to the open file, which the daemons and the shell share."""
    primary, secondary = os.openpty()
    try:
        master = masters.begin(
            "attach-daemon2 = cmd=sh -c 'echo up; exec sleep 1000',name=one",
            wrap_output=False,
            stdout=secondary,
            stderr=secondary,
        )
        text = b""
        while b"ready" not in text or b"up\r\n" not in text:
            text += os.read(primary, 4096)
        assert not fcntl.fcntl(secondary, fcntl.F_GETFL) & os.O_NONBLOCK
        assert master.stop() == 0
    finally:
        os.close(primary)
        os.close(secondary)


def test_closed_standard_descriptors_are_survived(masters):
    """As some init scripts start programs: without 0, 1 and 2."""
    path = masters.write("logto = {T}/log\nattach-daemon2 = cmd={D}/show.py {T}/shown\n")
    for closed in ("<&- >&- 2>&-", "<&-", ">&-", "2>&-"):
        log = masters.directory / "log"
        log.unlink(missing_ok=True)
        master = masters.launch(
            str(path), prefix=("sh", "-c", f'exec "$@" {closed}', "sh"), wrap_output=False
        )
        wait_text(log, "ready: ")
        assert master.stop() == 0, closed


# Idle.


def test_idle_master_does_not_wake_up(masters):
    """With 100 daemons, timers long past, a FIFO and watched files: no wake-up in 1.5 s."""
    text = "master-fifo = {T}/fifo\ntouch-reload = {T}/file\n" + "".join(
        f"attach-daemon2 = cmd=sleep 1000,name=d{number}\n" for number in range(100)
    )
    master = masters.start(text)
    settle(master)
    before = status_of(master.pid)
    select.select([], [], [], 1.5)  # this wait is the measurement
    after = status_of(master.pid)
    for kind in ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"):
        assert after[kind] == before[kind], kind
    assert master.stop() == 0


def settle(master):
    """Wait until the master sleeps in epoll_wait and has nothing left to do."""
    end = time.monotonic() + 10
    seen = None
    while time.monotonic() < end:
        status = status_of(master.pid)
        switches = status["voluntary_ctxt_switches"], status["nonvoluntary_ctxt_switches"]
        if status["State"].startswith("S") and switches == seen:
            return
        seen = switches
        master.drain()
        select.select([], [], [], 0.1)


def test_guard_and_roles_do_not_wake_up_either(masters):
    need(IS_ROOT, "root")
    master = masters.start(
        "attach-daemon2 = cmd=sleep 1000,name=one\nattach-daemon2 = cmd=sleep 1000,name=two,ns_pid"
    )
    settle(master)
    children = children_of(master.pid)
    before = {pid: status_of(pid)["voluntary_ctxt_switches"] for pid in children}
    assert len(before) == 3
    select.select([], [], [], 0.5)  # this wait is the measurement
    assert {pid: status_of(pid)["voluntary_ctxt_switches"] for pid in children} == before
    assert master.stop() == 0


# Privileges and the machine.


def unprivileged():
    """Return the words that run a program as nobody, who may still read the sources."""
    need(IS_ROOT, "root")
    return (
        find_program("setpriv"),
        *("--reuid=65534", "--regid=65534", "--clear-groups"),
        *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    )


def in_mounts(script):
    """Return the words that run a program in mounts of its own, after a shell command."""
    words = ("--mount", "--propagation", "private", "sh", "-c", f'{script}\nexec "$@"', "sh")
    return (find_program("unshare"), *words)


READ_ONLY = """
awk '$0 ~ / - cgroup2 / {print $5}' /proc/self/mountinfo |
while read -r point; do mount -o bind,remount,ro "$point" || exit 1; done
"""


def test_master_without_root_uses_shims(open_masters):
    master = open_masters.start(
        "attach-daemon2 = cmd={D}/setsid_children.sh,name=one,stop_timeout=300ms",
        prefix=unprivileged(),
    )
    for _ in range(3):
        master.wait_output("settled")
    assert master.has_said("one: started, pid .*, uid 65534, gid 65534, kill domain shim")
    said = [line for line in master.lines if "cgroup" in line]
    assert len(said) == 1
    assert "every daemon gets a shim of its own instead" in said[0]
    assert master.stop() == 0
    assert not master.family()


@needs_root
def test_read_only_cgroups_mean_shims_and_one_line(masters):
    master = masters.start(
        "attach-daemon2 = cmd={D}/double_fork.sh,name=one\n" + FINE,
        prefix=in_mounts(READ_ONLY),
    )
    assert master.has_said("one: started, .* kill domain shim")
    assert len([line for line in master.lines if "a shim of its own instead" in line]) == 1
    assert master.stop() == 0
    assert not master.family()


@needs_root
def test_forced_cgroup_rung_that_cannot_be_had_is_an_error(masters):
    master = masters.begin(
        "kill-domain = cgroup\n" + FINE,
        prefix=in_mounts(READ_ONLY),
    )
    assert master.wait() == 125
    assert master.has_said("cgroup v2: cannot make .*: Read-only file system")
    master.expect_silence("Traceback|started")


@needs_root
def test_full_disk_of_the_log_does_not_matter(masters):
    """logto on a file system of 64 kB, filled by a daemon's output."""
    disk = masters.directory / "disk"
    disk.mkdir()
    master = masters.begin(
        f"logto = {disk}/log\nmaster-fifo = {{T}}/fifo\npidfile = {{T}}/pid\n"
        "attach-daemon2 = cmd={D}/flood.sh,name=flood\n" + FINE,
        prefix=in_mounts(f"mount -t tmpfs -o size=64k tmpfs {disk}"),
    )
    inside = f"/proc/{master.pid}/root{disk}"
    end = time.monotonic() + 20
    while not os.path.exists(f"{inside}/log") or os.statvfs(inside).f_bavail:
        assert time.monotonic() < end, "the disk did not fill"
        select.select([], [], [], 0.02)
    master.signal(signal.SIGUSR1)
    master.signal(signal.SIGHUP)
    assert master.stop() == 0
    assert master.text == ""


@needs_root
def test_namespaces_that_are_not_available_are_told(masters):
    """ns_pid where the limit of pid namespaces is 0, as in some containers."""
    path = masters.write(FINE + "attach-daemon2 = cmd=sleep 1000,name=bad,ns_pid,max_throttle=1\n")
    master = masters.launch(
        str(path),
        prefix=(
            find_program("unshare"),
            "--user",
            "--map-root-user",
            "sh",
            "-c",
            'echo 0 > /proc/sys/user/max_pid_namespaces; exec "$@"',
            "sh",
        ),
    )
    master.wait_line(r"bad: clone3?.*: No space left on device.*next try")
    master.wait_ready()
    assert is_alive(master.pid_of("fine"))
    assert master.stop() == 0


def test_memory_of_the_master_does_not_grow_with_restarts(masters):
    """200 lives of a daemon: descriptors are those of the beginning."""
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 0,name=one,max_throttle=1ms\n" + FINE)
    master.wait_started("one")
    for _ in range(10):
        master.wait_started("one")
    before = len(os.listdir(f"/proc/{master.pid}/fd"))
    for _ in range(190):
        master.wait_started("one")
    after = len(os.listdir(f"/proc/{master.pid}/fd"))
    assert abs(after - before) <= 8
    assert master.stop() == 0


def test_version_and_help_need_no_file(masters):
    for words, code in ((("--version",), 0), (("--help",), 0), ((), 2)):
        master = masters.launch(*words)
        assert master.wait() == code
        assert "lowsuper" in master.text
