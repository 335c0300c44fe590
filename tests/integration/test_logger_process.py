"""The log process by itself, with each build of the helper: files, rings, attacks, take-over."""

from __future__ import annotations

import os
import select
import tempfile
import time
from pathlib import Path

import pytest

from lowsuper.command import parse_command
from lowsuper.kernel import native
from lowsuper.kernel.log import Log
from lowsuper.kernel.logger import Logger
from lowsuper.kernel.loop import Loop
from lowsuper.kernel.tail import Follower, NoOutputError, tail
from lowsuper.kernel.watch import Watcher
from lowsuper.model import DaemonSpec, MasterSpec, Origin, Output
from lowsuper.plan import Identity

pytestmark = pytest.mark.usefixtures("root")

DEADLINE = 20.0
NOBODY = 65534


@pytest.fixture
def place():
    """A directory that only root decides about."""
    with tempfile.TemporaryDirectory(prefix="logger-test-", dir="/run") as name:
        yield Path(name)


class Bench:
    """A master's side of the log process, and daemons that the test itself plays."""

    def __init__(self, spawner, place: Path):
        self.spawner, self.place = spawner, place
        self.lines: list[str] = []
        self.writers: dict[str, int] = {}
        self.loop = Loop()
        self.watcher = Watcher(self.loop)
        self.logger = self.make()

    def make(self) -> Logger:
        return Logger(self.loop, self.spawner, Log(), self.lines.append)

    def use(self, *daemons: DaemonSpec, uid: int = 0) -> None:
        spec = MasterSpec("test", ("/test.ini",), daemons, state_dir=f"{self.place}/state")
        identities = {each.name: Identity(uid, uid, ()) for each in daemons if uid}
        self.logger.use(spec, identities)

    def write(self, name: str, data: bytes) -> None:
        """Write as a daemon does: whatever happens, it goes on."""
        if name not in self.writers:
            self.writers[name] = os.open(self.logger.find_fifo(name), os.O_RDWR)
        while data:
            data = data[os.write(self.writers[name], data) :]

    def turn(self) -> None:
        """One turn of the master's loop."""
        self.loop.set_timer("test", time.monotonic_ns() + 10_000_000, lambda: None)
        self.loop.run_turn(lambda: None)

    def wait(self, condition, what: str = "nothing happened until the deadline"):
        end = time.monotonic() + DEADLINE
        while not (found := condition()):
            assert time.monotonic() < end, f"{what}; it said {self.lines}"
            self.turn()
        return found

    def wait_content(self, path: Path, content: bytes) -> None:
        self.wait(lambda: path.exists() and path.read_bytes() == content, f"{path} is other")

    def close(self) -> None:
        for fd in self.writers.values():
            os.close(fd)
        self.logger.close()
        self.watcher.close()
        self.loop.close()


@pytest.fixture
def bench(spawner, place):
    native.set_child_subreaper()
    made = Bench(spawner, place)
    try:
        yield made
    finally:
        made.close()
        end = time.monotonic() + DEADLINE
        while list((place / "state").glob("log-*")):
            assert time.monotonic() < end, "the log process did not go"
            select.select([], [], [], 0.01)
        native.set_child_subreaper(False)
        wait_for_children(end)


def wait_for_children(end: float) -> None:
    """Reap the log process, which is our child, so that it is known to have ended well."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            assert status in (0, 9), f"a log process ended with {status}"
        else:
            assert time.monotonic() < end
            select.select([], [], [], 0.01)


def daemon(name: str, output: Output, **fields) -> DaemonSpec:
    origin = Origin("test.ini", 1, "attach-daemon", name)
    return DaemonSpec(name, parse_command("true"), origin, log=output, **fields)


def file(path: Path) -> Output:
    return Output("file", path=str(path))


def numbered(count: int, width: int = 64) -> list[bytes]:
    return [b"%08d " % number + b"x" * (width - 10) + b"\n" for number in range(count)]


def test_rotation_happens_at_line_ends_whatever_the_writes(bench, place):
    path = place / "web.log"
    bench.use(daemon("web", file(path), log_maxsize=10_000, log_backups=99))
    data = b"".join(numbered(1000))
    at, step = 0, 1
    while at < len(data):
        bench.write("web", data[at : at + step])
        at, step = at + step, step * 3 % 7919 + 1
        bench.turn()
    bench.wait(lambda: joined(path) == data)
    files = list(place.glob("web.log*"))
    assert len(files) == 7
    assert all(each.read_bytes().endswith(b"\n") for each in files)
    assert max(each.stat().st_size for each in files) <= 10_000


def joined(path: Path) -> bytes:
    names = sorted(path.parent.glob(f"{path.name}.*"), key=lambda name: -int(name.suffix[1:]))
    try:
        return b"".join(name.read_bytes() for name in [*names, path])
    except FileNotFoundError:
        return b""


def test_rotation_on_request_waits_for_the_end_of_the_line(bench, place):
    path, old = place / "web.log", place / "web.log.1"
    bench.use(daemon("web", file(path), log_backups=2))
    bench.write("web", b"one\ntwo")
    bench.wait_content(path, b"one\ntwo")
    assert bench.logger.act(rotate=True)
    bench.write("web", b" and half\nthree\n")
    bench.wait_content(old, b"one\ntwo and half\n")
    bench.wait_content(path, b"three\n")


def test_reopen_follows_what_moved_the_file_away(bench, place):
    path = place / "web.log"
    bench.use(daemon("web", file(path), log_backups=2))
    bench.write("web", b"one\n")
    bench.wait_content(path, b"one\n")
    path.rename(place / "moved")
    assert bench.logger.act(rotate=False)
    bench.write("web", b"two\n")
    bench.wait_content(path, b"two\n")
    assert (place / "moved").read_bytes() == b"one\n"


def test_file_that_was_cut_off_goes_on_from_its_new_end(bench, place):
    path = place / "web.log"
    bench.use(daemon("web", file(path), log_maxsize=1 << 20))
    bench.write("web", b"one\n" * 1000)
    bench.wait_content(path, b"one\n" * 1000)
    os.truncate(path, 0)
    bench.write("web", b"two\n")
    bench.wait_content(path, b"two\n")


def test_link_in_the_place_of_the_next_file_is_not_followed(bench, place):
    home, secret = place / "home", place / "secret"
    home.mkdir()
    secret.write_bytes(b"secret\n")
    path = home / "web.log"
    bench.use(daemon("web", file(path), log_backups=2), uid=NOBODY)
    bench.write("web", b"one\n")
    bench.wait_content(path, b"one\n")
    os.chown(home, NOBODY, NOBODY)  # from here on that user plays with the names
    bench.logger.close()
    bench.use(daemon("web", file(path), log_backups=2), uid=NOBODY)
    path.rename(home / "gone")
    path.symlink_to(secret)
    bench.logger.act(rotate=False)
    bench.write("web", b"two\n")
    bench.wait(lambda: any("lines are dropped" in line for line in bench.lines))
    path.unlink()
    bench.write("web", b"three\n")
    dropped = b"lowsuper: lines dropped: it could not be written: 2\n"
    bench.wait(
        lambda: path.exists() and path.read_bytes() in (dropped, dropped[:-2] + b"1\nthree\n")
    )
    assert secret.read_bytes() == b"secret\n"


def test_backups_over_links_replace_the_links(bench, place):
    home, secret = place / "home", place / "secret"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    secret.write_bytes(b"secret\n")
    (home / "web.log.1").symlink_to(secret)
    (home / "web.log.2").symlink_to(secret)
    bench.use(daemon("web", file(home / "web.log"), log_backups=2), uid=NOBODY)
    bench.write("web", b"one\n")
    bench.wait_content(home / "web.log", b"one\n")
    bench.logger.act(rotate=True)
    bench.write("web", b"two\n")
    bench.wait_content(home / "web.log", b"two\n")
    assert not (home / "web.log.1").is_symlink()
    assert secret.read_bytes() == b"secret\n"


def test_rotation_that_fails_is_told_and_loses_nothing(bench, place):
    path = place / "web.log"
    (place / "web.log.1").mkdir()
    (place / "web.log.1" / "full").touch()
    bench.use(daemon("web", file(path), log_backups=1))
    bench.write("web", b"one\n")
    bench.wait_content(path, b"one\n")
    bench.logger.act(rotate=True)
    bench.wait(lambda: any("could not be rotated: Is a directory" in line for line in bench.lines))
    bench.write("web", b"two\n")
    bench.wait_content(path, b"one\ntwo\n")


def test_change_of_a_log_goes_on_in_the_other_file(bench, place):
    one, two = place / "one.log", place / "two.log"
    bench.use(daemon("web", file(one), log_backups=2))
    bench.write("web", b"one\n")
    bench.wait_content(one, b"one\n")
    bench.use(daemon("web", file(two), log_backups=2))
    # What it writes before the log process has heard of the change goes where it went before.
    written = b"one\n"
    while not two.exists() or not two.read_bytes():
        bench.write("web", b"two\n")
        written += b"two\n"
        bench.turn()
    bench.wait(lambda: one.read_bytes() + two.read_bytes() == written)


def test_next_master_takes_over_and_what_it_has_not_ends(bench, place):
    bench.use(
        daemon("web", file(place / "web.log"), log_backups=2),
        daemon("old", file(place / "old.log"), log_backups=2),
    )
    bench.write("web", b"one\n")
    bench.write("old", b"one\n")
    bench.logger.close()
    bench.write("web", b"two\n")
    bench.logger = bench.make()
    bench.use(daemon("web", file(place / "web.log"), log_backups=2))
    bench.write("web", b"three\n")
    bench.write("old", b"two\n")  # its daemon lives, as smart ones do
    bench.wait_content(place / "web.log", b"one\ntwo\nthree\n")
    bench.wait_content(place / "old.log", b"one\ntwo\n")
    (directory,) = (place / "state").glob("log-*")
    assert (directory / "old.fifo").exists()
    os.close(bench.writers.pop("old"))
    bench.wait(lambda: not (directory / "old.fifo").exists(), "its FIFO is still there")


def test_second_master_at_once_is_refused(bench, place):
    bench.use(daemon("web", file(place / "web.log"), log_backups=2))
    other = bench.make()
    bench.logger, first = other, bench.logger
    bench.use(daemon("web", file(place / "web.log"), log_backups=2))
    assert any("log process" in line for line in bench.lines)
    bench.logger.close()
    bench.logger = first
    bench.write("web", b"one\n")
    bench.wait_content(place / "web.log", b"one\n")


def test_ring_keeps_the_end_and_tells_who_follows(bench, place):
    spec = daemon("web", Output("ring", size=4096))
    bench.use(spec)
    calls: list[int] = []
    lines = numbered(200)
    follower = Follower(
        spec,
        lambda: calls.append(1),
        loop=bench.loop,
        watcher=bench.watcher,
        logger=bench.logger,
        uid=0,
    )
    bench.write("web", b"".join(lines[:10]))
    bench.wait(lambda: calls)
    assert follower.read(100) == b"".join(lines)[:100]
    bench.wait(lambda: len(calls) == 2, "what is left is not told")
    assert follower.read() == b"".join(lines[:10])[100:]
    assert follower.read() == b""
    # Who does not read costs nothing, and is told once.
    bench.write("web", b"".join(lines[10:]))
    bench.wait(lambda: tail(spec, 1, bench.logger, 0) == lines[-1])
    bench.wait(lambda: len(calls) == 3, "the rest is not told")
    bench.turn()
    assert len(calls) == 3
    data = follower.read()
    assert b"".join(lines).endswith(data)
    assert follower.skipped + len(data) == 190 * 64
    assert tail(spec, 3, bench.logger, 0) == b"".join(lines[-3:])
    assert len(tail(spec, 1000, bench.logger, 0).splitlines()) in (63, 64)
    follower.close()


def test_file_is_followed_through_rotations(bench, place):
    path = place / "web.log"
    spec = daemon("web", file(path), log_maxsize=4096, log_backups=99)
    bench.use(spec)
    calls: list[int] = []
    follower = Follower(
        spec,
        lambda: calls.append(1),
        loop=bench.loop,
        watcher=bench.watcher,
        logger=bench.logger,
        uid=0,
    )
    got = b""
    data = b"".join(numbered(50))
    for start in range(0, len(data), 640):
        bench.write("web", data[start : start + 640])

        def has_all(end: int = start + 640) -> bool:
            nonlocal got
            if calls:
                calls.clear()
                while more := follower.read():
                    got += more
            return len(got) >= min(end, len(data))

        bench.wait(has_all, "not all was told")
    assert got == data
    follower.close()


def test_many_logs_are_written_by_one_process(bench, place):
    names = [f"d{number}" for number in range(60)]
    bench.use(*(daemon(name, file(place / f"{name}.log"), log_backups=1) for name in names))
    for name in names:
        bench.write(name, f"{name}\n".encode() * 100)
    for name in names:
        bench.wait_content(place / f"{name}.log", f"{name}\n".encode() * 100)


def test_tail_of_a_plain_file(place, bench):
    path = place / "web.log"
    spec = daemon("web", file(path))
    assert tail(spec, 5, None, 0) == b""
    path.write_bytes(b"".join(numbered(5000)) + b"unfinished")
    assert tail(spec, 1, None, 0) == b"unfinished"
    assert tail(spec, 3, None, 0) == b"".join(numbered(5000)[-2:]) + b"unfinished"
    assert tail(spec, 10_000, None, 0) == path.read_bytes()
    assert tail(spec, 0, None, 0) == b""


def test_tail_looks_into_the_file_before(place, bench):
    path = place / "web.log"
    lines = numbered(10)
    path.write_bytes(b"".join(lines[7:]))
    Path(f"{path}.1").write_bytes(b"".join(lines[3:7]))
    Path(f"{path}.2").write_bytes(b"".join(lines[:3]))
    spec = daemon("web", file(path), log_backups=5)
    for count in (1, 3, 4, 7, 8, 10):
        assert tail(spec, count, None, 0) == b"".join(lines[-count:])


def test_tail_explains_where_there_is_none(place):
    with pytest.raises(NoOutputError, match="log = PATH or log = ring keeps it"):
        tail(daemon("web", None), 5, None, 0)
    with pytest.raises(NoOutputError, match="thrown away"):
        tail(daemon("web", Output("null")), 5, None, 0)


def test_tail_shows_no_file_of_root_through_a_link(place):
    home = place / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    (home / "web.log").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="a link"):
        tail(daemon("web", file(home / "web.log")), 5, None, 0)
