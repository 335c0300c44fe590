"""The client of a running master: what a script asks it, and tells it to do.

    import lowsuper

    with lowsuper.connect() as master:
        print(master.status()["web"].state)
        master.restart("web", timeout=30)

A `Client` is one connection to the control socket of one master: see lowsuper-control(7). Nothing
here loads any of the supervisor. Times are seconds; points in time are those of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os
from errno import EACCES, ECONNREFUSED, ECONNRESET, ENOENT, EPERM, EPIPE
from time import monotonic

from lowsuper import wire
from lowsuper.errors import LowsuperError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Any, Self

    from lowsuper.kernel.instance import Instance

    Fields = dict[str, Any]
    """One JSON object, as it came."""

    Names = str | Iterable[str]
    """One name, or several; verbs that ask take patterns such as `web*`, too."""

PATIENCE = 10.0
"""Seconds that an answer may take, where nothing is waited for."""

ALL = "*"

_AT_REST = frozenset(("stopped", "failed", "done"))
_CHUNK = 1 << 18
_MANY = 500  # names in a request; it may not have 1,000
_GONE = (ECONNRESET, EPIPE)


class ClientError(LowsuperError):
    """A request that failed.

    Args:
        code: a word for programs: those of lowsuper-control(7), or `no-master` (none runs, or it
            is not to be reached), `several-masters`, `gone` (it ended while it was asked), `silent`
            (it does not answer), `bad-answer`.
        message: a line for people.
        answer: what the master said, if it did.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, answer: Fields | None = None) -> None:
        """Keep all of it."""
        super().__init__(message)
        self.code, self.message, self.answer = code, message, answer or {}


class NoMasterError(ClientError):
    """There is no master to ask: code `no-master` or `several-masters`."""


class UnknownNameError(ClientError):
    """The master has no such daemon: code `unknown-name`."""


class NotPermittedError(ClientError):
    """The master does not take that from this user: code `not-permitted`."""


class WaitTimeoutError(ClientError, TimeoutError):
    """What was waited for has not come in time: code `timeout`."""


_ERRORS: dict[str, type[ClientError]] = {
    "unknown-name": UnknownNameError,
    "not-permitted": NotPermittedError,
    "timeout": WaitTimeoutError,
}


class _Object:
    """A JSON object with its fields as attributes; what an older master lacks has a default."""

    def __init__(self, fields: Fields) -> None:
        """Take the fields."""
        self.__dict__ = fields

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({inner})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # its fields may be changed


class Exit(_Object):
    """How the last life of a daemon ended."""

    status: str = ""  # in words: "exited with 3"
    code: int | None = None
    signal: str | int | None = None  # that killed it
    core: bool = False  # it left a core dump
    oom: bool = False  # the kernel killed it for lack of memory
    after: float | None = None  # how long it had run
    monotonic: float | None = None  # when it was


class Daemon(_Object):
    """A daemon as its master sees it. `vars()` of it is what the master sent."""

    name: str = ""
    state: str = ""  # starting, running, ready, stopping, backoff, stopped, failed, done, ...
    ready: bool = False
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    kill_domain: str | None = None  # pidns, cgroup or shim
    run: int = 0  # counts its starts
    since: float | None = None  # when this state, or its life, began
    restarts: int = 0
    exit: Exit | None = None
    next_try: float | None = None  # when it is started again
    smart: bool = False  # it has a pidfile and survives the master
    pidfile: str | None = None
    type: str = "simple"  # or oneshot
    command: str = ""
    words: str = ""  # its state, for people
    leaf: str | None = None  # the directory of its cgroup
    status_text: str | None = None  # what it says about itself (sd_notify)

    def __init__(self, fields: Fields) -> None:
        """Take the fields."""
        last = fields.get("exit")
        if type(last) is dict:
            fields["exit"] = Exit(last)
        self.__dict__ = fields

    @property
    def is_active(self) -> bool:
        """Return whether it runs, and is not about to start or to stop."""
        return self.state in ("running", "ready")


class Reasons(Daemon):
    """What `why` tells: a daemon, how it came to that, and what comes next."""

    failure: str | None = None  # of the last start
    lines: list[str] = []  # noqa: RUF012  # the last ones that it wrote; never changed here
    no_lines: str | None = None  # why there are none
    history: list[Fields] = []  # noqa: RUF012  # the last notes: monotonic, time, line
    decision: str = ""  # whether and when it is started again, and why


class Client:
    """One connection to a master. It is not for several threads at once."""

    def __init__(self, path: str, name: str = "") -> None:
        """Connect.

        Args:
            path: of the control socket.
            name: of the instance, for messages.

        Raises:
            NoMasterError: nobody listens there.
            NotPermittedError: the socket may not be used by this user.
        """
        from lowsuper.kernel import instance

        self.path, self.name = path, name or os.path.basename(path).removesuffix(".sock")
        self._rest = b""
        self._used_up = False
        try:
            self._socket: _socket.socket = instance.connect(path)
        except OSError as error:
            raise _explain_connect(error, path, self.name) from None
        self.pid = instance.read_peer(self._socket)[0]
        """Of the master; with a jail of the process outside. 0: in another pid namespace."""

    def sees(self, instance: object) -> bool:
        """Return whether the pids and paths that the master tells are those that are here.

        They are not where it is in a jail, or in a container that this process is not in.

        Args:
            instance: as it told.
        """
        if not isinstance(instance, dict) or instance.get("jail"):
            return False
        return bool(self.pid == instance.get("pid", self.pid))

    # The connection.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; nothing that was asked for is undone."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for `select`."""
        return self._socket.fileno()

    def open_another(self) -> Client:
        """Return a second connection to the same master; the caller closes it."""
        return Client(self.path, self.name)

    def request(self, do: str, *, patience: float | None = PATIENCE, **fields: object) -> Fields:
        """Send one request and return its answer.

        Args:
            do: the verb of the protocol.
            patience: seconds that the answer may take; None: for ever.
            fields: of the request; those that are None are left out.

        Raises:
            ClientError: the master says no, is gone, or does not answer.
        """
        return self.parse(self.request_line(do, patience=patience, **fields))

    def request_line(self, do: str, *, patience: float | None = PATIENCE, **fields: object) -> str:
        """Do the same, but return the answer as the line that it is, and do not judge it."""
        self._send(do, fields, patience)
        line = self._read_line()
        if line is None:
            raise self._gone()
        return line

    def stream(self, do: str, *, end: float | None = None, **fields: object) -> Iterator[Fields]:
        """Send one request and return what comes, until the master ends or the client is closed.

        Nothing else can be asked on this connection afterwards.

        Args:
            do: the verb of the protocol.
            end: on the clock of `time.monotonic`; None: never.
            fields: of the request.

        Raises:
            ClientError: the master says no.
            WaitTimeoutError: it is `end`.
        """
        return map(self.parse, self.stream_lines(do, end=end, **fields))

    def stream_lines(self, do: str, *, end: float | None = None, **fields: object) -> Iterator[str]:
        """Send one request and return the lines that come."""
        self._send(do, fields, PATIENCE)
        self._used_up = True
        return self._read_lines(end)

    def _read_lines(self, end: float | None) -> Iterator[str]:
        while True:
            self._socket.settimeout(None if end is None else max(0.001, end - monotonic()))
            try:
                line = self._read_line()
            except ClientError:
                if end is None or monotonic() < end:
                    raise
                raise WaitTimeoutError("timeout", "it took too long") from None
            if line is None:
                return
            yield line

    def listen(self, names: Names = (), *, end: float | None = None) -> Iterator[str]:
        """Ask for events; return their lines. What happens after this has returned is among them.

        Args:
            names: of the daemons; none: all, and the master.
            end: on the clock of `time.monotonic`, when to listen no longer; None: never.

        Raises:
            ClientError: the master says no.
        """
        lines = self.stream_lines("events", end=end, names=_list(names) or None)
        first = next(lines, None)
        if first is None:
            raise self._gone()
        self.parse(first)
        return lines

    def drain(self) -> tuple[bool, bool]:
        """Throw away what has come of a stream; return whether there was any, and more will come.

        For who waits with `select`, and only wants to know that something has happened.
        """
        self._socket.settimeout(0)
        some = bool(self._rest)
        self._rest = b""
        while True:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                return some, True
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                return some, False
            if not data:
                return some, False
            some = True

    def _send(self, do: str, fields: Fields, patience: float | None) -> None:
        assert not self._used_up, "a stream is the last request of its connection"
        wanted = {name: value for name, value in fields.items() if value is not None}
        data = wire.encode({"do": do, **wanted}).encode() + b"\n"
        self._socket.settimeout(patience)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise self._silent(patience) from None
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # It may have said why before it went: too-many, not-permitted.

    def _read_line(self) -> str | None:
        """Return the next line without its end; None: there is none any more."""
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            try:
                data = self._socket.recv(_CHUNK)
            except TimeoutError:
                self._used_up = True  # an answer that comes late is not one to what is asked next
                raise self._silent(self._socket.gettimeout()) from None
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                data = b""
            if not data:
                return None
            parts.append(data)
        last, _, self._rest = parts.pop().partition(b"\n")
        return b"".join((*parts, last)).decode("utf-8", "surrogateescape")

    def parse(self, line: str) -> Fields:
        """Return what a line says.

        Raises:
            ClientError: the request has failed.
        """
        try:
            answer = wire.decode(line)
        except (ValueError, RecursionError) as error:
            raise ClientError("bad-answer", f"{self._who()} answers nonsense: {error}") from None
        if not isinstance(answer, dict):
            raise ClientError("bad-answer", f"{self._who()} answers nonsense: no object")
        if answer.get("ok", True) is not True:
            code, message = str(answer.get("error")), str(answer.get("message"))
            raise _ERRORS.get(code, ClientError)(code, message, answer)
        return answer

    def _who(self) -> str:
        return f"the master {self.name}" + (f" (pid {self.pid})" if self.pid else "")

    def _gone(self) -> ClientError:
        return ClientError("gone", f"{self._who()} has ended the connection without an answer")

    def _silent(self, patience: float | None) -> ClientError:
        return ClientError("silent", f"{self._who()} has not answered for {patience:g} s")

    # What is asked.

    def hello(self) -> Fields:
        """Return what the master says of itself: name, pid, version, files, phase, since, jail."""
        found: Fields = self.request("hello")["instance"]
        return found

    def status(self, names: Names = ()) -> dict[str, Daemon]:
        """Return the daemons by name, in the order of the configuration.

        Args:
            names: exact ones or patterns; none: all.

        Raises:
            UnknownNameError: one of them stands for nothing.
        """
        answer = self.request("status", names=_list(names) or None)
        return {fields["name"]: Daemon(fields) for fields in answer["daemons"]}

    def why(self, name: str) -> Reasons:
        """Return how a daemon came to be as it is, and what comes next."""
        return Reasons(self.request("why", name=name))

    def logs(self, name: str, lines: int | None = None) -> list[str]:
        """Return the last lines that a daemon wrote.

        Raises:
            ClientError: `not-possible`, its output goes to where it cannot be read again.
        """
        found: list[str] = self.request("logs", name=name, lines=lines)["lines"]
        return found

    def events(self, names: Names = (), *, timeout: float | None = None) -> Iterator[Fields]:
        """Return what happens from now on, one object at a time, until the master ends.

        It is on a connection of its own, so more can be asked meanwhile.

        Args:
            names: of the daemons; none: all, and the master.
            timeout: seconds until the end of it all; None: for ever.

        Raises:
            WaitTimeoutError: the time is over.
        """
        end = None if timeout is None else monotonic() + timeout
        second = self.open_another()
        try:
            events = map(second.parse, second.listen(names, end=end))
        except BaseException:
            second.close()
            raise
        return _read_events(second, events)

    def diff(self) -> Fields:
        """Return what a reload would change: `added`, `removed`, `changed`, `master`."""
        found: Fields = self.request("diff", patience=None)["changes"]
        return found

    # What is to be done.

    def start(self, names: Names, *, wait: bool = True, timeout: float | None = None) -> None:
        """Start daemons that do not run.

        Args:
            names: of the daemons.
            wait: until they are ready, or have failed.
            timeout: seconds to wait; None: for ever.

        Raises:
            ClientError: `failed`, one of them did not come up; the message says why.
            WaitTimeoutError: they are not ready in time.
        """
        self._bring_up("start", names, wait, timeout)

    def restart(self, names: Names, *, wait: bool = True, timeout: float | None = None) -> None:
        """Stop daemons, and start them; arguments and errors are those of `start`."""
        self._bring_up("restart", names, wait, timeout)

    def try_restart(self, names: Names, *, wait: bool = True, timeout: float | None = None) -> None:
        """Restart those of the daemons that run."""
        self._bring_up("try-restart", names, wait, timeout)

    def stop(self, names: Names, *, wait: bool = True, timeout: float | None = None) -> None:
        """Stop daemons, and keep them stopped.

        Args:
            names: of the daemons.
            wait: until nothing of them is left.
            timeout: seconds to wait; None: as long as it takes, which their own deadlines limit.

        Raises:
            WaitTimeoutError: something is left.
        """
        self.request("stop", names=_list(names))
        if wait:
            self.wait(names, "stopped", timeout=timeout)

    def reload(self, names: Names = ()) -> None:
        """Let the master read its configuration again, or tell daemons to reload theirs.

        Args:
            names: none: the master. Otherwise each of them gets its reload signal.

        Raises:
            ClientError: `failed`, the configuration is wrong, and nothing was changed.
        """
        self.request("reload", patience=None, names=_list(names) or None)

    def apply(self) -> Fields:
        """Change what differs in the configuration, and leave the rest running."""
        found: Fields = self.request("apply", patience=None)
        return found

    def signal(self, names: Names, signal: str | int) -> None:
        """Send a signal to daemons: "HUP", "SIGHUP" or 1."""
        self.request("signal", names=_list(names), signal=signal)

    def reset_failed(self, names: Names) -> None:
        """Forget the failures of daemons, so that they count as stopped."""
        self.request("reset-failed", names=_list(names))

    def adopt(self, name: str, pid: int) -> None:
        """Take a process for a smart daemon whose pidfile was refused."""
        self.request("adopt", name=name, pid=pid)

    def legions(self, names: Names = ()) -> list[dict[str, Any]]:
        """Return what the master's agent knows of legions, as lowsuper-control(7) has it.

        Args:
            names: of legions; none: all.
        """
        found: list[dict[str, Any]] = self.request("legion", names=_list(names) or None)["legions"]
        return found

    def wait(
        self,
        names: Names,
        state: str = "ready",
        *,
        timeout: float | None = None,
        past: dict[str, int] | None = None,
    ) -> dict[str, Daemon]:
        """Wait until all of some daemons have come to a state.

        Args:
            names: of the daemons.
            state: running, ready, stopped (nothing of it is left) or exited (since now).
            timeout: seconds; None: for ever.
            past: for each name the run that does not count any more.

        Returns:
            The daemons, as they were when they came to it.

        Raises:
            WaitTimeoutError: they did not in time.
            ClientError: `failed`, it cannot come any more.
        """
        fields = {"names": _list(names), "for": state, "timeout": timeout, "past": past}
        # The master keeps the time; if it does not, it is the master that has failed.
        patience = None if timeout is None else timeout + PATIENCE
        answer = self.request("wait", patience=patience, **fields)
        return {fields["name"]: Daemon(fields) for fields in answer.get("daemons", ())}

    def shutdown(self, *, kill: bool = False, wait: bool = True) -> None:
        """Stop the master and all plain daemons.

        Args:
            kill: at once, with SIGKILL.
            wait: until the master has ended.
        """
        if not wait:
            self.request("shutdown", kill=kill)
            return
        for _ in self.watch_shutdown(kill=kill):
            pass

    def watch_shutdown(self, *, kill: bool = False, end: float | None = None) -> Iterator[Fields]:
        """Stop the master; return on whom it waits, until it has ended.

        Args:
            kill: at once, with SIGKILL.
            end: on the clock of `time.monotonic`, when to wait no longer; None: never.
        """
        pidfd = -1
        if self.pid:
            try:
                pidfd = os.pidfd_open(self.pid)
            except OSError:
                pidfd = -1  # not ours to see, or gone already: the connection tells
        try:
            yield from self.stream("shutdown", end=end, kill=kill, wait=True)
            if pidfd >= 0:
                _wait_end(pidfd)
        finally:
            if pidfd >= 0:
                os.close(pidfd)

    def _bring_up(self, do: str, names: Names, wait: bool, timeout: float | None) -> None:
        if not wait:
            self.request(do, names=_list(names))
            return
        end = None if timeout is None else monotonic() + timeout
        skipped: set[str] = set()
        if do == "try-restart":
            before = self.status(names).values()
            skipped = {each.name for each in before if each.state in _AT_REST}
        with self.open_another() as second:
            # First, so that whatever happens after the request is told.
            events = second.listen(end=end)
            answer = self.request(do, names=_list(names))
            runs: dict[str, int] = answer.get("runs", {})
            rest = [name for name in answer["names"] if name not in skipped]
            while rest := self._still_coming(rest, runs, is_new=do != "start"):
                try:
                    if next(events, None) is None:
                        raise self._gone()
                except WaitTimeoutError:
                    raise self._not_in_time(rest, timeout) from None

    def _still_coming(self, names: list[str], runs: dict[str, int], *, is_new: bool) -> list[str]:
        """Return those of the names that are neither up nor have failed."""
        rest: list[str] = []
        for daemon in self._ask_of(names):
            has_run = daemon.run > runs.get(daemon.name, 0)
            if daemon.state == "failed" or (
                has_run and daemon.state in ("backoff", "stopped", "stopping")
            ):
                raise ClientError("failed", self._failed_words(daemon), vars(daemon))
            is_up = daemon.state == "done" or (daemon.ready and daemon.is_active)
            if not is_up or (is_new and not has_run and runs.get(daemon.name, 0)):
                rest.append(daemon.name)
        return rest

    def _ask_of(self, names: list[str]) -> list[Daemon]:
        """Return daemons by their exact names, however many there are."""
        if not names:
            return []
        wanted = set(names)
        found = self.status(names if len(names) <= _MANY else ())
        return [daemon for daemon in found.values() if daemon.name in wanted]

    def _failed_words(self, daemon: Daemon) -> str:
        failure = self.why(daemon.name).failure
        if failure:
            words = str(failure).removeprefix(f"{daemon.name}: ")
        elif daemon.exit is not None and daemon.exit.status:
            words = f"{daemon.exit.status}; {daemon.words}"
        else:
            words = daemon.words
        return f"{daemon.name} did not come up: {words}"

    def _not_in_time(self, names: list[str], timeout: float | None) -> WaitTimeoutError:
        words = "; ".join(f"{each.name}: {each.words}" for each in self._ask_of(names))
        return WaitTimeoutError("timeout", f"not ready after {timeout:g} s: {words}")


def _read_events(second: Client, events: Iterator[Fields]) -> Iterator[Fields]:
    with second:
        yield from events


def _wait_end(pidfd: int) -> None:
    """Wait until a process has ended, for a while: it has said goodbye already."""
    from select import POLLIN, poll

    poller = poll()
    poller.register(pidfd, POLLIN)
    poller.poll(PATIENCE * 1000)


def _list(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _explain_connect(error: OSError, path: str, name: str) -> ClientError:
    if error.errno in (ENOENT, ECONNREFUSED):
        return NoMasterError("no-master", f"no master {name} runs: nobody listens to {path}")
    if error.errno in (EACCES, EPERM):
        text = f"{path}: {error.strerror}; be root or the master's user (see control-allow)"
        return NotPermittedError("not-permitted", text)
    return NoMasterError("no-master", f"{path}: {error.strerror}")


# Which master.


def connect(target: str | None = None) -> Client:
    """Connect to a running master; the caller closes the client, or uses it in a `with`.

    Args:
        target: the name of an instance, its configuration file (a word with a slash or .ini at its
            end), or the path of its control socket. None: what LOWSUPER_SOCKET or else
            LOWSUPER_INSTANCE says, else the only one that runs.

    Raises:
        NoMasterError: it does not run, or none or several do; the message lists those that do.
        NotPermittedError: its socket may not be used by this user.
    """
    if target is None:
        path, target = os.environ.get("LOWSUPER_SOCKET"), os.environ.get("LOWSUPER_INSTANCE")
        if path:
            return Client(path)
    if not target:
        return _connect_only()
    if "/" in target or target.endswith(".ini"):
        return _connect_path(target)
    found = [each for each in list_instances() if each.name == target]
    if not found:
        raise NoMasterError("no-master", f"no master {target} runs{_alternatives(target)}")
    return _connect_instance(found[0])


def list_instances() -> list[Instance]:
    """Return the masters that run: `name`, `pid`, `file`, and the path of the `socket`.

    Those of the user who asks come first, then root's.
    """
    from lowsuper.kernel import instance

    found = instance.find_instances()
    if os.geteuid() and not os.environ.get(instance.VARIABLE):
        found += instance.find_instances(instance.ROOTS_DIRECTORY)
    return found


def _connect_only() -> Client:
    found = list_instances()
    if not found:
        raise NoMasterError("no-master", "no master runs")
    if len(found) > 1:
        words = "several masters run; choose one with -n NAME:\n" + _table(found)
        raise NoMasterError("several-masters", words)
    return _connect_instance(found[0])


def _connect_path(path: str) -> Client:
    from stat import S_ISSOCK

    from lowsuper.kernel import instance

    try:
        if S_ISSOCK(os.stat(path).st_mode):
            return Client(path)
    except OSError:
        pass  # a file that was removed may still be run
    wanted = instance.name_file(path)
    found = [each for each in list_instances() if each.file == wanted]
    if not found:
        raise NoMasterError("no-master", f"no master runs {path}{_alternatives('')}")
    if len(found) > 1:
        words = f"several masters run {path}; choose one with -n NAME:\n" + _table(found)
        raise NoMasterError("several-masters", words)
    return _connect_instance(found[0])


def _connect_instance(found: Instance) -> Client:
    if not found.socket:
        who = f"the master {found.name} (pid {found.pid})"
        text = f"{who} has no control socket where it is looked for; name it with LOWSUPER_SOCKET"
        raise NoMasterError("no-master", text)
    return Client(found.socket, found.name)


def _alternatives(target: str) -> str:
    found = list_instances()
    if not found:
        return "; none does"
    from lowsuper.units import nearest_name

    near = nearest_name(target, [each.name for each in found])
    hint = f"; did you mean {near}?" if near else "; there are:"
    return f"{hint}\n{_table(found)}"


def _table(found: list[Instance]) -> str:
    width = max(len(each.name) for each in found)
    return "\n".join(
        f"  {each.name:<{width}}  pid {each.pid or '?'}  {each.file}".rstrip() for each in found
    )
