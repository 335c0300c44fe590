"""Pidfiles: written whole or not at all, and read wherever a hostile user may have put them.

Written through a new file beside the old one, which takes its place by rename(2): whoever reads
it sees one pid or the other, and a symbolic link there is replaced, not followed.

Read with the file pinned before it is opened: the last component is looked up with O_PATH, which
reaches no driver, waits for no writer of a FIFO and follows no link; only what turns out to be a
plain file with one name is opened then, by that same descriptor. So nothing that a user can put
there blocks the master, or makes it read a file of somebody else. What was in a file is never
quoted: it may be another's secret.

What remains: the directory itself is looked up like any other path, so one that lies on a dead
network file system or in a FUSE of its user's can hang the master. (Root is not let into a user's
FUSE unless the machine's fuse.conf has `user_allow_other`.)
"""

from __future__ import annotations

import os
import stat
from errno import (
    EACCES,
    EAGAIN,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOSYS,
    ENOTDIR,
    EPERM,
    EXDEV,
)

from lowsuper.errors import KernelError
from lowsuper.identity import Reading
from lowsuper.kernel import native, trust

MODE = 0o644
MAX_LINE = 64
MAX_BYTES = 64 * 1024
MAX_DIGITS = 10
MAX_PID = 1 << 22  # PID_MAX_LIMIT, see proc_sys_kernel(5)
NAMES = 100  # of temporary files that may be taken
TRIES = 10

DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x01, 0x04, 0x08
RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH

IS_NOT_THERE = "is not there"
KINDS = {
    stat.S_IFLNK: "is a symbolic link",
    stat.S_IFIFO: "is a FIFO",
    stat.S_IFDIR: "is a directory",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
    stat.S_IFSOCK: "is a socket",
}
REASONS = {
    EACCES: "cannot be reached: Permission denied",
    EINVAL: "has a name that no file can have",
    EISDIR: KINDS[stat.S_IFDIR],
    ELOOP: "cannot be reached: too many symbolic links",
    ENAMETOOLONG: "has too long a name",
    ENOENT: IS_NOT_THERE,
    ENOTDIR: "cannot be reached: what should be its directory is none",
    EXDEV: "is a mount of its own, which is not followed (mount its directory instead)",
}


class _RefusedError(Exception):
    """A file is not read, or there is no pid in it; the text is the reason."""


def read_pidfile(path: str) -> Reading:
    """Return what is at `path`; never blocks, and every oddity is a `reason`.

    Links are allowed in the directory, not in the last component, and that must not be a mount of
    its own. Of the file only the first line counts: blanks, up to ten digits, blanks; it must end
    within 64 bytes. A number without a newline may be half of one: see `Reading.complete`.

    `owner` is that of the file whenever there is one, of a link or a FIFO too. `safe` is only
    asked where there is a number: see `kernel.trust` for the directories.

    Takes about 0.05 ms. See openat2(2), Linux 5.6; without it the same is done in more steps.
    """
    try:
        dir_fd, name = _open_parent(path)
    except FileNotFoundError:
        return Reading(reason=f"{IS_NOT_THERE}, and neither is its directory", missing=True)
    except OSError as error:
        return Reading(reason=_explain(error))
    try:
        reading = _read_at(dir_fd, name)
        if reading.safe:
            directory = os.path.dirname(path) or "."
            return reading.replace(safe=trust.is_trusted(directory, dir_fd))
        return reading
    finally:
        os.close(dir_fd)


def _open_parent(path: str) -> tuple[int, str]:
    """Return the directory of `path`, which the caller closes, and the name in there."""
    directory, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), path)
    try:
        dir_fd = os.open(directory or ".", DIRECTORY)
    except ValueError:  # a NUL, or what the encoding of file names does not have
        raise OSError(EINVAL, os.strerror(EINVAL), path) from None
    try:
        is_possible = b"\0" not in os.fsencode(name)  # C would take the name to end there
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        os.close(dir_fd)
        raise OSError(EINVAL, os.strerror(EINVAL), path)
    return dir_fd, name


def _read_at(dir_fd: int, name: str) -> Reading:
    """Read a pidfile of a directory; `safe` is that of the file alone."""
    for _ in range(TRIES):
        try:
            fd = _look(dir_fd, name)
        except OSError as error:
            return Reading(reason=_explain(error), missing=error.errno == ENOENT)
        try:
            status = os.fstat(fd)
            try:
                if _was_replaced(fd, dir_fd, name, status):
                    continue
                pid, complete = parse_pid(_read_start(fd, status))
            except _RefusedError as refused:
                return Reading(reason=str(refused), owner=status.st_uid)
            safe = trust.is_owned(status)
            return Reading(
                pid,
                owner=status.st_uid,
                safe=safe,
                complete=complete,
                changed=status.st_ctime_ns,
            )
        finally:
            os.close(fd)
    return Reading(reason="is replaced again and again")


def _look(dir_fd: int, name: str) -> int:
    """Return an O_PATH descriptor of a name in a directory, of a link itself."""
    try:
        return native.openat2(dir_fd, name, LOOK, resolve=RESOLVE)
    except KernelError as error:
        # EPERM: a filter of system calls that does not know this one. Opening with O_PATH has no
        # such error of its own.
        if error.errno not in (ENOSYS, EPERM):
            raise
    fd = os.open(name, LOOK, dir_fd=dir_fd)
    if _mount_of(fd) != _mount_of(dir_fd):
        os.close(fd)
        raise OSError(EXDEV, os.strerror(EXDEV), name)
    return fd


def _was_replaced(fd: int, dir_fd: int, name: str, status: os.stat_result) -> bool:
    """Return whether a plain file with one name may have lost the one by which it was looked up.

    Race: a user makes a hard link to a file of root's, we look it up, the user removes the link,
    and what we then see is a file with one name: root's. But a name that was removed stays removed
    for who has looked it up, even if one like it is made again: the kernel calls it deleted. If it
    is in its directory after the names were counted, it was the one that was counted.

    Args:
        fd: what was looked up, an O_PATH descriptor.
        dir_fd: where.
        name: as what.
        status: of `fd`, from before this call.
    """
    if not status.st_nlink:
        return True
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return False
    if trust.is_owned(os.fstat(dir_fd)):
        return False  # nobody but root and us can play this there
    try:
        _wait_for_removals(dir_fd)
        directory = os.readlink(b"/proc/self/fd/%d" % dir_fd)
        now = os.readlink(b"/proc/self/fd/%d" % fd)
    except OSError as error:
        raise _RefusedError(_explain_proc(error)) from None
    where, _, what = now.rpartition(b"/")
    is_deleted = what.endswith(b" (deleted)") and what != os.fsencode(name)
    # Elsewhere, the removal of what was moved there could be under way unseen.
    return is_deleted or (where or b"/") != directory


def _wait_for_removals(dir_fd: int) -> None:
    """Let removals in a directory that are under way come to their end.

    unlink(2) and rename(2) lower the count of names first and declare the name deleted after that,
    under the directory's lock; listing the directory waits for that lock. Who may not list it is
    not root, whose files this is about.
    """
    try:
        list_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    except PermissionError:
        return
    try:
        with os.scandir(list_fd) as entries:
            next(entries, None)
    finally:
        os.close(list_fd)


def _mount_of(fd: int) -> str:
    """Return the number of the mount of an open file, see proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            key, _, value = line.partition(b":")
            if key == b"mnt_id":
                return value.strip().decode()
    return ""


def _read_start(fd: int, status: os.stat_result) -> bytes:
    """Return the first bytes of what an O_PATH descriptor stands for, if it is a plain file."""
    if not stat.S_ISREG(status.st_mode):
        raise _RefusedError(KINDS.get(stat.S_IFMT(status.st_mode), "is not a plain file"))
    if status.st_nlink > 1:
        raise _RefusedError("has another hard link")
    if status.st_size > MAX_BYTES:
        raise _RefusedError("is larger than 64 KiB")
    try:
        read_fd = os.open(f"/proc/self/fd/{fd}", READ)
    except OSError as error:
        raise _RefusedError(_explain_proc(error)) from None
    try:
        return os.read(read_fd, MAX_LINE + 1)
    except OSError as error:
        raise _RefusedError(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(read_fd)


def parse_pid(text: bytes) -> tuple[int, bool]:
    """Return the pid of a pidfile's first line, and whether that line is complete.

    Args:
        text: how the file begins; all of it if it is shorter than 65 bytes.
    """
    if not text:
        raise _RefusedError("is empty")
    line, newline, _ = text.partition(b"\n")
    if len(line) > MAX_LINE:
        raise _RefusedError("has a first line of more than 64 bytes")
    digits = line.strip(b" \t\r")
    if digits.startswith(b"-") and digits[1:].isdigit():
        raise _RefusedError("holds a negative number")
    if not digits[:1].isdigit():
        raise _RefusedError("does not begin with a number")
    if not digits.isdigit():
        raise _RefusedError("holds more than a number on its first line")
    if len(digits) > MAX_DIGITS or int(digits) > MAX_PID:
        raise _RefusedError("holds a number that is larger than any pid")
    if int(digits) == 0:
        raise _RefusedError("holds the number 0")
    return int(digits), bool(newline)


def _explain(error: OSError) -> str:
    return REASONS.get(error.errno or 0) or f"cannot be reached: {error.strerror}"


def _explain_proc(error: OSError) -> str:
    """Return the reason for an error at /proc/self/fd/N, which stands for a file."""
    if error.errno == EAGAIN:
        return "is busy (somebody holds a lease on it)"
    is_missing = error.errno == ENOENT
    return f"cannot be read: {'/proc is not mounted' if is_missing else error.strerror}"


def write_pidfile(path: str, pid: int) -> None:
    """Write `pid` and a newline to `path`, mode 0644 whatever the umask.

    If it fails, what was at `path` stays as it is. In a directory of an unprivileged user, that
    user can take the file away again, but not make this write to anything else.

    Raises:
        KernelError: the directory does not take the file, or `path` is a directory.
    """
    try:
        dir_fd, name = _open_parent(path)
    except OSError as error:
        raise KernelError("pidfile", error.errno or 0, path) from error
    try:
        _replace_beside(dir_fd, name, b"%d\n" % pid)
    except OSError as error:
        advice = "all temporary names beside it are taken" if error.errno == EEXIST else ""
        raise KernelError("pidfile", error.errno or 0, path, advice) from error
    finally:
        os.close(dir_fd)


def _replace_beside(dir_fd: int, name: str, data: bytes) -> None:
    """Replace a file by way of a temporary name that is free: others may have taken some."""
    for number in range(NAMES):
        temporary = f".{name[:50]}.{os.getpid()}.{number}"
        try:
            fd = os.open(temporary, WRITE, MODE, dir_fd=dir_fd)
        except FileExistsError:
            continue
        fill_and_rename(fd, data, (temporary, name), dir_fd, MODE)
        return
    raise FileExistsError(EEXIST, os.strerror(EEXIST), name)


def fill_and_rename(fd: int, data: bytes, names: tuple[str, str], dir_fd: int, mode: int) -> None:
    """Write all of a new file and give it its name; closes `fd`.

    Args:
        fd: the new file.
        data: all that it will hold.
        names: its temporary name and the one that it will have, in the directory `dir_fd`.
        dir_fd: stays the caller's.
        mode: of the file, whatever the umask.

    Raises:
        OSError: it did not work; the temporary file is gone, and `name` as it was.
    """
    temporary, name = names
    try:
        try:
            os.fchmod(fd, mode)
            done = 0
            while done < len(data):  # what does not fit fails at the next write
                done += os.write(fd, data[done:])
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        unlink_if_there(temporary, dir_fd)
        raise


def remove_pidfile(path: str, pid: int | None = None) -> None:
    """Remove `path`; with `pid` only if that is what it holds. Its absence is no error.

    Race: between the look at the file and its removal another program may put its own in place,
    and that goes then. There is no call that removes a name only while it means a given file. As
    both steps go through one descriptor of the directory, nothing in another directory can be hit.

    Raises:
        KernelError: it cannot be removed.
    """
    try:
        dir_fd, name = _open_parent(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError("unlink", error.errno or 0, path) from error
    try:
        if pid is None or _read_at(dir_fd, name).pid == pid:
            os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError("unlink", error.errno or 0, path) from error
    finally:
        os.close(dir_fd)


def unlink_if_there(name: str, dir_fd: int) -> None:
    """Remove a name of a directory; its absence is no error."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
