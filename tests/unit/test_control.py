"""The protocol of the control socket: requests are looked at with suspicion, daemons described."""

from __future__ import annotations

import fnmatch
import json
import random
import tomllib
from pathlib import Path

import pytest

from lowsuper import control
from lowsuper.chronicle import Chronicle
from lowsuper.config.control import READ, VERBS, parse_owner, parse_rule, parse_socket
from lowsuper.control import (
    EXITED,
    READY,
    RUNNING,
    STOPPED,
    Place,
    RequestError,
    has_come,
    matches,
    parse_request,
    resolve_names,
)
from lowsuper.events import DaemonDied, DaemonStarted
from lowsuper.machine import Awaiting, Backoff, Down, Looking, Over, Starting, Stopping, Up
from lowsuper.model import Command, ControlRule, DaemonSpec, Origin, Readiness

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = Origin("test.ini", 1, "attach-daemon", "web")
SPEC = DaemonSpec("web", Command("sleep 9", ("sleep", "9")), ORIGIN)


def request(**fields):
    return parse_request(json.dumps(fields).encode() + b"\n")


def refusal_of(line: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        parse_request(line)
    assert len(caught.value.message) < 500
    return caught.value.code


def test_version_is_that_of_the_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == control.VERSION


def test_schema_has_the_verbs_the_errors_and_the_fields():
    schema = json.loads((ROOT / "lowsuper" / "schema" / "control-1.json").read_text())["$defs"]
    request_ = schema["request"]["properties"]
    assert request_["do"]["enum"] == list(control.VERBS)
    assert request_["for"]["enum"] == list(control.GOALS)
    made = control.describe_daemon(SPEC, Up(1, 0, 1, 5), None, Place())
    assert list(made) == schema["daemon"]["required"] == list(schema["daemon"]["properties"])
    codes = [control.BAD_REQUEST, control.UNKNOWN_VERB, control.UNKNOWN_NAME, control.NOT_PERMITTED,
             control.NOT_POSSIBLE, control.FAILED, control.TIMEOUT, control.TOO_MANY]  # fmt: skip
    assert schema["error"]["properties"]["error"]["enum"] == codes


def test_configuration_knows_the_verbs_of_the_protocol():
    assert set(VERBS) == set(control.VERBS)
    assert set(READ) <= set(VERBS)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"x\n",
        b"{\n",
        b"null\n",
        b"[]\n",
        b'"do"\n',
        b"{}\n",
        b'{"do":null}\n',
        b'{"do":["status"]}\n',
        b'{"do":"status"}{"do":"status"}\n',
        b'{"do":"status"\xff}\n',
        b'{"do":"sta\0tus"}\n',
        b"\0\0\0\n",
        b'{"do":"status","names":{}}\n',
        b'{"do":"status","names":[1]}\n',
        b'{"do":"status","names":[["web"]]}\n',
        b'{"do":"start"}\n',
        b'{"do":"start","names":[]}\n',
        b'{"do":"why"}\n',
        b'{"do":"why","name":1}\n',
        b'{"do":"signal","names":["web"]}\n',
        b'{"do":"signal","names":["web"],"signal":"NOPE"}\n',
        b'{"do":"signal","names":["web"],"signal":0}\n',
        b'{"do":"signal","names":["web"],"signal":1e3}\n',
        b'{"do":"signal","names":["web"],"signal":true}\n',
        b'{"do":"wait","names":["web"],"for":"rain"}\n',
        b'{"do":"wait","names":["web"],"for":{}}\n',
        b'{"do":"wait","names":["web"],"timeout":-1}\n',
        b'{"do":"wait","names":["web"],"timeout":1e999}\n',
        b'{"do":"wait","names":["web"],"timeout":NaN}\n',
        b'{"do":"wait","names":["web"],"timeout":"1"}\n',
        b'{"do":"wait","names":["web"],"past":[]}\n',
        b'{"do":"wait","names":["web"],"past":{"web":1.5}}\n',
        b'{"do":"logs","name":"web","lines":-1}\n',
        b'{"do":"logs","name":"web","lines":10001}\n',
        b'{"do":"logs","name":"web","follow":1}\n',
        b'{"do":"shutdown","kill":"yes"}\n',
        b'{"do":"adopt","name":"web","pid":1e9}\n',
        b'{"do":"logs","name":"web","lines":' + b"9" * 5000 + b"}\n",
        b"[" * 60000 + b"\n",
        b'{"do":' * 9000 + b"\n",
        b'{"do":"status","names":[' + b'"a",' * 1001 + b'"a"]}\n',
    ],
    ids=lambda line: line[:40].decode("ascii", "backslashreplace"),
)
def test_request_that_is_none_is_a_bad_one(line):
    assert refusal_of(line) == "bad-request"


def test_unknown_verb_says_so():
    assert refusal_of(b'{"do":"dance"}\n') == "unknown-verb"
    assert refusal_of(b'{"do":"' + b"\\u0000" * 9000 + b'"}\n') == "unknown-verb"


def test_request_takes_what_is_asked_and_ignores_what_it_does_not_know():
    found = request(do="wait", names=["a", "b*"], timeout=1.5, past={"a": 3}, colour="red")
    assert found.verb == "wait"
    assert found.names == ("a", "b*")
    assert found.goal == READY
    assert found.timeout == 1_500_000_000
    assert found.past == (("a", 3),)
    assert request(do="start", names="web").names == ("web",)
    assert request(do="signal", names=["web"], signal="SIGHUP").signal == 1
    assert request(do="signal", names=["web"], signal="hup").signal == 1
    assert request(do="signal", names=["web"], signal=9).signal == 9
    assert request(do="status", names=None, timeout=None).timeout is None
    assert parse_request(b'{"do":"status","do":"hello"}\n').verb == "hello"  # the last one counts


def test_name_that_is_no_utf_8_comes_as_surrogates():
    assert parse_request(b'{"do":"status","names":["a\\udcff"]}\n').names == ("a\udcff",)


def test_pattern_matches_as_in_a_shell():
    dice = random.Random(5)
    for _ in range(20000):
        pattern = "".join(dice.choice("ab*?[]!-c") for _ in range(dice.randrange(8)))
        name = "".join(dice.choice("abc-]") for _ in range(dice.randrange(7)))
        if "[" in pattern and ("--" in pattern or "-]" in pattern or "[-" in pattern):
            continue  # ranges without an end, which fnmatch takes in ways of its own
        if any(low > high for low, high in zip(pattern, pattern[2:], strict=False)):
            continue  # and those that run backwards
        assert matches(pattern, name) == fnmatch.fnmatchcase(name, pattern), (pattern, name)


def test_hostile_pattern_takes_no_long_time():
    assert not matches("*a" * 99 + "b", "a" * 128)


def names_of(names, specs):
    return [name for found in resolve_names(names, specs) for name in found]


def test_names_are_daemons_groups_or_patterns_and_come_once():
    specs = {
        name: SPEC.replace(name=name, groups=groups)
        for name, groups in (("web", ("all",)), ("worker", ("all",)), ("db", ()))
    }
    assert names_of(["db", "w*"], specs) == ["db", "web", "worker"]
    assert names_of(["*", "web"], specs) == ["web", "worker", "db"]
    assert names_of(["all"], specs) == ["web", "worker"]
    assert names_of([], specs) == []
    assert names_of(["*"], {}) == []
    for wrong in ("wob", "x*", "", "[", "w" * 9999):
        with pytest.raises(RequestError) as caught:
            names_of(["web", wrong], specs)
        assert caught.value.code == "unknown-name"


SECOND = 1_000_000_000
STATES = [
    (Down(), "stopped", False, None),
    (Looking(1, 0), "looking", False, None),
    (Looking(1, 0, held=True), "held", False, None),
    (Starting(1, SECOND, 1), "starting", False, None),
    (Awaiting(1, SECOND, 9, 0, 1, 5), "starting", False, 5),
    (Up(1, SECOND, 1, 5), "running", True, 5),
    (Up(1, SECOND, 1, 5, ready=False), "running", False, 5),
    (Stopping(1, SECOND, 9, 0, 1, 5, "down"), "stopping", False, 5),
    (Backoff(1, 1, 9 * SECOND), "backoff", False, None),
    (Over(1, "done", 0), "done", True, None),
    (Over(1, "exited", 256), "stopped", False, None),
    (Over(1, "failed", 256), "failed", False, None),
]


@pytest.mark.parametrize(("state", "word", "ready", "pid"), STATES)
def test_daemon_in_each_state(state, word, ready, pid):
    chronicle = Chronicle()
    chronicle.record(DaemonStarted("web", 4, 33, 34, "cgroup"), SECOND)
    chronicle.record(DaemonDied("web", 4, 9 | 0x80, SECOND, False, 0, False), 2 * SECOND)
    found = control.describe_daemon(SPEC, state, chronicle, Place())
    json.dumps(found)
    assert (found["state"], found["ready"], found["pid"]) == (word, ready, pid)
    assert found["run"] == (0 if word in ("looking", "held") else state.run)
    assert found["next_try"] == (9.0 if word == "backoff" else None)
    assert found["uid"] == (33 if pid else None)
    assert found["restarts"] == 1
    last = found["exit"]
    assert (last["code"], last["signal"], last["core"]) == (None, "SIGKILL", True)
    assert (last["after"], last["monotonic"]) == (1.0, 2.0)
    assert found["words"]
    assert control.decide(SPEC, state, SECOND, waiting=False, held=False)


def test_daemon_that_is_told_when_it_is_ready_is_ready_and_not_only_running():
    spec = SPEC.replace(ready=Readiness("notify"))
    assert control.state_word(spec, Up(1, 0, 1, 5)) == "ready"
    assert control.state_word(spec, Up(1, 0, 1, 5, ready=False)) == "running"
    assert control.state_word(SPEC, Down(), waiting=True) == "waiting"


UP, READYING = Up(3, 0, 1, 5), Up(3, 0, 1, 5, ready=False)
REST = Backoff(3, 1, 9)


@pytest.mark.parametrize(
    ("goal", "state", "past", "begun", "come"),
    [
        (RUNNING, UP, None, 3, True),
        (RUNNING, READYING, None, 3, True),
        (RUNNING, UP, 3, 3, False),
        (RUNNING, UP, 2, 3, True),
        (RUNNING, REST, None, 3, False),
        (READY, READYING, None, 3, False),
        (READY, UP, None, 3, True),
        (READY, Over(3, "done", 0), None, 3, True),
        (READY, Over(3, "failed", 0), None, 3, False),
        (STOPPED, Down(3), None, 3, True),
        (STOPPED, Over(3, "failed", 1), None, 3, True),
        (STOPPED, REST, None, 3, False),
        (EXITED, UP, None, 3, False),
        (EXITED, UP, None, 2, True),
        (EXITED, REST, None, 3, True),
        (EXITED, Down(3), None, 3, True),
        (EXITED, REST, 3, 3, False),
        (EXITED, UP, 2, 2, False),
        (EXITED, Down(3), 2, 2, True),
        (EXITED, Stopping(3, 0, 9, 0, 1, 5, "down"), None, 3, False),
        (EXITED, Stopping(3, 0, 9, 0, 1, 5, "down", main_gone=True), None, 3, True),
    ],
)
def test_whether_a_daemon_has_come_to_where_it_is_waited_for(goal, state, past, begun, come):
    assert has_come(goal, state, past, begun) is come


def test_who_may_do_what_is_read():
    assert parse_rule("alice status,why") == ControlRule("alice", ("status", "why"))
    assert parse_rule("@adm read, restart") == ControlRule("@adm", (*READ, "restart"))
    assert parse_rule("33 all").verbs == VERBS
    for wrong in ("", "alice", "@ read", "alice dance", "  "):
        with pytest.raises(ValueError, match=r"is not|holds"):
            parse_rule(wrong)
    assert parse_owner("www-data") == ("www-data", None)
    assert parse_owner("33:adm") == ("33", "adm")
    for wrong in ("", ":adm", "www-data:"):
        with pytest.raises(ValueError, match="is not"):
            parse_owner(wrong)
    assert parse_socket("none") == "none"
    assert parse_socket("/run/x.sock") == "/run/x.sock"
    for wrong in ("x.sock", "/run/", ""):
        with pytest.raises(ValueError, match="neither"):
            parse_socket(wrong)
