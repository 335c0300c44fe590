"""The generated parts of the documentation agree with the parser's tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lowsuper.config import keys, options

ROOT = Path(__file__).resolve().parents[2]


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


@pytest.mark.parametrize("page", GENERATOR.PAGES, ids=lambda page: page.name)
def test_page_when_tables_change_is_stale(page):
    text = page.read_text(encoding="utf-8")
    assert GENERATOR.BLOCK.search(text), "has no generated block"
    assert GENERATOR.render(text) == text, "run python3 docs/generate.py"


def test_manual_has_every_option_and_key():
    text = (ROOT / "docs" / "lowsuper.conf.5.rst").read_text(encoding="utf-8")
    names = [name for row in options.OPTIONS for name in row.names]
    names += [name for key in keys.KEYS for name in key.names]
    assert [name for name in names if f"**{name}**" not in text] == []


def test_manual_has_every_reader_option():
    text = (ROOT / "docs" / "lowsuper.conf.5.rst").read_text(encoding="utf-8")
    assert [name for name in options.READER_OPTIONS if f"**{name}**" not in text] == []


def test_readme_shows_the_quickstart_example():
    lines = (ROOT / "lowsuper" / "examples" / "quickstart.ini").read_text().splitlines()
    settings = [f"    {line}" for line in lines if line and not line.startswith(";")]
    assert "\n".join(settings) in (ROOT / "README.rst").read_text(encoding="utf-8")
