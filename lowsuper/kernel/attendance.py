"""What daemons of one master tell of themselves: that they are ready, that they live, how they are.

Made when the first daemon needs it: with none of the keys `ready`, `watchdog` and `notify_access`
it costs nothing, not even its import.
"""

from __future__ import annotations

import os

from lowsuper.kernel import notify
from lowsuper.kernel.notify import Notifications
from lowsuper.kernel.readiness import Crew, Launch, Probers
from lowsuper.kernel.spawn import pack
from lowsuper.plan import FdSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lowsuper.events import DaemonEvent
    from lowsuper.kernel.notify import Life
    from lowsuper.machine import State
    from lowsuper.model import DaemonSpec
    from lowsuper.plan import Environment, SpawnPlan
    from lowsuper.units import Ns, RunId

_OWN_VARIABLES = (b"NOTIFY_SOCKET=", b"WATCHDOG_USEC=", b"WATCHDOG_PID=")


class Attendance:
    """Owns the probes and the notification sockets."""

    def __init__(
        self,
        crew: Crew,
        *,
        path: str,
        instance: Callable[[], str],
        post: Callable[[str, DaemonEvent], None],
        say: Callable[[str], None],
        changed: Callable[[str], None],
    ) -> None:
        """Wait for nothing yet, and listen to nobody.

        Args:
            crew: what to work with.
            path: of the notification socket; "": there is no place for it.
            instance: tells how this master's cgroups are named, or "".
            post: takes what happens to a daemon.
            say: tells the operator a line.
            changed: is told the name of a daemon whose status or phase is another one.
        """
        self._probers = Probers(crew, post)
        self._notifications = Notifications(
            crew.loop, path=path, instance=instance, post=post, say=say, changed=changed
        )
        self._post = post

    def prepare(self) -> None:
        """Open what only root can."""
        self._notifications.prepare()

    # How a daemon starts.

    def equip(self, spec: DaemonSpec, plan: SpawnPlan) -> SpawnPlan:
        """Return the plan of a daemon with the variables that it needs to notify.

        Raises:
            KernelError: there can be no socket that it could reach.
        """
        if not notify.asks(spec):
            return plan
        variables = self._notifications.variables(spec)
        kept = (each for each in plan.envp if not each.startswith(_OWN_VARIABLES))
        return plan.replace(envp=(*kept, *variables))

    def open_pipe(self, spec: DaemonSpec, run: RunId, plan: SpawnPlan) -> tuple[int, bytes]:
        """Return an end of a pipe for a run with `ready = fd:N`, and its plan with that, packed.

        The caller closes the end when the run was started.

        Raises:
            OSError: out of descriptors.
        """
        assert spec.ready is not None, "only who waits for a line needs a pipe"
        write_fd = self._probers.open_pipe(spec.name, run)
        number = int(spec.ready.target)
        fds = tuple(source for source in plan.fds if source.target != number)
        return write_fd, pack(plan.replace(fds=(*fds, FdSource(number, write_fd))))

    def begin(self, spec: DaemonSpec, run: RunId, life: Life, *, found: bool) -> None:
        """Listen to a run from now on; with `found` another master has started it."""
        if notify.asks(spec):
            self._notifications.expect(spec, run, life, found=found)

    # While it runs.

    def await_ready(self, spec: DaemonSpec, run: RunId, pid: int, launch: Launch) -> None:
        """See when a daemon is ready; Unready and Ready follow."""
        self._probers.begin(spec, run, pid, launch)
        if self._notifications.is_ready(spec.name, run):
            # Race: it notified before it was known that it could be executed.
            self._notifications.tell_ready(spec.name)

    def moved(self, name: str, state: State) -> None:
        """Take note that a daemon is in another state now."""
        is_ready = getattr(state, "ready", None)  # that of Up; other states have none
        if is_ready is not False:
            self._probers.end(name)
        self._notifications.runs(name, ready=is_ready)

    def awaited_until(self, name: str, run: RunId) -> Ns:
        """Return until when a run that is not ready has asked to be waited for; 0: it has not."""
        return self._notifications.awaited_until(name, run)

    def forget(self, name: str, life: Life) -> None:
        """Listen no more to a life that is over."""
        self._notifications.forget(name, life)

    def close_pipe(self, name: str) -> None:
        """Close our end of a daemon's pipe; there need not be one."""
        self._probers.close_pipe(name)

    def status_of(self, name: str) -> str | None:
        """Return what a daemon last said of its status; None: nothing."""
        return self._notifications.status_of(name)

    def phase_of(self, name: str) -> str:
        """Return "reloading" or "stopping" if a daemon said so, else ""."""
        return self._notifications.phase_of(name)

    def close(self) -> None:
        """Wait for nothing any more, and close everything."""
        self._probers.close()
        self._notifications.close()


def make_launch(environment: Environment, plan: SpawnPlan) -> Launch:
    """Return with what a daemon of this master was started."""
    return Launch(os.getcwd(), environment, plan)
