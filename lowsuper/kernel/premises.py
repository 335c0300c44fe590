"""What this machine and our place on it are like, as far as reading can tell: rows for `doctor`.

What must be tried is in `kernel.probe`. Nothing here changes anything.
"""

from __future__ import annotations

import os

from lowsuper.kernel.facts import Facts
from lowsuper.kernel.instance import find_directory
from lowsuper.kernel.probe import DEGRADED, MISSING, OK, Row, read_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FEW_FILES = 1024
FEW_PROCESSES = 256
PATIENCE = 5.0

CAPABILITIES = {
    "chown": 0,
    "dac_override": 1,
    "fowner": 3,
    "kill": 5,
    "setgid": 6,
    "setuid": 7,
    "setpcap": 8,
    "net_admin": 12,
    "sys_chroot": 18,
    "sys_ptrace": 19,
    "sys_admin": 21,
    "sys_nice": 23,
    "sys_resource": 24,
}
"""What a master uses, and the numbers of capability.h."""
_USES = {
    "chown": "chown in hooks",
    "dac_override": "files of other users",
    "fowner": "modes of files of other users",
    "kill": "signals to other users' daemons",
    "setgid": "gid of daemons",
    "setuid": "uid of daemons",
    "setpcap": "caps of daemons",
    "net_admin": "networks of jails",
    "sys_chroot": "jails, enter",
    "sys_ptrace": "what smart daemons of other users execute, enter",
    "sys_admin": "namespaces, mounts, jails, enter",
    "sys_nice": "nice below 0",
    "sys_resource": "limits above the hard ones, oom_score below ours",
}
INITIAL = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}
"""Inode numbers of the machine's first namespaces: see linux/proc_ns.h."""
_MODULES = {
    "prctl": (MISSING, "enter, caps and the process title fail", "pip install python-prctl"),
    "pyroute2": (DEGRADED, "networks of jails cannot be set up", "pip install pyroute2"),
    "cryptography": (DEGRADED, "no legions", "pip install 'lowsuper[legion]'"),
}


def list_rows() -> Iterator[Row]:
    """Yield all rows of this module."""
    yield _look_at_kernel()
    yield _look_at_container()
    status = _read_status()
    yield from _look_at_capabilities(status)
    yield from _look_at_restrictions(status)
    yield from _look_at_limits()
    yield _look_at_proc()
    yield _look_at_terminals()
    yield _look_at_runtime_directory()
    yield _look_at_state_directory()
    yield _look_at_unit()
    yield from _look_at_modules()


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _read_status() -> dict[str, str]:
    lines = (line.partition(":") for line in _read_text("/proc/self/status").splitlines())
    return {key: value.strip() for key, _, value in lines}


def _look_at_kernel() -> Row:
    name = os.uname()
    return Row("kernel", OK, f"{name.sysname} {name.release} {name.machine}")


def _look_at_container() -> Row:
    """Tell by what hints a container is seen; it is no failing."""
    hints = [path for path in ("/.dockerenv", "/run/.containerenv") if os.path.exists(path)]
    kind = _read_text("/run/systemd/container").strip() or os.environ.get("container", "")  # noqa: SIM112  # its name
    if not kind:
        for word in _read_text("/proc/1/environ").split("\0"):
            if word.startswith("container="):
                kind = word.partition("=")[2]
    if kind:
        hints.append(f"container={kind}")
    for space, inode in INITIAL.items():
        try:
            if os.stat(f"/proc/self/ns/{space}").st_ino != inode:
                hints.append(f"a {space} namespace of its own")
        except OSError:
            hints.append(f"no /proc/self/ns/{space}")
    return Row("container", OK, ", ".join(hints) or "none: the machine's own namespaces")


def _look_at_capabilities(status: dict[str, str]) -> Iterator[Row]:
    """Yield one row, and one for each capability that root lacks."""
    name = "capabilities"
    have = int(status.get("CapEff", "0"), 16)
    lacking = [each for each, number in CAPABILITIES.items() if not have >> number & 1]
    if lacking and os.geteuid():
        effect = "daemons run as this user, and nothing is done that takes root"
        seen = f"uid {os.geteuid()} lacks {len(lacking)} of {len(CAPABILITIES)}"
        yield Row(name, DEGRADED, seen, effect, "run it as root")
        return
    yield Row(name, OK, "all that lowsuper uses" if not lacking else "all but the following")
    for each in lacking:
        effect = f"what takes it fails and says so: {_USES[each]}"
        advice = f"in docker: --cap-add {each.upper()}; in a unit: CapabilityBoundingSet="
        yield Row(f"capability {each}", DEGRADED, "lacking", effect, advice)


def _look_at_restrictions(status: dict[str, str]) -> Iterator[Row]:
    """Yield the rows of what takes rights away from whatever we start. See proc_pid_status(5)."""
    import prctl

    bits = prctl.get_securebits()
    if bits:
        effect = "root's programs may lack capabilities, and daemons inherit that"
        yield Row("securebits", DEGRADED, f"{bits:#x}", effect, "start lowsuper without them")
    else:
        yield Row("securebits", OK, "none")
    found = []
    if status.get("NoNewPrivs", "0") != "0":
        found.append("no_new_privs")
    if status.get("Seccomp", "0") != "0":
        found.append(f"{status.get('Seccomp_filters', 'a')} seccomp filter(s)")
    if not found:
        yield Row("seccomp, no_new_privs", OK, "neither")
        return
    effect = "daemons inherit it; set-user-id programs do not work under no_new_privs"
    advice = "under systemd: NoNewPrivileges=no; in docker: --security-opt seccomp=unconfined"
    yield Row("seccomp, no_new_privs", DEGRADED, " and ".join(found), effect, advice)


def _look_at_limits() -> Iterator[Row]:
    """Yield the rows of open files and processes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"{_name_limit(soft)} soft, {_name_limit(hard)} hard"
    effect = "a master needs up to 5 for each daemon, and says when they are used up"
    if 0 <= hard < FEW_FILES:
        advice = "raise LimitNOFILE= of the unit, or ulimit -Hn"
        yield Row("open files", DEGRADED, seen, effect, advice)
    else:
        yield Row("open files", OK, seen)
    limits = dict(_find_process_limits())
    seen = ", ".join(f"{name} {_name_limit(limit)}" for name, limit in limits.items())
    if any(0 <= limit < FEW_PROCESSES for limit in limits.values()):
        effect = "a daemon that cannot be started for it is tried again, later and later"
        advice = "raise TasksMax= of the unit, pids.max of the cgroup (docker: --pids-limit)"
        yield Row("processes", DEGRADED, seen, effect, advice)
    else:
        yield Row("processes", OK, seen)


def _name_limit(number: int) -> str:
    return "no limit" if number < 0 else str(number)


def _find_process_limits() -> Iterator[tuple[str, int]]:
    """Yield what limits the number of processes, and to how many; -1: it does not."""
    import resource

    yield "RLIMIT_NPROC", resource.getrlimit(resource.RLIMIT_NPROC)[0]
    yield "kernel.threads-max", read_number("/proc/sys/kernel/threads-max")
    mounts = {}
    for line in _read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        if kind == "cgroup2":
            mounts[""] = left.split()[4]
        elif kind == "cgroup" and "pids" in options.rpartition(" ")[2].split(","):
            mounts["pids"] = left.split()[4]
    for line in _read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in {"", "pids"} & set(controllers.split(",")) & mounts.keys():
            # The limits above it count as well; the nearest one that there is tells enough.
            while path.startswith("/"):
                limit = read_number(f"{mounts[controller]}{path}/pids.max")
                if limit >= 0:
                    yield f"pids.max of {path}", limit
                    break
                path = path.rstrip("/").rpartition("/")[0]


def _look_at_proc() -> Row:
    name = "/proc"
    options = _find_mount_options("/proc")
    if options is None:
        return Row(name, MISSING, "is not mounted", "nothing works", "mount -t proc proc /proc")
    hidden = [each for each in options.split(",") if each.startswith("hidepid=")]
    if not hidden or hidden[0] in ("hidepid=0", "hidepid=off"):
        return Row(name, OK, "shows all processes")
    if os.geteuid() == 0:
        return Row(name, OK, f"{hidden[0]}, which root sees through")
    effect = "daemons of other users are not seen, and not adopted"
    return Row(name, DEGRADED, hidden[0], effect, "mount -o remount,hidepid=0 /proc")


def _find_mount_options(place: str) -> str | None:
    """Return the options of the file system that is mounted at a place last; None: none is."""
    found = None
    for line in _read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == place:
            found = right.rpartition(" ")[2]
    return found


def _look_at_terminals() -> Row:
    """See TIOCSTI in ioctl_tty(2): what runs on a terminal types into it as its user does."""
    name = "terminals"
    pushes = read_number("/proc/sys/dev/tty/legacy_tiocsti")  # Linux 6.2
    if pushes == 0:
        return Row(name, OK, "refuse TIOCSTI but with CAP_SYS_ADMIN")
    seen = "allow TIOCSTI" + ("" if pushes == 1 else ", as all before Linux 6.2")
    effect = "what lowsuper enter runs in a jail can type into the terminal that it is run on"
    advice = "enter only jails that you trust"
    if pushes == 1:
        advice = "sysctl dev.tty.legacy_tiocsti=0"
    return Row(name, DEGRADED, seen, effect, advice)


def _look_at_runtime_directory() -> Row:
    name = "runtime directory"
    path = find_directory(os.environ)
    if not path:
        effect = "no control socket: the commands that talk to a master do not find it"
        advice = "set XDG_RUNTIME_DIR or LOWSUPER_RUNTIME_DIR, or the option runtime-dir"
        return Row(name, DEGRADED, "none for this user", effect, advice)
    reason = _judge_directory(path)
    if reason:
        effect = "no control socket: the commands that talk to a master do not find it"
        return Row(name, DEGRADED, f"{path} {reason}", effect, "choose one with runtime-dir")
    kind = "on a tmpfs" if _is_on_tmpfs(path) else "not on a tmpfs: what is left outlives a reboot"
    return Row(name, OK, f"{path}, {kind}")


def _look_at_state_directory() -> Row:
    name = "state directory"
    path = Facts(os.environ).find_state_directory(None, None)
    reason = _judge_directory(path)
    if not reason:
        return Row(name, OK, path)
    effect = "a master with smart daemons does not start"
    advice = "choose one with state-dir, of which only root and the master's user decide"
    return Row(name, DEGRADED, f"{path} {reason}", effect, advice)


def _judge_directory(path: str) -> str:
    reason = Facts(os.environ).judge_state_directory(path, None)
    if reason or os.access(_find_existing(path), os.W_OK):
        return reason
    return "cannot be written"  # it is mounted read-only


def _find_existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _is_on_tmpfs(path: str) -> bool:
    """Tell by the mount table, as Python has no statfs(2) with the type."""
    place = os.path.realpath(_find_existing(path))
    best, kind = "", ""
    for line in _read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].rstrip("/")
        if f"{place}/".startswith(f"{point}/") and len(point) >= len(best):
            best, kind = point, right.partition(" ")[0]
    return kind in ("tmpfs", "ramfs", "rootfs")


def _look_at_unit() -> Row:
    """Tell what the systemd unit that we are in does to what outlives us."""
    name = "systemd unit"
    path = next(
        (
            line.split(":", 2)[2]
            for line in _read_text("/proc/self/cgroup").splitlines()
            if line.startswith(("0::", "1:name=systemd:"))
        ),
        "",
    )
    unit = next((part for part in reversed(path.split("/")) if part.endswith(".service")), "")
    if not os.path.isdir("/run/systemd/system"):
        return Row(name, OK, "systemd does not run here")
    if not unit:
        return Row(name, OK, "not in a service (its unit may be another than that of this shell)")
    settings = _ask_systemd(unit)
    if not settings:
        return Row(name, OK, f"{unit}; systemctl does not tell more")
    mode, delegate = settings.get("KillMode", ""), settings.get("Delegate", "")
    seen = f"{unit}: KillMode={mode}, Delegate={delegate}"
    effects, advice = [], []
    if mode not in ("process", "none"):
        effects.append("smart daemons are killed when the unit stops or restarts")
        advice.append("KillMode=process")
    if delegate != "yes":
        effects.append("systemd may move processes out of lowsuper's cgroups")
        advice.append("Delegate=yes")
    if not effects:
        return Row(name, OK, seen)
    return Row(name, DEGRADED, seen, "; ".join(effects), f"in the unit: {', '.join(advice)}")


def _ask_systemd(unit: str) -> dict[str, str]:
    import subprocess

    words = ["systemctl", "show", "--property=KillMode,Delegate", "--", unit]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=True, timeout=PATIENCE, stdin=-3
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _look_at_modules() -> Iterator[Row]:
    from importlib.util import find_spec

    for name, (state, effect, advice) in _MODULES.items():
        if find_spec(name) is None:
            yield Row(f"module {name}", state, "is not installed", effect, advice)
        else:
            yield Row(f"module {name}", OK, "is installed")
