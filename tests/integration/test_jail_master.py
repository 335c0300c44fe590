"""A master in a jail: what is seen inside, and what the process outside does for it."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from jails import Tampered, find_first, make_root, read_mounts
from masters import children_of, needs_root, wait_gone

pytestmark = [needs_root, pytest.mark.usefixtures("own_mounts")]

NULL = "namespace-keep-mount = /dev/null"  # a shell wants it for what it puts in the background


@pytest.fixture
def root(tmp_path):
    """Return a root file system with a blank and an umlaut in its path."""
    return make_root(tmp_path / "the röot of it")


def jail(root, *lines):
    return "\n".join([f"namespace = {root}:testns", *lines, ""])


def test_jail_shows_its_own_processes_name_and_files(masters, root):
    show = "hostname; echo $$ $PPID; ls /; ls /proc/1/root/; echo over"
    master = masters.begin(
        jail(root, f"exec-as-root = {show}", "attach-daemon = /bin/sleep 1000")
    ).wait_ready()
    master.wait_output("^over$")
    assert "testns" in master.lines
    pid, parent = map(int, re.search(r"^(\d+) (\d+)$", master.text, re.MULTILINE).groups())
    assert 1 < parent < pid < 10
    assert master.text.count("bin\netc\nproc\ntmp\n") == 2
    assert (root / "proc").is_dir()
    assert master.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_jailed_master_is_process_1_and_reaps_orphans_of_others(masters, root):
    # An orphan of a hook that ended long ago has nobody but process 1.
    hook = "exec-as-root = sleep 0.2 & echo $! > /tmp/orphan"
    master = masters.start(jail(root, NULL, hook, "attach-daemon = sleep 1000"))
    first = find_first(master)
    assert (root / "tmp" / "orphan").read_text().strip().isdigit()
    wait_until(lambda: len(children_of(first)) == 1)  # the shim of the daemon
    assert master.stop() == 0


def test_daemon_becomes_a_user_of_the_jail(masters, root):
    master = masters.start(
        jail(root, "attach-daemon2 = cmd=sh -c 'id; echo home $HOME; exec sleep 1000',uid=web")
    )
    master.wait_output(r"uid=1234\(web\) gid=1235\(web\) groups=77\(logs\),1235\(web\)")
    master.wait_output("home /tmp")
    assert master.stop() == 0


def test_user_of_the_host_is_an_error(masters, root):
    master = masters.begin(jail(root, "attach-daemon2 = cmd=sleep 1000,uid=nobody"))
    master.wait_line("uid=nobody: there is no user of that name")
    assert master.wait() == 78


def test_missing_root_is_an_error_of_the_configuration(masters, tmp_path):
    master = masters.begin(jail(tmp_path / "none", "attach-daemon = sleep 1000"))
    master.wait_line(r"test.ini:2: namespace=.*: there is no directory .*/none; make it first")
    assert master.wait() == 78


def test_failed_mount_is_fatal_and_named(masters, root):
    keep = f"namespace-keep-mount = {root}/none:/x"
    master = masters.begin(jail(root, keep, "attach-daemon = sleep 1000"))
    master.wait_line("the jail: open_tree .*/none: No such file or directory; make it, or write")
    assert master.wait() == 125
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_kept_mount_is_seen_with_what_is_in_it(masters, root, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("from outside\n")
    keeps = (f"namespace-keep-mount = ro:{kept}:/a/b", "namespace-keep-mount = optional:/no/such")
    master = masters.start(
        jail(root, *keeps, "exec-as-root = cat /a/b/file", "attach-daemon = sleep 1000")
    )
    master.wait_output("from outside")
    assert master.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_no_descriptor_of_before_the_pivot_is_left_but_the_named(masters, root):
    show = "cd /proc/1/fd; ls -l; echo over"
    master = masters.start(jail(root, f"exec-as-root = {show}", "attach-daemon = sleep 1000"))
    master.wait_output("^over$")
    targets = re.findall(r" (\d+) -> (.*)", master.text)
    doors = [
        target
        for number, target in targets
        if int(number) > 2
        and target.startswith("/")
        and target != "/dev/null"
        and not target.endswith("/lowsuper-helper")
    ]
    assert len(targets) > 5
    assert doors == []
    assert master.stop() == 0


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


def test_nothing_is_imported_in_the_jail(masters, root):
    path = masters.write(
        jail(
            root,
            "exec-as-root = true",
            "auto-procname = true",
            "log-date = true",
            f"attach-daemon2 = name=a,cmd=sleep 1000,touch={root}/none;/etc/passwd",
            "attach-daemon2 = name=b,cmd=sleep 1000,uid=web,ns_pid=true",
            "attach-daemon2 = name=c,cmd=sleep 1000,pidfile=/tmp/c.pid,daemonize=true",
            "attach-daemon2 = name=d,cmd=/no/such",
            "attach-daemon2 = name=f,cmd=sleep 1000,caps=kill,nice=1,umask=077,rlimit_nofile=99",
            "attach-daemon2 = name=g,cmd=sleep 1000,namespaces='mount,uts',mounts=/etc:/tmp",
            "attach-daemon2 = name=h,cmd=sleep 1000,ns_pid=true,root=/",
            "attach-daemon2 = name=e,cmd=sh -c 'exit 3'",
        )
    )
    master = masters.adopt(Tampered(RECORD, str(path), cwd=masters.directory))
    master.wait_output("SEALED")
    master.wait_ready()
    master.signal(signal.SIGUSR1)
    master.wait_line(" e: ")
    Path(f"/proc/{find_first(master)}/root/etc/passwd").touch()
    assert master.stop() == 0
    master.expect_silence("ASKED FOR")


def test_uid_of_the_master_is_a_user_of_the_jail(masters, root):
    path = masters.write(jail(root, "uid = web", "exec-as-user = id", "attach-daemon = sleep 1000"))
    master = masters.adopt(Tampered(RECORD, str(path), cwd=masters.directory))
    master.wait_output(r"uid=1234\(web\)")
    master.wait_ready()
    assert master.stop() == 0
    master.expect_silence("ASKED FOR")


# What the process outside does.


def test_exit_status_is_that_of_the_control_daemon(masters, root):
    master = masters.begin(jail(root, "attach-control-daemon = sh -c 'exit 7'"))
    assert master.wait() == 7


def test_failed_hook_in_the_jail_ends_it_with_1(masters, root):
    master = masters.begin(
        jail(root, "exec-as-root = false-is-no-program", "attach-daemon = sleep 9")
    )
    assert master.wait() == 1
    master.expect_silence("made again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop_signal_stops(masters, root, number):
    master = masters.start(jail(root, "attach-daemon = sleep 1000"))
    master.signal(number)
    assert master.wait() == 0
    master.wait_line(f"{number.name}: stopping 1 daemon")


def test_second_stop_kills(masters, root):
    stubborn = "sh -c 'trap \"\" TERM; echo up; while true; do sleep 1; done'"
    master = masters.start(jail(root, f"attach-daemon2 = cmd={stubborn},stop_timeout=60s"))
    master.wait_output("^up$")
    master.signal(signal.SIGTERM)
    master.wait_line("stopping 1 daemon")
    master.signal(signal.SIGTERM)
    assert master.wait() == 0


def test_third_stop_kills_a_jail_that_hangs(masters, root):
    master = masters.start(jail(root, "attach-daemon = sleep 1000"))
    os.kill(find_first(master), signal.SIGSTOP)
    for _ in range(2):
        master.signal(signal.SIGTERM)
    # The two may have come as one.
    master.signal(signal.SIGINT)
    master.signal(signal.SIGQUIT)
    master.wait_line("killing the jail")
    assert master.wait() == 137


def test_reload_makes_a_new_jail_from_the_new_file(masters, root):
    text = jail(root, "attach-daemon = sleep 1000")
    master = masters.start(text)
    first = find_first(master)
    masters.write(text.replace("testns", "other") + "exec-as-root = hostname\n")
    master.signal(signal.SIGHUP)
    master.wait_line("SIGHUP: reloading")
    master.wait_output("^other$")
    master.wait_ready()
    assert find_first(master) != first
    assert master.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("attach-daemon2 = cmd=sleep,uid=nobody\n", "there is no user of that name"),
        ("attach-daemon2 = nonsense=1\n", "nonsense"),
        ("namespace = /no/such\n", "there is no directory /no/such"),
    ],
)
def test_reload_of_a_bad_file_changes_nothing(masters, root, bad, reason):
    text = jail(root, "attach-daemon = sleep 1000")
    master = masters.start(text)
    first = find_first(master)
    masters.write(text + bad)
    master.signal(signal.SIGHUP)
    master.wait_line(reason)
    master.wait_line("nothing was changed")
    assert find_first(master) == first
    assert master.stop() == 0


def test_reload_cannot_leave_the_jail(masters, root):
    master = masters.start(jail(root, "attach-daemon = sleep 1000"))
    masters.write("attach-daemon = sleep 1000\n")
    master.signal(signal.SIGHUP)
    master.wait_line("no reload makes a jail or leaves it")
    master.wait_line("nothing was changed")
    assert master.stop() == 0


def test_reload_cannot_make_a_jail(masters, root):
    master = masters.start("attach-daemon = sleep 1000\n")
    masters.write(jail(root, "attach-daemon = sleep 1000"))
    master.signal(signal.SIGHUP)
    master.wait_line("no reload makes a jail or leaves it")
    master.wait_line("nothing was changed")
    assert master.stop() == 0


def test_hangup_of_process_1_in_the_jail_reloads(masters, root):
    once = "test -e /tmp/told || { touch /tmp/told; kill -HUP 1; }"
    master = masters.begin(jail(root, f"attach-daemon = sh -c '{once}; exec sleep 1000'"))
    master.wait_line("SIGHUP in the jail: reloading")
    master.wait_line("ending the jail, to make a new one")
    master.wait_ready()
    assert master.stop() == 0


def test_stop_during_a_reload_stops(masters, root):
    slow = "attach-daemon2 = cmd=sh -c 'trap \"\" TERM; echo up; sleep 1000',stop_timeout=1s"
    master = masters.start(jail(root, slow))
    master.wait_output("^up$")
    master.signal(signal.SIGHUP)
    master.wait_line("stopping 1 daemon")
    master.signal(signal.SIGTERM)
    assert master.wait() == 0
    master.wait_line("SIGKILL")


def test_jail_that_dies_is_made_again_after_a_pause(masters, root):
    master = masters.start(jail(root, "attach-daemon = sleep 1000"))
    os.kill(find_first(master), signal.SIGKILL)
    master.wait_line(r"the jail died: was killed by SIGKILL \(9\) after .*; made again in 1 s")
    master.wait_ready()
    assert master.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_stop_during_the_pause_ends_at_once(masters, root):
    master = masters.start(jail(root, "attach-daemon = sleep 1000"))
    os.kill(find_first(master), signal.SIGKILL)
    master.wait_line("made again in 1 s")
    assert master.stop() == 0


def test_killed_process_outside_takes_the_jail_with_it(masters, root):
    deep = (
        'attach-daemon = sh -c \'trap "" TERM HUP; (sh -c "sleep 1000" &) ; echo up; sleep 1000\''
    )
    master = masters.start(jail(root, NULL, deep))
    master.wait_output("^up$")
    first = find_first(master)
    master.kill()
    wait_gone(first)
    master.wait_family_gone()


def test_everything_in_the_jail_ends_with_it_gracefully(masters, root):
    left = "sh -c 'trap \"echo told; exit\" TERM; echo up; while true; do sleep 0.05; done'"
    master = masters.start(
        jail(root, f"attach-daemon2 = name=left,cmd={left},pidfile=/tmp/x.pid,daemonize=true")
    )
    master.wait_output("^up$")
    master.signal(signal.SIGTERM)
    master.wait_output("^told$")
    assert master.wait() == 0


def test_pidfile_names_the_process_outside(masters, root, tmp_path):
    pidfile = tmp_path / "master.pid"
    master = masters.start(
        jail(root, f"pidfile = {pidfile}", "vacuum = true", "attach-daemon = sleep 1000")
    )
    assert int(pidfile.read_text()) == master.pid
    assert master.stop() == 0
    assert not pidfile.exists()


def test_log_file_that_is_rotated_is_followed_by_the_jail(masters, root, tmp_path):
    log, fifo = tmp_path / "log", tmp_path / "fifo"
    text = jail(root, f"logto = {log}", f"master-fifo = {fifo}", "vacuum = true")
    master = masters.begin(text + "attach-daemon = sleep 1000\n")
    wait_text(log, "ready: ")
    fifo.write_text("l")
    log.rename(tmp_path / "old")
    fifo.write_text("l")
    wait_until(log.exists)
    fifo.write_text("s")
    wait_text(log, "sleep: ")
    assert master.stop() == 0
    assert "everything has ended" in log.read_text()


def wait_text(path, text):
    wait_until(lambda: path.exists() and text in path.read_text())


def wait_until(condition, deadline=20.0):
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        select.select([], [], [], 0.01)


def test_touch_reload_is_a_file_outside(masters, root, tmp_path):
    touched = tmp_path / "touched"
    touched.touch()
    master = masters.start(jail(root, f"touch-reload = {touched}", "attach-daemon = sleep 1000"))
    os.utime(touched, (1, 1))
    master.wait_line("touch-reload .*: reloading")
    master.wait_ready()
    assert master.stop() == 0


def test_two_jails_side_by_side(masters, tmp_path):
    roots = [make_root(tmp_path / name) for name in ("one", "two")]
    both = [
        masters.begin(
            f"namespace = {root}:{root.name}\nexec-as-root = hostname\nattach-daemon = sleep 99\n",
            name=f"{root.name}.ini",
        )
        for root in roots
    ]
    for root, master in zip(roots, both, strict=True):
        master.wait_ready()
        assert root.name in master.lines
    for master in both:
        assert master.stop() == 0


def test_jail_in_a_jail(masters, tmp_path):
    """The outer jail shows every directory of the host, so that there is a lowsuper in it."""
    outer = tmp_path / "outer"
    outer.mkdir()
    inner = make_root(tmp_path / "inner")
    second = masters.write(jail(inner, "attach-control-daemon = sh -c 'hostname; exit 9'"), "b.ini")
    keeps = [f"namespace-keep-mount = /{name}" for name in os.listdir("/") if name != "proc"]
    command = f"{sys.executable} -m lowsuper {second}"
    text = "\n".join(
        [
            f"namespace = {outer}:outer",
            *keeps,
            f"chdir = {Path.cwd()}",
            f"attach-control-daemon = {command}",
            "",
        ]
    )
    master = masters.begin(text)
    master.wait_output("^testns$")
    assert master.wait() == 9
    assert os.listdir(outer) == []


CRASH = """
import os
from lowsuper.kernel import mount

outside = os.getpid()
count = 0

def tamper(name):
    original = getattr(mount, name)
    def replacement(*arguments, **keywords):
        global count
        if os.getpid() != outside and arguments != (mount.NEWPID,):
            count += 1
            if count == {step}:
                os.kill(os.getpid(), 9) if os.getpid() != 1 else os._exit(99)
        return original(*arguments, **keywords)
    setattr(mount, name, replacement)

for name in ("unshare", "make_private", "clone_tree", "attach", "make_filesystem", "pivot_here"):
    tamper(name)
"""


@pytest.mark.parametrize("step", range(1, 12))
def test_crash_at_a_mount_step_leaves_the_host_as_it_was(masters, root, step):
    path = masters.write(
        jail(root, "namespace-keep-mount = /dev:/a/dev", "attach-daemon = sleep 1000")
    )
    before = read_mounts()
    master = masters.adopt(Tampered(CRASH.replace("{step}", str(step)), str(path), cwd=root.parent))
    if step < 11:  # there are ten
        master.wait_line("the jail died: exited with 99")
    else:
        master.wait_ready()
    assert read_mounts() == before
    assert master.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_process_outside_has_no_other_child(masters, root):
    master = masters.start(jail(root, "attach-daemon = sleep 1000"))
    assert children_of(master.pid) == [find_first(master)]
    assert master.stop() == 0


def test_killed_process_outside_takes_a_jail_whose_master_dropped_its_privileges(masters, root):
    # The parent-death signal is gone with the change of the user.
    master = masters.start(jail(root, "uid = web", "attach-daemon = sleep 1000"))
    first = find_first(master)
    master.kill()
    wait_gone(first)
    master.wait_family_gone()


def test_hooks_run_outside_and_inside_each_time_the_jail_is_made(masters, root, tmp_path):
    marks = tmp_path / "marks"
    master = masters.start(
        jail(
            root,
            f"exec-asap = echo asap >> {marks}",
            f"exec-pre-jail = echo pre-jail >> {marks}",
            f"exec-post-jail = test -d /proc/$UWSGI_JAIL_PID && echo post-jail >> {marks}",
            "exec-in-jail = echo in-jail $(hostname) > /tmp/marks",
            "hook-as-root = append:/tmp/marks as-root",
            "env = MINE=yes",
            "hook-pre-jail = putenv:MORE=too",
            "attach-daemon = sh -c 'echo $MINE $MORE; exec sleep 1000'",
        )
    )
    master.wait_output("^yes too$")
    assert marks.read_text().split() == ["asap", "pre-jail", "post-jail"]
    assert (root / "tmp" / "marks").read_text().split() == ["in-jail", "testns", "as-root"]
    master.signal(signal.SIGHUP)
    master.wait_ready()
    assert marks.read_text().split() == ["asap", "pre-jail", "post-jail"] * 2
    assert master.stop() == 0


def test_root_may_be_made_by_a_hook(masters, root):
    real = root.rename(root.with_name("real"))
    root.mkdir()
    (root / "x").touch()
    hook = f"exec-pre-jail = rm -r '{root}' && cp -a '{real}' '{root}'"
    master = masters.start(jail(root, hook, "attach-daemon2 = cmd=sleep 1000,uid=web"))
    assert master.stop() == 0


def test_user_that_is_unknown_in_a_root_made_by_a_hook_is_an_error(masters, root):
    master = masters.begin(
        jail(root, "exec-pre-jail = true", "attach-daemon2 = name=a,cmd=sleep 1000,uid=wep")
    )
    master.wait_line("a: uid=wep: there is no user of that name; did you mean web?")
    assert master.wait() == 78


def test_failed_post_jail_hook_is_fatal(masters, root):
    master = masters.begin(jail(root, "exec-post-jail = exit 3", "attach-daemon = sleep 1000"))
    master.wait_line("exec-post-jail: exit 3: exited with 3; stopping")
    assert master.wait() == 1
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_overlay_keeps_what_is_written_in_memory(masters, root):
    write = "exec-as-root = echo new > /etc/passwd.new; rm -r /tmp"
    master = masters.start(
        jail(root, "namespace-overlay = true", write, "attach-daemon = sleep 1000")
    )
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]
    first = find_first(master)
    assert sorted(os.listdir(f"/proc/{first}/root")) == ["bin", "etc", "proc"]
    assert master.stop() == 0
    assert sorted(os.listdir(root / "etc")) == ["group", "passwd"]


def test_network_of_its_own(masters, root):
    master = masters.start(jail(root, "namespace-net = true", "attach-daemon = sleep 1000"))
    first = find_first(master)
    assert os.readlink(f"/proc/{first}/ns/net") != os.readlink("/proc/self/ns/net")
    assert master.stop() == 0


@pytest.mark.parametrize("background", ["daemonize", "daemonize2"])
def test_jail_in_the_background(masters, root, tmp_path, background):
    log, pidfile = tmp_path / "log", tmp_path / "pid"
    path = masters.write(
        jail(root, f"{background} = {log}", f"pidfile = {pidfile}", "attach-daemon = sleep 1000")
    )
    launcher = masters.launch(str(path))
    assert launcher.wait() == 0
    wait_text(log, "ready: ")
    os.kill(int(pidfile.read_text()), signal.SIGTERM)
    wait_text(log, "everything has ended; exit status 0")
    launcher.wait_family_gone()


def test_second_jailed_master_of_other_masters_daemons_is_independent(masters, root):
    """The same jail twice, under two names, is two jails: nothing in the root tells them apart."""
    text = jail(root, "attach-daemon = sleep 1000")
    first = masters.start(text)
    refused = masters.launch(str(masters.directory / "test.ini"))
    refused.wait_line(rf"is already run by another lowsuper, with pid {first.pid};")
    assert refused.wait() != 0
    second = masters.start(text + "instance = other\n", name="other.ini")
    assert find_first(first) != find_first(second)
    assert first.stop() == 0
    # The removal of the first one's mount point would unmount what is on it in the second.
    first.wait_line("/proc is left behind: another jail uses it")
    proc = Path(f"/proc/{find_first(second)}/root/proc/1")
    assert proc.is_dir()
    assert second.stop() == 0


def test_mount_point_goes_with_the_jail_that_made_it_if_that_is_the_last(masters, root):
    text = jail(root, "attach-daemon = sleep 1000")
    first = masters.start(text)
    second = masters.start(text + "instance = other\n", name="other.ini")
    assert second.stop() == 0
    assert Path(f"/proc/{find_first(first)}/root/proc/1").is_dir()
    assert first.stop() == 0
    assert sorted(os.listdir(root)) == ["bin", "etc", "tmp"]


def test_root_in_the_jail_cannot_write_to_the_helper_of_the_host(masters, root):
    master = masters.start(jail(root, "attach-daemon = sleep 1000"))
    first = find_first(master)
    paths = [f"/proc/{first}/fd/{name}" for name in os.listdir(f"/proc/{first}/fd")]
    paths += [f"/proc/{pid}/exe" for pid in children_of(first)]
    found = [path for path in paths if os.readlink(path).endswith("lowsuper-helper")]
    assert len(found) > 1
    for path in found:
        fd = os.open(path, os.O_PATH)
        try:
            # Its writers would be refused as long as it is executed, too, but no longer.
            assert os.fstatvfs(fd).f_flag & os.ST_RDONLY, path
        finally:
            os.close(fd)
    assert master.stop() == 0


UNABLE = """
from lowsuper.errors import KernelError
from lowsuper.kernel import mount

count = 0
original = mount.unshare

def unshare(flags):
    global count
    count += flags == mount.NEWPID
    if flags == mount.NEWPID and count == {number}:
        raise KernelError("unshare", 1, "", "injected")
    original(flags)

mount.unshare = unshare
"""


def test_jail_that_cannot_be_made_at_the_start_is_fatal(masters, root):
    path = masters.write(jail(root, "attach-daemon = sleep 1000"))
    script = UNABLE.replace("{number}", "1")
    master = masters.adopt(Tampered(script, str(path), cwd=masters.directory))
    master.wait_line("the jail: unshare: Operation not permitted; injected")
    assert master.wait() == 125


def test_jail_that_cannot_be_made_again_is_tried_again(masters, root):
    path = masters.write(jail(root, "attach-daemon = sleep 1000"))
    script = UNABLE.replace("{number}", "2")
    master = masters.adopt(Tampered(script, str(path), cwd=masters.directory)).wait_ready()
    os.kill(find_first(master), signal.SIGKILL)
    master.wait_line("the jail: unshare: Operation not permitted; injected")
    master.wait_line("the jail could not be made after .*; made again in 2 s")
    master.wait_ready()
    assert master.stop() == 0
