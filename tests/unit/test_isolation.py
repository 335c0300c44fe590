"""The values of the keys that limit and isolate a daemon."""

from __future__ import annotations

import pytest

from lowsuper.config import isolation, keys
from lowsuper.model import Keep, ResourceLimit


@pytest.mark.parametrize(
    ("resource", "text", "soft", "hard"),
    [
        ("nofile", "1024", 1024, 1024),
        ("nofile", "1024:4096", 1024, 4096),
        ("nofile", " 1 : 2 ", 1, 2),
        ("nproc", "0:unlimited", 0, -1),
        ("core", "unlimited", -1, -1),
        ("core", "Infinity", -1, -1),
        ("core", "0", 0, 0),
        ("as", "2G", 2 << 30, 2 << 30),
        ("stack", "64k:1M", 64 << 10, 1 << 20),
        ("memlock", "4096", 4096, 4096),
        ("cpu", "90", 90, 90),
        ("cpu", "1.2s:1h", 2, 3600),
        ("rttime", "500ms:1s", 500_000, 1_000_000),
        ("rttime", "0", 0, 0),
        ("nice", "-5", 25, 25),
        ("nice", "+19", 1, 1),
        ("nice", "40", 40, 40),
        ("rtprio", "99", 99, 99),
    ],
)
def test_limit(resource, text, soft, hard):
    assert keys.NAMES[f"rlimit_{resource}"].parse(text) == (ResourceLimit(resource, soft, hard),)


@pytest.mark.parametrize(
    ("resource", "text", "reason"),
    [
        ("nofile", "", "not a number"),
        ("nofile", "1k", "not a number"),
        ("nofile", "-1", "not between"),
        ("nofile", "2:1", "above its hard limit"),
        ("nofile", "unlimited:1", "above its hard limit"),
        ("nofile", "1:2:3", "neither SOFT nor SOFT:HARD"),
        ("nofile", "1:", "not a number"),
        ("as", "1.5G", "not a size"),
        ("as", "9999999999999T", "more than"),
        ("cpu", "soon", "length of time"),
        ("rttime", "500", "needs a unit"),
        ("nice", "-21", "not between"),
        ("nice", "41", "not between"),
        ("rtprio", "100", "not between"),
    ],
)
def test_limit_that_is_none_is_refused(resource, text, reason):
    with pytest.raises(ValueError, match=reason):
        isolation.parse_limit(resource, text)


def test_every_resource_has_a_key():
    wanted = {f"rlimit_{resource}" for resource in isolation.RESOURCES}
    assert {name for name in keys.NAMES if name.startswith("rlimit_")} == wanted


@pytest.mark.parametrize(
    ("text", "caps"),
    [
        ("kill", (5,)),
        ("CAP_NET_BIND_SERVICE, chown", (10, 0)),
        ("chown;Kill  cap_checkpoint_restore", (0, 5, 40)),
        ("none", ()),
        ("NONE", ()),
    ],
)
def test_caps(text, caps):
    assert keys.NAMES["caps"].parse(text) == caps


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (",", "is empty"),
        ("net_bind_servise", "no capability net_bind_servise; did you mean net_bind_service"),
        ("cap_net_rwa", "no capability net_rwa; did you mean net_raw"),
        ("none,kill", "no capability none"),
        ("5", "no capability 5"),
    ],
)
def test_caps_that_are_none_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        isolation.parse_caps(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pid,mount", ("pid", "mount")),
        ("NET", ("net",)),
        ("uts ipc;cgroup", ("uts", "ipc", "cgroup")),
    ],
)
def test_namespaces(text, names):
    assert keys.NAMES["namespaces"].parse(text) == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("mnt", "namespace mnt; did you mean mount"),
        ("user", "there are pid, mount"),
    ],
)
def test_namespaces_that_are_none_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        isolation.parse_namespaces(text)


@pytest.mark.parametrize(
    ("text", "mounts"),
    [
        ("/a:/b", (Keep("/a", "/b"),)),
        ("/a:/b:ro; /c:/d", (Keep("/a", "/b", True), Keep("/c", "/d"))),
        ("'/a;x:/b';/with space:/é", (Keep("/a;x", "/b"), Keep("/with space", "/é"))),
    ],
)
def test_mounts(text, mounts):
    assert keys.NAMES["mounts"].parse(text) == mounts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("/a", "neither SOURCE:TARGET"),
        ("/a:/b:rw", "neither SOURCE:TARGET"),
        ("/a:/b:ro:x", "neither SOURCE:TARGET"),
        ("a:/b", "a is not an absolute path"),
        ("/a:", "/a: is not an absolute path"),
        ("/a:b", "b is not an absolute path"),
    ],
)
def test_mounts_that_are_none_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        keys.NAMES["mounts"].parse(text)


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a/b", "é"])
def test_hostname_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a name|holds"):
        isolation.parse_hostname(text)


def test_root_is_absolute():
    assert keys.NAMES["root"].parse("/ns/1") == "/ns/1"
    for text in ("", "ns/1", "/a\0b"):
        with pytest.raises(ValueError, match="absolute"):
            keys.NAMES["root"].parse(text)
