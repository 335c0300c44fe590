import pytest
from config_world import load_lines

from lowsuper.config import readiness
from lowsuper.errors import ConfigError
from lowsuper.model import Readiness
from lowsuper.units import SECOND


def load_daemons(*lines):
    return load_lines(*lines).daemons


def problems_of(*lines):
    try:
        return load_lines(*lines).notices
    except ConfigError as error:
        return error.problems


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("exec:pg_isready -q", "exec", "pg_isready -q"),
        ("exec: a:b ", "exec", "a:b"),
        ("tcp:127.0.0.1:80", "tcp", "127.0.0.1:80"),
        ("tcp:localhost:080", "tcp", "localhost:80"),
        ("tcp:80", "tcp", "localhost:80"),
        ("tcp::80", "tcp", "localhost:80"),
        ("tcp:*:80", "tcp", "localhost:80"),
        ("TCP:[::1]:65535", "tcp", "[::1]:65535"),
        ("unix:/run/x.sock", "unix", "/run/x.sock"),
        ("unix:x.sock", "unix", "x.sock"),
        ("unix:@name", "unix", "@name"),
        ("file:/run/a:b", "file", "/run/a:b"),
        ("pidfile", "pidfile", ""),
        (" Notify ", "notify", ""),
        ("fd:03", "fd", "3"),
    ],
)
def test_ready(text, kind, target):
    assert readiness.parse_ready(text) == Readiness(kind, target)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no way"),
        ("notfy", "did you mean notify"),
        ("http:x", "write exec:COMMAND"),
        ("notify:x", "takes nothing"),
        ("exec:", "needs something"),
        ("tcp:db.example:5432", "is a name, which is not looked up"),
        ("tcp:01.2.3.4:1", "is a name"),
        ("tcp:1.2.3.4", "is not HOST:PORT"),
        ("tcp:1.2.3.4:0", "is not HOST:PORT"),
        ("tcp:1.2.3.4:65536", "is not HOST:PORT"),
        ("tcp:1.2.3.4:99999999999999", "is not HOST:PORT"),
        ("tcp:::1:80", "needs brackets"),
        ("tcp:[::g]:80", "is not an address of IPv6"),
        ("tcp:[1::2::3]:80", "is not an address of IPv6"),
        ("unix:/run/", "names a directory"),
        ("unix:@", "needs a name"),
        ("unix:/" + "x" * 107, "is longer than 107 bytes"),
        ("file:/run/", "names a directory"),
        ("fd:2", "is not a descriptor from 3 to 1023"),
        ("fd:x", "is not a descriptor"),
        ("exec:a\0b", "holds a NUL byte"),
    ],
)
def test_ready_that_means_nothing_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        readiness.parse_ready(text)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("::", True),
        ("::1", True),
        ("fe80::1:2", True),
        ("1:2:3:4:5:6:7:8", True),
        ("1:2:3:4:5:6:7::", True),
        ("::ffff:1.2.3.4", True),
        ("1:2:3:4:5:6:1.2.3.4", True),
        ("1:2:3:4:5:6:7", False),
        ("1:2:3:4:5:6:7:8:", False),
        ("1:2:3:4:5:6:7:8::", False),
        ("1.2.3.4::", False),
        ("fe80::1%eth0", False),
        ("12345::", False),
        ("", False),
    ],
)
def test_address_of_ipv6(text, is_one):
    assert readiness.is_ipv6(text) == is_one


@pytest.mark.parametrize("text", ["a, b;c", "a b c", "a,b,,c,a"])
def test_names(text):
    assert readiness.parse_names(text) == ("a", "b", "c")


@pytest.mark.parametrize(("text", "reason"), [(" ,", "empty"), ("a*", "pattern"), ("a/b", "holds")])
def test_names_that_are_none_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        readiness.parse_names(text)


def test_keys_of_a_section_and_of_a_line():
    section, line, _ = load_daemons(
        "attach-daemon2 = name=one,cmd=x,ready=tcp:80,start_timeout=1m,groups=web",
        "attach-daemon2 = name=two,cmd=x,ready='exec:a, b',requires='one, db',after=one",
        "attach-daemon2 = name=db,cmd=x,type=oneshot",
    )
    assert section.ready == Readiness("tcp", "localhost:80")
    assert (section.start_timeout, section.groups) == (60 * SECOND, ("web",))
    assert line.ready == Readiness("exec", "a, b")
    assert (line.requires, line.after) == (("one", "db"), ("one",))


def test_order_of_daemons_that_exist_has_no_problem():
    lines = [f"attach-daemon2 = name=d{n},cmd=x,after=d{n - 1},wants=d0" for n in range(2, 300)]
    assert not problems_of(
        "attach-daemon2 = name=d0,cmd=x", "attach-daemon2 = name=d1,cmd=x,requires=d0", *lines
    )


def test_unknown_daemon_and_the_daemon_itself_are_refused():
    one, other = problems_of(
        "attach-daemon2 = name=web,cmd=x,requires=postgers,after=web",
        "attach-daemon2 = name=postgres,cmd=x",
    )
    assert (one.origin.key, one.reason) == ("requires", "there is no daemon postgers")
    assert one.advice == "did you mean postgres?"
    assert (other.origin.key, other.reason) == ("after", "web is this daemon itself")


@pytest.mark.parametrize(
    "keys",
    [
        ("requires", "after", "wants"),
        ("after", "after", "after"),
        ("wants", "requires", "requires"),
    ],
)
def test_circle_is_named(keys):
    found = problems_of(
        "attach-daemon2 = name=z,cmd=x,after=a",
        f"attach-daemon2 = name=a,cmd=x,{keys[0]}=b",
        f"attach-daemon2 = name=b,cmd=x,{keys[1]}=c",
        f"attach-daemon2 = name=c,cmd=x,{keys[2]}=a",
    )
    (problem,) = found
    assert problem.is_error
    assert "a -> b -> c -> a" in problem.reason
    assert (problem.daemon, problem.origin.key) == ("a", keys[0])


def test_two_circles_are_both_named():
    found = problems_of(
        "attach-daemon2 = name=a,cmd=x,after=b",
        "attach-daemon2 = name=b,cmd=x,after=a",
        "attach-daemon2 = name=c,cmd=x,after=d",
        "attach-daemon2 = name=d,cmd=x,after=c",
    )
    assert [each.reason.rpartition(": ")[2] for each in found] == ["a -> b -> a", "c -> d -> c"]


def test_daemon_that_could_not_be_read_is_no_unknown_one():
    problems = problems_of("attach-daemon2 = name=web,cmd=x,after=db", "[daemon:db]", "control = 1")
    assert [each.reason for each in problems] == ["there is no command"]


@pytest.mark.parametrize(
    ("keys", "key", "reason"),
    [
        ("ready=pidfile", "ready", "there is no pidfile"),
        ("start_timeout=3", "start_timeout", "means nothing without ready"),
        ("type=oneshot,ready=notify", "ready", "contradicts type = oneshot"),
        ("type=oneshot,pidfile=/run/x", "pidfile", "contradicts type = oneshot"),
        ("type=oneshot,watchdog=3", "watchdog", "contradicts type = oneshot"),
        ("ready=notify,root=/r,namespaces=net", "ready", "no socket can be reached"),
    ],
)
def test_contradiction_is_refused(keys, key, reason):
    (problem,) = problems_of(f"attach-daemon2 = name=web,cmd=x,{keys}")
    assert problem.is_error
    assert problem.origin.key == key
    assert reason in problem.reason


def test_shell_that_stays_cannot_notify_for_its_program():
    command = "cmd=cd / && x"
    (problem,) = problems_of(f"attach-daemon2 = name=web,{command},ready=notify")
    assert not problem.is_error
    assert problem.advice == "add notify_access = all"
    assert not problems_of(f"attach-daemon2 = name=web,{command},ready=notify,notify_access=all")


def test_pidfile_of_a_smart_daemon_is_a_way_to_be_ready():
    (daemon,) = load_daemons("attach-daemon2 = name=web,cmd=x,ready=pidfile,pidfile=/run/x")
    assert daemon.ready == Readiness("pidfile")


def test_types_and_access():
    assert readiness.parse_type(" Oneshot") == "oneshot"
    assert readiness.parse_access("all") == "all"
    with pytest.raises(ValueError, match="did you mean oneshot"):
        readiness.parse_type("one-shot")
