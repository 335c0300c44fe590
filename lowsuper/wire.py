"""JSON as the control socket speaks it: one value a line, without importing `json`.

What `json` itself calls does the work; importing the package takes longer than a whole request.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Context:
    """What the scanner of `_json` takes its settings from; those that `json.loads` has."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> float:
        """Refuse NaN and Infinity, which are no JSON."""
        raise ValueError(f"{name} is no JSON")


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _build() -> tuple[Callable[[str, int], tuple[Any, int]], Callable[[Any, int], Any]]:
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner

        encode = make_encoder(
            None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False
        )
        scan = make_scanner(_Context)  # type: ignore[arg-type]  # any object with these will do
        if scan('{"a":[1]}', 0) == ({"a": [1]}, 9) and "".join(encode([{}], 0)) == "[{}]":
            return scan, encode
    except (ImportError, TypeError, AttributeError):
        pass  # a Python whose inner works are others
    import json

    encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
    return json.JSONDecoder().raw_decode, lambda value, _: [encoder.encode(value)]


_scan, _encode = _build()


def encode(value: object) -> str:
    r"""Return a value as one line of ASCII, without its end; lone surrogates become `\udcXX`.

    Raises:
        TypeError: there is something in it that has no JSON form.
        ValueError: a float that is no number, or a circle.
        RecursionError: it is too deep.
    """
    return "".join(_encode(value, 0))


def decode(text: str) -> Any:  # noqa: ANN401  # only who asked knows what it is
    """Return the value of a text.

    Raises:
        ValueError: it is no JSON, or there is something behind it.
        RecursionError: it is too deep.
    """
    text = text.strip(" \t\r\n")
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"no value at {stop.value}") from None
    except SystemError:
        # It looks for the exception in `json.decoder`, which nobody has imported.
        raise ValueError("it is no JSON") from None
    if end != len(text):
        raise ValueError(f"more than one value: see {end}")
    return value
