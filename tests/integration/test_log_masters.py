"""Logs of daemons under masters that drop privileges or live in a jail, and lines as JSON."""

from __future__ import annotations

import json

import pytest
from jails import make_root
from masters import needs_root, status_of, wait_gone, wait_text
from test_logger import find_logger, wait_until

pytestmark = needs_root

SAY = "sh -c 'echo said; exec sleep 1000'"


def test_master_that_dropped_its_privileges_rotates_as_that_user(open_masters):
    directory = open_masters.directory
    state = directory / "state"
    master = open_masters.start(
        f"uid = www-data\ngid = www-data\nstate-dir = {state}\n"
        f"attach-daemon2 = name=web,cmd={SAY},log={directory}/web.log,log_maxsize=1M\n"
    )
    wait_until(lambda: (directory / "web.log").read_text() == "said\n", "nothing was written")
    pid = wait_until(lambda: find_logger(directory), "no log process")
    status = status_of(pid)
    assert status["Uid"].split() == ["33"] * 4
    assert int(status["CapEff"], 16) == 0
    assert (directory / "web.log").stat().st_uid == 33
    assert master.stop() == 0
    wait_gone(pid)


def test_log_of_a_jailed_daemon_is_in_the_jail(masters, tmp_path):
    root = make_root(tmp_path / "root")
    master = masters.start(
        f"namespace = {root}\nattach-daemon2 = name=web,cmd={SAY},log=/tmp/log\n"
    )
    wait_text(root / "tmp" / "log", "^said\n$")
    assert master.stop() == 0


@pytest.mark.parametrize(
    ("keys", "key"), [("log=ring", "log"), ("log=/x,log_backups=1", "log_backups")]
)
def test_rotation_and_rings_in_a_jail_are_refused(masters, tmp_path, keys, key):
    root = make_root(tmp_path / "root")
    master = masters.begin(f"namespace = {root}\nattach-daemon2 = name=web,cmd=true,{keys}\n")
    master.wait_line(f"web: {key}=.*cannot be had in a jail")
    assert master.wait() == 78


def test_output_to_the_masters_own(masters):
    master = masters.start(
        "attach-daemon2 = name=one,cmd=sh -c 'echo to-stdout >&2; exec sleep 100',log=stdout\n"
        "attach-daemon2 = name=two,cmd=sh -c 'echo unheard; exec sleep 100',log=null\n"
    )
    master.wait_output("to-stdout")
    assert master.stop() == 0
    master.expect_silence("unheard")


def test_lines_as_json(masters):
    master = masters.begin("log-format = json\nattach-daemon2 = name=web,cmd=sleep 1000\n")
    master.wait_output('"event":"AllStarted"')
    found = [json.loads(line) for line in master.lines]
    started = next(each for each in found if each.get("event") == "DaemonStarted")
    assert started["daemon"] == "web"
    assert started["message"].startswith("web: started, pid ")
    assert started["pid"] == master.pid
    assert started["time"].endswith("Z")
    assert master.stop() == 0
