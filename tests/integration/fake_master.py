"""A master that is none: it speaks the protocol of the control socket, and its daemons are dicts.

With it the client is tested for what a real master rarely says, and for how quick it is.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import select
import socket
import threading
import time
from pathlib import Path

from lowsuper.kernel import instance


def daemon(name: str, **fields) -> dict:
    """Return a daemon as the protocol has it; one that runs, unless `fields` say something else."""
    now = time.monotonic()
    base = {
        "name": name,
        "state": "running",
        "ready": True,
        "pid": os.getpid(),
        "uid": 0,
        "gid": 0,
        "kill_domain": "cgroup",
        "run": 1,
        "since": now - 200.0,
        "restarts": 0,
        "exit": None,
        "next_try": None,
        "smart": False,
        "pidfile": None,
        "type": "simple",
        "command": f"/usr/bin/{name} --option",
        "words": "up, pid 1, for 3 min",
        "leaf": None,
        "status_text": None,
    }
    return base | fields


def ended(name: str, **fields) -> dict:
    """Return a daemon that does not run."""
    base = {"state": "stopped", "ready": False, "pid": None, "words": "down", "kill_domain": None}
    return daemon(name, **(base | fields))


def exit_of(code: int | None = 3, **fields) -> dict:
    base = {
        "status": f"exited with {code}",
        "code": code,
        "signal": None,
        "core": False,
        "oom": False,
        "after": 12.5,
        "monotonic": time.monotonic() - 5.0,
    }
    return base | fields


class FakeMaster:
    """Serves until it is closed. `answers` has functions for verbs that are to be answered so."""

    def __init__(self, directory: Path, name: str = "fake", file: str = "/etc/fake.ini"):
        self.name, self.file = name, file
        self._claim = instance.Claim(name, file, fixed=True)
        self._claim.take(str(directory))
        self.path = directory / f"{name}.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        # However long the directory's path is.
        self._listener.bind(f"/proc/self/fd/{self._claim.directory_fd}/{name}.sock")
        self._listener.listen(50)
        self._wake = socket.socketpair()
        self._lock = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._streams: list[socket.socket] = []
        self.daemons: dict[str, dict] = {}
        self.requests: list[dict] = []
        self.jail = None
        self.instance_changes: dict = {}
        self.answers = {}
        self._accepter = threading.Thread(target=self._accept, daemon=True)
        self._accepter.start()

    def add(self, *daemons: dict) -> FakeMaster:
        self.daemons |= {each["name"]: each for each in daemons}
        return self

    def asked(self, do: str) -> list[dict]:
        """Return the requests of that verb, in order."""
        with self._lock:
            return [each for each in self.requests if each["do"] == do]

    def wait_asked(self, do: str, count: int = 1) -> list[dict]:
        with self._lock:
            found = self._lock.wait_for(
                lambda: len([each for each in self.requests if each["do"] == do]) >= count, 20
            )
        assert found, f"nobody asked for {do}"
        return self.asked(do)

    def close(self) -> None:
        """End it; once is enough."""
        if self._listener.fileno() < 0:
            return
        self._wake[0].send(b"x")
        self._accepter.join()
        with self._lock:
            for each in self._connections:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._wake):
            each.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._claim.close()

    def change(self, name: str, **fields) -> None:
        """Change a daemon, and tell those who listen."""
        with self._lock:
            self.daemons[name] |= fields
            event = {"schema": 1, "event": "changed", "daemon": name, "monotonic": time.monotonic()}
            event |= {"time": "2026-01-01T00:00:00Z", "line": f"{name}: changed"}
            self._lock.notify_all()
            for each in list(self._streams):
                self._put(each, event)

    # The server.

    def _accept(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._wake[1]], [], [])
            if self._wake[1] in ready:
                return
            connection, _ = self._listener.accept()
            with self._lock:
                self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    request = json.loads(line)
                    with self._lock:
                        self.requests.append(request)
                        if request["do"] == "events":
                            self._put(connection, {"schema": 1, "ok": True})
                            self._streams.append(connection)
                        self._lock.notify_all()
                    self._answer(connection, request)
        except (OSError, EOFError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
                if connection in self._streams:
                    self._streams.remove(connection)
            connection.close()

    def _put(self, connection: socket.socket, *answers: dict | bytes) -> None:
        with contextlib.suppress(OSError):
            for answer in answers:
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                    continue
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, connection: socket.socket, request: dict) -> None:
        do = request["do"]
        if do in self.answers:
            found = self.answers[do](request)
            if found is None:
                raise EOFError
            for answer in found if isinstance(found, list) else [found]:
                self._put(connection, answer)
            return
        if do == "events":
            return
        name = "do_" + do.replace("-", "_")
        if not hasattr(self, name):
            self._put(connection, refuse("unknown-verb", f"there is no verb {do}"))
            return
        try:
            answer = {"schema": 1, "ok": True, **getattr(self, name)(request)}
        except LookupError as error:
            answer = refuse("unknown-name", f"there is no daemon {error.args[0]}")
        self._put(connection, answer)

    def find(self, names: list[str] | None) -> list[dict]:
        found = {}
        for word in names or ["*"]:
            matching = fnmatch.filter(self.daemons, word)
            if not matching and word != "*":
                raise LookupError(word)
            found |= {name: self.daemons[name] for name in matching}
        return list(found.values())

    @property
    def instance(self) -> dict:
        return {
            "name": self.name,
            "pid": os.getpid(),
            "version": "0",
            "files": [self.file],
            "phase": "running",
            "since": time.monotonic() - 1000,
            "jail": self.jail,
            **self.instance_changes,
        }

    def do_hello(self, _request) -> dict:
        return {"instance": self.instance}

    def do_status(self, request) -> dict:
        return {
            "monotonic": time.monotonic(),
            "time": "2026-01-01T00:00:00Z",
            "instance": self.instance,
            "daemons": self.find(request.get("names")),
        }

    def _acted(self, request) -> dict:
        found = self.find(request["names"])
        return {
            "names": [each["name"] for each in found],
            "runs": {each["name"]: each["run"] for each in found},
        }

    def do_start(self, request) -> dict:
        acted = self._acted(request)
        for name in acted["names"]:
            if self.daemons[name]["state"] != "running":
                self._start(name)
        return acted

    def do_restart(self, request) -> dict:
        acted = self._acted(request)
        for name in acted["names"]:
            self._start(name)
        return acted

    def _start(self, name: str) -> None:
        run = self.daemons[name]["run"] + 1
        self.change(name, state="running", run=run, pid=os.getpid(), ready=True, words="up")

    def do_stop(self, request) -> dict:
        acted = self._acted(request)
        for name in acted["names"]:
            self.change(name, state="stopped", pid=None, ready=False, words="down")
        return acted

    def do_signal(self, request) -> dict:
        return {"names": [each["name"] for each in self.find(request["names"])]}

    do_reset_failed = do_signal

    def do_reload(self, request) -> dict:
        return self._acted(request) if request.get("names") else {}

    def do_adopt(self, request) -> dict:
        self.find([request["name"]])
        return {}

    def do_wait(self, request) -> dict:
        wanted = {
            "running": lambda each: each["state"] == "running",
            "ready": lambda each: each["ready"],
            "stopped": lambda each: each["state"] in ("stopped", "failed"),
            "exited": lambda each: each["exit"] is not None,
        }[request["for"]]
        with self._lock:
            done = self._lock.wait_for(
                lambda: all(map(wanted, self.find(request["names"]))), request.get("timeout")
            )
            if not done:
                return refuse("timeout", f"not {request['for']} in time")
            return {"daemons": self.find(request["names"])}

    def do_why(self, request) -> dict:
        (found,) = self.find([request["name"]])
        more = {
            "failure": None,
            "lines": ["one", "two"],
            "history": [
                {
                    "monotonic": time.monotonic() - 4,
                    "time": "2026-01-01T00:00:00Z",
                    "line": f"{request['name']}: started",
                }
            ],
            "decision": "restart = always",
        }
        return {**found, **more}

    def do_logs(self, request) -> dict:
        self.find([request["name"]])
        lines = [f"line {number}" for number in range(10)]
        count = request.get("lines")
        return {"lines": lines if count is None else lines[-count:]}

    def do_diff(self, _request) -> dict:
        changed = {"api": ["command", "uid"]}
        return {
            "changes": {
                "added": ["new"],
                "removed": ["old"],
                "changed": changed,
                "master": ["reload-mercy"],
            }
        }

    def do_apply(self, request) -> dict:
        return {**self.do_diff(request), "names": ["new", "old", "api"]}


def refuse(code: str, message: str) -> dict:
    return {"schema": 1, "ok": False, "error": code, "message": message}
