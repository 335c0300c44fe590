"""Whoever may write a pidfile tries to have root signal, believe or wait for something else.

The daemon runs as `nobody`, who owns the directory of its pidfile and tries whatever a directory
lets its owner do. All victims write down the signals that they get. A plain daemon beside it shows
that the loop of the master never waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import other
from masters import (
    NOBODY,
    Master,
    find_program,
    free_port,
    kill_all,
    needs_root,
    rung_options,
    send,
)
from smart_tools import (
    SOLE,
    Bystanders,
    Smart,
    cpu_of,
    read_number,
    wait_until,
)

pytestmark = needs_root

DAEMON = 1  # uid of the user `daemon`, whose processes are none of nobody's business
AT_ONCE = 0.5
"""Seconds within which the plain daemon must be back; it takes some ms, but machines are busy."""


class Scene:
    """A master with the daemon `web` in a hostile place, and `plain` and `other` beside it."""

    def __init__(self, masters, bystanders: Bystanders, rung: str):
        self.masters, self.bystanders = masters, bystanders
        self.directory = masters.directory
        self.hole = self.directory / "hole"
        self.hole.mkdir()
        os.chown(self.hole, NOBODY, NOBODY)
        self.trap = self.hole / "trap"  # becomes the pidfile in one step
        self.pidfile = self.hole / "web.pid"
        self.journal = self.hole / "web.journal"
        self.touch = self.directory / "touch"
        self.touch.write_text("")
        self.web = Smart("web", self.pidfile, str(self.journal))
        self.other = Smart("other", self.directory / "other.pid", str(self.directory / "other"))
        self.plain = self.directory / "plain"
        self.config = rung_options(rung) + (
            f"attach-daemon2 = cmd={SOLE} {self.journal} background end=TERM"
            f" pidfile={self.pidfile},pidfile={self.pidfile},name=web,"
            f"uid={NOBODY},gid={NOBODY},freq=1,max_throttle=20ms,"
            f"stop_timeout=2,touch={self.touch}\n"
            f"attach-daemon2 = cmd={SOLE} {self.plain} end=TERM,name=plain,max_throttle=1ms\n"
            f"attach-daemon2 = cmd={SOLE} {self.other.mark},daemonize,name=other,"
            f"pidfile={self.other.pidfile}\n"
        )
        self.all: list[Master] = []
        self.start()
        self.pid = self.master.pid_of("web")

    def start(self) -> None:
        self.master = self.masters.start(self.config)
        self.all.append(self.master)

    def put(self, text: str) -> None:
        """Write the pidfile as nobody would."""
        path = self.trap
        path.write_text(text)
        os.chown(path, NOBODY, NOBODY)
        path.rename(self.pidfile)

    def clear(self) -> None:
        """Remove whatever is in the place of the pidfile."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(self.pidfile).st_mode):
                self.pidfile.rmdir()
            else:
                self.pidfile.unlink()

    def restart_plain(self) -> float:
        """Kill the plain daemon; return the seconds until the next one runs."""
        pid = self.master.pid_of("plain")
        seen = len(self.master.lines)
        began = time.monotonic()
        send(pid, signal.SIGKILL)
        wait_until(
            lambda: any(" plain: started" in line for line in self.master.lines[seen:]),
            "the plain daemon does not come back",
            master=self.master,
        )
        return time.monotonic() - began

    def pid_said(self) -> int:
        """Return the pid of the daemon that the master has told last; 0: it has not."""
        self.master.drain()
        found = re.findall(r"web: (?:started, pid|found .*?, pid|is pid) (\d+)\b", self.master.text)
        return int(found[-1]) if found else 0

    def wait_new_web(self, before: int) -> int:
        """Wait until another instance of the daemon is up; there is one."""
        found = wait_until(
            lambda: (
                (pids := self.web.running())
                and before not in pids
                and pids == {self.pid_said()}
                and pids
            ),
            "no new daemon",
            master=self.master,
        )
        (self.pid,) = found
        return self.pid

    def lines(self) -> list[str]:
        """Return what all masters have said."""
        for master in self.all:
            master.drain()
        return [line for master in self.all for line in master.lines]

    def check(self) -> None:
        """See that all is well in the end."""
        assert self.web.running() == {self.pid}
        assert not self.bystanders.problems()
        journals = [self.journal.read_text(), Path(self.other.mark).read_text()]
        assert "clash" not in "".join(journals)
        assert {line.partition(" ")[2] for line in journals[1].splitlines()} == {"up"}
        stops = self.plain.read_text().count("TERM")
        reloads = sum("reload: SIGTERM" in line for line in self.lines())
        assert stops <= reloads, self.plain.read_text()


@pytest.fixture
def rung():
    """The rung of the kill domains, unless a test has others."""
    return "cgroup"


@pytest.fixture
def scene(open_masters, tmp_path, rung):
    open_masters.allow_survivors()
    found = Bystanders(tmp_path)
    try:
        yield Scene(open_masters, found, rung)
    finally:
        found.close()


# Numbers.


OF_OTHERS = f"the file belongs to uid {NOBODY}, the process to uid "


def a_process_of_another_user(scene):
    return scene.bystanders.add("sshd", uid=DAEMON).pid, OF_OTHERS


def a_process_of_root(scene):
    return scene.bystanders.add("root").pid, OF_OTHERS


def a_process_of_nobody(scene):
    return scene.bystanders.add("own", uid=NOBODY).pid, "it runs "


VICTIMS = {
    "pid-1": lambda scene: (1, "it is pid 1"),
    "the-master": lambda scene: (scene.master.pid, "it (is lowsuper itself|runs )"),
    "the-guard": lambda scene: (scene.master.guard(), "it is a helper of lowsuper"),
    "a-kernel-thread": lambda scene: (2, "it is a kernel thread"),
    "another-user": a_process_of_another_user,
    "root": a_process_of_root,
    "the-attacker": a_process_of_nobody,
    "a-plain-daemon": lambda scene: (scene.master.pid_of("plain"), "it belongs to "),
    "a-smart-daemon": lambda scene: (scene.master.pid_of("other"), "it belongs to other"),
}


@pytest.mark.parametrize(
    ("victim", "rung"),
    [
        *((victim, "cgroup") for victim in VICTIMS),
        *((victim, "shim") for victim in VICTIMS if victim != "the-guard"),
    ],
)
def test_number_of_another_process(scene, victim):
    """Neither a restart nor a death, of the daemon or the master, has anybody else hit."""
    if victim == "a-kernel-thread" and Path("/proc/2/exe").exists():
        pytest.skip("needs: kernel threads in sight")
    number, why = VICTIMS[victim](scene)
    refused = rf"web: the pidfile \S+ names {number}\b.*(not believed: {why}|does not run)"

    # Named while the daemon runs, and a restart by touch: the daemon gets the signal.
    scene.put(f"{number}\n")
    scene.touch.write_text("now")
    first = scene.pid
    scene.master.wait_line(rf"web: touch .*SIGTERM \(15\) to pid {first}\b")
    scene.wait_new_web(first)
    assert f"{first} TERM {scene.master.pid}\n" in scene.journal.read_text()

    # Named at its death: the next one is started all the same.
    second = scene.pid
    scene.put(f"{number}\n")
    send(second, signal.SIGKILL)
    scene.master.wait_line(rf"{refused}.*; starting")
    third = scene.wait_new_web(second)

    # Named while there is no master; with the daemon alive, and dead.
    plain = scene.master.pid_of("plain")
    scene.master.kill()
    scene.put(f"{number}\n")
    scene.start()
    assert scene.master.pid_of("web") == third
    scene.master.kill()
    kill_all([third])
    scene.start()
    assert scene.wait_new_web(third) != number
    if victim not in ("the-master", "the-guard", "a-plain-daemon"):
        assert scene.master.has_said(rf"{refused}.*; starting"), scene.master.text
    assert plain != scene.master.pid_of("plain")
    assert scene.restart_plain() < AT_ONCE
    scene.check()


def test_process_of_another_user_that_runs_the_same_program(open_masters, tmp_path):
    """What one's own user runs could be signalled by that user anyway; what others run not."""
    masters = open_masters
    masters.allow_survivors()
    memcached = find_program("memcached")
    hole = masters.directory / "hole"
    hole.mkdir()
    os.chown(hole, NOBODY, NOBODY)
    pidfile, touch = hole / "cache.pid", masters.directory / "touch"
    touch.write_text("")
    command = f"{memcached} -U 0 -l 127.0.0.1 -p"
    victim = subprocess.Popen(
        [*command.split(), str(free_port())], user=DAEMON, group=DAEMON, extra_groups=[]
    )
    try:
        pidfile.write_text(f"{victim.pid}\n")
        os.chown(pidfile, NOBODY, NOBODY)
        master = masters.start(
            f"attach-daemon2 = cmd={command} {free_port()} -d -P {pidfile},pidfile={pidfile},"
            f"name=cache,uid={NOBODY},gid={NOBODY},freq=2,touch={touch},stop_timeout=2\n"
        )
        assert master.pid_of("cache") != victim.pid, master.text
        touch.write_text("now")
        master.wait_line("cache: touch .*: SIGTERM")
        master.wait_started("cache")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


# Things that are no plain files.


def put_link(scene):
    secret = scene.directory / "secret"
    secret.write_text(f"{scene.bystanders.add('named').pid}\n")
    secret.chmod(0o600)
    os.symlink(secret, scene.trap)
    return "is a symbolic link"


def put_link_to_device(scene):
    os.symlink("/dev/zero", scene.trap)
    return "is a symbolic link"


def put_hard_link(scene):
    secret = scene.directory / "secret"
    secret.write_text(f"{scene.bystanders.add('named').pid}\n")
    os.link(secret, scene.trap)
    return "has another hard link"


def put_fifo(scene):
    os.mkfifo(scene.trap)
    return "is a FIFO"


def put_device(scene):
    os.mknod(scene.trap, stat.S_IFCHR | 0o666, os.makedev(1, 8))  # /dev/random
    return "is a device"


def put_socket(scene):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(scene.trap))
    return "is a socket"


def put_directory(scene):
    scene.trap.mkdir()
    return "is a directory"


def put_huge(scene):
    with scene.trap.open("wb") as file:
        file.write(b"1")
        file.truncate(1 << 30)
    return "is larger than"


KINDS = {
    "link": put_link,
    "link-to-device": put_link_to_device,
    "hard-link": put_hard_link,
    "fifo": put_fifo,
    "device": put_device,
    "socket": put_socket,
    "directory": put_directory,
    "huge": put_huge,
}


def put(scene, kind: str) -> str:
    """Put something in the place of the pidfile; return what it is called."""
    what = KINDS[kind](scene)
    if kind == "directory":
        scene.clear()
    scene.trap.rename(scene.pidfile)
    return what


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_file(scene, kind):
    """It is named in words, nothing waits for it, and once it is gone the daemon comes back."""
    what = put(scene, kind)
    assert scene.restart_plain() < AT_ONCE
    first = scene.pid

    # While the daemon starts: it cannot write its pidfile, or only over what is there.
    send(first, signal.SIGKILL)
    scene.master.wait_line(rf"web: the pidfile \S+ {what}.*; starting")
    assert scene.restart_plain() < AT_ONCE

    scene.clear()
    scene.wait_new_web(first)
    assert read_number(scene.pidfile) == scene.pid
    scene.check()


def test_lease(scene):
    """A lease would have whoever opens the file wait for up to 45 s."""

    def hold(ready):
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        path = scene.hole / "leased"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.write(fd, b"1\n")
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.rename(path, scene.pidfile)
        ready()
        signal.pause()

    with other(hold, uid=NOBODY):
        assert scene.restart_plain() < AT_ONCE
        first = scene.pid
        send(first, signal.SIGKILL)
        scene.master.wait_line(r"web: the pidfile \S+ is busy .*; starting")
        assert scene.restart_plain() < AT_ONCE
        scene.clear()
    scene.wait_new_web(first)
    scene.check()


# Somebody who is quick.


def fight(scene, victims, ready):
    """As nobody, put one thing after the other in the place of the pidfile, as fast as possible."""
    os.chdir(scene.hole)
    chosen = random.Random(1)
    name = scene.pidfile.name
    chores = {7: os.unlink, 14: os.unlink, 15: os.mkdir, 16: os.rmdir}

    def number(path, pid=None):
        with open(path, "w") as file:
            file.write(f"{pid or chosen.choice(victims)}\n")
        return path

    def linked(path):
        os.link(number("first"), path)
        return path

    def linked_elsewhere(path):
        os.symlink(chosen.choice(["/dev/zero", "/etc/passwd", name, "web.journal"]), path)
        return path

    def fifo(path):
        os.mkfifo(path)
        return path

    def sparse(path):
        with open(number(path), "a") as file:
            file.truncate(1 << 30)
        return path

    makers = [number, number, number, linked, linked_elsewhere, fifo, sparse]
    ready()
    for count in itertools.cycle(range(33)):
        for left in ("next", "first"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
        with contextlib.suppress(OSError):
            os.rename(chosen.choice(makers)("next"), name)
        if count in chores:
            with contextlib.suppress(OSError):
                chores[count](name)


def test_swaps_at_every_moment(scene):
    """Deaths, restarts by touch and new masters while somebody swaps the pidfile all the time."""
    victims = [scene.bystanders.add(f"victim-{uid}", uid=uid).pid for uid in (0, DAEMON, NOBODY)]
    victims += [1, scene.master.pid, os.getpid(), scene.master.pid_of("other")]
    slowest = 0.0
    with other(lambda ready: fight(scene, victims, ready), uid=NOBODY):
        for turn in range(12):
            for pid in scene.web.running():
                with contextlib.suppress(ProcessLookupError):
                    send(pid, signal.SIGKILL)
            slowest = max(slowest, scene.restart_plain())
            scene.touch.write_text(str(turn))
            slowest = max(slowest, scene.restart_plain())
            if turn % 4 == 1:
                scene.master.signal(signal.SIGHUP)
                scene.master.wait_line("lowsuper: reloaded")
            elif turn % 4 == 3:
                scene.master.kill()
                scene.start()
    scene.clear()
    assert slowest < AT_ONCE
    for pid in scene.web.running():
        send(pid, signal.SIGKILL)
    scene.wait_new_web(0)
    scene.check()


def test_flood_of_events(scene):
    """Somebody keeps the directory busy; the master has better things to do than to watch it."""

    def flood(ready):
        os.chdir(scene.hole)
        ready()
        while True:
            for name in ("a", "b", scene.pidfile.name):
                with contextlib.suppress(OSError):
                    os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644))
                    os.rename(name, "c")

    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(other(flood, uid=NOBODY))
        before, began = cpu_of(scene.master.pid), time.monotonic()
        slowest = 0.0
        while time.monotonic() - began < 2.0:
            slowest = max(slowest, scene.restart_plain())
            with contextlib.suppress(AssertionError):
                scene.master.wait_line("never said", timeout=0.1)
        used = (cpu_of(scene.master.pid) - before) / (time.monotonic() - began)
    assert slowest < AT_ONCE
    assert used < 0.3, f"the master uses {used:.0%} of a processor"
    # The last state counts, flood or not.
    scene.put(f"{scene.pid}\n")
    first = scene.pid
    send(first, signal.SIGKILL)
    scene.wait_new_web(first)
    scene.check()


# Numbers that come again.

REUSE = """
import os, signal, sys
from pathlib import Path
from masters import Master, kill_all
from smart_tools import Bystander

config, hole, what = sys.argv[1:]
hole, touch = Path(hole), Path(config).with_name("touch")
master = Master(config, cwd=hole.parent).wait_ready()
first = master.pid_of("web")
if what == "seen":
    # The second master watches a daemon that is not its child, but ours.
    master.kill()
    master = Master(config, cwd=hole.parent).wait_ready()
    master.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, master.pid, os.WSTOPPED | os.WNOWAIT)
else:
    master.kill()
kill_all([first])
os.waitpid(first, 0)
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first - 1))
victim = Bystander(hole.parent, "victim")
assert victim.pid == first, (victim.pid, first)
touch.write_text("now")
if what == "seen":
    master.signal(signal.SIGCONT)
else:
    master = Master(config, cwd=hole.parent).wait_ready()
second = master.wait_started("web") if what == "seen" else master.pid_of("web")
touch.write_text("and now")
master.wait_line("web: touch .*: SIGTERM")
third = master.wait_started("web")
assert len({first, second, third}) == 3, master.text
assert not victim.problems(), (victim.problems(), master.text)
assert master.stop() == 0
print("well", flush=True)
"""


@pytest.mark.parametrize("what", ["seen", "unseen"])
def test_number_that_is_given_to_another(open_masters, what):
    """The daemon dies and its pid is another's, with a master that has not looked, or with none.

    In a pid namespace, where numbers can be chosen. The test in it is the one who reaps.
    """
    open_masters.allow_survivors()
    hole = open_masters.directory / "hole"
    hole.mkdir()
    os.chown(hole, NOBODY, NOBODY)
    (open_masters.directory / "touch").write_text("")
    path = open_masters.write(
        f"attach-daemon2 = cmd={SOLE} {hole}/journal background end=TERM pidfile={hole}/web.pid,"
        f"pidfile={hole}/web.pid,name=web,uid={NOBODY},gid={NOBODY},freq=2,max_throttle=20ms,"
        f"touch={open_masters.directory}/touch,stop_timeout=2\n"
    )
    unshare = (find_program("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", REUSE, str(path), str(hole), what],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert done.stdout.endswith("well\n"), f"{done.stdout}\n{done.stderr}"
