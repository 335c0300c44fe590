"""From a specification to a spawn plan."""

from __future__ import annotations

import pytest

from lowsuper.model import Command, DaemonSpec, EnvChange, Keep, Origin
from lowsuper.plan import (
    DEFAULT_PATH,
    NSINIT,
    OWN_VARIABLES,
    FdSource,
    Identity,
    Limit,
    Mount,
    build_environment,
    build_plan,
    describe_step,
    encode,
    isolate,
)

COMMAND = Command("web -p 80", ("web", "-p", "80"))
ORIGIN = Origin("test.ini", 1, "attach-daemon", "web -p 80")
MOUNTS = (Mount(b"/a", b"/b"), Mount(b"/c", b"/d", True))
WWW = Identity(33, 34, (34, 50), "www", "/var/www")
NUMBER = Identity(4711, 4712, ())


def plan_of(command=COMMAND, inherited=None, **fields):
    return build_plan("web", command, build_environment(inherited or {}, ()), **fields)


def test_environment_leaves_out_what_is_the_masters_own():
    inherited = dict.fromkeys((*OWN_VARIABLES, "LOWSUPER_X", "LOWSUPER"), "x")
    assert build_environment(inherited, ()).variables == {"LOWSUPER": "x"}


def test_environment_when_changed_follows_the_file_in_order():
    changes = [EnvChange(*pair) for pair in (("A", "1"), ("B", "2"), ("A", None), ("B", "3"))]
    assert build_environment({"A": "0", "C": "c"}, changes).variables == {"C": "c", "B": "3"}


def test_environment_when_removed_and_set_again_has_it():
    changes = [EnvChange("A", None), EnvChange("A", "1"), EnvChange("NONE", None)]
    assert build_environment({"A": "0"}, changes).variables == {"A": "1"}


def test_environment_when_the_file_asks_for_an_own_variable_gives_it():
    changes = [EnvChange("NOTIFY_SOCKET", "/x")]
    assert build_environment({"NOTIFY_SOCKET": "/y"}, changes).variables == {"NOTIFY_SOCKET": "/x"}


@pytest.mark.parametrize(
    ("path", "programs"),
    [
        ("/a:/b", (b"/a/web", b"/b/web")),
        ("/a::/b", (b"/a/web", b"./web", b"/b/web")),
        ("", (b"./web",)),
    ],
)
def test_program_without_slash_is_looked_for_in_the_daemons_path(path, programs):
    assert plan_of(inherited={"PATH": path}).programs == programs


def test_program_when_there_is_no_path_is_looked_for_in_the_usual_places():
    assert plan_of().programs == tuple(f"{place}/web".encode() for place in DEFAULT_PATH.split(":"))


@pytest.mark.parametrize("program", ["/usr/bin/web", "./web", "bin/web"])
def test_program_with_slash_is_taken_as_it_is(program):
    plan = plan_of(Command(program, (program,)), {"PATH": "/a:/b"})
    assert plan.programs == plan.argv == (program.encode(),)


def test_plan_when_the_identity_has_a_name_lets_the_environment_follow():
    plan = plan_of(inherited={"HOME": "/root", "USER": "root", "X": "1"}, identity=WWW)
    assert (plan.uid, plan.gid, plan.groups) == (33, 34, (34, 50))
    assert set(plan.envp) == {b"HOME=/var/www", b"USER=www", b"LOGNAME=www", b"X=1"}


def test_plan_when_the_identity_is_a_number_leaves_the_environment():
    plan = plan_of(inherited={"HOME": "/root"}, identity=NUMBER)
    assert (plan.uid, plan.gid, plan.groups) == (4711, 4712, ())
    assert plan.envp == (b"HOME=/root",)


def test_plan_when_there_is_no_identity_keeps_the_masters():
    plan = plan_of()
    assert (plan.uid, plan.gid, plan.groups, plan.chdir) == (None, None, None, None)


def test_plan_for_one_daemon_does_not_change_the_environment_of_the_next():
    env = build_environment({"HOME": "/root"}, ())
    build_plan("web", COMMAND, env, identity=WWW)
    assert build_plan("other", COMMAND, env).envp == (b"HOME=/root",)


def test_plan_passes_on_what_it_is_given():
    fds, limits = (FdSource(0, 5), FdSource(1, 1)), (Limit(7, 1024, 4096),)
    plan = plan_of(role=NSINIT, new_pid_ns=True, chdir="/srv", fds=fds, limits=limits)
    assert (plan.name, plan.role, plan.new_pid_ns, plan.chdir) == ("web", NSINIT, True, b"/srv")
    assert (plan.fds, plan.limits) == (fds, limits)
    assert plan.argv == (b"web", b"-p", b"80")
    assert plan.dies_with_master


def test_plan_takes_what_limits_a_daemon_from_its_keys():
    spec = DaemonSpec("web", COMMAND, ORIGIN, umask=0o27, nice=-5, oom_score=500, no_new_privs=True)
    plan = isolate(plan_of(), spec)
    assert (plan.umask, plan.nice, plan.oom_score, plan.no_new_privs) == (0o27, -5, 500, True)
    assert isolate(plan_of(), spec).caps is None
    assert isolate(plan_of(), spec.replace(caps=())).caps == 0
    assert isolate(plan_of(), spec.replace(caps=(0, 10, 10))).caps == 1 << 10 | 1
    assert isolate(plan_of(), DaemonSpec("web", COMMAND, ORIGIN)) == plan_of()


NEWNS, NEWUTS, NEWNET = 0x20000, 0x4000000, 0x40000000


@pytest.mark.parametrize(
    ("fields", "namespaces", "own_proc"),
    [
        ({"namespaces": ("mount", "net", "net")}, NEWNS | NEWNET, False),
        ({"namespaces": ("pid",), "ns_pid": True}, 0, False),
        ({"namespaces": ("pid", "mount"), "ns_pid": True}, NEWNS, True),
        ({"root": "/x"}, NEWNS, False),
        ({"root": "/x", "ns_pid": True}, NEWNS, True),
        ({"mounts": (Keep("/a", "/b"),)}, NEWNS, False),
        ({"hostname": "x"}, NEWUTS, False),
    ],
)
def test_plan_has_the_namespaces_that_keep_the_host_as_it_is(fields, namespaces, own_proc):
    plan = isolate(plan_of(), DaemonSpec("web", COMMAND, ORIGIN, **fields))
    assert (plan.namespaces, plan.own_proc) == (namespaces, own_proc)


def test_plan_takes_places_from_the_keys_of_a_daemon():
    keeps = (Keep("/a é", "/b"), Keep("/c", "/d", read_only=True))
    spec = DaemonSpec("web", COMMAND, ORIGIN, root="/r", hostname="h", mounts=keeps)
    plan = isolate(plan_of(), spec)
    assert (plan.root, plan.hostname) == (b"/r", b"h")
    assert plan.mounts == (Mount("/a é".encode(), b"/b"), Mount(b"/c", b"/d", read_only=True))


def test_encode_keeps_bytes_that_are_not_utf8():
    assert encode(b"caf\xe9 \xc3\xa9".decode("utf-8", "surrogateescape")) == b"caf\xe9 \xc3\xa9"


@pytest.mark.parametrize(
    ("step", "arg", "text"),
    [
        ("chdir", 0, "/srv\udce9"),
        ("execve", 0, "web"),
        ("setresuid", 0, "33"),
        ("setresgid", 0, "34"),
        ("setgroups", 0, "34,50"),
        ("fds", 0, "5 as descriptor 0"),
        ("fds", 1, "/log as descriptor 1"),
        ("fds", 2, ""),
        ("fds", -1, ""),
        ("rlimits", 0, "resource 7 to 1024:4096"),
        ("rlimits", 1, "core to 0:unlimited"),
        ("rlimits", 2, ""),
        ("nice", 0, "-5"),
        ("oom_score", 0, "-900"),
        ("caps", 10, "net_bind_service"),
        ("caps", 63, "capability 63"),
        ("caps", -1, ""),
        ("namespaces", 0x40000000, "net"),
        ("namespaces", 0, ""),
        ("hostname", 0, "jail"),
        ("root", 0, "/ns/1"),
        ("root", 1, "/ns/1 (pivot_root)"),
        ("proc", 0, "/proc"),
        ("mounts", 1, "/c on /d"),
        ("mounts", 2, ""),
        ("clone", 0, ""),
    ],
)
def test_step_is_described_by_what_it_was_about(step, arg, text):
    plan = plan_of(
        inherited={"PATH": "/a:/b"},
        identity=WWW,
        chdir="/srv\udce9",
        fds=(FdSource(0, 5), FdSource(1, path=b"/log")),
        limits=(Limit(7, 1024, 4096), Limit(4, 0, -1, "core")),
    ).replace(nice=-5, oom_score=-900, hostname=b"jail", root=b"/ns/1", mounts=MOUNTS)
    assert describe_step(plan, step, arg) == text


def test_execve_when_the_program_has_a_path_is_described_by_that():
    assert describe_step(plan_of(Command("/x/y", ("/x/y",))), "execve", 0) == "/x/y"
