"""`lowsuper check` of a configuration with a jail: what is outside, and what is inside."""

from __future__ import annotations

import pytest
from jails import make_root

from lowsuper.check import main


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Return what checks lines; each line of the answer comes without the file and its number."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    def _check(*lines):
        (tmp_path / "a.ini").write_text("\n".join(["[uwsgi]", *lines, ""]))
        main(["a.ini"])
        *problems, _ = capsys.readouterr().out.splitlines()
        return [line.split(" ", 1)[1] for line in problems]

    return _check


@pytest.fixture
def root(tmp_path):
    """Return a root file system."""
    return make_root(tmp_path / "root")


def test_good_jail_has_no_problem(check, root, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "program").write_bytes(b"\x7fELF")
    (kept / "program").chmod(0o755)
    problems = check(
        f"namespace = {root}:testns",
        f"namespace-keep-mount = {kept}:/opt",
        "exec-as-root = true",
        "chdir = /tmp",
        "attach-daemon2 = cmd=sleep 9,uid=web",
        "attach-daemon = /opt/program",
    )
    # The jail is root's to make.
    assert [problem for problem in problems if "cannot become another user" not in problem] == []


def test_missing_root_and_keep_mounts_are_errors(check, tmp_path):
    assert check(
        f"namespace = {tmp_path}/none",
        "namespace-keep-mount = /no/such:/x",
        "namespace-keep-mount = optional:/no/such/thing",
        "attach-daemon = sleep 9",
    ) == [
        f"namespace={tmp_path}/none: there is no directory {tmp_path}/none; make it first",
        "namespace-keep-mount=/no/such:/x: /no/such does not exist; make it first",
    ]


def test_what_a_hook_may_make_is_missed_with_a_warning(check, tmp_path):
    (problem,) = check(
        f"namespace = {tmp_path}/none", "exec-pre-jail = true", "attach-daemon = sleep 9"
    )
    assert problem.startswith("warning: ")
    assert problem.endswith("/none; unless a hook makes it")


def test_programs_users_and_directories_are_those_of_the_jail(check, root):
    problems = check(
        f"namespace = {root}",
        "chdir = /var",
        "exec-as-root = /usr/bin/env",
        "attach-daemon = python3 -V",
        "attach-daemon2 = cmd=sleep 9,uid=nobody",
    )
    wanted = ("is not a directory", "there is no file", "there is no program python3", "no user")
    for problem, reason in zip(problems, wanted, strict=True):
        assert reason in problem


def test_link_of_the_root_does_not_lead_to_the_host(check, root):
    (root / "bin" / "env").symlink_to("/usr/bin/env")
    (problem,) = check(f"namespace = {root}", "attach-daemon = env")
    assert "there is no program env" in problem


def test_smart_daemon_in_a_jail_is_warned_of(check, root):
    (problem,) = check(f"namespace = {root}", "smart-attach-daemon = /tmp/x.pid sleep 9")
    assert "nothing outlives the jail" in problem
