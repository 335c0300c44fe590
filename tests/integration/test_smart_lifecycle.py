"""What a smart daemon and its masters go through, step by step, on each rung of kill domains."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from masters import (
    NOBODY,
    RUNGS,
    Master,
    has_cgroups,
    is_alive,
    kill_all,
    need,
    needs_root,
    own_cgroup,
    remove_cgroup,
    rung_options,
    send,
    wait_gone,
    wait_text,
)
from smart_tools import (
    PYTHON,
    SELFD,
    SOLE,
    Smart,
    ask_states,
    cpu_of,
    fds_of,
    find_running,
    pid_up,
    show,
    wait_until,
)

KINDS = ("background", "foreground", "smart2")


class Case:
    """One smart daemon `web` on one rung."""

    def __init__(self, masters, rung: str = "cgroup", kind: str = "background", **keys):
        masters.allow_survivors()
        self.masters, self.rung, self.kind = masters, rung, kind
        self.directory = masters.directory
        self.pidfile = self.directory / "web.pid"
        self.journal = self.directory / "journal"
        self.web = Smart("web", self.pidfile, str(self.journal))
        words = "end=TERM end=INT"
        if kind == "smart2":
            keys["daemonize"] = "true"
        else:
            words += f" pidfile={self.pidfile}"
            words += " background" if kind == "background" else ""
        self.keys = {"freq": 2, "max_throttle": "20ms", "stop_timeout": 2} | keys
        self.command = f"{SOLE} {self.journal} {words}"

    def line(self, name: str = "web", **more) -> str:
        """Return its line of the configuration."""
        keys = {"name": name, "pidfile": self.pidfile, **self.keys, **more}
        words = [f"cmd={self.command}", *(f"{key}={value}" for key, value in keys.items() if value)]
        words += [RUNGS[self.rung]] if RUNGS[self.rung] else []
        return f"attach-daemon2 = {','.join(words)}\n"

    def config(self, **more) -> str:
        return rung_options(self.rung) + self.line(**more)

    def start(self, text: str | None = None, **keywords) -> Master:
        return self.masters.start(self.config() if text is None else text, **keywords)

    def ups(self) -> int:
        """Return how often an instance was started, and see that none ran beside another."""
        text = self.journal.read_text() if self.journal.exists() else ""
        assert "clash" not in text, text
        return text.count(" up\n")

    def wait_ups(self, count: int) -> None:
        """Wait until so many have noted that they run; it may be known before that they do."""
        wait_text(self.journal, rf"(?s)(.* up\n){{{count}}}")
        assert self.ups() == count

    def wait_one(self, master: Master, timeout: float = 20.0) -> int:
        """Wait until the master says that it is up, and there is one; return its pid."""

        def look() -> int:
            pid = pid_up(ask_states(master, ["web"])["web"])
            return pid if pid and self.web.running() == {pid} else 0

        return wait_until(look, "there is not one daemon", timeout, master)


each_rung = pytest.mark.parametrize("rung", RUNGS)
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_rung
@each_kind
def test_one_start_for_many_masters(masters, rung, kind):
    """Stop, SIGKILL and reload leave it alone, and each master knows it again."""
    case = Case(masters, rung, kind)
    master = case.start()
    pid = master.pid_of("web")
    assert case.web.running() == {pid}
    master.signal(signal.SIGHUP)
    master.wait_line(rf"web: reload: left running, pid {pid}$")
    assert master.wait_found("web") == pid
    assert master.stop() == 0
    assert master.has_said(rf"web: stop: left running, pid {pid}$")
    for end in (Master.kill, Master.stop, Master.kill):
        master = case.start()
        assert master.pid_of("web") == pid
        assert master.has_said(
            rf"web: found running for .*, pid {pid}, uid \d+, gid \d+, kill domain {rung}: "
            r"recorded by lowsuper$"
        ), master.text
        end(master)
    assert case.ups() == 1
    assert case.web.running() == {pid}


@each_rung
@each_kind
def test_death_of_an_adopted_daemon_is_noticed_at_once(masters, rung, kind):
    """No patience that a daemon may have is waited for, and no turn of anything."""
    case = Case(masters, rung, kind, freq=1000, stop_timeout=1000)
    case.start().kill()
    master = case.start()
    pid = master.pid_of("web")
    kill_all([pid])
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # we stand in for an init, which reaps
    # Where lowsuper writes the pidfile nothing waits for the status, which may come a bit later.
    how = r"(?:was killed by SIGKILL \(9\)|ended)" if kind == "smart2" else r"was killed .*\(9\)"
    master.wait_line(rf"web: pid {pid} {how} after ")
    assert master.wait_started("web") != pid
    case.wait_ups(2)


@each_rung
@each_kind
def test_master_killed_at_any_moment_of_a_start(masters, rung, kind):
    """Whatever it had come to: the next one has exactly one daemon."""
    case = Case(masters, rung, kind)
    chosen = random.Random(f"{rung} {kind}")
    masters.write(case.config())
    for _ in range(12):
        master = masters.launch(str(masters.directory / "test.ini"))
        # About when it reads its files, starts the program, the program comes to its pidfile.
        master._read(chosen.uniform(0.05, 0.25))
        delay = chosen.uniform(0.0, 0.03)
        end = time.monotonic() + delay
        while time.monotonic() < end:
            pass  # less than what a timer is good for
        master.kill()
        master = case.start()
        pid = case.wait_one(master)
        master.kill()
        kill_all([pid])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    case.ups()


@each_rung
@each_kind
def test_touch_restarts_it_with_all_that_belongs_to_it(masters, rung, kind):
    case = Case(masters, rung, kind)
    touch = masters.directory / "touch"
    touch.write_text("")
    case.keys["touch"] = touch
    case.start().kill()
    master = case.start()
    for turn in range(2):  # an adopted one, and one of its own
        pid = master.pid_of("web")
        case.wait_ups(turn + 1)
        touch.write_text(str(turn))
        master.wait_line(rf"web: touch {touch}: SIGTERM \(15\) to pid {pid}\b")
        assert master.wait_started("web") != pid
        assert not is_alive(pid)
    case.wait_ups(3)
    assert case.journal.read_text().count("TERM") == 2


@each_rung
def test_touch_kills_what_ignores_it(masters, rung):
    """At the deadline the whole kill domain goes, of an adopted daemon too."""
    case = Case(masters, rung, stop_timeout="100ms")
    touch = masters.directory / "touch"
    touch.write_text("")
    case.keys["touch"] = touch
    child = masters.directory / "child"
    case.command = f"{PYTHON} {write_parent(case, child)} {case.pidfile}"
    case.web.mark = str(case.pidfile)
    master = case.start()
    pids = {master.pid_of("web")}
    pids |= wait_until(lambda: find_running(str(child)), "there is no child")
    master.kill()
    master = case.start()
    touch.write_text("now")
    new = master.wait_started("web")
    for pid in pids:
        assert not is_alive(pid)
    assert new not in pids


def write_parent(case: Case, child: Path) -> Path:
    """Write a program that ignores all signals and has a child in a session of its own."""
    path = case.directory / "parent.py"
    path.write_text(
        "import os, signal, sys, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    program = 'import time; time.sleep(1000)'\n"
        f"    os.execv(sys.executable, ['child', '-c', program, '{child}'])\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()}\\n')\n"
        "time.sleep(1000)\n"
    )
    return path


@each_rung
@each_kind
def test_master_is_idle(masters, rung, kind):
    """Once all is quiet the master sleeps: after a start, after an adoption, beside another."""
    case = Case(masters, rung, kind)

    def is_idle(master: Master) -> bool:
        ask_states(master, ["web"])
        before = switches_of(master.pid)
        with contextlib.suppress(AssertionError):
            master.wait_line("never said", timeout=0.3)
        return switches_of(master.pid) - before <= 3

    master = case.start()
    wait_until(lambda: is_idle(master), "the master that started it is busy", 5)
    second = case.start(name="second.ini")
    wait_until(lambda: is_idle(second), "the master that waits is busy", 5)
    master.kill()
    second.wait_found("web")
    wait_until(lambda: is_idle(second), "the master that adopted it is busy", 5)
    if rung == "shim":
        # Its keeper can be killed, which no master wants; the daemon need not die with it.
        (keeper,) = [pid for pid in ancestors_of(second.pid_of("web")) if runs_helper(pid)]
        send(keeper, signal.SIGKILL)
        wait_gone(keeper)
        wait_until(lambda: is_idle(second), "the master is busy with a keeper that is gone", 5)
        case.wait_one(second)


def switches_of(pid: int) -> int:
    """Return how often a process has slept or was made to wait, plus ticks of its work."""
    text = Path(f"/proc/{pid}/status").read_text()
    switches = [int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line]
    return switches[0] + int(cpu_of(pid) * 100)


def ancestors_of(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def runs_helper(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "lowsuper-helper" in os.readlink(f"/proc/{pid}/exe")
    return False


def test_descriptors_do_not_grow(masters):
    """Starts, adoptions, waiting masters and doubtful pidfiles give all back."""
    case = Case(masters)
    case.start().kill()
    master = case.start()
    counts = []
    for turn in range(8):
        pid = case.wait_one(master)
        counts.append(fds_of(master.pid))
        case.pidfile.write_text("nonsense\n")
        case.masters.start(case.config(), name="second.ini").stop()
        master.signal(signal.SIGHUP)
        assert master.wait_found("web") == pid
        if turn % 2:
            kill_all([pid])
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            master.wait_started("web")
    assert max(counts[3:]) <= max(counts[:3]), counts
    assert case.ups() == 5


# Two masters.


@each_rung
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_second_master_waits_and_takes_over(masters, rung, how):
    case = Case(masters, rung)
    first = case.start()
    pid = first.pid_of("web")
    second = case.start(name="second.ini")
    assert second.has_said(
        rf"web: the pidfile {case.pidfile} is governed by lowsuper with pid {first.pid} \(test\)"
    ), second.text
    second.signal(signal.SIGHUP)
    second.wait_line("lowsuper: reloaded|lowsuper: reload")
    first.stop() if how == "stop" else first.kill()
    assert second.wait_found("web") == pid
    assert case.ups() == 1
    assert second.stop() == 0
    assert case.web.running() == {pid}


# Not ready.

NOT_READY = {
    "never": ("write=never", r"is not there; what was launched exited with 0"),
    "never-and-fails": ("write=never exit=3", r"is not there; what was launched exited with 3"),
    "foreground": ("foreground write=never", r"is not there; what was launched still runs"),
    "wrong": ("write=1", r"names 1 \(\S+ of uid 0\), which is not believed: it is pid 1"),
    "dead": ("write=4194303", r"names 4194303, which does not run"),
}


@each_rung
@pytest.mark.parametrize("case_name", NOT_READY)
def test_daemon_that_does_not_become_ready(masters, rung, case_name):
    """It is said what was seen, and the earlier attempt is gone before the next one begins."""
    words, finding = NOT_READY[case_name]
    if case_name == "wrong" and rung == "pidns":
        finding = r"names 1 .*which is not believed: it is the init of the daemon's pid namespace"
    case = Case(masters, rung, freq="300ms")
    case.command = f"{SELFD} {case.pidfile} {words}"
    case.web.mark = str(case.pidfile)
    master = masters.begin(case.config())
    for _ in range(2):
        master.wait_line(rf"web: not ready after \S+ (ms|s): the pidfile {case.pidfile} {finding}")
    # What is there now is one attempt, the launcher of which may be there still.
    sessions = {os.getsid(pid) for pid in case.web.running() if is_alive(pid)}
    assert len(sessions) <= 2, show(case.web.running())
    assert master.stop() == 0


@each_rung
def test_attempts_do_not_overlap(masters, rung):
    """A daemon that writes the wrong number is ended before the next is started."""
    case = Case(masters, rung, freq="200ms")
    case.command = f"{SOLE} {case.journal} background end=TERM pidfile={case.directory}/other"
    master = masters.begin(case.config())
    for _ in range(3):
        master.wait_line("web: not ready after")
    master.stop()
    assert case.ups() >= 2


# The file.


@pytest.mark.parametrize("text", ["", "nonsense\n", "1\n", None])
@each_kind
def test_pidfile_spoiled_under_a_live_daemon(masters, kind, text):
    """Nothing is started; what lowsuper has written it writes again."""
    case = Case(masters, "cgroup" if has_cgroups() else "shim", kind)
    master = case.start()
    pid = master.pid_of("web")
    if text is None:
        case.pidfile.unlink()
    else:
        case.pidfile.write_text(text)
    if kind == "smart2":
        wait_until(lambda: case.web.named() == pid, "it is not written again", 10, master)
    else:
        master.wait_line(rf"web: the pidfile .*, but pid {pid} runs and stays watched")
    master.kill()
    master = case.start()
    assert master.pid_of("web") == pid
    assert case.ups() == 1


def test_smart2_pidfile(masters):
    """It is the daemon's, readable by all, and goes with it."""
    case = Case(masters, "cgroup" if has_cgroups() else "shim", "smart2", max_throttle="1s")
    master = case.start()
    pid = master.pid_of("web")
    assert case.pidfile.read_text() == f"{pid}\n"
    assert case.pidfile.stat().st_mode & 0o7777 == 0o644
    kill_all([pid])
    master.wait_line(rf"web: pid {pid} was killed .* next try in 1 s")
    assert not case.pidfile.exists()
    assert master.stop() == 0


# Reloads that change it.


@each_rung
def test_daemon_taken_out_of_the_file_runs_on(masters, rung):
    case = Case(masters, rung)
    master = case.start()
    pid = master.pid_of("web")
    masters.write(rung_options(rung) + "attach-daemon = {D}/say_signals.py TERM\n")
    master.signal(signal.SIGHUP)
    master.wait_line(rf"web: reload: left running, pid {pid}$")
    master.wait_line("lowsuper: reloaded")
    assert is_alive(pid)
    masters.write(case.config())
    master.signal(signal.SIGHUP)
    assert master.wait_found("web") == pid
    assert case.ups() == 1


@each_rung
def test_another_pidfile_after_a_reload(masters, rung):
    """What is governed otherwise from now on is ended before; there are never two."""
    case = Case(masters, rung)
    master = case.start()
    pid = master.pid_of("web")
    moved = masters.directory / "moved.pid"
    case.command = case.command.replace(str(case.pidfile), str(moved))
    masters.write(case.config(pidfile=moved))
    master.signal(signal.SIGHUP)
    new = master.wait_started("web")
    assert not is_alive(pid)
    assert case.wait_one(master) == new
    if rung != "pidns":
        assert moved.read_text() == f"{new}\n"
    case.wait_ups(2)


@each_rung
def test_plain_becomes_smart_and_plain_again(masters, rung):
    case = Case(masters, rung, "foreground")
    plain = case.config(pidfile="", freq="")
    master = case.start(plain)
    first = master.pid_of("web")
    masters.write(case.config())
    master.signal(signal.SIGHUP)
    second = master.wait_started("web")
    assert not is_alive(first)
    assert case.wait_one(master) == second
    masters.write(plain)
    master.signal(signal.SIGHUP)
    master.wait_line("lowsuper: reloaded")
    third = case.wait_one(master)
    assert case.web.running() == {third}
    case.ups()
    assert master.stop() == 0


# notifypid, control, upgrade.


@each_rung
def test_notifypid(masters, rung):
    """A stop and a reload tell it, once; nobody waits for what it makes of that."""
    case = Case(masters, rung, notifypid="true", stopsignal="USR1", reloadsignal="USR2")
    master = case.start()
    pid = master.pid_of("web")
    master.signal(signal.SIGHUP)
    master.wait_line(rf"web: reload: left running, pid {pid}, told by SIGUSR2 \(12\)")
    assert master.wait_found("web") == pid
    wait_text(case.journal, "USR2")
    assert master.stop() == 0
    assert master.has_said(rf"web: stop: left running, pid {pid}, told by SIGUSR1 \(10\)")
    wait_text(case.journal, "USR1")
    words = [line.split()[1] for line in case.journal.read_text().splitlines()]
    assert words == ["up", "USR2", "USR1"]


@each_rung
@pytest.mark.parametrize("adopted", [False, True])
def test_control(masters, rung, adopted):
    """Its end is the master's, with its exit status."""
    case = Case(masters, rung, "foreground", control="true")
    case.command = f"{PYTHON} {write_seven(case)} {case.pidfile} {case.journal}"
    master = case.start()
    if adopted:
        master.kill()
        master = case.start()
    pid = master.pid_of("web")
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    if adopted:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    assert master.wait() == 7, master.text


def write_seven(case: Case) -> Path:
    path = case.directory / "seven.py"
    path.write_text(
        "import os, signal, sys\n"
        "signal.signal(15, lambda *_: os._exit(7))\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()}\\n')\n"
        "while True: signal.pause()\n"
    )
    return path


@each_rung
def test_upgrade_in_place(masters, rung):
    """Another process of the domain takes over: it is followed, and it is the only one."""
    case = Case(masters, rung)
    case.command = f"{SELFD} {case.pidfile} log={case.journal} atomic keep"
    case.web.mark = str(case.pidfile)
    case.start().kill()
    master = case.start()
    for _ in range(2):
        old = master.pid_of("web")
        send(old, signal.SIGUSR2)
        new = master.wait_moved("web")
        assert new != old
        wait_gone(old)
        assert case.wait_one(master) == new
    master.kill()
    master = case.start()
    assert master.pid_of("web") == new
    assert case.journal.read_text().count(" up\n") == 3


# Places.


@needs_root
@pytest.mark.parametrize("configured", [False, True])
def test_master_that_becomes_another_user(open_masters, configured):
    """Records are that user's; stop, death and adoption are as for root."""
    case = Case(open_masters, "cgroup" if has_cgroups() else "shim")
    text = f"uid = {NOBODY}\ngid = {NOBODY}\n{case.config()}"
    open_masters.write(text)
    path = open_masters.directory / "test.ini"
    if not configured:
        lines = [line for line in path.read_text().splitlines() if "state-dir" not in line]
        path.write_text("\n".join(lines) + "\n")
    states = Path(f"/run/lowsuper/state-{NOBODY}")
    before = set(states.iterdir()) if states.is_dir() else set()
    try:
        master = open_masters.launch(str(path)).wait_ready()
        pid = master.pid_of("web")
        assert Path(f"/proc/{pid}").stat().st_uid == NOBODY
        for end in (Master.stop, Master.kill, Master.stop):
            end(master)
            master = open_masters.launch(str(path)).wait_ready()
            assert master.pid_of("web") == pid, master.text
        kill_all([pid])
        assert master.wait_started("web") != pid
        assert case.ups() == 2
        where = open_masters.directory / "state" if configured else states
        assert any(entry.suffix == ".record" for entry in where.iterdir())
        assert where.stat().st_uid == NOBODY
        assert where.stat().st_mode & 0o777 == 0o700
        master.stop()
    finally:
        for entry in set(states.iterdir()) - before if states.is_dir() else set():
            entry.unlink()


def test_state_directory_removed_while_it_runs(masters):
    """It is said, nothing is started twice, and the next master makes a new one."""
    case = Case(masters, "cgroup" if has_cgroups() else "shim")
    master = case.start()
    first = master.pid_of("web")
    state = masters.directory / "state"
    for entry in state.iterdir():
        entry.unlink()
    state.rmdir()
    kill_all([first])
    second = master.wait_started("web")
    assert master.has_said("the state directory was removed")
    assert case.wait_one(master) == second
    master.kill()
    master = case.start()
    assert master.pid_of("web") == second
    assert state.is_dir()
    assert case.ups() == 2


@pytest.mark.parametrize("what", ["file", "link", "writable"])
def test_state_directory_that_cannot_be_trusted(masters, what):
    """The master does not start, and says what is wrong."""
    case = Case(masters)
    state = masters.directory / "state"
    if what == "file":
        state.write_text("")
    elif what == "link":
        state.symlink_to(masters.directory)
    else:
        state.mkdir()
        state.chmod(0o777)
    master = masters.begin(case.config())
    assert master.wait() not in (0, None)
    assert "state-dir" in master.text
    assert "Traceback" not in master.text
    assert case.ups() == 0


@needs_root
def test_master_in_another_cgroup_than_the_last(masters):
    """The daemon stays in its leaf, is known by it, and ends with all of it."""
    need(has_cgroups(), "cgroup v2 that can be written")
    case = Case(masters)
    touch = masters.directory / "touch"
    touch.write_text("")
    case.keys["touch"] = touch
    base = own_cgroup()
    place = base / f"test-{os.getpid()}"
    place.mkdir()
    try:
        mover = ("/bin/sh", "-c", f'echo 0 > {place}/cgroup.procs; exec "$@"', "sh")
        first = masters.begin(case.config(), prefix=mover).wait_ready()
        pid = first.pid_of("web")
        assert f"/{place.name}/" in Path(f"/proc/{pid}/cgroup").read_text()
        first.kill()
        second = case.start()
        assert second.pid_of("web") == pid
        assert second.has_said("kill domain cgroup: recorded by lowsuper")
        touch.write_text("now")
        new = second.wait_started("web")
        assert f"/{place.name}/" not in Path(f"/proc/{new}/cgroup").read_text()
        assert not is_alive(pid)
        second.stop()
        assert case.ups() == 2
    finally:
        remove_cgroup(place, 5)
    assert not place.exists()


def test_another_instance_name(masters):
    """The leaf of the earlier name is adopted with the daemon, and goes when it is empty."""
    need(has_cgroups(), "cgroup v2 that can be written")
    case = Case(masters)
    first = case.start("instance = before\n" + case.config())
    pid = first.pid_of("web")
    first.stop()
    second = case.start("instance = after\n" + case.config())
    assert second.pid_of("web") == pid
    assert second.has_said("kill domain cgroup: recorded by lowsuper")
    kill_all([pid])
    assert second.wait_started("web") != pid
    second.stop()
    names = [path.name for path in masters.cgroups()]
    assert not any("before" in name for name in names), names
