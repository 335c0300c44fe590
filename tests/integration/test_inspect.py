"""Real processes of every odd kind, and what is seen of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from masters import DEADLINE, children_of, find_program, needs_root
from spawning import in_child, wait_for

from lowsuper.command import parse_command
from lowsuper.identity import NO_SCRIPT, is_same, runs
from lowsuper.kernel import inspect, native
from lowsuper.kernel.cgroup import find_own

NOBODY = 65534
SLEEP = os.path.realpath(shutil.which("sleep") or "/bin/sleep")
PYTHON = os.path.realpath(sys.executable)
TICK = 10_000_000
PATH = tuple(os.environ.get("PATH", os.defpath).split(":"))
SAYS = "echo ready; read line\n"
PY_SAYS = "print('ready', flush=True); input()\n"
"""The end of a program that says that it has come so far, and waits to be ended."""


@contextlib.contextmanager
def running(*argv, lines=1, **options):
    """Run a program, and yield it and the lines that it says first; it is ended and reaped."""
    program = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    try:
        yield program, [program.stdout.readline().decode().strip() for _ in range(lines)]
    finally:
        program.stdin.close()
        program.stdout.close()
        program.kill()
        program.wait()


@contextlib.contextmanager
def python(*statements, lines=1, **options):
    with running(
        sys.executable, "-c", "; ".join((*statements, PY_SAYS)), lines=lines, **options
    ) as it:
        yield it


def look(pid):
    """Return what is seen of a process that must be alive."""
    found = inspect.open_process(pid)
    assert found is not None
    pidfd, process = found
    assert native.pid_of(pidfd) == pid
    os.close(pidfd)
    return process


def wait_for_argv(pid):
    """Wait for the end of an execve: there is no command line in the midst of one."""
    deadline = time.monotonic() + DEADLINE
    while not Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        os.sched_yield()


def end(program):
    """End a program, and leave it a zombie."""
    pidfd = os.pidfd_open(program.pid)
    program.kill()
    wait_for(pidfd)
    os.close(pidfd)


# One process.


def test_ordinary_process_shows_who_it_is():
    before = time.monotonic_ns()
    with running(SLEEP, "1000", lines=0) as (program, _):
        after, wall = time.monotonic_ns(), time.time_ns()
        wait_for_argv(program.pid)
        process = look(program.pid)
        status = os.stat(SLEEP)
        assert (process.exe, process.exe_id) == (SLEEP, (status.st_dev, status.st_ino))
        assert process.argv == (SLEEP, "1000")
        assert (process.uid, process.gid) == (os.geteuid(), os.getegid())
        assert (process.inner_pid, process.is_kernel, process.comm) == (program.pid, False, "sleep")
        assert before - 2 * TICK <= inspect.born_at(process.id.start) <= after
        assert wall - (after - before) - 10**9 <= process.since <= wall + 10**9
        assert is_same(process.id, look(program.pid).id)
        pidfd = os.pidfd_open(program.pid)
        assert process.id.inode in (0, os.fstat(pidfd).st_ino)
        os.close(pidfd)


def test_inode_is_of_this_process_alone_or_unknown():
    with running(SLEEP, "9", lines=0) as (one, _), running(SLEEP, "9", lines=0) as (other, _):
        inodes = {look(pid).id.inode for pid in (one.pid, other.pid, os.getpid())}
        assert len(inodes) == 3 or inodes == {0}


def test_inode_of_an_anonymous_file_is_unknown():
    # What all pidfds are before Linux 6.9.
    event_fd = os.eventfd(0)
    assert inspect._inode_of(event_fd) == 0
    os.close(event_fd)


@pytest.mark.parametrize("number", [0, -1, 2**22 + 1, 2**31 - 1, 2**31, 2**70])
def test_number_that_is_no_pid_is_nobody(number):
    assert inspect.open_process(number) is None


def test_zombie_is_not_running_and_neither_is_what_was_reaped():
    with running(SLEEP, "1000", lines=0) as (program, _):
        end(program)
        assert Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        assert inspect.open_process(program.pid) is None
    assert inspect.open_process(program.pid) is None
    assert inspect.parent_of(program.pid) == 0
    assert inspect.cgroup_of(program.pid) == ""
    assert inspect.is_below(program.pid, os.getpid()) is False
    assert inspect.translate(1, program.pid) == 0


def test_zombie_is_told_with_the_parent_that_does_not_reap_it():
    with running(SLEEP, "1000", lines=0) as (program, _):
        assert inspect.find_negligent(program.pid) == ""
        end(program)
        own_name = Path("/proc/self/comm").read_text().strip()
        expected = f"its parent, pid {os.getpid()} ({own_name})"
        assert inspect.find_negligent(program.pid) == expected
    assert inspect.find_negligent(program.pid) == ""


LEADER_ENDS = """
import ctypes, platform, threading
def stay():
    while ") Z " not in open("/proc/self/stat").read():
        pass
    print("ready", flush=True)
    input()
threading.Thread(target=stay).start()
number = {"x86_64": 60, "i686": 1}.get(platform.machine(), 93)
ctypes.CDLL(None).syscall(number, 0)
"""


def test_process_whose_first_thread_has_ended_is_alive():
    with running(sys.executable, "-c", LEADER_ENDS) as (program, said):
        assert said == ["ready"]
        process = look(program.pid)
        assert process.exe == PYTHON
        assert process.argv == (sys.executable, "-c", LEADER_ENDS)
        assert process.id.start > 0
        end(program)
        assert inspect.open_process(program.pid) is None


def test_thread_is_no_process():
    thread = "import threading; t = threading.Thread(target=input); t.start(); print(t.native_id)"
    with python(thread, lines=2) as (program, said):
        thread_id = int(said[0])
        assert os.path.exists(f"/proc/{thread_id}/stat")
        assert inspect.open_process(thread_id) is None
        assert look(program.pid).argv[0] == sys.executable


def test_kernel_thread_is_told():
    if not Path("/proc/2/comm").exists() or Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("needs: kernel threads in view")
    process = look(2)
    assert (process.is_kernel, process.exe, process.exe_id) == (True, "", None)
    assert (process.argv, process.comm) == ((), "kthreadd")


def test_deleted_and_replaced_program_keeps_its_name_and_its_identity(tmp_path):
    path = tmp_path / "sleep"
    shutil.copy(SLEEP, path)
    with running(path, "1000", lines=0) as (program, _):
        before = look(program.pid)
        path.unlink()
        assert look(program.pid).replace(since=0) == before.replace(since=0)
        shutil.copy(SLEEP, path)
        now = inspect.look_up_program(parse_command(f"{path} 1000"), PATH, "/")
        assert now is not None
        assert not runs(look(program.pid), now)
        assert look(program.pid).exe == now.path


def test_name_that_looks_like_fields_deceives_nobody():
    name = "import ctypes; ctypes.CDLL(None).prctl(15, b'x) Z 1 (\\n1 2', 0, 0, 0)"
    with python("print()", "input()", name, lines=1) as (program, _):
        before = look(program.pid)
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"ready\n"
        process = look(program.pid)
        assert process.comm == "x) Z 1 (\n1 2"
        assert process.id == before.id
        assert (process.uid, process.gid, process.inner_pid) == (
            before.uid,
            before.gid,
            before.inner_pid,
        )
        assert inspect.parent_of(program.pid) == os.getpid()


def test_title_in_place_of_the_command_line_is_what_is_seen(tmp_path):
    path = tmp_path / "app.pl"
    path.write_text('$0 = "app: idle"; $| = 1; print "ready\\n"; <STDIN>;')
    command = parse_command(f"{find_program('perl')} {path}")
    program = inspect.look_up_program(command, PATH, "/")
    assert program is not None
    with running(*command.argv) as (child, _):
        process = look(child.pid)
        assert process.argv[0] == "app: idle"
        assert process.exe_id in program.exe_ids
        assert not runs(process, program)


def test_long_command_line_is_cut_between_words():
    with running(sys.executable, "-c", PY_SAYS, *("1" * 1800,) * 3) as (program, _):
        assert look(program.pid).argv == (sys.executable, "-c", PY_SAYS, "1" * 1800, "1" * 1800)


def test_words_of_any_bytes_are_kept():
    odd = ["", "\udcff", "ä\n", " "]
    with running(sys.executable, "-c", PY_SAYS, *odd) as (program, _):
        assert list(look(program.pid).argv[3:]) == odd


def test_process_of_another_user_is_known_but_not_its_program():
    if os.geteuid() != 0:
        process = look(1)
        assert (process.uid, process.exe, process.exe_id) == (0, "", None)
        return
    with python() as (program, _):

        def act():
            process = look(program.pid)
            return process.id.pid, process.uid, process.exe, process.exe_id, process.argv[:1]

        seen = in_child(act, uid=NOBODY)
    assert seen == (program.pid, 0, "", None, (sys.executable,))


@needs_root
def test_effective_user_and_group_are_shown():
    ids = "import os; os.setegid(7); os.seteuid(8)"
    with python(ids) as (program, _):
        process = look(program.pid)
        assert (process.uid, process.gid) == (8, 7)


REUSE = """
import os, subprocess
from lowsuper.identity import is_same
from lowsuper.kernel import inspect

def start(number):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(number - 1))
    return subprocess.Popen(["sleep", "1000"])

first = start(5000)
pidfd, process = inspect.open_process(5000)
os.close(pidfd)
others = []
look = inspect._open_directory

def swap(pid):
    if not others:
        first.kill()
        first.wait()
        others.append(start(5000))
    return look(pid)

inspect._open_directory = swap
between = inspect.open_process(5000)
pidfd, second = inspect.open_process(5000)
print([first.pid, others[0].pid, between, is_same(process.id, second.id)], flush=True)
others[0].kill()
"""


@contextlib.contextmanager
def namespace(program, lines=1):
    """Run Python as the init of a pid namespace, or skip the test where that is not allowed."""
    words = (find_program("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc")
    with running(*words, sys.executable, "-c", program, lines=lines, stderr=subprocess.PIPE) as (
        outer,
        said,
    ):
        try:
            if not said[0]:
                pytest.skip(f"needs: {outer.stderr.read().decode().strip()}")
            yield outer, said
        finally:
            outer.stderr.close()


@needs_root
def test_number_that_is_given_to_another_between_two_looks_is_nobody():
    with namespace(REUSE) as (_, said):
        assert said == ["[5000, 5000, None, False]"]


# Where it belongs.


def test_parent_and_ancestors():
    script = f"{SLEEP} 1000 & echo $!; read line; kill $!"
    with running("/bin/sh", "-c", script) as (shell, said):
        grandchild = int(said[0])
        assert inspect.parent_of(grandchild) == shell.pid
        assert inspect.parent_of(shell.pid) == os.getpid()
        assert inspect.is_below(grandchild, shell.pid)
        assert inspect.is_below(grandchild, os.getpid())
        assert not inspect.is_below(shell.pid, grandchild)
        assert not inspect.is_below(shell.pid, shell.pid)
        shell.communicate(b"\n")  # it ends the other before itself


def test_is_below_when_a_parent_ends_between_two_looks_goes_on_with_the_new_one(monkeypatch):
    def act():
        native.set_child_subreaper()
        middle = subprocess.Popen(
            ["/bin/sh", "-c", f"{SLEEP} 1000 & echo $!; read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        orphan = int(middle.stdout.readline())
        looked_at = []
        look_up = inspect._open_directory

        def end_parent(pid):
            looked_at.append(pid)
            if pid == middle.pid:
                middle.kill()
                middle.wait()
            return look_up(pid)

        monkeypatch.setattr(inspect, "_open_directory", end_parent)
        found = inspect.is_below(orphan, os.getpid())
        is_child = inspect.parent_of(orphan) == os.getpid()
        os.kill(orphan, signal.SIGKILL)
        os.waitpid(orphan, 0)
        return found, is_child, looked_at[:2] == [orphan, middle.pid]

    assert in_child(act) == (True, True, True)


def test_cgroup_of_a_process_is_its_own():
    own = find_own(Path("/proc/self/cgroup").read_text())
    assert inspect.cgroup_of(os.getpid()) == (own or "")
    with running(SLEEP, "1000", lines=0) as (program, _):
        assert inspect.cgroup_of(program.pid) == (own or "")


INIT = """
import os, threading
pid = os.fork()
if pid == 0:
    thread = threading.Thread(target=input)
    thread.start()
    print(os.getpid(), flush=True)
    print(thread.native_id, flush=True)
    thread.join()
    os._exit(0)
os.wait()
"""


@needs_root
@pytest.mark.parametrize("search", [False, True])
def test_number_of_an_inner_namespace_is_translated(search, monkeypatch):
    if search:
        from errno import ENOTTY

        def refuse(*_):
            raise OSError(ENOTTY, "before Linux 6.11")

        monkeypatch.setattr(inspect, "_ask_namespace", refuse)
    with namespace(INIT, lines=2) as (outer, said):
        inner, thread = map(int, said)
        (keeper,) = children_of(outer.pid)
        pid = inspect.translate(inner, keeper)
        assert pid not in (0, inner)
        process = look(pid)
        assert (process.inner_pid, inspect.parent_of(pid)) == (inner, keeper)
        assert look(keeper).inner_pid == 1
        assert inspect.translate(1, keeper) == keeper
        assert inspect.translate(thread, keeper) == 0
        assert inspect.translate(30_000, keeper) == 0
        # A number is not taken for one of our own namespace because its keeper keeps nothing.
        assert inspect.translate(inner, outer.pid) == 0
        assert inspect.translate(os.getpid(), os.getpid()) == 0
        assert inspect.translate(inner, pid) == 0


@needs_root
def test_many_groups_do_not_hide_the_inner_number_that_comes_after_them():
    with namespace(f"import os; os.setgroups(range(100_000, 130_000)); {PY_SAYS}") as (outer, said):
        assert said == ["ready"]
        (keeper,) = children_of(outer.pid)
        assert look(keeper).inner_pid == 1
        assert inspect.translate(1, keeper) == keeper


# The configured program.


def put(path, text, mode=0o755):
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def place(tmp_path):
    """A directory with programs, which is in PATH."""
    put(tmp_path / "shell", f"#!/bin/sh\n{SAYS}")
    put(tmp_path / "options", f"#! /bin/sh -e \n{SAYS}")
    put(tmp_path / "by-env", f"#!/usr/bin/env py\n{PY_SAYS}")
    put(tmp_path / "split", f"#!/usr/bin/env -S A=1 py -u\n{PY_SAYS}")
    put(tmp_path / "nested", f"#!{tmp_path}/reader\n")
    put(tmp_path / "reader", f"#!/bin/sh\n{SAYS}")
    put(tmp_path / "app.py", PY_SAYS, 0o644)
    (tmp_path / "py").symlink_to(sys.executable)
    (tmp_path / "link").symlink_to("shell")
    (tmp_path / "sub").mkdir()
    put(tmp_path / "sub/py", "no program", 0o644)
    return tmp_path


COMMANDS = [
    "shell",
    "./shell a b",
    "{T}/shell",
    "link",
    "options",
    "by-env",
    "split x",
    "nested",
    "py app.py",
    "py -u {T}/app.py --port 1",
    "py -uc \"print('ready', flush=True); input()\"",
    "sub/../py app.py",
    "A=1 py app.py 2>&1",
    "exec py app.py",
    "env -u HOME A=1 py app.py",
    "sh shell",
    "sh -c 'echo ready; read line'",
    "sh -ec 'echo ready; read line; :'",
]


@pytest.mark.parametrize("text", COMMANDS)
def test_process_of_the_configured_command_runs_the_configured_program(place, text):
    command = parse_command(text.replace("{T}", str(place)))
    path = (f"{place}/sub", str(place), *PATH)
    program = inspect.look_up_program(command, path, str(place))
    assert program is not None
    env = os.environ | {"PATH": ":".join(path)}
    with running(*command.argv, cwd=place, env=env) as (child, said):
        assert said == ["ready"]
        process = look(child.pid)
        assert runs(process, program)
    # Neither does another script of the same interpreter, nor another program.
    put(place / "other.py", PY_SAYS)
    put(place / "other", f"#!/bin/sh\n{SAYS}")
    for argv in (["py", "other.py", "app.py"], ["sh", "./other", "shell"], [place / "other"]):
        with running(*argv, cwd=place, env=env) as (child, said):
            assert said == ["ready"]
            assert not runs(look(child.pid), program)
    with running(SLEEP, "1000", lines=0) as (child, _):
        assert not runs(look(child.pid), program)


def test_script_started_by_its_whole_path_is_the_one_configured_by_a_short_one(place):
    program = inspect.look_up_program(parse_command("./by-env start"), (str(place),), str(place))
    assert program is not None
    assert (program.path, program.script_path) == (f"{place}/by-env", f"{place}/by-env")
    env = os.environ | {"PATH": f"{place}:{os.environ['PATH']}"}
    with running(place / "by-env", cwd="/", env=env) as (child, _):
        assert runs(look(child.pid), program)


def test_compiled_program_needs_no_arguments():
    program = inspect.look_up_program(parse_command("sleep 1"), PATH, "/")
    assert program is not None
    assert (program.script, program.interpreter) == ("", "")
    with running(SLEEP, "1000", lines=0) as (child, _):
        assert runs(look(child.pid), program)


@pytest.mark.parametrize(
    "text",
    [
        "py",
        "py -u",
        "py $APP",
        "A=1 py $OPTIONS app.py",
        "timeout 9 sleep 9",
    ],
)
def test_interpreter_without_a_certain_script_proves_nothing(place, text):
    program = inspect.look_up_program(parse_command(text), (str(place), *PATH), str(place))
    assert program is not None
    assert program.script == NO_SCRIPT
    with running(sys.executable, "-c", PY_SAYS) as (child, _):
        assert not runs(look(child.pid), program)


@pytest.mark.parametrize(
    "text",
    [
        "nothing-of-this-name",
        "./nothing",
        "sleep 1 | cat",
        "cd /srv; ./run",
        "$PROGRAM -x",
        "PATH=/srv py app.py",
        "env PATH=/srv py app.py",
        "env -S '\"py\" app.py'",
        "env",
        "env A=1 -u HOME py app.py",
        "env --chdir=/srv py app.py",
        "./directory",
        "./fifo",
        "./empty",
        "./garbage",
        "./no-interpreter",
        "./gone-interpreter",
        "./itself",
        "./dangling",
        "./socket/x",
    ],
)
def test_command_that_only_running_it_would_explain_has_no_program(place, text):
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    put(place / "empty", "")
    put(place / "garbage", "\x7fELS\0\0")
    put(place / "no-interpreter", "#! \n")
    put(place / "gone-interpreter", "#!/nonexistent/sh\n")
    put(place / "itself", f"#!{place}/itself\n")
    (place / "dangling").symlink_to("nowhere")
    assert inspect.look_up_program(parse_command(text), (str(place), *PATH), str(place)) is None


def test_program_that_may_not_be_read_is_the_program_itself(tmp_path):
    with contextlib.ExitStack() as stack:
        directory = tmp_path
        if os.geteuid() == 0:
            import tempfile

            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="inspect-"))
            directory = Path(name)
            directory.chmod(0o755)
        path = directory / "sleep"
        shutil.copy(SLEEP, path)
        path.chmod(0o111)
        status = path.stat()

        def act():
            program = inspect.look_up_program(parse_command(str(path)), (), "/")
            return program.exe_ids, program.script

        uid = NOBODY if os.geteuid() == 0 else None
        assert in_child(act, uid=uid) == (((status.st_dev, status.st_ino),), "")
