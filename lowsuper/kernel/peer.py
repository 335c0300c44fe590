"""Who is at the other end of the control socket, and what it may ask.

Root, the user that the master is (or will be) and the one of `control-owner` may ask everything,
others what `control-allow` gives to them or to one of their groups. The kernel says who it was that
connected, and with which groups: see SO_PEERCRED and SO_PEERGROUPS in unix(7).
"""

from __future__ import annotations

import os
from struct import Struct

from lowsuper.errors import PlanError
from lowsuper.kernel.facts import find_group_number, find_user_number
from lowsuper.kernel.instance import read_peer
from lowsuper.model import Origin
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from lowsuper.model import MasterSpec
    from lowsuper.plan import Identity

SOL_SOCKET, SO_PEERGROUPS = 1, 59
MOST_BYTES = 1024  # all that getsockopt of Python takes
_GID = Struct("I")


class Peer(Record):
    """Who has connected."""

    pid: int  # 0: it is in another pid namespace
    uid: int
    verbs: frozenset[str] | None  # what it may ask; None: everything

    def permits(self, verb: str) -> bool:
        """Return whether it may ask this."""
        return self.verbs is None or verb in self.verbs


class Rights(Record):
    """Who may ask what."""

    owners: frozenset[int]  # users who may ask everything
    users: tuple[tuple[int, tuple[str, ...]], ...] = ()
    groups: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def verbs_of(self, uid: int, groups: frozenset[int]) -> frozenset[str] | None:
        """Return what a user with these groups may ask; None: everything."""
        if uid in self.owners:
            return None
        verbs: list[str] = []
        for number, allowed in self.users:
            verbs += allowed if number == uid else ()
        for number, allowed in self.groups:
            verbs += allowed if number in groups else ()
        return frozenset(verbs)


def resolve_rights(spec: MasterSpec, identity: Identity | None = None) -> Rights:
    """Return who may ask what.

    Args:
        spec: the configuration.
        identity: whom the master becomes; None: nobody else.

    Raises:
        PlanError: there is no user or group of a name.
    """
    owners = {0, os.geteuid()}
    if identity is not None:
        owners.add(identity.uid)
    if spec.control_owner is not None:
        owners.add(_resolve(spec, "control-owner", spec.control_owner[0]))
    users: list[tuple[int, tuple[str, ...]]] = []
    groups: list[tuple[int, tuple[str, ...]]] = []
    for rule in spec.control_allow:
        number = _resolve(spec, "control-allow", rule.who)
        (groups if rule.who.startswith("@") else users).append((number, rule.verbs))
    return Rights(frozenset(owners), tuple(users), tuple(groups))


def resolve_owner(spec: MasterSpec, identity: Identity | None) -> tuple[int, int]:
    """Return whose the socket file is; -1: as it is made.

    Raises:
        PlanError: there is no user or group of a name.
    """
    if spec.control_owner is None:
        return (-1, -1) if identity is None else (identity.uid, identity.gid)
    user, group = spec.control_owner
    uid = _resolve(spec, "control-owner", user)
    return uid, -1 if group is None else _resolve(spec, "control-owner", f"@{group}")


def _resolve(spec: MasterSpec, key: str, who: str) -> int:
    """Return the number of a user, or of a group given as `@group`."""
    try:
        return find_group_number(who[1:]) if who.startswith("@") else find_user_number(who)
    except PlanError as error:
        first = Origin(spec.files[0] if spec.files else "command line", 0, key, who)
        name = who.removeprefix("@")
        origin = next((o for o in spec.origins if o.key == key and name in o.value), first)
        raise PlanError(error.problem.replace(origin=origin)) from None


def identify(connected: socket, rights: Rights) -> Peer:
    """Return who has connected.

    Raises:
        OSError: it is gone.
    """
    pid, uid, gid = read_peer(connected)
    groups = {gid}
    if uid not in rights.owners:
        data = connected.getsockopt(SOL_SOCKET, SO_PEERGROUPS, MOST_BYTES)
        groups.update(each[0] for each in _GID.iter_unpack(data))
    return Peer(pid, uid, rights.verbs_of(uid, frozenset(groups)))
