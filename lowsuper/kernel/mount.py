"""Namespaces and mounts: the calls that make a jail, thin and typed.

No policy, no state. Each raises KernelError with the name of the call.
See mount_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOSYS, EPERM

from lowsuper.errors import KernelError
from lowsuper.kernel.native import ffi, lib

NEWNS = 0x00020000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWCGROUP = 0x02000000
NEWPID = 0x20000000
NEWNET = 0x40000000

AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_FROM_FD = 0x04  # MOVE_MOUNT_F_EMPTY_PATH
_MOVE_TO_FD = 0x40  # MOVE_MOUNT_T_EMPTY_PATH
_MS_REC = 1 << 14
_PRIVATE = 1 << 18  # MS_PRIVATE
_SLAVE = 1 << 19  # MS_SLAVE
_MNT_DETACH = 2

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8

_SET_STRING, _SET_FD, _CREATE = 1, 5, 6  # FSCONFIG_*

_ADVICE = {
    ENOSYS: "a jail needs Linux 5.12, and a container that lets it pass; see lowsuper doctor",
    EPERM: "a jail needs CAP_SYS_ADMIN, which containers often lack; see lowsuper doctor",
}


def _succeed(result: int, call: str, subject: str = "") -> int:
    """Return the result, or raise for a negative errno."""
    if result < 0:
        raise KernelError(call, -result, subject, _ADVICE.get(-result, ""))
    return result


def unshare(flags: int) -> None:
    """Give this process namespaces of its own: NEW*; NEWPID is for its next child.

    See unshare(2).
    """
    _succeed(lib.lowsuper_unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter a namespace; its descriptor stays the caller's."""
    _succeed(lib.lowsuper_setns(fd, kind), "setns")


def set_parent_death_signal(signal: int) -> None:
    """Get `signal` when the parent dies, until the user id changes. See PR_SET_PDEATHSIG(2const).

    Race: the parent may have died before; look afterwards.
    """
    _succeed(lib.lowsuper_set_pdeathsig(signal), "prctl", "PR_SET_PDEATHSIG")


def make_private(path: str) -> None:
    """Let no mount at or below `path` spread to other namespaces, or come from them."""
    _set_propagation(path, _PRIVATE)


def make_slave(path: str) -> None:
    """Let no mount at or below `path` spread to other namespaces, but go on to take theirs."""
    _set_propagation(path, _SLAVE)


def _set_propagation(path: str, kind: int) -> None:
    # mount(2) rather than mount_setattr(2), which is not to be had everywhere, for the same.
    result = lib.lowsuper_mount(b"none", os.fsencode(path), b"", _MS_REC | kind, b"")
    _succeed(result, "mount", path)


def restrict(tree_fd: int, attributes: int, subject: str) -> None:
    """Set ATTR_* on every mount of a tree that is not attached yet.

    See mount_setattr(2); Linux 5.12.
    """
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    _succeed(
        lib.lowsuper_mount_setattr(tree_fd, b"", flags, attributes, 0), "mount_setattr", subject
    )


def clone_tree(path: str) -> int:
    """Return a copy of the mounts at and below `path`, attached nowhere; the caller closes it.

    Closing an unattached tree unmounts it. See open_tree(2); Linux 5.2.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    return _succeed(lib.lowsuper_open_tree(AT_FDCWD, os.fsencode(path), flags), "open_tree", path)


def attach(tree_fd: int, target_fd: int, subject: str) -> None:
    """Attach a tree at the directory or file of `target_fd` (O_PATH). Both stay the caller's.

    See move_mount(2); Linux 5.2.
    """
    flags = _MOVE_FROM_FD | _MOVE_TO_FD
    _succeed(lib.lowsuper_move_mount(tree_fd, b"", target_fd, b"", flags), "move_mount", subject)


def make_filesystem(
    kind: str,
    *,
    attributes: int = 0,
    texts: tuple[tuple[str, str], ...] = (),
    fds: tuple[tuple[str, int], ...] = (),
) -> int:
    """Return a new mount of a file system, attached nowhere; the caller closes it.

    Args:
        kind: its type, such as `proc`.
        attributes: ATTR_* of the mount.
        texts: its options.
        fds: its options that are descriptors.

    See fsopen(2), fsconfig(2), fsmount(2); Linux 5.2.
    """
    context = _succeed(lib.lowsuper_fsopen(kind.encode()), "fsopen", kind)
    null = ffi.NULL
    try:
        for key, text in texts:
            result = lib.lowsuper_fsconfig(context, _SET_STRING, key.encode(), os.fsencode(text), 0)
            _succeed(result, "fsconfig", f"{kind} {key}")
        for key, fd in fds:
            result = lib.lowsuper_fsconfig(context, _SET_FD, key.encode(), null, fd)
            _succeed(result, "fsconfig", f"{kind} {key}")
        _succeed(lib.lowsuper_fsconfig(context, _CREATE, null, null, 0), "fsconfig", kind)
        return _succeed(lib.lowsuper_fsmount(context, attributes), "fsmount", kind)
    finally:
        os.close(context)


def pivot_keeping(old_root: str) -> None:
    """Make the working directory, which must be a mount, the root, and leave the old one in it.

    Args:
        old_root: a directory, relative to the working directory.
    """
    _succeed(lib.lowsuper_pivot_root(b".", os.fsencode(old_root)), "pivot_root", old_root)
    os.chdir("/")


def _is_initramfs() -> bool:
    """Return whether the root directory is that of the kernel's own first mount."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split()[4] == "/" and " - rootfs " in line for line in file)


def _cover_root() -> None:
    """Move the mount that is the working directory over the root directory, and live in it."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    here_fd = os.open(".", flags)
    root_fd = os.open("/", flags)
    try:
        attach(here_fd, root_fd, "/")
        os.chroot(".")
        os.chdir("/")
    finally:
        os.close(root_fd)
        os.close(here_fd)


def pivot_here() -> None:
    """Make the working directory, which must be a mount, the root, and let go of the old one.

    See pivot_root(2), "pivot_root(".", ".")". An initramfs stays the first of all mounts: there it
    is covered, as switch_root(8) does, and a process with CAP_SYS_ADMIN could uncover it.
    """
    result = lib.lowsuper_pivot_root(b".", b".")
    if result == -EINVAL and _is_initramfs():
        _cover_root()
        return
    _succeed(result, "pivot_root")
    _succeed(lib.lowsuper_umount(b".", _MNT_DETACH), "umount2", "the old root")
    os.chdir("/")
