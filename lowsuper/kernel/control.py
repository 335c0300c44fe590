"""The server of the control socket: many clients, none of whom the master ever waits for.

All connections are in an epoll of their own, which is one descriptor of the loop. In one turn of
the loop they share a budget of time; what is left over is ready again in the next turn, so daemons
are looked after in between. An answer is a generator that is asked for the next piece only when
the client has taken the one before: a slow client costs its place and no more than one piece.

Everything is bounded: connections in all and for each user, the line of a request, what is kept of
events for those that read slowly. Descriptors that somebody sends along are closed by the kernel,
as none are asked for.

`kernel.answers` has what is answered.
"""

from __future__ import annotations

import _socket
import os
import select
from collections import deque
from errno import ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM
from time import monotonic_ns

from lowsuper.control import (
    BAD_REQUEST,
    FAILED,
    LONGEST_LINE,
    NOT_PERMITTED,
    TOO_MANY,
    RequestError,
    parse_request,
    quote,
    refusal,
)
from lowsuper.errors import LowsuperError
from lowsuper.kernel.loop import READ
from lowsuper.kernel.native import move_high
from lowsuper.kernel.peer import Peer, identify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from lowsuper.control import Request
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.peer import Rights
    from lowsuper.units import Ns

    Job = Iterator[bytes | int]
    """The pieces of an answer, and `PARK`, `LATER` or `PASS` in between."""

    class Answers(Protocol):
        """What is answered."""

        def begin(self, request: Request, connection: Connection) -> Job:
            """Return the job that answers a request."""

        def pass_on(self, connection: _socket.socket, peer: Peer, data: bytes) -> None:
            """Let somebody else serve a connection, which stays the caller's to close.

            Args:
                connection: with its client.
                peer: who that is.
                data: what has been read of it and not been answered.
            """

        def ended(self, connection: Connection) -> None:
            """Take note that a connection is closed."""


PARK, LATER, PASS = 0, 1, 2
"""What a job gives in place of a piece: it goes on once it is woken; in the next turn, when what
was posted has been settled; and the connection is to be passed on."""

MOST = 256  # connections
RESERVED = 8  # of them for root
MOST_OF_USER = 32  # other than root
ACCEPTS = 8  # in one turn
BUDGET: Ns = 500_000  # of one turn; half of it for reading
READ_BYTES = 16 * 1024
PIECE = 64 * 1024  # of one send; what is more comes after others had their turn
REST: Ns = 1_000_000_000  # after there were no descriptors left
OUT, HANGUP = select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
SEND = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL
KEY = "control\0"  # of timers; no daemon has a name with such a character


class Connection:
    """One client."""

    __slots__ = (
        "_server", "data", "ends", "fd", "is_parked", "is_waiting", "job", "line", "mask", "out",
        "peer", "socket",
    )  # fmt: skip

    def __init__(self, server: Server, socket: _socket.socket, peer: Peer, data: bytes) -> None:
        """Begin with what has been read already."""
        self._server = server
        self.socket, self.fd, self.peer = socket, socket.fileno(), peer
        self.data = bytearray(data)
        self.line = b""  # the request that is answered
        self.out: deque[bytes | memoryview] = deque()
        self.job: Job | None = None
        self.is_parked = False  # the job waits for `wake`
        self.is_waiting = False  # it is in line for its turn
        self.ends = False  # it is closed when all is written
        self.mask = READ

    def wake(self) -> None:
        """Let the parked job go on in one of the next turns."""
        if self.is_parked:
            self.is_parked = False
            self._server.put_in_line(self)


class Server:
    """Serves clients. The listening socket and the rights are the caller's."""

    def __init__(self, loop: Loop, answers: Answers, rights: Callable[[], Rights]) -> None:
        """Begin without a client.

        Args:
            loop: that this is one descriptor of.
            answers: what is answered.
            rights: returns who may ask what.
        """
        self._loop, self._answers, self._rights = loop, answers, rights
        self._connections: dict[int, Connection] = {}
        self._users: dict[int, int] = {}  # how many connections each has
        self._line: deque[Connection] = deque()  # jobs that can go on
        self._later: list[Connection] = []  # in the next turn
        self._wake_fd = move_high(os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._is_awake = False
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        high = move_high(os.dup(self._epoll.fileno()))
        self._epoll.close()
        self._epoll = select.epoll.fromfd(high)
        self._most = min(MOST, _open_limit() // 4)
        self.longest: Ns = 0  # of all turns, for those who measure
        loop.watch(self._epoll.fileno(), READ, self._serve)

    # Connections.

    def accept(self, listener: _socket.socket) -> bool:
        """Let some clients in; return False where there are no descriptors for it just now."""
        for _ in range(ACCEPTS):
            if self._is_about_to_have_room():
                return True
            try:
                # `_accept` is what socket.socket.accept is made of.
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == ECONNABORTED:
                    continue
                if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                    return False
                raise
            made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=move_high(fd))
            try:
                peer = identify(made, self._rights())
            except OSError:
                made.close()
                continue
            problem = self._judge(peer)
            if problem is not None:
                _send_last(made, refusal(problem))
                made.close()
                continue
            self.take(made, peer)
        return True

    def _is_about_to_have_room(self) -> bool:
        """Return whether it is full only of clients that are gone: the next turn drops them."""
        if len(self._connections) < self._most - RESERVED:
            return False
        return any(mask & HANGUP for _, mask in self._epoll.poll(0, MOST))

    def _judge(self, peer: Peer) -> RequestError | None:
        """Return why somebody is not let in."""
        if peer.verbs is not None and not peer.verbs:
            return RequestError(NOT_PERMITTED, _not_permitted(peer))
        most = self._most if peer.uid == 0 else self._most - RESERVED
        if len(self._connections) >= most or (
            peer.uid != 0 and self._users.get(peer.uid, 0) >= MOST_OF_USER
        ):
            return RequestError(TOO_MANY, "too many connections; close some, or try again")
        return None

    def take(self, socket: _socket.socket, peer: Peer, data: bytes = b"") -> None:
        """Serve a client from now on, and close its socket at the end.

        Args:
            socket: with the client.
            peer: who that is.
            data: what others have read of it.
        """
        connection = Connection(self, socket, peer, data)
        self._connections[connection.fd] = connection
        self._users[peer.uid] = self._users.get(peer.uid, 0) + 1
        self._epoll.register(connection.fd, READ)
        if data:
            self._read_requests(connection)
            self._stay_awake()

    def drop(self, connection: Connection) -> None:
        """Close a connection, whatever it is at."""
        if self._connections.pop(connection.fd, None) is None:
            return
        self._epoll.unregister(connection.fd)
        self._answers.ended(connection)
        connection.job = None
        connection.is_parked = False
        connection.socket.close()
        uid = connection.peer.uid
        self._users[uid] -= 1
        if not self._users[uid]:
            del self._users[uid]

    def close(self) -> None:
        """Write what clients take at once, and close all."""
        for connection in list(self._connections.values()):
            self._write(connection)
            self.drop(connection)
        self._loop.unwatch(self._epoll.fileno())
        self._epoll.close()
        os.close(self._wake_fd)

    # Turns.

    def put_in_line(self, connection: Connection) -> None:
        """Let a job go on when its turn comes."""
        if not connection.is_waiting and connection.job is not None:
            connection.is_waiting = True
            self._line.append(connection)
            self._stay_awake()

    def _stay_awake(self) -> None:
        """Be called in the next turn, whether a client wants something or not."""
        if not self._is_awake:
            self._is_awake = True
            self._epoll.register(self._wake_fd, READ)

    def _serve(self) -> None:
        """Do what can be done in one turn."""
        begin = now = monotonic_ns()
        self._line.extend(self._later)
        self._later.clear()
        for fd, mask in self._epoll.poll(0, 64):
            connection = self._connections.get(fd)
            if connection is not None:
                self._on_ready(connection, mask)
                now = monotonic_ns()
                if now - begin > BUDGET // 2:
                    break
        while self._line and now - begin < BUDGET:
            connection = self._line.popleft()
            connection.is_waiting = False
            self._go_on(connection)
            now = monotonic_ns()
        self.longest = max(self.longest, now - begin)
        if self._is_awake and not self._line and not self._later:
            self._is_awake = False
            self._epoll.unregister(self._wake_fd)

    def _on_ready(self, connection: Connection, mask: int) -> None:
        if mask & OUT and not self._write(connection):
            return
        if mask & READ and connection.mask & READ:
            self._read(connection)
        elif mask & HANGUP:
            self.drop(connection)

    def _read(self, connection: Connection) -> None:
        if connection.job is not None or connection.ends:
            self._watch(connection, connection.mask & ~READ)  # until that is answered
            return
        try:
            data = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.drop(connection)
            return
        if not data:
            connection.ends = True
            self._finish(connection)
            return
        connection.data += data
        self._read_requests(connection)

    def _read_requests(self, connection: Connection) -> None:
        """Begin to answer the next request, if there is a whole one."""
        data = connection.data
        if connection.job is not None or connection.ends:
            return
        if data[:1].isspace():
            data[:] = data.lstrip()  # empty lines
        end = data.find(b"\n", 0, LONGEST_LINE)
        if end >= 0:
            connection.line = bytes(data[: end + 1])
            del data[: end + 1]
            connection.job = self._answer(connection)
            self.put_in_line(connection)
        elif len(data) >= LONGEST_LINE:
            why = f"a line is longer than {LONGEST_LINE} bytes"
            connection.out.append(refusal(RequestError(BAD_REQUEST, why)))
            connection.ends = True
            data.clear()
            self._write(connection)

    def _answer(self, connection: Connection) -> Job:
        """Answer a line. To look at it is work, too, that has to wait for its turn."""
        request = parse_request(connection.line)
        if not connection.peer.permits(request.verb):
            raise RequestError(NOT_PERMITTED, _not_permitted(connection.peer, request.verb))
        yield from self._answers.begin(request, connection)

    def _go_on(self, connection: Connection) -> None:
        """Ask a job for its next piece."""
        job = connection.job
        if job is None:
            return
        try:
            piece = next(job)
        except StopIteration:
            self._end_job(connection)
            return
        except RequestError as error:
            connection.out.append(refusal(error))
            self._end_job(connection)
            return
        except (LowsuperError, OSError, ImportError) as error:  # in a jail nothing is imported
            connection.out.append(refusal(RequestError(FAILED, str(error))))
            self._end_job(connection)
            return
        if isinstance(piece, bytes):
            if piece:
                connection.out.append(piece)
            if self._write(connection) and not connection.out:
                self.put_in_line(connection)
        elif piece == PARK:
            connection.is_parked = True
        elif piece == LATER:
            connection.is_waiting = True
            self._later.append(connection)
        else:
            self._pass(connection)

    def _end_job(self, connection: Connection) -> None:
        connection.job = None
        if not self._write(connection):
            return
        self._read_requests(connection)
        if connection.job is None:
            self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        """Read on, or close what has nothing to write or to do any more."""
        if not connection.ends:
            self._watch(connection, connection.mask | READ)
        elif not connection.out and connection.job is None:
            self.drop(connection)
        else:
            self._watch(connection, connection.mask & ~READ)

    def _write(self, connection: Connection) -> bool:
        """Write what there is; return False if the connection is closed now."""
        out = connection.out
        while out:
            piece = out[0]
            try:
                sent = connection.socket.send(piece[:PIECE], SEND)
            except BlockingIOError:
                self._watch(connection, connection.mask | OUT)
                return True
            except OSError:
                self.drop(connection)
                return False
            if sent == len(piece):
                out.popleft()
                continue
            out[0] = memoryview(piece)[sent:]
            self._watch(connection, connection.mask | OUT)
            return True
        if connection.mask & OUT:
            self._watch(connection, connection.mask & ~OUT)
            if connection.job is not None and not connection.is_parked:
                self.put_in_line(connection)
        if connection.ends and connection.job is None:
            self.drop(connection)
            return False
        return True

    def _watch(self, connection: Connection, mask: int) -> None:
        if mask != connection.mask:
            self._epoll.modify(connection.fd, mask)
            connection.mask = mask

    def _pass(self, connection: Connection) -> None:
        """Let somebody else serve a client, from the request that it has just made."""
        connection.job = None
        try:
            data = connection.line + connection.data
            self._answers.pass_on(connection.socket, connection.peer, data)
        except RequestError as error:
            connection.out.append(refusal(error))
            connection.ends = True
            self._write(connection)
        else:
            self.drop(connection)


def _not_permitted(peer: Peer, verb: str = "") -> str:
    what = f" ask for {quote(verb)}" if verb else " ask for anything"
    return f"uid {peer.uid} may not{what}; see control-allow"


def _send_last(socket: _socket.socket, line: bytes) -> None:
    """Send a line to somebody who is not let in; whether it is read is not our business."""
    try:
        socket.send(line, SEND)
    except OSError:
        return


def _open_limit() -> int:
    import resource

    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft < 0 else soft
