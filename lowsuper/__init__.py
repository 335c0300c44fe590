"""A supervisor for other people's daemons that reads uWSGI's attach-daemon files.

For scripts it offers the client of a running master: `lowsuper.connect()`; see `lowsuper.client`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.client import (
        Client,
        ClientError,
        Daemon,
        Exit,
        NoMasterError,
        NotPermittedError,
        Reasons,
        UnknownNameError,
        WaitTimeoutError,
        connect,
        list_instances,
    )

__all__ = [
    "Client",
    "ClientError",
    "Daemon",
    "Exit",
    "NoMasterError",
    "NotPermittedError",
    "Reasons",
    "UnknownNameError",
    "WaitTimeoutError",
    "connect",
    "list_instances",
]


def __getattr__(name: str) -> object:
    """Load the client when it is asked for: a master has no use for it."""
    if name in __all__:
        from lowsuper import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
