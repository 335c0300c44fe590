"""Namespaces over a unix socket: sharing our own, and joining those of another master.

The form is uWSGI's, so that each can join the other: the client connects and says nothing; the
server sends one message, the word `uwsgi-setns` and the number of descriptors as a C int, with the
descriptors of its /proc/self/ns, and closes.

Rule: nothing that comes is trusted. A descriptor is a namespace if the kernel says so, of which it
is asked without touching the file, which may be on a file system that never answers.
"""

from __future__ import annotations

import _socket
import os
import stat
import sys
from errno import EADDRINUSE, EAGAIN, ECONNREFUSED, ENOENT, EPROTOTYPE
from fcntl import ioctl
from struct import calcsize, unpack

from lowsuper.errors import KernelError, LowsuperError
from lowsuper.kernel import mount
from lowsuper.kernel.loop import READ
from lowsuper.kernel.ways import Joined
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.loop import Loop
    from lowsuper.model import MasterSpec

WORD = b"uwsgi-setns"
MOST = 64  # descriptors, as in uWSGI
BACKLOG = 64
AT_ONCE = 16  # clients in one turn of the loop
TIMER, SHARE_TIMER = "setns", "setns-socket"
AGAIN = 1 * SECOND  # as in uWSGI
PATIENCE = 10 * SECOND  # for the message, once connected
NS_GET_NSTYPE = 0xB703  # ioctl_nsfs(2); Linux 4.11
NEWTIME = 0x80
NAMES = {
    "mnt": mount.NEWNS,
    "uts": mount.NEWUTS,
    "ipc": mount.NEWIPC,
    "pid": mount.NEWPID,
    "net": mount.NEWNET,
    "cgroup": mount.NEWCGROUP,
    "time": NEWTIME,
}
"""Their names in /proc/PID/ns, and the flags of setns(2). Those of users are not shared."""
_INT = calcsize("i")


class RefusedError(LowsuperError):
    """What came over the socket is not what it should be."""


def read_peer(connection: _socket.socket) -> int:
    """Return the user id of whoever is at the other end. See SO_PEERCRED in unix(7)."""
    raw = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, calcsize("3i"))
    return int(unpack("3i", raw)[1])


def is_trusted(uid: int) -> bool:
    """Tell whether a peer may have our namespaces, or give us its own."""
    return uid in (0, os.geteuid())


# Sharing.


class Share:
    """The socket at which others get the namespaces of a process."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        skip: tuple[str, ...],
        find: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        """Listen.

        Args:
            loop: tells of clients.
            path: of the socket; one that nobody listens at any more is replaced.
            skip: names of /proc/PID/ns that are not shared.
            find: returns the pid, whose process we have not reaped; 0: there is none now.
            say: tells the operator a line.

        Raises:
            KernelError: the path is in use, or cannot be.
        """
        self.path, self.skip = path, skip
        self._loop, self._find, self._say = loop, find, say
        self._socket = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        try:
            _make_room(path)
            mask = os.umask(0o177)
            try:
                self._socket.bind(path)
            finally:
                os.umask(mask)
            self._socket.listen(BACKLOG)
            status = os.lstat(path)
        except OSError as error:
            self._socket.close()
            advice = error.advice if isinstance(error, KernelError) else ""
            raise KernelError("setns-socket", error.errno or 0, path, advice) from None
        self._identity = status.st_dev, status.st_ino
        self._watch()

    def _watch(self) -> None:
        self._loop.watch(self._socket.fileno(), READ, self._on_clients)

    def close(self) -> None:
        """Remove the socket, if it is still ours."""
        self._loop.cancel_timer(SHARE_TIMER)
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path)
        except OSError as error:
            if error.errno != ENOENT:
                self._say(str(KernelError("unlink", error.errno or 0, self.path)))

    def _on_clients(self) -> None:
        for _ in range(AT_ONCE):
            try:
                fd, _ = self._socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                self._say(str(KernelError("accept", error.errno or 0, self.path)))
                # The client waits on, and with it the socket is readable: not all the time.
                self._loop.unwatch(self._socket.fileno())
                self._loop.set_timer(SHARE_TIMER, Ns(self._loop.now() + AGAIN), self._watch)
                return
            client = _socket.socket(fileno=fd)
            try:
                client.setblocking(False)
                self._serve(client)
            except OSError as error:
                self._say(f"setns-socket {self.path}: {error.strerror}")
            finally:
                client.close()

    def _serve(self, client: _socket.socket) -> None:
        uid = read_peer(client)
        if not is_trusted(uid):
            self._say(f"setns-socket {self.path}: user {uid} may not join; refused")
            return
        pid = self._find()
        if not pid:
            return  # it comes again
        fds: list[int] = []
        try:
            directory = f"/proc/{pid}/ns"
            for name in filter(self._shares, os.listdir(directory)):
                fds.append(os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401  # what is open is closed
            data = b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in fds)
            text = WORD + len(fds).to_bytes(_INT, sys.byteorder)
            client.sendmsg([text], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)])
        finally:
            for fd in fds:
                os.close(fd)

    def _shares(self, name: str) -> bool:
        kind = name.removesuffix("_for_children")
        return kind in NAMES and not {name, kind} & {*self.skip}


def _make_room(path: str) -> None:
    """Remove a socket that nobody listens at.

    Raises:
        KernelError: EADDRINUSE, somebody does, or it is something else.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise KernelError("bind", EADDRINUSE, path, "something else than a socket is there")
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        probe.connect(path)
    except OSError as error:
        if error.errno == ECONNREFUSED:
            os.unlink(path)
            return
        if error.errno not in (EAGAIN, EPROTOTYPE):
            raise
    finally:
        probe.close()
    raise KernelError("bind", EADDRINUSE, path, "another process listens there")


def share(
    before: Share | None,
    spec: MasterSpec,
    loop: Loop,
    find: Callable[[], int],
    say: Callable[[str], None],
) -> Share | None:
    """Return the socket that a configuration asks for: the one of before, another, or none.

    Raises:
        KernelError: it cannot be had; the one of before is closed.
    """
    path, skip = spec.setns_socket, spec.setns_skip
    if before is not None:
        if (before.path, before.skip) == (path, skip):
            return before
        before.close()
    return None if path is None else Share(loop, path, skip, find, say)


# Joining.


class Joiner:
    """Asks another master for its namespaces, until it has them."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        *,
        take: Callable[[list[Joined]], None],
        fail: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """Begin; nothing is called back at once.

        Args:
            loop: tells of answers.
            path: of the socket.
            take: gets the descriptors, and closes them.
            fail: gets what is wrong with the answer.
            say: tells the operator what is waited for.
        """
        self._loop, self._path = loop, path
        self._take, self._fail, self._say = take, fail, say
        self._socket: _socket.socket | None = None
        self._said = ""
        self._loop.set_timer(TIMER, self._loop.now(), self._connect)

    def close(self) -> None:
        """Ask no more."""
        self._loop.cancel_timer(TIMER)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _wait(self, reason: str) -> None:
        """Try again in a while, as uWSGI does; say why once."""
        self._disconnect()
        if reason != self._said:
            self._said = reason
            self._say(f"waiting for the namespaces of {self._path}: {reason}")
        self._loop.set_timer(TIMER, Ns(self._loop.now() + AGAIN), self._connect)

    def _connect(self) -> None:
        self._socket = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        )
        self._loop.watch(self._socket.fileno(), READ, self._on_answer)
        try:
            self._socket.connect(self._path)
            uid = read_peer(self._socket)
        except OSError as error:
            self._wait(error.strerror or "no answer")
            return
        if not is_trusted(uid):
            self.close()
            self._fail(f"setns {self._path}: it is user {uid} who listens there, not root")
            return
        self._loop.set_timer(
            TIMER, Ns(self._loop.now() + PATIENCE), lambda: self._wait("it does not answer")
        )

    def _on_answer(self) -> None:
        if self._socket is None:
            return
        try:
            joined = receive(self._socket)
        except BlockingIOError:
            return
        except (RefusedError, OSError) as error:
            self.close()
            self._fail(f"setns {self._path}: {error}")
            return
        if joined is None:
            self._wait("it has none to share now")
            return
        self.close()
        self._take(joined)


def receive(connection: _socket.socket) -> list[Joined] | None:
    """Return the namespaces that come, which the caller closes; None: the peer has closed.

    Those that we are in already are left out; of several of a kind the last counts, as in uWSGI.

    Raises:
        BlockingIOError: nothing has come.
        RefusedError: it is no message of that form, or one of its descriptors no namespace.
    """
    size = len(WORD) + _INT
    space = _socket.CMSG_SPACE(MOST * _INT)
    text, rights, flags, _ = connection.recvmsg(size + 1, space, _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in rights:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            usable = len(data) - len(data) % _INT
            fds += [item[0] for item in _iterate(data[:usable])]
    if not text and not fds:
        return None
    found: dict[int, int] = {}
    try:
        found = _judge(text, fds, is_cut=bool(flags & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC)))
    finally:
        for fd in set(fds) - set(found.values()):
            os.close(fd)
    return [Joined(kind, fd) for kind, fd in found.items()]


def _judge(text: bytes, fds: list[int], *, is_cut: bool) -> dict[int, int]:
    """Return the descriptors that are to be joined, by their kind."""
    if is_cut:
        raise RefusedError("it sends more than a master that shares its namespaces does")
    if text != WORD + len(fds).to_bytes(_INT, sys.byteorder) or not fds:
        raise RefusedError("this is no answer of a master that shares its namespaces")
    kinds = {fd: find_kind(fd) for fd in fds}
    return {kind: fd for fd, kind in kinds.items() if kind}


def _iterate(data: bytes) -> list[tuple[int]]:
    return [unpack("i", data[at : at + _INT]) for at in range(0, len(data), _INT)]


def find_kind(fd: int) -> int:
    """Return the kind of a namespace, NEW*; 0: we are in it.

    Raises:
        RefusedError: it is none, or of a kind that is not joined.
    """
    link = os.readlink(f"/proc/self/fd/{fd}")
    name, _, number = link.partition(":[")
    if name not in NAMES or not number.removesuffix("]").isdigit():
        what = "a namespace of users" if name == "user" else f"{link}, which is no namespace"
        raise RefusedError(f"it sends {what}")
    if ioctl(fd, NS_GET_NSTYPE) != NAMES[name]:
        raise RefusedError(f"it sends {link}, of which the kernel says something else")
    return 0 if os.readlink(f"/proc/self/ns/{name}") == link else NAMES[name]
