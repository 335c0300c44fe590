"""What the master of `run FILE -- COMMAND` tells the process in front of it, and is told.

They talk over a socketpair, in packets of words parted by NUL bytes. From the master: `jailed` or
`up`, how it is to be spoken to; `not-ready NAME WHY` for each daemon of which `refused` speaks;
`ready`, `given-up NAME WHY`, `stopping`. To it: `stop` and `kill`; its end is like a `stop`.
The master of a jail has no such socket: what it tells goes through the process outside of it.
"""

from __future__ import annotations

import os

from lowsuper import control, report
from lowsuper.errors import LowsuperError
from lowsuper.events import Asked, DaemonFound
from lowsuper.machine import Over
from lowsuper.master import BOOTING, ENDED, STOPPING, is_idle, is_ready
from lowsuper.model import Output
from lowsuper.units import Ns, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from lowsuper.chronicle import Chronicle
    from lowsuper.kernel.loop import Loop
    from lowsuper.model import DaemonSpec, MasterSpec
    from lowsuper.supervisor import Supervisor

    class World(Protocol):
        """The world of a master."""

        observer: Callable[[], None] | None

        @property
        def loop(self) -> Loop:
            """Return its loop."""

        @property
        def chronicles(self) -> Mapping[str, Chronicle]:
            """Return what has become of each daemon."""

        def tail(self, spec: DaemonSpec, lines: int) -> bytes:
            """Return the last lines of a daemon."""


WHO = "run"
TIMER = "(front)"  # no daemon can have this name
LINES = 10
MOST = 6000  # bytes of a text; a packet has room for it
PACKET = 8192
SIGINT = 2


class Teller:
    """The master's side."""

    def __init__(self, channel_fd: int, timeout: Ns | None, keep: str | None) -> None:
        """Say nothing yet.

        Args:
            channel_fd: our end of the socketpair.
            timeout: how long the daemons may take to be ready, all together; None: any time.
            keep: the directory where output goes that goes nowhere else; None: there is none.
        """
        self.fd = channel_fd
        self._timeout, self._keep = timeout, keep
        self._kept: dict[str, int] = {}  # what was opened outside of a jail, by path
        self._send_fd, self._prefix = channel_fd, b""
        self._world: World
        self._supervisor: Supervisor
        self._began: Ns = 0
        self._is_over = False  # ready or refused was told
        self._is_late = False
        self._stops = False
        self._given_up: set[str] = set()

    def adapt(self, spec: MasterSpec) -> MasterSpec:
        """Return a configuration as it is to be for a master behind another process."""
        spec = spec.replace(daemonize=None, daemonize2=None)
        if self._keep is None:
            return spec
        is_jailed = spec.jail is not None
        daemons = (
            daemon
            if daemon.log is not None
            else daemon.replace(log=self._choose_log(daemon.name, is_jailed=is_jailed))
            for daemon in spec.daemons
        )
        return spec.replace(daemons=tuple(daemons))

    def _choose_log(self, name: str, *, is_jailed: bool) -> Output:
        """Return where the output of a daemon goes that goes nowhere else.

        Raises:
            KernelError: its file cannot be opened.
        """
        path = f"{self._keep}/{name}.log"
        if not is_jailed:
            return Output("file", path)
        if path not in self._kept:
            from lowsuper.kernel.tail import open_log

            self._kept[path] = open_log(path)
        return Output("open", path, fd=self._kept[path])

    def begin_jailed(self) -> None:
        """Be the process outside of a jail, to which signals are sent."""
        import lowsuper.kernel.tail  # noqa: F401  # what is outside cannot be imported inside
        from lowsuper.kernel import mount

        mount.set_parent_death_signal(SIGINT)
        self._send("jailed")
        os.set_blocking(self.fd, False)
        try:
            is_gone = not os.read(self.fd, 1)
        except BlockingIOError:
            is_gone = False
        if is_gone:  # Race: before it was to be told by a signal.
            os._exit(1)

    def relay(self, words: list[str]) -> None:
        """Pass on what the master in the jail tells."""
        self._send(*words)

    def attach(self, world: World, supervisor: Supervisor, jail_fd: int = -1) -> None:
        """Watch the daemons of a master from now on.

        Args:
            world: of the master.
            supervisor: the same.
            jail_fd: in a jail, where to send what the process outside is to pass on.
        """
        import lowsuper.kernel.tail  # noqa: F401  # a user that we become may not read the library

        self._world, self._supervisor = world, supervisor
        if jail_fd >= 0:
            self._send_fd, self._prefix = jail_fd, b"front\0"
        else:
            self._send("up")
        self._began = world.loop.now()
        if self._timeout is not None:
            world.loop.set_timer(TIMER, Ns(self._began + self._timeout), self._be_late)
        world.observer = self._look

    def take(self) -> None:
        """Take what the process in front says."""
        try:
            packet = os.read(self.fd, PACKET)
        except ConnectionResetError:
            packet = b""
        if not packet:
            self._world.loop.unwatch(self.fd)
        if packet == b"kill":
            self._supervisor.post(Asked("kill", (), WHO))
            return
        specs = self._supervisor.specs
        smart = tuple(name for name, spec in specs.items() if spec.pidfile and self._is_ours(name))
        if smart:
            self._supervisor.post(Asked("stop", smart, WHO))
        why = WHO if packet else f"{WHO}: the process in front of the master is dead"
        self._supervisor.post(Asked("shutdown", (), why))

    def _is_ours(self, name: str) -> bool:
        """Return whether a daemon did not run before, so that it is to end with us."""
        chronicle = self._world.chronicles.get(name)
        return chronicle is None or not any(
            isinstance(note, DaemonFound) and note.age > at - self._began
            for at, note in chronicle.notes
        )

    def _be_late(self) -> None:
        self._is_late = True  # `_look` comes at the end of this turn

    def _look(self) -> None:
        """See whether there is something to tell."""
        supervisor = self._supervisor
        stops = supervisor.master.phase in (STOPPING, ENDED)
        if not self._is_over:
            self._look_whether_ready(stops=stops)
        elif not stops:
            self._look_whether_given_up()
        if stops and not self._stops:
            self._stops = True
            self._send("stopping")

    def _look_whether_ready(self, *, stops: bool) -> None:
        supervisor = self._supervisor
        states = supervisor.states
        missing = [
            name
            for name, state in states.items()
            if not is_ready(state) and not (isinstance(state, Over) and state.outcome != "failed")
        ]
        failed = [name for name in missing if self._has_failed(name)]
        if stops or self._is_late or failed:
            if failed and not self._is_late:
                # Others may just be about to start; those that require these are not.
                missing = [each for each in missing if each in failed or is_idle(states[each])]
            for name in missing:
                self._send("not-ready", name, self._explain(name))
            waited = format_duration(Ns(self._world.loop.now() - self._began))
            self._send("refused", f"not all ready after {waited}" if self._is_late else "")
        elif missing or supervisor.master.phase == BOOTING:
            return
        else:
            self._send("ready")
        self._is_over = True
        self._world.loop.cancel_timer(TIMER)

    def _has_failed(self, name: str) -> bool:
        """Return whether a daemon's start has failed, and is not to be tried so often anyway."""
        state, spec = self._supervisor.states[name], self._supervisor.specs[name]
        if isinstance(state, Over):
            return True
        chronicle = self._world.chronicles.get(name)
        if chronicle is None or spec.max_restarts is not None:
            return False
        return chronicle.restarts > 0 or chronicle.failure is not None

    def _look_whether_given_up(self) -> None:
        failed = {
            name
            for name, state in self._supervisor.states.items()
            if isinstance(state, Over) and state.outcome == "failed"
        }
        for name in failed - self._given_up:
            self._send("given-up", name, self._explain(name))
        self._given_up = failed

    def _explain(self, name: str) -> str:
        """Return what is known of a daemon that is not as it should be, in lines."""
        supervisor, now = self._supervisor, self._world.loop.now()
        state, spec = supervisor.states[name], supervisor.specs[name]
        waiting = name in supervisor.master.waiting
        words = [report.describe_state(state, now)]
        if waiting:
            words = [control.decide(spec, state, now, waiting=True, held=False)]
        chronicle = self._world.chronicles.get(name)
        if chronicle is not None:
            last = chronicle.exit
            if last is not None and last.status is not None:
                after = "" if last.age is None else f" after {format_duration(last.age)}"
                words.append(f"last exit: {report.format_status(last.status)}{after}")
            failure = control.failure_text(chronicle.failure)
            if failure is not None:
                words.append(f"failure: {failure}")
        words.append(f"command: {spec.command.text}")
        try:
            lines = self._world.tail(spec, LINES).decode("utf-8", "replace").splitlines()
        except (LowsuperError, OSError):
            lines = []  # it wrote to our standard error, where it can be seen
        if lines:
            words += ["the last lines that it wrote:", *(f"  {line}" for line in lines)]
        return "\n  ".join(words)

    def _send(self, *words: str) -> None:
        if words[2:]:
            words = (*words[:2], words[2][:MOST])
        data = self._prefix + "\0".join(words).encode("utf-8", "surrogateescape")
        try:
            os.write(self._send_fd, data[:PACKET])
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead, which is told otherwise
