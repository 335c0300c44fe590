"""Governs smart daemons by their pidfiles: is it running, which process is it, whose is it?

For each pidfile that it governs a master holds a lock and the record of the daemon, which the next
master will find (`kernel.records`). `look` reads the pidfile and the record, finds out what the
kernel says of the processes that they name, lets `identity.decide` judge, and watches the process
that is believed. Pidfds come first and are asked last: what was judged is what is watched.
"""

from __future__ import annotations

import os
from errno import EPERM, ESRCH

from lowsuper.errors import KernelError, LowsuperError, WordError
from lowsuper.events import Absent, Found, Freed, HeldBy, NotNamed, Unseen
from lowsuper.identity import (
    Claim,
    Decision,
    Reading,
    Recorded,
    decide,
    find_bar,
    is_same,
    matches,
)
from lowsuper.kernel import inspect, process, records
from lowsuper.kernel.loop import READ
from lowsuper.kernel.pidfile import read_pidfile, remove_pidfile, write_pidfile
from lowsuper.kernel.smart import KeeperDomain, LeafDomain, SmartLife
from lowsuper.kernel.territory import Territory, find_first
from lowsuper.kernel.watch import IN_CLOSE_WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from lowsuper.events import DaemonEvent
    from lowsuper.identity import Process, Program
    from lowsuper.kernel.cgroup import Leaf
    from lowsuper.kernel.domain import Domains
    from lowsuper.kernel.life import Life
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.records import Lock, Store
    from lowsuper.kernel.watch import Watcher
    from lowsuper.model import DaemonSpec, MasterSpec
    from lowsuper.plan import Identity
    from lowsuper.units import RunId

    Opened = tuple[int, Process]


class Ward:
    """What a master holds of one smart daemon while it governs it."""

    __slots__ = (
        "holder",
        "life",
        "lock",
        "path",
        "program",
        "record",
        "run",
        "spec",
        "survives",
        "written",
    )

    def __init__(self, spec: DaemonSpec) -> None:
        """Begin with the absolute path of the pidfile."""
        self.spec, self.path = spec, os.path.abspath(spec.pidfile or "")
        self.run: RunId = 0
        self.life: SmartLife | None = None  # of this run
        self.lock: Lock | None = None
        self.holder: Holder | None = None  # another master that has the lock
        self.record: Recorded | None = None  # as on disk
        self.program: Program | bool | None = False  # False: not looked up yet
        self.written = 0  # what we wrote into the pidfile, or an earlier master for us
        self.survives = False  # the keeper, if there is one, is to survive us


class Holder:
    """Waits until another master may have let go of a lock: its end, or a change of the file."""

    __slots__ = ("_loop", "_number", "_pidfd", "_watcher")

    def __init__(
        self, loop: Loop, watcher: Watcher, path: str, pid: int, on_change: Callable[[], None]
    ) -> None:
        """Watch the master `pid` (0: unknown) and the lock file at `path`."""
        self._loop, self._watcher, self._pidfd = loop, watcher, _open_if_there(pid)
        self._number = watcher.add(path, on_change, IN_CLOSE_WRITE)
        if self._pidfd >= 0:
            loop.watch(self._pidfd, READ, on_change)

    def close(self) -> None:
        """Wait no more."""
        self._watcher.remove(self._number)
        if self._pidfd >= 0:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


class Governor:
    """Governs the smart daemons of one master."""

    def __init__(
        self,
        loop: Loop,
        domains: Domains,
        watcher: Watcher,
        *,
        children: dict[int, Callable[[], None]],
        begin_life: Callable[[DaemonSpec, RunId], SmartLife],
        post: Callable[[str, DaemonEvent], None],
        say: Callable[[str], None],
        helper: tuple[int, int],
    ) -> None:
        """Govern nothing yet.

        Args:
            loop: to watch with.
            domains: of the master.
            watcher: of the master's files.
            children: whom to call when a process that may be our child has ended; shared.
            begin_life: makes an empty life of a daemon and puts it among the master's lives.
            post: takes events for a daemon.
            say: tells the operator a line.
            helper: device and inode of the helper program.
        """
        self._loop, self._watcher, self._children = loop, watcher, children
        self._begin_life, self._post, self._say = begin_life, post, say
        self._territory = Territory(domains)
        self._wards: dict[str, Ward] = {}
        self._store: Store | None = None
        self._directory = ""
        self._identities: Mapping[str, Identity] = {}
        self._search: tuple[str, ...] = ()
        self._instance = ""
        self._smart: tuple[DaemonSpec, ...] = ()
        self._helper = helper
        self._words: dict[str, tuple[int, Process, str]] = {}  # which process is it, who says so

    # Configuration.

    def use(
        self, spec: MasterSpec, identities: Mapping[str, Identity], search: tuple[str, ...]
    ) -> None:
        """Take a configuration.

        Args:
            spec: of the master.
            identities: of its daemons.
            search: the directories of PATH.
        """
        self._identities, self._search, self._instance = identities, search, spec.name
        self._smart = tuple(daemon for daemon in spec.daemons if daemon.pidfile is not None)

    def open(self, spec: MasterSpec) -> None:
        """Open the directory of records.

        Raises:
            KernelError: it cannot be had, or is not to be trusted.
        """
        directory = spec.state_dir or records.default_directory(os.geteuid())
        if directory == self._directory:
            return
        store = records.open_store(directory)
        if self._store is not None:
            self._store.close()
        self._store, self._directory = store, directory

    def prepare_for(self, spec: MasterSpec, identity: Identity) -> None:
        """Make the directory of records for the user that we are about to become.

        Raises:
            KernelError: it cannot be had.
        """
        directory = spec.state_dir or records.default_directory(identity.uid)
        records.prepare_for(directory, identity.uid, identity.gid)

    def close(self) -> None:
        """Let go of everything; the daemons run on."""
        for ward in self._wards.values():
            _let_go(ward)
        self._wards.clear()
        for name in tuple(self._words):
            self.withdraw(name)
        if self._store is not None:
            self._store.close()

    # The word of an operator, against a pidfile that is not believed.

    def vouch(self, spec: DaemonSpec, pid: int, uid: int) -> Iterator[None]:
        """Take somebody's word for which process a daemon is, a part at a time.

        The next `look` goes by it, if the process lives until then; `withdraw` ends that.

        Args:
            spec: of a smart daemon that does not run.
            pid: in our pid namespace.
            uid: who says so. Who is not root may give away own processes only.

        Raises:
            WordError: it is no process, or one that cannot be this daemon.
        """
        opened = inspect.open_process(pid)
        if opened is None:
            negligent = inspect.find_negligent(pid)
            rest = f"; it has ended and was not reaped by {negligent}" if negligent else ""
            raise WordError(f"there is no process {pid}{rest}")
        pidfd, found = opened
        try:
            bar = yield from self._find_bar(spec, found)
            if bar:
                raise WordError(f"process {pid} cannot be {spec.name}: {bar}")
            if uid not in (0, found.uid):
                why = f"process {pid} is of uid {found.uid}: only root may give that away"
                raise WordError(why, is_forbidden=True)
            try:
                is_there = process.send_signal(pidfd, 0)
            except KernelError as error:
                if error.errno != EPERM:
                    raise
                raise WordError(f"process {pid} may not be signalled by lowsuper") from None
            if not is_there:
                raise WordError(f"process {pid} has just ended")
            self.withdraw(spec.name)
            self._words[spec.name] = os.dup(pidfd), found, f"uid {uid} says that it is this one"
        finally:
            os.close(pidfd)

    def withdraw(self, name: str) -> None:
        """Forget what was said of a daemon."""
        word = self._words.pop(name, None)
        if word is not None:
            os.close(word[0])

    def _find_bar(self, spec: DaemonSpec, found: Process) -> Generator[None, None, str]:
        """Return why a process is not this daemon, whoever says so, or ""."""
        assert self._store is not None, "opened with the configuration"
        own, path = os.getpid(), os.path.abspath(spec.pidfile or "")
        in_domain, other = self._territory.place(spec.name, self._store.load(path)[0], found)
        claim = Claim(
            Reading(found.id.pid, owner=0), own, in_domain, other, helpers=(self._helper,)
        )
        bar = find_bar(found, claim.replace(has_init=spec.ns_pid and spec.ns_init))
        if bar or in_domain:
            return bar
        if inspect.is_below(own, found.id.pid):
            return "lowsuper was started by it"
        if found.id.pid in self._children:
            return "it is a process of this master"
        other = self._find_other(spec, found) or self._find_keeper_of(found)
        if other:
            return f"it belongs to {other}"
        for recorded in self._store.load_all():
            if matches(recorded, found, records.boot_id()):
                yield
                if os.path.abspath(recorded.pidfile) != path:
                    return f"it is the daemon of {recorded.pidfile}"
            yield
        return ""

    def _find_keeper_of(self, found: Process) -> str:
        """Return which process of lowsuper, of whichever master, keeps a process, or ""."""
        above = inspect.parent_of(found.id.pid)
        while above > 1:
            opened = inspect.open_process(above)
            if opened is None:
                return ""
            os.close(opened[0])
            if opened[1].exe_id == self._helper:
                return f"a daemon that lowsuper's pid {above} keeps"
            above = inspect.parent_of(above)
        return ""

    def _take_word(self, ward: Ward) -> Found | None:
        """Return the process that was vouched for, which is watched now; None: there is none."""
        word = self._words.get(ward.spec.name)
        if word is None:
            return None
        reading = read_pidfile(ward.path)
        pidfd, found, why = word
        if not inspect.is_alive(pidfd):
            return None
        is_inner = ward.spec.ns_pid and not ward.spec.daemonize
        finding = ""
        if reading.pid != (found.inner_pid if is_inner else found.id.pid):
            what = f"names {reading.pid}" if reading.pid else reading.reason
            finding = f"the pidfile {ward.path} {what}"
        return self._take_over(ward, (os.dup(pidfd), found), Decision("named", why, finding))

    # What the machine asks for.

    def look(self, spec: DaemonSpec, run: RunId) -> Found | Absent | Unseen | HeldBy:
        """See whether a daemon runs, and watch it if it does."""
        ward = self._wards.get(spec.name)
        if ward is None:
            ward = self._wards[spec.name] = Ward(spec)
        if ward.run != run:
            ward.run, ward.life = run, None
        try:
            if ward.lock is None:
                held = self._take_lock(ward)
                if held is not None:
                    return held
            return self._take_word(ward) or self._look(ward)
        except (LowsuperError, OSError) as error:
            return Unseen(run, f"the pidfile {ward.path} could not be looked at: {error}")

    def name(self, spec: DaemonSpec, run: RunId) -> Found | NotNamed:
        """Write the pidfile of the program that runs."""
        ward = self._wards[spec.name]
        life = ward.life
        assert life is not None, "named only while it runs"
        assert ward.run == run, "looked for before it was launched"
        pid = life.launched_pid or life.pid
        opened = inspect.open_process(pid) if pid else None
        if opened is None:
            # It has ended already, which will be told in a moment.
            return Found(run, pid, 0, 0, life.rung, self._loop.now(), "")
        try:
            write_pidfile(ward.path, pid)
        except KernelError as error:
            os.close(opened[0])
            return NotNamed(run, f"the pidfile {ward.path} cannot be written: {error}")
        ward.written = pid
        return self._accept(ward, life, opened, "lowsuper wrote its pidfile")

    def unname(self, spec: DaemonSpec, run: RunId) -> None:
        """Remove the pidfile that `name` has written, if it is still that one."""
        ward = self._wards.get(spec.name)
        if ward is None or not ward.written or ward.run != run:
            return
        pid, ward.written = ward.written, 0
        try:
            remove_pidfile(ward.path, pid)
        except KernelError as error:
            self._say(f"{spec.name}: {error}")

    def leave(self, spec: DaemonSpec) -> None:
        """Let go of a daemon's pidfile; its life is the master's to release."""
        ward = self._wards.pop(spec.name, None)
        if ward is None:
            return
        is_over = ward.life is None or ward.life.over
        if ward.record is not None and is_over and self._store is not None:
            try:
                self._store.remove(ward.path)
            except (LowsuperError, OSError) as error:
                self._say(f"{spec.name}: {error}")
        _let_go(ward)

    def launching(self, spec: DaemonSpec, leaf: Leaf) -> None:
        """Record where a launch is about to be.

        A master that is killed from here on, before or after the launch, leaves a next one what it
        needs to wait for the pidfile, or to end the launch.
        """
        ward = self._wards[spec.name]
        ward.life, ward.survives = None, True
        self._save(ward, Recorded(ward.path, records.boot_id(), leaf=leaf.path))

    def launched(self, spec: DaemonSpec, run: RunId, life: SmartLife, launch: Life) -> None:
        """Take over a launch; one that is kept by a process of ours is recorded now.

        A master that is killed before leaves a keeper that ends with its domain, as it was not
        told to survive.
        """
        ward = self._wards[spec.name]
        ward.run, ward.life = run, life
        if launch.rung == "cgroup":
            return
        ward.survives = launch.channel_fd < 0
        kind, keeper = "", None
        opened = inspect.open_process(launch.pid)
        if opened is not None:
            os.close(opened[0])
            kind, keeper = launch.rung, opened[1].id
        self._save(ward, Recorded(ward.path, records.boot_id(), keeper_kind=kind, keeper=keeper))

    # Looking.

    def _look(self, ward: Ward) -> Found | Absent:
        reading = read_pidfile(ward.path)
        recorded = self._open_recorded(ward)
        named: Opened | None = None
        try:
            named = self._open_named(ward, reading, recorded)
            claim = self._make_claim(ward, reading, named, recorded)
            decision = decide(ward.path, claim, named and named[1], recorded and recorded[1])
            chosen = named if decision.which == "named" else recorded
            if not decision.which or chosen is None:
                return self._absent(ward, decision)
            if not inspect.is_alive(chosen[0]):
                gone = f"the pidfile {ward.path} names {reading.pid}, which has just ended"
                return self._absent(ward, decision.replace(finding=gone, telling=True))
            watched = ward.life is not None and ward.life.is_watching(chosen[1].id)
            if watched and decision.finding:
                return Absent(ward.run, decision.finding, True, True)
            return self._take_over(ward, (os.dup(chosen[0]), chosen[1]), decision)
        finally:
            for pidfd in {opened[0] for opened in (named, recorded) if opened is not None}:
                os.close(pidfd)

    def _open_recorded(self, ward: Ward) -> Opened | None:
        """Return the process that is the daemon by our own knowledge, if it lives."""
        life, record = ward.life, ward.record
        if life is not None and life.pid and not life.has_ended:
            opened = inspect.open_process(life.pid)
            if opened is None or is_same(opened[1].id, life.identity):
                return opened
        elif life is None and record is not None and record.main is not None:
            opened = inspect.open_process(record.main.pid)
            if opened is None or matches(record, opened[1], records.boot_id()):
                return opened
        else:
            return None
        os.close(opened[0])
        return None

    def _open_named(self, ward: Ward, reading: Reading, recorded: Opened | None) -> Opened | None:
        """Return the process that the pidfile names; it may be the very `recorded`."""
        number = reading.pid
        is_inner = ward.spec.ns_pid and not ward.spec.daemonize
        if number and is_inner:
            keeper = self._territory.find_keeper(ward.record)
            number = inspect.translate(number, keeper) if keeper else 0
        if not number:
            return None
        if recorded is not None and recorded[1].id.pid == number:
            return recorded
        opened = inspect.open_process(number)
        if opened is not None and is_inner and opened[1].inner_pid != reading.pid:
            # Race: the number was given to another one between its translation and the pidfd.
            os.close(opened[0])
            return None
        return opened

    def _make_claim(
        self, ward: Ward, reading: Reading, named: Opened | None, recorded: Opened | None
    ) -> Claim:
        """Gather what the judgement needs, and nothing that it does not need."""
        if named is recorded and named is not None:
            return Claim(reading, os.getpid())
        if named is None:
            is_outer = reading.pid and not ward.spec.ns_pid
            negligent = inspect.find_negligent(reading.pid) if is_outer else ""
            return Claim(reading, os.getpid(), negligent=negligent)
        spec, life = ward.spec, ward.life
        if life is not None and life.launched_pid == named[1].id.pid:
            in_domain, other = True, ""
        else:
            in_domain, other = self._territory.place(spec.name, ward.record, named[1])
        if not in_domain and not other:
            other = self._find_other(spec, named[1])
        if not in_domain and isinstance(ward.program, bool):
            directory = os.path.abspath(spec.chdir or ".")
            ward.program = inspect.look_up_program(spec.command, self._search, directory)
        identity = self._identities.get(spec.name)
        # Who may write the file of a daemon says which of its own processes is watched, but not
        # which of another user's.
        users = () if identity is None or not in_domain else (identity.uid,)
        return Claim(
            reading,
            os.getpid(),
            in_domain,
            other,
            program=None if isinstance(ward.program, bool) else ward.program,
            owners=(os.geteuid(), *users),
            helpers=(self._helper,),
            has_init=spec.ns_pid and spec.ns_init,
        )

    def _find_other(self, spec: DaemonSpec, process: Process) -> str:
        """Return which other daemon of this master a process is, in words; "": none is known.

        The path of its cgroup has not told. A process of ours that keeps a domain is told by the
        daemon's record, or is our child.
        """
        assert self._store is not None, "opened with the configuration"
        pid = process.id.pid
        for other in self._smart:
            if other.name == spec.name:
                continue
            ward = self._wards.get(other.name)
            if ward is not None and ward.lock is not None:
                record = ward.record
            else:  # it is looked at later, or another master governs it
                record = self._store.load(os.path.abspath(other.pidfile or ""))[0]
            keeper = self._territory.find_keeper(record)
            if keeper and (keeper == pid or inspect.is_below(pid, keeper)):
                return other.name
            if record is not None and matches(record, process, records.boot_id()):
                return other.name
        above = inspect.parent_of(pid)
        while above > 1 and above not in self._children:
            above = inspect.parent_of(above)
        opened = inspect.open_process(above) if above > 1 else None
        if opened is None:
            return ""
        os.close(opened[0])
        is_kept = opened[1].exe_id == self._helper and inspect.is_below(pid, above)
        return "another daemon of this master" if is_kept else ""

    # What comes of it.

    def _absent(self, ward: Ward, decision: Decision) -> Found | Absent:
        """No process is believed; one of an earlier start may be there all the same."""
        if ward.life is None:
            leaves = self._territory.open_leaves(ward.spec.name, ward.record)
            first = find_first(leaves) if ward.spec.daemonize else 0
            keeper, leaves = self._open_keeper(ward, leaves)
            if leaves or keeper >= 0:
                self._begin(ward, leaves, keeper)
            opened = inspect.open_process(first) if first else None
            if opened is not None:
                # The master was killed before it came to write the pidfile, or the file is gone.
                why = f"it is the first process of its kill domain, though {decision.finding}"
                return self._take_over(ward, opened, decision.replace(why=why))
        left = ward.life is not None and not ward.life.over
        return Absent(ward.run, decision.finding, left, decision.telling)

    def _take_over(self, ward: Ward, opened: Opened, decision: Decision) -> Found:
        """Watch a process that is believed; the pidfd is passed on."""
        found = opened[1]
        if ward.life is None:
            leaves = self._territory.leaves_of(ward.spec.name, ward.record, found)
            keeper, leaves = self._open_keeper(ward, leaves)
            self._begin(ward, leaves, keeper)
        assert ward.life is not None
        if ward.spec.daemonize:
            ward.written = found.id.pid
            if decision.finding:
                self._rewrite(ward)
        why = decision.why
        if decision.finding and decision.finding not in why:
            why = f"{why}, though {decision.finding}"
        return self._accept(ward, ward.life, opened, why)

    def _rewrite(self, ward: Ward) -> None:
        """Write the pidfile of a daemon that runs and is not named by it."""
        try:
            write_pidfile(ward.path, ward.written)
        except KernelError as error:
            self._say(f"{ward.spec.name}: the pidfile {ward.path} cannot be written: {error}")

    def _accept(self, ward: Ward, life: SmartLife, opened: Opened, why: str) -> Found:
        """Watch the process and record it."""
        pidfd, found = opened
        life.follow(found.id, pidfd)
        if life.launched_pid != found.id.pid:
            self._children[found.id.pid] = life.on_named_exit
        before = ward.record or Recorded(ward.path, "")
        record = before.replace(boot_id=records.boot_id(), main=found.id, exe=found.exe)
        if record != ward.record or not ward.survives:
            self._save(ward, record)
        born = inspect.born_at(found.id.start)
        return Found(ward.run, found.id.pid, found.uid, found.gid, life.rung, born, why)

    def _open_keeper(self, ward: Ward, leaves: list[Leaf]) -> tuple[int, list[Leaf]]:
        """Return a pidfd of the keeper, or the leaves: a daemon is in one of the two domains.

        One in a pid namespace may have a leaf for its limits; its domain is the namespace.
        """
        is_inner = ward.record is not None and ward.record.keeper_kind == "pidns"
        keeper = self._territory.open_keeper(ward.record) if is_inner or not leaves else -1
        if keeper < 0:
            return -1, leaves
        for leaf in leaves:
            leaf.close()
        return keeper, []

    def _begin(self, ward: Ward, leaves: list[Leaf], keeper: int) -> None:
        """Begin a life of what was found, in these leaves, or with this keeper, or in no domain.

        Leaves and pidfd become the life's.
        """
        life = ward.life = self._begin_life(ward.spec, ward.run)
        ward.survives = True
        before = ward.record or Recorded(ward.path, "")
        if leaves:
            life.adopt(LeafDomain(self._loop, leaves, life.on_domain))
            ward.record = before.replace(leaf=leaves[0].path, keeper_kind="", keeper=None)
        elif keeper >= 0:
            life.adopt(KeeperDomain(self._loop, before.keeper_kind, keeper, life.on_domain))
        else:
            ward.record = before.replace(leaf="", keeper_kind="", keeper=None)

    # Locks and records.

    def _take_lock(self, ward: Ward) -> HeldBy | None:
        assert self._store is not None, "opened with the configuration"
        text = f"lowsuper with pid {os.getpid()} ({self._instance})"
        held: records.HeldError | None = None
        # Race: the other may let go between a try that fails and the begin of the watch.
        for _ in range(2):
            try:
                ward.lock = self._store.lock(ward.path, text)
                break
            except records.HeldError as error:
                held = error
                self._watch_holder(ward, error.pid)
        if ward.lock is None and held is not None:
            return HeldBy(ward.run, held.holder)
        self._forget_holder(ward)
        ward.record, problem = self._store.load(ward.path)
        if problem:
            self._say(f"{ward.spec.name}: {problem}")
        return None

    def _watch_holder(self, ward: Ward, pid: int) -> None:
        assert self._store is not None, "opened with the configuration"
        self._forget_holder(ward)
        path, on_change = self._store.lock_path(ward.path), self._make_freer(ward)
        ward.holder = Holder(self._loop, self._watcher, path, pid, on_change)

    def _forget_holder(self, ward: Ward) -> None:
        if ward.holder is not None:
            ward.holder.close()
            ward.holder = None

    def _make_freer(self, ward: Ward) -> Callable[[], None]:
        name, run = ward.spec.name, ward.run

        def on_change() -> None:
            if ward.run == run:
                self._post(name, Freed(run))

        return on_change

    def _save(self, ward: Ward, record: Recorded) -> None:
        """Put a record on disk; a keeper whose record is there may survive us."""
        assert self._store is not None, "opened with the configuration"
        ward.record = record
        try:
            self._store.save(record)
        except (LowsuperError, OSError) as error:
            self._say(f"{ward.spec.name}: {error}; it is known by its pidfile only")
            return
        if not ward.survives and ward.life is not None:
            ward.survives = ward.life.let_survive()


def _open_if_there(pid: int) -> int:
    """Return a pidfd; -1: the process has ended, and its lock file was closed with it."""
    if pid <= 0:
        return -1
    try:
        return process.open_pidfd(pid)
    except KernelError as error:
        if error.errno != ESRCH:
            raise
        return -1


def _let_go(ward: Ward) -> None:
    if ward.holder is not None:
        ward.holder.close()
    if ward.lock is not None:
        ward.lock.release()
