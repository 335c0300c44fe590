"""The lines that an operator reads."""

from __future__ import annotations

from typing import get_args

import pytest

from lowsuper import events, machine
from lowsuper.events import (
    AllStarted,
    DaemonAwaited,
    DaemonBarred,
    DaemonDied,
    DaemonDone,
    DaemonDoubted,
    DaemonEnding,
    DaemonFinding,
    DaemonFound,
    DaemonGivenUp,
    DaemonGone,
    DaemonHeld,
    DaemonInBackground,
    DaemonKilled,
    DaemonLate,
    DaemonLeft,
    DaemonMoved,
    DaemonNeeds,
    DaemonNotReady,
    DaemonNotStarted,
    DaemonReady,
    DaemonReaped,
    DaemonSignalled,
    DaemonSilent,
    DaemonSlow,
    DaemonStarted,
    DaemonStuck,
    HookFailed,
    HookPrints,
    HookRuns,
    LegionLost,
    LegionSays,
    MasterApplies,
    MasterEnds,
    MasterIgnores,
    MasterKills,
    MasterReloaded,
    MasterReloads,
    MasterStops,
    SpawnFailed,
)
from lowsuper.machine import Awaiting, Backoff, Broken, Down, Looking, Over, Starting, Stopping, Up
from lowsuper.report import (
    describe_state,
    format_note,
    format_signal,
    format_status,
)
from lowsuper.units import SECOND, format_duration

MS = SECOND // 1000
CORE = 11 | 0x80

LINES = [
    (
        DaemonStarted("web", 77, 33, 34, "cgroup"),
        "web: started, pid 77, uid 33, gid 34, kill domain cgroup",
    ),
    (
        DaemonStarted("web", 77, 33, 34, "cgroup", 12 * MS),
        ("web: started, pid 77, uid 33, gid 34, kill domain cgroup; its pidfile came after 12 ms"),
    ),
    (
        DaemonNotStarted("web", "chdir", 2, "/srv", 4 * SECOND),
        "web: chdir /srv: No such file or directory; next try in 4 s",
    ),
    (
        DaemonNotStarted("web", "chdir", 2, "/srv", 0),
        "web: chdir /srv: No such file or directory; starting again",
    ),
    (
        DaemonNotStarted("web", "clone", 11, "", None),
        (
            "web: clone: Resource temporarily unavailable (the limit of processes is reached "
            "(ulimit -u, pids.max, kernel.pid_max)); not tried again"
        ),
    ),
    (
        DaemonNotStarted("web", "execve", 2, "/x", SECOND),
        (
            "web: execve /x: No such file or directory (there is no such program, or the "
            "interpreter in its first line is missing); next try in 1 s"
        ),
    ),
    (
        DaemonNotStarted("web", "", 0, "", SECOND),
        "web: killed before its program could run; next try in 1 s",
    ),
    (
        DaemonDied("web", 77, 3 << 8, 5200 * MS, False, SECOND, False),
        "web: pid 77 exited with 3 after 5.2 s; next try in 1 s",
    ),
    (
        DaemonDied("web", 77, CORE, 61 * SECOND, False, 0, False),
        "web: pid 77 was killed by SIGSEGV (11) (core dumped) after 1 min 1 s; starting again",
    ),
    (
        DaemonDied("web", 77, 9, 61 * SECOND, False, 0, False, "memory.max 64M"),
        (
            "web: pid 77 was killed by SIGKILL (9) after 1 min 1 s: out of memory "
            "(memory.max 64M); starting again"
        ),
    ),
    (
        DaemonDied("web", 77, 1 << 8, 5200 * MS, False, SECOND, False, "memory.max 64M"),
        (
            "web: pid 77 exited with 1 after 5.2 s; a part of it had been killed: out of memory "
            "(memory.max 64M); next try in 1 s"
        ),
    ),
    (
        DaemonDied("web", 0, 9, 0, False, SECOND, False),
        "web: was killed by SIGKILL (9) after 0 ms; next try in 1 s",
    ),
    (
        DaemonDied("web", 77, 0, 0, True, SECOND, False),
        "web: pid 77 exited with 0 after 0 ms and left processes behind: ending them first",
    ),
    (
        DaemonDied("web", 77, 0, 0, False, None, True),
        "web: pid 77 exited with 0 after 0 ms; it is a control daemon, so the master ends with it",
    ),
    (
        DaemonEnding("web", 77, 15, 8 * SECOND, "touch /x"),
        "web: touch /x: SIGTERM (15) to pid 77, SIGKILL in 8 s",
    ),
    (
        DaemonEnding("web", 0, 15, 8 * SECOND, "touch /x"),
        "web: touch /x: SIGTERM (15) to all of it, SIGKILL in 8 s",
    ),
    (DaemonKilled("web", 77, 0), "web: SIGKILL to all of it"),
    (DaemonKilled("web", 77, 8 * SECOND), "web: still there after 8 s: SIGKILL to all of it"),
    (
        DaemonGone("web", 77, 15, 340 * MS),
        "web: pid 77 was killed by SIGTERM (15), nothing left after 340 ms",
    ),
    (DaemonGone("web", 0, None, 0), "web: ended, nothing left after 0 ms"),
    (
        DaemonGone("web", 7, 9, 0, 2000 * MS),
        "web: pid 7 was killed by SIGKILL (9), nothing left after 0 ms; next try in 2 s",
    ),
    (
        DaemonStuck("web", 77, 18 * SECOND, False),
        (
            "web: pid 77 is still there 18 s after it was to end, in spite of SIGKILL "
            "(a dead disk or network file system?)"
        ),
    ),
    (
        DaemonStuck("web", 0, 28 * SECOND, True),
        (
            "web: is still there 28 s after it was to end, in spite of SIGKILL "
            "(a dead disk or network file system?); given up"
        ),
    ),
    (
        DaemonSlow("web", 10 * SECOND),
        (
            "web: has been starting for 10 s without reaching its program "
            "(a dead network file system?)"
        ),
    ),
    (DaemonReady("web", 77, SECOND), "web: pid 77 is ready after 1 s"),
    (
        DaemonLate("web", 77, 5 * SECOND, "nobody listens"),
        "web: not ready after 5 s: nobody listens; ending it",
    ),
    (
        DaemonSilent("web", 77, 5 * SECOND),
        "web: pid 77 did not feed its watchdog for 5 s; ending it",
    ),
    (DaemonSignalled("web", 77, 10, "signal"), "web: signal: SIGUSR1 (10) to pid 77"),
    (
        DaemonDone("web", 77, 0, 5 * SECOND, oneshot=True),
        "web: pid 77 exited with 0 after 5 s; done",
    ),
    (
        DaemonDone("web", 77, 768, 5 * SECOND, oneshot=False),
        "web: pid 77 exited with 3 after 5 s; not started again, as configured",
    ),
    (
        DaemonGivenUp("web", "restart = never"),
        "web: given up: restart = never; `lowsuper start web` starts it",
    ),
    (
        DaemonNeeds("web", "db", started=True),
        "web: ending it, since it requires db, which is not there",
    ),
    (
        DaemonNeeds("web", "db", started=False),
        "web: not started, since it requires db, which is not there",
    ),
    (
        DaemonBarred("web", "l"),
        "web: not started, since this node is not the lord of the legion l",
    ),
    (
        DaemonInBackground("web", 77, 12 * MS),
        (
            "web: pid 77 exited with 0 after 12 ms and left processes running: it seems to put "
            "itself into the background; they are watched now, but smart-attach-daemon with its "
            "pidfile, or its option for the foreground, is what it needs"
        ),
    ),
    (
        DaemonInBackground("web", 0, 0),
        (
            "web: exited with 0 after 0 ms and left processes running: it seems to put "
            "itself into the background; they are watched now, but smart-attach-daemon with its "
            "pidfile, or its option for the foreground, is what it needs"
        ),
    ),
    (
        DaemonFound("web", 77, 33, 34, "cgroup", 182 * SECOND, "recorded by lowsuper"),
        (
            "web: found running for 3 min 2 s, pid 77, uid 33, gid 34, kill domain cgroup: "
            "recorded by lowsuper"
        ),
    ),
    (
        DaemonFinding("web", "the pidfile /x.pid names 123, which does not run"),
        "web: the pidfile /x.pid names 123, which does not run; starting",
    ),
    (
        DaemonHeld("web", "/x.pid", "main, pid 12"),
        "web: the pidfile /x.pid is governed by main, pid 12; left to it until it lets go",
    ),
    (
        DaemonAwaited("web", 77, 0, "the pidfile /x.pid is empty", 10 * SECOND),
        (
            "web: pid 77 exited with 0 and left processes behind; the pidfile /x.pid is empty; "
            "waiting up to 10 s for the pidfile to name one of them"
        ),
    ),
    (
        DaemonAwaited("web", 77, None, "the pidfile /x.pid is empty", 10 * SECOND),
        (
            "web: pid 77 ended and left processes behind; the pidfile /x.pid is empty; "
            "waiting up to 10 s for the pidfile to name one of them"
        ),
    ),
    (
        DaemonAwaited("web", 0, None, "the pidfile /x.pid is not there", 10 * SECOND),
        (
            "web: an earlier start left processes behind; the pidfile /x.pid is not there; "
            "waiting up to 10 s for the pidfile to name one of them"
        ),
    ),
    (
        DaemonNotReady("web", "the pidfile /x.pid is empty", 768, 10 * SECOND, False, SECOND),
        (
            "web: not ready after 10 s: the pidfile /x.pid is empty; what was launched exited "
            "with 3; next try in 1 s"
        ),
    ),
    (
        DaemonNotReady("web", "the pidfile /x.pid is empty", None, 10 * SECOND, True, None),
        (
            "web: not ready after 10 s: the pidfile /x.pid is empty; what was launched still "
            "runs; ending what is there first"
        ),
    ),
    (
        DaemonNotReady("web", "the pidfile /x.pid is empty", None, SECOND, False, SECOND),
        (
            "web: not ready after 1 s: the pidfile /x.pid is empty; nothing of it runs; "
            "next try in 1 s"
        ),
    ),
    (
        DaemonMoved("web", 77, 78, "it is in the daemon's kill domain"),
        "web: is pid 78 now, no longer 77: it is in the daemon's kill domain",
    ),
    (
        DaemonDoubted("web", 77, "the pidfile /x.pid is empty", False),
        "web: the pidfile /x.pid is empty, but pid 77 runs and stays watched",
    ),
    (
        DaemonDoubted("web", 77, "the pidfile /x.pid is empty", True),
        "web: the pidfile /x.pid is empty, but pid 77 runs and stays watched; written again",
    ),
    (DaemonLeft("web", 77, "stop", None), "web: stop: left running, pid 77"),
    (DaemonLeft("web", 0, "stop", None), "web: stop: left running"),
    (
        DaemonLeft("web", 77, "reload", 1),
        "web: reload: left running, pid 77, told by SIGHUP (1)",
    ),
    (DaemonReaped("web", 77, 768), "web: pid 77 exited with 3, says its parent now"),
    (HookRuns("exec-as-root", "mount -a"), "exec-as-root: mount -a"),
    (HookPrints("hello"), "hello"),
    (
        HookFailed("hook-asap", "cd:/x", 256, True, "chdir /x: No such file or directory"),
        "hook-asap: cd:/x: chdir /x: No such file or directory; giving up",
    ),
    (HookFailed("exec-asap", "x", 256, True), "exec-asap: x: exited with 1; giving up"),
    (HookFailed("exec-asap", "x", -1, True), "exec-asap: x: could not be started; giving up"),
    (
        HookFailed("exec-as-user-atexit", "x", 9, False),
        "exec-as-user-atexit: x: was killed by SIGKILL (9)",
    ),
    (AllStarted(1, 0, 20 * MS), "ready: 1 daemon up after 20 ms"),
    (
        AllStarted(3, 1, 2 * SECOND),
        "ready: 2 daemons up after 2 s, 1 could not be started yet",
    ),
    (MasterStops("SIGTERM", 1), "SIGTERM: stopping 1 daemon"),
    (MasterStops("c has ended", 0), "c has ended: stopping 0 daemons"),
    (
        MasterStops("SIGTERM", 1, 2),
        "SIGTERM: stopping 1 daemon, leaving 2 daemons running",
    ),
    (MasterKills("SIGINT"), "SIGINT again: SIGKILL to everything"),
    (MasterReloads("SIGHUP", False), "SIGHUP: reloading"),
    (MasterReloads("master-fifo R", True), "master-fifo R: reloading without waiting for anybody"),
    (
        MasterApplies(("a", "b"), ("c",), ("d",)),
        "apply: added a, b; removed c; changed d",
    ),
    (MasterApplies((), (), ()), "apply: no daemon differs"),
    (MasterReloaded(3 * SECOND), "reloaded in 3 s"),
    (LegionLost("l", "no quorum", 1), "legion l: no quorum: ending 1 daemon"),
    (LegionSays("l", "n2 (valor 9) joined"), "legion l: n2 (valor 9) joined"),
    (
        MasterIgnores("reload (SIGHUP)", "it is stopping"),
        "reload (SIGHUP): ignored, it is stopping",
    ),
    (MasterEnds(3), "everything has ended; exit status 3"),
]


@pytest.mark.parametrize(("note", "line"), LINES, ids=lambda value: type(value).__name__)
def test_note_reads_as_one_line(note, line):
    assert format_note(note) == line
    assert "\n" not in line


def test_lines_has_every_note():
    assert {type(note) for note, _ in LINES} == set(get_args(events.Note))


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (0, "0 ms"),
        (MS - 1, "0 ms"),
        (SECOND - 1, "999 ms"),
        (SECOND, "1 s"),
        (1050 * MS, "1 s"),
        (1100 * MS, "1.1 s"),
        (60 * SECOND - 1, "59.9 s"),
        (60 * SECOND, "1 min 0 s"),
        (3599 * SECOND, "59 min 59 s"),
        (3600 * SECOND, "1 h 0 min"),
        (86399 * SECOND, "23 h 59 min"),
        (86400 * SECOND, "1 d 0 h"),
        (400 * 86400 * SECOND, "400 d 0 h"),
    ],
)
def test_duration_reads_as_people_write_it(time, text):
    assert format_duration(time) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "SIGHUP (1)"),
        (9, "SIGKILL (9)"),
        (17, "SIGCHLD (17)"),
        (34, "SIGRTMIN (34)"),
        (37, "SIGRTMIN+3 (37)"),
        (0, "signal 0"),
        (32, "signal 32"),
        (99, "signal 99"),
    ],
)
def test_signal_reads_with_its_name(number, text):
    assert format_signal(number) == text


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (None, "ended"),
        (0, "exited with 0"),
        (255 << 8, "exited with 255"),
        (6 | 0x80, "was killed by SIGABRT (6) (core dumped)"),
        (64, "was killed by SIGRTMIN+30 (64)"),
    ],
)
def test_status_reads_as_words(status, text):
    assert format_status(status) == text


STATES = [
    (Down(3), "down"),
    (Looking(1, 0), "looking whether it runs"),
    (Looking(1, 0, held=True), "another master governs its pidfile"),
    (Starting(1, 0, 1), "starting for 5 s"),
    (Awaiting(1, SECOND, 0, 0, 1, 77), "waiting for its pidfile, pid 77 for 4 s"),
    (Awaiting(1, SECOND, 0, 0, 1, 0), "waiting for its pidfile, for 4 s"),
    (Broken(1, 0, 1, SpawnFailed(1, "x", 2, "", True)), "start failed"),
    (Up(1, 0, 1, 77), "up, pid 77, for 5 s"),
    (Stopping(1, SECOND, 0, 0, 1, 77, "down"), "stopping, pid 77 for 4 s"),
    (Stopping(1, SECOND, 0, 0, 1, 0, "down"), "stopping, for 4 s"),
    (Backoff(1, 1, 7 * SECOND), "waiting, next try in 2 s"),
    (Backoff(1, 1, SECOND), "waiting, next try in 0 ms"),
    (Up(1, 0, 1, 77, ready=False), "up, pid 77, not ready for 5 s"),
    (Up(1, 0, 1, 77, ready=False, finding="x"), "up, pid 77, not ready for 5 s: x"),
    (Over(1, "failed", 256), "given up, exited with 1"),
    (Over(1, "failed", None), "given up, never ran"),
    (Over(1, "done", 0), "done, exited with 0"),
]


@pytest.mark.parametrize(("state", "text"), STATES)
def test_state_reads_in_a_few_words(state, text):
    assert describe_state(state, 5 * SECOND) == text


def test_states_has_every_state():
    assert {type(state) for state, _ in STATES} == set(get_args(machine.State))
