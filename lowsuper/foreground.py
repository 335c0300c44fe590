# ruff: noqa: RET503  # tables of cases that end in assert_never
"""What `run FILE -- COMMAND` does, decided: wait for the daemons, run the command, stop it all.

`step` is total and pure. `kernel.front` performs what it asks for and brings the events; the
master, a process of its own, decides about the daemons as ever.
"""

from __future__ import annotations

from lowsuper.errors import assert_never
from lowsuper.record import Record
from lowsuper.units import SECOND, Ns

SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGTERM = 1, 2, 3, 9, 15
ENDING = (SIGHUP, SIGINT, SIGTERM)
EXIT_CONFIG, EXIT_FAILED = 78, 125
PATIENCE: Ns = 10 * SECOND
"""How long a command that is to end with its daemons may take, before it is killed."""

WAITING, RUNNING, STOPPING, ENDED = "waiting", "running", "stopping", "ended"


class Front(Record):
    """The state."""

    phase: str = WAITING
    code: int | None = None  # what all ends with; None: the command's, which is not known yet
    signals: int = 0  # how many asked for the end
    master: bool = True  # the master lives
    stopping: bool = False  # ...and stops


# Events.


class AllReady(Record):
    """Every daemon is ready."""


class NotReady(Record):
    """The daemons will not all be ready, or are not within the time given; which, was said."""


class GivenUp(Record):
    """A daemon was given up after it had been ready."""

    name: str


class MasterStopping(Record):
    """The master stops for a reason of its own, which it has said."""


class MasterEnded(Record):
    """The master's process has ended."""

    code: int  # 128 + n: by signal n


class CommandEnded(Record):
    """The command has ended, or could not be started."""

    code: int


class FrontSignalled(Record):
    """Somebody sent a signal to this process."""

    signal: int


class PatienceOver(Record):
    """The command was asked to end, and has not."""


class Swept(Record):
    """All that was left was ended."""

    clean: bool  # nothing is there any more


# Actions.


class RunCommand(Record):
    """Run the command in the foreground; CommandEnded follows."""


class SignalCommand(Record):
    """Send a signal to the command's process group."""

    signal: int


class SetPatience(Record):
    """Let PatienceOver come after some time, unless the command ends before."""

    after: Ns


class StopMaster(Record):
    """Let the master stop all daemons, smart ones too; MasterEnded follows."""

    now: bool = False  # do not wait for any of them


class Sweep(Record):
    """End what the command has left behind, and look that nothing is left; Swept follows."""


class SayFront(Record):
    """Tell the operator."""

    text: str


class FinishFront(Record):
    """End with this code."""

    code: int


TYPE_CHECKING = False
if TYPE_CHECKING:
    Event = (
        AllReady
        | NotReady
        | GivenUp
        | MasterStopping
        | MasterEnded
        | CommandEnded
        | FrontSignalled
        | PatienceOver
        | Swept
    )
    Action = RunCommand | SignalCommand | SetPatience | StopMaster | Sweep | SayFront | FinishFront
    Result = tuple[Front, tuple[Action, ...]]


def step(state: Front, event: Event, *, strict: bool) -> Result:  # noqa: C901, PLR0911  # a table
    """Return the new state and what is to be done, in order.

    Args:
        state: the state.
        event: what happened.
        strict: a daemon that is given up ends the command.
    """
    match event:
        case AllReady() if state.phase == WAITING:
            return state.replace(phase=RUNNING), (RunCommand(),)
        case NotReady() if state.phase == WAITING:
            return _stop(state.replace(code=EXIT_FAILED))
        case MasterStopping():
            return _master_stops(state, strict=strict)
        case MasterEnded():
            return _master_ended(state, event.code)
        case GivenUp() if state.phase == RUNNING and strict:
            return _end_command(state, f"{event.name} was given up")
        case CommandEnded() if state.phase == RUNNING:
            return _stop(state if state.code is not None else state.replace(code=event.code))
        case FrontSignalled():
            return _signalled(state, event.signal)
        case PatienceOver() if state.phase == RUNNING:
            say = SayFront("the command does not end; killing it")
            return state, (say, SignalCommand(SIGKILL))
        case Swept() if state.phase == STOPPING:
            code = EXIT_FAILED if not event.clean or state.code is None else state.code
            return state.replace(phase=ENDED), (FinishFront(code),)
        case (
            AllReady()  # again, of a jail that was made anew
            | NotReady()
            | GivenUp()
            | CommandEnded()
            | PatienceOver()
            | Swept()
        ):
            return state, ()
        case _:
            assert_never(event)


def _stop(state: Front) -> Result:
    """The command is not there, or not any more: stop the daemons."""
    state = state.replace(phase=STOPPING)
    if not state.master:
        return state, (Sweep(),)
    if state.stopping:
        return state, ()
    return state.replace(stopping=True), (StopMaster(),)


def _end_command(state: Front, why: str) -> Result:
    """End the command before its time; lowsuper has failed it."""
    if state.code is not None:
        return state, ()
    say = SayFront(f"{why}: ending the command")
    return state.replace(code=EXIT_FAILED), (say, SignalCommand(SIGTERM), SetPatience(PATIENCE))


def _master_stops(state: Front, *, strict: bool) -> Result:
    state = state.replace(stopping=True)
    match state.phase:
        case "waiting":
            return state.replace(phase=STOPPING, code=EXIT_FAILED), ()
        case "running" if strict:
            return _end_command(state, "the daemons are being stopped")
        case "running":
            return state, (SayFront("the daemons are being stopped while the command runs"),)
        case _:
            return state, ()


def _master_ended(state: Front, code: int) -> Result:
    was_stopping, state = state.stopping, state.replace(master=False, stopping=False)
    match state.phase:
        case "waiting":
            # What a configuration that is wrong ends with is known to callers.
            code = EXIT_CONFIG if code == EXIT_CONFIG else EXIT_FAILED
            return state.replace(phase=STOPPING, code=code), (Sweep(),)
        case "running" if was_stopping and code not in (EXIT_FAILED, 128 + SIGKILL):
            return state, ()  # it was to end
        case "running":
            return _end_command(state, f"what looks after the daemons has ended with {code}")
        case "stopping" if code == EXIT_FAILED or not was_stopping or code == 128 + SIGKILL:
            return state.replace(code=EXIT_FAILED), (Sweep(),)
        case "stopping":
            return state, (Sweep(),)
        case _:
            return state, ()


def _signalled(state: Front, signal: int) -> Result:
    if signal not in ENDING:
        return state, (SignalCommand(signal),) if state.phase == RUNNING else ()
    state = state.replace(signals=state.signals + 1)
    again = state.signals > 1
    match state.phase:
        case "waiting":
            return _stop(state.replace(code=128 + signal))
        case "running" if not again:
            return state, (SignalCommand(signal),)
        case "running":
            say = SayFront("asked again: SIGKILL to everything")
            stop = (StopMaster(now=True),) if state.master else ()
            return state.replace(stopping=True), (say, SignalCommand(SIGKILL), *stop)
        case "stopping" if state.master and (again or signal == SIGINT):
            # A first SIGTERM may be the one that the command has got too, from an init that
            # signals all of a cgroup; ^C in a terminal comes here only after it has.
            return state, (StopMaster(now=True),)
        case _:
            return state, ()
