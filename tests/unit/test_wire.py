"""JSON without `json`: the same values, the same errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowsuper import wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_value_there_and_back_is_the_same(value):
    text = wire.encode(value) if not holds_infinity(value) else json.dumps(None)
    assert wire.decode(text) == json.loads(text)
    assert "\n" not in text
    assert text.isascii()


def holds_infinity(value):
    if isinstance(value, float):
        return math.isinf(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(holds_infinity, inner))


def test_bytes_that_are_no_utf8_come_as_surrogates():
    text = wire.encode({"name": b"caf\xe9".decode("utf-8", "surrogateescape")})
    assert text == '{"name":"caf\\udce9"}'
    assert wire.decode(text)["name"].encode("utf-8", "surrogateescape") == b"caf\xe9"


WRONG = ["", " ", "{", '{"a"', "[1] 2", "nonsense", "NaN", "-Infinity", '"\\x"', '{"a":1,}', '"\t"']


@pytest.mark.parametrize("text", WRONG)
def test_decode_when_text_is_no_json_raises_value_error(text):
    with pytest.raises(ValueError, match=r"\S"):
        wire.decode(text)


def test_decode_when_json_is_not_imported_raises_value_error_all_the_same():
    code = f"""
import sys
from lowsuper import wire
for text in {WRONG!r}:
    try:
        wire.decode(text)
    except ValueError:
        continue
    raise SystemExit(text)
assert "json" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_decode_when_too_deep_says_so():
    with pytest.raises(RecursionError):
        wire.decode("[" * 200_000)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1j}, {(1, 2): 3}])
def test_encode_when_value_has_no_json_form_raises(value):
    with pytest.raises((TypeError, ValueError)):
        wire.encode(value)
