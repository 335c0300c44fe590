"""The real world: performs what the supervisor's machines ask for, and brings events back.

It implements `supervisor.Effects` with the other modules of `kernel`, each of which owns one
subject, and holds what belongs to the master's process: the loop, the lives of the daemons, the
records of smart ones. It decides nothing about a daemon.
"""

from __future__ import annotations

import gc
import os
from errno import EMFILE
from fcntl import F_DUPFD_CLOEXEC, fcntl
from time import monotonic_ns

from lowsuper import report
from lowsuper.errors import KernelError, LowsuperError, UnsupportedError
from lowsuper.events import (
    DaemonReaped,
    Emptied,
    Exited,
    FifoByte,
    Halt,
    HookEnded,
    HookTouched,
    LordChanged,
    PidfileTouched,
    Reaped,
    ReloadTouched,
    Signalled,
    SpawnFailed,
    Timer,
    Touched,
)
from lowsuper.kernel import native, process
from lowsuper.kernel.domain import Domains
from lowsuper.kernel.fifo import MasterFifo
from lowsuper.kernel.life import Life
from lowsuper.kernel.limits import find_limits
from lowsuper.kernel.log import Log
from lowsuper.kernel.logs import has_managed, plan_output
from lowsuper.kernel.loop import READ, Loop
from lowsuper.kernel.native import HIGH_FD
from lowsuper.kernel.privilege import become, resolve, resolve_master
from lowsuper.kernel.spawn import Spawner, pack
from lowsuper.kernel.surroundings import Surroundings
from lowsuper.kernel.watch import Watcher
from lowsuper.model import ChangeDirectory, SetVariable
from lowsuper.plan import (
    DEFAULT_PATH,
    EXEC,
    Environment,
    FdSource,
    Limit,
    add_sockets,
    build_plan,
    isolate,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Iterator, Mapping

    from lowsuper.chronicle import Chronicle
    from lowsuper.events import (
        Absent,
        DaemonEvent,
        Found,
        HeldBy,
        MasterEvent,
        Note,
        NotNamed,
        Unseen,
    )
    from lowsuper.kernel.adoption import Governor
    from lowsuper.kernel.answers import MasterAnswers
    from lowsuper.kernel.attendance import Attendance
    from lowsuper.kernel.cgroup import Leaf
    from lowsuper.kernel.control import Server
    from lowsuper.kernel.door import Door
    from lowsuper.kernel.gate import Gate
    from lowsuper.kernel.hooks import Hooks
    from lowsuper.kernel.instance import Claim
    from lowsuper.kernel.legion import Legions
    from lowsuper.kernel.logger import Logger
    from lowsuper.kernel.parent import Parent
    from lowsuper.kernel.peer import Peer, Rights
    from lowsuper.kernel.setns import Share
    from lowsuper.kernel.smart import SmartLife
    from lowsuper.kernel.sockets import Sockets
    from lowsuper.kernel.stats import Stats
    from lowsuper.kernel.tail import Follower
    from lowsuper.legion.words import View
    from lowsuper.machine import State
    from lowsuper.model import DaemonSpec, Hook, MasterSpec
    from lowsuper.plan import Environment, SpawnPlan
    from lowsuper.supervisor import Supervisor
    from lowsuper.units import Ns, RunId

    Prepared = tuple[DaemonSpec, SpawnPlan, bytes, str]

SIGNALS = (1, 2, 3, 10, 12, 15, 17)  # HUP INT QUIT USR1 USR2 TERM CHLD
SIGCHLD = 17
RLIMIT_NOFILE = 7
NICE = -10
MOST_UNTOLD = 1000  # notes of a start that does not come to its end
MARGIN = 64  # descriptors; far more than one start takes


class World:
    """Performs actions. Bind a supervisor, then `run`."""

    # Until there is a need for them:
    _smart: Governor | None = None
    _sockets: Sockets | None = None
    _attending: Attendance | None = None
    _runner: Hooks | None = None
    _logger: Logger | None = None
    _server: Server | None = None
    _answers: MasterAnswers | None = None
    _rights: Rights | None = None
    _door: Door | None = None
    _chronicles: dict[str, Chronicle] | None = None
    _share: Share | None = None
    _stats: Stats | None = None
    _legions: Legions | None = None

    def __init__(
        self,
        spec: MasterSpec,
        log: Log,
        load: Callable[[], MasterSpec | None],
        announce: Callable[[], None],
        *,
        spawner: Spawner | None = None,
        watch: tuple[int, Callable[[], None]] | None = None,
        null_fd: int = -1,
        claim: Claim | None = None,
        preview: Callable[[], MasterSpec] | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Prepare everything that the first start needs.

        Args:
            spec: the configuration to begin with.
            log: where lines go; closed by `run`.
            load: reads the configuration again; None when it is bad, which it said.
            announce: called once when every daemon was started.
            spawner: where the helper program is out of reach by now; else one is made.
            watch: a descriptor, and what is called whenever it is readable.
            null_fd: /dev/null, which a jail may not have; -1: to be opened here.
            claim: what makes it the only master of its kind; None: others take care of that.
            preview: reads the configuration again and changes nothing; None: others do that.
            gate: where clients come in who were let into the jail; None: it is in no jail.

        Raises:
            LowsuperError: this machine lacks something, or another master is in the way.
        """
        self._load, self._announce, self._log = load, announce, log
        self._supervisor: Supervisor
        self.observer: Callable[[], None] | None = None  # called after each turn
        self._exit_code: int | None = None
        self._lives: dict[str, Life | SmartLife] = {}
        self._children: dict[int, Callable[[], None]] = {}
        self._over: list[Life | SmartLife] = []
        self._plans: dict[str, Prepared] = {}
        self._surroundings = Surroundings(self.say_line)
        self._pidfiles: set[str] = set()
        self._dropped = False
        native.set_child_subreaper()
        come_before_daemons()
        self._loop = Loop()
        self._loop.watch_signals(SIGNALS, self._on_signal)
        log.attach(self._loop)
        self._null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) if null_fd < 0 else null_fd
        self._limits = raise_file_limit()
        self._first_reserved = first_reserved_fd()
        self._last_pidfd = -1
        self._spawner = spawner or Spawner()
        if watch is not None:
            self._loop.watch(watch[0], READ, watch[1])
        self._domains = Domains(self._loop, self._spawner, self._children, self.say_line)
        self._watcher = Watcher(self._loop)
        self._untold: list[tuple[Ns, Note]] = []  # that no chronicle has yet
        self._parent = self._open_parent(spec, claim)
        self._claim = claim
        self._fifo = MasterFifo(self._loop, lambda byte: self._supervisor.post(FifoByte(byte)))
        self._adopt(spec)
        self._domains.begin(spec)
        try:
            if resolve_master(spec) is None:
                self._open_records(spec)
                self._use_logs(spec)
            self._fifo.use(spec.master_fifo)
            self._share_namespaces(spec)
            self._serve_stats(spec)
        except KernelError:
            self._domains.close()
            raise
        self._claim, self._preview, self._gate = claim, preview, gate
        if gate is not None:
            gate.take = self._let_in

    # The control socket.

    @property
    def chronicles(self) -> dict[str, Chronicle]:
        """What has become of each daemon."""
        return self._tell_chronicles()

    def _tell_chronicles(self) -> dict[str, Chronicle]:
        """Bring the chronicles up to date; the first daemons do not wait for their import."""
        from lowsuper.chronicle import Chronicle

        made = self._chronicles
        if made is None:
            made = self._chronicles = {}
        untold, self._untold = self._untold, []
        for at, note in untold:
            name = getattr(note, "name", "")
            if name not in made:
                made[name] = Chronicle()
            made[name].record(note, at)
        return made

    def _open_door(self) -> None:
        """Listen at the control socket, once; the first daemons do not wait for that either."""
        if self._claim is None or self._door is not None:
            return
        from lowsuper.kernel.door import open_door

        spec = self._supervisor.spec
        self._door = open_door(
            spec,
            self._claim,
            self._loop,
            self._watcher,
            say=self.say_line,
            on_knock=self._on_knock,
            identity=resolve_master(spec),
        )

    def _let_in(self, socket: _socket.socket, peer: Peer, data: bytes) -> None:
        """Serve a client that was let in by the process outside of the jail."""
        self.server.take(socket, peer, data)

    def _on_knock(self) -> None:
        """Let somebody in who wants to ask or to steer."""
        door = self._door
        if door is not None and door.socket is not None and not self.server.accept(door.socket):
            door.rest()

    @property
    def server(self) -> Server:
        """What serves the clients of the control socket; until one comes it costs nothing."""
        if self._server is None:
            from lowsuper.kernel.answers import MasterAnswers
            from lowsuper.kernel.control import Server

            owner = self._gate or self._claim
            assert owner is not None, "somebody has let the client in"
            outside = 0 if self._gate is None else self._gate.pid
            self._answers = MasterAnswers(
                self._loop, self._supervisor, self, name=owner.name, outside=outside
            )
            self._server = Server(self._loop, self._answers, self._find_rights)
        return self._server

    def _find_rights(self) -> Rights:
        """Return who may ask what."""
        if self._rights is None:
            from lowsuper.kernel.peer import resolve_rights

            spec = self._supervisor.spec
            self._rights = resolve_rights(spec, resolve_master(spec))
        return self._rights

    @property
    def loop(self) -> Loop:
        """What calls back."""
        return self._loop

    def leaf_of(self, name: str) -> str | None:
        """Return the directory of a daemon's cgroup; None: it has none."""
        life = self._lives.get(name)
        leaf = None if life is None or life.over else life.leaf
        return None if leaf is None else leaf.path

    def preview(self) -> MasterSpec:
        """Read the configuration again, and change nothing.

        Raises:
            ConfigError, PlanError: it is wrong.
            UnsupportedError: it cannot be read from here.
        """
        if self._preview is None:
            raise UnsupportedError("the configuration is outside of the jail")
        return self._preview()

    def run(self, supervisor: Supervisor) -> int:
        """Run until the master has finished; return the exit code."""
        self._supervisor = supervisor
        self._use_legions(supervisor.spec)
        supervisor.settle()
        self._open_door()
        self._end_turn()
        while self._exit_code is None:
            self._run_turn()
        self._close()
        return self._exit_code

    def _run_turn(self) -> None:
        self._loop.run_turn(self._supervisor.settle)
        self._end_turn()

    def _end_turn(self) -> None:
        """Do what nobody waits for: close what is over, write the lines."""
        if self.observer is not None:
            self.observer()
        if self._over:
            over, self._over = self._over, []
            for life in over:
                if self._lives.get(life.name) is life:
                    if not life.over:
                        continue  # another process has taken the place of the one that ended
                    del self._lives[life.name]
                self._release(life)
        if self._parent is not None:
            self._tell_parent(self._parent)
        if self._legions is not None:
            self._legions.follow(self._supervisor.master.phase)
        self._log.flush()

    def _open_parent(self, spec: MasterSpec, claim: Claim | None) -> Parent | None:
        """Return what tells a service manager of us, unless the process outside a jail has it."""
        if claim is None or "NOTIFY_SOCKET" not in os.environ:
            return None
        from lowsuper.kernel.parent import open_parent

        background = bool(spec.daemonize or spec.daemonize2)
        return open_parent(os.environ, self._loop, self.say_line, in_background=background)

    def _tell_parent(self, parent: Parent) -> None:
        """Tell the service manager what has become of us in this turn."""
        master = self._supervisor.master
        phase = {"running": "ready", "ended": "stopping"}.get(master.phase, master.phase)
        count = len(self._supervisor.spec.daemons)
        words = f"{phase}: {count} daemon{'' if count == 1 else 's'}"
        parent.follow(phase, lambda: words)

    def _release(self, life: Life | SmartLife) -> None:
        for pid in life.pids:
            callback = self._children.get(pid)
            if callback is not None and life.owns(callback):
                del self._children[pid]
        if self._attending is not None:
            self._attending.forget(life.name, life)
        try:
            life.release()
        except OSError as error:
            self.say_line(str(error))

    def _close(self) -> None:
        if self._legions is not None:
            self._legions.finish(self._run_turn)
        for life in self._lives.values():
            self._release(life)
        self._fifo.close(remove=self._supervisor.spec.vacuum)
        self._stop_serving()
        self._remove_pidfiles()
        if self._smart is not None:
            self._smart.close()
        if self._attending is not None:
            self._attending.close()
        self._domains.close()
        self._close_doors()
        self._watcher.close()
        self._spawner.close()
        if self._parent is not None:
            self._parent.close(self._exit_code or 0)
        self._log.drain()
        if self._logger is not None:
            self._logger.close()
        self._loop.close()

    def _stop_serving(self) -> None:
        for served in (self._share, self._stats, self._sockets):
            if served is not None:
                served.close()

    def _close_doors(self) -> None:
        """Let nobody in any more, and everybody out."""
        if self._gate is not None:
            self._gate.take = None
        if self._server is not None:
            self._server.close()
        if self._door is not None:
            self._door.close()

    def _remove_pidfiles(self) -> None:
        if not self._pidfiles:
            return
        from lowsuper.kernel.pidfile import remove_pidfile

        for path in self._pidfiles:
            try:
                remove_pidfile(path, os.getpid())
            except KernelError as error:
                self.say_line(str(error))

    # Time and words.

    def now(self) -> Ns:
        """Return CLOCK_MONOTONIC in nanoseconds."""
        return monotonic_ns()

    def set_timer(self, name: str, run: RunId, at: Ns) -> None:
        """Set the daemon's only timer."""
        self._loop.set_timer(name, at, lambda: self._on_timer(name, run))

    def _on_timer(self, name: str, run: RunId) -> None:
        if self._attending is not None:
            later = self._attending.awaited_until(name, run)
            if later > self.now():
                self.set_timer(name, run, later)
                return
        self._supervisor.post_daemon(name, Timer(run))

    def cancel_timer(self, name: str) -> None:
        """Forget the daemon's timer."""
        self._loop.cancel_timer(name)

    def say(self, note: Note) -> None:
        """Tell the operator."""
        more = {"event": type(note).__name__}
        name: str | None = None
        if "name" in note.__match_args__:
            name = more["daemon"] = note.name  # type: ignore[union-attr]  # those that have one
            self._untold.append((monotonic_ns(), note))
            if self._chronicles is not None or len(self._untold) > MOST_UNTOLD:
                self._tell_chronicles()
        if self._answers is not None:
            self._answers.noted(name, note)
        self._log.put(report.format_note(note), **more)

    def say_line(self, line: str) -> None:
        """Tell the operator something that no machine has decided."""
        self._log.put(line)

    def say_stats(self, states: Mapping[str, State]) -> None:
        """Tell the operator the state of every daemon."""
        now = self.now()
        for name, state in states.items():
            line = f"{name}: {report.describe_state(state, now)}"
            told = self.chronicles.get(name)
            if told is not None:
                last = told.exit
                past = (None, None, "") if last is None else (last.status, now - last.at, last.oom)
                line += f"; {report.describe_past(told.restarts, *past)}"
            self.say_line(line)

    # Daemons.

    def spawn(self, spec: DaemonSpec, run: RunId) -> SpawnFailed | None:
        """Start a program; what failed at once is returned, the rest comes as events."""
        if spec.envfile:
            self._plans.pop(spec.name, None)  # they are read at each start
        if spec.ready is None or spec.ready.kind != "fd":
            return self._spawn(spec, run)
        try:
            made = self._prepare(spec)
            write_fd, packed = self._attendance.open_pipe(spec, run, made[1])
        except OSError as error:
            return self._fail_spawn(run, error)
        self._plans[spec.name] = (*made[:2], packed, made[3])
        failure = self._spawn(spec, run)
        self._plans[spec.name] = made
        os.close(write_fd)
        if failure is not None:
            self._attendance.close_pipe(spec.name)
        return failure

    def _fail_spawn(self, run: RunId, error: OSError) -> SpawnFailed:
        call = error.call if isinstance(error, KernelError) else "open"
        subject = error.subject if isinstance(error, KernelError) else str(error.filename or "")
        advice = error.advice if isinstance(error, KernelError) else ""
        return SpawnFailed(run, call, error.errno or 0, subject, cloned=False, advice=advice)

    def _spawn(self, spec: DaemonSpec, run: RunId) -> SpawnFailed | None:
        name, is_smart = spec.name, spec.pidfile is not None
        leaf = self._put_away(name, is_smart=is_smart)
        try:
            self._keep_reserve()
            _, plan, packed, rung = self._prepare(spec)
            if leaf is not None and (spec.cgroup or rung != "cgroup"):
                # Limits, and the counts of what met them, are those of one run.
                leaf.release()
                leaf = None
            until = self._fence_of(spec)
            guarded = bool(until) and plan.role == EXEC  # no keeper will hold the deadline
            if rung == "cgroup" or spec.cgroup or guarded:
                leaf = leaf or self._domains.make_leaf(f"{name}.{run}", smart=is_smart)
                self._furnish(leaf, spec, until if guarded else 0)
                if is_smart and rung == "cgroup":
                    self._governor.launching(spec, leaf)
            child = self._spawner.spawn(
                plan,
                leaf_fd=-1 if leaf is None else leaf.directory_fd,
                self_write=leaf is not None and self._domains.self_write,
                packed=packed,
                fence=until,
            )
        except OSError as error:
            if leaf is not None:
                leaf.release()
            return self._fail_spawn(run, error)

        self._last_pidfd = child.pidfd
        if is_smart:
            smart = self._begin_smart(spec, run)
            launch = Life(
                self._loop, run, plan, child=child, leaf=leaf, rung=rung, post=smart.on_launch
            )
            self._children[child.pid] = launch.on_exit
            smart.launched(launch)
            self._attend(spec, run, smart)
            self._governor.launched(spec, run, smart, launch)
            return None

        def post(event: DaemonEvent) -> None:
            self._supervisor.post_daemon(name, event)
            if life.over and isinstance(event, Exited | Emptied):
                self._over.append(life)

        life = Life(self._loop, run, plan, child=child, leaf=leaf, rung=rung, post=post)
        self._lives[name] = life
        self._children[child.pid] = life.on_exit
        self._attend(spec, run, life)
        return None

    def _furnish(self, leaf: Leaf, spec: DaemonSpec, until: Ns) -> None:
        """Give a leaf what it needs before there is a process in it: limits, a deadline."""
        if spec.cgroup:
            self._domains.limit(leaf, spec.cgroup)
        if until:
            self._domains.fence(leaf, until, survives=spec.pidfile is not None)

    def _fence_of(self, spec: DaemonSpec) -> Ns:
        """Return when a daemon that is started now has to be gone, CLOCK_BOOTTIME; 0: never."""
        if spec.legion is None or self._legions is None:
            return 0
        return self._legions.until_of(spec.legion)

    def _put_away(self, name: str, *, is_smart: bool) -> Leaf | None:
        """Make room for the next life of a daemon; return the leaf of the last if it is of use."""
        before = self._lives.pop(name, None)
        if before is None:
            return None
        leaf = None if is_smart else before.take_leaf()
        if not before.over:
            self._over.append(before)  # it was given up: not even SIGKILL ended it
        return leaf

    def _post_daemon(self, name: str, event: DaemonEvent) -> None:
        self._supervisor.post_daemon(name, event)

    def _begin_smart(self, spec: DaemonSpec, run: RunId) -> SmartLife:
        """Return an empty life of a smart daemon, which is among the lives from now on."""
        from lowsuper.kernel.smart import SmartLife, find_patience

        name = spec.name

        def post(event: DaemonEvent) -> None:
            self._supervisor.post_daemon(name, event)
            if isinstance(event, Reaped):
                self.say(DaemonReaped(name, life.reaped_pid, event.status))
            elif life.over and isinstance(event, Exited | Emptied):
                self._over.append(life)

        before = self._lives.get(name)
        if before is not None:
            self._over.append(before)
        life = SmartLife(self._loop, name, run, post=post, patience=find_patience(spec))
        self._lives[name] = life
        if is_attended(spec):
            self._attendance.begin(spec, run, life, found=True)
        return life

    def _keep_reserve(self) -> None:
        """Refuse a start that would leave the master too few descriptors to end what it has.

        Raises:
            OSError: EMFILE.
        """
        # The pidfd of the last start tells how far the high numbers are taken.
        if HIGH_FD <= self._last_pidfd < self._first_reserved - MARGIN:
            return
        # Those of daemons are high; where there are hardly any high ones, all are alike.
        lowest = HIGH_FD if self._first_reserved > HIGH_FD else 0
        try:
            fd = fcntl(self._null_fd, F_DUPFD_CLOEXEC, lowest)
        except OSError:
            fd = self._first_reserved
        else:
            os.close(fd)
        if fd >= self._first_reserved:
            raise KernelError("spawn", EMFILE, "", "raise the hard limit of open files")

    def _prepare(self, spec: DaemonSpec) -> Prepared:
        """Return the plan of a daemon, its bytes, and the rung of its kill domain, made once."""
        made = self._plans.get(spec.name)
        if made is not None and made[0] is spec:
            return made
        master, own = self._supervisor.spec, spec.env
        environment = self._surroundings.environment
        if spec.clean_env:
            environment = Environment({"PATH": DEFAULT_PATH})
        if spec.envfile:
            from lowsuper.kernel.envfile import read_envfiles

            own = (*read_envfiles(spec, self._uid_of(spec)), *own)
        rung, role = self._domains.choose(spec, master)
        stdin = 0 if spec.stdin or master.daemons_honour_stdin else self._null_fd
        output, log_path = plan_output(spec, self._null_fd, self._logger)
        if spec.legion is not None and self._legions is not None:
            environment = self._legions.adapt(spec, environment)
        plan = build_plan(
            spec.name,
            spec.command,
            environment,
            role=role,
            new_pid_ns=spec.ns_pid,
            identity=self._identities.get(spec.name),
            chdir=spec.chdir,
            fds=(FdSource(0, stdin), *output),
            limits=find_limits(self._limits, spec.limits) if spec.limits else self._limits,
            log=log_path,
            own=own,
        )
        if spec.listen:
            names = [each.name or spec.name for each in spec.listen]
            plan = add_sockets(plan, self._listen_sockets.open(spec), names)
        plan = isolate(plan, spec)
        if spec.pidfile is not None and role == EXEC:
            # A keeper is told to survive us later, when there is a record of it.
            plan = plan.replace(dies_with_master=False)
        if is_attended(spec):
            plan = self._attendance.equip(spec, plan)
        made = self._plans[spec.name] = spec, plan, pack(plan), rung
        return made

    @property
    def _listen_sockets(self) -> Sockets:
        """What daemons find open; without one it costs nothing, not even its import."""
        if self._sockets is None:
            from lowsuper.kernel.sockets import Sockets

            self._sockets = Sockets()
        return self._sockets

    def signal(self, name: str, run: RunId, signal: int, *, group: bool = True) -> None:
        """Send a signal to a daemon and, with `group`, its group; or to what it left behind."""
        self._act(name, run, lambda life: life.signal(signal, group=group))

    def await_ready(self, spec: DaemonSpec, run: RunId) -> None:
        """See when a daemon is ready; Unready and Ready follow. Its next state ends that."""
        from lowsuper.kernel.attendance import make_launch

        life = self._lives.get(spec.name)
        pid = 0 if life is None or life.run != run else life.known_pid
        launch = make_launch(self._surroundings.environment, self._prepare(spec)[1])
        self._attendance.await_ready(spec, run, pid, launch)

    def _attend(self, spec: DaemonSpec, run: RunId, life: Life | SmartLife) -> None:
        """Listen to a run that was just started, if it has something to tell."""
        if self._attending is not None:
            self._attending.begin(spec, run, life, found=False)

    @property
    def _attendance(self) -> Attendance:
        """What daemons tell of themselves; without one it costs nothing, not even its import."""
        if self._attending is None:
            from lowsuper.kernel.attendance import Attendance
            from lowsuper.kernel.readiness import Crew

            crew = Crew(
                self._loop, self._spawner, self._children, self.put_over, null_fd=self._null_fd
            )
            claim = self._claim
            has_place = claim is not None and claim.directory
            self._attending = Attendance(
                crew,
                path=f"{claim.directory}/{claim.name}.notify" if claim and has_place else "",
                instance=lambda: self._domains.instance,
                post=self._post_daemon,
                say=self.say_line,
                changed=self._on_status,
            )
        return self._attending

    def _on_status(self, name: str) -> None:
        """Take note that a daemon has told another status of itself."""
        state = self._supervisor.states.get(name)
        if state is not None:
            self.moved(name, state)

    def status_of(self, name: str) -> str | None:
        """Return what a daemon last told of its status by sd_notify(3); None: nothing."""
        return None if self._attending is None else self._attending.status_of(name)

    def phase_of(self, name: str) -> str:
        """Return "reloading" or "stopping" if a daemon told so by sd_notify(3), else ""."""
        return "" if self._attending is None else self._attending.phase_of(name)

    def moved(self, name: str, state: State) -> None:
        """Take note that a daemon is in another state now."""
        if self._answers is not None:
            self._answers.moved(name, state)
        if self._attending is not None:
            self._attending.moved(name, state)
        if self._legions is not None:
            legion = self._supervisor.legion_of(name)
            if legion is not None:
                self._legions.moved(legion)

    def kill(self, name: str, run: RunId) -> None:
        """SIGKILL everything of a daemon."""
        self._act(name, run, lambda life: life.kill())

    @property
    def _governor(self) -> Governor:
        """What governs the smart daemons; without one it costs nothing, not even its import."""
        if self._smart is None:
            from lowsuper.kernel.adoption import Governor

            self._smart = Governor(
                self._loop,
                self._domains,
                self._watcher,
                children=self._children,
                begin_life=self._begin_smart,
                post=self._post_daemon,
                say=self.say_line,
                helper=self._spawner.identify_helper(),
            )
        return self._smart

    def _open_records(self, spec: MasterSpec) -> None:
        """Open the directory of records, if the configuration has a smart daemon.

        Raises:
            KernelError: it cannot be had, or is not to be trusted.
        """
        if has_smart(spec):
            self._governor.open(spec)

    def look(self, spec: DaemonSpec, run: RunId) -> Found | Absent | Unseen | HeldBy:
        """See whether a smart daemon runs, and watch it if it does."""
        return self._governor.look(spec, run)

    def name(self, spec: DaemonSpec, run: RunId) -> Found | NotNamed:
        """Write the pidfile of the program that runs."""
        return self._governor.name(spec, run)

    def unname(self, spec: DaemonSpec, run: RunId) -> None:
        """Remove the pidfile that `name` has written, if it is still that one."""
        self._governor.unname(spec, run)

    def vouch(self, spec: DaemonSpec, pid: int, uid: int) -> Iterator[None]:
        """Take somebody's word for which process a smart daemon is: see `Governor.vouch`."""
        return self._governor.vouch(spec, pid, uid)

    def withdraw(self, name: str) -> None:
        """Forget what was said of a smart daemon."""
        self._governor.withdraw(name)

    def leave(self, spec: DaemonSpec, run: RunId) -> None:
        """Let go of a smart daemon and of its pidfile."""
        self._governor.leave(spec)
        life = self._lives.get(spec.name)
        if life is not None and life.run == run and not life.over:
            del self._lives[spec.name]
            self._release(life)

    def _act(self, name: str, run: RunId, act: Callable[[Life | SmartLife], None]) -> None:
        life = self._lives.get(name)
        if life is None or life.run != run:
            return
        try:
            act(life)
        except OSError as error:
            self.say_line(f"{name}: {error}")

    # Legions.

    def _use_legions(self, spec: MasterSpec) -> None:
        """Take the legions of a configuration; without any they cost nothing."""
        if self._legions is None:
            if not spec.legions:
                return
            from lowsuper.kernel.legion import Legions

            self._legions = Legions(
                self._loop,
                self._spawner,
                self._children,
                self,
                null_fd=self._null_fd,
                limits=self._limits,
            )
        self._legions.use(spec)

    @property
    def legions(self) -> Mapping[str, View]:
        """What is known of each legion."""
        return {} if self._legions is None else self._legions.views

    def post_master(self, event: MasterEvent) -> None:
        """Queue an event for the master machine."""
        if isinstance(event, LordChanged):
            # What a daemon's environment says of the lord is made again.
            for name, made in tuple(self._plans.items()):
                if made[0].legion == event.legion:
                    del self._plans[name]
        self._supervisor.post(event)

    def is_busy(self, legion: str) -> bool:
        """Return whether anything of a legion's daemons may be there."""
        return self._supervisor.has_any_of(legion)

    def fence(self, legion: str, until: Ns) -> None:
        """See that nothing of a legion's daemons is left at `until`, CLOCK_BOOTTIME."""
        for name, life in self._lives.items():
            if life.over or self._supervisor.legion_of(name) != legion:
                continue
            if not life.fence(until):
                self._post_daemon(name, Halt("nothing can end it in time if this master dies"))

    def hook_environment(self) -> Environment:
        """Return the environment of hooks."""
        return self._surroundings.environment

    # Hooks.

    @property
    def _hooks(self) -> Hooks:
        """What runs the hooks; without one it costs nothing, not even its import."""
        if self._runner is None:
            from lowsuper.kernel.hooks import Hooks

            self._runner = Hooks(
                self._loop,
                self._spawner,
                self._children,
                self,
                fds=(FdSource(0, self._null_fd), FdSource(1, 1), FdSource(2, 2)),
                limits=self._limits,
            )
        return self._runner

    def run_hook(self, hook: Hook) -> None:
        """Run a hook; HookEnded follows."""
        deed = hook.deed
        if isinstance(deed, ChangeDirectory | SetVariable):
            self.hook_ended(self._surroundings.change(deed))
            self._plans.clear()
        else:
            self._reap()  # a hook that looks for what has ended finds no zombie of ours
            self._hooks.run(hook, self._surroundings.environment)

    def kill_hook(self) -> None:
        """SIGKILL the running hook; HookEnded follows whatever it does."""
        self._hooks.kill()

    def hook_ended(self, event: HookEnded) -> None:
        """Take the end of a hook."""
        self._supervisor.post(event)

    def put_over(self, life: Life) -> None:
        """Release a life after this turn."""
        self._over.append(life)

    # The master's own process.

    def load(self) -> MasterSpec | None:
        """Read the files again; None when they are bad, which was said."""
        if self._parent is not None:
            self._parent.follow("reloading", lambda: "reading the files")
        lines: list[str] = []
        self._log.tap = lines
        spec = self._load_whole()
        self._log.tap = None
        if self._answers is not None:
            self._answers.loaded(spec, lines)
        return spec

    def _load_whole(self) -> MasterSpec | None:
        spec = self._load()
        if spec is None:
            return None
        try:
            self._domains.renew(spec)
            self._open_records(spec)
        except LowsuperError as error:
            self.say_line(f"{error}; nothing was changed")
            return None
        return spec

    def use(self, spec: MasterSpec) -> None:
        """Adopt a new configuration: identities, environment, directory, logs, watched files."""
        self._rights = None
        self._adopt(spec)
        if self._chronicles is not None:
            known = {*self._supervisor.states, *(daemon.name for daemon in spec.daemons)}
            for name in self._chronicles.keys() - known:
                del self._chronicles[name]
        if self._dropped or resolve_master(spec) is None:
            self._use_logs(spec)
        try:
            self._fifo.use(spec.master_fifo)
            self._share_namespaces(spec)
        except KernelError as error:
            self.say_line(str(error))
        try:
            self._serve_stats(spec)
        except KernelError as error:
            self.say_line(str(error))
        self._use_legions(spec)

    def _serve_stats(self, spec: MasterSpec) -> None:
        """Serve statistics, if the configuration wants that."""
        if spec.stats is None and spec.metrics is None and self._stats is None:
            return
        from lowsuper.kernel.stats import Stats

        stats = self._stats or Stats(
            self._loop, self, lambda: self._supervisor, self._watcher, self.say_line
        )
        identity = resolve_master(spec)
        owner = (-1, -1) if identity is None else (identity.uid, identity.gid)
        try:
            stats.use(spec, owner)
        except KernelError:
            if self._stats is None:
                stats.close()
            raise
        self._stats = stats

    @property
    def instance_name(self) -> str:
        """The name by which others find this master."""
        return self._supervisor.spec.name if self._claim is None else self._claim.name

    def _share_namespaces(self, spec: MasterSpec) -> None:
        """Let others join the namespaces that we are in, if the configuration wants that."""
        if spec.setns_socket is None and self._share is None:
            return
        from lowsuper.kernel.setns import share

        before, self._share = self._share, None
        self._share = share(before, spec, self._loop, os.getpid, self.say_line)

    def _adopt(self, spec: MasterSpec) -> None:
        self._identities = resolve(spec)
        self._surroundings.adopt(spec)
        self._plans.clear()
        if spec.procname_master or spec.auto_procname:
            set_title(spec)
        watched = [
            (path, self._toucher(daemon.name, path))
            for daemon in spec.daemons
            for path in daemon.touch
        ]
        watched += [(path, self._reloader(path)) for path in spec.touch_reload]
        watched += [(hook.path, self._hooker(hook)) for hook in spec.hooks if hook.path]
        for byte, paths in (("L", spec.touch_logrotate), ("l", spec.touch_logreopen)):
            watched += [(path, self._commander(byte)) for path in paths]
        pidfiles = [
            (os.path.abspath(daemon.pidfile), self._looker(daemon.name))
            for daemon in spec.daemons
            if daemon.pidfile is not None
        ]
        if self._sockets is not None or any(daemon.listen for daemon in spec.daemons):
            self._listen_sockets.use(spec, self._identities)
        if has_smart(spec):
            self._governor.use(spec, self._identities, self._surroundings.environment.path)
        for problem in self._watcher.replace(watched, pidfiles):
            self.say_line(problem)

    def _use_logs(self, spec: MasterSpec) -> None:
        """Let the log process have the logs of a configuration; without any it costs nothing."""
        if self._logger is None:
            if not has_managed(spec):
                return
            from lowsuper.kernel.logger import Logger

            self._logger = Logger(self._loop, self._spawner, self._log, self.say_line)
        self._logger.use(spec, self._identities)

    def _toucher(self, name: str, path: str) -> Callable[[], None]:
        return lambda: self._supervisor.post_daemon(name, Touched(path))

    def _looker(self, name: str) -> Callable[[], None]:
        return lambda: self._supervisor.post_daemon(name, PidfileTouched())

    def _reloader(self, path: str) -> Callable[[], None]:
        return lambda: self._supervisor.post(ReloadTouched(path))

    def _commander(self, byte: str) -> Callable[[], None]:
        return lambda: self._supervisor.post(FifoByte(byte))

    def _hooker(self, hook: Hook) -> Callable[[], None]:
        return lambda: self._supervisor.post(HookTouched(hook))

    def write_pidfiles(self, spec: MasterSpec, dropped: bool) -> None:
        """Write the pidfiles for before or after the drop of privileges."""
        wanted = (spec.pidfile2,) if dropped else (spec.pidfile, spec.safe_pidfile)
        paths = [path for path in wanted if path is not None]
        if not paths:
            return
        from lowsuper.kernel.pidfile import write_pidfile

        for path in paths:
            try:
                write_pidfile(path, os.getpid())
                self._pidfiles.add(os.path.abspath(path))
            except KernelError as error:
                self.say_line(str(error))

    def drop_privileges(self, spec: MasterSpec) -> None:
        """Become the configured user for good."""
        import traceback  # noqa: F401  # the user may not be allowed to read the library

        self._open_door()
        self._tell_chronicles()
        if self._door is not None and self._door.socket is not None:
            import lowsuper.kernel.answers
            import lowsuper.kernel.peer
            import lowsuper.kernel.tail  # noqa: F401  # as before

        identity = resolve_master(spec)
        if identity is None:
            if spec.caps is not None:
                # Root without CAP_DAC_OVERRIDE may not write in the directory above our cgroups.
                self._domains.delegate(os.geteuid(), os.getegid())
                become(None, spec.caps)
            return
        self._domains.delegate(identity.uid, identity.gid)
        if has_smart(spec):
            self._governor.prepare_for(spec, identity)
        if has_managed(spec):
            from lowsuper.kernel import logger

            logger.prepare_for(spec, identity)
        if any(map(is_attended, spec.daemons)):
            self._attendance.prepare()
        become(identity, spec.caps)
        self._dropped = True
        self._open_records(spec)
        self._surroundings.follow(identity)
        self._plans.clear()
        if spec.logto2:
            self._log.open(spec.logto2)
        self._use_logs(spec)

    def reopen_logs(self, rotate: bool) -> None:
        """Open the log file again, and those that the log process writes."""
        if (
            self._logger is not None
            and self._logger.act(rotate=rotate)
            and (self._log.is_poured or self._log.path is None)
        ):
            return
        self._log.reopen(rotate)

    def tail(self, spec: DaemonSpec, lines: int) -> bytes:
        """Return the last lines that a daemon wrote.

        Raises:
            LowsuperError: there are none to be had; the text says why.
        """
        from lowsuper.kernel.tail import tail

        return tail(spec, lines, self._logger, self._uid_of(spec))

    def follow(
        self, spec: DaemonSpec, wake: Callable[[], None], alone: Loop | None = None
    ) -> Follower:
        """Return what tells all that a daemon writes from now on: see `kernel.tail`.

        Args:
            spec: the daemon.
            wake: called when there is more.
            alone: the loop of a process that does nothing else; None: ours.

        Raises:
            LowsuperError: there is nothing to be had; the text says why.
        """
        from lowsuper.kernel.tail import Follower

        uid = self._uid_of(spec)
        loop, watcher = self._loop, self._watcher
        if alone is not None:
            loop, watcher = alone, Watcher(alone)
        return Follower(spec, wake, loop=loop, watcher=watcher, logger=self._logger, uid=uid)

    def _uid_of(self, spec: DaemonSpec) -> int:
        identity = self._identities.get(spec.name)
        return os.geteuid() if identity is None else identity.uid

    def select_fifo(self, slot: int) -> None:
        """Listen to another master FIFO."""
        paths = self._supervisor.spec.master_fifo
        if slot >= len(paths):
            self.say_line(f"master-fifo {slot}: there is no such slot")
            return
        try:
            self._fifo.select(paths[slot])
        except KernelError as error:
            self.say_line(str(error))

    def announce(self) -> None:
        """Tell whoever waits for the start."""
        # What lives until the end need not be looked at by each collection from now on.
        gc.freeze()
        # Who waits may ask, or look at the log, first thing.
        self._open_door()
        self._tell_chronicles()
        self._log.flush()
        self._announce()

    def finish(self, code: int) -> None:
        """End after this turn."""
        self._exit_code = code

    # Signals.

    def _on_signal(self, signal: int) -> None:
        if signal == SIGCHLD:
            self._reap()
        else:
            self._supervisor.post(Signalled(signal))

    def _reap(self) -> None:
        """Reap every child that has ended; among them orphans that were handed to us.

        A child's own callback has seen its end before, if its pidfd came first in this turn.
        """
        while (pid := process.peek_child()) != 0:
            callback = self._children.pop(pid, None)
            if callback is not None:
                callback()
            os.waitpid(pid, os.WNOHANG)


def has_smart(spec: MasterSpec) -> bool:
    """Return whether a configuration has daemons that are governed by a pidfile."""
    return any(daemon.pidfile is not None for daemon in spec.daemons)


def is_attended(spec: DaemonSpec) -> bool:
    """Return whether a daemon has something to tell of itself while it runs."""
    return spec.ready is not None or spec.watchdog is not None or bool(spec.notify_access)


def set_title(spec: MasterSpec) -> None:
    """Set the process title of the master."""
    import prctl

    title = spec.procname_master or "lowsuper master"
    prctl.set_proctitle(f"{spec.procname_prefix}{title}{spec.procname_append}")


def first_reserved_fd() -> int:
    """Return the descriptor from which on no daemon is started any more."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 30 if limit < 0 else limit - min(32, limit // 4)


def come_before_daemons() -> None:
    """Let the scheduler prefer the master to its daemons, which stay as they would be without it.

    A master that waits for the clone of its next daemon behind those that it has just started,
    or for its turn on a machine that they keep busy, is a slow one. What it starts gets the usual
    priority by itself: see SCHED_RESET_ON_FORK in sched(7), Linux 2.6.32. A priority that someone
    has chosen is left alone.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) != 0 or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    try:
        flags = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, flags, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except PermissionError:
        return  # not root: as good as it was before


def raise_file_limit() -> tuple[Limit, ...]:
    """Let the master open as many files as it may; return what gives daemons their old limit."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return ()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return (Limit(RLIMIT_NOFILE, soft, hard),)
