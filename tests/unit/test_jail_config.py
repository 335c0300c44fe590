"""The options of a jail."""

from __future__ import annotations

import pytest
from config_world import load_lines

from lowsuper.config.jail import NAMESPACES
from lowsuper.errors import ConfigError
from lowsuper.model import CHROOT, PIVOT, UNSHARE, Jail, Keep


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


# The other ways.


def bare(way, root=None, **more):
    return Jail(root, way=way, namespaces=(), post_jail="").replace(**more)


@pytest.mark.parametrize(
    ("lines", "jail"),
    [
        (("chroot = /x/",), bare(CHROOT, "/x")),
        (("pivot-root = /x",), bare(PIVOT, "/x")),
        (("pivot_root = /x /x/old",), bare(PIVOT, "/x", old_root="/old")),
        (("unshare = files",), bare(UNSHARE, post_jail="inside")),
        (
            ("unshare = fs,ipc", "unshare = net,hostname"),
            bare(UNSHARE, namespaces=("mount", "ipc", "uts"), net=True, post_jail="inside"),
        ),
        (("unshare2 = pid,cgroup",), bare(UNSHARE, namespaces=("pid", "cgroup"))),
        (("chroot = /x", "unshare2 = mnt"), bare(CHROOT, "/x", namespaces=("mount",))),
        (
            ("chroot = /x", "unshare = pid"),
            bare(CHROOT, "/x", namespaces=("pid",), post_jail="inside"),
        ),
        (("namespace = /x", "unshare = net,pid"), Jail("/x", net=True)),
        (
            ("namespace = /x", "unshare = cgroup"),
            Jail("/x", namespaces=("pid", "mount", "uts", "ipc", "cgroup")),
        ),
        (("setns = /run/s",), bare(UNSHARE, joins="/run/s")),
        (("namespace = /x", "setns = /run/s"), Jail("/x", joins="/run/s")),
    ],
)
def test_ways_into_a_jail(lines, jail):
    assert load_lines(*lines).jail == jail


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("chroot = x", "x is not an absolute path: begin it with /"),
        ("chroot = /", "the root of the host is no other root: name another directory"),
        ("pivot-root =", "is neither NEW_ROOT nor NEW_ROOT OLD_ROOT"),
        ("pivot-root = /a /b /c", "is neither NEW_ROOT nor NEW_ROOT OLD_ROOT"),
        ("pivot-root = /a /b", "/b, where the old root is to go, is not below /a"),
        ("unshare = piid", "there is no namespace piid; did you mean pid?"),
        (
            "unshare =",
            f"names no namespace: there are {', '.join(NAMESPACES)}",
        ),
        ("unshare2 = io", "io cannot be unshared: see unshare(2)"),
        ("setns = s", "s is not an absolute path: begin it with /"),
        (f"setns-socket = /{'a' * 107}", "is longer than the 107 bytes of unix(7)"),
        ("setns-skip = nett", "there is no nett in /proc/self/ns; did you mean net?"),
    ],
)
def test_bad_way_into_a_jail_is_an_error(line, reason):
    with pytest.raises(ConfigError) as caught:
        load_lines(line)
    assert [problem.reason for problem in caught.value.problems] == [reason]


def test_user_namespaces_are_refused_with_the_reason():
    with pytest.raises(ConfigError) as caught:
        load_lines("unshare = user")
    assert "would not be root any more" in caught.value.problems[0].reason


def test_a_jail_has_one_root():
    with pytest.raises(ConfigError) as caught:
        load_lines("chroot = /a", "pivot-root = /b", "namespace = /c")
    assert [problem.reason for problem in caught.value.problems] == [
        "there is namespace, too: a jail has one root"
    ] * 2


def test_what_only_namespace_has_is_noticed():
    spec = load_lines("chroot = /a", "namespace-keep-mount = /dev", "hook-post-jail = print:x")
    assert [notice.reason for notice in spec.notices] == [
        "does nothing with chroot, only with namespace",
        "does nothing with chroot, only with namespace or unshare",
    ]
    assert spec.jail.keeps == ()


@pytest.mark.parametrize(
    ("line", "has_cgroups"),
    [
        ("unshare = net", True),
        ("unshare = pid", False),
        ("chroot = /x", False),
        ("setns = /x", False),
    ],
)
def test_where_cgroups_can_be_asked_for(line, has_cgroups):
    lines = ("kill-domain = cgroup", line)
    if has_cgroups:
        assert load_lines(*lines).kill_domain == "cgroup"
        return
    with pytest.raises(ConfigError) as caught:
        load_lines(*lines)
    assert [each.reason for each in caught.value.problems] == ["there are no cgroups in a jail"]


def test_sharing_of_namespaces():
    spec = load_lines("setns-socket = /run/s", "setns-skip = pid,mnt", "setns-socket-skip = time")
    assert (spec.setns_socket, spec.setns_skip) == ("/run/s", ("pid", "mnt", "time"))
    assert spec.jail is None
