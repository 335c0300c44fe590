"""What all that a master starts takes over from it: environment, directory and umask.

The configuration sets them at the start and at each reload, hooks change them in between. What
hooks did to the environment lasts; the directory that a hook has left is gone back to at a
reload, so that a relative one means the same again.
"""

from __future__ import annotations

import os

from lowsuper.errors import KernelError
from lowsuper.events import HookEnded
from lowsuper.model import ChangeDirectory, EnvChange, SetVariable
from lowsuper.plan import (
    Environment,
    build_environment,
    change_environment,
    identity_variables,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.model import MasterSpec
    from lowsuper.plan import Identity

FAILED = 1 << 8  # the wait status of exit(1)


class Surroundings:
    """The surroundings of one master. `environment` is that of whatever is started next."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Take what the process has; the umask is 0 until `adopt`, which is to follow at once."""
        self._say = say
        self._inherited = dict(os.environ)
        self._umask = os.umask(0)
        self._of_user: tuple[EnvChange, ...] = ()
        self._of_hooks: dict[str, EnvChange] = {}
        self._left: str | None = None
        self.environment = Environment({})

    def adopt(self, spec: MasterSpec) -> None:
        """Set what a configuration says.

        Raises:
            OSError: there is no directory `chdir`.
        """
        environment = build_environment(self._inherited, spec.env)
        changes = (*self._of_user, *self._of_hooks.values())
        self.environment = change_environment(environment, changes)
        if self._left is not None:
            try:
                os.chdir(self._left)
            except OSError as error:
                self._say(str(KernelError("chdir", error.errno or 0, self._left)))
            self._left = None
        if spec.chdir is not None:
            os.chdir(spec.chdir)
        os.umask(self._umask if spec.umask is None else spec.umask)

    def follow(self, identity: Identity) -> None:
        """Let HOME, USER and LOGNAME be those of the user that the master has become."""
        if identity.name:
            changes = identity_variables(identity).items()
            self._of_user = tuple(EnvChange(name, value) for name, value in changes)
            self.environment = change_environment(self.environment, self._of_user)

    def change(self, deed: ChangeDirectory | SetVariable) -> HookEnded:
        """Do what a hook says, and return how that has ended."""
        if isinstance(deed, SetVariable):
            self._of_hooks[deed.change.name] = deed.change
            self.environment = change_environment(self.environment, (deed.change,))
            return HookEnded(0)
        try:
            before = os.getcwd()
            os.chdir(deed.path)
        except OSError as error:
            return HookEnded(FAILED, str(KernelError("chdir", error.errno or 0, deed.path)))
        if self._left is None:
            self._left = before
        return HookEnded(0)
