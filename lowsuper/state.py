"""The machines' states as plain values, for a master that takes over from an earlier one.

`dump` makes what `json` can write; `load` makes the same states of it again, and refuses whatever
this version would not have dumped. It knows records, tuples and plain values and nothing else;
what is keyed by a name is stored as pairs.
"""

from __future__ import annotations

from lowsuper.machine import STATE_VERSION
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Value = Record | tuple["Value", ...] | str | int | bool | None
    Plain = dict[str, "Plain"] | list["Plain"] | str | int | bool | None

CLASS = "class"  # no field can have this name


def dump(value: Value) -> Plain:
    """Return a state, or a tuple of whatever holds states, as plain values in an envelope."""
    return {"version": STATE_VERSION, "value": _to_plain(value)}


def load(plain: Plain, classes: Iterable[type[Record]]) -> Value:
    """Return what was dumped.

    Args:
        plain: what `dump` returned, perhaps after a way through JSON.
        classes: the records that may occur in it.

    Raises:
        ValueError: it is of another version, or is not what `dump` makes of these classes.
    """
    if not isinstance(plain, dict) or plain.keys() != {"version", "value"}:
        raise ValueError("this is not a stored state")
    version = plain["version"]
    if version != STATE_VERSION:
        raise ValueError(f"the stored state has version {version!r}, not {STATE_VERSION}")
    return _to_value(plain["value"], {known.__name__: known for known in classes})


def _to_plain(value: Value) -> Plain:
    if isinstance(value, Record):
        fields = zip(value.__match_args__, _fields(value), strict=True)
        return {CLASS: type(value).__name__, **{name: _to_plain(field) for name, field in fields}}
    if isinstance(value, tuple):
        return [_to_plain(part) for part in value]
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a state holds no {type(value).__name__}")


def _fields(record: Record) -> tuple[Value, ...]:
    return tuple(getattr(record, name) for name in record.__match_args__)


def _to_value(plain: Plain, classes: Mapping[str, type[Record]]) -> Value:
    if isinstance(plain, dict):
        return _to_record(plain, classes)
    if isinstance(plain, list):
        return tuple(_to_value(part, classes) for part in plain)
    if plain is None or isinstance(plain, str | int):
        return plain
    raise ValueError(f"a stored state holds no {type(plain).__name__}")


def _to_record(plain: Mapping[str, Plain], classes: Mapping[str, type[Record]]) -> Record:
    name = plain.get(CLASS)
    known = classes.get(name) if isinstance(name, str) else None
    if known is None:
        raise ValueError(f"the stored state holds the unknown class {name!r}")
    fields = known.__match_args__
    if plain.keys() != {CLASS, *fields}:
        found = ", ".join(sorted(plain.keys() - {CLASS}))
        raise ValueError(f"{name} has the fields {', '.join(fields)}, not {found}")
    return known(*(_to_value(plain[field], classes) for field in fields))
