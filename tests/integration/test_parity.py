"""Parity with uWSGI: each behaviour, what uWSGI does, what we do, the same or why not.

`DIFFERENT` rows name the reason. Each row runs a check of ours; where uWSGI itself is installed,
rows that have a file for both run it too, and see that it really does what is said here.
"""

import os
import shutil
import signal
import time

import pytest
from masters import (
    IS_ROOT,
    Master,
    children_of,
    is_alive,
    need,
    put_file,
    send,
    shown,
    wait_gone,
    wait_text,
)

SAME = "same"
UWSGI = shutil.which("uwsgi-core") or shutil.which("uwsgi")


def expect_restart(masters):
    master = masters.start("attach-daemon = sleep 1000")
    send(master.pid_of("sleep"), signal.SIGKILL)
    master.wait_started("sleep")


def expect_restart_after_0(masters):
    master = masters.begin("attach-daemon = {D}/exits.sh 0")
    master.wait_line(r"exits\.sh: .*exited with 0 .*next try in 1 s")
    master.wait_started("exits.sh")


def expect_one_line_of_reason(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 4,name=one")
    master.wait_line(r"one: pid \d+ exited with 4 after \d+ ms; next try in 1 s")


def expect_own_session_and_null(masters):
    masters.start("attach-daemon = {D}/show.py {T}/shown")
    found = shown(masters.directory / "shown")
    assert found["sid"] == found["pgid"] == found["pid"]
    assert found["fds"]["0"] == "/dev/null"
    assert sorted(found["fds"]) == ["0", "1", "2"]


def expect_direct_exec(masters):
    master = masters.start("attach-daemon2 = cmd={D}/show.py {T}/shown,name=one")
    found = shown(masters.directory / "shown")
    assert found["pid"] == master.pid_of("one")
    assert found["ppid"] == master.pid


def expect_shell(masters):
    master = masters.begin("attach-daemon = echo one && echo $((1 + 1)) > {T}/two; exec sleep 999")
    master.wait_output("^one$")
    wait_text(masters.directory / "two", "^2$")


def expect_control_status(masters):
    master = masters.begin("attach-control-daemon = {D}/exits.sh 7")
    assert master.wait() == 7


def expect_flag_false(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 7,control=0,name=one")
    master.wait_line("one: .*exited with 7.*next try")


def expect_unknown_key(masters):
    master = masters.begin("attach-daemon2 = cmd=sleep 9,pidflie=/x")
    assert master.wait() == 78
    assert master.has_said("pidflie=/x: a daemon has no such key; did you mean pidfile")


def expect_quotes(masters):
    master = masters.begin("attach-daemon2 = cmd=sh -c 'echo a,b; exec sleep 999',name=one")
    master.wait_output("^a,b$")


def expect_escape(masters):
    master = masters.begin("attach-daemon2 = cmd=echo a\\,b,name=one")
    master.wait_output("^a,b$")


def expect_trimmed(masters):
    master = masters.start("attach-daemon2 = cmd=sleep 999 , name=one , stopsignal=INT")
    assert master.stop() == 0
    assert master.has_said("one: stop: SIGINT")


def expect_last_command(masters):
    master = masters.start("attach-daemon2 = command=sleep 1,cmd=sleep 2,exec=sleep 999,name=one")
    with open(f"/proc/{master.pid_of('one')}/cmdline") as file:
        assert file.read() == "sleep\0999\0"


def expect_signal_names(masters):
    master = masters.start("attach-daemon2 = cmd=sleep 999,name=one,stopsignal=QUIT")
    assert master.stop() == 0
    assert master.has_said(r"one: pid \d+ was killed by SIGQUIT \(3\)")


def expect_user_name(masters):
    need(IS_ROOT, "root")
    masters.directory.chmod(0o1777)
    for parent in list(masters.directory.parents)[:3]:
        if parent.stat().st_uid == os.getuid() and parent.name.startswith(("p", "t")):
            parent.chmod(parent.stat().st_mode | 0o011)
    master = masters.start("attach-daemon2 = cmd=sleep 999,name=one,uid=www-data")
    with open(f"/proc/{master.pid_of('one')}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    assert status["Uid"].split() == ["33"] * 4
    assert status["Groups"].split() == ["33"]


def expect_throttle(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 1,name=one")
    starts = []
    for _ in range(3):
        master.wait_started("one")
        starts.append(time.monotonic())
    assert starts[1] - starts[0] > 0.9
    assert starts[2] - starts[1] > 1.9


def expect_stop_in_the_pause(masters):
    master = masters.begin("attach-daemon2 = cmd={D}/exits.sh 1,name=one")
    master.wait_line("one: .*next try in 1 s")
    assert master.stop() == 0
    assert sum("one: started" in line for line in master.lines) == 1


def expect_parallel_stop(masters):
    master = masters.start(
        "".join(
            f"attach-daemon2 = cmd={{D}}/ignore_term.sh,name=d{number},stop_timeout=1\n"
            for number in range(4)
        )
    )
    for _ in range(4):
        master.wait_output("settled")
    master.signal(signal.SIGTERM)
    assert master.wait(3.5) == 0


def expect_one_stop_signal(masters):
    master = masters.start("attach-daemon2 = cmd={D}/say_signals.py,name=one,stop_timeout=2200ms")
    master.wait_output("settled")
    assert master.stop() == 0
    assert sum(line == "got SIGTERM" for line in master.lines) == 1


def expect_tree_ended(masters):
    master = masters.start("attach-daemon = sleep 998 & sleep 999")
    assert master.stop() == 0
    assert not master.family()


def expect_nothing_after_kill(masters):
    master = masters.start("attach-daemon2 = cmd={D}/double_fork.sh,name=one")
    master.wait_output("settled")
    master.kill()
    master.wait_family_gone()


def expect_touch_backwards(masters):
    file = masters.directory / "file"
    file.write_text("x")
    master = masters.start(f"attach-daemon2 = cmd=sleep 999,name=one,touch={file}")
    os.utime(file, (1, 1))
    master.wait_line("one: touch")
    master.wait_started("one")


def expect_touch_of_creation(masters):
    file = masters.directory / "file"
    master = masters.start(f"attach-daemon2 = cmd=sleep 999,name=one,touch={file}")
    put_file(file, "x")
    master.wait_line("one: touch")
    master.wait_started("one")


def expect_namespace_stop(masters):
    need(IS_ROOT, "root")
    master = masters.start("attach-daemon2 = cmd={D}/say_signals.py TERM,name=one,ns_pid")
    master.wait_output("settled")
    assert master.stop() == 0
    assert master.has_said("^got SIGTERM$")


def expect_term_stops(masters):
    master = masters.start("attach-daemon = sleep 999")
    assert master.stop() == 0


def expect_term_reloads(masters):
    master = masters.start("die-on-term = false\nattach-daemon = sleep 999")
    pid = master.pid_of("sleep")
    master.signal(signal.SIGTERM)
    master.wait_line("reloaded")
    assert master.pid_of("sleep") != pid


def expect_reload_in_place(masters):
    master = masters.start("attach-daemon = sleep 999")
    pid = master.pid_of("sleep")
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    assert not is_alive(pid)
    assert is_alive(master.pid)


def expect_bad_reload_refused(masters):
    master = masters.start("attach-daemon = sleep 999")
    pid = master.pid_of("sleep")
    masters.write("chdir = /no/such/dir\nattach-daemon = sleep 999")
    master.signal(signal.SIGHUP)
    master.wait_line("nothing was changed")
    assert is_alive(pid)


def expect_hooks_once(masters):
    masters.start("exec-as-root = echo x >> {T}/hooks\nattach-daemon = sleep 999")
    assert (masters.directory / "hooks").read_text() == "x\n"


def expect_failing_hook(masters):
    master = masters.begin("exec-as-root = false\nattach-daemon = sleep 999")
    assert master.wait() == 1


def expect_order_of_forms(masters):
    master = masters.begin(
        "exec-as-root = true\numount-as-root = /no\nmount-as-root = tmpfs none /no/such\n"
        "hook-as-root = print:first"
    )
    assert master.wait() == 1
    assert [line.split()[1] for line in master.lines if "-as-root: " in line][:2] == [
        "hook-as-root:",
        "mount-as-root:",
    ]
    assert not master.has_said("exec-as-root: true|umount-as-root")


def expect_no_jail(masters):
    masters.start(
        "exec-in-jail = echo in >> {T}/hooks\nexec-post-jail = echo post >> {T}/hooks\n"
        "attach-daemon = sleep 999"
    )
    assert (masters.directory / "hooks").read_text() == "in\n"


def expect_exit(masters):
    master = masters.begin("hook-as-root = exit:42\nexec-as-user-atexit = touch {T}/clean")
    assert master.wait() == 42
    assert (masters.directory / "clean").exists()


def expect_short_exit(masters):
    assert masters.begin("hook-as-root = exit:5").wait() == 5


def expect_safe_hook(masters):
    assert masters.start("hook-as-root = safeexec:false\nattach-daemon = sleep 999").stop() == 0


def expect_killed_hook(masters):
    assert masters.begin("exec-as-root = kill -9 $$\nattach-daemon = sleep 999").wait() == 1


def expect_whole_mode(masters):
    masters.start(
        "hook-asap = create:{T}/f\nhook-asap = chmod:{T}/f 4755\nattach-daemon = sleep 999"
    )
    assert (masters.directory / "f").stat().st_mode & 0o7777 == 0o4755


def expect_exit_hooks_at_the_end(masters):
    master = masters.start("exec-as-user-atexit = echo x >> {T}/hooks\nattach-daemon = sleep 999")
    master.signal(signal.SIGHUP)
    master.wait_line("reloaded")
    assert not (masters.directory / "hooks").exists()
    assert master.stop() == 0
    assert (masters.directory / "hooks").read_text() == "x\n"


def expect_env_anywhere(masters):
    masters.start("attach-daemon = {D}/show.py {T}/shown\nenv = COLOUR=red")
    assert shown(masters.directory / "shown")["env"]["COLOUR"] == "red"


def expect_missing_chdir_retried(masters):
    master = masters.begin("attach-daemon2 = cmd=sleep 9,name=one,chdir=/no/such,max_throttle=1")
    for _ in range(2):
        master.wait_line("one: chdir /no/such: No such file or directory; next try in 1 s")


def expect_garbage_on_the_fifo_ignored(masters):
    master = masters.start("master-fifo = {T}/fifo\nattach-daemon2 = cmd=sleep 999,name=one")
    fd = os.open(masters.directory / "fifo", os.O_WRONLY)
    os.write(fd, b"xyz\nq")
    os.close(fd)
    assert master.wait() == 0


def refuse(masters, text, reason):
    master = masters.begin(text)
    assert master.wait() == 78
    assert master.has_said(reason)
    master.expect_silence("started")


def expect_smart_needs_command(masters):
    refuse(masters, "smart-attach-daemon = {T}/a.pid", "there is no command after the pidfile")


def expect_freq_is_a_time(masters):
    refuse(masters, "smart-attach-daemon = {T}/a.pid,soon sleep 9", "FREQ is not a length of time")


def expect_forgotten_pidfile(masters):
    refuse(masters, "smart-attach-daemon = sleep 9", "sleep stands where the pidfile belongs")


def expect_daemonize_needs_pidfile(masters):
    refuse(masters, "attach-daemon2 = cmd=sleep 9,daemonize", "means nothing without a pidfile")


def expect_notifypid_needs_pidfile(masters):
    refuse(masters, "attach-daemon2 = cmd=sleep 9,notifypid", "means nothing without a pidfile")


def expect_one_daemon_a_pidfile(masters):
    line = "smart-attach-daemon = {T}/a.pid sleep 9\n"
    refuse(masters, line + line, r"is the pidfile of sleep \(.*test\.ini:2\) too")


def expect_pidfile_is_not_the_masters(masters):
    text = "pidfile = {T}/a.pid\nsmart-attach-daemon = {T}/a.pid sleep 9"
    refuse(masters, text, "is the master's own pidfile")
    assert not (masters.directory / "a.pid").exists()


TABLE = [
    # what, uWSGI (section of its behaviour, or place in core/daemons.c), ours, check
    (
        "attach-daemon: respawn",
        "at the next second, 0.06-0.79 s (3)",
        "at once, by pidfd: no polling",
        expect_restart,
    ),
    ("attach-daemon: exit 0", "respawned, any exit (3)", SAME, expect_restart_after_0),
    (
        "log of a death",
        "no reason (2)",
        "status, age and next try: it says why",
        expect_one_line_of_reason,
    ),
    (
        "session, stdin, descriptors",
        "own session, /dev/null, all above 2 closed (2)",
        SAME,
        expect_own_session_and_null,
    ),
    (
        "command without shell syntax",
        "sh -c, and dash stays (0.1)",
        "exec'd directly: the pid is the daemon's",
        expect_direct_exec,
    ),
    ("command with shell syntax", "sh -c (2)", SAME, expect_shell),
    (
        "attach-control-daemon: status",
        "0 whatever it was (3)",
        "the daemon's: the tests in a VM return it",
        expect_control_status,
    ),
    ("flags", "on when present, control=0 too (5)", "parsed: 0 means off", expect_flag_false),
    (
        "unknown key",
        "silently ignored (5)",
        "an error: a typo gave a dumb daemon",
        expect_unknown_key,
    ),
    ("quotes in a keyval line", "mean nothing (5)", "protect commas", expect_quotes),
    ("\\, in a keyval line", "a literal comma (5)", SAME, expect_escape),
    (
        "blanks around commas",
        "part of the key, which is then unknown (5)",
        "trimmed: real files have them",
        expect_trimmed,
    ),
    ("command, cmd, exec", "aliases, the last one wins (5)", SAME, expect_last_command),
    (
        "stopsignal by name",
        "0: no signal, then SIGKILL after 3 s (5)",
        "the signal",
        expect_signal_names,
    ),
    (
        "uid by name",
        "0: stays root; root's groups stay (0.6)",
        "the user, with its groups",
        expect_user_name,
    ),
    ("throttle", "count of spawns less age, 1 to 300 s (2)", SAME, expect_throttle),
    (
        "stop during the throttle",
        "the sleeping child runs the command once more (0.5)",
        "not started again: the pause is a timer",
        expect_stop_in_the_pause,
    ),
    ("stop of several", "in turn, 1 s each at least (0.9)", "in parallel", expect_parallel_stop),
    (
        "stop signal",
        "every second again (2)",
        "once: a handler that starts anew never ends",
        expect_one_stop_signal,
    ),
    ("children at the stop", "survive (0.1)", "ended: stopped means empty", expect_tree_ended),
    (
        "SIGKILL of the master",
        "direct child only, by PDEATHSIG (0.1)",
        "the whole tree",
        expect_nothing_after_kill,
    ),
    (
        "touch: older time",
        "only increasing mtime in seconds (5)",
        "any change",
        expect_touch_backwards,
    ),
    ("touch: creation", "triggers (5)", SAME, expect_touch_of_creation),
    (
        "ns_pid: stop",
        "SIGKILL by PDEATHSIG, never graceful (0.7)",
        "the stop signal first",
        expect_namespace_stop,
    ),
    (
        "SIGTERM",
        "2.0: brutal reload; later: stop (1)",
        "stop, as in the development tree",
        expect_term_stops,
    ),
    ("die-on-term = false", "SIGTERM is a brutal reload (1)", SAME, expect_term_reloads),
    (
        "SIGHUP",
        "daemons stopped, same pid, configuration read again (1)",
        SAME,
        expect_reload_in_place,
    ),
    (
        "reload of a bad file",
        "exits, daemons are gone",
        "refused, nothing changes",
        expect_bad_reload_refused,
    ),
    ("exec-as-root", "four times per start (0.10)", "once", expect_hooks_once),
    ("failing exec-as-root", "fatal, exit 1 (6)", SAME, expect_failing_hook),
    ("forms of a phase", "hook, mount, umount, exec", SAME, expect_order_of_forms),
    ("exec-in-jail, exec-post-jail without a jail", "only the first runs", SAME, expect_no_jail),
    ("hook-as-root = exit:42", "ends with 42, after the exit hooks", SAME, expect_exit),
    ("hook-as-root = exit:5", "ends with 0: a single digit is not read", "5", expect_short_exit),
    ("hook-as-root = safeexec:false", "goes on", SAME, expect_safe_hook),
    ("hook killed by a signal", "counts as a success", "fatal", expect_killed_hook),
    ("chmod:FILE 4755", "the first digit of four is left out", "4755", expect_whole_mode),
    ("exec-as-user-atexit", "at a reload too", "at the end only", expect_exit_hooks_at_the_end),
    ("env below the daemon", "applied before anything starts (6)", SAME, expect_env_anywhere),
    (
        "missing chdir of a daemon",
        "respawned for ever, silently (2)",
        "the same, but it says why",
        expect_missing_chdir_retried,
    ),
    (
        "master-fifo: unknown bytes",
        "ignored, several per write obeyed (1)",
        SAME,
        expect_garbage_on_the_fifo_ignored,
    ),
    ("smart-attach-daemon: no command", "exits (4)", SAME, expect_smart_needs_command),
    (
        "smart-attach-daemon: FREQ that is no number",
        "0: no patience at all (4)",
        "an error that shows how to write it",
        expect_freq_is_a_time,
    ),
    (
        "smart-attach-daemon: no pidfile",
        "the program is taken for the pidfile, its first argument for the program (11)",
        "an error that says so",
        expect_forgotten_pidfile,
    ),
    (
        "daemonize without pidfile",
        "a plain daemon (5)",
        "an error: it would not survive",
        expect_daemonize_needs_pidfile,
    ),
    (
        "notifypid without pidfile",
        "ignored (5)",
        "an error: nothing would be told",
        expect_notifypid_needs_pidfile,
    ),
    (
        "one pidfile for two daemons",
        "both are started, and the one is then taken for the other (4)",
        "an error that names both",
        expect_one_daemon_a_pidfile,
    ),
    (
        "the master's pidfile for a daemon",
        "the master is taken for the daemon, which is never started (4)",
        "an error",
        expect_pidfile_is_not_the_masters,
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_parity(masters, row):
    what, uwsgi, ours, check = row
    assert what
    assert uwsgi
    assert ours
    check(masters)


def test_every_check_is_in_the_table():
    checks = {value for name, value in globals().items() if name.startswith("expect_")}
    assert checks == {row[3] for row in TABLE}
    assert len({row[0] for row in TABLE}) == len(TABLE)


# The same file under uWSGI itself, where it is installed.


class Uwsgi(Master):
    program = (UWSGI or "uwsgi",)


@pytest.fixture
def uwsgi(masters):
    """Start uWSGI with a configuration, as `masters.start` does with ours."""
    if UWSGI is None:
        pytest.skip("needs: uwsgi")

    def start(text):
        path = masters.write(f"master = true\nno-orphans = true\n{text}", "uwsgi.ini")
        return masters.adopt(Uwsgi("--ini", str(path), cwd=masters.directory))

    return start


def test_uwsgi_control_daemon_ends_with_0(uwsgi):
    assert uwsgi("attach-control-daemon = {D}/exits.sh 7").wait() == 0


def test_uwsgi_takes_a_control_of_0_for_1(uwsgi):
    assert uwsgi("attach-daemon2 = cmd={D}/exits.sh 7,control=0").wait() == 0


def test_uwsgi_runs_hooks_several_times(uwsgi, masters):
    master = uwsgi("exec-as-root = echo x >> {T}/hooks\nattach-daemon = {D}/show.py {T}/shown")
    shown(masters.directory / "shown")
    assert (masters.directory / "hooks").read_text().count("x") > 1
    master.signal(signal.SIGINT)
    master.wait()


def test_uwsgi_runs_the_forms_of_a_phase_one_after_the_other(uwsgi):
    master = uwsgi(
        "exec-as-root = echo last\nmount-as-root = tmpfs none /no/such\nhook-as-root = print:first"
    )
    assert master.wait() == 1
    assert "first" in master.lines
    assert "last" not in master.lines


@pytest.mark.parametrize(("code", "status"), [(42, 42), (5, 0)])
def test_uwsgi_does_not_read_a_single_digit_of_exit(uwsgi, masters, code, status):
    master = uwsgi(f"hook-as-root = exit:{code}\nexec-as-user-atexit = touch {{T}}/clean")
    assert master.wait() == status
    assert (masters.directory / "clean").exists()


def test_uwsgi_runs_post_jail_hooks_in_a_jail_only(uwsgi, masters):
    master = uwsgi(
        "exec-in-jail = echo in >> {T}/hooks\nexec-post-jail = echo post >> {T}/hooks\n"
        "hook-as-user = exit:0"
    )
    assert master.wait() == 0
    assert (masters.directory / "hooks").read_text() == "in\n"


def test_uwsgi_takes_a_hook_that_was_killed_for_a_success(uwsgi):
    assert uwsgi("exec-as-root = kill -9 $$\nhook-as-user = exit:11").wait() == 11


def test_uwsgi_ignores_an_unknown_key(uwsgi, masters):
    master = uwsgi("attach-daemon2 = cmd={D}/show.py {T}/shown,pidflie=/x")
    assert shown(masters.directory / "shown")["pid"] > 1
    master.signal(signal.SIGINT)
    assert master.wait() == 0


def test_uwsgi_takes_itself_for_a_daemon(uwsgi):
    master = uwsgi("pidfile = {T}/a.pid\nsmart-attach-daemon = {T}/a.pid sh -c 'echo started'")
    found = master.wait_output(r"found valid/active pidfile for .* \(pid: (\d+)\)")
    assert int(found[1]) == master.pid
    master.signal(signal.SIGINT)
    assert master.wait() == 0
    assert not master.has_said("^started$")


def test_uwsgi_starts_both_daemons_of_one_pidfile(uwsgi):
    master = uwsgi("".join(f"smart-attach-daemon = {{T}}/a.pid echo {name}\n" for name in "ab"))
    master.wait_output("^a$")
    master.wait_output("^b$")
    master.signal(signal.SIGINT)
    assert master.wait() == 0


def test_uwsgi_takes_a_program_for_a_pidfile(uwsgi):
    master = uwsgi("smart-attach-daemon = sleep echo 9")
    master.wait_output("^9$")
    master.signal(signal.SIGINT)
    assert master.wait() == 0


def test_uwsgi_runs_a_plain_daemon_where_daemonize_has_no_pidfile(uwsgi, masters):
    master = uwsgi("attach-daemon2 = cmd=exec {D}/show.py {T}/shown,daemonize")
    found = shown(masters.directory / "shown")
    master.kill()
    wait_gone(found["pid"])


def test_uwsgi_leaves_a_child_when_it_is_killed(uwsgi, masters):
    master = uwsgi("attach-daemon = {D}/double_fork.sh")
    master.wait_output("settled")
    direct = children_of(master.pid)
    master.kill()
    for pid in direct:
        wait_gone(pid)
    assert master.family()
    masters.clear(master)
