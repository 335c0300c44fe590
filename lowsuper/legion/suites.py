"""The ciphers of a legion: what there is to know of them without loading any.

Sizes are those of OpenSSL, which uWSGI takes a key and a vector of.
"""

from __future__ import annotations

from lowsuper.record import Record


class Suite(Record):
    """One cipher. Its name is OpenSSL's, in lower case."""

    key: int  # bytes
    iv: int  # bytes; 0: it takes none
    weak: str = ""  # why it should not be chosen: a phrase
    modern: bool = False  # authenticated, and only among lowsuper nodes


_SMALL = "has blocks of 64 bits"
_PLAIN = "shows which parts of a packet are equal"
_STREAM = "shows two packets at once to who has both, since the key stream is always the same"

SUITES: dict[str, Suite] = {
    "aes-256-gcm": Suite(32, 12, modern=True),
    "chacha20-poly1305": Suite(32, 12, modern=True),
}
for _name, _sizes, _iv, _weak in (
    ("aes", (128, 192, 256), 16, ""),
    ("camellia", (128, 192, 256), 16, ""),
    ("seed", (128,), 16, ""),
    ("sm4", (128,), 16, ""),
    ("bf", (128,), 8, _SMALL),
    ("cast5", (128,), 8, _SMALL),
    ("idea", (128,), 8, _SMALL),
    ("des-ede3", (192,), 8, _SMALL),
):
    for _bits in _sizes:
        _full = f"{_name}-{_bits}" if _name in ("aes", "camellia") else _name
        _modes = ["cbc", "cfb", "ofb"] + ["ctr"] * (_name in ("aes", "sm4"))
        for _mode in _modes:
            _suite = Suite(_bits // 8, _iv, _weak or ("" if _mode == "cbc" else _STREAM))
            SUITES[f"{_full}-{_mode}"] = _suite
        if _name != "des-ede3":
            SUITES[f"{_full}-ecb"] = Suite(_bits // 8, 0, _PLAIN)
SUITES["rc4"] = Suite(16, 0, _STREAM)
