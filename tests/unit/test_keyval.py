import pytest

from lowsuper.config.keyval import Item, parse_items, unquote


def pairs(text):
    return [(item.key, item.value) for item in parse_items(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cmd=a b,uid=33", [("cmd", "a b"), ("uid", "33")]),
        ("cmd=./run.sh,daemonize", [("cmd", "./run.sh"), ("daemonize", None)]),
        ("cmd=a --x=y", [("cmd", "a --x=y")]),
        ("cmd=echo 'a,b',uid=1", [("cmd", "echo 'a,b'"), ("uid", "1")]),
        ('cmd=echo "a,b"', [("cmd", 'echo "a,b"')]),
        ('cmd=echo "it\'s, so",uid=1', [("cmd", 'echo "it\'s, so"'), ("uid", "1")]),
        ("cmd=a\\,b", [("cmd", "a,b")]),
        ("cmd=a\\\\b", [("cmd", "a\\b")]),
        ("cmd=don\\'t", [("cmd", "don't")]),
        ("cmd='a\\,b'", [("cmd", "'a,b'")]),
        ("cmd=a , uid = 3 ,", [("cmd", "a"), ("uid", "3")]),
        ("cmd=,uid=", [("cmd", ""), ("uid", "")]),
        (",,cmd=a", [("cmd", "a")]),
    ],
)
def test_items(text, expected):
    assert pairs(text) == expected


def test_blank_before_a_key_is_told():
    assert parse_items("cmd=a, uid=1,gid=2") == [
        Item("cmd", "a", False),
        Item("uid", "1", True),
        Item("gid", "2", False),
    ]


def test_quote_without_end_is_refused():
    with pytest.raises(ValueError, match="has no end"):
        parse_items("cmd=echo 'a,b")


def test_unquote_takes_only_quotes_around_the_whole():
    assert [unquote(text) for text in ("'a b'", '"a"', "'a' 'b'", "a'b'", "'")] == [
        "a b",
        "a",
        "'a' 'b'",
        "a'b'",
        "'",
    ]
