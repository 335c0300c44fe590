"""Files of environment variables (`envfile`), read as root at each start of a daemon.

What they hold is never shown. They are opened as log files are (`csrc/logfile.c`): where others
than root decide about the names, no link is followed, and the file is the daemon's user's or
root's own; so nobody has root read to them what they may not read.
"""

from __future__ import annotations

import os
import stat
from errno import EFBIG, EINVAL, ENOENT, EPERM

from lowsuper.errors import KernelError
from lowsuper.kernel.native import ffi, lib
from lowsuper.model import EnvChange
from lowsuper.plan import LOG_REASONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import DaemonSpec

CALL = "envfile"
MOST_BYTES = 256 * 1024
OTHERS_WRITE = 0o022


def read_envfiles(spec: DaemonSpec, uid: int) -> list[EnvChange]:
    """Return what all files of a daemon ask for, in order.

    Raises:
        KernelError: a file cannot be read.
    """
    return [each for path in spec.envfile for each in read_envfile(path, uid)]


def read_envfile(path: str, uid: int) -> list[EnvChange]:
    """Return what a file asks for; of one that begins with - and is not there, nothing.

    Args:
        path: as configured.
        uid: the daemon's user.

    Raises:
        KernelError: it cannot be read, or is not to be trusted, or is none.
    """
    is_optional, path = path.startswith("-"), os.path.abspath(path.removeprefix("-"))
    reason = ffi.new("int32_t *")
    fd = lib.lowsuper_log_open(os.fsencode(path), uid, lib.LOWSUPER_LOG_READ, reason)
    if fd < 0:
        if fd == -ENOENT and is_optional:
            return []
        raise KernelError(CALL, -fd, path + LOG_REASONS[reason[0]])
    try:
        data = _read(fd, path, uid)
    finally:
        os.close(fd)
    return parse(data, path)


def _read(fd: int, path: str, uid: int) -> bytes:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise KernelError(CALL, EINVAL, path, "it is no plain file")
    if status.st_uid not in (0, os.geteuid(), uid):
        raise KernelError(CALL, EPERM, path, f"it belongs to uid {status.st_uid}")
    if status.st_mode & OTHERS_WRITE:
        raise KernelError(CALL, EPERM, path, "others than its owner can write to it")
    parts, size = [], 0
    while piece := os.read(fd, MOST_BYTES):
        parts.append(piece)
        size += len(piece)
        if size > MOST_BYTES:
            raise KernelError(CALL, EFBIG, path, f"it is larger than {MOST_BYTES} bytes")
    return b"".join(parts)


def parse(data: bytes, path: str) -> list[EnvChange]:
    """Return what the lines `NAME=value` ask for.

    Empty lines and those that begin with # or ; say nothing; `export ` before a name is passed
    over; quotes around a whole value are taken off, and in double ones a backslash protects what
    comes next. Nothing is expanded.

    Raises:
        KernelError: EINVAL, and the line; what is on it is not told.
    """
    found: list[EnvChange] = []
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        name, equals, value = text.partition("=")
        name = name.removeprefix("export ").strip()
        if not equals or not name or "\0" in text or any(map(str.isspace, name)):
            raise KernelError(CALL, EINVAL, f"{path}:{number}", "the line is not NAME=value")
        found.append(EnvChange(name, _unquote(value.strip(), f"{path}:{number}")))
    return found


def _unquote(value: str, place: str) -> str:
    quote = value[:1]
    if quote not in ("'", '"'):
        return value
    inner: list[str] = []
    rest = iter(value[1:])
    for char in rest:
        if char == quote:
            if any(True for _ in rest):
                raise KernelError(CALL, EINVAL, place, "there is something after the quotes")
            return "".join(inner)
        inner.append(next(rest, "") if char == "\\" and quote == '"' else char)
    raise KernelError(CALL, EINVAL, place, "a quote has no end")
