"""The option `cap`: what the master and its daemons may do, as another user and as root."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from jails import Tampered, find_first, make_root
from masters import children_of, need, needs_root

from lowsuper.units import CAPABILITIES

pytestmark = needs_root

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
LACK = (
    "import prctl; prctl.cap_effective.drop(prctl.CAP_SYS_BOOT)"
    "; prctl.cap_permitted.drop(prctl.CAP_SYS_BOOT)"
)
SHOW = "grep Cap /proc/self/status; echo over"


def text_of(*lines):
    return "\n".join([*lines, ""])


def sets_of(text):
    """Return the names of the capabilities in each of the five sets."""
    found = {}
    for name, digits in re.findall(r"^(Cap\w+):\s*([0-9a-f]+)$", text, re.MULTILINE):
        number = int(digits, 16)
        found[name] = {cap for at, cap in enumerate(CAPABILITIES) if number >> at & 1}
    return found


def sets_of_process(pid):
    return sets_of(Path(f"/proc/{pid}/status").read_text())


BIND = (
    "perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 0);"
    ' bind(S, sockaddr_in(80, INADDR_ANY)) or die "$!\\n"; print "BOUND\\n"\''
)


@pytest.mark.parametrize("jail", ["unshare = net", ""])
def test_daemon_of_another_user_keeps_them(masters, jail):
    master = masters.start(
        text_of(
            jail,
            "uid = nobody",
            "cap = net_bind_service,CAP_KILL",
            f"exec-as-root = {SHOW.replace('over', 'as root')}",
            f"attach-daemon = sh -c '{SHOW}; exec sleep 1000'",
        )
    )
    master.wait_output("^over$")
    before, after = master.text.split("\nas root\n")
    assert "sys_admin" in sets_of(before)["CapEff"]
    kept = {"net_bind_service", "kill"}
    assert sets_of(after) == dict.fromkeys(SETS, kept)
    (pid,) = children_of(master.pid) if jail else [master.pid]
    assert sets_of_process(pid) == dict.fromkeys(SETS, kept)
    assert os.stat(f"/proc/{pid}").st_uid == 65534
    assert master.stop() == 0


@pytest.mark.parametrize(
    ("line", "code"), [("cap = net_bind_service", 0), ("cap = none", 13), ("", 13)]
)
def test_nobody_binds_a_low_port_with_the_capability_alone(masters, line, code):
    need(os.path.exists("/usr/bin/perl"), "perl")
    master = masters.begin(
        text_of("unshare = net", "uid = nobody", line, f"attach-control-daemon = {BIND}")
    )
    assert master.wait() == code
    assert ("BOUND" in master.text) == (code == 0)
    assert ("Permission denied" in master.text) == (code != 0)


def test_root_keeps_only_them_and_gets_none_back_by_an_exec(masters):
    master = masters.start(
        text_of("cap = chown,kill", f"attach-daemon = sh -c '{SHOW}; exec sleep 1000'")
    )
    master.wait_output("^over$")
    assert sets_of(master.text) == dict.fromkeys(SETS, frozenset({"chown", "kill"}))
    assert master.stop() == 0


def test_daemons_of_a_master_that_stays_root_have_them_by_default(masters):
    show = f"sh -c '{SHOW}; exec sleep 1000'"
    master = masters.start(
        text_of(
            "master-as-root = true",
            "uid = nobody",
            "cap = chown",
            f"attach-daemon2 = name=a,cmd={show}",
        )
    )
    master.wait_output("^over$")
    assert sets_of(master.text) == dict.fromkeys(SETS, frozenset({"chown"}))
    assert "sys_admin" in sets_of_process(master.pid)["CapEff"]
    assert master.stop() == 0


def test_master_in_a_jail_keeps_them(masters, tmp_path):
    root = make_root(tmp_path / "root")
    master = masters.start(
        text_of(f"namespace = {root}", "uid = web", "cap = kill", "attach-daemon = sleep 1000")
    )
    assert sets_of_process(find_first(master)) == dict.fromkeys(SETS, frozenset({"kill"}))
    assert master.stop() == 0


def test_kill_of_such_a_master_leaves_nothing(masters):
    deep = "attach-daemon = sh -c 'trap \"\" TERM; (sleep 1000 &); echo up; sleep 1000'"
    master = masters.start(text_of("uid = nobody", "cap = net_raw", deep))
    master.wait_output("^up$")
    master.kill()
    master.wait_family_gone()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ("cap = net_bind", "attach-daemon = x"),
            "no capability net_bind; did you mean net_",
        ),
        (("cap =", "attach-daemon = x"), "none keeps no capability"),
        (
            ("cap = kill", "attach-daemon2 = cmd=x,uid=1,gid=1"),
            "does not keep setuid, setgid, which",
        ),
        (("cap = kill", "attach-daemon2 = cmd=x,ns_pid=true"), "does not keep sys_admin, which it"),
        (("cap = kill", "attach-daemon2 = cmd=x,caps=chown"), "does not keep setpcap, chown"),
    ],
)
def test_bad_configuration_says_what_is_wrong(masters, lines, reason):
    master = masters.begin(text_of(*lines))
    master.wait_line(reason)
    assert master.wait() == 78


def test_check_tells_of_capabilities_that_there_are_not(masters):
    daemon = "attach-daemon2 = cmd=sleep 9,caps=sys_boot"
    path = masters.write(text_of("cap = sys_boot,setpcap", daemon))
    master = masters.adopt(Tampered(LACK, "check", str(path), cwd=masters.directory))
    assert master.wait() == 78
    assert master.text.count("does not have sys_boot; leave it out") == 2


def test_capability_that_we_lack_ourselves_is_refused(masters):
    path = masters.write(text_of("cap = sys_boot,chown", "attach-daemon = sleep 1000"))
    master = masters.adopt(Tampered(LACK, str(path), cwd=masters.directory))
    master.wait_line("cap=.*: this kernel, or this container, does not have sys_boot; leave it out")
    assert master.wait() == 78
