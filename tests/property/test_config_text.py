import posixpath
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowsuper.command import find_program_name, parse_command
from lowsuper.config import keys, load
from lowsuper.config.expand import compute_placeholder, find_references, replace_references
from lowsuper.config.keyval import Item, format_items, parse_items
from lowsuper.config.pidfiles import SmartLineError, normalize_path, parse_smart
from lowsuper.config.requests import AskFact, FileText, JudgePath, ReadFile, RunCommand
from lowsuper.config.text import expand_magic, find_magic, parse_lines
from lowsuper.config.wording import format_problem
from lowsuper.errors import ConfigError
from lowsuper.model import Origin, Problem
from lowsuper.units import SECOND, parse_duration, parse_signal

ARGUMENT_CHARACTERS = st.sampled_from("ab1 \t'\"\\-_./=:,@%+^]}!#")
KEY = st.text(st.sampled_from("abcxyz_-09"), min_size=1, max_size=8)
VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=30)
PIECES = """%( $( @( ) ( % = a b ; , ' \\ ++ + 1 [uwsgi]| [daemon:x]| for=a_b| endfor| if-env=A|
    else| endif| attach-daemon=x| attach-daemon2=cmd=x, uid= pidfile=/a daemonize| freq=
    smart-attach-daemon=/a_x| smart-attach-daemon2=/b,1_x| set=a= set-ph= ini=: include=m.ini|
    inherit=m.ini| strict| declare-option=a= command= name= | _ if-opt=a| env= a=%(a) x%(a)"""
DIALECT = st.lists(
    st.sampled_from([piece.replace("|", "\n").replace("_", " ") for piece in PIECES.split()]),
    max_size=30,
).map("".join)


def answer(request, text):
    match request:
        case ReadFile("m.ini"):
            return FileText(text, "/m.ini", 1)
        case ReadFile() | RunCommand():
            return FileText("", "/other", 1)
        case AskFact():
            return "fact"
        case JudgePath():
            return False
        case _:
            return ()


def read_all(text):
    generator = load(["m.ini"], {"A": "1"})
    try:
        request = next(generator)
        while True:
            request = generator.send(answer(request, text))
    except StopIteration as stop:
        return stop.value


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(ARGUMENT_CHARACTERS, max_size=12), max_size=5))
def test_direct_arguments_are_those_of_the_shell(words):
    text = "x " + " ".join(words)
    try:
        command = parse_command(text)
    except ValueError:
        return
    if command.shell:
        return
    shown = subprocess.run(
        ["/bin/sh", "-c", f'printf "%s\\0" {text}'], capture_output=True, check=True
    )
    assert shown.stdout.decode().split("\0")[:-1] == list(command.argv)


@given(st.lists(VALUE.filter(lambda text: "\n" not in text), min_size=1, max_size=5))
def test_quoted_words_come_back(words):
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    assert parse_command(f"x {quoted}").argv == ("x", *words)


@given(st.text(max_size=40))
def test_command_is_read_or_refused(text):
    try:
        command = parse_command(text)
    except ValueError:
        return
    assert command.argv
    assert command.text == text
    assert not command.compound or command.shell
    find_program_name(text)


@given(st.lists(st.builds(Item, KEY, st.none() | VALUE.map(str.strip), st.just(False)), max_size=6))
def test_keyval_round_trip(items):
    assert parse_items(format_items(items)) == items


@given(st.text(st.sampled_from("ab/.,' \t\\1s;pid"), max_size=24))
def test_smart_line_is_taken_apart_or_refused(text):
    try:
        line = parse_smart(text)
    except SmartLineError:
        return
    assert line.pidfile
    assert not set(line.pidfile) & set(" \t,")
    assert line.command == line.command.strip(" \t") != ""
    freq = "" if line.freq is None else f",{line.freq // 1000}us"
    assert parse_smart(f"{line.pidfile}{freq} {line.command}") == line


@given(st.lists(st.sampled_from(["a", "b", ".", "..", ""]), min_size=1, max_size=8).map("/".join))
def test_normalized_path_is_that_of_the_standard_library(path):
    for whole, directory in ((path, ""), (path, "/srv/x"), (path, "rel")):
        joined = posixpath.join(directory, whole)
        expected = posixpath.normpath(joined).replace("//", "/")
        assert normalize_path(directory, whole) == ("" if expected == "." else expected)


@given(st.lists(st.tuples(KEY, VALUE.map(lambda text: text.strip(" \t"))), max_size=10))
def test_ini_round_trip(pairs):
    text = "[uwsgi]\n" + "".join(f"{key} = {value.replace('%', '%%')}\n" for key, value in pairs)
    lines = parse_lines(text, {}).lines
    assert [(line.key, line.value) for line in lines] == pairs
    assert [line.number for line in lines] == list(range(2, len(pairs) + 2))


@given(st.text(st.sampled_from("%ab(é"), max_size=20))
def test_magic_keeps_everything_but_percent_pairs(text):
    expanded, lost = expand_magic(text, {"%": "%", "a": "<a>", "(": "%("})
    assert len(lost) + expanded.count("<a>") <= text.count("%")
    assert {pair[1:] for pair in lost if pair != "%"} <= find_magic(text)


@given(st.text(st.sampled_from("$()ab "), max_size=20))
def test_references_that_mean_nothing_stay(text):
    assert replace_references(text, "$", lambda _name: None) == text
    for begin, end in find_references(text, "$"):
        assert text[begin : begin + 2] == "$("
        assert text[end - 1] == ")"


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_placeholder_math(one, two):
    values = {"a": str(one), "b": str(two)}
    assert compute_placeholder("a + b", values.get) == str(one + two)
    assert compute_placeholder("a - b", values.get) == str(one - two)
    assert compute_placeholder("a * b", values.get) == str(one * two)
    assert compute_placeholder("a / b", values.get) == str(one // two if two else 0)
    assert compute_placeholder("a b", values.get) == f"{one}{two}"


@settings(deadline=None, max_examples=200)
@given(DIALECT)
def test_any_text_is_read_or_refused_with_places(text):
    try:
        spec = read_all("[uwsgi]\n" + text)
    except ConfigError as error:
        problems = error.problems
        assert any(problem.is_error for problem in problems)
    else:
        problems = spec.notices
        names = [daemon.name for daemon in spec.daemons]
        assert len(names) == len(set(names))
        assert all(keys.parse_name(name) == name for name in names)
    for problem in problems:
        assert problem.reason
        assert "\n" not in format_problem(problem)


@given(st.text(max_size=30), st.text(max_size=200))
def test_problem_is_one_printable_line(key, value):
    text = format_problem(Problem(Origin("f", 1, key, value), value or "x", key, value))
    assert text.isprintable()


@given(st.integers(0, 10**9))
def test_duration_of_milliseconds(number):
    assert parse_duration(f"{number}ms") == number * SECOND // 1000


@given(st.text(max_size=8))
def test_signal_is_a_number_or_an_error(text):
    try:
        number = parse_signal(text)
    except ValueError:
        return
    assert 1 <= number <= 64


@pytest.mark.parametrize("key", keys.KEYS, ids=lambda key: key.names[0])
def test_every_key_means_the_same_in_a_line_and_in_a_section(key):
    value = {
        "command": "run me",
        "touch": "/a;/b",
        "name": "x",
        "stop_signal": "HUP",
        "reload_signal": "HUP",
        "caps": "CAP_CHOWN",
        "namespaces": "uts;ipc",
        "root": "/srv",
        "mounts": "/a:/b",
        "rlimit_rttime": "1s",
        "kind": "simple",
        "ready": "pidfile",
        "notify_access": "all",
        "groups": "a b",
        "requires": "y",
        "wants": "y",
        "after": "y",
        "restart": "never",
        "on_give_up": "exit",
        "log": "/var/log/x",
        "log_maxsize": "1m",
        "cgroup_cpu_max": "5000 20000",
        "env": "A=b",
        "listen": "127.0.0.1:80",
        "legion": "l",
    }.get(key.names[0] if key.names[0].startswith(("rlimit_", "cgroup_")) else key.field, "1")
    for name in key.names:
        more = ",ready=pidfile" if name == "start_timeout" else ""
        more = ",log=/var/log/x" if name.startswith("log_") else more
        first = f"attach-daemon2 = cmd=x,name=x,pidfile=/p{more},{name}={value}\n"
        top = (
            "legion = l 127.0.0.1:4001 1 aes-256-cbc:0123456789abcdef0123456789abcdef\n"
            if name == "legion"
            else ""
        )
        line = read_all(f"[uwsgi]\n{top}{first}attach-daemon2 = cmd=y,name=y\n")
        more = more.replace(",", "\n")
        section = read_all(
            f"[uwsgi]\n{top}[daemon:x]\ncommand = x\npidfile = /p{more}\n{name} = {value}\n"
            "[daemon:y]\ncommand = y\n"
        )
        one, other = line.daemons[0], section.daemons[0]
        assert getattr(one, key.field) == getattr(other, key.field)
        assert one.replace(origin=other.origin) == other
