"""What daemons tell by sd_notify(3): the sockets of one master, and whose words are believed.

A datagram counts for a daemon if the kernel says that its main process has sent it, or, with
`notify_access = all`, any process of its kill domain: the number of the sender comes with each
datagram (SCM_CREDENTIALS), and what pins the process behind it where the kernel has that
(SCM_PIDFD, Linux 6.5). Without privileges nobody can pretend to be another, see unix(7).

There are two sockets at most, each made when the first daemon needs it: one with a path in the
runtime directory, which stays the same over restarts of the master, and an abstract one, for
daemons whose root directory is their own; abstract names belong to a network namespace.

Anybody may send: so what is read in one turn of the loop, and in a while, is bounded. Who sends
more than that waits in the kernel.
"""

from __future__ import annotations

import _socket
import os
from struct import Struct

from lowsuper.errors import KernelError
from lowsuper.events import Ready, WatchdogMissed
from lowsuper.kernel import cgroup, inspect, process
from lowsuper.kernel.loop import READ
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from lowsuper.events import DaemonEvent
    from lowsuper.kernel.cgroup import Leaf
    from lowsuper.kernel.loop import Loop
    from lowsuper.model import DaemonSpec
    from lowsuper.units import Ns, RunId

    class Life(Protocol):
        """What is asked of one life of a daemon."""

        @property
        def known_pid(self) -> int:
            """The pid of its main process, also when that has ended; 0: not known yet."""

        @property
        def known_pidfd(self) -> int:
            """The pidfd of the same, which stays the life's; -1: there is none."""

        @property
        def keeper_pid(self) -> int:
            """The pid of the process that keeps its domain; 0: there is none."""

        @property
        def leaf(self) -> Leaf | None:
            """Its leaf on the cgroup rung."""


SO_PASSPIDFD, SCM_PIDFD = 76, 4  # of linux/socket.h, as nearly all machines number them
LONGEST = 4096  # bytes of a datagram, as systemd has it
LONGEST_STATUS = 200  # characters that are kept
MOST_FDS = 8  # that are taken off a datagram, to be closed; the kernel closes the rest
PARENTS_MOST = 1000

TURN: Ns = SECOND // 1000  # of work in one turn of the loop...
SHARE: Ns = SECOND // 200  # ...and in...
WINDOW: Ns = SECOND // 20  # ...this time: a tenth of a processor
FLOOD_PATIENCE: Ns = SECOND  # for the watchdog of one that others keep from being heard
QUIET: Ns = 60 * SECOND  # between two lines about strangers
LONGEST_EXTENSION: Ns = 86_400 * SECOND  # from each time that it is asked for
LONGEST_WATCHDOG = 100 * 365 * 86_400 * SECOND
KEY = "notify\0"  # of timers; no daemon has a name with such a character

_CREDENTIALS = Struct("iII")  # struct ucred: pid, uid, gid
_INT = Struct("i")
_ROOM = (
    _socket.CMSG_SPACE(_CREDENTIALS.size)
    + _socket.CMSG_SPACE(_INT.size)
    + _socket.CMSG_SPACE(_INT.size * MOST_FDS)
)
_FLAGS = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
_DISABLED = (0, (1 << 64) - 1)  # of WATCHDOG_USEC

RELOADING, STOPPING = "reloading", "stopping"


def asks(spec: DaemonSpec) -> bool:
    """Return whether a daemon gets a socket to notify."""
    by_ready = spec.ready is not None and spec.ready.kind == "notify"
    return by_ready or spec.watchdog is not None or bool(spec.notify_access)


class Peer:
    """One run of one daemon that may notify."""

    __slots__ = (
        "access_all",
        "awaited_until",
        "fed",
        "found",
        "interval",
        "is_fed",
        "is_late",
        "is_ready",
        "is_up",
        "life",
        "main",
        "name",
        "phase",
        "run",
        "said",
        "status",
    )

    def __init__(self, spec: DaemonSpec, run: RunId, life: Life, *, found: bool) -> None:
        """Begin with a life that has said nothing; `found`: another master has started it."""
        self.name, self.run, self.life = spec.name, run, life
        self.access_all = spec.notify_access == "all"
        self.interval: Ns = spec.watchdog or 0
        self.main: tuple[int, int] = (0, 0)  # what it said is its main process: pid and inode
        self.found = found
        self.awaited_until: Ns = 0  # as it has asked for; counts until it is ready
        self.is_up = False  # it is ready, whoever said so
        self.is_late = False  # it is waited for
        self.is_ready = False  # it said so
        self.is_fed = False  # its watchdog runs...
        self.fed: Ns = 0  # ...since then
        self.status = self.phase = ""
        self.said: set[str] = set()  # what the operator was told once


class Notifications:
    """Owns the sockets and the watchdogs of one master's daemons."""

    def __init__(
        self,
        loop: Loop,
        *,
        path: str,
        instance: Callable[[], str],
        post: Callable[[str, DaemonEvent], None],
        say: Callable[[str], None],
        changed: Callable[[str], None],
    ) -> None:
        """Open nothing yet.

        Args:
            loop: to watch and to time with.
            path: of the socket, in a directory that only we can write to; "": there is none.
            instance: tells how this master's cgroups are named, or "".
            post: takes what happens to a daemon.
            say: tells the operator a line.
            changed: is told the name of a daemon whose status or phase is another one.
        """
        self._loop, self._path, self._instance = loop, path, instance
        self._post, self._say, self._changed = post, say, changed
        self._sockets: dict[str, _socket.socket] = {}  # by address
        self._private = ""  # the address of the abstract one
        self._peers: dict[str, Peer] = {}
        self._leaves: dict[int, Peer] = {}  # by the inode of a leaf
        self._mains: dict[int, Peer] | None = None  # by pid; made anew where it may be wrong
        self._is_fresh = False
        self._window: Ns = 0  # when the one began in which...
        self._spent: Ns = 0  # ...so much was done
        self._is_paused = False
        self._quiet_until: Ns = 0

    # The sockets.

    def variables(self, spec: DaemonSpec) -> tuple[bytes, ...]:
        """Return what a daemon that asks for it gets into its environment.

        Raises:
            KernelError: there can be no socket that it could reach.
        """
        found = [b"NOTIFY_SOCKET=" + os.fsencode(self._address_for(spec))]
        if spec.watchdog is not None:
            found.append(b"WATCHDOG_USEC=%d" % max(1, spec.watchdog // 1000))
            if spec.notify_access != "all":
                found.append(b"WATCHDOG_PID=0000000000")  # the helper fills it in: csrc/child.c
        return tuple(found)

    def prepare(self) -> None:
        """Open the socket with a path, as long as that can be done."""
        if self._path:
            self._try_path()

    def _try_path(self) -> OSError | None:
        try:
            self._open(self._path)
        except OSError as error:
            return error
        return None

    def _address_for(self, spec: DaemonSpec) -> str:
        is_hidden = spec.root is not None or any(
            self._path.startswith(keep.target.rstrip("/") + "/") for keep in spec.mounts
        )
        has_net = "net" in spec.namespaces or spec.netns is not None
        if self._path and not is_hidden:
            error = self._try_path()
            if error is None:
                return self._path
            if has_net:
                raise error
            self._say(f"{error}; an abstract socket is used instead")
            self._path = ""
        if has_net:
            advice = "a network namespace of its own needs the runtime directory"
            raise KernelError("bind", 0, "notification socket", advice)
        if not self._private:
            self._private = self._open(f"@lowsuper/notify/{os.urandom(8).hex()}")
        return self._private

    def _open(self, address: str) -> str:
        """Make a socket unless it is there; return its address as a daemon gets it."""
        if address in self._sockets:
            return address
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
            try:  # noqa: SIM105  # contextlib takes long to import
                sock.setsockopt(_socket.SOL_SOCKET, SO_PASSPIDFD, 1)
            except OSError:
                pass  # Linux before 6.5
            if address.startswith("@"):
                sock.bind(b"\0" + os.fsencode(address[1:]))
            else:
                _unlink(address)  # of a master that was killed: the instance is ours alone
                sock.bind(address)
                # Who sends is judged, and any user may be a daemon's.
                os.chmod(address, 0o666)  # noqa: S103
        except OSError as error:
            sock.close()
            raise KernelError("bind", error.errno or 0, address) from None
        self._sockets[address] = sock
        self._watch(sock)
        return address

    def close(self) -> None:
        """Close everything, and remove the socket's file."""
        for name in list(self._peers):
            self._remove(name)
        self._loop.cancel_timer(KEY)
        for address, sock in self._sockets.items():
            self._loop.unwatch(sock.fileno())
            sock.close()
            if not address.startswith("@"):
                _unlink(address)
        self._sockets.clear()

    # The daemons.

    def expect(self, spec: DaemonSpec, run: RunId, life: Life, *, found: bool) -> None:
        """Listen to a run from now on; of a daemon there is only one at a time."""
        self._remove(spec.name)
        peer = self._peers[spec.name] = Peer(spec, run, life, found=found)
        self._mains = None
        if life.leaf is not None:
            self._leaves[life.leaf.id] = peer

    def forget(self, name: str, life: Life) -> None:
        """Listen no more to what is over."""
        peer = self._peers.get(name)
        if peer is not None and peer.life is life:
            self._remove(name)

    def _remove(self, name: str) -> None:
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._starve(peer)
            self._mains = None
            self._leaves = {key: each for key, each in self._leaves.items() if each is not peer}

    def is_ready(self, name: str, run: RunId) -> bool:
        """Return whether a run has said that it is ready."""
        peer = self._peers.get(name)
        return peer is not None and peer.run == run and peer.is_ready

    def status_of(self, name: str) -> str | None:
        """Return what a daemon last said of its status; None: nothing."""
        peer = self._peers.get(name)
        return peer.status if peer is not None and peer.status else None

    def phase_of(self, name: str) -> str:
        """Return "reloading" or "stopping" if a daemon said so, else ""."""
        peer = self._peers.get(name)
        return "" if peer is None else peer.phase

    def tell_ready(self, name: str) -> None:
        """Post once more that a daemon is ready."""
        peer = self._peers.get(name)
        if peer is not None:
            self._post(name, Ready(peer.run))

    def awaited_until(self, name: str, run: RunId) -> Ns:
        """Return until when a run has asked to be waited for; 0: it has not."""
        peer = self._peers.get(name)
        return 0 if peer is None or peer.run != run or not peer.is_late else peer.awaited_until

    def runs(self, name: str, *, ready: bool | None) -> None:
        """Take note that a daemon runs and is ready or not; None: that it does not.

        The watchdog begins then; that of a daemon which an earlier master started begins when
        it is fed for the first time, since it may feed a socket that is no more.
        """
        peer = self._peers.get(name)
        if peer is None:
            return
        peer.is_late = ready is False
        if peer.is_up == bool(ready):
            return
        peer.is_up = bool(ready)
        if not ready:
            self._starve(peer)
        elif not peer.is_fed and not peer.found:
            self._feed(peer)

    # Watchdogs.

    def _feed(self, peer: Peer) -> None:
        peer.fed = self._loop.now()
        if not peer.interval:
            self._starve(peer)
        elif not peer.is_fed:
            peer.is_fed = True
            self._time(peer, peer.fed + peer.interval)

    def _starve(self, peer: Peer) -> None:
        """End the watchdog, not the daemon."""
        if peer.is_fed:
            peer.is_fed = False
            self._loop.cancel_timer(KEY + peer.name)

    def _time(self, peer: Peer, at: Ns) -> None:
        self._loop.set_timer(KEY + peer.name, at, lambda: self._on_time(peer))

    def _on_time(self, peer: Peer) -> None:
        """Look whether it was fed; what it sent in time may not be read yet."""
        for sock in self._sockets.values():
            self._on_readable(sock)
        if not peer.is_fed or self._peers.get(peer.name) is not peer:
            return
        now, due = self._loop.now(), peer.fed + peer.interval
        if self._is_paused and due <= now < due + FLOOD_PATIENCE:
            due = now + WINDOW  # it may be among those who wait to be heard
        if now < due:
            # Feeding sets no timer: there may be thousands a second.
            self._time(peer, due)
        else:
            self._miss(peer)

    def _miss(self, peer: Peer) -> None:
        self._starve(peer)
        silence = self._loop.now() - peer.fed
        self._post(peer.name, WatchdogMissed(peer.run, silence))

    # What comes in.

    def _on_readable(self, sock: _socket.socket) -> None:
        """Read for a while, and then let others have their turn."""
        if self._is_paused:
            return
        began = now = self._loop.now()
        if began - self._window >= WINDOW:
            self._window, self._spent = began, 0
        end = began + min(TURN, SHARE - self._spent)
        self._is_fresh = False
        while now < end and self._take_one(sock):
            now = self._loop.now()
        self._spent += now - began
        if self._spent >= SHARE:
            self._is_paused = True
            for each in self._sockets.values():
                self._loop.unwatch(each.fileno())
            self._loop.set_timer(KEY, self._window + WINDOW, self._on_pause_end)

    def _on_pause_end(self) -> None:
        self._is_paused = False
        for sock in self._sockets.values():
            self._watch(sock)

    def _watch(self, sock: _socket.socket) -> None:
        self._loop.watch(sock.fileno(), READ, lambda: self._on_readable(sock))

    def _take_one(self, sock: _socket.socket) -> bool:
        """Read one datagram and do what it says; return False if there is none."""
        try:
            data, ancillary, flags, _ = sock.recvmsg(LONGEST, _ROOM, _FLAGS)
        except BlockingIOError:
            return False
        pid = uid = 0
        pidfd = -1
        fds: list[int] = []
        for level, kind, value in ancillary:
            if level != _socket.SOL_SOCKET:
                continue
            if kind == _socket.SCM_CREDENTIALS:
                pid, uid, _ = _CREDENTIALS.unpack(value)
            elif kind == SCM_PIDFD:
                pidfd = _INT.unpack(value)[0]
            elif kind == _socket.SCM_RIGHTS:
                whole = len(value) // _INT.size * _INT.size
                fds += [number for (number,) in _INT.iter_unpack(value[:whole])]
        try:
            peer = self._judge(pid, uid, pidfd)
            if peer is not None:
                is_cut = bool(flags & _socket.MSG_TRUNC)
                self._take(peer, data, is_cut=is_cut)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
            # That of a BARRIER=1 is answered by its closing; to keep others was not promised.
            for fd in fds:
                os.close(fd)
        return True

    # Who it is.

    def _judge(self, pid: int, uid: int, pidfd: int) -> Peer | None:
        """Return whose process has sent a datagram, if that one may; else say so."""
        if pid <= 0:  # from outside of our pid namespace
            return None
        peer = self._find_main(pid)
        if peer is not None and _is_process(pidfd, peer, pid):
            return peer
        peer = self._find_home(pid, pidfd)
        if peer is None:
            now = self._loop.now()
            if now >= self._quiet_until:
                self._quiet_until = now + QUIET
                why = "it is no daemon's"
                if not process.is_running(pid):
                    why = "it has ended, so nobody knows whose it was; it should wait to be heard"
                self._say(f"a notification of pid {pid} (uid {uid}) was refused: {why}")
            return None
        if peer.access_all:
            return peer
        main = peer.main[0] or peer.life.known_pid
        self._say_once(
            peer,
            "refused",
            f"a notification of pid {pid} (uid {uid}) was refused: the main process is {main}"
            " (notify_access = all lets every process of it notify)",
        )
        return None

    def _find_main(self, pid: int) -> Peer | None:
        """Return the daemon whose main process has a number."""
        if self._mains is not None:
            peer = self._mains.get(pid)
            if peer is not None or self._is_fresh:
                return peer
        self._is_fresh = True  # once a turn is enough, whoever asks
        self._mains = {peer.life.known_pid: peer for peer in self._peers.values()}
        self._mains |= {peer.main[0]: peer for peer in self._peers.values() if peer.main[0]}
        self._mains.pop(0, None)
        return self._mains.get(pid)

    def _find_home(self, pid: int, pidfd: int) -> Peer | None:
        """Return the daemon in whose kill domain a process is, or was when it ended."""
        info = process.exit_info(pidfd) if pidfd >= 0 else None
        if info is not None and (peer := self._leaves.get(info.cgroup_id)) is not None:
            return peer
        path = cgroup.directory_of(inspect.cgroup_of(pid))
        place = cgroup.find_place(path) if path else None
        if place is not None and place.instance == self._instance():
            return self._peers.get(place.daemon)
        return self._find_kept(pid)

    def _find_kept(self, pid: int) -> Peer | None:
        """Return the daemon whose keeper a process is below."""
        keepers = {peer.life.keeper_pid: peer for peer in self._peers.values()}
        keepers.pop(0, None)
        if not keepers:
            return None
        for _ in range(PARENTS_MOST):
            parent = inspect.parent_of(pid)
            if parent <= 1:
                return None
            if (peer := keepers.get(parent)) is not None:
                if not peer.life.known_pid:
                    # Race: the keeper has not told the number of the process that it began with.
                    peer.main = (pid, 0)
                    self._mains = None
                return peer
            pid = parent
        return None

    # What it says.

    def _take(self, peer: Peer, data: bytes, *, is_cut: bool) -> None:
        if is_cut:
            self._say_once(
                peer, "long", f"a notification of more than {LONGEST} bytes was not read"
            )
            return
        before = peer.status, peer.phase
        words: dict[bytes, bytes] = {}
        for line in data.split(b"\n"):
            name, equals, value = line.partition(b"=")
            if equals:
                words[name] = value
        if b"STATUS" in words:
            peer.status = clean(words[b"STATUS"])
        if (number := _number(words.get(b"ERRNO"))) and number < 4096:
            peer.status = f"{peer.status} ({os.strerror(number)})".strip()
        self._take_phase(peer, words)
        if (span := _number(words.get(b"EXTEND_TIMEOUT_USEC"))) is not None:
            peer.awaited_until = self._loop.now() + min(span * 1000, LONGEST_EXTENSION)
        self._take_watchdog(peer, words)
        if b"MAINPID" in words:
            self._take_main(peer, words[b"MAINPID"])
        if b"FDSTORE" in words:
            self._say_once(peer, "store", "no descriptors are kept for it: FDSTORE was refused")
        if (peer.status, peer.phase) != before:
            self._changed(peer.name)

    def _take_phase(self, peer: Peer, words: dict[bytes, bytes]) -> None:
        if words.get(b"STOPPING") == b"1":
            peer.phase = STOPPING
            self._starve(peer)
        elif words.get(b"RELOADING") == b"1":
            peer.phase = RELOADING
        elif words.get(b"READY") == b"1":
            peer.phase = ""
        if words.get(b"READY") == b"1" and not peer.is_ready:
            peer.is_ready = True
            self._post(peer.name, Ready(peer.run))

    def _take_watchdog(self, peer: Peer, words: dict[bytes, bytes]) -> None:
        interval = _number(words.get(b"WATCHDOG_USEC"))
        if interval is not None:
            span = 0 if interval in _DISABLED else min(interval * 1000, LONGEST_WATCHDOG)
            peer.interval = span
            self._starve(peer)
            self._feed(peer)
        match words.get(b"WATCHDOG"):
            case b"1":
                self._feed(peer)
            case b"trigger":
                if not peer.is_fed:
                    peer.fed = self._loop.now()
                self._miss(peer)
            case _:
                pass

    def _take_main(self, peer: Peer, value: bytes) -> None:
        """Believe that another process is the main one, if it is the daemon's at all."""
        number = _number(value) or 0
        pid = inspect.translate(number, peer.life.keeper_pid) or number
        if pid in (peer.life.known_pid, peer.main[0]):
            return
        opened = inspect.open_process(pid) if pid > 1 else None
        if opened is not None:
            pidfd, found = opened
            try:
                is_own = self._find_home(pid, pidfd) is peer and inspect.is_alive(pidfd)
            finally:
                os.close(pidfd)
            if is_own:
                peer.main = (pid, found.id.inode)
                self._mains = None
                self._say_once(peer, "main", f"says that its main process is {pid}")
                return
        self._say_once(peer, "foreign", f"says that its main process is {number}, which is not its")

    def _say_once(self, peer: Peer, kind: str, text: str) -> None:
        if kind not in peer.said:
            peer.said.add(kind)
            self._say(f"{peer.name}: {text}")


def _is_process(pidfd: int, peer: Peer, pid: int) -> bool:
    """Return whether a sender is the very process, and not another one of the same number.

    Before Linux 6.9 all pidfds are one inode, and the number has to do: that of a child which we
    have not reaped is given to no other.
    """
    if pidfd < 0:
        return True
    inode = peer.main[1] if pid == peer.main[0] else 0
    if not inode:
        own = peer.life.known_pidfd
        if own < 0 or pid != peer.life.known_pid:
            return True
        inode = os.fstat(own).st_ino
    return os.fstat(pidfd).st_ino == inode


def _number(value: bytes | None) -> int | None:
    if value is None or not value.isdigit() or len(value) > 20:
        return None
    return int(value)


def clean(value: bytes) -> str:
    """Return a text of a daemon made fit for a line."""
    text = value[: 4 * LONGEST_STATUS].decode("utf-8", "replace")
    kept = "".join(char if char.isprintable() else "?" for char in text)
    return kept.strip()[:LONGEST_STATUS]


def _unlink(path: str) -> None:
    try:  # noqa: SIM105  # contextlib takes long to import
        os.unlink(path)
    except (FileNotFoundError, PermissionError):
        pass  # not there; or made by root that we are no more: the next master removes it
