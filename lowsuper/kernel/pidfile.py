"""The master's own pidfiles: written whole or not at all, never through a link.

The number goes to a new file beside the old one, which takes its place by rename(2): whoever
reads it sees one pid or the other, and a symbolic link there is replaced, not followed.
"""

from __future__ import annotations

import os

from lowsuper.errors import KernelError

MODE = 0o644
MAX_BYTES = 65


def write_pidfile(path: str, pid: int) -> None:
    """Write `pid` and a newline to `path`.

    Raises:
        KernelError: the directory does not take the file.
    """
    directory, name = os.path.split(os.path.abspath(path))
    temporary = f".{name}.{os.getpid()}"
    try:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("pidfile", error.errno or 0, path) from error
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        _unlink(temporary, dir_fd)
        fd = os.open(temporary, flags, MODE, dir_fd=dir_fd)
        try:
            os.write(fd, b"%d\n" % pid)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError as error:
        _unlink(temporary, dir_fd)
        raise KernelError("pidfile", error.errno or 0, path) from error
    finally:
        os.close(dir_fd)


def remove_pidfile(path: str, pid: int | None = None) -> None:
    """Remove `path`; with `pid` only if that is what it holds. Its absence is no error.

    Raises:
        KernelError: it cannot be removed.
    """
    try:
        if pid is None or _holds(path, pid):
            os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError("unlink", error.errno or 0, path) from error


def _holds(path: str, pid: int) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(fd, MAX_BYTES).strip() == b"%d" % pid
    finally:
        os.close(fd)


def _unlink(name: str, dir_fd: int) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
