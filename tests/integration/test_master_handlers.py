"""What the handlers of hooks do, to files, mounts, and the master itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from masters import children_of, is_alive, needs_root, quote, send, wait_file, wait_text

ONE = "attach-daemon2 = cmd=sleep 1000,name=one\n"
PRIVATE_MOUNTS = ("unshare", "--mount", "--propagation", "private")


def mount_points():
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def test_files_are_made_changed_and_removed(masters):
    (masters.directory / "gone").touch()
    (masters.directory / "log").write_text("before\n")
    master = masters.start(
        "hook-asap = mkdir:{T}/new\n"
        "hook-asap = cd:{T}/new\n"
        "hook-asap = write:plain a  text\n"
        "hook-asap = writen:line a text\n"
        "hook-asap = append:{T}/log one\n"
        "hook-asap = appendn:{T}/log  two\n"
        "hook-asap = create:empty\n"
        "hook-asap = chmod:empty 4640\n"
        "hook-asap = sticky:{T}/new\n"
        "hook-asap = unlink:{T}/gone\n" + ONE
    )
    new = masters.directory / "new"
    assert (new / "plain").read_text() == "a  text"
    assert (new / "line").read_text() == "a text\n"
    assert (masters.directory / "log").read_text() == "before\none two\n"
    assert (new / "empty").stat().st_mode & 0o7777 == 0o4640
    assert new.stat().st_mode & 0o1000
    assert not (masters.directory / "gone").exists()
    assert master.stop() == 0


@needs_root
def test_owner_is_changed_by_name_and_number(masters):
    master = masters.start(
        "hook-asap = create:{T}/a\nhook-asap = chown:{T}/a nobody daemon\n"
        "hook-asap = create:{T}/b\nhook-asap = chown2:{T}/b 12 34\n" + ONE
    )
    assert (masters.directory / "a").owner() == "nobody"
    assert (masters.directory / "a").group() == "daemon"
    status = (masters.directory / "b").stat()
    assert (status.st_uid, status.st_gid) == (12, 34)
    assert master.stop() == 0


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("unlink:{T}/no", "unlink {T}/no: No such file or directory"),
        ("mkdir:{T}", "mkdir {T}: File exists"),
        ("cd:{T}/no", "chdir {T}/no: No such file or directory"),
        ("write:{T}/no/file x", "open {T}/no/file: No such file or directory"),
        ("write:{T} x", "open {T}: Is a directory"),
        ("writefifo:{T}/no x", "open {T}/no: No such file or directory"),
        ("chmod:{T}/no 644", "chmod {T}/no: No such file or directory"),
        ("chown:{T} nobdy daemon", "nobdy: there is no user of that name; did you mean nobody?"),
        ("chown:{T} nobody dæmon", "dæmon: there is no group of that name"),
        ("mount:nofs none {T}", "mount {T}: "),
        ("umount:{T}", "umount {T}: "),
    ],
)
def test_deed_that_fails_is_fatal_and_says_why(masters, deed, said):
    master = masters.begin(f"hook-as-root = {deed}\n{ONE}")
    assert master.wait() == 1
    where = str(masters.directory)
    (line,) = [line for line in master.lines if "giving up" in line]
    assert line.startswith(f"lowsuper: hook-as-root: {deed}: {said}".replace("{T}", where))
    master.expect_silence("one: started")


def test_deed_at_the_end_that_fails_changes_nothing(masters):
    master = masters.start(
        "hook-as-user-atexit = unlink:{T}/no\nhook-as-user-atexit = create:{T}/yes\n" + ONE
    )
    assert master.stop() == 0
    assert master.has_said("hook-as-user-atexit: unlink:.*/no: No such file or directory$")
    assert (masters.directory / "yes").exists()


def test_safe_command_that_fails_is_said_and_not_fatal(masters):
    master = masters.start("hook-as-root = safeexec:exit 3\n" + ONE)
    assert master.has_said("hook-as-root: safeexec:exit 3: exited with 3$")
    assert master.stop() == 0


def test_fifo_that_nobody_reads_is_no_failure(masters):
    os.mkfifo(masters.directory / "fifo")
    master = masters.start("hook-as-root = writefifo:{T}/fifo x\n" + ONE)
    assert master.has_said("nobody reads .*/fifo; nothing was written")
    assert master.stop() == 0


def test_fifo_that_is_read_gets_the_text(masters):
    path = masters.directory / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        master = masters.start("hook-as-root = writefifo:{T}/fifo a text\n" + ONE)
        assert os.read(fd, 100) == b"a text"
        assert master.stop() == 0
    finally:
        os.close(fd)


# What blocks.


def test_deed_that_blocks_does_not_block_the_master(masters):
    os.mkfifo(masters.directory / "fifo")
    (masters.directory / "touched").touch()
    master = masters.start("hook-touch = {T}/touched write:{T}/fifo x\n" + ONE)
    (masters.directory / "touched").touch()
    master.wait_line("hook-touch: ")
    (one,) = [pid for pid in [master.pid_of("one")] if is_alive(pid)]
    send(one, signal.SIGKILL)
    master.wait_line("one: .*was killed by SIGKILL")
    assert master.wait_started("one") != one
    assert master.stop() == 0
    assert not master.family()


def test_stop_ends_a_deed_that_blocks(masters):
    os.mkfifo(masters.directory / "fifo")
    master = masters.begin("hook-as-root = write:{T}/fifo x\n" + ONE)
    master.wait_line("hook-as-root: ")
    assert master.stop() == 0
    master.expect_silence("one: started")


def test_killed_master_takes_its_deed_along(masters):
    os.mkfifo(masters.directory / "fifo")
    master = masters.begin("hook-as-root = write:{T}/fifo x\n")
    master.wait_line("hook-as-root: ")
    while not children_of(master.pid):
        pass
    master.kill()
    master.wait_family_gone()


def test_deed_has_no_descriptor_of_the_master(masters):
    os.mkfifo(masters.directory / "fifo")
    master = masters.begin("hook-as-root = write:{T}/fifo x\n" + ONE)
    master.wait_line("hook-as-root: ")
    while not (children := children_of(master.pid)):
        pass
    place = Path(f"/proc/{children[0]}/fd")
    while len(found := {path.name for path in place.iterdir()}) > 4:
        assert is_alive(children[0])
    assert found == {"0", "1", "2", "3"}
    assert master.stop() == 0


# The master itself.


def test_print_is_one_line_of_the_masters(masters):
    master = masters.start("hook-asap = print:so far: so good\n" + ONE)
    assert "lowsuper: so far: so good" in master.lines
    assert master.stop() == 0


def test_private_hook_is_not_shown(masters):
    master = masters.begin(
        "hook-asap = !write:{T}/secret hush\nhook-as-root = !exec:test $(cat {T}/secret) = husch\n"
    )
    assert master.wait() == 1
    assert (masters.directory / "secret").read_text() == "hush"
    assert "hook-asap: (private)" in master.text
    assert "hook-as-root: (private): exited with 1; giving up" in master.text
    assert "husch" not in master.text


def test_environment_is_changed_for_later_hooks_and_daemons(masters):
    master = masters.start(
        "env = COLOUR=red\nenv = SIZE=big\nhook-asap = putenv:COLOUR=blue\n"
        "hook-asap = putenv:SIZE\n"
        "exec-as-root = echo hook $COLOUR ${SIZE-none}\n"
        "attach-daemon2 = cmd=sh -c 'echo daemon $COLOUR ${SIZE-none}; exec sleep 1000',name=one\n"
    )
    master.wait_output("^hook blue none$")
    master.wait_output("^daemon blue none$")
    master.signal(signal.SIGHUP)
    master.wait_output("^daemon blue none$")
    assert master.stop() == 0


@needs_root
def test_variables_of_the_user_last_over_a_reload_and_a_hook_can_change_them(open_masters):
    master = open_masters.start(
        "uid = www-data\nhook-as-user = putenv:LOGNAME=other\n"
        "exec-as-user = echo $HOME $USER $LOGNAME\n" + ONE
    )
    master.wait_output("^/var/www www-data other$")
    master.signal(signal.SIGHUP)
    master.wait_output("^/var/www www-data other$")
    master.wait_line("reloaded")
    assert master.stop() == 0


def test_directory_that_is_gone_is_no_reason_to_end(masters):
    for name in ("old", "new"):
        (masters.directory / name).mkdir()
    master = masters.start(
        "hook-as-user = cd:{T}/new\nexec-as-user = echo in $(pwd)\n" + ONE,
        prefix=("sh", "-c", f'cd {masters.directory}/old && exec "$@"', "sh"),
    )
    (masters.directory / "old").rmdir()
    master.signal(signal.SIGHUP)
    master.wait_line("chdir .*/old: No such file or directory")
    master.wait_line("reloaded")
    assert master.stop() == 0


def test_directory_is_changed_for_later_hooks_and_daemons(masters):
    (masters.directory / "sub").mkdir()
    master = masters.start(
        "hook-as-root = cd:sub\nexec-as-user = echo hook $(pwd)\n"
        "attach-daemon2 = cmd=sh -c 'echo daemon $(pwd); exec sleep 1000',name=one\n"
    )
    sub = masters.directory / "sub"
    master.wait_output(f"^hook {sub}$")
    master.wait_output(f"^daemon {sub}$")
    master.signal(signal.SIGHUP)  # the hook changes to the same directory once more
    master.wait_output(f"^daemon {sub}$")
    master.wait_line("reloaded")
    assert master.stop() == 0


@pytest.mark.parametrize("phase", ["asap", "as-root", "as-user"])
@pytest.mark.parametrize("code", [0, 5, 42])
def test_exit_ends_the_start_with_its_status(masters, phase, code):
    master = masters.begin(f"hook-{phase} = exit:{code}\nexec-{phase} = echo no\n{ONE}")
    assert master.wait() == code
    master.expect_silence("one: started")
    assert "no" not in master.lines


def test_exit_at_the_end_gives_the_status(masters):
    master = masters.start(f"hook-as-user-atexit = exit:7\nexec-as-user-atexit = echo no\n{ONE}")
    assert master.stop() == 7
    assert "no" not in master.lines


def test_post_jail_hook_without_a_jail_does_not_run(masters):
    master = masters.start(
        "exec-post-jail = touch {T}/outside\nexec-in-jail = touch {T}/inside\n" + ONE
    )
    assert master.has_said("exec-post-jail=.*does nothing without a jail")
    assert not (masters.directory / "outside").exists()
    assert (masters.directory / "inside").exists()
    assert master.stop() == 0


# Files that set a hook off.


def test_touched_file_runs_its_hooks_once_for_each_change(masters):
    path = masters.directory / "touched"
    path.touch()
    master = masters.start(
        "hook-touch = {T}/touched appendn:{T}/log hook\ntouch-exec = {T}/touched exit 3\n" + ONE
    )
    assert not (masters.directory / "log").exists()
    path.touch()
    wait_text(masters.directory / "log", "hook\n")
    master.wait_line("touch-exec: .*exited with 3$")
    assert (masters.directory / "log").read_text() == "hook\n"
    path.unlink()
    wait_text(masters.directory / "log", "hook\nhook\n")
    master.wait_line("touch-exec: .*exited with 3$")
    assert is_alive(master.pid_of("one"))
    assert master.stop() == 0


def test_touched_file_is_another_after_a_reload(masters):
    first = "hook-touch = {T}/first appendn:{T}/log first\n"
    master = masters.start(first + ONE)
    masters.write("hook-touch = {T}/second appendn:{T}/log second\n" + ONE)
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    (masters.directory / "first").touch()
    (masters.directory / "second").touch()
    wait_text(masters.directory / "log", "second\n")
    assert (masters.directory / "log").read_text() == "second\n"
    assert master.stop() == 0


def test_touch_hook_that_runs_may_see_a_reload(masters):
    path = masters.directory / "touched"
    os.mkfifo(masters.directory / "fifo")
    path.touch()
    master = masters.start("touch-exec = {T}/touched cat {T}/fifo\n" + ONE)
    path.touch()
    master.wait_line("touch-exec: ")
    masters.write(ONE)
    before = master.pid_of("one")
    master.signal(signal.SIGHUP)
    master.wait_line("reloading")
    assert master.wait_started("one") != before
    (masters.directory / "fifo").write_text("end of it\n")
    master.wait_output("end of it")
    master.wait_line("reloaded")
    assert master.stop() == 0


# Mounts, in a mount namespace that is the test's own.


@needs_root
def test_mounts_are_made_and_unmounted(masters):
    before = mount_points()
    for name in ("a", "b b", "c"):
        (masters.directory / name).mkdir()
    (masters.directory / "a" / "file").touch()
    place = masters.directory
    master = masters.start(
        "hook-as-root = mount:tmpfs none {T}/c nosuid,noexec size=1m,mode=700\n"
        "hook-as-root = mkdir:{T}/c/sub\n"
        "mount-as-root = none {T}/c {T}/c/sub bind\n"
        "mount-as-root = none {T}/a '{T}/b b' bind,ro\n"
        "exec-as-root = cat /proc/self/mountinfo > {T}/mounts\n"
        "exec-as-root = ls '{T}/b b'; ! touch '{T}/b b/no'\n"
        "hook-as-user-atexit = umount:{T}/c rec\n"
        "hook-as-user-atexit = umount:'{T}/b b' detach\n"
        "exec-as-user-atexit = cat /proc/self/mountinfo > {T}/after\n" + ONE,
        prefix=PRIVATE_MOUNTS,
    )
    assert mount_points() == before
    rows = [line.split() for line in (place / "mounts").read_text().splitlines()]
    found = {row[4]: row for row in rows if row[4].startswith(str(place))}
    assert set(found) == {f"{place}/c", f"{place}/c/sub", f"{place}/b\\040b"}
    assert {"nosuid", "noexec"} <= set(found[f"{place}/c"][5].split(","))
    assert "size=1024k" in found[f"{place}/c"][-1]
    assert "ro" in found[f"{place}/b\\040b"][5].split(",")
    assert "file" in master.lines
    assert master.stop() == 0
    assert str(place) not in (place / "after").read_text()
    assert not master.has_said("umount.*: umount")


@needs_root
def test_bind_mount_takes_its_flags_below_it_too(masters):
    (masters.directory / "a").mkdir()
    (masters.directory / "b").mkdir()
    master = masters.start(
        "mount-asap = tmpfs none {T}/a\nexec-asap = mkdir {T}/a/sub\n"
        "mount-pre-jail = tmpfs none {T}/a/sub\n"
        "mount-in-jail = none {T}/a {T}/b bind,rec,ro\n"
        "exec-in-jail = ! touch {T}/b/sub/no && touch {T}/a/sub/yes\n" + ONE,
        prefix=PRIVATE_MOUNTS,
    )
    assert master.stop() == 0


@needs_root
def test_mount_that_fails_half_way_leaves_nothing(masters):
    """A propagation that cannot be is found out only when the bind mount is there."""
    (masters.directory / "a").mkdir()
    master = masters.begin(
        "hook-as-root = mount:none {T}/a {T}/a bind,private,slave\n"
        "exec-as-user-atexit = cat /proc/self/mountinfo > {T}/after\n" + ONE,
        prefix=PRIVATE_MOUNTS,
    )
    assert master.wait() == 1
    assert master.has_said("mount .*/a: Invalid argument; giving up")
    assert str(masters.directory) not in (masters.directory / "after").read_text()


# What a command leaves running.


def test_child_of_a_killed_hook_is_killed_in_whatever_session(masters):
    master = masters.begin("exec-asap = setsid sleep 998 & setsid -f sleep 997; echo up; sleep 999")
    master.wait_output("up")
    assert master.stop() == 0
    assert not master.family()


def test_child_of_a_failed_hook_is_killed_in_whatever_session(masters):
    master = masters.begin("exec-asap = setsid -f sleep 998; exit 3")
    assert master.wait() == 1
    assert not master.family()


def test_killed_master_takes_all_of_its_hook_along(masters):
    master = masters.begin("exec-asap = setsid -f sleep 998; echo up; sleep 999")
    master.wait_output("up")
    master.kill()
    master.wait_family_gone()


def test_child_that_a_hook_leaves_running_lives_on(masters):
    """As in uWSGI, where hooks are used to start things."""
    pid_file = masters.directory / "pid"

    def end_it() -> None:
        send(int(pid_file.read_text()), signal.SIGKILL)

    masters.allow_survivors(end_it)
    master = masters.start(
        "exec-as-root = setsid sh -c "
        + quote(f"echo $$ > {pid_file}; exec sleep 998")
        + " </dev/null >/dev/null 2>&1 &\n"
        + ONE
    )
    assert master.has_said("exec-as-root: .*: left processes running, which live on by themselves")
    wait_file(pid_file)
    assert master.stop() == 0
    assert is_alive(int(pid_file.read_text()))
