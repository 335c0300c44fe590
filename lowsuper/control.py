"""The protocol of the control socket: what is asked, and what a daemon looks like to who asks.

Pure: lines in, lines out. One JSON object a line each way; see lowsuper-control(7) for all of it.
What is asked is looked at with suspicion, as whoever may connect can send anything.
"""

from __future__ import annotations

from lowsuper import report
from lowsuper.machine import (
    Awaiting,
    Backoff,
    Broken,
    Down,
    Looking,
    Over,
    Starting,
    Stopping,
    Up,
)
from lowsuper.record import Record
from lowsuper.units import SECOND, format_duration, parse_signal, signal_name
from lowsuper.wire import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from lowsuper.changes import Changes
    from lowsuper.chronicle import Chronicle, Exit
    from lowsuper.events import Note
    from lowsuper.legion.words import View
    from lowsuper.machine import State
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns, RunId

SCHEMA = 1
"""Of all answers; raised when a field goes or changes its meaning."""

VERSION = "0.1.0"
"""Of lowsuper: to ask for it as `--version` does takes longer than any request."""

LONGEST_LINE = 64 * 1024
"""Of a request, in bytes, its newline included."""
MOST_NAMES = 1000
MOST_LINES = 10_000
LONGEST_WAIT = 1e9  # seconds

BAD_REQUEST, UNKNOWN_VERB, UNKNOWN_NAME, NOT_PERMITTED, NOT_POSSIBLE, FAILED, TIMEOUT, TOO_MANY = (
    "bad-request",
    "unknown-verb",
    "unknown-name",
    "not-permitted",
    "not-possible",
    "failed",
    "timeout",
    "too-many",
)

RUNNING, READY, STOPPED, EXITED = GOALS = ("running", "ready", "stopped", "exited")
"""What `wait` waits for."""

ASKED = ("start", "stop", "restart", "try-restart", "reset-failed")
"""The verbs that the master's machine takes for single daemons."""

NEED_NAMES = (*ASKED, "signal", "wait")
NEED_NAME = ("why", "logs", "adopt")
VERBS = (
    *("hello", "status", "events", "logs", "wait", "why"),
    *ASKED,
    *("reload", "signal", "diff", "apply", "adopt", "shutdown", "legion"),
)


class RequestError(Exception):
    """A request that is answered by an error.

    Args:
        code: one of the words above.
        message: a line for people.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.code, self.message = code, message


class Request(Record):
    """What somebody asks."""

    verb: str
    names: tuple[str, ...] = ()
    name: str = ""
    goal: str = ""  # of wait
    timeout: Ns | None = None
    past: tuple[tuple[str, RunId], ...] = ()
    signal: int = 0
    lines: int | None = None
    follow: bool = False
    pid: int = 0
    kill: bool = False
    wait: bool = False
    watch: bool = False  # what goes on, and begin nothing


# Requests.


def parse_request(line: bytes) -> Request:
    """Return what a line asks; members that it does not know are left out.

    Raises:
        RequestError: it is no request.
    """
    try:
        fields = decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise RequestError(BAD_REQUEST, f"not a line of JSON: {error}"[:200]) from None
    if not isinstance(fields, dict):
        raise RequestError(BAD_REQUEST, 'not an object: a request is {"do": VERB, ...}')
    verb = fields.get("do")
    if not isinstance(verb, str):
        raise RequestError(BAD_REQUEST, "do: there is no verb")
    if verb not in VERBS:
        raise RequestError(UNKNOWN_VERB, f"there is no verb {quote(verb)}")
    request = Request(
        verb,
        names=_take_names(fields.get("names")),
        name=_take_text(fields, "name"),
        goal=_take_goal(fields.get("for")),
        timeout=_take_time(fields.get("timeout")),
        past=_take_past(fields.get("past")),
        signal=_take_signal(fields.get("signal")),
        lines=_take_number(fields, "lines", MOST_LINES),
        follow=_take_bool(fields, "follow"),
        pid=_take_number(fields, "pid", 1 << 22) or 0,
        kill=_take_bool(fields, "kill"),
        wait=_take_bool(fields, "wait"),
        watch=_take_bool(fields, "watch"),
    )
    if verb in NEED_NAMES and not request.names:
        raise RequestError(BAD_REQUEST, f"{verb}: names: at least one is needed")
    if verb in NEED_NAME and not request.name:
        raise RequestError(BAD_REQUEST, f"{verb}: name: there is none")
    if verb == "adopt" and not request.pid:
        raise RequestError(BAD_REQUEST, "adopt: pid: there is none")
    if verb == "signal" and not request.signal:
        raise RequestError(BAD_REQUEST, "signal: there is none")
    return request


def _refuse(key: str, why: str) -> RequestError:
    return RequestError(BAD_REQUEST, f"{key}: {why}")


def _take_names(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _refuse("names", "not a list of texts")
    if len(value) > MOST_NAMES:
        raise _refuse("names", f"more than {MOST_NAMES}; a pattern such as * is shorter")
    return tuple(value)


def _take_text(fields: dict[str, object], key: str) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str):
        raise _refuse(key, "not a text")
    return value


def _take_bool(fields: dict[str, object], key: str) -> bool:
    value = fields.get(key, False)
    if not isinstance(value, bool):
        raise _refuse(key, "neither true nor false")
    return value


def _take_number(fields: dict[str, object], key: str, most: int) -> int | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise _refuse(key, f"not a whole number from 0 to {most}")
    return value


def _take_time(value: object) -> Ns | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _refuse("timeout", "neither a number of seconds nor null")
    if not 0 <= value <= LONGEST_WAIT:  # nor NaN
        raise _refuse("timeout", f"not between 0 and {LONGEST_WAIT:g}")
    return int(value * SECOND)


def _take_goal(value: object) -> str:
    if value is None:
        return READY
    if value not in GOALS:
        raise _refuse("for", f"none of {', '.join(GOALS)}")
    return str(value)


def _take_past(value: object) -> tuple[tuple[str, RunId], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(
        isinstance(run, int) and not isinstance(run, bool) for run in value.values()
    ):
        raise _refuse("past", "not an object of a run for each name")
    if len(value) > MOST_NAMES:
        raise _refuse("past", f"more than {MOST_NAMES}")
    return tuple(value.items())


def _take_signal(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise _refuse("signal", "neither a name nor a number")
    try:
        return parse_signal(str(value)[:40])
    except ValueError as error:
        raise _refuse("signal", f"{quote(str(value))} {error}") from None


def quote(text: str) -> str:
    """Return a text as a message can show it."""
    return encode(text if len(text) <= 60 else text[:60] + "...")


# Names.


def has_pattern(name: str) -> bool:
    """Return whether a name stands for those that are like it."""
    return any(mark in name for mark in "*?[")


def matches(pattern: str, name: str) -> bool:
    """Return whether a name is like a shell pattern: `*`, `?`, `[a-z]`, `[!a-z]`.

    The time is at most the product of both lengths, whatever the pattern.
    """
    at = place = 0
    star = star_place = -1
    while place < len(name):
        fits, after = _match_one(pattern, at, name[place])
        if fits:
            at, place = after, place + 1
        elif at < len(pattern) and pattern[at] == "*":
            star, star_place, at = at, place, at + 1
        elif star >= 0:
            star_place += 1
            at, place = star + 1, star_place
        else:
            return False
    return not pattern[at:].strip("*")


def _match_one(pattern: str, at: int, char: str) -> tuple[bool, int]:
    """Return whether the next part of a pattern stands for a character, and where it ends."""
    if at >= len(pattern) or pattern[at] == "*":
        return False, at
    if pattern[at] == "?":
        return True, at + 1
    end = pattern.find("]", at + 2 + pattern.startswith("!", at + 1)) if pattern[at] == "[" else -1
    if end < 0:
        return pattern[at] == char, at + 1
    inner = pattern[at + 1 : end]
    is_not = inner.startswith("!")
    inner = inner[1:] if is_not else inner
    found, i = False, 0
    while i < len(inner):
        if inner[i + 1 : i + 2] == "-" and i + 2 < len(inner):
            found |= inner[i] <= char <= inner[i + 2]
            i += 3
        else:
            found |= inner[i] == char
            i += 1
    return found is not is_not, end + 1


def resolve_names(
    names: Collection[str], specs: Mapping[str, DaemonSpec]
) -> Iterator[tuple[str, ...]]:
    """Yield the daemons that names stand for, a part at a time, as this may take long.

    A name is that of a daemon, or of a group, or a pattern. None comes twice.

    Raises:
        RequestError: there is nothing that a name stands for.
    """
    given: set[str] = set()
    for name in names:
        if name in specs:
            found: list[str] = [name]
        elif name == "*":
            found = list(specs)
        else:
            found = [each for each, spec in specs.items() if name in spec.groups]
            if not found and has_pattern(name) and len(name) <= 200:
                for number, each in enumerate(specs):
                    if matches(name, each):
                        found.append(each)
                    if number % 32 == 31:
                        yield ()
            if not found:
                what = "no daemon is like" if has_pattern(name) else "there is no daemon"
                raise RequestError(UNKNOWN_NAME, f"{what} {quote(name)}")
        yield tuple(each for each in found if each not in given)
        given.update(found)


# Answers.


def answer(**fields: object) -> bytes:
    """Return the line of an answer."""
    return f"{encode({'schema': SCHEMA, 'ok': True, **fields})}\n".encode()


def refusal(error: RequestError, **fields: object) -> bytes:
    """Return the line of an answer that is an error."""
    told = {"schema": SCHEMA, "ok": False, "error": error.code, "message": error.message}
    return f"{encode({**told, **fields})}\n".encode()


def seconds(time: Ns) -> float:
    """Return a time as it goes over the wire: seconds, to the microsecond."""
    return round(time / SECOND, 6)


# Daemons.


class Place(Record):
    """What is known of a daemon besides its specification, state and chronicle."""

    waiting: bool = False  # for those that it comes after
    leaf: str | None = None  # the directory of its cgroup
    status_text: str | None = None


def state_word(spec: DaemonSpec, state: State, *, waiting: bool = False) -> str:  # noqa: PLR0911
    """Return the one word for a state."""
    match state:
        case Up(ready=True):
            return READY if spec.ready is not None else RUNNING
        case Up():
            return RUNNING
        case Starting() | Awaiting() | Broken():
            return "starting"
        case Stopping():
            return "stopping"
        case Backoff():
            return "backoff"
        case Looking(held=held):
            return "held" if held else "looking"
        case Over(outcome=outcome):
            return outcome if outcome in ("done", "failed") else STOPPED
        case _:
            return "waiting" if waiting else STOPPED


def run_of(state: State) -> RunId:
    """Return the last life of a daemon that has begun; 0: none has."""
    # One that is looked for gets the number of the life that is about to begin.
    return max(0, state.run - 1) if isinstance(state, Looking) else state.run


def pid_of(state: State) -> int:
    """Return the process of a daemon; 0: it has none, or none is known yet."""
    return state.pid if isinstance(state, Up | Awaiting | Stopping) else 0


def describe(state: State, *, waiting: bool = False) -> str:  # noqa: C901, PLR0911  # a table
    """Return a state in a few words that stay true while time goes on."""
    match state:
        case Down():
            return "waiting for those that come first" if waiting else "down"
        case Looking(held=held):
            return "another master governs its pidfile" if held else "looking whether it runs"
        case Awaiting(finding=finding):
            return f"waiting for its pidfile: {finding}" if finding else "waiting for its pidfile"
        case Starting():
            return "starting"
        case Broken(failure=failure):
            what = f"{failure.step} {failure.subject}".rstrip()
            return f"start failed: {what}" if what else "start failed"
        case Up(ready=False, finding=finding):
            return f"up, not ready: {finding}" if finding else "up, not ready"
        case Up(background=True):
            return "up, in the background"
        case Up():
            return "up"
        case Stopping(killed=True):
            return "stopping, after SIGKILL"
        case Stopping():
            return "stopping"
        case Backoff():
            return "waiting before the next try"
        case Over(outcome=outcome, status=status):
            how = "never ran" if status is None else report.format_status(status)
            return f"{'given up' if outcome == 'failed' else outcome}, {how}"
    raise AssertionError(f"not handled: {state!r}")


def describe_exit(last: Exit | None) -> dict[str, object] | None:
    """Return how the last life of a daemon ended, as the protocol has it."""
    if last is None:
        return None
    status = last.status
    signal = None if status is None else status & 0x7F
    return {
        "status": report.format_status(status),
        "code": None if status is None or signal else (status >> 8) & 0xFF,
        "signal": (signal_name(signal) or str(signal)) if signal else None,
        "core": bool(signal and status is not None and status & 0x80),
        "oom": bool(last.oom),
        "oom_text": last.oom or None,
        "pid": last.pid or None,
        "after": None if last.age is None else seconds(last.age),
        "monotonic": seconds(last.at),
    }


def describe_daemon(
    spec: DaemonSpec, state: State, chronicle: Chronicle | None, place: Place
) -> dict[str, object]:
    """Return a daemon as the protocol has it. It holds nothing that changes by itself."""
    pid = pid_of(state)
    last = None if chronicle is None else chronicle.exit
    lives = pid != 0 and chronicle is not None
    since = getattr(state, "since", None)
    if since is None and last is not None:
        since = last.at
    return {
        "name": spec.name,
        "state": state_word(spec, state, waiting=place.waiting),
        "ready": (isinstance(state, Up) and state.ready)
        or (isinstance(state, Over) and state.outcome == "done"),
        "pid": pid or None,
        "uid": chronicle.uid if lives and chronicle is not None and chronicle.uid >= 0 else None,
        "gid": chronicle.gid if lives and chronicle is not None and chronicle.gid >= 0 else None,
        "kill_domain": (chronicle.rung or None) if chronicle is not None else None,
        "run": run_of(state),
        "since": None if since is None else seconds(since),
        "restarts": 0 if chronicle is None else chronicle.restarts,
        "exit": describe_exit(last),
        "next_try": seconds(state.until) if isinstance(state, Backoff) else None,
        "smart": spec.pidfile is not None,
        "pidfile": spec.pidfile,
        "type": spec.kind,
        "command": spec.command.text,
        "words": describe(state, waiting=place.waiting),
        "leaf": place.leaf,
        "status_text": place.status_text,
    }


def decide(  # noqa: PLR0911  # a table
    spec: DaemonSpec, state: State, now: Ns, *, waiting: bool, held: bool, barred: bool = False
) -> str:
    """Return in words whether and when a daemon starts again, and why."""
    match state:
        case Backoff(until=until, spawns=spawns):
            pause = format_duration(max(0, until - now))
            return f"starts again in {pause}, after {spawns} start(s) that did not last"
        case Over(outcome="done"):
            return "has done what it was for; it does not start again by itself"
        case Over(outcome="failed"):
            return "given up; reset-failed or start clears that"
        case Over():
            return f"does not start again by itself (restart = {spec.restart})"
        case Down() if held:
            return "was stopped by an operator; start brings it back"
        case Down() if barred:
            return f"starts when this node is the lord of the legion {spec.legion}"
        case Down() if waiting:
            first = ", ".join((*spec.requires, *spec.wants, *spec.after))
            return f"starts when what comes first is ready: {first}"
        case Down():
            return "is not wanted now"
        case Stopping(deadline=deadline, killed=killed):
            left = format_duration(max(0, deadline - now))
            return "was sent SIGKILL" if killed else f"is asked to end; SIGKILL in {left}"
        case _:
            again = "ends the master with it" if spec.control else f"restart = {spec.restart}"
            return f"runs or is about to; when it ends: {again}"


def describe_legion(view: View, now: Ns) -> dict[str, object]:
    """Return a legion as the protocol has it.

    Args:
        view: what its agent knows.
        now: CLOCK_BOOTTIME in nanoseconds.
    """
    names = {node.uuid: node.name for node in view.nodes}
    return {
        "name": view.legion,
        "state": view.state,
        "lord": names.get(view.lord) if view.lord else None,
        "lord_uuid": view.lord or None,
        "votes": view.votes,
        "quorum": view.quorum,
        "lease": seconds(max(0, view.until - now)) if view.until else None,
        "note": view.note or None,
        "left_out": view.left_out,
        "nodes": [
            {
                "name": node.name,
                "valor": node.valor,
                "uuid": node.uuid,
                "self": index == 0,
                "lord": node.lord,
                "seen": seconds(max(0, now - node.seen)) if node.seen else None,
                "vote": names.get(node.vote, node.vote or None),
                "scroll": node.scroll or None,
                "kind": node.peer,
            }
            for index, node in enumerate(view.nodes)
        ],
    }


def failure_text(note: Note | None) -> str | None:
    """Return why the last start failed, in a line; None: it did not."""
    return None if note is None else report.format_note(note)


# Waiting.


def has_come(goal: str, state: State, past: RunId | None, begun: RunId) -> bool:
    """Return whether a daemon is where somebody waits for it to be.

    Args:
        goal: one of `GOALS`.
        state: where it is.
        past: the last life that does not count; None: all count.
        begun: the life that it had when the waiting began.
    """
    if goal == STOPPED:
        return isinstance(state, Down | Over)
    run = run_of(state)
    if goal == EXITED:
        is_over = isinstance(state, Down | Over | Backoff) or (
            isinstance(state, Stopping) and state.main_gone
        )
        ended = run if is_over else run - 1
        return ended >= (begun if past is None else past + 1)
    if past is not None and run <= past:
        return False
    if goal == READY and isinstance(state, Over):
        return state.outcome == "done"
    return isinstance(state, Up) and (goal == RUNNING or state.ready)


def cannot_come(goal: str, state: State) -> bool:
    """Return whether it does not get there by itself any more."""
    return goal in (RUNNING, READY) and isinstance(state, Over)


# Differences.

_KEYS = {"user": "uid", "group": "gid", "kind": "type", "name": "instance"}


def describe_changes(changes: Changes) -> dict[str, object]:
    """Return what differs between two configurations, as the protocol has it."""
    return {
        "added": list(changes.added),
        "removed": list(changes.removed),
        "changed": {
            name: [_KEYS.get(field, field) for field in fields] for name, fields in changes.changed
        },
        "master": [_KEYS.get(field, field) for field in changes.master],
    }
