import pytest

from lowsuper.config.arguments import parse_arguments, parse_environment
from lowsuper.errors import ConfigError


def parse(*words):
    return [(option.name, option.value) for option in parse_arguments(words)]


def refuse(*words):
    with pytest.raises(ConfigError) as caught:
        parse_arguments(words)
    return [f"{each.origin.key}: {each.reason}; {each.advice}" for each in caught.value.problems]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.ini"], [("ini", "a.ini")]),
        (["--ini", "a.ini"], [("ini", "a.ini")]),
        (["--ini=a.ini"], [("ini", "a.ini")]),
        (["--attach-daemon", "memcached -p 1"], [("attach-daemon", "memcached -p 1")]),
        (["--attach-daemon", "--strange"], [("attach-daemon", "--strange")]),
        (["a.ini", "--master", "b.ini"], [("master", ""), ("ini", "a.ini"), ("ini", "b.ini")]),
        (["--die-on-term=false"], [("die-on-term", "false")]),
        (["-M", "-d", "log"], [("master", ""), ("daemonize", "log")]),
        (["-Mdlog"], [("master", ""), ("daemonize", "log")]),
        (["-S", "x=1", "--set-ph", "y=2"], [("set", "x=1"), ("set-ph", "y=2")]),
        (["-s", ":3031", "-H", "/venv"], [("socket", ":3031"), ("home", "/venv")]),
        (["--log-date", "a.ini"], [("log-date", ""), ("ini", "a.ini")]),
        (["--if-env", "X", "--env", "A=b", "--endif"], [
            ("if-env", "X"), ("env", "A=b"), ("endif", ""),
        ]),
        (["--processes", "4", "--enable-threads", "x"], [
            ("processes", "4"), ("enable-threads", ""), ("ini", "x"),
        ]),
        (["--declare-option", "red=env=$1", "--red", "A=b"], [
            ("declare-option", "red=env=$1"), ("red", "A=b"),
        ]),
        (["--", "--x.ini"], [("ini", "--x.ini")]),
        (["-"], [("ini", "-")]),
    ],
)  # fmt: skip
def test_command_line(words, expected):
    assert parse(*words) == expected


def test_unknown_option_names_the_nearest():
    assert refuse("--atach-daemon", "x") == [
        "--atach-daemon: there is no such option; did you mean attach-daemon?"
    ]


def test_unknown_option_without_a_like_one_tells_of_placeholders():
    assert refuse("--qqqqqq=1") == [
        "--qqqqqq=1: there is no such option; for a placeholder write --set-ph qqqqqq=VALUE"
    ]


def test_all_faults_of_a_command_line_come_at_once():
    assert len(refuse("--qqqqqq", "-?", "--attach-daemon")) == 3


def test_missing_value_is_refused():
    assert refuse("--chdir") == ["--chdir: needs a value; "]


def test_environment():
    environ = {
        "UWSGI_TOUCH_RELOAD": "/x",
        "LOWSUPER_ATTACH_DAEMON": "memcached",
        "UWSGI_RELOADS": "3",
        "UWSGI_MY_THING": "v",
        "PATH": "/bin",
    }
    found = [(each.name, each.value, each.placeholder) for each in parse_environment(environ)]
    assert found == [
        ("touch-reload", "/x", False),
        ("attach-daemon", "memcached", False),
        ("my-thing", "v", True),
    ]
