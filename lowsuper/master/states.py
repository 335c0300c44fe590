"""The state of the master, its phases and its tasks."""

from __future__ import annotations

from lowsuper.model import Hook
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowsuper.events import MasterAction
    from lowsuper.machine import State
    from lowsuper.units import Ns

    Daemons = Mapping[str, State]
    Actions = tuple[MasterAction, ...]
    Names = tuple[str, ...]

BOOTING, RUNNING, RELOADING, STOPPING, ENDED = (
    "booting",
    "running",
    "reloading",
    "stopping",
    "ended",
)

# Tasks, besides the hooks.
PIDFILES, DROP, PIDFILES2, START, DRAIN, STARTED, FINISH = (
    "pidfiles",
    "drop",
    "pidfiles2",
    "start",
    "drain",
    "started",
    "finish",
)

STOP, RELOAD, HALT = "stop", "reload", "halt"
"""How a daemon is told to end: the master stops; it reloads; somebody wants this one to end."""


class Master(Record):
    """The master's state."""

    phase: str = BOOTING
    todo: tuple[str | Hook, ...] = ()
    hook: Hook | None = None  # the running one
    touched: tuple[Hook, ...] = ()  # touch hooks whose turn comes when there is nothing to do
    alive: int = 0  # daemons that were told to start and are not down again
    waiting: tuple[str, ...] = ()  # daemons to start when those they come after are ready
    unsettled: int = 0  # of them, those whose first attempt has no outcome yet
    failed: int = 0  # first attempts that failed
    since: Ns = 0  # when the phase began
    dropped: bool = False  # privileges are gone for good
    loading: bool = False  # a reload was asked for; the files are being read
    brutal: bool = False  # that reload does not wait for anybody
    again: bool = False  # another reload was asked for meanwhile
    again_brutal: bool = False  # and that one does not wait for anybody
    asked: bool = False  # somebody asked for the stop; else it stops for a reason of its own
    impatient: bool = False  # asked to stop a second time
    code: int = 0  # what the program will end with
    held: tuple[str, ...] = ()  # daemons that somebody stopped, until somebody starts them
    returning: tuple[str, ...] = ()  # daemons to be started again as soon as they are down
    lordships: tuple[str, ...] = ()  # legions of which this node is the lord
    # Where daemons have an order:
    coming: tuple[str, ...] = ()  # told to start, and the first attempt has no outcome yet
    ending: tuple[tuple[str, str], ...] = ()  # to be told to end when those after them are gone
    leaving: tuple[str, ...] = ()  # told to end, and not down yet
    blocked: tuple[str, ...] = ()  # of those that wait, whose requirement failed at first


if TYPE_CHECKING:
    Result = tuple[Master, Actions]
