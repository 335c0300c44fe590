"""Pidfiles where anybody may have put anything: what is read, what is refused, and that it ends."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import socket
import time
from errno import ENOSYS, EPERM
from pathlib import Path

import pytest
from hostile import (
    MS_BIND,
    NOBODY,
    deadline,
    leave_mounts,
    mount,
    needs_root,
    opens,
    other,
    roots_directory,
)
from spawning import in_child

from lowsuper.errors import KernelError
from lowsuper.identity import Reading
from lowsuper.kernel import native, pidfile, trust
from lowsuper.kernel.pidfile import read_pidfile

SECRET = "4242\n"
US = os.geteuid()
POSTMASTER = (
    "811\n/var/lib/postgresql/15/main\n1700000000\n5432\n/var/run/postgresql\nlocalhost\n"
    "  5432001         0\nready   \n"
)


@pytest.fixture(autouse=True)
def never_blocks():
    with deadline(10):
        yield


@pytest.fixture
def path(tmp_path):
    tmp_path.chmod(0o777)  # where only root can write, less is looked at
    return tmp_path / "some.pid"


@pytest.fixture
def safe():
    with roots_directory() as directory:
        (directory / "sub").mkdir(mode=0o755)
        (directory / "sub/x.pid").write_text("123\n")
        yield directory


@pytest.fixture(params=["openat2", ENOSYS, EPERM])
def any_kernel(request, monkeypatch):
    """Linux with openat2, without it, and with a filter that does not let it pass."""
    if request.param != "openat2":

        def refuse(*_args, **_named):
            raise KernelError("openat2", request.param)

        monkeypatch.setattr(native, "openat2", refuse)


@pytest.mark.parametrize(
    ("text", "pid", "complete"),
    [
        ("123\n", 123, True),
        ("123", 123, False),
        ("12", 12, False),
        ("  123 \t\n", 123, True),
        ("123\r\n", 123, True),
        ("0000000123\n", 123, True),
        ("4194304\n", 4194304, True),
        ("1\n", 1, True),
        ("123\n\0\0\0 anything -1", 123, True),
        ("123" + " " * 61 + "\n", 123, True),
        (" " * 61 + "123", 123, False),
        (POSTMASTER, 811, True),
        ("123\n" + "x" * 60000, 123, True),
    ],
)
def test_number_on_the_first_line_is_the_pid(path, text, pid, complete):
    path.write_text(text)
    reading = read_pidfile(str(path))
    changed = path.stat().st_ctime_ns
    expected = Reading(pid, owner=US, complete=complete, safe=reading.safe, changed=changed)
    assert reading == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("\n", "does not begin with a number"),
        ("\n123\n", "does not begin with a number"),
        ("   ", "does not begin with a number"),
        ("nginx\n", "does not begin with a number"),
        ("+1\n", "does not begin with a number"),
        ("\0\0\0\0", "does not begin with a number"),
        ("\u0661\u0662\n", "does not begin with a number"),
        ("\u00b2\n", "does not begin with a number"),
        ("123\0\n", "holds more than a number on its first line"),
        ("123 456\n", "holds more than a number on its first line"),
        ("0x10\n", "holds more than a number on its first line"),
        ("1_0\n", "holds more than a number on its first line"),
        ("12.0\n", "holds more than a number on its first line"),
        ("-123\n", "holds a negative number"),
        ("-1", "holds a negative number"),
        ("0\n", "holds the number 0"),
        ("000\n", "holds the number 0"),
        ("4194305\n", "holds a number that is larger than any pid"),
        ("4294967297\n", "holds a number that is larger than any pid"),
        ("18446744073709551617\n", "holds a number that is larger than any pid"),
        ("1" * 64, "holds a number that is larger than any pid"),
        ("123" + " " * 62 + "\n", "has a first line of more than 64 bytes"),
        ("1" * 65, "has a first line of more than 64 bytes"),
        ("123\n" + "x" * 65536, "is larger than 64 KiB"),
    ],
)
def test_text_that_is_no_pid_is_refused_and_not_quoted(path, text, reason):
    path.write_text(text)
    assert read_pidfile(str(path)) == Reading(reason=reason, owner=US)


def test_sparse_file_of_a_terabyte_is_refused(path):
    with path.open("w") as file:
        file.write("123\n")
        file.truncate(1 << 40)
    assert read_pidfile(str(path)).reason == "is larger than 64 KiB"


def make_link(path):
    target = path.with_name("target")
    target.write_text(SECRET)
    path.symlink_to(target)
    return target


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_device(path):
    os.mknod(path, 0o20666, os.makedev(1, 5))


def make_block_device(path):
    os.mknod(path, 0o60666, os.makedev(7, 255))


def make_hard_link(path):
    target = path.with_name("target")
    target.write_text(SECRET)
    target.chmod(0o600)
    path.hardlink_to(target)
    return target


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_link, "is a symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
        (lambda path: path.symlink_to(path), "is a symbolic link"),
        (make_fifo, "is a FIFO"),
        (make_socket, "is a socket"),
        (lambda path: path.mkdir(), "is a directory"),
        pytest.param(make_device, "is a device", marks=needs_root),
        pytest.param(make_block_device, "is a device", marks=needs_root),
        (make_hard_link, "has another hard link"),
    ],
)
def test_what_is_no_plain_file_of_one_name_is_refused_and_not_opened(path, make, reason):
    target = make(path)
    watched = target or (path if path.exists() else path.parent)
    with opens(watched) as was_opened:
        reading = read_pidfile(str(path))
        assert not was_opened()
    assert reading == Reading(reason=reason, owner=US)


@pytest.mark.usefixtures("any_kernel")
def test_plain_file_is_opened(path):
    """The control of the test above: an opening is seen."""
    path.write_text("123\n")
    with opens(path) as was_opened:
        assert read_pidfile(str(path)).pid == 123
        assert was_opened()


@pytest.mark.usefixtures("any_kernel")
@pytest.mark.parametrize(
    ("name", "reason", "missing"),
    [
        ("none.pid", "is not there", True),
        ("none/x.pid", "is not there, and neither is its directory", True),
        ("plain/x.pid", "cannot be reached: what should be its directory is none", False),
        ("loop/x.pid", "cannot be reached: too many symbolic links", False),
        ("n" * 256, "has too long a name", False),
        ("d/" * 3000 + "x", "has too long a name", False),
        ("a\0b", "has a name that no file can have", False),
        ("a\0b/x", "has a name that no file can have", False),
        ("\ud800", "has a name that no file can have", False),
        ("", "is a directory", False),
        (".", "is a directory", False),
        ("..", "is a directory", False),
        ("plain/", "is a directory", False),
    ],
)
def test_path_that_leads_nowhere_is_told(tmp_path, name, reason, missing):
    (tmp_path / "plain").write_text("123\n")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a").write_text("123\n")
    reading = read_pidfile(f"{tmp_path}/{name}")
    assert reading == Reading(reason=reason, missing=missing)


@pytest.mark.usefixtures("any_kernel")
def test_directory_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x.pid").write_text("123\n")
    (tmp_path / "link").symlink_to("real")
    assert read_pidfile(f"{tmp_path}/link/x.pid").pid == 123


def test_relative_path_is_relative_to_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "x.pid").write_text("123\n")
    monkeypatch.chdir(tmp_path)
    assert read_pidfile("x.pid").pid == 123
    assert read_pidfile("./x.pid").pid == 123


@needs_root
def test_file_that_may_not_be_read_is_told(safe, not_root):
    (safe / "sub/x.pid").chmod(0o600)
    not_root()
    reading = read_pidfile(f"{safe}/sub/x.pid")
    assert reading == Reading(reason="cannot be read: Permission denied", owner=0)


@needs_root
def test_directory_that_may_not_be_entered_is_told(tmp_path, path, not_root):
    path.write_text("123\n")
    tmp_path.chmod(0o700)
    not_root()
    reading = read_pidfile(str(path))
    assert reading == Reading(reason="cannot be reached: Permission denied")


@pytest.mark.usefixtures("any_kernel")
def test_file_under_a_lease_is_busy(path):
    """A plain open would wait for up to 45 s: /proc/sys/fs/lease-break-time."""
    path.write_text("123\n")

    def hold(ready):
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fd = os.open(path, os.O_WRONLY)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        ready()
        signal.pause()

    with other(hold):
        started = time.monotonic()
        reading = read_pidfile(str(path))
        assert time.monotonic() - started < 1
    assert reading == Reading(reason="is busy (somebody holds a lease on it)", owner=US)


@needs_root
@pytest.mark.usefixtures("any_kernel")
def test_file_that_is_a_mount_is_refused_and_a_mounted_directory_is_not(tmp_path, path):
    path.write_text("123\n")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "other").mkdir()

    def act():
        leave_mounts()
        mount(str(tmp_path / "secret"), path, flags=MS_BIND)
        mount("tmpfs", tmp_path / "other", "tmpfs")
        (tmp_path / "other/x.pid").write_text("77\n")
        inside = read_pidfile(f"{tmp_path}/other/x.pid")
        return tuple(read_pidfile(str(path))), tuple(inside)[:2]

    refused, inside = in_child(act)
    reason = "is a mount of its own, which is not followed (mount its directory instead)"
    assert Reading(*refused) == Reading(reason=reason)
    assert inside == (77, "")


@needs_root
def test_without_proc_it_is_told(path):
    path.write_text("123\n")

    def act():
        leave_mounts()
        mount("tmpfs", Path("/proc"), "tmpfs")
        return read_pidfile(str(path)).reason

    assert in_child(act) == "cannot be read: /proc is not mounted"


@pytest.mark.parametrize("mode", [0o777, 0o755])
def test_file_that_was_replaced_meanwhile_is_looked_up_again(path, monkeypatch, mode):
    path.parent.chmod(mode)
    path.write_text("1\n")
    look = pidfile._look
    calls = itertools.count()

    def look_late(dir_fd, name):
        fd = look(dir_fd, name)
        if next(calls) < 2:
            path.with_name("new").write_text("123\n")
            path.with_name("new").replace(path)
        return fd

    monkeypatch.setattr(pidfile, "_look", look_late)
    assert read_pidfile(str(path)).pid == 123


@pytest.mark.parametrize("mode", [0o777, 0o755])
def test_file_that_is_replaced_again_and_again_is_told(path, monkeypatch, mode):
    path.parent.chmod(mode)
    look = pidfile._look

    def look_late(dir_fd, name):
        path.write_text("1\n")
        fd = look(dir_fd, name)
        path.unlink()
        return fd

    monkeypatch.setattr(pidfile, "_look", look_late)
    assert read_pidfile(str(path)).reason == "is replaced again and again"


@pytest.mark.parametrize("again", [False, True])
def test_hard_link_that_is_removed_when_its_names_are_counted_is_not_read(path, monkeypatch, again):
    """Then the secret has one name: its own. Making the link once more does not help either."""
    secret = make_hard_link(path)
    look, stat_fd = pidfile._look, os.fstat

    def look_early(dir_fd, name):
        path.unlink(missing_ok=True)
        path.hardlink_to(secret)
        fd = look(dir_fd, name)
        path.unlink()
        return fd

    def count_early(fd):
        status = stat_fd(fd)
        if again and status.st_ino == secret.stat().st_ino and not path.exists():
            path.hardlink_to(secret)
        return status

    monkeypatch.setattr(pidfile, "_look", look_early)
    monkeypatch.setattr(pidfile.os, "fstat", count_early)
    with opens(secret) as was_opened:
        assert read_pidfile(str(path)).reason == "is replaced again and again"
        assert not was_opened()


@pytest.mark.parametrize("name", ["x (deleted)", "x (deleted) (deleted)", " (deleted)"])
def test_name_that_looks_like_a_removed_file_is_read(tmp_path, name):
    (tmp_path / name).write_text("123\n")
    assert read_pidfile(str(tmp_path / name)).pid == 123


def test_flips_between_kinds_of_files_are_never_read_wrongly(tmp_path, path):
    """Another process puts a link, FIFO, hard link or file in place as fast as it can."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    plain = tmp_path / "plain"
    plain.write_text("123\n")

    def flip(ready):
        new = tmp_path / "new"
        ready()
        while True:
            new.symlink_to(secret)
            new.replace(path)
            os.mkfifo(new)
            new.replace(path)
            shutil.copyfile(plain, new)
            new.replace(path)
            os.link(secret, new)
            new.replace(path)
            path.unlink()

    found = {}
    # The one in between: opened by its only name, which then was taken away.
    few = {"is replaced again and again"}
    expected = {123, "is a symbolic link", "is a FIFO", "has another hard link", "is not there"}
    with other(flip):
        start = now = time.monotonic()
        while now < start + 1 or (not expected <= found.keys() and now < start + 20):
            reading = read_pidfile(str(path))
            key = reading.reason or reading.pid
            found[key] = found.get(key, 0) + 1
            now = time.monotonic()
    assert found.keys() - few == expected
    assert sum(found.values()) > 1000


def test_reading_while_another_writes_sees_one_or_the_other(path):
    """The writer is ours: atomic. So what is read is always complete."""
    pidfile.write_pidfile(str(path), 1111111)

    def write(ready):
        ready()
        for number in itertools.cycle((22, 1111111)):
            pidfile.write_pidfile(str(path), number)

    seen = set()
    with other(write):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            reading = read_pidfile(str(path))
            seen.add((reading.pid, reading.reason, reading.complete))
    seen.discard((0, "is replaced again and again", False))  # no wonder
    assert seen == {(22, "", True), (1111111, "", True)}


# Who could have written it.


def is_safe(path):
    reading = read_pidfile(str(path))
    assert reading.pid == 123, reading
    return reading.safe


@needs_root
def test_roots_file_in_roots_directories_is_safe(safe, monkeypatch):
    assert is_safe(safe / "sub/x.pid")
    assert is_safe(f"{safe}//sub/./../sub/x.pid")
    monkeypatch.chdir(safe)
    assert is_safe("sub/x.pid")
    monkeypatch.chdir("sub")
    assert is_safe("x.pid")
    assert is_safe("../sub/x.pid")


@needs_root
@pytest.mark.parametrize("what", ["sub/x.pid", "sub", "."])
@pytest.mark.parametrize(
    ("owner", "group", "mode"),
    [
        (NOBODY, 0, None),
        (NOBODY, NOBODY, 0o500),
        (0, NOBODY, 0o775),
        (0, 0, 0o775),  # members of group root are not root
        (0, 0, 0o757),
        (0, 0, 0o1777),
    ],
)
def test_file_that_others_could_have_written_is_not_safe(safe, what, owner, group, mode):
    assert is_safe(safe / "sub/x.pid")
    os.chown(safe / what, owner, group)
    if mode is not None:
        (safe / what).chmod(mode)
    assert not is_safe(safe / "sub/x.pid")


@needs_root
def test_group_of_others_may_read(safe):
    for what in ("sub/x.pid", "sub", "."):
        os.chown(safe / what, 0, NOBODY)
    assert is_safe(safe / "sub/x.pid")


@needs_root
def test_safe_is_what_root_or_the_reader_could_have_written(safe, not_root):
    os.chown(safe / "sub", NOBODY, NOBODY)
    os.chown(safe / "sub/x.pid", NOBODY, NOBODY)
    assert not is_safe(safe / "sub/x.pid")
    not_root()
    assert is_safe(safe / "sub/x.pid")


@needs_root
def test_link_of_root_is_as_safe_as_where_it_leads(safe):
    (safe / "absolute").symlink_to(safe / "sub")
    (safe / "relative").symlink_to("./absolute/../sub")
    assert is_safe(safe / "absolute/x.pid")
    assert is_safe(safe / "relative/x.pid")
    (safe / "sub").chmod(0o777)
    assert not is_safe(safe / "absolute/x.pid")


@needs_root
def test_link_of_a_user_to_a_safe_place_is_not_safe(safe):
    """`run -> /run`: the file is root's, but it is the user who says which one is read."""
    theirs = safe / "theirs"
    theirs.mkdir()
    (theirs / "run").symlink_to(safe / "sub")
    assert is_safe(theirs / "run/x.pid")
    os.chown(theirs, NOBODY, NOBODY)
    assert not is_safe(theirs / "run/x.pid")
    (safe / "again").symlink_to("theirs/run")  # root's own link to it does not help
    assert not is_safe(safe / "again/x.pid")


@needs_root
def test_way_up_through_a_users_directory_is_not_safe(safe):
    (safe / "theirs").mkdir()
    os.chown(safe / "theirs", NOBODY, NOBODY)
    assert not is_safe(safe / "theirs/../sub/x.pid")


@needs_root
def test_path_that_means_another_directory_by_now_is_not_safe(safe):
    fd = os.open(safe / "sub", os.O_PATH)
    try:
        assert trust.is_trusted(str(safe / "sub"), fd)
        (safe / "sub").rename(safe / "old")
        assert not trust.is_trusted(str(safe / "sub"), fd)
        (safe / "sub").mkdir(mode=0o755)
        assert not trust.is_trusted(str(safe / "sub"), fd)
    finally:
        os.close(fd)


@needs_root
def test_many_links_one_behind_the_other_end(safe):
    (safe / "l0").symlink_to("sub")
    for number in range(1, 60):
        (safe / f"l{number}").symlink_to(f"l{number - 1}")
    assert is_safe(safe / "l30/x.pid")
    with pytest.raises(OSError, match="Too many levels"):
        trust.open_trusted(str(safe / "l50"))
    with pytest.raises(OSError, match="Not a directory"):
        trust.open_trusted(str(safe / "sub/x.pid"))
    with pytest.raises(trust.UntrustedError, match=r"others than uid 0 can write to /tmp"):
        trust.open_trusted("/tmp")
