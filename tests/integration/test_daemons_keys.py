"""The keys of a daemon, and what the instance's options are to it."""

import os
import signal
import stat
import time

import pytest
from masters import IS_ROOT, grow_file, is_alive, needs_root, put_file, shown, wait_gone


def show(masters, text, **keywords):
    """Start a master with the daemon `show.py` in place of SHOW; return both."""
    master = masters.start(text.replace("SHOW", "{D}/show.py {T}/shown"), **keywords)
    return master, shown(masters.directory / "shown")


# What ends.


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("7", 7), ("-s KILL", 137), ("-s INT", 130)])
@pytest.mark.parametrize("rung", ["cgroup", "shim"])
def test_control_daemon_ends_the_master_with_its_status(masters, word, code, rung):
    """uWSGI: 0, whatever the daemon's status was."""
    if rung == "cgroup" and not IS_ROOT:
        pytest.skip("needs: root")
    master = masters.begin(
        f"kill-domain = {rung}\nattach-daemon2 = cmd=sleep 1000,name=other\n"
        f"attach-control-daemon = {{D}}/exits.sh {word}"
    )
    assert master.wait() == code
    assert master.has_said("it is a control daemon, so the master ends with it")
    assert master.has_said(rf"everything has ended; exit status {code}$")
    assert not master.family()


def test_control_key_is_the_same(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 5,control")
    assert master.wait() == 5


def test_control_0_is_off(masters):
    """uWSGI: a flag is on when it is there."""
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 5,control=0,name=one")
    master.wait_line("one: .*exited with 5 .*next try")
    assert master.stop() == 0


def test_control_daemon_that_leaves_something_ends_the_master_when_that_is_gone(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/leaves_children.sh,control,name=one")
    assert master.wait() == 3
    assert not master.family()


def test_control_daemon_that_cannot_start_is_tried_again(masters):
    master = masters.begin("attach-control-daemon = /nonexistent/program")
    master.wait_line("execve /nonexistent/program: No such file.*next try in 1 s")
    assert master.stop() == 0


def test_stopped_control_daemon_leaves_the_status_0(masters):
    master = masters.start("attach-control-daemon = sleep 1000")
    assert master.stop() == 0


# Signals.


@pytest.mark.parametrize("signal_name", ["QUIT", "SIGUSR1", "2", "sigint"])
def test_stopsignal_by_name_and_number(masters, signal_name):
    """uWSGI: a name is 0, no signal at all."""
    wanted = {"QUIT": "QUIT", "SIGUSR1": "USR1", "2": "INT", "sigint": "INT"}[signal_name]
    master = masters.start(
        f"attach-daemon2 = cmd={{D}}/say_signals.py {wanted},name=one,stopsignal={signal_name}"
    )
    master.wait_output("settled")
    assert master.stop() == 0
    assert master.has_said(rf"one: stop: SIG{wanted} ")
    assert master.has_said(rf"got SIG{wanted}")


def test_realtime_stopsignal(masters):
    master = masters.start("attach-daemon2 = cmd=sleep 1000,name=one,stopsignal=RTMIN+3")
    assert master.stop() == 0
    assert master.has_said(r"one: stop: SIGRTMIN\+3 \(37\) to pid")
    assert master.has_said(r"was killed by SIGRTMIN\+3 \(37\)")


def test_stop_timeout_is_the_daemons_own(masters):
    master = masters.start(
        "reload-mercy = 600\nattach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=200ms"
    )
    master.wait_output("settled")
    assert master.stop() == 0
    assert master.has_said("one: stop: .*SIGKILL in 200 ms")


def test_reload_mercy_is_the_default_of_stop_timeout(masters):
    master = masters.start("reload-mercy = 1\nattach-daemon2 = cmd={D}/ignore_term.sh,name=one")
    master.wait_output("settled")
    assert master.stop() == 0
    assert master.has_said("one: stop: .*SIGKILL in 1 s")


# Touch.


def test_touch_restarts_the_daemon_for_every_kind_of_change(masters):
    directory = masters.directory / "touch"
    directory.mkdir()
    one, two = directory / "one", directory / "two"
    two.write_text("old")
    master = masters.start(
        f"attach-daemon2 = cmd=sleep 1000,name=web,touch={one};{two};{directory}/link\n"
        "attach-daemon2 = cmd=sleep 1000,name=other"
    )
    other = master.pid_of("other")
    (directory / "v1").write_text("1")
    (directory / "v2").write_text("2")
    link = directory / "link"

    def switch_link():
        (directory / "link.new").symlink_to("v2")
        (directory / "link.new").rename(link)

    changes = [
        (lambda: put_file(one, "made"), one),
        (lambda: grow_file(one, "written again"), one),
        (lambda: os.utime(one, (1, 1)), one),  # backwards: uWSGI would not see it
        (one.unlink, one),
        (lambda: put_file(two, "new"), two),
        (lambda: link.symlink_to("v1"), link),
        (switch_link, link),
        (lambda: grow_file(directory / "v2", "longer"), link),
        (lambda: two.rename(directory / "away"), two),
    ]
    for number, (change, path) in enumerate(changes):
        old = master.pid_of("web")
        change()
        master.wait_line(rf"web: touch {path}: SIGTERM \(15\) to pid {old}")
        assert master.wait_started("web") != old, number
    assert master.pid_of("other") == other
    assert master.stop() == 0


def test_touch_of_a_file_whose_directory_is_made_later(masters):
    directory = masters.directory / "later" / "deep"
    master = masters.start(f"attach-daemon2 = cmd=sleep 1000,name=web,touch={directory}/file")
    directory.mkdir(parents=True)
    (directory / "file").write_text("made")
    master.wait_line("web: touch .*/later/deep/file: SIGTERM")
    master.wait_started("web")
    assert master.stop() == 0


def test_touch_sends_the_stop_signal_and_kills_at_the_deadline(masters):
    """uWSGI sends no SIGKILL: a daemon that ignores the signal is never restarted."""
    file = masters.directory / "file"
    master = masters.start(
        f"attach-daemon2 = cmd={{D}}/ignore_term.sh,name=web,touch={file},stop_timeout=200ms"
    )
    master.wait_output("settled")
    put_file(file, "made")
    master.wait_line(r"web: still there after \d+ ms: SIGKILL to all of it")
    master.wait_started("web")
    assert master.stop() == 0


def test_touch_of_other_files_in_the_directory_does_nothing(masters):
    master = masters.start("attach-daemon2 = cmd=sleep 1000,name=web,touch={T}/file")
    for number in range(200):
        (masters.directory / f"other{number}").write_text("x")
    put_file(masters.directory / "file", "x")
    master.wait_line("web: touch .*/file: SIGTERM")
    master.wait_started("web")
    assert master.stop() == 0
    assert sum("web: touch" in line for line in master.lines) == 1


# Descriptors and the like.


def test_daemon_has_exactly_0_1_2(masters):
    read_fd, write_fd = os.pipe()
    try:
        os.set_inheritable(write_fd, True)
        master, found = show(
            masters,
            "master-fifo = {T}/fifo\nattach-daemon2 = cmd=SHOW,touch={T}/x",
            pass_fds=(write_fd,),
        )
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert sorted(found["fds"]) == ["0", "1", "2"]
    assert found["fds"]["0"] == "/dev/null"
    assert found["fds"]["1"] == found["fds"]["2"]
    assert master.stop() == 0


@pytest.mark.parametrize("rung", ["pidns", "cgroup", "shim"])
def test_daemon_starts_with_clean_signals(masters, rung):
    if not IS_ROOT:
        pytest.skip("needs: root")
    keys = ",ns_pid" if rung == "pidns" else f"\nkill-domain = {rung}"
    master, found = show(masters, f"attach-daemon2 = cmd=SHOW{keys}")
    status = found["status"]
    for field in ("SigBlk", "SigPnd", "ShdPnd"):
        assert int(status[field], 16) == 0, field
    # Python itself ignores SIGPIPE and SIGXFSZ, and handles SIGINT.
    assert int(status["SigIgn"], 16) == 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert int(status["SigCgt"], 16) & ~(1 << (signal.SIGINT - 1)) in (0, 1 << 31, 3 << 31)
    assert found["sid"] == found["pgid"] == found["pid"]
    assert master.stop() == 0


def test_shell_daemon_has_no_ignored_signal(masters):
    """A program that leaves signals as it finds them shows what it was given."""
    master = masters.start("attach-daemon2 = cmd=sleep 1000,name=one")
    with open(f"/proc/{master.pid_of('one')}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    for field in ("SigBlk", "SigIgn", "SigCgt", "SigPnd"):
        assert int(status[field], 16) == 0, field
    assert master.stop() == 0


def test_daemon_keeps_the_limit_of_open_files(masters):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        master, found = show(masters, "attach-daemon2 = cmd=SHOW")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found["nofile"] == [300, before[1]]
    assert master.stop() == 0


@pytest.mark.parametrize(
    "text",
    [
        "honour-stdin = true\nattach-daemon2 = cmd=SHOW,stdin",
        "honour-stdin = true\ndaemons-honour-stdin = true\nattach-daemon2 = cmd=SHOW",
    ],
)
def test_stdin_is_the_masters_when_asked_for(masters, text):
    read_fd, write_fd = os.pipe()
    try:
        inode = os.fstat(read_fd).st_ino
        master, found = show(masters, text, stdin=read_fd)
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert found["fds"]["0"] == f"pipe:[{inode}]"
    assert master.stop() == 0


def test_daemons_output_is_the_masters(masters):
    master = masters.start("attach-daemon2 = cmd=sh -c 'echo to out; echo to err >&2; sleep 1000'")
    master.wait_output("to out")
    master.wait_output("to err")
    assert master.stop() == 0


# Place and environment.


def test_chdir_of_the_instance_and_of_the_daemon(masters):
    inner = masters.directory / "inner"
    inner.mkdir()
    master = masters.start(
        "chdir = {T}\n"
        "attach-daemon2 = cmd={D}/show.py {T}/one\n"
        "attach-daemon2 = cmd={D}/show.py {T}/two,chdir=inner\n"
    )
    assert shown(masters.directory / "one")["cwd"] == str(masters.directory)
    assert shown(masters.directory / "two")["cwd"] == str(inner)
    assert master.stop() == 0


def test_environment_is_the_masters_without_what_is_its_own(masters):
    mine = {
        "NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "3", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x",
        "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "LOWSUPER_SET_PH": "x=y", "MINE": "kept",
        "GONE": "taken away",
    }  # fmt: skip
    directory = masters.directory / "envdir"
    directory.mkdir()
    (directory / "FROM_DIR").write_text("of the directory\n")
    (directory / "EMPTY").write_text("")
    master, found = show(
        masters,
        "env = COLOUR=red\nenv = COLOUR=blue\nunenv = GONE\nenvdir = {T}/envdir\n"
        "attach-daemon2 = cmd=SHOW\nenv = LATER=too",
        env=mine | {"EMPTY": "x"},
    )
    env = found["env"]
    assert not [name for name in env if name.startswith(("NOTIFY", "LISTEN", "WATCHDOG", "LOWS"))]
    assert env["MINE"] == "kept"
    assert env["COLOUR"] == "blue"
    assert env["LATER"] == "too"
    assert env["FROM_DIR"] == "of the directory"
    assert "GONE" not in env
    assert env.get("EMPTY", "") == ""
    assert master.stop() == 0


def test_umask_of_the_instance_is_the_daemons(masters):
    master, found = show(masters, "umask = 027\nattach-daemon2 = cmd=SHOW")
    assert found["umask"] == 0o027
    assert stat.S_IMODE((masters.directory / "shown").stat().st_mode) == 0o640
    assert master.stop() == 0


def test_daemon_section_has_the_same_keys(masters):
    inner = masters.directory / "inner"
    inner.mkdir()
    master = masters.start(
        "[uwsgi]\nmaster = true\n"
        "[daemon:web]\ncommand = {D}/show.py {T}/shown --flag 'a b'\n"
        "chdir = {T}/inner\nstop-signal = INT\nstop_timeout = 5s\n"
        "[daemon:db]\ncommand = sleep 1000\n"
    )
    found = shown(masters.directory / "shown")
    assert found["pid"] == master.pid_of("web")
    assert found["argv"][1:] == ["--flag", "a b"]
    assert found["cwd"] == str(inner)
    assert master.stop() == 0
    assert master.has_said(r"web: stop: SIGINT \(2\) .* SIGKILL in 5 s")
    assert master.has_said(r"db: stop: SIGTERM")


def test_lowsuper_section_is_read_like_uwsgis(masters):
    master = masters.start("[lowsuper]\nattach-daemon2 = cmd=sleep 1000,name=one\n")
    assert is_alive(master.pid_of("one"))
    assert master.stop() == 0


def test_shell_syntax_keeps_the_pid_of_the_daemon(masters):
    """uWSGI's dash stays between, and the real daemon is a grandchild."""
    master, found = show(masters, "attach-daemon2 = cmd=FOO=1 SHOW 2>&1 </dev/zero,name=web")
    assert found["pid"] == master.pid_of("web")
    assert found["env"]["FOO"] == "1"
    assert found["fds"]["0"] == "/dev/zero"
    assert master.stop() == 0


def test_compound_command_is_a_tree_under_its_shell(masters):
    master = masters.start("attach-daemon2 = cmd=sleep 999 & sleep 1000,name=web")
    assert is_alive(master.pid_of("web"))
    assert master.stop() == 0
    assert not master.family()


def test_options_of_the_command_line_are_enough(masters):
    master = masters.launch("--attach-daemon", "sleep 1000", "--die-on-term").wait_ready()
    assert is_alive(master.pid_of("sleep"))
    assert master.stop() == 0


@pytest.mark.parametrize("words", [("test.ini",), ("run", "test.ini"), ("--ini", "test.ini")])
def test_ways_to_name_the_file(masters, words):
    masters.write("attach-daemon2 = cmd=sleep 1000,name=one")
    master = masters.launch(*words).wait_ready()
    assert master.stop() == 0


def test_max_throttle_bounds_the_pause(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 1,name=one,max_throttle=50ms")
    for _ in range(4):
        master.wait_line("one: .*next try in 50 ms")
    assert master.stop() == 0


def test_pause_grows_as_in_uwsgi(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 1,name=one")
    starts = []
    for pause in (1, 2, 3):
        master.wait_started("one")
        starts.append(time.monotonic())
        master.wait_line(rf"one: pid \d+ exited with 1 after \d+ ms; next try in {pause} s")
    assert starts[1] - starts[0] > 0.9
    assert starts[2] - starts[1] > 1.9
    assert master.stop() == 0


# Identity.

GROUPS = ("Uid", "Gid", "Groups")


def identity(found):
    status = found["status"]
    assert len(set(status["Uid"].split())) == 1, "real, effective, saved and fs are the same"
    assert len(set(status["Gid"].split())) == 1
    return (
        int(status["Uid"].split()[0]),
        int(status["Gid"].split()[0]),
        {int(group) for group in status["Groups"].split()},
    )


@needs_root
@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("uid=www-data", (33, 33, {33})),
        ("uid=33,gid=1", (33, 1, set())),
        ("uid=33", (33, 33, set())),
        ("uid=4242,gid=4343", (4242, 4343, set())),
        ("uid=www-data,gid=daemon", (33, 1, {1})),
        ("gid=daemon", (0, 1, set())),
        ("uid=www-data,ns_pid", (33, 33, {33})),
    ],
)
def test_daemon_becomes_its_user(open_masters, keys, wanted):
    """uWSGI keeps root's supplementary groups, and takes a name for 0."""
    master, found = show(open_masters, f"attach-daemon2 = cmd=SHOW,name=one,{keys}")
    uid, gid, groups = identity(found)
    assert (uid, gid) == wanted[:2]
    assert groups == wanted[2], "supplementary groups"
    assert master.has_said(rf"one: started, pid \d+, uid {uid}, gid {gid},")
    env = found["env"]
    if "www-data" in keys:
        assert (env["USER"], env["LOGNAME"], env["HOME"]) == ("www-data", "www-data", "/var/www")
    elif "uid" in keys:
        assert env.get("USER") == os.environ.get("USER")
        assert env.get("HOME") == os.environ.get("HOME")
    assert int(found["status"]["CapEff"], 16) == 0 or uid == 0
    assert master.stop() == 0


@needs_root
def test_daemon_of_a_user_gets_the_users_groups(open_masters):
    """The first user of the machine that is in another group than its own, as initgroups does."""
    import grp
    import pwd

    for group in grp.getgrall():
        members = [name for name in group.gr_mem if name in {e.pw_name for e in pwd.getpwall()}]
        if members and pwd.getpwnam(members[0]).pw_gid != group.gr_gid:
            user = members[0]
            break
    else:
        pytest.skip("needs: a user in a second group")
    master, found = show(open_masters, f"attach-daemon2 = cmd=SHOW,uid={user}")
    assert identity(found)[2] == set(os.getgrouplist(user, pwd.getpwnam(user).pw_gid))
    assert master.stop() == 0


@needs_root
def test_daemon_that_changed_its_user_still_dies_with_a_killed_master(open_masters):
    """The parent-death signal is lost when the uid changes after it."""
    for rung in ("cgroup", "shim"):
        master = open_masters.start(
            f"kill-domain = {rung}\nattach-daemon2 = cmd=sleep 1000,name=one,uid=www-data",
            name=f"{rung}.ini",
        )
        pid = master.pid_of("one")
        master.kill()
        wait_gone(pid)
