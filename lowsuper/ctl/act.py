"""The verbs that change something, and what they say about it."""

from __future__ import annotations

from lowsuper.ctl import UsageError, screen
from lowsuper.ctl.show import put_daemons, put_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lowsuper.client import Client
    from lowsuper.ctl import Call

_AT_REST = frozenset(("stopped", "failed", "done", "backoff", "waiting"))


# Daemons


def start(call: Call) -> int:
    """Start daemons."""
    return _bring_up(call, lambda master: master.start)


def restart(call: Call) -> int:
    """Stop daemons, and start them."""
    return _bring_up(call, lambda master: master.restart)


def try_restart(call: Call) -> int:
    """Restart those that run."""
    return _bring_up(call, lambda master: master.try_restart)


def stop(call: Call) -> int:
    """Stop daemons."""
    return _bring_up(call, lambda master: master.stop)


def _bring_up(call: Call, choose: Callable[[Client], Callable[..., None]]) -> int:
    with call.connect() as master:
        choose(master)(call.names, wait=not call.has("no-block"), timeout=call.timeout)
        if not call.has("quiet"):
            put_daemons(call, master.status(call.names).values())
    return 0


def signal(call: Call) -> int:
    """Send a signal: `signal HUP web`, `signal web HUP`, `signal -HUP web`, `signal -s HUP web`."""
    word, names = call.options.get("signal"), list(call.names)
    if word is None:
        word, names = _find_signal(names)
    if call.has("all"):
        if names:
            raise UsageError("signal: names, or --all, but not both")
        names = ["*"]
    if not names:
        raise UsageError("signal needs names: lowsuper signal SIGNAL NAME...")
    _require_signal(word)
    with call.connect() as master:
        _on_running(master, names, lambda: master.signal(names, word))
    return _done(call, {"names": names})


def _find_signal(words: list[str]) -> tuple[str, list[str]]:
    """Part the words into the signal, which is the first or else the last, and the names."""
    for word, names in ((words[0], words[1:]), (words[-1], words[:-1])):
        try:
            _require_signal(word)
        except UsageError:
            continue
        return word, names
    return words[0], words[1:]


def _require_signal(word: str) -> None:
    from lowsuper.units import parse_signal

    try:
        parse_signal(word)
    except ValueError as error:
        raise UsageError(f"signal: {word}: {error}") from None


def _on_running(master: Client, names: list[str], ask: Callable[[], None]) -> None:
    """Ask for what only running daemons can do; say so if that is why it is not possible."""
    from lowsuper.client import ClientError

    try:
        ask()
    except ClientError as error:
        if error.code != "not-possible":
            raise
        if any(each.state in _AT_REST for each in master.status(names).values()):
            raise ClientError("not-running", error.message, error.answer) from None
        raise


def reset(call: Call) -> int:
    """Forget the failures of daemons; without names of all."""
    with call.connect() as master:
        master.reset_failed(call.names or "*")
    return _done(call, {"names": list(call.names)})


def adopt(call: Call) -> int:
    """Take a process for a smart daemon: NAME PID."""
    if len(call.names) != 2 or not call.names[1].isdecimal():
        raise UsageError("adopt takes a name and a pid: lowsuper adopt NAME PID")
    name, pid = call.names[0], int(call.names[1])
    with call.connect() as master:
        master.adopt(name, pid)
        if not call.has("quiet"):
            put_daemons(call, master.status(name).values())
    return 0


# The master


def reload(call: Call) -> int:
    """Have the master read its configuration again, or daemons theirs."""
    from lowsuper.client import ClientError

    with call.connect() as master:
        if call.names:
            _on_running(master, list(call.names), lambda: master.reload(call.names))
            return _done(call, {"names": list(call.names)})
        changes: dict[str, Any] = {}
        try:
            changes = master.diff()
        except ClientError as error:
            if error.code not in ("unknown-verb", "not-possible", "failed"):
                raise  # the reload itself says what is wrong with the files
        if changes and not call.has("json") and not call.has("quiet"):
            screen.write(format_changes(changes))
        master.reload()
    return _done(call, {"changes": changes} if changes else {})


def diff(call: Call) -> int:
    """Print what a reload would change."""
    with call.connect() as master:
        changes = master.diff()
    if call.has("json"):
        put_json({"changes": changes})
    elif not call.has("quiet"):
        color = screen.wants_color(call.options.get("color", "auto"))
        screen.write(format_changes(changes, color=color))
    return 0


def apply(call: Call) -> int:
    """Change what differs, and leave the rest running."""
    with call.connect() as master:
        answer = master.apply()
    if call.has("json"):
        put_json({name: answer[name] for name in answer if name not in ("schema", "ok")})
    elif not call.has("quiet"):
        color = screen.wants_color(call.options.get("color", "auto"))
        screen.write(format_changes(answer.get("changes", {}), color=color))
    return 0


def format_changes(changes: dict[str, Any], *, color: bool = False) -> str:
    """Return the differences between what runs and what the files say, one a line."""
    rows = [("+", name, "", screen.GREEN) for name in changes.get("added", ())]
    rows += [("-", name, "", screen.RED) for name in changes.get("removed", ())]
    changed = changes.get("changed") or {}
    rows += [("~", name, ", ".join(keys), screen.YELLOW) for name, keys in changed.items()]
    if changes.get("master"):
        rows.append(("~", "(master)", ", ".join(changes["master"]), screen.YELLOW))
    if not rows:
        return "nothing differs\n"
    width = max(len(name) for _, name, _, _ in rows)
    lines = []
    for mark, name, keys, tint in rows:
        line = f"{mark} {screen.clean(name):<{width}}  {screen.clean(keys)}".rstrip()
        lines.append(screen.paint(line, tint) if color else line)
    return "\n".join(lines) + "\n"


def shutdown(call: Call) -> int:
    """Stop everything; say on whom it waits."""
    from lowsuper.client import WaitTimeoutError

    with call.connect() as master:
        if call.has("no-block"):
            master.shutdown(kill=call.has("kill"), wait=False)
            return _done(call, {})
        teller = _Teller(call, is_seen=master.sees(master.hello()))
        try:
            for answer in master.watch_shutdown(kill=call.has("kill"), end=call.end):
                teller.take(answer)
        except WaitTimeoutError:
            words = "; ".join(teller.waiting) or "it has not ended"
            raise WaitTimeoutError("timeout", f"after {call.timeout:g} s: {words}") from None
    return _done(call, {})


class _Teller:
    """Says on whom a shutdown waits: once for each, and again when it takes long."""

    PAUSE = 1.0  # seconds between two lines about the same ones
    GRACE = 0.3  # seconds that are not worth a line

    def __init__(self, call: Call, *, is_seen: bool) -> None:
        from time import monotonic

        self._call, self._begin = call, monotonic()
        self._is_seen = is_seen  # the pids are those that we see
        self._names: list[str] = []
        self._last = 0.0
        self.waiting: list[str] = []

    def take(self, answer: dict[str, Any]) -> None:
        """Take one line of the stream."""
        from time import monotonic

        found = answer.get("waiting")
        if found is None:
            return
        self.waiting = [describe_waiting(each, is_seen=self._is_seen) for each in found]
        names = [str(each.get("name")) for each in found]
        if self._call.has("json"):
            from lowsuper import wire

            screen.write(wire.encode({"schema": 1, "waiting": found}) + "\n")
            return
        longest = max((float(each.get("seconds") or 0) for each in found), default=0.0)
        longest = max(longest, monotonic() - self._begin)
        is_old = names == self._names and monotonic() - self._last < self.PAUSE
        if self._call.has("quiet") or not names or is_old or longest < self.GRACE:
            return
        self._names, self._last = names, monotonic()
        screen.write("".join(f"{line}\n" for line in self.waiting))


def describe_waiting(fields: dict[str, Any], *, is_seen: bool) -> str:
    """Return on whom the master waits, for how long, and what that process does.

    Args:
        fields: as the master tells them.
        is_seen: the pid is one that we see.
    """
    from lowsuper.ctl.procs import read_process
    from lowsuper.ctl.table import format_seconds
    from lowsuper.ctl.tree import STATES

    pid, state = fields.get("pid"), str(fields.get("process_state") or "")
    words = f"waiting for {screen.clean(str(fields.get('name')))}"
    if pid:
        words += f", pid {pid}"
    words += f", for {format_seconds(fields.get('seconds') or 0)}"
    if state in STATES and state != "R":
        words += f": it is {STATES[state]}"
        process = read_process(pid) if is_seen and state == "D" and pid else None
        if process is not None and process.waits_in:
            words += f" ({process.waits_in})"
    return words


def _done(call: Call, fields: dict[str, object]) -> int:
    if call.has("json"):
        put_json(fields)
    return 0
