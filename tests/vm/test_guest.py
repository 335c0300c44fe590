"""The machines themselves: they boot, tell results, run lowsuper, and end when they must."""

from __future__ import annotations

import pytest


def test_guest_runs_a_master_and_powers_off(boot):
    guest = boot("smoke.py", "one", "two words")
    assert guest.wait("arguments") == {"arguments": ["one", "two words"]}
    guest.send(question="how is it?")
    results = guest.finish()
    assert results["heard"] == {"question": "how is it?"}
    assert results["code"] == 0
    assert "memory" in results["controllers"]
    assert results["interfaces"] == ["lo"]
    guest.wait_off()


def test_guest_whose_script_fails_is_told_apart_from_one_that_ends_well(boot):
    guest = boot("import sys\nsys.exit('no good')\n")
    with pytest.raises(AssertionError, match=r"(?s)ended with 1:.*no good"):
        guest.finish()


def test_guest_that_says_nothing_is_given_up(boot):
    guest = boot("import time\ntime.sleep(3600)\n")
    guest.wait("booted")
    with pytest.raises(AssertionError, match="too slow"):
        guest.wait("anything", 0.2)


def test_guest_gets_files_modules_and_the_power_button(boot):
    script = """import inside, os
with open("/etc/given") as file:
    given = file.read()
with open("/sys/class/watchdog/watchdog0/identity") as file:
    inside.tell(given=given, watchdog=file.read().strip(), mode=os.stat("/srv/run").st_mode & 0o111)
inside.hear()
"""
    files = {"/etc/given": "a text", "/srv/run": "#!/bin/sh\n"}
    guest = boot(script, files=files, modules=["softdog"])
    assert guest.wait("given") == {
        "given": "a text",
        "watchdog": "Software Watchdog",
        "mode": 0o111,
    }
    assert guest.command("query-status")["running"] is True
    guest.command("system_reset")  # with -no-reboot that is the end
    guest.wait_off()
