"""The other ways into a jail: chroot, pivot-root and unshare, with the process outside as ever."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from jails import Tampered, make_root
from masters import children_of, needs_root, wait_gone

pytestmark = [needs_root, pytest.mark.usefixtures("own_mounts")]

SLEEP = "attach-daemon = sleep 1000"


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


@pytest.fixture(params=["chroot", "pivot-root"])
def rooted(request, root):
    """Return the line that makes `root` the root."""
    return f"{request.param} = {root}"


def text_of(*lines):
    return "\n".join([*lines, ""])


def find_inner(master):
    """Return the pid, outside, of the master in the jail."""
    (pid,) = children_of(master.pid)
    return pid


def namespace_of(pid, name):
    return os.readlink(f"/proc/{pid}/ns/{name}")


# Another root.


def test_root_is_all_that_is_seen(masters, rooted, root):
    show = "exec-as-root = ls /; cat /proc/self/mountinfo; echo over"
    master = masters.start(text_of(rooted, show, SLEEP))
    master.wait_output("^over$")
    assert "bin\netc\nproc\ntmp\n" in master.text
    mounts = [line.split()[4] for line in master.lines if re.match(r"\d+ \d+ \d+:\d+ ", line)]
    assert "/proc" in mounts
    assert all(path == "/" or f"{path}/".startswith("/proc/") for path in mounts)
    inner = find_inner(master)
    assert os.readlink(f"/proc/{inner}/root") in ("/", str(root))
    assert os.path.samestat(os.stat(f"/proc/{inner}/root/"), os.stat(root))
    assert master.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_processes_are_those_of_the_host_without_a_pid_namespace(masters, rooted):
    show = 'exec-as-root = cd /proc; echo "parent $PPID"; test -d /proc/1 && echo has 1'
    master = masters.start(text_of(rooted, show, SLEEP))
    master.wait_output("^parent ")
    master.wait_output("^has 1$")
    assert namespace_of(find_inner(master), "pid") == namespace_of("self", "pid")
    assert master.stop() == 0


def test_users_are_those_of_the_root(masters, rooted):
    daemon = "attach-daemon2 = cmd=sh -c 'id; exec sleep 1000',uid=web"
    master = masters.start(text_of(rooted, daemon))
    master.wait_output(r"uid=1234\(web\) gid=1235\(web\) groups=77\(logs\),1235\(web\)")
    assert master.stop() == 0
    master = masters.begin(text_of(rooted, "attach-daemon2 = cmd=sleep 1000,uid=nobody"))
    master.wait_line("uid=nobody: there is no user of that name")
    assert master.wait() == 78


RECORD = """
import sys
from lowsuper.kernel import jail

class Recorder:
    def find_spec(self, name, path=None, target=None):
        print("ASKED FOR", name, flush=True)

original = jail.seal

def seal():
    original()
    assert sys.path == [] and sys.path_hooks == []
    sys.meta_path.append(Recorder())
    print("SEALED", flush=True)

jail.seal = seal
"""


def test_nothing_is_imported_in_another_root(masters, rooted):
    path = masters.write(
        text_of(
            rooted,
            "unshare = fs",
            "hook-post-jail = print:hello",
            "exec-as-root = true",
            "attach-daemon2 = name=b,cmd=sleep 1000,uid=web,ns_pid=true",
            "attach-daemon2 = name=c,cmd=sleep 1000,pidfile=/tmp/c.pid,daemonize=true",
            "attach-daemon2 = name=d,cmd=/no/such",
        )
    )
    master = masters.adopt(Tampered(RECORD, str(path), cwd=masters.directory))
    master.wait_output("SEALED")
    master.wait_ready()
    assert master.stop() == 0
    master.expect_silence("ASKED FOR")
    for pid in master.family():  # a smart daemon survives where no pid namespace ends it
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)


def test_missing_root_is_an_error_of_the_configuration(masters, tmp_path):
    for way in ("chroot", "pivot-root"):
        master = masters.begin(text_of(f"{way} = {tmp_path}/none", SLEEP))
        master.wait_line(rf"{way}=.*: there is no directory .*/none; make it first")
        assert master.wait() == 78


def test_pivot_leaves_the_old_root_where_it_is_asked_to(masters, root):
    (root / "old").mkdir()
    master = masters.start(
        text_of(
            f"pivot-root = {root} {root}/old",
            f"exec-in-jail = test -d /old{root} && echo seen",
            "umount-as-root = /old rec,detach",
            "exec-as-root = ls /old; echo over",
            SLEEP,
        )
    )
    master.wait_output("^seen$")
    master.wait_output("^over$")
    assert os.listdir(root / "old") == []
    assert master.stop() == 0


def test_pivot_to_a_missing_place_is_an_error_that_names_it(masters, root):
    master = masters.begin(text_of(f"pivot-root = {root} {root}/old", SLEEP))
    master.wait_line(r"pivot_root .*/old: No such file or directory; make the directory .*/old")
    assert master.wait() == 125


# Namespaces.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fs", "mnt"),
        ("mnt", "mnt"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("net", "net"),
        ("pid", "pid"),
        ("cgroup", "cgroup"),
    ],
)
def test_unshare_makes_that_namespace(masters, name, kind):
    master = masters.start(text_of(f"unshare = {name}", SLEEP))
    inner = find_inner(master)
    kinds = ("mnt", "ipc", "uts", "net", "pid", "cgroup")
    own = {kind for kind in kinds if namespace_of(inner, kind) != namespace_of("self", kind)}
    assert own == ({"pid", "mnt"} if kind == "pid" else {kind})
    assert namespace_of(master.pid, kind) == namespace_of("self", kind)
    assert namespace_of(children_of(inner)[0], kind) == namespace_of(inner, kind)
    assert master.stop() == 0


def test_unshare_and_unshare2_add_up(masters, root):
    master = masters.start(
        text_of("unshare = ipc,uts", "unshare = net", f"chroot = {root}", "unshare2 = pid", SLEEP)
    )
    inner = find_inner(master)
    for kind in ("ipc", "uts", "net", "mnt", "pid"):
        assert namespace_of(inner, kind) != namespace_of("self", kind)
    assert master.stop() == 0


def test_pid_namespace_shows_its_own_processes(masters):
    show = "exec-as-root = echo parent $PPID; readlink /proc/self; echo over"
    master = masters.start(text_of("unshare = pid", show, SLEEP))
    assert master.wait_output(r"^parent (\d+)$")[1] != "1"  # the shim of the hook
    assert int(master.wait_output(r"^(\d+)$")[1]) < 10
    assert master.stop() == 0


def test_mounts_of_hooks_are_not_seen_outside(masters, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    master = masters.start(
        text_of(
            "unshare = fs",
            f"mount-post-jail = tmpfs none {place}",
            f"exec-as-root = touch {place}/made; ls {place}",
            SLEEP,
        )
    )
    master.wait_output("^made$")
    assert os.listdir(place) == []
    assert master.stop() == 0


def test_post_jail_comes_before_the_change_of_root_as_in_uwsgi(masters, root, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    master = masters.start(
        text_of(
            "unshare = fs",
            f"exec-post-jail = mount --bind {root} {base}",
            "hook-post-jail = putenv:UNUSED=1",
            f"exec-post-jail = test -e {base}/bin/busybox && echo there",
            f"pivot-root = {base}",
            "exec-as-root = ls /; echo $UNUSED; echo over",
            SLEEP,
        )
    )
    master.wait_output("^there$")
    master.wait_output("^bin$")
    master.wait_output("^1$")
    assert master.stop() == 0


def test_failed_post_jail_hook_ends_everything_with_1(masters):
    master = masters.begin(text_of("unshare = fs", "exec-post-jail = false", SLEEP))
    master.wait_line("exec-post-jail: false: exited with 1; stopping")
    assert master.wait() == 1


def test_stop_during_a_post_jail_hook_that_hangs(masters):
    master = masters.begin(text_of("unshare = fs", "exec-post-jail = sleep 1000", SLEEP))
    master.wait_line("running exec-post-jail")
    assert master.stop() == 137
    master.wait_family_gone()


# Ends.

WAYS = ["chroot = {root}", "pivot-root = {root}", "unshare = net", "unshare = pid", "unshare = ipc"]
DEEP = (
    "attach-daemon2 = stop_timeout=300ms,"
    'cmd=sh -c \'trap "" TERM HUP; (sh -c "sleep 1000" &); echo up; sleep 1000\''
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whom", ["outer", "inner"])
def test_kill_leaves_nothing(masters, root, way, whom):
    (root / "dev").mkdir()
    (root / "dev" / "null").touch()  # a shell wants it for what it puts in the background
    master = masters.start(text_of(way.format(root=root), DEEP))
    master.wait_output("^up$")
    inner = find_inner(master)
    if whom == "outer":
        master.kill()
        wait_gone(inner)
        master.wait_family_gone()
    else:
        before = master.family()
        os.kill(inner, signal.SIGKILL)
        master.wait_line(r"the jail died: was killed by SIGKILL \(9\) after .*; made again in 1 s")
        # By then all of it is gone.
        assert not before & master.family()
        master.wait_ready()
        assert find_inner(master) != inner
        assert master.stop() == 0
        master.wait_family_gone()


@pytest.mark.parametrize("way", ["chroot = {root}", "unshare = net"])
def test_kill_of_the_process_outside_of_a_master_that_is_another_user(masters, root, way):
    # A change of the user takes the parent-death signal away.
    user = "web" if "root" in way else "nobody"
    (root / "dev").mkdir()
    (root / "dev" / "null").touch(0o666)
    (root / "dev" / "null").chmod(0o666)
    for parent in (root, *root.parents):
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    master = masters.start(text_of(way.format(root=root), f"uid = {user}", DEEP))
    master.wait_output("^up$")
    inner = find_inner(master)
    assert os.stat(f"/proc/{inner}").st_uid != 0
    master.kill()
    wait_gone(inner)
    master.wait_family_gone()


@pytest.mark.parametrize("way", WAYS)
def test_reload_makes_it_anew_from_the_new_file(masters, root, way):
    text = text_of(way.format(root=root), SLEEP)
    master = masters.start(text)
    inner = find_inner(master)
    masters.write(text + "exec-as-root = echo anew\n")
    master.signal(signal.SIGHUP)
    master.wait_output("^anew$")
    master.wait_ready()
    assert find_inner(master) != inner
    assert master.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_reload_may_choose_another_way(masters, root):
    master = masters.start(text_of(f"chroot = {root}", SLEEP))
    masters.write(text_of("unshare = net", SLEEP))
    master.signal(signal.SIGHUP)
    master.wait_line("SIGHUP: reloading")
    master.wait_ready()
    inner = find_inner(master)
    assert os.readlink(f"/proc/{inner}/root") == "/"
    assert namespace_of(inner, "net") != namespace_of("self", "net")
    assert master.stop() == 0


def test_daemons_have_cgroups_where_they_are_seen(masters):
    master = masters.start(text_of("unshare = net", SLEEP))
    if master.has_said("gets a shim of its own"):
        pytest.skip("needs: cgroup v2")
    assert master.has_said("sleep: started, .* kill domain cgroup")
    assert master.stop() == 0


def test_control_daemon_gives_the_exit_status(masters, rooted):
    master = masters.begin(text_of(rooted, "attach-control-daemon = sh -c 'exit 7'"))
    assert master.wait() == 7


def test_smart_daemon_survives_where_there_is_no_pid_namespace(masters):
    pidfile = masters.directory / "s.pid"
    smart = f"state-dir = {masters.directory}/state\nsmart-attach-daemon2 = {pidfile} sleep 1000"
    master = masters.start(text_of("unshare = net", "kill-domain = shim", smart))
    pid = master.pid_of("sleep")
    master.signal(signal.SIGHUP)
    master.wait_line("SIGHUP: reloading")
    assert master.wait_found("sleep") == pid
    assert master.stop() == 0
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)
    master.wait_family_gone()
