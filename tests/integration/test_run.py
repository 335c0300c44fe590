"""`lowsuper run FILE -- COMMAND`: daemons around one command."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from jails import make_root
from masters import (
    DEADLINE,
    MARK,
    RUNTIME,
    children_of,
    find_marked,
    is_alive,
    kill_all,
    name_of,
    needs_root,
    send,
    wait_gone,
)
from terminals import Terminal

RUN = (sys.executable, "-m", "lowsuper", "run")
ONE = "attach-daemon = sleep 1000\n"
READY = """
[daemon:web]
command = sh -c "touch {T}/there; exec sleep 1000"
ready = file:{T}/there
"""


@pytest.fixture
def run(masters, tmp_path):
    """Return a function that runs a command with daemons, and returns how it went."""

    def act(text, *words, options=(), **keywords):
        path = masters.write(text)
        mark = f"{tmp_path.name}-{time.monotonic_ns()}"
        env = {RUNTIME: f"{tmp_path}/.run", **os.environ, MARK: mark, **keywords.pop("env", {})}
        result = subprocess.run(
            [*keywords.pop("prefix", ()), *RUN, str(path), *options, "--", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            env=env,
            cwd=tmp_path,
            **keywords,
        )
        # Not after a while: when it has ended, nothing is there.
        assert find_marked(mark) == set()
        return result

    return act


@pytest.fixture
def begin(masters):
    """Return a function that does the same, and waits for nothing."""

    def act(text, *words, options=(), **keywords):
        path = masters.write(text)
        return masters.launch("run", str(path), *options, "--", *map(str, words), **keywords)

    return act


def master_of(front):
    """Return the pid of the master behind a process."""
    (pid,) = [pid for pid in children_of(front.pid) if os.getsid(pid) == pid]
    return pid


# What the command is, and how it ends.


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_exit_status_is_that_of_the_command(run, script, code):
    assert run(ONE, "sh", "-c", script).returncode == code


def test_command_that_cannot_be_had_is_named(run, tmp_path):
    (tmp_path / "plain").write_text("text")
    result = run(ONE, "no-such")
    assert result.returncode == 127
    assert "lowsuper: run: no-such: No such file or directory\n" in result.stderr
    result = run(ONE, tmp_path / "plain")
    assert result.returncode == 126
    assert f"lowsuper: run: {tmp_path}/plain: Permission denied\n" in result.stderr


def test_what_is_wrong_before_the_command_has_codes_of_its_own(run, tmp_path):
    assert run("strict = true\nno-such = 1\n", "echo", "hi").returncode == 78
    result = run("exec-as-root = false\n" + ONE, "echo", "hi")
    assert (result.returncode, result.stdout) == (125, "")
    result = run(ONE)
    assert (result.returncode, result.stderr) == (
        125,
        "lowsuper: run: there is no command after --\n",
    )
    assert run(ONE, "true", options=["--timeout", "soon"]).returncode == 125


def test_daemons_write_to_standard_error_and_not_between_what_the_command_writes(run):
    text = 'attach-daemon = sh -c "echo daemon; exec sleep 1000"\nexec-as-root = echo hook\n'
    result = run(text + READY, "echo", "command")
    assert result.stdout == "command\n"
    assert {"daemon", "hook"} <= set(result.stderr.splitlines())


def test_command_has_what_it_would_have_without_lowsuper(run, tmp_path):
    env = {"MINE": "1", "NOTIFY_SOCKET": "/no/such", "LISTEN_FDS": "1"}
    show = "env | grep -v ^_ | sort; pwd; umask; ulimit -n; nice; cat; "
    show += "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd | wc -w"
    path = tmp_path / "input"
    path.write_text("input\n")

    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    with path.open() as file:
        found = run(ONE, "sh", "-c", show, env=env, stdin=file, preexec_fn=prepare)
    mark = re.search(f"^{MARK}=(.*)", found.stdout, re.MULTILINE)[1]
    with path.open() as file:
        plain = subprocess.run(
            ["sh", "-c", show],
            env={RUNTIME: f"{tmp_path}/.run", **os.environ, MARK: mark, **env},
            stdin=file,
            capture_output=True,
            cwd=tmp_path,
            text=True,
            check=True,
            preexec_fn=prepare,
        )
    assert found.stdout == plain.stdout


def test_pytest_finds_the_daemons_ready(run, tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        f"def test_ready(): assert os.path.exists({str(tmp_path / 'there')!r})\n"
        "def test_other(): assert not os.environ.get('FAIL')\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    assert run(READY, *words).returncode == 0
    (tmp_path / "there").unlink()
    result = run(READY, *words, env={"FAIL": "1"})
    assert (result.returncode, "1 failed, 1 passed" in result.stdout) == (1, True)


def test_what_the_command_leaves_behind_is_ended(run):
    result = run(ONE, "sh", "-c", "sleep 1000 & setsid sh -c 'trap \"\" TERM; sleep 1000' & exit 3")
    assert result.returncode == 3
    assert "the command has left behind what is ended now: pid " in result.stderr


# Daemons that are not ready.


def test_daemon_that_cannot_start_keeps_the_command_from_running(run):
    result = run(ONE + "attach-daemon = no-such-program\n", "echo", "hi")
    assert (result.returncode, result.stdout) == (125, "")
    assert "run: no-such-program is not ready: waiting" in result.stderr
    assert "failure: no-such-program: execve no-such-program: No such file" in result.stderr
    assert "run: sleep is not ready" not in result.stderr


def test_daemon_that_ends_before_it_is_ready_is_told_with_its_last_lines(run):
    text = """
    [daemon:web]
    command = sh -c "echo my last words; exit 9"
    ready = file:/no/such
    log = {T}/web.log
    [daemon:app]
    command = sleep 1000
    requires = web
    """.replace("    ", "")
    result = run(text, "echo", "hi")
    assert (result.returncode, result.stdout) == (125, "")
    assert "last exit: exited with 9" in result.stderr
    assert "the last lines that it wrote:\n    my last words\n" in result.stderr
    assert "run: app is not ready: " in result.stderr


def test_daemon_that_may_be_restarted_is_waited_for(run, tmp_path):
    text = """
    [daemon:web]
    command = sh -c "test -e {T}/second && touch {T}/there && exec sleep 1000; touch {T}/second"
    ready = file:{T}/there
    max_restarts = 3/1m
    """.replace("    ", "")
    assert run(text, "echo", "hi").stdout == "hi\n"
    text = text.replace("test -e {T}/second", "false")
    (tmp_path / "there").unlink()
    result = run(text + "backoff = 1ms..1ms\n", "echo", "hi")
    assert (result.returncode, result.stdout) == (125, "")
    assert "run: web is not ready: given up" in result.stderr


def test_timeout_tells_what_is_not_ready(run):
    text = ONE + "[daemon:web]\ncommand = sleep 1000\nready = file:/no/such\n"
    result = run(text, "echo", "hi", options=["--timeout=200ms"])
    assert (result.returncode, result.stdout) == (125, "")
    assert "web is not ready: up, pid" in result.stderr
    assert "/no/such is not there" in result.stderr
    assert re.search(r"run: not all ready after [2-9]\d\d ms", result.stderr)


def test_start_timeout_of_a_daemon_counts(run):
    text = "[daemon:web]\ncommand = sleep 1000\nready = file:/no/such\nstart_timeout = 100ms\n"
    result = run(text, "echo", "hi")
    assert (result.returncode, result.stdout) == (125, "")
    assert re.search(r"failure: web: not ready after [1-9]\d\d ms", result.stderr)


def test_signal_before_all_is_ready_stops(begin):
    front = begin("[daemon:web]\ncommand = sleep 1000\nready = file:/no/such\n", "echo", "hi")
    front.wait_line("web: started")
    assert front.stop() == 143
    assert front.family() == set()


# Daemons that fail meanwhile.

FRAIL = """
[daemon:web]
command = sh -c "while test ! -e {T}/go; do sleep 0.02; done; echo I am ill; exit 3"
max_restarts = 1/1m
backoff = 1ms..1ms
"""


def test_daemon_that_is_given_up_is_told_at_once(begin, tmp_path):
    script = f"touch {tmp_path}/go; while test ! -e {tmp_path}/on; do sleep 0.02; done; exit 5"
    front = begin(FRAIL, "sh", "-c", script)
    front.wait_line("run: web was given up: given up, exited with 3")
    (tmp_path / "on").touch()
    assert front.wait() == 5


def test_strict_ends_the_command(begin, tmp_path):
    script = f"touch {tmp_path}/go; exec sleep 1000"
    front = begin(FRAIL, "sh", "-c", script, options=["--strict"])
    front.wait_line("run: web was given up: ending the command")
    assert front.wait() == 125
    assert front.family() == set()


CONTROL = "attach-control-daemon = sh -c 'while test ! -e {T}/go; do sleep 0.02; done; exit 3'\n"


@pytest.mark.parametrize(("options", "code"), [([], 5), (["--strict"], 125)])
def test_control_daemon_that_ends_is_told(begin, tmp_path, options, code):
    script = f"touch {tmp_path}/go; while test ! -e {tmp_path}/on; do sleep 0.02; done; exit 5"
    front = begin(CONTROL, "sh", "-c", script, options=options)
    front.wait_line("run: the daemons are being stopped")
    if not options:
        (tmp_path / "on").touch()
    assert front.wait() == code


def test_logs_and_reasons_are_kept(run, tmp_path):
    text = """
    [daemon:web]
    command = sh -c "echo one; until test -s {T}/own.log -a -e {T}/there; do :; done; exit 9"
    ready = file:/no/such
    [daemon:own]
    command = sh -c "echo two; exec sleep 1000"
    log = {T}/own.log
    [daemon:a+b]
    command = sh -c "echo three; touch {T}/there; exec sleep 1000"
    ready = file:{T}/there
    """.replace("    ", "")
    keep = tmp_path / "kept" / "here"
    assert run(text, "true", options=["--keep-logs", str(keep)]).returncode == 125
    assert (keep / "web.log").read_text() == "one\n"
    assert "last exit: exited with 9" in (keep / "web.why").read_text()
    assert "own.log" not in os.listdir(keep)
    assert "own.why" not in os.listdir(keep)
    assert (keep / "a+b.log").exists()


def test_smart_daemons_end_too_but_not_those_that_ran_before(masters, begin, tmp_path):
    masters.allow_survivors()
    text = (
        "attach-daemon2 = name=a,cmd=sleep 1000,pidfile={T}/a.pid,daemonize=true\n"
        "[daemon:here]\ncommand = sh -c 'touch {T}/there; exec sleep 1000'\n"
        "ready = file:{T}/there\n"
    )
    first = begin(text, "sh", "-c", f"cat {tmp_path}/a.pid; exec sleep 0.1")
    pid = int(first.wait_output(r"^(\d+)$")[1])
    assert first.wait() == 0
    wait_gone(pid)
    master = masters.launch(str(tmp_path / "test.ini"))
    pid = master.wait_started("a")
    assert master.stop() == 0
    second = begin(text, "sh", "-c", f"cat {tmp_path}/a.pid")
    assert int(second.wait_output(r"^(\d+)$")[1]) == pid
    assert second.wait() == 0
    assert is_alive(pid)


@needs_root
def test_master_drops_its_privileges_and_the_command_does_not(open_masters):
    text = "uid = nobody\ngid = nogroup\nattach-daemon = sleep 1000\n"
    text += "[daemon:web]\ncommand = sh -c 'id -u; exec cat'\nready = file:/no/such\n"
    path = open_masters.write("[uwsgi]\n" + text)
    front = open_masters.launch("run", str(path), "--", "id", "-u")
    front.wait_output("^65534")
    front.wait_line("run: web is not ready: waiting")
    assert front.wait() == 125
    path = open_masters.write("[uwsgi]\n" + text.partition("[")[0])
    front = open_masters.launch("run", str(path), "--", "id", "-u")
    front.wait_output("^0")
    assert front.wait() == 0
    assert front.family() == set()


# Signals.

UP = "trap 'exit 9' TERM INT HUP; echo up; while :; do sleep 0.02; done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_is_for_the_command(begin, number):
    front = begin(ONE, "sh", "-c", UP)
    front.wait_output("^up")
    front.signal(number)
    assert front.wait() == 9
    assert front.family() == set()


def test_second_signal_stops_at_once(begin):
    stubborn = "attach-daemon2 = cmd=sh -c 'trap \"\" TERM; while :; do sleep 1; done'\n"
    front = begin(
        stubborn, "sh", "-c", "trap 'echo no' TERM; echo up; while :; do sleep 0.02; done"
    )
    front.wait_output("^up")
    front.signal(signal.SIGTERM)
    front.wait_output("^no")
    began = time.monotonic()
    front.signal(signal.SIGTERM)
    assert front.wait() == 137
    assert time.monotonic() - began < 6  # the daemon would have had 8 s
    assert front.family() == set()


def test_other_signals_are_passed_on(begin):
    front = begin(ONE, "sh", "-c", "trap 'echo usr' USR1; trap 'exit 4' QUIT;" + UP)
    front.wait_output("^up")
    front.signal(signal.SIGUSR1)
    front.wait_output("^usr")
    front.signal(signal.SIGQUIT)
    assert front.wait() == 4


def test_signals_that_come_with_the_end_of_the_command_are_lost(begin):
    front = begin(ONE, "sh", "-c", "trap 'exit 3' USR1; echo up; while :; do sleep 0.02; done")
    front.wait_output("^up")
    (usher,) = set(children_of(front.pid)) - {master_of(front)}
    send(usher, signal.SIGSTOP)
    for _ in range(3):  # each is read at once, and sent to what does not read
        front.signal(signal.SIGUSR1)
        front.signal(signal.SIGUSR2)
    (command,) = children_of(usher)
    send(command, signal.SIGKILL)
    send(usher, signal.SIGCONT)
    assert front.wait() in (3, 137)


def test_signal_that_the_caller_ignores_is_ignored(begin):
    front = begin(
        ONE,
        *("sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done"),
        prefix=("nohup",),
    )
    front.wait_output("^up")
    front.signal(signal.SIGHUP)
    assert front.stop() == 9


def test_killed_front_leaves_nothing(begin):
    script = "trap '' HUP TERM; setsid sh -c 'trap \"\" HUP; sleep 1000' & echo up; sleep 1000"
    front = begin(ONE, "sh", "-c", script)
    front.wait_output("^up")
    front.kill()
    front.wait_family_gone()


def test_killed_master_ends_the_command(begin):
    front = begin(ONE, "sh", "-c", "echo up; exec sleep 1000")
    front.wait_output("^up")
    kill_all([master_of(front)])
    front.wait_line("what looks after the daemons has ended with 137: ending the command")
    assert front.wait() == 125
    front.wait_family_gone()


def test_killed_parent_of_the_command_takes_it_along(begin):
    front = begin(ONE, "sh", "-c", "echo up; exec sleep 1000")
    front.wait_output("^up")
    (usher,) = set(children_of(front.pid)) - {master_of(front)}
    kill_all([usher])
    assert front.wait() == 125
    assert front.family() == set()


# As the first process of a container.

FIRST = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@needs_root
def test_first_process_reaps_and_ends_all(begin):
    script = "sh -c 'sleep 0.01 & sleep 0.02 &'; sleep 0.2; echo left $(ps -A -o s= | grep -c Z)"
    front = begin(ONE, "sh", "-c", script, prefix=FIRST)
    front.wait_output("^left 0")
    assert front.wait() == 0


@needs_root
def test_first_process_takes_two_interrupts(begin):
    front = begin(
        ONE, "sh", "-c", "trap 'echo no' INT; echo up; while :; do sleep 0.02; done", prefix=FIRST
    )
    front.wait_output("^up")
    (first,) = children_of(front.pid)
    send(first, signal.SIGINT)
    front.wait_output("^no")
    send(first, signal.SIGINT)
    assert front.wait() == 137


# With a terminal.


@pytest.fixture
def terminal(masters, tmp_path):
    found = Terminal()
    found.type(f"export {RUNTIME}={tmp_path}/.run\n")
    found.expect("OUTER\\$ ")
    yield found
    with contextlib.suppress(OSError):
        found.close()


def test_terminal_is_the_commands(masters, terminal, tmp_path):
    path = masters.write(ONE)
    script = "stty size; trap 'echo interrupted' INT; sh -c 'echo up; exec cat'"
    terminal.type(f'{" ".join(RUN)} {path} -- sh -c "{script}" 2>/dev/null\n')
    terminal.expect("33 77")
    terminal.expect("up")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    (front,) = children_of(terminal.shell.pid)
    (master,) = [pid for pid in children_of(front) if os.getsid(pid) == pid]
    assert "sleep" in map(name_of, children_of(master))
    terminal.type("fg\n")
    terminal.expect("run .*cat")
    terminal.type("a line\n")
    terminal.expect("a line")
    terminal.type("\x03")
    terminal.expect("interrupted")
    terminal.expect("OUTER\\$ ")
    terminal.type("echo code $?\n")
    terminal.expect("code 130")
    wait_gone(master)


def test_interrupt_ends_the_command_and_then_all(masters, terminal):
    path = masters.write(ONE)
    terminal.type(f"{' '.join(RUN)} {path} -- sh -c 'echo up; exec sleep 1000'\n")
    terminal.expect("\nup")
    terminal.type("\x03")
    terminal.expect("everything has ended; exit status 0")
    terminal.expect("OUTER\\$ ")
    terminal.type("echo code $?\n")
    terminal.expect("code 130")


# Jails.


@needs_root
def test_command_runs_outside_of_the_jail(run, tmp_path):
    root = make_root(tmp_path / "root")
    text = f"namespace = {root}:testns\nnamespace-keep-mount = /dev/null\n"
    text += "[daemon:web]\ncommand = sh -c 'touch /tmp/there; exec sleep 1000'\n"
    text += "ready = file:/tmp/there\n"
    result = run(text, "sh", "-c", f"test -e {root}/tmp/there && hostname")
    assert (result.returncode, result.stdout) == (0, f"{os.uname().nodename}\n")


@needs_root
def test_daemon_of_a_jail_that_is_not_ready_is_told(run, tmp_path):
    root = make_root(tmp_path / "root")
    text = f"namespace = {root}:testns\nnamespace-keep-mount = /dev/null\n"
    text += "attach-daemon = no-such\n"
    keep = tmp_path / "kept"
    result = run(text, "echo", "hi", options=["--keep-logs", str(keep)])
    assert (result.returncode, result.stdout) == (125, "")
    assert "run: no-such is not ready: waiting" in result.stderr
    assert "No such file or directory" in (keep / "no-such.why").read_text()


@needs_root
def test_logs_of_a_jail_are_kept_outside(run, tmp_path):
    root = make_root(tmp_path / "root")
    text = f"namespace = {root}:testns\nnamespace-keep-mount = /dev/null\n"
    text += (
        "[daemon:web]\ncommand = sh -c 'echo one; echo two >&2; touch /tmp/there; exec sleep 9'\n"
    )
    text += "ready = file:/tmp/there\n[daemon:bad]\ncommand = sh -c 'echo three; exit 9'\n"
    text += "restart = never\nready = file:/no/such\n"
    keep = tmp_path / "kept"
    keep.mkdir()
    (keep / "web.log").write_text("zero\n")
    result = run(text, "true", options=["--keep-logs", str(keep)])
    assert result.returncode == 125
    assert (keep / "web.log").read_text() == "zero\none\ntwo\n"
    assert (keep / "bad.log").read_text() == "three\n"
    assert "the last lines that it wrote:\n    three" in (keep / "bad.why").read_text()


@needs_root
def test_killed_front_of_a_jail_leaves_nothing(begin, tmp_path):
    root = make_root(tmp_path / "root")
    text = f"namespace = {root}:testns\nnamespace-keep-mount = /dev/null\n" + ONE
    front = begin(text, "sh", "-c", "echo up; exec sleep 1000")
    front.wait_output("^up")
    front.kill()
    front.wait_family_gone()
