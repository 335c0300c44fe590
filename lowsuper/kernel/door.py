"""The socket file of a master, and the socket that listens behind it.

Rule: the file is removed only while it is ours, and what is in its place only if it is a socket
that nobody listens to.
"""

from __future__ import annotations

import _socket
import os
import stat
from errno import EADDRINUSE, ECONNREFUSED

from lowsuper.errors import LowsuperError
from lowsuper.kernel import trust
from lowsuper.kernel.instance import LONGEST_PATH, unlink
from lowsuper.kernel.native import move_high

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.instance import Claim
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.watch import Watcher
    from lowsuper.model import MasterSpec
    from lowsuper.plan import Identity
    from lowsuper.units import Ns

MODE = 0o660
NONE = "none"  # what control-socket says when none is wanted
OPEN_MODE = 0o666  # of the socket, where others are allowed something: see `Door`
BACKLOG = 128
TIMER = "door\0"  # no daemon has a name with such a character
AGAIN: Ns = 50_000_000
RESTING = "rest\0"
REST: Ns = 1_000_000_000
IN_ATTRIB, IN_MOVE_SELF = 0x4, 0x800


class Door:
    """The socket file of a master, and the socket that listens behind it.

    It is made again when somebody has removed or replaced it.
    """

    __slots__ = (
        "_callback", "_claim", "_dir_fd", "_gid", "_loop", "_made", "_mode", "_name", "_numbers",
        "_say", "_uid", "_watcher", "path", "socket",
    )  # fmt: skip

    def __init__(
        self, claim: Claim, loop: Loop, watcher: Watcher, say: Callable[[str], None]
    ) -> None:
        """Begin closed.

        Args:
            claim: that was taken; closed with the door.
            loop: what waits for connections.
            watcher: what tells of the file's removal.
            say: tells the operator a line.
        """
        self._claim, self._loop, self._watcher, self._say = claim, loop, watcher, say
        self.path = ""
        self.socket: _socket.socket | None = None
        self._dir_fd = -1
        self._name = ""
        self._made = 0, 0  # device and inode of the socket file
        self._numbers: list[int] = []

    def open(
        self,
        spec: MasterSpec,
        callback: Callable[[], None],
        *,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """Listen, unless the configuration or the machine does not want it.

        Args:
            spec: where, and with which mode.
            callback: called whenever somebody waits to be let in.
            owner: user and group of the socket file; -1: as it is; None: who the master is.
        """
        claim = self._claim
        if not claim.directory or spec.control_socket == NONE:
            return
        mode = OPEN_MODE if spec.control_allow else MODE
        self._mode = mode if spec.control_mode is None else spec.control_mode
        self._uid, self._gid = owner or (-1, -1)
        self._callback = callback
        self.path = spec.control_socket or f"{claim.directory}/{claim.name}.sock"
        try:
            self._dir_fd = self._open_place(spec.control_socket)
            self._listen()
        except (OSError, trust.UntrustedError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            self._say(f"no control socket: {self.path}: {text}")
            self.close()
            return
        self._watch()

    def rest(self) -> None:
        """Let nobody in for a second, as there are no descriptors left for that."""
        if self.socket is not None:
            self._loop.unwatch(self.socket.fileno())
            self._loop.set_timer(RESTING, self._loop.now() + REST, self._open_again)

    def _open_again(self) -> None:
        if self.socket is not None:
            self._loop.watch(self.socket.fileno(), 1, self._callback)

    def _open_place(self, path: str | None) -> int:
        """Return a descriptor of the directory of the socket file."""
        self._name = self.path.rpartition("/")[2]
        if path is None:
            return os.dup(self._claim.directory_fd)
        return trust.open_trusted(path.rpartition("/")[0] or "/", sticky=True)

    def _listen(self) -> None:
        """Make the socket file and listen.

        Raises:
            OSError: it cannot be made, or somebody else listens there.
        """
        # /proc leads to the directory that is open, and the kernel takes no long paths here.
        path = f"/proc/self/fd/{self._dir_fd}/{self._name}"
        if len(os.fsencode(self.path)) <= LONGEST_PATH and not self._is_moved():
            path = self.path
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        fd = move_high(listener.detach())
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=fd)
        try:
            self._make_room()
            listener.setblocking(False)
            # The file gets the mode of the socket, less the umask: see unix_bind() in the kernel.
            os.fchmod(fd, self._mode)
            umask = os.umask(0)
            try:
                listener.bind(path)
            finally:
                os.umask(umask)
            if (self._uid, self._gid) != (-1, -1):
                os.chown(
                    self._name, self._uid, self._gid, dir_fd=self._dir_fd, follow_symlinks=False
                )
            listener.listen(BACKLOG)
            status = os.stat(self._name, dir_fd=self._dir_fd, follow_symlinks=False)
        except OSError:
            listener.close()
            raise
        if self.socket is not None:
            self._loop.cancel_timer(RESTING)
            self._loop.unwatch(self.socket.fileno())
            self.socket.close()
        self.socket, self._made = listener, (status.st_dev, status.st_ino)
        self._loop.watch(fd, 1, self._callback)

    def _is_moved(self) -> bool:
        try:
            status = os.stat(self.path.rpartition("/")[0] or "/")
        except OSError:
            return True
        return not os.path.samestat(status, os.fstat(self._dir_fd))

    def _make_room(self) -> None:
        """Remove a socket file that nobody listens to any more, and nothing else."""
        try:
            status = os.stat(self._name, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(EADDRINUSE, "there is something that is no socket")
        probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            probe.setblocking(False)
            probe.connect(f"/proc/self/fd/{self._dir_fd}/{self._name}")
        except OSError as error:
            if error.errno != ECONNREFUSED:
                raise OSError(EADDRINUSE, "somebody else listens there") from error
        else:
            raise OSError(EADDRINUSE, "somebody else listens there")
        finally:
            probe.close()
        os.unlink(self._name, dir_fd=self._dir_fd)

    def _watch(self) -> None:
        """Be told when the socket file or a lock is removed, or another takes its place."""
        self._unwatch()
        for path in (self.path, *self._claim.watched()):
            try:
                # An open socket or file outlives its name; what tells is the number of its links.
                number = self._watcher.add(path, self._look, IN_ATTRIB | IN_MOVE_SELF)
            except FileNotFoundError:
                # Race: somebody removes one after the other.
                self._loop.set_timer(TIMER, self._loop.now() + AGAIN, self._look)
            except OSError as error:
                self._say(f"{path} is not watched: {error.strerror}")
            else:
                self._numbers.append(number)

    def _unwatch(self) -> None:
        self._loop.cancel_timer(TIMER)
        for number in self._numbers:
            self._watcher.remove(number)
        self._numbers.clear()

    def _look(self) -> None:
        """See whether the files are still ours, and make them again where they are not."""
        if self.socket is None:
            return
        try:
            renewed = self._renew()
        except (OSError, LowsuperError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            self._say(f"{self.path} was removed, and cannot be made again: {text}")
            self._unwatch()
        else:
            if renewed:
                self._say(f"{self.path} was removed or replaced; made again")
                self._watch()

    def _renew(self) -> bool:
        """Make again what was removed; return whether there was something."""
        claim, is_whole = self._claim, True
        if claim.is_damaged():
            claim.renew()
            is_whole = False
        if self._is_there():
            return not is_whole
        if self._is_moved():
            own = self.path == f"{claim.directory}/{claim.name}.sock"
            fd = self._open_place(None if own else self.path)
            os.close(self._dir_fd)
            self._dir_fd = fd
        self._listen()
        return True

    def _is_there(self) -> bool:
        """Return whether the name leads to the socket that we listen to."""
        assert self.socket is not None
        try:
            status = os.stat(self._name, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._made

    def close(self) -> None:
        """Remove the socket file and let go of the instance."""
        self._unwatch()
        if self.socket is not None:
            self._loop.unwatch(self.socket.fileno())
            if self._is_there():
                unlink(self._name, self._dir_fd)
            self.socket.close()
            self.socket = None
        if self._dir_fd >= 0:
            os.close(self._dir_fd)
            self._dir_fd = -1
        self._claim.close()


def open_door(
    spec: MasterSpec,
    claim: Claim,
    loop: Loop,
    watcher: Watcher,
    *,
    say: Callable[[str], None],
    on_knock: Callable[[], None],
    identity: Identity | None = None,
) -> Door:
    """Return the door of a master, which is open unless somebody does not want that.

    Args:
        spec: where the socket file is, and whose.
        claim: that was taken; closed with the door.
        loop: what waits for connections.
        watcher: what tells of the file's removal.
        say: tells the operator a line.
        on_knock: called whenever somebody waits to be let in.
        identity: whom the master becomes; None: nobody else.
    """
    door = Door(claim, loop, watcher, say)
    owner = None
    if identity is not None or spec.control_owner is not None:
        from lowsuper.kernel.peer import resolve_owner

        owner = resolve_owner(spec, identity)
    door.open(spec, on_knock, owner=owner)
    return door
