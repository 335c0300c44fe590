"""Facts of the running system: users and groups, programs and what they are.

The user database is loaded only when a name, or a number's primary group, is asked for.
"""

from __future__ import annotations

import os
import stat

from lowsuper.errors import PlanError
from lowsuper.kernel import accounts
from lowsuper.model import Origin, Problem
from lowsuper.plan import DEFAULT_PATH, Identity
from lowsuper.units import nearest_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowsuper.kernel.accounts import User

_LARGEST_ID = (1 << 32) - 2
_HEAD_BYTES = 256
_ELF = b"\x7fELF"


class _UnknownError(Exception):
    """A user or group is not known; args are key, value, reason, advice."""


def read_own_identity() -> Identity:
    """Return whom this process runs as; the name and the home are left empty."""
    return Identity(os.geteuid(), os.getegid(), tuple(os.getgroups()))


def resolve_identity(
    user: str | None,
    group: str | None,
    origin: Origin,
    daemon: str = "",
    add_groups: Sequence[str] = (),
) -> Identity | None:
    """Return whom to become for a `uid` and a `gid`, by name or number.

    A user's name brings its primary group, its supplementary groups and its home; a number
    brings no supplementary groups, and its primary group only if the user database has it. A
    group given beside it takes the primary group's place; alone it keeps the master's user.

    Args:
        user: as configured, or None.
        group: as configured, or None.
        origin: for the problem: where it was written; its key and value are replaced.
        daemon: for the problem.
        add_groups: further supplementary groups.

    Returns:
        None when nothing is to change: nothing was asked for, or a master that is not root is
        that user already.

    Raises:
        PlanError: a name is not known, a number needs a group, or the master is not root.
    """
    if user is None and group is None and not add_groups:
        return None
    master = read_own_identity()
    try:
        identity = _look_up(user, group, master, add_groups)
    except _UnknownError as error:
        key, value, reason, advice = error.args
        place = origin.replace(key=key, value=value)
        raise PlanError(Problem(place, reason, daemon, advice)) from None
    if master.uid == 0:
        return identity
    if (identity.uid, identity.gid) == (master.uid, master.gid):
        return None
    key, value = ("uid", user) if user is not None else ("gid", group or "")
    reason = f"lowsuper runs with uid {master.uid} and cannot become another user"
    advice = f"start lowsuper as root, or leave {key} out"
    raise PlanError(Problem(origin.replace(key=key, value=value), reason, daemon, advice))


def _look_up(
    user: str | None, group: str | None, master: Identity, add_groups: Sequence[str]
) -> Identity:
    gid = None if group is None else find_group(group, "gid")
    further = tuple(find_group(name, "add-gid") for name in add_groups)
    if user is None:
        own = master.gid if gid is None else gid
        return Identity(master.uid, own, further)
    number = _parse_number(user, "uid")
    entry = _find_user(user, number, needs_entry=number is None or gid is None)
    if number is not None:
        return Identity(number, entry.pw_gid if gid is None and entry else gid or 0, further)
    assert entry is not None
    gid = entry.pw_gid if gid is None else gid
    groups = dict.fromkeys((*accounts.list_groups_of(user, gid), *further))
    return Identity(entry.pw_uid, gid, tuple(groups), user, entry.pw_dir)


def _parse_number(text: str, key: str) -> int | None:
    """Return the number that a user or group was given as, or None for a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > _LARGEST_ID:
        raise _UnknownError(key, text, f"is larger than {_LARGEST_ID}", "")
    return int(text)


def _find_user(user: str, number: int | None, *, needs_entry: bool) -> User | None:
    if not needs_entry:
        return None
    entry = accounts.find_user(user) if number is None else accounts.find_user_by_number(number)
    if entry is not None:
        return entry
    if number is not None:
        reason = "no user has this number, so its group is not known"
        raise _UnknownError("uid", user, reason, "give gid too")
    near = nearest_name(user, accounts.list_users())
    raise _UnknownError(
        "uid", user, "there is no user of that name", f"did you mean {near}?" if near else ""
    )


def find_group(group: str, key: str) -> int:
    """Return the number of a group given by name or number.

    Raises:
        _UnknownError: there is no group of that name.
    """
    number = _parse_number(group, key)
    if number is not None:
        return number
    found = accounts.find_group(group)
    if found is not None:
        return found
    near = nearest_name(group, accounts.list_groups())
    advice = f"did you mean {near}?" if near else ""
    raise _UnknownError(key, group, "there is no group of that name", advice)


def find_user_number(user: str) -> int:
    """Return the number of a user given by name or number.

    Raises:
        PlanError: there is no user of that name.
    """
    try:
        number = _parse_number(user, "uid")
        entry = _find_user(user, number, needs_entry=number is None)
    except _UnknownError as error:
        raise _name_unknown(error) from None
    return entry.pw_uid if entry is not None else number or 0


def find_group_number(group: str) -> int:
    """Return the number of a group given by name or number.

    Raises:
        PlanError: there is no group of that name.
    """
    try:
        return find_group(group, "gid")
    except _UnknownError as error:
        raise _name_unknown(error) from None


def _name_unknown(error: _UnknownError) -> PlanError:
    key, value, reason, advice = error.args
    return PlanError(Problem(Origin("", 0, key, value), f"{value}: {reason}", advice=advice))


# Programs.


class Facts:
    """What `check` wants to know of the running system."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Keep the environment whose PATH counts.

        Args:
            environ: the environment of daemons and hooks.
        """
        self._path = environ.get("PATH", DEFAULT_PATH)
        self.master = read_own_identity()

    def resolve_identity(
        self,
        user: str | None,
        group: str | None,
        origin: Origin,
        daemon: str = "",
        add_groups: Sequence[str] = (),
    ) -> Identity | None:
        """Return whom to become: see the function of that name."""
        return resolve_identity(user, group, origin, daemon, add_groups)

    def is_directory(self, path: str) -> bool:
        """Tell whether a path is a directory."""
        return os.path.isdir(path)

    def is_there(self, path: str) -> bool:
        """Tell whether there is anything at a path."""
        return os.path.exists(path)

    def find_program(self, program: str, directory: str) -> str:
        """Return the path of a program, or "" when there is none.

        Args:
            program: as written; without a slash it is looked for in PATH.
            directory: where relative paths start.
        """
        if "/" in program:
            path = os.path.join(directory, program)
            return path if os.path.exists(path) else ""
        found = ""
        for place in self._path.split(":"):
            path = os.path.join(directory, place, program)
            if os.path.isfile(path):
                if os.stat(path).st_mode & 0o111:
                    return path
                found = found or path
        return found

    def judge_program(self, path: str, identity: Identity | None, *, by_shell: bool) -> str:
        """Return why a program cannot be executed, as a phrase, or "".

        Args:
            path: an existing file.
            identity: whom it runs as; None for the master.
            by_shell: a shell executes it, which takes a file without #! for a script.
        """
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return "is a directory"
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        who = identity or self.master
        if not may_execute(status, who):
            return _name_denial(path, who)
        closed = _find_closed_directory(path, who)
        if closed:
            return f"user {who.name or who.uid} may not enter {closed}"
        return self._judge_head(path, by_shell=by_shell)

    def is_program(self, path: str) -> bool:
        """Tell whether a path is a file that could be executed, by its mode and its first bytes.

        A pidfile that happens to have an execute bit is none.
        """
        try:
            status = os.stat(path)
            if not (stat.S_ISREG(status.st_mode) and status.st_mode & 0o111):
                return False
            with open(path, "rb") as file:
                head = file.read(len(_ELF))
        except OSError:
            return False  # nothing there, or nothing that can be looked at
        return head.startswith((_ELF, b"#!"))

    def judge_pidfile(self, path: str) -> str:
        """Return why what is at a path would not be believed as a pidfile, as a phrase, or "".

        Nothing at all is fine. See `kernel.pidfile`, which reads them.
        """
        try:
            status = os.lstat(path)
        except OSError:
            return ""
        if stat.S_ISLNK(status.st_mode):
            return "is a symbolic link"
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        return "has another hard link" if status.st_nlink > 1 else ""

    def judge_writing(self, path: str, identity: Identity | None) -> str:
        """Return why someone cannot write to a file, or make files in a directory, or "".

        By the mode bits, which with an access control list are not the whole truth.

        Args:
            path: of a file or directory.
            identity: whom it is about; None for the master.
        """
        who = identity or self.master
        try:
            status = os.stat(path)
            closed = _find_closed_directory(path, who)
        except OSError as error:
            return os.strerror(error.errno or 0)
        if closed:
            return f"user {who.name or who.uid} may not enter {closed}"
        wanted = 3 if stat.S_ISDIR(status.st_mode) else 2
        if who.uid == 0 or _find_bits(status, who) & wanted == wanted:
            return ""
        return f"user {who.name or who.uid} may not write to {path}"

    def judge_cgroup(self, path: str) -> str:
        """Return why a cgroup cannot be at a path, or ""."""
        from lowsuper.kernel import controllers

        return controllers.explain_place(path)

    def judge_controller(self, controller: str) -> str:
        """Return why this machine has no such controller of cgroups, or ""."""
        from lowsuper.kernel import controllers

        return controllers.explain_absent(controller)

    def name_writers(self, directory: str, identity: Identity | None) -> str:
        """Return who can replace files of a directory, "uid 7 can write to", or "".

        Not meant are root, the master, and the one who is given, with the group: in a sticky
        directory of theirs everybody can make files, and replace none of somebody else.
        """
        who = identity or self.master
        try:
            status = os.stat(directory)
        except OSError:
            return ""
        if status.st_uid not in (0, self.master.uid, who.uid):
            return f"uid {status.st_uid} can write to"
        if status.st_mode & stat.S_ISVTX:
            return ""
        if status.st_mode & stat.S_IWOTH:
            return "everybody can write to"
        if status.st_mode & stat.S_IWGRP and status.st_gid not in (0, who.gid):
            return f"gid {status.st_gid} can write to"
        return ""

    def find_state_directory(self, path: str | None, identity: Identity | None) -> str:
        """Return where a master keeps the records of smart daemons.

        Args:
            path: as configured; None: nothing is.
            identity: what the master becomes; None: what it is.
        """
        from lowsuper.kernel.records import default_directory  # with all that it needs

        return path or default_directory((identity or self.master).uid)

    def judge_state_directory(self, path: str, identity: Identity | None) -> str:
        """Return why a master cannot keep its records in a directory, as a phrase, or "".

        See `kernel.records`, which makes what is missing.

        Args:
            path: absolute.
            identity: what the master becomes; None: what it is.
        """
        from lowsuper.kernel import trust

        above, who = os.path.dirname(path.rstrip("/")), identity or self.master
        while not os.path.lexists(above):
            above, path = os.path.dirname(above), above
        try:
            os.close(trust.open_trusted(above, sticky=True))
            if not os.path.lexists(path):
                denial = self.judge_writing(above, None)
                return denial and f"is not there, and {denial}"
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                return "is not a directory"
            if status.st_uid != who.uid and (status.st_uid != self.master.uid or os.listdir(path)):
                return f"belongs to uid {status.st_uid}"
        except trust.UntrustedError as error:
            # What another user trusts cannot be asked for; the master says it when it is that user.
            return f"is not safe: {error}" if who.uid == self.master.uid else ""
        except OSError as error:
            return os.strerror(error.errno or 0)
        return "can be written to by others" if status.st_mode & trust.OTHERS_WRITE else ""

    def _judge_head(self, path: str, *, by_shell: bool) -> str:
        """Return what is wrong with a file's first bytes, or ""."""
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError:
            return ""  # executable but not readable: nothing can be said
        if head.startswith(_ELF) or (by_shell and not head.startswith(b"#!")):
            return ""
        if not head.startswith(b"#!"):
            return "is neither a program nor a script with #! in its first line"
        return self._judge_interpreter(os.fsdecode(head[2:].split(b"\n")[0]))

    def _judge_interpreter(self, line: str) -> str:
        """Return what is wrong with what follows #!, or ""."""
        words = line.split()
        if line.endswith("\r"):
            return "its first line ends in a carriage return (DOS line ends)"
        if not words:
            return "names no interpreter after #!"
        if not os.access(words[0], os.X_OK) or os.path.isdir(words[0]):
            return f"its interpreter {words[0]} cannot be executed"
        is_env = os.path.basename(words[0]) == "env" and len(words) == 2 and words[1][0] != "-"
        if is_env and not self.find_program(words[1], "/"):
            return f"env will not find {words[1]}"
        return ""


def may_execute(status: os.stat_result, who: Identity) -> bool:
    """Tell whether the mode bits let someone execute a file or enter a directory."""
    if who.uid == 0:
        return bool(status.st_mode & 0o111) or stat.S_ISDIR(status.st_mode)
    return bool(_find_bits(status, who) & 1)


def _find_bits(status: os.stat_result, who: Identity) -> int:
    """Return the three mode bits that count for someone who is not root: rwx is 7."""
    if who.uid == status.st_uid:
        return status.st_mode >> 6 & 7
    if status.st_gid in (who.gid, *who.groups):
        return status.st_mode >> 3 & 7
    return status.st_mode & 7


def _name_denial(path: str, who: Identity) -> str:
    if not os.stat(path).st_mode & 0o111:
        return "is not executable"
    return f"user {who.name or who.uid} may not execute it"


def _find_closed_directory(path: str, who: Identity) -> str:
    """Return the first directory above a file that someone may not enter, or ""."""
    place = "/"
    for part in os.path.abspath(path).split("/")[1:-1]:
        place = os.path.join(place, part)
        if not may_execute(os.stat(place), who):
            return place
    return ""
