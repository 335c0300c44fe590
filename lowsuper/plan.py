"""From a specification and the facts of this machine to a spawn plan with nothing left to look up.

The plan holds exactly what the helper (`csrc/child.c`) will do, in bytes and numbers; no file is
opened and nothing is started here.
"""

from __future__ import annotations

from lowsuper.record import Record
from lowsuper.units import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lowsuper.model import Command, DaemonSpec, EnvChange

EXEC, NSINIT, SHIM = "exec", "nsinit", "shim"

LOG_FD = -2
"""In place of a descriptor: `SpawnPlan.log`, opened by the helper for appending."""


class FdSource(Record):
    """One descriptor of the daemon: `target` becomes a copy of `fd`, or of `path` opened.

    `fd` is a descriptor of the master, which stays the master's, or LOG_FD; with `path` the helper
    opens the file itself, after the chdir and uid steps have not happened yet, that is as root.
    """

    target: int
    fd: int = -1
    path: bytes = b""
    flags: int = 0  # of open(2), for `path`
    mode: int = 0


class Limit(Record):
    """One resource limit: see setrlimit(2). -1 stands for RLIM_INFINITY."""

    resource: int
    soft: int
    hard: int
    name: str = ""  # of the resource, for messages


class Mount(Record):
    """A directory or file of the host that is seen in another place, with what is mounted below."""

    source: bytes
    target: bytes
    read_only: bool = False


class SpawnPlan(Record):
    """All that one start of a program needs.

    `programs` are tried in order until one can be executed, as execvp(3) does with PATH: the
    search is made in the helper so that a dead file system in PATH cannot stop the master.
    """

    name: str  # of the daemon, for messages
    role: str  # EXEC, or what stays between the master and the program: NSINIT, SHIM
    programs: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    envp: tuple[bytes, ...]
    fds: tuple[FdSource, ...]  # targets not named are closed
    new_pid_ns: bool = False
    chdir: bytes | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None  # None: keep the master's
    umask: int | None = None
    limits: tuple[Limit, ...] = ()
    nice: int | None = None
    oom_score: int | None = None  # oom_score_adj
    no_new_privs: bool = False
    namespaces: int = 0  # CLONE_NEW... of those that it gets besides the pid namespace
    hostname: bytes | None = None
    netns: bytes | None = None  # path of a network namespace to enter
    log: bytes | None = None  # absolute path of what LOG_FD stands for
    root: bytes | None = None
    own_proc: bool = False  # with a /proc of its pid namespace
    mounts: tuple[Mount, ...] = ()
    caps: int | None = None  # bit n: keep capability n; None: as the uid has it
    dies_with_master: bool = True  # parent-death signal, and the roles' watch on the master


class Identity(Record):
    """Whom a daemon runs as, looked up: see `kernel.facts`."""

    uid: int
    gid: int
    groups: tuple[int, ...]  # supplementary
    name: str = ""  # "" when only a number was given: the environment does not follow then
    home: str = ""


NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "net": 0x40000000,
}
"""CLONE_NEW... by the names of the configuration: see namespaces(7)."""

LOG_REASONS = (
    "",
    " (a link, where others than root can change the names)",
    " (neither a file, nor a FIFO or device in a place where only root can change the names)",
    " (of another user, where others than root can change the names)",
    " (a file with another name, where others than root can change the names)",
    " (nobody reads it)",
)
"""By enum lowsuper_log_reason."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_NOTHING = (None,) * 7

OWN_VARIABLES = frozenset(
    (
        "NOTIFY_SOCKET",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "CREDENTIALS_DIRECTORY",
        "MAINPID",
    )
)
OWN_PREFIX = "LOWSUPER_"


class Environment:
    """The variables of daemons, and, made once for all who share them, their bytes."""

    __slots__ = ("packed", "path", "variables")

    def __init__(self, variables: dict[str, str]) -> None:
        """Take the variables over; they must not change any more."""
        self.variables = variables
        self.packed = tuple(encode(f"{name}={value}") for name, value in variables.items())
        path = variables.get("PATH", DEFAULT_PATH)
        self.path = tuple(place or "." for place in path.split(":"))


def identity_variables(identity: Identity) -> dict[str, str]:
    """Return the variables that follow the user that a process becomes."""
    return {"HOME": identity.home, "USER": identity.name, "LOGNAME": identity.name}


def build_environment(inherited: Mapping[str, str], changes: Sequence[EnvChange]) -> Environment:
    """Return the environment of every daemon and hook.

    Args:
        inherited: the master's own; what is meant for the master alone is left out.
        changes: of the configuration, in file order.
    """
    env = {
        name: value
        for name, value in inherited.items()
        if name not in OWN_VARIABLES and not name.startswith(OWN_PREFIX)
    }
    _change(env, changes)
    return Environment(env)


def change_environment(env: Environment, changes: Iterable[EnvChange]) -> Environment:
    """Return an environment with some variables changed."""
    changes = tuple(changes)
    if not changes:
        return env
    variables = dict(env.variables)
    _change(variables, changes)
    return Environment(variables)


def _change(variables: dict[str, str], changes: Iterable[EnvChange]) -> None:
    for change in changes:
        if change.value is None:
            variables.pop(change.name, None)
        else:
            variables[change.name] = change.value


def build_plan(
    name: str,
    command: Command,
    env: Environment,
    *,
    role: str = EXEC,
    new_pid_ns: bool = False,
    identity: Identity | None = None,
    chdir: str | None = None,
    fds: tuple[FdSource, ...] = (),
    limits: tuple[Limit, ...] = (),
    log: str | None = None,
    own: Sequence[EnvChange] = (),
) -> SpawnPlan:
    """Return the plan that runs `command`.

    Args:
        name: of the daemon or hook, for messages.
        command: what to run; a program without a slash is looked for in PATH, at each start.
        env: its environment; HOME, USER and LOGNAME follow the identity.
        role: EXEC, NSINIT or SHIM.
        new_pid_ns: whether it gets a pid namespace of its own.
        identity: whom to become, or None to stay what the master is.
        chdir: where to run it, or None for the master's directory.
        fds: its descriptors; all others are closed.
        limits: resource limits to set.
        log: absolute path of what LOG_FD among `fds` stands for.
        own: changes of the environment that come after all others.
    """
    if identity is not None and identity.name:
        env = Environment(env.variables | identity_variables(identity))
    env = change_environment(env, own)
    program = command.argv[0]
    programs = (program,) if "/" in program else tuple(f"{place}/{program}" for place in env.path)
    return SpawnPlan(
        name=name,
        role=role,
        programs=tuple(map(encode, programs)),
        argv=tuple(map(encode, command.argv)),
        envp=env.packed,
        fds=fds,
        new_pid_ns=new_pid_ns,
        chdir=None if chdir is None else encode(chdir),
        uid=None if identity is None else identity.uid,
        gid=None if identity is None else identity.gid,
        groups=None if identity is None else identity.groups,
        limits=limits,
        log=None if log is None else encode(log),
    )


def isolate(plan: SpawnPlan, spec: DaemonSpec) -> SpawnPlan:
    """Return the plan of a daemon with what its keys limit and take away.

    What would change something of the host's brings the namespace that keeps it from that.
    """
    if (
        not (spec.namespaces or spec.mounts or spec.no_new_privs)
        and (
            spec.hostname,
            spec.netns,
            spec.root,
            spec.umask,
            spec.nice,
            spec.oom_score,
            spec.caps,
        )
        == _NOTHING
    ):
        return plan  # as most are, and there may be thousands
    namespaces = {name for name in spec.namespaces if name in NAMESPACES}
    if spec.root is not None or spec.mounts:
        namespaces.add("mount")
    if spec.hostname is not None:
        namespaces.add("uts")
    return plan.replace(
        namespaces=sum(NAMESPACES[name] for name in namespaces),
        hostname=None if spec.hostname is None else encode(spec.hostname),
        netns=None if spec.netns is None else encode(spec.netns),
        root=None if spec.root is None else encode(spec.root),
        own_proc=spec.ns_pid and "mount" in namespaces,
        mounts=tuple(
            Mount(encode(keep.source), encode(keep.target), keep.read_only) for keep in spec.mounts
        ),
        umask=spec.umask,
        nice=spec.nice,
        oom_score=spec.oom_score,
        no_new_privs=spec.no_new_privs,
        caps=None if spec.caps is None else sum(1 << cap for cap in set(spec.caps)),
    )


FIRST_LISTEN_FD = 3


def add_sockets(plan: SpawnPlan, fds: Sequence[int], names: Sequence[str]) -> SpawnPlan:
    """Return a plan with listening sockets as sd_listen_fds_with_names(3) finds them.

    Args:
        plan: of a daemon.
        fds: the sockets.
        names: of each.
    """
    if not fds:
        return plan
    found = (
        b"LISTEN_FDS=%d" % len(fds),
        b"LISTEN_FDNAMES=" + encode(":".join(names)),
        b"LISTEN_PID=0000000000",  # the helper fills it in: csrc/child.c
    )
    rest = tuple(text for text in plan.envp if text.partition(b"=")[0] not in _LISTEN_VARIABLES)
    sources = tuple(FdSource(FIRST_LISTEN_FD + i, fd) for i, fd in enumerate(fds))
    return plan.replace(envp=(*rest, *found), fds=(*plan.fds, *sources))


_LISTEN_VARIABLES = (b"LISTEN_FDS", b"LISTEN_FDNAMES", b"LISTEN_PID")


def encode(text: str) -> bytes:
    """Return the bytes of a text from the configuration or the environment, unchanged."""
    return text.encode("utf-8", "surrogateescape")


def describe_step(plan: SpawnPlan, step: str, arg: int) -> str:  # noqa: PLR0911  # a table
    """Return what a failed step was about, for the message: a path, a number, or "".

    Args:
        plan: the plan that failed.
        step: the step's name, as the helper has it.
        arg: the index that came with the error.
    """
    match step:
        case "chdir":
            return (plan.chdir or b"").decode("utf-8", "surrogateescape")
        case "execve":
            program = plan.argv[0] if len(plan.programs) > 1 else plan.programs[0]
            return program.decode("utf-8", "surrogateescape")
        case "log":
            return _decode(plan.log) + LOG_REASONS[arg]
        case "setresuid":
            return str(plan.uid)
        case "setresgid":
            return str(plan.gid)
        case "setgroups":
            return ",".join(map(str, plan.groups or ()))
        case "fds" if 0 <= arg < len(plan.fds):
            source = plan.fds[arg]
            path = source.path.decode("utf-8", "surrogateescape")
            return f"{path or source.fd} as descriptor {source.target}"
        case "rlimits" if 0 <= arg < len(plan.limits):
            return _describe_limit(plan.limits[arg])
        case _:
            return _describe_isolation(plan, step, arg)


def _decode(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "surrogateescape")


def _describe_isolation(  # noqa: C901, PLR0911  # a table
    plan: SpawnPlan, step: str, arg: int
) -> str:
    match step:
        case "namespaces":
            return next((name for name, flag in NAMESPACES.items() if flag == arg), "")
        case "hostname":
            return _decode(plan.hostname)
        case "netns":
            return _decode(plan.netns) + (" (setns: is it a network namespace?)" if arg else "")
        case "root":
            return _decode(plan.root) + (" (pivot_root)" if arg else "")
        case "proc":
            return "/proc"
        case "mounts" if 0 <= arg < len(plan.mounts):
            return f"{_decode(plan.mounts[arg].source)} on {_decode(plan.mounts[arg].target)}"
        case "caps" if 0 <= arg < len(CAPABILITIES):
            return CAPABILITIES[arg]
        case "caps" if arg >= 0:
            return f"capability {arg}"
        case "nice":
            return str(plan.nice)
        case "oom_score":
            return str(plan.oom_score)
        case _:
            return ""


def _describe_limit(limit: Limit) -> str:
    soft, hard = ("unlimited" if value < 0 else value for value in (limit.soft, limit.hard))
    return f"{limit.name or f'resource {limit.resource}'} to {soft}:{hard}"
