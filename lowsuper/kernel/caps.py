"""Which capabilities the master keeps, when it becomes another user or stays root.

They are the permitted, effective, inheritable and ambient ones from then on, and the only ones in
the bounding set: what the master executes has them, too, whoever it is, and nothing ever gets
another one, neither as root nor by a set-user-ID program. See capabilities(7).
"""

from __future__ import annotations

import os
from errno import EPERM

import prctl  # the only one to import it for that: see `kernel.world`, which loads us when asked to

from lowsuper.errors import KernelError
from lowsuper.kernel.native import lib
from lowsuper.units import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_MOST = 64  # as many as a set has room for
_SETS = (b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb")
_FLAGS = (prctl.CAP_PERMITTED, prctl.CAP_EFFECTIVE, prctl.CAP_INHERITABLE)
_ADVICE = "to choose capabilities, lowsuper has to be started as root, and to have them"


def list_known() -> list[int]:
    """Return the capabilities that this kernel has. See PR_CAPBSET_READ(2const)."""
    known = []
    for cap in range(_MOST):
        try:
            prctl.capbset_read(cap)
        except (OSError, ValueError):
            break  # the kernel does not know it, or python-prctl does not
        known.append(cap)
    return known


def prepare(caps: Collection[int]) -> None:
    """Bound what this process can ever have, and keep it over a change of the user that follows.

    Raises:
        KernelError: the kernel refused.
    """
    cap = -1
    try:
        for cap in list_known():
            if cap not in caps and prctl.capbset_read(cap):
                prctl.capbset_drop(cap)
        prctl.set_keepcaps(bool(caps))
    except OSError as error:
        name = f"PR_CAPBSET_DROP {format_capability(cap)}"
        raise KernelError("prctl", error.errno or 0, name, _ADVICE) from None


def finish(caps: Collection[int]) -> None:
    """Keep these capabilities and no others, after a change of the user, and see that it took.

    Raises:
        KernelError: the kernel refused.
    """
    names = " ".join(map(format_capability, sorted(caps)))
    others = [cap for cap in list_known() if cap not in caps]
    # What is permitted must go last, and come first.
    changes = [(others, flag, False) for flag in reversed(_FLAGS) if others]
    changes += [(list(caps), flag, True) for flag in _FLAGS if caps]
    try:
        prctl.set_caps(*changes)
        prctl.set_keepcaps(False)
    except OSError as error:
        raise KernelError("capset", error.errno or 0, names, _ADVICE) from None
    for cap in caps:
        result = lib.lowsuper_raise_ambient(cap)
        if result < 0:
            raise KernelError("prctl", -result, f"PR_CAP_AMBIENT {format_capability(cap)}", _ADVICE)
    wanted = sum(1 << cap for cap in caps)
    for name, found in read_sets().items():
        if found != wanted:
            advice = f"asked for {wanted:x}, got {found:x}: is python-prctl older than the kernel?"
            raise KernelError("capset", EPERM, name, advice)


def read_sets() -> dict[str, int]:
    """Return the five sets of this process. See proc_pid_status(5); CapAmb: Linux 4.3."""
    with open("/proc/self/status", "rb") as file:
        pairs = [line.split(b":", 1) for line in file]
    return {name.decode(): int(text, 16) for name, text in pairs if name in _SETS}


def format_capability(cap: int) -> str:
    """Return the name of a capability, or its number where we know none."""
    return CAPABILITIES[cap] if 0 <= cap < len(CAPABILITIES) else str(cap)


def find_unknown(caps: Collection[int]) -> list[str]:
    """Return the names of those that this kernel lacks, or that we do not have ourselves."""
    known = list_known()
    missing = [cap for cap in sorted(caps) if cap not in known]
    if os.geteuid() == 0:
        permitted = read_sets()["CapPrm"]
        missing += [cap for cap in sorted(caps) if cap in known and not permitted >> cap & 1]
    return [format_capability(cap) for cap in missing]
