"""What has become of a daemon so far, as far as people ask for it. Pure.

A chronicle is folded from the notes that the operator is told: it knows nothing that was not said.
"""

from __future__ import annotations

from collections import deque

from lowsuper.events import (
    DaemonDied,
    DaemonDone,
    DaemonFound,
    DaemonGone,
    DaemonLate,
    DaemonMoved,
    DaemonNotReady,
    DaemonNotStarted,
    DaemonReady,
    DaemonReaped,
    DaemonSilent,
    DaemonStarted,
)
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.events import Note
    from lowsuper.units import Ns

KEPT = 10  # notes of each daemon


class Exit(Record):
    """How a daemon's process ended last."""

    status: int | None  # as wait(2) gives it; None: unknown
    pid: int
    age: Ns | None  # how long it had run; None: it was asked to end
    at: Ns  # CLOCK_MONOTONIC
    oom: str = ""  # what the kernel killed it for, if that was a lack of memory


class Chronicle:
    """The chronicle of one daemon. `record` adds to it."""

    __slots__ = ("exit", "failure", "gid", "notes", "pid", "restarts", "rung", "uid")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.restarts = 0  # that nobody asked for
        self.exit: Exit | None = None
        self.failure: DaemonNotStarted | DaemonNotReady | DaemonLate | DaemonSilent | None = None
        self.uid = self.gid = -1  # of the last program; -1: none was seen
        self.rung = ""
        self.pid = 0
        self.notes: deque[tuple[Ns, Note]] = deque(maxlen=KEPT)

    def record(self, note: Note, now: Ns) -> None:  # noqa: C901  # a table
        """Take note of something that the operator is told of this daemon.

        Args:
            note: with the daemon's name.
            now: CLOCK_MONOTONIC in nanoseconds.
        """
        self.notes.append((now, note))
        match note:
            case DaemonStarted() | DaemonFound():
                self.pid, self.uid, self.gid, self.rung = note.pid, note.uid, note.gid, note.rung
                self.failure = None
            case DaemonReady():
                self.failure = None
            case DaemonMoved(new=new):
                self.pid = new
            case DaemonDied(status=status, pid=pid, age=age, retry=retry):
                self.exit = Exit(status, pid, age, now, note.oom)
                self._count(retry)
            case DaemonDone(status=status, pid=pid, age=age):
                self.exit = Exit(status, pid, age, now)
            case DaemonGone(status=status, pid=pid, retry=retry):
                self._gone(status, pid, now)
                self._count(retry or None)  # 0: somebody asked for it
            case DaemonReaped(status=status, pid=pid):
                if self.exit is not None and self.exit.pid == pid:
                    self.exit = self.exit.replace(status=status)
            case DaemonNotStarted() | DaemonNotReady():
                self.failure = note
                self._count(note.retry)
            case DaemonLate() | DaemonSilent():
                self.failure = note
            case _:
                pass

    def _gone(self, status: int | None, pid: int, now: Ns) -> None:
        """The last of it is gone; of one that died by itself the end was told before."""
        told = self.exit
        if told is None or told.pid != pid:
            self.exit = Exit(status, pid, None, now)

    def _count(self, retry: Ns | None) -> None:
        if retry is not None:
            self.restarts += 1
