"""The log process, as the master sees it: it rotates files and fills rings, see `csrc/logger.c`.

Each daemon with such a log gets a FIFO, `NAME.fifo`, in a directory that only root (or the
master's user) can enter, `log-INSTANCE` in the state directory. The daemon has it open for reading
and writing, so that its own descriptor is a reader: whoever dies, it never meets a broken pipe.
What it has written waits in the FIFO for the next log process, which opens it by its name.

The log process holds a flock on the directory. A master that gets the lock starts one and leaves
the lock to it; one that does not connects to it through the socket in there. Both ends look at
each other's credentials.
"""

from __future__ import annotations

import _socket
import os
import stat
import time
from array import array
from errno import EACCES, EAGAIN, ECONNREFUSED, ECONNRESET, EINVAL, ENOENT, ETIMEDOUT
from fcntl import LOCK_EX, LOCK_NB, flock
from struct import Struct

from lowsuper.errors import KernelError
from lowsuper.kernel import records, trust
from lowsuper.kernel.domain import instance_id
from lowsuper.kernel.logs import is_managed, rotates_master
from lowsuper.kernel.loop import READ
from lowsuper.kernel.native import ffi, lib, move_high
from lowsuper.kernel.pidfile import unlink_if_there
from lowsuper.kernel.spawn import pack, wait_readable
from lowsuper.plan import EXEC, LOG_REASONS, FdSource, SpawnPlan
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from lowsuper.kernel.log import Log
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.spawn import Spawner
    from lowsuper.model import DaemonSpec, MasterSpec
    from lowsuper.plan import Identity

MASTER = ".master"
"""The name of the master's own log; no daemon's begins with a dot."""

SOCKET = "socket"
TIMER = "logger\0"  # no daemon has such a name
BACKUPS = 5
BACKLOG = 8
TRIES = 100  # of 10 ms: as long as a log process may take to go
PAUSE = 0.01
PATIENCE_MS = 2000  # for it to say that it is there
SECOND = 1_000_000_000
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READER = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
RING = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_RING_HEAD = Struct("3Q")  # struct lowsuper_ring: size, reserved, total
_UCRED = Struct("iII")  # struct ucred: pid, uid, gid
_SIZE = ffi.sizeof("struct lowsuper_log_msg")
_HEAD = lib.LOWSUPER_RING_HEAD
_passed_fd = ffi.new("int32_t *")


class Stream(Record):
    """What the log process is told of one log."""

    name: str  # of the daemon, or MASTER
    path: str = ""  # absolute; "" for a ring
    ring: int = 0  # bytes; 0 for a file
    uid: int = 0  # of who writes to it
    max_bytes: int = 0
    max_age: int = 0  # nanoseconds
    naming: int = lib.LOWSUPER_LOG_NUMBERED
    backups: int = BACKUPS
    backup: str = ""  # name of the old file


def _stream_of(spec: DaemonSpec, uid: int) -> Stream:
    output = spec.log
    assert output is not None
    if output.kind == "ring":
        return Stream(spec.name, ring=output.size, uid=uid)
    return Stream(
        spec.name,
        path=os.path.abspath(output.path),
        uid=uid,
        max_bytes=spec.log_maxsize or 0,
        max_age=spec.log_max_age or 0,
        backups=BACKUPS if spec.log_backups is None else spec.log_backups,
    )


def _stream_of_master(spec: MasterSpec, path: str) -> Stream:
    naming, backup = lib.LOWSUPER_LOG_TIME, ""
    if spec.log_backups is not None:
        naming = lib.LOWSUPER_LOG_NUMBERED
    elif spec.log_backupname is not None:
        naming, backup = lib.LOWSUPER_LOG_FIXED, spec.log_backupname
    return Stream(
        MASTER,
        path=path,
        uid=os.geteuid(),
        max_bytes=spec.log_maxsize or 0,
        max_age=spec.log_max_age or 0,
        naming=naming,
        backups=spec.log_backups or 0,
        backup=backup,
    )


class Logger:
    """Starts the log process or finds the one that runs, and tells it what to do."""

    def __init__(self, loop: Loop, spawner: Spawner, log: Log, say: Callable[[str], None]) -> None:
        """Begin without one: `use` looks for it.

        Args:
            loop: to hear from it with.
            spawner: to start it with.
            log: the master's own, which `use` lets it rotate.
            say: tells the operator a line.
        """
        self._loop, self._spawner, self._log, self._say = loop, spawner, log, say
        self._spec: MasterSpec | None = None
        self._channel: _socket.socket | None = None
        self._directory = ""
        self._dir_fd = -1
        self._wanted: dict[str, Stream] = {}
        self._added: set[str] = set()
        self._losing: set[str] = set()
        self._started = 0.0
        self._news: dict[str, list[Callable[[], None]]] = {}
        self._message = ffi.new("struct lowsuper_log_msg *")

    # What the master has.

    def use(self, spec: MasterSpec, identities: Mapping[str, Identity]) -> None:
        """Let the log process have exactly the logs of a configuration.

        What goes wrong with the log of a daemon is the failure of its next start; the rest is
        said.
        """
        self._spec = spec
        before = self._wanted
        me = os.geteuid()
        streams = [
            _stream_of(daemon, identities[daemon.name].uid if daemon.name in identities else me)
            for daemon in spec.daemons
            if is_managed(daemon)
        ]
        if rotates_master(spec) and self._log.path is not None:
            streams.append(_stream_of_master(spec, self._log.path))
        self._wanted = {stream.name: stream for stream in streams}
        for name in before.keys() - self._wanted.keys():
            self._drop(name)
        for name, stream in self._wanted.items():
            if before.get(name) != stream:
                self._added.discard(name)
        # The others are started, or not started with the same words.
        smart = {daemon.name for daemon in spec.daemons if daemon.pidfile is not None}
        if self._wanted:
            self._keep(tells=smart)
        else:
            self._disconnect()

    def _keep(self, tells: Container[str] = ()) -> bool:
        """See that there is a log process, and that it has every log; return whether it has.

        Args:
            tells: daemons of which it is said what is wrong with their logs.
        """
        try:
            is_new = self._connect()
        except OSError as error:
            self._say(f"log process: {error}; tried again in 1 s")
            self._loop.set_timer(TIMER, self._loop.now() + SECOND, self._try_again)
            return True
        has_all = True
        for stream in self._wanted.values():
            try:
                self._add(stream)
                if stream.name == MASTER and not self._log.is_poured:
                    # Its own lines, and the output of daemons without a log, through a FIFO.
                    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
                    self._log.pour(os.open(self.fifo_of(MASTER), flags))
            except OSError as error:
                has_all = False
                if stream.name == MASTER or stream.name in tells:
                    self._say(f"{stream.name.lstrip('.')}: {error}")
        if is_new:
            self._send(lib.LOWSUPER_LOG_SETTLED)
        return has_all

    def _try_again(self) -> None:
        """Give a new log process all that the one before had."""
        if not self._keep():
            self._loop.set_timer(TIMER, self._loop.now() + SECOND, self._try_again)

    def _drop(self, name: str) -> None:
        self._added.discard(name)
        self._losing.discard(name)
        if name == MASTER and self._log.path is not None:
            self._log.open(self._log.path)
        self._send(lib.LOWSUPER_LOG_DROP, name)

    def fifo_of(self, name: str) -> str:
        """Return the path of a daemon's FIFO, which is there once its log was added."""
        return f"{self._directory}/{name}.fifo"

    def ring_of(self, name: str) -> str:
        """Return the path of a daemon's ring."""
        return f"{self._directory}/{name}.ring"

    def find_fifo(self, name: str) -> str:
        """Return what a daemon is to write to.

        Raises:
            KernelError: its log cannot be had.
        """
        if name not in self._added:
            self._connect()
            self._add(self._wanted[name])
        return self.fifo_of(name)

    def act(self, *, rotate: bool, name: str | None = None) -> bool:
        """Rotate or reopen one file, or all; return whether there is any."""
        op = lib.LOWSUPER_LOG_ROTATE if rotate else lib.LOWSUPER_LOG_REOPEN
        names = [
            each for each in self._wanted if name in (None, each) and not self._wanted[each].ring
        ]
        for each in names:
            self._send(op, each)
        return bool(names)

    @property
    def has_master(self) -> bool:
        """Whether the master's own log goes through it."""
        return MASTER in self._added

    def listen(self, name: str, callback: Callable[[], None]) -> None:
        """Call back when something came into a ring after the bytes named by `expect`."""
        self._news.setdefault(name, []).append(callback)

    def unlisten(self, name: str, callback: Callable[[], None]) -> None:
        """Take back `listen`."""
        self._news[name].remove(callback)

    def expect(self, name: str, total: int) -> None:
        """Ask for one call of those who listen, as soon as a ring got more than `total` bytes."""
        self._send(lib.LOWSUPER_LOG_FOLLOW, name, value=total)

    def close(self) -> None:
        """Let go of it: it ends by itself when nobody writes any more."""
        self._loop.cancel_timer(TIMER)
        self._disconnect()

    # The process.

    def _connect(self) -> bool:
        """Find the log process or start one; return whether this was needed.

        Raises:
            OSError: there is none to be had.
        """
        if self._channel is not None:
            return False
        assert self._spec is not None
        base = self._spec.state_dir or records.default_directory(os.geteuid())
        records.open_store(base).close()
        name = f"log-{instance_id(self._spec)}"
        try:
            parent_fd = trust.open_trusted(base, sticky=True)
        except trust.UntrustedError as error:
            raise KernelError("log process", EACCES, base, str(error)) from error
        try:
            self._started = time.monotonic()
            channel = self._find_or_start(name, parent_fd)
        finally:
            os.close(parent_fd)
        self._directory = f"{base.rstrip('/')}/{name}"
        self._channel = channel
        self._loop.watch(channel.fileno(), READ, self._on_message)
        return True

    def _find_or_start(self, name: str, parent_fd: int) -> _socket.socket:
        for _ in range(TRIES):
            dir_fd = _open_directory(name, parent_fd)
            # A second descriptor: the lock belongs to the one that the log process gets.
            lock_fd = _open_directory(name, parent_fd)
            try:
                channel = self._try(name, (dir_fd, lock_fd, parent_fd))
            except OSError:
                os.close(dir_fd)
                raise
            finally:
                os.close(lock_fd)
            if channel is not None:
                self._dir_fd = move_high(dir_fd)
                return channel
            os.close(dir_fd)
            time.sleep(PAUSE)  # it is about to go
        raise KernelError("log process", ETIMEDOUT, name)

    def _try(self, name: str, fds: tuple[int, int, int]) -> _socket.socket | None:
        """Start or find it; None: it was just going."""
        dir_fd, lock_fd, _ = fds
        try:
            flock(lock_fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            channel = _find(dir_fd)
        else:
            one, other = os.fstat(dir_fd), os.fstat(lock_fd)
            if not one.st_nlink or not os.path.samestat(one, other):
                return None  # removed by the one before, which had the lock until now
            channel = self._start(name, fds)
        if channel is None:
            return None
        if not wait_readable(channel.fileno(), PATIENCE_MS):
            channel.close()
            raise KernelError("log process", ETIMEDOUT, name, "it may wait for a disk")
        message = self._message
        size = lib.lowsuper_receive(channel.fileno(), message, _SIZE, _passed_fd)
        if size != _SIZE or message.op != lib.LOWSUPER_LOG_READY:
            channel.close()
            return None
        return channel

    def _start(self, name: str, fds: tuple[int, int, int]) -> _socket.socket:
        dir_fd, lock_fd, parent_fd = fds
        unlink_if_there(SOCKET, dir_fd)  # of one that was killed
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK)
        try:
            # By way of /proc: a path may be too long for an address.
            listener.bind(f"/proc/self/fd/{dir_fd}/{SOCKET}")
            listener.listen(BACKLOG)
            plan = SpawnPlan(
                name="logger",
                role=EXEC,
                programs=(os.fsencode(name), SOCKET.encode()),
                argv=(),
                envp=(),
                fds=tuple(FdSource(0, fd) for fd in (lock_fd, parent_fd, listener.fileno())),
            )
            child = self._spawner.start_role(lib.LOWSUPER_ROLE_LOGGER, pack(plan), name)
        finally:
            listener.close()
        os.close(child.error_fd)
        os.close(child.pidfd)  # its end is told by the channel
        return _socket.socket(fileno=child.channel_fd)

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None
            os.close(self._dir_fd)
            self._dir_fd = -1

    # Messages.

    def _add(self, stream: Stream) -> None:
        """Hand a log to the log process, unless it has it.

        Raises:
            KernelError: the log cannot be had.
        """
        if stream.name in self._added:
            return
        fds: list[int] = []
        try:
            fds.append(self._open_fifo(stream))
            message = ffi.new("struct lowsuper_log_msg *")
            message.op = lib.LOWSUPER_LOG_ADD
            message.name, message.uid = stream.name.encode(), stream.uid
            message.max_bytes, message.max_age_ns = stream.max_bytes, stream.max_age
            message.naming, message.backups = stream.naming, stream.backups
            if stream.ring:
                message.ring_bytes = stream.ring
                fds.append(self._open_ring(stream))
            else:
                directory_fd, file, shared = _open_place(stream)
                fds.append(directory_fd)
                message.file, message.shared = file, shared
                message.backup = _find_backup(stream)
            self._post(bytes(ffi.buffer(message)), fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._added.add(stream.name)

    def _open_fifo(self, stream: Stream) -> int:
        name = f"{stream.name}.fifo"
        try:
            if not os.path.lexists(f"/proc/self/fd/{self._dir_fd}/{name}"):
                os.mkfifo(name, 0o600, dir_fd=self._dir_fd)
            fd = os.open(name, READER, dir_fd=self._dir_fd)
        except OSError as error:
            raise KernelError("log", error.errno or 0, f"{self._directory}/{name}") from error
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise KernelError("log", EINVAL, f"{self._directory}/{name}", "remove it")
        if os.geteuid() == 0:
            # So that a program of that user can open /dev/stdout.
            os.fchown(fd, stream.uid, -1)
        return fd

    def _open_ring(self, stream: Stream) -> int:
        """Return the file of a ring with room for all that it will hold.

        A page that could not be had later would kill the log process with SIGBUS.
        """
        name, size = f"{stream.name}.ring", _HEAD + stream.ring
        try:
            try:
                fd = os.open(name, RING, dir_fd=self._dir_fd)
                if os.fstat(fd).st_size == size:
                    return fd
                os.close(fd)
                os.unlink(name, dir_fd=self._dir_fd)
            except FileNotFoundError:
                pass
            fd = os.open(name, RING | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._dir_fd)
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                os.close(fd)
                os.unlink(name, dir_fd=self._dir_fd)
                raise
        except OSError as error:
            raise KernelError("log", error.errno or 0, f"{self._directory}/{name}") from error
        return fd

    def _send(self, op: int, name: str = "", *, value: int = 0) -> None:
        if self._channel is None:
            return
        message = ffi.new("struct lowsuper_log_msg *")
        message.op, message.name, message.value = op, name.encode(), value
        try:
            self._post(bytes(ffi.buffer(message)), [])
        except KernelError as error:
            self._say(str(error))

    def _post(self, data: bytes, fds: list[int]) -> None:
        if self._channel is None:
            raise KernelError("log process", ENOENT, "")
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._channel.sendmsg([data], rights, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError as error:
            advice = "it waits for a disk" if error.errno == EAGAIN else ""
            raise KernelError("log process", error.errno or 0, "", advice) from error

    def _on_message(self) -> None:
        while self._channel is not None:
            message = self._message
            size = lib.lowsuper_receive(self._channel.fileno(), message, _SIZE, _passed_fd)
            if size == -EAGAIN:
                return
            if size in (0, -ECONNRESET):
                self._on_end()
                return
            if size != _SIZE:
                raise KernelError("recvmsg", -size if size < 0 else EINVAL, "log process")
            self._hear(message.op, ffi.string(message.name).decode(), message.err, message.value)

    def _hear(self, op: int, name: str, err: int, value: int) -> None:
        what = "the log file" if name == MASTER else f"{name}: log"
        stream = self._wanted.get(name)
        path = stream.path if stream is not None else ""
        match op:
            case lib.LOWSUPER_LOG_LOST if err:
                if name not in self._losing:  # it may try again and again
                    self._losing.add(name)
                    self._say(f"{what} {path}: {os.strerror(err)}; lines are dropped")
            case lib.LOWSUPER_LOG_LOST:
                if value or name in self._losing:
                    self._say(f"{what} {path}: is written again; lines dropped: {value}")
                self._losing.discard(name)
            case lib.LOWSUPER_LOG_FAILED:
                self._say(f"{what} {path}: could not be rotated: {os.strerror(err)}")
            case lib.LOWSUPER_LOG_FULL:
                self._say("log process: it has no room for another log")
            case lib.LOWSUPER_LOG_NEWS:
                for callback in tuple(self._news.get(name, ())):
                    callback()

    def _on_end(self) -> None:
        self._disconnect()
        self._added.clear()
        self._losing.clear()
        if time.monotonic() < self._started + 1:
            self._say("the log process has ended; another one is started in 1 s")
            self._loop.set_timer(TIMER, self._loop.now() + SECOND, self._try_again)
            return
        self._say("the log process has ended; starting another")
        if not self._keep(self._wanted):
            self._loop.set_timer(TIMER, self._loop.now() + SECOND, self._try_again)


def prepare_for(spec: MasterSpec, identity: Identity) -> None:
    """Make the directory above that of the FIFOs for the user that we are about to become.

    Raises:
        KernelError: it cannot be had.
    """
    base = spec.state_dir or records.default_directory(identity.uid)
    records.prepare_for(base, identity.uid, identity.gid)


def _open_directory(name: str, parent_fd: int) -> int:
    """Return the directory of the FIFOs, made if need be; the caller closes it.

    Raises:
        KernelError: it cannot be had, or others can write to it.
    """
    try:
        try:
            return trust.make_directory(name, parent_fd, 0o700)
        except FileExistsError:
            fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
    except OSError as error:
        raise KernelError("log process", error.errno or 0, name) from error
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        raise KernelError("log process", EACCES, name, "others can enter it: remove it")
    return fd


def _find(dir_fd: int) -> _socket.socket | None:
    """Return a connection to the log process that has the lock; None: it is going."""
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK)
    try:
        channel.connect(f"/proc/self/fd/{dir_fd}/{SOCKET}")
        peer = channel.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    except OSError as error:
        channel.close()
        if error.errno in (ECONNREFUSED, ENOENT):
            return None
        raise
    if _UCRED.unpack(peer)[1] not in (0, os.geteuid()):
        channel.close()
        raise KernelError("log process", EACCES, SOCKET, "it belongs to another user")
    return channel


def _find_backup(stream: Stream) -> bytes:
    directory, slash, name = stream.backup.rpartition("/")
    if slash and os.path.abspath(directory) != os.path.dirname(stream.path):
        advice = "log-backupname must be in the directory of the log file"
        raise KernelError("log", EINVAL, stream.backup, advice)
    return os.fsencode(name)


def _open_place(stream: Stream) -> tuple[int, bytes, int]:
    """Return the directory of a log file, which the caller closes, its name, and if it is shared.

    The file is opened for a try, so that one that cannot be had fails the start of its daemon.

    Raises:
        KernelError: it cannot be had.
    """
    name = ffi.new("char[]", lib.LOWSUPER_NAME_SIZE)
    shared, reason = ffi.new("int32_t *"), ffi.new("int32_t *")
    path = os.fsencode(stream.path)
    dir_fd = lib.lowsuper_log_directory(path, name, shared, reason)
    if dir_fd < 0:
        raise KernelError("log", -dir_fd, stream.path + LOG_REASONS[reason[0]])
    access = lib.LOWSUPER_LOG_BOTH
    fd = lib.lowsuper_log_file(dir_fd, name, shared[0], stream.uid, access, reason)
    if fd < 0:
        os.close(dir_fd)
        raise KernelError("log", -fd, stream.path + LOG_REASONS[reason[0]])
    os.close(fd)
    return dir_fd, ffi.string(name), shared[0]


def read_ring(fd: int, start: int = 0) -> tuple[bytes, int]:
    """Return what a ring holds from the byte `start` on that ever came, and how many ever came.

    What was overwritten meanwhile is left out. `fd` stays the caller's.
    """
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    size, _, total = _RING_HEAD.unpack_from(data)
    if not size:
        return b"", 0
    _, reserved, _ = _RING_HEAD.unpack(os.pread(fd, _RING_HEAD.size, 0))
    first = max(start, total - size, reserved - size, 0)
    if first >= total:
        return b"", total
    body = data[_HEAD:]
    begin, end = first % size, total % size
    return (body[begin:end] if begin < end else body[begin:] + body[:end]), total
