"""The ways into a jail other than `namespace`: chroot, pivot-root, unshare, and what is joined.

The order is uWSGI's: what is joined, then `unshare`, then its post-jail hooks, then the root. But
whatever is mounted here is seen here only: a jail with a root of its own has mounts of its own, and
so has one with a pid namespace, since it needs a /proc that shows it.

What a jail has of its own it does not join.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT

from lowsuper.errors import KernelError
from lowsuper.kernel import mount, root
from lowsuper.model import CHROOT, PIVOT
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowsuper.kernel.root import Place
    from lowsuper.model import Jail

KINDS = {
    "mount": mount.NEWNS,
    "uts": mount.NEWUTS,
    "ipc": mount.NEWIPC,
    "pid": mount.NEWPID,
    "net": mount.NEWNET,
    "cgroup": mount.NEWCGROUP,
}
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Joined(Record):
    """A namespace to join."""

    kind: int  # NEW*
    fd: int


def find_own(jail: Jail) -> int:
    """Return the kinds of namespaces that a jail has of its own, as NEW* flags."""
    own = mount.NEWNET if jail.net else 0
    for name in jail.namespaces:
        own |= KINDS[name]
    if jail.root is not None or own & mount.NEWPID:
        own |= mount.NEWNS
    return own


def leave_out(joined: Sequence[Joined], own: int) -> list[Joined]:
    """Return what is to be joined, without the kinds `own`, whose descriptors are closed."""
    for each in joined:
        if each.kind & own:
            os.close(each.fd)
    return [each for each in joined if not each.kind & own]


def join(joined: Sequence[Joined]) -> None:
    """Join namespaces, and close their descriptors.

    That of processes, which is for children only, was joined by our parent. The one of mounts comes
    last: its root is our root and directory then.
    """
    for each in sorted(joined, key=lambda each: each.kind == mount.NEWNS):
        if each.kind != mount.NEWPID:
            mount.setns(each.fd, each.kind)
        os.close(each.fd)


def enter(
    jail: Jail,
    tell: Callable[[Place], None],
    hold: Callable[[int], None],
    between: Callable[[], None],
) -> None:
    """Move this process, which must be single-threaded, into a jail that is not `namespace`'s.

    It is in the right pid namespace already, and has joined what is to be joined.

    Args:
        jail: what to make.
        tell: called for each mount point right after it was made.
        hold: called with a descriptor of each mount point: see `root.enter`.
        between: called when the namespaces are made, before the root is changed.

    Raises:
        KernelError: a step failed; this process is of no use any more.
    """
    own = find_own(jail)
    mount.unshare(own & ~mount.NEWPID)
    if own & mount.NEWNS:
        if jail.way == PIVOT:
            mount.make_private("/")  # as in uWSGI; pivot_root wants it
        else:
            mount.make_slave("/")
    if jail.root is None:
        _show_own_processes(jail, tell, hold)
        between()
        return
    between()
    proc_fd = _find_proc(own)
    try:
        if jail.way == CHROOT:
            _change_root(jail.root)
        else:
            _pivot(jail.root, jail.old_root)
        root.attach_proc(proc_fd, tell, hold)
    finally:
        os.close(proc_fd)


def _find_proc(own: int) -> int:
    """Return a tree for /proc, which the caller closes: a fresh one for a new pid namespace.

    That of the host keeps what its owner has chosen, such as hidepid.
    """
    if own & mount.NEWPID:
        return root.make_proc()
    return mount.clone_tree("/proc")


def _show_own_processes(
    jail: Jail, tell: Callable[[Place], None], hold: Callable[[int], None]
) -> None:
    """Mount a /proc where the one that is there shows another pid namespace."""
    is_alien = not _sees_itself()
    if "pid" not in jail.namespaces and not is_alien:
        return
    if is_alien and not find_own(jail) & mount.NEWNS:
        mount.unshare(mount.NEWNS)
        mount.make_slave("/")
    proc_fd = root.make_proc()
    try:
        root.attach_proc(proc_fd, tell, hold)
    finally:
        os.close(proc_fd)


def _sees_itself() -> bool:
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False  # there is no process of our number in the namespace that it shows


def _change_root(path: str) -> None:
    """See chroot(2)."""
    try:
        os.chroot(path)
    except OSError as error:
        raise KernelError("chroot", error.errno or 0, path) from None
    os.chdir("/")


def _pivot(path: str, old_root: str | None) -> None:
    """Make a directory, which need not be a mount, the root; the old one goes to `old_root`."""
    tree_fd = mount.clone_tree(path)
    try:
        place_fd = root.open_place(path)
        try:
            mount.attach(tree_fd, place_fd, path)
        finally:
            os.close(place_fd)
        os.fchdir(tree_fd)  # by its path it could be another one by now
    finally:
        os.close(tree_fd)
    if old_root is None:
        mount.pivot_here()
        return
    try:
        mount.pivot_keeping(old_root.lstrip("/"))
    except KernelError as error:
        advice = error.advice
        if error.errno == ENOENT:
            advice = f"make the directory {path}{old_root}, or leave it out of pivot-root"
        elif error.errno == EINVAL:
            advice = f"{path}{old_root} must be a directory below {path}"
        raise KernelError(error.call, error.errno or 0, f"{path}{old_root}", advice) from None
