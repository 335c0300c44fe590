"""What hooks do: the handlers, the flags of mounts, the order of the forms."""

from __future__ import annotations

import pytest
from config_world import errors_of, load_lines, warnings_of

from lowsuper.config.hooks import HANDLERS, take_word
from lowsuper.model import (
    ChangeDirectory,
    ChangeMode,
    ChangeOwner,
    EnvChange,
    Exit,
    MakeDirectory,
    Mount,
    Print,
    SetVariable,
    Unlink,
    Unmount,
    Write,
    WriteFifo,
)

BIND, RO, REC, PRIVATE = 0x1000, 1, 0x4000, 1 << 18

GOOD = [
    ("print:hello: world", Print("hello: world")),
    ("log:hello", Print("hello")),
    ("cd:/srv/my data", ChangeDirectory("/srv/my data")),
    ("chdir:'/srv/my data'", ChangeDirectory("/srv/my data")),
    ("putenv:A=b=c", SetVariable(EnvChange("A", "b=c"))),
    ("putenv:A=", SetVariable(EnvChange("A", ""))),
    ("putenv:A", SetVariable(EnvChange("A", None))),
    ("exit:", Exit(0)),
    ("exit:5", Exit(5)),
    ("exit:42", Exit(42)),
    ("write:/f a  b", Write("/f", "a  b")),
    ('write:"/my f" a', Write("/my f", "a")),
    ("writen:/f a", Write("/f", "a\n")),
    ("append:/f a", Write("/f", "a", append=True)),
    ("appendn:/f a", Write("/f", "a\n", append=True)),
    ("appendn:/f", Write("/f", "\n", append=True)),
    ("create:/f", Write("/f", "")),
    ("creat:/f", Write("/f", "")),
    ("writefifo:/f a", WriteFifo("/f", "a")),
    ("unlink:/f", Unlink("/f")),
    ("mkdir:/d", MakeDirectory("/d")),
    ("chmod:/f 640", ChangeMode("/f", 0o640)),
    ("chmod:/f 4755", ChangeMode("/f", 0o4755)),
    ("sticky:/f", ChangeMode("/f", 0o1000, add=True)),
    ("chown:/f www-data 33", ChangeOwner("/f", "www-data", "33")),
    ("chown2:/f 33 33", ChangeOwner("/f", "33", "33")),
    ("mount:proc none /proc", Mount("proc", "none", "/proc")),
    ("mount:none /a /b bind,ro", Mount("none", "/a", "/b", BIND | RO)),
    ("mount:none none / rec,private", Mount("none", "none", "/", REC | PRIVATE)),
    (
        "mount:tmpfs none /t defaults size=1m,x=y z",
        Mount("tmpfs", "none", "/t", 0, "size=1m,x=y z"),
    ),
    ("mount:none '/my a' \"/my b\" bind", Mount("none", "/my a", "/my b", BIND)),
    ("umount:/a", Unmount("/a")),
    ("umount:/a rec,detach", Unmount("/a", 2, recursive=True)),
    ("umount:'/my a' force", Unmount("/my a", 1)),
]


@pytest.mark.parametrize(("text", "deed"), GOOD)
def test_handler_reads_its_arguments(text, deed):
    (hook,) = load_lines(f"hook-as-root = {text}").hooks
    assert hook.deed == deed
    assert (hook.phase, hook.private, hook.path) == ("as-root", False, "")
    assert (hook.origin.key, hook.origin.value) == ("hook-as-root", text)


def test_good_has_every_handler():
    assert {text.partition(":")[0] for text, _ in GOOD} | {"exec", "safeexec"} == set(HANDLERS)


@pytest.mark.parametrize(("name", "safe"), [("exec", False), ("safeexec", True)])
def test_handler_with_a_command_is_as_the_option_with_one(name, safe):
    hook, like = load_lines(
        f"hook-asap = {name}:echo $HOME a:b", "exec-asap = echo $HOME a:b"
    ).hooks
    assert hook.deed == like.deed.replace(safe=safe)


def test_private_handler_is_marked():
    (hook,) = load_lines("hook-asap = !write:/f secret").hooks
    assert (hook.deed, hook.private) == (Write("/f", "secret"), True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("print", "is not HANDLER:ARGUMENTS"),
        ("prnt:x", "there is no handler prnt: did you mean print?"),
        ("call:main", "call calls what is inside uWSGI"),
        ("rpc:x", "rpc calls what is inside uWSGI"),
        ("wait_for_file:/x", "wait_for_file is not available in this version"),
        ("exec:", ""),
        ("cd:", "is not DIRECTORY"),
        ("exit:-1", "is not a status from 0 to 255"),
        ("exit:256", "is not a status from 0 to 255"),
        ("exit:x", "is not a status from 0 to 255"),
        ("putenv:=x", "is not NAME=value"),
        ("write:/f", "is not FILE TEXT"),
        ("write:'/f text", "has a ' without an end"),
        ("chmod:/f rwx", "is not an octal mode"),
        ("chmod:/f", "is not FILE MODE"),
        ("chown:/f www-data", "is not FILE USER GROUP"),
        ("chown:/f a b c", "is not FILE USER GROUP"),
        ("mount:proc none", "is not FSTYPE SOURCE DIRECTORY"),
        ("mount:none /a /b bnd", "has no flag bnd: did you mean bind?"),
        ("mount:none /a /b detach", "has no flag detach"),
        ("mount:tmpfs none /t size=1m", "flags first, as in: defaults size=1m"),
        ("umount:", "is not DIRECTORY"),
        ("umount:/a bind", "has no flag bind"),
    ],
)
def test_handler_that_is_wrong_is_refused_when_it_is_read(text, reason):
    (error,) = errors_of(f"hook-as-root = {text}")
    assert reason in error


def test_forms_of_a_phase_run_in_the_order_of_uwsgi():
    spec = load_lines(
        "exec-as-root = a",
        "umount-as-root = /b",
        "mount-as-root = proc none /c",
        "hook-as-root = print:d",
        "exec-as-root = e",
        "hook-as-root = exec:f",
    )
    assert [hook.origin.value for hook in spec.hooks] == [
        "print:d",
        "exec:f",
        "proc none /c",
        "/b",
        "a",
        "e",
    ]


def test_touch_forms_name_their_file():
    hook, command = load_lines(
        "touch-exec = /srv/a cmd b c", "hook-touch = '/my f' !append:/log x"
    ).hooks
    assert (hook.phase, hook.path, hook.private) == ("touch", "/my f", True)
    assert hook.deed == Write("/log", "x", append=True)
    assert (command.phase, command.path) == ("touch", "/srv/a")
    assert command.deed.command.argv == ("cmd", "b", "c")


@pytest.mark.parametrize("line", ["hook-touch = /f", "touch-exec = /f", "hook-touch = /f print"])
def test_touch_form_without_its_second_word_is_refused(line):
    assert len(errors_of(line)) == 1


def test_post_jail_hook_without_a_jail_is_mentioned():
    assert "does nothing without a jail" in "".join(warnings_of("exec-post-jail = x"))


@pytest.mark.parametrize(
    ("text", "word", "rest"),
    [
        ("a b c", "a", "b c"),
        ("a  b", "a", " b"),
        ("'a b' c", "a b", "c"),
        ('"a"', "a", ""),
        ("", "", ""),
    ],
)
def test_word_ends_at_a_blank_or_its_quote(text, word, rest):
    assert take_word(text) == (word, rest)


@pytest.mark.parametrize("text", ["'a", "'a'b", '"a b'])
def test_word_whose_quote_has_no_end_is_refused(text):
    with pytest.raises(ValueError, match="without an end"):
        take_word(text)
