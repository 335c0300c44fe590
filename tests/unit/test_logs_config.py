"""The values of the keys about output."""

from __future__ import annotations

import pytest

from lowsuper.config import keys, logs
from lowsuper.model import Output


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("stdout", Output("stdout")),
        ("stderr", Output("stderr")),
        ("null", Output("null")),
        ("/dev/stdout", Output("stdout")),
        ("/proc/self/fd/2", Output("stderr")),
        ("/dev/null", Output("null")),
        ("/var/log/web.log", Output("file", path="/var/log/web.log")),
        ("./web", Output("file", path="./web")),
        ("ring", Output("ring", size=256 << 10)),
        ("ring:64k", Output("ring", size=64 << 10)),
        ("/dev/console", Output("file", path="/dev/console")),
    ],
)
def test_output(text, output):
    assert keys.NAMES["log"].parse(text) == output


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("sdtout", "nor a path"),
        ("/var/log/", "a directory"),
        ("/var/log/..", "a directory"),
        ("/a\0b", "NUL"),
        ("ring:", "not a size"),
        ("ring:1k", "between 4k and 64M"),
        ("ring:1G", "between 4k and 64M"),
        ("rings:64k", "nor a path"),
    ],
)
def test_output_that_is_none_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        logs.parse_output(text)
