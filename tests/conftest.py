"""What all tests share."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["spawn_fixtures"]


@pytest.fixture(autouse=True)
def no_descriptor_leaks():
    """Every test closes what it opens, and so does what it tests."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    after = set(os.listdir("/proc/self/fd"))
    leaked = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in after - before if is_open(fd)}
    assert not leaked


def is_open(fd: str) -> bool:
    """Tell a descriptor that is open from the one that listed them."""
    return os.path.lexists(f"/proc/self/fd/{fd}")
