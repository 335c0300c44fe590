"""Who else could change what a path leads to.

A path is walked one component at a time, links included, by descriptors that nobody can swap.
It is trusted when every directory that takes part in it (those that hold a link on the way too)
belongs to root or to us and can be written by no other: then only root and we decide where it
leads, now and later. The resolved path alone would not do: a user's `run -> /run` leads to a
directory of root's, but it is the user who says to which one.

Group-writable counts as written by others, whatever the group: members of group root are not
root, and some containers run every program in it. The mode shows the mask of a POSIX ACL as the
group's bits, so an ACL that lets others write counts too.
"""

from __future__ import annotations

import os
import stat
from errno import ELOOP, ENOTDIR

from lowsuper.errors import LowsuperError

OTHERS_WRITE = 0o022
MAX_LINKS = 40  # as in path_resolution(7)
LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
MAKE_MODE = 0o755


class UntrustedError(LowsuperError):
    """Somebody else could change where a path leads; the text says who and where."""


def is_owned(status: os.stat_result) -> bool:
    """Return whether a file is root's or ours and can be written by no other."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & OTHERS_WRITE


def is_trusted(path: str, dir_fd: int) -> bool:
    """Return whether only root and we decide that the directory `path` leads to `dir_fd`."""
    try:
        fd = open_trusted(path)
    except (OSError, UntrustedError):
        return False
    try:
        return os.path.samestat(os.fstat(fd), os.fstat(dir_fd))
    finally:
        os.close(fd)


def open_trusted(path: str, *, sticky: bool = False, make: bool = False) -> int:
    """Return an O_PATH descriptor of a trusted directory, which the caller closes.

    Args:
        path: a directory.
        sticky: accept directories that others can write to if they are sticky: there everybody
            may add names, but not replace those of others.
        make: make what is missing of it, with mode 0755.

    Raises:
        UntrustedError: somebody else can change where it leads.
        OSError: it cannot be reached or made.
    """
    walk = _Walk(sticky, make)
    try:
        walk.follow(path if path.startswith("/") else f"{os.getcwd()}/{path}")
    except BaseException:
        os.close(walk.fd)
        raise
    return walk.fd


class _Walk:
    """A walk from the root; `fd` is where it has come to and belongs to whoever made it."""

    __slots__ = ("_is_shared", "_links", "_make", "_sticky", "fd")

    def __init__(self, sticky: bool, make: bool) -> None:
        self._sticky, self._make = sticky, make
        self._is_shared = False  # others can add names here
        self._links = 0
        self.fd = os.open("/", LOOK)

    def follow(self, path: str) -> None:
        """Go on along `path`, and where its links lead."""
        if path.startswith("/"):
            self._enter(os.open("/", LOOK))
        names = path.split("/")
        for index, name in enumerate(names):
            if name in ("", "."):
                continue
            fd = self._open(name)
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                self._enter(fd)
                continue
            try:
                target = self._read_link(fd)
            finally:
                os.close(fd)
            self.follow("/".join((target, *names[index + 1 :])))
            return

    def _open(self, name: str) -> int:
        try:
            return os.open(name, LOOK, dir_fd=self.fd)
        except FileNotFoundError:
            if not self._make:
                raise
        fd = make_directory(name, self.fd, MAKE_MODE)
        os.close(fd)
        return os.open(name, LOOK, dir_fd=self.fd)

    def _enter(self, fd: int) -> None:
        """Take over `fd` as the place where the walk is, if it is a directory to be trusted."""
        os.close(self.fd)
        self.fd = fd
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), where_is(fd))
        self._is_shared = bool(status.st_mode & OTHERS_WRITE)
        if status.st_uid not in (0, os.geteuid()):
            raise UntrustedError(f"{where_is(fd)} belongs to uid {status.st_uid}")
        if self._is_shared and not (self._sticky and status.st_mode & stat.S_ISVTX):
            raise UntrustedError(f"others than uid {status.st_uid} can write to {where_is(fd)}")

    def _read_link(self, fd: int) -> str:
        status = os.fstat(fd)
        # Where others can add names, a link is somebody's word: its owner's, unless it is a hard
        # link to one that root made elsewhere.
        if self._is_shared and (status.st_uid not in (0, os.geteuid()) or status.st_nlink > 1):
            raise UntrustedError(f"{where_is(fd)} is a link of uid {status.st_uid}")
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(ELOOP, os.strerror(ELOOP), where_is(fd))
        return os.readlink("", dir_fd=fd)


def make_directory(name: str, dir_fd: int, mode: int) -> int:
    """Make a directory with exactly this mode; return its descriptor, which the caller closes.

    Raises:
        OSError: it is there already, or cannot be made, or is not what was made.
    """
    os.mkdir(name, mode, dir_fd=dir_fd)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        os.fchmod(fd, mode)  # whatever the umask; EPERM where it is another's by now
    except OSError:
        os.close(fd)
        raise
    return fd


def where_is(fd: int) -> str:
    """Return where an open file is now, for a message; see proc_pid_fd(5)."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "a directory on its path"
