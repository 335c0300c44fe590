r"""The states of one daemon.

A plain daemon:

        Start            ExecOk              Exited, nothing left
  Down -------> Starting -------> Up ------------------------------> Backoff (or at once Starting)
   ^               |  SpawnFailed  \ Stop, Reload, Touched,              | Timer
   |               |                \ Exited with something left         v
   |               v                 v                              Starting
   +----------- Broken           Stopping ---- deadline: SIGKILL, then Stuck is said
   |  Exited       |                 | Exited and Emptied
   +---------------+-----------------+--- then: down, or restart as after a crash

  A restart policy may make an end of it instead: Over, until somebody starts it.

A smart one looks before each start, and waits for its pidfile after it; a Stop or Reload leaves
it running:

        Start            Absent              ExecOk               Found
  Down -------> Looking -------> Starting -------> Awaiting ------------> Up
                   |  Found                        |  ^    Exited          |
                   +-----------------> Up          |  +--------------------+
                   HeldBy: wait for Freed          | deadline: Stopping, then as after a crash
"""

from __future__ import annotations

from lowsuper.events import SpawnFailed
from lowsuper.record import Record
from lowsuper.units import SECOND, Ns, RunId

STATE_VERSION = 6
"""Raised whenever a state class changes, for a master that takes over a stored state."""

SLOW_START = 10 * SECOND  # a helper that has not reached execve by then is mentioned
STUCK = 10 * SECOND  # what lives this long after SIGKILL is mentioned, or abandoned

DOWN, RELOADED, AGAIN, CRASHED, UNREADY = "down", "reloaded", "again", "crashed", "unready"
"""What follows a Stopping: nothing; here nothing, but the master starts the next instance; a
start at once; a start under the throttle, or the master's end if it is a control daemon; a start
under the throttle. Only what nothing follows is ever abandoned."""

DONE, EXITED, FAILED = "done", "exited", "failed"
"""How a daemon is at its end: a one-shot has done what it had to do; it ended well, and its policy
wants no more; it was given up."""

SURE, DOUBTING, ASKING, DOUBTED, UNNAMED = range(5)
"""Whether the pidfile of a smart daemon that runs still names it: yes; no, but it may be about to
end; it is asked once more; no, which was said; and it cannot be written, which was said."""


class Down(Record):
    """No process of it exists and none is wanted, or it is smart and was let go of."""

    run: RunId = 0  # the last one


class Looking(Record):
    """It is asked whether a smart daemon runs already; or another master governs its pidfile."""

    run: RunId  # the next one
    spawns: int  # starts since it last ran stably
    first: bool = False  # as in Starting
    held: bool = False
    recent: tuple[Ns, ...] = ()  # when it was restarted, as far as `max_restarts` looks back
    expel: str = ""  # why it is ended if it runs, and not started if it does not


class Starting(Record):
    """Cloned; whether the program could be executed is not known yet."""

    run: RunId
    since: Ns
    spawns: int  # starts since it last ran stably, this one included
    first: bool = False  # the first after a Start: its outcome is told to the master machine
    recent: tuple[Ns, ...] = ()


class Broken(Record):
    """A step failed; the helper's exit has not been seen yet."""

    run: RunId
    since: Ns
    spawns: int
    failure: SpawnFailed
    main_gone: bool = False  # the helper is gone, something else of it is not
    recent: tuple[Ns, ...] = ()


class Awaiting(Record):
    """A smart daemon was launched, or its process has ended, and its pidfile has to name one.

    `pid` is the launched process, or, with `lost`, the one that the pidfile had named.
    """

    run: RunId
    since: Ns  # when the waiting began
    deadline: Ns
    born: Ns  # when the launched or lost process began
    spawns: int
    pid: int  # 0: an earlier master launched it
    first: bool = False  # as in Starting
    lost: bool = False
    gone: bool = False  # that process has ended...
    status: int | None = None  # ...like this, as far as it is known
    oom: str = ""  # ...as in Exited
    empty: bool = False  # ...and nothing else of it is there
    told: bool = False  # the operator knows that it is being waited for
    last: bool = False  # the deadline has passed: the next answer decides
    finding: str = ""  # the last one
    recent: tuple[Ns, ...] = ()


class Up(Record):
    """The program runs."""

    run: RunId
    since: Ns
    spawns: int
    pid: int
    ready: bool = True
    background: bool = False  # its own process has ended, what it left behind is watched for it
    doubted: int = 0  # see DOUBTED
    first: bool = False  # as in Starting, until it is ready
    finding: str = ""  # why it is not ready yet
    recent: tuple[Ns, ...] = ()


class Stopping(Record):
    """It was asked to end, or its own process has ended and others of it have not."""

    run: RunId
    since: Ns  # when the ending began
    deadline: Ns  # what is timed now: first the patience, after SIGKILL the time to complain
    born: Ns
    spawns: int
    pid: int  # 0: it never ran
    then: str  # DOWN, RELOADED, AGAIN, CRASHED or UNREADY
    main_gone: bool = False
    status: int | None = None  # of the daemon's own process, once it is gone
    killed: bool = False
    said_stuck: bool = False
    recent: tuple[Ns, ...] = ()


class Backoff(Record):
    """Nothing of it is left; it starts again at `until`."""

    run: RunId
    spawns: int
    until: Ns
    recent: tuple[Ns, ...] = ()


class Over(Record):
    """Nothing of it is left, and it does not start again by itself."""

    run: RunId
    outcome: str  # DONE, EXITED or FAILED
    status: int | None  # of its last process; None: it never ran, or it is unknown


State = Down | Looking | Starting | Broken | Awaiting | Up | Stopping | Backoff | Over
STATES: tuple[type[Record], ...] = (
    Down, Looking, Starting, Broken, Awaiting, Up, Stopping, Backoff, Over, SpawnFailed,
)  # fmt: skip
