"""Hooks outside and inside a jail, whose root has neither Python nor lowsuper."""

from __future__ import annotations

import os
import signal

import pytest
from jails import make_root, read_mounts
from masters import needs_root, wait_text

pytestmark = [needs_root, pytest.mark.usefixtures("own_mounts")]
ONE = "attach-daemon2 = cmd=sleep 1000,name=one\n"


@pytest.fixture
def root(tmp_path):
    """A root for a jail."""
    return make_root(tmp_path / "root")


def test_phases_come_in_order_on_their_side_of_the_wall(masters, root):
    master = masters.start(
        f"namespace = {root}:testns\n"
        + "".join(
            f"exec-{phase} = echo {phase} $(hostname)\n"
            for phase in ("as-user", "as-root", "in-jail", "pre-jail", "asap")
        )
        + ONE
    )
    said = [line.split()[:2] for line in master.lines if "lowsuper" not in line]
    here = os.uname().nodename
    assert said == [
        ["asap", here],
        ["pre-jail", here],
        ["in-jail", "testns"],
        ["as-root", "testns"],
        ["as-user", "testns"],
    ]
    assert master.stop() == 0


def test_deeds_are_done_in_the_jail(masters, root):
    before = read_mounts()
    master = masters.start(
        f"namespace = {root}\n"
        "hook-pre-jail = create:{T}/outside\n"
        "hook-in-jail = mkdir:/new\n"
        "mount-in-jail = tmpfs none /new defaults size=1m\n"
        "hook-as-root = write:/new/text a text\n"
        "hook-as-root = chown:/new/text web logs\n"
        "hook-as-root = chmod:/new/text 640\n"
        "hook-as-root = cd:/new\n"
        "hook-as-root = putenv:COLOUR=red\n"
        "exec-as-root = ls -ln text; cat text; echo; echo $COLOUR\n" + ONE
    )
    master.wait_output(r"^-rw-r----- +1 1234 +77 ")
    master.wait_output("^a text$")
    master.wait_output("^red$")
    assert (root / "new").is_dir()
    assert not list((root / "new").iterdir())
    assert (masters.directory / "outside").exists()
    assert read_mounts() == before
    assert master.stop() == 0
    assert read_mounts() == before


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("unlink:/no", "unlink /no: No such file or directory"),
        ("mount:nofs none /tmp", "mount /tmp: No such device"),
        ("chown:/tmp nobody logs", "nobody: there is no user of that name"),
    ],
)
def test_deed_that_fails_in_the_jail_says_why(masters, root, deed, said):
    master = masters.begin(f"namespace = {root}\nhook-as-root = {deed}\n{ONE}")
    assert master.wait() == 1
    assert master.has_said(f"hook-as-root: {deed}: {said}.*; giving up")


def test_touch_hook_watches_in_the_jail(masters, root):
    (root / "tmp" / "touched").touch()
    master = masters.start(
        f"namespace = {root}\nhook-touch = /tmp/touched appendn:/tmp/log hook\n{ONE}"
    )
    (root / "tmp" / "touched").touch()
    wait_text(root / "tmp" / "log", "hook\n")
    assert master.stop() == 0


def test_deed_that_blocks_in_the_jail_ends_with_it(masters, root):
    os.mkfifo(root / "fifo")
    master = masters.begin(f"namespace = {root}\nhook-as-root = write:/fifo x\n{ONE}")
    master.wait_line("hook-as-root: ")
    master.signal(signal.SIGTERM)
    assert master.wait() == 0
    assert not master.family()
