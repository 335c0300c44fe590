"""The daemons of a configuration: commands, keyval lines and [daemon:NAME] sections alike."""

from __future__ import annotations

from lowsuper.command import find_program_name, parse_command
from lowsuper.config import keys
from lowsuper.config.expand import has_unknown, suggest
from lowsuper.config.keyval import parse_items, unquote
from lowsuper.config.pidfiles import SmartLineError, parse_smart
from lowsuper.model import DaemonSpec, Origin, Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lowsuper.config.dialect import Option
    from lowsuper.config.keys import Key
    from lowsuper.config.keyval import Item
    from lowsuper.model import Command

_NEED_PIDFILE = ("freq", "daemonize", "notify_pid")
_COMMA_ADVICE = "a comma that belongs to the command needs quotes around it or a \\ before it"


class _Draft:
    """A daemon that is being put together."""

    def __init__(self, origin: Origin, name: str = "") -> None:
        self.origin = origin
        self.name = name  # "" until it is known
        self.fields: dict[str, object] = {}
        self.origins: dict[str, Origin] = {}  # of each field that was given, right or wrong
        self.broken = False  # something was wrong with it already
        self.unknown = False  # something was not looked up


class DaemonBuilder:
    """Collects daemons in the order of the files."""

    def __init__(self, problems: list[Problem]) -> None:
        """Start without daemons.

        Args:
            problems: what is wrong is appended here; the list stays the caller's.
        """
        self._problems = problems
        self._drafts: list[_Draft] = []
        self._sections: dict[str, _Draft] = {}

    def add_command(self, option: Option, *, control: bool, legion: str | None = None) -> None:
        """Take an `attach-daemon`, `attach-control-daemon` or `legion-attach-daemon` in.

        Raises:
            ValueError: the command cannot be read.
        """
        draft = _Draft(option.origin)
        draft.fields["command"] = parse_command(option.value)
        draft.origins["command"] = option.origin
        draft.fields |= {"control": control, "legion": legion}
        self._drafts.append(draft)

    def add_smart(self, option: Option, *, daemonize: bool, legion: str | None = None) -> None:
        """Take a `smart-attach-daemon`, or with `daemonize` a `smart-attach-daemon2`, in.

        Those of a legion, too.

        Raises:
            ValueError: the command cannot be read.
        """
        draft = _Draft(option.origin)
        try:
            line = parse_smart(option.value)
        except SmartLineError as error:
            self._fault(draft, option.origin, error.reason, error.advice)
            return
        draft.fields |= {"pidfile": line.pidfile, "daemonize": daemonize}
        draft.fields["command"] = parse_command(line.command)
        if line.freq is not None:
            draft.fields["freq"] = line.freq
        draft.origins = dict.fromkeys(draft.fields, option.origin)
        draft.fields["legion"] = legion
        self._drafts.append(draft)

    def add_keyval(self, option: Option) -> None:
        """Take an `attach-daemon2` in.

        Raises:
            ValueError: the list itself cannot be read.
        """
        draft = _Draft(option.origin)
        in_command = False
        for item in parse_items(option.value):
            if item.blank and keys.find_key(item.key) is not None:
                self._say(draft, item.key, item.value, "uWSGI would have ignored this key")
            in_command = self._take_item(draft, item, in_command=in_command)
        self._drafts.append(draft)

    def add_key(self, option: Option) -> None:
        """Take one line of a [daemon:NAME] section in, or its head (an option without a name)."""
        draft = self._sections.get(option.daemon)
        if draft is None:
            draft = _Draft(option.origin, option.daemon)
            self._sections[option.daemon] = draft
            self._drafts.append(draft)
            self._name_section(draft, option)
        if not option.name:
            return
        if has_unknown(option.value):
            draft.unknown = True
            reason = "was not looked at: a command gives its value"
            self._problems.append(
                Problem(option.origin, reason, draft.name, "use --exec", is_error=False)
            )
            return
        key = keys.find_key(option.name)
        if key is None:
            self._refuse(draft, option.origin, option.name, "")
        elif option.bare and not key.is_flag:
            draft.origins[key.field] = option.origin
            self._fault(draft, option.origin, "needs a value")
        elif key.field == "name" and option.value != draft.name:
            self._fault(draft, option.origin, "the section has a name already")
        else:
            self._set(draft, key, option.value, option.origin)

    def find_origin(self, name: str, key: str) -> Origin:
        """Return where a finished daemon got a key from.

        Args:
            name: the daemon's.
            key: any name of the key.
        """
        draft = next(each for each in self._drafts if each.name == name)
        row = keys.find_key(key)
        return draft.origins.get(row.field if row else "", draft.origin)

    def list_names(self) -> list[str]:
        """Return the names of all daemons, also of those of which no more could be read."""
        return [draft.name for draft in self._drafts if draft.name]

    def finish(self) -> tuple[DaemonSpec, ...]:
        """Return the daemons, each with its name.

        Also those that are wrong, as far as they could be read: `check` looks at the rest of them
        too, and what has a problem is never run.
        """
        for draft in self._drafts:
            if "command" not in draft.fields and not draft.broken and not draft.unknown:
                self._fault(draft, draft.origin, "there is no command", "add command = ...")
            self._require_pidfile(draft)
            self._join_namespaces(draft)
        read = [draft for draft in self._drafts if "command" in draft.fields and not draft.unknown]
        self._name_all(read)
        return tuple(_build_daemon(draft) for draft in read)

    def _require_pidfile(self, draft: _Draft) -> None:
        """Refuse keys of a daemon that mean something only with a pidfile."""
        if "pidfile" in draft.origins or draft.unknown:
            return
        for field in _NEED_PIDFILE:
            if draft.fields.get(field):
                origin = draft.origins[field]
                advice = f"add pidfile=FILE, or leave {origin.key} out"
                self._fault(draft, origin, "means nothing without a pidfile", advice)

    def _join_namespaces(self, draft: _Draft) -> None:
        """Let `pid` among the namespaces be `ns_pid`; refuse two network namespaces."""
        if "netns" in draft.fields and "net" in _parts(draft.fields.get("namespaces", ())):
            origin = draft.origins["netns"]
            reason = "contradicts net among the namespaces: a daemon joins one or has its own"
            self._fault(draft, origin, reason, "leave one out")
        if "pid" not in _parts(draft.fields.get("namespaces", ())):
            return
        if draft.fields.get("ns_pid") is False:
            origin = draft.origins["ns_pid"]
            self._fault(draft, origin, "contradicts pid among the namespaces", "leave one out")
        draft.fields["ns_pid"] = True

    # Names.

    def _name_section(self, draft: _Draft, option: Option) -> None:
        try:
            keys.parse_name("" if not option.name and not option.value else draft.name)
        except ValueError as error:
            self._fault(draft, option.origin, f"the name {error}")

    def _name_all(self, drafts: list[_Draft]) -> None:
        """Give a name to each daemon, from its program where it has none; refuse duplicates."""
        taken: dict[str, _Draft] = {}
        for draft in drafts:
            draft.name = draft.name or str(draft.fields.get("name", ""))
            if draft.name in taken:
                place = taken[draft.name].origin
                self._fault(
                    draft,
                    draft.origins.get("name", draft.origin),
                    f"the daemon of {place.file}:{place.line} has the same name",
                )
            elif draft.name:
                taken[draft.name] = draft
        counts: dict[str, int] = {}
        for draft in drafts:
            if not draft.name:
                base = name = _program_of(draft) or "daemon"
                while name in taken:
                    counts[base] = counts.get(base, 1) + 1
                    name = f"{base}-{counts[base]}"
                draft.name = name
                taken[name] = draft

    # Keys.

    def _take_item(self, draft: _Draft, item: Item, *, in_command: bool) -> bool:
        """Take one item in; return whether the next one may be a part of the command."""
        origin = Origin(draft.origin.file, draft.origin.line, item.key, item.value or "")
        key = keys.find_key(item.key)
        if key is None:
            advice = _COMMA_ADVICE if in_command else ""
            self._refuse(draft, origin, item.key, advice)
            return in_command
        if item.value is None and not key.is_flag:
            draft.origins[key.field] = origin
            self._fault(draft, origin, "needs a value", _COMMA_ADVICE if in_command else "")
        elif key.field == "command":
            self._set(draft, key, item.value or "", origin)
        else:
            value = item.value or ""
            keeps_quotes = key.field in ("touch", "mounts")
            self._set(draft, key, value if keeps_quotes else unquote(value), origin)
        return key.field == "command"

    def _set(self, draft: _Draft, key: Key, value: str, origin: Origin) -> None:
        draft.origins[key.field] = origin
        try:
            parsed = key.parse(value)
        except ValueError as error:
            self._fault(draft, origin, str(error))
            return
        if key.adds or (key.field == "touch" and draft.name):
            parsed = (*_parts(draft.fields.get(key.field, ())), *_parts(parsed))
        draft.fields[key.field] = parsed

    def _refuse(self, draft: _Draft, origin: Origin, name: str, advice: str) -> None:
        """Say what is wrong with a key that is not in the table."""
        near = suggest(keys.normalize(name), keys.list_names())
        both = "; or ".join(text for text in (near, advice) if text)
        self._fault(draft, origin, "a daemon has no such key", both)

    def _fault(self, draft: _Draft, origin: Origin, reason: str, advice: str = "") -> None:
        draft.broken = True
        self._problems.append(Problem(origin, reason, _label(draft), advice))

    def _say(self, draft: _Draft, key: str, value: str | None, reason: str) -> None:
        origin = draft.origin.replace(key=key, value=value or "")
        self._problems.append(Problem(origin, reason, _label(draft), is_error=False))


def _build_daemon(draft: _Draft) -> DaemonSpec:
    fields: dict[str, Any] = draft.fields | {"name": draft.name}
    return DaemonSpec(origin=draft.origin, **fields)


def _command_of(draft: _Draft) -> Command:
    command: Command = draft.fields["command"]  # type: ignore[assignment]
    return command


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else ()


def _label(draft: _Draft) -> str:
    """Return the best name of a daemon so far."""
    return draft.name or str(draft.fields.get("name", "")) or _program_of(draft)


def _program_of(draft: _Draft) -> str:
    """Return a name made from what the daemon runs, or ""."""
    if "command" not in draft.fields:
        return ""
    return keys.clean_name(find_program_name(_command_of(draft).text))
