"""What is answered at the control socket: one job for each verb of the protocol.

A job is a generator that gives its answer piece by piece, none of which takes long; what has to be
waited for parks it until somebody wakes it. Rule: whatever belongs to a connection ends with its
job, so a client that vanishes leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns, time

from lowsuper import changes, control, report
from lowsuper.control import (
    ASKED,
    BAD_REQUEST,
    FAILED,
    MOST_LINES,
    NOT_PERMITTED,
    NOT_POSSIBLE,
    STOPPED,
    TIMEOUT,
    UNKNOWN_NAME,
    Place,
    Request,
    RequestError,
    answer,
    quote,
    refusal,
    seconds,
)
from lowsuper.errors import ConfigError, LowsuperError, PlanError, WordError
from lowsuper.events import Asked
from lowsuper.kernel.aside import Asides, late
from lowsuper.kernel.control import KEY, LATER, PARK
from lowsuper.machine import Awaiting, Backoff, Down, Looking, Over, Stopping, Up
from lowsuper.master import ENDED, RUNNING, STOPPING, is_ready
from lowsuper.record import Record
from lowsuper.units import SECOND
from lowsuper.wire import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from typing import Protocol

    from lowsuper.changes import Changes
    from lowsuper.chronicle import Chronicle
    from lowsuper.events import Note
    from lowsuper.kernel.control import Connection, Job
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.tail import Follower
    from lowsuper.legion.words import View
    from lowsuper.machine import State
    from lowsuper.model import DaemonSpec, MasterSpec
    from lowsuper.supervisor import Supervisor
    from lowsuper.units import Ns, RunId

    class Realm(Protocol):
        """What the answers are about: the world of one master."""

        @property
        def chronicles(self) -> Mapping[str, Chronicle]:
            """Return what has become of each daemon."""

        def signal(self, name: str, run: RunId, signal: int, *, group: bool = True) -> None:
            """Send a signal to a daemon."""

        def tail(self, spec: DaemonSpec, lines: int) -> bytes:
            """Return the last lines of a daemon."""

        def follow(
            self, spec: DaemonSpec, wake: Callable[[], None], alone: Loop | None = None
        ) -> Follower:
            """Return what tells what a daemon writes from now on."""

        def leaf_of(self, name: str) -> str | None:
            """Return the directory of a daemon's cgroup."""

        def status_of(self, name: str) -> str | None:
            """Return what a daemon says of itself."""

        def preview(self) -> MasterSpec:
            """Read the configuration again, and change nothing."""

        def vouch(self, spec: DaemonSpec, pid: int, uid: int) -> Iterator[None]:
            """Take somebody's word for which process a smart daemon is."""

        def withdraw(self, name: str) -> None:
            """Forget that word."""

        @property
        def legions(self) -> Mapping[str, View]:
            """Return what is known of each legion."""


RENDERED = 8  # daemons in one piece that were not at hand
PIECE = 16 * 1024
LINES = 10  # of output, where nobody says how many
WHY_LINES = 20
SHORT: Ns = 3 * SECOND  # for these
KEPT = 2000  # events, for those who read them more slowly than they come
WAITING = 20  # daemons of one line about a shutdown
SPACING: Ns = SECOND // 5  # of these lines, when much happens; else they come each...
PERIOD: Ns = SECOND

_kinds: dict[type, tuple[str, frozenset[str]]] = {}


class Event:
    """Something that has happened, and its line once somebody wanted it."""

    __slots__ = ("at", "line", "name", "note")

    def __init__(self, at: Ns, name: str | None, note: Note | None, line: bytes) -> None:
        """Keep a note, or what is a line already."""
        self.at, self.name, self.note, self.line = at, name, note, line

    def render(self) -> bytes:
        """Return the line."""
        if not self.line and self.note is not None:
            self.line = render_note(self.note, self.at)
        return self.line


class Loading(Record):
    """What came of reading the configuration again."""

    changes: Changes | None  # None: it is wrong
    lines: list[str]  # that were said about it


class MasterAnswers:
    """Answers for a master, of which this is a part."""

    def __init__(
        self,
        loop: Loop,
        supervisor: Supervisor,
        realm: Realm,
        *,
        name: str,
        outside: int = 0,
    ) -> None:
        """Begin with nothing rendered.

        Args:
            loop: for what is limited in time.
            supervisor: takes what is asked for.
            realm: what can be known.
            name: of the instance.
            outside: the process outside of the jail that it is in; 0: it is in none.
        """
        self._loop, self._supervisor, self._realm = loop, supervisor, realm
        self._name, self._outside = name, outside
        self._asides = Asides(loop)
        self._rendered: dict[str, tuple[bool, str]] = {}
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._count = 0  # of all events
        self._streams: set[Connection] = set()
        self._loads: dict[Connection, list[Loading]] = {}
        self._waiters: dict[str, set[Connection]] = {}
        self._news: dict[Connection, set[str]] = {}  # names that have moved, for who waits
        self._watchers: set[Connection] = set()  # of a shutdown
        self._ends: dict[Connection, Callable[[], None]] = {}
        self._verbs: dict[str, Callable[[Request, Connection], Job]] = {
            "hello": self._hello,
            "status": self._status,
            "events": self._stream_events,
            "logs": self._logs,
            "wait": self._wait,
            "why": self._why,
            "signal": self._signal,
            "reload": self._reload,
            "diff": self._diff,
            "apply": self._apply,
            "adopt": self._adopt,
            "legion": self._legion,
            "shutdown": self._shutdown,
            **dict.fromkeys(ASKED, self._ask),
        }

    def begin(self, request: Request, connection: Connection) -> Job:
        """Return the job that answers a request."""
        verb = self._verbs.get(request.verb)
        if verb is None:
            raise RequestError(NOT_POSSIBLE, f"{request.verb} is not available in this version")
        return verb(request, connection)

    def pass_on(self, connection: object, peer: object, data: bytes) -> None:
        """Not be asked: a master answers all by itself."""
        raise AssertionError("there is nobody to pass on to")

    def ended(self, connection: Connection) -> None:
        """Take note that a connection is closed, or that its job is over."""
        self._streams.discard(connection)
        self._watchers.discard(connection)
        self._loads.pop(connection, None)
        for name in self._news.pop(connection, ()):
            self._unlisten(name, connection)
        self._loop.cancel_timer(_key(connection))
        end = self._ends.pop(connection, None)
        if end is not None:
            end()

    # What happens.

    def moved(self, name: str, state: State) -> None:
        """Take note that something of a daemon is not what it was."""
        self._rendered.pop(name, None)
        waiters = self._waiters.get(name)
        if waiters:
            for connection in waiters:
                self._news[connection].add(name)
                connection.wake()
        if self._streams:
            self._tell(name, None, self._render_state(name, state))
        for connection in self._watchers:
            connection.wake()

    def noted(self, name: str | None, note: Note) -> None:
        """Take note of what the operator is told; of a daemon, where there is a name."""
        if name is not None:
            self._rendered.pop(name, None)
        if self._streams:
            self._tell(name, note, b"")

    def loaded(self, spec: MasterSpec | None, lines: list[str]) -> None:
        """Take note that the configuration was read again, before it is in force.

        Args:
            spec: the new one; None: it is wrong.
            lines: what was said about it.
        """
        self._rendered.clear()
        if not self._loads:
            return
        differ = None if spec is None else self._compare(spec)
        for connection, results in self._loads.items():
            if not results:
                results.append(Loading(differ, lines))
            connection.wake()

    def _compare(self, spec: MasterSpec) -> Changes:
        return changes.compare(self._supervisor.spec, self._supervisor.specs, spec)

    def _tell(self, name: str | None, note: Note | None, line: bytes) -> None:
        self._events.append(Event(monotonic_ns(), name, note, line))
        self._count += 1
        for connection in self._streams:
            connection.wake()

    # What is known.

    def _render(self, name: str, spec: DaemonSpec, *, waiting: bool) -> str:
        """Return a daemon as JSON; mostly it is at hand."""
        made = self._rendered.get(name)
        if made is None or made[0] is not waiting:
            made = waiting, encode(self._describe(name, spec, waiting=waiting))
            self._rendered[name] = made
        return made[1]

    def _describe(self, name: str, spec: DaemonSpec, *, waiting: bool) -> dict[str, object]:
        place = Place(waiting, self._realm.leaf_of(name), self._realm.status_of(name))
        state = self._supervisor.states[name]
        return control.describe_daemon(spec, state, self._realm.chronicles.get(name), place)

    def _render_state(self, name: str, state: State) -> bytes:
        spec = self._supervisor.specs.get(name)
        if spec is None:
            return b""
        now = monotonic_ns()
        word = control.state_word(spec, state, waiting=name in self._supervisor.master.waiting)
        fields = {
            "schema": control.SCHEMA,
            "event": "state",
            "daemon": name,
            **stamp(now),
            "line": f"{name}: {word}",
            "state": word,
            "ready": isinstance(state, Up) and state.ready,
            "run": control.run_of(state),
            "pid": control.pid_of(state) or None,
        }
        return f"{encode(fields)}\n".encode()

    def _describe_instance(self) -> dict[str, object]:
        master = self._supervisor.master
        return {
            "name": self._name,
            "pid": self._outside or os.getpid(),
            "version": control.VERSION,
            "jail": self._outside != 0,
            "files": list(self._supervisor.spec.files),
            "phase": master.phase,
            "since": seconds(master.since),
        }

    def _require_running(self) -> None:
        if self._supervisor.master.phase in (STOPPING, ENDED):
            raise RequestError(NOT_POSSIBLE, "the master is stopping")

    # Verbs that ask.

    def _hello(self, _request: Request, _connection: Connection) -> Job:
        yield answer(instance=self._describe_instance(), **stamp(monotonic_ns()))

    def _status(self, request: Request, _connection: Connection) -> Job:
        specs = self._supervisor.specs
        names: list[str] = []
        for found in control.resolve_names(request.names or ("*",), specs):
            names += found
            yield b""
        head = {"schema": control.SCHEMA, "ok": True, **stamp(monotonic_ns())}
        head["instance"] = self._describe_instance()
        yield f'{encode(head)[:-1]},"daemons":['.encode()
        yield from self._daemons(names, specs)
        yield b"]}\n"

    def _daemons(self, names: Iterable[str], specs: Mapping[str, DaemonSpec]) -> Job:
        """Give daemons as the items of a JSON list."""
        waiting = frozenset(self._supervisor.master.waiting)
        states, rendered = self._supervisor.states, self._rendered
        parts: list[str] = []
        size = count = 0
        comma = ""
        for name in names:
            if name not in states:
                continue  # a reload has taken it away meanwhile
            count += name not in rendered
            parts.append(self._render(name, specs[name], waiting=name in waiting))
            size += len(parts[-1])
            if count >= RENDERED or size >= PIECE:
                yield (comma + ",".join(parts)).encode()
                comma, count, size = ",", 0, 0
                parts.clear()
        if parts:
            yield (comma + ",".join(parts)).encode()

    def _why(self, request: Request, connection: Connection) -> Job:
        name = request.name
        spec = self._supervisor.specs.get(name)
        if spec is None:
            for _ in control.resolve_names((name.replace("*", ""),), self._supervisor.specs):
                pass
            raise RequestError(BAD_REQUEST, f"why: {quote(name)} is not one daemon")
        lines, no_lines = yield from self._read_tail(spec, connection)
        if self._supervisor.specs.get(name) is not spec:
            raise RequestError(FAILED, f"{name} has just been configured anew; ask again")
        master, state = self._supervisor.master, self._supervisor.states[name]
        chronicle = self._realm.chronicles.get(name)
        now, today = monotonic_ns(), time()
        notes = [] if chronicle is None else list(chronicle.notes)
        failure = None if chronicle is None else control.failure_text(chronicle.failure)
        yield answer(
            **self._describe(name, spec, waiting=name in master.waiting),
            failure=failure,
            lines=lines,
            no_lines=no_lines,
            history=[
                {
                    "monotonic": seconds(at),
                    "time": round(today - (now - at) / SECOND, 6),
                    "line": report.format_note(note),
                }
                for at, note in notes
            ],
            decision=control.decide(
                spec,
                state,
                now,
                waiting=name in master.waiting,
                held=name in master.held,
                barred=spec.legion is not None and spec.legion not in master.lordships,
            ),
            **stamp(now),
        )

    def _read_tail(
        self, spec: DaemonSpec, connection: Connection
    ) -> Generator[bytes | int, None, tuple[list[str], str | None]]:
        """Return the last lines of a daemon, or why there are none to be had."""

        def read() -> bytes:
            try:
                return b"+" + self._realm.tail(spec, WHY_LINES)
            except LowsuperError as error:
                return b"-" + str(error).encode("utf-8", "surrogateescape")

        data: bytes | None = b""
        if is_in_file(spec):
            data = yield from self._asides.gather(connection, lambda _: iter((read(),)), SHORT)
        else:
            data = read()
        if not data:
            return [], f"{spec.name}: the log: {late(SHORT)}"
        if data.startswith(b"-"):
            return [], _decode(data[1:])
        return split_lines(data[1:]), None

    def _wait(self, request: Request, connection: Connection) -> Job:
        names = yield from self._resolve(request)
        states, past = self._supervisor.states, dict(request.past)
        rest = {name: control.run_of(states[name]) for name in names if name in states}
        deadline = None
        if request.timeout is not None:
            deadline = monotonic_ns() + request.timeout
            self._loop.set_timer(_key(connection), deadline, connection.wake)
        self._news[connection] = set(rest)
        try:
            yield from self._listen(rest, connection)
            while True:
                news, self._news[connection] = self._news[connection], set()
                for name in news:
                    self._look_whether_come(request, name, rest, past)
                    yield b""
                if not rest or (deadline is not None and monotonic_ns() >= deadline):
                    break
                yield PARK
        finally:
            for name in names:
                self._unlisten(name, connection)
            self._news.pop(connection, None)
            self._loop.cancel_timer(_key(connection))
        if rest:
            yield refusal(self._name_late(request, list(rest)))[:-2] + b',"daemons":['
        else:
            yield b'{"schema":1,"ok":true,"daemons":['
        yield from self._daemons(list(rest) or names, self._supervisor.specs)
        yield b"]}\n"

    def _listen(self, names: Iterable[str], connection: Connection) -> Job:
        """Tell a connection when something of these daemons is not what it was."""
        for number, name in enumerate(list(names)):
            self._waiters.setdefault(name, set()).add(connection)
            if number % 64 == 63:
                yield b""

    def _look_whether_come(
        self, request: Request, name: str, rest: dict[str, RunId], past: Mapping[str, RunId]
    ) -> None:
        """Take a daemon off those that are waited for, if it has come where it should."""
        if name not in rest:
            return
        state = self._supervisor.states.get(name)
        if state is None:
            if request.goal != STOPPED:
                raise RequestError(FAILED, f"{name} was taken out of the configuration")
            del rest[name]
        elif control.has_come(request.goal, state, past.get(name), rest[name]):
            del rest[name]
        elif control.cannot_come(request.goal, state):
            raise RequestError(FAILED, f"{name}: {control.describe(state)}")

    def _name_late(self, request: Request, rest: list[str]) -> RequestError:
        states = self._supervisor.states
        words = "; ".join(
            f"{name}: {control.describe(states[name])}" for name in rest[:10] if name in states
        )
        words += f"; and {len(rest) - 10} more" if len(rest) > 10 else ""
        return RequestError(TIMEOUT, f"not {request.goal} in time: {words}")

    def _unlisten(self, name: str, connection: Connection) -> None:
        waiters = self._waiters.get(name)
        if waiters is not None:
            waiters.discard(connection)
            if not waiters:
                del self._waiters[name]

    # Streams.

    def _stream_events(self, request: Request, connection: Connection) -> Job:
        wanted: set[str] = set()
        for found in control.resolve_names(request.names, self._supervisor.specs):
            wanted.update(found)
            yield b""
        at = self._count
        self._streams.add(connection)
        yield answer(**stamp(monotonic_ns()))
        while True:
            first = self._count - len(self._events)
            if at < first:
                lost = {"schema": control.SCHEMA, "event": "lost", "daemon": None}
                told = {**lost, **stamp(monotonic_ns()), "count": first - at}
                yield f"{encode(told)}\n".encode()
                at = first
                continue
            if at == self._count:
                yield PARK
                continue
            event = self._events[at - first]
            at += 1
            yield event.render() if not wanted or event.name in wanted else b""

    def _logs(self, request: Request, connection: Connection) -> Job:
        spec = self._supervisor.specs.get(request.name)
        if spec is None:
            raise RequestError(UNKNOWN_NAME, f"there is no daemon {quote(request.name)}")
        count = LINES if request.lines is None else min(request.lines, MOST_LINES)
        if not is_in_file(spec):
            follower = None
            if request.follow:
                follower = self._open(lambda: self._realm.follow(spec, connection.wake))
                self._ends[connection] = follower.close
            yield from self._give_output(spec, count, follower)
            return

        def work(loop: Loop) -> Job:
            follower = None
            if request.follow:
                follower = self._open(lambda: self._realm.follow(spec, _nothing, loop))
            yield from self._give_output(spec, count, follower)

        if request.follow:
            yield from self._asides.stream(connection, work)
        else:
            yield from self._asides.answer(connection, work)

    def _open(self, follow: Callable[[], Follower]) -> Follower:
        try:
            return follow()
        except LowsuperError as error:
            raise RequestError(NOT_POSSIBLE, str(error)) from None

    def _give_output(self, spec: DaemonSpec, count: int, follower: Follower | None) -> Job:
        """Give the last lines, and those to come where there is a follower."""
        try:
            data = self._realm.tail(spec, count)
        except LowsuperError as error:
            raise RequestError(NOT_POSSIBLE, str(error)) from None
        yield f'{{"schema":1,"ok":true,"name":{encode(spec.name)},"lines":['.encode()
        yield from _give_lines(data)
        yield b"]}\n"
        if follower is None:
            return
        partial, skipped = b"", 0
        while True:
            data = follower.read(PIECE)
            if follower.skipped > skipped:
                lost = {"schema": control.SCHEMA, "event": "lost", "bytes": follower.skipped}
                skipped = follower.skipped
                yield f"{encode(lost)}\n".encode()
            if not data:
                yield PARK
                continue
            *lines, partial = (partial + data).split(b"\n")
            if len(partial) > PIECE:
                lines.append(partial)
                partial = b""
            for start in range(0, len(lines), 64):
                texts = [_decode(line) for line in lines[start : start + 64]]
                yield f"{encode({'schema': 1, 'name': spec.name, 'lines': texts})}\n".encode()

    # Verbs that do.

    def _ask(self, request: Request, connection: Connection) -> Job:
        self._require_running()
        names = yield from self._resolve(request)
        if request.verb in ("start", "restart"):
            names = self._leave_out_barred(names)
        states = self._supervisor.states
        runs = {name: control.run_of(states[name]) for name in names if name in states}
        who = f"uid {connection.peer.uid}"
        self._supervisor.post(Asked(request.verb, tuple(names), who))
        yield LATER
        yield answer(names=names, runs=runs)

    def _leave_out_barred(self, names: list[str]) -> list[str]:
        """Return those of the daemons that may run on this node.

        Raises:
            RequestError: there are none.
        """
        specs, lordships = self._supervisor.specs, self._supervisor.master.lordships
        free = [name for name in names if specs[name].legion in (None, *lordships)]
        if names and not free:
            legion = specs[names[0]].legion
            text = f"{names[0]}: this node is not the lord of the legion {legion}"
            raise RequestError(NOT_POSSIBLE, text)
        return free

    def _resolve(self, request: Request) -> Generator[bytes, None, list[str]]:
        """Give nothing but time; return the names of daemons that are meant."""
        names: list[str] = []
        for found in control.resolve_names(request.names, self._supervisor.specs):
            names += found
            yield b""
        return names

    def _signal(self, request: Request, _connection: Connection) -> Job:
        names = yield from self._resolve(request)
        yield from self._send(names, lambda _: request.signal)
        yield answer(names=names)

    def _send(self, names: list[str], choose: Callable[[DaemonSpec], int | None]) -> Job:
        """Send signals; none is sent if one cannot be."""
        specs = self._supervisor.specs
        found: list[tuple[str, RunId, int]] = []
        for name in names:
            state, number = self._supervisor.states.get(name), choose(specs[name])
            if number is None:
                raise RequestError(NOT_POSSIBLE, f"{name} has no reload_signal; restart it")
            if not isinstance(state, Up | Stopping | Awaiting) or not state.pid:
                words = "gone" if state is None else control.describe(state)
                raise RequestError(NOT_POSSIBLE, f"{name} does not run: {words}")
            found.append((name, state.run, number))
        for name, run, number in found:
            self._realm.signal(name, run, number, group=False)
            yield b""

    def _reload(self, request: Request, connection: Connection) -> Job:
        self._require_running()
        if request.names:
            names = yield from self._resolve(request)
            yield from self._send(names, lambda spec: spec.reload_signal)
            yield answer(names=names)
            return
        found = yield from self._load("reload", connection)
        if found is not None:
            yield answer()

    def _apply(self, _request: Request, connection: Connection) -> Job:
        self._require_running()
        found = yield from self._load("apply", connection)
        if found is None or found.changes is None:
            return
        differ = found.changes
        names = [*differ.added, *differ.removed, *differ.restarted]
        yield answer(changes=control.describe_changes(differ), names=names)

    def _load(
        self, verb: str, connection: Connection
    ) -> Generator[bytes | int, None, Loading | None]:
        """Have the configuration read again; return what came of it, None: that was answered."""
        results: list[Loading] = []
        if not self._outside:
            yield from try_files(self._asides, connection, self._realm.preview)
            self._require_running()
        self._loads[connection] = results
        try:
            self._supervisor.post(Asked(verb, (), f"uid {connection.peer.uid}"))
            yield LATER
            while not results:
                master = self._supervisor.master
                if self._outside or master.phase in (STOPPING, ENDED):
                    # The files are read outside of the jail; or exit-on-reload.
                    return Loading(None, [])
                if verb == "apply" and not master.loading:
                    raise RequestError(NOT_POSSIBLE, f"not now: the master is {master.phase}")
                yield PARK
        finally:
            self._loads.pop(connection, None)
        if results[0].changes is not None:
            return results[0]
        lines = results[0].lines
        why = "; ".join(lines) or "the configuration is not good"
        yield refusal(RequestError(FAILED, why), problems=lines)
        return None

    def _diff(self, _request: Request, connection: Connection) -> Job:
        def compare() -> bytes:
            new = preview(self._realm.preview)
            return answer(changes=control.describe_changes(self._compare(new)))

        yield from self._asides.answer(connection, lambda _: iter((compare(),)))

    def _legion(self, request: Request, _connection: Connection) -> Job:
        configured = [legion.name for legion in self._supervisor.spec.legions]
        unknown = [name for name in request.names if name not in configured]
        if unknown:
            raise RequestError(UNKNOWN_NAME, f"there is no legion {quote(unknown[0])}")
        views, now = self._realm.legions, clock_gettime_ns(CLOCK_BOOTTIME)
        found = [
            control.describe_legion(views[name], now)
            for name in request.names or configured
            if name in views
        ]
        yield answer(legions=found, **stamp(monotonic_ns()))

    def _adopt(self, request: Request, connection: Connection) -> Job:
        """Take a process for a daemon on the word of an operator, if nothing speaks against it."""
        self._require_running()
        name, peer = request.name, connection.peer
        if peer.verbs is not None:
            raise RequestError(NOT_PERMITTED, "adopt is for root and the owner of the master")
        spec = self._supervisor.specs.get(name)
        if spec is None:
            raise RequestError(UNKNOWN_NAME, f"there is no daemon {quote(name)}")
        if spec.pidfile is None:
            why = f"{name} has no pidfile: only a smart daemon can be one that runs already"
            raise RequestError(NOT_POSSIBLE, why)
        state = self._supervisor.states[name]
        if isinstance(state, Up) and state.pid == request.pid:
            yield answer()
            return
        self._require_adoptable(spec, state)
        try:
            for _ in self._realm.vouch(spec, request.pid, peer.uid):
                yield b""
            # Race: what was true of it may not be so any more.
            state = self._supervisor.states.get(name, Down())
            self._require_adoptable(spec, state)
            verb = "restart" if isinstance(state, Backoff) else "start"
            self._supervisor.post(Asked(verb, (name,), f"uid {peer.uid}"))
            yield LATER
        except WordError as error:
            code = NOT_PERMITTED if error.is_forbidden else NOT_POSSIBLE
            raise RequestError(code, str(error)) from None
        finally:
            self._realm.withdraw(name)
        state = self._supervisor.states.get(name, Down())
        if not isinstance(state, Up) or state.pid != request.pid:
            raise RequestError(FAILED, f"{name} was not taken over: {control.describe(state)}")
        yield answer()

    def _require_adoptable(self, spec: DaemonSpec, state: State) -> None:
        """See that a daemon does not run, and would be looked for at once if it were started."""
        master, states, name = self._supervisor.master, self._supervisor.states, spec.name
        why = ""
        if master.phase != RUNNING:
            why = f"the master is {master.phase}; try again"
        elif isinstance(state, Looking) and state.held:
            why = f"{name}: another master governs its pidfile; adopt it there"
        elif not isinstance(state, Down | Over | Backoff):
            why = f"{name}: {control.describe(state)}; first lowsuper stop {name}"
        else:
            away = [each for each in spec.requires if not is_ready(states.get(each, Down()))]
            if away:
                why = f"{name} requires {', '.join(away)}; first lowsuper start {' '.join(away)}"
        if why:
            raise RequestError(NOT_POSSIBLE, why)

    def _shutdown(self, request: Request, connection: Connection) -> Job:
        if not request.watch:
            verb = "kill" if request.kill else "shutdown"
            self._supervisor.post(Asked(verb, (), f"uid {connection.peer.uid}"))
            yield LATER
        if not request.wait:
            yield answer()
            return
        self._watchers.add(connection)
        last: Ns = 0
        while True:
            now = monotonic_ns()
            if now - last >= SPACING:
                last = now
                self._loop.set_timer(_key(connection), now + PERIOD, connection.wake)
                yield answer(waiting=self._name_waiting(now))
            else:
                self._loop.set_timer(_key(connection), last + SPACING, connection.wake)
            yield PARK

    def _name_waiting(self, now: Ns) -> list[dict[str, object]]:
        """Return the daemons that are still there, and what their processes do."""
        found: list[dict[str, object]] = []
        for name, state in self._supervisor.states.items():
            if isinstance(state, Down | Over):
                continue
            pid = control.pid_of(state)
            found.append(
                {
                    "name": name,
                    "pid": pid or None,
                    "state": control.describe(state),
                    "seconds": seconds(now - state.since) if isinstance(state, Stopping) else 0,
                    "process_state": (read_state(pid) if pid else "") or None,
                }
            )
            if len(found) == WAITING:
                break
        return found


def preview(read: Callable[[], MasterSpec]) -> MasterSpec:
    """Read the configuration again.

    Raises:
        RequestError: it is wrong, or cannot be read.
    """
    try:
        return read()
    except (ConfigError, PlanError) as error:
        raise RequestError(FAILED, "; ".join(format_problems(error))) from None
    except (LowsuperError, OSError) as error:
        raise RequestError(FAILED, str(error)) from None


def try_files(
    asides: Asides, connection: Connection, read: Callable[[], MasterSpec]
) -> Generator[bytes | int, None, None]:
    """See that reading the configuration comes to an end, whatever comes of it.

    Raises:
        RequestError: it does not.
    """

    def work(_: Loop) -> Iterator[bytes]:
        with contextlib.suppress(LowsuperError, OSError):
            read()
        yield b"read"

    if not (yield from asides.gather(connection, work)):
        raise RequestError(FAILED, f"the configuration: {late()} Nothing was changed")


def is_in_file(spec: DaemonSpec) -> bool:
    """Return whether the output of a daemon lies in a file of somebody's choice."""
    return spec.log is not None and spec.log.kind == "file"


def _nothing() -> None:
    return


def _key(connection: Connection) -> str:
    return f"{KEY}{connection.fd}"


def stamp(now: Ns) -> dict[str, object]:
    """Return the two times of an answer or event."""
    return {"monotonic": seconds(now), "time": round(time(), 6)}


def read_state(pid: int) -> str:
    """Return what a process does now, as the letter of proc_pid_stat(5); "": it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()[0].decode()
    except ProcessLookupError:
        return ""
    finally:
        os.close(fd)


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def split_lines(data: bytes) -> list[str]:
    """Return the lines of an output; what has no end yet is one, too."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [_decode(line) for line in lines]


def _give_lines(data: bytes) -> Job:
    """Give lines as the items of a JSON list."""
    start, comma = 0, ""
    while start < len(data):
        end = data.find(b"\n", start + PIECE)
        end = len(data) if end < 0 else end + 1
        texts = split_lines(data[start:end])
        yield (comma + encode(texts)[1:-1]).encode()
        start, comma = end, ","


def format_problems(error: ConfigError | PlanError) -> list[str]:
    """Return what is wrong with a configuration, a line for each."""
    problems = error.problems if isinstance(error, ConfigError) else (error.problem,)
    return [
        f"{each.origin.file}:{each.origin.line}: {each.reason}"
        + (f"; {each.advice}" if each.advice else "")
        for each in problems
        if each.is_error
    ]


def render_note(note: Note, at: Ns) -> bytes:
    """Return the line of a note: what the operator was told, and its fields."""
    kind = type(note)
    known = _kinds.get(kind)
    if known is None:
        types: dict[str, str] = kind.__annotations__
        times = frozenset(field for field, text in types.items() if text.startswith("Ns"))
        known = _kinds[kind] = kind.__name__, times
    event, times = known
    told: dict[str, object] = {
        "schema": control.SCHEMA,
        "event": event,
        "daemon": getattr(note, "name", None),
        "monotonic": seconds(at),
        "time": round(time() - (monotonic_ns() - at) / SECOND, 6),
        "line": report.format_note(note),
    }
    for field in note.__match_args__:
        value = getattr(note, field)
        if field in told or field == "name":
            continue
        told[field] = seconds(value) if field in times and value is not None else value
    return f"{encode(told)}\n".encode()
