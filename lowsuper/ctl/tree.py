"""`lowsuper tree`: the processes of each daemon, and zombies with the parent that does not wait."""

from __future__ import annotations

from lowsuper.ctl import screen
from lowsuper.ctl.procs import members, read_process, read_processes
from lowsuper.ctl.table import COLORS, format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.client import Daemon
    from lowsuper.ctl import Call
    from lowsuper.ctl.procs import Process

STATES = {
    "R": "running",
    "D": "in an uninterruptible call",
    "T": "stopped by a signal",
    "t": "stopped by a tracer",
    "Z": "a zombie",
}
"""The states worth a word; sleeping is not."""

PLACE = "another pid namespace"


def show(call: Call) -> int:
    """Print the processes of each daemon."""
    with call.connect() as master:
        daemons = master.status(call.names)
        instance = master.hello()
        is_seen = master.sees(instance)
    found = {
        name: read_processes(members(each)) if is_seen else {} for name, each in daemons.items()
    }
    if call.has("json"):
        from lowsuper import wire

        trees = [
            {"name": name, "processes": [_fields(each) for each in processes.values()]}
            for name, processes in found.items()
        ]
        screen.write(wire.encode({"schema": 1, "ok": True, "daemons": trees}) + "\n")
        return 0
    if not is_seen:
        place, hint = ("a jail", ": lowsuper enter") if instance.get("jail") else (PLACE, "")
        screen.write(f"the processes in {place} are seen from there{hint}\n")
    color = screen.wants_color(call.options.get("color", "auto"))
    limit = screen.width() if screen.is_terminal() else 0
    lines: list[str] = []
    for name, daemon in daemons.items():
        lines += format_tree(daemon, found[name], color=color, width=limit)
    screen.write("".join(f"{line}\n" for line in lines))
    return 0


def _fields(process: Process) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(process, name) for name in process.__match_args__}
    if process.state == "Z":
        parent = read_process(process.parent)
        fields["parent_name"] = parent.name if parent else None
    return fields


def format_tree(
    daemon: Daemon, processes: dict[int, Process], *, color: bool = False, width: int = 0
) -> list[str]:
    """Return the lines for one daemon.

    Args:
        daemon: what the processes belong to.
        processes: by pid.
        color: paint the state.
        width: of the terminal, where lines are cut; 0: they are not.
    """
    state = daemon.state
    if color:
        state = screen.paint(state, COLORS.get(state, screen.YELLOW))
    lines = [f"{screen.clean(daemon.name)}  {state}"]
    roots = [each for each in processes.values() if each.parent not in processes]
    below: dict[int, list[Process]] = {}
    for each in processes.values():
        below.setdefault(each.parent, []).append(each)
    # Not by recursion: a daemon may nest its processes as deep as it likes.
    ahead = [(each, "", each is roots[-1]) for each in reversed(roots)]
    while ahead:
        process, indent, is_last = ahead.pop()
        line = f"{indent}{'`-' if is_last else '|-'} {_describe(process, processes)}"
        lines.append(line if not width or len(line) <= width else f"{line[: width - 1]}~")
        inner = indent + ("   " if is_last else "|  ")
        nested = below.get(process.pid, [])
        ahead += [(each, inner, each is nested[-1]) for each in reversed(nested)]
    return lines


def _describe(process: Process, processes: dict[int, Process]) -> str:
    if process.state == "Z":
        parent = processes.get(process.parent) or read_process(process.parent)
        who = f"{screen.clean(parent.name)} ({parent.pid})" if parent else f"pid {process.parent}"
        name = screen.clean(process.name)
        return f"{process.pid} {name}: zombie, its parent {who} does not wait for it"
    words = f"{process.pid} {screen.clean(process.command)}"
    state = STATES.get(process.state, "") if process.state != "R" else ""
    if state and process.waits_in:
        state += f" ({process.waits_in})"
    notes = ", ".join(text for text in (format_size(process.memory), state) if text != "-" and text)
    return f"{words}  [{notes}]" if notes else words
