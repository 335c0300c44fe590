"""The table of `status`: columns as wide as they need be, and what each state looks like."""

from __future__ import annotations

from lowsuper.ctl.screen import DIM, GREEN, RED, YELLOW, clean, paint
from lowsuper.units import SECOND, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowsuper.client import Daemon, Exit

HEADS = ("NAME", "STATE", "PID", "UPTIME", "RESTARTS", "LAST EXIT", "DOMAIN", "MEMORY", "NOTE")
RIGHT = frozenset(("PID", "UPTIME", "RESTARTS", "MEMORY"))
COLORS = {
    "running": GREEN,
    "ready": GREEN,
    "done": GREEN,
    "stopped": DIM,
    "failed": RED,
}
NOTHING = "-"
_STATE = HEADS.index("STATE")


def format_seconds(seconds: float) -> str:
    """Return a length of time, as in `format_duration`."""
    return format_duration(int(max(0.0, seconds) * SECOND))


def format_uptime(seconds: float) -> str:
    """Return how long something has run, in whole seconds."""
    return format_duration(int(max(0.0, seconds)) * SECOND) if seconds >= 1 else "0 s"


def format_size(size: int | None) -> str:
    """Return a number of bytes as people write it: `812K`, `3.4M`, `12G`."""
    if size is None:
        return NOTHING
    amount, unit = size / 1024, "K"
    for larger in "MGT":
        if amount < 999.5:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f}{unit}" if amount < 9.95 and unit != "K" else f"{amount:.0f}{unit}"


def format_exit(last: Exit | None, now: float) -> str:
    """Return how the last life ended in a few words: `exit 3, 5 s ago`."""
    if last is None:
        return NOTHING
    if last.signal:
        words = str(last.signal) if isinstance(last.signal, str) else f"signal {last.signal}"
    elif last.code is not None:
        words = f"exit {last.code}"
    else:
        words = "unknown"
    if last.oom:
        words += " (out of memory)"
    elif last.core:
        words += " (core)"
    return (
        words if last.monotonic is None else f"{words}, {format_uptime(now - last.monotonic)} ago"
    )


def describe_note(daemon: Daemon, now: float) -> str:
    """Return what is worth to be said besides: when it is tried again, what it says of itself."""
    if daemon.next_try is not None:
        return f"next try in {format_uptime(daemon.next_try - now + 0.999)}"
    if daemon.status_text:
        return clean(daemon.status_text)
    if daemon.state in _QUIET:
        return ""
    return clean(daemon.words) if daemon.words != daemon.state else ""


_QUIET = frozenset(("running", "ready", "stopped", "done"))


def build_rows(
    daemons: Sequence[Daemon], now: float, memory: Sequence[int | None]
) -> list[tuple[str, ...]]:
    """Return the cells of each daemon, as `HEADS` has them.

    Args:
        daemons: one for each row.
        now: CLOCK_MONOTONIC in seconds.
        memory: of each, in bytes.
    """
    rows: list[tuple[str, ...]] = []
    for daemon, size in zip(daemons, memory, strict=True):
        since = daemon.since if daemon.state in ("running", "ready", "stopping") else None
        rows.append(
            (
                clean(daemon.name),
                clean(daemon.state),
                str(daemon.pid) if daemon.pid else NOTHING,
                NOTHING if since is None else format_uptime(now - since),
                str(daemon.restarts),
                NOTHING if daemon.exit is None else format_exit(daemon.exit, now),
                daemon.kill_domain or NOTHING,
                format_size(size),
                describe_note(daemon, now),
            )
        )
    return rows


def format_table(
    rows: Sequence[tuple[str, ...]],
    heads: tuple[str, ...] = HEADS,
    *,
    color: bool = False,
    width: int = 0,
) -> str:
    """Return a table with a line of heads; columns at the end without any cell are left out.

    Args:
        rows: the cells of each row.
        heads: of the columns.
        color: paint the states.
        width: of the terminal, where lines that are too long are cut; 0: they are not.
    """
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(heads)
    while len(columns) > 1 and not any(columns[-1]):
        columns.pop()
    heads = heads[: len(columns)]
    parts = []
    for head, column in zip(heads, columns, strict=True):
        size = max(len(head), max(map(len, column), default=0))
        parts.append(f"{{:{'>' if head in RIGHT else '<'}{size}}}")
    shape = "  ".join(parts).format
    lines = [shape(*row).rstrip() for row in rows]  # which has no place for cells that are left out
    first = shape(*heads).rstrip()
    if width:
        lines = [line if len(line) <= width else f"{line[: width - 1]}~" for line in lines]
        first = first[:width]
    if color:
        first = paint(first, "1")
        lines = [_paint_state(line, row) for line, row in zip(lines, rows, strict=True)]
    return "\n".join((first, *lines)) + "\n"


def _paint_state(line: str, row: tuple[str, ...]) -> str:
    """Paint the state in a line that begins with the name."""
    state = row[_STATE]
    start = line.find(f" {state}", len(row[0])) + 1
    end = start + len(state)
    if not start or line[start:end] != state:
        return line
    return f"{line[:start]}{paint(state, COLORS.get(state, YELLOW))}{line[end:]}"


def summarize(daemons: Sequence[Daemon]) -> str:
    """Return how many there are of each state: `5 daemons: 4 running, 1 backoff`."""
    counts: dict[str, int] = {}
    for daemon in daemons:
        counts[daemon.state] = counts.get(daemon.state, 0) + 1
    words = ", ".join(f"{count} {clean(state)}" for state, count in counts.items())
    total = f"{len(daemons)} daemon{'' if len(daemons) == 1 else 's'}"
    return f"{total}: {words}" if words else total
