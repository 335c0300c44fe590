r"""The text of `attach-daemon2`: `key=value,key=value`.

As in uWSGI a comma ends an item, the first `=` ends the key, and a backslash protects any
character. Unlike there quotes protect commas, blanks around commas do not count, and a key may
stand without `=`.
"""

from __future__ import annotations

from lowsuper.record import Record


class Item(Record):
    """One item of the list."""

    key: str
    value: str | None  # None: written without "="
    blank: bool  # blanks stood before the key, for which uWSGI would have ignored it


class _Part(Record):
    text: str  # with backslashes taken out
    equals: int  # place of the first "=" that was not protected, or -1


def _split(text: str) -> list[_Part]:
    if "\\" not in text and '"' not in text and "'" not in text:
        return [_Part(part, part.find("=")) for part in text.split(",")]
    parts: list[_Part] = []
    current: list[str] = []
    equals, quote, escaped = -1, "", False
    for char in text:
        if escaped:
            current.append(char)
            escaped = False
            continue
        if char == "\\":
            escaped = True
            continue
        if char == "," and not quote:
            parts.append(_Part("".join(current), equals))
            current, equals = [], -1
            continue
        if char == "=" and equals < 0 and not quote:
            equals = len(current)
        if char in "\"'" and (not quote or char == quote):
            quote = "" if quote else char
        current.append(char)
    if quote:
        raise ValueError(f"a {quote} has no end")
    parts.append(_Part("".join(current), equals))
    return parts


def parse_items(text: str) -> list[Item]:
    """Return the items of a keyval line, without empty ones.

    Quotes stay in the values: those of a command are for the command.

    Raises:
        ValueError: a quote has no end.
    """
    items: list[Item] = []
    for part in _split(text):
        if not part.text.strip():
            continue
        blank = part.text[0] in " \t"
        if part.equals < 0:
            items.append(Item(part.text.strip(), None, blank))
        else:
            key, value = part.text[: part.equals], part.text[part.equals + 1 :]
            items.append(Item(key.strip(), value.strip(), blank))
    return items


def unquote(value: str) -> str:
    """Return a value without the quotes that stand around the whole of it."""
    if len(value) > 1 and value[0] in "\"'" and value.find(value[0], 1) == len(value) - 1:
        return value[1:-1]
    return value


def format_items(items: list[Item]) -> str:
    """Return a text that `parse_items` reads as these items."""
    texts: list[str] = []
    for item in items:
        text = _protect(item.key)
        texts.append(text if item.value is None else f"{text}={_protect(item.value)}")
    return ",".join(texts)


def _protect(text: str) -> str:
    return "".join("\\" + char if char in "\\,='\"" else char for char in text)
