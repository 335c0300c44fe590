"""A master that has nothing to do does nothing, whatever became of its smart daemons."""

from __future__ import annotations

import select
import time

import pytest
from masters import DEADLINE, RUNGS, rung_options, status_of
from smart_tools import SELFD, SOLE

SWITCHES = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")


def settle(master):
    """Wait until the master sleeps and has nothing left to do."""
    end = time.monotonic() + DEADLINE
    seen = None
    while time.monotonic() < end:
        status = status_of(master.pid)
        now = [status[kind] for kind in SWITCHES]
        if status["State"].startswith("S") and now == seen:
            return
        seen = now
        master.drain()
        select.select([], [], [], 0.2)
    raise AssertionError(f"it does not come to rest:\n{master.text}")


def expect_rest(master):
    settle(master)
    before = status_of(master.pid)
    select.select([], [], [], 1.0)  # this wait is the measurement
    after = status_of(master.pid)
    assert [after[kind] for kind in SWITCHES] == [before[kind] for kind in SWITCHES]


@pytest.mark.parametrize("rung", RUNGS)
def test_master_of_smart_daemons_does_not_wake_up(masters, rung):
    """Launched and adopted, in the foreground and the background; a plain one in it too."""
    masters.allow_survivors()
    place = masters.directory
    keys = f",{RUNGS[rung]}" if RUNGS[rung] else ""
    text = (
        rung_options(rung)
        + "state-dir = {T}/state\n"
        + f"attach-daemon2 = name=self,cmd={SELFD} {place}/self.pid,pidfile={place}/self.pid"
        + f"{keys}\n"
        + f"attach-daemon2 = name=fore,cmd={SOLE} {place}/fore,pidfile={place}/fore.pid,daemonize"
        + f"{keys}\nattach-daemon2 = cmd={{D}}/daemonizes.sh,name=plain{keys}\n"
    )
    master = masters.begin(text)
    master.wait_lines("plain: .* into the background", "lowsuper: ready: ")
    master.wait_output("settled daemonizes")
    expect_rest(master)
    assert master.stop() == 0
    master = masters.start(text)
    assert master.has_said("lowsuper: self: found running")
    assert master.has_said("lowsuper: fore: found running")
    master.wait_output("settled daemonizes")
    expect_rest(master)
    assert master.stop() == 0
