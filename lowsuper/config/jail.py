"""The options of a jail: `namespace` and those that go with it. Pure."""

from __future__ import annotations

from lowsuper.model import Jail, Keep, Problem
from lowsuper.units import parse_bool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowsuper.config.dialect import Option

_HOSTNAME_MOST = 64  # HOST_NAME_MAX
_PREFIXES = ("ro:", "optional:")


def parse_path(text: str) -> str:
    """Return an absolute path without empty parts and dots.

    Raises:
        ValueError: it is not absolute, or goes up.
    """
    if not text.startswith("/"):
        raise ValueError(f"{text or 'it'} is not an absolute path: begin it with /")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{text} has .. in it: write where it leads")
    return "/" + "/".join(parts)


def parse_namespace(text: str) -> tuple[str, str | None]:
    """Return root and host name of `ROOT[:HOSTNAME]`.

    Raises:
        ValueError: it is not that.
    """
    path, _, hostname = text.partition(":")
    root = parse_path(path)
    if root == "/":
        raise ValueError("the root of the host is no jail: name another directory")
    plain = hostname.replace("-", "").replace(".", "").replace("_", "")
    if hostname and not (plain.isalnum() and plain.isascii()):
        raise ValueError(f"{hostname} is no host name: letters, digits, - and . make one")
    if len(hostname) > _HOSTNAME_MOST:
        raise ValueError(f"the host name is longer than {_HOSTNAME_MOST}")
    return root, hostname or None


def parse_keep(text: str, root: str) -> Keep:
    """Return what `namespace-keep-mount` means in a jail with this root.

    It is `PATH`, the same inside and outside, or below the root; or `SOURCE:TARGET`. In front of
    that may be `ro:` and `optional:`.

    Raises:
        ValueError: it is not that.
    """
    found = set()
    while (prefix := next((each for each in _PREFIXES if text.startswith(each)), "")) != "":
        found.add(prefix)
        text = text[len(prefix) :]
    before, colon, after = text.partition(":")
    source = parse_path(before)
    if colon:
        target = parse_path(after)
    else:
        target = source[len(root) :] if f"{source}/".startswith(f"{root}/") else source
    if target in ("", "/"):
        raise ValueError("the root of the jail itself is what namespace names")
    if f"{target}/".startswith("/proc/"):
        raise ValueError("the jail has a /proc of its own")
    return Keep(source, target, "ro:" in found, "optional:" in found)


def read_jail(options: Mapping[str, Sequence[Option]]) -> tuple[Jail | None, list[Problem]]:
    """Return the jail that options ask for, if they do, and what is wrong with them.

    Args:
        options: by the field of `Jail` that they are for; as read, in their order.
    """
    namespaces = options.get("root")
    if not namespaces:
        reason = "does nothing without namespace"
        return None, [
            Problem(option.origin, reason, is_error=False)
            for each in options.values()
            for option in each
        ]
    try:
        root, hostname = parse_namespace(namespaces[-1].value)
    except ValueError as error:
        return None, [Problem(namespaces[-1].origin, str(error))]
    problems: list[Problem] = []
    keeps: list[Keep] = []
    for option in options.get("keeps", ()):
        try:
            keeps.append(parse_keep(option.value, root))
        except ValueError as error:
            problems.append(Problem(option.origin, str(error)))
    switches = {"net": False, "overlay": False}
    for key in switches:
        for option in options.get(key, ()):
            try:
                switches[key] = parse_bool(option.value)
            except ValueError as error:
                problems.append(Problem(option.origin, str(error)))
    return Jail(root, hostname, tuple(keeps), **switches), problems
