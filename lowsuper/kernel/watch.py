"""Tells when a file was touched, made, replaced or removed: inotify, see inotify(7).

Of a touch file its identity, size and time count, compared at each event that concerns it; a
symbolic link that is switched elsewhere (`current -> release-42`) counts. A pidfile is looked at
more closely, as what it holds matters: a link is not followed, an empty new file counts, and so
does what is written to a file that stays open. A directory that does not exist yet is waited for in
the nearest one that does; that one further up is moved away is not noticed.

Anybody may be able to flood such a directory with events. Those about other files are told by
their name; when the descriptor wakes us too often it is left alone for a while, and what has come
then is read at once, or thrown away and all files looked at.
"""

from __future__ import annotations

import os
import time
from struct import Struct

from lowsuper.errors import KernelError
from lowsuper.kernel import native
from lowsuper.units import SECOND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lowsuper.kernel.loop import Loop
    from lowsuper.units import Ns

    Look = tuple[int, ...] | None  # what tells one state of a file from another
    File = tuple[str, Callable[[], None]]

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR = 0x400, 0x800, 0x1000000
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
IN_DONT_FOLLOW, IN_MASK_ADD = 0x2000000, 0x20000000

IN_DIRECTORY = (
    IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
)  # fmt: skip
IN_FILE = IN_ATTRIB | IN_CLOSE_WRITE | IN_DELETE_SELF | IN_MOVE_SELF
IN_GONE = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED

TOUCH, PIDFILE, PLAIN = 1, 2, 3
"""Kinds: a touch file, a pidfile, and a file of which the caller has named the events."""

READ_BYTES = 64 * 1024
LONGEST_EVENT = 16 + 256
MAX_READS = 100  # far more than the longest queue (fs.inotify.max_queued_events) takes
MAX_WAKES = 40  # of the descriptor in a second; more are a flood
PAUSE: Ns = SECOND // 20  # of the descriptor in a flood, and between two calls about one file
BURST = 4  # calls without one: making, filling and closing a pidfile are three events
TICK: Ns = SECOND // 50  # two ticks of the slowest clock that gives files their times
ARM_TRIES = 3
_EVENT = Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of the name


def look_at(path: str) -> Look:
    """Return what tells one state of a touch file from another; None when there is none to see."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def look_at_pidfile(path: str) -> Look:
    """Return the same of a pidfile: a link is a file like others, and whose it is counts too."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    # The time of the last change of the inode: that of its contents can be set by its owner.
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


class Row:
    """One file and whom to call."""

    __slots__ = (
        "burst", "callback", "called", "is_recent", "kind", "look", "mask", "number", "path",
        "watches",
    )  # fmt: skip

    def __init__(
        self, number: int, path: str, callback: Callable[[], None], kind: int, mask: int
    ) -> None:
        """Begin with a file that does not exist."""
        self.number, self.path, self.callback, self.kind = number, path, callback, kind
        self.mask = mask | IN_GONE  # what it wants to know; another file may want more
        self.look: Look = None
        self.is_recent = False  # another change may have left it looking the same
        self.called: Ns = 0
        self.burst = 0  # calls that need not wait
        self.watches: dict[int, bytes | None] = {}  # the name in a directory; None: any event

    def look_again(self) -> bool:
        """Return whether the file may have changed since the last look."""
        if self.kind == TOUCH:
            look = look_at(self.path)
            changed = look != self.look
        else:
            look = look_at_pidfile(self.path)
            changed = self.is_recent or look != self.look
            self.is_recent = look is not None and abs(time.time_ns() - look[-1]) < TICK
        self.look = look
        return changed

    def is_being_made(self) -> bool:
        """Return whether it is a touch file that is new and empty: it is about to be written."""
        if self.kind != TOUCH or os.path.islink(self.path):
            return False
        look = look_at(self.path)
        return look is not None and look[2] == 0


class Watcher:
    """Watches files by path; its one descriptor is its own."""

    def __init__(self, loop: Loop) -> None:
        """Begin with no file and no descriptor: without files to watch there is no inotify."""
        self._loop = loop
        self._fd = -1
        self._rows: dict[int, Row] = {}
        self._last = 0
        self._users: dict[int, dict[bytes | None, set[int]]] = {}  # watch, name: numbers of rows
        self._key = f"watch\0{id(self)}"  # of timers; no daemon has a name with such a character
        self._second: Ns = 0  # when the one began in which...
        self._wakes = 0  # ...the descriptor woke us so often
        self._is_paused = self._is_blind = False  # what came in the flood was not looked through

    def replace(self, files: Sequence[File], pidfiles: Sequence[File] = ()) -> list[str]:
        """Watch exactly these files from now on, besides those that were added.

        Args:
            files: touch files, with what to call when they have changed.
            pidfiles: the same; the callback comes at most every 50 ms for each of them, but
                for the first few changes, and always once more after the last change. It comes
                now and then without one. What has changed before this returns is not told.

        Returns:
            What cannot be watched, in words.
        """
        for row in list(self._rows.values()):
            if row.kind != PLAIN:
                self.remove(row.number)
        problems = []
        for kind, mask, rows in (
            (TOUCH, IN_DIRECTORY | IN_FILE, files),
            (PIDFILE, IN_DIRECTORY | IN_FILE | IN_MODIFY, pidfiles),
        ):
            for path, callback in rows:
                row = self._insert(os.path.abspath(path), callback, kind, mask)
                problems.append(self._arm(row))
                row.look_again()
        return [problem for problem in problems if problem]

    def add(self, path: str, callback: Callable[[], None], mask: int) -> int:
        """Watch a file for the events of `mask` and for its removal; return a number for `remove`.

        What has changed before this returns is not told. The callback comes at most every 50 ms,
        and always once more after the last event; when the file is gone it comes a last time.

        To wait for a lock: add IN_CLOSE_WRITE of the lock file, and only then try once more. The
        holder's file is closed a moment before its lock goes if it is killed (__fput() in the
        kernel), so a callback is repeated after 50 ms. Attempts must not open the file for
        writing: closing that would be an event for all who wait.

        Raises:
            KernelError: the file is not there, or cannot be watched.
        """
        row = self._insert(path, callback, PLAIN, mask)
        mask |= IN_DELETE_SELF | IN_MOVE_SELF | IN_DONT_FOLLOW | IN_MASK_ADD
        try:
            watch = native.inotify_add(self._fd, path, mask)
        except OSError:
            self.remove(row.number)
            raise
        self._use(row, {watch: None})
        return row.number

    def expect(self, path: str, callback: Callable[[], None]) -> int:
        """Watch a path as `replace` does for a pidfile; return a number for `remove`.

        There need not be anything at it, nor its directory. Not for one who calls `replace`.
        """
        mask = IN_DIRECTORY | IN_FILE | IN_MODIFY
        row = self._insert(os.path.abspath(path), callback, PIDFILE, mask)
        problem = self._arm(row)
        if problem:
            self.remove(row.number)
            raise KernelError("inotify_add_watch", 0, path, problem)
        row.look_again()
        return row.number

    def remove(self, number: int) -> None:
        """Stop to watch what `add` or `expect` gave this number; not doing so is no error."""
        row = self._rows.pop(number, None)
        if row is None:
            return
        self._loop.cancel_timer(f"{self._key}\0{number}")
        self._use(row, {})
        if not self._rows:
            self.close()

    def close(self) -> None:
        """Watch nothing."""
        for number in self._rows:
            self._loop.cancel_timer(f"{self._key}\0{number}")
        self._loop.cancel_timer(self._key)
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
        self._fd = -1
        self._rows, self._users = {}, {}
        self._is_paused = self._is_blind = False
        self._wakes = 0

    def _insert(self, path: str, callback: Callable[[], None], kind: int, mask: int) -> Row:
        if self._fd < 0:
            self._fd = native.inotify_create()
            self._loop.watch(self._fd, 1, self._on_wake)
        self._last += 1
        row = self._rows[self._last] = Row(self._last, path, callback, kind, mask)
        return row

    # The watches of a row.

    def _arm(self, row: Row) -> str:
        """Watch a file and its directory, or the nearest directory that exists."""
        watches: dict[int, bytes | None] = {}
        problem = self._arm_directory(row, watches)
        # A link's target lies in another directory, whose events would not be seen; and what does
        # not exist yet cannot be watched, its directory will tell. Masks of one file add up: a
        # touch file may be the pidfile of another daemon.
        mask = IN_FILE if row.kind == TOUCH else IN_FILE | IN_MODIFY | IN_DONT_FOLLOW
        try:  # noqa: SIM105  # contextlib takes longer to import than all of this module
            watches[native.inotify_add(self._fd, row.path, mask | IN_MASK_ADD)] = None
        except OSError:
            pass
        self._use(row, watches)
        return problem

    def _arm_directory(self, row: Row, watches: dict[int, bytes | None]) -> str:
        home = os.path.dirname(row.path)
        for _ in range(ARM_TRIES):
            directory, name = os.path.split(row.path)
            while True:
                try:
                    watch = native.inotify_add(self._fd, directory, IN_DIRECTORY | IN_MASK_ADD)
                    break
                except OSError as error:
                    if directory in ("/", ""):
                        return f"{row.path} cannot be watched: {error}"
                    directory, name = os.path.split(directory)
            # The target of a link may lie in the same directory, and not exist yet.
            is_link = row.kind == TOUCH and os.path.islink(row.path)
            watches[watch] = None if is_link else os.fsencode(name)
            # Race: the next directory was made before the one above it was watched.
            if directory == home or not os.path.isdir(os.path.join(directory, name)):
                break
        return ""

    def _use(self, row: Row, watches: dict[int, bytes | None]) -> None:
        """Make these the watches of a row, and remove those that no row has any more."""
        for watch, name in row.watches.items():
            users = self._users.get(watch)
            if users is not None and (watch not in watches or watches[watch] != name):
                numbers = users.get(name, set())
                numbers.discard(row.number)
                if not numbers:
                    users.pop(name, None)
                if not users and watch not in watches:
                    del self._users[watch]
                    native.inotify_remove(self._fd, watch)
        for watch, name in watches.items():
            self._users.setdefault(watch, {}).setdefault(name, set()).add(row.number)
        row.watches = watches

    # Events.

    def _on_wake(self) -> None:
        now = self._loop.now()
        if now - self._second > SECOND:
            self._second, self._wakes = now, 0
        self._wakes += 1
        self._take_events()
        if self._wakes > MAX_WAKES and self._fd >= 0:
            self._is_paused = True
            self._loop.unwatch(self._fd)
            self._loop.set_timer(self._key, now + PAUSE, self._on_pause_end)

    def _on_pause_end(self) -> None:
        """Take what has come in the meantime; when that is nothing, the flood is over."""
        if self._take_events():
            if self._is_paused:  # and not closed by a callback
                self._loop.set_timer(self._key, self._loop.now() + PAUSE, self._on_pause_end)
            return
        self._is_paused, self._wakes = False, 0
        self._loop.watch(self._fd, 1, self._on_wake)
        if self._is_blind:
            # The end of a watch (IN_IGNORED) may have been among what was not looked through.
            self._look_at_all()

    def _take_events(self) -> bool:
        """Read what there is and call whom it concerns; return whether there was something."""
        events = self._read()
        if len(events) <= READ_BYTES - LONGEST_EVENT:
            self._look_through(events)
            return bool(events)
        # More wait. To look at all files takes less than to look through thousands of events.
        for _ in range(MAX_READS):
            if len(self._read()) <= READ_BYTES - LONGEST_EVENT:
                break
        self._look_at_all()
        return True

    def _look_at_all(self) -> None:
        """See which files have changed; in a flood without a look at all their watches."""
        # A file that is what it was has the watches that it had, but for rare cases.
        self._is_blind = self._is_paused
        for row in list(self._rows.values()):
            if row.number in self._rows:  # an earlier callback may have removed it
                self._look_again(row, is_known=self._is_blind)

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return b""

    def _look_through(self, events: bytes) -> None:
        hit: set[int] = set()
        made: set[int] = set()
        offset = 0
        while offset < len(events):
            watch, mask, _, length = _EVENT.unpack_from(events, offset)
            name = events[offset + 16 : offset + 16 + length].rstrip(b"\0")
            offset += 16 + length
            users = self._users.get(watch)
            if users is not None:
                numbers = self._concerned(users, name, mask)
                (made if mask & IN_CREATE else hit).update(numbers)
                if mask & IN_IGNORED:
                    self._users.pop(watch, None)
            elif mask & IN_Q_OVERFLOW:
                hit.update(self._rows)
        for number in sorted(hit | made):
            row = self._rows.get(number)  # an earlier callback may have removed it
            if row is not None:
                self._look_again(row, being_made=number not in hit)

    def _concerned(
        self, users: dict[bytes | None, set[int]], name: bytes, mask: int
    ) -> Iterable[int]:
        """Return the rows that an event is for; one without a name is about the directory."""
        if name:
            numbers = users.get(name, set()) | users.get(None, set())
        else:
            numbers = set().union(*users.values())
        return [number for number in numbers if self._rows[number].mask & mask]

    def _look_again(self, row: Row, *, being_made: bool = False, is_known: bool = False) -> None:
        """Call if the file has changed.

        Args:
            row: the file.
            being_made: all that is known is that the file is new.
            is_known: its watches are right unless it looks different.
        """
        if row.kind == PLAIN:
            self._call_soon(row, again=True)
            return
        if not is_known or row.look is None:
            self._arm(row)
        if being_made and row.is_being_made():
            return  # its closing will tell
        before = row.look
        # Race: a pidfile that was made and removed before we looked is what it was, and is not
        # what its daemon's master takes it for.
        if not row.look_again() and (is_known or row.kind != PIDFILE):
            return
        if is_known and row.look != before:
            self._arm(row)
            row.look_again()
        if row.kind == TOUCH:
            row.callback()
        else:
            self._call_soon(row)

    def _call_soon(self, row: Row, *, again: bool = False) -> None:
        """Call now, or at the end of the pause since the last call; with `again` then, too."""
        now = self._loop.now()
        if now >= row.called + PAUSE:
            row.burst = BURST
        is_free = row.burst > 0
        if is_free:
            row.burst -= 1
            row.called = now
            row.callback()
        if row.number in self._rows and (again or not is_free):
            # The time of a call that waits already is moved for what is to be told again only.
            at = now + PAUSE if again else row.called + PAUSE
            self._loop.set_timer(f"{self._key}\0{row.number}", at, lambda: self._on_due(row))

    def _on_due(self, row: Row) -> None:
        row.called = self._loop.now()
        row.callback()
