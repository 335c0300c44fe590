"""From the host into a jail: namespaces, mounts, a new root. And what has to go when it is dead.

`enter` runs in the process that is to be the jail's first. Nothing that it does is seen outside,
but for mount points that were missing: those it makes in the jail's root, reports, and
`remove_places` removes them once the jail is dead. Not earlier: the removal of a mount point that
another namespace uses succeeds, and unmounts it there. So that this does not happen to another jail
of the same root, each jail has a shared flock(2) on its mount points while it lives, and who
removes one needs an exclusive one.

Rule: propagation becomes private before anything else; a tree that was cloned before that would
stay shared, and what is attached to it would come to the host. The trees to keep are attached after
the pivot, so that a link in the jail cannot lead a mount out of it. On the way to a mount point
only links of root are followed: any other user could lead a mount over /etc.
"""

from __future__ import annotations

import fcntl
import os
import stat
from errno import EACCES, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, EROFS

from lowsuper.errors import KernelError
from lowsuper.kernel import mount, native
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lowsuper.model import Jail, Keep

_PLACE = os.O_PATH | os.O_CLOEXEC
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS = 40  # as in path_resolution(7)
_STRICT = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
_PROC = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC


class Place(Record):
    """A mount point, or a directory above one, that was made in a jail's root."""

    path: str  # in the jail, absolute, without links
    device: int
    inode: int
    is_directory: bool


def enter(jail: Jail, tell: Callable[[Place], None], hold: Callable[[int], None]) -> None:
    """Move this process, which must be single-threaded, into a jail with namespaces for good.

    The other ways into a jail are in `kernel.ways`.

    The descriptors that it has stay open: each is a door to the host, for the caller to close.

    Args:
        jail: what to make.
        tell: called for each mount point right after it was made.
        hold: called with a descriptor of each mount point, which it must not close; a duplicate is
            to be kept open while the jail lives.

    Raises:
        KernelError: a step failed; this process is of no use any more.
    """
    assert jail.root is not None
    network = mount.NEWNET if jail.net else 0
    cgroup = mount.NEWCGROUP if "cgroup" in jail.namespaces else 0
    mount.unshare(mount.NEWNS | mount.NEWUTS | mount.NEWIPC | network | cgroup)
    mount.make_private("/")
    if jail.hostname is not None:
        _set_hostname(jail.hostname)
    trees: list[tuple[Keep, int]] = []
    try:
        for keep in jail.keeps:
            tree_fd = _clone_kept(keep)
            if tree_fd >= 0:
                trees.append((keep, tree_fd))
        _change_root(jail.root, jail.overlay)
        _attach_all(jail, trees, tell, hold)
    finally:
        for _, tree_fd in trees:
            os.close(tree_fd)


def _set_hostname(name: str) -> None:
    from _socket import sethostname

    try:
        sethostname(name)
    except OSError as error:
        raise KernelError("sethostname", error.errno or 0, name) from None


def _clone_kept(keep: Keep) -> int:
    """Return the tree to keep, which the caller closes; -1: there is none, and need not be."""
    try:
        tree_fd = mount.clone_tree(keep.source)
    except KernelError as error:
        if error.errno != ENOENT:
            raise
        if keep.optional:
            return -1
        advice = f"make it, or write optional:{keep.source} in namespace-keep-mount"
        raise KernelError(error.call, ENOENT, keep.source, advice) from None
    if keep.read_only:
        try:
            mount.restrict(tree_fd, mount.ATTR_RDONLY, keep.source)
        except KernelError:
            os.close(tree_fd)
            raise
    return tree_fd


def _change_root(path: str, overlay: bool) -> None:
    tree_fd = _make_overlay(path) if overlay else mount.clone_tree(path)
    try:
        place_fd = open_place(path)
        try:
            mount.attach(tree_fd, place_fd, path)
        finally:
            os.close(place_fd)
        os.fchdir(tree_fd)  # by its path it could be another one by now
        mount.pivot_here()
    finally:
        os.close(tree_fd)


def open_place(path: str) -> int:
    """Return a directory, O_PATH, which the caller closes."""
    try:
        return os.open(path, _DIRECTORY)
    except OSError as error:
        raise KernelError("open", error.errno or 0, path) from None


def _make_overlay(root: str) -> int:
    """Return a mount of the root on which what is written stays in memory; the caller closes it.

    File systems that are mounted below the root are not seen in it.
    """
    fds = [mount.make_filesystem("tmpfs", texts=(("mode", "0755"),))]
    try:
        for name in ("upper", "work"):
            os.mkdir(name, dir_fd=fds[0])
            fds.append(os.open(name, _DIRECTORY, dir_fd=fds[0]))
        fds.append(open_place(root))
        status = os.fstat(fds[3])
        os.chmod(f"/proc/self/fd/{fds[1]}", stat.S_IMODE(status.st_mode))
        os.chown(f"/proc/self/fd/{fds[1]}", status.st_uid, status.st_gid)
        layers = (("lowerdir+", fds[3]), ("upperdir", fds[1]), ("workdir", fds[2]))
        try:
            return mount.make_filesystem("overlay", fds=layers)
        except KernelError as error:
            if error.call != "fsconfig" or error.errno != EINVAL:
                raise
        # Linux before 6.13 takes paths only.
        keys = ("lowerdir", "upperdir", "workdir")
        numbers = (fds[3], fds[1], fds[2])
        texts = tuple((key, f"/proc/self/fd/{fd}") for key, fd in zip(keys, numbers, strict=True))
        return mount.make_filesystem("overlay", texts=texts)
    finally:
        for fd in fds:
            os.close(fd)


def _attach_all(
    jail: Jail,
    trees: list[tuple[Keep, int]],
    tell: Callable[[Place], None],
    hold: Callable[[int], None],
) -> None:
    """Mount /proc, then attach what is kept, in the new root."""
    points = _Points(_nobody, _nobody) if jail.overlay else _Points(tell, hold)
    proc_fd = make_proc()
    try:
        points.attach(proc_fd, "/proc")
    finally:
        os.close(proc_fd)
    points.own = read_mount_ids()
    for keep, tree_fd in trees:
        points.attach(tree_fd, keep.target)


def make_proc() -> int:
    """Return a fresh proc of our pid namespace, attached nowhere; the caller closes it."""
    return mount.make_filesystem("proc", attributes=_PROC)


def attach_proc(proc_fd: int, tell: Callable[[Place], None], hold: Callable[[int], None]) -> None:
    """Attach a tree at /proc, whose directory is made, and told, where it is missing."""
    _Points(tell, hold).attach(proc_fd, "/proc")


def _nobody(_place: object) -> None:
    """Nobody need know what was made in memory: it goes with the jail."""


def read_mount_ids() -> frozenset[int]:
    """Return the ids of all mounts of this namespace. See proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", "rb") as file:
        return frozenset(int(line.split(b" ", 1)[0]) for line in file)


def read_mount_id(fd: int) -> int:
    """Return the id of the mount that a descriptor is on. See proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    raise KernelError("fdinfo", EINVAL, str(fd))


class _Points:
    """Finds mount points in the new root, and makes those that are missing."""

    def __init__(self, made: Callable[[Place], None], hold: Callable[[int], None]) -> None:
        """Begin; `own`, once it is set, are the mounts on which something may be made."""
        self._made, self._hold = made, hold
        self.own: frozenset[int] | None = None

    def attach(self, tree_fd: int, path: str) -> None:
        """Attach a tree at a path, absolute and without `..`.

        Raises:
            KernelError: it is no directory, or one where none is wanted, or cannot be made.
        """
        is_directory = stat.S_ISDIR(os.fstat(tree_fd).st_mode)
        target_fd = self._find(path, is_directory)
        try:
            # Race: another jail of this root has ended, and its mount points are removed.
            while not self._lock(target_fd, is_directory):
                os.close(target_fd)
                target_fd = -1
                target_fd = self._find(path, is_directory)
            mount.attach(tree_fd, target_fd, path)
        finally:
            if target_fd >= 0:
                os.close(target_fd)

    def _lock(self, place_fd: int, is_directory: bool) -> bool:
        """Keep others from removing a mount point; return False if it is removed already."""
        lock_fd = _open_lock(place_fd, is_directory)
        if lock_fd >= 0:
            try:
                self._hold(lock_fd)
            finally:
                os.close(lock_fd)
        return os.fstat(place_fd).st_nlink > 0

    def _find(self, path: str, is_directory: bool) -> int:
        """Return a mount point, O_PATH, which the caller closes; made if it is missing."""
        fd = os.open("/", _DIRECTORY)
        names = _split(path)
        links = 0
        left = len(names)  # of the path itself; what is before that comes from a link
        try:
            while names:
                as_directory = is_directory or len(names) > 1
                is_linked = len(names) > left
                name = names.pop(0)
                left = min(left, len(names))
                following = self._step_down(fd, name, path, as_directory, is_linked)
                if stat.S_ISLNK(os.fstat(following).st_mode):
                    links += 1
                    target = _read_link(following, path, links)
                    names[:0] = _split(target)
                    if not target.startswith("/"):
                        os.close(following)
                        continue
                    os.close(following)
                    following = os.open("/", _DIRECTORY)
                os.close(fd)
                fd = following
            _check_kind(fd, path, is_directory)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _step_down(
        self, parent_fd: int, name: str, path: str, as_directory: bool, is_linked: bool
    ) -> int:
        """Return what has a name, O_PATH, links themselves; made if it is missing."""
        flags = _PLACE | os.O_NOFOLLOW
        try:
            return os.open(name, flags, dir_fd=parent_fd)
        except FileNotFoundError:
            if is_linked:
                advice = "there is a link that leads nowhere"
                raise KernelError("open", ELOOP, path, advice) from None
        except OSError as error:
            raise KernelError("open", error.errno or 0, path) from None
        if self.own is not None and read_mount_id(parent_fd) not in self.own:
            advice = "it is in what another namespace-keep-mount shows, where nothing is made"
            raise KernelError("mkdir", ENOENT, path, advice)
        if not _make_entry(parent_fd, name, path, as_directory):
            return os.open(name, flags, dir_fd=parent_fd)  # another jail's: not ours to remove
        fd = os.open(name, flags, dir_fd=parent_fd)
        status = os.fstat(fd)
        self._made(Place(_path_of(fd, path), status.st_dev, status.st_ino, as_directory))
        return fd


def _split(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _read_link(fd: int, path: str, count: int) -> str:
    """Return where a link on the way to `path` leads, if it is one that we follow."""
    if count > _MOST_LINKS:
        raise KernelError("open", ELOOP, path)
    owner = os.fstat(fd).st_uid
    target = os.readlink("", dir_fd=fd)
    if owner not in (0, os.geteuid()):
        advice = f"there is a link to {target} that belongs to user {owner}, and not to root"
        raise KernelError("open", EACCES, path, advice)
    return target


def _check_kind(fd: int, path: str, is_directory: bool) -> None:
    if stat.S_ISDIR(os.fstat(fd).st_mode) != is_directory:
        wanted = "a directory" if is_directory else "not a directory"
        advice = f"what is mounted on it is {wanted}, so this must be, too"
        errno = ENOTDIR if is_directory else EISDIR
        raise KernelError("namespace-keep-mount", errno, path, advice)


def _open_lock(place_fd: int, is_directory: bool) -> int:
    """Return a descriptor with a shared lock of a mount point, which the caller closes; -1: none.

    A mount point that is neither a directory nor an empty file was not made by a jail.
    """
    status = os.fstat(place_fd)
    fd = -1
    try:
        if is_directory:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place_fd)
        elif stat.S_ISREG(status.st_mode) and not status.st_size:
            fd = os.open(f"/proc/self/fd/{place_fd}", os.O_RDONLY | os.O_CLOEXEC)
        else:
            return -1
        # Not for long: who removes one has it.
        fcntl.flock(fd, fcntl.LOCK_SH)
    except OSError:
        # Of file systems without locks, such as some network's.
        if fd >= 0:
            os.close(fd)
        return -1
    return fd


def _make_entry(parent_fd: int, name: str, path: str, as_directory: bool) -> bool:
    """Make a mount point; return False if there is something of that name by now."""
    call = "mkdir" if as_directory else "open"
    try:
        if as_directory:
            os.mkdir(name, dir_fd=parent_fd)
            os.chmod(name, 0o755, dir_fd=parent_fd)  # noqa: S103  # whatever the umask
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o600, dir_fd=parent_fd))
    except FileExistsError:
        return False
    except OSError as error:
        advice = ""
        if error.errno == EROFS:
            advice = "the root is read-only: make it there, or set namespace-overlay = true"
        raise KernelError(call, error.errno or 0, path, advice) from None
    return True


def _path_of(fd: int, path: str) -> str:
    """Return the path of a descriptor without links; without /proc, `path`, made before it."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return path


def remove_places(root: str, places: Iterable[Place]) -> list[str]:
    """Remove mount points that a jail, dead by now, has made in its root; return what is wrong.

    Only what is still the very same and empty is removed; links, which the jail may have put in
    place of a directory, are not followed.
    """
    problems = []
    for place in reversed(list(places)):
        try:
            _remove_place(root, place)
        except OSError as error:
            why = error.strerror
            if isinstance(error, BlockingIOError):
                why = "another jail uses it"
            problems.append(f"{root}{place.path} is left behind: {why}")
    return problems


def _remove_place(root: str, place: Place) -> None:
    parent, _, name = place.path.rpartition("/")
    root_fd = os.open(root, _DIRECTORY)
    try:
        fd = native.openat2(root_fd, parent.strip("/") or ".", _DIRECTORY, resolve=_STRICT)
    finally:
        os.close(root_fd)
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if (status.st_dev, status.st_ino) != (place.device, place.inode):
            return
        if not place.is_directory and (not stat.S_ISREG(status.st_mode) or status.st_size):
            return
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock_fd = os.open(name, flags, dir_fd=fd)
        try:
            _take_alone(lock_fd)
            if place.is_directory:
                os.rmdir(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)
        finally:
            os.close(lock_fd)
    except FileNotFoundError:
        pass
    finally:
        os.close(fd)


def _take_alone(fd: int) -> None:
    """Lock a mount point that no jail uses; raises BlockingIOError if one does."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # of a file system without locks
