"""celery beat on one node of a legion only, as uWSGI's documentation has it, bf-cbc included."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from masters import DEADLINE, needs_root, wait_gone, wait_text
from wires import Wire

pytestmark = needs_root

TASKS = """\
import celery

app = celery.Celery("tasks", broker="memory://")
app.conf.beat_schedule = {}
"""
LINES = """\
[uwsgi]
master = true
socket = :3031
chdir = {D}
legion-mcast = mylegion 225.1.1.1:9191 {VALOR} bf-cbc:mysecret
legion-smart-attach-daemon = mylegion {P},60 {CELERY} -A tasks beat --pidfile={P}
legion-quorum = mylegion 2
legion-freq = 1
legion-tolerance = 15
reload-mercy = 4
"""


@pytest.fixture
def wire():
    found = Wire(3)
    yield found
    found.close()


def test_celery_beat_runs_on_one_node(wire, masters):
    masters.allow_survivors()
    celery = os.path.join(os.path.dirname(sys.executable), "celery")
    assert os.path.exists(celery), "celery is not installed: pip install .[test]"
    nodes = {}
    for number, place in wire.places.items():
        home = masters.directory / f"home{number}"
        home.mkdir()
        (home / "tasks.py").write_text(TASKS)
        text = LINES.replace("{P}", "{D}/celery-beat.pid").replace("{D}", str(home))
        text = text.replace("{CELERY}", celery).replace("{VALOR}", str(100 - 10 * number))
        nodes[number] = masters.begin(text, name=f"beat{number}.ini", prefix=place.prefix)
    beats = {}
    for number, other in ((1, 2), (2, 3)):
        beats[number] = nodes[number].wait_line("celery: started, pid .*; its pidfile", 90)
        pidfile = Path(f"{masters.directory}/home{number}/celery-beat.pid")
        pid = int(wait_text(pidfile, r"(\d+)", DEADLINE)[1])
        nodes[other].expect_silence("celery: started")
        assert b"beat" in Path(f"/proc/{pid}/cmdline").read_bytes()
        if number == 1:
            assert nodes[1].stop() == 0
        else:
            nodes[2].kill()  # the fence ends the smart daemon
        wait_gone(pid)
    nodes[3].wait_line("legion mylegion: no quorum: 1 node, 2 needed", 60)
