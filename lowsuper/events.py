"""The vocabulary between the two machines, the shell and the kernel: plain values, no behaviour.

Events go into a machine, actions come out of it. Events and actions that belong to one life of
a daemon carry its run: what is late for an earlier run changes nothing. Notes are what the
operator is told; `report` has their wording.
"""

from __future__ import annotations

from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import Hook
    from lowsuper.units import Ns, RunId

# What happens to one daemon.


class Start(Record):
    """It shall run."""


class Stop(Record):
    """It shall be stopped, gracefully, with SIGKILL at its deadline."""


class Reload(Record):
    """It shall be stopped with its reload signal; the master starts its next instance.

    A smart daemon is let go of instead, as the next instance takes it over.
    """

    changes: bool = False  # the next instance is governed by another pidfile, or by none


class Kill(Record):
    """It shall be ended at once, with everything that belongs to it."""


class Touched(Record):
    """One of its touch files changed: restart it."""

    path: str


class Restart(Record):
    """Somebody asked for it to be ended and started again."""

    why: str = "restart"


class Halt(Record):
    """Somebody asked for this one to be stopped; even a smart one is ended then."""

    why: str = "stop"


class Expel(Record):
    """It shall not run here, and is not started: if it runs all the same, it is ended."""

    why: str  # a phrase


class Reset(Record):
    """Its failures are forgiven: they count no more, and it is not given up any more."""


class Deliver(Record):
    """Somebody asked for a signal to be sent to its process."""

    signal: int
    why: str


class Ready(Record):
    """It is ready: one answer to AwaitReady."""

    run: RunId


class Unready(Record):
    """It is not ready yet: what was seen last, after AwaitReady."""

    run: RunId
    finding: str  # a phrase


class WatchdogMissed(Record):
    """It was silent for longer than its watchdog allows."""

    run: RunId
    silence: Ns


class Timer(Record):
    """The daemon's timer went off."""

    run: RunId


class ExecOk(Record):
    """The program runs: every step of the helper succeeded, execve included."""

    run: RunId
    pid: int  # of the program, as seen by the master
    uid: int
    gid: int
    rung: str  # of the kill domain: "pidns", "cgroup", "shim", "process"


class SpawnFailed(Record):
    """The program does not run: clone or a step of the helper failed.

    An `Exited` of the same run follows only where something was cloned; `cloned` says so.
    """

    run: RunId
    step: str  # "clone", "chdir", ...; "" when the helper died without a word
    errno: int
    subject: str  # what the step was about: a path, a user id
    cloned: bool
    advice: str = ""  # why, or the way out, where the errno does not tell


class Exited(Record):
    """The daemon's own process has ended; of one that waits for its pidfile, what was launched."""

    run: RunId
    status: int | None  # as wait(2) gives it; None: its parent, not we, will know (see Reaped)
    left: bool  # other processes of the daemon are still there; `Emptied` follows
    oom: str = ""  # processes of it were killed for lack of memory: of which, a phrase


class Emptied(Record):
    """The last process of the daemon is gone."""

    run: RunId


# What happens to a smart daemon, which is governed by a pidfile.


class PidfileTouched(Record):
    """Its pidfile changed, or was removed: look again."""


class Found(Record):
    """The daemon runs, and is watched from now on: the answer to Look and Name."""

    run: RunId
    pid: int  # as seen by the master
    uid: int
    gid: int
    rung: str  # of its kill domain: "pidns", "cgroup", "shim", "process"
    born: Ns  # when the process began, CLOCK_MONOTONIC
    why: str  # what it was believed for, a phrase


class Absent(Record):
    """No process could be believed to be the daemon: the answer to Look."""

    run: RunId
    finding: str  # what the pidfile holds and why it is not believed, a phrase
    left: bool  # processes of it are there all the same; `Emptied` follows
    telling: bool  # the operator should know the finding: it is more than "there is no pidfile"


class Unseen(Record):
    """It could not be found out whether the daemon runs: another answer to Look."""

    run: RunId
    finding: str  # what failed, a phrase


class NotNamed(Record):
    """The pidfile could not be written: the other answer to Name."""

    run: RunId
    finding: str  # what failed, a phrase


class HeldBy(Record):
    """Another master governs this pidfile: another answer to Look; `Freed` follows."""

    run: RunId
    holder: str  # who, a phrase


class Freed(Record):
    """The other master has let go of the pidfile."""

    run: RunId


class Reaped(Record):
    """The exit status of a process whose `Exited` came without one."""

    run: RunId
    status: int  # as wait(2) gives it


PlainEvent = (
    Start
    | Stop
    | Reload
    | Kill
    | Touched
    | Restart
    | Halt
    | Reset
    | Deliver
    | Ready
    | Unready
    | WatchdogMissed
    | Timer
    | ExecOk
    | SpawnFailed
    | Exited
    | Emptied
)
SmartEvent = PidfileTouched | Found | Absent | Unseen | NotNamed | HeldBy | Freed | Reaped
DaemonEvent = PlainEvent | SmartEvent | Expel

# What one daemon asks for.


class Spawn(Record):
    """Start the program; answers with ExecOk or SpawnFailed, and later with Exited."""

    run: RunId


class Signal(Record):
    """Send a signal to the daemon's process and its group, or to what outlived that."""

    run: RunId
    signal: int
    group: bool = True  # its process group, too


class AwaitReady(Record):
    """See when the daemon is ready; answers with Unready, any number of times, and Ready."""

    run: RunId


class KillDomain(Record):
    """SIGKILL everything that belongs to the daemon."""

    run: RunId


class Look(Record):
    """See whether a smart daemon runs; answers with Found, Absent, Unseen or HeldBy."""

    run: RunId


class Name(Record):
    """Write the pidfile of the program that runs; answers with Found or NotNamed."""

    run: RunId


class Unname(Record):
    """Remove the pidfile that Name has written, if it is still that one."""

    run: RunId


class Leave(Record):
    """Let go of a smart daemon and of its pidfile: what runs of it runs on."""

    run: RunId


class SetTimer(Record):
    """Set the daemon's only timer."""

    run: RunId
    at: Ns


class CancelTimer(Record):
    """The daemon's timer, if any, is not needed any more."""


class Settled(Record):
    """Tell the master machine that the daemon is ready, or that its first attempt failed."""

    ok: bool
    first: bool  # this is the outcome of the first attempt after a Start


class WentDown(Record):
    """Tell the master machine that nothing of the daemon is left, and nothing will come back."""

    abandoned: bool = False  # not even SIGKILL ended it


class Concluded(Record):
    """Tell the master machine that nothing of the daemon is left, and that it is at its end."""

    failed: bool  # it was given up; else it has done what it had to do
    status: int | None


class ControlEnded(Record):
    """Tell the master machine that a control daemon has ended for good."""

    status: int


class Say(Record):
    """Tell the operator."""

    note: Note


DaemonAction = (
    Spawn
    | Signal
    | KillDomain
    | AwaitReady
    | Look
    | Name
    | Unname
    | Leave
    | SetTimer
    | CancelTimer
    | Settled
    | WentDown
    | Concluded
    | ControlEnded
    | Say
)

# What happens to the master.


class Boot(Record):
    """The configuration is read and checked: begin."""


class Signalled(Record):
    """A signal arrived."""

    signal: int


class FifoByte(Record):
    """One command byte came through the master FIFO, as one character."""

    command: str


class ReloadTouched(Record):
    """A touch-reload file changed."""

    path: str


class Loaded(Record):
    """The files were read again and are good; the new configuration is in place."""


class Applied(Record):
    """The files were read again; the new configuration is in place, these daemons differ."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class LoadRefused(Record):
    """The files were read again and are bad; the operator was told, nothing has changed."""


class HookEnded(Record):
    """The hook that was running has ended."""

    status: int  # as wait(2) gives it; -1: it could not be started, which was said
    problem: str = ""  # why it failed, in words, where there is no command whose status tells


class HookTouched(Record):
    """The file of a touch hook has changed."""

    hook: Hook


class DaemonSettled(Record):
    """A daemon is ready, or its first attempt failed."""

    name: str
    ok: bool
    first: bool


class DaemonDown(Record):
    """Nothing of a daemon is left."""

    name: str
    abandoned: bool = False


class DaemonConcluded(Record):
    """Nothing of a daemon is left, and it will not come back by itself."""

    name: str
    failed: bool
    status: int | None


class Asked(Record):
    """Somebody with the right to do so asked for something through the control socket.

    `verb` is start, stop, restart, try-restart or reset-failed for the daemons `names`; reload,
    apply, shutdown or kill for the master.
    """

    verb: str
    names: tuple[str, ...] = ()
    who: str = "control"  # a phrase, for the log


class DaemonEnded(Record):
    """A control daemon has ended."""

    name: str
    status: int


class LordChanged(Record):
    """This node has become the lord of a legion, or has to be it no more."""

    legion: str
    lord: bool
    why: str = ""  # it is no more, a phrase


MasterEvent = (
    Boot
    | Signalled
    | FifoByte
    | ReloadTouched
    | Loaded
    | Applied
    | LoadRefused
    | HookEnded
    | HookTouched
    | DaemonSettled
    | DaemonDown
    | DaemonConcluded
    | DaemonEnded
    | LordChanged
    | Asked
)

# What the master machine asks for.


class Tell(Record):
    """Hand an event to one daemon; a Start makes it take its place from the configuration."""

    name: str
    event: DaemonEvent


class TellAll(Record):
    """Hand an event to every daemon there is, last started first."""

    event: DaemonEvent


class Forget(Record):
    """Drop a daemon that is down and not in the configuration any more."""

    name: str


class RunHook(Record):
    """Run one hook; answers with HookEnded."""

    hook: Hook


class KillHook(Record):
    """SIGKILL the running hook; HookEnded follows."""


class LoadConfig(Record):
    """Read the files again; answers with Loaded, or Applied, or LoadRefused."""

    applies: bool = False  # only what differs is to be done


class WritePidfiles(Record):
    """Write the pidfiles: those for before (or after) the drop of privileges."""

    dropped: bool


class DropPrivileges(Record):
    """Become the configured user for good; a failure ends the program."""


class ReopenLogs(Record):
    """Open the log file again; with `rotate`, move the old one aside first."""

    rotate: bool


class SelectFifo(Record):
    """Listen to another master FIFO."""

    slot: int


class SayStats(Record):
    """Tell the operator the state of every daemon."""


class Announce(Record):
    """Tell whoever waits for it that every daemon was started once."""


class Finish(Record):
    """Clean up and end with this exit code."""

    code: int


class SayMaster(Record):
    """Tell the operator."""

    note: Note


MasterAction = (
    Tell
    | TellAll
    | Forget
    | RunHook
    | KillHook
    | LoadConfig
    | WritePidfiles
    | DropPrivileges
    | ReopenLogs
    | SelectFifo
    | SayStats
    | Announce
    | Finish
    | SayMaster
)

# What the operator is told. `name` is the daemon's.


class DaemonStarted(Record):
    """A program runs."""

    name: str
    pid: int
    uid: int
    gid: int
    rung: str
    pidfile_after: Ns | None = None  # how long its pidfile took; None: it has none


class DaemonNotStarted(Record):
    """A program could not be run."""

    name: str
    step: str
    errno: int
    subject: str
    retry: Ns | None  # None: it shall not run any more
    advice: str = ""  # as in SpawnFailed


class DaemonDied(Record):
    """A daemon ended by itself."""

    name: str
    pid: int
    status: int | None  # None: unknown
    age: Ns
    left: bool  # processes of it are still there and are ended first
    retry: Ns | None  # the pause before the next start; None: there will be none
    control: bool  # the master ends with it
    oom: str = ""  # as in Exited


class DaemonEnding(Record):
    """A daemon was asked to end."""

    name: str
    pid: int
    signal: int
    patience: Ns
    why: str  # "stop", "reload", "touch PATH"


class DaemonKilled(Record):
    """A daemon was killed with all that belongs to it."""

    name: str
    pid: int
    waited: Ns  # since it was asked to end; 0: it was not asked


class DaemonGone(Record):
    """Nothing of a daemon that was asked to end is left."""

    name: str
    pid: int
    status: int | None  # None: unknown
    took: Ns
    retry: Ns | None = None  # the pause before the next start; None: nothing follows by itself


class DaemonStuck(Record):
    """A daemon is still there long after SIGKILL."""

    name: str
    pid: int
    waited: Ns
    abandoned: bool


class DaemonSlow(Record):
    """A helper has not reached execve for a long time."""

    name: str
    waited: Ns


class DaemonReady(Record):
    """A daemon is ready."""

    name: str
    pid: int
    took: Ns  # since it was started


class DaemonLate(Record):
    """A daemon was not ready in time, and is ended."""

    name: str
    pid: int
    waited: Ns
    finding: str


class DaemonSilent(Record):
    """A daemon did not feed its watchdog, and is ended."""

    name: str
    pid: int
    silence: Ns


class DaemonSignalled(Record):
    """A daemon was sent a signal because somebody asked for it."""

    name: str
    pid: int
    signal: int
    why: str


class DaemonDone(Record):
    """A daemon has ended well, and is not started again."""

    name: str
    pid: int
    status: int
    age: Ns
    oneshot: bool


class DaemonGivenUp(Record):
    """A daemon is not started any more until somebody asks for it."""

    name: str
    reason: str


class DaemonNeeds(Record):
    """A daemon is not started, or is ended, because of another that it requires."""

    name: str
    other: str
    started: bool  # it runs, and is ended


class DaemonBarred(Record):
    """A daemon was not started: this node is not the lord of its legion."""

    name: str
    legion: str


class DaemonInBackground(Record):
    """A plain daemon's program put itself into the background; its kill domain is watched."""

    name: str
    pid: int
    age: Ns


class DaemonFound(Record):
    """A smart daemon runs already, and is taken over."""

    name: str
    pid: int
    uid: int
    gid: int
    rung: str
    age: Ns
    why: str


class DaemonFinding(Record):
    """What was found where a smart daemon's pidfile should be, before a start."""

    name: str
    finding: str
    retry: Ns = 0  # the pause before it is looked again; 0: it is started


class DaemonHeld(Record):
    """Another master governs the same pidfile."""

    name: str
    pidfile: str
    holder: str


class DaemonAwaited(Record):
    """Processes of a smart daemon are there; its pidfile has to name one of them."""

    name: str
    pid: int  # of the one that has ended; 0: they are from before this master
    status: int | None
    finding: str
    patience: Ns


class DaemonNotReady(Record):
    """No process was named by the pidfile in time, or none is left that could be."""

    name: str
    finding: str
    launcher: int | None  # exit status of what was launched, if it has ended
    waited: Ns
    left: bool  # processes of it are still there and are ended first
    retry: Ns | None


class DaemonMoved(Record):
    """A smart daemon is another process now: its pidfile says so."""

    name: str
    old: int
    new: int
    why: str


class DaemonDoubted(Record):
    """The pidfile of a daemon that runs does not name it any more."""

    name: str
    pid: int
    finding: str
    renamed: bool  # lowsuper writes it again


class DaemonLeft(Record):
    """A smart daemon was let go of and runs on."""

    name: str
    pid: int  # 0: it had not been named yet
    why: str  # "stop", "reload"
    signal: int | None  # that it was sent, because of notifypid


class DaemonReaped(Record):
    """The exit status of a daemon that was not our child came after the news of its end."""

    name: str
    pid: int
    status: int


class HookRuns(Record):
    """A hook was started."""

    option: str
    text: str


class HookPrints(Record):
    """A hook says a line."""

    text: str


class HookFailed(Record):
    """A hook ended with another status than 0, or could not do what it was to do."""

    option: str
    text: str
    status: int  # as in HookEnded
    fatal: bool
    problem: str = ""


class AllStarted(Record):
    """Every daemon was started once."""

    count: int
    failed: int
    took: Ns


class MasterStops(Record):
    """The master stops."""

    why: str
    count: int  # daemons that are asked to end
    smart: int = 0  # daemons that are left running


class MasterKills(Record):
    """The master was asked a second time to stop, and does not wait any more."""

    why: str


class MasterReloads(Record):
    """A reload begins."""

    why: str
    brutal: bool


class MasterApplies(Record):
    """The new configuration is in force; what differs is being done."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class MasterReloaded(Record):
    """Every daemon of the new configuration was started once."""

    took: Ns


class LegionLost(Record):
    """This node has to give up the lordship of a legion, with its daemons."""

    legion: str
    why: str
    count: int  # daemons that are ended


class LegionSays(Record):
    """What has become of a legion, as its agent tells it."""

    legion: str
    text: str


class MasterIgnores(Record):
    """Something was asked that cannot be done now, or means nothing here."""

    what: str
    reason: str


class MasterEnds(Record):
    """The last line."""

    code: int


Note = (
    DaemonStarted
    | DaemonNotStarted
    | DaemonDied
    | DaemonEnding
    | DaemonKilled
    | DaemonGone
    | DaemonStuck
    | DaemonSlow
    | DaemonReady
    | DaemonLate
    | DaemonSilent
    | DaemonSignalled
    | DaemonDone
    | DaemonGivenUp
    | DaemonNeeds
    | DaemonBarred
    | DaemonInBackground
    | DaemonFound
    | DaemonFinding
    | DaemonHeld
    | DaemonAwaited
    | DaemonNotReady
    | DaemonMoved
    | DaemonDoubted
    | DaemonLeft
    | DaemonReaped
    | HookRuns
    | HookPrints
    | HookFailed
    | AllStarted
    | MasterStops
    | MasterKills
    | MasterReloads
    | MasterApplies
    | MasterReloaded
    | LegionLost
    | LegionSays
    | MasterIgnores
    | MasterEnds
)
