"""Answer what the reader of configurations asks: files, globs, commands and facts.

A file that is named in a configuration may be anything, also a device or a FIFO: reading is
bounded in size and in time, and never blocks on the opening.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time

from lowsuper.config import load
from lowsuper.config.requests import (
    UNKNOWN,
    AskFact,
    Failure,
    FileText,
    JudgePath,
    ListGlob,
    ReadDirectory,
    ReadFile,
    RunCommand,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowsuper.config.requests import Answer, Request
    from lowsuper.model import MasterSpec

MOST_BYTES = 4 << 20
"""The largest file that is read."""
LONGEST_LINE = 1 << 20
"""The longest line of a file, in bytes."""
PATIENCE = 10.0
"""Seconds for a FIFO or a command to give all it has."""

_CHUNK = 1 << 16


class _UnreadableError(Exception):
    """A source cannot be read; its text is the phrase."""


class Source:
    """Answers requests from the running system."""

    def __init__(
        self, environ: Mapping[str, str], *, runs_commands: bool = True, is_reload: bool = False
    ) -> None:
        """Keep what the answers depend on.

        Args:
            environ: the environment of `@(exec://...)` commands.
            runs_commands: False: `@(exec://...)` is answered by "unknown".
            is_reload: what `if-reload` asks for.
        """
        self._environ = dict(environ)
        self._runs_commands = runs_commands
        self._is_reload = is_reload

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request; nothing is raised for what the system refuses."""
        answer: Answer
        match request:
            case ReadFile(path):
                answer = _answer(lambda: _read_text(path))
            case RunCommand(text):
                answer = FileText(UNKNOWN)
                if self._runs_commands:
                    answer = _answer(lambda: FileText(_run(text, self._environ)))
            case ListGlob(pattern):
                answer = _list_glob(pattern)
            case JudgePath(path, kind):
                answer = _test_path(path, kind)
            case ReadDirectory(path):
                answer = _read_directory(path)
            case AskFact(name):
                answer = "01"[self._is_reload] if name == "reload" else _FACTS[name]()
        return answer


def load_config(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    runs_commands: bool = True,
    is_reload: bool = False,
) -> MasterSpec:
    """Return the configuration that a command line and an environment ask for.

    Args:
        arguments: options and files, without the program's name.
        environ: the environment that lowsuper was started with.
        runs_commands: False: `@(exec://...)` is not run and its options are left out.
        is_reload: what `if-reload` asks for.

    Raises:
        ConfigError: something is wrong; it holds everything that is.
    """
    source = Source(environ, runs_commands=runs_commands, is_reload=is_reload)
    reader = load(arguments, environ)
    try:
        request = next(reader)
        while True:
            request = reader.send(source.answer(request))
    except StopIteration as stop:
        spec: MasterSpec = stop.value
        return spec


def _answer(read: Callable[[], FileText]) -> FileText | Failure:
    try:
        return read()
    except _UnreadableError as error:
        return Failure(str(error))
    except OSError as error:
        return Failure(_explain(error))


def _explain(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


# Files.


def _read_text(path: str) -> FileText:
    """Return a file's text, its absolute path and inode.

    Raises:
        OSError: it cannot be opened or read.
        _UnreadableError: it is not what a configuration can be.
    """
    if path == "-":
        return FileText(_decode(_read_all(0)), "")
    if not path:
        raise _UnreadableError("there is no path")
    if "\0" in path:
        raise _UnreadableError("the path holds a NUL byte")
    file_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(file_fd).st_mode
        if stat.S_ISDIR(mode):
            raise _UnreadableError("is a directory, not a file")
        text = _decode(_read_all(file_fd))
    finally:
        os.close(file_fd)
    full = os.path.abspath(path) if os.path.islink(path) else os.path.realpath(path)
    return FileText(text, full, os.lstat(full).st_ino)


def _read_all(file_fd: int) -> bytes:
    """Return everything up to the end, waiting for a FIFO for at most `PATIENCE` seconds.

    Raises:
        _UnreadableError: it takes too long or is too large.
    """
    chunks: list[bytes] = []
    size = 0
    deadline = time.monotonic() + PATIENCE
    poll = select.poll()
    poll.register(file_fd, select.POLLIN)
    while True:
        if time.monotonic() > deadline or not poll.poll(max(0, deadline - time.monotonic()) * 1000):
            raise _UnreadableError(f"gave no end of file within {PATIENCE:.0f} s")
        try:
            chunk = os.read(file_fd, _CHUNK)
        except BlockingIOError:
            continue
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > MOST_BYTES:
            raise _UnreadableError(f"is larger than {MOST_BYTES >> 20} MiB")


def _decode(data: bytes) -> str:
    """Return bytes as text; what is not UTF-8 comes out again as the same bytes.

    Raises:
        _UnreadableError: it is no text.
    """
    at = data.find(b"\0")
    if at >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise _UnreadableError(f"holds a NUL byte in line {line}: it is not a text file")
    if len(data) > LONGEST_LINE:
        for number, line_bytes in enumerate(data.split(b"\n"), 1):
            if len(line_bytes) > LONGEST_LINE:
                raise _UnreadableError(f"line {number} is longer than {LONGEST_LINE >> 20} MiB")
    return data.decode("utf-8", "surrogateescape")


def _read_directory(path: str) -> tuple[tuple[str, str], ...] | Failure:
    """Return the variables of a daemontools directory; an empty text removes one."""
    found: list[tuple[str, str]] = []
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        return Failure(_explain(error))
    for name in names:
        full = os.path.join(path, name)
        if name.startswith(".") or not os.path.isfile(full):
            continue
        if "=" in name:
            return Failure(f"{name} is not the name of a variable")
        answer = _answer(lambda full=full: _read_variable(full))  # type: ignore[misc]
        if isinstance(answer, Failure):
            return Failure(f"{name}: {answer.reason}", answer.advice)
        found.append((name, answer.text))
    return tuple(found)


def _read_variable(path: str) -> FileText:
    """Return the value in one file: trailing blanks go, NUL bytes are newlines."""
    file_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = _read_all(file_fd)
    finally:
        os.close(file_fd)
    data = data.rstrip(b" \t\r\n").replace(b"\0", b"\n")
    return FileText(data.decode("utf-8", "surrogateescape"))


def _test_path(path: str, kind: str) -> bool:
    if "\0" in path:
        return False
    if kind == "exists":
        return os.access(path, os.R_OK)
    return os.path.isdir(path) if kind == "dir" else os.path.isfile(path)


def _list_glob(pattern: str) -> tuple[str, ...]:
    """Return the paths that match, directories with a slash; the pattern itself if none does."""
    import glob

    paths = sorted(glob.glob(pattern))
    marked = (path + "/" if os.path.isdir(path) and path[-1:] != "/" else path for path in paths)
    return tuple(marked) or (pattern,)


# Commands.


def _run(text: str, environ: Mapping[str, str]) -> str:
    """Return what a shell command writes to its standard output.

    Raises:
        _UnreadableError: it fails, or does not end in time.
    """
    import subprocess

    with subprocess.Popen(
        ["/bin/sh", "-c", text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            os.set_blocking(process.stdout.fileno(), False)
            output = _read_all(process.stdout.fileno())
            status = process.wait(PATIENCE)
        except (_UnreadableError, subprocess.TimeoutExpired):
            _kill_group(process.pid)
            raise _UnreadableError(f"the command did not end within {PATIENCE:.0f} s") from None
    if status:
        raise _UnreadableError(f"the command ended with status {status}")
    return _decode(output)


def _kill_group(pid: int) -> None:
    """Kill a session leader that we started and have not reaped, with its group."""
    try:
        os.killpg(pid, 9)
    except OSError as error:
        # Race: the command may have ended between the timeout and here.
        if error.errno != errno.ESRCH:
            raise


# Facts.


def _find_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _find_group() -> str:
    import grp

    try:
        return grp.getgrgid(os.getgid()).gr_name
    except KeyError:
        return str(os.getgid())


def _find_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lowsuper")
    except PackageNotFoundError:
        return "0"


def _find_binary() -> str:
    import sys

    return os.path.abspath(sys.argv[0])


_FACTS: dict[str, Callable[[], str]] = {
    "cwd": os.getcwd,
    "hostname": lambda: os.uname().nodename,
    "cpus": lambda: str(os.cpu_count() or 1),
    "uid": lambda: str(os.getuid()),
    "user": _find_user,
    "gid": lambda: str(os.getgid()),
    "group": _find_group,
    "time": lambda: str(int(time.time())),
    "micros": lambda: str(time.time_ns() // 1000),
    "version": _find_version,
    "binary": _find_binary,
}
