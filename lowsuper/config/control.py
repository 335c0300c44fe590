"""What the options of the control socket mean: where it is, whose, and who may do what."""

from __future__ import annotations

from lowsuper.model import ControlRule

READ = ("hello", "status", "events", "logs", "wait", "why", "legion")
"""The verbs that change nothing."""
VERBS = (
    *READ,
    *("start", "stop", "restart", "try-restart", "reset-failed", "reload", "signal"),
    *("diff", "apply", "adopt", "shutdown"),
)
"""All verbs of the protocol."""


def parse_socket(text: str) -> str:
    """Return an absolute path, or `none`.

    Raises:
        ValueError: it is neither.
    """
    if text != "none" and (not text.startswith("/") or text.endswith("/")):
        raise ValueError("is neither the absolute path of a file nor none")
    return text


def parse_owner(text: str) -> tuple[str, str | None]:
    """Return user and group of `USER[:GROUP]`; None: it names no group.

    Raises:
        ValueError: it is not that.
    """
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise ValueError("is not USER or USER:GROUP")
    return user, group or None


def parse_rule(text: str) -> ControlRule:
    """Return the meaning of `USER|@GROUP VERB[,VERB...]|read|all`.

    Raises:
        ValueError: it is not that.
    """
    who, _, words = text.strip().partition(" ")
    names = [word for word in words.replace(",", " ").split() if word]
    if not who.removeprefix("@") or not names:
        raise ValueError("is not USER or @GROUP and what it may do: read, all, or verbs")
    verbs: list[str] = []
    for name in names:
        if name == "all":
            verbs += VERBS
        elif name == "read":
            verbs += READ
        elif name in VERBS:
            verbs.append(name)
        else:
            raise ValueError(f"holds {name!r}, which is none of read, all, {', '.join(VERBS)}")
    return ControlRule(who, tuple(dict.fromkeys(verbs)))
