"""The check at the end of all tests: it sees what a test leaves behind."""

import os
import subprocess
from zlib import crc32

import pytest
from leftovers import Snapshot, is_abandoned
from masters import (
    Masters,
    find_program,
    has_cgroups,
    is_alive,
    kill_all,
    need,
    needs_root,
    own_cgroup,
    wait_gone,
)

from lowsuper.kernel import native


@pytest.fixture
def snapshot(tmp_path):
    native.set_child_subreaper()
    yield Snapshot(tmp_path)
    native.set_child_subreaper(False)


def test_nothing_is_found_when_nothing_was_left(snapshot):
    assert snapshot.compare() == []


def test_orphan_is_found(snapshot):
    shell = subprocess.run(
        ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"],
        capture_output=True,
        check=True,
        text=True,
    )
    pid = int(shell.stdout)
    (problem,) = snapshot.compare(patience=0.1)
    assert f"process {pid}" in problem
    wait_gone(pid)  # the check has killed it


@needs_root
@pytest.mark.usefixtures("own_mounts")
def test_mount_is_found(snapshot, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        (problem,) = snapshot.compare()
        assert problem.startswith("mount ")
        assert str(tmp_path) in problem
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert snapshot.compare() == []


@needs_root
def test_namespace_is_found(snapshot):
    with subprocess.Popen(
        [find_program("unshare"), "--uts", "--ipc", "sh", "-c", "echo up; exec sleep 1000"],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline() == b"up\n"
            snapshot.children.add(process.pid)
            problems = snapshot.compare()
            assert len(problems) == 2
            assert all(problem.startswith("namespace ") for problem in problems)
        finally:
            kill_all([process.pid])


def test_cgroup_is_found(snapshot):
    need(has_cgroups(), "cgroup v2 that can be written")
    path = own_cgroup() / f"lowsuper-left-{os.getpid()}"
    path.mkdir()
    try:
        assert is_abandoned(path)
        assert f"cgroup {path}" in snapshot.compare(patience=0.1)
    finally:
        path.rmdir()
    assert not is_abandoned(path)


@pytest.fixture
def survived(tmp_path):
    """Return masters that allow survivors, and what starts one in a leaf of their cgroup."""
    need(has_cgroups(), "cgroup v2 that can be written")
    native.set_child_subreaper()
    found = Masters(tmp_path)
    found.allow_survivors()
    config = found.write("")

    def start(leaf):
        path = own_cgroup() / f"lowsuper-test-{crc32(os.fsencode(config)):08x}" / leaf
        path.mkdir(parents=True)
        script = 'echo 0 >"$0"/cgroup.procs; env -i setsid sleep 1000 >/dev/null 2>&1 & echo $!'
        shell = subprocess.run(
            ["sh", "-c", script, path], capture_output=True, check=True, text=True
        )
        return int(shell.stdout)

    yield found, start
    native.set_child_subreaper(False)


def test_survivor_that_was_allowed_is_ended_with_the_test(survived):
    masters, start = survived
    pid = start("smart/a.1")
    assert masters.survivors() == {pid}
    masters.close()
    assert not is_alive(pid)
    assert not masters.cgroups()


def test_survivor_that_should_have_died_is_found_all_the_same(survived):
    masters, start = survived
    pid = start("dumb/a.1")
    masters.patience = 0.1
    with pytest.raises(AssertionError, match=f"outlives its master: process {pid} "):
        masters.close()
    assert not is_alive(pid)
    assert not masters.cgroups()
