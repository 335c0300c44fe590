"""`lowsuper enter`: commands in jails, from outside, without a terminal and with one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from jails import find_first, make_root
from masters import (
    DEADLINE,
    RUNTIME,
    children_of,
    kill_all,
    needs_root,
    put_file,
    status_of,
    wait_file,
    wait_gone,
    wait_text,
)
from terminals import Terminal, read_until

pytestmark = needs_root

ENTER = (sys.executable, "-m", "lowsuper", "enter")
PLAIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def enter(*words, **keywords):
    """Run `lowsuper enter`, and return what it has written and its exit status."""
    keywords.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [*ENTER, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        **keywords,
    )


def jail(root, *lines):
    keep = "namespace-keep-mount = /dev/null"
    return "\n".join([f"namespace = {root}:testns", keep, *lines, "attach-daemon = sleep 1000", ""])


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "the röot of it")


@pytest.fixture
def master(masters, root):
    """Return a master that runs in a jail."""
    return masters.start(jail(root))


# What the command is and sees.


def test_command_sees_the_jail_alone(master):
    show = "hostname; echo $PPID; pwd; ls /; ls -l /proc/self/fd; exec cat /proc/self/mountinfo"
    result = enter(master.pid, "--", "sh", "-c", show)
    assert result.returncode == 0
    hostname, parent, place, *files = result.stdout.split("\n")
    assert (hostname, parent, place) == ("testns", "0", "/")
    assert files[:5] == ["bin", "dev", "etc", "proc", "tmp"]
    targets = dict(re.findall(r" (\d+) -> (.*)", result.stdout))
    assert {number for number in targets if int(number) > 2} <= {"3"}  # the directory it lists
    points = {line.split()[4] for line in files if line.count(" ") > 8 and " - " in line}
    assert points == {"/", "/proc", "/dev/null"}


def test_command_gets_a_clean_environment_of_the_jail(master):
    result = enter(master.pid, "busybox", "env", env={**os.environ, "SECRET": "s", "TERM": "vt100"})
    assert sorted(result.stdout.split()) == [
        "HOME=/",
        "LOGNAME=root",
        f"PATH={PLAIN}",
        "SHELL=/bin/sh",
        "TERM=vt100",
        "USER=root",
    ]


@pytest.mark.parametrize("user", ["web", "1234"])
def test_user_is_one_of_the_jail(master, user):
    result = enter("--user", user, master.pid, "sh", "-c", "id; pwd; echo $HOME $USER")
    assert result.stdout.splitlines() == [
        "uid=1234(web) gid=1235(web) groups=77(logs),1235(web)",
        "/tmp",
        "/tmp web",
    ]


def test_user_of_the_host_is_none_of_the_jail(master):
    result = enter("--user=nobody", master.pid, "true")
    assert result.returncode == 125
    assert result.stderr == "lowsuper: there is no user nobody in the jail\n"


def test_any_process_of_the_jail_leads_into_it(master):
    first = find_first(master)
    (daemon,) = (pid for shim in children_of(first) for pid in children_of(shim))
    for pid in (first, daemon):
        assert enter(pid, "hostname").stdout == "testns\n"


def test_two_jails_side_by_side(masters, tmp_path):
    roots = [make_root(tmp_path / name) for name in ("one", "two")]
    found = [
        masters.start(jail(path).replace("testns", path.name), name=f"{path.name}.ini")
        for path in roots
    ]
    for master, path in zip(found, roots, strict=True):
        result = enter(master.pid, "sh", "-c", "hostname; touch /tmp/here")
        assert result.stdout == f"{path.name}\n"
        assert (path / "tmp" / "here").exists()


def test_namespaces_without_a_root_are_entered(tmp_path):
    ours = os.readlink("/proc/self/ns/net")
    process = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    try:
        end = time.monotonic() + DEADLINE
        while os.readlink(f"/proc/{process.pid}/ns/net") == ours:
            assert time.monotonic() < end
        theirs = os.readlink(f"/proc/{process.pid}/ns/net")
        result = enter(process.pid, "readlink", "/proc/self/ns/net", "/proc/self/ns/pid")
        assert result.stdout.split() == [theirs, os.readlink("/proc/self/ns/pid")]
    finally:
        process.communicate()


def test_command_cannot_have_more_than_the_process_that_it_joins(masters):
    master = masters.start(
        "attach-daemon2 = name=a,cmd=sleep 1000,ns_pid=true,caps=kill,no_new_privs=true"
    )
    pid = master.wait_started("a") if not master.has_said("a: started") else master.pid_of("a")
    (inner,) = children_of(pid) or [pid]
    assert int(status_of(inner)["CapBnd"], 16) == 1 << 5
    shown = enter(inner, "grep", "-E", "Cap|NoNew", "/proc/self/status").stdout
    values = dict(re.findall(r"(\w+):\t(\w+)", shown))
    assert {int(values[name], 16) for name in ("CapBnd", "CapPrm", "CapEff")} == {1 << 5}
    assert values["NoNewPrivs"] == "1"


# How it ends.


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_exit_status_is_that_of_the_command(master, command, code):
    result = enter(master.pid, "sh", "-c", command)
    assert (result.returncode, result.stderr) == (code, "")


def test_command_that_is_not_there_is_named(master):
    result = enter(master.pid, "no-such")
    assert result.returncode == 127
    assert result.stderr == "lowsuper: enter: no-such in the jail: No such file or directory\n"


def test_command_that_cannot_be_executed_is_named(master, root):
    (root / "tmp" / "plain").write_text("text")
    (root / "tmp" / "script").write_text("#!/no/such\n")
    (root / "tmp" / "script").chmod(0o755)
    result = enter(master.pid, "/tmp/plain")
    assert result.returncode == 126
    assert result.stderr == "lowsuper: enter: /tmp/plain in the jail: Permission denied\n"
    result = enter(master.pid, "/tmp/script")
    assert result.returncode == 127
    assert "/tmp/script in the jail: it is there, but what is to run it" in result.stderr


def test_missing_shell_is_named(master, root):
    (root / "bin" / "sh").unlink()
    result = enter(master.pid)
    assert result.returncode == 127
    assert result.stderr == "lowsuper: enter: /bin/sh in the jail: No such file or directory\n"
    put_file(root / "etc" / "passwd", "root:x:0:0::/:/bin/bash\n")
    assert ": /bin/bash or /bin/sh in the jail: No such file" in enter(master.pid).stderr


def test_shell_is_that_of_the_user(master, root):
    (root / "bin" / "mine").write_text("#!/bin/sh\necho mine\n")
    (root / "bin" / "mine").chmod(0o755)
    put_file(root / "etc" / "passwd", "root:x:0:0::/:/bin/mine\nweb:x:1:1::/:/usr/sbin/nologin\n")
    assert enter(master.pid).stdout == "mine\n"
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"id -u\n")
    os.close(write_fd)
    assert enter("--user", "web", master.pid, stdin=read_fd).stdout == "1\n"
    os.close(read_fd)


def test_jail_that_ends_takes_the_command_along(masters, root):
    master = masters.start(jail(root, "reload-mercy = 1"))
    process = start_in(master, "trap '' TERM; echo up; exec sleep 1000")
    assert master.stop() == 0
    assert process.wait(DEADLINE) == 137
    with process.stderr:
        assert "the jail of process" in process.stderr.read()
    process.stdout.close()


def start_in(master, script, prefix=()):
    """Start a shell's script in a jail, and wait for its first line."""
    process = subprocess.Popen(
        [*prefix, *ENTER, str(master.pid), "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "up\n"
    return process


def test_signal_is_passed_on(master):
    process = start_in(master, "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
    process.terminate()
    assert process.wait(DEADLINE) == 9
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize("trap", ["", "trap '' HUP; "])
def test_killed_enter_leaves_no_command(master, root, trap):
    process = start_in(master, trap + "echo $$ > /tmp/pid; echo up; exec sleep 1000")
    ((usher,)) = children_of(process.pid)
    (command,) = children_of(usher)
    process.kill()
    process.wait()
    wait_gone(command)
    wait_gone(usher)
    process.stdout.close()
    process.stderr.close()


def test_killed_usher_leaves_no_command(master):
    process = start_in(master, "trap '' HUP; echo up; exec sleep 1000")
    (usher,) = children_of(process.pid)
    (command,) = children_of(usher)
    kill_all([usher])
    os.waitpid(command, 0)  # it has become ours, and the jail cannot end before it is reaped
    assert process.wait(DEADLINE) == 125
    process.stdout.close()
    process.stderr.close()


def test_stopped_enter_does_not_keep_the_jail_from_ending(master):
    process = start_in(master, "echo up; exec sleep 1000")
    process.send_signal(signal.SIGSTOP)
    assert master.stop() == 0
    process.send_signal(signal.SIGCONT)
    assert process.wait(DEADLINE) == 143
    process.stdout.close()
    process.stderr.close()


# Where there is nothing to enter.


def test_process_without_a_jail_is_refused(masters):
    master = masters.start("attach-daemon = sleep 1000")
    result = enter(master.pid, "true")
    assert result.returncode == 125
    text = rf"lowsuper: process {master.pid} \(.*\) is not in a jail and has none\n"
    assert re.fullmatch(text, result.stderr)


def test_daemon_with_namespaces_of_its_own_is_no_jail_but_named(masters):
    master = masters.begin("attach-daemon2 = name=a,cmd=sleep 1000,ns_pid=true")
    pid = master.wait_started("a")
    result = enter(master.pid, "true")
    assert result.returncode == 125
    assert "has none; with namespaces of their own run " in result.stderr
    assert enter(pid, "sh", "-c", "echo $PPID").stdout == "0\n"


def test_process_that_has_ended_is_refused():
    process = subprocess.Popen(["true"])
    process.wait()
    result = enter(process.pid, "true")
    assert (result.returncode, result.stderr) == (
        125,
        f"lowsuper: there is no process {process.pid}\n",
    )
    assert enter("99999999999999999999", "true").returncode == 125


def test_zombie_is_refused():
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    result = enter(process.pid, "true")
    assert (result.returncode, result.stderr) == (
        125,
        f"lowsuper: there is no process {process.pid}\n",
    )
    process.wait()


def test_user_who_is_not_root_is_told(master):
    load = "import os,sys,lowsuper.enter;from lowsuper.cli import main"
    code = f"{load};os.setuid(65534);sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", code, "enter", str(master.pid), "true"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert result.returncode == 125
    assert "only root may enter a jail" in result.stderr


REUSE = """
import os, signal, sys
from lowsuper.kernel import enter, mount, process

def make(pid=0):
    if pid:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(pid - 1))
    read_fd, write_fd = os.pipe()
    found = os.fork()
    if not found:
        mount.unshare(mount.NEWUTS)
        os.close(write_fd)
        while True:
            signal.pause()
    os.close(write_fd)
    os.read(read_fd, 1)  # it has come to the pause
    os.close(read_fd)
    assert found == pid or not pid
    return found

def open_and_replace(pid):
    pidfd = real(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert make(pid) == pid
    return pidfd

pid = make()
enter.find_jail(pid).close()
real, process.open_pidfd = process.open_pidfd, open_and_replace
try:
    enter.find_jail(pid)
except enter.NoJailError as error:
    print(error)
"""


def test_pid_that_is_reused_while_it_is_looked_at_is_refused():
    result = subprocess.run(
        ["unshare", "--pid", "--mount-proc", "--fork", sys.executable, "-c", REUSE],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert re.fullmatch(r"there is no process \d+\n", result.stdout), result.stderr


# By the file.


def test_file_and_name_lead_to_the_master(masters, root, tmp_path):
    masters.start(jail(root, "instance = the-jail"))
    env = {RUNTIME: f"{tmp_path}/.run", **os.environ}
    assert enter(tmp_path / "test.ini", "hostname", env=env).stdout == "testns\n"
    assert enter("test.ini", "hostname", cwd=tmp_path, env=env).stdout == "testns\n"
    assert enter("the-jail", "hostname", env=env).stdout == "testns\n"


def test_option_runtime_dir_leads_to_the_master(masters, root, tmp_path):
    masters.start(jail(root, f"runtime-dir = {tmp_path}/elsewhere"))
    assert enter(tmp_path / "test.ini", "hostname").stdout == "testns\n"


def test_file_that_no_master_runs_is_refused(masters, root, tmp_path):
    masters.write(jail(root))
    result = enter(tmp_path / "test.ini", "hostname")
    assert result.returncode == 125
    assert "is known to run: none is in the runtime directory\n" in result.stderr
    assert enter(tmp_path / "no-such", "hostname").returncode == 78


def test_file_leads_to_its_master_by_the_pidfile(masters, root, tmp_path):
    pidfile = tmp_path / "master.pid"
    master = masters.start(jail(root, f"safe-pidfile = {pidfile}"))  # whose directory is another
    wait_text(pidfile, str(master.pid))
    assert enter(tmp_path / "test.ini", "hostname").stdout == "testns\n"
    pidfile.write_text("")
    assert f"its pidfile {pidfile} " in enter(tmp_path / "test.ini", "hostname").stderr


def test_pidfile_that_names_a_stranger_in_namespaces_is_not_believed(masters, root, tmp_path):
    pidfile = tmp_path / "master.pid"
    masters.write(jail(root, f"pidfile = {pidfile}"))
    process = subprocess.Popen(["unshare", "--uts", "cat"], stdin=subprocess.PIPE)
    pidfile.write_text(f"{process.pid}\n")
    try:
        result = enter(tmp_path / "test.ini", "hostname")
        assert "is not a lowsuper of ours" in result.stderr
    finally:
        process.communicate()


# With a terminal.


@pytest.fixture
def terminal():
    found = Terminal()
    yield found
    with contextlib.suppress(OSError):
        found.close()


def enter_line(master, *words):
    return " ".join([*ENTER, str(master.pid), *words]) + "\n"


INNER = r"[/~] # "


def test_shell_has_job_control_and_the_size_of_the_window(master, terminal):
    terminal.type(enter_line(master))
    terminal.expect(INNER)
    terminal.type("busybox stty size\n")
    terminal.expect("33 77")
    terminal.expect(INNER)
    terminal.type("sh -c 'echo go; exec cat'\n")
    terminal.expect("go")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("jobs; fg\n")
    terminal.expect('Stopped .*exec cat"\r\nsh -c')
    terminal.type("a line\n")
    terminal.expect("a line")
    terminal.type("\x03")
    terminal.expect(INNER)
    terminal.type("echo status $?; exit 5\n")
    terminal.expect("status 130")
    terminal.expect("OUTER\\$ ")
    terminal.type("echo code $?\n")
    terminal.expect("code 5")


def test_window_that_changes_is_told_to_the_command(master, terminal):
    terminal.type(enter_line(master, "sh", "-c", "'trap \"echo changed\" WINCH; echo up; read x'"))
    terminal.expect("up")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("4H", 11, 22, 0, 0))
    terminal.type("line\n")
    terminal.expect("changed")


def test_command_is_a_job_of_the_shell_outside(master, terminal):
    terminal.type(enter_line(master, "sh", "-c", "'echo up; exec cat'"))
    terminal.expect("up")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect("OUTER\\$ ")
    terminal.type("echo here; fg\n")
    terminal.expect("here\r\n.*enter")
    terminal.type("a line\n")
    terminal.expect("a line")
    terminal.type("\x03")
    terminal.expect("OUTER\\$ ")
    terminal.type("echo code $?\n")
    terminal.expect("code 130")


def test_command_in_the_background_stops_when_it_reads_and_goes_on_in_front(master, terminal):
    terminal.type(enter_line(master, "cat").replace("\n", " &\n"))
    terminal.expect("OUTER\\$ ")
    (enter_pid,) = children_of(terminal.shell.pid)
    end = time.monotonic() + DEADLINE
    while status_of(enter_pid)["State"][0] != "T":
        assert time.monotonic() < end
        select.select([], [], [], 0.01)
    terminal.type("fg\n")
    terminal.expect("enter .*cat")
    terminal.type("some line\n\x04")
    terminal.expect("some line")
    terminal.expect("OUTER\\$ ")


def test_command_in_a_pipeline_gets_the_terminal_when_it_reads(master, terminal, tmp_path):
    terminal.type(enter_line(master, "cat").replace("\n", f" > {tmp_path}/out; echo over $?\n"))
    terminal.type("some line\n\x04")
    terminal.expect("over 0")
    assert (tmp_path / "out").read_text() == "some line\n"


def test_modes_of_the_terminal_are_restored_after_a_command_that_was_killed(master, terminal):
    before = termios.tcgetattr(terminal.fd)
    script = "'busybox stty raw; echo up; kill -9 $$'"
    terminal.type(enter_line(master, "sh", "-c", script))
    terminal.expect("up")
    terminal.expect("OUTER\\$ ")
    after = termios.tcgetattr(terminal.fd)
    assert after[:4] == before[:4]


def test_terminal_that_is_hung_up_ends_all(master, terminal, root):
    terminal.type(enter_line(master, "sh", "-c", "'echo $$ > /tmp/up; exec sleep 1000'"))
    wait_file(root / "tmp" / "up")
    (enter_pid,) = children_of(terminal.shell.pid)
    (usher,) = children_of(enter_pid)
    (command,) = children_of(usher)
    terminal.close()
    for pid in (command, usher, enter_pid):
        wait_gone(pid)


def test_stop_where_no_shell_could_continue_it_is_undone(master, root):
    """`ssh -t host lowsuper enter`: we are the leader of the session, and ^Z leads nowhere."""
    master_fd, tty = os.openpty()
    take = "import fcntl,os,sys,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0)"
    script = f"{take};os.execv(sys.argv[1],sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *ENTER, str(master.pid), "cat"],
        stdin=tty,
        stdout=tty,
        stderr=tty,
        start_new_session=True,
    )
    os.close(tty)
    try:
        os.write(master_fd, b"one\n")
        read_until(master_fd, b"one\r\none\r\n")
        os.write(master_fd, b"\x1a")
        read_until(master_fd, b"^Z")
        os.write(master_fd, b"two\n")
        read_until(master_fd, b"two\r\n")
        os.write(master_fd, b"\x04")
        read_until(master_fd, b"two")
        assert process.wait(DEADLINE) == 0
    finally:
        os.close(master_fd)
        process.kill()
        process.wait()
