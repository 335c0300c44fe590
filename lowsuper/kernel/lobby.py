"""The control socket of a master that lives in a jail: what the process outside does about it.

It lets clients in, as it owns the socket and knows the users of the host, and answers what concerns
itself. A client that asks for anything else is handed to the master in the jail for good: with its
connection, what it has sent, and the word about who it is; `kernel.gate` is the other end of that.
"""

from __future__ import annotations

import os
from time import monotonic_ns

from lowsuper import changes, control
from lowsuper.control import FAILED, NOT_POSSIBLE, RequestError, answer, refusal
from lowsuper.events import Signalled
from lowsuper.kernel.answers import Loading, preview, stamp, try_files
from lowsuper.kernel.aside import Asides
from lowsuper.kernel.control import LATER, PARK, PASS
from lowsuper.kernel.gate import CLIENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Protocol

    from lowsuper.control import Request
    from lowsuper.kernel.control import Connection, Job
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.peer import Peer
    from lowsuper.model import MasterSpec

    class Keeper(Protocol):
        """The process outside."""

        @property
        def phase(self) -> str:
            """Return what it is at, in a word."""

        @property
        def spec(self) -> MasterSpec:
            """Return the configuration in force."""

        @property
        def is_open(self) -> bool:
            """Return whether there is a master in the jail that can be asked."""

        def post(self, event: Signalled) -> None:
            """Take something that happens."""

        def send(self, words: list[str], fds: tuple[int, ...]) -> None:
            """Send a packet to the master in the jail.

            Raises:
                OSError: it does not take it now.
            """

        def preview(self) -> MasterSpec:
            """Read the configuration again, and change nothing."""


SIGHUP, SIGINT = 1, 2


class LobbyAnswers:
    """Answers what concerns the process outside, and has the rest passed on."""

    def __init__(self, loop: Loop, keeper: Keeper, name: str) -> None:
        """Begin.

        Args:
            loop: of the process outside.
            keeper: the process outside.
            name: of the instance.
        """
        self._keeper, self._name = keeper, name
        self._asides = Asides(loop)
        self._loads: dict[Connection, list[Loading]] = {}

    def begin(self, request: Request, connection: Connection) -> Job:
        """Return the job that answers a request, or passes its client on."""
        match request.verb:
            case "hello":
                return self._hello()
            case "diff":
                return self._diff(connection)
            case "apply":
                return self._apply()
            case "reload" if not request.names:
                return self._reload(connection)
            case "shutdown":
                return self._shutdown(request, connection)
            case _:
                return self._pass(connection)

    def pass_on(self, connection: _socket.socket, peer: Peer, data: bytes) -> None:
        """Hand a client to the master in the jail.

        Raises:
            RequestError: it does not take it.
        """
        data_fd = os.memfd_create("client", os.MFD_CLOEXEC)
        try:
            os.write(data_fd, data)
            verbs = "*" if peer.verbs is None else ",".join(sorted(peer.verbs))
            words = [CLIENT, str(peer.pid), str(peer.uid), verbs]
            self._keeper.send(words, (connection.fileno(), data_fd))
        except OSError as error:
            text = f"the jail does not take this now: {error.strerror}"
            raise RequestError(NOT_POSSIBLE, text) from None
        finally:
            os.close(data_fd)

    def ended(self, connection: Connection) -> None:
        """Take note that a connection is closed."""
        self._loads.pop(connection, None)

    def loaded(self, spec: MasterSpec | None, lines: list[str]) -> None:
        """Take note that the configuration was read again; None: it is wrong."""
        differ = None if spec is None else changes.Changes()
        for connection, results in self._loads.items():
            results.append(Loading(differ, lines))
            connection.wake()

    def _hello(self) -> Job:
        keeper = self._keeper
        instance = {
            "name": self._name,
            "pid": os.getpid(),
            "version": control.VERSION,
            "jail": True,
            "files": list(keeper.spec.files),
            "phase": keeper.phase,
        }
        yield answer(instance=instance, **stamp(monotonic_ns()))

    def _pass(self, connection: Connection) -> Job:
        del connection
        if not self._keeper.is_open:
            raise RequestError(NOT_POSSIBLE, f"there is no jail to ask now: {self._keeper.phase}")
        yield PASS

    def _diff(self, connection: Connection) -> Job:
        def compare() -> bytes:
            new, spec = preview(self._keeper.preview), self._keeper.spec
            running = {daemon.name: daemon for daemon in spec.daemons}
            differ = changes.compare(spec, running, new)
            return answer(changes=control.describe_changes(differ))

        yield from self._asides.answer(connection, lambda _: iter((compare(),)))

    def _apply(self) -> Job:
        raise RequestError(NOT_POSSIBLE, "a jail is made anew by every change: use reload")
        yield b""  # what makes it a job

    def _reload(self, connection: Connection) -> Job:
        results: list[Loading] = []
        yield from try_files(self._asides, connection, self._keeper.preview)
        self._loads[connection] = results
        self._keeper.post(Signalled(SIGHUP))
        yield LATER
        # One that is asked for while there is no time for it comes later.
        while not results and self._keeper.phase != "stopping":
            yield PARK
        self._loads.pop(connection, None)
        if results and results[0].changes is None:
            lines = results[0].lines
            why = "; ".join(lines) or "the configuration is not good"
            yield refusal(RequestError(FAILED, why), problems=lines)
            return
        yield answer()

    def _shutdown(self, request: Request, connection: Connection) -> Job:
        if not request.watch:
            for _ in range(2 if request.kill else 1):
                self._keeper.post(Signalled(SIGINT))
        yield LATER
        if not request.wait:
            yield answer()
            return
        yield answer(waiting=[])  # as the jail may be gone before it says anything
        if self._keeper.is_open:
            # It was told to stop; what is waited for is known inside.
            connection.line = b'{"do":"shutdown","wait":true,"watch":true}\n'
            yield PASS
        yield PARK
