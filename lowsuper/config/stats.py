"""What the options of the statistics mean: where they are served, and with which mode."""

from __future__ import annotations

from lowsuper.model import Endpoint
from lowsuper.units import parse_bool, parse_int, parse_mode

EVERYBODY = 0o666
LONGEST_PATH = 107  # of a socket: see unix(7)


def parse_endpoint(text: str) -> Endpoint:
    """Return an address: `HOST:PORT`, `:PORT`, `[IPV6]:PORT`, a path, or `@NAME`.

    Raises:
        ValueError: it is none of these.
    """
    if text.startswith("@"):
        if not 1 < len(text.encode("utf-8", "surrogateescape")) <= LONGEST_PATH:
            raise ValueError(f"is not @ and a name of 1 to {LONGEST_PATH - 1} bytes")
        return Endpoint(text, "abstract", text[1:])
    if text.startswith("/"):
        if text.endswith("/"):
            raise ValueError("is a directory, not the path of a socket")
        return Endpoint(text, "unix", text)
    host, colon, port = text.rpartition(":")
    if not colon:
        advice = f": did you mean :{text}?" if text.isdigit() else ""
        raise ValueError(f"is none of HOST:PORT, :PORT, /PATH and @NAME{advice}")
    try:
        number = parse_int(port, 1, 65535)
    except ValueError as error:
        raise ValueError(f"has a port that {error}") from None
    if host.startswith("[") and host.endswith("]"):
        return Endpoint(text, "tcp6", _check_ipv6(host[1:-1]), number)
    return Endpoint(text, "tcp", _check_ipv4(host), number)


def _check_ipv4(host: str) -> str:
    if not host:
        return "0.0.0.0"  # as in uWSGI; whoever writes it wants that
    if host == "localhost":
        return "127.0.0.1"
    parts = host.split(".")
    if len(parts) != 4 or not all(
        part.isascii() and part.isdigit() and part == str(int(part)) and int(part) < 256
        for part in parts
    ):
        raise ValueError("has a host that is no number, such as 127.0.0.1 or [::1]")
    return host


def _check_ipv6(host: str) -> str:
    # The kernel judges the rest, when it is bound.
    if ":" not in host or host.strip("0123456789abcdefABCDEF:."):
        raise ValueError("has a host that is no IPv6 address")
    return host


def parse_socket_mode(text: str) -> int | None:
    """Return the mode of `chmod-socket`: octal, or a boolean as in uWSGI; None: as the umask is.

    Raises:
        ValueError: it is neither.
    """
    if text[:1].isdigit():
        return parse_mode(text)
    return EVERYBODY if parse_bool(text) else None
