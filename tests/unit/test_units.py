import signal

import pytest

from lowsuper.units import (
    SECOND,
    nearest_name,
    parse_bool,
    parse_duration,
    parse_int,
    parse_mode,
    parse_signal,
    parse_size,
)


@pytest.mark.parametrize("text", ["true", "yes", "on", "1", "TRUE", " On ", ""])
def test_parse_bool_true(text):
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["false", "no", "off", "0", "No"])
def test_parse_bool_false(text):
    assert parse_bool(text) is False


@pytest.mark.parametrize("text", ["2", "maybe", "truee"])
def test_parse_bool_of_another_word_is_refused(text):
    with pytest.raises(ValueError, match="neither true nor false"):
        parse_bool(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10),
        ("10s", 10),
        ("1.5", 1.5),
        ("2m", 120),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1 h", 3600),
        ("0", 0),
        (".25s", 0.25),
        ("1d", 86400),
        ("250us", 0.00025),
    ],
)
def test_parse_duration(text, seconds):
    assert parse_duration(text) == int(seconds * SECOND)


@pytest.mark.parametrize("text", ["", "s", "-1", "1x", "1.2.3", "ten", "nan", "inf", "1e3", "٣"])
def test_parse_duration_of_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="length of time"):
        parse_duration(text)


def test_parse_duration_of_ages_is_refused():
    with pytest.raises(ValueError, match="hundred years"):
        parse_duration("99999d")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15", 15),
        ("TERM", signal.SIGTERM),
        ("sigquit", signal.SIGQUIT),
        ("SIGHUP", signal.SIGHUP),
        ("RTMIN", signal.SIGRTMIN),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-1", signal.SIGRTMAX - 1),
        ("64", 64),
    ],
)
def test_parse_signal(text, number):
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["0", "65", "", "RTMIN+99", "RTMAX+1", "-9", "12345"])
def test_parse_signal_that_does_not_exist_is_refused(text):
    with pytest.raises(ValueError, match="signal"):
        parse_signal(text)


def test_parse_signal_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean TERM\?"):
        parse_signal("SIGTERMM")


@pytest.mark.parametrize(("text", "mode"), [("022", 0o22), ("0o77", 0o77), ("7", 7), ("0000", 0)])
def test_parse_mode(text, mode):
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "8", "rwx", "10000", "-1", "0x7"])
def test_parse_mode_that_is_not_octal_is_refused(text):
    with pytest.raises(ValueError, match="octal"):
        parse_mode(text)


def test_parse_size():
    assert [parse_size(text) for text in ("4096", "64k", "10M", "1GiB")] == [
        4096,
        65536,
        10 << 20,
        1 << 30,
    ]
    with pytest.raises(ValueError, match="size"):
        parse_size("1.5x")


def test_parse_int_keeps_its_bounds():
    assert parse_int("42", most=42) == 42
    for text in ("43", "-1"):
        with pytest.raises(ValueError, match="between 0 and 42"):
            parse_int(text, most=42)
    with pytest.raises(ValueError, match="not a number"):
        parse_int("4_2")


def test_nearest_name_is_empty_when_nothing_is_like_it():
    assert nearest_name("pidflie", ["pidfile", "uid"]) == "pidfile"
    assert nearest_name("zzz", ["pidfile", "uid"]) == ""
