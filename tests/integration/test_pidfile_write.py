"""Pidfiles that lowsuper writes and removes: whole or not at all, and nobody else's."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from errno import ENOSPC

import pytest
from hostile import NOBODY, deadline, leave_mounts, mount, needs_root, other, roots_directory
from spawning import in_child

from lowsuper.errors import KernelError
from lowsuper.kernel.pidfile import read_pidfile, remove_pidfile, write_pidfile


@pytest.fixture(autouse=True)
def never_blocks():
    with deadline(10):
        yield


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.pid"


@pytest.fixture
def open_directory():
    with roots_directory() as directory:
        yield directory


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_everybody_may_read_it_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        write_pidfile(str(path), 4194304)
    finally:
        os.umask(before)
    assert path.read_text() == "4194304\n"
    assert path.stat().st_mode & 0o7777 == 0o644
    assert os.listdir(path.parent) == ["some.pid"]


def test_relative_path_is_relative_to_the_current_directory(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    write_pidfile("some.pid", 123)
    assert path.read_text() == "123\n"
    remove_pidfile("some.pid", 123)
    assert not path.exists()


def test_name_as_long_as_can_be_is_written(tmp_path):
    path = tmp_path / ("\u00e4" * 127)
    write_pidfile(str(path), 123)
    assert path.read_text() == "123\n"


def test_what_was_there_is_replaced_and_not_written_to(path):
    victim = path.with_name("victim")
    victim.write_text("precious")
    for make in (path.symlink_to, path.hardlink_to):
        make(victim)
        write_pidfile(str(path), 123)
        assert victim.read_text() == "precious"
        assert path.read_text() == "123\n"
        assert not path.is_symlink()
        path.unlink()
    os.mkfifo(path)
    write_pidfile(str(path), 123)
    assert read_pidfile(str(path)).pid == 123


def test_directory_in_its_place_is_an_error_and_stays(path):
    path.mkdir()
    with pytest.raises(KernelError, match=r"^pidfile /.*/some\.pid: Is a directory$"):
        write_pidfile(str(path), 123)
    with pytest.raises(KernelError, match=r"^pidfile /.*/: Is a directory$"):
        write_pidfile(f"{path}/", 123)
    assert os.listdir(path.parent) == ["some.pid"]


def test_missing_directory_is_an_error(path):
    with pytest.raises(KernelError, match=r"^pidfile /.*/some\.pid/x: No such file or directory$"):
        write_pidfile(f"{path}/x", 123)


def test_names_that_others_took_are_left_to_them(path):
    mine = [path.with_name(f".some.pid.{os.getpid()}.{number}") for number in range(100)]
    victim = path.with_name("victim")
    victim.write_text("precious")
    mine[0].write_text("theirs")
    mine[1].symlink_to(victim)
    os.mkfifo(mine[2])
    write_pidfile(str(path), 123)
    assert path.read_text() == "123\n"
    for name in mine[3:]:
        name.touch()
    with pytest.raises(KernelError, match="File exists; all temporary names beside it are taken"):
        write_pidfile(str(path), 456)
    assert path.read_text() == "123\n"
    assert all(name.is_symlink() or name.exists() for name in mine)
    assert mine[0].read_text() == "theirs"
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("room", [0, 3])
def test_file_that_does_not_fit_leaves_the_old_one(path, room):
    """With room for 3 bytes the first write(2) is a short one."""
    write_pidfile(str(path), 123)

    def act():
        try:
            write_pidfile(str(path), 456789)
        except KernelError as error:
            return str(error)

    text = in_child(act, limits={resource.RLIMIT_FSIZE: room})
    assert text == f"pidfile {path}: File too large"
    assert path.read_text() == "123\n"
    assert os.listdir(path.parent) == ["some.pid"]


@needs_root
def test_full_disk_leaves_the_old_one(tmp_path):
    def act():
        leave_mounts()
        mount("tmpfs", tmp_path, "tmpfs", data="size=8k")
        path = tmp_path / "some.pid"
        write_pidfile(str(path), 123)
        (tmp_path / "filler").write_bytes(b"x" * 4096)
        try:
            write_pidfile(str(path), 456)
        except KernelError as error:
            return error.errno, path.read_text(), sorted(os.listdir(tmp_path))

    assert in_child(act) == (ENOSPC, "123\n", ["filler", "some.pid"])


@needs_root
def test_owner_of_the_directory_cannot_make_it_write_elsewhere(open_directory):
    """As fast as it can, nobody moves what appears in its directory, and puts links there."""
    victim = open_directory / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    theirs = open_directory / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    path = theirs / "some.pid"

    def fight(ready):
        os.chdir(theirs)
        ready()
        while True:
            for name in os.listdir("."):
                with contextlib.suppress(OSError):
                    if name.startswith(".some"):
                        os.rename(name, "moved")
                        os.symlink(victim, name)
                    else:
                        os.unlink(name)
            with contextlib.suppress(OSError):
                os.symlink(victim, "some.pid")

    errors, count = set(), 0
    with other(fight, uid=NOBODY):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            count += 1
            try:
                write_pidfile(str(path), 123)
            except KernelError as error:
                errors.add(error.strerror)
    assert count > 100
    assert errors <= {"No such file or directory", "File exists"}
    status = victim.stat()
    assert victim.read_text() == "precious"
    assert (status.st_mode & 0o7777, status.st_uid, status.st_nlink) == (0o600, 0, 1)


# Removal.


def test_own_number_is_removed(path):
    write_pidfile(str(path), 123)
    remove_pidfile(str(path), 123)
    assert os.listdir(path.parent) == []


def test_what_is_not_there_is_removed_already(path):
    remove_pidfile(str(path), 123)
    remove_pidfile(str(path))
    remove_pidfile(f"{path}/none", 123)


def test_other_number_stays(path):
    for text in ("124\n", "1234\n", "12\n", "", "123 4\n", "garbage"):
        path.write_text(text)
        remove_pidfile(str(path), 123)
        assert path.read_text() == text


def test_what_is_no_plain_file_stays(path):
    own = path.with_name("own")
    write_pidfile(str(own), 123)
    path.symlink_to(own)
    remove_pidfile(str(path), 123)
    assert path.is_symlink()
    path.unlink()
    path.hardlink_to(own)
    remove_pidfile(str(path), 123)
    assert path.exists()
    path.unlink()
    os.mkfifo(path)
    remove_pidfile(str(path), 123)
    assert path.is_fifo()


def test_without_a_number_whatever_is_there_is_removed(path):
    path.write_text("garbage")
    remove_pidfile(str(path))
    assert not path.exists()


@needs_root
def test_file_that_may_not_be_removed_is_told(open_directory, not_root):
    path = open_directory / "some.pid"
    write_pidfile(str(path), 123)
    not_root()
    with pytest.raises(KernelError, match=r"^unlink /.*/some\.pid: Permission denied$"):
        remove_pidfile(str(path), 123)
