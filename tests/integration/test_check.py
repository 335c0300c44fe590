"""The `check` command on real files."""

import json
import os

import pytest
from masters import ROOT, needs_root

from lowsuper.check import main

EXAMPLES = sorted((ROOT / "lowsuper" / "examples").iterdir())
LACKS = (
    "there is no program ",
    "there is no file ",
    "there is no directory ",
    "is not a directory",
    "@(/etc/lowsuper/legion.secret): No such file",
)
LACKS_USER = ("there is no user of that name", "there is no group of that name")
SHELL = "a shell runs this and stays"


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    def _check(text, *options):
        (tmp_path / "a.ini").write_text(text)
        status = main([*options, "a.ini"])
        return status, capsys.readouterr().out

    return _check


def test_clean_file_ends_with_0(check):
    assert check("[uwsgi]\nattach-daemon = sleep 1\n") == (
        0,
        "a: 1 daemon, no errors, no warnings\n",
    )


def test_warnings_alone_end_with_0(check):
    status, text = check("[uwsgi]\nprocesses = 4\n")
    assert status == 0
    assert "does nothing here" in text
    assert "there is no daemon in it" in text


def test_all_errors_come_in_the_order_of_the_lines_and_end_with_78(check):
    status, text = check(
        "[uwsgi]\nlogto = /nope/x\numask = 9\nattach-daemon = /nope/y\nattach-daemon2 = cmd=x,b=1\n"
    )
    assert status == 78
    assert [line.split(" ")[0] for line in text.splitlines()] == [
        "a.ini:2:", "a.ini:3:", "a.ini:4:", "a.ini:5:", "a.ini:5:", "a:",
    ]  # fmt: skip
    assert text.endswith("a: 2 daemons, 5 errors, no warnings\n")


def test_json_is_one_object(check):
    status, text = check("[uwsgi]\numask = 9\n", "--json")
    assert status == 78
    assert json.loads(text)["problems"][0]["reason"] == "is not an octal mode such as 022"


def test_commands_run_only_with_exec(check, tmp_path):
    text = f"[uwsgi]\nattach-daemon = sleep @(exec://echo 1; touch {tmp_path}/mark)\n"
    status, shown = check(text)
    assert status == 0
    assert "use --exec" in shown
    assert not os.path.exists(tmp_path / "mark")
    assert check(text, "--exec") == (0, "a: 1 daemon, no errors, no warnings\n")
    assert os.path.exists(tmp_path / "mark")


def test_strict(check):
    assert check("[uwsgi]\nfoo = 1\nattach-daemon = sleep 1\n", "--strict")[0] == 78


def test_missing_file_ends_with_78(capsys):
    assert main(["/nope.ini"]) == 78
    assert "command line: /nope.ini: No such file or directory" in capsys.readouterr().out


def test_nothing_to_check_is_a_usage_error(capsys):
    assert main([]) == 125
    assert "Usage" in capsys.readouterr().err
    assert main(["--help"]) == 0


@needs_root
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_has_no_problem_but_what_this_machine_lacks(path, capsys):
    main(["--json", str(path)])
    report = json.loads(capsys.readouterr().out)
    assert report["daemons"]
    assert [
        problem
        for problem in report["problems"]
        if not problem["reason"].startswith((*LACKS, *LACKS_USER, SHELL))
    ] == []


def test_pidfiles_of_smart_daemons(check, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    state = f"state-dir = {tmp_path}/state\n"
    lines = (
        f"smart-attach-daemon = {tmp_path} sleep 1",
        "smart-attach-daemon2 = /usr/bin/env sleep 1",
        "smart-attach-daemon2 = nope/a.pid sleep 1",
        "smart-attach-daemon2 = open/b.pid sleep 1",
        "smart-attach-daemon2 = c.pid cd / && sleep 1",
        "smart-attach-daemon = d.pid sleep 1",
    )
    status, text = check(f"[uwsgi]\nchdir = {tmp_path}\n{state}" + "\n".join(lines))
    assert status == 78
    shown = text.splitlines()
    assert [line.partition(": ")[0] for line in shown[:-1]] == [
        "a.ini:4", "a.ini:5", "a.ini:6", "a.ini:7", "a.ini:8",
    ]  # fmt: skip
    for line, said in zip(
        shown,
        (
            f"sleep: pidfile={tmp_path}: is a directory; name a file in it",
            "pidfile=/usr/bin/env: is a program, not a pidfile; the pidfile comes first",
            f"pidfile=nope/a.pid: there is no directory {tmp_path}/nope",
            f"warning: sleep-4: pidfile=open/b.pid: everybody can write to {tmp_path}/open, and so",
            "warning: sleep-5: command=cd / && sleep 1: a shell runs this and stays: it is the dae",
            "a: 6 daemons, 3 errors, 2 warnings",
        ),
        strict=True,
    ):
        assert said in line
    assert not os.path.exists(tmp_path / "state")
