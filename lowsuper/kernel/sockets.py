"""The sockets that daemons find open (`listen`): the master opens each once and keeps it.

So nobody who connects is refused while a daemon is started again: whoever comes waits in the queue
of the socket. See sd_listen_fds(3).
"""

from __future__ import annotations

import os

from lowsuper.errors import KernelError
from lowsuper.kernel.stats import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowsuper.model import DaemonSpec, Endpoint, MasterSpec
    from lowsuper.plan import Identity

OPTION = "listen"
BACKLOG = 4096
"""What net.core.somaxconn allows at most, as a rule; the kernel takes the lesser."""


class Sockets:
    """The sockets of one master, by their addresses. Several daemons may share one."""

    def __init__(self) -> None:
        """Begin without any."""
        self._listeners: dict[Endpoint, Listener] = {}
        self._kept: set[Endpoint] = set()  # of daemons that survive us
        self._mode: int | None = None
        self._identities: Mapping[str, Identity] = {}

    def use(self, spec: MasterSpec, identities: Mapping[str, Identity]) -> None:
        """Take a configuration: open what can be opened now, close what nobody wants any more.

        What cannot be opened is tried again, and told, when the daemon is started. A daemon that
        may run already, or elsewhere, has its sockets opened then, too.

        Args:
            spec: the configuration.
            identities: of its daemons; the file of a socket belongs to its daemon's user.
        """
        self._mode, self._identities = spec.socket_mode, identities
        wanted = {each.endpoint for daemon in spec.daemons for each in daemon.listen}
        for endpoint in self._listeners.keys() - wanted:
            self._close(endpoint)
        for daemon in spec.daemons:
            if daemon.listen and daemon.pidfile is None and daemon.legion is None:
                try:
                    self.open(daemon)
                except KernelError:
                    continue

    def open(self, daemon: DaemonSpec) -> tuple[int, ...]:
        """Return the descriptors of a daemon's sockets, which stay ours.

        Raises:
            KernelError: one cannot be opened.
        """
        identity = self._identities.get(daemon.name)
        owner = (-1, -1) if identity is None else (identity.uid, identity.gid)
        for each in daemon.listen:
            endpoint = each.endpoint
            if endpoint not in self._listeners:
                listener = Listener(OPTION, endpoint, self._mode, owner, backlog=BACKLOG)
                os.set_blocking(listener.fd, True)  # as daemons expect it of a new socket
                self._listeners[endpoint] = listener
            if daemon.pidfile is not None:
                self._kept.add(endpoint)
        return tuple(self._listeners[each.endpoint].fd for each in daemon.listen)

    def close(self) -> None:
        """Close all; the files of those that others still have stay."""
        for endpoint in list(self._listeners):
            self._close(endpoint)

    def _close(self, endpoint: Endpoint) -> None:
        self._listeners.pop(endpoint).close(remove=endpoint not in self._kept)
