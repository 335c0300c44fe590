"""Whatever a master in a jail is asked to do, it imports nothing there any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from jails import Tampered, make_root
from masters import RUNTIME, free_port, needs_root

pytestmark = needs_root

RECORD = """
import sys
from lowsuper.kernel import jail

class Recorder:
    def find_spec(self, name, path=None, target=None):
        print("ASKED FOR", name, flush=True)

original = jail.seal

def seal():
    original()
    sys.meta_path.append(Recorder())
    print("SEALED", flush=True)

jail.seal = seal
"""


@pytest.fixture
def root(tmp_path):
    """Return a root file system."""
    path = make_root(tmp_path / "root")
    (path / "dev").mkdir()
    return path


def begin(masters, lines):
    path = masters.write("\n".join(lines) + "\n")
    master = masters.adopt(Tampered(RECORD, str(path), cwd=masters.directory))
    master.wait_output("SEALED")
    return master


def ask(masters, *words):
    """Run a verb of the command line; return what it says."""
    made = subprocess.run(
        [sys.executable, "-m", "lowsuper", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
        env={**os.environ, RUNTIME: f"{masters.directory}/.run"},
    )
    return made.stdout + made.stderr


@pytest.mark.parametrize("way", ["namespace", "chroot", "pivot-root"])
def test_logs_readiness_and_policies(masters, root, way):
    port = free_port()
    master = begin(
        masters,
        [
            f"{way} = {root}",
            "attach-daemon2 = name=a,cmd=sh -c 'echo a; exec sleep 1000',log=/tmp/a.log",
            "attach-daemon2 = name=b,cmd=sh -c 'touch /tmp/b; exec sleep 1000',ready=file:/tmp/b",
            "attach-daemon2 = name=c,cmd=sleep 1000,ready=exec:true,requires=b",
            f"attach-daemon2 = name=d,cmd=sleep 1000,ready=tcp:127.0.0.1:{port},start_timeout=1",
            "attach-daemon2 = name=e,cmd=sh -c 'exit 1',restart=on-failure,max_restarts=1/60s",
            "attach-daemon2 = name=f,cmd=true,type=oneshot",
            "attach-daemon2 = name=g,cmd=sleep 1000,ready=notify,start_timeout=1,watchdog=1",
            "attach-daemon2 = name=h,cmd=sh -c 'echo h; exec sleep 1000',log=null",
        ],
    )
    master.wait_lines(" d: .*", " e: .*", " g: .*")
    master.signal(signal.SIGUSR1)
    master.wait_line(" a: .*")
    for words in (
        ("status",), ("status", "a"), ("why", "e"), ("logs", "h"), ("logs", "a"), ("restart", "a"),
        ("signal", "USR1", "b"), ("stop", "b"), ("start", "b"), ("apply",),
    ):  # fmt: skip
        ask(masters, *words)
    master.wait_line(" a: restart: ")
    assert master.stop() == 0
    master.expect_silence("ASKED FOR")


@pytest.mark.parametrize(
    "line",
    [
        "cap = chown,kill,setuid,setgid,sys_admin",
        "log-format = json",
        "uid = web",
        "hook-as-user-atexit = print:over",
        "safe-pidfile = /tmp/safe.pid",
        "notify-ready = true",
    ],
)
def test_options_of_the_master(masters, root, line):
    master = begin(masters, [f"namespace = {root}", line, "attach-daemon = sleep 1000"])
    if line == "log-format = json":
        master.wait_output("ready: ")
    else:
        master.wait_ready()
    master.signal(signal.SIGUSR1)
    ask(masters, "status")
    assert master.stop() == 0
    master.expect_silence("ASKED FOR")
