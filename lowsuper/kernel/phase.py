"""Runs the hooks of one phase in a process that has no master yet, and waits for their end.

They are those of post-jail where uWSGI has them between `unshare` and the change of root. Nothing
else goes on meanwhile; who wants to stop them kills this process, and they die with it.
"""

from __future__ import annotations

import os

from lowsuper.errors import KernelError, LowsuperError
from lowsuper.events import HookEnded
from lowsuper.kernel import process
from lowsuper.kernel.hooks import Hooks
from lowsuper.kernel.loop import Loop
from lowsuper.model import ChangeDirectory, Exec, Exit, Print, SetVariable
from lowsuper.plan import FdSource, build_environment
from lowsuper.report import format_note, format_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowsuper.events import Note
    from lowsuper.kernel.life import Life
    from lowsuper.kernel.log import Log
    from lowsuper.kernel.spawn import Spawner
    from lowsuper.model import Deed, EnvChange, Hook

SIGCHLD = 17
EXIT_HOOK = 1


class PhaseEndedError(LowsuperError):
    """A hook has failed, or wants everything to end."""

    def __init__(self, text: str, code: int) -> None:
        """Keep what is to be said, and the exit code."""
        super().__init__(text)
        self.exit_code = code


def run_phase(
    hooks: Sequence[Hook],
    env: tuple[EnvChange, ...],
    log: Log,
    spawner: Spawner,
    null_fd: int,
) -> None:
    """Run hooks, one after the other; those that change the environment change this process's.

    Args:
        hooks: in their order.
        env: what the configuration changes in the environment.
        log: where lines go.
        spawner: to start commands with.
        null_fd: standard input of commands.

    Raises:
        PhaseEndedError: one has failed.
    """
    phase = _Phase(log, spawner, null_fd, env)
    try:
        for hook in hooks:
            phase.run(hook)
    finally:
        phase.close()


class _Phase:
    def __init__(
        self, log: Log, spawner: Spawner, null_fd: int, env: tuple[EnvChange, ...]
    ) -> None:
        self._log, self._env = log, env
        self._ended: HookEnded | None = None
        self._children: dict[int, Callable[[], None]] = {}
        self._over: list[Life] = []
        self._loop = Loop()
        self._loop.watch_signals((SIGCHLD,), self._on_signal)
        fds = (FdSource(0, null_fd), FdSource(1, 1), FdSource(2, 2))
        self._hooks = Hooks(self._loop, spawner, self._children, self, fds=fds, limits=())

    def run(self, hook: Hook) -> None:
        """Run one hook until it has ended."""
        title = hook.origin.key if hook.private else f"{hook.origin.key}: {hook.origin.value}"
        if self._do_itself(hook.deed, title):
            return
        self.say_line(f"running {title}")
        self._log.flush()  # before what it says
        self._ended = None
        self._hooks.run(hook, build_environment(os.environ, self._env))
        while (ended := self._ended) is None:
            self._loop.run_turn(lambda: None)
        for life in self._over:
            life.release()
        self._over.clear()
        if ended.status:
            why = ended.problem or format_status(ended.status)
            if not (isinstance(hook.deed, Exec) and hook.deed.safe):
                raise PhaseEndedError(f"{title}: {why}; stopping", EXIT_HOOK)
            self.say_line(f"{title}: {why}; going on")

    def _do_itself(self, deed: Deed, title: str) -> bool:
        """Do what is this process's own business; return False for what others can do."""
        match deed:
            case Print(text=text):
                self.say_line(text)
            case Exit(code=code):
                raise PhaseEndedError(f"{title}: exit", code)
            case SetVariable(change=change):
                if change.value is None:
                    os.environ.pop(change.name, None)
                else:
                    os.environ[change.name] = change.value
            case ChangeDirectory(path=path):
                try:
                    os.chdir(path)
                except OSError as error:
                    text = str(KernelError("chdir", error.errno or 0, path))
                    raise PhaseEndedError(f"{title}: {text}; stopping", EXIT_HOOK) from None
            case _:
                return False
        return True

    def close(self) -> None:
        """Write the lines, and close the loop."""
        self._log.flush()
        self._loop.close()

    def _on_signal(self, _signal: int) -> None:
        while (pid := process.peek_child()) != 0:
            callback = self._children.pop(pid, None)
            if callback is not None:
                callback()
            os.waitpid(pid, os.WNOHANG)

    # What hooks want of their owner.

    def say(self, note: Note) -> None:
        """Tell the operator."""
        self.say_line(format_note(note))

    def say_line(self, line: str) -> None:
        """Tell the operator a line."""
        self._log.put(line)

    def hook_ended(self, event: HookEnded) -> None:
        """Take the end of the hook."""
        self._ended = event

    def put_over(self, life: Life) -> None:
        """Release a life after the hook."""
        self._over.append(life)
