"""Which rung of the kill domain a daemon gets, and what the rungs need: cgroups and a guard.

The rungs, best first: `pidns` (ns_pid = true), `cgroup`, `shim`. What this machine offers is tried
once, when the first daemon needs it.
"""

from __future__ import annotations

import os
import select
from errno import EBUSY, EOPNOTSUPP, ETIME, ETIMEDOUT
from time import CLOCK_BOOTTIME, clock_gettime_ns
from zlib import crc32

from lowsuper.errors import KernelError, LowsuperError, UnsupportedError
from lowsuper.kernel import cgroup, process
from lowsuper.kernel.guard import start_guard
from lowsuper.kernel.loop import READ
from lowsuper.plan import EXEC, NSINIT, SHIM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowsuper.kernel.cgroup import Leaf, Tree
    from lowsuper.kernel.controllers import Place
    from lowsuper.kernel.fences import Fences
    from lowsuper.kernel.guard import Guard
    from lowsuper.kernel.loop import Loop
    from lowsuper.kernel.spawn import Spawner
    from lowsuper.model import CgroupSetting, DaemonSpec, MasterSpec
    from lowsuper.units import Ns

COMMAND_LINE = "cmdline"
PATIENCE_MS = 5000  # for a guard that was told to go
SIGKILL = 9


class InstanceRunsError(LowsuperError):
    """Another master holds the lock of this instance."""


def instance_id(spec: MasterSpec) -> str:
    """Return what tells this instance from all others of the machine, the same at every start.

    A master without a file is never started a second time as the same one, so it gets its pid.
    """
    if not spec.files:
        return f"{COMMAND_LINE}-{os.getpid()}"
    digest = crc32(spec.files[0].encode("utf-8", "surrogateescape"))
    return f"{spec.name}-{digest:08x}"


class Domains:
    """Owns the cgroup tree and the guard of one master."""

    def __init__(
        self,
        loop: Loop,
        spawner: Spawner,
        children: dict[int, Callable[[], None]],
        say: Callable[[str], None],
    ) -> None:
        """Try nothing yet.

        `self_write` tells whether processes must enter their leaf themselves.

        Args:
            loop: to watch the guard with.
            spawner: to start the guard with.
            children: whom to call when a child of the master has ended.
            say: tells the operator a line.
        """
        self._loop, self._spawner, self._children, self._say = loop, spawner, children, say
        self._tree: Tree | None = None
        self._tried = self._delegated = self._controlled = False
        self.self_write = False
        self._guard: Guard | None = None
        self._place: Place | None = None
        self._fences: Fences | None = None

    def begin(self, spec: MasterSpec) -> None:
        """Enter the cgroup that the configuration wants the master in, and `prepare`.

        Raises:
            LowsuperError: it cannot be entered, or see `prepare`.
        """
        self._place = enter_place(spec)
        try:
            self.prepare(spec)
        except LowsuperError:
            self._leave()
            raise

    def renew(self, spec: MasterSpec) -> None:
        """Do what a reload asks of the master's own cgroup.

        Raises:
            KernelError: it cannot be done.
        """
        renew_place(self._place, spec)

    def prepare(self, spec: MasterSpec) -> None:
        """Make the cgroup tree if a daemon will need it, and sweep what an earlier master left.

        Raises:
            InstanceRunsError: another master runs this configuration.
            UnsupportedError: kill-domain = cgroup was asked for and cannot be had.
        """
        wanted = spec.kill_domain != "shim" and any(
            not daemon.ns_pid or daemon.cgroup or (daemon.legion and not daemon.ns_init)
            for daemon in spec.daemons
        )
        if not wanted or self._tried:
            return
        self._tried = True
        try:
            cgroup.sweep_unlocked(f"{COMMAND_LINE}-")
            self._tree = cgroup.open_tree(instance_id(spec))
            found = self._tree.sweep()
        except cgroup.LockedError as error:
            who = f"with pid {error.pid}" if error.pid else "in another pid namespace"
            raise InstanceRunsError(
                f"{spec.files[0] if spec.files else spec.name} is already run by another lowsuper, "
                f"{who}; stop that one first, or give one of them another name (instance = NAME)"
            ) from error
        except UnsupportedError as error:
            if spec.kill_domain == "cgroup":
                raise
            self._say(f"{error}; every daemon gets a shim of its own instead")
            return
        if found:
            self._say(f"killed what an earlier master left behind of {found} daemon(s)")
        self._tell_strangers(self._tree, spec)
        self._enable(self._tree, spec)
        self._probe(self._tree)
        if any(daemon.legion is not None for daemon in spec.daemons):
            # The first start may be long in coming; who kills us before leaves an empty tree.
            self._start_guard(self._tree)

    def _tell_strangers(self, tree: Tree, spec: MasterSpec) -> None:
        """Say which daemons run on that the configuration does not have as smart ones any more."""
        names = {daemon.name for daemon in spec.daemons if daemon.pidfile is not None}
        for leaf in tree.open("smart"):
            place = cgroup.describe_path(leaf.path)
            if place is not None and place.daemon not in names and leaf.is_populated():
                count = len(leaf.members())
                self._say(
                    f"{place.daemon} of an earlier configuration runs on in {leaf.path} "
                    f"({count} process{'' if count == 1 else 'es'}); left alone"
                )
            leaf.close()

    def _enable(self, tree: Tree, spec: MasterSpec) -> None:
        """Enable the controllers of all limits, before anything runs that could be in the way.

        What fails is told when a daemon is to have the limit.
        """
        settings = [setting for daemon in spec.daemons for setting in daemon.cgroup]
        if not settings:
            return
        from lowsuper.kernel import controllers

        self._controlled = True
        try:
            controllers.enable(tree, controllers.find_controllers(settings))
        except KernelError:
            return

    def limit(self, leaf: Leaf, settings: Sequence[CgroupSetting]) -> None:
        """Set the limits of a new leaf.

        Raises:
            KernelError: one of them cannot be set; the text says why, and the way out.
        """
        from lowsuper.kernel import controllers

        assert self._tree is not None, "the leaf is in it"
        leaf.limited = True
        controllers.limit(self._tree, leaf.directory_fd, leaf.path, settings)
        if not self._controlled:
            self._controlled = True
            self._probe(self._tree)  # the master may have moved

    def _probe(self, tree: Tree) -> None:
        """Find out whether a process can be born in its leaf.

        It could not where the kernel refuses clone3, and, from Linux 6.14 on, where the cgroup
        that we are in was once killed with cgroup.kill: the kernel then takes the count of kills
        of the parent's cgroup for the child's and kills it at birth. Entering a leaf from within
        is always possible, but costs a grace period of RCU, 7 to 15 ms on an idle machine.
        """
        leaf = tree.make("probe")
        try:
            self.self_write = not self._spawner.probe_into_cgroup(leaf.directory_fd)
        finally:
            leaf.release()
        if self.self_write:
            self._say("daemons cannot be born in their cgroup here; they enter it, which is slower")

    def choose(self, spec: DaemonSpec, master: MasterSpec) -> tuple[str, str]:
        """Return the rung of a daemon, by name, and the role that its plan needs.

        Raises:
            OSError: the rung that it should have cannot be had.
        """
        if spec.ns_pid and not spec.cgroup:
            return "pidns", NSINIT if spec.ns_init else EXEC
        try:
            self.prepare(master)
        except LowsuperError as error:
            # Only after a reload that needs cgroups for the first time; tried again with the next.
            self._tried = False
            raise KernelError("kill-domain", EBUSY, str(error)) from error
        if self._tree is None and spec.cgroup:
            from lowsuper.kernel import controllers

            file = spec.cgroup[0].file
            why = controllers.explain_absent(file.partition(".")[0]) or "no cgroup can be made here"
            raise KernelError("cgroup", EOPNOTSUPP, f"{file} = {spec.cgroup[0].value}", why)
        if spec.ns_pid:
            return "pidns", NSINIT if spec.ns_init else EXEC
        if self._tree is None and master.kill_domain == "cgroup":
            raise KernelError("kill-domain", EOPNOTSUPP, "cgroup")
        if self._tree is None or master.kill_domain == "shim":
            return "shim", SHIM
        return "cgroup", EXEC

    @property
    def instance(self) -> str:
        """What tells this instance from others: see `instance_id`; "" without cgroups."""
        return "" if self._tree is None else self._tree.name.removeprefix("lowsuper-")

    def find_smart(self, daemon: str) -> list[Leaf]:
        """Return the populated leaves of a smart daemon of this instance, for the caller."""
        return [] if self._tree is None else self._tree.find_smart(daemon)

    def make_leaf(self, name: str, *, smart: bool = False) -> Leaf:
        """Make a leaf for a daemon, guarded unless it is a `smart` one.

        Raises:
            OSError: the leaf cannot be made, or no guard can be started.
        """
        if self._tree is None:
            from lowsuper.kernel.fences import explain_missing

            raise explain_missing(name)
        if self._guard is None and not smart:
            self._start_guard(self._tree)
        leaf = self._tree.make(name, smart=smart)
        leaf.fencer = self.fence_smart if smart else self.fence_dumb
        return leaf

    # Deadlines.

    def fence(self, leaf: Leaf, until: Ns, *, survives: bool) -> None:
        """Let everything that will be in a leaf be killed at `until`, before anything is in it.

        The guard has confirmed it when this returns; `Leaf.fencer` renews it.

        Args:
            leaf: of `make_leaf`.
            until: CLOCK_BOOTTIME.
            survives: it outlives the master until then.

        Raises:
            KernelError: that cannot be had, or the time has come; start nothing.
        """
        if until <= clock_gettime_ns(CLOCK_BOOTTIME):
            raise KernelError("fence", ETIME, leaf.path.rpartition("/")[2])
        self._own_fences().set(leaf, until, survives=survives)

    def fence_dumb(self, leaf: Leaf, until: Ns) -> bool:
        """Give a leaf another deadline, 0: none; False: nothing holds it."""
        return self._fence(leaf, until, survives=False)

    def fence_smart(self, leaf: Leaf, until: Ns) -> bool:
        """Do the same for a leaf that outlives the master."""
        return self._fence(leaf, until, survives=True)

    def _fence(self, leaf: Leaf, until: Ns, *, survives: bool) -> bool:
        try:
            if until:
                self._own_fences().set(leaf, until, survives=survives)
            elif self._fences is not None:
                self._fences.lift(leaf)
        except OSError as error:
            self._say(f"{leaf.path.rpartition('/')[2]}: no deadline: {error}")
            return False
        return True

    def _own_fences(self) -> Fences:
        if self._fences is None:
            from lowsuper.kernel.fences import Fences

            self._fences = Fences(self._find_guard, self._replace_guard, self._say)
            if self._guard is not None:
                self._loop.watch(self._guard.channel_fd, READ, self._on_guard_word)
        return self._fences

    def _find_guard(self) -> Guard:
        """Return the guard, which is started if there is none.

        Raises:
            KernelError: it cannot be started.
        """
        if self._guard is None:
            if self._tree is None:
                raise KernelError("guard", EOPNOTSUPP, "", "there is no cgroup v2 here")
            self._start_guard(self._tree)
        assert self._guard is not None, "it was just started"
        return self._guard

    def _replace_guard(self) -> None:
        """End a guard that does not do its work, or is dead, and start another.

        Raises:
            KernelError: none can be started; everything that was fenced is dead.
        """
        guard = self._guard
        if guard is not None:
            process.send_signal(guard.pidfd, SIGKILL)
            # Never two: the other would keep to deadlines that are not renewed any more.
            _wait_until_ended(guard.pidfd)
            self._forget_guard(guard)
        try:
            self._find_guard()
        except OSError as error:
            if self._fences is not None:
                self._fences.fall(str(error))
            raise

    def _on_guard_word(self) -> None:
        """The guard has killed something, or says no more."""
        guard = self._guard
        if guard is not None and self._fences is not None and not self._fences.hear(guard):
            self._loop.unwatch(guard.channel_fd)  # its pidfd tells the rest

    def _start_guard(self, tree: Tree) -> None:
        guard = start_guard(self._spawner, tree.base_fd, tree.parent_fd, tree.name)
        if not guard.ready():
            guard.close()
            raise KernelError("guard", ETIMEDOUT, tree.name)
        self._guard = guard
        self._children[guard.pid] = self._on_guard_end
        self._loop.watch(guard.pidfd, READ, self._on_guard_end)
        if self._fences is not None:
            self._loop.watch(guard.channel_fd, READ, self._on_guard_word)
            self._fences.renew_all(guard)

    def _on_guard_end(self) -> None:
        guard = self._guard
        if guard is None or process.peek_status(guard.pidfd) is None:
            return
        self._forget_guard(guard)
        self._say("the guard was killed; starting another")
        if self._tree is not None:
            try:
                self._start_guard(self._tree)
            except OSError as error:
                self._say(f"no guard: {error}; daemons would outlive a killed master")
                if self._fences is not None:
                    self._fences.fall(str(error))

    def _forget_guard(self, guard: Guard) -> None:
        self._guard = None
        self._loop.unwatch(guard.pidfd)
        if self._fences is not None:
            self._loop.unwatch(guard.channel_fd)
        guard.close()

    def delegate(self, uid: int, gid: int) -> None:
        """Hand the cgroup tree to the user that the master is about to become."""
        if self._tree is None:
            return
        if self._guard is None:
            # As root: it can clean up what the user cannot.
            self._start_guard(self._tree)
        self._tree.delegate(uid, gid)
        self._delegated = True

    def close(self) -> None:
        """Send the guard away and remove the empty directories.

        A master that is not root any more cannot remove them, nor leave its own cgroup: the guard,
        which is, does it when the master has ended. So does a guard that has deadlines to keep to.
        """
        guard = self._guard
        stays = self._delegated or bool(self._fences)
        if self._fences is not None:
            self._fences.close()
        if guard is not None and not stays:
            self._loop.unwatch(guard.pidfd)
            guard.quit()
            _wait_for(guard.pidfd)
            self._children.pop(guard.pid, None)
            self._forget_guard(guard)
        if self._tree is not None:
            self._close_tree(self._tree)
        self._leave()

    def _leave(self) -> None:
        if self._place is not None:
            leave_place(self._place, self._say)

    def _close_tree(self, tree: Tree) -> None:
        if self._controlled and not self._delegated:
            from lowsuper.kernel import controllers

            try:
                controllers.withdraw(tree)
            except KernelError as error:
                self._say(str(error))
        tree.close(remove=not self._delegated)


def enter_place(spec: MasterSpec) -> Place | None:
    """Enter the cgroup that a configuration names; None: it names none.

    Raises:
        KernelError: it cannot be entered.
    """
    if spec.cgroup is None:
        return None
    from lowsuper.kernel.controllers import Place

    return Place(spec, instance_id(spec))


def renew_place(place: Place | None, spec: MasterSpec) -> None:
    """Do what a reload asks of the master's own cgroup.

    Raises:
        KernelError: it cannot be done.
    """
    if place is not None:
        place.renew(spec)
    elif spec.cgroup is not None:
        advice = "no reload moves the master to another cgroup: stop, and start again"
        raise KernelError("cgroup", EBUSY, spec.cgroup, advice)


def leave_place(place: Place, say: Callable[[str], None]) -> None:
    """Leave it, at the end."""
    try:
        place.leave()
    except OSError as error:
        say(str(error))


def _wait_until_ended(pidfd: int) -> None:
    """Wait for the end of a child that was told to go."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(PATIENCE_MS)


def _wait_for(pidfd: int) -> None:
    """Wait for the end of a child that was told to go, and reap it."""
    _wait_until_ended(pidfd)
    process.reap(pidfd)
