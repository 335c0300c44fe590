"""Runs hooks, one at a time, and tells how each has ended.

A command gets a shim for a kill domain, whatever daemons get: all that it starts is below that,
in whatever session. When it has ended with 0, what it left running is let go of, as in uWSGI,
where hooks are used to start things; when it has failed or is killed, all of it is killed first.
What touches files or mounts is done by a process of its own (`kernel.deeds`).
"""

from __future__ import annotations

from time import monotonic_ns

from lowsuper.errors import KernelError
from lowsuper.events import DaemonNotStarted, Emptied, ExecOk, Exited, HookEnded, SpawnFailed
from lowsuper.kernel import spawn
from lowsuper.kernel.life import Life
from lowsuper.model import ChangeDirectory, Exec, Exit, Print, SetVariable
from lowsuper.plan import SHIM, build_plan
from lowsuper.units import SECOND, Ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from lowsuper.events import DaemonEvent, Note
    from lowsuper.kernel.deeds import DeedProcess
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.spawn import Spawner
    from lowsuper.model import FileDeed, Hook
    from lowsuper.plan import Environment, FdSource, Limit

    class Owner(Protocol):
        """Whose hooks these are."""

        def say(self, note: Note) -> None:
            """Tell the operator."""

        def say_line(self, line: str) -> None:
            """Tell the operator something that no machine has decided."""

        def hook_ended(self, event: HookEnded) -> None:
            """Take the end of a hook."""

        def put_over(self, life: Life) -> None:
            """Release a life after this turn."""


FAILED = 1 << 8  # the wait status of exit(1)
STUCK = Ns(5 * SECOND)  # after SIGKILL; by then only a system call that does not end holds it
TIMER = "(hook)"  # no daemon can have this name


class Hooks:
    """Runs the hooks of one master."""

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        children: dict[int, Callable[[], None]],
        owner: Owner,
        *,
        fds: tuple[FdSource, ...],
        limits: tuple[Limit, ...],
        timer: str = TIMER,
    ) -> None:
        """Run nothing yet.

        Args:
            loop: to watch what runs with.
            spawner: to start commands with.
            children: whom to call when a child of the master has ended.
            owner: is told what happens.
            fds: descriptors of commands.
            limits: resource limits of commands.
            timer: of the loop, for this object alone.
        """
        self._timer = timer
        self._loop, self._spawner, self._children, self._owner = loop, spawner, children, owner
        self._fds, self._limits = fds, limits
        self._title = ""
        self._killed = False
        self._life: Life | None = None
        self._deed: DeedProcess | None = None

    def run(self, hook: Hook, environment: Environment) -> None:
        """Begin with a hook; the owner's `hook_ended` follows, perhaps at once."""
        self._title = hook.origin.key
        if not hook.private:
            self._title += f": {hook.origin.value}"
        self._killed = False
        deed = hook.deed
        match deed:
            case Exec():
                self._execute(hook.origin.key, deed, environment)
            case ChangeDirectory() | SetVariable() | Print() | Exit():
                raise AssertionError(f"the master's own business: {deed}")
            case _:
                self._fork(deed)

    def kill(self) -> None:
        """SIGKILL what runs, if anything does; its end is told in 5 seconds even if it stays."""
        self._killed = True
        if self._life is not None:
            self._life.kill()
        elif self._deed is not None:
            self._deed.kill()
        else:
            return
        self._loop.set_timer(self._timer, Ns(monotonic_ns() + STUCK), self._give_up)

    def _give_up(self) -> None:
        """Nothing has come of SIGKILL."""
        life, deed = self._life, self._deed
        self._owner.say_line(
            f"{self._title}: still there {STUCK // SECOND} s after SIGKILL "
            "(a dead disk or network file system?); given up"
        )
        if deed is not None:
            deed.abandon()
        self._end(FAILED, "was given up")
        if life is not None:
            self._owner.put_over(life)

    def _end(self, status: int, problem: str = "") -> None:
        self._loop.cancel_timer(self._timer)
        self._life = self._deed = None
        self._owner.hook_ended(HookEnded(status, problem))

    # Commands.

    def _execute(self, name: str, deed: Exec, environment: Environment) -> None:
        plan = build_plan(
            name, deed.command, environment, role=SHIM, fds=self._fds, limits=self._limits
        )
        result = 0

        def post(event: DaemonEvent) -> None:
            nonlocal result
            if self._life is not life:
                return  # it was given up
            match event:
                case SpawnFailed():
                    result = -1
                    self._owner.say(
                        DaemonNotStarted(name, event.step, event.errno, event.subject, None)
                    )
                case Exited(status=status, left=left):
                    result = result or status or 0
                    if left and (result or self._killed):
                        life.kill()
                        return
                    if left:
                        self._let_go(life)
                    self._owner.put_over(life)
                    self._end(result)
                case Emptied():
                    self._owner.put_over(life)
                    self._end(result)
                case ExecOk():
                    pass
                case _:
                    raise AssertionError(event)

        try:
            child = self._spawner.spawn(plan)
        except OSError as error:
            self._end(-1, str(error))
            return
        life = Life(self._loop, 1, plan, child=child, leaf=None, rung="shim", post=post)
        self._life = life
        self._children[child.pid] = life.on_exit

    def _let_go(self, life: Life) -> None:
        """Let what a command has left running live on, with its shim and without the master."""
        spawn.send_survive(life.channel_fd)
        self._owner.say_line(f"{self._title}: left processes running, which live on by themselves")

    # What touches files and mounts.

    def _fork(self, deed: FileDeed) -> None:
        from lowsuper.kernel.deeds import DeedProcess

        def on_end(status: int, text: str) -> None:
            if status == 0 and text:
                self._owner.say_line(f"{self._title}: {text}")
            self._end(status, text if status else "")

        try:
            process = DeedProcess(self._loop, deed, on_end)
        except KernelError as error:
            self._end(-1, str(error))
            return
        self._deed = process
        self._children[process.pid] = process.on_exit
