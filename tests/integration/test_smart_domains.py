"""Kill domains that survive the master: their cgroups, and processes that are not our children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from spawn_fixtures import wait_until_empty
from spawning import Run, has_happened, in_child, make_plan, read_exactly, wait_for

from lowsuper.errors import KernelError
from lowsuper.kernel import cgroup, native, process, spawn
from lowsuper.kernel.cgroup import Place, describe_path, find_place, is_ours, open_leaf
from lowsuper.kernel.domain import Domains
from lowsuper.kernel.loop import Loop
from lowsuper.kernel.spawn import ExecOk
from lowsuper.model import Command, DaemonSpec, MasterSpec, Origin

NOBODY = 65534
SIGTERM, SIGKILL = int(signal.SIGTERM), int(signal.SIGKILL)
ORIGIN = Origin("test.ini", 1, "", "")

needs_cgroups = pytest.mark.usefixtures("cgroup_root")


# Paths.


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/lowsuper-x/smart/web.1", Place("x", "smart", "web", "1")),
        ("/a/b/lowsuper-x-1.2/dumb/web.7-3/below/it", Place("x-1.2", "dumb", "web", "7-3")),
        ("/lowsuper-x/smart/a.b-2.c.15", Place("x", "smart", "a.b-2.c", "15")),
        ("/lowsuper-x/smart/web.1/lowsuper-y/dumb/db.2", Place("y", "dumb", "db", "2")),
        ("/lowsuper-x/smart/web.1/lowsuper-y/dumb", Place("x", "smart", "web", "1")),
        ("/lowsuper-x/smart/web", None),
        ("/lowsuper-x/smart/.1", None),
        ("/lowsuper-x/smart/web.", None),
        ("/lowsuper-x/smart/web.x", None),
        ("/lowsuper-x/smart/web.1-", None),
        ("/lowsuper-x/smart/web.1-x", None),
        ("/lowsuper-x/smart/web.-1", None),
        ("/lowsuper-x/smart/web.1 (deleted)", None),
        ("/lowsuper-x/master/web.1", None),
        ("/lowsuper/smart/web.1", None),
        ("/lowsuper-x/smart", None),
        ("/", None),
        ("", None),
    ],
)
def test_describe_path(path, place):
    assert describe_path(path) == place


@needs_cgroups
def test_directory_of_a_process_is_that_of_its_path():
    own = Path("/proc/self/cgroup").read_text().partition("0::")[2].partition("\n")[0]
    assert cgroup.directory_of(own) == cgroup.own_directory()
    assert cgroup.directory_of("/../elsewhere") == ""
    assert cgroup.directory_of("") == ""


# Leaves.


@pytest.fixture
def name(request):
    return f"test-{os.getpid()}-{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def tree(cgroup_root, name):
    """The cgroups of an instance, which nothing is left of."""
    made = cgroup.open_tree(name)
    yield made
    with contextlib.suppress(OSError):  # the test has closed it
        made.close(remove=False)
    clear(Path(made.path))


def clear(path: Path) -> None:
    """Kill everything in a cgroup and remove it, if it is there."""
    if not path.exists():
        return
    (path / "cgroup.kill").write_text("1")
    for below in sorted((entry for entry in path.rglob("*") if entry.is_dir()), reverse=True):
        wait_until_empty(below)
        below.rmdir()
    path.rmdir()


class Living(Run):
    """A process that does not end by itself, in a leaf."""

    def __init__(self, spawner: spawn.Spawner, still: str, directory_fd: int) -> None:
        plan = make_plan(still, dies_with_master=False)
        super().__init__(spawner, plan, leaf_fd=directory_fd)

    def __enter__(self) -> Living:
        assert self.outcome() == ExecOk()
        return self

    def is_alive(self) -> bool:
        return not has_happened(self.child.pidfd, timeout_ms=0)


@pytest.fixture
def live(plain_spawner, still):
    """Return a function that starts a process in a leaf."""
    with contextlib.ExitStack() as stack:
        yield lambda leaf: stack.enter_context(Living(plain_spawner, still, leaf.directory_fd))


def paths_of(leaves) -> list[str]:
    """The names of leaves, which it closes."""
    found = list(leaves)
    for leaf in found:
        leaf.close()
    return [leaf.path.rpartition("/")[2] for leaf in found]


def test_leaf_tells_its_path_and_id(tree, live):
    leaf = tree.make("web.1", smart=True)
    assert leaf.path == f"{tree.path}/smart/web.1"
    run = live(leaf)
    assert leaf.id == Path(leaf.path).stat().st_ino
    info = process.exit_info(run.child.pidfd)
    if info is not None:  # Linux 6.13
        assert info.cgroup_id == leaf.id
    assert leaf.members() == [run.child.pid]
    leaf.release()


def test_released_leaf_stays_while_it_is_populated(tree, live):
    for smart in (True, False):
        leaf = tree.make("web.1", smart=smart)
        run = live(leaf)
        path = Path(leaf.path)
        (path / "made").mkdir()
        leaf.release()
        assert run.is_alive()
        assert (path / "made").exists()  # it may yet have a use for it


def test_released_leaf_goes_with_what_the_daemon_made_in_it(tree):
    for smart in (True, False):
        leaf = tree.make("web.1", smart=smart)
        (Path(leaf.path) / "made" / "by" / "daemon").mkdir(parents=True)
        leaf.release()
        assert not Path(leaf.path).exists()


def test_leaf_of_a_name_that_is_taken_gets_another(tree):
    leaves = [tree.make("web.1", smart=True) for _ in range(3)]
    names = ["web.1", "web.1-1", "web.1-2"]
    assert [leaf.path.rpartition("/")[2] for leaf in leaves] == names
    for leaf in leaves:
        leaf.release()


def test_find_smart_returns_populated_leaves_of_that_daemon(tree, live):
    leaves = [tree.make(name, smart=True) for name in ("web.10", "web.2", "web.2", "web.3")]
    others = [tree.make(name, smart=True) for name in ("web.x.1", "we.1", "web-2.1")]
    others.append(tree.make("web.9"))
    for leaf in (*leaves[:3], *others):
        live(leaf)
    assert paths_of(tree.find_smart("web")) == ["web.2", "web.2-1", "web.10"]
    assert paths_of(tree.find_smart("web.x")) == ["web.x.1"]
    assert paths_of(tree.find_smart("none")) == []
    for leaf in (*leaves, *others):
        leaf.release()


def test_sweep_kills_dumb_and_removes_what_is_empty(tree, live):
    dumb, smart = tree.make("web.1"), tree.make("db.1", smart=True)
    killed, kept = live(dumb), live(smart)
    empty = tree.make("old.1", smart=True)
    (Path(empty.path) / "made").mkdir()
    for leaf in (dumb, smart, empty):
        leaf.close()
    assert tree.sweep() == 1
    assert killed.wait() == SIGKILL
    assert kept.is_alive()
    assert os.listdir(tree.dumb_fd).count("web.1") == 0
    assert paths_of(tree.open("smart")) == ["db.1"]
    assert tree.sweep() == 0


def test_closed_tree_leaves_smart_leaves_to_the_next_master(tree, live, name):
    leaf = tree.make("web.1", smart=True)
    run = live(leaf)
    leaf.close()
    tree.close(remove=True)
    assert not Path(tree.path, "dumb").exists()
    again = cgroup.open_tree(name)
    try:
        assert again.sweep() == 0
        (found,) = again.find_smart("web")
        assert found.members() == [run.child.pid]
        found.kill()
        assert run.wait() == SIGKILL
        found.release()
    finally:
        again.close(remove=True)
    assert not Path(tree.path).exists()


def test_signal_and_members_reach_what_is_below_a_leaf(tree, plain_spawner, still):
    leaf = tree.make("web.1", smart=True)
    below = Path(leaf.path, "made", "by")
    below.mkdir(parents=True)
    below_fd = os.open(below, os.O_RDONLY)
    fds = [leaf.directory_fd] * 70 + [below_fd] * 3
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(Living(plain_spawner, still, fd)) for fd in fds]
        assert sorted(leaf.members()) == sorted(run.child.pid for run in runs)
        leaf.signal(SIGTERM)
        assert {run.wait() for run in runs} == {SIGTERM}
    os.close(below_fd)
    leaf.release()
    assert not Path(leaf.path).exists()


def test_leaf_that_somebody_removed_is_not_populated(tree):
    leaf = tree.make("web.1", smart=True)
    assert not leaf.is_populated()
    os.rmdir(leaf.path)
    assert not leaf.is_populated()
    assert leaf.members() == []
    leaf.signal(SIGTERM)
    leaf.release()


# Leaves of another place.


def test_open_leaf_finds_one_by_its_path(tree, live):
    leaf = tree.make("web.1", smart=True)
    run = live(leaf)
    found = open_leaf(leaf.path)
    assert found is not None
    assert (found.path, found.id, found.members()) == (leaf.path, leaf.id, [run.child.pid])
    found.release()
    assert run.is_alive()
    leaf.release()


@pytest.mark.parametrize("held", [True, False])
def test_released_leaf_of_another_place_takes_its_empty_directories_along(tree, held):
    leaf = tree.make("web.1", smart=True)
    leaf.close()
    found = open_leaf(leaf.path)
    assert found is not None
    if not held:
        tree.close(remove=False)
    found.release()
    assert not Path(leaf.path).exists()
    # Not those of a master that runs.
    assert Path(tree.path, "smart").exists() is Path(tree.path).exists() is held


def test_open_leaf_refuses_what_is_none(tree, tmp_path):
    smart, dumb = tree.make("web.1", smart=True), tree.make("db.1")
    deep = Path(smart.path, "web.2")
    deep.mkdir()
    outside = tmp_path / "lowsuper-x" / "smart" / "web.1"
    outside.mkdir(parents=True)
    base, instance = os.path.split(tree.path)
    for path in (
        dumb.path,
        str(deep),
        str(outside),
        os.path.dirname(smart.path),
        f"{smart.path}/",
        f"{tree.path}/smart/web.9",
        f"{tree.path}/smart/../smart/web.1",
        f"{base}//{instance}/smart/web.1",
        f"{base}/../{os.path.basename(base)}/{instance}/smart/web.1",
        "/lowsuper-x/smart/web.1",
        "",
    ):
        assert open_leaf(path) is None, path
    deep.rmdir()
    smart.release()
    dumb.release()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("what", ["", "cgroup.procs"])
def test_leaf_that_another_user_can_fill_is_not_ours(tree, what):
    leaf = tree.make("web.1", smart=True)
    assert is_ours(leaf.path)
    assert is_ours(f"{leaf.path}/below/it")
    assert find_place(f"{leaf.path}/below") == describe_path(leaf.path)
    os.chown(os.path.join(leaf.path, what), NOBODY, -1)
    assert not is_ours(leaf.path)
    assert open_leaf(leaf.path) is None
    assert find_place(leaf.path) is None
    os.chown(os.path.join(leaf.path, what), 0, -1)
    os.chmod(os.path.join(leaf.path, what), 0o777)
    assert not is_ours(leaf.path)
    leaf.release()


@pytest.mark.usefixtures("root")
def test_user_of_a_daemon_cannot_take_it_for_another(tree):
    """What it makes in a part that was delegated to it, inside of its leaf, does not count."""
    leaf = tree.make("web.1", smart=True)
    own = Path(leaf.path, "delegated", "lowsuper-x", "smart", "db.1")
    own.mkdir(parents=True)
    assert find_place(str(own)) == describe_path(str(own)) == Place("x", "smart", "db", "1")
    os.chown(own, NOBODY, -1)
    place = find_place(str(own))
    assert place is not None
    assert place.daemon == "web"
    leaf.release()


def test_is_ours_of_no_cgroup_is_false(tmp_path):
    directory = tmp_path / "lowsuper-x" / "smart" / "web.1"
    assert not is_ours(str(directory))
    directory.mkdir(parents=True)
    assert not is_ours(str(directory))
    assert not is_ours(str(tmp_path))


# The domains of a master.


def make_spec(name, *daemons):
    """A configuration of this instance name; the daemons that begin with "smart" are smart."""
    return MasterSpec(
        name,
        files=(f"/{name}.ini",),
        kill_domain="cgroup",
        daemons=tuple(
            DaemonSpec(
                daemon,
                Command("true", ("/bin/true",)),
                ORIGIN,
                pidfile=f"/nowhere/{daemon}" if daemon.startswith("smart") else None,
            )
            for daemon in daemons
        ),
    )


class DomainMaster:
    """A master's domains in a forked process that can be killed; a context manager."""

    def __init__(self, spec, still: str, leaves: dict[str, bool]) -> None:
        reader, writer = os.pipe()
        self.pid = self._fork(spec, still, leaves, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            wait_for(reader)
            self.pids = [int(word) for word in lines.readline().split()]
        self.pidfds = [os.pidfd_open(pid) for pid in self.pids]

    @staticmethod
    def _fork(spec, still, leaves, writer) -> int:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return pid
        try:
            spawner = spawn.Spawner()
            domains = Domains(Loop(), spawner, {}, print)
            domains.prepare(spec)
            pids = []
            for name, smart in leaves.items():
                leaf = domains.make_leaf(name, smart=smart)
                plan = make_plan(still, dies_with_master=False)
                run = Run(spawner, plan, leaf_fd=leaf.directory_fd, self_write=domains.self_write)
                assert run.outcome() == ExecOk()
                pids.append(run.child.pid)
            os.write(writer, " ".join(map(str, pids)).encode() + b"\n")
            signal.pause()
        finally:
            os._exit(1)

    def __enter__(self) -> DomainMaster:
        return self

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def __exit__(self, *_) -> None:
        self.kill()
        for pidfd in self.pidfds:
            process.send_signal(pidfd, SIGKILL)
            wait_for(pidfd)
            os.close(pidfd)


@pytest.fixture
def domains(plain_spawner):
    """Return a function that makes the domains of a next master, and what they said."""
    with contextlib.ExitStack() as stack:

        def make(spec):
            loop, lines = Loop(), []
            stack.callback(loop.close)
            made = Domains(loop, plain_spawner, {}, lines.append)
            stack.callback(made.close)
            made.prepare(spec)
            return made, [line for line in lines if "born in their cgroup" not in line]

        yield make


@needs_cgroups
@pytest.mark.parametrize("deaths", range(3))
def test_killed_master_leaves_smart_daemons_and_nothing_else(name, still, domains, deaths):
    spec = make_spec(name, "smart", "dumb")
    leaves = {"dumb.1": False, "smart.1": True, "dumb.2": False}
    with DomainMaster(spec, still, leaves) as master:
        master.kill()
        first, smart, second = master.pidfds
        wait_for(first)
        wait_for(second)
        assert not has_happened(smart, timeout_ms=0)
        # The next master waits for the guard, which has removed what was empty.
        made, lines = domains(spec)
        assert lines == []
        (found,) = made.find_smart("smart")
        assert found.members() == [master.pids[1]]
        found.kill()
        wait_for(smart)
        wait_until_empty(Path(found.path))
        found.release()


@needs_cgroups
def test_master_without_dumb_daemons_starts_no_guard(name, still, domains):
    spec = make_spec(name, "smart")
    with DomainMaster(spec, still, {"smart.1": True}) as master:
        text = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text()
        assert text.split() == [str(master.pids[0])]
        master.kill()
        made, _ = domains(spec)
        (found,) = made.find_smart("smart")
        found.kill()
        wait_for(master.pidfds[0])
        wait_until_empty(Path(found.path))
        found.release()


@needs_cgroups
def test_smart_daemon_of_an_earlier_configuration_is_told_and_left_alone(name, still, domains):
    spec = make_spec(name, "smart", "smart.2", "smart-3")
    leaves = {"smart.1": True, "smart.2.5": True, "smart-3.1": True}
    with DomainMaster(spec, still, leaves) as master:
        master.kill()
        made, lines = domains(make_spec(name, "smart-3", "other"))
        text = "{} of an earlier configuration runs on in {}/smart/{} (1 process); left alone"
        base = made._tree.path
        assert sorted(lines) == [
            text.format("smart", base, "smart.1"),
            text.format("smart.2", base, "smart.2.5"),
        ]
        assert not any(has_happened(pidfd, timeout_ms=0) for pidfd in master.pidfds)
        for pidfd in master.pidfds:
            process.send_signal(pidfd, SIGKILL)
            wait_for(pidfd)
        for leaf in made._tree.open("smart"):
            wait_until_empty(Path(leaf.path))
            leaf.release()


@needs_cgroups
def test_domains_without_cgroups_find_nothing(plain_spawner):
    loop = Loop()
    domains = Domains(loop, plain_spawner, {}, print)
    assert domains.find_smart("web") == []
    assert domains.instance == ""
    domains.close()
    loop.close()


@needs_cgroups
@pytest.mark.usefixtures("root")
def test_dropped_master_can_make_and_remove_smart_leaves(tree):
    """In a process of its own, since it moves itself and changes its user for good."""
    code = f"""
import os
from lowsuper.kernel import cgroup
tree = cgroup.Tree({tree.path!r}, os.open({os.path.dirname(tree.path)!r}, os.O_RDONLY),
                   os.open({tree.path!r}, os.O_RDONLY))
tree.delegate({NOBODY}, {NOBODY})
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
leaf = tree.make("web.1", smart=True)
assert cgroup.is_ours(leaf.path)
assert cgroup.open_leaf(leaf.path) is not None
leaf.release()
assert not os.path.exists(leaf.path)
tree.make("web.2", smart=True)
"""
    result = subprocess.run([sys.executable, "-c", code], check=False)
    assert result.returncode == 0
    leaf = f"{tree.path}/smart/web.2"
    assert os.stat(leaf).st_uid == NOBODY
    assert not is_ours(leaf)  # we are root
    os.rmdir(leaf)


# Processes that are not our children.


class Stranger:
    """A process whose parent is another child of ours; a context manager.

    The parent reaps it when it is told to. With `leader` it leads a group that has a member.
    """

    def __init__(self, *, leader: bool = False) -> None:
        # The parent: starts the stranger, tells its pid, waits for a line, reaps it.
        code = f"""
import os, signal, sys
pid = os.fork()
if pid == 0:
    if {leader}:
        os.setsid()
        member = os.fork()
        if member == 0:
            signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"m"))
            os.write(1, b"r")
            while True:
                signal.pause()
    while True:
        signal.pause()
os.write(1, b"%d\\n" % pid)
sys.stdin.readline()
os.waitpid(pid, 0)
os.write(1, b"w")
sys.stdin.readline()
"""
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.out = self._process.stdout.fileno()
        text = read_until(self.out, b"\n", 2 if leader else 1)
        self.pid = int(text.replace(b"r", b""))
        self.pidfd = os.pidfd_open(self.pid)
        self.parent = self._process.pid

    def reap(self) -> None:
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        assert read_exactly(self.out, 1) == b"w"

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_) -> None:
        process.signal_stranger(self.pidfd, SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        os.close(self.pidfd)


def read_until(fd: int, end: bytes, marks: int) -> bytes:
    """Read until the line and the mark of the other process have come, in either order."""
    text = b""
    while end not in text or (marks == 2 and b"r" not in text):
        text += read_exactly(fd, 1)
    return text


def has_group_flag() -> bool:
    """Return whether this kernel can signal the group of a pidfd (Linux 6.9)."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        native.pidfd_send_signal(pidfd, 0, group=True)
    except OSError as error:
        return error.errno == 3
    finally:
        os.close(pidfd)
    return True


def test_exit_status_of_a_child_is_told_and_leaves_it_a_zombie(plain_spawner):
    with Run(plain_spawner, make_plan("/bin/sh", "-c", "exit 7")) as run:
        wait_for(run.child.pidfd)
        for _ in range(2):
            assert process.exit_status(run.child.pidfd) == 7 << 8
        assert run.wait() == 7 << 8
        # Reaped by us it is a process like others.
        assert process.exit_status(run.child.pidfd) in (7 << 8, None)


def test_exit_status_of_a_child_that_lives_is_none(plain_spawner, still):
    with Run(plain_spawner, make_plan(still)) as run:
        assert run.outcome() == ExecOk()
        assert process.exit_status(run.child.pidfd) is None
        assert not process.has_ended(run.child.pidfd)


def test_exit_status_of_a_stranger_is_told_when_its_parent_has_reaped_it():
    with Stranger() as stranger:
        assert process.exit_status(stranger.pidfd) is None
        assert process.signal_stranger(stranger.pidfd, SIGTERM)
        wait_for(stranger.pidfd)
        assert process.has_ended(stranger.pidfd)
        assert process.exit_status(stranger.pidfd) is None
        # Without EPOLLIN, which would be reported for ever, the reap is what is told.
        assert not has_happened(stranger.pidfd, 0, timeout_ms=50)
        told = process.tells_status(stranger.pidfd)
        stranger.reap()
        if told:
            wait_for(stranger.pidfd, 0)
            assert process.exit_status(stranger.pidfd) in (SIGTERM, None)  # Linux 6.15
        else:
            assert process.exit_status(stranger.pidfd) is None
        assert not process.signal_stranger(stranger.pidfd, SIGTERM)


def test_signal_to_a_stranger_reaches_its_group():
    with Stranger(leader=True) as stranger:
        assert process.signal_stranger(stranger.pidfd, 0)
        if not has_group_flag():
            pytest.skip("needs: Linux 6.9")
        os.kill(stranger.pid, signal.SIGSTOP)  # it has no handler
        assert process.signal_stranger(stranger.pidfd, int(signal.SIGUSR1))
        assert read_exactly(stranger.out, 1) == b"m"


def test_signal_to_a_stranger_that_is_reaped_reaches_its_group_and_no_other():
    """Its number cannot be given to another process while its group has it."""
    if not has_group_flag():
        pytest.skip("needs: Linux 6.9")
    with Stranger(leader=True) as stranger:
        os.kill(stranger.pid, SIGKILL)
        wait_for(stranger.pidfd)
        stranger.reap()
        assert process.signal_stranger(stranger.pidfd, int(signal.SIGUSR1))
        assert read_exactly(stranger.out, 1) == b"m"
        assert process.signal_stranger(stranger.pidfd, SIGKILL)


def test_signal_to_a_stranger_that_leads_no_group_is_for_it_alone():
    with Stranger() as stranger:
        assert os.getpgid(stranger.pid) != stranger.pid
        assert process.signal_stranger(stranger.pidfd, SIGTERM)
        wait_for(stranger.pidfd)
        parent = os.pidfd_open(stranger.parent)
        assert not has_happened(parent, timeout_ms=0)
        os.close(parent)


def test_signal_to_a_stranger_when_there_is_no_such_signal_raises():
    with Stranger() as stranger, pytest.raises(OSError, match="Invalid argument"):
        process.signal_stranger(stranger.pidfd, 999)


def test_signal_to_a_stranger_that_is_not_ours_to_signal_raises():
    if os.geteuid() != 0:
        pytest.skip("needs: root")

    def act():
        pidfd = os.pidfd_open(os.getppid())
        try:
            process.signal_stranger(pidfd, 0)
        except KernelError as error:
            return error.errno
        return 0

    assert in_child(act, uid=NOBODY) == 1
