"""What no pidfile, and no mixture of circumstances, can bring about."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from lowsuper.identity import (
    NO_SCRIPT,
    Claim,
    Process,
    ProcessId,
    Program,
    Reading,
    Recorded,
    decide,
    is_same,
    judge,
    matches,
    runs,
)
from lowsuper.script import find_script, needs_script

SMALL = st.integers(0, 3)
UIDS = st.sampled_from((0, 33, 1000))
EXE_IDS = st.tuples(st.integers(1, 2), st.integers(1, 3))
WORDS = st.sampled_from(
    ("app.py", "/srv/app.py", "python3", "-u", "-c", "-m", "--", "x", NO_SCRIPT)
)
ARGV = st.lists(WORDS | st.text(max_size=4), max_size=5).map(tuple)
IDS = st.builds(ProcessId, st.integers(1, 4), SMALL, SMALL)
PROCESSES = st.builds(
    Process,
    id=IDS,
    uid=UIDS,
    gid=UIDS,
    exe=st.sampled_from(("", "/bin/a", "/bin/b")),
    exe_id=st.none() | EXE_IDS,
    argv=ARGV,
    is_kernel=st.booleans(),
    inner_pid=SMALL,
    comm=st.text(max_size=6),
    since=st.sampled_from((0, 1, 10**12)),
)
PROGRAMS = st.builds(
    Program,
    st.sampled_from(("/bin/a", "/bin/c")),
    st.tuples(EXE_IDS),
    script=st.sampled_from(("", NO_SCRIPT, "app.py")),
    script_path=st.sampled_from(("", "/srv/app.py")),
    interpreter=st.sampled_from(("", "python3", "sh", "busybox")),
)
READINGS = st.builds(
    Reading,
    pid=st.integers(1, 4),
    owner=st.sampled_from((-1, 0, 33, 1000)),
    safe=st.booleans(),
    complete=st.booleans(),
    changed=st.sampled_from((0, 1, 10**12)),
)
NOTHING = st.builds(
    Reading, reason=st.sampled_from(("is empty", "is a FIFO")), missing=st.booleans()
)
CLAIMS = st.builds(
    Claim,
    reading=READINGS,
    own_pid=st.integers(1, 4),
    in_domain=st.booleans(),
    other=st.sampled_from(("", "", "db")),
    program=st.none() | PROGRAMS,
    owners=st.lists(UIDS, max_size=2).map(tuple),
    helpers=st.lists(EXE_IDS, max_size=1).map(tuple),
    has_init=st.booleans(),
)


def may_never_be_believed(process, claim):
    return (
        process.id.pid in (1, claim.own_pid)
        or process.is_kernel
        or process.exe_id in claim.helpers
        or (claim.has_init and process.inner_pid == 1)
        or claim.other != ""
    )


@given(PROCESSES, CLAIMS)
def test_some_processes_are_never_believed(process, claim):
    verdict = judge(process, claim)
    assert verdict.why
    if may_never_be_believed(process, claim):
        assert not verdict.believed


@given(PROCESSES, CLAIMS)
def test_a_strangers_file_is_never_believed(process, claim):
    assume(claim.reading.owner not in (0, process.uid, *claim.owners))
    assert not judge(process, claim).believed


@given(PROCESSES, CLAIMS)
def test_nobody_is_believed_without_one_of_the_three_proofs(process, claim):
    is_root_word = claim.reading.safe and claim.reading.complete
    is_program = claim.program is not None and runs(process, claim.program)
    if judge(process, claim).believed:
        assert claim.in_domain or is_root_word or is_program


@given(PROCESSES, CLAIMS, CLAIMS)
def test_more_proof_never_takes_belief_away(process, claim, more):
    reading = claim.reading
    stronger = claim.replace(
        in_domain=claim.in_domain or more.in_domain,
        program=claim.program or more.program,
        owners=claim.owners + more.owners,
        reading=reading.replace(
            safe=reading.safe or more.reading.safe,
            complete=reading.complete or more.reading.complete,
        ),
    )
    if judge(process, claim).believed:
        assert judge(process, stronger).believed


@given(CLAIMS, PROCESSES, PROCESSES)
def test_while_the_recorded_one_lives_none_outside_of_its_domain_is_followed(
    claim, named, recorded
):
    decision = decide("/x.pid", claim, named, recorded)
    assert decision.which in ("named", "recorded")
    if decision.which == "named":
        assert claim.in_domain
        assert judge(named, claim).believed
        assert not is_same(named.id, recorded.id)


@given(CLAIMS, st.none() | PROCESSES, st.none() | PROCESSES)
def test_a_decision_is_backed_and_says_what_it_should(claim, named, recorded):
    decision = decide("/x.pid", claim, named, recorded)
    if decision.which == "named":
        assert named is not None
        assert judge(named, claim).believed
    if decision.which == "recorded":
        assert recorded is not None
    if decision.which == "":
        assert recorded is None
        assert named is None or not judge(named, claim).believed
    assert bool(decision.which) == bool(decision.why)
    assert decision.finding == "" or decision.finding.startswith("the pidfile /x.pid ")
    assert decision.finding or decision.which
    assert decision.telling == (decision.finding != "" and not claim.reading.missing)
    assert decision.finding.isprintable()


@given(NOTHING, st.none() | PROCESSES)
def test_a_file_without_a_number_starts_nothing_beside_a_live_daemon(reading, recorded):
    decision = decide("/x.pid", Claim(reading, 99), None, recorded)
    assert decision.which == ("" if recorded is None else "recorded")
    assert decision.finding == f"the pidfile /x.pid {reading.reason}"


@given(IDS, IDS)
def test_same_is_symmetric_and_implies_number_and_time(one, other):
    assert is_same(one, one)
    assert is_same(one, other) == is_same(other, one)
    if is_same(one, other):
        assert (one.pid, one.start) == (other.pid, other.start)


@given(PROCESSES, st.none() | IDS, st.sampled_from(("", "a", "b")), st.sampled_from(("", "a", "b")))
def test_a_record_matches_in_its_own_boot_only(process, main, boot, now):
    if matches(Recorded("/x.pid", boot, main), process, now):
        assert boot == now != ""
        assert main is not None
        assert is_same(main, process.id)


@given(PROCESSES, PROGRAMS)
def test_an_interpreter_without_a_known_script_is_no_proof(process, program):
    assert not runs(process, program.replace(script=NO_SCRIPT))


@given(ARGV, st.sampled_from(("python3", "sh", "perl", "java", "busybox", "other", "timeout")))
def test_a_script_is_a_part_of_the_command_line(argv, program):
    script = find_script(argv, program)
    assert script == "" or any(word.endswith(script) for word in argv)


@given(st.text(max_size=20))
def test_any_name_of_a_program_is_understood(name):
    assert needs_script(name) in (True, False)
    find_script((name, "x"), name)
