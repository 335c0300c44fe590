"""Users and groups of the master and its daemons, and how the master becomes another user."""

from __future__ import annotations

import os

from lowsuper.errors import KernelError
from lowsuper.kernel.facts import resolve_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import MasterSpec
    from lowsuper.plan import Identity


def resolve(spec: MasterSpec) -> dict[str, Identity]:
    """Return whom each daemon becomes; those that stay what the master is are left out.

    Raises:
        PlanError: a user or group does not exist, or only root could become it.
    """
    found = {}
    for daemon in spec.daemons:
        user, group = daemon.user, daemon.group
        if user is None and group is None and spec.master_as_root:
            user, group = spec.user, spec.group
        if user is not None or group is not None:
            found[daemon.name] = resolve_identity(user, group, daemon.origin, daemon.name)
    return found


def resolve_master(spec: MasterSpec) -> Identity:
    """Return whom the master becomes after its as-root hooks, `add-gid` included.

    Raises:
        PlanError: a user or group does not exist.
    """
    raise AssertionError(spec)


def become(identity: Identity) -> None:
    """Become another user for good, in all three ids, and see that it took.

    Groups first, while that is still allowed; the user id last. See credentials(7).

    Raises:
        KernelError: the kernel refused, or did something else than it was asked.
    """
    try:
        os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as error:
        raise KernelError("setresuid", error.errno or 0, str(identity.uid)) from error
    taken = os.getresuid(), os.getresgid(), set(os.getgroups())
    wanted = (identity.uid,) * 3, (identity.gid,) * 3, set(identity.groups)
    if taken != wanted:
        raise AssertionError(f"asked to become {wanted}, became {taken}")
