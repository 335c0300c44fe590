"""What the watcher tells of touch files, pidfiles and locks, and what a flood of events costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from fcntl import LOCK_EX, LOCK_NB, flock

import pytest
from spawning import read_exactly

from lowsuper.errors import KernelError
from lowsuper.kernel.loop import READ, Loop
from lowsuper.kernel.watch import IN_CLOSE_WRITE, MAX_WAKES, Watcher

SECOND = 1_000_000_000
DEADLINE = 20 * SECOND
PAUSE = SECOND // 20


class Bench:
    """A loop with a watcher, and how often it has called back for what."""

    def __init__(self, path):
        self.path = path
        self.loop = Loop()
        self.watcher = Watcher(self.loop)
        self.calls: dict[str, list[int]] = {}
        self.turns = 0

    def counter(self, name):
        self.calls[name] = []
        return lambda: self.calls[name].append(self.loop.now())

    def touch_files(self, *names):
        return [(str(self.path / name), self.counter(name)) for name in names]

    def watch(self, *pidfiles, touch=()):
        assert not self.watcher.replace(self.touch_files(*touch), self.touch_files(*pidfiles))

    def count(self, name):
        return len(self.calls[name])

    def turn(self, until):
        """Turn the loop until the time `until`, or until something happens before."""
        happened = []
        self.loop.set_timer("test", until, lambda: happened.append(1))
        self.loop.run_turn(lambda: None)
        self.loop.cancel_timer("test")
        self.turns += 1
        return not happened

    def settle(self, seconds=0.12):
        """Turn the loop until nothing has happened for longer than any pause."""
        while self.turn(self.loop.now() + int(seconds * SECOND)):
            pass

    def run(self, seconds):
        end = self.loop.now() + int(seconds * SECOND)
        while self.loop.now() < end:
            self.turn(end)

    def wait_call(self, name, count=1):
        """Turn until there are `count` calls for the file."""
        end = self.loop.now() + DEADLINE
        while self.count(name) < count:
            assert self.loop.now() < end, f"no call for {name}"
            self.turn(end)

    def expect_call(self, name, act):
        """Do something to the file, and wait for a call because of it."""
        self.settle()
        before = self.count(name)
        act()
        self.wait_call(name, before + 1)

    def expect_none(self, name, act):
        self.settle()
        before = self.count(name)
        act()
        self.settle()
        assert self.count(name) == before


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.watcher.close()
    made.loop.close()


def test_pidfile_tells_every_kind_of_change(bench, tmp_path):
    path, other = tmp_path / "pid", tmp_path / "other"
    bench.watch("pid")
    bench.expect_call("pid", path.touch)  # an empty new file
    bench.expect_call("pid", lambda: path.write_text("12"))
    bench.expect_call("pid", lambda: path.chmod(0o600))
    bench.expect_call("pid", lambda: os.link(path, other))
    bench.expect_call("pid", lambda: os.truncate(path, 0))
    bench.expect_call("pid", path.unlink)
    bench.expect_call("pid", lambda: other.rename(path))
    bench.expect_call("pid", lambda: path.rename(other))
    bench.expect_call("pid", path.mkdir)
    bench.expect_call("pid", path.rmdir)
    bench.expect_call("pid", lambda: os.mkfifo(path))
    bench.expect_call("pid", path.unlink)


def test_pidfile_that_stays_open_tells_what_is_written(bench, tmp_path):
    bench.watch("pid", touch=("pid2",))
    for name in ("pid", "pid2"):
        with (tmp_path / name).open("w") as file:
            bench.settle()
            before = bench.count("pid")
            file.write("1")
            file.flush()
            if name == "pid":
                bench.wait_call("pid", before + 1)
                bench.expect_call("pid", lambda file=file: print("2", file=file, flush=True))
            else:
                bench.settle()
                assert bench.count("pid2") == 0  # a touch file is told when it is whole
    bench.wait_call("pid2")


@pytest.mark.parametrize("first", ["touch", "pidfile"])
def test_file_may_be_touch_file_and_pidfile(bench, tmp_path, first):
    """Two watches of one inode are one to the kernel, with one mask."""
    path = tmp_path / "pid"
    path.write_text("1\n")
    touch, pidfile = bench.counter("touch"), bench.counter("pidfile")
    bench.watcher.replace([(str(path), touch)], [(str(path), pidfile)])
    with path.open("r+") as file:
        file.write("2")
        file.flush()
        bench.wait_call("pidfile")
        bench.settle()
        assert bench.count("touch") == 0
    bench.wait_call("touch")


def test_pidfile_rewritten_at_once_with_as_many_bytes_is_told(bench, tmp_path):
    """The time of a file has steps of some milliseconds before Linux 6.13."""
    path = tmp_path / "pid"
    path.write_text("1000\n")
    bench.watch("pid")
    for number in range(1001, 1021):
        before = bench.count("pid")
        with path.open("r+") as file:
            file.write(f"{number}\n")
        bench.wait_call("pid", before + 1)
    bench.settle()


def test_pidfile_that_is_a_link_is_not_followed(bench, tmp_path):
    target, path = tmp_path / "away" / "target", tmp_path / "pid"
    target.parent.mkdir()
    target.write_text("1")
    bench.watch("pid", touch=("link",))
    (tmp_path / "link").symlink_to(target)
    bench.expect_call("pid", lambda: path.symlink_to(target))
    bench.expect_none("pid", lambda: target.write_text("22"))
    assert bench.count("link") == 2  # made, and what it stands for changed
    bench.expect_call("pid", path.unlink)


def test_pidfile_in_directories_that_are_made_later(bench, tmp_path):
    bench.watch("a/b/pid")
    directory = tmp_path / "a" / "b"

    def make():
        directory.mkdir(parents=True)
        (directory / "pid").write_text("1")

    bench.expect_call("a/b/pid", make)
    bench.expect_call("a/b/pid", lambda: directory.rename(tmp_path / "c"))
    (tmp_path / "a").rmdir()
    bench.expect_call("a/b/pid", make)
    bench.expect_call("a/b/pid", lambda: (directory / "pid").write_text("33"))


def test_callbacks_are_few_and_the_last_state_is_told(bench, tmp_path):
    path = tmp_path / "pid"
    path.write_text("1")
    seen = []
    bench.watcher.replace([], [(str(path), lambda: seen.append(path.read_text()))])
    reader, writer = os.pipe()
    code = f"""
import os, time
end = time.monotonic() + 0.5
number = 0
while time.monotonic() < end:
    for _ in range(100):
        number += 1
        with open({str(path)!r}, "r+") as file:
            file.write(f"{{number:08}}")
os.write({writer}, b"x")
"""
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[writer]) as child:
        os.close(writer)
        ended = []
        bench.loop.watch(reader, READ, lambda: ended.append(os.read(reader, 1)))
        started = bench.loop.now()
        while not ended:
            bench.turn(bench.loop.now() + DEADLINE)
        bench.loop.unwatch(reader)
        bench.settle()
        took = bench.loop.now() - started
        assert child.wait(20) == 0
    os.close(reader)
    assert 5 < len(seen) <= took / PAUSE + 2
    assert seen[-1] == path.read_text()


class Flood:
    """Another process that makes events of other files in a directory; a context manager."""

    CODE = """
import os, sys
os.chdir(sys.argv[1])
print("x", end="", flush=True)
while True:
    for name in ("one", "two"):
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT))
"""

    def __init__(self, path):
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(path)], stdout=subprocess.PIPE
        )

    def __enter__(self):
        assert read_exactly(self._process.stdout.fileno(), 1) == b"x"
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def test_flood_by_others_wakes_seldom_and_hides_nothing(bench, tmp_path):
    bench.watch("pid", touch=("touched",))
    with Flood(tmp_path):
        bench.run(0.3)
        turns, used, started = bench.turns, time.process_time_ns(), bench.loop.now()
        bench.run(0.5)
        share = (time.process_time_ns() - used) / (bench.loop.now() - started)
        # It was woken for each few events, and was busy for more than half of the time.
        assert bench.turns - turns <= MAX_WAKES
        assert share < 0.3
        assert bench.count("pid") == bench.count("touched") == 0
        for name in ("pid", "touched"):
            (tmp_path / name).write_text("1")
            told = bench.loop.now()
            bench.wait_call(name)
            assert bench.calls[name][-1] - told < SECOND
    # When it is over, changes are told at once again, also of what was made in the flood.
    bench.settle(0.3)
    for name in ("pid", "touched"):
        bench.expect_call(name, lambda name=name: (tmp_path / name).write_text("22"))


def test_directory_that_is_replaced_in_a_flood_is_watched_afterwards(bench, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    bench.watch("home/pid")
    with Flood(home):
        bench.run(0.3)
        home.rename(tmp_path / "old")
        home.mkdir()
        bench.run(0.2)
    bench.settle(0.3)
    bench.expect_call("home/pid", lambda: (home / "pid").write_text("1"))


def test_overflow_of_the_queue_makes_it_look_at_all(bench, tmp_path):
    bench.watch("pid", touch=("touched",))
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        limit = int(file.read())
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    for _ in range(limit // 2 + 10):
        for name in ("one", "two"):
            os.close(os.open(tmp_path / name, os.O_WRONLY))
    (tmp_path / "pid").write_text("1")
    (tmp_path / "touched").write_text("1")
    bench.wait_call("pid")
    bench.wait_call("touched")


def test_events_of_other_files_are_told_by_their_name(bench, tmp_path, monkeypatch):
    looks = []
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: looks.append(path) or real(path))
    bench.watch("pid")
    looks.clear()
    for number in range(10):
        (tmp_path / f"other{number}").write_text("1")
    bench.settle()
    assert looks == []


def test_replace_keeps_what_was_added_and_forgets_the_rest(bench, tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    number = bench.watcher.add(str(lock), bench.counter("lock"), IN_CLOSE_WRITE)
    bench.watch("one")
    bench.watch("two")
    bench.expect_call("two", lambda: (tmp_path / "two").write_text("1"))
    bench.calls["one"] = []
    bench.expect_none("one", lambda: (tmp_path / "one").write_text("1"))
    bench.expect_call("lock", lambda: lock.write_text("1"))
    bench.watcher.remove(number)
    bench.watcher.remove(number)
    bench.expect_none("lock", lambda: lock.write_text("1"))
    bench.expect_call("two", lambda: (tmp_path / "two").write_text("2"))


def test_callback_may_replace_and_close(bench, tmp_path):
    names = ("one", "two", "three")
    calls = []

    def on_change():
        calls.append(1)
        bench.watcher.replace([], [])
        bench.watcher.replace([], [(str(tmp_path / "four"), bench.counter("four"))])

    bench.watcher.replace([], [(str(tmp_path / name), on_change) for name in names])
    for name in names:
        (tmp_path / name).write_text("1")
    bench.settle()
    assert len(calls) == 1
    bench.expect_call("four", lambda: (tmp_path / "four").write_text("1"))
    bench.watcher.close()
    bench.watcher.close()


def test_add_without_a_file_raises(bench, tmp_path):
    with pytest.raises(KernelError) as raised:
        bench.watcher.add(str(tmp_path / "lock"), list, IN_CLOSE_WRITE)
    assert raised.value.call == "inotify_add_watch"


def test_added_file_that_is_removed_is_told(bench, tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    number = bench.watcher.add(str(lock), bench.counter("lock"), IN_CLOSE_WRITE)
    bench.expect_none("lock", lambda: lock.chmod(0o600))
    bench.expect_call("lock", lock.unlink)
    bench.settle()
    bench.watcher.remove(number)


@pytest.mark.parametrize("attempt", range(5))
def test_lock_of_a_process_that_is_killed_can_be_had_after_the_call(bench, tmp_path, attempt):
    lock = tmp_path / "lock"
    code = (
        "import fcntl, sys, time\n"
        f"file = open({str(lock)!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('x', end='', flush=True)\n"
        "time.sleep(1000)\n"
    )
    got = []

    def try_lock():
        with lock.open() as file:
            try:
                flock(file, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                return
            got.append(1)

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert read_exactly(child.stdout.fileno(), 1) == b"x"
        bench.watcher.add(str(lock), try_lock, IN_CLOSE_WRITE)
        try_lock()
        assert not got
        child.kill()
        end = bench.loop.now() + DEADLINE
        while not got:
            assert bench.loop.now() < end
            bench.turn(end)
        # It is not told by its own attempts.
        turns = bench.turns
        bench.settle()
        assert bench.turns - turns < 10
