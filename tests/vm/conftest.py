"""What the tests in virtual machines share: `boot` starts one."""

from __future__ import annotations

import os

import pytest
from guest import Guest, Images, MissingError


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The kernel and the root file system; where they cannot be had the test is skipped."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which all workers share
    try:
        return Images(base / "vm")
    except MissingError as missing:
        if os.environ.get("LOWSUPER_TIER") == "vm":
            pytest.fail(f"needs: {missing}")
        pytest.skip(f"needs: {missing}")


def make_boot(images, directory):
    """Return what boots guests, and those that it booted."""
    guests = []

    def boot(script, *arguments, **keywords):
        place = directory / f"guest-{len(guests)}"
        guests.append(Guest(images, place, script, *arguments, **keywords))
        return guests[-1]

    return boot, guests


@pytest.fixture
def boot(images, tmp_path):
    """Boots guests, and cuts their power at the end of the test: see `guest.Guest`."""
    start, guests = make_boot(images, tmp_path)
    yield start
    for guest in guests:
        guest.close()


@pytest.fixture(scope="module")
def run_guest(images, tmp_path_factory):
    """Runs a guest to its end and returns its results, which several tests may look at."""

    def run(*arguments, **keywords):
        start, guests = make_boot(images, tmp_path_factory.mktemp("vm"))
        try:
            return start(*arguments, **keywords).finish()
        finally:
            for guest in guests:
                guest.close()

    return run
