"""Fixtures of the tests with real masters, and the proof at their end that nothing is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import jails
import pytest
from leftovers import Snapshot
from masters import Masters

from lowsuper.kernel import native

NOBODY = 65534


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory):
    """Compare the machine before and after all tests of this process."""
    before = Snapshot(tmp_path_factory.getbasetemp())
    yield
    problems = before.compare()
    assert not problems, "left by the tests:\n" + "\n".join(problems)


@pytest.fixture
def own_mounts():
    """Run the test where nobody else mounts anything; it leaves the mount table as it was."""
    with jails.own_mounts():
        yield


@pytest.fixture
def not_root():
    """Return what makes root an ordinary user for the rest of the test; others are one already."""
    uid, gid = os.geteuid(), os.getegid()

    def become_nobody() -> None:
        if uid == 0:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)

    yield become_nobody
    os.seteuid(uid)
    os.setegid(gid)


@pytest.fixture
def masters(tmp_path):
    """Start masters; see `masters.Masters`."""
    yield from run_masters(tmp_path)


@pytest.fixture
def open_masters():
    """Start masters in a directory that every user can enter and write to."""
    directory = Path(tempfile.mkdtemp(prefix="lowsuper-test-"))
    directory.chmod(0o1777)
    try:
        yield from run_masters(directory)
    finally:
        shutil.rmtree(directory)


def run_masters(directory):
    # What loses its parent becomes our child, and so cannot hide from the checks.
    native.set_child_subreaper()
    found = Masters(directory)
    try:
        yield found
    finally:
        found.close()
        native.set_child_subreaper(False)
