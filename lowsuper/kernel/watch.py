"""Tells when a file was touched, made, replaced or removed: inotify, see inotify(7).

What counts is the file's identity, size and time, compared at each event in its directory or on
itself; so a flood of events by others in the same directory costs a stat each and changes
nothing, and a symbolic link that is switched elsewhere (`current -> release-42`) counts. A
directory that does not exist yet is waited for in the nearest one that does.
"""

from __future__ import annotations

import os

from lowsuper.kernel import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.kernel.loop import Loop

IN_ATTRIB, IN_CLOSE_WRITE = 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR = 0x400, 0x800, 0x1000000
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000

IN_DIRECTORY = (
    IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
)  # fmt: skip
IN_FILE = IN_ATTRIB | IN_CLOSE_WRITE | IN_DELETE_SELF | IN_MOVE_SELF

READ_BYTES = 64 * 1024

if TYPE_CHECKING:
    Look = tuple[int, int, int, int] | None  # device, inode, size, time


def look_at(path: str) -> Look:
    """Return what tells one state of a file from another; None when there is none to see."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Watched:
    """One file and whom to call."""

    __slots__ = ("callback", "look", "path", "watches")

    def __init__(self, path: str, callback: Callable[[], None]) -> None:
        """Remember how the file looks now."""
        self.path, self.callback = path, callback
        self.look = look_at(path)
        self.watches: set[int] = set()


class Watcher:
    """Watches files by path; its one descriptor is its own."""

    def __init__(self, loop: Loop) -> None:
        """Begin with no file and no descriptor: without touch options there is no inotify."""
        self._loop = loop
        self._fd = -1
        self._files: list[Watched] = []
        self._users: dict[int, set[int]] = {}  # watch: indices of files

    def replace(self, files: list[tuple[str, Callable[[], None]]]) -> list[str]:
        """Watch exactly these files from now on; returns what cannot be watched, in words."""
        self.close()
        if not files:
            return []
        self._fd = native.inotify_create()
        self._loop.watch(self._fd, 1, self._on_events)
        self._files = [Watched(os.path.abspath(path), callback) for path, callback in files]
        problems = [self._arm(index) for index in range(len(self._files))]
        return [problem for problem in problems if problem]

    def close(self) -> None:
        """Watch nothing."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
        self._fd = -1
        self._files, self._users = [], {}

    def _arm(self, index: int) -> str:
        """Watch a file and its directory, or the nearest directory that exists."""
        file = self._files[index]
        watches = set()
        problem = ""
        directory = os.path.dirname(file.path)
        while True:
            try:
                watches.add(native.inotify_add(self._fd, directory, IN_DIRECTORY))
                break
            except OSError as error:
                if directory in ("/", ""):
                    problem = f"{file.path} cannot be watched: {error}"
                    break
                directory = os.path.dirname(directory)
        # A link's target lies in another directory, whose events would not be seen. What does not
        # exist yet cannot be watched; its directory will tell.
        try:  # noqa: SIM105  # contextlib takes longer to import than all of this module
            watches.add(native.inotify_add(self._fd, file.path, IN_FILE))
        except OSError:
            pass
        for watch in file.watches - watches:
            self._drop(watch, index)
        for watch in watches:
            self._users.setdefault(watch, set()).add(index)
        file.watches = watches
        return problem

    def _drop(self, watch: int, index: int) -> None:
        users = self._users.get(watch, set())
        users.discard(index)
        if not users and self._users.pop(watch, None) is not None:
            native.inotify_remove(self._fd, watch)

    def _on_events(self) -> None:
        try:
            events = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        hit: set[int] = set()
        made: set[int] = set()
        offset = 0
        while offset < len(events):
            watch = int.from_bytes(events[offset : offset + 4], "little", signed=True)
            mask = int.from_bytes(events[offset + 4 : offset + 8], "little")
            length = int.from_bytes(events[offset + 12 : offset + 16], "little")
            offset += 16 + length
            if mask & IN_Q_OVERFLOW:
                hit.update(range(len(self._files)))
            (made if mask & IN_CREATE else hit).update(self._users.get(watch, ()))
            if mask & IN_IGNORED:
                self._users.pop(watch, None)
        for index in sorted(hit | made):
            self._look_again(index, being_made=index not in hit)

    def _look_again(self, index: int, being_made: bool) -> None:
        file = self._files[index]
        self._arm(index)
        look = look_at(file.path)
        if being_made and look is not None and look[2] == 0 and not os.path.islink(file.path):
            return  # an empty new file is about to be written; its closing will tell
        if look != file.look:
            file.look = look
            file.callback()
