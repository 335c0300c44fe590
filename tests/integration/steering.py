"""A client of the control socket that knows nothing but the protocol."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

from masters import DEADLINE
from schema import validate

from lowsuper.kernel.instance import connect


def socket_of(masters, name: str = "test") -> str:
    """Return the path of the control socket of a master of `Masters`."""
    return str(Path(masters.directory) / ".run" / f"{name}.sock")


ANSWERS = {
    **dict.fromkeys(("start", "stop", "restart", "try-restart", "reset-failed"), "asked"),
    **{verb: verb for verb in ("hello", "status", "wait", "why", "diff", "apply", "logs")},
    "signal": "named",
}
"""What the published schema calls the answer to a verb; else it is "done"."""


class Client:
    """One connection. `ask` returns one answer, `next` the next line of a stream."""

    def __init__(self, path: str):
        self.socket = socket.socket(fileno=connect(path).detach())
        self.socket.settimeout(DEADLINE)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it may have said why before
            self.socket.sendall(data)

    def next(self) -> dict | None:
        """Return the next line; None at the end."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def ask(self, verb: str, *names: str, **fields) -> dict:
        request = {"do": verb, **fields}
        if names:
            request["names"] = list(names)
        self.send(json.dumps(request).encode() + b"\n")
        found = self.next()
        assert found is not None, f"no answer to {request}"
        if found["ok"]:
            validate(request, "request")
            kind = "shutdown" if "waiting" in found else ANSWERS.get(verb, "done")
            validate(found, kind)
        else:
            validate(found, "error")
        return found

    def done(self, verb: str, *names: str, **fields) -> dict:
        """Ask, and expect that it is done."""
        found = self.ask(verb, *names, **fields)
        assert found["ok"] is True, found
        assert found["schema"] == 1
        return found

    def refused(self, verb: str, *names: str, **fields) -> tuple[str, str]:
        """Ask, and expect that it is not; return code and message."""
        found = self.ask(verb, *names, **fields)
        assert found["ok"] is False, found
        return found["error"], found["message"]

    def daemon(self, name: str) -> dict:
        """Return a daemon as `status` has it."""
        (found,) = self.done("status", name)["daemons"]
        return found

    def wait(self, goal: str, *names: str, **fields) -> list[dict]:
        return self.done("wait", *names, **{"for": goal, **fields})["daemons"]

    def until(self, event: str, **wanted) -> dict:
        """Return the next event of a kind, and with these fields, of a stream."""
        while (found := self.next()) is not None:
            validate(found, "event")
            if found["event"] == event and wanted.items() <= found.items():
                return found
        raise AssertionError(f"the stream has ended without {event}")
