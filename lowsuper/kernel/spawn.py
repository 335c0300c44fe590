"""From a spawn plan to a running process: stage 1 of a spawn, and what comes back from it.

`Spawner.spawn` clones into the static program `lowsuper-helper` (csrc/main.c), which runs the
steps of the plan and execs the daemon. How that went comes over the error pipe of the `Child`,
which hangs up when it is known: give it to the loop, then call `read_outcome`. With the roles
NSINIT and SHIM a small process stays between the master and the daemon; it talks over the child's
channel: `receive`, `send_signal`, `send_signal_all`, `send_kill`, `send_survive`, `send_fence`.

Rule: the master is single-threaded. A thread that forks during a spawn would inherit descriptors.
"""

from __future__ import annotations

import os
from errno import EACCES, EAGAIN, EBUSY, ECONNRESET, EINVAL, ENOSPC, ENOSYS, EPERM, EPIPE
from struct import Struct
from struct import pack as struct_pack

from lowsuper.errors import KernelError
from lowsuper.kernel.native import ffi, lib, pid_of, reap
from lowsuper.kernel.process import open_pidfd
from lowsuper.plan import EXEC, NSINIT, SHIM, SpawnPlan
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.units import Ns

HELPER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "lowsuper-helper")

AUTO, CLONE3, CLONE = lib.LOWSUPER_WAY_AUTO, lib.LOWSUPER_WAY_CLONE3, lib.LOWSUPER_WAY_CLONE
"""How to clone; AUTO finds out. The others are for tests."""

_ROLES = {
    EXEC: lib.LOWSUPER_ROLE_CHILD,
    NSINIT: lib.LOWSUPER_ROLE_NSINIT,
    SHIM: lib.LOWSUPER_ROLE_SHIM,
}
_MAGIC = lib.LOWSUPER_PLAN_MAGIC
_OPTIONAL = (
    ("chdir", lib.LOWSUPER_HAS_CHDIR),
    ("uid", lib.LOWSUPER_HAS_UID),
    ("gid", lib.LOWSUPER_HAS_GID),
    ("groups", lib.LOWSUPER_HAS_GROUPS),
    ("umask", lib.LOWSUPER_HAS_UMASK),
    ("nice", lib.LOWSUPER_HAS_NICE),
    ("oom_score", lib.LOWSUPER_HAS_OOM_SCORE),
    ("caps", lib.LOWSUPER_HAS_CAPS),
    ("root", lib.LOWSUPER_HAS_ROOT),
    ("hostname", lib.LOWSUPER_HAS_HOSTNAME),
    ("log", lib.LOWSUPER_HAS_LOG),
    ("netns", lib.LOWSUPER_HAS_NETNS),
)
"""Fields of a plan that may be None, and the flags that say that they are not."""
_NO_NEW_PRIVS, _OWN_PROC = lib.LOWSUPER_NO_NEW_PRIVS, lib.LOWSUPER_OWN_PROC
_DIES_WITH_MASTER = lib.LOWSUPER_DIES_WITH_MASTER
_STEP_EXECVE = lib.LOWSUPER_STEP_EXECVE
_STARTED, _EXITED = lib.LOWSUPER_STARTED, lib.LOWSUPER_EXITED
_spawn = lib.lowsuper_spawn

_HEADER = Struct("5I2i11I")  # struct lowsuper_plan
_LIMIT = Struct("iiqq")  # struct lowsuper_limit
_ERROR = Struct("3i")  # struct lowsuper_error
SIGKILL = 9


class ExecOk(Record):
    """All steps were done and the program was executed."""


class StepFailed(Record):
    """The helper could not do a step, and has ended with 127."""

    step: str
    errno: int
    arg: int  # the index of what failed, where the plan has several


class DiedBefore(Record):
    """The helper was killed before it came to execute the program."""


class Started(Record):
    """A role has started the daemon's first process."""

    pid: int  # in our /proc
    pidfd: int  # the receiver closes it; -1: no descriptor was left to pass it with


class MainExited(Record):
    """The daemon's first process has ended."""

    status: int  # raw wait status
    left: bool  # others of its domain still live, and the role stays with them


class Closed(Record):
    """The role has ended, nothing more will come."""


_EXEC_OK, _DIED_BEFORE, _CLOSED = ExecOk(), DiedBefore(), Closed()


class Child:
    """What was cloned: the daemon's first process, or the role above it. The owner closes all."""

    __slots__ = ("channel_fd", "error_fd", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, error_fd: int, channel_fd: int) -> None:
        """Take over the descriptors.

        Args:
            pid: in our pid namespace.
            pidfd: of the same.
            error_fd: hangs up when the outcome is known: see `read_outcome`.
            channel_fd: of a role, else -1.
        """
        self.pid, self.pidfd, self.error_fd, self.channel_fd = pid, pidfd, error_fd, channel_fd


def _find_flags(plan: SpawnPlan) -> int:
    flags = _DIES_WITH_MASTER if plan.dies_with_master else 0
    if plan.no_new_privs:
        flags |= _NO_NEW_PRIVS
    if plan.own_proc:
        flags |= _OWN_PROC
    for field, flag in _OPTIONAL:
        if getattr(plan, field) is not None:
            flags |= flag
    return flags


def pack(plan: SpawnPlan) -> bytes:
    """Return the plan as the helper reads it: struct lowsuper_plan and what follows it.

    The bytes may be kept and given to `Spawner.spawn` again for as long as the plan's descriptors
    are open under the same numbers.

    Raises:
        KernelError: EINVAL, a NUL byte is in one of its strings.
    """
    single = (plan.chdir, plan.root, plan.hostname, plan.log, plan.netns)
    strings = [text for text in single if text is not None]
    programs, argv, envp, groups = plan.programs, plan.argv, plan.envp, plan.groups or ()
    strings += programs
    strings += argv
    strings += envp
    numbers: list[int] = []
    for source in plan.fds:
        fd = source.fd
        numbers += (source.target, fd, source.flags, source.mode)
        if fd == -1:
            strings.append(source.path)
    for mount in plan.mounts:
        numbers += (-1, mount.read_only)
        strings += (mount.source, mount.target)
    strings.append(b"")
    text = b"\0".join(strings)
    if text.count(b"\0") != len(strings) - 1:
        raise KernelError("spawn", EINVAL, plan.name, "a NUL byte in its command or environment")
    caps = plan.caps or 0
    header = _HEADER.pack(
        _MAGIC,
        _find_flags(plan),
        plan.uid or 0,
        plan.gid or 0,
        plan.umask or 0,
        plan.nice or 0,
        plan.oom_score or 0,
        caps & 0xFFFFFFFF,
        caps >> 32,
        plan.namespaces,
        len(plan.limits),
        len(plan.fds),
        len(plan.mounts),
        len(groups),
        len(programs),
        len(argv),
        len(envp),
        len(text),
    )
    limits = b"".join(_LIMIT.pack(each.resource, 0, each.soft, each.hard) for each in plan.limits)
    return header + limits + struct_pack(f"{len(numbers)}i{len(groups)}I", *numbers, *groups) + text


_ADVICE = {
    ("execveat", EACCES): f"{HELPER} must be executable, and its file system not mounted noexec",
    ("clone3", EBUSY): "a cgroup with controllers enabled for its children holds no process",
    ("clone3", EPERM): "a pid namespace needs CAP_SYS_ADMIN",
    ("clone", EPERM): "a pid namespace needs CAP_SYS_ADMIN",
    ("clone3", ENOSPC): "too many pid namespaces, see user.max_pid_namespaces",
    ("clone", ENOSPC): "too many pid namespaces, see user.max_pid_namespaces",
    ("clone3", EAGAIN): "too many processes, see pids.max and kernel.threads-max",
    ("clone", EAGAIN): "too many processes, see pids.max and kernel.threads-max",
}


class Spawner:
    """Starts programs. Holds two descriptors: the helper, and the pidfd of this process.

    Make it in the process that is to be the master: a fork of it needs a new one.
    """

    __slots__ = ("_helper_fd", "_master_fd", "_request")

    def __init__(self, *, way: int = AUTO, helper: str = HELPER) -> None:
        """Open the helper, so that it is at hand after a pivot.

        Args:
            way: how to clone; AUTO but for tests.
            helper: the static program's path.

        Raises:
            KernelError: it is not there.
        """
        try:
            self._helper_fd = os.open(helper, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(
                "open", error.errno or 0, helper, "lowsuper is not installed completely"
            ) from None
        try:
            self._master_fd = open_pidfd(os.getpid())
        except KernelError:
            os.close(self._helper_fd)
            raise
        self._request = request = ffi.new("struct lowsuper_spawn *")
        request.helper_fd, request.master_fd = self._helper_fd, self._master_fd
        request.way = way

    def close(self) -> None:
        """Close what `__init__` opened; what was spawned lives on."""
        os.close(self._helper_fd)
        os.close(self._master_fd)

    def identify_helper(self) -> tuple[int, int]:
        """Return device and inode of the helper program, which may be out of reach by its path."""
        status = os.fstat(self._helper_fd)
        return status.st_dev, status.st_ino

    @property
    def way(self) -> int:
        """How it clones: AUTO until the first success."""
        return self._request.way

    def spawn(
        self,
        plan: SpawnPlan,
        *,
        leaf_fd: int = -1,
        self_write: bool = False,
        packed: bytes | None = None,
        fence: Ns = 0,
    ) -> Child:
        """Start what the plan says; return as soon as the helper runs, in about 0.1 ms.

        Args:
            plan: what to start.
            leaf_fd: directory of the cgroup to start it in, or -1; stays the caller's.
            self_write: let the helper enter the cgroup itself, which is slower, where
                `probe_into_cgroup` says that it cannot be born there.
            packed: `pack(plan)`, if it is at hand.
            fence: CLOCK_BOOTTIME from which on the program is not executed any more, and a role
                kills everything in its domain, as with `send_fence`; 0: never.

        Returns:
            A child whose descriptors the caller closes.

        Raises:
            KernelError: nothing was started. EBADF from fcntl: a descriptor of the plan is closed.
        """
        if packed is None:
            packed = pack(plan)
        return self.start_role(
            _ROLES[plan.role],
            packed,
            plan.name,
            leaf_fd=leaf_fd,
            self_write=self_write,
            new_pid_ns=plan.new_pid_ns,
            fence=fence,
        )

    def start_role(
        self,
        role: int,
        packed: bytes,
        name: str,
        *,
        leaf_fd: int = -1,
        self_write: bool = False,
        new_pid_ns: bool = False,
        fence: Ns = 0,
    ) -> Child:
        """Start the helper in a role, one of LOWSUPER_ROLE_*, with a packed plan: see `spawn`."""
        request = self._request
        request.role = role
        request.leaf_fd = leaf_fd
        request.self_write = self_write
        request.new_pid_ns = new_pid_ns
        request.fence_ns = fence
        result = _spawn(request, packed, len(packed), os.fsencode(name))
        if result:
            call = ffi.string(request.call).decode()
            raise KernelError(call, -result, name, _ADVICE.get((call, -result), ""))
        return Child(request.pid, request.pidfd, request.error_fd, request.channel_fd)

    def probe_into_cgroup(self, leaf_fd: int) -> bool:
        """Return whether a child can be born in a cgroup: else `self_write` is needed.

        Since Linux 6.14 (and stable kernels that took the change) the child is killed at birth
        when our own cgroup was ever killed by cgroup.kill and the other was not; seccomp filters
        refuse clone3 altogether. Waits for the short life of one process.

        Args:
            leaf_fd: directory of an empty leaf that was never killed; stays the caller's.

        Raises:
            KernelError: the leaf is of no use, whoever enters it (EBUSY, EACCES, ...).
        """
        request, way = self._request, self._request.way
        if way == CLONE:
            return False
        request.way = CLONE3
        try:
            child = self.start_role(lib.LOWSUPER_ROLE_PROBE, _EMPTY_PLAN, "probe", leaf_fd=leaf_fd)
        except KernelError as error:
            if error.errno in (ENOSYS, EPERM):
                return False
            raise
        finally:
            request.way = way
        os.close(child.error_fd)
        try:
            wait_readable(child.pidfd, -1)
            return reap(child.pidfd) == 0
        finally:
            os.close(child.pidfd)


_EMPTY_PLAN = pack(SpawnPlan(name="", role=EXEC, programs=(), argv=(), envp=(), fds=()))
_MESSAGE_SIZE = ffi.sizeof("struct lowsuper_message")
_message = ffi.new("struct lowsuper_message *")
_passed_fd = ffi.new("int32_t *")


def read_outcome(error_fd: int) -> ExecOk | StepFailed | DiedBefore:
    """Return how the steps went. Call it when `error_fd` has hung up; it stays the caller's.

    The helper writes a record just before it executes the program, so that this one alone says
    "executed", another one after it "not executed", and none at all "killed before".
    """
    try:
        records = os.read(error_fd, 4 * _ERROR.size)
    except BlockingIOError:
        raise AssertionError("read_outcome before the pipe has hung up") from None
    if not records:
        return _DIED_BEFORE
    step, errno, arg = _ERROR.unpack_from(records, len(records) - _ERROR.size)
    if not errno and step == _STEP_EXECVE:
        return _EXEC_OK
    return StepFailed(ffi.string(lib.lowsuper_step_name(step)).decode(), errno, arg)


def receive(channel_fd: int) -> Started | MainExited | Closed | None:
    """Return what a role says; None: nothing now. A descriptor in it is the caller's."""
    size = lib.lowsuper_receive(channel_fd, _message, _MESSAGE_SIZE, _passed_fd)
    if size == -EAGAIN:
        return None
    if size in (0, -ECONNRESET):
        return _CLOSED
    if size != _MESSAGE_SIZE:
        raise KernelError("recvmsg", -size if size < 0 else EINVAL, "channel")
    if _message.op == _STARTED:
        pidfd = _passed_fd[0]
        return Started(pid_of(pidfd) if pidfd >= 0 else 0, pidfd)
    if _message.op == _EXITED:
        return MainExited(_message.value, bool(_message.left))
    raise AssertionError(f"a role said {_message.op}")


def send_signal(channel_fd: int, signal: int) -> bool:
    """Let the role signal the daemon and its process group; False: the role is gone."""
    return _command(channel_fd, lib.LOWSUPER_SIGNAL, signal)


def send_signal_all(channel_fd: int, signal: int) -> bool:
    """Let the role signal everything in the daemon's domain; False: the role is gone."""
    return _command(channel_fd, lib.LOWSUPER_SIGNAL_ALL, signal)


def send_kill(channel_fd: int) -> bool:
    """Let the role SIGKILL everything in the domain until nothing is left; False: it is gone."""
    return _command(channel_fd, lib.LOWSUPER_KILL, SIGKILL)


def send_survive(channel_fd: int) -> bool:
    """Let the role outlive the master, with all that it keeps; False: the role is gone.

    Whatever the plan said: until this is sent it dies with the master, so that one that is killed
    before it could make a note of its daemon leaves nothing. When the channel is closed, the role
    lives on until its domain is empty, and obeys signals that are sent to it: the shim, and the
    namespace's init once the daemon's first process is gone, take SIGTERM for `send_signal_all`
    and SIGQUIT for `send_kill`. SIGKILL is for the namespace's init only: it ends the namespace,
    while a shim that is killed takes nothing but the daemon's first process with it.
    """
    return _command(channel_fd, lib.LOWSUPER_SURVIVE, 0)


def send_fence(channel_fd: int, until: Ns) -> bool:
    """Let the role SIGKILL everything in the domain at `until`, CLOCK_BOOTTIME; 0: not any more.

    That holds when the master is stopped or dead, too, if the role survives it.

    Returns:
        False if the role is gone, or does not read what it is told.
    """
    try:
        return _command(channel_fd, lib.LOWSUPER_FENCE, 0, until)
    except KernelError as error:
        if error.errno != EAGAIN:
            raise
        return False


def _command(channel_fd: int, op: int, value: int, until: Ns = 0) -> bool:
    _message.op, _message.value, _message.until_ns = op, value, until
    result = lib.lowsuper_send(channel_fd, _message, _MESSAGE_SIZE, -1)
    # Race: the role ended, and what it had to look after with it, before this was sent.
    if result in (-EPIPE, -ECONNRESET):
        return False
    if result:
        raise KernelError("sendmsg", -result, "channel")
    return True


def wait_readable(fd: int, timeout_ms: int) -> bool:
    """Wait until `fd` is readable or has hung up; -1: without a limit."""
    import select  # the loop has imported it already

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))
