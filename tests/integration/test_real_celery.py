"""A celery worker as a smart daemon: it stays in the foreground and writes its pidfile itself.

Its queue is a directory: a broker in memory could not be reached from another process. The worker
takes a message as soon as its file is there, written or not, so the client makes it elsewhere.
"""

import itertools
import os
import sys

import pytest
from masters import wait_text
from real_programs import go_through_all, run_client

TASKS = """\
import os
import pathlib

import celery

HERE = pathlib.Path(__file__).parent
app = celery.Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(HERE / "queue"),
    "data_folder_out": str(HERE / "made"),
    "control_folder": str(HERE / "control"),
    "polling_interval": 0.1,
}


@app.task
def write(path):
    pathlib.Path(path).write_text(f"{os.getpid()} {os.getppid()}\\n")
"""

CLIENT = """\
import sys

import tasks

for line in sys.stdin:
    tasks.write.delay(line.strip())
    for made in (tasks.HERE / "made").iterdir():
        made.rename(tasks.HERE / "queue" / made.name)
"""


@pytest.fixture
def celery():
    path = os.path.join(os.path.dirname(sys.executable), "celery")
    assert os.path.exists(path), "celery is not installed: pip install .[test]"
    return path


@pytest.mark.parametrize("pool", ["solo", "prefork --concurrency 1"])
def test_celery_runs_tasks_before_and_after_its_master_is_replaced(masters, celery, pool):
    masters.allow_survivors()
    directory = masters.directory
    (directory / "tasks.py").write_text(TASKS)
    for name in ("queue", "made", "control"):
        (directory / name).mkdir()
    pidfile = directory / "celery.pid"
    numbers = itertools.count()

    def work():
        """Put a task into the queue and wait until the worker has done it."""
        result = directory / f"result-{next(numbers)}"
        put(result)
        who = wait_text(result, r"^(\d+) (\d+)$", 60)  # its start takes seconds of a processor
        assert pidfile.read_text().strip() in who.groups()

    with run_client(sys.executable, "-c", CLIENT, cwd=directory) as put:
        go_through_all(
            masters,
            f"chdir = {directory}\n"
            f"smart-attach-daemon = {pidfile} {celery} -A tasks worker --pidfile={pidfile}"
            f" --pool {pool}\n",
            name="celery",
            pidfile=pidfile,
            work=work,
        )
