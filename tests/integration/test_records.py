"""Records of smart daemons on disk, their directory, and the locks of pidfiles."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import resource
import select
import shutil
import signal
import time
from errno import ENOSPC
from pathlib import Path

import pytest
from hostile import (
    NOBODY,
    deadline,
    leave_mounts,
    mount,
    needs_root,
    other,
    roots_directory,
)
from spawning import in_child

from lowsuper.errors import KernelError
from lowsuper.identity import ProcessId, Recorded
from lowsuper.kernel import native, records
from lowsuper.kernel.records import (
    BrokenError,
    HeldError,
    boot_id,
    default_directory,
    make_key,
    open_store,
    parse,
    prepare_for,
    render,
)

PIDFILE = "/run/web.pid"
IN_CLOSE_WRITE = 0x8
BOOT = "0b6c5a2e-5d0c-4f0e-8f6a-0a4f1f6b7c11"
LAUNCHED = Recorded(PIDFILE, BOOT, leaf="/sys/fs/cgroup/lowsuper-x/smart/web.1")
RUNNING = LAUNCHED.replace(main=ProcessId(123, 4567, 89), exe="/usr/sbin/web")
KEPT = Recorded(PIDFILE, BOOT, ProcessId(1, 0), "/a\nb\\n\\", "", "shim", ProcessId(4194304, 1, 2))
ODD = Recorded("/run/\udcff \n\\x", "b", exe="\u00e4\r\t \0end\nend\n", keeper_kind="pidns ")


@pytest.fixture(autouse=True)
def never_blocks():
    with deadline(20):
        yield


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"{tmp_path}/state")
    yield opened
    opened.close()


@pytest.fixture
def safe():
    with roots_directory() as directory:
        yield directory


def record_of(store, pidfile=PIDFILE):
    return Path(store.directory) / f"{make_key(pidfile)}.record"


def is_refused(store, why, pidfile=PIDFILE):
    recorded, problem = store.load(pidfile)
    path = record_of(store, pidfile)
    expected = f"the record of {pidfile}, {path}, {why}; it counts as none"
    return (recorded, problem) == (None, expected) or pytest.fail(problem)


# The text.


@pytest.mark.parametrize("recorded", [LAUNCHED, RUNNING, KEPT, ODD])
def test_record_is_read_as_it_was_written(store, recorded):
    assert parse(render(recorded)) == recorded
    store.save(recorded)
    assert store.load(recorded.pidfile) == (recorded, "")
    assert os.listdir(store.directory) == [f"{make_key(recorded.pidfile)}.record"]
    assert record_of(store, recorded.pidfile).stat().st_mode & 0o7777 == 0o600


def test_any_text_goes_through_a_record():
    rng = random.Random(3)
    for _ in range(2000):
        texts = ["".join(rng.choices("\\n\n\r end/1\u2028\0", k=rng.randrange(8))) for _ in "1234"]
        numbers = [rng.randrange(1, 1 << 22), rng.randrange(1 << 63), rng.randrange(1 << 63)]
        recorded = Recorded(texts[0], BOOT, ProcessId(*numbers), *texts[1:])
        assert parse(render(recorded)) == recorded


def test_record_has_every_field():
    assert Recorded.__match_args__ == records.KEYS


def test_record_cut_short_anywhere_is_none(store):
    store.save(RUNNING)
    path = record_of(store)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        recorded, problem = store.load(PIDFILE)
        assert recorded is None
        assert "it counts as none" in problem
    path.write_bytes(whole + b"\n")
    assert is_refused(store, "is cut short or too long")
    path.write_bytes(whole)
    assert store.load(PIDFILE) == (RUNNING, "")


def test_garbage_is_none_and_never_an_exception(store):
    rng = random.Random(4)
    store.save(KEPT)
    path = record_of(store)
    whole = path.read_bytes()
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b"\0\n \\n019-x\xff")
        path.write_bytes(data)
        recorded, problem = store.load(PIDFILE)
        assert (recorded is None) == bool(problem)
    for data in (b"", b"\0" * 4096, b"\xff\xfe" * 99, rng.randbytes(5000), b"x" * (1 << 20)):
        path.write_bytes(data)
        assert store.load(PIDFILE)[0] is None


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("lowsuper-record 1", "lowsuper-record 2", "is of another version of lowsuper"),
        ("lowsuper-record 1", "lowsuper 1", "is not a record"),
        ("boot_id " + BOOT, "boot_id ", "has no boot id"),
        ("boot_id ", "bootid ", "has no boot_id where it should be"),
        ("leaf /", "leaf/", "has no leaf where it should be"),
        ("main 123 ", "main 0 ", "has a pid that is none"),
        ("main 123 ", "main 4194305 ", "has a pid that is none"),
        ("main 123 ", "main -1 ", "has a process that is none"),
        ("main 123 ", "main +1 ", "has a process that is none"),
        ("main 123 ", "main 0123 ", "has a process that is none"),
        ("main 123 ", "main  123 ", "has a process that is none"),
        ("main 123 ", "main \u0661 ", "has a process that is none"),
        ("main 123 ", "main " + "9" * 5000 + " ", "has a process that is none"),
        ("main 123 4567 89", "main 123 4567", "has a process that is none"),
        ("exe /usr", "exe \\x/usr", "has an escape that is none"),
        ("/sbin/web\n", "/sbin/web\\\n", "has an escape that is none"),
        ("exe /usr/sbin/web\n", "", "is cut short or too long"),
        ("exe ", "exe 1\nexe ", "is cut short or too long"),
        ("\nend\n", "\r\nend\n", "has a process that is none"),
    ],
)
def test_record_that_is_not_ours_in_one_place_is_none(before, after, why):
    text = render(RUNNING)
    assert before in text
    changed = text.replace(before, after)
    with pytest.raises(BrokenError, match=f"^{why}$"):
        parse(changed)


def test_record_of_another_pidfile_is_none(store):
    store.save(RUNNING)
    record_of(store).rename(record_of(store, "/run/b.pid"))
    assert is_refused(store, "is that of another pidfile", "/run/b.pid")
    assert store.load(PIDFILE) == (None, "")


def test_paths_that_mean_the_same_have_the_same_record(store, monkeypatch):
    store.save(RUNNING.replace(pidfile="/run//x/../web.pid"))
    assert store.load(PIDFILE)[0] is not None
    monkeypatch.chdir("/run")
    assert store.load("web.pid")[0] is not None


def test_keys_are_legible_and_different():
    paths = [
        "/a/web.pid",
        "/b/web.pid",
        "/a/.web.pid",
        "/a/web pid",
        "/a/w\u00e4b.pid",
        "/a/web.pie",
    ]
    paths += [f"/a/{'x' * 255}", "/a/" + "x" * 254, "/", "/a/..\udcff"]
    keys = [make_key(path) for path in paths]
    assert len(set(keys)) == len(paths)
    assert all(
        key.isascii() and "/" not in key and key[0] != "." and len(key) < 130 for key in keys
    )
    assert keys[0].startswith("web.pid-")
    assert make_key("/run/web.pid") == "web.pid-55619083551eccad"  # the next version's, too


# The files.


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.symlink_to(path.with_name("real")), "cannot be read: Too many levels"),
        (os.mkfifo, "is not a plain file"),
        (lambda path: path.mkdir(), "is not a plain file"),
        (lambda path: path.hardlink_to(path.with_name("real")), "can be written by others"),
        (lambda path: path.touch() or path.chmod(0o620), "can be written by others"),
        pytest.param(
            lambda path: path.touch() or os.chown(path, NOBODY, 0),
            f"belongs to uid {NOBODY}",
            marks=needs_root,
        ),
    ],
)
def test_what_is_in_place_of_a_record_is_none(store, make, why):
    path = record_of(store)
    path.with_name("real").write_text(render(RUNNING))
    path.with_name("real").chmod(0o600)
    make(path)
    recorded, problem = store.load(PIDFILE)
    assert recorded is None
    assert f", {why}" in problem
    if path.is_dir():
        with pytest.raises(KernelError, match=r"^record /.*\.record: Is a directory$"):
            store.save(KEPT)
    else:
        store.save(KEPT)
        assert store.load(PIDFILE) == (KEPT, "")
    assert path.with_name("real").read_text() == render(RUNNING)


def test_record_is_removed(store):
    store.remove(PIDFILE)
    store.save(RUNNING)
    store.remove(PIDFILE)
    assert store.load(PIDFILE) == (None, "")
    assert os.listdir(store.directory) == []


def test_what_a_killed_master_left_is_replaced(store):
    left = Path(store.directory) / f"{make_key(PIDFILE)}.new"
    for make in (lambda: left.write_text("half"), lambda: left.symlink_to("/dev/null")):
        make()
        store.save(RUNNING)
        assert not left.is_symlink()
        assert not left.exists()
        make()
        store.remove(PIDFILE)
        assert os.listdir(store.directory) == []


@pytest.mark.parametrize("room", [0, 10])
def test_record_that_does_not_fit_leaves_the_old_one(store, room):
    store.save(LAUNCHED)

    def act():
        try:
            store.save(RUNNING)
        except KernelError as error:
            return str(error)

    text = in_child(act, limits={resource.RLIMIT_FSIZE: room})
    assert text == f"record {record_of(store)}: File too large"
    assert store.load(PIDFILE) == (LAUNCHED, "")
    assert os.listdir(store.directory) == [record_of(store).name]


@needs_root
def test_full_disk_leaves_the_old_record(tmp_path):
    def act():
        leave_mounts()
        mount("tmpfs", tmp_path, "tmpfs", data="size=8k,mode=755")
        store = open_store(f"{tmp_path}/state")
        store.save(LAUNCHED)
        (tmp_path / "filler").write_bytes(b"x" * 4096)
        try:
            store.save(RUNNING)
        except KernelError as error:
            return error.errno, store.load(PIDFILE) == (LAUNCHED, ""), os.listdir(store.directory)

    assert in_child(act) == (ENOSPC, True, [f"{make_key(PIDFILE)}.record"])


def test_killed_at_any_moment_leaves_the_old_or_the_new(store):
    both = (LAUNCHED, RUNNING.replace(exe="/" + "x" * 3000))

    def save(ready):
        ready()
        while True:
            for recorded in both:
                store.save(recorded)

    rng = random.Random(5)
    store.save(LAUNCHED)
    left = 0
    for _ in range(100):
        with other(save):
            select.select([], [], [], rng.uniform(0, 0.003))
        recorded, problem = store.load(PIDFILE)
        assert problem == ""
        assert recorded in both
        left += len(os.listdir(store.directory)) > 1
    store.save(RUNNING)
    assert os.listdir(store.directory) == [record_of(store).name]
    assert left, "no kill came in the middle: make it save more"


# The directory.


def test_directory_is_named_after_the_user():
    assert default_directory(0) == "/run/lowsuper/state"
    assert default_directory(33) == "/run/lowsuper/state-33"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_missing_directories_are_made(tmp_path, umask):
    before = os.umask(umask)
    try:
        open_store(f"{tmp_path}/run/lowsuper/state//").close()
    finally:
        os.umask(before)
    modes = [(tmp_path / path).stat().st_mode & 0o7777 for path in ("run", "run/lowsuper")]
    assert modes == [0o755, 0o755]
    assert (tmp_path / "run/lowsuper/state").stat().st_mode & 0o7777 == 0o700


def test_directory_that_is_there_is_used_as_it_is(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    open_store(f"{tmp_path}/state").close()
    assert (tmp_path / "state").stat().st_mode & 0o7777 == 0o755


def refuse(path, match):
    with pytest.raises(KernelError, match=match) as caught:
        open_store(str(path))
    assert "state-dir" in str(caught.value)


@pytest.mark.parametrize("path", ["", "state", "/", "/run/..", "/run/.", "/run/\0"])
def test_path_that_is_no_directory_of_ours_is_refused(path):
    refuse(path, "Invalid argument; state-dir must be the absolute path of a directory")


def test_other_than_a_directory_in_its_place_is_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("made")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "file", "fifo"):
        refuse(tmp_path / name, f"^state-dir {tmp_path}/{name}: ")
    for name in ("file", "fifo"):
        refuse(tmp_path / name / "state", f"^state-dir {tmp_path}/{name}/state: Not a directory")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "fifo", "file", "link", "real"]


def test_directory_that_others_can_write_to_is_refused(tmp_path):
    (tmp_path / "state").mkdir()
    for mode in (0o720, 0o702, 0o1777):
        (tmp_path / "state").chmod(mode)
        refuse(tmp_path / "state", "others can write to it")


@needs_root
@pytest.mark.parametrize(
    ("owner", "mode", "why"),
    [
        (NOBODY, 0o755, "belongs to uid 65534"),
        (NOBODY, 0o1777, "belongs to uid 65534"),
        (0, 0o775, "others than uid 0 can write to"),
        (0, 0o777, "others than uid 0 can write to"),
    ],
)
@pytest.mark.parametrize("depth", ["state", "a/state"])
def test_directory_that_others_could_replace_is_refused(safe, owner, mode, why, depth):
    (safe / "up/a").mkdir(parents=True)
    os.chown(safe / "up", owner, owner)
    (safe / "up").chmod(mode)
    refuse(safe / "up" / depth, f"{safe}/up.*{why}|{why} {safe}/up")
    assert not (safe / "up" / depth).exists()


@needs_root
def test_sticky_directory_above_will_do(safe):
    safe.chmod(0o1777)
    open_store(f"{safe}/a/state").close()
    (safe / "mine").symlink_to(safe / "a")
    open_store(f"{safe}/mine/state").close()


@needs_root
@pytest.mark.parametrize("target", ["a", "nowhere"])
def test_link_of_another_in_a_sticky_directory_is_refused(safe, target):
    safe.chmod(0o1777)
    (safe / "a").mkdir()
    (safe / "theirs").symlink_to(safe / target)
    os.chown(safe / "theirs", NOBODY, NOBODY, follow_symlinks=False)
    refuse(safe / "theirs/state", f"{safe}/theirs is a link of uid 65534")
    os.chown(safe / "theirs", 0, 0, follow_symlinks=False)
    os.link(safe / "theirs", safe / "again", follow_symlinks=False)
    refuse(safe / "again/state", f"{safe}/again is a link of uid 0")
    assert os.listdir(safe / "a") == []
    assert not (safe / "nowhere").exists()


@needs_root
@pytest.mark.parametrize("owner", [NOBODY, NOBODY - 1])
def test_directory_of_another_is_refused(safe, owner):
    (safe / "state").mkdir(mode=0o700)
    os.chown(safe / "state", owner, owner)
    refuse(safe / "state", f"it belongs to uid {owner}")


@needs_root
def test_user_without_a_prepared_directory_is_told(safe, not_root):
    not_root()
    refuse(
        safe / "lowsuper/state-65534", r"^state-dir .*/state-65534: Permission denied; state-dir"
    )
    refuse(safe / "state-65534", r"^state-dir .*/state-65534: Permission denied; state-dir")


@needs_root
def test_root_prepares_the_directory_of_a_user(safe, not_root):
    path = safe / "lowsuper/state-65534"
    for _ in range(2):
        prepare_for(str(path), NOBODY, NOBODY)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (NOBODY, NOBODY, 0o700)
    assert path.parent.stat().st_mode & 0o7777 == 0o755
    not_root()
    store = open_store(str(path))
    store.save(RUNNING)
    store.lock(PIDFILE, "x").release()
    assert store.load(PIDFILE) == (RUNNING, "")
    store.close()


@needs_root
def test_root_hands_over_nothing_but_an_empty_directory_of_its_own(safe):
    path = safe / "state"
    open_store(str(path)).close()
    prepare_for(str(path), NOBODY, NOBODY)  # root's, but empty
    assert path.stat().st_uid == NOBODY
    os.chown(path, 0, 0)
    (path / "some").touch()
    with pytest.raises(KernelError, match="it holds what belongs to uid 0; state-dir"):
        prepare_for(str(path), NOBODY, NOBODY)
    os.chown(path, 7, 7)
    with pytest.raises(KernelError, match="it belongs to uid 7; state-dir"):
        prepare_for(str(path), NOBODY, NOBODY)
    path.rename(safe / "real")
    path.symlink_to("real")
    with pytest.raises(KernelError, match="Not a directory; state-dir"):
        prepare_for(str(path), 7, 7)


@needs_root
def test_root_makes_nothing_where_the_user_could_swap_it(safe, not_root):
    home = safe / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    prepare_for(f"{home}/state", NOBODY, NOBODY)
    assert os.listdir(home) == []
    not_root()
    open_store(f"{home}/state").close()
    assert (home / "state").stat().st_uid == NOBODY


def test_renamed_directory_goes_on_to_be_used(store):
    store.save(LAUNCHED)
    Path(store.directory).rename(f"{store.directory}-old")
    store.save(RUNNING)
    assert store.load(PIDFILE) == (RUNNING, "")
    assert not Path(store.directory).exists()


def test_removed_directory_is_told(store):
    store.save(LAUNCHED)
    shutil.rmtree(store.directory)
    match = "No such file or directory; the state directory was removed; restart lowsuper"
    with pytest.raises(KernelError, match=f"^record {record_of(store)}: {match}"):
        store.save(RUNNING)
    with pytest.raises(KernelError, match=f"^lock {store.lock_path(PIDFILE)}: {match}"):
        store.lock(PIDFILE, "x")
    assert store.load(PIDFILE) == (None, "")
    store.remove(PIDFILE)


def test_descriptors_are_not_for_children(store):
    before = set(os.listdir("/proc/self/fd"))
    lock = store.lock(PIDFILE, "x")
    made = {int(fd) for fd in set(os.listdir("/proc/self/fd")) - before}
    made = {fd for fd in made if os.path.lexists(f"/proc/self/fd/{fd}")} | {store._fd}
    assert len(made) == 3
    assert all(fd >= native.HIGH_FD and not os.get_inheritable(fd) for fd in made)
    lock.release()


def test_boot_id_is_that_of_the_kernel():
    text = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (boot_id(), boot_id()) == (text, text)


# Locks.


def hold(store, holder="one", then=signal.pause):
    def act(ready):
        store.lock(PIDFILE, holder)
        ready()
        then()

    return act


def refuse_lock(store):
    with pytest.raises(HeldError) as caught:
        store.lock(PIDFILE, "two")
    return caught.value


def test_lock_of_another_process_says_who_has_it(store):
    with other(hold(store, "lowsuper one")) as pid:
        error = refuse_lock(store)
        assert (error.pid, error.holder) == (pid, "lowsuper one")
        assert str(error) == "held by lowsuper one"
        store.lock("/run/other.pid", "two").release()
    store.lock(PIDFILE, "two").release()


def test_lock_is_held_against_ourselves_too(store):
    lock = store.lock(PIDFILE, "one")
    error = refuse_lock(store)
    assert (error.pid, error.holder) == (os.getpid(), "one")
    lock.release()
    lock.release()
    again = store.lock(PIDFILE, "two")
    assert refuse_lock(store).holder == "two"
    again.release()
    assert Path(store.lock_path(PIDFILE)).read_text() == ""


def test_text_of_an_earlier_holder_is_not_believed(store):
    """It took the lock, and was stopped before it could write who it is."""
    path = Path(store.lock_path(PIDFILE))
    store.lock(PIDFILE, "one").release()
    path.write_text("1 systemd\n")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        error = refuse_lock(store)
        assert (error.pid, error.holder) == (os.getpid(), f"pid {os.getpid()}")
        path.write_bytes(b"\xff\0\n\n")
        assert refuse_lock(store).holder == f"pid {os.getpid()}"


def test_holder_is_one_line(store):
    with other(hold(store, "a\nb\0\x1b[1m" + "x" * 999)):
        assert refuse_lock(store).holder == ("a?b??[1m" + "x" * 999)[:200]


@needs_root
def test_holder_in_another_pid_namespace_is_told_by_its_words(store):
    lock = store.lock(PIDFILE, "outside")

    def act():
        import ctypes

        assert ctypes.CDLL(None).unshare(0x20000000) == 0
        pid = os.fork()
        if pid == 0:
            leave_mounts()
            mount("proc", Path("/proc"), "proc")
            error = refuse_lock(store)
            os._exit(0 if (error.pid, error.holder) == (0, "outside") else 1)
        return os.waitpid(pid, 0)[1]

    assert in_child(act) == 0
    lock.release()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.symlink_to("real"), "Too many levels of symbolic links"),
        (os.mkfifo, "it is not a plain file"),
        (lambda path: path.mkdir(), "it is not a plain file"),
        (lambda path: path.hardlink_to(path.with_name("real")), "it can be written by others"),
        pytest.param(
            lambda path: path.touch() or os.chown(path, NOBODY, 0),
            f"it belongs to uid {NOBODY}",
            marks=needs_root,
        ),
    ],
)
def test_what_is_in_place_of_a_lock_is_refused(store, make, why):
    path = Path(store.lock_path(PIDFILE))
    path.with_name("real").touch()
    make(path)
    with pytest.raises(KernelError, match=f"^lock {path}: .*{why}"):
        store.lock(PIDFILE, "x")


@contextlib.contextmanager
def watched(store):
    fd = native.inotify_create()
    try:
        native.inotify_add(fd, store.lock_path(PIDFILE), IN_CLOSE_WRITE)
        poll = select.poll()
        poll.register(fd)

        def is_told(patience):
            if not poll.poll(patience):
                return False
            return bool(os.read(fd, 4096))

        yield is_told
    finally:
        os.close(fd)


def test_release_is_told_and_an_attempt_is_not(store):
    lock = store.lock(PIDFILE, "one")
    with watched(store) as is_told:
        for _ in range(3):
            refuse_lock(store)
        assert not is_told(0)
        lock.release()
        assert is_told(0)
        again = store.lock(PIDFILE, "two")
    again.release()


def test_end_of_a_killed_holder_is_told_when_its_lock_is_free(store):
    store.lock(PIDFILE, "first").release()
    for _ in range(100):
        with other(hold(store)) as pid, watched(store) as is_told:
            os.kill(pid, signal.SIGKILL)
            assert is_told(5000)
            store.lock(PIDFILE, "two").release()


def test_two_processes_never_have_it_both(store, tmp_path):
    """Each takes the lock, makes a file that must not be there, and lets go, as fast as it can."""
    inside, failed = tmp_path / "inside", tmp_path / "failed"

    def compete(ready):
        ready()
        while True:
            try:
                lock = store.lock(PIDFILE, "one")
            except HeldError:
                continue
            except BaseException as error:
                failed.write_text(repr(error))
                raise
            try:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                inside.unlink()
            except OSError as error:
                failed.write_text(repr(error))
            lock.release()

    taken = refused = 0
    with other(compete), other(compete):
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            try:
                lock = store.lock(PIDFILE, "two")
            except HeldError:
                refused += 1
                continue
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            inside.unlink()
            lock.release()
            taken += 1
    assert not failed.exists(), failed.read_text()
    assert taken > 20
    assert refused > 20
