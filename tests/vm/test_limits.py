"""Limits of cgroups, where there are controllers: in a guest. See scenarios/limits.py."""

from __future__ import annotations

import re

import pytest

M = 1 << 20

FIRST = ("in_the_root", "in_a_cgroup", "systemd", "jail")
SECOND = ("refused", "smart", "option", "dropped")
"""What one guest goes through after the other: see scenarios/limits.py."""

HOG = """import os, sys
if sys.argv[1:]:  # a FIFO: grow when somebody writes to it
    if not os.path.exists(sys.argv[1]):
        os.mkfifo(sys.argv[1])
    open(sys.argv[1]).read()
kept = []
while True:
    kept.append(bytearray(b"x" * (1 << 20)))
"""
BOMB = """import os, signal
count = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError as error:
    print(f"bomb stopped at {count}: {error.strerror}", flush=True)
signal.pause()
"""
FILES = {"/srv/hog.py": HOG, "/srv/bomb.py": BOMB}


@pytest.fixture(scope="module")
def results(run_guest):
    """What one guest has told that went through these parts of the scenario."""
    done = {}

    def run(*parts):
        if parts not in done:
            try:
                found = run_guest("limits.py", *parts, files=FILES, append="cgroup_no_v1=all")
            except AssertionError as error:  # which another guest would not end better
                found = error
            done[parts] = found
        if isinstance(done[parts], AssertionError):
            raise done[parts]
        return done[parts]

    return run


def test_hog_and_fork_bomb_harm_only_themselves(results):
    found = results(*FIRST)
    assert found["calm"] is True
    assert found["files"] == ["50000 100000", "20", str(8 * M), "0", "max"]
    assert found["own"] == "/sys/fs/cgroup"  # which may have processes: nobody moves
    assert (found["code"], found["left"]) == (0, [])


def test_master_moves_into_a_leaf_and_goes_back(results):
    found = results(*FIRST)
    assert re.fullmatch(r"lowsuper-boxed-[0-9a-f]{8}/master", found["boxed"])
    assert sorted(found["guard"]) == ["lowsuper", "lowsuper-guard"]
    assert (found["box_code"], found["box_left"]) == (0, [[], "", ""])
    assert found["box_again"] == 0


def test_daemon_of_a_pid_namespace_has_limits_too(results):
    found = results(*FIRST)
    assert found["inner"] == ["inner.1", "9"]


def test_reload_brings_other_limits_to_the_next_instance(results):
    found = results(*FIRST)
    assert found["reloaded"] == [True, str(48 * M)]
    assert found["gone"] is True


def test_limit_that_cannot_be_had_says_which_and_the_way_out(results):
    found = results(*SECOND)
    limit = rf"web: cgroup memory\.max = {24 * M} in \S+/dumb/web\.\d: "
    assert re.match(
        limit + r"Device or resource busy \(write \+memory to /sys/fs/cgroup/crowd/cgroup\."
        rf"subtree_control: {found['intruder']} \(\w+\) in /sys/fs/cgroup/crowd would be in the "
        r"way: start lowsuper in a cgroup of its own.*\); next try in ",
        found["crowd"],
    ), found["crowd"]
    assert found["crowd_own"] == "/sys/fs/cgroup/crowd"
    assert (found["crowd_code"], found["crowd_left"]) == (0, [[], "", ""])
    above = "/sys/fs/cgroup/above"
    assert re.match(
        limit + rf"No such file or directory \(write \+memory to {above}/below/cgroup\."
        rf"subtree_control: {above}/cgroup\.subtree_control does not pass memory on: "
        rf"echo \+memory > {above}/cgroup\.subtree_control\)",
        found["below"],
    ), found["below"]
    assert re.match(
        r"web: cgroup cpuset\.cpus = 77 in \S+/dumb/web\.1: (Num|Inv)", found["value"]
    ), found["value"]
    assert "cgroup io.max = 1:2:3 nonsense=1 in " in found["nonsense"]
    assert (found["below_code"], found["value_code"], found["nonsense_code"]) == (0, 0, 0)


def test_smart_daemon_keeps_its_limits_under_the_next_master(results):
    found = results(*SECOND)
    assert found["smart_code"] == 0
    assert found["kept"] == [str(24 * M), "9"]
    assert found["found"] == ["db cgroup", "in pidns"]
    assert found["still"] == found["kept"]
    assert found["same"] == [True, True]
    assert found["next"] == [str(48 * M)]


def test_master_enters_the_cgroup_of_the_option(results):
    found = results(*SECOND)
    assert found["place"] == [str(200 * M), "64"]
    assert found["plain"] == "/sys/fs/cgroup/place"
    assert (found["plain_code"], found["place_left"]) == (0, False)


def test_masters_with_limits_share_a_cgroup(results):
    found = results(*SECOND)
    assert found["names"] == [
        "lowsuper-first/master",
        "lowsuper-first/dumb/web.1",
        "lowsuper-second/master",
    ]
    assert found["changed"] == [str(201 * M)]
    assert found["refusal"].startswith("no reload moves the master to another cgroup")
    assert (found["codes"], found["place_gone"]) == ([0, 0], True)


def test_wrong_cgroup_is_an_error_of_the_start(results):
    found = results(*SECOND)
    where = "it is not in a cgroup hierarchy; version 2 is mounted on /sys/fs/cgroup"
    assert found["wrong"] == f"cgroup /tmp/x: Operation not supported; {where}"
    assert re.search("No such file or directory; make the one above it first", found["deep"])
    assert (found["wrong_code"], found["deep_code"]) == (125, 125)


def test_master_that_has_become_a_user_sets_limits(results):
    assert results(*SECOND)["dropped_code"] == 0


def test_what_systemd_has_not_delegated_is_left_alone(results):
    found = results(*FIRST)
    assert re.match(
        rf"web: cgroup memory\.max = {24 * M} in \S+/dumb/web\.1: Operation not permitted \(write "
        r"\+memory to /sys/fs/cgroup/unit\.service/cgroup\.subtree_control: .*set Delegate=yes in "
        r"the unit, or start it with systemd-run --scope -p Delegate=yes",
        found["unit"],
    ), found["unit"]
    assert found["unit_own"] == "/sys/fs/cgroup/unit.service"
    assert (found["delegated"], found["delegated_code"]) == ([str(24 * M)], 0)


def test_master_in_a_subgroup_of_its_unit_stays_there(results):
    found = results(*FIRST)
    assert found["subgroup"] == ["main", "unit.service"]
    assert (found["subgroup_code"], found["subgroup_left"]) == (0, ["main"])


def test_master_of_a_jail_enters_its_cgroup_outside(results):
    found = results(*FIRST)
    assert found["jail"] == ["jail", "jail", "/srv/jail"]
    assert found["pids"] == ["50"]
    assert (found["jail_code"], found["jail_left"], found["mounts"]) == (0, False, True)
