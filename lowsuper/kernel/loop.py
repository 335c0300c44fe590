"""The event loop: epoll over whatever has a descriptor, one signalfd, one timerfd.

It owns the clock and decides nothing. It sleeps until something happens: there is no periodic
wake-up, and with no timer set the timerfd is disarmed.

Rule 1: `unwatch` before `close`. After a close alone, epoll may go on to report a descriptor whose
open file something else still holds, under a number that may belong to another file by then.
Rule 2: a callback may unwatch, close and watch whatever it likes; what epoll had reported for a
number that was unwatched in the same turn is dropped.
"""

from __future__ import annotations

import select
from heapq import heappop, heappush
from time import monotonic_ns

from lowsuper.kernel import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lowsuper.units import Ns

READ, WRITE, URGENT, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLPRI, 0
"""What to watch for; HANGUP alone is always reported, so it is the empty mask."""

MAX_EVENTS = 256  # of one turn; what is left comes with the next


class Loop:
    """Calls back for descriptors, signals and timers. Closes only what it made itself."""

    def __init__(self) -> None:
        """Make the epoll and the timer."""
        self._epoll = select.epoll(sizehint=MAX_EVENTS, flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._unwatched: set[int] = set()
        self._timers: dict[str, tuple[Ns, Callable[[], None]]] = {}
        self._heap: list[tuple[Ns, str]] = []
        self._armed: Ns = 0
        self._timer_fd = native.timerfd_create()
        self._signal_fd = -1
        self.watch(self._timer_fd, READ, self._on_timer)

    def now(self) -> Ns:
        """Return CLOCK_MONOTONIC in nanoseconds."""
        return monotonic_ns()

    def watch(self, fd: int, mask: int, callback: Callable[[], None]) -> None:
        """Call back when `fd` is ready for `mask`, hangs up or fails; it stays the caller's."""
        self._epoll.register(fd, mask)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, which the caller may close now. Not being watched is no error."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._unwatched.add(fd)

    def watch_signals(self, signals: Iterable[int], callback: Callable[[int], None]) -> None:
        """Block `signals` for good and call back with the number of each that arrives."""
        self._signal_fd = native.signalfd_create(signals)

        def on_signals() -> None:
            for signal in native.signalfd_read(self._signal_fd):
                callback(signal)

        self.watch(self._signal_fd, READ, on_signals)

    def set_timer(self, key: str, at: Ns, callback: Callable[[], None]) -> None:
        """Call back once at the time `at`; a timer of the same key is replaced."""
        self._timers[key] = (at, callback)
        heappush(self._heap, (at, key))

    def cancel_timer(self, key: str) -> None:
        """Forget a timer; there need not be one."""
        self._timers.pop(key, None)

    def run_turn(self, after: Callable[[], None]) -> None:
        """Sleep until something happens, then call back for all that has happened.

        Args:
            after: called after each callback, so that what follows from the first event does not
                wait for the others.
        """
        self._arm()
        events = self._epoll.poll(-1, MAX_EVENTS)
        self._unwatched.clear()
        for fd, _ in events:
            if fd not in self._unwatched:
                self._callbacks[fd]()
                after()

    def close(self) -> None:
        """Close what the loop made."""
        self._epoll.close()
        native.close(self._timer_fd)
        if self._signal_fd >= 0:
            native.close(self._signal_fd)

    def _arm(self) -> None:
        """Set the timerfd to the earliest timer that is still wanted."""
        heap, timers = self._heap, self._timers
        while heap:
            at, key = heap[0]
            timer = timers.get(key)
            if timer is not None and timer[0] == at:
                break
            heappop(heap)
        earliest = heap[0][0] if heap else 0
        if earliest != self._armed:
            native.timerfd_settime(self._timer_fd, earliest)
            self._armed = earliest

    def _on_timer(self) -> None:
        native.timerfd_read(self._timer_fd)
        self._armed = 0
        now = monotonic_ns()
        heap, timers = self._heap, self._timers
        while heap and heap[0][0] <= now:
            at, key = heappop(heap)
            timer = timers.get(key)
            if timer is not None and timer[0] == at:
                del timers[key]
                timer[1]()
