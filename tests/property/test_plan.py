"""Plans hold every byte that they are given, and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowsuper.model import Command, DaemonSpec, EnvChange, Keep, Origin
from lowsuper.plan import (
    NAMESPACES,
    OWN_PREFIX,
    OWN_VARIABLES,
    FdSource,
    Identity,
    build_environment,
    build_plan,
    describe_step,
    encode,
    isolate,
)

NAMES = st.text("ABC_x", min_size=1, max_size=4) | st.sampled_from(
    sorted(OWN_VARIABLES | {"PATH", "HOME", "USER", OWN_PREFIX + "X"})
)
BYTES = st.binary(max_size=12).filter(lambda value: b"\0" not in value)
TEXTS = BYTES.map(lambda value: value.decode("utf-8", "surrogateescape"))
ENVIRONMENTS = st.dictionaries(NAMES, TEXTS, max_size=6)
CHANGES = st.lists(st.builds(EnvChange, NAMES, st.none() | TEXTS), max_size=8)
FDS = st.lists(
    st.builds(FdSource, target=st.integers(0, 20), fd=st.integers(-1, 99), path=BYTES),
    unique_by=lambda source: source.target,
    max_size=6,
).map(tuple)


@given(BYTES)
def test_encode_keeps_every_byte(value):
    assert encode(value.decode("utf-8", "surrogateescape")) == value


@given(ENVIRONMENTS, CHANGES)
def test_environment_has_the_last_word_of_the_file(inherited, changes):
    result = build_environment(inherited, changes).variables
    last = {change.name: change.value for change in changes}
    for name, value in last.items():
        assert result.get(name) == value
    for name, value in inherited.items():
        is_own = name in OWN_VARIABLES or name.startswith(OWN_PREFIX)
        if name not in last:
            assert result.get(name) == (None if is_own else value)
    assert result.keys() <= inherited.keys() | last.keys()


@given(ENVIRONMENTS, st.lists(TEXTS, min_size=1, max_size=4), FDS, st.booleans(), st.integers(0, 9))
def test_plan_holds_what_it_was_given(inherited, words, fds, named, arg):
    env = build_environment(inherited, ())
    identity = Identity(1, 2, (3,), "name" if named else "", "/home")
    command = Command(" ".join(words), tuple(words))
    plan = build_plan("d", command, env, identity=identity, fds=fds)
    assert plan.argv == tuple(map(encode, words))
    assert plan.fds == fds
    assert plan.programs
    assert all(program.endswith(plan.argv[0]) for program in plan.programs)
    if "/" in words[0]:
        assert plan.programs == plan.argv[:1]
    else:
        assert all(b"/" in program for program in plan.programs)
    variables = dict(pair.split(b"=", 1) for pair in plan.envp)
    assert len(variables) == len(plan.envp)
    assert variables.keys() == {
        encode(name)
        for name in env.variables.keys() | ({"HOME", "USER", "LOGNAME"} if named else set())
    }
    for step in (
        "root",
        "mounts",
        "caps",
        "namespaces",
        "netns",
        "chdir",
        "execve",
        "setresuid",
        "setgroups",
        "fds",
        "rlimits",
        "",
        "clone",
    ):
        assert isinstance(describe_step(plan, step, arg), str)


KEEPS = st.lists(st.builds(Keep, TEXTS, TEXTS, st.booleans()), max_size=4).map(tuple)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "namespaces": st.lists(st.sampled_from(("pid", *NAMESPACES))).map(tuple),
        "ns_pid": st.booleans(),
        "hostname": TEXTS,
        "netns": TEXTS,
        "root": TEXTS,
        "mounts": KEEPS,
        "nice": st.integers(-20, 19),
        "oom_score": st.integers(-1000, 1000),
        "umask": st.integers(0, 0o777),
        "caps": st.lists(st.integers(0, 63)).map(tuple),
        "no_new_privs": st.booleans(),
    },
)


@given(SPECS)
def test_isolated_plan_changes_nothing_of_the_host(fields):
    plain = build_plan("d", Command("x", ("x",)), build_environment({}, ()))
    spec = DaemonSpec("d", Command("x", ("x",)), Origin("f", 1, "k", "v"), **fields)
    plan = isolate(plain, spec)
    if plan.root is not None or plan.mounts or plan.own_proc:
        assert plan.namespaces & NAMESPACES["mount"]
    if plan.hostname is not None:
        assert plan.namespaces & NAMESPACES["uts"]
    assert {name for name, flag in NAMESPACES.items() if plan.namespaces & flag} >= {
        name for name in spec.namespaces if name != "pid"
    }
    assert plan.netns == (None if spec.netns is None else encode(spec.netns))
    assert (plan.caps is None) == (spec.caps is None)
    if spec.caps is not None:
        assert {cap for cap in range(64) if plan.caps >> cap & 1} == set(spec.caps)
    assert (plan.nice, plan.oom_score, plan.umask) == (spec.nice, spec.oom_score, spec.umask)
    assert [encode(keep.target) for keep in spec.mounts] == [each.target for each in plan.mounts]
    if not fields:
        assert plan is plain
