"""The options of a jail."""

from __future__ import annotations

import pytest
from config_world import load_lines

from lowsuper.errors import ConfigError
from lowsuper.model import Jail, Keep


def test_without_namespace_there_is_no_jail():
    assert load_lines("chdir = /").jail is None


@pytest.mark.parametrize(
    ("line", "jail"),
    [
        ("namespace = /ns/001/:testns", Jail("/ns/001", "testns")),
        ("ns = /ns/001:a.b-c", Jail("/ns/001", "a.b-c")),
        ("namespace = //a b/./ü/", Jail("/a b/ü", None)),
        ("namespace = /x:", Jail("/x", None)),
    ],
)
def test_namespace_has_a_root_and_a_host_name(line, jail):
    assert load_lines(line).jail == jail


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("ns/001", "ns/001 is not an absolute path: begin it with /"),
        ("", "it is not an absolute path: begin it with /"),
        ("/ns/../etc", "/ns/../etc has .. in it: write where it leads"),
        ("/", "the root of the host is no jail: name another directory"),
        ("/x:two words", "two words is no host name: letters, digits, - and . make one"),
        (f"/x:{'a' * 65}", "the host name is longer than 64"),
    ],
)
def test_bad_namespace_is_an_error(value, reason):
    with pytest.raises(ConfigError) as caught:
        load_lines(f"namespace = {value}")
    assert [problem.reason for problem in caught.value.problems] == [reason]


@pytest.mark.parametrize(
    ("value", "keep"),
    [
        ("/dev/pts", Keep("/dev/pts", "/dev/pts")),
        ("/ns/001/data/", Keep("/ns/001/data", "/data")),
        ("/ns/0010", Keep("/ns/0010", "/ns/0010")),
        ("/srv/a b:/x/y", Keep("/srv/a b", "/x/y")),
        ("ro:/etc/ssl", Keep("/etc/ssl", "/etc/ssl", read_only=True)),
        ("optional:ro:/a:/b", Keep("/a", "/b", read_only=True, optional=True)),
    ],
)
def test_keep_mount_has_a_source_and_a_target(value, keep):
    jail = load_lines("namespace = /ns/001", f"namespace-keep-mount = {value}").jail
    assert jail.keeps == (keep,)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("dev", "dev is not an absolute path: begin it with /"),
        ("/a:b", "b is not an absolute path: begin it with /"),
        ("/a:/b/../..", "/b/../.. has .. in it: write where it leads"),
        ("/a:/", "the root of the jail itself is what namespace names"),
        ("/ns/001", "the root of the jail itself is what namespace names"),
        ("/proc", "the jail has a /proc of its own"),
        ("/x:/proc/sys", "the jail has a /proc of its own"),
    ],
)
def test_bad_keep_mount_is_an_error_and_all_are_told(value, reason):
    with pytest.raises(ConfigError) as caught:
        load_lines(
            "namespace = /ns/001", f"namespace-keep-mount = {value}", "namespace-keep-mount = x"
        )
    assert [problem.reason for problem in caught.value.problems] == [
        reason,
        "x is not an absolute path: begin it with /",
    ]


def test_switches_of_the_jail():
    jail = load_lines("namespace = /x", "ns-net = true", "namespace-overlay = yes").jail
    assert (jail.net, jail.overlay) == (True, True)
    assert not load_lines("namespace = /x", "namespace-net = false").jail.net
    with pytest.raises(ConfigError):
        load_lines("namespace = /x", "namespace-overlay = eth0")


def test_options_of_a_jail_without_one_are_noticed():
    spec = load_lines("namespace-keep-mount = /dev", "namespace-net = true")
    assert spec.jail is None
    assert [notice.reason for notice in spec.notices] == ["does nothing without namespace"] * 2


def test_last_namespace_counts():
    assert load_lines("namespace = /a:x", "namespace = /b").jail == Jail("/b")


def test_cgroups_cannot_be_asked_for_in_a_jail():
    with pytest.raises(ConfigError) as caught:
        load_lines("kill-domain = cgroup", "namespace = /x")
    assert [problem.reason for problem in caught.value.problems] == [
        "there are no cgroups in a jail"
    ]
