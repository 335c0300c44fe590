"""Kill domains: on every rung, whatever a daemon does, stopped means that nothing of it is left."""

import os
import random
import select
import signal

import pytest
from masters import (
    RUNGS,
    daemon_line,
    has_cgroups,
    is_alive,
    kill_all,
    name_of,
    need,
    rung_options,
    send,
    wait_gone,
)

BEHAVIOURS = {
    "ignore_term.sh": 1,
    "double_fork.sh": 1,
    "setsid_children.sh": 3,
    "leak_fds.py": 1,
    "fork_storm.py": 1,
}
"""The program, and how often it says "settled" until all of it is there."""

each_rung = pytest.mark.parametrize("rung", RUNGS)
each_behaviour = pytest.mark.parametrize("program", BEHAVIOURS)


def start(masters, rung, program, **keys):
    keys = {"name": "web", "stop_timeout": "300ms"} | keys
    line = daemon_line(rung, f"{{D}}/{program}", **keys)
    master = masters.begin(rung_options(rung) + line)
    for _ in range(BEHAVIOURS.get(program, 1)):
        master.wait_output("settled")
    return master


@each_rung
@each_behaviour
def test_restart_and_stop_leave_nothing(masters, rung, program):
    master = start(masters, rung, program)
    main = master.wait_started("web")
    first = master.family()
    assert main in first
    send(main, signal.SIGKILL)
    # The next instance starts only when nothing of the last is left.
    second = master.wait_started("web")
    assert not [pid for pid in first if is_alive(pid)]
    for _ in range(BEHAVIOURS[program]):
        master.wait_output("settled")
    assert second in master.family()
    assert master.stop() == 0
    assert not master.family()
    assert not masters.cgroups()


@each_rung
@each_behaviour
def test_killed_master_leaves_nothing(masters, rung, program):
    master = start(masters, rung, program)
    master.kill()
    master.wait_family_gone()
    # Teardown sees the guard's end and the cgroup directories.


@each_rung
@each_behaviour
def test_reload_leaves_nothing_of_the_old_one(masters, rung, program):
    master = start(masters, rung, program)
    first = master.family()
    master.wait_ready()
    master.signal(signal.SIGHUP)
    master.wait_started("web")
    assert not [pid for pid in first if is_alive(pid)]
    master.wait_line("reloaded")
    assert master.stop() == 0
    assert not master.family()


@each_rung
def test_what_an_ended_daemon_leaves_is_ended_before_it_starts_again(masters, rung):
    master = masters.begin(
        rung_options(rung)
        + daemon_line(rung, "{D}/leaves_children.sh", name="web", stop_timeout="5")
    )
    first = master.wait_started("web")
    master.wait_line(rf"web: pid {first} exited with 3 after \d+ ms and left processes behind")
    master.wait_line(rf"web: pid {first} exited with 3, nothing left after ")
    second = master.wait_started("web")
    assert second != first
    assert not is_alive(first)
    assert master.stop() == 0
    assert not master.family()


@each_rung
def test_what_goes_to_the_background_is_watched_and_not_started_again(masters, rung):
    master = masters.begin(
        rung_options(rung) + daemon_line(rung, "{D}/daemonizes.sh", name="web", stop_timeout="5")
    )
    first = master.wait_started("web")
    master.wait_output("settled")
    master.wait_line(rf"web: pid {first} exited with 0 .* seems to put itself into the background")
    hidden = {pid for pid in master.family() if not name_of(pid).startswith("lowsuper-")}
    assert len(hidden) == 1
    kill_all(hidden)
    master.wait_line("web: pid .* after .*; (next try|starting again)")
    assert master.wait_started("web") != first
    master.wait_output("settled")
    assert master.stop() == 0
    assert not master.family()


@each_rung
@pytest.mark.parametrize("status", [0, 4])
def test_killed_master_leaves_nothing_of_an_ended_daemon(masters, rung, status):
    """Its own process is gone; what it left ignores SIGTERM, and is watched or being ended."""
    command = f"{{D}}/leaves_stubborn.sh {{T}}/fifo {status}"
    master = masters.begin(
        rung_options(rung) + daemon_line(rung, command, name="web", stop_timeout="600")
    )
    master.wait_output("settled")
    master.wait_line("left processes (behind|running)")
    assert master.family()
    master.kill()
    master.wait_family_gone()


@each_rung
def test_stop_signal_comes_to_the_daemon_once(masters, rung):
    master = start(masters, rung, "say_signals.py USR1", stop_timeout="1")
    master.wait_started("web")
    assert master.stop() == 0
    assert sum(line == "got SIGTERM" for line in master.lines) == 1
    assert master.has_said(r"web: still there after [\d.]+ s: SIGKILL to all of it")


@each_rung
def test_status_of_the_daemon_is_its_own(masters, rung):
    master = masters.begin(
        rung_options(rung) + daemon_line(rung, "{D}/exits.sh -s USR1", name="web")
    )
    master.wait_line(r"web: pid \d+ was killed by SIGUSR1 \(10\) after \d+ ms; next try in 1 s")
    assert master.stop() == 0


@each_rung
def test_group_of_the_daemon_gets_the_stop_signal_too(masters, rung):
    """As in uWSGI: the signal goes to the daemon and its process group."""
    master = masters.begin(
        rung_options(rung) + daemon_line(rung, "{D}/group.sh", name="web", stop_timeout="20")
    )
    master.wait_output("settled")
    assert master.stop() == 0
    assert master.has_said("child got it")


@each_rung
def test_stop_of_many_stubborn_daemons_is_parallel(masters, rung):
    text = rung_options(rung) + "".join(
        daemon_line(rung, "{D}/ignore_term.sh", name=f"web{number}", stop_timeout="1")
        for number in range(8)
    )
    master = masters.start(text)
    for _ in range(8):
        master.wait_output("settled")
    master.signal(signal.SIGTERM)
    assert master.wait(6) == 0  # in turn it would take more than 8 s
    for number in range(8):
        assert master.has_said(rf"web{number}: still there after [\d.]+ s: SIGKILL to all of it")
        assert master.has_said(rf"web{number}: pid \d+ was killed by SIGKILL")
    assert not master.family()


def test_rungs_are_chosen_as_asked_for(masters):
    need(has_cgroups() and os.geteuid() == 0, "root, and cgroup v2 that can be written")
    master = masters.start(
        "attach-daemon2 = cmd=sleep 1000,name=one\n"
        "attach-daemon2 = cmd=sleep 1000,name=two,ns_pid=true"
    )
    assert master.has_said("one: started, .* kill domain cgroup$")
    assert master.has_said("two: started, .* kill domain pidns$")
    one, two = master.pid_of("one"), master.pid_of("two")
    assert os.readlink(f"/proc/{two}/ns/pid") != os.readlink("/proc/self/ns/pid")
    (base,) = masters.cgroups()
    leaves = {leaf: leaf.read_text().split() for leaf in base.glob("dumb/*/cgroup.procs")}
    assert list(leaves.values()) == [[str(one)]]


def test_daemon_with_ns_pid_is_not_the_init_of_its_namespace(masters):
    """In uWSGI it is pid 1, and so ignores a SIGTERM that it has no handler for."""
    rung_options("pidns")
    master = masters.start("attach-daemon2 = cmd=sleep 1000,name=web,ns_pid=true")
    pid = master.pid_of("web")
    with open(f"/proc/{pid}/status") as file:
        (line,) = [line for line in file if line.startswith("NSpid:")]
    assert line.split()[-1] == "2"
    assert master.stop() == 0
    assert master.has_said(rf"web: pid {pid} was killed by SIGTERM \(15\), nothing left after")


def test_daemon_without_ns_init_is_pid_1(masters):
    rung_options("pidns")
    master = masters.start(
        "attach-daemon2 = cmd=sleep 1000,name=web,ns_pid=true,ns_init=false,stop_timeout=200ms"
    )
    pid = master.pid_of("web")
    with open(f"/proc/{pid}/status") as file:
        (line,) = [line for line in file if line.startswith("NSpid:")]
    assert line.split()[-1] == "1"
    assert master.stop() == 0
    assert master.has_said(r"web: still there after \d+ ms: SIGKILL to all of it")


def test_killed_role_takes_its_daemon_along(masters):
    """The namespace's init is killed: the daemon ends with it and starts again."""
    rung_options("pidns")
    master = masters.start(
        "attach-daemon2 = cmd={D}/setsid_children.sh,name=web,ns_pid=true,stop_timeout=300ms"
    )
    for _ in range(3):
        master.wait_output("settled")
    first = master.family()
    with open(f"/proc/{master.pid_of('web')}/stat") as file:
        init = int(file.read().rpartition(")")[2].split()[1])
    send(init, signal.SIGKILL)
    master.wait_started("web")
    assert not [pid for pid in first if is_alive(pid)]
    assert master.stop() == 0


# The guard.


def start_guarded(masters, text):
    rung_options("cgroup")
    return masters.start("kill-domain = cgroup\n" + text)


def test_guard_that_is_killed_is_replaced_at_once(masters):
    master = start_guarded(masters, "attach-daemon2 = cmd={D}/setsid_children.sh,name=web")
    for _ in range(3):
        master.wait_output("settled")
    pid = master.pid_of("web")
    first = master.guard()
    send(first, signal.SIGKILL)
    master.wait_line("the guard was killed; starting another")
    second = master.guard()
    assert second != first
    assert is_alive(pid)
    # The new one does what the first was for.
    master.kill()
    master.wait_family_gone()
    wait_gone(second)
    assert not masters.cgroups()


def test_next_master_sweeps_when_guard_and_master_were_killed(masters):
    text = "attach-daemon2 = cmd={D}/setsid_children.sh,name=web"
    master = start_guarded(masters, text)
    for _ in range(3):
        master.wait_output("settled")
    guard = master.guard()
    master.signal(signal.SIGSTOP)  # or it would start another guard
    kill_all([guard])
    master.kill()
    left = master.family()
    assert len(left) >= 3, "the children should have survived without a guard"
    again = masters.start("kill-domain = cgroup\n" + text)
    assert not [pid for pid in left if is_alive(pid)]
    assert again.has_said(r"killed what an earlier master left behind of 1 daemon\(s\)")
    lines = [line for line in again.lines if line.startswith("lowsuper: ")]
    assert "left behind" in lines[0], "swept before anything was started"
    assert again.stop() == 0
    assert not masters.cgroups()


def test_next_master_waits_for_a_guard_that_still_cleans_up(masters):
    """The guard shares the lock of its master, and takes the directories away at its end."""
    master = start_guarded(masters, "attach-daemon2 = cmd=sleep 1000,name=web")
    pid, guard = master.pid_of("web"), os.pidfd_open(master.guard())
    signal.pidfd_send_signal(guard, signal.SIGSTOP)
    master.kill()
    again = masters.launch("test.ini")
    ended = select.poll()
    ended.register(again.pidfd, select.POLLIN)
    assert not ended.poll(700), "it should wait"  # that it does nothing is what is tested
    signal.pidfd_send_signal(guard, signal.SIGCONT)
    os.close(guard)
    again.wait_ready()
    assert not is_alive(pid)
    assert is_alive(again.pid_of("web"))
    assert again.stop() == 0
    assert not masters.cgroups()


@each_rung
@pytest.mark.parametrize("seed", range(4))
def test_master_killed_at_any_moment_of_the_start_leaves_nothing(masters, rung, seed):
    moment = random.Random(f"{rung}{seed}")
    text = rung_options(rung) + "".join(
        daemon_line(rung, "{D}/double_fork.sh", name=f"web{number}") for number in range(50)
    )
    master = masters.begin(text)
    # The moment is what is random here: between the beginning of Python and the last daemon.
    select.select([], [], [], 0.07 + moment.random() * 0.12)
    master.kill()
    master.wait_family_gone()


def test_second_master_of_the_same_file_says_so_and_ends(masters):
    text = "attach-daemon2 = cmd=sleep 1000,name=web"
    first = start_guarded(masters, text)
    pid = first.pid_of("web")
    second = masters.launch("test.ini")
    assert second.wait() == 125
    assert second.has_said(rf"test\.ini is already run by another lowsuper, with pid {first.pid};")
    assert is_alive(pid)
    assert first.stop() == 0
    # Now it can run.
    third = masters.launch("test.ini").wait_ready()
    assert third.stop() == 0


def test_reload_that_needs_a_locked_cgroup_for_the_first_time_waits_for_it(masters):
    first = masters.start("attach-daemon2 = cmd=sleep 1000,name=own,ns_pid")
    text = "kill-domain = cgroup\nattach-daemon2 = cmd=sleep 1000,name=web,max_throttle=1"
    second = masters.start(text, env={"LOWSUPER_RUNTIME_DIR": str(masters.directory / "other")})
    first.signal(signal.SIGHUP)
    first.wait_line(r"web: kill-domain .*already run by another lowsuper.*next try in 1 s")
    assert second.stop() == 0
    first.wait_line(r"web: started, .* kill domain cgroup")
    assert first.stop() == 0
    assert not masters.cgroups()


def test_same_name_of_another_file_is_another_instance(masters):
    first = start_guarded(masters, "instance = same\nattach-daemon2 = cmd=sleep 1000,name=web")
    other = masters.begin(
        "kill-domain = cgroup\ninstance = same\nattach-daemon2 = cmd=sleep 1000,name=web",
        name="other.ini",
        env={"LOWSUPER_RUNTIME_DIR": str(masters.directory / "other")},
    ).wait_ready()
    assert first.stop() == 0
    assert is_alive(other.pid_of("web"))
    assert other.stop() == 0


def test_masters_without_a_file_do_not_hinder_each_other(masters):
    rung_options("cgroup")
    both = [
        masters.launch("--attach-daemon", "sleep 1000", "--kill-domain", "cgroup") for _ in range(2)
    ]
    for master in both:
        master.wait_ready()
    for master in both:
        assert master.stop() == 0
