"""The controllers of cgroup v2: where they are, how leaves get them, and the limits in a leaf.

Loaded when a configuration sets a limit of a cgroup. A cgroup has the controllers that the one
above it enables for its children (`cgroup.subtree_control`), and, but for the root of the
hierarchy, one that does so must hold no process itself (the no-internal-process rule, see
cgroups(7)). So a master that wants limits leaves the cgroup that it was started in for a leaf of
its own, `master` beside `dumb` and `smart`. What else is in there is not moved, but for its own
children.

systemd lets nobody but itself touch the cgroups of a unit that is not delegated; one that is has an
extended attribute (`user.delegate`).
"""

from __future__ import annotations

import os
from errno import EBUSY, ENOENT, EOPNOTSUPP, EPERM

from lowsuper.errors import KernelError
from lowsuper.kernel.cgroup import (
    DIRECTORY,
    MASTER,
    PREFIX,
    find_mount,
    is_delegated,
    own_directory,
    read_at,
    read_text,
    remove_instance,
    unescape,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowsuper.kernel.cgroup import Tree
    from lowsuper.model import CgroupSetting, MasterSpec

SUBTREE = "cgroup.subtree_control"
MARK = "user.lowsuper"  # of a cgroup that was made for `cgroup`
SHOWN = 3  # processes that a message names
ROUNDS = 10  # of moving children that fork meanwhile

_SCOPE = "systemd-run --scope -p Delegate=yes lowsuper ..."
_DELEGATE = f"set Delegate=yes in the unit, or start it with {_SCOPE}"


def find_controllers(settings: Iterable[CgroupSetting]) -> set[str]:
    """Return the names of the controllers that settings need: `memory` for `memory.max`."""
    return {setting.file.partition(".")[0] for setting in settings} - {"cgroup"}


def write_settings(directory_fd: int, path: str, settings: Iterable[CgroupSetting]) -> None:
    """Write settings to the files of a cgroup; the last one of a file counts.

    Args:
        directory_fd: of the cgroup; stays the caller's.
        path: of the same, for messages.
        settings: what to write.

    Raises:
        KernelError: one of them cannot be set.
    """
    for file, value in {setting.file: setting.value for setting in settings}.items():
        try:
            _write(directory_fd, file, value)
        except OSError as error:
            subject = f"{file} = {value} in {path}"
            advice = _explain_file(directory_fd, path, file, error.errno or 0)
            raise KernelError("cgroup", error.errno or 0, subject, advice) from error


def _explain_file(directory_fd: int, path: str, file: str, errno: int) -> str:
    controller = file.partition(".")[0]
    if errno != ENOENT:
        return ""
    if controller != "cgroup" and controller not in _words(directory_fd, "cgroup.controllers"):
        return f"the controller {controller} is not enabled for {path}"
    return f"the controller {controller} of this kernel has no such file"


def limit(tree: Tree, directory_fd: int, path: str, settings: Sequence[CgroupSetting]) -> None:
    """Set the limits of a new leaf; controllers that it lacks are enabled first.

    Raises:
        KernelError: one of them cannot be set; the text says which, and the way out.
    """
    has = _words(directory_fd, "cgroup.controllers")
    for setting in settings:
        controllers = find_controllers((setting,))
        if controllers <= has:
            continue
        try:
            enable(tree, controllers)
        except KernelError as error:
            subject = f"{setting.file} = {setting.value} in {path}"
            why = f"{error.call} {error.subject}"
            advice = f"{why}: {error.advice}" if error.advice else why
            raise KernelError("cgroup", error.errno or 0, subject, advice) from error
    write_settings(directory_fd, path, settings)


def enable(tree: Tree, wanted: set[str]) -> None:
    """Let the leaves of an instance have controllers; the master may have to move for it.

    Raises:
        KernelError: they cannot be had; the text says why, and the way out.
    """
    if missing := wanted - _words(tree.base_fd, "cgroup.controllers"):
        _enable_above(tree, missing)
    for name, fd in (("", tree.base_fd), ("/dumb", tree.dumb_fd), ("/smart", tree.smart_fd)):
        _add(fd, f"{tree.path}{name}", wanted)


def _enable_above(tree: Tree, missing: set[str]) -> None:
    path = tree.path.rpartition("/")[0]
    available = _words(tree.parent_fd, "cgroup.controllers")
    for controller in sorted(missing - available):
        what = f"+{controller} to {path}/{SUBTREE}"
        raise KernelError("write", ENOENT, what, explain_missing(path, controller))
    is_root = not _has(tree.parent_fd, "cgroup.type")  # the root of the hierarchy has no type
    if not is_root and _is_systemd() and not _is_within_delegated(path):
        what = f"+{min(missing)} to {path}/{SUBTREE}"
        reason = f"{path} is systemd's own, which would undo it: {_DELEGATE}"
        raise KernelError("write", EPERM, what, reason)
    moves = not is_root and os.getpid() in _members(tree.parent_fd)
    if moves:
        _move_in(tree)
    try:
        _add(tree.parent_fd, path, missing)
    except KernelError as error:
        if moves:
            _move(tree.parent_fd, os.getpid())
        if error.errno != EBUSY:
            raise
        raise KernelError(
            error.call, EBUSY, error.subject, _explain_busy(tree.parent_fd, path)
        ) from error


def _add(directory_fd: int, path: str, wanted: set[str]) -> None:
    for controller in sorted(wanted - _words(directory_fd, SUBTREE)):
        try:
            _write(directory_fd, SUBTREE, f"+{controller}")
        except OSError as error:
            what = f"+{controller} to {path}/{SUBTREE}"
            raise KernelError("write", error.errno or 0, what) from error


def _move_in(tree: Tree) -> None:
    """Move the master, and its children where it was, into its own leaf."""
    try:
        os.mkdir(MASTER, 0o755, dir_fd=tree.base_fd)
    except FileExistsError:
        pass  # of an earlier master, or of this one
    except OSError as error:
        raise KernelError("mkdir", error.errno or 0, f"{tree.path}/{MASTER}") from error
    leaf_fd = os.open(MASTER, DIRECTORY, dir_fd=tree.base_fd)
    try:
        _move(leaf_fd, os.getpid())
        for _ in range(ROUNDS):
            pids = _members(tree.parent_fd)
            ours = [pid for pid in pids if _is_below(pid, os.getpid())]
            if not ours:
                return
            for pid in ours:
                _move(leaf_fd, pid)
    finally:
        os.close(leaf_fd)


def _move(directory_fd: int, pid: int) -> None:
    try:
        _write(directory_fd, "cgroup.procs", str(pid))
    except ProcessLookupError:
        return  # it has ended meanwhile
    except OSError as error:
        raise KernelError("write", error.errno or 0, f"{pid} to cgroup.procs") from error


def _members(directory_fd: int) -> list[int]:
    """Return the processes of a cgroup; those that we cannot see are 0."""
    return list(map(int, read_at(directory_fd, "cgroup.procs").split()))


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        stat = _read(f"/proc/{pid}/stat")
        pid = int(stat.rpartition(")")[2].split()[1]) if stat else 0
        if pid == ancestor:
            return True
    return False


def withdraw(tree: Tree) -> None:
    """Undo `enable`, and go back to where the master was, if nobody needs the controllers.

    A smart daemon that runs on keeps its limits, and so the controllers and the master's leaf stay.
    """
    if not _words(tree.base_fd, SUBTREE) or b"populated 1" in read_at(
        tree.smart_fd, "cgroup.events"
    ):
        return
    enabled = _words(tree.base_fd, SUBTREE)
    for fd in (tree.dumb_fd, tree.smart_fd, tree.base_fd):
        _take(fd, enabled)
    if not _is_inside(tree):
        return
    if _list_children(tree.parent_fd) == [tree.name]:
        _take(tree.parent_fd, enabled)
    try:
        _write(tree.parent_fd, "cgroup.procs", "0")
    except OSError as error:
        if error.errno != EBUSY:  # somebody else's children there have controllers
            raise KernelError("write", error.errno or 0, "0 to cgroup.procs") from error


def _is_inside(tree: Tree) -> bool:
    return own_directory() == f"{tree.path}/{MASTER}"


def _take(directory_fd: int, enabled: set[str]) -> None:
    for controller in enabled & _words(directory_fd, SUBTREE):
        try:
            _write(directory_fd, SUBTREE, f"-{controller}")
        except OSError as error:
            if error.errno != EBUSY:  # below it is in use
                raise KernelError(
                    "write", error.errno or 0, f"-{controller} to {SUBTREE}"
                ) from error


def _list_children(directory_fd: int) -> list[str]:
    return [entry.name for entry in os.scandir(directory_fd) if entry.is_dir(follow_symlinks=False)]


# Why not, in words.


def explain_missing(path: str, controller: str) -> str:
    """Return why a cgroup does not have a controller, and the way out.

    Args:
        path: its directory.
        controller: `memory`.
    """
    mount = find_mount(read_text("/proc/self/mountinfo"))
    root = mount[0].rstrip("/") if mount is not None else ""
    above = path
    while above.startswith(f"{root}/"):
        above = above.rpartition("/")[0]
        if controller in _read(f"{above}/cgroup.controllers").split():
            return _explain_not_passed(above, controller)
    return explain_absent(controller)


def _explain_not_passed(above: str, controller: str) -> str:
    file = f"{above}/{SUBTREE}"
    if _is_systemd():
        return f"{file} does not pass {controller} on: {_DELEGATE}"
    return f"{file} does not pass {controller} on: echo +{controller} > {file}"


def explain_absent(controller: str) -> str:
    """Return why the whole hierarchy does not have a controller; "" if it has."""
    mount = find_mount(read_text("/proc/self/mountinfo"))
    if mount is None:
        return "no cgroup v2 hierarchy is mounted: boot with systemd.unified_cgroup_hierarchy=1"
    point = mount[0].rstrip("/")
    if controller in _read(f"{point}/cgroup.controllers").split():
        return ""
    old = "blkio" if controller == "io" else controller
    for line in _read("/proc/cgroups").splitlines():
        name, hierarchy, _, on = (*line.split(), "", "", "", "")[:4]
        if name != old:
            continue
        if hierarchy != "0":
            return (
                f"the controller {controller} is in a version 1 hierarchy here, so not in {point}: "
                f"boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1={old}"
            )
        if on == "0":
            return f"the kernel was booted without {controller}: cgroup_enable={controller}"
    return f"there is no controller {controller} in {point}: this kernel, or container, lacks it"


def _explain_busy(directory_fd: int, path: str) -> str:
    """Return who is in the way of enabling controllers for the children of a cgroup."""
    others = [pid for pid in _members(directory_fd) if pid != os.getpid()]
    names = [f"{pid} ({_read(f'/proc/{pid}/comm').strip()})" for pid in others[:SHOWN]]
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    who = f"{', '.join(names)}{more}" if others else "other processes"
    return (
        f"{who} in {path} would be in the way: start lowsuper in a cgroup of its own, {_way_out()}"
    )


def _way_out() -> str:
    return f"with {_SCOPE}" if _is_systemd() else "or with cgroup = PATH"


def _is_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")


def _is_within_delegated(path: str) -> bool:
    while path.count("/") > 1:
        if is_delegated(path):
            return True
        path = path.rpartition("/")[0]
    return False


# The master's own cgroup: `cgroup` and `cgroup-opt`.


class Place:
    """The cgroup that `cgroup` names, with the master in it. `leave` at the end."""

    def __init__(self, spec: MasterSpec, instance: str) -> None:
        """Make it if need be, write its settings, and move this process there.

        Args:
            spec: with a `cgroup`.
            instance: of this master, for a leaf in it where it cannot hold processes.

        Raises:
            KernelError: that cannot be done; nothing was changed.
        """
        assert spec.cgroup is not None
        self.path, self._instance, self._settings = spec.cgroup, instance, spec.cgroup_settings
        if reason := explain_place(self.path):
            raise KernelError("cgroup", EOPNOTSUPP, self.path, reason)
        self._origin = own_directory()
        try:
            os.mkdir(self.path, 0o755 if spec.cgroup_mode is None else spec.cgroup_mode)
            _mark(self.path)
        except FileExistsError:
            pass  # somebody else's, another master's, or that of one that was killed
        except OSError as error:
            advice = "make the one above it first" if error.errno == ENOENT else ""
            raise KernelError("mkdir", error.errno or 0, self.path, advice) from error
        try:
            if spec.cgroup_mode is not None:
                os.chmod(self.path, spec.cgroup_mode)
            self._set(spec.cgroup_settings)
            self._enter()
        except OSError:
            self.leave()
            raise

    def renew(self, spec: MasterSpec) -> None:
        """Write the settings of a new configuration.

        Raises:
            KernelError: one cannot be set, or another cgroup is wanted.
        """
        if spec.cgroup != self.path:
            advice = "no reload moves the master to another cgroup: stop, and start again"
            raise KernelError("cgroup", EBUSY, spec.cgroup or self.path, advice)
        if spec.cgroup_settings != self._settings:
            self._set(spec.cgroup_settings)
            self._settings = spec.cgroup_settings

    def _set(self, settings: Sequence[CgroupSetting]) -> None:
        """Write settings to its files; controllers are enabled above it if need be."""
        if not settings:
            return
        directory_fd = os.open(self.path, DIRECTORY)
        above = self.path.rpartition("/")[0]
        above_fd = os.open(above, DIRECTORY)
        try:
            missing = find_controllers(settings) - _words(directory_fd, "cgroup.controllers")
            for controller in sorted(missing - _words(above_fd, "cgroup.controllers")):
                what = f"+{controller} to {above}/{SUBTREE}"
                raise KernelError("write", ENOENT, what, explain_missing(above, controller))
            try:
                _add(above_fd, above, missing)
            except KernelError as error:
                if error.errno != EBUSY:
                    raise
                advice = _explain_busy(above_fd, above)
                raise KernelError(error.call, EBUSY, error.subject, advice) from error
            write_settings(directory_fd, self.path, settings)
        finally:
            os.close(above_fd)
            os.close(directory_fd)

    def _enter(self) -> None:
        """Move this process there, into a leaf in it where its children have controllers."""
        try:
            _write_path(f"{self.path}/cgroup.procs", "0")
        except OSError as error:
            if error.errno != EBUSY:
                raise KernelError("write", error.errno or 0, f"{self.path}/cgroup.procs") from error
        else:
            return
        leaf = f"{self.path}/{PREFIX}{self._instance}/{MASTER}"
        try:
            os.makedirs(leaf, 0o755, exist_ok=True)
            _write_path(f"{leaf}/cgroup.procs", "0")
        except OSError as error:
            raise KernelError("write", error.errno or 0, f"{leaf}/cgroup.procs") from error

    def leave(self) -> None:
        """Go back to where this process was; what is empty and was made here goes.

        One that has become another user cannot, and leaves the directory behind.
        """
        try:
            _write_path(f"{self._origin}/cgroup.procs", "0")
            parent_fd = os.open(self.path, DIRECTORY)
        except OSError:
            return
        name = f"{PREFIX}{self._instance}"
        try:
            base_fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
            try:
                remove_instance(name, base_fd, parent_fd)
            finally:
                os.close(base_fd)
        except FileNotFoundError:
            pass  # it was never needed, or is removed
        finally:
            os.close(parent_fd)
        if _is_marked(self.path):
            try:
                os.rmdir(self.path)
            except OSError as error:
                if error.errno not in (EBUSY, ENOENT):  # others are in there, or smart daemons
                    raise KernelError("rmdir", error.errno or 0, self.path) from error


def _mark(path: str) -> None:
    """Note that a cgroup was made here: the last master that leaves it removes it."""
    try:
        os.setxattr(path, MARK, b"1")
    except OSError:
        return  # before Linux 5.7: it stays


def _is_marked(path: str) -> bool:
    try:
        return os.getxattr(path, MARK) == b"1"
    except OSError:
        return False


def explain_place(path: str) -> str:
    """Return why a cgroup cannot be at a path, and the way out; "" if it can."""
    found = kind = options = ""
    text = read_text("/proc/self/mountinfo")
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        point = unescape(left.split()[4]).rstrip("/")
        if path.startswith(f"{point}/") and len(point) >= len(found):
            found, (kind, _, options) = point, right.split(maxsplit=2)
    mount = find_mount(text)
    where = f"; version 2 is mounted on {mount[0]}" if mount is not None else ""
    if kind == "cgroup":
        names = options.partition("rw,")[2] or options
        return (
            f"that is the version 1 hierarchy of {names}, and lowsuper uses version 2 only{where}: "
            "boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=all"
        )
    return "" if kind == "cgroup2" else f"it is not in a cgroup hierarchy{where}"


# Files.


def _write(directory_fd: int, file: str, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _write_path(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _words(directory_fd: int, file: str) -> set[str]:
    return set(read_at(directory_fd, file).decode().split())


def _has(directory_fd: int, file: str) -> bool:
    try:
        os.stat(file, dir_fd=directory_fd)
    except FileNotFoundError:
        return False
    return True


def _read(path: str) -> str:
    """Return the text of a file, "" if there is none or no more."""
    try:
        return read_text(path)
    except OSError:
        return ""
