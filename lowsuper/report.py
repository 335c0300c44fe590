# ruff: noqa: PLR0911, RET503  # tables of cases that end in assert_never
"""The wording of everything that the operator reads while lowsuper runs.

One note, one line: which daemon, what happened, of what, after how long, what comes next.
"""

from __future__ import annotations

from lowsuper.errors import assert_never
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
)
from lowsuper.machine import Awaiting, Backoff, Broken, Down, Looking, Over, Starting, Stopping, Up
from lowsuper.units import Ns, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import Note
    from lowsuper.machine import State

ENOENT, ENOEXEC, EACCES, EAGAIN, EPERM = 2, 8, 13, 11, 1
SIGKILL = 9

ADVICE = {
    ("execve", ENOENT): "there is no such program, or the interpreter in its first line is missing",
    ("execve", ENOEXEC): "it is neither a binary for this machine nor a script with a #! line",
    ("execve", EACCES): "it is not executable for this user, or its file system is noexec",
    ("clone", EAGAIN): "the limit of processes is reached (ulimit -u, pids.max, kernel.pid_max)",
    ("clone", EPERM): "namespaces need root (CAP_SYS_ADMIN)",
    ("setresuid", EPERM): "only root can become another user",
    ("setgroups", EPERM): "only root can become another user",
    ("namespaces", EPERM): "namespaces need root (CAP_SYS_ADMIN)",
    ("caps", EPERM): "lowsuper must have what is to be kept, and CAP_SETPCAP to take the rest away",
}


def format_signal(number: int) -> str:
    """Return a signal's name with its number: `SIGKILL (9)`."""
    from lowsuper.units import signal_name

    name = signal_name(number)
    return f"{name} ({number})" if name else f"signal {number}"


def format_status(status: int | None) -> str:
    """Return a wait status in words: `exited with 3`, `was killed by SIGKILL (9)`."""
    if status is None:
        return "ended"
    signal = status & 0x7F
    if signal:
        core = " (core dumped)" if status & 0x80 else ""
        return f"was killed by {format_signal(signal)}{core}"
    return f"exited with {(status >> 8) & 0xFF}"


def _next_start(pause: Ns | None) -> str:
    if pause is None:
        return "not tried again"
    return "starting again" if pause == 0 else f"next try in {format_duration(pause)}"


def _pid(pid: int) -> str:
    return f"pid {pid} " if pid else ""


def format_note(note: Note) -> str:
    """Return the line for a note, without the program's name in front."""
    match note:
        case (
            DaemonStarted()
            | DaemonNotStarted()
            | DaemonDied()
            | DaemonEnding()
            | DaemonKilled()
            | DaemonGone()
            | DaemonStuck()
            | DaemonSlow()
            | DaemonInBackground()
        ):
            return f"{note.name}: {_daemon_words(note)}"
        case (
            DaemonReady()
            | DaemonLate()
            | DaemonSilent()
            | DaemonSignalled()
            | DaemonDone()
            | DaemonGivenUp()
            | DaemonNeeds()
            | DaemonBarred()
        ):
            return f"{note.name}: {_course_words(note)}"
        case (
            DaemonFound()
            | DaemonFinding()
            | DaemonHeld()
            | DaemonAwaited()
            | DaemonNotReady()
            | DaemonMoved()
            | DaemonDoubted()
            | DaemonLeft()
            | DaemonReaped()
        ):
            return f"{note.name}: {_smart_words(note)}"
        case _:
            return _master_words(note)


def _daemon_words(  # noqa: C901
    note: DaemonStarted
    | DaemonNotStarted
    | DaemonDied
    | DaemonEnding
    | DaemonKilled
    | DaemonGone
    | DaemonStuck
    | DaemonSlow
    | DaemonInBackground,
) -> str:
    match note:
        case DaemonStarted(pidfile_after=after):
            named = "" if after is None else f"; its pidfile came after {format_duration(after)}"
            return f"started, {_who(note)}{named}"
        case DaemonNotStarted():
            return _not_started(note)
        case DaemonDied():
            return _died(note)
        case DaemonEnding(pid=pid, signal=signal, patience=patience, why=why):
            whom = f"pid {pid}" if pid else "all of it"
            return (
                f"{why}: {format_signal(signal)} to {whom}, SIGKILL in {format_duration(patience)}"
            )
        case DaemonKilled(waited=0):
            return "SIGKILL to all of it"
        case DaemonKilled(waited=waited):
            return f"still there after {format_duration(waited)}: SIGKILL to all of it"
        case DaemonGone(pid=pid, status=status, took=took, retry=retry):
            what = f"{_pid(pid)}{format_status(status)}, nothing left after {format_duration(took)}"
            return what if retry is None else f"{what}; {_next_start(retry)}"
        case DaemonStuck(pid=pid, waited=waited, abandoned=abandoned):
            end = "; given up" if abandoned else ""
            return (
                f"{_pid(pid)}is still there {format_duration(waited)} after it was to end, "
                f"in spite of SIGKILL (a dead disk or network file system?){end}"
            )
        case DaemonSlow(waited=waited):
            return (
                f"has been starting for {format_duration(waited)} without reaching its program "
                f"(a dead network file system?)"
            )
        case DaemonInBackground(pid=pid, age=age):
            return (
                f"{_pid(pid)}exited with 0 after {format_duration(age)} and left processes "
                "running: it seems to put itself into the background; they are watched now, but "
                "smart-attach-daemon with its pidfile, or its option for the foreground, is what "
                "it needs"
            )
        case _:
            assert_never(note)


def _who(note: DaemonStarted | DaemonFound) -> str:
    return f"pid {note.pid}, uid {note.uid}, gid {note.gid}, kill domain {note.rung}"


def _course_words(
    note: DaemonReady
    | DaemonLate
    | DaemonSilent
    | DaemonSignalled
    | DaemonDone
    | DaemonGivenUp
    | DaemonNeeds
    | DaemonBarred,
) -> str:
    match note:
        case DaemonReady(pid=pid, took=took):
            return f"{_pid(pid)}is ready after {format_duration(took)}"
        case DaemonLate(waited=waited, finding=finding):
            return f"not ready after {format_duration(waited)}: {finding}; ending it"
        case DaemonSilent(pid=pid, silence=silence):
            return f"{_pid(pid)}did not feed its watchdog for {format_duration(silence)}; ending it"
        case DaemonSignalled(pid=pid, signal=signal, why=why):
            return f"{why}: {format_signal(signal)} to pid {pid}"
        case DaemonDone(pid=pid, status=status, age=age, oneshot=oneshot):
            what = f"{_pid(pid)}{format_status(status)} after {format_duration(age)}"
            return f"{what}; done" if oneshot else f"{what}; not started again, as configured"
        case DaemonGivenUp(reason=reason):
            return f"given up: {reason}; `lowsuper start {note.name}` starts it"
        case DaemonNeeds(other=other, started=started):
            verb = "ending it" if started else "not started"
            return f"{verb}, since it requires {other}, which is not there"
        case DaemonBarred(legion=legion):
            return f"not started, since this node is not the lord of the legion {legion}"
        case _:
            assert_never(note)


def _smart_words(
    note: DaemonFound
    | DaemonFinding
    | DaemonHeld
    | DaemonAwaited
    | DaemonNotReady
    | DaemonMoved
    | DaemonDoubted
    | DaemonLeft
    | DaemonReaped,
) -> str:
    match note:
        case DaemonFound(age=age, why=why):
            return f"found running for {format_duration(age)}, {_who(note)}: {why}"
        case DaemonFinding(finding=finding, retry=retry):
            return f"{finding}; {_next_start(retry) if retry else 'starting'}"
        case DaemonHeld(pidfile=pidfile, holder=holder):
            return f"the pidfile {pidfile} is governed by {holder}; left to it until it lets go"
        case DaemonAwaited(pid=pid, status=status, finding=finding, patience=patience):
            what = (
                f"{_pid(pid)}{format_status(status)} and left" if pid else "an earlier start left"
            )
            return (
                f"{what} processes behind; {finding}; waiting up to {format_duration(patience)} "
                "for the pidfile to name one of them"
            )
        case DaemonNotReady():
            return _not_ready(note)
        case DaemonMoved(old=old, new=new, why=why):
            return f"is pid {new} now, no longer {old}: {why}"
        case DaemonDoubted(pid=pid, finding=finding, renamed=renamed):
            again = "; written again" if renamed else ""
            return f"{finding}, but pid {pid} runs and stays watched{again}"
        case DaemonLeft(pid=pid, why=why, signal=signal):
            who = f", pid {pid}" if pid else ""
            told = "" if signal is None else f", told by {format_signal(signal)}"
            return f"{why}: left running{who}{told}"
        case DaemonReaped(pid=pid, status=status):
            return f"pid {pid} {format_status(status)}, says its parent now"
        case _:
            assert_never(note)


def _not_ready(note: DaemonNotReady) -> str:
    if note.launcher is not None:
        launcher = f"what was launched {format_status(note.launcher)}"
    elif note.left:
        launcher = "what was launched still runs"
    else:
        launcher = "nothing of it runs"
    after = "ending what is there first" if note.left else _next_start(note.retry)
    return f"not ready after {format_duration(note.waited)}: {note.finding}; {launcher}; {after}"


def _not_started(note: DaemonNotStarted) -> str:
    if not note.step:
        return f"killed before its program could run; {_next_start(note.retry)}"
    from os import strerror

    what = f"{note.step} {note.subject}".rstrip()
    advice = note.advice or ADVICE.get((note.step, note.errno))
    reason = strerror(note.errno) + (f" ({advice})" if advice else "")
    return f"{what}: {reason}; {_next_start(note.retry)}"


def _died(note: DaemonDied) -> str:
    what = f"{_pid(note.pid)}{format_status(note.status)} after {format_duration(note.age)}"
    if note.oom:
        was_it = note.status is None or note.status & 0x7F == SIGKILL
        part = "" if was_it else "; a part of it had been killed"
        what = f"{what}{part}: out of memory ({note.oom})"
    if note.left:
        return f"{what} and left processes behind: ending them first"
    if note.control:
        return f"{what}; it is a control daemon, so the master ends with it"
    return f"{what}; {_next_start(note.retry)}"


def _master_words(  # noqa: C901, PLR0912
    note: HookRuns
    | HookPrints
    | HookFailed
    | AllStarted
    | MasterStops
    | MasterKills
    | MasterReloads
    | MasterApplies
    | MasterReloaded
    | LegionLost
    | LegionSays
    | MasterIgnores
    | MasterEnds,
) -> str:
    match note:
        case HookRuns(option=option, text=text):
            return f"{option}: {text}"
        case HookPrints(text=text):
            return text
        case HookFailed():
            return _hook_failed(note)
        case AllStarted(count=count, failed=failed, took=took):
            some = f", {failed} could not be started yet" if failed else ""
            return f"ready: {_daemons(count - failed)} up after {format_duration(took)}{some}"
        case MasterStops(why=why, count=count, smart=smart):
            alone = f", leaving {_daemons(smart)} running" if smart else ""
            return f"{why}: stopping {_daemons(count)}{alone}"
        case MasterKills(why=why):
            return f"{why} again: SIGKILL to everything"
        case MasterReloads(why=why, brutal=brutal):
            return f"{why}: reloading{' without waiting for anybody' if brutal else ''}"
        case MasterApplies():
            return _applies(note)
        case MasterReloaded(took=took):
            return f"reloaded in {format_duration(took)}"
        case LegionSays(legion=legion, text=text):
            return f"legion {legion}: {text}"
        case LegionLost(legion=legion, why=why, count=count):
            return f"legion {legion}: {why}: ending {_daemons(count)}"
        case MasterIgnores(what=what, reason=reason):
            return f"{what}: ignored, {reason}"
        case MasterEnds(code=code):
            return f"everything has ended; exit status {code}"
        case _:
            assert_never(note)


def _applies(note: MasterApplies) -> str:
    parts = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("added", note.added),
            ("removed", note.removed),
            ("changed", note.changed),
        )
        if names
    ]
    return f"apply: {'; '.join(parts) or 'no daemon differs'}"


def _hook_failed(note: HookFailed) -> str:
    if note.problem:
        how = note.problem
    else:
        how = "could not be started" if note.status < 0 else format_status(note.status)
    return f"{note.option}: {note.text}: {how}{'; giving up' if note.fatal else ''}"


def _daemons(count: int) -> str:
    return f"{count} daemon{'' if count == 1 else 's'}"


def describe_state(state: State, now: Ns) -> str:  # noqa: C901  # a table
    """Return a daemon's state in a few words, for the statistics."""
    match state:
        case Down():
            return "down"
        case Looking(held=held):
            return "another master governs its pidfile" if held else "looking whether it runs"
        case Awaiting(since=since, pid=pid):
            waited = format_duration(now - since)
            return f"waiting for its pidfile, {_pid(pid)}for {waited}"
        case Starting(since=since):
            return f"starting for {format_duration(now - since)}"
        case Broken():
            return "start failed"
        case Up(ready=False, pid=pid, since=since, finding=finding):
            why = f": {finding}" if finding else ""
            return f"up, pid {pid}, not ready for {format_duration(now - since)}{why}"
        case Up(pid=pid, since=since):
            return f"up, pid {pid}, for {format_duration(now - since)}"
        case Stopping(pid=pid, since=since):
            return f"stopping, {_pid(pid)}for {format_duration(now - since)}"
        case Backoff(until=until):
            return f"waiting, next try in {format_duration(max(0, until - now))}"
        case Over(outcome=outcome, status=status):
            how = "never ran" if status is None else format_status(status)
            return f"{'given up' if outcome == 'failed' else outcome}, {how}"
        case _:
            assert_never(state)


def describe_past(restarts: int, status: int | None, ago: Ns | None, oom: str) -> str:
    """Return what has become of a daemon so far, for the statistics.

    Args:
        restarts: that nobody asked for.
        status: how its last process ended, as wait(2) gives it; None: unknown.
        ago: how long that is past; None: none has ended.
        oom: what the kernel killed it for, if that was a lack of memory.
    """
    count = "no restart" if not restarts else f"{restarts} restart{'s' if restarts > 1 else ''}"
    if ago is None:
        return count
    why = f", out of memory ({oom})" if oom else ""
    return f"{count}; last exit {format_duration(ago)} ago: {format_status(status)}{why}"
