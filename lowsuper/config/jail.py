"""The options of a jail: the ways into one, and what goes with them. Pure.

A jail is made of what it has of its own: a root, by one of `namespace`, `chroot` and `pivot-root`,
and namespaces, by `unshare` and `unshare2`; and of what it joins, by `setns`.
"""

from __future__ import annotations

from lowsuper.model import CHROOT, NAMESPACE, PIVOT, UNSHARE, Jail, Keep, Problem
from lowsuper.units import nearest_name, parse_bool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowsuper.config.dialect import Option

NAMESPACES = {
    "ns": "mount",
    "fs": "mount",
    "mnt": "mount",
    "mount": "mount",
    "ipc": "ipc",
    "uts": "uts",
    "hostname": "uts",
    "net": "net",
    "pid": "pid",
    "cgroup": "cgroup",
}
"""The words of `unshare`, uWSGI's and more, and what lowsuper calls the namespaces."""
_WITHOUT_EFFECT = ("files", "sysvsem")  # shared with nobody; uWSGI has them, too
_IMPOSSIBLE = {
    "user": "is not supported: in a user namespace the master would not be root any more, who can"
    " start daemons of other users and end them",
    "io": "cannot be unshared: see unshare(2)",
    "parent": "cannot be unshared: see unshare(2)",
}

_ROOTS = (NAMESPACE, CHROOT, PIVOT)
_MAKERS = (*_ROOTS, UNSHARE, "unshare2", "setns")
_HOSTNAME_MOST = 64  # HOST_NAME_MAX
_SOCKET_MOST = 107  # sun_path, less the final NUL
_SHARED = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
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


def parse_unshare(text: str) -> tuple[str, ...]:
    """Return the namespaces, by lowsuper's names, of a list such as `fs,ipc`.

    Raises:
        ValueError: one of them is none, or the list is empty.
    """
    words = text.replace(",", " ").lower().split()
    if not words:
        raise ValueError(f"names no namespace: there are {', '.join(NAMESPACES)}")
    found = []
    for word in words:
        if word in _IMPOSSIBLE:
            raise ValueError(f"{word} {_IMPOSSIBLE[word]}")
        if word in NAMESPACES:
            found.append(NAMESPACES[word])
        elif word not in _WITHOUT_EFFECT:
            near = nearest_name(word, NAMESPACES)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(NAMESPACES)}"
            raise ValueError(f"there is no namespace {word}; {hint}")
    return tuple(found)


def parse_root(text: str) -> str:
    """Return the root of `chroot`.

    Raises:
        ValueError: it is none.
    """
    root = parse_path(text)
    if root == "/":
        raise ValueError("the root of the host is no other root: name another directory")
    return root


def parse_pivot(text: str) -> tuple[str, str | None]:
    """Return the new root of `NEW [OLD]`, and where in it the old one goes.

    As in uWSGI OLD is a path outside, below NEW.

    Raises:
        ValueError: it is not that.
    """
    words = text.split()
    if not 1 <= len(words) <= 2:
        raise ValueError("is neither NEW_ROOT nor NEW_ROOT OLD_ROOT")
    root = parse_root(words[0])
    if len(words) == 1:
        return root, None
    old = parse_path(words[1])
    if not old.startswith(f"{root}/"):
        raise ValueError(f"{old}, where the old root is to go, is not below {root}")
    return root, old[len(root) :]


def parse_socket(text: str) -> str:
    """Return the path of a unix socket.

    Raises:
        ValueError: it is none, or too long.
    """
    path = parse_path(text)
    if len(path.encode("utf-8", "surrogateescape")) > _SOCKET_MOST:
        raise ValueError(f"is longer than the {_SOCKET_MOST} bytes of unix(7)")
    return path


def parse_skip(text: str) -> tuple[str, ...]:
    """Return the names in /proc/PID/ns, with or without `_for_children`, of a list.

    Raises:
        ValueError: one of them is none.
    """
    words = text.replace(",", " ").split()
    for word in words:
        if word.removesuffix("_for_children") not in _SHARED:
            near = nearest_name(word, _SHARED)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(_SHARED)}"
            raise ValueError(f"there is no {word} in /proc/self/ns; {hint}")
    return tuple(words)


def read_jail(options: Mapping[str, Sequence[Option]]) -> tuple[Jail | None, list[Problem]]:
    """Return the jail that options ask for, if they do, and what is wrong with them.

    Args:
        options: as read, in their order: those that make a jail by their name, the others by the
            field of `Jail` that they are for.
    """
    if not any(options.get(maker) for maker in _MAKERS):
        return None, _notice(options, ("keeps", "net", "overlay"), "does nothing without namespace")
    problems = _refuse_two_roots(options)
    jail = _read_root(options, problems)
    if jail is None:
        return None, problems
    jail = _read_namespaces(jail, options, problems)
    jail = _read_switches(jail, options, problems)
    for option in options.get("setns", ()):
        try:
            jail = jail.replace(joins=parse_socket(option.value))
        except ValueError as error:
            problems.append(Problem(option.origin, str(error)))
    if jail.way != NAMESPACE:
        reason = f"does nothing with {jail.way}, only with namespace"
        problems += _notice(options, ("keeps", "overlay"), reason)
        return jail.replace(overlay=False), problems
    return jail.replace(keeps=_read_keeps(jail, options, problems)), problems


def _notice(
    options: Mapping[str, Sequence[Option]], fields: tuple[str, ...], reason: str
) -> list[Problem]:
    return [
        Problem(option.origin, reason, is_error=False)
        for field in fields
        for option in options.get(field, ())
    ]


def _refuse_two_roots(options: Mapping[str, Sequence[Option]]) -> list[Problem]:
    ways = [options[way][-1] for way in _ROOTS if options.get(way)]
    return [
        Problem(
            other.origin,
            f"there is {ways[0].name}, too: a jail has one root",
            advice="leave one of them out",
        )
        for other in ways[1:]
    ]


def _read_root(options: Mapping[str, Sequence[Option]], problems: list[Problem]) -> Jail | None:
    """Return a jail with its root and the namespaces that are its way's; None: that is bad."""
    way = next((each for each in _ROOTS if options.get(each)), UNSHARE)
    bare = Jail(None, way=way, namespaces=(), post_jail="")
    if way == UNSHARE:
        return bare
    option = options[way][-1]
    try:
        if way == NAMESPACE:
            return Jail(*parse_namespace(option.value))
        if way == CHROOT:
            return bare.replace(root=parse_root(option.value))
        root, old_root = parse_pivot(option.value)
        return bare.replace(root=root, old_root=old_root)
    except ValueError as error:
        problems.append(Problem(option.origin, str(error)))
        return None


def _read_namespaces(
    jail: Jail, options: Mapping[str, Sequence[Option]], problems: list[Problem]
) -> Jail:
    """Add those of `unshare` and `unshare2`.

    That the latter are made after the root was changed makes no difference, but for uWSGI's
    post-jail hooks, which come after the first and before that.
    """
    own = list(jail.namespaces)
    for option in (*options.get(UNSHARE, ()), *options.get("unshare2", ())):
        try:
            own += parse_unshare(option.value)
        except ValueError as error:
            problems.append(Problem(option.origin, str(error)))
    if options.get(UNSHARE) and jail.way != NAMESPACE:
        jail = jail.replace(post_jail="inside")
    names = tuple(name for name in dict.fromkeys(own) if name != "net")
    return jail.replace(namespaces=names, net="net" in own)


def _read_switches(
    jail: Jail, options: Mapping[str, Sequence[Option]], problems: list[Problem]
) -> Jail:
    switches = {"net": jail.net, "overlay": False}
    for key in switches:
        for option in options.get(key, ()):
            try:
                switches[key] = parse_bool(option.value)
            except ValueError as error:
                problems.append(Problem(option.origin, str(error)))
    return jail.replace(**switches)


def _read_keeps(
    jail: Jail, options: Mapping[str, Sequence[Option]], problems: list[Problem]
) -> tuple[Keep, ...]:
    keeps: list[Keep] = []
    for option in options.get("keeps", ()):
        try:
            keeps.append(parse_keep(option.value, jail.root or "/"))
        except ValueError as error:
            problems.append(Problem(option.origin, str(error)))
    return tuple(keeps)
