"""The verbs as they are typed, and what they print, without a master."""

from __future__ import annotations

import pytest

from lowsuper import cli, client, ctl
from lowsuper.client import Daemon, Exit, Reasons
from lowsuper.ctl import UsageError, act, explain_verb, find_verb, parse, screen, show, table


def typed(line):
    return parse(line.split())


# What is a request to a master, and what runs one.


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("status", 0),
        ("status web", 0),
        ("-n web status", 2),
        ("-nweb status", 1),
        ("--instance web status", 2),
        ("--instance=web status", 1),
        ("--json --quiet status", 2),
        ("--timeout 3 wait web", 2),
        ("web.ini", -1),
        ("./status", -1),
        ("run status", -1),
        ("web.ini status", -1),
        ("--attach-daemon status", -1),
        ("-M status", -1),
        ("-n web web.ini", -1),
        ("-n", -1),
        ("--help status", -1),
    ],
)
def test_find_verb_finds_requests_only(line, place):
    assert find_verb(line.split()) == place


def test_options_stand_before_or_after_names():
    expected = typed("restart web db --timeout 1m --no-block -n main")
    assert (expected.names, expected.timeout) == (("web", "db"), 60.0)
    for line in (
        "restart --timeout=1m --no-block web -n main db",
        "-n main --no-block restart web --timeout 60 db",
        "--instance=main restart -nmain web --timeout 60s --no-block db",
    ):
        call = typed(line)
        assert (call.names, call.options) == (expected.names, expected.options)


def test_words_after_two_dashes_are_names():
    assert typed("why -- -web").names == ("-web",)
    assert typed("status -- --watch -n").names == ("--watch", "-n")


def test_all_stands_for_every_daemon():
    assert typed("stop --all").names == ("*",)
    assert typed("stop -a").names == ("*",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("stop", "needs names"),
        ("stop web --all", "not both"),
        ("why", "takes one name"),
        ("why web db", "takes one name"),
        ("diff web", "takes no names"),
        ("stop web --bogus", "there is no option --bogus"),
        ("status --wach", "did you mean --watch?"),
        ("stop -x web", "there is no option -x"),
        ("stop web --timeout", "--timeout needs a value: TIME"),
        ("stop web --timeout soon", "is not a length of time"),
        ("stop web --no-block=yes", "takes no value"),
        ("status -n", "-n needs a value"),
        ("why web --watch", "there is no option --watch"),
    ],
)
def test_line_when_wrong_says_what(line, problem):
    with pytest.raises(UsageError, match=problem):
        typed(line)


def test_logs_take_numbers_of_lines_as_tail_does():
    assert typed("logs -n 20 web").options == {"lines": "20"}
    assert typed("logs -20 web").options == {"lines": "20"}
    assert typed("logs -fn5 web").options == {"follow": "", "lines": "5"}
    assert typed("-n main logs -n 5 web").options == {"instance": "main", "lines": "5"}


@pytest.mark.parametrize(
    "line", ["signal -HUP web", "signal -s HUP web", "signal --signal=HUP web"]
)
def test_signal_may_be_an_option(line):
    call = typed(line)
    assert (call.options["signal"], call.names) == ("HUP", ("web",))


def test_signal_by_number_is_an_option_too():
    assert typed("signal -9 web").options == {"signal": "9"}


@pytest.mark.parametrize("words", [["HUP", "web"], ["web", "HUP"]])
def test_signal_stands_before_or_after_the_name(words):
    assert act._find_signal(words) == ("HUP", ["web"])


def test_signal_that_a_daemon_is_named_like_comes_first():
    assert act._find_signal(["HUP", "USR1"]) == ("HUP", ["USR1"])


# Help.


@pytest.mark.parametrize("name", ctl.VERBS)
def test_every_verb_has_a_help_and_a_place_in_the_usage(name):
    text = explain_verb(name)
    assert text.startswith(f"usage: lowsuper {name}")
    assert ctl.VERBS[name].text in text
    assert f" {name}" in cli.USAGE.split("VERB --help")[1].split("Every option")[0]


@pytest.mark.parametrize("name", ctl.VERBS)
def test_every_verb_has_a_function(name):
    assert callable(ctl.find_function(name))


def test_help_shows_letters_that_work():
    assert "-n, --lines" in explain_verb("logs")
    assert "-n, --instance" not in explain_verb("logs")
    assert "-n, --instance" in explain_verb("stop")


def test_word_that_is_nearly_a_verb_gets_a_hint():
    assert "did you mean status?" in ctl.explain_unknown("statsu")
    assert "did you mean doctor?" in ctl.explain_unknown("docter")
    assert ctl.explain_unknown("/etc/x") == ctl.explain_unknown("x.ini") == ""


def test_word_that_is_a_file_gets_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "statsu").touch()
    assert ctl.explain_unknown("statsu") == ""


# Exit codes.


@pytest.mark.parametrize(
    ("line", "code", "status"),
    [
        ("status web", "unknown-name", 4),
        ("status", "no-master", 4),
        ("stop web", "no-master", 1),
        ("stop web", "unknown-name", 5),
        ("is-active web", "unknown-name", 4),
        ("stop web", "not-permitted", 4),
        ("stop web", "unknown-verb", 3),
        ("signal HUP web", "not-running", 7),
        ("wait web", "timeout", 124),
        ("stop web", "timeout", 124),
        ("stop web", "failed", 1),
        ("adopt web 3", "not-possible", 1),
    ],
)
def test_error_has_the_exit_code_of_init_scripts(line, code, status):
    assert ctl.exit_code(typed(line), client.ClientError(code, "")) == status


def test_status_of_names_is_that_of_the_first_that_does_not_run(tmp_path):
    pidfile = tmp_path / "pid"
    up = Daemon({"name": "up", "state": "running"})
    ready = Daemon({"name": "ready", "state": "ready"})
    done = Daemon({"name": "done", "state": "done"})
    starting = Daemon({"name": "starting", "state": "starting"})
    dead = Daemon({"name": "dead", "state": "failed", "pidfile": str(pidfile)})
    assert show.judge([up, ready, done]) == 0
    assert show.judge([up, starting]) == 3
    assert show.judge([dead]) == 3
    pidfile.touch()
    assert show.judge([dead, starting]) == 1


# The table.


def rows_of(*daemons, now=1000.0, memory=None):
    return table.build_rows(daemons, now, [memory] * len(daemons))


def test_row_shows_what_one_wants_to_know():
    daemon = Daemon(
        {
            "name": "web",
            "state": "running",
            "pid": 42,
            "since": 800.0,
            "restarts": 3,
            "kill_domain": "cgroup",
            "exit": {"code": 3, "monotonic": 995.0},
            "words": "up",
        }
    )
    (row,) = rows_of(daemon, memory=3_500_000)
    assert row == (
        *("web", "running", "42", "3 min 20 s", "3"),
        *("exit 3, 5 s ago", "cgroup", "3.3M", ""),
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"code": 3}, "exit 3"),
        ({"code": 0}, "exit 0"),
        ({"signal": "SIGSEGV", "core": True}, "SIGSEGV (core)"),
        ({"signal": 9, "oom": True}, "signal 9 (out of memory)"),
        ({}, "unknown"),
    ],
)
def test_last_exit_is_shortened(fields, words):
    assert table.format_exit(Exit(fields), 10.0) == words


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"state": "backoff", "next_try": 1004.2, "words": "waiting"}, "next try in 5 s"),
        ({"state": "ready", "words": "up", "status_text": "12 clients"}, "12 clients"),
        ({"state": "ready", "words": "up"}, ""),
        ({"state": "failed", "words": "given up"}, "given up"),
        ({"state": "starting", "words": "starting"}, ""),
        ({"state": "ready", "status_text": "a\x1b[2Jb"}, r"a\x1b[2Jb"),
    ],
)
def test_note_says_what_is_special(fields, note):
    assert table.describe_note(Daemon(fields), 1000.0) == note


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((None, "-"), (4096, "4K"), (900 * 1024, "900K"), (1023 * 1024, "1.0M")),
        *((3_500_000, "3.3M"), (12 << 20, "12M"), (5 << 30, "5.0G"), (3 << 40, "3.0T")),
    ],
)
def test_size_is_short(size, text):
    assert table.format_size(size) == text


def test_table_leaves_out_notes_that_nobody_has():
    text = table.format_table(rows_of(Daemon({"name": "web", "state": "running"})))
    assert "NOTE" not in text
    assert "MEMORY" in text


def test_table_without_rows_is_its_heads():
    assert table.format_table([]).startswith("NAME")


def test_table_lines_up_and_fits():
    daemons = [Daemon({"name": name, "state": "running"}) for name in ("a", "much-longer", "bb")]
    lines = table.format_table(rows_of(*daemons)).splitlines()
    assert len({line.index("running") for line in lines[1:]}) == 1
    narrow = table.format_table(rows_of(*daemons), width=20).splitlines()
    assert max(map(len, narrow)) == 20


def test_table_paints_the_state_only():
    rows = rows_of(Daemon({"name": "running", "state": "failed"}))
    plain, painted = table.format_table(rows), table.format_table(rows, color=True)
    line = painted.splitlines()[1]
    assert line.startswith("running  \x1b[31mfailed\x1b[m ")
    assert line.replace("\x1b[31m", "").replace("\x1b[m", "") == plain.splitlines()[1]


def test_name_that_would_steer_the_terminal_does_not():
    rows = rows_of(Daemon({"name": "a\x1b]0;x\x07", "state": "st\nate"}))
    text = table.format_table(rows, color=False)
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("text", "clean"),
    [("plain é", "plain é"), ("a\tb\n", r"a\tb\n"), ("\udcff", r"\udcff"), ("\u202e", r"\u202e")],
)
def test_clean_escapes_what_cannot_be_printed(text, clean):
    assert screen.clean(text) == clean


def test_color_follows_the_usual_rules(monkeypatch):
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    assert screen.wants_color("auto", {"TERM": "xterm"})
    assert not screen.wants_color("auto", {"TERM": "xterm", "NO_COLOR": "1"})
    assert screen.wants_color("auto", {"TERM": "xterm", "NO_COLOR": ""})
    assert not screen.wants_color("auto", {"TERM": "dumb"})
    assert screen.wants_color("always", {"NO_COLOR": "1"})
    assert not screen.wants_color("never", {"TERM": "xterm"})
    monkeypatch.setattr(screen, "is_terminal", lambda: False)
    assert not screen.wants_color("auto", {"TERM": "xterm"})


# Other texts.


def test_why_is_one_screen():
    reasons = Reasons(
        {
            "name": "web",
            "state": "backoff",
            "words": "waiting before the next try",
            "command": "/srv/web",
            "restarts": 12,
            "exit": {"status": "exited with 3", "after": 12.5, "monotonic": 990.0, "core": False},
            "next_try": 1004.0,
            "failure": "exec /srv/web: No such file or directory",
            "lines": ["bind: address\x1b in use"],
            "history": [{"monotonic": 990.0, "line": "web: pid 3 exited with 3"}],
            "decision": "starts again in 4 s",
        }
    )
    text = show.format_why(reasons, 1000.0)
    assert "web: backoff (waiting before the next try)" in text
    assert "exited with 3 after 12.5 s, 10 s ago" in text
    assert "No such file or directory" in text
    assert r"bind: address\x1b in use" in text
    assert "10 s ago  web: pid 3 exited with 3" in text
    assert "pidfile" not in text
    assert len(text.splitlines()) < 24


def test_changes_are_one_a_line():
    changes = {
        "added": ["new"],
        "removed": ["old"],
        "changed": {"api": ["command", "uid"]},
        "master": ["reload-mercy"],
    }
    assert act.format_changes(changes).splitlines() == [
        "+ new",
        "- old",
        "~ api       command, uid",
        "~ (master)  reload-mercy",
    ]
    assert act.format_changes({"added": []}) == "nothing differs\n"


def test_shutdown_names_what_it_waits_for():
    fields = {"name": "db", "pid": None, "seconds": 3.2, "process_state": "T"}
    assert (
        act.describe_waiting(fields, is_seen=True)
        == "waiting for db, for 3.2 s: it is stopped by a signal"
    )
