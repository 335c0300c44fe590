"""The machine of `run FILE -- COMMAND`."""

from __future__ import annotations

import itertools

import pytest

from lowsuper.foreground import (
    ENDED,
    RUNNING,
    STOPPING,
    AllReady,
    CommandEnded,
    FinishFront,
    Front,
    FrontSignalled,
    GivenUp,
    MasterEnded,
    MasterStopping,
    NotReady,
    PatienceOver,
    RunCommand,
    SayFront,
    SetPatience,
    SignalCommand,
    StopMaster,
    Sweep,
    Swept,
    step,
)

HUP, INT, QUIT, KILL, TERM = 1, 2, 3, 9, 15


def play(*events, strict=False):
    """Return the state after these events, and what was done but said."""
    state, done = Front(), []
    for event in events:
        state, actions = step(state, event, strict=strict)
        done += [action for action in actions if not isinstance(action, SayFront)]
    return state, done


def code_of(*events, strict=False):
    state, done = play(*events, strict=strict)
    assert state.phase == ENDED, state
    assert done[-1] == FinishFront(done[-1].code)
    return done[-1].code


END = (MasterEnded(0), Swept(True))


def test_command_runs_between_ready_and_stop():
    _, done = play(AllReady(), CommandEnded(3), *END)
    assert done == [RunCommand(), StopMaster(), Sweep(), FinishFront(3)]


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ((AllReady(), CommandEnded(0), *END), 0),
        ((AllReady(), CommandEnded(137), *END), 137),
        ((NotReady(), *END), 125),
        ((MasterStopping(), MasterEnded(0), Swept(True)), 125),
        ((MasterEnded(78), Swept(True)), 78),
        ((MasterEnded(1), Swept(True)), 125),
        ((FrontSignalled(TERM), *END), 143),
        ((FrontSignalled(INT), *END), 130),
        ((AllReady(), CommandEnded(0), MasterEnded(125), Swept(True)), 125),
        ((AllReady(), CommandEnded(0), MasterEnded(137), Swept(True)), 125),
        ((AllReady(), CommandEnded(0), MasterEnded(0), Swept(False)), 125),
        ((AllReady(), MasterStopping(), MasterEnded(3), CommandEnded(0), Swept(True)), 0),
        ((AllReady(), MasterEnded(137), CommandEnded(143), Swept(True)), 125),
        ((AllReady(), GivenUp("a"), CommandEnded(4), *END), 4),
    ],
)
def test_exit_code(events, code):
    assert code_of(*events) == code


@pytest.mark.parametrize("event", [GivenUp("a"), MasterStopping(), MasterEnded(0)])
def test_strict_ends_the_command(event):
    state, done = play(AllReady(), event, strict=True)
    assert (state.phase, state.code) == (RUNNING, 125)
    assert done[1] == SignalCommand(TERM)
    assert isinstance(done[2], SetPatience)
    _, actions = step(state, PatienceOver(), strict=True)
    assert actions[-1] == SignalCommand(KILL)


def test_first_signal_is_for_the_command_and_the_second_ends_all():
    state, done = play(AllReady(), FrontSignalled(TERM))
    assert done[1:] == [SignalCommand(TERM)]
    assert state.phase == RUNNING
    _, actions = step(state, FrontSignalled(TERM), strict=False)
    assert actions[1:] == (SignalCommand(KILL), StopMaster(now=True))


def test_other_signals_are_only_passed_on():
    state, done = play(AllReady(), *[FrontSignalled(QUIT)] * 3)
    assert done[1:] == [SignalCommand(QUIT)] * 3
    assert state.signals == 0


@pytest.mark.parametrize(("signal", "now"), [(INT, True), (TERM, False), (HUP, False)])
def test_only_an_interrupt_hurries_a_stop_at_once(signal, now):
    state, done = play(AllReady(), CommandEnded(0), FrontSignalled(signal))
    assert state.phase == STOPPING
    assert (StopMaster(now=True) in done) is now
    _, actions = step(state, FrontSignalled(signal), strict=False)
    assert actions == (StopMaster(now=True),)


def test_ready_again_runs_nothing_twice():
    _, done = play(AllReady(), AllReady(), CommandEnded(0), AllReady(), *END)
    assert done.count(RunCommand()) == 1


EVENTS = (
    *(AllReady(), NotReady(), GivenUp("a"), MasterStopping(), MasterEnded(0), MasterEnded(125)),
    *(CommandEnded(5), FrontSignalled(TERM), FrontSignalled(INT), PatienceOver(), Swept(True)),
)


def test_any_order_of_events_runs_stops_and_finishes_at_most_once():
    for strict, events in itertools.product((False, True), itertools.product(EVENTS, repeat=4)):
        _, done = play(*events, strict=strict)
        assert done.count(RunCommand()) <= 1
        assert done.count(StopMaster()) <= 1
        assert sum(isinstance(action, FinishFront) for action in done) <= 1
