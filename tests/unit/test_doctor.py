"""What a configuration needs of a machine, and the table that `doctor` prints."""

from __future__ import annotations

import json

import pytest
from config_world import load_text

from lowsuper.doctor import find_needs, format_json, format_table, is_well
from lowsuper.kernel.probe import Row

ROWS = (
    Row("clone3", "degraded", "refused", "clone is used", "a newer kernel"),
    Row("pidfd_open", "ok", "works"),
    Row("pivot_root", "missing", "EINVAL", "no jails", "a newer kernel"),
)


def needs_of(text):
    return find_needs(load_text(f"[uwsgi]\n{text}"))


PLAIN = needs_of("attach-daemon = true")


def test_plain_daemon_needs_what_everything_rests_on():
    assert "pidfd_open" in PLAIN
    assert not {name for name in PLAIN if "namespace" in name or "mount" in name}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("attach-daemon2 = cmd=true,ns_pid=true", "namespace pid"),
        ("attach-daemon2 = cmd=true,namespaces=net", "namespace net"),
        ("attach-daemon2 = cmd=true,mounts=/a:/b", "open_tree, move_mount"),
        ("attach-daemon2 = cmd=true,mounts=/a:/b:ro", "mount_setattr"),
        ("attach-daemon2 = cmd=true,uid=1,gid=1", "capability setuid"),
        ("attach-daemon2 = cmd=true,caps=kill", "capability setpcap"),
        ("attach-daemon2 = cmd=true,touch=/a", "inotify"),
        ("smart-attach-daemon = /run/a true", "state directory"),
        ("smart-attach-daemon = /run/a true", "systemd unit"),
        ("attach-daemon = true\nkill-domain = cgroup", "cgroup v2"),
        ("attach-daemon = true\ntouch-reload = /a", "inotify"),
        ("attach-daemon = true\nnamespace = /ns", "pivot_root"),
        ("attach-daemon = true\nnamespace = /ns", "namespace mount"),
        ("attach-daemon = true\nnamespace = /ns\nnamespace-net = true", "namespace net"),
        ("attach-daemon = true\nnamespace = /ns\nnamespace-overlay = true", "overlay"),
        ("attach-daemon = true\nnamespace = /n\nnamespace-keep-mount = ro:/a", "mount_setattr"),
    ],
)
def test_option_needs_its_row(text, wanted):
    assert wanted in needs_of(text) - PLAIN


def test_table_says_what_follows_and_the_way_out():
    assert format_table(ROWS, (), colour=False) == (
        "  degraded  clone3      refused\n"
        "                        clone is used\n"
        "                        way out: a newer kernel\n"
        "  ok        pidfd_open  works\n"
        "  missing   pivot_root  EINVAL\n"
        "                        no jails\n"
        "                        way out: as above\n"
    )


def test_table_marks_what_is_needed():
    lines = format_table(ROWS, {"pivot_root"}, colour=False).splitlines()
    assert [line for line in lines if line.startswith("*")] == [
        "* missing   pivot_root  EINVAL",
        "* the configuration needs it",
    ]


def test_table_has_colours_only_where_they_are_wanted():
    assert "\033" not in format_table(ROWS, (), colour=False)
    assert "\033[31mmissing \033[0m" in format_table(ROWS, (), colour=True)


def test_table_is_broken_to_the_columns_of_the_terminal():
    rows = (Row("name", "missing", "words " * 20, "words " * 20, "words " * 20),)
    lines = format_table(rows, (), colour=False, columns=50).splitlines()
    assert max(map(len, lines)) <= 50
    assert " ".join(lines).count("words") == 60
    assert len(format_table(rows, (), colour=False, columns=10).splitlines()) == 3


def test_json_has_every_field():
    found = json.loads(format_json(ROWS, {"clone3"}))
    assert found["schema"] == 1
    assert found["rows"][0] == {
        "name": "clone3",
        "state": "degraded",
        "seen": "refused",
        "effect": "clone is used",
        "advice": "a newer kernel",
        "needed": True,
    }
    assert "needed" not in json.loads(format_json(ROWS, None))["rows"][0]


def test_configuration_looks_only_at_what_it_needs():
    assert not is_well(ROWS, None)
    assert is_well(ROWS, {"pidfd_open"})
    assert not is_well(ROWS, {"pidfd_open", "clone3"})
    assert is_well(ROWS[1:2], None)
