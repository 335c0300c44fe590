"""`lowsuper status --watch`: the table, drawn again whenever something has happened.

The master is asked only then. In a terminal the length of time that daemons run goes on
meanwhile, and their memory is read from time to time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from select import POLLIN, poll
from time import CLOCK_MONOTONIC, clock_gettime, monotonic

from lowsuper.ctl import screen
from lowsuper.ctl.show import judge, render_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from lowsuper.client import Client
    from lowsuper.ctl import Call

BEGIN, END, HOME = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"
PAUSE = 0.1
"""Seconds at least between two requests, however much happens."""

TICK = 1.0
"""Seconds between two drawings in a terminal when nothing happens."""


class _EndedError(Exception):
    """Somebody wants us to end."""


def watch(call: Call) -> int:
    """Show the table again and again until the user or the master ends it."""
    with call.connect() as master, master.open_another() as second:
        second.listen(call.names)
        with _screen() as wake_fd:
            try:
                return _Watch(call, master, second, wake_fd).run()
            except (KeyboardInterrupt, _EndedError):
                return 0


class _Watch:
    """One table and what makes it change."""

    def __init__(self, call: Call, master: Client, second: Client, wake_fd: int) -> None:
        self._call, self._master, self._second = call, master, second
        self._wake_fd = wake_fd
        self._is_drawn = screen.is_terminal() and not call.has("json")
        self._before = ""

    def run(self) -> int:
        """Draw until the master ends."""
        poller = poll()
        poller.register(self._second, POLLIN)
        poller.register(self._wake_fd, POLLIN)
        answer = self._ask()
        while True:
            asked = monotonic()
            code = self._draw(answer)
            ready = {fd for fd, _ in poller.poll(TICK * 1000 if self._is_drawn else None)}
            if self._wake_fd in ready:
                os.read(self._wake_fd, 64)
            if self._second.fileno() not in ready:
                continue
            # What comes at the same time is one change.
            poll().poll(max(0.0, asked + PAUSE - monotonic()) * 1000)
            _, more = self._second.drain()
            if not more:
                return self._say_end(code)
            answer = self._ask()

    def _ask(self) -> dict[str, Any]:
        return self._master.request("status", names=self._call.names or None)

    def _draw(self, answer: dict[str, Any]) -> int:
        now = clock_gettime(CLOCK_MONOTONIC)
        fresh = {
            **answer,
            "monotonic": now if self._is_drawn else answer["monotonic"],
            "daemons": [dict(fields) for fields in answer["daemons"]],
        }
        text, daemons = render_status(
            self._call, fresh, is_seen=self._master.sees(answer.get("instance"))
        )
        if self._is_drawn:
            from lowsuper.ctl.table import summarize

            rows = os.get_terminal_size(1).lines
            lines = f"{text}\n{summarize(daemons)}".split("\n")
            screen.write(HOME + "\n".join(lines[: rows - 1]))
        elif text != self._before:
            screen.write(text if self._call.has("json") or not self._before else "\n" + text)
        self._before = text
        return judge(daemons) if self._call.names else 0

    def _say_end(self, code: int) -> int:
        from lowsuper.ctl import complain

        if self._is_drawn:
            screen.write(END)
        complain("the master has ended")
        return code or 1


@contextlib.contextmanager
def _screen() -> Iterator[int]:
    """Have the terminal for oneself; give a descriptor that becomes readable on its change."""
    is_terminal = screen.is_terminal()
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def end(_number: int, _frame: object) -> None:
        raise _EndedError

    before = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    numbers = (signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, end) for number in numbers}
    handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
    if is_terminal:
        screen.write(BEGIN)
    try:
        yield read_fd
    finally:
        if is_terminal:
            screen.write(END)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(read_fd)
        os.close(write_fd)
