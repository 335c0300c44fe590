"""The user database: of the machine, by way of NSS, or in a jail, of the jail's own files.

In a jail NSS must not be asked: names are to mean the jail's users, and glibc could be made to load
a library from the jail into the master, which is root. So `use_files` reads the jail's passwd and
group as text, once, for the whole process.
"""

from __future__ import annotations

import os
import stat

from lowsuper.kernel import native
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwd import struct_passwd

_LARGEST = 1 << 22
_IN_ROOT = 0x10 | 0x02  # RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


class User(Record):
    """One user, with the names of the fields that the module pwd has."""

    pw_name: str
    pw_uid: int
    pw_gid: int
    pw_dir: str
    pw_shell: str = ""  # "": /bin/sh, see passwd(5)


class Files:
    """Users and groups as two texts have them."""

    def __init__(self, passwd: str, group: str) -> None:
        """Read passwd(5) and group(5); lines that are none are left out."""
        self.users: list[User] = []
        self.groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        for line in passwd.splitlines():
            fields = line.split(":")
            if len(fields) >= 6 and _is_number(fields[2]) and _is_number(fields[3]):
                ids = int(fields[2]), int(fields[3])
                shell = fields[6] if len(fields) > 6 else ""
                self.users.append(User(fields[0], *ids, fields[5], shell))
        for line in group.splitlines():
            fields = line.split(":")
            if len(fields) >= 4 and _is_number(fields[2]):
                members = tuple(name for name in fields[3].split(",") if name)
                self.groups.setdefault(fields[0], (int(fields[2]), members))

    def groups_of(self, name: str, gid: int) -> list[int]:
        """Return the groups of a user, `gid` first, as getgrouplist(3) does."""
        found = [number for number, members in self.groups.values() if name in members]
        return list(dict.fromkeys((gid, *found)))


_files: Files | None = None  # of the jail that this process is in


def use_files(files: Files | None) -> None:
    """Take these files for the user database from now on; None: what NSS says."""
    global _files  # noqa: PLW0603  # a process is in one jail, and never leaves it
    _files = files


def read_files(root: str) -> Files:
    """Return the users and groups of a root file system; without a file there are none.

    No link is followed out of it.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Files(_read(root_fd, "etc/passwd"), _read(root_fd, "etc/group"))
    finally:
        os.close(root_fd)


def _read(root_fd: int, path: str) -> str:
    """Return the text of a regular file below a root; "" if there is none, or a huge one."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = native.openat2(root_fd, path, flags, resolve=_IN_ROOT)
    except OSError:
        return ""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return ""
        pieces = []
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def find_user(name: str) -> User | None:
    """Return the user of a name, or None."""
    if _files is not None:
        return next((user for user in _files.users if user.pw_name == name), None)
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    return _copy(entry)


def find_user_by_number(uid: int) -> User | None:
    """Return a user with this number, or None."""
    if _files is not None:
        return next((user for user in _files.users if user.pw_uid == uid), None)
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except (KeyError, ValueError):
        return None
    return _copy(entry)


def _copy(entry: struct_passwd) -> User:
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell)


def find_group(name: str) -> int | None:
    """Return the number of the group of a name, or None."""
    if _files is not None:
        found = _files.groups.get(name)
        return None if found is None else found[0]
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def list_users() -> list[str]:
    """Return the names of all users."""
    if _files is not None:
        return [user.pw_name for user in _files.users]
    import pwd

    return [entry.pw_name for entry in pwd.getpwall()]


def list_groups() -> list[str]:
    """Return the names of all groups."""
    if _files is not None:
        return list(_files.groups)
    import grp

    return [entry.gr_name for entry in grp.getgrall()]


def list_groups_of(name: str, gid: int) -> list[int]:
    """Return the numbers of a user's groups, its primary one `gid` among them."""
    if _files is not None:
        return _files.groups_of(name, gid)
    return os.getgrouplist(name, gid)
