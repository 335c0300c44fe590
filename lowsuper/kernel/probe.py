"""What this kernel, in this place, lets us do: each thing is tried, none is guessed from a version.

A trial happens in a child of its own and in namespaces of its own, so that nothing of it stays,
and it ends at a deadline. A row says what was seen, what lowsuper then does, and the way out.

Rule: what has a fallback is `degraded`, what has none is `missing`. Where a fallback would cost
security there is none.
"""

from __future__ import annotations

import os
from errno import (
    EACCES,
    EBUSY,
    EMFILE,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    ETIMEDOUT,
)

from lowsuper.errors import KernelError, UnsupportedError
from lowsuper.kernel import cgroup, mount, native, process
from lowsuper.kernel.enter import KINDS
from lowsuper.kernel.spawn import AUTO, CLONE3, HELPER, Spawner, pack, wait_readable
from lowsuper.plan import EXEC, SpawnPlan
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK, DEGRADED, MISSING = "ok", "degraded", "missing"
PATIENCE_MS = 5000
SIGKILL = 9
WORKS = "works"

_RESOLVE = (("NO_XDEV", 1), ("NO_MAGICLINKS", 2), ("NO_SYMLINKS", 4), ("BENEATH", 8))
_RESOLVE_IN_ROOT = 0x10
_CLOSE_RANGE_CLOEXEC = 4
_CONTAINER = (
    "a container needs CAP_SYS_ADMIN and a seccomp filter that lets it pass (docker: --cap-add "
    "SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
)
_FILTER = "in a container a seccomp filter that lets it pass"
_NO_KERNEL = "a kernel that has it"
_AS_ROOT = "run it as root"


class Row(Record):
    """One line of the table."""

    name: str
    state: str  # ok, degraded or missing
    seen: str
    effect: str = ""  # what lowsuper does then
    advice: str = ""  # the way out


class _Answer(Record):
    """How a trial ended."""

    text: str = ""  # what it returned
    errno: int = 0  # 0: well
    call: str = ""  # what failed

    @property
    def reason(self) -> str:
        """Return what failed, in words."""
        return f"{self.call}: {os.strerror(self.errno)}"


def attempt(action: Callable[[], str | None], patience_ms: int = PATIENCE_MS) -> _Answer:
    """Return how an action ends in a child of its own, which is killed at a deadline."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            os.write(write_fd, "\0".join(_answer(action)).encode("utf-8", "surrogateescape"))
        finally:
            os._exit(0)
    os.close(write_fd)
    try:
        if not wait_readable(read_fd, patience_ms):
            os.kill(pid, SIGKILL)
            return _Answer(errno=ETIMEDOUT, call="wait")
        text = os.read(read_fd, 4096).decode("utf-8", "surrogateescape")
    finally:
        os.close(read_fd)
        os.waitpid(pid, 0)
    if not text:
        return _Answer(errno=EPERM, call="a filter that kills")
    found, errno, call = text.split("\0")
    return _Answer(found, int(errno), call)


def _answer(action: Callable[[], str | None]) -> tuple[str, str, str]:
    try:
        return action() or "", "0", ""
    except KernelError as error:
        return "", str(error.errno), f"{error.call} {error.subject}".strip()
    except OSError as error:
        return "", str(error.errno), str(error.filename or "a call")


def _judge(
    name: str,
    answer: _Answer,
    *,
    state: str,
    effect: str,
    advice: str,
    seen: str = WORKS,
) -> Row:
    """Return the row of a trial; `state`, `effect` and `advice` are for one that failed."""
    if not answer.errno:
        return Row(name, OK, answer.text or seen)
    return Row(name, state, answer.reason, effect, advice)


def _advise(errno: int, missing: str = _NO_KERNEL) -> str:
    """Return the way out of an errno."""
    if errno in (EPERM, EACCES):
        return _CONTAINER if os.geteuid() == 0 else _AS_ROOT
    if errno == ENOSYS:
        return f"{missing}; {_FILTER}"
    if errno == ENOSPC:
        return "raise the limits /proc/sys/user/max_*_namespaces; 0 forbids them"
    return missing


# System calls.


def probe_calls() -> Iterator[Row]:
    """Yield the rows of the calls that everything rests on."""
    nothing = "nothing works: lowsuper does not start"
    for name, action, version in (
        ("pidfd_open", _try_pidfd, "5.3"),
        ("close_range", _try_close_range, "5.11"),
        ("signalfd, timerfd", _try_event_fds, "2.6.27"),
        ("subreaper", _try_subreaper, "3.4"),
    ):
        answer = attempt(action)
        advice = _advise(answer.errno, f"Linux {version} or later")
        yield _judge(name, answer, state=MISSING, effect=nothing, advice=advice)
    yield _probe_openat2()
    yield _judge(
        "pidfd_send_signal to groups",
        attempt(_try_group_signal),
        state=DEGRADED,
        effect="a process group is signalled by its number, and that of an adopted daemon not",
        advice="Linux 6.9 or later",
    )
    yield _judge(
        "PIDFD_GET_INFO",
        attempt(_try_exit_info),
        state=DEGRADED,
        effect="how an adopted daemon has ended stays unknown",
        advice="Linux 6.15 or later",
    )


def _try_pidfd() -> None:
    pidfd = process.open_pidfd(os.getpid())
    native.pidfd_send_signal(pidfd, 0)


def _try_close_range() -> None:
    native.close_range(1000, 1000, _CLOSE_RANGE_CLOEXEC)


def _try_event_fds() -> None:
    native.signalfd_create((SIGKILL + 1,))
    native.timerfd_create()


def _try_subreaper() -> None:
    native.set_child_subreaper()


def _try_group_signal() -> None:
    os.setpgid(0, 0)
    native.pidfd_send_signal(process.open_pidfd(os.getpid()), 0, group=True)


def _try_exit_info() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    pidfd = process.open_pidfd(pid)
    os.waitpid(pid, 0)
    info = process.exit_info(pidfd)
    if info is None or info.status != 7 << 8:
        raise KernelError("ioctl", EOPNOTSUPP, "PIDFD_GET_INFO of a process that was reaped")


def _probe_openat2() -> Row:
    name = "openat2"
    answer = attempt(lambda: _try_openat2(0))
    if answer.errno:
        effect = "pidfiles are read in more steps; a jail's users and mount points are not found"
        advice = _advise(answer.errno, "Linux 5.6 or later")
        return Row(name, DEGRADED, answer.reason, effect, advice)
    flags = (*_RESOLVE, ("IN_ROOT", _RESOLVE_IN_ROOT))
    refused = [flag for flag, bit in flags if attempt(lambda bit=bit: _try_openat2(bit)).errno]  # type: ignore[misc]
    if refused:
        seen = f"refuses RESOLVE_{', RESOLVE_'.join(refused)}"
        effect = "what depends on it fails and says so"
        return Row(name, DEGRADED, seen, effect, _NO_KERNEL)
    return Row(name, OK, f"works, with RESOLVE_ {', '.join(flag for flag, _ in flags)}")


def _try_openat2(resolve: int) -> None:
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    # "." is on the same file system, below, and no link, whatever is asked.
    native.openat2(root_fd, ".", flags, resolve=resolve)


def probe_inotify() -> Row:
    """Return the row of inotify and its limits. See inotify(7)."""
    name = "inotify"
    answer = attempt(_try_inotify)
    if answer.errno:
        effect = "touch, touch-reload and pidfiles are not noticed; a master that needs them fails"
        advice = "raise fs.inotify.max_user_instances" if answer.errno == EMFILE else _NO_KERNEL
        return Row(name, MISSING, answer.reason, effect, advice)
    place = "/proc/sys/fs/inotify"
    instances, watches = (
        read_number(f"{place}/max_user_{each}") for each in ("instances", "watches")
    )
    seen = f"works; at most {instances} instances and {watches} watches for each user"
    if 0 <= instances < 16 or 0 <= watches < 1024:
        effect = "many masters or many watched files may meet the limit, and say so"
        advice = "sysctl fs.inotify.max_user_instances=128 fs.inotify.max_user_watches=8192"
        return Row(name, DEGRADED, seen, effect, advice)
    return Row(name, OK, seen)


def _try_inotify() -> None:
    native.inotify_add(native.inotify_create(), "/", 0x200)


def read_number(path: str) -> int:
    """Return the number in a file of /proc or a cgroup; -1: "max"; -2: it cannot be told."""
    try:
        with open(path, "rb") as file:
            text = file.read().strip()
        return -1 if text == b"max" else int(text)
    except (OSError, ValueError):
        return -2


# Starting programs.


def probe_spawn() -> Iterator[Row]:
    """Yield the rows of what starts daemons."""
    name, nothing = "helper program", "nothing can be started: lowsuper does not start"
    try:
        spawner = Spawner()
    except OSError as error:
        advice = "see pidfd_open" if error.errno == ENOSYS else "pip install lowsuper again"
        yield Row(name, MISSING, str(error), nothing, advice)
        return
    spawner.close()
    answer = attempt(lambda: _try_spawn(AUTO))
    advice = "install lowsuper on a file system that is not mounted noexec"
    if answer.errno and "clone" in answer.call:
        advice = _advise(answer.errno)
    seen = f"{HELPER} is executed by execveat"
    yield _judge(name, answer, state=MISSING, effect=nothing, advice=advice, seen=seen)
    if answer.errno:
        return
    answer = attempt(lambda: _try_spawn(CLONE3))
    yield _judge(
        "clone3",
        answer,
        state=DEGRADED,
        effect="clone is used; a daemon enters its cgroup itself, 7 to 15 ms later",
        advice=f"Linux 5.7 or later, on x86_64 or aarch64; {_FILTER}",
    )


def _try_spawn(way: int) -> None:
    spawner = Spawner(way=way)
    plan = pack(SpawnPlan(name="", role=EXEC, programs=(), argv=(), envp=(), fds=()))
    child = spawner.start_role(native.lib.LOWSUPER_ROLE_PROBE, plan, "probe")
    wait_readable(child.pidfd, -1)
    if process.reap(child.pidfd) != 0:
        raise KernelError("execveat", EACCES, HELPER)


# Kill domains.


def probe_domains(rows: list[Row]) -> Iterator[Row]:
    """Yield the rows of cgroups, and of the rung that daemons get.

    Args:
        rows: those of namespaces.
    """
    found = _Cgroups()
    yield found.probe()
    yield found.probe_birth()
    yield found.probe_controllers()
    pids = next(row for row in rows if row.name == "namespace pid")
    if found.is_usable:
        seen, why = "cgroup", f"{found.path} can be used"
        state, effect = OK, ""
    else:
        seen, why = "shim", f"there is no cgroup to use: {found.problem}"
        state = DEGRADED
        effect = "each daemon gets a small process above it that kills what it leaves behind"
    ns_pid = "can be had" if pids.state == OK else "cannot be had"
    advice = "" if found.is_usable else "see the row cgroup v2"
    if not found.is_usable and pids.state == OK:
        advice += "; or ns_pid = true for each daemon"
    yield Row("kill domain", state, f"{seen}: {why}; ns_pid = true {ns_pid}", effect, advice)


class _Cgroups:
    """Tries what our own cgroup is good for."""

    def __init__(self) -> None:
        self.path, self.problem = "", ""
        self.is_usable = False
        self._born: bool | None = None  # whether a child can be born in a leaf
        self._controllers: list[str] = []
        self._advice = ""
        self._try()

    def _try(self) -> None:
        try:
            self.path = cgroup.own_directory()
        except UnsupportedError as error:
            self.problem = str(error)
            self._advice = (
                "mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none "
                "/sys/fs/cgroup/unified; for controllers boot with systemd.unified_cgroup_hierarchy"
            )
            return
        except OSError as error:
            self.problem, self._advice = f"/proc: {error.strerror}", "mount /proc"
            return
        self._controllers = _read_words(f"{self.path}/cgroup.controllers")
        answer = attempt(lambda: _try_leaf(self.path), 2 * PATIENCE_MS)
        if answer.errno:
            self.problem = f"{self.path}: {answer.reason}"
            self._advice = _CGROUP_ADVICE.get(answer.errno, _NO_KERNEL)
            return
        self.is_usable, self._born = True, answer.text == "born"

    def probe(self) -> Row:
        name = "cgroup v2"
        if not self.is_usable:
            effect = "no cgroup for daemons: see the row kill domain"
            return Row(name, DEGRADED, self.problem, effect, self._advice)
        kind = "hybrid with v1" if "cgroup " in _read_mounts() else "unified"
        return Row(name, OK, f"{self.path} ({kind}) can be written, with cgroup.kill")

    def probe_birth(self) -> Row:
        name = "birth in a cgroup"
        if not self.is_usable:
            return Row(name, DEGRADED, "no cgroup", "see the row cgroup v2")
        if self._born:
            return Row(name, OK, WORKS)
        effect = "a daemon enters its cgroup itself, 7 to 15 ms later"
        seen = "clone3 is refused, or kills the child: our cgroup was once killed"
        return Row(name, DEGRADED, seen, effect, "see clone3; start lowsuper in a fresh cgroup")

    def probe_controllers(self) -> Row:
        name = "cgroup controllers"
        wanted = [each for each in ("cpu", "memory", "pids", "io") if each in self._controllers]
        if "memory" in wanted and "cpu" in wanted:
            return Row(name, OK, f"{', '.join(wanted)} in {self.path}")
        have = f"only {', '.join(wanted)}" if wanted else "none"
        seen = f"{have} in {self.path or 'any v2 hierarchy'}"
        effect = "limits by cgroup cannot be set, and a daemon that has some does not start"
        advice = (
            "boot with the v2 hierarchy alone (systemd.unified_cgroup_hierarchy=1, or "
            "cgroup_no_v1=all); under systemd: Delegate=yes; rlimit_* works everywhere"
        )
        return Row(name, DEGRADED, seen, effect, advice)


_CGROUP_ADVICE = {
    EROFS: "mount the cgroup file system writable (docker: --cgroupns private and a rw mount)",
    EACCES: "run as root, or let systemd delegate it: Delegate=yes in the unit",
    EPERM: "run as root, or let systemd delegate it: Delegate=yes in the unit",
    EBUSY: "start it in a cgroup without controllers for its children",
    ENOENT: "cgroup.kill needs Linux 5.14 or later",
    ENOSPC: "raise cgroup.max.descendants above it",
}


def _try_leaf(path: str) -> str:
    """Make a cgroup in ours, kill what is in it, which is nobody, and remove it."""
    directory = f"{path}/lowsuper-doctor-{os.getpid()}"
    try:
        os.mkdir(directory)
    except OSError as error:
        raise KernelError("mkdir", error.errno or 0, directory) from None
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # First, as a birth is refused after a kill.
        is_born = Spawner().probe_into_cgroup(directory_fd)
        fd = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        os.write(fd, b"1")
    finally:
        os.rmdir(directory)
    return "born" if is_born else "enters"


def _read_words(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            return file.read().decode().split()
    except OSError:
        return []


def _read_mounts() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return "\n".join(line.partition(" - ")[2] for line in file)


# Namespaces and mounts.


def probe_namespaces() -> Iterator[Row]:
    """Yield a row for each kind of namespace."""
    effects = {
        "pid": "no jails; daemons with ns_pid, and others with namespaces = pid, do not start",
        "mnt": "no jails; daemons with root, mounts or namespaces = mount do not start",
        "user": "nothing: lowsuper does not use them",
        "time": "nothing: lowsuper does not use them",
    }
    for name, flag in KINDS:
        if name == "time":
            continue
        answer = attempt(lambda flag=flag: mount.unshare(flag))  # type: ignore[misc]
        effect = effects.get(name, f"what asks for a namespace of this kind ({name}) fails")
        advice = _advise(answer.errno, f"a kernel with CONFIG_{name.upper()}_NS")
        seen = WORKS
        if answer.errno and os.geteuid() and os.path.exists(f"/proc/self/ns/{name}"):
            answer = answer.replace(
                call=f"the kernel has it, for root; unshare as uid {os.getuid()}"
            )
        state = DEGRADED if name == "user" else MISSING
        yield _judge(
            f"namespace {'mount' if name == 'mnt' else name}",
            answer,
            state=state,
            effect=effect,
            advice=advice,
            seen=seen,
        )


def probe_mounts(rows: list[Row]) -> Iterator[Row]:
    """Yield the rows of what jails are made with, each tried in a mount namespace of its own.

    Args:
        rows: those of namespaces.
    """
    base = next(row for row in rows if row.name == "namespace mount")
    no_jails = "no jails, and no daemon with root or mounts; what asks for them fails and says why"
    for name, action, effect, missing in (
        ("private mounts", _be_private, no_jails, "a kernel with mount namespaces"),
        ("open_tree, move_mount", _try_trees, no_jails, "Linux 5.2 or later"),
        (
            "mount_setattr",
            _try_setattr,
            "read-only mounts of jails and daemons fail, and say so",
            "Linux 5.12 or later",
        ),
        ("fsopen", _try_filesystem, no_jails, "Linux 5.2 or later"),
        ("overlay", _try_overlay, "namespace-overlay fails", "a kernel with CONFIG_OVERLAY_FS"),
        (
            "pivot_root",
            _try_pivot,
            no_jails,
            "boot with a root file system other than the initramfs (switch_root)",
        ),
        ("proc of a jail", _try_proc, no_jails, "a container shows a whole /proc, unmasked"),
    ):
        if base.state != OK:
            yield Row(name, MISSING, "not tried", effect, f"see {base.name}")
            continue
        answer = attempt(action)
        state = DEGRADED if name == "mount_setattr" else MISSING
        advice = _advise(answer.errno, missing)
        yield _judge(name, answer, state=state, effect=effect, advice=advice)


def _be_private() -> None:
    mount.unshare(mount.NEWNS)
    mount.make_private("/")


def _try_trees() -> None:
    _be_private()
    tree_fd = mount.clone_tree("/")
    place_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount.attach(tree_fd, place_fd, "/")


def _try_setattr() -> None:
    _be_private()
    mount.restrict(mount.clone_tree("/"), mount.ATTR_RDONLY, "a tree")


def _try_filesystem() -> None:
    mount.unshare(mount.NEWNS)
    mount.make_filesystem("tmpfs")


def _try_overlay() -> None:
    """Mount two empty directories as one. What a jail has besides is an upper one in a tmpfs."""
    _be_private()
    tree_fd = mount.make_filesystem("tmpfs")
    places = []
    for name in ("one", "two"):
        os.mkdir(name, dir_fd=tree_fd)
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree_fd)
        places.append(f"/proc/self/fd/{fd}")
    mount.make_filesystem("overlay", texts=(("lowerdir", ":".join(places)),))


def _try_pivot() -> None:
    _be_private()
    tree_fd = mount.clone_tree("/")
    place_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount.attach(tree_fd, place_fd, "/")
    os.fchdir(tree_fd)
    mount.pivot_here()


def _try_proc() -> None:
    _be_private()
    mount.unshare(mount.NEWPID)
    answer = attempt(lambda: os.close(mount.make_filesystem("proc")))
    if answer.errno:
        raise KernelError(answer.call, answer.errno)
