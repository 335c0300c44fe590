import pytest
from config_world import (
    CWD,
    MAIN,
    World,
    errors_of,
    load_lines,
    load_text,
    problems_of,
    read,
    warnings_of,
)

from lowsuper.config.dialect import split_section
from lowsuper.config.requests import ReadFile
from lowsuper.config.text import hash_path
from lowsuper.errors import ConfigError


def values(reading, name):
    return [option.value for option in reading.options if option.name == name]


def faults(reading):
    return [
        (each.origin.file, each.origin.line, each.reason)
        for each in reading.problems
        if each.is_error
    ]


# Places.


def test_every_value_keeps_its_file_and_line_through_includes():
    files = {f"{CWD}/inc.ini": "\n[uwsgi]\n; x\nb = 1\n"}
    reading = read("a = 1\ninclude = inc.ini\nc = 1", files)
    assert [(each.name, each.origin.file, each.origin.line) for each in reading.options] == [
        ("ini", "command line", 0),
        ("a", "main.ini", 2),
        ("include", "main.ini", 3),
        ("b", "inc.ini", 4),
        ("c", "main.ini", 4),
    ]
    assert reading.files == (MAIN, f"{CWD}/inc.ini")


def test_values_of_a_for_keep_the_line_of_the_repeated_line():
    reading = read("for = a b\nx = %(_)\nendfor")
    places = [(each.value, each.origin.line, each.origin.value) for each in reading.options[2:4]]
    assert places == [("a", 3, "a"), ("b", 3, "b")]


# Faults.


def test_include_loop_names_the_chain():
    files = {f"{CWD}/b.ini": "[uwsgi]\ninclude = main.ini\n"}
    (fault,) = faults(read("include = b.ini", files))
    assert fault == ("b.ini", 2, f"includes itself: {MAIN} -> {CWD}/b.ini -> {MAIN}")


def test_section_that_includes_itself_is_a_loop():
    assert "includes itself" in faults(read("ini = :two\n[two]\nini = :two"))[0][2]


def test_section_of_the_same_file_is_no_loop():
    assert not faults(read("ini = :two\n[two]\na = 1"))


def test_missing_file_is_told_with_its_place():
    assert faults(read("a = 1\ninclude = nope.ini")) == [
        ("main.ini", 3, "No such file or directory")
    ]


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("include = nope.ini", "%d is the directory"),
        ("include = $(HOME)/x.ini", "acts before"),
        ("for-readline = %(x)", "acts before"),
        ("include = http://example.com/x.ini", "does not read from http://"),
        ("a = @(http://example.com/x)", "does not read from http://"),
        ("a = @(fd://3)", "does not read from fd://"),
        ("include = x.yml", "ini files only"),
        ("include = x.json", "ini files only"),
        ("xml = x.xml", "ini files only"),
        ("yaml = x", "ini files only"),
        ("for-times = many", "number of times"),
        ("if-hostname-match = (", "regular expression"),
        ("strict = perhaps", "neither true nor false"),
        ("early-envdir = nope", "No such file"),
        ("declare-option = x", "NAME=template"),
        ("exit = true", "not available in this version"),
    ],
)
def test_fault_of_a_line_says_why(line, advice):
    text = " ".join(errors_of(line, "endif" if line.startswith("if") else ";"))
    assert advice in text


@pytest.mark.parametrize("opener", ["for = a", "if-env = X", "if-not-env = X", "for-times = 2"])
def test_block_without_end_names_its_line(opener):
    (fault,) = faults(read(f"a = 1\n{opener}\nb = 1"))
    assert fault == ("main.ini", 3, "the block has no end")


@pytest.mark.parametrize("end", ["endif", "endfor", "end-if =", "end-for", "end"])
def test_end_without_block_names_its_line(end):
    assert faults(read(f"a = 1\n{end}")) == [("main.ini", 3, "there is no open block here")]


def test_else_belongs_to_an_if():
    assert faults(read("else =")) == [("main.ini", 2, "there is no open if here")]
    assert "there is no open if here" in faults(read("for = a\nelse =\nendfor"))[0][2]


def test_nested_blocks_are_one_fault():
    text = "for = a b\nif-env = X\nc = 1\nendif\nendfor"
    assert faults(read(text)) == [("main.ini", 3, "blocks cannot be nested, as in uWSGI")]


def test_placeholder_that_refers_to_itself_is_refused():
    assert "refers to itself" in faults(read("a = x%(a)"))[0][2]
    assert "refers to itself" in faults(read("a = x%(b)\nb = y%(a)"))[0][2]


def test_declared_option_that_refers_to_itself_is_refused():
    assert "refers to itself" in faults(read("declare-option = x=x=$1\nx = 1"))[0][2]


def test_section_name_without_bracket_is_refused():
    assert faults(read("[two\na = 1"))[0] == ("main.ini", 2, "a section's name must end with ]")


# What uWSGI does not have, or has in its development tree only.


@pytest.mark.parametrize(("environ", "expected"), [({"X": "1"}, ["1"]), ({}, ["2"])])
def test_else(environ, expected):
    text = "if-env = X\na = %(_)\nelse =\na = 2\nendif"
    assert values(read(text, environ=environ), "a") == expected


def test_sections_uwsgi_and_lowsuper_are_alike():
    reading = World({MAIN: "[lowsuper]\na = 1\n[uwsgi]\nb = 2\n"}).read("main.ini")
    assert values(reading, "a") + values(reading, "b") == ["1", "2"]


def test_comment_behind_a_section_name_is_no_part_of_it():
    reading = World({MAIN: "[uwsgi]    ; memcached, 'dumb'\na = 1\n"}).read("main.ini")
    assert values(reading, "a") == ["1"]
    assert not reading.problems


def test_byte_order_mark_is_passed_over():
    assert values(World({MAIN: "\ufeff[uwsgi]\na = 1"}).read("main.ini"), "a") == ["1"]


def test_section_of_the_command_line():
    reading = World({MAIN: "[a]\nx = %x %X\n[uwsgi]\ny = 1"}).read("main.ini:a")
    assert values(reading, "x") == ["a a"]
    assert values(reading, "y") == []


def test_first_file_of_the_command_line_is_that_of_the_upper_case_magic():
    files = {MAIN: "[uwsgi]\ninclude = b.ini", f"{CWD}/b.ini": "[uwsgi]\nx = %S %n %N"}
    assert values(World(files).read("main.ini"), "x") == ["main.ini b main"]


def test_magic_facts():
    reading = read("x = %h %k %u %U %v", facts={"hostname": "box"})
    assert values(reading, "x") == [f"box 2 0 root {CWD}"]


def test_magic_hash_and_inode():
    # Recorded from uWSGI 2.0.31 for this path.
    assert hash_path("/tmp/t/a.ini") == "D6E287B6"
    assert values(read("x = %i"), "x") == ["7"]


def test_facts_that_no_one_wants_are_not_asked_for():
    world = World({MAIN: "[uwsgi]\na = %n"})
    world.read("main.ini")
    assert world.requests == [ReadFile("main.ini")]


def test_early_envdir_is_seen_by_what_follows():
    files = {f"{CWD}/env": {"A": "1", "B": ""}}
    reading = read("early-envdir = env\na = $(A)$(B)", files, environ={"B": "2"})
    assert values(reading, "a") == ["1$(B)"]


def test_if_hostname_match():
    text = "if-hostname-match = ^b.x$\na = 1\nendif\nif-not-hostname-match = ^b\nb = 1\nendif"
    assert values(read(text), "a") + values(read(text), "b") == ["1"]


def test_plugins_do_not_exist():
    text = "if-plugin = python\na = 1\nendif\nif-not-plugin = python\nb = 1\nendif"
    assert values(read(text), "a") + values(read(text), "b") == ["1"]


def test_if_reload():
    text = "if-reload =\na = 1\nelse =\na = 2\nendif"
    assert values(read(text, facts={"reload": "1"}), "a") == ["1"]


def test_declare_option_stands_for_several():
    reading = read("declare-option = trac=env=T=$1;chdir=$2;x=$3\ntrac = /a /b")
    assert values(reading, "env") == ["T=/a"]
    assert values(reading, "chdir") == ["/b"]
    assert values(reading, "x") == ["$3"]


def test_options_come_from_environment_then_command_line_then_files():
    world = World({MAIN: "[uwsgi]\na = 3\nb = %(a)"}, environ={"UWSGI_A": "1"})
    reading = world.read("main.ini", "--set", "a=2")
    assert values(reading, "a") == ["1", "2", "3"]
    assert values(reading, "b") == ["1"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("a.ini", ("a.ini", "")),
        ("a.ini:x", ("a.ini", "x")),
        (":x", ("", "x")),
        ("a.ini:", ("a.ini", "")),
        ("exec://cat a:b/c", ("exec://cat a:b/c", "")),
        ("exec://cat /a/b:x", ("exec://cat /a/b", "x")),
    ],
)
def test_split_section(asked, expected):
    assert split_section(asked) == expected


# Warnings.


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("a = 50%", "% stands for nothing"),
        ("x = %q", "%q stands for nothing"),
        ("chdir = @(exec://date +%Y)", "%Y stands for nothing"),
        ("chdir = @(exec://date +%s)", "inside a command; write %% for each %"),
        ("proceses = 4", "did you mean processes?"),
        ("atach-daemon = x", "did you mean attach-daemon?"),
        ("env DJANGO_SETTINGS_MODULE=p.s", "did you mean env = DJANGO_SETTINGS_MODULE=p.s?"),
        ("socket = :3031", "binds only if a daemon asks"),
        ("rbrequire = bundler/setup", "lowsuper runs no application"),
        ("plugin = python", "lowsuper runs no application"),
    ],
)
def test_line_is_warned_of(line, warning):
    assert warning in " ".join(warnings_of(line))


@pytest.mark.parametrize(
    "line",
    [
        "; 100%",
        "# date +%s",
        "date = @(exec:///bin/date +%%Y-%%m-%%d)\nchdir = %(date)",
        "set-ph = basedir=/srv/app",
        "my_base = /srv\nchdir = %(my-base)",
        "touch-reload = %p",
        "master = true",
        "a = 1\nif-opt = a\nchdir = /\nendif",
    ],
)
def test_line_is_not_warned_of(line):
    assert warnings_of(line, commands={"/bin/date +%Y-%m-%d": "2024\n"}) == []


def test_ignored_option_gets_one_notice_however_often_it_comes():
    assert len(warnings_of("mule = a", "mule = b", "plugins = c")) == 2


def test_file_without_a_section_is_warned_of():
    for text, words in (("[uwgsi]\na = 1", "did you mean uwgsi"), ("a = 1", "before any section")):
        spec = load_text(text)
        assert any(words in f"{each.reason} {each.advice}" for each in spec.notices)


def test_unknown_key_is_an_error_under_strict():
    (error,) = errors_of("strict = true", "proceses = 4")
    assert "did you mean processes?" in error
    assert errors_of("strict = true", "set-ph = x=1", "declare-option = y=env=$1", "y = A=1") == []


# Sections of daemons.


def test_daemon_section_is_not_a_placeholder():
    spec = load_text("[uwsgi]\nchdir = %(command)\n[daemon:web]\ncommand = x\n")
    assert spec.chdir == "%(command)"


def test_daemon_section_has_blocks_and_references_of_its_own():
    text = (
        "[uwsgi]\nbase = /srv\n[daemon:web]\nif-env = X\ncommand = %(base)/$(X) %(_)\nelse =\n"
        "command = other\nendif\nfor = a b\ntouch = /%(_)\nendfor\n"
    )
    (daemon,) = load_text(text, environ={"X": "1"}).daemons
    assert daemon.command.argv == ("/srv/1", "1")
    assert daemon.touch == ("/a", "/b")


def test_block_must_end_in_its_daemon_section():
    with pytest.raises(ConfigError) as caught:
        load_text("[daemon:a]\nif-env = X\ncommand = a\n[uwsgi]\nendif =\n")
    lines = [(each.origin.line, each.reason) for each in caught.value.problems if each.is_error]
    assert (2, "the block has no end in this section") in lines


def test_daemons_come_in_the_order_of_the_file():
    spec = load_text(
        "[daemon:a]\ncommand = x\n[uwsgi]\nattach-daemon = b\n[daemon:c]\ncommand = x\n"
        "[uwsgi]\nattach-daemon = d\n[daemon:a]\nuid = 1\n"
    )
    assert [daemon.name for daemon in spec.daemons] == ["a", "b", "c", "d"]
    assert spec.daemons[0].user == "1"


def test_daemon_sections_are_read_once_however_often_the_file_is():
    text = "[uwsgi]\nini = :more\nini = :more\n[more]\nx = 1\n[daemon:a]\ncommand = x\n"
    assert len(load_text(text).daemons) == 1


def test_unknown_values_do_not_reach_the_specification():
    spec = load_lines("attach-daemon = @(exec://secret)", "attach-daemon = b")
    assert [daemon.name for daemon in spec.daemons] == ["b"]
    (notice,) = spec.notices
    assert notice.origin.value == "@(exec://secret)"
    assert "--exec" in notice.advice


def test_option_that_reads_files_is_no_key_of_a_daemon():
    reasons = [each.reason for each in problems_of("[daemon:a]\ncommand = x\ninclude = nope.ini")]
    assert reasons == ["a daemon has no such key"]


def test_inherit_loop_names_the_chain():
    files = {
        f"{CWD}/b.ini": "[uwsgi]\nb = 1\ninherit = c.ini",
        f"{CWD}/c.ini": "[uwsgi]\ninherit = b.ini",
    }
    reading = read("inherit = b.ini\ninherit = b.ini", files)
    assert {fault[2] for fault in faults(reading)} == {
        f"includes itself: {CWD}/b.ini -> {CWD}/c.ini -> {CWD}/b.ini"
    }
    assert values(reading, "b") == ["1", "1"]


def test_value_that_grows_without_end_is_refused():
    assert "longer than 128 KiB" in faults(read("a = " + "x" * 70000 + "\nb = %(a)%(a)"))[0][2]


def test_unclosed_references_cost_little():
    text = "%(" * 60000
    assert values(read(f"a = {text}"), "a") == [text]
