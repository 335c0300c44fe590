"""The network of a jail, as far as its first process has to do with it; and what the host has.

The rest of a network is made from outside: see `kernel.wiring`.
"""

from __future__ import annotations

import _socket
import os
from errno import EINVAL, ENOENT
from fcntl import ioctl
from struct import Struct

from lowsuper.errors import KernelError
from lowsuper.kernel import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.model import Jail

_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914  # SIOCGIFFLAGS, SIOCSIFFLAGS
_UP = 1  # IFF_UP
_REQUEST = Struct("16sh22x")  # struct ifreq


def prepare(jail: Jail) -> None:
    """Join the network namespace that a jail is to live in, if it is one that is there.

    Before the root changes, as the path is one outside.

    Raises:
        KernelError: there is none.
    """
    if jail.netns is None:
        return
    try:
        # O_NONBLOCK: a FIFO must not hang the start; like all that is none it is EINVAL then.
        fd = os.open(jail.netns, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        name = jail.netns.rpartition("/")[2]
        advice = f"ip netns add {name} makes one" if error.errno == ENOENT else ""
        raise KernelError("open", error.errno or 0, jail.netns, advice) from None
    try:
        mount.setns(fd, mount.NEWNET)
    except KernelError as error:
        advice = "it is no network namespace" if error.errno == EINVAL else error.advice
        raise KernelError("setns", error.errno or 0, jail.netns, advice) from None
    finally:
        os.close(fd)


def finish(jail: Jail) -> None:
    """Raise the loopback device of a new network namespace, the caller's: it is down at first.

    Imports nothing; see netdevice(7).

    Raises:
        KernelError: it cannot be.
    """
    if not jail.net:
        return
    channel = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        answer = ioctl(channel.fileno(), _GET_FLAGS, _REQUEST.pack(b"lo", 0))
        name, flags = _REQUEST.unpack(answer)
        ioctl(channel.fileno(), _SET_FLAGS, _REQUEST.pack(name, flags | _UP))
    except OSError as error:
        raise KernelError("ioctl", error.errno or 0, "to raise the loopback device") from None
    finally:
        channel.close()


def has_link(name: str) -> bool:
    """Tell whether this network namespace has a link of a name. See if_nametoindex(3)."""
    try:
        _socket.if_nametoindex(name)
    except OSError:
        return False
    return True
