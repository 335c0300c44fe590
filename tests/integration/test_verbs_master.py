"""The verbs against real masters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from masters import NOBODY, RUNTIME, Masters, is_alive, needs_root, put_file, wait_gone
from shell import DEADLINE, PROGRAM, Shell

import lowsuper


@pytest.fixture
def runtime(masters: Masters, monkeypatch):
    directory = masters.directory / ".run"
    monkeypatch.setenv(RUNTIME, str(directory))
    return directory


@pytest.fixture
def shell(runtime):
    return Shell(runtime)


def daemons(*lines: str) -> str:
    return "".join(f"attach-daemon2 = {line}\n" for line in lines)


def test_tour(masters, shell):
    master = masters.start(daemons("name=web,cmd=sleep 1000", "name=db,cmd=sleep 1001"))
    pid = master.pid_of("web")
    lines = shell.pipe("status").stdout.splitlines()
    assert re.match(rf"web +running +{pid} +\d+ s +0 +- +\S+ +[\d.]+[KM]$", lines[1])
    assert shell.pipe("list").stdout.split() == ["web", "db"]
    assert shell.pipe("instances").stdout.splitlines()[1].split()[:2] == ["test", str(master.pid)]

    assert shell.pipe("stop", "web").stdout == "web: down\n"
    assert not is_alive(pid)
    assert shell.pipe("is-active", "web").returncode == 3
    assert shell.pipe("status", "web").returncode == 3

    done = shell.pipe("start", "web")
    new = master.wait_started("web")
    assert (done.returncode, done.stdout) == (0, f"web: up, pid {new}\n")
    assert shell.pipe("status", "web", "db").returncode == 0

    assert shell.pipe("restart", "--all").returncode == 0
    assert not is_alive(new)
    assert shell.pipe("is-ready", "web", "db").stdout == "running\nrunning\n"
    tree = shell.pipe("tree", "w*").stdout.splitlines()
    assert re.match(r"`- \d+ sleep 1000 ", tree[1])

    assert shell.pipe("shutdown").returncode == 0
    assert master.wait() == 0
    assert shell.pipe("status").returncode == 4


def test_start_of_a_program_that_is_missing_says_so_at_once(masters, shell):
    masters.start(daemons("name=web,cmd=/nonexistent/web", "name=db,cmd=sleep 1000"))
    done = shell.pipe("start", "web")
    assert done.returncode == 1
    assert "web did not come up: execve /nonexistent/web: No such file" in done.stderr
    text = shell.pipe("why", "web").stdout
    assert "failure      web: execve /nonexistent/web: No such file or directory" in text
    assert "next try     in " in text


def test_start_waits_for_readiness(masters, shell, tmp_path):
    flag = tmp_path / "flag"
    line = f"name=web,cmd=sleep 1000,ready=file:{flag}"
    master = masters.begin(daemons(line))
    master.wait_started("web")
    done = shell.pipe("start", "web", "--timeout", "0.3")
    assert done.returncode == 124
    assert "web: up, not ready" in done.stderr
    process = subprocess.Popen(
        [*PROGRAM, "start", "web"], env=shell.env, stdout=subprocess.PIPE, text=True
    )
    flag.touch()
    assert process.communicate(timeout=DEADLINE)[0].startswith("web: up, pid ")
    assert process.returncode == 0
    assert shell.pipe("status", "web").stdout.splitlines()[1].split()[1] == "ready"


def test_stop_of_a_stubborn_daemon_ends_at_its_deadline(masters, shell):
    masters.start(daemons("name=web,cmd={D}/ignore_term.sh,stop_timeout=1s"))
    done = shell.pipe("stop", "web", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (124, "")
    assert shell.pipe("stop", "web").stdout == "web: down\n"
    assert "SIGKILL" in shell.pipe("status", "web").stdout


def test_shutdown_says_on_whom_it_waits(masters, shell):
    master = masters.start(daemons("name=web,cmd={D}/ignore_term.sh,stop_timeout=2s"))
    done = shell.pipe("shutdown")
    assert done.returncode == 0
    assert re.match(r"waiting for web, pid \d+, for [\d.]+ (ms|s)", done.stdout)
    assert master.wait() == 0


def test_signal_reaches_the_daemon(masters, shell):
    master = masters.start(daemons("name=web,cmd=sleep 1000", "name=db,cmd=sleep 1000"))
    assert shell.pipe("stop", "db").returncode == 0
    assert shell.pipe("signal", "KILL", "web").returncode == 0
    master.wait_line("web: pid .* was killed by SIGKILL")
    assert shell.pipe("wait", "web", "--running").returncode == 0
    done = shell.pipe("signal", "HUP", "db")
    assert (done.returncode, done.stderr) == (7, "lowsuper: db does not run: down\n")


def test_wait_exited_ends_with_the_daemon(masters, shell):
    master = masters.start(daemons("name=web,cmd=sleep 1000"))
    with lowsuper.connect() as client:
        process = subprocess.Popen([*PROGRAM, "wait", "web", "--exited"], env=shell.env)
        # Nothing tells that somebody waits; it does not end by itself.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        client.signal("web", "TERM")
    assert process.wait(DEADLINE) == 0
    master.wait_line("web: pid .* was killed by SIGTERM")


def test_reload_and_apply_bring_in_a_changed_file(masters, shell):
    first = daemons("name=web,cmd=sleep 1000", "name=db,cmd=sleep 1001")
    master = masters.start(first)
    web = master.pid_of("web")
    assert shell.pipe("diff").stdout == "nothing differs\n"
    masters.write(
        daemons("name=web,cmd=sleep 1000", "name=db,cmd=sleep 1002", "name=new,cmd=sleep 9")
    )
    assert shell.pipe("diff").stdout.splitlines() == ["+ new", "~ db   command"]
    assert shell.pipe("apply").stdout.splitlines() == ["+ new", "~ db   command"]
    assert shell.pipe("wait", "--all", "--running").returncode == 0
    assert master.pid_of("web") == web
    masters.write("attach-daemon2 = name=web,cmd=sleep 1000,bogus=1\n")
    done = shell.pipe("reload")
    assert done.returncode == 1
    assert "bogus" in done.stderr
    masters.write(first)
    done = shell.pipe("reload")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "- new")
    wait_gone(web)


def test_logs_come_from_the_file(masters, shell, tmp_path):
    script = tmp_path / "talk.sh"
    put_file(script, "#!/bin/sh\necho one; echo two; read x < $1; echo three; exec sleep 1000\n")
    script.chmod(0o755)
    os.mkfifo(tmp_path / "go")
    log = tmp_path / "web.log"
    masters.start(daemons(f"name=web,cmd={script} {tmp_path}/go,log={log}"))
    process = subprocess.Popen(
        [*PROGRAM, "logs", "-f", "web"], env=shell.env, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert [process.stdout.readline() for _ in range(2)] == ["one\n", "two\n"]
        (tmp_path / "go").write_text("go\n")
        assert process.stdout.readline() == "three\n"
        process.terminate()
    assert shell.pipe("logs", "-n", "1", "web").stdout == "three\n"
    assert shell.pipe("why", "web").stdout.endswith("  one\n  two\n  three\n")


def test_events_tell_what_happens(masters, shell):
    masters.start(daemons("name=web,cmd=sleep 1000"))
    with lowsuper.connect() as client:
        events = client.events("web", timeout=DEADLINE)
        client.stop("web")
        told = []
        for event in events:
            told.append(event["event"])
            if event.get("state") == "stopped":
                break
        events.close()
    assert "DaemonGone" in told or "DaemonEnding" in told


def test_watch_follows_a_real_master(masters, shell):
    masters.start(daemons("name=web,cmd=sleep 1000", "name=db,cmd=sleep 1000"))
    with shell.terminal("status", "--watch") as session:
        session.wait_text("2 daemons: 2 running")
        assert shell.pipe("stop", "db").returncode == 0
        session.wait_text("2 daemons: 1 running, 1 stopped")
        assert shell.pipe("shutdown", "-q").returncode == 0
        code, text = session.wait()
    assert code == 1
    assert "the master has ended" in text


def test_python_client_steers_a_master(masters, runtime):
    master = masters.start(daemons("name=web,cmd=sleep 1000"))
    with lowsuper.connect(f"{masters.directory}/test.ini") as client:
        assert client.pid == master.pid
        before = client.status()["web"]
        client.restart("web", timeout=DEADLINE)
        after = client.status()["web"]
        assert (before.run + 1, after.restarts >= before.restarts) == (after.run, True)
        client.stop("web", timeout=DEADLINE)
        assert client.status()["web"].state == "stopped"
        client.shutdown()
    assert master.wait() == 0


def test_two_masters_must_be_told_apart(masters, shell):
    masters.start(daemons("name=web,cmd=sleep 1000"), name="one.ini")
    masters.start(daemons("name=db,cmd=sleep 1000"), name="two.ini")
    done = shell.pipe("status")
    assert done.returncode == 4
    assert "one" in done.stderr
    assert "two" in done.stderr
    assert shell.pipe("-n", "two", "list").stdout == "db\n"
    assert shell.pipe("list", "-n", str(masters.directory / "one.ini")).stdout == "web\n"
    assert shell.pipe("list", LOWSUPER_INSTANCE="two").stdout == "db\n"


@needs_root
def test_user_without_rights_is_told_so(open_masters, monkeypatch):
    monkeypatch.setenv(RUNTIME, str(open_masters.directory / ".run"))
    open_masters.start(daemons("name=web,cmd=sleep 1000"))
    # Loaded first: the user need not be able to read what root has installed.
    code = (
        "import os, sys, traceback, lowsuper.client, lowsuper.kernel.instance, lowsuper.ctl.act;"
        "from lowsuper.cli import main;"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY});"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "stop", "web"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "control-allow" in done.stderr


def test_json_is_one_object_for_every_verb_that_looks(masters, shell):
    masters.start(daemons("name=web,cmd=sleep 1000"))
    for words in (
        *(["status"], ["list"], ["why", "web"], ["tree"], ["wait", "web"], ["is-active", "web"]),
        *(["start", "web"], ["diff"], ["instances"], ["signal", "CONT", "web"]),
    ):
        done = shell.pipe(*words, "--json")
        answer = json.loads(done.stdout)
        assert (answer["schema"], answer["ok"], done.returncode) == (1, True, 0), words
        assert done.stdout.count("\n") == 1
