import pytest

from lowsuper.config import keys
from lowsuper.model import DaemonSpec


def test_every_key_has_a_field():
    for key in keys.KEYS:
        assert key.field in DaemonSpec.__match_args__
        assert key.help


def test_names_are_unique():
    names = [name for key in keys.KEYS for name in key.names]
    assert len(names) == len(set(names))


def test_all_keys_of_uwsgi_are_known():
    of_uwsgi = """command cmd exec freq pidfile control daemonize daemon touch
        stopsignal stop_signal reloadsignal reload_signal stdin uid gid ns_pid chdir
        max_throttle notifypid legion"""
    for name in of_uwsgi.split():
        assert keys.find_key(name) is not None


def test_hyphen_and_underscore_are_alike():
    assert keys.find_key("ns-pid") is keys.find_key("ns_pid")
    assert keys.find_key("notify-pid") is keys.find_key("notifypid")


@pytest.mark.parametrize("name", ["web", "web-1", "a.b", "x@y:z+1", "_", "a" * 64])
def test_name_is_accepted(name):
    assert keys.parse_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a b", "é", "a" * 65, "a\n", "a\0"])
def test_name_that_is_no_directory_is_refused(name):
    with pytest.raises(ValueError, match=r"empty|dot|holds|longer"):
        keys.parse_name(name)


def test_cleaned_names_are_names():
    for text in ("a b", "../x", "é", "x" * 100, ".hidden", "a/b/c", "---"):
        cleaned = keys.clean_name(text)
        assert cleaned == "" or keys.parse_name(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("/a;/b", ("/a", "/b")),
        ("/a; /b;", ("/a", "/b")),
        ("'/a;b';/c", ("/a;b", "/c")),
        ("/a\\;b", ("/a;b",)),
    ],
)
def test_touch(text, files):
    assert keys.parse_touch(text) == files


@pytest.mark.parametrize("text", ["", "/a/", "/", ".", "a/..", "a\0"])
def test_pidfile_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"empty|directory|NUL"):
        keys.parse_pidfile(text)


def test_pidfile_stays_as_written():
    assert keys.parse_pidfile("a//./b.pid") == "a//./b.pid"


def test_patience_is_more_than_nothing():
    assert keys.parse_patience("1ms") == 1_000_000
    for text in ("0", "0s", "0.0"):
        with pytest.raises(ValueError, match="not more than 0"):
            keys.parse_patience(text)


def test_touch_without_a_file_is_refused():
    for text in ("", ";", "'/a"):
        with pytest.raises(ValueError, match=r"empty|no end"):
            keys.parse_touch(text)
