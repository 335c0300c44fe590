"""Users, groups and programs of the running system."""

import os
import pwd
import tempfile

import pytest

from lowsuper.errors import PlanError
from lowsuper.kernel.facts import Facts, read_own_identity, resolve_identity
from lowsuper.model import Origin
from lowsuper.plan import Identity

ORIGIN = Origin("a.ini", 3, "attach-daemon2", "cmd=x")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs: root")


def refuse(user, group=None):
    with pytest.raises(PlanError) as caught:
        resolve_identity(user, group, ORIGIN, "web")
    return caught.value.problem


def test_nothing_asked_is_nothing_to_change():
    assert resolve_identity(None, None, ORIGIN) is None


@needs_root
def test_name_brings_group_groups_and_home():
    entry = pwd.getpwnam("nobody")
    identity = resolve_identity("nobody", None, ORIGIN)
    assert (identity.uid, identity.gid) == (entry.pw_uid, entry.pw_gid)
    assert set(identity.groups) == set(os.getgrouplist("nobody", entry.pw_gid))
    assert (identity.name, identity.home) == ("nobody", entry.pw_dir)


@needs_root
def test_number_brings_its_group_and_no_groups():
    entry = pwd.getpwnam("nobody")
    identity = resolve_identity(str(entry.pw_uid), None, ORIGIN)
    assert identity == Identity(entry.pw_uid, entry.pw_gid, ())


@needs_root
def test_number_without_an_entry_needs_a_group():
    assert "give gid too" in refuse("4000000001").advice
    identity = resolve_identity("4000000001", "4000000002", ORIGIN)
    assert (identity.uid, identity.gid, identity.groups) == (4000000001, 4000000002, ())


@needs_root
def test_group_alone_keeps_the_user():
    identity = resolve_identity(None, "4000000002", ORIGIN, add_groups=("7",))
    assert (identity.uid, identity.gid, identity.groups) == (0, 4000000002, (7,))


@pytest.mark.parametrize(
    ("user", "group", "key", "advice"),
    [
        ("nobodyy", None, "uid", "did you mean nobody?"),
        (None, "roott", "gid", "did you mean root?"),
        ("no\0body", None, "uid", ""),
    ],
)
def test_unknown_name_is_refused_with_its_place(user, group, key, advice):
    problem = refuse(user, group)
    assert problem.origin == Origin("a.ini", 3, key, user or group)
    assert problem.daemon == "web"
    assert "of that name" in problem.reason
    assert advice in problem.advice


@pytest.mark.parametrize("number", ["4294967295", "99999999999"])
def test_number_that_no_kernel_takes_is_refused(number):
    assert "larger than" in refuse(number, number).reason


def test_other_user_is_refused_without_root(not_root):
    not_root()
    assert "as root" in refuse("0", "0").advice
    own = read_own_identity()
    assert resolve_identity(str(own.uid), str(own.gid), ORIGIN) is None


@pytest.fixture
def make(tmp_path):
    def _make(name, text, mode=0o755):
        path = tmp_path / name
        path.write_bytes(text)
        path.chmod(mode)
        return str(path)

    return _make


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        (b"#!/bin/sh\n", 0o755, ""),
        (b"\x7fELF", 0o755, ""),
        (b"#!/bin/sh\n", 0o644, "is not executable"),
        (b"echo hi\n", 0o755, "neither a program nor a script"),
        (b"", 0o755, "neither a program nor a script"),
        (b"#!/nope/python\n", 0o755, "its interpreter /nope/python cannot be executed"),
        (b"#! \n", 0o755, "names no interpreter"),
        (b"#!/bin/sh\r\n", 0o755, "carriage return"),
        (b"#!/usr/bin/env nope-lang\n", 0o755, "env will not find nope-lang"),
        (b"#!/usr/bin/env sh\n", 0o755, ""),
        (b"#!/usr/bin/env -S sh -e\n", 0o755, ""),
    ],
)
def test_program_is_judged_by_mode_and_first_line(make, text, mode, reason):
    judged = Facts(os.environ).judge_program(make("x", text, mode), None, by_shell=False)
    assert reason in judged
    assert bool(reason) == bool(judged)


def test_shell_takes_a_file_without_first_line_for_a_script(make):
    assert Facts({}).judge_program(make("x", b"echo hi\n"), None, by_shell=True) == ""


@needs_root
def test_program_is_judged_for_the_daemons_user(make, tmp_path):
    facts = Facts(os.environ)
    nobody = facts.resolve_identity("nobody", None, ORIGIN)
    path = make("x", b"#!/bin/sh\n", 0o700)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    assert facts.judge_program(path, nobody, by_shell=False) == "user nobody may not execute it"
    os.chmod(path, 0o755)
    assert facts.judge_program(path, nobody, by_shell=False) == ""
    tmp_path.chmod(0o700)
    assert facts.judge_program(path, nobody, by_shell=False) == (
        f"user nobody may not enter {tmp_path}"
    )


# Pidfiles.


@pytest.mark.parametrize(
    ("text", "mode", "is_program"),
    [
        (b"\x7fELF", 0o755, True),
        (b"#!/bin/sh\n", 0o755, True),
        (b"123\n", 0o755, False),
        (b"", 0o777, False),
        (b"\x7fELF", 0o644, False),
    ],
)
def test_program_is_told_from_a_pidfile(make, text, mode, is_program):
    assert Facts({}).is_program(make("x", text, mode)) is is_program


def test_what_would_not_be_believed_as_a_pidfile(make, tmp_path):
    facts = Facts({})
    assert facts.judge_pidfile(f"{tmp_path}/nope") == ""
    path = make("x.pid", b"1\n", 0o644)
    assert facts.judge_pidfile(path) == ""
    os.symlink("x.pid", tmp_path / "link")
    assert facts.judge_pidfile(f"{tmp_path}/link") == "is a symbolic link"
    os.mkfifo(tmp_path / "fifo")
    assert facts.judge_pidfile(f"{tmp_path}/fifo") == "is not a regular file"
    assert not facts.is_program(f"{tmp_path}/fifo")
    os.link(path, tmp_path / "other")
    assert facts.judge_pidfile(path) == "has another hard link"


WWW = Identity(4000000001, 4000000002, (4000000003,), "www")


@needs_root
@pytest.mark.parametrize(
    ("owner", "mode", "is_allowed"),
    [
        ((0, 0), 0o755, False),
        ((0, 0), 0o777, True),
        ((0, 0), 0o776, False),
        ((4000000001, 0), 0o700, True),
        ((4000000001, 0), 0o077, False),
        ((0, 4000000002), 0o730, True),
        ((0, 4000000003), 0o730, True),
        ((0, 4000000003), 0o707, False),
    ],
)
def test_who_may_make_files_in_a_directory(open_directory, owner, mode, is_allowed):
    facts = Facts({})
    os.chmod(open_directory, mode)
    os.chown(open_directory, *owner)
    reason = facts.judge_writing(open_directory, WWW)
    assert reason == ("" if is_allowed else f"user www may not write to {open_directory}")
    assert facts.judge_writing(open_directory, None) == ""


@needs_root
def test_who_may_write_to_a_file(open_directory):
    facts = Facts({})
    path = f"{open_directory}/x.pid"
    assert facts.judge_writing(path, WWW) == "No such file or directory"
    with open(path, "w"):
        os.chmod(path, 0o602)
    assert facts.judge_writing(path, WWW) == ""
    os.chmod(open_directory, 0o700)
    assert facts.judge_writing(path, WWW) == f"user www may not enter {open_directory}"


@needs_root
@pytest.mark.parametrize(
    ("owner", "mode", "writers"),
    [
        ((0, 0), 0o755, ""),
        ((0, 0), 0o775, ""),
        ((0, 0), 0o1777, ""),
        ((0, 0), 0o777, "everybody can write to"),
        ((0, 7), 0o775, "gid 7 can write to"),
        ((0, 7), 0o1775, ""),
        ((0, 4000000002), 0o775, ""),
        ((4000000001, 0), 0o755, ""),
        ((7, 0), 0o755, "uid 7 can write to"),
        ((7, 0), 0o1777, "uid 7 can write to"),
    ],
)
def test_who_can_replace_a_file(open_directory, owner, mode, writers):
    os.chmod(open_directory, mode)
    os.chown(open_directory, *owner)
    assert Facts({}).name_writers(open_directory, WWW) == writers


@needs_root
@pytest.mark.parametrize(
    ("owner", "mode", "holds", "reason"),
    [
        (0, 0o700, "", ""),
        (0, 0o755, "x.record", ""),
        (0, 0o775, "", "can be written to by others"),
        (0, 0o1777, "", "can be written to by others"),
        (7, 0o700, "", "belongs to uid 7"),
    ],
)
def test_directory_for_records(open_directory, owner, mode, holds, reason):
    path = f"{open_directory}/state"
    os.mkdir(path)
    os.chmod(path, mode)
    os.chown(path, owner, owner)
    if holds:
        os.mkdir(f"{path}/{holds}")
    facts = Facts({})
    assert facts.find_state_directory(path, None) == path
    assert facts.judge_state_directory(path, None) == reason
    assert facts.judge_state_directory(f"{path}/", None) == reason
    # One of root's that is empty is handed to the user that the master becomes.
    for_www = f"belongs to uid {owner}" if holds else reason
    assert facts.judge_state_directory(path, WWW) == for_www


@needs_root
def test_directory_for_records_that_is_to_be_made(open_directory, not_root):
    facts = Facts({})
    assert facts.judge_state_directory(f"{open_directory}/a/b/c", None) == ""
    assert facts.judge_state_directory("/lowsuper-none/a", None) == ""
    assert facts.find_state_directory(None, None) == "/run/lowsuper/state"
    assert facts.find_state_directory(None, WWW) == "/run/lowsuper/state-4000000001"
    os.symlink("/run", f"{open_directory}/link")
    assert facts.judge_state_directory(f"{open_directory}/link", None) == "is not a directory"
    os.mkdir(f"{open_directory}/shared")
    os.chmod(f"{open_directory}/shared", 0o777)
    reason = facts.judge_state_directory(f"{open_directory}/shared/a", None)
    assert reason == f"is not safe: others than uid 0 can write to {open_directory}/shared"
    os.mkdir(f"{open_directory}/own")
    os.chown(f"{open_directory}/own", WWW.uid, WWW.gid)
    assert facts.judge_state_directory(f"{open_directory}/own/a", WWW) == ""
    not_root()
    facts = Facts({})
    uid = os.geteuid()
    reason = facts.judge_state_directory("/lowsuper-none/a", None)
    assert reason == f"is not there, and user {uid} may not write to /"


def test_nobody_can_write_where_nothing_is(tmp_path):
    assert Facts({}).name_writers(f"{tmp_path}/nope", None) == ""


@pytest.fixture
def open_directory():
    """Give a directory that everybody can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        os.chmod(path, 0o755)
        yield path
        os.chown(path, os.geteuid(), os.getegid())


def test_directory_is_no_program(tmp_path):
    assert Facts({}).judge_program(str(tmp_path), None, by_shell=False) == "is a directory"


def test_program_is_found_in_path(make, tmp_path):
    make("plain", b"", 0o644)
    path = make("tool", b"#!/bin/sh\n")
    facts = Facts({"PATH": f"/nope:{tmp_path}"})
    assert facts.find_program("tool", "/") == path
    assert facts.find_program("plain", "/") == f"{tmp_path}/plain"
    assert facts.find_program("nope", "/") == ""
    assert facts.find_program("./tool", str(tmp_path)) == f"{tmp_path}/./tool"
    assert facts.find_program("./nope", str(tmp_path)) == ""
