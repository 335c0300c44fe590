"""What a user sees of smart daemons, played through the real supervisor in the simulated world."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from host import DEAD, Host, Program
from world import Behaviour, World, config, daemon

from lowsuper.events import (
    AllStarted,
    DaemonAwaited,
    DaemonDied,
    DaemonDoubted,
    DaemonEnding,
    DaemonFound,
    DaemonHeld,
    DaemonInBackground,
    DaemonKilled,
    DaemonLeft,
    DaemonMoved,
    DaemonNotReady,
    DaemonStarted,
    MasterReloaded,
    MasterStops,
)
from lowsuper.machine import Down, Looking, Starting, Up
from lowsuper.units import SECOND

PATH = "/d.pid"
FREQ = 4 * SECOND
FORKS = Program(forks_after=SECOND, launcher_after=0, writes_after=SECOND)


def smart(name="d", **fields):
    return daemon(name, pidfile=f"/{name}.pid", freq=FREQ, **fields)


@pytest.fixture(params=range(6))
def host(request):
    return Host(request.param)


def master(host, *daemons, program=None, duration=10 * SECOND, **fields):
    """Start a master for one smart daemon, or for those given."""
    daemons = daemons or (smart(),)
    scripts = {spec.name: [program or Program()] for spec in daemons if spec.pidfile is not None}
    world = World(config(*daemons, **fields), host.seed, scripts, host=host).boot()
    host.run(duration)
    return world


def pid_of(host, path=PATH):
    (process,) = [process for process in host.living(path) if process.role == "main"]
    return process.pid


def is_up(world, name="d"):
    return isinstance(world.state(name), Up) and world.state(name).pid == pid_of(world.host)


@pytest.mark.parametrize("program", [Program(writes_after=2 * SECOND), FORKS])
def test_boot_is_ready_once_the_pidfile_names_it(host, program):
    world = master(host, program=program)
    assert is_up(world)
    (note,) = world.said(DaemonStarted)
    # The news of a changed file may take a moment.
    assert 0 <= note.pidfile_after - 2 * SECOND <= SECOND // 20
    assert world.said(AllStarted)[0].took == note.pidfile_after


def test_boot_when_a_plain_one_comes_after_it_waits_for_the_pidfile(host):
    world = master(host, smart(), daemon("p", after=("d",)), program=FORKS, duration=SECOND)
    assert isinstance(world.state("p"), Down)
    host.run(2 * SECOND)
    assert isinstance(world.state("p"), Up)


@pytest.mark.parametrize("program", [Program(), FORKS, Program(workers=3)])
def test_master_killed_and_the_next_finds_it(host, program):
    first = master(host, program=program)
    pid = pid_of(host)
    first.kill_master()
    host.run(5 * SECOND)
    second = master(host, program=program)
    (note,) = second.said(DaemonFound)
    assert note.pid == pid == second.state("d").pid
    assert host.launches == {PATH: 1}


def test_master_killed_and_the_pidfile_removed_and_the_next_finds_it_by_its_record(host):
    first = master(host)
    pid = pid_of(host)
    first.kill_master()
    host.write(PATH, None)
    second = master(host)
    assert second.state("d").pid == pid
    assert host.launches == {PATH: 1}


def test_master_killed_while_it_waits_for_the_pidfile_and_the_next_goes_on_waiting(host):
    first = master(host, program=FORKS, duration=SECOND + SECOND // 2)
    first.kill_master()
    second = master(host, program=FORKS)
    assert second.said(DaemonAwaited)
    assert [note.pid for note in second.said(DaemonFound)] == [pid_of(host)]
    assert host.launches == {PATH: 1}


def test_master_killed_and_the_daemon_too_and_the_next_starts_it(host):
    first = master(host)
    first.kill_master()
    host.kill_main(PATH)
    assert is_up(master(host))
    assert host.launches == {PATH: 2}


def test_stop_leaves_it_and_ends_the_plain_ones(host):
    world = master(host, smart(), daemon("p"))
    pid = pid_of(host)
    world.terminate()
    host.run(SECOND)
    assert world.code == 0
    assert world.said(MasterStops) == [MasterStops("SIGTERM", 1, 1)]
    assert world.said(DaemonLeft) == [DaemonLeft("d", pid, "stop", None)]
    assert [note.name for note in world.said(DaemonEnding)] == ["p"]
    assert pid_of(host) == pid


def test_stop_when_notified_is_told_and_not_waited_for(host):
    world = master(host, smart(notify_pid=True), program=Program(stops_after=3 * SECOND))
    before = host.time
    world.terminate()
    host.run(10 * SECOND)
    assert (world.code, world.finished_at) == (0, before)
    assert not host.living(PATH)


def test_reload_leaves_it_and_finds_it_again(host):
    world = master(host)
    pid = pid_of(host)
    world.reload(world.spec)
    host.run(SECOND)
    assert world.said(MasterReloaded) == [MasterReloaded(0)]
    assert (world.state("d").pid, pid_of(host)) == (pid, pid)
    assert host.launches == {PATH: 1}


def test_reload_without_it_leaves_it_running(host):
    world = master(host)
    world.reload(config())
    host.run(SECOND)
    assert "d" not in world.supervisor.states
    assert pid_of(host)
    assert not host.locks


@pytest.mark.parametrize("found", [False, True])
def test_death_is_followed_by_a_start_at_once(host, found):
    world = master(host)
    if found:
        world.kill_master()
        world = master(host)
    old, before = pid_of(host), host.time
    host.kill_main(PATH)
    host.settle()
    assert host.launches == {PATH: 2}
    host.run(SECOND)
    assert is_up(world)
    (note,) = world.said(DaemonDied)
    assert (note.pid, note.retry) == (old, 0)
    assert world.notes[-1][0] - before <= SECOND // 20


def test_death_by_failure_ends_what_it_leaves_before_the_next_start(host):
    stay = Program(workers=2, workers_stay=True, workers_stop_after=None)
    world = master(host, smart(stop_timeout=2 * SECOND), program=stay)
    host.kill_main(PATH)
    host.run(10 * SECOND)
    assert is_up(world)
    assert [note.waited for note in world.said(DaemonKilled)] == [2 * SECOND]
    assert host.launches == {PATH: 2}


@pytest.mark.parametrize("late", [0, SECOND])
def test_upgrade_in_place_is_followed(host, late):
    world = master(host, program=Program(workers=1))
    old = pid_of(host)
    host.upgrade(PATH, late)
    host.run(3 * SECOND)
    assert is_up(world)
    assert [(note.old, note.new) for note in world.said(DaemonMoved)] == [(old, pid_of(host))]
    assert host.launches == {PATH: 1}


@pytest.mark.parametrize("number", [None, 0, 1, DEAD])
def test_pidfile_spoilt_under_a_live_daemon_starts_nothing(host, number):
    world = master(host)
    for _ in range(3):
        host.write(PATH, number)
        host.run(SECOND)
    assert is_up(world)
    assert len(world.said(DaemonDoubted)) == 1
    assert host.launches == {PATH: 1}


@pytest.mark.parametrize("number", [None, 0, 1, DEAD])
def test_pidfile_of_smart2_is_written_again(host, number):
    world = master(host, smart(daemonize=True), program=Program(writes="never"))
    pid = pid_of(host)
    for _ in range(3):
        host.write(PATH, number)
        host.run(SECOND)
        assert host.files[PATH] == pid
    assert len(world.said(DaemonDoubted)) == 1


def test_pidfile_of_smart2_goes_with_the_daemon(host):
    world = master(host, smart(daemonize=True), program=Program(writes="never", lives=SECOND))
    world.terminate()
    host.run(10 * SECOND)
    world = master(host, smart(daemonize=True, control=True), program=Program(writes="never"))
    host.kill_main(PATH)
    host.run(SECOND)
    assert world.code == 137
    assert PATH not in host.files


@pytest.mark.parametrize("launcher", [None, 0])
def test_pidfile_that_never_comes_is_tried_again_but_never_beside(host, launcher):
    program = Program(writes="never", forks_after=launcher, launcher_status=0)
    world = master(host, program=program, duration=30 * SECOND)
    notes = world.said(DaemonNotReady)
    assert len(notes) > 2
    assert {note.left for note in notes} == {True}
    assert host.launches[PATH] - len(notes) in (0, 1)


def test_launcher_that_fails_is_tried_again_under_the_throttle(host):
    program = Program(lives=0, status=256, forks_after=SECOND)
    world = master(host, program=program, duration=7 * SECOND - 1)
    notes = world.said(DaemonNotReady)
    assert [note.retry for note in notes] == [SECOND, 2 * SECOND, 3 * SECOND, 4 * SECOND][
        : len(notes)
    ]
    assert host.launches[PATH] == 4


def test_second_master_waits_and_takes_over(host):
    first, second = master(host), master(host)
    pid = pid_of(host)
    assert second.said(DaemonHeld)
    assert isinstance(second.state("d"), Looking)
    first.kill_master()
    host.run(SECOND)
    assert (second.state("d").pid, pid_of(host)) == (pid, pid)
    third = master(host)
    second.terminate()
    host.run(SECOND)
    assert (third.state("d").pid, pid_of(host)) == (pid, pid)
    assert host.launches == {PATH: 1}


def test_touch_restarts_it_with_all_that_belongs_to_it(host):
    program = Program(workers=1, stops_after=None, workers_stop_after=None)
    world = master(host, smart(stop_timeout=2 * SECOND), program=program)
    old = pid_of(host)
    world.touch("d")
    host.run(SECOND)
    host.write(PATH, None)
    host.run(5 * SECOND)
    assert is_up(world)
    assert pid_of(host) != old
    assert host.launches == {PATH: 2}


def test_stop_while_it_starts_ends_what_nobody_could_find(host):
    world = master(host, program=Program(exec_after=2 * SECOND), duration=SECOND)
    assert isinstance(world.state("d"), Starting)
    world.terminate()
    host.run(SECOND)
    assert world.code == 0
    assert not host.living(PATH)


def test_stop_while_it_is_restarted_waits_until_it_is_gone(host):
    world = master(host, program=Program(stops_after=2 * SECOND))
    world.touch("d")
    host.run()
    before = host.time
    world.terminate()
    host.run(10 * SECOND)
    assert world.code == 0
    assert world.finished_at - before == 2 * SECOND
    assert not host.living(PATH)


def test_plain_one_in_the_background_lets_others_start_and_is_watched(host):
    plain = Behaviour(lives=0, status=0, leaves=1)
    world = World(
        config(daemon("p"), daemon("q", after=("p",))), host.seed, {"p": [plain]}, host=host
    )
    world.boot()
    host.run(SECOND)
    assert len(world.said(DaemonInBackground)) == 1
    assert isinstance(world.state("p"), Up)
    assert isinstance(world.state("q"), Up)
    world.terminate()
    host.run(20 * SECOND)
    assert world.code == 0
