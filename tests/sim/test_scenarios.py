"""What a user sees, played through the real supervisor in the simulated world."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import Behaviour, World, config, daemon, hook

from lowsuper.events import (
    AllStarted,
    Boot,
    DaemonDied,
    DaemonEnding,
    DaemonGone,
    DaemonKilled,
    DaemonNotStarted,
    DaemonSlow,
    DaemonStarted,
    DaemonStuck,
    HookFailed,
    MasterIgnores,
    MasterKills,
    MasterReloaded,
    MasterReloads,
    MasterStops,
)
from lowsuper.machine import Backoff, Broken, Down, Starting, Stopping, Up
from lowsuper.master import RUNNING, STOPPING
from lowsuper.units import SECOND

SEEDS = range(8)
EAGAIN, ENOENT = 11, 2

IGNORES_TERM = Behaviour(stops_after=None)
LEAVES_STUBBORN_CHILD = Behaviour(leaves=1, leaves_stop_after=None)
DIES_NEVER = Behaviour(stops_after=None, dies_after=None)


@pytest.fixture(params=SEEDS)
def seed(request):
    return request.param


def start(*daemons, seed=0, scripts=None, hooks=None, duration=SECOND, **fields):
    world = World(config(*daemons, **fields), seed, scripts or {}, hooks or {})
    return world.boot().run(duration)


def stop(world, duration=100 * SECOND):
    world.terminate()
    return world.run(duration)


# Start and stop.


def test_boot_when_all_is_well_announces_once(seed):
    world = start(daemon("a"), daemon("b"), seed=seed)
    assert world.said(AllStarted) == [AllStarted(2, 0, 0)]
    assert [entry[0] for entry in world.done] == ["pidfiles", "pidfiles", "announce"]
    assert {type(world.state(name)) for name in "ab"} == {Up}


def test_boot_without_daemons_is_ready_and_stops(seed):
    world = start(seed=seed)
    assert world.said(AllStarted) == [AllStarted(0, 0, 0)]
    assert stop(world).code == 0


def test_boot_starts_in_file_order(seed):
    names = [f"d{number}" for number in range(20)]
    world = start(*map(daemon, names), seed=seed)
    spawns = [line.split()[1] for line in world.trace if line.endswith(": spawn")]
    assert spawns == [f"{name}.1:" for name in names]


def test_stop_asks_last_started_first(seed):
    world = stop(start(daemon("a"), daemon("b"), daemon("c"), seed=seed))
    assert [note.name for note in world.said(DaemonEnding)] == ["c", "b", "a"]
    assert world.code == 0


def test_stop_when_term_ignored_kills_each_at_its_own_deadline(seed):
    names = {"a": 2, "b": 5, "c": 3}
    world = start(
        *(daemon(name, stop_timeout=time * SECOND) for name, time in names.items()),
        seed=seed,
        scripts={name: [IGNORES_TERM] for name in names},
    )
    begin = world.time
    assert stop(world).code == 0
    assert {note.name: note.waited for note in world.said(DaemonKilled)} == {
        name: time * SECOND for name, time in names.items()
    }
    assert world.finished_at - begin == 5 * SECOND


def test_stop_when_child_left_behind_ignores_term_kills_it(seed):
    world = start(
        daemon("a", stop_timeout=3 * SECOND), seed=seed, scripts={"a": [LEAVES_STUBBORN_CHILD]}
    )
    begin = world.time
    assert stop(world).code == 0
    assert world.finished_at - begin == 3 * SECOND
    assert [note.waited for note in world.said(DaemonKilled)] == [3 * SECOND]


def test_stop_when_it_forks_at_each_signal_kills_all(seed):
    storm = Behaviour(storms=True, leaves=3, leaves_stop_after=None)
    world = start(daemon("a", stop_timeout=SECOND), seed=seed, scripts={"a": [storm]})
    assert stop(world).code == 0
    assert world.said(DaemonKilled)


def test_stop_when_it_dies_late_waits_for_it(seed):
    world = start(
        daemon("a", stop_timeout=SECOND),
        seed=seed,
        scripts={"a": [Behaviour(stops_after=None, dies_after=15 * SECOND)]},
    )
    begin = world.time
    assert stop(world).code == 0
    assert world.finished_at - begin == 16 * SECOND
    assert [note.abandoned for note in world.said(DaemonStuck)] == [False]


def test_stop_when_it_never_dies_abandons_it_with_125(seed):
    world = start(
        daemon("a", stop_timeout=SECOND), daemon("b"), seed=seed, scripts={"a": [DIES_NEVER]}
    )
    begin = world.time
    assert stop(world).code == 125
    assert world.finished_at - begin == 21 * SECOND
    assert [note.abandoned for note in world.said(DaemonStuck)] == [False, True]


def test_second_term_kills_at_once(seed):
    world = start(daemon("a"), daemon("b"), seed=seed, scripts={"a": [IGNORES_TERM]})
    world.terminate()
    world.run(SECOND)
    assert isinstance(world.state("a"), Stopping)
    begin = world.time
    assert stop(world).code == 0
    assert world.finished_at == begin
    assert world.said(MasterKills)


def test_second_term_when_helper_hangs_after_its_failure_ends_it(seed):
    """A helper that told its failure and then hangs has no deadline of its own."""
    world = start(daemon("a"), seed=seed, scripts={"a": [Behaviour(exec_after=None)]})
    from lowsuper.events import SpawnFailed

    world.supervisor.post_daemon("a", SpawnFailed(1, "chdir", ENOENT, "/x", cloned=True))
    world.run()
    assert isinstance(world.state("a"), Broken)
    begin = world.time
    assert stop(world).code == 0
    assert world.finished_at == begin


def test_stop_when_it_hangs_before_exec_kills_at_once(seed):
    world = start(daemon("a"), seed=seed, scripts={"a": [Behaviour(exec_after=None)]})
    begin = world.time
    assert stop(world).code == 0
    assert world.finished_at == begin


def test_stop_in_the_turn_of_the_boot_ends_cleanly(seed):
    world = World(config(daemon("a"), daemon("b")), seed, {"a": [Behaviour(clone_errno=EAGAIN)]})
    world.supervisor.post(Boot())
    world.terminate()
    assert world.run(SECOND).code == 0


def test_stop_when_touched_meanwhile_does_not_restart(seed):
    world = start(daemon("a", stop_timeout=3 * SECOND), seed=seed, scripts={"a": [IGNORES_TERM]})
    begin = world.time
    world.terminate()
    world.run(SECOND)
    world.touch("a")
    assert world.run(100 * SECOND).code == 0
    assert world.finished_at - begin == 3 * SECOND
    assert len(world.spawned["a"]) == 1


def test_stop_when_starting_timer_goes_off_in_the_same_turn_keeps_its_patience(seed):
    """The timer of the start must not be taken for the deadline of the stop."""
    world = start(
        daemon("a", stop_timeout=5 * SECOND),
        seed=seed,
        scripts={"a": [Behaviour(exec_after=10 * SECOND, stops_after=2 * SECOND)]},
        duration=0,
    )
    world.at(10 * SECOND, world.terminate)
    world.run(100 * SECOND)
    assert world.code == 0
    killed_before_exec = not world.said(DaemonStarted)
    assert bool(world.said(DaemonKilled)) is False
    assert killed_before_exec or world.finished_at == world.notes[0][0] + 12 * SECOND


# Crashes and failures.


def test_crash_when_quick_waits_longer_each_time(seed):
    world = start(daemon("a"), seed=seed, scripts={"a": [Behaviour(lives=0)]}, duration=12 * SECOND)
    begin = world.spawned["a"][0]
    assert [(time - begin) // SECOND for time in world.spawned["a"]] == [0, 1, 3, 6, 10]


def test_crash_when_max_throttle_is_set_waits_no_longer(seed):
    world = start(
        daemon("a", max_throttle=2 * SECOND),
        seed=seed,
        scripts={"a": [Behaviour(lives=0)]},
        duration=8 * SECOND,
    )
    begin = world.spawned["a"][0]
    assert [(time - begin) // SECOND for time in world.spawned["a"]] == [0, 1, 3, 5, 7]


def test_crash_after_stable_run_starts_the_count_again(seed):
    script = [Behaviour(lives=0)] * 4 + [Behaviour(lives=40 * SECOND), Behaviour(lives=0)]
    world = start(daemon("a"), seed=seed, scripts={"a": script}, duration=55 * SECOND)
    times = [(time - world.spawned["a"][0]) // SECOND for time in world.spawned["a"]]
    assert times == [0, 1, 3, 6, 10, 50, 51, 53]


def test_crash_after_four_seconds_restarts_at_once(seed):
    world = start(
        daemon("a"), seed=seed, scripts={"a": [Behaviour(lives=4 * SECOND)]}, duration=9 * SECOND
    )
    times = [(time - world.spawned["a"][0]) // SECOND for time in world.spawned["a"]]
    assert times == [0, 4, 8]
    assert [note.retry for note in world.said(DaemonDied)] == [0, 0]


def test_crash_when_children_are_left_ends_them_before_the_next_start(seed):
    first = Behaviour(lives=5 * SECOND, leaves=2, leaves_stop_after=None)
    world = start(
        daemon("a", stop_timeout=4 * SECOND),
        seed=seed,
        scripts={"a": [first, Behaviour()]},
        duration=30 * SECOND,
    )
    assert isinstance(world.state("a"), Up)
    times = [(time - world.spawned["a"][0]) // SECOND for time in world.spawned["a"]]
    assert times == [0, 9]


def test_spawn_when_clone_fails_a_few_times_recovers(seed):
    script = [Behaviour(clone_errno=EAGAIN)] * 3 + [Behaviour()]
    world = start(daemon("a"), seed=seed, scripts={"a": script}, duration=20 * SECOND)
    assert isinstance(world.state("a"), Up)
    assert [note.step for note in world.said(DaemonNotStarted)] == ["clone"] * 3
    assert len(world.spawned["a"]) == 4
    assert world.said(AllStarted) == [AllStarted(1, 1, 0)]


def test_spawn_when_a_step_fails_says_it_once_per_attempt(seed):
    script = [Behaviour(fails=("chdir", ENOENT))]
    world = start(daemon("a"), seed=seed, scripts={"a": script}, duration=9 * SECOND)
    notes = world.said(DaemonNotStarted)
    assert {(note.step, note.errno, note.subject) for note in notes} == {("chdir", ENOENT, "/x")}
    assert len(notes) == len(world.spawned["a"]) == 4
    assert stop(world).code == 0


def test_spawn_when_it_hangs_before_exec_does_not_hold_up_the_others(seed):
    world = start(
        daemon("a"),
        daemon("b"),
        seed=seed,
        scripts={"a": [Behaviour(exec_after=None)]},
        duration=20 * SECOND,
    )
    assert isinstance(world.state("a"), Starting)
    assert isinstance(world.state("b"), Up)
    assert world.said(DaemonSlow) == [DaemonSlow("a", 10 * SECOND)]
    assert world.said(AllStarted) == [AllStarted(2, 1, 10 * SECOND)]
    world.reload(world.spec)
    world.run(SECOND)
    assert len(world.spawned["b"]) == 2


# Touch.


def test_touch_restarts_once_the_old_one_is_gone(seed):
    slow = Behaviour(stops_after=2 * SECOND)
    world = start(daemon("a"), seed=seed, scripts={"a": [slow]})
    world.touch("a")
    world.run(SECOND)
    world.touch("a")
    world.run(SECOND)
    assert [time - world.spawned["a"][0] for time in world.spawned["a"]] == [0, 3 * SECOND]


def test_touch_when_the_old_one_never_dies_does_not_start_another(seed):
    world = start(daemon("a", stop_timeout=SECOND), seed=seed, scripts={"a": [DIES_NEVER]})
    world.touch("a")
    world.run(200 * SECOND)
    assert len(world.spawned["a"]) == 1
    assert len(world.said(DaemonStuck)) == 1
    begin = world.time
    assert stop(world).code == 125
    assert world.finished_at - begin == 10 * SECOND


def test_touch_during_backoff_starts_at_once(seed):
    world = start(daemon("a"), seed=seed, scripts={"a": [Behaviour(lives=0)]}, duration=8 * SECOND)
    assert isinstance(world.state("a"), Backoff)
    world.touch("a")
    world.run()
    assert world.spawned["a"][-1] == world.time


# Reload.


def test_reload_when_a_daemon_is_slow_restarts_the_others_meanwhile(seed):
    world = start(
        daemon("a", stop_timeout=9 * SECOND),
        daemon("b"),
        seed=seed,
        scripts={"a": [IGNORES_TERM]},
    )
    world.reload(world.spec)
    world.run(SECOND)
    assert isinstance(world.state("b"), Up)
    assert isinstance(world.state("a"), Stopping)
    world.run(20 * SECOND)
    assert isinstance(world.state("a"), Up)
    assert world.said(MasterReloaded) == [MasterReloaded(9 * SECOND)]
    assert stop(world).code == 0


def test_reload_when_the_file_is_bad_changes_nothing(seed):
    world = start(daemon("a"), seed=seed)
    before = world.state("a")
    world.reload(None)
    world.run(SECOND)
    assert world.state("a") == before
    assert not world.said(DaemonEnding)
    world.reload(world.spec)
    world.run(SECOND)
    assert len(world.spawned["a"]) == 2


def test_reload_with_added_removed_and_changed_daemons_follows_the_file(seed):
    old = config(daemon("kept"), daemon("gone"), daemon("changed", stop_signal=2))
    new = config(daemon("added"), daemon("kept"), daemon("changed", stop_signal=3))
    world = World(old, seed).boot().run(SECOND)
    world.reload(new)
    world.run(SECOND)
    assert list(world.supervisor.states) == ["added", "kept", "changed"]
    assert {name: len(times) for name, times in world.spawned.items()} == {
        "kept": 2,
        "gone": 1,
        "changed": 2,
        "added": 1,
    }
    # It is ended as it was when it was started, and started as it is now.
    assert [note.signal for note in world.said(DaemonEnding) if note.name == "changed"] == [2]
    stop(world)
    assert [note.signal for note in world.said(DaemonEnding) if note.name == "changed"] == [2, 3]
    assert world.code == 0


def test_reload_signal_is_used_for_reload_only(seed):
    world = start(daemon("a", reload_signal=12, stop_signal=3), seed=seed)
    world.reload(world.spec)
    world.run(SECOND)
    stop(world)
    assert [note.signal for note in world.said(DaemonEnding)] == [12, 3]


def test_reload_when_the_old_one_never_dies_does_not_start_another(seed):
    world = start(
        daemon("a", stop_timeout=SECOND), daemon("b"), seed=seed, scripts={"a": [DIES_NEVER]}
    )
    world.fifo("R")
    world.run(200 * SECOND)
    assert len(world.spawned["a"]) == 1
    assert len(world.spawned["b"]) == 2
    begin = world.time
    assert stop(world).code == 125
    assert world.finished_at - begin == 10 * SECOND


def test_reload_brutal_kills_and_starts_again(seed):
    world = start(daemon("a"), seed=seed, scripts={"a": [IGNORES_TERM]})
    world.fifo("R")
    world.run()
    assert len(world.spawned["a"]) == 2
    assert [note.waited for note in world.said(DaemonKilled)] == [0]


def test_reload_while_reloading_happens_afterwards(seed):
    world = start(daemon("a"), seed=seed, scripts={"a": [Behaviour(stops_after=2 * SECOND)]})
    world.reload(world.spec)
    world.run(SECOND)
    world.reload(world.spec)
    world.reload(world.spec)
    world.run(20 * SECOND)
    assert len(world.spawned["a"]) == 3
    assert len(world.said(MasterReloads)) == 2


def test_reload_when_touched_meanwhile_starts_the_new_configuration(seed):
    old, new = config(daemon("a", stop_signal=2)), config(daemon("a", stop_signal=3))
    world = World(old, seed, {"a": [Behaviour(stops_after=2 * SECOND)]}).boot().run(SECOND)
    world.reload(new)
    world.run(SECOND)
    world.touch("a")
    world.run(10 * SECOND)
    assert world.supervisor.master.phase == RUNNING
    stop(world)
    assert [note.signal for note in world.said(DaemonEnding)] == [2, 3]


def test_reload_with_hooks_runs_them_between_all_ends_and_all_starts(seed):
    world = start(
        daemon("a"),
        daemon("b"),
        hooks={"x": (SECOND, 0)},
        seed=seed,
        scripts={"a": [Behaviour(stops_after=3 * SECOND)]},
    )
    spec = config(daemon("a"), daemon("b")).replace(hooks=(hook("as-user", "x"),))
    begin = world.time
    world.reload(spec)
    world.run(20 * SECOND)
    assert [world.spawned[name][-1] - begin for name in "ab"] == [4 * SECOND] * 2
    assert stop(world).code == 0


def test_reload_brings_back_what_was_removed_while_it_still_stops(seed):
    both, one = config(daemon("a"), daemon("b")), config(daemon("b"))
    world = World(both, seed, {"a": [Behaviour(stops_after=3 * SECOND)]}).boot().run(SECOND)
    world.reload(one)
    world.run(3 * SECOND - 1)
    assert world.supervisor.master.phase == RUNNING
    world.at(1, world.reload, both)
    world.run(20 * SECOND)
    assert isinstance(world.state("a"), Up)
    assert stop(world).code == 0


# Order.


def test_after_waits_until_the_other_is_ready(seed):
    world = start(
        daemon("b", after=("a",)),
        daemon("a"),
        seed=seed,
        scripts={"a": [Behaviour(exec_after=2 * SECOND)]},
        duration=5 * SECOND,
    )
    assert world.spawned["b"][0] - world.spawned["a"][0] == 2 * SECOND
    assert stop(world).code == 0


@pytest.mark.parametrize("slow", ["a", "b"])
def test_after_when_reloaded_starts_both_again(seed, slow):
    world = start(
        daemon("a"),
        daemon("b", after=("a",)),
        seed=seed,
        scripts={slow: [Behaviour(stops_after=2 * SECOND)]},
    )
    world.reload(world.spec)
    world.run(10 * SECOND)
    assert world.supervisor.master.phase == RUNNING
    assert {name: len(world.spawned[name]) for name in "ab"} == {"a": 2, "b": 2}
    assert stop(world).code == 0


# Control daemons.


@pytest.mark.parametrize(("status", "code"), [(0, 0), (3 << 8, 3), (9, 137), (15 | 0x80, 143)])
def test_control_when_it_ends_so_does_the_master_with_its_code(seed, status, code):
    world = start(
        daemon("c", control=True),
        daemon("a"),
        seed=seed,
        scripts={"c": [Behaviour(lives=5 * SECOND, status=status)]},
        duration=10 * SECOND,
    )
    assert world.code == code
    assert world.said(MasterStops) == [MasterStops("c has ended", 1)]


def test_control_when_it_leaves_a_child_ends_that_first(seed):
    script = Behaviour(lives=5 * SECOND, status=7 << 8, leaves=1, leaves_stop_after=None)
    world = start(
        daemon("c", control=True, stop_timeout=SECOND),
        seed=seed,
        scripts={"c": [script]},
        duration=30 * SECOND,
    )
    assert world.code == 7


def test_control_when_term_comes_in_the_same_turn_leaves_the_others_their_patience(seed):
    world = start(
        daemon("c", control=True),
        daemon("a"),
        seed=seed,
        scripts={"c": [Behaviour(lives=5 * SECOND)], "a": [Behaviour(stops_after=2 * SECOND)]},
        duration=0,
    )
    world.at(5 * SECOND, world.terminate)
    world.run(60 * SECOND)
    assert world.code == 0
    assert not world.said(DaemonKilled)


def test_control_when_two_end_at_once_leaves_the_others_their_patience(seed):
    world = start(
        daemon("c", control=True),
        daemon("d", control=True),
        daemon("a"),
        seed=seed,
        scripts={
            "c": [Behaviour(lives=5 * SECOND, status=1 << 8)],
            "d": [Behaviour(lives=5 * SECOND, status=1 << 8)],
            "a": [Behaviour(stops_after=2 * SECOND)],
        },
        duration=60 * SECOND,
    )
    assert world.code == 1
    assert not world.said(DaemonKilled)


def test_control_when_stopped_by_the_operator_ends_with_0(seed):
    world = start(
        daemon("c", control=True), seed=seed, scripts={"c": [Behaviour(stops_after=SECOND)]}
    )
    assert stop(world).code == 0


# Hooks.


def test_hook_when_it_fails_nothing_is_started(seed):
    world = start(daemon("a"), seed=seed, hooks={"bad": (SECOND, 2 << 8)}, duration=0)
    world = World(
        config(
            daemon("a"),
            hooks=(hook("as-root", "bad"), hook("as-user-atexit", "clean")),
            user="nobody",
        ),
        seed,
        {},
        {"bad": (SECOND, 2 << 8)},
    )
    world.boot().run(5 * SECOND)
    assert world.code == 1
    assert world.spawned == {}
    assert ("hook", "as-user-atexit") not in world.done
    assert [(note.status, note.fatal) for note in world.said(HookFailed)] == [(2 << 8, True)]


def test_hook_when_it_cannot_be_started_is_fatal(seed):
    world = World(config(daemon("a"), hooks=(hook("asap", "bad"),)), seed, {}, {"bad": (0, -1)})
    assert world.boot().run(SECOND).code == 1


@pytest.mark.parametrize("phase", ["asap", "as-root", "as-user"])
def test_stop_when_a_hook_hangs_kills_the_hook(seed, phase):
    world = World(config(daemon("a"), hooks=(hook(phase, "h"),)), seed, {}, {"h": (None, 0)})
    world.boot().run(5 * SECOND)
    assert stop(world).code == 0
    assert world.spawned == {}


def test_stop_when_two_exit_hooks_hang_ends_each_with_one_more_term(seed):
    hooks = (hook("as-user-atexit", "h"), hook("as-user-atexit", "i"))
    world = World(config(daemon("a"), hooks=hooks), seed, {}, {"h": (None, 0), "i": (None, 0)})
    world.boot().run(5 * SECOND)
    for _ in range(3):
        assert world.code is None
        world.terminate()
        world.run(5 * SECOND)
    assert world.code == 0


def test_reload_when_a_hook_fails_ends_with_1(seed):
    world = start(daemon("a"), seed=seed, hooks={"bad": (0, 256)})
    world.reload(config(daemon("a"), hooks=(hook("as-user", "bad"),)))
    assert world.run(60 * SECOND).code == 1


# Signals and the FIFO.


def test_term_when_die_on_term_is_false_reloads(seed):
    world = start(daemon("a"), seed=seed, die_on_term=False, scripts={"a": [IGNORES_TERM]})
    world.terminate()
    world.run(SECOND)
    assert len(world.spawned["a"]) == 2
    world.terminate(2)
    assert world.run(60 * SECOND).code == 0


def test_hup_when_exit_on_reload_stops(seed):
    world = start(daemon("a"), seed=seed, exit_on_reload=True)
    world.reload(world.spec)
    assert world.run(SECOND).code == 0
    assert len(world.spawned["a"]) == 1


def test_hup_when_stopping_is_ignored_aloud(seed):
    world = start(daemon("a"), seed=seed, scripts={"a": [IGNORES_TERM]})
    world.terminate()
    world.reload(world.spec)
    world.run(SECOND)
    assert world.supervisor.master.phase == STOPPING
    assert [note.reason for note in world.said(MasterIgnores)] == ["it is stopping"]


def test_fifo_force_quit_kills_without_patience(seed):
    world = start(daemon("a"), seed=seed, scripts={"a": [IGNORES_TERM]})
    begin = world.time
    world.fifo("Q")
    world.run(SECOND)
    assert world.code == 0
    assert world.finished_at == begin


# Many.


def test_thousand_daemons_of_all_kinds_stop_within_the_longest_patience():
    kinds = [
        Behaviour(),
        IGNORES_TERM,
        LEAVES_STUBBORN_CHILD,
        Behaviour(lives=0),
        Behaviour(fails=("execve", ENOENT)),
        Behaviour(clone_errno=EAGAIN),
        Behaviour(exec_after=None),
        Behaviour(lives=5 * SECOND, leaves=1),
    ]
    names = [f"d{number}" for number in range(1000)]
    world = start(
        *(daemon(name, stop_timeout=3 * SECOND) for name in names),
        scripts={name: [kinds[number % len(kinds)]] for number, name in enumerate(names)},
        duration=0,
    )
    world.audited = False
    world.run(20 * SECOND)
    begin = world.time
    assert stop(world).code == 0
    assert world.finished_at - begin <= 3 * SECOND
    assert all(isinstance(state, Down) for state in world.supervisor.states.values())
    assert len(world.said(DaemonGone)) >= 500
