"""The file that a daemon's output goes to: whom the helper trusts when it opens it as root."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from errno import ELOOP, ENOENT, ENXIO, EPERM
from pathlib import Path

import pytest
from spawning import NULL, Run, make_plan, outcome_of

from lowsuper.kernel import native
from lowsuper.kernel.spawn import ExecOk, StepFailed
from lowsuper.plan import LOG_FD, FdSource

pytestmark = pytest.mark.usefixtures("root")

LIB = native.lib
NOBODY, OTHER = 65534, 65533


@pytest.fixture
def place():
    """A directory that only root decides about, in a way that leads through such ones only."""
    # The directory of temporary files is everybody's.
    with tempfile.TemporaryDirectory(prefix="log-test-", dir="/run") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def shared(place):
    """A directory of an unprivileged user's."""
    path = place / "shared"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    return path


@pytest.fixture
def sticky(place):
    """A directory of root's where everybody may add names, as /tmp; /run in some containers."""
    path = place / "sticky"
    path.mkdir()
    path.chmod(0o1777)
    return path


@pytest.fixture
def reading():
    """Return a function that reads from a FIFO, without waiting for a writer."""
    with contextlib.ExitStack() as stack:

        def read(path: Path) -> int:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, fd)
            return fd

        yield read


def plan_for(path: Path, *argv: str, **fields):
    fds = (NULL, FdSource(1, LOG_FD), FdSource(2, LOG_FD))
    return make_plan(*(argv or ("/bin/true",)), log=os.fsencode(path), fds=fds, **fields)


def say(spawner, path: Path, **fields):
    """Let a program write to both its outputs, and return how its start went."""
    plan = plan_for(path, "/bin/sh", "-c", "echo out; echo err >&2", **fields)
    with Run(spawner, plan) as run:
        outcome = run.outcome()
        run.wait()
        return outcome


def test_log_when_missing_is_made_for_its_owner_and_group(spawner, place):
    path = place / "new.log"
    before = os.umask(0o022)
    try:
        assert say(spawner, path) == ExecOk()
    finally:
        os.umask(before)
    assert path.read_text() == "out\nerr\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_uid == 0


def test_log_when_it_exists_is_appended_to_and_keeps_owner_and_mode(spawner, place):
    path = place / "old.log"
    path.write_text("old\n")
    path.chmod(0o604)
    os.chown(path, OTHER, OTHER)
    assert say(spawner, path) == ExecOk()
    assert path.read_text() == "old\nout\nerr\n"
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o604, OTHER)


def test_log_is_opened_by_root_and_written_by_the_user(spawner, place):
    path = place / "web.log"
    user = {"uid": NOBODY, "gid": NOBODY, "groups": ()}
    assert say(spawner, path, **user) == ExecOk()
    assert path.read_text() == "out\nerr\n"
    assert path.stat().st_uid == 0


def test_log_appends_whatever_another_writer_does(spawner, place):
    path = place / "web.log"
    with Run(spawner, plan_for(path, "/bin/sh", "-c", "echo one; read x; echo two")) as run:
        run.wait()
    with path.open("r+b") as file:
        file.truncate(0)  # copytruncate of logrotate(8)
    assert say(spawner, path) == ExecOk()
    assert path.read_text() == "out\nerr\n"


def test_log_in_a_trusted_place_follows_links(spawner, place):
    (place / "real").mkdir()
    (place / "dir").symlink_to("real")
    (place / "real" / "current").symlink_to(place / "real" / "web.log")
    assert say(spawner, place / "dir" / "current") == ExecOk()
    assert (place / "real" / "web.log").read_text() == "out\nerr\n"


def test_log_with_links_in_a_circle_fails(spawner, place):
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    assert outcome_of(spawner, plan_for(place / "a")) == StepFailed("log", ELOOP, 0)


def test_log_with_a_missing_directory_fails(spawner, place):
    assert outcome_of(spawner, plan_for(place / "no" / "x")) == StepFailed("log", ENOENT, 0)


def test_log_that_is_a_link_of_a_user_is_refused(spawner, place, shared):
    secret = place / "secret"
    secret.write_text("secret\n")
    (shared / "web.log").symlink_to(secret)
    expected = StepFailed("log", ELOOP, LIB.LOWSUPER_LOG_LINK)
    assert outcome_of(spawner, plan_for(shared / "web.log")) == expected
    assert secret.read_text() == "secret\n"


def test_log_below_a_link_of_a_user_is_refused(spawner, place, shared):
    (shared / "logs").symlink_to(place)
    expected = StepFailed("log", ELOOP, LIB.LOWSUPER_LOG_LINK)
    assert outcome_of(spawner, plan_for(shared / "logs" / "web.log")) == expected
    assert not (place / "web.log").exists()


def test_log_below_a_directory_of_a_user_stays_shared(spawner, shared):
    # The user can put a directory of his own in the place of this one of root's.
    (shared / "root").mkdir()
    (shared / "root" / "web.log").symlink_to("/etc/hostname")
    expected = StepFailed("log", ELOOP, LIB.LOWSUPER_LOG_LINK)
    assert outcome_of(spawner, plan_for(shared / "root" / "web.log")) == expected


def test_log_in_a_place_of_a_user_is_made_there(spawner, shared):
    path = shared / "web.log"
    for _ in range(2):
        assert say(spawner, path) == ExecOk()
    assert path.read_text() == "out\nerr\n" * 2
    assert path.stat().st_uid == 0


def test_log_of_another_user_is_refused_and_one_of_the_daemons_own_taken(spawner, shared):
    path = shared / "web.log"
    path.write_text("")
    os.chown(path, OTHER, OTHER)
    expected = StepFailed("log", EPERM, LIB.LOWSUPER_LOG_OWNER)
    assert outcome_of(spawner, plan_for(path)) == expected
    user = {"uid": OTHER, "gid": OTHER, "groups": ()}
    assert say(spawner, path, **user) == ExecOk()
    assert path.read_text() == "out\nerr\n"


def test_log_with_another_name_is_refused(spawner, place, shared):
    secret = place / "secret"
    secret.write_text("")
    os.link(secret, shared / "web.log")
    expected = StepFailed("log", EPERM, LIB.LOWSUPER_LOG_NAMES)
    assert outcome_of(spawner, plan_for(shared / "web.log")) == expected


@pytest.mark.parametrize("mode", [0o775, 0o1777])
def test_log_where_a_group_or_everybody_can_write_is_shared(spawner, place, mode):
    place.chmod(mode)
    (place / "web.log").symlink_to(place / "target")
    expected = StepFailed("log", ELOOP, LIB.LOWSUPER_LOG_LINK)
    assert outcome_of(spawner, plan_for(place / "web.log")) == expected


def test_log_below_a_directory_of_root_in_a_sticky_one_is_trusted(spawner, sticky):
    (sticky / "root").mkdir()
    (sticky / "root" / "web.log").symlink_to("real.log")
    (sticky / "root" / "real.log").touch()
    os.chown(sticky / "root" / "real.log", OTHER, OTHER)
    assert say(spawner, sticky / "root" / "web.log") == ExecOk()
    assert (sticky / "root" / "real.log").read_text() == "out\nerr\n"


@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o755), (0, 0o777)])
def test_log_below_a_directory_of_others_in_a_sticky_one_is_shared(spawner, sticky, owner, mode):
    place = sticky / "user"
    place.mkdir()
    place.chmod(mode)
    os.chown(place, owner, owner)
    (place / "web.log").symlink_to("/etc/hostname")
    expected = StepFailed("log", ELOOP, LIB.LOWSUPER_LOG_LINK)
    assert outcome_of(spawner, plan_for(place / "web.log")) == expected


def test_log_in_a_sticky_directory_below_one_of_a_user_is_shared(spawner, shared):
    for path in (shared / "sticky", shared / "sticky" / "root"):
        path.mkdir()
    (shared / "sticky").chmod(0o1777)
    (shared / "sticky" / "root" / "web.log").symlink_to("/etc/hostname")
    expected = StepFailed("log", ELOOP, LIB.LOWSUPER_LOG_LINK)
    path = shared / "sticky" / "root" / "web.log"
    assert outcome_of(spawner, plan_for(path)) == expected


def test_log_below_what_is_mounted_in_a_sticky_directory_is_shared(sticky):
    """A user can mount what he likes on a directory of his own; see fuse(4)."""
    (sticky / "mount").mkdir()
    script = f"""
import os
from lowsuper.kernel import mount, native

mount.unshare(mount.NEWNS)
mount.make_private("/")
tree_fd = mount.make_filesystem("tmpfs", texts=(("mode", "755"),))
mount.attach(tree_fd, os.open({str(sticky / "mount")!r}, os.O_PATH), "mount")
path = {str(sticky / "mount" / "web.log")!r}
os.symlink("/etc/hostname", path)
reason = native.ffi.new("int32_t *")
log = os.fsencode(path)
print(native.lib.lowsuper_log_open(log, 0, native.lib.LOWSUPER_LOG_READ, reason), reason[0])
"""
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=30).stdout
    assert output.split() == [b"%d" % -ELOOP, b"%d" % LIB.LOWSUPER_LOG_LINK]


def test_log_that_is_a_fifo_of_a_user_is_refused_at_once(spawner, shared, reading):
    os.mkfifo(shared / "fifo")
    reading(shared / "fifo")
    expected = StepFailed("log", EPERM, LIB.LOWSUPER_LOG_KIND)
    assert outcome_of(spawner, plan_for(shared / "fifo")) == expected


def test_log_that_is_a_fifo_in_a_sticky_directory_is_for_its_owner_to_say(spawner, sticky, reading):
    path = sticky / "fifo"
    os.mkfifo(path)
    reader = reading(path)
    assert say(spawner, path) == ExecOk()
    assert os.read(reader, 100) == b"out\nerr\n"
    os.link(path, sticky / "other")
    expected = StepFailed("log", EPERM, LIB.LOWSUPER_LOG_NAMES)
    assert outcome_of(spawner, plan_for(path)) == expected
    os.chown(path, OTHER, OTHER)
    expected = StepFailed("log", EPERM, LIB.LOWSUPER_LOG_KIND)
    assert outcome_of(spawner, plan_for(path, uid=OTHER, gid=OTHER, groups=())) == expected


def test_log_that_is_a_fifo_of_root_is_written_once_somebody_reads(spawner, place, reading):
    path = place / "fifo"
    os.mkfifo(path)
    expected = StepFailed("log", ENXIO, LIB.LOWSUPER_LOG_READER)
    assert outcome_of(spawner, plan_for(path)) == expected
    reader = reading(path)
    assert say(spawner, path) == ExecOk()
    assert os.read(reader, 100) == b"out\nerr\n"


def test_log_on_a_device_is_written(spawner, place):
    assert outcome_of(spawner, plan_for(Path("/dev/null"))) == ExecOk()


def test_log_that_is_a_directory_fails(spawner, place):
    failed = outcome_of(spawner, plan_for(place))
    assert (failed.step, os.strerror(failed.errno)) == ("log", "Is a directory")


def test_log_descriptor_takes_the_place_of_what_has_its_number(spawner, place):
    """The file is opened under a low number, which may be a target of the plan."""
    path = place / "web.log"
    fds = (NULL, *(FdSource(target, LOG_FD) for target in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)))
    script = "for fd in 1 2 3 4 5 6 7 8 9; do echo $fd >&$fd; done"
    plan = make_plan("/bin/sh", "-c", script, log=os.fsencode(path), fds=fds)
    with Run(spawner, plan) as run:
        assert run.outcome() == ExecOk()
        assert run.wait() == 0
    assert path.read_text().split() == [str(fd) for fd in range(1, 10)]
