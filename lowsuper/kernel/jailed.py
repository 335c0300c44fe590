"""What `check` wants to know of the inside of a jail, looked at from outside.

A path of the jail is found below its root, links and all, or in what a keep-mount will show.
"""

from __future__ import annotations

import os
import stat

from lowsuper.kernel import accounts, facts, native
from lowsuper.plan import DEFAULT_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowsuper.model import Jail, Origin
    from lowsuper.plan import Identity

_IN_ROOT = 0x10 | 0x02  # RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


class JailFacts:
    """Facts of a jail that is not made; its root is a directory. See `kernel.facts.Facts`."""

    def __init__(self, environ: Mapping[str, str], jail: Jail) -> None:
        """Keep the environment whose PATH counts."""
        assert jail.root is not None
        self._path = environ.get("PATH", DEFAULT_PATH)
        self._jail, self._root = jail, jail.root
        self._master = facts.read_own_identity()

    def find_outside(self, path: str) -> str:
        """Return where a path of the jail is outside; what is not there is not there either."""
        path = os.path.normpath(os.path.join("/", path))
        kept = [keep for keep in self._jail.keeps if f"{path}/".startswith(f"{keep.target}/")]
        if kept:
            keep = max(kept, key=lambda each: len(each.target))
            return keep.source + path[len(keep.target) :]
        root_fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_PATH | os.O_CLOEXEC
            fd = native.openat2(root_fd, path.lstrip("/") or ".", flags, resolve=_IN_ROOT)
        except OSError:
            return f"{self._root}{path}/."  # a link that leads nowhere is nothing, too
        finally:
            os.close(root_fd)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def resolve_identity(
        self,
        user: str | None,
        group: str | None,
        origin: Origin,
        daemon: str = "",
        add_groups: Sequence[str] = (),
    ) -> Identity | None:
        """Return whom to become, by the jail's own files; or raise PlanError."""
        if any(self._jail_shows(path) for path in ("/etc/passwd", "/etc/group")):
            return None
        accounts.use_files(accounts.read_files(self._root))
        try:
            return facts.resolve_identity(user, group, origin, daemon, add_groups)
        finally:
            accounts.use_files(None)

    def _jail_shows(self, path: str) -> bool:
        return any(f"{path}/".startswith(f"{keep.target}/") for keep in self._jail.keeps)

    def is_directory(self, path: str) -> bool:
        """Tell whether a path is a directory."""
        return os.path.isdir(self.find_outside(path))

    def is_there(self, path: str) -> bool:
        """Tell whether there is anything at a path of the jail."""
        return os.path.exists(self.find_outside(path))

    def find_program(self, program: str, directory: str) -> str:
        """Return the path of a program in the jail, or ""."""
        if "/" in program:
            path = os.path.join(directory, program)
            return path if os.path.exists(self.find_outside(path)) else ""
        for place in self._path.split(":"):
            path = os.path.join(directory, place, program)
            if os.path.isfile(self.find_outside(path)):
                return path
        return ""

    def judge_program(self, path: str, identity: Identity | None, *, by_shell: bool) -> str:
        """Return why a program cannot be executed, or ""; scripts are not looked into."""
        del by_shell
        status = os.stat(self.find_outside(path))
        if stat.S_ISDIR(status.st_mode):
            return "is a directory"
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        who = identity or self._master
        return "" if facts.may_execute(status, who) else "is not executable"

    def is_program(self, path: str) -> bool:
        """Tell whether a path is a file that could be executed."""
        return facts.Facts({}).is_program(self.find_outside(path))

    def judge_pidfile(self, path: str) -> str:
        """Return why what is at a path would not be believed, or ""."""
        return facts.Facts({}).judge_pidfile(self.find_outside(path))

    def judge_writing(self, path: str, identity: Identity | None) -> str:
        """Return ""; nothing is said of it."""
        del path, identity
        return ""

    def find_state_directory(self, path: str | None, identity: Identity | None) -> str:
        """Return a path; nothing is said of it."""
        del identity
        return path or "/"

    def judge_state_directory(self, path: str, identity: Identity | None) -> str:
        """Return ""; nothing is said of it."""
        del path, identity
        return ""

    def judge_cgroup(self, path: str) -> str:
        """Return ""; that is entered outside."""
        del path
        return ""

    def judge_controller(self, controller: str) -> str:
        """Return ""; there are no cgroups in a jail."""
        del controller
        return ""

    def name_writers(self, directory: str, identity: Identity | None) -> str:
        """Return ""; nothing is said of it."""
        del directory, identity
        return ""
