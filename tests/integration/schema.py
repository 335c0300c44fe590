"""Checks JSON against the published schema: as much of JSON Schema as that uses."""

from __future__ import annotations

import json
from pathlib import Path

import lowsuper

PATH = Path(lowsuper.__file__).parent / "schema" / "control-1.json"
SCHEMA = json.loads(PATH.read_text(encoding="utf-8"))
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
}
KNOWN = {
    "type", "required", "properties", "additionalProperties", "items", "enum", "const", "anyOf",
    "allOf", "$ref", "description",
}  # fmt: skip


def validate(value: object, name: str) -> None:
    """Raise AssertionError, naming the place, unless a value is what the schema says."""
    _validate(value, SCHEMA["$defs"][name], name)


def _is(value: object, kind: str) -> bool:
    if kind in ("number", "integer"):
        wanted = (int, float) if kind == "number" else int
        return isinstance(value, wanted) and not isinstance(value, bool)
    return isinstance(value, TYPES[kind])


def _validate(value: object, schema: dict, place: str) -> None:  # noqa: C901
    assert schema.keys() <= KNOWN, f"{place}: {schema.keys() - KNOWN} is not looked at"
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        _validate(value, SCHEMA["$defs"][name], f"{place}<{name}>")
    for each in schema.get("allOf", ()):
        _validate(value, each, place)
    if "anyOf" in schema:
        problems = []
        for each in schema["anyOf"]:
            try:
                _validate(value, each, place)
                break
            except AssertionError as error:
                problems.append(str(error))
        else:
            raise AssertionError("; ".join(problems))
    if "const" in schema:
        assert value == schema["const"], f"{place}: {value!r}"
    if "enum" in schema:
        assert value in schema["enum"], f"{place}: {value!r}"
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(_is(value, kind) for kind in kinds), f"{place}: {value!r} is not {kinds}"
    if isinstance(value, dict):
        missing = [key for key in schema.get("required", ()) if key not in value]
        assert not missing, f"{place}: lacks {missing}"
        for key, each in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if inner is not None:
                _validate(each, inner, f"{place}.{key}")
    if isinstance(value, list) and "items" in schema:
        for number, each in enumerate(value):
            _validate(each, schema["items"], f"{place}[{number}]")
