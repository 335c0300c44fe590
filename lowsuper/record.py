# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN204, ANN206, ANN401, D102, D103  # one half is typed
"""Immutable values with named fields.

What a frozen, slotted dataclass is to a type checker and to `match`, at a price that a
supervisor can pay at every start: importing `dataclasses` takes longer than everything else
that lowsuper does before its first daemon runs. A record is a tuple of its fields, so it is
small, hashable and cheap to make; two records are equal only if their classes are the same.

Rule: records do not inherit from each other.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform

    def _tuplegetter(index: int, doc: str | None) -> object: ...

else:
    from _collections import _tuplegetter  # what collections.namedtuple uses for its fields

    def dataclass_transform(**_):
        return lambda cls: cls


@dataclass_transform(frozen_default=True, eq_default=True)
class RecordMeta(type):
    """Turn the annotations of a class body into the fields of a tuple."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> RecordMeta:
        """Make the class; a value given to an annotation is the field's default."""
        fields = tuple(namespace.get("__annotations__", ()))
        defaults = {field: namespace[field] for field in fields if field in namespace}
        for index, field in enumerate(fields):
            namespace[field] = _tuplegetter(index, None)
        namespace["__slots__"] = ()
        namespace["__match_args__"] = fields
        namespace["_defaults"] = defaults
        return super().__new__(mcs, name, bases, namespace)


if TYPE_CHECKING:

    class Record(metaclass=RecordMeta):
        """The base of every record: see the module."""

        __match_args__: ClassVar[tuple[str, ...]]

        def replace(self, **changes: Any) -> Self:
            """Return a copy with some fields changed."""

else:

    class Record(tuple, metaclass=RecordMeta):
        """The base of every record: see the module."""

        def __new__(cls, *args, **named):
            fields = cls.__match_args__
            if named or len(args) != len(fields):
                args = cls._fill(args, named)
            return tuple.__new__(cls, args)

        @classmethod
        def _fill(cls, args, named):
            fields = cls.__match_args__
            if len(args) > len(fields):
                raise TypeError(f"{cls.__name__} takes {len(fields)} fields, not {len(args)}")
            rest = [
                named.pop(field) if field in named else cls._defaults[field]
                for field in fields[len(args) :]
                if field in named or field in cls._defaults
            ]
            if named or len(args) + len(rest) != len(fields):
                raise TypeError(f"{cls.__name__} takes exactly the fields {', '.join(fields)}")
            return (*args, *rest)

        def replace(self, **changes):
            values = dict(zip(self.__match_args__, self, strict=True))
            if not changes.keys() <= values.keys():
                raise TypeError(f"{type(self).__name__} has no such field: {sorted(changes)}")
            return type(self)(*(values | changes).values())

        def __eq__(self, other):
            return type(self) is type(other) and tuple.__eq__(self, other)

        def __ne__(self, other):
            return not self == other

        def __hash__(self):
            return hash((type(self).__name__, tuple(self)))

        def __repr__(self):
            pairs = zip(self.__match_args__, self, strict=True)
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in pairs)})"
