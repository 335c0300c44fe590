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
from lowsuper.machine import Awaiting, Down, Looking, Starting, Up
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


@pytest.mark.parametrize("notified", [False, True])
def test_brutal_reload_leaves_it_and_finds_it_again(host, notified):
    world = master(host, smart(notify_pid=notified), daemon("p"))
    pid = pid_of(host)
    world.fifo("R")
    host.run(SECOND)
    assert world.said(DaemonLeft) == [DaemonLeft("d", pid, "reload", 1 if notified else None)]
    assert [note.name for note in world.said(DaemonKilled)] == ["p"]
    assert (world.state("d").pid, pid_of(host)) == (pid, pid)
    assert host.launches == {PATH: 1}


@pytest.mark.parametrize("brutal", [False, True])
@pytest.mark.parametrize("program", [Program(stops_after=SECOND), FORKS, Program(stops_after=None)])
def test_reload_with_another_pidfile_ends_it_before_the_next(host, program, brutal):
    """The world breaks off when it is left to run beside its next instance."""
    world = master(host, smart(stop_timeout=2 * SECOND), program=program)
    old = host.processes[pid_of(host)]
    new = smart(stop_timeout=2 * SECOND).replace(pidfile="/new.pid")
    if brutal:
        world.next_spec = config(new)
        world.fifo("R")
    else:
        world.reload(config(new))
    host.run(10 * SECOND)
    (note,) = world.said(DaemonEnding)
    assert (note.pid, note.why) == (old.pid, "reload")
    assert bool(world.said(DaemonKilled)) == (program.stops_after is None)
    assert not host.living(PATH)
    assert world.state("d").pid == pid_of(host, "/new.pid")
    assert host.launches == {PATH: 1, "/new.pid": 1}
    assert host.processes[world.state("d").pid].born >= old.born + 10 * SECOND
    assert list(host.locks) == ["/new.pid"]
    assert len(world.said(MasterReloaded)) == 1


def test_reload_with_another_pidfile_ends_what_waits_for_it(host):
    world = master(host, program=FORKS, duration=SECOND + SECOND // 2)
    host.run()
    assert isinstance(world.state("d"), Awaiting)
    world.reload(config(smart().replace(pidfile="/new.pid")))
    host.run(10 * SECOND)
    assert not host.living(PATH)
    assert world.state("d").pid == pid_of(host, "/new.pid")
    assert not world.said(DaemonLeft)


@pytest.mark.parametrize("slow", [0, SECOND])
def test_reload_makes_a_smart_one_plain_and_back(host, slow):
    world = master(host, program=Program(stops_after=slow))
    world.scripts["d"].append(Behaviour(stops_after=slow))
    world.reload(config(daemon("d")))
    host.run(3 * SECOND)
    assert not host.living(PATH)
    assert world.runs["d"].main
    assert isinstance(world.state("d"), Up)
    world.reload(config(smart()))
    host.run(3 * SECOND)
    assert world.runs["d"].empty
    assert is_up(world)
    assert not world.said(DaemonLeft)
    assert host.launches == {PATH: 2}


def test_reload_that_swaps_two_pidfiles_ends_both_first(host):
    pair = smart("d"), smart("e")
    world = master(host, *pair, program=Program(stops_after=SECOND))
    before = pid_of(host), pid_of(host, "/e.pid")
    world.reload(config(pair[0].replace(pidfile="/e.pid"), pair[1].replace(pidfile="/d.pid")))
    host.run(10 * SECOND)
    assert world.state("d").pid == pid_of(host, "/e.pid") not in before
    assert world.state("e").pid == pid_of(host, "/d.pid") not in before
    assert host.launches == {"/d.pid": 2, "/e.pid": 2}


def test_reload_that_hands_a_pidfile_to_a_new_daemon_makes_that_wait(host):
    world = master(host, program=Program(stops_after=2 * SECOND))
    world.reload(config(smart().replace(pidfile="/new.pid"), smart("n").replace(pidfile=PATH)))
    host.run(SECOND)
    assert isinstance(world.state("n"), Looking)
    host.run(10 * SECOND)
    assert world.state("n").pid == pid_of(host)
    assert world.state("d").pid == pid_of(host, "/new.pid")
    assert host.launches == {PATH: 2, "/new.pid": 1}


@pytest.mark.parametrize("path", ["d.pid", "/d.pid"])
def test_reload_with_another_directory_ends_one_with_a_relative_pidfile(host, path):
    spec = smart().replace(pidfile=path)
    world = master(host, spec)
    old = pid_of(host, path)
    world.reload(config(spec, chdir="/elsewhere"))
    host.run(SECOND)
    relative = path == "d.pid"
    assert [note.pid for note in world.said(DaemonEnding)] == [old] * relative
    world.reload(config(spec, chdir="/elsewhere"))
    host.run(SECOND)
    assert len(world.said(DaemonLeft)) == 2 - relative
    assert host.launches == {path: 1 + relative}
    assert world.state("d").pid == pid_of(host, path)


def test_stop_while_a_reload_ends_it_waits_until_it_is_gone(host):
    world = master(host, program=Program(stops_after=2 * SECOND))
    world.reload(config(smart().replace(pidfile="/new.pid")))
    host.run(SECOND)
    world.terminate()
    host.run(10 * SECOND)
    assert world.code == 0
    assert not host.living(PATH)
    assert host.launches == {PATH: 1}


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


@pytest.mark.parametrize("told", [False, True])
def test_upgrade_that_fails_is_followed_back(host, told):
    """The old process writes the pidfile again once it sees that the new one has ended."""
    world = master(host, program=Program(workers=1))
    old = host.main(PATH)
    parent = old.parent if told else None  # or its end is told without a status
    new = host.fork(PATH, old.leaf, "main", old.program, parent=parent)
    host.write(PATH, new.pid)
    host.run(SECOND)
    assert world.state("d").pid == new.pid
    host.die(new, 256)
    host.run(SECOND // 2)
    host.write(PATH, old.pid)
    host.run(10 * SECOND)
    assert world.state("d").pid == old.pid
    moved = [(note.old, note.new) for note in world.said(DaemonMoved)]
    assert moved == [(old.pid, new.pid), (new.pid, old.pid)]
    assert host.launches == {PATH: 1}
    assert old.alive


@pytest.mark.parametrize("ends", [False, True])
def test_pidfile_that_is_wrong_for_a_moment_is_not_mentioned(host, ends):
    world = master(host)
    pid = pid_of(host)
    host.write(PATH, None)
    host.run(SECOND + SECOND // 2)
    if ends:
        host.kill_main(PATH)
    else:
        host.write(PATH, pid)
    host.run(5 * SECOND)
    assert is_up(world)
    assert not world.said(DaemonDoubted)
    assert host.launches == {PATH: 1 + ends}


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
