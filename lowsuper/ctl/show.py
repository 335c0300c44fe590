"""The verbs that look: nothing here changes anything."""

from __future__ import annotations

from lowsuper.ctl import (
    STATUS_DEAD_WITH_PIDFILE,
    STATUS_NOT_RUNNING,
    UsageError,
    screen,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from lowsuper.client import Daemon, Reasons
    from lowsuper.ctl import Call

MANY = 200
"""With more daemons than that, reading files about each takes longer than all the rest."""


# status, list


def status(call: Call) -> int:
    """Print the table; the exit code is about the daemons if there are names."""
    import gc

    gc.disable()  # it would look at thousands of objects, all of which are needed
    if call.has("watch"):
        from lowsuper.ctl.watch import watch

        return watch(call)
    with call.connect() as master:
        answer = master.request("status", names=call.names or None)
    text, daemons = render_status(call, answer, is_seen=master.sees(answer.get("instance")))
    if not call.has("quiet"):
        screen.write(text)
    return judge(daemons) if call.names else 0


def render_status(call: Call, answer: dict[str, Any], *, is_seen: bool) -> tuple[str, list[Daemon]]:
    """Return the answer to `status` as it is printed, and the daemons in it.

    Args:
        call: what was typed.
        answer: of the master.
        is_seen: the pids in it are those that we see.
    """
    from lowsuper.client import Daemon
    from lowsuper.ctl.procs import Memory

    memory = Memory(is_seen=is_seen)
    if call.has("json"):
        daemons = [Daemon(dict(fields)) for fields in answer["daemons"]]
        for fields, size in zip(answer["daemons"], memory.read(daemons), strict=True):
            fields["memory"] = size
        from lowsuper import wire

        return wire.encode(answer) + "\n", daemons
    from lowsuper.ctl import table

    daemons = [Daemon(fields) for fields in answer["daemons"]]
    is_cheap = len(daemons) <= MANY or screen.is_terminal() or call.has("memory")
    sizes = memory.read(daemons) if is_cheap else [None] * len(daemons)
    rows = table.build_rows(daemons, answer["monotonic"], sizes)
    color = screen.wants_color(call.options.get("color", "auto"))
    return table.format_table(rows, color=color, width=screen.width()), daemons


def judge(daemons: Iterable[Daemon]) -> int:
    """Return the exit code of `status NAME...`: 0, or that of the first that does not run."""
    from os.path import lexists

    for daemon in daemons:
        if daemon.is_active or daemon.state == "done":
            continue
        if daemon.state in ("stopped", "failed") and daemon.pidfile and lexists(daemon.pidfile):
            return STATUS_DEAD_WITH_PIDFILE
        return STATUS_NOT_RUNNING
    return 0


def names(call: Call) -> int:
    """Print the names, one a line."""
    with call.connect() as master:
        answer = master.request("status", names=call.names or None)
    found = [fields["name"] for fields in answer["daemons"]]
    if call.has("json"):
        put_json({"names": found})
    else:
        screen.write("".join(f"{screen.clean(name)}\n" for name in found))
    return 0


# is-active, is-ready, is-failed


def is_active(call: Call) -> int:
    """Say whether all of them run."""
    return _ask(call, lambda daemon: daemon.is_active, all)


def is_ready(call: Call) -> int:
    """Say whether all of them are ready."""
    return _ask(call, lambda daemon: bool(daemon.ready), all)


def is_failed(call: Call) -> int:
    """Say whether one of them was given up."""
    return _ask(call, lambda daemon: daemon.state == "failed", any)


def _ask(
    call: Call, question: Callable[[Daemon], bool], combine: Callable[[Iterable[bool]], bool]
) -> int:
    with call.connect() as master:
        daemons = master.status(call.names).values()
    if call.has("json"):
        put_json({"states": {daemon.name: daemon.state for daemon in daemons}})
    elif not call.has("quiet"):
        screen.write("".join(f"{screen.clean(daemon.state)}\n" for daemon in daemons))
    return 0 if combine(map(question, daemons)) else STATUS_NOT_RUNNING


# why


def why(call: Call) -> int:
    """Print one screen about a daemon."""
    with call.connect() as master:
        if call.has("json"):
            line = master.request_line("why", name=call.names[0])
            master.parse(line)
            screen.write(line + "\n")
            return 0
        reasons = master.why(call.names[0])
    from time import CLOCK_MONOTONIC, clock_gettime

    now = clock_gettime(CLOCK_MONOTONIC)
    color = screen.wants_color(call.options.get("color", "auto"))
    screen.write(format_why(reasons, now, color=color))
    return 0


def format_why(reasons: Reasons, now: float, *, color: bool = False) -> str:
    """Return what is known of a daemon, as one screen."""
    from lowsuper.ctl.table import COLORS

    state = screen.clean(reasons.state)
    if color:
        state = screen.paint(state, COLORS.get(reasons.state, screen.YELLOW))
    lines = [f"{screen.clean(reasons.name)}: {state} ({screen.clean(reasons.words)})"]
    lines += [f"  {head:<12} {text}" for head, text in _why_rows(reasons, now) if text]
    if reasons.history:
        lines += ["", "What happened"]
        lines += [
            f"  {_ago(note.get('monotonic'), now):>16}  {screen.clean(str(note.get('line', '')))}"
            for note in reasons.history
        ]
    if reasons.lines:
        lines += ["", "The last lines that it wrote"]
        lines += [f"  {screen.clean_line(line)}" for line in reasons.lines]
    return "\n".join(lines) + "\n"


def _ago(moment: float | None, now: float) -> str:
    from lowsuper.ctl.table import format_uptime

    if moment is None:
        return ""
    return f"{format_uptime(now - moment)} ago" if now - moment >= 1 else "just now"


def _why_rows(reasons: Reasons, now: float) -> list[tuple[str, str]]:
    from lowsuper.ctl.table import format_seconds

    last, next_try = "", ""
    if (ended := reasons.exit) is not None:
        last = ended.status
        if ended.after is not None:
            last += f" after {format_seconds(ended.after)}"
        last += ", killed for lack of memory" if ended.oom else ""
        last += ", core dumped" if ended.core and "core" not in ended.status else ""
        ago = _ago(ended.monotonic, now)
        last += f", {ago}" if ago else ""
    if reasons.next_try is not None:
        next_try = f"in {format_seconds(reasons.next_try - now)}"
    process = "" if not reasons.pid else f"pid {reasons.pid}, uid {reasons.uid}, gid {reasons.gid}"
    domain = reasons.kill_domain or ""
    rows = [
        ("command", reasons.command),
        ("process", process),
        ("kill domain", f"{domain}, {reasons.leaf}" if reasons.leaf else domain),
        ("pidfile", reasons.pidfile or ""),
        ("says", reasons.status_text or ""),
        ("restarts", str(reasons.restarts)),
        ("last exit", last),
        ("failure", reasons.failure or ""),
        ("next try", next_try),
        ("decision", reasons.decision),
        ("output", "" if reasons.lines else reasons.no_lines or ""),
    ]
    return [(head, screen.clean(text)) for head, text in rows]


# logs, events


def logs(call: Call) -> int:
    """Print the last lines that a daemon wrote, and with --follow those to come."""
    count = call.options.get("lines")
    if count is not None and not (count.isascii() and count.isdigit()):
        raise UsageError(f"--lines {count}: is not a number")
    lines = None if count is None else int(count)
    with call.connect() as master:
        if call.has("follow"):
            name = call.names[0]
            for line in master.stream_lines(
                "logs", end=call.end, name=name, lines=lines, follow=True
            ):
                _put_lines(call, line, master.parse(line))
            return 0
        line = master.request_line("logs", name=call.names[0], lines=lines)
        _put_lines(call, line, master.parse(line))
    return 0


def _put_lines(call: Call, line: str, answer: dict[str, Any]) -> None:
    if call.has("json"):
        screen.write(line + "\n")
        return
    found = answer.get("lines")
    if found is None:
        found = [answer["line"]] if "line" in answer else []
    # The daemon's own bytes: only a terminal must be spared.
    treat = screen.clean_line if screen.is_terminal() else str
    screen.write("".join(f"{treat(each)}\n" for each in found))


def events(call: Call) -> int:
    """Print what happens, one JSON object a line, until the master ends."""
    with call.connect() as master:
        for line in master.listen(call.names, end=call.end):
            screen.write(line + "\n")
    return 0


# wait


def wait(call: Call) -> int:
    """Wait until daemons have come to a state."""
    states = [each for each in ("running", "ready", "stopped", "exited") if call.has(each)]
    if len(states) > 1:
        raise UsageError(f"--{states[0]} or --{states[1]}, but not both")
    with call.connect() as master:
        found = master.wait(call.names, states[0] if states else "ready", timeout=call.timeout)
    put_daemons(call, found.values())
    return 0


def put_daemons(call: Call, daemons: Iterable[Daemon]) -> None:
    """Print a line for each daemon, or all as JSON."""
    if call.has("quiet"):
        return
    if call.has("json"):
        put_json({"daemons": [fields_of(daemon) for daemon in daemons]})
        return
    screen.write("".join(f"{screen.clean(_line_of(each))}\n" for each in daemons))


def _line_of(daemon: Daemon) -> str:
    who = f", pid {daemon.pid}" if daemon.pid else ""
    return f"{daemon.name}: {daemon.words}{who}"


def fields_of(daemon: Daemon) -> dict[str, object]:
    """Return a daemon as the JSON object that it was."""
    fields = dict(vars(daemon))
    if daemon.exit is not None:
        fields["exit"] = vars(daemon.exit)
    return fields


def put_json(fields: dict[str, object]) -> None:
    """Print one object as the answer to a verb."""
    from lowsuper import wire

    screen.write(wire.encode({"schema": 1, "ok": True, **fields}) + "\n")


# instances


def instances(call: Call) -> int:
    """Print the masters that run."""
    from lowsuper.client import ClientError, list_instances

    found = list_instances()
    if call.has("json"):
        keys = ("name", "pid", "file", "socket")
        put_json({"instances": [{key: getattr(each, key) for key in keys} for each in found]})
        return 0
    from lowsuper.ctl.table import format_table

    rows = []
    for each in found:
        try:
            phase = _ask_phase(each.socket, each.name)
        except ClientError as error:
            phase = error.code
        rows.append((each.name, str(each.pid or "-"), phase, each.file or "-"))
    if rows:
        screen.write(format_table(rows, ("NAME", "PID", "PHASE", "FILE")))
    return 0


def _ask_phase(socket: str, name: str) -> str:
    from lowsuper.client import Client

    if not socket:
        return "no socket"
    with Client(socket, name) as master:
        return str(master.hello().get("phase", "-"))
