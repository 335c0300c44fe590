"""The verbs as a user types them, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_master import FakeMaster, daemon, ended, exit_of, refuse
from figure_status import measure_status
from shell import DEADLINE, PROGRAM, Shell


@pytest.fixture
def runtime(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def shell(runtime):
    return Shell(runtime)


@pytest.fixture
def fake(runtime):
    made = FakeMaster(runtime)
    made.add(
        daemon("web"),
        ended(
            "db",
            state="backoff",
            next_try=time.monotonic() + 1000,
            restarts=12,
            exit=exit_of(3),
            words="waiting before the next try",
        ),
        ended("old"),
    )
    yield made
    made.close()


# status


def test_status_is_a_table(fake, shell):
    done = shell.pipe("status")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].split() == [
        *("NAME", "STATE", "PID", "UPTIME", "RESTARTS", "LAST", "EXIT", "DOMAIN", "MEMORY", "NOTE")
    ]
    assert re.match(rf"web +running +{os.getpid()} +3 min 2\d s +0 +- +cgroup +\d+M$", lines[1])
    assert re.match(
        r"db +backoff +- +- +12 +exit 3, [5-9] s ago +- +- +next try in 1\d min", lines[2]
    )
    assert len(lines) == 4


def test_status_in_a_pipe_has_no_colors(fake, shell):
    assert "\x1b" not in shell.pipe("status").stdout
    assert "\x1b[32mrunning" in shell.pipe("status", "--color=always").stdout


def test_status_in_a_terminal_has_colors_unless_not_wanted(fake, shell):
    code, text = shell.show("status")
    assert code == 0
    assert "\x1b[32mrunning\x1b[m" in text
    assert "\x1b" not in shell.show("status", NO_COLOR="1")[1]
    assert "\x1b" not in shell.show("status", "--no-color")[1]


def test_status_in_a_narrow_terminal_fits(fake, shell):
    _, text = shell.show("status", "--no-color", columns=40)
    assert max(map(len, text.splitlines())) == 40


@pytest.mark.parametrize(
    ("names", "code"),
    [(["web"], 0), (["db"], 3), (["web", "old"], 3), (["w*"], 0), (["nope"], 4), ([], 0)],
)
def test_status_of_names_has_the_codes_of_init_scripts(fake, shell, names, code):
    assert shell.pipe("status", *names).returncode == code
    assert shell.pipe("status", "-q", *names).stdout == ""


def test_status_when_dead_with_its_pidfile_is_1(fake, shell, tmp_path):
    pidfile = tmp_path / "db.pid"
    pidfile.touch()
    fake.change("old", pidfile=str(pidfile))
    assert shell.pipe("status", "old").returncode == 1


def test_status_without_a_master_is_4(runtime, shell):
    done = shell.pipe("status")
    assert (done.returncode, done.stderr) == (4, "lowsuper: no master runs\n")
    assert shell.pipe("stop", "web").returncode == 1


def test_status_as_json_has_the_memory_too(fake, shell):
    answer = json.loads(shell.pipe("status", "--json").stdout)
    assert (answer["schema"], answer["ok"]) == (1, True)
    web, db, _ = answer["daemons"]
    assert web["memory"] > 1 << 20
    assert db["memory"] is None
    assert web | {"memory": 0} == fake.daemons["web"] | {"memory": 0}
    assert db["exit"]["code"] == 3


def test_status_sums_the_memory_of_a_leaf(fake, shell, tmp_path):
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getpid()}\n")
    one = read_memory(shell)
    fake.change("web", leaf=str(tmp_path))
    assert read_memory(shell) > 1.5 * one
    (tmp_path / "memory.current").write_text("12345678\n")
    assert read_memory(shell) == 12345678


def read_memory(shell):
    return json.loads(shell.pipe("status", "--json", "web").stdout)["daemons"][0]["memory"]


def test_status_when_master_is_in_a_jail_shows_no_memory_of_others(fake, shell):
    fake.jail = {"root": "/ns"}
    assert json.loads(shell.pipe("status", "--json").stdout)["daemons"][0]["memory"] is None


def test_numbers_of_another_pid_namespace_are_not_looked_up(fake, shell):
    """A process of ours with such a number is another one."""
    for change in ({"jail": True}, {"pid": 1}):
        fake.instance_changes = change
        assert read_memory(shell) is None
        tree = json.loads(shell.pipe("tree", "--json", "web").stdout)["daemons"]
        assert tree == [{"name": "web", "processes": []}]
        words = shell.pipe("tree", "web").stdout
        assert words.startswith("the processes in ")
        assert str(os.getpid()) not in words
    fake.instance_changes = {}
    assert read_memory(shell) > 0


def test_status_with_a_closed_output_ends_quietly(fake, shell):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        done = subprocess.run(
            [*PROGRAM, "status"],
            env=shell.env,
            stdout=write_fd,
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
            check=False,
        )
    finally:
        os.close(write_fd)
    assert (done.returncode, done.stderr) == (141, b"")


def test_status_of_a_name_like_nothing_suggests(fake, shell):
    done = shell.pipe("status", "wev")
    assert done.stderr.endswith("did you mean web?\n")


# status --watch


def test_watch_redraws_when_something_happens_and_asks_only_then(fake, shell):
    with shell.terminal("status", "--watch") as session:
        session.wait_text("3 daemons: 1 running, 1 backoff, 1 stopped")
        fake.wait_asked("events")
        fake.change("old", state="starting")
        session.wait_text("1 running, 1 backoff, 1 starting")
        session.resize(60, 10)
        session.wait_text("1 running, 1 backoff, 1 starting")  # which asks nobody
        assert len(fake.asked("status")) == 2
        session.process.send_signal(signal.SIGINT)
        code, text = session.wait()
    assert code == 0
    assert text.endswith("\x1b[?25h\x1b[?1049l"), "the terminal is as it was"


def test_watch_when_told_to_end_leaves_the_terminal_as_it_was(fake, shell):
    with shell.terminal("status", "-w") as session:
        session.wait_text("3 daemons")
        session.process.send_signal(signal.SIGTERM)
        code, text = session.wait()
    assert (code, text[-14:]) == (0, "\x1b[?25h\x1b[?1049l")


def test_watch_ends_with_the_master(fake, shell):
    with shell.terminal("status", "-w") as session:
        session.wait_text("3 daemons")
        fake.close()
        code, text = session.wait()
    assert code == 1
    assert "the master has ended" in text


def test_watch_in_a_pipe_prints_each_change(fake, shell):
    process = subprocess.Popen(
        [*PROGRAM, "status", "--watch", "--json"], env=shell.env, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert json.loads(process.stdout.readline())["daemons"][2]["state"] == "stopped"
        fake.wait_asked("events")
        fake.change("old", state="running")
        assert json.loads(process.stdout.readline())["daemons"][2]["state"] == "running"
        process.terminate()
    assert process.returncode == 0


# The others that look


def test_list_prints_names(fake, shell):
    assert shell.pipe("list").stdout.split() == ["web", "db", "old"]
    assert shell.pipe("list", "d*").stdout.split() == ["db"]
    assert json.loads(shell.pipe("list", "--json").stdout)["names"] == ["web", "db", "old"]


def test_why_is_one_screen(fake, shell):
    fake.change("db", command="x" * 10)
    done = shell.pipe("why", "db")
    assert "exited with 3 after 12.5 s" in done.stdout
    assert "restart = always" in done.stdout
    assert json.loads(shell.pipe("why", "--json", "db").stdout)["lines"] == ["one", "two"]
    assert shell.pipe("why", "nope").returncode == 5


def test_logs_prints_what_it_wrote(fake, shell):
    assert shell.pipe("logs", "-n", "2", "web").stdout == "line 8\nline 9\n"
    assert len(shell.pipe("logs", "web").stdout.splitlines()) == 10
    assert shell.pipe("logs", "-n", "x", "web").returncode == 2


def test_logs_of_what_cannot_be_read_says_why(fake, shell):
    fake.answers["logs"] = lambda _: refuse("not-possible", "it goes to the master's own output")
    done = shell.pipe("logs", "web")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lowsuper: it goes to the master's own output\n"


def test_logs_follow_until_the_end(fake, shell):
    first = {"schema": 1, "ok": True, "lines": ["a\x1b[2J", "b"]}
    fake.answers["logs"] = lambda _: [
        first,
        {"schema": 1, "line": "c"},
        {"schema": 1, "lines": ["d"]},
    ]
    done = shell.pipe("logs", "-f", "web", "--timeout", "0.5")
    assert done.stdout == "a\x1b[2J\nb\nc\nd\n"
    assert done.returncode == 124
    _, text = shell.show("logs", "-f", "web", "--timeout", "0.5")
    assert text.startswith("a\\x1b[2J\nb\nc\nd\n")


def test_events_are_one_object_a_line(fake, shell):
    process = subprocess.Popen([*PROGRAM, "events"], env=shell.env, stdout=subprocess.PIPE)
    with process:
        fake.wait_asked("events")
        fake.change("web", state="stopped")
        event = json.loads(process.stdout.readline())
        assert (event["event"], event["daemon"]) == ("changed", "web")
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("verb", "names", "code", "words"),
    [
        ("is-active", ["web"], 0, "running\n"),
        ("is-active", ["db"], 3, "backoff\n"),
        ("is-active", ["web", "db"], 3, "running\nbackoff\n"),
        ("is-ready", ["web"], 0, "running\n"),
        ("is-ready", ["old"], 3, "stopped\n"),
        ("is-failed", ["web"], 3, "running\n"),
        ("is-active", ["nope"], 4, ""),
    ],
)
def test_questions_are_answered_by_the_exit_code(fake, shell, verb, names, code, words):
    done = shell.pipe(verb, *names)
    assert (done.returncode, done.stdout) == (code, words)
    assert shell.pipe(verb, "--quiet", *names).stdout == ""


def test_starting_is_not_active(fake, shell):
    fake.change("web", state="starting", ready=False)
    assert shell.pipe("is-active", "web").returncode == 3


def test_failed_is_failed(fake, shell):
    fake.change("db", state="failed")
    assert shell.pipe("is-failed", "db", "web").returncode == 0


def test_wait_ends_when_it_has_come_or_in_time(fake, shell):
    assert shell.pipe("wait", "web").returncode == 0
    done = shell.pipe("wait", "old", "--ready", "--timeout", "0.1")
    assert (done.returncode, done.stdout) == (124, "")
    assert shell.pipe("wait", "old", "--stopped").returncode == 0
    assert shell.pipe("wait", "old", "--stopped", "--ready").returncode == 2
    assert {each["for"] for each in fake.asked("wait")} == {"ready", "stopped"}


def test_instances_lists_masters(fake, shell):
    lines = shell.pipe("instances").stdout.splitlines()
    assert lines[1].split() == ["fake", str(os.getpid()), "running", "/etc/fake.ini"]
    (found,) = json.loads(shell.pipe("instances", "--json").stdout)["instances"]
    assert found["name"] == "fake"


def test_tree_names_the_parent_of_a_zombie(fake, shell):
    code = "import os, sys; os.fork() or os._exit(0); print(flush=True); sys.stdin.read()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        parent.stdout.readline()
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        end = time.monotonic() + DEADLINE
        while " Z " not in Path(f"/proc/{child}/stat").read_text():
            assert time.monotonic() < end
        fake.change("web", pid=parent.pid)
        done = shell.pipe("tree", "web")
        found = json.loads(shell.pipe("tree", "--json", "web").stdout)["daemons"][0]["processes"]
        parent.stdin.close()
    first, second, third = done.stdout.splitlines()
    assert first == "web  running"
    assert second.startswith(f"`- {parent.pid} {sys.executable} -c import os")
    assert re.match(
        rf"   `- {child} .*: zombie, its parent .* \({parent.pid}\) does not wait for it$", third
    )
    assert [each["state"] for each in found][1] == "Z"


# Those that act


def test_start_says_what_came_of_it(fake, shell):
    done = shell.pipe("start", "old")
    assert (done.returncode, done.stdout) == (0, f"old: up, pid {os.getpid()}\n")
    assert shell.pipe("start", "-q", "old").stdout == ""
    answer = json.loads(shell.pipe("start", "--json", "old").stdout)
    assert answer["daemons"][0]["state"] == "running"


def test_start_without_waiting_does_not(fake, shell):
    fake.answers["start"] = lambda _: {"schema": 1, "ok": True, "names": ["old"]}
    done = shell.pipe("start", "--no-block", "old")
    assert (done.returncode, done.stdout) == (0, "old: down\n")


def test_start_in_vain_times_out(fake, shell):
    fake.answers["start"] = lambda _: {
        "schema": 1,
        "ok": True,
        "names": ["old"],
        "runs": {"old": 1},
    }
    done = shell.pipe("start", "old", "--timeout", "0.1")
    assert (done.returncode, done.stderr) == (124, "lowsuper: not ready after 0.1 s: old: down\n")


def test_stop_waits_for_the_end(fake, shell):
    done = shell.pipe("stop", "web")
    assert (done.returncode, done.stdout) == (0, "web: down\n")
    assert fake.asked("wait")[0]["for"] == "stopped"


def test_all_stands_for_all(fake, shell):
    assert shell.pipe("stop", "--all", "--no-block").returncode == 0
    assert fake.asked("stop")[0]["names"] == ["*"]


@pytest.mark.parametrize(
    "words", [["HUP", "web"], ["web", "HUP"], ["-HUP", "web"], ["-sHUP", "web"]]
)
def test_signal_is_sent(fake, shell, words):
    assert shell.pipe("signal", *words).returncode == 0
    assert fake.asked("signal") == [{"do": "signal", "names": ["web"], "signal": "HUP"}]


def test_signal_to_what_does_not_run_is_7(fake, shell):
    fake.answers["signal"] = lambda _: refuse("not-possible", "old does not run")
    assert shell.pipe("signal", "HUP", "old").returncode == 7
    assert shell.pipe("signal", "HUP", "web").returncode == 1
    assert shell.pipe("signal", "NONSENSE", "web").returncode == 2


def test_reload_shows_what_differs_first(fake, shell):
    done = shell.pipe("reload")
    assert done.stdout.splitlines()[0] == "+ new"
    assert [each["do"] for each in fake.requests] == ["diff", "reload"]
    assert shell.pipe("reload", "web").returncode == 0
    assert fake.asked("reload")[1]["names"] == ["web"]


def test_reload_of_a_bad_file_says_what_is_wrong(fake, shell):
    problem = "x.ini:3: web: uid=bogus: there is no user of that name"
    fake.answers |= dict.fromkeys(("diff", "reload"), lambda _: refuse("failed", problem))
    done = shell.pipe("reload")
    assert (done.returncode, done.stderr) == (1, f"lowsuper: {problem}\n")


def test_diff_and_apply_show_what_differs(fake, shell):
    for verb in ("diff", "apply"):
        assert "~ api       command, uid" in shell.pipe(verb).stdout
        assert json.loads(shell.pipe(verb, "--json").stdout)["changes"]["removed"] == ["old"]


def test_adopt_takes_a_name_and_a_pid(fake, shell):
    assert shell.pipe("adopt", "web", "123").returncode == 0
    assert fake.asked("adopt") == [{"do": "adopt", "name": "web", "pid": 123}]
    assert shell.pipe("adopt", "web").returncode == 2


def test_shutdown_gives_up_waiting_in_time_and_says_on_whom(fake, shell):
    waiting = [{"name": "web", "pid": None, "seconds": 3.0, "process_state": "D"}]
    fake.answers["shutdown"] = lambda _: [
        {"schema": 1, "ok": True},
        {"schema": 1, "waiting": waiting},
    ]
    done = shell.pipe("shutdown", "--timeout", "0.5")
    assert done.returncode == 124
    assert done.stdout == "waiting for web, for 3 s: it is in an uninterruptible call\n"
    assert done.stderr.startswith("lowsuper: after 0.5 s: waiting for web")


# What all have


def test_error_as_json_is_an_object(fake, shell):
    done = shell.pipe("why", "nope", "--json")
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["error"], done.stderr) == (False, "unknown-name", "")


def test_no_permission_is_4(fake, shell):
    fake.answers["stop"] = lambda _: refuse("not-permitted", "uid 1 may not ask for stop")
    done = shell.pipe("stop", "web")
    assert (done.returncode, done.stderr) == (4, "lowsuper: uid 1 may not ask for stop\n")


def test_instance_may_stand_before_the_verb(fake, shell):
    assert shell.pipe("-n", "fake", "status", "web").returncode == 0
    done = shell.pipe("-n", "other", "status")
    assert done.returncode == 4
    assert "/etc/fake.ini" in done.stderr


def test_word_that_is_no_verb_gets_a_hint(runtime, shell):
    done = shell.pipe("statsu")
    assert done.returncode == 2
    assert done.stderr == "lowsuper: statsu is neither a verb nor a file; did you mean status?\n"


def test_help_of_a_verb(shell):
    assert shell.pipe("wait", "--help").stdout.startswith("usage: lowsuper wait NAME...")


def test_message_that_would_steer_the_terminal_does_not(fake, shell):
    fake.answers["stop"] = lambda _: refuse("failed", "no\x1b[2J")
    assert shell.pipe("stop", "web").stderr == "lowsuper: no\\x1b[2J\n"


def test_client_loads_nothing_of_the_supervisor(fake, shell):
    code = """
import sys
from lowsuper.cli import main
code = main(["status"])
loaded = {name for name in sys.modules if name.startswith("lowsuper.")}
loaded -= {"lowsuper.ctl", "lowsuper.ctl.show", "lowsuper.ctl.table", "lowsuper.ctl.screen",
    "lowsuper.ctl.procs", "lowsuper.cli", "lowsuper.client", "lowsuper.wire", "lowsuper.errors",
    "lowsuper.record", "lowsuper.units", "lowsuper.kernel", "lowsuper.kernel.instance",
    "lowsuper.kernel.trust"}
assert not loaded, loaded
heavy = {"json", "typing", "dataclasses", "argparse", "re", "enum", "socket", "logging"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=shell.env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_status_of_a_thousand_daemons_is_quick(runtime):
    # The figure is 2.5; `figure_status.py` measures it. Other tests run beside this one.
    nothing, status = measure_status(runtime, PROGRAM, rounds=5)
    assert status < 6 * nothing
