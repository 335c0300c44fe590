"""The statistics of a master as others read them: in uWSGI's form, and as OpenMetrics. Pure.

A page is made of a head and of one part for each daemon, so that many daemons can be rendered a
few at a time. A part is kept as long as what it was made of is the same.
"""

from __future__ import annotations

from lowsuper.control import SCHEMA, VERSION, Place, describe_daemon, seconds
from lowsuper.machine import Backoff, Up
from lowsuper.record import Record
from lowsuper.wire import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from lowsuper.chronicle import Chronicle
    from lowsuper.machine import State
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns

    class Page(Protocol):
        """What is served at one address."""

        content_type: str
        for_all: bool  # scripts of any web page may read it, as in uWSGI

        def add(self, view: View) -> None:
            """Take a daemon in."""

        def finish(self, instance: Instance) -> bytes:
            """Return the whole, and begin again."""


class View(Record):
    """All that is told of a daemon."""

    spec: DaemonSpec
    state: State
    chronicle: Chronicle | None
    place: Place

    @property
    def key(self) -> tuple[object, ...]:
        """What the part of a daemon depends on."""
        told = self.chronicle
        if told is None:
            return self.spec, self.state, self.place
        return (
            *(self.spec, self.state, self.place, told.restarts, told.exit),
            *(told.uid, told.gid, told.rung),
        )


class Instance(Record):
    """All that is told of the master."""

    name: str
    pid: int
    uid: int
    gid: int
    cwd: str
    files: tuple[str, ...]
    phase: str
    since: Ns
    now: Ns  # CLOCK_MONOTONIC
    time: Ns  # CLOCK_REALTIME


class Parts:
    """The parts of daemons that were made before."""

    __slots__ = ("_before", "_made")

    def __init__(self) -> None:
        """Begin with none."""
        self._made: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {}
        self._before: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {}

    def find(self, view: View, key: tuple[object, ...]) -> tuple[str, ...] | None:
        """Return a part that still holds."""
        kept = self._before.get(view.spec.name)
        if kept is None or kept[0] != key:
            return None
        self._made[view.spec.name] = kept
        return kept[1]

    def keep(self, view: View, key: tuple[object, ...], part: tuple[str, ...]) -> tuple[str, ...]:
        """Keep a part, and return it."""
        self._made[view.spec.name] = key, part
        return part

    def turn(self) -> None:
        """Forget the daemons that did not come since the last time."""
        self._before, self._made = self._made, {}


class JsonPage:
    """uWSGI's JSON: `cmd`, `pid` and `respawns` are what it tells of a daemon, the rest is ours."""

    content_type = "application/json"
    for_all = True

    def __init__(self, *, minified: bool) -> None:
        """Begin without a daemon; with tabs and line feeds unless it is `minified`."""
        self._minified = minified
        self._parts = Parts()
        self._texts: list[str] = []

    def add(self, view: View) -> None:
        """Take a daemon in."""
        key = view.key
        part = self._parts.find(view, key)
        if part is None:
            told = describe_daemon(view.spec, view.state, view.chronicle, view.place)
            command = told.pop("command")
            restarts, pid = told.pop("restarts"), told.pop("pid")
            respawns = restarts_done(view)
            fields = {"cmd": command, "pid": pid or 0, "respawns": respawns, "restarts": restarts}
            part = self._parts.keep(view, key, (self._format({**fields, **told}, 2),))
        self._texts += part

    def finish(self, instance: Instance) -> bytes:
        """Return the whole, and begin again."""
        texts, self._texts = self._texts, []
        self._parts.turn()
        head = {
            "version": VERSION,
            "listen_queue": 0,
            "listen_queue_errors": 0,
            "signal_queue": 0,
            "load": 0,
            "pid": instance.pid,
            "uid": instance.uid,
            "gid": instance.gid,
            "cwd": instance.cwd,
            "daemons": [],
            "locks": [],
            "sockets": [],
            "workers": [],
            "lowsuper": {
                "schema": SCHEMA,
                "name": instance.name,
                "version": VERSION,
                "files": list(instance.files),
                "phase": instance.phase,
                "since": seconds(instance.since),
                "monotonic": seconds(instance.now),
                "time": seconds(instance.time),
            },
        }
        whole = self._format(head, 0)
        if texts:
            # A text in JSON holds no quotation mark that is not escaped: it is the key.
            before, after = whole.split('"daemons":[]', 1)
            if self._minified:
                whole = f'{before}"daemons":[{",".join(texts)}]{after}'
            else:
                items = ",\n\t\t".join(texts)
                whole = f'{before}"daemons":[\n\t\t{items}\n\t]{after}'
        return whole.encode()

    def _format(self, fields: dict[str, object], depth: int) -> str:
        if self._minified:
            return encode(fields)
        inner = "\n" + "\t" * (depth + 1)
        items = f",{inner}".join(f"{encode(key)}:{encode(value)}" for key, value in fields.items())
        return f"{{{inner}{items}\n{depth * chr(9)}}}"


_FAMILIES = (
    ("lowsuper_daemon_up", "gauge", "Whether the daemon runs."),
    ("lowsuper_daemon_ready", "gauge", "Whether the daemon is ready."),
    ("lowsuper_daemon_failed", "gauge", "Whether the daemon was given up."),
    ("lowsuper_daemon_restarts", "counter", "Restarts that nobody asked for."),
    ("lowsuper_daemon_last_exit_code", "gauge", "Code of the last exit; 128 and the signal."),
)
_SINCE = "lowsuper_daemon_start_time_seconds", "gauge", "When the daemon was started."


class MetricsPage:
    """OpenMetrics 1.0, which Prometheus reads."""

    content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    for_all = False

    def __init__(self) -> None:
        """Begin without a daemon."""
        self._parts = Parts()
        self._lines: tuple[list[str], ...] = tuple([] for _ in _FAMILIES)
        self._since: list[tuple[str, Ns]] = []

    def add(self, view: View) -> None:
        """Take a daemon in."""
        key = view.key
        part = self._parts.find(view, key) or self._parts.keep(view, key, self._render(view))
        for lines, line in zip(self._lines, part, strict=True):
            if line:
                lines.append(line)
        state = view.state
        if isinstance(state, Up):
            self._since.append((view.spec.name, state.since))

    def _render(self, view: View) -> tuple[str, ...]:
        told = describe_daemon(view.spec, view.state, view.chronicle, view.place)
        last = view.chronicle.exit if view.chronicle is not None else None
        status = None if last is None else last.status
        code = None
        if status is not None:
            code = 128 + (status & 0x7F) if status & 0x7F else (status >> 8) & 0xFF
        values = (
            int(isinstance(view.state, Up)),
            int(bool(told["ready"])),
            int(told["state"] == "failed"),
            restarts_done(view),
            code,
        )
        label = quote_label(view.spec.name)
        return tuple(
            ""
            if value is None
            else f'{name}{"_total" if kind == "counter" else ""}{{daemon="{label}"}} {value}\n'
            for (name, kind, _), value in zip(_FAMILIES, values, strict=True)
        )

    def finish(self, instance: Instance) -> bytes:
        """Return the whole, and begin again."""
        lines, self._lines = self._lines, tuple([] for _ in _FAMILIES)
        begun, self._since = self._since, []
        self._parts.turn()
        wall = instance.time - instance.now
        name = quote_label(instance.name)
        out = [
            "# TYPE lowsuper info\n# HELP lowsuper The master.\n",
            f'lowsuper_info{{name="{name}",version="{VERSION}"}} 1\n',
        ]
        for (family, kind, text), items in zip(_FAMILIES, lines, strict=True):
            out += (f"# TYPE {family} {kind}\n# HELP {family} {text}\n", *items)
        family, kind, text = _SINCE
        out.append(f"# TYPE {family} {kind}\n# UNIT {family} seconds\n# HELP {family} {text}\n")
        out += [
            f'{family}{{daemon="{quote_label(daemon)}"}} {seconds(wall + since):.3f}\n'
            for daemon, since in begun
        ]
        out.append("# EOF\n")
        return "".join(out).encode("utf-8", "replace")


def restarts_done(view: View) -> int:
    """Return how often a daemon was started again: one that still waits for that was not yet."""
    decided = 0 if view.chronicle is None else view.chronicle.restarts
    return max(0, decided - isinstance(view.state, Backoff))


def quote_label(text: str) -> str:
    """Return a text as it stands between the quotation marks of a label."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
