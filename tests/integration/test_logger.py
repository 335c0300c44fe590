"""The log process under real masters: rotation, rings, and who may die when."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from masters import DEADLINE, name_of, needs_root, wait_gone

pytestmark = needs_root

PYTHON = sys.executable


def wait_until(condition, what: str, timeout: float = DEADLINE):
    """Return what `condition` returns as soon as it is true."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, what
        select.select([], [], [], 0.01)
    return found


def find_logger(directory: Path) -> int:
    """Return the pid of the log process that has a FIFO of this test open."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or name_of(int(entry)) != "lowsuper-logger":
            continue
        try:
            links = [
                os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd")
            ]
        except OSError:
            continue
        if any(link.startswith(f"{directory}/") for link in links):
            return int(entry)
    return 0


def read_all(path: Path) -> list[bytes]:
    """Return the lines of a log and its numbered backups, the oldest first."""
    backups = sorted(
        (int(name.suffix[1:]), name) for name in path.parent.glob(f"{path.name}.[0-9]*")
    )
    files = [name for _, name in reversed(backups)] + [path]
    texts = [file.read_bytes() for file in files]
    assert all(text.endswith(b"\n") for text in texts[:-1]), "a file ends within a line"
    return b"".join(texts).splitlines()


def numbers_of(lines: list[bytes]) -> list[int]:
    return [int(line[:10]) for line in lines if re.match(rb"\d{10} x+$", line)]


def start(masters, text: str, *arguments, **keywords):
    return masters.start(f"state-dir = {{T}}/state\n{text}", *arguments, **keywords)


def writer(name: str, first: int, count: int, *more: object, **keys: object) -> str:
    command = " ".join(map(str, (PYTHON, "{D}/write_lines.py", first, count, *more)))
    items = "".join(f",{key}={value}" for key, value in keys.items())
    return f"attach-daemon2 = name={name},cmd={command}{items}\n"


@pytest.fixture
def done(tmp_path):
    return tmp_path / "done"


def wait_done(path: Path) -> None:
    wait_until(path.exists, "the daemon did not write all that it had to", 60.0)


def wait_lines(path: Path, count: int) -> list[bytes]:
    """Wait until a log and its backups have so many lines, and return them."""

    def enough():
        try:
            lines = read_all(path)
        except (FileNotFoundError, AssertionError):
            return None  # in the middle of a rotation
        return lines if len(lines) >= count else None

    return wait_until(enough, f"{path} did not get {count} lines")


def test_rotation_at_full_speed_loses_and_splits_no_line(masters, tmp_path, done):
    path, count = tmp_path / "web.log", 600_000
    start(masters, writer("web", 0, count, 100, done, log=path, log_maxsize="3M", log_backups=99))
    wait_done(done)
    lines = wait_lines(path, count)
    assert numbers_of(lines) == list(range(count))
    sizes = [file.stat().st_size for file in tmp_path.glob("web.log.*")]
    assert len(sizes) >= 18
    assert max(sizes) <= 3 << 20 < min(sizes) + 200


def test_rotation_keeps_so_many_and_the_mode(masters, tmp_path, done):
    path = tmp_path / "web.log"
    path.write_text("old\n")
    path.chmod(0o600)
    start(masters, writer("web", 0, 2000, 100, done, log=path, log_maxsize="8k", log_backups=3))
    wait_done(done)

    def has_last() -> bool:
        try:
            return any(line.startswith(b"0000001999") for line in read_all(path))
        except (FileNotFoundError, AssertionError):
            return False  # in the middle of a rotation

    wait_until(has_last, "no last line")
    files = sorted(file.name for file in tmp_path.glob("web.log*"))
    assert files == ["web.log", "web.log.1", "web.log.2", "web.log.3"]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("web.log*")} == {0o600}
    kept = numbers_of(read_all(path))
    assert kept == list(range(2000 - len(kept), 2000))


def test_line_that_is_longer_than_a_file_stays_whole(masters, tmp_path, done):
    path = tmp_path / "web.log"
    start(masters, writer("web", 0, 20, 9000, done, log=path, log_maxsize="4k", log_backups=99))
    wait_done(done)
    assert numbers_of(wait_lines(path, 20)) == list(range(20))


def test_age_rotates(masters, tmp_path, done):
    path = tmp_path / "web.log"
    keys = {"log": path, "log_max_age": "200ms", "log_backups": 3}
    start(masters, writer("web", 0, 5, 100, done, **keys))
    wait_done(done)
    wait_until(Path(f"{path}.1").exists, "it was not rotated")
    assert numbers_of(wait_lines(path, 5)) == list(range(5))
    assert not Path(f"{path}.2").exists()  # an empty file has no age


def test_output_survives_the_log_process(masters, tmp_path, done):
    path, count = tmp_path / "web.log", 300_000
    keys = {"log": path, "log_maxsize": "2M", "log_backups": 99}
    master = start(masters, writer("web", 0, count, 100, done, **keys))
    for _ in range(2):
        pid = wait_until(lambda: find_logger(tmp_path), "no log process")
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
    master.wait_line("the log process has ended")
    wait_done(done)
    numbers = numbers_of(wait_lines(path, count))
    assert numbers == sorted(set(numbers)), "a line came twice or out of order"
    assert len(numbers) == count
    master.expect_silence("web: pid")


def test_smart_daemon_writes_on_whoever_is_killed(masters, tmp_path):
    masters.allow_survivors()
    path = tmp_path / "db.log"
    script = tmp_path / "tick.sh"
    script.write_text("n=0; while :; do n=$((n+1)); echo tick $n || exit 7; sleep 0.01; done\n")
    text = (
        f"attach-daemon2 = name=db,cmd=sh {script},pidfile={tmp_path}/db.pid,daemonize=true,"
        f"log={path},log_maxsize=64k,log_backups=99\n"
    )

    def last() -> int:
        lines = path.read_bytes().splitlines() if path.exists() else []
        return int(lines[-1].split()[1]) if lines else 0

    def wait_more(what: str) -> None:
        before = last()
        wait_until(lambda: last() > before + 3, what)

    master = masters.start(text)
    pid = master.pid_of("db")
    wait_more("it does not write")
    first = find_logger(tmp_path)
    master.kill()
    wait_more("it does not write without a master")
    assert find_logger(tmp_path) == first
    master = masters.start(text)
    assert master.pid_of("db") == pid
    wait_more("it does not write with the next master")
    assert find_logger(tmp_path) == first, "the next master did not take over the log process"
    os.kill(first, signal.SIGKILL)
    wait_more("it does not write with the next log process")
    second = find_logger(tmp_path)
    assert second not in (0, first)
    master.kill()
    os.kill(second, signal.SIGKILL)
    wait_gone(second)
    assert Path(f"/proc/{pid}").exists()
    masters.start(text)
    wait_more("it does not write after both were killed")
    assert Path(f"/proc/{pid}").exists(), "it died of a broken pipe"
    numbers = [int(line.split()[1]) for line in path.read_bytes().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1)), "a line is missing"


def test_log_process_ends_when_nobody_writes_and_leaves_nothing(masters, tmp_path, done):
    path = tmp_path / "web.log"
    master = start(masters, writer("web", 0, 100, 100, done, log=path, log_maxsize="1M"))
    wait_done(done)
    pid = wait_until(lambda: find_logger(tmp_path), "no log process")
    master.kill()
    wait_gone(pid)
    assert len(read_all(path)) == 100
    assert list((tmp_path / "state").glob("log-*")) == []


def test_full_disk_blocks_nobody_and_is_told_in_the_file(masters, tmp_path, done):
    place = tmp_path / "small"
    place.mkdir()
    text = writer("web", 0, 20_000, 100, done, log=f"{place}/web.log", log_maxsize="900k")
    script = f'mount -t tmpfs -o size=256k tmpfs {place} && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", script, "sh")
    master = start(masters, text, prefix=prefix)
    master.wait_line("web: log .*: No space left on device; lines are dropped")
    wait_done(done)
    inside = Path(f"/proc/{master.pid}/root{place}")
    log = inside / "web.log"
    numbers = numbers_of(log.read_bytes().splitlines())
    assert numbers == list(range(len(numbers)))
    assert log.read_bytes().endswith(b"\n")
    os.truncate(log, 0)
    found = master.wait_line(r"web: log .*: is written again; lines dropped: (\d+)")
    assert int(found[1]) == 20_000 - len(numbers)
    expected = f"lowsuper: lines dropped: No space left on device: {found[1]}\n"
    wait_until(lambda: log.read_text() == expected, "the file does not say so")


def test_ring_keeps_the_last_lines_and_survives(masters, tmp_path, done):
    from lowsuper.kernel.logger import read_ring

    text = writer("web", 0, 10_000, 100, done, log="ring:64k")
    master = start(masters, text)
    wait_done(done)
    (ring,) = (tmp_path / "state").glob("log-*/web.ring")
    fd = os.open(ring, os.O_RDONLY)
    try:
        wait_until(lambda: read_ring(fd)[1] == 1_000_000, "not all came")
        data, total = read_ring(fd)
        assert len(data) == 64 << 10
        assert numbers_of(data.splitlines()[1:])[-1] == 9_999
        assert read_ring(fd, total) == (b"", total)
        assert read_ring(fd, total - 100)[0] == data[-100:]
    finally:
        os.close(fd)
    master.stop()


def test_master_log_is_rotated_with_what_daemons_write(masters, tmp_path, done):
    path = tmp_path / "all.log"
    text = f"logto = {path}\nlog-maxsize = 64k\nlog-backups = 99\n" + writer(
        "web", 0, 5000, 100, done
    )
    masters.begin(f"state-dir = {{T}}/state\n{text}", wrap_output=True)
    wait_done(done)
    lines = wait_lines(path, 5002)  # two of the master's: started, and ready
    assert any(b"ready:" in line for line in lines)
    assert numbers_of(lines) == list(range(5000))
    assert len(list(tmp_path.glob("all.log.*"))) > 5


def test_touch_rotates_and_uwsgi_names_are_kept(masters, tmp_path, done):
    path, touch = tmp_path / "all.log", tmp_path / "touch"
    touch.touch()
    text = f"logto = {path}\nlog-maxsize = 1M\nlog-backupname = {tmp_path}/old\n"
    text += f"touch-logrotate = {touch}\n" + writer("web", 0, 10, 100, done)
    masters.begin(f"state-dir = {{T}}/state\n{text}")
    wait_done(done)
    wait_until(lambda: b"ready:" in path.read_bytes(), "it does not start")
    touch.write_text("now")
    wait_until((tmp_path / "old").exists, "it was not rotated")
    assert numbers_of((tmp_path / "old").read_bytes().splitlines()) == list(range(10))


def test_log_that_cannot_be_had_fails_the_start(masters, tmp_path):
    text = writer("web", 0, 1, log=f"{tmp_path}/no/web.log", log_maxsize="1M")
    master = start(masters, text)
    assert master.has_said(r"web: log .*/no/web.log: No such file or directory; next try")
    assert master.stop() == 0
