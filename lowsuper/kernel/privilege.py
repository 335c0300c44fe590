"""Users and groups of the master and its daemons, and how the master becomes another user."""

from __future__ import annotations

import os

from lowsuper.errors import KernelError, PlanError
from lowsuper.kernel.facts import resolve_identity
from lowsuper.model import Origin

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
        groups: tuple[str, ...] = ()
        if user is None and group is None and spec.master_as_root:
            user, group, groups = spec.user, spec.group, spec.add_groups
        identity = resolve_identity(user, group, daemon.origin, daemon.name, groups)
        if identity is not None:
            found[daemon.name] = identity
    return found


def resolve_master(spec: MasterSpec) -> Identity | None:
    """Return whom the master becomes after its as-root hooks, `add-gid` included; None: nobody.

    Raises:
        PlanError: a user or group does not exist, or the master is not root.
    """
    if spec.master_as_root:
        return None
    origin = Origin(spec.files[0] if spec.files else "command line", 0, "uid", spec.user or "")
    try:
        return resolve_identity(spec.user, spec.group, origin, add_groups=spec.add_groups)
    except PlanError as error:
        problem = error.problem
        wanted = problem.origin.key, problem.origin.value
        for place in spec.origins:
            if (place.key, place.value) == wanted:
                raise PlanError(problem.replace(origin=place)) from None
        raise


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
