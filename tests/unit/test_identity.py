"""The rules of belief, one by one, with the words that an operator reads."""

from __future__ import annotations

import pytest

from lowsuper.identity import (
    NO_SCRIPT,
    Claim,
    Decision,
    Process,
    ProcessId,
    Program,
    Reading,
    Recorded,
    Verdict,
    decide,
    describe_named,
    is_same,
    judge,
    matches,
    runs,
)

SECOND = 1_000_000_000
PATH = "/tmp/web.pid"
MASTER, HELPER, SLEEP, MEMCACHED, PYTHON = 50, (1, 10), (1, 20), (1, 30), (1, 40)
NAMED = Process(
    ProcessId(123, 777, 9), 1000, 1000, "/bin/sleep", SLEEP, ("sleep", "9"), since=SECOND
)
OTHER = NAMED.replace(id=ProcessId(456, 888, 10))
DAEMON = NAMED.replace(exe="/usr/bin/memcached", exe_id=MEMCACHED, argv=("memcached",))
PROGRAM = Program("/usr/bin/memcached", (MEMCACHED,))
APP = Program(
    "/srv/app.py", (PYTHON,), script="./app.py", script_path="/srv/app.py", interpreter="python3"
)
READING = Reading(123, owner=1000, complete=True, changed=2 * SECOND)
CLAIM = Claim(READING, MASTER, program=PROGRAM)
SAFE = CLAIM.replace(reading=READING.replace(owner=0, safe=True))
BELIEVED = "it is in the daemon's kill domain"


def script(*argv: str) -> Process:
    return NAMED.replace(exe="/usr/bin/python3.11", exe_id=PYTHON, argv=argv)


@pytest.mark.parametrize(
    ("process", "changes", "verdict"),
    [
        (NAMED, {"in_domain": True}, Verdict(True, BELIEVED)),
        (NAMED, {"reading": SAFE.reading}, Verdict(True, "only root can write the pidfile")),
        (
            NAMED,
            {"reading": READING.replace(safe=True)},
            Verdict(True, "only root and uid 1000 can write the pidfile"),
        ),
        (DAEMON, {}, Verdict(True, "it runs /usr/bin/memcached")),
        (DAEMON.replace(uid=1), {"owners": (1000,)}, Verdict(True, "it runs /usr/bin/memcached")),
        (script("python3", "./app.py"), {"program": APP}, Verdict(True, "it runs /srv/app.py")),
        (NAMED, {}, Verdict(False, "it runs /bin/sleep, not /usr/bin/memcached")),
        (
            NAMED,
            {"reading": SAFE.reading.replace(complete=False)},
            Verdict(False, "it runs /bin/sleep, not /usr/bin/memcached"),
        ),
        (
            DAEMON.replace(exe_id=SLEEP),
            {},
            Verdict(False, "it runs another /usr/bin/memcached than is there now"),
        ),
        (NAMED.replace(exe="", exe_id=None), {}, Verdict(False, "what it runs cannot be seen")),
        (
            NAMED,
            {"program": None},
            Verdict(
                False, "it runs /bin/sleep, and the configured program is not known for certain"
            ),
        ),
        (
            script("python3", "other.py"),
            {"program": APP},
            Verdict(False, "it runs /usr/bin/python3.11, but not /srv/app.py"),
        ),
        (
            script("python3", "other.py"),
            {"program": APP.replace(script=NO_SCRIPT, script_path="")},
            Verdict(False, "it runs /usr/bin/python3.11, and so do others"),
        ),
        (NAMED, {"program": APP}, Verdict(False, "it runs /bin/sleep, not /srv/app.py")),
    ],
)
def test_judge(process, changes, verdict):
    assert judge(process, CLAIM.replace(**changes)) == verdict


@pytest.mark.parametrize(
    ("process", "changes", "why"),
    [
        (DAEMON.replace(id=ProcessId(1, 1)), {}, "it is pid 1"),
        (DAEMON.replace(id=ProcessId(MASTER, 1)), {}, "it is lowsuper itself"),
        (DAEMON.replace(is_kernel=True), {}, "it is a kernel thread"),
        (DAEMON.replace(exe_id=HELPER), {"helpers": (HELPER,)}, "it is a helper of lowsuper"),
        (DAEMON, {"other": "db"}, "it belongs to db"),
        (
            DAEMON.replace(inner_pid=1),
            {"has_init": True},
            "it is the init of the daemon's pid namespace",
        ),
        (DAEMON.replace(uid=33), {}, "the file belongs to uid 1000, the process to uid 33"),
        (DAEMON.replace(uid=0), {}, "the file belongs to uid 1000, the process to uid 0"),
    ],
)
def test_judge_when_never_to_be_believed_no_proof_helps(process, changes, why):
    for proof in ({}, {"in_domain": True}, {"reading": READING.replace(safe=True)}):
        assert judge(process, CLAIM.replace(**changes, **proof)) == Verdict(False, why)


def test_judge_when_inner_pid_1_is_the_daemon_itself_believes():
    assert judge(DAEMON.replace(inner_pid=1), CLAIM).believed


def test_judge_when_file_is_older_than_process_takes_the_number_for_another_process():
    young = DAEMON.replace(since=READING.changed + 6 * SECOND)
    stale = Verdict(False, "the file is older than the process")
    assert judge(young, CLAIM) == stale
    assert judge(young, SAFE) == stale
    assert judge(young, SAFE.replace(in_domain=True)).believed
    assert judge(DAEMON.replace(since=READING.changed + 4 * SECOND), SAFE).believed  # a clock set
    assert judge(young, SAFE.replace(reading=SAFE.reading.replace(changed=0))).believed  # unknown


@pytest.mark.parametrize(
    ("argv", "holds"),
    [
        (("python3", "./app.py", "start"), True),
        (("python3", "-u", "/srv/app.py"), True),
        (("python3", "app.py"), False),
        (("python3", "/home/u/app.py"), False),
        (("python3", "other.py", "./app.py"), False),
        (("python3", "-c", "pass", "/srv/app.py"), False),
        (("./app.py",), False),
        (("python3",), False),
        ((), False),
    ],
)
def test_runs_of_an_interpreter_looks_at_the_script(argv, holds):
    assert runs(script(*argv), APP) is holds


def test_runs_when_no_script_is_known_holds_for_nothing():
    program = APP.replace(script=NO_SCRIPT, script_path="")
    for word in ("", NO_SCRIPT, "x"):
        assert not runs(script("python3", word), program)


MAIN = ProcessId(123, 777, 9)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (MAIN, MAIN, True),
        (MAIN, MAIN.replace(inode=8), False),
        (MAIN, MAIN.replace(inode=0), True),
        (MAIN.replace(inode=0), MAIN.replace(inode=0), True),
        (MAIN, MAIN.replace(start=778), False),
        (MAIN.replace(inode=0), MAIN.replace(start=778), False),
        (MAIN, MAIN.replace(pid=124), False),
    ],
)
def test_is_same(one, other, same):
    assert is_same(one, other) is same
    assert is_same(other, one) is same


RECORD = Recorded(PATH, "boot", MAIN, exe="/bin/sleep")
NO_INODE = NAMED.replace(id=MAIN.replace(inode=0))


@pytest.mark.parametrize(
    ("recorded", "process", "expected"),
    [
        (RECORD, NAMED, True),
        (RECORD, NAMED.replace(exe="/bin/other"), True),  # it has executed something else
        (RECORD.replace(boot_id="earlier"), NAMED, False),
        (RECORD.replace(boot_id=""), NAMED, False),
        (RECORD.replace(main=None), NAMED, False),
        (RECORD, OTHER, False),
        (RECORD, NO_INODE, True),
        (RECORD, NO_INODE.replace(exe="/bin/other"), False),
        (RECORD, NO_INODE.replace(exe=""), True),
        (RECORD.replace(exe=""), NO_INODE, True),
    ],
)
def test_matches(recorded, process, expected):
    assert matches(recorded, process, "boot") is expected


def test_matches_when_boot_id_is_unknown_is_false():
    assert not matches(RECORD.replace(boot_id=""), NAMED, "")


GONE = Reading(reason="is not there", missing=True)
EMPTY = Reading(reason="is empty", owner=0)
KEPT = "recorded by lowsuper"


@pytest.mark.parametrize(
    ("claim", "named", "recorded", "decision"),
    [
        # It is the recorded one.
        (CLAIM, NAMED, NAMED, Decision("recorded", KEPT)),
        (CLAIM.replace(other="db"), NAMED, NAMED, Decision("recorded", KEPT)),
        # The recorded one lives, and the file says something else.
        (CLAIM.replace(in_domain=True), NAMED, OTHER, Decision("named", BELIEVED)),
        (
            SAFE,
            NAMED,
            OTHER,
            Decision(
                "recorded",
                KEPT,
                "the pidfile /tmp/web.pid names 123 (sleep of uid 1000), which is not believed:"
                " it is not in the daemon's kill domain",
                True,
            ),
        ),
        (
            CLAIM.replace(in_domain=True, reading=READING.replace(owner=33)),
            NAMED,
            OTHER,
            Decision(
                "recorded",
                KEPT,
                "the pidfile /tmp/web.pid names 123 (sleep of uid 1000), which is not believed:"
                " the file belongs to uid 33, the process to uid 1000",
                True,
            ),
        ),
        (
            CLAIM,
            None,
            OTHER,
            Decision(
                "recorded", KEPT, "the pidfile /tmp/web.pid names 123, which does not run", True
            ),
        ),
        (
            CLAIM.replace(reading=GONE),
            None,
            OTHER,
            Decision("recorded", KEPT, "the pidfile /tmp/web.pid is not there", False),
        ),
        (
            CLAIM.replace(reading=EMPTY),
            None,
            OTHER,
            Decision("recorded", KEPT, "the pidfile /tmp/web.pid is empty", True),
        ),
        # There is no recorded one.
        (CLAIM, DAEMON, None, Decision("named", "it runs /usr/bin/memcached")),
        (
            CLAIM,
            NAMED,
            None,
            Decision(
                "",
                "",
                "the pidfile /tmp/web.pid names 123 (sleep of uid 1000), which is not believed:"
                " it runs /bin/sleep, not /usr/bin/memcached",
                True,
            ),
        ),
        (
            CLAIM,
            None,
            None,
            Decision("", "", "the pidfile /tmp/web.pid names 123, which does not run", True),
        ),
        (
            CLAIM.replace(negligent="its parent, pid 1 (sleep)"),
            None,
            None,
            Decision(
                "",
                "",
                "the pidfile /tmp/web.pid names 123, which has ended and was not reaped by"
                " its parent, pid 1 (sleep)",
                True,
            ),
        ),
        (
            CLAIM.replace(reading=GONE),
            None,
            None,
            Decision("", "", "the pidfile /tmp/web.pid is not there", False),
        ),
    ],
)
def test_decide(claim, named, recorded, decision):
    assert decide(PATH, claim, named, recorded) == decision


def test_named_process_is_shown_with_its_number_here_and_without_tricks():
    assert describe_named(2, NAMED) == "2 (sleep of uid 1000, here 123)"
    kernel = NAMED.replace(exe="", comm="kthreadd")
    assert describe_named(123, kernel) == "123 (kthreadd of uid 1000)"
    hostile = NAMED.replace(exe="/tmp/a\nb\x1b[2J\udcff")
    assert describe_named(123, hostile) == "123 (a?b?[2J? of uid 1000)"
    assert len(describe_named(123, NAMED.replace(exe="/" + "x" * 5000))) < 300
    assert "\n" not in judge(hostile, CLAIM).why
