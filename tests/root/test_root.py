"""Into a jail: what is seen inside, and that the mount table outside stays what it is.

Each test plays in a mount namespace of its own in which everything is shared, as systemd makes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import stat
import traceback
from pathlib import Path

import pytest
from masters import needs_root

from lowsuper.errors import KernelError
from lowsuper.kernel import mount, native, root
from lowsuper.kernel.native import lib
from lowsuper.model import Jail, Keep

pytestmark = needs_root

SHARED = 1 << 20  # MS_SHARED
DEADLINE = 20.0
STEPS = (
    "unshare",
    "make_private",
    "clone_tree",
    "restrict",
    "attach",
    "make_filesystem",
    "pivot_here",
)


def run(function, *arguments):
    """Run a function in a child; return its result, or raise what it says went wrong."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            answer = {"result": function(*arguments)}
        except KernelError as error:
            answer = {"error": str(error)}
        except BaseException:
            answer = {"bug": traceback.format_exc()}
        os.write(write_fd, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_fd)
    text = b""
    try:
        while select.select([read_fd], [], [], DEADLINE)[0]:
            piece = os.read(read_fd, 65536)
            if not piece:
                break
            text += piece
    finally:
        os.close(read_fd)
        os.waitpid(pid, 0)
    answer = json.loads(text)
    assert "bug" not in answer, answer["bug"]
    return answer


def read_table():
    return Path("/proc/self/mountinfo").read_bytes()


def mount_tmpfs(path):
    fd = mount.make_filesystem("tmpfs")
    target = os.open(path, os.O_PATH)
    mount.attach(fd, target, str(path))
    os.close(fd)
    os.close(target)


def be_host():
    """Become a host of our own, on which every mount spreads."""
    mount.unshare(mount.NEWNS)
    mount.make_private("/")
    result = lib.lowsuper_mount_setattr(mount.AT_FDCWD, b"/", 0x8000, 0, SHARED)
    assert result == 0


def jail_and_compare(setup, jail, inside):
    """Make a jail on a host of our own; return what `inside` saw and the places made.

    The mount table of that host is compared byte by byte at the end.
    """
    be_host()
    setup()
    before = read_table()
    read_fd, write_fd = os.pipe()
    native.set_child_subreaper()
    mount.unshare(mount.NEWPID)
    pid = os.fork()
    if pid == 0:
        places: list[root.Place] = []
        try:
            root.enter(jail, places.append, ignore)
            answer = {"inside": inside()}
        except KernelError as error:
            answer = {"error": str(error)}
        except BaseException:
            answer = {"bug": traceback.format_exc()}
        answer["places"] = [
            [place.path, place.device, place.inode, place.is_directory] for place in places
        ]
        os.write(write_fd, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as file:
        answer = json.loads(file.read())
    during = read_table()
    os.waitpid(pid, 0)
    assert during == before
    assert read_table() == before
    places = [root.Place(*values) for values in answer["places"]]
    answer["problems"] = root.remove_places(jail.root, places)
    assert read_table() == before
    return answer


def ignore(_fd):
    """Hold no mount point: there is one jail only."""


def play(jail, inside, setup=lambda: None):
    answer = run(jail_and_compare, setup, jail, inside)["result"]
    assert "bug" not in answer, answer["bug"]
    return answer


@pytest.fixture
def tree(tmp_path):
    """Return the directory of a jail's root, with something in it."""
    path = tmp_path / "a root with blänks"
    (path / "etc").mkdir(parents=True)
    (path / "etc" / "name").write_text("jail")
    return path


def names(path):
    return sorted(os.listdir(path))


def test_enter_shows_only_the_root_and_a_fresh_proc(tree):
    def inside():
        return [names("/"), os.getpid(), [p for p in names("/proc") if p.isdigit()], os.uname()[1]]

    answer = play(Jail(str(tree), "testns"), inside)
    assert answer["inside"] == [["etc", "proc"], 1, ["1"], "testns"]


def test_enter_shows_only_the_mounts_of_the_jail(tree):
    def inside():
        return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]

    (tree / "dev").mkdir()
    jail = Jail(str(tree), keeps=(Keep("/dev", "/dev"),))
    mounts = set(play(jail, inside)["inside"])
    assert mounts > {"/", "/proc", "/dev"}
    assert all(path.startswith("/dev/") for path in mounts - {"/", "/proc", "/dev"})


def test_enter_keeps_a_tree_with_all_that_is_mounted_in_it(tree, tmp_path):
    kept = tmp_path / "kept"
    (kept / "sub").mkdir(parents=True)

    def setup():
        mount_tmpfs(kept / "sub")
        (kept / "sub" / "deep").write_text("seen")

    jail = Jail(str(tree), keeps=(Keep(str(kept), "/x/y"),))
    answer = play(jail, lambda: Path("/x/y/sub/deep").read_text(), setup)
    assert answer["inside"] == "seen"


def test_enter_when_the_root_is_a_mount_of_its_own(tmp_path):
    path = tmp_path / "root"
    path.mkdir()

    def setup():
        mount_tmpfs(path)
        (path / "here").touch()

    assert play(Jail(str(path)), lambda: names("/"), setup)["inside"] == ["here", "proc"]


def test_enter_from_a_working_directory_in_the_root(tree):
    def setup():
        os.chdir(tree)

    assert play(Jail(str(tree)), os.getcwd, setup)["inside"] == "/"


def test_missing_mount_points_are_made_reported_and_removed(tree, tmp_path):
    file = tmp_path / "file"
    file.write_text("content")
    keeps = (Keep("/dev", "/new/above/dev"), Keep(str(file), "/etc/kept"))
    answer = play(
        Jail(str(tree), keeps=keeps),
        lambda: [os.path.exists("/new/above/dev/null"), Path("/etc/kept").read_text()],
    )
    assert answer["inside"] == [True, "content"]
    paths = [path for path, *_ in answer["places"]]
    assert paths == ["/proc", "/new", "/new/above", "/new/above/dev", "/etc/kept"]
    assert answer["problems"] == []
    assert names(tree) == ["etc"]
    assert names(tree / "etc") == ["name"]


def test_mount_points_that_were_there_are_not_removed(tree):
    (tree / "proc").mkdir()
    (tree / "dev").mkdir()
    answer = play(Jail(str(tree), keeps=(Keep("/dev", "/dev"),)), lambda: None)
    assert answer["places"] == []
    assert names(tree) == ["dev", "etc", "proc"]


def test_link_in_the_jail_leads_no_mount_to_the_host(tree, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (tree / "dev").symlink_to(victim)  # absolute: there is nothing at that path in the jail
    answer = play(Jail(str(tree), keeps=(Keep("/dev", "/dev/pts"),)), lambda: None)
    assert "link that leads nowhere" in answer["error"]
    assert names(victim) == []


def test_link_with_dots_in_the_jail_stays_in_the_jail(tree):
    (tree / "inner").mkdir()
    (tree / "dev").symlink_to("../../../inner")
    answer = play(
        Jail(str(tree), keeps=(Keep("/dev", "/dev"),)), lambda: os.path.exists("/inner/null")
    )
    assert answer["inside"] is True


def test_link_of_another_user_leads_no_mount_anywhere(tree, tmp_path):
    """He could have what he owns outside seen as /etc of the jail."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (tree / "home").mkdir()
    link = tree / "home" / "data"
    link.symlink_to("/etc")
    os.chown(link, 1234, 1234, follow_symlinks=False)
    answer = play(Jail(str(tree), keeps=(Keep(str(kept), "/home/data"),)), lambda: names("/etc"))
    assert "a link to /etc that belongs to user 1234, and not to root" in answer["error"]
    os.chown(link, 0, 0, follow_symlinks=False)
    answer = play(Jail(str(tree), keeps=(Keep(str(kept), "/home/data"),)), lambda: names("/etc"))
    assert answer["inside"] == []


def test_loop_of_links_is_an_error(tree):
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("/a")
    answer = play(Jail(str(tree), keeps=(Keep("/dev", "/a/x"),)), lambda: None)
    assert "Too many levels of symbolic links" in answer["error"]


def test_root_whose_path_is_swapped_meanwhile_is_the_one_that_was_mounted(tree, tmp_path):
    other = tmp_path / "other"
    (other / "proc").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tree)
    attach = mount.attach

    def setup():
        mount_tmpfs(other)

        def swap(tree_fd, target_fd, subject):
            attach(tree_fd, target_fd, subject)
            if subject == str(link):
                link.unlink()
                link.symlink_to(other)

        mount.attach = swap

    assert play(Jail(str(link)), lambda: names("/"), setup)["inside"] == ["etc", "proc"]


def test_place_that_another_jail_uses_is_left_and_said(tree):
    status = (tree / "etc").stat()
    (tree / "etc" / "name").unlink()
    places = [root.Place("/etc", status.st_dev, status.st_ino, True)]
    fd = os.open(tree / "etc", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        problem = f"{tree}/etc is left behind: another jail uses it"
        assert root.remove_places(str(tree), places) == [problem]
    finally:
        os.close(fd)
    assert root.remove_places(str(tree), places) == []
    assert names(tree) == []


def test_nothing_is_made_in_what_is_kept(tree, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    keeps = (Keep(str(kept), "/kept"), Keep("/dev", "/kept/dev"))
    answer = play(Jail(str(tree), keeps=keeps), lambda: None)
    assert "/kept/dev: No such file or directory; it is in what another" in answer["error"]
    assert names(kept) == []


def test_read_only_keep_cannot_be_written(tree, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()

    def inside():
        try:
            Path("/kept/file").touch()
        except OSError as error:
            return error.strerror
        return ""

    jail = Jail(str(tree), keeps=(Keep(str(kept), "/kept", read_only=True),))
    assert play(jail, inside)["inside"] == "Read-only file system"
    (kept / "file").touch()


def test_keep_that_does_not_exist_is_an_error_that_names_the_way_out(tree):
    answer = play(Jail(str(tree), keeps=(Keep("/no/such", "/x"),)), lambda: None)
    assert answer["error"] == (
        "open_tree /no/such: No such file or directory; "
        "make it, or write optional:/no/such in namespace-keep-mount"
    )


def test_optional_keep_that_does_not_exist_is_left_out(tree):
    jail = Jail(str(tree), keeps=(Keep("/no/such", "/x", optional=True),))
    assert play(jail, lambda: names("/"))["inside"] == ["etc", "proc"]


def test_keep_on_a_file_where_a_directory_is_needed_is_an_error(tree):
    answer = play(Jail(str(tree), keeps=(Keep("/dev", "/etc/name"),)), lambda: None)
    assert "/etc/name: Not a directory; what is mounted on it is a directory" in answer["error"]


def make_read_only(path):
    fd = mount.clone_tree(str(path))
    mount.restrict(fd, mount.ATTR_RDONLY, str(path))
    target = os.open(path, os.O_PATH)
    mount.attach(fd, target, str(path))
    os.close(fd)
    os.close(target)


def test_read_only_root_without_a_mount_point_is_an_error_that_names_the_overlay(tree):
    answer = play(Jail(str(tree)), lambda: None, lambda: make_read_only(tree))
    assert answer["error"] == (
        "mkdir /proc: Read-only file system; "
        "the root is read-only: make it there, or set namespace-overlay = true"
    )


def test_overlay_makes_a_read_only_root_writable_in_memory(tree):
    def inside():
        Path("/etc/name").write_text("other")
        return [names("/"), Path("/etc/name").read_text(), stat.S_IMODE(os.stat("/").st_mode)]

    tree.chmod(0o751)
    jail = Jail(str(tree), keeps=(Keep("/dev", "/new/dev"),), overlay=True)
    answer = play(jail, inside, lambda: make_read_only(tree))
    assert answer["inside"] == [["etc", "new", "proc"], "other", 0o751]
    assert answer["places"] == []
    assert (tree / "etc" / "name").read_text() == "jail"
    assert names(tree) == ["etc"]


def test_network_of_its_own_has_only_a_loopback(tree):
    def inside():
        return [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]

    assert play(Jail(str(tree), net=True), inside)["inside"] == ["lo"]


def fail_at(step, number):
    """Let the `number`th call of a mount function fail as if the kernel refused it."""
    original = getattr(mount, step)
    count = 0

    def replacement(*arguments, **keywords):
        nonlocal count
        count += 1
        if count == number:
            raise KernelError(step, 5, "injected")
        return original(*arguments, **keywords)

    setattr(mount, step, replacement)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_failure_of_any_step_leaves_the_host_as_it_was(tree, tmp_path, step, number):
    kept = tmp_path / "kept"
    kept.mkdir()
    keeps = (
        Keep("/dev", "/a/dev"),
        Keep(str(kept), "/kept", read_only=True),
        Keep(str(kept), "/kept2", read_only=True),
    )
    reached = {"unshare": 1, "make_private": 1, "pivot_here": 1, "restrict": 2, "attach": 3}
    last = reached.get(step, 3)  # how often enter calls it here

    def setup():
        fail_at(step, number + (step == "unshare"))  # one is the test's own

    answer = play(
        Jail(str(tree), keeps=keeps, overlay=step == "make_filesystem"), lambda: "in", setup
    )
    if number <= last:
        assert answer["error"] == f"{step} injected: Input/output error"
    else:
        assert answer["inside"] == "in"
    assert answer["problems"] == []
    assert names(tree) == ["etc"]


def test_places_that_the_jail_replaced_are_left_alone(tree, tmp_path):
    outside = tmp_path / "outside"
    (outside / "dev").mkdir(parents=True)
    (tree / "new").mkdir()
    place = (tree / "new").stat()
    (tree / "new").rmdir()
    (tree / "new").symlink_to(outside)
    places = [root.Place("/new/dev", place.st_dev, place.st_ino, True)]
    assert len(root.remove_places(str(tree), places)) == 1
    places = [root.Place("/new", place.st_dev, 0, True)]
    assert root.remove_places(str(tree), places) == []
    assert names(outside) == ["dev"]


def test_place_that_is_used_is_left_and_said(tree):
    status = (tree / "etc").stat()
    places = [root.Place("/etc", status.st_dev, status.st_ino, True)]
    assert root.remove_places(str(tree), places) == [
        f"{tree}/etc is left behind: Directory not empty"
    ]


def make_many(jail, count):
    """Make a jail `count` times, one after the other; return what each said, and what is left."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    before, entries = read_table(), names(jail.root)
    statuses = []
    for _ in range(count):
        read_fd, write_fd = os.pipe()
        mount.unshare(mount.NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                mount.setns(own, mount.NEWPID)
        if pid == 0:
            try:
                places = []
                root.enter(jail, places.append, ignore)
                rows = [[p.path, p.device, p.inode, p.is_directory] for p in places]
                os.write(write_fd, json.dumps(rows).encode())
                os._exit(os.getpid())
            finally:
                os._exit(99)
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as file:
            rows = json.loads(file.read())
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert root.remove_places(jail.root, [root.Place(*row) for row in rows]) == []
    assert read_table() == before
    assert names(jail.root) == entries
    return statuses, len(names("/proc/self/fd"))


def test_two_hundred_jails_leave_nothing(tree):
    jail = Jail(str(tree), "testns", keeps=(Keep("/dev", "/dev"),), net=False)
    few = run(make_many, jail, 1)["result"][1]
    statuses, descriptors = run(make_many, jail, 200)["result"]
    assert statuses == [1] * 200
    assert descriptors == few
