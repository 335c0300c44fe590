"""The one table of daemon keys: `attach-daemon2` and `[daemon:NAME]` read the same ones.

A new key is a row here, a field of `model.DaemonSpec`, and its one consumer.
"""

from __future__ import annotations

from lowsuper import units
from lowsuper.command import parse_command
from lowsuper.model import Endpoint, EnvChange, Listen
from lowsuper.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAME_LENGTH = 64
"""The longest name of a daemon or an instance, in bytes: it becomes a directory's name."""

SOCKET = "socket"
"""As an address of `listen`: those of the option `socket`."""

_NAME_MARKS = "-_.@:+"


class Key(Record):
    """One key of a daemon."""

    names: tuple[str, ...]  # the first is the one to show
    parse: Callable[[str], object]  # the text to the field's value; raises ValueError
    field: str  # of model.DaemonSpec
    help: str
    is_flag: bool = False  # may stand without "="
    adds: bool = False  # to the field, a tuple, which other keys or lines may add to as well


def _parse_text(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    if "\0" in text:
        raise ValueError("holds a NUL byte")
    return text


def parse_name(text: str) -> str:
    """Return the name of a daemon or an instance.

    Raises:
        ValueError: it is not fit for the name of a directory.
    """
    if not text:
        raise ValueError("is empty")
    if len(text.encode("utf-8", "surrogateescape")) > NAME_LENGTH:
        raise ValueError(f"is longer than {NAME_LENGTH} bytes")
    if text.startswith("."):
        raise ValueError("begins with a dot")
    for char in text:
        if not (char.isascii() and char.isalnum()) and char not in _NAME_MARKS:
            raise ValueError(f"holds {char!r}; names have letters, digits and {_NAME_MARKS} only")
    return text


def clean_name(text: str) -> str:
    """Return a text made fit for a name; "" when nothing is left."""
    kept = (
        char if char.isascii() and (char.isalnum() or char in _NAME_MARKS) else "-" for char in text
    )
    return "".join(kept).strip("-").lstrip(".-")[: NAME_LENGTH - 8]


def parse_touch(text: str) -> tuple[str, ...]:
    """Return the files of `a;b;"c;d"`: quotes and backslashes protect a semicolon.

    Raises:
        ValueError: a quote has no end, or there is no file.
    """
    files: list[str] = []
    current: list[str] = []
    quote = ""
    escaped = False
    for char in text:
        if escaped:
            current.append(char)
            escaped = False
        elif char == "\\":
            escaped = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                current.append(char)
        elif char in "\"'":
            quote = char
        elif char == ";":
            files.append("".join(current).strip())
            current.clear()
        else:
            current.append(char)
    if quote:
        raise ValueError(f"a {quote} has no end")
    files.append("".join(current).strip())
    found = tuple(name for name in files if name)
    if not found:
        raise ValueError("is empty")
    return found


def parse_pidfile(text: str) -> str:
    """Return the path of a pidfile, as written.

    Raises:
        ValueError: it is empty, or surely a directory's.
    """
    path = _parse_text(text)
    if path.rpartition("/")[2] in ("", ".", ".."):
        raise ValueError("names a directory, not a file")
    return path


def parse_env(text: str) -> tuple[EnvChange, ...]:
    """Return what `NAME=value` asks for.

    Raises:
        ValueError: it is not that.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not is_variable(name) or "\0" in value:
        raise ValueError("is not NAME=value")
    return (EnvChange(name, value),)


def is_variable(name: str) -> bool:
    """Tell whether a text is fit for the name of an environment variable."""
    return bool(name) and not any(char in "=\0" or char.isspace() for char in name)


def parse_envfile(text: str) -> tuple[str, ...]:
    """Return a path, with its `-` if it has one.

    Raises:
        ValueError: there is none.
    """
    _parse_text(text.removeprefix("-"))
    return (text,)


def parse_listen(text: str) -> tuple[Listen, ...]:
    """Return what `ADDRESS [NAME]` asks for; `socket` for those of the option of that name.

    Raises:
        ValueError: it is not that.
    """
    from lowsuper.config.stats import parse_endpoint

    address, _, name = text.strip().partition(" ")
    name = name.strip()
    if name and (":" in name or not name.isascii() or not name.isprintable() or " " in name):
        raise ValueError(f"has a name, {name!r}, that holds something else than ASCII, or a colon")
    if address == SOCKET:
        return (Listen(Endpoint(address, SOCKET, ""), name),)
    return (Listen(parse_endpoint(address), name),)


def parse_patience(text: str) -> units.Ns:
    """Return a length of time that is more than nothing.

    Raises:
        ValueError: it is none.
    """
    patience = units.parse_duration(text)
    if not patience:
        raise ValueError("is not more than 0")
    return patience


def parse_maxsize(text: str) -> int:
    """Return a size of a log file: see `config.logs`."""
    from lowsuper.config import logs

    return logs.parse_maxsize(text)


def parse_backups(text: str) -> int:
    """Return a number of old log files: see `config.logs`."""
    from lowsuper.config import logs

    return logs.parse_backups(text)


def parse_umask(text: str) -> int:
    """Return a file mode creation mask.

    Raises:
        ValueError: it is none.
    """
    mask = units.parse_mode(text)
    if mask > 0o777:
        raise ValueError("is more than 777")
    return mask


def parse_nice(text: str) -> int:
    """Return a nice value.

    Raises:
        ValueError: it is none.
    """
    return units.parse_int(text, -20, 19)


def parse_oom_score(text: str) -> int:
    """Return a value of oom_score_adj.

    Raises:
        ValueError: it is none.
    """
    return units.parse_int(text, -1000, 1000)


def parse_caps(text: str) -> tuple[int, ...]:
    """Return the capabilities of a list: see `config.isolation`."""
    from lowsuper.config import isolation

    return isolation.parse_caps(text)


def parse_namespaces(text: str) -> tuple[str, ...]:
    """Return the namespaces of a list: see `config.isolation`."""
    from lowsuper.config import isolation

    return isolation.parse_namespaces(text)


def parse_hostname(text: str) -> str:
    """Return a host name: see `config.isolation`."""
    from lowsuper.config import isolation

    return isolation.parse_hostname(text)


def parse_legion(text: str) -> str:
    """Return the name of a legion.

    Raises:
        ValueError: it is none.
    """
    if not text or " " in text:
        raise ValueError("is not the name of a legion")
    return text


def parse_netns(text: str) -> str:
    """Return the path of a network namespace: see `config.isolation`."""
    from lowsuper.config import isolation

    return isolation.parse_netns(text)


def parse_root(text: str) -> str:
    """Return an absolute path: see `config.isolation`."""
    from lowsuper.config import isolation

    return isolation.parse_place(text)


def parse_mounts(text: str) -> object:
    """Return mounts, parted by semicolons as the files of `touch`: see `config.isolation`."""
    from lowsuper.config import isolation

    return isolation.parse_mounts(parse_touch(text))


def parse_ready(text: str) -> object:
    """Return how a daemon shows that it is ready: see `config.readiness`."""
    from lowsuper.config import readiness

    return readiness.parse_ready(text)


def parse_policy(name: str) -> Callable[[str], object]:
    """Return what parses a value of `config.policy`, which few configurations need."""

    def parse(text: str) -> object:
        from lowsuper.config import policy

        return getattr(policy, f"parse_{name}")(text)

    return parse


def parse_type(text: str) -> str:
    """Return the type of a daemon: see `config.readiness`."""
    from lowsuper.config import readiness

    return readiness.parse_type(text)


def parse_access(text: str) -> str:
    """Return which processes may notify: see `config.readiness`."""
    from lowsuper.config import readiness

    return readiness.parse_access(text)


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names of a list: see `config.readiness`."""
    from lowsuper.config import readiness

    return readiness.parse_names(text)


def parse_output(text: str) -> object:
    """Return where output goes: see `config.logs`."""
    from lowsuper.config import logs

    return logs.parse_output(text)


def _limit(resource: str, help_text: str) -> Key:
    """Return the row of a resource limit."""

    def parse_limit(text: str) -> object:
        from lowsuper.config import isolation

        return isolation.parse_limit(resource, text)

    return Key((f"rlimit_{resource}",), parse_limit, "limits", f"limit: {help_text}", adds=True)


def _cgroup(file: str, help_text: str) -> Key:
    """Return the row of a file of the daemon's cgroup."""

    def parse_setting(text: str) -> object:
        from lowsuper.config import cgroups

        return cgroups.parse_setting(file, text)

    name = f"cgroup_{file.replace('.', '_')}"
    return Key((name,), parse_setting, "cgroup", help_text, adds=True)


KEYS = (
    Key(("command", "cmd", "exec"), parse_command, "command", "what to run"),
    Key(("name",), parse_name, "name", "name of the daemon; else its program's"),
    Key(("control",), units.parse_bool, "control", "when it ends, lowsuper stops", True),
    Key(("touch",), parse_touch, "touch", "files, parted by ;, whose change restarts it"),
    Key(("stopsignal", "stop_signal"), units.parse_signal, "stop_signal", "signal that stops it"),
    Key(
        ("reloadsignal", "reload_signal"),
        units.parse_signal,
        "reload_signal",
        "signal that stops it for a reload; else stopsignal",
    ),
    Key(("stdin",), units.parse_bool, "stdin", "keep standard input", True),
    Key(("uid", "user"), _parse_text, "user", "user, by name or number"),
    Key(("gid", "group"), _parse_text, "group", "group, by name or number"),
    Key(("ns_pid",), units.parse_bool, "ns_pid", "a pid namespace of its own", True),
    Key(("ns_init",), units.parse_bool, "ns_init", "with a small init in it (the default)", True),
    Key(("chdir",), _parse_text, "chdir", "working directory"),
    Key(("max_throttle",), units.parse_duration, "max_throttle", "longest pause between starts"),
    Key(("stop_timeout",), units.parse_duration, "stop_timeout", "from stop signal to SIGKILL"),
    Key(("pidfile",), parse_pidfile, "pidfile", "its pidfile, with which it survives lowsuper"),
    Key(("freq",), parse_patience, "freq", "time to be named by its pidfile (10 s)"),
    Key(
        ("daemonize", "daemon"),
        units.parse_bool,
        "daemonize",
        "lowsuper writes the pidfile, not the daemon",
        True,
    ),
    Key(
        ("notifypid", "notify_pid"),
        units.parse_bool,
        "notify_pid",
        "with a pidfile: signal it at stop and reload",
        True,
    ),
    Key(("env",), parse_env, "env", "NAME=value, a variable of its environment", adds=True),
    Key(
        ("envfile",), parse_envfile, "envfile", "file of such lines, read at each start", adds=True
    ),
    Key(
        ("clean_env",),
        units.parse_bool,
        "clean_env",
        "nothing of lowsuper's own environment",
        True,
    ),
    Key(("listen",), parse_listen, "listen", "ADDRESS [NAME] that it finds open", adds=True),
    Key(("type",), parse_type, "kind", "simple, or oneshot: does something once, and ends"),
    Key(("groups",), parse_names, "groups", "names to address it by with others", adds=True),
    Key(
        ("ready",),
        parse_ready,
        "ready",
        "exec:COMMAND, tcp:HOST:PORT, unix:PATH, file:PATH, pidfile, notify or fd:N",
    ),
    Key(("restart",), parse_policy("restart"), "restart", "always, on-failure or never (always)"),
    Key(
        ("backoff",),
        parse_policy("backoff"),
        "backoff",
        "first and longest pause between starts, such as 0.5s..30s (as uWSGI)",
    ),
    Key(
        ("max_restarts",),
        parse_policy("max_restarts"),
        "max_restarts",
        "restarts in a time, such as 5/60s, after which it is given up (any)",
    ),
    Key(
        ("on_give_up",),
        parse_policy("give_up"),
        "on_give_up",
        "stop, or exit: the master ends too, with its exit code (stop)",
    ),
    Key(("success_codes",), parse_policy("codes"), "success_codes", "exit codes of success (0)"),
    Key(("start_timeout",), parse_patience, "start_timeout", "time to be ready (any)"),
    Key(("watchdog",), parse_patience, "watchdog", "longest silence between two notifications"),
    Key(("notify_access",), parse_access, "notify_access", "main or all of it may notify"),
    Key(
        ("requires",),
        parse_names,
        "requires",
        "daemons that must be ready first; it stops with them",
        adds=True,
    ),
    Key(
        ("wants",),
        parse_names,
        "wants",
        "daemons that must be ready first, if they can be had",
        adds=True,
    ),
    Key(
        ("after",),
        parse_names,
        "after",
        "daemons whose start must have succeeded or failed first",
        adds=True,
    ),
    Key(("legion",), parse_legion, "legion", "it runs only on the lord of this legion"),
    Key(
        ("namespaces",),
        parse_namespaces,
        "namespaces",
        "of its own: pid, mount, net, uts, ipc, cgroup",
        adds=True,
    ),
    Key(("hostname",), parse_hostname, "hostname", "host name, in a uts namespace of its own"),
    Key(("netns",), parse_netns, "netns", "network namespace that it joins, by name or path"),
    Key(("root",), parse_root, "root", "root directory, in a mount namespace of its own"),
    Key(
        ("mounts",),
        parse_mounts,
        "mounts",
        "SOURCE:TARGET[:ro], parted by ;, in a mount namespace of its own",
        adds=True,
    ),
    Key(("log",), parse_output, "log", "a file for its output; or stdout, stderr, null, ring"),
    Key(("log_maxsize",), parse_maxsize, "log_maxsize", "size at which its log is rotated"),
    Key(("log_max_age",), parse_patience, "log_max_age", "age at which its log is rotated"),
    Key(("log_backups",), parse_backups, "log_backups", "old files of its log to keep (5)"),
    Key(("umask",), parse_umask, "umask", "file mode creation mask"),
    Key(("nice",), parse_nice, "nice", "nice value, from -20 to 19"),
    Key(
        ("oom_score", "oom_score_adj"),
        parse_oom_score,
        "oom_score",
        "from -1000, never killed for lack of memory, to 1000",
    ),
    Key(
        ("no_new_privs",),
        units.parse_bool,
        "no_new_privs",
        "nothing that it executes gains privileges",
        True,
    ),
    Key(("caps",), parse_caps, "caps", "capabilities that it keeps, or none", adds=True),
    _limit("as", "address space"),
    _limit("core", "size of a core file"),
    _limit("cpu", "processor time"),
    _limit("data", "data segment"),
    _limit("fsize", "size of a file that it writes"),
    _limit("memlock", "locked memory"),
    _limit("msgqueue", "POSIX message queues, in bytes"),
    _limit("nice", "lowest nice value, or 20 minus it"),
    _limit("nofile", "open files"),
    _limit("nproc", "processes of its user"),
    _limit("rtprio", "realtime priority"),
    _limit("rttime", "processor time without a pause, when realtime"),
    _limit("sigpending", "pending signals"),
    _limit("stack", "stack"),
    _cgroup("memory.max", "memory of all its processes; who needs more is killed"),
    _cgroup("memory.high", "memory above which it is slowed down"),
    _cgroup("memory.low", "memory that is left to it if possible"),
    _cgroup("memory.min", "memory that is never taken from it"),
    _cgroup("memory.swap.max", "swap space of all its processes"),
    _cgroup("memory.oom.group", "out of memory, all of it is killed, not a part"),
    _cgroup("pids.max", "number of its processes and threads"),
    _cgroup("cpu.max", "processor time: 50%%, 250%% or QUOTA PERIOD in microseconds"),
    _cgroup("cpu.weight", "share of processor time, from 1 to 10000 (100)"),
    _cgroup("cpu.idle", "processor time only when nobody else wants any"),
    _cgroup("io.weight", "share of disk time, from 1 to 10000 (100)"),
    _cgroup("io.max", "limits of a disk: MAJOR:MINOR rbps=N wbps=N riops=N wiops=N"),
    _cgroup("cpuset.cpus", "processors that it may use: 0-3,6"),
    _cgroup("cpuset.mems", "memory nodes that it may use"),
)
"""Every daemon key."""

NAMES = {name: key for key in KEYS for name in key.names}
"""Every name of a daemon key."""


def normalize(name: str) -> str:
    """Return a key's name with underscores for hyphens."""
    return name.strip().replace("-", "_")


def find_key(name: str) -> Key | None:
    """Return the row of a key, hyphen and underscore alike, or None."""
    return NAMES.get(normalize(name))


def list_names() -> list[str]:
    """Return every known name, for suggestions."""
    return list(NAMES)
