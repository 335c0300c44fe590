"""The sockets at which statistics are served: one page to whoever connects, and that was it.

The master waits for no client. A page is rendered a few daemons at a time, with turns of the loop
in between, and once for all who wait for it; what a client does not take at once is kept for it.
Clients are bounded in number, where a new one takes the place of the oldest, and in time.
"""

from __future__ import annotations

import _socket
import os
import stat
from errno import EACCES, EADDRINUSE, ECONNABORTED, ECONNREFUSED, EINVAL, ENOENT, EPERM
from time import monotonic_ns, time_ns

from lowsuper.errors import KernelError
from lowsuper.kernel import trust
from lowsuper.kernel.loop import READ, WRITE
from lowsuper.kernel.native import move_high, openat2
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from lowsuper.chronicle import Chronicle
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.watch import Watcher
    from lowsuper.model import Endpoint, MasterSpec
    from lowsuper.stats import Page
    from lowsuper.supervisor import Supervisor

    class Realm(Protocol):
        """Where the statistics come from."""

        @property
        def chronicles(self) -> dict[str, Chronicle]:
            """What has become of each daemon."""

        @property
        def instance_name(self) -> str:
            """The name of the instance."""

        def leaf_of(self, name: str) -> str | None:
            """Return the directory of a daemon's cgroup."""

        def status_of(self, name: str) -> str | None:
            """Return what a daemon last told of its status."""


MOST = 32  # clients of an address
ACCEPTS = 8  # in one turn
BACKLOG = 128
PATIENCE: Ns = Ns(10 * SECOND)  # from the connection to the end
REST: Ns = Ns(1 * SECOND)  # after there were no descriptors left
BUDGET: Ns = Ns(500_000)  # of one turn
AT_ONCE = 8  # daemons between two looks at the clock
LONGEST_REQUEST = 8192
LONGEST_REST = 64 * 1024  # of what a client sends on
SEND = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL
RESOLVE_NO_SYMLINKS = 0x04
IN_ATTRIB, IN_MOVE_SELF = 0x4, 0x800
AGAIN: Ns = Ns(50_000_000)  # for one that was removed twice
LOOK = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Listener:
    """A socket that listens, and its file if it has one."""

    __slots__ = ("_dir_fd", "_made", "_name", "fd", "socket")

    def __init__(
        self,
        option: str,
        endpoint: Endpoint,
        mode: int | None,
        owner: tuple[int, int],
        *,
        backlog: int = BACKLOG,
    ) -> None:
        """Listen.

        Args:
            option: that asks for it, for messages.
            endpoint: where.
            mode: of the file; None: as the umask is.
            owner: user and group of the file; -1: who makes it.
            backlog: how many may wait to be let in.

        Raises:
            KernelError: it cannot be had.
        """
        self._dir_fd, self._name, self._made = -1, "", (0, 0)
        family = {"tcp": _socket.AF_INET, "tcp6": _socket.AF_INET6}.get(
            endpoint.kind, _socket.AF_UNIX
        )
        try:
            made = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            self.fd = move_high(made.detach())
            self.socket = _socket.socket(family, _socket.SOCK_STREAM, 0, fileno=self.fd)
        except OSError as error:
            raise KernelError(option, error.errno or 0, endpoint.text) from None
        try:
            self.socket.setblocking(False)
            if endpoint.kind == "unix":
                self._bind_file(endpoint.host, mode, owner)
            elif endpoint.kind == "abstract":
                self.socket.bind(b"\0" + os.fsencode(endpoint.host))
            else:
                self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
                self.socket.bind((endpoint.host, endpoint.port))
            self.socket.listen(backlog)
        except OSError as error:
            self.close()
            advice = error.advice if isinstance(error, KernelError) else ""
            if not advice and error.errno == EADDRINUSE:
                advice = "another process listens there"
            number = error.errno or 0
            if isinstance(error, _socket.gaierror):
                number, advice = EINVAL, "there is no such address"
            raise KernelError(option, number, endpoint.text, advice) from None

    def _bind_file(self, path: str, mode: int | None, owner: tuple[int, int]) -> None:
        directory, _, name = path.rpartition("/")
        self._dir_fd = open_place(directory or "/")
        make_room(name, self._dir_fd, owner[0])
        # The kernel takes no long paths here, and the directory is the one that was judged.
        place = f"/proc/self/fd/{self._dir_fd}/{name}"
        if mode is None:
            self.socket.bind(place)
        else:
            # The file gets the mode of the socket, less the umask: see unix_bind() in the kernel.
            os.fchmod(self.fd, mode)
            umask = os.umask(0)
            try:
                self.socket.bind(place)
            finally:
                os.umask(umask)
        self._name = name
        status = os.stat(name, dir_fd=self._dir_fd, follow_symlinks=False)
        self._made = status.st_dev, status.st_ino
        if owner != (-1, -1):
            os.chown(name, *owner, dir_fd=self._dir_fd, follow_symlinks=False)

    def is_there(self) -> bool:
        """Return whether the name of its file, if it has one, leads to it."""
        if not self._name:
            return True
        try:
            status = os.stat(self._name, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._made

    def close(self, *, remove: bool = True) -> None:
        """Listen no more; remove the file, if that is wanted, it is still this one, and we may."""
        self.socket.close()
        if self._dir_fd < 0:
            return
        try:
            if remove and self._name and self.is_there():
                os.unlink(self._name, dir_fd=self._dir_fd)
        except OSError as error:
            # Whoever dropped privileges leaves it; the next master replaces it.
            if error.errno not in (ENOENT, EACCES, EPERM):
                raise
        finally:
            os.close(self._dir_fd)
            self._dir_fd = -1


def open_place(directory: str) -> int:
    """Return a descriptor of the directory of a socket file, which the caller closes.

    Where others can change what the path leads to, it has to be free of links: then they can
    lead it to no place that is not theirs already.

    Raises:
        KernelError: it cannot be reached, or others lead it who knows where.
    """
    try:
        return trust.open_trusted(directory, sticky=True)
    except trust.UntrustedError as error:
        try:
            return openat2(-100, directory, LOOK, resolve=RESOLVE_NO_SYMLINKS)
        except OSError as failure:
            raise KernelError("open", failure.errno or 0, directory, str(error)) from None


def make_room(name: str, dir_fd: int, owner: int) -> None:
    """Remove a socket of ours that nobody listens to any more, and nothing else.

    Args:
        name: of the socket file.
        dir_fd: of its directory.
        owner: the user that it would belong to; -1: us.

    Raises:
        KernelError: EADDRINUSE, there is something else.
    """

    def refuse(why: str) -> KernelError:
        return KernelError("bind", EADDRINUSE, name, why)

    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise refuse("something else than a socket is there")
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        probe.setblocking(False)
        probe.connect(f"/proc/self/fd/{dir_fd}/{name}")
    except OSError as error:
        if error.errno != ECONNREFUSED:
            raise refuse("another process listens there") from None
    else:
        raise refuse("another process listens there")
    finally:
        probe.close()
    if status.st_uid not in (0, os.geteuid(), owner):
        raise refuse(f"a socket of uid {status.st_uid} is there; remove it")
    os.unlink(name, dir_fd=dir_fd)


class Client:
    """Somebody who wants a page."""

    __slots__ = ("data", "deadline", "is_done", "is_head", "out", "socket", "taken")

    def __init__(self, socket: _socket.socket, deadline: Ns) -> None:
        """Begin with what was accepted."""
        self.socket, self.deadline = socket, deadline
        self.data = b""  # the request
        self.out = memoryview(b"")
        self.is_head = False  # it asks for the header alone
        self.is_done = False  # all was sent; it has to close
        self.taken = 0  # bytes that came when nothing was asked any more


class Port:
    """One address, its page and its clients."""

    def __init__(
        self,
        loop: Loop,
        option: str,
        listener: Listener,
        views: Callable[[Page], Iterator[bytes | None]],
    ) -> None:
        """Begin without a client; `serve_as` comes next.

        Args:
            loop: tells of clients.
            option: that asks for it.
            listener: which is closed with the port.
            views: fills a page, a few daemons at a time, and gives the whole at last.
        """
        self._loop, self._views = loop, views
        self._listener = listener
        self._timer, self._turn, self._rest = (
            f"{option}\0{what}" for what in ("clients", "page", "rest")
        )  # no daemon has a name with such a character
        self._clients: dict[int, Client] = {}  # the oldest first
        self._line: list[int] = []  # those that wait for the page
        self._job: Iterator[bytes | None] | None = None
        self._page: Page
        self._http = False
        self.longest: Ns = Ns(0)  # of all turns of rendering, for those who measure
        loop.watch(listener.fd, READ, self._on_clients)

    def serve_as(self, page: Page, *, http: bool) -> None:
        """Serve this page from now on."""
        self._page, self._http = page, http
        if self._job is not None:
            self._job = self._views(page)

    def is_there(self) -> bool:
        """Return whether others find it where it is to be."""
        return self._listener.is_there()

    def listen(self, listener: Listener) -> None:
        """Listen there in place of where nobody finds us; clients that are here stay."""
        self._loop.cancel_timer(self._rest)
        self._loop.unwatch(self._listener.fd)
        self._listener.close()
        self._listener = listener
        self._loop.watch(listener.fd, READ, self._on_clients)

    def close(self) -> None:
        """Let go of all."""
        for fd in list(self._clients):
            self._drop(fd)
        for key in (self._timer, self._turn, self._rest):
            self._loop.cancel_timer(key)
        self._loop.unwatch(self._listener.fd)
        self._listener.close()

    # Clients.

    def _on_clients(self) -> None:
        for _ in range(ACCEPTS):
            try:
                # `_accept` is what socket.socket.accept is made of.
                fd, _ = self._listener.socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == ECONNABORTED:
                    continue
                # They wait on, and with them the socket is readable: not all the time.
                self._loop.unwatch(self._listener.fd)
                self._loop.set_timer(self._rest, Ns(self._loop.now() + REST), self._open_again)
                return
            self._take(move_high(fd))

    def _open_again(self) -> None:
        self._loop.watch(self._listener.fd, READ, self._on_clients)

    def _take(self, fd: int) -> None:
        if len(self._clients) >= MOST:
            self._drop(next(iter(self._clients)))
        made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=fd)
        made.setblocking(False)
        deadline = Ns(self._loop.now() + PATIENCE)
        if not self._clients:
            self._loop.set_timer(self._timer, deadline, self._on_deadline)
        self._clients[fd] = Client(made, deadline)
        if self._http:
            self._loop.watch(fd, READ, lambda: self._read(fd))
        else:
            self._queue(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._loop.unwatch(fd)
        client.socket.close()
        if not self._clients:
            self._loop.cancel_timer(self._timer)

    def _on_deadline(self) -> None:
        now = self._loop.now()
        for fd, client in list(self._clients.items()):
            if client.deadline > now:
                self._loop.set_timer(self._timer, client.deadline, self._on_deadline)
                return
            self._drop(fd)

    def _read(self, fd: int) -> None:
        """Take a request; what it asks for makes no difference, but that there is an end of it."""
        client = self._clients[fd]
        try:
            data = client.socket.recv(LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._drop(fd)
            return
        client.data += data
        if not client.data:
            self._drop(fd)
            return
        ends = b"\r\n\r\n" in client.data or b"\n\n" in client.data
        if ends or not data or len(client.data) >= LONGEST_REQUEST:
            client.is_head = client.data.startswith(b"HEAD ")
            client.data = b""
            self._loop.unwatch(fd)
            self._queue(fd)

    # The page.

    def _queue(self, fd: int) -> None:
        """Have a client wait for the page; until then nothing is heard of it."""
        self._line.append(fd)
        if self._job is None:
            self._job = self._views(self._page)
            self._loop.set_timer(self._turn, self._loop.now(), self._render)

    def _render(self) -> None:
        """Go on with the page for one turn."""
        begin = now = monotonic_ns()
        assert self._job is not None
        for whole in self._job:
            now = monotonic_ns()
            if whole is not None:
                self._job = None
                self._give(whole)
                break
            if now - begin >= BUDGET:
                self._loop.set_timer(self._turn, Ns(now), self._render)
                break
        self.longest = Ns(max(self.longest, now - begin))

    def _give(self, whole: bytes) -> None:
        header = self._format_header(len(whole)) if self._http else b""
        full = header + whole
        line, self._line = self._line, []
        for fd in line:
            # Race: it was dropped, and perhaps another has its number and is in line, too.
            client = self._clients.get(fd)
            if client is not None and not client.out and not client.is_done:
                client.out = memoryview(header if client.is_head else full)
                self._loop.unwatch(fd)
                self._loop.watch(fd, WRITE, lambda fd=fd: self._write(fd))  # type: ignore[misc]

    def _format_header(self, length: int) -> bytes:
        everybody = "Access-Control-Allow-Origin: *\r\n" if self._page.for_all else ""
        return (
            f"HTTP/1.0 200 OK\r\nConnection: close\r\n{everybody}"
            f"Content-Type: {self._page.content_type}\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    def _write(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            client.out = client.out[client.socket.send(client.out, SEND) :]
            if client.out:
                return
            # A close would take back what is on its way, if the client had sent something that
            # was not read: it has to see the end and close itself.
            client.is_done = True
            client.socket.shutdown(_socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self._drop(fd)
            return
        self._loop.unwatch(fd)
        self._loop.watch(fd, READ, lambda: self._drain(fd))

    def _drain(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            data = client.socket.recv(LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.taken += len(data)
        if not data or client.taken > LONGEST_REST:
            self._drop(fd)


class Stats:
    """All that is served of statistics."""

    def __init__(
        self,
        loop: Loop,
        realm: Realm,
        supervisor: Callable[[], Supervisor],
        watcher: Watcher,
        say: Callable[[str], None],
    ) -> None:
        """Begin with nothing.

        Args:
            loop: tells of clients.
            realm: where it comes from.
            supervisor: returns where the states are.
            watcher: tells when somebody removes a socket file.
            say: tells the operator a line.
        """
        self._loop, self._realm, self._supervisor = loop, realm, supervisor
        self._watcher, self._say = watcher, say
        self._numbers: dict[str, int] = {}  # of the socket files that are watched
        self._owner = -1, -1
        self._ports: dict[str, tuple[Endpoint, int | None, Port]] = {}

    def use(self, spec: MasterSpec, owner: tuple[int, int] = (-1, -1)) -> None:
        """Serve what a configuration asks for, and no more.

        Args:
            spec: the configuration.
            owner: user and group of socket files; -1: who makes them.

        Raises:
            KernelError: an address cannot be had; the one of before is still served.
        """
        # Before privileges are dropped: the user may not be allowed to read the library.
        from lowsuper.stats import JsonPage, MetricsPage

        self._owner = owner
        for option, endpoint in (("stats", spec.stats), ("metrics", spec.metrics)):
            before = self._ports.get(option)
            if endpoint is None:
                if before is not None:
                    self._close(option)
                continue
            if before is None or before[:2] != (endpoint, spec.socket_mode):
                self._open(option, endpoint, spec.socket_mode, owner)
            port = self._ports[option][2]
            if option == "stats":
                port.serve_as(JsonPage(minified=spec.stats_minified), http=spec.stats_http)
            else:
                port.serve_as(MetricsPage(), http=True)

    def _open(
        self, option: str, endpoint: Endpoint, mode: int | None, owner: tuple[int, int]
    ) -> None:
        """Listen at another address in place of the one of before."""
        before = self._ports.get(option)
        try:
            listener = Listener(option, endpoint, mode, owner)
        except KernelError as error:
            if before is None or error.errno != EADDRINUSE or not may_clash(before[0], endpoint):
                raise
            self._close(option)
            try:
                listener = Listener(option, endpoint, mode, owner)
            except KernelError:
                self._put(option, *before[:2], Listener(option, *before[:2], owner))
                raise
        if option in self._ports:
            self._close(option)
        self._put(option, endpoint, mode, listener)

    def _put(self, option: str, endpoint: Endpoint, mode: int | None, listener: Listener) -> None:
        self._ports[option] = endpoint, mode, Port(self._loop, option, listener, self._fill)
        self._watch(option)

    def _watch(self, option: str) -> None:
        """Be told when the socket file is removed, or another takes its place."""
        self._unwatch(option)
        endpoint = self._ports[option][0]
        if endpoint.kind != "unix":
            return

        def look() -> None:
            self._look(option)

        try:
            # An open socket outlives its name; what tells is the number of its links.
            mask = IN_ATTRIB | IN_MOVE_SELF
            self._numbers[option] = self._watcher.add(endpoint.host, look, mask)
        except FileNotFoundError:
            self._loop.set_timer(_key(option), Ns(self._loop.now() + AGAIN), look)
        except OSError as error:
            self._say(f"{option}: {endpoint.host} is not watched: {error.strerror}")

    def _unwatch(self, option: str) -> None:
        self._loop.cancel_timer(_key(option))
        number = self._numbers.pop(option, None)
        if number is not None:
            self._watcher.remove(number)

    def _look(self, option: str) -> None:
        """See whether the socket file is still ours, and make it again where it is not."""
        endpoint, mode, port = self._ports[option]
        if port.is_there():
            return
        try:
            port.listen(Listener(option, endpoint, mode, self._owner))
        except KernelError as error:
            self._say(f"{endpoint.host} was removed, and cannot be made again: {error}")
            self._unwatch(option)
        else:
            self._say(f"{endpoint.host} was removed or replaced; made again")
            self._watch(option)

    def _fill(self, page: Page) -> Iterator[bytes | None]:
        """Fill a page, a few daemons at a time, and give the whole at last."""
        from lowsuper.control import Place
        from lowsuper.stats import Instance, View

        supervisor, realm = self._supervisor(), self._realm
        waiting, specs = frozenset(supervisor.master.waiting), supervisor.specs
        for number, name in enumerate(list(supervisor.states)):
            spec, state = specs.get(name), supervisor.states.get(name)
            if spec is None or state is None:
                continue  # a reload has taken it away meanwhile
            place = Place(name in waiting, realm.leaf_of(name), realm.status_of(name))
            page.add(View(spec, state, realm.chronicles.get(name), place))
            if number % AT_ONCE == AT_ONCE - 1:
                yield None
        master, spec_of_all = supervisor.master, supervisor.spec
        yield page.finish(
            Instance(
                name=realm.instance_name,
                pid=os.getpid(),
                uid=os.getuid(),
                gid=os.getgid(),
                cwd=find_directory(),
                files=spec_of_all.files,
                phase=master.phase,
                since=master.since,
                now=Ns(monotonic_ns()),
                time=Ns(time_ns()),
            )
        )

    def close(self) -> None:
        """Serve nothing."""
        for option in list(self._ports):
            self._close(option)

    def _close(self, option: str) -> None:
        self._unwatch(option)
        self._ports.pop(option)[2].close()


def _key(option: str) -> str:
    return f"{option}\0file"  # no daemon has a name with such a character


def may_clash(one: Endpoint, other: Endpoint) -> bool:
    """Tell whether two addresses may be the same, or one be part of the other, as :80 is."""
    if one.port or other.port:
        return one.port == other.port
    return (one.kind, one.host) == (other.kind, other.host)


def find_directory() -> str:
    """Return the working directory; "" where it is gone or out of reach."""
    try:
        return os.getcwd()
    except OSError:
        return ""
