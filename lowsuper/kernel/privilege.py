"""Users and groups of the master and its daemons, and how the master becomes another user."""

from __future__ import annotations

import os

from lowsuper.errors import KernelError, PlanError
from lowsuper.kernel.facts import resolve_identity
from lowsuper.model import Origin, Problem

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
    if spec.caps:
        require_known(spec)
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


def require_known(spec: MasterSpec) -> None:
    """See that there are the capabilities that the master is to keep.

    Raises:
        PlanError: the kernel lacks one, or we do.
    """
    from lowsuper.kernel.caps import find_unknown

    missing = find_unknown(spec.caps or ())
    if missing:
        raise PlanError(describe_unknown(spec, missing))


def describe_unknown(spec: MasterSpec, missing: list[str]) -> Problem:
    """Return what is wrong with `cap`, given the names of what there is not."""
    known = (each for each in reversed(spec.origins) if each.key == "cap")
    origin = next(known, Origin("command line", 0, "cap", ""))
    reason = f"this kernel, or this container, does not have {', '.join(missing)}"
    return Problem(origin, reason, advice="leave it out")


def become(identity: Identity | None, caps: tuple[int, ...] | None = None) -> None:
    """Become another user for good, and keep some capabilities; see that it took.

    Args:
        identity: whom to become, in all three ids; None: nobody else.
        caps: the only capabilities from then on; None: those of the user.

    Raises:
        KernelError: the kernel refused, or did something else than it was asked.
    """
    if caps is not None:
        from lowsuper.kernel.caps import finish, prepare

        prepare(caps)
    if identity is not None:
        _change_ids(identity)
    if caps is not None:
        finish(caps)


def _change_ids(identity: Identity) -> None:
    """Groups first, while that is still allowed; the user id last. See credentials(7)."""
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
